"""How what the agent says becomes messages of Telegram: texts, files, polls, buttons, reactions, drafts.

Flow:    OutboundMessage -> Sender.deliver -> steps, one platform message each -> Bot
Floor:   messaging
Source:  Bot API 9; messaging spec 7, 13, 14.3, 19.14, 19.20 and 19.24
"""

import html
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio
from telegram import (
    Bot,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    Message,
    ReactionTypeEmoji,
    ReplyParameters,
)
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    Forbidden,
    InvalidToken,
    RetryAfter,
    TelegramError,
    TimedOut,
)

from spacebot.base.errors import DeliveryError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.messaging.messages import (
    OutboundFile,
    OutboundKind,
    OutboundMessage,
    Target,
)
from spacebot.messaging.telegram.render import Ballot, Controls, ballot, card_text, keyboard, media_kind
from spacebot.messaging.telegram.translate import PRESS
from spacebot.messaging.text import LONG_TEXT, TelegramPart, replace_mentions, split_telegram, utf16_length

log = logging.getLogger(__name__)

MAX_CAPTION: Final = 1024  # UTF-16 units after entities are parsed
MAX_FILE: Final = 50 * 1024 * 1024  # bytes of any upload
SHORT_PAUSE_S: Final = 5.0  # pauses up to this are waited out in place
UPLOAD_READ_S: Final = 90.0  # for the server to look at a file
REMEMBERED: Final = 4096  # drafts whose last change is known

_TAG = re.compile(r"<[^>]*>")

T = TypeVar("T")
NoteSent = Callable[[str], Awaitable[None]]
Step = Callable[[], Awaitable[int]]


def delivery_error(error: TelegramError, key: str) -> DeliveryError:
    """What an error of the library means to whoever wanted something delivered."""
    said = scrub(error.message)
    match error:
        case RetryAfter():
            return DeliveryError(
                f"Telegram asks for a pause: {said}", is_permanent=False, retry_after_s=pause_of(error)
            )
        case InvalidToken():
            text = f"Telegram refused the token ({said}); get a new one from @BotFather and put it into {table_of(key)}"
            return DeliveryError(text, is_permanent=True)
        case Forbidden():
            text = (
                f"Telegram does not let the bot in there ({said}); the person has to start it, or add it to the group"
            )
            return DeliveryError(text, is_permanent=True)
        case Conflict():
            return DeliveryError(f"Telegram: {said}", is_permanent=False)
        case ChatMigrated():
            return DeliveryError("the group moved to another id while this was sent", is_permanent=False)
        case TimedOut():  # may have arrived all the same
            return DeliveryError(f"Telegram did not answer in time ({said})", is_permanent=False)
        case BadRequest():
            text = f"Telegram refused that ({said}); look whether the chat still exists and the bot may write there"
            return DeliveryError(text, is_permanent=True)
    return DeliveryError(f"Telegram cannot be reached or failed ({said})", is_permanent=False)


def table_of(key: str) -> str:
    """Where an account stands in the owner's file."""
    platform, _, name = key.partition(":")
    return f"the instance {name!r} of [messaging.{platform}]" if name else f"[messaging.{platform}]"


def pause_of(error: RetryAfter) -> float:
    """The pause that the server asks for, in seconds."""
    pause = error.retry_after
    return float(pause) if isinstance(pause, int | float) else pause.total_seconds()


@contextmanager
def as_delivery_errors(key: str) -> Iterator[None]:
    """Errors of the library inside of the block become DeliveryErrors."""
    try:
        yield
    except TelegramError as error:
        raise delivery_error(error, key) from error


@dataclass(frozen=True, slots=True)
class Room:
    """A chat, and the topic in it."""

    chat: int
    thread: int | None

    @classmethod
    def of(cls, target: Target, key: str) -> "Room":
        """Errors: DeliveryError when the target names no chat."""
        chat, thread = target.data.get("chat_id"), target.data.get("thread_id")
        if chat is None:
            chat, _, thread = target.conversation_id.removeprefix(f"{key}:").partition(":")
        try:
            return cls(int(chat), int(thread) if thread else None)
        except (TypeError, ValueError) as error:
            text = f"{target.conversation_id} names no Telegram chat; an id is a number such as -1001234567890"
            raise DeliveryError(text, is_permanent=True) from error


class Sender:
    """Everything that goes out over one connection."""

    def __init__(self, bot: Bot, key: str, controls: Controls, *, edit_every_s: float) -> None:
        self._bot = bot
        self._key = key
        self._controls = controls
        self._edit_every_s = edit_every_s
        self._edited: OrderedDict[tuple[int, int], float] = OrderedDict()  # draft -> when it changed
        self.moved: dict[int, int] = {}  # group -> the supergroup that it became

    async def deliver(self, target: Target, message: OutboundMessage, note_sent: NoteSent) -> None:
        """Send what a message consists of, behind the parts that went out before. Errors: DeliveryError.

        A time-out leaves open whether a part arrived, and bots cannot read what a chat holds: a part in doubt is
        sent again, for twice is better than never.
        """
        room = Room.of(target, self._key)
        with as_delivery_errors(self._key):
            if message.kind is OutboundKind.REACTION:
                await self._react(room, target, message.text)
                return
            steps = await self._steps(room, target, message)
            if not steps:
                raise DeliveryError("there is nothing to send: the message is empty", is_permanent=True)
            for step in steps[len(message.sent) :]:
                await note_sent(str(await step()))

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Show a growing text, or as much of it as one message holds. Errors: DeliveryError."""
        room = Room.of(target, self._key)
        parts = await _split(text)
        if not parts:
            raise DeliveryError("there is nothing to show yet", is_permanent=False)
        with as_delivery_errors(self._key):
            if draft_id is None:
                number = await self._say(room, parts[0])
                self._note_edit(room, number)
                return str(number)
            await trio.sleep_until(self._edited.get((room.chat, int(draft_id)), 0.0) + self._edit_every_s)
            await self._edit(room, int(draft_id), parts[0], None, None)
        return draft_id

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """Take a draft away. Errors: DeliveryError."""
        room = Room.of(target, self._key)
        with as_delivery_errors(self._key):
            try:
                await self._call(room, lambda chat: self._bot.delete_message(chat, int(draft_id)))
            except BadRequest as error:
                log.debug("draft was gone", extra=kv(reason=error.message))

    async def show_typing(self, target: Target) -> None:
        """Show for five seconds that an answer is written. Errors: DeliveryError."""
        room = Room.of(target, self._key)
        with as_delivery_errors(self._key):
            await self._call(
                room, lambda chat: self._bot.send_chat_action(chat, "typing", message_thread_id=room.thread)
            )

    async def _steps(self, room: Room, target: Target, message: OutboundMessage) -> list[Step]:
        """One step for each platform message. The same message has the same steps at every attempt."""
        rich = message.rich
        reply = _reply(target) if message.wants_reply_mark or (rich is not None and rich.thread_name) else None
        texts = [replace_mentions(message.text, message.mentions).strip()]
        texts += [card_text(card) for card in rich.cards] if rich is not None else []
        markup = keyboard(rich.rows, self._controls) if rich is not None else None
        poll = ballot(rich.poll) if rich is not None and rich.poll is not None else None
        if rich is not None and rich.poll is not None and poll is None:
            log.warning("poll left out: it has no question or not two answers", extra=kv(message=message.id))
        body = "\n\n".join(text for text in texts if text)
        steps: list[Step] = []
        parts = await _split(body)
        if message.file is not None:
            is_caption = len(parts) == 1 and _is_caption(parts[0]) and markup is None and message.draft_id is None
            steps.append(self._file_step(room, message.file, parts[0] if is_caption else None, reply))
            parts = [] if is_caption else parts
        if markup is not None and not parts:
            parts = [TelegramPart("⬇️", "⬇️")]  # buttons cannot stand alone
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            steps.append(
                self._text_step(
                    room,
                    part,
                    draft_id=message.draft_id if number == 0 else None,
                    reply=reply if not steps else None,
                    markup=markup if is_last else None,
                    preview=_preview(message) if is_last else None,
                )
            )
        if poll is not None and rich is not None and rich.poll is not None:
            steps.append(
                self._poll_step(room, poll, is_many=rich.poll.allow_multiselect, reply=reply if not steps else None)
            )
        return steps

    def _text_step(
        self,
        room: Room,
        part: TelegramPart,
        *,
        draft_id: str | None,
        reply: ReplyParameters | None,
        markup: InlineKeyboardMarkup | None,
        preview: LinkPreviewOptions | None,
    ) -> Step:
        async def step() -> int:
            if draft_id is not None:
                try:
                    await self._edit(room, int(draft_id), part, markup, preview)
                    return int(draft_id)
                except BadRequest as error:
                    log.info("draft cannot take the text; it is sent anew", extra=kv(reason=error.message))
            return await self._say(room, part, reply=reply, markup=markup, preview=preview)

        return step

    def _poll_step(self, room: Room, poll: Ballot, *, is_many: bool, reply: ReplyParameters | None) -> Step:
        async def step() -> int:
            sent = await self._call(
                room,
                lambda chat: self._bot.send_poll(
                    chat,
                    poll.question,
                    poll.answers,
                    is_anonymous=False,
                    allows_multiple_answers=is_many,
                    open_period=poll.open_s,
                    message_thread_id=room.thread,
                    reply_parameters=reply,
                ),
            )
            return sent.message_id

        return step

    def _file_step(
        self, room: Room, file: OutboundFile, caption: TelegramPart | None, reply: ReplyParameters | None
    ) -> Step:
        async def step() -> int:
            if file.size_bytes > MAX_FILE:
                text = f"{file.filename} has {file.size_bytes} bytes; Telegram takes at most {MAX_FILE} from bots"
                raise DeliveryError(text, is_permanent=True)
            try:
                data = await trio.Path(file.path).read_bytes()
            except OSError as error:
                text = f"{file.filename} cannot be read any more: {error.strerror}"
                raise DeliveryError(text, is_permanent=True) from error
            kind = media_kind(file)
            try:
                return await self._upload(room, kind, file, data, caption, reply)
            except BadRequest as error:
                if kind == "document" or _is_about_entities(error) or not _is_about_media(error):
                    raise
                log.info("file is sent as a document", extra=kv(kind=kind, reason=error.message))
                return await self._upload(room, "document", file, data, caption, reply)

        return step

    async def _upload(
        self,
        room: Room,
        kind: str,
        file: OutboundFile,
        data: bytes,
        caption: TelegramPart | None,
        reply: ReplyParameters | None,
    ) -> int:
        methods: Mapping[str, Callable[..., Awaitable[Message]]] = {
            "photo": self._bot.send_photo,
            "video": self._bot.send_video,
            "voice": self._bot.send_voice,
            "audio": self._bot.send_audio,
            "document": self._bot.send_document,
        }

        async def upload(chat: int, text: str | None, parse_mode: str | None) -> Message:
            words: dict[str, Any] = {"caption": text, "parse_mode": parse_mode} if text else {}
            return await methods[kind](
                chat,
                data,
                filename=file.filename,
                message_thread_id=room.thread,
                reply_parameters=reply,
                read_timeout=UPLOAD_READ_S,
                **words,
            )

        if caption is None:
            return (await self._call(room, lambda chat: upload(chat, None, None))).message_id
        return (await self._marked_up(room, caption, upload)).message_id

    async def _say(
        self,
        room: Room,
        part: TelegramPart,
        *,
        reply: ReplyParameters | None = None,
        markup: InlineKeyboardMarkup | None = None,
        preview: LinkPreviewOptions | None = None,
    ) -> int:
        async def say(chat: int, text: str, parse_mode: str | None) -> Message:
            return await self._bot.send_message(
                chat,
                text,
                parse_mode=parse_mode,
                message_thread_id=room.thread,
                reply_parameters=reply,
                reply_markup=markup,
                link_preview_options=preview,
            )

        return (await self._marked_up(room, part, say)).message_id

    async def _edit(
        self,
        room: Room,
        number: int,
        part: TelegramPart,
        markup: InlineKeyboardMarkup | None,
        preview: LinkPreviewOptions | None,
    ) -> None:
        async def edit(chat: int, text: str, parse_mode: str | None) -> object:
            return await self._bot.edit_message_text(
                text,
                chat_id=chat,
                message_id=number,
                parse_mode=parse_mode,
                reply_markup=markup,
                link_preview_options=preview,
            )

        try:
            await self._marked_up(room, part, edit)
        except BadRequest as error:
            if "not modified" not in error.message.lower():  # the server has no other sign of it
                raise
        self._note_edit(room, number)

    def _note_edit(self, room: Room, number: int) -> None:
        self._edited[room.chat, number] = trio.current_time()
        self._edited.move_to_end((room.chat, number))
        if len(self._edited) > REMEMBERED:
            self._edited.popitem(last=False)

    async def _react(self, room: Room, target: Target, emoji: str) -> None:
        number = _answered(target)
        if number is None:
            raise DeliveryError("there is no message to react to", is_permanent=True)
        plain = emoji.strip().replace("\N{VARIATION SELECTOR-16}", "")  # the server's list is without
        try:
            await self._call(
                room, lambda chat: self._bot.set_message_reaction(chat, number, reaction=[ReactionTypeEmoji(plain)])
            )
        except BadRequest as error:
            text = f"Telegram does not take {emoji} as a reaction there ({error.message}); try 👍 or another common one"
            raise DeliveryError(text, is_permanent=True) from error

    async def _marked_up(
        self, room: Room, part: TelegramPart, call: Callable[[int, str, str | None], Awaitable[T]]
    ) -> T:
        """Send the HTML; send plain words when, and only when, the server cannot read its marks."""
        try:
            return await self._call(room, lambda chat: call(chat, part.html, "HTML"))
        except BadRequest as error:
            if not _is_about_entities(error):
                raise
            log.warning("marks were not understood; sent without", extra=kv(reason=error.message))
        return await self._call(room, lambda chat: call(chat, part.plain, None))

    async def _call(self, room: Room, call: Callable[[int], Awaitable[T]]) -> T:
        """Call with the chat's present id; short pauses are waited out, a moved group is followed."""
        is_paused = is_moved = False
        while True:
            try:
                return await call(self.moved.get(room.chat, room.chat))
            except RetryAfter as error:
                if is_paused or (pause := pause_of(error)) > SHORT_PAUSE_S:
                    raise
                is_paused = True
                await trio.sleep(pause)
            except ChatMigrated as error:
                if is_moved:
                    raise
                is_moved = True
                self.moved[room.chat] = error.new_chat_id
                log.warning("chat has moved", extra=kv(chat=room.chat, new_chat=error.new_chat_id))


async def _split(text: str) -> list[TelegramPart]:
    if len(text) <= LONG_TEXT:
        parts = split_telegram(text) if text.strip() else []
    else:
        parts = await trio.to_thread.run_sync(split_telegram, text)
    # Marks around nothing, such as an empty quote, show nothing, which the server refuses.
    return [part if part.html.strip() else TelegramPart(html.escape(part.plain), part.plain) for part in parts]


def _is_caption(part: TelegramPart) -> bool:
    """Whether it may stand under a file, in either form."""
    shown = html.unescape(_TAG.sub("", part.html))
    return max(utf16_length(shown), utf16_length(part.plain)) <= MAX_CAPTION


def _answered(target: Target) -> int | None:
    """The number of the message that is answered; for a press that of the message with the button."""
    identity: object = target.message_id
    if isinstance(identity, str) and identity.startswith(PRESS):
        identity = target.data.get("message_id")
    try:
        return int(identity) if isinstance(identity, str | int) else None
    except ValueError:
        return None


def _reply(target: Target) -> ReplyParameters | None:
    number = _answered(target)
    return ReplyParameters(number, allow_sending_without_reply=True) if number is not None else None


def _preview(message: OutboundMessage) -> LinkPreviewOptions | None:
    """The picture of a card, shown as the preview of a link."""
    cards = message.rich.cards if message.rich is not None else ()
    picture = next(
        (card.image_url or card.thumbnail_url for card in cards if card.image_url or card.thumbnail_url), None
    )
    return LinkPreviewOptions(url=picture) if picture is not None else None


def _is_about_entities(error: BadRequest) -> bool:
    return "can't parse entities" in error.message.lower()  # nothing but the text tells it from other refusals


def _is_about_media(error: BadRequest) -> bool:
    said = error.message.upper()
    return any(word in said for word in ("PHOTO_", "IMAGE_PROCESS_FAILED", "VIDEO_", "VOICE_MESSAGES_FORBIDDEN"))
