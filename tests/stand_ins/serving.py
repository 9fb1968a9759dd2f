"""A tiny HTTP/1.1 server on Trio for stand-ins: loopback, keep-alive, streamed answers, little CPU.

Flow: serve(handler) -> Server.url; handler(request, connection) answers with `send` or `stream`

It reads requests with a Content-Length only, which is what our clients send.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import trio

MAX_HEAD = 65_536  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """Where a handler writes its answer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.is_kept = True

    async def send(
        self, body: bytes, *, status: int = 200, content_type: str = "application/json", headers: Mapping[str, str] = {}
    ) -> None:
        """Answer at once."""
        head = _head(status, content_type, {"content-length": str(len(body)), **headers})
        await self._stream.send_all(head + body)

    async def stream(self, pieces: Sequence[bytes], *, one_write: bool = False) -> None:
        """Answer piece by piece, each a write of its own, or all in one write."""
        head = _head(200, "text/event-stream", {"transfer-encoding": "chunked"})
        if one_write:
            await self._stream.send_all(head + b"".join(map(_chunk, pieces)) + b"0\r\n\r\n")
            return
        await self._stream.send_all(head)
        for piece in pieces:
            await self._stream.send_all(_chunk(piece))
        await self._stream.send_all(b"0\r\n\r\n")

    async def begin_stream(self, pieces: Sequence[bytes]) -> None:
        """Send the head and some pieces, without an end."""
        await self._stream.send_all(
            _head(200, "text/event-stream", {"transfer-encoding": "chunked"}) + b"".join(map(_chunk, pieces))
        )

    async def go_on(self, pieces: Sequence[bytes], *, is_end: bool) -> None:
        """Send more of an answer that was begun, or the last of it."""
        await self._stream.send_all(b"".join(map(_chunk, pieces)) + (b"0\r\n\r\n" if is_end else b""))

    async def cut(self) -> None:
        """Hang up in the middle of the answer."""
        self.is_kept = False
        await self._stream.aclose()


Handler = Callable[[Request, Connection], Awaitable[None]]
Upgrade = Callable[[Request, trio.SocketStream, bytes], Awaitable[None]]


@dataclass(slots=True)
class Server:
    """A running stand-in."""

    port: int
    connections: int = 0  # how many were opened so far

    @property
    def url(self) -> str:
        """Root URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(handler: Handler, *, port: int = 0, upgrade: Upgrade | None = None) -> AsyncIterator[Server]:
    """Serve on loopback while the block runs; port 0 lets the system choose.

    Args:
        upgrade: takes over the stream of a client that asks for a WebSocket, with what it has sent already.
    """
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
    failure: Exception | None = None
    server = Server(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, partial(_serve_connection, handler, upgrade, server), listeners)
        try:
            yield server
        except Exception as error:
            failure = error  # raised below, so that it reaches the test without a group around it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _serve_connection(
    handler: Handler, upgrade: Upgrade | None, server: Server, stream: trio.SocketStream
) -> None:
    server.connections += 1
    connection = Connection(stream)
    buffer = bytearray()
    try:
        while connection.is_kept:
            request = await _read_request(stream, buffer)
            if request is None:
                return
            if upgrade is not None and request.headers.get("upgrade", "").lower() == "websocket":
                await upgrade(request, stream, bytes(buffer))
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_hang_up, stream, nursery.cancel_scope, buffer)
                await handler(request, connection)
                nursery.cancel_scope.cancel()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client went away, which is its right
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await stream.aclose()


async def _watch_hang_up(stream: trio.SocketStream, scope: trio.CancelScope, buffer: bytearray) -> None:
    """Stop answering a client that is gone, so that tests can see cancellation arrive."""
    data = await stream.receive_some()
    if data:
        buffer += data  # a client that sends ahead
    else:
        scope.cancel()


async def _read_request(stream: trio.SocketStream, buffer: bytearray) -> Request | None:
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        data = await stream.receive_some()
        if not data or len(buffer) > MAX_HEAD:
            return None
        buffer += data
    lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    total = end + 4 + int(headers.get("content-length", 0))
    while len(buffer) < total:
        data = await stream.receive_some()
        if not data:
            return None
        buffer += data
    body = bytes(buffer[end + 4 : total])
    del buffer[:total]
    return Request(method=method, path=path, headers=headers, body=body)


def _head(status: int, content_type: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Answer", f"content-type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


# What a stand-in model may answer, whatever its wire format.


@dataclass(frozen=True, slots=True)
class Use:
    """A tool call in an answer; `arguments` is a JSON object, or raw text to send as it is."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer: words, tool calls, token counts."""

    text: str = ""
    uses: tuple[Use, ...] = ()
    reasoning: str = ""
    finish: str | None = None  # the wire's own word; None: what fits
    input_tokens: int = 10
    output_tokens: int = 5
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error."""

    status: int
    body: bytes = b'{"error":{"type":"some_error","message":"refused"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


class Fault(StrEnum):
    """An answer that goes wrong."""

    HANG = "hang"  # never answers
    STALL = "stall"  # sends the start of an answer, then nothing
    CUT = "cut"  # hangs up in the middle
    UNFINISHED = "unfinished"  # ends properly, but without its last event
    MALFORMED = "malformed"  # an event that is no JSON
    WRONG_TYPE = "wrong_type"  # a web page
    STREAM_ERROR = "stream_error"  # an error event after some words


Reply = Answer | Refusal | Fault
Respond = Callable[[Any], Reply]


@dataclass
class ModelStandIn:
    """A scripted provider: what it got, and where it is."""

    server: Server | None = None
    requests: list[Request] = field(default_factory=list)
    hang_ups: int = 0  # answers that the client did not wait for
    answering: trio.Event = field(default_factory=trio.Event)  # set once the first answer has begun

    @property
    def url(self) -> str:
        """Root URL, without a slash at the end."""
        assert self.server is not None
        return self.server.url

    @property
    def connections(self) -> int:
        """How many connections clients have opened."""
        assert self.server is not None
        return self.server.connections

    @property
    def bodies(self) -> list[Any]:
        """The requests' JSON bodies."""
        return [request.json() for request in self.requests]


@asynccontextmanager
async def serve_model(
    respond: Respond | Sequence[Reply],
    render: Callable[[Answer], list[bytes]],
    error_event: bytes,
    *,
    latency_s: float = 0,
    one_write: bool = False,
    port: int = 0,
    keep: bool = True,
    whole: Callable[[Answer], bytes] | None = None,
) -> AsyncIterator[ModelStandIn]:
    """Serve a model in one wire format.

    Args:
        respond: gives the answer to a body; or answers in order.
        render: an answer's stream events.
        whole: an answer for a client that asked for no stream; None: the format always streams here.
        error_event: what the format says when a stream fails.
        keep: whether requests are kept for the test to read.
    """
    if callable(respond):
        rule = respond
    else:
        script = iter(respond)

        def rule(body: Any) -> Reply:
            return next(script, Refusal(500, b"the script of this stand-in ran out"))

    stand_in = ModelStandIn()

    async def handle(request: Request, connection: Connection) -> None:
        if keep:
            stand_in.requests.append(request)
        reply = rule(request.json())
        if latency_s:
            await trio.sleep(latency_s)
        try:
            if whole is not None and isinstance(reply, Answer) and not request.json().get("stream"):
                await connection.send(whole(reply))
            else:
                await _answer(reply, connection)
        except trio.Cancelled:
            stand_in.hang_ups += 1
            raise

    async def _answer(reply: Reply, connection: Connection) -> None:
        if isinstance(reply, Answer):
            await connection.stream(render(reply), one_write=one_write)
            return
        if isinstance(reply, Refusal):
            await connection.send(reply.body, status=reply.status, headers=reply.headers)
            return
        events = render(Answer(text="some words before"))
        match reply:
            case Fault.HANG:
                stand_in.answering.set()
                await trio.sleep_forever()
            case Fault.STALL:
                await connection.begin_stream(events[:-3])
                stand_in.answering.set()
                await trio.sleep_forever()
            case Fault.CUT:
                await connection.begin_stream(events[:-3])
                await connection.cut()
            case Fault.UNFINISHED:
                await connection.stream(events[:-3])
            case Fault.MALFORMED:
                await connection.stream([*events[:-3], b"data: {not json}\n\n"])
            case Fault.WRONG_TYPE:
                await connection.send(b"<html>gateway</html>", content_type="text/html")
            case Fault.STREAM_ERROR:
                await connection.stream([*events[:-3], error_event])

    async with serve(handle, port=port) as server:
        stand_in.server = server
        yield stand_in
