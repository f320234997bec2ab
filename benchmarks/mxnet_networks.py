"""The recorded MXNet networks, inference and training gradient, beside MXNet 1.9.1 itself.

    python -m benchmarks.mxnet_networks --mxnet /path/to/old/python

MXNet's last release needs an interpreter of its own: Python 3.8 to 3.11 with NumPy below 1.24. Both sides compute the same
checkpoint on the same input and must agree before a time is taken, gradients in float64 too; then they take turns. MXNet runs
its symbolic executor, as `Module` does, with its oneDNN operators, or, where those fail (they do on some networks), without;
JAX the jitted function of `mxnet.to_jax` in the layout that is faster in a trial. In inference both are bound to their
parameters: the executor holds them, and to JAX they are constants; in the training gradient they are arguments.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import machine, timing
from benchmarks.report import geometric_mean
from benchmarks.worker import Worker, sample
from jaxgroupconv import mxnet
from jaxgroupconv.mxnet.checkpoint import load_params
from jaxgroupconv.mxnet.network import LAYOUTS

ROOT = pathlib.Path(__file__).parents[1]
NETWORKS = ROOT / "tests" / "mxnet" / "data" / "networks"
MODES = ("inference", "training gradient")


def main() -> None:
    """Measures all networks and writes benchmarks/results/mxnet_networks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mxnet", required=True, help="an interpreter that can import MXNet 1.9.1")
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time for each network and mode")
    parser.add_argument("--rounds", type=int, default=6, help="turns that each side takes in it")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results" / "mxnet_networks.json")
    options = parser.parse_args()
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # or its threads go on spinning in JAX's turns
    module = "benchmarks.mxnet_networks_worker"
    workers = {
        "oneDNN": Worker(options.mxnet, module, **environment),
        "plain": Worker(options.mxnet, module, MXNET_MKLDNN_ENABLED="0", **environment),
    }
    names = options.only or sorted(path.name for path in NETWORKS.iterdir())
    head = machine.describe()
    head["versions"]["mxnet"] = workers["plain"].ask("version")
    measurements = []
    for mode in options.modes:
        for name in names:
            try:
                measurements.append(_measure(workers, name, mode, options.seconds, options.rounds))
            except AssertionError as error:  # no agreement, no time
                head.setdefault("refused", []).append(f"{mode}: {error}")
                print(head["refused"][-1], flush=True)
                continue
            print(_line(measurements[-1]), flush=True)
            head["load"] = os.getloadavg()[0]
            head["geometric mean speedup"] = {
                kind: {mode: _geometric_mean(measurements, mode, depthwise) for mode in options.modes}
                for kind, depthwise in (("all networks", False), ("with depthwise convolutions", True))
            }
            timing.write(options.out, head, measurements)
    for worker in workers.values():
        worker.close()
    print(json.dumps(head["geometric mean speedup"], indent=1))


def _measure(workers: dict[str, Worker], name: str, mode: str, seconds: float, rounds: int) -> dict[str, Any]:
    folder = NETWORKS / name
    meta = json.loads((folder / "meta.json").read_text())
    symbol = mxnet.sym.load(folder / "symbol.json")
    parameters = load_params(folder / f"{name}-0000.params")
    with np.load(folder / "io.npz") as io:
        arrays = {key.removeprefix("in/"): x for key, x in io.items() if key.startswith("in/")}
    heads = [np.random.default_rng(0).standard_normal(shape).astype("f") for shape in meta["out_shapes"]]
    train = mode == "training gradient"
    # What Dropout drops differs from run to run: nothing behind it can be compared.
    ops = (layer.heads[0][0].op for layer in symbol.get_internals())
    comparable = not train or not any(op and op.name == "Dropout" for op in ops)

    def compiled(dtype: str, layout: str, **options: Any) -> Callable[[], Any]:
        args, aux, inputs = ({k: jax.numpy.asarray(x, dtype) for k, x in group.items()} for group in (*parameters, arrays))
        variables, apply = mxnet.to_jax(symbol, args, aux, layout=layout)

        def inference(variables, inputs):
            return apply(variables, inputs)[0]

        def gradient(variables, inputs):
            def outputs(params):
                return apply({**variables, "params": params}, inputs, train=True, rng=jax.random.key(0))

            out, pull, aux = jax.vjp(outputs, variables["params"], has_aux=True)
            return out, pull([jax.numpy.asarray(head, dtype) for head in heads])[0], aux

        function, arguments = (gradient, (variables, inputs)) if train else (functools.partial(inference, variables), (inputs,))
        return functools.partial(jax.jit(function, compiler_options=options).lower(*arguments).compile(), *arguments)

    def blocking(function: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(function())

    def trial(layout: str) -> float:
        sample(calls[layout], seconds / 20)  # the first calls do not count
        return statistics.median(sample(calls[layout], seconds / 20))

    calls = {layout: blocking(compiled("float32", layout)) for layout in LAYOUTS}
    layout = min(LAYOUTS, key=trial)
    call = calls[layout]
    errors = {}
    with tempfile.TemporaryDirectory() as scratch:
        for i, head in enumerate(heads):
            np.save(f"{scratch}/head{i}.npy", head)
        bound = {"folder": str(folder), "heads": scratch, "train": train}
        wide = {}
        if train and comparable:
            workers["plain"].ask("prepare", **bound, dtype="float64")
            wide = _result(workers["plain"], scratch)
        operators = _prepare(workers, seconds / 10, **bound)
        worker = workers[operators]
        theirs, ours = _result(worker, scratch), call()
        for i, out in enumerate((ours[0] if train else ours) if comparable else ()):
            _check(np.asarray(out), theirs[f"out{i}"], name)
        if wide:
            with jax.enable_x64(True):
                exact = _gradients(compiled("float64", layout, xla_backend_optimization_level=0)()[1], layout)
            others = {"jaxgroupconv": _gradients(ours[1], layout), "mxnet": theirs, "mxnet float64": wide}
            errors = _check_gradients(exact, others, name)
    # Neither side's first calls count.
    sample(call, seconds / 10)
    samplers = {
        "jaxgroupconv": lambda share: sample(call, share),
        "mxnet": lambda share: worker.ask("sample", seconds=share),
    }
    times = timing.alternate(samplers, dict.fromkeys(samplers, 0.0), seconds=seconds, rounds=rounds)
    depthwise = any(
        node["op"] == "Convolution" and 1 < int(node["attrs"].get("num_group", "1")) == int(node["attrs"]["num_filter"])
        for node in json.loads(symbol.tojson())["nodes"]
    )
    speedup = times["mxnet"]["median_s"] / times["jaxgroupconv"]["median_s"]
    shape = list(arrays["data"].shape)
    about = {"network": name, "mode": mode, "shape": shape, "depthwise": depthwise, "layout": layout}
    about["mxnet operators"] = operators
    return about | {"speedup": round(speedup, 3), "times": times} | ({"gradient errors": errors} if errors else {})


def _prepare(workers: dict[str, Worker], seconds: float, **arguments: Any) -> str:
    """Binds the network and runs it for a while; the name of the first worker that can."""
    for name, worker in workers.items():
        try:
            worker.ask("prepare", **arguments)
            worker.ask("sample", seconds=seconds)
            return name
        except RuntimeError as error:
            failure = error
    raise failure


def _result(worker: Worker, scratch: str) -> dict[str, np.ndarray]:
    worker.ask("result", path=f"{scratch}/result.npz")
    with np.load(f"{scratch}/result.npz") as arrays:
        return dict(arrays)


def _gradients(grads: dict[str, jax.Array], layout: str) -> dict[str, np.ndarray]:
    """Ours under MXNet's names and in its layout."""
    order = (3, 2, 0, 1) if layout == "channel-last" else (0, 1, 2, 3)
    return {f"grad/{key}": np.transpose(g, order) if g.ndim == 4 else np.asarray(g) for key, g in grads.items()}


def _check_gradients(exact: dict[str, np.ndarray], others: dict[str, dict[str, np.ndarray]], name: str) -> dict[str, float]:
    """Checks the gradients of both sides against ours in float64.

    In float32 alone the two cannot be compared: BatchNorm over the handful of values of a small map divides by deviations near
    zero, and both sides can be percents away from the truth. So MXNet has to agree in float64, or, where its operators for
    float64 are wrong (PReLU's gradient of gamma, by 0.7), in float32 to a part in a hundred; and float32 may cost us up to
    four times what it costs MXNet.

    Args:
      exact: ours in float64.
      others: `jaxgroupconv` and `mxnet` in float32, and `mxnet float64`.
      name: the network, for the message.

    Returns:
      For each of the others how far it is from float64, as a part of it, all parameters together.
    """
    floor = 1e-3 * max(np.abs(want).max() for want in exact.values())  # some gradients are zero but for rounding

    def far(side: str, key: str) -> float:
        return float(np.abs(others[side][key].ravel() - exact[key].ravel()).max() / max(np.abs(exact[key]).max(), floor))

    if strangers := [key for key in exact if far("mxnet float64", key) > 1e-3 and far("mxnet", key) > 1e-2]:
        raise AssertionError(f"{name}: MXNet has other gradients of {', '.join(strangers)}")

    def flat(grads: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([grads[key].ravel() for key in exact]).astype("d")

    want = flat(exact)
    errors = {side: float(np.linalg.norm(flat(grads) - want) / np.linalg.norm(want)) for side, grads in others.items()}
    if not errors["jaxgroupconv"] <= max(4 * errors["mxnet"], 1e-3):
        raise AssertionError(f"{name}: gradients in float32 are away from those in float64 by parts of {errors}")
    return {side: float(f"{error:.1e}") for side, error in errors.items()}


def _check(ours: np.ndarray, theirs: np.ndarray, what: str, share: float = 2e-3) -> None:
    tolerance = share * max(np.abs(theirs).max(), 1e-3) + 2e-4
    if not np.abs(ours - theirs).max() <= tolerance:
        raise AssertionError(f"{what}: differs by {np.abs(ours - theirs).max()}, and no more than {tolerance} is allowed")


def _geometric_mean(measurements: list[dict[str, Any]], mode: str, depthwise: bool) -> dict[str, float]:
    """Over all networks; and over those alone that MXNet runs with its fast operators, since the others may flatter us."""
    counted = [m for m in measurements if m["mode"] == mode and (m["depthwise"] or not depthwise)]
    fast = [m for m in counted if m["mxnet operators"] == "oneDNN"]
    return {
        name: round(geometric_mean(m["speedup"] for m in some), 3)
        for name, some in (("any operators", counted), ("oneDNN", fast))
    }


def _line(m: dict[str, Any]) -> str:
    ours, theirs = (1e3 * m["times"][side]["median_s"] for side in ("jaxgroupconv", "mxnet"))
    columns = f"{ours:8.2f} ms, MXNet {m['mxnet operators']} {theirs:8.2f} ms: {m['speedup']:6.2f} times as fast"
    return f"{m['network']:<18} {m['mode']:<18} {columns}"


if __name__ == "__main__":
    main()
