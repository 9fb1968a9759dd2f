"""The Web API of the workspace on loopback: what `SlackStandIn` answers to calls, and how it looks at them.

Source:  messaging spec 18.4; docs.slack.dev on the methods
"""

import json
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trio

from tests.stand_ins.serving import Connection, Request
from tests.stand_ins.slack_blocks import block_faults

BOT, BOT_ID, TEAM = "UBOT", "BBOT", "T1"
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


@dataclass
class WebApi:
    """State that calls see and change."""

    bot_token: str = "xoxb-good"
    app_token: str = "xapp-good"
    latency_s: float = 0.0
    gates: dict[tuple[str, str], trio.Event] = field(default_factory=dict)  # (method, channel) -> when it is answered
    port: int = 0
    channels: dict[str, Channel] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    reactions: list[tuple[str, str, str]] = field(default_factory=list)  # channel, timestamp, name
    statuses: list[tuple[str, str, str]] = field(default_factory=list)  # channel, thread, status
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    missing_scopes: set[str] = field(default_factory=set)
    takes_markdown: bool = True
    is_socket_mode: bool = True
    is_up: bool = True
    _tickets: set[str] = field(default_factory=set)
    _refusals: list[tuple[str | None, str, Mapping[str, str]]] = field(default_factory=list)
    _lost: list[str] = field(default_factory=list)
    _revoked: str | None = None
    _count: int = 0
    _epoch: int = field(default_factory=lambda: int(time.time()))
    _more: trio.Event = field(default_factory=trio.Event)

    @abstractmethod
    def send_event(self, event: Any, **payload: Any) -> None:
        """Send any event, also one that makes no sense."""

    @abstractmethod
    def delete(self, channel: str, ts: str) -> None:
        """Take back what was said."""

    def _keep(self, channel: str, message: dict[str, Any]) -> None:
        room = self.channels[channel]
        room.messages.append(message)
        room.by_ts[message["ts"]] = message

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _ts(self) -> str:
        number = self._next()
        return f"{self._epoch + number // 1000}.{number % 1000:03d}{number % 1000:03d}"

    def _note(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def handle(self, request: Request, connection: Connection) -> None:
        """Answer a request."""
        path = urlsplit(request.path).path
        if not self.is_up:
            await connection.cut()
            return
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
        self._note()
        if self.latency_s:
            await trio.sleep(self.latency_s)
        if (gate := self.gates.get((method, arguments.get("channel", "")))) is not None:
            await gate.wait()
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


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
