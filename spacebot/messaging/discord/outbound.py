"""What is sent to Discord: texts cut to size, and cards, controls and polls within Discord's limits.

Discord refuses a whole message for one field that is too long, so everything is made to fit before it goes out.

Flow:    OutboundMessage -> shape -> Part... -> embeds, action_rows, poll_builder -> the library's call
Floor:   messaging; pure
Source:  messaging spec 7 and 14.1; https://discord.com/developers/docs/resources/message (limits)
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import hikari
from hikari import impl

from spacebot.messaging.messages import (
    Button,
    ButtonStyle,
    Card,
    CardField,
    OutboundMessage,
    Poll,
    Row,
    Select,
    SelectOption,
)
from spacebot.messaging.text import replace_mentions, split_for, to_discord

TEXT = 2000  # code points of a message
EMBEDS, EMBED_SUM = 10, 6000
TITLE, DESCRIPTION, FIELDS, FIELD_NAME, FIELD_VALUE, FOOTER, AUTHOR = 256, 4096, 25, 256, 1024, 2048, 256
ROWS, BUTTONS, LABEL, CUSTOM_ID = 5, 5, 80, 100
OPTIONS, OPTION, PLACEHOLDER = 25, 100, 150
QUESTION, ANSWERS, ANSWER, LONGEST_POLL_H = 300, 10, 55, 720
URL = 2048
LINK = 512  # of a button
THREAD_NAME = 100
NONCE = 25

_STYLES: Mapping[ButtonStyle, Literal[1, 2, 3, 4]] = {
    ButtonStyle.PRIMARY: 1,
    ButtonStyle.SECONDARY: 2,
    ButtonStyle.SUCCESS: 3,
    ButtonStyle.DANGER: 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One message of Discord's.

    Args:
        plain: what is sent instead when Discord does not take cards, controls or poll.
    """

    text: str = ""
    cards: tuple[Card, ...] = ()
    rows: tuple[Row, ...] = ()
    poll: Poll | None = None
    path: Path | None = None
    filename: str = ""
    plain: str = ""

    @property
    def is_rich(self) -> bool:
        """Whether it has more than words and a file."""
        return bool(self.cards or self.rows or self.poll)


def shape(message: OutboundMessage, mentions: Mapping[str, str]) -> list[Part]:
    """A message as Discord's messages, in order; the same message always gives the same parts.

    Cards and controls go with the last text. A poll is a message of its own, because it cannot be put into a draft
    that is there already, and because its refusal must not cost the text.

    Args:
        mentions: name -> handle of everybody who may be meant.
    """
    parts = [Part(text=text) for text in split_for(replace_mentions(message.text, mentions), to_discord, TEXT)]
    if (file := message.file) is not None:
        caption = parts[0].text if parts else ""
        parts[:1] = [Part(text=caption, path=file.path, filename=file.filename)]
    if (rich := message.rich) is None:
        return parts
    cards, rows = fit_cards(rich.cards), fit_rows(rich.rows)
    if cards or rows:
        last = parts.pop() if parts else Part()
        parts.append(replace(last, cards=cards, rows=rows, plain=last.text or _words_of(cards, rows)))
    if rich.poll is not None and (poll := fit_poll(rich.poll)) is not None:
        parts.append(Part(poll=poll, plain=_cut("\n".join((poll.question, *_numbered(poll.answers))), TEXT)))
    return parts


def nonce(message: OutboundMessage, index: int) -> str:
    """A mark by which Discord recognises a part that it was sent before, for some minutes."""
    return hashlib.sha256(f"{message.id}:{index}".encode()).hexdigest()[:NONCE]


def draft_text(text: str) -> str:
    """A growing text as far as it fits into one message."""
    pieces = split_for(text, to_discord, TEXT - 1) if text.strip() else []
    if not pieces:
        return "…"
    return pieces[0] if len(pieces) == 1 else pieces[0] + "…"


def fit_cards(cards: Sequence[Card]) -> tuple[Card, ...]:
    """Cards with everything cut to Discord's limits; what is empty or beyond the sum of all texts is left out."""
    kept: list[Card] = []
    left = EMBED_SUM
    for card in cards:
        if len(kept) == EMBEDS or left <= 0:
            break
        fitted, used = _fit_card(card, left)
        if fitted is not None:
            kept.append(fitted)
            left -= used
    return tuple(kept)


def _fit_card(card: Card, left: int) -> tuple[Card | None, int]:
    """A card with at most `left` characters in all, and how many it has."""
    start = left

    def take(text: str, limit: int, *, is_written: bool = False, blank: str = "") -> str:
        nonlocal left
        limit = min(limit, left)
        text = text.strip()
        if is_written and text:
            text = to_discord(text[: limit + 1])  # what lies behind is cut anyway
        fitted = _cut(text, limit).strip() or blank
        left -= len(fitted)
        return fitted

    title, author = take(card.title, TITLE), take(card.author_name, AUTHOR)
    footer, description = take(card.footer, FOOTER), take(card.description, DESCRIPTION, is_written=True)
    fields: list[CardField] = []
    for one in card.fields[:FIELDS]:
        if left < 2 or not (one.name.strip() or one.value.strip()):
            continue
        name = take(one.name, min(FIELD_NAME, left - 1), blank="\u200b")
        value = take(one.value, FIELD_VALUE, is_written=True, blank="\u200b")
        fields.append(replace(one, name=name, value=value))
    image, thumbnail = _address(card.image_url), _address(card.thumbnail_url)
    if not (title or author or footer or description or fields or image or thumbnail):
        return None, 0
    color = card.color if card.color is not None and 0 <= card.color <= 0xFFFFFF else None
    fitted = Card(
        title=title,
        description=description,
        color=color,
        url=_address(card.url),
        fields=tuple(fields),
        footer=footer,
        image_url=image,
        thumbnail_url=thumbnail,
        author_name=author,
    )
    return fitted, start - left


def fit_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows of controls within the limits, with ids that are all there and all different."""
    known: set[str] = set()
    kept: list[Row] = []
    for row in rows:
        buttons = [fitted for button in row.buttons if (fitted := _fit_button(button, known)) is not None]
        kept += [Row(buttons=tuple(buttons[at : at + BUTTONS])) for at in range(0, len(buttons), BUTTONS)]
        if row.select is not None and (select := _fit_select(row.select, known)) is not None:
            kept.append(Row(select=select))
    return tuple(kept[:ROWS])


def _fit_button(button: Button, known: set[str]) -> Button | None:
    label = _cut(button.label.strip(), LABEL)
    if button.style is ButtonStyle.LINK:
        url = _address(button.url)
        return Button(label=label or "→", style=ButtonStyle.LINK, url=url) if url and len(url) <= LINK else None
    if not (label or button.custom_id.strip()):
        return None
    id = _unique(button.custom_id, "btn", known)
    return Button(label=label or _cut(id, LABEL), custom_id=id, style=button.style)


def _fit_select(select: Select, known: set[str]) -> Select | None:
    options: dict[str, SelectOption] = {}
    for option in select.options:
        value = (option.value.strip() or option.label.strip())[:OPTION]
        if value and value not in options and len(options) < OPTIONS:
            options[value] = SelectOption(
                label=_cut(option.label.strip(), OPTION) or value,
                value=value,
                description=_cut(option.description.strip(), OPTION),
                emoji=_emoji(option.emoji),
            )
    if not options:
        return None
    return Select(
        custom_id=_unique(select.custom_id, "select", known),
        options=tuple(options.values()),
        placeholder=_cut(select.placeholder.strip(), PLACEHOLDER),
    )


def fit_poll(poll: Poll) -> Poll | None:
    """A poll within the limits; None when it has no question or nothing to choose between."""
    question = _cut(poll.question.strip(), QUESTION)
    answers = list(dict.fromkeys(_cut(answer.strip(), ANSWER) for answer in poll.answers if answer.strip()))[:ANSWERS]
    if not question or len(answers) < 2:
        return None
    hours = min(max(poll.duration_hours, 1), LONGEST_POLL_H)
    return replace(poll, question=question, answers=tuple(answers), duration_hours=hours)


def fit_thread_name(name: str) -> str:
    """A thread's name on one line; empty when nothing is left of it."""
    return _cut(" ".join(name.split()), THREAD_NAME)


def embeds(cards: Sequence[Card]) -> list[hikari.Embed]:
    """Fitted cards as the library sends them."""
    made = []
    for card in cards:
        embed = hikari.Embed(
            title=card.title or None, description=card.description or None, url=card.url, color=card.color
        )
        for one in card.fields:
            embed.add_field(one.name, one.value, inline=one.inline)
        if card.footer:
            embed.set_footer(card.footer)
        if card.author_name:
            embed.set_author(name=card.author_name)
        if card.image_url:
            embed.set_image(card.image_url)
        if card.thumbnail_url:
            embed.set_thumbnail(card.thumbnail_url)
        made.append(embed)
    return made


def action_rows(rows: Sequence[Row]) -> list[impl.MessageActionRowBuilder]:
    """Fitted rows as the library sends them."""
    made = []
    for row in rows:
        builder = impl.MessageActionRowBuilder()
        for button in row.buttons:
            if button.style is ButtonStyle.LINK:
                builder.add_link_button(button.url or "", label=button.label)
            else:
                builder.add_interactive_button(_STYLES[button.style], button.custom_id, label=button.label)
        if (select := row.select) is not None:
            placeholder = select.placeholder or hikari.UNDEFINED
            menu = builder.add_text_menu(select.custom_id, placeholder=placeholder, min_values=1)
            for option in select.options:
                menu.add_option(
                    option.label,
                    option.value,
                    description=option.description or hikari.UNDEFINED,
                    emoji=option.emoji or hikari.UNDEFINED,
                )
        made.append(builder)
    return made


def poll_builder(poll: Poll) -> impl.PollBuilder:
    """A fitted poll as the library sends it."""
    builder = impl.PollBuilder(
        question_text=poll.question, allow_multiselect=poll.allow_multiselect, duration=poll.duration_hours
    )
    for answer in poll.answers:
        builder.add_answer(text=answer)
    return builder


@dataclass(slots=True)
class Arrived:
    """Messages of ours that a channel holds, to find those again that were sent without our knowing."""

    messages: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)  # id, text, file names; oldest first

    def take(self, part: Part) -> str | None:
        """The id of the oldest one that says the same; it is found only once."""
        for at, (id, text, files) in enumerate(self.messages):
            if text == part.text.strip() and (text or files) and (part.path is None) == (not files):
                del self.messages[: at + 1]
                return id
        return None


def _words_of(cards: Sequence[Card], rows: Sequence[Row]) -> str:
    """What cards and controls say, for a message whose cards and controls were refused."""
    said = (
        line
        for card in cards
        for line in (
            card.author_name,
            f"**{card.title}**" if card.title else "",
            card.description,
            *(f"**{one.name}**: {one.value}" for one in card.fields),
            card.footer,
        )
        if line
    )
    labels = [button.label for row in rows for button in row.buttons]
    labels += [option.label for row in rows if row.select is not None for option in row.select.options]
    return _cut("\n".join((*said, *(f"• {label}" for label in labels))), TEXT)


def _numbered(answers: Sequence[str]) -> Iterator[str]:
    return (f"{number}. {answer}" for number, answer in enumerate(answers, 1))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return text[: limit - 1].rstrip() + "…" if limit > 1 else text[: max(limit, 0)]


def _address(url: str | None) -> str | None:
    if url is None or not url.startswith(("https://", "http://")) or len(url) > URL:
        return None
    return url if not any(character.isspace() for character in url) else None


def _emoji(emoji: str | None) -> str | None:
    """A pictogram; plain words are none, and Discord would refuse the message for them."""
    return emoji.strip() if emoji and emoji.strip() and not emoji.isascii() and len(emoji) <= 16 else None


def _unique(id: str, kind: str, known: set[str]) -> str:
    wanted = id.strip()[:CUSTOM_ID]
    number = 1
    unique = wanted or f"{kind}-{number}"
    while unique in known:
        number += 1
        unique = f"{wanted[: CUSTOM_ID - 4]}-{number}" if wanted else f"{kind}-{number}"
    known.add(unique)
    return unique
