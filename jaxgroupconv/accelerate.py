"""The mark on convolution equations and the lowering rules that heed it: the only file that touches JAX's interpreters.

The mark is XLA metadata: it lies in each equation's context, is part of jit's cache key and local to the thread, and JAX enters it again
when it differentiates, batches or rematerialises an equation. So what is derived from a marked convolution is marked too.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxgroupconv.lowerings import LOWERINGS
from jaxgroupconv.planner import IMPLEMENTATIONS, choose
from jaxgroupconv.spec import ConvSpec

MARK = "jaxgroupconv"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_process: list[str | None] = [None]  # what `enable` set
_thread = threading.local()  # .scope: the innermost `accelerate`; .lowering: inside of a planned lowering


def accelerate(implementation: Any = "auto") -> Any:
    """Plans every convolution that is traced inside, and everything derived from it.

    A context manager and a decorator, also bare (`@accelerate`). Scopes nest: the innermost one holds.

    Args:
      implementation: `"auto"`, the planner; the name of a lowering, used for every convolution that it accepts, with the planner's choice
        elsewhere; `"native"`, lax's own lowering everywhere.

    Returns:
      A context manager that decorates functions, or, used bare, the decorated function.

    Raises:
      ValueError: the implementation is unknown.

    Example:
      >>> @jax.jit
      ... @jgc.accelerate
      ... def loss(params, x): ...
    """
    if callable(implementation):
        return _scope("auto")(implementation)
    return _scope(_checked(implementation))


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
    return getattr(_thread, "scope", None) or _process[0] or "auto"


def requested(context: Any) -> str | None:
    """The implementation that an equation's context asks for, or None for lax's untouched lowering."""
    metadata = getattr(context, "xla_metadata", None) or {}
    return metadata.get(MARK, _process[0])


def spec_of(lhs: Any, rhs: Any, out: Any, params: dict[str, Any]) -> ConvSpec | None:
    """The spec of an equation from its abstract values and parameters; None if a size is symbolic."""
    names = ("preferred_element_type", "out_sharding")
    geometry = {name: value for name, value in params.items() if name not in names}
    dtypes = {"lhs_dtype": lhs.dtype, "rhs_dtype": rhs.dtype, "out_dtype": out.dtype}
    try:
        return ConvSpec.from_lax(lhs.shape, rhs.shape, **geometry, **dtypes)
    except TypeError:
        return None


def _checked(implementation: str) -> str:
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` must be one of {known}, but got {implementation!r}.")
    return implementation


@contextlib.contextmanager
def _scope(implementation: str):
    outer = getattr(_thread, "scope", None)
    _thread.scope = implementation
    try:
        with set_xla_metadata(**{MARK: implementation}):
            yield
    finally:
        _thread.scope = outer


def _set_process(implementation: str | None) -> None:
    if _process[0] != implementation:
        _process[0] = implementation
        jax.clear_caches()


@functools.lru_cache(maxsize=4096)
def _function(name: str, spec: ConvSpec) -> Callable[..., Any]:
    """The lowering as a jitted function: traced once for all equations of this spec, and named in the program's text."""

    def lower(lhs, rhs):
        return LOWERINGS[name].lower(spec, lhs, rhs)

    lower.__name__ = f"{MARK}_{name}"
    return jax.jit(lower)


def _attach(mlir: Any, platform: str) -> None:
    """Wraps lax's lowering rule of one platform."""
    entry = mlir._platform_specific_lowerings[platform].get(lax.conv_general_dilated_p)
    entry = entry or mlir._lowerings[lax.conv_general_dilated_p]
    original = getattr(entry, "rule", entry)

    def rule(ctx, lhs, rhs, **params):
        implementation = requested(ctx.jaxpr_eqn_ctx)
        (out,) = ctx.avals_out
        spec = None
        if implementation is not None and not getattr(_thread, "lowering", False):
            spec = spec_of(*ctx.avals_in, out, params)
        if spec is None or implementation is None:
            return original(ctx, lhs, rhs, **params)
        name = choose(spec, implementation, platform).name
        if name == "native" and all(p >= 0 for pair in spec.padding for p in pair):
            return original(ctx, lhs, rhs, **params)
        function = _function(name, spec)
        mesh = getattr(getattr(out, "sharding", None), "mesh", None)
        if mesh is not None and jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ()):
            function = jax.sharding.auto_axes(function, out_sharding=out.sharding)
        _thread.lowering = True
        try:
            return mlir.lower_fun(function, multiple_results=False)(ctx, lhs, rhs)
        finally:
            _thread.lowering = False

    mlir.register_lowering(lax.conv_general_dilated_p, rule, platform=platform)


def _attach_all() -> None:
    try:
        from jax.interpreters import mlir

        for platform in PLATFORMS:
            _attach(mlir, platform)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        warnings.warn(
            f"jaxgroupconv does not know this JAX ({jax.__version__}: {error!r}); convolutions keep lax's own lowering.",
            RuntimeWarning,
            stacklevel=2,
        )


_attach_all()
