"""Cutting texts: always at a character's border, always saying so.

Floor: base
"""

from typing import Any


def cut_bytes(text: str, limit: int) -> str:
    """The longest head of a text that fits into `limit` UTF-8 bytes, cut between characters."""
    if len(text) <= limit // 4:
        return text
    raw = text.encode()
    return text if len(raw) <= limit else raw[:limit].decode(errors="ignore")


def size_bytes(text: str) -> int:
    """Length of a text in UTF-8 bytes."""
    return len(text.encode())


def preview(text: str, limit: int = 80) -> str:
    """The first line of a text, at most `limit` characters, with an ellipsis where something is missing."""
    line = text.strip().split("\n", 1)[0].strip()
    if len(line) > limit:
        return line[: limit - 1].rstrip() + "…"
    return line if line == text.strip() else f"{line[: limit - 1]}…"


def head_and_tail(text: str, limit: int) -> str:
    """A text of at most about `limit` bytes: head and tail kept, the gap named (errors often stand at the end)."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    half = limit // 2
    head = raw[:half].decode(errors="ignore")
    tail = raw[len(raw) - half :].decode(errors="ignore")
    dropped = len(raw) - 2 * half
    return f"{head}\n[… {dropped} of {len(raw)} bytes left out here; ask for a smaller part to see them …]\n{tail}"


def clean_unicode(text: str) -> str:
    """Replace lone surrogates, which neither UTF-8 nor SQLite can hold."""
    return text.encode("utf-8", errors="replace").decode()


def clean_values(value: Any) -> Any:
    """What JSON gave, with `clean_unicode` done to each text and name. Errors: RecursionError for deep nesting."""
    match value:
        case str():
            return clean_unicode(value)
        case dict():
            return {clean_values(key): clean_values(item) for key, item in value.items()}
        case list():
            return [clean_values(item) for item in value]
    return value
