"""Layers of real networks, as data: what the benchmark measures and what a plan is calibrated on.

The legend of letters: N batch, C input channels, O output channels, G groups, k kernel, s spatial.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Sizes = tuple[int, ...]
MODES = ("fwd", "dx", "dw")


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer: its sizes, how it is written, and the class that it is drawn with.

    Attributes:
      name: what it is called in tables; with layout and dtype it is unique.
      kind: the class, which is one picture.
      batch: N, of one member of an ensemble.
      channels: C.
      size: spatial sizes of the input.
      features: O.
      kernel: spatial sizes of the kernel.
      groups: G.
      stride: one for each spatial axis.
      dilation: of the kernel, one for each spatial axis.
      padding: (low, high) for each spatial axis.
      output_padding: of a transposed convolution.
      layout: axes of the input and of the result.
      dtype: of the operands; `tf32` is float32 that may be multiplied in TF32, on a GPU.
      form: `conv`, `transpose`, `ensemble` (vmap over inputs and weights) or `per_example` (vmap over the weight's gradient).
      members: the size of the ensemble.
    """

    name: str
    kind: str
    batch: int
    channels: int
    size: Sizes
    features: int
    kernel: Sizes
    groups: int
    stride: Sizes
    dilation: Sizes
    padding: tuple[tuple[int, int], ...]
    output_padding: Sizes
    layout: str
    dtype: str = "float32"
    form: str = "conv"
    members: int = 1

    @property
    def key(self) -> str:
        """The unique name."""
        return f"{self.name} {self.layout} {self.dtype}"

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.size)

    @property
    def channel_last(self) -> bool:
        """Whether channels are the minor axis."""
        return self.layout.endswith("C")

    @property
    def modes(self) -> tuple[str, ...]:
        """What there is to measure: per-example gradients are one of the weight only."""
        return ("dw",) if self.form == "per_example" else MODES

    @property
    def out_size(self) -> Sizes:
        """Spatial sizes of the result."""
        if self.form == "transpose":
            return tuple(
                (s - 1) * stride - lo - hi + (k - 1) * d + 1 + extra
                for s, k, stride, d, (lo, hi), extra in zip(
                    self.size, self.kernel, self.stride, self.dilation, self.padding, self.output_padding, strict=True
                )
            )
        return tuple(
            (s + lo + hi - (k - 1) * d - 1) // stride + 1
            for s, k, stride, d, (lo, hi) in zip(self.size, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        )

    @property
    def x_shape(self) -> Sizes:
        """The input's shape."""
        return self._stacked(self._image(self.channels, self.size))

    @property
    def w_shape(self) -> Sizes:
        """The kernel's shape: OI*k or *kIO with I = C/G; transposed, IO*k or *kOI with O = O/G."""
        if self.form == "transpose":
            major, minor = self.channels, self.features // self.groups
        else:
            major, minor = self.features, self.channels // self.groups
        return self._stacked((*self.kernel, minor, major) if self.channel_last else (major, minor, *self.kernel))

    @property
    def out_shape(self) -> Sizes:
        """The result's shape, which is the cotangent's."""
        return self._stacked(self._image(self.features, self.out_size))

    def result_shape(self, mode: str) -> Sizes:
        """The shape of what a mode computes."""
        if self.form == "per_example":
            return (self.batch, *self.w_shape)
        return {"fwd": self.out_shape, "dx": self.x_shape, "dw": self.w_shape}[mode]

    @property
    def flops(self) -> int:
        """Operations of any one mode, a multiply-add counted as two; products with padding do not count."""
        source, window = (self.out_size, self.size) if self.form == "transpose" else (self.size, self.out_size)
        pairs = 1
        for s, positions, k, stride, d, (lo, _) in zip(
            source, window, self.kernel, self.stride, self.dilation, self.padding, strict=True
        ):
            at = np.add.outer(np.arange(positions) * stride - lo, np.arange(k) * d)
            pairs *= int(np.sum((at >= 0) & (at < s)))
        return 2 * self.members * self.batch * self.channels * self.features // self.groups * pairs

    def bytes(self, mode: str) -> int:
        """The least memory traffic of a mode: both operands read and the result written once."""
        shapes = {"fwd": self.x_shape, "dx": self.out_shape, "dw": self.x_shape}[mode], self.result_shape(mode)
        other = self.out_shape if mode == "dw" else self.w_shape
        return self.itemsize * sum(math.prod(shape) for shape in (*shapes, other))

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return {"float64": 8, "bfloat16": 2, "float16": 2, "int8": 1}.get(self.dtype, 4)

    def operands(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random float64 input, kernel and cotangent; for int8 whole numbers."""
        rng = np.random.default_rng(seed)
        shapes = self.x_shape, self.w_shape, self.out_shape
        if self.dtype == "int8":
            x, w, ct = (rng.integers(-8, 8, shape).astype(np.float64) for shape in shapes)
        else:
            x, w, ct = (rng.standard_normal(shape, np.float32).astype(np.float64) for shape in shapes)
        return x, w, ct

    def _image(self, channels: int, size: Sizes) -> Sizes:
        return (self.batch, *size, channels) if self.channel_last else (self.batch, channels, *size)

    def _stacked(self, shape: Sizes) -> Sizes:
        return (self.members, *shape) if self.form == "ensemble" else shape


def _rows(
    name: str,
    kind: str,
    batch: int,
    channels: int,
    size: int | Sizes,
    features: int,
    kernel: int | Sizes,
    groups: int,
    *,
    stride: int | Sizes = 1,
    dilation: int = 1,
    padding: int | str = "half",
    output_padding: int = 0,
    ndim: int = 2,
    layouts: str = "first last",
    dtypes: str = "float32",
    form: str = "conv",
    members: int = 1,
) -> list[Row]:
    def sizes(value: int | Sizes) -> Sizes:
        return value if isinstance(value, tuple) else (value,) * ndim

    window = tuple((k - 1) * dilation for k in sizes(kernel))
    if padding == "half":
        pads = tuple((w // 2, w // 2) for w in window)
    elif padding == "causal":
        pads = tuple((w, 0) for w in window)
    else:
        pads = ((int(padding), int(padding)),) * ndim
    first, last = ("NCW", "NCHW", "NCDHW")[ndim - 1], ("NWC", "NHWC", "NDHWC")[ndim - 1]
    return [
        Row(
            name,
            kind,
            batch,
            channels,
            sizes(size),
            features,
            sizes(kernel),
            groups,
            sizes(stride),
            sizes(dilation),
            pads,
            sizes(output_padding),
            {"first": first, "last": last}[layout],
            dtype,
            form,
            members,
        )
        for dtype in dtypes.split()
        for layout in layouts.split()
    ]


# name, N, C, s, O, k, G and what differs from stride 1, "same" padding and float32 in both layouts.
_GROUPED = [
    *_rows("rx50-s2 g32", "grouped", 1, 128, 56, 128, 3, 32),
    *_rows("rx50-s2 g32 b8", "grouped", 8, 128, 56, 128, 3, 32),
    *_rows("rx50-s2 s2", "grouped", 1, 256, 56, 256, 3, 32, stride=2),
    *_rows("rx50-s3 g32", "grouped", 1, 256, 28, 256, 3, 32),
    *_rows("rx50-s4 g32", "grouped", 1, 512, 14, 512, 3, 32),
    *_rows("rx50-s4 g32 b8", "grouped", 8, 512, 14, 512, 3, 32),
    *_rows("rx50-s5 g32", "grouped", 1, 1024, 7, 1024, 3, 32),
    *_rows("regnet gw8", "grouped", 1, 208, 14, 208, 3, 26),
    *_rows("regnet gw16", "grouped", 1, 320, 14, 320, 3, 20),
    *_rows("regnet gw16 b32", "grouped", 32, 320, 14, 320, 3, 20, layouts="last"),
    *_rows("regnet gw24", "grouped", 1, 144, 28, 144, 3, 6),
    *_rows("regnet gw48", "grouped", 1, 432, 14, 432, 3, 9),
    *_rows("regnet gw64", "grouped", 1, 512, 14, 512, 3, 8),
    *_rows("regnet gw64 s2 b8", "grouped", 8, 192, 28, 192, 3, 3, stride=2),
    *_rows("alex g2", "grouped", 1, 96, 27, 256, 5, 2),
    *_rows("squeeze 4 to 1", "grouped", 1, 256, 28, 64, 3, 64),
]
_DEPTHWISE = [
    *_rows("mbv1 dw 112", "depthwise", 1, 32, 112, 32, 3, 32),
    *_rows("mbv1 dw 56 b8", "depthwise", 8, 128, 56, 128, 3, 128),
    *_rows("mbv1 dw s2", "depthwise", 1, 128, 56, 128, 3, 128, stride=2),
    *_rows("mbv1 dw 14", "depthwise", 1, 512, 14, 512, 3, 512),
    *_rows("mbv1 dw 14 b32", "depthwise", 32, 512, 14, 512, 3, 512),
    *_rows("mbv1 dw 7", "depthwise", 1, 1024, 7, 1024, 3, 1024),
    *_rows("effnet dw5 14", "depthwise", 1, 672, 14, 672, 5, 672),
    *_rows("effnet dw5 s2 b8", "depthwise", 8, 144, 56, 144, 5, 144, stride=2),
    *_rows("cnext dw7 56", "depthwise", 1, 96, 56, 96, 7, 96),
    *_rows("cnext dw7 14", "depthwise", 1, 384, 14, 384, 7, 384),
    *_rows("cnext dw7 b8", "depthwise", 8, 96, 56, 96, 7, 96),
    *_rows("dw mult4", "depthwise", 1, 32, 56, 128, 3, 32),
    *_rows("dw mult2", "depthwise", 1, 64, 28, 128, 3, 64),
    *_rows("dw mult8 rgb", "depthwise", 1, 3, 224, 24, 3, 3),
]
_LARGE = [
    *_rows("replk dw31 56", "large kernel", 1, 128, 56, 128, 31, 128),
    *_rows("replk dw29 28", "large kernel", 1, 256, 28, 256, 29, 256),
    *_rows("replk dw13 28", "large kernel", 1, 256, 28, 256, 13, 256),
    *_rows("replk dw13 7 b8", "large kernel", 8, 1024, 7, 1024, 13, 1024),
    *_rows("slak dw5x51", "large kernel", 1, 124, 56, 124, (5, 51), 124),
]
_ONE_D = [
    *_rows("mamba dw4 causal", "1-d", 1, 1536, 2048, 1536, 4, 1536, padding="causal", ndim=1),
    *_rows("mamba dw4 causal b8", "1-d", 8, 1536, 512, 1536, 4, 1536, padding="causal", ndim=1),
    *_rows("conformer dw31", "1-d", 1, 256, 400, 256, 31, 256, ndim=1),
    *_rows("conformer dw31 b8", "1-d", 8, 256, 400, 256, 31, 256, ndim=1),
    *_rows("tasnet dw3 d16", "1-d", 1, 512, 1000, 512, 3, 512, dilation=16, ndim=1),
    *_rows("wav2vec2 g16 k128", "1-d", 1, 768, 50, 768, 128, 16, padding=64, ndim=1),
]
_THREE_D = [
    *_rows("x3d dw 28", "3-d", 1, 108, (8, 28, 28), 108, 3, 108, ndim=3),
    *_rows("x3d dw s122", "3-d", 1, 54, (8, 56, 56), 54, 3, 54, stride=(1, 2, 2), ndim=3),
    *_rows("csn dw 14 b8", "3-d", 8, 256, (4, 14, 14), 256, 3, 256, ndim=3),
    *_rows("resnext3d g32", "3-d", 1, 128, (4, 14, 14), 128, 3, 32, ndim=3),
]
_DILATED = [
    *_rows("deeplab dw d2", "dilated", 1, 728, 32, 728, 3, 728, dilation=2),
    *_rows("aspp dw d12", "dilated", 1, 256, 32, 256, 3, 256, dilation=12),
    *_rows("rx50-s3 g32 d2", "dilated", 1, 256, 28, 256, 3, 32, dilation=2),
    *_rows("van dw7 d3 b8", "dilated", 8, 64, 56, 64, 7, 64, dilation=3),
]
_POINTWISE = [
    *_rows("shuffle 1x1 g3", "1x1", 1, 240, 28, 240, 1, 3),
    *_rows("shuffle 1x1 g8", "1x1", 1, 384, 28, 384, 1, 8),
    *_rows("shuffle 1x1 g8 b32", "1x1", 32, 384, 14, 384, 1, 8),
    *_rows("1x1 g64", "1x1", 1, 512, 28, 512, 1, 64),
    *_rows("1x1 dw scale", "1x1", 1, 256, 28, 256, 1, 256),
]
_TRANSPOSED = [
    *_rows("fcn up k4 s2 dw", "transposed", 1, 21, 64, 21, 4, 21, stride=2, padding=1, form="transpose"),
    *_rows("up k2 s2 g8", "transposed", 1, 128, 28, 64, 2, 8, stride=2, padding=0, form="transpose"),
    *_rows("up k4 s2 g4", "transposed", 1, 256, 16, 128, 4, 4, stride=2, padding=1, form="transpose"),
    *_rows("up k3 s2 g32", "transposed", 1, 256, 14, 256, 3, 32, stride=2, padding=1, output_padding=1, form="transpose"),
    *_rows("up k4 s2 dense", "transposed", 1, 128, 28, 64, 4, 1, stride=2, padding=1, form="transpose"),
    *_rows("vocoder k16 s8 dw", "transposed", 1, 256, 200, 256, 16, 256, stride=8, padding=4, ndim=1, form="transpose"),
]
_VMAP = [
    *_rows("ensemble8 3x3", "vmap", 4, 32, 28, 32, 3, 1, form="ensemble", members=8),
    *_rows("ensemble8 dw", "vmap", 4, 64, 28, 64, 3, 64, form="ensemble", members=8),
    *_rows("ensemble4 g4", "vmap", 1, 64, 28, 64, 3, 4, form="ensemble", members=4),
    *_rows("per-example 3x3", "vmap", 8, 32, 28, 32, 3, 1, form="per_example"),
    *_rows("per-example rgb5", "vmap", 16, 3, 32, 32, 5, 1, form="per_example"),
    *_rows("per-example dw", "vmap", 8, 128, 14, 128, 3, 128, form="per_example"),
]
_DTYPES = [
    *_rows("rx50-s3 g32", "dtypes", 1, 256, 28, 256, 3, 32, dtypes="float64 bfloat16"),
    *_rows("mbv1 dw 56", "dtypes", 1, 128, 56, 128, 3, 128, dtypes="float64 bfloat16"),
    *_rows("cnext dw7 14", "dtypes", 1, 384, 14, 384, 7, 384, dtypes="float64 bfloat16"),
    *_rows("mamba dw4 causal", "dtypes", 1, 1536, 2048, 1536, 4, 1536, padding="causal", ndim=1, dtypes="bfloat16"),
]
_NOTEBOOK = [row for g in (1, 2, 3, 6) for row in _rows(f"seed g{g}", "first notebook", 1, 6, 256, 24, 3, g, padding=0)]
_DENSE = [
    *_rows("resnet 3x3 56", "dense", 1, 64, 56, 64, 3, 1),
    *_rows("resnet 3x3 14 b8", "dense", 8, 256, 14, 256, 3, 1),
    *_rows("resnet 1x1", "dense", 1, 256, 28, 128, 1, 1),
    *_rows("resnet stem", "dense", 1, 3, 224, 64, 7, 1, stride=2),
    *_rows("vit patch16", "dense", 1, 3, 224, 192, 16, 1, stride=16, padding=0),
]

ROWS: Sequence[Row] = (
    *_GROUPED,
    *_DEPTHWISE,
    *_LARGE,
    *_ONE_D,
    *_THREE_D,
    *_DILATED,
    *_POINTWISE,
    *_TRANSPOSED,
    *_VMAP,
    *_DTYPES,
    *_NOTEBOOK,
    *_DENSE,
)
KINDS = tuple(dict.fromkeys(row.kind for row in ROWS))
