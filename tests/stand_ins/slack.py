"""A workspace of Slack on loopback: Web API and Socket Mode on one port, strict about what it is given.

People act through `post`, `edit`, `delete`, `press` and `slash`; what the bot did is in `sent`, `reactions` …
What a careful client never does is answered as Slack would and noted in `complaints`.

Flow:    open_slack -> SlackStandIn.api_url (slack_api.py); people's doings -> envelopes -> sockets -> receipts
Source:  messaging spec 18.4; docs.slack.dev on Socket Mode, Block Kit limits and the methods used
"""

import base64
import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Ping, TextMessage

from tests.stand_ins.serving import Request, serve
from tests.stand_ins.slack_api import BOT, BOT_ID, TEAM, Channel, File, Sent, WebApi

__all__ = ["BOT", "BOT_ID", "TEAM", "Receipt", "Sent", "SlackStandIn", "open_slack"]

RECEIPT_S = 3.0


@dataclass(frozen=True)
class Receipt:
    """An envelope that the bot acknowledged; `payload` is its answer to a slash command."""

    id: str
    type: str
    after_s: float
    attempt: int
    payload: Mapping[str, Any] | None


@dataclass
class _Envelope:
    id: str
    type: str
    payload: Mapping[str, Any]
    attempt: int = 0
    at: float = 0.0
    acknowledged: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Socket:
    stream: trio.SocketStream
    scope: trio.CancelScope
    frames: Frames = field(default_factory=lambda: Frames(ConnectionType.SERVER))
    lock: trio.Lock = field(default_factory=trio.Lock)
    is_served: bool = True  # gets new envelopes

    async def send(self, event: Any) -> None:
        async with self.lock:
            await self.stream.send_all(self.frames.send(event))


@dataclass
class SlackStandIn(WebApi):
    """The workspace; see `open_slack`."""

    redeliver_s: float = 3.0  # seconds until an envelope without a receipt comes again
    attempts: int = 4
    receipts: list[Receipt] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)  # ids of envelopes that were never acknowledged
    sockets_opened: int = 0
    redelivered: int = 0
    late: int = 0  # receipts for envelopes that had been sent again
    turns_away: int = 0  # so many next sockets are closed before they are greeted
    _sockets: list[_Socket] = field(default_factory=list)
    _waiting: dict[str, _Envelope] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._queue, self._queued = trio.open_memory_channel[_Envelope](math.inf)
        self.users[BOT] = {"id": BOT, "name": "spacebot", "is_bot": True, "profile": {"display_name": "spacebot"}}

    @property
    def api_url(self) -> str:
        """What `[messaging.slack] api_url` has to be."""
        return f"http://127.0.0.1:{self.port}/api/"

    @property
    def sockets(self) -> int:
        """How many sockets are open."""
        return len(self._sockets)

    # What a test sets up.

    def add_user(self, id: str, name: str, *, display: str = "", real: str = "", **more: Any) -> str:
        """A member of the workspace."""
        self.users[id] = {
            "id": id,
            "name": name,
            "real_name": real,
            "is_bot": False,
            "is_admin": False,
            "is_owner": False,
            "profile": {"display_name": display, "real_name": real},
            **more,
        }
        return id

    def add_channel(self, id: str, name: str = "", *, user: str | None = None) -> str:
        """A channel that the bot is in; `user` makes it that person's direct chat (`D…`)."""
        self.channels[id] = Channel(id, name, user=user)
        return id

    def add_file(self, name: str, media_type: str, data: bytes) -> str:
        """A file to post."""
        number = f"F{self._next()}"
        self.files[number] = File(number, name, media_type, data)
        return number

    # What people do.

    def post(
        self,
        channel: str,
        user: str,
        text: str,
        *,
        thread: str | None = None,
        files: Sequence[str] = (),
        mention_event: bool | None = None,
        before: bool = False,
        **more: Any,
    ) -> str:
        """Say something; returns its timestamp.

        Args:
            mention_event: send it as `app_mention` too; None: when it names the bot.
            before: the mention comes first.
            more: fields of the event, such as `subtype` or `bot_id`.
        """
        event: dict[str, Any] = {"type": "message", "user": user, "text": text, "ts": self._ts(), **more}
        if thread is not None:
            root = self.channels[channel].by_ts[thread]
            root["thread_ts"] = thread
            event |= {"thread_ts": thread, "parent_user_id": root.get("user")}
        if files:
            event |= {"subtype": "file_share", "files": [self._shown_file(self.files[number]) for number in files]}
        self._keep(channel, event)
        wire = {**event, "channel": channel, "channel_type": "im" if channel.startswith("D") else "channel"}
        mention = {name: value for name, value in wire.items() if name not in ("channel_type", "parent_user_id")}
        mention["type"] = "app_mention"
        is_mention = f"<@{BOT}>" in text if mention_event is None else mention_event
        events = [wire, mention] if is_mention else [wire]
        for one in reversed(events) if before else events:
            self.send_event(one)
        return str(event["ts"])

    def keep(
        self, channel: str, user: str, text: str, *, thread: str | None = None, ts: str | None = None, **more: Any
    ) -> str:
        """Say something that the bot is not told of, because it was not there; returns its timestamp."""
        message = {"type": "message", "user": user, "text": text, "ts": ts or self._ts(), **more}
        if thread is not None:
            root = self.channels[channel].by_ts[thread]
            root["thread_ts"] = thread
            message |= {"thread_ts": thread, "parent_user_id": root.get("user")}
        self._keep(channel, message)
        return str(message["ts"])

    def edit(self, channel: str, ts: str, text: str) -> None:
        """Change what was said."""
        message = self.channels[channel].by_ts[ts]
        previous = dict(message)
        message |= {"text": text, "edited": {"user": message.get("user"), "ts": self._ts()}}
        self.send_event(
            {
                "type": "message",
                "subtype": "message_changed",
                "channel": channel,
                "ts": self._ts(),
                "hidden": True,
                "message": dict(message),
                "previous_message": previous,
            }
        )

    def delete(self, channel: str, ts: str) -> None:
        """Take back what was said."""
        room = self.channels[channel]
        previous = room.by_ts.pop(ts)
        room.messages.remove(previous)
        self.send_event(
            {
                "type": "message",
                "subtype": "message_deleted",
                "channel": channel,
                "ts": self._ts(),
                "deleted_ts": ts,
                "hidden": True,
                "previous_message": dict(previous),
            }
        )

    def press(self, sent: Sent, user: str, *actions: Mapping[str, Any]) -> str:
        """Press or choose in a message of the bot; returns the trigger."""
        trigger = f"{self._next()}.press"
        message = dict(self.channels[sent.channel].by_ts[sent.ts])
        self._envelope(
            "interactive",
            {
                "type": "block_actions",
                "trigger_id": trigger,
                "team": {"id": TEAM, "domain": "acme"},
                "user": {"id": user, "username": self.users[user]["name"], "team_id": TEAM},
                "channel": {"id": sent.channel, "name": self.channels[sent.channel].name},
                "container": {"type": "message", "message_ts": sent.ts, "channel_id": sent.channel},
                "message": message,
                "response_url": f"http://127.0.0.1:{self.port}/response",
                "actions": [{"block_id": "b1", "action_ts": self._ts(), **action} for action in actions],
            },
        )
        return trigger

    def slash(self, channel: str, user: str, command: str, text: str = "") -> str:
        """Give a slash command; returns the trigger."""
        trigger = f"{self._next()}.slash"
        self._envelope(
            "slash_commands",
            {
                "command": command,
                "text": text,
                "team_id": TEAM,
                "team_domain": "acme",
                "channel_id": channel,
                "channel_name": self.channels[channel].name,
                "user_id": user,
                "user_name": self.users[user]["name"],
                "trigger_id": trigger,
                "response_url": f"http://127.0.0.1:{self.port}/response",
            },
        )
        return trigger

    def send_event(self, event: Any, **payload: Any) -> None:
        """Send any event, also one that makes no sense."""
        self._envelope(
            "events_api",
            {
                "type": "event_callback",
                "team_id": TEAM,
                "api_app_id": "A1",
                "event_id": f"Ev{self._next()}",
                "event_time": 1_700_000_000,
                "event": event,
                **payload,
            },
        )

    # What goes wrong.

    def disconnect(self, reason: str) -> None:
        """Ask the client to leave its sockets, as Slack does every few hours."""
        for socket in tuple(self._sockets):
            socket.is_served = False
            self._nursery.start_soon(self._say_goodbye, socket, reason)
        if reason == "link_disabled":
            self.is_socket_mode = False

    def drop_sockets(self) -> None:
        """Cut all sockets without a word."""
        for socket in tuple(self._sockets):
            socket.scope.cancel()

    def revoke(self, *, tells: bool = True) -> None:
        """Revoke the bot's token."""
        self._revoked = "token_revoked"
        if tells:
            self.send_event({"type": "tokens_revoked", "tokens": {"oauth": [], "bot": [BOT]}})

    def rate_limit(self, count: int = 1, retry_after: str = "7", *, method: str | None = None) -> None:
        """Answer the next calls with 429."""
        self._refusals += [(method, "429", {"retry-after": retry_after})] * count

    def refuse(self, method: str | None, code: str, count: int = 1) -> None:
        """Refuse the next calls; a code of three digits is a status of HTTP."""
        self._refusals += [(method, code, {})] * count

    def lose_answers(self, method: str, count: int = 1) -> None:
        """Do the next calls, but cut the connection instead of answering."""
        self._lost += [method] * count

    # What a test waits for.

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the bot did makes the condition true."""
        while not condition():
            await self._more.wait()

    async def posted(self, count: int) -> list[Sent]:
        """Wait for so many messages of the bot; returns all."""
        await self.until(lambda: len(self.sent) >= count)
        return self.sent

    def called(self, method: str) -> list[Mapping[str, Any]]:
        """Arguments of all calls of a method."""
        return [arguments for name, arguments in self.calls if name == method]

    # Socket Mode.

    async def serve_socket(self, request: Request, stream: trio.SocketStream, rest: bytes) -> None:
        """A client that opens a socket."""
        ticket = parse_qs(urlsplit(request.path).query).get("ticket", [""])[0]
        if ticket not in self._tickets or not self.is_up:
            self.complaints.append("a socket without a fresh ticket")
            await stream.send_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
            return
        self._tickets.discard(ticket)
        key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            + f"sec-websocket-accept: {accept}\r\n\r\n".encode()
        )
        if self.turns_away:
            self.turns_away -= 1
            return
        with trio.CancelScope() as scope:
            socket = _Socket(stream, scope)
            hello = {"type": "hello", "num_connections": len(self._sockets) + 1, "connection_info": {"app_id": "A1"}}
            await socket.send(TextMessage(json.dumps(hello)))
            self._sockets.append(socket)
            self.sockets_opened += 1
            self._note()
            try:
                await self._listen(socket, rest)
            finally:
                self._sockets.remove(socket)
                self._note()

    async def _listen(self, socket: _Socket, data: bytes) -> None:
        text = ""
        while True:
            if data:
                socket.frames.receive_data(data)
            for event in socket.frames.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        self._take_receipt(text)
                        text = ""
                elif isinstance(event, Ping):
                    await socket.send(event.response())
                elif isinstance(event, CloseConnection):
                    if socket.frames.state is ConnectionState.REMOTE_CLOSING:
                        await socket.send(event.response())
                    return
            data = await socket.stream.receive_some()
            if not data:
                return

    def _take_receipt(self, text: str) -> None:
        message = json.loads(text)
        envelope = self._waiting.pop(message.get("envelope_id"), None)
        if envelope is None:
            if message.get("envelope_id") not in self._known:
                self.complaints.append("a receipt for an envelope that was never sent")
            self.late += 1  # it was sent again under another id
            return
        after = trio.current_time() - envelope.at
        if after > RECEIPT_S:
            self.complaints.append(f"a receipt after {after:.1f} s")
        self.receipts.append(Receipt(envelope.id, envelope.type, after, envelope.attempt, message.get("payload")))
        envelope.acknowledged.set()
        self._note()

    def _envelope(self, kind: str, payload: Mapping[str, Any]) -> None:
        self._queue.send_nowait(_Envelope(f"env-{self._next()}", kind, payload))

    async def deliver(self) -> None:
        """Send envelopes in order, each over one of the sockets."""
        async for envelope in self._queued:
            await self.until(lambda: any(socket.is_served for socket in self._sockets))
            socket = next(socket for socket in reversed(self._sockets) if socket.is_served)
            body: dict[str, Any] = {
                "envelope_id": envelope.id,
                "type": envelope.type,
                "payload": envelope.payload,
                "accepts_response_payload": envelope.type == "slash_commands",
            }
            if envelope.type == "events_api":
                body |= {"retry_attempt": envelope.attempt, "retry_reason": "timeout" if envelope.attempt else ""}
            envelope.at = trio.current_time()
            self._waiting[envelope.id] = envelope
            self._known.add(envelope.id)
            self._nursery.start_soon(self._watch, envelope)
            try:
                await socket.send(TextMessage(json.dumps(body)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                socket.is_served = False  # it comes again, like all that has no receipt

    async def _watch(self, envelope: _Envelope) -> None:
        with trio.move_on_after(self.redeliver_s):
            await envelope.acknowledged.wait()
            return
        self._waiting.pop(envelope.id, None)
        if envelope.type != "events_api" or envelope.attempt + 1 >= self.attempts:
            self.given_up.append(envelope.id)
        else:
            self.redelivered += 1
            self._queue.send_nowait(
                _Envelope(f"env-{self._next()}", envelope.type, envelope.payload, envelope.attempt + 1)
            )
        self._note()

    async def _say_goodbye(self, socket: _Socket, reason: str) -> None:
        try:
            await socket.send(TextMessage(json.dumps({"type": "disconnect", "reason": reason, "debug_info": {}})))
            if reason in ("warning", "refresh_requested"):
                await self.until(lambda: any(other.is_served for other in self._sockets))
            await socket.send(CloseConnection(code=1000))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client was quicker
        socket.scope.cancel()

    def attach(self, nursery: trio.Nursery) -> None:
        """Where its tasks run."""
        self._nursery = nursery


@asynccontextmanager
async def open_slack(*, port: int = 0, **settings: Any) -> AsyncIterator[SlackStandIn]:
    """A workspace while the block runs; `settings` are fields of `SlackStandIn`."""
    slack = SlackStandIn(**settings)
    async with trio.open_nursery() as nursery:
        slack.attach(nursery)
        async with serve(slack.handle, port=port, upgrade=slack.serve_socket) as server:
            slack.port = server.port
            nursery.start_soon(slack.deliver)
            yield slack
        nursery.cancel_scope.cancel()
