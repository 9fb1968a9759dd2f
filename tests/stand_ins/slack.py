"""A workspace of Slack on loopback: Web API and Socket Mode on one port, strict about what it is given.

People act through `post`, `edit`, `delete`, `press` and `slash`; what the bot did is in `sent`, `reactions` …
What a careful client never does is answered as Slack would and noted in `complaints`.

Flow:    open_slack -> SlackStandIn.api_url; people's doings -> envelopes -> sockets -> receipts
Source:  messaging spec 18.4; docs.slack.dev on Socket Mode, Block Kit limits and the methods used
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import trio
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Ping, TextMessage

from tests.stand_ins.serving import Connection, Request, serve
from tests.stand_ins.slack_blocks import block_faults

BOT, BOT_ID, TEAM = "UBOT", "BBOT", "T1"
RECEIPT_S = 3.0
JSON_METHODS = {"chat.postMessage", "chat.update", "chat.delete", "assistant.threads.setStatus"}
ARGUMENTS = {  # required ones, then all others
    "auth.test": ("", ""),
    "apps.connections.open": ("", ""),
    "chat.postMessage": ("channel text", "blocks thread_ts metadata unfurl_links unfurl_media reply_broadcast"),
    "chat.update": ("channel ts text", "blocks metadata"),
    "chat.delete": ("channel ts", ""),
    "reactions.add": ("channel timestamp name", ""),
    "conversations.open": ("users", "return_im"),
    "conversations.info": ("channel", ""),
    "conversations.history": ("channel", "limit latest oldest inclusive cursor include_all_metadata"),
    "conversations.replies": ("channel ts", "limit latest oldest inclusive cursor include_all_metadata"),
    "users.info": ("user", ""),
    "files.info": ("file", ""),
    "assistant.threads.setStatus": ("channel_id thread_ts status", "loading_messages"),
    "files.getUploadURLExternal": ("filename length", ""),
    "files.completeUploadExternal": ("files", "channel_id initial_comment thread_ts"),
}
SCOPES = {"users.info": "users:read", "assistant.threads.setStatus": "assistant:write", "files.info": "files:read"}


class Refused(Exception):
    """A call that Slack refuses: its word for it."""


@dataclass
class Sent:
    """A message of the bot, as it is shown now."""

    channel: str
    ts: str
    text: str
    blocks: list[dict[str, Any]]
    thread_ts: str | None
    metadata: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()
    versions: list[str] = field(default_factory=list)  # its texts before it was changed
    is_deleted: bool = False

    @property
    def markdown(self) -> str:
        """The words of its markdown blocks."""
        return "".join(block["text"] for block in self.blocks if block.get("type") == "markdown")


@dataclass
class File:
    """A file that somebody uploaded."""

    id: str
    name: str
    media_type: str = "application/octet-stream"
    data: bytes = b""
    user: str = ""


@dataclass
class Channel:
    """A channel with what was said in it."""

    id: str
    name: str = ""
    is_member: bool = True
    is_archived: bool = False
    user: str | None = None  # of a direct chat
    messages: list[dict[str, Any]] = field(default_factory=list)
    by_ts: dict[str, dict[str, Any]] = field(default_factory=dict)


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
class SlackStandIn:
    """The workspace; see `open_slack`."""

    bot_token: str = "xoxb-good"
    app_token: str = "xapp-good"
    redeliver_s: float = 3.0  # seconds until an envelope without a receipt comes again
    attempts: int = 4
    latency_s: float = 0.0
    port: int = 0
    channels: dict[str, Channel] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    reactions: list[tuple[str, str, str]] = field(default_factory=list)  # channel, timestamp, name
    statuses: list[tuple[str, str, str]] = field(default_factory=list)  # channel, thread, status
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)  # ids of envelopes that were never acknowledged
    missing_scopes: set[str] = field(default_factory=set)
    takes_markdown: bool = True
    is_socket_mode: bool = True
    is_up: bool = True
    sockets_opened: int = 0
    redelivered: int = 0
    _sockets: list[_Socket] = field(default_factory=list)
    _tickets: set[str] = field(default_factory=set)
    _waiting: dict[str, _Envelope] = field(default_factory=dict)
    _refusals: list[tuple[str | None, str, Mapping[str, str]]] = field(default_factory=list)
    _lost: list[str] = field(default_factory=list)
    _revoked: str | None = None
    _count: int = 0
    _more: trio.Event = field(default_factory=trio.Event)

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

    # HTTP.

    async def handle(self, request: Request, connection: Connection) -> None:
        """Answer a request."""
        path = urlsplit(request.path).path
        if not self.is_up:
            await connection.cut()
            return
        if self.latency_s:
            await trio.sleep(self.latency_s)
        if path.startswith("/api/"):
            await self._call(path.removeprefix("/api/"), request, connection)
        elif path.startswith("/upload/") and request.method == "POST":
            self.files[path.removeprefix("/upload/")].data = request.body
            await connection.send(b"OK", content_type="text/plain")
        elif path.startswith("/files/"):
            await self._download(path, request, connection)
        else:
            self.complaints.append(f"no such page: {request.method} {path}")
            await connection.send(b"not found", status=404, content_type="text/plain")

    async def _download(self, path: str, request: Request, connection: Connection) -> None:
        file = self.files[path.split("/")[2]]
        if request.headers.get("authorization") == f"Bearer {self.bot_token}":
            await connection.send(file.data, content_type=file.media_type)
        else:  # Slack sends a page to sign in at, with a good status
            self.complaints.append(f"file {file.name} fetched without the token")
            await connection.send(b"<html>sign in</html>", content_type="text/html")

    async def _call(self, method: str, request: Request, connection: Connection) -> None:
        arguments = self._arguments(method, request)
        self.calls.append((method, arguments))
        refusal = next((r for r in self._refusals if r[0] in (None, method)), None)
        if refusal is not None:
            self._refusals.remove(refusal)
            _, code, headers = refusal
            status = int(code) if code.isdigit() else 200
            error = "ratelimited" if status == 429 else code
            body = b"<html>oops</html>" if status >= 500 else _json({"ok": False, "error": error})
            kind = "text/html" if status >= 500 else "application/json"
            await connection.send(body, status=status, headers=headers, content_type=kind)
            self._note()
            return
        try:
            self._check_token(method, request)
            self._check_arguments(method, arguments)
            answer = {"ok": True, **getattr(self, "_" + re.sub(r"\W", "_", method))(arguments)}
        except Refused as error:
            answer = {"ok": False, "error": str(error)}
            if str(error) == "missing_scope":
                answer |= {"needed": SCOPES[method], "provided": "chat:write"}
        self._note()
        if method in self._lost:
            self._lost.remove(method)
            await connection.cut()
            return
        await connection.send(_json(answer), content_type="application/json; charset=utf-8")

    def _arguments(self, method: str, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(parse_qsl(urlsplit(request.path).query))
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind == "application/json":
            if method not in JSON_METHODS:
                self.complaints.append(f"{method} does not take JSON")
            if request.body:
                arguments |= json.loads(request.body)
        elif kind == "application/x-www-form-urlencoded":
            arguments |= dict(parse_qsl(request.body.decode(), keep_blank_values=True))
        elif request.body:
            self.complaints.append(f"{method} with a body of {kind}")
        return arguments

    def _check_token(self, method: str, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        wanted = self.app_token if method == "apps.connections.open" else self.bot_token
        if self._revoked and method != "apps.connections.open":
            raise Refused(self._revoked)
        if given != wanted:
            is_mixed_up = given in (self.app_token, self.bot_token)
            raise Refused("not_allowed_token_type" if is_mixed_up else "invalid_auth" if given else "not_authed")
        if SCOPES.get(method) in self.missing_scopes:
            raise Refused("missing_scope")

    def _check_arguments(self, method: str, arguments: Mapping[str, Any]) -> None:
        if method not in ARGUMENTS:
            self.complaints.append(f"unknown method {method}")
            raise Refused("unknown_method")
        required, optional = (names.split() for names in ARGUMENTS[method])
        if unknown := arguments.keys() - {*required, *optional}:
            self.complaints.append(f"{method} with unknown arguments {sorted(unknown)}")
        if missing := {*required} - arguments.keys():
            self.complaints.append(f"{method} without {sorted(missing)}")
            raise Refused("invalid_arguments")

    def _auth_test(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "url": "https://acme.slack.com/",
            "team": "Acme",
            "user": "spacebot",
            "team_id": TEAM,
            "user_id": BOT,
            "bot_id": BOT_ID,
        }

    def _apps_connections_open(self, _: Mapping[str, Any]) -> dict[str, Any]:
        if not self.is_socket_mode:
            raise Refused("socket_mode_not_enabled")
        ticket = f"ticket-{self._next()}"
        self._tickets.add(ticket)
        return {"url": f"ws://127.0.0.1:{self.port}/link?ticket={ticket}&app_id=A1"}

    def _chat_postMessage(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments["channel"], writes=True)
        self._check_message(arguments)
        thread = arguments.get("thread_ts")
        if thread is not None and thread not in channel.by_ts:
            raise Refused("thread_not_found")
        return self._say(channel, arguments, thread)

    def _say(self, channel: Channel, arguments: Mapping[str, Any], thread: str | None, **more: Any) -> dict[str, Any]:
        message = {
            "type": "message",
            "user": BOT,
            "bot_id": BOT_ID,
            "text": arguments.get("text", ""),
            "blocks": arguments.get("blocks") or [],
            "ts": self._ts(),
            **({"metadata": arguments["metadata"]} if arguments.get("metadata") else {}),
            **({"thread_ts": thread} if thread else {}),
            **more,
        }
        self._keep(channel.id, message)
        files = tuple(file["id"] for file in more.get("files", ()))
        self.sent.append(
            Sent(
                channel.id, message["ts"], message["text"], message["blocks"], thread, arguments.get("metadata"), files
            )
        )
        self.send_event({**message, "channel": channel.id, "channel_type": "channel"})  # the bot hears itself
        return {"channel": channel.id, "ts": message["ts"], "message": message}

    def _chat_update(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel, message = self._own(arguments)
        self._check_message(arguments)
        sent = next(sent for sent in self.sent if sent.ts == message["ts"])
        sent.versions.append(sent.text)
        previous = dict(message)
        message |= {"text": arguments["text"], "blocks": arguments.get("blocks") or []}
        sent.text, sent.blocks = message["text"], message["blocks"]
        if arguments.get("metadata"):
            message["metadata"] = sent.metadata = arguments["metadata"]
        change = {"subtype": "message_changed", "message": dict(message), "previous_message": previous}
        self.send_event({"type": "message", "channel": channel.id, "ts": self._ts(), "hidden": True, **change})
        return {"channel": channel.id, "ts": message["ts"], "text": message["text"]}

    def _chat_delete(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel, message = self._own(arguments)
        next(sent for sent in self.sent if sent.ts == message["ts"]).is_deleted = True
        self.delete(channel.id, message["ts"])
        return {"channel": channel.id, "ts": message["ts"]}

    def _own(self, arguments: Mapping[str, Any]) -> tuple[Channel, dict[str, Any]]:
        channel = self._channel(arguments["channel"], writes=True)
        message = channel.by_ts.get(arguments["ts"])
        if message is None:
            raise Refused("message_not_found")
        if message.get("user") != BOT:
            self.complaints.append("a message of somebody else was to be changed")
            raise Refused("cant_update_message")
        return channel, message

    def _check_message(self, arguments: Mapping[str, Any]) -> None:
        text, blocks, metadata = arguments["text"], arguments.get("blocks") or [], arguments.get("metadata")
        if not text.strip() and not blocks:
            self.complaints.append("a message without words")
            raise Refused("no_text")
        if len(text) > 40_000:
            self.complaints.append(f"a text of {len(text)} characters")
            raise Refused("msg_too_long")
        if re.search(r"<!(?:here|channel|everyone|subteam)", text + json.dumps(blocks)):
            self.complaints.append("a call to the whole room")
        if metadata is not None and not (
            isinstance(metadata.get("event_type"), str)
            and all(isinstance(value, str | int | bool) for value in metadata["event_payload"].values())
        ):
            self.complaints.append("metadata in another form than Slack's")
            raise Refused("invalid_metadata_format")
        if not self.takes_markdown and any(block.get("type") == "markdown" for block in blocks):
            raise Refused("invalid_blocks")
        for code, fault in block_faults(blocks):
            self.complaints.append(fault)
            raise Refused(code)

    def _reactions_add(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments["channel"], writes=True)
        name, ts = arguments["name"], arguments["timestamp"]
        if not re.fullmatch(r"[a-z0-9_+'-]+(?:::skin-tone-[2-6])?", name):
            self.complaints.append(f"no name of an emoji: {name!r}")
            raise Refused("invalid_name")
        if ts not in channel.by_ts:
            raise Refused("message_not_found")
        if (channel.id, ts, name) in self.reactions:
            raise Refused("already_reacted")
        self.reactions.append((channel.id, ts, name))
        return {}

    def _conversations_open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        user = arguments["users"]
        if user not in self.users:
            raise Refused("user_not_found")
        known = next((channel for channel in self.channels.values() if channel.user == user), None)
        channel = known or self.channels[self.add_channel(f"D{user}", user=user)]
        return {"channel": {"id": channel.id}}

    def _conversations_info(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments["channel"])
        info: dict[str, Any] = {"id": channel.id, "is_archived": channel.is_archived, "is_member": channel.is_member}
        return {"channel": info | ({"is_im": True, "user": channel.user} if channel.user else {"name": channel.name})}

    def _conversations_history(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        messages = [m for m in self._said(arguments) if m.get("thread_ts", m["ts"]) == m["ts"]]
        return self._page(arguments, messages[::-1])

    def _conversations_replies(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        thread = arguments["ts"]
        if thread not in self._channel(arguments["channel"]).by_ts:
            raise Refused("thread_not_found")
        return self._page(arguments, [m for m in self._said(arguments) if thread in (m["ts"], m.get("thread_ts"))])

    def _said(self, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        channel = self._channel(arguments["channel"])
        if not channel.is_member:
            raise Refused("not_in_channel")
        inclusive = arguments.get("inclusive") in ("true", "1")
        oldest, latest = arguments.get("oldest", "0"), arguments.get("latest", "9")
        for message in channel.messages:
            if oldest < message["ts"] < latest or (inclusive and message["ts"] in (oldest, latest)):
                shows = arguments.get("include_all_metadata") in ("true", "1")
                yield message if shows else {n: v for n, v in message.items() if n != "metadata"}
            elif message["ts"] == arguments.get("ts"):
                yield message  # the root of a thread comes in any case

    def _page(self, arguments: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        start, limit = int(arguments.get("cursor") or 0), min(int(arguments.get("limit", 100)), 1000)
        rest = start + limit < len(messages)
        cursor = {"response_metadata": {"next_cursor": str(start + limit)}} if rest else {}
        return {"messages": list(messages[start : start + limit]), "has_more": rest, **cursor}

    def _users_info(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments["user"] not in self.users:
            raise Refused("user_not_found")
        return {"user": self.users[arguments["user"]]}

    def _assistant_threads_setStatus(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments["channel_id"], writes=True)
        self.statuses.append((channel.id, arguments["thread_ts"], arguments["status"]))
        return {}

    def _files_info(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments["file"] not in self.files:
            raise Refused("file_not_found")
        return {"file": self._shown_file(self.files[arguments["file"]])}

    def _files_getUploadURLExternal(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        number = f"F{self._next()}"
        self.files[number] = File(number, arguments["filename"], user=BOT)
        return {"upload_url": f"http://127.0.0.1:{self.port}/upload/{number}", "file_id": number}

    def _files_completeUploadExternal(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        channel = self._channel(arguments["channel_id"], writes=True)
        files = [self._shown_file(self.files[file["id"]]) for file in json.loads(arguments["files"])]
        self._say(
            channel,
            {"text": arguments.get("initial_comment", "")},
            arguments.get("thread_ts"),
            subtype="file_share",
            files=files,
        )
        return {"files": files}

    def _channel(self, number: str, *, writes: bool = False) -> Channel:
        channel = self.channels.get(number)
        if channel is None:
            raise Refused("channel_not_found")
        if writes and channel.is_archived:
            raise Refused("is_archived")
        if writes and not channel.is_member:
            raise Refused("not_in_channel")
        return channel

    def _shown_file(self, file: File) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/files/{file.id}/{file.name}"
        size = len(file.data)
        return {"id": file.id, "name": file.name, "mimetype": file.media_type, "size": size, "url_private": url}

    def _keep(self, channel: str, message: dict[str, Any]) -> None:
        room = self.channels[channel]
        room.messages.append(message)
        room.by_ts[message["ts"]] = message

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _ts(self) -> str:
        number = self._next()
        return f"{1_700_000_000 + number // 1000}.{number % 1000:03d}{number % 1000:03d}"

    def _note(self) -> None:
        self._more.set()
        self._more = trio.Event()

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
            if message.get("envelope_id") not in {receipt.id for receipt in self.receipts}:
                self.complaints.append("a receipt for an envelope that was never sent")
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


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


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
