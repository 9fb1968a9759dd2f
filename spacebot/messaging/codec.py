"""What a message has beside its text, as JSON in its row, and back.

Floor: messaging
"""

from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter

from spacebot.messaging.messages import OutboundFile, Rich


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What a message has beside its text."""

    rich: Rich | None = None
    file: OutboundFile | None = None


@lru_cache(maxsize=1)
def _adapter() -> "TypeAdapter[Extra]":
    return TypeAdapter(Extra)


def to_json(extra: Extra) -> str | None:
    """The text for the row; None when there is nothing."""
    if extra.rich is None and extra.file is None:
        return None
    return _adapter().dump_json(extra, exclude_defaults=True).decode()


def from_json(text: str | None) -> Extra:
    """What `to_json` was given."""
    return _adapter().validate_json(text) if text else Extra()
