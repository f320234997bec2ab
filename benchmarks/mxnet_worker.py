"""The other end of `mxnet_peer.MXNet`; needs no more than Python 3.8, NumPy and MXNet 1.9."""

import os

import numpy as np

from benchmarks.worker import sample, serve

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
np.bool = bool  # MXNet 1.9 uses the name, NumPy 1.24 and later lack it

import mxnet as mx  # noqa: E402

STATE = {}  # the one row that is bound: its `call`


def version():
    """Says which MXNet this is."""
    return mx.__version__


def prepare(mode, row, out_size, paths):
    """Binds the row's operator to its operands; for a gradient runs the forward pass once, which is not measured."""
    operator = mx.sym.Deconvolution if row["form"] == "transpose" else mx.sym.Convolution
    pads = [max(pair) for pair in row["padding"]]
    parameters = dict(
        kernel=row["kernel"],
        stride=row["stride"],
        dilate=row["dilation"],
        pad=pads,
        num_filter=row["features"],
        num_group=row["groups"],
        no_bias=True,
    )
    if row["form"] == "transpose":
        parameters["adj"] = row["output_padding"]
    out = operator(mx.sym.Variable("x"), mx.sym.Variable("w"), **parameters)
    for axis, size in enumerate(out_size):
        if row["padding"][axis][1] != pads[axis]:  # causal
            out = mx.sym.slice_axis(out, axis=axis + 2, begin=0, end=size)
    x, w, ct = (mx.nd.array(np.load(path)) for path in paths[:3])
    needs = {"x": "write" if mode == "dx" else "null", "w": "write" if mode == "dw" else "null"}
    grads = {name: mx.nd.zeros_like(value) for name, value in (("x", x), ("w", w)) if needs[name] == "write"}
    executor = out.bind(mx.cpu(), args={"x": x, "w": w}, args_grad=grads, grad_req=needs)
    if mode == "fwd":
        STATE["call"] = lambda: executor.forward(is_train=False)[0]
    else:
        executor.forward(is_train=True)[0].wait_to_read()
        (grad,) = grads.values()

        def backward():
            executor.backward([ct])
            return grad

        STATE["call"] = backward
    STATE["call"]().wait_to_read()


def result(path):
    """Saves what one call returns."""
    np.save(path, STATE["call"]().asnumpy())


def measure(seconds):
    """Measures for so many seconds, one call at least."""
    return sample(lambda: STATE["call"]().wait_to_read(), seconds)


if __name__ == "__main__":
    serve({"version": version, "prepare": prepare, "result": result, "sample": measure})
