"""What models are told: stable, small, true to the tools, and the owner's to change."""

import json
import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.pacing import RESULT_DEBOUNCE_S
from spacebot.agent.prompts import load_prompts
from spacebot.base.errors import ConfigError
from spacebot.base.events import EventKind
from spacebot.base.ids import MemoryId
from spacebot.base.paths import bundled_prompts
from spacebot.llm.messages import ModelRequest, ProcessKind
from spacebot.memory.types import EVERYTHING, MemoryType, NewMemory, Provenance
from tests.fakes.opened import DIRECT, ROOM, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, ScriptedModel

DONE = Call("set_status", kind="outcome", status="done")


def size_tokens(request: ModelRequest) -> int:
    system = sum(len(block.text.encode()) for block in request.system)
    tools = sum(len(json.dumps({"n": t.name, "d": t.description, "s": t.schema}).encode()) for t in request.tools)
    return (system + tools + sum(len(message.text.encode()) for message in request.messages)) // 4


async def test_the_first_request_is_small(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="hello"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hello")
        await opened.ended(1)

    assert size_tokens(model.requests[0]) <= 3000


@pytest.mark.spec("P39")
async def test_the_system_prompt_is_the_same_to_the_byte_whatever_happens(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), DONE)
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="work"), Call("reply", content="on it")), Call("reply", content="two"), "three",
        Call("reply", content="four"), worker=[gate],
    )  # fmt: skip
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "one")
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.advance(1000)
        await opened.agent.memory.save(
            NewMemory(content="Ann likes tea.", memory_type=MemoryType.FACT, importance=1.0,
                      provenance=Provenance(channel_id=DIRECT, user_id="ann", is_direct=True))
        )  # fmt: skip
        await opened.say("Ann", "two")
        await opened.ended(2)
        gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(3)
        await opened.say("Bob", "four", conversation=ROOM, is_direct=True)
        await opened.ended(4)

    requests = model.requests_of(ProcessKind.CHANNEL)
    assert len({request.system for request in requests}) == 1
    assert all(block.is_stable for block in requests[0].system)
    assert [t.name for t in requests[0].tools][:6] == [t.name for t in requests[2].tools][:6]
    prompt = requests[1].messages[-1].text
    assert "Ann likes tea." in prompt  # what changes stands in the live message
    assert "Worker" in prompt


@pytest.mark.spec("P43")
async def test_prompts_mention_no_tool_that_the_process_lacks(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("spawn_worker", task="work"), Call("reply", content="on it")),
        "told",
        branch=["found"],
        worker=[DONE],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "both")
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)

    names = {file.stem for file in (bundled_prompts() / "tools").glob("*.md")}
    fragments = {
        ProcessKind.CHANNEL: ("tool_syntax", "turn", "bridge"),
        ProcessKind.BRANCH: ("overflow",),
        ProcessKind.WORKER: ("overflow", "worker_continue", "worker_injected", "worker_nudge", "worker_resume"),
    }
    for kind, own in fragments.items():
        request = model.requests_of(kind)[0]
        texts = [block.text for block in request.system] + [tool.description for tool in request.tools]
        texts += [(bundled_prompts() / "fragments" / f"{name}.md").read_text() for name in own]
        mentioned = {word for text in texts for word in re.findall(r"`(\w+)`|\b(\w+_\w+)\b", text) for word in word}
        assert mentioned & names <= {tool.name for tool in request.tools}, kind


@pytest.mark.spec("P45")
async def test_a_file_of_comments_only_is_no_identity(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"), Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hi")
        await opened.ended(1)
        (tmp_path / "agents" / "main" / "USER.md").write_text("<!-- nothing -->\nAnn runs the shop.\n")
        assert await opened.agent.reload_prompts() == ["user"]
        await opened.say("Ann", "hi")
        await opened.ended(2)

    first, second = (request.system[0].text for request in model.requests)
    assert "<!--" not in first
    assert "The people you work for" not in first
    assert "Your name is Spacebot" in first  # a real default
    assert "Ann runs the shop." in second


async def test_overrides_win_agent_over_instance_and_are_read_anew(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(*[Call("skip")] * 3)
    async with open_test_agent(tmp_path, model) as opened:
        (tmp_path / "prompts" / "CHANNEL.md").write_text("The instance speaks. {{ soul }}")
        assert await opened.agent.reload_prompts() == ["CHANNEL"]
        await opened.say("Ann", "hi")
        await opened.ended(1)
        folder = tmp_path / "agents" / "main" / "prompts"
        (folder / "tools").mkdir()
        (folder / "CHANNEL.md").write_text("The agent speaks at {{ current_time }}, knowing: {{ memory_bulletin }}.")
        (folder / "tools" / "skip.md").write_text("Hush.")
        assert await opened.agent.reload_prompts() == ["CHANNEL", "tools/skip"]
        await opened.say("Ann", "hi")
        await opened.ended(2)
        assert await opened.agent.reload_prompts() == []

    assert model.requests[0].system[0].text.startswith("The instance speaks. You are calm")
    (block,) = model.requests[1].system
    assert block.text == "The agent speaks at 2026-03-01 12:00 UTC (+00:00), knowing: ."
    assert not block.is_stable
    assert "Hush." in [tool.description for tool in model.requests[1].tools]


@pytest.mark.parametrize("broken", ["{% if %}", "{{ soul", b"\xff\xfe", "x" * 300_000])
async def test_a_broken_override_keeps_the_old_texts(broken: str | bytes, clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(*[Call("skip")] * 2)
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hi")
        await opened.ended(1)
        target = tmp_path / "prompts" / "CHANNEL.md"
        target.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
        with pytest.raises(ConfigError, match=r"CHANNEL\.md"):
            await opened.agent.reload_prompts()
        await opened.say("Ann", "hi")
        await opened.ended(2)

    assert model.requests[0].system == model.requests[1].system


async def test_a_broken_override_stops_the_start_and_names_itself(tmp_path: Path) -> None:
    (tmp_path / "WORKER.md").write_text("{% endfor %}")
    with pytest.raises(ConfigError, match=r"WORKER\.md.*line 1"):
        await load_prompts(bundled_prompts(), tmp_path, tmp_path / "none", tmp_path)


async def test_every_bundled_tool_has_a_description(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hi")
        await opened.ended(1)

    assert [tool.name for tool in model.requests[0].tools] == [
        "reply", "branch", "spawn_worker", "route", "cancel", "skip", "react", "send_file", "cron",
    ]  # fmt: skip
    for tool in model.requests[0].tools:
        assert tool.description
        assert "title" not in tool.schema


@pytest.mark.spec("P16")
async def test_what_stands_for_dropped_messages_is_short(clock: MockClock, tmp_path: Path) -> None:
    """No recap of what was dropped: it would fill the window again."""
    assert len((bundled_prompts() / "fragments" / "overflow.md").read_bytes()) < 400


async def test_what_a_person_said_while_a_branch_thinks_is_not_learned_from_somebody_else(
    clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event(), Call("memory_save", content="Ann is allergic to nuts.", memory_type="fact"))
    model = ScriptedModel(
        Calls(Call("branch", description="save it"), Call("reply", content="noted")),
        Call("reply", content="hello"),
        "saved",
        branch=[gate, "saved"],
    )
    async with open_test_agent(tmp_path, model, coalesce={"debounce_ms": 0}) as opened:
        await opened.say("Ann", "I am allergic to nuts", conversation=ROOM)
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Bob", "hello", conversation=ROOM)
        await opened.ended(2)
        gate.event.set()
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        (saved,) = opened.of_kind(EventKind.MEMORY_SAVED)
        memory = await opened.agent.memory.get(MemoryId(str(saved.fields["memory_id"])), EVERYTHING)

    assert memory.user_id == "ann"
