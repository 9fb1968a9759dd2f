"""What Slack's events mean. Pure: names that have to be asked for are given.

Flow:    payload -> read_event -> (names are looked up) -> inbound_post -> intake; `controls.py` has the rest
Floor:   messaging
Source:  messaging spec 5, 6, 14.2 and 18.4; docs.slack.dev on message events and their subtypes
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spacebot.base.ids import ConversationId
from spacebot.messaging.messages import (
    Attachment,
    Author,
    InboundMessage,
    MessageDeletion,
    ReplyPreview,
)
from spacebot.messaging.names import clean_name

FILE_NAME = "slack-file:"  # an attachment that Slack tells the address of only when asked
PREVIEW = 200  # characters of an answered message
MAX_FILES = 50

_PLAIN_SUBTYPES = {None, "file_share", "thread_broadcast", "me_message"}
SHOWN_SUBTYPES = _PLAIN_SUBTYPES | {"bot_message"}  # of a channel's past
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_TS = re.compile(r"(\d{1,11})\.(\d{1,6})")
_TOKEN = re.compile(r"<([@#!]?)([^<>|\n]+)(?:\|([^<>\n]*))?>")
_NAMED_BOT = r"<@{}(?:\|[^<>]*)?>"


class Malformed(Exception):
    """An event that is not as Slack describes it; the text names what is wrong, never what people wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """The bot itself, and what its owner wants of the translation.

    Args:
        key: the adapter's runtime key; conversation ids begin with it.
        is_bot_heard: messages of other bots count.
    """

    key: str
    team_id: str
    team_name: str
    user_id: str
    bot_id: str
    name: str
    is_bot_heard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody of the workspace."""

    id: str
    name: str
    is_bot: bool = False
    is_moderator: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A message, with its text as Slack writes it.

    Args:
        thread: timestamp of the thread's root; None at the top level of a channel.
        bot_name: what a message without a person shows as its writer.
    """

    team: str
    channel: str
    ts: str
    text: str
    user: str | None
    thread: str | None = None
    bot_id: str | None = None
    bot_name: str = ""
    is_bot: bool = False
    mentions_me: bool = False
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A message was changed."""

    team: str
    channel: str
    ts: str
    text: str
    thread: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The app may no longer work here."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What was found out for one event.

    Args:
        people: by user id, those who are mentioned and the writer.
        rooms: name by channel id.
        room: name of the channel that it happened in.
        root: the message that its thread hangs on.
    """

    people: Mapping[str, Person] = field(default_factory=dict)
    rooms: Mapping[str, str] = field(default_factory=dict)
    room: str | None = None
    root: ReplyPreview | None = None


def is_direct(channel: str) -> bool:
    """Whether only one person and the bot are there."""
    return channel.startswith("D")


def conversation_of(key: str, team: str, channel: str, thread: str | None = None) -> ConversationId:
    """One conversation for the top level of a channel, one for each thread."""
    return ConversationId(":".join([key, team, channel] + ([thread] if thread else [])))


def place_in(key: str, conversation: str) -> tuple[str, str | None] | None:
    """Channel and thread of a conversation id; None when it is not one of this adapter's."""
    if not conversation.startswith(f"{key}:"):
        return None
    parts = conversation[len(key) + 1 :].split(":")
    if len(parts) not in (2, 3) or not all(parts) or (len(parts) == 3 and not _TS.fullmatch(parts[2])):
        return None
    return parts[1], parts[2] if len(parts) == 3 else None


def moment_of(ts: str) -> datetime:
    """When a message was written. Errors: Malformed."""
    found = _TS.fullmatch(ts)
    if found is None:
        raise Malformed("a timestamp is none")
    return datetime.fromtimestamp(int(found[1]), UTC).replace(microsecond=int(found[2].ljust(6, "0")))


def read_event(payload: Mapping[str, Any], me: Me) -> Post | Edit | MessageDeletion | Ended | None:
    """Understand an event; None for what is of no concern here: own messages, joins, other bots, other kinds.

    Errors: Malformed.
    """
    event = table(payload, "event")
    match event.get("type"):
        case "tokens_revoked" | "app_uninstalled" as kind:
            return _read_end(kind, event, me)
        case "app_mention":
            return _read_post(payload, event, me)
        case "message":
            pass
        case _:
            return None
    match event.get("subtype"):
        case "message_changed":
            return _read_change(payload, event, me)
        case "message_deleted":
            return _read_deletion(payload, event, me)
        case subtype if subtype in _PLAIN_SUBTYPES or (subtype == "bot_message" and me.is_bot_heard):
            return _read_post(payload, event, me)
        case _:
            return None


def _read_end(kind: str, event: Mapping[str, Any], me: Me) -> Ended | None:
    if kind == "app_uninstalled":
        return Ended(reason="the app was removed from the workspace; install it again and take the new bot_token")
    tokens = event.get("tokens")
    bots = tokens.get("bot") if isinstance(tokens, Mapping) else None
    if isinstance(bots, Sequence) and me.user_id not in bots:
        return None  # somebody else's token of the same app
    return Ended(reason="the bot's token was revoked; install the app again and take the new bot_token")


def _read_post(payload: Mapping[str, Any], event: Mapping[str, Any], me: Me) -> Post | None:
    user, bot_id = optional_identifier(event, "user"), optional_identifier(event, "bot_id")
    is_bot = bot_id is not None or event.get("subtype") == "bot_message"
    if (user == me.user_id and user is not None) or (bot_id is not None and bot_id == me.bot_id):
        return None
    if (is_bot and not me.is_bot_heard) or (user is None and bot_id is None):
        return None
    channel, ts = identifier(event, "channel"), identifier(event, "ts")
    moment_of(ts)
    text = event.get("text") or ""
    if not isinstance(text, str):
        raise Malformed("the text is none")
    text = "\n".join([part for part in (text, *_shared(event)) if part])
    files = tuple(_files(event))
    if not text.strip() and not files:
        return None
    thread = _thread(event, ts)
    named = re.search(_NAMED_BOT.format(re.escape(me.user_id)), text) is not None
    answers_me = thread is not None and event.get("parent_user_id") == me.user_id
    profile = event.get("bot_profile")
    return Post(
        team=team_of(payload, me),
        channel=channel,
        ts=ts,
        text=text,
        user=user,
        thread=thread,
        bot_id=bot_id,
        bot_name=str(event.get("username") or (profile.get("name") if isinstance(profile, Mapping) else "") or ""),
        is_bot=is_bot,
        mentions_me=named or answers_me,
        attachments=files,
    )


def _shared(event: Mapping[str, Any]) -> Iterator[str]:
    """The words of messages that somebody passed on."""
    shared = event.get("attachments")
    for item in shared if isinstance(shared, list) else ():
        if isinstance(item, Mapping) and (item.get("is_share") or item.get("is_msg_unfurl")):
            words = item.get("text") or item.get("fallback")
            if isinstance(words, str) and words.strip():
                author = item.get("author_name") or item.get("author_id") or ""
                yield f"[shared message{f' of {author}' if author else ''}] {words}"


def _files(event: Mapping[str, Any]) -> Iterator[Attachment]:
    files = event.get("files")
    for file in files[:MAX_FILES] if isinstance(files, list) else ():
        if not isinstance(file, Mapping) or file.get("mode") in ("tombstone", "hidden_by_limit"):
            continue
        url, number, size = file.get("url_private"), file.get("id"), file.get("size")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            if not isinstance(number, str):
                continue
            url = f"{FILE_NAME}{number}"
        yield Attachment(
            filename=clean_name(str(file.get("name") or file.get("title") or ""), fallback="file"),
            media_type=str(file.get("mimetype") or "application/octet-stream")[:100],
            url=url,
            size_bytes=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
        )


def _read_change(payload: Mapping[str, Any], event: Mapping[str, Any], me: Me) -> Edit | MessageDeletion | None:
    message = table(event, "message")
    channel, ts = identifier(event, "channel"), identifier(message, "ts")
    if message.get("subtype") == "tombstone":  # a root that went while its thread stays
        return _deletion(payload, me, channel, ts, None)
    if _is_foreign(message, me):
        return None
    previous, text = event.get("previous_message"), message.get("text") or ""
    before = previous.get("text") if isinstance(previous, Mapping) else None
    if not isinstance(text, str):
        raise Malformed("the text is none")
    if before == text:
        return None  # a preview of a link came, or a reply was counted
    return Edit(team=team_of(payload, me), channel=channel, ts=ts, text=text, thread=_thread(message, ts))


def _read_deletion(payload: Mapping[str, Any], event: Mapping[str, Any], me: Me) -> MessageDeletion | None:
    previous = event.get("previous_message")
    previous = previous if isinstance(previous, Mapping) else {}
    if _is_foreign(previous, me):
        return None
    ts = identifier(event, "deleted_ts")
    return _deletion(payload, me, identifier(event, "channel"), ts, _thread(previous, ts))


def _deletion(payload: Mapping[str, Any], me: Me, channel: str, ts: str, thread: str | None) -> MessageDeletion:
    conversation = conversation_of(me.key, team_of(payload, me), channel, thread)
    return MessageDeletion(adapter=me.key, conversation_id=conversation, platform_ids=(ts,))


def _is_foreign(message: Mapping[str, Any], me: Me) -> bool:
    """Whether a changed or deleted message was never taken: own ones, and those of unheard bots."""
    bot_id = message.get("bot_id")
    return message.get("user") == me.user_id or (bot_id is not None and (bot_id == me.bot_id or not me.is_bot_heard))


def ids_in(text: str) -> tuple[set[str], set[str]]:
    """People and channels that a text names, as far as Slack does not tell their names with them."""
    people: set[str] = set()
    rooms: set[str] = set()
    for sign, target, label in _TOKEN.findall(text):
        if sign == "@":
            people.add(target)
        elif sign == "#" and not label:
            rooms.add(target)
    return people, rooms


def readable(text: str, people: Mapping[str, Person], rooms: Mapping[str, str], me: Me) -> str:
    """A text of Slack as people see it: names for ids, signs for their escapes."""

    def shown(found: re.Match[str]) -> str:
        sign, target, label = found[1], found[2], found[3] or ""
        match sign:
            case "@":
                known = people.get(target)
                return f"@{me.name if target == me.user_id else known.name if known else label or target}"
            case "#":
                return f"#{label or rooms.get(target) or target}"
            case "!":
                return label if label else f"@{target.partition('^')[0]}"
            case _:
                return _link(target, label) if ":" in target else found[0]

    text = _TOKEN.sub(shown, text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _link(target: str, label: str) -> str:
    bare = target.removeprefix("mailto:").removeprefix("tel:")
    if not label or label == bare:
        return bare
    return label if bare.partition("://")[2] == label else f"[{label}]({target})"


def without_call(text: str, me: Me) -> str:
    """A text without the bot's name in front, unless that is all of it."""
    rest = re.sub(rf"^\s*{_NAMED_BOT.format(re.escape(me.user_id))}[\s,:]*", "", text)
    return rest if rest.strip() else text


def inbound_post(post: Post, names: Names, me: Me) -> InboundMessage:
    """The message of a post."""
    person = names.people.get(post.user or "")
    name = person.name if person else post.bot_name or post.user or post.bot_id or "somebody"
    data = {"team": post.team, "channel": post.channel, "ts": post.ts, "thread_ts": post.thread, "user": post.user}
    return InboundMessage(
        platform="slack",
        adapter=me.key,
        conversation_id=conversation_of(me.key, post.team, post.channel, post.thread),
        author=Author(
            id=post.user or post.bot_id or "",
            name=clean_name(name),
            is_bot=post.is_bot or (person is not None and person.is_bot),
            handle=f"<@{post.user}>" if post.user else None,
            is_moderator=person.is_moderator if person else None,
        ),
        text=readable(without_call(post.text, me), names.people, names.rooms, me),
        sent_at=moment_of(post.ts),
        platform_id=post.ts,
        is_direct=is_direct(post.channel),
        mentions_bot=post.mentions_me,
        reply_to=names.root,
        attachments=post.attachments,
        server_id=post.team,
        server_name=me.team_name or None,
        room_ids=(post.channel,),
        channel_name=names.room,
        metadata={name: value for name, value in data.items() if value},
    )


def _thread(message: Mapping[str, Any], ts: str) -> str | None:
    thread = optional_identifier(message, "thread_ts")
    if thread is None or thread == ts:
        return None  # a root is talk of its channel
    moment_of(thread)
    return thread


def team_of(payload: Mapping[str, Any], me: Me) -> str:
    team = payload.get("team_id")
    return team if isinstance(team, str) and team else me.team_id


def table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise Malformed(f"{name} is missing")
    return value


def identifier(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Malformed(f"{name} is missing or none")
    return value


def optional_identifier(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) and _ID.fullmatch(value) else None
