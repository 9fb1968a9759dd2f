"""The chat completions dialect without a network: golden bodies, and streams cut at every byte."""

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.config.routing import ThinkingEffort
from spacebot.llm.dialect import StreamCutError, StreamFaultError, ToolsCache
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
    Usage,
)
from spacebot.llm.openai_chat import StreamReader, to_wire
from tests.llm.given import REPLY, ask, long_talk, target
from tests.stand_ins.openai import ERROR_EVENT, render
from tests.stand_ins.serving import Answer, Use


def body(request: ModelRequest, model: str = "openai/gpt-4.1") -> Any:
    return json.loads(to_wire(request, target(model), ToolsCache()))


def read(stream: bytes, size: int | None = None) -> tuple[ModelReply, list[StreamDelta]]:
    ids = count()
    reader, deltas = StreamReader(lambda: f"made_{next(ids)}"), list[StreamDelta]()
    for start in range(0, len(stream), size or len(stream)):
        deltas += reader.feed(stream[start : start + (size or len(stream))])
    return reader.reply("m"), deltas


def stream_of(*deltas: dict[str, Any], finish: str | None = "stop", done: bool = True, **facts: Any) -> bytes:
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    if finish:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **facts})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def test_golden_body() -> None:
    assert body(long_talk()) == {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": "stable\n\nvolatile"},
            {"role": "user", "content": "ann: hi"},
            {
                "role": "assistant",
                "content": "one moment",
                "tool_calls": [
                    {
                        "id": "a.1",
                        "type": "function",
                        "function": {"name": "branch", "arguments": '{"description": "über"}'},
                    },
                    {"id": "b", "type": "function", "function": {"name": "reply", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "a.1", "content": "done"},
            {"role": "tool", "tool_call_id": "b", "content": "bad"},
            {"role": "user", "content": "and more"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look ?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                ],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 500,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "reply",
                    "description": "Say something.",
                    "parameters": {"type": "object", "properties": {"content": {"type": "string"}}},
                },
            },
            {
                "type": "function",
                "function": {
                    "name": "branch",
                    "description": "Think.",
                    "parameters": {"type": "object", "properties": {"description": {"type": "string"}}},
                },
            },
        ],
    }


def test_the_shortest_body() -> None:
    assert body(ask()) == {
        "model": "gpt-4.1",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_peculiarities_come_from_the_table() -> None:
    mistral = body(long_talk(), "mistral/mistral-large-latest")
    assert "stream_options" not in mistral
    assert mistral["max_tokens"] == 500
    claude = body(long_talk(), "openrouter/anthropic/claude-sonnet-4")
    assert claude["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    kimi = body(long_talk(), "moonshot/kimi-k2.5")
    assert kimi["messages"][2]["reasoning_content"] == "hm"
    assert body(long_talk(), "deepseek/deepseek-chat")["messages"][2]["reasoning_content"] == "hm"
    assert "reasoning_content" not in body(long_talk())["messages"][2]


def test_marks_for_anthropics_cache_are_passed_through_for_its_models_only() -> None:
    def marked(model: str, retention: str = "short") -> list[int]:
        wire = json.loads(to_wire(long_talk(), target(model), ToolsCache(), retention=retention))
        return [i for i, message in enumerate(wire["messages"]) if "cache_control" in json.dumps(message)]

    assert marked("openrouter/anthropic/claude-sonnet-4") == [0, 5]
    assert marked("openrouter/anthropic/claude-sonnet-4", "none") == []
    assert marked("openrouter/openai/gpt-4.1") == []
    assert marked("openai/anthropic/claude-sonnet-4") == []


@pytest.mark.spec("control 8.2.34")
@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("openai/o3", "low", "low"),
        ("openai/gpt-5-mini", "max", "high"),
        ("openrouter/openai/o4-mini", "medium", "medium"),
        ("openai/o3", "auto", None),
        ("openai/gpt-4.1", "high", None),
        ("openai/gpt-5-chat-latest", "high", None),
        ("groq/llama-3.3-70b-versatile", "high", None),
        ("openrouter/openai/gpt-5.4", "high", None),  # refused beside tools
    ],
)
def test_effort_is_told_to_models_that_know_it(model: str, effort: str, sent: str | None) -> None:
    asked = replace(target(model), effort=ThinkingEffort(effort))
    wire = json.loads(to_wire(ask("hello", REPLY), asked, ToolsCache()))
    assert wire.get("reasoning_effort") == sent


def test_a_limit_leaves_room_for_thinking() -> None:
    request = replace(ask(), max_output_tokens=300)
    assert body(request, "openai/o3")["max_completion_tokens"] > 300 + 10_000
    assert body(request, "openai/gpt-4.1")["max_completion_tokens"] == 300


@pytest.mark.spec("C-44")
def test_thinking_models_get_a_filler_where_there_was_no_thought() -> None:
    talk = (ModelMessage.user("go"), ModelMessage(Role.ASSISTANT, (ToolCall("1", "shell", {}),)))
    request = ModelRequest(process=ProcessKind.WORKER, system=(), messages=talk)
    assert body(request, "moonshot/kimi-k2.5")["messages"][1]["reasoning_content"] == " "


RICH = Answer(
    text="Grüße, 世界 🦜",
    reasoning="let me see",
    uses=(Use("reply", {"content": "a\nb"}), Use("branch", {"description": "x"})),
    input_tokens=7,
    output_tokens=9,
    cached_tokens=100,
)


def test_a_stream_cut_at_every_byte_reads_the_same() -> None:
    stream = b"".join(render(RICH))
    reply, deltas = read(stream, 1)
    assert reply.parts == (
        Reasoning("let me see"),
        Text("Grüße, 世界 🦜"),
        ToolCall("call_0", "reply", {"content": "a\nb"}, '{"content": "a\\nb"}'),
        ToolCall("call_1", "branch", {"description": "x"}, '{"description": "x"}'),
    )
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert reply.usage == Usage(input_tokens=7, output_tokens=9, cache_read_tokens=100)
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "Grüße, 世界 🦜"
    assert (
        "".join(d.fragment for d in deltas if isinstance(d, ArgumentsDelta) and d.index == 1) == '{"description": "x"}'
    )
    for size in range(2, 40):
        assert read(stream, size) == (reply, deltas)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_whatever_is_said_arrives(text: str, contents: list[str]) -> None:
    uses = tuple(Use("reply", {"content": content}) for content in contents)
    reply, _ = read(b"".join(render(Answer(text=text, uses=uses))), 11)
    assert reply.message.text == text
    assert [call.arguments for call in reply.message.tool_calls] == [{"content": content} for content in contents]


@pytest.mark.spec("C-48")
def test_whitespace_between_words_is_kept() -> None:
    reply, _ = read(stream_of({"content": "a"}, {"content": " "}, {"content": "\n"}, {"content": "b"}))
    assert reply.message.text == "a \nb"


def test_a_missing_id_is_made_and_a_missing_index_means_the_newest_call() -> None:
    stream = stream_of(
        {"tool_calls": [{"function": {"name": "reply", "arguments": ""}}]},
        {"tool_calls": [{"function": {"arguments": '{"content":'}}]},
        {"tool_calls": [{"function": {"arguments": '"x"}'}}]},
    )
    assert read(stream)[0].message.tool_calls == (ToolCall("made_0", "reply", {"content": "x"}, '{"content":"x"}'),)


def test_parallel_calls_that_all_claim_index_0_are_told_apart_by_id() -> None:
    stream = stream_of(
        {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "a", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "id": "y", "function": {"name": "b", "arguments": "{}"}}]},
    )
    assert [(call.id, call.name) for call in read(stream)[0].message.tool_calls] == [("x", "a"), ("y", "b")]


def test_calls_without_index_in_one_event_are_told_apart() -> None:
    stream = stream_of(
        {
            "tool_calls": [
                {"id": "x", "function": {"name": "a", "arguments": {"n": 1}}},
                {"id": "y", "function": {"name": "b", "arguments": {}}},
            ]
        }
    )
    assert [(call.id, call.arguments) for call in read(stream)[0].message.tool_calls] == [("x", {"n": 1}), ("y", {})]


@pytest.mark.spec("C-42")
def test_variants_of_content_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking", "text": "no"}]
    stream = stream_of({"content": parts}, {"refusal": "b"}, {"content": None}, {"reasoning": "r"})
    reply, _ = read(stream)
    assert reply.parts == (Reasoning("r"), Text("ab"))


@pytest.mark.spec("C-42")
def test_the_old_form_of_a_call_is_read() -> None:
    stream = stream_of({"function_call": {"name": "reply", "arguments": '{"content": "x"}'}}, finish="function_call")
    reply, _ = read(stream)
    assert reply.message.tool_calls[0].arguments == {"content": "x"}
    assert reply.finish_reason is FinishReason.TOOL_CALLS


def test_a_proof_beside_a_call_is_sent_back_with_it() -> None:
    extra = {"google": {"thought_signature": "abc"}}
    call = {"index": 0, "id": "x", "function": {"name": "a", "arguments": "{}"}, "extra_content": extra}
    reply, _ = read(stream_of({"tool_calls": [call]}))
    request = ModelRequest(process=ProcessKind.WORKER, system=(), messages=(ModelMessage.user("go"), reply.message))
    assert body(request)["messages"][1]["tool_calls"][0]["extra_content"] == extra


def test_a_whole_answer_counts_as_a_stream_of_one_event() -> None:
    reader = StreamReader()
    whole = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    assert reader.take_whole(json.dumps(whole).encode()) == [TextDelta("hi")]
    assert reader.reply("m").message.text == "hi"


@pytest.mark.spec("C-40")
def test_nothing_to_say_is_an_answer() -> None:
    """Process spec P51: an empty turn is valid and not tried again."""
    reply, deltas = read(b"".join(render(Answer())))
    assert (reply.parts, deltas, reply.finish_reason) == ((), [], FinishReason.STOP)


def test_a_finish_reason_ends_a_stream_as_well_as_done() -> None:
    assert read(stream_of({"content": "hi"}, done=False))[0].message.text == "hi"
    assert read(stream_of({"content": "hi"}, finish=None))[0].message.text == "hi"
    with pytest.raises(StreamCutError):
        read(stream_of({"content": "hi"}, finish=None, done=False))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m", "code": 429}, 429),
        ({"message": "m", "code": "502"}, 502),
        ({"message": "m", "type": "rate_limit_error", "code": None}, 429),
        ({"message": "m", "code": "context_length_exceeded"}, 400),
        ("just words", 500),
    ],
)
def test_errors_in_the_stream_are_told_with_their_status(error: object, status: int) -> None:
    with pytest.raises(StreamFaultError) as caught:
        read(
            stream_of({"content": "hi"}, finish=None, done=False)
            + b"data: "
            + json.dumps({"error": error}).encode()
            + b"\n\n"
        )
    assert caught.value.status_code == status


def test_the_stand_ins_error_is_an_overload() -> None:
    with pytest.raises(StreamFaultError) as caught:
        read(ERROR_EVENT)
    assert caught.value.status_code == 529


@pytest.mark.parametrize("junk", [b"data: {no json}\n\n", b"data: [1]\n\n", b'data: {"choices":[1]}\n\n'])
def test_junk_in_the_stream_is_no_answer(junk: bytes) -> None:
    with pytest.raises(StreamCutError):
        read(junk)


@pytest.mark.spec("C-57")
@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 3}, Usage(input_tokens=10, output_tokens=3)),
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "prompt_cache_hit_tokens": 4},
            Usage(input_tokens=6, output_tokens=3, cache_read_tokens=4),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(input_tokens=5, output_tokens=3, cache_read_tokens=4, cache_write_tokens=1, reasoning_tokens=2),
        ),
        ({"prompt_tokens": None, "prompt_tokens_details": None}, Usage()),
    ],
)
def test_token_counts_mean_the_same_for_every_provider(usage: dict[str, Any], counted: Usage) -> None:
    assert read(stream_of({"content": "x"}, usage=usage))[0].usage == counted
