"""The vector table kept in step with SQLite: opened, reconciled, written, compacted, made anew.

While the matrix answers all searches, a short-lived child process does this work, because the library costs 150 MiB
as soon as it is loaded; once the table answers, the program does it itself. One task at a time holds `lock`.

Flow:    VectorIndex.flush -> TableKeeper.open -> empty_outbox -> tend
         VectorIndex.flush -> TableKeeper.send_child -> child_main -> VectorIndex.flush in a process of its own
Floor:   memory; may import base, storage
Source:  memory spec 3.3, 3.4 and pitfalls P-03 to P-06
"""

import json
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import StorageError
from spacebot.base.telemetry import kv
from spacebot.memory.matrix import (
    ALL_STALE,
    CHUNK,
    StoredVectors,
    VectorRow,
    clear_outbox,
    count_outbox,
    is_all_stale,
    last_in_outbox,
    mark_all_stale,
    read_outbox,
)
from spacebot.memory.probe import run_child, why_not
from spacebot.memory.vectors import LanceTable

log = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, how many rows of it are done, of how many
Settle = Callable[[Sequence[str], Sequence[VectorRow]], None]  # what the table has seen: ids that are gone, rows

POLL_S = 0.2  # between two looks at how far a thread came
CLOSE_TRIES, CLOSE_PAUSE_S = 200, 0.02  # for a thread of the library's that is still taking rows when it has failed
LINE_LIMIT = 100_000  # bytes that a child may say without ending a line


class TableError(StorageError):
    """The vector table failed, not the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePolicy:
    """When the table is compacted and indexed."""

    index_rows: int
    optimize_changes: int
    optimize_after_s: float
    outbox_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What a look after the table came to."""

    is_usable: bool
    rows: int = 0
    unindexed: int = 0  # rows outside of the indexes, before the look
    is_optimized: bool = False
    problem: str | None = None


class TableKeeper:
    """Keeps one table; whoever calls anything but `pending` holds `lock`.

    Args:
        verdicts: file that says which native libraries run on this machine; None asks a child at each start.
    """

    def __init__(
        self, stored: StoredVectors, folder: Path, dimensions: int, policy: TablePolicy, verdicts: Path | None
    ) -> None:
        self.table = LanceTable(folder, dimensions)
        self.lock = trio.Lock()
        self.is_ready = False
        self.problem: str | None = None  # why the library cannot be used at all
        self._stored = stored
        self._database = stored.database
        self._policy = policy
        self._verdicts = verdicts
        self._was_probed = False
        self._is_suspect = False
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._unoptimized = 0
        self._optimized_at = monotonic_s()

    async def pending(self) -> int:
        """Number of changes that the table has not seen."""
        return await self._database.read(count_outbox)

    def skip_probe(self) -> None:
        """Load the library without asking: this process may die of it."""
        self._was_probed = True

    async def probe(self) -> bool:
        """Whether the library runs on this machine; must be asked before it is loaded."""
        if not self._was_probed:
            self.problem = await why_not("lancedb", self._verdicts)
            self._was_probed = True
        return self.problem is None

    async def open(self) -> bool:
        """Open the table once and bring it into step with SQLite; a damaged one is dropped and made anew.

        Errors: StorageError of the database.
        """
        if self.is_ready:
            return True
        if not await self.probe():
            return False
        try:
            if self._is_suspect or await self._database.read(is_all_stale):
                await self.in_table(self.table.drop)
            known = await self._open_or_drop()
            if known is None:
                await self.make_anew()
            else:
                await self._reconcile(known)
            self.is_ready, self._is_suspect = True, False
        except TableError as error:
            log.warning("vector table is not usable", exc_info=error)
            self._is_suspect = True
            if self.table.is_missing:
                self.problem, self._is_suspect = str(error), False
        return self.is_ready

    def give_up(self) -> None:
        """The table failed: the next attempt makes it anew."""
        self.is_ready, self._is_suspect = False, True

    async def empty_outbox(self, settle: Settle) -> None:
        """Write what changed; `settle` is told of each part that is on disk.

        Errors: TableError; StorageError of the database.
        """
        while stale := await self._database.read(read_outbox):
            ids = list(dict.fromkeys(memory_id for _, memory_id in stale if memory_id != ALL_STALE))
            rows = await self._stored.rows(ids)
            live = {row.id for row in rows}
            gone = [key for key in ids if key not in live]
            await self.in_table(self.table.replace, rows, gone)
            await self._database.write(partial(clear_outbox, last=stale[-1][0]))
            self._unoptimized += len(stale)
            settle(gone, rows)

    async def tend(self, *, must: bool = False) -> TableState:
        """Compact and index the table when due; with `must`, look at its state instead of counting changes.

        Errors: TableError; StorageError of the database.
        """
        total = await self._database.read(self._stored.count)
        is_due = self._unoptimized and monotonic_s() - self._optimized_at >= self._policy.optimize_after_s
        unindexed, needs_it = 0, bool(is_due or self._unoptimized >= self._policy.optimize_changes)
        if must:
            unindexed = await self.in_table(self.table.unindexed)
            needs_it = await self.in_table(self.table.needs_optimizing)
        if needs_it:
            await self.in_table(self.table.optimize, abandon=True)
            self._unoptimized, self._optimized_at = 0, monotonic_s()
        if total >= self._policy.index_rows:
            await self.in_table(self.table.build_vector_index, abandon=True)
        return TableState(is_usable=True, rows=total, unindexed=unindexed, is_optimized=needs_it)

    async def make_anew(self, tell: Progress | None = None) -> int:
        """Write all rows in one go and build the indexes; returns how many rows there were.

        Errors: TableError; StorageError of the database.
        """
        last = await self._database.read(last_in_outbox)  # what comes later stays in the outbox, at worst written twice
        total = await self._database.read(self._stored.count)
        done = 0

        def write() -> None:
            nonlocal done

            def note(rows: int) -> None:
                nonlocal done
                done = rows

            pieces = self._stored.stream()
            try:
                self.table.create(pieces, note)
            finally:
                _close(pieces)

        async def report() -> None:
            while True:
                await trio.sleep(POLL_S)
                if tell is not None:
                    tell("rows", done, total)

        failure: TableError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            try:
                await self.in_table(write)
            except TableError as error:  # raised below, where nothing wraps it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        await self._database.write(partial(clear_outbox, last=last))
        if tell is not None:
            tell("rows", done, done)
        if done >= self._policy.index_rows:
            if tell is not None:
                tell("index", 0, done)
            await self.in_table(self.table.build_vector_index, abandon=True)
            if tell is not None:
                tell("index", done, done)
        self._unoptimized, self._optimized_at = 0, monotonic_s()
        log.info("vector table made from the database", extra=kv(rows=done))
        return done

    async def rebuild(self, tell: Progress) -> TableState:
        """Drop the table and make it anew, indexes included.

        Errors: StorageError when it cannot be made.
        """
        if not await self.probe():
            return TableState(is_usable=False, problem=self.problem)
        self.is_ready = False
        try:
            rows = await self.make_anew(tell)
        except TableError:
            self._is_suspect = True
            raise
        self.is_ready, self._is_suspect = True, False
        return TableState(is_usable=True, rows=rows, is_optimized=True)

    async def shorten_outbox(self) -> bool:
        """Forget which memories the table has missed, once they are too many: it will be made anew."""
        if self.is_ready or await self.pending() <= self._policy.outbox_limit:
            return False
        await self._database.write(mark_all_stale)
        log.info("vector table will be made anew once it is usable")
        return True

    async def send_child(self, task: str, words: Sequence[str], tell: Progress | None = None) -> TableState:
        """Let a child do a task and wait for it; `child_main` of the index is its other end.

        Cancel: the child is ended; what it had not finished is done again next time.
        """
        state = TableState(is_usable=False, problem="the helper process for the vector table died; the log says more")
        buffer = b""
        try:
            async with run_child("table", [task, *words]) as child:
                assert child.stdout is not None
                while data := await child.stdout.receive_some(LINE_LIMIT):
                    *lines, buffer = (buffer + data).split(b"\n")
                    buffer = buffer[-LINE_LIMIT:]
                    for line in lines:
                        said: dict[str, Any] = json.loads(line)
                        if "stage" not in said:
                            state = TableState(**said)
                        elif tell is not None:
                            tell(said["stage"], said["done"], said["total"])
        except (OSError, ValueError, TypeError) as error:
            return TableState(is_usable=False, problem=f"the helper process for the vector table failed ({error})")
        return state

    async def in_table(self, fn: Callable[..., T], *arguments: Any, abandon: bool = False) -> T:
        """Run in the table's one thread at a time; rows are never abandoned half written.

        Errors: TableError.
        """
        try:
            return await trio.to_thread.run_sync(fn, *arguments, limiter=self._one_at_a_time, abandon_on_cancel=abandon)
        except StorageError as error:
            raise TableError(str(error)) from error

    async def _open_or_drop(self) -> set[str] | None:
        """The ids in the table; None when there is none, or it was beyond use."""
        try:
            return await self.in_table(self.table.open)
        except TableError as error:
            if self.table.is_missing:
                raise
            log.warning("vector table is damaged, making it anew", exc_info=error)
            await self.in_table(self.table.drop)
            return None

    async def _reconcile(self, known: set[str]) -> None:
        """Add what the table lacks, delete what it has too much; changed rows are in the outbox anyway."""
        ids = await self._database.read(self._stored.all_ids)
        missing, orphans = [key for key in ids if key not in known], known.difference(ids)
        if len(missing) > max(CHUNK, len(ids) // 2):
            await self.make_anew()
            return
        for start in range(0, len(missing), CHUNK):
            rows = await self._stored.rows(missing[start : start + CHUNK])
            await self.in_table(self.table.replace, rows, [])
        if orphans:
            await self.in_table(self.table.replace, [], sorted(orphans))
        if missing or orphans:
            self._unoptimized += len(missing) + len(orphans)
            log.info("vector table brought into step", extra=kv(added=len(missing), deleted=len(orphans)))


def _close(pieces: Generator[Any, None, None]) -> None:
    """Close what the library reads from; blocks while one of its threads is inside."""
    for _ in range(CLOSE_TRIES):
        try:
            pieces.close()
            return
        except ValueError:  # it is being read this moment
            time.sleep(CLOSE_PAUSE_S)
    log.warning("vector library still reads after its failure")
