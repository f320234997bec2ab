"""The table of convolutions that every lowering is tested on, the data for them, and random ones."""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgroupconv import LOWERINGS, ConvSpec


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of `lax.conv_general_dilated`; what is left empty is one, zero or channel-first for each spatial axis."""

    name: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    groups: int = 1
    batch_groups: int = 1
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    lhs_dilation: tuple[int, ...] = ()
    rhs_dilation: tuple[int, ...] = ()
    layouts: tuple[str, str, str] | None = None
    dtype: str = "float32"
    preferred: str | None = None

    def __str__(self):
        return self.name.replace(" ", "-")

    @property
    def params(self):
        """Lax's parameters in full."""
        spatial = "DHW"[5 - len(self.lhs) :]
        ones = (1,) * len(spatial)
        layouts = self.layouts or (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
        return dict(
            window_strides=self.strides or ones,
            padding=self.padding or ((0, 0),) * len(spatial),
            lhs_dilation=self.lhs_dilation or ones,
            rhs_dilation=self.rhs_dilation or ones,
            dimension_numbers=lax.conv_dimension_numbers(self.lhs, self.rhs, layouts),
            feature_group_count=self.groups,
            batch_group_count=self.batch_groups,
            precision=None,
        )

    @property
    def out_dtype(self):
        return jnp.dtype(self.preferred or self.dtype)

    @property
    def x64(self):
        """Whether 64-bit mode must be on."""
        return any(str(dtype) in ("float64", "int64", "uint64") for dtype in (self.dtype, self.preferred))

    @property
    def spec(self):
        dtypes = dict(lhs_dtype=jnp.dtype(self.dtype), rhs_dtype=jnp.dtype(self.dtype), out_dtype=self.out_dtype)
        return ConvSpec.from_lax(self.lhs, self.rhs, **self.params, **dtypes)

    def arrays(self):
        """The operands, the same ones for a name in every run: normal floats, or integers that fill the dtype's range."""
        rng = np.random.default_rng(list(self.name.encode()))
        return tuple(_random_array(rng, shape, jnp.dtype(self.dtype)) for shape in (self.lhs, self.rhs))


def _random_array(rng, shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    array = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        array = array + 1j * rng.standard_normal(shape)
    return array.astype(dtype)


AVAILABLE = [name for name in LOWERINGS if LOWERINGS[name].unavailable() is None]  # when one is not: test_onednn.py

NHWC = ("NHWC", "HWIO", "NHWC")
NWC = ("NWC", "WIO", "NWC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")
WEIGHT_GRADIENT = ("CNHW", "IOHW", "CNHW")  # the axes in which JAX writes the gradient of an NCHW convolution
WEIGHT_GRADIENT_NHWC = ("CHWN", "IHWO", "HWNC")
WEIGHT_GRADIENT_1D = ("CNW", "IOW", "CNW")
WEIGHT_GRADIENT_3D = ("CNDHW", "IODHW", "CNDHW")

CASES = (
    # Two dimensions: groups and channels.
    Case("dense", (2, 3, 6, 7), (4, 3, 3, 2)),
    Case("grouped", (2, 6, 7, 6), (4, 3, 3, 3), groups=2, padding=((1, 1), (1, 1))),
    Case("grouped with a multiplier", (2, 6, 5, 6), (9, 2, 2, 3), groups=3),
    Case("wide groups", (1, 32, 5, 5), (24, 16, 3, 3), groups=2, padding=((1, 1), (1, 1))),
    Case("depthwise", (2, 5, 6, 7), (5, 1, 3, 3), groups=5, padding=((1, 1), (1, 1))),
    Case("depthwise with a multiplier", (1, 4, 6, 6), (12, 1, 3, 3), groups=4),
    Case("many groups", (1, 72, 4, 4), (72, 2, 3, 3), groups=36, padding=((1, 1), (1, 1))),
    Case("pointwise", (2, 12, 4, 5), (6, 4, 1, 1), groups=3),
    Case("pointwise with a stride", (2, 6, 5, 5), (6, 2, 1, 1), groups=3, strides=(2, 3)),
    Case("pointwise of more channels than positions", (2, 16, 1, 2), (16, 8, 1, 1), groups=2),
    Case("dense pointwise", (2, 6, 6, 8), (5, 6, 1, 1)),
    # Layouts.
    Case("channel-last", (2, 7, 6, 6), (3, 3, 2, 9), groups=3, padding=((1, 1), (1, 1)), layouts=NHWC),
    Case(
        "channel-last depthwise", (1, 6, 6, 8), (3, 3, 1, 8), groups=8, strides=(2, 2), padding=((0, 1), (1, 0)), layouts=NHWC
    ),
    Case("channel-last dense", (1, 5, 6, 3), (2, 3, 3, 4), layouts=NHWC),
    Case(
        "three different layouts",
        (6, 5, 2, 7),
        (3, 2, 6, 3),
        groups=3,
        layouts=("CHNW", "WIOH", "HNWC"),
        padding=((0, 0), (1, 2)),
    ),
    Case("spatial axes first and last", (6, 4, 3, 5), (4, 3, 2, 2), groups=2, layouts=("HCNW", "OWHI", "NWCH")),
    # Geometry.
    Case("stride", (2, 4, 9, 8), (6, 2, 3, 3), groups=2, strides=(2, 3), padding=((1, 1), (1, 1))),
    Case("stride beyond the kernel", (1, 4, 10, 11), (4, 2, 2, 1), groups=2, strides=(3, 4)),
    Case("dilated kernel", (1, 4, 9, 9), (6, 2, 3, 3), groups=2, rhs_dilation=(2, 3), padding=((2, 2), (3, 3))),
    Case("dilated kernel and stride", (1, 4, 11, 9), (4, 2, 3, 2), groups=2, rhs_dilation=(2, 3), strides=(3, 2)),
    Case("asymmetric padding", (1, 4, 5, 6), (4, 2, 3, 3), groups=2, padding=((0, 3), (2, 1))),
    Case("padding beyond the kernel", (1, 4, 3, 3), (4, 2, 2, 2), groups=2, padding=((4, 2), (3, 5))),
    Case("kernel larger than the map", (2, 4, 3, 3), (8, 1, 5, 5), groups=4, padding=((2, 2), (2, 2))),
    Case(
        "kernel larger than the map, channel-last",
        (2, 3, 2, 6),
        (5, 4, 2, 9),
        groups=3,
        padding=((3, 2), (1, 3)),
        layouts=NHWC,
    ),
    Case("long sums, channel-last", (1, 5, 4, 16), (3, 3, 8, 16), groups=2, padding=((1, 1), (1, 1)), layouts=NHWC),
    Case("a gradient's kernel, channel-last", (2, 5, 4, 6), (3, 3, 12, 2), groups=3, layouts=("NHWC", "HWOI", "NHWC")),
    # Few output channels a group, or few groups, in rows long enough for vectors.
    Case("three output channels, channel-last", (2, 7, 8, 6), (3, 3, 2, 9), groups=3, padding=((1, 1), (1, 1)), layouts=NHWC),
    Case("two output channels, channel-last, a loop", (1, 5, 9, 24), (3, 3, 12, 4), groups=2, layouts=NHWC),
    Case(
        "few groups of one output channel, channel-last",
        (1, 4, 9, 12),
        (3, 3, 3, 4),
        groups=3,
        layouts=("NHWC", "HWOI", "NHWC"),
    ),
    Case("negative padding", (1, 4, 6, 7), (4, 2, 3, 3), groups=2, padding=((-1, 1), (-2, -1))),
    Case("negative padding, dense", (1, 2, 4, 4), (2, 2, 3, 3), padding=((-1, 1), (-1, 1))),
    Case("negative padding and stride", (1, 4, 9, 9), (4, 2, 3, 3), groups=2, padding=((-2, 3), (1, -3)), strides=(2, 2)),
    Case("padding that crops everything", (1, 4, 3, 3), (4, 2, 2, 2), groups=2, padding=((-4, 6), (1, 1))),
    Case("padding that crops everything, from above", (1, 4, 3, 3), (4, 2, 2, 2), groups=2, padding=((0, 0), (7, -5))),
    Case("kernel as large as the input", (2, 4, 5, 4), (6, 2, 5, 4), groups=2),
    Case("kernel larger than the input", (1, 4, 2, 3), (4, 2, 4, 5), groups=2, padding=((2, 2), (2, 2))),
    Case("large kernel", (1, 3, 9, 9), (3, 1, 7, 7), groups=3, padding=((3, 3), (3, 3))),
    Case("large kernel, more channels", (1, 8, 10, 12), (4, 4, 7, 6), groups=2, strides=(1, 2), padding=((3, 3), (2, 3))),
    Case("large kernel, dilated", (1, 4, 10, 9), (2, 2, 9, 8), groups=2, padding=((8, 8), (7, 6)), rhs_dilation=(2, 2)),
    Case("large kernel, channel-last", (1, 9, 9, 4), (7, 7, 2, 4), groups=2, padding=((3, 3), (3, 3)), layouts=NHWC),
    # Positions that are a multiple of the cache's size apart.
    Case("a power of two of groups, channel-last", (1, 20, 1024), (31, 1, 1024), groups=1024, padding=((15, 15),), layouts=NWC),
    Case(
        "a power of two of channels, channel-last",
        (1, 5, 6, 512),
        (5, 5, 2, 512),
        groups=256,
        padding=((2, 2),) * 2,
        layouts=NHWC,
    ),
    Case("the same, wider groups", (1, 4, 4, 512), (3, 3, 4, 512), groups=128, padding=((1, 1),) * 2, layouts=NHWC),
    Case("the same, no padding", (1, 12, 12, 1024), (7, 7, 1, 1024), groups=1024, layouts=NHWC),
    Case("the same, large kernel", (1, 9, 9, 1024), (7, 10, 1, 1024), groups=1024, padding=((3, 3), (5, 4)), layouts=NHWC),
    # Rows whose last vector is filled up.
    Case("rows of some vectors and a half", (1, 3, 9, 21), (3, 1, 8, 9), groups=3, padding=((4, 3), (4, 4))),
    Case("the same, more channels", (2, 16, 3, 22), (16, 8, 3, 3), groups=2, padding=((1, 1), (1, 1))),
    Case("the same, one dimension", (1, 2, 86), (2, 1, 70), groups=2, padding=((35, 34),)),
    Case("few outputs, channel-last", (2, 7, 7, 8), (5, 5, 4, 6), groups=2, layouts=NHWC),
    Case("all sizes one", (1, 1, 1, 1), (1, 1, 1, 1)),
    Case("sizes one", (1, 3, 1, 5), (3, 1, 1, 1), groups=3),
    Case("one pixel", (2, 6, 1, 1), (6, 2, 3, 3), groups=3, padding=((1, 1), (1, 1))),
    # Dilated inputs: gradients with respect to the input, and transposed convolutions.
    Case("dilated input", (2, 4, 4, 5), (6, 2, 3, 3), groups=2, lhs_dilation=(2, 2), padding=((1, 2), (2, 1))),
    Case("dilated input, kernel as large", (2, 4, 3, 4), (6, 2, 3, 2), groups=2, lhs_dilation=(3, 2), padding=((2, 2), (1, 1))),
    Case(
        "dilated input, kernel as large, other padding",
        (2, 3, 4, 4),
        (2, 3, 2, 6),
        groups=2,
        lhs_dilation=(2, 3),
        padding=((0, 3), (4, 1)),
        layouts=("NHWC", "HWIO", "NHWC"),
    ),
    Case(
        "dilated input, channel-last, phases of unequal counts",
        (2, 3, 5, 4),
        (3, 3, 2, 6),
        groups=2,
        lhs_dilation=(3, 3),
        padding=((2, 2), (1, 2)),
        layouts=NHWC,
    ),
    Case("dilated input, kernel smaller than the dilation", (1, 4, 3, 3), (4, 2, 2, 1), groups=2, lhs_dilation=(3, 2)),
    Case(
        "dilated input, negative padding",
        (1, 4, 5, 5),
        (4, 2, 3, 3),
        groups=2,
        lhs_dilation=(3, 2),
        padding=((-2, 1), (-1, -3)),
    ),
    Case(
        "everything dilated and strided",
        (1, 4, 6, 7),
        (4, 2, 4, 3),
        groups=2,
        strides=(2, 3),
        padding=((3, 2), (1, 4)),
        lhs_dilation=(3, 2),
        rhs_dilation=(2, 4),
    ),
    Case(
        "dilated input, channel-last",
        (1, 4, 4, 6),
        (4, 4, 3, 4),
        groups=2,
        lhs_dilation=(2, 2),
        padding=((2, 3), (2, 3)),
        layouts=NHWC,
    ),
    Case("dilated input, long rows", (1, 4, 3, 15), (4, 1, 5, 5), groups=4, lhs_dilation=(2, 2), padding=((3, 2), (2, 3))),
    Case(
        "dilated input that is all zeros at every output",
        (1, 2, 3, 3),
        (2, 1, 1, 1),
        groups=2,
        lhs_dilation=(2, 2),
        strides=(2, 2),
        padding=((1, 0), (1, 0)),
    ),
    # Batch groups: gradients with respect to the weight. Their window is the output of the forward convolution.
    Case("weight gradient", (2, 6, 8, 7), (2, 9, 6, 5), batch_groups=3, layouts=WEIGHT_GRADIENT),
    Case(
        "weight gradient of a stride",
        (2, 6, 9, 8),
        (2, 6, 4, 4),
        batch_groups=3,
        rhs_dilation=(2, 2),
        padding=((1, 0), (1, 1)),
        layouts=WEIGHT_GRADIENT,
    ),
    Case("weight gradient of a dilation", (2, 4, 9, 9), (2, 4, 5, 5), batch_groups=2, strides=(2, 2), layouts=WEIGHT_GRADIENT),
    Case(
        "weight gradient, depthwise, padded",
        (3, 4, 9, 8),
        (3, 4, 9, 8),
        batch_groups=4,
        padding=((1, 1), (1, 1)),
        layouts=WEIGHT_GRADIENT,
    ),
    Case(
        "weight gradient, negative padding",
        (1, 4, 9, 8),
        (1, 4, 5, 6),
        batch_groups=2,
        padding=((-1, 0), (1, -1)),
        layouts=WEIGHT_GRADIENT,
    ),
    Case("weight gradient, many items", (24, 4, 9, 9), (24, 4, 7, 7), batch_groups=2, layouts=WEIGHT_GRADIENT),
    Case(
        "weight gradient, many items and positions", (18, 2, 22, 16), (18, 2, 16, 10), batch_groups=2, layouts=WEIGHT_GRADIENT
    ),
    Case("weight gradient, long rows", (2, 4, 24, 22), (2, 4, 20, 18), batch_groups=2, layouts=WEIGHT_GRADIENT),
    Case(
        "weight gradient of a stride, long rows",
        (1, 4, 38, 40),
        (1, 4, 18, 17),
        batch_groups=4,
        rhs_dilation=(2, 2),
        layouts=WEIGHT_GRADIENT,
    ),
    Case(
        "weight gradient of a dilation, rows in unequal parts",
        (1, 34, 50, 4),
        (1, 30, 30, 6),
        batch_groups=2,
        strides=(2, 2),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case("weight gradient of a pointwise convolution", (2, 6, 5, 5), (2, 9, 5, 5), batch_groups=3, layouts=WEIGHT_GRADIENT),
    Case("the same of few positions", (2, 12, 1, 2), (2, 9, 1, 2), batch_groups=3, layouts=WEIGHT_GRADIENT),
    Case("weight gradient, wide groups", (2, 24, 7, 7), (2, 16, 5, 5), batch_groups=2, layouts=WEIGHT_GRADIENT),
    Case(
        "weight gradient of a stride, five items, wide groups, padded",
        (5, 32, 11, 9),
        (5, 48, 6, 5),
        batch_groups=2,
        rhs_dilation=(2, 2),
        padding=((1, 1), (1, 1)),
        layouts=WEIGHT_GRADIENT,
    ),
    Case(
        "weight gradient, eight items, wide groups, padded, channel-last",
        (8, 7, 8, 32),
        (8, 7, 8, 24),
        batch_groups=2,
        padding=((1, 1), (2, 2)),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    # Of a map smaller than the kernel, or of its size: the window is no longer than the result, but there are several items.
    Case(
        "weight gradient, depthwise, small map",
        (9, 4, 3, 4),
        (9, 4, 3, 4),
        batch_groups=4,
        padding=((2, 2), (2, 1)),
        layouts=WEIGHT_GRADIENT,
    ),
    Case(
        "weight gradient of multipliers and a stride, small map, channel-last",
        (9, 5, 4, 5),
        (9, 3, 2, 10),
        batch_groups=5,
        rhs_dilation=(2, 2),
        padding=((2, 2), (2, 1)),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case(
        "weight gradient, wide groups, small map, channel-last",
        (6, 3, 2, 32),
        (6, 3, 2, 48),
        batch_groups=2,
        padding=((2, 2), (2, 2)),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case(
        "weight gradient of six channels, filled up to eight, channel-last",
        (3, 28, 6, 12),
        (3, 28, 5, 12),
        batch_groups=2,
        padding=((1, 1), (0, 1)),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case("weight gradient, channel-last", (3, 8, 8, 6), (3, 6, 6, 9), batch_groups=3, layouts=WEIGHT_GRADIENT_NHWC),
    Case("weight gradient, depthwise, channel-last", (3, 8, 9, 5), (3, 7, 7, 5), batch_groups=5, layouts=WEIGHT_GRADIENT_NHWC),
    Case(
        "weight gradient of multipliers, channel-last",
        (2, 8, 9, 3),
        (2, 6, 8, 12),
        batch_groups=3,
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case("weight gradient, dense", (2, 3, 8, 8), (2, 4, 6, 6), layouts=WEIGHT_GRADIENT),
    Case("weight gradient, dense, padded", (2, 3, 6, 7), (2, 4, 6, 6), padding=((1, 1), (2, 0)), layouts=WEIGHT_GRADIENT),
    Case(  # whose stride is its kernel's size
        "weight gradient of a disjoint transposed convolution",
        (2, 6, 4, 3),
        (2, 9, 8, 9),
        batch_groups=3,
        padding=((1, 1), (2, 2)),
        lhs_dilation=(2, 3),
        layouts=WEIGHT_GRADIENT,
    ),
    Case(
        "the same, channel-last",
        (2, 4, 3, 6),
        (2, 8, 6, 9),
        batch_groups=3,
        padding=((1, 1), (1, 1)),
        lhs_dilation=(2, 2),
        layouts=WEIGHT_GRADIENT_NHWC,
    ),
    Case("batch groups with a short window", (6, 2, 6, 6), (6, 2, 3, 3), batch_groups=3, padding=((1, 1), (1, 1))),
    # One and three dimensions.
    Case("1d", (2, 6, 9), (4, 3, 3), groups=2, padding=((1, 1),)),
    Case("1d, causal and dilated", (2, 4, 11), (4, 1, 3), groups=4, padding=((4, 0),), rhs_dilation=(2,)),
    Case("1d, channel-last, strided", (2, 10, 6), (4, 2, 6), groups=3, strides=(2,), padding=((1, 2),), layouts=NWC),
    Case("1d, long kernel", (1, 3, 40), (3, 1, 31), groups=3, padding=((15, 15),)),
    Case("1d, much memory, channel-last", (1, 301, 900), (4, 1, 900), groups=900, padding=((3, 1),), strides=(2,), layouts=NWC),
    Case(
        "1d, much memory, channel-last, dilated",
        (2, 90, 1500),
        (3, 1, 1500),
        groups=1500,
        padding=((0, 10),),
        rhs_dilation=(6,),
        layouts=NWC,
    ),
    Case("1d, very long kernel", (2, 3, 150), (3, 1, 141), groups=3, strides=(2,), padding=((70, 68),)),
    Case("1d, very long kernel, channel-last", (1, 150, 4), (133, 2, 6), groups=2, padding=((60, 72),), layouts=NWC),
    Case("1d, dilated input", (1, 4, 6), (6, 2, 4), groups=2, lhs_dilation=(3,), padding=((2, 3),)),
    Case("1d, weight gradient", (12, 6, 17), (12, 6, 15), batch_groups=3, layouts=WEIGHT_GRADIENT_1D),
    Case("1d, weight gradient, long kernel", (2, 4, 60), (2, 6, 38), batch_groups=2, layouts=WEIGHT_GRADIENT_1D),
    Case("1d, negative padding", (1, 2, 8), (2, 1, 3), groups=2, padding=((-2, 1),)),
    Case("3d", (1, 4, 4, 5, 3), (6, 2, 2, 3, 2), groups=2, padding=((1, 0), (1, 1), (0, 1))),
    Case("3d, depthwise, channel-last, strided", (1, 4, 5, 4, 4), (3, 3, 2, 1, 8), groups=4, strides=(2, 1, 2), layouts=NDHWC),
    Case("3d, large kernel", (1, 4, 6, 6, 5), (2, 2, 5, 4, 4), groups=2, padding=((2, 2), (1, 2), (2, 1))),
    Case(
        "3d, dilated",
        (1, 4, 3, 3, 4),
        (4, 2, 2, 2, 2),
        groups=2,
        lhs_dilation=(2, 1, 2),
        rhs_dilation=(1, 2, 3),
        padding=((1, 1), (1, 2), (2, 2)),
    ),
    Case("3d, weight gradient", (2, 4, 5, 5, 4), (2, 4, 4, 3, 3), batch_groups=2, layouts=WEIGHT_GRADIENT_3D),
    Case(
        "3d, weight gradient, many positions",
        (1, 4, 20, 8, 9),
        (1, 4, 18, 6, 6),
        batch_groups=2,
        layouts=WEIGHT_GRADIENT_3D,
    ),
    # Dtypes.
    Case("bfloat16", (2, 16, 6, 6), (8, 8, 3, 3), groups=2, dtype="bfloat16"),
    Case(
        "bfloat16, weight gradient", (4, 4, 12, 12), (4, 4, 10, 10), batch_groups=2, layouts=WEIGHT_GRADIENT, dtype="bfloat16"
    ),
    Case("bfloat16, large kernel", (1, 4, 7, 7), (4, 2, 7, 7), groups=2, padding=((3, 3), (3, 3)), dtype="bfloat16"),
    Case("bfloat16 to float32", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="bfloat16", preferred="float32"),
    Case("float16", (2, 16, 6, 6), (8, 8, 3, 3), groups=2, dtype="float16"),
    Case("float16, depthwise, channel-last", (1, 6, 6, 4), (3, 3, 1, 4), groups=4, layouts=NHWC, dtype="float16"),
    Case("float16 to float32", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="float16", preferred="float32"),
    Case("float64", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="float64"),
    Case("float64, weight gradient", (4, 6, 7, 7), (4, 6, 5, 5), batch_groups=3, layouts=WEIGHT_GRADIENT, dtype="float64"),
    Case("float32 to float64", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, preferred="float64"),
    Case("int8 to int32", (2, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="int8", preferred="int32"),
    Case(
        "int8 to int32, weight gradient",
        (4, 6, 7, 7),
        (4, 6, 5, 5),
        batch_groups=3,
        layouts=WEIGHT_GRADIENT,
        dtype="int8",
        preferred="int32",
    ),
    Case("int8 that wraps around", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="int8"),
    Case("int32 that wraps around", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="int32"),
    Case(
        "int32, dilated input, channel-last",
        (1, 3, 3, 4),
        (3, 3, 2, 4),
        groups=2,
        lhs_dilation=(2, 2),
        layouts=NHWC,
        dtype="int32",
    ),
    Case("uint8", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="uint8"),
    Case("int16", (1, 4, 4, 4), (4, 2, 2, 2), groups=2, dtype="int16"),
    Case("uint16, weight gradient", (2, 4, 5, 5), (2, 4, 4, 3), batch_groups=2, layouts=WEIGHT_GRADIENT, dtype="uint16"),
    Case("uint32, channel-last", (1, 4, 4, 4), (2, 2, 1, 4), groups=4, layouts=NHWC, dtype="uint32"),
    Case("uint64", (1, 4, 4, 4), (4, 2, 2, 2), groups=2, dtype="uint64"),
    Case("int64", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="int64"),
    Case("complex64", (1, 6, 5, 5), (6, 2, 3, 3), groups=3, dtype="complex64"),
    Case("complex64, weight gradient", (2, 6, 6, 6), (2, 6, 4, 4), batch_groups=3, layouts=WEIGHT_GRADIENT, dtype="complex64"),
)

EMPTY_CASES = (
    Case("no items", (0, 4, 5, 5), (6, 2, 3, 3), groups=2),
    Case("no input channels", (1, 0, 5, 5), (4, 0, 3, 3)),
    Case("no output channels", (1, 4, 5, 5), (0, 2, 3, 3), groups=2),
    Case("no rows", (1, 4, 0, 5), (6, 2, 3, 3), groups=2, padding=((2, 2), (0, 0))),
    Case("no output positions", (1, 4, 5, 2), (6, 2, 3, 3), groups=2),
)


def random_cases(count, seed):
    """Cases that no one thought of, all small and all valid."""
    choose, cases = random.Random(seed), []
    while len(cases) < count:
        ndim = choose.choice((1, 2, 2, 2, 3))
        groups, in_channels, out_channels = (choose.randint(1, 4) for _ in range(3))
        batch_groups = groups if choose.random() < 0.4 else 1
        size = [choose.randint(1, 9 if ndim < 3 else 4) for _ in range(ndim)]
        window = [choose.randint(1, 4 if ndim < 3 else 2) for _ in range(ndim)]
        if choose.random() < 0.4:
            size, window = window, size
        spatial = "DHW"[:ndim]
        lhs_sizes = dict(zip(spatial, size, strict=True), N=choose.randint(1, 3) * batch_groups)
        lhs_sizes["C"] = in_channels * (1 if batch_groups > 1 else groups)
        rhs_sizes = dict(zip(spatial, window, strict=True), O=out_channels * groups, I=in_channels)
        layouts = tuple("".join(choose.sample(first + spatial, ndim + 2)) for first in ("NC", "OI", "NC"))
        case = Case(
            f"random {seed} {len(cases)}",
            tuple(lhs_sizes[axis] for axis in layouts[0]),
            tuple(rhs_sizes[axis] for axis in layouts[1]),
            groups=1 if batch_groups > 1 else groups,
            batch_groups=batch_groups,
            strides=tuple(choose.randint(1, 3) for _ in spatial),
            padding=tuple((choose.randint(-2, 3), choose.randint(-2, 3)) for _ in spatial),
            lhs_dilation=tuple(choose.choice((1, 1, 2, 3)) for _ in spatial),
            rhs_dilation=tuple(choose.choice((1, 1, 2, 3)) for _ in spatial),
            layouts=layouts,
        )
        if 0 not in case.spec.out_size:
            cases.append(case)
    return cases
