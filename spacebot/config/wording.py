"""Validation results in plain words: what is wrong, what is allowed, and never a whole value.

Floor:  config
"""

import json
from typing import Any

from pydantic import SecretStr
from pydantic_core import ErrorDetails

SHOWN_VALUE = 60  # characters of a wrong value that a message repeats

_WORDS = {
    "missing": "is missing",
    "string_type": "must be text in quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "path_type": "must be a path in quotes",
    "string_unicode": "must be proper Unicode text",
    "extra_forbidden": "is not known",
}


def in_plain_words(details: ErrorDetails) -> str:
    """What is allowed, instead of what the validator calls it."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    match kind:
        case "value_error":
            return str(context.get("error", details["msg"]))
        case "enum" | "literal_error":
            return f"must be {context.get('expected')}"
        case "greater_than":
            return f"must be more than {context.get('gt')}"
        case "greater_than_equal":
            return f"must be at least {context.get('ge')}"
        case "less_than":
            return f"must be less than {context.get('lt')}"
        case "less_than_equal":
            return f"must be at most {context.get('le')}"
        case "string_too_short":
            return f"must have at least {context.get('min_length')} characters"
        case "string_too_long":
            return f"must have at most {context.get('max_length')} characters"
    return details["msg"]


def brief(value: object) -> str:
    """A value as a message may repeat it."""
    shown = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(shown, list | dict):
        return "a list" if isinstance(shown, list) else "a table"
    if isinstance(shown, bool):
        return str(shown).lower()
    text = repr(str(shown)) if not isinstance(shown, int | float) else str(shown)
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"


def quote(part: str) -> str:
    """A key that needs quotes, in quotes."""
    return '"' + part.encode("unicode_escape").decode().replace('"', '\\"') + '"'


def to_toml(value: Any) -> str:
    """A value as it stands behind `=` in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        inside = ", ".join(f"{_quoted(key)} = {to_toml(one)}" for key, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(one) for one in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)


def _quoted(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else json.dumps(key, ensure_ascii=False)
