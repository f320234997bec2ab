"""PyTorch, in this process; on a GPU with cuDNN, which chooses by measuring."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.candidates import ON_GPU, QUEUE, Candidate
from benchmarks.row import Row
from benchmarks.timing import sampler

torch.set_num_threads(os.cpu_count() or 1)
torch.set_grad_enabled(False)
torch.backends.cudnn.benchmark = True  # at the first call, which is not timed
_DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def torch_candidate(row: Row, mode: str, copies: int, channels_last: bool = False) -> Candidate:
    """PyTorch's eager operator; each gradient is computed alone.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      copies: sets of operands to take in turn.
      channels_last: keep the operands of a channel-first row in PyTorch's channels_last memory format.

    Returns:
      The candidate.

    Raises:
      NotImplementedError: PyTorch has no convolution of this dtype or with these paddings, or no GPU where JAX has one.
    """
    if ON_GPU and not torch.cuda.is_available():
        raise NotImplementedError("this PyTorch sees no GPU")
    if row.dtype.startswith("int8"):
        raise NotImplementedError("PyTorch has no int8 convolution outside of quantized modules")
    if channels_last and (row.channel_last or row.ndim == 1):
        raise NotImplementedError("nothing to change")
    # Heeded when called: all candidates of a row have its dtype.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = row.dtype == "tf32"
    sets = _sets(row, copies, row.channel_last or channels_last)
    call = _program(row, mode)

    def result() -> np.ndarray:
        out = call(*sets[0]).double().cpu().numpy()
        if not row.channel_last:
            return out
        channel = out.ndim - row.ndim - 1
        return np.moveaxis(out, (channel - 1, channel), (-1, -2)) if mode == "dw" else np.moveaxis(out, channel, -1)

    def wait(_: torch.Tensor | None) -> None:
        if _DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return Candidate(sampler(call, wait, sets, QUEUE), result)


def torch_candidate_2d(row: Row, mode: str, copies: int) -> Candidate:
    """PyTorch again, with a 1-D channel-last row written as a 2-D one of height 1, which is up to 15 times faster there.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      copies: sets of operands to take in turn.

    Returns:
      The candidate.

    Raises:
      NotImplementedError: the row has more axes or another layout.
    """
    if row.layout != "NWC":
        raise NotImplementedError("only for NWC")
    changes: dict[str, Any] = {name: (1, *getattr(row, name)) for name in ("size", "kernel", "stride", "dilation")}
    changes |= {"padding": ((0, 0), *row.padding), "output_padding": (0, *row.output_padding), "layout": "NHWC"}
    candidate = torch_candidate(dataclasses.replace(row, **changes), mode, copies)  # its operands are the row's, reshaped
    return dataclasses.replace(candidate, result=lambda: candidate.result().squeeze(-4 if mode == "dw" else -3))


@functools.lru_cache(maxsize=2)  # the modes of a row share them
def _sets(row: Row, copies: int, channels_last: bool) -> list[tuple[torch.Tensor, ...]]:
    x, w, ct = row.operands()
    first = _tensor(row, x, channels_last), _tensor(row, w, channels_last, kernel=True), _tensor(row, ct, channels_last)
    return [first] + [tuple(map(torch.clone, first)) for _ in range(copies - 1)]


def _tensor(row: Row, array: np.ndarray, channels_last: bool, kernel: bool = False) -> torch.Tensor:
    """A tensor of axes (…, N, C, *s) or (…, O, C/G, *k), whose memory is in the order that is asked for."""
    if row.channel_last:
        lead = array.ndim - row.ndim - 2
        array = np.moveaxis(array, (-1, -2), (lead, lead + 1)) if kernel else np.moveaxis(array, -1, lead + 1)
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(_DEVICE, getattr(torch, row.operand_dtype), copy=True)
    if not channels_last:
        return tensor
    axis = tensor.ndim - row.ndim - 1
    return tensor.movedim(axis, -1).contiguous().movedim(-1, axis)


def _program(row: Row, mode: str) -> Callable[..., torch.Tensor]:
    """A function of input, kernel and cotangent."""
    pads = [max(pair) for pair in row.padding]
    extra = [pad - hi for pad, (_, hi) in zip(pads, row.padding, strict=True)]  # of the end of the result; causal
    if any(low != pad for pad, (low, _) in zip(pads, row.padding, strict=True)) or (any(extra) and max(row.stride) > 1):
        raise NotImplementedError("the padding is neither symmetric nor causal")
    settings = (row.stride, pads, row.dilation, row.form == "transpose", row.output_padding, row.groups)
    inside = (..., *(slice(s) for s in row.out_size))
    outside = [n for pad in reversed(extra) for n in (0, pad)]

    def one(x: torch.Tensor, w: torch.Tensor, ct: torch.Tensor) -> torch.Tensor:
        if mode == "fwd":
            out = torch.convolution(x, w, None, *settings)
            return out[inside] if any(extra) else out
        ct = torch.nn.functional.pad(ct, outside) if any(extra) else ct
        mask = [mode == "dx", mode == "dw", False]
        return torch.ops.aten.convolution_backward(ct, x, w, None, *settings, mask)[mode == "dw"]

    if row.form == "ensemble":
        return torch.func.vmap(one)
    if row.form == "per_example":
        return lambda x, w, ct: torch.func.vmap(one, (0, None, 0))(x[:, None], w, ct[:, None])
    return one
