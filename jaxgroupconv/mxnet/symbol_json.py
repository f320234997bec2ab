"""Symbols as JSON: every generation of MXNet's files is read, the current one is written, byte for byte as MXNet does.

Files are not trusted: whatever they claim is checked before it is used, and complaints say which node they are about.
"""

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxgroupconv.mxnet.attributes import USER_KEYS, is_user_attribute
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.graph import Entry, Node, topological
from jaxgroupconv.mxnet.registry import OPERATORS
from jaxgroupconv.mxnet.symbol import Symbol

VERSION = 10901  # what we write: MXNet 1.9.1, its last release


def loads(text: str) -> Symbol:
    """The symbol in a JSON text.

    Args:
      text: the content of a `-symbol.json` file, of any version of MXNet.

    Raises:
      ValueError: for what is no symbol; says at which node.
      MXNetError: a ValueError too; for operators that are not supported, all of them at once, and for wrong attributes.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A symbol file must hold JSON, but: {error}") from error
    top = _typed(document, dict, "the file")
    rows = _typed(top.get("nodes"), list, '"nodes"')
    rows = [_typed(row, dict, f"nodes[{i}]") for i, row in enumerate(rows)]
    version, np_shape = _header(_typed(top.get("attrs", {}), dict, '"attrs"'))
    _refuse_unknown(rows)
    nodes: list[Node] = []
    for i, row in enumerate(rows):
        nodes.append(_node(row, nodes, version, f"nodes[{i}] ({row.get('name')!r})"))
    for i in _typed(top.get("arg_nodes"), list, '"arg_nodes"'):
        if nodes[_index(i, len(nodes), '"arg_nodes"')].op is not None:
            raise ValueError(f'"arg_nodes" must list variables, but nodes[{i}] is an operator.')
    heads = _typed(top.get("heads"), list, '"heads"')
    if not heads:
        raise ValueError('"heads" must list at least one output, but got none.')
    return Symbol(tuple(_entry(head, nodes, '"heads"') for head in heads), np_shape)


def dumps(symbol: Symbol) -> str:
    """The JSON text of a symbol, as MXNet 1.9.1 writes it."""
    nodes = topological(symbol.heads)
    ids = {node: i for i, node in enumerate(nodes)}
    versions: Counter[Node] = Counter()  # how often each state was changed so far
    rows = []
    widths = [0]
    for node in nodes:
        versions.update(state for state, _ in node.auxiliary)
        attrs = {key: node.attrs[key] for key in sorted(node.attrs)}
        rows.append(
            {"op": node.op.name if node.op else "null", "name": node.name}
            | ({"attrs": attrs} if attrs else {})
            | {"inputs": [[ids[source], i, versions[source]] for source, i in node.inputs]}
        )
        hidden = node.op.hidden(node.parameters) if node.op else 0
        widths.append(widths[-1] + len(node.outputs) + hidden)
    document = {
        "nodes": rows,
        "arg_nodes": [i for i, node in enumerate(nodes) if node.op is None],
        "node_row_ptr": widths,
        "heads": [[ids[node], i, 0] for node, i in symbol.heads],
        "attrs": ({"is_np_shape": ["int", 1]} if symbol.np_shape else {}) | {"mxnet_version": ["int", VERSION]},
    }
    return _write(document, 0)


def _header(attrs: dict[str, Any]) -> tuple[int, bool]:
    """The version that wrote the file, 800 where none is given, and whether shapes are NumPy's."""

    def number(key: str, default: int) -> int:
        value = attrs.get(key, ["int", default])
        if not (isinstance(value, list) and len(value) == 2 and type(value[1]) is int):
            raise ValueError(f'"{key}" must be ["int", <number>], but got {value!r}.')
        return value[1]

    version = number("mxnet_version", 800)
    if version > VERSION:
        warnings.warn(f"this symbol was saved by a newer MXNet, {version}; it is read as one of {VERSION}", stacklevel=3)
    return version, bool(number("is_np_shape", 0))


def _refuse_unknown(rows: list[dict[str, Any]]) -> None:
    unknown: dict[str, list[str]] = {}
    for i, row in enumerate(rows):
        op = _typed(row.get("op"), str, f"nodes[{i}] ({row.get('name')!r}): op")
        if op != "null" and op not in OPERATORS:
            unknown.setdefault(op, []).append(str(row.get("name")))
    if unknown:
        listed = "; ".join(f"{op} (nodes {', '.join(names)})" for op, names in unknown.items())
        raise MXNetError(f"Operators that are not supported: {listed}")


def _node(row: dict[str, Any], nodes: list[Node], version: int, where: str) -> Node:
    name = _typed(row.get("name"), str, f"{where}: name")
    inputs = _typed(row.get("inputs"), list, f"{where}: inputs")
    # Up to 0.8 the operator's parameters are in `param` and the user's attributes in `attr`; later files keep all in one.
    fields = {key: _typed(row.get(key, {}), dict, f"{where}: {key}") for key in ("param", "attr", "attrs")}
    attrs = {key: _typed(text, str, f"{where}: attribute {key}") for field in fields.values() for key, text in field.items()}
    sources = tuple(_entry(entry, nodes, where) for entry in inputs)
    if row["op"] == "null":
        if sources:
            raise ValueError(f"{where}: a variable must have no inputs, but got {len(sources)}.")
        return Node(None, name, attrs)
    op = OPERATORS[row["op"]]
    if version < VERSION:
        attrs = _modernised(attrs, name, sources, set(fields["attr"]) if row.get("param") is not None else set(), op.attributes)
    node = Node(op, name, attrs, sources)
    try:
        p = node.parameters
    except MXNetError as error:
        raise MXNetError(f"{where}: {error}") from error
    if op.variadic and p.num_args > len(sources):  # before a name is made for each
        raise MXNetError(f"{where}: Operator {op.name} expects {p.num_args} inputs, but got {len(sources)} instead.")
    names = op.input_names(p)
    if version < 900:
        for missing in names[len(sources) :]:
            state = {"__init__": op.initial[missing]} if missing in op.initial else {}
            sources += ((Node(None, f"{name}_{missing}", attrs | state), 0),)
        node.inputs = sources
    if len(sources) != len(names):
        raise MXNetError(f"{where}: Operator {op.name} expects {len(names)} inputs, but got {len(sources)} instead.")
    return node


def _modernised(
    attrs: dict[str, str], name: str, sources: tuple[Entry, ...], users: set[str], known: Mapping[str, Any]
) -> dict[str, str]:
    """Attributes of older files in today's form: the user's get underscores, or move to the variable that they are for."""
    modern = {}
    for key, text in attrs.items():
        suffix = next((user for user in USER_KEYS if key.endswith(f"_{user}")), None)
        if key in known or is_user_attribute(key):
            modern[key] = text
        elif key in USER_KEYS:
            modern[f"__{key}__"] = text
        elif suffix:
            variable = f"{name}_{key.removesuffix(f'_{suffix}')}"
            for source, _ in sources:
                if source.op is None and source.name == variable:
                    source.attrs[f"__{suffix}__"] = text
        else:
            modern[f"__{key}__" if key in users else key] = text
    return modern


def _entry(value: Any, nodes: list[Node], where: str) -> Entry:
    """An entry `[node, output, version]`; only earlier nodes are there to be referred to, so that no cycle can arise."""
    if not (isinstance(value, list) and len(value) in (2, 3)):
        raise ValueError(f"{where}: an entry must be [node, output] or [node, output, version], but got {value!r}.")
    node = nodes[_index(value[0], len(nodes), where)]
    return node, _index(value[1], len(node.outputs), f"{where}: output of {node.name!r}")


def _index(value: Any, count: int, where: str) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{where}: an index must be in 0..{count - 1}, the nodes before this one, but got {value!r}.")
    return value


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be of JSON's kind for {kind.__name__}, but got {str(value)[:80]!r}.")
    return value


def _write(value: Any, depth: int) -> str:
    """JSON in MXNet's layout: objects of two entries and arrays of eleven are the first to go over several lines."""
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        items = [f'"{key}": {_write(entry, depth + 1)}' for key, entry in value.items()]
        left, right, several = "{", "}", len(items) > 1
    else:
        items = [_write(entry, depth + 1) for entry in value]
        left, right, several = "[", "]", len(items) > 10 or any(isinstance(entry, dict) for entry in value)
    if not several:
        return left + ", ".join(items) + right
    indent = "\n" + "  " * (depth + 1)
    return left + indent + f", {indent}".join(items) + indent[:-2] + right


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
