"""What a question names, without any store: people, days, words; and words as they are compared."""

import sqlite3
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.memory.question import Span, match_expression, read, spans_of, without
from spacebot.memory.words import stem, stems

TODAY = date(2026, 3, 11)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("What did we decide on 7 May 2023?", [Span(2023, (5, 7), (5, 7))]),
        ("What did we decide on May 7th, 2023?", [Span(2023, (5, 7), (5, 7))]),
        ("What happened on 2023-05-07?", [Span(2023, (5, 7), (5, 7))]),
        ("Who joined in May 2023 and in July?", [Span(2023, (5, 1), (5, 31)), Span(None, (7, 1), (7, 31))]),
        ("Where were we in summer 2021?", [Span(2021, (6, 1), (8, 31))]),
        ("May I ask what may come?", []),
        ("What was on 31 February 2023?", [Span(2023, (2, 1), (2, 31))]),
        ("What broke yesterday?", [Span(2026, (3, 10), (3, 10))]),
        ("What broke last week?", [Span(2026, (3, 2), (3, 8))]),
        ("What broke last month?", [Span(2026, (2, 1), (2, 31))]),
        ("What costs 2023 euros?", []),
    ],
)
def test_the_days_of_a_question(text: str, spans: list[Span]) -> None:
    assert spans_of(text, TODAY) == spans


def test_a_day_fits_itself_best_and_its_surroundings_somewhat() -> None:
    day, month = Span(2023, (5, 7), (5, 7)), Span(None, (5, 1), (5, 31))
    assert [day.fits(date(2023, 5, d)) for d in (7, 8, 15, 30)] == [1.0, 1.0, 0.5, 0.0]
    assert [month.fits(date(year, 5, 31)) for year in (2020, 2024)] == [0.5, 0.5]
    assert Span(None, (2, 29), (2, 29)).fits(date(2023, 3, 1)) == 1.0


@pytest.mark.parametrize(
    ("text", "people", "subject", "meaning"),
    [
        ("When did Caroline paint?", ["caroline"], "caroline", "When did paint?"),
        ("What did Jon say about Gina's shop?", ["jon", "gina"], "jon", "What did say about shop?"),
        ("What does Gina's sister tell Jon?", ["jon", "gina"], "jon", "What does sister tell ?"),
        ("Who is Jon?", ["jon"], "jon", "Who is Jon?"),
        ("Where is Johnson's office?", ["john"], None, "Where is Johnson's office?"),
        ("what does ann drink", ["ann"], "ann", "what does drink"),
    ],
)
def test_people_are_taken_out_of_what_is_embedded(
    text: str, people: list[str], subject: str | None, meaning: str
) -> None:
    question = read(text, TODAY).about(people)
    assert (question.subject, question.meaning) == (subject, meaning)
    assert read(text, TODAY).about(people, keep_names=True).meaning == text


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_any_text_can_be_read(text: str, people: list[str]) -> None:
    question = read(text, TODAY).about(people)
    assert set(question.names) <= set(people)
    assert question.meaning == text or question.names
    assert len(question.stems) <= len(question.terms)
    assert without(text, []) == text


@pytest.mark.parametrize(
    "text",
    [
        'NEAR("a" b, 5) AND content:x* NOT y',
        "^first - + ( ) { } : \" ' ; --",
        "💥 👩‍👩‍👧 שלום مرحبا \u202edrow",
        "word " * 10_000,
        "İstanbul straße ﬁne",
        "went AND OR NOT NEAR",
    ],
)
def test_no_question_is_full_text_syntax(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5 (content, source)")
        if expression := match_expression(text):
            connection.execute("SELECT * FROM t WHERE t MATCH ?", (expression,)).fetchall()
        for name in read(text, TODAY).names:
            connection.execute("SELECT * FROM t WHERE t MATCH ?", (f'^"{name}"',)).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "group",
    [
        ["go", "goes", "went", "gone", "going"],
        ["paint", "paints", "painted", "painting"],
        ["plan", "plans", "planned", "planning"],
        ["story", "stories"],
        ["child", "children"],
        ["write", "writes", "wrote", "writing"],
        ["café", "Cafe", "CAFÉS"],
    ],
)
def test_forms_of_a_word_are_one(group: list[str]) -> None:
    assert len({stems(word) for word in group}) == 1


@given(st.text())
def test_words_of_any_text_can_be_compared(text: str) -> None:
    assert stems(text) == stems(text.upper().lower()) or not text.isascii()
    assert all(stem(word) for word in stems(text))
