"""What the agent shows beside its words, in Telegram's form: buttons, cards, polls, kinds of files.

Flow:    Rich, OutboundFile -> Sender
Floor:   messaging
Source:  Bot API 9; messaging spec 7, 13, 14.3 and 19.24
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from spacebot.messaging.messages import Button, ButtonStyle, Card, OutboundFile, Poll, Row, SelectOption

MAX_PHOTO: Final = 10 * 1024 * 1024
MAX_VOICE: Final = 1024 * 1024
MAX_QUESTION, MAX_ANSWER, MAX_ANSWERS = 300, 100, 12  # characters, characters, answers of a poll
POLL_S = (5, 2_628_000)  # how long a poll may be open
MAX_PRESS: Final = 64  # bytes of a button's data
MAX_LABEL: Final = 64  # characters; the server has no limit, screens do
MAX_BUTTONS: Final = 100  # of one message
BUTTONS_A_ROW: Final = 8
REMEMBERED: Final = 4096  # meanings of shortened button data


class Controls:
    """What buttons mean. A button carries at most 64 bytes; longer meanings are remembered here, under their hash.

    After a restart a shortened button still tells the start of its action and, by its label, what was pressed.
    """

    def __init__(self) -> None:
        self._meanings: OrderedDict[str, tuple[str, tuple[str, ...]]] = OrderedDict()

    def button(self, action: str) -> str:
        """The data of a button."""
        return self._fitted(action if action[:1] not in ("=", "#") else f"=0:{action}", action, ())

    def option(self, action: str, value: str) -> str:
        """The data of one line of a list."""
        return self._fitted(f"={len(action)}:{action}{value}", action, (value,))

    def read(self, data: str) -> tuple[str, tuple[str, ...]]:
        """The action and the values behind a button's data."""
        if (known := self._meanings.get(data)) is not None:
            return known
        if data.startswith("#"):
            return data.partition(":")[2], ()
        if data.startswith("="):
            length, _, rest = data[1:].partition(":")
            if length == "0":
                return rest, ()
            if length.isdecimal() and len(length) < 3:
                return rest[: int(length)], (rest[int(length) :],)
        return data, ()

    def _fitted(self, data: str, action: str, values: tuple[str, ...]) -> str:
        if len(data.encode()) <= MAX_PRESS:
            return data
        digest = hashlib.sha256(repr((action, values)).encode()).hexdigest()[:16]
        short = f"#{digest}:{action}".encode()[:MAX_PRESS].decode(errors="ignore")
        self._meanings[short] = action, values
        self._meanings.move_to_end(short)
        if len(self._meanings) > REMEMBERED:
            self._meanings.popitem(last=False)
        return short


def keyboard(rows: tuple[Row, ...], controls: Controls) -> InlineKeyboardMarkup | None:
    """Buttons under a message: rows as they are, a list as one button a line. None when none is left."""
    lines: list[list[InlineKeyboardButton]] = []
    left, unnamed = MAX_BUTTONS, 0
    for row in rows:
        line = []
        for button in row.buttons[:BUTTONS_A_ROW]:
            unnamed += not (button.custom_id or button.url or button.style is ButtonStyle.LINK)
            shown = _button(button, button.custom_id or f"btn-{unnamed}", controls)
            line += [shown] if shown is not None else []
        lines.append(line)
        if row.select is not None:
            action = row.select.custom_id or "select"
            lines += [[_option(option, action, controls)] for option in row.select.options]
    kept = []
    for line in lines:
        if 0 < len(line) <= left:
            kept.append(line)
            left -= len(line)
    return InlineKeyboardMarkup(kept) if kept else None


def _button(button: Button, action: str, controls: Controls) -> InlineKeyboardButton | None:
    label = _cut(button.label.strip() or action, MAX_LABEL)
    if button.url:
        is_openable = button.url.startswith(("https://", "http://", "tg://"))  # others make the server refuse it all
        return InlineKeyboardButton(label, url=button.url) if is_openable else None
    return (
        None if button.style is ButtonStyle.LINK else InlineKeyboardButton(label, callback_data=controls.button(action))
    )


def _option(option: SelectOption, action: str, controls: Controls) -> InlineKeyboardButton:
    label = _cut(f"{option.emoji or ''} {option.label.strip() or option.value}".strip() or "-", MAX_LABEL)
    return InlineKeyboardButton(label, callback_data=controls.option(action, option.value))


def card_text(card: Card) -> str:
    """A card as Markdown, because Telegram has no frames."""
    title = card.title.strip().strip("*")
    if title and card.url:
        label = title.replace("[", "(").replace("]", ")")
        title = f"[{label}]({card.url})"
    parts = [
        card.author_name.strip(),
        f"**{title}**" if title else "",
        card.description.strip(),
        "\n".join(f"**{entry.name.strip()}:** {entry.value.strip()}" for entry in card.fields),
        f"_{card.footer.strip()}_" if card.footer.strip() else "",
    ]
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Ballot:
    """A poll within the platform's limits."""

    question: str
    answers: tuple[str, ...]
    open_s: int


def ballot(poll: Poll) -> Ballot | None:
    """What can be voted on; None without a question or without two answers, which the server would refuse."""
    question = _cut(poll.question.strip(), MAX_QUESTION)
    answers = tuple(_cut(answer.strip(), MAX_ANSWER) for answer in poll.answers if answer.strip())[:MAX_ANSWERS]
    if not question or len(answers) < 2:
        return None
    return Ballot(question, answers, min(max(poll.duration_hours * 3600, POLL_S[0]), POLL_S[1]))


def media_kind(file: OutboundFile) -> str:
    """How a file is shown: `photo`, `video`, `voice`, `audio` or, for all else and what is too large, `document`."""
    media_type = file.media_type.partition(";")[0].strip().lower()
    if media_type in ("image/jpeg", "image/png", "image/webp") and file.size_bytes <= MAX_PHOTO:
        return "photo"
    if media_type == "video/mp4":
        return "video"
    if media_type in ("audio/ogg", "audio/opus") and file.size_bytes <= MAX_VOICE:
        return "voice"
    return "audio" if media_type.startswith("audio/") else "document"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
