"""A model that says what a test tells it to: the in-memory twin of the model manager.

    model = ScriptedModel(Call("branch", description="look it up"), Say("hello"), branch=[Say("nothing found")])

Each process kind has a script of its own; the positional steps are the channel's. A step is used up by
one completion. `model.requests` and `model.requests_of(kind)` hold what was asked.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    ProcessKind,
    Restart,
    Role,
    StreamDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
    last_user_text,
)

PIECE = 8  # characters of a delta


@dataclass(frozen=True)
class Say:
    """Words without a tool call."""

    text: str


@dataclass(frozen=True)
class Call:
    """One tool call: `Call("reply", content="hi")`; `raw` sends arguments that are no JSON object."""

    name: str
    arguments: dict[str, Any]
    raw: str | None
    call_id: str | None

    def __init__(self, name: str, /, *, _raw: str | None = None, _id: str | None = None, **arguments: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)
        object.__setattr__(self, "raw", _raw)
        object.__setattr__(self, "call_id", _id)


@dataclass(frozen=True)
class Calls:
    """Several tool calls in one answer, with words before them if wanted."""

    calls: tuple[Call, ...]
    text: str = ""

    def __init__(self, *calls: Call, text: str = "") -> None:
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "text", text)


QUIET_DAY = Say("A quiet day.")  # what the cortex hears unless a test says otherwise


@dataclass(frozen=True)
class Fail:
    """The call fails; with `after`, these words have been streamed before."""

    error: Exception
    after: str = ""


@dataclass(frozen=True)
class Again:
    """These words are streamed and then taken back (`Restart`), as when a call is retried; `then` follows."""

    text: str
    then: "Step"


@dataclass(frozen=True)
class Gate:
    """Wait for an event, then go on with `then`. `arrived` tells the test that the model is waiting."""

    event: trio.Event
    then: "Step" = field(default_factory=lambda: Say(""))
    arrived: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Sleep:
    """Take this long (virtual seconds under the autojump clock), then go on with `then`."""

    seconds: float
    then: "Step" = field(default_factory=lambda: Say(""))


PERSISTENCE = "memory_persistence"  # task type of the runs that save memories
NOTHING_TO_SAVE = Call("memory_persistence_complete", outcome="no_memories", reason="nothing worth keeping")

Step = Say | Call | Calls | Fail | Again | Gate | Sleep | str | Callable[[ModelRequest], Any]


def by_task(**scripts: Iterable[Step] | Callable[[ModelRequest], Any]) -> Callable[[ModelRequest], Any]:
    """One script per task type, for a process kind that asks for different things; the others hear `QUIET_DAY`."""
    rules = {name: script if callable(script) else deque(script) for name, script in scripts.items()}

    def answer(request: ModelRequest) -> Any:
        rule = rules.get(request.task_type or "")
        if rule is None:
            return QUIET_DAY
        if callable(rule):
            return rule
        assert rule, f"the {request.task_type} script ran out. Asked:\n{show(request)}"
        return rule.popleft()

    return answer


class ScriptedModel:
    """Answers from scripts; one list of steps, or one function for all calls, per process kind.

    Args:
        persistence: of the runs that save memories beside the talk; without steps they find nothing worth keeping.
        channel: the channel's steps; a single callable answers every channel call.
        usage: what every answer is said to cost.
    """

    def __init__(
        self,
        *channel: Step,
        branch: Iterable[Step] | Callable[[ModelRequest], Any] = (),
        worker: Iterable[Step] | Callable[[ModelRequest], Any] = (),
        compactor: Iterable[Step] | Callable[[ModelRequest], Any] = (),
        cortex: Iterable[Step] | Callable[[ModelRequest], Any] = lambda request: QUIET_DAY,
        persistence: Iterable[Step] | Callable[[ModelRequest], Any] = lambda request: NOTHING_TO_SAVE,
        usage: Usage | None = None,
        context_window: int = 128_000,
    ) -> None:
        scripts = {
            ProcessKind.CHANNEL: channel[0] if len(channel) == 1 and callable(channel[0]) else channel,
            ProcessKind.BRANCH: branch,
            ProcessKind.WORKER: worker,
            ProcessKind.COMPACTOR: compactor,
            ProcessKind.CORTEX: cortex,
        }
        self._persistence = persistence if callable(persistence) else deque(persistence)
        self._rules = {kind: script for kind, script in scripts.items() if callable(script)}
        self._scripts: dict[ProcessKind, deque[Step]] = {
            kind: deque(script) for kind, script in scripts.items() if not callable(script)
        }
        self._usage = usage or Usage(input_tokens=10, output_tokens=5)
        self._window = context_window
        self._ids = 0
        self._asked: dict[ProcessKind, trio.Event] = {kind: trio.Event() for kind in ProcessKind}
        self.requests: list[ModelRequest] = []

    def add(self, kind: ProcessKind, *steps: Step) -> None:
        """Lengthen a script while the test runs."""
        self._scripts[kind].extend(steps)

    def requests_of(self, kind: ProcessKind) -> list[ModelRequest]:
        """What one kind of process asked, in order; persistence runs are no branches."""
        return [r for r in self.requests if r.process is kind and r.task_type != PERSISTENCE]

    @property
    def persistence_requests(self) -> list[ModelRequest]:
        """What persistence runs asked, in order."""
        return [request for request in self.requests if request.task_type == PERSISTENCE]

    def texts_of(self, kind: ProcessKind) -> list[str]:
        """The newest user words of each request of one kind."""
        return [last_user_text(request.messages) for request in self.requests_of(kind)]

    def results_of(self, kind: ProcessKind) -> list[ToolResult]:
        """Every tool result that the newest request of one kind shows, in order."""
        requests = self.requests_of(kind)
        messages = requests[-1].messages if requests else ()
        return [part for message in messages for part in message.parts if isinstance(part, ToolResult)]

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that the model reads."""
        return self._window

    @property
    def is_used_up(self) -> bool:
        """Whether every step of every script has been taken."""
        return not any(self._scripts.values()) and (callable(self._persistence) or not self._persistence)

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Take the next step of the process's script."""
        self.requests.append(request)
        if request.node is not None:
            request.node.model_calls += 1
            request.node.progress()
        await trio.lowlevel.checkpoint()
        return await self._take(self._next(request), request, on_delta or (lambda delta: None))

    def _next(self, request: ModelRequest) -> Step:
        if request.task_type == PERSISTENCE:
            if callable(self._persistence):
                return self._persistence
            return self._persistence.popleft() if self._persistence else NOTHING_TO_SAVE
        if rule := self._rules.get(request.process):
            return rule
        script = self._scripts[request.process]
        if not script:
            number = len(self.requests_of(request.process))
            raise AssertionError(
                f"the {request.process} script of ScriptedModel ran out at call {number}. Asked:\n{show(request)}"
            )
        return script.popleft()

    async def _take(self, step: Any, request: ModelRequest, on_delta: OnDelta) -> ModelReply:
        if callable(step) and not isinstance(step, type):
            return await self._take(step(request), request, on_delta)
        match step:
            case ModelReply():
                return await self._send(request, on_delta, step.parts, step)
            case str(text) | Say(text):
                return await self._send(request, on_delta, (Text(text),) if text else ())
            case Call():
                return await self._send(request, on_delta, (self._call(step),))
            case Calls(calls, text):
                words = (Text(text),) if text else ()
                return await self._send(request, on_delta, (*words, *map(self._call, calls)))
            case Fail(error, after):
                await _stream((Text(after),) if after else (), on_delta)
                raise error
            case Again(text, then):
                await _stream((Text(text),), on_delta)
                on_delta(Restart())
                return await self._take(then, request, on_delta)
            case Gate(event, then, arrived):
                arrived.set()
                await event.wait()
                return await self._take(then, request, on_delta)
            case Sleep(seconds, then):
                await trio.sleep(seconds)
                return await self._take(then, request, on_delta)
        raise AssertionError(f"ScriptedModel does not know the step {step!r}")

    def _call(self, step: Call) -> ToolCall:
        self._ids += 1
        call_id = step.call_id or f"call_{self._ids}"
        if step.raw is not None:
            return ToolCall(call_id, step.name, None, step.raw)
        return ToolCall(call_id, step.name, step.arguments, json.dumps(step.arguments, ensure_ascii=False))

    async def _send(
        self, request: ModelRequest, on_delta: OnDelta, parts: tuple[Part, ...], reply: ModelReply | None = None
    ) -> ModelReply:
        def mark(delta: StreamDelta) -> None:
            if request.node is not None:
                request.node.progress()
            on_delta(delta)

        await _stream(parts, mark)
        if reply is None:
            has_calls = any(isinstance(part, ToolCall) for part in parts)
            finish = FinishReason.TOOL_CALLS if has_calls else FinishReason.STOP
            reply = ModelReply(parts=parts, finish_reason=finish, usage=self._usage, model="scripted/model")
        if request.node is not None:
            request.node.input_tokens += reply.usage.input_tokens
            request.node.output_tokens += reply.usage.output_tokens
        return reply


async def _stream(parts: tuple[Part, ...], on_delta: OnDelta) -> None:
    index = -1
    for part in parts:
        if isinstance(part, Text):
            for piece in _pieces(part.text):
                on_delta(TextDelta(piece))
                await trio.lowlevel.checkpoint()
        elif isinstance(part, ToolCall):
            index += 1
            for piece in ("", *_pieces(part.raw_arguments)):
                on_delta(ArgumentsDelta(index, part.name, piece))
                await trio.lowlevel.checkpoint()


def _pieces(text: str) -> list[str]:
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def show(request: ModelRequest) -> str:
    """A request as a person reads it, for messages of failed tests."""
    lines = [f"tools: {', '.join(tool.name for tool in request.tools) or 'none'}"]
    for message in request.messages[-6:]:
        who = "user" if message.role is Role.USER else "assistant"
        lines += [f"  {who}: {str(part)[:300]}" for part in message.parts]
    return "\n".join(lines)
