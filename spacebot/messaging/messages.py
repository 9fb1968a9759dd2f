"""What people say and what is said to them, free of any platform.

Floor: messaging; may import base
Source: messaging spec 4, 6 and 7
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spacebot.base.ids import AgentId, ConversationId, MessageId

MAX_TEXT = 1_000_000  # characters of one inbound message; longer ones are refused at the rim


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who wrote a message.

    Args:
        id: the platform's own id of the person, as text.
        name: as people see it.
        handle: how to mention the person there, such as `<@123>` or `@ann`; None where that cannot be done.
        is_moderator: whether the person may rule over the room; None when the platform does not tell.
        is_listed: the owner's lists name the person; set by the router, never by an adapter.
    """

    id: str
    name: str
    is_bot: bool = False
    handle: str | None = None
    is_moderator: bool | None = None
    is_listed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPreview:
    """The message that a message answers."""

    author: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file by reference: fetched only when a turn needs it.

    Args:
        url: where it is; may also be a name that only the adapter can turn into an address (`Adapter.locate`).
            Never holds a credential: it is written down with the message.
    """

    filename: str
    media_type: str
    url: str
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """A press of a button or a choice from a list that the agent had sent."""

    action_id: str
    values: tuple[str, ...] = ()
    label: str | None = None
    message_id: str | None = None  # the platform's id of the message that carried it

    @property
    def text(self) -> str:
        """As the model reads it."""
        said = self.label or ", ".join(self.values)
        return f"[interaction: {self.action_id} → {said}]" if said else f"[interaction: {self.action_id}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A slash command; `name` without the slash, in lower case."""

    name: str
    args: str = ""

    @property
    def text(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.args}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundMessage:
    """One message of a person, as an adapter understood it.

    Args:
        platform: such as `webchat`; the first part of the conversation's id.
        adapter: runtime key of the adapter that received it; None means the platform's only one.
        platform_id: the platform's id, unique in the conversation; a second delivery is recognised by it.
        is_direct: a talk between one person and the agent: never coalesced, always answered.
        mentions_bot: it names the agent, or answers something that the agent said.
        server_id: guild, team or chat, as bindings name it.
        room_ids: the room it was said in, then the rooms that this one lies in (a thread's channel).
        metadata: JSON values that only the platform's own adapter reads again, to answer; no credentials.
    """

    platform: str
    conversation_id: ConversationId
    author: Author
    text: str
    sent_at: datetime
    adapter: str | None = None
    agent_id: AgentId | None = None
    platform_id: str | None = None
    is_direct: bool = False
    mentions_bot: bool = False
    reply_to: ReplyPreview | None = None
    attachments: tuple[Attachment, ...] = ()
    interaction: Interaction | None = None
    command: Command | None = None
    server_id: str | None = None
    room_ids: tuple[str, ...] = ()
    server_name: str | None = None
    channel_name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_addressed(self) -> bool:
        """Whether it is meant for the agent and nobody else."""
        return self.mentions_bot or self.interaction is not None or self.command is not None

    @property
    def adapter_key(self) -> str:
        """The runtime key of its adapter."""
        return self.adapter or self.platform


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEdit:
    """A person changed what was said before."""

    adapter: str
    conversation_id: ConversationId
    platform_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageDeletion:
    """Messages were taken back by their writers or a moderator."""

    adapter: str
    conversation_id: ConversationId
    platform_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """A message from before the agent came, as the platform has it."""

    author: str
    text: str
    sent_at: datetime
    is_bot: bool = False
    is_self: bool = False  # the agent's own


class OutboundKind(StrEnum):
    """What goes out."""

    TEXT = "text"
    NOTICE = "notice"  # a short line about a failure or a command, not the agent's own words
    REACTION = "reaction"  # the text is one emoji for the message that caused it
    FILE = "file"  # the text is its caption


@dataclass(frozen=True, slots=True, kw_only=True)
class CardField:
    """A labelled value of a card."""

    name: str
    value: str
    inline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A framed piece of a message. Colour is 0xRRGGBB; addresses are absolute."""

    title: str = ""
    description: str = ""
    color: int | None = None
    url: str | None = None
    fields: tuple[CardField, ...] = ()
    footer: str = ""
    image_url: str | None = None
    thumbnail_url: str | None = None
    author_name: str = ""


class ButtonStyle(StrEnum):
    """How a button looks; `LINK` opens an address instead of telling the agent."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    SUCCESS = "success"
    DANGER = "danger"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """Something to press; `custom_id` comes back as the interaction's action."""

    label: str
    custom_id: str = ""
    style: ButtonStyle = ButtonStyle.SECONDARY
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOption:
    """One line of a list to choose from."""

    label: str
    value: str
    description: str = ""
    emoji: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """A list to choose from; `custom_id` comes back as the interaction's action."""

    custom_id: str
    options: tuple[SelectOption, ...]
    placeholder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of controls: buttons, or one list."""

    buttons: tuple[Button, ...] = ()
    select: Select | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """A question that people vote on."""

    question: str
    answers: tuple[str, ...]
    allow_multiselect: bool = False
    duration_hours: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Rich:
    """What a message has beside its text. The text alone must make sense: not every platform shows the rest.

    Args:
        thread_name: begin a thread of this name with the message, or under the one it answers.
        blocks: a platform's own layout blocks as JSON, for the platforms that have such.
    """

    cards: tuple[Card, ...] = ()
    rows: tuple[Row, ...] = ()
    poll: Poll | None = None
    thread_name: str | None = None
    blocks: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundFile:
    """A file that goes out; `path` holds its bytes until it is delivered."""

    filename: str
    media_type: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where something goes.

    Args:
        data: `metadata` of the message that caused it, or what is known of the conversation.
        message_id: the platform's id of the message that it answers; None when nothing is answered.
    """

    conversation_id: ConversationId
    is_direct: bool = False
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundMessage:
    """One message to people.

    Args:
        text: Markdown as models write it, mentions as `@Name`; the adapter makes the platform's own form of it.
        mentions: name as people see it -> handle of the platform, for those who may be meant.
        sent: platform ids of its parts that went out in an earlier attempt; sending goes on behind them.
        draft_id: platform id of a growing draft of it, which its first part takes the place of.
        is_doubtful: an earlier attempt may have arrived without our knowing: look, where the platform lets one look.
        wants_reply_mark: show which message it answers, because others were said since.
    """

    id: MessageId
    text: str
    kind: OutboundKind = OutboundKind.TEXT
    rich: Rich | None = None
    file: OutboundFile | None = None
    mentions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sent: tuple[str, ...] = ()
    draft_id: str | None = None
    is_doubtful: bool = False
    wants_reply_mark: bool = False
