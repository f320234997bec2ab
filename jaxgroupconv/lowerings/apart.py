"""What XLA:CPU must not fuse with what stands around it.

XLA:CPU takes sums, products and slices for cheap: it fuses them into whatever uses them, and computes them again for each use.
A lowering slices its operands many times, so what made them would be computed for every slice; and the sums that it is would
be computed for every use of the result. It fuses nothing across the border of a call, but it inlines calls, unless told not to.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 16  # of a sum that is left open: no dearer to compute again than to read, and cheap to fuse into an activation
_INLINED = "inlineable"  # XLA's attribute of calls


def worthwhile(name: str, spec: ConvSpec) -> bool:
    """Whether a lowering is better kept apart: patches, and all but a short sum. Nothing is fused to lax's convolutions."""
    terms = spec.in_channels * math.prod(spec.window) // spec.phases
    return name == "matmul" or (name == "taps" and (spec.short_output or terms > MAX_TERMS))


def apart(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as a call that XLA keeps: its operands are computed before it, and it before what uses it."""
    from jax.experimental.xla_metadata import set_xla_metadata  # a JAX without it does not plan, and does not come here

    @functools.wraps(compute)
    def inside(*operands: Any) -> Any:
        with set_xla_metadata(**{_INLINED: None}):  # what holds for the call would hold for all calls inside
            return compute(*operands)

    jitted = jax.jit(inside)

    @functools.wraps(compute)
    def call(*operands: Any) -> Any:
        with set_xla_metadata(**{_INLINED: "false"}):
            return jitted(*operands)

    return call
