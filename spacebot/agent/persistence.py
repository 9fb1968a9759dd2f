"""Persistence runs: every so often, what a conversation said is gone through for what is worth remembering.

A run is due after so many messages of people, some time after the first of them, or after several pieces of
finished work; and when the channel ends. It reads the log from where the last finished run stopped, so a run that
fails, or a program that dies, leaves nothing out. It says nothing to anybody.

Flow:    note_turn, note_work -> due_at -> start -> transcript from the log -> model -> row with the new mark
Floor:   agent
Source:  memory spec 10.1, process spec 4.13, 17.5; pitfalls P72, P-14, P-22, P-23, P-46
"""

import logging
import math
from collections.abc import Callable, Sequence

import trio

from spacebot.agent.engines import engine_of
from spacebot.agent.parts import AgentParts
from spacebot.agent.render import render_transcript
from spacebot.agent.toolsets import persistence_tools
from spacebot.base.clock import format_local, from_text, monotonic_s
from spacebot.base.errors import ModelError, StorageError
from spacebot.base.ids import ConversationId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import LoggedMessage, Unsaved
from spacebot.llm.messages import ModelMessage, ProcessKind
from spacebot.memory.types import Provenance

log = logging.getLogger(__name__)

TASK_TYPE = "memory_persistence"  # for routing
ROWS = 200  # messages that one run goes through; more are left to the next
EARLIER = 10  # messages before them, for context
BUDGET = 30  # model calls of a run
TIME_S = 600.0
RETRY_FIRST_S, RETRY_MOST_S = 120.0, 3600.0  # pause after a failure, doubled each time


class PersistenceRuns:
    """One channel's runs, at most one at a time. Nothing here waits for a run but `finish`."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        channel_id: ConversationId,
        *,
        provenance: Callable[[], Provenance],
        ended: Callable[[], None],
    ) -> None:
        """Take what is needed of the channel.

        Args:
            node: the channel's own.
            provenance: where what is remembered was learned.
            ended: told when a run is over.
        """
        self._parts = parts
        self._node = node
        self._channel_id = channel_id
        self._provenance = provenance
        self._ended = ended
        self._messages = 0  # of people, since the last run
        self._work = 0  # finished branches and workers, since the last run
        self._since = math.inf  # when the first of those messages came
        self._not_before = 0.0
        self._failures = 0
        self._running: Node | None = None
        self._is_over = trio.Event()

    def note_turn(self, messages: int) -> None:
        """Take note of a turn with so many messages of people."""
        if messages and not self._messages:
            self._since = monotonic_s()
        self._messages += messages

    def note_work(self) -> None:
        """Take note of a finished branch or worker."""
        self._work += 1

    def note_unsaved(self, unsaved: Unsaved | None) -> None:
        """Take over what an earlier life left."""
        if unsaved is None:
            return
        self._messages = unsaved.count
        age = (self._parts.clock.now() - from_text(unsaved.first_at)).total_seconds()
        self._since = monotonic_s() - max(0.0, age)

    def due_at(self) -> float:
        """When the next run has to begin; infinity when nothing waits."""
        settings = self._parts.settings().memory_persistence
        if not settings.enabled or not self._messages or self._running is not None:
            return math.inf
        is_full = self._messages >= settings.message_interval or self._work >= settings.event_interval
        return max(0.0 if is_full else self._since + settings.max_interval_secs, self._not_before)

    def start(self, nursery: trio.Nursery) -> None:
        """Begin a run, unless one is going on."""
        if self._running is not None:
            return
        node = self._parts.tree.add(NodeKind.PERSISTENCE, f"{self._messages} messages", parent=self._node)
        self._running, self._is_over = node, trio.Event()
        taken, work, since = self._messages, self._work, self._since
        self._messages, self._work, self._since = 0, 0, math.inf
        nursery.start_soon(self._run, node, taken, work, since)

    async def finish(self, nursery: trio.Nursery) -> None:
        """Go through what is left, because the channel ends; returns when that is done."""
        if self._running is None and self._messages and self._parts.settings().memory_persistence.enabled:
            self.start(nursery)
        if self._running is not None:
            await self._is_over.wait()

    async def _run(self, node: Node, messages: int, work: int, since: float) -> None:
        async def settle(outcome: Outcome) -> None:
            self._running = None
            if outcome.is_success:
                self._failures = 0
            else:  # they are still to be gone through
                self._messages, self._work = self._messages + messages, self._work + work
                self._since = min(self._since, since)
            if outcome.state in (NodeState.FAILED, NodeState.TIMED_OUT):
                self._failures += 1
                self._not_before = monotonic_s() + min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (self._failures - 1))
                log.warning("memories not saved", extra=kv(channel=self._channel_id, reason=outcome.text))
            self._is_over.set()
            self._ended()

        async def go_through() -> Outcome:
            async with self._parts.quiet:
                with trio.move_on_after(TIME_S):
                    return await self._go_through(node)
            return Outcome(NodeState.TIMED_OUT, f"not done within {TIME_S:.0f} s")

        await self._parts.tree.supervise(node, go_through, settle=settle)

    async def _go_through(self, node: Node) -> Outcome:
        parts = self._parts
        try:
            unsaved = await parts.memoranda.unsaved(self._channel_id)
            if unsaved is None:
                return Outcome(NodeState.DONE, "nothing new was said")
            after = unsaved.after_seq
            rows = await parts.memoranda.spoken(self._channel_id, after_seq=after, limit=ROWS)
            earlier = await parts.memoranda.spoken(
                self._channel_id, after_seq=max(0, after - EARLIER), last_seq=after, limit=EARLIER
            )
            outcome = await self._look(node, rows, earlier)
            if unsaved.count > sum(row.role == "user" for row in rows):
                self._messages += unsaved.count - sum(row.role == "user" for row in rows)
                self._since = monotonic_s()
        except (ModelError, StorageError) as error:
            return Outcome(NodeState.FAILED, scrub(str(error)))
        return outcome

    async def _look(self, node: Node, rows: Sequence[LoggedMessage], earlier: Sequence[LoggedMessage]) -> Outcome:
        """Let the model look at what was said, and write down how far it came."""
        parts = self._parts
        people = await parts.conversations.participants(self._channel_id)
        tools, save, complete = persistence_tools(parts, _of_one(self._provenance(), rows), people)
        system = parts.prompts.render("MEMORY_PERSISTENCE", current_time=format_local(parts.clock.now(), parts.zone))
        engine = engine_of(parts, ProcessKind.BRANCH, node, system, tools, task_type=TASK_TYPE)
        prompt = parts.prompts.render(
            "fragments/persistence",
            earlier=render_transcript(earlier, parts.zone),
            transcript=render_transcript(rows, parts.zone),
        )
        started_at = parts.clock.text()
        await engine.run([ModelMessage.user(prompt)], budget=BUDGET)
        # That the run came back is its success; what the model reports is for the record.
        report = complete.result
        kept = str(report.outcome) if report else "unreported"
        await parts.memoranda.record_persistence(
            self._channel_id,
            last_seq=rows[-1].seq,
            outcome=kept,
            reason=scrub(report.reason) if report and report.reason else None,
            memory_ids=save.saved,
            started_at=started_at,
        )
        return Outcome(NodeState.DONE, f"{kept}: {len(save.saved)} memories")


def _of_one(provenance: Provenance, rows: Sequence[LoggedMessage]) -> Provenance:
    """Where these messages were learned; a person and a message are named only when a single one spoke."""
    speakers = {row.sender_id for row in rows if row.role == "user"}
    last = next((row for row in reversed(rows) if row.role == "user"), None)
    return Provenance(
        channel_id=provenance.channel_id,
        user_id=speakers.pop() if len(speakers) == 1 else provenance.user_id if provenance.is_direct else None,
        message_id=last.id if last else None,
        source=provenance.source,
        is_direct=provenance.is_direct,
    )
