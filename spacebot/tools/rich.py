"""A reply with more than words: cards, buttons, lists to choose from, polls, threads; and files.

Models send these in many shapes, so reading them is tolerant: what cannot be understood is dropped, the words stay.

Floor:  tools
Source: messaging spec 7 and 8; pitfalls 24, 25, 27 and 28 of its section 19
"""

import mimetypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import trio
from pydantic import BeforeValidator, Field

from spacebot.base.errors import DeniedError, ToolError
from spacebot.base.ids import new_uuid
from spacebot.base.redaction import find_secret
from spacebot.base.text import clean_unicode
from spacebot.base.tree import Node
from spacebot.messaging.messages import (
    Button,
    ButtonStyle,
    Card,
    CardField,
    OutboundFile,
    Poll,
    Rich,
    Row,
    Select,
    SelectOption,
)
from spacebot.tools.channel import Reply, ReplyArguments, check_outgoing, refuse_secret
from spacebot.tools.contract import ToolArguments, ToolOutput
from spacebot.tools.paths_policy import Place, open_file
from spacebot.tools.sandbox import Containment

MOST_CARDS = 10
MOST_ROWS = 5
THREAD_NAME = 100  # characters
MAX_FILE_BYTES = 25 * 2**20  # messaging spec 8
SCANNED_BYTES = 2**20  # of a file that is looked through for secrets


def _text(value: object) -> object:
    """A text that some models wrap: {"text": …}, {"url": …}, {"name": …}, or null."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("text", "url", "name", "content") if value.get(key)), "")
    return "" if value is None else value


def _color(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lstrip("#").removeprefix("0x")
        try:
            return int(text, 16)
        except ValueError:
            return None
    return value


Words = Annotated[str, BeforeValidator(_text)]


class FieldArguments(ToolArguments):
    name: Words = ""
    value: Words = ""
    inline: bool = False


class CardArguments(ToolArguments):
    title: Words = ""
    description: Words = ""
    color: Annotated[int | None, BeforeValidator(_color)] = None
    url: Words = ""
    fields: list[FieldArguments] = Field(default_factory=list)
    footer: Words = ""
    image: Words = Field("", description="address of a picture")


class OptionArguments(ToolArguments):
    label: Words
    value: Words = ""
    description: Words = ""


class ButtonArguments(ToolArguments):
    label: Words
    custom_id: Words = Field("", description="comes back when it is pressed")
    style: Words = Field("secondary", description="primary, secondary, success, danger or link")
    url: Words = Field("", description="for a link")


class ControlsArguments(ToolArguments):
    """A row: buttons, or one list."""

    buttons: list[ButtonArguments] = Field(default_factory=list, description="at most 5")
    options: list[OptionArguments] = Field(default_factory=list, description="a list to choose from instead")
    custom_id: Words = ""
    placeholder: Words = ""


class PollArguments(ToolArguments):
    question: Words = ""
    answers: list[Words] = Field(default_factory=list)
    allow_multiselect: bool = False
    duration_hours: int = 24


class RichReplyArguments(ReplyArguments):
    thread_name: Words = Field("", description="begin a thread of this name with the reply")
    cards: list[CardArguments] = Field(default_factory=list, max_length=MOST_CARDS)
    interactive_elements: list[ControlsArguments] = Field(
        default_factory=list, description="rows of buttons or lists", max_length=MOST_ROWS
    )
    poll: PollArguments | None = None
    blocks: list[dict[str, Any]] = Field(
        default_factory=list, description="layout blocks in the platform's own JSON, where it has such", max_length=50
    )


class RichReply(Reply):
    """Say something, where messages may hold more than words."""

    arguments: ClassVar[type[ToolArguments]] = RichReplyArguments

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        rich = rich_of(arguments)
        text = arguments.content.strip() or (words_of(rich) if rich else "")
        check_outgoing(text)
        if rich is not None:
            refuse_secret("\n".join(_strings(rich)), "a card, button, poll, thread name or block")
        message_id = await self._turn.reply(text, rich)
        return ToolOutput(f'{{"success": true, "message_id": "{message_id}"}}', ends_turn=True)


def rich_of(arguments: RichReplyArguments) -> Rich | None:
    """What the model asked for beside words; None for nothing. Parts that make no sense are left out."""
    rich = Rich(
        cards=tuple(card for card in map(_card, arguments.cards) if card != Card()),
        rows=tuple(row for row in map(_row, arguments.interactive_elements) if row != Row()),
        poll=_poll(arguments.poll),
        thread_name=arguments.thread_name.strip()[:THREAD_NAME] or None,
        blocks=tuple(arguments.blocks),
    )
    return None if rich == Rich() else rich


def words_of(rich: Rich) -> str:
    """All words of the parts, for where only text is shown and for the search for secrets."""
    lines: list[str] = []
    for card in rich.cards:
        lines += [f"**{card.title}**" if card.title else "", card.description]
        lines += [f"{field.name}: {field.value}" for field in card.fields]
        lines += [card.footer, card.url or ""]
    for row in rich.rows:
        lines += [f"{button.label} {button.url or ''}".strip() for button in row.buttons]
        if row.select is not None:
            lines += [option.label for option in row.select.options]
    if rich.poll is not None:
        lines += [rich.poll.question, *(f"{n}. {answer}" for n, answer in enumerate(rich.poll.answers, 1))]
    return "\n".join(line for line in lines if line)


def _strings(value: Any) -> Iterator[str]:
    """Every text of a reply's parts, those too that people do not see at once: addresses, ids, descriptions."""
    if is_dataclass(value):
        yield from chain.from_iterable(_strings(getattr(value, field.name)) for field in fields(value))
    match value:
        case str():
            yield value
        case Mapping():
            yield from chain.from_iterable(_strings(item) for pair in value.items() for item in pair)
        case list() | tuple():
            yield from chain.from_iterable(map(_strings, value))


def _card(card: CardArguments) -> Card:
    return Card(
        title=card.title,
        description=card.description,
        color=card.color if card.color is not None and 0 <= card.color <= 0xFFFFFF else None,
        url=_address(card.url),
        fields=tuple(
            CardField(name=field.name, value=field.value, inline=field.inline)
            for field in card.fields
            if field.name.strip() and field.value.strip()
        ),
        footer=card.footer,
        image_url=_address(card.image),
    )


def _row(row: ControlsArguments) -> Row:
    options = tuple(
        SelectOption(label=option.label, value=option.value or option.label, description=option.description)
        for option in row.options
        if option.label.strip()
    )
    if options:
        select = Select(custom_id=row.custom_id or "choice", options=options, placeholder=row.placeholder)
        return Row(select=select)
    return Row(buttons=tuple(button for button in map(_button, row.buttons) if button is not None))


def _button(button: ButtonArguments) -> Button | None:
    style = button.style.lower()
    chosen = ButtonStyle(style) if style in set(ButtonStyle) else ButtonStyle.SECONDARY
    url = _address(button.url)
    if not button.label.strip() or (chosen is ButtonStyle.LINK and url is None):
        return None
    if url is not None:
        return Button(label=button.label, style=ButtonStyle.LINK, url=url)
    return Button(label=button.label, custom_id=button.custom_id or button.label[:100], style=chosen)


def _poll(poll: PollArguments | None) -> Poll | None:
    if poll is None:
        return None
    answers = tuple(answer.strip() for answer in poll.answers if answer.strip())
    if not poll.question.strip() or len(answers) < 2:
        return None
    return Poll(
        question=poll.question.strip(),
        answers=answers,
        allow_multiselect=poll.allow_multiselect,
        duration_hours=min(max(poll.duration_hours, 1), 720),
    )


def _address(text: str) -> str | None:
    return text if text.startswith(("https://", "http://")) else None


class FileHandle(Protocol):
    """What the turn lets the file tool do."""

    async def send_file(self, file: OutboundFile, caption: str) -> str:
        """Commit a file as sent; returns the id of its row. Errors: StorageError."""
        ...

    async def may_send(self, parts: tuple[str, ...]) -> bool:
        """Whether a file of the workspace may be seen by these people. Errors: StorageError."""
        ...


class SendFileArguments(ToolArguments):
    file_path: str = Field(description="a file in the workspace", min_length=1, max_length=4096)
    caption: str = Field("", description="words that go with it", max_length=4000)


class SendFile:
    """Send a file of the workspace to the people in this conversation.

    Args:
        containment: decides what may be read.
        outgoing: folder for the copies that wait to be delivered.
        max_bytes: what the platform takes.
    """

    name: ClassVar[str] = "send_file"
    arguments: ClassVar[type[ToolArguments]] = SendFileArguments

    def __init__(self, turn: FileHandle, *, containment: Containment, outgoing: Path, max_bytes: int) -> None:
        self._turn = turn
        self._containment = containment
        self._outgoing = outgoing
        self._max_bytes = min(max_bytes, MAX_FILE_BYTES)

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        refuse_secret(arguments.caption, "the caption")
        limiter = self._containment.disk_limiter
        place = await trio.to_thread.run_sync(self._locate, arguments.file_path, limiter=limiter)
        if not await self._turn.may_send(place.parts):
            raise DeniedError(
                "this file was given to you in a direct chat with somebody and stays there",
                about="sending a private file",
            )
        file = await trio.to_thread.run_sync(self._copy, place, limiter=limiter)
        message_id = await self._turn.send_file(file, arguments.caption.strip())
        return ToolOutput.of(success=True, message_id=message_id, filename=file.filename, size_bytes=file.size_bytes)

    def _locate(self, text: str) -> Place:
        return self._containment.policy().locate(clean_unicode(text), writing=False, tool=self.name)

    def _copy(self, place: Place) -> OutboundFile:
        """Take a copy that stays as it is until it is delivered, whatever becomes of the file."""
        with open_file(place) as descriptor, open(descriptor, "rb", closefd=False) as file:
            data = file.read(self._max_bytes + 1)
        name = place.parts[-1]
        if len(data) > self._max_bytes:
            raise ToolError(
                f"{name!r} is larger than {self._max_bytes // 2**20} MB, the most that can be sent here; "
                "send a smaller one, or say where it lies"
            )
        if not data:
            raise ToolError(f"{name!r} is empty; there is nothing to send")
        if kind := find_secret(data[:SCANNED_BYTES].decode("utf-8", "ignore")):
            raise DeniedError(f"{name!r} holds a secret ({kind}) and must not be sent", about=f"sending: {kind}")
        refuse_secret(name, "the file's name")
        self._outgoing.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = self._outgoing / new_uuid()
        with kept.open("xb") as copy:
            copy.write(data)
            copy.flush()
            os.fsync(copy.fileno())
        return OutboundFile(
            filename=name,
            media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
            path=kept,
            size_bytes=len(data),
        )
