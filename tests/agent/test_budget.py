"""An agent's budget of the day: the warning, the stop, who is told what, and what outlives a restart."""

import logging
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.budget import LOOK_S, Budget, BudgetedModel, BudgetState
from spacebot.base.clock import Clock
from spacebot.base.errors import BudgetExceededError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId
from spacebot.base.tree import NodeState
from spacebot.config.model import AgentConfig
from spacebot.config.routing import BudgetConfig
from spacebot.conversations.usage_log import Spent
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ModelReply, ModelRequest, OnDelta, ProcessKind, Usage
from spacebot.memory.types import NewMemory
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, EPOCH, Opened, open_test_agent
from tests.fakes.scripted_model import Call, ScriptedModel

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DOLLAR = Usage(input_tokens=400_000)  # at the 2.50 of GPT-4o for a million
MODEL = "openai/gpt-4o"
LINE = "Sorry, I could not answer: today's budget for model calls is used up; I go on after"


class Metered:
    """A scripted model whose answers are accounted for, as the model manager does it; each costs a dollar."""

    def __init__(self, script: ScriptedModel, *kinds: ProcessKind, usage: Usage = DOLLAR, model: str = MODEL) -> None:
        self.script = script
        self.kinds = kinds or (ProcessKind.CHANNEL,)
        self.usage = usage
        self.model = model
        self.note: Callable[[UsageRecord], None] = lambda record: None

    def context_window(self, process: ProcessKind) -> int:
        return self.script.context_window(process)

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        reply = await self.script.complete(request, on_delta)
        if request.process in self.kinds:
            node = request.node
            self.note(
                UsageRecord(
                    process=request.process,
                    model=self.model,
                    provider="openai",
                    usage=self.usage,
                    agent_id="main",
                    channel_id=node.channel_id if node else None,
                    node_id=node.id if node else None,
                )
            )
        return reply


def replies(*words: str) -> ScriptedModel:
    return ScriptedModel(*(Call("reply", content=word) for word in words))


def budget(**fields: float) -> BudgetConfig:
    return BudgetConfig.model_validate(fields)


def state_of(opened: Opened) -> BudgetState:
    return opened.agent.usage.budget.view().state


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "budget is" in record.getMessage()]


async def test_at_the_limit_people_get_one_line_and_it_goes_on_at_the_owners_midnight(
    clock: MockClock, tmp_path: Path
) -> None:
    model = Metered(replies("one", "two", "three"))
    settings = {"budget": budget(daily_usd=2.0), "user_timezone": "America/New_York"}
    async with open_test_agent(tmp_path, model, **settings) as opened:
        model.note = opened.agent.note_usage
        for number, word in enumerate(("one", "two"), 1):
            await opened.say("Ann", f"question {number}")
            assert (await opened.said(number))[-1] == word
        await opened.say("Ann", "question 3")
        assert (await opened.said(3))[-1] == f"{LINE} 2026-03-02 00:00 EST (-05:00), or once my owner raises it"
        assert len(model.script.requests) == 2  # nothing was sent
        assert state_of(opened) is BudgetState.STOPPED
        await opened.advance(16.9 * 3600)
        await opened.say("Ann", "question 4")
        assert (await opened.said(4))[-1].startswith(LINE)
        await opened.advance(0.2 * 3600)
        await opened.say("Ann", "question 5")
        assert (await opened.said(5))[-1] == "three"
        view = opened.agent.usage.budget.view()
        assert (view.day, view.spent) == ("2026-03-02", Spent(1.0, 400_000))


async def test_the_day_and_its_warnings_outlive_a_restart(
    clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    settings = {"budget": budget(daily_usd=2.0, warn_at=0.5)}
    model = Metered(replies("one", "two"))
    async with open_test_agent(tmp_path, model, **settings) as opened:
        model.note = opened.agent.note_usage
        await opened.say("Ann", "first")
        await opened.said(1)
        assert state_of(opened) is BudgetState.WARNED
    async with open_test_agent(tmp_path, model, **settings) as opened:
        model.note = opened.agent.note_usage
        assert opened.agent.usage.budget.view().spent == Spent(1.0, 400_000)
        await opened.say("Ann", "second")
        await opened.said(1)
        (event,) = opened.of_kind(EventKind.BUDGET_STATE)
        assert (event.fields["state"], event.fields["spent_usd"], event.fields["daily_usd"]) == ("stopped", 2.0, 2.0)
    async with open_test_agent(tmp_path, model, **settings) as opened:
        await opened.say("Ann", "third")
        assert (await opened.said(1))[0].startswith(LINE)
    assert told(caplog) == [
        "today's budget is nearly used up; upkeep waits until tomorrow",
        "today's budget is used up; no model is asked until tomorrow",
    ]


async def test_a_raised_budget_counts_at_once(clock: MockClock, tmp_path: Path) -> None:
    model = Metered(replies("one", "two"))
    async with open_test_agent(tmp_path, model, budget=budget(daily_tokens=400_000)) as opened:
        model.note = opened.agent.note_usage
        await opened.say("Ann", "first")
        await opened.said(1)
        await opened.say("Ann", "second")
        assert (await opened.said(2))[-1].startswith(LINE)
        opened.config[0] = opened.config[0].model_copy(update={"budget": budget(daily_tokens=400_001)})
        await opened.say("Ann", "third")
        assert (await opened.said(3))[-1] == "two"
        opened.config[0] = opened.config[0].model_copy(update={"budget": BudgetConfig()})
        assert state_of(opened) is BudgetState.NONE


async def test_a_worker_stops_at_its_next_call_and_what_it_found_is_reported(clock: MockClock, tmp_path: Path) -> None:
    script = ScriptedModel(
        Call("spawn_worker", task="count the files"),
        Call("reply", content="I let somebody count."),
        worker=[Call("set_status", status="found 12 files"), Call("set_status", status="never sent")],
    )
    model = Metered(script, ProcessKind.WORKER)
    async with open_test_agent(tmp_path, model, budget=budget(daily_usd=1.0)) as opened:
        model.note = opened.agent.note_usage
        await opened.say("Ann", "how many?")
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        (entry,) = await opened.agent.workers.page(limit=1)
        assert entry.state is NodeState.FAILED
        assert "today's budget for model calls is used up" in (entry.result or "")
        assert "found 12 files" in (entry.result or "")
        assert len(script.requests_of(ProcessKind.WORKER)) == 1
        assert (entry.cost.calls, entry.cost.usage) == (1, DOLLAR)
        for _ in range(20):  # the telling is tried some times, then it is told without a model
            if any("I could not put it into words" in words for words in await opened.said(1)):
                break
            await opened.advance(60)
        assert "found 12 files" in (await opened.said(2))[-1]


async def test_duties_of_the_cortex_wait_from_the_warning_on_without_failing(clock: MockClock, tmp_path: Path) -> None:
    model = Metered(replies("one", "two"))
    async with open_test_agent(tmp_path, model, budget=budget(daily_usd=2.0, warn_at=0.5)) as opened:
        model.note = opened.agent.note_usage
        await opened.say("Ann", "first")
        await opened.said(1)
        await opened.agent.memory.save(NewMemory(content="The release is on Friday."))
        await opened.advance(3600)
        assert model.script.requests_of(ProcessKind.CORTEX) == []
        duty = opened.agent.cortex.state()["duties"]["bulletin"]
        assert (duty["failures"], duty["is_paused"]) == (0, False)
        await opened.say("Ann", "second")  # people are still answered
        assert (await opened.said(2))[-1] == "two"
        await opened.advance(12 * 3600)
        await opened.advance(1000)
        assert model.script.requests_of(ProcessKind.CORTEX)


async def test_a_schedule_that_may_not_spend_is_left_out_and_a_reminder_is_told_as_it_was_given(
    clock: MockClock, tmp_path: Path
) -> None:
    model = Metered(replies("one", "Sunny."))
    job = {"prompt": "Tell the weather.", "delivery_target": DIRECT}
    async with open_test_agent(tmp_path, model, budget=budget(daily_usd=1.0)) as opened:
        model.note = opened.agent.note_usage
        await opened.say("Ann", "first")
        await opened.said(1)
        schedules = opened.agent.schedules
        await schedules.save({**job, "id": "daily", "cron_expr": "0 13 * * *"})
        await schedules.save({**job, "id": "once", "cron_expr": "5 13 * * *", "run_once": True})
        await opened.advance(2 * 3600)
        states = {run.job_id: (str(run.state), run.note) for run in await schedules.history()}
        assert states.keys() == {"daily", "once"}
        assert all(state == "skipped" and note is not None and "budget" in note for state, note in states.values())
        said = await opened.said(2)
        assert said[1].startswith('The schedule "once" could not run: today\'s budget')
        assert said[1].endswith("It was to do this: Tell the weather.")
        await opened.advance(23 * 3600)
        assert (await opened.said(3))[-1] == "Sunny."
        (job_now,) = [each for each in await schedules.all() if each.id == "daily"]
        assert (job_now.failure_count, job_now.success_count) == (0, 1)


class Slow:
    """Answers after a second."""

    def __init__(self, note: Callable[[], None]) -> None:
        self.sent = 0
        self.note = note

    def context_window(self, process: ProcessKind) -> int:
        return 1000

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        return ""

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        self.sent += 1
        await trio.sleep(1)
        self.note()
        return ModelReply(parts=(), finish_reason="stop")  # type: ignore[arg-type]


def alone(config: BudgetConfig, moment: list[datetime], zone: str = "UTC") -> Budget:
    settings = AgentConfig(id="main", budget=config, user_timezone=zone)
    return Budget("main", settings=lambda: settings, clock=Clock(now=lambda: moment[0]), events=EventBus())


@pytest.mark.parametrize(("at_once", "most"), [(20, 29), (5, 14), (1, 10)])
async def test_a_burst_exceeds_the_limit_by_what_was_in_flight_and_nothing_else(
    autojump_clock: MockClock, at_once: int, most: int
) -> None:
    day = alone(budget(daily_tokens=10), [NOON])
    slow = Slow(lambda: day.add("2026-03-01", "m", None, 1))
    model = BudgetedModel(slow, day)
    request = ModelRequest(process=ProcessKind.CHANNEL, system=(), messages=())
    refusals = []

    async def ask_again_and_again() -> None:
        while True:
            try:
                await model.complete(request)
            except BudgetExceededError as error:
                refusals.append((error.retry_after_s, error.retryable, error.may_fall_back))
                return

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(ask_again_and_again)
    assert refusals == [(LOOK_S, False, False)] * at_once
    assert 10 <= slow.sent <= most


def test_a_clock_that_is_set_back_finds_its_day_again() -> None:
    moment = [NOON]
    day = alone(budget(daily_usd=1.0), moment)
    day.add("2026-03-01", MODEL, 1.5, 10)
    assert day.view().state is BudgetState.STOPPED
    moment[0] = NOON + timedelta(days=1)
    assert day.view().state is BudgetState.OK
    day.add("2026-03-02", MODEL, 0.5, 10)
    moment[0] = NOON
    assert day.view().spent == Spent(1.5, 10)
    for number in range(3, 30):
        day.add(f"2026-03-{number:02}", MODEL, 0.1, 1)
    assert len(day._spent) == 3


def test_a_clock_that_is_set_far_back_has_a_budget_too() -> None:
    moment = [NOON + timedelta(days=30)]
    day = alone(budget(daily_usd=1.0), moment)
    for number in range(28, 32):
        day.add(f"2026-03-{number}", MODEL, 0.1, 1)
    moment[0] = NOON
    for _ in range(12):
        day.add("2026-03-01", MODEL, 0.1, 1)
    assert day.view().state is BudgetState.STOPPED


@pytest.mark.parametrize(
    ("zone", "moment", "wanted"),
    [
        ("Europe/Berlin", datetime(2026, 3, 28, 23, 30, tzinfo=UTC), datetime(2026, 3, 29, 22, 0, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 24, 22, 30, tzinfo=UTC), datetime(2026, 10, 25, 23, 0, tzinfo=UTC)),
        ("Pacific/Kiritimati", NOON, datetime(2026, 3, 2, 10, 0, tzinfo=UTC)),
    ],
)
def test_a_day_ends_at_the_owners_midnight_also_when_clocks_are_changed(
    zone: str, moment: datetime, wanted: datetime
) -> None:
    assert alone(budget(daily_usd=1.0), [moment], zone).view().resumes_at == wanted


def test_models_without_a_price_are_told_once_where_only_dollars_are_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    day = alone(budget(daily_usd=1.0), [NOON])
    for _ in range(3):
        day.add("2026-03-01", "own/model", None, 10**9)
    assert day.view().state is BudgetState.OK
    assert [record.getMessage().endswith("set daily_tokens as well") for record in caplog.records] == [True]


async def test_what_the_disk_refused_is_written_once_it_is_well_again(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    logs.expect("cost of model calls not written")
    async with open_test_agent(tmp_path, replies()) as opened:
        with sqlite3.connect(tmp_path / "agents/main/data/spacebot.db") as other:
            other.execute("ALTER TABLE usage RENAME TO usage_away")
        for _ in range(3):
            opened.agent.note_usage(record_of(opened))
        await opened.settled()
        assert (await opened.agent.usage.report(1)).total.requests == 0
        with sqlite3.connect(tmp_path / "agents/main/data/spacebot.db") as other:
            other.execute("ALTER TABLE usage_away RENAME TO usage")
        await opened.advance(6)
        assert (await opened.agent.usage.report(1)).total.requests == 3
        opened.agent.note_usage(record_of(opened))  # and what is noted at the very end is written before the end
    async with open_test_agent(tmp_path, replies()) as opened:
        report = await opened.agent.usage.report(1)
        assert (report.total.requests, report.total.cost_usd) == (4, pytest.approx(4.0))
        (line,) = report.by_model.items()
        assert line[0] == MODEL
        assert opened.agent.usage.ledger.lines == {}  # since the program started


def record_of(opened: Opened) -> UsageRecord:
    return UsageRecord(
        process=ProcessKind.CHANNEL, model=MODEL, provider="openai", usage=DOLLAR, agent_id=AgentId("main"),
        channel_id=None, node_id=None,
    )  # fmt: skip


async def test_running_totals_tell_model_process_and_tier(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, replies()) as opened:
        for tier, default in (("light", "openai/o1"), ("light", "openai/o1"), (None, None)):
            opened.agent.note_usage(
                UsageRecord(
                    process=ProcessKind.BRANCH, model=MODEL, provider="openai", usage=DOLLAR, agent_id="main",
                    channel_id=None, node_id=None, tier=tier, default_model=default,
                )
            )  # fmt: skip
        lines = {tuple(key): (line.requests, line.cost_usd, line.saved_usd)
                 for key, line in opened.agent.usage.ledger.lines.items()}  # fmt: skip
        assert lines == {
            (MODEL, "branch", "light"): (2, pytest.approx(2.0), pytest.approx(10.0)),
            (MODEL, "branch", None): (1, pytest.approx(1.0), 0.0),
        }
        await opened.settled()
        assert (await opened.agent.usage.report(1)).total.saved_usd == pytest.approx(10.0)
        assert opened.agent.usage.first_day(30) == (EPOCH - timedelta(days=29)).strftime("%Y-%m-%d")
