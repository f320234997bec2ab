"""Sum over kernel taps of shifted slices times weights; weight gradients are sums of another kind (`weight_sums.py`).

XLA:CPU compiles a sum that is written out in terms into one vector loop without temporaries; each term costs one load and one
multiply-add. Both operands get the axes of the result first, so that a term is a slice and a product: what a program's tracing
takes grows with its equations.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings import weight_sums
from jaxgroupconv.lowerings.calls import OPEN_TERMS, apart, loop_apart
from jaxgroupconv.lowerings.geometry import VECTOR, align, backwards, crop, exchanged, more_groups, pad, take, take_at, widen
from jaxgroupconv.lowerings.phases import by_phase
from jaxgroupconv.lowerings.tap_sums import MAX_TERMS, MAX_TERMS_IN_PARTS, in_cache, in_parts, sum_of_taps
from jaxgroupconv.spec import ConvSpec

LOOP_TERMS = 16  # least terms of one iteration, which reads and writes the result once; half, where output channels are minor
LOOP_PRODUCTS = 128  # the same times the output channels where these are minor: less, and LLVM unrolls their loop into scalars
LEAST_COLUMNS = 16  # of a row of which it pays to fill up the last vector
LEAST_ROW = 7  # elements of a row that are enough for vectors, where channel-last there would be none
REGION_TERMS, REGION_BYTES = 8, 1 << 20  # most terms and least input for which the outputs at the borders are apart
MAX_ROW_TERMS = 128  # of one kernel row, which is never split
MAX_PHASES = 4  # of a dilated input, each of which is compiled on its own; more only with
MAX_PHASE_TERMS = 256  # terms in all of them together
FEW_RESULTS = 32  # of a depthwise channel, for which a copied kernel is read too seldom
PHASE_TERMS, PHASE_COLUMNS = 6, 28  # least terms of a phase, and columns of all, that are interleaved once they are computed


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.phases > MAX_PHASES and (spec.short_output or spec.in_channels * math.prod(spec.window) > MAX_PHASE_TERMS):
        return f"{spec.phases} phases of the dilated input exceed {MAX_PHASES}"
    row = 1 if spec.short_output else math.prod(spec.window[1:])
    if row > MAX_ROW_TERMS:
        return f"{row} terms in a row of the kernel exceed {MAX_ROW_TERMS}"
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool = True) -> Array:
    """Computes the convolution (negative padding cropped before); `alone`: on one device."""
    lhs, rhs = spec.split(lhs, rhs)
    out = (_channel_first if _short_vectors(spec) else _lower)(spec, lhs, rhs, alone)
    return lax.reshape(lax.convert_element_type(out, spec.out_dtype), spec.out_shape)


def lower_shared(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The same with the input as the input, and the kernel as it is: what is shared out among devices."""
    return lower(spec, lhs, rhs, alone=False)


def _lower(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool) -> Array:
    """The same of operands with their group axes split off: the sums, in their own dtype."""
    if any(d > 1 for d in spec.lhs_dilation):
        many = spec.in_channels * math.prod(spec.window) >= PHASE_TERMS * spec.phases
        columns_apart = alone and many and spec.out_size[-1] >= PHASE_COLUMNS
        if alone and _scattered(spec):  # once for all phases
            spec, rhs = dataclasses.replace(spec, rhs_layout=_like_result(spec)[1]), _moved(_kernel(spec, rhs))
        return by_phase(functools.partial(_lower, alone=alone), spec, lhs, rhs, columns_apart)
    if alone and (swapped := _swapped(spec)) is not None:
        return backwards(spec, _lower(*crop(swapped, rhs), lhs, alone))
    return weight_sums.over_outputs(spec, lhs, rhs) if spec.short_output else _over_taps(spec, lhs, rhs, alone)


def _short_vectors(spec: ConvSpec) -> bool:
    """Whether LLVM makes no vectors of the innermost loop, over the output channels of a group or over few groups."""
    if not spec.out_layout.endswith("o") or spec.short_output or spec.groups == 1 or spec.out_size[-1] < LEAST_ROW:
        return False
    o, terms = spec.out_channels, spec.in_channels * math.prod(spec.window)
    if any(step > 1 for step in spec.strides + spec.lhs_dilation) or (o >= 4 and terms > MAX_TERMS):
        return False  # strided rows are no vectors either; a loop's iterations have enough terms
    if o == 1:
        return spec.in_channels > 1 and spec.groups < 16 and spec.groups % 4 > 0
    return o % 4 > 0 or (spec.groups <= 3 and o & (o - 1) > 0)


def _channel_first(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool) -> Array:
    """The same with the last spatial axis as the innermost loop."""
    s = spec.spatial
    first = dataclasses.replace(spec, lhs_layout=f"ngc{s}", out_layout=f"ngo{s}")

    def sums(lhs: Array, rhs: Array) -> Array:
        """Apart: XLA would only change the layout of the input, and move it for each term."""
        return _lower(first, lhs, rhs, alone)

    return align(apart(sums)(align(lhs, spec.lhs_layout, first.lhs_layout), rhs), first.out_layout, spec.out_layout)


def _swapped(spec: ConvSpec) -> ConvSpec | None:
    """For a window larger than the input, the same sums with the two exchanged: the window meets mostly padding, the input,
    as the window, the kernel."""
    larger = not spec.short_output and spec.over_the_map and math.prod(spec.in_size[1:]) <= MAX_ROW_TERMS
    return exchanged(spec) if larger else None


def _over_taps(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool) -> Array:
    """All taps in one sum, or one for each region of the output, or a loop over some rows of the kernel and some channels."""
    terms = spec.in_channels * math.prod(spec.window)
    scattered, (x_axes, w_axes) = _scattered(spec), _like_result(spec)
    lhs, rhs = align(lhs, spec.lhs_layout, x_axes), _kernel(spec, rhs)
    spec = dataclasses.replace(spec, lhs_layout=x_axes, rhs_layout=w_axes)
    if terms > (MAX_TERMS_IN_PARTS if alone and in_cache(spec) else MAX_TERMS):
        return _in_loop(spec, lhs, rhs, alone)
    lhs = lax.convert_element_type(lhs, spec.compute_dtype)
    if _borders_apart(spec, lhs):
        return _by_region(spec, lhs, rhs, alone)
    rhs = _moved(rhs) if scattered and alone else rhs
    compute = in_parts if terms > OPEN_TERMS else sum_of_taps
    return compute(spec, *_spaced(spec, lhs, rhs, math.prod(spec.window), terms), alone=alone)


def _in_loop(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool) -> Array:
    """The sums in a loop over some rows of the kernel and some channels, whose slices are converted one by one."""
    height, channels, minor = spec.window[0], spec.in_channels, spec.out_channels if spec.out_layout.endswith("o") else 1
    in_row, columns, last = math.prod(spec.window[1:]), spec.out_size[-1], spec.spatial[-1]
    spec = _whole_vectors(spec)
    least = max(LOOP_TERMS // 2, LOOP_PRODUCTS // minor) if minor >= 4 else LOOP_TERMS
    part = next(c for c in range(1, channels + 1) if channels % c == 0 and (c * in_row >= least or c == channels))
    count = min(height, -(-least // (part * in_row)))
    reach = (spec.out_size[0] - 1) * spec.strides[0] + (count - 1) * spec.rhs_dilation[0] + 1
    loops, rest = divmod(height, count)
    lhs, rhs = _spaced(spec, lhs, rhs, count * in_row, part * count * in_row)

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        c, row = lax.mul(lax.div(i, np.int32(loops)), np.int32(part)), lax.mul(lax.rem(i, np.int32(loops)), np.int32(count))
        x = take_at(lhs, spec.lhs_layout, c=(c, part), s0=(lax.mul(row, np.int32(spec.rhs_dilation[0])), reach))
        return [lax.convert_element_type(x, spec.compute_dtype), take_at(rhs, spec.rhs_layout, c=(c, part), s0=(row, count))]

    def add(_: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        return in_parts(spec, *slices, out, alone=alone)

    zeros = lax.full(spec.shape(spec.out_layout, spec.out_size), 0, spec.compute_dtype)
    out = loop_apart(channels // part * loops, fetch, add, zeros, lhs, rhs)
    if rest:
        x = take(lhs, spec.lhs_layout, s0=slice((height - rest) * spec.rhs_dilation[0], None))
        x = lax.convert_element_type(x, spec.compute_dtype)
        out = in_parts(spec, x, take(rhs, spec.rhs_layout, s0=slice(height - rest, None)), out, alone=alone)
    return take(out, spec.out_layout, **{f"s{last}": slice(0, columns)})


def _whole_vectors(spec: ConvSpec) -> ConvSpec:
    """The same, with some more columns of the result where rows are long and half of their last vector or more is there.

    What is left of a row beside its vectors, LLVM adds up one by one.
    """
    columns, (low, high) = spec.out_size[-1], spec.padding[-1]
    rows = spec.out_layout.endswith(spec.spatial[-1]) and spec.strides[-1] == 1
    if not rows or columns <= LEAST_COLUMNS or columns % VECTOR < VECTOR // 2:
        return spec
    return dataclasses.replace(spec, padding=(*spec.padding[:-1], (low, high + VECTOR - columns % VECTOR)))


def _scattered(spec: ConvSpec) -> bool:
    """Whether the output channels, minor in the result, lie apart in the kernel, as in gradients."""
    return spec.in_channels > 1 and spec.out_layout.endswith("o") and not spec.rhs_layout.endswith("o")


def _kernel(spec: ConvSpec, rhs: Array) -> Array:
    """The kernel in the dtype of the sums and with the axes of the result."""
    rhs = align(rhs, spec.rhs_layout, _like_result(spec)[1])
    return lax.optimization_barrier(lax.convert_element_type(rhs, spec.compute_dtype))


def _moved(kernel: Array) -> Array:
    """The kernel, moved to where its axes are, by way of one axis: of more XLA would change the layout, and move each term."""

    def flat(kernel: Array) -> Array:
        return lax.reshape(kernel, [kernel.size])

    return lax.reshape(apart(flat)(kernel), kernel.shape)


def _borders_apart(spec: ConvSpec, lhs: Array) -> bool:
    """Whether to do without the padded copy of the input: in a short 1-D depthwise sum over much memory, channel-last.

    With more terms, XLA would too often compute again what makes the input, for each of them.
    """
    if spec.ndim > 1 or spec.in_channels * spec.out_channels > 1 or spec.out_layout.endswith("0"):
        return False
    reach = (spec.window[0] - 1) * spec.rhs_dilation[0]
    small = lhs.nbytes < REGION_BYTES or spec.in_size[0] <= 2 * reach or max(spec.padding[0]) > reach
    return spec.window[0] <= REGION_TERMS and not small


def _by_region(spec: ConvSpec, lhs: Array, rhs: Array, alone: bool) -> Array:
    """The outputs that meet padding below, none, and padding above, each from the part of the input that it meets."""
    low, stride, reach = spec.padding[0][0], spec.strides[0], (spec.window[0] - 1) * spec.rhs_dilation[0]
    size, count, parts = spec.in_size[0], spec.out_size[0], []
    inside = min(count, -(-low // stride)), min(count, (size - 1 - reach + low) // stride + 1)
    for start, stop in itertools.pairwise((0, *inside, count)):
        first, last = start * stride - low, (stop - 1) * stride - low + reach + 1
        if start < stop:
            below, above = max(0, -first), max(0, last - size)
            part = dataclasses.replace(spec, in_size=(last - first - below - above,), padding=((below, above),))
            x = take(lhs, spec.lhs_layout, s0=slice(max(0, first), min(size, last)))
            parts.append(sum_of_taps(part, pad(part, x), rhs, alone=alone))
    return lax.concatenate(parts, spec.out_layout.index("0")) if len(parts) > 1 else parts[0]


def _spaced(spec: ConvSpec, lhs: Array, rhs: Array, positions: int, terms: int) -> tuple[Array, Array]:
    """The padded input, and the kernel, of which a sum reads so many positions and terms at a time.

    What is not padded otherwise is copied for it, if it is read often, and apart: XLA would drop groups that are cut off again.
    """
    padded, few = any(map(any, spec.padding)), spec.in_channels == 1 and spec.batch * math.prod(spec.out_size) < FEW_RESULTS
    of_kernel = 0 if few else _more_groups(spec, rhs, spec.rhs_layout, terms)
    more = _more_groups(spec, lhs, spec.lhs_layout, positions) if padded or positions > OPEN_TERMS else 0

    def add_groups(lhs: Array) -> Array:
        return pad(spec, lhs, more)

    def add_kernel_groups(kernel: Array) -> Array:
        return widen(kernel, spec.rhs_layout, g=(0, of_kernel))

    lhs = (apart(add_groups) if more and not padded else add_groups)(lhs)
    return lhs, apart(add_kernel_groups)(rhs) if of_kernel else rhs


def _more_groups(spec: ConvSpec, array: Array, axes: str, lines: int) -> int:
    """How many groups to add to minor ones, lest so many neighbouring positions or kernel elements share a set of the cache."""
    after = 1 + max(map(axes.index, spec.spatial))
    pitch = math.prod(array.shape[after:]) * spec.compute_dtype.itemsize
    return more_groups(pitch // spec.groups, pitch, lines) if "g" in axes[after:] else 0


def _like_result(spec: ConvSpec) -> tuple[str, str]:
    """The axes of the result, in its order, for both operands: the input with c in place of o, the kernel with c for n."""
    return spec.out_layout.replace("o", "c"), spec.out_layout.replace("n", "c")
