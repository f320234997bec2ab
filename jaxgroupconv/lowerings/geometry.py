"""What the lowerings share: axes by letter, cropping and padding.

Arrays carry their axes as a string of letters in memory order (see `ConvSpec`), so that one formula serves every layout.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.spec import ConvSpec

Lower = Callable[[ConvSpec, Array, Array], Array]
VECTOR = 8  # elements that XLA:CPU computes at once
CACHE_WAY, CACHE_LINE = 4096, 64  # bytes: addresses of the first cache that are so far apart share a set
SET_LINES = 5  # lines of one operand that a set has room for, beside the other's: of eight
PAGED_BYTES = 32 << 20  # of temporaries, beyond which the system gives new pages in each call
TEMPORARIES = 3  # what patches, sums and copies may take, as a multiple of operands and result


def align(array: Array, axes: str, target: str) -> Array:
    """Reorders the axes as they stand in `target`; letters of `target` that the array lacks become axes of length one."""
    order = sorted(range(len(axes)), key=lambda i: target.index(axes[i]))
    if order != sorted(order):
        array = lax.transpose(array, order)
    missing = [i for i, axis in enumerate(target) if axis not in axes]
    return lax.expand_dims(array, missing) if missing else array


def regroup(array: Array, parts: Sequence[str], target: Sequence[str], sizes: dict[str, int]) -> Array:
    """Reorders the letters of axes, each of which is a string of letters that lie together, and groups them anew.

    Letters of size one are nowhere and everywhere: where nothing else moves, the array is reshaped, or the same.
    """
    letters, wanted = ([axis for axis in "".join(axes) if sizes[axis] > 1] for axes in (parts, target))
    if letters != wanted:
        array = _reshape(array, [sizes[axis] for axis in letters])
        array = lax.transpose(array, [letters.index(axis) for axis in wanted])
    return _reshape(array, [math.prod(sizes[axis] for axis in part) for part in target])


def _reshape(array: Array, shape: Sequence[int]) -> Array:
    return array if array.shape == tuple(shape) else lax.reshape(array, shape)


def contract(
    a: Array, a_axes: str, b: Array, b_axes: str, batch: str = "", merge: bool = True, **options: Any
) -> tuple[Array, str]:
    """The product summed over the axes that both have, but for `batch`: a `lax.dot_general` and the axes of its result.

    Axes that belong together and lie together are merged before, since XLA transposes operands that sum over several axes; not
    where devices share them out.
    """
    summed = "".join(axis for axis in a_axes if axis in b_axes and axis not in batch)
    own = ["".join(axis for axis in axes if axis not in batch + summed) for axes in (a_axes, b_axes)]
    parts = [
        sorted(filter(None, (batch, summed, free)), key=axes.find) for axes, free in zip((a_axes, b_axes), own, strict=True)
    ]
    if not merge or ["".join(part) for part in parts] != [a_axes, b_axes]:
        parts = [list(a_axes), list(b_axes)]
    sizes = dict(zip(a_axes + b_axes, a.shape + b.shape, strict=True))
    a, b = (
        lax.reshape(array, [math.prod(sizes[axis] for axis in axes) for axes in part])
        for array, part in zip((a, b), parts, strict=True)
    )

    def where(part: list[str], letters: str) -> list[int]:
        return [i for i, axes in enumerate(part) if axes[0] in letters]

    contracted = where(parts[0], summed), where(parts[1], summed)
    axes, batched = batch + own[0] + own[1], (where(parts[0], batch), where(parts[1], batch))
    product = lax.dot_general(a, b, (contracted, batched), **options)
    return lax.reshape(product, [sizes[axis] for axis in axes]), axes


def take(array: Array, axes: str, **index: slice | int) -> Array:
    """Static indexing by axis letter (spatial axes as `s0`, `s1`, …); an int keeps its axis, with length one."""
    starts, limits, steps = [0] * array.ndim, list(array.shape), [1] * array.ndim
    for letter, at in index.items():
        i = axes.index(letter.removeprefix("s"))
        at = slice(at, at + 1) if isinstance(at, int) else at
        starts[i], limits[i], steps[i] = at.indices(array.shape[i])
    whole = not any(starts) and limits == list(array.shape) and all(step == 1 for step in steps)
    return array if whole else lax.slice(array, starts, limits, steps)


def take_at(array: Array | np.ndarray, axes: str, **index: tuple[Any, int]) -> Array:
    """Indexing by axis letter, as in `take`, at a position known when the program runs: (start, an int32; size)."""
    starts, sizes = [np.int32(0)] * array.ndim, list(array.shape)
    for letter, (start, size) in index.items():
        i = axes.index(letter.removeprefix("s"))
        starts[i], sizes[i] = start, size
    return lax.dynamic_slice(array, starts, sizes, allow_negative_indices=False)


def windows(array: Array, axes: Sequence[int], starts: Any, shape: Sequence[int], where: int) -> Array:
    """Slices of one shape along a new axis `where`: they start at `starts` (slices, axes) on some axes, at 0 on others.

    XLA takes a quarter of the time to compile this that an array made of slices takes.
    """
    offsets = tuple(i for i in range(array.ndim + 1) if i != where)
    numbers = lax.GatherDimensionNumbers(offsets, collapsed_slice_dims=(), start_index_map=tuple(axes))
    return lax.gather(array, starts, numbers, tuple(shape), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def shifted(array: Array, axis: int, count: int, step: int) -> Array:
    """The array so many times along a new first axis, each from an element of `axis` that is a step further on than the last.

    What is beyond the end is of no use. Repeated along the axis and read in rows that are a step longer: XLA keeps nothing of
    it but where it reads, which is constant in the loops over what lies within `axis`.
    """
    if count == 1:
        return lax.expand_dims(array, [0])
    before, size, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    pitch = size + step
    repeats = -(-count * pitch // size)
    array = lax.broadcast_in_dim(array, (*before, repeats, size, *after), [i for i in range(array.ndim + 1) if i != axis])
    array = lax.slice_in_dim(lax.reshape(array, (*before, repeats * size, *after)), 0, count * pitch, axis=axis)
    array = lax.slice_in_dim(lax.reshape(array, (*before, count, pitch, *after)), 0, size, axis=axis + 1)
    return lax.transpose(array, [axis, *(i for i in range(array.ndim) if i != axis)])


def put_at(array: Array, axes: str, part: Array, **index: Any) -> Array:
    """The array with a part of it replaced, which starts at the index of each letter, an int32, or at 0."""
    starts = [index.get(f"s{axis}" if axis.isdigit() else axis, np.int32(0)) for axis in axes]
    return lax.dynamic_update_slice(array, part, starts, allow_negative_indices=False)


def widen(array: Array, axes: str, **more: tuple[int, int]) -> Array:
    """Zeros before and after, by axis letter as in `take`; negative numbers crop. The array may lack some of the letters."""
    sides = {letter.removeprefix("s"): pair for letter, pair in more.items()}
    config = [(*sides.get(axis, (0, 0)), 0) for axis in axes]
    return lax.pad(array, np.zeros((), array.dtype), config) if any(map(any, config)) else array


def pieces(array: Array, axes: str, letters: str, size: int = 1) -> list[Array]:
    """The array cut along these axes, the first one slowest, into pieces of `size` elements, the last one of what is left."""
    parts = [array]
    for i in map(axes.index, letters):
        full, rest = divmod(array.shape[i], size)
        sizes = [size] * full + [rest] * (rest > 0)
        parts = [piece for part in parts for piece in lax.split(part, sizes, i)] if len(sizes) > 1 else parts
    return parts


def without(array: Array, axes: str, letters: str) -> Array:
    """The array without these of its axes, whose length is one."""
    dropped = [i for i, axis in enumerate(axes) if axis in letters]
    return lax.squeeze(array, dropped) if dropped else array


def spread(array: Array, axes: str, target: str, sizes: dict[str, int]) -> Array:
    """Repeats the array along the axes of `target` that it lacks; along axes of length one XLA would take three operations."""
    shape, places = [sizes[axis] for axis in target], [target.index(axis) for axis in axes]
    return array if axes == target else lax.broadcast_in_dim(array, shape, places)


def total(terms: Sequence[Array]) -> Array:
    """The sum, one term after the other."""
    return functools.reduce(lax.add, terms)


def divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is not above a bound."""
    return next(d for d in range(max(1, min(number, at_most)), 0, -1) if number % d == 0)


def more_groups(size: int, pitch: int, lines: int) -> int:
    """How many minor groups, of a size in bytes, to add, lest so many lines, `pitch` bytes apart, share a set of the cache.

    Where the groups are a multiple of a large power of two, they do.
    """
    return 0 if lines <= SET_LINES * CACHE_WAY // math.gcd(pitch, CACHE_WAY) else -(-CACHE_LINE // size)


def spatial_slices(starts: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> dict[str, slice]:
    """The index for `take` that picks `counts` spatial elements, `steps` apart."""
    return {
        f"s{i}": slice(start, start + (count - 1) * step + 1, step)
        for i, (start, count, step) in enumerate(zip(starts, counts, steps, strict=True))
    }


def block_rows(spec: ConvSpec) -> tuple[int, int]:
    """The rows that are split like the input's, and the distance of two of them in the (dilated) input.

    They are those of the result, or of a weight gradient's window.
    """
    return (spec.window[0], spec.rhs_dilation[0]) if spec.short_output else (spec.out_size[0], spec.strides[0])


def axes_of(array: Array, layout: str) -> str:
    """The axes of an operand or result, whose group axis is split off or, as lax sees it, merged with the next."""
    return layout if array.ndim == len(layout) else layout.replace("g", "")


def crop(spec: ConvSpec, lhs: Array) -> tuple[ConvSpec, Array]:
    """Turns negative padding into a smaller input (and what a dilated input leaves of it into padding)."""
    if all(p >= 0 for pair in spec.padding for p in pair):
        return spec, lhs
    slices, padding, sizes = {}, [], []
    for axis, ((low, high), dilation, size) in enumerate(zip(spec.padding, spec.lhs_dilation, spec.in_size, strict=True)):
        drop_low, drop_high = (max(0, math.ceil(-p / dilation)) for p in (low, high))
        stop = max(drop_low, size - drop_high)
        slices[f"s{axis}"] = slice(min(drop_low, size), min(stop, size))
        sizes.append(max(0, size - drop_low - drop_high))
        padding.append((low + drop_low * dilation, high + drop_high * dilation))
    lhs = take(lhs, axes_of(lhs, spec.lhs_layout), **slices)
    return dataclasses.replace(spec, in_size=tuple(sizes), padding=tuple(padding)), lhs


def disjoint_gradient(spec: ConvSpec) -> bool:
    """Whether this is the weight gradient of a transposed convolution whose stride is its kernel's size, and crops nothing."""
    plain = all(size == 1 for size in spec.strides + spec.rhs_dilation) and spec.lhs_dilation == spec.out_size
    whole = all(low == high == d - 1 for (low, high), d in zip(spec.padding, spec.lhs_dilation, strict=True))
    return spec.short_output and spec.phases > 1 and plain and whole


def exchanged(spec: ConvSpec) -> ConvSpec | None:
    """The same sums with input and kernel exchanged, from the last output to the first; not of strides or a dilated kernel.

    With q a position of the input, d its dilation and p + k - low = d*q, out[p] = sum over k of x[(p + k - low) / d] * w[k]
    = sum over q of x[q] * w[d*q - p + low]: the kernel, as the input, meets the input, as a dilated kernel.
    """
    if any(size != 1 for size in spec.strides + spec.rhs_dilation):
        return None
    exchange, padding = str.maketrans("no", "on"), []
    for axis, (size, dilation) in enumerate(zip(spec.in_size, spec.lhs_dilation, strict=True)):
        low, high = spec.out_size[axis] - 1 - spec.padding[axis][0], (size - 1) * dilation + 1 - spec.window[axis]
        padding.append((low, high + spec.padding[axis][0]))
    return dataclasses.replace(
        spec,
        batch=spec.out_channels,
        out_channels=spec.batch,
        in_size=spec.window,
        window=spec.in_size,
        padding=tuple(padding),
        lhs_dilation=spec.rhs_dilation,
        rhs_dilation=spec.lhs_dilation,
        lhs_layout=spec.rhs_layout.translate(exchange),
        rhs_layout=spec.lhs_layout.translate(exchange),
        out_layout=spec.out_layout.translate(exchange),
        lhs_dtype=spec.rhs_dtype,
        rhs_dtype=spec.lhs_dtype,
        precision=spec.precision[::-1] if isinstance(spec.precision, tuple) else spec.precision,
    )


def of_cotangent(spec: ConvSpec) -> ConvSpec | None:
    """The weight gradient of a transposed convolution as that of the strided one which it is the gradient of, or None."""
    dilated = spec.short_output and spec.phases > 1 and not disjoint_gradient(spec)
    return exchanged(spec) if dilated else None


def backwards(spec: ConvSpec, out: Array) -> Array:
    """The result of an exchanged convolution (`exchanged`) in the order of the spec's."""
    axes = axes_of(out, spec.out_layout)
    return lax.rev(out, [axes.index(axis) for axis in spec.spatial])


def pad(spec: ConvSpec, lhs: Array, groups: int = 0) -> Array:
    """Pads the input (group axis split, padding not negative, no input dilation) with zeros, and with some groups of zeros."""
    return widen(lhs, spec.lhs_layout, g=(0, groups), **{f"s{axis}": pair for axis, pair in enumerate(spec.padding)})


def unpadded(spec: ConvSpec) -> ConvSpec:
    """The convolution of the input that `pad` gives."""
    size = tuple(size + sum(pair) for size, pair in zip(spec.in_size, spec.padding, strict=True))
    return dataclasses.replace(spec, in_size=size, padding=((0, 0),) * spec.ndim)
