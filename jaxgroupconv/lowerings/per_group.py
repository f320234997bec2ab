"""One dense convolution per group: XLA:CPU's dense path is good from about 16 channels a group.

Each convolution that is written out costs compile time. So few groups are written out, in the layout as it is, and many are a
loop over groups that have been made contiguous.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align
from jaxgroupconv.spec import ConvSpec

MAX_UNROLLED = 16


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    return "one group is lax's own dense convolution" if spec.groups == 1 else None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    return _unrolled(spec, lhs, rhs) if spec.groups <= MAX_UNROLLED else _looped(spec, lhs, rhs)


def _unrolled(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    params: dict[str, Any] = spec.lax_params() | {"feature_group_count": 1, "batch_group_count": 1}

    def split(array: Array, layout: str) -> list[Array]:
        return jnp.split(array, spec.groups, layout.index("g"))

    groups = zip(split(lhs, spec.lhs_layout), split(rhs, spec.rhs_layout), strict=True)
    return jnp.concatenate([lax.conv_general_dilated(x, w, **params) for x, w in groups], spec.out_layout.index("g"))


def _looped(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    lhs, rhs = spec.split(lhs, rhs)
    x = align(lhs, spec.lhs_layout, f"gn{spec.spatial}c")
    w = align(rhs, spec.rhs_layout, f"g{spec.spatial}co")
    n, s = spec.ndim, range(1, spec.ndim + 1)
    channel_last = lax.ConvDimensionNumbers((0, n + 1, *s), (n + 1, n, *range(n)), (0, n + 1, *s))
    params: dict[str, Any] = spec.lax_params() | {
        "feature_group_count": 1,
        "batch_group_count": 1,
        "dimension_numbers": channel_last,
    }
    out = lax.map(lambda group: lax.conv_general_dilated(*group, **params), lax.optimization_barrier((x, w)))
    return align(out, f"gn{spec.spatial}o", spec.out_layout).reshape(spec.out_shape)
