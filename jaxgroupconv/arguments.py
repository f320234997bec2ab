"""The arguments of the friendly functions: checked, and brought into one form."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LAYOUTS = ("NCW", "NCHW", "NCDHW", "NWC", "NHWC", "NDHWC")
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


def parse_layout(layout: str) -> tuple[int, bool]:
    """The number of spatial axes, and whether the channels are last."""
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    return len(layout) - 2, layout[-1] == "C"


def check_rank(x: Any, layout: str) -> None:
    if len(x.shape) != len(layout):
        raise ValueError(f"`x` must have the axes of layout {layout}, but got shape {x.shape}. Give the `layout` of your data.")


def as_operands(x: Any, w: Any, layout: str) -> tuple[Array, Array, int, bool]:
    x, w = jnp.asarray(x), jnp.asarray(w)
    ndim, channel_last = parse_layout(layout)
    check_rank(x, layout)
    if w.ndim != x.ndim:
        raise ValueError(f"`w` must have as many axes as `x`, but got shapes {w.shape} and {x.shape} (layout {layout}).")
    if w.dtype != x.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, but got {w.dtype} and {x.dtype}. Cast one of them.")
    return x, w, ndim, channel_last


def check_count(name: str, count: Any, where: str) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, but got {count!r}.")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, but got {name}={count} {where}.")


def check_groups(groups: Any, channels: int, features: int, where: str) -> None:
    check_count("groups", groups, where)
    for count, what in ((channels, "input"), (features, "output")):
        if count % groups:
            raise ValueError(
                f"`groups` must divide both channel counts, but got groups={groups} for {count} {what} channels {where}."
            )


def check_bias(b: Any, features: int, x: Array) -> None:
    if b is None:
        return
    if jnp.shape(b) != (features,):
        raise ValueError(f"`b` must have shape ({features},), one number for each output channel, but got {jnp.shape(b)}.")
    if jnp.asarray(b).dtype != x.dtype:
        raise TypeError(f"`b` must have the dtype of `x`, but got {jnp.asarray(b).dtype} and {x.dtype}. Cast it.")


def check_window(size: Sequence[int], kernel: Sequence[int], dilations: Sequence[int], pads: Any, where: str) -> None:
    for s, k, d, (low, high) in zip(size, kernel, dilations, pads, strict=True):
        if isinstance(s, int) and s > 0 and s + low + high < d * (k - 1) + 1:
            raise ValueError(
                f"`w` must not be larger than the padded input, but got a kernel of {d * (k - 1) + 1} (dilation included) "
                f"for a size of {s + low + high} {where}. Pad the input or reduce the dilation."
            )


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or not all(isinstance(s, (int, np.integer)) for s in shape):
        raise TypeError(f"`{name}` must be a sequence of integers, but got {shape!r}.")
    if any(s < 0 for s in shape):
        raise ValueError(f"`{name}` must have no negative size, but got {shape!r}.")
    return tuple(int(s) for s in shape)


def per_axis(name: str, value: Any, ndim: int, least: int) -> tuple[int, ...]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    values = (value,) * ndim if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, (int, np.integer)) for v in values):
        raise TypeError(f"`{name}` must be an integer or a sequence of integers, but got {value!r}.")
    if len(values) != ndim:
        raise ValueError(f"`{name}` must have one number for each of the {ndim} spatial axes, but got {value!r}.")
    if any(v < least for v in values):
        raise ValueError(f"`{name}` must be at least {least}, but got {value!r}.")
    return tuple(int(v) for v in values)


def check_word(padding: str, ndim: int) -> None:
    if padding not in ("SAME", "VALID", "CAUSAL"):
        raise ValueError(f"`padding` must be 'SAME', 'VALID', 'CAUSAL', integers or pairs, but got {padding!r}.")
    if padding == "CAUSAL" and ndim != 1:
        raise ValueError(f"`padding` must be pairs in {ndim} dimensions, but got 'CAUSAL', which has a meaning in one only.")


def as_pads(padding: Any, size: Any, kernel: Any, strides: Any, dilations: Any) -> list[tuple[int, int]]:
    """Any form of padding as (low, high) pairs."""
    ndim = len(kernel)
    if isinstance(padding, str):
        check_word(padding, ndim)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        if padding == "CAUSAL":
            return [(reach[0] - 1, 0)]
        return [(int(lo), int(hi)) for lo, hi in lax.padtype_to_pads(size, reach, strides, padding)]
    values = [padding] * ndim if isinstance(padding, (int, np.integer)) and not isinstance(padding, bool) else padding
    if not isinstance(values, Sequence):
        raise TypeError(f"`padding` must be an integer, integers, pairs or a word, but got {padding!r}.")
    pairs = [(v, v) if isinstance(v, (int, np.integer)) else tuple(v) if isinstance(v, Sequence) else (v,) for v in values]
    if not all(isinstance(p, (int, np.integer)) for pair in pairs for p in pair):
        raise TypeError(f"`padding` must be an integer, integers, pairs or a word, but got {padding!r}.")
    if len(pairs) != ndim or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"`padding` must have one number or pair for each of the {ndim} spatial axes, but got {padding!r}.")
    return [(int(pair[0]), int(pair[-1])) for pair in pairs]
