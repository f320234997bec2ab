"""Operators that compute element by element: activations, arithmetic, Cast, Dropout."""

import functools
import operator as py
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import dtypes, shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.registry import operator
from jaxgroupconv.mxnet.shapes import Shape, brackets


def same_shape(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """All inputs and outputs have one shape, and complete one another."""
    shared = None
    for i, shape in enumerate([*ins, *outs]):
        if not shapes.agree(shared, shape):
            place = f"{i}-th input" if i < len(ins) else f"{i - len(ins)}-th output"
            # Between the two blanks stands a node's name, where there is one.
            found = f"expected {brackets(shared)}, got {brackets(shape)}"
            raise MXNetError(f"Incompatible attr in node  at {place}: {found}")
        shared = shapes.merge(shared, shape)
    return [shared] * len(ins), [shared] * len(outs)


def along_channels(vector: jax.Array, x: jax.Array, axis: int = 1) -> jax.Array:
    """A vector of one number per channel, shaped to be broadcast against `x`."""
    return vector.reshape(tuple(-1 if i == axis % x.ndim else 1 for i in range(x.ndim)))


def _unary(name: str, compute: Callable[[jax.Array], jax.Array], *aliases: str) -> None:
    operator(name, *aliases, complete=same_shape)(lambda p, data: compute(data))


def _softsign(x: jax.Array) -> jax.Array:
    return x / (1 + jnp.abs(x))


_unary("relu", jax.nn.relu)
_unary("sigmoid", jax.nn.sigmoid)
_unary("tanh", jnp.tanh)
_unary("softsign", _softsign)
_unary("exp", jnp.exp)
_unary("log", jnp.log)
_unary("sqrt", jnp.sqrt)
_unary("square", jnp.square)
_unary("abs", jnp.abs)
_unary("negative", jnp.negative)
_unary("_copy", lambda x: x, "identity")
_unary("BlockGrad", lax.stop_gradient, "stop_gradient")

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softrelu": jax.nn.softplus,
    "softsign": _softsign,
}


@operator("Activation", attributes={"act_type": attr.enum(_ACTIVATIONS)}, complete=same_shape)
def activation(p, data):
    return _ACTIVATIONS[p.act_type](data)


def _complete_leaky(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    (data,), outs = same_shape(p, ins[:1], outs)
    if len(ins) == 1:
        return [data], outs
    gamma = ins[1]
    if gamma is None and data is not None:
        gamma = (data[min(1, len(data) - 1)],)
    elif gamma is not None and data is not None and len(gamma) == 1 and len(data) > 1 and gamma != (1,):
        gamma = shapes.merge(gamma, (data[1],))
    return [data, gamma], outs


@operator(
    "LeakyReLU",
    attributes={
        "act_type": attr.enum(["rrelu", "leaky", "prelu", "elu", "selu", "gelu"], "leaky"),
        "slope": attr.real(0.25),
        "lower_bound": attr.real(0.125),
        "upper_bound": attr.real(0.334),
    },
    inputs=("data", "gamma"),
    absent=lambda p: () if p.act_type == "prelu" else ("gamma",),
    outputs=lambda p: ("output", "mask") if p.act_type == "rrelu" else ("output",),
    initial={"gamma": '["Constant", {"value": 0.25}]'},
    complete=_complete_leaky,
)
def leaky_relu(p, data, *gamma, train, rng):
    """The leaky family. `rrelu` draws its slopes in training and uses their mean at inference."""
    # What the unused branch of `where` computes must stay finite, or its gradient would not.
    negative = jnp.minimum(data, 0)
    if p.act_type == "gelu":
        return (jax.nn.gelu(data, approximate=False),), ()
    if p.act_type == "elu":
        return (jnp.where(data > 0, data, p.slope * jnp.expm1(negative)),), ()
    if p.act_type == "selu":
        return (jax.nn.selu(data),), ()
    if p.act_type == "prelu":
        slope = along_channels(gamma[0], data, min(1, data.ndim - 1)) if gamma[0].ndim == 1 else gamma[0]
    elif p.act_type == "rrelu" and train:
        slope = jax.random.uniform(_key(rng), data.shape, data.dtype, p.lower_bound, p.upper_bound)
    else:
        slope = jnp.full_like(data, (p.lower_bound + p.upper_bound) / 2 if p.act_type == "rrelu" else p.slope)
    out = jnp.where(data > 0, data, slope * data)
    return ((out, jnp.where(data > 0, 1, slope)) if p.act_type == "rrelu" else (out,)), ()


@operator(
    "Dropout",
    attributes={
        "p": attr.real(0.5),
        "mode": attr.enum(["training", "always"], "training"),
        "axes": attr.shape(()),
        "cudnn_off": attr.optional(attr.boolean(), False),
    },
    hidden=lambda p: 1,
    complete=same_shape,
)
def dropout(p, data, *, train, rng):
    """Zeroes a share `p` of the elements and scales up the rest; with `axes`, along these all elements share one fate."""
    if not (train or p.mode == "always") or p.p == 0:
        return (data,), ()
    if p.p >= 1:
        return (jnp.zeros_like(data),), ()
    drawn = tuple(1 if axis in (p.axes or ()) else size for axis, size in enumerate(data.shape))
    kept = jax.random.bernoulli(_key(rng), 1 - p.p, drawn)
    return (jnp.where(jnp.broadcast_to(kept, data.shape), data / (1 - p.p), 0),), ()


def _key(rng: jax.Array | None) -> jax.Array:
    if rng is None:
        raise ValueError("`rng` must be a key where random numbers are drawn, but got None. Pass jax.random.key(0), for one.")
    return rng


@operator("clip", attributes={"a_min": attr.real(), "a_max": attr.real()}, complete=same_shape)
def clip(p, data):
    """Limits to a_min..a_max. The gradient is 1 on the limits themselves, as MXNet's, where jnp.clip's is a half."""
    lower, upper = _scalar(p.a_min, data), _scalar(p.a_max, data)
    inside = (data >= lower) & (data <= upper)
    return jnp.where(inside, data, lax.stop_gradient(jnp.clip(data, lower, upper)))


@operator(
    "Cast",
    "cast",
    attributes={"dtype": attr.enum([str(dtype) for dtype in dtypes.CODES])},
    complete=same_shape,
    types=lambda p, ins, outs: (ins, [np.dtype(p.dtype)]),
)
def cast(p, data):
    return data.astype(p.dtype)


def _scalar(value: float, like: jax.Array) -> jax.Array:
    return jnp.asarray(value).astype(like.dtype)


_SCALAR = {"scalar": attr.real(), "is_int": attr.boolean(True)}


def _with_scalar(name: str, alias: str, compute: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
    operator(name, alias, attributes=_SCALAR, complete=same_shape)(lambda p, data: compute(data, _scalar(p.scalar, data)))


_with_scalar("_plus_scalar", "_PlusScalar", py.add)
_with_scalar("_minus_scalar", "_MinusScalar", py.sub)
_with_scalar("_rminus_scalar", "_RMinusScalar", lambda x, c: c - x)
_with_scalar("_mul_scalar", "_MulScalar", py.mul)
_with_scalar("_div_scalar", "_DivScalar", py.truediv)
_with_scalar("_rdiv_scalar", "_RDivScalar", lambda x, c: c / x)
_with_scalar("_power_scalar", "_PowerScalar", py.pow)
_with_scalar("_maximum_scalar", "_MaximumScalar", jnp.maximum)
_with_scalar("_minimum_scalar", "_MinimumScalar", jnp.minimum)


def _broadcast(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    a, b = ins
    if a is not None and b is not None:
        for m, n in zip(a[::-1], b[::-1], strict=False):
            if m != n and not {m, n} & {1, -1}:
                raise MXNetError(f"operands could not be broadcast together with shapes {brackets(a)} {brackets(b)}")
    return ins, outs


def _arithmetic(noun: str, synonym: str, alias: str, compute: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
    """The operator on equal shapes, the one with broadcasting, and the names of both."""
    equal = operator(f"elemwise_{noun}", f"_{synonym}", alias, inputs=("lhs", "rhs"), complete=same_shape)
    equal(lambda p, lhs, rhs: compute(lhs, rhs))
    aliases = () if synonym == noun else (f"broadcast_{synonym}",)
    broadcast = operator(f"broadcast_{noun}", *aliases, inputs=("lhs", "rhs"), complete=_broadcast)

    def compute_broadcast(p: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        shape = np.broadcast_shapes(lhs.shape, rhs.shape)
        return compute(jnp.broadcast_to(lhs, shape), jnp.broadcast_to(rhs, shape))

    broadcast(compute_broadcast)


_arithmetic("add", "plus", "_Plus", py.add)
_arithmetic("sub", "minus", "_Minus", py.sub)
_arithmetic("mul", "mul", "_Mul", py.mul)
_arithmetic("div", "div", "_Div", py.truediv)


@operator("add_n", "ElementWiseSum", variadic=True, complete=same_shape)
def add_n(p, *args):
    return functools.reduce(py.add, args)
