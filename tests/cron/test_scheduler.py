"""What takes due times: once each, whoever looks, and whatever the machine's clock does."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError
from spacebot.base.paths import package_file
from spacebot.config.model import CronConfig
from spacebot.cron.jobs import BY_TALK, MOST_OF_TALK, Job, Jobs, Maker, Run
from spacebot.cron.scheduler import AT_ONCE, LOOK_S, Scheduler
from spacebot.storage.database import open_database

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Wall:
    """A wall clock that a test puts."""

    def __init__(self) -> None:
        self.now = START


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def jobs(tmp_path: Path, wall: Wall) -> AsyncIterator[Jobs]:
    clock = Clock(now=lambda: wall.now)
    async with open_database(tmp_path / "a.db", package_file("storage", "sql"), clock) as database:
        yield Jobs(database, clock)


async def test_of_many_who_look_at_once_one_takes_a_due_time(jobs: Jobs, wall: Wall) -> None:
    for number in range(20):
        await jobs.save(CronConfig(id=f"j{number}", prompt="x", interval_secs=60), Maker(), UTC)
    wall.now += timedelta(seconds=61)
    taken: list[str] = []

    async def look() -> None:
        taken.extend(job.id for job, _ in await jobs.claim_due(UTC))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look)
    assert sorted(taken) == sorted(f"j{number}" for number in range(20))


async def test_a_clock_that_goes_back_neither_repeats_nor_stops_a_job(
    jobs: Jobs, wall: Wall, mock_clock: MockClock
) -> None:
    seen: list[str] = []

    async def execute(job: Job, run: Run) -> None:
        seen.append(run.due_at)
        await jobs.database.write(lambda c: c.execute("UPDATE cron_runs SET state = 'done' WHERE seq = ?", (run.seq,)))

    async def pass_time(seconds: float) -> None:
        wall.now += timedelta(seconds=seconds)
        mock_clock.jump(LOOK_S)
        for _ in range(10):  # a look is a chain of reads and writes
            await jobs.database.write(lambda c: None)
            await wait_all_threads_completed()
            await wait_all_tasks_blocked()

    await jobs.save(CronConfig(id="j", prompt="x", interval_secs=3600), Maker(), UTC)
    scheduler = Scheduler(jobs, Clock(now=lambda: wall.now), execute, zone=lambda: UTC)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        await pass_time(3601)
        await pass_time(3600)
        assert seen == ["2026-05-01T13:00:00.000Z", "2026-05-01T14:00:00.000Z"]
        await pass_time(-2 * 3600)  # 12:00 again
        await pass_time(3600)  # 13:00, which has been
        await pass_time(3600)  # 14:00, which has been
        assert len(seen) == 2
        await pass_time(3600)
        assert seen[2:] == ["2026-05-01T15:00:00.000Z"]
        nursery.cancel_scope.cancel()


async def test_runs_have_so_many_places_and_the_others_wait(jobs: Jobs, wall: Wall) -> None:
    at_work, most, release, count = 0, 0, trio.Event(), AT_ONCE + 40
    done = 0

    async def execute(job: Job, run: Run) -> None:
        nonlocal at_work, most, done
        at_work += 1
        most = max(most, at_work)
        await release.wait()
        at_work -= 1
        done += 1
        finished.set() if done == count else None

    finished = trio.Event()
    for number in range(count):
        await jobs.save(CronConfig(id=f"j{number}", prompt="x", interval_secs=60), Maker(), UTC)
    wall.now += timedelta(seconds=60)
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(jobs, Clock(now=lambda: wall.now), execute, zone=lambda: UTC)
        nursery.start_soon(scheduler.run)
        while at_work < AT_ONCE:
            await wait_all_tasks_blocked(0.01)
        release.set()
        await finished.wait()
        nursery.cancel_scope.cancel()
    assert most == AT_ONCE


async def test_a_conversation_makes_so_many_jobs_and_no_more(jobs: Jobs) -> None:
    maker = Maker(source=BY_TALK, origin="test:room")
    for number in range(MOST_OF_TALK):
        await jobs.save(CronConfig(id=f"j{number}", prompt="x"), maker, UTC)
    with pytest.raises(RefusedError, match="delete some"):
        await jobs.save(CronConfig(id="more", prompt="x"), maker, UTC)
    await jobs.save(CronConfig(id="more", prompt="x"), Maker(), UTC)
