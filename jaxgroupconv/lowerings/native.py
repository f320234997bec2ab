"""Lax's own convolution, which refuses nothing, without what XLA:CPU does wrong in it.

Negative padding is cropped from the input before: XLA:CPU reads outside of the input there (JAX 0.10.2). Batch groups are
written as feature groups: as batch groups, an Inf or NaN of one group reaches the others. An equation whose plan is `native`
and that has no negative padding never comes here: it keeps lax's lowering rule, untouched.
"""

from jax import Array, lax

from jaxgroupconv.lowerings import feature_groups
from jaxgroupconv.spec import ConvSpec


def why_not(spec: ConvSpec) -> str | None:
    """None: lax computes every convolution."""
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    if feature_groups.why_not(spec) is None:
        return feature_groups.lower(spec, lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, **spec.lax_params())
