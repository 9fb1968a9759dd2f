"""Cutting documents: nothing lost, nothing too long, nothing cut that reads as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.agent.chunking import fitting_size, split_chunks

TEXTS = st.text(
    alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("\n\n \t.!?aé😀👩\u200d🇩🇪\u0301\ufe0f#"))
)
FAMILY, FLAG, ACCENTED = "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "e\u0301"


def texts(text: str, size: int) -> list[str]:
    return [chunk.text for chunk in split_chunks(text, size)]


@pytest.mark.spec("M-P30")
@given(TEXTS, st.integers(1, 60))
def test_the_pieces_are_the_text_and_none_is_too_long(text: str, size: int) -> None:
    pieces = texts(text, size)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


@given(st.lists(st.text("ab ", max_size=20), max_size=30), st.integers(21, 60))
def test_lines_that_fit_are_never_cut_and_chunks_are_filled(lines: list[str], size: int) -> None:
    text = "\n".join(lines)
    pieces = texts(text, size)
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    firsts = [piece.splitlines(keepends=True)[0] for piece in pieces[1:]]
    assert all(len(piece) + len(first) > size for piece, first in zip(pieces, firsts, strict=False))


@pytest.mark.parametrize(("text", "size"), [("words " * 100, 2000), ("日" * 100, 666), ("😀" * 100, 500), ("", 2000)])
def test_a_chunk_leaves_half_of_a_small_models_window(text: str, size: int) -> None:
    assert fitting_size(text, 100_000, 1000) == size
    assert fitting_size(text, 100, 1000) == 100


def test_a_short_text_is_one_chunk() -> None:
    assert texts("one\ntwo\n", 8) == ["one\ntwo\n"]
    assert texts("", 8) == []


def test_a_long_line_is_cut_at_sentences_then_at_words_then_hard() -> None:
    assert texts("First one. Second one. Third", 24) == ["First one. Second one. ", "Third"]
    assert texts("alpha beta gamma delta", 12) == ["alpha beta ", "gamma delta"]
    assert texts("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert texts("一二三。四五六七八", 6) == ["一二三。", "四五六七八"]


@pytest.mark.spec("M-P30")
@pytest.mark.parametrize("sign", [FAMILY, FLAG, ACCENTED, "👍🏽", "❤️"])
@pytest.mark.parametrize("offset", range(8))
def test_what_reads_as_one_sign_stays_whole(sign: str, offset: int) -> None:
    text = "x" * offset + sign * 12
    pieces = texts(text, 20)
    assert "".join(pieces) == text
    assert all(piece.removeprefix("x" * offset).replace(sign, "") == "" for piece in pieces)


def test_an_endless_sign_is_cut_all_the_same() -> None:
    assert texts("a" + "\u0301" * 500, 100)[0] == "a" + "\u0301" * 99


def test_a_chunk_knows_the_headings_above_it() -> None:
    text = "# Team\nintro\n## Ann\nlikes tea\n## Bob\nlikes milk\n# Other\nend\n"
    assert [(chunk.text.split("\n")[0], chunk.heading) for chunk in split_chunks(text, 17)] == [
        ("# Team", ""),
        ("## Ann", "Team"),
        ("## Bob", "Team > Ann"),
        ("likes milk", "Team > Bob"),
        ("# Other", "Team > Bob"),
    ]


def test_ten_million_characters_in_one_line_are_cut_quickly_enough_to_wait_for() -> None:
    for line in ("word " * 400_000, "x" * 2_000_000, FLAG * 200_000):
        pieces = texts(line, 4000)
        assert "".join(pieces) == line
        assert len(pieces) <= len(line) // 2000 + 1
