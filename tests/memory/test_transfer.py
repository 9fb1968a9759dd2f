"""What is exported comes back to the byte; what is not right changes nothing; what was cut goes on."""

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory import transfer as module
from spacebot.memory.lines import LineError, parse_line
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.transfer import ImportReport, MemoryTransfer, Progress
from spacebot.memory.types import EVERYTHING, MemoryType, NewMemory, Provenance, Query, SearchMode, Viewer
from spacebot.storage.database import Database, open_database
from tests.fakes.fake_embedder import FakeEmbedder

ID = "123e4567-e89b-42d3-a456-42661417400"  # and one more digit


class Store:
    """A memory with the tools of its owner."""

    def __init__(self, database: Database, memory: AgentMemory, embedder: FakeEmbedder) -> None:
        self.database = database
        self.memory = memory
        self.embedder = embedder
        self.transfer = MemoryTransfer(database, memory, embedder, Clock())

    async def take(self, *lines: dict[str, Any], **options: Any) -> ImportReport:
        return await self.transfer.import_file(io.BytesIO(as_bytes(*lines)), **options)

    async def everything(self, *, private: bool = True) -> bytes:
        async with self.transfer.export(private=private) as (_, pieces):
            return b"".join([piece async for piece in pieces])

    async def contents(self) -> list[str]:
        result = await self.memory.recall(Query(viewer=EVERYTHING, mode=SearchMode.RECENT, limit=1000))
        return sorted(hit.memory.content for hit in result.hits)


@asynccontextmanager
async def open_store(folder: Path) -> AsyncIterator[Store]:
    folder.mkdir(exist_ok=True)
    embedder = FakeEmbedder()
    async with (
        open_database(folder / "s.db", package_file("storage", "sql")) as database,
        open_memory(database, folder / "l", embedder=embedder, events=EventBus(), agent_id="main") as memory,
    ):
        yield Store(database, memory, embedder)


def as_bytes(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


async def fill(store: Store, count: int) -> None:
    """Memories of all kinds, forgotten and private ones, and edges among them."""
    for number in range(count):
        is_direct = number % 4 == 0
        origin = Provenance(
            channel_id=f"x:{number % 3}", user_id="u", message_id="m", is_direct=is_direct, source="talk"
        )
        saved = await store.memory.save(
            NewMemory(
                content=f"cat {number} likes {'fish' if number % 2 else 'milk'} 😀 \u202e café\nsecond line",
                memory_type=list(MemoryType)[number % 8],
                importance=number / 1000,
                provenance=origin,
                subject="x:somebody" if number % 5 == 0 else None,
                permanent=number % 7 == 0,
            )
        )
        if number % 6 == 0:
            await store.memory.forget(saved.memory.id, 'because "so"')


@pytest.mark.spec("M-P16")
async def test_an_export_comes_back_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    monkeypatch.setattr(module, "BATCH", 5)
    async with open_store(tmp_path / "a") as store:
        await fill(store, 40)
        first = await store.everything()
        shared = await store.everything(private=False)
    async with open_store(tmp_path / "b") as store:
        report = await store.transfer.import_file(io.BytesIO(first))
        second = await store.everything()
        stats = await store.memory.stats()
        found = await store.memory.recall(Query(viewer=Viewer(channel_id="x:1"), text="cat 13"))
    lines = [json.loads(line) for line in first.splitlines()]
    assert first == second
    assert lines[0]["memories"] == 40
    assert (report.memories, report.associations) == (40, lines[0]["associations"])
    assert report.associations > 0
    assert any(line.get("forgotten") for line in lines)
    assert stats.embedded == stats.total  # those that live have their vectors
    assert found.hits[0].memory.content.startswith("cat 13 ")

    public = [json.loads(line) for line in shared.splitlines()[1:]]
    ids = {line["id"] for line in public if "content" in line}
    assert not any(line.get("is_private") for line in public)
    assert all({line["source_id"], line["target_id"]} <= ids for line in public if "source_id" in line)


async def test_an_export_is_of_one_moment_although_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 3)
    async with open_store(tmp_path) as store:
        await fill(store, 20)
        before = await store.everything()
        async with store.transfer.export(private=True) as (_, pieces):
            parts = []
            async for piece in pieces:
                parts.append(piece)
                await store.memory.save(NewMemory(content=f"meanwhile {len(parts)}"))
                await store.database.write(lambda c: c.execute("DELETE FROM associations"))
        assert b"".join(parts) == before
        assert await store.everything() != before


async def test_a_line_needs_its_content_only(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        report = await store.take({"content": "  Ann has a cat\0 "}, {"content": "old", "created_at": "2001-02-03"})
        exported = [json.loads(line) for line in (await store.everything()).splitlines()][1:]
    assert report.memories == 2
    assert [line["content"] for line in exported] == ["Ann has a cat", "old"]
    assert (exported[0]["memory_type"], exported[0]["importance"]) == ("fact", 0.6)
    assert exported[1]["created_at"] == "2001-02-03T00:00:00.000Z"
    assert exported[1]["last_accessed_at"] > "2020"  # so that it does not fade at once


async def test_what_is_known_is_passed_over_without_embedding_it_again(tmp_path: Path) -> None:
    lines = [{"content": f"number {n}"} for n in range(10)]
    async with open_store(tmp_path) as store:
        await store.memory.save(NewMemory(content="Number  3"))
        report = await store.take(*lines, {"content": "number 4"}, {"content": "number 5", "id": f"{ID}1"})
        assert (report.memories, report.known) == (10, 2)
        store.embedder.calls.clear()
        again = await store.take(*lines, {"content": "number 4"}, {"content": "number 5", "id": f"{ID}1"})
        assert (again.memories, again.known) == (0, 12)
        assert store.embedder.calls == []


async def test_the_same_words_in_another_scope_are_another_memory(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        private = {"content": "the code is 7", "is_private": True, "channel_id": "x:1", "owner": "x:ann"}
        report = await store.take(
            {"content": "the code is 7"}, private, private | {"channel_id": "x:2", "owner": "x:ben"}
        )
        assert report.memories == 3
        seen = await store.memory.recall(
            Query(viewer=Viewer(channel_id="x:1", user_id="ann", is_direct=True), text="code 7")
        )
        assert len(seen.hits) == 2


async def test_edges_follow_a_memory_that_the_store_has_under_another_id(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        there = (await store.memory.save(NewMemory(content="Ann has a cat"))).memory.id
        report = await store.take(
            {"content": "Ann has a cat", "id": f"{ID}1"},
            {"content": "It is called Mia", "id": f"{ID}2"},
            {"source_id": f"{ID}2", "target_id": f"{ID}1", "relation_type": "part_of", "weight": 0.75},
            {"source_id": f"{ID}2", "target_id": there},
        )
        (strong, weak) = await store.memory.associations(f"{ID}2")
    assert (report.memories, report.known, report.associations) == (1, 1, 2)
    assert (strong.target_id, strong.relation_type, strong.weight) == (there, "part_of", 0.75)
    assert weak.target_id == there


async def test_an_import_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    async with open_store(tmp_path / "a") as store:
        await fill(store, 40)
        whole = await store.everything()
    async with open_store(tmp_path / "b") as store:
        with trio.CancelScope() as scope:

            def cut(progress: Progress) -> None:
                if progress.phase == "importing" and progress.done >= 15:
                    scope.cancel()

            await store.transfer.import_file(io.BytesIO(whole), on_progress=cut)
        assert scope.cancelled_caught
        assert 15 <= (await store.transfer.import_file(io.BytesIO(whole))).known < 40
        assert await store.everything() == whole


async def test_without_the_model_memories_come_and_their_vectors_later(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        store.embedder.fails = True
        report = await store.take({"content": "the moon is far"}, {"content": "gone", "forgotten": True})
        assert (report.memories, report.not_embedded) == (2, 1)
        assert (await store.memory.recall(Query(viewer=EVERYTHING, text="moon"))).hits


async def test_a_full_disk_leaves_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    lines = [{"content": f"number {n}"} for n in range(20)]
    async with open_store(tmp_path) as store:
        await store.database.write(
            lambda c: c.execute(
                "CREATE TRIGGER full BEFORE INSERT ON memories WHEN new.content = 'number 12' "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        )
        with pytest.raises(StorageError, match="full"):
            await store.take(*lines)
        assert len(await store.contents()) == 10
        await store.database.write(lambda c: c.execute("DROP TRIGGER full"))
        assert (await store.take(*lines)).memories == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "holds no memory"),
        (b"\n \n", "holds no memory"),
        (b"hello\n", "line 1: it is not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"\xff\xfe\x00\n", "not UTF-8"),
        (b'{"content": "a"}\n{"content": "b"', "line 2.*was it cut off"),
        (b'{"content": ""}\n', "content is empty"),
        (b'{"content": "\\u0000 "}\n', "content is empty"),
        (b'{"content": 5}\n', "which is a text"),
        (b'{"memory_type": "fact"}\n', "needs a content"),
        (b'{"content": "a", "memory_type": "fakt"}\n', "memory_type.*must be one of fact, preference"),
        (b'{"content": "a", "memory_typ": "fact"}\n', "'?\"memory_typ\"'? is unknown"),
        (b'{"content": "a", "importance": NaN}\n', "NaN is no number"),
        (b'{"content": "a", "importance": -Infinity}\n', "is no number"),
        (b'{"content": "a", "importance": 1e999}\n', "from 0 to 1"),
        (b'{"content": "a", "importance": 1' + b"0" * 400 + b"}\n", "from 0 to 1"),
        (b'{"content": "a", "importance": true}\n', "from 0 to 1"),
        (b'{"content": "a", "access_count": 1' + b"0" * 5000 + b"}\n", "line 1"),
        (b'{"content": "a", "access_count": 1.5}\n', "whole number"),
        (b'{"content": "a", "access_count": -1}\n', "whole number"),
        (b'{"content": "a", "is_private": 1}\n', "true or false"),
        (b'{"content": "a", "created_at": "yesterday"}\n', "must be a moment"),
        (b'{"content": "a", "created_at": 5}\n', "must be a moment"),
        (b'{"content": "a", "created_at": "0001-01-01T00:00:00+23:59"}\n', "created_at"),
        (b'{"content": "a", "created_at": "0999-01-01"}\n', "before the year 1000"),
        (b'{"content": "a", "id": "7"}\n', "must look like"),
        (b'{"content": "a", "id": "\' OR 1=1"}\n', "must look like"),
        (b'{"content": "a", "source": ["x"]}\n', "must be a text"),
        (b'{"content": "' + b"x" * 50_001 + b'"}\n', "longer than 50000 bytes"),
        (b'{"content": "' + b"x" * 1_000_001 + b'"}\n', "longer than 1000000 bytes"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (as_bytes({"content": "a", "id": f"{ID}1"}, {"content": "b", "id": f"{ID}1"}), "line 2.*stands in line 1"),
        (as_bytes({"content": "a"}, {"source_id": f"{ID}1", "target_id": f"{ID}2"}), "line 2.*neither in this file"),
        (as_bytes({"content": "a"}, {"source_id": f"{ID}1", "target_id": f"{ID}1"}), "to itself"),
        (as_bytes({"source_id": f"{ID}1"}), "needs source_id and target_id"),
        (
            as_bytes({"source_id": f"{ID}1", "target_id": f"{ID}2", "relation_type": "likes"}),
            "must be one of related_to",
        ),
        (as_bytes({"source_id": f"{ID}1", "target_id": f"{ID}2", "weight": 2}), "from 0 to 1"),
        (as_bytes({"format": "spacebot-memory", "version": 2}), "update the program"),
        (as_bytes({"format": "spacebot-memory", "version": "1"}), "whole number from 1"),
        (as_bytes({"format": "other", "version": 1}), "another program"),
        (as_bytes({"content": "a"}, {"format": "spacebot-memory", "version": 1}), "second header"),
        (as_bytes({"format": "spacebot-memory", "version": 1, "memories": 2}, {"content": "a"}), "promises 2 memories"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, str) else "",
)
async def test_a_wrong_file_is_explained_and_changes_nothing(tmp_path: Path, text: bytes, says: str) -> None:
    async with open_store(tmp_path) as store:
        for dry_run in (True, False):
            with pytest.raises(RefusedError, match=f"(?s)nothing was imported.*{says}") as refused:
                await store.transfer.import_file(io.BytesIO(text), dry_run=dry_run)
            assert len(str(refused.value)) < 4000
        assert await store.contents() == []
        assert store.embedder.calls == []


async def test_many_faults_are_told_at_once_and_not_for_ever(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        with pytest.raises(RefusedError) as refused:
            await store.take(*[{"content": "a", "memory_type": "fakt"}] * 5000)
    lines = str(refused.value).splitlines()
    assert lines[1].startswith("line 1: ")
    assert len(lines) == module.MAX_FAULTS + 2


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        report = await store.take({"content": "a"}, {"content": "b", "id": f"{ID}1"}, dry_run=True)
        assert (report.memories, report.is_dry_run) == (2, True)
        assert await store.contents() == []


async def test_secrets_do_not_come_in_with_a_file(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.take({"content": "the key is sk-ant-api03-" + "a1B2" * 24})
        assert "a1B2a1B2" not in (await store.contents())[0]


async def test_a_memory_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.take({"content": "one", "id": f"{ID}1"}, {"content": "two", "id": f"{ID}2", "forgotten": True})
        assert await store.transfer.resolve(f"{ID}1".upper()) == f"{ID}1"
        assert await store.transfer.resolve(f" {ID}2 ") == f"{ID}2"
        with pytest.raises(RefusedError, match=r"(?s)several memories.*one.*two"):
            await store.transfer.resolve("123e")
        for wrong in ("", "123", "12_4", "123%", "' OR 1=1 --", "x" * 100, "123e\n"):
            with pytest.raises((RefusedError, NotFoundError)):
                await store.transfer.resolve(wrong)


def test_a_line_may_have_a_mark_of_its_encoding() -> None:
    assert parse_line(b'\xef\xbb\xbf{"content": "a"}\r\n') is not None
    with pytest.raises(LineError):
        parse_line(b"\x00")


async def test_the_sample_of_the_readme_is_right(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"```jsonl\n(.*?)```", readme, re.DOTALL)
    async with open_store(tmp_path) as store:
        report = await store.transfer.import_file(io.BytesIO(sample.encode()))
    assert report.memories == len(sample.splitlines())
