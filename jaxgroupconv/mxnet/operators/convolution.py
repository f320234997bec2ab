"""Convolution, Deconvolution, and UpSampling, which is one of the latter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgroupconv.functional import conv_general_dilated, group_conv_transpose
from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.registry import operator, uniform_types
from jaxgroupconv.mxnet.shapes import Shape

_LAYOUTS = ("NCW", "NCHW", "NCDHW", "NHWC", "NDHWC")


def _attributes(op: str) -> dict[str, attr.Attribute]:
    """The table of both operators; the ones after `num_group` but `no_bias` and `layout` have no effect outside MXNet."""
    deconvolution = {"adj": attr.shape(()), "target_shape": attr.shape(())} if op == "Deconvolution" else {}
    return {
        "kernel": attr.shape(),
        "stride": attr.shape(()),
        "dilate": attr.shape(()),
        "pad": attr.shape(()),
        **deconvolution,
        "num_filter": attr.unsigned(lower=1),
        "num_group": attr.unsigned(1, lower=1),  # MXNet has no bound here: 0 ends its process with a division by zero
        "workspace": attr.integer(1024, lower=0, bits=64),
        "no_bias": attr.boolean(op == "Deconvolution"),
        "cudnn_tune": attr.enum(["off", "limited_workspace", "fastest"], None, optional=True),
        "cudnn_off": attr.boolean(False),
        "layout": attr.enum(_LAYOUTS, None, optional=True),
    }


def _check(kind: str):
    def check(p: Any) -> None:
        rank = -1 if p.kernel is None else len(p.kernel)
        if rank not in (1, 2, 3):
            raise MXNetError(f"{rank}D {kind} not supported")
        for noun, value in _tuples(p).items():
            if value is None or len(value) not in (0, rank):
                raise MXNetError(
                    f"{noun} must have the same number of dimensions with kernel_size,but kernel_size is set to "
                    f"{shapes.brackets(p.kernel)} while {noun.lower()} is {shapes.brackets(value)}"
                )
        if p.layout and len(p.layout) != rank + 2:
            raise MXNetError(f"layout {p.layout} does not fit a {rank}D kernel")

    return check


def _tuples(p: Any) -> dict[str, tuple[int, ...] | None]:
    named = {"Stride": p.stride, "Dilate": p.dilate, "Padding": p.pad}
    if hasattr(p, "adj"):
        named |= {"Adjustment": p.adj, "Target shape": p.target_shape or ()}
    return named


def _channel_last(p: Any) -> bool:
    return bool(p.layout and p.layout.endswith("C"))


def _split(p: Any, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and spatial sizes of data or output."""
    if _channel_last(p):
        return shape[0], shape[-1], shape[1:-1]
    return shape[0], shape[1], shape[2:]


def _join(p: Any, first: int, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of `_split`; weights are laid out like data."""
    if _channel_last(p):
        return (first, *spatial, channels)
    return (first, channels, *spatial)


def _window(p: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and pads with their defaults."""
    ones = (1,) * len(p.kernel)
    return p.stride or ones, p.dilate or ones, p.pad or (0,) * len(p.kernel)


def _complete_common(p: Any, ins: list[Shape], weight: Shape, channels: int) -> list[Shape]:
    """Weight and bias; then the checks that MXNet makes after them."""
    ins = [ins[0], shapes.merge(ins[1], weight), *(shapes.merge(bias, (p.num_filter,)) for bias in ins[2:])]
    if channels != -1 and channels % p.num_group:
        raise MXNetError("input num_filter must divide group size")
    if p.num_filter % p.num_group:
        raise MXNetError("output num_filter must divide group size")
    stride, dilate, _ = _window(p)
    for noun, sizes in (("kernel", p.kernel), ("stride", stride), ("dilate", dilate)):
        if min(sizes) < 1:
            raise MXNetError(f"incorrect {noun} size: {shapes.brackets(sizes)}")
    return ins


def _check_data(p: Any, data: tuple[int, ...]) -> None:
    axes = {1: "x", 2: "y-x", 3: "depth-y-x"}[len(p.kernel)]
    if len(data) != len(p.kernel) + 2:
        raise MXNetError(f"Input data should be {len(p.kernel) + 2}D in batch-num_filter-{axes}")


def _complete_convolution(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    _check_data(p, data)
    batch, channels, sizes = _split(p, data)
    # MXNet compares the weight before it looks at the groups, so a wrong group count shows as a weight of these sizes.
    inner = -1 if channels == -1 else channels // p.num_group
    weight = _join(p, p.num_filter // p.num_group * p.num_group, inner, p.kernel)
    ins = _complete_common(p, ins, weight, channels)
    stride, dilate, pad = _window(p)
    spans = [d * (k - 1) + 1 for d, k in zip(dilate, p.kernel, strict=True)]
    if any(x != -1 and span > x + 2 * q for x, span, q in zip(sizes, spans, pad, strict=True)):
        raise MXNetError("kernel size exceed input")
    if outs[0] is not None and len(outs[0]) == len(data):
        out_batch, _, out_sizes = _split(p, outs[0])
        # Only where the stride is 1 does an output size say what the input's was.
        back = [o + span - 1 - 2 * q if o != -1 and s == 1 else -1 for o, span, q, s in
                zip(out_sizes, spans, pad, stride, strict=True)]  # fmt: skip
        ins[0] = shapes.merge(data, _join(p, out_batch, -1, tuple(back)))
    return ins, outs


def _floating_types(p: Any, ins: list, outs: list) -> tuple[list, list]:
    new = uniform_types(p, ins, outs)
    if ins[0] is not None and not jnp.issubdtype(ins[0], np.floating):
        raise MXNetError(f"This operation only support floating point types, not {np.dtype(ins[0])}")
    return new


@operator(
    "Convolution",
    attributes=_attributes("Convolution"),
    inputs=("data", "weight", "bias"),
    absent=lambda p: ("bias",) if p.no_bias else (),
    check=_check("convolution"),
    complete=_complete_convolution,
    types=_floating_types,
)
def convolution(p, data, weight, *bias):
    stride, dilate, pad = _window(p)
    spatial = "DHW"[-len(p.kernel) :]
    laid_out = "N" + spatial + "C" if _channel_last(p) else "NC" + spatial
    out = conv_general_dilated(
        data,
        weight,
        window_strides=stride,
        padding=[(q, q) for q in pad],
        rhs_dilation=dilate,
        dimension_numbers=(laid_out, laid_out.replace("C", "I").replace("N", "O"), laid_out),
        feature_group_count=p.num_group,
    )
    return out + bias[0].reshape(_join(p, 1, -1, (1,) * len(p.kernel))) if bias else out


def _crop(p: Any, sizes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Deconvolution's pad and adj on every axis: given, or derived from the target shape. Unknown sizes give 0."""
    stride, dilate, pad = _window(p)
    adj = p.adj or (0,) * len(p.kernel)
    if p.target_shape and any(p.target_shape):
        too_much = [
            0 if x == -1 else s * (x - 1) + d * (k - 1) + 1 - target
            for x, k, s, d, target in zip(sizes, p.kernel, stride, dilate, p.target_shape, strict=True)
        ]
        if min(too_much) < 0:
            raise MXNetError("too big target shape")
        pad, adj = [(t + 1) // 2 for t in too_much], [t % 2 for t in too_much]
    axes = {1: "x", 2: "yx", 3: "dyx"}[len(p.kernel)]
    for i, (axis, a, s) in enumerate(zip(axes, adj, stride, strict=True)):
        if a > s - 1:
            raise MXNetError(f"adj({axis}) must be samller than stride[{i}]")  # MXNet's own spelling
    return list(pad), list(adj)


def _complete_deconvolution(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    data = ins[0]
    if data is None:
        return ins, outs
    _check_data(p, data)
    _, channels, sizes = _split(p, data)
    ins = _complete_common(p, ins, _join(p, channels, p.num_filter // p.num_group, p.kernel), channels)
    if len(p.kernel) == 3 and any(d != 1 for d in p.dilate):
        raise MXNetError("Dilate is not supported in 3d deconvolution")
    _crop(p, sizes)
    return ins, outs


@operator(
    "Deconvolution",
    attributes=_attributes("Deconvolution"),
    inputs=("data", "weight", "bias"),
    absent=lambda p: ("bias",) if p.no_bias else (),
    check=_check("deconvolution"),
    complete=_complete_deconvolution,
    types=_floating_types,
)
def deconvolution(p, data, weight, *bias):
    """Every input element times its kernel is added into a canvas, which is then cut: the input gradient of Convolution."""
    stride, dilate, _ = _window(p)
    batch, _, sizes = _split(p, data.shape)
    if p.target_shape and any(p.target_shape) and 0 in p.target_shape:  # MXNet takes a zero beside another number at its word
        return jnp.zeros(_join(p, batch, p.num_filter, p.target_shape), data.dtype)
    pad, adj = _crop(p, sizes)
    return group_conv_transpose(
        data,
        jnp.moveaxis(weight, 0, -1) if _channel_last(p) else weight,
        *bias,
        groups=p.num_group,
        stride=stride,
        padding=pad,
        output_padding=adj,
        dilation=dilate,
        layout=p.layout or _LAYOUTS[len(p.kernel) - 1],
    )


def _complete_upsampling(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    if any(shape is not None and len(shape) != 4 for shape in ins):
        raise MXNetError("Input data should be 4D in (batch, channel, y, x)")
    if p.sample_type == "bilinear":
        kernel = 2 * p.scale - p.scale % 2
        return [ins[0], shapes.merge(ins[1], (p.num_filter, 1, kernel, kernel))], outs
    return ins, outs


@operator(
    "UpSampling",
    attributes={
        "scale": attr.integer(lower=1),
        "num_filter": attr.integer(0, lower=0),
        "sample_type": attr.enum(["nearest", "bilinear"]),
        "multi_input_mode": attr.enum(["concat", "sum"], "concat"),
        "workspace": attr.unsigned(512),
    },
    inputs=("data", "weight"),
    absent=lambda p: () if p.sample_type == "bilinear" else ("data", "weight"),
    variadic=True,
    complete=_complete_upsampling,
)
def upsampling(p, *args):
    """Enlarges the two last axes: `nearest` repeats pixels, `bilinear` is a depthwise Deconvolution with its own weight."""
    if p.sample_type == "bilinear":
        data, weight = args
        if data.shape[1] != p.num_filter:
            raise MXNetError(f"num_filter must be the number of channels, {data.shape[1]}, but is {p.num_filter}")
        return group_conv_transpose(data, weight, groups=p.num_filter, stride=p.scale, padding=-(-(p.scale - 1) // 2))
    height, width = args[0].shape[2] * p.scale, args[0].shape[3] * p.scale
    factors = [height // max(x.shape[2], 1) for x in args]
    for x, factor in zip(args, factors, strict=True):
        if (factor * x.shape[2], factor * x.shape[3]) != (height, width):
            raise MXNetError(
                f"the maps must become {height} x {width} by whole factors, but one is {x.shape[2]} x {x.shape[3]}"
            )
    enlarged = [_repeated(x, factor) for x, factor in zip(args, factors, strict=True)]
    return sum(enlarged[1:], enlarged[0]) if p.multi_input_mode == "sum" else lax.concatenate(enlarged, 1)


def _repeated(x: jax.Array, factor: int) -> jax.Array:
    n, c, h, w = x.shape
    spread = lax.broadcast_in_dim(x, (n, c, h, factor, w, factor), (0, 1, 2, 4))
    return spread.reshape(n, c, h * factor, w * factor)
