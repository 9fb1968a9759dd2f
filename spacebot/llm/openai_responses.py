"""The Responses dialect: input items instead of messages, and typed events instead of chunks.

Nothing is kept at the provider: each request carries the whole conversation, and a model's thinking travels back as
the sealed item that it came as. An item has an `id` of its own; a call and its result are joined by `call_id`.

Flow:   to_wire -> openai_client.post -> StreamReader -> ModelReply
Floor:  llm; may import base, config
Source: control spec 2.9, 2.10, 2.13; pitfalls 40, 45 to 50, 57; developers.openai.com "Responses", November 2026
"""

import json
import logging
import re
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

from spacebot.base.errors import ModelRejectedError
from spacebot.base.ids import new_uuid
from spacebot.base.telemetry import kv
from spacebot.llm.dialect import (
    REASONING_ITEM,
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
from spacebot.llm.openai_client import fault_status, load, post
from spacebot.llm.sse import EventReader
from spacebot.llm.transport import Transport

log = logging.getLogger(__name__)

CALL_ID_CHARACTERS = 64  # longer ones, of other providers, are refused

_THINKING_REFUSED = re.compile(r"reasoning|encrypted")  # in the words of a refusal
_KEPT = ("id", "summary", "encrypted_content")  # of a thinking item; what the provider reads back
_LIMITS = {"max_output_tokens": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}


class OpenAiResponsesDialect:
    """Asks models behind the Responses API."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tools = ToolsCache()
        self._refused = RefusedThinking()
        self.is_loaded = False

    def load(self) -> None:
        """Import the SDK: about a second of CPU, so never on the loop."""
        load(self._transport)
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
        body = await encode(request, partial(to_wire, request, target, self._tools, refused=self._refused))
        return await post(self._transport, target, "/responses", body, StreamReader(), on_delta)


def to_wire(request: ModelRequest, target: Target, tools: ToolsCache, *, refused: Container[Reasoning] = ()) -> bytes:
    """The request's body.

    Args:
        refused: thinking of the present run of calls that does not go back to the model.
    """
    model = target.wire_model
    is_thinker = thinks_like_openai(model)
    body: dict[str, object] = {"model": model, "stream": True, "store": False}
    if instructions := "\n\n".join(block.text for block in request.system if block.text.strip()):
        body["instructions"] = instructions
    body["input"] = _input(request.messages, refused)
    if is_thinker:
        body["include"] = ["reasoning.encrypted_content"]
    if effort := openai_effort(model, target.effort, has_tools=bool(request.tools), is_chat=False):
        body["reasoning"] = {"effort": effort}
    if request.max_output_tokens is not None:
        body["max_output_tokens"] = request.max_output_tokens + (THINKING_ROOM if is_thinker else 0)
    if not request.tools:
        return to_json_bytes(body)
    return splice(body, "tools", tools.get(request.tools, 0, _render_tools))


def _render_tools(specs: Sequence[ToolSpec]) -> list[dict[str, object]]:
    return [
        {
            "type": "function",
            "name": spec.name,
            "description": spec.description,
            "parameters": spec.schema,
            "strict": False,  # our schemas have optional fields, which strict ones must not
        }
        for spec in specs
    ]


def _input(messages: Sequence[ModelMessage], refused: Container[Reasoning]) -> list[dict[str, object]]:
    items: list[dict[str, object]] = []
    replayed_from = run_start(messages)
    for i, message in enumerate(messages):
        if message.role is Role.USER:
            items += _user(message)
        else:
            items += _assistant(message, refused if i >= replayed_from else None)
    if not items:  # a request needs something to answer
        items.append(_message("user", [{"type": "input_text", "text": "…"}]))
    return items


def _message(role: str, content: list[dict[str, object]]) -> dict[str, object]:
    return {"type": "message", "role": role, "content": content}


def _user(message: ModelMessage) -> list[dict[str, object]]:
    # Results come first: they have to follow the calls that they answer.
    items: list[dict[str, object]] = [
        {"type": "function_call_output", "call_id": part.call_id[:CALL_ID_CHARACTERS], "output": part.text}
        for part in message.parts
        if isinstance(part, ToolResult)
    ]
    content: list[dict[str, object]] = []
    for part in message.parts:
        if isinstance(part, Text) and part.text.strip():
            content.append({"type": "input_text", "text": part.text})
        elif isinstance(part, Image):
            url = Base64(part.data, prefix=f"data:{part.media_type};base64,")
            content.append({"type": "input_image", "image_url": url})
    return [*items, _message("user", content)] if content else items


def _assistant(message: ModelMessage, refused: Container[Reasoning] | None) -> list[dict[str, object]]:
    """The items of a message; of its thinking those that were not refused, and none without that argument."""
    items: list[dict[str, object]] = []
    for part in message.parts:
        if isinstance(part, Reasoning):
            is_ours = part.data is not None and part.data.startswith(REASONING_ITEM)
            if is_ours and refused is not None and part not in refused:
                items.append(json.loads(part.data or ""))
        elif isinstance(part, Text) and part.text.strip():
            items.append(_message("assistant", [{"type": "output_text", "text": part.text}]))
        elif isinstance(part, ToolCall):
            raw = json.dumps(part.arguments, ensure_ascii=False) if part.arguments is not None else "{}"
            items.append(
                {
                    "type": "function_call",
                    "call_id": part.id[:CALL_ID_CHARACTERS],
                    "name": part.name,
                    "arguments": raw,
                }
            )
    if items and items[-1]["type"] == "reasoning":
        items.pop()  # thinking that nothing followed is refused
    return items


class _Item:
    """An output item while it grows."""

    __slots__ = ("call_index", "facts", "fragments", "is_done")

    def __init__(self, facts: dict[str, Any], call_index: int) -> None:
        self.facts = facts
        self.call_index = call_index
        self.fragments: list[str] = []
        self.is_done = False

    @property
    def name(self) -> str:
        """Of the tool that is called."""
        return text_in(self.facts.get("name") or "")


class StreamReader:
    """Reads an answer's stream: bytes in, deltas out, the whole reply at the end.

    Args:
        new_id: makes ids for calls that come without one.
    """

    def __init__(self, new_id: Callable[[], str] = lambda: f"call_{new_uuid()}") -> None:
        self._new_id = new_id
        self._events = EventReader()
        self._items: dict[int, _Item] = {}  # by output index
        self._calls = 0
        self._usage: object = None
        self._finish = FinishReason.STOP
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
        response = parse_event(body)
        deltas: list[StreamDelta] = []
        with reading_events():
            kind = "failed" if response.get("error") else text_in(response.get("status") or "completed")
            if kind == "completed":
                response["output"]  # no answer without it
            self._take_event({"type": f"response.{kind}", "response": response}, deltas)
        return deltas

    def reply(self, model: str) -> ModelReply:
        """The whole answer.

        Errors: StreamCutError when the stream ended before its last event.
        """
        if not self.is_finished:
            self._take(self._events.finish())
        if not self.is_finished:
            raise StreamCutError("it ended in the middle")
        with reading_events():
            parts = tuple(part for index in sorted(self._items) for part in self._parts(self._items[index]))
        finish = finish_of(self._finish, has_calls=self._calls > 0)
        return ModelReply(parts=parts, finish_reason=finish, usage=_to_usage(self._usage), model=model)

    def _take(self, events: list[bytes]) -> list[StreamDelta]:
        deltas: list[StreamDelta] = []
        with reading_events():
            for data in events:
                if data.strip() != b"[DONE]":  # some hosts add it; it ends nothing
                    self._take_event(parse_event(data), deltas)
        return deltas

    def _take_event(self, event: dict[str, Any], deltas: list[StreamDelta]) -> None:
        match event.get("type"):
            case "response.output_text.delta" | "response.refusal.delta":
                self._grow(self._item(event, "message"), event["delta"], deltas)
            case "response.function_call_arguments.delta":
                self._grow(self._item(event, "function_call"), event["delta"], deltas)
            case "response.output_item.added":
                self._begin(event["output_index"], event["item"], deltas)
            case "response.output_item.done":
                self._finish_item(event["output_index"], event["item"], deltas)
            case "response.completed" | "response.incomplete":
                self._end(event["response"], deltas)
            case "response.failed" | "response.cancelled":
                response = event.get("response") or {}
                error = response.get("error") or {"message": f"the answer {event['type'].rpartition('.')[2]}"}
                raise StreamFaultError(fault_status(error), {"error": error})
            case "error":
                error = event.get("error") or {key: value for key, value in event.items() if key != "type"}
                raise StreamFaultError(fault_status(error), {"error": error})

    def _item(self, event: dict[str, Any], kind: str) -> _Item:
        """The item that a delta belongs to, also where nothing announced it."""
        index = event.get("output_index", 0)
        known = self._items.get(index)
        return known if known is not None else self._begin(index, {"type": kind, "id": event.get("item_id")}, [])

    def _begin(self, index: int, facts: dict[str, Any], deltas: list[StreamDelta]) -> _Item:
        item = self._items[index] = _Item(facts, self._calls)
        if facts["type"] == "function_call":
            self._calls += 1
            deltas.append(ArgumentsDelta(item.call_index, item.name, ""))
        return item

    def _grow(self, item: _Item, text: str, deltas: list[StreamDelta]) -> None:
        if not text:
            return
        item.fragments.append(text_in(text))
        if item.facts["type"] == "function_call":
            deltas.append(ArgumentsDelta(item.call_index, item.name, text))
        else:
            deltas.append(TextDelta(text))

    def _finish_item(self, index: int, facts: dict[str, Any], deltas: list[StreamDelta]) -> None:
        """An item is whole; what was not streamed of it is told now."""
        item = self._items.get(index) or self._begin(index, facts, deltas)
        if item.is_done:
            return
        item.facts, item.is_done = facts, True
        if not item.fragments and facts["type"] in ("message", "function_call"):
            self._grow(item, _whole_text(facts), deltas)

    def _end(self, response: dict[str, Any], deltas: list[StreamDelta]) -> None:
        self._usage = response.get("usage")
        for index, facts in enumerate(response.get("output") or ()):
            self._finish_item(index, facts, deltas)
        details = response.get("incomplete_details") or {}
        if response.get("status") == "incomplete" or details:
            self._finish = _LIMITS.get(details.get("reason", ""), FinishReason.LENGTH)
        self.is_finished = True

    def _parts(self, item: _Item) -> list[Part]:
        facts, text = item.facts, "".join(item.fragments)
        match facts["type"]:
            case "message" if text:
                return [Text(text)]
            case "function_call":
                call_id = facts.get("call_id") or facts.get("id") or self._new_id()
                return [ToolCall(text_in(call_id), item.name, parse_arguments(text), text)]
            case "reasoning" if facts.get("encrypted_content"):
                summary = "\n".join(piece.get("text") or "" for piece in facts.get("summary") or ())
                kept = {"type": "reasoning", "summary": []} | {k: facts[k] for k in _KEPT if facts.get(k) is not None}
                return [Reasoning(summary, data=json.dumps(kept, ensure_ascii=False))]
        return []


def _whole_text(facts: dict[str, Any]) -> str:
    """The words of a whole message, or the arguments of a whole call."""
    if facts["type"] == "function_call":
        arguments = facts.get("arguments") or ""
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    content = facts.get("content") or ()
    if isinstance(content, str):
        return content
    return "".join(piece.get("text") or piece.get("refusal") or "" for piece in content)


def _to_usage(usage: object) -> Usage:
    given = usage if isinstance(usage, dict) else {}
    details = given.get("input_tokens_details")
    read, write = count_in(details, "cached_tokens"), count_in(details, "cache_write_tokens")
    return Usage(
        input_tokens=max(0, count_in(given, "input_tokens") - read - write),
        output_tokens=count_in(given, "output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=count_in(given.get("output_tokens_details"), "reasoning_tokens"),
    )
