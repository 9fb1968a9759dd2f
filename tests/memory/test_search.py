"""The pure part of the search: words of a question, fusion, adjustment, order."""

import sqlite3
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.ids import MemoryId
from spacebot.memory.search import MAX_TERMS, adjust, fuse, match_expression, newest_first, rank, terms_of
from spacebot.memory.types import Memory, MemoryType

NOW = datetime(2026, 3, 1, tzinfo=UTC)
rankings = st.lists(st.lists(st.sampled_from([MemoryId(c) for c in "abcdefgh"]), unique=True), max_size=4)


def memory(key: str, *, importance: float = 0.5, age_days: float = 1) -> Memory:
    created = NOW - timedelta(days=age_days)
    return Memory(
        id=MemoryId(key),
        content=key,
        memory_type=MemoryType.FACT,
        importance=importance,
        created_at=created,
        updated_at=created,
        last_accessed_at=created,
    )


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("What did Will say about the budget?", ["will", "say", "budget"]),
        ("Will it rain in May?", ["rain", "may"]),
        ("who are you", ["who", "are", "you"]),
        ('NEAR("a" b) OR content:x* -y ^z', ["near", "b", "content", "x", "y", "z"]),
        ("?!", []),
        ("budget Budget BUDGET", ["budget"]),
    ],
)
def test_the_words_of_a_question_are_its_names_and_contents(question: str, terms: list[str]) -> None:
    assert terms_of(question) == terms


@given(st.text())
def test_no_text_becomes_full_text_syntax(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5 (content)")
        if expression := match_expression(text):
            connection.execute("SELECT * FROM t WHERE t MATCH ?", (expression,)).fetchall()
    finally:
        connection.close()


def test_a_pasted_page_is_cut_to_its_first_words() -> None:
    assert len(terms_of(" ".join(f"word{n}" for n in range(1000)))) == MAX_TERMS


@given(rankings, st.integers(1, 100))
def test_fusion_sums_one_share_per_list(lists: list[list[MemoryId]], k: int) -> None:
    scores = fuse(lists, k=k)
    assert scores.keys() == {key for ranking in lists for key in ranking}
    for key, score in scores.items():
        assert score == pytest.approx(sum(1 / (k + r.index(key) + 1) for r in lists if key in r))
        assert 0 < score <= len(lists) / (k + 1) + 1e-12  # the sum of fractions may round up


@given(rankings)
def test_a_memory_that_is_ahead_in_every_list_is_ahead_in_the_end(lists: list[list[MemoryId]]) -> None:
    scores = fuse(lists)
    for first in scores:
        for second in scores:
            if all(first in r and (second not in r or r.index(first) < r.index(second)) for r in lists):
                assert first == second or scores[first] > scores[second]


@given(rankings, st.sets(st.sampled_from([MemoryId(c) for c in "abcdefgh"])))
def test_ranks_have_no_gaps_and_the_order_never_varies(lists: list[list[MemoryId]], updated: set[MemoryId]) -> None:
    memories = {MemoryId(c): memory(c, importance=ord(c) % 3 / 3) for c in "abcdef"}
    scores = adjust(fuse(lists), memories, frozenset(updated), NOW)
    legs = {str(place): ranking for place, ranking in enumerate(lists)}
    hits = rank(scores, memories, legs)
    backwards = rank(dict(reversed(scores.items())), dict(reversed(memories.items())), legs)

    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit.memory.id for hit in hits] == [hit.memory.id for hit in backwards]
    assert all(first.score >= second.score for first, second in pairwise(hits))


def test_a_newer_version_goes_before_the_older_one() -> None:
    memories = {MemoryId(c): memory(c) for c in "ab"}
    scores = adjust(fuse([["a", "b"], ["a", "b"]]), memories, frozenset({MemoryId("a")}), NOW)
    assert scores[MemoryId("b")] > scores[MemoryId("a")]


@given(
    st.dictionaries(st.sampled_from([MemoryId(c) for c in "abcdef"]), st.floats(0, 1)),
    st.lists(st.tuples(*[st.sampled_from([MemoryId(c) for c in "abcdef"])] * 2), max_size=6),
)
def test_no_older_version_goes_before_its_newer_one(
    scores: dict[MemoryId, float], pairs: list[tuple[MemoryId, MemoryId]]
) -> None:
    history = {(newer, older): (ord(newer) + ord(older)) % 2 == 0 for newer, older in pairs if newer < older}
    capped = newest_first(scores, history)
    assert capped.keys() == scores.keys()
    assert all(capped[key] <= scores[key] for key in scores)
    for (newer, older), is_told in history.items():
        if newer in capped and older in capped:
            assert capped[newer] >= capped[older] or capped[older] > (1.4 if is_told else 1.1) * capped[newer]


def test_age_and_importance_only_break_near_ties() -> None:
    memories = {
        MemoryId("a"): memory("a", importance=0, age_days=3650),
        MemoryId("b"): memory("b", importance=1, age_days=0),
    }
    assert (s := adjust(fuse([["a", "b"]]), memories, frozenset(), NOW))[MemoryId("a")] > s[MemoryId("b")] * 0.9
    far = adjust(fuse([["a", "x", "y", "b"], ["a", "x", "y", "b"]]), memories, frozenset(), NOW)
    assert far[MemoryId("a")] > far[MemoryId("b")]


def test_scores_below_the_wanted_one_are_left_out_before_numbering() -> None:
    memories = {MemoryId(c): memory(c) for c in "abc"}
    hits = rank({MemoryId("a"): 0.3, MemoryId("b"): 0.1, MemoryId("c"): 0.2}, memories, {}, min_score=0.15)
    assert [(hit.memory.id, hit.rank) for hit in hits] == [("a", 1), ("c", 2)]


@pytest.mark.parametrize(("is_told", "first"), [(True, "b"), (False, "a")])
def test_what_somebody_said_to_be_newer_goes_first_even_if_it_fits_somewhat_worse(is_told: bool, first: str) -> None:
    newer, older = MemoryId("b"), MemoryId("a")
    capped = newest_first({older: 0.45, newer: 0.35}, {(newer, older): is_told})
    assert max(capped, key=lambda key: capped[key]) == first
