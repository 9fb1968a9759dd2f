"""Bursts: several quick messages of a room become one turn; a direct chat never waits."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from spacebot.agent.pacing import BATCH, HELD, RESULT_DEBOUNCE_S, RETRIGGERS_IN_A_ROW, Pacing
from spacebot.base.events import EventKind
from spacebot.base.ids import MessageId, NodeId
from spacebot.base.tree import NodeState
from spacebot.config.model import CoalesceConfig
from spacebot.conversations.records import Journalled, LedgerState, PendingResult
from spacebot.messaging.messages import Interaction, ReplyPreview
from tests.fakes.opened import EPOCH, ROOM, open_test_agent, text_from
from tests.fakes.scripted_model import Call, ScriptedModel


@pytest.mark.spec("P28")
async def test_a_burst_of_three_people_becomes_one_turn_that_names_them(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="hello all"))
    async with open_test_agent(tmp_path, model) as opened:
        accepted = []
        for seconds, author in enumerate(("Ann", "Bob", "Cid")):
            sent_at = EPOCH + timedelta(minutes=seconds)
            accepted.append(await opened.say(author, f"hi from {author}", conversation=ROOM, sent_at=sent_at))
            await opened.advance(0.4)
        assert opened.of_kind(EventKind.TYPING_STATE) == []
        await opened.advance(0.6)
        assert await opened.said(1) == ["hello all"]
        await opened.ended(1)
        fates = [await opened.fate(one) for one in accepted]

    (request,) = model.requests
    prompt = request.messages[-1].text
    assert "3 messages from 3 people" in prompt
    assert [line for line in prompt.splitlines() if line.startswith("[")] == [
        "[2026-03-01 12:00 UTC (+00:00)] Ann: hi from Ann",
        "[2026-03-01 12:01 UTC (+00:00)] Bob: hi from Bob",
        "[2026-03-01 12:02 UTC (+00:00)] Cid: hi from Cid",
    ]
    assert {fate.state for fate in fates} == {LedgerState.ANSWERED}
    assert fates[0].coalesced_with == (accepted[1].message_id, accepted[2].message_id)
    assert [fate.replies[0].reply_to for fate in fates] == [accepted[2].message_id] * 3  # tied to the last


@pytest.mark.spec("P27", "S7")
@pytest.mark.parametrize("conversation", ["slack:T1:D42", "portal:chat:main", "telegram:7", "cron:daily"])
async def test_a_direct_chat_never_waits(conversation: str, clock: MockClock, tmp_path: Path) -> None:
    """Whatever the id looks like: the adapter says that it is direct, with the very first message."""
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="at once"))) as opened:
        await opened.say("Ann", "hi", conversation=conversation, is_direct=True)
        assert await opened.said(1) == ["at once"]


async def test_a_steady_stream_of_messages_is_answered_at_the_ceiling(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="enough"))
    async with open_test_agent(tmp_path, model, coalesce={"debounce_ms": 1000, "max_wait_ms": 5000}) as opened:
        for number in range(6):
            await opened.say("Ann", f"word {number}", conversation=ROOM)
            await opened.advance(0.9)
        assert await opened.said(1) == ["enough"]

    assert "word 5" in model.requests[0].messages[-1].text


async def test_what_is_answered_and_attached_stands_with_the_message(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "this one", reply_to=ReplyPreview(author="Bob", text="which one?\nreally"))
        await opened.ended(1)

    assert 'Ann (replying to Bob: "which one?…"): this one' in model.requests[0].messages[-1].text


NOW = st.floats(0, 100)
CONFIG = CoalesceConfig()


def journalled(seq: int, *, is_direct: bool = False) -> Journalled:
    return Journalled(id=MessageId(f"m{seq}"), seq=seq, message=text_from("Ann", "hi", is_direct=is_direct))


def finished(number: int) -> PendingResult:
    return PendingResult(
        id=f"r{number}",
        process_kind="branch",
        process_id=NodeId("b"),
        description="",
        text="",
        state=NodeState.DONE,
        reply_to=None,
    )


@given(gaps=st.lists(st.floats(0, 3), min_size=1, max_size=30), is_direct=st.booleans())
def test_every_message_is_taken_once_in_order_and_within_the_ceiling(gaps: list[float], is_direct: bool) -> None:
    pacing, now, taken, arrived = Pacing(), 0.0, list[int](), dict[int, float]()
    for seq, gap in enumerate(gaps):
        due = pacing.due_at()
        if due <= now + gap:
            work = pacing.take(due)
            assert work is not None
            for message in work.messages:
                assert due - arrived[message.seq] <= CONFIG.max_wait_ms / 1000 + 1e-6
                taken.append(message.seq)
        now += gap
        arrived[seq] = now
        pacing.add_message(journalled(seq, is_direct=is_direct), now, CONFIG)
        assert pacing.due_at() <= now + CONFIG.debounce_ms / 1000
        if is_direct:
            assert pacing.due_at() <= now
    while (work := pacing.take(pacing.due_at() if not pacing.is_empty else 1e9)) is not None:
        taken += [message.seq for message in work.messages]
    assert taken == list(range(len(gaps)))
    assert pacing.is_empty


@given(seqs=st.permutations(range(8)))
def test_order_of_arrival_does_not_matter(seqs: list[int]) -> None:
    """Tasks hand in what the journal has numbered."""
    pacing = Pacing()
    for seq in seqs:
        pacing.add_message(journalled(seq), 0, CONFIG)
    work = pacing.take(10)
    assert work is not None
    assert [message.seq for message in work.messages] == list(range(8))


def test_a_message_is_known_before_and_after_its_turn() -> None:
    pacing = Pacing()
    for _ in range(2):
        pacing.add_message(journalled(1, is_direct=True), 0, CONFIG)
    work = pacing.take(0)
    assert work is not None
    assert len(work.messages) == 1
    pacing.add_message(journalled(1, is_direct=True), 0, CONFIG)
    assert pacing.take(100) is None
    pacing.give_back(work, 0)
    assert pacing.take(29) is None
    assert pacing.take(30) == work


def test_a_full_queue_leaves_all_that_follows_to_the_journal() -> None:
    pacing = Pacing()
    for seq in range(HELD + 1):
        pacing.add_message(journalled(seq), 0, CONFIG)
    assert pacing.has_overflowed
    work = pacing.take(100)
    assert work is not None
    assert len(work.messages) == BATCH
    pacing.add_message(journalled(HELD + 2), 100, CONFIG)  # there is room, but an older one waits outside
    seqs = []
    while (work := pacing.take(1000)) is not None:
        seqs += [message.seq for message in work.messages]
    assert seqs == list(range(BATCH, HELD))


def test_results_that_are_only_told_are_all_told() -> None:
    """Five jobs of one person that end one after another are no loop."""
    pacing, now = Pacing(), 0.0
    for number in range(2 * RETRIGGERS_IN_A_ROW):
        pacing.add_result(finished(number), now)
        now += RESULT_DEBOUNCE_S
        work = pacing.take(now)
        assert work is not None
        pacing.note_end(work, has_spawned=False, untold=(), now=now)


def test_results_that_cannot_be_told_are_tried_again_ever_later() -> None:
    pacing, now, pauses = Pacing(), 0.0, []
    pacing.add_result(finished(1), now)
    now += RESULT_DEBOUNCE_S
    for failures in range(8):
        work = pacing.take(now)
        assert work is not None
        assert work.failures == failures
        pacing.note_end(work, has_spawned=False, untold=work.results, now=now)
        pauses.append(pacing.due_at() - now)
        now = pacing.due_at()
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]


def test_what_waits_outside_makes_no_haste_while_a_burst_is_gathered() -> None:
    pacing = Pacing()
    for number in range(HELD + 10):
        pacing.add_message(journalled(number), 0.0, CONFIG)
    assert pacing.has_overflowed
    assert pacing.due_at() > 0.0


@given(count=st.integers(0, 10))
def test_results_that_start_new_work_cause_so_many_turns_in_a_row(count: int) -> None:
    pacing, turns, now = Pacing(), 0, 0.0
    for number in range(count):
        pacing.add_result(finished(number), now)
        now += RESULT_DEBOUNCE_S
        if (work := pacing.take(now)) is not None:
            turns += 1
            pacing.note_end(work, has_spawned=True, untold=(), now=now)
    assert turns == min(count, RETRIGGERS_IN_A_ROW)
    pacing.add_message(journalled(1, is_direct=True), now, CONFIG)
    work = pacing.take(now)
    assert work is not None
    assert len(work.results) == max(0, count - RETRIGGERS_IN_A_ROW)
    assert re.fullmatch(r"r\d+", work.results[0].id) if work.results else True


@pytest.mark.parametrize("named", [{"mentions_bot": True}, {"interaction": Interaction(action_id="go")}])
async def test_who_calls_the_agent_by_name_does_not_wait_for_the_room(
    clock: MockClock, tmp_path: Path, named: dict[str, Any]
) -> None:
    model = ScriptedModel(Call("reply", content="yes?"), Call("reply", content="hello all"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "what a day", conversation=ROOM)
        await opened.say("Bob", "@bot hello", conversation=ROOM, **named)
        assert await opened.said(1) == ["yes?"]  # time stands still, so nothing was waited for
        asked = model.requests[0].messages[-1].text
        assert "what a day" in asked
        assert "@bot hello" in asked
        await opened.say("Ann", "and more", conversation=ROOM)
        await opened.settled()
        assert len(model.requests) == 1
        await opened.advance(1.1)
        assert await opened.said(2) == ["yes?", "hello all"]
