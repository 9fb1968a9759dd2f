"""Recall over a whole memory: neighbours, people, days, who may be found by whom, and why."""

import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError
from spacebot.base.paths import package_file
from spacebot.memory.memory import AgentMemory
from spacebot.memory.search import Fusion, SearchPolicy
from spacebot.memory.types import Hit, MemoryType, NewMemory, Provenance, Query, Viewer
from spacebot.storage.database import open_database
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")
ANN = Provenance(channel_id="chat:dm:ann", user_id="ann", is_direct=True)
BOB = Provenance(channel_id="chat:dm:bob", user_id="bob", is_direct=True)
TALK = (
    "Ann: Where did you buy the blue kayak?",
    "Bob: At the harbour market, two weeks ago.",
    "Ann: Lucky you!",
    "Bob: I paddle every morning.",
)


async def fill(memory: AgentMemory, *lines: str, provenance: Provenance = ROOM, **fields: object) -> None:
    for line in lines:
        await memory.save(NewMemory(content=line, provenance=provenance, **fields))  # type: ignore[arg-type]


async def found(memory: AgentMemory, text: str, viewer: Viewer = ROOM.viewer, **fields: object) -> dict[str, Hit]:
    result = await memory.recall(Query(viewer=viewer, text=text, **fields))  # type: ignore[arg-type]
    return {hit.memory.content: hit for hit in result.hits}


async def test_an_answer_is_found_by_the_question_before_it(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await fill(memory, *(f"Ann: filler {number} about other things" for number in range(30)))
        await fill(memory, *TALK)
        hits = await found(memory, "Where was the blue kayak bought?", limit=3)
    assert "Bob: At the harbour market, two weeks ago." in hits


async def test_private_words_lead_nobody_to_a_shared_memory(open_test_memory: OpenMemory) -> None:
    """The neighbour of a private memory is not found by its words, and its speaker is nobody's known person."""
    async with open_test_memory() as memory:
        shared = Provenance(channel_id=ANN.channel_id, user_id="ann")
        await fill(memory, "Zoe: My diagnosis is migraine.", "Zoe: It is bad.", "Zoe: Really bad.", provenance=ANN)
        await fill(memory, "The weather is fine.", provenance=shared)
        await fill(memory, "Zoe: Nobody knows of my diagnosis.", provenance=ANN)
        as_bob = await memory.recall(Query(viewer=BOB.viewer, text="What diagnosis does Zoe have?", limit=50))
        as_room = await memory.recall(Query(viewer=ROOM.viewer, text="What diagnosis does Zoe have?", limit=50))
        as_ann = await found(memory, "What diagnosis does Zoe have?", ANN.viewer)

    for result in (as_bob, as_room):
        assert [hit.memory.content for hit in result.hits] == ["The weather is fine."]
        assert "text" not in result.hits[0].legs
        assert "diagnosis" not in result.hits[0].why
    assert "Zoe: My diagnosis is migraine." in as_ann


async def test_a_type_filter_holds_for_neighbours_too(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await fill(memory, TALK[0], memory_type=MemoryType.TODO)
        await fill(memory, *TALK[1:])
        assert list(await found(memory, "blue kayak", memory_type=MemoryType.TODO, limit=50)) == [TALK[0]]


@pytest.mark.parametrize("policy", [SearchPolicy(), SearchPolicy(fusion=Fusion.RRF)])
async def test_who_said_it_counts_in_either_form(open_test_memory: OpenMemory, policy: SearchPolicy) -> None:
    async with open_test_memory(search=policy) as memory:
        for text in ("I sailed to Malta in a storm.", "Sailed twice this summer.", "My boat sailed home alone."):
            await fill(memory, text, provenance=Provenance(channel_id="c", source="Carla"))
        for text in ("We sailed around an island.", "Grandpa sailed as a cook.", "I never sailed before May."):
            await fill(memory, f"Dora: {text}", provenance=Provenance(channel_id="c"))
        carla = list((await found(memory, "Where has Carla sailed?", limit=3)).values())
        dora = list((await found(memory, "Where has Dora sailed?", limit=3)).values())
    assert {hit.memory.source for hit in carla} == {"Carla"}
    assert all(hit.memory.content.startswith("Dora") for hit in dora)


async def test_what_is_brought_in_keeps_its_day(open_test_memory: OpenMemory) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    async with open_test_memory(clock=Clock(lambda: now)) as memory:
        for month in (1, 5, 9):
            await fill(
                memory, f"Ann: Meeting number {month} was fine.", created_at=datetime(2023, month, 7, 9, tzinfo=UTC)
            )
        hits = list((await found(memory, "How was the meeting in May 2023?")).values())
        naive = (await memory.save(NewMemory(content="x", created_at=datetime(2020, 1, 1)))).memory  # noqa: DTZ001
        with pytest.raises(RefusedError):
            await memory.save(NewMemory(content="y", created_at=now + timedelta(days=2)))
    assert hits[0].memory.created_at == datetime(2023, 5, 7, 9, tzinfo=UTC)
    assert "of 2023-05-07" in hits[0].why
    assert naive.created_at == datetime(2020, 1, 1, tzinfo=UTC)


async def test_a_hit_says_why_it_was_found(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await fill(memory, "The kayak is blue.", "The tent is green.")
        (first, *_) = (await found(memory, "Which kayak was painted?")).values()
    assert first.why.startswith("words: kayak; meaning 0.")
    assert 0 < first.score <= 1


async def test_forgotten_sources_and_words_are_gone(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        saved = await memory.save(
            NewMemory(content="Tea is ready.", provenance=Provenance(channel_id="c", source="Quentin"))
        )
        assert (await found(memory, "Quentin"))["Tea is ready."].legs[-1] == "text"
        await memory.forget(saved.memory.id)
        assert await found(memory, "Quentin tea") == {}
    with sqlite3.connect(tmp_path / "spacebot.db") as connection:
        assert (
            connection.execute("SELECT rowid FROM memories_fts WHERE memories_fts MATCH 'quentin OR tea'").fetchall()
            == []
        )
        connection.execute("DELETE FROM memories")
        connection.execute("INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")
    connection.close()


async def test_rows_of_an_older_program_get_their_places_and_sources(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    for file in sorted(package_file("storage", "sql").glob("*.sql")):
        if file.name < "0004":
            shutil.copy(file, older)
    path = tmp_path / "old.db"
    async with open_database(path, older):
        pass
    with sqlite3.connect(path) as connection:
        for number, (channel, private, gone) in enumerate(
            [("a", 0, 0), ("b", 0, 0), ("a", 0, 1), ("a", 1, 0), ("a", 0, 0)]
        ):
            connection.execute(
                "INSERT INTO memories (id, content, fingerprint, memory_type, source, channel_id, is_private, "
                "forgotten, created_at, updated_at, last_accessed_at) "
                "VALUES (?, 'words', ?, 'fact', 'Quentin', ?, ?, ?, '', '', '')",
                (str(number), str(number), channel, private, gone),
            )
    connection.close()
    async with open_database(path, package_file("storage", "sql")) as database:
        rows = await database.read(lambda c: c.execute("SELECT place FROM memories ORDER BY seq").fetchall())
        named = await database.read(
            lambda c: c.execute("SELECT rowid FROM memories_fts WHERE memories_fts MATCH 'source : quentin'").fetchall()
        )
        await database.write(
            lambda c: c.execute(
                "INSERT INTO memories (id, content, fingerprint, memory_type, channel_id, created_at, updated_at, "
                "last_accessed_at) VALUES ('new', 'x', 'x', 'fact', 'a', '', '', '')"
            )
        )
        (last,) = await database.read(lambda c: c.execute("SELECT place FROM memories WHERE id = 'new'").fetchone())
    assert [row["place"] for row in rows] == [1, 1, 2, 1, 3]
    assert [row[0] for row in named] == [1, 2, 4, 5]
    assert last == 4


@pytest.mark.parametrize("policy", [SearchPolicy(), SearchPolicy(fusion=Fusion.RRF, neighbours=False, rrf_k=60)])
@pytest.mark.parametrize(
    "text",
    ['NEAR("a" b) OR content:x* -y ^z', "^\" ' ; --", "💥 שלום \u202edrow", "Kayak " * 10_000, "(", "Ann's " * 50],
)
async def test_any_question_can_be_asked(open_test_memory: OpenMemory, policy: SearchPolicy, text: str) -> None:
    async with open_test_memory(search=policy) as memory:
        await fill(memory, *TALK)
        result = await memory.recall(Query(viewer=ROOM.viewer, text=text))
    assert result.notes == ()
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
    assert all(first.score >= second.score for first, second in zip(result.hits, result.hits[1:], strict=False))
