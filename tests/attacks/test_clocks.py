"""Clocks that jump by a day or a year, forwards and backwards: nothing repeats, stops, is paid twice or stays open."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.agent.budget import Budget, BudgetState
from spacebot.agent.updates import UpdateCheck
from spacebot.api.rim import TICKET_S, Tickets
from spacebot.base import clock as clocks
from spacebot.base.clock import Clock
from spacebot.base.events import EventBus
from spacebot.base.fetch import Answer
from spacebot.base.log_file import LogFile, old_files
from spacebot.base.paths import package_file
from spacebot.config.model import AgentConfig, CronConfig, UpdateConfig
from spacebot.config.routing import BudgetConfig
from spacebot.cron.jobs import Job, Jobs, Maker, Run
from spacebot.cron.scheduler import LOOK_S, Scheduler
from spacebot.llm.oauth import LoginState
from spacebot.storage.database import open_database
from tests.llm.test_oauth import UNAUTHORISED, desk

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY, YEAR = timedelta(days=1), timedelta(days=365)
JUMPS = {"a day ahead": DAY, "a year ahead": YEAR, "a day back": -DAY, "a year back": -YEAR}
jumps = pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)


class Wall:
    """A wall clock that a test puts."""

    def __init__(self) -> None:
        self.now = START

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now)


@jumps
async def test_schedules_run_once_at_most_and_go_on(jump: timedelta, tmp_path: Path, mock_clock: MockClock) -> None:
    """There, for two hours, and back again: what was missed is made up for once, no due time has two runs."""
    wall, seen = Wall(), []

    async def execute(job: Job, run: Run) -> None:
        seen.append((job.id, run.due_at))
        await jobs.database.write(lambda c: c.execute("UPDATE cron_runs SET state = 'done' WHERE seq = ?", (run.seq,)))

    async def pass_time(amount: timedelta) -> None:
        wall.now += amount
        mock_clock.jump(LOOK_S)
        for _ in range(8):  # a look is a chain of reads and writes
            await jobs.database.write(lambda c: None)
            await wait_all_threads_completed()
            await wait_all_tasks_blocked()

    async with (
        open_database(tmp_path / "a.db", package_file("storage", "sql"), wall.clock) as database,
        trio.open_nursery() as nursery,
    ):
        jobs = Jobs(database, wall.clock)
        await jobs.save(CronConfig(id="hourly", prompt="x", interval_secs=3600), Maker(), UTC)
        await jobs.save(CronConfig(id="daily", prompt="x", cron_expr="30 14 * * *"), Maker(), UTC)
        scheduler = Scheduler(jobs, wall.clock, execute, zone=lambda: UTC)
        nursery.start_soon(scheduler.run)
        hour = timedelta(hours=1)
        await pass_time(hour)
        assert seen == [("hourly", "2026-05-01T13:00:00.000Z")]
        await pass_time(jump)
        assert len(seen) <= 3, "each job once at most, however much was missed"
        await pass_time(hour)
        await pass_time(hour)
        there = len(seen)
        assert [job for job, _ in seen[1:]].count("hourly") in (2, 3)
        await pass_time(-jump)
        for _ in range(4):
            await pass_time(hour)
        assert len(seen) > there, "they go on where the clock is now"
        assert len(set(seen)) == len(seen), "no due time twice"
        assert len(seen) <= there + 7
        nursery.cancel_scope.cancel()


@jumps
def test_a_budget_counts_the_day_that_it_is(jump: timedelta) -> None:
    wall = Wall()
    config = AgentConfig(id="main", user_timezone="UTC", budget=BudgetConfig(daily_usd=1.0))
    budget = Budget("main", settings=lambda: config, clock=wall.clock, events=EventBus())

    def spend(usd: float) -> BudgetState:
        budget.add(budget.day_of(wall.now), "openai/gpt-4o", usd, 10)
        return budget.view().state

    assert spend(0.6) is BudgetState.OK
    wall.now += jump
    for _ in range(5):  # days that are spent with a wrong clock
        assert spend(0.1) is BudgetState.OK
        wall.now += DAY
    wall.now = START + 10 * DAY  # the clock is right again
    assert spend(0.6) is BudgetState.OK
    assert spend(0.6) is BudgetState.STOPPED
    assert budget.view().spent.usd == pytest.approx(1.2)
    wall.now += DAY
    assert budget.view().state is BudgetState.OK


@jumps
async def test_a_login_outlives_it(jump: timedelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that seems too old is renewed once, one that seems good and is not is renewed when it is refused."""
    async with desk(tmp_path, monkeypatch) as d:
        d.keep(left_s=3600)
        await d.ask()
        d.now += jump
        for _ in range(3):
            assert (await d.ask()).is_included
        assert len(d.authority.asked) == (1 if jump > timedelta() else 0)
        d.now -= jump
        before = len(d.authority.asked)
        d.replies.append(UNAUTHORISED)  # its time is over, whatever our clock says
        for _ in range(3):
            assert (await d.ask()).is_included
        assert len(d.authority.asked) == before + 1
        assert (await d.credentials.login()).state is LoginState.VALID


@jumps
def test_a_ticket_lasts_as_long_as_time_passes(jump: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets go by the clock that nobody puts."""
    wall, passed = [START.timestamp()], [1000.0]
    monkeypatch.setattr("time.time", lambda: wall[0])
    monkeypatch.setattr("spacebot.api.rim.monotonic_s", lambda: passed[0])
    tickets = Tickets()
    ticket = tickets.issue()
    wall[0] += jump.total_seconds()
    assert tickets.is_valid(ticket)
    passed[0] += TICKET_S + 1
    assert not tickets.is_valid(ticket)
    wall[0] -= jump.total_seconds()
    assert not tickets.is_valid(ticket)


@jumps
def test_the_log_has_its_file_a_day_and_keeps_what_is_new(jump: timedelta, tmp_path: Path) -> None:
    log = tmp_path / "spacebot.log"
    handler = LogFile(log, keep=3)

    def write(text: str, moment: datetime) -> None:
        record = logging.LogRecord("test", logging.INFO, "", 0, text, (), None)
        record.created = moment.timestamp()
        handler.handle(record)

    def texts() -> dict[str, str]:
        return {file.name: file.read_text() for file in (log, *old_files(log))}

    write("before", START)
    for days in range(2):
        write(f"wrong {days}", START + jump + days * DAY)
    for days in range(1, 6):
        write(f"right {days}", START + days * DAY)
        write(f"still {days}", START + days * DAY + timedelta(seconds=1))
    handler.close()
    assert texts()["spacebot.log"] == "right 5\nstill 5\n"
    newest = [text for name, text in texts().items() if name.startswith("spacebot.log.2026-05-0")]
    assert "right 4\nstill 4\n" in newest
    assert len(texts()) <= 4


def test_records_around_midnight_stay_in_order_and_rotate_once(tmp_path: Path) -> None:
    """Threads hand their records in a little late: the file of the new day is not left for it."""
    log = tmp_path / "spacebot.log"
    handler = LogFile(log)
    midnight = datetime(2026, 5, 2, tzinfo=UTC).timestamp()
    for number, moment in enumerate((midnight - 1, midnight + 1, midnight - 0.5, midnight + 2)):
        record = logging.LogRecord("test", logging.INFO, "", 0, str(number), (), None)
        record.created = moment
        handler.handle(record)
    handler.close()
    assert log.read_text() == "1\n2\n3\n"
    assert len(old_files(log)) == 1


@jumps
async def test_releases_are_looked_for_as_time_passes(jump: timedelta, autojump_clock: MockClock) -> None:
    wall, looks = Wall(), []

    async def get(url: str, **_: Any) -> Answer:
        await trio.lowlevel.checkpoint()
        looks.append(trio.current_time())
        return Answer(404, {}, b"", "hub")

    updates = UpdateCheck(lambda: UpdateConfig(repository="o/r", check_interval_secs=600), get, clock=wall.clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(updates.run)
        await trio.sleep(700)
        wall.now += jump
        await trio.sleep(1200)
        nursery.cancel_scope.cancel()
    assert len(looks) == 4
    assert updates.state.checked_at == clocks.to_text(wall.now)
