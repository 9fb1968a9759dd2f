"""One file: writes in order, one commit for many, failures that take nobody along, migrations once."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import StorageError
from spacebot.base.paths import package_file
from spacebot.storage.database import Connection, Database, migrate, open_database

SCHEMA = (
    "CREATE TABLE t (n INTEGER PRIMARY KEY, word TEXT);\n-- a comment; with a semicolon\nCREATE INDEX i ON t (word);\n"
)


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "0001_first.sql").write_text(SCHEMA)
    return folder


@asynccontextmanager
async def opened(tmp_path: Path, migrations: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "test.db", migrations) as database:
        yield database


def insert(word: str) -> Callable[[Connection], int]:
    def write(connection: Connection) -> int:
        return int(connection.execute("INSERT INTO t (word) VALUES (?) RETURNING n", (word,)).fetchone()[0])

    return write


def words(connection: Connection) -> list[str]:
    return [row["word"] for row in connection.execute("SELECT word FROM t ORDER BY n")]


async def test_a_write_that_returned_is_seen_by_the_next_read(tmp_path: Path, migrations: Path) -> None:
    async with opened(tmp_path, migrations) as database:
        assert await database.write(insert("one")) == 1
        assert await database.read(words) == ["one"]


@pytest.mark.spec("P33")
async def test_writes_keep_the_order_in_which_they_were_asked_for(tmp_path: Path, migrations: Path) -> None:
    done: list[int] = []
    async with opened(tmp_path, migrations) as database:

        async def write(number: int) -> None:
            await database.write(insert(str(number)))
            done.append(number)

        for number in range(50):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, number * 2)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(write, number * 2 + 1)
        assert await database.read(words) == [str(number) for number in range(100)]


async def test_a_failing_write_takes_nobody_along(tmp_path: Path, migrations: Path) -> None:
    async with opened(tmp_path, migrations) as database:
        failures: list[BaseException] = []

        def broken(connection: Connection) -> None:
            insert("half done")(connection)
            raise ZeroDivisionError

        async def fail() -> None:
            try:
                await database.write(broken)
            except ZeroDivisionError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(database.write, insert(str(number)))
                nursery.start_soon(fail)
        assert sorted(await database.read(words), key=int) == [str(number) for number in range(20)]
        assert len(failures) == 20


async def test_a_full_disk_fails_what_did_not_fit_and_heals(tmp_path: Path, migrations: Path) -> None:
    async with opened(tmp_path, migrations) as database:
        pages = await database.read(lambda c: int(c.execute("PRAGMA page_count").fetchone()[0]))
        await database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
        kept, lost = [], 0
        for number in range(30):
            word = f"{number}:" + "x" * 2000
            try:
                await database.write(insert(word))
            except StorageError:
                lost += 1
            else:
                kept.append(word)
        assert lost > 0
        assert await database.read(words) == kept  # what returned is there, what failed is not
        await database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
        await database.write(insert("healed"))
        assert (await database.read(words))[-1] == "healed"


async def test_a_cancelled_write_is_finished_all_the_same(tmp_path: Path, migrations: Path) -> None:
    async with opened(tmp_path, migrations) as database:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database.write, insert("asked for"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with trio.CancelScope() as before:
            before.cancel()
            await database.write(insert("never asked for"))
        assert await database.read(words) == ["asked for"]


async def test_closing_finishes_what_waits_and_refuses_the_rest(tmp_path: Path, migrations: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with opened(tmp_path, migrations) as database:
            for number in range(300):
                nursery.start_soon(database.write, insert(str(number)))
            await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(StorageError, match="closed"):
        await database.write(insert("late"))
    async with opened(tmp_path, migrations) as database:
        assert len(await database.read(words)) == 300


async def test_readers_cannot_write(tmp_path: Path, migrations: Path) -> None:
    async with opened(tmp_path, migrations) as database:
        with pytest.raises(StorageError, match="readonly"):
            await database.read(insert("no"))
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(database.read, words)


def test_migrations_run_once_in_order_and_are_checked(tmp_path: Path, migrations: Path) -> None:
    path = tmp_path / "m.db"
    (migrations / "0002_second.sql").write_text("ALTER TABLE t ADD COLUMN more TEXT;")
    for _ in range(2):
        migrate(path, migrations, Clock())
    with sqlite3.connect(path) as connection:
        assert [row[0] for row in connection.execute("SELECT number FROM schema_migrations ORDER BY number")] == [1, 2]
    connection.close()
    (migrations / "0001_first.sql").write_text(SCHEMA + "-- changed")
    with pytest.raises(StorageError, match=r"another version of migration '0001_first\.sql'"):
        migrate(path, migrations, Clock())


def test_a_broken_migration_leaves_nothing(tmp_path: Path, migrations: Path) -> None:
    path = tmp_path / "m.db"
    (migrations / "0002_second.sql").write_text("CREATE TABLE u (n);\nCREATE TABLE nonsense;\n")
    with pytest.raises(StorageError):
        migrate(path, migrations, Clock())
    (migrations / "0002_second.sql").write_text("CREATE TABLE u (n);\n")
    migrate(path, migrations, Clock())


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path, migrations: Path) -> None:
    (migrations / "0002_second.sql").write_text("CREATE TABLE u (n);")
    migrate(tmp_path / "m.db", migrations, Clock())
    (migrations / "0002_second.sql").unlink()
    with pytest.raises(StorageError, match="newer than this program"):
        migrate(tmp_path / "m.db", migrations, Clock())


def test_an_unreadable_file_says_what_to_do(tmp_path: Path, migrations: Path) -> None:
    (tmp_path / "m.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match="check free space"):
        migrate(tmp_path / "m.db", migrations, Clock())


def test_the_schema_of_the_program_can_be_made(tmp_path: Path) -> None:
    migrate(tmp_path / "m.db", package_file("storage", "sql"), Clock())
