"""Shape and dtype inference over a symbol's graph, forwards and backwards."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.graph import Entry, Node, topological
from jaxgroupconv.mxnet.registry import Operator
from jaxgroupconv.mxnet.shapes import Shape


def infer_shapes(heads: tuple[Entry, ...], given: Mapping[Node, Shape]) -> dict[Entry, Shape]:
    """The shape of every entry of the graph, as far as it follows from the given ones.

    Args:
      heads: the graph's outputs.
      given: shapes of variables; -1 is an unknown size.

    Returns:
      The shape by entry.

    Raises:
      MXNetError: where shapes contradict one another, with the operator's name.
    """

    def rule(node: Node, ins: list[Shape], outs: list[Shape]) -> tuple[list[Shape], list[Shape]]:
        op = node.op
        assert op is not None
        ins, outs = op.infer_shapes(node.parameters, ins, outs)
        computed = _output_shapes(op, node.parameters, tuple(ins))
        return ins, [shapes.merge(old, new) for old, new in zip(outs, computed, strict=True)]

    return _sweep(heads, given, rule)


def infer_types(heads: tuple[Entry, ...], given: Mapping[Node, Any]) -> dict[Entry, Any]:
    """The dtype of every entry of the graph, None where it does not follow; otherwise like `infer_shapes`."""
    return _sweep(heads, given, lambda node, ins, outs: node.op.infer_types(node.parameters, ins, outs))


def _sweep(heads: tuple[Entry, ...], given: Mapping[Node, Any], rule: Callable) -> dict[Entry, Any]:
    """Applies a rule to every node, in both directions in turn, until nothing changes."""
    nodes = topological(heads)
    known: dict[Entry, Any] = {}
    for node in nodes:
        known |= dict.fromkeys(node.outputs, given.get(node))
    operations = [node for node in nodes if node.op is not None]
    seen: dict[Node, tuple] = {}  # what each node was last asked about; the same question has the same answer
    changed = True
    while changed:
        changed = False
        for node in operations:
            ins = [known[entry] for entry in node.inputs]
            outs = [known[entry] for entry in node.outputs]
            if seen.get(node) == (ins, outs):
                continue
            try:
                new_ins, new_outs = rule(node, ins, outs)
            except (TypeError, ValueError) as error:
                text = str(error).replace("in node  at", f"in node {node.name} at")  # the one message that has the name inside
                raise MXNetError(f"Error in operator {node.name}: {text}") from error
            known |= zip((*node.inputs, *node.outputs), [*new_ins, *new_outs], strict=True)
            changed = changed or (ins, outs) != (new_ins, new_outs)
            seen[node] = (new_ins, new_outs)
        operations.reverse()
    return known


@functools.lru_cache(maxsize=8192)
def _output_shapes(op: Operator, p: Any, ins: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The outputs' shapes, by tracing the function that computes them.

    Where input sizes are unknown, it is traced twice with different sizes in their place: an output size that comes out the
    same both times does not depend on them. The sizes differ by axis too, so that no two unknown ones cancel, are large, so
    that any window fits, and have many divisors, so that they can be split.
    """
    unknown = (None,) * len(op.outputs(p))
    known = [shape for shape in ins if shape is not None]
    if len(known) < len(ins):
        return unknown
    if all(map(shapes.is_known, known)):
        return _trace(op, p, known)
    try:
        first, second = (_trace(op, p, _filled(op, p, known, i)) for i in range(2))
    except (TypeError, ValueError):
        return unknown  # the stand-ins did not fit; a real mistake shows when the sizes are known
    return tuple(
        tuple(a if a == b else -1 for a, b in zip(x, y, strict=True)) if len(x) == len(y) else None
        for x, y in zip(first, second, strict=True)
    )


def _filled(op: Operator, p: Any, ins: list[tuple[int, ...]], i: int) -> list[tuple[int, ...]]:
    """The input shapes with stand-ins for unknown sizes; what follows from a stand-in takes part (Convolution's weight)."""
    filled: list[Any] = list(ins)
    for k in range(len(filled)):
        filled[k] = tuple(_stand_in(i, axis) if size == -1 else size for axis, size in enumerate(filled[k]))
        filled, _ = op.infer_shapes(p, filled, [None] * len(op.outputs(p)))
    return filled


def _stand_in(i: int, axis: int) -> int:
    return 5040 * ((11, 13, 17, 19, 23, 29), (31, 37, 41, 43, 47, 53))[i][axis % 6]


def _trace(op: Operator, p: Any, ins: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ins]
    outputs, _ = jax.eval_shape(lambda *xs: op(p, xs, rng=jax.random.key(0)), *arrays)
    return tuple(out.shape for out in outputs)
