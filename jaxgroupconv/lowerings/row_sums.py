"""The weight gradient of wider groups: the output positions are an axis of one sum, or, along a minor axis, its terms.

What would take more memory than the operands is computed in parts: rows of positions, one call after the other, or a loop.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.block_sums import (
    blocks,
    blocks_summed,
    kept_axes,
    multiplied,
    once,
    operands_size,
    reduced,
    sums_layout,
    sums_size,
    terms,
)
from jaxgroupconv.lowerings.calls import apart, loop_apart, shared
from jaxgroupconv.lowerings.geometry import put_at, shifted, spatial_slices, take, take_at
from jaxgroupconv.spec import ConvSpec, Sizes

MAX_TERMS = 128  # unrolled products of a row of positions along a minor axis; beyond, a loop over parts of rows
MAX_COLUMNS = 8  # positions of such a part, and least of one whose sums take much memory
MAX_CALLS = 9  # parts that are written out; more are a loop


def over_parts(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, in the layout of `kept_axes`: at once, or part by part."""
    if (size := part_of(spec)) == spec.out_size:
        return reduced(spec, _sums(spec, lhs, rhs))
    reach = [
        (count - 1) * stride + (window - 1) * dilation + 1
        for count, stride, window, dilation in zip(size, spec.strides, spec.window, spec.rhs_dilation, strict=True)
    ]
    part, kept = dataclasses.replace(spec, in_size=tuple(reach)), kept_axes(spec)
    counts = [whole // some for whole, some in zip(spec.out_size, size, strict=True)]
    steps = [some * stride for some, stride in zip(size, spec.strides, strict=True)]

    def sums_at(index: Sequence[int]) -> Array:
        starts = [i * step for i, step in zip(index, steps, strict=True)]

        def row_of_sums(lhs: Array, rhs: Array) -> Array:
            return multiplied(part, _sums(part, lhs, rhs, **spatial_slices(starts, reach, (1,) * spec.ndim)))

        return once(part, apart(row_of_sums)(lhs, rhs))

    if counts[-1] == 1 and math.prod(counts) <= MAX_CALLS:
        parts = [sums_at(index) for index in itertools.product(*map(range, counts))]
        return lax.concatenate(parts, kept.index("r" if "r" in kept else "k"))

    def fetch(i: Any, lhs: Array, _: Array) -> list[Array]:
        index = {}
        for axis in reversed(range(spec.ndim)):
            start = lax.mul(lax.rem(i, np.int32(counts[axis])), np.int32(steps[axis]))
            index[f"s{axis}"], i = (start, reach[axis]), lax.div(i, np.int32(counts[axis]))
        return [take_at(lhs, spec.lhs_layout, **index)]

    def store(i: Any, out: Array, slices: list[Array], _: Array, rhs: Array) -> Array:
        where = {"k": lax.mul(i, np.int32(math.prod(size)))}
        if "r" in kept:
            row, column = lax.div(i, np.int32(counts[-1])), lax.rem(i, np.int32(counts[-1]))
            where = {"r": row, "k": lax.mul(column, np.int32(size[-1]))}
        return put_at(out, kept, reduced(part, _sums(part, slices[0], rhs)), **where)

    lengths = spec.sizes(spec.window) | _positions(spec)
    zeros = lax.full([lengths[axis] for axis in kept], 0, spec.compute_dtype)
    return loop_apart(math.prod(counts), fetch, store, zeros, lhs, rhs)


def part_of(spec: ConvSpec) -> Sizes:
    """The output positions that are computed at a time: all, those of one element of the first axis, a row, or a part of one.

    The sums of several rows, and of a part beyond `MAX_COLUMNS`, take no more memory than the operands. Where columns are
    written out, several rows would be too many slices of a shifted input for XLA to fuse, which would store it.
    """
    *rows, columns = spec.out_size
    most, minor = spec.in_channels * operands_size(spec) // sums_size(spec), spec.lhs_layout.endswith(spec.spatial)
    if not minor:
        at_a_time = max(MAX_COLUMNS, most)
    else:
        at_a_time = columns if columns * terms(spec) <= MAX_TERMS else MAX_COLUMNS
    columns = -(-columns // -(-columns // at_a_time))
    if columns == spec.out_size[-1] and not minor:
        for size in (spec.out_size, (*(1, *rows[1:])[: len(rows)], columns)):
            if math.prod(size) <= most:
                return size
    return *(1 for _ in rows), columns


def even_parts(spec: ConvSpec) -> ConvSpec:
    """The same with a few more columns of the output, such that all parts are equal."""
    missing = -spec.out_size[-1] % part_of(spec)[-1]
    return dataclasses.replace(spec, in_size=(*spec.in_size[:-1], spec.in_size[-1] + missing * spec.strides[-1]))


def _positions(spec: ConvSpec) -> dict[str, int]:
    """The number of positions along each of their axes in `sums_layout`."""
    if not spec.lhs_layout.endswith(spec.spatial):
        return {"k": math.prod(spec.out_size)}
    return {"r": math.prod(spec.out_size[:-1]), "k": spec.out_size[-1]}


def _sums(spec: ConvSpec, lhs: Array, rhs: Array, **where: slice) -> Array:
    """The sums for all output positions, from a part of the input, before they are reduced.

    Computed apart: XLA would merge their axes where they are computed, and LLVM make no vectors of that.
    """

    def sums(lhs: Array, rhs: Array) -> Array:
        return sums_of_blocks(spec, take(lhs, spec.lhs_layout, **where), rhs)

    return apart(sums)(lhs, rhs)


@shared
def sums_of_blocks(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same before they are reduced, in the layout of `sums_layout`. Traced once for all parts."""
    layout, last = spec.lhs_layout, f"s{spec.ndim - 1}"
    if not layout.endswith(spec.spatial):
        x, count = lhs, math.prod(spec.out_size)
        for i in reversed(range(spec.ndim)):
            x = shifted(x, x.ndim - lhs.ndim + layout.index(str(i)), spec.out_size[i], spec.strides[i])
        x = lax.reshape(x, (count, *lhs.shape))
        return _sum(spec, x, *blocks(spec, rhs, spec.rhs_layout, count))
    of_rhs, reach = blocks(spec, rhs, spec.rhs_layout), (spec.window[-1] - 1) * spec.rhs_dilation[-1] + 1
    starts = [column * spec.strides[-1] for column in range(spec.out_size[-1])]
    columns = [_sum(spec, lax.expand_dims(take(lhs, layout, **{last: slice(at, at + reach)}), [0]), *of_rhs) for at in starts]
    return lax.concatenate(columns, sums_layout(spec).index("k"))


@shared
def _sum(spec: ConvSpec, lhs: Array, *rhs: Array) -> Array:
    """The sums of blocks, of windows along a first axis and the blocks of `rhs`. Traced once for all columns."""
    axes, count = "k" + spec.lhs_layout, lhs.shape[0]
    window = take(lhs, axes, g=slice(0, spec.groups), **spatial_slices((0,) * spec.ndim, spec.window, spec.rhs_dilation))
    return blocks_summed(spec, blocks(spec, window, axes, count), [*rhs], count)
