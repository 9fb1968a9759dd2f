"""What a channel does towards people: reply, skip, react.

Floor: tools
"""

import re
from typing import Any, ClassVar, Protocol

from pydantic import Field

from spacebot.base.errors import DeniedError, ToolError
from spacebot.base.redaction import find_secret, scrub
from spacebot.base.tree import Node
from spacebot.messaging.messages import Rich
from spacebot.tools.contract import ToolArguments, ToolOutput

INFORMATION = "\N{INFORMATION SOURCE}"  # the one emoji that counts as a letter
_TOOL_NAMES = "reply|react|skip|branch|spawn_worker|route|cancel"
_SYNTAX = re.compile(
    rf"\s*(?:[\[(<{{]+\s*/?(?:tool[_ ]?(?:call|use)\b|function[_ ]?call\b|invoke\b|(?:{_TOOL_NAMES})\b\s*[\]():,>{{])"
    rf"|(?:{_TOOL_NAMES})\s*\(\s*[\"'{{a-z_]*\s*[=:\"'{{)]"
    rf"|\{{\s*\"(?:name|tool|function|tool_calls)\"\s*:)",
    re.IGNORECASE,
)
_BARE = re.compile(r"\s*[\[(*_]*(?:skip|skipped|no reply|silence)[\])*_.]*\s*", re.IGNORECASE)
_CONTENT = re.compile(r"""["']?content["']?\s*[=:]\s*(["'])(?P<text>(?:\\.|(?!\1).)*)\1""", re.DOTALL)


def is_tool_syntax(text: str) -> bool:
    """Whether a text is a tool call (or the bare word for one) written out, not something said to people.

    Known shapes only: a Markdown link or a JSON example inside of a sentence is ordinary speech.
    """
    return _SYNTAX.match(text) is not None or _BARE.fullmatch(text) is not None


def content_of(text: str) -> str | None:
    """The `content` argument of a written-out reply, as a last resort."""
    match = _CONTENT.search(text) if "reply" in text[:40].lower() else None
    return (
        match["text"].encode().decode("unicode_escape", errors="ignore")
        if match and match["text"].isascii()
        else (match["text"] if match else None)
    )


class TurnHandle(Protocol):
    """What the turn lets its tools do."""

    async def reply(self, text: str, rich: Rich | None = None) -> str:
        """Commit a text as said, with what it has beside; returns the id of its row. Errors: StorageError."""
        ...

    async def react(self, emoji: str) -> None:
        """Put an emoji on the message that caused the turn."""
        ...

    def skip(self, reason: str) -> None:
        """Note that nothing will be said."""
        ...


class ReplyArguments(ToolArguments):
    content: str = Field(description="what to say")


class Reply:
    """Say something. Ends the turn when it succeeded."""

    name: ClassVar[str] = "reply"
    arguments: ClassVar[type[ToolArguments]] = ReplyArguments

    def __init__(self, turn: TurnHandle) -> None:
        self._turn = turn

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        text = arguments.content.strip()
        check_outgoing(text)
        message_id = await self._turn.reply(text)
        return ToolOutput(f'{{"success": true, "message_id": "{message_id}"}}', ends_turn=True)


def check_outgoing(text: str) -> None:
    """Refuse what must not reach people.

    Errors: ToolError when the text is empty, a written-out tool call, or holds a secret.
    """
    if not text.strip():
        raise ToolError("the content is empty; say something, or use skip")
    if is_tool_syntax(text):
        raise ToolError("the content looks like a tool call written as text; send the words for people only")
    refuse_secret(text, "the content")


def refuse_secret(text: str, place: str) -> None:
    """Refuse a text with a secret in it. Errors: DeniedError, which names the kind of secret."""
    if kind := find_secret(text):
        raise DeniedError(f"{place} holds a secret ({kind}); say it without the secret", about=f"sending: {kind}")


class SkipArguments(ToolArguments):
    reason: str = Field("", description="why, for the log")


class Skip:
    """Say nothing. Ends the turn."""

    name: ClassVar[str] = "skip"
    arguments: ClassVar[type[ToolArguments]] = SkipArguments

    def __init__(self, turn: TurnHandle) -> None:
        self._turn = turn

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        self._turn.skip(scrub(arguments.reason))
        return ToolOutput('{"skipped": true}', ends_turn=True)


class ReactArguments(ToolArguments):
    emoji: str = Field(description="one emoji", min_length=1, max_length=16)


class React:
    """Put an emoji on the message."""

    name: ClassVar[str] = "react"
    arguments: ClassVar[type[ToolArguments]] = ReactArguments

    def __init__(self, turn: TurnHandle) -> None:
        self._turn = turn

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        if any(character.isalnum() and character != INFORMATION for character in arguments.emoji):
            raise ToolError("that is no emoji; send one emoji character")
        await self._turn.react(arguments.emoji)
        return ToolOutput.of(success=True, emoji=arguments.emoji)
