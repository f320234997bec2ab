"""Lax's own lowering; it refuses nothing.

Negative padding is cropped from the input before: XLA:CPU reads outside of the input there (JAX 0.10.2).
"""

from jax import Array, lax

from jaxgroupconv.spec import ConvSpec


def why_not(spec: ConvSpec) -> str | None:
    """None: lax computes every convolution."""
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    return lax.conv_general_dilated(lhs, rhs, **spec.lax_params())
