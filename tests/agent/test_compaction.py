"""A long talk becomes summaries, beside the talk and without losing anything."""

import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.compactor import RETRY_FIRST_S
from spacebot.base.clock import Clock
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.paths import package_file
from spacebot.base.tree import NodeKind
from spacebot.conversations.log import Conversations
from spacebot.conversations.memoranda import Memoranda
from spacebot.conversations.records import SummaryKind
from spacebot.llm.messages import ModelRequest, ProcessKind
from spacebot.memory.types import EVERYTHING, Query, SearchMode, Viewer
from spacebot.storage.database import open_database
from tests.fakes.opened import ROOM, Opened, open_test_agent, text_from
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, ScriptedModel

WINDOW = 8800
LONG = "words " * 300  # 450 tokens
ANSWER = Call("reply", content="yes " + LONG)


def talker(**scripts: Any) -> ScriptedModel:
    """Answers every message at the same length."""
    return ScriptedModel(lambda request: ANSWER, context_window=WINDOW, **scripts)


async def talk(opened: Opened, numbers: range) -> None:
    """Messages of some length, each answered before the next."""
    for number in numbers:
        before = len(opened.of_kind(EventKind.TURN_ENDED))
        await opened.say("Ann", f"question {number}: {LONG}")
        await opened.ended(before + 1)
        await opened.settled()


def shown(model: ScriptedModel) -> str:
    """All words of the channel's newest request."""
    return "\n".join(message.text for message in model.requests_of(ProcessKind.CHANNEL)[-1].messages)


async def kept(opened: Opened) -> list[str]:
    """The rows that the next life will show."""
    with sqlite3.connect(opened.database()) as connection:
        rows = connection.execute("SELECT content FROM summaries ORDER BY last_seq").fetchall()
    connection.close()
    return [content for (content,) in rows]


def summarised(request: ModelRequest) -> str:
    return request.messages[0].text


@pytest.mark.spec("P44", "C-35")
async def test_the_oldest_talk_becomes_a_summary_and_nothing_else_changes(clock: MockClock, tmp_path: Path) -> None:
    model = talker(compactor=[Call("write_summary", summary="Ann asked the first questions")])
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(7))
        done = opened.of_kind(EventKind.COMPACTION_COMPLETED)
        assert [event.fields["state"] for event in done] == ["done"]
        model.add(ProcessKind.COMPACTOR, *[Call("write_summary", summary="more")] * 5)
        await talk(opened, range(7, 8))

    (request, *_) = model.requests_of(ProcessKind.COMPACTOR)
    assert "question 0" in summarised(request)
    assert "Ann (id ann)" in summarised(request)
    text = shown(model)
    assert "Ann asked the first questions" in text
    assert "question 0" not in text
    assert "question 6" in text
    assert text.index("Ann asked") < text.index("question 6")


async def test_the_channel_answers_while_a_summary_is_made(clock: MockClock, tmp_path: Path) -> None:
    free = trio.Event()
    gate = Gate(free, Call("write_summary", summary="the beginning"))
    model = talker(compactor=[gate])
    async with open_test_agent(tmp_path, model, compaction={"emergency_threshold": 1.0}) as opened:
        await talk(opened, range(6))
        await gate.arrived.wait()
        await opened.say("Ann", "question 6: quick")
        await opened.ended(7)
        assert len(list(opened.tree.of_kind(NodeKind.COMPACTION))) == 1
        free.set()
        await opened.events_of(EventKind.COMPACTION_COMPLETED, 1)
        model.add(ProcessKind.COMPACTOR, *[Call("write_summary", summary="more")] * 5)
        await talk(opened, range(7, 8))
    assert "the beginning" in shown(model)
    assert "question 6" in shown(model)


@pytest.mark.spec("P34")
async def test_a_summary_that_fails_loses_nothing_and_is_tried_again(clock: MockClock, tmp_path: Path) -> None:
    down = Fail(ModelUnavailableError("down", model="m"))
    model = talker(compactor=[down, Call("write_summary", summary="late but there")])
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(6))
        assert [e.fields["state"] for e in opened.of_kind(EventKind.COMPACTION_COMPLETED)] == ["failed"]
        assert "question 0" in shown(model)
        await opened.advance(RETRY_FIRST_S)
        await talk(opened, range(6, 7))
        await opened.events_of(EventKind.COMPACTION_COMPLETED, 2)
        await talk(opened, range(7, 8))
    assert "late but there" in shown(model)


@pytest.mark.spec("P64", "P2")
async def test_the_emergency_gives_way_at_once_and_a_late_summary_does_not_undo_it(
    clock: MockClock, tmp_path: Path
) -> None:
    never = Gate(trio.Event())
    model = talker(compactor=[never, Call("write_summary", summary="what was left out")])
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(6))
        await never.arrived.wait()
        await talk(opened, range(6, 8))
        kinds = [(e.fields["kind"], e.fields["state"]) for e in opened.of_kind(EventKind.COMPACTION_COMPLETED)]
        assert ("emergency", "done") in kinds
        assert "cancelled" in [state for _, state in kinds]
        await opened.settled()
        await talk(opened, range(8, 9))
        rows = await kept(opened)
    assert "what was left out" in shown(model)
    assert "question 0" not in shown(model)
    assert "question 7" in shown(model)
    assert [row.splitlines()[-1] for row in rows] == ["what was left out"]


async def test_without_any_summary_the_talk_goes_on_and_says_what_is_missing(clock: MockClock, tmp_path: Path) -> None:
    model = talker(compactor=lambda request: Fail(ModelUnavailableError("down", model="m")))
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(16))
    assert "left out here" in shown(model)
    assert "question 15" in shown(model)


async def test_what_is_worth_remembering_is_saved_in_the_scope_of_the_talk(clock: MockClock, tmp_path: Path) -> None:
    save = Call("memory_save", content="Ann keeps bees", memory_type="fact", person="ann")
    script = [Calls(save, text="Ann told of her bees"), "Saved one memory."]
    model = talker(compactor=[*script, *script])
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(6))
        await opened.events_of(EventKind.COMPACTION_COMPLETED, 1)
        await talk(opened, range(6, 7))
        everything = Query(viewer=EVERYTHING, mode=SearchMode.RECENT)
        (hit,) = (await opened.agent.memory.recall(everything)).hits
        others = await opened.agent.memory.recall(Query(viewer=Viewer(), mode=SearchMode.RECENT))
    assert (hit.memory.subject, hit.memory.source, hit.memory.is_private) == ("test:ann", "compaction", True)
    assert others.hits == ()
    assert "Ann told of her bees" in shown(model)  # the first words, not the closing remark


async def test_summaries_outlive_the_program(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, talker(compactor=[Call("write_summary", summary="part one")])) as opened:
        await talk(opened, range(6))
        await opened.events_of(EventKind.COMPACTION_COMPLETED, 1)
        await opened.settled()
    model = talker(compactor=lambda request: Call("write_summary", summary="part two"))
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(6, 7))
        text = shown(model)
        assert text.count("part one") == 1
        assert "question 0:" not in text
        assert text.index("part one") < text.index("question 5:") < text.index("question 6:")


async def test_summaries_stack_in_order_and_are_summarised_again_when_they_grow(
    clock: MockClock, tmp_path: Path
) -> None:
    made = 0

    def summarise(request: ModelRequest) -> Call:
        nonlocal made
        made += 1
        return Call("write_summary", summary=f"summary {made} " + "and so on " * 60)

    model = talker(compactor=summarise)
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, range(40))
        for request in model.requests_of(ProcessKind.CHANNEL):
            text = "\n".join(message.text for message in request.messages)
            places = [text.index(f"summary {n} ") for n in range(made + 1) if f"summary {n} " in text]
            assert places == sorted(places)
        with sqlite3.connect(opened.database()) as connection:
            spans = connection.execute("SELECT first_seq, last_seq FROM summaries ORDER BY first_seq").fetchall()
        connection.close()
    assert any("summary 1 " in summarised(request) for request in model.requests_of(ProcessKind.COMPACTOR)[1:])
    assert all(first <= last for first, last in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))  # none twice


async def test_a_message_that_waits_is_never_covered(clock: MockClock, tmp_path: Path) -> None:
    """A summary's span ends before the words that nobody has answered yet."""
    room = ConversationId(ROOM)
    async with open_database(tmp_path / "log.db", package_file("storage", "sql")) as database:
        log, memoranda = Conversations(database, Clock()), Memoranda(database, Clock())
        await log.accept(text_from("Ann", "one", conversation=ROOM), observe=True)
        waiting = await log.accept(text_from("Bob", "two", conversation=ROOM))
        background = SummaryKind.BACKGROUND
        one = await memoranda.record_summary(room, first_seq=1, last_seq=99, kind=background, content="s")
        none = await memoranda.record_summary(room, first_seq=waiting.seq, last_seq=99, kind=background, content="s")
    assert one is not None
    assert one.last_seq == waiting.seq - 1
    assert none is None
