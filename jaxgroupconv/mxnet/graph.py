"""The graph that a symbol stands for: nodes, and entries, which are outputs of nodes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgroupconv.mxnet.registry import Operator


@dataclass(eq=False)
class Node:
    """A variable or an operation.

    Attributes:
      op: the operator, None for a variable.
      name: the node's name.
      attrs: its attributes, as strings.
      inputs: the entries that it reads.
    """

    op: Operator | None
    name: str
    attrs: dict[str, str] = field(default_factory=dict)
    inputs: tuple["Entry", ...] = ()

    @functools.cached_property
    def parameters(self) -> Any:
        """The operator's parameters."""
        assert self.op is not None
        return self.op.parse(self.attrs)

    # Cached, because every entry asks for them, and an operator may have thousands.
    @functools.cached_property
    def outputs(self) -> tuple["Entry", ...]:
        """The entries of its outputs."""
        return tuple((self, i) for i in range(len(self.output_names)))

    @functools.cached_property
    def output_names(self) -> list[str]:
        """The names of its outputs."""
        if self.op is None:
            return [self.name]
        return [f"{self.name}_{suffix}" for suffix in self.op.outputs(self.parameters)]

    @property
    def auxiliary(self) -> tuple["Entry", ...]:
        """Those of the inputs that are states."""
        op = self.op
        if op is None or not op.auxiliary:
            return ()
        return tuple(e for e, name in zip(self.inputs, op.input_names(self.parameters), strict=True) if name in op.auxiliary)


Entry = tuple[Node, int]


def topological(heads: tuple[Entry, ...]) -> list[Node]:
    """All nodes that the heads need, each after its inputs: depth first, MXNet's order of listing.

    Walked with a stack of its own: networks are deeper than Python's.
    """
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(node, False) for node, _ in reversed(heads)]
    while stack:
        node, inputs_done = stack.pop()
        if node in done:
            continue
        if inputs_done:
            done.add(node)
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((source, False) for source, _ in reversed(node.inputs) if source not in done)
    return order


def substituted(heads: tuple[Entry, ...], inputs: Mapping[str, Entry], name: str | None = None) -> list[Entry]:
    """The heads of a copy of the graph, with entries in the place of variables, and another name for the first head's node."""
    copies: dict[Entry, Entry] = {}
    for node in topological(heads):
        if node.op is None:
            made = (inputs.get(node.name, (node, 0)),)
        else:
            rename = name if name and node is heads[0][0] else node.name
            made = Node(node.op, rename, dict(node.attrs), tuple(copies[entry] for entry in node.inputs)).outputs
        copies |= zip(node.outputs, made, strict=True)
    return [copies[head] for head in heads]
