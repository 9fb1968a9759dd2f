"""One message, one answer; what the ledger says of each way that a turn can end."""

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import ModelUnavailableError, RefusedError
from spacebot.base.events import EventKind
from spacebot.conversations.records import LedgerState
from spacebot.llm.messages import ProcessKind, Role
from spacebot.messaging.messages import MAX_TEXT
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, ROOM, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, Say, ScriptedModel


@pytest.mark.spec("P1", "D-29")
async def test_question_and_answer_are_remembered_without_the_dangling_call(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="Hello Ann."), Call("reply", content="You said hi."))
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "hi")
        assert await opened.said(1) == ["Hello Ann."]
        assert await opened.ended(1) == ["done"]
        fate = await opened.fate(accepted)
        await opened.say("Ann", "what did I say?")
        await opened.said(2)

    assert fate.state is LedgerState.ANSWERED
    assert [reply.content for reply in fate.replies] == ["Hello Ann."]
    assert fate.replies[0].reply_to == accepted.message_id
    first, second, third = model.requests[1].messages
    assert (first.role, first.text) == (Role.USER, "[2026-03-01 12:00 UTC (+00:00)] Ann: hi")
    assert (second.role, second.text) == (Role.ASSISTANT, "Hello Ann.")
    assert not second.tool_calls
    assert third.text.endswith("Ann: what did I say?")


async def test_a_skipped_message_says_why(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip", reason="they talk among themselves"))
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "see you at lunch, Bob")
        assert await opened.ended(1) == ["skipped"]
        fate = await opened.fate(accepted)

    assert (fate.state, fate.reason) == (LedgerState.SKIPPED, "they talk among themselves")
    assert fate.replies == ()
    assert model.is_used_up


@pytest.mark.spec("P21", "D-29")
async def test_skip_ends_the_turn_at_once(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "lol")
        await opened.ended(1)
        assert len(model.requests) == 1


@pytest.mark.spec("P21")
async def test_after_a_refused_reply_the_model_tries_again(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="  "), Call("reply", content="now with words"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hi")
        assert await opened.said(1) == ["now with words"]
        await opened.ended(1)

    assert "empty" in model.results_of(ProcessKind.CHANNEL)[-1].text


@pytest.mark.spec("P22", "S10")
async def test_a_provider_error_becomes_one_scrubbed_line(clock: MockClock, tmp_path: Path) -> None:
    key = "sk-" + "a1" * 20
    model = ScriptedModel(
        Fail(ModelUnavailableError(f"the provider is down, key {key}\n" + "x" * 2000, model="m")), "hello"
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "hi")
        (notice,) = await opened.said(1)
        assert await opened.ended(1) == ["failed"]
        fate = await opened.fate(accepted)
        await opened.say("Ann", "and now?")
        await opened.said(2)

    assert "the provider is down" in notice
    assert key not in notice
    assert len(notice) < 400
    assert "\n" not in notice
    assert fate.state is LedgerState.FAILED
    assert fate.replies[0].kind == "notice"
    assert "Ann: hi" in model.requests[1].messages[0].text  # the question is not forgotten


@pytest.mark.spec("P22")
async def test_a_turn_without_an_answer_says_its_last_words(clock: MockClock, tmp_path: Path) -> None:
    steps = [Calls(Call("react", emoji=mark), text=f"I looked at {mark}") for mark in "🙂🙃"]
    async with open_test_agent(tmp_path, ScriptedModel(*steps), max_turns=2) as opened:
        accepted = await opened.say("Ann", "hi")
        texts = [e.fields["text"] for e in await opened.events_of(EventKind.OUTBOUND_MESSAGE, 1)]
        fate = await opened.fate(accepted)

    assert texts == ["I looked at 🙃"]
    assert fate.state is LedgerState.ANSWERED


@pytest.mark.spec("P22")
async def test_a_turn_that_only_calls_tools_ends_with_a_notice(clock: MockClock, tmp_path: Path) -> None:
    steps = [Call("react", emoji=mark) for mark in "🙂🙃"]
    async with open_test_agent(tmp_path, ScriptedModel(*steps), max_turns=2) as opened:
        accepted = await opened.say("Ann", "hi")
        (notice,) = await opened.said(1)
        await opened.ended(1)
        fate = await opened.fate(accepted)

    assert "2 model calls" in notice
    assert fate.state is LedgerState.FAILED


@pytest.mark.spec("P51", "C-39")
async def test_an_empty_answer_in_a_room_is_silence(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Say(""), Call("reply", content="yes"))
    async with open_test_agent(tmp_path, model, coalesce={"enabled": False}) as opened:
        accepted = await opened.say("Ann", "hm", conversation=ROOM)
        assert await opened.ended(1) == ["skipped"]
        assert (await opened.fate(accepted)).state is LedgerState.SKIPPED
        await opened.say("Ann", "still there?", conversation=ROOM)
        assert await opened.said(1) == ["yes"]


async def test_an_empty_answer_in_a_direct_chat_is_asked_for_again(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Say(""), Call("reply", content="yes"))) as opened:
        await opened.say("Ann", "hm")
        assert await opened.said(1) == ["yes"]
        await opened.ended(1)


async def test_who_gets_no_answer_in_a_direct_chat_is_told_so(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Say(""), Say(""), Say(""))) as opened:
        accepted = await opened.say("Ann", "hm")
        (notice,) = await opened.said(1)
        assert await opened.ended(1) == ["failed"]
        assert (await opened.fate(accepted)).state is LedgerState.FAILED
    assert "no answer" in notice


async def test_words_without_the_reply_tool_are_said_too(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel("Hello there.")) as opened:
        accepted = await opened.say("Ann", "hi")
        assert await opened.said(1) == ["Hello there."]
        await opened.ended(1)
        assert (await opened.fate(accepted)).state is LedgerState.ANSWERED


@pytest.mark.spec("S4")
async def test_every_reply_of_a_turn_is_remembered(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("reply", content="one"), Call("reply", content="two")), Call("reply", content="three")
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "count")
        assert await opened.said(2) == ["one", "two"]
        await opened.ended(1)
        await opened.say("Ann", "go on")
        await opened.said(3)

    assert model.requests[1].messages[1].text.split() == ["one", "two"]


@pytest.mark.spec("P29")
async def test_a_message_of_blanks_gets_a_placeholder(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="?"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", " \n\t ")
        await opened.said(1)

    assert model.requests[0].messages[-1].text.endswith("Ann: (a message without text)")


@pytest.mark.spec("P31", "P52")
async def test_the_clock_is_in_the_prompt_but_not_in_the_history(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="noon"), Call("reply", content="later"))
    async with open_test_agent(tmp_path, model, user_timezone="Europe/Berlin") as opened:
        await opened.say("Ann", "what time is it?")
        await opened.ended(1)
        await opened.advance(3600)
        await opened.say("Ann", "and now?")
        await opened.ended(2)

    assert "Time: 2026-03-01 13:00 CET (+01:00); UTC 2026-03-01 12:00:00" in model.requests[0].messages[-1].text
    earlier, _, now = model.requests_of(ProcessKind.CHANNEL)[1].messages
    assert "<now>" not in earlier.text
    assert "[2026-03-01 13:00 CET (+01:00)] Ann" in earlier.text
    assert "Time: 2026-03-01 14:00 CET" in now.text


async def test_a_repeated_delivery_is_one_message(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="once"))) as opened:
        first = await opened.say("Ann", "hi", platform_id="m1")
        second = await opened.say("Ann", "hi", platform_id="m1")
        await opened.ended(1)
        await opened.settled()
        assert len(opened.of_kind(EventKind.TURN_ENDED)) == 1

    assert (first.is_new, second.is_new) == (True, False)
    assert first.message_id == second.message_id


async def test_a_message_too_long_is_refused_before_it_is_written(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        with pytest.raises(RefusedError, match="1000001 characters"):
            await opened.say("Ann", "x" * (MAX_TEXT + 1))
        assert await opened.agent.conversations.ledger_counts() == {}


@pytest.mark.spec("P38")
async def test_a_megabyte_is_answered_and_fits_the_window(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="long"), Call("reply", content="short"), context_window=20_000)
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "start " + "x" * (MAX_TEXT - 12) + " end")
        assert await opened.said(1) == ["long"]
        await opened.ended(1)
        await opened.say("Ann", "and?")
        assert await opened.said(2) == ["long", "short"]

    for request in model.requests:
        assert sum(len(message.text.encode()) for message in request.messages) / 4 < 20_000
    assert "Ann: start xxx" in model.requests[0].messages[-1].text
    assert model.requests[0].messages[-1].text.endswith("xxx end")


async def test_lone_surrogates_do_not_break_anything(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("react", emoji="\ud83d"), Call("branch", description="look \udead up")),
        Call("reply", content="half a \ud83d smile"),
        "told",
        branch=["found \ud83d"],
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("A\ud800nn", "hi \ud83d there", channel_name="r\ud83d")
        texts = await opened.said(1)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.advance(1)
        await opened.ended(2)
        fate = await opened.fate(accepted)

    assert texts[0] == "half a ? smile"
    assert fate.state is LedgerState.ANSWERED
    for event in opened.happened:
        str(event.to_json_object()).encode()


@pytest.mark.spec("P23", "D-12", "C-31")
async def test_a_busy_conversation_does_not_hold_up_another(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("reply", content="finally"))
    model = ScriptedModel(
        lambda request: gate if "room" in request.messages[-1].text else Call("reply", content="quick answer")
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "a hard one", conversation=ROOM, is_direct=True)
        await gate.arrived.wait()
        for number in range(100):
            await opened.say("Ann", f"more {number}", conversation=ROOM, is_direct=True)
        await opened.say("Bob", "hello")
        assert await opened.said(1, DIRECT) == ["quick answer"]
        gate.event.set()
        assert await opened.said(2, ROOM) == ["finally", "finally"]


async def test_a_message_during_a_turn_is_accepted_and_answered_next(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("reply", content="first"))
    model = ScriptedModel(gate, Call("reply", content="second"))
    async with open_test_agent(tmp_path, model) as opened:
        one = await opened.say("Ann", "one")
        await gate.arrived.wait()
        two = await opened.say("Ann", "two")
        assert (await opened.fate(two)).state is LedgerState.ACCEPTED
        assert (await opened.fate(one)).state is LedgerState.IN_TURN
        gate.event.set()
        assert await opened.said(2) == ["first", "second"]
        await opened.ended(2)
        fates = [await opened.fate(accepted) for accepted in (one, two)]

    assert [fate.replies[0].content for fate in fates] == ["first", "second"]
    assert [fate.coalesced_with for fate in fates] == [(), ()]


async def test_a_broken_tool_is_a_plain_sentence_for_the_model(clock: MockClock, tmp_path: Path, logs: Logs) -> None:
    """The script runs out of steps: an error of ours in the middle of a turn."""
    logs.expect("process failed")
    async with open_test_agent(tmp_path, ScriptedModel(Call("react", emoji="🙂"))) as opened:
        accepted = await opened.say("Ann", "hi")
        (notice,) = await opened.said(1)
        await opened.ended(1)
        fate = await opened.fate(accepted)

    assert "internal error (AssertionError)" in notice
    assert fate.state is LedgerState.FAILED
    assert fate.turn_state == "failed"


@pytest.mark.spec("P2")
async def test_the_history_only_grows(clock: MockClock, tmp_path: Path) -> None:
    """Corrections, refused calls and their results stay out of it; nothing that is in it changes."""
    model = ScriptedModel(
        Call("reply", content="a"),
        Say("skip"),
        Call("reply", content="b"),
        Call("nonsense"),
        Call("reply", content="c"),
        Call("reply", content="d"),
    )
    async with open_test_agent(tmp_path, model) as opened:
        for number in range(4):
            await opened.say("Ann", f"message {number}")
            await opened.ended(number + 1)

    histories = [model.requests[index].messages for index in (0, 1, 3, 5)]  # the first request of each turn
    for before, after in pairwise(histories):
        assert after[: len(before) - 1] == before[:-1]
        assert len(after) == len(before) + 2
    assert [message.text[-1] for message in histories[-1][:-1]] == ["0", "a", "1", "b", "2", "c"]
