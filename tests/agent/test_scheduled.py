"""Schedules end to end: a whole agent, time that the test moves, what people get and what the history says."""

import sqlite3
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import ModelRejectedError, RefusedError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind
from spacebot.config.model import CronConfig
from spacebot.cron.jobs import Run
from spacebot.llm.messages import ModelRequest, ProcessKind, last_user_text
from tests.fakes.opened import DIRECT, ROOM, Opened, broken, freeze_copy, healed, open_test_agent, text_from
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, Say, ScriptedModel

DAILY = {"id": "daily", "prompt": "Tell the weather.", "cron_expr": "5 12 * * *"}  # EPOCH is 12:00
MINUTES_5 = 300.0


def make(**fields: Any) -> Call:
    return Call("cron", action="create", **{**DAILY, **fields})


async def ended(opened: Opened, count: int = 1) -> list[Run]:
    """The runs, oldest first, once so many have ended."""
    while len(opened.of_kind(EventKind.CRON_RUN)) < 2 * count:  # each begins and ends
        await opened.events_of(EventKind.CRON_RUN, len(opened.of_kind(EventKind.CRON_RUN)) + 1)
    return (await opened.agent.schedules.history())[::-1]


async def words_in(opened: Opened, channel: str) -> list[str]:
    rows = await opened.agent.conversations.recent(ConversationId(channel), 50)
    return [row.content for row in rows if row.role == "assistant"]


async def test_a_job_made_in_a_talk_runs_when_due_and_is_told_there_once(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(make(), Say("Scheduled."), Call("reply", content="Sunny."))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.agent.accept(text_from("Ann", "every day at 12:05 the weather"))
        await opened.ended(1)
        await opened.advance(MINUTES_5 - 1)
        assert not await opened.agent.schedules.history()
        await opened.advance(2)
        (run,) = await ended(opened)
        assert (run.state, run.summary, run.delivered_to) == ("done", "Sunny.", DIRECT)
        assert run.due_at == "2026-03-01T12:05:00.000Z"
        assert await words_in(opened, DIRECT) == ["Scheduled.", "Sunny."]
        (job,) = await opened.agent.schedules.all()
        assert (job.next_due_at, job.success_count) == ("2026-03-02T12:05:00.000Z", 1)
        await opened.settled()
        assert opened.tree.get(f"channel:main:{run.channel_id}") is None, "its conversation has ended"
        assert "Tell the weather." in model.texts_of(ProcessKind.CHANNEL)[-1]


@pytest.mark.spec("P9")
async def test_a_run_ends_with_its_work_and_its_last_answer_alone_is_told(tmp_path: Path, clock: MockClock) -> None:
    release = trio.Event()
    model = ScriptedModel(
        Call("branch", description="look it up"),
        Call("reply", content="I am looking."),
        Call("reply", content="It is 42."),
        branch=[Gate(release, Say("42"))],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.advance(MINUTES_5 + 1)
        assert [run.state for run in await opened.agent.schedules.history()] == ["running"]
        release.set()
        await opened.advance(1)
        (run,) = await ended(opened)
        assert (run.state, run.summary) == ("done", "It is 42.")
        assert await words_in(opened, ROOM) == ["It is 42."]


async def test_a_worker_that_waits_for_more_does_not_hold_a_run_up(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="the work", interactive=True), Call("reply", content="on it")),
        Call("reply", content="It is 42."),
        worker=[Call("set_status", kind="outcome", status="42")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.agent.schedules.trigger("daily")
        await opened.events_of(EventKind.WORKER_IDLE, 1)
        await opened.advance(1)
        await opened.advance(1)
        (run,) = await ended(opened)
        assert (run.state, run.summary) == ("done", "It is 42.")
        assert not list(opened.tree.of_kind(NodeKind.WORKER))
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        assert not list(opened.tree.of_kind(NodeKind.WORKER)), "it is not taken up again"


async def said_in(opened: Opened, channel: str) -> None:
    """Make a conversation known."""
    await opened.agent.conversations.accept(text_from("Ann", "hi", conversation=channel), observe=True)


async def test_nothing_to_say_delivers_nothing_and_is_no_failure(tmp_path: Path, clock: MockClock) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("skip", reason="nothing new"))) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.agent.schedules.trigger("daily")
        (run,) = await ended(opened)
        assert (run.state, run.cause, run.message_id) == ("silent", "asked", None)
        assert await words_in(opened, ROOM) == []


async def test_runs_are_no_talks_to_be_remembered_and_no_conversations_to_be_listed(
    tmp_path: Path, clock: MockClock
) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="Sunny."))) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.agent.schedules.trigger("daily")
        await ended(opened)
        assert [channel.id for channel in await opened.agent.conversations.channels()] == [ROOM]
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        assert opened.tree.get("channel:main:cron:daily:1") is None


async def test_three_failures_in_a_row_switch_a_job_off_and_people_are_told_why(
    tmp_path: Path, clock: MockClock
) -> None:
    model = ScriptedModel(*[Fail(ModelRejectedError("no credit left", model="m", status_code=402)) for _ in range(3)])
    async with open_test_agent(tmp_path, model) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({"id": "m", "prompt": "x", "interval_secs": 60, "delivery_target": ROOM})
        for number in range(3):
            await opened.advance(60)
            await ended(opened, number + 1)
        (job,) = await opened.agent.schedules.all()
        assert (job.enabled, job.next_due_at, job.failure_count) == (False, None, 3)
        assert "no credit left" in (job.disabled_reason or "")
        (notice,) = await words_in(opened, ROOM)
        assert "switched off" in notice
        assert "no credit left" in notice
        with pytest.raises(RefusedError, match="switched off"):
            await opened.agent.schedules.trigger("m")
        assert (await opened.agent.schedules.set_enabled("m", True)).failures == 0


async def test_a_run_out_of_time_may_wrap_up(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(
        Call("branch", description="endless"),
        Call("reply", content="Looking."),
        Call("reply", content="Half of it is done."),
        branch=[Gate(trio.Event())],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.agent.schedules.trigger("daily")
        await opened.advance(119)
        assert opened.node(NodeKind.BRANCH)
        await opened.advance(2)
        await opened.advance(1)
        (run,) = await ended(opened)
        assert (run.state, run.note) == ("done", "wrapped up after 120 s")
        assert await words_in(opened, ROOM) == ["Half of it is done."]


async def test_a_run_that_does_not_even_wrap_up_is_cut_and_failed(tmp_path: Path, clock: MockClock) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Gate(trio.Event()))) as opened:
        await opened.agent.schedules.save(DAILY)
        await opened.agent.schedules.trigger("daily")
        await opened.advance(121)
        await opened.advance(61)
        (run,) = await ended(opened)
        assert (run.state, run.note) == ("failed", "it did not end within 120 s")
        await opened.advance(60)
        assert not list(opened.tree.of_kind(NodeKind.CHANNEL)), "nothing of it is brought back"


async def test_a_kill_in_a_run_neither_repeats_nor_resumes_it(tmp_path: Path, clock: MockClock) -> None:
    gate = Gate(trio.Event())
    async with open_test_agent(tmp_path / "first", ScriptedModel(gate)) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM})
        await opened.advance(MINUTES_5 + 1)
        await gate.arrived.wait()
        killed = freeze_copy(opened, tmp_path / "second")
    model = ScriptedModel()  # any call would be one too many
    async with open_test_agent(killed, model) as opened:
        await opened.advance(3600)
        (run,) = await opened.agent.schedules.history()
        assert (run.state, run.due_at) == ("interrupted", "2026-03-01T12:05:00.000Z")
        assert not model.requests_of(ProcessKind.CHANNEL)
        (job,) = await opened.agent.schedules.all()
        assert (job.enabled, job.failures, job.next_due_at) == (True, 0, "2026-03-02T12:05:00.000Z")


@pytest.mark.parametrize("run_once", [False, True])
async def test_a_kill_before_a_run_began_takes_nothing_away(tmp_path: Path, clock: MockClock, run_once: bool) -> None:
    async with open_test_agent(tmp_path / "first", ScriptedModel()) as opened:
        await said_in(opened, ROOM)
        await opened.agent.schedules.save({**DAILY, "delivery_target": ROOM, "run_once": run_once})
        opened.agent.schedules.scheduler.pause()
        clock.jump(MINUTES_5 + 1)
        ((_, run),) = await opened.agent.schedules.jobs.claim_due(UTC)
        killed = freeze_copy(opened, tmp_path / "second")
    async with open_test_agent(killed, ScriptedModel(Call("reply", content="Sunny."))) as opened:
        (again,) = await ended(opened)
        assert (again.due_at, again.state) == (run.due_at, "done")
        assert await words_in(opened, ROOM) == ["Sunny."]
        await opened.advance(60)
        (job,) = await opened.agent.schedules.all()
        assert job.enabled is not run_once


@pytest.mark.parametrize(
    ("away_s", "states"),
    [(20 * 60, ["done"]), (3 * 3600, ["missed"]), (24 * 3600, ["done"])],
    ids=["made up for", "too late", "the newest only"],
)
async def test_what_was_missed_while_away(tmp_path: Path, clock: MockClock, away_s: float, states: list[str]) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.agent.schedules.save(DAILY)
    clock.jump(away_s + MINUTES_5)
    async with open_test_agent(tmp_path, ScriptedModel(lambda request: Call("skip", reason="-"))) as opened:
        await opened.settled()
        await opened.advance(1)
        runs = (await opened.agent.schedules.history())[::-1]
        assert [{"silent": "done"}.get(run.state, run.state) for run in runs] == states


async def test_a_run_that_goes_on_makes_the_next_due_time_pass(tmp_path: Path, clock: MockClock) -> None:
    release = trio.Event()
    model = ScriptedModel(Gate(release, Call("skip", reason="-")))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.agent.schedules.save({"id": "m", "prompt": "x", "interval_secs": 60, "timeout_secs": 600})
        await opened.advance(60)
        await opened.advance(60)
        with pytest.raises(RefusedError, match="is running"):
            await opened.agent.schedules.trigger("m")
        release.set()
        await opened.settled()
        assert [run.state for run in await opened.agent.schedules.history()] == ["skipped", "silent"]


async def test_the_configuration_makes_changes_and_removes_jobs_but_undoes_nothing(
    tmp_path: Path, clock: MockClock
) -> None:
    spec = CronConfig(id="c", prompt="one", interval_secs=3600)
    async with open_test_agent(tmp_path, ScriptedModel(), cron=(spec,)) as opened:
        schedules = opened.agent.schedules
        await opened.settled()
        await schedules.set_enabled("c", False)

        async def reloaded(*jobs: CronConfig) -> Any:
            opened.config[0] = opened.config[0].model_copy(update={"cron": jobs})
            schedules.reload()
            await opened.settled()
            return [(job.prompt, job.enabled) for job in await schedules.all()]

        assert await reloaded(spec) == [("one", False)]
        assert await reloaded(spec.model_copy(update={"prompt": "two"})) == [("two", False)]
        with pytest.raises(RefusedError, match="configuration file"):
            await schedules.delete("c")
        assert await reloaded() == []


async def test_jobs_of_a_direct_chat_are_nobody_elses(tmp_path: Path, clock: MockClock) -> None:
    def answer(request: ModelRequest) -> Any:
        asked = last_user_text(request.messages)
        results = model.results_of(ProcessKind.CHANNEL)
        if results and "secret" in asked:
            return Say("ok")
        return make(prompt="my secret") if "secret" in asked else next(steps)

    steps = iter(
        [
            Call("cron", action="list"),
            Call("cron", action="delete", id="daily"),
            Call("cron", action="run", id="daily"),
            Call("reply", content="nothing"),
        ]
    )
    model = ScriptedModel(answer)
    async with open_test_agent(tmp_path, model) as opened:
        await opened.agent.accept(text_from("Ann", "my secret every day"))
        await opened.ended(1)
        await opened.agent.accept(text_from("Bob", "what is planned?", conversation=ROOM, mentions_bot=True))
        await opened.ended(2)
        results = [str(result) for result in model.results_of(ProcessKind.CHANNEL)]
        assert len(results) == 3
        assert not any("secret" in result for result in results)
        assert all("there is no job" in result for result in results[1:])
        (job,) = await opened.agent.schedules.all()
        assert (job.is_private, job.created_by) == (True, "test:ann")


async def test_a_result_that_cannot_be_delivered_is_in_the_history(tmp_path: Path, clock: MockClock, logs: Any) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="Sunny."))) as opened:
        await opened.agent.schedules.save(DAILY)  # home, and nobody has chosen one
        await opened.agent.schedules.trigger("daily")
        (run,) = await ended(opened)
        assert (run.state, run.summary) == ("done", "Sunny.")
        assert "no home" in (run.delivery_error or "")
        assert (await opened.agent.schedules.all())[0].failures == 0


async def test_a_full_disk_delays_runs_and_loses_none(tmp_path: Path, clock: MockClock, logs: Any) -> None:
    logs.expect("schedules not read")
    async with open_test_agent(tmp_path, ScriptedModel(Call("skip", reason="-"))) as opened:
        await opened.agent.schedules.save(DAILY)
        broken(opened, "INSERT", "cron_runs")
        await opened.advance(MINUTES_5 + 1)
        healed(opened)
        await opened.advance(6)
        (run,) = await ended(opened)
        assert (run.state, run.due_at) == ("silent", "2026-03-01T12:05:00.000Z")


async def test_a_deleted_job_takes_its_run_with_it(tmp_path: Path, clock: MockClock) -> None:
    gate = Gate(trio.Event())
    async with open_test_agent(tmp_path, ScriptedModel(gate)) as opened:
        await opened.agent.schedules.save(DAILY)
        await opened.agent.schedules.trigger("daily")
        await gate.arrived.wait()
        await opened.agent.schedules.delete("daily")
        await opened.settled()
        assert not list(opened.tree.of_kind(NodeKind.CHANNEL))
        assert not await opened.agent.schedules.all()
        await opened.settled()
        assert not await opened.agent.conversations.recent(ConversationId("cron:daily:1"), 10)
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        assert not opened.model.requests_of(ProcessKind.CHANNEL)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"interval_secs": 0, "cron_expr": None}, "interval_secs"),
        ({"cron_expr": "0 0 30 2 *"}, "no date"),
        ({"cron_expr": "0 9 * * * *"}, "five fields"),
        ({"cron_expr": "@daily"}, "five fields"),
        ({"cron_expr": "0 9 * * *", "active_start_hour": 20, "active_end_hour": 22}, "never be due"),
        ({"active_start_hour": 3}, "belong together"),
        ({"timezone": "Mars/Base"}, "unknown"),
        ({"delivery_target": "nowhere:1"}, "nowhere"),
        ({"id": "../x"}, "id"),
    ],
)
async def test_a_job_that_is_not_right_is_refused_with_the_reason(
    tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        with pytest.raises(RefusedError, match=why):
            await opened.agent.schedules.save({**DAILY, **fields})
        assert not await opened.agent.schedules.all()


async def test_who_is_forgotten_leaves_no_schedule_and_nothing_that_one_did(tmp_path: Path, clock: MockClock) -> None:
    model = ScriptedModel(make(prompt="my secret"), Say("Scheduled."), Call("reply", content="The secret is told."))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "my secret every day")
        await opened.ended(1)
        await opened.advance(MINUTES_5 + 1)
        await ended(opened)
        await opened.agent.forget_person("test:ann", reason="she asks")
        assert not await opened.agent.schedules.all()
    with sqlite3.connect(tmp_path / "agents" / "main" / "data" / "spacebot.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert "secret" not in dump.replace("secret_", "")
