"""What an OpenCode server tells while it works: bytes of its event stream in, typed events out.

Only what a worker acts on is kept; all other kinds, and events of a shape that we do not know, are left out.

Flow:   GET /event -> EventReader -> parse_event -> Event
Floor:  tools
Source: tools spec 12.3; the OpenAPI document and the recorded stream of opencode 1.18
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spacebot.base.telemetry import kv

log = logging.getLogger(__name__)

ABORTED = "MessageAbortedError"  # how the program names an end that was asked for


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A session exists; one with a parent does a part of the parent's work."""

    session: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class MessageSeen:
    """A message began or changed. `error` is what went wrong with an answer."""

    session: str
    message: str
    role: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSeen:
    """A piece of a message as it stands now.

    Args:
        kind: `text`, `tool`, `reasoning`, and others that nobody here reads.
        tool: name of the tool; `state` is pending, running, completed or error.
        output: what the tool gave back, or its error.
    """

    session: str
    message: str
    part: str
    kind: str
    text: str = ""
    tool: str = ""
    state: str = ""
    title: str = ""
    arguments: Mapping[str, Any]
    output: str = ""


@dataclass(frozen=True, slots=True)
class PartGrew:
    """More text of a piece."""

    session: str
    message: str
    part: str
    text: str


@dataclass(frozen=True, slots=True)
class Idle:
    """The session has nothing to do."""

    session: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The session gave up."""

    session: str
    name: str
    words: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """The model did not answer; it is asked again."""

    session: str
    attempt: int
    words: str


@dataclass(frozen=True, slots=True)
class PermissionAsked:
    """It may not do something without being told."""

    session: str
    id: str
    permission: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a person, with the labels of its options."""

    text: str
    options: tuple[str, ...]
    takes_many: bool
    takes_words: bool


@dataclass(frozen=True, slots=True)
class QuestionAsked:
    """It waits for a person's answer."""

    session: str
    id: str
    questions: tuple[Question, ...]


Event = (
    SessionOpened | MessageSeen | PartSeen | PartGrew | Idle | Failed | Retrying | PermissionAsked | QuestionAsked
)  # fmt: skip


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Envelope(_Wire):
    type: str
    properties: dict[str, Any] = Field(default={})


class _Named(_Wire):
    name: str = "error"
    data: dict[str, Any] = Field(default={})

    @property
    def words(self) -> str:
        """What it says, in one line."""
        return " ".join(str(self.data.get("message") or self.name).split())


class _SessionInfo(_Wire):
    id: str
    parent_id: str | None = Field(default=None, alias="parentID")


class _MessageInfo(_Wire):
    id: str
    session: str = Field(alias="sessionID")
    role: str
    error: _Named | None = None


class _ToolState(_Wire):
    status: str = "pending"
    input: dict[str, Any] = Field(default={})
    title: str = ""
    output: str = ""
    error: str = ""


class _Part(_Wire):
    id: str
    session: str = Field(alias="sessionID")
    message: str = Field(alias="messageID")
    type: str
    text: str = ""
    tool: str = ""
    state: _ToolState | None = None


class _Delta(_Wire):
    session: str = Field(alias="sessionID")
    message: str = Field(alias="messageID")
    part: str = Field(alias="partID")
    field: str
    delta: str


class _SessionEvent(_Wire):
    session: str = Field(default="", alias="sessionID")
    error: _Named | None = None


class _Status(_Wire):
    type: str
    attempt: int = 0
    message: str = ""


class _StatusEvent(_Wire):
    session: str = Field(alias="sessionID")
    status: _Status


class _Permission(_Wire):
    id: str
    session: str = Field(alias="sessionID")
    permission: str
    patterns: tuple[str, ...] = ()


class _Option(_Wire):
    label: str


class _Question(_Wire):
    question: str
    options: tuple[_Option, ...] = ()
    multiple: bool = False
    custom: bool = True


class _Questions(_Wire):
    id: str
    session: str = Field(alias="sessionID")
    questions: tuple[_Question, ...]


def parse_event(data: bytes) -> Event | None:
    """One event of the stream; None for what nobody here acts on."""
    try:
        envelope = _Envelope.model_validate_json(data)
        read = _READERS.get(envelope.type)
        return read(envelope.properties) if read is not None else None
    except ValidationError as error:
        log.debug("event of opencode not understood", extra=kv(problems=error.error_count()))
        return None


def parse_messages(data: bytes) -> list[tuple[MessageSeen, list[PartSeen]]]:
    """The messages of a session as the server lists them, oldest first; what is malformed is left out."""
    found = []
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return []
    for entry in answer if isinstance(answer, list) else ():
        try:
            message = _message(entry["info"])
            parts = [_part(part) for part in entry["parts"]]
        except (ValidationError, KeyError, TypeError):
            continue
        found.append((message, parts))
    return found


def _session(properties: Mapping[str, Any]) -> Event:
    info = _SessionInfo.model_validate(properties.get("info"))
    return SessionOpened(info.id, info.parent_id)


def _message(info: object) -> MessageSeen:
    read = _MessageInfo.model_validate(info)
    return MessageSeen(read.session, read.id, read.role, read.error.words if read.error else "")


def _part(part: object) -> PartSeen:
    read = _Part.model_validate(part)
    state = read.state or _ToolState()
    return PartSeen(
        session=read.session, message=read.message, part=read.id, kind=read.type, text=read.text, tool=read.tool,
        state=state.status if read.state else "", title=state.title, arguments=state.input,
        output=state.output or state.error,
    )  # fmt: skip


def _delta(properties: Mapping[str, Any]) -> Event | None:
    read = _Delta.model_validate(properties)
    return PartGrew(read.session, read.message, read.part, read.delta) if read.field == "text" else None


def _failed(properties: Mapping[str, Any]) -> Event:
    read = _SessionEvent.model_validate(properties)
    error = read.error or _Named()
    return Failed(read.session, error.name, error.words)


def _status(properties: Mapping[str, Any]) -> Event | None:
    read = _StatusEvent.model_validate(properties)
    if read.status.type != "retry":
        return None
    return Retrying(read.session, read.status.attempt, " ".join(read.status.message.split()))


def _permission(properties: Mapping[str, Any]) -> Event:
    read = _Permission.model_validate(properties)
    return PermissionAsked(read.session, read.id, read.permission, read.patterns)


def _questions(properties: Mapping[str, Any]) -> Event:
    read = _Questions.model_validate(properties)
    asked = tuple(
        Question(one.question, tuple(option.label for option in one.options), one.multiple, one.custom)
        for one in read.questions
    )
    return QuestionAsked(read.session, read.id, asked)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Event | None]] = {
    "session.created": _session,
    "message.updated": lambda properties: _message(properties.get("info")),
    "message.part.updated": lambda properties: _part(properties.get("part")),
    "message.part.delta": _delta,
    "session.idle": lambda properties: Idle(_SessionEvent.model_validate(properties).session),
    "session.error": _failed,
    "session.status": _status,
    "permission.asked": _permission,
    "question.asked": _questions,
}


def answers_of(reply: str, questions: Sequence[Question]) -> list[list[str]]:
    """A person's words as answers: per question the labels that were chosen, or the words as they are.

    One line per question when there are as many lines; else all words answer each question.
    """
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    if len(questions) == 1 or len(lines) != len(questions):
        lines = [reply.strip()] * len(questions)
    return [_chosen(line, question) for line, question in zip(lines, questions, strict=True)]


def _chosen(words: str, question: Question) -> list[str]:
    by_name = {label.casefold(): label for label in question.options}
    by_name |= {str(number): label for number, label in enumerate(question.options, 1)}
    if (label := by_name.get(_plain(words))) is not None:
        return [label]
    if question.takes_many:
        found = [by_name.get(_plain(word)) for word in words.replace(";", ",").split(",") if word.strip()]
        if found and None not in found:
            return [label for label in found if label is not None]
    if question.takes_words or not question.options:
        return [words]
    named = [label for label in question.options if label.casefold() in words.casefold()]
    return named[:1] or [question.options[0]]


def _plain(words: str) -> str:
    return words.strip().strip(".!\"'`").strip().casefold()
