"""The mark on convolution equations, for which `rules.py` plans them.

The mark is XLA metadata: it lies in each equation's context, is part of jit's cache key and local to the thread, and JAX enters
it again when it differentiates, batches or rematerialises an equation. So what is derived from a marked convolution is marked
too.
"""

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxgroupconv.planner import IMPLEMENTATIONS
from jaxgroupconv.stepwise import inside

MARK = "jaxgroupconv"


def accelerate(implementation: Any = "auto") -> Any:
    """Plans every convolution that is traced inside, and everything derived from it.

    A context manager, reusable, and a decorator of functions and methods, also bare (`@accelerate`). Scopes nest: the innermost
    one holds. Of a decorated generator or async function, each step runs inside, and nothing holds while it waits.

    Args:
      implementation: `"auto"`, the planner; `"portable"`, the planner without calls of oneDNN's kernels, so that XLA can store
        what it compiles; the name of a lowering, used for every convolution that it accepts, with the planner's choice
        elsewhere; `"native"`, lax's own lowering everywhere.

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


def _checked(implementation: str) -> str:
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` must be one of {known}, but got {implementation!r}.")
    return implementation


class _Thread(threading.local):
    """What holds in one thread."""

    def __init__(self) -> None:
        self.scopes: list[tuple[str, Any]] = []  # open `accelerate` scopes: implementation, JAX's context manager of the mark


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


def _attach() -> Callable[..., Any]:
    """Attaches the lowering rules, all or none of them, and returns the function that sets the mark."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata

        from jaxgroupconv import rules

        rules.check(MARK, set_xla_metadata)
        rules.attach(MARK, lambda context: None if _unknown else requested(context), _give_up)
        return set_xla_metadata
    except Exception as error:  # whatever another JAX does here: the user's program must run
        _give_up(error)
        return lambda **_: contextlib.nullcontext()


def _give_up(error: Exception) -> None:
    """From now on all convolutions are lax's own; a warning says so, once."""
    _unknown.append(f"{jax.__version__}: {error!r}")
    text = f"jaxgroupconv does not know this JAX ({_unknown[0]}); convolutions keep lax's own lowering."
    warnings.warn(text, RuntimeWarning, stacklevel=3)


_set_mark = _attach()
