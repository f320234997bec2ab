"""Matrix products batched over the groups; patches where the window is larger than one.

Good for 1x1 kernels, for many channels a group, for weight gradients, whose patches are contracted over the positions of the
window, and for transposed convolutions whose stride is their kernel's size, which are one product without patches.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.calls import loop_apart
from jaxgroupconv.lowerings.geometry import (
    TEMPORARIES,
    align,
    block_rows,
    contract,
    disjoint_gradient,
    divisor,
    pad,
    put_at,
    regroup,
    spatial_slices,
    take,
    take_at,
    unpadded,
    widen,
    windows,
)
from jaxgroupconv.lowerings.phases import by_phase
from jaxgroupconv.spec import ConvSpec, Sizes

MAX_PATCHES = 64
BLOCK_BYTES = 4 << 20  # patches of one block, which stay in the cache; XLA runs on one core what has less than half a MiB
KERNEL_SHARE = 3  # least size of what an item has of the maps, as multiples of a kernel of size one that is copied for each,
GRADIENT_SHARE = 8  # or of its gradient, which is summed up over the items,
LEAST_GATHERED = 48  # elements that patches move at once, from which on they are a gather
SHORT_MAP = 32, 128  # or 1, if an item has so many positions: rows that are slow to move, but enough for a product
_WITHIN = str.maketrans("0123", "wxyz")  # the axes of the kernel, or of a block of the result, beside the input's


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.disjoint:
        return None
    kind, sizes = ("output positions", spec.out_size) if spec.short_output else ("kernel elements", spec.window)
    count = math.prod(sizes) // (1 if spec.short_output else spec.phases)
    return None if count <= MAX_PATCHES else f"{count} {kind} exceed {MAX_PATCHES} patches"


def lower(spec: ConvSpec, lhs: Array, rhs: Array, shared: bool = False) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    lhs, rhs = spec.split(lhs, rhs)
    out = _lower(spec, lhs, rhs, shared, TEMPORARIES * spec.bytes)
    return lax.reshape(lax.convert_element_type(out, spec.out_dtype), spec.out_shape)


def lower_shared(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same without a loop, whose slices would gather items and groups that are shared out among devices."""
    return lower(spec, lhs, rhs, shared=True)


def _lower(spec: ConvSpec, lhs: Array, rhs: Array, shared: bool, most: int) -> Array:
    """The same of operands with their group axes split off; `most` bytes at a time for patches and copies."""
    if spec.disjoint:
        return _over_inputs(spec, lhs, rhs)
    if disjoint_gradient(spec):
        return _over_blocks(spec, lhs, rhs, merge=not shared)
    if any(d > 1 for d in spec.lhs_dilation):
        return _by_phase(spec, lhs, rhs, shared, most)
    if not shared and math.prod(spec.out_size if spec.short_output else spec.window) == 1:
        return _over_positions(spec, lhs, rhs)
    relaid, x, w = _relaid(spec, lhs, rhs)
    if shared:
        out = _over_patches(relaid, x, w, merge=False)
    else:
        copied = 0 if relaid.rhs_layout == spec.rhs_layout else math.prod(spec.rhs_shape) * spec.rhs_dtype.itemsize
        out = _in_blocks(relaid, x, w, most - copied)
    return align(out, relaid.out_layout, spec.out_layout)


def _by_phase(spec: ConvSpec, lhs: Array, rhs: Array, shared: bool, most: int) -> Array:
    """The phases of a dilated input, whose parts of the kernel are moved at once; apart if their patches are large."""
    _, layout, _ = _layouts(spec)
    spec, rhs = dataclasses.replace(spec, rhs_layout=layout), align(rhs, spec.rhs_layout, layout)
    phase = functools.partial(_lower, shared=shared, most=most)
    patches = spec.groups * _items_and_channels(spec)[0] * _patch_bytes(spec) // spec.phases
    large = not shared and patches > (TEMPORARIES - 1) * spec.bytes  # the rest is for copies
    return by_phase(phase, spec, lhs, rhs, phases_apart=large)


def _over_positions(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """One product without patches, for a kernel of size one, or a weight gradient whose result is of size one.

    Channel-first, the positions of several items do not lie together: they are moved, or each item is a product of its own.
    """
    s = spec.spatial
    count, step = (spec.window, spec.rhs_dilation) if spec.short_output else (spec.out_size, spec.strides)
    lhs = take(pad(spec, lhs), spec.lhs_layout, **spatial_slices((0,) * spec.ndim, count, step))
    minor, items = spec.lhs_layout.endswith(s), "c" if spec.short_output else "n"
    batch = f"{items}g" if minor and _items_apart(spec) else "g"
    own, summed = (part.strip(batch) for part in (("n", f"c{s}") if spec.short_output else (f"n{s}", "c")))
    x_axes = [batch, own, summed] if minor == spec.short_output else [batch, summed, own]
    first = _kernel_first(spec)
    w_axes = [batch if spec.short_output else "g", *(("o", summed) if first else (summed, "o"))]
    out_axes = [batch, "o", own] if first else [batch, own, "o"]
    x = regroup(lhs, spec.lhs_layout, x_axes, spec.sizes(count))
    w = regroup(rhs, spec.rhs_layout, w_axes, spec.sizes(spec.window))
    if batch != w_axes[0]:
        w = lax.reshape(lax.broadcast(w, [spec.batch]), [spec.batch * spec.groups, *w.shape[1:]])
    (a, a_axes), (b, b_axes) = ((w, w_axes), (x, x_axes)) if first else ((x, x_axes), (w, w_axes))
    numbers = ([a_axes.index(summed)], [b_axes.index(summed)]), ([0], [0])
    out = lax.dot_general(a, b, numbers, precision=spec.precision, preferred_element_type=spec.compute_dtype)
    if batch == "cg":  # each item's part of the sum
        out = lax.reduce_sum(lax.reshape(out, [spec.in_channels, spec.groups, *out.shape[1:]]), (0,))
        out_axes[0] = "g"
    return regroup(out, out_axes, spec.out_layout, spec.sizes(spec.out_size))


def _kernel_first(spec: ConvSpec) -> bool:
    """Whether the kernel is the product's first operand, along whose minor axis a product is fastest.

    Where positions are minor it is so anyway; in a weight gradient of several groups both operands are moved anyway.
    """
    return spec.lhs_layout.endswith(spec.spatial) or (spec.short_output and spec.groups > 1)


def _items_apart(spec: ConvSpec) -> bool:
    """Whether the items are products of their own: a kernel for each costs less than to move them together."""
    items, channels = _items_and_channels(spec)
    sizes, share = (spec.window, GRADIENT_SHARE) if spec.short_output else (spec.out_size, KERNEL_SHARE)
    positions = math.prod(sizes)
    share = 1 if SHORT_MAP[0] <= positions < SHORT_MAP[1] else share
    return items > 1 and share * channels * spec.out_channels <= positions * (channels + spec.out_channels)


def _relaid(spec: ConvSpec, lhs: Array, rhs: Array) -> tuple[ConvSpec, Array, Array]:
    """The same convolution without padding, in layouts in which a block is contiguous: groups and items lead."""
    layouts = _layouts(spec)
    x, w = align(pad(spec, lhs), spec.lhs_layout, layouts[0]), align(rhs, spec.rhs_layout, layouts[1])
    names = dict(zip(("lhs_layout", "rhs_layout", "out_layout"), layouts, strict=True))
    return dataclasses.replace(unpadded(spec), **names), x, w


def _layouts(spec: ConvSpec) -> tuple[str, str, str]:
    summed, s = spec.short_output, spec.spatial
    if spec.lhs_layout.endswith(s):
        return (f"cgn{s}", f"cgo{s}", f"gon{s}") if summed else (f"ngc{s}", f"goc{s}", f"ngo{s}")
    w = f"goc{s}" if _kernel_first(spec) else f"gc{s}o"
    return (f"gc{s}n", w, f"g{s}no") if summed else (f"gn{s}c", f"g{s}co", f"gn{s}o")


def _in_blocks(spec: ConvSpec, lhs: Array, rhs: Array, most: int) -> Array:
    """Blocks, one after the other: one item, some groups and some rows of the result (of a weight gradient: of the window).

    The rows that are left of the last block are a loop of their own.
    """
    (block, counts), (rows, _) = _block(spec, most), block_rows(spec)
    height, _ = block_rows(block)
    if math.prod(counts) == 1 and height == rows:
        return _over_patches(spec, lhs, rhs)
    out = lax.full(spec.shape(spec.out_layout, spec.out_size), 0, spec.compute_dtype if spec.short_output else spec.out_dtype)
    out, done = _loop(spec, block, counts, 0, out, lhs, rhs), counts[2] * height
    if done < rows:
        rest = _part(spec, block.groups, rows - done)
        out = _loop(spec, rest, (*counts[:2], 1), done, out, lhs, rhs)
    return out


def _loop(spec: ConvSpec, block: ConvSpec, counts: tuple[int, int, int], row: int, out: Array, lhs: Array, rhs: Array) -> Array:
    """The blocks of so many items, groups and rows, from a row on, put or added into `out`."""

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        x_at, w_at, _ = _places(spec, block, counts, row, i)
        return [take_at(lhs, spec.lhs_layout, **x_at), take_at(rhs, spec.rhs_layout, **w_at)]

    def step(i: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        (x, w), (_, _, at) = slices, _places(spec, block, counts, row, i)
        found = lax.convert_element_type(_over_patches(block, x, w), out.dtype)
        if spec.short_output:  # a sum over items and rows
            found = lax.add(found, take_at(out, spec.out_layout, g=(at["g"], block.groups)))
        return put_at(out, spec.out_layout, found, **at)

    return loop_apart(math.prod(counts), fetch, step, out, lhs, rhs)


def _items_and_channels(spec: ConvSpec) -> tuple[int, int]:
    """The sizes of the input's axes of items and of channels: a weight gradient sums over its items."""
    return (spec.in_channels, spec.batch) if spec.short_output else (spec.batch, spec.in_channels)


def _patch_bytes(spec: ConvSpec) -> int:
    """The patches of one item and one group."""
    _, channels = _items_and_channels(spec)
    return channels * math.prod(spec.window + spec.out_size) * spec.lhs_dtype.itemsize


def _block(spec: ConvSpec, most: int) -> tuple[ConvSpec, tuple[int, int, int]]:
    """The convolution of one block, and the numbers of whole blocks along items, groups and rows."""
    (items, _), patches = _items_and_channels(spec), _patch_bytes(spec)
    (rows, _), (kernel, _) = block_rows(spec), _kernel_rows(spec)
    most = most * kernel // (kernel + 1)  # beside the patches of all axes but the first, which they are made of
    if items * spec.groups * patches > most:  # a loop, which keeps the input
        most -= min(most // 2, math.prod(spec.lhs_shape) * spec.lhs_dtype.itemsize)
    most = min(BLOCK_BYTES, most)
    groups = divisor(spec.groups, most // patches)
    height = max(1, min(rows, rows * most // patches))
    even = divisor(rows, height)
    height = even if 4 * even >= 3 * height else -(-rows // -(-rows // height))
    return _part(spec, groups, height), (items, spec.groups // groups, rows // height)


def _part(spec: ConvSpec, groups: int, height: int) -> ConvSpec:
    """The convolution of one item, so many groups and so many rows."""
    (_, step), (kernel, distance) = block_rows(spec), _kernel_rows(spec)
    reach = (height - 1) * step + (kernel - 1) * distance + 1
    changes = dict(in_channels=1, window=(height, *spec.window[1:])) if spec.short_output else dict(batch=1)
    return dataclasses.replace(spec, groups=groups, in_size=(reach, *spec.in_size[1:]), **changes)


def _kernel_rows(spec: ConvSpec) -> tuple[int, int]:
    """The rows that every block has all of, the kernel's or those of a weight gradient's result, and their distance."""
    return (spec.out_size[0], spec.strides[0]) if spec.short_output else (spec.window[0], spec.rhs_dilation[0])


def _places(
    spec: ConvSpec, block: ConvSpec, counts: tuple[int, int, int], row: int, i: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Where the operands of block i are (starts and sizes), and where its result begins, if the blocks begin at a row."""
    item, first = lax.div(i, np.int32(counts[1] * counts[2])), lax.rem(i, np.int32(counts[1] * counts[2]))
    group = lax.mul(lax.div(first, np.int32(counts[2])), np.int32(block.groups))
    height, step = block_rows(block)
    at = lax.mul(lax.rem(first, np.int32(counts[2])), np.int32(height))
    at = lax.add(at, np.int32(row)) if row else at
    groups, reach = (group, block.groups), (lax.mul(at, np.int32(step)), block.in_size[0])
    if spec.short_output:
        own = {"g": groups, "c": (item, 1)}
        return own | {"s0": reach}, own | {"s0": (at, height)}, {"g": group}
    return {"n": (item, 1), "g": groups, "s0": reach}, {"g": groups}, {"n": item, "g": group, "s0": at}


def _over_inputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """One product of the input and the whole kernel: each position becomes a block of outputs, as large as the kernel."""
    rhs = lax.rev(rhs, [spec.rhs_layout.index(axis) for axis in spec.spatial])
    product, found = _product(spec, (rhs, spec.rhs_layout.translate(_WITHIN)), (lhs, spec.lhs_layout))
    axes = "".join(axis + axis.translate(_WITHIN) if axis in spec.spatial else axis for axis in spec.out_layout)
    sizes = [size * dilation for size, dilation in zip(spec.in_size, spec.lhs_dilation, strict=True)]
    blocks = lax.reshape(align(product, found, axes), spec.shape(spec.out_layout, sizes))
    edges = {}
    for axis, size in enumerate(sizes):
        low = spec.padding[axis][0] - (spec.lhs_dilation[axis] - 1)
        edges[f"s{axis}"] = (low, spec.out_size[axis] - size - low)
    return widen(blocks, spec.out_layout, **edges)


def _over_blocks(spec: ConvSpec, lhs: Array, rhs: Array, merge: bool) -> Array:
    """One product of the input and the cotangent in blocks as large as the kernel, of which each belongs to one input."""
    s, within = spec.spatial, spec.spatial.translate(_WITHIN)
    axes = "".join(axis + axis.translate(_WITHIN) if axis in s else axis for axis in spec.rhs_layout)
    sizes = spec.sizes(spec.in_size) | dict(zip(within, spec.out_size, strict=True))
    rhs = lax.reshape(rhs, [sizes[axis] for axis in axes])
    # The positions lead, for which the cotangent is moved twice as fast as where they follow.
    x_axes, w_axes = (f"gnc{s}", f"gc{s}o{within}") if spec.lhs_layout.endswith(s) else (f"gc{s}n", f"gc{s}{within}o")
    operands = align(lhs, spec.lhs_layout, x_axes), x_axes, align(rhs, axes, w_axes), w_axes
    options = {"precision": spec.precision, "preferred_element_type": spec.compute_dtype}
    product, axes = contract(*operands, batch="g", merge=merge, **options)
    axes = axes.translate(str.maketrans(within, s))
    return align(lax.rev(product, [axes.index(axis) for axis in s]), axes, spec.out_layout)


def _over_patches(spec: ConvSpec, lhs: Array, rhs: Array, merge: bool = True) -> Array:
    """One product of the kernel and the input's patches, contracted over channels and kernel.

    A weight gradient is the same with kernel and result exchanged: the patches are taken at the positions of the result and
    contracted over the window.
    """
    s = spec.spatial
    if spec.lhs_layout.endswith(s):  # the items beside the spatial axes, with which they are contracted or stay
        inner = f"gnc{s}" if spec.short_output else f"gcn{s}"
        lhs, rhs = align(lhs, spec.lhs_layout, inner), align(rhs, spec.rhs_layout, f"goc{s}")
        spec = dataclasses.replace(spec, lhs_layout=inner, rhs_layout=f"goc{s}")
    if spec.short_output:
        patches = _patches(spec, lhs, "n", spec.out_size, spec.strides, spec.window, spec.rhs_dilation)
        product, axes = _product(spec, (rhs, spec.rhs_layout), patches, merge)
        axes = axes.translate(str.maketrans(s.translate(_WITHIN), s))
    else:
        patches = _patches(spec, lhs, "c", spec.window, spec.rhs_dilation, spec.out_size, spec.strides)
        product, axes = _product(spec, (rhs, spec.rhs_layout.translate(_WITHIN)), patches, merge)
    return align(product, axes, spec.out_layout)


def _patches(
    spec: ConvSpec, x: Array, channel: str, count: Sizes, step: Sizes, size: Sizes, stride: Sizes
) -> tuple[Array, str]:
    """The slices of the input at `count` places, `step` apart, along new axes beside the channels, as they are in the kernel.

    One axis after the other: XLA compiles a concatenation as one branch for each operand. Where what lies together is long, a
    gather is as fast, and compiled in less time; but it would compute again what makes the input.
    """
    axes, where = spec.lhs_layout, spec.lhs_layout.index(channel) + spec.lhs_layout.endswith(spec.spatial)
    gathered = not axes.endswith(spec.spatial) and math.prod(x.shape[where:]) >= LEAST_GATHERED
    x = lax.optimization_barrier(x) if gathered else x
    for axis in reversed(spec.spatial):
        i, at = int(axis), axes.index(axis)
        starts, reach = range(0, count[i] * step[i], step[i]), (size[i] - 1) * stride[i] + 1
        moved = axes[:where] + axis.translate(_WITHIN) + axes[where:]
        if gathered and count[i] > 1:
            shape = (*x.shape[:at], reach, *x.shape[at + 1 :])
            x = windows(x, (at,), np.array(starts, np.int32)[:, None], shape, where)
            x = take(x, moved, **{f"s{axis}": slice(0, reach, stride[i])})
        else:
            pieces = [take(x, axes, **{f"s{axis}": slice(start, start + reach, stride[i])}) for start in starts]
            x = lax.concatenate([lax.expand_dims(piece, [where]) for piece in pieces], where)
        axes = moved
    return x, axes


def _product(spec: ConvSpec, kernel: tuple[Array, str], patches: tuple[Array, str], merge: bool = True) -> tuple[Array, str]:
    """The product and its axes; the kernel comes first where its output channels are major (see `_kernel_first`)."""
    first = spec.lhs_layout.endswith(spec.spatial) or (spec.short_output and spec.rhs_layout.startswith("go"))
    a, b = (kernel, patches) if first else (patches, kernel)
    return contract(*a, *b, batch="g", merge=merge, precision=spec.precision, preferred_element_type=spec.compute_dtype)
