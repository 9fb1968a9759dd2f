"""The protocol between a platform's adapter and the rest of the program.

An adapter is one live connection to one account of a platform. It knows everything about its platform and nothing
about agents: it turns events into `InboundMessage`s, hands them to the `Intake`, and turns `OutboundMessage`s into
calls. Restarting, bindings, permissions, order, retries and durability are others' work (`manager.py`,
`bindings.py`, the agent's outbox), so an adapter stays small:

* `run` connects, reports who it is, and feeds the intake until the stream ends. Raising or returning is an end;
  the supervisor starts it again. Cancelling it is the shutdown: it leaves nothing behind.
* an event counts as received when `Intake.take` has returned; only then is it acknowledged to the platform.
* the other methods may be called while `run` is connected. Their failures are `DeliveryError`s: permanent when
  trying again is pointless (forbidden, gone, invalid), else transient, with the pause that the platform asks for.

Flow:    platform -> Adapter.run -> Intake.take -> agent -> outbox -> Adapter.send -> platform
Floor:   messaging
Source:  messaging spec 2, 3 and 7
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

import trio

from spacebot.base.ids import ConversationId
from spacebot.messaging.messages import (
    Attachment,
    HistoryLine,
    InboundMessage,
    MessageDeletion,
    MessageEdit,
    OutboundMessage,
    Target,
)

LATE_S = 1800.0  # age up to which a message that was missed is still answered
EVENTS = 256  # events of one platform that wait to be taken; beyond them its connection has to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a platform can do.

    Args:
        max_characters: of one message, in the platform's own measure; longer texts become several.
        typing_every_s: how often the sign that somebody writes has to be renewed; 0 where there is none.
        edit_every_s: pause between two edits of a growing draft; 0 where messages cannot be edited.
        max_file_bytes: of one file that goes out; 0 where files cannot be sent.
        can_thread: a room's message may begin a thread of its own.
        reads_history: what was said before can be fetched.
        is_pulled: whoever talks to it fetches the answers; nothing is pushed.
        hint: name of the prompt fragment that tells models what looks right there; empty for none.
    """

    max_characters: int
    typing_every_s: float = 0.0
    edit_every_s: float = 0.0
    max_file_bytes: int = 0
    can_react: bool = False
    can_thread: bool = False
    reads_history: bool = False
    is_pulled: bool = False
    hint: str = ""


class Receipt(StrEnum):
    """What became of a message at the door."""

    ACCEPTED = "accepted"  # it will be answered, or was a command and is dealt with
    OBSERVED = "observed"  # kept as context, not answered
    DUPLICATE = "duplicate"  # taken before
    REFUSED = "refused"  # its writer or its room is not served


class Intake(Protocol):
    """Where adapters hand in what people do."""

    async def take(self, message: InboundMessage) -> Receipt:
        """Take a message; when this returns it is on disk, or refused.

        Errors: StorageError; then it was not taken, and the platform should deliver it again.
        """
        ...

    async def edit(self, edit: MessageEdit) -> None:
        """Take note that a message was changed. Errors: StorageError."""
        ...

    async def delete(self, deletion: MessageDeletion) -> None:
        """Take note that messages were taken back. Errors: StorageError."""
        ...

    async def last_heard(self, adapter_key: str) -> Sequence[Target]:
        """The newest message of each conversation that was alive lately; `message_id` names it.

        For platforms that keep what was said and do not deliver it again: after an interruption the adapter fetches
        what came behind these, as far as it is no older than `LATE_S`, and hands it in like everything else.

        Errors: StorageError.
        """
        ...

    def is_admitted(self, message: InboundMessage) -> bool:
        """Whether `take` would not refuse it, without taking it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where the bytes of an attachment are, and how to ask for them. Never written down.

    Args:
        headers: go to hosts of `hosts` only, also after redirects.
        hosts: host names (with port where it is not the usual one) that the headers are meant for.
        may_be_private: the address may lie in a private network, because the owner configured it so.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hosts: frozenset[str] = frozenset()
    may_be_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A place that something can be sent to without anybody having written there."""

    conversation_id: ConversationId
    name: str
    is_direct: bool
    data: Mapping[str, Any]


class Adapter(Protocol):
    """One live connection. `key` is its runtime name: the platform, or `platform:instance`."""

    @property
    def key(self) -> str:
        """Its runtime name."""
        ...

    @property
    def platform(self) -> str:
        """Its platform."""
        ...

    @property
    def traits(self) -> Traits:
        """What it can do."""
        ...

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected. Reports `started(who it is there)` once signed in; returns or raises when the stream ends.

        Errors: DeliveryError; permanent for credentials and rights that somebody has to mend.
        """
        ...

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        """Deliver a message, in as many parts as it takes.

        Args:
            note_sent: awaited with the platform's id after each part, so that a retry goes on behind it.

        Errors: DeliveryError.
        """
        ...

    async def show_typing(self, target: Target) -> None:
        """Show once that an answer is being written. Errors: DeliveryError."""
        ...

    async def stop_typing(self, target: Target) -> None:
        """Take that sign away where it does not go by itself. Errors: DeliveryError."""
        ...

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Show the whole text so far of a growing answer; returns the draft's platform id. Errors: DeliveryError."""
        ...

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """Remove a draft that no answer came of. Errors: DeliveryError."""
        ...

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """What was said before the target's message (or lately, without one), oldest first. Errors: DeliveryError."""
        ...

    async def locate(self, attachment: Attachment) -> Location:
        """Where to fetch an attachment that came through this adapter. Errors: DeliveryError."""
        ...

    async def resolve(self, address: str) -> Destination:
        """The place behind an address of the platform, without the adapter's name. Errors: DeliveryError, permanent."""
        ...

    async def check(self) -> str:
        """Ask the platform whether all is well; returns what it says, for people. Errors: DeliveryError."""
        ...
