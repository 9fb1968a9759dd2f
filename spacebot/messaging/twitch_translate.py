"""What Twitch's chat says, as events; what we say, as lines. Pure: no connection, no clock.

Floor:   messaging
Source:  messaging spec 5, 6, 14.4 and 19 h; Twitch IRC tags, commands and NOTICE ids
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import ConversationId
from spacebot.messaging.irc import Line, cut, one_line
from spacebot.messaging.messages import Author, InboundMessage, OutboundKind, OutboundMessage, ReplyPreview
from spacebot.messaging.names import clean_name
from spacebot.messaging.text import replace_mentions, to_plain

PLATFORM = "twitch"
MAX_CHARACTERS = 498  # 500 less the prefix
MAX_BYTES = 1300  # of the text, so that the line stays under 1500
MAX_PIECES = 5
PREFIX = ". "  # swallowed by the chat; keeps a text that begins with / or . from being a command
SHORTENED = " … (shortened; ask for the rest)"
PREVIEW = 200  # characters of the message that is answered

_SOURCE_CHARACTERS = 5 * MAX_PIECES * MAX_CHARACTERS  # of Markdown; more cannot be shown anyway
_MESSAGE_ID = re.compile(r"[!-~]{1,100}")
_LOGIN = re.compile(r"[a-z0-9_]{1,25}")
_ACTION = re.compile(r"\x01ACTION (.*?)\x01?", re.DOTALL)
_SECONDS = re.compile(r"(\d+)\D*second")


def clean_login(text: str) -> str | None:
    """A login as rooms are named by it: lower case, without `#`; None when it cannot be one."""
    login = text.strip().removeprefix("#").lower()
    return login if _LOGIN.fullmatch(login) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who reads: what decides how a line is understood."""

    key: str
    login: str
    trigger_prefix: str = ""

    def conversation(self, room: str) -> ConversationId:
        """The conversation of a room."""
        return ConversationId(f"{self.key}:{room}")


def room_of(line: Line) -> str:
    """The login of the room that a line is about; empty for none."""
    first = line.param(0)
    return first[1:].lower() if first.startswith("#") else ""


def to_inbound(line: Line, listener: Listener) -> InboundMessage | None:
    """A PRIVMSG as a message; None when it is not meant for us: our own, another room's, without the prefix.

    Errors: ValueError when it lacks what every message has.
    """
    room, tags = room_of(line), line.tags
    login = line.nick.lower()
    if not room or not _LOGIN.fullmatch(login):
        raise ValueError("a message without room or writer")
    if login == listener.login or tags.get("source-room-id", tags.get("room-id")) != tags.get("room-id"):
        return None  # a shared chat repeats what was said in other rooms
    text = _body(line)
    asks = False
    if listener.trigger_prefix:
        if not text.startswith(listener.trigger_prefix):
            return None
        text = text[len(listener.trigger_prefix) :].lstrip() or text
        asks = True
    if not text:
        return None
    asks = asks or _names(text, listener.login)
    # The chat keeps lines that begin with a slash for itself, so commands to the agent come behind its name.
    text = re.sub(rf"^@{re.escape(listener.login)}[,:]?\s+(?=/)", "", text, flags=re.IGNORECASE)
    parent = tags.get("reply-parent-user-login", "").lower()
    message_id = tags.get("id") or None
    return InboundMessage(
        platform=PLATFORM,
        adapter=listener.key,
        conversation_id=listener.conversation(room),
        author=_author(line, login),
        text=text,
        sent_at=_moment(tags.get("tmi-sent-ts", "")),
        platform_id=message_id,
        mentions_bot=asks or parent == listener.login,
        reply_to=_reply_to(line),
        room_ids=(room,),
        channel_name=f"#{room}",
        metadata={"room": room, "message_id": message_id, "login": login},
    )


def _body(line: Line) -> str:
    text = line.param(1)
    if action := _ACTION.fullmatch(text):
        text = action[1]
    if "reply-parent-msg-id" in line.tags:  # the chat puts whom it answers in front
        for name in (line.tags.get("reply-parent-user-login"), line.tags.get("reply-parent-display-name")):
            head, _, rest = text.partition(" ")
            if name and head.lower() == f"@{name.lower()}":
                text = rest
                break
    return text.strip()


def _author(line: Line, login: str) -> Author:
    badges = {badge.partition("/")[0] for badge in line.tags.get("badges", "").split(",")}
    return Author(
        id=line.tags.get("user-id") or login,
        name=clean_name(line.tags.get("display-name", ""), fallback=login),
        handle=f"@{login}",
        is_moderator=line.tags.get("mod") == "1" or bool(badges & {"broadcaster", "moderator"}),
    )


def _moment(milliseconds: str) -> datetime:
    """Errors: ValueError."""
    try:
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"a message without a time: {milliseconds[:40]!r}") from error


def _reply_to(line: Line) -> ReplyPreview | None:
    if "reply-parent-msg-id" not in line.tags:
        return None
    author = line.tags.get("reply-parent-display-name") or line.tags.get("reply-parent-user-login", "")
    return ReplyPreview(author=clean_name(author), text=one_line(line.tags.get("reply-parent-msg-body", ""))[:PREVIEW])


def _names(text: str, login: str) -> bool:
    return re.search(rf"(?<![\w@])@{re.escape(login)}(?!\w)", text, re.IGNORECASE | re.ASCII) is not None


def to_texts(message: OutboundMessage) -> list[str]:
    """What a message says in the chat, a line each; empty when there is nothing to say.

    Errors: DeliveryError for what cannot be said here.
    """
    if message.kind is OutboundKind.REACTION:
        raise DeliveryError("this chat has no reactions; answer with words instead", is_permanent=True)
    source = message.text[:_SOURCE_CHARACTERS]
    text = one_line(to_plain(replace_mentions(source, message.mentions)))
    if message.file is not None:
        text = f"[File: {clean_name(message.file.filename, fallback='file')}] {text}".rstrip()
    pieces = cut(
        text,
        characters=MAX_CHARACTERS,
        size=MAX_BYTES,
        most=MAX_PIECES,
        ending=SHORTENED,
        has_more=len(source) < len(message.text),
    )
    return [PREFIX + piece for piece in pieces]


def to_line(room: str, text: str, *, answers: str | None = None) -> Line:
    """The line that says a text in a room, as an answer to a message of this id where it is a sane one."""
    is_answer = answers is not None and _MESSAGE_ID.fullmatch(answers)
    return Line("PRIVMSG", (f"#{room}", text), {"reply-parent-msg-id": answers or ""} if is_answer else {})


_HARMLESS = {"msg_duplicate"}  # the same words stand there already
_PAUSES = {"msg_ratelimit": 30.0, "msg_slowmode": 30.0, "msg_timedout": 60.0}  # NOTICE id -> seconds
_REMEDIES = {
    "msg_banned": "the bot is banned there; ask a moderator to lift the ban",
    "msg_channel_suspended": "the channel is suspended or does not exist",
    "msg_channel_blocked": "the channel has blocked the bot; ask its owner",
    "msg_room_not_found": "there is no such channel",
    "msg_suspended": "the bot's account is suspended",
    "tos_ban": "the channel was closed",
    "msg_verified_email": "the bot's account needs a verified e-mail address",
    "msg_requires_verified_phone_number": "the bot's account needs a verified phone number",
    "msg_followersonly": "only followers may write there; let the bot's account follow, or make it a moderator",
    "msg_followersonly_followed": "the bot has not followed the channel for long enough; make it a moderator",
    "msg_followersonly_zero": "only followers may write there; let the bot's account follow, or make it a moderator",
    "msg_subsonly": "only subscribers may write there; make the bot a moderator",
    "msg_emoteonly": "only emotes may be written there at the moment",
    "msg_r9k": "the room is in unique-chat mode, and the same was said before",
    "msg_rejected": "the room's filter holds the message until a moderator lets it through",
    "msg_rejected_mandatory": "the room's filter refused the message",
    "msg_bad_characters": "the message holds characters that the room does not allow",
}


def is_about_sending(notice_id: str) -> bool:
    """Whether a NOTICE of this id is the answer to something that we said."""
    return notice_id.startswith("msg_") or notice_id in _REMEDIES


def to_error(notice_id: str, room: str, text: str, *, slow_s: float = 0.0) -> DeliveryError | None:
    """What a refusal means; None when the words stand there all the same.

    Args:
        text: of the NOTICE.
        slow_s: pause between two messages that the room demands.
    """
    if notice_id in _HARMLESS:
        return None
    if notice_id in _PAUSES:
        named = _SECONDS.search(text)
        pause = float(named[1]) if named else max(slow_s, _PAUSES[notice_id])
        return DeliveryError(
            f"#{room} takes nothing from the bot for {pause:.0f} s ({notice_id}); it is tried again then",
            is_permanent=False,
            retry_after_s=pause,
        )
    why = _REMEDIES.get(notice_id, one_line(text)[:200])
    return DeliveryError(f"#{room} refused the message ({notice_id}): {why}", is_permanent=True)
