"""Networks for the eye: a table of layers, and a drawing."""

import math
from collections.abc import Mapping, Sequence

from jaxgroupconv.mxnet.graph import Node, topological
from jaxgroupconv.mxnet.symbol import Symbol

# Where a variable of these names goes into an operator, it is a parameter of that layer.
_PARAMETERS = ("weight", "bias", "gamma", "beta")


def print_summary(
    symbol: Symbol,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    line_length: int = 120,
    positions: Sequence[float] = (0.44, 0.64, 0.74, 1.0),
) -> None:
    """Prints layers, output shapes without the batch, parameter counts and what each layer reads.

    The table is MXNet's, but for the counts: MXNet counts convolutions, dense layers and BatchNorm, here PReLU, Deconvolution
    and every other parameter counts too. Moving averages do not.

    Args:
      symbol: the network.
      shape: the shapes of its inputs by name; without them there are no shapes and no counts.
      line_length: the width of the table.
      positions: where its columns end, as shares of the width.
    """
    nodes = topological(symbol.heads)
    shapes = _shapes(symbol, shape)
    columns = [int(line_length * p) for p in positions]
    counted: set[Node] = set()

    def row(*cells: object) -> None:
        line = ""
        for cell, column in zip(cells, columns, strict=True):
            line = (line + str(cell))[:column].ljust(column)
        print(line)

    print("_" * line_length)
    row("Layer (type)", "Output Shape", "Param #", "Previous Layer")
    print("=" * line_length)
    total = 0
    for i, node in enumerate(layers := [node for node in nodes if node.op or node in _inputs(nodes, shape)]):
        mine = [source for source, _ in node.inputs if source.op is None and source not in layers and source not in counted]
        counted.update(mine)
        states = {source for source, _ in node.auxiliary} | _labels(node)
        count = sum(math.prod(shapes.get(source, (0,))) for source in mine if source not in states)
        total += count
        previous = [source.name for source, _ in node.inputs if source in layers] or [""]
        out = "x".join(map(str, shapes.get(node, ())[1:]))
        row(f"{node.name}({node.op.name if node.op else 'null'})", out, count, previous[0])
        for name in previous[1:]:
            row("", "", "", name)
        print("=" * line_length if i == len(layers) - 1 else "_" * line_length)
    print(f"Total params: {total}")
    print("_" * line_length)


def plot_network(
    symbol: Symbol,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    *,
    hide_weights: bool = True,
    form: str = "mermaid",
) -> str:
    """Draws the graph as text.

    Args:
      symbol: the network.
      shape: the shapes of its inputs by name, to be written at the edges.
      hide_weights: whether to leave out parameters.
      form: "mermaid", which GitHub and many editors show, or "dot", Graphviz's language.

    Returns:
      The drawing in that language.

    Raises:
      ValueError: for another form.
    """
    if form not in ("mermaid", "dot"):
        raise ValueError(f"`form` must be 'mermaid' or 'dot', but got {form!r}.")
    nodes = topological(symbol.heads)
    drawn = [node for node in nodes if node.op or not hide_weights or node in _inputs(nodes, shape)]
    ids = {node: f"n{i}" for i, node in enumerate(drawn)}
    shapes = _shapes(symbol, shape)
    edges = [(source, node) for node in drawn for source, _ in node.inputs if source in ids]
    label = {node: "\\n".join(_label(node)) if form == "dot" else "<br/>".join(_label(node)) for node in drawn}
    size = {node: "x".join(map(str, found[1:])) for node, found in shapes.items()}
    if form == "dot":
        lines = [f'  {ids[node]} [label="{label[node]}", shape={"box" if node.op else "oval"}];' for node in drawn]
        lines += [f'  {ids[source]} -> {ids[node]} [label="{size.get(source, "")}"];' for source, node in edges]
        return "digraph network {\n" + "\n".join(lines) + "\n}\n"
    lines = [f'  {ids[node]}["{label[node]}"]' if node.op else f'  {ids[node]}(["{label[node]}"])' for node in drawn]
    lines += [f"  {ids[source]} -->{f'|{size[source]}|' if size.get(source) else ''} {ids[node]}" for source, node in edges]
    return "flowchart TD\n" + "\n".join(lines) + "\n"


def _shapes(symbol: Symbol, shape: Mapping[str, tuple[int, ...]] | None) -> dict[Node, tuple[int, ...]]:
    """The shape of every node's first output; nothing if no shapes are given."""
    if shape is None:
        return {}
    internals = symbol.get_internals()
    _, out, _ = internals.infer_shape(**shape)
    return {node: s for (node, i), s in zip(internals.heads, out or (), strict=out is not None) if i == 0}


def _inputs(nodes: list[Node], shape: Mapping[str, tuple[int, ...]] | None) -> set[Node]:
    """The variables that are data: those whose shapes are given, or, without any, those that are no layer's parameters."""
    variables = {node for node in nodes if node.op is None}
    if shape is not None:
        return {node for node in variables if node.name in shape}
    owned = set()
    for node in nodes:
        if node.op:
            names = zip(node.inputs, node.op.input_names(node.parameters), strict=True)
            owned |= {source for (source, _), name in names if name in (*_PARAMETERS, *node.op.auxiliary, *node.op.labels)}
    return variables - owned


def _labels(node: Node) -> set[Node]:
    if not node.op or not node.op.labels:
        return set()
    names = node.op.input_names(node.parameters)
    return {source for (source, _), name in zip(node.inputs, names, strict=True) if name in node.op.labels}


def _label(node: Node) -> list[str]:
    """A node's name, its operator, and what one looks for in convolutions and pooling."""
    lines = [node.name]
    if node.op:
        keys = ("kernel", "stride", "num_filter", "num_group", "act_type")
        lines += [node.op.name, " ".join(f"{key}={node.attrs[key]}" for key in keys if key in node.attrs)]
    return [line.replace('"', "'").replace("\n", " ") for line in lines if line]
