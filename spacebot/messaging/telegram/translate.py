"""What Telegram's updates mean, read from their JSON; nothing here talks to anybody.

Every field of an update is checked before it is used, so whatever a server or a proxy sends either is understood or
is a `MalformedUpdateError` with the place where it went wrong.

Flow:    update -> translate -> InboundMessage | MessageEdit | Migration | Membership | Skipped
Floor:   messaging
Source:  Bot API 9; messaging spec 4-6, 14.3, 19.4, 19.17 and 19.19
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from spacebot.base.ids import ConversationId
from spacebot.messaging.messages import (
    Attachment,
    Author,
    Command,
    InboundMessage,
    Interaction,
    MessageEdit,
    ReplyPreview,
)
from spacebot.messaging.names import clean_name
from spacebot.messaging.telegram.fields import (
    Json,
    MalformedUpdateError,
    decimal_of,
    is_number,
    list_of,
    number_of,
    object_of,
    one_line,
    required,
    text_of,
)

PLATFORM = "telegram"
PREVIEW = 200  # characters of a message that is answered
PRESS = "press:"  # begins the platform id of a press; that of a message is a number

ReadPress = Callable[[str], tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What has to be known to read an update.

    Args:
        key: runtime key of the account; conversation ids begin with it.
        bot_id: the account's own user id.
        username: the account's own name, without `@`.
        commands: names of commands as the menu has them -> as the program has them.
        read_press: what a button's data means: the action and its values.
        moved: chat -> the chat that it was before it became a supergroup.
    """

    key: str
    bot_id: int
    username: str
    allow_bots: bool = False
    commands: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    read_press: ReadPress = lambda data: (data, ())
    moved: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing for the agent; `reason` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Migration:
    """A group became a supergroup, which has another id."""

    old_chat: int
    new_chat: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What the account is now in a chat: `member`, `administrator`, `left`, `kicked` …"""

    chat: int
    chat_type: str
    status: str


Event = InboundMessage | MessageEdit | Migration | Membership | Skipped


def translate(update: Json, reader: Reader) -> Event:
    """Read one update. Errors: MalformedUpdateError."""
    if (message := object_of(update, "message")) is not None:
        return _message(message, reader)
    if (message := object_of(update, "edited_message")) is not None:
        return _edit(message, reader)
    if (query := object_of(update, "callback_query")) is not None:
        return _press(query, reader)
    if (change := object_of(update, "my_chat_member")) is not None:
        chat = required(change, "chat")
        status = text_of(required(change, "new_chat_member"), "status")
        return Membership(number_of(chat, "id"), text_of(chat, "type"), status)
    return Skipped("a kind of update that was not asked for")


def update_id(update: object) -> int | None:
    """Its number; None when it has none."""
    number = update.get("update_id") if isinstance(update, Mapping) else None
    return number if is_number(number) else None


def lane(update: object) -> object:
    """What has to keep its order: the chat; None for what belongs to none."""
    if not isinstance(update, Mapping):
        return None
    for kind in ("message", "edited_message", "my_chat_member", "callback_query"):
        body = update.get(kind)
        if kind == "callback_query" and isinstance(body, Mapping):
            body = body.get("message")
        chat = body.get("chat") if isinstance(body, Mapping) else None
        if isinstance(chat, Mapping) and is_number(number := chat.get("id")):
            return number
    return None


def press_id(update: object) -> str | None:
    """The id of the press that an update tells of, which wants an answer even when it is of no use."""
    query = update.get("callback_query") if isinstance(update, Mapping) else None
    identity = query.get("id") if isinstance(query, Mapping) else None
    return identity if isinstance(identity, str) and identity else None


def _message(message: Json, reader: Reader) -> InboundMessage | Migration | Skipped:
    place = _Place.of(message, reader)
    if (new_chat := message.get("migrate_to_chat_id")) is not None:
        return Migration(place.chat, number_of({"migrate_to_chat_id": new_chat}, "migrate_to_chat_id"))
    if (old_chat := message.get("migrate_from_chat_id")) is not None:
        return Migration(number_of({"migrate_from_chat_id": old_chat}, "migrate_from_chat_id"), place.chat)
    author = _author(message, place, reader)
    if isinstance(author, Skipped):
        return author
    words, entities = _words(message)
    attachments = _attachments(message)
    if not words and not attachments:
        return Skipped("a message without words or files, such as somebody's joining")
    command, is_meant = _command(words, entities, reader)
    reply_to, is_answer = _reply(message, reader)
    return InboundMessage(
        platform=PLATFORM,
        adapter=reader.key,
        conversation_id=place.conversation,
        platform_id=str(place.message_id),
        author=author,
        text=command.text if command is not None else _with_links(words, entities),
        sent_at=_moment(message),
        is_direct=place.is_direct,
        mentions_bot=is_meant or is_answer or _is_mentioned(words, entities, reader),
        reply_to=reply_to,
        attachments=attachments,
        command=command,
        server_id=str(place.chat),
        room_ids=place.room_ids,
        server_name=None if place.is_direct else place.title,
        channel_name=_room_name(message, place, author),
        metadata=place.metadata(),
    )


def _edit(message: Json, reader: Reader) -> MessageEdit | Skipped:
    place = _Place.of(message, reader)
    author = _author(message, place, reader)
    if isinstance(author, Skipped):
        return author
    if not (text_of(message, "text") or text_of(message, "caption")):
        return Skipped("an edit of something else than words, such as a moving location")
    words, entities = _words(message)
    command, _ = _command(words, entities, reader)
    return MessageEdit(
        adapter=reader.key,
        conversation_id=place.conversation,
        platform_id=str(place.message_id),
        text=command.text if command is not None else _with_links(words, entities),
    )


def _press(query: Json, reader: Reader) -> InboundMessage | Skipped:
    identity = text_of(query, "id")
    data = text_of(query, "data")
    message = object_of(query, "message")
    if not identity:
        raise MalformedUpdateError("id: a press has one")
    if message is None or not data:
        return Skipped("a press that is not of a message of ours")
    place = _Place.of(message, reader)
    author = _person(required(query, "from"), reader)
    if isinstance(author, Skipped):
        return author
    action, values = reader.read_press(data)
    pressed = Interaction(
        action_id=action,
        values=values,
        label=_label(message, data),
        message_id=str(place.message_id),
    )
    return InboundMessage(
        platform=PLATFORM,
        adapter=reader.key,
        conversation_id=place.conversation,
        platform_id=f"{PRESS}{identity}",
        author=replace(author, is_moderator=True) if place.is_direct else author,
        text=pressed.text,
        sent_at=datetime.now(UTC),  # an update of a press does not tell when it was
        is_direct=place.is_direct,
        mentions_bot=True,
        interaction=pressed,
        server_id=str(place.chat),
        room_ids=place.room_ids,
        server_name=None if place.is_direct else place.title,
        channel_name=_room_name(message, place, author),
        metadata=place.metadata(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a message was said."""

    chat: int
    chat_type: str
    title: str
    message_id: int
    thread: int | None
    conversation: ConversationId
    moved_from: int | None

    @classmethod
    def of(cls, message: Json, reader: Reader) -> "_Place":
        chat = required(message, "chat")
        number = number_of(chat, "id")
        # Any answer in a group may carry a thread id; only those of topics are rooms.
        thread = number_of(message, "message_thread_id") if message.get("is_topic_message") is True else None
        conversation = f"{reader.key}:{number}" if thread is None else f"{reader.key}:{number}:{thread}"
        return cls(
            chat=number,
            chat_type=text_of(chat, "type"),
            title=clean_name(text_of(chat, "title"), fallback=str(number)),
            message_id=number_of(message, "message_id"),
            thread=thread,
            conversation=ConversationId(conversation),
            moved_from=reader.moved.get(number),
        )

    @property
    def is_direct(self) -> bool:
        return self.chat_type == "private"

    @property
    def room_ids(self) -> tuple[str, ...]:
        return (str(self.chat),) if self.thread is None else (str(self.thread), str(self.chat))

    def metadata(self) -> dict[str, Any]:
        told = {"chat_id": self.chat, "chat_type": self.chat_type, "message_id": self.message_id}
        if self.thread is not None:
            told["thread_id"] = self.thread
        if self.moved_from is not None:
            told["migrated_from"] = self.moved_from
        return told


def _author(message: Json, place: _Place, reader: Reader) -> Author | Skipped:
    if place.chat_type not in ("private", "group", "supergroup"):
        return Skipped("a post of a channel")
    writer = object_of(message, "sender_chat")
    if writer is None:
        author = _person(required(message, "from"), reader)
        return replace(author, is_moderator=True) if place.is_direct and isinstance(author, Author) else author
    # An administrator who stays anonymous writes as the group itself, others as a channel of theirs.
    number, username = number_of(writer, "id"), text_of(writer, "username")
    return Author(
        id=str(number),
        name=clean_name(text_of(writer, "title"), fallback=str(number)),
        handle=f"@{username}" if username else None,
        is_moderator=number == place.chat,
    )


def _person(person: Json, reader: Reader) -> Author | Skipped:
    number = number_of(person, "id")
    if number == reader.bot_id:
        return Skipped("own words")
    is_bot = person.get("is_bot") is True
    if is_bot and not reader.allow_bots:
        return Skipped("the words of another bot")
    name = _full_name(person, fallback=str(number))
    username = text_of(person, "username")
    return Author(id=str(number), name=name, is_bot=is_bot, handle=f"@{username}" if username else _link(name, number))


def _full_name(person: Json, *, fallback: str) -> str:
    return clean_name(f"{text_of(person, 'first_name')} {text_of(person, 'last_name')}", fallback=fallback)


def _link(name: str, number: int) -> str:
    """How to mention somebody without a username, as Markdown."""
    label = "".join(f"\\{character}" if character in "\\`*_[]()<>~|#!&" else character for character in name)
    return f"[{label}](tg://user?id={number})"


def _room_name(message: Json, place: _Place, author: Author) -> str | None:
    if place.is_direct:
        return author.name
    if place.thread is None:
        return place.title
    created = object_of(object_of(message, "reply_to_message") or {}, "forum_topic_created")
    return clean_name(text_of(created, "name"), fallback=place.title) if created is not None else None


def _words(message: Json) -> tuple[str, Sequence[Json]]:
    """What was said, or in a bracketed line what was sent instead."""
    if text := text_of(message, "text"):
        return text, list_of(message, "entities")
    if caption := text_of(message, "caption"):
        return caption, list_of(message, "caption_entities")
    if (sticker := object_of(message, "sticker")) is not None:
        return text_of(sticker, "emoji") or "[sticker]", ()
    if (venue := object_of(message, "venue")) is not None:
        return f"[venue: {one_line(text_of(venue, 'title'))}, {one_line(text_of(venue, 'address'))}]", ()
    if (spot := object_of(message, "location")) is not None:
        return f"[location: {decimal_of(spot, 'latitude')}, {decimal_of(spot, 'longitude')}]", ()
    if (contact := object_of(message, "contact")) is not None:
        return f"[contact: {_full_name(contact, fallback='no name')}, {one_line(text_of(contact, 'phone_number'))}]", ()
    if (poll := object_of(message, "poll")) is not None:
        answers = " | ".join(one_line(text_of(option, "text")) for option in list_of(poll, "options"))
        return f"[poll: {one_line(text_of(poll, 'question'))} — {answers}]", ()
    if (dice := object_of(message, "dice")) is not None:
        return f"[{one_line(text_of(dice, 'emoji')) or 'dice'}: {number_of(dice, 'value')}]", ()
    return "", ()


_FILES = {  # field of a message -> how its file is called and what it is when the message does not tell
    "document": ("document", "application/octet-stream"),
    "video": ("video.mp4", "video/mp4"),
    "video_note": ("video.mp4", "video/mp4"),
    "voice": ("voice.ogg", "audio/ogg"),
    "audio": ("audio", "audio/mpeg"),
}


def _attachments(message: Json) -> tuple[Attachment, ...]:
    found = []
    sizes = list_of(message, "photo")
    if sizes:
        largest = max(sizes, key=lambda size: number_of(size, "width") * number_of(size, "height"))
        name = f"photo_{clean_name(text_of(largest, 'file_unique_id'), fallback='0')}.jpg"
        found.append(_attachment(largest, name, "image/jpeg"))
    for kind, (name, media_type) in _FILES.items():
        if (file := object_of(message, kind)) is not None:
            given = clean_name(text_of(file, "file_name"), fallback=name)
            found.append(_attachment(file, given, text_of(file, "mime_type") or media_type))
    return tuple(found)


def _attachment(file: Json, name: str, media_type: str) -> Attachment:
    size = file.get("file_size")
    identity = text_of(file, "file_id")
    if not identity:
        raise MalformedUpdateError("file_id: a file has one")
    return Attachment(
        filename=name, media_type=media_type, url=identity, size_bytes=size if is_number(size) and size >= 0 else None
    )


def _command(words: str, entities: Sequence[Json], reader: Reader) -> tuple[Command | None, bool]:
    """The command that a message is, and whether it names us."""
    for entity in entities:
        if text_of(entity, "type") != "bot_command" or number_of(entity, "offset") != 0:
            continue
        typed = _slice(words, entity)
        name, _, addressee = typed.removeprefix("/").partition("@")
        is_ours = addressee.casefold() == reader.username.casefold()
        if not name or (addressee and not is_ours):
            return None, False
        name = name.lower()
        return Command(name=reader.commands.get(name, name), args=words[len(typed) :].strip()), is_ours
    return None, False


def _with_links(words: str, entities: Sequence[Json]) -> str:
    """The words, with the addresses that lie behind some of them."""
    links = [
        (number_of(entity, "offset") + number_of(entity, "length"), text_of(entity, "url"))
        for entity in entities
        if text_of(entity, "type") == "text_link"
    ]
    units = words.encode("utf-16-le")
    for end, url in sorted(links, reverse=True):
        if url and 0 < 2 * end <= len(units) and not url.startswith("tg:"):
            units = units[: 2 * end] + f" ({url})".encode("utf-16-le") + units[2 * end :]
    return units.decode("utf-16-le", "replace")


def _is_mentioned(words: str, entities: Sequence[Json], reader: Reader) -> bool:
    for entity in entities:
        kind = text_of(entity, "type")
        if kind == "mention" and _slice(words, entity).casefold() == f"@{reader.username}".casefold():
            return True
        if kind == "text_mention" and number_of(required(entity, "user"), "id") == reader.bot_id:
            return True
        if kind == "bot_command" and _slice(words, entity).casefold().endswith(f"@{reader.username}".casefold()):
            return True
    return False


def _reply(message: Json, reader: Reader) -> tuple[ReplyPreview | None, bool]:
    """The message that is answered, and whether it is ours."""
    quote = object_of(message, "quote")
    quoted = text_of(quote, "text") if quote is not None else ""
    answered = object_of(message, "reply_to_message")
    if answered is None:
        elsewhere = object_of(message, "external_reply")
        if elsewhere is None:
            return None, False
        return ReplyPreview(author=_origin(elsewhere), text=_preview(quoted)), False
    if object_of(answered, "forum_topic_created") is not None:
        return None, False  # every message of a topic hangs on this one
    writer = object_of(answered, "sender_chat") or object_of(answered, "from") or {}
    is_ours = "sender_chat" not in answered and writer.get("id") == reader.bot_id
    name = clean_name(text_of(writer, "title")) if text_of(writer, "title") else _full_name(writer, fallback="somebody")
    words, _ = _words(answered)
    if not quoted and not words:
        words = ", ".join(f"[{attachment.filename}]" for attachment in _attachments(answered))
    return ReplyPreview(author=name, text=_preview(quoted or words)), is_ours


def _origin(reply: Json) -> str:
    """Who wrote a message of another chat."""
    origin = object_of(reply, "origin") or {}
    for kind in ("sender_user", "sender_chat", "chat"):
        if (writer := object_of(origin, kind)) is not None:
            return (
                clean_name(text_of(writer, "title"))
                if text_of(writer, "title")
                else _full_name(writer, fallback="somebody")
            )
    return clean_name(text_of(origin, "sender_user_name"))


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW else f"{text[: PREVIEW - 3]}..."


def _label(message: Json, data: str) -> str | None:
    keyboard = object_of(message, "reply_markup")
    if keyboard is None:
        return None
    rows = keyboard.get("inline_keyboard")
    for row in rows if isinstance(rows, list) else ():
        for button in row if isinstance(row, list) else ():
            if isinstance(button, Mapping) and button.get("callback_data") == data:
                return one_line(text_of(button, "text")) or None
    return None


def _moment(message: Json) -> datetime:
    try:
        return datetime.fromtimestamp(number_of(message, "date"), UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise MalformedUpdateError("date: not a time") from error


def _slice(words: str, entity: Json) -> str:
    """The words of an entity, whose offset and length count UTF-16 units."""
    start, length = number_of(entity, "offset"), number_of(entity, "length")
    if start < 0 or length < 0:
        raise MalformedUpdateError("offset: not inside of the text")
    if words.isascii():
        return words[start : start + length]
    return words.encode("utf-16-le")[2 * start : 2 * (start + length)].decode("utf-16-le", "replace")
