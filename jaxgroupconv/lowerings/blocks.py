"""Rows in blocks, for a program that XLA's partitioner shares out among devices.

Padding gives the rows another length than the input's. If they are shared out, the partitioner deals the padded rows out anew,
and again every slice of them. Here the rows are split into blocks, and each is padded with the rows that it needs of its
neighbours: only these travel, and nothing does where the rows are not shared out.
"""

import dataclasses
import math
from typing import Any

from jax import Array, lax

from jaxgroupconv.lowerings.geometry import block_rows, widen
from jaxgroupconv.spec import ConvSpec


def in_blocks(lowering: Any, spec: ConvSpec, lhs: Array, rhs: Array, devices: int) -> Array:
    """Computes a convolution with its first spatial axis split into blocks, or as it is if that does not divide evenly.

    The blocks are a spatial axis of their own, on which the window has size one; of a weight gradient, whose window is as long
    as the input, the window is split too, and the blocks are summed.

    Args:
      lowering: a `Lowering` that accepts the spec.
      spec: the convolution.
      lhs: the input.
      rhs: the kernel.
      devices: how many share the program out. Whatever part of them share the rows, the blocks are a multiple of it.

    Returns:
      The result, of shape `spec.out_shape` and dtype `spec.out_dtype`.

    Raises:
      NotImplementedError: the lowering refuses the spec.
    """
    count = next((count for count in range(devices, 1, -1) if devices % count == 0 and _divides(spec, count)), 1)
    if count == 1 or lowering.why_not(blocked := _blocked(spec, count)) is not None:
        return lowering.lower(spec, lhs, rhs, shared=devices > 1)
    out = lowering.lower(blocked, _with_neighbours(spec, lhs, count), rhs.reshape(blocked.rhs_shape), shared=True)
    return out.reshape(spec.out_shape)


def _divides(spec: ConvSpec, count: int) -> bool:
    """Whether blocks of the result (or the window) begin where blocks of the input begin, and need only their neighbours."""
    rows, step = block_rows(spec)
    size, dilation = spec.in_size[0], spec.lhs_dilation[0]
    if rows % count or size % count or rows * step != size * dilation:
        return False
    first, last = _reach(spec, count)
    return -size // count <= first < size // count and 0 <= last < 2 * size // count and first <= last


def _reach(spec: ConvSpec, count: int) -> tuple[int, int]:
    """The first and the last row of the input that a block needs, counted from its own first row."""
    out, window = (
        (spec.out_size[0], spec.window[0] // count) if spec.short_output else (spec.out_size[0] // count, spec.window[0])
    )
    low, dilation = spec.padding[0][0], spec.lhs_dilation[0]
    end = (out - 1) * spec.strides[0] + (window - 1) * spec.rhs_dilation[0]
    return math.ceil(-low / dilation), (end - low) // dilation


def _blocked(spec: ConvSpec, count: int) -> ConvSpec:
    """The convolution of the blocks, which lie along a new first spatial axis."""
    rows, _ = block_rows(spec)
    first, last = _reach(spec, count)
    split, whole = (count, rows // count), (1, spec.window[0] if not spec.short_output else spec.out_size[0])
    out, window = (whole, split) if spec.short_output else (split, whole)
    dilation, size = spec.lhs_dilation[0], last - first + 1
    low = spec.padding[0][0] + first * dilation
    length = (out[1] - 1) * spec.strides[0] + (window[1] - 1) * spec.rhs_dilation[0] + 1
    high = length - low - ((size - 1) * dilation + 1)
    padded = _padded(spec)
    return dataclasses.replace(
        spec,
        in_size=(count, size, *(s + before + after for s, (before, after) in zip(spec.in_size[1:], padded, strict=True))),
        window=(*window, *spec.window[1:]),
        strides=(1, *spec.strides),
        padding=(
            (0, 0),
            (low, high),
            *((0, 0) if done == pair else pair for pair, done in zip(spec.padding[1:], padded, strict=True)),
        ),
        lhs_dilation=(1, *spec.lhs_dilation),
        rhs_dilation=(1, *spec.rhs_dilation),
        lhs_layout=_with_blocks(spec.lhs_layout),
        rhs_layout=_with_blocks(spec.rhs_layout),
        out_layout=_with_blocks(spec.out_layout),
    )


def _with_blocks(layout: str) -> str:
    """The layout with the axis of blocks, which is named 0, before the one that was."""
    return "".join({"0": "01"}.get(axis, str(int(axis) + 1) if axis.isdigit() else axis) for axis in layout)


def _padded(spec: ConvSpec) -> list[tuple[int, int]]:
    """What the other axes are padded with in the same step, so that one copy does it all; not where it crops or they dilate."""
    axes = zip(spec.padding[1:], spec.lhs_dilation[1:], strict=True)
    return [pair if min(pair) >= 0 and dilation == 1 else (0, 0) for pair, dilation in axes]


def _with_neighbours(spec: ConvSpec, lhs: Array, count: int) -> Array:
    """The input in blocks, each with the rows that it needs of the neighbours, zeros beyond the ends."""
    axes, (first, last) = _with_blocks(spec.lhs_layout).replace("g", ""), _reach(spec, count)
    axis, size = axes.index("0"), spec.in_size[0] // count
    lhs = lhs.reshape(*lhs.shape[:axis], count, size, *lhs.shape[axis + 1 :])

    def rows(start: int, stop: int, move: int) -> Array:
        """Some rows of every block, in the place of its neighbour if they are to move."""
        part = lax.slice_in_dim(lhs, start, stop, axis=axis + 1)
        return widen(part, axes, s0=(move, -move), **{f"s{i}": pair for i, pair in enumerate(_padded(spec), 2)})

    parts = [rows(max(first, 0), min(last + 1, size), 0)]
    if first < 0:
        parts.insert(0, rows(size + first, size, 1))
    if last >= size:
        parts.append(rows(0, last + 1 - size, -1))
    return lax.concatenate(parts, axis + 1)
