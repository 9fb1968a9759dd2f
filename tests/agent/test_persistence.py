"""Beside the talk, what is worth remembering is saved: in time, silently, once, and also when the program stops."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.persistence import RETRY_FIRST_S
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind
from spacebot.llm.messages import ModelRequest, ProcessKind
from spacebot.memory.types import EVERYTHING, Memory, Query, SearchMode, Viewer
from tests.fakes.opened import ROOM, Opened, open_test_agent
from tests.fakes.scripted_model import NOTHING_TO_SAVE, Call, Calls, Fail, Gate, ScriptedModel

SAVE = Call("memory_save", content="Ann keeps bees", person="ann")


def answers(request: ModelRequest) -> Call:
    return Call("reply", content="yes")


def report(request: ModelRequest) -> Call:
    """Name what the save before gave."""
    result = json.loads(request.messages[-1].parts[0].text)  # type: ignore[union-attr]
    return Call("memory_persistence_complete", outcome="saved", saved_memory_ids=[result["memory_id"]])


def talker(*persistence: Any) -> ScriptedModel:
    return ScriptedModel(answers, persistence=persistence or (lambda request: NOTHING_TO_SAVE))


async def talk(opened: Opened, count: int) -> None:
    for _ in range(count):
        before = len(opened.of_kind(EventKind.TURN_ENDED))
        await opened.say("Ann", f"message {before}")
        await opened.ended(before + 1)
        await opened.settled()


async def known(opened: Opened, viewer: Viewer = EVERYTHING) -> Sequence[Memory]:
    found = await opened.agent.memory.recall(Query(viewer=viewer, mode=SearchMode.RECENT))
    return [hit.memory for hit in found.hits]


def runs(opened: Opened) -> list[tuple[int, str]]:
    with sqlite3.connect(opened.database()) as connection:
        rows = connection.execute("SELECT last_seq, outcome FROM persistence_runs ORDER BY rowid").fetchall()
    connection.close()
    return rows


async def test_after_so_many_messages_what_they_hold_is_saved_and_nobody_hears_of_it(
    clock: MockClock, tmp_path: Path
) -> None:
    model = talker(SAVE, report)
    async with open_test_agent(tmp_path, model, memory_persistence={"message_interval": 3}) as opened:
        await talk(opened, 2)
        assert model.persistence_requests == []
        await talk(opened, 1)
        (memory,) = await known(opened)
        assert runs(opened) == [(6, "saved")]
        assert len(opened.of_kind(EventKind.OUTBOUND_MESSAGE)) == 3
        assert len(opened.of_kind(EventKind.TURN_ENDED)) == 3
        await talk(opened, 1)
    assert (memory.content, memory.subject, memory.user_id, memory.is_private) == (
        "Ann keeps bees", "test:ann", "ann", True,
    )  # fmt: skip
    (asked, _) = model.persistence_requests
    for number in range(3):
        assert f"Ann (id ann): message {number}" in asked.messages[0].text
    assert "Ann keeps bees" not in "".join(m.text for m in model.requests_of(ProcessKind.CHANNEL)[-1].messages[:-1])


async def test_a_short_talk_is_gone_through_when_it_rests(clock: MockClock, tmp_path: Path) -> None:
    model = talker()
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, 1)
        await opened.advance(899)
        assert model.persistence_requests == []
        await opened.advance(2)
        assert len(model.persistence_requests) == 1
        await opened.advance(2000)
        assert len(model.persistence_requests) == 1  # nothing new was said


async def test_finished_work_counts(clock: MockClock, tmp_path: Path) -> None:
    thinking = Calls(Call("branch", description="look"), Call("reply", content="wait"))
    model = ScriptedModel(thinking, Call("reply", content="found"), branch=["it is there"])
    async with open_test_agent(tmp_path, model, memory_persistence={"event_interval": 1}) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.settled()
        assert len(model.persistence_requests) == 1


async def test_a_run_looks_only_at_what_is_new(clock: MockClock, tmp_path: Path) -> None:
    model = talker()
    async with open_test_agent(tmp_path, model, memory_persistence={"message_interval": 2}) as opened:
        await talk(opened, 4)
    _, second = (request.messages[0].text for request in model.persistence_requests)
    new = second.split("New since")[1]
    assert "message 1" not in new
    assert "message 2" in new
    assert "message 1" in second  # as context


async def test_a_run_that_fails_leaves_nothing_out(clock: MockClock, tmp_path: Path) -> None:
    model = talker(Fail(ModelUnavailableError("down", model="m")), NOTHING_TO_SAVE)
    async with open_test_agent(tmp_path, model, memory_persistence={"message_interval": 2}) as opened:
        await talk(opened, 2)
        assert runs(opened) == []
        await talk(opened, 1)
        assert len(model.persistence_requests) == 1  # a pause first
        await opened.advance(RETRY_FIRST_S)
        assert runs(opened) == [(6, "no_memories")]
    assert "message 0" in model.persistence_requests[-1].messages[0].text
    assert "message 2" in model.persistence_requests[-1].messages[0].text


@pytest.mark.spec("P72")
async def test_a_wrong_report_is_refused_and_the_right_one_ends_the_run_at_once(
    clock: MockClock, tmp_path: Path
) -> None:
    invented = Call(
        "memory_persistence_complete", outcome="saved", saved_memory_ids=["0" * 8 + "-0000" * 3 + "-" + "0" * 12]
    )

    def right(request: ModelRequest) -> Call:
        return report(ModelRequest(process=request.process, system=(), messages=request.messages[:3], tools=()))

    model = talker(SAVE, invented, right)
    async with open_test_agent(tmp_path, model, memory_persistence={"message_interval": 1}) as opened:
        await talk(opened, 1)
        assert runs(opened) == [(2, "saved")]
    assert len(model.persistence_requests) == 3
    assert "saved_memory_ids is wrong" in model.persistence_requests[2].messages[-1].parts[0].text  # type: ignore[union-attr]


async def test_a_run_without_a_report_is_done_all_the_same(clock: MockClock, tmp_path: Path) -> None:
    model = talker(SAVE, "I saved it.")
    async with open_test_agent(tmp_path, model, memory_persistence={"message_interval": 1}) as opened:
        await talk(opened, 1)
        assert runs(opened) == [(2, "unreported")]
        assert len(await known(opened)) == 1


async def test_a_stop_saves_first_and_what_it_cuts_is_saved_by_the_next_life(clock: MockClock, tmp_path: Path) -> None:
    model = talker(SAVE, report)
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened, 1)
        await opened.agent.drain(5)
        assert runs(opened) == [(2, "saved")]
    cut = talker(Gate(trio.Event()))
    async with open_test_agent(tmp_path, cut) as opened:
        await talk(opened, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.agent.drain, 5)
            await opened.advance(0)
            await opened.advance(6)
        assert runs(opened) == [(2, "saved")]
    model = talker()
    async with open_test_agent(tmp_path, model) as opened:
        await opened.settled()
        assert model.persistence_requests == []
        await opened.advance(900)
        assert runs(opened) == [(2, "saved"), (4, "no_memories")]
    assert "message 0" in model.persistence_requests[0].messages[0].text.split("New since")[1]


async def test_what_a_room_said_is_for_all_and_names_nobody_as_its_source(clock: MockClock, tmp_path: Path) -> None:
    model = talker(SAVE, report)
    async with open_test_agent(tmp_path, model) as opened:
        for name in ("Ann", "Bob"):
            await opened.say(name, f"{name} is here", conversation=ROOM)
        await opened.advance(5)
        await opened.ended(1)
        await opened.advance(901)
        (memory,) = await known(opened, Viewer())
    assert (memory.user_id, memory.subject, memory.channel_id) == (None, "test:ann", ROOM)


async def test_runs_do_not_crowd_out_branches_nor_each_other(clock: MockClock, tmp_path: Path) -> None:
    """Ten conversations rest at the same time: two runs at once, and branches have all their places."""
    free = trio.Event()
    model = ScriptedModel(
        lambda request: (
            Calls(Call("branch", description="think"), Call("reply", content="yes"))
            if "think" in request.messages[-1].text
            else Call("reply", content="yes")
        ),
        branch=lambda request: "thought",
        persistence=lambda request: Gate(free, NOTHING_TO_SAVE),
    )
    async with open_test_agent(tmp_path, model, max_concurrent_branches=1) as opened:
        for number in range(10):
            await opened.say("Ann", "hello", conversation=f"test:{number}", is_direct=True)
        await opened.ended(10)
        await opened.advance(901)
        assert len(list(opened.tree.of_kind(NodeKind.PERSISTENCE))) == 10
        assert len(model.persistence_requests) == 2
        await opened.say("Ann", "think", conversation="test:0", is_direct=True)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        free.set()
        await opened.settled()
        await opened.settled()
        assert len(model.persistence_requests) == 10


async def test_switched_off_means_no_run(clock: MockClock, tmp_path: Path) -> None:
    model = talker()
    off = {"enabled": False, "message_interval": 1}
    async with open_test_agent(tmp_path, model, memory_persistence=off) as opened:
        await talk(opened, 2)
        await opened.advance(5000)
        await opened.agent.drain(5)
    assert model.persistence_requests == []
