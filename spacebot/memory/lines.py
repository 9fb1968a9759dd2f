"""One line of an export: how a memory or an edge is written, and what is accepted when it is read.

A line written by hand needs `content` alone. Everything else has the default that a save would give it; an unknown
field, type or relation is an error, because a misspelt one would be lost without a word.

Flow:    row -> memory_text, edge_text ; bytes -> parse_line -> Header, MemoryLine or EdgeLine
Floor:   memory; may import base, storage
Source:  memory spec 1.1, 2.1, 5 and pitfall P-16
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from spacebot.base.clock import from_text, to_text
from spacebot.base.ids import is_uuid
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, size_bytes
from spacebot.memory.types import CONTENT_LIMIT, DEFAULT_IMPORTANCE, MemoryType, Origin, RelationType
from spacebot.storage.database import Row

E = TypeVar("E", bound=StrEnum)

FORMAT = "spacebot-memory"
VERSION = 1
MAX_COUNT = 2**53  # what every reader of JSON holds exactly
OLDEST_YEAR = 1000  # earlier years have no fixed width as text
SHOWN = 60  # characters of a wrong value in a message

_MEMORY_FIELDS = (
    "id", "content", "memory_type", "importance", "base_importance", "centrality", "created_at", "updated_at",
    "last_accessed_at", "access_count", "source", "channel_id", "user_id", "message_id", "subject", "is_private",
    "owner", "permanent", "forgotten", "forget_reason",
)  # fmt: skip
_EDGE_FIELDS = ("id", "source_id", "target_id", "relation_type", "weight", "origin", "created_at")
_HEADER_FIELDS = ("format", "version", "memories", "associations")
_FLAGS = frozenset({"is_private", "permanent", "forgotten"})


class LineError(Exception):
    """What is wrong with a line, in words for whoever wrote it."""

    def __init__(self, message: str, *, is_syntax: bool = False) -> None:
        super().__init__(message)
        self.is_syntax = is_syntax


@dataclass(frozen=True, slots=True)
class Header:
    """The first line; the numbers are what the file promises to hold, None when it does not say."""

    memories: int | None
    associations: int | None


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """A memory's columns; id and times are None where the line leaves them open."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EdgeLine:
    """An edge's columns; id and time are None where the line leaves them open."""

    values: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, str]:
        """What an edge is: two ends and a relation."""
        return self.values["source_id"], self.values["target_id"], self.values["relation_type"]


def memory_text(row: Row) -> str:
    """A memory as a line, without its newline."""
    values = {
        name: bool(row[name]) if name in _FLAGS else row[name] for name in _MEMORY_FIELDS if row[name] is not None
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def edge_text(row: Row) -> str:
    """An edge as a line, without its newline."""
    return json.dumps({name: row[name] for name in _EDGE_FIELDS}, ensure_ascii=False, separators=(",", ":"))


def parse_line(raw: bytes) -> Header | MemoryLine | EdgeLine | None:
    """Read a line; None when it is empty.

    Errors: LineError.
    """
    try:
        text = raw.decode().removeprefix("\ufeff").strip()
        if not text:
            return None
        fields = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise LineError("it is nested too deeply; a line is one flat JSON object") from error
    except UnicodeDecodeError as error:
        raise LineError("it is not UTF-8 text; save the file as UTF-8", is_syntax=True) from error
    except ValueError as error:
        message = f'it is not JSON ({error}); a line is one JSON object, at least {{"content": "…"}}'
        raise LineError(message, is_syntax=True) from error
    if not isinstance(fields, dict):
        raise LineError('it is not a JSON object; write {"content": "…"}')
    if "format" in fields or "version" in fields:
        return _header(fields)
    if "source_id" in fields or "target_id" in fields:
        return _edge(fields)
    return _memory(fields)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _header(fields: Mapping[str, Any]) -> Header:
    _only(fields, _HEADER_FIELDS)
    if fields.get("format") != FORMAT:
        raise LineError(
            f"the format is {_shown(fields.get('format'))}, not {FORMAT!r}; this file is of another program"
        )
    version = fields.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise LineError(f"the version is {_shown(version)}; it must be a whole number from 1")
    if version > VERSION:
        raise LineError(f"the file is of version {version}, this program reads up to {VERSION}; update the program")
    return Header(
        memories=_count(fields, "memories") if "memories" in fields else None,
        associations=_count(fields, "associations") if "associations" in fields else None,
    )


def _memory(fields: Mapping[str, Any]) -> MemoryLine:
    _only(fields, _MEMORY_FIELDS)
    content = _content(fields)
    memory_type = _label(fields, "memory_type", MemoryType, MemoryType.FACT)
    importance = _share(fields, "importance", DEFAULT_IMPORTANCE[memory_type])
    return MemoryLine(
        {
            "id": _id(fields, "id"),
            "content": content,
            "memory_type": str(memory_type),
            "importance": importance,
            "base_importance": _share(fields, "base_importance", importance),
            "centrality": _share(fields, "centrality", 0.0),
            "created_at": _moment(fields, "created_at"),
            "updated_at": _moment(fields, "updated_at"),
            "last_accessed_at": _moment(fields, "last_accessed_at"),
            "access_count": _count(fields, "access_count"),
            **{name: _text(fields, name) for name in ("source", "channel_id", "user_id", "message_id", "subject")},
            "is_private": _flag(fields, "is_private"),
            "owner": _text(fields, "owner"),
            "permanent": _flag(fields, "permanent"),
            "forgotten": _flag(fields, "forgotten"),
            "forget_reason": _text(fields, "forget_reason"),
        }
    )


def _edge(fields: Mapping[str, Any]) -> EdgeLine:
    _only(fields, _EDGE_FIELDS)
    source, target = _id(fields, "source_id"), _id(fields, "target_id")
    if source is None or target is None:
        raise LineError("an association needs source_id and target_id")
    if source == target:
        raise LineError("an association cannot lead from a memory to itself; remove the line")
    return EdgeLine(
        {
            "id": _id(fields, "id"),
            "source_id": source,
            "target_id": target,
            "relation_type": str(_label(fields, "relation_type", RelationType, RelationType.RELATED_TO)),
            "weight": _share(fields, "weight", 0.5),
            "origin": str(_label(fields, "origin", Origin, Origin.LLM)),
            "created_at": _moment(fields, "created_at"),
        }
    )


def _only(fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [name for name in fields if name not in known]:
        raise LineError(f"the field {_shown(unknown[0])} is unknown; known are {', '.join(known)}")


def _content(fields: Mapping[str, Any]) -> str:
    given = fields.get("content")
    if not isinstance(given, str):
        raise LineError('a memory needs a content, which is a text: {"content": "…"}')
    content = scrub(clean_unicode(given).replace("\0", "")).strip()
    if not content:
        raise LineError("the content is empty; write one sentence, or remove the line")
    if size_bytes(content) > CONTENT_LIMIT:
        raise LineError(f"the content is longer than {CONTENT_LIMIT} bytes; make it several memories, one fact each")
    return content


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    given = fields.get(name)
    if given is None:
        return None
    if not isinstance(given, str):
        raise LineError(f"{name} is {_shown(given)}; it must be a text")
    if len(given) > CONTENT_LIMIT:
        raise LineError(f"{name} is longer than {CONTENT_LIMIT} characters; shorten it")
    return clean_unicode(given).replace("\0", "")


def _id(fields: Mapping[str, Any], name: str) -> str | None:
    given = fields.get(name)
    if given is None:
        return None
    if not isinstance(given, str) or not is_uuid(given):
        raise LineError(
            f"{name} is {_shown(given)}; it must look like 123e4567-e89b-42d3-a456-426614174000, in lower case"
        )
    return given


def _label(fields: Mapping[str, Any], name: str, kind: type[E], default: E) -> E:
    given = fields.get(name)
    if given is None:
        return default
    try:
        return kind(given)
    except ValueError as error:
        known = ", ".join(kind)
        raise LineError(f"{name} is {_shown(given)}; it must be one of {known}") from error


def _share(fields: Mapping[str, Any], name: str, default: float) -> float:
    given = fields.get(name)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:  # NaN is not either
        raise LineError(f"{name} is {_shown(given)}; it must be a number from 0 to 1")
    return float(given)


def _count(fields: Mapping[str, Any], name: str) -> int:
    given = fields.get(name)
    if given is None:
        return 0
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_COUNT:
        raise LineError(f"{name} is {_shown(given)}; it must be a whole number from 0")
    return given


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    given = fields.get(name)
    if given is None:
        return False
    if not isinstance(given, bool):
        raise LineError(f"{name} is {_shown(given)}; it must be true or false")
    return given


def _moment(fields: Mapping[str, Any], name: str) -> str | None:
    given = fields.get(name)
    if given is None:
        return None
    try:
        text = to_text(from_text(given))
    except (TypeError, ValueError, OverflowError) as error:
        raise LineError(f"{name} is {_shown(given)}; it must be a moment such as 2026-03-01T12:00:00Z") from error
    if int(text.partition("-")[0]) < OLDEST_YEAR:
        raise LineError(f"{name} is {_shown(given)}; it must not lie before the year {OLDEST_YEAR}")
    return text


def _shown(value: object) -> str:
    """A wrong value for a message: safe to print, short."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
