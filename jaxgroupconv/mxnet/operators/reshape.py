"""Operators that give an array another shape: Reshape with MXNet's codes, Flatten, transposing."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.registry import operator
from jaxgroupconv.mxnet.shapes import Shape


def reshaped(source: Sequence[int], codes: Sequence[int], reverse: bool = False) -> tuple[int, ...]:
    """The shape that MXNet's reshape codes make of a shape.

    Every code consumes sizes of the source, from the left (from the right with `reverse`):

    | code | gives | consumes |
    |---|---|---|
    | n > 0 | n | one size, or none past the end |
    | 0 | the source's size | one |
    | -1 | what is left over for it; allowed once | one |
    | -2 | all remaining sizes | all |
    | -3 | the product of two sizes | two |
    | -4, a, b | a and b, one of which may be -1 | one |

    Args:
      source: the array's shape.
      codes: the new shape, in codes.
      reverse: whether to walk from the right; a split is then written `a, b, -4`.

    Returns:
      The new shape.

    Raises:
      MXNetError: for codes that do not fit the source.

    Example:
      >>> reshaped((1, 24, 8, 8), (0, -4, 3, -1, -2))
      (1, 3, 8, 8, 8)
    """
    if reverse:
        return reshaped(source[::-1], codes[::-1])[::-1]
    sizes: list[int] = []
    open_axis = None  # where the -1 stands
    taken, items = 0, iter(range(len(codes)))
    for i in items:
        code = codes[i]
        if code == 0:
            if taken >= len(source):
                raise MXNetError("Check failed: src_idx < dshape_len")
            sizes.append(source[taken])
        elif code == -1:
            if open_axis is not None:
                raise MXNetError("One and only one dim can be inferred")
            open_axis = len(sizes)
            sizes.append(1)
        elif code == -2:
            sizes.extend(source[taken:])
            taken = len(source)
            continue
        elif code == -3:
            if taken >= len(source) - 1:
                raise MXNetError("Check failed: src_idx < dshape_len-1")
            sizes.append(source[taken] * source[taken + 1])
            taken += 1
        elif code == -4:
            if i + 2 >= len(codes):
                raise MXNetError("Check failed: i + 2 < params_len")
            if taken >= len(source):
                raise MXNetError("Check failed: src_idx < dshape_len")
            sizes.extend(_split(source[taken], codes[i + 1], codes[i + 2]))
            next(items)
            next(items)
        elif code < 0:
            raise MXNetError(f"shape dim size must be >= -1, while received {code}")
        else:
            sizes.append(code)
        taken += 1
    if open_axis is not None:
        rest = math.prod(sizes)
        sizes[open_axis] = math.prod(source) // rest if rest else 0
    return tuple(sizes)


def _split(size: int, a: int, b: int) -> tuple[int, int]:
    if a == b == -1:
        raise MXNetError("Split dims cannot both be -1.")
    left, right = (size // b if a == -1 and b else a), (size // a if b == -1 and a else b)
    if left * right != size:
        raise MXNetError(f"Split dims {left}, {right} do not divide original dim {size}")
    return left, right


def _complete_reshape(p: Any, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """One unknown size of the source follows from a known output."""
    data, out = ins[0], outs[0]
    if data is not None and data.count(-1) == 1 and out is not None and -1 not in out:
        rest = -math.prod(data)
        if rest and math.prod(out) % rest == 0:
            data = tuple(math.prod(out) // rest if size == -1 else size for size in data)
    return [data], outs


@operator(
    "Reshape",
    "reshape",
    attributes={
        "shape": attr.integers(()),
        "reverse": attr.boolean(False),
        "target_shape": attr.integers(()),
        "keep_highest": attr.boolean(False),
    },
    complete=_complete_reshape,
)
def reshape(p, data):
    if p.shape:
        new = reshaped(data.shape, p.shape, p.reverse)
    elif p.target_shape:  # before 0.7: sizes as they are, and one 0 to be filled in
        new = (data.shape[0], *p.target_shape[1:]) if p.keep_highest else p.target_shape
        rest = math.prod(size for size in new if size)
        new = tuple(size or data.size // rest for size in new)
    else:
        return data
    # MXNet's operator skips this and reads or writes beyond the array; the messages are those of its NDArray.reshape.
    if math.prod(new) > data.size:
        raise MXNetError("target shape size is larger than the current shape")
    if math.prod(new) < data.size:
        raise ValueError(f"Cannot reshape array of size {data.size} into shape {p.shape or p.target_shape}")
    return data.reshape(new)


@operator("Flatten", "flatten")
def flatten(p, data):
    return data.reshape(data.shape[0], math.prod(data.shape[1:]))


def checked_axis(axis: int, rank: int) -> int:
    """An axis counted from the left; MXNetError for one that is not there."""
    if not -rank <= axis < rank:
        raise MXNetError(f"axis {axis} exceeds the input dimension of {rank}")
    return axis % rank


@operator("SwapAxis", "swapaxes", attributes={"dim1": attr.integer(0), "dim2": attr.integer(0)})
def swap_axis(p, data):
    return jnp.swapaxes(data, checked_axis(p.dim1, data.ndim), checked_axis(p.dim2, data.ndim))


@operator("transpose", attributes={"axes": attr.integers(())})
def transpose(p, data):
    return jnp.transpose(data, p.axes or None)


@operator("expand_dims", attributes={"axis": attr.integer()})
def expand_dims(p, data):
    return jnp.expand_dims(data, checked_axis(p.axis, data.ndim + 1))


@operator("squeeze", attributes={"axis": attr.optional(attr.integers())})
def squeeze(p, data):
    axes = p.axis and tuple(checked_axis(axis, data.ndim) for axis in p.axis)
    for axis in axes or ():
        if data.shape[axis] != 1:
            raise MXNetError(f"cannot select an axis to squeeze out which has size={data.shape[axis]} not equal to one")
    out = jnp.squeeze(data, axes)
    return out if out.ndim else out.reshape(1)  # MXNet had no arrays of rank 0
