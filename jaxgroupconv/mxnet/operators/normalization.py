"""Normalizations and the softmax family."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.operators.elementwise import along_channels, same_shape
from jaxgroupconv.mxnet.registry import operator
from jaxgroupconv.mxnet.shapes import Shape


def _complete_batch_norm(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    if not -len(data) <= p.axis < len(data):
        raise MXNetError(f"Channel axis out of range: {p.axis}")
    channels = (data[p.axis],)
    return [data] + [shapes.merge(shape, channels) for shape in ins[1:]], outs


def _statistics_types(p: Any, ins: list, outs: list) -> tuple[list, list]:
    """Half-precision data keeps its per-channel vectors in float32."""
    data = ins[0] if ins[0] is not None else outs[0]
    if data is None:
        return ins, outs
    vector = jnp.float32 if jnp.finfo(data).bits < 32 else data
    vector = jnp.dtype(vector)
    return [data] + [vector] * (len(ins) - 1), [data] + [vector] * (len(outs) - 1)


@operator(
    "BatchNorm",
    attributes={
        "eps": attr.real(1e-3),
        "momentum": attr.real(0.9),
        "fix_gamma": attr.boolean(True),
        "use_global_stats": attr.boolean(False),
        "output_mean_var": attr.boolean(False),
        "axis": attr.integer(1),
        "cudnn_off": attr.boolean(False),
        "min_calib_range": attr.optional(attr.real()),
        "max_calib_range": attr.optional(attr.real()),
    },
    inputs=("data", "gamma", "beta", "moving_mean", "moving_var"),
    auxiliary=("moving_mean", "moving_var"),
    initial={"moving_mean": '["zero", {}]', "moving_var": '["one", {}]'},
    outputs=lambda p: ("output", "mean", "var") if p.output_mean_var else ("output",),
    hidden=lambda p: 0 if p.output_mean_var else 2,
    complete=_complete_batch_norm,
    types=_statistics_types,
)
def batch_norm(p, data, gamma, beta, moving_mean, moving_var, *, train, rng):
    """Normalizes every channel, by the batch's statistics in training and by the moving ones otherwise.

    With fix_gamma, the default, gamma counts as 1 whatever the array holds. The output called `var`, with output_mean_var, is
    the inverse standard deviation, as in MXNet.
    """
    if p.fix_gamma:
        gamma = jnp.ones_like(gamma)
    own = train and not p.use_global_stats
    mean, var = _moments(data, p.axis, gamma.dtype) if own else (lax.stop_gradient(moving_mean), lax.stop_gradient(moving_var))
    # One multiplication and one addition per element, in the precision of the statistics.
    inverse = lax.rsqrt(var + p.eps)
    scale = gamma * inverse
    shift = beta - mean * scale
    out = data.astype(gamma.dtype) * along_channels(scale, data, p.axis) + along_channels(shift, data, p.axis)
    outputs = (out.astype(data.dtype), mean, inverse)
    if not own:
        return outputs[: 3 if p.output_mean_var else 1], (moving_mean, moving_var)
    moved = tuple(
        p.momentum * old + (1 - p.momentum) * lax.stop_gradient(new) for old, new in ((moving_mean, mean), (moving_var, var))
    )
    return outputs[: 3 if p.output_mean_var else 1], moved


def _moments(x: jax.Array, axis: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of every channel."""
    rest = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    x = x.astype(dtype)
    mean = x.mean(rest)
    return mean, jnp.square(x - along_channels(mean, x, axis)).mean(rest)


def _complete_instance_norm(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    if len(data) < 3:
        raise MXNetError("InstanceNorm only supports input tensors of rank >= 3.")
    return [data, (data[1],), (data[1],)], outs


@operator(
    "InstanceNorm",
    attributes={"eps": attr.real(1e-3)},
    inputs=("data", "gamma", "beta"),
    hidden=lambda p: 2,
    complete=_complete_instance_norm,
)
def instance_norm(p, data, gamma, beta):
    rest = tuple(range(2, data.ndim))
    mean = data.mean(rest, keepdims=True)
    var = jnp.square(data - mean).mean(rest, keepdims=True)
    return (data - mean) * lax.rsqrt(var + p.eps) * along_channels(gamma, data) + along_channels(beta, data)


@operator(
    "L2Normalization",
    attributes={"eps": attr.real(1e-10), "mode": attr.enum(["instance", "channel", "spatial"], "instance")},
    hidden=lambda p: 1,
    complete=same_shape,
)
def l2_normalization(p, data):
    axes = {"instance": range(1, data.ndim), "channel": (1,), "spatial": range(2, data.ndim)}[p.mode]
    return data * lax.rsqrt(jnp.square(data).sum(tuple(axes), keepdims=True) + p.eps)


def _check_lrn(p: Any) -> None:
    if p.nsize % 2 == 0:
        raise MXNetError("LRN only supports odd values for local_size")  # of MXNet's two CPU paths, the one that refuses them


@operator(
    "LRN",
    attributes={"alpha": attr.real(1e-4), "beta": attr.real(0.75), "knorm": attr.real(2.0), "nsize": attr.unsigned(lower=1)},
    hidden=lambda p: 1,
    check=_check_lrn,
    complete=same_shape,
)
def lrn(p, data):
    """Divides by a power of the sum of squares over `nsize` neighbouring channels."""
    if data.ndim < 2:
        raise MXNetError(f"Input data should be at least 2D in (batch, channel, ...), but is {data.ndim}D")
    channels = data.shape[1]
    # Whatever nsize says, no neighbour is further away than the last channel from the first.
    reach = min(p.nsize // 2, channels - 1)
    squares = jnp.pad(jnp.square(data), [(reach, reach) if axis == 1 else (0, 0) for axis in range(data.ndim)])
    total = sum(lax.slice_in_dim(squares, i, i + channels, axis=1) for i in range(2 * reach + 1))
    return data * (p.knorm + p.alpha / p.nsize * total) ** -p.beta


@operator(
    "softmax",
    attributes={
        "axis": attr.integer(-1),
        "temperature": attr.optional(attr.real()),
        "dtype": attr.enum(["float16", "float32", "float64"], None, optional=True),
        "use_length": attr.optional(attr.boolean(), False),
    },
    inputs=("data", "length"),
    absent=lambda p: () if p.use_length else ("length",),
    complete=lambda p, ins, outs: (same_shape(p, ins[:1], outs)[0] + ins[1:], same_shape(p, ins[:1], outs)[1]),
    types=lambda p, ins, outs: (ins, [jnp.dtype(p.dtype) if p.dtype else ins[0]]),
)
def softmax(p, data, *length):
    """Softmax along `axis`; with `length`, over the first so many elements, and 0 for the others."""
    x = data / p.temperature if p.temperature else data
    where = None
    if length:
        axis = p.axis % data.ndim
        where = lax.broadcasted_iota(jnp.int32, data.shape, axis) < jnp.expand_dims(length[0].astype(jnp.int32), axis)
    out = jax.nn.softmax(x, p.axis, where=where)
    return out.astype(p.dtype) if p.dtype else out


@operator("SoftmaxActivation", attributes={"mode": attr.enum(["instance", "channel"], "instance")}, complete=same_shape)
def softmax_activation(p, data):
    """Softmax over axis 1 in mode `channel`; `instance` goes over the last axis alone, whatever MXNet's documentation says."""
    return jax.nn.softmax(data, 1 if p.mode == "channel" else -1)


def _complete_softmax_output(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    (data,), outs = same_shape(p, ins[:1], outs)
    label = ins[1]
    if data is not None and len(data) < (2 if p.multi_output else 1):
        raise MXNetError(f"Input data should be at least {2 if p.multi_output else 1}D, but is {len(data)}D")
    if data is None or label == data:
        return [data, label], outs
    if p.multi_output:
        flat = -1 if -1 in data else math.prod(data[2:])
        for allowed in ((data[0], flat), (data[0], *data[2:]), (data[0], 1, *data[2:])):
            if label is not None and shapes.agree(label, allowed):
                return [data, shapes.merge(label, allowed)], outs
        return [data, shapes.merge(label, (data[0], flat))], outs
    return [data, shapes.merge(label, data[:-1]) if len(data) > 1 else label], outs


@operator(
    "SoftmaxOutput",
    "Softmax",
    attributes={
        "grad_scale": attr.real(1.0),
        "ignore_label": attr.real(-1.0),
        "multi_output": attr.boolean(False),
        "use_ignore": attr.boolean(False),
        "preserve_shape": attr.boolean(False),
        "normalization": attr.enum(["null", "batch", "valid"], "null"),
        "out_grad": attr.boolean(False),
        "smooth_alpha": attr.real(0.0),
    },
    inputs=("data", "label"),
    labels=("label",),
    complete=_complete_softmax_output,
)
def softmax_output(p, data, label):
    """Softmax whose gradient is that of the cross entropy with `label`; the label has no part in the value."""
    return _softmax(p, data) if label is None else _softmax_output(p, data, label)


def _softmax(p: Any, data: jax.Array) -> jax.Array:
    if p.multi_output:
        return jax.nn.softmax(data, 1)
    if p.preserve_shape:
        return jax.nn.softmax(data, -1)
    return jax.nn.softmax(data.reshape(data.shape[0], -1), 1).reshape(data.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_output(p: Any, data: jax.Array, label: jax.Array) -> jax.Array:
    return _softmax(p, data)


def _softmax_output_forward(p: Any, data: jax.Array, label: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    out = _softmax(p, data)
    return out, (out, label)


def _softmax_output_backward(p: Any, kept: tuple[jax.Array, jax.Array], head: jax.Array) -> tuple[jax.Array, jax.Array]:
    out, label = kept
    no_label_grad = jnp.zeros_like(label)
    if label.shape == out.shape:  # the label is a distribution itself
        grad = (out - label) * p.grad_scale
        return (grad * head if p.out_grad else grad), no_label_grad
    # Classes on axis 1, everything else on axis 2.
    if p.multi_output:
        probability = out.reshape(out.shape[0], out.shape[1], -1)
    elif p.preserve_shape:
        probability = out.reshape(-1, out.shape[-1], 1)
    else:
        probability = out.reshape(out.shape[0], -1, 1)
    flat = label.reshape(probability.shape[0], 1, -1)
    classes = probability.shape[1]
    hit = lax.broadcasted_iota(jnp.int32, probability.shape, 1) == flat.astype(jnp.int32)
    wrong = p.smooth_alpha / (classes - 1) if p.smooth_alpha else 0.0
    grad = probability - jnp.where(hit, 1 - p.smooth_alpha, wrong).astype(out.dtype)
    counted = flat != p.ignore_label
    if p.use_ignore:
        grad = jnp.where(counted, grad, 0)
    scale = p.grad_scale
    if p.multi_output and p.normalization != "valid":
        scale /= probability.shape[2]
    if p.normalization == "batch":
        scale /= label.shape[0]
    grad = (grad * scale).reshape(out.shape)
    if p.normalization == "valid":
        grad = grad / jnp.maximum(counted.sum(), 1).astype(out.dtype)
    return (grad * head if p.out_grad else grad), no_label_grad


_softmax_output.defvjp(_softmax_output_forward, _softmax_output_backward)
