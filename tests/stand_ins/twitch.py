"""A stand-in for Twitch's chat: IRC with tags over plain TCP, strict about what a client may do.

Whatever a real server would refuse or drop is refused or dropped here too, and noted in `complaints`.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import trio

from spacebot.messaging.irc import Line, parse, write

HOST = "tmi.twitch.tv"
EPOCH_MS = 1_780_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message of the bot as it stands in a room; `text` as people see it, `raw` as it came over the wire."""

    room: str
    text: str
    raw: str
    reply_to: str | None
    id: str
    at: float


@dataclass(eq=False)
class _Client:
    stream: trio.SocketStream
    has_caps: bool = False
    token: str | None = None
    login: str | None = None
    rooms: set[str] = field(default_factory=set)
    joined_at: list[float] = field(default_factory=list)
    writing: trio.Lock = field(default_factory=trio.Lock)

    async def say(self, line: Line) -> None:
        async with self.writing:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # going away is the client's right
                await self.stream.send_all(write(line))


class TwitchStandIn:
    """See the module. Knobs: `token`, `is_silent`, `is_mute`, `refusals`, `moderated`, `gives_ids`."""

    def __init__(self, token: str, login: str) -> None:
        self.port = 0
        self.token = token
        self.login = login
        self.sent: list[Said] = []
        self.lines: list[str] = []  # as clients wrote them, tokens left out
        self.complaints: list[str] = []
        self.joins: list[tuple[str, float]] = []
        self.pongs = 0
        self.pings = 0
        self.connections = 0
        self.is_silent = False  # no PONG
        self.is_mute = False  # messages get no answer
        self.gives_ids = True  # USERSTATE names what was said
        self.knows_tags = True
        self.moderated: set[str] = set()
        self.unknown: set[str] = set()  # rooms that do not exist
        self.refusals: deque[tuple[str, str]] = deque()  # NOTICE id and text for the next messages
        self._clients: list[_Client] = []
        self._sent_at: deque[float] = deque()
        self._ids = count(1)
        self._more = trio.Event()

    # People and moderators.

    async def post(
        self,
        room: str,
        login: str,
        text: str,
        *,
        name: str | None = None,
        badges: str = "",
        reply_to: Said | None = None,
        **tags: str,
    ) -> str:
        """Somebody writes; returns the message's id."""
        message_id = f"00000000-0000-4000-8000-{next(self._ids):012d}"
        known = {
            "badges": badges,
            "display-name": name if name is not None else login.capitalize(),
            "id": message_id,
            "mod": "1" if "moderator" in badges else "0",
            "room-id": str(_number(room)),
            "tmi-sent-ts": str(EPOCH_MS + next(self._ids)),
            "user-id": str(_number(login)),
        }
        if reply_to is not None:
            known |= {
                "reply-parent-msg-id": reply_to.id,
                "reply-parent-user-login": self.login,
                "reply-parent-display-name": self.login.capitalize(),
                "reply-parent-msg-body": reply_to.text,
            }
            text = f"@{self.login} {text}"
        known |= {key.replace("_", "-"): value for key, value in tags.items()}
        source = f"{login}!{login}@{login}.{HOST}"
        await self._tell(room, Line("PRIVMSG", (f"#{room}", text), known, source))
        return known["id"]

    async def action(self, room: str, login: str, text: str) -> str:
        """Somebody writes `/me …`."""
        return await self.post(room, login, f"\x01ACTION {text}\x01")

    async def delete(self, room: str, message_id: str) -> None:
        """A moderator removes one message."""
        await self._tell(room, Line("CLEARMSG", (f"#{room}", "gone"), {"target-msg-id": message_id}, HOST))

    async def timeout_user(self, room: str, login: str | None) -> None:
        """A moderator removes what somebody said, or everything."""
        params = (f"#{room}",) if login is None else (f"#{room}", login)
        await self._tell(room, Line("CLEARCHAT", params, {"ban-duration": "600"}, HOST))

    async def slow(self, room: str, seconds: int) -> None:
        """The room goes into slow mode."""
        await self._tell(room, Line("ROOMSTATE", (f"#{room}",), {"slow": str(seconds)}, HOST))

    async def notice(self, room: str, notice_id: str, text: str = "Said without being asked.") -> None:
        """A NOTICE that answers nothing."""
        await self._tell(room, Line("NOTICE", (f"#{room}", text), {"msg-id": notice_id}, HOST))

    async def raw(self, text: bytes) -> None:
        """Anything at all, to everybody."""
        for client in tuple(self._clients):
            await client.stream.send_all(text)

    async def ping(self) -> None:
        """Ask all clients for a sign of life."""
        await self.raw(f"PING :{HOST}\r\n".encode())

    # Misbehaviour.

    async def reconnect(self) -> None:
        """Ask all clients to connect anew, and hang up soon after."""
        await self.raw(f":{HOST} RECONNECT\r\n".encode())

    async def drop(self) -> None:
        """Hang up on everybody."""
        for client in tuple(self._clients):
            await client.stream.aclose()

    # Looking.

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that a client did makes the condition true."""
        while not condition():
            self._more = trio.Event()
            await self._more.wait()

    async def heard(self, number: int) -> list[Said]:
        """Wait for so many messages of the bot."""
        await self.until(lambda: len(self.sent) >= number)
        return self.sent

    async def joined(self, *rooms: str) -> None:
        """Wait until a client sits in the rooms."""
        await self.until(lambda: any(set(rooms) <= client.rooms for client in self._clients))

    @property
    def connected(self) -> int:
        """How many are signed in."""
        return sum(client.login is not None for client in self._clients)

    # The server.

    async def _tell(self, room: str, line: Line) -> None:
        for client in tuple(self._clients):
            if room in client.rooms:
                await client.say(line)

    def _complain(self, text: str) -> None:
        self.complaints.append(text)
        self._note()

    def _note(self) -> None:
        self._more.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        self.connections += 1
        client = _Client(stream)
        self._clients.append(client)
        rest = b""
        try:
            async with stream:
                async for data in stream:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        if not await self._on_raw(client, line):
                            return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._clients.remove(client)
            self._note()

    async def _on_raw(self, client: _Client, raw: bytes) -> bool:
        if not raw.endswith(b"\r") or b"\r" in raw[:-1] or b"\0" in raw:
            self._complain(f"a line does not end with CRLF alone: {raw[:80]!r}")
        text = raw.rstrip(b"\r").decode()
        tags, _, rest = text.partition(" ") if text.startswith("@") else ("", "", text)
        # Twitch takes 500 characters of text whatever their bytes, so a message may be longer than RFC 1459 has it.
        if len(tags.encode()) > 4094 or len(rest.encode()) > (1500 if rest.startswith("PRIVMSG") else 510):
            self._complain(f"a line is too long: {len(raw)} bytes")
        line = parse(text)
        self.lines.append("PASS ***" if line.command == "PASS" else text)
        self._note()
        return await self._on_line(client, line)

    async def _on_line(self, client: _Client, line: Line) -> bool:
        match line.command:
            case "CAP":
                word = "ACK" if self.knows_tags else "NAK"
                client.has_caps = self.knows_tags and line.params == ("REQ", "twitch.tv/tags twitch.tv/commands")
                await client.say(Line("CAP", ("*", word, line.param(1)), source=HOST))
            case "PASS":
                client.token = line.param(0)
            case "NICK":
                return await self._sign_in(client, line.param(0))
            case "PING":
                self.pings += 1
                if not self.is_silent:
                    await client.say(Line("PONG", (HOST, line.param(0)), source=HOST))
            case "PONG":
                self.pongs += 1
            case "JOIN" | "PRIVMSG" if client.login is None:
                self._complain(f"{line.command} before signing in")
            case "JOIN":
                await self._join(client, line.param(0))
            case "PRIVMSG":
                await self._on_message(client, line)
            case "QUIT":
                return False
            case command:
                self._complain(f"unknown command {command}")
        self._note()
        return True

    async def _sign_in(self, client: _Client, login: str) -> bool:
        if client.token is None:
            self._complain("NICK before PASS")
            await client.say(Line("NOTICE", ("*", "Improperly formatted auth"), source=HOST))
            return False
        if not client.has_caps:
            self._complain("signed in without asking for tags and commands")
        if client.token != f"oauth:{self.token}" or login != self.login:
            await client.say(Line("NOTICE", ("*", "Login authentication failed"), source=HOST))
            return False
        for number, text in (("001", "Welcome, GLHF!"), ("002", f"Your host is {HOST}"), ("376", ">")):
            await client.say(Line(number, (login, text), source=HOST))
        await client.say(Line("GLOBALUSERSTATE", (), {"user-id": str(_number(login))}, HOST))
        client.login = login
        return True

    async def _join(self, client: _Client, channel: str) -> None:
        now = trio.current_time()
        client.joined_at = [at for at in client.joined_at if at > now - 10] + [now]
        if len(client.joined_at) > 20:
            self._complain("more than 20 JOIN in 10 s")
            return
        room = channel.removeprefix("#")
        if not channel.startswith("#") or room != room.lower() or "," in room:
            self._complain(f"not a channel: {channel!r}")
            return
        if room in self.unknown:
            return
        self.joins.append((room, now))
        who = f"{client.login}!{client.login}@{client.login}.{HOST}"
        await client.say(Line("JOIN", (channel,), source=who))
        await client.say(Line("353", (client.login or "", "=", channel, client.login or ""), source=HOST))
        await client.say(Line("366", (client.login or "", channel, "End of /NAMES list"), source=HOST))
        await client.say(Line("ROOMSTATE", (channel,), {"slow": "0", "room-id": str(_number(room))}, HOST))
        await client.say(Line("USERSTATE", (channel,), self._state(room), HOST))
        client.rooms.add(room)

    def _state(self, room: str) -> dict[str, str]:
        is_moderator = room in self.moderated
        return {"badges": "moderator/1" if is_moderator else "", "mod": "1" if is_moderator else "0"}

    async def _on_message(self, client: _Client, line: Line) -> None:
        room, text = line.param(0).removeprefix("#"), line.param(1)
        channel, now = f"#{room}", trio.current_time()
        if len(text) > 500:
            self._complain(f"a message of {len(text)} characters")
            return
        if text.startswith(("/", ".")) and not text.startswith(". "):
            self._complain(f"a chat command: {text[:40]!r}")
            return
        while self._sent_at and self._sent_at[0] <= now - 30:
            self._sent_at.popleft()
        self._sent_at.append(now)
        if len(self._sent_at) > (100 if room in self.moderated else 20):
            self._complain("more messages than the account may send")
            self.refusals.appendleft(
                ("msg_ratelimit", "Your message was not sent because you are sending too quickly.")
            )
        if self.refusals:
            notice_id, why = self.refusals.popleft()
            await client.say(Line("NOTICE", (channel, why), {"msg-id": notice_id}, HOST))
            return
        said = Said(
            room=room,
            text=text.removeprefix(". "),
            raw=text,
            reply_to=line.tags.get("reply-parent-msg-id"),
            id=f"sent-{next(self._ids)}",
            at=now,
        )
        self.sent.append(said)
        if not self.is_mute:
            state = self._state(room) | ({"id": said.id} if self.gives_ids else {})
            await client.say(Line("USERSTATE", (channel,), state, HOST))


def _number(name: str) -> int:
    return 1000 + sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 900_000_000


@asynccontextmanager
async def open_twitch(
    *, token: str = "chat-secret", login: str = "spacebot", port: int = 0
) -> AsyncIterator[TwitchStandIn]:
    """Serve on loopback while the block runs."""
    stand_in = TwitchStandIn(token, login)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    stand_in.port = listeners[0].socket.getsockname()[1]
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, stand_in.serve, listeners)
        try:
            yield stand_in
        except Exception as error:
            failure = error  # raised below, so that it reaches the test without a group around it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
