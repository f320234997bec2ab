"""`explain`: every convolution, where it comes from, its role, its plan and reason, and what it costs."""

import html
import inspect

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
    table = explanation._repr_html_()
    assert table.count("<tr>") == 5 and table.count("<td>") == 4 * 8
    assert "-&gt;" in table and html.escape(explanation.entries[0].plan.reason) in table
    assert str(jgc.explain(jnp.sin, X)).splitlines()[-1].split() == ["total", "convolutions", "on", "cpu", "0", "0.00", "0.00"]
