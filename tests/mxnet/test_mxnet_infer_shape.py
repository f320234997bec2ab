"""Names and shape inference of symbols, against MXNet's own answers."""

import json
import warnings

import mxnet_records as records
import pytest

from jaxgroupconv.mxnet import MXNetError, sym

CASES = records.cases("infer_shape")


def test_the_records_are_complete():
    assert len(CASES) == 78


@pytest.mark.parametrize("case", CASES, ids=records.by_id)
def test_names_and_shapes(case):
    symbol = sym.load_json(json.dumps(case["symbol"]))
    assert symbol.list_arguments() == case["arguments"]
    assert symbol.list_outputs() == case["outputs"]
    assert symbol.list_auxiliary_states() == case["aux"]
    assert symbol.get_internals().list_outputs() == case["internals"]
    given = {name: tuple(shape) for name, shape in case["given"].items()}
    if "error" in case:
        with pytest.raises(MXNetError) as caught:
            symbol.infer_shape(**given)
        assert str(caught.value).endswith(case["error"])
        assert f"Error in operator {case['error_operator']}: " in str(caught.value)
        return
    if case.get("incomplete"):
        with pytest.warns(UserWarning, match="Cannot decide shape for the following arguments"):
            assert symbol.infer_shape(**given) == (None, None, None)
    else:
        assert symbol.infer_shape(**given) == lists(case)
    if "partial" in case:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert symbol.infer_shape_partial(**given) == lists(case["partial"])


def lists(record):
    return tuple([tuple(shape) for shape in record[key]] for key in ("arg_shapes", "out_shapes", "aux_shapes"))
