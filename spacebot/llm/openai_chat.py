"""The dialect of chat completions, which most providers speak, each a little differently.

Flow:   to_wire -> AsyncOpenAI.post -> StreamReader -> ModelReply
Floor:  llm; may import base, config
Source: control spec 2.9, 2.13, 2.15, pitfalls 40 to 50, 57
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from spacebot.base.ids import new_uuid
from spacebot.config.model import ApiType
from spacebot.llm.ambient import without_ambient
from spacebot.llm.dialect import (
    Base64,
    StreamCutError,
    StreamFaultError,
    Target,
    ToolsCache,
    encode,
    finish_of,
    parse_arguments,
    parse_event,
    splice,
    to_json_bytes,
)
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    Image,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    Reasoning,
    Role,
    StreamDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)
from spacebot.llm.sse import EventReader
from spacebot.llm.transport import SdkErrors, Shard, Transport, content_type, read_stream, require_stream, translate

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OFFICIAL_HOST = "api.openai.com"
HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"  # the SDK sends what it holds to whatever host

_MARK = {"type": "ephemeral"}  # OpenRouter hands it on to Anthropic
_FINISH = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_STATUS = {
    "invalid_request_error": 400, "context_length_exceeded": 400, "authentication_error": 401,
    "invalid_api_key": 401, "model_not_found": 404, "rate_limit_error": 429, "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
}  # fmt: skip


class OpenAiChatDialect:
    """Asks models behind chat completions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tools = ToolsCache()
        self.is_loaded = False

    def load(self) -> None:
        """Import the SDK: about a second of CPU, so never on the loop."""
        import openai  # noqa: F401

        self._transport.prepare()
        self.is_loaded = True

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Ask once and read the stream to its end."""
        import openai

        body = await encode(request, partial(to_wire, request, target, self._tools))
        reader = StreamReader()

        def take(piece: bytes) -> bool:
            for delta in reader.feed(piece):
                on_delta(delta)
            return reader.is_finished

        async with self._transport.shard() as shard:
            with translate(target, SdkErrors(openai.OpenAIError, openai.APIStatusError)):
                response = await _client(shard, target).post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    content=body,
                    options={"headers": {"content-type": "application/json", "accept": "text/event-stream"}},
                    stream=True,
                    stream_cls=openai.AsyncStream[Any],
                )
                assert isinstance(response, httpx2.Response)
                try:
                    if content_type(response) == "application/json":  # the whole answer: a stream of one event
                        for delta in reader.take_whole(await response.aread()):
                            on_delta(delta)
                    else:
                        require_stream(response)
                        await read_stream(response, take)
                    return reader.reply(target.model)
                finally:
                    await response.aclose()


def _client(shard: Shard, target: Target) -> "AsyncOpenAI":
    key = ("openai", target.base_url, target.api_key)
    if (bound := shard.bound.get(key)) is None:
        import openai

        # The SDK would send the owner's OpenAI organization from the environment to every provider.
        alien = target.provider != "openai"
        omitted: dict[str, Any] = (
            {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()} if alien else {}
        )
        if urlsplit(target.base_url).hostname != OFFICIAL_HOST:
            own = {"authorization": f"Bearer {target.api_key or 'none'}"}
            omitted = without_ambient(HEADERS_VARIABLE, own, openai.Omit()) | omitted
        root = target.base_url + ("/v1" if target.api_type is ApiType.OPENAI_COMPLETIONS else "")
        bound = shard.bound[key] = openai.AsyncOpenAI(
            api_key=target.api_key or "none",
            base_url=root,
            http_client=shard.http,
            max_retries=0,
            default_headers={**omitted, **target.entry.headers},
        )
    client: AsyncOpenAI = bound
    return client


def to_wire(request: ModelRequest, target: Target, tools: ToolsCache) -> bytes:
    """The request's body."""
    entry = target.entry
    messages: list[dict[str, object]] = []
    if system := _system(request, has_marks=entry.cache_marks and target.wire_model.startswith("anthropic/")):
        messages.append({"role": "system", "content": system})
    for message in request.messages:
        if message.role is Role.USER:
            messages += _user(message)
        else:
            messages += _assistant(message, replays_reasoning=entry.replays_reasoning)
    body: dict[str, object] = {"model": target.wire_model, "messages": messages, "stream": True}
    if entry.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if request.max_output_tokens is not None:
        body[entry.max_tokens_field] = request.max_output_tokens
    if not request.tools:
        return to_json_bytes(body)
    return splice(body, "tools", tools.get(request.tools, 0, _render_tools))


def _render_tools(specs: Sequence[ToolSpec]) -> list[dict[str, object]]:
    return [
        {
            "type": "function",
            "function": {"name": spec.name, "description": spec.description, "parameters": spec.schema},
        }
        for spec in specs
    ]


def _system(request: ModelRequest, *, has_marks: bool) -> str | list[dict[str, object]]:
    blocks = [block for block in request.system if block.text.strip()]
    if not has_marks:
        return "\n\n".join(block.text for block in blocks)
    parts: list[dict[str, object]] = [{"type": "text", "text": block.text} for block in blocks]
    stable = [part for part, block in zip(parts, blocks, strict=True) if block.is_stable]
    if stable:
        stable[-1]["cache_control"] = _MARK
    return parts


def _user(message: ModelMessage) -> list[dict[str, object]]:
    # Results come first: they have to follow the calls that they answer.
    wire: list[dict[str, object]] = [
        {"role": "tool", "tool_call_id": part.call_id, "content": part.text}
        for part in message.parts
        if isinstance(part, ToolResult)
    ]
    content: list[dict[str, object]] = []
    for part in message.parts:
        if isinstance(part, Text) and part.text.strip():
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            url = Base64(part.data, prefix=f"data:{part.media_type};base64,")
            content.append({"type": "image_url", "image_url": {"url": url}})
    if len(content) == 1 and content[0]["type"] == "text":
        wire.append({"role": "user", "content": content[0]["text"]})
    elif content:
        wire.append({"role": "user", "content": content})
    return wire


def _assistant(message: ModelMessage, *, replays_reasoning: bool) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = []
    reasoning = ""
    extra: str | None = None
    for part in message.parts:
        if isinstance(part, Reasoning):
            reasoning += part.text
            extra = part.data if part.data and part.data.startswith("{") else extra
        elif isinstance(part, ToolCall):
            raw = json.dumps(part.arguments, ensure_ascii=False) if part.arguments is not None else "{}"
            call: dict[str, object] = {
                "id": part.id,
                "type": "function",
                "function": {"name": part.name, "arguments": raw},
            }
            if extra:
                call["extra_content"] = json.loads(extra)
                extra = None
            calls.append(call)
    text = message.text
    if not calls and not text.strip():
        return []
    wire: dict[str, object] = {"role": "assistant", "content": text or None}
    if calls:
        wire["tool_calls"] = calls
        if replays_reasoning:
            wire["reasoning_content"] = reasoning or " "  # demanded even where there was none
    return [wire]


class _Call:
    """A tool call while it grows."""

    __slots__ = ("extra", "fragments", "id", "name", "whole")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.fragments: list[str] = []
        self.whole: dict[str, Any] | None = None
        self.extra: object = None


class StreamReader:
    """Reads an answer's stream: bytes in, deltas out, the whole reply at the end.

    Args:
        new_id: makes ids for calls that come without one.
    """

    def __init__(self, new_id: Callable[[], str] = lambda: f"call_{new_uuid()}") -> None:
        self._new_id = new_id
        self._events = EventReader()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, int] = {}
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        self.is_finished = False

    def feed(self, piece: bytes) -> list[StreamDelta]:
        """Take more bytes.

        Errors: StreamCutError, StreamFaultError.
        """
        try:
            events = self._events.feed(piece)
        except ValueError as error:
            raise StreamCutError(str(error)) from error
        return self._take(events)

    def take_whole(self, body: bytes) -> list[StreamDelta]:
        """Take an answer that came in one piece instead of a stream.

        Errors: StreamCutError, StreamFaultError.
        """
        deltas = self._take([body])
        self.is_finished = self._finish is not None
        return deltas

    def reply(self, model: str) -> ModelReply:
        """The whole answer; hosts that leave out `[DONE]` have given a finish reason.

        Errors: StreamCutError when the stream ended before its last event.
        """
        if not self.is_finished:
            self._take(self._events.finish())
        if not self.is_finished and self._finish is None:
            raise StreamCutError("it ended in the middle")
        parts: list[Part] = []
        if self._reasoning:
            parts.append(Reasoning("".join(self._reasoning)))
        if text := "".join(self._text):
            parts.append(Text(text))
        for call in self._calls:
            if call.extra is not None:  # a proof that has to be sent back with the call
                parts.append(Reasoning("", data=json.dumps(call.extra)))
            raw = "".join(call.fragments)
            arguments = call.whole if call.whole is not None and not raw else parse_arguments(raw)
            parts.append(ToolCall(call.id, call.name, arguments, raw or json.dumps(call.whole or {})))
        finish = finish_of(_FINISH.get(self._finish or "", FinishReason.STOP), has_calls=bool(self._calls))
        return ModelReply(parts=tuple(parts), finish_reason=finish, usage=_to_usage(self._usage), model=model)

    def _take(self, events: list[bytes]) -> list[StreamDelta]:
        deltas: list[StreamDelta] = []
        for data in events:
            if data.strip() == b"[DONE]":
                self.is_finished = True
                break
            try:
                self._take_event(parse_event(data), deltas)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise StreamCutError("it sent an event of an unknown shape") from error
        return deltas

    def _take_event(self, event: dict[str, Any], deltas: list[StreamDelta]) -> None:
        if error := event.get("error"):
            raise StreamFaultError(_fault_status(error), event)
        if usage := event.get("usage"):
            self._usage = usage
        choices = event.get("choices")
        if not choices:
            return
        choice = choices[0]
        if choice.get("finish_reason"):
            self._finish = choice["finish_reason"]
            if self._finish == "error":  # OpenRouter's word for a provider that failed in the middle
                raise StreamFaultError(_fault_status(choice.get("error")), choice)
        delta = choice.get("delta") or choice.get("message") or {}
        self._take_text(delta.get("content") or delta.get("refusal") or choice.get("text"), deltas)
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self._reasoning.append(thought)
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._take_call(call, position, deltas)
        if legacy := delta.get("function_call"):
            self._take_call({"index": 0, "function": legacy}, 0, deltas)

    def _take_text(self, content: str | list[Any] | None, deltas: list[StreamDelta]) -> None:
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content if part.get("type") in ("text", "output_text"))
        if content:
            self._text.append(content)
            deltas.append(TextDelta(content))

    def _take_call(self, fragment: dict[str, Any], position: int, deltas: list[StreamDelta]) -> None:
        function = fragment.get("function") or {}
        call_id, name, index = fragment.get("id") or "", function.get("name") or "", fragment.get("index")
        number = self._find(index, call_id, name, position)
        call = self._calls[number]
        is_new = not call.name and bool(name)
        call.id = call.id or call_id or (self._new_id() if name else "")
        call.name = call.name or name
        call.extra = fragment.get("extra_content") or call.extra
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            call.whole = arguments
            arguments = ""
        if arguments:
            call.fragments.append(arguments)
        if arguments or is_new:
            deltas.append(ArgumentsDelta(number, call.name, arguments or ""))

    def _find(self, index: int | None, call_id: str, name: str, position: int) -> int:
        """Which call a fragment belongs to. Hosts leave out the index, or repeat 0 for every parallel call."""
        known = self._by_index.get(index) if index is not None else None
        if known is None and index is None and not (call_id and name) and self._calls:
            known = len(self._calls) - 1
        if known is not None and not (call_id and name and self._calls[known].id not in ("", call_id)):
            return known
        self._calls.append(_Call())
        self._by_index[index if index is not None else position] = len(self._calls) - 1
        return len(self._calls) - 1


def _fault_status(error: object) -> int:
    if not isinstance(error, dict):
        return 500
    for key in ("code", "status", "type"):
        value = error.get(key)
        if isinstance(value, int) and 400 <= value < 600:
            return value
        if isinstance(value, str):
            if value.isdecimal() and 400 <= int(value) < 600:
                return int(value)
            if value in _STATUS:
                return _STATUS[value]
    return 500


def _to_usage(usage: dict[str, Any]) -> Usage:
    prompt, read, write = _count(usage, "prompt_tokens"), 0, 0
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict):
        read, write = _count(details, "cached_tokens"), _count(details, "cache_write_tokens")
    read = read or _count(usage, "prompt_cache_hit_tokens")  # DeepSeek
    details = usage.get("completion_tokens_details")
    return Usage(
        input_tokens=max(0, prompt - read - write),
        output_tokens=_count(usage, "completion_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=_count(details, "reasoning_tokens") if isinstance(details, dict) else 0,
    )


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0
