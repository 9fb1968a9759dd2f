"""Answers that no provider should send: each reader says so in one way, and hands on nothing but text."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from spacebot.llm import anthropic, openai_chat, openai_responses
from spacebot.llm.dialect import StreamCutError, StreamFaultError
from spacebot.llm.messages import ModelReply, Reasoning, StreamDelta, Text, TextDelta, ToolCall
from tests.stand_ins.anthropic import render as render_messages
from tests.stand_ins.openai import render as render_chat
from tests.stand_ins.openai import render_responses
from tests.stand_ins.serving import Answer, Use

ANSWER = Answer(
    text="some words", reasoning="a thought", uses=(Use("reply", {"content": "x"}), Use("skip", {})), cached_tokens=3
)
JUNK: list[Any] = [None, 5, -1, 10**30, True, "x", [], ["x"], {}, {"x": 1}]
FORMATS = {
    "anthropic": (anthropic.StreamReader, render_messages),
    "chat": (openai_chat.StreamReader, render_chat),
    "responses": (openai_responses.StreamReader, render_responses),
}


def events_of(stream: list[bytes]) -> list[Any]:
    """The objects of a stream; what is none stays as it is."""
    data = [line[6:] for piece in stream for line in piece.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) if line.startswith(b"{") else line.decode() for line in data]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an object."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def spoiled(events: list[Any]) -> Iterator[list[Any]]:
    """The same answer with one place of one event replaced, or gone."""
    for i, event in enumerate(events):
        if not isinstance(event, dict):
            continue
        for path in paths(event):
            for junk in (*JUNK, paths):
                changed = copy.deepcopy(event)
                place = changed
                for key in path[:-1]:
                    place = place[key]
                if junk is not paths:
                    place[path[-1]] = junk
                elif isinstance(place, dict):
                    del place[path[-1]]
                yield [*events[:i], changed, *events[i + 1 :]]


def check(deltas: list[StreamDelta], reply: ModelReply) -> None:
    """Whatever was made of an answer has the types that it promises."""
    for delta in deltas:
        shown = [delta.text] if isinstance(delta, TextDelta) else [delta.name, delta.fragment]
        assert all(isinstance(text, str) for text in shown)
    for part in reply.parts:
        match part:
            case ToolCall(call_id, name, arguments, raw):
                assert all(isinstance(text, str) for text in (call_id, name, raw))
                assert arguments is None or isinstance(arguments, dict)
            case Text(text) | Reasoning(text):
                assert isinstance(text, str)
    usage = reply.usage
    counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
    assert all(type(count) is int and 0 <= count < 2**53 for count in (*counts, usage.reasoning_tokens))


@pytest.mark.spec("control 8.2.42")
@pytest.mark.parametrize("name", FORMATS)
def test_one_wrong_value_anywhere_is_read_over_or_cuts_the_stream(name: str) -> None:
    new_reader, render = FORMATS[name]
    read = cut = 0
    for events in spoiled(events_of(render(ANSWER))):
        reader = new_reader()
        sent = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        try:
            deltas = reader.feed(sent.encode())
            reply = reader.reply("m")
        except (StreamCutError, StreamFaultError):
            cut += 1
            continue
        read += 1
        check(deltas, reply)
    assert read > 100
    assert cut > 100


@pytest.mark.parametrize("junk", [b"", b"null", b"[]", b"5", b'"x"', b"{}", b'{"choices": []}', b'{"output": 5}'])
@pytest.mark.parametrize("name", ["chat", "responses"])
def test_an_answer_in_one_piece_that_is_none_cuts_it_too(name: str, junk: bytes) -> None:
    def read() -> None:
        reader = FORMATS[name][0]()
        reader.take_whole(junk)
        reader.reply("m")

    with pytest.raises((StreamCutError, StreamFaultError)):
        read()


@pytest.mark.parametrize("name", ["chat", "responses"])
def test_an_error_with_an_endless_number_is_an_error_like_others(name: str) -> None:
    body = json.dumps({"type": "error", "error": {"code": "9" * 5000, "message": "no"}}).encode()
    with pytest.raises(StreamFaultError) as caught:
        FORMATS[name][0]().feed(b"data: " + body + b"\n\n")
    assert caught.value.status_code == 500
