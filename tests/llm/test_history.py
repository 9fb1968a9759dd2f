"""Rules on message lists, for any list that a turn, a cut or a crash may leave behind."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.llm.history import (
    KEEP_MESSAGES,
    LOST_RESULT,
    drop_oldest,
    estimate_tokens,
    fit,
    from_json,
    is_boundary,
    repair,
    to_json,
)
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    Part,
    Reasoning,
    Role,
    SystemBlock,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

IDS = st.sampled_from(["a", "b", "c"])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.just(" ")
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=3,
)
CALLS = st.builds(
    ToolCall, IDS, st.sampled_from(["reply", "shell"]), st.dictionaries(WORDS, JSON, max_size=2)
) | st.builds(ToolCall, IDS, st.just("reply"), st.none(), WORDS)
ASSISTANT: st.SearchStrategy[Part] = (
    st.builds(Text, WORDS) | CALLS | st.builds(Reasoning, WORDS, st.none() | WORDS, st.none() | WORDS)
)
USER: st.SearchStrategy[Part] = (
    st.builds(Text, WORDS)
    | st.builds(ToolResult, IDS, WORDS, st.booleans())
    | st.builds(Image, st.just("image/png"), st.just("AAAA"))
)
MESSAGES = st.lists(
    st.builds(ModelMessage, st.just(Role.USER), st.lists(USER, max_size=4).map(tuple))
    | st.builds(ModelMessage, st.just(Role.ASSISTANT), st.lists(ASSISTANT, max_size=4).map(tuple)),
    max_size=10,
)


def assert_sendable(messages: Sequence[ModelMessage]) -> None:
    """What every provider demands."""
    if messages:
        assert messages[0].role is Role.USER
    for before, after in pairwise(messages):
        assert before.role is not after.role
    for number, message in enumerate(messages):
        assert message.parts
        assert not any(isinstance(part, Text) and not part.text.strip() for part in message.parts)
        calls = [call.id for call in message.tool_calls]
        assert len(calls) == len(set(calls))
        if message.role is Role.ASSISTANT:
            assert not all(isinstance(part, Reasoning) for part in message.parts)
        following = messages[number + 1].parts if number + 1 < len(messages) else ()
        results = [part.call_id for part in following if isinstance(part, ToolResult)]
        if calls or results:
            assert sorted(calls) == sorted(results)
            heads = following[: len(results)]
            assert all(isinstance(part, ToolResult) for part in heads)  # results stand before words


@pytest.mark.spec("P15", "P51", "C-51")
@given(messages=MESSAGES)
def test_repair_makes_any_list_sendable(messages: list[ModelMessage]) -> None:
    assert_sendable(repair(messages))


@given(messages=MESSAGES)
def test_repair_changes_nothing_that_is_sendable(messages: list[ModelMessage]) -> None:
    once = repair(messages)
    assert repair(once) == once


@given(messages=MESSAGES)
def test_repair_loses_no_words_of_people(messages: list[ModelMessage]) -> None:
    said = [part.text.strip() for m in messages if m.role is Role.USER for part in m.parts if isinstance(part, Text)]
    kept = "\n".join(part.text for m in repair(messages) for part in m.parts if isinstance(part, Text))
    for text in said:
        assert text in kept


def test_a_call_without_its_result_gets_one_that_says_so() -> None:
    call = ToolCall("1", "shell", {})
    (_, _, answer) = repair(
        [ModelMessage.user("go"), ModelMessage(Role.ASSISTANT, (call,)), ModelMessage.user("well?")]
    )
    assert answer.parts == (ToolResult("1", LOST_RESULT, is_error=True), Text("well?"))


@given(messages=MESSAGES, fraction=st.floats(0.01, 0.99))
@pytest.mark.spec("P15", "S8")
def test_a_cut_leaves_enough_and_strands_no_result(messages: list[ModelMessage], fraction: float) -> None:
    cut = drop_oldest(messages, fraction)
    assert cut == 0 or len(messages) - cut >= KEEP_MESSAGES
    if cut:
        first = messages[cut]
        assert is_boundary(first) or first.role is Role.ASSISTANT
        assert cut >= int(len(messages) * fraction)


@given(messages=MESSAGES, ceiling=st.integers(10, 400), words=st.text("ab ", min_size=1, max_size=2000))
@pytest.mark.spec("P38")
def test_a_request_is_cut_until_it_fits(messages: list[ModelMessage], ceiling: int, words: str) -> None:
    messages = [*messages, ModelMessage.user(words)]
    kept = fit(messages, ceiling=ceiling)
    sent = repair(kept)
    assert_sendable(sent)
    if words.strip():
        assert sent[-1].role is Role.USER
    assert estimate_tokens(kept) <= max(estimate_tokens(messages), ceiling)
    assert kept == tuple(messages) or estimate_tokens(messages) > int(ceiling * 0.85)
    if estimate_tokens(messages) <= int(ceiling * 0.85):
        assert kept == tuple(messages)


@pytest.mark.spec("P38")
def test_system_prompt_and_tools_count() -> None:
    messages = [ModelMessage.user("x" * 400)] * 20  # 2000 tokens
    tool = ToolSpec("shell", "d" * 2000, {"type": "object"})
    assert len(fit(messages, ceiling=2600)) == 20
    kept = fit(messages, ceiling=2600, system=[SystemBlock("s" * 2000)], tools=[tool])
    assert len(kept) < 20
    assert estimate_tokens(kept, [SystemBlock("s" * 2000)], [tool]) <= 2600 * 0.85


def test_one_long_message_keeps_head_and_tail() -> None:
    (kept,) = fit([ModelMessage.user("HEAD" + "ä" * 400_000 + "TAIL")], ceiling=2000)
    assert kept.text.startswith("HEAD")
    assert kept.text.endswith("TAIL")
    assert "bytes left out" in kept.text
    assert estimate_tokens([kept]) <= 2000


def test_unreadable_arguments_count_as_long_as_they_are() -> None:
    call = ModelMessage(Role.ASSISTANT, (ToolCall("1", "reply", None, "{" * 4000),))
    assert estimate_tokens([call]) >= 1000


@given(messages=MESSAGES.filter(bool))
def test_json_brings_back_the_same_messages(messages: list[ModelMessage]) -> None:
    text = to_json(messages)
    assert from_json(text) == messages
    assert json.loads(text)
    assert to_json(from_json(text)) == text


@given(before=MESSAGES, after=MESSAGES, ceiling=st.integers(10, 200))
def test_what_is_asked_for_is_never_cut_away(
    before: list[ModelMessage], after: list[ModelMessage], ceiling: int
) -> None:
    task = ModelMessage.user("do it")
    kept = fit([*before, task, *after], ceiling=ceiling, task=task)
    assert sum(message.text == "do it" for message in kept) >= 1
    assert_sendable(repair(kept))
