"""Upkeep of memory: importance renewed, the unimportant pruned, near-duplicates merged.

A pass consists of many short transactions, because the one writer also accepts messages. It can be cancelled
between any two of them, ends by itself at its time limit, and what is left is taken up by the next pass. A store
in which nothing changed is read and not written. A dry run is the same pass over shadow tables, so it shows
exactly what the real one would do.

Flow:    Maintenance.run -> score -> prune, score what was next to it -> merge, score -> vector table -> report
Floor:   memory; may import base, storage
Source:  memory spec 9, pitfalls P-01, P-12, P-37
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial

import trio

from spacebot.base.clock import Clock, from_text, monotonic_s, to_text
from spacebot.base.errors import RefusedError, StorageError
from spacebot.base.ids import MemoryId
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.memory.association import nearest_of
from spacebot.memory.curation_log import note
from spacebot.memory.importance import (
    NOTICEABLE,
    centrality_of,
    days_between,
    effective_importance,
)
from spacebot.memory.index import VectorIndex
from spacebot.memory.linking import DUPLICATE, Node, nodes
from spacebot.memory.merging import may_merge, merge, survivor_of
from spacebot.memory.rehearsal import Ground, rehearsal
from spacebot.memory.types import EVERYTHING, Neighbour
from spacebot.memory.upkeep import (
    SCORE_CHUNK,
    live_count,
    neighbours,
    prune_chunk,
    purge_chunk,
    rows_after,
    rows_of,
    shown,
    to_compare,
    to_prune,
    to_purge,
    write_scores,
)
from spacebot.storage.database import Connection, Database, Row
from spacebot.storage.settings import read_setting, write_settings

log = logging.getLogger(__name__)

SCORED = "maintenance_scored"  # seq up to which an unfinished pass has renewed importance; empty between passes
MERGE_CURSOR = "merge_cursor"  # seq up to which memories were compared with all others
MERGE_CHECKED = "merge_checked"  # when that began, and the threshold: rows changed since are compared again
AGE_LIMIT_DAYS = 36_500
SHOWN = 100  # pruned and merged memories that a report names


class Step(StrEnum):
    """Parts of a pass, in order."""

    SCORE = "score"
    PRUNE = "prune"
    MERGE = "merge"
    VECTORS = "vectors"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenancePolicy:
    """Numbers of a pass.

    Errors: RefusedError when one is not finite or out of range.
    """

    decay_rate: float = 0.05  # a day, of a type that decays fully
    prune_threshold: float = 0.1  # importance
    min_age_days: float = 30.0  # nothing younger is pruned; forgotten rows are kept as long
    merge_similarity: float = DUPLICATE  # cosine
    merge_sources: int = 2000  # memories compared in one pass
    max_merges: int = 500
    neighbours: int = 25
    time_limit_s: float = 3600.0

    def __post_init__(self) -> None:
        fractions = (self.decay_rate, self.prune_threshold, self.merge_similarity)
        if not all(0 <= value <= 1 for value in fractions):
            raise RefusedError("rates and thresholds of maintenance must lie between 0 and 1")
        if not 0 <= self.min_age_days <= AGE_LIMIT_DAYS or not 0 <= self.time_limit_s < math.inf:
            raise RefusedError(f"the minimum age must be 0 to {AGE_LIMIT_DAYS} days, the time limit finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A memory that was deleted; the text's first line, never of a private one."""

    id: MemoryId
    preview: str | None
    importance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A memory that was absorbed by another; the text's first line, never of a private one."""

    survivor_id: MemoryId
    absorbed_id: MemoryId
    preview: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a pass is; `total` is 0 where it is not known beforehand."""

    step: Step
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What a pass did, or would do in a dry run. Lists are cut to the first hundred, counts are not."""

    is_dry_run: bool
    is_complete: bool  # False: the time limit or the limit of compared memories ended it
    duration_s: float
    scored: int  # memories looked at
    decayed: int  # importance went down noticeably
    raised: int
    reindexed: int  # centrality changed
    pruned: int
    purged: int  # forgotten long ago, now deleted
    merged: int
    pruned_memories: tuple[Pruned, ...]
    merged_memories: tuple[Merged, ...]

    @property
    def has_changed(self) -> bool:
        """Whether anything was, or would be, written."""
        return any((self.decayed, self.raised, self.reindexed, self.pruned, self.purged, self.merged))


ProgressFn = Callable[[Progress], None]
ChangedFn = Callable[[str, int], None]  # what was done, to how many


class Maintenance:
    """Upkeep of one agent's memory.

    Args:
        changed: told after each transaction that changed what readers see; must not wait.
    """

    def __init__(self, database: Database, index: VectorIndex, model: str, clock: Clock, changed: ChangedFn) -> None:
        self._database = database
        self._index = index
        self._model = model
        self._clock = clock
        self._changed = changed
        self._lock = trio.Lock()

    async def run(
        self, policy: MaintenancePolicy, *, dry_run: bool = False, on_progress: ProgressFn | None = None
    ) -> MaintenanceReport:
        """Take a pass; a dry run changes nothing.

        Errors: RefusedError while another pass is running; StorageError.
        Cancel: between two transactions; the next pass goes on there.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise RefusedError("memory is being maintained already; wait until that has ended") from None
        try:
            if not dry_run:
                return await self._run(policy, self._database, on_progress, is_dry_run=False)
            async with rehearsal(self._database) as ground:
                return await self._run(policy, ground, on_progress, is_dry_run=True)
        finally:
            self._lock.release()

    async def _run(
        self, policy: MaintenancePolicy, ground: Ground, on_progress: ProgressFn | None, *, is_dry_run: bool
    ) -> MaintenanceReport:
        started = monotonic_s()
        one = _Pass(
            ground=ground,
            index=self._index,
            model=self._model,
            policy=policy,
            clock=self._clock,
            on_progress=on_progress or _ignore,
            changed=_ignore_change if is_dry_run else self._changed,
            is_dry_run=is_dry_run,
        )
        with trio.move_on_after(policy.time_limit_s) as limit:
            await one.run()
        report = one.report(duration_s=monotonic_s() - started, in_time=not limit.cancelled_caught)
        if report.has_changed and not is_dry_run:
            await self._database.write(lambda connection: _note_report(connection, self._clock.text(), report))
            log.info("memory maintained", extra=kv(**_figures(report)))
        return report


@dataclass(kw_only=True)
class _Pass:
    ground: Ground
    index: VectorIndex
    model: str
    policy: MaintenancePolicy
    clock: Clock
    on_progress: ProgressFn
    changed: ChangedFn
    is_dry_run: bool
    scored: int = 0
    decayed: int = 0
    raised: int = 0
    reindexed: int = 0
    purged: int = 0
    started_at: str = ""
    oldest: str = ""  # what is younger is neither pruned nor purged
    is_through: bool = False  # nothing was left for the next pass
    pruned: list[Pruned] = field(default_factory=list)
    merged: list[Merged] = field(default_factory=list)
    absorbed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)  # what the index of a dry run still finds

    async def run(self) -> None:
        """All steps; the order is that of memory spec 9.4."""
        self.started_at = self.clock.text()
        self.oldest = to_text(self.clock.now() - timedelta(days=self.policy.min_age_days))
        await self._score_all()
        while touched := await self._prune():
            await self._score(touched)
        await self._purge()
        is_all_compared = await self._merge()
        if not self.is_dry_run:
            await self._tend_vectors()
        self.is_through = is_all_compared

    def report(self, *, duration_s: float, in_time: bool) -> MaintenanceReport:
        return MaintenanceReport(
            is_dry_run=self.is_dry_run,
            is_complete=in_time and self.is_through,
            duration_s=duration_s,
            scored=self.scored,
            decayed=self.decayed,
            raised=self.raised,
            reindexed=self.reindexed,
            pruned=len(self.pruned),
            purged=self.purged,
            merged=len(self.merged),
            pruned_memories=tuple(self.pruned[:SHOWN]),
            merged_memories=tuple(self.merged[:SHOWN]),
        )

    async def _score_all(self) -> None:
        total = await self.ground.read(live_count)
        begun = await self.ground.read(partial(read_setting, key=SCORED))
        cursor = int(begun or 0)
        while rows := await self.ground.read(partial(rows_after, seq=cursor)):
            cursor = rows[-1]["seq"]
            await self._apply(rows, {SCORED: str(cursor)})
            self.on_progress(Progress(step=Step.SCORE, done=self.scored, total=total))
        await self._keep({SCORED: ""})

    async def _score(self, ids: Iterable[str]) -> None:
        """Renew memories whose neighbours are gone or changed, so that the next pass finds nothing to do."""
        wanted = list(ids)
        for start in range(0, len(wanted), SCORE_CHUNK):
            part = wanted[start : start + SCORE_CHUNK]
            rows = await self.ground.read(partial(rows_of, ids=part))
            await self._apply(rows, {})

    async def _apply(self, rows: Sequence[Row], settings: dict[str, str]) -> None:
        now = self.clock.now()
        changes = []
        for row in rows:
            centrality = centrality_of(row["strength"])
            idle = max(row["created_at"], row["updated_at"], row["last_accessed_at"])
            importance = effective_importance(
                row["base_importance"],
                row["memory_type"],
                permanent=bool(row["permanent"]),
                idle_days=days_between(from_text(idle), now),
                access_count=row["access_count"],
                centrality=centrality,
                decay_rate=self.policy.decay_rate,
            )
            is_moved = abs(importance - row["importance"]) > NOTICEABLE
            is_relinked = abs(centrality - row["centrality"]) > NOTICEABLE
            self.decayed += is_moved and importance < row["importance"]
            self.raised += is_moved and importance > row["importance"]
            self.reindexed += is_relinked
            if is_moved or is_relinked:
                kept = (row["seq"], row["base_importance"], row["access_count"], row["last_accessed_at"])
                changes.append((importance, centrality, *kept))
        self.scored += len(rows)
        if changes:
            await self.ground.write(partial(write_scores, changes=changes, settings=settings))
            self.changed("scored", len(changes))

    async def _prune(self) -> list[str]:
        """Delete what fell below the threshold; gives the ids of the memories that were linked with it."""
        wanted = {"threshold": self.policy.prune_threshold, "oldest": self.oldest, "started": self.started_at}
        touched: dict[str, None] = {}
        while await self.ground.read(partial(to_prune, wanted=wanted)):
            now = self.clock.text()
            rows, near = await self.ground.write(partial(prune_chunk, wanted=wanted, now=now))
            if not rows:  # what was found has been recalled since
                break
            self._forget_vectors([row["id"] for row in rows])
            self.pruned += [
                Pruned(id=MemoryId(row["id"]), preview=shown(row), importance=row["importance"]) for row in rows
            ]
            touched.update(dict.fromkeys(near))
            self.changed("pruned", len(rows))
            self.on_progress(Progress(step=Step.PRUNE, done=len(self.pruned), total=0))
        return list(touched)

    async def _purge(self) -> None:
        """Delete what has been forgotten for the minimum age: until then it tells what a merge absorbed."""
        while await self.ground.read(partial(to_purge, oldest=self.oldest)):
            ids = await self.ground.write(partial(purge_chunk, oldest=self.oldest))
            self.purged += len(ids)

    async def _merge(self) -> bool:
        """Compare what is new or changed with all others; True when nothing is left to compare."""
        mark = f"{self.started_at} {self.policy.merge_similarity}"
        since, _, threshold = (await self.ground.read(partial(read_setting, key=MERGE_CHECKED))).partition(" ")
        cursor = int(await self.ground.read(partial(read_setting, key=MERGE_CURSOR, default="0")))
        if threshold != str(self.policy.merge_similarity):
            since, cursor = self.started_at, 0
        place = 0
        compared = 0
        while True:
            part = await self.ground.read(
                partial(to_compare, model=self.model, place=place, cursor=cursor, since=since)
            )
            if not part:
                break
            if compared >= self.policy.merge_sources:
                return False
            known = await self.ground.read(partial(nodes, ids=[row[1] for row in part], viewer=EVERYTHING))
            asked = [(known[memory_id], vector) for _, memory_id, vector in part if memory_id in known]
            near = await nearest_of(self.index, asked, self.policy.neighbours + 1 + len(self.gone))
            for (node, _), found in zip(asked, near, strict=True):
                await self._merge_one(node.memory.id, found)
                if len(self.merged) >= self.policy.max_merges:
                    return False
            place, compared = part[-1][0], compared + len(part)
            begun = f"{since} {self.policy.merge_similarity}"
            await self._keep({MERGE_CURSOR: str(max(cursor, place)), MERGE_CHECKED: begun})
            self.on_progress(Progress(step=Step.MERGE, done=compared, total=0))
        if compared:
            await self._keep({MERGE_CHECKED: mark})
        return True

    async def _keep(self, settings: dict[str, str]) -> None:
        """Write settings unless they stand there already."""
        known = await self.ground.read(lambda c: {key: read_setting(c, key) for key in settings})
        if known != settings:
            await self.ground.write(lambda connection: write_settings(connection, **settings))

    async def _merge_one(self, memory_id: MemoryId, near: Sequence[Neighbour]) -> None:
        for neighbour in near:
            if neighbour.similarity <= self.policy.merge_similarity or memory_id in self.absorbed:
                return
            if neighbour.id == memory_id or neighbour.id in self.gone or neighbour.id in self.absorbed:
                continue
            now = self.clock.text()
            done = await self.ground.write(partial(_merge_pair, one=memory_id, other=neighbour.id, now=now))
            if done is None:
                continue
            merged, touched = done
            self._forget_vectors([merged.absorbed_id])
            self.merged.append(merged)
            self.absorbed.add(merged.absorbed_id)
            self.changed("merged", 1)
            await self._score(touched)
            if len(self.merged) >= self.policy.max_merges:
                return

    async def _tend_vectors(self) -> None:
        """Bring the vector table into step; an idle store's is not even opened."""
        self.on_progress(Progress(step=Step.VECTORS, done=0, total=1))
        if not (self.pruned or self.merged or await self.index.pending()):
            return
        try:
            state = await self.index.maintain()
        except StorageError as error:  # what was done is done; recall goes on without the table
            log.warning("vector table not tended", exc_info=error)
            return
        if not state.is_usable:
            log.warning("vector table not tended", extra=kv(problem=state.problem))

    def _forget_vectors(self, ids: Iterable[MemoryId]) -> None:
        for memory_id in ids:
            if self.is_dry_run:
                self.gone.add(memory_id)
            else:
                self.index.note_removed(memory_id)


def _merge_pair(connection: Connection, one: MemoryId, other: MemoryId, now: str) -> tuple[Merged, list[str]] | None:
    """Merge two memories if both still live and nothing speaks against it; names all whose links changed."""
    known: dict[MemoryId, Node] = nodes(connection, [one, other], EVERYTHING)
    if len(known) < 2 or (pair := survivor_of(known[one], known[other])) is None:
        return None
    survivor, absorbed = pair
    if not may_merge(connection, survivor, absorbed):
        return None
    touched = [survivor.id, *neighbours(connection, [survivor.id, absorbed.id])]
    merge(connection, survivor, absorbed, now)
    shown = None if absorbed.is_private else preview(absorbed.content)
    return Merged(survivor_id=survivor.id, absorbed_id=absorbed.id, preview=shown), touched


def _figures(report: MaintenanceReport) -> dict[str, int | float | bool]:
    names = ("scored", "decayed", "raised", "reindexed", "pruned", "purged", "merged", "is_complete")
    return {**{name: getattr(report, name) for name in names}, "duration_s": round(report.duration_s, 2)}


def _note_report(connection: Connection, now: str, report: MaintenanceReport) -> None:
    kind = "maintenance_completed" if report.is_complete else "maintenance_interrupted"
    summary = f"{report.pruned} pruned, {report.merged} merged, {report.decayed} decayed"
    note(connection, now, kind, summary, **_figures(report))


def _ignore(_: Progress) -> None:
    pass


def _ignore_change(_: str, __: int) -> None:
    pass
