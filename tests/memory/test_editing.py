"""Single memories changed by hand: words, vector, full text and edges stay in step; nothing private is told."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.events import EventBus, EventKind
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import (
    EVERYTHING,
    Memory,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    Query,
    RelationType,
    Viewer,
)
from tests.fakes.fake_embedder import FakeEmbedder
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")
ANN = Provenance(channel_id="chat:dm:ann", user_id="ann", is_direct=True)
BOB = Provenance(channel_id="chat:dm:bob", user_id="bob", is_direct=True)


async def save(memory: AgentMemory, content: str, provenance: Provenance = ROOM, **fields: Any) -> Memory:
    return (await memory.save(NewMemory(content=content, provenance=provenance, **fields))).memory


async def legs(memory: AgentMemory, text: str, viewer: Viewer = EVERYTHING, **fields: Any) -> dict[str, set[str]]:
    result = await memory.recall(Query(viewer=viewer, text=text, counts_as_access=False, **fields))
    return {hit.memory.content: set(hit.legs) for hit in result.hits}


def run_sql(tmp_path: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(tmp_path / "spacebot.db")
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.mark.spec("M-P05", "M-P06", "M-P07")
async def test_new_words_are_found_by_word_and_meaning_and_old_ones_are_not(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    async with open_test_memory() as memory:
        saved = await save(memory, "The router stands in the cellar.")
        await save(memory, "Zebras graze.")
        edited = await memory.edit(saved.id, content="A printer hums upstairs.")

        assert (edited.id, edited.created_at) == (saved.id, saved.created_at)
        assert edited.updated_at >= saved.updated_at
        assert (await legs(memory, "printer hums upstairs"))[edited.content] >= {"vector", "text"}
        assert "text" not in (await legs(memory, "router cellar")).get(edited.content, set())
        assert (await memory.save(NewMemory(content="the router stands in the cellar.", provenance=ROOM))).is_new
        assert not (await memory.save(NewMemory(content="a printer hums UPSTAIRS.", provenance=ROOM))).is_new
    assert run_sql(tmp_path, "SELECT count(*), count(DISTINCT memory_id) FROM embeddings") == [(3, 3)]
    async with open_test_memory() as memory:
        assert (await legs(memory, "printer hums upstairs"))["A printer hums upstairs."] >= {"vector", "text"}


async def test_edges_by_similarity_follow_the_words_and_a_model_s_edges_stay(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        cause = await save(memory, "Zebras graze.")
        shop = await save(memory, "the shop opens at 8 in the morning on weekdays")
        bank = await save(memory, "our bank closes at 4 in the afternoon in winter")
        edge = NewAssociation(target_id=cause.id, relation_type=RelationType.CAUSED_BY)
        saved = await save(memory, "the shop opens at 9 in the morning on weekdays", associations=(edge,))
        assert {e.target_id for e in await memory.associations(saved.id)} == {cause.id, shop.id}
        await memory.edit(saved.id, content="our bank closes at 5 in the afternoon in winter")
        assert {e.target_id for e in await memory.associations(saved.id)} == {cause.id, bank.id}


async def test_type_importance_and_permanence_change_without_the_words(open_test_memory: OpenMemory) -> None:
    embedder = FakeEmbedder()
    async with open_test_memory(embedder=embedder) as memory:
        saved = await save(memory, "We chose Trio.")
        calls = len(embedder.calls)
        edited = await memory.edit(saved.id, memory_type=MemoryType.IDENTITY, importance=0.95, permanent=True)
        assert len(embedder.calls) == calls
        assert (edited.memory_type, edited.importance, edited.permanent) == (MemoryType.IDENTITY, 0.95, True)
        assert await memory.context(5, ROOM.viewer) == (edited,)
        assert set(await legs(memory, "trio", memory_type=MemoryType.IDENTITY)) == {"We chose Trio."}
        assert await legs(memory, "trio", memory_type=MemoryType.FACT) == {}
        lowered = await memory.edit(saved.id, memory_type=MemoryType.FACT, permanent=False, importance=0.2)
        await memory.maintain()
        assert (await memory.get(saved.id)).importance == lowered.importance == 0.2


@pytest.mark.parametrize(
    "wrong", [{"content": "  "}, {"content": "x" * 50_001}, {"importance": 1.5}, {"importance": float("nan")}]
)
async def test_what_may_not_be_saved_may_not_be_edited_in(open_test_memory: OpenMemory, wrong: dict[str, Any]) -> None:
    async with open_test_memory() as memory:
        saved = await save(memory, "Something.")
        with pytest.raises(RefusedError):
            await memory.edit(saved.id, **wrong)
        assert await memory.get(saved.id) == saved


async def test_words_of_another_memory_are_refused_and_secrets_removed(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        first, second = await save(memory, "Tea is preferred."), await save(memory, "Coffee is preferred.")
        with pytest.raises(RefusedError, match=first.id):
            await memory.edit(second.id, content="tea is PREFERRED.")
        private = await save(memory, "Milk is preferred.", ANN)
        assert (await memory.edit(private.id, content="Tea is preferred.")).content == "Tea is preferred."
        edited = await memory.edit(second.id, content="The key is sk-ant-" + "a" * 40)
        assert "sk-ant" not in edited.content


@pytest.mark.spec("M-P33")
async def test_only_what_a_viewer_sees_can_be_changed_by_him(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        secret = await save(memory, "Ann is ill.", ANN)
        for attempt in (
            memory.edit(secret.id, content="Ann is well.", viewer=BOB.viewer),
            memory.delete(secret.id, viewer=ROOM.viewer),
            memory.edit("' OR 1=1 --", content="x"),
            memory.delete("' OR 1=1 --"),
            memory.unforget(secret.id),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        await memory.forget(secret.id)
        with pytest.raises(NotFoundError):
            await memory.unforget(secret.id, viewer=BOB.viewer)
        assert (await memory.unforget(secret.id, viewer=ANN.viewer)).content == "Ann is ill."


@pytest.mark.spec("M-P06")
async def test_a_deleted_memory_leaves_nothing_behind(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        saved = await save(memory, "The door code is blue.")
        await save(memory, "Plover.", associations=(NewAssociation(target_id=saved.id),))
        hidden = await save(memory, "The safe code is red.")
        await memory.forget(hidden.id)
        for item in (saved, hidden):
            await memory.delete(item.id)
            with pytest.raises(NotFoundError):
                await memory.delete(item.id)
        assert set(await legs(memory, "door safe code")) <= {"Plover."}
    assert run_sql(tmp_path, "SELECT count(*) FROM associations") == [(0,)]
    assert run_sql(tmp_path, "SELECT content FROM memories") == [("Plover.",)]
    assert run_sql(tmp_path, "SELECT rowid FROM memories_fts WHERE memories_fts MATCH 'code'") == []
    assert "code" not in str(run_sql(tmp_path, "SELECT summary, details FROM cortex_events"))


async def test_a_forgotten_memory_comes_back_as_it_was(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        saved = await save(memory, "The door code is blue.", memory_type=MemoryType.IDENTITY)
        await memory.forget(saved.id, "wrong")
        assert await memory.context(5, ROOM.viewer) == ()
        back = await memory.unforget(saved.id)
        assert (back.content, back.importance, back.id) == (saved.content, saved.importance, saved.id)
        assert await memory.context(5, ROOM.viewer) == (back,)
        assert (await legs(memory, "door code"))[saved.content] >= {"vector", "text"}

        await memory.forget(saved.id)
        again = await save(memory, "The door code is blue.")
        with pytest.raises(RefusedError, match=again.id):
            await memory.unforget(saved.id)


@pytest.mark.spec("M-P07")
async def test_without_the_model_words_change_at_once_and_meaning_later(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    embedder = FakeEmbedder()
    async with open_test_memory(embedder=embedder) as memory:
        saved = await save(memory, "The router stands in the cellar.")
        embedder.fails = True
        await memory.edit(saved.id, content="A printer hums upstairs.")
        embedder.fails = False
        assert await legs(memory, "printer upstairs") == {"A printer hums upstairs.": {"text"}}
        assert await legs(memory, "router cellar") == {}
        assert run_sql(tmp_path, "SELECT count(*) FROM embeddings") == [(0,)]
    async with open_test_memory() as memory:
        while not (await memory.stats()).embedded:
            pass
        assert (await legs(memory, "printer upstairs"))["A printer hums upstairs."] >= {"text"}


@pytest.mark.spec("M-P24")
async def test_every_change_is_told_without_words(open_test_memory: OpenMemory) -> None:
    events = EventBus()
    with events.subscribe(frozenset({EventKind.MEMORY_CHANGED})) as seen:
        async with open_test_memory(events=events) as memory:
            saved = await save(memory, "Ann is ill.", ANN)
            await memory.edit(saved.id, content="Ann is well.")
            await memory.forget(saved.id)
            await memory.unforget(saved.id)
            await memory.delete(saved.id)
        told = list(iter(seen.receive_nowait, None))
    assert [event.fields["what"] for event in told] == ["edited", "forgotten", "restored", "deleted"]
    assert all(event.fields["memory_id"] == saved.id and event.fields["is_private"] for event in told)
    assert "Ann is" not in str([event.to_json_object() for event in told])
