"""Shapes that are known in part: a size of -1 is unknown, and so is the rank of the shape `None`."""

from jaxgroupconv.mxnet.errors import MXNetError

Shape = tuple[int, ...] | None


def is_known(shape: Shape) -> bool:
    """Whether the rank and every size are known."""
    return shape is not None and -1 not in shape


def merge(provided: Shape, inferred: Shape) -> Shape:
    """What two accounts of one shape say together: the unknown gives way, disagreement raises MXNetError."""
    if not agree(provided, inferred):
        raise MXNetError(f"Shape inconsistent, Provided = {brackets(provided)}, inferred shape={parentheses(inferred)}")
    if provided is None or inferred is None:
        return inferred if provided is None else provided
    return tuple(b if a == -1 else a for a, b in zip(provided, inferred, strict=True))


def agree(a: Shape, b: Shape) -> bool:
    """Whether two accounts can describe one shape."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(m == n or -1 in (m, n) for m, n in zip(a, b, strict=True))


def brackets(shape: Shape) -> str:
    """A shape as MXNet prints it: `[2,-1,4]`."""
    return "None" if shape is None else "[" + ",".join(map(str, shape)) + "]"


def parentheses(shape: Shape) -> str:
    """A shape as MXNet prints an inferred one: `(2,-1,4)`, and `(2,)`."""
    return "None" if shape is None else "(" + ",".join(map(str, shape)) + (",)" if len(shape) == 1 else ")")
