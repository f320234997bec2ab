"""Networks rewritten to compute channel-last, which is how XLA's CPU code computes convolutions best.

Transpositions are put where data enters a convolution and where something needs the old order; between them everything that can
goes along. Weights of convolutions are taken as (h, w, I/G, O), so that they need no transposition in each call.
"""

from collections import Counter
from collections.abc import Callable

from jaxgroupconv.mxnet.graph import Entry, Node, topological
from jaxgroupconv.mxnet.registry import OPERATORS
from jaxgroupconv.mxnet.symbol import Symbol


def rewrite(symbol: Symbol) -> tuple[Symbol, set[str]]:
    """The same network, computed channel-last.

    Args:
      symbol: the network.

    Returns:
      The new network, with the same inputs and outputs, and the names of the weights that it takes as (h, w, I/G, O).
    """
    nodes = topological(symbol.heads)
    readers = Counter(source for node in nodes for source, _ in node.inputs)
    # Where each entry of the old graph is in the new one, in either order, as far as it is needed.
    first: dict[Entry, Entry] = {}
    last: dict[Entry, Entry] = {}
    weights: set[str] = set()

    def as_first(entry: Entry) -> Entry:
        if entry not in first:
            first[entry] = _node("transpose", f"{entry[0].name}_first", {"axes": "(0, 3, 1, 2)"}, last[entry])
        return first[entry]

    def as_last(entry: Entry) -> Entry:
        if entry not in last:
            last[entry] = _node("transpose", f"{entry[0].name}_last", {"axes": "(0, 2, 3, 1)"}, first[entry])
        return last[entry]

    def source(node: Node, role: str, entry: Entry) -> Entry:
        """An input of a node that computes channel-last."""
        variable, _ = entry
        if role == "weight":
            own = variable.op is None and readers[variable] == 1 and (variable, 0) not in symbol.heads
            weights.update({variable.name} if own else ())
            # MXNet's channel-last weight is (O, h, w, I/G).
            return _node(
                "transpose", f"{variable.name}_last", {"axes": "(3, 0, 1, 2)" if own else "(0, 2, 3, 1)"}, as_first(entry)
            )
        if role in ("bias", "beta", "moving_mean", "moving_var") or (role == "gamma" and node.op is OPERATORS["BatchNorm"]):
            return as_first(entry)
        if role == "gamma":  # of a PReLU, which otherwise would look for the channels on axis 1
            return _node("Reshape", f"{variable.name}_last", {"shape": "(1, 1, 1, -1)"}, as_first(entry))
        return as_last(entry)

    for node in nodes:
        if node.op is None:
            first[node, 0] = (node, 0)
            continue
        rule = _RULES.get(node.op.name)
        changes = rule(node, [entry in last for entry in node.inputs]) if rule else None
        if changes is None:
            made = Node(node.op, node.name, node.attrs, tuple(map(as_first, node.inputs)))
            first |= zip(node.outputs, made.outputs, strict=True)
        else:
            roles = zip(node.op.input_names(node.parameters), node.inputs, strict=True)
            made = Node(node.op, node.name, node.attrs | changes, tuple(source(node, role, entry) for role, entry in roles))
            last |= zip(node.outputs, made.outputs, strict=True)
    return Symbol(tuple(map(as_first, symbol.heads)), symbol.np_shape), weights


def _node(op: str, name: str, attrs: dict[str, str], data: Entry) -> Entry:
    return Node(OPERATORS[op], name, attrs, (data,)), 0


# From a node, and which of its inputs are at hand channel-last, to the attributes with which it computes so; None where
# it shall stay as it is. Only convolutions bring data into the new order, so what is in it has four axes.
_Rule = Callable[[Node, list[bool]], dict[str, str] | None]


def _convolution(node: Node, at_hand: list[bool]) -> dict[str, str] | None:
    p = node.parameters
    return {"layout": "NHWC"} if len(p.kernel) == 2 and p.layout in (None, "NCHW") else None


def _follow(enough: Callable[[list[bool]], bool], changes: Callable[[Node], dict[str, str] | None]) -> _Rule:
    return lambda node, at_hand: changes(node) if enough(at_hand) else None


def _first_of(at_hand: list[bool]) -> bool:
    return at_hand[0]


def _nothing(node: Node) -> dict[str, str]:
    return {}


def _axis(key: str) -> Callable[[Node], dict[str, str] | None]:
    """The attribute `key` is an axis."""

    def changes(node: Node) -> dict[str, str] | None:
        axis = {1: 3, 2: 1, 3: 2}.get(getattr(node.parameters, key))
        return None if axis is None else {key: str(axis)}

    return changes


def _split(node: Node) -> dict[str, str] | None:
    return None if node.parameters.squeeze_axis else _axis("axis")(node)


_ELEMENT_BY_ELEMENT = (
    "Activation", "LeakyReLU", "clip", "relu", "sigmoid", "tanh", "_copy", "BlockGrad", "Cast",
    "_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar", "_div_scalar",
)  # fmt: skip
_EQUAL_SHAPES = ("elemwise_add", "elemwise_sub", "elemwise_mul", "elemwise_div", "add_n")
_BROADCAST = ("broadcast_add", "broadcast_sub", "broadcast_mul", "broadcast_div")

_RULES: dict[str, _Rule] = {
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Pooling": _follow(_first_of, lambda node: {"layout": "NHWC"}),
    "BatchNorm": _follow(_first_of, _axis("axis")),
    "SliceChannel": _follow(_first_of, _split),
    "slice_axis": _follow(_first_of, _axis("axis")),
    "Concat": _follow(any, _axis("dim")),
    "Dropout": _follow(_first_of, lambda node: None if node.parameters.axes else {}),
    **dict.fromkeys(_ELEMENT_BY_ELEMENT, _follow(_first_of, _nothing)),
    **dict.fromkeys(_EQUAL_SHAPES, _follow(any, _nothing)),
    # The other operand may have fewer axes, unless it comes from a convolution too.
    **dict.fromkeys(_BROADCAST, _follow(all, _nothing)),
}
