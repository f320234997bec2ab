"""Convolution and Deconvolution with all their gradients, against MXNet's own numbers."""

import jax
import jax.numpy as jnp
import mxnet_records as records
import pytest
from inspecting import ran

from jaxgroupconv.mxnet import nd

CASES = records.cases("convolution") + records.cases("deconvolution")
ARRAYS = {op: records.arrays(op.lower()) for op in ("Convolution", "Deconvolution")}


def test_the_records_are_complete():
    assert [len(records.cases(name)) for name in ("convolution", "deconvolution")] == [154, 87]


@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_values_and_gradients(case):
    def compute(head, *inputs):
        out, pull = jax.vjp(lambda *xs: getattr(nd, case["op"])(*xs, **case["attrs"]), *inputs)
        return out, pull(head)

    arrays = ARRAYS[case["op"]]
    inputs = [arrays[case["arrays"][name]] for name in case["inputs"]]
    with jax.enable_x64(case["dtype"] == "float64"):
        out, grads = jax.jit(compute, compiler_options=records.QUICK)(arrays[case["head_grad"]], *inputs)
    tolerance = case["rtol"], case["atol"]
    records.assert_close(out, arrays[case["output"]], *tolerance, "output")
    for name, grad in zip(case["inputs"], grads, strict=True):
        records.assert_close(grad, arrays[case["grads"][name]], *tolerance, name)


@pytest.mark.parametrize("op, kernel", [("Convolution", (6, 2, 3, 3)), ("Deconvolution", (6, 2, 4, 4))])
def test_groups_are_planned_forward_and_backward(op, kernel):
    options = dict(kernel=kernel[2:], stride=(2, 2), num_filter=6, num_group=3, no_bias=True)

    def compute(x, w):
        out, pull = jax.vjp(lambda x, w: getattr(nd, op)(x, w, **options), x, w)
        return pull(out)

    names = ran(jax.jit(compute).lower(jnp.ones((1, 6, 9, 8)), jnp.ones(kernel)).as_text())
    assert len(names) == 3 and "native" not in names
