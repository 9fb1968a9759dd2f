"""A growing reply: what may be shown of it, and when."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from spacebot.agent.streaming import ReplyReader
from spacebot.agent.turn import DELTA_S
from spacebot.base.events import EventKind
from spacebot.base.redaction import find_secret, safe_length, scrub
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelReply,
    ModelRequest,
    OnDelta,
    ProcessKind,
    Restart,
    ToolCall,
)
from tests.fakes.opened import open_test_agent

KEY = "sk-ant-api03-" + "aB3dE5gH7jK9" * 3
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\{}\n s-k'), max_size=60)


class Dripping:
    """Writes reply calls a few characters at a time, and time passes between them. None is a restart."""

    def __init__(self, clock: MockClock, *answers: list[str | None]) -> None:
        self._clock = clock
        self._answers = list(answers)

    def context_window(self, process: ProcessKind) -> int:
        return 100_000

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        assert on_delta is not None
        final = ""
        for content in self._answers.pop(0):
            if content is None:
                on_delta(Restart())
                continue
            final = json.dumps({"content": content})
            for start in range(0, len(final), 3):
                self._clock.jump(DELTA_S)
                on_delta(ArgumentsDelta(0, "reply", final[start : start + 3]))
        call = ToolCall("c", "reply", json.loads(final), final)
        return ModelReply(parts=(call,), finish_reason=FinishReason.TOOL_CALLS)


async def shown(clock: MockClock, folder: Path, *answers: list[str | None]) -> tuple[list[str], list[str]]:
    """The pictures of growing replies that people saw, and what was said in the end."""
    async with open_test_agent(folder, Dripping(clock, *answers)) as opened:
        await opened.say("Ann", "hi")
        said = await opened.said(1)
        await opened.ended(1)
        return [str(e.fields["text"]) for e in opened.of_kind(EventKind.OUTBOUND_DELTA)], said


async def test_a_reply_is_shown_while_it_grows(clock: MockClock, tmp_path: Path) -> None:
    text = 'Good morning, "Ann" – how\nare you? 🙂'
    deltas, said = await shown(clock, tmp_path, [text])
    assert said == [text]
    assert len(deltas) > 10
    for delta in deltas:
        assert text.startswith(delta)


async def test_after_a_restart_the_text_begins_anew(clock: MockClock, tmp_path: Path) -> None:
    deltas, said = await shown(clock, tmp_path, ["Half a sent", None, "Another answer altogether."])
    assert said == ["Another answer altogether."]
    assert any(delta.startswith("Half") for delta in deltas)
    assert "Another answer altogether.".startswith(deltas[-1])


async def test_a_second_try_in_the_same_turn_is_shown_as_such(clock: MockClock, tmp_path: Path) -> None:
    """The first one is refused; both are the first call of their answer."""
    deltas, said = await shown(clock, tmp_path, ["reply(content='x') is a tool"], ["The second try is fine."])
    assert said == ["The second try is fine."]
    assert deltas[-1].startswith("The second try")


@pytest.mark.spec("P69", "C-84")
async def test_no_part_of_a_secret_is_shown(clock: MockClock, tmp_path: Path) -> None:
    deltas, said = await shown(clock, tmp_path, [f"your key is {KEY}, keep it"], ["I may not say it."])
    assert said == ["I may not say it."]
    assert any("your key is" in delta for delta in deltas)
    assert not any(KEY[:8] in delta for delta in deltas)


@given(text=TEXTS, data=st.data())
def test_cut_at_any_position_the_reader_sees_the_same(text: str, data: st.DataObject) -> None:
    raw = json.dumps({"content": text}, ensure_ascii=data.draw(st.booleans()))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    whole, pieces = ReplyReader(), ReplyReader()
    whole.add(raw)
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        pieces.add(raw[start:end])
        picture = pieces.text()
        assert picture is None or text.startswith(picture)
    assert pieces.text() == whole.text() == text[: safe_length(text)]


@given(text=st.text(max_size=40), key=st.sampled_from([KEY, "123456789:AAF" + "b2C4d6E8" * 4, "AKIAIOSFODNN7EXAMPLE"]))
def test_a_key_never_passes_the_reader(text: str, key: str) -> None:
    reader = ReplyReader()
    for character in json.dumps({"content": f"{text} {key} and"}):
        reader.add(character)
        picture = reader.text() or ""
        picture.encode()
        assert key[:14] not in picture
        assert find_secret(scrub(picture)) is None


@pytest.mark.parametrize("raw", ['{"reason": "x"', '{"content": 5', "[]", '{"content": null}', ""])
def test_what_is_no_reply_shows_nothing(raw: str) -> None:
    reader = ReplyReader()
    reader.add(raw)
    assert reader.text() is None
