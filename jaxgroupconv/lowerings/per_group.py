"""One dense convolution per group: XLA:CPU's dense path is good from about 16 channels a group.

Each convolution that is written out costs compile time. So few groups are written out, in the layout as it is, and many are a
loop over groups that have been made contiguous. A weight gradient of few items is computed of a padded copy of the input: where
XLA:CPU pads it itself, it reads one element at a time.
"""

from collections.abc import Sequence
from typing import Any

from jax import Array, lax

from jaxgroupconv.lowerings.calls import loop
from jaxgroupconv.lowerings.geometry import align, pad, put_at, take_at, unpadded
from jaxgroupconv.spec import ConvSpec

MAX_UNROLLED = 16
FEW_ITEMS, FEW_CHANNELS = 4, 16  # of a weight gradient that is computed of a padded copy, and output channels


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    return "one group is lax's own dense convolution" if spec.groups == 1 and not padded_before(spec) else None


def padded_before(spec: ConvSpec) -> bool:
    """Whether the input is padded in a copy: neighbouring rows and columns, few items and output channels."""
    plain = all(size == 1 for size in spec.lhs_dilation + spec.rhs_dilation)
    return few_items(spec) and plain and any(map(any, spec.padding))


def few_items(spec: ConvSpec) -> bool:
    """Whether this is a weight gradient in two dimensions of so few items and output channels that lax is slow."""
    few = spec.in_channels <= FEW_ITEMS and spec.out_channels <= FEW_CHANNELS
    return spec.short_output and spec.ndim == 2 and few


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    if padded_before(spec):
        padded, _ = spec.split(lhs, rhs)
        padded = lax.optimization_barrier(pad(spec, padded))  # or else XLA gives the padding back to the convolution
        spec = unpadded(spec)
        lhs = lax.reshape(padded, spec.lhs_shape)
    return _unrolled(spec, lhs, rhs) if spec.groups <= MAX_UNROLLED else _looped(spec, lhs, rhs)


def _unrolled(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    params: dict[str, Any] = spec.lax_params() | {"feature_group_count": 1, "batch_group_count": 1}

    def split(array: Array, layout: str) -> Sequence[Array]:
        axis = layout.index("g")
        return lax.split(array, [array.shape[axis] // spec.groups] * spec.groups, axis)

    groups = zip(split(lhs, spec.lhs_layout), split(rhs, spec.rhs_layout), strict=True)
    return lax.concatenate([lax.conv_general_dilated(x, w, **params) for x, w in groups], spec.out_layout.index("g"))


def _looped(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    lhs, rhs = spec.split(lhs, rhs)
    x_axes, w_axes, out_axes = (f"g{axes}" for axes in (f"n{spec.spatial}c", f"{spec.spatial}co", f"n{spec.spatial}o"))
    x, w = lax.optimization_barrier((align(lhs, spec.lhs_layout, x_axes), align(rhs, spec.rhs_layout, w_axes)))
    n, s = spec.ndim, range(1, spec.ndim + 1)
    channel_last = lax.ConvDimensionNumbers((0, n + 1, *s), (n + 1, n, *range(n)), (0, n + 1, *s))
    params: dict[str, Any] = spec.lax_params() | {
        "feature_group_count": 1,
        "batch_group_count": 1,
        "dimension_numbers": channel_last,
    }

    def group(i: Any, out: Array, x: Array, w: Array) -> Array:
        x_i, w_i = lax.squeeze(take_at(x, x_axes, g=(i, 1)), [0]), lax.squeeze(take_at(w, w_axes, g=(i, 1)), [0])
        return put_at(out, out_axes, lax.expand_dims(lax.conv_general_dilated(x_i, w_i, **params), [0]), g=i)

    out = loop(spec.groups, group, lax.full(spec.shape(out_axes, spec.out_size), 0, spec.out_dtype), x, w)
    return lax.reshape(align(out, out_axes, spec.out_layout), spec.out_shape)
