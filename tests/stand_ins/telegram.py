"""A stand-in for Telegram: the Bot API and its files on one port, in the test's own loop.

Flow: open_telegram() -> Telegram; people post, edit, press; what the bot sent is in `sent`

It is as strict as the real one: tokens, parameters, lengths in UTF-16 units after entities are parsed, HTML, buttons,
polls. What a well-behaved bot never does is noted in `complaints` too. Updates stay until a poll's offset is past them.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote

import trio

from tests.stand_ins.serving import Connection, Request, serve
from tests.stand_ins.telegram_api import MEDIA, TOKEN, ApiError, BotApi, Chat, Sent, User
from tests.stand_ins.telegram_forms import entities_of, form_of

__all__ = ["TOKEN", "ApiError", "Chat", "Sent", "Telegram", "User", "open_telegram"]


class Telegram(BotApi):
    """The running stand-in."""

    @property
    def url(self) -> str:
        """Root of API and files: `api_url` of an account."""
        assert self.server is not None
        return self.server.url

    @property
    def is_polled(self) -> bool:
        """Whether a poll waits for updates right now."""
        return self._poller is not None

    # Who and where

    def user(self, first_name: str, last_name: str = "", username: str = "", *, is_bot: bool = False) -> User:
        """Somebody new."""
        return User(next(self._user_ids), first_name, last_name, username, is_bot)

    def private(self, person: User) -> Chat:
        """The talk of a person with the bot; the same one each time."""
        return self.chats.setdefault(person.id, Chat(person.id, "private", person=person))

    def group(self, title: str, *, kind: str = "supergroup", topics: Sequence[str] = ()) -> Chat:
        """A new group; with topics it is a forum."""
        chat = Chat(-(1_000_000_000_000 + next(self._chat_ids)), kind, title, is_forum=bool(topics))
        self.chats[chat.id] = chat
        for topic in topics:
            chat.topics[next(chat.numbers)] = topic
        return chat

    # What people do

    def post(
        self,
        chat: Chat,
        author: User,
        text: str = "",
        *,
        topic: int | None = None,
        reply_to: int | None = None,
        entities: Sequence[Mapping[str, Any]] = (),
        **fields: Any,
    ) -> int:
        """Somebody writes; returns the message's id. `fields` are further ones of the API's message."""
        message = self._message(chat, author, topic=topic, reply_to=reply_to)
        if text:
            name = "caption_entities" if any(kind in fields for kind in MEDIA.values()) else "entities"
            message["caption" if name == "caption_entities" else "text"] = text
            if found := [*entities_of(text), *entities]:
                message[name] = found
        message |= fields
        self.update("message", message)
        return int(message["message_id"])

    def attach(
        self,
        chat: Chat,
        author: User,
        kind: str,
        data: bytes,
        caption: str = "",
        *,
        size: int | None = None,
        **fields: Any,
    ) -> int:
        """Somebody sends a photo, document, video, voice or audio; returns the message's id."""
        number = len(self._files) + 1
        identity = f"FILE{number}"
        self._files[identity] = (f"{kind}s/file {number}", data)
        self._file_sizes[identity] = len(data) if size is None else size
        file = {"file_id": identity, "file_unique_id": f"u{number}", "file_size": self._file_sizes[identity], **fields}
        told: Any = file
        if kind == "photo":
            small = {"file_id": f"{identity}s", "file_unique_id": f"s{number}", "width": 90, "height": 60}
            told = [small, file | {"width": 800, "height": 600}]
        return self.post(chat, author, caption, **{kind: told})

    def edit(self, chat: Chat, message_id: int, text: str) -> None:
        """Somebody changes what was written."""
        message = chat.messages[message_id]
        message |= {"text": text, "edit_date": self.now, "entities": entities_of(text)}
        self.update("edited_message", message)

    def press(self, chat: Chat, person: User, message_id: int, label: str) -> str:
        """Somebody presses a button; returns the press's id."""
        message = chat.messages[message_id]
        buttons = [button for row in message["reply_markup"]["inline_keyboard"] for button in row]
        data = next(button["callback_data"] for button in buttons if button["text"] == label)
        identity = str(9_000_000 + len(self.pending) + len(self.calls))
        query = {"id": identity, "from": person.json(), "chat_instance": "1", "data": data, "message": message}
        self.update("callback_query", query)
        return identity

    def migrate(self, chat: Chat) -> Chat:
        """A group becomes a supergroup of another id; writing to the old one is refused from now on."""
        new = self.group(chat.title)
        new.administrators = chat.administrators
        chat.refusal = ApiError(
            400, "Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=new.id
        )
        someone = self.user("Group", is_bot=False)
        self.update("message", self._message(chat, someone) | {"migrate_to_chat_id": new.id})
        self.update("message", self._message(new, someone) | {"migrate_from_chat_id": chat.id})
        return new

    def update(self, kind: str, body: object) -> int:
        """Put an update in front of the bot, whatever it holds; returns its id."""
        number = next(self._update_ids)
        if self._allowed is None or kind in self._allowed:
            self.pending.append({"update_id": number, kind: body})
            self._note()
        return number

    # How it misbehaves

    def block(self, person: User) -> None:
        """A person blocks the bot."""
        self.private(person).refusal = ApiError(403, "Forbidden: bot was blocked by the user")

    def kick(self, chat: Chat) -> None:
        """The bot is thrown out of a group."""
        chat.refusal = ApiError(403, f"Forbidden: bot was kicked from the {chat.type} chat")

    def slow_down(self, times: int = 1, *, retry_after: float = 1, method: str | None = None) -> None:
        """The next calls are too many; the real server asks for whole seconds only."""
        for _ in range(times):
            error = ApiError(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)
            self._refusals.append((method, error, False))

    def fail(self, times: int = 1, *, method: str | None = None, code: int = 502, text: str = "Bad Gateway") -> None:
        """The next calls fail."""
        self._refusals += [(method, ApiError(code, text), False)] * times

    def hang_up(self, times: int = 1, *, method: str | None = None, is_after: bool = False) -> None:
        """The next calls get no answer; `is_after` means that they are carried out nevertheless."""
        self._refusals += [(method, None, is_after)] * times

    # What the bot did

    def texts(self, chat: Chat) -> list[str]:
        """What people of a chat read of the bot now."""
        return [sent.text for sent in self.sent if sent.chat_id == chat.id]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that happened here makes the condition true."""
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    # Serving

    async def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request."""
        path = unquote(request.path.partition("?")[0])
        if path.startswith("/file/bot"):
            await self._serve_file(path.removeprefix("/file/bot"), connection)
            return
        token, _, method = path.removeprefix("/bot").partition("/")
        self.calls.append(method)
        if self.latency_s:
            await trio.sleep(self.latency_s)
        try:
            if not path.startswith("/bot") or ":" not in token:
                raise ApiError(404, "Not Found")
            if token != self.token or self.is_revoked:
                raise ApiError(401, "Unauthorized")
            is_cut, error = self._next_refusal(method)
            if error is not None:
                raise error
            if is_cut is False:
                await connection.cut()
                return
            result = await self.call(method, form_of(request) | dict(parse_qsl(request.path.partition("?")[2])))
            if is_cut:
                self._note()
                await connection.cut()
                return
            status, answer = 200, {"ok": True, "result": result}
        except ApiError as error:
            status = error.code
            answer = {"ok": False, "error_code": status, "description": error.description}
            if error.parameters:
                answer["parameters"] = error.parameters
            if status == 502:  # what a gateway says is no JSON
                await connection.send(b"<html>Bad Gateway</html>", status=502, content_type="text/html")
                self._note()
                return
        self._note()
        await connection.send(json.dumps(answer).encode(), status=status)

    def _next_refusal(self, method: str) -> tuple[bool | None, ApiError | None]:
        """Whether to hang up (False: before, True: after the deed), or what to refuse with."""
        for index, (wanted, error, is_after) in enumerate(self._refusals):
            if wanted in (None, method):
                del self._refusals[index]
                return (is_after if error is None else None), error
        return None, None

    async def _serve_file(self, path: str, connection: Connection) -> None:
        token, _, name = path.partition("/")
        found = next((data for known, data in self._files.values() if known == name), None)
        self.downloads.append(name)
        if token != self.token or found is None:
            await connection.send(b"{}", status=404)
            return
        await connection.send(found, content_type="application/octet-stream")


@asynccontextmanager
async def open_telegram(
    *, token: str = TOKEN, username: str = "spacebot_bot", latency_s: float = 0, port: int = 0, keep: bool = True
) -> AsyncIterator[Telegram]:
    """Run a stand-in while the block runs.

    Args:
        keep: whether what people post is kept, so that it can be answered and edited; not for long loads.
    """
    telegram = Telegram(token=token, username=username, latency_s=latency_s, keep=keep)
    async with serve(telegram.handle, port=port) as server:
        telegram.server = server
        yield telegram
