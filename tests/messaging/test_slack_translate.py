"""What Slack's events mean, and what messages to people become; without a connection."""

import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.base.ids import MessageId
from spacebot.messaging.messages import (
    Button,
    ButtonStyle,
    Card,
    CardField,
    MessageDeletion,
    OutboundMessage,
    Poll,
    Rich,
    Row,
    Select,
    SelectOption,
)
from spacebot.messaging.slack.blocks import MARKDOWN, TEXT, draft_of, parts_of
from spacebot.messaging.slack.controls import inbound_press, read_presses, read_slash
from spacebot.messaging.slack.emoji import reaction_name
from spacebot.messaging.slack.refusals import refusal
from spacebot.messaging.slack.translate import (
    Edit,
    Ended,
    Malformed,
    Me,
    Names,
    Person,
    Post,
    conversation_of,
    inbound_post,
    moment_of,
    place_in,
    read_event,
    readable,
)
from tests.stand_ins.slack_blocks import block_faults

ME = Me(key="slack", team_id="T1", team_name="Acme", user_id="UBOT", bot_id="BBOT", name="spacebot")
POST = {"type": "message", "user": "U1", "channel": "C1", "ts": "1700000000.000100", "text": "hello"}


def read(event: Mapping[str, Any], me: Me = ME) -> Any:
    return read_event({"type": "event_callback", "team_id": "T1", "event": event}, me)


def json_values() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )


FIELDS = [
    "type", "subtype", "user", "bot_id", "channel", "ts", "thread_ts", "text", "files", "message", "previous_message",
    "deleted_ts", "attachments", "bot_profile", "tokens", "id", "name", "size", "url_private", "actions", "container",
    "team", "trigger_id", "action_id", "selected_option", "selected_options", "command", "channel_id", "user_id",
]  # fmt: skip
WORDS = st.sampled_from(["message", "app_mention", "message_changed", "message_deleted", "block_actions", "C1", "U1",
                         "1.5", "tokens_revoked", "file_share", "bot_message"])  # fmt: skip


def slack_like() -> st.SearchStrategy[Any]:
    """Values with the names that Slack uses, and anything in them."""
    return st.recursive(
        json_values() | WORDS,
        lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8) | st.lists(inner, max_size=3),
        max_leaves=10,
    )


@given(event=slack_like(), is_bot_heard=st.booleans())
def test_no_event_does_worse_than_be_malformed(event: Any, is_bot_heard: bool) -> None:
    me = replace(ME, is_bot_heard=is_bot_heard)
    for payload in (event, {"event": event}):
        if not isinstance(payload, dict):
            continue
        try:
            happened = read_event(payload, me)
        except Malformed:
            continue
        if isinstance(happened, Post):
            inbound_post(happened, Names(), me)


@given(payload=st.dictionaries(st.sampled_from(FIELDS), slack_like(), max_size=10))
def test_no_control_does_worse_than_be_malformed(payload: dict[str, Any]) -> None:
    for reader in (lambda: read_presses({**payload, "type": "block_actions"}, ME), lambda: read_slash(payload, (), ME)):
        with suppress(Malformed):
            reader()


@given(base=st.sampled_from(sorted(POST)), value=slack_like())
def test_one_wrong_field_is_malformed_or_ignored(base: str, value: Any) -> None:
    try:
        happened = read({**POST, base: value})
    except Malformed:
        return
    if isinstance(happened, Post):
        message = inbound_post(happened, Names(), ME)
        assert message.conversation_id.startswith("slack:T1:")
        assert message.conversation_id.count(":") == 2


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, Post),
        ({"type": "app_mention"}, Post),
        ({"subtype": "file_share"}, Post),
        ({"subtype": "thread_broadcast", "thread_ts": "1700000000.000001"}, Post),
        ({"subtype": "channel_join"}, type(None)),
        ({"subtype": "bot_message", "bot_id": "B1"}, type(None)),
        ({"bot_id": "B1"}, type(None)),
        ({"user": "UBOT"}, type(None)),
        ({"bot_id": "BBOT"}, type(None)),
        ({"user": None}, type(None)),
        ({"text": "  "}, type(None)),
        ({"type": "reaction_added"}, type(None)),
        ({"type": "app_uninstalled"}, Ended),
        ({"type": "tokens_revoked", "tokens": {"bot": ["UBOT"]}}, Ended),
        ({"type": "tokens_revoked", "tokens": {"bot": ["UOTHER"]}}, type(None)),
        ({"subtype": "message_changed", "message": {**POST, "text": "new"}, "previous_message": POST}, Edit),
        ({"subtype": "message_changed", "message": POST, "previous_message": POST}, type(None)),
        ({"subtype": "message_changed", "message": {**POST, "user": "UBOT"}}, type(None)),
        ({"subtype": "message_changed", "message": {**POST, "subtype": "tombstone"}}, MessageDeletion),
        ({"subtype": "message_deleted", "deleted_ts": "1700000000.000001"}, MessageDeletion),
        ({"subtype": "message_deleted", "deleted_ts": "1.1", "previous_message": {"bot_id": "BBOT"}}, type(None)),
    ],
)
def test_each_kind_of_event_is_what_it_says(change: dict[str, Any], kind: type) -> None:
    assert isinstance(read({**POST, **change}), kind)


def test_a_bot_that_hears_bots_does_not_hear_itself() -> None:
    me = replace(ME, is_bot_heard=True)
    said = {**POST, "subtype": "bot_message", "user": None}
    assert isinstance(read({**said, "bot_id": "B1"}, me), Post)
    assert read({**said, "bot_id": "BBOT"}, me) is None
    assert read({**POST, "user": "UBOT", "bot_id": "B1"}, me) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a &lt;b&gt; &amp;amp; c", "a <b> &amp; c"),
        ("<@U1> and <@U404|ghost> and <@U404>", "@Ann and @ghost and @U404"),
        ("<#C2|random> <#C3> <#C4|>", "#random #dev #C4"),
        ("<!here> <!channel|@channel> <!subteam^S1|@ops> <!date^1^x|noon>", "@here @channel @ops noon"),
        ("<https://a.example> <https://a.example|a.example> <https://a.example|docs>",
         "https://a.example a.example [docs](https://a.example)"),
        ("<mailto:a@b.example|a@b.example>", "a@b.example"),
        ("1 < 2 <@> <>", "1 < 2 <@> <>"),
    ],
)  # fmt: skip
def test_slacks_marks_become_readable(text: str, shown: str) -> None:
    assert readable(text, {"U1": Person(id="U1", name="Ann")}, {"C3": "dev"}, ME) == shown


@pytest.mark.parametrize(
    ("text", "names_me", "said"),
    [
        ("<@UBOT> hi", True, "hi"),
        ("<@UBOT|spacebot>: hi", True, "hi"),
        ("hi <@UBOT>", True, "hi @spacebot"),
        ("<@UBOT>", True, "@spacebot"),
        ("<@UBOT2> hi", False, "@UBOT2 hi"),
        ("@spacebot hi", False, "@spacebot hi"),
    ],
)
@pytest.mark.spec("D-4")
def test_the_bot_is_named_only_by_its_own_id(text: str, names_me: bool, said: str) -> None:
    message = inbound_post(read({**POST, "text": text}), Names(), ME)
    assert (message.mentions_bot, message.text) == (names_me, said)


def test_names_are_cleaned_and_passed_on_messages_are_read() -> None:
    names = Names(people={"U1": Person(id="U1", name="Ev\u202eil\n  Eve\x07")})
    shared = {"is_share": True, "author_name": "Bo", "text": "look"}
    message = inbound_post(read({**POST, "text": "", "attachments": [shared, {"text": "a preview"}]}), names, ME)
    assert message.author.name == "Evil Eve"
    assert message.text == "[shared message of Bo] look"


def test_conversations_and_places_are_each_others_reverse() -> None:
    for key in ("slack", "slack:ops"):
        for thread in (None, "1700000000.000100"):
            assert place_in(key, conversation_of(key, "T1", "C1", thread)) == ("C1", thread)
    assert place_in("slack", "discord:1:2") is None
    assert place_in("slack", "slack:T1") is None


def test_moments_are_exact() -> None:
    assert moment_of("1700000000.000100").isoformat() == "2023-11-14T22:13:20.000100+00:00"
    for wrong in ("", "1700000000", "1.2.3", "-1.5", "9" * 30 + ".1"):
        with pytest.raises(Malformed):
            moment_of(wrong)


@pytest.mark.parametrize(
    ("action", "values", "label"),
    [
        ({"type": "button", "value": "y", "text": {"text": "Yes"}}, ("y",), "Yes"),
        ({"type": "overflow", "selected_option": {"value": "a", "text": {"text": "A"}}}, ("a",), "A"),
        (
            {"selected_options": [{"value": "a", "text": {"text": "A"}}, {"value": "b", "text": {"text": "B"}}]},
            ("a", "b"),
            "A, B",
        ),
        ({"type": "users_select", "selected_user": "U1"}, ("U1",), None),
        ({"type": "datepicker", "selected_date": "2026-01-02"}, ("2026-01-02",), None),
        ({"type": "multi_users_select", "selected_users": ["U1", "U2"]}, ("U1", "U2"), None),
    ],
)
def test_every_kind_of_choice_has_values(action: dict[str, Any], values: tuple[str, ...], label: str | None) -> None:
    payload = {
        "type": "block_actions",
        "trigger_id": "1.2",
        "user": {"id": "U1"},
        "channel": {"id": "C1"},
        "container": {"message_ts": "1700000000.000100", "thread_ts": "1700000000.000001"},
        "actions": [{"action_id": "pick:1", **action}],
    }
    (press,) = read_presses(payload, ME)
    assert (press.interaction.values, press.interaction.label) == (values, label)
    message = inbound_press(press, Names(), ME, moment_of("1700000000.000100"))
    assert message.conversation_id == "slack:T1:C1:1700000000.000001"
    assert read_presses({**payload, "type": "view_submission"}, ME) == []


# Outwards.

long_text = st.text(max_size=60) | st.builds(lambda word, count: word * count, st.text(min_size=1, max_size=5),
                                             st.integers(1, 3000))  # fmt: skip
short_text = st.text(max_size=200)
cards = st.builds(
    Card, title=short_text, description=long_text, url=st.none() | st.just("https://a.example/|x>"), footer=short_text,
    fields=st.lists(st.builds(CardField, name=short_text, value=long_text), max_size=12).map(tuple),
    image_url=st.none() | st.just("https://a.example/i.png"), thumbnail_url=st.none() | st.just("https://a.example/t"),
    author_name=short_text,
)  # fmt: skip
buttons = st.builds(Button, label=short_text, custom_id=short_text, style=st.sampled_from(ButtonStyle),
                    url=st.none() | st.just("https://a.example"))  # fmt: skip
options = st.builds(SelectOption, label=short_text, value=st.text(min_size=1, max_size=200), description=short_text)
selects = st.builds(Select, custom_id=short_text, options=st.lists(options, max_size=120).map(tuple),
                    placeholder=short_text)  # fmt: skip
rows = st.builds(Row, buttons=st.lists(buttons, max_size=30).map(tuple), select=st.none() | selects)
polls = st.builds(Poll, question=short_text, answers=st.lists(short_text, max_size=12).map(tuple))
riches = st.builds(Rich, cards=st.lists(cards, max_size=4).map(tuple), rows=st.lists(rows, max_size=3).map(tuple),
                   poll=st.none() | polls)  # fmt: skip


@settings(max_examples=40)
@given(text=long_text, rich=st.none() | riches, addressee=st.none() | st.just("U1"))
def test_whatever_is_said_slack_would_take_it(text: str, rich: Rich | None, addressee: str | None) -> None:
    message = OutboundMessage(id=MessageId("m"), text=text, rich=rich)
    parts = parts_of(message, addressee=addressee)
    for part in parts:
        assert part.text.strip()
        assert len(part.text) <= TEXT
        for has_markdown in (True, False):
            layouts = part.layouts(has_markdown=has_markdown)
            assert layouts[-1] == []
            assert [list(block_faults(layout)) for layout in layouts if list(block_faults(layout))] == []
    assert parts_of(message, addressee=addressee) == parts
    if text.strip():
        assert parts


def test_a_poll_without_a_choice_is_dropped_and_the_words_stay() -> None:
    rich = Rich(poll=Poll(question="Lunch?", answers=("Pizza", " ")))
    (part,) = parts_of(OutboundMessage(id=MessageId("m"), text="hungry", rich=rich))
    assert part.layouts() == [[{"type": "markdown", "text": "hungry"}], []]


def test_controls_without_words_still_say_something() -> None:
    rich = Rich(cards=(Card(title="Status", description="*fine*"),))
    (part,) = parts_of(OutboundMessage(id=MessageId("m"), text="", rich=rich))
    assert part.text == "Status"
    assert parts_of(OutboundMessage(id=MessageId("m"), text="", rich=Rich())) == []


def test_a_draft_is_one_message() -> None:
    part = draft_of("word " * 10_000)
    assert len(part.markdown) == MARKDOWN
    assert part.markdown.endswith("…")


@pytest.mark.parametrize(
    ("emoji", "name"),
    [
        ("👍", "+1"), ("❤️", "heart"), ("❤", "heart"), ("👋🏿", "wave::skin-tone-6"), (":party_blob:", "party_blob"),
        ("Tada", "tada"), ("👨‍💻", "male-technologist"), ("1️⃣", "one"), ("✅", "white_check_mark"), ("", None),
        ("🪸", None), ("so so!", None),
    ],
)  # fmt: skip
@pytest.mark.spec("D-21")
def test_emoji_have_slacks_names(emoji: str, name: str | None) -> None:
    assert reaction_name(emoji) == name


def test_the_table_of_emoji_holds_signs_and_names_in_pairs() -> None:
    from spacebot.messaging.slack.emoji import _names

    assert len(_names()) > 500
    for sign, name in _names().items():
        assert name.isascii()
        assert unicodedata.category(sign[-1]) in ("So", "Sm", "Me", "Po", "Ps", "Sk")


def test_a_refusal_names_the_scope_and_believes_no_endless_pause() -> None:
    error = refusal("users.info", {"error": "missing_scope", "needed": "users:read"}, 200, None)
    assert "users:read" in str(error)
    assert refusal("x", {}, 429, "99999").retry_after_s == 600
    assert refusal("x", {}, 429, "soon").retry_after_s is None
    assert (refusal("x", {}, 404, None).is_permanent, refusal("x", {}, 502, None).is_permanent) == (True, False)
