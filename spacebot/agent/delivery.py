"""Delivers what the agent says to the platforms: in order per conversation, again after failures, once.

One task per conversation with something in the outbox; it ends when nothing is left. What an adapter cannot take
now waits, and only the conversation's own later messages wait with it. Where the adapter is away, one task waits for
all its conversations.

Flow:    a row in the outbox -> nudge -> relay -> adapter.send -> delivered | undelivered, told at the next turn
Floor:   agent
Source:  design 4.5, messaging spec 3; pitfalls 1, 9, 12, 29 and n of its section 19
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import trio

from spacebot.base.clock import Clock, from_text
from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId, ConversationId, MessageId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import describe
from spacebot.conversations.outbox import Outbox
from spacebot.conversations.records import Parcel
from spacebot.messaging.adapter import Adapter
from spacebot.messaging.courier import Courier
from spacebot.messaging.messages import Target

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0  # after a failed attempt; doubles
LONGEST_PAUSE_S = 60.0
ATTEMPTS = 25  # failed ones of one message: about 20 minutes of a platform that answers and refuses
BREAKS = 3  # times that an adapter may break over one message
OLDEST_S = 86_400.0  # what could not be delivered for a day helps nobody any more
AT_ONCE = 50  # conversations of an adapter that are sent to
LOOK_S = 3600.0  # while an adapter is away, what waits for it is looked through so often for what has grown too old
FRESH_S = 60.0  # a copy of a file may be so old before its row is there
RETURN_S = 300.0  # for an adapter to come back and tidy up
END_S = 5.0  # for a last call to a platform when something ends


class Delivery:
    """What one agent sends. `run` is its life; `nudge` never waits."""

    def __init__(
        self,
        outbox: Outbox,
        courier: Courier,
        *,
        agent_id: AgentId,
        events: EventBus,
        clock: Clock,
        outgoing: Path | None = None,
    ) -> None:
        """Make the delivery of an agent; `outgoing` is the folder with copies of files that are to be sent."""
        self._outbox = outbox
        self._outgoing = outgoing
        self._courier = courier
        self._agent_id = agent_id
        self._events = events
        self._clock = clock
        self._nursery: trio.Nursery | None = None
        self._relays: dict[ConversationId, bool] = {}  # those that run; True: look again before you end
        self._paused: set[ConversationId] = set()  # those that wait for a platform
        self._parked: dict[str, set[ConversationId]] = {}  # those that wait for an adapter, by its key
        self._limits: dict[str, trio.CapacityLimiter] = {}
        self._moved = trio.Event()
        self._news: dict[ConversationId, trio.Event] = {}  # for those who fetch what is said

    @property
    def outbox(self) -> Outbox:
        """What waits."""
        return self._outbox

    @property
    def courier(self) -> Courier:
        """The platforms."""
        return self._courier

    @property
    def nursery(self) -> trio.Nursery | None:
        """Owns what is shown beside (`agent/presence.py`); None while it does not run."""
        return self._nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled, beginning with what an earlier life left."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self.sweep(fresh_s=0.0)  # nobody makes copies yet
                await self._nudge_all(await self._outbox.open_channels())
                for draft in await self._outbox.take_stale_drafts():
                    nursery.start_soon(self.drop_draft, draft.adapter, draft.target, draft.draft_id)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def flush(self, patience_s: float) -> None:
        """Wait until everything is delivered that does not wait for a platform, at most `patience_s` seconds."""
        with trio.move_on_after(patience_s):
            while self._relays.keys() - self._paused:
                self._moved = trio.Event()
                await self._moved.wait()

    def nudge(self, channel_id: ConversationId) -> None:
        """Something was put into the outbox of a conversation."""
        if (news := self._news.pop(channel_id, None)) is not None:
            news.set()
        if channel_id in self._relays:
            self._relays[channel_id] = True
        elif self._nursery is not None:
            self._relays[channel_id] = False
            self._nursery.start_soon(self._relay, channel_id)

    async def wait_for_news(self, channel_id: ConversationId) -> None:
        """Wait until something more is put into the outbox of a conversation."""
        news = self._news.setdefault(channel_id, trio.Event())
        try:
            await news.wait()
        finally:
            if self._news.get(channel_id) is news and not news.statistics().tasks_waiting:
                del self._news[channel_id]

    async def fetched(self, message_ids: Sequence[MessageId]) -> None:
        """Note that whoever fetches their messages has got these."""
        for message_id in message_ids:
            await self._outbox.note_sent(message_id, (), is_last=True)
        if message_ids:
            await self.sweep()

    async def sweep(self, *, fresh_s: float = FRESH_S) -> None:
        """Remove copies of files that nothing in the outbox waits for.

        Args:
            fresh_s: leave those alone that are not older; the row of such a one may be about to be written.
        """
        if self._outgoing is None:
            return
        try:
            wanted = await self._outbox.files()
        except StorageError as error:
            log.warning("copies of sent files not looked through", extra=kv(error=str(error)))
            return
        await trio.to_thread.run_sync(_remove_copies, self._outgoing, wanted, time.time() - fresh_s)

    async def drop_draft(self, adapter_key: str, target: Target, draft_id: str) -> None:
        """Remove a growing draft that nothing came of, when its platform can be reached in time."""
        with trio.move_on_after(RETURN_S):
            adapter = await self._courier.wait_connected(adapter_key)
            try:
                await adapter.drop_draft(target, draft_id)
            except DeliveryError as error:
                log.info("draft not removed", extra=kv(adapter=adapter_key, reason=scrub(str(error))))
            except Exception as error:  # boundary: adapter
                log.error("adapter broke while removing a draft", exc_info=error, extra=kv(adapter=adapter_key))

    async def _relay(self, channel_id: ConversationId) -> None:
        """Deliver what waits in a conversation, one after the other."""
        breaks: Counter[MessageId] = Counter()
        try:
            while True:
                self._relays[channel_id] = False
                try:
                    async with self._limit(channel_id):
                        parcel = await self._outbox.take(channel_id)
                        pause_s = await self._deliver(parcel, breaks) if parcel is not None else None
                    if pause_s is None:
                        if self._relays[channel_id] and parcel is None:
                            continue
                        return
                except StorageError as error:
                    log.error("outbox not served, it is tried again", extra=kv(channel=channel_id, error=str(error)))
                    pause_s = LONGEST_PAUSE_S
                except Exception as error:  # boundary: connection; one bad row is not the end of the agent
                    log.error("outbox broken, it is tried again", exc_info=error, extra=kv(channel=channel_id))
                    pause_s = LONGEST_PAUSE_S
                if pause_s:  # what waits may be erased or changed meanwhile, so it is taken anew
                    await self._pause(channel_id, pause_s)
        finally:
            del self._relays[channel_id]
            self._moved.set()

    async def _deliver(self, parcel: Parcel, breaks: Counter[MessageId]) -> float | None:
        """Try once; returns the pause until the next attempt, None when the adapter is away or nothing is pushed.

        Errors: StorageError.
        """
        adapter = self._courier.connected(parcel.adapter)
        if adapter is None:
            if not parcel.message.is_doubtful:
                with trio.CancelScope(shield=True):  # else it would be in doubt for nothing
                    await self._outbox.put_back(parcel.message.id)
            if self._is_young(parcel):
                self._park(parcel)
                return None
            await self._give_up(parcel, f"{parcel.adapter} was not connected for a day")
            return 0.0
        if adapter.traits.is_pulled:
            if self._is_young(parcel):
                return None
            await self._give_up(parcel, "nobody fetched it for a day")
            return 0.0
        try:
            await self._send(adapter, parcel)
            return 0.0
        except DeliveryError as error:
            failures, reason = parcel.attempts + 1, scrub(str(error))
            is_final = error.is_permanent or failures >= ATTEMPTS
            is_doubtful = error.retry_after_s is None  # else the platform said no, so it cannot have arrived
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
            pause_s = max(pause_s, error.retry_after_s or 0.0)
        except StorageError:
            raise
        except Exception as error:  # boundary: adapter
            breaks[parcel.message.id] += 1
            reason, is_doubtful, pause_s = scrub(describe(error)), True, FIRST_PAUSE_S
            is_final = breaks[parcel.message.id] >= BREAKS
            log.error("adapter broke while sending", exc_info=error, extra=kv(adapter=parcel.adapter))
        if is_final:
            await self._give_up(parcel, reason)
            return 0.0
        log.warning("not delivered yet", extra=kv(adapter=parcel.adapter, pause_s=pause_s, reason=reason))
        await self._outbox.defer(parcel.message.id, reason, is_doubtful=parcel.message.is_doubtful or is_doubtful)
        return pause_s

    async def _send(self, adapter: Adapter, parcel: Parcel) -> None:
        sent = list(parcel.message.sent)

        async def note_sent(platform_id: str) -> None:
            sent.append(platform_id)
            with trio.CancelScope(shield=True):  # people have it; that must be known even if all stops now
                await self._outbox.note_sent(parcel.message.id, sent, is_last=False)

        await adapter.send(parcel.target, parcel.message, note_sent)
        with trio.CancelScope(shield=True):
            await self._outbox.note_sent(parcel.message.id, sent, is_last=True)
        await _discard(parcel)
        self._courier.note_delivery(parcel.adapter, is_delivered=True)
        self._emit(EventKind.DELIVERED, parcel, parts=len(sent))

    def _park(self, parcel: Parcel) -> None:
        """Have a conversation looked at again when its adapter is connected."""
        if parcel.adapter in self._parked:
            self._parked[parcel.adapter].add(parcel.target.conversation_id)
        elif self._nursery is not None:
            self._parked[parcel.adapter] = {parcel.target.conversation_id}
            self._nursery.start_soon(self._wait_for_adapter, parcel.adapter)

    async def _wait_for_adapter(self, key: str) -> None:
        with trio.move_on_after(LOOK_S):
            await self._courier.wait_connected(key)
        await self._nudge_all(self._parked.pop(key))

    async def _nudge_all(self, channels: Collection[ConversationId]) -> None:
        """Nudge any number of conversations without holding up everybody else."""
        for number, channel_id in enumerate(channels, 1):
            self.nudge(channel_id)
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _limit(self, channel_id: ConversationId) -> trio.CapacityLimiter:
        """What keeps the outbox of a whole platform from going out at the same moment."""
        configured = self._courier.keys()
        own = max((key for key in configured if channel_id.startswith(f"{key}:")), key=len, default="")
        return self._limits.setdefault(own, trio.CapacityLimiter(AT_ONCE))

    def _is_young(self, parcel: Parcel) -> bool:
        return (self._clock.now() - from_text(parcel.created_at)).total_seconds() < OLDEST_S

    async def _give_up(self, parcel: Parcel, reason: str) -> None:
        log.warning("not delivered", extra=kv(adapter=parcel.adapter, message=parcel.message.id, reason=reason))
        await self._outbox.give_up(parcel.message.id, reason)
        await _discard(parcel)
        self._courier.note_delivery(parcel.adapter, is_delivered=False)
        self._emit(EventKind.UNDELIVERED, parcel, reason=reason)

    async def _pause(self, channel_id: ConversationId, seconds: float) -> None:
        self._note_pause(channel_id)
        try:
            await trio.sleep(seconds)
        finally:
            self._paused.discard(channel_id)

    def _note_pause(self, channel_id: ConversationId) -> None:
        self._paused.add(channel_id)
        self._moved.set()

    def _emit(self, kind: EventKind, parcel: Parcel, **fields: str | int) -> None:
        self._events.emit(
            kind,
            agent_id=self._agent_id,
            channel_id=parcel.target.conversation_id,
            message_id=parcel.message.id,
            adapter=parcel.adapter,
            **fields,
        )


async def _discard(parcel: Parcel) -> None:
    """Remove the copy of a file that was to be sent."""
    if parcel.message.file is not None:
        try:
            await trio.Path(parcel.message.file.path).unlink(missing_ok=True)
        except OSError as error:
            log.warning("copy of a sent file not removed", extra=kv(reason=str(error)))


def _remove_copies(folder: Path, wanted: Collection[str], before: float) -> None:
    """Remove files of a folder that are not wanted and were written before a moment (seconds since the epoch)."""
    try:
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.name not in wanted and file.is_file() and file.stat().st_mtime <= before:
                file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("copies of sent files not removed", extra=kv(reason=str(error)))
