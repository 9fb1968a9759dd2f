"""Cuts fall between characters, and say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.text import clean_unicode, cut_bytes, head_and_tail, preview, size_bytes
from spacebot.tools.delegation import STATUS_BYTES, short_status

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.spec("P32", "S9", "C-63")
@given(text=TEXT, limit=st.integers(0, 60))
def test_a_head_fits_and_is_the_longest(text: str, limit: int) -> None:
    head = cut_bytes(text, limit)
    assert text.startswith(head)
    assert size_bytes(head) <= limit
    if head != text:
        assert size_bytes(head + text[len(head)]) > limit


@given(text=TEXT, limit=st.integers(2, 60))
@pytest.mark.spec("P32")
def test_head_and_tail_are_kept(text: str, limit: int) -> None:
    cut = head_and_tail(text, limit)
    if size_bytes(text) <= limit:
        assert cut == text
    else:
        head, _, rest = cut.partition("\n[… ")
        assert text.startswith(head)
        assert text.endswith(rest.rpartition(" …]\n")[2])
        assert size_bytes(head) <= limit


@given(text=TEXT, limit=st.integers(1, 60))
def test_a_preview_is_one_short_line(text: str, limit: int) -> None:
    shown = preview(text, limit)
    assert len(shown) <= limit
    assert "\n" not in shown


@given(text=TEXT)
@pytest.mark.spec("P32")
def test_a_status_is_one_line_of_bounded_bytes(text: str) -> None:
    shown = short_status(text * 20)
    assert size_bytes(shown) <= STATUS_BYTES
    assert "\n" not in shown


@given(text=st.text())
def test_lone_surrogates_are_replaced_and_nothing_else(text: str) -> None:
    clean = clean_unicode(text)
    clean.encode()
    assert len(clean) == len(text)
    assert all(a == b or "\ud800" <= a <= "\udfff" for a, b in zip(text, clean, strict=True))
