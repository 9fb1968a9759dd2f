"""What a schedule's run is: a conversation of its own, that ends when its work has settled, told once where it belongs.

A run is private when its job was made in a direct chat: then what it says and learns is found by later runs of the
same job only. Its end and the words that people get are one transaction, so that they are told once.

    accept the prompt -> turns, branches, workers -> settled -> end + words in the target's log and outbox
                    \\-> out of time -> asked to wrap up -> settled, or cut

Flow:   Scheduler -> Schedules.execute ; tool, API, command line -> Schedules
Floor:  agent
Source: tools spec 9, process spec 13
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Protocol

import trio
from pydantic import ValidationError

from spacebot.agent.crossing import HOME, Crossing
from spacebot.agent.prompts import Prompts
from spacebot.base.clock import Clock, format_local, from_text, parse_zone
from spacebot.base.errors import DeniedError, RefusedError, SpacebotError, StorageError, ToolError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId, ConversationId, platform_of
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.config.model import AgentConfig, CronConfig
from spacebot.conversations.records import Accepted, LoggedMessage, TurnState
from spacebot.conversations.run_log import Ending, close_conversations, drop_conversations, ending_of, is_known, say_in
from spacebot.cron.jobs import (
    BY_TALK,
    ORIGIN,
    Job,
    Jobs,
    Maker,
    Run,
    RunState,
    delete_job,
    finish_run,
    interrupt_runs,
    is_job,
    old_channels,
)
from spacebot.cron.schedule import machine_zone
from spacebot.cron.scheduler import Scheduler
from spacebot.memory.types import Provenance
from spacebot.messaging.messages import Author, InboundMessage, OutboundKind
from spacebot.storage.database import Connection

log = logging.getLogger(__name__)

PLATFORM = "cron"  # of the conversations that runs are
GRACE_S = 60.0  # for wrapping up when the time of a run is over
CUT_S = 10.0  # for what is cut to end
SUMMARY = 500  # characters of what was said, in the history
TRIES, RETRY_S = 10, 5.0  # to write down the end of a run


class LiveChannels(Protocol):
    """What runs need of the live channels."""

    def settling(self, conversation: ConversationId) -> trio.Event:
        """An event of the conversation's next end; to be asked for before its message is accepted."""
        ...

    def wind_up(self, conversation: ConversationId, reason: str) -> None:
        """End what a conversation has set to work, without a word."""
        ...

    def cut(self, conversation: ConversationId) -> None:
        """End a conversation as it stands, for good."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    state: RunState
    words: str = ""
    note: str | None = None


class Schedules:
    """The schedules of one agent; `accept` and `channels` are set before `run`."""

    accept: Callable[[InboundMessage], Awaitable[Accepted]]
    channels: LiveChannels

    def __init__(
        self,
        jobs: Jobs,
        crossing: Crossing,
        prompts: Prompts,
        *,
        agent_id: AgentId,
        settings: Callable[[], AgentConfig],
        events: EventBus,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._crossing = crossing
        self._prompts = prompts
        self._agent_id = agent_id
        self._settings = settings
        self._events = events
        self._clock = clock
        self._reload = trio.Event()
        self.obstacle: Callable[[], str | None] = lambda: None  # why no model would be asked now
        self.scheduler = Scheduler(jobs, clock, self.execute, zone=lambda: self.zone)

    @property
    def jobs(self) -> Jobs:
        """The jobs as the store has them."""
        return self._jobs

    @property
    def zone(self) -> tzinfo:
        """The time zone of jobs that name none."""
        name = self._settings().cron_timezone or self._settings().user_timezone
        return parse_zone(name) if name else machine_zone()

    async def close_stale(self) -> None:
        """Close runs that the program's last life left; before anything of it is taken up again."""

        def write(c: Connection) -> int:
            now = self._clock.text()
            channels = interrupt_runs(c, now)
            close_conversations(c, channels, now)
            return len(channels)

        if count := await self._jobs.database.write(write):
            log.warning("runs of schedules were cut by the program's end", extra=kv(agent=self._agent_id, runs=count))

    async def run(self) -> None:
        """Keep the schedules until cancelled."""
        async with trio.open_nursery() as nursery:
            await self._take_over()
            nursery.start_soon(self.scheduler.run)
            while True:
                await self._reload.wait()
                self._reload = trio.Event()
                await self._take_over()

    def reload(self) -> None:
        """The configuration has changed. Never waits."""
        self._reload.set()

    async def _take_over(self) -> None:
        try:
            problems = await self._jobs.seed(self._settings().cron, self.zone)
            await self._jobs.reckon_anew(self.zone)
        except StorageError as error:
            problems = [str(error)]
        for problem in problems:
            log.warning("schedule of the configuration", extra=kv(agent=self._agent_id, problem=problem))
        self.scheduler.wake()

    # For the owner

    async def all(self) -> list[Job]:
        """All jobs, by id."""
        return await self._jobs.all()

    async def history(self, job_id: str | None = None, limit: int = 50) -> list[Run]:
        """The newest runs first."""
        return await self._jobs.history(job_id, limit)

    async def save(self, fields: Mapping[str, Any], *, replace: bool = False) -> Job:
        """Make a job for the owner. Errors: RefusedError, StorageError."""
        spec = _check(fields)
        await self._owner_target(spec.delivery_target, is_new=True)
        job = await self._jobs.save(spec, Maker(), self.zone, replace=replace)
        self.scheduler.wake()
        return job

    async def delete(self, job_id: str) -> None:
        """Delete a job with its history; a run that goes on ends. Errors: NotFoundError, RefusedError, StorageError."""

        def write(c: Connection) -> None:
            drop_conversations(c, delete_job(c, job_id))

        await self._jobs.database.write(write)
        self.scheduler.cancel(job_id)
        self.scheduler.wake()

    async def set_enabled(self, job_id: str, enabled: bool) -> Job:
        """Switch a job on or off. Errors: NotFoundError, RefusedError, StorageError."""
        job = await self._jobs.set_enabled(job_id, enabled, self.zone)
        self.scheduler.wake()
        return job

    async def trigger(self, job_id: str) -> Run:
        """Have a job run now. Errors: NotFoundError, RefusedError, StorageError."""
        return await self.scheduler.trigger(job_id)

    # For a conversation

    def desk(self, here: ConversationId, provenance: Provenance, *, may_go_elsewhere: bool = True) -> "Desk":
        """What the tool of a conversation may do.

        Args:
            may_go_elsewhere: False for strangers in direct chats: they neither see nor reach other places.
        """
        return Desk(self, self._jobs, self._crossing, here, provenance, may_go_elsewhere=may_go_elsewhere)

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as the model sees it."""
        zone = parse_zone(job.timezone) if job.timezone else self.zone
        due = format_local(from_text(job.next_due_at), zone) if job.next_due_at else None
        return {
            "id": job.id,
            "prompt": preview(job.prompt, 300),
            "when": job.rhythm,
            "next": due,
            "timezone": str(zone),
            "enabled": job.enabled,
            "reason": job.disabled_reason,
            "last": job.last_state,
        }

    # A run

    async def execute(self, job: Job, run: Run) -> None:
        """One run from its beginning to its written end."""
        channel_id = ConversationId(f"{PLATFORM}:{job.id}:{run.seq}")
        self._emit(job, run, channel_id, "running")
        try:
            await self._jobs.begin(run, channel_id)
            reason = self.obstacle()
            result = _put_off(job, reason) if reason else await self._converse(job, channel_id)
        except trio.Cancelled:  # the job was deleted, or the program ends
            with trio.CancelScope(shield=True):
                await self._cut(channel_id)
                await self._finish(job, run, channel_id, _Result(state=RunState.INTERRUPTED, note="cut"))
            raise
        except Exception as error:  # boundary: process
            if not isinstance(error, SpacebotError):
                log.error("run of a schedule broke", exc_info=error, extra=kv(agent=self._agent_id, job=job.id))
            await self._cut(channel_id)
            result = _Result(state=RunState.FAILED, note=scrub(str(error)) or type(error).__name__)
        with trio.CancelScope(shield=True):
            await self._finish(job, run, channel_id, result)

    async def _converse(self, job: Job, channel_id: ConversationId) -> _Result:
        settled = await self._tell(job, channel_id, "fragments/cron", prompt=job.prompt, rhythm=job.rhythm)
        note = None
        with trio.move_on_after(job.timeout_secs) as patience:
            await settled.wait()
        if patience.cancelled_caught:
            note = f"wrapped up after {job.timeout_secs} s"
            log.info("run of a schedule is out of time", extra=kv(agent=self._agent_id, job=job.id))
            self.channels.wind_up(channel_id, "the time of this run is over")
            settled = await self._tell(job, channel_id, "fragments/cron_wrap_up", seconds=job.timeout_secs)
            with trio.move_on_after(GRACE_S) as patience:
                await settled.wait()
            if patience.cancelled_caught:
                await self._cut(channel_id)
                return _Result(state=RunState.FAILED, note=f"it did not end within {job.timeout_secs} s")
        return _result(await self._jobs.database.read(lambda c: ending_of(c, channel_id)), note)

    async def _tell(self, job: Job, channel_id: ConversationId, template: str, **values: Any) -> trio.Event:
        """Say something in a run; returns the event of its end."""
        message = InboundMessage(
            platform=PLATFORM,
            conversation_id=channel_id,
            author=Author(id=f"job:{job.id}", name="Schedule"),
            text=self._prompts.render(template, job=job.id, **values),
            sent_at=self._clock.now(),
            is_direct=job.is_private,
            mentions_bot=True,
            channel_name=f"schedule {job.id}",
        )
        settled = self.channels.settling(channel_id)
        await self.accept(message)
        return settled

    async def _cut(self, channel_id: ConversationId) -> None:
        """End a run as it stands, and wait until it has ended."""
        ended = self.channels.settling(channel_id)
        self.channels.cut(channel_id)
        with trio.move_on_after(CUT_S):
            await ended.wait()

    async def _finish(self, job: Job, run: Run, channel_id: ConversationId, result: _Result) -> None:
        """Write the end, and in the same step what people are told."""
        target, problem = None, None
        try:
            target = await self._target(job)
        except (SpacebotError, OSError) as error:
            problem = scrub(str(error))

        def write(c: Connection) -> list[LoggedMessage]:
            now, rows, lost = self._clock.text(), [], None
            if result.words:
                row = say_in(c, target, result.words, now) if target is not None else None
                lost = None if row is not None else problem or "the conversation is gone"
                rows += [row] if row is not None else []
            is_tripped = finish_run(
                c,
                run,
                result.state,
                now,
                summary=preview(result.words, SUMMARY) if result.words else None,
                note=result.note or run.note,
                delivered_to=target if rows else None,
                message_id=rows[0].id if rows else None,
                delivery_error=lost,
            )
            if is_tripped and target is not None:
                words = f'The schedule "{job.id}" is switched off after failing again and again: {result.note}'
                row = say_in(c, target, words, now, OutboundKind.NOTICE)
                rows += [row] if row is not None else []
            close_conversations(c, [channel_id], now)
            drop_conversations(c, old_channels(c, job.id) if is_job(c, job.id) else [channel_id])
            return rows

        for _ in range(TRIES):
            try:
                rows = await self._jobs.database.write(write)
                break
            except StorageError as error:
                log.error("end of a run not written, it is tried again", extra=kv(job=job.id, error=str(error)))
                await trio.sleep(RETRY_S)
        else:
            return  # it stays open, and the program's next start closes it
        for row in rows:
            self._crossing.announce(row)
        if problem is not None and result.words:
            log.warning("result of a schedule not delivered", extra=kv(job=job.id, reason=problem))
        self._emit(job, run, channel_id, str(result.state))

    async def _target(self, job: Job) -> str | None:
        """The conversation that gets the results. Errors: ToolError when there is none."""
        if job.delivery_target == ORIGIN:
            return job.origin
        if job.source == BY_TALK and job.delivery_target != HOME:
            return job.delivery_target  # found when the job was made
        return await self._owner_target(job.delivery_target)

    async def _owner_target(self, target: str, *, is_new: bool = False) -> str | None:
        """A place as the owner names it: any conversation that is known may be meant, direct chats too.

        Errors: RefusedError, ToolError. For a new job it is enough that an adapter of that name is configured.
        """
        if await self._jobs.database.read(lambda c: is_known(c, target)):
            return target
        try:
            return (await self._crossing.find(target, here=ConversationId(""), person=None))[0]
        except ToolError as error:
            if is_new and not self._crossing.is_address(target) and target.casefold() != HOME:
                raise RefusedError(str(error)) from error
            if is_new:
                return None
            raise

    def _emit(self, job: Job, run: Run, channel_id: ConversationId, state: str) -> None:
        self._events.emit(
            EventKind.CRON_RUN, agent_id=self._agent_id, channel_id=channel_id, job_id=job.id, run=run.seq, state=state
        )


class Desk:
    """Schedules as one conversation sees them: its own, and of others those that are no secret. It changes its own.

    A run sees with the eyes of the conversation that made its job, and makes no new ones.
    """

    def __init__(
        self,
        schedules: Schedules,
        jobs: Jobs,
        crossing: Crossing,
        here: ConversationId,
        provenance: Provenance,
        *,
        may_go_elsewhere: bool,
    ) -> None:
        self._schedules = schedules
        self._jobs = jobs
        self._crossing = crossing
        self._here = here
        self._provenance = provenance
        self._may_go_elsewhere = may_go_elsewhere

    async def create(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make a job that delivers here unless it says otherwise. Errors: RefusedError, ToolError, StorageError."""
        if platform_of(self._here) == PLATFORM:
            raise RefusedError("a run of a schedule cannot make schedules; say what should be scheduled instead")
        target, person = str(fields.get("delivery_target") or ORIGIN), self._provenance.user_id
        if target not in (ORIGIN, self._here) and not self._may_go_elsewhere:
            raise DeniedError("from here a job can deliver here only; leave delivery_target out", about="job elsewhere")
        if target.casefold() == HOME:
            target = HOME
        elif target != ORIGIN:
            target = (await self._crossing.find(target, here=self._here, person=person))[0]
        maker = Maker(
            source=BY_TALK,
            origin=self._here,
            person=f"{platform_of(self._here)}:{person}" if person else None,
            is_private=self._provenance.is_direct,
        )
        job = await self._jobs.save(
            _check({**fields, "delivery_target": target}), maker, self._schedules.zone, replace=False
        )
        self._schedules.scheduler.wake()
        return self._schedules.shown(job)

    async def jobs(self) -> Sequence[Mapping[str, Any]]:
        """Those that this conversation may know of."""
        origin = await self._origin()
        jobs = await self._jobs.all()
        seen = [job for job in jobs if job.origin == origin or (self._may_go_elsewhere and not job.is_private)]
        return [self._schedules.shown(job) for job in seen]

    async def delete(self, job_id: str) -> None:
        """Delete a job of this conversation."""
        await self._own(job_id)
        await self._schedules.delete(job_id)

    async def run_now(self, job_id: str) -> None:
        """Have a job of this conversation run now."""
        await self._own(job_id)
        await self._schedules.trigger(job_id)

    async def _own(self, job_id: str) -> None:
        origin = await self._origin()
        job = next((job for job in await self._jobs.all() if job.id == job_id), None)
        if job is None or (job.origin != origin and (job.is_private or not self._may_go_elsewhere)):
            raise RefusedError(f"there is no job {job_id!r}; list shows those that there are")
        if job.origin != origin or origin is None:
            raise RefusedError(f"job {job_id!r} was not made in this conversation; it is changed where it was made")

    async def _origin(self) -> str | None:
        """The conversation whose jobs these are."""
        if platform_of(self._here) != PLATFORM:
            return self._here
        job_id = self._here.split(":")[1]
        return next((job.origin for job in await self._jobs.all() if job.id == job_id), None)


def _check(fields: Mapping[str, Any]) -> CronConfig:
    """The one check of a job's fields. Errors: RefusedError that names each wrong one."""
    try:
        return CronConfig.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'job'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise RefusedError(f"the job is not right: {problems}") from error


def _put_off(job: Job, reason: str) -> _Result:
    """A run that is left out, which is no failure; what would never come again is said as it was given."""
    words = f'The schedule "{job.id}" could not run: {reason}. It was to do this: {job.prompt}' if job.run_once else ""
    return _Result(state=RunState.SKIPPED, words=scrub(words), note=reason)


def _result(ending: Ending, note: str | None) -> _Result:
    if ending.state is None or ending.state in (TurnState.FAILED, TurnState.INTERRUPTED, "running"):
        return _Result(state=RunState.FAILED, note=scrub(ending.detail) or "it came to no end")
    return _Result(state=RunState.DONE if ending.words else RunState.SILENT, words=ending.words, note=note)
