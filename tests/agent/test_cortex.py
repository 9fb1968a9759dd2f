"""The cortex's upkeep: what runs when, what it costs, what happens when it fails; and that idleness is free."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.duties import DAY_S, OBSERVE_SETTLE_S, SETTLE_S
from spacebot.agent.observation import LEAST_NEWS, MOST_SAVED, parse_verdicts
from spacebot.base.events import EventKind, ProcessEvent
from spacebot.base.tree import NodeKind, NodeState
from spacebot.llm.messages import ModelRequest, ProcessKind, ToolResult
from spacebot.memory.association import Verdict
from spacebot.memory.types import Memory, MemoryType, NewMemory, Provenance, RelationType
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, ROOM, Opened, broken, healed, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, ScriptedModel, by_task

HOUR_S = 3600.0
WORDS = ["Ann", "Bob", "harbour", "crane", "quay", "office", "ship", "doctor", "tea", "boat"]
OTHER_ROOM = "test:workshop"
ALONE = Provenance(channel_id=DIRECT, user_id="ann", is_direct=True)
QUIET: dict[str, Any] = {  # nothing moves but what is tested
    "ingestion": {"enabled": False},
    "cortex": {"maintenance_interval_secs": 1e9, "bulletin_interval_secs": 1e9},
}


async def learn(opened: Opened, content: str, kind: MemoryType = MemoryType.FACT, **fields: Any) -> Memory:
    """Save a memory from the shared room unless said otherwise."""
    origin = fields.pop("provenance", Provenance(channel_id=ROOM, user_id="ann"))
    return (
        await opened.agent.memory.save(NewMemory(content=content, memory_type=kind, provenance=origin, **fields))
    ).memory


async def let_pass(opened: Opened, seconds: float, step: float = 10.0) -> None:
    """Let time pass in steps; what begins in its course comes to its end."""
    step = max(step, seconds / 30)
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
    return "\n".join(message.text for message in request.messages)


def logged(opened: Opened, event_type: str) -> list[dict[str, Any]]:
    """Details of the curation log's rows of one kind."""
    with sqlite3.connect(opened.database()) as connection:
        rows = connection.execute(
            "SELECT details FROM cortex_events WHERE event_type = ? ORDER BY seq", (event_type,)
        ).fetchall()
    return [json.loads(details) if details else {} for (details,) in rows]


class Steps(trio.abc.Instrument):
    """Counts how often the cortex's tasks run."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "cortex" in task.name


@contextmanager
def counted() -> Iterator[Steps]:
    """Count the steps of the cortex inside the block."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


class TestIdle:
    """No work, no cost."""

    @pytest.mark.spec("P70", "M-P26")
    async def test_an_idle_agent_asks_no_model_for_a_week_and_hardly_wakes(
        self, clock: MockClock, tmp_path: Path
    ) -> None:
        model = ScriptedModel(cortex=by_task(bulletin=["All is well."]))
        async with open_test_agent(
            tmp_path, model, ingestion={"enabled": False}, cortex={"maintenance_interval_secs": 1e9}
        ) as opened:
            for number in range(len(WORDS)):
                await learn(opened, f"{WORDS[number]} is known.")
            await let_pass(opened, 2 * HOUR_S)
            calls = len(model.requests)
            assert calls == 2  # the bulletin and the card
            with counted() as steps:
                await let_pass(opened, HOUR_S, step=20)
                await let_pass(opened, 7 * DAY_S)
            assert steps.count == 0
            assert len(model.requests) == calls
            assert opened.agent.cortex.state()["bulletin"]["is_shown"]

    async def test_an_empty_agent_wakes_once_a_day(self, clock: MockClock, tmp_path: Path) -> None:
        model = ScriptedModel()
        async with open_test_agent(tmp_path, model, ingestion={"enabled": False}) as opened:
            await let_pass(opened, 200)
            with counted() as steps:
                await let_pass(opened, 6 * HOUR_S)
                assert steps.count == 0
                for _ in range(7):
                    await let_pass(opened, DAY_S)
            assert 7 <= steps.count <= 7 * 12
            assert not model.requests
            assert not logged(opened, "maintenance_failed")

    async def test_the_cortex_is_a_node_that_says_what_it_does(self, clock: MockClock, tmp_path: Path) -> None:
        gate = Gate(trio.Event())
        model = ScriptedModel(cortex=by_task(bulletin=[gate]))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await let_pass(opened, 20)
            assert opened.node(NodeKind.CORTEX).state is NodeState.WAITING
            await learn(opened, "The office opens at eight.")
            await let_pass(opened, 2 * SETTLE_S)
            await gate.arrived.wait()
            node = opened.node(NodeKind.CORTEX)
            assert (node.state, node.status, node.agent_id) == (NodeState.RUNNING, "bulletin", "main")
            assert opened.agent.cortex.state()["duties"]["bulletin"]["is_running"]
            json.dumps(opened.agent.cortex.state())
        assert not [view for view in opened.tree.view() if view.kind == "cortex"]

    async def test_a_closed_bus_sets_nothing_spinning(self, clock: MockClock, tmp_path: Path) -> None:
        async with open_test_agent(tmp_path, ScriptedModel(), **QUIET) as opened:
            await let_pass(opened, 60)
            with counted() as steps:
                opened.events.close()  # as the program does when it stops, before its agents end
                await let_pass(opened, HOUR_S)
            assert steps.count <= 10


class TestMaintenance:
    """Rarely, in time, and never twice at once."""

    SETTINGS: dict[str, Any] = {  # noqa: RUF012
        "ingestion": {"enabled": False},
        "cortex": {"bulletin_interval_secs": 1e9, "association_interval_secs": 1e9},
    }

    def due_s(self, opened: Opened) -> float:
        """Seconds until the next pass."""
        return float(opened.agent.cortex.state()["duties"]["maintenance"]["due_in_s"])

    @pytest.mark.spec("M-P37")
    async def test_it_follows_a_change_after_an_interval_and_decay_after_a_day(
        self, clock: MockClock, tmp_path: Path
    ) -> None:
        model = ScriptedModel(
            Calls(Call("branch", description="look"), Call("reply", content="I look")), "told", branch=["found"]
        )
        async with open_test_agent(tmp_path, model, **self.SETTINGS, patience_s=120) as opened:
            await let_pass(opened, 600)
            assert self.due_s(opened) == pytest.approx(DAY_S - 600, abs=20)
            await learn(opened, "The office opens at eight.")
            await let_pass(opened, 600)
            assert self.due_s(opened) == pytest.approx(HOUR_S - 1200, abs=20)
            await opened.advance(HOUR_S - 1200)
            # The vector table is written by a child process, which needs real time and a clock that stands still.
            await opened.until(lambda e: e.fields.get("event_type") == "maintenance_completed")
            await let_pass(opened, 60)
            assert self.due_s(opened) == pytest.approx(DAY_S - 60, abs=20)
            await opened.say("Ann", "look")
            await opened.events_of(EventKind.BRANCH_COMPLETED, 1)  # which may have recalled something
            await let_pass(opened, 20)
            assert self.due_s(opened) == pytest.approx(HOUR_S - 80, abs=20)
        async with open_test_agent(tmp_path, model, **self.SETTINGS) as opened:
            await let_pass(opened, 20)
            assert self.due_s(opened) > DAY_S - HOUR_S  # the last life's pass counts

    async def test_a_pass_that_fails_is_told_and_tried_again(self, clock: MockClock, tmp_path: Path) -> None:
        async with open_test_agent(tmp_path, ScriptedModel(), **self.SETTINGS, patience_s=120) as opened:
            await learn(opened, "The office opens at eight.", MemoryType.EVENT)
            await let_pass(opened, 60)
            broken(opened, "INSERT", "settings")
            await opened.advance(HOUR_S)
            await let_pass(opened, 60)
            state = opened.agent.cortex.state()["duties"]["maintenance"]
            assert state["failures"] == len(logged(opened, "maintenance_failed")) == 2
            assert 0 < state["due_in_s"] <= 60


class TestObservations:
    """Across channels, of what anybody may know."""

    async def test_enough_news_is_looked_over_once_a_day(self, clock: MockClock, tmp_path: Path) -> None:
        def save(request: ModelRequest) -> Call:
            first = words_of(request).split("\n- ", 1)[1][:36]
            return Call(
                "memory_save", content="Three rooms asked about deployments this week.", memory_type="decision",
                importance=1.0, source="somebody", associations=[{"target_id": first, "relation_type": "related_to"}],
            )  # fmt: skip

        script = by_task(observation=[Call("memory_recall", query="deployments"), save, "One pattern.", "Nothing."])
        model = ScriptedModel(Call("skip"), cortex=script)
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await opened.say("Ann", "hello", conversation=ROOM, is_direct=False, channel_name="harbour")
            for number in range(LEAST_NEWS - 1):
                room = ROOM if number % 2 else OTHER_ROOM
                await learn(opened, f"Deployment {number} was asked for.", provenance=Provenance(channel_id=room))
            await learn(opened, "Ann is ill.", provenance=ALONE)
            await let_pass(opened, 2 * OBSERVE_SETTLE_S)
            assert not asked(model, "observation")
            await learn(opened, "Deployment 29 was asked for.")
            await let_pass(opened, 2 * OBSERVE_SETTLE_S)
            first, second, third = asked(model, "observation")
            assert "Deployment 3 was asked for." in words_of(first)
            assert OTHER_ROOM in words_of(first)
            assert all("ill" not in words_of(request) for request in (first, second, third))
            assert not any(
                "Ann is ill" in str(part) for m in third.messages for part in m.parts if isinstance(part, ToolResult)
            )
            ((saved,),) = [details["memory_ids"] for details in logged(opened, "observation_created")]
            memory = await opened.agent.memory.get(saved)
            assert (memory.memory_type, memory.source, memory.is_private) == (MemoryType.OBSERVATION, "cortex", False)
            assert memory.importance <= 0.4
            edges = await opened.agent.memory.associations(saved)
            assert RelationType.RELATED_TO in {edge.relation_type for edge in edges}
            for number in range(LEAST_NEWS):
                await learn(opened, f"Ship {number} came in.")
            await let_pass(opened, 10 * HOUR_S)
            assert len(asked(model, "observation")) == 3
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await let_pass(opened, DAY_S + HOUR_S)
            (look,) = asked(model, "observation")[3:]
            assert "Ship 7 came in." in words_of(look)
            assert "Deployment" not in words_of(look)
            assert "Three rooms" not in words_of(look)  # its own words are no news
            await let_pass(opened, 3 * DAY_S)
            assert len(asked(model, "observation")) == 4

    async def test_a_talkative_model_saves_a_few_only(self, clock: MockClock, tmp_path: Path) -> None:
        saves = Calls(*[Call("memory_save", content=f"Pattern {number}.") for number in range(MOST_SAVED + 3)])
        model = ScriptedModel(cortex=by_task(observation=[saves, "done"]))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            for number in range(LEAST_NEWS):
                await learn(opened, f"Ship {number} came in.")
            await let_pass(opened, 2 * OBSERVE_SETTLE_S)
            assert len(logged(opened, "observation_created")[0]["memory_ids"]) == MOST_SAVED

    async def test_what_is_made_of_something_forgotten_meanwhile_does_not_stay(
        self, clock: MockClock, tmp_path: Path
    ) -> None:
        gate = Gate(trio.Event(), "done")
        save = Call("memory_save", content="Bob is often late for the ferry.")
        model = ScriptedModel(cortex=by_task(observation=[save, gate]))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            ships = [await learn(opened, f"Bob missed ferry {number}.") for number in range(LEAST_NEWS)]
            await let_pass(opened, 2 * OBSERVE_SETTLE_S)
            await gate.arrived.wait()
            await opened.agent.memory.forget(ships[3].id)
            gate.event.set()
            await opened.until(lambda event: event.fields.get("event_type") == "observation_skipped")
            await opened.settled()
            assert logged(opened, "observation_skipped")[0]["memory_ids"] == []
            with sqlite3.connect(opened.database()) as connection:
                assert not connection.execute("SELECT * FROM memories WHERE content LIKE '%often late%'").fetchall()


class TestContradictions:
    """Pairs are judged once, in batches, and no private word meets another's."""

    async def test_a_model_judges_what_similarity_cannot(self, clock: MockClock, tmp_path: Path) -> None:
        def judge(request: ModelRequest) -> str:
            count = words_of(request).count("\nolder,")
            return (
                "Here:\n```json\n"
                + json.dumps([{"pair": n + 1, "verdict": "contradicts"} for n in range(count)])
                + "```"
            )

        model = ScriptedModel(cortex=by_task(contradiction=judge))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            old = await learn(opened, "The harbour master likes the red crane on the quay.")
            own = await learn(opened, "Ann trusts the old doctor in the harbour street.", provenance=ALONE)
            await opened.advance(60)
            new = await learn(opened, "The harbour master does not like the red crane on the quay.")
            await learn(opened, "Ann does not trust the old doctor in the harbour street.", provenance=ALONE)
            pairs = await opened.agent.memory.candidates_for_contradiction(10)
            assert {pair.older.id for pair in pairs} == {old.id, own.id}
            await let_pass(opened, 4 * HOUR_S)
            assert len(asked(model, "contradiction")) == 1  # what is left waits until something is said
            await learn(opened, "Bob paints.")
            await let_pass(opened, 4 * HOUR_S)
            await learn(opened, "Bob sings.")
            await let_pass(opened, 4 * HOUR_S)
            requests = asked(model, "contradiction")
            assert len(requests) == 2  # one for everybody's, one for Ann's
            assert not any("crane" in words_of(r) and "doctor" in words_of(r) for r in requests)
            edges = await opened.agent.memory.associations(new.id)
            assert RelationType.CONTRADICTS in {e.relation_type for e in edges if old.id in (e.source_id, e.target_id)}
            assert "doctor" not in "".join(str(e.fields) for e in opened.of_kind(EventKind.CORTEX_EVENT))

    async def test_pairs_without_a_verdict_are_asked_for_twice_only(self, clock: MockClock, tmp_path: Path) -> None:
        model = ScriptedModel()  # hears of a quiet day, which is no verdict
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await learn(opened, "The harbour master likes the red crane on the quay.")
            await learn(opened, "The harbour master does not like the red crane on the quay.")
            for number in range(4):
                await let_pass(opened, 2 * HOUR_S)
                await learn(opened, f"Bob {['paints', 'sings', 'swims', 'sleeps'][number]}.")
            assert len(asked(model, "contradiction")) == 2
            assert not await opened.agent.memory.candidates_for_contradiction(10)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('[{"pair": 1, "verdict": "contradicts"}]', {1: Verdict.CONTRADICTS}),
            ('{"pair": "2", "verdict": " Updates "}, {"pair": 1, "verdict": "same"}',
             {2: Verdict.UPDATES, 1: Verdict.NEITHER}),
            ('[{"pair": 3, "verdict": "contradicts"}, {"pair": 0, "verdict": "same"}]', {}),
            ('[{"pair": 1, "verdict": "perhaps"}, {"pair": 1}, {"verdict": "same"}, 7]', {}),
            ('[{"pair": null, "verdict": "same"}, {"pair": {}, "verdict": "same"}]', {}),
            ("", {}),
        ],
    )  # fmt: skip
    def test_verdicts_are_read_leniently(self, text: str, expected: dict[int, Verdict]) -> None:
        assert parse_verdicts(text, 2) == expected


class TestAssociation:
    """The back-fill follows saves and goes on after a restart."""

    @pytest.mark.spec("P48")
    async def test_what_the_limit_left_is_linked_in_later_passes(self, clock: MockClock, tmp_path: Path) -> None:
        cortex = {**QUIET["cortex"], "association_interval_secs": 300, "association_max_per_pass": 2}
        model = ScriptedModel()
        async with open_test_agent(tmp_path, model, **{**QUIET, "cortex": cortex}) as opened:
            await let_pass(opened, 30)
            with sqlite3.connect(opened.database()) as connection:
                before = connection.execute("SELECT count(*) FROM associations").fetchone()[0]
            for number in range(8):
                await learn(
                    opened,
                    f"The red crane number {number} stands on the long quay of the old harbour",
                    MemoryType.EVENT,
                )
            with sqlite3.connect(opened.database()) as connection:
                connection.execute("DELETE FROM associations")
            assert before == 0
            await let_pass(opened, 320)
            assert sum(row["count"] for row in logged(opened, "association_created")) == 2
        async with open_test_agent(tmp_path, model, **{**QUIET, "cortex": cortex}) as opened:
            await let_pass(opened, 20)
            assert sum(row["count"] for row in logged(opened, "association_created")) == 4
            await let_pass(opened, 3 * HOUR_S, step=100)
            total = sum(row["count"] for row in logged(opened, "association_created"))
            assert total > 20
            await let_pass(opened, 10 * HOUR_S)
            assert sum(row["count"] for row in logged(opened, "association_created")) == total


class TestFailures:
    """A duty that breaks harms neither the others nor the agent."""

    async def test_a_broken_duty_is_an_error_and_the_agent_goes_on(
        self, clock: MockClock, tmp_path: Path, logs: Logs
    ) -> None:
        logs.expect("cortex duty failed")

        def crash(request: ModelRequest) -> str:
            raise KeyError("nobody foresaw this")

        model = ScriptedModel(Call("reply", content="hello"), cortex=by_task(bulletin=crash))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await learn(opened, "The office opens at eight.")
            await let_pass(opened, 2 * SETTLE_S)
            (failure, *_) = logged(opened, "bulletin_failed")
            assert "foresaw" not in str(failure)
            assert "KeyError" in failure["error"]
            await opened.say("Ann", "hi")
            assert await opened.said(1) == ["hello"]
            assert opened.agent.cortex.state()["duties"]["observation"]["failures"] == 0

    async def test_a_broken_disk_at_the_start_is_waited_for(self, clock: MockClock, tmp_path: Path) -> None:
        model = ScriptedModel(cortex=by_task(bulletin=["one"]))
        async with open_test_agent(tmp_path, model, **QUIET) as opened:
            await learn(opened, "The office opens at eight.")
            broken(opened, "UPDATE", "settings")
            broken_state = opened.agent.cortex.state()
            assert broken_state["bulletin"]["words"] == 0
            healed(opened)
            await let_pass(opened, 3 * SETTLE_S)
            assert await opened.agent.briefing() == "one"
