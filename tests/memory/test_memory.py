"""An agent's memory through its own face: save, recall, forget, who may see what, restart."""

import sqlite3
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import new_uuid
from spacebot.base.paths import bundled_model
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.memory.memory import LATER_FIRST_S, AgentMemory
from spacebot.memory.types import (
    EVERYTHING,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    Query,
    RelationType,
    SavedMemory,
    SearchMode,
    SortBy,
    Viewer,
)
from tests.fakes.fake_embedder import FakeEmbedder
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")
ANN = Provenance(channel_id="chat:dm:ann", user_id="ann", is_direct=True)
ANN_ELSEWHERE = Provenance(channel_id="chat:dm:ann2", user_id="ann", is_direct=True)
BOB = Provenance(channel_id="chat:dm:bob", user_id="bob", is_direct=True)
OTHER_ANN = Provenance(channel_id="mail:dm:9", user_id="ann", is_direct=True)


async def save(memory: AgentMemory, content: str, provenance: Provenance = ROOM, **fields: object) -> SavedMemory:
    return await memory.save(NewMemory(content=content, provenance=provenance, **fields))  # type: ignore[arg-type]


async def found(memory: AgentMemory, text: str, viewer: Viewer = ROOM.viewer, **fields: object) -> list[str]:
    result = await memory.recall(Query(viewer=viewer, text=text, **fields))  # type: ignore[arg-type]
    assert not result.notes
    return [hit.memory.content for hit in result.hits]


async def test_what_was_saved_is_found_at_once_by_its_words(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "The staging database is PostgreSQL 16.")
        await save(memory, "Lunch is at noon.")
        result = await memory.recall(Query(viewer=ROOM.viewer, text="which databases are there?"))

    assert result.hits[0].memory.content == "The staging database is PostgreSQL 16."
    assert result.hits[0].legs[:2] == ("vector", "text")
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))


@pytest.mark.skipif(not (bundled_model() / "model.onnx").is_file(), reason="the model is not built")
async def test_the_real_model_finds_by_meaning(open_test_memory: OpenMemory) -> None:
    async with open_test_memory(embedder=OnnxEmbedder()) as memory:
        for content in (
            "Maria's dog is called Rex.",
            "The invoice is due on Friday.",
            "We deploy from the main branch.",
        ):
            await save(memory, content)
        assert (await found(memory, "What pet does she own?"))[0] == "Maria's dog is called Rex."
        assert (await found(memory, "when must we pay"))[0] == "The invoice is due on Friday."


async def test_memories_survive_a_restart(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        first = await save(memory, "The mascot is a red panda.")
        second = await save(memory, "The mascot has a hat.", associations=(NewAssociation(target_id=first.memory.id),))
    async with open_test_memory() as memory:
        assert (await found(memory, "red panda"))[0] == "The mascot is a red panda."
        (edge,) = await memory.associations(second.memory.id)
        assert (edge.target_id, edge.relation_type) == (first.memory.id, RelationType.RELATED_TO)


async def test_a_direct_chat_is_private_and_a_room_is_not(open_test_memory: OpenMemory) -> None:
    """The complaint about other agents: what one person told in private comes up with another one."""
    async with open_test_memory() as memory:
        await save(memory, "Ann plans to quit her job.", ANN)
        await save(memory, "The job board is public.", ROOM)

        for viewer in (
            ROOM.viewer,
            BOB.viewer,
            OTHER_ANN.viewer,
            Viewer(),
            Viewer(channel_id="chat:room", user_id="ann"),
        ):
            assert await found(memory, "job quit", viewer) == ["The job board is public."]
        for viewer in (ANN.viewer, ANN_ELSEWHERE.viewer, EVERYTHING):
            assert set(await found(memory, "job quit", viewer)) == {
                "Ann plans to quit her job.",
                "The job board is public.",
            }


@pytest.mark.parametrize("mode", [SearchMode.RECENT, SearchMode.IMPORTANT, SearchMode.TYPED])
async def test_listings_hide_private_memories_too(open_test_memory: OpenMemory, mode: SearchMode) -> None:
    async with open_test_memory() as memory:
        await save(memory, "Ann is ill.", ANN, importance=1.0)
        result = await memory.recall(Query(viewer=BOB.viewer, mode=mode, memory_type=MemoryType.FACT))
        assert (result.hits, result.total_found) == ((), 0)
        assert len((await memory.recall(Query(viewer=ANN.viewer, mode=mode, memory_type=MemoryType.FACT))).hits) == 1


async def test_private_memories_are_out_of_reach_by_id_link_and_context(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        secret = (await save(memory, "Ann is the author.", ANN, memory_type=MemoryType.IDENTITY)).memory
        public = await save(
            memory,
            "The author is unknown.",
            ROOM,
            associations=(NewAssociation(target_id=secret.id, relation_type=RelationType.UPDATES),),
        )
        assert public.skipped_associations == (secret.id,)
        await save(memory, "Ann is fond of riddles.", ANN, associations=(NewAssociation(target_id=public.memory.id),))

        assert await memory.forget(secret.id, viewer=BOB.viewer) is None
        with pytest.raises(NotFoundError):
            await memory.get(secret.id, BOB.viewer)
        assert await memory.context(10, ROOM.viewer) == ()
        assert await memory.context(10, ANN.viewer) == (secret,)
        assert await memory.associations(public.memory.id, ROOM.viewer) == []
        assert await found(memory, "author") == ["The author is unknown."]
        assert (await memory.get(secret.id, ANN.viewer)).content == "Ann is the author."


async def test_private_talk_does_not_lower_what_a_room_knows(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        public = (await save(memory, "The launch is on Monday.")).memory
        edge = NewAssociation(target_id=public.id, relation_type=RelationType.UPDATES)
        await save(memory, "The launch is on Tuesday.", ANN, associations=(edge,))
        assert (await memory.get(public.id)).importance == public.importance
        before = await memory.recall(Query(viewer=ROOM.viewer, text="launch"))
        as_ann = await memory.recall(Query(viewer=ANN.viewer, text="launch"))

    assert [hit.memory.id for hit in before.hits] == [public.id]
    assert as_ann.hits[0].memory.content == "The launch is on Tuesday."


async def test_a_forgotten_memory_is_gone_from_every_read(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        saved = (await save(memory, "The door code is blue.", memory_type=MemoryType.IDENTITY)).memory
        assert await memory.context(5, ROOM.viewer) == (saved,)
        assert (await memory.forget(saved.id, "wrong")) is not None
        assert await memory.forget(saved.id) is None

        assert await found(memory, "door code") == []
        assert await found(memory, "", mode=SearchMode.RECENT) == []
        assert await memory.context(5, ROOM.viewer) == ()
        stats = await memory.stats()
    assert (stats.total, stats.embedded) == (0, 0)


async def test_the_same_words_are_kept_once_in_a_scope(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        first = await save(memory, "Tea is preferred.")
        again = await save(memory, "  tea is   PREFERRED. ", importance=0.9)
        private = await save(memory, "Tea is preferred.", ANN)

        assert (again.is_new, again.memory.id) == (False, first.memory.id)
        assert again.memory.importance == 0.9
        assert private.is_new
        assert (await memory.stats()).total == 2


async def test_a_nearly_equal_fact_updates_the_older_one(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        text = "the weekly meeting of the whole data team takes place in room seven every single {} at nine"
        old = await save(memory, text.format("monday"))
        new = await save(memory, text.format("friday"))
        (edge,) = new.auto_associations

        assert (edge.target_id, edge.relation_type) == (old.memory.id, RelationType.UPDATES)
        assert edge.weight > 0.8
        assert (await memory.get(old.memory.id)).importance < old.memory.importance
        assert (await found(memory, "weekly meeting monday friday"))[0] == new.memory.content


async def test_links_lead_to_memories_that_share_no_word(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        cause = await save(memory, "Cookies were rejected since phones drop them.")
        middle = await save(memory, "Zebra.", associations=(NewAssociation(target_id=cause.memory.id),))
        await save(memory, "JWT tokens it is.", associations=(NewAssociation(target_id=middle.memory.id),))
        for number in range(60):
            await save(memory, f"filler {number} text {number}")
        result = await memory.recall(Query(viewer=ROOM.viewer, text="JWT tokens", limit=50))

    by_content = {hit.memory.content: hit for hit in result.hits}
    assert "graph" in by_content["Zebra."].legs
    assert "graph" in by_content["Cookies were rejected since phones drop them."].legs


async def test_a_memory_without_a_vector_is_saved_found_and_embedded_later(
    open_test_memory: OpenMemory, mock_clock: trio.testing.MockClock
) -> None:
    embedder = FakeEmbedder()
    async with open_test_memory(embedder=embedder) as memory:
        embedder.fails = True
        saved = await save(memory, "The router is in the cellar.")
        assert not saved.is_embedded
        result = await memory.recall(Query(viewer=ROOM.viewer, text="router cellar"))
        assert [hit.legs for hit in result.hits] == [("text",)]
        assert "found by words only" in result.notes[0]

        embedder.fails = False
        for _ in range(1000):
            if result.hits[0].legs != ("vector", "text"):
                mock_clock.jump(60)
                result = await memory.recall(Query(viewer=ROOM.viewer, text="router cellar"))
    assert result.hits[0].legs == ("vector", "text")


async def test_another_model_means_new_vectors(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "The printer is out of toner.")
    async with open_test_memory(embedder=FakeEmbedder(64, "smaller")) as memory:
        with trio.fail_after(10):
            legs: tuple[str, ...] = ()
            while legs != ("vector", "text"):
                legs = (await memory.recall(Query(viewer=ROOM.viewer, text="printer toner"))).hits[0].legs


async def test_many_saves_at_once_are_all_found(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(save, memory, f"Locker {number} belongs to person{number}.", (ROOM, ANN)[number % 2])
                nursery.start_soon(save, memory, "Everybody saves this.")
        for number in (0, 1, 57, 99):
            assert (await found(memory, f"person{number}", ANN.viewer))[
                0
            ] == f"Locker {number} belongs to person{number}."
        assert (await memory.stats()).total == 101


async def test_a_cancelled_save_leaves_all_or_nothing(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        for steps in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(save, memory, f"Half done {new_uuid()}")
                for _ in range(steps % 7):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        stats = await memory.stats()
        result = await memory.recall(Query(viewer=ROOM.viewer, text="half done", limit=50))
    assert stats.total == stats.embedded == result.total_found
    assert all(hit.legs == ("vector", "text") for hit in result.hits)


@pytest.mark.parametrize(
    "evil",
    [
        "'; DROP TABLE memories; --",
        '" OR 1=1 --',
        "a' OR 'a'='a",
        'NEAR("x" *) content:*',
        "%_\\",
        "💥\u202e\x00 end",
        "{{7*7}}",
    ],
)
async def test_no_argument_reaches_a_query_language(open_test_memory: OpenMemory, evil: str) -> None:
    async with open_test_memory() as memory:
        await save(memory, "Ann hides a treasure.", ANN)
        attacker = Provenance(channel_id=evil, user_id=evil, message_id=evil, source=evil, is_direct=True)
        saved = await save(memory, evil, attacker, associations=(NewAssociation(target_id=evil),))
        assert saved.skipped_associations == (evil,)
        await memory.flush()

        assert "Ann hides a treasure." not in await found(memory, evil, attacker.viewer)
        assert "Ann hides a treasure." not in await found(memory, "treasure", attacker.viewer)
        assert await memory.forget(evil, evil) is None
        assert (await memory.stats()).total == 2
        assert (await memory.get(saved.memory.id, attacker.viewer)).source == evil


@pytest.mark.parametrize(
    "wrong",
    [
        NewMemory(content="  \n"),
        NewMemory(content="x" * 50_001),
        NewMemory(content="x", importance=1.5),
        NewMemory(content="x", importance=float("nan")),
        NewMemory(content="x", associations=(NewAssociation(target_id="x", weight=-1),)),
    ],
)
async def test_what_cannot_be_kept_is_refused(open_test_memory: OpenMemory, wrong: NewMemory) -> None:
    async with open_test_memory() as memory:
        with pytest.raises(RefusedError):
            await memory.save(wrong)
        assert (await memory.stats()).total == 0


async def test_secrets_are_not_remembered(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        saved = await save(memory, "The key is sk-ant-" + "a" * 40)
    assert "sk-ant" not in saved.memory.content


async def test_listings_have_their_order_and_positional_scores(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        for content, importance in (("a", 0.2), ("b", 0.9), ("c", 0.5)):
            await save(memory, content, importance=importance)
        assert await found(memory, "", mode=SearchMode.IMPORTANT) == ["b", "c", "a"]
        for _ in range(3):
            await found(memory, "c", limit=1)
        await memory.flush()
        typed = await memory.recall(
            Query(
                viewer=EVERYTHING,
                mode=SearchMode.TYPED,
                memory_type=MemoryType.FACT,
                sort_by=SortBy.MOST_ACCESSED,
                limit=2,
            )
        )
        assert await found(memory, "", mode=SearchMode.TYPED, memory_type=MemoryType.GOAL) == []
    assert (typed.hits[0].memory.content, typed.hits[0].rank, typed.hits[0].score) == ("c", 1, 1.0)
    assert (typed.hits[1].score, typed.total_found) == (0.5, 3)


async def test_a_type_filter_reaches_beyond_the_first_candidates(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "A todo about paint.", memory_type=MemoryType.TODO)
        async with trio.open_nursery() as nursery:
            for number in range(120):
                nursery.start_soon(save, memory, f"paint paint {number}")
        assert await found(memory, "paint", memory_type=MemoryType.TODO) == ["A todo about paint."]


async def test_the_prompt_gets_identity_first_and_stays_the_same(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "We chose Trio.", memory_type=MemoryType.DECISION)
        await save(memory, "It rained.", memory_type=MemoryType.EVENT)
        await save(memory, "My name is Spacebot.", memory_type=MemoryType.IDENTITY)
        await save(memory, "Ship in May.", memory_type=MemoryType.GOAL)
        block = await memory.context(10, ROOM.viewer)
        assert [item.content for item in block] == ["My name is Spacebot.", "Ship in May.", "We chose Trio."]
        assert await memory.context(10, ROOM.viewer) is block
        assert len(await memory.context(2, ROOM.viewer)) == 2


async def test_a_save_is_announced_without_private_words(open_test_memory: OpenMemory) -> None:
    events = EventBus()
    with events.subscribe(frozenset({EventKind.MEMORY_SAVED})) as seen:
        async with open_test_memory(events=events) as memory:
            await save(memory, "Public matter.")
            await save(memory, "Private matter.", ANN)
        first, second = await seen.receive(), await seen.receive()
    assert first is not None
    assert second is not None
    assert (first.fields["summary"], first.channel_id, first.agent_id) == ("Public matter.", "chat:room", "main")
    assert second.fields["summary"] is None


async def test_opening_and_closing_costs_no_library(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        assert (await memory.stats()).engine == "exact"
    assert not (tmp_path / "lancedb").exists()


async def test_a_full_disk_ends_no_background_task(
    open_test_memory: OpenMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    """A trigger stands for the disk: the vectors that were computed later cannot be written."""
    embedder = FakeEmbedder()
    embedder.fails = True
    async with open_test_memory(embedder=embedder) as memory:
        await save(memory, "The disk is full.")
    with sqlite3.connect(tmp_path / "spacebot.db") as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON embeddings BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    connection.close()
    embedder.fails = False
    async with open_test_memory(embedder=embedder) as memory:
        while "memories still without vectors" not in caplog.messages:
            await memory.stats()
        with sqlite3.connect(tmp_path / "spacebot.db") as connection:
            connection.execute("DROP TRIGGER full")
        connection.close()
        while not (await memory.stats()).embedded:
            mock_clock.jump(LATER_FIRST_S)
        (hit,) = (await memory.recall(Query(viewer=ROOM.viewer, text="disk full"))).hits
        assert hit.legs[:2] == ("vector", "text")
