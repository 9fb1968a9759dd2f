"""Edges that make themselves: at a save, by the back-fill, guarded by words; contradictions judged once."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError
from spacebot.base.events import EventBus, EventKind
from spacebot.memory.association import AssociationPolicy, Verdict
from spacebot.memory.comparison import Difference, differences
from spacebot.memory.linking import LinkPolicy
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import (
    EVERYTHING,
    Association,
    Memory,
    MemoryType,
    NewAssociation,
    NewMemory,
    Origin,
    Provenance,
    RelationType,
)
from tests.fakes.fake_embedder import FakeEmbedder
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")
ANN = Provenance(channel_id="chat:dm:ann", user_id="ann", is_direct=True)
BOB = Provenance(channel_id="chat:dm:bob", user_id="bob", is_direct=True)
SEEDS = LinkPolicy(related=0.7, updates=0.9)


class DialEmbedder:
    """Each text ends with the cosine that it has to the first direction: "tea @0.9"."""

    name = "dial"
    dimensions = 384

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[0] = float(text.rpartition("@")[2])
            row[1 + abs(hash(text)) % (self.dimensions - 1)] = np.sqrt(max(0.0, 1 - row[0] ** 2))
        return rows


class Gate(FakeEmbedder):
    """Lets saves go on together, once all have been embedded: none of them sees another."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.parties = parties
        self.is_open = trio.Event()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = await super().embed(texts)
        if len(self.calls) >= self.parties:
            self.is_open.set()
        await self.is_open.wait()
        return vectors


async def save(memory: AgentMemory, content: str, provenance: Provenance = ROOM, **fields: Any) -> Memory:
    return (await memory.save(NewMemory(content=content, provenance=provenance, **fields))).memory


async def edges(memory: AgentMemory, *of: Memory) -> set[tuple[str, str, str]]:
    found = [edge for item in of for edge in await memory.associations(item.id)]
    return {(edge.source_id, str(edge.relation_type), edge.target_id) for edge in found}


def run_sql(tmp_path: Path, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(tmp_path / "spacebot.db")
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        with connection:
            return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.spec("M-P02")
@pytest.mark.parametrize(
    ("cosine", "relation"),
    [(0.7, None), (0.71, "related_to"), (0.9, "related_to"), (0.91, "updates"), (0.99, "updates")],
)
async def test_thresholds_are_cosines_and_must_be_exceeded(
    open_test_memory: OpenMemory, cosine: float, relation: str | None
) -> None:
    async with open_test_memory(embedder=DialEmbedder(), links=SEEDS) as memory:
        old = await save(memory, "tea @1.0")
        new = await memory.save(NewMemory(content=f"tea @{cosine}", provenance=ROOM))
        made = [str(edge.relation_type) for edge in new.auto_associations]
        assert made == ([] if relation is None else [relation])
        if relation is not None:
            (edge,) = new.auto_associations
            assert (edge.source_id, edge.target_id) == (new.memory.id, old.id)
            assert edge.weight == pytest.approx(0.5 + 0.5 * (cosine - 0.7) / 0.3, abs=1e-4)
        left = (await memory.get(old.id)).importance
        assert left == pytest.approx(0.3 if relation == "updates" else 0.6)


@pytest.mark.parametrize(
    ("older", "newer", "fields", "expected"),
    [
        ("the big ticket for the fair costs 5 euros", "the big ticket for the fair costs 7 euros", {}, "updates"),
        ("the data team meets on Tuesday at nine sharp", "the data team meets on Friday at nine sharp", {}, "updates"),
        ("Ann likes strong black tea with milk", "Bob likes strong black tea with milk", {}, "related_to"),
        ("Ann's dog is afraid of loud noise", "Bob's dog is afraid of loud noise", {}, "related_to"),
        ("the big red server runs Debian twelve now", "the big old server runs Debian twelve now", {}, "related_to"),
        ("Lena works as a nurse in the city hospital", "Lena works as a nurse in the hospital", {}, "related_to"),
        ("Lena works as a nurse in the hospital", "Lena works as a nurse in the city hospital", {}, "updates"),
        ("the key of the lab is kept by Ann", "the key of the lab is kept by Bob", {}, "related_to"),
        ("Ann likes long walks on the cold beach", "Ann does not like long walks on the cold beach", {}, "related_to"),
        ("the door of the house is open at night", "the door of the house is closed at night", {}, "related_to"),
        ("we met at the fair on Monday at noon", "we met at the fair on Friday at noon",
         {"memory_type": MemoryType.EVENT}, "related_to"),
    ],
)  # fmt: skip
async def test_only_another_value_of_the_same_thing_is_a_newer_version(
    open_test_memory: OpenMemory, older: str, newer: str, fields: dict[str, Any], expected: str
) -> None:
    async with open_test_memory(links=LinkPolicy(related=0.3, updates=0.6)) as memory:
        old = await save(memory, older, **fields)
        new = await save(memory, newer, **fields)
        assert await edges(memory, old) == {(new.id, expected, old.id)}
        halved = (await memory.get(old.id)).importance < old.importance
        assert halved == (expected == "updates")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("It costs 1,000 euros.", "It costs 1000 euros.", set()),
        ("She has two cats.", "She has 2 cats.", set()),
        ("Hana has 2 cats.", "Hana has 3 cats.", {Difference.NUMBER}),
        ("Open on Mondays.", "Open on Monday.", set()),
        ("The dog may stay.", "The dog will stay.", set()),
        ("The fair is in May.", "The fair is in June.", {Difference.DATE}),
        ("Tom doesn't smoke.", "Tom does not smoke.", set()),
        ("Maria mag Pilze.", "Maria mag keine Pilze.", {Difference.NEGATION}),
        ("Marta is available.", "Marta is unavailable.", {Difference.NEGATION, Difference.WORDING}),
        ("Ann sees Tom.", "Ann sees Karim.", {Difference.NAME, Difference.WORDING}),
        ("Tom sees Ann.", "Karim sees Ann.", {Difference.SUBJECT, Difference.WORDING}),
        ("Tom sees Ann.", "Tom often sees Ann.", {Difference.DETAIL}),
        ("The build is ✅.", "The build is ❌.", {Difference.WORDING}),
        ("It was -5 degrees.", "It was 5 degrees.", {Difference.NUMBER}),
        ("The ticket is $5.", "The ticket is €5.", {Difference.WORDING}),
        ("The 3rd of June.", "The 4th of June.", {Difference.NUMBER}),
        ("", "💥", {Difference.DETAIL}),
        ("word " * 900 + "5", "word " * 900 + "6", {Difference.SUBJECT, Difference.WORDING}),
    ],
)
def test_what_embeddings_hardly_see_is_seen(one: str, other: str, expected: set[Difference]) -> None:
    assert differences(one, other) == expected
    assert differences(one, other) == differences(other, one)
    assert differences(one, one) == frozenset()


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(one: str, other: str) -> None:
    assert differences(one, other) == differences(other, one)
    assert differences(one, one) == frozenset()


async def test_i_is_another_person_in_another_mouth(open_test_memory: OpenMemory) -> None:
    links = LinkPolicy(related=0.3, updates=0.6)
    async with open_test_memory(links=links) as memory:
        first = await save(memory, "I take my coffee with 2 sugars")
        bobs = Provenance(channel_id="chat:room", user_id="bob")
        second = await save(memory, "I take my coffee with 3 sugars", bobs)
        third = await save(memory, "I take my coffee with 4 sugars")
        assert await edges(memory, first, second) == {
            (second.id, "related_to", first.id),
            (third.id, "related_to", second.id),
            (third.id, "updates", first.id),
        }


async def test_scopes_and_kinds_are_linked_but_not_updated(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        shared = await save(memory, "the launch of the shop is on the 3 of June")
        goal = await save(memory, "the launch of the shop is on the 4 of June", memory_type=MemoryType.GOAL)
        private = await save(memory, "the launch of the shop is on the 5 of June", ANN)
        others = await save(memory, "the launch of the shop is on the 6 of June", BOB)
        assert {relation for _, relation, _ in await edges(memory, shared, goal, private, others)} == {"related_to"}
        assert not {private.id, others.id} & {
            id for s, _, t in await edges(memory, private) & await edges(memory, others) for id in (s, t)
        }
        assert (await memory.get(shared.id)).importance == shared.importance


@pytest.mark.spec("M-P20", "M-P21", "P48")
async def test_memories_saved_at_the_same_moment_are_linked_later(open_test_memory: OpenMemory) -> None:
    text = "the weekly meeting of the data team takes place in room {} every morning"
    async with open_test_memory(embedder=Gate(3)) as memory:
        saved: list[Memory] = []

        async def put(number: int) -> None:
            saved.append(await save(memory, text.format(number)))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(put, number)
        assert await edges(memory, *saved) == set()

        report = await memory.associate()
        made = await edges(memory, *saved)
        assert (report.created, report.looked_at, len(made)) == (3, 3, 3)
        assert len({frozenset((source, target)) for source, _, target in made}) == 3
        again = await memory.associate()
        assert (again.created, again.looked_at) == (0, 0)


@pytest.mark.spec("M-P20", "M-P21", "P48")
async def test_the_limit_counts_new_edges_and_the_rest_comes_next(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    text = "the weekly meeting of the data team takes place in room {} every morning"
    async with open_test_memory() as memory:
        saved = [await save(memory, text.format(number)) for number in range(12)]
        all_edges = await edges(memory, *saved)
        run_sql(tmp_path, "DELETE FROM associations WHERE origin = 'auto'")
        policy = AssociationPolicy(neighbours=11, max_new=7)
        created = []
        while True:
            report = await memory.associate(policy)
            created.append(report.created)
            if report.is_complete:
                break
        full = await edges(memory, *saved)
        assert all(number == 7 for number in created[:-1])
        assert sum(created) == len(full) == 12 * 11 / 2
        assert all_edges <= full or {frozenset(e) for e in all_edges} <= {frozenset(e) for e in full}


async def test_a_pass_over_a_large_store_ends_and_goes_on(open_test_memory: OpenMemory) -> None:
    looked_at = []
    async with open_test_memory() as memory:
        for number in range(70):
            await save(memory, f"w{number} x{number} y{number}")
        while True:
            report = await memory.associate(AssociationPolicy(max_memories=1))
            looked_at.append(report.looked_at)
            if report.is_complete:
                break
    assert len(looked_at) > 1
    assert sum(looked_at) == 70


@pytest.mark.spec("M-P20")
async def test_what_a_model_linked_stays_as_it_is(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        old = await save(memory, "the shop opens at 8 in the morning on weekdays")
        edge = NewAssociation(target_id=old.id, relation_type=RelationType.PART_OF, weight=0.11)
        new = await save(memory, "the shop opens at 9 in the morning on weekdays", associations=(edge,))
        for cursor in ("0", "1"):
            run_sql(tmp_path, "UPDATE settings SET value = ? WHERE key = 'association_cursor'", cursor)
            assert (await memory.associate()).created == 0
        assert await memory.associations(new.id) == [
            Association(
                source_id=new.id, target_id=old.id, relation_type=RelationType.PART_OF, weight=0.11, origin=Origin.LLM
            )
        ]


@pytest.mark.spec("M-P20")
async def test_edges_lead_from_newer_to_older_whatever_came_into_the_store_first(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    async with open_test_memory(clock=Clock(lambda: moment)) as memory:
        first = await save(memory, "the shop opens at 8 in the morning on weekdays")
        moment -= timedelta(days=400)  # as an import of older notes does
        second = await save(memory, "the shop opens at 7 in the morning on weekdays")
        assert await edges(memory, first) == {(first.id, "updates", second.id)}
        run_sql(tmp_path, "DELETE FROM associations")
        await memory.associate()
        assert await edges(memory, first) == {(first.id, "updates", second.id)}


@pytest.mark.spec("M-P21", "M-P26")
async def test_an_idle_pass_embeds_and_writes_nothing(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    events = EventBus()
    async with open_test_memory(embedder=embedder, events=events) as memory:
        await save(memory, "the shop opens at 8")
        await memory.associate()
        calls = len(embedder.calls)
        before = run_sql(tmp_path, "SELECT * FROM settings UNION ALL SELECT id, event_type FROM cortex_events")
        changes = run_sql(tmp_path, "PRAGMA data_version")
        with events.subscribe() as seen:
            assert (await memory.associate()).looked_at == 0
            assert seen.receive_nowait() is None
        assert len(embedder.calls) == calls
        assert run_sql(tmp_path, "SELECT * FROM settings UNION ALL SELECT id, event_type FROM cortex_events") == before
        assert run_sql(tmp_path, "PRAGMA data_version") == changes


@pytest.mark.spec("M-P21")
async def test_a_memory_without_a_vector_holds_the_cursor(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        first = await save(memory, "the shop opens at 8 in the morning on weekdays")
        second = await save(memory, "the shop opens at 9 in the morning on weekdays")
        third = await save(memory, "the shop opens at 10 in the morning on weekdays")
        run_sql(tmp_path, "DELETE FROM associations")
        kept = run_sql(
            tmp_path, "SELECT seq, memory_id, model, embedding FROM embeddings WHERE memory_id = ?", second.id
        )
        run_sql(tmp_path, "DELETE FROM embeddings WHERE memory_id = ?", second.id)
        assert (await memory.associate()).looked_at == 1
        run_sql(tmp_path, "INSERT INTO embeddings VALUES (?, ?, ?, ?)", *kept[0])
        assert (await memory.associate()).looked_at == 2
        assert len(await edges(memory, first, second, third)) == 3


@pytest.mark.spec("M-P21")
async def test_a_place_given_away_again_is_looked_at_again(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    """SQLite gives the number of the last row to the next one once it is deleted."""
    async with open_test_memory() as memory:
        await save(memory, "Alpha.")
        for _ in range(2):
            last = await save(memory, "the shop opens at 8 in the morning on weekdays")
            await memory.associate()
            await memory.delete(last.id)
        await memory.maintain()
        await save(memory, "the shop opens at 9 in the morning on weekdays")
        assert (await memory.associate()).looked_at == 1


async def test_a_forgotten_memory_gets_no_edge(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        gone = await save(memory, "the shop opens at 8 in the morning on weekdays")
        kept = await save(memory, "the shop opens at 9 in the morning on weekdays")
        run_sql(tmp_path, "DELETE FROM associations")
        await memory.forget(gone.id)
        assert (await memory.associate()).created == 0
        assert await edges(memory, kept) == set()


async def test_contradictions_are_offered_to_a_model_once(open_test_memory: OpenMemory, tmp_path: Path) -> None:
    async with open_test_memory() as memory:
        old = await save(memory, "Ann likes long walks on the cold beach")
        new = await save(memory, "Ann does not like long walks on the cold beach")
        await save(memory, "Bob likes long walks on the cold beach")
        await save(memory, "the parrot sings")
        (pair,) = await memory.candidates_for_contradiction(10)
        assert (pair.newer.id, pair.older.id) == (new.id, old.id)
        await memory.judge(pair, Verdict.CONTRADICTS)

        assert await memory.candidates_for_contradiction(10) == []
        assert [(e.relation_type, e.origin) for e in await memory.associations(new.id) if e.target_id == old.id] == [
            (RelationType.CONTRADICTS, Origin.LLM)
        ]
        with pytest.raises(NotFoundError):
            await memory.judge(pair, Verdict.UPDATES)
        run_sql(tmp_path, "UPDATE settings SET value = '0' WHERE key = 'association_cursor'")
        await memory.associate()
        assert await memory.candidates_for_contradiction(10) == []


@pytest.mark.parametrize(("verdict", "importance"), [(Verdict.UPDATES, 0.3), (Verdict.NEITHER, 0.6)])
async def test_a_verdict_counts_for_the_older_memory(
    open_test_memory: OpenMemory, verdict: Verdict, importance: float
) -> None:
    events = EventBus()
    async with open_test_memory(events=events) as memory:
        old = await save(memory, "the feature flag for big exports is enabled")
        await save(memory, "the feature flag for big exports is disabled")
        (pair,) = await memory.candidates_for_contradiction(10)
        with events.subscribe(frozenset({EventKind.MEMORY_CHANGED})) as seen:
            await memory.judge(pair, verdict)
            assert (seen.receive_nowait() is not None) == (verdict is not Verdict.NEITHER)
        assert (await memory.get(old.id)).importance == importance
        assert await memory.candidates_for_contradiction(10) == []


async def test_pairs_of_two_people_s_private_memories_are_never_offered(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        await save(memory, "the feature flag for big exports is enabled", ANN)
        await save(memory, "the feature flag for big exports is disabled", BOB)
        await save(memory, "the feature flag for big exports is not disabled", ROOM)
        assert await memory.candidates_for_contradiction(10) == []


async def test_a_pair_is_no_longer_offered_once_one_is_gone(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        old = await save(memory, "the feature flag for big exports is enabled")
        await save(memory, "the feature flag for big exports is disabled")
        (pair,) = await memory.candidates_for_contradiction(10)
        await memory.forget(old.id)
        assert await memory.candidates_for_contradiction(10) == []
        with pytest.raises(NotFoundError):
            await memory.judge(pair, Verdict.CONTRADICTS)
        assert await memory.associations(pair.newer.id, EVERYTHING) == []
