"""Reads what a hybrid search weighs: memories found by words, by links, and those beside them.

Every statement takes the viewer's scope: what he may not see is no candidate, no neighbour and no known name.

Flow:    speakers -> by_words -> gather -> Candidate
Floor:   memory; may import base, storage
Source:  memory spec 7.3 and pitfalls P-18, P-19, P-44
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spacebot.base.ids import MemoryId
from spacebot.memory.question import Question, term_expression
from spacebot.memory.ranking import AFTER, BEFORE, Candidate, people_of, reading
from spacebot.memory.store import LIVE, VISIBLE, scope, walk
from spacebot.memory.types import MemoryType, Viewer
from spacebot.memory.words import fold, stem
from spacebot.storage.database import Connection, Row

COUNTED = 5000  # a word of more memories than this says little anyway
WEIGHED = 2000  # memories that a search by words weighs; words that would bring more are left out, the rarest stays
FIRST_CUT = 3  # times the limit are looked up; mostly so many are visible, else all that match are
WALKED = 30  # memories that links lead to; they count for little, but each is looked at
LOOKED_AT = 12  # memories that begin with a name
SAID, TOLD = 2, 4  # so many begin "Name: …", or tell of somebody with his name first, and he is known
_LIGHT = (
    "m.id, m.content, m.source, m.subject, m.channel_id, m.is_private, m.owner, m.place, m.created_at, m.importance"
)
_KIND = "(:type IS NULL OR m.memory_type = :type)"
_SCORED = (  # bm25 and the look at a row cost about as much, 1 us each
    "SELECT rowid AS seq, bm25(memories_fts) AS score FROM memories_fts WHERE memories_fts MATCH :terms "
    "ORDER BY score, rowid LIMIT :first"
)
_SCORED_VISIBLE = (
    "SELECT m.seq, bm25(memories_fts) AS score FROM memories_fts JOIN memories m ON m.seq = memories_fts.rowid "
    f"WHERE memories_fts MATCH :terms AND {LIVE} AND {VISIBLE} AND {_KIND} ORDER BY score, m.seq LIMIT :limit"
)
_BY_WORDS = (
    f"SELECT {_LIGHT}, f.score FROM (%s) f CROSS JOIN memories m ON m.seq = f.seq "
    f"WHERE {LIVE} AND {VISIBLE} AND {_KIND} ORDER BY f.score, m.seq LIMIT :limit"
)
_BY_ID = (
    f"SELECT {_LIGHT} FROM memories m WHERE m.id IN (SELECT value FROM json_each(:ids)) "
    f"AND {LIVE} AND {VISIBLE} AND {_KIND}"
)
_BESIDE = (
    f"SELECT {_LIGHT} FROM json_each(:ids) s JOIN memories a ON a.id = s.value CROSS JOIN memories m "
    "ON m.channel_id IS a.channel_id AND m.is_private = a.is_private AND m.owner IS a.owner "
    f"AND m.place BETWEEN a.place - {BEFORE} AND a.place + {AFTER} WHERE {LIVE} AND {VISIBLE} AND {_KIND}"
)
_BEGINNING = (
    "SELECT m.content, m.source FROM memories_fts JOIN memories m ON m.seq = memories_fts.rowid "
    f"WHERE memories_fts MATCH :terms AND {LIVE} AND {VISIBLE} LIMIT {LOOKED_AT}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """All candidates of a search by id."""

    candidates: Mapping[MemoryId, Candidate]
    walked: tuple[MemoryId, ...]  # best first, without the starting points


@dataclass(frozen=True, slots=True, kw_only=True)
class ByWords:
    """What the full text found, best first, and how many of about `total` memories have each stem of the question."""

    candidates: tuple[Candidate, ...]
    counts: Mapping[str, int]
    total: int


def speakers(connection: Connection, names: Sequence[str], viewer: Viewer) -> list[str]:
    """Which of these words are people (or whatever else memories keep telling of), as far as the viewer may know.

    Somebody is known when visible memories were said by him ("Name: …", or the source), or begin with his name.
    """
    known = []
    for name in names:
        rows = connection.execute(_BEGINNING, {**scope(viewer), "terms": f'^"{name}"'}).fetchall()
        folded = fold(name)
        said = sum(folded in people_of(row["content"], row["source"]) for row in rows)
        told = sum(row["content"][:1].isupper() and fold(row["content"]).startswith(folded) for row in rows)
        if said >= SAID or told >= TOLD:
            known.append(name)
    return known


def by_words(
    connection: Connection, question: Question, viewer: Viewer, memory_type: MemoryType | None, limit: int
) -> ByWords:
    """Full text by bm25, best first, ties by age.

    Time: 2 to 6 ms, whatever the size of the store: words that very many memories have are not searched for.
    """
    expressions = {term: term_expression(term) for term in question.terms}
    having = {
        term: connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM memories_fts WHERE memories_fts MATCH ? LIMIT ?)",
            (expression, COUNTED),
        ).fetchone()[0]
        for term, expression in expressions.items()
    }
    (total,) = connection.execute("SELECT coalesce(max(seq), 0) FROM memories").fetchone()
    parameters = {
        **scope(viewer),
        "terms": " OR ".join(expressions[term] for term in _selective(having)),
        "type": memory_type,
        "limit": limit,
        "first": FIRST_CUT * limit,
    }
    rows: list[Row] = []
    if parameters["terms"]:
        rows = connection.execute(_BY_WORDS % _SCORED, parameters).fetchall()
        if len(rows) < limit and sum(having.values()) > FIRST_CUT * limit:
            rows = connection.execute(_BY_WORDS % _SCORED_VISIBLE, parameters).fetchall()
    found = []
    for row in rows:
        candidate = _candidate(row)
        candidate.bm25 = -row["score"]
        candidate.found.append("text")
        found.append(candidate)
        reading(candidate.content)  # while the model is at work on the question; judging it finds it done
    wanted = frozenset(question.stems)
    counts = {key: count for term, count in having.items() if (key := stem(fold(term))) in wanted}
    return ByWords(candidates=tuple(found), counts=counts, total=total)


def _selective(having: Mapping[str, int]) -> list[str]:
    """The rarest words of a question that not too many memories have, in the order of the question."""
    chosen: set[str] = set()
    rows = 0
    for term in sorted(having, key=lambda term: having[term]):
        rows += having[term]
        if rows > WEIGHED and any(having[other] for other in chosen):
            break
        chosen.add(term)
    return [term for term in having if term in chosen]


def gather(
    connection: Connection,
    known: Iterable[Candidate],
    near: Mapping[MemoryId, float],
    *,
    starts: Sequence[MemoryId],
    seeds: Sequence[MemoryId],
    viewer: Viewer,
    memory_type: MemoryType | None,
    depth: int,
    limit: int = WALKED,
) -> Gathered:
    """Put together what was found by words and by meaning, what links lead to, and what stands beside the best.

    Args:
        near: cosines by id.
        starts: from where links are followed.
        seeds: whose neighbours are wanted.
        limit: of memories that links lead to.
    """
    candidates = {candidate.id: candidate for candidate in known}
    walks = walk(connection, starts, viewer, depth) if depth else {}
    best = sorted(walks, key=lambda key: (-walks[key], key))[:limit]
    base = {**scope(viewer), "type": memory_type}
    missing = [key for key in {**near, **dict.fromkeys(best)} if key not in candidates]
    for statement, ids in ((_BY_ID, missing), (_BESIDE, list(seeds))):
        if ids:
            for row in connection.execute(statement, {**base, "ids": json.dumps(ids)}):
                if row["id"] not in candidates:
                    candidates[row["id"]] = _candidate(row)
    for key, cosine in near.items():
        if (candidate := candidates.get(key)) is not None:
            candidate.cosine = cosine
            candidate.found.insert(0, "vector")
    walked = tuple(key for key in best if key in candidates)
    for key in walked:
        candidates[key].walk = walks[key]
        candidates[key].found.append("graph")
    return Gathered(candidates=candidates, walked=walked)


def _candidate(row: Row) -> Candidate:
    key, content, source, subject, channel_id, is_private, owner, place, created_at, importance, *_ = row
    return Candidate(
        id=MemoryId(key),
        content=content,
        said_at=created_at,
        importance=importance,
        conversation=(channel_id, is_private, owner),
        place=place,
        source=source,
        subject=subject,
    )
