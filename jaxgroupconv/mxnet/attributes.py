"""Operator attributes: MXNet passes every one of them as a string, in calls and in files alike; here they are read.

An operator's table entry holds one `Attribute` per name; `parse` turns the given strings into the operator's parameters.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxgroupconv.mxnet.errors import MXNetError

REQUIRED = object()
# Attributes for training that belong to the user although MXNet takes them, and once wrote them, without underscores.
USER_KEYS = ("lr_mult", "wd_mult", "ctx_group", "force_mirroring", "mirror_stage")


@dataclasses.dataclass(frozen=True)
class Attribute:
    """How one attribute is read.

    Attributes:
      kind: the type's name, as MXNet's messages spell it.
      read: from the string to the value; raises ValueError for a string of another form.
      default: the value where the attribute is not given, `REQUIRED` where it must be.
      lower: the smallest value allowed, None for no bound.
      upper: the largest, likewise.
    """

    kind: str
    read: Callable[[str], Any]
    default: Any = REQUIRED
    lower: int | None = None
    upper: int | None = None


def parse(operator: str, attributes: Mapping[str, Attribute], given: Mapping[str, str]) -> dict[str, Any]:
    """Reads an operator's attribute strings.

    Args:
      operator: its name, for the messages.
      attributes: its table of attributes.
      given: attribute strings by name. Names of the form `__x__` belong to the user and are skipped.

    Returns:
      The value of every attribute in the table, defaults filled in.

    Raises:
      MXNetError: for an unknown name, a malformed string, a value out of bounds, or a required attribute that is missing.
    """
    # Built only for the messages: what was written, as MXNet repeats it.
    written = ", ".join(f'{key}="{text}"' for key, text in {"name": "", **given}.items())
    call = f"operator {operator}({written})"
    values = {}
    for name, text in given.items():
        if is_user_attribute(name):
            continue
        if name not in attributes:
            raise MXNetError(f"Cannot find argument '{name}', Possible Arguments: {', '.join(attributes)}, in {call}")
        attribute = attributes[name]
        try:
            value = attribute.read(text)
        except MXNetError:
            raise
        except ValueError as error:
            if attribute.kind.startswith("{"):
                reason = f"Invalid Input: '{text}', valid values are: {attribute.kind}"
            else:
                reason = f"Invalid Parameter format for {name} expect {attribute.kind} but value='{text}'"
            raise MXNetError(f"{reason}, in {call}") from error
        if attribute.lower is not None and value is not None and value < attribute.lower:
            raise MXNetError(f"value {value} for Parameter {name} should be greater equal to {attribute.lower}, in {call}")
        if attribute.upper is not None and value is not None and value > attribute.upper:
            raise MXNetError(f"value {value} for Parameter {name} should be smaller equal to {attribute.upper}, in {call}")
        values[name] = value
    for name, attribute in attributes.items():
        if name not in values:
            if attribute.default is REQUIRED:
                raise MXNetError(f"Required parameter {name} of {attribute.kind} is not presented, in {call}")
            values[name] = attribute.default
    return values


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape in a `__shape__` attribute."""
    try:
        return _read_integers(text) or ()
    except ValueError as error:
        raise MXNetError(f"Invalid Parameter format for __shape__ expect Shape(tuple) but value='{text}'") from error


def to_string(value: Any) -> str:
    """The string MXNet's Python face makes of an attribute's value: `str`, with NumPy's scalars unwrapped.

    Example:
      >>> to_string((np.int64(3), 3))
      '(3, 3)'
    """
    return str(_plain(value))


def is_user_attribute(name: str) -> bool:
    """Whether `name` has the form `__x__`, which every operator carries along and none reads."""
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def shape(default: Any = REQUIRED) -> Attribute:
    """A tuple of sizes; a bare integer is a tuple of one, `None` the shape of no rank."""

    def read(text: str) -> tuple[int, ...] | None:
        value = _read_integers(text)
        for size in value or ():
            if size < -1:
                raise MXNetError(f"shape dim size must be >= -1, while received {size}")
        return value

    return Attribute("Shape(tuple)", read, default)


def integers(default: Any = REQUIRED) -> Attribute:
    """A tuple of any integers."""
    return Attribute("Shape(tuple)", _read_integers, default)


def optional_integers(default: Any = REQUIRED) -> Attribute:
    """A tuple whose entries are integers or None."""
    return Attribute("Shape(tuple)", _read_optional_integers, default)


def integer(default: Any = REQUIRED, lower: int | None = None, bits: int = 32) -> Attribute:
    """A signed integer of so many bits."""

    def read(text: str) -> int:
        if not -(2 ** (bits - 1)) <= (value := _read_int(text)) < 2 ** (bits - 1):
            raise ValueError(text)
        return value

    return Attribute("int", read, default, lower)


def count() -> Attribute:
    """How many inputs or outputs there are: a name is made for each, so there is a bound, far beyond any network's."""
    return dataclasses.replace(integer(lower=1), upper=1 << 16)


def unsigned(default: Any = REQUIRED, lower: int | None = None) -> Attribute:
    """An unsigned 32-bit integer; negative numbers wrap around, as in MXNet."""

    def read(text: str) -> int:
        if abs(value := _read_int(text)) >= 2**32:
            raise ValueError(text)
        return value % 2**32

    return Attribute("int (non-negative)", read, default, lower)


def boolean(default: Any = REQUIRED) -> Attribute:
    """True or False in any case, 1 or 0."""
    return Attribute("boolean", _read_bool, default)


def real(default: Any = REQUIRED) -> Attribute:
    """A floating point number."""
    return Attribute("float", _read_float, default)


def enum(choices: Iterable[str], default: Any = REQUIRED, optional: bool = False) -> Attribute:
    """One of a few words, in exactly this case; `None` counts as a word where `optional`."""
    known = sorted(choices)

    def read(text: str) -> str | None:
        if optional and text == "None":
            return None
        if text not in known:
            raise ValueError(text)
        return text

    words = (["None"] if optional else []) + [f"'{word}'" for word in known]
    return Attribute("{" + ", ".join(words) + "}", read, default)


def optional(attribute: Attribute, default: Any = None) -> Attribute:
    """The same attribute, with `None` as one more value and as its default."""
    return dataclasses.replace(
        attribute,
        kind=f"{attribute.kind} or None",
        read=lambda text: None if text == "None" else attribute.read(text),
        default=default,
    )


# Attribute strings come out of files: nothing here may take longer than a few passes over the text.
_INT = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_FLOAT = re.compile(r"\s*([+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|inf|nan))f?\s*", re.ASCII | re.IGNORECASE)


def _read_integers(text: str) -> tuple[int, ...] | None:
    """Spellings found in twelve years of files: (3, 3), [3,3], ( 3 , 3 ), (3, 3,), (3L, 3L), (03, 3), and 3 or -3 alone."""
    return None if text == "None" else tuple(map(_read_int, _entries(text)))  # None is MXNet's shape of rank -1


def _read_optional_integers(text: str) -> tuple[int | None, ...]:
    return tuple(None if entry.strip() == "None" else _read_int(entry) for entry in _entries(text))


def _entries(text: str) -> list[str]:
    """The entries of a tuple, or the one that stands alone."""
    inner = text.strip()
    if not inner.startswith(("(", "[")):
        return [text]
    if not inner.endswith((")", "]")):
        raise ValueError(text)
    entries = [entry.rstrip().removesuffix("L") for entry in inner[1:-1].split(",")]
    if not entries[-1].strip():
        entries.pop()  # what is behind the last comma of (3,), or in ()
    return entries


def _read_int(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _read_bool(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(text)


def _read_float(text: str) -> float:
    match = _FLOAT.fullmatch(text)
    if not match:
        raise ValueError(text)
    return float(match[1])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(_plain(entry) for entry in value)
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, np.generic):
        return value.item()
    return value
