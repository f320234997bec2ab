"""A convolution of a dilated input without the zeros between its elements: one convolution for each phase of the outputs.

Along one axis, output p meets element (p * stride + k * rhs_dilation - low) / lhs_dilation of the input, if that is an integer.
With P = lhs_dilation / gcd(stride, lhs_dilation) and K = lhs_dilation / gcd(rhs_dilation, lhs_dilation), the outputs r, r + P,
r + 2P, … meet every K-th kernel element only, and are an undilated convolution with those.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax import Array, lax

from jaxgroupconv.lowerings.calls import apart
from jaxgroupconv.lowerings.geometry import Lower, axes_of, crop, spatial_slices, take, widen
from jaxgroupconv.spec import ConvSpec

Phases = list[list[dict[str, Any]]]  # of each axis: fields of the undilated convolution, and the kernel elements that it meets


def by_phase(
    lower: Lower,
    spec: ConvSpec,
    lhs: Array,
    rhs: Array,
    columns_apart: bool = False,
    phases_apart: bool = False,
    pads: bool = False,
) -> Array:
    """Computes each phase, and interleaves the results. The group axes of the operands and of what `lower` gives are split off,
    or all are merged.

    Args:
      lower: computes an undilated convolution.
      spec: the convolution.
      lhs: its input.
      rhs: its kernel.
      columns_apart: whether minor columns are interleaved once all are computed. XLA would compute each where it is stored, one
        by one, and not in vectors; but that takes one pass over the result less.
      phases_apart: whether each phase is a call of its own: XLA computes one after the other, in the same memory.
      pads: whether `lower` pads at no cost; else all phases read one padded copy.
    """
    padded, lhs, phases = _padded(spec, lhs, pads)
    axes, parts = axes_of(rhs, spec.rhs_layout), []

    def computing(combination: Sequence[dict[str, Any]]) -> Callable[[Array, Array], Array]:
        taps = {f"s{axis}": slice(phase["first"], None, phase["every"]) for axis, phase in enumerate(combination)}
        names = ("strides", "padding", "rhs_dilation", "window")
        changes = {name: tuple(phase[name] for phase in combination) for name in names}
        part = dataclasses.replace(padded, lhs_dilation=(1,) * spec.ndim, **changes)

        def phase(lhs: Array, rhs: Array) -> Array:
            return lower(*crop(part, lhs), take(rhs, axes, **taps))

        return apart(phase) if phases_apart else phase

    for combination in itertools.product(*phases):
        missed = (_missed(phase, size) for phase, size in zip(combination, padded.in_size, strict=True))
        parts.append(None if any(missed) else computing(combination)(lhs, rhs))
    axes = spec.out_layout if "g" in axes else spec.out_layout.replace("g", "")
    sizes = spec.sizes([axis_phases[0]["count"] for axis_phases in phases])
    shape = [spec.groups * spec.out_channels if axis == "o" and "g" not in axes else sizes[axis] for axis in axes]
    dtype = next((part.dtype for part in parts if part is not None), spec.out_dtype)
    parts = [lax.full(shape, 0, dtype) if part is None else part for part in parts]
    return _interleave(spec, parts, phases, axes, columns_apart)


def _padded(spec: ConvSpec, lhs: Array, pads: bool) -> tuple[ConvSpec, Array, Phases]:
    """The phases of each axis, and one padded input for all of them: each takes a part of it (its padding is not positive).

    Unless they pad themselves, or the input is smaller than a kernel, with which it is better exchanged.
    """
    phases, edges, size = [list(_axis_phases(spec, axis)) for axis in range(spec.ndim)], {}, []
    if pads or any(phase["window"] > size for size, axis in zip(spec.in_size, phases, strict=True) for phase in axis):
        return spec, lhs, phases
    for axis, axis_phases in enumerate(phases):
        pairs = [phase["padding"] for phase in axis_phases if phase["window"]]
        low, high = (max(0, *side) for side in zip((0, 0), *pairs, strict=True))
        for phase in axis_phases:
            phase["padding"] = phase["padding"][0] - low, phase["padding"][1] - high
        edges[f"s{axis}"] = low, high
        size.append(low + spec.in_size[axis] + high)
    lhs = widen(lhs, axes_of(lhs, spec.lhs_layout), **edges)
    return dataclasses.replace(spec, in_size=tuple(size)), lhs, phases


def _missed(phase: dict[str, Any], size: int) -> bool:
    """Whether a phase meets no element of the kernel, or none of the input, which would be cropped away."""
    return not phase["window"] or sum(max(0, -side) for side in phase["padding"]) >= size


def _axis_phases(spec: ConvSpec, axis: int) -> Iterator[dict[str, Any]]:
    stride, dilation, rhs_dilation = spec.strides[axis], spec.lhs_dilation[axis], spec.rhs_dilation[axis]
    size, window, low = spec.in_size[axis], spec.window[axis], spec.padding[axis][0]
    period, every = dilation // math.gcd(stride, dilation), dilation // math.gcd(rhs_dilation, dilation)
    count = -(-spec.out_size[axis] // period)
    for r in range(period):
        first = next((k for k in range(every) if (r * stride + k * rhs_dilation - low) % dilation == 0), window)
        taps = len(range(first, window, every))
        step, reach = period * stride // dilation, every * rhs_dilation // dilation
        start = (r * stride + first * rhs_dilation - low) // dilation
        high = start + (count - 1) * step + (taps - 1) * reach + 1 - size
        yield dict(first=first, every=every, window=taps, strides=step, rhs_dilation=reach, padding=(-start, high), count=count)


def _interleave(spec: ConvSpec, parts: list[Array], phases: Phases, axes: str, columns_apart: bool) -> Array:
    """Merges the phases of one axis after the other, last axis first."""

    def innermost(stack: Array) -> Array:
        return lax.transpose(stack, [*range(1, stack.ndim), 0])

    for axis in reversed(range(spec.ndim)):
        period, at = len(phases[axis]), axes.index(str(axis))
        if period > 1:
            shape = [size * period if i == at else size for i, size in enumerate(parts[0].shape)]
            moved = columns_apart and at == len(axes) - 1
            place = 0 if moved else at + 1
            parts = [lax.expand_dims(part, [place]) for part in parts]
            stacks = [lax.concatenate(parts[i : i + period], place) for i in range(0, len(parts), period)]
            stacks = list(map(apart(innermost), stacks)) if moved else stacks
            parts = [lax.reshape(stack, shape) for stack in stacks]
    [out] = parts
    uneven = any(len(some) > 2 and size % len(some) for some, size in zip(phases, spec.out_size, strict=True))
    if uneven and not axes.endswith(spec.spatial):
        out = lax.optimization_barrier(out)  # else XLA divides each position that is kept by the number of phases
    return take(out, axes, **spatial_slices((0,) * spec.ndim, spec.out_size, (1,) * spec.ndim))
