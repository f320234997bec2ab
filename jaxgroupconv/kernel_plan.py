"""The decision list for calls of oneDNN's kernels, which goes before that for CPUs: where they are faster than what XLA makes.

The kernels want the channels in the minor axis: channel-first, what they gain must pay for moving the input and the result. And
they compute whole vectors of channels, so that a group of two or three is mostly padding.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxgroupconv.cpu_plan import DILATED, FEW_TERMS, THIN_DENSE, is_strided
from jaxgroupconv.lowerings import taps
from jaxgroupconv.lowerings.geometry import PAGED_BYTES
from jaxgroupconv.lowerings.onednn import COLUMNS, ITEMS, is_of_items
from jaxgroupconv.lowerings.per_group import FEW_ITEMS
from jaxgroupconv.spec import ConvSpec
from jaxgroupconv.weight_plan import LARGE_BYTES, WIDE, is_single, is_sparse

LARGE = 225  # kernel elements, from which on a depthwise sum is worth moving
MOVED = 1 << 20  # elements, up to which a strided one is
LEAST = 5 * 10**5  # operations, from which on a call's some ten microseconds, and that nothing is fused to it, are paid for
DENSE_STRIDED = 5 * 10**6  # the same of a strided kernel of size one, whose product would be of a copy
DENSE_POINTWISE = 2 * 10**7  # the same beside XLA's product
DENSE_DILATED = 5 * 10**7  # the same of a dense dilated input's phases
MANY, MORE = 400, 2000  # positions of all items of a dense weight gradient; unstrided, of more than 9 kernel elements
REACH = 8  # of a dilated depthwise kernel; oneDNN has no depthwise code beyond it, and computes all pairs of channels instead


def _plain(spec: ConvSpec) -> bool:
    """No dilated input, no weight gradient, and enough terms to pay for the conversion of a narrow dtype."""
    terms = spec.in_channels * math.prod(spec.window)
    return spec.phases == 1 and not spec.over_batch and (spec.lhs_dtype == np.float32 or terms >= 48)


def _depthwise(spec: ConvSpec) -> bool:
    terms = math.prod(spec.window)
    reach = max((size - 1) * step for size, step in zip(spec.window, spec.rhs_dilation, strict=True))
    near = all(step == 1 for step in spec.rhs_dilation) or (spec.ndim < 3 and reach <= REACH)
    strided = is_strided(spec) and math.prod(spec.lhs_shape) <= MOVED
    moved = spec.ndim > 1 and (strided or terms >= LARGE or spec.lhs_dtype != np.float32)
    some = spec.in_channels == spec.out_channels == 1 and spec.groups >= 8 and 1 < terms <= 2 * math.prod(spec.in_size)
    return some and near and _plain(spec) and (spec.channel_last or moved)


def _grouped(spec: ConvSpec) -> bool:
    least = min(spec.in_channels, spec.out_channels)
    enough = least >= 4 or (least > 1 and spec.out_channels >= 6) if spec.channel_last else least >= 8
    return spec.groups > 1 and math.prod(spec.window) > 1 and enough and _plain(spec)


def _dense(spec: ConvSpec) -> bool:
    least, terms = min(spec.in_channels, spec.out_channels), spec.in_channels * math.prod(spec.window)
    enough = least >= (4 if spec.channel_last else 6) or _of_images(spec)
    patches = spec.ndim == 2 and spec.batch <= 4 and spec.in_channels < 8 and spec.out_channels >= 32 and terms >= FEW_TERMS
    return spec.groups == 1 and math.prod(spec.window) > 1 and enough and not patches and _plain(spec)


def _of_images(spec: ConvSpec) -> bool:
    """Few input channels; channel-first where there are many terms, or they are strided, of which sums are no vector loops."""
    many = spec.in_channels * math.prod(spec.window) > FEW_TERMS or (is_strided(spec) and spec.batch > 2)
    worse = spec.channel_last or spec.ndim == 3 or many
    return spec.ndim > 1 and spec.in_channels >= 2 and spec.out_channels >= 8 and worse


def _pointwise(spec: ConvSpec) -> bool:
    least = min(spec.in_channels, spec.out_channels)
    return spec.groups > 1 and math.prod(spec.window) == 1 and least >= 8 and spec.channel_last and _plain(spec)


def _dense_pointwise_strided(spec: ConvSpec) -> bool:
    """One group's kernel of size one whose product would be of a copy, and that is not large beside it."""
    many = spec.batch * math.prod(spec.out_size) >= 2 * spec.in_channels and spec.flops >= DENSE_STRIDED
    single = spec.groups == math.prod(spec.window) == 1
    return single and spec.channel_last and is_strided(spec) and many and _plain(spec)


def _dense_pointwise_gradient(spec: ConvSpec) -> bool:
    moved = spec.channel_last and not spec.rhs_layout.endswith("o")  # XLA's product transposes such a kernel
    return spec.groups == 1 and math.prod(spec.window) == 1 and moved and spec.flops >= DENSE_POINTWISE and _plain(spec)


def _dilated(spec: ConvSpec) -> bool:
    """Groups of whose phases each has many terms; or, channel-last, wide ones, or ones that sums refuse to write out."""
    least, elements = min(spec.in_channels, spec.out_channels), math.prod(spec.window)
    if spec.groups == 1 or spec.phases == 1 or spec.short_output:
        return False
    terms, small = spec.in_channels * elements // spec.phases, elements <= 3**spec.ndim
    worth = spec.flops >= 2 * LEAST * spec.phases  # a call each
    if not spec.channel_last:
        return worth and terms >= 48 and least >= (32 if small else 10) and (spec.ndim == 2 or not small)
    wide = spec.in_channels > DILATED and spec.out_channels >= 16
    refused = spec.ndim > 1 and spec.in_channels >= 8 and taps.why_not(spec) is not None
    planar = spec.ndim == 2 and small
    many = terms >= 36 and least >= (16 if planar else 10) and not (planar and spec.bytes > PAGED_BYTES)
    return wide or refused or (worth and many)


def _plain_gradient(spec: ConvSpec) -> bool:
    """A weight gradient, no dilated input, and float32."""
    return spec.over_batch and spec.phases == 1 and spec.lhs_dtype == np.float32


def _dense_gradient(spec: ConvSpec) -> bool:
    """One group in two dimensions, where few input channels leave most of a product's vectors empty."""
    planar, strided = spec.groups == 1 and spec.ndim == 2, is_sparse(spec)
    if is_of_items(spec):
        enough = spec.out_channels >= 8 and (spec.batch >= WIDE or strided)
    else:
        elements, positions = math.prod(spec.out_size), spec.in_channels * math.prod(spec.window)
        many = 1 < elements and positions >= (MANY if elements <= 9 or strided else MORE)
        wide = spec.batch >= WIDE and spec.out_channels >= (8 if spec.in_channels <= FEW_ITEMS else 24)
        enough = spec.short_output and many and wide and not is_single(spec) and spec.bytes < LARGE_BYTES
    return _plain_gradient(spec) and planar and enough


def _gradient_of_items(spec: ConvSpec) -> bool:
    """But not of 16x16 channels and 3x3 kernels."""
    wide = min(spec.batch, spec.out_channels) >= 12
    thin = spec.batch * spec.out_channels <= 16 * 16 and math.prod(spec.out_size) <= 9
    return _plain_gradient(spec) and is_of_items(spec) and wide and not thin


def _gradient(spec: ConvSpec) -> bool:
    if spec.groups == 1:
        least = math.inf if spec.ndim == 2 or math.prod(spec.out_size) == 1 else 96
    else:
        least = 16 if math.prod(spec.out_size) == 1 else 32
    last = spec.lhs_layout.endswith("gn" if spec.groups > 1 else "n")
    return _plain_gradient(spec) and spec.short_output and last and min(spec.batch, spec.out_channels) >= least


def _dense_dilated(spec: ConvSpec) -> bool:
    """In 2-D of many operations, where lax multiplies the zeros too; in 3-D beside products of patches."""
    if spec.groups > 1 or spec.over_batch or spec.phases == 1 or spec.disjoint or math.prod(spec.window) == 1:
        return False
    if spec.ndim == 3:
        return spec.in_channels > THIN_DENSE
    if spec.phases <= 4:
        some = spec.out_channels >= WIDE and THIN_DENSE // 2 < spec.in_channels <= min(64, 4 * spec.out_channels)
    else:  # more than sums can be written out for
        some = spec.out_channels >= 8 and 4 <= spec.in_channels <= 32 and taps.why_not(spec) is not None
    return spec.ndim == 2 and some and spec.flops >= DENSE_DILATED


RULES: tuple[tuple[Callable[[ConvSpec], bool], str, str], ...] = (
    (
        _depthwise,
        "onednn",
        "depthwise, at least 8 groups, a kernel of at most twice the map, channel-last, or, not in 1-D, of at least "
        f"{LARGE} kernel elements, strided and of at most {MOVED} elements, or of a narrow dtype; the kernel undilated, or of "
        f"a reach of at most {REACH}, not in 3-D: oneDNN's kernel",
    ),
    (
        _grouped,
        "onednn",
        "groups of at least 4 channels in and out, or of 2 in and 6 out, channel-first 8 in and out: oneDNN's kernel",
    ),
    (
        _dense,
        "onednn",
        "one group of at least 4 channels in and out, channel-first 6, or, not in 1-D, of 2 in and 8 out (channel-first in 2-D "
        f"of more than {FEW_TERMS} terms, or strided and of more than 2 items), but not, of at most 4 items, of less than 8 "
        f"in, 32 out and {FEW_TERMS} terms, of which lax's patches are better: oneDNN's kernel",
    ),
    (_pointwise, "onednn", "a kernel of size one, channel-last, groups of at least 8 channels in and out: oneDNN's kernel"),
    (
        _dense_pointwise_strided,
        "onednn",
        f"a strided 1x1 kernel of one group, channel-last, of {DENSE_STRIDED} operations, and twice as many positions as "
        "input channels: oneDNN's kernel",
    ),
    (
        _dense_pointwise_gradient,
        "onednn",
        f"an input gradient of a 1x1 kernel of one group, channel-last, of at least {DENSE_POINTWISE} operations: oneDNN's "
        "kernel",
    ),
    (
        _dense_gradient,
        "onednn",
        f"a weight gradient of one group in 2-D and 8 output channels: of at least {ITEMS} items and at most {COLUMNS} "
        f"columns, strided or of at least {WIDE} input channels, oneDNN's kernel, whose channels are the items; else, strided "
        f"or of several items, of as many input channels, less than {LARGE_BYTES >> 20} MiB, {MANY} positions ({MORE} "
        f"unstrided of more than 9 kernel elements) and, of more than {FEW_ITEMS} items, 24 output channels, oneDNN's products",
    ),
    (
        _gradient_of_items,
        "onednn",
        f"another of at least {ITEMS} items and at most {COLUMNS} columns, not in 1-D, of groups of at least 12 channels in "
        "and out, of 3x3 kernels more than 16: oneDNN's kernel, whose channels are the items",
    ),
    (
        _gradient,
        "onednn",
        "another, channel-last, of groups of at least 32 channels in and out, 16 of a 1x1 kernel, 96 of one group in 1-D or "
        "3-D (there not of a 1x1 kernel): oneDNN's products, or of so many items its kernel",
    ),
    (
        _dilated,
        "onednn",
        f"a dilated input, groups: channel-last of more than {DILATED} channels in and 16 out, or, not in 1-D, of 8 in and "
        f"more terms than sums write out, or of {2 * LEAST} operations a phase, 36 terms and 10 channels in and out (in "
        f"2-D, of at most 3x3 elements, 16 and {PAGED_BYTES >> 20} MiB); channel-first of as many operations, 48 terms and "
        "10 channels, but of at most 3 elements an axis in 2-D and of 32 channels only: oneDNN's kernel for each phase",
    ),
    (
        _dense_dilated,
        "onednn",
        f"a dilated input of one group, not of a 1x1 kernel, in 3-D of more than {THIN_DENSE} channels in, in 2-D of "
        f"{DENSE_DILATED} operations, {THIN_DENSE // 2 + 1} to 64 channels in, and at least {WIDE} and a quarter of these out, "
        "or, of more than 4 phases, 4 to 32 in and 8 out: oneDNN's kernel for each phase",
    ),
)
