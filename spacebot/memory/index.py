"""Nearest memories by vector: exact in memory for small stores, LanceDB for large ones.

SQLite holds every vector and an outbox of ids whose row in the LanceDB table is stale; both are written in
the transaction of the save. So the table is derived: one task brings it into step, in batches, and whatever
happens to the process or the folder, it can be rebuilt without embedding anything again.

Up to `IndexPolicy.exact_limit` memories an exact scan over a matrix in memory answers (1 ms at 10,000, where
LanceDB takes 15); above, LanceDB answers, and the matrix holds only what the table has not seen yet. When
LanceDB cannot be used, vectors are scanned in SQLite, piece by piece, and the answer says so.

Flow:    VectorIndex.nearest -> matrix, table or scan -> list[Neighbour]
         VectorIndex.run -> outbox -> table
Floor:   memory; may import base, storage
Source:  memory spec 3.3 and pitfalls P-04 to P-06
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId
from spacebot.base.telemetry import kv
from spacebot.memory.matrix import Matrix, Settled, VectorRow, by_similarity, top
from spacebot.memory.store import LIVE, VISIBLE, scope
from spacebot.memory.types import MemoryType, Neighbour, Viewer
from spacebot.memory.vectors import LanceTable
from spacebot.storage.database import Connection, Database, Row

if TYPE_CHECKING:
    from spacebot.memory.embedding import Vectors

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 2000  # rows read, scanned or written at once
REPAIR_FIRST_S, REPAIR_MOST_S = 60.0, 3600.0  # pause after a failure of the table, doubled each time
ALL_STALE = ""  # in the outbox, in place of an id: the table missed too much and is made anew
DEGRADED = "vector search by slow scan: the vector table is not usable at the moment"

_ROWS = (
    "SELECT m.id, m.content, m.memory_type, m.is_private, m.channel_id, m.owner, e.embedding "
    f"FROM embeddings e JOIN memories m ON m.seq = e.seq WHERE e.model = :model AND {LIVE}"
)


class Engine(StrEnum):
    """What answers."""

    EXACT = "exact"
    LANCEDB = "lancedb"
    SCAN = "scan"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPolicy:
    """When the table is written and when it answers."""

    exact_limit: int = 20_000  # memories; 30 MB of matrix, 2 ms a search
    index_rows: int = 20_000  # from here on the table gets an HNSW index, one partition
    flush_after_s: float = 120.0  # nobody waits for the table of a small store; opening it costs 150 MiB
    flush_after_large_s: float = 1.0  # once the table answers, what it lacks is scanned on top
    flush_rows: int = 1000  # once the table answers: so many changes do not wait
    optimize_changes: int = 300  # small fragments double the latency at 50
    optimize_after_s: float = 600.0
    outbox_limit: int = 20_000  # changes kept for a table that cannot be used; beyond, it is made anew instead


class _TableError(StorageError):
    """The vector table failed, not the database."""


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
    """

    def __init__(self, database: Database, folder: Path, *, model: str, dimensions: int, policy: IndexPolicy) -> None:
        self._database = database
        self._model = model
        self._policy = policy
        self._dimensions = dimensions
        self._matrix = Matrix(dimensions)
        self._table = LanceTable(folder, dimensions)
        self._search_limit = trio.CapacityLimiter(2)
        self._table_limit = trio.CapacityLimiter(1)  # one writer
        self._load_lock = trio.Lock()
        self._open_lock = trio.Lock()
        self._engine: Engine | None = None  # None until the vectors are loaded
        self._is_table_ready = False
        self._is_table_suspect = False
        self._is_opening = False  # the table is being brought into step, to take over from a scan
        self._pending = 0  # changes that the table has not seen, as far as this process knows
        self._changed = trio.Event()
        self._many = trio.Event()
        self._unoptimized = 0
        self._optimized_at = monotonic_s()

    @property
    def engine(self) -> Engine:
        """What answers now."""
        return self._engine or Engine.EXACT

    def note_saved(self, row: VectorRow) -> None:
        """Make a committed memory findable at once; never waits."""
        self._note_change(row)

    def note_removed(self, memory_id: MemoryId) -> None:
        """Make a forgotten memory unfindable at once; never waits."""
        self._note_change(memory_id)

    async def note_embedded(self, ids: Sequence[MemoryId]) -> None:
        """Make memories findable whose vectors were committed later than their rows."""
        for row in await self._read_rows(ids):
            self._note_change(row)

    async def nearest(
        self, vector: "Vectors", viewer: Viewer, *, limit: int, memory_type: MemoryType | None = None
    ) -> Nearest:
        """The nearest visible memories.

        Shapes: `vector` is one row of unit length.
        Errors: StorageError when SQLite cannot be read.
        Cancel: threads are left to finish; their results are dropped.
        """
        await self.load()
        kind = None if memory_type is None else str(memory_type)
        if self._engine is not Engine.SCAN:
            matrix = self._matrix  # another task may put a new one in its place meanwhile
            found = await trio.to_thread.run_sync(
                matrix.nearest, vector, viewer, kind, limit, limiter=self._search_limit, abandon_on_cancel=True
            )
            if self._engine is Engine.EXACT:
                return Nearest(neighbours=tuple(found), engine=Engine.EXACT)
            try:
                search = partial(self._table.nearest, vector, viewer, kind, limit + matrix.removed_count)
                stored = await trio.to_thread.run_sync(search, limiter=self._search_limit, abandon_on_cancel=True)
                neighbours = _merge(found, stored, matrix.covered(), limit)
                return Nearest(neighbours=neighbours, engine=Engine.LANCEDB)
            except StorageError as error:
                log.warning("vector table failed, scanning instead", exc_info=error)
                self._give_up_table()
        neighbours = await self._scan(vector, viewer, kind, limit)
        return Nearest(neighbours=neighbours, engine=Engine.SCAN, note=DEGRADED)

    async def load(self) -> None:
        """Read what the search needs, once; a large store is left to the table, which `run` opens.

        Errors: StorageError when SQLite cannot be read.
        """
        if self._engine is not None:
            return
        async with self._load_lock:
            if self._engine is not None:
                return
            total = await self._database.read(self._count)
            if total <= self._policy.exact_limit:
                await self._database.read(self._load_all)
                self._engine = Engine.EXACT
            elif self._is_table_ready:
                self._engine = Engine.LANCEDB
            else:
                self._engine = Engine.SCAN
                self._forget_matrix()
                self._hurry()

    async def run(self) -> None:
        """Bring the table into step whenever something changed; failures are logged and tried again ever less often.

        Never returns unless cancelled.
        """
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
                await self._shorten_outbox()
            except StorageError as error:  # of the database: nothing is wrong with the table
                log.warning("vector table not brought into step", exc_info=error)
            await trio.sleep(pause)
            pause = min(2 * pause, REPAIR_MOST_S)

    async def flush(self) -> bool:
        """Write all pending changes to the table now; False when the table cannot be used.

        Errors: StorageError when SQLite cannot be read or written.
        """
        self._changed, self._many = trio.Event(), trio.Event()
        is_done = False
        try:
            if await self._open_table():
                await self._empty_outbox()
                if not self._is_table_ready:  # a search found it damaged meanwhile
                    return False
                if self._engine is Engine.SCAN:  # from here on the table and the matrix hold everything
                    self._engine = Engine.LANCEDB
                    self._is_opening = False
                await self._tend()
                is_done = True
        except _TableError as error:
            log.warning("vector table not written", exc_info=error)
            self._give_up_table()
        finally:
            if not is_done:
                self._changed.set()
        return is_done

    async def _empty_outbox(self) -> None:
        while stale := await self._database.read(_read_outbox):
            ids = list(dict.fromkeys(memory_id for _, memory_id in stale if memory_id != ALL_STALE))
            rows = await self._read_rows(ids)
            live = {row.id for row in rows}
            gone = tuple(key for key in ids if key not in live)
            await self._in_table(self._table.replace, rows, gone)
            await self._database.write(partial(_clear_outbox, last=stale[-1][0]))
            self._pending = max(0, self._pending - len(stale))
            self._unoptimized += len(stale)
            seen = {} if self.engine is Engine.EXACT else {row.id: row.embedding for row in rows}
            self._matrix.changes.append(Settled(gone, seen))
            # Without searches nobody else would take them in, and they hold vectors.
            await trio.to_thread.run_sync(self._matrix.take_in, limiter=self._search_limit)

    async def pending(self) -> int:
        """Number of changes that the table has not seen."""
        return await self._database.read(
            lambda connection: int(connection.execute("SELECT count(*) FROM vector_outbox").fetchone()[0])
        )

    def _note_change(self, change: "VectorRow | MemoryId") -> None:
        if self._engine is not Engine.SCAN or self._is_opening:  # a scan reads SQLite anyway
            self._matrix.changes.append(change)
        self._pending += 1
        self._changed.set()
        if self._pending >= self._policy.flush_rows and self.engine is not Engine.EXACT:
            self._many.set()

    async def _look_for_backlog(self) -> None:
        """Find out without the library whether the table was left behind or its folder is gone."""
        backlog = await self.pending()
        total = await self._database.read(self._count)
        has_folder = await trio.to_thread.run_sync(self._table.exists)
        self._pending += backlog
        if backlog or (total and not has_folder):
            self._changed.set()
        if total > self._policy.exact_limit:
            self._hurry()

    def _hurry(self) -> None:
        self._changed.set()
        self._many.set()

    async def _open_table(self) -> bool:
        """Open the table once and bring it into step with SQLite; a damaged one is dropped and made anew."""
        async with self._open_lock:
            if self._is_table_ready:
                return True
            if self._table.is_missing:
                return False
            try:
                self._is_opening = True  # what changes after the reads below is kept in the matrix
                if self._is_table_suspect or await self._database.read(_is_all_stale):
                    await self._in_table(self._table.drop)
                await self._reconcile(await self._open_or_renew())
                self._is_table_ready, self._is_table_suspect = True, False
            except _TableError as error:
                log.warning("vector table is not usable", exc_info=error)
                self._is_table_suspect = not self._table.is_missing
            finally:
                if not self._is_table_ready:
                    self._is_opening = False
                    if self._engine is Engine.SCAN:
                        self._forget_matrix()
            return self._is_table_ready

    async def _open_or_renew(self) -> set[str]:
        try:
            return await self._in_table(self._table.open)
        except _TableError as error:
            if self._table.is_missing:
                raise
            log.warning("vector table is damaged, making it anew", exc_info=error)
            await self._in_table(self._table.drop)
            return await self._in_table(self._table.open)

    async def _reconcile(self, known: set[str]) -> None:
        """Add what the table lacks, delete what it has too much; changed rows are in the outbox anyway."""
        ids = await self._database.read(self._all_ids)
        missing, orphans = [key for key in ids if key not in known], known.difference(ids)
        for start in range(0, len(missing), CHUNK):
            await self._in_table(self._table.replace, await self._read_rows(missing[start : start + CHUNK]), [])
        if orphans:
            await self._in_table(self._table.replace, [], sorted(orphans))
        if missing or orphans:
            self._unoptimized += len(missing) + len(orphans)
            log.info("vector table brought into step", extra=kv(added=len(missing), deleted=len(orphans)))

    async def _tend(self) -> None:
        """Compact and index the table when due, and hand the search over to it when the store has grown."""
        total = await self._database.read(self._count)
        is_due = self._unoptimized and monotonic_s() - self._optimized_at >= self._policy.optimize_after_s
        if self._unoptimized >= self._policy.optimize_changes or is_due:
            await self._in_table(self._table.optimize, abandon=True)
            self._unoptimized, self._optimized_at = 0, monotonic_s()
        if total >= self._policy.index_rows:
            await self._in_table(self._table.build_vector_index, abandon=True)
        if self._engine is Engine.EXACT and total > self._policy.exact_limit:
            in_step = await self._database.read(self._ids_in_step)
            await trio.to_thread.run_sync(self._matrix.let_go, in_step, limiter=self._search_limit)
            self._engine = Engine.LANCEDB
            log.info("vector table took over the search", extra=kv(memories=total))

    def _give_up_table(self) -> None:
        self._is_table_ready, self._is_table_suspect, self._is_opening = False, True, False
        if self._engine in (Engine.LANCEDB, Engine.SCAN):
            self._engine = Engine.SCAN
            self._forget_matrix()
        self._hurry()

    def _forget_matrix(self) -> None:
        """Let go of what a scan does not need, unless the table is about to take over."""
        if not self._is_opening:
            self._matrix = Matrix(self._dimensions)

    async def _shorten_outbox(self) -> None:
        """Forget which memories the table has missed, once they are too many: it will be made anew."""
        async with self._open_lock:
            if not self._is_table_ready and await self.pending() > self._policy.outbox_limit:
                await self._database.write(_mark_all_stale)
                self._pending = 1
                log.info("vector table will be made anew once it is usable")

    async def _in_table(self, fn: Callable[..., T], *arguments: Any, abandon: bool = False) -> T:
        """Run in the table's one thread at a time; rows are never abandoned half written.

        Errors: _TableError.
        """
        try:
            return await trio.to_thread.run_sync(fn, *arguments, limiter=self._table_limit, abandon_on_cancel=abandon)
        except StorageError as error:
            raise _TableError(str(error)) from error

    async def _scan(self, vector: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> tuple[Neighbour, ...]:
        """Compare with every vector in SQLite, in pieces, so that memory stays small."""

        def scan(connection: Connection) -> tuple[Neighbour, ...]:
            import numpy as np  # a start without embedding must not pay for it

            rows = connection.execute(
                f"{_ROWS} AND {VISIBLE} AND (:type IS NULL OR m.memory_type = :type)",
                {**scope(viewer), "model": self._model, "type": kind},
            )
            best: list[Neighbour] = []
            while part := rows.fetchmany(CHUNK):
                matrix = np.frombuffer(b"".join(row["embedding"] for row in part), np.float32).reshape(len(part), -1)
                scores = matrix @ vector
                best += [
                    Neighbour(id=MemoryId(part[index]["id"]), similarity=float(scores[index]))
                    for index in top(scores, limit)
                ]
                best = sorted(best, key=by_similarity)[:limit]
            return tuple(best)

        return await self._database.read(scan)

    def _count(self, connection: Connection) -> int:
        row = connection.execute("SELECT count(*) FROM embeddings WHERE model = ?", (self._model,)).fetchone()
        return int(row[0])

    def _all_ids(self, connection: Connection) -> list[str]:
        rows = connection.execute("SELECT memory_id FROM embeddings WHERE model = ? ORDER BY seq", (self._model,))
        return [row["memory_id"] for row in rows]

    def _ids_in_step(self, connection: Connection) -> list[str]:
        rows = connection.execute(
            "SELECT memory_id FROM embeddings WHERE model = ? "
            "AND memory_id NOT IN (SELECT memory_id FROM vector_outbox)",
            (self._model,),
        )
        return [row["memory_id"] for row in rows]

    async def _read_rows(self, ids: Sequence[str]) -> list[VectorRow]:
        parameters = {"model": self._model, "ids": json.dumps(list(ids))}
        statement = f"{_ROWS} AND m.id IN (SELECT value FROM json_each(:ids))"
        return await self._database.read(
            lambda connection: [_to_row(row) for row in connection.execute(statement, parameters)]
        )

    def _load_all(self, connection: Connection) -> None:
        rows = connection.execute(f"{_ROWS} ORDER BY e.seq", {"model": self._model})
        while part := rows.fetchmany(CHUNK):
            self._matrix.add_older([_to_row(row) for row in part])


def _merge(
    fresh: Sequence[Neighbour], stored: Sequence[Neighbour], covered: set[str], limit: int
) -> tuple[Neighbour, ...]:
    """What the table found, corrected by what it has not seen yet."""
    both = [*fresh, *(neighbour for neighbour in stored if neighbour.id not in covered)]
    return tuple(sorted(both, key=by_similarity)[:limit])


def _to_row(row: Row) -> VectorRow:
    return VectorRow(
        id=MemoryId(row["id"]),
        content=row["content"],
        memory_type=row["memory_type"],
        is_private=bool(row["is_private"]),
        channel_id=row["channel_id"],
        owner=row["owner"],
        embedding=row["embedding"],
    )


def _read_outbox(connection: Connection) -> list[tuple[int, str]]:
    rows = connection.execute("SELECT seq, memory_id FROM vector_outbox ORDER BY seq LIMIT ?", (CHUNK,))
    return [(row["seq"], row["memory_id"]) for row in rows]


def _clear_outbox(connection: Connection, last: int) -> None:
    connection.execute("DELETE FROM vector_outbox WHERE seq <= ?", (last,))


def _is_all_stale(connection: Connection) -> bool:
    return connection.execute("SELECT 1 FROM vector_outbox WHERE memory_id = ?", (ALL_STALE,)).fetchone() is not None


def _mark_all_stale(connection: Connection) -> None:
    connection.execute("DELETE FROM vector_outbox")
    connection.execute("INSERT INTO vector_outbox (memory_id) VALUES (?)", (ALL_STALE,))
