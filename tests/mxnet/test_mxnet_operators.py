"""Single operators, values and gradients, against MXNet's own numbers (recorded by record_operators.py)."""

import jax
import jax.numpy as jnp
import mxnet_records as records
import numpy as np
import pytest

from jaxgroupconv.mxnet import nd
from jaxgroupconv.mxnet.registry import OPERATORS

CASES = records.cases("operators")
ARRAYS = records.arrays("operators")


def gradients(case):
    """The numbers of the inputs whose gradients are recorded."""
    return [int(name.removeprefix("grad")) for name in case["arrays"] if name.startswith("grad")]


def test_the_records_are_complete():
    without = [case["id"] for case in CASES if case["train"] and not gradients(case)]
    # MXNet's own gradients are wrong there, see record_operators.py.
    assert without == ["LeakyReLU-007", "SoftmaxActivation-061", "SoftmaxOutput-069", "BatchNorm-147"]
    assert (len(CASES), sum(len(gradients(case)) for case in CASES)) == (149, 192)


@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_values_and_gradients(case):
    op, arrays = OPERATORS[case["op"]], {name: ARRAYS[f"{case['id']}/{name}"] for name in case["arrays"]}
    inputs, outs, heads, aux = (
        [arrays[name] for name in case["arrays"] if name.startswith(kind)] for kind in ("in", "out", "head", "aux")
    )
    p = op.parse(case["attrs"])

    def compute(*xs):
        outputs, moved = op(p, xs, train=case["train"])
        return list(outputs[: len(outs)]), moved

    @jax.jit
    def both(inputs, heads):
        out, pull, moved = jax.vjp(compute, *inputs, has_aux=True)
        return out, moved, pull(heads)

    out, moved, pulled = both([jnp.asarray(x) for x in inputs], [jnp.asarray(head) for head in heads])
    for got, want in zip(out, outs, strict=True):
        records.assert_close(got, want, 1e-5, 1e-5, "output")
    for i in gradients(case):
        records.assert_close(pulled[i], arrays[f"grad{i}"], 1e-4, 1e-5, f"gradient {i}")
    for got, want in zip(moved if aux else (), aux, strict=True):
        records.assert_close(got, want, 1e-5, 1e-6, "moving average")


# MXNet 1.9.1 reads three pads for this convention, so it computes it on its plain path only and if pad is given as (0, 0, 0).
SAME = [
    ((3, 2), "max", [6, -6, 0, 9, -5], [0, 1, 0, 1, 0, 0, 1, 1, 1]),
    ((3, 2), "avg", [0, -7, -8 / 3, 4 / 3, -5], [1 / 3, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 3, 4 / 3]),
    ((4, 3), "max", [6, 0, 9], [0, 1, 0, 0, 0, 0, 1, 1, 0]),
    ((4, 3), "sum", [-6, -14, 4], [1, 1, 1, 2, 1, 1, 2, 1, 1]),
    ((2, 3), "avg", [4.5, -6, 4.5], [0.5, 0.5, 0, 0.5, 0.5, 0, 0.5, 0.5, 0]),
    ((9, 4), "max", [9, 9, -5], [0, 0, 0, 0, 0, 0, 0, 2, 1]),
]


@pytest.mark.parametrize(("window", "kind", "want", "want_grad"), SAME, ids=str)
def test_the_pooling_convention_same(window, kind, want, want_grad):
    x = jnp.array([3.0, 6, -9, -6, -6, -2, 0, 9, -5]).reshape(1, 1, 9)

    def pool(x):
        return nd.Pooling(x, kernel=window[:1], stride=window[1:], pool_type=kind, pooling_convention="same")

    out, pull = jax.vjp(pool, x)
    records.assert_close(out, np.float32([[want]]), 1e-6, 0, "output")
    records.assert_close(pull(jnp.ones_like(out))[0], np.float32([[want_grad]]), 1e-6, 0, "gradient")


def test_windows_beyond_the_data_are_empty():
    x = jnp.ones((1, 1, 3))
    out = nd.Pooling(x, kernel=(1,), stride=(3,), pool_type="avg", pooling_convention="full")
    np.testing.assert_array_equal(out, [[[1, 0]]])
