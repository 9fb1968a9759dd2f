"""Ids: one type, one validator and one maker each.

A string becomes an id only here. Platform ids are opaque text; ids that the program makes are
UUID version 4 in their 36-character form (memory spec 0).

Floor: base
"""

import re
import uuid
from typing import NewType

from spacebot.base.errors import ConfigError, RefusedError

AgentId = NewType("AgentId", str)
ConversationId = NewType("ConversationId", str)  # "platform:part:part"; also the channel's id
MessageId = NewType("MessageId", str)
TurnId = NewType("TurnId", str)
NodeId = NewType("NodeId", str)  # branch, worker, turn … in the supervision tree
MemoryId = NewType("MemoryId", str)

_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # control spec 1.2
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MAX_CONVERSATION_ID = 256  # characters


def new_uuid() -> str:
    """Make a random id."""
    return str(uuid.uuid4())


def parse_agent_id(text: str) -> AgentId:
    """Check an agent id as the owner wrote it.

    Errors: ConfigError when it has other characters than a-z, 0-9, `_` and `-`.
    """
    if not _AGENT_ID.fullmatch(text):
        raise ConfigError(
            f"agent id {text!r} is not allowed; use 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit"
        )
    return AgentId(text)


def parse_conversation_id(text: str) -> ConversationId:
    """Check a conversation id that came from outside.

    Errors: RefusedError when it is empty, too long or holds control characters.
    """
    if not text or len(text) > MAX_CONVERSATION_ID or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise RefusedError(f"conversation id must have 1 to {MAX_CONVERSATION_ID} printable characters")
    return ConversationId(text)


def platform_of(conversation: ConversationId) -> str:
    """The part of a conversation id before its first colon."""
    return conversation.partition(":")[0]


def is_uuid(text: str) -> bool:
    """Whether a text is an id in the form that this program makes."""
    return _UUID.fullmatch(text) is not None
