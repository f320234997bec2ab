"""The reshape codes, against MXNet's own answers and, where its code has a fault, against its documentation."""

import mxnet_records as records
import numpy as np
import pytest

from jaxgroupconv.mxnet import MXNetError, nd

CASES = records.cases("reshape")
ERRORS = {"MXNetError": MXNetError, "ValueError": ValueError}


def test_the_records_are_complete():
    assert len(CASES) == 230
    assert sum("error" in case for case in CASES) == 55


@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_reshape(case):
    x = np.arange(np.prod(case["shape"]), dtype=np.float32).reshape(case["shape"])
    arguments = {"shape": tuple(case["newshape"]), "reverse": case["reverse"]}
    if "error" in case:
        with pytest.raises(ERRORS[case["error_type"]]) as caught:
            nd.reshape(x, **arguments)
        assert type(caught.value).__name__ == case["error_type"]
        assert str(caught.value).endswith(case["error"])
    else:
        np.testing.assert_array_equal(nd.reshape(x, **arguments), x.reshape(case["result"]))


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"target_shape": "(2, 0)"}, (2, 15)),
        ({"target_shape": "(3, 0)"}, (3, 10)),
        ({"target_shape": "(9, 0)", "keep_highest": "True"}, (2, 15)),
        ({"shape": "(-1, 0)", "target_shape": "(30,)"}, (10, 3)),
        ({}, (2, 3, 5)),
    ],
    ids=str,
)
def test_the_form_of_old_files(attributes, shape):
    assert nd.Reshape(np.zeros((2, 3, 5), np.float32), **attributes).shape == shape


def test_the_shape_is_one_argument():
    with pytest.raises(MXNetError, match="Invalid Parameter format for reverse expect boolean but value='12'"):
        nd.reshape(np.zeros((2, 3, 4), np.float32), 2, 12)
