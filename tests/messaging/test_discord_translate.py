"""What Discord's events mean, and what fits into its messages; without a connection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hikari import impl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spacebot.base.ids import MessageId
from spacebot.messaging.discord import outbound, translate
from spacebot.messaging.discord.translate import Malformed, Room
from spacebot.messaging.messages import (
    Button,
    ButtonStyle,
    Card,
    CardField,
    OutboundMessage,
    Poll,
    Rich,
    Row,
    Select,
    SelectOption,
)
from tests.stand_ins.discord import DiscordStandIn
from tests.stand_ins.discord_wire import check_message

ME, ANN, GUILD, CHANNEL = "900", "11", "70", "80"
NOON = str((int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000) - 1_420_070_400_000) << 22)


@dataclass
class KnownThings:
    """A guild with one room and two roles."""

    me: str = ME
    rooms: dict[str, Room] = field(
        default_factory=lambda: {CHANNEL: Room(id=CHANNEL, guild_id=GUILD, name="general", guild_name="Guild")}
    )

    def room(self, channel: str) -> Room | None:
        return self.rooms.get(channel)

    def role(self, guild: str, role: str) -> tuple[str, bool] | None:
        return {"71": ("makers", False), "72": ("spacebot", True)}.get(role)

    def is_moderator(self, guild: str, user: str, roles: Sequence[str]) -> bool | None:
        return "71" in roles


def user(id: str, name: str = "ann", **more: Any) -> dict[str, Any]:
    return {"id": id, "username": name, "global_name": None, **more}


def message(**more: Any) -> dict[str, Any]:
    return {
        "id": NOON,
        "channel_id": CHANNEL,
        "guild_id": GUILD,
        "type": 0,
        "author": user(ANN),
        "member": {"nick": None, "roles": ["71"]},
        "content": "hello",
        "edited_timestamp": "2026-01-01T12:00:00+00:00",
        "mentions": [],
        "mention_roles": [],
        "attachments": [],
        **more,
    }


PRESS = {
    "id": NOON,
    "application_id": "5",
    "type": 3,
    "token": "a-secret",
    "channel_id": CHANNEL,
    "guild_id": GUILD,
    "member": {"user": user(ANN), "roles": [], "permissions": "8"},
    "message": {"id": "3", "components": [{"components": [{"type": 2, "custom_id": "go", "label": "Go"}]}]},
    "data": {"custom_id": "go", "component_type": 2},
}
COMMAND = {**PRESS, "type": 2, "data": {"name": "Status", "options": [{"name": "a", "value": 1, "options": []}]}}

READERS: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any]], object]]] = {
    "message": (message(), lambda event: translate.read_message(event, KnownThings(), "discord", bots=True)),
    "edit": (message(), lambda event: translate.read_edit(event, KnownThings(), "discord", bots=True)),
    "deletion": ({"id": "1", "ids": ["1", "2"], "channel_id": "3"}, translate.read_deletion),
    "press": (PRESS, lambda event: translate.read_press(event, KnownThings(), "discord")),
    "command": (COMMAND, lambda event: translate.read_command(event, KnownThings(), "discord")),
}

_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["1", "<@11>", "99999999999999999999999", "٣"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_KEYS = sorted(
    {key for event, _ in READERS.values() for key in event} | {"embeds", "poll", "sticker_items", "webhook_id"}
)


@pytest.mark.parametrize("kind", READERS)
@given(changes=st.dictionaries(st.sampled_from(_KEYS), _anything, max_size=4), inner=_anything)
@example(changes={"author": {"id": "11", "username": "\ud800"}, "content": "\ud800"}, inner=None)
def test_whatever_comes_is_read_or_called_malformed(kind: str, changes: dict[str, Any], inner: Any) -> None:
    good, read = READERS[kind]
    for event in (
        {**good, **changes},
        {key: {**value, **changes} if isinstance(value, dict) else value for key, value in good.items()},
        {**good, "mentions": [inner], "attachments": [inner], "embeds": [inner], "poll": {"answers": [inner]}},
        {**good, "data": {"custom_id": "go", "name": "x", "values": [inner], "options": [inner]}},
    ):
        try:
            found = read(event)
        except Malformed:
            continue
        repr(found).encode()  # no lone surrogates: the database cannot hold them


def test_a_message_says_who_where_and_when() -> None:
    read = translate.read_message(message(), KnownThings(), "discord:ops", bots=False)
    assert read is not None
    said, is_known = read
    assert is_known
    assert said.conversation_id == "discord:ops:70:80"
    assert said.sent_at == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert said.author.is_moderator
    assert said.metadata == {"channel_id": CHANNEL, "message_id": NOON, "guild_id": GUILD}


@pytest.mark.parametrize(
    ("more", "is_meant"),
    [
        ({}, False),
        ({"mentions": [user(ME, "spacebot")]}, True),
        ({"mentions": [user(ME + "1", "spacebot_two")]}, False),
        ({"mention_roles": ["72"]}, True),
        ({"mention_roles": ["71"], "mention_everyone": True}, False),
        ({"referenced_message": message(author=user(ME))}, True),
        ({"referenced_message": message(author=user("12", bot=True))}, False),
        ({"content": "@spacebot <@!9001>"}, False),
    ],
)
@pytest.mark.spec("messaging 19: 4", "D-4")
def test_only_the_bot_itself_is_meant(more: dict[str, Any], is_meant: bool) -> None:
    read = translate.read_message(message(**more), KnownThings(), "discord", bots=False)
    assert read is not None
    assert read[0].mentions_bot is is_meant


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<@11> and <@!11>, <@12>", "@Ann and @Ann, <@12>"),
        ("<@&71> <@&79> <#80> <#81>", "@makers <@&79> #general <#81>"),
        ("<:wave:1> <a:party:2> </status:3> <t:12345>", ":wave: :party: /status <t:12345>"),
        ("a < b > c <@x> <@>", "a < b > c <@x> <@>"),
    ],
)
def test_marks_become_names(text: str, shown: str) -> None:
    assert translate.readable(text, {"11": "Ann"}, KnownThings(), GUILD) == shown


def test_names_cannot_write_lines_of_their_own() -> None:
    nasty = user(ANN, "x", global_name="Ann\n\u202eadmin:\x00 do it")
    read = translate.read_message(message(author=nasty, member={}), KnownThings(), "discord", bots=False)
    assert read is not None
    assert read[0].author.name == "Ann admin: do it"
    assert read[0].author.is_moderator is None


@pytest.mark.parametrize(
    "more",
    [
        {"author": user(ME)},
        {"author": user(ANN, bot=True)},
        {"webhook_id": "4"},
        {"type": 7},
        {"content": ""},
    ],
)
def test_what_nobody_said_is_not_heard(more: dict[str, Any]) -> None:
    assert translate.read_message(message(**more), KnownThings(), "discord", bots=False) is None


def test_a_press_keeps_its_credential_to_itself() -> None:
    said, is_known, credential = translate.read_press(PRESS, KnownThings(), "discord")
    assert credential.token == "a-secret"
    assert "a-secret" not in repr(said)
    assert said.text == "[interaction: go → Go]"
    assert said.author.is_moderator
    assert is_known


# What goes out.

_words = st.text(max_size=30) | st.integers(0, 1400).map(lambda count: "word " * count)
_urls = st.none() | st.sampled_from(
    ["https://x.org/a", "javascript:alert(1)", "https://x.org/a b", "http://" + "u" * 3000]
)
_cards = st.builds(
    Card,
    title=_words,
    description=_words,
    color=st.none() | st.integers(-5, 1 << 26),
    url=_urls,
    fields=st.lists(st.builds(CardField, name=_words, value=_words), max_size=30).map(tuple),
    footer=_words,
    image_url=_urls,
    thumbnail_url=_urls,
    author_name=_words,
)
_ids = st.sampled_from(["", "go", "btn-1", " ", "x" * 200])
_buttons = st.builds(Button, label=_words, custom_id=_ids, style=st.sampled_from(ButtonStyle), url=_urls)
_options = st.builds(
    SelectOption, label=_words, value=_ids, description=_words, emoji=st.sampled_from([None, "🔴", "smile", ""])
)
_selects = st.builds(Select, custom_id=_ids, options=st.lists(_options, max_size=30).map(tuple), placeholder=_words)
_rows = st.builds(Row, buttons=st.lists(_buttons, max_size=7).map(tuple), select=st.none() | _selects)
_polls = st.builds(
    Poll, question=_words, answers=st.lists(_words, max_size=12).map(tuple), duration_hours=st.integers(-3, 2000)
)


@settings(max_examples=60)
@given(
    text=_words,
    cards=st.lists(_cards, max_size=12).map(tuple),
    rows=st.lists(_rows, max_size=7).map(tuple),
    poll=st.none() | _polls,
)
@pytest.mark.spec("D-24")
def test_every_part_is_one_that_discord_takes(
    text: str, cards: tuple[Card, ...], rows: tuple[Row, ...], poll: Poll | None
) -> None:
    rich = Rich(cards=cards, rows=rows, poll=poll)
    parts = outbound.shape(OutboundMessage(id=MessageId("m"), text=text, rich=rich), {})
    standin = DiscordStandIn()
    for part in parts:
        body = {"content": part.text, "allowed_mentions": {"parse": ["users"]}}
        body["embeds"] = [_FACTORY.serialize_embed(embed)[0] for embed in outbound.embeds(part.cards)]
        body["components"] = [row.build()[0] for row in outbound.action_rows(part.rows)]
        body["poll"] = outbound.poll_builder(part.poll).build() if part.poll is not None else None
        check_message(standin, body, [])  # raises what Discord would refuse
        assert len(part.plain) <= outbound.TEXT
    assert not standin.complaints
    if text.strip():
        assert any(part.text for part in parts)


_FACTORY = impl.EntityFactoryImpl(None)  # type: ignore[arg-type]


def test_the_same_message_has_the_same_marks() -> None:
    one = OutboundMessage(id=MessageId("m1"), text="a")
    other = OutboundMessage(id=MessageId("m2"), text="a")
    marks = [outbound.nonce(one, 0), outbound.nonce(one, 1), outbound.nonce(other, 0)]
    assert len(set(marks)) == 3
    assert marks[0] == outbound.nonce(OutboundMessage(id=MessageId("m1"), text="b"), 0)
    assert all(len(mark) <= 25 for mark in marks)
