"""What XLA:CPU must not fuse with what stands around it.

XLA:CPU takes sums, products and slices for cheap: it fuses them into whatever uses them, and computes them again for each use.
A lowering slices its operands many times, so what made them would be computed for every slice; and the sums that it is would
be computed for every use of the result. It fuses nothing across the border of a call, but it inlines calls, unless told not to.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_INLINED = "inlineable"  # XLA's attribute of calls


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
