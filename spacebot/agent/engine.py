"""The loop of model and tools that every process runs.

One step is one model call and the calls that it asked for. All calls of a step run, those that end
the turn last, so that "on it" never goes out before the work it speaks of has begun (process spec S3).

Flow:    messages -> fit -> repair -> model -> calls -> results -> messages … until an ending
Floor:   agent
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import trio

from spacebot.agent.guard import LoopGuard
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ContextOverflowError, DeniedError, SpacebotError, StorageError, ToolError
from spacebot.base.events import EventBus, EventKind, EventValue
from spacebot.base.redaction import MASK, scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode, clean_values, cut_bytes
from spacebot.base.tree import Node
from spacebot.llm.complexity import Complexity
from spacebot.llm.history import LOST_RESULT, drop_oldest, fit, is_boundary, repair
from spacebot.llm.messages import (
    Model,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    ProcessKind,
    Role,
    SystemBlock,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)
from spacebot.tools.contract import RESULT_CAP, Tool, ToolOutput, capped, parse_arguments

log = logging.getLogger(__name__)

OVERFLOW_RETRIES = 2  # process spec 18
OVERFLOW_DROP = 0.75  # share of the history that goes when the provider says it is too long
COMMITS = frozenset({"reply", "react"})  # nothing goes on when these cannot be written down
ARGUMENTS_CAP = 2000  # bytes of a call's arguments in an event; tools spec 1
SCRUBBED_HERE = 8000  # characters of a result that the loop looks through itself; a thread does the longer ones
LAST = frozenset(
    {"reply", "skip", "memory_persistence_complete", "write_summary"}
)  # run after all other calls of their step


class Ending(StrEnum):
    """Why a run ended."""

    TEXT = "text"  # the model had nothing more to call
    TOOL = "tool"  # a call ended it
    BUDGET = "budget"  # no steps left


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """What a run came to; `text` is the model's last words, `calls` how many tools ran without error."""

    ending: Ending
    text: str
    calls: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A process as the loop sees it.

    Args:
        window: tokens that a request may have, answer included; read at each step.
        overflow_note: what stands in place of what was dropped after a refusal for size.
        complexity: of the words of a person that this is about; may choose the model.
    """

    model: Model
    kind: ProcessKind
    node: Node
    events: EventBus
    system: tuple[SystemBlock, ...]
    tools: Mapping[str, Tool]
    specs: tuple[ToolSpec, ...]
    window: Callable[[], int]
    overflow_note: str
    task_type: str | None = None
    complexity: Complexity | None = None
    guard: LoopGuard = field(init=False)
    _newest: dict[str, str] = field(init=False, default_factory=dict)  # what a result shows -> its call

    def __post_init__(self) -> None:
        object.__setattr__(self, "guard", LoopGuard(self.kind))

    async def run(
        self,
        messages: list[ModelMessage],
        *,
        budget: int,
        on_delta: OnDelta | None = None,
        on_step: Callable[[], Awaitable[None]] | None = None,
        inject: Callable[[], str | None] | None = None,
    ) -> EngineResult:
        """Go on until the model stops calling, a call ends it, or `budget` model calls are used up.

        Args:
            messages: the process's own list; everything new is appended to it. What its last message asks for is
                kept when older ones have to go.
            on_step: awaited after each step whose calls have run, to keep a checkpoint.
            inject: asked before each step for something to tell the model.

        Errors: ModelError when no model answers.
        """
        usage, calls, text = Usage(), 0, ""
        task = messages[-1] if messages and is_boundary(messages[-1]) else None
        for _ in range(budget):
            if inject is not None and (words := inject()) is not None:
                messages.append(ModelMessage.user(words))
            reply = await self._complete(messages, task, on_delta)
            usage += reply.usage
            message = reply.message
            if message.parts:
                messages.append(_without_secrets(message, self.node.id))
            text = message.text.strip() or text
            if not message.tool_calls:
                return EngineResult(ending=Ending.TEXT, text=message.text.strip(), calls=calls, usage=usage)
            outputs = await self._run_calls(message.tool_calls)
            self._supersede(messages, message.tool_calls, outputs)
            calls += sum(not output.is_error for output in outputs)
            messages.append(
                ModelMessage(
                    Role.USER,
                    tuple(
                        ToolResult(call.id, output.text, output.is_error)
                        for call, output in zip(message.tool_calls, outputs, strict=True)
                    ),
                )
            )
            if on_step is not None:
                await on_step()
            if any(output.ends_turn for output in outputs):
                return EngineResult(ending=Ending.TOOL, text=text, calls=calls, usage=usage)
        return EngineResult(ending=Ending.BUDGET, text=text, calls=calls, usage=usage)

    async def _complete(
        self, messages: list[ModelMessage], task: ModelMessage | None, on_delta: OnDelta | None
    ) -> ModelReply:
        for attempt in range(OVERFLOW_RETRIES + 1):
            fitting = fit(messages, ceiling=self.window(), system=self.system, tools=self.specs, task=task)
            repaired = repair(fitting)
            self._note_repair(repaired)
            request = ModelRequest(
                process=self.kind,
                system=self.system,
                messages=repaired,
                tools=self.specs,
                task_type=self.task_type,
                complexity=self.complexity,
                node=self.node,
            )
            try:
                return _clean(await self.model.complete(request, on_delta))
            except ContextOverflowError:
                cut = drop_oldest(messages, OVERFLOW_DROP)
                if attempt == OVERFLOW_RETRIES or cut == 0:
                    raise
                asked = [message for message in messages[:cut] if message is task]
                messages[:cut] = [ModelMessage.user(self.overflow_note), *asked]
        raise AssertionError("unreachable")

    def _note_repair(self, messages: Sequence[ModelMessage]) -> None:
        """Tell observers of tool calls whose results were lost."""
        parts = (part for message in messages for part in message.parts)
        if lost := sum(isinstance(part, ToolResult) and part.text == LOST_RESULT for part in parts):
            node = self.node
            self.events.emit(
                EventKind.HISTORY_REPAIRED,
                agent_id=node.agent_id,
                channel_id=node.channel_id,
                process_type=str(self.kind),
                process_id=node.id,
                lost=lost,
            )

    def _supersede(
        self, messages: list[ModelMessage], calls: tuple[ToolCall, ...], outputs: Sequence[ToolOutput]
    ) -> None:
        """Leave a word in place of earlier results that showed what one of these shows anew."""
        old: dict[str, str] = {}
        for call, output in zip(calls, outputs, strict=True):
            if output.supersedes is not None and not output.is_error:
                if (earlier := self._newest.get(output.supersedes)) is not None:
                    old[earlier] = output.supersedes
                self._newest[output.supersedes] = call.id
        if not old:
            return
        for place, message in enumerate(messages):
            if any(isinstance(part, ToolResult) and part.call_id in old for part in message.parts):
                parts = tuple(
                    replace(part, text=f"[an older {old[part.call_id]}; a newer one follows]")
                    if isinstance(part, ToolResult) and part.call_id in old
                    else part
                    for part in message.parts
                )
                messages[place] = replace(message, parts=parts)

    async def _run_calls(self, calls: tuple[ToolCall, ...]) -> list[ToolOutput]:
        outputs: dict[int, ToolOutput] = {}
        order = sorted(range(len(calls)), key=lambda i: calls[i].name in LAST)
        for i in order:
            outputs[i] = await self._run_call(calls[i])
        return [outputs[i] for i in range(len(calls))]

    async def _run_call(self, call: ToolCall) -> ToolOutput:
        """Run one call; whatever happens in it becomes its result."""
        self.node.tool_calls += 1
        self.node.progress()
        began = monotonic_s()
        self._tell(EventKind.TOOL_STARTED, call, arguments=shown_arguments(call))
        if (refusal := self.guard.before(call)) is not None:
            output = ToolOutput(refusal, is_error=True)
        else:
            output = await self._guarded(call)
            output = ToolOutput(
                self.guard.after(call, await self._scrubbed(call, clean_unicode(output.text))),
                is_error=output.is_error,
                ends_turn=output.ends_turn,
                supersedes=output.supersedes,
            )
        self.node.progress()
        self._tell(
            EventKind.TOOL_COMPLETED,
            call,
            is_error=output.is_error,
            is_known=call.name in self.tools,
            result=cut_bytes(output.text, RESULT_CAP),
            duration_s=round(monotonic_s() - began, 4),
        )
        return output

    async def _scrubbed(self, call: ToolCall, text: str) -> str:
        """A result within the cap and without secrets: from here on it is in the history and the transcript.

        The first cut is wide, so that what it tears apart lies in the part that the second one leaves out.
        """
        text = capped(text, 2 * RESULT_CAP)
        shown = scrub(text) if len(text) <= SCRUBBED_HERE else await trio.to_thread.run_sync(scrub, text)
        if MASK in shown:  # many tools scrub their results themselves
            log.info("secret kept out of a result", extra=kv(tool=call.name, call=call.id, process=self.node.id))
        return capped(shown)

    async def _guarded(self, call: ToolCall) -> ToolOutput:
        tool = self.tools.get(call.name)
        if tool is None:
            return ToolOutput(f"there is no tool {call.name!r}; you have: {', '.join(self.tools)}", is_error=True)
        try:
            return await tool.call(parse_arguments(tool, call), self.node)
        except DeniedError as error:
            log.warning("call denied", extra=kv(tool=call.name, call=call.id, process=self.node.id, about=error.about))
            return ToolOutput(str(error), is_error=True)
        except ToolError as error:
            return ToolOutput(str(error), is_error=True)
        except StorageError as error:
            if call.name in COMMITS:  # what is said cannot be kept: the turn is taken again later
                raise
            return ToolOutput(scrub(str(error)), is_error=True)
        except SpacebotError as error:
            return ToolOutput(scrub(str(error)), is_error=True)
        except Exception as error:  # boundary: tool call
            log.error("tool failed", exc_info=error, extra={"kv": {"tool": call.name, "process": self.node.id}})
            return ToolOutput(f"the tool {call.name!r} failed ({type(error).__name__}); try another way", is_error=True)

    def _tell(self, kind: EventKind, call: ToolCall, **fields: EventValue) -> None:
        self.events.emit(
            kind,
            agent_id=self.node.agent_id,
            channel_id=self.node.channel_id,
            process_type=str(self.kind),
            process_id=self.node.id,
            tool_name=call.name,
            call_id=call.id,
            **fields,
        )


def _clean(reply: ModelReply) -> ModelReply:
    """An answer that UTF-8 can hold: models write halves of surrogate pairs, as JSON escapes above all."""

    def clean_part(part: Part) -> Part:
        match part:
            case Text(text):
                return Text(clean_unicode(text))
            case ToolCall(call_id, name, arguments, raw):
                names = clean_unicode(call_id), clean_unicode(name)
                return ToolCall(*names, clean_values(arguments), clean_unicode(raw))
        return part

    return replace(reply, parts=tuple(clean_part(part) for part in reply.parts))


def shown_arguments(call: ToolCall) -> str:
    """A call's arguments for observers: without secrets, cut. What the cut tears apart is left out."""
    raw = call.raw_arguments
    if call.arguments is not None:
        raw = json.dumps(dict(call.arguments), ensure_ascii=False)
    return cut_bytes(scrub(clean_unicode(raw[: 2 * ARGUMENTS_CAP])), ARGUMENTS_CAP)


def _without_secrets(message: ModelMessage, process: str) -> ModelMessage:
    """What the model said and called, as the history keeps it; the calls themselves run as they came."""

    def clean(value: Any) -> Any:
        match value:
            case str():
                return scrub(value)
            case dict():
                return {scrub(key): clean(item) for key, item in value.items()}
            case list():
                return [clean(item) for item in value]
        return value

    def clean_part(part: Part) -> Part:
        match part:
            case Text(text):
                return Text(scrub(text))
            case ToolCall(call_id, name, arguments, raw) if scrub(raw) != raw:
                kept = clean(arguments)
                return ToolCall(call_id, name, kept, scrub(raw) if kept is None else json.dumps(kept))
        return part

    kept = replace(message, parts=tuple(map(clean_part, message.parts)))
    if kept != message:
        log.info("secret kept out of the history", extra=kv(process=process))
    return kept


def last_words(messages: list[ModelMessage]) -> str:
    """The newest thing that the model said in words."""
    for message in reversed(messages):
        if message.role is Role.ASSISTANT and any(
            isinstance(part, Text) and part.text.strip() for part in message.parts
        ):
            return message.text.strip()
    return ""
