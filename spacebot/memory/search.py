"""Hybrid search: meaning, words and links, one order.

Three legs find candidates. Then each is judged by its scores, by what the question names (people, days, the kind
of answer) and by the memories beside it; or, if the policy says so, the ranks of the legs are fused and nothing
else counts. A leg that fails is logged, named in the answer and left out.

Flow:    read question -> who is named -> vector and text legs -> links and neighbours of the best -> score
         -> adjust -> spread out -> load the first ones
Floor:   memory; may import base, storage
Source:  memory spec 7; measured on LoCoMo: `python -m tests.bench recall`
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Protocol

import trio

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId
from spacebot.memory import ranking
from spacebot.memory.candidates import ByWords, Gathered, by_words, gather, speakers
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import VectorIndex
from spacebot.memory.question import MAX_TERMS, Question, match_expression, read, terms_of
from spacebot.memory.ranking import RRF_K, Candidate, Surroundings, Weights, fuse
from spacebot.memory.store import load, versions
from spacebot.memory.types import Hit, Memory, Query, RecallResult
from spacebot.memory.words import fold, stem
from spacebot.storage.database import Connection, Database

__all__ = [
    "MAX_TERMS", "RRF_K", "Fusion", "SearchPolicy", "Searcher", "adjust", "by_position", "fuse", "match_expression",
    "newest_first",
    "rank", "terms_of",
]  # fmt: skip

log = logging.getLogger(__name__)

CANDIDATES = 120  # per leg; 200 found no more
CONSIDERED = 100  # of all that were scored; what comes behind cannot get to the front any more
STARTS = 5  # a walk begins at the best of what was found; memory spec 7.3
DEPTH = 2  # hops
GRAPH_VOTE = 0.1  # of a full leg: a list ordered by importance must not outvote the two that read the question
RECENCY, RECENCY_HALF_LIFE_DAYS = 0.03, 30.0  # as a tie-break; a stronger preference cost 0.5 to 1.7 points
IMPORTANCE = 0.05
OUTDATED = 0.5  # factor of a memory that has a newer version, with fusion by rank
OUTDATED_SCORE = (
    0.95  # the same of a score, which also stays below a newer one's that fits as well: 0.9 cost 0.3 points
)
LONGEST_HISTORY = 8  # versions of one thing that are put in order
JUST_BELOW = 0.999
ABOUT_EQUAL = 1.15  # a newer version that fits clearly worse speaks of something else; 1.25 cost 0.2 points
ABOUT_EQUAL_TOLD = 1.5  # the same where it was not inferred, but said, that it is the newer version
FULL_SCORE = 25.0  # more than any of 2,800 questions gave a memory (half of them give 12); so scores lie in 0..1
WHY_WORDS = 6
WEIGHTS = Weights()


class Fusion(StrEnum):
    """How what the legs found becomes one order."""

    LINEAR = "linear"  # a weighted sum of scores and features
    RRF = "rrf"  # reciprocal ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPolicy:
    """Numbers and switches of the fusion; the defaults are what measured best.

    `rrf_k`: the larger, the less the first places stand out. The switches say whether a search heeds neighbours in
    the talk, the people named, the days named, the form of a text (length, question, what kind of answer it can
    be), and how good the rest of its talk is.
    """

    fusion: Fusion = Fusion.LINEAR
    rrf_k: int = RRF_K
    candidates: int = CANDIDATES
    graph_depth: int = DEPTH
    hides_names: bool = True  # people's names are not embedded
    neighbours: bool = True
    people: bool = True
    dates: bool = True
    form: bool = True
    talks: bool = True
    weights: Weights = WEIGHTS

    def effective_weights(self) -> Weights:
        """The weights without what is switched off."""
        off = {
            "around": self.neighbours, "answers": self.neighbours, "subject": self.people,
            "chosen_subject": self.people, "stranger": self.people, "begins": self.people, "away": self.people,
            "day": self.dates, "near": self.dates, "size": self.form, "question": self.form, "time": self.form,
            "proper": self.form, "talk": self.talks,
        }  # fmt: skip
        return replace(self.weights, **{name: 0.0 for name, is_on in off.items() if not is_on})


class Ranked(Protocol):
    """What order and adjustment look at."""

    @property
    def importance(self) -> float: ...
    @property
    def created_at(self) -> datetime: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Searcher:
    """What a hybrid search needs."""

    database: Database
    index: VectorIndex
    embedder: Embedder
    policy: SearchPolicy

    async def hybrid(self, query: Query, now: datetime) -> RecallResult:
        """Search with all three legs.

        Errors: StorageError when neither meaning nor words could be searched.
        """
        question = await self._understand(query, now)
        wanted = max(self.policy.candidates, 2 * query.limit)
        near: dict[MemoryId, float] | None = None
        words: ByWords | None = None
        notes: list[str] = []

        async def vector() -> None:
            nonlocal near
            try:
                (row,) = await self.embedder.embed([question.meaning])
                found = await self.index.nearest(row, query.viewer, limit=wanted, memory_type=query.memory_type)
            except StorageError as error:
                log.warning("vector leg failed", exc_info=error)
                notes.append(f"search by meaning failed, found by words only: {error}")
                return
            near = {neighbour.id: neighbour.similarity for neighbour in found.neighbours}
            if found.note:
                notes.append(found.note)

        async def text() -> None:
            nonlocal words
            try:
                words = await self.database.read(
                    partial(
                        by_words, question=question, viewer=query.viewer, memory_type=query.memory_type, limit=wanted
                    )
                )
            except StorageError as error:
                log.warning("text leg failed", exc_info=error)
                notes.append(f"search by words failed, found by meaning only: {error}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(vector)
            nursery.start_soon(text)
        if near is None and words is None:
            raise StorageError("memory search failed: " + "; ".join(notes))
        judge = partial(self._judge, query=query, question=question, near=near or {}, words=words, now=now)
        hits, total = await self.database.read(judge)
        return RecallResult(hits=hits, total_found=total, notes=tuple(notes))

    async def _understand(self, query: Query, now: datetime) -> Question:
        question = read(query.text, now.date())
        people: list[str] = []
        if question.names:
            try:
                people = await self.database.read(partial(speakers, names=question.names, viewer=query.viewer))
            except StorageError as error:  # the legs will say so, if it lasts
                log.warning("people named in a question not looked up", exc_info=error)
        return question.about(people, keep_names=not self.policy.hides_names)

    def _judge(
        self,
        connection: Connection,
        *,
        query: Query,
        question: Question,
        near: Mapping[MemoryId, float],
        words: ByWords | None,
        now: datetime,
    ) -> tuple[tuple[Hit, ...], int]:
        """The hits, and how many were found; in one thread, because a hop to another takes as long as a read."""
        known = () if words is None else words.candidates
        legs = {"vector": list(near), "text": [candidate.id for candidate in known]}
        fused = fuse(list(legs.values()), k=self.policy.rrf_k)
        best = sorted(fused, key=lambda key: (-fused[key], key))
        gathered = gather(
            connection,
            known,
            near,
            starts=best[:STARTS],
            seeds=best[: ranking.SEEDS] if self.policy.neighbours else (),
            viewer=query.viewer,
            memory_type=query.memory_type,
            depth=self.policy.graph_depth,
        )
        candidates = gathered.candidates
        is_linear = self.policy.fusion is Fusion.LINEAR
        scores = self._by_score(question, words, gathered) if is_linear else self._by_rank(question, legs, gathered)
        considered = sorted(scores, key=lambda key: (-scores[key], key))[: max(CONSIDERED, 2 * query.limit)]
        scores = {key: scores[key] for key in considered}
        pairs = versions(connection, considered, query.viewer)
        old = frozenset(older for _, older in pairs)
        adjusted = adjust(scores, candidates, old, now, outdated=OUTDATED_SCORE if is_linear else OUTDATED)
        adjusted = newest_first(adjusted, pairs)
        if self.policy.talks and is_linear:
            talks = {key: candidates[key].talk for key in adjusted}
            step = ranking.DIVERSITY / FULL_SCORE
            adjusted = ranking.spread_out(in_order(adjusted, candidates), adjusted, talks, step)
        ordered = in_order(adjusted, candidates, query.min_score)
        memories = load(connection, ordered[: query.limit], query.viewer)
        chosen = [key for key in ordered[: query.limit] if key in memories]
        found = {key: candidates[key].found for key in chosen}
        whys = {key: why(question, candidates[key]) for key in chosen}
        return _numbered(chosen, adjusted, memories, found, whys), len(ordered)

    def _by_rank(
        self, question: Question, legs: Mapping[str, Sequence[MemoryId]], gathered: Gathered
    ) -> dict[MemoryId, float]:
        lists = [*legs.values(), gathered.walked]
        scores = fuse(lists, k=self.policy.rrf_k, votes=[*(1.0 for _ in legs), GRAPH_VOTE])
        known = {key: candidate for key, candidate in gathered.candidates.items() if key in scores}
        factors = ranking.boost(question, known, speaker=self.policy.people, dates=self.policy.dates)
        return {key: scores[key] * factors[key] for key in known}

    def _by_score(self, question: Question, words: ByWords | None, gathered: Gathered) -> dict[MemoryId, float]:
        counts = dict.fromkeys(question.stems, 0) if words is None else words.counts
        rarity = ranking.rarity_of(counts, len(gathered.candidates) if words is None else words.total)
        surroundings = Surroundings(gathered.candidates.values(), uses_neighbours=self.policy.neighbours)
        scores = ranking.score(question, surroundings, rarity, self.policy.effective_weights())
        return {key: min(1.0, max(0.0, score / FULL_SCORE)) for key, score in scores.items()}


def adjust(
    scores: Mapping[MemoryId, float],
    memories: Mapping[MemoryId, Ranked],
    updated: frozenset[MemoryId],
    now: datetime,
    *,
    outdated: float = OUTDATED,
) -> dict[MemoryId, float]:
    """Prefer recent and important memories slightly, and newer versions clearly; unknown memories drop out."""
    adjusted = {}
    for key, score in scores.items():
        if (memory := memories.get(key)) is None:
            continue
        age_days = max(0.0, (now - memory.created_at).total_seconds() / 86_400)
        factor = 1 + RECENCY * 2 ** (-age_days / RECENCY_HALF_LIFE_DAYS) + IMPORTANCE * memory.importance
        adjusted[key] = score * factor * (outdated if key in updated else 1.0)
    return adjusted


def newest_first(
    scores: Mapping[MemoryId, float], pairs: Mapping[tuple[MemoryId, MemoryId], bool]
) -> dict[MemoryId, float]:
    """Scores under which an older version does not go before its newer one, if that fits the question about as well.

    Args:
        pairs: newer, older; and whether somebody said so.
    """
    capped = dict(scores)
    for _ in range(LONGEST_HISTORY):
        changed = False
        for (newer, older), is_told in pairs.items():
            most = capped.get(newer, 0.0) * JUST_BELOW
            about = most * (ABOUT_EQUAL_TOLD if is_told else ABOUT_EQUAL)
            if older in capped and most < capped[older] <= about:
                capped[older], changed = most, True
        if not changed:
            break
    return capped


def in_order(
    scores: Mapping[MemoryId, float], memories: Mapping[MemoryId, Ranked], min_score: float = 0.0
) -> list[MemoryId]:
    """What scored enough, best first; ties by importance, then newest, then id, so the order never varies."""
    return sorted(
        (key for key, score in scores.items() if score >= min_score),
        key=lambda key: (-scores[key], -memories[key].importance, -memories[key].created_at.timestamp(), key),
    )


def rank(
    scores: Mapping[MemoryId, float],
    memories: Mapping[MemoryId, Memory],
    legs: Mapping[str, Sequence[MemoryId]],
    *,
    min_score: float = 0.0,
) -> tuple[Hit, ...]:
    """Order and number what scored enough."""
    members = {name: frozenset(ids) for name, ids in legs.items()}
    found = {key: [name for name, ids in members.items() if key in ids] for key in scores}
    return _numbered(in_order(scores, memories, min_score), scores, memories, found, {})


def why(question: Question, candidate: Candidate) -> str:
    """A short plain sentence on why a memory was found."""
    known = ranking.reading(candidate.content).stems
    shared = [term for term in question.terms if stem(fold(term)) in known][:WHY_WORDS]
    parts = [f"words: {', '.join(shared)}"] if shared else []
    if candidate.cosine is not None:
        parts.append(f"meaning {candidate.cosine:.2f}")
    if candidate.walk:
        parts.append("linked to what was found")
    if ranking.fits_date(question, candidate):
        parts.append(f"of {candidate.day}")
    return "; ".join(parts) or "beside what was found"


def by_position(memories: Sequence[Memory]) -> tuple[Hit, ...]:
    """Hits of a listing: 1.0 for the first, then 1 - i/n (memory spec 7.4)."""
    return tuple(
        Hit(memory=memory, score=1 - index / len(memories), rank=index + 1) for index, memory in enumerate(memories)
    )


def _numbered(
    ordered: Sequence[MemoryId],
    scores: Mapping[MemoryId, float],
    memories: Mapping[MemoryId, Memory],
    found: Mapping[MemoryId, Sequence[str]],
    whys: Mapping[MemoryId, str],
) -> tuple[Hit, ...]:
    return tuple(
        Hit(memory=memories[key], score=scores[key], rank=place, legs=tuple(found[key]), why=whys.get(key, ""))
        for place, key in enumerate(ordered, start=1)
    )
