"""What happens inside, as frozen values, and the bus that tells observers of it.

The bus feeds the API's event stream, logs and metrics. It never carries control: a slow reader loses
the oldest events, is told how many, and fetches the state anew (design 5).

Floor: base
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

import trio

BUFFER = 512  # events kept for one reader; control spec 4.9


class EventKind(StrEnum):
    """Names on the wire; control spec 4.9."""

    INBOUND_MESSAGE = "inbound_message"
    OUTBOUND_MESSAGE = "outbound_message"
    OUTBOUND_DELTA = "outbound_message_delta"
    REACTION = "reaction"
    TYPING_STATE = "typing_state"
    TURN_ENDED = "turn_ended"
    WORKER_STARTED = "worker_started"
    WORKER_STATUS = "worker_status"
    WORKER_IDLE = "worker_idle"
    WORKER_COMPLETED = "worker_completed"
    BRANCH_STARTED = "branch_started"
    BRANCH_COMPLETED = "branch_completed"
    TOOL_STARTED = "tool_started"
    TOOL_COMPLETED = "tool_completed"
    TOOL_OUTPUT = "tool_output"
    MODEL_CALL = "model_call"  # one ended, well or not
    HISTORY_REPAIRED = "history_repaired"  # a tool call whose result was lost got one that says so
    MEMORY_RECALLED = "memory_recalled"
    MEMORY_SAVED = "memory_saved"
    MEMORY_CHANGED = "memory_changed"  # edited, forgotten, merged, pruned: what was read before may be out of date
    COMPACTION_STARTED = "compaction_started"
    COMPACTION_COMPLETED = "compaction_completed"
    INGESTION_PROGRESS = "ingestion_progress"
    CORTEX_EVENT = "cortex_event"
    CRON_RUN = "cron_run"  # a schedule's run began or ended
    CONFIG_RELOADED = "config_reloaded"
    ADAPTER_STATE = "adapter_state"
    AGENT_STATE = "agent_state"  # opened, paused, closed, failed
    DELIVERED = "delivered"  # a message reached its platform
    UNDELIVERED = "undelivered"  # and this one never will
    BUDGET_STATE = "budget_state"  # an agent's budget of the day is nearly or wholly used up
    MESSAGE_CHANGED = "message_changed"  # its writer edited it or took it back


EventValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvent:
    """One thing that happened.

    `fields` holds plain values only, never an object of a library; sizes are capped by the sender.
    """

    kind: EventKind
    agent_id: str | None = None
    channel_id: str | None = None
    fields: Mapping[str, EventValue] = field(default_factory=lambda: MappingProxyType({}))

    def to_json_object(self) -> dict[str, EventValue]:
        """The form on the wire: a flat object with the kind under `type`."""
        return {"type": str(self.kind), "agent_id": self.agent_id, "channel_id": self.channel_id, **self.fields}

    def outline(self) -> "ProcessEvent":
        """The same without what a tool was given and gave back; those texts may be long."""
        left_out = _DETAILS.get(self.kind)
        if left_out is None:
            return self
        return replace(self, fields={name: value for name, value in self.fields.items() if name not in left_out})


_DETAILS = {  # of tool events: for who watches one worker
    EventKind.TOOL_STARTED: ("arguments",),
    EventKind.TOOL_COMPLETED: ("result",),
}


class Subscription:
    """One reader's view of the bus: a bounded queue that drops its oldest events.

    Iterate it, or call `receive`. `take_skipped` tells how many events were dropped since it was last asked.
    """

    def __init__(
        self, kinds: frozenset[EventKind] | None, channel_id: str | None, buffer: int, *, has_details: bool = False
    ) -> None:
        self.has_details = has_details
        self._kinds = kinds
        self._channel_id = channel_id
        self._events: deque[ProcessEvent] = deque(maxlen=buffer)
        self._skipped = 0
        self._arrived = trio.Event()
        self._closed = False

    def wants(self, event: ProcessEvent) -> bool:
        """Whether the reader asked for this event."""
        if self._kinds is not None and event.kind not in self._kinds:
            return False
        return self._channel_id is None or event.channel_id == self._channel_id

    def offer(self, event: ProcessEvent) -> None:
        """Put an event into the queue; never waits."""
        if len(self._events) == self._events.maxlen:
            self._skipped += 1
        self._events.append(event)
        self._arrived.set()

    def take_skipped(self) -> int:
        """Number of events dropped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def close(self) -> None:
        """End the iteration after the queued events."""
        self._closed = True
        self._arrived.set()

    async def receive(self) -> ProcessEvent | None:
        """Wait for the next event; None once the bus is closed."""
        while not self._events:
            if self._closed:
                return None
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._events.popleft()

    def receive_nowait(self) -> ProcessEvent | None:
        """The next event if there is one already."""
        return self._events.popleft() if self._events else None

    async def __aiter__(self) -> AsyncIterator[ProcessEvent]:
        while (event := await self.receive()) is not None:
            yield event


class _Listener(Subscription):
    """Hears each event at once instead of queueing it."""

    def __init__(self, kinds: frozenset[EventKind], hear: Callable[[ProcessEvent], None]) -> None:
        super().__init__(kinds, None, 1)
        self._hear = hear

    def offer(self, event: ProcessEvent) -> None:
        """Pass it on."""
        self._hear(event)


class EventBus:
    """Broadcast of events to any number of readers; sending never waits and never fails."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def send(self, event: ProcessEvent) -> None:
        """Tell every reader that asked for this kind."""
        outline = event.outline()
        for subscription in self._subscriptions:
            if subscription.wants(event):
                subscription.offer(event if subscription.has_details else outline)

    def emit(
        self,
        event_kind: EventKind,
        /,
        *,
        agent_id: str | None = None,
        channel_id: str | None = None,
        **fields: EventValue,
    ) -> None:
        """Build and send an event."""
        if self._subscriptions:
            self.send(ProcessEvent(kind=event_kind, agent_id=agent_id, channel_id=channel_id, fields=fields))

    @contextmanager
    def subscribe(
        self,
        kinds: frozenset[EventKind] | None = None,
        *,
        channel_id: str | None = None,
        buffer: int = BUFFER,
        has_details: bool = False,
    ) -> Iterator[Subscription]:
        """Listen while the block runs.

        Args:
            kinds: the kinds wanted; None means all.
            channel_id: only events of this channel; None means all.
            buffer: events kept for a slow reader before the oldest are dropped.
            has_details: tool events come with what the tool was given and gave back, up to 50 KB each.
        """
        subscription = Subscription(kinds, channel_id, buffer, has_details=has_details)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    @contextmanager
    def counted(self, kinds: frozenset[EventKind], hear: Callable[[ProcessEvent], None]) -> Iterator[None]:
        """Have a function called for each event while the block runs, at once, so that none is lost.

        Args:
            hear: counts, and does nothing that could wait or fail.
        """
        listener = _Listener(kinds, hear)
        self._subscriptions.add(listener)
        try:
            yield
        finally:
            self._subscriptions.discard(listener)

    def close(self) -> None:
        """End every subscription, so that open streams finish cleanly at shutdown."""
        for subscription in self._subscriptions:
            subscription.close()
