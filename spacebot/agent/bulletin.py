"""What every conversation is told of the agent's knowledge: a block from the rows, and the cortex's bulletin.

The block is made without a model and always true. The bulletin is a model's summary of nine views of the shared
memories; it is only ever made of what anybody may know, kept in the curation log, read back at start, and
withdrawn at once when something that it was made of is forgotten.

Flow:    Briefing.gather -> digest -> (the cortex asks a model) -> tidy -> Briefing.publish -> AgentParts.bulletin
Floor:   agent
Source:  memory spec 11 and 12, pitfalls P-24 to P-26 and P-29; process spec P70
"""

import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

import trio

from spacebot.agent.render import neutral
from spacebot.base.clock import Clock, from_text, to_text
from spacebot.base.errors import StorageError
from spacebot.base.events import EventBus, EventKind, ProcessEvent, Subscription
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes
from spacebot.memory.curation_log import CurationLog, note
from spacebot.memory.store import COLUMNS, VISIBLE, load, scope, to_memory
from spacebot.memory.types import Memory, MemoryType, SortBy, Viewer
from spacebot.storage.database import Connection, Database

log = logging.getLogger(__name__)

ANYBODY = Viewer()  # sees no private memory
IDENTITIES, OTHERS = 40, 5  # memories of the block; memory spec 12
CANDIDATES = IDENTITIES + 20  # read for the block: of the most important ones the recently used are taken
BLOCK_LINE_BYTES = 240
SOURCE_LINE_BYTES = 300  # of one memory that the bulletin is made of
TOLERANCE = 1.2  # a bulletin may be this much longer than wanted before it is cut
CHARACTERS_PER_WORD = 10  # a ceiling for scripts that write without blanks
EVENT_TYPE = "bulletin_generated"
_TYPE_ORDER = (
    MemoryType.IDENTITY, MemoryType.GOAL, MemoryType.DECISION, MemoryType.TODO, MemoryType.PREFERENCE,
    MemoryType.FACT, MemoryType.EVENT, MemoryType.OBSERVATION,
)  # fmt: skip
_UPKEEP = frozenset({"scored", "pruned", "merged", "associated"})
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S.*$|^\s{0,3}\*\*[^*\n]{1,80}\*\*:?\s*$")
_SENTENCE_END = re.compile(r"[.!?…。！？]['\"”’)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One view of the store; the name is that of the template's heading, None stands for all types."""

    name: str
    memory_type: MemoryType | None
    sort_by: SortBy
    limit: int


DIMENSIONS = (  # memory spec 11.2
    Dimension("identity", MemoryType.IDENTITY, SortBy.IMPORTANCE, 15),
    Dimension("recent", None, SortBy.RECENT, 15),
    Dimension("decisions", MemoryType.DECISION, SortBy.RECENT, 10),
    Dimension("important", None, SortBy.IMPORTANCE, 10),
    Dimension("preferences", MemoryType.PREFERENCE, SortBy.IMPORTANCE, 10),
    Dimension("goals", MemoryType.GOAL, SortBy.RECENT, 10),
    Dimension("events", MemoryType.EVENT, SortBy.RECENT, 10),
    Dimension("observations", MemoryType.OBSERVATION, SortBy.RECENT, 5),
    Dimension("todos", MemoryType.TODO, SortBy.IMPORTANCE, 10),
)
_ORDER = {
    SortBy.RECENT: "m.created_at DESC, m.id",
    SortBy.IMPORTANCE: "m.importance DESC, m.created_at DESC, m.id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a bulletin would be made of now.

    `digest` covers ids, types and words, not scores, which drift by themselves.
    """

    sections: Mapping[str, tuple[Memory, ...]]
    digest: str
    at: datetime

    @property
    def memories(self) -> dict[str, Memory]:
        """All of them, once each, by id."""
        return {memory.id: memory for section in self.sections.values() for memory in section}

    def for_template(self, zone: tzinfo | None) -> list[dict[str, Any]]:
        """Sections that hold something, in the fixed order; a memory stands in the first that has it."""
        seen: set[str] = set()
        sections = []
        for name, memories in self.sections.items():
            fresh = [memory for memory in memories if memory.id not in seen]
            seen.update(memory.id for memory in fresh)
            if fresh:
                sections.append({"name": name, "memories": [_entry(m, zone, SOURCE_LINE_BYTES) for m in fresh]})
        return sections


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulletin:
    """One bulletin and what it was made of; the text is empty when it was removed from the log."""

    text: str
    digest: str
    memory_ids: frozenset[str]
    gathered_at: datetime

    @property
    def words(self) -> int:
        """Its length."""
        return len(self.text.split())


class Briefing:
    """The bulletin that conversations see; see `open_briefing`."""

    def __init__(self, database: Database, clock: Clock, changes: Subscription, agent_id: str) -> None:
        self._database = database
        self._clock = clock
        self._changes = changes
        self._agent_id = agent_id
        self._checking = trio.Lock()
        self._is_withdrawn = False
        self._is_loose = False
        self._last: Bulletin | None = None

    @property
    def last(self) -> Bulletin | None:
        """The newest bulletin that was made, also when it is withdrawn."""
        return self._last

    @property
    def is_shown(self) -> bool:
        """Whether there is a bulletin and nothing in it was forgotten."""
        return self._last is not None and bool(self._last.text) and not self._is_withdrawn

    async def text(self) -> str:
        """The bulletin, or nothing. A memory forgotten before this call is not in it."""
        async with self._checking:
            await self._look_for_the_forgotten()
            return self._last.text if self._last is not None and self.is_shown else ""

    async def load(self) -> None:
        """Take up the bulletin of the last life."""
        events, _ = await CurationLog(self._database, self._clock).page(limit=1, event_type=EVENT_TYPE)
        if events:
            self._last = _from_details(events[0].details, events[0].created_at)
            await self._check(self._last.memory_ids)

    async def gather(self) -> Gathered:
        """Look at the shared memories from all sides, without a model and in one snapshot. Errors: StorageError."""
        now = self._clock.now()
        sections = await self._database.read(
            lambda connection: {d.name: tuple(_look(connection, d)) for d in DIMENSIONS}
        )
        everything = {m.id: m for section in sections.values() for m in section}
        parts = [[m.id, str(m.memory_type), m.content] for m in sorted(everything.values(), key=lambda m: m.id)]
        digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode(errors="replace")).hexdigest()
        return Gathered(sections=sections, digest=digest, at=now)

    async def publish(self, bulletin: Bulletin, **details: Any) -> bool:
        """Keep a bulletin and show it from now on; False when something in it was forgotten while it was written.

        Then no trace of it is kept. Errors: StorageError; then the old one stays.
        """
        ids = sorted(bulletin.memory_ids)
        now = self._clock.text()

        def write(connection: Connection) -> bool:
            if len(load(connection, ids, ANYBODY)) < len(ids):
                return False
            note(
                connection,
                now,
                EVENT_TYPE,
                f"bulletin of {bulletin.words} words from {len(ids)} memories",
                bulletin_text=bulletin.text,
                word_count=bulletin.words,
                digest=bulletin.digest,
                gathered_at=to_text(bulletin.gathered_at),
                memory_ids=ids,
                **details,
            )
            return True

        if not await self._database.write(write):
            return False
        self._last, self._is_withdrawn, self._is_loose = bulletin, False, False
        return True

    def is_outdated_by(self, gathered: Gathered, *, is_touched: bool) -> bool:
        """Whether a new bulletin is worth a model call.

        That the views differ is not enough: importance drifts with time, and with it what stands in them. Something
        must have been said, changed or forgotten.

        Args:
            is_touched: something is known to have been saved or changed since the last one.
        """
        last = self._last
        if last is None or not self.is_shown:
            return bool(gathered.memories)
        if last.digest == gathered.digest:
            return False
        return is_touched or any(m.updated_at >= last.gathered_at for m in gathered.memories.values())

    def withdraw(self) -> None:
        """Show nothing until there is a new one."""
        if self.is_shown:
            self._is_withdrawn = True
            log.info("bulletin withdrawn, something in it was forgotten", extra=kv(agent=self._agent_id))

    async def _look_for_the_forgotten(self) -> None:
        """Withdraw the bulletin when something that it was made of is gone by somebody's wish.

        What upkeep merged lives on under another id, so the bulletin stays; but then it is no longer known whether a
        memory that is forgotten later stands in it, and any will do.
        """
        suspects: set[str] = set()
        is_unsure = False
        while (event := self._changes.receive_nowait()) is not None:
            if event.agent_id != self._agent_id:
                continue
            if is_upkeep(event):
                self._is_loose = self._is_loose or event.fields.get("what") == "merged"
            elif (memory_id := event.fields.get("memory_id")) is None:
                is_unsure = True
            else:
                suspects.add(str(memory_id))
        is_unsure = bool(self._changes.take_skipped()) or is_unsure
        if self._last is not None and self.is_shown and (suspects or is_unsure):
            known = self._last.memory_ids
            await self._check(known if is_unsure else suspects if self._is_loose else known & suspects)

    async def _check(self, memory_ids: Iterable[str]) -> None:
        """Withdraw the bulletin when one of these is no longer for anybody to know."""
        if not (ids := sorted(memory_ids)):
            return
        try:
            known = await self._database.read(lambda connection: load(connection, ids, ANYBODY))
        except StorageError as error:
            log.warning("bulletin not checked", extra=kv(agent=self._agent_id, error=str(error)))
            self.withdraw()  # in doubt it is not shown
        else:
            if len(known) < len(ids):
                self.withdraw()


def _look(connection: Connection, dimension: Dimension) -> list[Memory]:
    """What one view shows of what anybody may know; unlike a recall, nothing is counted."""
    is_type = "" if dimension.memory_type is None else "AND m.memory_type = :type"
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM memories m WHERE m.forgotten = 0 AND {VISIBLE} {is_type} "
        f"ORDER BY {_ORDER[dimension.sort_by]} LIMIT :limit",
        {**scope(ANYBODY), "type": dimension.memory_type, "limit": dimension.limit},
    )
    return [to_memory(row) for row in rows]


def is_upkeep(event: ProcessEvent) -> bool:
    """Whether memories changed by maintenance, not by anybody's wish."""
    return event.kind is EventKind.MEMORY_CHANGED and event.fields.get("what") in _UPKEEP


@asynccontextmanager
async def open_briefing(
    database: Database, *, events: EventBus, agent_id: str, clock: Clock
) -> AsyncIterator[Briefing]:
    """Open what conversations are told; the last bulletin is there from the first moment. Errors: StorageError."""
    with events.subscribe(frozenset({EventKind.MEMORY_CHANGED})) as changes:
        briefing = Briefing(database, clock, changes, agent_id)
        await briefing.load()
        yield briefing


def tidy(text: str, max_words: int) -> str:
    """A model's bulletin as it may stand in a prompt: plain sentences, no secret, no frame, not much too long."""
    lines = [line for line in text.strip().splitlines() if not line.lstrip().startswith("```")]
    lines = [line.rstrip() for line in lines if not _HEADING.match(line)]
    plain = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return _shortened(neutral(scrub(plain)), max_words)


def _shortened(text: str, max_words: int) -> str:
    """At most a fifth more than the words wanted, cut after a sentence."""
    most = int(max_words * TOLERANCE)
    end = len(text)
    if len(words := list(re.finditer(r"\S+", text))) > most:
        end = words[most - 1].end()
    end = min(end, most * CHARACTERS_PER_WORD)
    if end >= len(text):
        return text
    head = text[:end]
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    return head[: ends[-1]] if ends and ends[-1] > end // 2 else f"{head.rstrip()} …"


def known_groups(memories: Sequence[Memory], zone: tzinfo | None) -> list[dict[str, Any]]:
    """The block's memories by type, in an order that only a change of the store changes.

    Args:
        memories: identity first, then by importance, as `AgentMemory.context` gives them.
    """
    identities = [m for m in memories if m.memory_type is MemoryType.IDENTITY][:IDENTITIES]
    others = [m for m in memories if m.memory_type is not MemoryType.IDENTITY]
    others = sorted(others, key=lambda m: (-m.last_accessed_at.timestamp(), m.id))[:OTHERS]
    chosen = sorted((*identities, *others), key=lambda m: (m.created_at, m.id))
    groups = []
    for memory_type in _TYPE_ORDER:
        entries = [_entry(m, zone, BLOCK_LINE_BYTES) for m in chosen if m.memory_type is memory_type]
        if entries:
            groups.append({"type": str(memory_type), "memories": entries})
    return groups


def _entry(memory: Memory, zone: tzinfo | None, limit: int) -> dict[str, str]:
    """A memory as templates see it: one line and a day, which does not change as an age would."""
    text = " ".join(memory.content.split())
    short = cut_bytes(text, limit)
    return {
        "type": str(memory.memory_type),
        "text": neutral(short if short == text else f"{short.rstrip()}…"),
        "day": f"{memory.created_at.astimezone(zone):%Y-%m-%d}",
        "importance": f"{memory.importance:.1f}",
    }


def _from_details(details: Mapping[str, Any], created_at: str) -> Bulletin:
    """A bulletin as its row has it; one without text counts as withdrawn."""
    return Bulletin(
        text=str(details.get("bulletin_text") or ""),
        digest=str(details.get("digest") or ""),
        memory_ids=frozenset(map(str, details.get("memory_ids") or ())),
        gathered_at=from_text(str(details.get("gathered_at") or created_at)),
    )
