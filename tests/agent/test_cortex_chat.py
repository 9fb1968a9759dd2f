"""The owner's console: it sees everything, one question at a time, and no answer is lost with the browser."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.cortex_chat import ChatEvent
from spacebot.base.errors import BusyError, ModelUnavailableError, RefusedError
from spacebot.base.ids import new_uuid
from spacebot.base.tree import NodeKind
from spacebot.llm.messages import ProcessKind
from spacebot.memory.types import NewMemory, Provenance
from tests.fakes.opened import DIRECT, Opened, open_test_agent
from tests.fakes.scripted_model import Call, Fail, Gate, Say, ScriptedModel


def owner(*steps: Any) -> ScriptedModel:
    return ScriptedModel(lambda request: Call("reply", content="hello Ann"), cortex=steps)


async def asked(opened: Opened, text: str, thread: str | None = None, **fields: Any) -> tuple[str, list[ChatEvent]]:
    thread, events = await opened.agent.cortex_chat.start(thread, text, **fields)
    return thread, [event async for event in events]


async def test_it_finds_private_memories_and_shows_what_it_did(clock: MockClock, tmp_path: Path) -> None:
    model = owner(Call("memory_recall", query="Oslo"), "Nora wants to move to Oslo.")
    async with open_test_agent(tmp_path, model) as opened:
        origin = Provenance(channel_id="test:nora", user_id="nora", is_direct=True)
        await opened.agent.memory.save(NewMemory(content="Nora wants to move to Oslo", provenance=origin))
        thread, events = await asked(opened, "who wants to move?")
        (question, answer) = await opened.agent.cortex_chat.threads.messages(thread, 10)
    kinds = list(dict.fromkeys(event.kind for event in events))
    assert kinds == ["thinking", "tool_started", "tool_completed", "text", "done"]
    assert events[-1].fields["full_text"] == answer.content == "Nora wants to move to Oslo."
    assert question.content == "who wants to move?"
    (call,) = answer.tool_calls
    assert call["arguments"] == {"query": "Oslo"}
    assert "Nora wants to move to Oslo" in call["result"]


async def test_a_thread_goes_on_and_a_conversation_can_be_looked_at(clock: MockClock, tmp_path: Path) -> None:
    model = owner("first", "second", "other")
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "it rains in Bergen")
        await opened.ended(1)
        thread, _ = await asked(opened, "one")
        await asked(opened, "two", thread, channel_id=DIRECT)
        other, _ = await asked(opened, "elsewhere")
        listed = await opened.agent.cortex_chat.threads.threads(10)
        assert await opened.agent.cortex_chat.threads.delete(thread)
        assert not await opened.agent.cortex_chat.threads.delete(thread)
        assert await opened.agent.cortex_chat.threads.latest() == other
    first, second, elsewhere = model.requests_of(ProcessKind.CORTEX)
    assert [message.text for message in second.messages] == ["one", "first", "two"]
    assert "it rains in Bergen" in second.system[0].text
    assert "it rains in Bergen" not in first.system[0].text
    assert [message.text for message in elsewhere.messages] == ["elsewhere"]
    assert [(item.id, item.title, item.messages) for item in listed] == [(other, "elsewhere", 2), (thread, "one", 4)]


@pytest.mark.spec("P35")
async def test_one_question_at_a_time_for_the_whole_of_its_run(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("at last"))
    async with open_test_agent(tmp_path, owner(gate, "next")) as opened:
        chat = opened.agent.cortex_chat
        thread, events = await chat.start(None, "slow one")
        await gate.arrived.wait()
        with pytest.raises(BusyError):
            await chat.start(thread, "impatient")
        assert [m.content for m in await chat.threads.messages(thread, 10)] == ["slow one"]
        gate.event.set()
        assert [event.kind async for event in events][-1] == "done"
        await asked(opened, "now", thread)


async def test_an_answer_is_kept_when_nobody_reads_it_any_more(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("for later"))
    async with open_test_agent(tmp_path, owner(gate)) as opened:
        thread, events = await opened.agent.cortex_chat.start(None, "question")
        await gate.arrived.wait()
        events.close()
        gate.event.set()
        await opened.settled()
        found = await opened.agent.cortex_chat.threads.messages(thread, 10)
    assert [message.content for message in found] == ["question", "for later"]


async def test_failure_cancel_and_stop_are_written_down(clock: MockClock, tmp_path: Path) -> None:
    down = Fail(ModelUnavailableError("the provider is down", model="m"))
    async with open_test_agent(tmp_path, owner(down, Gate(trio.Event()), Gate(trio.Event()))) as opened:
        chat = opened.agent.cortex_chat
        thread, events = await asked(opened, "one")
        assert (events[-1].kind, events[-1].fields["message"]) == ("error", "the provider is down")
        _, running = await chat.start(thread, "two")
        assert chat.cancel()
        assert [event.kind async for event in running][-1] == "error"
        assert not chat.cancel()
        await chat.start(thread, "three")
        await opened.settled()
    async with open_test_agent(tmp_path, owner()) as opened:
        found = await opened.agent.cortex_chat.threads.messages(thread, 10)
        assert not list(opened.tree.of_kind(NodeKind.CORTEX))[1:]
    assert [message.content for message in found if message.role == "assistant"] == [
        "(failed: the provider is down)",
        "(cancelled: the owner cancelled it)",
        "(interrupted: the program is stopping)",
    ]


@pytest.mark.parametrize("text", ["", "  \n", "x" * 100_001])
async def test_what_cannot_be_asked_is_refused(clock: MockClock, tmp_path: Path, text: str) -> None:
    async with open_test_agent(tmp_path, owner()) as opened:
        with pytest.raises(RefusedError):
            await opened.agent.cortex_chat.start(None, text)
        with pytest.raises(RefusedError):
            await opened.agent.cortex_chat.start("../x", "hello")
        await opened.agent.cortex_chat.threads.messages(new_uuid(), 1)
