"""The other end of `mxnet_networks`; needs no more than Python 3.8, NumPy and MXNet 1.9."""

import os

import numpy as np

from benchmarks.worker import sample, serve

np.bool = bool  # MXNet 1.9 uses the name, NumPy 1.24 and later lack it

import mxnet as mx  # noqa: E402

STATE = {}  # the one network that is bound: its executor, its `call` and the names of its gradients


def version():
    """Says which MXNet this is."""
    return mx.__version__


def prepare(folder, heads, train, dtype="float32"):
    """Binds a recorded network to its parameters and inputs; gradients are for parameters, not for data."""
    name = os.path.basename(folder)
    symbol = mx.sym.load(os.path.join(folder, "symbol.json"))
    params = mx.nd.load(os.path.join(folder, name + "-0000.params"))
    args = {key[4:]: x.astype(dtype) for key, x in params.items() if key.startswith("arg:")}
    aux = {key[4:]: x.astype(dtype) for key, x in params.items() if key.startswith("aux:")}
    names = list(args)
    with np.load(os.path.join(folder, "io.npz")) as io:
        args.update({key[3:]: mx.nd.array(io[key], dtype=dtype) for key in io.files if key.startswith("in/")})
    if not train:
        executor = symbol.bind(mx.cpu(), args=args, aux_states=aux, grad_req="null")
        STATE["call"] = lambda: [out.wait_to_read() for out in executor.forward(is_train=False)]
    else:
        grads = {key: mx.nd.zeros_like(args[key]) for key in names}
        needs = {key: "write" if key in grads else "null" for key in args}
        executor = symbol.bind(mx.cpu(), args=args, args_grad=grads, grad_req=needs, aux_states=aux)
        paths = [os.path.join(heads, "head%d.npy" % i) for i in range(len(symbol.list_outputs()))]
        outputs = [mx.nd.array(np.load(path), dtype=dtype) for path in paths]

        def call():
            executor.forward(is_train=True)
            executor.backward(outputs)
            for grad in grads.values():
                grad.wait_to_read()

        STATE["call"] = call
        STATE["grads"] = grads
    STATE["executor"] = executor
    STATE["train"] = train


def result(path):
    """Saves what one call gives."""
    STATE["call"]()
    arrays = {"out%d" % i: out.asnumpy() for i, out in enumerate(STATE["executor"].outputs)}
    if STATE["train"]:
        arrays.update({"grad/" + key: grad.asnumpy() for key, grad in STATE["grads"].items()})
    np.savez(path, **arrays)


def measure(seconds):
    """Measures for so many seconds, one call at least."""
    return sample(STATE["call"], seconds)


if __name__ == "__main__":
    serve({"version": version, "prepare": prepare, "result": result, "sample": measure})
