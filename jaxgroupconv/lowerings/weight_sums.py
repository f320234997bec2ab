"""Weight gradients as sums: for each output position, a slice of the input times the window, summed over c and the window.

XLA:CPU compiles a reduction into a scalar loop. So blocks of the rows of the window are added up elementwise, a vector loop,
and the rest is a product with ones, which is one too. Each row of output positions is one fusion and one product. If they were
too much to compile, they are a loop over parts of rows; if the items of c do not fit into the cache, they are another.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.calls import apart, loop_apart, shared
from jaxgroupconv.lowerings.geometry import (
    TEMPORARIES,
    align,
    contract,
    divisor,
    pad,
    pieces,
    put_at,
    spatial_slices,
    spread,
    take,
    take_at,
    total,
    widen,
)
from jaxgroupconv.spec import ConvSpec

ROW_TERMS = 8  # products added up elementwise before a reduction
MORE_ROW_TERMS = 14  # where the window is minor or the channels are wide; 16 slices would often share a set of the cache
SHORT_ROW = 16  # elements of a row, channel-first, that are too few for a vector loop
MAX_TERMS = 128  # unrolled products of all output positions; beyond, a loop over parts of rows
MAX_COLUMNS = 8  # output positions of such a part
MAX_POSITIONS = 128  # the same times those of the axes between the first and the last
CACHE_BYTES = 1 << 20  # operands that one iteration over c works on, which it copies
SMALL_BYTES = 1 << 20  # of copies and sums that are not worth a loop over groups
FEW_POSITIONS = 8  # that read the operands too seldom to be worth these copies


def why_not(spec: ConvSpec) -> str | None:
    """The reason why there would be too much to write out, or None."""
    written = math.prod(spec.out_size[1:-1]) * min(spec.out_size[-1], MAX_COLUMNS)
    return None if written <= MAX_POSITIONS else f"{written} output positions at a time exceed {MAX_POSITIONS}"


def over_outputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, in their own dtype, of operands with their group axes split off."""
    if (count := _groups_at_a_time(spec)) == spec.groups:
        return _of_groups(spec, lhs, rhs)
    part = dataclasses.replace(spec, groups=count)

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        at = lax.mul(i, np.int32(count)), count
        slices = take_at(lhs, spec.lhs_layout, g=at), take_at(rhs, spec.rhs_layout, g=at)
        return [lax.convert_element_type(x, spec.compute_dtype) for x in slices]

    def store(i: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        return put_at(out, spec.out_layout, _of_groups(part, *slices), g=lax.mul(i, np.int32(count)))

    zeros = lax.full(spec.shape(spec.out_layout, spec.out_size), 0, spec.compute_dtype)
    return loop_apart(spec.groups // count, fetch, store, zeros, lhs, rhs)


def _groups_at_a_time(spec: ConvSpec) -> int:
    """As many groups as `TEMPORARIES` has room for the copies and sums of; all, if these are small."""
    size, relaid = spec.groups * spec.compute_dtype.itemsize, _relaid(spec)
    copied = relaid is not spec or spec.lhs_dtype != spec.compute_dtype
    padded = math.prod(length + sum(pair) for length, pair in zip(spec.in_size, spec.padding, strict=True))
    lhs, rhs = spec.batch * spec.in_channels * padded, spec.out_channels * spec.in_channels * math.prod(spec.window)
    part = dataclasses.replace(relaid, in_channels=_items_at_a_time(spec))
    sums = _sums_size(part) // (math.prod(spec.out_size[:-1]) if _rows_apart(part) else 1)
    result = spec.batch * spec.out_channels * math.prod(spec.out_size)
    needed = lhs * (copied or any(map(any, spec.padding))) + rhs * copied + sums + result
    if size * needed <= max(SMALL_BYTES, TEMPORARIES * spec.bytes):
        return spec.groups
    slices, spare = lhs + rhs, 1  # which the loop takes
    return divisor(spec.groups, spec.groups * (TEMPORARIES - spare) * spec.bytes // (size * (needed + slices)))


def _items_at_a_time(spec: ConvSpec) -> int:
    """As many items of c as stay in the cache."""
    cached = CACHE_BYTES // (spec.groups * _operands_size(spec) * spec.compute_dtype.itemsize)
    return divisor(spec.in_channels, min(ROW_TERMS, cached) if math.prod(spec.out_size) > FEW_POSITIONS else ROW_TERMS)


def _of_groups(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same of some groups."""
    lhs, rhs = (lax.convert_element_type(operand, spec.compute_dtype) for operand in (lhs, rhs))
    if (relaid := _relaid(spec)) is not spec:

        def relay(lhs: Array, rhs: Array) -> list[Array]:
            """Moved apart: XLA would move them for each product."""
            return [align(lhs, spec.lhs_layout, relaid.lhs_layout), align(rhs, spec.rhs_layout, relaid.rhs_layout)]

        return _of_groups(relaid, *apart(relay)(lhs, rhs))
    channels, size, items = spec.in_channels, spec.out_size, _items_at_a_time(spec)
    spec = _even_parts(dataclasses.replace(spec, in_channels=items))
    lhs = pad(spec, lhs)
    axes = spec.spatial[:-1] + _kept_axes(spec).replace("k", spec.spatial[-1])
    shape = spec.shape(axes, spec.out_size)

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        at = lax.mul(i, np.int32(items)), items
        return [take_at(lhs, spec.lhs_layout, c=at), take_at(rhs, spec.rhs_layout, c=at)]

    def add(_: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        return lax.add(out, lax.reshape(_positions(spec, *slices), shape))

    if items == channels:
        out = lax.reshape(_positions(spec, lhs, rhs), shape)
    else:
        out = loop_apart(channels // items, fetch, add, lax.full(shape, 0, spec.compute_dtype), lhs, rhs)
    return align(take(out, axes, **spatial_slices((0,) * spec.ndim, size, (1,) * spec.ndim)), axes, spec.out_layout)


def _relaid(spec: ConvSpec) -> ConvSpec:
    """The same with the groups and their channels as the minor axes, if rows are minor and short."""
    if not spec.lhs_layout.endswith(spec.spatial) or spec.window[-1] >= SHORT_ROW:
        return spec
    return dataclasses.replace(spec, lhs_layout=f"c{spec.spatial}gn", rhs_layout=f"c{spec.spatial}go")


def _part(spec: ConvSpec) -> tuple[int, ...]:
    """The output positions that are written out: all, or, if these were too many terms, a part of a row of the first axis."""
    *rows, columns = spec.out_size
    if math.prod(spec.out_size) * _blocks(spec) <= MAX_TERMS:
        return spec.out_size
    return *(1, *rows[1:])[: len(rows)], -(-columns // -(-columns // MAX_COLUMNS))


def _even_parts(spec: ConvSpec) -> ConvSpec:
    """The same with a few more columns of the output, such that all parts are equal."""
    missing, (*others, (low, high)) = -spec.out_size[-1] % _part(spec)[-1], spec.padding
    return dataclasses.replace(spec, padding=(*others, (low, high + missing * spec.strides[-1]))) if missing else spec


def _positions(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, rows of positions first; `lhs` is padded, and may be some items of c only."""
    if (size := _part(spec)) == spec.out_size:
        return _sums(spec, lhs, rhs)
    reach = [
        (count - 1) * stride + (window - 1) * dilation + 1
        for count, stride, window, dilation in zip(size, spec.strides, spec.window, spec.rhs_dilation, strict=True)
    ]
    part = dataclasses.replace(spec, in_size=tuple(reach), padding=((0, 0),) * spec.ndim)
    rows, in_part, in_row = math.prod(spec.out_size[:-1]), math.prod(size[:-1]), spec.out_size[-1] // size[-1]
    kept, last = _kept_axes(spec), f"s{spec.ndim - 1}"

    def start(i: Any, row: int, columns: int) -> tuple[Any, Any]:
        """Where part i starts, if the parts of one row after the other are so far apart."""
        return lax.mul(lax.div(i, np.int32(in_row)), np.int32(row)), lax.mul(lax.rem(i, np.int32(in_row)), np.int32(columns))

    def fetch(i: Any, lhs: Array, _: Array) -> list[Array]:
        row, column = start(i, spec.strides[0], size[-1] * spec.strides[-1])
        return [take_at(lhs, spec.lhs_layout, **{"s0": (row, reach[0]), last: (column, reach[-1])})]

    def store(i: Any, out: Array, slices: list[Array], _: Array, rhs: Array) -> Array:
        row, column = start(i, in_part, size[-1])
        return put_at(out, "r" + kept, _sums(part, slices[0], rhs), r=row, k=column)

    lengths = spec.sizes(spec.out_size) | {"r": rows, "k": spec.out_size[-1]}
    zeros = lax.full([lengths[axis] for axis in "r" + kept], 0, spec.compute_dtype)
    return loop_apart(rows // in_part * in_row, fetch, store, zeros, lhs, rhs)


def _sums(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same written out, a row of positions after the other.

    Rows whose sums take more memory than the operands are apart: XLA computes one call after the other, in the same memory.
    """
    layout, rows = _product_layout(spec), list(itertools.product(*map(range, spec.out_size[:-1])))
    reach = [(window - 1) * dilation + 1 for window, dilation in zip(spec.window[:-1], spec.rhs_dilation[:-1], strict=True)]
    large = _rows_apart(spec)

    def aligned(x: Array, w: Array) -> tuple[Array, Array]:
        return align(x, spec.lhs_layout, layout), align(w, spec.rhs_layout, layout)

    def at(position: tuple[int, ...]) -> Callable[[Array, Array], Array]:
        starts = [p * stride for p, stride in zip(position, spec.strides[:-1], strict=True)]

        def row_of_sums(x: Array, w: Array) -> Array:
            return _row(spec, take(x, layout, **spatial_slices(starts, reach, (1,) * len(reach))), w)

        def alone(x: Array, w: Array) -> Array:
            return row_of_sums(*aligned(x, w))

        return apart(alone) if large else row_of_sums

    operands = (lhs, rhs) if large else aligned(lhs, rhs)
    sums = [at(position)(*operands) for position in rows]
    return lax.concatenate(sums, 0) if len(sums) > 1 else sums[0]


def _operands_size(spec: ConvSpec) -> int:
    """How many elements both operands have, of one group and item of c."""
    return spec.batch * math.prod(spec.in_size) + spec.out_channels * math.prod(spec.window)


def _sums_size(spec: ConvSpec) -> int:
    """How many elements the sums of all rows have, of one group."""
    rhs = spec.in_channels * spec.out_channels * math.prod(spec.window)
    return spec.batch * math.prod(spec.out_size) * rhs // _blocks(spec)


def _rows_apart(spec: ConvSpec) -> bool:
    """Whether the sums of several rows take more than the operands."""
    return math.prod(spec.out_size[:-1]) > 1 and _sums_size(spec) > spec.in_channels * _operands_size(spec)


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
    lhs, rhs = (spread(a, [own.get(axis, size) for axis, size in zip(layout, a.shape, strict=True)]) for a in (lhs, rhs))

    def blocks(array: Array, height: int) -> list[Array]:
        return [rows for item in pieces(array, layout, "c") for rows in pieces(item, layout, "0", height)]

    def products(x: Array, w: Array) -> Array:
        counts = [w.shape[layout.index(axis)] for axis in spec.spatial]
        return lax.mul(take(x, layout, **spatial_slices((0,) * spec.ndim, counts, spec.rhs_dilation)), w)

    if spec.batch * spec.out_channels > 1:  # blocks of the products would take up to four times as long
        terms = map(products, blocks(lhs, block * spec.rhs_dilation[0]), blocks(rhs, block))
    else:
        terms = blocks(products(lhs, rhs), block)
    sums = total([widen(rows, layout, s0=(0, block - rows.shape[layout.index("0")])) for rows in terms])
    sizes = dict(zip(layout, sums.shape, strict=True)) | {"k": 1}
    return lax.reshape(sums, [sizes[axis] for axis in axes])


def _block_height(spec: ConvSpec) -> int:
    """The rows of a block, such that all items have about `ROW_TERMS` blocks together, or some more."""
    more = _product_layout(spec).endswith(spec.spatial) or spec.batch * spec.out_channels > 16 * 16
    height, terms = spec.window[0], MORE_ROW_TERMS if more else ROW_TERMS
    return -(-height // _even(height, max(1, terms // spec.in_channels)))


def _blocks(spec: ConvSpec) -> int:
    """The terms of a sum: the blocks of all items."""
    return spec.in_channels * -(-spec.window[0] // _block_height(spec))


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


def _even(number: int, at_most: int) -> int:
    """A size of parts of which the number is a multiple, if that costs no more than half of the bound; else the bound."""
    at_most = min(number, at_most)
    even = divisor(number, at_most)
    return even if 2 * even > at_most else at_most
