"""Convolutions as functions: lax's own, a friendly one with groups, its transpose, and shapes without computing."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgroupconv.accelerate import accelerate, current

LAYOUTS = ("NCW", "NCHW", "NCDHW", "NWC", "NHWC", "NDHWC")
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


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
      b: the bias, (O,), or None.
      groups: G; None infers it as C // (w's input channels).
      stride: the window's steps, an int or one for each spatial axis.
      padding: an int, one for each spatial axis, (low, high) pairs (negative ones crop), `"SAME"`, `"VALID"`, or, in one dimension,
        `"CAUSAL"`, which pads the past only.
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
    x, w, ndim, channel_last = _operands(x, w, layout)
    channels, where = x.shape[-1 if channel_last else 1], f"(x: {x.shape}, w: {w.shape}, layout {layout})"
    per_group, features = (w.shape[-2], w.shape[-1]) if channel_last else (w.shape[1], w.shape[0])
    if groups is None:
        if per_group == 0 or channels % per_group:
            raise ValueError(
                f"`w` must have a number of input channels that divides the input's, but got {per_group} for {channels} {where}. "
                f"Its layout is {'(*k, C/G, O)' if channel_last else '(O, C/G, *k)'}."
            )
        groups = channels // per_group
    _check_groups(groups, channels, features, x.shape, layout)
    if per_group * groups != channels:
        raise ValueError(
            f"`w` must have C/G = {channels // groups} input channels, but got {per_group} {where} with groups={groups}. "
            f"Its layout is {'(*k, C/G, O)' if channel_last else '(O, C/G, *k)'}."
        )
    _check_bias(b, features, x)
    kernel = w.shape[:ndim] if channel_last else w.shape[2:]
    strides, dilations = _per_axis("stride", stride, ndim, 1), _per_axis("dilation", dilation, ndim, 1)
    size = x.shape[1:-1] if channel_last else x.shape[2:]
    pads = _pads(padding, size, kernel, strides, dilations)
    _check_window(size, kernel, dilations, pads, where)
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
    (s - 1) * stride - (low + high) + dilation * (k - 1) + output_padding + 1. Zeros between input elements are never multiplied.

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
    x, w, ndim, channel_last = _operands(x, w, layout)
    groups = 1 if groups is None else groups
    channels, where = x.shape[-1 if channel_last else 1], f"(x: {x.shape}, w: {w.shape}, layout {layout})"
    w_channels, per_group = (w.shape[-1], w.shape[-2]) if channel_last else (w.shape[0], w.shape[1])
    if w_channels != channels:
        raise ValueError(
            f"`w` must have the input's channels C = {channels}, but got {w_channels} {where}. "
            f"Its layout is {'(*k, O/G, C)' if channel_last else '(C, O/G, *k)'}."
        )
    _check_groups(groups, channels, per_group * groups if isinstance(groups, (int, np.integer)) else 0, x.shape, layout)
    _check_bias(b, per_group * groups, x)
    kernel = w.shape[:ndim] if channel_last else w.shape[2:]
    size = x.shape[1:-1] if channel_last else x.shape[2:]
    strides, dilations = _per_axis("stride", stride, ndim, 1), _per_axis("dilation", dilation, ndim, 1)
    extra = _per_axis("output_padding", output_padding, ndim, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"`output_padding` must be smaller than the stride or the dilation, but got {extra} for stride {strides} and dilation {dilations}."
        )
    if isinstance(padding, str):
        raise ValueError(f"`padding` must be an int, ints or pairs for a transposed convolution, but got {padding!r}.")
    cut = _pads(padding, size, kernel, strides, dilations)
    full = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = [(f - lo, f - hi + e) for f, (lo, hi), e in zip(full, cut, extra, strict=True)]
    dilated = [(s - 1) * stride + 1 for s, stride in zip(size, strides, strict=True)]
    if any(s + lo + hi - f < 1 for s, (lo, hi), f in zip(dilated, pads, full, strict=True)):
        raise ValueError(
            f"`padding` must leave a result, but got {cut} for a full size of {[s + f for s, f in zip(dilated, full, strict=True)]} {where}."
        )
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
    x = jax.ShapeDtypeStruct(tuple(x_shape), np.float32)
    ndim, channel_last = _parse_layout(x, layout)
    kernel = _per_axis("kernel_size", kernel_size, ndim, 1)
    channels = x.shape[-1 if channel_last else 1]
    _check_groups(groups, channels, features, x.shape, layout)
    weight = (*kernel, channels // groups, features) if channel_last else (features, channels // groups, *kernel)
    conv = functools.partial(group_conv, groups=groups, stride=stride, padding=padding, dilation=dilation, layout=layout)
    w, b = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (weight, (features,)))
    return Shapes(weight, (features,), jax.eval_shape(conv, x, w, b).shape)


def _parse_layout(x: Any, layout: str) -> tuple[int, bool]:
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    if len(x.shape) != len(layout):
        raise ValueError(f"`x` must have the axes of layout {layout}, but got shape {x.shape}. Give the `layout` of your data.")
    return len(layout) - 2, layout[-1] == "C"


def _operands(x: Any, w: Any, layout: str) -> tuple[Array, Array, int, bool]:
    x, w = jnp.asarray(x), jnp.asarray(w)
    ndim, channel_last = _parse_layout(x, layout)
    if w.ndim != x.ndim:
        raise ValueError(f"`w` must have as many axes as `x`, but got shapes {w.shape} and {x.shape} (layout {layout}).")
    if w.dtype != x.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, but got {w.dtype} and {x.dtype}. Cast one of them.")
    return x, w, ndim, channel_last


def _check_groups(groups: Any, channels: int, features: int, x_shape: tuple[int, ...], layout: str) -> None:
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)):
        raise TypeError(f"`groups` must be an integer, but got {groups!r}.")
    if groups < 1:
        raise ValueError(f"`groups` must be at least 1, but got groups={groups} (x: {x_shape}, layout {layout}).")
    for count, what in ((channels, "input"), (features, "output")):
        if count % groups:
            raise ValueError(
                f"`groups` must divide both channel counts, but got groups={groups} for {count} {what} channels "
                f"(x: {x_shape}, layout {layout})."
            )


def _check_bias(b: Any, features: int, x: Array) -> None:
    if b is None:
        return
    if jnp.shape(b) != (features,):
        raise ValueError(f"`b` must have shape ({features},), one number for each output channel, but got {jnp.shape(b)}.")
    if jnp.asarray(b).dtype != x.dtype:
        raise TypeError(f"`b` must have the dtype of `x`, but got {jnp.asarray(b).dtype} and {x.dtype}. Cast it.")


def _check_window(size: Sequence[int], kernel: Sequence[int], dilations: Sequence[int], pads: Any, where: str) -> None:
    for s, k, d, (low, high) in zip(size, kernel, dilations, pads, strict=True):
        if isinstance(s, int) and s + low + high < d * (k - 1) + 1:
            raise ValueError(
                f"`w` must not be larger than the padded input, but got a kernel of {d * (k - 1) + 1} (dilation included) "
                f"for a size of {s + low + high} {where}. Pad the input or reduce the dilation."
            )


def _per_axis(name: str, value: Any, ndim: int, least: int) -> tuple[int, ...]:
    values = (value,) * ndim if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, (int, np.integer)) for v in values):
        raise TypeError(f"`{name}` must be an integer or a sequence of integers, but got {value!r}.")
    if len(values) != ndim:
        raise ValueError(f"`{name}` must have one number for each of the {ndim} spatial axes, but got {value!r}.")
    if any(v < least for v in values):
        raise ValueError(f"`{name}` must be at least {least}, but got {value!r}.")
    return tuple(int(v) for v in values)


def _pads(padding: Any, size: Any, kernel: Any, strides: Any, dilations: Any) -> list[tuple[int, int]]:
    """Any form of padding as (low, high) pairs."""
    ndim = len(kernel)
    if isinstance(padding, str):
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        if padding == "CAUSAL":
            if ndim != 1:
                raise ValueError(
                    f"`padding` must be pairs in {ndim} dimensions, but got 'CAUSAL', which has a meaning in one only."
                )
            return [(reach[0] - 1, 0)]
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"`padding` must be 'SAME', 'VALID', 'CAUSAL', integers or pairs, but got {padding!r}.")
        return [(int(lo), int(hi)) for lo, hi in lax.padtype_to_pads(size, reach, strides, padding)]
    values = [padding] * ndim if isinstance(padding, (int, np.integer)) and not isinstance(padding, bool) else padding
    if not isinstance(values, Sequence):
        raise TypeError(f"`padding` must be an integer, integers, pairs or a word, but got {padding!r}.")
    pairs = [(v, v) if isinstance(v, (int, np.integer)) else tuple(v) if isinstance(v, Sequence) else (v,) for v in values]
    if not all(isinstance(p, (int, np.integer)) for pair in pairs for p in pair):
        raise TypeError(f"`padding` must be an integer, integers, pairs or a word, but got {padding!r}.")
    if len(pairs) != ndim or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"`padding` must have one number or pair for each of the {ndim} spatial axes, but got {padding!r}.")
    return [(int(lo), int(hi)) for lo, hi in pairs]


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
