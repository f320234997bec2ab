"""Every convolution of a program, with the plan for it and the reason."""

import dataclasses
import html
import re
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType

from jaxgroupconv.accelerate import requested, unknown
from jaxgroupconv.planner import Plan, choose
from jaxgroupconv.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Entry:
    """One convolution equation.

    Attributes:
      spec: the convolution, or None if a size is symbolic or this JAX is not known.
      plan: the lowering and the reason for it.
      marked: whether the library was asked to plan it.
      count: how often it runs (trip counts of scans multiplied; a branch or a while loop's body counts once).
      source: file, line and function that the equation comes from.
      role: `forward` (tangents too), `recomputed` by remat, `dx` or `dw`, the gradients with respect to input and kernel, or
        `derivative`, where that cannot be told; `batched` before it if `vmap` was applied.
    """

    spec: ConvSpec | None
    plan: Plan
    marked: bool
    count: int
    source: str
    role: str


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
        """The table's cells: a header, one row for each convolution, and the totals."""
        rows = [("lowering", "role", "convolution", "times", "MFLOP", "MB", "why", "source")]
        for e in self.entries:
            flops, size = (f"{e.spec.flops / 1e6:.2f}", f"{e.spec.bytes / 1e6:.2f}") if e.spec else ("?", "?")
            rows.append((e.plan.name, e.role, str(e.spec or "?"), str(e.count), flops, size, e.plan.reason, e.source))
        title, times = f"convolutions on {self.platform}", str(sum(e.count for e in self.entries))
        return [*rows, ("total", "", title, times, f"{self.flops / 1e6:.2f}", f"{self.bytes / 1e6:.2f}", "", "")]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        aligned = [[_align(i, cell, width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]
        return "\n".join("  ".join(row).rstrip() for row in aligned)

    def _repr_html_(self) -> str:
        """The table, in a notebook."""
        header, *body = self.rows()
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
        head = "".join(f"<th>{cell}</th>" for cell in header)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


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
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args))
    partitioned = any(len(s.device_set) > 1 for s in shardings if s is not None)
    return Explanation(tuple(_entries(jaxpr.jaxpr, _Place(1, platform, partitioned, "", ""))), platform)


@dataclasses.dataclass(frozen=True)
class _Place:
    """What holds where an equation stands: how often it runs, for what, and where its program was called and transformed."""

    count: int
    platform: str
    partitioned: bool
    names: str
    source: str

    def inside(self, eqn: Any) -> "_Place":
        """The place of the equations of a program inside of this equation."""
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        partitioned = _shares(eqn.params) if eqn.primitive.name == "shard_map" else self.partitioned
        return _Place(self.count * times, self.platform, partitioned, self.names_of(eqn), self.source or _source(eqn))

    def names_of(self, eqn: Any) -> str:
        """The transformations around an equation, such as `vmap(transpose(jvp()))`."""
        return f"{self.names}/{eqn.source_info.name_stack}"


def _shares(params: dict[str, Any]) -> bool:
    """Whether a shard_map leaves axes of its mesh to XLA's partitioner."""
    mesh, manual = params["mesh"], params["newly_manual_axes"]
    axes = zip(mesh.shape.items(), mesh.axis_types, strict=True)
    return any(size > 1 and name not in manual and kind != AxisType.Manual for (name, size), kind in axes)


def _entries(jaxpr: Any, place: _Place) -> Iterator[Entry]:
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            yield _entry(eqn, place)
        for inner in _jaxprs(list(eqn.params.values())):
            yield from _entries(inner, place.inside(eqn))


def _entry(eqn: Any, place: _Place) -> Entry:
    implementation = requested(getattr(eqn, "ctx", None))
    lhs, rhs, out = (v.aval for v in (*eqn.invars, *eqn.outvars))
    spec = ConvSpec.from_equation(lhs, rhs, out, eqn.params)
    if (lacks := unknown()) is not None:
        plan = Plan("native", f"this JAX is not known ({lacks})")
    elif implementation is None:
        plan = Plan("native", "not marked: outside of accelerate and enable")
    elif spec is None:
        plan = Plan("native", "a size is symbolic")
    else:
        plan = choose(spec, implementation, place.platform, place.partitioned)
    role = _role(place.names_of(eqn), eqn.params)
    return Entry(spec, plan, implementation is not None, place.count, _source(eqn) or place.source, role)


def _role(names: str, params: dict[str, Any]) -> str:
    """The role that the names of the transformations and the layout tell.

    A transposed convolution is a gradient. The kernel's takes the batch for channels, so that the batch axis, the first one in
    nearly all programs, is that of the channels here.
    """
    remat, again = names.rpartition("rematted_computation")[1:]
    transposes = len(re.findall(r"transpose\(", again))
    batch, channels = params["dimension_numbers"].lhs_spec[:2]
    if transposes == 0:
        role = "recomputed" if remat else "forward"
    elif transposes > 1:
        role = "derivative"
    elif params["batch_group_count"] > 1 or channels == 0:
        role = "dw"
    else:
        role = "dx" if batch == 0 else "derivative"
    return f"batched {role}" if "vmap(" in names else role


def _align(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column in (3, 4, 5) else cell.ljust(width)


def _jaxprs(value: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters: closed or not, in tuples and lists, or held by a traced function."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
    elif hasattr(value, "eqns"):
        yield value
    else:
        for name in ("jaxpr", "traced"):
            if (inner := getattr(value, name, None)) is not None:
                yield from _jaxprs(inner)


def _source(eqn: Any) -> str:
    """File, line and function of the user's innermost frame; of an installed framework's, if no other called it."""
    traceback = getattr(eqn.source_info, "traceback", None)
    own = (f"{jax.__path__[0]}/", __file__.rsplit("/", 1)[0])
    frames = [f for f in getattr(traceback, "frames", None) or () if not f.file_name.startswith(own)]
    for frame in [*(f for f in frames if not f.file_name.startswith(_INSTALLED)), *frames][:1]:
        return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num} ({frame.function_name})"
    return ""


_INSTALLED = ("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
