"""The ways to compute a convolution, each in plain JAX, and the only list of their names.

A lowering is a pair of functions: `why_not(spec)` gives the reason for which it refuses a spec, or None, and
`lower(spec, lhs, rhs)` computes it. To add one, write such a file and give it a line in LOWERINGS.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxgroupconv.lowerings import feature_groups, matmul, native, onednn, per_group, taps
from jaxgroupconv.lowerings.geometry import backwards, crop, of_cotangent
from jaxgroupconv.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Lowering:
    """One way to compute a convolution.

    Attributes:
      name: its name in LOWERINGS.
      exchanges: whether it computes the weight gradient of a transposed convolution as that of the strided one, with input and
        cotangent exchanged.
    """

    name: str
    _why_not: Callable[[ConvSpec], str | None]
    _lower: Callable[[ConvSpec, Array, Array], Array]
    _lower_shared: Callable[[ConvSpec, Array, Array], Array] | None = None
    _unavailable: Callable[[], str | None] = lambda: None
    exchanges: bool = False

    def why_not(self, spec: ConvSpec) -> str | None:
        """The reason for which this lowering refuses the spec, or None if it computes it."""
        if self.name == "native":
            return None
        return not_understood(spec) or self._why_not(self._strided(spec) or spec)

    def unavailable(self) -> str | None:
        """The reason for which this process cannot compute anything in this way, or None."""
        return self._unavailable()

    def lower(self, spec: ConvSpec, lhs: Array, rhs: Array, *, shared: bool = False) -> Array:
        """Computes the convolution, strictly in this way.

        Args:
          spec: the convolution.
          lhs: the input, of shape `spec.lhs_shape`.
          rhs: the kernel, of shape `spec.rhs_shape`.
          shared: whether XLA's partitioner shares the program out among devices.

        Returns:
          The result, of shape `spec.out_shape` and dtype `spec.out_dtype`.

        Raises:
          NotImplementedError: the lowering refuses the spec, or is not available; the message says why.
        """
        if (reason := self.why_not(spec) or self.unavailable()) is not None:
            raise NotImplementedError(f"The lowering {self.name!r} refuses [{spec}]: {reason}.")
        if (strided := self._strided(spec)) is not None:
            return backwards(spec, self.lower(strided, rhs, lhs, shared=shared))
        cropped, lhs = crop(spec, lhs)
        if 0 in cropped.lhs_shape and 0 not in spec.lhs_shape:  # nothing but padding is left
            return jnp.zeros(spec.out_shape, spec.out_dtype)
        return (self._lower_shared or self._lower if shared else self._lower)(cropped, lhs, rhs)

    def _strided(self, spec: ConvSpec) -> ConvSpec | None:
        return of_cotangent(spec) if self.exchanges else None


def not_understood(spec: ConvSpec) -> str | None:
    """What no lowering but lax's own understands."""
    if spec.ndim == 0:
        return "no spatial axis"
    if 0 in spec.lhs_shape + spec.rhs_shape + spec.out_shape:
        return "an empty array"
    if not all(_is_real(dtype) for dtype in (spec.lhs_dtype, spec.rhs_dtype, spec.out_dtype)):
        return f"dtypes {spec.lhs_dtype}, {spec.rhs_dtype} -> {spec.out_dtype}"
    pair = spec.precision if isinstance(spec.precision, tuple) else (spec.precision,)
    if not all(p is None or isinstance(p, lax.Precision) for p in pair):
        return f"precision {spec.precision}"
    return None


def _is_real(dtype) -> bool:
    wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 2
    return wide or (jnp.issubdtype(dtype, jnp.integer) and dtype.name in _INTEGERS)


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

_EXCHANGING = ("onednn", "taps", "matmul")  # the others are lax's own convolutions

LOWERINGS: dict[str, Lowering] = {
    name: Lowering(
        name,
        module.why_not,
        module.lower,
        getattr(module, "lower_shared", None),
        getattr(module, "unavailable", lambda: None),
        name in _EXCHANGING,
    )
    for name, module in {
        "onednn": onednn,
        "taps": taps,
        "matmul": matmul,
        "per_group": per_group,
        "feature_groups": feature_groups,
        "native": native,
    }.items()
}
