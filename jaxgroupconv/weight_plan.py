"""The decision list for weight gradients on CPUs: which of them each lowering is fastest at, as measured (docs/bounds.md).

Here `in_channels` are the items of the batch, `batch` and `out_channels` the input and output channels of a group.
"""

import math
from collections.abc import Callable

from jaxgroupconv.cpu_plan import dense_pointwise, scale, spread_out
from jaxgroupconv.lowerings.geometry import VECTOR
from jaxgroupconv.lowerings.per_group import FEW_CHANNELS, FEW_ITEMS, MAX_UNROLLED, few_items, padded_before
from jaxgroupconv.lowerings.weight_sums import transposed
from jaxgroupconv.spec import ConvSpec

WIDE = 12  # input channels of a dense weight gradient, which fill most of a product's vectors
LARGE_BYTES = 12 << 20  # of its operands and result, whose copies no longer stay in the cache


def is_sparse(spec: ConvSpec) -> bool:  # as the weight gradient of a strided convolution, where lax has a naive loop
    return any(step > 1 for step in spec.rhs_dilation)


def is_single(spec: ConvSpec) -> bool:  # one item, unstrided, where lax's dense weight gradient is good
    return spec.in_channels == 1 and not is_sparse(spec)


def _few_items_sparse(spec: ConvSpec) -> bool:
    return spec.groups == 1 and few_items(spec) and spec.phases == 1 and is_sparse(spec)


def _volumetric_sums(spec: ConvSpec) -> bool:
    return spec.ndim == 3 and math.prod(spec.window) >= 9 and spec.groups == 1 and spec.batch * spec.out_channels <= 64


def _volumetric_products(spec: ConvSpec) -> bool:
    """In three dimensions: strided, dilated, or of one item."""
    wide = spec.batch * spec.out_channels >= 16 * 16 or spec.phases > 4
    enough = min(spec.batch, spec.out_channels) > 2 and spec.in_channels * spec.out_channels * spec.batch >= 64
    return spec.ndim == 3 and wide and enough and (spread_out(spec) or spec.in_channels == 1)


def _dense_patches(spec: ConvSpec) -> bool:
    """One group in two dimensions and many positions, of few input channels or items, or large: lax's products are poor."""
    elements, strided = math.prod(spec.out_size), is_sparse(spec)
    many = spec.ndim == 2 and spec.in_channels * math.prod(spec.window) >= 784 and elements > 1
    few = spec.batch < WIDE or (spec.in_channels <= FEW_ITEMS and not is_single(spec))
    large = spec.bytes >= LARGE_BYTES
    least = 24 if few and spec.batch > 1 and (strided or (elements <= 9 and spec.channel_last)) else 40
    return spec.groups == 1 and spec.phases == 1 and many and (few or large) and spec.out_channels >= least


def _dense_gradient(spec: ConvSpec) -> bool:
    """One group where lax has a naive loop (a dilated input, a kernel of size one), or products of an unlucky shape."""
    if spec.groups > 1 or min(spec.batch, spec.out_channels) <= 2:
        return _few_items_sparse(spec)
    large = math.prod(spec.rhs_shape) * spec.rhs_dtype.itemsize >= 24 << 20
    thin = spec.channel_last and spec.out_channels >= 24 and spec.batch >= 4 and spec.batch * math.prod(spec.out_size) <= 64
    unlucky = spec.ndim == 2 and (large or (thin and math.prod(spec.window) >= 1 << 13))
    return unlucky or _few_items_sparse(spec) or spec.phases > 1 or math.prod(spec.out_size) == 1


def _thin_gradient(spec: ConvSpec) -> bool:
    if math.prod(spec.out_size) == 1:
        most = 16
    elif spec.groups <= 3 and not is_sparse(spec) and spec.channel_last and spec.batch >= spec.out_channels in (4, 8, 16):
        most = 16 * 16
    elif spec.groups <= 3 and not is_sparse(spec):
        most = 3 * spec.batch if spec.channel_last and spec.batch <= 5 else 15
    elif spec.lhs_layout.startswith("g"):  # of a vmap over the weights: a sum's elements are far apart
        most = 8 * 8
    elif spec.channel_last:
        most = 32 * 32
    elif is_sparse(spec):
        most = 8 * 8 if spec.out_channels % VECTOR else 16 * 16
    else:
        most = 16 * 16 if transposed(spec) else 11 * 12
    return spec.batch * spec.out_channels <= most


def _wide_gradient_of_positions(spec: ConvSpec) -> bool:
    """Channel-last, several items with many positions, over which sums pass once; few neighbours share a set of the cache."""
    items, pitch = spec.in_channels, 4 * spec.groups * spec.out_channels
    many = spec.ndim == 2 and items >= 4 and items * math.prod(spec.in_size) >= 3000
    apart = pitch % 2048 > 0 if is_sparse(spec) else pitch % 512 > 0 and math.prod(spec.out_size) <= 9
    wide = min(spec.batch, spec.out_channels) >= 32 and spec.batch * spec.out_channels <= 128 * 128
    plain = spec.groups > 1 and spec.phases == 1 and math.prod(spec.out_size) > 1 and spec.lhs_layout.startswith("c")
    return spec.channel_last and many and apart and wide and plain


def _few_thin_gradient(spec: ConvSpec) -> bool:
    thin = spec.batch * spec.out_channels < 16 * 16
    plain = math.prod(spec.out_size) > 1 and spec.phases == 1 and not is_sparse(spec)
    return spec.groups <= 3 and thin and plain


def _wide_gradient_of_items(spec: ConvSpec) -> bool:
    """Several items of few wide groups: lax's dense gradient keeps what products of one item after the other load again."""
    few = 1 < spec.groups <= MAX_UNROLLED and math.prod(spec.out_size) > 1
    wide = spec.ndim == 2 and spec.phases == 1 and min(spec.batch, spec.out_channels) >= 32
    return few and wide and spec.in_channels >= (2 if spec.channel_last else 4)


# (applies, name, reason); benchmarks/run.py --lowerings measures what the bounds rest on.
RULES: tuple[tuple[Callable[[ConvSpec], bool], str, str], ...] = (
    (
        lambda spec: spec.groups == 1 and dense_pointwise(spec),
        "matmul",
        "one group, a map of size one: a matrix product",
    ),
    (_volumetric_sums, "taps", "three dimensions, one group of at most 64 pairs of channels: sums, where lax has a naive loop"),
    (
        _volumetric_products,
        "matmul",
        "three dimensions, strided, dilated or of one item, wide groups: matrix products, where lax has a naive loop",
    ),
    (
        lambda spec: spec.groups == 1 and padded_before(spec),
        "per_group",
        f"a dense weight gradient in 2-D, unstrided and padded, of at most {FEW_ITEMS} items and {FEW_CHANNELS} output "
        "channels: lax's own, of a padded copy",
    ),
    (
        lambda spec: _few_items_sparse(spec) and (spec.batch > 4 or spec.out_channels <= 8),
        "taps",
        f"a strided one of at most {FEW_ITEMS} items and {FEW_CHANNELS} output channels (8 of at most 4 input channels): sums "
        "over blocks of rows",
    ),
    (
        _dense_patches,
        "matmul",
        f"a dense weight gradient in 2-D of at least 784 positions, of {LARGE_BYTES >> 20} MiB, less than {WIDE} input "
        f"channels or at most {FEW_ITEMS} items (of a stride, or several), and of 40 output channels (of 2 to {WIDE - 1} input "
        "channels or so few items 24, if it is strided or, channel-last, of at most 9 kernel elements): a product of patches",
    ),
    (
        _dense_gradient,
        "matmul",
        "another strided one of these, or one of a kernel of size one or a dilated input, or in 2-D of a cotangent of 24 MiB, "
        "or, channel-last, of 8192 positions, at least 24 output channels and at most 64 input channels times kernel elements: "
        "a product of patches",
    ),
    (lambda spec: spec.groups == 1, "native", "one group: a dense convolution"),
    (scale, "native", "depthwise, a map and a kernel of size one: lax's own is one elementwise product too"),
    (
        _thin_gradient,
        "taps",
        "a weight gradient of thin groups (at most 11x12 channels, 16x16 if rows are shorter than 16 or output channels are "
        "whole vectors, channel-last 32x32; of 2 or 3 groups 15, channel-last 16x16 of 4, 8 or 16 output channels and no "
        "fewer input channels): sums over blocks of rows",
    ),
    (
        _wide_gradient_of_positions,
        "taps",
        "a weight gradient in two dimensions, channel-last, of at least 4 items, 3000 positions and 32x32, at most 128x128 "
        "channels, if all channels take no multiple of 2 KiB and it is strided, or of 512 bytes and it is 3x3: sums over "
        "blocks of rows",
    ),
    (
        _few_thin_gradient,
        "per_group",
        "a weight gradient of at most 3 groups of less than 16x16 channels: a dense convolution for each",
    ),
    (
        _wide_gradient_of_items,
        "per_group",
        "a weight gradient of several items (channel-first four) and at most 16 groups of at least 32x32 channels: a dense "
        "convolution for each",
    ),
    (
        lambda spec: True,
        "matmul",
        "a weight gradient of wide groups: a matrix product with patches",
    ),
    (
        lambda spec: True,
        "feature_groups",
        "any other weight gradient: lax's own convolution, its batch groups written as feature groups",
    ),
)
