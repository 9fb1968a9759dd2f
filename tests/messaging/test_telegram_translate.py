"""What Telegram's updates mean: exact cases, and that nothing a server may send is more than not understood."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.messaging.messages import Card, InboundMessage, MessageEdit, OutboundFile, Poll
from spacebot.messaging.telegram.fields import MalformedUpdateError
from spacebot.messaging.telegram.render import MAX_PRESS, Controls, ballot, card_text, media_kind
from spacebot.messaging.telegram.translate import (
    Membership,
    Migration,
    Reader,
    Skipped,
    lane,
    press_id,
    translate,
    update_id,
)

READER = Reader(key="telegram", bot_id=700, username="spacebot_bot")
ANN = {"id": 5, "is_bot": False, "first_name": "Ann", "last_name": "Lee", "username": "ann"}
GROUP = {"id": -100, "type": "supergroup", "title": "Team"}
PRIVATE = {"id": 5, "type": "private", "first_name": "Ann"}


def said(chat: dict[str, Any] = GROUP, /, **fields: Any) -> dict[str, Any]:
    return {"update_id": 9, "message": {"message_id": 3, "date": 1_800_000_000, "chat": chat, "from": ANN, **fields}}


def read(update: dict[str, Any], reader: Reader = READER) -> InboundMessage:
    event = translate(update, reader)
    assert isinstance(event, InboundMessage)
    return event


FILE = {"file_id": "F", "file_unique_id": "u", "file_size": 7}
EVERYTHING: list[dict[str, Any]] = [
    said(PRIVATE, text="hi 👋 @spacebot_bot", entities=[{"type": "mention", "offset": 6, "length": 13}]),
    said(text="/go@spacebot_bot now", entities=[{"type": "bot_command", "offset": 0, "length": 16}]),
    said(text="Bot", entities=[{"type": "text_mention", "offset": 0, "length": 3, "user": {"id": 700}}]),
    said(text="see 😀", entities=[{"type": "text_link", "offset": 0, "length": 3, "url": "https://x.example"}]),
    said(photo=[FILE | {"width": 9, "height": 9}, FILE | {"width": 90, "height": 90}], caption="look"),
    said(document=FILE | {"file_name": "a.pdf", "mime_type": "application/pdf"}, voice=FILE, video_note=FILE),
    said(sticker={"emoji": "🙂"}, is_topic_message=True, message_thread_id=8),
    said(location={"latitude": 52.5, "longitude": 13}, sender_chat=GROUP),
    said(contact={"first_name": "Bo", "phone_number": "+1"}, quote={"text": "q"}, external_reply={"origin": {}}),
    said(poll={"question": "Q?", "options": [{"text": "a"}, {"text": "b"}]}),
    said(text="yes", reply_to_message=said(text="no")["message"] | {"from": {"id": 700, "first_name": "Bot"}}),
    said(migrate_to_chat_id=-200),
    {"update_id": 1, "edited_message": said(text="better")["message"]},
    {"update_id": 2, "my_chat_member": {"chat": GROUP, "new_chat_member": {"status": "left"}}},
    {
        "update_id": 3,
        "callback_query": {
            "id": "77",
            "from": ANN,
            "data": "yes",
            "message": said(reply_markup={"inline_keyboard": [[{"text": "Yes!", "callback_data": "yes"}]]})["message"],
        },
    },
]

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=5),  # with halves of characters
    st.sampled_from(["", "\ud83d", -(2**70), 10**30, [], {}, [None], [[1]], {"id": True}, {"text": 5}]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        return found + [place for name, inner in value.items() for place in places(inner, (*path, name))]
    if isinstance(value, list):
        return found + [place for index, inner in enumerate(value) for place in places(inner, (*path, index))]
    return found


@st.composite
def broken_updates(draw: st.DrawFn) -> Any:
    update = copy.deepcopy(draw(st.sampled_from(EVERYTHING)))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(update)))
        holder: Any = update
        for step in way:
            holder = holder[step]
        if draw(st.booleans()) and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = copy.deepcopy(draw(JUNK))
        if not places(update):
            break
    return update


@given(broken_updates())
def test_a_broken_update_is_read_or_not_understood(update: Any) -> None:
    update_id(update), lane(update), press_id(update)
    try:
        event = translate(update, READER)
    except MalformedUpdateError:
        return
    if isinstance(event, InboundMessage):
        assert event.conversation_id.startswith("telegram:")
        json.dumps(dict(event.metadata), allow_nan=False)
        event.text.encode()
        event.author.name.encode()
        assert event.text or event.attachments
    elif isinstance(event, MessageEdit):
        event.text.encode()


@given(JUNK)
def test_what_is_no_update_at_all_has_no_number_no_chat_and_no_press(update: Any) -> None:
    assert (update_id(update), lane(update), press_id(update)) == (None, None, None)


@pytest.mark.parametrize("update", EVERYTHING)
def test_every_known_kind_is_understood(update: dict[str, Any]) -> None:
    assert not isinstance(translate(update, READER), Skipped)
    assert lane(update) in (-100, 5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sticker": {"emoji": "🙂"}}, "🙂"),
        ({"sticker": {}}, "[sticker]"),
        ({"location": {"latitude": 52.5, "longitude": 13.25}}, "[location: 52.5, 13.25]"),
        (
            {"venue": {"title": "Bar", "address": "Road 1"}, "location": {"latitude": 1, "longitude": 2}},
            "[venue: Bar, Road 1]",
        ),
        ({"contact": {"first_name": "Bo", "phone_number": "+49\n1"}}, "[contact: Bo, +49 1]"),
        ({"poll": {"question": "Tea?", "options": [{"text": "yes"}, {"text": "no"}]}}, "[poll: Tea? — yes | no]"),
        ({"dice": {"emoji": "🎲", "value": 4}}, "[🎲: 4]"),
        ({"caption": "look", "photo": [FILE | {"width": 1, "height": 1}]}, "look"),
        ({"photo": [FILE | {"width": 1, "height": 1}]}, ""),
        ({"text": "half \ud83d of it"}, "half \ufffd of it"),
    ],
)
def test_the_words_of_a_message(fields: dict[str, Any], text: str) -> None:
    assert read(said(**fields)).text == text


def test_addresses_behind_words_are_told() -> None:
    links = [
        {"type": "text_link", "offset": 3, "length": 4, "url": "https://x.example/a"},
        {"type": "text_link", "offset": 12, "length": 5, "url": "https://x.example/b"},
        {"type": "text_link", "offset": 0, "length": 2, "url": "tg://user?id=5"},
        {"type": "text_link", "offset": 90, "length": 5, "url": "https://x.example/c"},
    ]
    update = said(text="😀 here and there!", entities=links)
    assert read(update).text == "😀 here (https://x.example/a) and there (https://x.example/b)!"


def test_the_largest_photo_is_the_photo() -> None:
    sizes = [FILE | {"file_id": str(width), "width": width, "height": width} for width in (90, 1280, 320)]
    assert [attachment.url for attachment in read(said(photo=sizes)).attachments] == ["1280"]


@pytest.mark.parametrize(
    ("fields", "author", "text", "is_meant"),
    [
        ({"reply_to_message": said(text="a" * 300)["message"]}, "Ann Lee", "a" * 197 + "...", False),
        ({"reply_to_message": said(text="all")["message"], "quote": {"text": "part"}}, "Ann Lee", "part", False),
        ({"reply_to_message": said(document=FILE | {"file_name": "a.pdf"})["message"]}, "Ann Lee", "[a.pdf]", False),
        (
            {"reply_to_message": said(text="x")["message"] | {"from": {"id": 700, "first_name": "Space"}}},
            "Space",
            "x",
            True,
        ),
        ({"reply_to_message": said(text="x", sender_chat=GROUP)["message"]}, "Team", "x", False),
        ({"external_reply": {"origin": {"type": "user", "sender_user": ANN}}}, "Ann Lee", "", False),
        ({"external_reply": {"origin": {"sender_user_name": "Zoë"}}, "quote": {"text": "q"}}, "Zoë", "q", False),
    ],
)
def test_what_a_message_answers(fields: dict[str, Any], author: str, text: str, is_meant: bool) -> None:
    message = read(said(text="so", **fields))
    assert message.reply_to is not None
    assert (message.reply_to.author, message.reply_to.text) == (author, text)
    assert message.mentions_bot is is_meant


def test_a_thread_of_answers_is_no_topic() -> None:
    message = read(said(text="x", message_thread_id=44))
    assert (message.conversation_id, message.room_ids) == ("telegram:-100", ("-100",))
    assert "thread_id" not in message.metadata


@pytest.mark.parametrize(
    ("person", "name", "handle"),
    [
        (ANN, "Ann Lee", "@ann"),
        ({"id": 5, "first_name": "A\u202enn [x]\n*"}, "Ann [x] *", "[Ann \\[x\\] \\*](tg://user?id=5)"),
        ({"id": 5, "first_name": ""}, "5", "[5](tg://user?id=5)"),
    ],
)
def test_who_wrote(person: dict[str, Any], name: str, handle: str) -> None:
    update = said(text="x")
    update["message"]["from"] = person
    author = read(update).author
    assert (author.id, author.name, author.handle) == ("5", name, handle)


def test_what_the_log_hears_of_chats() -> None:
    assert translate(EVERYTHING[11], READER) == Migration(-100, -200)
    assert translate(said(migrate_from_chat_id=-50), READER) == Migration(-50, -100)
    assert translate(EVERYTHING[13], READER) == Membership(-100, "supergroup", "left")
    moved = read(said(text="x"), replace(READER, moved={-100: -50}))
    assert moved.metadata["migrated_from"] == -50


def test_edits_of_what_is_no_words_are_skipped() -> None:
    moving = said(location={"latitude": 1, "longitude": 2})["message"]
    assert isinstance(translate({"update_id": 1, "edited_message": moving}, READER), Skipped)


@given(st.text(max_size=90), st.text(max_size=90))
def test_every_button_comes_back_as_what_it_was(action: str, value: str) -> None:
    controls = Controls()
    for data, meaning in [
        (controls.button(action or "btn"), (action or "btn", ())),
        (controls.option(action or "btn", value), (action or "btn", (value,))),
    ]:
        assert 0 < len(data.encode()) <= MAX_PRESS
        assert controls.read(data) == meaning
        if not data.startswith("#"):
            assert Controls().read(data) == meaning  # also after a restart


@given(st.text())
def test_data_of_anybody_can_be_read(data: str) -> None:
    action, values = Controls().read(data)
    assert isinstance(action, str)
    assert len(values) <= 1


@pytest.mark.parametrize(
    ("media_type", "size", "kind"),
    [
        ("image/jpeg", 1, "photo"),
        ("image/gif", 1, "document"),
        ("image/png", 11 * 1024**2, "document"),
        ("audio/ogg", 1, "voice"),
        ("audio/ogg", 2 * 1024**2, "audio"),
        ("Audio/OGG; codecs=opus", 1, "voice"),
        ("video/webm", 1, "document"),
        ("text/plain", 1, "document"),
    ],
)
def test_kinds_of_files(media_type: str, size: int, kind: str, tmp_path: Any) -> None:
    assert media_kind(OutboundFile(filename="x", media_type=media_type, path=tmp_path, size_bytes=size)) == kind


def test_polls_within_the_limits() -> None:
    poll = Poll(question=" Q ", answers=tuple(map(str, range(20))), duration_hours=0)
    held = ballot(poll)
    assert held is not None
    assert (held.question, len(held.answers), held.open_s) == ("Q", 12, 5)


def test_a_card_without_anything_is_nothing() -> None:
    assert card_text(Card()) == ""
