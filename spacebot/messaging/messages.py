"""What people say and what is said to them, free of any platform.

Floor: messaging; may import base
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from spacebot.base.ids import AgentId, ConversationId, MessageId

MAX_TEXT = 1_000_000  # characters of one inbound message; longer ones are refused at the rim


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who wrote a message."""

    id: str
    name: str
    is_bot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPreview:
    """The message that a message answers."""

    author: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file by reference: fetched only when a turn needs it."""

    filename: str
    media_type: str
    url: str
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundMessage:
    """One message of a person, as an adapter understood it.

    Args:
        platform_id: the platform's id; a second delivery of the same is recognised by it.
        is_direct: a talk between one person and the agent: never coalesced, always answered.
        metadata: JSON values that only the platform's own adapter reads again.
    """

    platform: str
    conversation_id: ConversationId
    author: Author
    text: str
    sent_at: datetime
    agent_id: AgentId | None = None
    platform_id: str | None = None
    is_direct: bool = False
    mentions_bot: bool = False
    reply_to: ReplyPreview | None = None
    attachments: tuple[Attachment, ...] = ()
    server_name: str | None = None
    channel_name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


class OutboundKind(StrEnum):
    """What goes out."""

    TEXT = "text"
    NOTICE = "notice"  # a short line about a failure, not the agent's own words
    REACTION = "reaction"  # the text is one emoji for the message in `reply_to`


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundMessage:
    """One message to people, pinned to the message that caused it."""

    id: MessageId
    conversation_id: ConversationId
    text: str
    kind: OutboundKind = OutboundKind.TEXT
    reply_to: MessageId | None = None
