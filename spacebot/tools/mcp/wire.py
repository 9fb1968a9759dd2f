"""HTTP for MCP: every connection goes through the URL guard, answers are bounded, no words of the library get out.

The owner configured the address, so it may lie in a private network; what hands out a machine's credentials is
refused all the same. The SDK follows a redirect only to the same scheme, host and port, so that headers stay there.

Flow:    open_http -> httpx2 client -> GuardedTransport -> resolve_public -> connect to that address
Floor:   tools; may import httpx2
Source:  tools spec 11 and 23; control spec 8.1.68
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from ssl import SSLContext
from urllib.parse import urlsplit

import httpx2
import trio

from spacebot.base.errors import ConfigError, ExternalError, RefusedError
from spacebot.base.url_guard import resolve_public

CONNECT_S = 10.0
READ_S = 300.0  # between two pieces of an answer; calls have deadlines of their own
NOTICE_S = 10.0  # for the answer to a notification, which holds up what follows it
GOODBYE_S = 1.0  # for the answer to the end of a session
MAX_ANSWER = 4 * 1024 * 1024  # bytes of one answer; it is parsed on the loop


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to judged addresses only.

    Attributes:
        trouble: what went wrong last, in our words; empty after a good answer.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.trouble = ""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Ask, address after address until one takes the connection.

        Errors: httpx2.ConnectError, also for what the guard refuses; `trouble` says why.
        """
        try:
            place = await resolve_public(str(request.url), allow_private=True)
        except (RefusedError, ExternalError) as error:
            self.trouble = str(error)
            raise httpx2.ConnectError(str(error), request=request) from error
        timeout = dict(request.extensions.get("timeout", {}))
        if request.method == "GET":
            timeout["read"] = None  # a stream of events, silent for as long as nothing happens
        elif request.method == "DELETE":
            timeout |= {"connect": GOODBYE_S, "read": GOODBYE_S}
        elif b'"id"' not in await request.aread():
            timeout["read"] = NOTICE_S
        failure: Exception | None = None
        for address in place.addresses:
            guarded = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # Host says what the URL says
                stream=request.stream,
                extensions={**request.extensions, "timeout": timeout, "sni_hostname": place.host},
            )
            try:
                response = await self._inner.handle_async_request(guarded)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
                continue
            except httpx2.TransportError as error:
                self.trouble = f"{place.key} broke the connection off or did not answer"
                raise error
            self.trouble = _about(place.key, response.status_code)
            if (coding := response.headers.get("content-encoding", "identity").strip().lower()) != "identity":
                self.trouble = f"{place.key} sent its answer in a coding that was not asked for ({coding[:20]})"
                await response.aclose()
                raise httpx2.ReadError(self.trouble)
            if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                assert isinstance(response.stream, httpx2.AsyncByteStream)
                response.stream = _Bounded(response.stream, self)
            return response
        self.trouble = f"{place.key} cannot be reached, or its certificate is not valid"
        assert failure is not None
        raise failure

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of an answer, up to the limit; no generator, which nobody might finish."""

    def __init__(self, inner: httpx2.AsyncByteStream, transport: GuardedTransport) -> None:
        self._inner = inner
        self._pieces = inner.__aiter__()
        self._transport = transport
        self._size = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._pieces.__anext__()
        self._size += len(piece)
        if self._size > MAX_ANSWER:
            self._transport.trouble = f"it sent an answer of more than {MAX_ANSWER // 2**20} MiB"
            with trio.CancelScope() as scope:  # a cancelled read takes the library's nested generators apart
                scope.cancel()
                await self._pieces.__anext__()
            raise httpx2.ReadError(self._transport.trouble)
        return piece

    async def aclose(self) -> None:
        if (end := getattr(self._pieces, "aclose", None)) is not None:
            await end()
        await self._inner.aclose()


def _about(key: str, status: int) -> str:
    if status in (401, 403):
        return f"{key} refused the credentials (status {status}); check the headers of the server"
    if 300 <= status < 400:
        return f"{key} redirects elsewhere (status {status}), which is not followed; configure the final address"
    return f"{key} answered with status {status}" if status >= 400 else ""


@asynccontextmanager
async def open_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[tuple[httpx2.AsyncClient, GuardedTransport]]:
    """Open a client for one server.

    Errors: ConfigError when the URL or a header cannot be used.
    """
    check_url(url)
    context = await trio.to_thread.run_sync(_certificates)
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=10)
    transport = GuardedTransport(httpx2.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False))
    timeout = httpx2.Timeout(CONNECT_S, read=READ_S)
    try:
        client = httpx2.AsyncClient(
            transport=transport,
            headers={"User-Agent": "Spacebot", **headers, "Accept-Encoding": "identity"},
            timeout=timeout,
            follow_redirects=False,
            trust_env=False,
        )
    except (ValueError, TypeError, UnicodeError) as error:
        raise ConfigError("a header of the server cannot be sent; headers are plain ASCII text on one line") from error
    try:
        yield client, transport
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await client.aclose()


@cache
def _certificates() -> SSLContext:
    """The usual certificates, read once; that takes a tenth of a second."""
    return httpx2.create_ssl_context()


def check_url(url: str) -> None:
    """Refuse what is no address of a server. Errors: ConfigError, without the address."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("the server's url is no address; write an absolute http or https URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("the server's url is no absolute http or https URL once its placeholders are filled in")
    if "@" in parts.netloc:
        raise ConfigError("the server's url holds a user name or password; send it as a header instead")
