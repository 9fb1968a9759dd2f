"""The calibrated thresholds on the labelled sample, with the model that is shipped."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from spacebot.base.ids import MemoryId, new_uuid
from spacebot.base.paths import bundled_model
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.memory.linking import DUPLICATE, RELATED, UPDATES, Node, is_newer_version
from spacebot.memory.merging import survivor_of
from spacebot.memory.types import Memory, MemoryType, NewMemory, Provenance
from tests.memory.conftest import OpenMemory
from tests.memory.labelled_pairs import HELD_OUT, PAIRS, Verdict

ROOM = Provenance(channel_id="chat:room", user_id="ann")
needs_model = pytest.mark.skipif(not (bundled_model() / "model.onnx").is_file(), reason="the model is not built")


def test_the_sample_is_large_and_balanced() -> None:
    sizes = Counter(pair.verdict for pair in PAIRS)
    assert len(PAIRS) >= 140
    assert len({*PAIRS, *HELD_OUT}) == len(PAIRS) + len(HELD_OUT)
    assert set(sizes) == set(Verdict)
    assert min(sizes.values()) >= 24


def node(content: str, seq: int) -> Node:
    moment = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=seq)
    memory = Memory(
        id=MemoryId(new_uuid()),
        content=content,
        memory_type=MemoryType.FACT,
        importance=0.6,
        created_at=moment,
        updated_at=moment,
        last_accessed_at=moment,
    )
    return Node(memory=memory, seq=seq, owner=None)


@needs_model
@pytest.mark.spec("M-P32", "M-P12")
async def test_the_calibrated_cuts_keep_their_precision() -> None:
    embedder = OnnxEmbedder()
    pairs = [*PAIRS, *HELD_OUT]
    vectors = await embedder.embed([text for pair in pairs for text in (pair.older, pair.newer)])
    cosines = np.einsum("ij,ij->i", vectors[::2], vectors[1::2])
    linked, updated, merged, merged_blindly = (Counter[tuple[bool, Verdict]]() for _ in range(4))
    for index, (pair, cosine) in enumerate(zip(pairs, cosines, strict=True)):
        older, newer = node(pair.older, 0), node(pair.newer, 1)
        key = (index >= len(PAIRS), pair.verdict)
        linked[key] += cosine > RELATED
        updated[key] += cosine > UPDATES and is_newer_version(newer, older)
        merged[key] += cosine > DUPLICATE and survivor_of(older, newer) is not None
        merged_blindly[key] += cosine > DUPLICATE

    for held_out, pairs_of_sample, precision in ((False, PAIRS, 0.97), (True, HELD_OUT, 0.85)):
        right = updated[held_out, Verdict.SAME] + updated[held_out, Verdict.NEWER]
        assert right / sum(updated[held_out, verdict] for verdict in Verdict) >= precision, updated
        assert right >= 0.75 * sum(pair.verdict in (Verdict.SAME, Verdict.NEWER) for pair in pairs_of_sample), updated
        together = [pair for pair in pairs_of_sample if pair.verdict is not Verdict.UNRELATED]
        assert sum(linked[held_out, verdict] for verdict in Verdict) >= 0.85 * len(together), linked
        assert linked[held_out, Verdict.UNRELATED] == 0
    assert sum(merged.values()) == merged[False, Verdict.SAME] + merged[True, Verdict.SAME] >= 15, merged
    assert merged_blindly[False, Verdict.NEWER] >= 5, "the cosine alone would merge these"


@needs_model
@pytest.mark.parametrize(
    ("verdict", "relation"),
    [(Verdict.SAME, "updates"), (Verdict.NEWER, "updates"), (Verdict.CONTRADICTION, "related_to"),
     (Verdict.OTHER, "related_to"), (Verdict.UNRELATED, None)],
)  # fmt: skip
async def test_a_save_links_as_a_person_would(
    open_test_memory: OpenMemory, verdict: Verdict, relation: str | None
) -> None:
    pair = next(pair for pair in PAIRS if pair.verdict is verdict)
    async with open_test_memory(embedder=OnnxEmbedder()) as memory:
        await memory.save(NewMemory(content=pair.older, provenance=ROOM))
        saved = await memory.save(NewMemory(content=pair.newer, provenance=ROOM))
    assert [str(edge.relation_type) for edge in saved.auto_associations] == ([] if relation is None else [relation])


def test_thresholds_rise() -> None:
    assert 0 < RELATED < UPDATES < DUPLICATE < 1
