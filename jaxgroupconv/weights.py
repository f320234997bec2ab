"""Convolution weights of other frameworks, and dense weights that are the same convolution as grouped ones.

Everything is a transpose, a reshape or a flip: NumPy arrays stay NumPy arrays and JAX arrays stay JAX arrays, of any dtype.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgroupconv.arguments import check_count, parse_layout


def convert(w: Any, source: str, target: str, *, groups: int = 1) -> Any:
    """A convolution's weight in another framework's layout.

    The layouts: `"channel_first"` (O, C/G, *k), also called `"torch"`, `"mxnet"`, `"equinox"`; `"channel_last"` (*k, C/G, O),
    also called `"flax"`, `"haiku"` and `"keras"`; `"keras_depthwise"` (*k, C, O/C), of Keras's DepthwiseConv layers.

    Args:
      w: the weight, in the source's layout.
      source: a layout's name.
      target: a layout's name.
      groups: G; matters for `"keras_depthwise"` only, where it is C.

    Returns:
      The weight in the target's layout.

    Raises:
      ValueError: a name is unknown, or the weight is not depthwise where it must be.

    Example:
      >>> convert(torch_conv.weight.numpy(), "torch", "flax").shape  # (24, 3, 3, 3)
      (3, 3, 3, 24)
    """
    return _convert(w, source, target, groups, _LAYOUTS)


def convert_transposed(w: Any, source: str, target: str, *, groups: int = 1) -> Any:
    """A transposed convolution's weight in another framework's layout.

    The layouts: `"channel_first"` (C, O/G, *k), also called `"torch"` and `"mxnet"`; `"channel_last"` (*k, O/G, C), also called
    `"keras"`, and with one group `"flax_transpose_kernel"`; `"flax"` (*k, C, O), one group, positions reversed; `"equinox"`
    (O, C/G, *k), positions reversed.

    Args:
      w: the weight, in the source's layout.
      source: a layout's name.
      target: a layout's name.
      groups: G.

    Returns:
      The weight in the target's layout.

    Raises:
      ValueError: a name is unknown, or the groups do not fit.

    Example:
      >>> convert_transposed(torch_conv.weight.numpy(), "torch", "channel_last", groups=2).shape  # (6, 2, 3, 3)
      (3, 3, 2, 6)
    """
    return _convert(w, source, target, groups, _TRANSPOSED_LAYOUTS)


def to_dense(w: Any, groups: int, layout: str = "NCHW") -> Any:
    """The weight of the dense convolution that computes the same: the groups as diagonal blocks, zeros elsewhere.

    It costs G times the memory and FLOPs, and spreads an Inf or NaN from one group to all.

    Args:
      w: (O, C/G, *k), or channel-last (*k, C/G, O).
      groups: G.
      layout: the layout of the data, as in `group_conv`.

    Returns:
      (O, C, *k), or channel-last (*k, C, O).

    Raises:
      ValueError: the groups do not divide O, or the weight has not the layout's number of axes.
    """
    w, xp = _channel_first(w, layout, groups), jnp if isinstance(w, jax.Array) else np
    (features, channels, *kernel), ones = w.shape, (1,) * (w.ndim - 2)
    same = np.eye(groups, dtype=bool).reshape(groups, 1, groups, 1, *ones)
    blocks = w.reshape(groups, features // groups, 1, channels, *kernel)
    dense = xp.where(same, blocks, xp.zeros((), w.dtype)).reshape(features, groups * channels, *kernel)
    return _last(dense) if parse_layout(layout)[1] else dense


def from_dense(w: Any, groups: int, layout: str = "NCHW") -> Any:
    """The grouped weight of a dense convolution whose groups do not mix: its diagonal blocks.

    The check reads the numbers, so it does not work under `jax.jit`.

    Args:
      w: (O, C, *k), or channel-last (*k, C, O).
      groups: G.
      layout: the layout of the data, as in `group_conv`.

    Returns:
      (O, C/G, *k), or channel-last (*k, C/G, O).

    Raises:
      ValueError: the groups do not divide O and C, or the weight is not zero outside of the blocks.
    """
    w = _channel_first(w, layout, groups)
    features, channels, *kernel = w.shape
    if channels % groups:
        raise ValueError(f"`groups` must divide the weight's input channels, but got groups={groups} for {channels}.")
    blocks = w.reshape(groups, features // groups, groups, channels // groups, *kernel).swapaxes(1, 2)
    mixing = np.count_nonzero(np.asarray(blocks)[~np.eye(groups, dtype=bool)])
    if mixing:
        raise ValueError(
            f"`w` must be zero outside of its {groups} diagonal blocks, but got {mixing} other numbers there "
            f"(shape {w.shape} as (O, C, *k)). Its convolution mixes the groups."
        )
    each = np.arange(groups)
    grouped = blocks[each, each].reshape(features, channels // groups, *kernel)
    return _last(grouped) if parse_layout(layout)[1] else grouped


Change = Callable[[Any, int], Any]


def _convert(w: Any, source: str, target: str, groups: int, layouts: dict[str, tuple[Change, Change]]) -> Any:
    for name, value in (("source", source), ("target", target)):
        if value not in layouts:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, layouts))}, but got {value!r}.")
    check_count("groups", groups, f"(w: {w.shape}, {source})")
    return layouts[target][1](layouts[source][0](w, groups), groups)


def _first(w: Any) -> Any:
    """(*k, I, O) to (O, I, *k)."""
    return w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))


def _last(w: Any) -> Any:
    """(O, I, *k) to (*k, I, O)."""
    return w.transpose(*range(2, w.ndim), 1, 0)


def _channel_first(w: Any, layout: str, groups: int) -> Any:
    ndim, channel_last = parse_layout(layout)
    if w.ndim != ndim + 2:
        raise ValueError(f"`w` must have the axes of layout {layout}, but got shape {w.shape}.")
    check_count("groups", groups, f"(w: {w.shape}, layout {layout})")
    w = _first(w) if channel_last else w
    if w.shape[0] % groups:
        raise ValueError(f"`groups` must divide the weight's output channels, but got groups={groups} for {w.shape[0]}.")
    return w


def _from_depthwise(w: Any, groups: int) -> Any:
    """(*k, C, M) to (C * M, 1, *k)."""
    *kernel, channels, multiplier = w.shape
    return _first(w.reshape(*kernel, 1, channels * multiplier))


def _to_depthwise(w: Any, groups: int) -> Any:
    """(C * M, 1, *k) to (*k, C, M)."""
    features, per_group, *kernel = w.shape
    if per_group != 1 or features % groups:
        raise ValueError(
            f"`w` must be depthwise, (O, 1, *k) with O a multiple of `groups`, but got {w.shape} "
            f"as (O, C/G, *k) and groups={groups}."
        )
    return _last(w).reshape(*kernel, groups, features // groups)


def _regroup(w: Any, groups: int) -> Any:
    """(G * A, B, *k) to (G * B, A, *k), positions reversed: from a transposed weight to the convolution's, and back."""
    rows, columns, *kernel = w.shape
    if rows % groups:
        raise ValueError(f"`groups` must divide the weight's first axis, but got groups={groups} for {rows} (w: {w.shape}).")
    w = w.reshape(groups, rows // groups, columns, *kernel).swapaxes(1, 2).reshape(groups * columns, rows // groups, *kernel)
    return w[(slice(None), slice(None), *(slice(None, None, -1) for _ in kernel))]


def _one_group(change: Callable[[Any], Any]) -> Change:
    def checked(w: Any, groups: int) -> Any:
        if groups != 1:
            raise ValueError(f"`groups` must be 1 for this layout, which has none, but got groups={groups} (w: {w.shape}).")
        return change(w)

    return checked


def _same(w: Any, groups: int) -> Any:
    return w


# For each layout: from it to channel-first, and back.
_FIRST: tuple[Change, Change] = (_same, _same)
_LAST: tuple[Change, Change] = (lambda w, groups: _first(w), lambda w, groups: _last(w))
_LAYOUTS = {
    "channel_first": _FIRST,
    "torch": _FIRST,
    "mxnet": _FIRST,
    "equinox": _FIRST,
    "channel_last": _LAST,
    "flax": _LAST,
    "haiku": _LAST,
    "keras": _LAST,
    "keras_depthwise": (_from_depthwise, _to_depthwise),
}
_FLAX = (lambda w: _regroup(_first(w), 1), lambda w: _last(_regroup(w, 1)))  # (*k, C, O) is channel-last of (O, C, *k)
_TRANSPOSED_LAYOUTS = {
    "channel_first": _FIRST,
    "torch": _FIRST,
    "mxnet": _FIRST,
    "channel_last": _LAST,
    "keras": _LAST,
    "flax": (_one_group(_FLAX[0]), _one_group(_FLAX[1])),
    "flax_transpose_kernel": (_one_group(_first), _one_group(_last)),
    "equinox": (_regroup, _regroup),
}
