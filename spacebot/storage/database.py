"""One SQLite file: a writer thread with group commit, a few reader threads, numbered migrations.

Writes are functions of a connection. They queue in order, run in one thread, and those that wait
at the same moment share one commit; each has a savepoint of its own, so one that fails takes
nobody along. A write that returned is on disk (WAL, synchronous FULL).

Flow:    Database.write(fn) -> queue -> writer thread -> commit -> result
Floor:   storage; may import base
Source:  the pattern of Datasette's `Database.execute_write_fn`; memory spec 3.2
"""

import hashlib
import logging
import queue
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import outcome
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import StorageError

log = logging.getLogger(__name__)

Connection = sqlite3.Connection
Row = sqlite3.Row
Error = sqlite3.Error  # of a connection that somebody else opened with `connect`
T = TypeVar("T")

READERS = 2  # threads; more only fight for the interpreter lock
BUSY_TIMEOUT_MS = 5000
GROUP = 256  # writes in one commit, so that nobody waits for an endless group
_MIGRATION = re.compile(r"(\d{4})_(\w+)\.sql")


class Database:
    """Reads and writes of one file; see `open_database`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._next: _Write | None = None  # taken from the queue, and to be run by itself
        self._readers: list[Connection] = []
        self._reader_limit = trio.CapacityLimiter(READERS)
        self._closed = False

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in the writer thread, inside a transaction, and return its result once it is on disk.

        Errors: StorageError when the file cannot be written (full disk, read-only, damaged); whatever
            `fn` raises otherwise, after its changes were rolled back.
        Cancel: a queued write is always finished; the cancellation is seen afterwards.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise StorageError(f"database {self.path.name!r} is closed")
        self._queue.put(_Write(fn, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()))
        result = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result  # type: ignore[no-any-return]

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on a read-only connection in a thread.

        Errors: StorageError when the file cannot be read.
        Cancel: the thread is left to finish; its result is dropped.
        """
        return await trio.to_thread.run_sync(self._read, fn, limiter=self._reader_limit, abandon_on_cancel=False)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator["Snapshot"]:
        """Look at one state of the file in several reads, while others go on writing.

        Errors: StorageError when the file cannot be read.
        """
        limiter = trio.CapacityLimiter(1)  # of its own: a long look must not keep short ones waiting
        connection = await trio.to_thread.run_sync(partial(connect, self.path, read_only=True))
        try:
            connection.execute("BEGIN")  # the first read decides which state it is
            yield Snapshot(connection, limiter, self.path)
        finally:
            connection.close()

    async def tidy(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on the writer's connection between two transactions: VACUUM, checkpoints.

        Writes that come meanwhile wait and do not fail, so it should be short.

        Errors: StorageError; what `fn` raises otherwise.
        Cancel: as with `write`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise StorageError(f"database {self.path.name!r} is closed")
        token = trio.lowlevel.current_trio_token()
        self._queue.put(_Write(fn, trio.lowlevel.current_task(), token, is_alone=True))
        result = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result  # type: ignore[no-any-return]

    def _read(self, fn: Callable[[Connection], T]) -> T:
        try:
            connection = self._readers.pop()
        except IndexError:  # two threads may want the last one
            connection = connect(self.path, read_only=True)
        try:
            return fn(connection)
        except sqlite3.Error as error:
            raise _explain(error, self.path) from error
        finally:
            if connection.in_transaction:
                connection.rollback()
            self._readers.append(connection)

    def _work(self) -> None:
        connection = connect(self.path)
        try:
            while True:
                batch = self._take()
                if batch:
                    (_run_alone if batch[0].is_alone else _commit)(connection, batch, self.path)
                if batch is None or batch[-1].is_last:
                    return
        finally:
            connection.close()

    def _take(self) -> "list[_Write] | None":
        first, self._next = self._next or self._queue.get(), None
        if first is None:
            return None
        batch = [first]
        with suppress(queue.Empty):
            while len(batch) < GROUP and not first.is_alone:
                following = self._queue.get_nowait()
                if following is None:
                    batch[-1].is_last = True
                    break
                if following.is_alone:
                    self._next = following
                    break
                batch.append(following)
        return batch

    def _close_readers(self) -> None:
        while self._readers:
            self._readers.pop().close()


class _Write:
    __slots__ = ("fn", "is_alone", "is_last", "result", "task", "token")

    def __init__(
        self,
        fn: Callable[[Connection], Any],
        task: trio.lowlevel.Task,
        token: trio.lowlevel.TrioToken,
        *,
        is_alone: bool = False,
    ) -> None:
        self.fn = fn
        self.task = task
        self.token = token
        self.result: outcome.Outcome[Any] | None = None
        self.is_last = False
        self.is_alone = is_alone  # outside of any transaction


class Snapshot:
    """Reads of one state of a file; see `Database.snapshot`. One read at a time."""

    def __init__(self, connection: Connection, limiter: trio.CapacityLimiter, path: Path) -> None:
        self._connection = connection
        self._limiter = limiter
        self._path = path

    async def __call__(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a thread. Errors: StorageError."""
        try:
            return await trio.to_thread.run_sync(fn, self._connection, limiter=self._limiter)
        except sqlite3.Error as error:
            raise _explain(error, self._path) from error


def _run_alone(connection: Connection, batch: list[_Write], path: Path) -> None:
    """Run what needs no transaction, and wake its task."""
    (write,) = batch
    try:
        write.result = outcome.Value(write.fn(connection))
    except BaseException as error:
        write.result = outcome.Error(_explain(error, path) if isinstance(error, sqlite3.Error) else error)
    _wake(batch)


def _commit(connection: Connection, batch: list[_Write], path: Path) -> None:
    """Run a group of writes in one transaction and wake their tasks."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for write in batch:
            connection.execute("SAVEPOINT one")
            try:
                write.result = outcome.Value(write.fn(connection))
                connection.execute("RELEASE one")
            except BaseException as error:
                if not connection.in_transaction:  # a full disk makes SQLite roll back everything
                    raise
                connection.execute("ROLLBACK TO one")
                connection.execute("RELEASE one")
                write.result = outcome.Error(_explain(error, path) if isinstance(error, sqlite3.Error) else error)
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        failure = _explain(error, path) if isinstance(error, sqlite3.Error) else error
        for write in batch:
            write.result = outcome.Error(failure)
    _wake(batch)


def _wake(batch: list[_Write]) -> None:
    def wake() -> None:
        for write in batch:
            assert write.result is not None
            trio.lowlevel.reschedule(write.task, write.result)

    with suppress(trio.RunFinishedError):
        batch[0].token.run_sync_soon(wake)


def _explain(error: BaseException, path: Path) -> StorageError:
    return StorageError(
        f"database {str(path)!r} failed ({error}); check free space, permissions and that no other program uses it"
    )


@asynccontextmanager
async def open_database(path: Path, migrations: Path, clock: Clock | None = None) -> AsyncIterator[Database]:
    """Open a file, bring its schema up to date, and keep its threads while the block runs.

    Args:
        migrations: folder of `0001_name.sql` files, applied in order, each once.

    Owns: the writer thread and all connections; queued writes are finished before it closes.
    Errors: StorageError when the file is unreadable, newer than this program, or a migration was changed.
    """
    await trio.to_thread.run_sync(migrate, path, migrations, clock or Clock())
    database = Database(path)
    thread = threading.Thread(target=database._work, name=f"write {path.name}", daemon=True)
    thread.start()
    try:
        yield database
    finally:
        database._closed = True
        database._queue.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)
            await trio.to_thread.run_sync(database._close_readers)


def connect(path: Path, *, read_only: bool = False) -> Connection:
    """Open a plain connection with the settings that every connection needs.

    Errors: StorageError.
    """
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro" if read_only else str(path),
            uri=read_only,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted leaves no bytes behind
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    return connection


def migrate(path: Path, migrations: Path, clock: Clock) -> None:
    """Apply the migrations that a file has not had yet, each in a transaction of its own.

    Errors: StorageError when an applied one was changed since, or the file knows one that we do not.
    """
    connection = connect(path)
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, "
            "checksum TEXT NOT NULL, applied_at TEXT NOT NULL)"
        )
        applied = {row["number"]: row for row in connection.execute("SELECT * FROM schema_migrations")}
        known: set[int] = set()
        for file in sorted(migrations.glob("*.sql")):
            match = _MIGRATION.fullmatch(file.name)
            if match is None:
                raise StorageError(f"migration {file.name!r} must be named like '0001_name.sql'")
            number, text = int(match[1]), file.read_text(encoding="utf-8")
            checksum = hashlib.sha256(text.encode()).hexdigest()
            known.add(number)
            if number not in applied:
                _apply(connection, number, match[2], text, checksum, clock)
            elif applied[number]["checksum"] != checksum:
                raise StorageError(
                    f"database {str(path)!r} was made with another version of migration {file.name!r}; "
                    "use the program version that made it, or restore a backup"
                )
        if newer := set(applied) - known:
            raise StorageError(
                f"database {str(path)!r} is newer than this program (migration {max(newer)}); update the program"
            )
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    finally:
        connection.close()


def _apply(connection: Connection, number: int, name: str, text: str, checksum: str, clock: Clock) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(text):
            connection.execute(statement)
        connection.execute("INSERT INTO schema_migrations VALUES (?, ?, ?, ?)", (number, name, checksum, clock.text()))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(text: str) -> list[str]:
    """Split a script into statements (`executescript` would commit behind our back)."""
    statements, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    if current.strip():
        statements.append(current)
    return statements
