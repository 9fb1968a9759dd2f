"""Fields of JSON that came from outside: each is what it should be, or a `MalformedUpdateError` that names it.

Floor: messaging
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

Json = Mapping[str, Any]


class MalformedUpdateError(ValueError):
    """An update that is not as the Bot API says; the message names the field."""


def one_line(text: str) -> str:
    """A text without line breaks and runs of blanks."""
    return " ".join(text.split())


def object_of(raw: Json, name: str) -> Json | None:
    """The object of this name; None when there is none."""
    value = raw.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise MalformedUpdateError(f"{name}: not an object")
    return value


def required(raw: Json, name: str) -> Json:
    """The object of this name."""
    value = object_of(raw, name)
    if value is None:
        raise MalformedUpdateError(f"{name}: missing")
    return value


def list_of(raw: Json, name: str) -> Sequence[Json]:
    """The objects of this name, none when there is no list."""
    value = raw.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise MalformedUpdateError(f"{name}: not a list of objects")
    return value


def text_of(raw: Json, name: str) -> str:
    """A text, empty when there is none; halves of characters, which no database takes, are replaced."""
    value = raw.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedUpdateError(f"{name}: not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


def is_number(value: object) -> TypeGuard[int]:
    """Whether it is a whole number that a database takes."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number_of(raw: Json, name: str) -> int:
    """The whole number of this name."""
    value = raw.get(name)
    if not is_number(value):
        raise MalformedUpdateError(f"{name}: not a number")
    return value


def decimal_of(raw: Json, name: str) -> float:
    """The number of this name, to six places."""
    value = raw.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MalformedUpdateError(f"{name}: not a number")
    return round(float(value), 6)
