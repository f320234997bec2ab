"""The recorded MXNet networks, inference and training gradient, beside MXNet 1.9.1 itself.

    python -m benchmarks.mxnet_networks --mxnet /path/to/old/python

MXNet's last release needs an interpreter of its own: Python 3.8 to 3.11 with NumPy below 1.24. Both sides compute the same
checkpoint on the same input and must agree before a time is taken; then they take turns. MXNet runs its symbolic executor, as
`Module` does, with its oneDNN operators, or, where those fail (they do on some networks), without; JAX the jitted function of
`mxnet.to_jax(..., layout="channel-last")`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import machine, timing
from benchmarks.worker import Worker, sample
from jaxgroupconv import mxnet
from jaxgroupconv.mxnet.checkpoint import load_params

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
                for kind, depthwise in (("networks measured", False), ("with depthwise convolutions", True))
            }
            timing.write(options.out, head, measurements)
    for worker in workers.values():
        worker.close()
    print(json.dumps(head["geometric mean speedup"], indent=1))


def _measure(workers: dict[str, Worker], name: str, mode: str, seconds: float, rounds: int) -> dict[str, Any]:
    folder = NETWORKS / name
    meta = json.loads((folder / "meta.json").read_text())
    symbol = mxnet.sym.load(folder / "symbol.json")
    variables, apply = mxnet.to_jax(symbol, *load_params(folder / f"{name}-0000.params"), layout="channel-last")
    with np.load(folder / "io.npz") as io:
        inputs = {key.removeprefix("in/"): jax.numpy.asarray(x) for key, x in io.items() if key.startswith("in/")}
    heads = [np.random.default_rng(0).standard_normal(shape).astype("f") for shape in meta["out_shapes"]]
    train = mode == "training gradient"

    def inference(variables, inputs):
        return apply(variables, inputs)[0]

    def gradient(variables, inputs):
        def outputs(params):
            return apply({**variables, "params": params}, inputs, train=True, rng=jax.random.key(0))

        out, pull, aux = jax.vjp(outputs, variables["params"], has_aux=True)
        return out, pull([jax.numpy.asarray(head) for head in heads])[0], aux

    compiled = jax.jit(gradient if train else inference).lower(variables, inputs).compile()

    def call() -> Any:
        return jax.block_until_ready(compiled(variables, inputs))

    with tempfile.TemporaryDirectory() as scratch:
        for i, head in enumerate(heads):
            np.save(f"{scratch}/head{i}.npy", head)
        operators = _prepare(workers, seconds / 10, folder=str(folder), heads=scratch, train=train)
        worker = workers[operators]
        worker.ask("result", path=f"{scratch}/result.npz")
        with np.load(f"{scratch}/result.npz") as theirs:
            ours = call()
            ops = (layer.heads[0][0].op for layer in symbol.get_internals())
            # What Dropout drops differs from run to run: nothing behind it can be compared.
            comparable = not train or not any(op and op.name == "Dropout" for op in ops)
            for i, out in enumerate((ours[0] if train else ours) if comparable else ()):
                _check(np.asarray(out), theirs[f"out{i}"], name)
            if train and comparable:
                for key, grad in ours[1].items():
                    want = theirs[f"grad/{key}"]
                    grad = np.asarray(grad).reshape(want.shape) if grad.ndim != 4 else np.transpose(grad, (3, 2, 0, 1))
                    # Normalizing over a handful of values, as the small maps do, leaves float32 gradients a few percent apart.
                    _check(grad, want, f"{name}: gradient of {key}", 0.05)
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
    shape = list(inputs["data"].shape)
    about = {"network": name, "mode": mode, "shape": shape, "depthwise": depthwise, "mxnet operators": operators}
    return about | {"speedup": round(speedup, 3), "times": times}


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


def _check(ours: np.ndarray, theirs: np.ndarray, what: str, share: float = 2e-3) -> None:
    tolerance = share * max(np.abs(theirs).max(), 1e-3) + 2e-4
    if not np.abs(ours - theirs).max() <= tolerance:
        raise AssertionError(f"{what}: differs by {np.abs(ours - theirs).max()}, and no more than {tolerance} is allowed")


def _geometric_mean(measurements: list[dict[str, Any]], mode: str, depthwise: bool) -> float:
    """Over the networks that MXNet runs with its fast operators: the others would flatter us."""
    counted = [m for m in measurements if m["mode"] == mode and m["mxnet operators"] == "oneDNN"]
    logs = [math.log(m["speedup"]) for m in counted if m["depthwise"] or not depthwise]
    return round(math.exp(sum(logs) / len(logs)), 3) if logs else math.nan


def _line(m: dict[str, Any]) -> str:
    ours, theirs = (1e3 * m["times"][side]["median_s"] for side in ("jaxgroupconv", "mxnet"))
    columns = f"{ours:8.2f} ms, MXNet {m['mxnet operators']} {theirs:8.2f} ms: {m['speedup']:6.2f} times as fast"
    return f"{m['network']:<18} {m['mode']:<18} {columns}"


if __name__ == "__main__":
    main()
