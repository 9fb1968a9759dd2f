"""The dialect of chat completions, which most providers speak, each a little differently.

Flow:   to_wire -> openai_client.post -> StreamReader -> ModelReply
Floor:  llm; may import base, config
Source: control spec 2.9 to 2.11, 2.13, 2.15, pitfalls 40 to 50, 57
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from spacebot.base.errors import ModelRejectedError
from spacebot.base.ids import new_uuid
from spacebot.llm.anthropic import RETENTION_VARIABLE
from spacebot.llm.copilot import CopilotTokens, copilot_headers
from spacebot.llm.dialect import (
    REASONING_ITEM,
    Base64,
    StreamCutError,
    StreamFaultError,
    Target,
    ToolsCache,
    count_in,
    encode,
    finish_of,
    parse_arguments,
    parse_event,
    reading_events,
    splice,
    text_in,
    to_json_bytes,
)
from spacebot.llm.effort import THINKING_ROOM, openai_effort, thinks_like_openai
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
from spacebot.llm.openai_client import fault_status, load, max_tokens_field, post
from spacebot.llm.sse import EventReader
from spacebot.llm.transport import Transport

PATH = "/chat/completions"

_MARK = {"type": "ephemeral"}  # OpenRouter hands it on to Anthropic
_SPOKEN = ("text", "output_text", "refusal", None)  # kinds of content that are words for people
_FINISH = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class OpenAiChatDialect:
    """Asks models behind chat completions.

    Args:
        copilot: buys tokens for the provider that wants them; None: it keeps them in memory only.
    """

    def __init__(self, transport: Transport, copilot: CopilotTokens | None = None) -> None:
        self._transport = transport
        self._copilot = copilot or CopilotTokens(transport)
        self._tools = ToolsCache()
        self.is_loaded = False

    def load(self) -> None:
        """Import the SDK: about a second of CPU, so never on the loop."""
        load(self._transport)
        self.is_loaded = True

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Ask once and read the stream to its end."""
        retention = os.environ.get(RETENTION_VARIABLE, "short")
        body = await encode(request, partial(to_wire, request, target, self._tools, retention=retention))
        ask = partial(post, self._transport)
        if not target.entry.exchanges_key:
            return await ask(target, PATH, body, StreamReader(), on_delta)
        headers = copilot_headers(request)
        bought = await self._copilot.exchange(target)
        try:
            return await ask(bought, PATH, body, StreamReader(), on_delta, headers=headers)
        except ModelRejectedError as error:
            if error.status_code != 401:
                raise
        bought = await self._copilot.exchange(target, refused=bought.api_key)
        return await ask(bought, PATH, body, StreamReader(), on_delta, headers=headers)


def to_wire(request: ModelRequest, target: Target, tools: ToolsCache, *, retention: str = "short") -> bytes:
    """The request's body.

    Args:
        retention: `none` sets no marks for Anthropic's cache; they are set for its models only, where a host takes
            them: last stable system block and last message before the newest words of the user.
    """
    entry = target.entry
    has_marks = retention != "none" and entry.cache_marks and target.wire_model.startswith("anthropic/")
    messages: list[dict[str, object]] = []
    if system := _system(request, has_marks=has_marks):
        messages.append({"role": "system", "content": system})
    newest_words = 0  # index in `messages` of the first part of the user's newest words
    for message in request.messages:
        if message.role is Role.USER:
            newest_words = len(messages) if message.text else newest_words
            messages += _user(message)
        else:
            messages += _assistant(message, replays_reasoning=entry.replays_reasoning)
    if has_marks:
        _mark_last_words(messages[:newest_words])
    body: dict[str, object] = {"model": target.wire_model, "messages": messages, "stream": True}
    if entry.stream_usage:
        body["stream_options"] = {"include_usage": True}
    has_tools = bool(request.tools)
    if request.max_output_tokens is not None:
        room = THINKING_ROOM if thinks_like_openai(target.wire_model) else 0
        body[max_tokens_field(target)] = request.max_output_tokens + room
    if effort := openai_effort(target.wire_model, target.effort, has_tools=has_tools, is_chat=True):
        body["reasoning_effort"] = effort
    if not has_tools:
        return to_json_bytes(body)
    return splice(body, "tools", tools.get(request.tools, 0, _render_tools))


def _mark_last_words(messages: list[dict[str, object]]) -> None:
    """Mark the last message that has words of its own: marks stand on pieces of text only."""
    for message in reversed(messages):
        if message["role"] == "system":
            return
        if message["role"] != "tool" and isinstance(text := message["content"], str):
            message["content"] = [{"type": "text", "text": text, "cache_control": _MARK}]
            return


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
            if part.data and part.data.startswith("{") and not part.data.startswith(REASONING_ITEM):
                extra = part.data
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
        self._usage: object = None
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
        with reading_events():
            finish = finish_of(_FINISH.get(self._finish or "", FinishReason.STOP), has_calls=bool(self._calls))
            return ModelReply(
                parts=tuple(self._parts()), finish_reason=finish, usage=_to_usage(self._usage), model=model
            )

    def _parts(self) -> list[Part]:
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
        return parts

    def _take(self, events: list[bytes]) -> list[StreamDelta]:
        deltas: list[StreamDelta] = []
        with reading_events():
            for data in events:
                if data.strip() == b"[DONE]":
                    self.is_finished = True
                    break
                self._take_event(parse_event(data), deltas)
        return deltas

    def _take_event(self, event: dict[str, Any], deltas: list[StreamDelta]) -> None:
        if error := event.get("error"):
            raise StreamFaultError(fault_status(error), event)
        if usage := event.get("usage"):
            self._usage = usage
        choices = event.get("choices")
        if not choices:
            return
        choice = choices[0]
        if choice.get("finish_reason"):
            self._finish = choice["finish_reason"]
            if self._finish == "error":  # OpenRouter's word for a provider that failed in the middle
                raise StreamFaultError(fault_status(choice.get("error")), choice)
        delta = choice.get("delta") or choice.get("message") or {}
        self._take_text(delta.get("content") or delta.get("refusal") or choice.get("text"), deltas)
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self._reasoning.append(text_in(thought))
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._take_call(call, position, deltas)
        if legacy := delta.get("function_call"):
            self._take_call({"index": 0, "function": legacy}, 0, deltas)

    def _take_text(self, content: object, deltas: list[StreamDelta]) -> None:
        if isinstance(content, dict):
            content = [content]
        if isinstance(content, list):
            content = "".join(_words_of(part) for part in content)
        if content:
            self._text.append(text_in(content))
            deltas.append(TextDelta(text_in(content)))

    def _take_call(self, fragment: dict[str, Any], position: int, deltas: list[StreamDelta]) -> None:
        function = fragment.get("function") or {}
        call_id, name, index = fragment.get("id") or "", function.get("name") or "", fragment.get("index")
        number = self._find(index, call_id, name, position)
        call = self._calls[number]
        is_new = not call.name and bool(name)
        call.id = call.id or text_in(call_id) or (self._new_id() if name else "")
        call.name = call.name or text_in(name)
        call.extra = fragment.get("extra_content") or call.extra
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            call.whole = arguments
            arguments = ""
        if arguments:
            call.fragments.append(text_in(arguments))
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


def _words_of(part: Any) -> str:
    """The words of a piece of content; thinking among them is not for people."""
    if isinstance(part, str):
        return part
    return text_in(part.get("text") or part.get("refusal") or "") if part.get("type") in _SPOKEN else ""


def _to_usage(usage: object) -> Usage:
    prompt, given = count_in(usage, "prompt_tokens"), usage if isinstance(usage, dict) else {}
    details = given.get("prompt_tokens_details")
    read, write = count_in(details, "cached_tokens"), count_in(details, "cache_write_tokens")
    read = read or count_in(usage, "prompt_cache_hit_tokens")  # DeepSeek
    return Usage(
        input_tokens=max(0, prompt - read - write),
        output_tokens=count_in(usage, "completion_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=count_in(given.get("completion_tokens_details"), "reasoning_tokens"),
    )
