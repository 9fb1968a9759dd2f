"""The Messages dialect without a network: golden bodies, and streams cut at every byte."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.config.routing import ThinkingEffort
from spacebot.llm.anthropic import StreamReader, to_wire, wire_model
from spacebot.llm.dialect import RefusedThinking, StreamCutError, StreamFaultError, ToolsCache
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
    SystemBlock,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)
from tests.llm.given import ask, long_talk, target
from tests.stand_ins.anthropic import ERROR_EVENT, render
from tests.stand_ins.serving import Answer, Use

HAIKU = target("anthropic/claude-haiku-4.5")
MARK = {"type": "ephemeral"}


def body(request: ModelRequest, retention: str = "short") -> Any:
    return json.loads(to_wire(request, HAIKU, ToolsCache(), retention=retention))


def read(stream: bytes, size: int | None = None) -> tuple[ModelReply, list[StreamDelta]]:
    reader, deltas = StreamReader(), list[StreamDelta]()
    for start in range(0, len(stream), size or len(stream)):
        deltas += reader.feed(stream[start : start + (size or len(stream))])
    return reader.reply("m"), deltas


def test_golden_body() -> None:
    assert body(long_talk()) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 500,
        "stream": True,
        "system": [{"type": "text", "text": "stable", "cache_control": MARK}, {"type": "text", "text": "volatile"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "ann: hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "one moment"},
                    {"type": "tool_use", "id": "a_1", "name": "branch", "input": {"description": "über"}},
                    {"type": "tool_use", "id": "b", "name": "reply", "input": {}, "cache_control": MARK},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a_1", "content": "done"},
                    {"type": "tool_result", "tool_use_id": "b", "content": "bad", "is_error": True},
                    {"type": "text", "text": "and more"},
                    {"type": "text", "text": "look ?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                ],
            },
        ],
        "tools": [
            {
                "name": "reply",
                "description": "Say something.",
                "input_schema": {"type": "object", "properties": {"content": {"type": "string"}}},
            },
            {
                "name": "branch",
                "description": "Think.",
                "input_schema": {"type": "object", "properties": {"description": {"type": "string"}}},
                "cache_control": MARK,
            },
        ],
    }


def test_the_shortest_body() -> None:
    assert body(ask()) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 16_000,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    }


def test_while_tools_run_the_newest_result_is_marked_too() -> None:
    request = ModelRequest(
        process=ProcessKind.WORKER,
        system=(),
        messages=(
            ModelMessage.user("old"),
            ModelMessage.assistant("old answer"),
            ModelMessage.user("new words with the time in them"),
            ModelMessage(Role.ASSISTANT, (ToolCall("1", "shell", {}),)),
            ModelMessage(Role.USER, (ToolResult("1", ""),)),
        ),
    )
    marked = [bool(message["content"][-1].get("cache_control")) for message in body(request)["messages"]]
    assert marked == [False, True, False, False, True]
    assert body(request)["messages"][-1]["content"] == [
        {"type": "tool_result", "tool_use_id": "1", "cache_control": MARK}
    ]


def running(*before: ModelMessage) -> ModelRequest:
    """A request in the middle of a run of calls, with thinking in it."""
    return ModelRequest(
        process=ProcessKind.WORKER,
        system=(),
        messages=(
            *before,
            ModelMessage.user("go"),
            ModelMessage(Role.ASSISTANT, (Reasoning("hm", signature="proof"), ToolCall("1", "shell", {}))),
            ModelMessage(Role.USER, (ToolResult("1", "done"),)),
            ModelMessage(Role.ASSISTANT, (Reasoning("", data="redacted"), ToolCall("2", "shell", {}))),
            ModelMessage(Role.USER, (ToolResult("2", "done"), Text("a note beside it"))),
        ),
    )


@pytest.mark.spec("control 8.2.45", "C-45")
def test_thinking_goes_back_while_its_run_of_calls_goes_on() -> None:
    messages = body(running())["messages"]
    assert messages[1]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "proof"}
    assert messages[3]["content"][0] == {"type": "redacted_thinking", "data": "redacted"}
    later = running(*running().messages, ModelMessage.assistant("well"))
    assert json.dumps(body(later)).count("proof") == 1, "earlier turns are written anew, so their proofs are void"
    refused = RefusedThinking()
    assert refused.note(running())
    assert not refused.note(running()), "what was refused once cannot be the reason again"
    bare = json.loads(to_wire(running(), HAIKU, ToolsCache(), refused=refused))
    assert "thinking" not in json.dumps(bare)


@pytest.mark.spec("control 8.2.34")
@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("claude-opus-4.6", "auto", "max"),
        ("claude-sonnet-4-6", "auto", "high"),
        ("claude-opus-4-8", "low", "low"),
        ("claude-haiku-5-5", "medium", "medium"),
        ("claude-sonnet-4", "auto", None),  # a family's bare name stays as quick as it was
        ("claude-sonnet-4", "max", "max"),
        ("claude-opus-4-20250514", "max", None),
        ("claude-haiku-4.5", "high", None),
        ("some-proxy-model", "high", None),
    ],
)
def test_effort_is_told_to_models_that_know_it(model: str, effort: str, sent: str | None) -> None:
    asked = replace(target(f"anthropic/{model}"), effort=ThinkingEffort(effort))
    wire = json.loads(to_wire(replace(ask(), max_output_tokens=300), asked, ToolsCache()))
    if sent is None:
        assert not {"thinking", "output_config"} & wire.keys()
        assert wire["max_tokens"] == 300
    else:
        assert (wire["thinking"], wire["output_config"]) == ({"type": "adaptive"}, {"effort": sent})
        assert wire["max_tokens"] > 300 + 10_000, "thinking counts towards the limit and must leave room to answer"


def test_retention_decides_on_marks() -> None:
    assert "cache_control" not in json.dumps(body(long_talk(), "none"))
    assert body(long_talk(), "long")["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    proxied = target("anthropic/claude-sonnet-4", "http://proxy.example")
    wire = json.loads(to_wire(long_talk(), proxied, ToolsCache(), retention="long"))
    assert wire["system"][0]["cache_control"] == MARK, "an hour is offered by the vendor's own host only"


def test_at_most_four_marks_are_set() -> None:
    assert json.dumps(body(long_talk())).count("cache_control") <= 4


def test_a_conversation_begins_with_the_user_and_ends_without_space() -> None:
    request = ModelRequest(process=ProcessKind.CHANNEL, system=(), messages=(ModelMessage.assistant("well \n"),))
    assert body(request)["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "…"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "well", "cache_control": MARK}]},
    ]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("claude-sonnet-4", "claude-sonnet-4-6"),
        ("claude-opus-4", "claude-opus-4-8"),
        ("claude-haiku-4.5", "claude-haiku-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-20250514"),
        ("MiniMax-M2.5", "MiniMax-M2.5"),
    ],
)
def test_names_people_write_become_names_anthropic_reads(written: str, sent: str) -> None:
    assert wire_model(written, HAIKU.entry.aliases) == sent


def test_the_wire_form_of_tools_is_made_once() -> None:
    cache = ToolsCache()
    first = cache.get(long_talk().tools, 0, lambda tools: [tool.name for tool in tools])
    assert cache.get(long_talk().tools, 0, lambda tools: []) is first


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
        Reasoning("let me see", "sig=="),
        Text("Grüße, 世界 🦜"),
        ToolCall("toolu_0", "reply", {"content": "a\nb"}, '{"content": "a\\nb"}'),
        ToolCall("toolu_1", "branch", {"description": "x"}, '{"description": "x"}'),
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
@given(st.text(), st.dictionaries(st.text(max_size=9), st.text() | st.integers() | st.booleans(), max_size=3))
def test_whatever_is_said_arrives(text: str, arguments: dict[str, Any]) -> None:
    text = text.encode("utf-8", "replace").decode()
    arguments = json.loads(json.dumps(arguments).encode("utf-8", "replace"))
    try:
        stream = b"".join(render(Answer(text=text, uses=(Use("reply", arguments),))))
    except UnicodeEncodeError:
        return
    reply, _ = read(stream, 11)
    assert reply.message.text == text
    assert reply.message.tool_calls[0].arguments == arguments


def test_tokens_of_thinking_are_told_apart() -> None:
    stream = b"".join(render(Answer(text="hi", output_tokens=9)))
    told = stream.replace(b'"output_tokens": 9', b'"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}')
    assert read(told)[0].usage.reasoning_tokens == 4
    assert read(stream)[0].usage.reasoning_tokens == 0


def test_line_ends_and_comments_of_all_kinds_are_read() -> None:
    stream = b": keep-alive\r\n\r\n" + b"".join(render(Answer(text="hi"))).replace(b"\n", b"\r\n")
    assert read(stream, 3)[0].message.text == "hi"


@pytest.mark.spec("C-39")
def test_nothing_to_say_is_an_answer() -> None:
    """Process spec P51: an empty turn is valid and not tried again."""
    reply, deltas = read(b"".join(render(Answer())))
    assert (reply.parts, deltas, reply.finish_reason) == ((), [], FinishReason.STOP)


@pytest.mark.spec("C-49")
@pytest.mark.parametrize("size", [1, 1000])
def test_a_stream_without_its_last_event_is_no_answer(size: int) -> None:
    with pytest.raises(StreamCutError):
        read(b"".join(render(RICH)[:-1]), size)


@pytest.mark.spec("C-50")
def test_an_error_in_the_stream_is_told_with_its_status() -> None:
    with pytest.raises(StreamFaultError) as caught:
        read(b"".join(render(RICH)[:5]) + ERROR_EVENT)
    assert caught.value.status_code == 529


@pytest.mark.parametrize(
    "junk", [b"data: {no json}\n\n", b"data: [1]\n\n", b'data: {"type":"content_block_delta"}\n\n']
)
def test_junk_in_the_stream_is_no_answer(junk: bytes) -> None:
    with pytest.raises(StreamCutError):
        read(junk)


@pytest.mark.spec("C-47")
@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ("", {}),
        ('{"a": "line\nbreak\tand tab"}', {"a": "line\nbreak\tand tab"}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": NaN}', {"a": None}),
        ('{"a": ', None),
        ("[1]", None),
        ("[" * 100_000, None),
    ],
)
def test_arguments_are_read_leniently(raw: str, arguments: dict[str, Any] | None) -> None:
    stream = b"".join(render(Answer(uses=(Use("reply", raw),))))
    (call,) = read(stream)[0].message.tool_calls
    assert (call.arguments, call.raw_arguments) == (arguments, raw)


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("end_turn", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("a_new_word", FinishReason.STOP),
    ],
)
def test_finish_reasons(word: str, finish: FinishReason) -> None:
    assert read(b"".join(render(Answer(text="x", finish=word))))[0].finish_reason is finish


def test_system_blocks_alone_make_a_request() -> None:
    request = ModelRequest(process=ProcessKind.CORTEX, system=(SystemBlock("do it"),), messages=())
    assert body(request)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "…"}]}]
