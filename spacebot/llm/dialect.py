"""What every dialect takes and offers: the one border between the program and wire formats.

Flow:   manager -> Dialect.complete(request, target) -> deltas, ModelReply
Floor:  llm; may import base, config
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import trio

from spacebot.config.model import ApiType
from spacebot.config.provider_table import ProviderEntry
from spacebot.config.routing import ThinkingEffort
from spacebot.llm.messages import (
    FinishReason,
    Image,
    JsonObject,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    Reasoning,
    Role,
    ToolResult,
    ToolSpec,
)

# Control characters inside strings are accepted: models send them unescaped. NaN and Infinity are no JSON.
_LENIENT = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
REASONING_ITEM = '{"type": "reasoning"'  # how `Reasoning.data` begins when the Responses dialect wrote it
_TOOLS_KEPT = 256  # sets of tools whose wire form is kept
_MOST_TOKENS = 10**9  # of one request
_PROOFS_KEPT = 2000
_LARGE = 100_000  # characters of pictures in a request; more are written in a thread
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"


class AuthKind(StrEnum):
    """How a key is shown to a provider. It belongs to the credential, not to the wire format (pitfall 61)."""

    KEY = "key"  # the dialect's own way
    BEARER = "bearer"  # `Authorization: Bearer`, for proxies that want it so
    OAUTH = "oauth"  # a token of `spacebot auth login`


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model at one provider, ready to be asked.

    Args:
        model: full name as the owner writes it, `provider/model`; the key of cooldowns and ceilings.
        wire_model: what the provider calls it.
        base_url: root of the provider's API; the dialect adds version and path (see access.py).
        entry: the provider's peculiarities.
        query: what every address of this provider ends with.
        effort: how long the model may think, as its role is configured.
    """

    model: str
    wire_model: str
    provider: str
    api_type: ApiType
    base_url: str
    api_key: str
    entry: ProviderEntry
    auth: AuthKind = AuthKind.KEY
    key_auth: AuthKind = AuthKind.KEY  # how `api_key` is shown when a login does not count
    effort: ThinkingEffort = ThinkingEffort.AUTO
    query: Mapping[str, str] = field(default_factory=dict)


class Dialect(Protocol):
    """A wire format. `is_loaded` says that no import is left to do."""

    is_loaded: bool

    def load(self) -> None:
        """Import the vendor's library; slow, runs in a worker thread, once."""
        ...

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Ask once, without retries.

        Errors: ModelError and its kinds.
        Cancel: the connection is closed at once.
        """
        ...


def run_start(messages: Sequence[ModelMessage]) -> int:
    """Where the present run of tool calls begins: after the newest words of a user that answer no call.

    Thinking is sent back from there on only. What lies before is written anew between turns, and a proof of thinking
    counts with the very words that stood before it.
    """
    for i in range(len(messages) - 1, -1, -1):
        message = messages[i]
        if message.role is Role.USER and not any(isinstance(part, ToolResult) for part in message.parts):
            return i + 1
    return 0


class RefusedThinking:
    """Proofs of earlier thinking that a provider did not accept; they are not shown a second time.

    They hold for one model, one account and the words before them; a chain of fallbacks and a shortened history cross
    all of these.
    """

    def __init__(self) -> None:
        self._proofs: dict[str, None] = {}

    def note(self, request: ModelRequest) -> bool:
        """Remember the proofs of a request that was refused; False when it had none that could be the reason."""
        parts = (part for message in request.messages for part in message.parts if isinstance(part, Reasoning))
        fresh = [proof for part in parts if (proof := part.signature or part.data) and proof not in self._proofs]
        for proof in fresh:
            if len(self._proofs) >= _PROOFS_KEPT:
                del self._proofs[next(iter(self._proofs))]
            self._proofs[proof] = None
        return bool(fresh)

    def __contains__(self, part: object) -> bool:
        return isinstance(part, Reasoning) and (part.signature or part.data) in self._proofs


class StreamFaultError(Exception):
    """The provider reported an error inside an open stream; `status_code` is its nearest HTTP status."""

    def __init__(self, status_code: int, body: object) -> None:
        super().__init__(str(body))
        self.status_code = status_code
        self.body = body


class StreamCutError(Exception):
    """The stream is unreadable or ended before its last event."""


def parse_arguments(raw: str) -> JsonObject | None:
    """Read a tool call's arguments; nothing means no arguments; None when they are no JSON object."""
    if not raw.strip():
        return {}
    try:
        value = _LENIENT.decode(raw)
        if isinstance(value, str):  # some models quote their JSON twice
            value = _LENIENT.decode(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_event(data: bytes) -> dict[str, Any]:
    """Read one event of a stream.

    Errors: StreamCutError when it is no JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StreamCutError("it sent something that is no JSON") from error
    if not isinstance(value, dict):
        raise StreamCutError("it sent something that is no JSON object")
    return value


def text_in(value: object) -> str:
    """A text of an event. Errors: TypeError when it is something else."""
    if isinstance(value, str):
        return value
    raise TypeError("no text")


def count_in(counts: object, name: str) -> int:
    """A count of tokens; 0 where there is none. What no request can have used would not fit into a row."""
    value = counts.get(name) if isinstance(counts, dict) else None
    return min(value, _MOST_TOKENS) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


@contextmanager
def reading_events() -> Iterator[None]:
    """Around what takes events apart: an event of another shape makes the stream unusable, whatever is wrong in it.

    Errors: StreamCutError.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise StreamCutError("it sent an event of an unknown shape") from error


@dataclass(frozen=True, slots=True)
class Base64:
    """A text for a request's body: `prefix` and base64, which `to_json_bytes` copies instead of escaping it."""

    data: str
    prefix: str = ""


async def encode(request: ModelRequest, write: Callable[[], bytes]) -> bytes:
    """Write a request's body; in a thread when it holds large pictures, as megabytes take too long for the loop."""
    size = sum(len(part.data) for message in request.messages for part in message.parts if isinstance(part, Image))
    return write() if size <= _LARGE else await trio.to_thread.run_sync(write)


def to_json_bytes(value: object) -> bytes:
    """JSON as it goes over the wire; lone surrogates, which UTF-8 cannot hold, become question marks."""
    return b"".join(_json_pieces(value))


def _json_pieces(value: object) -> list[bytes]:
    """The same in pieces: each `Base64` is one of its own, between what was written around it."""
    copied: list[bytes] = []
    mark = secrets.token_hex(16)

    def plain(item: object) -> object:
        if isinstance(item, Base64):
            data = item.data.encode("utf-8", "replace")
            if data.translate(None, _BASE64):  # not what it is said to be: it may need escaping
                return item.prefix + item.data
            copied.append(data)
            return item.prefix + mark
        if isinstance(item, Mapping):
            return dict(item)
        raise TypeError(f"{type(item).__name__} cannot travel to a model")

    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain).encode("utf-8", "replace")
    if not copied:
        return [written]
    first, *others = written.split(mark.encode())
    pieces = [first]
    for data, other in zip(copied, others, strict=True):
        pieces += (data, other)
    return pieces


class ToolsCache:
    """The wire form of sets of tools, by identity: schemas are large and never change. Threads may share it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int | bool, ...], tuple[tuple[ToolSpec, ...], bytes]] = {}

    def get(self, tools: tuple[ToolSpec, ...], variant: int, render: "Render") -> bytes:
        """The JSON of a set of tools; `variant` tells apart forms of the same set."""
        key = (variant, *map(id, tools))
        if (kept := self._kept.get(key)) is not None:
            return kept[1]
        if len(self._kept) >= _TOOLS_KEPT:
            self._kept.clear()
        data = to_json_bytes(render(tools))
        self._kept[key] = (tools, data)  # holding the specs keeps their ids theirs
        return data


class Render(Protocol):
    """Turns tools into their wire form."""

    def __call__(self, tools: Sequence[ToolSpec], /) -> Sequence[object]: ...


def splice(body: dict[str, object], name: str, value: bytes) -> bytes:
    """The JSON of a body with one more field whose value is JSON already."""
    pieces = _json_pieces(body)
    return b"".join((*pieces[:-1], pieces[-1][:-1], b',"', name.encode(), b'":', value, b"}"))


def finish_of(reason: FinishReason, *, has_calls: bool) -> FinishReason:
    """Providers say `stop` beside tool calls and the reverse; the calls decide."""
    if reason is FinishReason.STOP and has_calls:
        return FinishReason.TOOL_CALLS
    if reason is FinishReason.TOOL_CALLS and not has_calls:
        return FinishReason.STOP
    return reason
