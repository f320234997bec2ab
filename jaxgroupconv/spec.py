"""One convolution equation in canonical form.

The legend of letters, for the whole library: N batch, C input channels, O output channels, G groups, k kernel, s spatial.

Whatever the layout and however the groups are written (`feature_group_count` or `batch_group_count`), a convolution is

    out[n, g, o, p] = sum over c, k of  lhs[n, g, c, p * stride + k * rhs_dilation] * rhs[g, o, c, k]

where lhs has been dilated by `lhs_dilation` and padded. The gradients of a convolution are convolutions again: the one with
respect to the input has its `lhs_dilation` from the stride; the one with respect to the weight has the batch as its `c`, the
output's size as its window and the kernel's size as its output size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Sizes = tuple[int, ...]
LONG_SUM = 64, 32  # products of a depthwise weight gradient on a small map, and channel-last, of more of which the sum is long


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """Everything static about one convolution: frozen, hashable, printable.

    Attributes:
      batch: n, the items that are independent of each other.
      groups: g, feature groups or batch groups.
      in_channels: c, contracted channels of one group.
      out_channels: o, output channels of one group.
      in_size: spatial sizes of lhs, before dilation and padding.
      window: spatial sizes of rhs, before dilation.
      strides: steps of the window, one for each spatial axis.
      padding: (low, high) for each spatial axis, after `lhs_dilation`; may be negative.
      lhs_dilation: distance of neighbouring input elements.
      rhs_dilation: distance of neighbouring kernel elements.
      lhs_layout: the axes of lhs in memory order, one letter each: `n`, `g`, `c` and the digits of the spatial axes; `g` is the
        major part of the axis that it was split from. NCHW is `ngc01`, NHWC is `n01gc`.
      rhs_layout: the axes of rhs: `g`, `o`, `c` and digits. OIHW is `goc01`, HWIO is `01cgo`.
      out_layout: the axes of the result: `n`, `g`, `o` and digits.
      lhs_dtype: the input's dtype.
      rhs_dtype: the kernel's dtype.
      out_dtype: the result's dtype.
      precision: lax's precision: None, a pair, or something only lax understands.
      short_output: whether the sums are long and the result is short, as in a weight gradient: it has clearly fewer positions
        than the kernel and the input, unless the layout is that of a forward convolution, whose first axis is the batch
        (which says enough with several groups); or the convolution is depthwise, has batch groups, and sums up more than
        LONG_SUM products. It is decided for the whole convolution; the parts that a lowering makes of it keep it.
    """

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    in_size: Sizes
    window: Sizes
    strides: Sizes
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Sizes
    rhs_dilation: Sizes
    lhs_layout: str
    rhs_layout: str
    out_layout: str
    lhs_dtype: np.dtype
    rhs_dtype: np.dtype
    out_dtype: np.dtype
    precision: Any = None
    short_output: bool = cast(bool, None)  # unless a part gets its whole's, decided below

    def __post_init__(self) -> None:
        if self.short_output is None:
            out = math.prod(self.out_size)
            short = 3 * out <= 2 * min(math.prod(self.window), math.prod(self.in_size))
            forward = self.lhs_layout.startswith("n") and min(out, self.groups) > 1
            depthwise = self.batch_groups and self.batch == 1 < self.groups
            long = depthwise and self.in_channels * math.prod(self.window) > LONG_SUM[self.channel_last]
            object.__setattr__(self, "short_output", (short and not forward) or long)

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.window)

    @property
    def spatial(self) -> str:
        """The letters of the spatial axes: `01` in 2-D."""
        return "012345678"[: self.ndim]

    @functools.cached_property
    def out_size(self) -> Sizes:
        """Spatial sizes of the result."""
        return tuple(
            max(0, (_dilated(s, ld) + lo + hi - _dilated(k, rd)) // stride + 1)
            for s, k, stride, (lo, hi), ld, rd in zip(
                self.in_size, self.window, self.strides, self.padding, self.lhs_dilation, self.rhs_dilation, strict=True
            )
        )

    @functools.cached_property
    def phases(self) -> int:
        """The number of undilated convolutions that a dilated input makes of this one."""
        return math.prod(d // math.gcd(d, s) for d, s in zip(self.lhs_dilation, self.strides, strict=True))

    @property
    def channel_last(self) -> bool:
        """Whether the input's minor axis is none of the spatial ones."""
        return not self.lhs_layout.endswith(self.spatial)

    @property
    def batch_groups(self) -> bool:
        """Whether the groups are lax's batch groups, a part of the input's batch."""
        return "gn" in self.lhs_layout

    @property
    def over_batch(self) -> bool:
        """Whether this is a weight gradient, by its geometry or its batch groups: its sums are over the batch."""
        return self.short_output or self.batch_groups

    @property
    def over_the_map(self) -> bool:
        """Whether the kernel has more elements than the (dilated) input has positions."""
        sizes = (size * dilation for size, dilation in zip(self.in_size, self.lhs_dilation, strict=True))
        return math.prod(self.window) > math.prod(sizes)

    @property
    def disjoint(self) -> bool:
        """Whether each input meets outputs of its own: a transposed convolution whose stride is its kernel's size."""
        plain = all(size == 1 for size in self.strides + self.rhs_dilation)
        return plain and self.lhs_dilation == self.window and self.phases > 1

    @functools.cached_property
    def compute_dtype(self) -> np.dtype:
        """The dtype of products and sums: floats narrower than 32 bits are summed in float32 and rounded once."""
        narrow = jnp.issubdtype(self.out_dtype, jnp.floating) and self.out_dtype.itemsize < 4
        return np.dtype(np.float32) if narrow else self.out_dtype

    def sizes(self, spatial: Sequence[int]) -> dict[str, int]:
        """The length of every axis letter, with the given spatial sizes."""
        letters = {"n": self.batch, "g": self.groups, "c": self.in_channels, "o": self.out_channels}
        return letters | dict(zip(self.spatial, spatial, strict=True))

    def shape(self, layout: str, spatial: Sequence[int]) -> Sizes:
        """The shape of an operand with its group axis split off."""
        sizes = self.sizes(spatial)
        return tuple(sizes[a] for a in layout)

    @property
    def lhs_shape(self) -> Sizes:
        """The input's shape as lax sees it, groups merged into channels or batch."""
        return _merged(self.lhs_layout, self.shape(self.lhs_layout, self.in_size))

    @property
    def rhs_shape(self) -> Sizes:
        """The kernel's shape as lax sees it."""
        return _merged(self.rhs_layout, self.shape(self.rhs_layout, self.window))

    @property
    def out_shape(self) -> Sizes:
        """The result's shape as lax sees it."""
        return _merged(self.out_layout, self.shape(self.out_layout, self.out_size))

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as two; products with padding or dilation's zeros do not count."""
        channels = self.groups * self.in_channels * self.out_channels
        return 2 * self.batch * channels * math.prod(self._products(axis) for axis in range(self.ndim))

    def _products(self, axis: int) -> int:
        """How many (output position, kernel element) pairs meet an element of the input along one spatial axis."""
        positions = np.arange(self.out_size[axis]) * self.strides[axis] - self.padding[axis][0]
        dilation, count = self.lhs_dilation[axis], 0
        for k in range(self.window[axis]):
            at = positions + k * self.rhs_dilation[axis]
            count += int(np.sum((at >= 0) & (at < self.in_size[axis] * dilation) & (at % dilation == 0)))
        return count

    @property
    def bytes(self) -> int:
        """The least memory traffic: every operand read once, the result written once."""
        operands = ((self.lhs_shape, self.lhs_dtype), (self.rhs_shape, self.rhs_dtype), (self.out_shape, self.out_dtype))
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in operands)

    def split(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """The operands with their group axes split off: their axes are `lhs_layout` and `rhs_layout`."""
        lhs = lax.reshape(lhs, self.shape(self.lhs_layout, self.in_size))
        return lhs, lax.reshape(rhs, self.shape(self.rhs_layout, self.window))

    @classmethod
    def from_lax(
        cls,
        lhs_shape: Sequence[int],
        rhs_shape: Sequence[int],
        *,
        window_strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int],
        rhs_dilation: Sequence[int],
        dimension_numbers: lax.ConvDimensionNumbers,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision: Any = None,
        lhs_dtype: Any = np.float32,
        rhs_dtype: Any = np.float32,
        out_dtype: Any = np.float32,
    ) -> ConvSpec:
        """The canonical form of an equation of `lax.conv_general_dilated_p`.

        Args:
          lhs_shape: the input's shape.
          rhs_shape: the kernel's shape.
          window_strides: as in lax; so are the following, in the form that the equation's parameters have.
          padding: (low, high) pairs.
          lhs_dilation: one factor for each spatial axis.
          rhs_dilation: one factor for each spatial axis.
          dimension_numbers: positions of (batch, feature, *spatial), (out, in, *spatial), (batch, feature, *spatial).
          feature_group_count: G, or 1.
          batch_group_count: G, or 1; batch groups become groups.
          precision: lax's precision.
          lhs_dtype: the input's dtype.
          rhs_dtype: the kernel's dtype.
          out_dtype: the result's dtype.

        Returns:
          The ConvSpec.

        Raises:
          TypeError: a size is symbolic (shape polymorphism), which only lax's own lowering understands.
          ValueError: the groups do not divide the channels or the batch.
        """
        if not all(isinstance(s, (int, np.integer)) for s in (*lhs_shape, *rhs_shape, *(p for pair in padding for p in pair))):
            raise TypeError(
                f"`lhs_shape`, `rhs_shape` and `padding` must be integers, but got {lhs_shape}, {rhs_shape}, {padding}."
            )
        dn, groups = dimension_numbers, feature_group_count * batch_group_count
        if groups < 1 or lhs_shape[dn.lhs_spec[1]] % feature_group_count or lhs_shape[dn.lhs_spec[0]] % batch_group_count:
            raise ValueError(
                f"`feature_group_count` and `batch_group_count` must divide the input's channels and batch, but got "
                f"{feature_group_count} and {batch_group_count} (lhs: {tuple(lhs_shape)}, {dn})."
            )
        digits = "012345678"[: len(window_strides)]
        batch, features = ("gn", "c") if batch_group_count > 1 else ("n", "gc")
        return cls(
            batch=int(lhs_shape[dn.lhs_spec[0]]) // batch_group_count,
            groups=groups,
            in_channels=int(lhs_shape[dn.lhs_spec[1]]) // feature_group_count,
            out_channels=int(rhs_shape[dn.rhs_spec[0]]) // groups,
            in_size=tuple(int(lhs_shape[a]) for a in dn.lhs_spec[2:]),
            window=tuple(int(rhs_shape[a]) for a in dn.rhs_spec[2:]),
            strides=tuple(int(s) for s in window_strides),
            padding=tuple((int(lo), int(hi)) for lo, hi in padding),
            lhs_dilation=tuple(int(d) for d in lhs_dilation),
            rhs_dilation=tuple(int(d) for d in rhs_dilation),
            lhs_layout=_layout(dn.lhs_spec, batch, features, digits),
            rhs_layout=_layout(dn.rhs_spec, "go", "c", digits),
            out_layout=_layout(dn.out_spec, "n", "go", digits),
            lhs_dtype=np.dtype(lhs_dtype),
            rhs_dtype=np.dtype(rhs_dtype),
            out_dtype=np.dtype(out_dtype),
            precision=precision,
        )

    @classmethod
    def from_equation(cls, lhs: Any, rhs: Any, out: Any, params: dict[str, Any]) -> ConvSpec | None:
        """The spec of an equation from its abstract values and parameters; None if a size is symbolic."""
        geometry = {name: value for name, value in params.items() if name not in ("preferred_element_type", "out_sharding")}
        dtypes = {"lhs_dtype": lhs.dtype, "rhs_dtype": rhs.dtype, "out_dtype": out.dtype}
        try:
            return cls.from_lax(lhs.shape, rhs.shape, **geometry, **dtypes)
        except TypeError:  # or a parameter is not known; with such parameters nothing is attached
            return None

    def lax_params(self) -> dict[str, Any]:
        """The parameters with which `lax.conv_general_dilated` computes this spec: the inverse of `from_lax`."""
        specs = (
            _positions(self.lhs_layout, "n", "c", self.spatial),
            _positions(self.rhs_layout, "o", "c", self.spatial),
            _positions(self.out_layout, "n", "o", self.spatial),
        )
        return dict(
            window_strides=self.strides,
            padding=self.padding,
            lhs_dilation=self.lhs_dilation,
            rhs_dilation=self.rhs_dilation,
            dimension_numbers=lax.ConvDimensionNumbers(*specs),
            feature_group_count=1 if self.batch_groups else self.groups,
            batch_group_count=self.groups if self.batch_groups else 1,
            precision=self.precision,
            preferred_element_type=self.out_dtype,
        )

    def __str__(self) -> str:
        def sizes(values: Sizes) -> str:
            return "x".join(map(str, values))

        text = (
            f"n{self.batch} g{self.groups} c{self.in_channels} o{self.out_channels} {sizes(self.in_size)} k{sizes(self.window)}"
        )
        for name, values, default in (("s", self.strides, 1), ("ld", self.lhs_dilation, 1), ("rd", self.rhs_dilation, 1)):
            text += f" {name}{sizes(values)}" if any(v != default for v in values) else ""
        text += f" pad{self.padding}" if any(p != (0, 0) for p in self.padding) else ""
        dtypes = {self.lhs_dtype.name: None, self.rhs_dtype.name: None, self.out_dtype.name: None}
        return f"{text} {self.lhs_layout},{self.rhs_layout}->{self.out_layout} {','.join(dtypes)}"


def _dilated(size: int, dilation: int) -> int:
    return (size - 1) * dilation + 1 if size else 0


def _merged(layout: str, shape: Sizes) -> Sizes:
    g = layout.index("g")
    return (*shape[:g], shape[g] * shape[g + 1], *shape[g + 2 :])


def _layout(spec: Sequence[int], first: str, second: str, digits: str) -> str:
    letters = dict(zip(spec, (first, second, *digits), strict=True))
    return "".join(letters[axis] for axis in range(len(spec)))


def _positions(layout: str, first: str, second: str, digits: str) -> Sizes:
    merged = layout.replace("g", "")
    return tuple(merged.index(letter) for letter in (first, second, *digits))
