"""Which lowering computes a convolution: a pure function of the spec and the platform."""

import dataclasses
import functools
import math

from jaxgroupconv.lowerings import LOWERINGS
from jaxgroupconv.spec import ConvSpec

IMPLEMENTATIONS = ("auto", *LOWERINGS)


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

    Nothing is measured and no device is touched: the same spec has the same plan everywhere. On `cpu`, the first line that applies and
    whose lowering does not refuse:

    {rules}

    On other platforms the plan is `native`, until they are measured.

    Args:
      spec: the convolution.
      platform: `cpu`, `cuda`, `rocm` or `tpu`: the platform that is lowered for.

    Returns:
      The plan, with the reason for it.
    """
    if platform != "cpu":
        return Plan("native", f"nothing is measured on {platform} yet")
    for applies, name, reason in _CPU:
        if applies(spec) and LOWERINGS[name].why_not(spec) is None:
            return Plan(name, reason)
    refusals = (f"{name}: {LOWERINGS[name].why_not(spec)}" for name in LOWERINGS)
    return Plan("native", next((r for r in refusals if not r.endswith("None")), "no lowering is known to be faster"))


def choose(spec: ConvSpec, implementation: str, platform: str) -> Plan:
    """The lowering that is used under any `implementation`: a forced name where it accepts the spec, the plan elsewhere."""
    if implementation == "auto":
        return plan(spec, platform)
    if (refusal := LOWERINGS[implementation].why_not(spec)) is None:
        return Plan(implementation, "asked for")
    planned = plan(spec, platform)
    return Plan(planned.name, f"{implementation} refuses: {refusal}; {planned.reason}")


def _terms(spec: ConvSpec) -> int:
    return spec.in_channels * math.prod(spec.window)


_CPU = (
    (
        lambda s: s.short_output and s.batch * s.out_channels <= 16,
        "taps",
        "a weight gradient of thin groups: sums over blocks of rows",
    ),
    (
        lambda s: s.short_output and math.prod(s.out_size) <= 25,
        "matmul",
        "a weight gradient: one matrix product for each kernel element",
    ),
    (
        lambda s: s.groups > 1 and not s.short_output and _terms(s) <= 48,
        "taps",
        "thin groups: one sum over the kernel's taps",
    ),
    (
        lambda s: s.groups > 1 and math.prod(s.window) == 1,
        "matmul",
        "a kernel of size one: matrix products over the groups",
    ),
    (
        lambda s: s.groups > 1 and not s.short_output and s.in_channels <= 2,
        "taps",
        "thin groups and a large kernel: a loop over the kernel's rows",
    ),
    (
        lambda s: s.in_channels >= 8 and not s.short_output,
        "per_group",
        "wide groups: a dense convolution for each",
    ),
)

plan.__doc__ = (plan.__doc__ or "").format(
    rules="\n    ".join(f"{i}. {reason} -> `{name}`" for i, (_, name, reason) in enumerate(_CPU, 1))
)
