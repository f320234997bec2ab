"""Compares grouped convolutions of this library, lax, PyTorch and MXNet, row by row, alternating, in one run.

    python -m benchmarks.run --mxnet /path/to/python3.8
    python -m benchmarks.run --only "dw7|mamba" --modes fwd,dw

Every candidate is checked against NumPy float64 before it is timed. Results go to benchmarks/results/ after each measurement.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm

import jaxgroupconv as jgc
from benchmarks import machine, peers
from benchmarks.candidates import ON_GPU, Candidate, jax_candidate
from benchmarks.reference import reference
from benchmarks.shapes import MODES, ROWS, Row
from benchmarks.timing import alternate, write

RESULTS = pathlib.Path(__file__).with_name("results")
# Largest error, as a part of the largest value of the result: sums are long, so a few roundings more than one.
TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 1e-2, "int8": 0.0}


def main() -> int:
    """Runs the command line; the exit status is 1 if this library computed a wrong result anywhere."""
    args = _arguments()
    rows = _rows(args)
    makers = _makers(args)
    path = args.out or RESULTS / f"{machine.name()}.json"
    old = json.loads(path.read_text())["measurements"] if args.resume and path.exists() else []
    head = {"machine": machine.describe(), "peaks": machine.peaks(), "command": sys.argv[1:]}
    if "mxnet" in makers:
        head["machine"]["versions"]["mxnet"] = args.mxnet.version
    done, wrong = {(m["key"], m["mode"]) for m in old}, []
    todo = [(row, mode) for row in rows for mode in args.modes if mode in row.modes and (row.key, mode) not in done]
    for row, mode in (bar := tqdm.tqdm(todo, unit="row", smoothing=0.1, disable=None)):
        bar.set_postfix_str(f"{row.key} {mode}")
        old.append(measure(row, mode, makers, seconds=args.seconds, rounds=args.rounds, working_set=args.working_set))
        write(path, head, old)
        bar.write(_line(old[-1]))
        wrong += [row.key for name, r in old[-1]["results"].items() if name == "jgc" and not r.get("right")]
    if args.mxnet:
        args.mxnet.close()
    print(f"wrote {path}" + (f"; WRONG or failed here: {wrong}" if wrong else ""))
    return 1 if wrong else 0


def measure(
    row: Row, mode: str, makers: dict[str, Callable[..., Candidate]], *, seconds: float, rounds: int, working_set: int
) -> dict[str, Any]:
    """Prepares, checks and times every candidate for one row and mode.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      makers: names, and functions of (row, mode, operands) that return a Candidate or raise NotImplementedError.
      seconds: time for all candidates together, besides checks and single calls that are slow.
      rounds: how often each has its turn.
      working_set: bytes that the operand sets fill together; one set at least.

    Returns:
      The measurement as it is written: the row, its operations and bytes, and for each candidate times in seconds.
    """
    copies = max(1, min(64, -(-working_set // row.bytes(mode))))
    operands = [row.operands(seed) for seed in range(copies)]
    expected = reference(row, mode, *_rounded(row, operands[0]))
    results, candidates, spent = {}, {}, {}
    for name, make in makers.items():
        try:
            candidate = make(row, mode, operands)
            start = time.perf_counter()
            out = candidate.result()
            spent[name] = time.perf_counter() - start
        except NotImplementedError as refusal:
            results[name] = {"refused": str(refusal)}
            continue
        except Exception as error:  # a candidate that breaks must not end an hour's run; the report lists it
            results[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        candidates[name] = candidate
        results[name] = candidate.facts | _error(row, out, expected)
    times = alternate({name: c.sample for name, c in candidates.items()}, spent, seconds=seconds, rounds=rounds)
    results = {name: result | times.get(name, {}) for name, result in results.items()}
    facts = {"flops": row.flops, "bytes": row.bytes(mode), "result": list(row.result_shape(mode))}
    return {"key": row.key, "mode": mode, "row": dataclasses.asdict(row), **facts, "results": results}


def _makers(args: argparse.Namespace) -> dict[str, Callable[..., Candidate]]:
    makers: dict[str, Callable[..., Candidate]] = {
        "jgc": functools.partial(jax_candidate, implementation="auto"),
        "lax": jax_candidate,
        "lax per group": functools.partial(jax_candidate, separate=True),
        "torch": peers.torch_candidate,
        "torch as 2-d": peers.torch_candidate_2d,
    }
    if ON_GPU:
        makers["torch channels_last"] = functools.partial(peers.torch_candidate, channels_last=True)
    if args.mxnet:
        makers["mxnet"] = args.mxnet.candidate
    makers = {name: make for name, make in makers.items() if name.split()[0] in args.candidates}
    names = jgc.LOWERINGS if args.lowerings == ["all"] else args.lowerings
    return makers | {f"jgc:{name}": functools.partial(jax_candidate, implementation=name) for name in names}


def _rows(args: argparse.Namespace) -> list[Row]:
    rows = list(ROWS)
    if args.dtypes:
        rows = [dataclasses.replace(row, dtype=dtype) for dtype in args.dtypes for row in rows if row.dtype == "float32"]
    if args.batch:
        rows = [dataclasses.replace(row, name=f"{row.name} B{args.batch}", batch=args.batch) for row in rows]
    rows = [row for row in rows if re.search(args.only, f"{row.kind} {row.key}")]
    return [row for row in rows if row.dtype != "int8" or row.form != "transpose"]


def _rounded(row: Row, operands: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    dtype = jnp.dtype("float32" if row.dtype == "tf32" else row.dtype)
    return tuple(array.astype(dtype).astype(np.float64) for array in operands)


def _error(row: Row, out: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    if out.shape != expected.shape:
        return {"right": False, "error": f"shape {out.shape} instead of {expected.shape}"}
    error = float(np.max(np.abs(out - expected)) / np.max(np.abs(expected)))
    return {"right": error <= TOLERANCES[row.dtype], "error": error}


def _line(measurement: dict[str, Any]) -> str:
    """One line of progress: the time of each candidate, and how many times ours it is."""
    ours = measurement["results"].get("jgc", {}).get("min_s")
    cells = []
    for name, r in measurement["results"].items():
        if "min_s" in r:
            cells.append(f"{name} {1e3 * r['min_s']:.3f} ms" + (f" ({r['min_s'] / ours:.2f}x)" if ours else ""))
            cells[-1] += "" if r["right"] else f" WRONG {r['error']}"
        elif "failed" in r:
            cells.append(f"{name} FAILED {r['failed']}")
    return f"{measurement['key']} {measurement['mode']}: " + ", ".join(cells)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])

    def names(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose class, name, layout or dtype matches")
    parser.add_argument("--modes", type=names, default=list(MODES), help="of fwd,dx,dw")
    parser.add_argument(
        "--dtypes", type=names, default=[], help="every float32 row in float32,tf32,bfloat16,float16,float64,int8"
    )
    parser.add_argument("--batch", type=int, default=0, help="replace every row's batch")
    parser.add_argument("--candidates", type=names, default=["jgc", "lax", "torch", "mxnet"], help="of jgc,lax,torch,mxnet")
    parser.add_argument("--lowerings", type=names, default=[], help="besides, each of these alone, or `all`")
    parser.add_argument("--mxnet", type=peers.MXNet, metavar="PYTHON", help="an interpreter that can import MXNet 1.x")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate in a row and mode")
    parser.add_argument("--seconds", type=float, default=1.0, help="for all candidates of a row and mode together")
    parser.add_argument("--working-set", type=int, default=(1 << 28) * ON_GPU, metavar="BYTES", help="of all operand sets")
    parser.add_argument("--out", type=pathlib.Path, help="the result file")
    parser.add_argument("--resume", action="store_true", help="keep what the result file has and measure the rest")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
