"""The owner's console: talk with the cortex, which sees the whole agent and may change its memory.

One question at a time. A run belongs to the agent, not to the request that asked: when the browser goes away, the
answer is still written into its thread.

Flow:    start -> row -> engine with memory, transcripts, commands -> events for whoever looks -> row
Floor:   agent
Source:  process spec 11; pitfalls P32, P35, P43
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import trio

from spacebot.agent.engine import Ending, Engine, last_words
from spacebot.agent.parts import AgentParts
from spacebot.agent.render import neutral, render_transcript
from spacebot.agent.toolsets import open_console_tools
from spacebot.base.clock import format_local
from spacebot.base.errors import BusyError, ModelError, RefusedError, StorageError, ToolError
from spacebot.base.ids import ConversationId, is_uuid, new_uuid
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes, preview
from spacebot.base.tree import Node, NodeKind, NodeState, NodeView, Outcome
from spacebot.conversations.cortex_threads import CortexThreads, ThreadMessage
from spacebot.llm.messages import ModelMessage, ProcessKind, StreamDelta, SystemBlock, TextDelta
from spacebot.memory.types import Viewer
from spacebot.tools.contract import Tool, ToolOutput

log = logging.getLogger(__name__)

TASK_TYPE = "cortex_chat"  # for routing
HISTORY = 100  # messages of the thread that the model sees
CONTEXT = 50  # messages of the conversation that is looked at
MAX_TEXT = 100_000  # characters of a question
RESULT_BYTES = 4000  # of a tool's result that is kept with the answer
RESULT_PREVIEW = 200  # characters of it in an event
LEAST_S = 60.0  # patience, whatever the workers' is
EVENTS = 1024  # that wait for a slow reader; growing texts beyond are dropped, the answer is in the thread
THREADS = 100
_SHOWN = (NodeKind.CHANNEL, NodeKind.TURN, NodeKind.BRANCH, NodeKind.WORKER, NodeKind.COMPACTION, NodeKind.INGESTION)


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """What happens while an answer is made: thinking, text, tool_started, tool_completed, done, error."""

    kind: str
    fields: Mapping[str, Any]


class CortexChat:
    """The console of one agent."""

    def __init__(self, parts: AgentParts, threads: CortexThreads, node: Node, nursery: trio.Nursery) -> None:
        """Take what is needed of the agent.

        Args:
            node: the agent's own.
            nursery: owns the runs.
        """
        self._parts = parts
        self._threads = threads
        self._node = node
        self._nursery = nursery
        self._running: Node | None = None
        self._answering: str | None = None

    @property
    def answering(self) -> str | None:
        """The thread whose question is being answered, until its answer is written."""
        return self._answering

    @property
    def threads(self) -> CortexThreads:
        """What was said."""
        return self._threads

    async def start(
        self, thread_id: str | None, text: str, *, channel_id: str | None = None
    ) -> "tuple[str, trio.MemoryReceiveChannel[ChatEvent]]":
        """Ask something.

        Args:
            thread_id: None begins a new one.
            channel_id: a conversation to look at with it.

        Returns the thread and the events until `done` or `error`.
        Errors: BusyError while a question is being answered; RefusedError when it is empty or too long; StorageError.
        """
        text = text.strip()
        if not text:
            raise RefusedError("the message is empty; ask something")
        if len(text) > MAX_TEXT:
            raise RefusedError(f"the message has {len(text)} characters; send at most {MAX_TEXT}")
        if thread_id is not None and not is_uuid(thread_id):
            raise RefusedError("thread_id must be a UUID; leave it out to begin a new thread")
        if self._running is not None:
            raise BusyError("a question is being answered already; wait for it or cancel it")
        thread = thread_id or new_uuid()
        node = self._parts.tree.add(NodeKind.CORTEX, f"chat: {preview(text, 80)}", parent=self._node)
        self._running, self._answering = node, thread
        try:
            history = await self._threads.messages(thread, HISTORY)
            await self._threads.add(thread, "user", text, channel_context=channel_id)
        except BaseException:
            self._running = self._answering = None
            self._parts.tree.remove(node)
            raise
        send, receive = trio.open_memory_channel[ChatEvent](EVENTS)
        run = _Run(self._parts, node, thread, text, channel_id, history, send)
        self._nursery.start_soon(self._supervise, run)
        return thread, receive

    def cancel(self) -> bool:
        """End the running answer; False when there is none."""
        if self._running is None:
            return False
        self._running.cancel("the owner cancelled it")
        return True

    async def _supervise(self, run: "_Run") -> None:
        async def settle(outcome: Outcome) -> None:
            text = scrub(outcome.text)
            is_answer = outcome.is_success
            try:
                kept = text if is_answer else f"({outcome.state}: {text})"
                await self._threads.add(run.thread_id, "assistant", kept, tool_calls=run.calls)
            except StorageError as error:
                log.error("answer of the cortex not written", extra=kv(error=str(error)))
            self._running = self._answering = None  # now: the next question must see this answer in its thread
            run.tell("done", full_text=text) if is_answer else run.tell("error", message=text)
            run.close()

        await self._parts.tree.supervise(run.node, run.answer, settle=settle)


class _Run:
    """One question and its answer."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        thread_id: str,
        text: str,
        channel_id: str | None,
        history: list[ThreadMessage],
        events: "trio.MemorySendChannel[ChatEvent]",
    ) -> None:
        self._parts = parts
        self.node = node
        self.thread_id = thread_id
        self._text = text
        self._channel_id = channel_id
        self._history = history
        self._events = events
        self._said = ""
        self.calls: list[dict[str, Any]] = []

    def tell(self, event_kind: str, /, **fields: Any) -> None:
        """Tell whoever looks; a reader that is gone or slow holds nobody up."""
        try:
            self._events.send_nowait(ChatEvent(event_kind, fields))
        except (trio.WouldBlock, trio.BrokenResourceError):
            return

    def close(self) -> None:
        """End the events."""
        self._events.close()

    async def answer(self) -> Outcome:
        """Think until there is an answer, or no patience left."""
        self.tell("thinking", thread_id=self.thread_id)
        patience = max(LEAST_S, self._parts.settings().worker.wall_clock_timeout_secs)
        with trio.move_on_after(patience):
            try:
                return await self._answer()
            except (ModelError, StorageError) as error:
                return Outcome(NodeState.FAILED, str(error))
        return Outcome(NodeState.TIMED_OUT, f"no answer within {patience:.0f} s")

    async def _answer(self) -> Outcome:
        async with open_console_tools(self._parts, self.node) as tools:
            return await self._answer_with(tools)

    async def _answer_with(self, tools: Sequence[Tool]) -> Outcome:
        parts = self._parts
        engine = Engine(
            model=parts.model,
            kind=ProcessKind.CORTEX,
            node=self.node,
            events=parts.events,
            system=(SystemBlock(await self._system(), is_stable=False),),
            tools={tool.name: self._watched(tool) for tool in tools},
            specs=tuple(parts.prompts.tool_spec(tool) for tool in tools),
            window=lambda: parts.window(ProcessKind.CORTEX),
            overflow_note=parts.prompts.render("fragments/overflow"),
            task_type=TASK_TYPE,
        )
        messages = [
            ModelMessage.user(m.content) if m.role == "user" else ModelMessage.assistant(m.content)
            for m in self._history
        ]
        messages.append(ModelMessage.user(self._text))
        own = len(messages)
        result = await engine.run(messages, budget=parts.settings().branch_max_turns, on_delta=self._grow)
        words = result.text or last_words(messages[own:])
        if result.ending is Ending.BUDGET and not words:
            return Outcome(NodeState.FAILED, "no answer within the model calls allowed")
        return Outcome(NodeState.DONE, words) if words else Outcome(NodeState.FAILED, "the model gave no answer")

    def _watched(self, tool: Tool) -> Tool:
        return cast(
            Tool, _Watched(tool, self._note_call, self._note_result)
        )  # its name is the instance's, not the class's

    async def _system(self) -> str:
        parts = self._parts
        transcript = ""
        if self._channel_id is not None:
            rows = await parts.conversations.recent(ConversationId(self._channel_id), CONTEXT)
            transcript = render_transcript(rows, parts.zone)
        stats = await parts.memory.stats()
        return parts.prompts.render(
            "CORTEX_CHAT",
            current_time=format_local(parts.clock.now(), parts.zone),
            memory_bulletin=await parts.bulletin(Viewer()),
            memory_counts=", ".join(f"{count} {kind}" for kind, count in stats.counts_by_type.items() if count),
            processes=[_describe(view) for view in self._live()],
            channel=self._channel_id,
            transcript=transcript,
        )

    def _live(self) -> list[NodeView]:
        views = self._parts.tree.view()
        return [v for v in views if v.agent_id == self._parts.id and v.kind in _SHOWN]

    def _grow(self, delta: StreamDelta) -> None:
        if isinstance(delta, TextDelta):
            self._said += delta.text
            self.tell("text", text=self._said)

    def _note_call(self, tool: str, arguments: Mapping[str, Any]) -> None:
        self._said = ""
        self.calls.append({"tool": tool, "arguments": dict(arguments), "result": None, "is_error": False})
        self.tell("tool_started", tool=tool, arguments=dict(arguments))

    def _note_result(self, tool: str, result: str, is_error: bool) -> None:
        text = scrub(result)
        self.calls[-1].update(result=cut_bytes(text, RESULT_BYTES), is_error=is_error)
        self.tell("tool_completed", tool=tool, result_preview=preview(text, RESULT_PREVIEW), is_error=is_error)


class _Watched:
    """A tool whose calls are shown to the owner."""

    def __init__(
        self,
        tool: Tool,
        called: Callable[[str, Mapping[str, Any]], None],
        returned: Callable[[str, str, bool], None],
    ) -> None:
        self._tool = tool
        self._called = called
        self._returned = returned
        self.name = tool.name
        self.arguments = tool.arguments

    async def call(self, arguments: Any, node: Node) -> ToolOutput:
        """Call the tool."""
        self._called(self.name, arguments.model_dump(mode="json", exclude_defaults=True))
        try:
            output = await self._tool.call(arguments, node)
        except ToolError as error:
            self._returned(self.name, str(error), True)
            raise
        self._returned(self.name, output.text, output.is_error)
        return output


def _describe(view: NodeView) -> str:
    age = f"{view.age_s:.0f} s" if math.isfinite(view.age_s) else "?"
    return f"{view.kind} {view.id}, {view.state}, {age}: {neutral(preview(view.description, 120))}"
