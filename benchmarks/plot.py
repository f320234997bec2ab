"""Draws result files: a picture for each class of layers and one of all classes, as SVG.

python -m benchmarks.plot benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

from benchmarks.report import MODES, Measurement, geometric_mean, ratio, seconds  # noqa: E402

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
TITLES = {"fwd": "forward", "dx": "gradient of the input", "dw": "gradient of the weight"}
# Okabe and Ito's colours, which colour-blind people tell apart too; grey text is legible on white and on black.
MARKS = {"lax": ("#E69F00", "o", "JAX"), "torch": ("#0072B2", "s", "PyTorch"), "mxnet": ("#009E73", "^", "MXNet")}
GREY = "#7F7F7F"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=pathlib.Path, help="a result file of benchmarks.run")
    parser.add_argument("--out", type=pathlib.Path, default=IMAGES, help="folder for the pictures")
    parser.add_argument("--statistic", choices=("min_s", "median_s"), default="min_s")
    parser.add_argument("--prefix", default="", help="of the files' names, for example `h200-`")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = json.loads(args.file.read_text())
    measurements, m = data["measurements"], data["machine"]
    where = f"{m['processor']}, {m['cores']} cores" if m["backend"] == "cpu" else m["device"]
    kinds = list(dict.fromkeys(m["row"]["kind"] for m in measurements))
    for kind in kinds:
        here = [m for m in measurements if m["row"]["kind"] == kind and seconds(m, "jgc", args.statistic)]
        _draw(args.out / f"{args.prefix}{kind.replace(' ', '-')}.svg", f"{kind}: {where}", _rows(here, args.statistic))
    means = {kind: _means([m for m in measurements if m["row"]["kind"] == kind], args.statistic) for kind in kinds}
    _draw(args.out / f"{args.prefix}overview.svg", f"Geometric means: {where}", means)


# For each line of a picture and each mode: our time as text, and how many times longer the others take.
Lines = dict[str, dict[str, tuple[str, dict[str, float]]]]


def _rows(measurements: Sequence[Measurement], statistic: str) -> Lines:
    lines: Lines = {}
    for m in measurements:
        ratios = {family: x for family in MARKS if (x := ratio(m, family, statistic))}
        text = f"{1e3 * (seconds(m, 'jgc', statistic) or math.nan):.3g} ms"
        lines.setdefault(m["key"].removesuffix(" float32"), {})[m["mode"]] = (text, ratios)
    return lines


def _means(measurements: Sequence[Measurement], statistic: str) -> dict[str, tuple[str, dict[str, float]]]:
    line = {}
    for mode in MODES:
        here = [m for m in measurements if m["mode"] == mode]
        found = {family: [x for m in here if (x := ratio(m, family, statistic))] for family in MARKS}
        line[mode] = ("", {family: geometric_mean(values) for family, values in found.items() if values})
    return line


def _draw(path: pathlib.Path, title: str, lines: Lines) -> None:
    if not lines:
        return
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": GREY,
    }
    style |= {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 3, figsize=(11, 1.5 + 0.24 * len(lines)), sharey=True, layout="constrained")
        for mode, axis in zip(MODES, axes, strict=True):
            _panel(axis, mode, lines)
        labels = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for c, m, name in MARKS.values()]
        figure.legend(handles=labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"{title}. Times the duration of jaxgroupconv (1 = as fast; right is slower)", fontsize=10)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def _panel(axis: Axes, mode: str, lines: Lines) -> None:
    axis.axvline(1, color=GREY, linewidth=1)
    for y, line in enumerate(lines.values()):
        text, ratios = line.get(mode, ("", {}))
        for family, value in ratios.items():
            color, marker, _ = MARKS[family]
            axis.plot([1, value], [y, y], color=color, linewidth=1, alpha=0.4)
            axis.plot([value], [y], color=color, marker=marker, markersize=4.5, linestyle="")
        axis.text(1.01, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=7)
    axis.set_xscale("log")
    axis.set_xlim(left=min(0.4, axis.get_xlim()[0]), right=max(2.5, axis.get_xlim()[1]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title(TITLES[mode], fontsize=9, color=GREY)
    axis.set_yticks(range(len(lines)), list(lines))
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
