"""Which lowering computes a convolution: a pure function of the spec and the platform."""

import dataclasses
import functools
import math
from collections.abc import Callable

from jaxgroupconv.lowerings import LOWERINGS, not_understood
from jaxgroupconv.spec import ConvSpec

IMPLEMENTATIONS = ("auto", *LOWERINGS)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice, as a value.

    Attributes:
      name: a name in LOWERINGS.
      reason: why, in words.
    """

    name: str
    reason: str


@functools.lru_cache(maxsize=4096)
def plan(spec: ConvSpec, platform: str) -> Plan:
    """The lowering that is used under `implementation="auto"`.

    Nothing is measured and no device is touched: the same spec has the same plan everywhere. On `cpu`, one group is lax's own
    dense convolution (`native`); for several, the first line that applies and whose lowering does not refuse:

    {rules}

    On other platforms the plan is `native`, until they are measured.

    Args:
      spec: the convolution.
      platform: `cpu`, `cuda`, `rocm` or `tpu`: the platform that is lowered for.

    Returns:
      The plan, with the reason for it.

    Raises:
      ValueError: the platform is unknown.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"`platform` must be one of {', '.join(PLATFORMS)}, but got {platform!r}.")
    if platform != "cpu":
        return Plan("native", f"nothing is measured on {platform} yet")
    if (refusal := not_understood(spec)) is not None:
        return Plan("native", refusal)
    if spec.groups == 1:
        return Plan("native", "one group: a dense convolution")
    for applies, name, reason in _CPU:
        if applies(spec) and LOWERINGS[name].why_not(spec) is None:
            return Plan(name, reason)
    return Plan("native", "every other lowering refuses")


def choose(spec: ConvSpec, implementation: str, platform: str) -> Plan:
    """The lowering that is used under any `implementation`: a forced name where it accepts the spec, the plan elsewhere."""
    if implementation == "auto":
        return plan(spec, platform)
    if (refusal := LOWERINGS[implementation].why_not(spec)) is None:
        return Plan(implementation, "asked for")
    planned = plan(spec, platform)
    return Plan(planned.name, f"{implementation} refuses: {refusal}; {planned.reason}")


def _thin_gradient(spec: ConvSpec) -> bool:
    channels = spec.batch * spec.out_channels
    if math.prod(spec.out_size) == 1:
        return spec.short_output and channels <= 16
    if not spec.lhs_layout.endswith(spec.spatial):  # channel-last
        return spec.short_output and channels <= 1024
    strided = any(d > 1 for d in spec.rhs_dilation)
    return spec.short_output and channels <= (16 if strided else 64)


def _wide_gradient(spec: ConvSpec) -> bool:
    dense = spec.short_output and math.prod(spec.out_size) > 1 and all(d == 1 for d in spec.lhs_dilation)
    return dense and spec.batch * spec.out_channels >= 256 and (spec.groups <= 16 or spec.in_channels >= 4)


# (applies, name, reason), of convolutions with several groups; benchmarks/run.py --lowerings measures what the bounds rest on.
_CPU: tuple[tuple[Callable[[ConvSpec], bool], str, str], ...] = (
    (
        _thin_gradient,
        "taps",
        "a weight gradient of thin groups (at most 8x8 channels, channel-last 32x32): sums over blocks of rows",
    ),
    (
        _wide_gradient,
        "per_group",
        "a weight gradient of wide groups (16x16 channels) that are few, or of several items: a dense convolution for each",
    ),
    (
        lambda spec: spec.short_output and math.prod(spec.out_size) <= 49,
        "matmul",
        "a weight gradient: a matrix product for each of at most 49 kernel elements",
    ),
    (
        lambda spec: spec.short_output,
        "feature_groups",
        "any other weight gradient: lax's own convolution, its batch groups written as feature groups",
    ),
    (
        lambda spec: math.prod(spec.window) == 1 and spec.in_channels >= 8,
        "matmul",
        "a kernel of size one and at least 8 channels a group: matrix products over the groups",
    ),
    (lambda spec: spec.in_channels <= 12, "taps", "thin groups (at most 12 channels): sums over the kernel's taps"),
    (
        lambda spec: math.prod(spec.window) <= 49,
        "per_group",
        "wider groups and at most 49 kernel elements: a dense convolution for each",
    ),
    (lambda spec: True, "native", "wider groups and a large kernel"),
)

plan.__doc__ = (plan.__doc__ or "").format(
    rules="\n    ".join(f"{i}. {reason} -> `{name}`" for i, (_, name, reason) in enumerate(_CPU, 1))
)
