"""What the cortex writes, one class for each duty: when it is due, and one run of it.

    bulletin       something shared was saved or changed, it is quiet for a minute, and the interval is over
    profile        after a new bulletin
    observation    thirty new shared memories, and a day since the last look

`due_s` is asked after every event that concerns the duty and never waits; `run` raises when it fails, and is then
tried again after a pause. Spans are measured on the monotonic clock, so a wall clock that jumps starves nobody.

Floor:   agent
Source:  memory spec 6, 9.4, 11; process spec 10
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from spacebot.agent.bulletin import Bulletin, Gathered, is_upkeep, tidy
from spacebot.agent.observation import LEAST_NEWS, Cursor, gather_news, load_cursor, observe, save_cursor
from spacebot.agent.parts import AgentParts
from spacebot.agent.profile import Profiles, digest_of, parse_profile
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ExternalError, StorageError
from spacebot.base.events import EventKind, ProcessEvent
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node
from spacebot.config.model import CortexConfig
from spacebot.llm.messages import ModelMessage, ModelReply, ModelRequest, ProcessKind, SystemBlock
from spacebot.memory.curation_log import CurationLog
from spacebot.storage.database import Database
from spacebot.storage.settings import Settings

log = logging.getLogger(__name__)

SETTLE_S, SETTLE_MOST_S = 60.0, 600.0  # quiet after a change, and how long a change waits at most for quiet
OBSERVE_SETTLE_S = 600.0
DAY_S = 86_400.0


class Duty(Protocol):
    """One kind of upkeep.

    `limit_s` (seconds) ends a run that takes longer; None leaves it to the cortex. `stir` is the cortex's: it makes
    the cortex ask again when the duty is due.
    """

    name: str
    stir: Callable[[], None]

    @property
    def limit_s(self) -> float | None: ...

    async def open(self) -> None:
        """Find out where the last life left off."""
        ...

    def noticed(self, event: ProcessEvent) -> bool:
        """Take note of an event; whether it may change when the duty is due."""
        ...

    def due_s(self) -> float | None:
        """Seconds until the next run, negative when it is overdue; None while there is nothing to do."""
        ...

    async def run(self) -> None:
        """Do it once. Errors: whatever went wrong."""
        ...


class Desk:
    """What the duties of one cortex share."""

    def __init__(self, parts: AgentParts, database: Database, node: Node) -> None:
        self.parts = parts
        self.node = node
        self.curation = CurationLog(database, parts.clock)
        self.settings = Settings(database)
        self.profiles = Profiles(database, parts.id, parts.clock)

    @property
    def config(self) -> CortexConfig:
        """The present configuration."""
        return self.parts.settings().cortex

    def age_s(self, moment: datetime, most_s: float) -> float:
        """Seconds since a moment of the wall clock, between 0 and `most_s`."""
        return min(max((self.parts.clock.now() - moment).total_seconds(), 0.0), most_s)

    def tell(self, event_type: str, summary: str) -> None:
        """Tell observers; the summary holds nothing that was said."""
        self.parts.events.emit(EventKind.CORTEX_EVENT, agent_id=self.parts.id, event_type=event_type, summary=summary)

    async def note(self, event_type: str, summary: str, **details: Any) -> None:
        """Write the curation log and tell observers; a log that cannot be written stops nothing."""
        try:
            await self.curation.add(event_type, summary, **details)
        except StorageError as error:
            log.warning("curation log not written", extra=kv(event=event_type, error=str(error)))
        self.tell(event_type, summary)

    async def ask(self, task_type: str, system: str, prompt: str) -> ModelReply:
        """One model call without tools. Errors: ModelError."""
        return await self.parts.model.complete(
            ModelRequest(
                process=ProcessKind.CORTEX,
                system=(SystemBlock(self.parts.prompts.render(system)),),
                messages=(ModelMessage.user(prompt),),
                task_type=task_type,
                node=self.node,
            )
        )


def nobody() -> None:
    """Nobody to tell yet."""


def is_shared_news(event: ProcessEvent) -> bool:
    return event.kind is EventKind.MEMORY_SAVED and not event.fields.get("is_private")


def is_wish(event: ProcessEvent) -> bool:
    """Whether somebody changed memories, other than upkeep."""
    return event.kind is EventKind.MEMORY_CHANGED and not is_upkeep(event)


@dataclass(frozen=True, slots=True)
class _Written:
    """A bulletin that a model wrote, and what the log says of it."""

    bulletin: Bulletin
    details: Mapping[str, Any]


class BulletinDuty:
    """Writes the bulletin anew when what it is made of has changed."""

    name = "bulletin"
    limit_s: float | None = None

    def __init__(self, desk: Desk, profile: "ProfileDuty") -> None:
        self.stir: Callable[[], None] = nobody
        self._desk = desk
        self._briefing = desk.parts.briefing
        self._profile = profile
        self._first_at: float | None = None  # of the changes that no bulletin has seen
        self._latest_at = 0.0
        self._changes = 0
        self._is_touched = False
        self._last_at: float | None = None
        self._unwritten: _Written | None = None

    async def open(self) -> None:
        """Count the interval from the last bulletin on, and look once whether anything came while nobody watched."""
        last = self._briefing.last
        if last is not None:
            self._last_at = monotonic_s() - self._desk.age_s(last.gathered_at, self._desk.config.bulletin_interval_secs)
        self._mark()

    def noticed(self, event: ProcessEvent) -> bool:
        """A shared memory was saved, or any changed by somebody's wish."""
        if is_wish(event) or is_shared_news(event):
            self._is_touched = True
            self._mark()
            return True
        return event.kind is EventKind.CONFIG_RELOADED

    def _mark(self) -> None:
        self._changes += 1
        self._latest_at = monotonic_s()
        if self._first_at is None:
            self._first_at = self._latest_at

    def due_s(self) -> float | None:
        """Once it is quiet, at most once an interval."""
        if self._first_at is None:
            return None
        at = min(self._latest_at + SETTLE_S, self._first_at + SETTLE_MOST_S)
        if self._last_at is not None:
            at = max(at, self._last_at + self._desk.config.bulletin_interval_secs)
        return at - monotonic_s()

    async def run(self) -> None:
        """Look, and write if what is seen is new. Errors: ModelError, StorageError, ExternalError."""
        changes, began = self._changes, monotonic_s()
        await self._briefing.text()  # withdraws what was forgotten
        gathered = await self._briefing.gather()
        if self._briefing.is_outdated_by(gathered, is_touched=self._is_touched):
            written = self._unwritten
            if written is None or written.bulletin.digest != gathered.digest:
                written = await self._write(gathered)
            self._unwritten = written  # until it is on disk; a full disk must not cost a model call each time
            is_kept = await self._briefing.publish(written.bulletin, **written.details)
            self._unwritten = None
            if not is_kept:  # made of something that was forgotten meanwhile: another look once it is quiet
                self._is_touched, self._first_at = True, None
                self._mark()
                return
            self._desk.tell("bulletin_generated", f"bulletin of {written.bulletin.words} words")
            self._last_at = began
            self._profile.ask_for()
        if changes == self._changes:
            self._first_at, self._is_touched = None, False
        else:
            self._first_at = self._latest_at

    async def _write(self, gathered: Gathered) -> _Written:
        """Let a model write. Errors: ModelError; ExternalError when it wrote nothing."""
        parts, began = self._desk.parts, monotonic_s()
        max_words = self._desk.config.bulletin_max_words
        sections = gathered.for_template(parts.zone)
        prompt = parts.prompts.render("fragments/cortex_synthesis", raw_sections=sections, max_words=max_words)
        reply = await self._desk.ask(self.name, "CORTEX", prompt)
        text = tidy(reply.message.text, max_words)
        if not text:
            raise ExternalError("the model wrote no bulletin; another cortex model may do better")
        bulletin = Bulletin(
            text=text, digest=gathered.digest, memory_ids=frozenset(gathered.memories), gathered_at=gathered.at
        )
        details = {
            "sections": {section["name"]: len(section["memories"]) for section in sections},
            "duration_ms": round((monotonic_s() - began) * 1000),
            "model": reply.model,
        }
        return _Written(bulletin, details)


class ProfileDuty:
    """Writes the agent's card after a new bulletin."""

    name = "profile"
    limit_s: float | None = None

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.stir: Callable[[], None] = nobody
        self._is_wanted = False

    async def open(self) -> None:
        """A bulletin whose card is missing gets one."""
        self._is_wanted = self._desk.parts.briefing.is_shown

    def noticed(self, event: ProcessEvent) -> bool:
        """Nothing on the bus concerns the card."""
        return False

    def ask_for(self) -> None:
        """There is a new bulletin."""
        self._is_wanted = True
        self.stir()

    def due_s(self) -> float | None:
        """At once when it is wanted."""
        return 0.0 if self._is_wanted else None

    async def run(self) -> None:
        """Write the card unless its inputs are the old ones. Errors: ModelError, StorageError."""
        self._is_wanted = False
        try:
            await self._write()
        except BaseException:
            self._is_wanted = True
            raise

    async def _write(self) -> None:
        desk, profiles = self._desk, self._desk.profiles
        bulletin = await desk.parts.briefing.text()
        prompt = desk.parts.prompts.render("fragments/profile_synthesis", memory_bulletin=bulletin)
        digest = digest_of(prompt)
        if not bulletin or digest == await profiles.digest():
            return
        reply = await desk.ask(self.name, "CORTEX_PROFILE", prompt)
        try:
            fields = parse_profile(reply.message.text)
        except ExternalError as error:
            await profiles.note_unusable(digest)  # the same question would get the same answer
            await desk.note("profile_failed", "the model gave no usable card", error=str(error), model=reply.model)
            return
        if await desk.parts.briefing.text() != bulletin:
            return  # made of something that was forgotten meanwhile; the next bulletin brings another
        await profiles.put(fields, digest, model=reply.model)
        desk.tell("profile_generated", "the agent's card was written")


class ObservationDuty:
    """Looks across channels for patterns, at most once a day."""

    name = "observation"
    limit_s: float | None = None

    def __init__(self, desk: Desk) -> None:
        self.stir: Callable[[], None] = nobody
        self._desk = desk
        self._cursor = Cursor()
        self._looked_at: float | None = None
        self._news = 0
        self._latest_at = 0.0

    async def open(self) -> None:
        """Count what came since the last look."""
        self._cursor = await load_cursor(self._desk.settings)
        if self._cursor.looked_at is not None:
            self._looked_at = monotonic_s() - self._desk.age_s(self._cursor.looked_at, DAY_S)
        self._news = len((await gather_news(self._desk.parts, self._cursor)).memories)
        self._latest_at = monotonic_s()

    def noticed(self, event: ProcessEvent) -> bool:
        """A shared memory was saved."""
        if not is_shared_news(event):
            return False
        self._news += 1
        self._latest_at = monotonic_s()
        return self._news >= LEAST_NEWS

    def due_s(self) -> float | None:
        """Once there is enough, it is quiet, and a day is over."""
        if self._news < LEAST_NEWS:
            return None
        at = self._latest_at + OBSERVE_SETTLE_S
        if self._looked_at is not None:
            at = max(at, self._looked_at + DAY_S)
        return at - monotonic_s()

    async def run(self) -> None:
        """Look, if there is enough that is new. Errors: ModelError, StorageError."""
        desk = self._desk
        news = await gather_news(desk.parts, self._cursor)
        if len(news.memories) < LEAST_NEWS:
            self._news = len(news.memories)
            return
        began, now = monotonic_s(), desk.parts.clock.now()
        saved = await observe(desk.parts, desk.node, news, self._cursor)
        self._cursor = Cursor(until=news.newest, looked_at=now)
        self._looked_at, self._news = began, 0
        await save_cursor(desk.settings, self._cursor)
        await desk.note(
            "observation_created" if saved else "observation_skipped",
            f"looked over {len(news.memories)} memories, saved {len(saved)} observations",
            memory_ids=list(saved),
            looked_over=len(news.memories),
        )
