"""Texts in pieces that a platform takes."""

import html
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.messaging.text import (
    replace_mentions,
    split,
    split_for,
    split_telegram,
    to_discord,
    to_plain,
    to_slack,
    to_telegram,
    utf16_length,
)
from tests.messaging.test_text import GLUE, check_telegram

MEASURES: list[Callable[[str], int]] = [len, utf16_length, lambda text: len(text.encode())]
PROSE = [sign for sign in GLUE if not re.search(r"```|~~~|\||py", sign)]


def letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def is_in_order(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(character in rest for character in part)


def texts(signs: list[str] | tuple[str, ...], size: int) -> st.SearchStrategy[str]:
    words = st.text("abcdefgh😀é ", min_size=1, max_size=30)
    return st.lists(st.one_of(words, st.sampled_from(signs)), min_size=1, max_size=size).map("".join)


def open_fences(piece: str) -> int:
    """How many blocks of code a piece leaves open; CommonMark 0.31, 4.5, for blocks that nothing contains."""
    mark = ""
    for line in piece.split("\n"):
        found = re.fullmatch(r" {0,3}(`{3,}|~{3,})([^`]*)", line)
        if found is None:
            continue
        if not mark:
            mark = found[1]
        elif found[1][0] == mark[0] and len(found[1]) >= len(mark) and not found[2].strip():
            mark = ""
    return bool(mark)


@settings(max_examples=120, deadline=None)
@given(texts(PROSE, 60), st.integers(1, 90), st.sampled_from(MEASURES))
def test_prose_loses_nothing_and_keeps_the_limit(text: str, limit: int, measure: Callable[[str], int]) -> None:
    limit = max(limit, 4)  # one code point in UTF-8
    pieces = split(text, limit, measure)
    assert all(measure(piece) <= limit for piece in pieces)
    assert all(piece.strip() for piece in pieces)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)


@settings(max_examples=120, deadline=None)
@given(texts(GLUE, 60), st.integers(4, 200))
def test_any_markdown_loses_nothing_and_keeps_the_limit(text: str, limit: int) -> None:
    pieces = split(text, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert all(piece.strip() for piece in pieces)
    assert is_in_order(letters(text), letters("".join(pieces)))


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Sound Markdown: paragraphs, blocks of code and tables."""
    words = st.lists(st.text("abcdef", min_size=1, max_size=12), min_size=1, max_size=12).map(" ".join)
    blocks = []
    for kind in draw(st.lists(st.sampled_from(["prose", "code", "table"]), min_size=1, max_size=8)):
        lines = draw(st.lists(words, min_size=1, max_size=8))
        if kind == "prose":
            blocks.append("\n".join(lines))
        elif kind == "code":
            mark = draw(st.sampled_from(["```", "````", "~~~"]))
            blocks.append("\n".join([f"{mark}{draw(st.sampled_from(['', 'py', 'c++']))}", *lines, mark]))
        else:
            blocks.append("\n".join(["| head | other |", "|---|---|", *(f"| {line} | 1 |" for line in lines)]))
    return "\n\n".join(blocks)


@settings(max_examples=120, deadline=None)
@given(documents(), st.integers(60, 400))
def test_blocks_of_code_are_closed_in_every_piece(text: str, limit: int) -> None:
    pieces = split(text, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert not any(open_fences(piece) for piece in pieces)
    assert is_in_order(letters(text), letters("".join(pieces)))


@settings(max_examples=60, deadline=None)
@given(st.one_of(texts(GLUE, 80), documents()), st.integers(64, 400))
def test_telegram_pieces_fit_in_both_forms(text: str, limit: int) -> None:
    parts = split_telegram(text, limit)
    for part in parts:
        check_telegram(part.html)
        assert utf16_length(html.unescape(re.sub(r"<[^>]*>", "", part.html))) <= limit
        assert utf16_length(part.plain) <= limit
        assert part.plain.strip()


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(texts(GLUE, 80), documents()), st.integers(400, 600), st.sampled_from([to_discord, to_slack, to_plain])
)
def test_converted_pieces_fit(text: str, limit: int, convert: Callable[[str], str]) -> None:
    pieces = split_for(text * 3, convert, limit)
    assert all(len(piece) <= limit and piece.strip() for piece in pieces)


def test_a_text_that_fits_is_left_alone() -> None:
    assert split("a\n\n```\nb", 9) == ["a\n\n```\nb"]
    assert split("  \n\n ", 100) == []
    assert split("", 1) == []


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("one two.\n\nthree\nfour five", 20, ["one two.", "three\nfour five"]),
        ("one two. three\nfour five. six", 20, ["one two. three", "four five. six"]),
        ("One two. Three four five six", 20, ["One two.", "Three four five six"]),
        ("one two three four five six", 20, ["one two three four", "five six"]),
        ("abcdefghijklmnopqrstuvwxyz", 20, ["abcdefghijklmnopqrst", "uvwxyz"]),
        ("\n\n\nabcdefghij klmnop", 10, ["abcdefghij", "klmnop"]),
        ("漢字かな。漢字かな。漢字", 8, ["漢字かな。", "漢字かな。漢字"]),
    ],
)
def test_where_it_is_cut(text: str, limit: int, expected: list[str]) -> None:
    assert split(text, limit) == expected


def test_code_that_fits_a_piece_is_kept_whole() -> None:
    code = "```py\nx = 1\ny = 2\n```"
    assert split(f"Some words before it.\n\n{code}\n\nafter", 30) == ["Some words before it.", f"{code}\n\nafter"]


def test_long_code_is_closed_and_opened_again_in_its_language() -> None:
    text = "Look:\n\n```py\n" + "\n".join(f"line_{number} = {number}" for number in range(10)) + "\n```\nend"
    pieces = split(text, 60)
    assert all(piece.startswith("```py\n") for piece in pieces[1:])
    assert all(piece.endswith("\n```") for piece in pieces[:-1])
    assert pieces[-1].endswith("```\nend")
    code = re.findall(r"line_\d", "".join(pieces))
    assert code == [f"line_{number}" for number in range(10)]


def test_code_in_a_quote_and_in_a_list_keeps_its_place() -> None:
    quoted = split("> ```py\n" + "> x = 1\n" * 20 + "> ```", 80)
    assert all(piece.startswith("> ```py\n> x") and piece.endswith("\n> ```") for piece in quoted)
    listed = split("- ```py\n" + "  x = 1\n" * 20 + "  ```", 80)
    assert all(piece.startswith("  ```py\n  x") and piece.endswith("\n  ```") for piece in listed[1:])


def test_indented_code_keeps_its_indent_over_a_cut() -> None:
    text = "```\n" + "\n".join(" " * number + "x" for number in range(20)) + "\n```"
    inner = [line for piece in split(text, 80) for line in piece.split("\n") if "`" not in line]
    assert inner == [" " * number + "x" for number in range(20)]


def test_code_that_was_never_closed_is_closed_when_it_is_cut() -> None:
    pieces = split("```\n" + "word\n" * 30, 60)
    assert len(pieces) > 1
    assert not any(open_fences(piece) for piece in pieces)


def test_a_table_is_kept_whole_or_gets_its_head_again() -> None:
    head = "| a | b |\n|---|---|"
    small = f"{head}\n| 1 | 2 |"
    assert split(f"Some words come first here.\n\n{small}", 40) == ["Some words come first here.", small]
    large = head + "".join(f"\n| {number} | x |" for number in range(10, 30))
    pieces = split(large, 60)
    assert all(piece.startswith(head + "\n| ") for piece in pieces)
    assert re.findall(r"\d\d", "".join(pieces)) == [str(number) for number in range(10, 30)]
    assert all(part.html.count("│") >= 2 for part in split_telegram(large, 64))


def test_a_heading_goes_with_what_it_heads() -> None:
    words = "words and more words. " * 3
    assert split(f"{words}\n\n## Next\n\n{words}", 100) == [words.rstrip(), f"## Next\n\n{words}"]
    code = "```\n" + "line\n" * 8 + "```"
    assert split(f"{words}\n\n# Code\n\n{code}", 100) == [words.rstrip(), f"# Code\n\n{code}"]


@pytest.mark.parametrize(
    "line", [" " * 50_000 + "|-|x", "|" + " " * 50_000 + "-x|", "> " * 30_000 + "```x`", "`" * 300]
)
def test_hostile_lines_take_no_time(line: str) -> None:
    """Each would take minutes where a pattern looks back again and again."""
    text = f"|a|b|\n{line}\n" * 2
    assert is_in_order(letters(text), letters("".join(split(text, 2000))))
    assert replace_mentions(text + "@Ann", {"Ann": "<@1>"}).endswith("<@1>")


def test_links_and_inline_code_are_not_torn() -> None:
    text = "some words and then [a label of words](https://a.b/c) `code with blanks` end"
    for limit in range(36, 70):
        pieces = split(text, limit)
        assert any("[a label of words](https://a.b/c)" in piece for piece in pieces)
        assert any("`code with blanks`" in piece for piece in pieces)


@pytest.mark.parametrize("sign", ["👩‍👩‍👧", "é", "🇩🇪", "👍🏽", "각", "❤️"])
@pytest.mark.spec("D-14")
def test_a_visible_character_is_never_cut(sign: str) -> None:
    pieces = split(sign * 40, 25)
    assert "".join(pieces) == sign * 40
    assert all(len(piece) % len(sign) == 0 for piece in pieces)


def test_endless_marks_on_one_letter_are_cut_all_the_same() -> None:
    pieces = split("a" + "\u0301" * 500, 100)
    assert [len(piece) for piece in pieces[:-1]] == [100] * 5


@pytest.mark.spec("D-14")
def test_telegram_counts_what_is_shown() -> None:
    text = "🎉" * 2048
    assert [part.plain for part in split_telegram(text)] == [text]
    assert len(split_telegram(text + "x")) == 2
    linked = "[here](https://a.example/" + "x" * 3000 + ")"
    assert split_telegram(linked * 2)[0].html.count("<a ") == 1


def test_a_text_without_words_makes_no_telegram_message() -> None:
    assert split_telegram("#\n\n***") == [] or split_telegram("#\n\n***")[0].plain.strip()
    assert split_telegram("") == []


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="room for a character"):
        split("abc", 0)


@pytest.mark.parametrize("convert", [to_discord, to_slack, to_telegram, to_plain])
def test_a_very_long_text(convert: Callable[[str], str]) -> None:
    text = "A paragraph of **words** with `code`, and more of them. Short.\n\n- item\n- other\n\n" * 1250
    assert len(text) >= 100_000
    pieces = split_for(text, convert, 2000)
    assert all(len(piece) <= 2000 for piece in pieces)
    assert sum(piece.count("paragraph") for piece in pieces) == 1250
