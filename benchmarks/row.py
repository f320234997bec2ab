"""One layer as data: its shapes, operations, bytes and random operands.

The legend of letters: N batch, C input channels, O output channels, G groups, k kernel, s spatial.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

Sizes = tuple[int, ...]
MODES = ("fwd", "dx", "dw")
_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int32": 4}


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
      dtype: of the operands and of the result; `tf32` is float32 that may be multiplied in TF32, on a GPU; the result of `int8`
        is int32; that of `int8-int8` is int8, whose range holds it.
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

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The row whose fields are lists where they were tuples."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(value) for name, value in data.items()})

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
        """What there is to measure: per-example gradients are one of the weight only, integers have none."""
        if self.dtype.startswith("int8"):
            return ("fwd",)
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
        first = {"fwd": self.x_shape, "dx": self.out_shape, "dw": self.x_shape}[mode]
        second = self.out_shape if mode == "dw" else self.w_shape
        read = _ITEMSIZE[self.operand_dtype] * (math.prod(first) + math.prod(second))
        return read + _ITEMSIZE[self.result_dtype] * math.prod(self.result_shape(mode))

    @property
    def operand_dtype(self) -> str:
        """The name of the operands' dtype."""
        return {"tf32": "float32", "int8-int8": "int8"}.get(self.dtype, self.dtype)

    @property
    def result_dtype(self) -> str:
        """The name of the result's dtype."""
        return "int32" if self.dtype == "int8" else self.operand_dtype

    def operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random float64 input, kernel and cotangent, the same ones in every run; for int8 whole numbers."""
        return _operands(self)

    def _image(self, channels: int, size: Sizes) -> Sizes:
        return (self.batch, *size, channels) if self.channel_last else (self.batch, channels, *size)

    def _stacked(self, shape: Sizes) -> Sizes:
        return (self.members, *shape) if self.form == "ensemble" else shape


def rows(
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
    """A layer in each layout and dtype: N, C, s, O, k, G and what differs from stride 1, "same" padding and float32."""

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


@functools.lru_cache(maxsize=2)  # the candidates and modes of a row share them
def _operands(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, shapes = np.random.default_rng(0), (row.x_shape, row.w_shape, row.out_shape)
    if row.dtype.startswith("int8"):
        largest = 8 if row.dtype == "int8" else 1
        x, w, ct = (rng.integers(-largest, largest + 1, shape).astype(np.float64) for shape in shapes)
    else:
        x, w, ct = (rng.standard_normal(shape, np.float32).astype(np.float64) for shape in shapes)
    return x, w, ct
