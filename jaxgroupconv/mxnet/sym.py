"""`sym`: every operator as a function on symbols, `sym.Convolution(data, kernel=(3, 3), num_filter=8, name="conv")`.

The functions are generated from the operators' table; inputs that a call leaves out become variables.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxgroupconv.mxnet import calls, dtypes, operators, symbol_json  # noqa: F401  (importing the operators fills the table)
from jaxgroupconv.mxnet.attributes import USER_KEYS, is_user_attribute, to_string
from jaxgroupconv.mxnet.graph import Node
from jaxgroupconv.mxnet.registry import Operator
from jaxgroupconv.mxnet.symbol import Symbol, create


def Variable(name: str, attr: Mapping[str, str] | None = None, **kwargs: Any) -> Symbol:
    """An input of a network.

    Args:
      name: its name.
      attr: attributes to keep with it, as strings.
      **kwargs: `shape`, a tuple; `dtype`; `lr_mult`, `wd_mult`, `init`; or further attributes `__x__`.
    """
    if not isinstance(name, str):
        raise TypeError(f"Expect a string for variable `name`, but got {name!r}")
    attrs = dict(attr or {})
    for key, value in kwargs.items():
        if value is None:
            continue
        if key in ("shape", "dtype", "init", *USER_KEYS):
            key = f"__{key}__"
        elif not is_user_attribute(key):
            raise ValueError(
                f"Attribute name={key} is not supported. Additional attributes must start and end with double underscores, "
                "e.g, __yourattr__"
            )
        attrs[key] = str(dtypes.code(value)) if key == "__dtype__" else to_string(value)
    return Symbol(((Node(None, name, attrs), 0),))


var = Variable


def Group(symbols: Iterable[Symbol]) -> Symbol:
    """A symbol with the outputs of all the given ones."""
    symbols = list(symbols)
    if not symbols or not all(isinstance(symbol, Symbol) for symbol in symbols):
        raise TypeError(f"Expected a list of symbols as input, but got {symbols!r}")
    return Symbol(tuple(entry for symbol in symbols for entry in symbol.heads))


def load_json(text: str) -> Symbol:
    """The symbol in a JSON text; see `load`."""
    return symbol_json.loads(text)


def load(path: str | os.PathLike) -> Symbol:
    """Reads a symbol file, `prefix-symbol.json`, of any version of MXNet.

    Args:
      path: the file.

    Returns:
      The symbol.

    Raises:
      ValueError: for what is no symbol, with the node concerned; unknown operators are named all at once.
    """
    return symbol_json.loads(Path(path).read_text(encoding="utf-8"))


def _function(op: Operator, called: str) -> Callable:
    def call(*args: Any, name: str | None = None, attr: Mapping[str, str] | None = None, **kwargs: Any) -> Symbol:
        inputs, strings = calls.bind(op, args, kwargs)
        return create(op, called, inputs, strings | dict(attr or {}), name)

    return call


_FUNCTIONS = calls.functions(_function)
globals().update(_FUNCTIONS)
__all__ = ["Group", "Symbol", "Variable", "load", "load_json", "var", *_FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]
