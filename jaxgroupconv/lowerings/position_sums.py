"""The weight gradient of a depthwise convolution: its output positions are an axis of one sum.

The slices along this axis are a gather, of which XLA:CPU keeps nothing but where it reads. It fuses no gather whose elements
are read several times, as in wider groups (`row_sums.py`).
"""

import itertools
import math
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.block_sums import blocks, blocks_summed, kept_axes, reduced, row_parts, sums_layout, sums_size
from jaxgroupconv.lowerings.calls import apart, loop_apart
from jaxgroupconv.lowerings.geometry import put_at, spatial_slices, take, take_at, total, windows, without
from jaxgroupconv.spec import ConvSpec

SUMS_BYTES = 1 << 19  # least of the sums of as many positions as are computed at a time
MORE_SUMS_BYTES = 1 << 21  # the same, if that is at most 7/4 of the operands: a loop would be seven more kernels to compile


def over_positions(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions of a depthwise convolution, in the layout of `kept_axes`, some at a time."""
    starts = itertools.product(*(range(0, n * stride, stride) for n, stride in zip(spec.out_size, spec.strides, strict=True)))
    positions, axes = np.array([*starts], np.int32), kept_axes(spec)
    loops = -(-len(positions) // positions_at_a_time(spec))
    if loops == 1:
        return _at(spec, positions, lhs, rhs)
    count = -(-len(positions) // loops)
    padded = np.pad(positions, ((0, loops * count - len(positions)), (0, 0)), "edge")

    def fetch(i: Any, *_operands: Array) -> list[Array]:
        return [take_at(padded, "k.", k=(lax.mul(i, np.int32(count)), count))]

    def store(i: Any, out: Array, slices: list[Array], lhs: Array, rhs: Array) -> Array:
        return put_at(out, axes, _at(spec, slices[0], lhs, rhs), k=lax.mul(i, np.int32(count)))

    sizes = spec.sizes(spec.out_size) | {"k": loops * count}
    zeros = lax.full([sizes[axis] for axis in axes], 0, spec.compute_dtype)
    return take(loop_apart(loops, fetch, store, zeros, lhs, rhs), axes, k=slice(0, len(positions)))


def positions_at_a_time(spec: ConvSpec) -> int:
    """As many positions as whose sums take no more than the input, or twice the cotangent, or than is worth no loop."""
    lhs, rhs, size = math.prod(spec.in_size), math.prod(spec.window), spec.groups * spec.compute_dtype.itemsize
    small = max(SUMS_BYTES // size, min(MORE_SUMS_BYTES // size, 7 * spec.in_channels * (lhs + rhs) // 4))
    return max(1, max(small, spec.in_channels * max(lhs, 2 * rhs)) // sums_size(spec))


def _at(spec: ConvSpec, positions: Any, lhs: Array, rhs: Array) -> Array:
    """The sums for some output positions: where their windows start, of shape (positions, spatial axes)."""
    rhs, rhs_axes = without(rhs, spec.rhs_layout, "o"), spec.rhs_layout.replace("o", "")
    axes = sums_layout(spec).replace("o", "")

    def over_rows(row: int, part: ConvSpec) -> Array:
        reach = [(size - 1) * step + 1 for size, step in zip(part.window, part.rhs_dilation, strict=True)]

        def sums(positions: Any, lhs: Array, rhs: Array) -> Array:
            rhs = take(rhs, rhs_axes, g=slice(0, part.groups), s0=slice(row, row + part.window[0]))
            rhs = lax.convert_element_type(rhs, part.compute_dtype)
            lhs = take(lhs, part.lhs_layout, s0=slice(row * part.rhs_dilation[0], None))
            starts, shape = map(part.lhs_layout.index, part.spatial), part.shape(part.lhs_layout, reach)
            found = windows(lhs, tuple(starts), positions, shape, axes.index("k"))
            found = take(found, axes, **spatial_slices((0,) * part.ndim, part.window, part.rhs_dilation))
            count = found.shape[axes.index("k")]
            return blocks_summed(part, blocks(part, found, axes, count), blocks(part, rhs, rhs_axes, count), count)

        return reduced(part, apart(sums)(positions, lhs, rhs))  # rhs as it was given: or else it is copied for the call

    return total([over_rows(row, part) for row, part in row_parts(spec)])
