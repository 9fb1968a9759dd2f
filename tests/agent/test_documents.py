"""Bytes to text: encodings, HTML, PDF, and the refusals, each with a reason that says what to do."""

import io
import sys
import zlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from spacebot.agent.documents import MAX_BYTES, html_text, plain_text, read_text
from spacebot.base.errors import ExternalError, RefusedError

WORDS = "Grüße aus Köln – “tea” für 5 €\n"


def make_pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF with a line of text on each page; an empty line makes an empty page."""
    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        if text:
            font = DictionaryObject({
                NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            })  # fmt: skip
            fonts = DictionaryObject({NameObject("/F1"): font})
            page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
            stream = StreamObject()
            stream.set_data(f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET".encode())
            page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        b"\xef\xbb\xbf" + WORDS.encode(),
        WORDS.encode("utf-16"),
        b"\xfe\xff" + WORDS.encode("utf-16-be"),
        b"\xff\xfe\x00\x00" + WORDS.encode("utf-32-le"),
        WORDS.encode("cp1252"),
        ("plain words in wide letters " + WORDS).encode("utf-16-le"),
    ],
)
def test_a_text_is_read_in_the_encoding_it_has(data: bytes) -> None:
    assert plain_text(data).endswith(WORDS)
    assert "\ufeff" not in plain_text(data)


def test_a_damaged_place_in_utf8_does_not_garble_the_rest() -> None:
    assert plain_text(("ä" * 20).encode() + b"\xff" + "ö".encode()) == "ä" * 20 + "\ufffdö"
    assert plain_text(b"caf\xe9 ole") == "café ole"


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text = plain_text(data)
    except RefusedError:
        return
    text.encode()
    assert not set(text) & {chr(code) for code in range(32) if code not in (9, 10)}


@pytest.mark.parametrize("data", [b"MZ\x90\0\x03\0\0\0" * 50, zlib.compress(bytes(range(256)) * 400), b"text\0more"])
def test_binary_data_under_the_name_of_a_text_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match="binary data"):
        plain_text(data)


def test_line_ends_are_one_and_keys_are_taken_out() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIE\n" * 50 + "-----END PRIVATE KEY-----"
    text = plain_text(f"a\r\nb\rc\x0b{key}\nsk-ant-{'x' * 40}".encode())
    assert text.startswith("a\nb\nc ")
    assert "MIIE" not in text
    assert "sk-ant" not in text


def test_a_page_becomes_its_words() -> None:
    page = (
        b"<html><head><title>Plan</title><style>p{}</style><meta charset='iso-8859-1'></head><body><h2>Caf\xe9</h2>"
        b"<p>one &amp;<b> two</b><br>three<script>alert('<p>no</p>')</script>"
        b"<ul><li>tea<li>milk</ul><table><tr><td>1<td>2</tr></table><svg><text>no</text></svg>"
    )
    assert html_text(page).split("\n\n") == ["Plan", "## Café", "one & two\nthree", "- tea\n- milk", "1 | 2"]


@pytest.mark.parametrize("page", [b"<scr" * 1000, b"<!--" * 1000, b"<div>" * 5000, b"</p>&#xD800;<![CDATA["])
def test_a_broken_page_is_read_as_far_as_it_goes(page: bytes) -> None:
    assert html_text(b"<p>words</p>" + page).encode().startswith(b"words")


def test_a_page_without_words_is_refused_instead_of_taken_for_empty() -> None:
    with pytest.raises(RefusedError, match="drawn by scripts"):
        html_text(b"<html><body><div id=app></div><script>draw()</script>")


async def test_a_pdf_is_read_page_by_page() -> None:
    assert await read_text("plan.PDF", make_pdf("Ann likes teal", "", "Bob likes tea")) == (
        "Ann likes teal\n\nBob likes tea"
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_pdf("secret", password="word"), "protected by a password"),
        (make_pdf("cut off")[:200], "damaged"),
        (b"no pdf at all", "damaged"),
        (make_pdf("", ""), "no text in it: its pages are pictures"),
    ],
)
async def test_a_pdf_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        await read_text("plan.pdf", data)


async def test_a_pdf_that_only_its_owner_may_change_is_read() -> None:
    assert await read_text("open.pdf", make_pdf("for all", password="")) == "for all"


async def test_a_pdf_that_asks_for_too_much_memory_is_refused_and_the_daemon_lives() -> None:
    greedy = "import sys; from spacebot.agent import documents as d; d._PARSERS['pdf'] = lambda data: 'x' * (8 << 30); "
    with pytest.raises(RefusedError, match="more memory or time"):
        await read_text("bomb.pdf", b"%PDF", command=lambda: python(greedy + "sys.exit(d.run_child(['pdf']))"))


async def test_a_parser_that_hangs_is_ended(autojump_clock: object) -> None:
    with pytest.raises(RefusedError, match="not read within 60 s"):
        await read_text("slow.pdf", b"%PDF", command=lambda: python("import time; time.sleep(600)"))


async def test_who_gives_up_waiting_ends_the_parser(autojump_clock: object) -> None:
    with trio.move_on_after(5) as scope:
        await read_text("slow.pdf", b"%PDF", command=lambda: python("import time; time.sleep(600)"))
    assert scope.cancelled_caught


async def test_a_parser_that_cannot_be_started_is_not_the_documents_fault() -> None:
    with pytest.raises(ExternalError, match="cannot be started"):
        await read_text("plan.pdf", b"%PDF", command=lambda: ["/nowhere/spacebot"])


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_large_texts_are_read_outside_of_the_daemon_with_the_same_result() -> None:
    text = "A line of words with ümlauts.\r\n" * 20_000
    assert await read_text("big.txt", text.encode()) == text.replace("\r\n", "\n")
    with pytest.raises(RefusedError, match="binary data"):
        await read_text("big.txt", bytes(200_000))


async def test_a_document_has_a_largest_size() -> None:
    with pytest.raises(RefusedError, match="larger than 10 MiB"):
        await read_text("big.txt", bytes(MAX_BYTES + 1))
