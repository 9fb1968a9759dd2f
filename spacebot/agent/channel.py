"""A channel: the one voice of one conversation. Its loop only receives, decides and starts children.

The loop never waits for a model, a tool or a disk: it waits for a message, a result, the end of a
turn, or a deadline, and then starts what is due. Branches and workers live below the channel
(`delegates.py`), whoever asked for them, and end with it.

Flow:   accept / result -> pacing -> turn (child) -> history
Floor:  agent
Source: design 3 and 4, process spec 3, 4 and 22.2
"""

import logging
import math
from collections.abc import Callable

import trio

from spacebot.agent.compactor import Compactor
from spacebot.agent.delegates import Delegates
from spacebot.agent.history import Entry, EntryKind, LiveHistory
from spacebot.agent.pacing import HELD, RETRY_S, Pacing, Work
from spacebot.agent.parts import AgentParts
from spacebot.agent.persistence import PersistenceRuns
from spacebot.agent.render import render_logged, render_message
from spacebot.agent.status import StatusBlock
from spacebot.agent.surroundings import Surroundings
from spacebot.agent.turn import Turn, bridged
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import StorageError
from spacebot.base.ids import ConversationId, platform_of
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import (
    BranchRun,
    ChangedMessage,
    Journalled,
    LoggedMessage,
    PendingResult,
    Standing,
    SummaryKind,
    WorkerRun,
)
from spacebot.llm.complexity import Tier
from spacebot.llm.messages import ModelMessage
from spacebot.memory.types import Provenance

log = logging.getLogger(__name__)

HYDRATE = 200  # messages read back from the log when a known conversation wakes up; process spec 18
RETIRE_S = 3600.0  # a channel with nothing to do leaves memory after this; the next message brings it back
EVENT_BYTES = 4000  # of a result in an event
DISMISS_S = 0.05  # between looks whether dismissed workers have ended


class Channel:
    """One conversation. `run` is its life; the other methods never wait for work."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        channel_id: ConversationId,
        *,
        is_known: bool,
        may_start: Callable[[], bool],
    ) -> None:
        """Make a channel.

        Args:
            is_known: the log may hold earlier messages, which are read back first.
            may_start: False while the agent is paused or drains; then no new turn begins.
        """
        self.id = channel_id
        self.status = StatusBlock(node)
        self._parts = parts
        self._node = node
        self._is_hydrated = not is_known
        self._may_start = may_start
        self._is_run = platform_of(channel_id) == "cron"  # of a schedule: it ends when its work has settled
        self._history = LiveHistory()
        self._overheard: list[Entry] = []  # before the history was read back
        self._fixed_tokens = 0  # of the last turn's requests beside the history
        self._surroundings = Surroundings(parts, channel_id)
        self._pacing = Pacing()
        self._refill_at = -math.inf
        self._was_cut = False
        self._wake = trio.Event()
        self._turn: Turn | None = None
        self._tier: Tier | None = None  # of what people last said, where prompts are scored
        self._changed: list[tuple[int, Entry | None]] = []  # while it runs; what it leaves may hold the old words
        self._idle_since = monotonic_s()
        self._hydrating = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.delegates = Delegates(
            parts, node, channel_id, status=self.status, fork=self._fork, turn=lambda: self._turn, ended=self._ended
        )
        self._compactor = Compactor(parts, node, channel_id, self._history, provenance=self._whole)
        self._persistence = PersistenceRuns(
            parts, node, channel_id, provenance=self._whole, ended=lambda: self._wake.set()
        )
        self._standing = Standing(is_direct=False, user_id=None)
        self._is_shared = False  # others have joined: what belongs to one person is not for this conversation
        self.is_retired = False
        self.is_discarded = False  # nothing of it is taken up again

    @property
    def node(self) -> Node:
        """The channel in the supervision tree."""
        return self._node

    @property
    def has_work(self) -> bool:
        """Whether anything waits to be dealt with, a turn that was cut included."""
        return self._was_cut or not self._pacing.is_empty

    @property
    def is_in_turn(self) -> bool:
        """Whether a turn runs."""
        return self._turn is not None

    def accept(self, message: Journalled) -> None:
        """Take a journalled message. Never waits."""
        self._pacing.add_message(message, monotonic_s(), self._parts.settings().coalesce)
        self._is_shared |= not message.message.is_direct
        author = message.message.author
        self._standing = Standing(is_direct=not self._is_shared, user_id=author.id, is_listed=author.is_listed)
        self._node.progress()
        self._wake.set()

    def observe(self, message: Journalled) -> None:
        """Take note of a journalled message that nobody answers. Never waits."""
        self._is_shared |= not message.message.is_direct
        entry = Entry(ModelMessage.user(render_message(message.message, self._parts.zone)), (message.seq,))
        self._overhear(entry)
        self._persistence.note_turn(1)

    def note(self, row: LoggedMessage) -> None:
        """Take note of something that the agent said here from elsewhere. Never waits."""
        self._overhear(Entry(ModelMessage.assistant(row.content), (row.seq,)))

    def change(self, message: ChangedMessage) -> None:
        """Take note that a message was edited or taken back. A turn that runs has seen it as it was."""
        self._pacing.change(message.row.id, message.journalled)
        entry = None
        if message.journalled is not None:
            entry = Entry(
                ModelMessage.user(render_message(message.journalled.message, self._parts.zone)), (message.row.seq,)
            )
        self._history.change(message.row.seq, entry)
        if self._turn is not None:
            self._changed.append((message.row.seq, entry))

    def _overhear(self, entry: Entry) -> None:
        self._idle_since = monotonic_s()
        self._node.progress()
        if not self._is_hydrated:
            self._overheard.append(entry)  # it is in the log; whether the reading has it shows when that is done
        else:
            self._history.extend([entry])
            if self._nursery is not None and self._may_start():
                self._compactor.check(self._nursery, fixed_tokens=self._fixed_tokens)
        self._wake.set()

    def look(self) -> None:
        """Look again what is due. Never waits."""
        self._wake.set()

    def look_for_results(self) -> None:
        """Have a look at the log for results that were written behind the channel's back."""
        self._pacing.has_overflowed = True
        self._wake.set()

    async def resume_branch(self, run: BranchRun) -> None:
        """Run a branch again that a restart cut."""
        await self._hydrate()
        await self.delegates.start_branch(run)

    async def resume_worker(self, run: WorkerRun) -> None:
        """Take a worker up again that a restart stopped."""
        await self._hydrate()
        await self.delegates.start_worker(run)

    def _ended(self, result: PendingResult | None) -> None:
        """Take note that a branch or worker ended, with what it came to when people have to be told."""
        self._idle_since = monotonic_s()
        if result is not None:
            self._pacing.add_result(result, monotonic_s())
            self._persistence.note_work()
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until cancelled, or until nothing happened for an hour."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.delegates.run)
            self._node.state = NodeState.WAITING
            task_status.started()
            await self._loop(nursery)
            nursery.cancel_scope.cancel()

    async def _loop(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            deadline = math.inf
            if self._turn is None and self._may_start():
                await self._hydrate()
                if (
                    self._pacing.has_overflowed
                    and self._pacing.due_at() == math.inf
                    and self._refill_at <= monotonic_s()
                ):
                    await self._refill()
                work = self._pacing.take(monotonic_s())
                if work is not None:
                    self._start_turn(nursery, work)
                    continue
                deadline = self._pacing.due_at()
                if self._pacing.has_overflowed and deadline == math.inf:
                    deadline = self._refill_at
                if self._is_run and self._is_settled():
                    await self._dismiss()
                    self.is_retired = True
                    return
                persist_at = math.inf if self._is_run else self._persistence.due_at()
                if persist_at <= monotonic_s():
                    self._persistence.start(nursery)
                    continue
                deadline = min(deadline, persist_at)
                if self._is_idle():
                    deadline = min(deadline, self._idle_since + RETIRE_S)
                    if deadline <= monotonic_s():
                        self.is_retired = True
                        return
            with trio.move_on_at(deadline):
                await self._wake.wait()

    def _is_settled(self) -> bool:
        """Whether nothing is under way any more; a worker that waits for more input does not count."""
        return (
            self._pacing.is_empty
            and not self.delegates.is_busy
            and all(child.state is NodeState.WAITING for child in self._delegated())
        )

    def _delegated(self) -> list[Node]:
        return [child for child in self._node.children.values() if child.kind in (NodeKind.BRANCH, NodeKind.WORKER)]

    async def _dismiss(self) -> None:
        """End workers that wait for input, without a word."""
        self.delegates.dismiss_all("the run is over")
        while self._delegated() or self.delegates.is_busy:
            self._wake = trio.Event()
            with trio.move_on_after(DISMISS_S):  # an end is told a moment before its node is gone
                await self._wake.wait()

    def wind_up(self, reason: str) -> None:
        """End what was set to work, without a word: who asks for the end says so."""
        self.delegates.dismiss_all(reason)

    def cut(self) -> None:
        """End as things stand, for good."""
        self.is_retired = self.is_discarded = True
        self._node.cancel_scope.cancel()

    def _is_idle(self) -> bool:
        return self._pacing.is_empty and not (self._node.children or self.delegates.is_busy)

    async def _hydrate(self) -> None:
        """Read the conversation back, once; what is still unanswered comes with its turn."""
        async with self._hydrating:
            if self._is_hydrated:
                return
            try:
                await self._read_history()
                self._standing = await self._parts.conversations.standing(self.id)
                self._is_shared = not self._standing.is_direct
            except StorageError as error:
                log.error("history not read", extra=kv(channel=self.id, error=str(error)))
            self._is_hydrated = True
            known = {seq for entry in self._history.entries for seq in entry.seqs}
            self._history.extend(entry for entry in self._overheard if known.isdisjoint(entry.seqs))
            self._overheard.clear()
            await self._refill()

    async def _read_history(self) -> None:
        """Summaries first, then the newest messages that they do not cover; what lies between is named as left out."""
        memoranda = self._parts.memoranda
        summaries = await memoranda.summaries(self.id)
        covered = max((summary.last_seq for summary in summaries), default=0)
        rows = await memoranda.newest(self.id, after_seq=covered, limit=HYDRATE)
        for summary in summaries:
            kind = EntryKind.OMISSION if summary.kind is SummaryKind.EMERGENCY else EntryKind.SUMMARY
            span = (summary.first_seq, summary.last_seq)
            self._history.extend([Entry(ModelMessage.user(summary.content), span, kind)])
        if rows and (missing := rows[0].seq - covered - 1) > 0:
            text = self._parts.prompts.render("fragments/omission", count=missing)
            self._history.extend([Entry(ModelMessage.user(text), (), EntryKind.OMISSION)])
        zone = self._parts.zone
        messages = [(row.seq, render_logged(row, zone)) for row in rows]
        self._history.extend(Entry(message, (seq,)) for seq, message in messages if message is not None)
        self._persistence.note_unsaved(await memoranda.unsaved(self.id))

    async def _refill(self) -> None:
        """Fetch from the log what waits there only: messages beyond those held, results that nobody was told."""
        self._pacing.has_overflowed = False
        try:
            messages = await self._parts.conversations.waiting(self.id, HELD)
            results = await self._parts.conversations.pending_results(self.id)
        except StorageError as error:
            log.error("journal not read, it is tried again", extra=kv(channel=self.id, error=str(error)))
            self._pacing.has_overflowed = True
            self._refill_at = monotonic_s() + RETRY_S
            return
        now, coalesce = monotonic_s(), self._parts.settings().coalesce
        for message in messages:
            self._pacing.add_message(message, now, coalesce)
        for result in results:
            self._pacing.add_result(result, now, at_once=True)
        self._pacing.has_overflowed |= len(messages) >= HELD

    def _start_turn(self, nursery: trio.Nursery, work: Work) -> None:
        self._history.without(message.seq for message in work.messages)
        self._changed.clear()
        description = f"{len(work.messages)} messages, {len(work.results)} results"
        node = self._parts.tree.add(NodeKind.TURN, description, parent=self._node)
        self._turn = Turn(
            self._parts,
            node,
            self.delegates,
            self.id,
            work,
            history=self._history.messages(),
            status=self.status,
            provenance=self._provenance(work),
            surroundings=self._surroundings,
            may_go_elsewhere=not self._standing.is_direct or self._standing.is_listed,
            previous_tier=self._tier,
        )
        nursery.start_soon(self._run_turn, self._turn, node, work)

    async def _run_turn(self, turn: Turn, node: Node, work: Work) -> None:
        """Supervise a turn; whatever became of it, the loop goes on."""

        async def settle(outcome: Outcome) -> None:
            is_given_back = False
            if turn.complexity is not None:
                self._tier = turn.complexity.tier
            if not turn.is_closed:
                is_given_back = await self._settle_broken_turn(turn, work, outcome)
            if turn.end is not None and not is_given_back:
                self._history.extend(turn.end.history)
                for seq, entry in self._changed:
                    self._history.change(seq, entry)
                self._pacing.note_end(work, has_spawned=turn.has_spawned, untold=turn.end.untold, now=monotonic_s())
                self._persistence.note_turn(len(work.messages))
                self._fixed_tokens = turn.fixed_tokens
                if self._nursery is not None and self._may_start():
                    self._compactor.check(self._nursery, fixed_tokens=turn.fixed_tokens)

        try:
            await self._parts.tree.supervise(node, turn.run, settle=settle)
        finally:
            self._turn = None
            self._idle_since = monotonic_s()
            self._wake.set()

    async def _settle_broken_turn(self, turn: Turn, work: Work, outcome: Outcome) -> bool:
        """Close a turn that did not close itself: cut by a stop, cancelled, or broken.

        Returns whether its work was taken back, to be tried again.
        """
        stopped = outcome.state is NodeState.INTERRUPTED
        self._was_cut |= stopped
        if not turn.has_begun:  # the journal still has its messages as waiting
            self._pacing.give_back(work, monotonic_s())
            return True
        is_lost = turn.is_unwritten  # its answer could not be kept: the question is taken again
        try:
            if stopped or turn.has_replied or is_lost:
                await turn.interrupt()
            else:
                await turn.fail(outcome)
        except StorageError as error:
            log.error("turn not closed", extra=kv(channel=self.id, error=str(error)))
            is_lost = True
            if turn.has_replied and self._nursery is not None:
                self._nursery.start_soon(self._close_later, turn)
        if not is_lost or turn.has_replied:  # what was said is on disk, and nobody is answered twice
            return False
        self.delegates.drop_all_of(turn.id)  # the turn that is taken again starts them anew
        self._pacing.give_back(work, monotonic_s())
        return True

    async def _close_later(self, turn: Turn) -> None:
        """Close a turn whose answer is on disk and whose end was refused."""
        while not turn.is_closed:
            await trio.sleep(RETRY_S)
            try:
                await turn.interrupt()
            except StorageError:
                continue

    def _provenance(self, work: Work) -> Provenance:
        """Who is answered by a turn: the writer of its last message, not whoever spoke since."""
        if not work.messages:
            return Provenance(
                channel_id=self.id, user_id=self._standing.user_id, message_id=None, is_direct=self._standing.is_direct
            )
        last = work.messages[-1]
        return Provenance(
            channel_id=self.id,
            user_id=last.message.author.id,
            message_id=last.id,
            is_direct=not self._is_shared,
        )

    def _whole(self) -> Provenance:
        """The conversation as such; in a room nobody in particular."""
        standing = self._standing
        return Provenance(
            channel_id=self.id,
            user_id=standing.user_id if standing.is_direct else None,
            message_id=None,
            source="conversation",
            is_direct=standing.is_direct,
        )

    async def finish(self) -> None:
        """Save what is worth remembering, because the program stops."""
        if self._nursery is not None and not self._is_run:
            await self._persistence.finish(self._nursery)

    def _fork(self) -> list[ModelMessage]:
        """The conversation as it stands, with what the running turn deals with."""
        messages = self._history.messages()
        if self._turn is not None and self._turn.prompt is not None:
            return bridged(messages, self._turn.prompt, self._parts.prompts.render("fragments/bridge"))
        return messages
