"""Bad calls, in MXNet's words."""

import jax.numpy as jnp
import mxnet_records as records
import pytest

from jaxgroupconv.mxnet import MXNetError, nd

CASES = [case for case in records.cases("errors") if case["op"] != "Deconvolution"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_bad_call(case):
    dtypes = case.get("dtypes", {})
    arrays = [jnp.ones(shape, dtypes.get(name, "float32")) for name, shape in case["shapes"].items()]
    with pytest.raises(MXNetError) as caught:
        getattr(nd, case["op"])(*arrays, **case["attrs"])
    # Where MXNet crashes or says nothing of meaning, the record has no text: an error that names the parameter will do.
    tail = case["message_tail"] or "num_"
    assert tail in str(caught.value)


def test_the_error_is_a_runtime_error_and_a_value_error():
    assert issubclass(MXNetError, RuntimeError) and issubclass(MXNetError, ValueError)
