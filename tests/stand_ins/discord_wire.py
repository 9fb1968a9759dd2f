"""What the Discord stand-in speaks: gateway frames, HTTP, and the rules of the REST calls.

Flow:    serve_client -> Socket | answer; ROUTES -> a call's handler
Source:  messaging spec 18.3; limits of https://discord.com/developers/docs/resources/message
"""

import json
import math
import re
import zlib
from base64 import b64encode
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from hashlib import sha1
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import trio

if TYPE_CHECKING:
    from tests.stand_ins.discord import DiscordStandIn

Json = dict[str, Any]
Files = list[tuple[str, bytes]]
COMMAND_NAME = re.compile(r"[-_'\w]{1,32}")
PINGS = {"parse", "users", "roles", "replied_user"}
ROLE_PINGS = {"everyone", "roles"}
MAX_FILE = 10 * 1024 * 1024


class Refusal(Exception):
    """An HTTP answer that is an error."""

    def __init__(self, status: int, code: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, **more}


class Socket:
    """The server's end of one gateway connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._deflate = zlib.compressobj()
        self._out, self._queue = trio.open_memory_channel[bytes](math.inf)

    def send(self, payload: Json) -> None:
        """Queue a payload: binary, all of a connection in one zlib stream, each flushed."""
        data = self._deflate.compress(json.dumps(payload).encode()) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._put(0x82, data)

    def close(self, code: int, reason: str = "") -> None:
        """Queue a closing frame."""
        self._put(0x88, code.to_bytes(2, "big") + reason.encode())

    def _put(self, kind: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = bytes((kind, size))
        elif size < 65536:
            head = bytes((kind, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((kind, 127)) + size.to_bytes(8, "big")
        self._out.send_nowait(head + data)

    def finish(self) -> None:
        """Nothing more is queued; `write` ends when all is sent."""
        self._out.close()

    async def write(self) -> None:
        """Send what is queued, for as long as the connection lives."""
        try:
            async for frame in self._queue:
                await self.stream.send_all(frame)
                if frame[0] == 0x88:
                    await self.stream.send_eof()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, which is its right

    async def receive(self, buffer: bytearray) -> tuple[int, bytes] | None:
        """The client's next frame: kind and unmasked data; None when the client is gone."""
        if not await self._fill(buffer, 2):
            return None
        size, at = buffer[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if not await self._fill(buffer, at):
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if not await self._fill(buffer, at + 4 + size):
            return None
        mask, data = bytes(buffer[at : at + 4]), bytes(buffer[at + 4 : at + 4 + size])
        whole = (mask * (size // 4 + 1))[:size]
        kind = buffer[0] & 0x0F
        del buffer[: at + 4 + size]
        return kind, (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")

    async def _fill(self, buffer: bytearray, count: int) -> bool:
        while len(buffer) < count:
            try:
                data = await self.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            if not data:
                return False
            buffer.extend(data)
        return True


async def serve_client(standin: "DiscordStandIn", stream: trio.SocketStream) -> None:
    """Serve one connection: REST requests, or a gateway after its upgrade."""
    connection = h11.Connection(h11.SERVER)
    try:
        while True:
            request, body = await _request(connection, stream)
            if request is None:
                return
            headers = {name.decode(): value.decode() for name, value in request.headers}
            if headers.get("upgrade", "").lower() == "websocket":
                await _serve_gateway(standin, stream, connection, headers, request.target.decode())
                return
            status, answer, more = await standin.answer(request.method.decode(), request.target.decode(), headers, body)
            data = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
            kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
            lines = [("content-length", str(len(data))), ("content-type", kind), *more.items()]
            await stream.send_all(connection.send(h11.Response(status_code=status, headers=lines)) or b"")
            await stream.send_all(
                (connection.send(h11.Data(data=data)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
            )
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
        return  # the client went away, which is its right
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await stream.aclose()


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> tuple[h11.Request | None, bytes]:
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
            return request, bytes(body)
        else:
            return None, b""


async def _serve_gateway(
    standin: "DiscordStandIn",
    stream: trio.SocketStream,
    connection: h11.Connection,
    headers: dict[str, str],
    target: str,
) -> None:
    if urlsplit(target).query != "v=10&encoding=json&compress=zlib-stream":
        standin.complaints.append(f"gateway address {target}")
    accept = b64encode(sha1(f"{headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    socket = Socket(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(socket.write)
        await standin.serve_gateway(socket, bytearray(connection.trailing_data[0]))
        socket.finish()


def read_body(content_type: str, raw: bytes) -> tuple[Any, Files]:
    """A request's JSON and files."""
    if not content_type.startswith("multipart/form-data"):
        return (json.loads(raw) if raw else None), []
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw)
    body: Any = None
    files: Files = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if name == "payload_json":
            body = json.loads(data)
        else:
            files.append((part.get_filename() or "", data))
    return body, files


def numbered(rows: list[Json]) -> list[Json]:
    """Components as a message shows them: with ids of their own."""
    return [
        row | {"id": at * 10, "components": [one | {"id": at * 10 + n} for n, one in enumerate(row["components"], 1)]}
        for at, row in enumerate(rows, 1)
    ]


def check_message(standin: "DiscordStandIn", body: Json, files: Files, *, is_edit: bool = False) -> None:
    """Refuse a message that the real one would refuse."""

    def limit(text: Any, most: int, what: str, *, least: int = 1) -> int:
        if not isinstance(text, str) or not least <= len(text) <= most:
            raise standin.invalid(f"{what} has to be {least} to {most} long")
        return len(text)

    if body.get("content"):
        limit(body["content"], 2000, "content")
    has_more = body.get("embeds") or body.get("components") or body.get("poll") or files
    if not (is_edit or has_more or (body.get("content") or "").strip()):
        raise Refusal(400, 50006, "Cannot send an empty message")
    if is_edit and body.get("poll"):
        raise standin.invalid("a poll cannot be edited")
    allowed = body.get("allowed_mentions")
    if (
        allowed is None
        or not allowed.keys() <= PINGS
        or set(allowed.get("parse", ())) & ROLE_PINGS
        or allowed.get("roles")
    ):
        standin.complaints.append(f"the message could ping everybody: allowed_mentions {allowed}")
    if len(str(body.get("nonce") or "")) > 25:
        raise standin.invalid("nonce is too long")
    if any(len(data) > MAX_FILE for _, data in files):
        raise Refusal(413, 40005, "Request entity too large")
    _check_embeds(standin, body.get("embeds") or [], limit)
    _check_rows(standin, body.get("components") or [], limit)
    if (poll := body.get("poll")) is not None:
        limit(poll["question"]["text"].strip(), 300, "question")
        if not 1 <= len(poll["answers"]) <= 10 or not 1 <= poll["duration"] <= 768:
            raise standin.invalid("poll")
        for answer in poll["answers"]:
            limit(answer["poll_media"]["text"].strip(), 55, "answer")


def _check_embeds(standin: "DiscordStandIn", embeds: list[Json], limit: Callable[..., int]) -> None:
    if len(embeds) > 10:
        raise standin.invalid("embeds")
    total = 0
    for embed in embeds:
        if not embed.keys() - {"color", "url"}:
            raise standin.invalid("embed is empty")
        for key, most in (("title", 256), ("description", 4096)):
            total += limit(embed[key], most, key) if key in embed else 0
        total += limit(embed["footer"]["text"], 2048, "footer") if "footer" in embed else 0
        total += limit(embed["author"]["name"], 256, "author") if "author" in embed else 0
        if len(embed.get("fields", ())) > 25:
            raise standin.invalid("fields")
        for one in embed.get("fields", ()):
            total += limit(one["name"], 256, "field name") + limit(one["value"], 1024, "field value")
        for url in (embed.get("url"), embed.get("image", {}).get("url"), embed.get("thumbnail", {}).get("url")):
            if url is not None and not re.fullmatch(r"https?://\S+", url):
                raise standin.invalid("url")
    if total > 6000:
        raise standin.invalid("embeds are longer than 6000 together")


def _check_rows(standin: "DiscordStandIn", rows: list[Json], limit: Callable[..., int]) -> None:
    if len(rows) > 5:
        raise standin.invalid("components")
    ids = [one["custom_id"] for row in rows for one in row["components"] if "custom_id" in one]
    if len(set(ids)) < len(ids):
        raise standin.invalid("Component custom id cannot be duplicated")
    for row in rows:
        parts = row["components"]
        if row["type"] != 1 or not 1 <= len(parts) <= (1 if any(one["type"] == 3 for one in parts) else 5):
            raise standin.invalid("row")
        for one in parts:
            if one["type"] == 2:
                limit(one["label"], 80, "label")
                limit(one["url"], 512, "url") if one["style"] == 5 else limit(one["custom_id"], 100, "custom_id")
                continue
            limit(one["custom_id"], 100, "custom_id")
            if not 1 <= len(one["options"]) <= 25 or one["min_values"] != 1:
                raise standin.invalid("options")
            if "placeholder" in one:
                limit(one["placeholder"], 150, "placeholder")
            if len({option["value"] for option in one["options"]}) < len(one["options"]):
                raise standin.invalid("option value is there twice")
            for option in one["options"]:
                for key in ("label", "value", "description"):
                    if key in option:
                        limit(option[key], 100, key)


# The calls. Each gets the stand-in, the parts of the path, then body, files and query.


def _get_gateway(standin: "DiscordStandIn", **_: Any) -> Json:
    limit = {"total": 1000, "remaining": 999, "reset_after": 1000, "max_concurrency": 1}
    return {"url": f"ws://127.0.0.1:{standin.port}/gw", "shards": 1, "session_start_limit": limit}


def _get_me(standin: "DiscordStandIn", **_: Any) -> Json:
    return standin.users[standin.me] | {
        "premium_type": 0,
        "mfa_enabled": False,
        "locale": "en",
        "verified": True,
        "flags": 0,
    }


def _open_direct(standin: "DiscordStandIn", body: Json, **_: Any) -> Json:
    if str(body["recipient_id"]) not in standin.users:
        raise Refusal(400, 50033, "Invalid Recipient(s)")
    return standin.described(standin.direct(str(body["recipient_id"])))


def _get_channel(standin: "DiscordStandIn", channel: str, **_: Any) -> Json:
    return standin.described(channel)


def _get_guild(standin: "DiscordStandIn", guild: str, **_: Any) -> Json:
    return standin.guild(guild)


def _get_member(standin: "DiscordStandIn", guild: str, user: str, **_: Any) -> Json:
    return standin.member(guild, user)


def _create(standin: "DiscordStandIn", channel: str, body: Json, files: Files, **_: Any) -> Json:
    needs = ["send", *(["files"] if files else []), *(["poll"] if body.get("poll") else [])]
    room = standin.room(channel, *needs)
    if body.get("embeds") and "embed" in room.revoked:
        body["embeds"] = []  # the real one leaves them out without a word
    check_message(standin, body, files)
    return standin.store(room, body, files)


def _list(standin: "DiscordStandIn", channel: str, query: dict[str, str], **_: Any) -> list[Json]:
    room = standin.room(channel, "history")
    known = sorted(room.messages.values(), key=lambda message: int(message["id"]), reverse=True)
    limit = int(query.get("limit", "50"))
    if not 1 <= limit <= 100:
        raise standin.invalid("limit has to be 1 to 100")
    if "before" in query:
        known = [message for message in known if int(message["id"]) < int(query["before"])]
    if "after" in query:
        return [message for message in known if int(message["id"]) > int(query["after"])][-limit:]
    return known[:limit]


def _edit(standin: "DiscordStandIn", channel: str, message: str, body: Json, files: Files, **_: Any) -> Json:
    room = standin.room(channel)
    known = room.messages.get(message)
    if known is None:
        raise Refusal(404, 10008, "Unknown Message")
    if known["author"]["id"] != standin.me:
        raise Refusal(403, 50005, "Cannot edit a message authored by another user")
    check_message(standin, body, files, is_edit=True)
    return standin.change(room, known, body, files)


def _delete(standin: "DiscordStandIn", channel: str, message: str, **_: Any) -> None:
    room = standin.room(channel)
    if message not in room.messages:
        raise Refusal(404, 10008, "Unknown Message")
    if room.messages[message]["author"]["id"] != standin.me:
        raise Refusal(403, 50013, "Missing Permissions")
    for sent in standin.sent:
        sent.is_deleted = sent.is_deleted or sent.id == message
    standin.delete(channel, message)


def _type(standin: "DiscordStandIn", channel: str, **_: Any) -> None:
    standin.typed.append(standin.room(channel, "send").id)


def _react(standin: "DiscordStandIn", channel: str, message: str, emoji: str, **_: Any) -> None:
    if message not in standin.room(channel, "react").messages:
        raise Refusal(404, 10008, "Unknown Message")
    if emoji.isascii() and not re.fullmatch(r"\w+:\d+", emoji):
        raise Refusal(400, 10014, "Unknown Emoji")
    standin.reactions.append((message, emoji))


def _thread(standin: "DiscordStandIn", channel: str, message: str, body: Json, **_: Any) -> Json:
    room = standin.room(channel, "thread")
    if room.guild is None or room.parent is not None:
        raise Refusal(400, 50024, "Cannot execute action on this channel type")
    if message not in room.messages:
        raise Refusal(404, 10008, "Unknown Message")
    if message in standin.channels:
        raise Refusal(400, 160004, "A thread has already been created for this message")
    if not 1 <= len(body["name"]) <= 100:
        raise standin.invalid("thread name")
    return standin.described(standin.add_thread(channel, body["name"], id=message))


def _bare_thread(standin: "DiscordStandIn", channel: str, body: Json, **_: Any) -> Json:
    if standin.room(channel, "thread").guild is None:
        raise Refusal(400, 50024, "Cannot execute action on this channel type")
    if not 1 <= len(body["name"]) <= 100 or body["type"] != 11:
        raise standin.invalid("thread")
    return standin.described(standin.add_thread(channel, body["name"]))


def _acknowledge(
    standin: "DiscordStandIn", interaction: str, token: str, body: Json, query: dict[str, str], **_: Any
) -> Json:
    if query.get("with_response", "").lower() != "true":
        standin.complaints.append("interaction answered without with_response")
    if standin.interaction(token)[0] != interaction or interaction in standin.acknowledged:
        raise Refusal(400, 40060, "Interaction has already been acknowledged.")
    if body["type"] not in (5, 6):
        raise standin.invalid("only deferred answers are known here")
    standin.acknowledged[interaction] = body["type"]
    return {
        "interaction": {"id": interaction, "type": 2 if body["type"] == 5 else 3},
        "resource": {"type": body["type"]},
    }


def _answer(standin: "DiscordStandIn", application: str, token: str, body: Json, files: Files, **_: Any) -> Json:
    interaction, room, answer = standin.interaction(token)
    if standin.acknowledged.get(interaction) != 5:
        raise Refusal(404, 10015, "Unknown Webhook")
    check_message(standin, body, files)
    if answer is not None:
        return standin.change(room, room.messages[answer], body, files)
    message = standin.store(room, body, files, interaction)
    standin.answered(token, message["id"])
    return message


def _withdraw(standin: "DiscordStandIn", application: str, token: str, **_: Any) -> None:
    standin.withdrawn.append(standin.interaction(token)[0])


def _get_commands(standin: "DiscordStandIn", application: str, **_: Any) -> list[Json]:
    return standin.commands


def _put_commands(standin: "DiscordStandIn", application: str, body: list[Json], **_: Any) -> list[Json]:
    standin.commands = [_command(standin, application, one) for one in body]
    standin.command_writes += 1
    return standin.commands


def _post_command(standin: "DiscordStandIn", application: str, body: Json, **_: Any) -> Json:
    made = _command(standin, application, body)
    standin.commands = [one for one in standin.commands if one["name"] != made["name"]] + [made]
    standin.command_writes += 1
    return made


def _command(standin: "DiscordStandIn", application: str, body: Json) -> Json:
    if not COMMAND_NAME.fullmatch(body["name"]) or body["name"] in standin.bad_commands:
        raise Refusal(400, 50035, "Invalid Form Body", errors={"_errors": [{"code": "INVALID", "message": "name"}]})
    if not 1 <= len(body["description"]) <= 100:
        raise standin.invalid("command description")
    made = {"id": standin.new_id(), "application_id": application, "type": 1, "version": standin.new_id()}
    return made | {"name": body["name"], "description": body["description"], "default_member_permissions": None}


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    (method, re.compile(pattern.replace("#", r"(\d+)").replace("~", "([^/]+)")), handler)
    for method, pattern, handler in (
        ("GET", "/gateway/bot", _get_gateway),
        ("GET", "/users/@me", _get_me),
        ("POST", "/users/@me/channels", _open_direct),
        ("GET", "/channels/#", _get_channel),
        ("GET", "/guilds/#", _get_guild),
        ("GET", "/guilds/#/members/#", _get_member),
        ("POST", "/channels/#/messages", _create),
        ("GET", "/channels/#/messages", _list),
        ("PATCH", "/channels/#/messages/#", _edit),
        ("DELETE", "/channels/#/messages/#", _delete),
        ("POST", "/channels/#/typing", _type),
        ("PUT", "/channels/#/messages/#/reactions/~/@me", _react),
        ("POST", "/channels/#/messages/#/threads", _thread),
        ("POST", "/channels/#/threads", _bare_thread),
        ("POST", "/interactions/#/~/callback", _acknowledge),
        ("PATCH", "/webhooks/#/~/messages/@original", _answer),
        ("DELETE", "/webhooks/#/~/messages/@original", _withdraw),
        ("GET", "/applications/#/commands", _get_commands),
        ("PUT", "/applications/#/commands", _put_commands),
        ("POST", "/applications/#/commands", _post_command),
    )
]
