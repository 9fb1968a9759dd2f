"""The models of this agent for a program that must not have keys: a small server on loopback.

A program gets an address and a random token, which is good only while a worker uses it. What it asks is sent to the
provider that routing chooses for coding work, byte for byte but for model name, limits' names and credentials, which
are put in here; the answer is passed on as it comes, and what it cost is counted as the worker's.

Flow:   ModelGateway.admit -> Pass.url, Pass.token -> POST chat/completions | messages -> provider -> bytes back
Floor:  tools; imports h11, httpx2
Source: tools spec 12 and 20 (model from routing), 23 (no keys in children); RFC 9112
"""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
import httpx2
import trio

from spacebot.base.errors import BudgetExceededError, SpacebotError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node
from spacebot.config.model import ApiType
from spacebot.llm import access
from spacebot.llm.anthropic import VERSION, wire_model
from spacebot.llm.dialect import Target, count_in
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ProcessKind, Usage
from spacebot.llm.sse import EventReader
from spacebot.llm.transport import Transport, content_type, open_transport

log = logging.getLogger(__name__)

MAX_BODY = 32 * 1024 * 1024  # bytes of a request
MAX_ERROR = 64 * 1024  # bytes of a refusal that are passed on
LARGE = 500_000  # bytes from which on JSON is read in a thread
IDLE_S = 120.0  # that a connection may wait for its next request, or dribble one
PIECE = 65_536
SEND_S = 30.0  # that a client may take for one piece

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
_KINDS = {
    CHAT: access.CHAT,
    MESSAGES: frozenset({ApiType.ANTHROPIC}),
}
_PASSED_BACK = ("content-type", "retry-after", "retry-after-ms")


class Pass:
    """The right to ask models, as long as `node` is somebody who works."""

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(32)
        self.url = f"http://127.0.0.1:{port}/v1"
        self.node: Node | None = None


@dataclass
class _Refusal(Exception):
    """What a request gets instead of an answer."""

    status: int
    words: str
    headers: tuple[tuple[str, str], ...] = ()


class ModelGateway:
    """One per agent; made by `open_gateway`.

    Args:
        targets: which models are asked, best first, at this moment. Errors of its own: ModelRejectedError.
        note: told of each answer's cost; must not wait.
    """

    def __init__(
        self,
        transport: Transport,
        port: int,
        *,
        targets: Callable[[], Sequence[Target]],
        note: Callable[[UsageRecord], None],
    ) -> None:
        self._transport = transport
        self._port = port
        self._targets = targets
        self._note = note
        self._passes: dict[str, Pass] = {}

    def admit(self) -> Pass:
        """Give out a token; call `dismiss` when its owner is gone."""
        fresh = Pass(self._port)
        self._passes[fresh.token] = fresh
        return fresh

    def dismiss(self, given: Pass) -> None:
        """Let a token be good for nothing."""
        self._passes.pop(given.token, None)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=PIECE)
        try:
            while True:
                with trio.fail_after(IDLE_S):
                    asked = await _read_request(stream, connection)
                if asked is None:
                    return
                await self._answer(stream, connection, *asked)
                if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    return
                connection.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return  # the client broke off, or does not speak HTTP
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()

    async def _answer(
        self, stream: trio.SocketStream, connection: h11.Connection, request: h11.Request, body: bytes
    ) -> None:
        answer = _Answer(stream, connection)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:  # an end of the connection ends the call to the provider
            nursery.start_soon(_watch_hang_up, stream, connection, nursery.cancel_scope)
            try:
                given, path = self._judge(request)
                await self._forward(request, given, path, await _read_json(body), answer)
            except _Refusal as refusal:
                await answer.refuse(refusal)
            except (trio.BrokenResourceError, h11.ProtocolError) as error:
                failure = error  # raised below, so that no group stands around it
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not answer.is_complete:
            raise trio.BrokenResourceError  # the client hung up

    def _judge(self, request: h11.Request) -> tuple[Pass, str]:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        token = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        given = self._passes.get(token.strip())
        if given is None or given.node is None:
            log.warning("model gateway refused a request", extra=kv(reason="token" if given is None else "no worker"))
            raise _Refusal(401, "this token is not valid here")
        path = request.target.decode("latin-1").partition("?")[0]
        if request.method != b"POST" or path not in _KINDS:
            raise _Refusal(404, f"only POST to {CHAT} and {MESSAGES} is known here")
        return given, path

    async def _forward(
        self, request: h11.Request, given: Pass, path: str, facts: dict[str, Any], answer: "_Answer"
    ) -> None:
        """Ask the models in turn until one takes the request; after its first byte there is no way back."""
        try:
            targets = [target for target in self._targets() if target.api_type in _KINDS[path]]
        except BudgetExceededError as error:  # 402: programs do not try that again
            raise _Refusal(402, str(error)) from error
        except SpacebotError as error:
            raise _Refusal(503, str(error)) from error
        if not targets:
            raise _Refusal(409, "the configured models changed their kind; the work has to be started anew")
        refusal = _Refusal(502, "no model was asked")
        for target in targets:
            if given.node is not None:
                given.node.model_calls += 1
                given.node.progress()
            try:
                async with self._transport.shard() as shard:
                    return await self._ask(shard.http, request, given, target, facts, answer)
            except httpx2.HTTPError as error:
                if answer.has_begun:
                    raise trio.BrokenResourceError from error  # cut off, so that nobody takes it for whole
                refusal = _Refusal(502, f"{target.model} cannot be reached ({type(error).__name__})")
            except _Refusal as error:
                refusal = error
                if error.status not in (408, 409, 429) and error.status < 500:
                    break
            log.warning("model failed", extra=kv(model=target.model, status=refusal.status, process="opencode"))
        raise refusal

    async def _ask(
        self,
        http: httpx2.AsyncClient,
        request: h11.Request,
        given: Pass,
        target: Target,
        facts: dict[str, Any],
        answer: "_Answer",
    ) -> None:
        url, headers, body = _outgoing(target, request, facts)
        async with http.stream("POST", url, headers=headers, content=body) as response:
            back = tuple((name, response.headers[name]) for name in _PASSED_BACK if name in response.headers)
            if not response.is_success:
                words = (await response.aread())[:MAX_ERROR].decode(errors="replace")
                raise _Refusal(response.status_code, scrub(words), back)
            meter = _Meter(target.api_type, is_stream=content_type(response) == "text/event-stream")
            await answer.begin(response.status_code, back)
            await _pass_on(response, given, meter, answer)
            await answer.finish()
        self._account(given, target, meter.usage)

    def _account(self, given: Pass, target: Target, usage: Usage) -> None:
        node = given.node
        if node is not None:
            node.input_tokens += usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            node.output_tokens += usage.output_tokens
        self._note(
            UsageRecord(
                process=ProcessKind.WORKER,
                model=target.model,
                provider=target.provider,
                usage=usage,
                agent_id=node.agent_id if node else None,
                channel_id=node.channel_id if node else None,
                node_id=node.id if node else None,
            )
        )


async def _pass_on(response: httpx2.Response, given: Pass, meter: "_Meter", answer: "_Answer") -> None:
    """Hand a body on, piece by piece.

    It only ever stops while it reads: an early stop elsewhere would leave httpx2's nested generators half-way, to the
    garbage collector. Errors: trio.BrokenResourceError when the client does not take it.
    """
    failure: Exception | None = None
    with trio.CancelScope() as scope:
        async for piece in response.aiter_bytes():
            meter.feed(piece)
            if given.node is not None:
                given.node.progress()
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_S) as patience:
                    await answer.send(piece)
                if patience.cancelled_caught:
                    raise trio.BrokenResourceError("the client does not read")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                failure = error
                scope.cancel()
    if failure is not None:
        raise trio.BrokenResourceError from failure


class _Answer:
    """Where an answer goes."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self._stream = stream
        self._connection = connection
        self.has_begun = False
        self.is_complete = False

    async def begin(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.has_begun = True
        await self._send(h11.Response(status_code=status, headers=[*headers, ("transfer-encoding", "chunked")]))

    async def send(self, piece: bytes) -> None:
        await self._send(h11.Data(data=piece))

    async def finish(self) -> None:
        await self._send(h11.EndOfMessage())
        self.is_complete = True

    async def refuse(self, refusal: _Refusal) -> None:
        """Say no, in the shape that both kinds of clients read."""
        try:
            json.loads(refusal.words)
            body = refusal.words.encode()  # the provider's own
        except (ValueError, RecursionError):
            error = {"type": "error", "error": {"type": "gateway_error", "message": refusal.words}}
            body = json.dumps(error).encode()
        headers = [(name, value) for name, value in refusal.headers if name != "content-type"]
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        await self._send(h11.Response(status_code=refusal.status, headers=headers))
        await self._send(h11.Data(data=body))
        await self.finish()

    async def _send(self, event: h11.Event) -> None:
        if data := self._connection.send(event):
            await self._stream.send_all(data)


class _Meter:
    """Reads what an answer cost while it passes."""

    def __init__(self, kind: ApiType, *, is_stream: bool) -> None:
        self._kind = kind
        self._events = EventReader() if is_stream else None
        self._whole = bytearray()
        self._counts: dict[str, Any] = {}

    def feed(self, piece: bytes) -> None:
        if self._events is None:
            self._whole += piece if len(self._whole) < MAX_BODY else b""
            return
        try:
            for data in self._events.feed(piece):
                self._take(data)
        except ValueError:
            self._events = EventReader()  # an event beyond all measure; the cost may stand in a later one

    @property
    def usage(self) -> Usage:
        """What is known at the end."""
        if self._events is None:
            self._take(bytes(self._whole))
        counts = self._counts
        if self._kind is ApiType.ANTHROPIC:
            return Usage(
                input_tokens=count_in(counts, "input_tokens"),
                output_tokens=count_in(counts, "output_tokens"),
                cache_read_tokens=count_in(counts, "cache_read_input_tokens"),
                cache_write_tokens=count_in(counts, "cache_creation_input_tokens"),
            )
        details = counts.get("prompt_tokens_details")
        read = count_in(details, "cached_tokens") if isinstance(details, dict) else 0
        return Usage(
            input_tokens=max(0, count_in(counts, "prompt_tokens") - read),
            output_tokens=count_in(counts, "completion_tokens"),
            cache_read_tokens=read,
        )

    def _take(self, data: bytes) -> None:
        if b'"usage"' not in data:
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(event, dict):
            holder = event["message"] if isinstance(event.get("message"), dict) else event
            if isinstance(usage := holder.get("usage"), dict):
                self._counts |= {name: value for name, value in usage.items() if value is not None}


def _outgoing(target: Target, request: h11.Request, facts: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """Address, headers and body for the provider."""
    facts, entry = dict(facts), target.entry
    headers = access.headers(target) | {"content-type": "application/json", "accept-encoding": "identity"}
    if target.api_type is ApiType.ANTHROPIC:
        facts["model"] = wire_model(target.wire_model, entry.aliases)
        headers["anthropic-version"] = VERSION
        if betas := [value.decode("latin-1") for name, value in request.headers if name == b"anthropic-beta"]:
            headers["anthropic-beta"] = ",".join(betas)
        url = f"{target.base_url}/v1/messages"
    else:
        facts["model"] = target.wire_model
        for name in ("max_tokens", "max_completion_tokens"):
            if name in facts:
                facts[entry.max_tokens_field] = facts.pop(name)
        if not entry.stream_usage:
            facts.pop("stream_options", None)
        elif facts.get("stream"):
            facts["stream_options"] = {"include_usage": True}
        url = access.chat_url(target)
    try:
        return url, headers, json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError as error:
        raise _Refusal(400, "the body is nested too deeply") from error


async def _read_request(stream: trio.SocketStream, connection: h11.Connection) -> tuple[h11.Request, bytes] | None:
    """The next request with its body; None when the client is gone. Errors: h11.ProtocolError."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await stream.send_all(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
            connection.receive_data(await stream.receive_some(PIECE))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise h11.RemoteProtocolError("the body is too long")
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, bytes(body)
        else:
            return None


async def _read_json(body: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(body) if len(body) < LARGE else await trio.to_thread.run_sync(json.loads, body)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise _Refusal(400, "the body is no JSON object")
    return facts


async def _watch_hang_up(stream: trio.SocketStream, connection: h11.Connection, scope: trio.CancelScope) -> None:
    """End the call when the client is gone; what it sends ahead is kept for the next request."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await stream.receive_some(PIECE):
            connection.receive_data(data)
    scope.cancel()


@asynccontextmanager
async def open_gateway(
    *, targets: Callable[[], Sequence[Target]], note: Callable[[UsageRecord], None]
) -> AsyncIterator[ModelGateway]:
    """Serve while the block runs, on a port that the system chooses.

    Owns: the listener, its connections, and clients towards providers.
    """
    async with open_transport() as transport, trio.open_nursery() as nursery:
        await trio.to_thread.run_sync(transport.prepare)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        gateway = ModelGateway(transport, port, targets=targets, note=note)
        await nursery.start(partial(trio.serve_listeners, gateway.serve, listeners))
        yield gateway
        nursery.cancel_scope.cancel()
