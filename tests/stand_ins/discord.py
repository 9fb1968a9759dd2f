"""A Discord of its own: REST and gateway on one port, strict about what it is sent.

Flow:    open_discord -> DiscordStandIn: post, press, command … -> gateway -> bot -> REST -> `sent`, `reactions`, …
Source:  messaging spec 18.3; https://discord.com/developers/docs

What the real one would refuse is refused in the same words and noted in `complaints`, which tests want empty. Misuse
that the real one lets pass (a message that could ping everybody) is noted too.
"""

import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import trio

from tests.stand_ins.discord_shapes import (
    APPLICATION,
    BOT,
    EPOCH_MS,
    MESSAGE_CONTENT,
    STAMP,
    TOKEN,
    Call,
    Channel,
    Guild,
    Json,
    Sent,
    Session,
    channel_json,
    guild_json,
    member_json,
    role_json,
    user_json,
)
from tests.stand_ins.discord_wire import ROUTES, Files, Refusal, Socket, numbered, read_body, serve_client


class DiscordStandIn:
    """The server's state; see `open_discord`. Methods that people's doings stand for return at once."""

    me = BOT

    def __init__(self) -> None:
        self.port = 0
        self.token = TOKEN
        self.is_intent_granted = True
        self.latency_s = 0.0
        self.gates: dict[str, trio.Event] = {}  # path of a call -> when it is answered
        self.heartbeat_ms = 45_000
        self.is_silent = False  # the gateway takes connections and says nothing
        self.opened = 0  # gateway connections so far
        self.is_garbled = False  # answers to new messages lack nearly everything
        self.guilds: dict[str, Guild] = {}
        self.channels: dict[str, Channel] = {}
        self.users: dict[str, Json] = {BOT: user_json(BOT, "spacebot", bot=True)}
        self.sent: list[Sent] = []
        self.calls: list[Call] = []
        self.typed: list[str] = []  # channel of each sign that somebody writes
        self.reactions: list[tuple[str, str]] = []  # message, emoji
        self.acknowledged: dict[str, int] = {}  # interaction -> type of the answer
        self.withdrawn: list[str] = []  # interactions whose waiting answer was deleted
        self.commands: list[Json] = []
        self.command_writes = 0
        self.bad_commands: set[str] = set()  # names that Discord does not take, whatever they look like
        self.complaints: list[str] = []
        self.identified = 0
        self.resumed = 0
        self.closed_by_client: list[int] = []
        self._sessions: dict[str, Session] = {}
        self._interactions: dict[str, tuple[str, str, str | None]] = {}  # token -> interaction, channel, answer's id
        self._nonces: dict[tuple[str, str], str] = {}
        self._refusals: list[Refusal | None] = []
        self._attachments: dict[str, bytes] = {}
        self._last_id = 0
        self._more = trio.Event()

    # The world.

    @property
    def rest_url(self) -> str:
        """What the bot's `rest_url` has to be."""
        return f"http://127.0.0.1:{self.port}/api/v10"

    @property
    def connected(self) -> int:
        """How many gateway connections are signed in."""
        return sum(session.socket is not None for session in self._sessions.values())

    def new_id(self) -> str:
        """A new id; later ones are greater. Dated now, as the bot may look at what is recent."""
        self._last_id = max(self._last_id + 1, int(time.time() * 1000 - EPOCH_MS) << 22)
        return str(self._last_id)

    def add_guild(self, name: str = "Guild") -> str:
        """A server that the bot is in."""
        guild = Guild(self.new_id(), name)
        guild.roles[guild.id] = role_json(guild.id, "@everyone", 0)
        self.guilds[guild.id] = guild
        return guild.id

    def add_role(self, guild: str, name: str, permissions: int = 0, *, bot: bool = False) -> str:
        """A role of a server; `bot`: the one that Discord made for the bot."""
        id = self.new_id()
        self.guilds[guild].roles[id] = role_json(id, name, permissions) | ({"tags": {"bot_id": BOT}} if bot else {})
        return id

    def add_channel(self, guild: str, name: str = "general", *, quiet: bool = False) -> str:
        """A text channel; `quiet`: the gateway does not tell of it."""
        channel = Channel(self.new_id(), 0, name, guild)
        self.channels[channel.id] = channel
        if not quiet:
            self.dispatch("CHANNEL_CREATE", channel_json(self.users, channel))
        return channel.id

    def add_thread(self, parent: str, name: str = "thread", *, id: str | None = None, quiet: bool = False) -> str:
        """A public thread of a channel."""
        thread = Channel(id or self.new_id(), 11, name, self.channels[parent].guild, parent)
        self.channels[thread.id] = thread
        if not quiet:
            self.dispatch("THREAD_CREATE", channel_json(self.users, thread))
        return thread.id

    def add_user(self, name: str, *, guild: str | None = None, roles: Sequence[str] = (), bot: bool = False) -> str:
        """A person, or another bot."""
        id = self.new_id()
        self.users[id] = user_json(id, name, bot=bot)
        if guild is not None:
            self.guilds[guild].members[id] = list(roles)
        return id

    def direct(self, user: str) -> str:
        """The direct channel with a person."""
        for channel in self.channels.values():
            if channel.person == user:
                return channel.id
        channel = Channel(self.new_id(), 1, person=user)
        self.channels[channel.id] = channel
        return channel.id

    # What people do.

    def post(self, channel: str, user: str, text: str = "", *, id: str | None = None, **more: Any) -> str:
        """Say something. `more` goes into the message as it is (`attachments`, `type`, `message_reference` …)."""
        message = self._message(channel, user, text, id, **more)
        self.channels[channel].messages[message["id"]] = message
        self.dispatch("MESSAGE_CREATE", self._heard(message))
        return str(message["id"])

    def reply(self, channel: str, user: str, to: str, text: str) -> str:
        """Answer a message."""
        answered = self.channels[channel].messages[to]
        reference = {"message_id": to, "channel_id": channel}
        return self.post(channel, user, text, type=19, message_reference=reference, referenced_message=answered)

    def edit(self, channel: str, message: str, text: str) -> None:
        """Change a message."""
        known = self.channels[channel].messages[message]
        known.update(content=text, edited_timestamp=STAMP, mentions=self._mentioned(text))
        self.dispatch("MESSAGE_UPDATE", self._heard(known))

    def unfurl(self, channel: str, message: str) -> None:
        """What Discord itself does to a message with a link: it adds a preview."""
        self.channels[channel].messages[message]["embeds"] = [{"type": "link", "title": "A page"}]
        self.dispatch("MESSAGE_UPDATE", self._heard(self.channels[channel].messages[message]))

    def delete(self, channel: str, *messages: str) -> None:
        """Take back one message, or many at once."""
        for message in messages:
            self.channels[channel].messages.pop(message, None)
        data = {"channel_id": channel} | self._guild_id(channel)
        if len(messages) == 1:
            self.dispatch("MESSAGE_DELETE", {"id": messages[0], **data})
        else:
            self.dispatch("MESSAGE_DELETE_BULK", {"ids": list(messages), **data})

    def press(self, channel: str, user: str, message: str, custom_id: str, values: Sequence[str] = ()) -> str:
        """Press a button, or choose from a list; returns the interaction's id."""
        data = {"custom_id": custom_id, "component_type": 3 if values else 2} | (
            {"values": list(values)} if values else {}
        )
        carrier = self.channels[channel].messages[message]
        return self._interact(channel, user, 3, data, message=carrier)

    def command(self, channel: str, user: str, name: str, **options: Any) -> str:
        """Give a slash command; returns the interaction's id."""
        listed = [{"name": key, "type": 3, "value": value} for key, value in options.items()]
        return self._interact(channel, user, 2, {"id": self.new_id(), "name": name, "type": 1, "options": listed})

    def attach(self, channel: str, name: str, data: bytes, media_type: str = "text/plain") -> Json:
        """A file for `post(attachments=[…])`, served by this server."""
        id = self.new_id()
        path = f"/attachments/{channel}/{id}/{name}"
        self._attachments[path] = data
        url = f"http://127.0.0.1:{self.port}{path}"
        return {"id": id, "filename": name, "content_type": media_type, "size": len(data), "url": url, "proxy_url": url}

    def remove_channel(self, channel: str) -> None:
        """Delete a channel or thread."""
        gone = self.channels.pop(channel)
        self.dispatch("THREAD_DELETE" if gone.parent else "CHANNEL_DELETE", channel_json(self.users, gone))

    # Misbehaviour.

    def revoke(self, channel: str, *permissions: str) -> None:
        """Take permissions from the bot: view, send, history, react, thread, poll, files."""
        self.channels[channel].revoked.update(permissions)

    def refuse_next(self, count: int, *, status: int = 429, retry_after_s: float = 0.05) -> None:
        """Refuse the next calls: 429 with a pause, or an error of the server's."""
        for _ in range(count):
            if status == 429:
                refusal = Refusal(429, 0, "You are being rate limited.", retry_after=retry_after_s)
                refusal.body["global"] = False
            else:
                refusal = Refusal(status, 0, "failed")
            self._refusals.append(refusal)

    def accept_next(self, count: int = 1) -> None:
        """Let so many calls pass before the next refusal."""
        self._refusals += [None] * count

    async def drop_sockets(self) -> None:
        """Cut every gateway connection without a word. The sessions can be resumed."""
        for session in self._sessions.values():
            if session.socket is not None:
                socket, session.socket = session.socket, None
                await socket.stream.aclose()

    def close_sockets(self, code: int) -> None:
        """Close every gateway connection with a code."""
        for session in self._sessions.values():
            if session.socket is not None:
                session.socket.close(code)
                session.socket = None

    def ask_reconnect(self) -> None:
        """Op 7: the client has to come back and resume."""
        self._tell({"op": 7, "d": None})

    def invalidate_sessions(self, *, resumable: bool) -> None:
        """Op 9: the sessions are over; or, if `resumable`, only the connections."""
        self._tell({"op": 9, "d": resumable})
        if not resumable:
            self._sessions.clear()

    def forget_sessions(self) -> None:
        """No session can be resumed."""
        self._sessions.clear()

    def dispatch(self, name: str, data: Json) -> None:
        """Send an event to every session, connected or not: a resuming one gets what it missed."""
        for session in self._sessions.values():
            payload = {"op": 0, "t": name, "s": len(session.events) + 1, "d": data}
            session.events.append(payload)
            if session.socket is not None:
                session.socket.send(payload)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the bot did makes the condition true."""
        while not condition():
            self._more = trio.Event()
            await self._more.wait()

    async def was_sent(self, count: int) -> list[Sent]:
        """Wait for so many messages of the bot's; returns all."""
        await self.until(lambda: len(self.sent) >= count)
        return self.sent

    # The gateway.

    def _tell(self, payload: Json) -> None:
        for session in self._sessions.values():
            if session.socket is not None:
                session.socket.send({"t": None, "s": None, **payload})

    async def serve_gateway(self, socket: Socket, buffer: bytearray) -> None:
        """Talk to one client until it is gone."""
        self.opened += 1
        self.note()
        if not self.is_silent:
            socket.send({"op": 10, "t": None, "s": None, "d": {"heartbeat_interval": self.heartbeat_ms}})
        session: Session | None = None
        try:
            while (frame := await socket.receive(buffer)) is not None:
                kind, data = frame
                if kind == 8:
                    self.closed_by_client.append(int.from_bytes(data[:2], "big") if data else 1005)
                    socket.close(1000)
                    return
                if kind != 2:
                    self.complaints.append(f"gateway frame of kind {kind}")
                    continue
                payload = json.loads(data)
                match payload["op"]:
                    case 1:
                        socket.send({"op": 11, "t": None, "s": None, "d": None})
                    case 2:
                        session = self._identify(socket, payload["d"])
                    case 6:
                        session = self._resume(socket, payload["d"])
                    case op:
                        self.complaints.append(f"gateway op {op}")
                self.note()
        finally:
            if session is not None and session.socket is socket:
                session.socket = None
            self.note()

    def _identify(self, socket: Socket, data: Json) -> Session | None:
        if data.get("token") != self.token:
            socket.close(4004, "Authentication failed.")
            return None
        if data["intents"] & MESSAGE_CONTENT and not self.is_intent_granted:
            socket.close(4014, "Disallowed intent(s).")
            return None
        if data["intents"] & ~(1 | 1 << 9 | 1 << 12 | MESSAGE_CONTENT):
            self.complaints.append(f"intents {data['intents']:b} are more than is needed")
        self.identified += 1
        session = Session(f"session{self.identified}", socket=socket)
        self._sessions[session.id] = session
        ready = {
            "v": 10,
            "user": self.users[BOT]
            | {"mfa_enabled": False, "verified": True, "flags": 0, "locale": "en", "email": None},
            "guilds": [{"id": guild, "unavailable": True} for guild in self.guilds],
            "session_id": session.id,
            "resume_gateway_url": f"ws://127.0.0.1:{self.port}/gw",
            "shard": [0, 1],
            "application": {"id": APPLICATION, "flags": 0},
        }
        payload = {"op": 0, "t": "READY", "s": 1, "d": ready}
        session.events.append(payload)
        socket.send(payload)
        for guild in self.guilds.values():
            payload = {
                "op": 0,
                "t": "GUILD_CREATE",
                "s": len(session.events) + 1,
                "d": guild_json(self.channels.values(), self.users, guild),
            }
            session.events.append(payload)
            socket.send(payload)
        return session

    def _resume(self, socket: Socket, data: Json) -> Session | None:
        session = self._sessions.get(data["session_id"])
        if session is None or data["token"] != self.token or data["seq"] > len(session.events):
            socket.send({"op": 9, "t": None, "s": None, "d": False})
            return None
        self.resumed += 1
        for payload in session.events[data["seq"] :]:
            socket.send(payload)
        payload = {"op": 0, "t": "RESUMED", "s": len(session.events) + 1, "d": {"_trace": []}}
        session.events.append(payload)
        socket.send(payload)
        session.socket = socket
        return session

    # The REST side.

    async def answer(self, method: str, target: str, headers: dict[str, str], raw: bytes) -> tuple[int, Any, Json]:
        """Status, body and headers for a request."""
        url = urlsplit(target)
        if url.path in self._attachments:
            return 200, self._attachments[url.path], {}
        path = unquote(url.path).removeprefix("/api/v10")
        body, files = read_body(headers.get("content-type", ""), raw)
        call = Call(method, path, body)
        self.calls.append(call)
        self.note()
        if self.latency_s:
            await trio.sleep(self.latency_s)
        if path in self.gates:
            await self.gates[path].wait()
        more: Json = {}
        try:
            refusal = self._refusals.pop(0) if self._refusals else None
            if refusal is not None:
                if refusal.status == 429:
                    more = {"X-RateLimit-Scope": "shared", "Retry-After": str(math.ceil(refusal.body["retry_after"]))}
                raise refusal
            is_open = path.startswith(("/interactions/", "/webhooks/"))
            if not is_open and headers.get("authorization") != f"Bot {self.token}":
                raise Refusal(401, 0, "401: Unauthorized")
            for known_method, pattern, handler in ROUTES:
                if known_method == method and (match := pattern.fullmatch(path)):
                    query = {key: values[0] for key, values in parse_qs(url.query).items()}
                    answer = handler(self, *match.groups(), body=body, files=files, query=query)
                    call.status = 204 if answer is None else 200
                    return call.status, answer, more
            self.complaints.append(f"unknown route {method} {path}")
            raise Refusal(404, 0, "404: Not Found")
        except Refusal as refused:
            call.status = refused.status
            return refused.status, refused.body, more
        finally:
            self.note()

    def note(self) -> None:
        """Let those look who wait for something."""
        self._more.set()

    def invalid(self, reason: str) -> Refusal:
        """The refusal of a body that the bot should not have sent."""
        self.complaints.append(reason)
        return Refusal(400, 50035, "Invalid Form Body", errors={"_errors": [{"code": "INVALID", "message": reason}]})

    def room(self, id: str, *needs: str) -> Channel:
        """A channel that exists and where the bot may do that."""
        channel = self.channels.get(id)
        if channel is None:
            raise Refusal(404, 10003, "Unknown Channel")
        if "view" in channel.revoked:
            raise Refusal(403, 50001, "Missing Access")
        if channel.revoked & set(needs):
            raise Refusal(403, 50013, "Missing Permissions")
        return channel

    def store(self, channel: Channel, body: Json, files: Files, interaction: str | None = None) -> Json:
        """Keep a message of the bot's, and tell its own gateway of it."""
        reference = body.get("message_reference")
        if reference is not None and reference["message_id"] not in channel.messages:
            if reference.get("fail_if_not_exists", True):
                raise self.invalid("Unknown message")
            reference = None
        mark = (channel.id, str(body["nonce"])) if body.get("nonce") else None
        if mark is not None and body.get("enforce_nonce") and mark in self._nonces:
            return channel.messages[self._nonces[mark]]
        text = (body.get("content") or "").strip()
        message = self._message(channel.id, BOT, text, None)
        message["embeds"] = body.get("embeds") or []
        message["components"] = numbered(body.get("components") or [])
        if poll := body.get("poll"):
            answers = [answer | {"answer_id": number} for number, answer in enumerate(poll["answers"], 1)]
            message["poll"] = {"layout_type": 1, "expiry": STAMP, **poll, "answers": answers}
        message["attachments"] = [self.attach(channel.id, name, data) for name, data in files]
        channel.messages[message["id"]] = message
        if mark is not None:
            self._nonces[mark] = message["id"]
        reply = reference["message_id"] if reference else None
        self.sent.append(Sent(message["id"], channel.id, text, body, reply, files, interaction=interaction))
        self.dispatch("MESSAGE_CREATE", self._heard(message | ({"nonce": body["nonce"]} if mark else {})))
        if self.is_garbled:
            return {"id": message["id"]}
        return message

    def change(self, channel: Channel, message: Json, body: Json, files: Files) -> Json:
        """Edit a message of the bot's, and tell its own gateway of it."""
        sent = next(one for one in self.sent if one.id == message["id"])
        sent.edits.append(sent.text)
        if "content" in body:
            sent.text = message["content"] = (body["content"] or "").strip()
        message["embeds"] = body.get("embeds", message["embeds"])
        message["components"] = numbered(body["components"]) if "components" in body else message["components"]
        message["edited_timestamp"] = STAMP
        message["attachments"] += [self.attach(channel.id, name, data) for name, data in files]
        sent.body, sent.files = body, sent.files + files
        self.dispatch("MESSAGE_UPDATE", self._heard(message))
        return message

    def _message(self, channel: str, user: str, text: str, id: str | None, **more: Any) -> Json:
        id = id or self.new_id()
        return {
            "id": id,
            "channel_id": channel,
            "author": self.users[user],
            "content": text,
            "timestamp": datetime.fromtimestamp(((int(id) >> 22) + EPOCH_MS) / 1000, UTC).isoformat(),
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": self._mentioned(text),
            "mention_roles": re.findall(r"<@&(\d+)>", text),
            "attachments": [],
            "embeds": [],
            "pinned": False,
            "type": 0,
            "flags": 0,
            "components": [],
            **more,
        }

    def _mentioned(self, text: str) -> list[Json]:
        named = dict.fromkeys(re.findall(r"<@!?(\d+)>", text))
        return [self.users[one] for one in named if one in self.users]

    def _heard(self, message: Json) -> Json:
        """A message as the gateway tells it: with the guild and the writer's membership."""
        guild = self.channels[message["channel_id"]].guild
        if guild is None:
            return message
        return message | {"guild_id": guild, "member": member_json(self.guilds[guild], message["author"]["id"])}

    def _interact(self, channel: str, user: str, kind: int, data: Json, **more: Any) -> str:
        id, token = self.new_id(), f"token-of-interaction-{self.new_id()}"
        self._interactions[token] = (id, channel, None)
        room = self.channels[channel]
        who: Json = {"user": self.users[user]}
        if room.guild is not None:
            guild = self.guilds[room.guild]
            held = [guild.roles[role]["permissions"] for role in (*guild.members.get(user, ()), guild.id)]
            granted = {"permissions": str(sum(map(int, held)))}
            who = {"guild_id": guild.id, "member": member_json(guild, user) | who | granted}
        self.dispatch(
            "INTERACTION_CREATE",
            {
                "id": id,
                "application_id": APPLICATION,
                "type": kind,
                "token": token,
                "version": 1,
                "channel_id": channel,
                "channel": {"id": channel, "type": room.kind, "name": room.name, "permissions": "0"},
                "data": data,
                "locale": "en-US",
                "app_permissions": "0",
                "entitlements": [],
                "authorizing_integration_owners": {},
                "context": 0 if room.guild else 1,
                "attachment_size_limit": 10485760,
                **who,
                **more,
            },
        )
        return id

    def interaction(self, token: str) -> tuple[str, Channel, str | None]:
        """What a token belongs to: interaction, channel, and the answer so far."""
        if token not in self._interactions:
            raise Refusal(404, 10015, "Unknown Webhook")
        id, channel, answer = self._interactions[token]
        return id, self.room(channel), answer

    def answered(self, token: str, message: str | None) -> None:
        """Remember the answer to an interaction; None: it was taken back."""
        id, channel, _ = self._interactions[token]
        self._interactions[token] = (id, channel, message)

    def forget_nonces(self) -> None:
        """Some minutes go by."""
        self._nonces.clear()

    def expire_tokens(self) -> None:
        """Fifteen minutes go by."""
        self._interactions.clear()

    def _guild_id(self, channel: str) -> Json:
        guild = self.channels[channel].guild
        return {"guild_id": guild} if guild else {}

    def described(self, id: str) -> Json:
        """A channel's JSON."""
        return channel_json(self.users, self.room(id))

    def guild(self, id: str) -> Json:
        """A guild's JSON, for REST."""
        if id not in self.guilds:
            raise Refusal(404, 10004, "Unknown Guild")
        return guild_json(self.channels.values(), self.users, self.guilds[id])

    def member(self, guild: str, user: str) -> Json:
        """What a guild knows of a person, for REST."""
        if guild not in self.guilds:
            raise Refusal(404, 10004, "Unknown Guild")
        if user not in self.guilds[guild].members:
            raise Refusal(404, 10007, "Unknown Member")
        return member_json(self.guilds[guild], user) | {"user": self.users[user]}


@asynccontextmanager
async def open_discord(*, port: int = 0) -> AsyncIterator[DiscordStandIn]:
    """Serve on loopback while the block runs; port 0 lets the system choose."""
    standin = DiscordStandIn()
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
    standin.port = listeners[0].socket.getsockname()[1]
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(serve_client, standin), listeners)
        try:
            yield standin
        except Exception as error:
            failure = error  # raised below, so that it reaches the test without a group around it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
