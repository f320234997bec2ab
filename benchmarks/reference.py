"""What a row should compute, in NumPy float64: neither lax nor PyTorch, which are among the candidates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.row import Row

Operands = tuple[np.ndarray, np.ndarray, np.ndarray]


def expected(row: Row, mode: str, rounded: Callable[[np.ndarray], np.ndarray], flops: float) -> tuple[Any, np.ndarray]:
    """What to compare a result with: all of it, or of a large one the first, middle and last items or groups.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      rounded: rounds operands to the row's dtype.
      flops: the operations that are affordable.

    Returns:
      An index into the result, and the float64 values that should be there.
    """
    if row.flops <= flops or row.form not in ("conv", "transpose"):
        return ..., reference(row, mode, *map(rounded, row.operands()))
    x, w, ct = row.operands()
    if mode != "dw":  # items are independent of each other
        items = _some(row.batch)
        part = dataclasses.replace(row, batch=len(items))
        return np.array(items), reference(part, mode, rounded(x[items]), rounded(w), rounded(ct[items]))
    groups = _some(row.groups)
    sizes = {name: getattr(row, name) // row.groups * len(groups) for name in ("channels", "features")}
    part = dataclasses.replace(row, groups=len(groups), **sizes)
    channels, major = (-1, -1) if row.channel_last else (1, 0)

    def at(count: int) -> np.ndarray:
        return np.arange(count).reshape(row.groups, -1)[groups].ravel()

    x, ct = np.take(x, at(row.channels), channels), np.take(ct, at(row.features), channels)
    index = at(row.channels if row.form == "transpose" else row.features)
    values = reference(part, mode, rounded(x), rounded(np.take(w, index, major)), rounded(ct))
    return (..., index) if row.channel_last else index, values


def _some(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})


def reference(row: Row, mode: str, x: np.ndarray, w: np.ndarray, ct: np.ndarray) -> np.ndarray:
    """The result of a mode.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      x: the input, in the row's layout.
      w: the kernel.
      ct: the cotangent of the result.

    Returns:
      A float64 array of shape `row.result_shape(mode)`.
    """
    if row.form == "ensemble":
        return np.stack([_one(row, mode, *member) for member in zip(x, w, ct, strict=True)])
    if row.form == "per_example":
        return np.stack([_one(row, mode, x[i : i + 1], w, ct[i : i + 1]) for i in range(row.batch)])
    return _one(row, mode, x, w, ct)


def _one(row: Row, mode: str, x: np.ndarray, w: np.ndarray, ct: np.ndarray) -> np.ndarray:
    if row.channel_last:
        x, w, ct = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1)), np.moveaxis(ct, -1, 1)
    if row.form == "transpose":  # a transposed convolution maps the result of a convolution to its input
        mode, x, ct = {"fwd": "dx", "dx": "fwd", "dw": "dw"}[mode], ct, x
    out = _accumulate(row, mode, x, w, ct)
    if not row.channel_last:
        return out
    return np.moveaxis(out, (0, 1), (-1, -2)) if mode == "dw" else np.moveaxis(out, 1, -1)


def _accumulate(row: Row, mode: str, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Computes one of out, x and w from the other two, channel-first, by one batched product for each kernel element.

    out[n, g, o, p] = sum of w[g, o, c, k] x[n, g, c, p * stride + k * dilation]; the two gradients have the same products.
    """
    groups, positions = row.groups, out.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), *row.padding))
    x = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    out = out.reshape(len(x), groups, w.shape[1], -1)
    result = np.zeros_like({"fwd": out, "dx": x, "dw": w}[mode])
    for k in itertools.product(*map(range, row.kernel)):
        starts = [i * dilation for i, dilation in zip(k, row.dilation, strict=True)]
        window = [slice(a, a + (p - 1) * s + 1, s) for a, p, s in zip(starts, positions, row.stride, strict=True)]
        at, tap = (..., *window), (slice(None), slice(None), slice(None), *k)
        patch = x[at].reshape(*x.shape[:3], -1)
        if mode == "fwd":
            result += w[tap] @ patch
        elif mode == "dx":
            result[at] += (w[tap].swapaxes(1, 2) @ out).reshape(*x.shape[:3], *positions)
        else:
            result[tap] = (out @ patch.swapaxes(2, 3)).sum(0)
    if mode == "fwd":
        return result.reshape(len(x), -1, *positions)
    if mode == "dw":
        return result.reshape(-1, *w.shape[2:])
    inside = (..., *(slice(lo, s - hi) for s, (lo, hi) in zip(x.shape[3:], row.padding, strict=True)))
    return result.reshape(len(x), -1, *x.shape[3:])[inside]
