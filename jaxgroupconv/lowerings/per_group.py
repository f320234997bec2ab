"""One dense convolution per group.

XLA:CPU's dense path is good from about 16 channels a group; each group costs compile time.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxgroupconv.spec import ConvSpec

MAX_GROUPS = 32


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.groups == 1:
        return "one group is lax's own dense convolution"
    return None if spec.groups <= MAX_GROUPS else f"{spec.groups} groups exceed {MAX_GROUPS}"


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    params = spec.lax_params() | {"feature_group_count": 1, "batch_group_count": 1}

    def split(array: Array, layout: str) -> list[Array]:
        return jnp.split(array, spec.groups, layout.index("g"))

    groups = zip(split(lhs, spec.lhs_layout), split(rhs, spec.rhs_layout), strict=True)
    return jnp.concatenate([lax.conv_general_dilated(x, w, **params) for x, w in groups], spec.out_layout.index("g"))
