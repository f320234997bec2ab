"""The mark on convolution equations and the lowering rules that heed it: the only file that touches JAX's interpreters.

The mark is XLA metadata: it lies in each equation's context, is part of jit's cache key and local to the thread, and JAX enters
it again when it differentiates, batches or rematerialises an equation. So what is derived from a marked convolution is marked
too.
"""

import contextlib
import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxgroupconv.lowerings import LOWERINGS
from jaxgroupconv.lowerings.apart import apart, worthwhile
from jaxgroupconv.lowerings.blocks import in_blocks
from jaxgroupconv.planner import IMPLEMENTATIONS, PLATFORMS, Plan, choose
from jaxgroupconv.spec import ConvSpec
from jaxgroupconv.stepwise import inside

MARK = "jaxgroupconv"


def accelerate(implementation: Any = "auto") -> Any:
    """Plans every convolution that is traced inside, and everything derived from it.

    A context manager, reusable, and a decorator of functions and methods, also bare (`@accelerate`). Scopes nest: the innermost
    one holds. Of a decorated generator or async function, each step runs inside, and nothing holds while it waits.

    Args:
      implementation: `"auto"`, the planner; the name of a lowering, used for every convolution that it accepts, with the
        planner's choice elsewhere; `"native"`, lax's own lowering everywhere.

    Returns:
      A context manager that decorates functions, or, used bare, the decorated function.

    Raises:
      ValueError: the implementation is unknown.
      TypeError: a class is decorated.

    Example:
      >>> @jax.jit
      ... @jgc.accelerate
      ... def loss(params, x): ...
    """
    if callable(implementation):
        return _Scope("auto")(implementation)
    return _Scope(_checked(implementation))


def enable(implementation: str = "auto") -> None:
    """Plans every convolution of the process that no `accelerate` scope holds; clears JAX's caches when it changes something.

    Args:
      implementation: as in `accelerate`.

    Raises:
      ValueError: the implementation is unknown.
    """
    _set_process(_checked(implementation))


def disable() -> None:
    """Undoes `enable`: convolutions outside of `accelerate` scopes are lax's again."""
    _set_process(None)


def current() -> str:
    """The implementation that holds here: of the innermost scope, of the process, or `"auto"`."""
    return _thread.scopes[-1][0] if _thread.scopes else _process[0] or "auto"


def requested(context: Any) -> str | None:
    """The implementation that an equation's context asks for, or None for lax's untouched lowering."""
    metadata = getattr(context, "xla_metadata", None) or {}
    return metadata.get(MARK, _process[0])


def unknown() -> str | None:
    """What the rules miss in this JAX, where all convolutions are lax's own, or None."""
    return _unknown[0] if _unknown else None


def spec_of(lhs: Any, rhs: Any, out: Any, params: dict[str, Any]) -> ConvSpec | None:
    """The spec of an equation from its abstract values and parameters; None if a size is symbolic.

    Other parameters than those of a ConvSpec would give None too, but with those nothing is attached.
    """
    names = ("preferred_element_type", "out_sharding")
    geometry = {name: value for name, value in params.items() if name not in names}
    dtypes = {"lhs_dtype": lhs.dtype, "rhs_dtype": rhs.dtype, "out_dtype": out.dtype}
    try:
        return ConvSpec.from_lax(lhs.shape, rhs.shape, **geometry, **dtypes)
    except TypeError:
        return None


def chosen(spec: ConvSpec, implementation: str, platform: str, partitioned: bool) -> Plan:
    """The lowering that is used; where XLA shares a program out among devices, none of those that would gather their shards."""
    plan = choose(spec, implementation, platform)
    if not partitioned or plan.name in (implementation, "native"):
        return plan
    if spec.groups == 1:
        return Plan("native", "one group on several devices: XLA's partitioner knows lax's own lowering best")
    over_batch = spec.short_output or "gn" in spec.lhs_layout  # a weight gradient: its sums are over the batch
    if plan.name not in ("per_group", "feature_groups") and not (plan.name == "taps" and over_batch):
        return plan
    products = LOWERINGS["matmul"].why_not(spec) is None and (spec.short_output or not over_batch)  # else a sum for each row
    name = "matmul" if products else "native"
    return Plan(name, f"on several devices, where {plan.name} would gather the shards")


def _checked(implementation: str) -> str:
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` must be one of {known}, but got {implementation!r}.")
    return implementation


class _Thread(threading.local):
    """What holds in one thread."""

    def __init__(self) -> None:
        self.scopes: list[tuple[str, Any]] = []  # open `accelerate` scopes: implementation, JAX's context manager of the mark
        self.lowering = False  # inside of a planned lowering, whose own convolutions are lax's


_thread = _Thread()
_process: list[str | None] = [None]  # what `enable` set
_unknown: list[str] = []  # what this JAX lacks; once there is something, nothing is planned


def _set_process(implementation: str | None) -> None:
    if _process[0] != implementation:
        _process[0] = implementation
        jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What `accelerate` returns."""

    implementation: str

    def __enter__(self) -> None:
        mark = _set_mark(**{MARK: self.implementation})
        mark.__enter__()
        _thread.scopes.append((self.implementation, mark))

    def __exit__(self, *error: Any) -> None:
        _, mark = _thread.scopes.pop()
        mark.__exit__(*error)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return inside(self, function)


@functools.lru_cache(maxsize=4096)
def _function(name: str, spec: ConvSpec, devices: int, platform: str) -> Callable[..., Any]:
    """The lowering as a jitted function: traced once for all equations of this spec, and named in the program's text."""
    sliced = name in ("taps", "matmul")  # the others are lax's convolutions, which XLA shares out by itself

    def lower(lhs, rhs):
        return in_blocks(LOWERINGS[name], spec, lhs, rhs, devices if sliced else 1)

    lower.__name__ = f"{MARK}_{name}"
    kept = platform == "cpu" and devices == 1 and worthwhile(name, spec)
    return apart(lower) if kept else jax.jit(lower)


def _rule(mlir: Any, platform: str) -> Callable[..., Any]:
    """Lax's lowering rule of one platform, with the planner before it."""
    entry = mlir._platform_specific_lowerings[platform].get(lax.conv_general_dilated_p)
    entry = entry or mlir._lowerings[lax.conv_general_dilated_p]
    original = getattr(entry, "rule", entry)

    def rule(ctx, lhs, rhs, **params):
        if _thread.lowering or _unknown:
            return original(ctx, lhs, rhs, **params)
        try:
            implementation = requested(ctx.jaxpr_eqn_ctx)
            (x, w), (out,) = ctx.avals_in, ctx.avals_out
            spec = spec_of(x, w, out, params) if implementation else None
            devices = _devices(ctx.module_context.axis_context) if spec else 1
        except Exception as error:  # what cannot be tried before something is lowered
            _give_up(error)
            return original(ctx, lhs, rhs, **params)
        if spec is None or implementation is None:
            return original(ctx, lhs, rhs, **params)
        name = chosen(spec, implementation, platform, devices > 1).name
        if name == "native" and all(p >= 0 for pair in spec.padding for p in pair):
            return original(ctx, lhs, rhs, **params)
        function = _function(name, spec, devices, platform)
        mesh = getattr(getattr(out, "sharding", None), "mesh", None)
        if mesh is not None and jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ()):
            function = jax.sharding.auto_axes(function, out_sharding=out.sharding)
        if getattr(ctx.module_context.axis_context, "manual_axes", ()):  # the lowering need not prove what varies over them
            ctx = ctx.replace(avals_in=[type(aval)(aval.shape, aval.dtype) for aval in (x, w)])
        _thread.lowering = True
        try:
            return mlir.lower_fun(function, multiple_results=False)(ctx, lhs, rhs)
        finally:
            _thread.lowering = False

    return rule


def _devices(axes: Any) -> int:
    """How many devices share out what is lowered by XLA's partitioner, not by shard_map or pmap."""
    if (mesh := getattr(axes, "mesh", None)) is not None:
        return math.prod(size for name, size in mesh.shape.items() if name not in axes.manual_axes)
    return axes.num_devices


def _attach() -> Callable[..., Any]:
    """Wraps lax's lowering rules, all or none of them, and returns the function that sets the mark."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
        from jax.interpreters import mlir

        _check(mlir, set_xla_metadata)
        rules = {platform: _rule(mlir, platform) for platform in PLATFORMS}
        for platform, rule in rules.items():
            mlir.register_lowering(lax.conv_general_dilated_p, rule, platform=platform)
        return set_xla_metadata
    except Exception as error:  # whatever another JAX does here: the user's program must run
        _give_up(error)
        return lambda **_: contextlib.nullcontext()


def _give_up(error: Exception) -> None:
    """From now on all convolutions are lax's own; a warning says so, once."""
    _unknown.append(f"{jax.__version__}: {error!r}")
    text = f"jaxgroupconv does not know this JAX ({_unknown[0]}); convolutions keep lax's own lowering."
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _check(mlir: Any, set_mark: Callable[..., Any]) -> None:
    """Raises if JAX has no more what the rules will need when they run, or if the mark does not reach an equation."""
    needed = {"avals_in", "avals_out", "jaxpr_eqn_ctx", "module_context"} - set(mlir.LoweringRuleContext.__dataclass_fields__)
    if needed:
        raise AttributeError(f"LoweringRuleContext lacks {sorted(needed)}")
    for owner, name in (
        (mlir, "lower_fun"),
        (mlir, "register_lowering"),
        (jax.sharding, "auto_axes"),
        (jax.sharding, "AxisType"),
        (mlir.LoweringRuleContext, "replace"),
    ):
        getattr(owner, name)
    x = jax.ShapeDtypeStruct((1, 1, 1), np.dtype(np.float32))
    with set_mark(**{MARK: "native"}):
        jaxpr = jax.make_jaxpr(lambda x: lax.conv_general_dilated(x, x, (1,), "VALID"))(x)
    eqn = jaxpr.jaxpr.eqns[-1]
    if requested(eqn.ctx) != "native":
        raise AttributeError("the mark does not reach the equation")
    if spec_of(eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval, eqn.params) is None:
        raise TypeError(f"a convolution's parameters are {', '.join(eqn.params)}")


_set_mark = _attach()
