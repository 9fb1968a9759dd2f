"""One conversation as a stream: every logged message exactly once and in order, and what happens meanwhile.

The log is the truth. A reader holds the number of the last message it was given; a live event that
carries the next number is passed on as it is, anything else (a gap, a lag, a reconnect) reads the log
from that number on. Passing events (typing, deltas, branches, workers, tools) may get lost when a reader
is slow; it then receives a new `hello` with the state as it stands.

Flow:    open_session_stream -> hello -> replay from the log -> live events -> None when the bus closes
Floor:   api
Source:  messaging spec 14.5 (several subscriptions per session, none required); control spec 4.9
"""

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from spacebot.api.contract import AgentHandle
from spacebot.base.clock import to_text
from spacebot.base.events import EventBus, EventKind, ProcessEvent, Subscription
from spacebot.base.ids import ConversationId, parse_conversation_id
from spacebot.base.tree import NodeKind, NodeView, Tree
from spacebot.conversations.records import LoggedMessage

PLATFORM = "webchat"
PAUSED = "the agent is paused: what you said is kept, and answered when it goes on (spacebot agent resume)"
PAGE = 200  # messages in one read of the log

HELLO = "hello"
MESSAGE = "message"
_LOGGED = frozenset({EventKind.INBOUND_MESSAGE, EventKind.OUTBOUND_MESSAGE, EventKind.REACTION})


def conversation_of(session_id: str) -> ConversationId:
    """The conversation of a web session: callers choose session ids, so the platform's prefix is added to all.

    Errors: RefusedError when the id is empty, too long or holds control characters.
    """
    if not session_id:
        return parse_conversation_id("")
    return parse_conversation_id(f"{PLATFORM}:{session_id}")


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """One thing for a reader.

    `name` is `hello`, `message` (a logged one: text, notice or reaction) or an `EventKind` in its wire form;
    `data` holds JSON values. `seq` is set for messages only and is the number to resume after.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seq(self) -> int | None:
        """Number of the logged message; None for everything else."""
        return self.data["seq"] if self.name == MESSAGE else None


class SessionStream:
    """A reader's place in one conversation; iterate it, or call `receive`."""

    def __init__(
        self,
        agent: AgentHandle,
        conversation_id: ConversationId,
        subscription: Subscription,
        tree: Tree | None,
        *,
        last_seq: int,
        after_seq: int | None,
    ) -> None:
        self._agent = agent
        self._conversation_id = conversation_id
        self._subscription = subscription
        self._tree = tree
        self._cursor = last_seq if after_seq is None else min(after_seq, last_seq)
        self._is_behind = self._cursor < last_seq
        self._held: ProcessEvent | None = None
        self._skipped = 0
        self._ready: deque[SessionEvent] = deque([self._hello(last_seq)])

    @property
    def last_seq(self) -> int:
        """Number of the last message that was made ready for the reader."""
        return self._cursor

    async def receive(self) -> SessionEvent | None:
        """Wait for the next event; None when the program stops.

        Cancel: loses nothing; call it again.
        """
        while not self._ready:
            if self._is_behind:
                await self._read_log()
            elif self._skipped:
                skipped, self._skipped = self._skipped, 0
                self._ready.append(self._hello(self._cursor, skipped))
            elif self._held is None:
                if not self._hold(await self._subscription.receive()):
                    return None
            else:
                self._take(self._held)
        return self._ready.popleft()

    def receive_nowait(self) -> SessionEvent | None:
        """The next event if it is there already and needs no look at the log."""
        while not self._ready:
            if self._is_behind or self._skipped:
                return None
            if self._held is None:
                if not self._hold(self._subscription.receive_nowait()):
                    return None
            else:
                self._take(self._held)
        return self._ready.popleft()

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while (event := await self.receive()) is not None:
            yield event

    def _hold(self, event: ProcessEvent | None) -> bool:
        """Keep an event until it is its turn, and note what was lost before it; False when there is none."""
        self._held = event
        if event is None:
            return False
        if skipped := self._subscription.take_skipped():
            self._skipped += skipped
            self._is_behind = True
        return True

    def _take(self, event: ProcessEvent) -> None:
        """Pass the held event on, drop it as known, or keep it and ask for the log first."""
        if event.agent_id == self._agent.id:
            if event.kind not in _LOGGED:
                self._ready.append(SessionEvent(str(event.kind), event.to_json_object()))
            elif _seq(event) == self._cursor + 1:
                self._cursor += 1
                self._ready.append(SessionEvent(MESSAGE, _from_event(event)))
            elif _seq(event) > self._cursor:
                self._is_behind = True  # the log has this message too: it was committed before the event
        self._held = None

    async def _read_log(self) -> None:
        rows = await self._agent.conversations.history(self._conversation_id, limit=PAGE, after_seq=self._cursor)
        self._is_behind = len(rows) == PAGE
        for row in rows:
            self._cursor = row.seq
            self._ready.append(SessionEvent(MESSAGE, message_object(row)))

    def _hello(self, last_seq: int, skipped: int = 0) -> SessionEvent:
        views = () if self._tree is None else self._tree.view()
        mine = [v for v in views if v.agent_id == self._agent.id and v.channel_id == self._conversation_id]
        status = self._agent.status_blocks().get(self._conversation_id, {})
        return SessionEvent(
            HELLO,
            {
                "agent_id": self._agent.id,
                "channel_id": self._conversation_id,
                "model": self._agent.model_label,
                "last_seq": last_seq,
                "skipped": skipped,
                "is_typing": any(view.kind == NodeKind.TURN for view in mine),
                "processes": [process_object(view) for view in mine],
                "completed_items": list(status.get("completed_items", ())),
            },
        )


@asynccontextmanager
async def open_session_stream(
    agent: AgentHandle,
    events: EventBus,
    conversation_id: ConversationId,
    *,
    after_seq: int | None,
    tree: Tree | None = None,
) -> AsyncIterator[SessionStream]:
    """Follow one conversation of one agent while the block runs; any number of readers may.

    The first event is `hello`: `last_seq` of the log, the live `processes` of this channel (with `tree`),
    its latest `completed_items`, `is_typing`. The same event comes again, with `skipped` above 0, after events
    were lost on a slow reader.

    Args:
        after_seq: give the messages after this number first, then live; None means only from now on. A number
            that the log has not reached yet counts as the log's last.

    Errors: StorageError when the log cannot be read.
    """
    with events.subscribe(channel_id=conversation_id) as subscription:
        newest = await agent.conversations.history(conversation_id, limit=1)
        last_seq = newest[-1].seq if newest else 0
        yield SessionStream(agent, conversation_id, subscription, tree, last_seq=last_seq, after_seq=after_seq)


def message_object(row: LoggedMessage) -> dict[str, Any]:
    """A logged message as readers get it."""
    return {key: value for key, value in asdict(row).items() if key not in ("channel_id", "is_queued")}


def process_object(view: NodeView) -> dict[str, Any]:
    """A running thing as readers get it; spans in seconds."""
    fields = asdict(view)
    fields["started_at"] = to_text(view.started_at)
    fields["age_s"], fields["idle_s"] = round(view.age_s, 1), round(view.idle_s, 1)
    return fields


def _seq(event: ProcessEvent) -> int:
    seq = event.fields.get("seq")
    return seq if isinstance(seq, int) else 0


def _from_event(event: ProcessEvent) -> dict[str, Any]:
    """The same object as `message_object` makes of the row."""
    fields = event.fields
    is_inbound, is_reaction = event.kind is EventKind.INBOUND_MESSAGE, event.kind is EventKind.REACTION
    return {
        "id": fields["message_id"],
        "seq": fields["seq"],
        "role": "user" if is_inbound else "assistant",
        "sender_id": fields.get("sender_id"),
        "sender_name": fields.get("sender_name"),
        "content": fields["emoji"] if is_reaction else fields["text"],
        "kind": "reaction" if is_reaction else fields.get("kind", "text"),
        "reply_to": fields.get("reply_to"),
        "turn_id": fields.get("turn_id"),
        "created_at": fields.get("created_at"),
        "file": {key: fields[key] for key in ("filename", "media_type", "size_bytes")}
        if "filename" in fields
        else None,
    }
