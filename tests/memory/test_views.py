"""What an owner sees of the memory: true totals, a walkable graph, and a history that adds up."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError
from spacebot.base.events import EventBus
from spacebot.base.ids import MemoryId
from spacebot.base.paths import package_file
from spacebot.memory.curation_log import CurationLog
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.types import (
    EVERYTHING,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    RelationType,
    SortBy,
    Viewer,
)
from spacebot.memory.views import BINS, Graph, MemoryViews, Standing
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder

NOW = datetime(2026, 3, 10, 22, 30, tzinfo=UTC)
ROOM = Provenance(channel_id="test:room", user_id="ann")
ANNS_CHAT = Provenance(channel_id="test:ann", user_id="ann", is_direct=True)


class World:
    """A memory, its views, and a clock that the test sets."""

    def __init__(self, memory: AgentMemory, views: MemoryViews, log: CurationLog, path: Path) -> None:
        self.memory = memory
        self.views = views
        self.log = log
        self.path = path

    async def learn(self, text: str, *targets: MemoryId, origin: Provenance = ROOM, **fields: object) -> MemoryId:
        new = NewMemory(
            content=text,
            provenance=origin,
            associations=tuple(
                NewAssociation(target_id=target, relation_type=RelationType.PART_OF, weight=0.9) for target in targets
            ),
            **fields,  # type: ignore[arg-type]
        )
        return (await self.memory.save(new)).memory.id


@asynccontextmanager
async def open_world(folder: Path, moments: list[datetime] | None = None) -> AsyncIterator[World]:
    """`moments[0]` is the time; the test replaces it."""
    times = moments or [NOW]
    clock = Clock(now=lambda: times[0])
    path = folder / "spacebot.db"
    async with (
        open_database(path, package_file("storage", "sql"), clock) as database,
        open_memory(
            database, folder / "lancedb", embedder=FakeEmbedder(), events=EventBus(), agent_id="main", clock=clock
        ) as memory,
    ):
        yield World(memory, MemoryViews(database, clock), CurationLog(database, clock), path)


def ids_of(graph: Graph) -> set[MemoryId]:
    return {seen.memory.id for seen in graph.nodes}


async def test_pages_meet_without_gap_and_the_total_is_true(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        known = [await world.learn(f"number {n} alone", importance=n / 10) for n in range(7)]
        await world.learn("wants tea", memory_type=MemoryType.PREFERENCE)
        gone = await world.learn("was wrong")
        await world.memory.forget(gone, "mistaken")

        for sort in SortBy:
            pages = [
                await world.views.listing(EVERYTHING, sort_by=sort, limit=3, offset=offset) for offset in (0, 3, 6, 9)
            ]
            assert {page.total for page in pages} == {8}
            assert [len(page.memories) for page in pages] == [3, 3, 2, 0]
            assert len({seen.memory.id for page in pages for seen in page.memories}) == 8

        facts = await world.views.listing(EVERYTHING, sort_by=SortBy.IMPORTANCE, limit=3, memory_type=MemoryType.FACT)
        assert [seen.memory.id for seen in facts.memories] == known[:3:-1]
        assert facts.total == 7
        forgotten = await world.views.listing(EVERYTHING, limit=5, standing=Standing.FORGOTTEN)
        assert [(one.memory.id, one.forget_reason) for one in forgotten.memories] == [(gone, "mistaken")]
        assert (await world.views.listing(EVERYTHING, limit=1, standing=Standing.ALL)).total == 9


async def test_what_is_private_is_shown_to_its_viewers_only(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        shared = await world.learn("the office has a garden")
        secret = await world.learn("ann looks for a flat", shared, origin=ANNS_CHAT)
        room = Viewer(channel_id="test:room", user_id="bob")
        ann = ANNS_CHAT.viewer

        for viewer, expected in ((room, {shared}), (ann, {shared, secret}), (EVERYTHING, {shared, secret})):
            page = await world.views.listing(viewer, limit=10)
            assert ({seen.memory.id for seen in page.memories}, page.total) == (expected, len(expected))
            assert ids_of(await world.views.graph(viewer, limit=10)) == expected
            assert ids_of(await world.views.neighbours(shared, viewer)) == expected - {shared}
            detail = await world.views.detail(shared, viewer)
            assert set(detail.others) == expected - {shared}
            assert len(detail.edges) == len(expected) - 1
        with pytest.raises(NotFoundError):
            await world.views.detail(secret, room)
        with pytest.raises(NotFoundError):
            await world.views.neighbours(secret, room)


async def test_the_graph_is_walked_hop_by_hop(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.learn("alpha")
        second = await world.learn("bravo", first)
        third = await world.learn("charlie", second)
        fourth = await world.learn("delta", third)
        lost = await world.learn("echo", first)
        await world.memory.forget(lost)

        whole = await world.views.graph(EVERYTHING, limit=10)
        assert ids_of(whole) == {first, second, third, fourth}
        assert {(edge.source_id, edge.target_id) for edge in whole.edges} == {
            (second, first),
            (third, second),
            (fourth, third),
        }
        part = await world.views.graph(EVERYTHING, limit=2)
        assert (len(part.nodes), part.total, part.is_cut) == (2, 4, True)
        shown = ids_of(part)
        assert all({edge.source_id, edge.target_id} <= shown for edge in part.edges)

        assert ids_of(await world.views.neighbours(first, EVERYTHING)) == {second}
        assert ids_of(await world.views.neighbours(first, EVERYTHING, depth=3)) == {second, third, fourth}
        around = await world.views.neighbours(second, EVERYTHING, exclude=[first, "no such id"])
        assert ids_of(around) == {third}
        assert {(edge.source_id, edge.target_id) for edge in around.edges} == {(second, first), (third, second)}
        with pytest.raises(NotFoundError):
            await world.views.neighbours(lost, EVERYTHING)


async def test_looking_is_no_access_and_a_forgotten_one_can_be_seen(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one = await world.learn("alpha", importance=0.9)
        await world.views.listing(EVERYTHING, limit=5)
        await world.views.graph(EVERYTHING, limit=5)
        await world.views.detail(one, EVERYTHING)
        await world.memory.forget(one, "no longer true")
        seen = (await world.views.detail(one, EVERYTHING)).seen
        assert (seen.forgotten, seen.forget_reason, seen.base_importance) == (True, "no longer true", 0.9)
    # Accesses are written at the end at the latest.
    with sqlite3.connect(tmp_path / "spacebot.db") as connection:
        assert connection.execute("SELECT sum(access_count) FROM memories").fetchone() == (0,)
    connection.close()


async def test_the_history_adds_up_day_by_day(tmp_path: Path) -> None:
    moments = [datetime(2026, 3, 8, 9, 0, tzinfo=UTC)]
    async with open_world(tmp_path, moments) as world:
        for n in range(3):
            await world.learn(f"first day {n}", importance=0.05)
        moments[0] = datetime(2026, 3, 9, 9, 0, tzinfo=UTC)
        gone = await world.learn("second day", importance=1.0)
        await world.learn("ann said so", origin=ANNS_CHAT, importance=1.0, permanent=True)
        await world.memory.forget(gone)
        moments[0] = NOW
        await world.memory.unforget(gone)
        await world.log.add("memory_pruned", "an event no longer important enough")
        await world.log.add("bulletin_generated", "not of memory")

        history = await world.views.history(days=4)
        assert [(d.day, d.saved, d.forgotten, d.restored, d.pruned) for d in history.days] == [
            (date(2026, 3, 7), 0, 0, 0, 0),
            (date(2026, 3, 8), 3, 0, 0, 0),
            (date(2026, 3, 9), 2, 1, 0, 0),
            (date(2026, 3, 10), 0, 0, 1, 1),
        ]
        for before, day in zip(history.days, history.days[1:], strict=False):
            came, went = day.saved + day.restored, day.forgotten + day.merged + day.pruned
            assert before.live + came - went == day.live
        assert history.days[-1].live == history.now.total == 5
        assert (history.now.private, history.now.permanent, history.now.forgotten) == (1, 1, 0)
        assert history.now.by_type[MemoryType.FACT] == 5
        assert len(history.now.importance) == BINS
        assert (history.now.importance[0], history.now.importance[-1]) == (3, 2)


async def test_a_day_begins_where_the_reader_lives(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:  # 22:30 in Greenwich
        await world.learn("late in the evening")
        here = await world.views.history(days=2)
        assert [(day.day, day.saved) for day in here.days] == [(date(2026, 3, 9), 0), (date(2026, 3, 10), 1)]
        east = await world.views.history(days=2, utc_offset_minutes=120)
        assert [(day.day, day.saved) for day in east.days] == [(date(2026, 3, 10), 0), (date(2026, 3, 11), 1)]


async def test_a_type_from_another_time_reads_as_a_fact(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.learn("alpha")
        with sqlite3.connect(world.path) as connection:
            connection.execute("UPDATE memories SET memory_type = 'hunch', importance = 1.5")
        connection.close()
        history = await world.views.history(days=1)
        assert (history.now.by_type[MemoryType.FACT], history.now.importance[-1]) == (1, 1)
        page = await world.views.listing(EVERYTHING, limit=1)
        assert page.memories[0].memory.memory_type is MemoryType.FACT
