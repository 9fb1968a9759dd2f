"""The order of candidates, from values alone."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.clock import to_text
from spacebot.base.ids import MemoryId
from spacebot.memory.question import read
from spacebot.memory.ranking import (
    Candidate,
    Surroundings,
    Weights,
    boost,
    features,
    people_of,
    rarity_of,
    score,
    spread_out,
)

DAY = datetime(2023, 5, 7, 12, tzinfo=UTC)
ROOM = ("chat:room", 0, None)


def candidate(key: str, content: str = "text", place: int | None = None, **fields: object) -> Candidate:
    settings: dict[str, object] = {"conversation": ROOM, "said_at": to_text(DAY), **fields}
    return Candidate(id=MemoryId(key), content=content, place=place, **settings)  # type: ignore[arg-type]


def order(
    text: str, candidates: list[Candidate], people: tuple[str, ...] = (), weights: Weights | None = None
) -> list[str]:
    question = read(text, date(2026, 1, 1)).about(people)
    rarity = rarity_of(dict.fromkeys(question.stems, 1), 100)
    scores = score(question, Surroundings(candidates), rarity, weights or Weights())
    return sorted(scores, key=lambda key: (-scores[key], key))


def test_the_answer_beside_a_good_question_goes_before_a_stray_sentence() -> None:
    asked = candidate("a", "Ann: Where did you buy the blue kayak?", 4, bm25=9.0, cosine=0.6)
    answer = candidate("b", "Bob: At the harbour market, two weeks ago.", 5, bm25=0.0, cosine=0.2)
    stray = candidate("c", "Bob: At the station kiosk, two weeks ago.", 90, bm25=0.0, cosine=0.2)
    assert order("Where was the blue kayak bought?", [asked, answer, stray]).index("b") < 2
    assert order("Where was the blue kayak bought?", [asked, answer, stray])[-1] == "c"


def test_neighbours_are_of_the_same_conversation_and_day() -> None:
    first = candidate("a", place=1)
    other_room = candidate("b", place=2, conversation=("chat:other", 0, None))
    other_day = candidate("c", place=2, said_at=to_text(DAY + timedelta(days=1)))
    private = candidate("d", place=2, conversation=("chat:room", 1, "chat:ann"))
    beside = candidate("e", place=2)
    assert Surroundings([first, other_room, other_day, private]).near[0] == []
    assert Surroundings([first, other_room, beside]).near == [[2], [], [0]]
    assert Surroundings([first, beside], uses_neighbours=False).near == [[], []]


def test_the_named_person_and_day_come_first() -> None:
    ann = candidate("a", "Ann: I went sailing.", bm25=1.0)
    bob = candidate("b", "Bob: I went sailing.", bm25=1.0)
    later = candidate("c", "Bob: I went sailing.", bm25=1.0, said_at=to_text(DAY + timedelta(days=90)))
    assert order("Did Bob sail on 7 May 2023?", [ann, bob, later], ("bob",))[0] == "b"
    question = read("Did Bob sail on 7 May 2023?", date(2026, 1, 1)).about(["bob"])
    factors = boost(question, {c.id: c for c in (ann, bob, later)}, speaker=True, dates=True)
    assert factors[bob.id] > factors[later.id] > 1
    assert factors[bob.id] > factors[ann.id]


def test_who_speaks() -> None:
    assert people_of("Ann Lee: hello", None) == {"ann", "lee"}
    assert people_of("It rains: a lot", "Bob") == {"it", "rains"}
    assert people_of("hello", "José") == {"jose"}
    assert people_of("hello", "notes/2023.txt", ("chat:ann", None)) == {"ann"}


@given(st.lists(st.tuples(st.floats(0, 30), st.one_of(st.none(), st.floats(-1, 1)), st.integers(1, 40)), max_size=30))
def test_scores_are_finite_and_do_not_depend_on_the_order_of_candidates(
    rows: list[tuple[float, float | None, int]],
) -> None:
    found = [
        candidate(f"{n:03}", f"Ann: text {n}?", place, bm25=bm25, cosine=cosine)
        for n, (bm25, cosine, place) in enumerate(rows)
    ]
    unique = list({c.place: c for c in found}.values())
    question = read("When did Ann text?", date(2026, 1, 1)).about(["ann"])
    forwards = features(question, Surroundings(unique), {"text": 1.0})
    backwards = features(question, Surroundings(unique[::-1]), {"text": 1.0})
    assert forwards == backwards
    assert all(
        0 <= value <= 1 + 1e-9
        for values in forwards.values()
        for name, value in values.items()
        if name not in ("size", "cosine", "around")
    )


@given(
    st.dictionaries(st.sampled_from([MemoryId(c) for c in "abcdefgh"]), st.floats(0, 1), min_size=1), st.floats(0, 0.5)
)
def test_spreading_out_lowers_only_later_ones_of_a_talk(scores: dict[MemoryId, float], step: float) -> None:
    ordered = sorted(scores, key=lambda key: (-scores[key], key))
    talks = {key: "ab".index(key) if key in "ab" else 2 for key in scores}
    changed = spread_out(ordered, scores, talks, step)
    assert changed.keys() == scores.keys()
    assert all(0 <= changed[key] <= scores[key] for key in scores)
    assert {key: changed[key] for key in ordered[:1]} == {key: scores[key] for key in ordered[:1]}
    alone = spread_out(ordered, scores, dict.fromkeys(scores, 1), step)
    assert alone == scores


@pytest.mark.parametrize("count", [0, 1, 50, 1000])
def test_rare_words_say_more(count: int) -> None:
    rarity = rarity_of({"rare": count, "common": count + 1}, 100)
    assert rarity["rare"] >= rarity["common"] > 0


def test_the_one_asked_about_is_looked_for_where_he_speaks() -> None:
    about = candidate("a", "Bob keeps bees behind the house.", conversation=("facts", 0, None))
    mentions = candidate("b", "Ann likes the bees that Bob keeps.", conversation=("facts", 0, None))
    elsewhere = candidate("c", "Eve: bees and a house", conversation=("other", 0, None))
    found = features(
        read("Where does Bob keep his bees?", date(2026, 1, 1)).about(["bob"]),
        Surroundings([about, mentions, elsewhere]),
        {"bee": 1.0},
    )
    assert [found[c.id]["begins"] for c in (about, mentions, elsewhere)] == [1.0, 0.0, 0.0]
    assert [found[c.id]["away"] for c in (about, mentions, elsewhere)] == [0.0, 0.0, 1.0]
    nobody = features(read("Where are bees?", date(2026, 1, 1)), Surroundings([about, elsewhere]), {"bee": 1.0})
    assert all(values["away"] == values["begins"] == 0 for values in nobody.values())
