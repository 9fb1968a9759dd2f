"""What was said while nobody listened comes before what is said now.

A platform that keeps messages and does not deliver them again is asked for them when a session begins that knows
nothing of what was before. Until a room's answer is there, the room's new events wait behind it; other rooms go on.
A room that cannot be asked goes on without what it missed.

Flow:    adapter's events -> CatchUp.run -> lanes; Begun -> Intake.last_heard -> fetch -> what was missed, what waited
Floor:   messaging
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import trio

from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.telemetry import kv
from spacebot.messaging.messages import Target

log = logging.getLogger(__name__)

ASK_S = 5.0  # for our own disk to tell what was heard last
ROOM_S = 20.0  # for the platform to tell what one room missed
WHOLE_S = 60.0  # for all rooms; those that had no turn by then go on without
RETRY_S = (1.0, 3.0)  # pauses between attempts; one that fails as the connection ends does not come to the second
ROOMS_AT_ONCE = 4
HELD = 1024  # events that wait for what their rooms missed; beyond them all events wait

T = TypeVar("T")


class Begun:
    """Among an adapter's events: a session began that knows nothing of what was before."""


@dataclass(eq=False)
class _Gap(Generic[T]):
    """A room whose missed messages are not there yet."""

    targets: list[Target] = field(default_factory=list)  # what was heard last in its conversations
    held: deque[T] = field(default_factory=deque)


class CatchUp(Generic[T]):
    """Sits between an adapter's events and its lanes.

    Args:
        key: the adapter's runtime name, for the log.
        heard: what was heard last, by conversation, the liveliest first.
        place: the room of a conversation; None for one that cannot be asked.
        fetch: what was said in a room behind its targets, in order. Errors: DeliveryError.
        room: of an event; events of one room keep their order.
        moment: of an event, or of what it changes; by it events that waited and messages that were missed are put
            in order.
    """

    def __init__(
        self,
        key: str,
        *,
        heard: Callable[[], Awaitable[Sequence[Target]]],
        place: Callable[[Target], str | None],
        fetch: Callable[[str, Sequence[Target]], Awaitable[Sequence[T]]],
        room: Callable[[T], str],
        moment: Callable[[T], Any],
    ) -> None:
        self._key = key
        self._heard = heard
        self._place = place
        self._fetch = fetch
        self._room = room
        self._moment = moment
        self._gaps: dict[str, _Gap[T]] = {}
        self._count = 0  # events that wait
        self._fewer = trio.Event()
        self._scope = trio.CancelScope()  # of the catching up that goes on
        self._over = trio.Event()  # it is over
        self._over.set()

    async def run(self, events: trio.MemoryReceiveChannel[T | Begun], onwards: trio.MemorySendChannel[T]) -> None:
        """Pass events on until their channel is closed; `onwards` is closed then.

        What waits at the end for something missed is dropped: it is fetched together with that in the next life,
        whereas taken now it would stand for all before it.
        """
        async with onwards, trio.open_nursery() as nursery:
            async for event in events:
                if isinstance(event, Begun):
                    await self._begin(nursery, onwards)
                else:
                    await self._pass(event, onwards)
            nursery.cancel_scope.cancel()
        if self._count:
            log.info("events left to the next connection", extra=kv(adapter=self._key, events=self._count))

    async def _pass(self, event: T, onwards: trio.MemorySendChannel[T]) -> None:
        room = self._room(event)
        while room in self._gaps and self._count >= HELD:
            self._fewer = trio.Event()
            await self._fewer.wait()
        if room in self._gaps:
            self._gaps[room].held.append(event)
            self._count += 1
        else:
            await onwards.send(event)

    async def _begin(self, nursery: trio.Nursery, onwards: trio.MemorySendChannel[T]) -> None:
        """Catch up; what an earlier session had not caught up with yet is part of it."""
        self._scope.cancel()
        await self._over.wait()
        targets: Sequence[Target] | None = None
        try:
            with trio.move_on_after(ASK_S):
                targets = await self._heard()
        except StorageError as error:
            log.warning("missed messages not looked for", extra=kv(adapter=self._key, reason=str(error)))
        if targets is not None:
            for gap in self._gaps.values():
                gap.targets.clear()
        for target in targets or ():
            if (place := self._place(target)) is not None:
                self._gaps.setdefault(place, _Gap()).targets.append(target)
        if self._gaps:
            self._scope, self._over = trio.CancelScope(), trio.Event()
            nursery.start_soon(self._fill_all, onwards, self._scope, self._over)

    async def _fill_all(self, onwards: trio.MemorySendChannel[T], scope: trio.CancelScope, over: trio.Event) -> None:
        until, rooms = trio.current_time() + WHOLE_S, iter(list(self._gaps))

        async def work() -> None:
            for room in rooms:
                await self._fill(onwards, room, until)

        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(ROOMS_AT_ONCE):
                        nursery.start_soon(work)
        finally:
            over.set()

    async def _fill(self, onwards: trio.MemorySendChannel[T], room: str, until: float) -> None:
        gap = self._gaps[room]
        missed = await self._missed(room, gap.targets, until)
        while missed or gap.held:
            if missed and not (gap.held and self._moment(gap.held[0]) < self._moment(missed[0])):
                await onwards.send(missed[0])
                missed.popleft()
            else:
                await onwards.send(gap.held[0])
                gap.held.popleft()
                self._count -= 1
                self._fewer.set()
        del self._gaps[room]
        self._fewer.set()

    async def _missed(self, room: str, targets: Sequence[Target], until: float) -> deque[T]:
        """What a room missed; nothing when that cannot be had."""
        if not targets:  # it was of an earlier session's gaps, and is none any more
            return deque()
        reason = "no answer in time"
        with trio.CancelScope(deadline=min(until, trio.current_time() + ROOM_S)):
            for pause in (*RETRY_S, None):
                try:
                    missed = deque(await self._fetch(room, targets))
                except DeliveryError as error:
                    reason = str(error)
                    if error.is_permanent or pause is None:
                        break
                    await trio.sleep(max(pause, error.retry_after_s or 0.0))
                else:
                    if missed:
                        log.info("missed messages fetched", extra=kv(adapter=self._key, messages=len(missed)))
                    return missed
        log.info("missed messages not fetched", extra=kv(adapter=self._key, room=room, reason=reason))
        return deque()
