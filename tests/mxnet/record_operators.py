"""Records what MXNet answers for single operators: data/operators.json and .npz.

Run by an interpreter that has MXNet 1.9.1, so an old one: `python tests/mxnet/record_operators.py`. It needs nothing else.
"""

import json
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, nd

IMAGE = (2, 6, 7, 9)
VECTOR = (6,)


# Where MXNet's gradient is not the derivative: selu's is computed from the wrong value, SoftmaxOutput's out_grad multiplies by
# the output instead of the head, SoftmaxActivation's sums over other axes than its value, BatchNorm's ignores the heads of the
# statistics. The values are right.
WRONG_GRADIENTS = [
    ("LeakyReLU", {"act_type": "selu"}),
    ("SoftmaxOutput", {"out_grad": "True"}),
    ("SoftmaxActivation", {}),
    ("BatchNorm", {"fix_gamma": "False", "output_mean_var": "True"}),
]


def case(op, *shapes, train=True, ints=(), low=-2.0, high=2.0, **attrs):
    """One call; `ints` are inputs that hold whole numbers (labels, indices), as {position: upper bound}.

    Gradients are taken in training mode only: outside it, MXNet's accelerated operators have kept nothing to compute them from.
    """
    strings = {key: str(value) for key, value in attrs.items()}
    return {"op": op, "shapes": shapes, "train": train, "ints": dict(ints), "range": (low, high), "attrs": strings}


def batch_norm(**attrs):
    return case("BatchNorm", IMAGE, VECTOR, VECTOR, VECTOR, VECTOR, low=0.5, high=2.0, **attrs)


CASES = [
    *(case("Activation", (3, 5), act_type=kind) for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")),
    *(case("LeakyReLU", (3, 5), act_type=kind) for kind in ("leaky", "elu", "selu", "gelu")),
    case("LeakyReLU", (3, 5), act_type="rrelu", train=False),
    case("LeakyReLU", (3, 5), act_type="leaky", slope=0.1),
    case("LeakyReLU", IMAGE, VECTOR, act_type="prelu"),
    case("LeakyReLU", IMAGE, (1,), act_type="prelu"),
    *(case(name, (3, 5)) for name in ("sigmoid", "relu", "exp", "abs", "tanh", "softsign", "square", "negative", "_copy")),
    *(case(name, (3, 5), low=0.5, high=3.0) for name in ("sqrt", "log")),
    case("clip", (4, 5), a_min=-1, a_max=0.5),
    case("BlockGrad", (3, 4)),
    case("Cast", (3, 4), dtype="float16"),
    *(case(f"_{name}_scalar", (3, 4), low=0.5, high=2.0, scalar=1.5) for name in
      ("plus", "minus", "rminus", "mul", "div", "rdiv", "power", "maximum", "minimum")),
    *(case(f"elemwise_{name}", (3, 4), (3, 4), low=0.5) for name in ("add", "sub", "mul", "div")),
    *(case(f"broadcast_{name}", (2, 3, 4), (2, 1, 4), low=0.5) for name in ("add", "sub", "mul", "div")),
    case("broadcast_mul", (2, 3, 4), (4,)),
    case("add_n", (3, 4), (3, 4), (3, 4), num_args=3),
    *(batch_norm(fix_gamma=fix, train=train) for fix in (True, False) for train in (True, False)),
    batch_norm(fix_gamma=False, use_global_stats=True),
    batch_norm(fix_gamma=False, momentum=0.5, eps=0.1),
    case("BatchNorm", (2, 5, 6), VECTOR, VECTOR, VECTOR, VECTOR, low=0.5, axis=-1, fix_gamma=False),
    case("InstanceNorm", (2, 6, 4, 5), VECTOR, VECTOR, eps=0.01),
    *(case("L2Normalization", (2, 3, 4, 5), mode=mode) for mode in ("instance", "channel", "spatial")),
    case("LRN", (2, 7, 3, 3), nsize=5, alpha=0.1, beta=0.75, knorm=2),
    case("softmax", (3, 5)),
    case("softmax", (2, 3, 4), axis=1, temperature=2.0),
    case("softmax", (3, 5), (3,), ints={1: 5}, axis=1, use_length=True),
    case("SoftmaxActivation", (2, 3, 4)),
    case("SoftmaxActivation", (2, 3, 4), mode="channel"),
    *(case("SoftmaxOutput", (4, 5), (4,), ints={1: 5}, **attrs) for attrs in (
        {}, {"grad_scale": 2.5}, {"normalization": "batch"}, {"use_ignore": True, "ignore_label": 1},
        {"use_ignore": True, "ignore_label": 1, "normalization": "valid"}, {"smooth_alpha": 0.1}, {"out_grad": True},
    )),
    *(case("SoftmaxOutput", (2, 5, 3, 4), (2, 3, 4), ints={1: 5}, multi_output=True, **attrs) for attrs in (
        {}, {"normalization": "batch"}, {"normalization": "valid", "use_ignore": True, "ignore_label": 2},
    )),
    case("SoftmaxOutput", (2, 3, 5), (2, 3), ints={1: 5}, preserve_shape=True),
    case("SoftmaxOutput", (4, 5), (4, 5)),
    case("FullyConnected", (2, 3, 4), (5, 12), (5,), num_hidden=5),
    case("FullyConnected", (2, 3, 4), (5, 4), num_hidden=5, flatten=False, no_bias=True),
    case("FullyConnected", (2, 3, 4), (5, 4), (5,), num_hidden=5, flatten=False),
    *(case("Pooling", IMAGE, pool_type=kind, kernel=(3, 2), stride=(2, 3), pad=(1, 1), pooling_convention=convention)
      for kind in ("max", "avg", "sum") for convention in ("valid", "full")),
    case("Pooling", IMAGE, pool_type="avg", kernel=(3, 3), stride=(2, 2), pad=(1, 1), count_include_pad=False),
    case("Pooling", IMAGE, pool_type="avg", kernel=(3, 3), stride=(2, 2), pad=(1, 1), count_include_pad=False,
         pooling_convention="full"),
    case("Pooling", (2, 6, 8, 8), pool_type="avg", kernel=(3, 3), stride=(2, 2), pooling_convention="full"),
    case("Pooling", (2, 6, 8, 8), pool_type="max", kernel=(3, 3), stride=(2, 2), pooling_convention="full"),
    case("Pooling", (2, 6, 8, 8), pool_type="max", kernel=(2, 2)),
    case("Pooling", (2, 6, 8, 8), pool_type="avg", kernel=(2, 2), stride=(3, 3), pooling_convention="full"),
    case("Pooling", (2, 3, 9), pool_type="max", kernel=(4,), stride=(2,), pad=(1,)),
    case("Pooling", (2, 3, 4, 5, 6), pool_type="avg", kernel=(2, 3, 2), stride=(1, 2, 2), pad=(1, 1, 0)),
    case("Pooling", IMAGE, pool_type="lp", p_value=2, kernel=(3, 3), stride=(2, 2), low=0.5),
    *(case("Pooling", IMAGE, pool_type=kind, global_pool=True, kernel=(2, 2), pad=(1, 1)) for kind in ("max", "avg", "sum")),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE, output_size=(3, 2)),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE, output_size=4),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE),
    *(case("UpSampling", (2, 3, 4, 5), scale=scale, sample_type="nearest", num_args=1) for scale in (2, 3)),
    case("UpSampling", (2, 3, 4, 4), (2, 2, 2, 2), scale=2, sample_type="nearest", num_args=2),
    case("UpSampling", (2, 3, 4, 4), (2, 3, 2, 2), scale=2, sample_type="nearest", num_args=2, multi_input_mode="sum"),
    *(case("UpSampling", (2, 3, 4, 5), (3, 1, kernel, kernel), scale=scale, sample_type="bilinear", num_filter=3, num_args=1)
      for scale, kernel in ((2, 4), (3, 5), (4, 8))),
    case("Flatten", (2, 3, 4)),
    case("Flatten", (5,)),
    case("Concat", (2, 3, 4), (2, 5, 4), num_args=2),
    case("Concat", (2, 3, 4), (2, 3, 5), num_args=2, dim=-1),
    case("stack", (2, 3), (2, 3), num_args=2, axis=-1),
    case("SliceChannel", (2, 6, 4), num_outputs=3),
    case("SliceChannel", (2, 6, 3), num_outputs=3, axis=-1, squeeze_axis=True),
    case("SwapAxis", (2, 3, 4), dim1=0, dim2=-1),
    case("transpose", (2, 3, 4)),
    case("transpose", (2, 3, 4), axes=(1, 0, 2)),
    case("slice_axis", (4, 6), axis=-1, begin=-4, end=None),
    case("slice_axis", (4, 6), axis=0, begin=1, end=-1),
    case("slice", (4, 6), begin="(1, None)", end="(None, 5)"),
    case("slice", (4, 6), begin="(None, 4)", end="(None, None)", step="(2, -1)"),
    case("expand_dims", (2, 3), axis=-1),
    case("squeeze", (1, 3, 1)),
    case("squeeze", (1, 3, 1), axis="(-1,)"),
    case("tile", (2, 3), reps=(2, 1, 3)),
    case("take", (4, 3), (2, 2), ints={1: 6}),
    case("take", (4, 3), (5,), ints={1: 8}, axis=1, mode="wrap"),
    *(case("Pad", (2, 3, 4, 5), mode=mode, pad_width=(0, 0, 0, 0, 1, 2, 3, 1)) for mode in ("constant", "edge", "reflect")),
    case("Pad", (1, 2, 2, 3, 2), mode="constant", pad_width=(0, 0, 0, 0, 1, 0, 0, 1, 1, 1), constant_value=2.5),
    case("Crop", (1, 2, 6, 7), num_args=1, h_w=(3, 4), offset=(1, 2)),
    case("Crop", (1, 2, 6, 7), (1, 1, 3, 4), num_args=2, center_crop=True),
    *(case(name, (2, 3, 4), **attrs) for name in ("sum", "mean") for attrs in
      ({}, {"axis": 1}, {"axis": (0, -1), "keepdims": True}, {"axis": 1, "exclude": True}, {"keepdims": True})),
    case("Dropout", (3, 4), p=0.4, train=False),
    case("Dropout", (3, 4), p=0),
    # What comes here takes its random numbers after all others, and so leaves them as they are recorded.
    case("sum", (2, 3, 4), axis=-2),
    case("mean", (2, 3, 4), axis=(-2, -1)),
    case("sum", (2, 3, 4), axis=-1, exclude=True),
    *(batch_norm(fix_gamma=False, output_mean_var=True, train=train) for train in (True, False)),
]  # fmt: skip


def record(case, key, rng, arrays):
    """Makes inputs, calls MXNet and notes everything that came out."""
    low, high = case["range"]
    whole = "int32" if case["op"] == "softmax" else "float32"  # MXNet takes labels and indices as floats, lengths not
    inputs = [
        rng.integers(0, case["ints"][i], shape).astype(whole) if i in case["ints"] else rng.uniform(low, high, shape)
        for i, shape in enumerate(case["shapes"])
    ]
    inputs = [x.astype("float32") if x.dtype == "float64" else x for x in inputs]
    handles = [nd.array(x, dtype=x.dtype) for x in inputs]
    for i, handle in enumerate(handles):
        if handle.dtype != np.int32 and not (case["op"] == "BatchNorm" and i > 2):
            handle.attach_grad()
    name = case["op"].replace("_contrib_", "")
    function = next(getattr(module, name) for module in (nd, nd._internal, nd.contrib) if hasattr(module, name))
    with autograd.record(train_mode=case["train"]):
        out = function(*handles, **{k: v for k, v in case["attrs"].items() if k != "num_args"})
    outs = out[:1] if case["attrs"].get("act_type") == "rrelu" else out if isinstance(out, list) else [out]
    heads = [rng.uniform(-1, 1, x.shape).astype(x.dtype) for x in outs]
    autograd.backward(outs, [nd.array(head, dtype=head.dtype) for head in heads])
    named = {f"in{i}": x for i, x in enumerate(inputs)}
    named.update({f"out{i}": x.asnumpy() for i, x in enumerate(outs)})
    named.update({f"head{i}": x for i, x in enumerate(heads)})
    if case["train"] and (case["op"], case["attrs"]) not in WRONG_GRADIENTS:
        named.update({f"grad{i}": handle.grad.asnumpy() for i, handle in enumerate(handles) if handle.grad is not None})
    if case["op"] == "BatchNorm":
        named.update({f"aux{i}": handles[3 + i].asnumpy() for i in range(2)})
    arrays.update({f"{key}/{name}": x for name, x in named.items()})
    return {"id": key, "op": case["op"], "attrs": case["attrs"], "train": case["train"], "arrays": sorted(named)}


def main():
    assert mx.__version__ == "1.9.1", mx.__version__
    rng = np.random.default_rng(2021)
    data = Path(__file__).parent / "data"
    arrays: dict = {}
    rows = [record(case, f"{case['op'].strip('_')}-{i:03}", rng, arrays) for i, case in enumerate(CASES)]
    (data / "operators.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    np.savez_compressed(data / "operators.npz", **arrays)


if __name__ == "__main__":
    main()
