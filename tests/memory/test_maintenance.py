"""Upkeep through the memory's own face: importance, centrality, pruning, merging, dry runs, interruption."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.events import EventBus, EventKind
from spacebot.memory.importance import effective_importance
from spacebot.memory.maintenance import MaintenancePolicy, MaintenanceReport, Progress, Step
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import (
    DEFAULT_IMPORTANCE,
    EVERYTHING,
    Memory,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    Query,
    RelationType,
    SearchMode,
)
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")
ANN = Provenance(channel_id="chat:dm:ann", user_id="ann", is_direct=True)
BOB = Provenance(channel_id="chat:dm:bob", user_id="bob", is_direct=True)
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOOSE = MaintenancePolicy(merge_similarity=0.8)  # the fake embedder counts words


class Calendar:
    """A wall clock that the test turns."""

    def __init__(self) -> None:
        self.now = START
        self.clock = Clock(lambda: self.now)

    def pass_days(self, days: float) -> None:
        self.now += timedelta(days=days)


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


async def save(memory: AgentMemory, content: str, provenance: Provenance = ROOM, **fields: Any) -> Memory:
    return (await memory.save(NewMemory(content=content, provenance=provenance, **fields))).memory


async def texts(memory: AgentMemory) -> set[str]:
    result = await memory.recall(Query(viewer=EVERYTHING, mode=SearchMode.RECENT, limit=100, counts_as_access=False))
    return {hit.memory.content for hit in result.hits}


@contextmanager
def table(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "spacebot.db")
    connection.row_factory = sqlite3.Row
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def snapshot(tmp_path: Path) -> dict[str, list[tuple[object, ...]]]:
    names = ("memories", "associations", "embeddings", "vector_outbox", "cortex_events", "settings", "memory_verdicts")
    with table(tmp_path) as connection:
        return {name: [tuple(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}


def counts(report: MaintenanceReport) -> tuple[object, ...]:
    return (
        report.scored,
        report.decayed,
        report.raised,
        report.reindexed,
        report.purged,
        report.pruned_memories,
        report.merged_memories,
        report.is_complete,
    )


@pytest.mark.spec("M-P01")
def test_untouched_memories_fade_at_the_pace_of_their_type() -> None:
    def days_until_faint(kind: MemoryType) -> int:
        for day in range(1, 1000):
            left = effective_importance(
                DEFAULT_IMPORTANCE[kind],
                kind,
                permanent=False,
                idle_days=day,
                access_count=0,
                centrality=0,
                decay_rate=0.05,
            )
            if left < 0.1:
                return day
        return 0

    spans = {kind: days_until_faint(kind) for kind in MemoryType}
    assert spans == {
        MemoryType.FACT: 119,
        MemoryType.PREFERENCE: 259,
        MemoryType.DECISION: 277,
        MemoryType.IDENTITY: 0,
        MemoryType.EVENT: 28,
        MemoryType.OBSERVATION: 22,
        MemoryType.GOAL: 146,
        MemoryType.TODO: 83,
    }


@pytest.mark.spec("M-P01", "M-P37")
async def test_importance_depends_on_time_and_not_on_how_often_it_is_renewed(
    open_test_memory: OpenMemory, calendar: Calendar, tmp_path: Path
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        often = await save(memory, "It rained in Lisbon.", memory_type=MemoryType.EVENT)
        for _ in range(40):
            calendar.pass_days(0.25)
            await memory.maintain()
        value = (await memory.get(often.id)).importance
        assert value == pytest.approx(0.4 * 0.95**10, abs=0.006)
        assert (await memory.get(often.id)).updated_at == often.updated_at

        before = snapshot(tmp_path)
        again = await memory.maintain()
        assert not again.has_changed
        assert snapshot(tmp_path) == before


async def test_what_is_used_and_linked_counts_more(open_test_memory: OpenMemory, calendar: Calendar) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        used = await save(memory, "The router stands in the cellar.")
        hub = await save(memory, "Project Heron.")
        plain = await save(memory, "Zebras graze.")
        for number in range(4):
            edge = NewAssociation(target_id=hub.id, relation_type=RelationType.CAUSED_BY, weight=1.0)
            await save(memory, f"Consequence{number} w{number} x{number}", associations=(edge,))
        for _ in range(31):
            await memory.recall(Query(viewer=ROOM.viewer, text="router", limit=1))
        report = await memory.maintain()
        values = {m.content: m.importance for m in [await memory.get(i.id) for i in (used, hub, plain)]}

    assert values[plain.content] == 0.6
    assert values[used.content] == pytest.approx(0.6 * 1.25)
    assert values[hub.content] == pytest.approx(0.6 * (1 + 0.25 * 5.2 / 9.2))  # four edges of 1.3
    assert report.raised >= 2


async def test_private_talk_does_not_raise_what_a_room_sees(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        shared = await save(memory, "The launch is on Monday.")
        edge = NewAssociation(target_id=shared.id, weight=1.0)
        private = await save(memory, "Secretly Ann fears it.", ANN, associations=(edge,))
        await memory.maintain()
        assert (await memory.get(shared.id)).importance == shared.importance
        assert (await memory.get(private.id)).importance > private.importance


@pytest.mark.spec("M-P06")
async def test_the_unimportant_is_deleted_with_its_edges_and_its_vector(
    open_test_memory: OpenMemory, calendar: Calendar, tmp_path: Path
) -> None:
    events = EventBus()
    with events.subscribe(frozenset({EventKind.MEMORY_CHANGED})) as seen:
        async with open_test_memory(clock=calendar.clock, events=events) as memory:
            kept = [
                await save(memory, "My name is Spacebot.", memory_type=MemoryType.IDENTITY, importance=0.05),
                await save(memory, "Keep this bit.", memory_type=MemoryType.EVENT, permanent=True, importance=0.05),
                await save(memory, "Ship in May.", memory_type=MemoryType.GOAL),
            ]
            edge = NewAssociation(target_id=kept[2].id, weight=1.0)
            await save(memory, "A cloud looked like a boat.", memory_type=MemoryType.OBSERVATION, associations=(edge,))
            await save(memory, "Ann felt tired.", ANN, memory_type=MemoryType.EVENT)
            calendar.pass_days(29)
            assert (await memory.maintain()).pruned == 0, "younger than thirty days"
            calendar.pass_days(2)
            report = await memory.maintain()
            assert (await memory.maintain()).has_changed is False

            assert await texts(memory) == {item.content for item in kept}
            assert {item.preview for item in report.pruned_memories} == {"A cloud looked like a boat.", None}
            assert await memory.associations(kept[2].id) == []
            stats = await memory.stats()
            assert (stats.total, stats.embedded) == (3, 3)
            result = await memory.recall(Query(viewer=EVERYTHING, text="cloud boat tired"))
            assert {hit.memory.id for hit in result.hits} <= {item.id for item in kept}
    told = [event.fields["what"] for event in iter(seen.receive_nowait, None)]
    assert "pruned" in told
    with table(tmp_path) as connection:
        log = connection.execute("SELECT * FROM cortex_events").fetchall()
    assert "Ann felt tired" not in str([tuple(row) for row in log])
    assert all("chat:ann" in row["details"] for row in log if row["event_type"] == "memory_pruned"), "to be found again"
    assert {row["event_type"] for row in log} == {"memory_pruned", "maintenance_completed"}


async def test_what_was_just_recalled_is_not_pruned(open_test_memory: OpenMemory, calendar: Calendar) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        event = await save(memory, "The fair was in Porto.", memory_type=MemoryType.EVENT)
        calendar.pass_days(60)
        await memory.recall(Query(viewer=ROOM.viewer, text="fair Porto"))
        assert (await memory.maintain()).pruned == 0
        assert (await memory.get(event.id)).content == event.content


async def test_an_old_note_that_was_read_in_today_is_not_old_yet(
    open_test_memory: OpenMemory, calendar: Calendar
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        await save(memory, "It rained in Porto.", importance=0.05, created_at=START - timedelta(days=400))
        assert (await memory.maintain()).pruned == 0
        calendar.pass_days(31)
        assert (await memory.maintain()).pruned == 1


async def test_what_was_forgotten_is_deleted_after_a_month(
    open_test_memory: OpenMemory, calendar: Calendar, tmp_path: Path
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        gone = await save(memory, "The door code is blue.")
        await memory.forget(gone.id)
        calendar.pass_days(29)
        assert (await memory.maintain()).purged == 0
        await memory.unforget(gone.id)
        await memory.forget(gone.id)
        calendar.pass_days(31)
        assert (await memory.maintain()).purged == 1
        with pytest.raises(NotFoundError):
            await memory.unforget(gone.id)
    with table(tmp_path) as connection:
        assert connection.execute("SELECT count(*) FROM memories").fetchone()[0] == 0


@pytest.mark.spec("M-P08", "M-P12", "M-P40")
async def test_near_duplicates_become_one_with_all_edges(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        before, after = await save(memory, "Kestrel."), await save(memory, "Plover.")
        first = await save(
            memory,
            "the weekly report of the data team goes to the board every friday",
            associations=(NewAssociation(target_id=before.id, weight=0.3), NewAssociation(target_id=after.id)),
        )
        second = await save(
            memory,
            "every friday the weekly report of the data team goes to the board",
            importance=0.7,
            associations=(NewAssociation(target_id=before.id, weight=0.9),),
        )
        third = await save(memory, "Heron.", associations=(NewAssociation(target_id=first.id, weight=0.6),))
        for _ in range(3):
            await memory.recall(Query(viewer=ROOM.viewer, text="weekly report data team board", limit=2))
            await memory.recall(Query(viewer=ROOM.viewer, mode=SearchMode.RECENT))
        await memory.flush()
        uses = sum([(await memory.get(item.id)).access_count for item in (first, second)])
        report = await memory.maintain()

        ((survivor, absorbed),) = [(m.survivor_id, m.absorbed_id) for m in report.merged_memories]
        assert (survivor, absorbed) == (second.id, first.id)
        assert await texts(memory) == {"Kestrel.", "Plover.", "Heron.", second.content}
        edges = {(e.source_id, e.target_id): e.weight for e in await memory.associations(survivor)}
        assert edges == {(second.id, before.id): 0.9, (second.id, after.id): 0.5, (third.id, second.id): 0.6}
        merged = await memory.get(survivor)
        assert (merged.access_count, merged.content) == (uses, second.content)
        assert uses >= 6
        stats = await memory.stats()
        assert stats.total == stats.embedded == 4
    with table(tmp_path) as connection:
        edge = connection.execute("SELECT * FROM associations WHERE target_id = ?", (absorbed,)).fetchall()
        (row,) = connection.execute("SELECT * FROM cortex_events WHERE event_type = 'memory_merged'").fetchall()
    assert [(e["source_id"], e["relation_type"], e["origin"], e["weight"]) for e in edge] == [
        (survivor, "updates", "merge", 1.0)
    ]
    assert first.content in row["details"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the big ticket for the fair costs 5 euros", "the big ticket for the fair costs 7 euros"),
        ("the big ticket for the fair costs five euros", "the big ticket for the fair costs seven euros"),
        ("Maria likes long walks on the cold beach", "Maria does not like long walks on the cold beach"),
        ("the data team meets every Tuesday in the room", "the data team meets every Wednesday in the room"),
        ("the door of the old house is open at night", "the door of the old house is closed at night"),
        ("Maria prefers strong black tea with some milk", "Jonas prefers strong black tea with some milk"),
        ("the key of the lab is kept by Maria", "the key of the lab is kept by Jonas"),
        ("the guest wifi password in the office is bluebird", "the guest wifi password in the office is sandpiper"),
    ],
)
async def test_what_differs_in_substance_is_never_merged(open_test_memory: OpenMemory, one: str, other: str) -> None:
    async with open_test_memory() as memory:
        await save(memory, one)
        await save(memory, other)
        assert (await memory.maintain(MaintenancePolicy(merge_similarity=0.5))).merged == 0
        assert await texts(memory) == {one, other}


@pytest.mark.spec("M-P33")
async def test_merging_keeps_to_kind_scope_and_exemptions(open_test_memory: OpenMemory) -> None:
    words = ("the pilot starts in Oslo after the break", "after the break the pilot starts in Oslo")
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"provenance": ANN}),
        ({"provenance": ANN}, {"provenance": BOB}),
        ({}, {"memory_type": MemoryType.GOAL}),
        ({}, {"permanent": True}),
        ({"memory_type": MemoryType.IDENTITY}, {"memory_type": MemoryType.IDENTITY}),
        ({"subject": "chat:ann"}, {"subject": "chat:bob"}),
    ]
    for first, second in pairs:
        async with open_test_memory() as memory:
            saved = [await save(memory, words[0], **first), await save(memory, words[1], **second)]
            assert (await memory.maintain(LOOSE)).merged == 0, (first, second)
            for item in saved:
                await memory.delete(item.id)


async def test_what_a_model_called_a_contradiction_is_not_merged(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        first = await save(memory, "the pilot starts in Oslo after the break")
        edge = NewAssociation(target_id=first.id, relation_type=RelationType.CONTRADICTS)
        await save(memory, "after the break the pilot starts in Oslo", associations=(edge,))
        assert (await memory.maintain(LOOSE)).merged == 0


async def test_the_one_that_says_more_survives_whatever_its_importance(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "the pilot project starts in Oslo after the break", importance=0.9)
        longer = await save(memory, "the pilot project starts in Oslo after the long break", importance=0.2)
        report = await memory.maintain(LOOSE)
        assert [item.survivor_id for item in report.merged_memories] == [longer.id]
        assert (await memory.get(longer.id)).importance == pytest.approx(0.9, abs=0.05)


async def test_a_merge_can_be_undone_and_is_not_done_again(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "the pilot starts in Oslo after the break")
        await save(memory, "after the break the pilot starts in Oslo")
        (merged,) = (await memory.maintain(LOOSE)).merged_memories
        back = await memory.unforget(merged.absorbed_id)
        assert (await memory.maintain(LOOSE)).merged == 0
        result = await memory.recall(Query(viewer=ROOM.viewer, text=back.content))
        assert {hit.memory.id for hit in result.hits} == {merged.survivor_id, merged.absorbed_id}


async def test_private_words_of_a_merge_stay_out_of_log_report_and_events(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    events = EventBus()
    with events.subscribe() as seen:
        async with open_test_memory(events=events) as memory:
            await save(memory, "the clinic sees Ann on the hill after work", ANN)
            await save(memory, "after work the clinic on the hill sees Ann", ANN)
            (merged,) = (await memory.maintain(LOOSE)).merged_memories
    assert merged.preview is None
    assert "clinic" not in str([event.to_json_object() for event in iter(seen.receive_nowait, None)])
    with table(tmp_path) as connection:
        rows = connection.execute("SELECT details FROM cortex_events").fetchall()
    assert "clinic" not in str([row["details"] for row in rows])
    assert any(merged.absorbed_id in row["details"] for row in rows)


async def fill(memory: AgentMemory, calendar: Calendar) -> None:
    """A store in which every step of a pass finds something."""
    hub = await save(memory, "Project Heron begins.", memory_type=MemoryType.GOAL)
    for number in range(12):
        edge = NewAssociation(target_id=hub.id, weight=0.7)
        kind = MemoryType.OBSERVATION if number % 2 else MemoryType.FACT
        await save(memory, f"Note{number} about{number} heron{number}", memory_type=kind, associations=(edge,))
    for number in range(4):
        await save(memory, f"the pilot{number} project starts in Oslo{number} after the summer break")
        await save(memory, f"after the summer break the pilot{number} project starts in Oslo{number}", importance=0.7)
    forgotten = await save(memory, "To be purged.")
    await memory.forget(forgotten.id)
    calendar.pass_days(45)
    await save(memory, "Fresh news.")


async def test_a_dry_run_tells_exactly_what_a_real_one_does_and_changes_nothing(
    open_test_memory: OpenMemory, calendar: Calendar, tmp_path: Path
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        await fill(memory, calendar)
        before = snapshot(tmp_path)
        planned = await memory.maintain(LOOSE, dry_run=True)
        assert snapshot(tmp_path) == before
        done = await memory.maintain(LOOSE)

        assert (planned.is_dry_run, done.is_dry_run) == (True, False)
        assert counts(planned) == counts(done)
        assert (done.pruned, done.merged, done.purged) == (6, 4, 1)
        assert done.decayed > 0
        assert not (await memory.maintain(LOOSE, dry_run=True)).has_changed
        assert not (await memory.maintain(LOOSE)).has_changed


@pytest.mark.spec("M-P37")
async def test_a_pass_cancelled_anywhere_is_completed_by_the_next(
    open_test_memory: OpenMemory, calendar: Calendar, tmp_path: Path
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        await fill(memory, calendar)
        steps: list[Progress] = []
        for allowed in range(60):
            seen = 0
            with trio.CancelScope() as scope:

                def count(progress: Progress, scope: trio.CancelScope = scope, allowed: int = allowed) -> None:
                    nonlocal seen
                    seen += 1
                    steps.append(progress)
                    if seen > allowed:
                        scope.cancel()

                await memory.maintain(LOOSE, on_progress=count)
            if not scope.cancelled_caught:
                break
        assert {progress.step for progress in steps} == set(Step)
        assert not (await memory.maintain(LOOSE)).has_changed
        stats = await memory.stats()
        assert stats.total == stats.embedded == 1 + 6 + 4 + 1
    with table(tmp_path) as connection:
        dangling = connection.execute(
            "SELECT count(*) FROM associations WHERE source_id NOT IN (SELECT id FROM memories) "
            "OR target_id NOT IN (SELECT id FROM memories)"
        ).fetchone()
        assert dangling[0] == 0


async def test_the_time_limit_ends_a_pass_and_the_next_goes_on(
    open_test_memory: OpenMemory, calendar: Calendar
) -> None:
    async with open_test_memory(clock=calendar.clock) as memory:
        await fill(memory, calendar)
        stopped = await memory.maintain(MaintenancePolicy(merge_similarity=0.8, time_limit_s=0))
        assert not stopped.is_complete
        assert (await memory.maintain(LOOSE)).is_complete


async def test_few_memories_are_compared_in_one_pass_and_the_rest_in_the_next(open_test_memory: OpenMemory) -> None:
    policy = MaintenancePolicy(merge_similarity=0.8, merge_sources=50)
    async with open_test_memory() as memory:
        for number in range(60):
            await save(memory, f"w{number} x{number} y{number} z{number}")
        await save(memory, "the pilot starts in Oslo after the break")
        await save(memory, "after the break the pilot starts in Oslo")
        first = await memory.maintain(policy)
        second = await memory.maintain(policy)
    assert (first.merged, first.is_complete) == (0, False)
    assert (second.merged, second.is_complete) == (1, True)


async def test_one_pass_at_a_time(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "Something.")
        refused: list[RefusedError] = []

        async def second(_: object = None) -> None:
            with pytest.raises(RefusedError) as caught:
                await memory.maintain(dry_run=True)
            refused.append(caught.value)

        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(lambda: memory.maintain(on_progress=lambda _: started.set()))
            await started.wait()
            await second()
    assert refused


async def test_an_idle_store_is_not_written(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        await save(memory, "Something.")
        await memory.maintain()
        before = snapshot(tmp_path)
        for _ in range(3):
            assert not (await memory.maintain()).has_changed
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"decay_rate": float("nan")},
        {"min_age_days": -1},
        {"min_age_days": 1e12},
        {"merge_similarity": 2},
        {"time_limit_s": float("inf")},
    ],
)
def test_policies_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RefusedError):
        MaintenancePolicy(**wrong)  # type: ignore[arg-type]
