"""Weight gradients as sums: for each output position, a slice of the input times the window, summed over c and the window.

The operands are padded, and transposed where that makes longer vectors; groups or items of c that would take too much memory or
leave the cache are a loop. The sums are `position_sums.py` of depthwise convolutions, `row_sums.py` of others.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.block_sums import (
    ROW_TERMS,
    depthwise,
    even_rows,
    innermost,
    kept_axes,
    operands_size,
    reduced,
    sums_shape,
    sums_size,
    terms,
)
from jaxgroupconv.lowerings.calls import apart, loop_apart
from jaxgroupconv.lowerings.geometry import (
    PAGED_BYTES,
    TEMPORARIES,
    VECTOR,
    align,
    divisor,
    more_groups,
    put_at,
    spatial_slices,
    take,
    take_at,
    unpadded,
    widen,
)
from jaxgroupconv.lowerings.position_sums import over_positions, positions_at_a_time
from jaxgroupconv.lowerings.row_sums import even_parts, over_parts, part_of, sums_of_blocks
from jaxgroupconv.spec import ConvSpec, Sizes

SHORT_ROW = 16  # elements of a row, channel-first, that are too few for a vector loop
CACHE_BYTES = 2 << 20  # operands that one iteration over c works on, which it copies
COPIED_BYTES = 1 << 20  # of a depthwise cotangent that is copied for a few more rows: what is larger is summed in two parts
MULTIPLIER = 16  # output channels of one input channel, channel-last, that are vectors of their own
ADDED_ITEMS, ADDED_BYTES = 3, 12 << 20  # least items, and most bytes, of sums that items are added to one after the other
SMALL_BYTES = 1 << 20  # of copies and sums that are not worth a loop over groups
PART_BYTES = 6 << 20  # of copies and sums of some items, if those of all would be new pages


def over_outputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, in their own dtype, of operands with their group axes split off."""
    if not _repeats(spec):
        return _over_outputs(spec, lhs, rhs)
    each = dataclasses.replace(spec, groups=spec.groups * spec.out_channels, out_channels=1)
    out = _over_outputs(each, lhs, lax.reshape(rhs, each.shape(each.rhs_layout, each.window)), repeats=spec.out_channels)
    axes = spec.out_layout.replace("o", "").replace("g", "go")
    return align(lax.reshape(out, spec.shape(axes, spec.out_size)), axes, spec.out_layout)


def _repeats(spec: ConvSpec) -> bool:
    """Whether to repeat the input for each output channel, as in a depthwise convolution: else one group would be a vector."""
    minor = spec.lhs_layout.endswith("gn") and spec.rhs_layout.endswith("go")
    return minor and spec.batch == 1 < spec.out_channels < MULTIPLIER and spec.out_channels % VECTOR > 0


def _over_outputs(spec: ConvSpec, lhs: Array, rhs: Array, repeats: int = 1) -> Array:
    """The same, in a loop over groups and items if these are too many; each group of `lhs` is that of so many of the spec."""
    added = _added_at_a_time(spec)
    groups, items = (spec.groups, added) if added else _at_a_time(spec)
    groups = groups if repeats == 1 else spec.groups
    in_groups, in_items = spec.groups // groups, spec.in_channels // items
    part, axes = dataclasses.replace(spec, groups=groups, in_channels=items), spec.out_layout

    def prepared(lhs: Array, rhs: Array) -> list[Array]:
        if repeats > 1:
            lhs = lax.broadcast_in_dim(lhs, (*lhs.shape[:-1], repeats), range(lhs.ndim))
            lhs = lax.reshape(lhs, part.shape(part.lhs_layout, part.in_size))
        return _prepared(part, lhs, rhs, repeats > 1)

    if part == spec:
        return _sums(spec, *prepared(lhs, rhs))

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        item = lax.mul(lax.rem(i, np.int32(in_items)), np.int32(items))
        x_at, w_at = ({"g": (group(i), count), "c": (item, items)} for count in (groups // repeats, groups))
        slices = take_at(lhs, spec.lhs_layout, **x_at), take_at(rhs, spec.rhs_layout, **w_at)
        return prepared(*map(lax.optimization_barrier, slices))  # else each element that is moved would be sliced

    def group(i: Any) -> Any:
        return lax.mul(lax.div(i, np.int32(in_items)), np.int32(groups))

    if added:
        return _added(part, fetch, in_items, lhs, rhs)

    def add(i: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        sums = lax.add(take_at(out, axes, g=(group(i), groups)), _sums(part, *slices))
        return put_at(out, axes, sums, g=group(i))

    zeros = lax.full(spec.shape(axes, spec.out_size), 0, spec.compute_dtype)
    return loop_apart(in_groups * in_items, fetch, add, zeros, lhs, rhs)


def _added(spec: ConvSpec, fetch: Callable[..., list[Array]], loops: int, lhs: Array, rhs: Array) -> Array:
    """The sums of so many of the spec's items after the others: what is added to is reduced once, in the end."""
    plain = _plain(spec)

    def add(_: Any, sums: Array, slices: list[Array], *_operands: Array) -> Array:
        return apart(lambda sums, lhs, rhs: lax.add(sums, sums_of_blocks(plain, lhs, rhs)))(sums, *slices)

    zeros = lax.full(sums_shape(plain, math.prod(plain.out_size)), 0, spec.compute_dtype)
    return _result(spec, reduced(plain, loop_apart(loops, fetch, add, zeros, lhs, rhs)))


def _added_at_a_time(spec: ConvSpec) -> int:
    """How many items to add at a time to sums that are not reduced in between, or 0.

    They are written and read for each, but so are those that are reduced; and fewer items have no uneven blocks of rows. It
    pays where output channels are whole vectors, and while the sums stay in a cache.
    """
    items = divisor(spec.in_channels, max(1, ROW_TERMS // spec.window[0]))
    part = dataclasses.replace(spec, in_channels=items)
    plain, size = _plain(part), spec.groups * spec.compute_dtype.itemsize
    few = spec.in_channels < ADDED_ITEMS * items or plain.out_channels % VECTOR > 0
    if depthwise(spec) or few or plain.lhs_layout.endswith(plain.spatial):
        return 0
    sums = size * sums_size(plain) * math.prod(plain.out_size)
    slices = 2 * size * items * operands_size(plain)
    fits = sums + slices <= TEMPORARIES * spec.bytes - math.prod(spec.out_shape) * spec.compute_dtype.itemsize
    return items if fits and sums <= ADDED_BYTES else 0


def _at_a_time(spec: ConvSpec) -> tuple[int, int]:
    """As many groups and items of c as `TEMPORARIES` has room for the copies and sums of, or as stay in the cache."""
    plain, items, size = _plain(spec), spec.in_channels, spec.groups * spec.compute_dtype.itemsize
    lhs, rhs = plain.batch * math.prod(plain.in_size), plain.out_channels * math.prod(plain.window)
    if not depthwise(spec):
        items = divisor(items, min(ROW_TERMS, CACHE_BYTES // (size * (lhs + rhs))))
    some, result = dataclasses.replace(plain, in_channels=items), spec.batch * spec.out_channels * math.prod(spec.out_size)
    loop, converted = items < spec.in_channels, spec.lhs_dtype != spec.compute_dtype
    moved = loop or plain.lhs_layout != spec.lhs_layout
    copied = items * lhs * (moved or converted or plain.in_size != spec.in_size)
    filled = plain.window != spec.window or plain.out_channels != spec.out_channels
    copied += items * rhs * (moved or (converted and not depthwise(spec)) or filled)
    needed = copied + _sums_at_a_time(some) + result
    fits = size * needed <= max(SMALL_BYTES, TEMPORARIES * spec.bytes)
    paged = depthwise(spec) and size * needed > PAGED_BYTES
    if fits and not paged:
        return spec.groups, items
    needed += items * (lhs + rhs)  # slices, which the loop takes
    most = (TEMPORARIES - 1) * spec.bytes
    most = min(most, PART_BYTES) if paged else most
    if depthwise(spec):
        items = divisor(items, spec.in_channels * most // (size * needed))
        needed = needed * items // spec.in_channels
    if fits and plain.lhs_layout.endswith("gn"):  # some groups of a minor axis would be slices of short pieces
        return spec.groups, items
    return divisor(spec.groups, spec.groups * most // (size * needed)), items


def _sums_at_a_time(spec: ConvSpec) -> int:
    """How many elements of sums there are at a time, of one group."""
    if depthwise(spec):
        return sums_size(spec) * min(math.prod(spec.out_size), positions_at_a_time(spec))
    return sums_size(spec) * math.prod(part_of(spec))


def transposed(spec: ConvSpec) -> bool:
    """Whether rows are minor, but better were not: short ones, or where the output channels are whole vectors.

    Not if these are one vector, and the rows are whole ones and next to each other.
    """
    row, steps = spec.window[-1], (spec.strides[-1], spec.rhs_dilation[-1])
    vectors, rest = divmod(spec.out_channels, VECTOR)
    channels = rest == 0 and (vectors > 1 or row % VECTOR > 0 or max(steps) > 1)
    return spec.lhs_layout.endswith(spec.spatial) and (row < SHORT_ROW or channels)


def _plain(spec: ConvSpec) -> ConvSpec:
    """The same of operands in the dtype of the sums, padded, and with minor groups and channels if they are `transposed`."""
    lhs = spec.lhs_layout
    if transposed(spec):
        lhs = f"c{spec.spatial}gn"
    plain = dataclasses.replace(unpadded(spec), lhs_layout=lhs, rhs_layout=lhs.replace("n", "o"))
    if not depthwise(spec):
        return even_parts(even_rows(_filled(plain)))
    copied = transposed(spec) or math.prod(spec.rhs_shape) * spec.rhs_dtype.itemsize <= COPIED_BYTES
    return even_rows(plain) if copied else plain


def _filled(spec: ConvSpec) -> ConvSpec:
    """The same with 8 minor output channels, if it has 5 to 7, which are no vector."""
    thin = VECTOR // 2 < spec.out_channels < VECTOR and not spec.lhs_layout.endswith(spec.spatial)
    return dataclasses.replace(spec, out_channels=VECTOR) if thin and innermost(spec) == "no" else spec


def _prepared(spec: ConvSpec, lhs: Array, rhs: Array, copied: bool = False) -> list[Array]:
    """The operands of `_plain`, the input `copied` anyway or not; a depthwise one's `rhs` is converted where it is read."""
    plain, edges = _plain(spec), {}
    for axis, (size, (low, _)) in enumerate(zip(plain.in_size, spec.padding, strict=True)):
        edges[f"s{axis}"] = (low, size - low - spec.in_size[axis])
    lhs = lax.convert_element_type(lhs, spec.compute_dtype)
    rhs = rhs if depthwise(spec) else lax.convert_element_type(rhs, spec.compute_dtype)
    lhs, rhs = align(lhs, spec.lhs_layout, plain.lhs_layout), align(rhs, spec.rhs_layout, plain.rhs_layout)
    moved, padded = plain.lhs_layout != spec.lhs_layout, plain.in_size != spec.in_size
    if moved or padded or copied:
        edges |= _apart_in_cache(plain, edges)
    more = max(VECTOR, _more_groups(plain, plain.window)) if moved and depthwise(spec) else 0  # XLA moves faster what it pads
    filled = plain.out_channels - spec.out_channels
    rhs = widen(rhs, plain.rhs_layout, s0=(0, plain.window[0] - spec.window[0]), g=(0, more), o=(0, filled))
    return [widen(lhs, plain.lhs_layout, **edges), rhs]


def _apart_in_cache(spec: ConvSpec, edges: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What to add to the edges of the input's copy, lest its rows share sets of the cache: another column, or else groups.

    Groups are added to each column: with 64 columns, a row grows by a multiple of 4 KiB, which does not help.
    """
    groups, last = _more_groups(spec, spec.in_size), f"s{spec.ndim - 1}"
    if groups and not _more_groups(spec, (*spec.in_size[:-1], spec.in_size[-1] + 1)):
        return {last: (edges[last][0], edges[last][1] + 1)}
    return {"g": (0, groups)}


def _more_groups(spec: ConvSpec, size: Sizes) -> int:
    """How many groups to add to a copy of an operand of such a size, of whose rows a sum reads as many as it has terms."""
    if not spec.lhs_layout.endswith("gn"):
        return 0
    group = spec.batch * spec.compute_dtype.itemsize
    return more_groups(group, math.prod(size[1:]) * spec.groups * group, terms(spec))


def _sums(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums of prepared operands, in the layout of the result."""
    plain = _plain(spec)
    compute = over_positions if depthwise(spec) else over_parts

    def sums(lhs: Array, rhs: Array) -> Array:
        return compute(plain, lhs, rhs)

    if not depthwise(spec) and plain.lhs_layout != spec.lhs_layout:
        sums = apart(sums)  # else XLA would only change the layouts of moved operands, and move them for each product
    return _result(spec, sums(lhs, rhs))


def _result(spec: ConvSpec, sums: Array) -> Array:
    """What was summed up for the operands of `_plain`, in the layout of `kept_axes`: cut, in the layout of the result."""
    plain, kept = _plain(spec), kept_axes(_plain(spec))
    axes = kept.replace("r", spec.spatial[:-1]).replace("k", spec.spatial[-1] if "r" in kept else spec.spatial)
    out = lax.reshape(sums, plain.shape(axes, plain.out_size))
    here = spatial_slices((0,) * spec.ndim, spec.out_size, (1,) * spec.ndim)
    return align(take(out, axes, o=slice(0, spec.out_channels), **here), axes, spec.out_layout)
