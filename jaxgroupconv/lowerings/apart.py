"""What XLA:CPU must not fuse with what stands around a convolution.

XLA:CPU takes sums, products and slices for cheap: it fuses them into whatever uses them, and computes them again for each use.
A lowering slices its operands many times, so what made them would be computed for every slice; and the sums that it is would
be computed for every use of the result. It fuses nothing across the border of a branch.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jax import Array, lax

from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 16  # of a sum that costs no more to compute again than to write and to read


def worthwhile(name: str, spec: ConvSpec) -> bool:
    """Whether a lowering's operands and result are better computed once: a weight gradient, patches, a long sum."""
    terms = math.prod(spec.out_size if spec.short_output else spec.window)
    if name == "matmul":
        return terms > 1 and not spec.disjoint
    return name == "taps" and (spec.short_output or spec.in_channels * terms // spec.phases > MAX_TERMS)


def apart(compute: Callable[..., Array], shape: Sequence[int], dtype: np.dtype, *operands: Array) -> Array:
    """The same as `compute(*operands)`, of this shape and dtype: all operands before it, and it before what uses it."""
    always = lax.lt(lax.reduce_min(lax.sort(lax.iota(np.int32, 2)), [0]), np.int32(1))  # which XLA does not see
    return lax.cond(always, compute, lambda *_: lax.full(shape, 0, dtype), *operands)
