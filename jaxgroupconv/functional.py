"""Convolutions as functions: lax's own, a friendly one with groups, its transpose, and shapes without computing."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgroupconv.accelerate import accelerate, current
from jaxgroupconv.arguments import (
    Padding,
    as_operands,
    as_pads,
    check_bias,
    check_count,
    check_groups,
    check_rank,
    check_window,
    checked_shape,
    parse_layout,
    per_axis,
)


@functools.wraps(lax.conv_general_dilated)
def conv_general_dilated(*args, **kwargs):  # noqa: D103 (lax's signature and documentation)
    with accelerate(current()):
        return lax.conv_general_dilated(*args, **kwargs)


def group_conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    groups: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NCHW",
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Grouped convolution (cross-correlation) in one, two or three dimensions.

    Args:
      x: the input, (N, C, *s) for the layouts NCW, NCHW, NCDHW, or (N, *s, C) for NWC, NHWC, NDHWC.
      w: the kernel, (O, C/G, *k), or channel-last (*k, C/G, O).
      b: the bias, (O,), or None; added to the result in the result's dtype.
      groups: G; None infers it as C // (w's input channels).
      stride: the window's steps, an int or one for each spatial axis.
      padding: an int, one for each spatial axis, (low, high) pairs (negative ones crop), `"SAME"`, `"VALID"`, or, in one
        dimension, `"CAUSAL"`, which pads the past only.
      dilation: the distance of neighbouring kernel elements.
      layout: the layout of x and of the result.
      precision: as in `lax.conv_general_dilated`.
      preferred_element_type: the dtype in which to accumulate and return.

    Returns:
      The result, (N, O, *s') or (N, *s', O).

    Raises:
      ValueError: shapes, groups or geometry do not fit; the message names the parameter.
      TypeError: the dtypes differ.

    Example:
      >>> jgc.group_conv(jnp.ones((1, 6, 8, 8)), jnp.ones((12, 2, 3, 3)), padding=1).shape  # three groups
      (1, 12, 8, 8)
    """
    x, w, ndim, channel_last = as_operands(x, w, layout)
    channels, where = x.shape[-1 if channel_last else 1], f"(x: {x.shape}, w: {w.shape}, layout {layout})"
    per_group, features = (w.shape[-2], w.shape[-1]) if channel_last else (w.shape[1], w.shape[0])
    if groups is None:
        if per_group == 0 or channels % per_group:
            raise ValueError(
                f"`w` must have a number of input channels that divides the input's, but got {per_group} for {channels} "
                f"{where}. Its layout is {'(*k, C/G, O)' if channel_last else '(O, C/G, *k)'}."
            )
        groups = channels // per_group
    check_groups(groups, channels, features, f"(x: {x.shape}, layout {layout})")
    if per_group * groups != channels:
        raise ValueError(
            f"`w` must have C/G = {channels // groups} input channels, but got {per_group} {where} with groups={groups}. "
            f"Its layout is {'(*k, C/G, O)' if channel_last else '(O, C/G, *k)'}."
        )
    check_bias(b, features, x)
    kernel = w.shape[:ndim] if channel_last else w.shape[2:]
    strides, dilations = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    size = x.shape[1:-1] if channel_last else x.shape[2:]
    pads = as_pads(padding, size, kernel, strides, dilations)
    check_window(size, kernel, dilations, pads, where)
    out = conv_general_dilated(
        x,
        w,
        window_strides=strides,
        padding=pads,
        rhs_dilation=dilations,
        dimension_numbers=_dimension_numbers(ndim, channel_last),
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _add_bias(out, b, channel_last)


def group_conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    groups: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NCHW",
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Grouped transposed convolution: the gradient of `group_conv` with respect to its input, as an operator.

    The semantics are those of `torch.nn.functional.conv_transpose1d` to `3d`. The result's size is
    (s - 1) * stride - (low + high) + dilation * (k - 1) + output_padding + 1. Zeros between input elements are never
    multiplied.

    Args:
      x: the input, (N, C, *s), or channel-last (N, *s, C).
      w: the kernel, (C, O/G, *k), or channel-last (*k, O/G, C).
      b: the bias, (O,), or None.
      groups: G; None means 1 (the kernel's shape does not tell it).
      stride: the distance of the results of neighbouring input elements.
      padding: what is cut from the full result: an int, one for each spatial axis, or (low, high) pairs.
      output_padding: positions added at the high end; smaller than the stride or the dilation.
      dilation: the distance of neighbouring kernel elements.
      layout: the layout of x and of the result.
      precision: as in `lax.conv_general_dilated`.
      preferred_element_type: the dtype in which to accumulate and return.

    Returns:
      The result, (N, O, *s') or (N, *s', O).

    Raises:
      ValueError: shapes, groups or geometry do not fit; the message names the parameter.
      TypeError: the dtypes differ.

    Example:
      >>> jgc.group_conv_transpose(jnp.ones((1, 6, 8, 8)), jnp.ones((6, 2, 2, 2)), groups=3, stride=2).shape
      (1, 6, 16, 16)
    """
    x, w, ndim, channel_last = as_operands(x, w, layout)
    groups = 1 if groups is None else groups
    channels, where = x.shape[-1 if channel_last else 1], f"(x: {x.shape}, w: {w.shape}, layout {layout})"
    w_channels, per_group = (w.shape[-1], w.shape[-2]) if channel_last else (w.shape[0], w.shape[1])
    if w_channels != channels:
        raise ValueError(
            f"`w` must have the input's channels C = {channels}, but got {w_channels} {where}. "
            f"Its layout is {'(*k, O/G, C)' if channel_last else '(C, O/G, *k)'}."
        )
    check_groups(groups, channels, 0, f"(x: {x.shape}, layout {layout})")  # O is a multiple of G by its making
    check_bias(b, per_group * groups, x)
    kernel = w.shape[:ndim] if channel_last else w.shape[2:]
    size = x.shape[1:-1] if channel_last else x.shape[2:]
    strides, dilations = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    extra = per_axis("output_padding", output_padding, ndim, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"`output_padding` must be smaller than the stride or the dilation, but got {extra} for stride {strides} and "
            f"dilation {dilations}."
        )
    if isinstance(padding, str):
        raise ValueError(f"`padding` must be an int, ints or pairs for a transposed convolution, but got {padding!r}.")
    cut = as_pads(padding, size, kernel, strides, dilations)
    full = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = [(f - lo, f - hi + e) for f, (lo, hi), e in zip(full, cut, extra, strict=True)]
    dilated = [(s - 1) * stride + 1 for s, stride in zip(size, strides, strict=True)]
    if any(s + lo + hi - f < 1 for s, (lo, hi), f in zip(dilated, pads, full, strict=True)):
        sizes = [s + f for s, f in zip(dilated, full, strict=True)]
        raise ValueError(f"`padding` must leave a result, but got {cut} for a full size of {sizes} {where}.")
    out = conv_general_dilated(
        x,
        _transposed_kernel(w, groups, ndim, channel_last),
        window_strides=(1,) * ndim,
        padding=pads,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_dimension_numbers(ndim, channel_last),
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _add_bias(out, b, channel_last)


class Shapes(NamedTuple):
    """What `infer_shapes` returns: tuples of ints.

    Attributes:
      weight: the kernel's shape.
      bias: the bias's shape.
      output: the result's shape.
    """

    weight: tuple[int, ...]
    bias: tuple[int, ...]
    output: tuple[int, ...]


def infer_shapes(
    x_shape: Sequence[int],
    features: int,
    kernel_size: int | Sequence[int],
    *,
    groups: int = 1,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    layout: str = "NCHW",
) -> Shapes:
    """The shapes of a grouped convolution's weight, bias and output, by `jax.eval_shape`: nothing is computed.

    Args:
      x_shape: the input's shape.
      features: O.
      kernel_size: k, an int or one for each spatial axis.
      groups: G.
      stride: as in `group_conv`; so are the following.
      padding: an int, ints, pairs or a word.
      dilation: an int or ints.
      layout: the layout of x_shape.

    Returns:
      Shapes (weight, bias, output).

    Raises:
      ValueError: as `group_conv`.

    Example:
      >>> jgc.infer_shapes((1, 6, 256, 256), 24, 3, groups=2)
      Shapes(weight=(24, 3, 3, 3), bias=(24,), output=(1, 24, 254, 254))
    """
    x = jax.ShapeDtypeStruct(checked_shape("x_shape", x_shape), np.float32)
    ndim, channel_last = parse_layout(layout)
    check_rank(x, layout)
    kernel = per_axis("kernel_size", kernel_size, ndim, 1)
    channels = x.shape[-1 if channel_last else 1]
    where = f"(x: {x.shape}, layout {layout})"
    check_count("features", features, where)
    check_groups(groups, channels, features, where)
    features = int(features)
    weight = (*kernel, channels // groups, features) if channel_last else (features, channels // groups, *kernel)
    conv = functools.partial(group_conv, groups=groups, stride=stride, padding=padding, dilation=dilation, layout=layout)
    w, b = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (weight, (features,)))
    return Shapes(weight, (features,), jax.eval_shape(conv, x, w, b).shape)


def _dimension_numbers(ndim: int, channel_last: bool) -> tuple[str, str, str]:
    spatial = "DHW"[-ndim:]
    return (
        (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C") if channel_last else (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    )


def _transposed_kernel(w: Array, groups: int, ndim: int, channel_last: bool) -> Array:
    """The kernel of the convolution that a transposed one is: channels exchanged within each group, positions reversed."""
    if channel_last:  # (*k, O/G, G * C/G) -> (*k, C/G, G * O/G)
        kernel, (per_group, channels) = w.shape[:ndim], w.shape[ndim:]
        w = jnp.moveaxis(w.reshape(*kernel, per_group, groups, channels // groups), -1, -3)
        w = jnp.swapaxes(w, -1, -2).reshape(*kernel, channels // groups, groups * per_group)
        return jnp.flip(w, range(ndim))
    channels, per_group, *kernel = w.shape  # (G * C/G, O/G, *k) -> (G * O/G, C/G, *k)
    w = jnp.swapaxes(w.reshape(groups, channels // groups, per_group, *kernel), 1, 2)
    return jnp.flip(w.reshape(groups * per_group, channels // groups, *kernel), range(2, 2 + ndim))


def _add_bias(out: Array, b: Any, channel_last: bool) -> Array:
    if b is None:
        return out
    b = jnp.asarray(b).astype(out.dtype)
    return out + (b.reshape((1,) * (out.ndim - 1) + (-1,)) if channel_last else b.reshape((1, -1) + (1,) * (out.ndim - 2)))
