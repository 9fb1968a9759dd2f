"""One connection to Twitch's chat: lines in and out, signs of life, and what became of the message on its way.

Floor:   messaging
Source:  messaging spec 18.6; Twitch IRC documentation
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import DeliveryError
from spacebot.messaging.irc import Line, LineBuffer, parse, write

WRITE_S = 10.0
PONG_S = 10.0
UNREADABLE = "UNREADABLE"  # a command of our own making
RECEIVED = 65_536  # bytes of one read


def lost() -> DeliveryError:
    """The error of a connection that ended unasked."""
    return DeliveryError("the connection to Twitch ended", is_permanent=False)


@dataclass(slots=True)
class Answer:
    """What the chat says to the message on its way: neither id nor error until `came` is set."""

    room: str
    came: trio.Event = field(default_factory=trio.Event)
    id: str | None = None
    error: DeliveryError | None = None


class Link:
    """See the module.

    `joining` are rooms whose JOIN was not answered yet; `moderated` those where the account may speak more often.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.failure: DeliveryError | None = None
        self.rooms: set[str] = set()
        self.joining: set[str] = set()
        self.moderated: set[str] = set()
        self.slow_s: dict[str, float] = {}
        self._stream = stream
        self._buffer = LineBuffer()
        self._lines: deque[str] = deque()
        self._writing = trio.Lock()
        self._answer: Answer | None = None
        self._pong = trio.Event()
        self._is_busy = False

    async def next(self) -> Line | None:
        """The next line; None when the connection ended. One that makes no sense comes as `UNREADABLE`.

        Errors: DeliveryError when it broke.
        """
        while True:
            if self._lines:
                try:
                    return parse(self._lines.popleft())
                except ValueError as error:
                    return Line(UNREADABLE, (str(error),))
            try:
                data = await self._stream.receive_some(RECEIVED)
                if not data:
                    return None
                self._lines += self._buffer.feed(bytes(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError) as error:
                raise self.failure or lost() from error

    async def write(self, line: Line) -> None:
        """Send a line, whole: a half one would spoil the next.

        Errors: ValueError when it cannot be a line; DeliveryError when the connection broke.
        """
        raw = write(line)
        async with self._writing:
            try:
                with trio.fail_after(WRITE_S) as scope:
                    scope.shield = True
                    await self._stream.send_all(raw)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
                self.fail(lost())
                raise self.failure or lost() from error

    def fail(self, error: DeliveryError) -> None:
        """End the connection for a reason; the first one counts. Whoever waits on it is woken."""
        if self.failure is None:
            self.failure = error
            if self._answer is not None:
                self._answer.error = error
                self._answer.came.set()
            self._pong.set()
            close(self._stream)

    async def ping(self) -> None:
        """Wait for a sign of life.

        Errors: DeliveryError when none came in time; a reader that waits for the program itself is excused.
        """
        pong = self._pong
        await self.write(Line("PING", ("tmi.twitch.tv",)))
        while True:
            with trio.move_on_after(PONG_S):
                await pong.wait()
            if self.failure is not None:
                raise self.failure
            if pong.is_set():
                return
            if not self._is_busy:
                raise DeliveryError(f"Twitch did not answer a PING within {PONG_S:.0f} s", is_permanent=False)

    def note_pong(self) -> None:
        """The server lives."""
        self._pong.set()
        self._pong = trio.Event()

    @contextmanager
    def being_busy(self) -> Iterator[None]:
        """While the program has no place for another event, so nothing is read."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    @contextmanager
    def expecting(self, room: str) -> Iterator[Answer]:
        """While a message to a room is on its way; one at a time."""
        if self.failure is not None:
            raise self.failure
        self._answer = answer = Answer(room)
        try:
            yield answer
        finally:
            self._answer = None

    def note_state(self, room: str, line: Line) -> None:
        """Take in a USERSTATE: it follows a JOIN, and each message that stands in the room now."""
        badges = {badge.partition("/")[0] for badge in line.tags.get("badges", "").split(",")}
        if line.tags.get("mod") == "1" or badges & {"broadcaster", "moderator"}:
            self.moderated.add(room)
        else:
            self.moderated.discard(room)
        if room in self.joining and "id" not in line.tags:
            self.joining.discard(room)
            self.rooms.add(room)
        elif self._answer is not None and self._answer.room == room:
            self._answer.id = line.tags.get("id")
            self._answer.came.set()

    def settle(self, room: str, error: DeliveryError | None) -> bool:
        """A NOTICE about sending: the message on its way was refused, or None: stands there. False: there is none."""
        if self._answer is None or self._answer.room != room:
            return False
        self._answer.error = error
        self._answer.came.set()
        return True


def close(stream: trio.abc.Stream) -> None:
    """Close the socket of a stream at once, without its good-bye."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        stream.socket.close()


class Window:
    """Keeps a limit of so many in so many seconds, whenever the other side's window begins."""

    def __init__(self) -> None:
        self._taken: deque[float] = deque()

    async def wait(self, count: int, period_s: float) -> None:
        """Wait until one more is allowed, and take it."""
        while True:
            now = monotonic_s()
            while self._taken and self._taken[0] + period_s <= now:
                self._taken.popleft()
            if len(self._taken) < count:
                self._taken.append(now)
                return
            await trio.sleep_until(self._taken[-count] + period_s)
