"""Server-sent events: one response that writes frames until its source ends, the reader leaves or the program stops.

Flow:    endpoint -> EventStream(open source) -> frames and keep-alive comments -> clean end
Floor:   api
Source:  WHATWG HTML, server-sent events; control spec 4.9
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from spacebot.base.errors import SpacebotError

log = logging.getLogger(__name__)

MOST = 500  # streams at once; each holds a connection
KEEP_ALIVE_S = 15.0  # control spec 4.9; below the idle limit of common proxies
BATCH = 64  # frames in one write
_PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the frames back
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One event on the wire; `data` is any JSON value, `id` what a reader resumes after."""

    event: str
    data: Any
    id: int | str | None = None

    def encode(self) -> bytes:
        """The bytes of the frame; JSON keeps line ends out of the data field."""
        head = f"event: {self.event}\n" if self.id is None else f"id: {self.id}\nevent: {self.event}\n"
        return f"{head}data: {json.dumps(self.data, ensure_ascii=False)}\n\n".encode(errors="replace")


class Encodable(Protocol):
    """A frame, or several that are encoded already."""

    def encode(self) -> bytes:
        """The bytes on the wire."""
        ...


class Source(Protocol):
    """Where the frames of a stream come from."""

    async def receive(self) -> Encodable | None:
        """Wait for the next frame; None at the end."""
        ...

    def receive_nowait(self) -> Encodable | None:
        """The next frame if there is one already."""
        ...


class Streams:
    """All open streams, so that they can end cleanly before the server stops."""

    def __init__(self, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self.keep_alive_s = keep_alive_s
        self._scopes: set[trio.CancelScope] = set()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._scopes)

    @property
    def is_full(self) -> bool:
        """Whether no further stream may be opened."""
        return len(self._scopes) >= MOST

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run a stream inside; `close` leaves the block."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self._is_closing:
                    scope.cancel()
                yield
            finally:
                self._scopes.discard(scope)

    def close(self) -> None:
        """End every stream, and every later one at once."""
        self._is_closing = True
        for scope in self._scopes:
            scope.cancel()


class EventStream:
    """An ASGI response. What `open_source` raises comes before the first byte and so can become an error answer."""

    def __init__(self, streams: Streams, open_source: Callable[[], AbstractAsyncContextManager[Source]]) -> None:
        self._streams = streams
        self._open_source = open_source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write frames until the source ends, the reader is gone or the server stops."""
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if self._streams.is_full:
            raise HTTPException(503, f"{MOST} event streams are open; close some, then try again")
        async with self._open_source() as source:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            is_gone = False
            turn = trio.Lock()  # frames and keep-alive comments, one at a time

            async def write(body: bytes) -> None:
                async with turn:
                    await send({"type": "http.response.body", "body": body, "more_body": True})

            async def watch() -> None:
                nonlocal is_gone
                while (await receive())["type"] != "http.disconnect":
                    pass
                is_gone = True
                nursery.cancel_scope.cancel()

            async def keep_alive() -> None:
                while True:
                    await trio.sleep(self._streams.keep_alive_s)
                    await write(_PING)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                nursery.start_soon(keep_alive)
                with self._streams.scope():
                    await _pump(source, write)
                nursery.cancel_scope.cancel()
            if not is_gone:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pump(source: Source, write: Callable[[bytes], Any]) -> None:
    await write(b": open\n\n")  # the reader learns at once that it is connected
    try:
        while (frame := await source.receive()) is not None:
            pieces = [frame.encode()]
            while len(pieces) < BATCH and (frame := source.receive_nowait()) is not None:
                pieces.append(frame.encode())  # what is there already goes out in one write
            await write(b"".join(pieces))
    except SpacebotError as error:
        log.error("event stream ended by an error", exc_info=error)
