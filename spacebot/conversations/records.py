"""What the log holds, as frozen values.

Floor: conversations
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId
from spacebot.base.tree import NodeState
from spacebot.messaging.messages import InboundMessage, OutboundMessage, Target

ERASED = "erased"  # kind of a message whose words were erased; its row keeps the numbers without gaps


class LedgerState(StrEnum):
    """What became of an inbound message."""

    ACCEPTED = "accepted"
    IN_TURN = "in_turn"
    ANSWERED = "answered"
    SKIPPED = "skipped"
    FAILED = "failed"
    OBSERVED = "observed"


class TurnState(StrEnum):
    """How a turn stands."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Receipt of an inbound message. `is_new` is False when the same one was accepted before."""

    message_id: MessageId
    seq: int
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Journalled:
    """An inbound message that is on disk."""

    id: MessageId
    seq: int
    message: InboundMessage
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A file that was sent, as readers of the log know it."""

    filename: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMessage:
    """A row of the log; `seq` counts per channel from 1 without gaps."""

    id: MessageId
    channel_id: ConversationId
    seq: int
    role: str
    sender_id: str | None
    sender_name: str | None
    content: str
    kind: str
    reply_to: MessageId | None
    turn_id: TurnId | None
    created_at: str
    file: SentFile | None = None
    is_queued: bool = False  # just written, and an adapter will deliver it


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRecord:
    """A known conversation."""

    id: ConversationId
    platform: str
    display_name: str | None
    is_direct: bool
    created_at: str
    last_activity_at: str
    adapter: str | None = None  # runtime key of what delivers there; None: its readers follow the log


class ResponseMode(StrEnum):
    """How the agent behaves in a shared conversation."""

    ACTIVE = "active"  # answers as it sees fit
    MENTION_ONLY = "mention_only"  # listens, answers when it is named or commanded
    OBSERVE = "observe"  # listens and learns, never answers but commands


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedMessage:
    """A logged message after its writer changed it or took it back."""

    row: LoggedMessage
    was_waiting: bool  # no turn had taken it; one that was taken back is dealt with now
    journalled: Journalled | None  # None when it was taken back


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Something in the outbox whose turn it is."""

    message: OutboundMessage
    target: Target
    adapter: str
    attempts: int
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A growing draft that people see."""

    adapter: str
    target: Target
    draft_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """Something that was said and that nobody got."""

    message_id: MessageId
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What decides who may see what was said: the kind of conversation and the person."""

    is_direct: bool
    user_id: str | None
    is_listed: bool = False  # the owner's lists name the person


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingResult:
    """A result of a branch or worker that nobody was told yet."""

    id: str
    process_kind: str
    process_id: NodeId
    description: str
    text: str
    state: NodeState
    reply_to: MessageId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """Somebody who spoke in a conversation: the platform's id and the name last seen."""

    id: str
    name: str


class SummaryKind(StrEnum):
    """How the messages of a span came to be covered."""

    BACKGROUND = "background"
    AGGRESSIVE = "aggressive"
    EMERGENCY = "emergency"  # left out; the content only says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What stands in a history in place of the messages from `first_seq` to `last_seq`."""

    id: str
    first_seq: int
    last_seq: int
    kind: SummaryKind
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaved:
    """Messages of people that no persistence run has gone through."""

    channel_id: ConversationId
    count: int
    after_seq: int  # up to this one all were gone through
    first_at: str  # when the oldest of them came


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRun:
    """A branch as its row has it."""

    id: NodeId
    channel_id: ConversationId
    description: str
    turn_id: TurnId | None
    reply_to: MessageId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """A worker as its row has it; `transcript` is the JSON text of its model messages.

    Args:
        worker_type: what does the work: "builtin" or "opencode".
        directory: of OpenCode: the folder that is its alone.
        session_id: of OpenCode: the session that is taken up again after a restart.
    """

    id: NodeId
    channel_id: ConversationId
    task: str
    task_type: str | None
    is_interactive: bool
    turn_id: TurnId | None
    reply_to: MessageId | None
    origin: NodeId | None = None
    state: NodeState = NodeState.RUNNING
    transcript: str | None = None
    worker_type: str = "builtin"
    directory: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the last life of the program left open."""

    messages: tuple[Journalled, ...]
    branches: tuple[BranchRun, ...]  # to be run again
    workers: tuple[WorkerRun, ...]  # to be taken up again from their transcript
    channels_with_results: tuple[ConversationId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """The ledger's word on one inbound message, with what belongs to it."""

    message: LoggedMessage
    state: LedgerState
    reason: str | None
    attempts: int
    turn_id: TurnId | None
    turn_state: str | None
    turn_detail: str | None
    coalesced_with: tuple[MessageId, ...]
    replies: tuple[LoggedMessage, ...]
    is_pending: bool  # its turn put the answer off: something that it started still runs, or waits to be told
    runs: tuple[Mapping[str, Any], ...]
