"""A channel: the one voice of one conversation. Its loop only receives, decides and starts children.

The loop never waits for a model, a tool or a disk: it waits for a message, a result, the end of a
turn, or a deadline, and then starts what is due. Branches and workers live in the channel's nursery,
whoever asked for them, and end with it.

Flow:   accept / result -> pacing -> turn (child) -> history
Floor:  agent
Source: design 3 and 4, process spec 3, 4 and 22.2
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from spacebot.agent.branch import run_branch
from spacebot.agent.pacing import HELD, RETRY_S, Pacing, Work
from spacebot.agent.parts import AgentParts
from spacebot.agent.render import render_logged
from spacebot.agent.status import StatusBlock
from spacebot.agent.toolsets import branch_tools, worker_tools
from spacebot.agent.turn import Turn, bridged
from spacebot.agent.worker import Worker
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import RefusedError, StorageError, ToolError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId, MessageId, NodeId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import BranchRun, Journalled, PendingResult, Standing, WorkerRun
from spacebot.llm.history import drop_oldest, estimate_tokens
from spacebot.llm.messages import ModelMessage, ProcessKind
from spacebot.memory.types import Provenance

log = logging.getLogger(__name__)

HYDRATE = 200  # messages read back from the log when a known conversation wakes up; process spec 18
RETIRE_S = 3600.0  # a channel with nothing to do leaves memory after this; the next message brings it back
EVENT_BYTES = 4000  # of a result in an event
HISTORY_SHARE = 0.8  # of the window that live history may fill before its oldest part leaves memory


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
            may_start: False while the program drains; then no new turn begins.
        """
        self.id = channel_id
        self.status = StatusBlock(node)
        self._parts = parts
        self._node = node
        self._is_hydrated = not is_known
        self._may_start = may_start
        self._history: list[tuple[MessageId | None, ModelMessage]] = []
        self._pacing = Pacing()
        self._refill_at = -math.inf
        self._was_cut = False
        self._wake = trio.Event()
        self._turn: Turn | None = None
        self._workers: dict[str, Worker] = {}
        self._branches: dict[str, BranchRun] = {}
        self._spawning: set[str] = set()
        self._uncommitted = 0  # ends of processes that the disk refused
        self._quiet: set[str] = set()  # processes whose end nobody has to be told
        self._idle_since = monotonic_s()
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._standing = Standing(is_direct=False, user_id=None)
        self.is_retired = False

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
        self._standing = Standing(is_direct=message.message.is_direct, user_id=message.message.author.id)
        self._node.progress()
        self._wake.set()

    def add_result(self, result: PendingResult, *, at_once: bool = False) -> None:
        """Take finished work that is on disk."""
        self._pacing.add_result(result, monotonic_s(), at_once=at_once)
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until cancelled, or until nothing happened for an hour."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._node.state = NodeState.WAITING
            self._started.set()
            task_status.started()
            await self._loop(nursery)

    async def _loop(self, nursery: trio.Nursery) -> None:
        while True:
            self._wake = trio.Event()
            deadline = math.inf
            if self._turn is None and self._may_start():
                if not self._is_hydrated:
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
                if self._pacing.has_overflowed:
                    deadline = min(deadline, max(self._refill_at, monotonic_s()))
                if self._is_idle():
                    deadline = min(deadline, self._idle_since + RETIRE_S)
                    if deadline <= monotonic_s():
                        self.is_retired = True
                        return
            with trio.move_on_at(deadline):
                await self._wake.wait()

    def _is_idle(self) -> bool:
        return self._pacing.is_empty and not (self._node.children or self._spawning or self._uncommitted)

    async def _hydrate(self) -> None:
        """Read the conversation back; what is still unanswered comes with its turn."""
        try:
            rows = await self._parts.conversations.recent(self.id, HYDRATE)
            self._standing = await self._parts.conversations.standing(self.id)
        except StorageError as error:
            log.error("history not read", extra={"kv": {"channel": self.id, "error": str(error)}})
            rows = []
        zone = self._parts.zone
        for row in rows:
            if (message := render_logged(row, zone)) is not None:
                self._history.append((row.id, message))
        self._is_hydrated = True
        await self._refill()

    async def _refill(self) -> None:
        """Fetch from the log what waits there only: messages beyond those held, results that nobody was told."""
        self._pacing.has_overflowed = False
        try:
            messages = await self._parts.conversations.waiting(self.id, HELD)
            results = await self._parts.conversations.pending_results(self.id)
        except StorageError as error:
            log.error("journal not read, it is tried again", extra={"kv": {"channel": self.id, "error": str(error)}})
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
        taken = {message.id for message in work.messages}
        self._history = [entry for entry in self._history if entry[0] not in taken]
        description = f"{len(work.messages)} messages, {len(work.results)} results"
        node = self._parts.tree.add(NodeKind.TURN, description, parent=self._node)
        self._turn = Turn(
            self._parts,
            node,
            self,
            self.id,
            work,
            history=[message for _, message in self._history],
            status=self.status,
            provenance=self._provenance(work),
        )
        nursery.start_soon(self._run_turn, self._turn, node, work)

    async def _run_turn(self, turn: Turn, node: Node, work: Work) -> None:
        """Supervise a turn; whatever became of it, the loop goes on."""

        async def settle(outcome: Outcome) -> None:
            if turn.end is None:
                await self._settle_broken_turn(turn, work, outcome)
            if turn.end is not None:
                self._history.extend((None, message) for message in turn.end.history)
                self._pacing.give_back_results(turn.end.untold, monotonic_s())
                self._trim()

        try:
            await self._parts.tree.supervise(node, turn.run, settle=settle)
        finally:
            self._turn = None
            self._idle_since = monotonic_s()
            self._wake.set()

    async def _settle_broken_turn(self, turn: Turn, work: Work, outcome: Outcome) -> None:
        """Close a turn that did not close itself: cut by a stop, cancelled, or broken."""
        stopped = outcome.state is NodeState.INTERRUPTED
        self._was_cut |= stopped
        if not turn.has_begun:  # the journal still has its messages as waiting
            self._pacing.give_back(work, monotonic_s())
            return
        try:
            if stopped or turn.has_replied:
                await turn.interrupt()
            else:
                await turn.fail(outcome)
        except StorageError as error:
            log.error("turn not closed", extra={"kv": {"channel": self.id, "error": str(error)}})
            if not turn.has_replied:  # what was said is on disk, and nobody is answered twice
                self._pacing.give_back(work, monotonic_s())

    def _trim(self) -> None:
        """Keep live history below its share of the window; the log has all of it."""
        limit = int(self._parts.window(ProcessKind.CHANNEL) * HISTORY_SHARE)
        if len(self._history) < 8 or estimate_tokens(message for _, message in self._history) < limit:
            return
        cut = drop_oldest([message for _, message in self._history], 0.3)
        del self._history[:cut]

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
            is_direct=last.message.is_direct,
        )

    def _fork(self) -> list[ModelMessage]:
        """The conversation as it stands, with what the running turn deals with."""
        messages = [message for _, message in self._history]
        if self._turn is not None and self._turn.prompt is not None:
            return bridged(messages, self._turn.prompt, self._parts.prompts.render("fragments/bridge"))
        return messages

    async def spawn_branch(self, description: str) -> str:
        """Start a branch; returns its id once its row is on disk."""
        turn = self._turn
        run = BranchRun(
            id=NodeId(""), channel_id=self.id, description=description,
            turn_id=turn.id if turn else None, reply_to=turn.reply_to if turn else None,
        )  # fmt: skip
        return await self._start_branch(run)

    async def resume_branch(self, run: BranchRun) -> None:
        """Run a branch again that a restart cut."""
        await self._started.wait()
        if not self._is_hydrated:
            await self._hydrate()
        await self._start_branch(run)

    async def resume_worker(self, run: WorkerRun) -> None:
        """Take a worker up again that a restart stopped."""
        await self._started.wait()
        if not self._is_hydrated:
            await self._hydrate()
        await self._start_worker(run)

    async def _start_branch(self, run: BranchRun) -> str:
        assert self._nursery is not None
        node = self._parts.tree.add(
            NodeKind.BRANCH,
            run.description,
            parent=self._node,
            node_id=run.id or None,
            limit=None if run.id else self._parts.settings().max_concurrent_branches,
        )
        run = replace(run, id=node.id)
        try:
            await self._parts.conversations.start_branch(run)
        except BaseException:
            self._parts.tree.remove(node)
            raise
        self._branches[node.id] = run
        self._emit(EventKind.BRANCH_STARTED, branch_id=node.id, description=run.description)
        self._nursery.start_soon(self._run_branch, node, run, self._fork())
        return node.id

    async def _run_branch(self, node: Node, run: BranchRun, fork: Sequence[ModelMessage]) -> None:
        async def settle(outcome: Outcome) -> None:
            outcome = replace(outcome, text=scrub(outcome.text))
            self._branches.pop(node.id, None)
            tell = outcome.state is not NodeState.INTERRUPTED and node.id not in self._quiet
            await self._commit_end(finish, node, outcome, tell)

        async def finish(outcome: Outcome, tell: bool) -> None:
            result = await self._parts.conversations.finish_branch(run, outcome, tool_calls=node.tool_calls, tell=tell)
            self._note_end(node, outcome, result)
            self._emit(
                EventKind.BRANCH_COMPLETED,
                branch_id=node.id,
                conclusion=cut_bytes(outcome.text, EVENT_BYTES),
                state=str(outcome.state),
            )

        async def think() -> Outcome:
            standing = await self._parts.conversations.standing(self.id, run.reply_to)
            provenance = Provenance(
                channel_id=self.id, user_id=standing.user_id, message_id=run.reply_to, is_direct=standing.is_direct
            )
            tools = branch_tools(self._parts, self, node, run, provenance)
            return await run_branch(self._parts, node, run, fork=fork, tools=tools, viewer=provenance.viewer)

        await self._parts.tree.supervise(node, think, settle=settle)

    async def _commit_end(
        self, finish: Callable[[Outcome, bool], Awaitable[None]], node: Node, outcome: Outcome, tell: bool
    ) -> None:
        """Commit the end of a process; one that the disk refuses is kept and tried again."""
        try:
            await finish(outcome, tell)
        except StorageError as error:
            log.error("end of process not written, it is tried again", extra=kv(id=node.id, error=str(error)))
            assert self._nursery is not None
            self._uncommitted += 1
            self._nursery.start_soon(self._commit_later, finish, outcome, tell)

    async def _commit_later(
        self, finish: Callable[[Outcome, bool], Awaitable[None]], outcome: Outcome, tell: bool
    ) -> None:
        while True:
            await trio.sleep(RETRY_S)
            try:
                await finish(outcome, tell)
            except StorageError:
                continue
            self._uncommitted -= 1
            return

    async def spawn_worker(
        self, task: str, *, is_interactive: bool, task_type: str | None, origin: Node | None = None
    ) -> str:
        """Start a worker; returns its id once its row is on disk.

        Errors: LimitReachedError; RefusedError when the same task runs already (P55).
        """
        key = " ".join(task.split()).casefold()
        twin = next(
            (n for n in self.status.live(NodeKind.WORKER) if " ".join(n.description.split()).casefold() == key), None
        )
        if twin is not None or key in self._spawning:
            raise RefusedError(
                f"a worker does exactly this already ({twin.id if twin else 'just starting'}); "
                "wait for its result, or use route to add to it"
            )
        self._spawning.add(key)
        try:
            cause = self._branches.get(origin.id) if origin else None
            turn = self._turn
            run = WorkerRun(
                id=NodeId(""), channel_id=self.id, task=task, task_type=task_type, is_interactive=is_interactive,
                turn_id=cause.turn_id if cause else turn.id if turn else None,
                reply_to=cause.reply_to if cause else turn.reply_to if turn else None,
                origin=origin.id if origin else None,
            )  # fmt: skip
            return await self._start_worker(run)
        finally:
            self._spawning.discard(key)

    async def _start_worker(self, run: WorkerRun) -> str:
        assert self._nursery is not None
        settings = self._parts.settings()
        node = self._parts.tree.add(
            NodeKind.WORKER,
            run.task,
            parent=self._node,
            node_id=run.id or None,
            limit=None if run.id else settings.max_concurrent_workers,  # what ran before the restart had its place
        )
        try:
            self._parts.containment.backend = await self._parts.probe()
            if not run.id:
                run = replace(run, id=node.id)
                await self._parts.conversations.start_worker(run)
            fork = self._fork() if settings.worker.context == "fork" and not run.transcript else ()
            worker = Worker(
                self._parts,
                node,
                run,
                tools=worker_tools(self._parts, node),
                fork=fork,
                publish=lambda outcome: self._publish(run, outcome),
                changed=self._worker_changed,
            )
        except BaseException:
            self._parts.tree.remove(node)
            raise
        self._workers[node.id] = worker
        self._emit(EventKind.WORKER_STARTED, worker_id=node.id, task=cut_bytes(run.task, EVENT_BYTES))
        self._nursery.start_soon(self._run_worker, worker)
        return node.id

    async def _run_worker(self, worker: Worker) -> None:
        node, run = worker.node, worker.run_row

        async def settle(outcome: Outcome) -> None:
            outcome = replace(outcome, text=scrub(outcome.text))
            self._workers.pop(node.id, None)
            is_stop = outcome.state is NodeState.INTERRUPTED
            if is_stop and worker.is_waiting:
                return  # its row says "waiting"; the next start finds it so
            if is_stop:
                worker.keep_unread()
            retired = run.is_interactive and outcome.state is NodeState.DONE
            tell = not (is_stop or retired or node.id in self._quiet)
            await self._commit_end(finish, node, outcome, tell)

        async def finish(outcome: Outcome, tell: bool) -> None:
            result = await self._parts.conversations.finish_worker(
                run,
                outcome,
                status=node.status,
                transcript=worker.transcript,
                tool_calls=node.tool_calls,
                tell=tell,
            )
            self._note_end(node, outcome, result)
            self._emit(
                EventKind.WORKER_COMPLETED,
                worker_id=node.id,
                result=cut_bytes(outcome.text, EVENT_BYTES),
                state=str(outcome.state),
            )

        await self._parts.tree.supervise(node, worker.run, settle=settle)

    async def _publish(self, run: WorkerRun, outcome: Outcome) -> None:
        """Commit a finished piece of work of a worker that lives on."""
        result = await self._parts.conversations.add_result(run, replace(outcome, text=scrub(outcome.text)))
        self.add_result(result)
        self._emit(EventKind.WORKER_IDLE, worker_id=run.id, result=cut_bytes(result.text, EVENT_BYTES))

    def _worker_changed(self, worker: Worker) -> None:
        self._emit(
            EventKind.WORKER_STATUS, worker_id=worker.node.id, status=worker.node.status, state=str(worker.node.state)
        )

    def _note_end(self, node: Node, outcome: Outcome, result: PendingResult | None) -> None:
        self._quiet.discard(node.id)
        self.status.complete(node, outcome, self._parts.clock.now(), relayed=result is None)
        self._idle_since = monotonic_s()
        if result is not None:
            self._pacing.add_result(result, monotonic_s())
        self._wake.set()

    async def route(self, worker_id: str, message: str) -> str:
        """Hand a message to a live worker. Errors: ToolError."""
        worker = self._workers.get(worker_id)
        if worker is None:
            live = ", ".join(self._workers) or "none"
            raise ToolError(
                f"no live worker has the id {worker_id!r}; live workers: {live}. Start one with spawn_worker"
            )
        return worker.route(message)

    def cancel(self, process_type: str, process_id: str, reason: str) -> bool:
        """End a live process of this channel on the wish of its own model, which needs no telling."""
        node = self._parts.tree.get(process_id)
        if node is None or node.parent is not self._node or str(node.kind) != process_type:
            return False
        self._quiet.add(node.id)
        node.cancel(reason)
        return True

    def _emit(self, kind: EventKind, /, **fields: str | int | bool | None) -> None:
        self._parts.events.emit(kind, agent_id=self._parts.id, channel_id=self.id, **fields)
