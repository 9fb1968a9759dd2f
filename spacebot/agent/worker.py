"""A worker: one task, its own tools, no conversation. It works in segments until it reports an outcome.

    RUNNING ──outcome──> end (fire and forget)
       ^  └──outcome──> WAITING ──follow-up──> RUNNING     (interactive)
       |                   └────idle too long──> DONE

Only active work counts against the wall clock. After each step the transcript is kept, so that a
worker that waited, or was stopped in good order, goes on after a restart.

Floor:  agent
Source: process spec 7, with P10 to P18, P53, P55 to P60, S1 and S2
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from spacebot.agent.engine import Ending, Engine, EngineResult, last_words
from spacebot.agent.parts import AgentParts
from spacebot.base.clock import format_local
from spacebot.base.errors import ModelError, StorageError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeState, Outcome
from spacebot.conversations.records import WorkerRun
from spacebot.llm.history import drop_oldest, estimate_tokens, from_json, to_json
from spacebot.llm.messages import ModelMessage, ProcessKind, SystemBlock
from spacebot.tools.contract import Tool
from spacebot.tools.delegation import SetStatus, short_status

log = logging.getLogger(__name__)

SEGMENT_STEPS = 15  # process spec 18
SEGMENTS = 10
NUDGES = 2  # consecutive endings without an outcome that are sent back
RETRY_PAUSES_S = (5.0, 10.0, 20.0)  # between tries when no model answers
TRANSCRIPT_TOKENS = 400_000  # kept at most, in memory and on disk
FOLLOW_UPS = 32  # waiting messages for one worker; further ones are refused
_STATES = {
    "done": NodeState.DONE,
    "partial": NodeState.PARTIAL,
    "blocked": NodeState.BLOCKED,
    "failed": NodeState.FAILED,
}


class _GaveUpError(Exception):
    """No model answers any more."""


class Worker:
    """One live worker; the channel owns its node and settles its end."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        run: WorkerRun,
        *,
        tools: Callable[[], AbstractAsyncContextManager[Sequence[Tool]]],
        fork: Sequence[ModelMessage] = (),
        brief: str | None = None,
        publish: Callable[[Outcome], Awaitable[None]],
        changed: Callable[["Worker"], None],
    ) -> None:
        """Take what the worker needs.

        Args:
            tools: opens what it works with; some of it lives as long as the worker.
            fork: the conversation, when the owner's configuration gives workers the conversation.
            brief: what it reads first instead of the bare task.
            publish: commits a finished piece of work of a worker that lives on, and tells the channel.
            changed: called when status or state changed.
        """
        self._parts = parts
        self._node = node
        self._run = run
        self._publish = publish
        self._changed = changed
        self._outcome: Outcome | None = None
        self._has_heard = False  # words came in since the model was last sent back
        self.is_waiting = run.state is NodeState.WAITING
        self._inbox_send, self._inbox = trio.open_memory_channel[str](FOLLOW_UPS)
        self._messages = from_json(run.transcript) if run.transcript else []
        self._open_tools = tools
        self._engine_parts: dict[str, Any] = {}
        if not self._messages:
            self._messages = [*fork, ModelMessage.user(brief or run.task)]

    def _equip(self, tools: Sequence[Tool]) -> None:
        """Make ready what each of its engines is made of."""
        parts, run = self._parts, self._run
        by_name = {tool.name: tool for tool in (*tools, SetStatus(self))}
        task = parts.prompts.render(
            "WORKER",
            task=run.task,
            workspace_dir=str(parts.paths.workspace),
            containment=parts.containment.describe(),
            is_interactive=run.is_interactive,
            skills_prompt=parts.skills_prompt("fragments/skills_worker"),
            mcp_prompt=parts.mcp.prompt("fragments/mcp_worker"),
            current_time=format_local(parts.clock.now(), parts.zone),
        )
        self._engine_parts = {
            "model": parts.model,
            "kind": ProcessKind.WORKER,
            "node": self._node,
            "events": parts.events,
            "system": (SystemBlock(task),),
            "tools": by_name,
            "specs": tuple(parts.prompts.tool_spec(tool) for tool in by_name.values()),
            "window": lambda: parts.window(ProcessKind.WORKER),
            "overflow_note": parts.prompts.render("fragments/overflow"),
            "task_type": run.task_type,
        }

    @property
    def run_row(self) -> WorkerRun:
        """The worker as its row has it."""
        return self._run

    @property
    def node(self) -> Node:
        """The worker in the supervision tree."""
        return self._node

    @property
    def transcript(self) -> str:
        """All that was said between model and tools, as JSON text."""
        return to_json(self._messages)

    def keep_unread(self) -> None:
        """Put what was handed in but not seen yet into the transcript: the program is stopping."""
        while (words := self._injected()) is not None:
            self._messages.append(ModelMessage.user(words))

    def route(self, message: str) -> str:
        """Hand in a message; returns what will happen with it.

        Errors: ToolError when the worker takes none, or too many wait already.
        """
        waiting = self._node.state is NodeState.WAITING
        if not waiting and not self._run.is_interactive and self._outcome is not None:
            raise ToolError("the worker is just finishing; wait for its result")
        try:
            self._inbox_send.send_nowait(message)
        except trio.WouldBlock:
            raise ToolError(f"{FOLLOW_UPS} messages wait for this worker already; try later") from None
        return "it goes on with this now" if waiting else "it sees this at its next step"

    def note_status(self, status: str) -> None:
        """Show where the work is."""
        self._node.progress(status)
        self._changed(self)

    def note_outcome(self, text: str, result: str) -> None:
        """Keep the account of the finished work."""
        self._outcome = Outcome(_STATES[result], text)

    async def run(self) -> Outcome:
        """Work; the outcome of the last piece of work, or of the waiting, is the worker's."""
        async with self._open_tools() as tools:
            self._equip(tools)
            return await self._run_pieces()

    async def _run_pieces(self) -> Outcome:
        if self._run.state is NodeState.WAITING:
            return await self._wait_and_go_on()
        prompt = None
        if self._run.state is NodeState.INTERRUPTED:
            prompt = self._parts.prompts.render("fragments/worker_resume")
        outcome = await self._work(prompt)
        if not self._run.is_interactive or outcome.state is NodeState.TIMED_OUT:
            return outcome
        await self._deliver(outcome)
        return await self._wait_and_go_on()

    async def _deliver(self, outcome: Outcome) -> None:
        """Hand over a finished piece of work; in the same step the row says that the worker waits."""
        self._set_state(NodeState.WAITING, self._node.status or "waiting for input")
        await self._publish(outcome)

    async def _wait_and_go_on(self) -> Outcome:
        """Wait for follow-ups and do them, until none comes for long."""
        self._set_state(NodeState.WAITING, self._node.status or "waiting for input")
        while True:
            with trio.move_on_after(self._parts.settings().worker.idle_timeout_secs) as patience:
                follow_up = await self._inbox.receive()
            if patience.cancelled_caught:
                try:
                    follow_up = self._inbox.receive_nowait()  # it came at the very end
                except trio.WouldBlock:
                    return Outcome(NodeState.DONE, self._outcome.text if self._outcome else "")  # told already
            self._set_state(NodeState.RUNNING, short_status(follow_up))
            outcome = await self._work(follow_up)
            if outcome.state is NodeState.TIMED_OUT:
                return outcome
            await self._deliver(outcome)

    async def _work(self, prompt: str | None) -> Outcome:
        """Do one piece of work within the wall clock; what was found is kept when it runs out."""
        limit_s = self._parts.settings().worker.wall_clock_timeout_secs
        with trio.move_on_after(limit_s) as clock:
            try:
                return await self._segments(prompt)
            except _GaveUpError as error:
                return Outcome(NodeState.FAILED, f"{error}. So far: {self.found}")
        assert clock.cancelled_caught
        return Outcome(NodeState.TIMED_OUT, f"stopped after {limit_s:.0f} s of work. So far: {self.found}")

    @property
    def found(self) -> str:
        """What the work has come to when it ends without an account."""
        words = self._outcome.text if self._outcome else last_words(self._messages)
        return scrub(words) or (f"last status: {self._node.status}" if self._node.status else "nothing reported")

    async def _segments(self, prompt: str | None) -> Outcome:
        self._outcome = None
        earlier = ""
        nudges = 0
        engine = Engine(**self._engine_parts)
        for segment in range(SEGMENTS):
            if prompt is not None:
                self._messages.append(ModelMessage.user(prompt))
                await self._checkpoint()  # from here on a restart knows that it was asked
            result = await self._run_engine(engine)
            if self._outcome is not None:
                account = f"{earlier}{scrub(self._outcome.text)}"
                late = None if self._run.is_interactive else self._injected()
                if late is None:
                    return Outcome(self._outcome.state, account)
                # It came while the end was being reported.
                self._outcome, earlier, prompt = None, f"{account}\n\n", late
                continue
            nudges = 1 if result.calls or self._has_heard else nudges + 1  # an answer to new words is no idling
            self._has_heard = False
            if result.ending is Ending.BUDGET:
                nudges = 0
                prompt = self._parts.prompts.render("fragments/worker_continue")
                self.note_status(f"segment {segment + 2}")
            elif nudges > NUDGES:
                words = scrub(result.text) or "nothing"
                return Outcome(NodeState.FAILED, f"ended without reporting an outcome; its last words: {words}")
            else:
                prompt = self._parts.prompts.render("fragments/worker_nudge")
        return Outcome(NodeState.PARTIAL, f"{earlier}stopped after {SEGMENTS} segments. So far: {self.found}")

    async def _run_engine(self, engine: Engine) -> EngineResult:
        """One segment; a provider that does not answer is tried again after a pause."""
        for pause in (*RETRY_PAUSES_S, None):
            try:
                return await engine.run(
                    self._messages, budget=SEGMENT_STEPS, on_step=self._checkpoint, inject=self._injected
                )
            except ModelError as error:
                if not error.retryable or pause is None:
                    raise _GaveUpError(scrub(str(error))) from error
                self.note_status(f"the model does not answer, next try in {pause:.0f} s")
                await trio.sleep(pause)
        raise AssertionError("unreachable")

    def _injected(self) -> str | None:
        """A message that was routed while the work runs."""
        try:
            message = self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        self._has_heard = True
        return self._parts.prompts.render("fragments/worker_injected", message=message)

    def _set_state(self, state: NodeState, status: str) -> None:
        self._node.state = state
        self.is_waiting = state is NodeState.WAITING
        self.note_status(status)

    def _shorten(self) -> None:
        """Drop the oldest quarter of a transcript that no window could hold any more; each step writes all of it."""
        while estimate_tokens(self._messages) > TRANSCRIPT_TOKENS:
            cut = drop_oldest(self._messages, 0.25)
            if cut == 0:
                return
            self._messages[:cut] = [ModelMessage.user(self._run.task)]

    async def _checkpoint(self) -> None:
        """Keep the transcript; work goes on when the disk refuses it."""
        self._shorten()
        try:
            await self._parts.conversations.checkpoint_worker(
                self._run.id,
                state=self._node.state,
                status=self._node.status,
                transcript=self.transcript,
                tool_calls=self._node.tool_calls,
            )
        except StorageError as error:
            log.warning("worker's transcript not written", extra=kv(id=self._run.id, error=str(error)))
