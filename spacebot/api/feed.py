"""Everything that happens, for any number of observers: heard once, numbered, encoded once, kept for a while.

Observers are woken together, at most so many times a second, and those that want the same get the same bytes: what an
event costs hardly grows with their number. One who was away comes back with the last id; what came after it is sent
first, as far as it is kept, and otherwise `lagged` says that the state has to be read anew.

Flow:    EventBus -> Feed._hear -> ring -> (a beat) -> FeedReader.receive -> one piece of bytes for all
Floor:   api
Source:  control spec 4.9; WHATWG HTML, Last-Event-ID
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from spacebot.api.streams import Frame
from spacebot.base.events import EventBus, EventKind, ProcessEvent

RING = 2048  # events that are kept
RING_CHARS = 8_000_000  # and of how many characters at most
BEAT_S = 0.0005  # between two wakings for each observer: what they cost together has a bound, and few wait for nothing
LONGEST_BEAT_S = 0.25
PIECE = 256  # events in one piece
LAGGED = "lagged"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an observer asked for: all kinds and agents unless said otherwise."""

    kinds: frozenset[EventKind] | None = None
    agent_id: str | None = None

    def fits(self, event: ProcessEvent) -> bool:
        """Whether it is told of an event."""
        if self.kinds is not None and event.kind not in self.kinds:
            return False
        return self.agent_id is None or event.agent_id in (None, self.agent_id)


@dataclass(frozen=True, slots=True)
class Piece:
    """Several frames as they go over the wire."""

    body: bytes

    def encode(self) -> bytes:
        """The bytes."""
        return self.body


class Feed:
    """The newest events of one life of the program; `run` wakes the observers."""

    def __init__(self, events: EventBus, run_id: str) -> None:
        self._events = events
        self._mark = run_id[:8]
        self._ring: list[ProcessEvent] = []
        self._first = 1  # number of the ring's first event
        self._chars = 0
        self.released = 0  # number of the newest event that observers were woken for
        self._arrived = trio.Event()
        self._beat = trio.Event()
        self._readers = 0
        self._frames: dict[int, bytes] = {}
        self._pieces: dict[tuple[int, int, Wanted], bytes] = {}

    @property
    def last(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._first + len(self._ring) - 1

    @property
    def first(self) -> int:
        """Number of the oldest event that is kept."""
        return self._first

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear all that happens while the block runs."""
        with self._events.counted(frozenset(EventKind), self._hear):
            yield

    async def run(self) -> None:
        """Wake the observers until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            self._pieces.clear()
            self.released = self.last
            beat, self._beat = self._beat, trio.Event()
            beat.set()
            await trio.sleep(min(LONGEST_BEAT_S, BEAT_S * self._readers))

    @contextmanager
    def reading(self, wanted: Wanted, resume: str | None) -> "Iterator[FeedReader]":
        """Observe while the block runs: from now on, or from behind the event of this id."""
        self._readers += 1
        try:
            yield self._reader(wanted, resume)
        finally:
            self._readers -= 1

    def _reader(self, wanted: Wanted, resume: str | None) -> "FeedReader":
        if not resume:
            return FeedReader(self, wanted, self.last)
        mark, _, number = resume.rpartition("-")
        is_ours = mark == self._mark and number.isdecimal() and len(number) < 18
        after = int(number) if is_ours else -1
        if not 0 <= after <= self.last:
            return FeedReader(self, wanted, self.last, lagged=0)  # of another life of the program
        return FeedReader(self, wanted, after)

    async def wait_newer(self, number: int) -> None:
        """Wait for the next waking if there is nothing behind this event yet."""
        if self.released > number:
            await trio.lowlevel.checkpoint()
        else:
            await self._beat.wait()

    def piece(self, after: int, wanted: Wanted) -> tuple[bytes, int]:
        """The frames that fit behind an event, up to `PIECE` events of all, and the number of the last of these."""
        until = min(self.released, after + PIECE)
        key = (after, until, wanted)
        if (body := self._pieces.get(key)) is None:
            start = after + 1 - self._first
            body = b"".join(
                self._frame(number, event)
                for number, event in enumerate(self._ring[start : start + until - after], after + 1)
                if wanted.fits(event)
            )
            if len(self._pieces) > PIECE:
                self._pieces.clear()
            self._pieces[key] = body
        return body, until

    def lagged(self, skipped: int) -> Frame:
        """What tells an observer that it missed something; its id is where it goes on from."""
        return Frame(LAGGED, {"type": LAGGED, "skipped": skipped})

    def _frame(self, number: int, event: ProcessEvent) -> bytes:
        body = self._frames.get(number)
        if body is None:
            body = Frame(str(event.kind), event.to_json_object(), f"{self._mark}-{number}").encode()
            self._frames[number] = body
        return body

    def _hear(self, event: ProcessEvent) -> None:
        self._ring.append(event)
        self._chars += _size(event)
        if len(self._ring) > 2 * RING or self._chars > 2 * RING_CHARS:
            self._shorten()
        self._arrived.set()

    def _shorten(self) -> None:
        """Drop the oldest, many at once, so that it costs nothing each time."""
        while len(self._ring) > RING or (self._chars > RING_CHARS and len(self._ring) > 1):
            drop = max(1, min(len(self._ring) - 1, max(len(self._ring) - RING, len(self._ring) // 8)))
            for number in range(self._first, self._first + drop):
                self._frames.pop(number, None)
            self._chars -= sum(map(_size, self._ring[:drop]))
            del self._ring[:drop]
            self._first += drop


class FeedReader:
    """One observer's place in the feed."""

    def __init__(self, feed: Feed, wanted: Wanted, after: int, *, lagged: int | None = None) -> None:
        self._feed = feed
        self._wanted = wanted
        self._after = after
        self._lagged = lagged

    async def receive(self) -> Frame | Piece:
        """Wait for what comes next."""
        while True:
            if (ready := self.receive_nowait()) is not None:
                return ready
            await self._feed.wait_newer(self._after)

    def receive_nowait(self) -> Frame | Piece | None:
        """What is there already."""
        feed = self._feed
        if (missed := feed.first - 1 - self._after) > 0:
            self._lagged, self._after = (self._lagged or 0) + missed, feed.first - 1
        if self._lagged is not None:
            skipped, self._lagged = self._lagged, None
            return feed.lagged(skipped)
        while self._after < feed.released:
            body, self._after = feed.piece(self._after, self._wanted)
            if body:
                return Piece(body)
        return None


def _size(event: ProcessEvent) -> int:
    return 100 + sum(len(value) for value in event.fields.values() if isinstance(value, str))
