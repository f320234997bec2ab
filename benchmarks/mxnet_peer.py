"""MXNet, in an interpreter of its own, since its last release needs Python 3.8."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np

from benchmarks.candidates import Candidate
from benchmarks.row import Row
from benchmarks.worker import Worker


class MXNet:
    """MXNet 1.x in a process of its own, which computes and measures one row at a time when asked.

    Args:
      python: an interpreter that can import mxnet.
    """

    def __init__(self, python: str):
        self._worker = Worker(python, "benchmarks.mxnet_worker")
        self._folder = tempfile.TemporaryDirectory()
        self.version = self._worker.ask("version")

    def candidate(self, row: Row, mode: str, copies: int) -> Candidate:
        """MXNet's symbolic executor with a plain Convolution or Deconvolution.

        Args:
          row: the layer.
          mode: `fwd`, `dx` or `dw`.
          copies: of the operands; there is one.

        Returns:
          The candidate.

        Raises:
          NotImplementedError: MXNet has no such convolution.
        """
        if row.channel_last or row.dtype != "float32" or row.form not in ("conv", "transpose"):
            raise NotImplementedError("MXNet computes channel-first float32 convolutions on a CPU")
        paths = [str(pathlib.Path(self._folder.name, f"{name}.npy")) for name in ("x", "w", "ct", "out")]
        for path, array in zip(paths, row.operands(), strict=False):
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
