"""The weight gradient of wider groups: a term for each output position, a sum for each row of them.

What would be too much to write out is a loop over parts of rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.block_sums import (
    blocks,
    blocks_summed,
    kept_axes,
    operands_size,
    reduced,
    sums_layout,
    sums_size,
    terms,
)
from jaxgroupconv.lowerings.calls import apart, loop_apart, shared
from jaxgroupconv.lowerings.geometry import put_at, spatial_slices, take, take_at
from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 128  # unrolled products of all positions; beyond, a loop over parts of rows
MAX_COLUMNS = 8  # output positions of such a part
MAX_POSITIONS = 128  # the same times those of the axes between the first and the last


def why_not(spec: ConvSpec) -> str | None:
    """The reason why there would be too much to write out, or None."""
    written = math.prod(spec.out_size[1:-1]) * min(spec.out_size[-1], MAX_COLUMNS)
    return None if written <= MAX_POSITIONS else f"{written} output positions at a time exceed {MAX_POSITIONS}"


def over_parts(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, rows of positions first, then `kept_axes`; in a loop if they are parts."""
    if (size := part_of(spec)) == spec.out_size:
        return _over_rows(spec, lhs, rhs)
    reach = [
        (count - 1) * stride + (window - 1) * dilation + 1
        for count, stride, window, dilation in zip(size, spec.strides, spec.window, spec.rhs_dilation, strict=True)
    ]
    part = dataclasses.replace(spec, in_size=tuple(reach))
    rows, in_part, in_row = math.prod(spec.out_size[:-1]), math.prod(size[:-1]), spec.out_size[-1] // size[-1]
    kept, last = kept_axes(spec), f"s{spec.ndim - 1}"

    def start(i: Any, row: int, columns: int) -> tuple[Any, Any]:
        """Where part i starts, if the parts of one row after the other are so far apart."""
        return lax.mul(lax.div(i, np.int32(in_row)), np.int32(row)), lax.mul(lax.rem(i, np.int32(in_row)), np.int32(columns))

    def fetch(i: Any, lhs: Array, _: Array) -> list[Array]:
        row, column = start(i, spec.strides[0], size[-1] * spec.strides[-1])
        return [take_at(lhs, spec.lhs_layout, **{"s0": (row, reach[0]), last: (column, reach[-1])})]

    def store(i: Any, out: Array, slices: list[Array], _: Array, rhs: Array) -> Array:
        row, column = start(i, in_part, size[-1])
        return put_at(out, "r" + kept, _over_rows(part, slices[0], rhs), r=row, k=column)

    lengths = spec.sizes(spec.out_size) | {"r": rows, "k": spec.out_size[-1]}
    zeros = lax.full([lengths[axis] for axis in "r" + kept], 0, spec.compute_dtype)
    return loop_apart(rows // in_part * in_row, fetch, store, zeros, lhs, rhs)


def part_of(spec: ConvSpec) -> tuple[int, ...]:
    """The output positions that are written out: all, or, if these were too many terms, a part of a row of the first axis."""
    *rows, columns = spec.out_size
    if math.prod(spec.out_size) * terms(spec) <= MAX_TERMS:
        return spec.out_size
    return *(1, *rows[1:])[: len(rows)], -(-columns // -(-columns // MAX_COLUMNS))


def even_parts(spec: ConvSpec) -> ConvSpec:
    """The same with a few more columns of the output, such that all parts are equal."""
    missing = -spec.out_size[-1] % part_of(spec)[-1]
    return dataclasses.replace(spec, in_size=(*spec.in_size[:-1], spec.in_size[-1] + missing * spec.strides[-1]))


def _over_rows(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums of one part, written out, a row of positions after the other.

    Rows whose sums take more memory than the operands are apart: XLA computes one call after the other, in the same memory.
    """
    rows, layout = list(itertools.product(*map(range, spec.out_size[:-1]))), spec.lhs_layout
    reach = [(window - 1) * dilation + 1 for window, dilation in zip(spec.window[:-1], spec.rhs_dilation[:-1], strict=True)]
    large = rows_apart(spec, spec.out_size)

    def at(position: tuple[int, ...]) -> Callable[[Array, Array], Array]:
        starts = [p * stride for p, stride in zip(position, spec.strides[:-1], strict=True)]

        def row_of_sums(x: Array, w: Array) -> Array:
            return _row(spec, take(x, layout, **spatial_slices(starts, reach, (1,) * len(reach))), w)

        return apart(row_of_sums) if large else row_of_sums

    sums = [at(position)(lhs, rhs) for position in rows]
    return lax.concatenate(sums, 0) if len(sums) > 1 else sums[0]


def rows_apart(spec: ConvSpec, positions: tuple[int, ...]) -> bool:
    """Whether the sums of several rows take more than the operands."""
    several = math.prod(positions[:-1]) > 1
    return several and math.prod(positions) * sums_size(spec) > spec.in_channels * operands_size(spec)


@shared
def _row(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for one row of output positions; its axes are one of length one and `kept_axes`. Traced once for all rows."""
    layout, last = spec.lhs_layout, f"s{spec.ndim - 1}"
    reach = (spec.window[-1] - 1) * spec.rhs_dilation[-1] + 1
    starts = [column * spec.strides[-1] for column in range(spec.out_size[-1])]
    of_rhs = blocks(spec, rhs, spec.rhs_layout)
    columns = [_column(spec, take(lhs, layout, **{last: slice(start, start + reach)}), *of_rhs) for start in starts]
    return lax.expand_dims(reduced(spec, lax.concatenate(columns, sums_layout(spec).index("k"))), [0])


@shared
def _column(spec: ConvSpec, lhs: Array, *rhs: Array) -> Array:
    """The sums of blocks for one output position, of the blocks of `rhs`. Traced once for all positions."""
    window = take(lhs, spec.lhs_layout, **spatial_slices((0,) * spec.ndim, spec.window, spec.rhs_dilation))
    return blocks_summed(spec, blocks(spec, window, spec.lhs_layout), [*rhs])
