"""Wrong calls: each is a ValueError or TypeError that says what is wrong, and absurd sizes cost nothing."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgroupconv.mxnet import MXNetError, nd, sym
from jaxgroupconv.mxnet.registry import OPERATORS


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: sym.Convolution(x, kernel=(3, 3), num_filter="x"), "but value='x', in operator Convolution"),
        (
            lambda x: sym.Convolution(x, kernel=(3, 3), num_filter=2, stride=(1,)),
            "Stride must have the same number of dim",
        ),
        (
            lambda x: sym.Convolution(x, x, x, kernel=1, num_filter=2, no_bias=True),
            "ComposeKeyword argument name bias not found",
        ),
        (lambda x: sym.relu(sym.SliceChannel(x, num_outputs=2)), "data is a tuple, single value is required"),
        (lambda x: sym.Pooling(x, kernel=(2, 2), pooling_convention="same"), "Currently 'same' supports Max Pooling 1-D"),
        (lambda x: sym.Pooling(x), "0D pooling not supported"),
        (lambda x: sym.Pooling(x, kernel=(0, 2)), "for Parameter kernel is invalid"),
        (lambda x: sym.Pooling(x, kernel=(2, 2), pool_type="lp"), "p_value must be given"),
    ],
)
def test_mistakes_show_when_a_node_is_made(build, message):
    with pytest.raises(MXNetError, match=message):
        build(sym.Variable("x"))


def test_only_symbols_go_into_symbols():
    with pytest.raises(TypeError, match="Argument data must be Symbol instances, but got 3"):
        sym.relu(3)
    with pytest.raises(TypeError, match="Expected a list of symbols"):
        sym.Group([])


@pytest.mark.parametrize(
    ("attributes", "shapes", "message"),
    [
        ({"op": "SliceChannel", "num_outputs": 2}, [(2, 3)], "You are trying to split the 1-th axis .* num_outputs=2"),
        ({"op": "SliceChannel", "num_outputs": 3, "squeeze_axis": 1}, [(2, 6)], "If squeeze axis is True"),
        ({"op": "slice_axis", "axis": 1, "begin": 2, "end": 2}, [(2, 6)], "Invalid begin, end, get begin=2, end=2"),
        ({"op": "slice_axis", "axis": 1, "begin": 2, "end": 9}, [(2, 6)], "Invalid end for end=9 as axis_size is 6"),
        ({"op": "slice", "begin": (1,), "end": (1, 2)}, [(2, 6)], "begin and end must have the same length"),
        ({"op": "slice", "begin": (1,), "end": (0,), "step": (0,)}, [(2, 6)], "step.* cannot be 0"),
        ({"op": "SwapAxis", "dim1": 3}, [(2, 6)], "axis 3 exceeds the input dimension of 2"),
        ({"op": "squeeze", "axis": (1,)}, [(1, 2)], "size=2 not equal to one"),
        ({"op": "Pooling", "kernel": (3,)}, [(1, 2, 8, 8)], r"Input data should be 3D in \(batch, channel, x\)"),
        ({"op": "Pooling", "kernel": (3, 3)}, [(1, 2, 2, 8)], r"kernel size \(3\) exceeds input \(2 padded to 2\)"),
        ({"op": "Pooling", "global_pool": True}, [(1, 2)], "Input data should be  3D"),
        ({"op": "BatchNorm", "axis": 5}, [(2, 3)] + [(3,)] * 4, "Channel axis out of range: 5"),
        ({"op": "FullyConnected", "num_hidden": 4}, [(2, 3), (3, 3), (4,)], r"inferred shape=\(4,3\)"),
        ({"op": "Pad", "mode": "edge", "pad_width": (0, 0, 1, 1)}, [(2, 2)], "only supports 4-D or 5-D"),
        ({"op": "Pad", "mode": "edge", "pad_width": (0, 0, 1, 1, 0, 0, 0, 0)}, [(1, 1, 2, 2)], "first two axes to be zero"),
        ({"op": "Pad", "mode": "edge", "pad_width": (0, 0, 0, 0)}, [(1, 1, 2, 2)], "spec mismatch"),
        ({"op": "Pad", "mode": "reflect", "pad_width": (0,) * 7 + (2,)}, [(1, 1, 2, 2)], "smaller than the input size"),
        ({"op": "Concat", "dim": 2}, [(2, 3), (2, 3)], "axis 2 exceeds"),
        ({"op": "Crop", "h_w": (3, 3)}, [(1, 1, 2, 2)], "exceeds the input"),
        ({"op": "UpSampling", "scale": 2, "sample_type": "bilinear", "num_filter": 2, "num_args": 1},
         [(1, 3, 2, 2), (2, 1, 4, 4)], "num_filter must be the number of channels, 3, but is 2"),
        ({"op": "_contrib_AdaptiveAvgPooling2D"}, [(1, 3, 2)], "Input data should be 4D"),
        ({"op": "sum", "axis": 2}, [(2, 6)], r"Reduction axis \[2\] Exceeds input dimensions \[2,6\]"),
        ({"op": "mean", "axis": (0, -3)}, [(2, 6)], r"Reduction axis \[0,-3\] Exceeds input dimensions \[2,6\]"),
        ({"op": "mean", "axis": (1, -1)}, [(2, 6)], r"Reduction axes have duplicates \[1,-1\]"),
        ({"op": "InstanceNorm"}, [(3,)] * 3, "InstanceNorm only supports input tensors of rank >= 3"),
        ({"op": "LRN", "nsize": 3}, [(3,)], r"at least 2D in \(batch, channel, ...\), but is 1D"),
        ({"op": "LRN", "nsize": 4}, [(1, 3, 2, 2)], "LRN only supports odd values for local_size"),
        *(({"op": "UpSampling", "scale": 2, "sample_type": "nearest", "num_args": 1}, [shape], "Input data should be 4D")
          for shape in [(3,), (2, 3), (2, 3, 4)]),
        ({"op": "UpSampling", "scale": 2, "sample_type": "nearest", "num_args": 2}, [(1, 1, 3, 3), (1, 1, 4, 6)],
         "must become 6 x 6 by whole factors, but one is 4 x 6"),
        ({"op": "Pooling", "kernel": (2, 2), "pool_type": "lp", "p_value": 0}, [(1, 1, 4, 4)], "p value of 0 is not"),
        ({"op": "Pooling", "global_pool": True, "pool_type": "lp"}, [(1, 1, 4, 4)], "p_value must be given"),
        ({"op": "Pooling", "kernel": (-1, 2)}, [(1, 1, 4, 4)], r"value \[-1,2\] for Parameter kernel is invalid"),
        ({"op": "Pooling", "kernel": (2, 2), "stride": (1, -1)}, [(1, 1, 4, 4)], "for Parameter stride is invalid"),
        ({"op": "Pooling", "kernel": (2, 2), "pad": (-1, 0)}, [(1, 1, 4, 4)], "for Parameter pad is invalid"),
        ({"op": "Pooling", "kernel": (2, 2), "pad": (0, 2)}, [(1, 1, 4, 4)], r"pad_l\[1\] < kernel\[1\] \(2 vs. 2\)"),
        ({"op": "Pooling", "kernel": (3,), "pad": (1,), "pooling_convention": "same"}, [(1, 1, 4)], "disables the use of pad"),
        ({"op": "Pad", "mode": "edge", "pad_width": None}, [(1, 1, 2, 2)], "spec mismatch"),
        ({"op": "_contrib_AdaptiveAvgPooling2D", "output_size": (1, 2, 3)}, [(1, 1, 4, 4)], "one or two positive sizes"),
        ({"op": "_contrib_AdaptiveAvgPooling2D", "output_size": 0}, [(1, 1, 4, 4)], r"but is \[0\]"),
        ({"op": "Crop", "h_w": None}, [(1, 1, 2, 2)], "h_w and offset must have two dimensions, but are None"),
        ({"op": "Crop", "h_w": (1, 1)}, [(1, 2, 2)], "Input data should be 4D in batch-num_filter-y-x"),
        ({"op": "Deconvolution", "kernel": (2, 2), "num_filter": 1, "target_shape": (3,)}, [(1, 1, 2, 2), (1, 1, 2, 2)],
         "Target shape must have the same number of dimensions"),
        ({"op": "transpose", "axes": (0, 0)}, [(2, 3)], r"transpose does not fit inputs of shapes \[2,3\]: .*permutation"),
        ({"op": "FullyConnected", "num_hidden": 2, "no_bias": True}, [(), (2, 1)], "at least 1D, but is 0D"),
        ({"op": "SoftmaxOutput", "multi_output": True}, [(3,), (3,)], "at least 2D, but is 1D"),
        ({"op": "Flatten"}, [()], r"Flatten does not fit inputs of shapes \[\]: "),
        ({"op": "take"}, [(0, 3), (2, 1)], r"take does not fit inputs of shapes \[0,3\], \[2,1\]: "),
    ],
    ids=lambda value: value["op"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_mistakes_of_shape(attributes, shapes, message):
    attributes = dict(attributes)
    with pytest.raises(MXNetError, match=message):
        getattr(nd, attributes.pop("op"))(*[jnp.ones(shape) for shape in shapes], **attributes)


def test_mistakes_of_calls():
    x = jnp.ones((1, 4, 5, 5))
    with pytest.raises(TypeError, match=r"Argument data must have NDArray type, but got \[1\]"):
        nd.relu([1])
    with pytest.raises(TypeError, match="`out` must be left out"):
        nd.relu(x, out=x)
    with pytest.raises(TypeError, match="relu got several values for data"):
        nd.relu(x, data=x)
    with pytest.raises(TypeError, match="relu takes at most 1 positional arguments"):
        nd.relu(x, x)


def test_none_stands_for_what_is_not_given():
    x, w = jnp.arange(32.0).reshape(1, 2, 4, 4), jnp.ones((2, 3, 2, 2))
    calls = [
        ("_contrib_AdaptiveAvgPooling2D", [x], "output_size"),
        ("tile", [x], "reps"),
        ("transpose", [x], "axes"),
        ("sum", [x], "axis"),
        ("Dropout", [x], "axes"),
    ]
    for op, inputs, attribute in calls:
        given = {} if op != "tile" else {"reps": ()}
        np.testing.assert_array_equal(getattr(nd, op)(*inputs, **{attribute: None}), getattr(nd, op)(*inputs, **given))
    deconvolution = {"kernel": (2, 2), "num_filter": 3}
    unset = nd.Deconvolution(x, w, target_shape=None, **deconvolution)
    np.testing.assert_array_equal(unset, nd.Deconvolution(x, w, **deconvolution))


HUGE = 10**10


@pytest.mark.parametrize(
    ("attributes", "shapes", "message"),
    [
        ({"op": "Concat", "num_args": HUGE}, [(2, 3)], "Invalid Parameter format for num_args expect int"),
        (
            {"op": "Concat", "num_args": 2**31 - 1},
            [(2, 3)],
            "value 2147483647 for Parameter num_args .* smaller equal to 65536",
        ),
        ({"op": "add_n", "num_args": 2**16}, [(2, 3)], "Operator add_n expects 65536 inputs, but got 1"),
        ({"op": "stack", "num_args": 2**30}, [(2, 3)], "for Parameter num_args"),
        ({"op": "SliceChannel", "num_outputs": HUGE}, [(2, 3)], "Invalid Parameter format for num_outputs"),
        ({"op": "SliceChannel", "num_outputs": 2**30}, [(2, 3)], "for Parameter num_outputs .* smaller equal to 65536"),
        ({"op": "SliceChannel", "num_outputs": 2**16}, [(2, 3)], "does not evenly divide 3"),
        ({"op": "_contrib_AdaptiveAvgPooling2D", "output_size": HUGE}, [(1, 1, 4, 4)], "at most 16 times the input's size"),
        ({"op": "Pooling", "kernel": (HUGE, 2)}, [(1, 1, 4, 4)], "exceeds input"),
        ({"op": "Pooling", "kernel": (HUGE, 2), "pad": (HUGE - 1, 0)}, [(1, 1, 4, 4)], "exceeds both the input"),
        ({"op": "Pooling", "kernel": (2, 2), "pad": (HUGE, 0)}, [(1, 1, 4, 4)], "Check failed: pad_l"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_absurd_sizes_cost_nothing(attributes, shapes, message):
    attributes = dict(attributes)
    op = attributes.pop("op")
    with pytest.raises(MXNetError, match=message):
        getattr(nd, op)(*[jnp.ones(shape) for shape in shapes], **attributes)
    # The same out of a file, as far as its shapes.
    names = ["x"] * len(shapes)
    nodes = [{"op": "null", "name": name, "inputs": []} for name in names]
    strings = {key: str(value) for key, value in attributes.items()}
    nodes.append({"op": op, "name": "n", "attrs": strings, "inputs": [[i, 0, 0] for i in range(len(names))]})
    document = {"nodes": nodes, "arg_nodes": [0], "heads": [[len(names), 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}}
    with pytest.raises(MXNetError, match=message):
        sym.load_json(json.dumps(document)).infer_shape(x=shapes[0])


def test_windows_far_larger_than_the_data_see_all_of_it():
    x = jnp.arange(12.0).reshape(1, 1, 3, 4)
    for kind in ("max", "sum"):
        out = nd.Pooling(x, kernel=(2 * 10**9 + 1, 1), pad=(10**9, 0), pool_type=kind)
        np.testing.assert_array_equal(out, jnp.broadcast_to(getattr(x, kind)(2, keepdims=True), x.shape))
    np.testing.assert_array_equal(nd.LRN(x, nsize=2**32 - 1), nd.LRN(x, nsize=1, alpha=1e-4 / (2**32 - 1)))


@pytest.mark.parametrize(
    ("op", "attribute", "text"),
    [
        ("transpose", "axes", "(" + " " * 100_000),
        ("transpose", "axes", "(1" + " " * 100_000 + ";)"),
        ("transpose", "axes", "(" + "1," * 50_000 + "x)"),
        ("slice", "begin", "(" + ") " * 50_000 + "x"),
        ("LRN", "alpha", "1" * 100_000 + "x"),
        ("LRN", "alpha", "1." + "1" * 100_000 + "x"),
        ("LRN", "nsize", " " * 100_000 + "x"),
        ("LRN", "nsize", "1" * 100_000),
        ("FullyConnected", "flatten", "true" * 25_000),
    ],
    ids=lambda value: value[:12],
)
def test_long_attributes_are_refused_as_quickly_as_short_ones(op, attribute, text):
    with pytest.raises(MXNetError, match=f"Invalid Parameter format for {attribute}"):
        OPERATORS[op].parse({attribute: text})
