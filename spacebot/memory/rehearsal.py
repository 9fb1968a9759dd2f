"""Shadow tables for a dry run: the same statements run on copies, and the real tables stay as they are.

SQLite looks a table up among the temporary ones first, and a read-only connection may have some. They live in a
file without a name, which is gone with the process.

Flow:    rehearsal -> Rehearsal.read, write -> temporary tables
Floor:   memory; may import base, storage
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import trio

from spacebot.base.errors import StorageError
from spacebot.storage.database import Connection, Database, Error, connect

T = TypeVar("T")

_SHADOWS = (
    "CREATE TEMP TABLE memories AS SELECT * FROM main.memories",
    "CREATE UNIQUE INDEX temp.shadow_seq ON memories (seq)",
    "CREATE UNIQUE INDEX temp.shadow_id ON memories (id)",
    "CREATE INDEX temp.shadow_importance ON memories (forgotten, importance)",
    "CREATE TEMP TABLE associations AS SELECT * FROM main.associations",
    "CREATE UNIQUE INDEX temp.shadow_edge ON associations (source_id, target_id, relation_type)",
    "CREATE INDEX temp.shadow_target ON associations (target_id)",
    "CREATE TEMP TABLE embeddings AS SELECT seq, memory_id, model FROM main.embeddings",  # who is read has the vector
    "CREATE UNIQUE INDEX temp.shadow_embedding ON embeddings (seq)",
    "CREATE TEMP TABLE memory_verdicts AS SELECT * FROM main.memory_verdicts",
    "CREATE INDEX temp.shadow_newer ON memory_verdicts (newer_id)",
    "CREATE INDEX temp.shadow_older ON memory_verdicts (older_id)",
    "CREATE TEMP TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "INSERT INTO temp.settings SELECT key, value FROM main.settings",
    "CREATE TEMP TABLE cortex_events (id TEXT, event_type TEXT, summary TEXT, details TEXT, created_at TEXT)",
)


class Ground(Protocol):
    """What a pass of maintenance reads and writes: a database or a rehearsal of it."""

    async def read(self, fn: Callable[[Connection], T]) -> T: ...

    async def write(self, fn: Callable[[Connection], T]) -> T: ...


class Rehearsal:
    """Reads and writes of shadow tables; see `rehearsal`."""

    def __init__(self, connection: Connection, limiter: trio.CapacityLimiter) -> None:
        self._connection = connection
        self._limiter = limiter

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a thread.

        Errors: StorageError.
        """
        return await _in_thread(self._limiter, fn, self._connection)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a thread; when it fails the rehearsal is over, so there is nothing to roll back.

        Errors: StorageError.
        """
        return await _in_thread(self._limiter, fn, self._connection)


@asynccontextmanager
async def rehearsal(database: Database) -> AsyncIterator[Rehearsal]:
    """Copy what curation touches, and drop it all at the end.

    Errors: StorageError when the file cannot be read.
    """
    limiter = trio.CapacityLimiter(1)
    connection = await trio.to_thread.run_sync(lambda: connect(database.path, read_only=True), limiter=limiter)
    try:
        await _in_thread(limiter, _copy, connection)
        yield Rehearsal(connection, limiter)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.close, limiter=limiter)


async def _in_thread(limiter: trio.CapacityLimiter, fn: Callable[[Connection], T], connection: Connection) -> T:
    try:
        return await trio.to_thread.run_sync(fn, connection, limiter=limiter)
    except Error as error:
        raise StorageError(f"the dry run failed ({error}); check the free space for temporary files") from error


def _copy(connection: Connection) -> None:
    connection.execute("PRAGMA synchronous = OFF")  # of the temporary file; nothing there has to survive
    connection.execute("BEGIN")
    for statement in _SHADOWS:
        connection.execute(statement)
    connection.execute("COMMIT")
