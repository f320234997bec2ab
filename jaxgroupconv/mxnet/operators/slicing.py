"""Operators that join, cut, repeat or pad arrays."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.operators.elementwise import same_shape
from jaxgroupconv.mxnet.operators.reshape import checked_axis
from jaxgroupconv.mxnet.registry import operator
from jaxgroupconv.mxnet.shapes import Shape


def _complete_concat(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """All axes but the one joined agree."""
    rank = next((len(shape) for shape in [*ins, *outs] if shape is not None), None)
    if rank is None:
        return ins, outs
    dim = checked_axis(p.dim, rank)

    def without_own(shape: Shape) -> Shape:
        return shape and tuple(-1 if axis == dim else size for axis, size in enumerate(shape))

    shared: Shape = None
    for shape in [*ins, *outs]:
        if not shapes.agree(shared, without_own(shape)):
            raise MXNetError(f"Incompatible input shape: expected {shapes.brackets(shared)}, got {shapes.brackets(shape)}")
        shared = shapes.merge(shared, without_own(shape))
    return [shapes.merge(shape, shared) for shape in ins], [shapes.merge(outs[0], shared)]


@operator("Concat", "concat", attributes={"dim": attr.integer(1)}, variadic=True, complete=_complete_concat)
def concat(p, *args):
    return lax.concatenate(args, checked_axis(p.dim, args[0].ndim))


@operator("stack", attributes={"axis": attr.integer(0)}, variadic=True, complete=lambda p, i, o: (same_shape(p, i, [])[0], o))
def stack(p, *args):
    return jnp.stack(args, checked_axis(p.axis, args[0].ndim + 1))


@operator(
    "SliceChannel",
    "split",
    attributes={"num_outputs": attr.count(), "axis": attr.integer(1), "squeeze_axis": attr.boolean(False)},
    outputs=lambda p: tuple(f"output{i}" for i in range(p.num_outputs)) if p.num_outputs > 1 else ("output",),
)
def slice_channel(p, data):
    """Cuts one axis into `num_outputs` equal parts, each an output."""
    axis, shape = checked_axis(p.axis, data.ndim), shapes.brackets(data.shape)
    if data.shape[axis] % p.num_outputs:
        raise MXNetError(
            f"You are trying to split the {axis}-th axis of input tensor with shape {shape} into num_outputs={p.num_outputs} "
            f"evenly sized chunks, but this is not possible because {p.num_outputs} does not evenly divide {data.shape[axis]}"
        )
    if p.squeeze_axis and data.shape[axis] != p.num_outputs:
        raise MXNetError(
            "If squeeze axis is True, the size of the sliced axis must be the same as num_outputs. "
            f"Input shape={shape}, axis={axis}, num_outputs={p.num_outputs}."
        )
    parts = jnp.split(data, p.num_outputs, axis)
    return tuple(part.squeeze(axis) for part in parts) if p.squeeze_axis else tuple(parts)


@operator(
    "slice_axis",
    attributes={"axis": attr.integer(), "begin": attr.integer(), "end": attr.optional(attr.integer(), attr.REQUIRED)},
)
def slice_axis(p, data):
    axis = checked_axis(p.axis, data.ndim)
    size = data.shape[axis]
    begin = p.begin + size if p.begin < 0 else p.begin
    end = size if p.end is None else p.end + size if p.end < 0 else p.end
    if end > size:
        raise MXNetError(f"Invalid end for end={p.end} as axis_size is {size}")
    if not 0 <= begin < end:
        raise MXNetError(f"Invalid begin, end, get begin={p.begin}, end={p.end}")
    return lax.slice_in_dim(data, begin, end, axis=axis)


@operator(
    "slice",
    attributes={"begin": attr.optional_integers(), "end": attr.optional_integers(), "step": attr.optional_integers(())},
)
def slice_(p, data):
    step = p.step or (None,) * len(p.begin)
    if not len(p.begin) == len(p.end) == len(step) <= data.ndim:
        raise MXNetError("begin and end must have the same length")
    if 0 in step:
        raise MXNetError("slice op step[0] cannot be 0")
    return data[tuple(slice(*limits) for limits in zip(p.begin, p.end, step, strict=True))]


@operator(
    "Pad",
    "pad",
    attributes={
        "mode": attr.enum(["constant", "edge", "reflect"]),
        "pad_width": attr.shape(),
        "constant_value": attr.real(0.0),
    },
)
def pad(p, data):
    """Enlarges 4-D and 5-D data on its spatial axes."""
    if data.ndim not in (4, 5):
        raise MXNetError("Current implementation only supports 4-D or 5-D input.")
    if p.pad_width is None or len(p.pad_width) != 2 * data.ndim:
        raise MXNetError("Input shape vs padding spec mismatch.")
    if any(p.pad_width[:4]):
        raise MXNetError("Current implementation expects padding on the first two axes to be zero.")
    widths = list(zip(p.pad_width[::2], p.pad_width[1::2], strict=True))
    if p.mode == "reflect" and any(max(pair) >= size for pair, size in zip(widths, data.shape, strict=True)):
        raise MXNetError(
            "Current implementation of reflection padding only supports padding sizes smaller than the input size."
        )
    if p.mode == "constant":
        return jnp.pad(data, widths, constant_values=jnp.asarray(p.constant_value).astype(data.dtype))
    return jnp.pad(data, widths, p.mode)


@operator("tile", attributes={"reps": attr.shape()})
def tile(p, data):
    return jnp.tile(data, p.reps or ())


@operator(
    "take",
    attributes={"axis": attr.integer(0), "mode": attr.enum(["clip", "wrap", "raise"], "clip")},
    inputs=("a", "indices"),
    types=lambda p, ins, outs: (ins, [ins[0]]),
)
def take(p, a, indices):
    """Picks along one axis. With mode `raise`, an index outside gives NaN: compiled programs cannot raise."""
    mode = "fill" if p.mode == "raise" else p.mode
    return jnp.take(a, indices.astype(jnp.int32), checked_axis(p.axis, a.ndim), mode=mode)


@operator(
    "Crop",
    attributes={"offset": attr.shape((0, 0)), "h_w": attr.shape((0, 0)), "center_crop": attr.boolean(False)},
    variadic=True,
)
def crop(p, data, *like):
    """Cuts the two last axes to the size of a second input, or to `h_w`."""
    if any(x.ndim != 4 for x in (data, *like)):
        raise MXNetError("Input data should be 4D in batch-num_filter-y-x")
    sizes = like[0].shape[2:] if like else p.h_w
    if any(pair is None or len(pair) != 2 for pair in (sizes, p.offset)):
        raise MXNetError(f"h_w and offset must have two dimensions, but are {sizes} and {p.offset}")
    starts = [(n - size) // 2 for n, size in zip(data.shape[2:], sizes, strict=True)] if p.center_crop else p.offset
    if any(not 0 <= start <= n - size for start, n, size in zip(starts, data.shape[2:], sizes, strict=True)):
        raise MXNetError(f"crop of {tuple(sizes)} at {tuple(starts)} exceeds the input of {data.shape[2:]}")
    return data[:, :, starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]
