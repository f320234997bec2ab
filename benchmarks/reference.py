"""What a row should compute, in NumPy float64: neither lax nor PyTorch, which are among the candidates."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.shapes import Row


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
