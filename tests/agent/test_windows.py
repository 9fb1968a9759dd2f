"""Long conversations and long work: every request fits, nothing that is asked for is cut away."""

from pathlib import Path

import pytest
from trio.testing import MockClock

from spacebot.agent.engine import OVERFLOW_RETRIES
from spacebot.agent.pacing import RESULT_DEBOUNCE_S
from spacebot.base.errors import ContextOverflowError
from spacebot.base.events import EventKind
from spacebot.conversations.records import LedgerState
from spacebot.llm.history import estimate_tokens
from spacebot.llm.messages import ModelRequest, ProcessKind
from tests.conftest import Logs
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Say, ScriptedModel

TOO_LONG = Fail(ContextOverflowError("too long", model="m"))


def words_of(request: ModelRequest) -> str:
    return "\n".join(message.text for message in request.messages)


@pytest.mark.spec("P38", "S8", "C-51")
async def test_after_a_refusal_for_size_the_oldest_go_and_the_question_stays(clock: MockClock, tmp_path: Path) -> None:
    answers = [Call("reply", content=f"answer {number}") for number in range(8)]
    model = ScriptedModel(*answers, TOO_LONG, TOO_LONG, Call("reply", content="short now"))
    async with open_test_agent(tmp_path, model) as opened:
        for number in range(9):
            await opened.say("Ann", f"question {number}")
            await opened.ended(number + 1)
        assert (await opened.said(9))[-1] == "short now"

    first, *_, last = model.requests[8:]
    assert "question 0" in words_of(first)
    assert "question 0" not in words_of(last)
    assert "Ann: question 8" in words_of(last)
    assert len(model.requests[8:]) == OVERFLOW_RETRIES + 1


async def test_when_it_never_fits_people_are_told(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(*[TOO_LONG] * (OVERFLOW_RETRIES + 1))
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "hi")
        (notice,) = await opened.said(1)
        await opened.ended(1)
        assert (await opened.fate(accepted)).state is LedgerState.FAILED

    assert "too long" in notice


@pytest.mark.spec("P38")
async def test_a_long_talk_stays_within_the_window(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        lambda request: Call("reply", content="yes " * 200),
        compactor=lambda request: Call("write_summary", summary="Ann asked, and got her answers"),
        context_window=8000,
    )
    async with open_test_agent(tmp_path, model) as opened:
        for number in range(40):
            await opened.say("Ann", f"question {number} " + "and more " * 100)
            await opened.ended(number + 1)

    assert model.requests_of(ProcessKind.COMPACTOR)
    for number, request in enumerate(model.requests_of(ProcessKind.CHANNEL)):
        assert estimate_tokens(request.messages, request.system, request.tools) <= 8000
        assert f"question {number} " in words_of(request)


async def test_a_branch_that_works_for_long_does_not_forget_what_it_was_asked(clock: MockClock, tmp_path: Path) -> None:
    steps = [Calls(Call("nonsense", number=number), text=f"thought {number} " * 300) for number in range(20)]
    model = ScriptedModel(
        Calls(Call("branch", description="find the treasure"), Call("reply", content="I look")),
        "found",
        branch=[*steps, Say("it is in the garden")],
        context_window=9000,
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "where is it? " + "tell me " * 500)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)

    for request in model.requests_of(ProcessKind.BRANCH):
        assert "find the treasure" in words_of(request)
        assert estimate_tokens(request.messages, request.system, request.tools) <= 9000


async def test_a_branch_that_never_fits_reports_so(clock: MockClock, tmp_path: Path, logs: Logs) -> None:
    logs.expect("process failed")
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="I look")),
        "too much",
        branch=[TOO_LONG] * (OVERFLOW_RETRIES + 1),
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        (event,) = await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        assert event.fields["state"] == "failed"
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        assert (await opened.said(2))[1] == "too much"


async def test_a_branch_that_uses_up_its_calls_gives_its_last_words(clock: MockClock, tmp_path: Path) -> None:
    steps = [Calls(Call("nonsense", number=number), text=f"thought {number}") for number in range(3)]
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="I look")), "half an answer", branch=steps
    )
    async with open_test_agent(tmp_path, model, branch_max_turns=3) as opened:
        await opened.say("Ann", "look")
        (event,) = await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)

    assert (event.fields["state"], event.fields["conclusion"]) == ("partial", "thought 2")
