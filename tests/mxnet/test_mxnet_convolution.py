"""Convolution and Deconvolution with all their gradients, against MXNet's own numbers."""

import jax
import mxnet_records as records
import pytest

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
