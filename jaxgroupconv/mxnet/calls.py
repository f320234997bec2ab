"""What calls of `nd.NAME` and `sym.NAME` have in common: MXNet's argument order, and the help text."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgroupconv.mxnet.attributes import REQUIRED, to_string
from jaxgroupconv.mxnet.registry import OPERATORS, Operator


def bind(op: Operator, args: tuple, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Sorts a call's arguments into inputs and attributes.

    Args:
      op: the operator called.
      args: inputs in their order, then attributes in theirs; any number of inputs for a variadic operator.
      kwargs: inputs and attributes by name.

    Returns:
      The inputs given, by name and in order, and the attributes given, as strings. An input of None counts as left out.
    """
    inputs = tuple(f"arg{i}" for i in range(len(args))) if op.variadic else op.inputs
    order = inputs if op.variadic else (*inputs, *op.attributes)
    if len(args) > len(order):
        raise TypeError(f"{op.name} takes at most {len(order)} positional arguments ({', '.join(order)}), but got {len(args)}")
    given = dict(zip(order, args, strict=False))
    if twice := given.keys() & kwargs.keys():
        raise TypeError(f"{op.name} got several values for {', '.join(sorted(twice))}")
    given |= kwargs
    # A variadic call may also name its inputs: arg0=, arg1=, or those of its fixed form.
    named = [key for key in (*inputs, *op.inputs, *sorted(given)) if key in given and (key in inputs or _is_input(op, key))]
    found = {key: given[key] for key in dict.fromkeys(named) if given[key] is not None}
    strings = {key: _to_string(key, value) for key, value in given.items() if key not in named}
    if op.variadic and "num_args" not in strings:
        strings = {"num_args": str(len(found)), **strings}
    return found, strings


def functions(make: Callable[[Operator, str], Callable]) -> dict[str, Callable]:
    """One function per operator and alias, and, as in MXNet, the `_contrib_` ones once more without that prefix."""
    made = {name: make(op, name) for name, op in OPERATORS.items()}
    for name, function in made.items():
        function.__name__ = function.__qualname__ = name
        function.__doc__ = _describe(OPERATORS[name], name)
    return made | {name.removeprefix("_contrib_"): f for name, f in made.items() if name.startswith("_contrib_")}


def _is_input(op: Operator, key: str) -> bool:
    return key in op.inputs or (op.variadic and key.startswith("arg") and key[3:].isdigit())


def _to_string(key: str, value: Any) -> str:
    """An attribute as a string; a dtype may be given as NumPy's or JAX's object."""
    is_dtype = key == "dtype" and value is not None and not isinstance(value, str)
    return np.dtype(value).name if is_dtype else to_string(value)


def _describe(op: Operator, name: str) -> str:
    """The operator's own docstring, then its arguments."""
    inputs = "*args" if op.variadic else ", ".join(op.inputs)
    attributes = [f"{key}{'' if a.default is REQUIRED else f'={a.default}'}" for key, a in op.attributes.items()]
    text = (op.compute.__doc__ or f"MXNet's {op.name}.").strip()
    kinds = "\n".join(f"  {key}: {a.kind}{', required' if a.default is REQUIRED else ''}" for key, a in op.attributes.items())
    return f"{name}({', '.join([inputs, *attributes])})\n\n{text}\n\nAttributes:\n{kinds or '  none'}\n"
