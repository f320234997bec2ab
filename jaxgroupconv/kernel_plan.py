"""The decision list for calls of oneDNN's kernels, which goes before that for CPUs: where they are faster than what XLA makes.

The kernels want the channels in the minor axis: channel-first, what they gain must pay for moving the input and the result. And
they compute whole vectors of channels, so that a group of two or three is mostly padding.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxgroupconv.spec import ConvSpec

LARGE = 225  # kernel elements, from which on a depthwise sum is worth moving
REACH = 8  # of a dilated depthwise kernel; oneDNN has no depthwise code beyond it, and computes all pairs of channels instead


def _plain(spec: ConvSpec) -> bool:
    """No dilated input, no weight gradient, and enough terms to pay for the conversion of a narrow dtype."""
    terms = spec.in_channels * math.prod(spec.window)
    return spec.phases == 1 and not spec.short_output and (spec.lhs_dtype == np.float32 or terms >= 48)


def _channel_last(spec: ConvSpec) -> bool:
    return not spec.lhs_layout.endswith(spec.spatial)


def _depthwise(spec: ConvSpec) -> bool:
    one = spec.in_channels == spec.out_channels == 1 < math.prod(spec.window)
    reach = max((size - 1) * step for size, step in zip(spec.window, spec.rhs_dilation, strict=True))
    near = all(step == 1 for step in spec.rhs_dilation) or (spec.ndim < 3 and reach <= REACH)
    strided = any(stride > 1 for stride in spec.strides)
    some = spec.groups >= 8  # of a vector
    return one and some and near and _plain(spec) and (_channel_last(spec) or strided or math.prod(spec.window) >= LARGE)


def _grouped(spec: ConvSpec) -> bool:
    least = min(spec.in_channels, spec.out_channels)
    enough = least >= (4 if _channel_last(spec) else 6)
    return spec.groups > 1 and math.prod(spec.window) > 1 and enough and _plain(spec)


def _pointwise(spec: ConvSpec) -> bool:
    least = min(spec.in_channels, spec.out_channels)
    return spec.groups > 1 and math.prod(spec.window) == 1 and least >= 8 and _channel_last(spec) and _plain(spec)


def _dilated(spec: ConvSpec) -> bool:
    least = min(spec.in_channels, spec.out_channels)
    return spec.groups > 1 and spec.phases > 1 and not spec.short_output and least >= 16


RULES: tuple[tuple[Callable[[ConvSpec], bool], str, str], ...] = (
    (
        _depthwise,
        "onednn",
        f"depthwise, at least 8 groups, channel-last, strided, or with a kernel of at least {LARGE} elements; the kernel "
        f"undilated, or of a reach of at most {REACH}, not in 3-D: oneDNN's kernel",
    ),
    (_grouped, "onednn", "groups of at least 4 channels, channel-first 6, in and out: oneDNN's kernel"),
    (_pointwise, "onednn", "a kernel of size one, channel-last, groups of at least 8 channels in and out: oneDNN's kernel"),
    (_dilated, "onednn", "a dilated input, groups of at least 16 channels in and out: oneDNN's kernel for each phase"),
)
