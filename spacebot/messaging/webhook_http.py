"""The webhook's HTTP face: who may call, what a message must look like, and how answers are handed over.

Answers count as fetched when all bytes of the response have been written to a connection that was still open; what a
broken connection swallowed is there for the next caller. So an answer may come twice, and its id tells.

Flow:    Door (host, origin, token) -> send -> form -> intake; poll -> mailbox -> response -> delivered
Floor:   messaging
Source:  messaging spec 14.6 and 19 no. 36; control spec 4.12; Fetch standard (Origin), Fetch Metadata (Sec-Fetch-Site)
"""

import base64
import hmac
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import ConfigError, RefusedError, StorageError
from spacebot.base.ids import AgentId, ConversationId, new_uuid, parse_agent_id, parse_conversation_id
from spacebot.base.text import clean_values
from spacebot.config.tables import is_loopback_address, is_url
from spacebot.messaging.adapter import Intake, Receipt
from spacebot.messaging.messages import (
    MAX_TEXT,
    Attachment,
    Author,
    InboundMessage,
    OutboundFile,
    OutboundKind,
    OutboundMessage,
)
from spacebot.messaging.names import clean_name

log = logging.getLogger(__name__)

PLATFORM = "webhook"
MAX_BODY = 1 << 20  # bytes
BODY_S = 30.0  # for the whole body; a caller that dribbles must not hold a place for ever
MAX_ID = 200  # characters
MAX_FILES = 10
MAX_FILE = 8 << 20  # bytes of a file that is handed over inside JSON
MAX_WAIT_S = 30.0
MESSAGES = (50, 100)  # of one poll: unless told, and at most
LEASE_S = 60.0  # that a message is kept from other callers while one response carries it
AGAIN_S = 0.25  # until a caller looks again for what another one's response carried
NOTE_S = 10.0  # for noting that messages were fetched


class Mailbox(Protocol):
    """Answers that wait until somebody fetches them."""

    async def waiting(self, conversation_id: ConversationId, limit: int) -> Sequence[tuple[str, OutboundMessage]]:
        """(id, message) of what waits in a conversation, oldest first. Errors: StorageError."""
        ...

    async def delivered(self, ids: Sequence[str]) -> None:
        """Note that these were fetched. Errors: StorageError."""
        ...

    async def wait(self, conversation_id: ConversationId, timeout_s: float) -> None:
        """Wait until something may be there, at most so long."""
        ...


def to_conversation(key: str, text: str) -> ConversationId:
    """The conversation behind the id that a caller chose.

    Errors: RefusedError.
    """
    plain = text.removeprefix(f"{key}:")
    if not plain.strip() or len(plain) > MAX_ID or not plain.isprintable():
        raise RefusedError(f"conversation_id must have 1 to {MAX_ID} printable characters")
    return parse_conversation_id(f"{key}:{plain}")


def to_entry(message: OutboundMessage) -> dict[str, Any]:
    """A message as programs get it. Reads its file, so it belongs into a thread."""
    entry: dict[str, Any] = {"id": message.id, "type": message.kind.value, "content": message.text}
    if message.kind is OutboundKind.NOTICE:
        entry |= {"type": "text", "notice": True}
    if message.file is not None:
        entry |= _file_fields(message.file)
    return entry


def _file_fields(file: OutboundFile) -> dict[str, Any]:
    fields = {"filename": file.filename, "media_type": file.media_type, "size_bytes": file.size_bytes}
    if file.size_bytes > MAX_FILE:
        return fields | {"error": f"the file is larger than {MAX_FILE} bytes"}
    try:
        with file.path.open("rb") as source:
            return fields | {"data": base64.b64encode(source.read(MAX_FILE)).decode()}
    except OSError as error:
        return fields | {"error": f"the file cannot be read ({error.strerror})"}


class FileForm(BaseModel):
    """A file by its address."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    url: str = Field(max_length=4000)
    filename: str = Field(default="file", min_length=1, max_length=MAX_ID)
    media_type: str = Field(default="application/octet-stream", pattern=r"^[\w.+-]+/[\w.+-]+$", max_length=100)


class MessageForm(BaseModel):
    """What a program posts. Unknown fields are refused, so that a typing mistake is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    conversation_id: str
    content: str = Field(default="", max_length=MAX_TEXT)
    sender_id: str = Field(default="webhook", min_length=1, max_length=MAX_ID)
    sender_name: str | None = Field(default=None, max_length=MAX_ID)
    agent_id: str | None = None
    message_id: str | None = Field(default=None, min_length=1, max_length=MAX_ID)
    shared: bool = False  # several people write there
    attachments: list[FileForm] = Field(default_factory=list, max_length=MAX_FILES)


def to_inbound(form: MessageForm, key: str, clock: Clock) -> InboundMessage:
    """A form as a message.

    Errors: HTTPException 422.
    """
    try:
        conversation_id = to_conversation(key, form.conversation_id)
        agent_id: AgentId | None = parse_agent_id(form.agent_id) if form.agent_id is not None else None
        if not all(is_url(file.url) for file in form.attachments):
            raise ValueError("the url of an attachment is empty")
    except (ConfigError, RefusedError, ValueError) as error:
        raise HTTPException(422, str(error)) from error
    if not form.content.strip() and not form.attachments:
        raise HTTPException(422, "content is empty, and there are no attachments")
    return InboundMessage(
        platform=PLATFORM,
        adapter=key,
        conversation_id=conversation_id,
        author=Author(id=form.sender_id, name=clean_name(form.sender_name or form.sender_id)),
        text=form.content,
        sent_at=clock.now(),
        agent_id=agent_id,
        platform_id=form.message_id or new_uuid(),
        is_direct=not form.shared,
        attachments=tuple(
            Attachment(filename=file.filename, media_type=file.media_type, url=file.url) for file in form.attachments
        ),
        room_ids=(conversation_id.removeprefix(f"{key}:"),),
        metadata={"id": conversation_id.removeprefix(f"{key}:")},
    )


async def read_form(request: Request) -> MessageForm:
    """Read and check a message.

    Errors: HTTPException 400 (not JSON), 408 (too slow), 413 (too long), 415 (another type), 422 (wrong fields).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" or "content-encoding" in request.headers:
        raise HTTPException(415, "send JSON as it is, with the header 'Content-Type: application/json'")
    try:
        fields = clean_values(json.loads((await _read(request)).decode()))
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body must be a JSON object")
    if "message" in fields and "content" not in fields:
        fields["content"] = fields.pop("message")
    try:
        return MessageForm.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise HTTPException(422, problems[:2000]) from error


async def _read(request: Request) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise _too_long()
    body = bytearray()
    try:
        with trio.fail_after(BODY_S):
            async with aclosing(request.stream()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > MAX_BODY:
                        raise _too_long()
    except trio.TooSlowError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the body did") from error
    return bytes(body)


def _too_long() -> HTTPException:
    return HTTPException(413, f"the body is longer than {MAX_BODY} bytes", headers={"connection": "close"})


class Routes:
    """The three routes.

    Args:
        mailbox: None when answers are posted to the owner's own address.
    """

    def __init__(self, key: str, intake: Intake, mailbox: Mailbox | None, clock: Clock) -> None:
        self._key = key
        self._intake = intake
        self._mailbox = mailbox
        self._clock = clock
        self._leases: dict[str, float] = {}  # message id -> when another caller may have it

    def app(self, *, token: bytes | None) -> ASGIApp:
        """The app behind its door."""
        return Starlette(
            routes=[
                Route("/send", self.send, methods=["POST"]),
                Route("/webhook", self.send, methods=["POST"]),
                Route("/poll/{conversation_id:path}", _Endpoint(self.poll), methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
            ],
            middleware=[Middleware(Door, token=token)],
            exception_handlers={HTTPException: _on_http_error},
        )

    async def health(self, request: Request) -> Response:
        """Whether it listens."""
        return JSONResponse({"status": "ok"})

    async def send(self, request: Request) -> Response:
        """Take a message; what the answer says is on disk by then."""
        message = to_inbound(await read_form(request), self._key, self._clock)
        try:
            receipt = await self._intake.take(message)
        except StorageError as error:
            log.error("a webhook message could not be kept", exc_info=error)
            return JSONResponse({"error": "not kept; send it again later"}, 503, headers={"retry-after": "2"})
        if receipt is Receipt.REFUSED:
            text = "refused: no agent serves this sender or conversation; look at the bindings and at agent_id"
            return JSONResponse({"error": text}, 403)
        return JSONResponse({"message_id": message.platform_id, "status": receipt.value}, 202)

    async def poll(self, request: Request, receive: Receive, send: Send) -> None:
        """Hand over what waits; see the module."""
        if request.method != "GET":  # Starlette lets HEAD in, which would take the messages and show none
            raise HTTPException(405, "use GET", headers={"allow": "GET"})
        if self._mailbox is None:
            raise HTTPException(409, "answers are posted to messaging.webhook.callback_url; remove it to fetch them")
        try:
            conversation_id = to_conversation(self._key, request.path_params["conversation_id"])
        except RefusedError as error:
            raise HTTPException(422, str(error)) from error
        wait_s = _number(request, "wait", 0, MAX_WAIT_S)
        limit = int(_number(request, "limit", *MESSAGES))
        failure: StorageError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_hang_up, receive, nursery.cancel_scope)
            try:
                await self._hand_over(self._mailbox, conversation_id, wait_s, limit, send)
            except StorageError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            log.error("waiting answers could not be read", exc_info=failure)
            raise HTTPException(503, "the answers cannot be read at the moment; ask again later")

    async def _hand_over(
        self, mailbox: Mailbox, conversation_id: ConversationId, wait_s: float, limit: int, send: Send
    ) -> None:
        messages = await self._lease(mailbox, conversation_id, limit)
        if not messages and wait_s:
            until = monotonic_s() + wait_s
            while not messages and (left_s := until - monotonic_s()) > 0:
                await mailbox.wait(conversation_id, left_s)
                messages = await self._lease(mailbox, conversation_id, limit)
                if not messages:
                    await trio.sleep(AGAIN_S)  # another caller is about to have them
        ids = [message_id for message_id, _ in messages]
        try:
            fitting = _fitting([message for _, message in messages])
            body = await trio.to_thread.run_sync(_render, fitting)
            headers = {
                "content-type": "application/json",
                "cache-control": "no-store",
                "content-length": str(len(body)),
            }
            await send({"type": "http.response.start", "status": 200, "headers": Headers(headers).raw})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            for _ in range(3):  # a write that failed is told to the watcher, which cancels us here
                await trio.lowlevel.checkpoint()
            if fitting:
                with trio.move_on_after(NOTE_S) as scope:
                    scope.shield = True
                    await self._note_delivered(mailbox, ids[: len(fitting)])
        finally:
            for message_id in ids:
                self._leases.pop(message_id, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _note_delivered(self, mailbox: Mailbox, ids: Sequence[str]) -> None:
        try:
            await mailbox.delivered(ids)
        except StorageError as error:  # the response is out: the messages will come a second time
            log.error("fetched answers could not be noted", exc_info=error)

    async def _lease(
        self, mailbox: Mailbox, conversation_id: ConversationId, limit: int
    ) -> list[tuple[str, OutboundMessage]]:
        """What waits and is in nobody else's response at the moment."""
        now = monotonic_s()
        self._leases = {message_id: until for message_id, until in self._leases.items() if until > now}
        waiting = await mailbox.waiting(conversation_id, limit + len(self._leases))
        free = [(message_id, message) for message_id, message in waiting if message_id not in self._leases][:limit]
        self._leases |= {message_id: now + LEASE_S for message_id, _ in free}
        return free


def _fitting(messages: Sequence[OutboundMessage]) -> list[OutboundMessage]:
    """As many from the front as one response may carry."""
    size = 0
    fitting: list[OutboundMessage] = []
    for message in messages:
        size += len(message.text) + (message.file.size_bytes if message.file is not None else 0)
        if fitting and size > MAX_FILE:
            break
        fitting.append(message)
    return fitting


def _render(messages: Sequence[OutboundMessage]) -> bytes:
    return json.dumps({"messages": [to_entry(message) for message in messages]}, ensure_ascii=False).encode()


def _number(request: Request, name: str, default: float, most: float) -> float:
    text = request.query_params.get(name, "")
    try:
        return min(most, max(0.0, float(text))) if text else default
    except ValueError as error:
        raise HTTPException(400, f"the query parameter {name!r} must be a number, not {text[:40]!r}") from error


async def _watch_hang_up(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class _Endpoint:
    """A route that writes its response itself."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Request(scope), receive, send)


class Door:
    """ASGI middleware: who may call.

    Without a token only this machine's own programs may: a foreign page must neither call us through its visitor's
    browser (origin) nor under a name of its own that leads here (host).
    """

    def __init__(self, app: ASGIApp, token: bytes | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        has_started = False

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            await (self._app if refusal is None else refusal)(scope, receive, send_noted)
        except Exception as error:  # boundary: request
            log.error("webhook request failed", exc_info=error, extra={"kv": {"path": scope["path"][:200]}})
            if not has_started:
                answer = JSONResponse({"error": "internal error; the log has the details"}, 500)
                await answer(scope, receive, send_noted)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._token is None and not _is_own_host(host):
            return JSONResponse({"error": f"host {host[:100]!r} is not allowed; use localhost"}, 403)
        is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if is_foreign or (origin is not None and origin.lower().partition("://")[2] != host.lower()):
            return JSONResponse({"error": "pages of other sites may not call this address"}, 403)
        if self._token is None or path == "/health" or self._has_token(headers, self._token):
            return None
        text = "the token is missing or wrong; send it as 'Authorization: Bearer …' or 'X-Webhook-Token: …'"
        return JSONResponse({"error": text}, 401, {"www-authenticate": "Bearer"})

    def _has_token(self, headers: Headers, token: bytes) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = (headers.get("x-webhook-token", ""), bearer if scheme.lower() == "bearer" else "")
        words = (word.strip().encode(errors="replace") for word in given if word)
        return any(hmac.compare_digest(word, token) for word in words)


def _is_own_host(host: str) -> bool:
    try:
        return is_loopback_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
