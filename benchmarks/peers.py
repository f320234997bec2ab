"""PyTorch in this process, and MXNet in an interpreter of its own (its last release needs Python 3.8)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.candidates import INNER, ON_GPU, Candidate, Operands
from benchmarks.shapes import Row
from benchmarks.timing import sampler
from benchmarks.worker import Worker

torch.set_num_threads(os.cpu_count() or 1)
torch.set_grad_enabled(False)
_DEVICE = torch.device("cuda" if ON_GPU and torch.cuda.is_available() else "cpu")


def torch_candidate(row: Row, mode: str, operands: Operands, channels_last: bool = False) -> Candidate:
    """PyTorch's eager operator; each gradient is computed alone.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      operands: sets of input, kernel and cotangent.
      channels_last: keep the operands of a channel-first row in PyTorch's channels_last memory format.

    Returns:
      The candidate.

    Raises:
      NotImplementedError: PyTorch has no convolution of this dtype or with these paddings.
    """
    if row.dtype == "int8":
        raise NotImplementedError("no int8 convolution outside of quantized modules")
    if channels_last and (row.channel_last or row.ndim == 1):
        raise NotImplementedError("nothing to change")
    torch.backends.cudnn.allow_tf32 = row.dtype == "tf32"
    last = row.channel_last or channels_last
    sets = [(_tensor(row, x, last), _tensor(row, w, last, kernel=True), _tensor(row, ct, last)) for x, w, ct in operands]
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

    return Candidate(sampler(call, wait, sets, INNER), result)


def torch_candidate_2d(row: Row, mode: str, operands: Operands) -> Candidate:
    """PyTorch again, with a 1-D channel-last row written as a 2-D one of height 1, which is up to 15 times faster there.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      operands: sets of input, kernel and cotangent.

    Returns:
      The candidate.

    Raises:
      NotImplementedError: the row has more axes or another layout.
    """
    if row.layout != "NWC":
        raise NotImplementedError("only for NWC")
    changes: dict[str, Any] = {name: (1, *getattr(row, name)) for name in ("size", "kernel", "stride", "dilation")}
    changes |= {"padding": ((0, 0), *row.padding), "output_padding": (0, *row.output_padding), "layout": "NHWC"}
    expanded = [(np.expand_dims(x, -3), np.expand_dims(w, -4), np.expand_dims(ct, -3)) for x, w, ct in operands]
    candidate = torch_candidate(dataclasses.replace(row, **changes), mode, expanded)
    return dataclasses.replace(candidate, result=lambda: candidate.result().squeeze(-4 if mode == "dw" else -3))


def _tensor(row: Row, array: np.ndarray, channels_last: bool, kernel: bool = False) -> torch.Tensor:
    """A tensor of axes (…, N, C, *s) or (…, O, C/G, *k), whose memory is in the order that is asked for."""
    if row.channel_last:
        lead = array.ndim - row.ndim - 2
        array = np.moveaxis(array, (-1, -2), (lead, lead + 1)) if kernel else np.moveaxis(array, -1, lead + 1)
    dtype = torch.float32 if row.dtype == "tf32" else getattr(torch, row.dtype)
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(_DEVICE, dtype)
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


class MXNet:
    """MXNet 1.x in a process of its own, which computes and measures one row at a time when asked.

    Args:
      python: an interpreter that can import mxnet.
    """

    def __init__(self, python: str):
        self._worker = Worker(python, "benchmarks.mxnet_worker")
        self._folder = tempfile.TemporaryDirectory()
        self.version = self._worker.ask("version")

    def candidate(self, row: Row, mode: str, operands: Operands) -> Candidate:
        """MXNet's symbolic executor with a plain Convolution or Deconvolution.

        Args:
          row: the layer.
          mode: `fwd`, `dx` or `dw`.
          operands: sets of input, kernel and cotangent, of which the first is used.

        Returns:
          The candidate.

        Raises:
          NotImplementedError: MXNet has no such convolution.
        """
        if row.channel_last or row.dtype != "float32" or row.form not in ("conv", "transpose"):
            raise NotImplementedError("MXNet computes channel-first float32 convolutions on a CPU")
        paths = [str(pathlib.Path(self._folder.name, f"{name}.npy")) for name in ("x", "w", "ct", "out")]
        for path, array in zip(paths, operands[0], strict=False):
            np.save(path, array.astype(np.float32))
        self._worker.ask("prepare", mode=mode, row=dataclasses.asdict(row), out_size=row.out_size, paths=paths)

        def result() -> np.ndarray:
            self._worker.ask("result", path=paths[-1])
            return np.load(paths[-1]).astype(np.float64)

        return Candidate(lambda seconds: self._worker.ask("sample", seconds=seconds), result)

    def close(self) -> None:
        """Ends the process."""
        self._worker.close()
        self._folder.cleanup()
