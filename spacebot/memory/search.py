"""Hybrid search: meaning, words and links, fused by rank.

Three legs each give a ranked list; ranks are fused, not scores, because the scores have no common scale.
A leg that fails is logged, named in the answer and left out.

Flow:    hybrid -> vector and text legs -> fuse -> graph leg from the best -> fuse -> adjust -> rank
Floor:   memory; may import base, storage
Source:  Cormack, Clarke, Büttcher, Reciprocal Rank Fusion, SIGIR 2009; memory spec 7
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import trio

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import VectorIndex
from spacebot.memory.store import MemoryStore
from spacebot.memory.types import Hit, Memory, Query, RecallResult

log = logging.getLogger(__name__)

RRF_K = 10  # measured on LoCoMo: evidence recall@10 .678 against .654 with the usual 60
CANDIDATES = 50  # per leg; memory spec 7.2
STARTS = 5  # a walk begins at the best of what was found; memory spec 7.3
DEPTH = 2  # hops
GRAPH_VOTE = 0.5  # of a full leg: a list ordered by importance must not outvote the two that read the question
RECENCY, RECENCY_HALF_LIFE_DAYS = 0.03, 30.0  # as a tie-break; a stronger preference cost 0.5 to 1.7 points
IMPORTANCE = 0.05
OUTDATED = 0.5  # factor of a memory that has a newer version
MAX_TERMS = 32  # of a question; a pasted page is no question
_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = (
    "a about after again all also am an and any are as at be because been before being between both but by can could "
    "did do does doing done down during each few for from further get got had has have having he her here hers him his "
    "how i if in into is it its itself just let like made make many may me might more most much must my no nor not now "
    "of off on once only or other our out over own same shall she should so some such tell than that the their them "
    "then there these they this those through to too under until up us very was we were what when where which while "
    "who whom whose why will with would you your yours"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPolicy:
    """Numbers of the fusion."""

    rrf_k: int = RRF_K
    candidates: int = CANDIDATES
    graph_depth: int = DEPTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Searcher:
    """What a hybrid search needs."""

    store: MemoryStore
    index: VectorIndex
    embedder: Embedder
    policy: SearchPolicy

    async def hybrid(self, query: Query, now: datetime) -> RecallResult:
        """Search with all three legs.

        Errors: StorageError when neither meaning nor words could be searched.
        """
        wanted = max(self.policy.candidates, 2 * query.limit)
        found: dict[str, tuple[MemoryId, ...]] = {}
        notes: list[str] = []

        async def vector() -> None:
            try:
                (row,) = await self.embedder.embed([query.text])
                near = await self.index.nearest(row, query.viewer, limit=wanted, memory_type=query.memory_type)
            except StorageError as error:
                log.warning("vector leg failed", exc_info=error)
                notes.append(f"search by meaning failed, found by words only: {error}")
                return
            found["vector"] = tuple(neighbour.id for neighbour in near.neighbours)
            if near.note:
                notes.append(near.note)

        async def text() -> None:
            terms = match_expression(query.text)
            try:
                ids = await self.store.full_text(terms, query.viewer, query.memory_type, wanted) if terms else []
            except StorageError as error:
                log.warning("text leg failed", exc_info=error)
                notes.append(f"search by words failed, found by meaning only: {error}")
                return
            found["text"] = tuple(ids)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(vector)
            nursery.start_soon(text)
        if not found:
            raise StorageError("memory search failed: " + "; ".join(notes))
        found = {name: found[name] for name in ("vector", "text") if name in found}
        legs = list(found.values())
        scores = fuse(legs, k=self.policy.rrf_k)
        starts = sorted(scores, key=lambda key: (-scores[key], key))[:STARTS]
        around = await self.store.neighbourhood(
            starts, scores, query.viewer, depth=self.policy.graph_depth, limit=wanted
        )
        if around.walked:
            found["graph"] = around.walked
            scores = fuse([*legs, around.walked], k=self.policy.rrf_k, votes=[*(1.0 for _ in legs), GRAPH_VOTE])
        memories = {
            key: memory
            for key, memory in around.memories.items()
            if query.memory_type is None or memory.memory_type is query.memory_type
        }
        adjusted = adjust(scores, memories, around.updated, now)
        hits = rank(adjusted, memories, found, min_score=query.min_score)
        return RecallResult(hits=hits[: query.limit], total_found=len(hits), notes=tuple(notes))


def terms_of(text: str) -> list[str]:
    """The words of a question that are worth looking for, in order, without repeats.

    Stop words are left out, except where a capital inside the sentence says that they are names ("Will", "May").
    When nothing else is there, the stop words are what was asked for.
    """
    words = [match.group() for match in _WORD.finditer(text)]
    kept = [
        word
        for place, word in enumerate(words)
        if word.lower() not in STOP_WORDS or (place > 0 and len(word) > 1 and word.istitle())
    ]
    return list(dict.fromkeys(word.lower() for word in kept or words))[:MAX_TERMS]


def match_expression(text: str) -> str:
    """A full-text expression: any of the words of a question; empty when it has none.

    Each word is quoted and consists of letters and digits only, so nothing in `text` can be an operator.
    """
    return " OR ".join(f'"{term}"' for term in terms_of(text))


def fuse(
    rankings: Sequence[Sequence[MemoryId]], *, k: int = RRF_K, votes: Sequence[float] | None = None
) -> dict[MemoryId, float]:
    """Combine ranked lists into one score per memory.

    Args:
        rankings: one list per leg, best first, no repeats within a list.
        k: rank offset; the larger, the less the first places stand out.
        votes: weight of each list; None means 1 each.

    Returns:
        Sum over lists of vote / (k + rank), rank from 1.

    Source: Cormack et al. 2009, section 2.
    """
    scores: dict[MemoryId, float] = {}
    for vote, ranking in zip(votes or [1.0] * len(rankings), rankings, strict=True):
        for place, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + vote / (k + place)
    return scores


def adjust(
    scores: Mapping[MemoryId, float],
    memories: Mapping[MemoryId, Memory],
    updated: frozenset[MemoryId],
    now: datetime,
) -> dict[MemoryId, float]:
    """Prefer recent and important memories slightly, and newer versions clearly; unknown memories drop out."""
    adjusted = {}
    for key, score in scores.items():
        if (memory := memories.get(key)) is None:
            continue
        age_days = max(0.0, (now - memory.created_at).total_seconds() / 86_400)
        factor = 1 + RECENCY * 2 ** (-age_days / RECENCY_HALF_LIFE_DAYS) + IMPORTANCE * memory.importance
        adjusted[key] = score * factor * (OUTDATED if key in updated else 1.0)
    return adjusted


def rank(
    scores: Mapping[MemoryId, float],
    memories: Mapping[MemoryId, Memory],
    legs: Mapping[str, Sequence[MemoryId]],
    *,
    min_score: float = 0.0,
) -> tuple[Hit, ...]:
    """Order and number what scored enough; ties by importance, then newest, then id, so the order never varies."""
    members = {name: frozenset(ids) for name, ids in legs.items()}
    ordered = sorted(
        (key for key, score in scores.items() if score >= min_score),
        key=lambda key: (-scores[key], -memories[key].importance, -memories[key].created_at.timestamp(), key),
    )
    return tuple(
        Hit(
            memory=memories[key],
            score=scores[key],
            rank=place,
            legs=tuple(name for name, ids in members.items() if key in ids),
        )
        for place, key in enumerate(ordered, start=1)
    )


def by_position(memories: Sequence[Memory]) -> tuple[Hit, ...]:
    """Hits of a listing: 1.0 for the first, then 1 - i/n (memory spec 7.4)."""
    return tuple(
        Hit(memory=memory, score=1 - index / len(memories), rank=index + 1) for index, memory in enumerate(memories)
    )
