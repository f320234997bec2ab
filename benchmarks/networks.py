"""Whole networks of keras.applications, and ResNeXt-50: training gradient and inference, run time and compile time.

    python -m benchmarks.networks
    python -m benchmarks.networks --only ConvNeXt --rounds 2

The same Keras model runs as a JAX program under `jgc.enable()`, as that program without it, and on Keras's PyTorch backend in a
second process that has the same weights, by turns.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before keras is imported; the worker's is torch

import keras  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.timing import alternate, command, sampler, write  # noqa: E402
from benchmarks.worker import Worker  # noqa: E402

NETWORKS = ("MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "Xception", "ResNeXt50-32x4d")
MODES = ("inference", "gradient")  # in this order: training moves the statistics of PyTorch's model
RESULTS = pathlib.Path(__file__).with_name("results")
CLASSES = 1000
SWITCHES = {"jgc": "enable", "lax": "disable"}
# How often a program is compiled from nothing, by turns, of which the fastest counts, and for how long that goes on. The first
# time, Keras and JAX load what they need.
COMPILED, COMPILING = (4, 16), 30.0
# Of the norm of all values. Rounding that moves one activation across a ReLU's kink changes a gradient by a part in a hundred.
TOLERANCES = {"inference": 1e-3, "gradient": 5e-2}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="networks whose name matches")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=96, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="for all candidates of a network and mode together")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--out", type=pathlib.Path, help="the result file")
    args = parser.parse_args()

    from benchmarks import machine

    torch_worker = None if args.no_torch else Worker(sys.executable, "benchmarks.networks_torch", KERAS_BACKEND="torch")
    head = {"machine": machine.describe(), "batch": args.batch, "size": args.size, "command": command()}
    path = args.out or RESULTS / f"networks-{machine.name()}.json"
    measurements: list[dict[str, Any]] = []
    for name in (name for name in NETWORKS if re.search(args.only, name)):
        for measured in measure(name, args.batch, args.size, torch_worker, seconds=args.seconds, rounds=args.rounds):
            measurements.append(measured)
            write(path, head, measurements)
            print(_line(measured), flush=True)
    if torch_worker:
        torch_worker.close()
    print(f"wrote {path}")


def measure(
    name: str, batch: int, size: int, torch_worker: Worker | None, *, seconds: float, rounds: int
) -> Sequence[dict[str, Any]]:
    """Compiles and times one network.

    Args:
      name: of NETWORKS.
      batch: images.
      size: their height and width.
      torch_worker: this module under Keras's PyTorch backend, or None.
      seconds: for all candidates of a mode together.
      rounds: how often each has its turn.

    Returns:
      A measurement for each mode.
    """
    model, (x, labels) = build(name, size), images(batch, size)
    stochastic = any("seed_generator" in v.path for v in model.non_trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        weights, out = pathlib.Path(folder, "weights.npz"), pathlib.Path(folder, "out.npy")
        np.savez(weights, *model.get_weights())
        if torch_worker:
            torch_worker.ask("prepare", name=name, batch=batch, size=size, weights=str(weights))
        measurements = []
        for mode in MODES:
            samplers, first, values = {}, {}, {}
            calls, results = _compiled(model, mode, x, labels)
            for candidate, call in calls.items():
                values[candidate] = flat(call())  # the first call touches all memory and starts threads: it does not count
                start = time.perf_counter()
                call()
                first[candidate] = time.perf_counter() - start
                samplers[candidate] = sampler(call, lambda _: None, [()])
            if torch_worker:
                torch_worker.ask("run", mode=mode, path=str(out))
                values["torch"], results["torch"] = np.load(out), {}
                first["torch"] = min(torch_worker.ask("sample", mode=mode, seconds=0.0))
                samplers["torch"] = functools.partial(_ask_torch, torch_worker, mode)
            for candidate, times in alternate(samplers, first, seconds=seconds, rounds=rounds).items():
                error = float(np.linalg.norm(values[candidate] - values["lax"]) / np.linalg.norm(values["lax"]))
                if candidate == "torch" and mode == "gradient" and stochastic:
                    results[candidate] |= {"right": True, "error": None}  # dropout draws other numbers there
                else:
                    results[candidate] |= {"right": error < TOLERANCES[mode], "error": error}
                results[candidate] |= times
            measurements.append({"key": name, "mode": mode, "parameters": model.count_params(), "results": results})
    keras.backend.clear_session()
    return measurements


def build(name: str, size: int) -> keras.Model:
    """A network with random weights that returns logits.

    Args:
      name: of NETWORKS.
      size: height and width of the images.

    Returns:
      The model; its layout is NHWC.
    """
    keras.utils.set_random_seed(0)
    if name == "ResNeXt50-32x4d":
        return _resnext50(size)
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None)


def _resnext50(size: int) -> keras.Model:
    """ResNeXt-50 32x4d (Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017)."""
    layers = keras.layers

    def conv(x: Any, features: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        x = layers.Conv2D(features, kernel, stride, padding="same", groups=groups, use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(conv(inputs, 64, 7, 2))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 128 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            y = layers.ReLU()(conv(x, width, 1))
            y = layers.ReLU()(conv(y, width, 3, stride, groups=32))
            y = conv(y, 2 * width, 1)
            x = layers.ReLU()(layers.Add()([y, conv(x, 2 * width, 1, stride) if block == 0 else x]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x), name="resnext50_32x4d")


def images(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels.

    Args:
      batch: how many.
      size: height and width.

    Returns:
      Images (batch, size, size, 3) and labels (batch,).
    """
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, size, size, 3), np.float32), rng.integers(0, CLASSES, batch)


def flat(arrays: Sequence[Any]) -> np.ndarray:
    """All values of a list of arrays in a row."""
    return np.concatenate([np.ravel(np.asarray(array)) for array in arrays])


def _compiled(
    model: keras.Model, mode: str, x: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Callable[[], Sequence[Any]]], dict[str, dict[str, Any]]]:
    """Compiles a mode by turns; for each candidate a function that runs it and waits, and compile time and temporary memory."""
    import jax
    import jax.numpy as jnp

    import jaxgroupconv as jgc

    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]

    def loss(trainable: list, state: list, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, state, *_ = model.stateless_call(trainable, state, x, training=True)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)), state

    def inference(trainable: list, state: list, x: jax.Array, labels: jax.Array) -> jax.Array:
        return model.stateless_call(trainable, state, x, training=False)[0]

    arguments = (trainable, state, jnp.asarray(x), jnp.asarray(labels, jnp.int32))
    program = jax.grad(loss, has_aux=True) if mode == "gradient" else inference
    compiled, facts = {}, {candidate: {"compile_s": float("inf")} for candidate in SWITCHES}
    begun, (least, most) = time.perf_counter(), COMPILED
    for turn in range(most):
        if turn >= least and time.perf_counter() - begun > COMPILING:
            break
        for candidate in SWITCHES if turn % 2 else reversed(SWITCHES):
            getattr(jgc, SWITCHES[candidate])()
            jax.clear_caches()
            gc.collect()
            start = time.perf_counter()
            lowered = jax.jit(program).lower(*arguments)
            traced = time.perf_counter() - start
            compiled[candidate] = lowered.compile()
            found = {"compile_s": time.perf_counter() - start, "trace_s": traced}
            facts[candidate] = min(facts[candidate], found, key=lambda facts: facts["compile_s"])
    for candidate, executable in compiled.items():
        facts[candidate]["temp_bytes"] = getattr(executable.memory_analysis(), "temp_size_in_bytes", 0)

    def call(executable: Any) -> Sequence[Any]:
        out = jax.block_until_ready(executable(*arguments))
        return out[0] if mode == "gradient" else [out]

    return {candidate: functools.partial(call, compiled[candidate]) for candidate in SWITCHES}, facts


def _ask_torch(worker: Worker, mode: str, seconds: float) -> list[float]:
    return worker.ask("sample", mode=mode, seconds=seconds)


def _line(m: dict[str, Any]) -> str:
    cells = [f"{name} {1e3 * r['min_s']:.1f} ms{'' if r['right'] else ' WRONG'} " for name, r in m["results"].items()]
    compile_s = " and ".join(f"{r['compile_s']:.1f}" for r in m["results"].values() if "compile_s" in r)
    return f"{m['key']} {m['mode']}: {', '.join(cells)}; compiled in {compile_s} s"


if __name__ == "__main__":
    main()
