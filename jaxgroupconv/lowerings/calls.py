"""The functions and loops of a lowering: parts that are traced once, and parts that XLA must not fuse with what is around them.

XLA:CPU takes sums, products and slices for cheap: it fuses them into whatever uses them, and computes them again for each use.
A lowering slices its operands many times, so what made them would be computed for every slice; and the sums that it is would
be computed for every use of the result. It fuses nothing across the border of a call, but it inlines calls, unless told not to.

Arrays that belong to a program which is being written (`rules.py`) have a `writer`, which writes calls and loops; others are
traced.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.block_sums import depthwise
from jaxgroupconv.spec import ConvSpec

OPEN_TERMS = 16  # of a sum that is left open: no dearer to compute again than to read, and cheap to fuse into an activation
_INLINED = "inlineable"  # XLA's attribute of calls


def worthwhile(name: str, spec: ConvSpec) -> bool:
    """Whether a lowering is better kept apart: calls of kernels, patches, and all but a short depthwise sum and its gradient.

    Sums over channels, one after the other, would multiply what each computes again. Nothing is fused to calls of kernels, but
    what uses a product that is kept apart and what uses such a call are the same kernel then, compiled once; and phases are
    interleaved by a branch for each, for which LLVM takes half a second together with what is fused to these.
    A weight gradient keeps its sums apart, but not, channel-last, the padded input: XLA sees that it is the sum's own, whose
    operand then need not be stored without its padding. (Not that of a narrow dtype, which would be stored as a wide one.)
    """
    if spec.short_output:
        shares = not spec.lhs_layout.endswith(spec.spatial) and spec.lhs_dtype == spec.compute_dtype
        short = shares and depthwise(spec) and math.prod(spec.out_size) <= OPEN_TERMS
    else:
        short = spec.in_channels == spec.out_channels == 1 and math.prod(spec.window) // spec.phases <= OPEN_TERMS
    return name in ("matmul", "onednn") or (name == "taps" and not short)


def apart(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as a call that XLA keeps: its operands are computed before it, and it before what uses it."""
    return call(compute, kept=True)


def loop(count: int, step: Callable[..., Array], init: Array, *operands: Array) -> Array:
    """`out = step(i, out, *operands)` for each i, an int32."""

    def more(i: Any, *_: Array) -> Any:
        return lax.lt(i, np.int32(count))

    def body(i: Any, out: Array, *operands: Array) -> tuple[Any, ...]:
        return lax.add(i, np.int32(1)), step(i, out, *operands), *operands

    carry = np.int32(0), init, *operands
    if (writer := _writer(carry[1:])) is not None:
        return writer.loop(more, body, carry)[1]
    return lax.while_loop(lambda carry: more(*carry), lambda carry: body(*carry), carry)[1]


def loop_apart(count: int, fetch: Callable, step: Callable, init: Array, *operands: Array) -> Array:
    """A loop over slices of the operands: `out = step(i, out, fetch(i, *operands), *operands)`.

    XLA would fuse slicing at a dynamic position into every term, which is no vector loop any more; so the slices are taken
    apart. And it runs a loop on one core alone if it takes it for small (JAX 0.12), but not one that sorts: so i is the first
    of two sorted numbers.
    """

    def sliced(i: Any, out: Array, *operands: Array) -> Array:
        i = lax.squeeze(lax.slice(lax.sort(lax.add(lax.iota(np.int32, 2), i)), (0,), (1,)), (0,))
        return step(i, out, apart(fetch)(i, *operands), *operands)

    return loop(count, sliced, init, *operands)


def call(compute: Callable[..., Any], kept: bool) -> Callable[..., Any]:
    """The same function as one of the program's functions, of its name; `kept`: XLA may not inline it."""

    @functools.wraps(compute)
    def called(*operands: Any) -> Any:
        attributes = {_INLINED: "false"} if kept else {}
        if (writer := _writer(operands)) is None:
            return _traced(compute, operands, attributes)
        return writer.call(compute, operands, compute.__name__, **attributes)

    return called


def _traced(compute: Callable[..., Any], operands: Sequence[Any], attributes: dict[str, str]) -> Any:
    """The call, where no program is being written: in a loop's body, or without a rule."""
    from jax.experimental.xla_metadata import set_xla_metadata  # a JAX without it does not plan, and does not come here

    @functools.wraps(compute)
    def inside(*operands: Any) -> Any:
        with set_xla_metadata(**dict.fromkeys(attributes)):  # what holds for the call would hold for all calls inside
            return compute(*operands)

    with set_xla_metadata(**attributes):
        return jax.jit(inside)(*operands)


def shared(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`compute(spec, *arrays)` as a function that is traced once for all equal specs and shapes."""
    jitted = jax.jit(compute, static_argnums=0)

    @functools.wraps(compute)
    def called(spec: ConvSpec, *arrays: Any) -> Any:
        if (writer := _writer(arrays)) is not None:
            return writer.call(functools.partial(compute, spec), arrays, compute.__name__, key=(compute, spec))
        return jitted(spec, *arrays)

    return called


def _writer(arrays: Sequence[Any]) -> Any:
    """What writes the program that these arrays, but for constants, belong to, if there is one."""
    writers = {id(array.writer): array.writer for array in arrays if hasattr(array, "writer")}
    return writers.popitem()[1] if len(writers) == 1 else None
