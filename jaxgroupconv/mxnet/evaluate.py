"""Computing a symbol's graph with JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.graph import Entry, Node, topological


def evaluate(
    heads: Sequence[Entry],
    args: Mapping[str, Any],
    aux: Mapping[str, Any],
    *,
    train: bool = False,
    rng: jax.Array | None = None,
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """Computes outputs of a graph; `Symbol.apply` documents it."""
    nodes = topological(tuple(heads))
    states = {node for operation in nodes for node, _ in operation.auxiliary}
    unread = set() if train else _labels(nodes)
    values: dict[Entry, Any] = {}
    missing = []
    for node in nodes:
        if node.op is None:
            given = aux if node in states else args
            if node.name in given:
                values[node, 0] = jnp.asarray(given[node.name])
            elif node in unread:
                values[node, 0] = None
            else:
                missing.append(node.name)
    if missing:
        raise ValueError(f"`args` and `aux` must hold every input of the network, but {', '.join(missing)} are missing.")
    new_aux = {node.name: values[node, 0] for node in nodes if node in states}
    for i, node in enumerate(nodes):
        if node.op is None:
            continue
        key = jax.random.fold_in(rng, i) if rng is not None and node.op.stateful else None
        try:
            outputs, moved = node.op(node.parameters, [values[entry] for entry in node.inputs], train=train, rng=key)
        except MXNetError as error:
            raise MXNetError(f"Error in operator {node.name}: {error}") from error
        values |= zip(node.outputs, outputs, strict=True)
        new_aux |= {state.name: value for (state, _), value in zip(node.auxiliary, moved, strict=True)}
    return [values[head] for head in heads], new_aux


def _labels(nodes: list[Node]) -> set[Node]:
    """The variables that nothing but labels of losses are: nothing reads them at inference."""
    labels, others = set(), set()
    for node in nodes:
        if node.op is not None:
            names = node.op.input_names(node.parameters)
            for (source, _), name in zip(node.inputs, names, strict=True):
                (labels if name in node.op.labels else others).add(source)
    return labels - others
