"""Which lowering computes a convolution: a pure function of the spec and the platform."""

import dataclasses
import functools
from collections.abc import Iterable

from jaxgroupconv import cpu_plan, kernel_plan, weight_plan
from jaxgroupconv.lowerings import LOWERINGS, not_understood
from jaxgroupconv.lowerings.geometry import of_cotangent
from jaxgroupconv.spec import ConvSpec

IMPLEMENTATIONS = ("auto", "portable", *LOWERINGS)
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
def plan(spec: ConvSpec, platform: str, kernels: bool = False) -> Plan:
    """The lowering that is used under `implementation="portable"`, or, with kernels, under `"auto"` where there are any.

    Nothing is measured and no device is touched: the same spec has the same plan everywhere. On `cpu` it is the first line that
    applies and whose lowering does not refuse; without kernels, or of fewer than {least} operations, the first but `onednn`:

    {kernel_rules}

    and then, of a weight gradient,

    {weight_rules}

    or, of any other convolution,

    {rules}

    The weight gradient of a transposed convolution, which dilates its input, is that of the strided one with input and
    cotangent exchanged, and planned as such where the lowering exchanges them (`onednn`, `taps`, `matmul`).

    On other platforms the plan is `native`, until they are measured.

    Args:
      spec: the convolution.
      platform: `cpu`, `cuda`, `rocm` or `tpu`: the platform that is lowered for.
      kernels: whether oneDNN's kernels may be called, which jaxlib holds on x86-64.

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
    if (strided := of_cotangent(spec)) is not None:
        found = plan(strided, platform, kernels)
        if LOWERINGS[found.name].exchanges:
            return Plan(found.name, f"the weight gradient of a dilated input, as that of a dilated cotangent: {found.reason}")
    own = weight_plan.RULES if spec.short_output else cpu_plan.RULES
    for applies, name, reason in (kernel_plan.RULES if kernels and spec.flops >= kernel_plan.LEAST else ()) + own:
        if applies(spec) and LOWERINGS[name].why_not(spec) is None:
            return Plan(name, reason)
    return Plan("native", "every other lowering refuses")


def choose(spec: ConvSpec, implementation: str, platform: str, partitioned: bool = False, exported: bool = False) -> Plan:
    """The lowering that is used under any `implementation`: a forced name where it accepts the spec, the plan elsewhere.

    Where XLA shares a program out among devices (`partitioned`), a plan that would gather their shards is replaced. There, and
    where the program is for another process (`exported`), nothing is planned that XLA cannot look into.
    """
    within = platform == "cpu" and implementation != "portable" and not (partitioned or exported)

    def refusal(name: str) -> str | None:
        if name == "onednn" and not within:
            return LOWERINGS[name].why_not(spec) or "an exported, shared or portable program holds no calls of kernels"
        return LOWERINGS[name].why_not(spec) or LOWERINGS[name].unavailable()

    if implementation in LOWERINGS and refusal(implementation) is None:
        return Plan(implementation, "asked for")
    chosen = plan(spec, platform, kernels=within)
    if refusal(chosen.name) is not None:  # the process lacks kernels, which is asked only where one would be planned
        chosen = plan(spec, platform)
    if implementation in LOWERINGS:
        chosen = Plan(chosen.name, f"{implementation} refuses: {refusal(implementation)}; {chosen.reason}")
    return _without_gathering(spec, chosen) if partitioned and chosen.name != "native" else chosen


def _without_gathering(spec: ConvSpec, chosen: Plan) -> Plan:
    if spec.groups == 1:
        return Plan("native", "one group on several devices: XLA's partitioner knows lax's own lowering best")
    if chosen.name not in ("per_group", "feature_groups") and not (chosen.name == "taps" and spec.over_batch):
        return chosen
    understood = LOWERINGS["matmul"].why_not(spec) is None
    products = understood and (spec.short_output or not spec.over_batch)  # else a sum for each row
    name = "matmul" if products else "native"
    return Plan(name, f"on several devices, where {chosen.name} would gather the shards")


def _listed(rules: Iterable[tuple[object, str, str]]) -> str:
    return "\n    ".join(f"{i}. {why} -> `{name}`" for i, (_, name, why) in enumerate(rules, 1))


plan.__doc__ = (plan.__doc__ or "").format(
    least=kernel_plan.LEAST,
    kernel_rules=_listed(kernel_plan.RULES),
    weight_rules=_listed(weight_plan.RULES),
    rules=_listed(cpu_plan.RULES),
)
