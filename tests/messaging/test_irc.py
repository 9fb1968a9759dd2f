"""Lines of IRC: what is written is read back the same, and nothing that people say becomes a second line."""

from contextlib import suppress
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.ids import MessageId
from spacebot.messaging.irc import MAX_LINE, Line, LineBuffer, cut, one_line, parse, write
from spacebot.messaging.messages import OutboundMessage
from spacebot.messaging.twitch_translate import Listener, to_inbound, to_line, to_texts

WORDS = st.text(st.characters(exclude_characters=" \r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda word: not word.startswith(":")
)
TEXTS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=60)
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LINES = st.builds(
    lambda command, middle, last, tags, source: Line(command, (*middle, *last), tags, source),
    st.sampled_from(["PRIVMSG", "PING", "001", "CAP"]),
    st.lists(WORDS, max_size=3),
    st.lists(TEXTS, max_size=1),
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True), ANYTHING, max_size=4).filter(
        lambda tags: not any("\0" in value for value in tags.values())
    ),
    st.one_of(st.just(""), WORDS),
)


@given(LINES)
def test_what_is_written_is_read_back(line: Line) -> None:
    raw = write(line)
    assert raw.endswith(b"\r\n")
    assert raw.count(b"\n") == raw.count(b"\r") == 1
    assert parse(raw[:-2].decode()) == line


@given(ANYTHING, ANYTHING, ANYTHING)
@pytest.mark.spec("D-h")
def test_nothing_that_is_said_becomes_a_second_line(room: str, text: str, tag: str) -> None:
    try:
        raw = write(Line("PRIVMSG", (room, text), {"reply-parent-msg-id": tag}))
    except ValueError:
        assert set(room + text + tag) & set("\r\n\0 ") or not room or room.startswith(":")
        return
    buffer = LineBuffer()
    (only,) = buffer.feed(raw)
    assert parse(only).params == (room, text)


@given(st.text(max_size=200))
def test_a_text_on_one_line_can_always_be_written(text: str) -> None:
    flat = one_line(text)
    assert parse(write(Line("PRIVMSG", ("#a", flat))).decode()[:-2]).params == ("#a", flat)


@given(st.text(max_size=200))
def test_what_could_be_read_is_one_line(text: str) -> None:
    with suppress(ValueError):
        assert write(parse(text)).count(b"\n") <= 1


@given(st.lists(LINES, max_size=5), st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_lines_come_whole_however_the_bytes_arrive(lines: list[Line], sizes: list[int]) -> None:
    raw = b"".join(map(write, lines))
    buffer, found = LineBuffer(), []
    for size in cycle(sizes):
        found += [parse(text) for text in buffer.feed(raw[:size])]
        raw = raw[size:]
        if not raw:
            break
    assert found == lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "@id=1;display-name=Ann\\sB\\:;flag :ann!ann@ann.tmi.twitch.tv PRIVMSG #room :hello  you :)",
            Line("PRIVMSG", ("#room", "hello  you :)"), {"id": "1", "display-name": "Ann B;", "flag": ""},
                 "ann!ann@ann.tmi.twitch.tv"),
        ),
        ("PING :tmi.twitch.tv", Line("PING", ("tmi.twitch.tv",))),
        (":tmi.twitch.tv 001 bot :Welcome, GLHF!", Line("001", ("bot", "Welcome, GLHF!"), {}, "tmi.twitch.tv")),
        (":tmi.twitch.tv RECONNECT", Line("RECONNECT", (), {}, "tmi.twitch.tv")),
        ("@a=\\x\\ ping  x", Line("PING", ("x",), {"a": "x"})),
        ("PRIVMSG #room :", Line("PRIVMSG", ("#room", ""))),
    ],
)  # fmt: skip
def test_lines_as_the_server_writes_them(text: str, line: Line) -> None:
    assert parse(text) == line


def test_an_endless_line_is_refused() -> None:
    buffer = LineBuffer()
    assert buffer.feed(b"x" * MAX_LINE) == []
    with pytest.raises(ValueError, match="longer than"):
        buffer.feed(b"x")


@given(st.text(max_size=3000).map(one_line), st.integers(1, 6), st.sampled_from([40, 498]), st.sampled_from([60, 900]))
def test_pieces_keep_every_word_or_say_that_some_are_left_out(text: str, most: int, characters: int, size: int) -> None:
    pieces = cut(text, characters=characters, size=size, most=most, ending=" …(more)")
    assert len(pieces) <= most
    assert all(piece and len(piece) <= characters and len(piece.encode()) <= size for piece in pieces)
    if pieces and pieces[-1].endswith("…(more)") and not text.endswith("…(more)"):
        shown = "".join(pieces).removesuffix(" …(more)").replace(" ", "")
        assert len(pieces) == most
        assert text.replace(" ", "").startswith(shown)
    else:
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_pieces_end_with_a_sentence_or_a_word() -> None:
    text = "First we look at it. " * 3 + "Then there is a longer part of it that goes on and on"
    pieces = cut(text, characters=70, size=900, most=9, ending="…")
    assert pieces[0] == " ".join(["First we look at it."] * 3)
    assert all(text.find(piece) >= 0 for piece in pieces)
    assert cut("word " * 10, characters=12, size=99, most=9, ending="…") == ["word word"] * 5


@given(st.text(max_size=700), st.dictionaries(st.text(max_size=8), st.just("@ann"), max_size=2), st.text(max_size=20))
def test_whatever_is_answered_is_whole_lines_of_the_allowed_size(
    text: str, mentions: dict[str, str], answers: str
) -> None:
    for said in to_texts(OutboundMessage(id=MessageId("m1"), text=text, mentions=mentions)):
        assert len(said) <= 500
        raw = write(to_line("garden", said, answers=answers))
        assert raw.count(b"\n") == raw.count(b"\r") == 1
        assert len(raw) <= 1500
        assert parse(raw[:-2].decode(errors="surrogatepass")).params == ("#garden", said)


@given(
    st.dictionaries(
        st.sampled_from(
            ["id", "tmi-sent-ts", "user-id", "badges", "mod", "reply-parent-msg-id", "reply-parent-user-login"]
        ),
        st.text(max_size=20),
    ),
    st.text(max_size=30),
    st.text(max_size=60),
)
def test_whatever_is_said_is_a_message_or_skipped_with_a_reason(tags: dict[str, str], nick: str, text: str) -> None:
    listener = Listener(key="twitch", login="spacebot")
    with suppress(ValueError):
        message = to_inbound(Line("PRIVMSG", ("#garden", text), tags, f"{nick}!x@y"), listener)
        assert message is None or (message.author.name and message.text)
