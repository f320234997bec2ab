"""Single operators, values and gradients, against MXNet's own numbers (recorded by record_operators.py)."""

import jax
import jax.numpy as jnp
import mxnet_records as records
import pytest

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
