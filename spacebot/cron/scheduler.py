"""The one task that looks when something is due, takes it, and has it run, each run in a task of its own.

Flow:   sleep until the next due time (or a change) -> Jobs.claim_due -> a task per run -> the runner given
Floor:  cron
Source: tools spec 9.3 and 9.4; its pitfalls in section 23
"""

import logging
import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, StorageError
from spacebot.base.telemetry import kv
from spacebot.cron.jobs import Job, Jobs, Run

log = logging.getLogger(__name__)

LOOK_S = 30.0  # longest sleep while something is planned: the machine may sleep, its clock may be put
RETRY_S = 5.0  # after the store refused
AT_ONCE = 512  # runs; more wait for a place

Runner = Callable[[Job, Run], Awaitable[None]]


class Scheduler:
    """Takes due times of one agent's jobs. `run` is its life.

    Args:
        execute: does a run, up to writing down its end; it must not raise but when cancelled.
        zone: the agent's time zone, read at each use.
    """

    def __init__(self, jobs: Jobs, clock: Clock, execute: Runner, *, zone: Callable[[], tzinfo]) -> None:
        self._jobs = jobs
        self._clock = clock
        self._execute = execute
        self._zone = zone
        self._places = trio.CapacityLimiter(AT_ONCE)
        self._wake = trio.Event()
        self._is_paused = False
        self._nursery: trio.Nursery | None = None
        self._is_open = trio.Event()
        self._running: dict[str, trio.CancelScope] = {}

    def wake(self) -> None:
        """Jobs have changed: look again."""
        self._wake.set()

    def pause(self) -> None:
        """Take nothing more: the agent is paused, or the program is about to end."""
        self._is_paused = True

    def resume(self) -> None:
        """Take due times again."""
        self._is_paused = False
        self.wake()

    def cancel(self, job_id: str) -> None:
        """End the run of a job that goes on, if one does."""
        if (scope := self._running.get(job_id)) is not None:
            scope.cancel()

    async def trigger(self, job_id: str) -> Run:
        """Have a job run now; returns as soon as that is certain.

        Errors: NotFoundError; RefusedError while it is switched off or running, or nothing is taken; StorageError.
        """
        if self._is_paused:
            raise RefusedError("the agent is paused, so no schedule runs; let it go on first")
        await self._is_open.wait()  # the program has just started
        assert self._nursery is not None
        job, run = await self._jobs.claim_now(job_id)
        self._nursery.start_soon(self._run_one, job, run)
        return run

    async def run(self) -> None:
        """Take due times until cancelled; runs that go on are cut then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._is_open.set()
            seen = self._clock.now()
            while True:
                self._wake = trio.Event()
                try:
                    pause_s = await self._look(nursery, seen)
                except StorageError as error:
                    log.error("schedules not read, they are tried again", extra=kv(error=str(error)))
                    pause_s = RETRY_S
                seen = self._clock.now()
                with trio.move_on_after(pause_s):
                    await self._wake.wait()

    async def _look(self, nursery: trio.Nursery, seen: datetime) -> float:
        """Start what is due; returns the seconds until the next look."""
        if self._is_paused:
            return math.inf
        if self._clock.now() < seen - timedelta(seconds=LOOK_S):  # the clock was put back
            await self._jobs.reckon_anew(self._zone())
        due = await self._jobs.next_due()
        now = self._clock.now()
        if due is not None and due <= now:
            for job, run in await self._jobs.claim_due(self._zone()):
                nursery.start_soon(self._run_one, job, run)
            due = await self._jobs.next_due()
            now = self._clock.now()
        if due is None:
            return math.inf
        return min(max((due - now).total_seconds(), 0.0), LOOK_S)

    async def _run_one(self, job: Job, run: Run) -> None:
        """One run, when there is a place for it."""
        with trio.CancelScope() as scope:
            self._running[job.id] = scope
            try:
                async with self._places:
                    await self._execute(job, run)
            finally:
                if self._running.get(job.id) is scope:
                    del self._running[job.id]
