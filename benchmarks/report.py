"""Reads result files: prints how the targets are met, every row that misses one, and a table of all rows, in Markdown.

python -m benchmarks.report benchmarks/results/*.json
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MODES = ("fwd", "dx", "dw")
# For each backend, peer -> the least ratio of the other's time to ours in fwd, dx, dw
EVERY_ROW = {
    "cpu": {"lax": (0.95, 0.95, 0.95), "torch": (0.6, 0.6, 0.6)},
    "gpu": {"lax": (0.97, 0.97, 0.97), "torch": (0.9, 0.9, 0.9)},
}
GEOMETRIC_MEAN = {
    "cpu": {"lax": (8, 10, 25), "torch": (1.0, 1.0, 1.2)},
    "gpu": {"torch": (1.3, 1.3, 1.3)},
}
MXNET = (1.2, 1.5)  # forward; forward and both gradients together
CLOSE = 1.3  # times a bound: what is closer than that, or misses, is worth measuring for longer
COMPILE_RATIO, COMPILE_SECONDS, NETWORK_COMPILE_RATIO = 2.0, 0.5, 1.2
TEMPORARY_RATIO = 3.0

Measurement = dict[str, Any]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="result files of run and networks")
    parser.add_argument("--statistic", choices=("min_s", "median_s"), help="median_s for a GPU, else min_s")
    parser.add_argument("--rows", action="store_true", help="print the table of all rows too")
    args = parser.parse_args()
    for path in args.files:
        data = json.loads(path.read_text())
        statistic = args.statistic or usual_statistic(data)
        print(f"## {path.stem}\n\n{heading(data)}\n")
        if "peaks" in data:
            print("\n".join(report(data, statistic)))
            print("\n".join(table(data, statistic)) if args.rows else "", end="\n")
        else:
            print("\n".join(networks(data["measurements"], statistic)))


def usual_statistic(data: dict[str, Any]) -> str:
    """Which time of a result file counts: on a GPU the median, because the least is one of a clock that is raised at times."""
    return "median_s" if data["machine"]["backend"] == "gpu" else "min_s"


def heading(data: dict[str, Any]) -> str:
    """Machine, versions and peaks in a sentence."""
    m = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    text = f"{m['processor']}, {m['cores']} cores, {m['device']}, {m['date']}; {versions}"
    if "peaks" in data:
        text += f"; peaks measured in the run: {data['peaks']['gflop_s']:.0f} GFLOP/s, {data['peaks']['gb_s']:.0f} GB/s"
    return text + "."


def seconds(measurement: Measurement, family: str, statistic: str = "min_s") -> float | None:
    """The time of the fastest candidate of a family that computed the right result.

    Args:
      measurement: one row and mode.
      family: `jgc`, `lax`, `torch` or `mxnet`; `torch` stands also for `torch as 2-d`.
      statistic: `min_s` or `median_s`.

    Returns:
      Seconds, or None if none ran.
    """
    return min((result[statistic] for result in _times(measurement, family, statistic)), default=None)


def _times(m: Measurement, family: str, statistic: str) -> list[dict[str, Any]]:
    """The right results of a family's members, which were timed."""
    results = [r for name, r in m["results"].items() if name.split(" ")[0] == family]
    return [r for r in results if r.get("right") and statistic in r]


def ratio(measurement: Measurement, family: str, statistic: str = "min_s") -> float | None:
    """How many times longer than this library a family takes, or None."""
    ours, other = seconds(measurement, "jgc", statistic), seconds(measurement, family, statistic)
    return other / ours if ours and other else None


def is_close(measurement: Measurement, data: dict[str, Any]) -> bool:
    """Whether a measurement misses a bound of `EVERY_ROW`, or is so near it that noise may decide.

    Args:
      measurement: one row and mode.
      data: a result file, of which `machine` is needed.

    Returns:
      Whether some ratio is less than `CLOSE` times its bound.
    """
    statistic, mode = usual_statistic(data), MODES.index(measurement["mode"])
    targets = EVERY_ROW.get(data["machine"]["backend"], {})
    ratios = [(ratio(measurement, family, statistic), CLOSE * bounds[mode]) for family, bounds in targets.items()]
    return any(found is not None and found < bound for found, bound in ratios)


def matrix_rate(peaks: dict[str, Any], dtype: str) -> float:
    """GFLOP/s of a large matrix product of a dtype, or of float32 where only that was measured."""
    return peaks.get("matrix", {}).get(dtype) or peaks["gflop_s"]


def roofline_s(measurement: Measurement, peaks: dict[str, Any]) -> float:
    """The least seconds that a machine of such peaks takes: for the operations, or to read the operands and write the result.

    Args:
      measurement: one row and mode.
      peaks: `peaks` of a result file.

    Returns:
      Seconds; less is possible where operands stay in the cache, whose rate is not measured.
    """
    rate = matrix_rate(peaks, measurement["row"]["dtype"])
    return max(measurement["flops"] / rate, measurement["bytes"] / peaks["gb_s"]) / 1e9


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def is_grouped(measurement: Measurement) -> bool:
    """Whether more than one group is computed; `vmap` over both operands makes groups of members."""
    row = measurement["row"]
    return row["groups"] > 1 or row["form"] != "conv" and row["form"] != "transpose"


def report(data: dict[str, Any], statistic: str) -> list[str]:
    """The targets of single layers, and the rows that miss.

    Args:
      data: a result file.
      statistic: `min_s` or `median_s`.

    Returns:
      Lines of Markdown.
    """
    measurements, backend = data["measurements"], data["machine"]["backend"]
    lines = ["| target | forward | dx | dw | met |", "|---|---|---|---|---|"]
    misses: list[str] = []

    def ratios(family: str, mode: str, keep: Callable[[Measurement], bool] = lambda _: True) -> list[tuple[float, Measurement]]:
        found = [(ratio(m, family, statistic), m) for m in measurements if m["mode"] == mode and keep(m)]
        return [(r, m) for r, m in found if r is not None]

    for family, targets in EVERY_ROW.get(backend, {}).items():
        cells, met = [], True
        for mode, target in zip(MODES, targets, strict=True):
            everything = ratios(family, mode)
            found = [(r, m) for r, m in everything if not _same_program(m, family, statistic)]
            same = len(everything) - len(found)
            below = sorted((r, m["key"]) for r, m in found if r < target)
            met &= not below and bool(found)
            noise = f"; {same} more are the same program" if same else ""
            cells.append(f"{min((r for r, _ in found), default=math.nan):.2f} ({len(below)} of {len(found)} miss{noise})")
            misses += [f"| {family}, every row | {key} {mode} | {r:.2f} | ≥ {target} |" for r, key in below]
        lines.append(_line(f"{family}, every row ≥ {targets[0]}", cells, met))
    for family, targets in GEOMETRIC_MEAN.get(backend, {}).items():
        keep = is_grouped if family == "lax" else lambda _: True
        means = [geometric_mean(r for r, _ in ratios(family, mode, keep)) for mode in MODES]
        which = "grouped rows" if family == "lax" else "all rows"
        label = f"{family}, geometric mean of {which} ≥ {', '.join(map(str, targets))}"
        lines.append(_line(label, [f"{mean:.2f}" for mean in means], all(m >= t for m, t in zip(means, targets, strict=True))))
    lines += _mxnet(measurements, statistic)
    for label, check in (("compile time", _compile_miss), ("temporary memory", _temporary_miss)):
        cells, found = [], []
        for mode in MODES:
            here = [(m, check(m)) for m in measurements if m["mode"] == mode]
            bad = [f"| {label} | {m['key']} {mode} | {miss} |" for m, miss in here if miss]
            cells.append(f"{len(bad)} of {len(here)} miss")
            found += bad
        misses += found
        lines.append(_line(label, cells, not found))
    broken = [
        f"| {name}: {r.get('failed', r.get('error'))} | {m['key']} {m['mode']} | wrong | |"
        for m in measurements
        for name, r in m["results"].items()
        if "refused" not in r and not r.get("right")
    ]
    lines += ["", *_by_kind(data, statistic), ""]
    return lines + ["| misses | row | is | should be |", "|---|---|---|---|", *broken, *misses, ""]


def table(data: dict[str, Any], statistic: str) -> list[str]:
    """All rows and modes.

    Args:
      data: a result file.
      statistic: `min_s` or `median_s`.

    Returns:
      Lines of Markdown: our time, how many times longer the others take, what was chosen, the part of the roofline that is
      reached (it can exceed 100 % where operands stay in the cache), compile time, temporary memory, and which lowering is the
      fastest of those measured alone.
    """
    lines = [
        "| row | mode | ms | lax | PyTorch | MXNet | lowering | GFLOP/s | GB/s "
        "| of roofline | compile (lax), s | memory | fastest lowering |",
        "|---" * 13 + "|",
    ]
    for m in data["measurements"]:
        ours = seconds(m, "jgc", statistic)
        if ours is None:
            continue
        r, lax = m["results"]["jgc"], m["results"].get("lax", {})
        reached = 100 * roofline_s(m, data["peaks"]) / ours
        others = [f"{x:.2f}" if (x := ratio(m, family, statistic)) else "–" for family in ("lax", "torch", "mxnet")]
        lines.append(
            f"| {m['key']} | {m['mode']} | {1e3 * ours:.3f} | {' | '.join(others)} | {r['lowering']} "
            f"| {m['flops'] / ours / 1e9:.1f} | {m['bytes'] / ours / 1e9:.1f} | {reached:.0f} % "
            f"| {r['compile_s']:.2f} ({lax.get('compile_s', math.nan):.2f}) | {r['temp_bytes'] / m['bytes']:.1f} × "
            f"| {_fastest_lowering(m, ours, statistic)} |"
        )
    return lines


def _fastest_lowering(m: Measurement, ours: float, statistic: str) -> str:
    """Of the lowerings that were measured alone, the fastest that is right, and its time as a multiple of ours."""
    alone = {n: r[statistic] for n, r in m["results"].items() if n.startswith("jgc:") and r.get("right") and statistic in r}
    name = min(alone, key=alone.__getitem__, default="")
    return f"{name.removeprefix('jgc:')} {alone[name] / ours:.2f}" if name else "–"


def networks(measurements: Sequence[Measurement], statistic: str) -> list[str]:
    """The targets of whole networks.

    Args:
      measurements: of one result file of `benchmarks.networks`.
      statistic: `min_s` or `median_s`.

    Returns:
      Lines of Markdown.
    """
    lines = [
        "| network | mode | ours, ms | JAX | PyTorch | compile, s | JAX compile, s | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in measurements:
        ours, plain = m["results"]["jgc"], m["results"]["lax"]
        others = [ratio(m, family, statistic) for family in ("lax", "torch")]
        met = (others[0] or 0) > 1 and ours["compile_s"] <= NETWORK_COMPILE_RATIO * plain["compile_s"]
        cells = [f"{1e3 * ours[statistic]:.1f}", *(f"{x:.2f}" if x else "–" for x in others)]
        cells += [f"{ours['compile_s']:.1f}", f"{plain['compile_s']:.1f}"]
        lines.append(_line(f"{m['key']} | {m['mode']}", cells, met))
    for mode in dict.fromkeys(m["mode"] for m in measurements):
        here = [m for m in measurements if m["mode"] == mode]
        means = [geometric_mean(x for m in here if (x := ratio(m, f, statistic))) for f in ("lax", "torch")]
        lines.append(_line(f"geometric mean | {mode}", ["", *(f"{x:.2f}" for x in means), "", ""], means[1] >= 1))
    return [*lines, ""]


def _mxnet(measurements: Sequence[Measurement], statistic: str) -> list[str]:
    forward = [x for m in measurements if m["mode"] == "fwd" and (x := ratio(m, "mxnet", statistic))]
    sums: dict[str, list[tuple[float, float]]] = {}
    for m in measurements:
        ours, other = seconds(m, "jgc", statistic), seconds(m, "mxnet", statistic)
        if ours and other:
            sums.setdefault(m["key"], []).append((ours, other))
    whole = [pairs for pairs in sums.values() if len(pairs) == len(MODES)]
    together = geometric_mean(sum(other for _, other in pairs) / sum(ours for ours, _ in pairs) for pairs in whole)
    mean = geometric_mean(forward)
    label = f"mxnet, geometric mean of {len(whole)} rows ≥ {MXNET[0]}; all three modes' sum ≥ {MXNET[1]}"
    return [_line(label, [f"{mean:.2f}", f"sum {together:.2f}", ""], mean >= MXNET[0] and together >= MXNET[1])]


def _same_program(m: Measurement, family: str, statistic: str) -> bool:
    """Whether XLA runs the same as for the fastest of a family: their ratio is the machine's noise."""
    fastest = min(_times(m, family, statistic), key=lambda result: result[statistic])
    return "program" in fastest and fastest["program"] == m["results"]["jgc"].get("program")


def _compile_miss(m: Measurement) -> str | None:
    ours, lax = (m["results"].get(name, {}).get("compile_s") for name in ("jgc", "lax"))
    if ours is None or lax is None or ours <= max(COMPILE_SECONDS, COMPILE_RATIO * lax):
        return None
    return f"{ours:.2f} s | ≤ {max(COMPILE_SECONDS, COMPILE_RATIO * lax):.2f} s"


def _temporary_miss(m: Measurement) -> str | None:
    ours, lax = (m["results"].get(name, {}).get("temp_bytes") for name in ("jgc", "lax"))
    if ours is None or ours <= max(TEMPORARY_RATIO * m["bytes"], lax or 0):
        return None
    return f"{ours / m['bytes']:.1f} × (operands + result) | ≤ {max(TEMPORARY_RATIO, (lax or 0) / m['bytes']):.1f} ×"


def _by_kind(data: dict[str, Any], statistic: str) -> list[str]:
    """Geometric means of each class: how many times longer the others take, and the part of the roofline that is reached."""

    def reached(m: Measurement) -> float | None:
        ours = seconds(m, "jgc", statistic)
        return 100 * roofline_s(m, data["peaks"]) / ours if ours else None

    columns = {f: functools.partial(ratio, family=f, statistic=statistic) for f in ("lax", "torch", "mxnet")}
    columns["% of roofline"] = reached
    lines = ["| class | " + " | ".join(f"{name} {mode}" for name in columns for mode in MODES) + " |", "|---" * 13 + "|"]
    for kind in dict.fromkeys(m["row"]["kind"] for m in data["measurements"]):
        here = [m for m in data["measurements"] if m["row"]["kind"] == kind]
        means = [
            geometric_mean(x for m in here if m["mode"] == mode and (x := of(m))) for of in columns.values() for mode in MODES
        ]
        lines.append(f"| {kind} | " + " | ".join("–" if math.isnan(mean) else f"{mean:.3g}" for mean in means) + " |")
    return lines


def _line(label: str, cells: Sequence[str], met: bool) -> str:
    return f"| {label} | {' | '.join(cells)} | {'yes' if met else '**no**'} |"


if __name__ == "__main__":
    main()
