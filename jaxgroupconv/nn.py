"""Layers as plain pytrees: arrays are leaves, the geometry is static; call a layer on data.

They work with `jax.jit`, `jax.grad`, `jax.vmap`, `jax.tree.map` and optimizers on pytrees, and need no framework.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgroupconv.arguments import Padding, as_pads, check_count, check_groups, check_word, parse_layout, per_axis
from jaxgroupconv.functional import group_conv, group_conv_transpose


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupConv:
    """Grouped convolution.

    Attributes:
      w: the kernel, (O, C/G, *k), or channel-last (*k, C/G, O).
      b: the bias, (O,), or None.
      groups: G.
      stride: one for each spatial axis.
      padding: (low, high) pairs, or a word.
      dilation: one for each spatial axis.
      layout: the layout of the data.

    Example:
      >>> layer = GroupConv.init(jax.random.key(0), 6, 12, 3, groups=3, padding=1)
      >>> layer(jnp.ones((1, 6, 8, 8))).shape
      (1, 12, 8, 8)
    """

    w: Array
    b: Array | None
    groups: int = _static()
    stride: tuple[int, ...] = _static()
    padding: str | tuple[tuple[int, int], ...] = _static()
    dilation: tuple[int, ...] = _static()
    layout: str = _static()

    @classmethod
    def init(
        cls,
        key: Array,
        channels: int,
        features: int,
        kernel_size: int | Sequence[int],
        *,
        groups: int = 1,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "NCHW",
        bias: bool = True,
        dtype: Any = jnp.float32,
    ) -> "GroupConv":
        """A layer with random weights.

        They are drawn from a truncated normal distribution with mean 0 and variance 1 / fan_in, as Flax's convolutions
        (LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998). Here fan_in, the inputs of one output, is C/G * prod(k).
        The bias is zero.

        Args:
          key: a JAX random key.
          channels: C.
          features: O.
          kernel_size: k, an int or one for each spatial axis.
          groups: G.
          stride: as in `group_conv`; so are the following.
          padding: an int, ints, pairs or a word.
          dilation: an int or ints.
          layout: the layout of the data.
          bias: whether there is one.
          dtype: the dtype of the weights.

        Returns:
          The layer.

        Raises:
          ValueError: the groups or the geometry do not fit; the message names the parameter.
        """
        ndim, channel_last = parse_layout(layout)
        kernel = _checked(channels, features, kernel_size, groups, layout)
        shape = (*kernel, channels // groups, features) if channel_last else (features, channels // groups, *kernel)
        axes = dict(in_axis=-2, out_axis=-1) if channel_last else dict(in_axis=1, out_axis=0)
        strides, dilations = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
        if isinstance(padding, str):
            check_word(padding, ndim)
        return cls(
            w=jax.nn.initializers.lecun_normal(**axes)(key, shape, dtype),
            b=jnp.zeros(features, dtype) if bias else None,
            groups=groups,
            stride=strides,
            padding=padding if isinstance(padding, str) else tuple(as_pads(padding, (), kernel, strides, dilations)),
            dilation=dilations,
            layout=layout,
        )

    def __call__(self, x: Array) -> Array:
        """`group_conv` of x."""
        return group_conv(x, self.w, self.b, **_geometry(self))


def depthwise_conv(
    key: Array, channels: int, kernel_size: int | Sequence[int], *, multiplier: int = 1, **options: Any
) -> GroupConv:
    """A `GroupConv` with a group for each channel.

    Args:
      key: a JAX random key.
      channels: C, and G.
      kernel_size: k, an int or one for each spatial axis.
      multiplier: O / C.
      **options: as in `GroupConv.init`.

    Returns:
      The layer.

    Raises:
      ValueError: as `GroupConv.init`.
    """
    check_count("multiplier", multiplier, f"(channels {channels})")
    return GroupConv.init(key, channels, channels * multiplier, kernel_size, groups=channels, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupConvTranspose:
    """Grouped transposed convolution.

    Attributes:
      w: the kernel, (C, O/G, *k), or channel-last (*k, O/G, C).
      b: the bias, (O,), or None.
      groups: G.
      stride: one for each spatial axis.
      padding: (low, high) pairs, cut from the full result.
      output_padding: one for each spatial axis.
      dilation: one for each spatial axis.
      layout: the layout of the data.

    Example:
      >>> layer = GroupConvTranspose.init(jax.random.key(0), 12, 6, 2, groups=3, stride=2)
      >>> layer(jnp.ones((1, 12, 8, 8))).shape
      (1, 6, 16, 16)
    """

    w: Array
    b: Array | None
    groups: int = _static()
    stride: tuple[int, ...] = _static()
    padding: tuple[tuple[int, int], ...] = _static()
    output_padding: tuple[int, ...] = _static()
    dilation: tuple[int, ...] = _static()
    layout: str = _static()

    @classmethod
    def init(
        cls,
        key: Array,
        channels: int,
        features: int,
        kernel_size: int | Sequence[int],
        *,
        groups: int = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "NCHW",
        bias: bool = True,
        dtype: Any = jnp.float32,
    ) -> "GroupConvTranspose":
        """A layer with random weights, initialized as `GroupConv`'s with fan_in C/G * prod(k); the bias is zero.

        Args:
          key: a JAX random key.
          channels: C.
          features: O.
          kernel_size: k, an int or one for each spatial axis.
          groups: G.
          stride: as in `group_conv_transpose`; so are the following.
          padding: an int, ints or pairs.
          output_padding: an int or ints.
          dilation: an int or ints.
          layout: the layout of the data.
          bias: whether there is one.
          dtype: the dtype of the weights.

        Returns:
          The layer.

        Raises:
          ValueError: the groups or the geometry do not fit; the message names the parameter.
        """
        ndim, channel_last = parse_layout(layout)
        kernel = _checked(channels, features, kernel_size, groups, layout)
        shape = (*kernel, features // groups, channels) if channel_last else (channels, features // groups, *kernel)
        axes = dict(in_axis=-1, out_axis=-2) if channel_last else dict(in_axis=0, out_axis=1)
        # The initializer sees all of C as inputs of an output, but a group has C/G: the scale makes up for it.
        initializer = jax.nn.initializers.variance_scaling(groups, "fan_in", "truncated_normal", **axes)
        strides, dilations = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
        if isinstance(padding, str):
            raise ValueError(f"`padding` must be an int, ints or pairs for a transposed convolution, but got {padding!r}.")
        return cls(
            w=initializer(key, shape, dtype),
            b=jnp.zeros(features, dtype) if bias else None,
            groups=groups,
            stride=strides,
            padding=tuple(as_pads(padding, (), kernel, strides, dilations)),
            output_padding=per_axis("output_padding", output_padding, ndim, 0),
            dilation=dilations,
            layout=layout,
        )

    def __call__(self, x: Array) -> Array:
        """`group_conv_transpose` of x."""
        return group_conv_transpose(x, self.w, self.b, **_geometry(self))


def _checked(channels: int, features: int, kernel_size: Any, groups: int, layout: str) -> tuple[int, ...]:
    """The kernel's sizes, all arguments checked."""
    where = f"(channels {channels}, features {features}, layout {layout})"
    check_count("channels", channels, where)
    check_count("features", features, where)
    check_groups(groups, channels, features, where)
    return per_axis("kernel_size", kernel_size, len(layout) - 2, 1)


def _geometry(layer: Any) -> dict[str, Any]:
    """The static fields of a layer."""
    return {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.metadata.get("static")}
