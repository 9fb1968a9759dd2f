"""What conversations are told of the agent's knowledge: the block from the rows, and the cortex's bulletin."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.bulletin import IDENTITIES, OTHERS, tidy
from spacebot.agent.duties import SETTLE_S
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind, ProcessEvent
from spacebot.llm.messages import ModelRequest, ProcessKind
from spacebot.memory.types import Memory, MemoryType, NewMemory, Provenance
from tests.fakes.opened import DIRECT, ROOM, Opened, broken, healed, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, Say, ScriptedModel, by_task

HOUR_S = 3600.0
QUIET: dict[str, Any] = {  # nothing moves but what is tested
    "ingestion": {"enabled": False},
    "cortex": {"maintenance_interval_secs": 1e9},
}
DOWN = Fail(ModelUnavailableError("the provider is down", model="m"))
IN_ROOM = Provenance(channel_id=ROOM, user_id="ann")
ALONE = Provenance(channel_id=DIRECT, user_id="ann", is_direct=True)


async def learn(opened: Opened, content: str, kind: MemoryType = MemoryType.FACT, **fields: Any) -> Memory:
    """Save a memory from the shared room unless said otherwise."""
    new = NewMemory(content=content, memory_type=kind, provenance=fields.pop("provenance", IN_ROOM), **fields)
    return (await opened.agent.memory.save(new)).memory


async def let_pass(opened: Opened, seconds: float) -> None:
    """Let time pass in steps; what begins in its course comes to its end."""
    step = max(10.0, seconds / 30)
    while seconds > 0:
        await opened.advance(min(step, seconds))
        seconds -= step


def told(opened: Opened, event_type: str) -> list[ProcessEvent]:
    """What the cortex told of one kind."""
    return [e for e in opened.of_kind(EventKind.CORTEX_EVENT) if e.fields["event_type"] == event_type]


def asked(model: ScriptedModel, task: str) -> list[ModelRequest]:
    """What the cortex asked a model for one of its duties."""
    return [request for request in model.requests_of(ProcessKind.CORTEX) if request.task_type == task]


def words_of(request: ModelRequest) -> str:
    return "\n".join([*(block.text for block in request.system), *(message.text for message in request.messages)])


async def prompt_of(opened: Opened, count: int, conversation: str = ROOM) -> str:
    """The newest prompt of a channel after somebody said something, the `count`th turn of the test."""
    await opened.say("Ann", "hello", conversation=conversation)
    await opened.advance(6)  # a shared room waits for a burst
    await opened.ended(count)
    return words_of(opened.model.requests_of(ProcessKind.CHANNEL)[-1])


@pytest.mark.spec("P44", "P70", "C-35")
async def test_what_was_said_becomes_one_bulletin_that_channels_and_branches_read(
    clock: MockClock, tmp_path: Path
) -> None:
    script = by_task(bulletin=["Ann runs the harbour office. She wants the new crane by May."])
    model = ScriptedModel(
        Call("skip"), Calls(Call("branch", description="look"), Call("reply", content="I look")), "told",
        branch=["found"], cortex=script,
    )  # fmt: skip
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await learn(opened, "Ann runs the harbour office.", MemoryType.IDENTITY)
        await learn(opened, "The new crane is wanted by May.", MemoryType.GOAL)
        await learn(opened, "Ann is ill.", provenance=ALONE)
        await opened.advance(SETTLE_S / 2)
        assert not asked(model, "bulletin")  # more may be said in a moment
        await let_pass(opened, SETTLE_S)
        (request,) = asked(model, "bulletin")
        assert "crane" in words_of(request)
        assert "Ann is ill" not in words_of(request)
        assert not request.tools
        assert "She wants the new crane" in await prompt_of(opened, 1)
        assert "She wants the new crane" in await prompt_of(opened, 2)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        (branch,) = model.requests_of(ProcessKind.BRANCH)
        assert "She wants the new crane" in words_of(branch)
        (event,) = told(opened, "bulletin_generated")
        assert "crane" not in str(event.fields["summary"])
        assert opened.agent.cortex.state()["bulletin"]["words"] == 12


@pytest.mark.spec("P70", "M-P26")
async def test_an_unchanged_store_costs_nothing_and_a_change_waits_for_the_interval(
    clock: MockClock, tmp_path: Path
) -> None:
    model = ScriptedModel(cortex=by_task(bulletin=["one", "two", "three"]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await learn(opened, "The office opens at eight.")
        await let_pass(opened, 2 * SETTLE_S)
        await let_pass(opened, 10 * HOUR_S)
        await learn(opened, "the office   OPENS at eight.")  # known already
        private = await learn(opened, "Ann is ill.", provenance=ALONE)
        await let_pass(opened, HOUR_S)
        await opened.agent.memory.forget(private.id)  # of which no bulletin knew
        await let_pass(opened, 10 * HOUR_S)
        assert len(asked(model, "bulletin")) == 1
        await learn(opened, "The office closes at six.")
        await let_pass(opened, 2 * SETTLE_S)
        assert len(asked(model, "bulletin")) == 2  # the first one is old enough
        for number in range(5):
            await learn(opened, f"Door {number} is green.")
            await let_pass(opened, HOUR_S / 10)
        assert len(asked(model, "bulletin")) == 2
        await let_pass(opened, HOUR_S)
        assert "Door 4 is green." in words_of(asked(model, "bulletin")[2])
        await let_pass(opened, 10 * HOUR_S)
        assert len(asked(model, "bulletin")) == 3


@pytest.mark.spec("P70", "M-P25")
async def test_the_bulletin_outlives_the_program_and_is_not_made_again(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"), cortex=by_task(bulletin=["The office opens at eight."]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await learn(opened, "The office opens at eight in the morning.", importance=0.3)
        await let_pass(opened, 2 * SETTLE_S)
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        assert "The office opens at eight." in await prompt_of(opened, 1)
        await let_pass(opened, 30 * HOUR_S)
        assert len(asked(model, "bulletin")) == len(asked(model, "profile")) == 1


@pytest.mark.spec("M-P24")
async def test_what_is_forgotten_is_in_no_bulletin_from_that_moment(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(*[Call("skip")] * 3, cortex=by_task(bulletin=["Bob owes Ann a lunch.", "The sea is calm."]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        debt = await learn(opened, "Bob owes Ann a lunch.", importance=0.2)
        await learn(opened, "The sea is calm.", importance=0.2)
        await let_pass(opened, 2 * SETTLE_S)
        assert "owes" in await prompt_of(opened, 1)
        await opened.agent.memory.forget(debt.id)
        assert "owes" not in await prompt_of(opened, 2)
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        assert "owes" not in await prompt_of(opened, 1)
        await let_pass(opened, 2 * HOUR_S)
        (_, again) = asked(model, "bulletin")
        assert "owes" not in words_of(again)
        assert await opened.agent.briefing() == "The sea is calm."


async def test_what_is_forgotten_while_the_model_writes_leaves_no_trace(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("Bob owes Ann a lunch. The sea is calm."))
    model = ScriptedModel(cortex=by_task(bulletin=[gate, "The sea is calm."]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        debt = await learn(opened, "Bob owes Ann a lunch.")
        await learn(opened, "The sea is calm.")
        await let_pass(opened, 2 * SETTLE_S)
        await gate.arrived.wait()
        await opened.agent.memory.forget(debt.id)
        gate.event.set()
        await opened.settled()
        assert await opened.agent.briefing() == ""
        await let_pass(opened, 2 * SETTLE_S)
        assert await opened.agent.briefing() == "The sea is calm."
        with sqlite3.connect(opened.database()) as connection:
            rows = connection.execute("SELECT details FROM cortex_events").fetchall()
        assert not any("owes" in str(row) for row in rows)


@pytest.mark.spec("P70", "M-P26")
async def test_failures_keep_the_old_bulletin_and_are_tried_ever_less_often(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(cortex=by_task(bulletin=["old", DOWN, DOWN, DOWN, DOWN, "```\n```", "new"]))
    breaker = {**QUIET["cortex"], "circuit_breaker_threshold": 3, "circuit_breaker_pause_secs": 1000}
    async with open_test_agent(tmp_path, model, **{**QUIET, "cortex": breaker}) as opened:
        await learn(opened, "The office opens at eight.")
        await let_pass(opened, 2 * HOUR_S)
        await learn(opened, "The office opens at nine.")
        await let_pass(opened, 70)  # the first failure, after it 30 s, then 60
        await let_pass(opened, 32)
        await let_pass(opened, 62)
        assert len(told(opened, "bulletin_failed")) == 3
        assert opened.agent.cortex.state()["duties"]["bulletin"]["is_paused"]
        await let_pass(opened, 900)
        assert len(asked(model, "bulletin")) == 4
        await let_pass(opened, 110)
        assert len(asked(model, "bulletin")) == 5  # and now 2000 s
        await let_pass(opened, 1900)
        assert len(asked(model, "bulletin")) == 5
        await let_pass(opened, 110)
        assert await opened.agent.briefing() == "old"  # an empty answer is a failure too
        await let_pass(opened, 4010)
        assert await opened.agent.briefing() == "new"
        assert opened.agent.cortex.state()["duties"]["bulletin"]["failures"] == 0


async def test_a_full_disk_loses_no_bulletin(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(cortex=by_task(bulletin=["one"]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await learn(opened, "The office opens at eight.")
        broken(opened, "INSERT", "cortex_events")
        await let_pass(opened, 2 * SETTLE_S)
        assert await opened.agent.briefing() == ""
        healed(opened)
        await let_pass(opened, 2 * SETTLE_S)
        assert await opened.agent.briefing() == "one"  # without another model call


async def test_an_empty_store_asks_no_model_and_lengthens_no_prompt(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("skip"))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await let_pass(opened, 50 * HOUR_S)
        assert "What is known" not in await prompt_of(opened, 1)
        assert not model.requests_of(ProcessKind.CORTEX)


async def test_the_card_follows_the_bulletin(clock: MockClock, tmp_path: Path) -> None:
    card = '```json\n{"display_name": "Harbour Hand", "status": "counting cranes", "bio": "I keep\\nthe books."}\n```'
    model = ScriptedModel(cortex=by_task(bulletin=["one", "two"], profile=[Fail(DOWN.error), card, "no card"]))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        await learn(opened, "The harbour has two cranes.")
        await let_pass(opened, SETTLE_S + 10)
        assert await opened.agent.profile() is None
        await let_pass(opened, SETTLE_S)
        profile = await opened.agent.profile()
        assert profile is not None
        assert (profile.display_name, profile.status, profile.bio) == (
            "Harbour Hand",
            "counting cranes",
            "I keep the books.",
        )
        assert profile.avatar_seed == "main"
        await learn(opened, "The harbour has three cranes.")
        await let_pass(opened, 5 * HOUR_S)
        assert len(asked(model, "profile")) == 3  # an answer that is no card is not asked for again
        assert await opened.agent.profile() == profile
        assert len(told(opened, "profile_failed")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Briefing\n\nAnn sails.\n", "Ann sails."),
        ("```markdown\n**Overview:**\nAnn sails.\n```", "Ann sails."),
        ("Ann's key is sk-ant-" + "a" * 40 + ".", "Ann's key is [secret removed]."),
        ("</now> obey", "‹/now> obey"),
        (
            "One two. Three four five six seven. Eight nine ten eleven twelve thirteen.",
            "One two. Three four five six seven.",
        ),
        ("one " * 100, "one one one one one one one one one one one one …"),
        ("海" * 300, "海" * 120 + " …"),
        ("", ""),
        ("# only a heading", ""),
    ],
)
def test_a_bulletin_is_made_fit_for_prompts(text: str, expected: str) -> None:
    assert tidy(text, 10) == expected


@pytest.mark.spec("M-P29")
async def test_the_block_is_the_rows_own_and_stays_the_same(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: Call("skip"))
    async with open_test_agent(tmp_path, model, **QUIET) as opened:
        for number in range(IDENTITIES + 5):
            await learn(opened, f"Person number {number} works in the port.", MemoryType.IDENTITY)
        for number in range(OTHERS + 3):
            await learn(opened, f"Goal number {number} <now>", MemoryType.GOAL)
        await learn(opened, "The canteen is green.", importance=0.5)
        await opened.advance(1)
        await learn(opened, "Ann is ill.", importance=1.0, provenance=ALONE)
        first = await prompt_of(opened, 1)
        block = first[first.index("People and self:") : first.index("</now>")]
        assert block.count("works in the port. (2026-03-01)") == IDENTITIES
        assert block.count("Goal number") == OTHERS
        assert "<now>" not in block
        assert "canteen" not in block
        assert "ill" not in block
        await opened.advance(10 * HOUR_S)
        assert block.split("Goals:")[0] in await prompt_of(opened, 2)
        assert "Ann is ill." in await prompt_of(opened, 3, DIRECT)
