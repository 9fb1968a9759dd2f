"""The Responses dialect without a network: golden bodies, and streams cut at every byte."""

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from spacebot.config.model import ApiType
from spacebot.config.routing import ThinkingEffort
from spacebot.llm import openai_chat
from spacebot.llm.dialect import StreamCutError, StreamFaultError, Target, ToolsCache
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelMessage,
    ModelReply,
    ModelRequest,
    ProcessKind,
    Reasoning,
    Role,
    StreamDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)
from spacebot.llm.openai_responses import StreamReader, to_wire
from spacebot.llm.routing import resolve
from tests.llm.given import SHELL, ask, custom, long_talk
from tests.llm.given import target as built_in
from tests.stand_ins.openai import RESPONSES_ERROR, render_responses
from tests.stand_ins.serving import Answer, Use


def target(model: str = "gpt-4.1", effort: ThinkingEffort = ThinkingEffort.AUTO) -> Target:
    llm = custom("mine", ApiType.OPENAI_RESPONSES, "https://models.example")
    return replace(resolve(f"mine/{model}", llm), effort=effort)


def body(request: ModelRequest, asked: Target | None = None) -> Any:
    return json.loads(to_wire(request, asked or target(), ToolsCache()))


def read(stream: bytes, size: int | None = None) -> tuple[ModelReply, list[StreamDelta]]:
    ids = count()
    reader, deltas = StreamReader(lambda: f"made_{next(ids)}"), list[StreamDelta]()
    for start in range(0, len(stream), size or len(stream)):
        deltas += reader.feed(stream[start : start + (size or len(stream))])
    return reader.reply("m"), deltas


def stream_of(*events: dict[str, Any]) -> bytes:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()


def completed(*output: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"status": "completed", "output": output, **facts}}


def test_golden_body() -> None:
    assert body(long_talk()) == {
        "model": "gpt-4.1",
        "stream": True,
        "store": False,
        "instructions": "stable\n\nvolatile",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ann: hi"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "one moment"}]},
            {"type": "function_call", "call_id": "a.1", "name": "branch", "arguments": '{"description": "über"}'},
            {"type": "function_call", "call_id": "b", "name": "reply", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a.1", "output": "done"},
            {"type": "function_call_output", "call_id": "b", "output": "bad"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and more"}]},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look ?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,QUJD"},
                ],
            },
        ],
        "max_output_tokens": 500,
        "tools": [
            {
                "type": "function",
                "name": name,
                "description": description,
                "parameters": {"type": "object", "properties": {field: {"type": "string"}}},
                "strict": False,
            }
            for name, description, field in (
                ("reply", "Say something.", "content"),
                ("branch", "Think.", "description"),
            )
        ],
    }


def test_thinking_models_are_asked_for_their_sealed_thoughts_and_get_room_for_them() -> None:
    request = replace(ask("hello", SHELL), max_output_tokens=500)
    asked = body(request, target("gpt-5.4", ThinkingEffort.MAX))
    assert asked["include"] == ["reasoning.encrypted_content"]
    assert asked["reasoning"] == {"effort": "high"}
    assert asked["max_output_tokens"] > 500
    assert not {"include", "reasoning"} & body(request, target("gpt-4.1", ThinkingEffort.LOW)).keys()


RICH = Answer(
    text="Grüße, 世界 🦜",
    reasoning="let me see",
    uses=(Use("reply", {"content": "a\nb"}), Use("branch", {"description": "x"})),
    input_tokens=7,
    output_tokens=9,
    cached_tokens=100,
)


def test_a_stream_cut_at_every_byte_reads_the_same() -> None:
    stream = b"".join(render_responses(RICH))
    reply, deltas = read(stream, 1)
    thought, *rest = reply.parts
    assert isinstance(thought, Reasoning)
    assert thought.text == "let me see"
    assert rest == [
        Text("Grüße, 世界 🦜"),
        ToolCall("call_0", "reply", {"content": "a\nb"}, '{"content": "a\\nb"}'),
        ToolCall("call_1", "branch", {"description": "x"}, '{"description": "x"}'),
    ]
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert reply.usage == Usage(input_tokens=7, output_tokens=9, cache_read_tokens=100)
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Grüße, 世界 🦜"
    calls = [d for d in deltas if isinstance(d, ArgumentsDelta)]
    assert {(d.index, d.name) for d in calls} == {(0, "reply"), (1, "branch")}
    assert "".join(d.fragment for d in calls if d.index == 1) == '{"description": "x"}'
    for size in range(2, 40):
        assert read(stream, size) == (reply, deltas)


@pytest.mark.spec("control 8.2.46", "control 8.2.45", "C-45", "C-46")
def test_calls_are_joined_by_call_id_and_thinking_goes_back_sealed() -> None:
    reply, _ = read(b"".join(render_responses(RICH)))
    answered = ModelMessage(Role.USER, (ToolResult("call_0", "said"), ToolResult("call_1", "thought")))
    request = ModelRequest(
        process=ProcessKind.WORKER, system=(), messages=(ModelMessage.user("go"), reply.message, answered)
    )
    _, thought, _, first, _, result, _ = body(request)["input"]
    assert thought == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "let me see"}],
        "encrypted_content": "sealed==",
    }
    assert first["call_id"] == result["call_id"] == "call_0", "the item's own id joins nothing"
    assert "fc_0" not in json.dumps(body(request))
    # With the next words of a person earlier thinking has done its service.
    later = replace(request, messages=(*request.messages, ModelMessage.assistant("done"), ModelMessage.user("next")))
    assert "sealed==" not in json.dumps(body(later))
    # Another dialect does not mistake the sealed item for its own.
    chat = json.loads(openai_chat.to_wire(request, built_in("gemini/g"), ToolsCache()))
    assert "sealed==" not in json.dumps(chat)


@pytest.mark.spec("C-40")
def test_nothing_to_say_is_an_answer() -> None:
    reply, deltas = read(b"".join(render_responses(Answer())))
    assert (reply.parts, deltas, reply.finish_reason) == ((), [], FinishReason.STOP)


@pytest.mark.spec("control 8.2.49", "C-49")
@pytest.mark.parametrize("size", [1, 1000])
def test_a_stream_without_its_last_event_is_no_answer(size: int) -> None:
    with pytest.raises(StreamCutError):
        read(b"".join(render_responses(RICH)[:-1]) + b"data: [DONE]\n\n", size)


@pytest.mark.spec("control 8.2.50", "C-50")
@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m"}, 429),
        ({"type": "error", "error": {"type": "invalid_request_error", "code": None, "message": "m"}}, 400),
        ({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}}, 500),
        ({"type": "response.failed", "response": {"error": {"code": "context_length_exceeded"}}}, 400),
        ({"type": "response.cancelled", "response": {}}, 500),
    ],
)
def test_failures_in_the_stream_are_told_with_their_status(event: dict[str, Any], status: int) -> None:
    with pytest.raises(StreamFaultError) as caught:
        read(b"".join(render_responses(RICH)[:5]) + stream_of(event))
    assert caught.value.status_code == status


def test_the_stand_ins_error_is_the_servers() -> None:
    with pytest.raises(StreamFaultError) as caught:
        read(RESPONSES_ERROR)
    assert caught.value.status_code == 500


@pytest.mark.parametrize("junk", [b"data: {no json}\n\n", b"data: [1]\n\n", b'data: {"type":"response.completed"}\n\n'])
def test_junk_in_the_stream_is_no_answer(junk: bytes) -> None:
    with pytest.raises(StreamCutError):
        read(junk)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("max_output_tokens", FinishReason.LENGTH), ("content_filter", FinishReason.CONTENT_FILTER)],
)
def test_an_answer_that_was_stopped_says_why(reason: str, finish: FinishReason) -> None:
    assert read(b"".join(render_responses(Answer(text="half a", finish=reason))))[0].finish_reason is finish


def test_hosts_that_stream_little_are_read_all_the_same() -> None:
    message = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "hi "}, {"refusal": "no"}]}
    call = {"type": "function_call", "id": "only", "name": "reply", "arguments": {"content": "x"}}
    reply, deltas = read(stream_of(completed(message, call)))
    assert reply.message.text == "hi no"
    assert reply.message.tool_calls[0].id == "only"
    assert reply.message.tool_calls[0].arguments == {"content": "x"}
    assert TextDelta("hi no") in deltas
    bare = stream_of({"type": "response.output_text.delta", "delta": "a"}, completed())
    assert read(bare)[0].message.text == "a"


@pytest.mark.spec("C-47")
def test_control_characters_in_arguments_are_read() -> None:
    stream = b"".join(render_responses(Answer(uses=(Use("reply", '{"content": "line\nbreak"}'),))))
    assert read(stream)[0].message.tool_calls[0].arguments == {"content": "line\nbreak"}


def test_a_whole_answer_counts_as_a_stream_of_one_event() -> None:
    reader = StreamReader()
    message = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
    whole = {"status": "completed", "output": [message], "usage": {"input_tokens": 3, "output_tokens": 1}}
    assert reader.take_whole(json.dumps(whole).encode()) == [TextDelta("hi")]
    assert reader.reply("m").usage == Usage(input_tokens=3, output_tokens=1)
    with pytest.raises(StreamFaultError):
        StreamReader().take_whole(b'{"status": "failed", "error": {"code": "server_error", "message": "m"}}')


def test_token_counts_mean_the_same_as_elsewhere() -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    assert read(stream_of(completed(usage=usage)))[0].usage == Usage(
        input_tokens=5, output_tokens=3, cache_read_tokens=4, cache_write_tokens=1, reasoning_tokens=2
    )
