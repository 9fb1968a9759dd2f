"""The only way from a worker's browser to the network: a small HTTP proxy on loopback which asks the owner's gate.

Chromium is told to send everything here, `localhost` too. Each request's host is resolved and judged by the program,
and the connection goes to exactly the judged addresses; so redirects, frames, scripts, sockets of a page, and names
that change their answer (rebinding) are covered in one place. What is refused gets a page that says so.

Flow:    Chromium -> head of a request -> judge -> connect to a judged address -> bytes both ways
Floor:   tools
Source:  tools spec 6.4; RFC 9112 3.2.2 (absolute form), 9.6 (close); RFC 9110 9.3.6 (CONNECT)
"""

import html
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import trio

from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.telemetry import kv
from spacebot.base.url_guard import Resolved
from spacebot.tools.peers import relayed

log = logging.getLogger(__name__)

MAX_HEAD = 256 * 1024  # bytes of a request's or answer's head
MAX_CONNECTIONS = 256
MAX_BYTES = 4 * 2**30  # that one browser may fetch
CONNECT_S = 10.0  # for one address
HEAD_S = 30.0  # until a client has said what it wants
PIECE = 65_536
MARK = "spacebot-not-opened"
REFUSALS = 200  # hosts whose refusal is remembered
REMEMBERED_S = 20.0  # without asking again and writing another line into the log

_HOP_BY_HOP = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"upgrade"})

closed_ports: set[int] = set()  # of this machine, that no page may reach even where the owner opens it: drivers' own

Judge = Callable[[str], Awaitable[Resolved]]


class _RefusedError(Exception):
    """This request is answered by the proxy itself."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a client asked for; `head` is what goes on to the server, None for a tunnel."""

    url: str
    key: str
    head: bytes | None
    body_left: int
    rest: bytes


class FilteringProxy:
    """One proxy for one browser.

    Args:
        judge: resolves and judges the address of one request; its errors are shown to the page.

    Attributes:
        port: where it listens, once `run` has started.
        mark: stands in its own pages.
        is_open: False until somebody wants a page: what the browser asks for of itself before that is not answered.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.port = 0
        self.mark = secrets.token_hex(8)
        self.is_open = False
        self._refused: dict[str, tuple[float, str]] = {}  # host and port -> when, why; newest last
        self._open: dict[trio.CancelScope, str] = {}  # -> host and port
        self._given_up: set[str] = set()
        self._waiting = 0  # requests without an answer yet
        self._last_byte_at = 0.0
        self._bytes = 0

    @property
    def quiet_s(self) -> float:
        """For how long nothing has come in; 0 while an answer is awaited."""
        return 0.0 if self._waiting else trio.current_time() - self._last_byte_at

    def reason_against(self, url: str) -> str | None:
        """Why requests to this address's host were refused lately; None when they were not."""
        try:
            parts = urlsplit(url)
            key = _key(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        except ValueError:
            return None
        noted = self._refused.get(key)
        return noted[1] if noted and trio.current_time() < noted[0] + REMEMBERED_S else None

    def give_up(self) -> None:
        """End all connections, whose servers may never answer; a second try of the browser's own ends at once.

        Until `forgive`.
        """
        self._given_up |= set(self._open.values())
        for scope in list(self._open):
            scope.cancel()

    def forgive(self) -> None:
        """Let hosts be asked again."""
        self._given_up.clear()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._last_byte_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, self._serve, listeners))
            task_status.started()

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            await self._answer(client)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass  # one side went away, which is its right
        except Exception as error:  # boundary: connection
            log.error("browser's proxy failed", exc_info=error)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)

    async def _answer(self, client: trio.SocketStream) -> None:
        try:
            wanted = await self._wanted(client)
        except _RefusedError as error:
            await client.send_all(self._page(error.status, str(error)))
            return
        if wanted is None:
            return
        self._waiting += 1
        is_waiting = [True]

        def answered() -> None:
            if is_waiting:
                is_waiting.clear()
                self._waiting -= 1
                self._last_byte_at = trio.current_time()

        with trio.CancelScope() as scope:
            self._open[scope] = wanted.key
            try:
                await self._exchange(client, wanted, answered)
            except _RefusedError as error:
                answered()
                await client.send_all(self._page(error.status, str(error)))
            finally:
                del self._open[scope]
                was_waiting = bool(is_waiting)
                answered()
        if scope.cancelled_caught and was_waiting:
            await client.send_all(self._page(504, "the server did not answer"))  # else the browser would try again

    async def _exchange(self, client: trio.SocketStream, wanted: _Wanted, answered: Callable[[], None]) -> None:
        if wanted.key in self._given_up:
            raise _RefusedError(504, "the server did not answer")
        place = await self._admitted(wanted)
        server = await _connected(place)
        with relayed(server.socket.getsockname()[1]):
            try:
                await self._relay(client, server, wanted, answered)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(server)

    def _page(self, status: int, reason: str) -> bytes:
        """An answer of the proxy's own; the mark tells it from a page that only looks so."""
        body = (
            f'<!doctype html><title>Not opened</title><meta name="{MARK}" content="{self.mark}">'
            f"<h1>Not opened</h1><p>{html.escape(reason)}</p>"
        ).encode()
        head = (
            f"HTTP/1.1 {status} Not opened\r\ncontent-type: text/html; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\ncache-control: no-store\r\n\r\n"
        )
        return head.encode() + body

    async def _wanted(self, client: trio.SocketStream) -> _Wanted | None:
        if len(self._open) > MAX_CONNECTIONS:
            raise _RefusedError(503, "too many connections at once")
        with trio.move_on_after(HEAD_S):
            received = await _read_head(client)
            return None if received is None else _understood(*received)
        return None

    async def _admitted(self, wanted: _Wanted) -> Resolved:
        if not self.is_open:
            raise _RefusedError(403, "nothing was asked for yet")
        if self._bytes > MAX_BYTES:
            raise _RefusedError(503, "this browser has fetched as much as it may; close it and go on with a new one")
        if reason := self.reason_against(wanted.url):
            raise _RefusedError(403, reason)
        try:
            place = await self._judge(wanted.url)
            if place.port in closed_ports and any(ip_address(address).is_loopback for address in place.addresses):
                raise RefusedError(f"port {place.port} of this machine steers a browser")
            return place
        except SpacebotError as error:
            reason = getattr(error, "reason", str(error))
            log.info("browser's request refused", extra=kv(host=wanted.key, reason=reason))
            self._refused.pop(wanted.key, None)
            self._refused[wanted.key] = (trio.current_time(), reason)
            while len(self._refused) > REFUSALS:
                del self._refused[next(iter(self._refused))]
            raise _RefusedError(403, reason) from error

    async def _relay(
        self, client: trio.SocketStream, server: trio.SocketStream, wanted: _Wanted, answered: Callable[[], None]
    ) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            try:
                if wanted.head is None:
                    await client.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
                    answered()
                    await server.send_all(wanted.rest)
                    nursery.start_soon(self._pump, client, server, scope)
                else:
                    await server.send_all(wanted.head + wanted.rest)
                    nursery.start_soon(self._upload, client, server, wanted.body_left, scope)
                    await _answer_head(server, client)
                    answered()
                await self._pump(server, client, scope)
            except (_RefusedError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                failure = error  # raised below, without a group around it
                scope.cancel()
        if failure is not None:
            raise failure

    async def _upload(
        self, client: trio.SocketStream, server: trio.SocketStream, left: int, scope: trio.CancelScope
    ) -> None:
        """Hand on a request's body and not a byte more: what follows may be meant for another host."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while left > 0 and (data := await client.receive_some(min(PIECE, left))):
                await server.send_all(data)
                left -= len(data)
            await client.receive_some(1)
        scope.cancel()

    async def _pump(self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(PIECE):
                self._bytes += len(data)
                self._last_byte_at = trio.current_time()
                if self._bytes > MAX_BYTES:
                    break
                await target.send_all(data)
        scope.cancel()


async def _connected(place: Resolved) -> trio.SocketStream:
    """A connection to the first judged address that takes one."""
    for address in place.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))  # so that its port is known first
            with relayed(sock.getsockname()[1]), trio.fail_after(CONNECT_S):
                await sock.connect((address, place.port))
            return trio.SocketStream(sock)
        except (OSError, trio.TooSlowError):
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise _RefusedError(502, f"{place.host} does not take connections on port {place.port}")


async def _read_head(stream: trio.SocketStream) -> tuple[bytes, bytes] | None:
    buffer = bytearray()
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        data = await stream.receive_some(PIECE)
        if not data or len(buffer) > MAX_HEAD:
            return None
        buffer += data
    return bytes(buffer[:end]), bytes(buffer[end + 4 :])


def _understood(head: bytes, rest: bytes) -> _Wanted:
    first, *lines = head.split(b"\r\n")
    try:
        method, target, _ = first.decode("ascii").split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            scheme = "http" if port == "80" else "https"
            return _Wanted(f"{scheme}://{host}:{int(port)}/", _key(host.strip("[]"), int(port)), None, 0, rest)
        parts = urlsplit(target)
        host, number = parts.hostname or "", parts.port or 80
    except (ValueError, UnicodeDecodeError) as error:
        raise _RefusedError(400, "this request cannot be read") from error
    if parts.scheme != "http" or not host:
        raise _RefusedError(400, "only http and https are fetched")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    if any(name == b"transfer-encoding" for name, _ in headers):
        raise _RefusedError(411, "a request needs to say its length")
    sizes = {value for name, value in headers if name == b"content-length"}
    if len(sizes) > 1 or not all(size.isdigit() for size in sizes):
        raise _RefusedError(400, "this request cannot be read")
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    kept = [line for line, (name, _) in zip(lines, headers, strict=True) if name not in _HOP_BY_HOP]
    sent = b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *kept, b"Connection: close", b"", b""])
    size = int(sizes.pop()) if sizes else 0
    return _Wanted(target, _key(host, number), sent, max(size - len(rest), 0), rest[:size])


async def _answer_head(server: trio.SocketStream, client: trio.SocketStream) -> None:
    """Hand on an answer's head, with word that no further request may come on this connection."""
    buffer = b""
    while True:
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            data = await server.receive_some(PIECE)
            if not data or len(buffer) > MAX_HEAD:
                raise _RefusedError(502, "the server hung up without an answer")
            buffer += data
        first, *lines = buffer[:end].split(b"\r\n")
        rest = buffer[end + 4 :]
        if first.partition(b" ")[2].startswith(b"1"):  # an interim answer
            buffer = rest
            continue
        kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in _HOP_BY_HOP]
        await client.send_all(b"\r\n".join([first, *kept, b"Connection: close", b"", b""]) + rest)
        return


def _key(host: str, port: int) -> str:
    return f"{host.lower()}:{port}"
