"""Sums over kernel taps of shifted slices times weights: written out, and in parts where the kernel is large.

Both operands have the axes of the result: the input has c in place of o, the kernel c in place of n.
"""

import itertools
import math
from collections.abc import Callable

from jax import Array, lax

from jaxgroupconv.lowerings.calls import apart, shared
from jaxgroupconv.lowerings.geometry import pieces, spatial_slices, spread, take, total, without
from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 64  # unrolled terms of one sum; beyond, XLA's fused loop degrades and compiles slowly
MAX_TERMS_IN_PARTS = 128  # of all parts of a sum together; more take long to compile
KERNEL_BYTES = 24 << 10  # of a depthwise sum, channel-last: read again at each position, it should stay in the first cache
LEAST_TAPS = 3  # of a part of a sum whose kernel would take more


def in_parts(spec: ConvSpec, lhs: Array, rhs: Array, *out: Array, alone: bool) -> Array:
    """The sum of all terms, and of `out`; if the kernel is too large for the first cache, each part but the last is a call."""

    def part(of_lhs: dict[str, slice], of_rhs: dict[str, slice]) -> Callable[..., Array]:
        def part_of_sum(lhs: Array, rhs: Array, *out: Array) -> Array:
            lhs, rhs = take(lhs, spec.lhs_layout, **of_lhs), take(rhs, spec.rhs_layout, **of_rhs)
            return sum_of_taps(spec, lhs, rhs, *out, alone=alone)

        return part_of_sum

    *before, last = itertools.starmap(part, _parts(spec, rhs) if alone else [({}, {})])
    for part_of_sum in before:
        out = (apart(part_of_sum)(lhs, rhs, *out),)
    return last(lhs, rhs, *out)


def _parts(spec: ConvSpec, rhs: Array) -> list[tuple[dict[str, slice], dict[str, slice]]]:
    """For each part of a sum, what it takes of the input, and of the kernel: one part, unless depthwise and channel-last."""
    counts = [rhs.shape[spec.rhs_layout.index(axis)] for axis in spec.spatial]
    taps, parts = math.prod(counts), [({}, {})]
    most = min(MAX_TERMS, KERNEL_BYTES * taps // (rhs.size * spec.compute_dtype.itemsize))
    if most < LEAST_TAPS or not in_cache(spec):
        return parts
    for i, (count, dilation) in enumerate(zip(counts, spec.rhs_dilation, strict=True)):
        if taps <= most:
            break
        each = -(-count // -(-count // max(1, count * most // taps)))  # equal parts
        taps = taps * each // count
        starts = range(0, count, each)
        slices = [({f"s{i}": slice(start * dilation, None)}, {f"s{i}": slice(start, start + each)}) for start in starts]
        parts = [(of_lhs | x, of_rhs | w) for of_lhs, of_rhs in parts for x, w in slices]
    return parts


def in_cache(spec: ConvSpec) -> bool:
    """Whether the kernel should stay in the first cache: depthwise, channel-last; not where sums are wider than the operands.

    These would take too much memory: besides the padded input there is the sum of a part, and that of the one before.
    """
    narrow = spec.lhs_dtype != spec.compute_dtype
    return spec.in_channels == spec.out_channels == 1 and not spec.out_layout.endswith(spec.spatial) and not narrow


def sum_of_taps(spec: ConvSpec, lhs: Array, rhs: Array, *out: Array, alone: bool) -> Array:
    """The sum of `out` and of the products for all channels and elements of `rhs`, in the layout of the result."""
    rows, last, terms = spec.spatial[:-1], spec.spatial[-1], [*out]
    window = [rhs.shape[spec.rhs_layout.index(axis)] for axis in rows]
    reach = [(size - 1) * stride + 1 for size, stride in zip(spec.out_size[:-1], spec.strides[:-1], strict=True)]
    flat = alone and _row_axes(spec) == f"{last}go"
    for x, kernel in zip(pieces(lhs, spec.lhs_layout, "c"), pieces(rhs, spec.rhs_layout, "c"), strict=True):
        for row, w in zip(itertools.product(*map(range, window)), pieces(kernel, spec.rhs_layout, rows), strict=True):
            starts = [k * d for k, d in zip(row, spec.rhs_dilation[:-1], strict=True)]
            above = take(x, spec.lhs_layout, **spatial_slices(starts, reach, (1,) * len(reach)))
            taps = w.shape[spec.rhs_layout.index(last)]
            w = lax.reshape(w, [taps, w.size // taps]) if flat else without(w, spec.rhs_layout, "c" + rows)
            terms.append(_row_of_taps(spec, above, w))
    return total(terms)


def _row_axes(spec: ConvSpec) -> str:
    """The axes of a row of the kernel."""
    return "".join(axis for axis in spec.rhs_layout if axis in f"{spec.spatial[-1]}go")


@shared
def _row_of_taps(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sum of the products for one row of the kernel, with `_row_axes` or g and o merged. Traced once for all rows.

    XLA takes some 35 microseconds for each operation of a term, so these are few: operands lack the axes along which they are
    repeated, and an element of a kernel with merged axes is a slice of one that is flat.
    """
    last, one = spec.spatial[-1], "o" if spec.out_channels == 1 else ""
    axes, x_axes, w_axes = spec.out_layout.replace(one, ""), spec.out_layout.replace("o", ""), _row_axes(spec).replace(one, "")
    lhs, sizes, terms = without(lhs, spec.lhs_layout, "c"), spec.sizes(spec.out_size), []
    if rhs.ndim == 2:
        taps, pitch = rhs.shape[0], rhs.shape[1] // spec.out_channels
        flat = lax.reshape(rhs, [taps * pitch, spec.out_channels][: len(w_axes) - 1])
        elements = [lax.slice_in_dim(flat, tap * pitch, tap * pitch + spec.groups) for tap in range(taps)]
    else:
        parts = pieces(without(rhs, _row_axes(spec), one), w_axes, last)
        elements = [without(take(w, w_axes, g=slice(0, spec.groups)), w_axes, last) for w in parts]
    for tap, w in enumerate(elements):
        starts = (*[0] * (spec.ndim - 1), tap * spec.rhs_dilation[-1])
        x = take(lhs, x_axes, g=slice(0, spec.groups), **spatial_slices(starts, spec.out_size, spec.strides))
        x, w = spread(x, x_axes, axes, sizes), spread(w, w_axes.replace(last, ""), axes, sizes)
        terms.append(lax.mul(x, w))
    return lax.reshape(total(terms), spec.shape(spec.out_layout, spec.out_size))
