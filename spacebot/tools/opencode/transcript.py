"""What was said and done in an OpenCode session: gathered from its events, corrected by its message list.

The list is the truth while a server can be asked; what was gathered stands in when it cannot.

Floor:  tools
Source: tools spec 12.3 and 23 (transcript, "see above", status lines)
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import trio

from spacebot.base.redaction import scrub
from spacebot.base.text import cut_bytes
from spacebot.llm.history import from_json, to_json
from spacebot.llm.messages import ModelMessage, Part, Role, Text, ToolCall, ToolResult
from spacebot.tools.opencode.events import MessageSeen, PartGrew, PartSeen

OUTPUT_BYTES = 4000  # of a tool's output that are kept
ARGUMENT_BYTES = 2000  # of one argument
TEXT_BYTES = 200_000  # of one text
MOST_ARGUMENTS = 30  # of one tool's use
MOST_KEPT = 5000  # messages in memory, the newest
MOST_MESSAGES = 600  # of them in a transcript
COMMAND_CHARACTERS, DESCRIPTION_CHARACTERS = 60, 80  # of a status

_PATH_KEYS = ("filePath", "file_path", "path")


@dataclass(slots=True)
class _Message:
    role: str
    parts: dict[str, PartSeen] = field(default_factory=dict)


class Transcript:
    """One worker's; `earlier` is what it was before the program's last restart. All words are scrubbed."""

    def __init__(self, earlier: str | None = None) -> None:
        self._earlier: list[ModelMessage] = from_json(earlier) if earlier else []
        self._messages: dict[str, _Message] = {}
        self._growing: dict[str, list[str]] = {}  # texts that are just being written, by their piece
        self._unread: list[ModelMessage] = []
        self._told: frozenset[str] = frozenset()  # messages that `earlier` has already

    def skip(self, listed: Sequence[tuple[MessageSeen, Sequence[PartSeen]]]) -> None:
        """These messages of the session belong to what was before the restart."""
        self._told |= {message.message for message, _ in listed}

    def note_message(self, seen: MessageSeen) -> None:
        """A message began or changed."""
        if seen.message in self._told:
            return
        if len(self._messages) > MOST_KEPT:
            del self._messages[next(iter(self._messages))]
        self._messages.setdefault(seen.message, _Message(seen.role)).role = seen.role

    def note_part(self, seen: PartSeen) -> None:
        """A piece as it stands now."""
        if seen.message in self._told:
            return
        self._growing.pop(seen.part, None)
        self._messages.setdefault(seen.message, _Message("assistant")).parts[seen.part] = _slim(seen)

    def note_growth(self, seen: PartGrew) -> None:
        """More text of a piece that was announced before."""
        message = self._messages.get(seen.message)
        if message is not None and seen.part in message.parts and message.parts[seen.part].kind == "text":
            self._growing.setdefault(seen.part, []).append(seen.text)

    def note_unread(self, words: str) -> None:
        """A message that nobody has read yet: the program is stopping."""
        self._unread.append(ModelMessage.user(words))

    async def replace(
        self, listed: Sequence[tuple[MessageSeen, Sequence[PartSeen]]], *, but: Collection[str] = ()
    ) -> None:
        """Put the session's own list in the place of what was gathered, as far as it knows the messages.

        Args:
            but: messages that were replaced before.
        """
        wanted = [entry for entry in listed if entry[0].message not in self._told and entry[0].message not in but]

        def slim() -> dict[str, _Message]:
            return {
                message.message: _Message(message.role, {part.part: _slim(part) for part in parts})
                for message, parts in wanted
            }

        self._messages |= await trio.to_thread.run_sync(slim)  # of megabytes of output secrets have to be removed
        self._growing.clear()

    @property
    def known(self) -> frozenset[str]:
        """Ids of all messages so far."""
        return frozenset(self._messages)

    def is_answer(self, message: str) -> bool:
        """Whether a message is the program's."""
        return message in self._messages and self._messages[message].role == "assistant"

    @property
    def left_unread(self) -> str:
        """What was said last to the worker before the program's last restart, and not answered; else empty."""
        tail: list[str] = []
        for message in reversed(self._earlier):
            if message.role is Role.ASSISTANT:
                return "\n\n".join(reversed(tail))
            if message.text:
                tail.append(message.text)
        return ""

    def words(self, without: Collection[str] = ()) -> str:
        """All that the program said, in order, but for these messages."""
        texts = (
            self._text(part)
            for key, message in self._messages.items()
            if message.role == "assistant" and key not in without
            for part in message.parts.values()
            if part.kind == "text"
        )
        return "\n\n".join(text for text in texts if text)

    def has_done(self, without: Collection[str] = ()) -> bool:
        """Whether a tool was used, but for these messages."""
        return any(
            part.kind == "tool"
            for key, message in self._messages.items()
            if key not in without
            for part in message.parts.values()
        )

    def to_json(self) -> str:
        """As model messages: the form in which all workers' transcripts are kept and shown."""
        messages = list(self._earlier)
        for message in self._messages.values():
            messages += self._to_model(message)
        return to_json([*messages[-MOST_MESSAGES:], *self._unread])

    def _text(self, part: PartSeen) -> str:
        more = self._growing.get(part.part)
        return (scrub(part.text + "".join(more)) if more else part.text).strip()

    def _to_model(self, message: _Message) -> list[ModelMessage]:
        if message.role != "assistant":
            text = "\n\n".join(part.text for part in message.parts.values() if part.kind == "text")
            return [ModelMessage.user(text)] if text else []
        said: list[Part] = []
        results: list[Part] = []
        for part in message.parts.values():
            if part.kind == "text" and (text := self._text(part)):
                said.append(Text(text))
            elif part.kind == "tool":
                arguments = dict(part.arguments)
                said.append(ToolCall(part.part, part.tool, arguments, json.dumps(arguments, ensure_ascii=False)))
                results.append(ToolResult(part.part, part.output or part.state, is_error=part.state == "error"))
        messages = [ModelMessage(Role.ASSISTANT, tuple(said))] if said else []
        return [*messages, ModelMessage(Role.USER, tuple(results))] if results else messages


def _slim(part: PartSeen) -> PartSeen:
    """What is kept of a piece: scrubbed, and cut where a tool was given or gave back much."""
    return replace(
        part,
        text=cut_bytes(scrub(part.text), TEXT_BYTES),
        title=scrub(part.title),
        arguments={name: _slim_argument(value) for name, value in islice(part.arguments.items(), MOST_ARGUMENTS)},
        output=cut_bytes(scrub(part.output), OUTPUT_BYTES),
    )


def _slim_argument(value: Any) -> Any:
    if isinstance(value, str):
        return cut_bytes(scrub(value), ARGUMENT_BYTES)
    if isinstance(value, bool | int | float) or value is None:
        return value
    return cut_bytes(scrub(json.dumps(value, ensure_ascii=False, default=str)), ARGUMENT_BYTES)


def status_of(part: PartSeen) -> str:
    """A tool's use in a few words, taken from what it was given: a title alone often says nothing."""
    arguments: Mapping[str, Any] = part.arguments
    for key in _PATH_KEYS:
        if isinstance(value := arguments.get(key), str) and value:
            return f"{part.tool} {'/'.join(value.rstrip('/').split('/')[-3:])}"
    for key, limit in (
        ("description", DESCRIPTION_CHARACTERS),
        ("command", COMMAND_CHARACTERS),
        ("pattern", COMMAND_CHARACTERS),
        ("url", DESCRIPTION_CHARACTERS),
    ):
        if isinstance(value := arguments.get(key), str) and value.strip():
            line = " ".join(value.split())
            return f"{part.tool}: {line if len(line) <= limit else line[: limit - 1] + '…'}"
    return f"{part.tool}: {part.title}" if part.title else part.tool
