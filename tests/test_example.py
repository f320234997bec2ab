"""The notebook from which the library grew, and its retelling in examples/group_convolution.py."""

import ast
import contextlib
import io
import pathlib
import re
import runpy
from typing import Any

import jax
import numpy as np
import pytest
from inspecting import ran

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = (ROOT / "tests/data/notebook.txt").read_text()
TABLES = r"num-group = \d+\n.*?\*{10,}"


def example() -> dict[str, Any]:
    """The example's functions."""
    return runpy.run_path(str(ROOT / "examples/group_convolution.py"))


@pytest.fixture(scope="module")
def printed() -> str:
    """What the example prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        example()["main"](quick=True)
    return out.getvalue()


def arrays(text: str) -> list[np.ndarray]:
    """Every printed four-dimensional array."""
    found = re.findall(r"\[\[\[\[.*?\]\]\]\]", text, re.DOTALL)
    return [np.array(ast.literal_eval(re.sub(r"(?<=[\d.\]])\s+(?=[\d\[])", ", ", array.replace("[ ", "[")))) for array in found]


def test_the_arrays_are_the_notebooks(printed):
    wanted, got = arrays(NOTEBOOK), arrays(printed)
    assert [a.shape for a in wanted] == [(1, 3, 2, 2), (2, 3, 1, 1), (1, 2, 2, 2), (1, 6, 2, 2)]
    assert len(got) == len(wanted) + 1  # and the regrouped convolution, which the notebook has not
    for a, b in zip(got, wanted, strict=False):
        np.testing.assert_array_equal(a, b)


def test_the_bias_and_the_shapes_are_the_notebooks(printed):
    found = [re.findall(r"Bias:\s+\[(.*)\]", text) for text in (NOTEBOOK, printed)]
    assert [[float(number) for number in bias.split()] for (bias,) in found] == [[0, 0]] * 2
    wanted, got = (re.findall(r"^.*shape.*: (?:\(.*\))$", text, re.MULTILINE) for text in (NOTEBOOK, printed))
    assert got == wanted and len(wanted) == 4


def test_the_regrouped_weight_gives_another_result(printed):
    *_, reshaped, regrouped = arrays(printed)
    weight = np.arange(6).reshape(2, 3)  # (filter, channel)
    data = np.arange(12).reshape(3, 2, 2)
    np.testing.assert_array_equal(regrouped[0], np.concatenate([weight[:, [c]][:, :, None] * data[c] for c in range(3)]))
    assert not np.array_equal(reshaped, regrouped)


def test_the_shape_tables_are_the_notebooks(printed):
    wanted = re.findall(TABLES, NOTEBOOK, re.DOTALL)
    assert [int(re.findall(r"\d+", table)[0]) for table in wanted] == [1, 2, 3, 6]
    assert re.findall(TABLES, printed, re.DOTALL) == wanted
    assert "(24, 3, 3, 3)" in wanted[1]


def test_the_comparison_with_lax_checks_and_measures_both():
    times = example()["compare_speed"](6, size=12)
    assert set(times) == {"forward", "gradient"}
    assert all(ms > 0 for by_name in times.values() for ms in by_name.values())


def test_the_whole_story_compares_each_number_of_groups_with_lax(capsys):
    """The timings are left out: instead of running the functions again and again, what they are lowered to is read."""
    functions, lowerings = example(), []

    def fastest(candidates, *args):
        lowerings.append({name: ran(jax.jit(f).lower(*args).as_text()) for name, f in candidates.items()})
        return {"jaxgroupconv": 2.0, "lax": 9.0}

    small = functions["compare_speed"]
    functions["main"].__globals__.update(fastest=fastest, compare_speed=lambda groups: small(groups, size=12))
    functions["main"]()
    rows = re.findall(r"^ +(\d) +(forward|gradient) +2\.00 +9\.00 +4\.5$", capsys.readouterr().out, re.MULTILINE)
    assert rows == [(str(groups), name) for groups in (1, 2, 3, 6) for name in ("forward", "gradient")]
    assert [len(names["lax"]) for names in lowerings] == [1, 3] * 4
    assert {name for names in lowerings for name in names["lax"]} == {"native"}
    assert all("native" not in names["jaxgroupconv"] for names in lowerings[2:])
