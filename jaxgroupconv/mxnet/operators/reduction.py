"""Operators that sum over elements or take the best of them: Pooling, FullyConnected, sum, mean."""

import functools
import math
import operator as py
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.registry import operator
from jaxgroupconv.mxnet.shapes import Shape


def _check_pooling(p: Any) -> None:
    if p.pool_type == "lp" and p.p_value is None:
        raise MXNetError("p_value must be given for pool_type lp")
    if p.pool_type == "lp" and p.p_value not in (1, 2, 3):
        raise MXNetError(f"p value of {p.p_value} is not supported yet...")
    if p.global_pool:
        return  # kernel, stride and pad are ignored, whatever old files hold
    rank = -1 if p.kernel is None else len(p.kernel)
    if rank not in (1, 2, 3):
        raise MXNetError(f"{rank}D pooling not supported")
    for name, value in (("kernel", p.kernel), ("stride", p.stride), ("pad", p.pad)):
        if value is None or len(value) not in (0, rank):
            raise MXNetError(f"{name} must have the kernel's {rank} dimensions, but is {shapes.brackets(value)}")
        if min(value, default=1) < (0 if name == "pad" else 1):
            hint = "is invalid, the input shape must be nonzero in all dimensions"
            raise MXNetError(f"value {shapes.brackets(value)} for Parameter {name} {hint}")
    for i, (pad, kernel) in enumerate(zip(p.pad, p.kernel or (), strict=False)):
        if pad >= kernel:
            raise MXNetError(f"Check failed: pad_l[{i}] < kernel[{i}] ({pad} vs. {kernel})")
    if p.pooling_convention == "same":
        if rank != 1:
            raise MXNetError("Input data should be 3D in (batch, channel, x). Currently 'same' supports Max Pooling 1-D")
        if any(p.pad):
            raise MXNetError("Same pooling convention disables the use of pad parameter.")


def _complete_pooling(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    ranks = {1: "3D in (batch, channel, x)", 2: "4D in (batch, channel, y, x)", 3: "5D in (batch, channel, d, y, x)"}
    if p.global_pool and len(data) not in (3, 4, 5):
        raise MXNetError(f"Pooling: Input data should be  {' Or '.join(ranks.values())}")
    if not p.global_pool:
        if len(data) != len(p.kernel) + 2:
            raise MXNetError(f"Pooling: Input data should be {ranks[len(p.kernel)]}")
        pad = p.pad or (0,) * len(p.kernel)
        for axis, kernel, q in zip(_spatial(p, len(data)), p.kernel, pad, strict=True):
            size = data[axis]
            if size != -1 and kernel > size + 2 * q:
                raise MXNetError(f"kernel size ({kernel}) exceeds input ({size} padded to {size + 2 * q})")
            if size != -1 and q > max(size, kernel // 2):  # so that there are no more than three windows for each position
                raise MXNetError(f"pad ({q}) exceeds both the input ({size}) and half the kernel ({kernel})")
    return ins, outs


def _spatial(p: Any, rank: int) -> range:
    return range(1, rank - 1) if p.layout and p.layout.endswith("C") else range(2, rank)


@operator(
    "Pooling",
    attributes={
        "kernel": attr.shape(()),
        "pool_type": attr.enum(["max", "avg", "sum", "lp"], "max"),
        "global_pool": attr.boolean(False),
        "cudnn_off": attr.boolean(False),
        "pooling_convention": attr.enum(["valid", "full", "same"], "valid"),
        "stride": attr.shape(()),
        "pad": attr.shape(()),
        "p_value": attr.optional(attr.integer()),
        "count_include_pad": attr.optional(attr.boolean()),
        "layout": attr.enum(["NCW", "NCHW", "NCDHW", "NWC", "NHWC", "NDHWC"], None, optional=True),
    },
    hidden=lambda p: 1 if p.pool_type == "max" else 0,  # where the maxima were
    check=_check_pooling,
    complete=_complete_pooling,
)
def pooling(p, data):
    """Maximum, mean, sum or p-norm over windows, or over everything with `global_pool`."""
    axes = _spatial(p, data.ndim)
    x = jnp.abs(data) ** p.p_value if p.pool_type == "lp" else data
    if p.global_pool:
        x = _global(p, x, axes)
    else:
        windows = [_windows(p, i, data.shape[axis]) for i, axis in enumerate(axes)]
        x = _pool(p.pool_type == "max", x, axes, windows)
        if p.pool_type == "avg":
            counts = [_counts(p, window, data.shape[axis]) for axis, window in zip(axes, windows, strict=True)]
            inverse = 1 / functools.reduce(np.multiply.outer, counts)
            x = x * jnp.asarray(inverse, x.dtype).reshape(tuple(x.shape[i] if i in axes else 1 for i in range(x.ndim)))
    return x ** (1 / p.p_value) if p.pool_type == "lp" else x


# A window's size, stride, pad on the left, and the number of windows, along one axis.
_Window = tuple[int, int, int, int]


def _windows(p: Any, i: int, size: int) -> _Window:
    kernel, stride, pad = p.kernel[i], (p.stride or (1,) * len(p.kernel))[i], (p.pad or (0,) * len(p.kernel))[i]
    room = size - 1 if p.pooling_convention == "same" else size + 2 * pad - kernel
    return kernel, stride, pad, (-(-room // stride) if p.pooling_convention == "full" else room // stride) + 1


def _counts(p: Any, window: _Window, size: int) -> np.ndarray:
    """Over how many positions each window's mean goes: overhang never counts, padding unless count_include_pad is False."""
    kernel, stride, pad, count = window
    start = np.arange(count) * stride - pad
    margin = 0 if p.count_include_pad is False else pad
    return np.maximum(np.minimum(start + kernel, size + margin) - np.maximum(start, -margin), 1)


def _pool(largest: bool, x: jax.Array, axes: range, windows: list[_Window]) -> jax.Array:
    """Combines shifted slices, axis by axis: XLA makes one vector loop of them, and scalar loops of its own window reduction.

    The last axis goes first, so that among equal maxima the first in row-major order gets the gradient, as in MXNet.
    """
    low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    fill = jnp.asarray(low if largest else 0, x.dtype)
    windows = [_without_idle_taps(window, x.shape[axis]) for axis, window in zip(axes, windows, strict=True)]
    padding = [(0, 0, 0)] * x.ndim
    for axis, (kernel, stride, pad, count) in zip(axes, windows, strict=True):
        padding[axis] = (pad, (count - 1) * stride + kernel - x.shape[axis] - pad, 0)
    x = lax.pad(x, fill, padding)
    for axis, (kernel, stride, _, count) in reversed(list(zip(axes, windows, strict=True))):
        taps = [lax.slice_in_dim(x, i, i + (count - 1) * stride + 1, stride, axis) for i in range(kernel)]
        x = functools.reduce(_first_largest if largest else py.add, taps)
    return x


def _without_idle_taps(window: _Window, size: int) -> _Window:
    """The same window without the positions that meet padding only, wherever it stands: kernels can be larger than data."""
    kernel, stride, pad, count = window
    first = max(0, pad - (count - 1) * stride)
    return min(kernel, pad + size) - first, stride, pad - first, count


def _first_largest(best: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where((new > best) | (new != new), new, best)  # a NaN stays


def _global(p: Any, x: jax.Array, axes: range) -> jax.Array:
    if p.pool_type != "max":
        return (x.mean if p.pool_type == "avg" else x.sum)(tuple(axes), keepdims=True)
    flat = jnp.moveaxis(x, list(axes), list(range(-len(axes), 0)))
    flat = flat.reshape(*flat.shape[: -len(axes)], -1)
    best = jnp.take_along_axis(flat, flat.argmax(-1)[..., None], -1)
    return best.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)])


@operator("_contrib_AdaptiveAvgPooling2D", attributes={"output_size": attr.shape(())})
def adaptive_average_pooling(p, data):
    """Means over a grid of bins that cover the input; bin j of q covers floor(j n / q) to ceil((j + 1) n / q)."""
    if data.ndim != 4:
        raise MXNetError(f"Input data should be 4D in (batch, channel, y, x), but is {data.ndim}D")
    given = p.output_size or (1,)
    if len(given) > 2 or min(given) < 1:
        raise MXNetError(f"output_size must be one or two positive sizes, but is {shapes.brackets(given)}")
    for axis, bins in zip((2, 3), 2 * given, strict=False):
        size = data.shape[axis]
        if bins > 16 * size:  # there is a slice for each
            raise MXNetError(f"output_size must be at most 16 times the input's size, but is {bins} for {size}")
        edges = [(j * size // bins, -(-(j + 1) * size // bins)) for j in range(bins)]
        data = jnp.concatenate([lax.slice_in_dim(data, a, b, axis=axis).mean(axis, keepdims=True) for a, b in edges], axis)
    return data


def _complete_dense(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    if not data:
        raise MXNetError("Input data should be at least 1D, but is 0D")
    if p.flatten:
        features = -1 if -1 in data[1:] else math.prod(data[1:])
        kept = (0,)
    else:
        features = data[-1]
        kept = range(len(data) - 1)
    ins = [data, shapes.merge(ins[1], (p.num_hidden, features)), *(shapes.merge(b, (p.num_hidden,)) for b in ins[2:])]
    if outs[0] is not None:
        ins[0] = shapes.merge(data, tuple(outs[0][axis] if axis in kept else -1 for axis in range(len(data))))
    return ins, outs


@operator(
    "FullyConnected",
    attributes={"num_hidden": attr.integer(lower=1), "no_bias": attr.boolean(False), "flatten": attr.boolean(True)},
    inputs=("data", "weight", "bias"),
    absent=lambda p: ("bias",) if p.no_bias else (),
    complete=_complete_dense,
)
def fully_connected(p, data, weight, *bias):
    """`data @ weight.T + bias`, over the last axis, or with `flatten` over all but the first."""
    x = data.reshape(data.shape[0], -1) if p.flatten else data
    out = lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    return out + bias[0].reshape((1,) * (out.ndim - 1) + (-1,)) if bias else out


_REDUCE = {"axis": attr.optional(attr.integers()), "keepdims": attr.boolean(False), "exclude": attr.boolean(False)}


def _reduced(p: Any, x: jax.Array, reduce: Any) -> jax.Array:
    given = {axis + x.ndim if axis < 0 else axis for axis in p.axis or ()}
    if not given <= set(range(x.ndim)):
        raise MXNetError(f"Reduction axis {shapes.brackets(p.axis)} Exceeds input dimensions {shapes.brackets(x.shape)}")
    if len(given) < len(p.axis or ()):
        raise MXNetError(f"Reduction axes have duplicates {shapes.brackets(p.axis)}")
    axes = tuple(axis for axis in range(x.ndim) if not given or (axis in given) != p.exclude)
    out = reduce(x, axes, keepdims=p.keepdims)
    return out if out.ndim else out.reshape(1)  # MXNet had no arrays of rank 0


@operator("sum", "sum_axis", attributes=_REDUCE)
def sum_(p, data):
    return _reduced(p, data, jnp.sum)


@operator("mean", attributes=_REDUCE)
def mean(p, data):
    return _reduced(p, data, jnp.mean)
