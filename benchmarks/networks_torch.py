"""The other end of `benchmarks.networks`: the same Keras model on the PyTorch backend (KERAS_BACKEND=torch)."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import torch

from benchmarks.networks import build, flat, images
from benchmarks.worker import sample, serve

_state: dict[str, Any] = {}  # the one model, its images and labels


def prepare(name: str, batch: int, size: int, weights: str) -> None:
    """Builds a network with the given weights."""
    torch.set_num_threads(os.cpu_count() or 1)
    keras.backend.clear_session()
    model = build(name, size)
    with np.load(weights) as arrays:
        model.set_weights([arrays[key] for key in arrays.files])
    x, labels = images(batch, size)
    _state.update(model=model, x=torch.from_numpy(x), labels=torch.from_numpy(labels))


def run(mode: str, path: str) -> None:
    """Runs once and writes the values of the result to a file."""
    np.save(path, flat([tensor.detach().numpy() for tensor in _call(mode)]))


def measure(mode: str, seconds: float) -> list[float]:
    """Times a mode for so many seconds."""
    return sample(lambda: _call(mode), seconds)


def _call(mode: str) -> list[torch.Tensor]:
    model, x, labels = _state["model"], _state["x"], _state["labels"]
    if mode == "inference":
        with torch.no_grad():
            return [model(x, training=False)]
    loss = torch.nn.functional.cross_entropy(model(x, training=True), labels)
    return list(torch.autograd.grad(loss, [v.value for v in model.trainable_variables]))


if __name__ == "__main__":
    serve({"prepare": prepare, "run": run, "sample": measure})
