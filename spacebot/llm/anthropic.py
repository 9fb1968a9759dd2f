"""The dialect of Anthropic's Messages API, which other hosts speak too.

The SDK sends and checks; the stream is read here, because the SDK's own parsing costs ten times the CPU.

Flow:   to_wire -> AsyncAnthropic.post -> StreamReader -> ModelReply
Floor:  llm; may import base, config
Source: control spec 2.9, 2.11, 2.13, pitfalls 33, 39, 41, 47 to 50; platform.claude.com/docs, November 2026
"""

import json
import logging
import os
import re
from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from spacebot.base.errors import ModelRejectedError
from spacebot.base.telemetry import kv
from spacebot.llm import oauth_identity
from spacebot.llm.access import ANTHROPIC_HOST, credential, session
from spacebot.llm.ambient import without_ambient
from spacebot.llm.dialect import (
    AuthKind,
    Base64,
    RefusedThinking,
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
    run_start,
    splice,
    text_in,
    to_json_bytes,
)
from spacebot.llm.effort import THINKING_ROOM, claude_effort
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
from spacebot.llm.transport import STREAM_HEADERS, SdkErrors, Shard, Transport, read_stream, require_stream, translate

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

log = logging.getLogger(__name__)

MAX_TOKENS = 16_000  # when the request names none; control spec 2.9
RETENTION_VARIABLE = "PI_CACHE_RETENTION"  # none, short (default), long
VERSION = "2023-06-01"  # of the wire format that is written and read here, whatever the SDK prefers
HEADERS_VARIABLE = "ANTHROPIC_CUSTOM_HEADERS"  # the SDK sends what it holds to whatever host
BETA = "fine-grained-tool-streaming-2025-05-14"  # arguments arrive as they are written

_ALIEN_ID = re.compile(r"[^A-Za-z0-9_-]")
_THINKING_REFUSED = re.compile(r"thinking|signature")  # in the words of a refusal
_DATED_DOT = re.compile(r"(?<=\d)\.(?=\d)")
_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500,
    "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
_FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "pause_turn": FinishReason.STOP,
    "tool_use": FinishReason.TOOL_CALLS,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.CONTENT_FILTER,
}


class AnthropicDialect:
    """Asks models behind the Messages API."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tools = ToolsCache()
        self._refused = RefusedThinking()
        self.is_loaded = False

    def load(self) -> None:
        """Import the SDK: about two seconds of CPU, so never on the loop."""
        import anthropic  # noqa: F401

        self._transport.prepare()
        self.is_loaded = True

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """Ask and read the stream to its end; once more without earlier thinking, where that is what is refused."""
        try:
            return await self._ask(request, target, on_delta)
        except ModelRejectedError as error:
            is_thinking = error.status_code == 400 and _THINKING_REFUSED.search(str(error))
            if not is_thinking or not self._refused.note(request):
                raise
        log.info("model asked again without its earlier thinking", extra=kv(model=target.model))
        return await self._ask(request, target, on_delta)

    async def _ask(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        import anthropic

        retention = os.environ.get(RETENTION_VARIABLE, "short")
        write = partial(to_wire, request, target, self._tools, retention=retention, refused=self._refused)
        body = await encode(request, write)
        sdk = SdkErrors(anthropic.AnthropicError, anthropic.APIStatusError)
        reader = StreamReader()

        def take(piece: bytes) -> bool:
            for delta in reader.feed(piece):
                on_delta(delta)
            return reader.is_finished

        async with self._transport.shard() as shard:
            with translate(target, sdk):
                response = await _client(shard, target).post(
                    "/v1/messages",
                    cast_to=httpx2.Response,
                    content=body,
                    options={"headers": _headers(target)},
                    stream=True,
                    stream_cls=anthropic.AsyncStream[Any],
                )
                assert isinstance(response, httpx2.Response)
                try:
                    require_stream(response)
                    await read_stream(response, take)
                    return reader.reply(target.model)
                finally:
                    await response.aclose()


def _headers(target: Target) -> dict[str, str]:
    """Those of one call; a token of a login lives for hours only, so no client is kept for it."""
    own = dict(STREAM_HEADERS)
    return own | (oauth_identity.headers(target.api_key) if target.auth is AuthKind.OAUTH else {})


def _client(shard: Shard, target: Target) -> "AsyncAnthropic":
    is_login = target.auth is AuthKind.OAUTH
    key = ("anthropic", target.provider, target.base_url, "login" if is_login else f"{target.auth} {target.api_key}")
    if (bound := shard.bound.get(key)) is None:
        import anthropic

        shown = {} if is_login else credential(target)
        headers: dict[str, Any] = {
            "anthropic-version": VERSION,
            "X-Api-Key": shown.get("x-api-key", anthropic.Omit()),
            "Authorization": shown.get("authorization", anthropic.Omit()),
            **session(target),
            **target.entry.headers,
        }
        if urlsplit(target.base_url).hostname != ANTHROPIC_HOST:
            headers = without_ambient(HEADERS_VARIABLE, anthropic.Omit()) | headers
        else:
            headers |= {"anthropic-beta": BETA}
        bound = shard.bound[key] = anthropic.AsyncAnthropic(
            api_key="none" if is_login else target.api_key or "none",
            base_url=target.base_url,
            http_client=shard.http,
            max_retries=0,
            default_headers=headers,
        )
    client: AsyncAnthropic = bound
    return client


def wire_model(name: str, aliases: Mapping[str, str]) -> str:
    """A model's name as Anthropic reads it: `claude-haiku-4.5` becomes `claude-haiku-4-5`, aliases get their date."""
    name = _DATED_DOT.sub("-", name) if name.startswith("claude") else name
    return aliases.get(name, name)


def to_wire(
    request: ModelRequest,
    target: Target,
    tools: ToolsCache,
    *,
    retention: str = "short",
    refused: Container[Reasoning] = (),
) -> bytes:
    """The request's body.

    Args:
        retention: how long the provider may keep the marked prefix: `none`, `short` or `long`. Four marks are
            allowed and used: last tool, last stable system block, last message before the newest words of the
            user (they carry volatile text), and the last message while tools are running.
        refused: thinking of the present run of calls that does not go back to the model.
    """
    mark = _cache_mark(retention, target)
    model = wire_model(target.wire_model, target.entry.aliases)
    effort = claude_effort(target.wire_model, model, target.effort)
    limit = (request.max_output_tokens or MAX_TOKENS) + (THINKING_ROOM if effort else 0)
    body: dict[str, object] = {"model": model, "max_tokens": limit, "stream": True}
    if effort:
        body |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": effort}}
    if system := _system(request, mark):
        body["system"] = system
    body["messages"] = _messages(request.messages, mark, refused)
    if not request.tools:
        return to_json_bytes(body)

    def render(specs: Sequence[ToolSpec]) -> list[dict[str, object]]:
        rendered: list[dict[str, object]] = [
            {"name": spec.name, "description": spec.description, "input_schema": spec.schema} for spec in specs
        ]
        if mark:
            rendered[-1]["cache_control"] = mark
        return rendered

    variant = len(mark) if mark else 0  # the same tools may be wanted with either mark, or none
    return splice(body, "tools", tools.get(request.tools, variant, render))


def _cache_mark(retention: str, target: Target) -> dict[str, str] | None:
    if retention == "none" or not target.entry.cache_marks:
        return None  # any unknown word means `short`
    if retention == "long" and urlsplit(target.base_url).hostname == ANTHROPIC_HOST:
        return {"type": "ephemeral", "ttl": "1h"}
    return {"type": "ephemeral"}


def _system(request: ModelRequest, mark: dict[str, str] | None) -> list[dict[str, object]]:
    blocks: list[dict[str, object]] = []
    last_stable: dict[str, object] | None = None
    for block in request.system:
        if not block.text.strip():
            continue
        blocks.append({"type": "text", "text": block.text})
        if block.is_stable:
            last_stable = blocks[-1]
    if mark and last_stable is not None:
        last_stable["cache_control"] = mark
    return blocks


def _messages(
    messages: Sequence[ModelMessage], mark: dict[str, str] | None, refused: Container[Reasoning]
) -> list[dict[str, Any]]:
    wire: list[dict[str, Any]] = []
    newest_words = -1  # index in `wire` of the user's newest words
    replayed_from = run_start(messages)
    for i, message in enumerate(messages):
        blocks = _blocks(message, refused if i >= replayed_from else None)
        if not blocks:
            continue  # empty blocks are refused
        if wire and wire[-1]["role"] == message.role:
            wire[-1]["content"] += blocks
        else:
            wire.append({"role": str(message.role), "content": blocks})
        if message.role is Role.USER and message.text:
            newest_words = len(wire) - 1
    if not wire or wire[0]["role"] == "assistant":  # a conversation has to begin with the user
        wire.insert(0, {"role": "user", "content": [{"type": "text", "text": "…"}]})
        newest_words += 1
    for message_blocks in (entry["content"] for entry in wire if entry["role"] == "user"):
        message_blocks.sort(key=lambda block: block["type"] != "tool_result")  # results have to come first
    if wire[-1]["role"] == "assistant" and wire[-1]["content"][-1]["type"] == "text":
        last = wire[-1]["content"][-1]
        last["text"] = last["text"].rstrip() or "…"  # trailing space at the end is refused
    if mark:
        _mark_last(wire, newest_words - 1, mark)
        if newest_words < len(wire) - 1:
            _mark_last(wire, len(wire) - 1, mark)
    return wire


def _mark_last(wire: list[dict[str, Any]], index: int, mark: dict[str, str]) -> None:
    if index < 0:
        return
    for block in reversed(wire[index]["content"]):
        if block["type"] in ("text", "tool_use", "tool_result", "image"):
            block["cache_control"] = mark
            return


def _blocks(message: ModelMessage, refused: Container[Reasoning] | None) -> list[dict[str, object]]:
    """The blocks of a message; of its thinking those that were not refused, and none without that argument."""
    blocks: list[dict[str, object]] = []
    for part in message.parts:
        match part:
            case Text(text):
                if text.strip():
                    blocks.append({"type": "text", "text": text})
            case Image(media_type, data):
                source = {"type": "base64", "media_type": media_type, "data": Base64(data)}
                blocks.append({"type": "image", "source": source})
            case ToolCall():
                arguments = part.arguments if part.arguments is not None else {}
                blocks.append({"type": "tool_use", "id": _own_id(part.id), "name": part.name, "input": arguments})
            case ToolResult():
                result: dict[str, object] = {"type": "tool_result", "tool_use_id": _own_id(part.call_id)}
                if part.text:
                    result["content"] = part.text
                if part.is_error:
                    result["is_error"] = True
                blocks.append(result)
            case Reasoning(text, signature, data) if refused is not None and part not in refused:
                if signature:
                    blocks.append({"type": "thinking", "thinking": text, "signature": signature})
                elif data and not data.startswith("{"):  # OpenAI's dialects keep JSON there
                    blocks.append({"type": "redacted_thinking", "data": data})
    return blocks


def _own_id(call_id: str) -> str:
    """Other providers' ids hold characters that are refused here; the same change hits call and result."""
    return _ALIEN_ID.sub("_", call_id)[:64] or "_"


class _Block:
    """A content block while it grows."""

    __slots__ = ("call_index", "fragments", "start")

    def __init__(self, start: dict[str, Any], call_index: int) -> None:
        self.start = start
        self.call_index = call_index
        self.fragments: list[str] = []


class StreamReader:
    """Reads an answer's stream: bytes in, deltas out, the whole reply at the end."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._blocks: dict[int, _Block] = {}
        self._signatures: dict[int, str] = {}
        self._usage: dict[str, object] = {}
        self._finish: str | None = None
        self._calls = 0
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

    def reply(self, model: str) -> ModelReply:
        """The whole answer.

        Errors: StreamCutError when the stream ended before its last event.
        """
        if not self.is_finished:
            self._take(self._events.finish())
        if not self.is_finished:
            raise StreamCutError("it ended in the middle")
        usage = Usage(
            input_tokens=count_in(self._usage, "input_tokens"),
            output_tokens=count_in(self._usage, "output_tokens"),
            cache_read_tokens=count_in(self._usage, "cache_read_input_tokens"),
            cache_write_tokens=count_in(self._usage, "cache_creation_input_tokens"),
            reasoning_tokens=count_in(self._usage.get("output_tokens_details"), "thinking_tokens"),
        )
        with reading_events():
            parts = tuple(part for index in sorted(self._blocks) if (part := self._part(index)) is not None)
            finish = finish_of(_FINISH.get(self._finish or "", FinishReason.STOP), has_calls=self._calls > 0)
            return ModelReply(parts=parts, finish_reason=finish, usage=usage, model=model)

    def _take(self, events: list[bytes]) -> list[StreamDelta]:
        deltas: list[StreamDelta] = []
        with reading_events():
            for data in events:
                self._take_event(parse_event(data), deltas)
        return deltas

    def _take_event(self, event: dict[str, Any], deltas: list[StreamDelta]) -> None:
        match event["type"]:
            case "content_block_delta":
                self._take_delta(event["index"], event["delta"], deltas)
            case "content_block_start":
                start = event["content_block"]
                block = self._blocks[event["index"]] = _Block(start, self._calls)
                if start["type"] == "tool_use":
                    self._calls += 1
                    text_in(start["id"])
                    deltas.append(ArgumentsDelta(block.call_index, text_in(start["name"]), ""))
                elif start["type"] == "text" and start.get("text"):
                    block.fragments.append(text_in(start["text"]))
                    deltas.append(TextDelta(start["text"]))
            case "message_start":
                self._take_usage(event["message"].get("usage"))
            case "message_delta":
                self._finish = event["delta"].get("stop_reason") or self._finish
                self._take_usage(event.get("usage"))
            case "message_stop":
                self.is_finished = True
            case "error":
                error = event.get("error") or {}
                raise StreamFaultError(_STATUS.get(text_in(error.get("type", "")), 500), event)

    def _take_delta(self, index: int, delta: dict[str, Any], deltas: list[StreamDelta]) -> None:
        block = self._blocks[index]
        match delta["type"]:
            case "text_delta":
                block.fragments.append(text_in(delta["text"]))
                if delta["text"]:
                    deltas.append(TextDelta(delta["text"]))
            case "input_json_delta":
                block.fragments.append(text_in(delta["partial_json"]))
                if delta["partial_json"]:
                    deltas.append(ArgumentsDelta(block.call_index, block.start["name"], delta["partial_json"]))
            case "thinking_delta":
                block.fragments.append(text_in(delta["thinking"]))
            case "signature_delta":
                self._signatures[index] = self._signatures.get(index, "") + delta["signature"]

    def _take_usage(self, usage: dict[str, Any] | None) -> None:
        for name, count in (usage or {}).items():
            if isinstance(count, int | dict):
                self._usage[name] = count  # counts are totals so far

    def _part(self, index: int) -> Part | None:
        block = self._blocks[index]
        start, text = block.start, "".join(block.fragments)
        match start["type"]:
            case "text":
                return Text(text) if text else None
            case "tool_use":
                if not text and start.get("input"):  # some hosts send the arguments whole
                    text = json.dumps(start["input"])
                return ToolCall(start["id"], start["name"], parse_arguments(text), text)
            case "thinking":
                text = start.get("thinking", "") + text
                return Reasoning(text, self._signatures.get(index) or text_in(start.get("signature") or "") or None)
            case "redacted_thinking":
                return Reasoning("", data=text_in(start.get("data")))
        return None
