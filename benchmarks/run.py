"""Compares grouped convolutions of this library, lax, PyTorch and MXNet, row by row, alternating, in one run.

    python -m benchmarks.run --mxnet /path/to/python3.8
    python -m benchmarks.run --only "dw7|mamba" --modes fwd,dw
    python -m benchmarks.run --selection gpu --lowerings all --limit-minutes 9

Every candidate is checked against NumPy float64 before it is timed. Results go to benchmarks/results/ after each measurement.
This process only asks: `benchmarks.measure` measures, in a process that is started again if a candidate ends it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.report import CLOSE, is_close, usual_statistic
from benchmarks.row import MODES, Row
from benchmarks.shapes import SELECTIONS
from benchmarks.timing import command, write
from benchmarks.worker import Ended, Worker

RESULTS = pathlib.Path(__file__).with_name("results")


def main() -> int:
    """Runs the command line; the exit status is 1 if this library computed a wrong result anywhere."""
    args = _arguments()
    end = time.monotonic() + 60 * args.limit_minutes if args.limit_minutes else float("inf")
    rows = _rows(args)
    settings = {"candidates": args.candidates, "lowerings": args.lowerings, "mxnet": args.mxnet}
    process = Process(args.patience, **settings)
    peaks = process.ask("peaks", dtypes=list(dict.fromkeys(row.dtype for row in rows)), size=args.peak_size)
    head = {"machine": process.facts["machine"], "peaks": peaks, "command": command()}
    path = args.out or RESULTS / f"{process.facts['name']}.json"
    old = json.loads(path.read_text())["measurements"] if args.resume and path.exists() else []
    done = {(m["key"], m["mode"]) for m in old}
    todo = [(row, mode) for row in rows for mode in args.modes if mode in row.modes and (row.key, mode) not in done]
    print(f"{len(todo)} measurements of up to {len(process.facts['candidates'])} candidates each, into {path}", flush=True)
    wrong, longest, began = [], 0.0, time.monotonic()
    for n, (row, mode) in enumerate(todo):
        start = time.monotonic()
        if start + longest > end:
            print(f"the time is up: {len(todo) - n} measurements are left, for --resume")
            break
        old.append(measure(process, row, mode, args))
        write(path, head, old)
        now = time.monotonic()
        longest, left = max(longest, now - start), (now - began) / (n + 1) * (len(todo) - n - 1)
        print(f"[{n + 1}/{len(todo)}, {left / 60:.1f} min left] {_line(old[-1], usual_statistic(head))}", flush=True)
        wrong += [row.key for name, r in old[-1]["results"].items() if name == "jgc" and not (r.get("right") and "min_s" in r)]
    process.close()
    print(f"wrote {path}" + (f"; WRONG or failed here: {wrong}" if wrong else ""))
    return 1 if wrong else 0


class Process:
    """The process that measures.

    Args:
      patience: seconds after which it is ended if it has not answered.
      **settings: for its `start`.

    Attributes:
      facts: what its `start` returned.
    """

    def __init__(self, patience: float, **settings: Any):
        self._patience, self._settings = patience, settings
        self.restart()

    def restart(self) -> None:
        """Starts it, or starts it again if it has ended or shall end."""
        if hasattr(self, "_worker"):
            self._worker.end()
        self._worker = Worker(sys.executable, "benchmarks.measure")
        self.facts = self._worker.ask("start", **self._settings)

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Asks it; see `Worker.ask`."""
        return self._worker.ask(operation, patience=self._patience, **arguments)

    def close(self) -> None:
        """Ends it."""
        self._worker.close()


def measure(process: Process, row: Row, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """Prepares, checks and times every candidate for one row and mode.

    A candidate that ends the process is recorded as failed; the others are prepared again in the next process.

    Args:
      process: the process that measures.
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      args: the command line's.

    Returns:
      The measurement as it is written: the row, its operations and bytes, and for each candidate times in seconds.
    """
    ended: dict[str, dict[str, Any]] = {}
    alone = False  # after a process has ended while it timed them by turns, to find out which of them ended it
    while True:
        results, name = {}, ""
        try:
            bounds = {"working_set": args.working_set, "check_flops": args.check_flops}
            facts = process.ask("begin", row=dataclasses.asdict(row), mode=mode, **bounds)
            for name in process.facts["candidates"]:
                results[name] = ended.get(name) or process.ask("prepare", name=name)
                if results[name].pop("ended", False):
                    raise Ended(results[name]["failed"])
            timed = [name for name, result in results.items() if "right" in result]
            measurement = {"key": row.key, "mode": mode, "row": dataclasses.asdict(row), **facts, "results": results}
            for times_longer in dict.fromkeys((1, args.longer)):
                length = {"seconds": times_longer * args.seconds, "rounds": times_longer * args.rounds}
                for names in [[name] for name in timed] if alone else [timed]:
                    name = names[0] if alone else ""
                    for candidate, times in process.ask("times", names=names, **length).items():
                        results[candidate] = times if "failed" in times else results[candidate] | times
                timed = [name for name in timed if "min_s" in results[name]]
                if not is_close(measurement, process.facts):
                    break
            return measurement
        except Ended as error:
            if not results:
                raise  # it was asked for nothing of a candidate's
            if name:
                ended[name] = {"failed": str(error)}
            alone |= not name
            process.restart()


def _rows(args: argparse.Namespace) -> list[Row]:
    rows: Sequence[Row] = SELECTIONS[args.selection]
    if args.dtypes:
        rows = [dataclasses.replace(row, dtype=dtype) for dtype in args.dtypes for row in rows if row.dtype == "float32"]
    if args.batch:
        rows = [dataclasses.replace(row, name=f"{row.name} B{args.batch}", batch=args.batch) for row in rows]
    rows = [row for row in rows if re.search(args.only, f"{row.kind} {row.key}")]
    return [row for row in rows if not row.dtype.startswith("int8") or row.form == "conv"]


def _line(measurement: dict[str, Any], statistic: str) -> str:
    """One line of progress: the time of each candidate, and how many times ours it is."""
    ours = measurement["results"].get("jgc", {}).get(statistic)
    cells = []
    for name, r in measurement["results"].items():
        if statistic in r:
            cells.append(f"{name} {1e3 * r[statistic]:.3f} ms" + (f" ({r[statistic] / ours:.2f}x)" if ours else ""))
            cells[-1] += "" if r["right"] else f" WRONG {r['error']}"
        elif "failed" in r:
            cells.append(f"{name} FAILED {r['failed']}")
    return f"{measurement['key']} {measurement['mode']}: " + ", ".join(cells)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0])

    def names(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    dtypes = "float32,tf32,bfloat16,float16,float64,int8,int8-int8"
    parser.add_argument("--selection", choices=SELECTIONS, default="all", help="all rows, or those for a GPU")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose class, name, layout or dtype matches")
    parser.add_argument("--modes", type=names, default=list(MODES), help="of fwd,dx,dw")
    parser.add_argument("--dtypes", type=names, default=[], help=f"every float32 row in these, of {dtypes}")
    parser.add_argument("--batch", type=int, default=0, help="replace every row's batch")
    parser.add_argument("--candidates", type=names, default=["jgc", "lax", "torch", "mxnet"], help="of jgc,lax,torch,mxnet")
    parser.add_argument("--lowerings", type=names, default=[], help="besides, each of these alone, or `all`")
    parser.add_argument("--mxnet", metavar="PYTHON", help="an interpreter that can import MXNet 1.x")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate in a row and mode")
    parser.add_argument("--seconds", type=float, default=1.0, help="for all candidates of a row and mode together")
    longer = f"so many times as long and often, instead, if a ratio is less than {CLOSE} times its bound; 1: never"
    parser.add_argument("--longer", type=int, default=6, metavar="N", help=longer)
    parser.add_argument("--working-set", type=int, metavar="BYTES", help="of all operand sets; 256 MiB on a GPU, else one set")
    parser.add_argument("--check-flops", type=float, metavar="N", help="check parts of results of more; 1e8 on a GPU")
    parser.add_argument(
        "--peak-size", type=int, metavar="N", help="of the matrices whose product is a peak; 8192 on a GPU, else 3072"
    )
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after which a silent candidate is ended")
    parser.add_argument("--limit-minutes", type=float, help="begin no measurement that would end later")
    parser.add_argument("--out", type=pathlib.Path, help="the result file")
    parser.add_argument("--resume", action="store_true", help="keep what the result file has and measure the rest")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
