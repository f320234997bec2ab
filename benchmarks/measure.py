"""The process that measures for `benchmarks.run`: one row and mode at a time, one candidate after the other.

It is a process of its own because a candidate may end it: a failed assertion in a driver, an illegal access in a kernel.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxgroupconv as jgc
from benchmarks import machine
from benchmarks.candidates import ON_GPU, Candidate, jax_candidate
from benchmarks.reference import expected
from benchmarks.row import Row
from benchmarks.timing import alternate, describe
from benchmarks.worker import serve

# Largest error, as a part of the largest value of the result: sums are long, so a few roundings more than one.
TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 1e-2, "int8": 0.0, "int8-int8": 0.0}
WINOGRAD = 1e-4  # the same for float32 on a GPU, where cuDNN may choose Winograd's algorithm
TOO_SLOW = 10.0  # seconds; a call that takes longer is not made again

_makers: dict[str, Callable[[Row, str, int], Candidate]] = {}
_now: dict[str, Any] = {}  # the row and mode that is measured, what it should be, and the candidates that are ready


def start(candidates: Sequence[str], lowerings: Sequence[str], mxnet: str | None) -> dict[str, Any]:
    """Prepares for measuring.

    Args:
      candidates: `jgc`, `lax`, `torch`, `mxnet`, or the name of one way to write one of them.
      lowerings: to measure alone besides, or `all` but `native`, which is lax.
      mxnet: an interpreter that can import MXNet, or None.

    Returns:
      The name for a result file, the machine, and the names of the candidates.
    """
    description = machine.describe()
    makers: dict[str, Callable[[Row, str, int], Candidate]] = {
        "jgc": functools.partial(jax_candidate, implementation="auto"),
        "lax": jax_candidate,
        "lax per group": functools.partial(jax_candidate, separate=True),
    }
    if importlib.util.find_spec("torch"):
        from benchmarks import peers

        makers |= {
            "torch": peers.torch_candidate,
            "torch as 2-d": peers.torch_candidate_2d,
            "torch channels_last": functools.partial(peers.torch_candidate, channels_last=True),
        }
    if mxnet:
        from benchmarks.mxnet_peer import MXNet

        process = MXNet(mxnet)
        makers["mxnet"], description["versions"]["mxnet"] = process.candidate, process.version
    for name, make in makers.items():
        family = name.split()[0] in candidates and (ON_GPU or name != "torch channels_last")
        if family or name in candidates:
            _makers[name] = make
    for name in [name for name in jgc.LOWERINGS if name != "native"] if list(lowerings) == ["all"] else lowerings:
        _makers[f"jgc:{name}"] = functools.partial(jax_candidate, implementation=name)
    return {"name": machine.name(), "machine": description, "candidates": list(_makers)}


def begin(row: dict[str, Any], mode: str, working_set: int | None, check_flops: float | None) -> dict[str, Any]:
    """Begins with a row and mode.

    Args:
      row: the layer, as JSON.
      mode: `fwd`, `dx` or `dw`.
      working_set: bytes that the operand sets fill together, one set at least; None for 256 MiB on a GPU, one set elsewhere.
      check_flops: operations up to which a result is checked whole; None for 1e8 on a GPU, no bound elsewhere.

    Returns:
      What is known of the row: its operations, bytes and result.
    """
    _now.clear()
    layer = Row.from_json(row)
    bytes_at_once = (1 << 28) * ON_GPU if working_set is None else working_set
    copies = max(1, min(512, -(-bytes_at_once // min(map(layer.bytes, layer.modes)))))
    flops = check_flops or (1e8 if ON_GPU else float("inf"))

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(jnp.dtype(layer.operand_dtype)).astype(np.float64)

    _now.update(row=layer, mode=mode, copies=copies, expected=expected(layer, mode, rounded, flops), ready={}, first={})
    return {"flops": layer.flops, "bytes": layer.bytes(mode), "result": list(layer.result_shape(mode)), "sets": copies}


def prepare(name: str) -> dict[str, Any]:
    """Compiles a candidate, runs it and checks its result.

    Args:
      name: of one of the candidates.

    Returns:
      What there is to say besides times; or `refused`, or `failed`, with the reason, and `ended` if nothing runs any more.
    """
    try:
        candidate = _makers[name](_now["row"], _now["mode"], _now["copies"])
        began = time.perf_counter()
        error = _error(candidate.result())
        spent = time.perf_counter() - began  # with what is done once, and the copy to the host
        _now["first"][name] = spent if spent > TOO_SLOW else candidate.sample(0.0)[0]
    except NotImplementedError as refusal:
        return {"refused": str(refusal)}
    except Exception as error:
        return {"failed": describe(error)} | ({} if machine.answers() else {"ended": True})
    _now["ready"][name] = candidate
    return candidate.facts | error


def times(names: Sequence[str], seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """Times candidates that are ready, by turns.

    Args:
      names: of the candidates.
      seconds: for all together, besides single calls that are slow.
      rounds: how often each has its turn.

    Returns:
      For each its times.
    """
    samplers = {name: _now["ready"][name].sample for name in names}
    return alternate(samplers, _now["first"], seconds=seconds, rounds=rounds)


def _error(out: np.ndarray) -> dict[str, Any]:
    """Whether a result is right, and its largest error as a part of the largest value that should be there."""
    row, (index, values) = _now["row"], _now["expected"]
    if out.shape != row.result_shape(_now["mode"]):
        return {"right": False, "error": f"shape {out.shape}"}
    if not np.isfinite(out).all():
        return {"right": False, "error": "not finite"}
    error = float(np.max(np.abs(out[index] - values)) / np.max(np.abs(values)))
    tolerance = WINOGRAD if ON_GPU and row.dtype == "float32" else TOLERANCES[row.dtype]
    return {"right": error <= tolerance, "error": error}


if __name__ == "__main__":
    serve({"start": start, "peaks": machine.peaks, "begin": begin, "prepare": prepare, "times": times})
