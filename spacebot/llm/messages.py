"""What is said to models and what they say back, free of any provider's wire format.

Floor: llm
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from spacebot.base.tree import Node
from spacebot.llm.complexity import Complexity

JsonObject = Mapping[str, Any]  # the arguments of a tool call and the schema of a tool: JSON by nature


class Role(StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"


class ProcessKind(StrEnum):
    """The process that calls a model; decides its route."""

    CHANNEL = "channel"
    BRANCH = "branch"
    WORKER = "worker"
    COMPACTOR = "compactor"
    CORTEX = "cortex"


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: `data` is base64, `media_type` such as `image/png`."""

    media_type: str
    data: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's thinking, kept only to be sent back where the provider demands it.

    `signature` is the provider's proof; `data` holds a redacted block.
    """

    text: str
    signature: str | None = None
    data: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A wish to use a tool.

    `arguments` is None when the model sent something that is no JSON object; `raw_arguments` has it as it came.
    """

    id: str
    name: str
    arguments: JsonObject | None
    raw_arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a tool call."""

    call_id: str
    text: str
    is_error: bool = False


Part = Text | Image | Reasoning | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class ModelMessage:
    """One message of a conversation with a model; tool results travel in user messages."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def user(cls, text: str) -> "ModelMessage":
        """A user message of one text."""
        return cls(Role.USER, (Text(text),))

    @classmethod
    def assistant(cls, text: str) -> "ModelMessage":
        """An assistant message of one text."""
        return cls(Role.ASSISTANT, (Text(text),))

    @property
    def text(self) -> str:
        """All words of the message, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the message, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it. Specs are made once and kept: dialects cache their wire form by identity."""

    name: str
    description: str
    schema: JsonObject


@dataclass(frozen=True, slots=True)
class SystemBlock:
    """A piece of the system prompt. Stable blocks come first and may be cached by the provider."""

    text: str
    is_stable: bool = True


class FinishReason(StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one completion; `input_tokens` counts the uncached ones only, whatever the provider counts."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One question to a model.

    Args:
        process: whose route is taken.
        task_type: free word such as `coding`, for the task overrides of the routing table.
        max_output_tokens: None leaves it to the dialect's default.
        complexity: of the words of a person that caused it; may choose the model.
        node: the supervised process that asks; gets progress marks and counts.
    """

    process: ProcessKind
    system: tuple[SystemBlock, ...]
    messages: tuple[ModelMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    task_type: str | None = None
    max_output_tokens: int | None = None
    complexity: Complexity | None = None
    node: Node | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """A model's whole answer. It may be empty: a model may have nothing to say (process spec P51)."""

    parts: tuple[Part, ...]
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    is_included: bool = False  # a subscription paid for it

    @property
    def message(self) -> ModelMessage:
        """The answer as a message of the conversation."""
        return ModelMessage(Role.ASSISTANT, self.parts)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More words of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More JSON text of a tool call's arguments; `index` counts the calls of the answer from 0."""

    index: int
    name: str
    fragment: str


@dataclass(frozen=True, slots=True)
class Restart:
    """What was streamed so far is void: the call is tried again, or another model takes over."""


StreamDelta = TextDelta | ArgumentsDelta | Restart
OnDelta = Callable[[StreamDelta], None]


class Model(Protocol):
    """Anything that completes a request: the model manager, or a scripted one in tests."""

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer; deltas arrive while it grows.

        Errors: ModelError and its kinds.
        """
        ...


def last_user_text(messages: Sequence[ModelMessage]) -> str:
    """The words of the newest user message that has any."""
    for message in reversed(messages):
        if message.role is Role.USER and message.text:
            return message.text
    return ""
