"""The jobs and their runs in SQLite. One transaction each; a due time is taken by one `claim` only.

    claim: a row for (job, due time) is inserted, and the job moves on to its next due time
    run:   running -> done | silent | failed | interrupted (the program ended; what had begun is not run again)
    or:    skipped (the run before was going on) | missed (too old when the program looked)

Floor:  cron; may import storage, config and base
Source: tools spec 9.1, 9.3 to 9.6 and its pitfalls in section 23
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from enum import StrEnum
from typing import Any

from spacebot.base.clock import Clock, from_text, parse_zone, to_text
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.config.model import CronConfig
from spacebot.cron.schedule import Schedule, describe_interval, normalised
from spacebot.storage.database import Connection, Database, Row

BREAKS_AT = 3  # failures in a row after which a job is switched off
KEPT_RUNS = 100  # of each job
MOST_JOBS = 2000  # of an agent
MOST_OF_TALK = 25  # made in one conversation
BY_CONFIG, BY_TALK, BY_OWNER = "config", "conversation", "owner"
ORIGIN = "origin"
HAS_RUN = "it has run"


class RunState(StrEnum):
    """What became of a due time."""

    RUNNING = "running"
    DONE = "done"
    SILENT = "silent"  # done, with nothing to say
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SKIPPED = "skipped"
    MISSED = "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who makes a job.

    Args:
        origin: the conversation that it is made in; None for the owner's.
        person: platform:user who asks.
        is_private: that conversation is a direct chat.
    """

    source: str = BY_OWNER
    origin: str | None = None
    person: str | None = None
    is_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job with what it came to so far; moments as rows keep them."""

    id: str
    source: str
    prompt: str
    cron_expr: str | None
    interval_secs: int | None
    timezone: str | None
    delivery_target: str
    origin: str | None
    created_by: str | None
    is_private: bool
    active_hours: tuple[int, int] | None
    enabled: bool
    disabled_reason: str | None
    run_once: bool
    timeout_secs: int
    failures: int
    anchor_at: str
    next_due_at: str | None
    created_at: str
    success_count: int = 0
    failure_count: int = 0
    last_executed_at: str | None = None
    last_state: str | None = None
    last_note: str | None = None

    @property
    def rhythm(self) -> str:
        """When it runs, in words."""
        words = self.cron_expr if self.cron_expr is not None else describe_interval(self.interval_secs or 0)
        if self.run_once:
            words += ", once"
        if self.active_hours is not None and self.active_hours[0] != self.active_hours[1]:
            words += f", {self.active_hours[0]:02}:00-{self.active_hours[1]:02}:00"
        return words

    def schedule(self, zone: tzinfo) -> Schedule:
        """Its due times; `zone` is the agent's, for jobs without one."""
        return Schedule(
            zone=parse_zone(self.timezone) if self.timezone else zone,
            anchor=from_text(self.anchor_at),
            expression=self.cron_expr,
            interval_s=self.interval_secs,
            active_hours=self.active_hours,
            is_once=self.run_once,
        )

    def to_json_object(self) -> dict[str, Any]:
        """For programs."""
        hours = self.active_hours
        return {**asdict(self), "active_hours": None if hours is None else list(hours), "rhythm": self.rhythm}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One taken due time."""

    seq: int
    job_id: str
    due_at: str
    cause: str
    state: str
    claimed_at: str
    started_at: str | None = None
    completed_at: str | None = None
    channel_id: str | None = None
    summary: str | None = None
    note: str | None = None
    delivered_to: str | None = None
    message_id: str | None = None
    delivery_error: str | None = None


class Jobs:
    """Reads and writes of jobs and runs; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self._clock = clock

    async def get(self, job_id: str) -> Job:
        """One job. Errors: NotFoundError."""
        return await self.database.read(lambda c: _get(c, job_id))

    async def all(self) -> list[Job]:
        """All jobs, by id."""
        return await self.database.read(lambda c: [_to_job(row) for row in c.execute(f"{_JOBS} ORDER BY j.id")])

    async def history(self, job_id: str | None = None, limit: int = 50) -> list[Run]:
        """The newest runs first."""

        def read(c: Connection) -> list[Run]:
            rows = c.execute(
                "SELECT * FROM cron_runs WHERE job_id = coalesce(?, job_id) ORDER BY seq DESC LIMIT ?", (job_id, limit)
            )
            return [Run(**dict(row)) for row in rows]

        return await self.database.read(read)

    async def save(self, spec: CronConfig, maker: Maker, zone: tzinfo, *, replace: bool = False) -> Job:
        """Make a job, or with `replace` give one of that id other fields; its failures are forgotten then.

        Errors: RefusedError when the id is taken, or it would never be due.
        """

        def write(c: Connection) -> Job:
            known = c.execute("SELECT source FROM cron_jobs WHERE id = ?", (spec.id,)).fetchone()
            if known is not None and (not replace or known["source"] == BY_CONFIG):
                why = "stands in the configuration file; change it there" if known["source"] == BY_CONFIG else "exists"
                raise RefusedError(f"a job {spec.id!r} {why}")
            if known is None and c.execute("SELECT count(*) FROM cron_jobs").fetchone()[0] >= MOST_JOBS:
                raise RefusedError(f"there are {MOST_JOBS} jobs already; delete some first")
            if known is None and maker.origin is not None:
                (own,) = c.execute("SELECT count(*) FROM cron_jobs WHERE origin = ?", (maker.origin,)).fetchone()
                if own >= MOST_OF_TALK:
                    raise RefusedError(f"this conversation has {own} jobs already; delete some first")
            _put(c, spec, maker, zone, self._clock.now())
            return _get(c, spec.id)

        return await self.database.write(write)

    async def set_enabled(self, job_id: str, enabled: bool, zone: tzinfo) -> Job:
        """Switch a job on or off; on forgets its failures and counts from now. Errors: NotFoundError, RefusedError."""

        def write(c: Connection) -> Job:
            job, now = _get(c, job_id), self._clock.now()
            if not enabled:
                _disable(c, job_id, "switched off")
            elif not job.enabled:
                anchor = to_text(now) if job.run_once else job.anchor_at
                c.execute(
                    "UPDATE cron_jobs SET enabled = 1, disabled_reason = NULL, failures = 0, anchor_at = ? "
                    "WHERE id = ?",
                    (anchor, job_id),
                )
                due = _get(c, job_id).schedule(zone).next_after(now)
                if due is None:
                    raise RefusedError(f"job {job_id!r} would never be due; give it another time")
                c.execute("UPDATE cron_jobs SET next_due_at = ? WHERE id = ?", (to_text(due), job_id))
            return _get(c, job_id)

        return await self.database.write(write)

    async def claim_due(self, zone: tzinfo) -> list[tuple[Job, Run]]:
        """Take every due time that has come; what is returned has to be run, and by nobody else."""

        def write(c: Connection) -> list[tuple[Job, Run]]:
            now = self._clock.now()
            rows = c.execute(
                f"{_PLAIN} WHERE j.enabled = 1 AND j.next_due_at <= ? ORDER BY j.next_due_at, j.id", (to_text(now),)
            ).fetchall()
            claimed = (_claim(c, _to_job(row), zone, now) for row in rows)
            return [both for both in claimed if both is not None]

        return await self.database.write(write)

    async def claim_now(self, job_id: str) -> tuple[Job, Run]:
        """Take this moment as a due time because somebody asks.

        Errors: NotFoundError; RefusedError while it is switched off, or still running.
        """

        def write(c: Connection) -> tuple[Job, Run]:
            job, now = _get(c, job_id), self._clock.text()
            if not job.enabled:
                raise RefusedError(f"job {job_id!r} is switched off ({job.disabled_reason}); switch it on first")
            if _is_running(c, job_id):
                raise RefusedError(f"job {job_id!r} is running; wait for its end")
            run = _insert(c, job_id, now, now, RunState.RUNNING, cause="asked")
            if run is None:
                raise RefusedError(f"job {job_id!r} ran in this very moment")
            if job.run_once:
                _disable(c, job_id, HAS_RUN)
            return job, run

        return await self.database.write(write)

    async def begin(self, run: Run, channel_id: str) -> None:
        """Note that a run begins, and the conversation that it is."""
        now = self._clock.text()
        await self.database.write(
            lambda c: c.execute(
                "UPDATE cron_runs SET started_at = ?, channel_id = ? WHERE seq = ?", (now, channel_id, run.seq)
            )
        )

    async def next_due(self) -> datetime | None:
        """When something is due next."""

        def read(c: Connection) -> datetime | None:
            (text,) = c.execute("SELECT min(next_due_at) FROM cron_jobs WHERE enabled = 1").fetchone()
            return None if text is None else from_text(text)

        return await self.database.read(read)

    async def reckon_anew(self, zone: tzinfo) -> None:
        """Find due times that lie ahead again: the zone changed, or the machine's clock went back."""

        def write(c: Connection) -> None:
            now = self._clock.now()
            rows = c.execute(f"{_PLAIN} WHERE j.enabled = 1 AND j.next_due_at > ?", (to_text(now),)).fetchall()
            for job in map(_to_job, rows):
                due = job.schedule(zone).next_after(now)
                _move(c, job.id, due)

        await self.database.write(write)

    async def seed(self, specs: Sequence[CronConfig], zone: tzinfo) -> list[str]:
        """Take over the configuration's jobs: new ones, changed fields of known ones; those that left it go.

        What was changed at run time (switched off, say) stays as long as the entry says what it said. Returns what is
        wrong, in words.
        """

        def write(c: Connection) -> list[str]:
            problems: list[str] = []
            wanted = {spec.id for spec in specs}
            for row in c.execute("SELECT id FROM cron_jobs WHERE source = ?", (BY_CONFIG,)).fetchall():
                if row["id"] not in wanted:
                    c.execute("DELETE FROM cron_jobs WHERE id = ?", (row["id"],))
            for spec in specs:
                try:
                    _seed(c, spec, zone, self._clock.now())
                except RefusedError as error:
                    problems.append(f"job {spec.id!r} of the configuration is not scheduled: {error}")
                    c.execute("DELETE FROM cron_jobs WHERE id = ? AND source = ?", (spec.id, BY_CONFIG))
            return problems

        return await self.database.write(write)


def finish_run(c: Connection, run: Run, state: RunState, now: str, **fields: str | None) -> bool:
    """Write down the end of a run, inside a transaction; returns whether the job was switched off by its failures.

    Args:
        fields: summary, note, delivered_to, message_id, delivery_error.
    """
    values = {"summary": None, "note": None, "delivered_to": None, "message_id": None, "delivery_error": None, **fields}
    ended = c.execute(
        "UPDATE cron_runs SET state = :state, completed_at = :now, summary = :summary, note = :note, "
        "delivered_to = :delivered_to, message_id = :message_id, delivery_error = :delivery_error "
        "WHERE seq = :seq AND state = 'running'",
        {**values, "state": str(state), "now": now, "seq": run.seq},
    )
    if ended.rowcount == 0 or state not in (RunState.DONE, RunState.SILENT, RunState.FAILED):
        return False
    if state is not RunState.FAILED:
        c.execute("UPDATE cron_jobs SET failures = 0 WHERE id = ?", (run.job_id,))
        return False
    row = c.execute(
        "UPDATE cron_jobs SET failures = failures + 1 WHERE id = ? RETURNING failures, enabled", (run.job_id,)
    ).fetchone()
    if row is None or row["failures"] < BREAKS_AT or not row["enabled"]:
        return False
    _disable(c, run.job_id, f"{row['failures']} failures in a row, the last one: {fields.get('note') or 'unknown'}")
    return True


def old_channels(c: Connection, job_id: str, keep: int = KEPT_RUNS) -> list[str]:
    """Forget the oldest runs of a job; returns the conversations that they were."""
    rows = c.execute(
        "DELETE FROM cron_runs WHERE job_id = :job AND state <> 'running' AND seq <= (SELECT seq FROM cron_runs "
        "WHERE job_id = :job ORDER BY seq DESC LIMIT 1 OFFSET :keep) RETURNING channel_id",
        {"job": job_id, "keep": keep},
    ).fetchall()
    return [row["channel_id"] for row in rows if row["channel_id"] is not None]


def delete_job(c: Connection, job_id: str) -> list[str]:
    """Delete a job with its history; returns the conversations that its ended runs were.

    Errors: NotFoundError; RefusedError for one of the configuration file.
    """
    if _get(c, job_id).source == BY_CONFIG:
        raise RefusedError(f"job {job_id!r} stands in the configuration file; remove it there, or switch it off")
    rows = c.execute(
        "SELECT channel_id FROM cron_runs WHERE job_id = ? AND channel_id NOT NULL AND state <> 'running'", (job_id,)
    ).fetchall()
    c.execute("DELETE FROM cron_jobs WHERE id = ?", (job_id,))
    return [row["channel_id"] for row in rows]


def is_job(c: Connection, job_id: str) -> bool:
    """Whether a job has not been deleted."""
    return c.execute("SELECT 1 FROM cron_jobs WHERE id = ?", (job_id,)).fetchone() is not None


def interrupt_runs(c: Connection, now: str) -> list[str]:
    """Close what an earlier life of the program left running; returns the conversations.

    A due time that was taken and whose run did certainly not begin is given back.
    """
    for row in c.execute(
        "DELETE FROM cron_runs WHERE state = 'running' AND started_at IS NULL AND cause = 'schedule' "
        "RETURNING job_id, due_at"
    ).fetchall():
        c.execute(
            "UPDATE cron_jobs SET next_due_at = ?, enabled = 1, disabled_reason = NULL "
            "WHERE id = ? AND (enabled = 1 OR (run_once = 1 AND disabled_reason = ?))",
            (row["due_at"], row["job_id"], HAS_RUN),
        )
    rows = c.execute(
        "UPDATE cron_runs SET state = 'interrupted', completed_at = ?, note = 'the program ended during the run; it is "
        "not run again' WHERE state = 'running' RETURNING channel_id",
        (now,),
    ).fetchall()
    return [row["channel_id"] for row in rows if row["channel_id"] is not None]


_PLAIN = "SELECT j.* FROM cron_jobs j"
_OF_JOB = "FROM cron_runs r WHERE r.job_id = j.id"
_JOBS = (
    f"SELECT j.*, (SELECT count(*) {_OF_JOB} AND r.state IN ('done', 'silent')) AS success_count, "
    f"(SELECT count(*) {_OF_JOB} AND r.state = 'failed') AS failure_count, "
    f"(SELECT max(r.started_at) {_OF_JOB}) AS last_executed_at, l.state AS last_state, l.note AS last_note "
    f"FROM cron_jobs j LEFT JOIN cron_runs l ON l.seq = (SELECT max(r.seq) {_OF_JOB})"
)


def _get(c: Connection, job_id: str) -> Job:
    row = c.execute(f"{_JOBS} WHERE j.id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"there is no job {job_id[:80]!r}; list them to see their ids")
    return _to_job(row)


def _to_job(row: Row) -> Job:
    fields: dict[str, Any] = dict(row)
    start, end = fields.pop("active_start_hour"), fields.pop("active_end_hour")
    del fields["seed"]
    for name in ("enabled", "run_once", "is_private"):
        fields[name] = bool(fields[name])
    return Job(active_hours=None if start is None else (start, end), **fields)


def _put(c: Connection, spec: CronConfig, maker: Maker, zone: tzinfo, now: datetime, seed: str | None = None) -> None:
    """Write a job's fields and its next due time; a known one keeps who made it."""
    values = {
        **spec.model_dump(),
        "cron_expr": None if spec.cron_expr is None else normalised(spec.cron_expr),
        "source": maker.source,
        "origin": maker.origin,
        "created_by": maker.person,
        "is_private": maker.is_private,
        "now": to_text(now),
        "seed": seed,
        "disabled_reason": None if spec.enabled else "switched off",
    }
    names = (
        "prompt", "cron_expr", "interval_secs", "timezone", "delivery_target", "active_start_hour", "active_end_hour",
        "enabled", "disabled_reason", "run_once", "timeout_secs", "seed",
    )  # fmt: skip
    c.execute(
        "INSERT INTO cron_jobs (id, source, origin, created_by, is_private, anchor_at, created_at, "
        f"{', '.join(names)}) "
        f"VALUES (:id, :source, :origin, :created_by, :is_private, :now, :now, {', '.join(f':{n}' for n in names)}) "
        f"ON CONFLICT (id) DO UPDATE SET failures = 0, anchor_at = excluded.anchor_at, "
        f"{', '.join(f'{n} = excluded.{n}' for n in names)}",
        values,
    )
    due = _get(c, spec.id).schedule(zone).next_after(now)
    if due is None:
        raise RefusedError(f"job {spec.id!r} would never be due in its active hours; give it other ones")
    c.execute("UPDATE cron_jobs SET next_due_at = ? WHERE id = ?", (to_text(due) if spec.enabled else None, spec.id))


def _seed(c: Connection, spec: CronConfig, zone: tzinfo, now: datetime) -> None:
    seed = json.dumps(spec.model_dump(), sort_keys=True)
    known = c.execute("SELECT * FROM cron_jobs WHERE id = ?", (spec.id,)).fetchone()
    if known is not None and known["source"] != BY_CONFIG:
        raise RefusedError("a job of that id was made at run time; give this one another id")
    if known is not None and known["seed"] == seed:
        return
    if known is not None:
        before: Mapping[str, Any] = json.loads(known["seed"] or "{}")
        if before.get("enabled") == spec.enabled:
            spec = spec.model_copy(update={"enabled": bool(known["enabled"])})
    _put(c, spec, Maker(source=BY_CONFIG), zone, now, seed)


def _claim(c: Connection, job: Job, zone: tzinfo, now: datetime) -> tuple[Job, Run] | None:
    """Take a job's latest due time and move it on; None when it is not to be run."""
    assert job.next_due_at is not None
    schedule, first = job.schedule(zone), from_text(job.next_due_at)
    latest, following = schedule.latest(first, now), schedule.next_after(now)
    if job.run_once and latest is None:
        latest = first  # somebody waits for it, and it comes once only: better late than never
    if job.run_once:
        _disable(c, job.id, HAS_RUN)
    else:
        _move(c, job.id, following)
    claimed, due = to_text(now), to_text(latest or first)
    if latest is None:
        _insert(c, job.id, due, claimed, RunState.MISSED, note="the program was not running; too late to make up for")
        return None
    if _is_running(c, job.id):
        _insert(c, job.id, due, claimed, RunState.SKIPPED, note="the run before was still going on")
        return None
    note = "made up for: earlier due times were missed" if latest != first else None
    run = _insert(c, job.id, due, claimed, RunState.RUNNING, note=note)
    return None if run is None else (job, run)


def _insert(
    c: Connection, job_id: str, due: str, now: str, state: RunState, *, cause: str = "schedule", note: str | None = None
) -> Run | None:
    """The row that makes a due time taken; None when it was taken before."""
    is_over = state is not RunState.RUNNING
    row = c.execute(
        "INSERT INTO cron_runs (job_id, due_at, cause, state, claimed_at, completed_at, note) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, due_at) DO NOTHING RETURNING *",
        (job_id, due, cause, str(state), now, now if is_over else None, note),
    ).fetchone()
    return None if row is None else Run(**dict(row))


def _is_running(c: Connection, job_id: str) -> bool:
    query = "SELECT 1 FROM cron_runs WHERE job_id = ? AND state = 'running'"
    return c.execute(query, (job_id,)).fetchone() is not None


def _move(c: Connection, job_id: str, due: datetime | None) -> None:
    if due is None:
        _disable(c, job_id, "it is never due again")
    else:
        c.execute("UPDATE cron_jobs SET next_due_at = ? WHERE id = ?", (to_text(due), job_id))


def _disable(c: Connection, job_id: str, reason: str) -> None:
    c.execute(
        "UPDATE cron_jobs SET enabled = 0, next_due_at = NULL, disabled_reason = ? WHERE id = ?", (reason, job_id)
    )
