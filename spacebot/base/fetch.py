"""Fetch files for people, and post to addresses of theirs: guarded, bounded, and over in time.

Each request connects to an address that the guard judged, while Host and the certificate's name stay what the URL
says. Redirects are followed by hand, each through the guard again; headers with credentials go to named hosts only.

Flow:   Fetcher.download -> resolve_public -> connect to that address -> bytes -> file, as they come
Floor:  base; may import httpx2
Source: messaging spec 13; control spec 6.4; RFC 9110 15.4 (redirects)
"""

import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import BinaryIO
from urllib.parse import urljoin

import httpx2
import trio

from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.url_guard import Resolved, host_key, resolve_public, split_url

MAX_REDIRECTS = 5
CONNECT_S = 10.0  # for one address of a host
POST_S = 15.0
WRITE_BYTES = 256 * 1024  # gathered before a thread writes them
INFLATE_BYTES = 64 * 1024  # that a compressed piece may become at once
MAX_ANSWER = 64 * 1024  # bytes of the answer to a post that are read

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGENT = "Spacebot"
_OURS = frozenset({"host", "accept-encoding", "content-length", "connection", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched.

    Args:
        media_type: as the server says, in lower case, without parameters; empty when it does not.
        size: bytes in the file.
        final_url_host: host that sent it, after redirects.
    """

    status: int
    media_type: str
    size: int
    final_url_host: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said, whatever its status.

    Args:
        headers: names in lower case.
        host: who said it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    host: str


class Fetcher:
    """Fetches and posts; made by `open_fetcher`."""

    def __init__(self, ssl_context: SSLContext | None) -> None:
        self._ssl = ssl_context
        self._client: httpx2.AsyncClient | None = None
        self._making = trio.Lock()

    async def download(
        self,
        url: str,
        path: Path,
        *,
        headers: Mapping[str, str] = {},
        hosts: frozenset[str] = frozenset(),
        may_be_private: bool = False,
        max_bytes: int,
        timeout_s: float = 60.0,
    ) -> Fetched:
        """Fetch a URL into a new file; nothing is left of it when that fails.

        Args:
            path: must not exist; its folder must.
            headers: go to `hosts` (`host`, or `host:port` for an unusual port) and nowhere else.
            may_be_private: the URL's host and `hosts` may lie in a private network.
            max_bytes: of the content, uncompressed.
            timeout_s: for everything, redirects included.

        Errors: RefusedError: the address or the size is not allowed; ExternalError: the server failed or was too
            slow. Their texts name the host, nothing else of the URL. OSError when the file cannot be written.
        """
        allowed = _private_hosts(url, hosts) if may_be_private else False
        try:
            with trio.fail_after(timeout_s):
                return await self._download(url, path, headers, hosts, allowed, max_bytes)
        except trio.TooSlowError as error:
            raise ExternalError(f"it was not there within {timeout_s:.0f} seconds") from error

    async def _download(
        self,
        url: str,
        path: Path,
        headers: Mapping[str, str],
        hosts: frozenset[str],
        allowed: bool | frozenset[str],
        max_bytes: int,
    ) -> Fetched:
        was_secure = False
        for _ in range(MAX_REDIRECTS + 1):
            place = await resolve_public(url, allow_private=allowed)
            is_downgrade = was_secure and place.scheme == "http"
            sent = dict(headers) if place.key in hosts and not is_downgrade else {}
            async with self._answer("GET", url, place, sent, None) as response:
                if response.status_code in _REDIRECTS and (target := response.headers.get("location")):
                    url, was_secure = urljoin(url, target), was_secure or place.scheme == "https"
                    continue
                if not 200 <= response.status_code < 300:
                    raise ExternalError(f"{place.host} answered with status {response.status_code}")
                size = await _save(response, place.host, path, max_bytes)
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                return Fetched(response.status_code, kind, size, place.host)
        raise RefusedError(f"more than {MAX_REDIRECTS} redirects; give the address of the file itself")

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        may_be_private: bool = False,
        max_bytes: int,
        timeout_s: float = POST_S,
    ) -> Answer:
        """Ask a service and take its answer into memory, whatever the status; redirects are not followed.

        Args:
            may_be_private: the owner named the address.
            max_bytes: of the answer, uncompressed; a longer one is refused.

        Errors: as for `download`.
        """
        try:
            with trio.fail_after(timeout_s):
                place = await resolve_public(url, allow_private=may_be_private)
                async with self._answer("GET", url, place, headers, None) as response:
                    body = await _hold(response, place.host, max_bytes)
                    said = {name.lower(): value for name, value in response.headers.items()}
                    return Answer(response.status_code, said, body, place.host)
        except trio.TooSlowError as error:
            raise ExternalError(f"no answer within {timeout_s:.0f} seconds") from error

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        may_be_private: bool = False,
        *,
        timeout_s: float = POST_S,
    ) -> tuple[int, Mapping[str, str]]:
        """Post to a URL; redirects are not followed.

        Returns: the status, and the answer's headers with names in lower case.

        Errors: as for `download`.
        """
        try:
            with trio.fail_after(timeout_s):
                place = await resolve_public(url, allow_private=may_be_private)
                async with self._answer("POST", url, place, headers, body) as response:
                    await _skip(response)
                    return response.status_code, {name.lower(): value for name, value in response.headers.items()}
        except trio.TooSlowError as error:
            raise ExternalError(f"no answer within {timeout_s:.0f} seconds") from error

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, place: Resolved, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[httpx2.Response]:
        """Ask, address after address until one takes the connection."""
        client = await self._ready()
        request = _request(client, method, url, place, headers, body)
        try:
            response = await self._connect(client, request, place)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise ExternalError(f"{place.host} {_trouble(error)}") from error
        try:
            yield response
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise ExternalError(f"{place.host} {_trouble(error)}") from error
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await response.aclose()

    async def _connect(self, client: httpx2.AsyncClient, request: httpx2.Request, place: Resolved) -> httpx2.Response:
        failure: httpx2.TransportError | None = None
        for address in place.addresses:
            request.url = request.url.copy_with(host=address)
            try:
                return await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    async def _ready(self) -> httpx2.AsyncClient:
        """The client; reading the certificates for the first one takes a tenth of a second, so a thread does it."""
        async with self._making:
            if self._client is None:
                self._client = await trio.to_thread.run_sync(_new_client, self._ssl)
            return self._client

    async def aclose(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.aclose()


@asynccontextmanager
async def open_fetcher(*, ssl_context: SSLContext | None = None) -> AsyncIterator[Fetcher]:
    """Open what fetches. It costs nothing until it is used.

    Args:
        ssl_context: which certificates are trusted; None: the usual ones.

    Owns: the HTTP client; closes it, also when cancelled.
    """
    fetcher = Fetcher(ssl_context)
    try:
        yield fetcher
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await fetcher.aclose()


def _new_client(ssl_context: SSLContext | None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        verify=ssl_context or httpx2.create_ssl_context(),
        timeout=httpx2.Timeout(None, connect=CONNECT_S),  # the callers bound the whole
        # A kept connection is known by its address alone; the next host there would get it with a foreign certificate.
        limits=httpx2.Limits(max_connections=50, max_keepalive_connections=0),
        follow_redirects=False,
        trust_env=False,  # a proxy would resolve the name anew, and .netrc add credentials
    )


def _request(
    client: httpx2.AsyncClient, method: str, url: str, place: Resolved, headers: Mapping[str, str], body: bytes | None
) -> httpx2.Request:
    """A request whose URL holds no name any more.

    Errors: RefusedError when the URL or a header cannot be sent.
    """
    try:
        parsed = httpx2.URL(url)
        if parsed.scheme != place.scheme or (parsed.port or place.port) != place.port:
            raise RefusedError("this address can be read in two ways; write it plainly")
        return client.build_request(
            method,
            parsed.copy_with(host=place.addresses[0], port=place.port, fragment=None),
            content=body,
            headers={
                "User-Agent": _AGENT,
                "Accept": "*/*",
                **{name: value for name, value in headers.items() if name.lower() not in _OURS},
                "Host": place.key,
                "Accept-Encoding": "identity",
            },
            extensions={"sni_hostname": place.host},
        )
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise RefusedError("this address, or a header for it, cannot be sent; write it plainly") from error


def _private_hosts(url: str, hosts: frozenset[str]) -> frozenset[str]:
    return hosts | {host_key(*split_url(url))}


def _trouble(error: Exception) -> str:
    """What went wrong, without the library's words, which may hold the URL."""
    if isinstance(error, httpx2.ConnectTimeout):
        return f"did not answer within {CONNECT_S:.0f} seconds"
    if isinstance(error, httpx2.ConnectError):
        return "cannot be reached, or its certificate is not valid"
    return "broke the connection off"


async def _read(response: httpx2.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand a body to `take`, piece by piece.

    An early stop goes through a cancelled read: leaving httpx2's nested generators half-way would leave them to the
    garbage collector. For the same reason `take` is never interrupted.
    """
    failure: RefusedError | ExternalError | OSError | None = None
    with trio.CancelScope() as scope:
        async for piece in response.aiter_raw():
            if failure is not None:
                continue
            with trio.CancelScope(shield=True):
                try:
                    await take(piece)
                except (RefusedError, ExternalError, OSError) as error:
                    failure = error
                    scope.cancel()
    if failure is not None:
        raise failure


async def _skip(response: httpx2.Response) -> None:
    """Let the server say its words, within reason, so that it does not see a broken connection."""
    read = 0

    async def take(piece: bytes) -> None:
        nonlocal read
        read += len(piece)
        if read > MAX_ANSWER:
            raise RefusedError("")

    with suppress(RefusedError):
        await _read(response, take)


async def _hold(response: httpx2.Response, host: str, max_bytes: int) -> bytes:
    """The content of an answer that is known to be small."""
    unpack = _unpacker(response, host)
    held = bytearray()

    async def take(piece: bytes) -> None:
        for part in unpack(piece):
            held.extend(part)
            if len(held) > max_bytes:
                raise RefusedError(_too_large(max_bytes))

    await _read(response, take)
    await take(b"")
    return bytes(held)


async def _save(response: httpx2.Response, host: str, path: Path, max_bytes: int) -> int:
    """Write the content to a new file as it comes; returns its size."""
    announced = response.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes and "content-encoding" not in response.headers:
        raise RefusedError(_too_large(max_bytes))
    unpack = _unpacker(response, host)
    file = await trio.to_thread.run_sync(_create, path)
    gathered = bytearray()
    size = 0

    async def take(piece: bytes) -> None:
        nonlocal size
        for part in unpack(piece):
            size += len(part)
            if size > max_bytes:
                raise RefusedError(_too_large(max_bytes))
            gathered.extend(part)
            if len(gathered) >= WRITE_BYTES:
                await trio.to_thread.run_sync(file.write, bytes(gathered))
                gathered.clear()

    try:
        await _read(response, take)
        await take(b"")
        await trio.to_thread.run_sync(_finish, file, bytes(gathered))
    except BaseException:
        _discard(file, path)
        raise
    return size


def _too_large(max_bytes: int) -> str:
    return f"larger than {max_bytes / 2**20:.3g} MiB"


def _unpacker(response: httpx2.Response, host: str) -> Callable[[bytes], Iterator[bytes]]:
    """What makes plain pieces of received ones, in small steps; an empty piece asks whether all is there.

    Servers are asked not to compress, and some do all the same.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return lambda piece: iter((piece,))
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ExternalError(f"{host} sent it in a coding that was not asked for ({coding[:20]})")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpack(piece: bytes) -> Iterator[bytes]:
        if not piece and not unpacker.eof:
            raise ExternalError(f"{host} broke the connection off")
        is_full = False
        while piece or is_full:
            try:
                part = unpacker.decompress(piece, INFLATE_BYTES)
            except zlib.error as error:
                raise ExternalError(f"{host} sent it damaged") from error
            piece, is_full = unpacker.unconsumed_tail, len(part) == INFLATE_BYTES
            yield part

    return unpack


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


def _discard(file: BinaryIO, path: Path) -> None:
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        path.unlink()


def _finish(file: BinaryIO, rest: bytes) -> None:
    with file:
        file.write(rest)
