"""Sum over kernel taps of shifted slices times weights; for weight gradients, sums over blocks of rows.

XLA:CPU compiles a sum that is written out in terms into one vector loop without temporaries; each term costs one load and one
multiply-add. It compiles a reduction into a scalar loop: so rows are added up elementwise first, and the rest of the reduction
is a product with ones, which is a vector loop again. Both operands get the axes of the result first, so that a term is a slice
and a product: what a program's tracing takes grows with its equations.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.calls import apart, shared
from jaxgroupconv.lowerings.geometry import (
    align,
    by_phase,
    contract,
    crop,
    divisor,
    loop,
    pad,
    pieces,
    put_at,
    spatial_slices,
    take,
    take_at,
)
from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 64  # unrolled terms of one sum; beyond, XLA's fused loop degrades and compiles slowly
LOOP_TERMS = 8  # least terms of one iteration: the result is read and written once in each
LOOP_PRODUCTS = 128  # the same times the output channels where these are minor: less, and LLVM unrolls their loop into scalars
MAX_ROW_TERMS = 128  # of one kernel row, which is never split
MAX_SUMS = 1024  # output positions of a weight gradient
MAX_PHASES = 4  # of a dilated input, each of which is compiled on its own; more only with
MAX_PHASE_TERMS = 256  # terms in all of them together
ROW_TERMS = 8  # products added up elementwise before a reduction
MORE_ROW_TERMS = (
    14  # the same where the window is minor or the channels are wide; 16 slices would often share a set of the cache
)
SHORT_ROW = 16  # elements of a row that fill no loop of vectors
MAX_COLUMNS = 8
MAX_SUM_TERMS = 256  # unrolled products of all output positions; beyond, a loop over the output's rows
CACHE_BYTES = 1 << 20  # operands that one iteration over c works on


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.phases > MAX_PHASES and (spec.short_output or spec.in_channels * math.prod(spec.window) > MAX_PHASE_TERMS):
        return f"{spec.phases} phases of the dilated input exceed {MAX_PHASES}"
    if spec.short_output:
        positions = math.prod(spec.out_size)
        return None if positions <= MAX_SUMS else f"{positions} output positions exceed {MAX_SUMS}"
    row = math.prod(spec.window[1:]) if spec.ndim > 1 else spec.in_channels * spec.window[0]
    if row > MAX_ROW_TERMS:
        return f"{row} terms in a row of the kernel exceed {MAX_ROW_TERMS}"
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array, swap: bool = True) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    lhs, rhs = (lax.convert_element_type(operand, spec.compute_dtype) for operand in spec.split(lhs, rhs))
    return lax.reshape(lax.convert_element_type(_lower(spec, lhs, rhs, swap), spec.out_dtype), spec.out_shape)


def lower_shared(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same with the input as the input, whose items are shared out among devices."""
    return lower(spec, lhs, rhs, swap=False)


def _lower(spec: ConvSpec, lhs: Array, rhs: Array, swap: bool) -> Array:
    """The same of operands with their group axes split off, in the dtype of the sums."""
    if any(d > 1 for d in spec.lhs_dilation):
        return by_phase(functools.partial(_lower, swap=swap), spec, lhs, rhs)
    if swap and (swapped := _swapped(spec)) is not None:
        return lax.rev(_lower(*crop(swapped, rhs), lhs, swap), [spec.out_layout.index(axis) for axis in spec.spatial])
    return (_over_outputs if spec.short_output else _over_taps)(spec, lhs, rhs)


def _swapped(spec: ConvSpec) -> ConvSpec | None:
    """For a window larger than the input, the same sums with the two exchanged, from the last output to the first.

    With q = p + k - low, out[p] = sum over k of x[p + k - low] * w[k] = sum over q of x[q] * w[q - p + low]. A window that is
    larger than the input meets mostly padding; the input, as the window, meets the kernel.
    """
    larger = not spec.short_output and math.prod(spec.in_size) < math.prod(spec.window)
    if not larger or any(size != 1 for size in spec.strides + spec.rhs_dilation) or math.prod(spec.in_size[1:]) > MAX_ROW_TERMS:
        return None
    exchange, padding = str.maketrans("no", "on"), []
    for (low, _), size, window, out in zip(spec.padding, spec.in_size, spec.window, spec.out_size, strict=True):
        padding.append((out - 1 - low, size - window + low))
    return dataclasses.replace(
        spec,
        batch=spec.out_channels,
        out_channels=spec.batch,
        in_size=spec.window,
        window=spec.in_size,
        padding=tuple(padding),
        lhs_layout=spec.rhs_layout.translate(exchange),
        rhs_layout=spec.lhs_layout.translate(exchange),
        out_layout=spec.out_layout.translate(exchange),
        lhs_dtype=spec.rhs_dtype,
        rhs_dtype=spec.lhs_dtype,
    )


def _over_taps(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """All taps in one sum, or, where they are too many, a loop over some rows of the kernel and some channels at a time."""
    height, channels, minor = spec.window[0], spec.in_channels, spec.out_channels if spec.out_layout.endswith("o") else 1
    scattered = minor > 1 and not spec.rhs_layout.endswith("o")  # as in gradients, channel-last
    spec, lhs, rhs = _like_result(spec, lhs, rhs)
    lhs, rhs = pad(spec, lhs), lax.optimization_barrier(rhs)
    if channels * math.prod(spec.window) <= MAX_TERMS or spec.ndim == 1:
        rhs = apart(lax.optimization_barrier)(rhs) if scattered else rhs
        return _sum(_terms(spec, lhs, rhs))

    in_row = math.prod(spec.window[1:])
    least = max(LOOP_TERMS, LOOP_PRODUCTS // minor) if minor >= 4 else LOOP_TERMS
    part = next(c for c in range(1, channels + 1) if channels % c == 0 and (c * in_row >= least or c == channels))
    count = min(height, -(-least // (part * in_row)))
    reach = (spec.out_size[0] - 1) * spec.strides[0] + (count - 1) * spec.rhs_dilation[0] + 1
    loops, rest = divmod(height, count)

    def fetch(i: Any) -> list[Array]:
        c, row = lax.mul(lax.div(i, np.int32(loops)), np.int32(part)), lax.mul(lax.rem(i, np.int32(loops)), np.int32(count))
        x = take_at(lhs, spec.lhs_layout, c=(c, part), s0=(lax.mul(row, np.int32(spec.rhs_dilation[0])), reach))
        return [x, take_at(rhs, spec.rhs_layout, c=(c, part), s0=(row, count))]

    zeros = lax.full(spec.shape(spec.out_layout, spec.out_size), 0, spec.compute_dtype)
    out = _loop(channels // part * loops, fetch, lambda _, out, x, w: _sum([out, *_terms(spec, x, w)]), zeros)
    if not rest:
        return out
    x = take(lhs, spec.lhs_layout, s0=slice((height - rest) * spec.rhs_dilation[0], None))
    return _sum([out, *_terms(spec, x, take(rhs, spec.rhs_layout, s0=slice(height - rest, None)))])


def _like_result(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[ConvSpec, Array, Array]:
    """Gives both operands the axes of the result in its order: the input with c in place of o, the kernel with c for n."""
    relaid = dataclasses.replace(
        spec, lhs_layout=spec.out_layout.replace("o", "c"), rhs_layout=spec.out_layout.replace("n", "c")
    )
    return relaid, align(lhs, spec.lhs_layout, relaid.lhs_layout), align(rhs, spec.rhs_layout, relaid.rhs_layout)


def _terms(spec: ConvSpec, lhs: Array, rhs: Array) -> list[Array]:
    """For each channel and row of `rhs`, the sum of the products for its elements, in the layout of the result."""
    rows = spec.spatial[:-1]
    window, terms = [rhs.shape[spec.rhs_layout.index(axis)] for axis in rows], []
    reach = [(size - 1) * stride + 1 for size, stride in zip(spec.out_size[:-1], spec.strides[:-1], strict=True)]
    for x, kernel in zip(pieces(lhs, spec.lhs_layout, "c"), pieces(rhs, spec.rhs_layout, "c"), strict=True):
        for row, w in zip(itertools.product(*map(range, window)), pieces(kernel, spec.rhs_layout, rows), strict=True):
            starts = [k * d for k, d in zip(row, spec.rhs_dilation[:-1], strict=True)]
            above = take(x, spec.lhs_layout, **spatial_slices(starts, reach, (1,) * len(reach)))
            terms.append(_row_of_taps(spec, above, w))
    return terms


@shared
def _row_of_taps(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sum of the products for one row of the kernel. Traced once for all rows and channels."""
    shape, terms = spec.shape(spec.out_layout, spec.out_size), []
    for tap, w in enumerate(pieces(rhs, spec.rhs_layout, spec.spatial[-1])):
        starts = (*[0] * (spec.ndim - 1), tap * spec.rhs_dilation[-1])
        x = take(lhs, spec.lhs_layout, **spatial_slices(starts, spec.out_size, spec.strides))
        terms.append(lax.mul(_spread(x, shape), _spread(w, shape)))
    return _sum(terms)


def _spread(array: Array, shape: Sequence[int]) -> Array:
    """Repeats axes of length one."""
    return array if array.shape == tuple(shape) else lax.broadcast_in_dim(array, shape, range(len(shape)))


def _over_outputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """A weight gradient: at each output position, a slice of the input times the window, summed over c and the window.

    A loop takes as many items of c as the cache holds. For them, each row of output positions is one fusion: sums over the
    items and over blocks of the window's rows, which a product with ones then reduces.
    """
    if spec.lhs_layout.endswith(spec.spatial) and spec.window[-1] < SHORT_ROW:
        spec, lhs, rhs = _channel_last(spec, lhs, rhs)
    channels, size = spec.in_channels, spec.out_size
    items = divisor(channels, min(ROW_TERMS, CACHE_BYTES * channels // (lhs.nbytes + rhs.nbytes)))
    spec = _even_parts(dataclasses.replace(spec, in_channels=items))
    lhs = pad(spec, lhs)
    axes = spec.spatial[:-1] + _kept_axes(spec).replace("k", spec.spatial[-1])
    shape = spec.shape(axes, spec.out_size)

    def fetch(i: Any) -> list[Array]:
        at = lax.mul(i, np.int32(items)), items
        return [take_at(lhs, spec.lhs_layout, c=at), take_at(rhs, spec.rhs_layout, c=at)]

    def add(_, out: Array, x: Array, w: Array) -> Array:
        return lax.add(out, lax.reshape(_positions(spec, x, w), shape))

    if items == channels:
        out = lax.reshape(_positions(spec, lhs, rhs), shape)
    else:
        out = _loop(channels // items, fetch, add, lax.full(shape, 0, spec.compute_dtype))
    return align(take(out, axes, **spatial_slices((0,) * spec.ndim, size, (1,) * spec.ndim)), axes, spec.out_layout)


def _channel_last(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[ConvSpec, Array, Array]:
    """The operands with the groups and their channels as the minor axes, moved apart: XLA would move them for each product."""
    relaid = dataclasses.replace(spec, lhs_layout=f"c{spec.spatial}gn", rhs_layout=f"c{spec.spatial}go")

    def relay(lhs: Array, rhs: Array) -> list[Array]:
        return [align(lhs, spec.lhs_layout, relaid.lhs_layout), align(rhs, spec.rhs_layout, relaid.rhs_layout)]

    return relaid, *apart(relay)(lhs, rhs)


def _even_parts(spec: ConvSpec) -> ConvSpec:
    """Where `_positions` is a loop, the same with so many more columns of the output that each iteration computes as many."""
    *others, (low, high) = spec.padding
    missing = -spec.out_size[-1] % _part(spec)[-1]
    return dataclasses.replace(spec, padding=(*others, (low, high + missing * spec.strides[-1]))) if missing else spec


def _part(spec: ConvSpec) -> tuple[int, ...]:
    """The output positions that are written out: all of them, or, if that were too many terms, a part of a row of the first axis."""
    *rows, columns = spec.out_size
    if math.prod(spec.out_size) * _blocks(spec) <= MAX_SUM_TERMS:
        return spec.out_size
    return *(1, *rows[1:])[: len(rows)], -(-columns // -(-columns // MAX_COLUMNS))


def _positions(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, rows of positions first; a loop over parts of the rows if they are many."""
    if (size := _part(spec)) == spec.out_size:
        return _sums(spec, lhs, rhs)
    reach = [
        (count - 1) * stride + (window - 1) * dilation + 1
        for count, stride, window, dilation in zip(size, spec.strides, spec.window, spec.rhs_dilation, strict=True)
    ]
    part = dataclasses.replace(spec, in_size=tuple(reach), padding=((0, 0),) * spec.ndim)
    in_row, kept, last = spec.out_size[-1] // size[-1], _kept_axes(spec), spec.ndim - 1
    rows, rows_in_part = math.prod(spec.out_size[:-1]), math.prod(size[:-1])

    def start(i: Any, rows: int, columns: int) -> tuple[Any, Any]:
        """Where part i starts, if one has so many rows and columns."""
        return lax.mul(lax.div(i, np.int32(in_row)), np.int32(rows)), lax.mul(lax.rem(i, np.int32(in_row)), np.int32(columns))

    def fetch(i: Any) -> list[Array]:
        row, column = start(i, spec.strides[0], size[-1] * spec.strides[-1])
        return [take_at(lhs, spec.lhs_layout, **{"s0": (row, reach[0]), f"s{last}": (column, reach[-1])})]

    def store(i: Any, out: Array, x: Array) -> Array:
        row, column = start(i, rows_in_part, size[-1])
        return put_at(out, "r" + kept, _sums(part, x, rhs), r=row, k=column)

    lengths = spec.sizes(spec.out_size) | {"k": spec.out_size[-1], "r": rows}
    zeros = lax.full([lengths[axis] for axis in "r" + kept], 0, lhs.dtype)
    return _loop(rows // rows_in_part * in_row, fetch, store, zeros)


def _sums(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, written out, rows of positions first. Large ones apart, so that they share memory."""
    layout, sums = _product_layout(spec), []
    reach = [(window - 1) * dilation + 1 for window, dilation in zip(spec.window, spec.rhs_dilation, strict=True)]
    large = spec.batch * spec.out_channels * math.prod(spec.out_size) * rhs.size > _blocks(spec) * spec.out_channels * (lhs.size + rhs.size)

    for position in itertools.product(*map(range, spec.out_size[:-1])):
        starts = [p * stride for p, stride in zip(position, spec.strides, strict=False)]

        def row(x: Array, w: Array, starts: list[int] = starts) -> Array:
            x, w = align(x, spec.lhs_layout, layout), align(w, spec.rhs_layout, layout)
            return _row(spec, take(x, layout, **spatial_slices(starts, reach[:-1], (1,) * len(starts))), w)

        sums.append((apart(row) if large else row)(lhs, rhs))
    return lax.concatenate(sums, 0) if len(sums) > 1 else sums[0]


@shared
def _row(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for one row of output positions; its axes are one of length one and `_kept_axes`. Traced once for all rows."""
    layout, axes, last = _product_layout(spec), _sums_layout(spec), str(spec.ndim - 1)
    reach = (rhs.shape[layout.index(last)] - 1) * spec.rhs_dilation[-1] + 1
    starts = [column * spec.strides[-1] for column in range(spec.out_size[-1])]
    columns = [_column(spec, take(lhs, layout, **{f"s{last}": slice(start, start + reach)}), rhs) for start in starts]
    sums = lax.optimization_barrier(lax.concatenate(columns, axes.index("k")))
    # The product with ones: the summed axes come last in its first operand, or else first in its second.
    minor = axes.endswith(spec.spatial)
    ones_axes = spec.spatial if minor else "k" + spec.spatial
    ones = lax.broadcast(np.ones((), sums.dtype), [sums.shape[axes.index(axis)] for axis in ones_axes])
    operands = (sums, axes, ones, ones_axes) if minor else (ones, ones_axes, sums, axes)
    product, left = contract(*operands, batch="" if minor else "k", merge=False, precision=lax.Precision.HIGHEST)
    return align(product, left, "0" + _kept_axes(spec))


@shared
def _column(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sum of products for one output position, over the items of c and blocks of rows. Traced once for all positions."""
    layout, axes = _product_layout(spec), _sums_layout(spec)
    block, own = _block_height(spec), {"n": spec.batch, "o": spec.out_channels}
    lhs, rhs = (_spread(a, [own.get(axis, size) for axis, size in zip(layout, a.shape, strict=True)]) for a in (lhs, rhs))
    counts = [rhs.shape[layout.index(axis)] for axis in spec.spatial]
    lhs = take(lhs, layout, **spatial_slices((0,) * spec.ndim, counts, spec.rhs_dilation))
    blocks = (rows for item in pieces(lax.mul(lhs, rhs), layout, "c") for rows in pieces(item, layout, "0", block))
    total = _sum([_taller(rows, block, layout.index("0")) for rows in blocks])
    sizes = dict(zip(layout, total.shape, strict=True)) | {"k": 1}
    return lax.reshape(total, [sizes[axis] for axis in axes])


def _block_height(spec: ConvSpec) -> int:
    """The rows of a block, such that all items have about `ROW_TERMS` blocks together, or some more."""
    more = _product_layout(spec).endswith(spec.spatial) or spec.batch * spec.out_channels > 16 * 16
    height, terms = spec.window[0], MORE_ROW_TERMS if more else ROW_TERMS
    return -(-height // _even(height, max(1, terms // spec.in_channels)))


def _blocks(spec: ConvSpec) -> int:
    """The terms of a sum: the blocks of all items."""
    return spec.in_channels * -(-spec.window[0] // _block_height(spec))


def _taller(block: Array, height: int, axis: int) -> Array:
    """The block with rows of zeros below, up to a height."""
    missing = height - block.shape[axis]
    if not missing:
        return block
    return lax.pad(block, np.zeros((), block.dtype), [(0, missing if i == axis else 0, 0) for i in range(block.ndim)])


def _product_layout(spec: ConvSpec) -> str:
    """The layout of the products: the input's, with o beside n."""
    return spec.lhs_layout.replace("n", "no")


def _sums_layout(spec: ConvSpec) -> str:
    """The layout of the sums over c: k, the output's last axis, stands before the window's."""
    axes = _product_layout(spec).replace("c", "")
    first = min(axes.index(axis) for axis in spec.spatial)
    return axes[:first] + "k" + axes[first:]


def _kept_axes(spec: ConvSpec) -> str:
    """The layout of the sums once they are reduced."""
    return "".join(axis for axis in _sums_layout(spec) if axis not in spec.spatial)


def _loop(count: int, fetch: Callable, step: Callable, init: Array) -> Array:
    """A loop over slices of the operands: `out = step(i, out, *fetch(i))`.

    XLA would fuse slicing at a dynamic position into every term, which is no vector loop any more; so the slices are taken
    apart. And it runs a loop on one core alone if it takes it for small (JAX 0.12), but not one that sorts: so i is the first
    of two sorted numbers.
    """

    def body(i: Any, out: Array) -> Array:
        i = lax.squeeze(lax.slice(lax.sort(lax.add(lax.iota(np.int32, 2), i)), (0,), (1,)), (0,))
        return step(i, out, *apart(fetch)(i))

    return loop(count, body, init)


def _even(number: int, at_most: int) -> int:
    """A size of parts of which the number is a multiple, if that costs no more than half of the bound; else the bound."""
    at_most = min(number, at_most)
    even = divisor(number, at_most)
    return even if 2 * even > at_most else at_most


def _sum(terms: list[Array]) -> Array:
    return functools.reduce(lax.add, terms)
