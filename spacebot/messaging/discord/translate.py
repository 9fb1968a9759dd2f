"""What Discord's events mean.

Reads the JSON of the gateway's events, not the library's objects: a field that Discord adds or leaves out then costs
nothing, while the library refuses the whole event. What a message needs beyond its own JSON (names of rooms and roles)
comes from `View`.

Flow:    an event -> read_message | read_edit | read_deletion | read_press | read_command -> what the adapter hands on
Floor:   messaging; pure
Source:  messaging spec 5, 6 and 14.1; https://discord.com/developers/docs/resources/message
"""

import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from spacebot.base.ids import ConversationId
from spacebot.base.text import clean_unicode
from spacebot.messaging.messages import Attachment, Author, Command, InboundMessage, Interaction, ReplyPreview
from spacebot.messaging.names import clean_name

PLATFORM = "discord"
SPOKEN = frozenset({0, 19, 20, 23})  # types of messages that somebody wrote; the others say that somebody joined etc.
BUTTON = 2
PREVIEW = 200  # characters of a message that is answered
SUMMARY = 500  # characters of what stands for a message without words
THREADS = frozenset({10, 11, 12})  # types of channels
RULING = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 13  # administrator, manage channels, manage guild, manage messages
_EPOCH_MS = 1_420_070_400_000  # of Discord's ids, which begin with their time
_TOKEN = re.compile(
    r"<@!?(\d{1,20})>|<@&(\d{1,20})>|<#(\d{1,20})>|<a?:(\w{1,40}):\d{1,20}>|</([^:>\n]{1,100}):\d{1,20}>"
)

Json = Mapping[str, Any]


class Malformed(ValueError):
    """An event lacks what makes it one of its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A channel or thread; `parent_id` is a thread's channel."""

    id: str
    guild_id: str
    name: str | None = None
    guild_name: str | None = None
    parent_id: str | None = None


class View(Protocol):
    """What is known beside the event."""

    @property
    def me(self) -> str:
        """The bot's own id."""
        ...

    def room(self, channel: str) -> Room | None:
        """A channel or thread of a guild."""
        ...

    def role(self, guild: str, role: str) -> tuple[str, bool] | None:
        """A role's name, and whether it is the bot's own."""
        ...

    def is_moderator(self, guild: str, user: str, roles: Sequence[str]) -> bool | None:
        """Whether a person with these roles rules over the guild; None when it cannot be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A message as it reads now."""

    channel: str
    conversation_id: ConversationId
    message: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Messages that are gone; of a direct chat only the channel is told, not whose chat it is."""

    channel: str
    guild: str | None
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What lets one answer an interaction for 15 minutes. Never written down."""

    interaction: str
    application: str
    token: str = field(repr=False)


def conversation(key: str, guild: str, channel: str) -> ConversationId:
    """The conversation of a guild's channel or thread."""
    return ConversationId(f"{key}:{guild}:{channel}")


def direct(key: str, user: str) -> ConversationId:
    """The conversation with one person."""
    return ConversationId(f"{key}:dm:{user}")


def sent_at(snowflake: str) -> datetime:
    """The moment that an id was made at."""
    return datetime.fromtimestamp(((int(snowflake) >> 22) + _EPOCH_MS) / 1000, UTC)


def first_id(moment: datetime) -> str:
    """The id before which all are older."""
    return str((int(moment.timestamp() * 1000) - _EPOCH_MS) << 22)


def read_message(event: Json, view: View, key: str, *, bots: bool) -> tuple[InboundMessage, bool] | None:
    """A new message, and whether its room was known; None when nobody said anything to hear.

    Args:
        bots: whether other bots are heard.

    Errors: Malformed.
    """
    message, channel = _id(event, "id"), _id(event, "channel_id")
    author = _dict(event, "author")
    writer = _id(author, "id")
    if not _is_spoken(event) or not _is_heard(event, author, view, bots):
        return None
    guild = _optional_id(event, "guild_id")
    people = _people(event)
    text = _words(event, people, view, guild)
    attachments = _attachments(event)
    if not text and not attachments:
        return None
    answered = _dict(event, "referenced_message")
    room = view.room(channel) if guild else None
    data: dict[str, Any] = {"channel_id": channel, "message_id": message}
    if guild:
        data["guild_id"] = guild
        if room is not None and room.parent_id:
            data["parent_id"] = room.parent_id
    if others := {name: f"<@{user}>" for user, name in people.items() if user != view.me}:
        data["mentions"] = others
    return InboundMessage(
        platform=PLATFORM,
        adapter=key,
        conversation_id=conversation(key, guild, channel) if guild else direct(key, writer),
        author=_author(author, _dict(event, "member"), view, guild, is_bot=_is_bot(event, author)),
        text=text,
        sent_at=sent_at(message),
        platform_id=message,
        is_direct=guild is None,
        mentions_bot=view.me in people
        or _dict(answered, "author").get("id") == view.me
        or any(_names_me(role, guild, view) for role in _list(event, "mention_roles")),
        reply_to=_preview(answered, view, guild),
        attachments=attachments,
        metadata=data,
        **_place(guild, channel, room),
    ), guild is None or room is not None


def read_edit(event: Json, view: View, key: str, *, bots: bool) -> Edit | None:
    """A message whose writer changed it; None when only Discord did (previews of links), or nobody that is heard.

    Errors: Malformed.
    """
    message, channel = _id(event, "id"), _id(event, "channel_id")
    author = _dict(event, "author")
    if not author or not event.get("edited_timestamp") or not isinstance(event.get("content"), str):
        return None
    if not _is_spoken(event) or not _is_heard(event, author, view, bots):
        return None
    guild = _optional_id(event, "guild_id")
    return Edit(
        channel=channel,
        conversation_id=conversation(key, guild, channel) if guild else direct(key, _id(author, "id")),
        message=message,
        text=_words(event, _people(event), view, guild),
    )


def read_deletion(event: Json) -> Deletion:
    """One message or many that were taken back. Errors: Malformed."""
    ids = [str(one) for one in _list(event, "ids") if _is_id(one)] if "ids" in event else [_id(event, "id")]
    return Deletion(channel=_id(event, "channel_id"), guild=_optional_id(event, "guild_id"), messages=tuple(ids))


def read_press(event: Json, view: View, key: str) -> tuple[InboundMessage, bool, Credential]:
    """A button that was pressed or a choice that was made. Errors: Malformed."""
    data, carrier = _dict(event, "data"), _dict(event, "message")
    action = data.get("custom_id")
    if not isinstance(action, str):
        raise Malformed("custom_id is missing")
    values = tuple(value for value in _list(data, "values") if isinstance(value, str))
    interaction = Interaction(
        action_id=action,
        values=values,
        label=_label(_list(carrier, "components"), action, values),
        message_id=_optional_id(carrier, "id"),
    )
    return _interacted(event, view, key, interaction.text, interaction=interaction)


def read_command(event: Json, view: View, key: str) -> tuple[InboundMessage, bool, Credential]:
    """A slash command. Errors: Malformed."""
    data = _dict(event, "data")
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise Malformed("the command's name is missing")
    command = Command(name=name.lower(), args=" ".join(_arguments(_list(data, "options"))))
    return _interacted(event, view, key, command.text, command=command)


def _interacted(event: Json, view: View, key: str, text: str, **kind: Any) -> tuple[InboundMessage, bool, Credential]:
    interaction, channel = _id(event, "id"), _id(event, "channel_id")
    guild, member = _optional_id(event, "guild_id"), _dict(event, "member")
    user = _dict(member, "user") or _dict(event, "user")
    writer = _author(user, member, view, guild, is_bot=user.get("bot") is True)
    token = event.get("token")
    if not isinstance(token, str):
        raise Malformed("token is missing")
    room = view.room(channel) if guild else None
    data: dict[str, Any] = {"channel_id": channel, "interaction_id": interaction}
    if carrier := _optional_id(_dict(event, "message"), "id"):
        data["message_id"] = carrier
    if guild:
        data["guild_id"] = guild
        if room is not None and room.parent_id:
            data["parent_id"] = room.parent_id
    message = InboundMessage(
        platform=PLATFORM,
        adapter=key,
        conversation_id=conversation(key, guild, channel) if guild else direct(key, writer.id),
        author=writer,
        text=text,
        sent_at=sent_at(interaction),
        platform_id=interaction,
        is_direct=guild is None,
        mentions_bot=True,
        metadata=data,
        **kind,
        **_place(guild, channel, room),
    )
    return (
        message,
        guild is None or room is not None,
        Credential(interaction=interaction, application=_id(event, "application_id"), token=token),
    )


def readable(text: str, people: Mapping[str, str], view: View, guild: str | None) -> str:
    """A text with mentions, rooms, pictograms and commands as people see them.

    Args:
        people: id of each mentioned person -> name.
    """

    def name(match: re.Match[str]) -> str:
        user, role, channel, emoji, command = match.groups()
        if user:
            return f"@{people[user]}" if user in people else match.group()
        if role:
            known = view.role(guild, role) if guild else None
            return f"@{known[0]}" if known else match.group()
        if channel:
            room = view.room(channel)
            return f"#{room.name}" if room and room.name else match.group()
        return f":{emoji}:" if emoji else f"/{command}"

    return _TOKEN.sub(name, clean_unicode(text))


def display_name(user: Json, member: Json) -> str:
    """A person's name as the guild shows it: nickname, else own display name, else login."""
    names = (member.get("nick"), user.get("global_name"), user.get("username"))
    return clean_name(next((name for name in names if isinstance(name, str) and name.strip()), ""))


def summary(embeds: Iterable[tuple[str, str]], stickers: Iterable[str], poll: tuple[str, Sequence[str]] | None) -> str:
    """What stands for a message without words.

    Args:
        embeds: title and description of each.
        poll: question and answers.
    """
    parts = [f"[sticker: {clean_name(name)}]" for name in stickers]
    for title, description in embeds:
        if said := " – ".join(part.strip() for part in (title, description) if part.strip()):
            parts.append(f"[embed: {said}]")
    if poll is not None:
        parts.append(f"[poll: {poll[0]} – {' / '.join(poll[1])}]")
    said = clean_unicode("\n".join(parts))
    return said if len(said) <= SUMMARY else said[: SUMMARY - 1] + "…"


def _words(event: Json, people: Mapping[str, str], view: View, guild: str | None) -> str:
    """What a message says: its text, else what it forwards, else what it shows."""
    if text := _text(event, "content").strip():
        return readable(text, people, view, guild)
    for forwarded in _dicts(event, "message_snapshots"):
        inner = _dict(forwarded, "message")
        if said := _text(inner, "content").strip():
            return f"[forwarded] {readable(said, _people(inner), view, guild)}"
    poll = _dict(event, "poll")
    return summary(
        [(_text(embed, "title"), _text(embed, "description")) for embed in _dicts(event, "embeds")],
        [_text(sticker, "name") for sticker in _dicts(event, "sticker_items")],
        (
            _text(_dict(poll, "question"), "text"),
            [_text(_dict(answer, "poll_media"), "text") for answer in _dicts(poll, "answers")],
        )
        if poll
        else None,
    )


def _attachments(event: Json) -> tuple[Attachment, ...]:
    found = [*_dicts(event, "attachments")]
    for forwarded in _dicts(event, "message_snapshots"):
        found += _dicts(_dict(forwarded, "message"), "attachments")
    return tuple(
        Attachment(
            filename=(filename := clean_name(_text(one, "filename"), fallback="file")),
            media_type=_text(one, "content_type").partition(";")[0].strip().lower()
            or mimetypes.guess_type(filename)[0]
            or "application/octet-stream",
            url=url,
            size_bytes=size if isinstance(size := one.get("size"), int) and size >= 0 else None,
        )
        for one in found
        if (url := _text(one, "url")).startswith(("https://", "http://"))
    )


def _is_spoken(event: Json) -> bool:
    kind = event.get("type", 0)
    return isinstance(kind, int) and kind in SPOKEN


def _is_heard(event: Json, author: Json, view: View, bots: bool) -> bool:
    return author.get("id") != view.me and (bots or not _is_bot(event, author))


def _is_bot(event: Json, author: Json) -> bool:
    return author.get("bot") is True or event.get("webhook_id") is not None


def _author(user: Json, member: Json, view: View, guild: str | None, *, is_bot: bool) -> Author:
    id = _id(user, "id")
    return Author(
        id=id,
        name=display_name(user, member),
        is_bot=is_bot,
        handle=f"<@{id}>",
        is_moderator=_rules(id, member, view, guild) if guild else None,
    )


def _rules(user: str, member: Json, view: View, guild: str) -> bool | None:
    granted = member.get("permissions")  # of interactions only, where Discord has added it all up
    if isinstance(granted, str) and granted.isascii() and granted.isdigit():
        return bool(int(granted[:30]) & RULING)
    if not member:
        return None
    return view.is_moderator(guild, user, [str(role) for role in _list(member, "roles") if _is_id(role)])


def _names_me(role: object, guild: str | None, view: View) -> bool:
    known = view.role(guild, str(role)) if guild and _is_id(role) else None
    return known is not None and known[1]


def _people(event: Json) -> dict[str, str]:
    return {
        str(user["id"]): display_name(user, _dict(user, "member"))
        for user in _dicts(event, "mentions")
        if _is_id(user.get("id"))
    }


def _preview(answered: Json, view: View, guild: str | None) -> ReplyPreview | None:
    if not answered:
        return None
    text = _words(answered, _people(answered), view, guild)
    return ReplyPreview(
        author=display_name(_dict(answered, "author"), _dict(answered, "member")),
        text=text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…",
    )


def _place(guild: str | None, channel: str, room: Room | None) -> dict[str, Any]:
    if guild is None:
        return {"room_ids": (channel,)}
    if room is None:
        return {"server_id": guild, "room_ids": (channel,)}
    return {
        "server_id": guild,
        "room_ids": (channel, room.parent_id) if room.parent_id else (channel,),
        "server_name": clean_name(room.guild_name) if room.guild_name else None,
        "channel_name": clean_name(room.name) if room.name else None,
    }


def _label(components: Sequence[Any], action: str, values: Sequence[str]) -> str | None:
    """What the pressed button, or each chosen option, is called on the message that carried it."""
    for row in components:
        for one in _dicts(row, "components") if isinstance(row, Mapping) else ():
            if one.get("custom_id") != action:
                continue
            if one.get("type") == BUTTON:
                return _text(one, "label") or None
            names = {option.get("value"): _text(option, "label") for option in _dicts(one, "options")}
            return ", ".join(names.get(value) or value for value in values) or None
    return None


def _arguments(options: Sequence[Any]) -> Iterable[str]:
    for option in options:
        if isinstance(option, Mapping):
            if (value := option.get("value")) is not None and isinstance(value, str | int | float):
                yield clean_unicode(str(value))
            yield from _arguments(_list(option, "options"))


def _is_id(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    text = str(value)
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 64


def _id(event: Json, key: str) -> str:
    value = event.get(key)
    if not _is_id(value):
        raise Malformed(f"{key} is missing")
    return str(value)


def _optional_id(event: Json, key: str) -> str | None:
    return _id(event, key) if event.get(key) is not None else None


def _text(event: Json, key: str) -> str:
    value = event.get(key)
    return value if isinstance(value, str) else ""


def _dict(event: Json, key: str) -> Json:
    value = event.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(event: Json, key: str) -> Sequence[Any]:
    value = event.get(key)
    return value if isinstance(value, list) else ()


def _dicts(event: Json, key: str) -> list[Json]:
    return [one for one in _list(event, key) if isinstance(one, Mapping)]
