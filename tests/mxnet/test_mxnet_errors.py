"""Bad calls, in MXNet's words."""

import jax.numpy as jnp
import mxnet_records as records
import pytest

from jaxgroupconv.mxnet import MXNetError, nd

CASES = records.cases("errors")
# Where MXNet crashes, or says nothing of meaning, the record has no text.
OURS = {
    "error-042": "value 0 for Parameter num_group should be greater equal to 1",
    "error-053": "Shape inconsistent, Provided = [4,6,3,3], inferred shape=(4,4294967295,3,3)",
    "error-055": "value 0 for Parameter num_group should be greater equal to 1",
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_bad_call(case):
    dtypes = case.get("dtypes", {})
    arrays = [jnp.ones(shape, dtypes.get(name, "float32")) for name, shape in case["shapes"].items()]
    with pytest.raises(MXNetError) as caught:
        getattr(nd, case["op"])(*arrays, **case["attrs"])
    assert (case["message_tail"] or OURS[case["id"]]) in str(caught.value)


def test_the_error_is_a_runtime_error_and_a_value_error():
    assert issubclass(MXNetError, RuntimeError) and issubclass(MXNetError, ValueError)
