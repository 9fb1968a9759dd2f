"""The watch over branches and workers: silence ends them, age does not, and people are told once."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.liveness import MODEL_PATIENCE
from spacebot.agent.pacing import RESULT_DEBOUNCE_S
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind, NodeState
from spacebot.llm.messages import ProcessKind
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, Say, ScriptedModel

TICK_S = 10.0
CORTEX: dict[str, Any] = {"tick_interval_secs": TICK_S, "branch_timeout_secs": 100, "worker_timeout_secs": 200}
BRANCH = Calls(Call("branch", description="look into the secret plan"), Call("reply", content="I look"))
WORKER = Calls(Call("spawn_worker", task="dig the secret tunnel"), Call("reply", content="on it"))
INTERACTIVE = Calls(
    Call("spawn_worker", task="dig the secret tunnel", interactive=True), Call("reply", content="on it")
)


def killed(opened: Opened) -> list[tuple[str, str | None]]:
    """Summaries and details of what the log says was ended."""
    with sqlite3.connect(opened.database()) as connection:
        return connection.execute(
            "SELECT summary, details FROM cortex_events WHERE event_type = 'process_killed' ORDER BY seq"
        ).fetchall()


async def tick(opened: Opened, seconds: float) -> None:
    """Let so much time pass, in steps of the watch."""
    for _ in range(round(seconds / TICK_S)):
        await opened.advance(TICK_S)


@pytest.mark.spec("P54", "P11")
async def test_a_branch_whose_model_is_silent_is_ended_and_people_are_told_once(
    clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event())
    model = ScriptedModel(BRANCH, Call("reply", content="that came to nothing"), branch=[gate])
    async with open_test_agent(tmp_path, model, cortex=CORTEX) as opened:
        await opened.say("Ann", "look")
        await gate.arrived.wait()
        await opened.ended(1)
        await tick(opened, 100 * MODEL_PATIENCE - 20)
        assert opened.node(NodeKind.BRANCH).state is NodeState.RUNNING  # a model may think for long
        await tick(opened, 40)
        (event,) = await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        assert event.fields["state"] == "timed_out"
        assert "no sign of life" in str(event.fields["conclusion"])
        await opened.advance(RESULT_DEBOUNCE_S)
        assert (await opened.said(2))[1] == "that came to nothing"
        await tick(opened, 600)
        assert len(opened.of_kind(EventKind.BRANCH_COMPLETED)) == 1
        assert len(model.requests_of(ProcessKind.CHANNEL)) == 2
        ((summary, details),) = killed(opened)
        assert "branch" in summary
        assert "plan" not in f"{summary}{details}"
        (note,) = [e for e in opened.of_kind(EventKind.CORTEX_EVENT) if e.fields["event_type"] == "process_killed"]
        assert note.fields["summary"] == summary


@pytest.mark.spec("P54", "P58")
async def test_a_worker_that_hangs_in_a_tool_is_ended_sooner(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    script = f"mkfifo {fifo}; cat {fifo}"
    model = ScriptedModel(
        WORKER, Call("reply", content="it hung"), worker=[Call("shell", command=script, timeout_seconds=300)]
    )
    async with open_test_agent(tmp_path / "agent", model, cortex=CORTEX) as opened:
        await opened.say("Ann", "dig")
        await opened.until(lambda e: e.kind is EventKind.TOOL_STARTED and e.fields["tool_name"] == "shell")
        await opened.ended(1)
        await tick(opened, 180)
        assert opened.node(NodeKind.WORKER).state is NodeState.RUNNING
        await tick(opened, 30)
        (event,) = await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        assert event.fields["state"] == "timed_out"


@pytest.mark.spec("P54")
async def test_signs_of_life_keep_a_worker_of_any_age(clock: MockClock, tmp_path: Path) -> None:
    gates = [Gate(trio.Event(), Call("set_status", status=f"meter {number}")) for number in range(12)]
    model = ScriptedModel(WORKER, "done", worker=[*gates, Call("set_status", kind="outcome", status="dug")])
    async with open_test_agent(tmp_path, model, cortex=CORTEX, worker={"wall_clock_timeout_secs": 100_000}) as opened:
        await opened.say("Ann", "dig")
        for gate in gates:
            await gate.arrived.wait()
            await tick(opened, 190)
            gate.event.set()
        (event,) = await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        assert event.fields["state"] == "done"
        assert not killed(opened)


@pytest.mark.spec("P54")
async def test_a_worker_that_waits_for_input_is_left_alone_and_costs_nothing(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(INTERACTIVE, "part one is done", worker=[Call("set_status", kind="outcome", status="dug")])
    async with open_test_agent(tmp_path, model, cortex=CORTEX, worker={"idle_timeout_secs": 100_000}) as opened:
        await opened.say("Ann", "dig")
        await opened.events_of(EventKind.WORKER_IDLE, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        await tick(opened, 30)
        watch = Steps("Cortex._watch")
        trio.lowlevel.add_instrument(watch)
        await tick(opened, 1000)
        trio.lowlevel.remove_instrument(watch)
        assert watch.count == 0
        assert opened.node(NodeKind.WORKER).state is NodeState.WAITING
        assert not killed(opened)


class Steps(trio.abc.Instrument):
    """Counts how often tasks of a name run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += self.name in task.name


async def test_nobody_watches_while_nothing_runs_and_the_watch_ends_with_the_last(
    clock: MockClock, tmp_path: Path
) -> None:
    model = ScriptedModel(BRANCH, "found it", branch=["found"])
    async with open_test_agent(tmp_path, model, cortex=CORTEX) as opened:
        await tick(opened, 30)
        watch = Steps("Cortex._watch")
        trio.lowlevel.add_instrument(watch)
        await tick(opened, 1000)
        assert watch.count == 0
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        await tick(opened, 30)
        assert watch.count > 0
        watch.count = 0
        await tick(opened, 1000)
        assert watch.count == 0
        trio.lowlevel.remove_instrument(watch)


async def test_limits_are_read_anew_and_agents_watch_their_own_only(clock: MockClock, tmp_path: Path) -> None:
    gate, hasty = Gate(trio.Event(), Say("found")), Gate(trio.Event())
    model = ScriptedModel(BRANCH, "told", branch=[gate])
    patient = {**CORTEX, "branch_timeout_secs": 100_000}
    async with open_test_agent(tmp_path / "one", model, cortex=patient) as opened:
        others = ScriptedModel(BRANCH, "told", branch=[hasty])
        async with open_test_agent(
            tmp_path / "two", others, agent_id="other", tree=opened.tree, cortex=CORTEX
        ) as other:
            await opened.say("Ann", "look")
            await gate.arrived.wait()
            await other.say("Ann", "look")
            await hasty.arrived.wait()
            await tick(opened, 400)
            await other.events_of(EventKind.BRANCH_COMPLETED, 1)
            assert opened.node(NodeKind.BRANCH).agent_id == "main"  # as silent, but not the other one's
            opened.config[0] = opened.config[0].model_copy(
                update={"cortex": opened.config[0].cortex.model_copy(update={"branch_timeout_secs": 100.0})}
            )
            await tick(opened, 20)
            (event,) = await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
            assert event.fields["state"] == "timed_out"
