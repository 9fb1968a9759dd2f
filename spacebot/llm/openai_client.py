"""What the two dialects of OpenAI's share: the library's client, one call, errors inside a stream, counts.

Flow:   openai_chat, openai_responses -> post -> bytes to a reader
Floor:  llm; may import base, config
Source: control spec 2.1, 2.13; pitfalls 43, 50, 57
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httpx2

from spacebot.config.model import ApiType
from spacebot.llm.access import credential, openai_root, session
from spacebot.llm.ambient import without_ambient
from spacebot.llm.dialect import Target
from spacebot.llm.messages import ModelReply, OnDelta, StreamDelta
from spacebot.llm.transport import (
    STREAM_HEADERS,
    SdkErrors,
    Shard,
    Transport,
    content_type,
    read_stream,
    require_stream,
    translate,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HOST = "api.openai.com"
HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"  # the SDK sends what it holds to whatever host

_NOTHING: Mapping[str, str] = MappingProxyType({})
_STATUS = {
    "invalid_request_error": 400, "invalid_prompt": 400, "context_length_exceeded": 400, "authentication_error": 401,
    "invalid_api_key": 401, "permission_denied": 403, "model_not_found": 404, "rate_limit_error": 429,
    "rate_limit_exceeded": 429, "insufficient_quota": 429, "server_error": 500, "overloaded_error": 529,
    "server_is_overloaded": 503, "slow_down": 503,
}  # fmt: skip


class Reader(Protocol):
    """Takes an answer apart, whether it comes as a stream or in one piece."""

    is_finished: bool

    def feed(self, piece: bytes) -> list[StreamDelta]: ...

    def take_whole(self, body: bytes) -> list[StreamDelta]: ...

    def reply(self, model: str) -> ModelReply: ...


def load(transport: Transport) -> None:
    """Import the library, and do what the first call would wait for. Blocking: a second of CPU."""
    import openai  # noqa: F401

    transport.prepare()


async def post(
    transport: Transport,
    target: Target,
    path: str,
    body: bytes,
    reader: Reader,
    on_delta: OnDelta,
    *,
    headers: Mapping[str, str] = _NOTHING,
) -> ModelReply:
    """Send one request and read its answer to the end.

    Args:
        path: below the provider's root, such as `/chat/completions`.
        headers: of this request alone.

    Errors: ModelError and its kinds.
    """
    import openai

    def take(piece: bytes) -> bool:
        _tell(reader.feed(piece), on_delta)
        return reader.is_finished

    async with transport.shard() as shard:
        with translate(target, SdkErrors(openai.OpenAIError, openai.APIStatusError)):
            response = await _client(shard, target).post(
                path,
                cast_to=httpx2.Response,
                content=body,
                options={"headers": {**_headers(target), **headers}},
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
            assert isinstance(response, httpx2.Response)
            try:
                if content_type(response) == "application/json":  # the whole answer: a stream of one event
                    _tell(reader.take_whole(await response.aread()), on_delta)
                else:
                    require_stream(response)
                    await read_stream(response, take)
                return reader.reply(target.model)
            finally:
                await response.aclose()


def _tell(deltas: list[StreamDelta], on_delta: Callable[[StreamDelta], None]) -> None:
    for delta in deltas:
        on_delta(delta)


def _headers(target: Target) -> dict[str, Any]:
    """Those of one call; a token that was bought lives for minutes only, so no client is kept for it."""
    import openai

    own: dict[str, Any] = dict(STREAM_HEADERS)
    if target.api_type is ApiType.AZURE:
        own["Authorization"] = openai.Omit()  # the library wants it said with the call
    return own | (credential(target) if target.entry.exchanges_key else {})


def _client(shard: Shard, target: Target) -> "AsyncOpenAI":
    root = openai_root(target)
    is_bought = target.entry.exchanges_key
    shown_key = "bought" if is_bought else f"{target.auth} {target.api_key}"
    key = ("openai", target.provider, root, *target.query.values(), shown_key)
    if (bound := shard.bound.get(key)) is None:
        import openai

        shown = {} if is_bought else credential(target)
        headers: dict[str, Any] = {"Authorization": shown.pop("authorization", openai.Omit()), **shown}
        if target.provider != "openai":
            # The SDK would send the owner's OpenAI organization from the environment to every provider.
            headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        if urlsplit(target.base_url).hostname != HOST:
            headers = without_ambient(HEADERS_VARIABLE, openai.Omit()) | headers
        bound = shard.bound[key] = openai.AsyncOpenAI(
            api_key="none" if is_bought else target.api_key or "none",
            base_url=root,
            http_client=shard.http,
            max_retries=0,
            default_headers={**headers, **session(target), **target.entry.headers},
            default_query=dict(target.query) or None,
        )
    client: AsyncOpenAI = bound
    return client


def fault_status(error: object) -> int:
    """The HTTP status that is nearest to an error inside a stream."""
    if not isinstance(error, dict):
        return 500
    for key in ("code", "status", "type"):
        value = error.get(key)
        if isinstance(value, int) and 400 <= value < 600:
            return value
        if isinstance(value, str):
            if len(value) == 3 and value.isdecimal() and 400 <= int(value) < 600:
                return int(value)
            if value in _STATUS:
                return _STATUS[value]
    return 500


def max_tokens_field(target: Target) -> str:
    """How the limit of an answer is called."""
    return "max_completion_tokens" if target.api_type is ApiType.AZURE else target.entry.max_tokens_field
