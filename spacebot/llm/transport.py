"""The way to providers: HTTP clients that never queue inside their pool, and foreign errors turned into ours.

httpx2's pool slows down with the square of its connections, so each client holds few and a limiter in
front keeps the pool from queueing; more load opens further clients.

Flow:    Transport.shard() -> SDK client bound to shard.http -> translate(...)
Floor:   llm; may import base, config
Source:  control spec 2.1, 2.8; process spec 18, S5, S10
"""

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from ssl import SSLContext
from typing import Any

import httpx2
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import (
    ContextOverflowError,
    ModelBusyError,
    ModelError,
    ModelRejectedError,
    ModelUnavailableError,
)
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode
from spacebot.llm.dialect import AuthKind, StreamCutError, StreamFaultError, Target

CONNECTIONS = 20  # per client; with 100 the pool's own search is a tenth of a call's cost at a thousand calls
SHARDS = 50  # clients at most
TIMEOUT = httpx2.Timeout(connect=10, read=120, write=120, pool=10)  # seconds; read counts between two pieces
DRAIN_S = 0.5  # a body that goes on for longer after its last event costs the connection
STREAM_HEADERS: Mapping[str, str] = {  # compressed, a proxy would hold words back until it has a block of them
    "content-type": "application/json",
    "accept": "text/event-stream",
    "accept-encoding": "identity",
}
PIECE = 262_144  # bytes of a request's body that are encrypted and written at once; 10 MB take 40 ms
UPSTREAM_CHARACTERS = 300  # of a provider's own words in an error

_LENGTH_CODES = frozenset(
    {"context_length_exceeded", "request_too_large", "content_too_large", "string_above_max_length"}
)
_LENGTH_PHRASE = re.compile(
    r"context[ _](?:length|window)|maximum context|prompt is too long|token limit|too many tokens|request too large"
    r"|content_too_large|input (?:is )?too long|exceeds? the (?:maximum|limit).{0,40}tokens"
    r"|input token count.{0,40}exceeds"
    r"|maximum.{0,60}tokens.{0,80}(?:requested|resulted|messages|input|prompt)",
    re.IGNORECASE | re.DOTALL,
)
_NO_SUCH_MODEL = "is not a valid model"  # OpenRouter says 400 and no code
_TRANSIENT = frozenset({408, 409, 425, 499})


@dataclass(slots=True)
class Shard:
    """One HTTP client and the limiter before it. `bound` keeps the SDK clients that use it, by credentials."""

    http: httpx2.AsyncClient
    limiter: trio.CapacityLimiter
    bound: dict[tuple[str, ...], Any] = field(default_factory=dict)


class Transport:
    """All HTTP clients towards providers."""

    def __init__(self, stack: AsyncExitStack, new_client: Callable[[SSLContext], httpx2.AsyncClient]) -> None:
        self._stack = stack
        self._new_client = new_client
        self._shards: list[Shard] = []
        self._ssl: SSLContext | None = None

    def prepare(self) -> None:
        """Do what would hold up the loop at the first call, about 130 ms: runs in a worker thread.

        Certificates are read once for all clients, and making one client imports what the others need.
        """
        if self._ssl is None:
            context = httpx2.create_ssl_context()
            self._new_client(context)
            self._ssl = context

    @asynccontextmanager
    async def shard(self) -> AsyncIterator[Shard]:
        """A client with a free connection; waits only when every client is full."""
        shard = self._choose()
        async with shard.limiter:
            yield shard

    def _choose(self) -> Shard:
        for shard in self._shards:
            if shard.limiter.available_tokens > 0:
                return shard
        if len(self._shards) < SHARDS:
            self.prepare()
            assert self._ssl is not None
            client = self._new_client(self._ssl)
            self._stack.push_async_callback(client.aclose)
            self._shards.append(Shard(client, trio.CapacityLimiter(CONNECTIONS)))
            return self._shards[-1]
        return min(self._shards, key=lambda shard: shard.limiter.statistics().tasks_waiting)


def _new_client(ssl: SSLContext) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=60)
    hooks = {"request": [_send_in_pieces]}
    return httpx2.AsyncClient(verify=ssl, timeout=TIMEOUT, limits=limits, follow_redirects=False, event_hooks=hooks)


class _Pieces(httpx2.AsyncByteStream):
    """A body that is handed over piece by piece, so that others have their turn while a large one is sent."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield self._body[start : start + PIECE]


async def _send_in_pieces(request: httpx2.Request) -> None:
    """A hook of the client; the length is in the headers already."""
    if isinstance(request.stream, httpx2.ByteStream) and len(request.content) > PIECE:
        request.stream = _Pieces(request.content)


@asynccontextmanager
async def open_transport() -> AsyncIterator[Transport]:
    """Open the way to providers.

    Owns: every HTTP client; closes them, also when cancelled.
    """
    async with AsyncExitStack() as stack:
        yield Transport(stack, _new_client)


def content_type(response: httpx2.Response) -> str:
    """The media type of an answer, without parameters."""
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def require_stream(response: httpx2.Response) -> None:
    """Check that an answer is a stream of events.

    Errors: StreamCutError.
    """
    if (kind := content_type(response)) != "text/event-stream":
        raise StreamCutError(f"it sent {kind[:60] or 'an unnamed type'} instead of an event stream")


async def read_stream(response: httpx2.Response, take: Callable[[bytes], bool]) -> None:
    """Hand a body to `take`, piece by piece, until that returns True or the body ends.

    What follows the last event is read for up to `DRAIN_S`, since only a body that was read to its end leaves
    the connection usable. An early stop goes through a cancelled read: leaving httpx2's nested generators
    half-way would leave them to the garbage collector.

    Errors: StreamCutError, StreamFaultError from `take`; httpx2's errors.
    """
    is_finished = False
    failure: StreamCutError | StreamFaultError | None = None
    with trio.CancelScope() as scope:
        async for piece in response.aiter_bytes():
            if is_finished or failure is not None:
                continue
            try:
                is_finished = take(piece)
            except (StreamCutError, StreamFaultError) as error:
                failure = error
                scope.cancel()
            if is_finished:
                scope.deadline = trio.current_time() + DRAIN_S
    if failure is not None:
        raise failure


@dataclass(frozen=True, slots=True)
class SdkErrors:
    """An SDK's error classes: `base` is the root, `status` the ones that carry an HTTP answer."""

    base: type[Exception]
    status: type[Exception]


@contextmanager
def translate(target: Target, sdk: SdkErrors) -> Iterator[None]:
    """Turn whatever goes wrong inside into our errors.

    Errors: ModelError and its kinds.
    """
    try:
        yield
    except sdk.status as error:
        response: httpx2.Response = error.response  # type: ignore[attr-defined]
        body = getattr(error, "body", None)
        raise status_error(response.status_code, body, target, response.headers) from error
    except StreamFaultError as error:
        raise status_error(error.status_code, error.body, target) from error
    except UnicodeError as error:  # headers hold ASCII only
        text = (
            f"{target.model}: the key of {target.provider} holds characters that no key has; check {key_advice(target)}"
        )
        raise ModelRejectedError(text, model=target.model) from error
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, sdk.base, StreamCutError) as error:
        raise ModelUnavailableError(f"{target.model}: {_trouble(error)}", model=target.model) from error


def status_error(
    status: int, body: object, target: Target, headers: Mapping[str, str] | httpx2.Headers | None = None
) -> ModelError:
    """The error for an HTTP status and the provider's words.

    Args:
        body: what the provider sent: text, bytes or parsed JSON.
    """
    codes, words = _upstream(body)
    model = target.model
    said = f": {words}" if words else ""
    if status in (400, 413, 422) and (status == 413 or codes & _LENGTH_CODES or _LENGTH_PHRASE.search(words)):
        return ContextOverflowError(f"{model}: the conversation is too long for this model{said}", model=model)
    if status == 429:
        after = retry_after_s(headers or {})
        wait = f" for {math.ceil(after)} s" if after else ""
        if "insufficient_quota" in codes:  # no waiting helps, but another provider may
            return ModelBusyError(f"{model}: the account's quota is used up{said}", model=model, retry_after_s=3600)
        return ModelBusyError(f"{model}: the provider asks us to wait{wait}{said}", model=model, retry_after_s=after)
    if status in (401, 403):
        text = f"{model}: {target.provider} refused the credentials ({status}); check {key_advice(target)}{said}"
        return ModelRejectedError(text, model=model, status_code=status)
    if status == 404 or "model_not_found" in codes or _NO_SUCH_MODEL in words:
        text = f"{model}: {target.provider} does not know this model; check its name under [defaults.routing]{said}"
        return ModelRejectedError(text, model=model, status_code=status, is_unknown_model=True)
    if status in _TRANSIENT or status >= 500 or status < 400:
        return ModelUnavailableError(f"{model}: {target.provider} is unavailable ({status}){said}", model=model)
    if status == 402:
        text = f"{model}: {target.provider} wants payment; check the account's credit{said}"
        return ModelRejectedError(text, model=model, status_code=status)
    text = f"{model}: {target.provider} refused the request ({status}){said}"
    return ModelRejectedError(text, model=model, status_code=status)


def key_advice(target: Target) -> str:
    """Where the key of a provider is configured."""
    entry = target.entry
    if target.auth is AuthKind.OAUTH:
        return "the login: spacebot auth status"
    if target.auth is AuthKind.BEARER and entry.token_env:
        return f"the variable {entry.token_env}"
    if entry.key and entry.env:
        return f"{entry.key!r} under [llm] in config.toml, or the variable {entry.env}"
    return f"'api_key' under [llm.provider.{target.provider}] in config.toml"


def retry_after_s(headers: Mapping[str, str] | httpx2.Headers) -> float | None:
    """Seconds a provider asks us to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit_s
        except ValueError:
            seconds = _seconds_until(text)
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _seconds_until(text: str) -> float:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return math.nan
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - Clock().now()).total_seconds()


def _trouble(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, httpx2.HTTPError) else error
    match cause:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return "the provider cannot be reached; check the network and the base URL"
        case httpx2.TimeoutException():
            return "the provider was silent for too long"
        case StreamCutError():
            return f"the provider's answer is not usable: {cause}"
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return "the base URL is not usable; check it in config.toml"
        case httpx2.HTTPError():
            return f"the connection broke ({type(cause).__name__})"
    return f"the provider's answer is not usable ({type(cause).__name__})"


def _upstream(body: object, *, is_inner: bool = False) -> tuple[frozenset[str], str]:
    """A provider's error codes, and its words: scrubbed, on one line, cut.

    Args:
        is_inner: what a proxy says that the host behind it said.
    """
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    if isinstance(body, str):
        with suppress(ValueError, RecursionError):
            body = json.loads(body)
    codes: set[str] = set()
    words = ""
    if isinstance(body, list) and body:  # Gemini wraps errors into a list
        body = body[0]
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            codes = {str(inner[key]) for key in ("type", "code") if inner.get(key) is not None}
            words = str(inner.get("message") or "")
            metadata = inner.get("metadata")
            if isinstance(metadata, dict) and not is_inner and (raw := metadata.get("raw")):  # OpenRouter's way
                hidden_codes, hidden = _upstream(raw, is_inner=True)
                codes |= hidden_codes
                who = f"{metadata['provider_name']} says: " if metadata.get("provider_name") else ""
                words = f"{words}: {who}{hidden or raw}"
        else:
            words = str(inner)
        words = words or str(body.get("message") or body.get("detail") or "")
    elif isinstance(body, str) and not body.lstrip().startswith("<"):
        words = body
    line = clean_unicode(" ".join(scrub(words[: 8 * UPSTREAM_CHARACTERS]).split()))
    return frozenset(codes), line if len(line) <= UPSTREAM_CHARACTERS else line[: UPSTREAM_CHARACTERS - 1] + "…"
