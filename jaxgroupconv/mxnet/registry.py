"""What an operator is: one function and one entry in `OPERATORS`. Everything else is generated from the entry.

`nd.NAME`, `sym.NAME`, shape and type inference, the reading of files and the documentation's table all go by `OPERATORS`.
"""

import inspect
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxgroupconv.mxnet import attributes as attr
from jaxgroupconv.mxnet import shapes
from jaxgroupconv.mxnet.errors import MXNetError
from jaxgroupconv.mxnet.shapes import Shape

Outputs = tuple[jax.Array, ...]
# From the parameters, and what is known of the inputs and of the outputs, to the same with all that follows.
Rule = Callable[[Any, list, list], tuple[list, list]]


def operator(
    *names: str,
    attributes: Mapping[str, attr.Attribute] | None = None,
    inputs: Sequence[str] | None = None,
    absent: Callable[[Any], Sequence[str]] = lambda p: (),
    variadic: bool = False,
    outputs: Callable[[Any], Sequence[str]] = lambda p: ("output",),
    hidden: Callable[[Any], int] = lambda p: 0,
    auxiliary: Sequence[str] = (),
    labels: Sequence[str] = (),
    initial: Mapping[str, str] | None = None,
    check: Callable[[Any], None] = lambda p: None,
    complete: Rule = lambda p, ins, outs: (ins, outs),
    types: Rule | None = None,
) -> Callable[[Callable], Callable]:
    """Enters a function in `OPERATORS` under its name and its aliases. The fields are `Operator`'s; the one input is "data".

    Example:
      >>> @operator("Flatten", "flatten")
      ... def flatten(p, data):
      ...     return data.reshape(data.shape[0], -1)
    """
    table = dict(attributes or {})
    if variadic:
        table["num_args"] = attr.count()

    def enter(compute: Callable) -> Callable:
        entry = Operator(
            name=names[0],
            aliases=names[1:],
            compute=compute,
            attributes=table,
            parameters=namedtuple(names[0].strip("_"), table),
            inputs=tuple(inputs if inputs is not None else () if variadic else ("data",)),
            absent=absent,
            variadic=variadic,
            outputs=outputs,
            hidden=hidden,
            auxiliary=tuple(auxiliary),
            labels=tuple(labels),
            initial=dict(initial or {}),
            stateful="train" in inspect.signature(compute).parameters,
            check=check,
            complete=complete,
            types=types or uniform_types,
        )
        OPERATORS.update(dict.fromkeys(names, entry))
        return compute

    return enter


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of MXNet.

    Attributes:
      name: the name in files.
      aliases: its other names.
      compute: from parameters and input arrays to the output, or a tuple of outputs. A `stateful` one takes the keywords
        `train` and `rng` too and returns two tuples: the outputs, and the new values of the auxiliary inputs.
      attributes: how each attribute is read.
      parameters: the named tuple of parsed attributes, `compute`'s first argument; `p` throughout this package.
      inputs: the names of all the inputs it can have.
      absent: those of them that it does not have with these parameters.
      variadic: it takes `num_args` inputs, called arg0, arg1, ..., where `inputs` leaves none.
      outputs: the suffixes of its outputs' names.
      hidden: how many further outputs MXNet's own operator has; nothing here computes them, but files count them.
      auxiliary: those of the inputs that are states and no arguments: training replaces them, gradients do not reach them.
      labels: those of the inputs that only training reads.
      initial: the `__init__` attribute that MXNet gives to the variables of some inputs.
      stateful: its result depends on training or on random numbers.
      check: raises MXNetError where parameters contradict one another; called as soon as they are known.
      complete: what follows among shapes, MXNetError where they contradict one another. It need only give the shapes of
        parameters, and what follows from outputs to inputs: the outputs' own shapes follow from `compute`.
      types: what follows among dtypes.
    """

    name: str
    aliases: tuple[str, ...]
    compute: Callable
    attributes: Mapping[str, attr.Attribute]
    parameters: type
    inputs: tuple[str, ...]
    absent: Callable[[Any], Sequence[str]]
    variadic: bool
    outputs: Callable[[Any], Sequence[str]]
    hidden: Callable[[Any], int]
    auxiliary: tuple[str, ...]
    labels: tuple[str, ...]
    initial: Mapping[str, str]
    stateful: bool
    check: Callable[[Any], None]
    complete: Rule
    types: Rule

    def parse(self, given: Mapping[str, str]) -> Any:
        """The parameters in a node's attribute strings, checked."""
        p = self.parameters(**attr.parse(self.name, self.attributes, given))
        self.check(p)
        return p

    def input_names(self, p: Any) -> tuple[str, ...]:
        """The names of the inputs with these parameters, in order."""
        absent = self.absent(p)
        named = tuple(name for name in self.inputs if name not in absent)
        return named or tuple(f"arg{i}" for i in range(p.num_args if self.variadic else 0))

    def __call__(
        self, p: Any, arrays: Sequence[Any], *, train: bool = False, rng: jax.Array | None = None
    ) -> tuple[Outputs, Outputs]:
        """Computes the operator.

        Args:
          p: parameters, from `parse`.
          arrays: the inputs, auxiliary ones included, in the order of `input_names(p)`; None for a label at inference.
          train: whether this is a training step.
          rng: a key for random numbers; None where none are drawn.

        Returns:
          The outputs and the new values of the auxiliary inputs.

        Raises:
          MXNetError: for a wrong number of inputs, and for shapes or dtypes that do not fit.
        """
        if len(arrays) != len(names := self.input_names(p)):
            raise MXNetError(f"Operator {self.name} expects {len(names)} inputs, but got {len(arrays)} instead.")
        unknown = [None] * len(self.outputs(p))
        self.infer_shapes(p, [None if x is None else x.shape for x in arrays], unknown)
        self.infer_types(p, [None if x is None else x.dtype for x in arrays], unknown)
        try:
            if self.stateful:
                return self.compute(p, *arrays, train=train, rng=rng)
            outputs = self.compute(p, *arrays)
        except (TypeError, IndexError, ZeroDivisionError) as error:  # JAX's words for shapes that do not fit, and empty ones
            shown = ", ".join("None" if x is None else shapes.brackets(x.shape) for x in arrays)
            raise MXNetError(f"{self.name} does not fit inputs of shapes {shown}: {error}") from error
        return (outputs if isinstance(outputs, tuple) else (outputs,)), ()

    def infer_shapes(self, p: Any, ins: Sequence[Shape], outs: Sequence[Shape]) -> tuple[list[Shape], list[Shape]]:
        """The shapes of inputs and outputs with all that `complete` adds to them."""
        new_ins, new_outs = self.complete(p, list(ins), list(outs))
        merged = [shapes.merge(old, new) for old, new in zip([*ins, *outs], [*new_ins, *new_outs], strict=True)]
        return merged[: len(ins)], merged[len(ins) :]

    def infer_types(self, p: Any, ins: Sequence, outs: Sequence) -> tuple[list, list]:
        """The dtypes of inputs and outputs, as NumPy's classes, with all that `types` adds to them."""
        # Classes, because to NumPy a missing dtype is float64: np.dtype("float64") == None.
        known = [None if each is None else np.dtype(each).type for each in (*ins, *outs)]
        ruled = self.types(p, known[: len(ins)], known[len(ins) :])
        new = [None if each is None else np.dtype(each).type for part in ruled for each in part]
        names = (*self.input_names(p), *(f"output{i}" for i in range(len(outs))))
        for name, old, wanted in zip(names, known, new, strict=True):
            if old is not None and old is not wanted:
                told = f"Expected '{np.dtype(wanted)}' v.s. given '{np.dtype(old)}' at '{name}'"
                raise MXNetError(f"This layer requires uniform type. {told}")
        return new[: len(ins)], new[len(ins) :]


OPERATORS: dict[str, Operator] = {}


def uniform_types(p: Any, ins: list, outs: list) -> tuple[list, list]:
    """All inputs and outputs share one dtype: the rule of nearly every operator."""
    known = [dtype for dtype in (*ins, *outs) if dtype is not None]
    shared = known[0] if known else None
    return [shared] * len(ins), [shared] * len(outs)
