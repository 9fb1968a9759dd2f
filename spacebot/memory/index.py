"""Nearest memories by vector: exact in memory for small and middling stores, LanceDB for large ones.

SQLite holds every vector and an outbox of ids whose row in the LanceDB table is stale; both are written in
the transaction of the save. So the table is derived: one task brings it into step, in batches, and whatever
happens to the process or the folder, it can be rebuilt without embedding anything again.

Up to `IndexPolicy.exact_limit` memories an exact scan over a matrix in memory answers; above, LanceDB answers, and the
matrix holds only what the table has not seen yet. While the table is opened, vectors are scanned in SQLite, piece by
piece, and the answer says so; where the library does not run at all, the matrix answers for any size.

While the matrix answers, the table is kept in step by a short-lived child process: the library costs 150 MiB as soon
as it is loaded, and what it does to itself it does not do to the conversation.

Measured on two cores, 384 numbers a vector, 50 neighbours, one search at a time (ms; MiB on top of the program):

| memories | matrix, exact | LanceDB, HNSW, .99 of the true ones | LanceDB without index |
|--:|--:|--:|--:|
| 10,000 | 0.9, 9 MiB | 7.5 | 18 |
| 50,000 | 3.8, 42 MiB | | |
| 100,000 | 7.0, 98 MiB | 6.5, about 400 MiB | 225 |
| 200,000 | 13.6, 175 MiB | 7.5 (.97), about 450 MiB | |

Making the table of 100,000 anew takes 5 s of processor time for the rows and 20 to 24 s for the graph, on both cores.

Flow:    VectorIndex.nearest -> matrix, table or scan -> list[Neighbour]
         VectorIndex.run -> outbox -> table
Floor:   memory; may import base, storage
Source:  memory spec 3.3 and pitfalls P-04 to P-06
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId
from spacebot.base.paths import package_file
from spacebot.base.telemetry import kv
from spacebot.memory.keeper import Progress, TableError, TableKeeper, TablePolicy, TableState
from spacebot.memory.matrix import CHUNK, Matrix, Settled, StoredVectors, VectorRow, by_similarity
from spacebot.memory.types import EVERYTHING, MemoryType, Neighbour, Viewer
from spacebot.storage.database import Database, open_database

if TYPE_CHECKING:
    from spacebot.memory.embedding import Vectors

log = logging.getLogger(__name__)

QUESTIONS = 64  # searched for together: 26 MB of scores at 100,000 memories
CROWD = 1000  # changes that nobody took into the matrix yet; each holds a text and a vector
REPAIR_FIRST_S, REPAIR_MOST_S = 60.0, 3600.0  # pause after a failure of the table, doubled each time
DEGRADED = "vector search by slow scan: the vector table is not usable at the moment"


class Engine(StrEnum):
    """What answers."""

    EXACT = "exact"
    LANCEDB = "lancedb"
    SCAN = "scan"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPolicy:
    """When the table is written and when it answers."""

    exact_limit: int = 120_000  # memories; 8.4 ms a search, 118 MiB: up to here the table is no faster, and larger
    index_rows: int = 20_000  # from here on the table gets an HNSW index, one partition
    uses_child: bool = True  # keep the table in step from outside, as long as it does not answer
    flush_after_s: float = 1800.0  # nobody waits for the table of a small store, and a child costs 2 s of a core
    flush_after_large_s: float = 1.0  # once the table answers, what it lacks is scanned on top
    flush_rows: int = 1000  # once the table answers: so many changes do not wait
    optimize_changes: int = 300  # small fragments double the latency at 50
    optimize_after_s: float = 600.0
    outbox_limit: int = 20_000  # changes kept for a table that cannot be used; beyond, it is made anew instead


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """Neighbours by similarity, best first, and what served."""

    neighbours: tuple[Neighbour, ...]
    engine: Engine
    note: str | None = None


class VectorIndex:
    """Finds the nearest memories, and keeps the table in step while `run` is running.

    Everything that the event loop touches is small and without waiting; matrices and the table are worked on
    in threads only.

    Args:
        verdicts: file that says which native libraries run on this machine; None asks a child at each start.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        model: str,
        dimensions: int,
        policy: IndexPolicy,
        verdicts: Path | None = None,
    ) -> None:
        self.waiting = 0  # memories without a vector, as far as their owner knows
        self._database = database
        self._model = model
        self._folder = folder
        self._policy = policy
        self._dimensions = dimensions
        self._stored = StoredVectors(database, model, dimensions)
        self._matrix = Matrix(dimensions)
        tending = TablePolicy(
            index_rows=policy.index_rows,
            optimize_changes=policy.optimize_changes,
            optimize_after_s=policy.optimize_after_s,
            outbox_limit=policy.outbox_limit,
        )
        self._keeper = TableKeeper(self._stored, folder, dimensions, tending, verdicts)
        self._search_limit = trio.CapacityLimiter(2)
        self._load_lock = trio.Lock()
        self._engine: Engine | None = None  # None until the vectors are loaded
        self._is_opening = False  # the table is being brought into step, to take over from a scan
        self._is_wanted = False  # the table should answer, but its library does not run
        self._pending = 0  # changes that the table has not seen, as far as this process knows
        self._changed = trio.Event()
        self._many = trio.Event()
        self._crowded = trio.Event()

    @property
    def engine(self) -> Engine:
        """What answers now."""
        return self._engine or Engine.EXACT

    @property
    def problem(self) -> str | None:
        """Why the vector library cannot be used, once that is known."""
        return self._keeper.problem

    def note_saved(self, row: VectorRow) -> None:
        """Make a committed memory findable at once; never waits."""
        self._note_change(row)

    def note_removed(self, memory_id: MemoryId) -> None:
        """Make a forgotten memory unfindable at once; never waits."""
        self._note_change(memory_id)

    async def note_embedded(self, ids: Sequence[MemoryId]) -> None:
        """Make memories findable whose vectors were committed apart from `AgentMemory.save`; any number of them.

        Ids that are no longer live, or have no vector, are made unfindable.
        """
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            rows = await self._stored.rows(part)
            known = {row.id for row in rows}
            for row in rows:
                self._note_change(row)
            for key in part:
                if key not in known:
                    self._note_change(key)
            await self._take_in()

    async def vectors(self, ids: Sequence[str]) -> "dict[MemoryId, Vectors]":
        """The vectors of live memories, one row of unit length each; ids without one are left out."""
        found: dict[MemoryId, Vectors] = {}
        for start in range(0, len(ids), CHUNK):
            found |= await self._stored.vectors(ids[start : start + CHUNK])
        return found

    async def nearest(
        self, vector: "Vectors", viewer: Viewer, *, limit: int, memory_type: MemoryType | None = None
    ) -> Nearest:
        """The nearest visible memories.

        Shapes: `vector` is one row of unit length.
        Errors: StorageError when SQLite cannot be read, or the vector has another length than the stored ones.
        Cancel: threads are left to finish; their results are dropped.
        """
        (found,) = await self._search(vector[None], viewer, limit, memory_type)
        return found

    async def nearest_many(
        self,
        asked: "Sequence[MemoryId] | Vectors",
        viewer: Viewer = EVERYTHING,
        *,
        limit: int,
        memory_type: MemoryType | None = None,
    ) -> list[tuple[Neighbour, ...]]:
        """The nearest visible memories of each of many: 2,000 of 100,000 in about 3 s of one core.

        Args:
            asked: ids, each of which is left out of its own answer, and answered by nothing when it has no vector;
                or vectors, (n, dimensions), of unit length.

        Cancel: between groups of 64.
        """
        if not isinstance(asked, Sequence):
            return [row.neighbours for row in await self._in_groups(asked, viewer, limit, memory_type)]
        import numpy as np

        known = await self.vectors(asked)
        if not known:
            return [() for _ in asked]
        rows = await self._in_groups(np.stack(list(known.values())), viewer, limit + 1, memory_type)
        answers = {
            key: tuple(near for near in row.neighbours if near.id != key)[:limit]
            for key, row in zip(known, rows, strict=True)
        }
        return [answers.get(key, ()) for key in asked]

    async def load(self) -> None:
        """Read what the search needs, once; a large store is left to the table, which `run` opens.

        Errors: StorageError when SQLite cannot be read.
        """
        if self._engine is not None:
            return
        async with self._load_lock:
            if self._engine is not None:
                return
            total = await self._database.read(self._stored.count)
            if total <= self._policy.exact_limit or self.problem is not None:
                self._is_wanted = total > self._policy.exact_limit
                await self._database.read(self._stored.load_into(self._matrix))
                self._engine = Engine.EXACT
            elif self._keeper.is_ready:
                self._engine = Engine.LANCEDB
                await self._let_go()
            else:
                self._engine = Engine.SCAN
                self._forget_matrix()
                self._hurry()

    async def run(self) -> None:
        """Bring the table into step whenever something changed; failures are logged and tried again ever less often.

        Never returns unless cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._thin_out)
            nursery.start_soon(self._follow)

    async def flush(self) -> bool:
        """Write all pending changes to the table now; False when the table cannot be used.

        Errors: StorageError when SQLite cannot be read or written.
        """
        async with self._keeper.lock:
            return (await self._bring_into_step(must=False)).is_usable

    async def maintain(self) -> TableState:
        """Bring the table into step, compact it, and take into its indexes what they lack.

        Errors: StorageError when SQLite cannot be read or written.
        Cancel: what is being written is finished by its thread; a child is ended, and its work done again.
        """
        async with self._keeper.lock:
            return await self._bring_into_step(must=True)

    async def rebuild(self, on_progress: Progress | None = None) -> TableState:
        """Drop the table and make it anew from SQLite, its indexes included; see the figures at the top.

        Searches go on meanwhile. Nothing is left of rows that were in it before, nor of older versions.

        Errors: StorageError when SQLite cannot be read or written, or the table cannot be made.
        """
        tell = on_progress or (lambda stage, done, total: None)
        async with self._keeper.lock:
            if await self._is_for_child():
                state = await self._send_child("rebuild", tell)
            else:
                if self._engine is Engine.LANCEDB:
                    self._is_opening, self._engine = True, Engine.SCAN
                try:
                    state = await self._keeper.rebuild(tell)
                except TableError:
                    self._give_up_table()
                    raise
                if state.is_usable and (await self._bring_into_step(must=False)).is_usable:
                    await self._let_go()
        if not state.is_usable:
            raise StorageError(f"the vector table could not be made anew: {state.problem or 'the log says why'}")
        return state

    async def _bring_into_step(self, *, must: bool) -> TableState:
        """Write all pending changes, and compact and index what is due."""
        self._changed, self._many = trio.Event(), trio.Event()
        state = TableState(is_usable=False)
        try:
            if await self._is_for_child():
                state = await self._send_child("maintain" if must else "flush")
            elif await self._open_table():
                await self._keeper.empty_outbox(self._settle)
                await trio.to_thread.run_sync(self._matrix.take_in, limiter=self._search_limit)
                if self._keeper.is_ready:  # else a search found it damaged meanwhile
                    if self._engine is Engine.SCAN:  # from here on the table and the matrix hold everything
                        self._engine, self._is_opening = Engine.LANCEDB, False
                    state = await self._keeper.tend(must=must)
                    await self._hand_over(state.rows)
        except TableError as error:
            log.warning("vector table not written", exc_info=error)
            self._give_up_table()
        finally:
            if not state.is_usable:
                self._changed.set()
        return replace(state, problem=state.problem or self.problem)

    async def pending(self) -> int:
        """Number of changes that the table has not seen."""
        return await self._keeper.pending()

    async def discard_damaged(self) -> int:
        """Delete vectors that cannot be right, so that they are computed anew; returns how many.

        Errors: StorageError when SQLite cannot be read or written.
        """
        count, example = await self._stored.discard_damaged()
        if count:
            log.warning("damaged vectors are computed anew", extra=kv(count=count, example=example))
        return count

    async def _in_groups(
        self, vectors: "Vectors", viewer: Viewer, limit: int, memory_type: MemoryType | None
    ) -> list[Nearest]:
        answers: list[Nearest] = []
        for start in range(0, len(vectors), QUESTIONS):
            answers += await self._search(vectors[start : start + QUESTIONS], viewer, limit, memory_type)
        return answers

    async def _search(
        self, vectors: "Vectors", viewer: Viewer, limit: int, memory_type: MemoryType | None
    ) -> list[Nearest]:
        if vectors.shape[-1] != self._dimensions:
            raise StorageError(
                f"a vector of {vectors.shape[-1]} numbers was asked for, the stored ones have {self._dimensions}"
            )
        await self.load()
        kind = None if memory_type is None else str(memory_type)
        in_thread = partial(trio.to_thread.run_sync, limiter=self._search_limit, abandon_on_cancel=True)
        if self._engine is not Engine.SCAN:
            matrix = self._matrix  # another task may put a new one in its place meanwhile
            found = await in_thread(matrix.nearest_many, vectors, viewer, kind, limit)
            if self._engine is Engine.EXACT:
                return [Nearest(neighbours=tuple(row), engine=Engine.EXACT, note=self._note()) for row in found]
            try:
                table, wanted = self._keeper.table, limit + matrix.removed_count
                stored = await in_thread(lambda: [table.nearest(row, viewer, kind, wanted) for row in vectors])
                covered = await in_thread(matrix.covered)
                return [
                    Nearest(neighbours=_merge(fresh, old, covered, limit), engine=Engine.LANCEDB, note=self._note())
                    for fresh, old in zip(found, stored, strict=True)
                ]
            except StorageError as error:
                log.warning("vector table failed, scanning instead", exc_info=error)
                self._give_up_table()
        note = self._note(DEGRADED)
        scans = [await self._database.read(self._stored.scan(vector, viewer, kind, limit)) for vector in vectors]
        return [Nearest(neighbours=tuple(row), engine=Engine.SCAN, note=note) for row in scans]

    def _note(self, first: str | None = None) -> str | None:
        notes = [first] if first else []
        if self._is_wanted:
            notes.append(f"vector search in memory, without the vector table: {self.problem}")
        if self.waiting:
            notes.append(f"{self.waiting} memories have no vector yet and are found by their words only")
        return "; ".join(notes) or None

    async def _follow(self) -> None:
        pause = REPAIR_FIRST_S
        is_backlog_known = False
        while True:
            try:
                if not is_backlog_known:
                    await self._look_for_backlog()
                    is_backlog_known = True
                await self._changed.wait()
                is_large = self.engine is not Engine.EXACT
                with trio.move_on_after(self._policy.flush_after_large_s if is_large else self._policy.flush_after_s):
                    await self._many.wait()
                if await self.flush() or await self.flush():  # the second attempt makes a damaged table anew
                    pause = REPAIR_FIRST_S
                    continue
                async with self._keeper.lock:
                    if await self._keeper.shorten_outbox():
                        self._pending = 1
            except StorageError as error:  # of the database: nothing is wrong with the table
                log.warning("vector table not brought into step", exc_info=error)
            await trio.sleep(pause)
            pause = min(2 * pause, REPAIR_MOST_S)

    async def _thin_out(self) -> None:
        """Take changes into the matrix when no search does: they would pile up."""
        while True:
            await self._crowded.wait()
            self._crowded = trio.Event()
            await self._take_in()

    async def _take_in(self) -> None:
        await trio.to_thread.run_sync(self._matrix.take_in, limiter=self._search_limit)

    def _note_change(self, change: "VectorRow | MemoryId") -> None:
        if self._engine is not Engine.SCAN or self._is_opening:  # a scan reads SQLite anyway
            self._matrix.changes.append(change)
            if len(self._matrix.changes) > CROWD:
                self._crowded.set()
        self._pending += 1
        self._changed.set()
        if self._pending >= self._policy.flush_rows and self.engine is not Engine.EXACT:
            self._many.set()

    def _settle(self, gone: Sequence[str], rows: Sequence[VectorRow]) -> None:
        self._pending = max(0, self._pending - len(gone) - len(rows))
        seen = {} if self.engine is Engine.EXACT else {row.id: row.embedding for row in rows}
        self._matrix.changes.append(Settled(tuple(gone), seen))

    async def _look_for_backlog(self) -> None:
        """Find out without the library whether the table was left behind or its folder is gone."""
        backlog = await self.pending()
        total = await self._database.read(self._stored.count)
        has_folder = await trio.to_thread.run_sync(self._keeper.table.exists)
        self._pending += backlog
        if backlog or (total and not has_folder):
            self._changed.set()
        if total > self._policy.exact_limit:
            self._hurry()

    def _hurry(self) -> None:
        self._changed.set()
        self._many.set()

    async def _is_for_child(self) -> bool:
        """Whether the table is better looked after from outside: it does not answer, and is not open here."""
        if not self._policy.uses_child or self._keeper.is_ready or self.engine is not Engine.EXACT:
            return False
        return await self._database.read(self._stored.count) <= self._policy.exact_limit

    async def _send_child(self, task: str, tell: Progress | None = None) -> TableState:
        if not await self._keeper.probe():
            return TableState(is_usable=False, problem=self.problem)
        settings = {
            "database": str(self._database.path),
            "folder": str(self._folder),
            "model": self._model,
            "dimensions": self._dimensions,
            "index_rows": self._policy.index_rows,
        }
        state = await self._keeper.send_child(task, [json.dumps(settings)], tell)
        self._pending = await self.pending()
        return state

    async def _open_table(self) -> bool:
        """Open the table; where its library does not run, the matrix takes over for good."""
        if self._keeper.is_ready:
            return True
        self._is_opening = True  # what changes after the reads to come is kept in the matrix
        try:
            return await self._keeper.open()
        finally:
            if not self._keeper.is_ready:
                if self.problem is not None and self._engine is Engine.SCAN:
                    self._engine = None  # the next search loads everything
                    self._matrix = Matrix(self._dimensions)
                self._is_opening = False
                if self._engine is Engine.SCAN:
                    self._forget_matrix()

    async def _hand_over(self, total: int) -> None:
        """Let the table answer once the store has grown."""
        if self.engine is Engine.EXACT and total > self._policy.exact_limit:
            self._engine = Engine.LANCEDB
            await self._let_go()
            log.info("vector table took over the search", extra=kv(memories=total))

    async def _let_go(self) -> None:
        """Drop from memory what the table answers for."""
        if self._engine is Engine.LANCEDB:
            in_step = await self._database.read(self._stored.ids_in_step)
            await trio.to_thread.run_sync(self._matrix.let_go, in_step, limiter=self._search_limit)

    def _give_up_table(self) -> None:
        self._keeper.give_up()
        self._is_opening = False
        if self._engine in (Engine.LANCEDB, Engine.SCAN):
            self._engine = Engine.SCAN
            self._forget_matrix()
        self._hurry()

    def _forget_matrix(self) -> None:
        """Let go of what a scan does not need, unless the table is about to take over."""
        if not self._is_opening:
            self._matrix = Matrix(self._dimensions)


def _merge(
    fresh: Sequence[Neighbour], stored: Sequence[Neighbour], covered: set[str], limit: int
) -> tuple[Neighbour, ...]:
    """What the table found, corrected by what it has not seen yet."""
    covered = covered.union(near.id for near in fresh)  # the table may have taken them over in between
    both = [*fresh, *(near for near in stored if near.id not in covered)]
    return tuple(sorted(both, key=by_similarity)[:limit])


def child_main(words: Sequence[str]) -> int:
    """The helper process: brings the table into step and says so in lines of JSON; ends when its parent does."""
    task, settings = words[0], json.loads(words[1])
    if task != "rebuild" and hasattr(os, "nice"):
        os.nice(10)  # nobody waits for it

    def say(**fields: object) -> None:
        print(json.dumps(fields), flush=True)

    async def work() -> TableState:
        policy = IndexPolicy(uses_child=False, index_rows=settings["index_rows"], optimize_changes=10**9)
        model, dimensions = settings["model"], settings["dimensions"]
        async with open_database(Path(settings["database"]), package_file("storage", "sql")) as database:
            index = VectorIndex(database, Path(settings["folder"]), model=model, dimensions=dimensions, policy=policy)
            index._keeper.skip_probe()  # this is the process that may die of it
            if task == "rebuild":
                return await index.rebuild(lambda stage, done, total: say(stage=stage, done=done, total=total))
            if not await index.flush():  # the second attempt makes a damaged table anew
                await index.flush()
            return await index.maintain()

    async def watch_parent() -> None:
        stream = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        while await stream.receive_some(1024):
            pass
        os._exit(1)  # the table's commits are whole or nothing; what is missing stays in the outbox

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_parent)
            try:
                say(**asdict(await work()))
            except StorageError as error:
                say(**asdict(TableState(is_usable=False, problem=str(error))))
            nursery.cancel_scope.cancel()

    trio.run(main)
    return 0
