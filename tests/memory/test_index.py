"""The vector table: really written, really read, never the truth."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest
import trio

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId, new_uuid
from spacebot.memory.index import IndexPolicy
from spacebot.memory.matrix import ALL_STALE, Matrix, VectorRow
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import EVERYTHING, MemoryType, Neighbour, NewMemory, Provenance, Query, Viewer
from spacebot.memory.vectors import LanceTable
from tests.memory.conftest import OpenMemory

SMALL = IndexPolicy(exact_limit=5, uses_child=False, flush_after_s=0, flush_after_large_s=0)
ANN = Viewer(channel_id="chat:dm'ann", user_id="ann", is_direct=True)
ROOM = Viewer(channel_id="chat:room")


def unit(*numbers: float) -> np.ndarray:
    vector = np.array([*numbers, *([0.0] * (8 - len(numbers)))], np.float32)
    return vector / np.linalg.norm(vector)


def row(vector: np.ndarray, viewer: Viewer = ROOM, kind: str = "fact", key: str | None = None) -> VectorRow:
    return VectorRow(
        id=MemoryId(key or new_uuid()),
        content="x",
        memory_type=kind,
        is_private=viewer.is_direct,
        channel_id=viewer.channel_id,
        owner=viewer.owner,
        embedding=vector.astype(np.float32).tobytes(),
    )


class MatrixTable(Matrix):
    """The matrix behind the table's face."""

    def open(self) -> set[str]:
        return set()

    def replace(self, rows: list[VectorRow], gone: list[str]) -> None:
        self.changes.extend(rows)
        self.changes.extend(MemoryId(key) for key in gone)


def open_table(folder: Path) -> LanceTable:
    table = LanceTable(folder, 8)
    table.create([])
    return table


def open_matrix(folder: Path) -> MatrixTable:
    return MatrixTable(8)


Open = Callable[[Path], LanceTable | MatrixTable]
both = pytest.mark.parametrize("make", [open_table, open_matrix])


@both
def test_nearest_go_by_cosine_not_by_distance(make: Open, tmp_path: Path) -> None:
    table = make(tmp_path)
    rows = [row(unit(1, 0.1)), row(unit(1, 1)), row(unit(0, 1)), row(unit(-1, 0))]
    table.replace(rows, [])
    found = table.nearest(unit(1, 0), EVERYTHING, None, 3)
    assert [neighbour.id for neighbour in found] == [r.id for r in rows[:3]]
    assert [n.similarity for n in found] == pytest.approx([0.99504, 0.70711, 0.0], abs=1e-4)


@both
def test_a_row_of_the_same_id_is_replaced_and_a_deleted_one_is_gone(make: Open, tmp_path: Path) -> None:
    table = make(tmp_path)
    first, second = row(unit(1)), row(unit(0, 1))
    table.replace([first, second], [])
    table.replace([row(unit(0, 0, 1), key=first.id)], [second.id])
    found = table.nearest(unit(0, 0, 1), EVERYTHING, None, 5)
    assert found == [Neighbour(id=first.id, similarity=1.0)]


@both
def test_the_viewer_and_the_type_filter_inside_the_search(make: Open, tmp_path: Path) -> None:
    """Hidden rows are the nearest here: a filter after the cut would leave nothing."""
    table = make(tmp_path)
    private = [row(unit(1, n / 1000), ANN) for n in range(20)]
    public, goal = row(unit(0, 1), ROOM), row(unit(0, 0, 1), ROOM, "goal")
    table.replace([*private, public, goal], [])
    ask = unit(1)

    others = (
        ROOM,
        Viewer(),
        Viewer(channel_id="chat:dm'bob", user_id="bob", is_direct=True),
        Viewer(channel_id="' OR 1=1 --"),
    )
    for viewer in others:
        assert {n.id for n in table.nearest(ask, viewer, None, 5)} == {public.id, goal.id}
        assert [n.id for n in table.nearest(ask, viewer, "goal", 5)] == [goal.id]
    elsewhere = Viewer(channel_id="chat:dm2", user_id="ann", is_direct=True)
    for viewer in (ANN, elsewhere, EVERYTHING):
        assert [n.id for n in table.nearest(ask, viewer, None, 3)] == [r.id for r in private[:3]]


def test_an_id_from_elsewhere_never_enters_a_predicate(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    with pytest.raises(StorageError, match="is not a memory id"):
        table.replace([], ["' OR 1=1 --"])


def test_the_graph_index_gives_the_same_similarities_as_the_scan(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    table = LanceTable(tmp_path, 8)
    rows = [row(v / np.linalg.norm(v)) for v in generator.standard_normal((400, 8))]
    table.create([rows])
    ask = unit(1, 2, 3)
    exact = table.nearest(ask, ROOM, None, 10)
    table.build_vector_index()
    table.optimize()
    indexed = table.nearest(ask, ROOM, None, 10)
    assert len({n.id for n in exact} & {n.id for n in indexed}) >= 8
    assert indexed[0].similarity == pytest.approx(exact[0].similarity, abs=1e-5)
    reopened = LanceTable(tmp_path, 8)
    assert reopened.open() == {r.id for r in rows}
    assert reopened.nearest(ask, ROOM, None, 10) == indexed


async def fill(memory: AgentMemory, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await memory.save(
            NewMemory(content=f"Box {number} holds item{number}.", provenance=Provenance(channel_id="chat:room"))
        )


async def best(memory: AgentMemory, text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    result = await memory.recall(Query(viewer=ROOM, text=text))
    return result.hits[0].memory.content, result.hits[0].legs, result.notes


def ids_on_disk(folder: Path) -> set[str]:
    table = lancedb.connect(str(folder)).open_table("memory_embeddings")
    return set(table.search().select(["id"]).limit(None).to_arrow().column("id").to_pylist())


def ids_in_truth(folder: Path) -> set[str]:
    connection = sqlite3.connect(folder / "spacebot.db")
    try:
        return {key for (key,) in connection.execute("SELECT id FROM memories WHERE forgotten = 0")}
    finally:
        connection.close()


async def engine(memory: AgentMemory, wanted: str) -> None:
    with trio.fail_after(30):
        while (await memory.stats()).engine != wanted:
            await trio.sleep(0.01)


async def test_the_table_follows_saves_and_forgets(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        await fill(memory, 3)
        gone = (await memory.recall(Query(viewer=ROOM, text="item1"))).hits[0].memory
        await memory.flush()
        assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)
        await memory.forget(gone.id)
        await memory.flush()
        assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)
        assert (await memory.stats()).unindexed == 0


async def test_above_the_limit_the_table_answers(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await engine(memory, "lancedb")
        assert await best(memory, "item3 box") == ("Box 3 holds item3.", ("vector", "text"), ())
        await memory.flush()
    async with open_test_memory(index=SMALL) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        connection = sqlite3.connect(tmp_path / "spacebot.db")  # behind its back: only the table has vectors now
        connection.execute("DELETE FROM embeddings")
        connection.commit()
        connection.close()
        assert await best(memory, "item3 box") == ("Box 3 holds item3.", ("vector", "text"), ())


async def test_above_the_limit_a_fresh_memory_is_found_before_the_table_has_it(open_test_memory: OpenMemory) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
    slow = replace(SMALL, flush_after_large_s=3600)
    async with open_test_memory(index=slow) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        await fill(memory, 1, first=50)
        assert (await memory.stats()).unindexed == 1
        assert await best(memory, "item50") == ("Box 50 holds item50.", ("vector", "text"), ())
        forgotten = (await memory.recall(Query(viewer=ROOM, text="item3"))).hits[0].memory
        await memory.forget(forgotten.id)
        assert (await best(memory, "item3"))[0] != forgotten.content


async def test_a_killed_process_loses_nothing_between_commit_and_table(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    """The process ends by itself with SIGKILL right after the save returned, before the table was written."""
    program = f"""
import os, sys, signal, trio
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.memory import open_memory
from spacebot.memory.types import NewMemory, Provenance
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder

async def main():
    folder = Path({str(tmp_path)!r})
    async with open_database(folder / "spacebot.db", package_file("storage", "sql")) as database:
        async with open_memory(
            database, folder / "lancedb", embedder=FakeEmbedder(), events=EventBus(), agent_id="main"
        ) as memory:
            for number in range(3):
                await memory.save(NewMemory(content=f"Box {{number}} holds item{{number}}.",
                                            provenance=Provenance(channel_id="chat:room")))
            os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""
    ended = await trio.run_process([sys.executable, "-c", program], check=False, capture_stderr=True)
    assert ended.returncode == -9, ended.stderr
    assert not (tmp_path / "lancedb").exists()

    async with open_test_memory(index=IndexPolicy(flush_after_s=0)) as memory:
        assert await best(memory, "item2") == ("Box 2 holds item2.", ("vector", "text"), ())
        with trio.fail_after(30):
            while (await memory.stats()).unindexed:
                await trio.sleep(0.01)
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _truncate(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _garbage(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x00garbage" * 10)


def _plain_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def _strangers(folder: Path) -> None:
    table = lancedb.connect(str(folder)).open_table("memory_embeddings")
    rows = table.to_arrow()
    table.delete(f"id = '{rows.column('id')[0].as_py()}'")
    stranger = rows.slice(0, 1).set_column(0, rows.schema.field("id"), [[new_uuid()]])
    table.add(stranger)


@pytest.mark.parametrize("damage", [_remove, _truncate, _garbage, _plain_file, _strangers])
async def test_a_damaged_folder_is_made_anew_without_embedding_again(
    open_test_memory: OpenMemory, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
    damage(tmp_path / "lancedb")

    async with open_test_memory(index=SMALL) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        assert await best(memory, "item3") == ("Box 3 holds item3.", ("vector", "text"), ())
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


async def test_a_table_that_dies_while_in_use_is_replaced(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
        await engine(memory, "lancedb")
        _garbage(tmp_path / "lancedb")
        content, legs, _ = await best(memory, "item3")
        assert (content, legs) == ("Box 3 holds item3.", ("vector", "text"))
        await fill(memory, 1, first=60)
        await engine(memory, "lancedb")
        assert (await best(memory, "item60"))[:2] == ("Box 60 holds item60.", ("vector", "text"))


@asynccontextmanager
async def _without_library(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lancedb", None)
        yield


async def test_without_the_library_recall_goes_on_and_says_so(
    open_test_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_memory(index=SMALL) as memory, _without_library(monkeypatch):
        await fill(memory, 8)
        assert await best(memory, "item3") == ("Box 3 holds item3.", ("vector", "text"), ())
    async with open_test_memory(index=SMALL) as memory, _without_library(monkeypatch):
        content, legs, notes = await best(memory, "item3")
        assert (content, legs) == ("Box 3 holds item3.", ("vector", "text"))
        assert "slow scan" in notes[0]
        secret = Provenance(channel_id="chat:dm", user_id="ann", is_direct=True)
        await memory.save(NewMemory(content="item3 is secret", provenance=secret))
        assert "item3 is secret" not in str((await memory.recall(Query(viewer=ROOM, text="item3 secret"))).hits)
        found = await memory.recall(Query(viewer=secret.viewer, text="item3 secret", memory_type=MemoryType.FACT))
        assert found.hits[0].legs == ("vector", "text")


async def outbox(folder: Path) -> list[str]:
    connection = sqlite3.connect(folder / "spacebot.db")
    try:
        return [key for (key,) in connection.execute("SELECT memory_id FROM vector_outbox")]
    finally:
        connection.close()


async def _until_shortened(folder: Path) -> None:
    with trio.fail_after(30):
        while await outbox(folder) != [ALL_STALE]:
            await trio.sleep(0.01)


async def test_without_the_library_the_outbox_stays_short_and_a_later_table_is_made_anew(
    open_test_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
    async with open_test_memory(index=replace(SMALL, flush_after_s=3600)) as memory:
        await fill(memory, 4, first=20)
        await memory.forget((await memory.recall(Query(viewer=ROOM, text="item3"))).hits[0].memory.id)
    async with _without_library(monkeypatch), open_test_memory(index=replace(SMALL, outbox_limit=3)):
        await _until_shortened(tmp_path)
    with sqlite3.connect(tmp_path / "spacebot.db") as connection:  # nothing but the mark tells that this is stale
        connection.execute("UPDATE embeddings SET embedding = (SELECT embedding FROM embeddings LIMIT 1)")
        connection.execute("DELETE FROM vector_outbox WHERE memory_id <> ?", (ALL_STALE,))
    connection.close()
    async with open_test_memory(index=SMALL) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        assert (await memory.stats()).unindexed == 0
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)
    rows = lancedb.connect(str(tmp_path / "lancedb")).open_table("memory_embeddings").to_arrow()
    assert len({tuple(vector) for vector in rows.column("embedding").to_pylist()}) == 1


async def test_an_unusable_library_lets_nothing_grow(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    """The folder is a link into nothing: the library is there, the table can never be opened."""
    async with open_test_memory(index=replace(SMALL, flush_after_s=3600)) as memory:
        await fill(memory, 8)
    (tmp_path / "lancedb").symlink_to("/proc/nowhere")
    async with open_test_memory(index=replace(SMALL, outbox_limit=3)) as memory:
        await memory.warm_up()
        await engine(memory, "scan")
        await _until_shortened(tmp_path)
        await fill(memory, 3, first=30)
        assert not memory._index._matrix.changes
        assert (await best(memory, "item31"))[0] == "Box 31 holds item31."


async def test_an_error_of_the_database_leaves_the_table_alone(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await engine(memory, "lancedb")
        await memory.flush()
        with sqlite3.connect(tmp_path / "spacebot.db") as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE DELETE ON vector_outbox BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
            )
        made_at = (tmp_path / "lancedb" / "memory_embeddings.lance").stat().st_ino
        await fill(memory, 1, first=40)
        with pytest.raises(StorageError, match="disk is full"):
            await memory.flush()
        assert (await memory.stats()).engine == "lancedb"
        assert await best(memory, "item40") == ("Box 40 holds item40.", ("vector", "text"), ())
        connection.execute("DROP TRIGGER full")
        connection.close()
        await memory.flush()
        assert (await memory.stats()).unindexed == 0
        assert (tmp_path / "lancedb" / "memory_embeddings.lance").stat().st_ino == made_at
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


async def test_a_first_look_that_fails_ends_nobody(
    open_test_memory: OpenMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 1)
    with sqlite3.connect(tmp_path / "spacebot.db") as connection:
        connection.execute("ALTER TABLE vector_outbox RENAME TO gone")
    async with open_test_memory(index=SMALL) as memory:
        with trio.fail_after(10):
            while "vector table not brought into step" not in caplog.messages:
                await trio.sleep(0.01)
        assert (await best(memory, "item0"))[0] == "Box 0 holds item0."
    connection.close()


def test_importing_the_memory_loads_no_heavy_library() -> None:
    program = (
        "import sys, spacebot.memory.memory, spacebot.tools.memory;"
        "print([m for m in ('numpy', 'lancedb', 'pyarrow', 'onnxruntime', 'tokenizers') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert ended.stdout.strip() == "[]"
