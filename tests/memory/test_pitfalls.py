"""Pitfalls of memory spec 20 that no story elsewhere happens to tell."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from pydantic import ValidationError

from spacebot.base.ids import MemoryId, new_uuid
from spacebot.base.paths import package_file
from spacebot.config.model import CortexConfig
from spacebot.memory.matrix import VectorRow
from spacebot.memory.memory import AgentMemory
from spacebot.memory.store import walk
from spacebot.memory.types import EVERYTHING, Memory, NewAssociation, NewMemory, Provenance, Query, RelationType
from spacebot.memory.vectors import LanceTable
from spacebot.storage.database import Database, open_database
from tests.memory.conftest import OpenMemory

ROOM = Provenance(channel_id="chat:room", user_id="ann")


async def save(memory: AgentMemory, content: str, **fields: Any) -> Memory:
    return (await memory.save(NewMemory(content=content, provenance=ROOM, **fields))).memory


@pytest.mark.spec("M-P03")
def test_an_index_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    """Every change of the table, the building of an index too, is a version of it."""
    source = np.random.default_rng(1)

    def row() -> VectorRow:
        vector = source.standard_normal(8).astype(np.float32)
        return VectorRow(
            id=MemoryId(new_uuid()),
            content="x",
            memory_type="fact",
            is_private=False,
            channel_id=None,
            owner=None,
            embedding=(vector / np.linalg.norm(vector)).tobytes(),
        )

    def versions() -> int:
        return len(lancedb.connect(tmp_path).open_table("memory_embeddings").list_versions())

    table = LanceTable(tmp_path, 8)
    table.create([[row() for _ in range(300)]])
    table.build_vector_index()
    before = versions()
    table.build_vector_index()
    again = LanceTable(tmp_path, 8)
    again.open()
    again.build_vector_index()
    assert versions() == before
    again.replace([row()], [])
    assert versions() == before + 1


@pytest.mark.spec("M-P31")
async def test_the_end_of_a_long_text_is_found_by_its_words(open_test_memory: OpenMemory) -> None:
    async with open_test_memory() as memory:
        long = await save(
            memory, f"{'The minutes of the meeting go on and on. ' * 800} The budget was called zirconium."
        )
        for number in range(60):
            await save(memory, f"filler {number}")
        result = await memory.recall(Query(viewer=ROOM.viewer, text="zirconium budget", limit=3))
    assert result.hits[0].memory.id == long.id


@pytest.mark.spec("M-P18")
async def test_a_walk_keeps_to_its_hops_and_goes_on_through_some_relations_only(
    open_test_memory: OpenMemory, tmp_path: Path
) -> None:
    async with open_test_memory() as memory:
        start = await save(memory, "Zirconium.")
        chain = [start]
        for number in range(1, 4):
            edge = NewAssociation(target_id=chain[-1].id, weight=0.5)
            chain.append(await save(memory, f"link{number}", importance=0.8, associations=(edge,)))
        twice = NewAssociation(target_id=start.id, relation_type=RelationType.PART_OF, weight=0.1)
        newer = NewAssociation(target_id=start.id, relation_type=RelationType.UPDATES, weight=0.5)
        version = await save(memory, "version", importance=0.8, associations=(newer, twice))
        only_newer = NewAssociation(target_id=start.id, relation_type=RelationType.UPDATES, weight=0.4)
        newest = await save(memory, "newest", importance=0.8, associations=(only_newer,))
        await save(memory, "behind", associations=(NewAssociation(target_id=newest.id),))
    async with open_database(tmp_path / "spacebot.db", package_file("storage", "sql")) as database:

        async def scores(depth: int) -> dict[str, float]:
            return dict(await database.read(lambda connection: walk(connection, [start.id], EVERYTHING, depth)))

        one, two = await scores(1), await scores(2)
    assert one == {
        chain[1].id: pytest.approx(0.8 * 0.5),
        version.id: pytest.approx(0.8 * 0.5 * 1.5),
        newest.id: pytest.approx(0.8 * 0.4 * 1.5),
    }
    assert two == {**one, chain[2].id: pytest.approx(0.8 * 0.5)}


@pytest.mark.spec("M-P37")
@pytest.mark.parametrize(
    "wrong",
    [
        {"maintenance_decay_rate": math.nan},
        {"maintenance_min_age_days": math.inf},
        {"maintenance_min_age_days": -1},
        {"maintenance_prune_threshold": 1.1},
        {"maintenance_interval_secs": math.inf},
        {"association_similarity_threshold": 0.9, "association_updates_threshold": 0.8},
    ],
)
def test_senseless_numbers_are_refused_when_the_configuration_is_read(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CortexConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.spec("M-P44")
async def test_more_hits_cost_no_more_statements(open_test_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for name in ("read", "write"):
        original = getattr(Database, name)

        async def counted(self: Database, fn: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return await original(self, fn)

        monkeypatch.setattr(Database, name, counted)

    async def cost(memory: AgentMemory, limit: int) -> Counter[str]:
        calls.clear()
        result = await memory.recall(Query(viewer=ROOM.viewer, text="paint the fence", limit=limit))
        assert len(result.hits) == limit
        await memory.flush()
        return Counter(calls)

    async with open_test_memory() as memory:
        for number in range(40):
            await save(memory, f"paint the fence {number}")
        await memory.flush()
        await cost(memory, 1)
        assert await cost(memory, 1) == await cost(memory, 40)
