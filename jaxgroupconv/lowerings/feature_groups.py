"""Lax's own convolution with the batch groups of a weight gradient written as feature groups.

XLA:CPU computes batch groups as all pairs of groups and masks the wrong ones: up to 200 times slower than feature groups, and
an Inf or NaN of one group reaches the others.
"""

import dataclasses

from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align
from jaxgroupconv.spec import ConvSpec


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    return None if spec.groups > 1 and "gn" in spec.lhs_layout else "no batch groups"


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    regrouped = dataclasses.replace(spec, lhs_layout=spec.lhs_layout.replace("g", "").replace("c", "gc"))
    lhs = align(spec.split(lhs, rhs)[0], spec.lhs_layout, regrouped.lhs_layout).reshape(regrouped.lhs_shape)
    return lax.conv_general_dilated(lhs, rhs, **regrouped.lax_params())
