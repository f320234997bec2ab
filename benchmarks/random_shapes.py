"""Two implementations on random convolutions, by turns: what the bounds of the plan rest on, and whether they hold elsewhere.

python -m benchmarks.random_shapes portable auto --minutes 5 --out random.json

With `ONEDNN_MAX_CPU_ISA=AVX2` and `XLA_FLAGS=--xla_cpu_max_isa=AVX2` a newer processor does nearly what one with AVX2 would;
XLA's own products and dense convolutions heed neither.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import time
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.candidates import jax_candidate
from benchmarks.report import geometric_mean
from benchmarks.row import Row, rows
from benchmarks.timing import alternate, command, write

CHANNELS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 16, 17, 20, 24, 26, 32, 40, 48, 64, 80, 96, 128)
DEPTHWISE = (3, 7, 10, 16, 21, 24, 32, 64, 96, 97, 128, 144, 192, 256, 384, 512, 728, 960)
SIZES = {1: (50, 200, 400, 1000, 2048), 2: (7, 10, 14, 20, 28, 40, 56, 112), 3: (7, 10, 14, 20)}
KERNELS = {1: (3, 4, 5, 9, 15, 31), 2: (3, 3, 3, 5, 7, 9, 13), 3: (3,)}
KINDS = ("depthwise", "multiplier", "grouped", "grouped", "1x1", "dense")
LEAST, MOST = (1e6, 0), (5e8, 6e7)  # operations, and bytes of the operands and the result


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_shapes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("implementations", nargs=2, help="for jgc.accelerate; a forced name that refuses leaves a shape out")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them, repeated where they shall come more often")
    parser.add_argument("--modes", default="fwd,dx,dw")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("random.json"))
    args = parser.parse_args()
    rng, end, measurements = random.Random(args.seed), time.perf_counter() + 60 * args.minutes, []
    while time.perf_counter() < end:
        row, mode = _random(rng, rng.choice(args.kinds.split(","))), rng.choice(args.modes.split(","))
        cost = row.flops, row.bytes(mode)
        if all(low <= value <= high for low, value, high in zip(LEAST, cost, MOST, strict=True)):
            measurements += _measured(row, mode, args.implementations)
    write(args.out, {"machine": machine.describe(), "command": command()}, measurements)
    print("\n".join(summary(measurements, *args.implementations)))


def summary(measurements: list[dict[str, Any]], first: str, second: str) -> list[str]:
    """A table in Markdown: how many times longer the first implementation takes, for each class, layout and mode."""
    ratios = collections.defaultdict(list)
    for m in measurements:
        ratios[m["kind"], "last" if m["layout"].endswith("C") else "first", m["mode"]].append(m[first] / m[second])
    lines = [f"| class, channels, mode | shapes | {first} / {second} | 5 % below | least |", "|---|---|---|---|---|"]
    for name, values in sorted(ratios.items()):
        low = sorted(values)
        numbers = f"{geometric_mean(values):.2f} | {low[len(low) // 20]:.2f} | {low[0]:.2f}"
        lines.append(f"| {', '.join(name)} | {len(values)} | {numbers} |")
    return lines


def _random(rng: random.Random, kind: str) -> Row:
    ndim = rng.choice((2, 2, 2, 2, 1, 3))
    groups, many = rng.choice((2, 3, 4, 5, 8, 16, 32)), rng.choice(DEPTHWISE)
    inputs = rng.choice(CHANNELS)
    outputs = rng.choice((inputs, inputs, 2 * inputs, rng.choice(CHANNELS)))
    groups, inputs, outputs = {
        "depthwise": (many, 1, 1),
        "multiplier": (many, 1, rng.choice((2, 3, 4, 8))),
        "dense": (1, inputs, outputs),
    }.get(kind, (groups, inputs, outputs))
    stride = rng.choice((1, 1, 1, 2))
    [row] = rows(
        "random",
        kind,
        rng.choice((1, 1, 1, 2, 4, 8, 32)),
        groups * inputs,
        (rng.choice(SIZES[ndim]),) * ndim,
        groups * outputs,
        1 if kind == "1x1" else rng.choice(KERNELS[ndim]),
        groups,
        stride=stride,
        dilation=1 if stride > 1 or kind == "1x1" else rng.choice((1, 1, 1, 2, 3)),
        ndim=ndim,
        layouts=rng.choice(("first", "last")),
    )
    return row


def _measured(row: Row, mode: str, implementations: list[str]) -> list[dict[str, Any]]:
    """One measurement, or none where an implementation refuses; the results are compared before."""
    try:
        found = {name: jax_candidate(row, mode, 1, name) for name in implementations}
    except NotImplementedError:
        return []
    first, second = (candidate.result() for candidate in found.values())
    scale = np.abs(first).max()
    if np.abs(first - second).max() > 1e-4 * scale:
        raise ArithmeticError(f"{' and '.join(implementations)} differ in {row} {mode}")
    times = alternate({name: c.sample for name, c in found.items()}, dict.fromkeys(found, 0.0), seconds=0.2, rounds=3)
    facts = {f"{name} plan": candidate.facts["lowering"] for name, candidate in found.items()}
    spec = found[implementations[1]].facts["spec"]
    return [
        {"kind": row.kind, "layout": row.layout, "mode": mode, "spec": spec, **facts}
        | {n: t["min_s"] for n, t in times.items()}
    ]


if __name__ == "__main__":
    main()
