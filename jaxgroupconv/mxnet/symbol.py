"""`Symbol`: outputs of a graph of operators, with everything that can be asked of them."""

import numbers
import operator
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgroupconv.mxnet import attributes, dtypes, infer
from jaxgroupconv.mxnet.attributes import USER_KEYS, to_string
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.evaluate import evaluate
from jaxgroupconv.mxnet.graph import Entry, Node, substituted, topological
from jaxgroupconv.mxnet.registry import OPERATORS, Operator
from jaxgroupconv.mxnet.shapes import Shape, is_known


def _arithmetic(elementwise: str, scalar: str) -> Callable[["Symbol", Any], "Symbol"]:
    def method(self: "Symbol", other: Any) -> "Symbol":
        if isinstance(other, Symbol) and elementwise:
            return create(OPERATORS[elementwise], elementwise, {"lhs": self, "rhs": other}, {})
        if isinstance(other, numbers.Number):
            return create(OPERATORS[scalar], scalar, {"data": self}, {"scalar": to_string(other)})
        return NotImplemented

    return method


@dataclass(frozen=True, eq=False)
class Symbol:
    """Outputs of a graph of operators.

    Attributes:
      heads: the outputs, as entries of the graph.
      np_shape: shapes are NumPy's: 0 is a size and -1 the unknown one. Otherwise, as in most files, 0 is unknown too.
    """

    heads: tuple[Entry, ...]
    np_shape: bool = False

    @property
    def name(self) -> str | None:
        """The node's name; None for the outputs of several."""
        nodes = {node for node, _ in self.heads}
        return nodes.pop().name if len(nodes) == 1 else None

    def list_arguments(self) -> list[str]:
        """The names of the inputs that are not auxiliary states, in the order of listing; duplicates are kept."""
        return [node.name for node in self.variables(auxiliary=False)]

    def list_auxiliary_states(self) -> list[str]:
        """The names of the auxiliary states: BatchNorm's moving averages."""
        return [node.name for node in self.variables(auxiliary=True)]

    def list_inputs(self) -> list[str]:
        """The names of all inputs, auxiliary states included."""
        return [node.name for node in topological(self.heads) if node.op is None]

    def list_outputs(self) -> list[str]:
        """The names of the outputs."""
        return [node.output_names[i] for node, i in self.heads]

    def variables(self, auxiliary: bool) -> list[Node]:
        """The nodes behind `list_arguments` or `list_auxiliary_states`."""
        nodes = topological(self.heads)
        states = {node for operation in nodes for node, _ in operation.auxiliary}
        return [node for node in nodes if node.op is None and (node in states) == auxiliary]

    def get_internals(self) -> "Symbol":
        """A symbol whose outputs are all outputs inside this one, variables included."""
        return self._with(entry for node in topological(self.heads) for entry in node.outputs)

    def get_children(self) -> "Symbol | None":
        """The inputs of the outputs' nodes; None for variables."""
        children = tuple(entry for node in dict.fromkeys(node for node, _ in self.heads) for entry in node.inputs)
        return self._with(children) if children else None

    def __getitem__(self, index: int | str | slice) -> "Symbol":
        """One output, by its number or its name, or several by a slice."""
        if isinstance(index, str):
            found = [i for i, name in enumerate(self.list_outputs()) if name == index]
            if not found:
                raise ValueError(f'Cannot find output that matches name "{index}"')
            if len(found) > 1:
                raise ValueError(f'There are multiple outputs with name "{index}"')
            index = found[0]
        if isinstance(index, slice):
            return self._with(self.heads[index])
        if index < 0:
            raise MXNetError("Symbol only accept nonnegative index")
        return self._with((self.heads[index],))

    def __iter__(self) -> Iterator["Symbol"]:
        return (self._with((head,)) for head in self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    # The arithmetic operators build nodes of their own, under the names MXNet gives them: _plus0, _mulscalar0.
    __add__, __radd__ = _arithmetic("_Plus", "_PlusScalar"), _arithmetic("_Plus", "_PlusScalar")
    __sub__, __rsub__ = _arithmetic("_Minus", "_MinusScalar"), _arithmetic("_Minus", "_RMinusScalar")
    __mul__, __rmul__ = _arithmetic("_Mul", "_MulScalar"), _arithmetic("_Mul", "_MulScalar")
    __truediv__, __rtruediv__ = _arithmetic("_Div", "_DivScalar"), _arithmetic("_Div", "_RDivScalar")
    __pow__ = _arithmetic("", "_PowerScalar")

    def __neg__(self) -> "Symbol":
        return self * -1.0

    def __repr__(self) -> str:
        name = self.name or "group [" + ", ".join(node.name for node, _ in self.heads) + "]"
        return f"<Symbol {name}>"

    def __call__(self, *args: "Symbol", name: str | None = None, **kwargs: "Symbol") -> "Symbol":
        """The same network with variables replaced.

        Args:
          *args: symbols in the order of `list_arguments`, as MXNet documents it; 1.9.1 itself takes keywords only.
          name: a new name for the last node.
          **kwargs: symbols by name instead: `net(data=other)` puts `other` where the variable `data` was.
        """
        if args and kwargs:
            raise TypeError("compose only accept input Symbols either as positional or keyword arguments, not both")
        if len(args) > len(names := self.list_arguments()):
            raise TypeError(
                f"compose takes at most {len(names)} positional arguments ({', '.join(names)}), but got {len(args)}"
            )
        inputs = dict(zip(names, args, strict=False)) | kwargs
        if unknown := inputs.keys() - set(self.list_inputs()):
            raise MXNetError(f"Symbol.ComposeKeyword argument name {unknown.pop()} not found.")
        return self._with(substituted(self.heads, {key: single(symbol, key) for key, symbol in inputs.items()}, name))

    def attr(self, key: str) -> str | None:
        """One attribute of the symbol's node."""
        return self.list_attr().get(key)

    def list_attr(self) -> dict[str, str]:
        """The attributes of the symbol's node; of no node if there are several."""
        return dict(self.heads[0][0].attrs) if self.name else {}

    def attr_dict(self) -> dict[str, dict[str, str]]:
        """The attributes of all nodes that have any, by name."""
        return {node.name: dict(node.attrs) for node in topological(self.heads) if node.attrs}

    def infer_shape(self, *args: tuple[int, ...] | None, **kwargs: tuple[int, ...]) -> tuple[list | None, ...]:
        """The shapes of all arguments, outputs and auxiliary states, from those of a few arguments.

        Args:
          *args: shapes in the order of `list_arguments`, None for an unknown one.
          **kwargs: shapes by name instead; a size of 0 (or -1) is unknown, `()` is a shape of unknown rank.

        Returns:
          Three lists, in the order of `list_arguments`, `list_outputs` and `list_auxiliary_states`; `(None, None, None)` with a
          warning, if any shape in the graph remains unknown.

        Raises:
          MXNetError: where shapes contradict one another, or for an unknown name.

        Example:
          >>> sym.Convolution(sym.Variable("data"), kernel=(3, 3), num_filter=24, num_group=3).infer_shape(data=(1, 6, 9, 9))
          ([(1, 6, 9, 9), (24, 2, 3, 3), (24,)], [(1, 24, 7, 7)], [])
        """
        known = self._infer_shapes(args, kwargs)
        if all(map(is_known, known.values())):
            return self._lists(known)
        self._warn("shape", " (0s in shape means unknown dimensions).", self._lists(known)[0], lambda s: not s or 0 in s)
        return None, None, None

    def infer_shape_partial(self, *args: tuple[int, ...] | None, **kwargs: tuple[int, ...]) -> tuple[list, ...]:
        """Like `infer_shape`, but gives what is known and leaves 0 for unknown sizes and `()` for unknown shapes."""
        return self._lists(self._infer_shapes(args, kwargs))

    def infer_type(self, *args: Any, **kwargs: Any) -> tuple[list | None, ...]:
        """The dtypes of all arguments, outputs and auxiliary states, otherwise like `infer_shape`."""
        variables = [node for node in topological(self.heads) if node.op is None]
        stored = {node: dtypes.read(node.attrs["__dtype__"]) for node in variables if "__dtype__" in node.attrs}
        given = stored | {node: np.dtype(value).type for node, value in self._match(args, kwargs).items()}
        known = infer.infer_types(self.heads, given)
        lists = self._entries(known)
        if None not in known.values():
            return lists
        self._warn("type", ".", lists[0], lambda dtype: dtype is None)
        return None, None, None

    def apply(
        self,
        args: Mapping[str, Any],
        aux: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Computes the network. A pure function, to be put under jit, grad, vmap.

        Args:
          args: the arguments by name, JAX or NumPy arrays; entries that the network does not use are ignored, and labels may
            be left out at inference.
          aux: the auxiliary states by name.
          train: whether this is a training step: BatchNorm normalizes by the batch, Dropout drops.
          rng: a key, needed in training if the network draws random numbers.

        Returns:
          The list of outputs, and the auxiliary states by name: moved in training, as given otherwise.

        Raises:
          MXNetError: for shapes or dtypes that do not fit, with the node's name.
          ValueError: for missing inputs, all of them at once, or a missing key.

        Example:
          >>> (out,), _ = sym.relu(sym.Variable("x")).apply({"x": jnp.array([-1.0, 2.0])})
        """
        return evaluate(self.heads, args, aux or {}, train=train, rng=rng)

    def tojson(self) -> str:
        """The symbol as JSON, as MXNet 1.9.1 writes it."""
        from jaxgroupconv.mxnet import symbol_json  # which builds symbols itself

        return symbol_json.dumps(self)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `tojson()` to a file."""
        Path(path).write_text(self.tojson(), encoding="utf-8")

    def _infer_shapes(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[Entry, Shape]:
        stored = {
            node: node.attrs["__shape__"] for node in topological(self.heads) if node.op is None and "__shape__" in node.attrs
        }
        given = {node: attributes.parse_shape(text) for node, text in stored.items()}
        for node, shape in self._match(args, kwargs).items():
            if not isinstance(shape, tuple):
                raise TypeError(f"Arguments need to be shapes (tuple), but '{node.name}' is {type(shape)}.")
            given[node] = shape
        return infer.infer_shapes(self.heads, {node: self._read(shape) for node, shape in given.items()})

    def _match(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[Node, Any]:
        """What a call says of each variable."""
        if args and kwargs:
            raise ValueError("Can only specify known argument shapes either by positional or kwargs way.")
        variables = self.variables(auxiliary=False)
        if args:
            if len(args) > len(variables):
                raise ValueError(f"`args` must be at most {len(variables)}, the number of arguments, but got {len(args)}.")
            return {node: value for node, value in zip(variables, args, strict=False) if value is not None}
        variables += self.variables(auxiliary=True)
        for name in kwargs:
            if name not in (names := [node.name for node in variables]):
                raise MXNetError(f"InferShapeKeyword argument name {name} not found.\nCandidate arguments: {', '.join(names)}")
        return {node: kwargs[node.name] for node in variables if kwargs.get(node.name) is not None}

    def _read(self, shape: tuple) -> Shape:
        """A shape as users write it, in this package's form."""
        unknown = (None, -1) if self.np_shape else (None, -1, 0)
        sizes = tuple(-1 if size in unknown else operator.index(size) for size in shape)
        if any(size < -1 for size in sizes):
            raise MXNetError(f"shape dim size must be >= -1, while received {min(sizes)}")
        return sizes if sizes or self.np_shape else None

    def _lists(self, known: Mapping[Entry, Shape]) -> tuple[list, ...]:
        """The three lists, with shapes as users read them."""
        unknown = -1 if self.np_shape else 0
        written = {
            entry: (None if self.np_shape else ()) if shape is None else tuple(unknown if n == -1 else n for n in shape)
            for entry, shape in known.items()
        }
        return self._entries(written)

    def _entries(self, known: Mapping[Entry, Any]) -> tuple[list, ...]:
        arguments, states = ([known[node, 0] for node in self.variables(auxiliary=flag)] for flag in (False, True))
        return arguments, [known[head] for head in self.heads], states

    def _warn(self, noun: str, hint: str, values: list, unknown: Callable[[Any], bool]) -> None:
        lines = [f"\t{name}: {value}" for name, value in zip(self.list_arguments(), values, strict=True) if unknown(value)]
        lines = lines[:10] + ["\t..."] * (len(lines) > 10)
        text = f"Cannot decide {noun} for the following arguments{hint} Consider providing them as input:\n" + "\n".join(lines)
        warnings.warn(text, stacklevel=3)

    def _with(self, heads: Iterable[Entry]) -> "Symbol":
        return Symbol(tuple(heads), self.np_shape)


def single(symbol: Any, argument: str) -> Entry:
    """The one output of a symbol that is used as an input."""
    if not isinstance(symbol, Symbol):
        raise TypeError(f"Argument {argument} must be Symbol instances, but got {symbol!r}")
    if len(symbol.heads) != 1:
        raise MXNetError(f"Keyword Argument {argument} is a tuple, single value is required")
    return symbol.heads[0]


def create(op: Operator, called: str, inputs: Mapping[str, Any], attrs: Mapping[str, str], name: str | None = None) -> Symbol:
    """A new node, with variables for the inputs that are not given.

    Args:
      op: the operator.
      called: the name it was called by, from which a node without a name gets one.
      inputs: symbols by the names of the operator's inputs.
      attrs: attribute strings; those of the user get underscores.
      name: the node's name.
    """
    attrs = {f"__{key}__" if key in USER_KEYS else key: text for key, text in attrs.items()}
    if name is None:
        hint = called.lower()
        name = f"{hint}{_counters[hint]}"
        _counters[hint] += 1
    names = op.input_names(op.parse(attrs))
    if op.variadic:  # counted, not named
        inputs = dict(zip(names, inputs.values(), strict=False))
    for key in inputs:
        if key not in names:
            raise MXNetError(f"Symbol.ComposeKeyword argument name {key} not found.\nCandidate arguments: {', '.join(names)}")
    sources = []
    for key in names:
        entry = single(inputs[key], key) if key in inputs else (Node(None, f"{name}_{key}", dict(attrs)), 0)
        if key in op.initial and entry[0].op is None:
            entry[0].attrs.setdefault("__init__", op.initial[key])
        sources.append(entry)
    return Symbol(Node(op, name, attrs, tuple(sources)).outputs)


_counters: Counter[str] = Counter()
