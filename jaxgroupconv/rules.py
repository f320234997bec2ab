"""The lowering rules that plan marked convolutions: the only file that touches JAX's interpreters.

JAX lowers a program equation by equation. Where it comes to a convolution, the rule chooses a lowering and writes its
operations into the program's text, each as soon as it is bound: a jaxpr between, read only once, would take as long again.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Trace, Tracer
from jax.extend.core import set_current_trace
from jax.extend.mlir.dialects import func, stablehlo
from jax.interpreters import mlir

from jaxgroupconv.lowerings import LOWERINGS
from jaxgroupconv.lowerings.blocks import in_blocks
from jaxgroupconv.lowerings.calls import call, worthwhile
from jaxgroupconv.planner import PLATFORMS, choose
from jaxgroupconv.spec import ConvSpec

ir = mlir.ir


def attach(prefix: str, requested: Callable[[Any], str | None], give_up: Callable[[Exception], None]) -> None:
    """Wraps lax's lowering rules, all or none of them.

    Args:
      prefix: of the names of functions in the program's text.
      requested: gives the implementation that an equation's context asks for, or None.
      give_up: is told what went wrong; from then on nothing should be requested.
    """
    rules = {platform: _rule(platform, prefix, requested, give_up) for platform in PLATFORMS}
    for platform, rule in rules.items():
        mlir.register_lowering(lax.conv_general_dilated_p, rule, platform=platform)


def check(mark: str, set_mark: Callable[..., Any]) -> None:
    """Raises if JAX has no more what the rules will need when they run, or if the mark does not reach an equation."""
    needed = {"avals_in", "avals_out", "jaxpr_eqn_ctx", "module_context"} - set(mlir.LoweringRuleContext.__dataclass_fields__)
    if needed:
        raise AttributeError(f"LoweringRuleContext lacks {sorted(needed)}")
    for owner, name in (
        (mlir, "ir_constant"),
        (mlir, "register_lowering"),
        (mlir.LoweringRuleContext, "replace"),
        (jax.sharding, "auto_axes"),
        (jax.sharding, "AxisType"),
        (jax.sharding, "get_abstract_mesh"),
        (Trace, "process_primitive"),
        (func, "FuncOp"),
        (func, "CallOp"),
        (stablehlo, "WhileOp"),
        (stablehlo, "reshape"),
        (lax, "reshape_p"),
        (lax, "squeeze_p"),
        (lax.conv_general_dilated_p, "abstract_eval"),
    ):
        getattr(owner, name)
    x = jax.ShapeDtypeStruct((1, 1, 1), np.dtype(np.float32))
    with set_mark(**{mark: "native"}):
        jaxpr = jax.make_jaxpr(lambda x: lax.conv_general_dilated(x, x, (1,), "VALID"))(x)
    eqn = jaxpr.jaxpr.eqns[-1]
    if (eqn.ctx.xla_metadata or {}).get(mark) != "native":
        raise AttributeError("the mark does not reach the equation")
    if ConvSpec.from_equation(eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval, eqn.params) is None:
        raise TypeError(f"a convolution's parameters are {', '.join(eqn.params)}")


def _rule(platform: str, prefix: str, requested: Callable[[Any], str | None], give_up: Callable[[Exception], None]) -> Any:
    """Lax's lowering rule of one platform, with the planner before it."""
    original = _rule_of(lax.conv_general_dilated_p, platform)

    def rule(ctx, lhs, rhs, **params):
        values = None
        if not _thread.lowering:
            _thread.lowering = True
            try:
                if (implementation := requested(ctx.jaxpr_eqn_ctx)) is not None:
                    values = _planned(ctx, (lhs, rhs), params, implementation, platform, prefix)
            except Exception as error:  # what cannot be tried before something is lowered
                give_up(error)
            finally:
                _thread.lowering = False
        return original(ctx, lhs, rhs, **params) if values is None else values

    return rule


def _planned(
    ctx: Any, values: tuple[Any, Any], params: dict[str, Any], implementation: str, platform: str, prefix: str
) -> list[Any] | None:
    """Writes a convolution as it is planned; None where that is lax's own way, or a size is symbolic."""
    (x, w), (out,), axes = ctx.avals_in, ctx.avals_out, ctx.module_context.axis_context
    if (spec := ConvSpec.from_equation(x, w, out, params)) is None:
        return None
    devices = _devices(axes)
    exported = getattr(getattr(ctx.module_context, "lowering_parameters", None), "for_export", True)
    name = choose(spec, implementation, platform, devices > 1, exported).name
    if name == "native" and all(p >= 0 for pair in spec.padding for p in pair):
        return None
    kept = platform == "cpu" and devices == 1 and worthwhile(name, spec)
    lower = call(_lowering(name, spec, devices, f"{prefix}_{name}"), kept)
    mesh = getattr(getattr(out, "sharding", None), "mesh", None)
    if mesh is not None and jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ()):
        lower = jax.sharding.auto_axes(lower, out_sharding=out.sharding)
    if getattr(axes, "manual_axes", ()):  # the lowering need not prove what varies over them
        x, w = (type(aval)(aval.shape, aval.dtype) for aval in (x, w))
    return [result.value for result in _Writer(ctx, platform).write(lower, values, (x, w))[0]]


class _Thread(threading.local):
    lowering = False  # inside of a planned lowering, whose own convolutions are lax's


_thread = _Thread()


def _lowering(name: str, spec: ConvSpec, devices: int, called: str) -> Callable[..., Any]:
    """The lowering of a spec as a function of the operands."""
    sliced = name in ("taps", "matmul")  # the others are lax's convolutions, which XLA shares out by itself

    def lower(lhs, rhs):
        return in_blocks(LOWERINGS[name], spec, lhs, rhs, devices if sliced else 1)

    lower.__name__ = called
    return lower


def _devices(axes: Any) -> int:
    """How many devices share out what is lowered by XLA's partitioner, not by shard_map or pmap."""
    if (mesh := getattr(axes, "mesh", None)) is not None:
        return math.prod(size for name, size in mesh.shape.items() if name not in axes.manual_axes)
    return axes.num_devices


def _rule_of(primitive: Any, platform: str) -> Any:
    """JAX's lowering rule of a primitive."""
    entry = mlir._platform_specific_lowerings[platform].get(primitive) or mlir._lowerings[primitive]
    return getattr(entry, "rule", entry)


class _Array(Tracer):
    """An array of the program: a value of its text, or one of another shape, from which it is reshaped once it is used."""

    __slots__ = ("unshaped",)

    def __init__(self, writer: Any, value: Any, aval: Any) -> None:
        super().__init__(writer, aval)
        self.unshaped = value

    @property
    def value(self) -> Any:
        """The value, in the array's shape. It is written where the insertion point is: only its writer may ask."""
        aval: Any = self.aval
        if tuple(self.unshaped.type.shape) != aval.shape:
            made = ir.RankedTensorType.get(aval.shape, self.unshaped.type.element_type)
            self.unshaped = stablehlo.reshape(made, self.unshaped)
        return self.unshaped

    @property
    def writer(self) -> Any:
        """What writes the program."""
        return self._trace


def _aval(array: Any) -> Any:
    return array.aval if isinstance(array, _Array) else jax.typeof(array)


class _Writer(Trace):
    """Writes each operation where it is bound, as JAX's own lowering of a jaxpr would, calls and loops too (`calls.py`)."""

    __slots__ = ("context", "platform", "written")

    def __init__(self, context: Any, platform: str) -> None:
        super().__init__()
        self.context, self.platform = context.replace(), platform  # a copy, whose operation changes
        self.written = context.module_context.cached_primitive_lowerings.setdefault(_Writer, {})

    def write(self, compute: Callable[..., Any], values: Sequence[Any], avals: Sequence[Any]) -> tuple[list[Any], Any]:
        """Writes what a function computes of some values: its results, flat, and their structure."""
        with set_current_trace(self):
            results, structure = jax.tree.flatten(compute(*map(self._array, values, avals)))
            return [x if isinstance(x, _Array) else self._array(self._value(x), _aval(x)) for x in results], structure

    def stage_value(self, val: Any) -> _Array:
        """A constant as an array of the program."""
        return self._array(self._value(val), _aval(val))

    def process_primitive(self, primitive: Any, operands: Sequence[Any], params: dict[str, Any], /) -> Any:
        """Writes one operation, by JAX's rule for it."""
        avals = tuple(map(_aval, operands))
        if primitive in (lax.reshape_p, lax.squeeze_p) and (reshaped := self._reshaped(operands[0], **params)) is not None:
            return reshaped
        key = primitive, avals, jax.sharding.get_abstract_mesh(), *params.items()
        if (found := self.written.get(key)) is None:  # a lowering repeats most of its operations
            found, _ = primitive.abstract_eval(*avals, **params)
            found = self.written[key] = tuple(found) if primitive.multiple_results else (found,)
        self.context.primitive, self.context.avals_in, self.context.avals_out = primitive, avals, found
        values = _rule_of(primitive, self.platform)(self.context, *map(self._value, operands), **params)
        results = list(map(self._array, [values] if isinstance(values, ir.Value) else values, found))
        return results if primitive.multiple_results else results[0]

    def _reshaped(self, array: Any, dimensions: Any, new_sizes: Sequence[int] | None = None, **_: Any) -> _Array | None:
        """An array in another shape, which is written only if it is used in that shape; None where JAX's rule must write it."""
        aval = _aval(array)
        own = isinstance(array, _Array) and array.writer is self
        if not own or not aval.sharding.mesh.empty or (new_sizes is not None and dimensions):
            return None
        sizes = [n for i, n in enumerate(aval.shape) if i not in dimensions] if new_sizes is None else new_sizes
        return _Array(self, array.unshaped, type(aval)(tuple(sizes), aval.dtype, weak_type=aval.weak_type))

    def call(self, compute: Callable[..., Any], operands: Sequence[Any], name: str, key: Any = None, **attributes: str) -> Any:
        """Writes a call of a function, and the function, unless one of this key and such operands is written already."""
        values, avals = [self._value(x) for x in operands], tuple(map(_aval, operands))
        key = None if key is None else (key, avals, jax.sharding.get_abstract_mesh(), self.platform)
        if (function := self.written.get(key)) is None:
            function = self._function(compute, name, values, avals)
            if key is not None:
                self.written[key] = function
        symbol, types, found, structure = function
        made = func.CallOp(types, ir.FlatSymbolRefAttr.get(symbol), values)
        if attributes:
            texts: dict[str, Any] = {name: ir.StringAttr.get(text) for name, text in attributes.items()}
            made.operation.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get(texts)
        return jax.tree.unflatten(structure, list(map(self._array, made.results, found)))

    def loop(self, more: Callable[..., Any], body: Callable[..., Any], carry: Sequence[Any]) -> list[_Array]:
        """Writes a loop, `carry = body(*carry)` while `more(*carry)`: what the carry is in the end."""
        values, avals = [self._value(x) for x in carry], list(map(_aval, carry))
        types = [value.type for value in values]
        made = stablehlo.WhileOp(types, values)
        for region, compute in zip(made.regions, (more, body), strict=True):
            block = region.blocks.append(*types)
            with ir.InsertionPoint(block):
                results, _ = _Writer(self.context, self.platform).write(compute, block.arguments, avals)
                stablehlo.ReturnOp([x.value for x in results])
        return list(map(self._array, made.results, avals))

    def _function(self, compute: Callable[..., Any], name: str, values: Sequence[Any], avals: Sequence[Any]) -> tuple:
        """Writes a function: its symbol, and its results' types, abstract values and structure."""
        module, types = self.context.module_context, [value.type for value in values]
        function = func.FuncOp(name, (types, []), visibility="private", ip=module.ip)
        module.symbol_table.insert(function)
        try:
            with ir.InsertionPoint(function.add_entry_block()):
                results, structure = _Writer(self.context, self.platform).write(compute, function.arguments, avals)
                func.ReturnOp([x.value for x in results])
        except Exception:
            module.symbol_table.erase(function)  # half of a function would not be a program
            raise
        found = [x.value.type for x in results]
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(types, found))
        return function.sym_name.value, found, [x.aval for x in results], structure

    def _array(self, value: Any, aval: Any) -> _Array:
        return _Array(self, value[0] if isinstance(value, (tuple, list)) else value, aval)

    def _value(self, operand: Any) -> Any:
        """The value of an array of this program, or a constant's."""
        if isinstance(operand, _Array):
            if operand.writer is not self:
                raise TypeError("a function of the program uses an array of another that is not among its operands")
            return operand.value
        return mlir.ir_constant(np.asarray(operand, jax.typeof(operand).dtype))
