"""The decision list for CPUs: which convolutions each lowering is fastest at, as measured (docs/bounds.md).

That for weight gradients is `weight_plan.py`.
"""

import math
from collections.abc import Callable

from jaxgroupconv.lowerings.per_group import MAX_UNROLLED
from jaxgroupconv.lowerings.taps import MAX_PHASES, PHASE_COLUMNS
from jaxgroupconv.spec import ConvSpec

DILATED = 24  # channels of a group of a dilated input, up to which its phases are sums, or products of one item after the other
THIN_DENSE = 16  # channels in of a dilated input of one group, up to which its phases are sums
FEW_TERMS = 75  # of one group: products of input channels and kernel elements, as of images


def is_strided(spec: ConvSpec) -> bool:
    return any(stride > 1 for stride in spec.strides)


def spread_out(spec: ConvSpec) -> bool:
    """Strided, or with a dilated kernel or input."""
    return spec.phases > 1 or any(step > 1 for step in spec.strides + spec.rhs_dilation)


def _pointwise(spec: ConvSpec) -> bool:
    return math.prod(spec.window) == 1


def _thin_dense(spec: ConvSpec) -> bool:
    """One group of few input channels, as of images."""
    terms = spec.in_channels * math.prod(spec.window)
    return math.prod(spec.window) > 1 and terms <= FEW_TERMS and spec.phases == 1


def _thin_dense_products(spec: ConvSpec) -> bool:
    few = spec.ndim == 2 and spec.batch <= 2 and not spec.channel_last
    return few and _thin_dense(spec) and spec.out_channels > (16 if is_strided(spec) else 32)


def _thin_dense_sums(spec: ConvSpec) -> bool:
    few = spec.out_channels <= 16
    most = 64 if few else 32
    plain = spec.ndim == 2 and (spec.channel_last or not is_strided(spec))
    return _thin_dense(spec) and spec.in_channels * math.prod(spec.window) <= most and (plain or few)


def _thin_dense_dilated(spec: ConvSpec) -> bool:
    """Of few channels, and not of even fewer out, channel-last, which would leave most of a vector empty."""
    enough = not spec.channel_last or spec.out_channels >= 6 or spec.in_channels <= THIN_DENSE // 2
    return spec.groups == 1 and spec.ndim == 2 and spec.phases > 1 and spec.in_channels <= THIN_DENSE and enough


def dense_pointwise(spec: ConvSpec) -> bool:
    """One group and a kernel of size one; where the kernel has to be transposed, it is a small part of the operands."""
    positions, channels = spec.batch * math.prod(spec.out_size), spec.in_channels + spec.out_channels
    moved = 4 * spec.in_channels * spec.out_channels if _gathered(spec) else 0
    enough = positions >= (4 if spec.batch == 1 or spec.channel_last else 32 * spec.batch)
    return _pointwise(spec) and enough and positions * channels >= moved


def _volumetric_sums(spec: ConvSpec) -> bool:
    """In three dimensions: few channels, or a plain kernel that passes over many positions."""
    if spec.ndim != 3 or math.prod(spec.window) < 9:
        return False
    if spec.in_channels <= 12 or spec.out_channels <= 4:
        return True
    if spec.phases > 1:
        return False
    many, strided = spec.batch * math.prod(spec.out_size) >= 64 * spec.in_channels, is_strided(spec)
    return (many and spec.in_channels <= (24 if strided else 64)) or (
        spec.channel_last and not strided and spec.in_channels <= 128
    )


def _volumetric_products(spec: ConvSpec) -> bool:
    """In three dimensions: strided, dilated, or few items."""
    if spec.ndim != 3 or spec.in_channels * spec.out_channels * spec.batch < 64:
        return False
    thin = spec.in_channels <= 12 and spec.phases <= MAX_PHASES  # sums, of which more phases would be too much to write out
    return not thin and (spread_out(spec) or spec.channel_last or (spec.batch == 1 and spec.in_channels < 128))


def _disjoint(spec: ConvSpec) -> bool:
    wide = spec.phases > 4 if spec.groups == 1 else spec.in_channels > 16
    return spec.disjoint and (not spec.channel_last or spec.in_channels == 1 or wide)


def scale(spec: ConvSpec) -> bool:
    return _pointwise(spec) and spec.in_channels == spec.out_channels == spec.phases == 1 and not is_strided(spec)


def _pointwise_products(spec: ConvSpec) -> bool:
    """A kernel of size one whose product is faster than its sum; channel-last, a product has to move the groups first."""
    if spec.channel_last:  # large operands are dear to move; in a gradient the sum has to move the kernel
        enough = spec.in_channels > (48 if spec.bytes >= 6 << 20 and spec.rhs_layout.endswith("o") else 24)
    elif spec.batch == 1:
        enough = spec.in_channels >= 8
    else:
        enough = spec.in_channels > 24 or (spec.in_channels >= 4 and spec.out_channels >= (12 if is_strided(spec) else 8))
    return _pointwise(spec) and enough


def _large_pointwise_gradient(spec: ConvSpec) -> bool:
    large = spec.channel_last and not spec.rhs_layout.endswith("o") and spec.bytes >= 12 << 20
    return large and _pointwise(spec) and spec.groups <= MAX_UNROLLED and 24 < spec.in_channels <= 48


def _thin(spec: ConvSpec) -> bool:
    if spec.groups <= MAX_UNROLLED and not (spec.channel_last and spec.disjoint):
        most = 12
    elif spec.channel_last:
        most = 24
    else:
        many = 14 * 14 if _gathered(spec) and spec.batch == 1 else 56 * 56
        most = 16 if math.prod(spec.out_size) >= many else 15 if _gathered(spec) else 12
    return _pointwise(spec) or spec.in_channels <= most


def _thin_strided(spec: ConvSpec) -> bool:
    """Sums that read every second column are no vector loops."""
    plain = spec.phases == 1 and not _pointwise(spec) and not spec.channel_last
    return plain and is_strided(spec) and 8 <= spec.in_channels <= 12


def _gathered(spec: ConvSpec) -> bool:
    """Whether the kernel is that of a gradient, channel-first, which a matrix product must have in another order."""
    return spec.lhs_layout.endswith(spec.spatial) and not spec.rhs_layout.startswith("go")


def _few_elements(spec: ConvSpec) -> bool:
    """A kernel whose patches are worth making."""
    return math.prod(spec.window) <= 49


def _many_groups(spec: ConvSpec) -> bool:
    """Many groups, channel-first or of a small map; a gradient's kernel is moved, which many positions make worth it."""
    positions = math.prod(spec.out_size)
    if spec.batch * positions <= 64:
        small = not _gathered(spec)
    else:
        small = spec.phases == 1 and not spec.channel_last and (positions >= 28 * 28 or not _gathered(spec))
    return small and spec.groups > MAX_UNROLLED and _few_elements(spec)


def _patches(spec: ConvSpec) -> bool:
    """Strided single items, or groups so wide that the patches cost little beside their product, channel-first."""
    strided = spec.batch == 1 and is_strided(spec)
    wide = _few_elements(spec) and spec.in_channels >= 40 and not spec.channel_last and not _gathered(spec)
    return spec.phases == 1 and math.prod(spec.window) > 1 and (strided or wide)


def _dilated_sums(spec: ConvSpec) -> bool:
    """A dilated input of thin groups; channel-first, of few terms, or of rows whose phases are vectors."""
    if spec.phases == 1 or spec.channel_last:
        return spec.phases > 1 and spec.in_channels <= DILATED
    few = spec.in_channels <= 5 or spec.in_channels * math.prod(spec.window) <= 10 * spec.phases
    wide = spec.out_size[-1] >= PHASE_COLUMNS
    thin = spec.in_channels <= 12 and spec.batch * math.prod(spec.out_size) >= 6000
    return few or (wide and (thin or (12 < spec.in_channels <= 16 and spec.out_channels <= 8)))


def _dilated_products(spec: ConvSpec) -> bool:
    """Another one, channel-first, of a single item, many groups, or rows that are wide for their channels."""
    wide = spec.out_size[-1] >= PHASE_COLUMNS and spec.in_channels <= DILATED
    return spec.phases > 1 and not spec.channel_last and (spec.batch == 1 or spec.groups > MAX_UNROLLED or wide)


# (applies, name, reason); benchmarks/run.py --lowerings measures what the bounds rest on.
RULES: tuple[tuple[Callable[[ConvSpec], bool], str, str], ...] = (
    (
        lambda spec: spec.groups == 1 and _thin_dense_products(spec),
        "matmul",
        f"one group of at most {FEW_TERMS} terms in 2-D, channel-first, one or two items, strided or with more than 32 output "
        "channels: matrix products of patches",
    ),
    (
        lambda spec: spec.groups == 1 and _thin_dense_sums(spec),
        "taps",
        "one group of at most 64 terms (32 of more than 16 output channels), in 2-D channel-last or unstrided, or with at most "
        "16 output channels: sums over the kernel's taps",
    ),
    (
        lambda spec: spec.groups == 1 and dense_pointwise(spec),
        "matmul",
        "one group, a kernel of size one, at least 4 positions (several items, channel-first: 32 each): a matrix product",
    ),
    (
        _volumetric_sums,
        "taps",
        "three dimensions, few channels or many positions: sums, where lax has a naive loop or large patches",
    ),
    (
        _volumetric_products,
        "matmul",
        "three dimensions, strided, dilated or few items: matrix products, where lax has a naive loop",
    ),
    (
        _disjoint,
        "matmul",
        "a transposed convolution whose stride is its kernel's size: one matrix product (but, channel-last, not of "
        "several groups of 2 to 16 channels in, nor of one and at most 4 elements)",
    ),
    (
        _thin_dense_dilated,
        "taps",
        f"a dilated input of one group in 2-D, of at most {THIN_DENSE} channels in (channel-last {THIN_DENSE // 2}, or 6 out): "
        "sums, phase by phase, where lax has a naive loop",
    ),
    (lambda spec: spec.groups == 1, "native", "one group: a dense convolution"),
    (scale, "native", "a depthwise kernel of size one: lax's own is one elementwise product too"),
    (
        _large_pointwise_gradient,
        "per_group",
        "a gradient of a kernel of size one, channel-last, of 12 MiB and at most 16 groups of 25 to 48 channels, which a "
        "product would move: a dense convolution for each",
    ),
    (
        _pointwise_products,
        "matmul",
        "a kernel of size one and more than 24 channels a group (channel-last 48, forward and of 6 MiB), or, channel-first, at "
        "least 8, or, of several items, 4 and 8 output channels (12 if strided): matrix products over the groups",
    ),
    (
        _dilated_sums,
        "taps",
        f"a dilated input of at most {DILATED} channels a group, channel-last, or, channel-first, of 5, or 10 terms a phase, "
        f"or of {PHASE_COLUMNS} columns and 13 to 16 channels in and 8 out, or 12 of 6000 positions: sums, phase by phase",
    ),
    (
        _dilated_products,
        "matmul",
        f"another one, channel-first, of one item, more than {MAX_UNROLLED} groups, or {PHASE_COLUMNS} columns of at most "
        f"{DILATED} channels a group: matrix products of patches, phase by phase",
    ),
    (
        _thin_strided,
        "matmul",
        "strided, channel-first, 8 to 12 channels a group: matrix products of patches",
    ),
    (
        _thin,
        "taps",
        "thin groups (at most 12 channels; of more than 16 groups 16 of 3136 positions, in a gradient 15, or 16 of one item "
        "and 196 positions, and 24 channel-last; 24 of disjoint ones, channel-last), or any other kernel of size one: sums "
        "over the kernel's taps",
    ),
    (
        lambda spec: spec.over_the_map and spec.batch == 1 and _few_elements(spec),
        "matmul",
        "wider groups, a kernel larger than the map of at most 49 elements, and one item: products of patches",
    ),
    (
        lambda spec: spec.over_the_map,
        "native",
        "wider groups and a kernel larger than the map, which lax exchanges with it, but not in the convolution of one group",
    ),
    (
        _many_groups,
        "matmul",
        "more than 16 groups, channel-first (a gradient only of at least 784 positions) or of at most 64 positions: matrix "
        "products of patches",
    ),
    (
        _patches,
        "matmul",
        "wider groups, strided and of one item, or, channel-first, of at least 40 channels and at most 49 kernel elements: "
        "products of patches",
    ),
    (lambda spec: True, "per_group", "wider groups: a dense convolution for each"),
)
