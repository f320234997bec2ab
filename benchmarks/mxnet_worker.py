"""The other end of `peers.MXNet`: a JSON question on each line of standard input, an answer on each line of standard output.

Needs no more than Python 3.8, NumPy and MXNet 1.9.
"""

import json
import os
import sys
import time

import numpy as np

os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
np.bool = bool  # MXNet 1.9 uses the name, NumPy 1.24 and later lack it

import mxnet as mx  # noqa: E402


def main():
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever MXNet prints goes to standard error
    state = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = OPERATIONS[question.pop("op")](state, **question)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def version(state):
    """Says which MXNet this is."""
    return {"version": mx.__version__}


def prepare(state, mode, row, out_size, paths):
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
        state["call"] = lambda: executor.forward(is_train=False)[0]
    else:
        executor.forward(is_train=True)[0].wait_to_read()
        (grad,) = grads.values()

        def backward():
            executor.backward([ct])
            return grad

        state["call"] = backward
    state["call"]().wait_to_read()
    return {}


def result(state, path):
    """Saves what one call returns."""
    np.save(path, state["call"]().asnumpy())
    return {}


def sample(state, seconds):
    """Measures for so many seconds, one call at least."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        state["call"]().wait_to_read()
        times.append(time.perf_counter() - start)
    return {"times": times}


OPERATIONS = {"version": version, "prepare": prepare, "result": result, "sample": sample}

if __name__ == "__main__":
    main()
