"""Every convolution of a program, with the plan for it and the reason."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

from jaxgroupconv.accelerate import requested, spec_of
from jaxgroupconv.planner import Plan, choose
from jaxgroupconv.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Entry:
    """One convolution equation.

    Attributes:
      spec: the convolution, or None if a size is symbolic.
      plan: the lowering and the reason for it.
      marked: whether the library was asked to plan it.
      count: how often it runs (trip counts of scans multiplied; a branch or a while loop's body counts once).
      source: file, line and function that the equation comes from.
    """

    spec: ConvSpec | None
    plan: Plan
    marked: bool
    count: int
    source: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The convolutions of a program, in order; `str()` is a table.

    Attributes:
      entries: one for each convolution equation.
      platform: the platform that the plans are for.
    """

    entries: tuple[Entry, ...]
    platform: str

    @property
    def flops(self) -> int:
        """Floating-point operations of all convolutions."""
        return sum(e.spec.flops * e.count for e in self.entries if e.spec)

    @property
    def bytes(self) -> int:
        """The least memory traffic of all convolutions."""
        return sum(e.spec.bytes * e.count for e in self.entries if e.spec)

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, header first."""
        rows = [("lowering", "convolution", "times", "MFLOP", "MB", "why", "source")]
        for e in self.entries:
            flops, size = (f"{e.spec.flops / 1e6:.2f}", f"{e.spec.bytes / 1e6:.2f}") if e.spec else ("?", "?")
            rows.append((e.plan.name, str(e.spec or "symbolic"), str(e.count), flops, size, e.plan.reason, e.source))
        total = (
            f"{len(self.entries)} convolutions on {self.platform}",
            "",
            f"{self.flops / 1e6:.2f}",
            f"{self.bytes / 1e6:.2f}",
            "",
            "",
        )
        return [*rows, ("total", *total)]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def explain(fn: Callable[..., Any], *args: Any, platform: str = "cpu") -> Explanation:
    """Lists every convolution of a program, its gradients' too if the function computes them.

    Nothing is compiled or run.

    Args:
      fn: the function; under `jgc.enable()`, or decorated with `jgc.accelerate`, its convolutions are planned.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
      platform: `cpu`, `cuda`, `rocm` or `tpu`.

    Returns:
      An Explanation; print it.

    Example:
      >>> print(jgc.explain(jax.grad(loss), params, x))
    """
    jaxpr = jax.make_jaxpr(fn)(*args)
    return Explanation(tuple(_entries(jaxpr.jaxpr, 1, platform)), platform)


def _entries(jaxpr: Any, count: int, platform: str) -> Iterator[Entry]:
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            yield _entry(eqn, count, platform)
        times = count * eqn.params["length"] if eqn.primitive.name == "scan" else count
        for inner in _jaxprs(list(eqn.params.values())):
            yield from _entries(inner, times, platform)


def _entry(eqn: Any, count: int, platform: str) -> Entry:
    implementation = requested(getattr(eqn, "ctx", None))
    spec = spec_of(*(v.aval for v in (*eqn.invars, *eqn.outvars)), eqn.params)
    if implementation is None:
        plan = Plan("native", "not marked: outside of accelerate and enable")
    elif spec is None:
        plan = Plan("native", "a size is symbolic")
    else:
        plan = choose(spec, implementation, platform)
    return Entry(spec, plan, implementation is not None, count, _source(eqn))


def _jaxprs(value: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters, closed or not, at any depth of tuples and lists."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value.jaxpr


def _source(eqn: Any) -> str:
    """File, line and function of the innermost frame that is the user's."""
    traceback = getattr(eqn.source_info, "traceback", None)
    own = (f"{jax.__path__[0]}/", __file__.rsplit("/", 1)[0])
    for frame in getattr(traceback, "frames", None) or ():
        if not frame.file_name.startswith(own):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num} ({frame.function_name})"
    return ""
