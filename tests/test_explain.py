"""`explain`: every convolution, where it comes from, its role, its plan and reason, and what it costs."""

import html
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inspecting import ran
from jax import lax

import jaxgroupconv as jgc

X = jax.ShapeDtypeStruct((2, 4, 6, 5), np.float32)
W = jax.ShapeDtypeStruct((4, 2, 3, 3), np.float32)


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)


def dense(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME")


def loss(x, w):
    return jnp.sum(jnp.sin(conv(x, w)))


def roles(f, *args):
    return [entry.role for entry in jgc.explain(jgc.accelerate(f), *args or (X, W)).entries]


def batched(x):
    return jax.ShapeDtypeStruct((3, *x.shape), x.dtype)


@pytest.mark.parametrize(
    "f, expected",
    [
        (conv, ["forward"]),
        (jax.grad(loss, (0, 1)), ["forward", "dw", "dx"]),
        (jax.jit(jax.grad(jax.jit(loss), (0, 1))), ["forward", "dw", "dx"]),
        (jax.value_and_grad(jax.checkpoint(loss), (0, 1)), ["forward", "recomputed", "dw", "dx"]),
        (jax.grad(lambda x, w: jnp.sum(dense(x, w[:, :1].repeat(4, 1)) ** 2), (0, 1)), ["forward", "dw", "dx"]),
        (lambda x, w: jax.jvp(conv, (x, w), (x, w)), ["forward"] * 3),
        (lambda x, w: jax.linear_transpose(lambda x: conv(x, w), X)(x), ["dx"]),
        (jax.grad(lambda x, w: jnp.sum(jax.grad(loss)(x, w) ** 2)), ["forward", "dx", "derivative", "dx"]),
    ],
)
def test_roles(f, expected):
    assert roles(f) == expected


def test_roles_under_vmap():
    assert roles(jax.vmap(jax.grad(loss, (0, 1))), batched(X), batched(W)) == ["batched forward", "batched dw", "batched dx"]


def test_it_tells_where_a_convolution_comes_from():
    (entry,) = jgc.explain(conv, X, W).entries
    line = inspect.getsourcelines(conv)[1] + 1
    assert entry.source == f"test_explain.py:{line} (conv)"
    (entry,) = jgc.explain(lambda x, w: jgc.group_conv(x, w), X, W).entries
    assert entry.source.startswith("test_explain.py") and entry.marked and entry.plan.name != "native"


def test_plans_are_those_of_the_program():
    f = jgc.accelerate(jax.grad(loss, (0, 1)))
    assert [e.plan.name for e in jgc.explain(f, X, W).entries] == ran(jax.jit(f).lower(X, W).as_text())
    forced = jgc.explain(jgc.accelerate("per_group")(dense), X, jax.ShapeDtypeStruct((4, 4, 3, 3), np.float32)).entries[0]
    assert forced.plan.reason.startswith("per_group refuses: ")
    unmarked = jgc.explain(conv, X, W).entries[0]
    assert (unmarked.marked, unmarked.plan.name) == (False, "native") and "not marked" in unmarked.plan.reason
    on_tpu = jgc.explain(f, X, W, platform="tpu")
    assert on_tpu.platform == "tpu" and len(on_tpu.entries) == 3
    jgc.enable()
    try:
        assert jgc.explain(conv, X, W).entries[0].marked
    finally:
        jgc.disable()


def test_costs_and_totals():
    @jgc.accelerate
    def f(x, w):
        return lax.scan(lambda x, _: (conv(x, w), None), x, length=5)[0]

    explanation = jgc.explain(f, X, W)
    (entry,) = explanation.entries
    operations = 2 * 2 * 4 * 2 * (6 * 3 - 2) * (5 * 3 - 2)  # the taps on padding do not count
    size = 4 * (2 * 2 * 4 * 6 * 5 + 4 * 2 * 3 * 3)
    assert (entry.count, entry.spec.flops, entry.spec.bytes) == (5, operations, size)
    assert (explanation.flops, explanation.bytes) == (5 * operations, 5 * size)


def test_programs_inside_of_programs():
    """Branches, loops, custom rules and maps are searched."""

    @jax.custom_vjp
    def custom(x, w):
        return conv(x, w)

    custom.defvjp(lambda x, w: (conv(x, w), None), lambda _, t: (t, None))

    def f(x, w):
        x = lax.cond(x[0, 0, 0, 0] > 0, lambda: conv(x, w), lambda: x)
        x = lax.while_loop(lambda x: x[0, 0, 0, 0] > 0, lambda x: conv(x, w), x)
        return lax.map(lambda x: custom(x, w), x[None])

    assert len(jgc.explain(f, X, W).entries) == 3


def test_symbolic_sizes():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4, 6, 5"), np.float32)
    explanation = jgc.explain(jgc.accelerate(conv), x, W)
    assert explanation.entries[0].plan.name == "native" and "symbolic" in str(explanation)


def test_tables():
    explanation = jgc.explain(jgc.accelerate(jax.grad(loss, (0, 1))), X, W)
    header, *lines = str(explanation).splitlines()
    assert header.split() == ["lowering", "role", "convolution", "times", "MFLOP", "MB", "why", "source"]
    assert len(lines) == 4 and lines[-1].startswith("total") and " 3 " in lines[-1]
    table, rows = explanation._repr_html_(), explanation.rows()
    assert [re.split(r"\s{2,}", line.strip()) for line in lines] == [[cell for cell in row if cell] for row in rows[1:]]
    assert [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", table)] == [cell for row in rows[1:] for cell in row]
    assert table.count("<tr>") == 5 and table.count("<td>") == 4 * 8
    assert "-&gt;" in table and html.escape(explanation.entries[0].plan.reason) in table
    assert str(jgc.explain(jnp.sin, X)).splitlines()[-1].split() == ["total", "convolutions", "on", "cpu", "0", "0.00", "0.00"]


def test_numbers_of_tables():
    """A loop of three depthwise convolutions and a last one; their costs by hand, in the text and in a notebook."""
    x, w = jax.ShapeDtypeStruct((8, 64, 56, 56), np.float32), jax.ShapeDtypeStruct((64, 1, 3, 3), np.float32)
    once = lambda x, w: jgc.group_conv(x, w, padding=1)  # noqa: E731
    explanation = jgc.explain(lambda x, w: once(lax.fori_loop(0, 3, lambda _, x: once(x, w), x), w), x, w)
    mflop = 2 * 8 * 64 * (3 * 56 - 2) ** 2 / 1e6
    mb = 4 * (2 * 8 * 64 * 56 * 56 + 64 * 9) / 1e6
    one, total = ([f"{count * mflop:.2f}", f"{count * mb:.2f}"] for count in (1, 4))
    expected = [["3", *one], ["1", *one], ["4", *total]]
    assert expected[-1] == ["4", "112.87", "51.39"]
    assert [re.findall(r"  (\d+) +([\d.]+) +([\d.]+)", line) for line in str(explanation).splitlines()[1:]] == [
        [tuple(numbers)] for numbers in expected
    ]
    cells = re.findall("<td>(.*?)</td>", explanation._repr_html_())
    assert [cells[8 * row + 3 : 8 * row + 6] for row in range(3)] == expected
