"""Whatever is broken on disk or in the library: nothing is lost, recall goes on, and what happened is said."""

import io
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lancedb
import lancedb.table
import numpy as np
import pytest
import trio
from lancedb.index import HnswSq

from spacebot.base.clock import Clock
from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import AgentMemory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.types import EVERYTHING, NewMemory, Provenance, Query, Viewer
from tests.fakes.fake_embedder import FakeEmbedder
from tests.memory.conftest import OpenMemory
from tests.memory.test_index import ANN, ROOM, SMALL, best, engine, fill, ids_in_truth, ids_on_disk

INDEXED = replace(SMALL, index_rows=8)


def table_of(folder: Path) -> lancedb.table.LanceTable:
    return lancedb.connect(str(folder / "lancedb")).open_table("memory_embeddings")


def in_truth(folder: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "spacebot.db")
    try:
        rows = connection.execute(statement, parameters).fetchall()
        connection.commit()
        return rows
    finally:
        connection.close()


async def fill_at_once(memory: AgentMemory, count: int, first: int = 0) -> None:
    """As `fill`, in a few transactions instead of one each."""
    lines = [
        json.dumps({"content": f"Box {number} holds item{number}.", "channel_id": "chat:room"})
        for number in range(first, first + count)
    ]
    transfer = MemoryTransfer(memory._database, memory, memory._embedder, Clock())
    await transfer.import_file(io.BytesIO("\n".join(lines).encode()))


async def until_embedded(memory: AgentMemory) -> None:
    with trio.fail_after(30):
        while (await memory.stats()).to_embed:
            await trio.sleep(0.01)


async def test_indexes_are_made_once_and_never_to_find_out_whether_they_are_there(
    open_test_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall P-03, counted at the library itself."""
    built: Counter[str] = Counter()
    original = lancedb.table.LanceTable.create_index

    def counting(self: lancedb.table.LanceTable, *arguments: object, **named: object) -> object:
        built[str(arguments[0])] += 1
        return original(self, *arguments, **named)

    monkeypatch.setattr(lancedb.table.LanceTable, "create_index", counting)
    async with open_test_memory(index=INDEXED) as memory:
        await fill(memory, 12)
        await memory.flush()
        await fill(memory, 12, first=20)
        await memory.flush()
    async with open_test_memory(index=INDEXED) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        await fill(memory, 3, first=50)
        await memory.flush()
    assert built == {"id": 1, "channel_key": 1, "embedding": 1}


@pytest.mark.parametrize("limit", [5, 60])
async def test_a_graph_index_answers_any_wanted_number(open_test_memory: OpenMemory, limit: int) -> None:
    """The library refuses a search that is narrower than what it is asked for, and a scan would answer."""
    async with open_test_memory(index=INDEXED) as memory:
        await fill_at_once(memory, 300)
        await engine(memory, "lancedb")
        await memory.flush()
        result = await memory.recall(Query(viewer=ROOM, text="item3 box", limit=limit))
        assert (result.notes, (await memory.stats()).engine) == ((), "lancedb")
        found = await memory._index.nearest(np.eye(384, dtype=np.float32)[0], ROOM, limit=200)
        assert (len(found.neighbours), found.engine) == (200, "lancedb")


async def test_an_index_of_another_metric_is_made_anew(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory(index=INDEXED) as memory:
        await fill(memory, 12)
        await memory.flush()
    table = table_of(tmp_path)
    table.create_index("embedding", config=HnswSq(distance_type="l2", num_partitions=1), replace=True)
    async with open_test_memory(index=INDEXED) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        await memory.flush()
        assert await best(memory, "item3 box") == ("Box 3 holds item3.", ("vector", "text"), ())
    statistics = table_of(tmp_path).index_stats("embedding_idx")
    assert statistics is not None
    assert statistics.distance_type == "cosine"


async def test_the_maintenance_pass_takes_new_rows_into_the_indexes(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    policy = replace(INDEXED, optimize_changes=10**6)
    async with open_test_memory(index=policy) as memory:
        await fill(memory, 12)
        await memory.flush()
        await fill_at_once(memory, 300, first=100)
        await memory.flush()
        state = await memory._index.maintain()
        assert (state.rows, state.unindexed >= 300, state.is_optimized) == (312, True, True)
        state = await memory._index.maintain()
        assert (state.unindexed, state.is_optimized) == (0, False)
    statistics = table_of(tmp_path).index_stats("embedding_idx")
    assert statistics is not None
    assert (statistics.num_indexed_rows, statistics.num_unindexed_rows) == (312, 0)


async def test_a_table_that_holds_an_id_twice_is_made_anew(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
    table = table_of(tmp_path)
    table.add(table.to_arrow().slice(0, 2))
    async with open_test_memory(index=SMALL) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
    ids = table_of(tmp_path).search().select(["id"]).limit(None).to_arrow().column("id").to_pylist()
    assert sorted(ids) == sorted(ids_in_truth(tmp_path))


def _half_of_each_file(folder: Path) -> None:
    for file in folder.rglob("*.lance"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _no_manifest(folder: Path) -> None:
    shutil.rmtree(folder / "memory_embeddings.lance" / "_versions")


def _no_index_files(folder: Path) -> None:
    shutil.rmtree(folder / "memory_embeddings.lance" / "_indices")


def _file_for_table(folder: Path) -> None:
    shutil.rmtree(folder / "memory_embeddings.lance")
    (folder / "memory_embeddings.lance").write_text("a file")


@pytest.mark.parametrize("damage", [_half_of_each_file, _no_manifest, _no_index_files, _file_for_table])
async def test_every_memory_is_found_again_after_damage_to_parts_of_the_table(
    open_test_memory: OpenMemory, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with open_test_memory(index=INDEXED) as memory:
        await fill(memory, 20)
        await memory.flush()
    damage(tmp_path / "lancedb")
    async with open_test_memory(index=INDEXED) as memory:
        await memory.warm_up()
        with trio.fail_after(30):
            for number in range(20):
                content, legs, _ = await best(memory, f"item{number} box")
                assert (content, legs) == (f"Box {number} holds item{number}.", ("vector", "text"))
        await engine(memory, "lancedb")
        await memory.flush()
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="this system has no folder that nobody can write")
async def test_a_folder_that_cannot_be_written_is_said_and_harms_nothing(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    (tmp_path / "lancedb").symlink_to("/proc/self/fdinfo")  # not even root can write there
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        with pytest.raises(StorageError, match="failed"):
            await memory.rebuild()
        assert (await best(memory, "item3"))[0] == "Box 3 holds item3."


async def test_damaged_vectors_are_computed_anew_and_spoil_no_search(
    open_test_memory: OpenMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_test_memory() as memory:
        await fill(memory, 6)
    good = dict(in_truth(tmp_path, "SELECT memory_id, embedding FROM embeddings"))
    keys = list(good)
    damaged = [b"", b"\x01\x02\x03", np.full(384, np.nan, np.float32).tobytes(), np.ones(128, np.float32).tobytes()]
    for key, blob in zip(keys, damaged, strict=False):
        in_truth(tmp_path, "UPDATE embeddings SET embedding = ? WHERE memory_id = ?", blob, key)
    async with open_test_memory() as memory:
        assert (await best(memory, "item5 box"))[0] == "Box 5 holds item5."
        with trio.fail_after(30):
            while dict(in_truth(tmp_path, "SELECT memory_id, embedding FROM embeddings")) != good:
                await trio.sleep(0.01)
        with trio.fail_after(30):
            while (await best(memory, "item0 box"))[1] != ("vector", "text"):
                await trio.sleep(0.01)
    (told,) = [record for record in caplog.records if record.message == "damaged vectors are computed anew"]
    assert told.kv == {"count": 4, "example": "0 numbers instead of 384"}  # type: ignore[attr-defined]


class ForgetfulEmbedder(FakeEmbedder):
    """States 384 numbers and gives 96."""

    async def embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        return (await super().embed(texts))[:, :96]


async def test_a_model_that_breaks_its_word_is_named_with_both_numbers(open_test_memory: OpenMemory) -> None:
    async with open_test_memory(embedder=ForgetfulEmbedder()) as memory:
        saved = await memory.save(NewMemory(content="The key is under the mat.", provenance=Provenance()))
        assert not saved.is_embedded
        result = await memory.recall(Query(viewer=ROOM, text="key"))
        assert result.hits[0].memory.id == saved.memory.id
        assert "gave 96 numbers a text where 384 are stored" in result.notes[0]
        with pytest.raises(StorageError, match="96 numbers was asked for, the stored ones have 384"):
            await memory._index.nearest(np.ones(96, np.float32), ROOM, limit=3)


class HeldEmbedder(FakeEmbedder):
    """Many texts at once wait until they are let through; one text never does."""

    def __init__(self, *arguments: int, name: str) -> None:
        super().__init__(*arguments, name=name)
        self.let_through = trio.CapacityLimiter(1)
        self.gate = trio.Event()

    async def embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        if len(texts) > 1:
            await self.gate.wait()
        return await super().embed(texts)


@pytest.mark.parametrize("dimensions", [384, 96])
async def test_another_model_is_taken_over_in_the_background_and_recall_says_so(
    open_test_memory: OpenMemory, tmp_path: Path, dimensions: int
) -> None:
    async with open_test_memory(index=SMALL) as memory:
        await fill(memory, 8)
        await memory.flush()
    newer = HeldEmbedder(dimensions, name="newer")
    async with open_test_memory(index=SMALL, embedder=newer) as memory:
        with trio.fail_after(30):
            while memory._index.waiting != 8:
                await trio.sleep(0.01)
        assert (await memory.stats()).to_embed == 8
        content, legs, notes = await best(memory, "item3 box")
        assert (content, legs) == ("Box 3 holds item3.", ("text",))
        assert any("8 memories have no vector yet" in note for note in notes)
        newer.gate.set()
        await until_embedded(memory)
        await engine(memory, "lancedb")
        await memory.flush()
        assert await best(memory, "item3 box") == ("Box 3 holds item3.", ("vector", "text"), ())
    assert table_of(tmp_path).schema.field("embedding").type.list_size == dimensions
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


async def test_a_rebuild_leaves_nothing_of_the_old_table_and_recall_goes_on_meanwhile(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    stages: list[tuple[str, int, int]] = []
    async with open_test_memory(index=INDEXED) as memory:
        await fill(memory, 20)
        await engine(memory, "lancedb")
        secret = await memory.save(NewMemory(content="The code is 4711 zebra.", provenance=Provenance()))
        await memory.flush()
        await memory.forget(secret.memory.id)

        async def ask() -> None:
            for number in range(20):
                assert (await best(memory, f"item{number} box"))[0] == f"Box {number} holds item{number}."

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            state = await memory.rebuild(lambda *stage: stages.append(stage))
        await fill(memory, 2, first=70)
        await memory.flush()
        assert (state.rows, stages[-1]) == (20, ("index", 20, 20))
        assert await best(memory, "item71 box") == ("Box 71 holds item71.", ("vector", "text"), ())
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)
    left = [path for path in (tmp_path / "lancedb").rglob("*") if path.is_file() and b"4711 zebra" in path.read_bytes()]
    assert not left


async def test_two_programs_on_one_store_harm_nothing(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    """The instance lock keeps a second daemon out; should it ever fail, the table still agrees in the end."""
    async with open_test_memory(index=SMALL) as first, open_test_memory(index=SMALL) as second:
        await fill(first, 8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill, first, 10, 20)
            nursery.start_soon(fill, second, 10, 40)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.flush)
                nursery.start_soon(second.flush)
    async with open_test_memory(index=SMALL) as memory:
        await memory.warm_up()
        await engine(memory, "lancedb")
        await memory.flush()
        for number in (25, 45):
            assert await best(memory, f"item{number} box") == (
                f"Box {number} holds item{number}.",
                ("vector", "text"),
                (),
            )
    assert len(ids_in_truth(tmp_path)) == 28
    assert ids_on_disk(tmp_path / "lancedb") == ids_in_truth(tmp_path)


@pytest.mark.parametrize("policy", [IndexPolicy(uses_child=False), SMALL, INDEXED])
async def test_many_are_looked_up_at_once_as_one_by_one(open_test_memory: OpenMemory, policy: IndexPolicy) -> None:
    async with open_test_memory(index=policy) as memory:
        await fill(memory, 90)
        secret = Provenance(channel_id="chat:dm'ann", user_id="ann", is_direct=True)
        hidden = await memory.save(NewMemory(content="Box 3 holds item3 of gold.", provenance=secret))
        await memory.flush()
        index = memory._index
        ids = [MemoryId(key) for (key,) in await memory._database.read(
            lambda c: [tuple(row) for row in c.execute("SELECT id FROM memories ORDER BY seq")]
        )]  # fmt: skip
        vectors = await index.vectors([*ids, "00000000-0000-0000-0000-000000000000"])
        assert set(vectors) == set(ids)
        many = await index.nearest_many([*ids, MemoryId("unknown")], ROOM, limit=4)
        assert many[-1] == ()
        for key, found in zip(ids, many, strict=False):
            alone = (await index.nearest(vectors[key], ROOM, limit=5)).neighbours
            assert [near.id for near in found] == [near.id for near in alone if near.id != key][:4]
            assert hidden.memory.id not in {near.id for near in found}
        assert hidden.memory.id in {near.id for near in (await index.nearest_many(ids[3:4], ANN, limit=1))[0]}
        by_vector = await index.nearest_many(np.stack([vectors[key] for key in ids[:3]]), EVERYTHING, limit=1)
        assert [row[0].id for row in by_vector] == ids[:3]
        assert await index.nearest_many([], Viewer(), limit=3) == []
