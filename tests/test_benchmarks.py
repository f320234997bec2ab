"""The benchmark of single layers, from end to end; what it measures here means nothing."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *words):
    """Runs a module of the benchmarks on the CPU and returns what it prints."""
    command, environment = [sys.executable, "-m", f"benchmarks.{module}", *words], {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rows_are_checked_timed_written_and_reported(tmp_path):
    out = str(tmp_path / "cpu.json")
    rows = ["--selection", "gpu", "--only", "report 49123 .* int8-int8|report 37922 "]
    printed = run("run", *rows, "--candidates", "jgc,lax", "--seconds", "0.01", "--peak-size", "64", "--out", out)
    assert "4 measurements of up to 3 candidates" in printed and f"wrote {out}\n" in printed
    data = json.loads(pathlib.Path(out).read_text())
    assert data["machine"]["backend"] == "cpu" and data["peaks"].keys() == {"gflop_s", "gb_s", "launch_s"}
    measured = [(m["row"]["name"], m["mode"]) for m in data["measurements"]]
    assert measured == [("report 49123 1x1 g2", "fwd"), *(("report 37922 s2 d2", mode) for mode in ("fwd", "dx", "dw"))]
    for m in data["measurements"]:
        assert m["results"].keys() == {"jgc", "lax", "lax per group"} and "refused" in m["results"]["lax per group"]
        for name in ("jgc", "lax"):
            result = m["results"][name]
            assert result["right"] and 0 < result["min_s"] <= result["median_s"]
        same = m["results"]["jgc"]["program"] == m["results"]["lax"]["program"]
        assert same == (m["results"]["jgc"]["lowering"] == "native")
    # Where XLA runs the same program for both, their ratio is noise and no miss.
    for program, missed in (("another", True), (data["measurements"][0]["results"]["lax"]["program"], False)):
        data["measurements"][0]["results"]["jgc"] |= {"min_s": 9.0, "program": program}
        (tmp_path / "cpu.json").write_text(json.dumps(data))
        assert ("| lax, every row | report 49123 1x1 g2" in run("report", out)) == missed
    # On a GPU the medians count.
    data["measurements"][-1]["results"]["jgc"] |= {"min_s": 1.0, "median_s": 2.0}
    for backend, milliseconds in (("cpu", 1000), ("gpu", 2000)):
        data["machine"]["backend"] = backend
        (tmp_path / "cpu.json").write_text(json.dumps(data))
        assert f"| report 37922 s2 d2 NCW bfloat16 | dw | {milliseconds}.000 | " in run("report", out, "--rows")


def test_random_shapes_are_compared_and_summed_up(tmp_path):
    out = tmp_path / "random.json"
    words = ["portable", "taps", "--kinds", "depthwise", "--modes", "fwd", "--minutes", "0.05", "--out", str(out)]
    lines = run("random_shapes", *words).splitlines()
    measurements = json.loads(out.read_text())["measurements"]
    assert lines[0] == "| class, channels, mode | shapes | portable / taps | 5 % below | least |" and measurements
    assert {line.split(",")[0] for line in lines[2:]} == {"| depthwise"}
    assert {m["taps plan"] for m in measurements} == {"taps"} and all(m["portable"] > 0 < m["taps"] for m in measurements)
