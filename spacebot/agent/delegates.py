"""The branches and workers of one channel: started, routed to, cancelled, and their ends committed.

They belong to the channel, whoever asked for them. Each is registered and has its row before its code
runs; its end is committed, together with the result that people have to be told, before anybody hears of it.

Flow:   spawn -> node + row -> supervised task -> settle -> row + pending result -> channel
Floor:  agent
Source: process spec 6, 7 and 22.2
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spacebot.agent.branch import run_branch
from spacebot.agent.pacing import RETRY_S
from spacebot.agent.parts import AgentParts
from spacebot.agent.status import StatusBlock
from spacebot.agent.toolsets import branch_tools, open_worker_tools
from spacebot.agent.turn import Turn
from spacebot.agent.worker import Worker
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import StorageError, ToolError
from spacebot.base.events import EventKind, EventValue
from spacebot.base.ids import ConversationId, NodeId, TurnId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import BranchRun, PendingResult, WorkerRun
from spacebot.llm.complexity import Complexity
from spacebot.llm.messages import ModelMessage
from spacebot.memory.types import Provenance
from spacebot.tools.delegation import TwinError

if TYPE_CHECKING:
    from spacebot.agent.opencode_worker import OpenCodeWorker

log = logging.getLogger(__name__)

EVENT_BYTES = 4000  # of a result in an event
_RECIPE = re.compile(r"<(?=/?\s*recipe)", re.IGNORECASE)


class Delegates:
    """What one channel has set to work; fills the seam `ChannelHandle` of the delegation tools."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        channel_id: ConversationId,
        *,
        status: StatusBlock,
        fork: Callable[[], list[ModelMessage]],
        turn: Callable[[], Turn | None],
        ended: Callable[[PendingResult | None], None],
    ) -> None:
        """Take what is needed of the channel.

        Args:
            node: the channel's own; branches and workers become its children.
            fork: gives the conversation as it stands.
            turn: gives the running turn, which is what asks.
            ended: told of each end, with the result when people have to be told.
        """
        self._parts = parts
        self._node = node
        self._channel_id = channel_id
        self._status = status
        self._fork = fork
        self._turn = turn
        self._ended = ended
        self._workers: dict[str, Worker | OpenCodeWorker] = {}
        self._branches: dict[str, BranchRun] = {}
        self._spawning: set[str] = set()
        self._uncommitted = 0  # ends of processes that the disk refused
        self._publishing = 0  # results that are just being written
        self._quiet: set[str] = set()  # processes whose end nobody has to be told
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()

    @property
    def is_busy(self) -> bool:
        """Whether something is just being started, or its end or result still has to be written."""
        return bool(self._spawning or self._uncommitted or self._publishing)

    def drop_all_of(self, turn_id: TurnId) -> None:
        """End what a turn has set to work, without a word: the turn is taken again."""
        for run in self._runs():
            if run.turn_id == turn_id and (node := self._parts.tree.get(run.id)) is not None:
                self._quiet.add(run.id)
                node.cancel("its turn is taken again")

    def dismiss_all(self, reason: str) -> None:
        """End all that is left, without a word."""
        for run in self._runs():
            if (node := self._parts.tree.get(run.id)) is not None:
                self._quiet.add(run.id)
                node.cancel(reason)

    def _runs(self) -> list[BranchRun | WorkerRun]:
        return [*self._branches.values(), *(worker.run_row for worker in self._workers.values())]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the parent of all branches and workers until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started.set()
            task_status.started()
            await trio.sleep_forever()

    async def spawn_branch(self, description: str) -> str:
        """Start a branch; returns its id once its row is on disk."""
        turn = self._turn()
        if turn is not None:
            turn.has_spawned = True
        run = BranchRun(
            id=NodeId(""), channel_id=self._channel_id, description=description,
            turn_id=turn.id if turn else None, reply_to=turn.reply_to if turn else None,
        )  # fmt: skip
        return await self.start_branch(run, turn.complexity if turn else None)

    async def start_branch(self, run: BranchRun, complexity: Complexity | None = None) -> str:
        """Start a branch, or run one again whose row has an id already."""
        await self._started.wait()
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
        self._emit(EventKind.BRANCH_STARTED, branch_id=node.id, description=run.description, turn_id=run.turn_id)
        self._nursery.start_soon(self._run_branch, node, run, self._fork(), complexity)
        return node.id

    async def _run_branch(
        self, node: Node, run: BranchRun, fork: Sequence[ModelMessage], complexity: Complexity | None
    ) -> None:
        async def settle(outcome: Outcome) -> None:
            outcome = replace(outcome, text=scrub(outcome.text))
            self._branches.pop(node.id, None)
            tell = outcome.state is not NodeState.INTERRUPTED and node.id not in self._quiet
            await self._commit(partial(finish, outcome, tell), node.id, what="end of process")

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
            standing = await self._parts.conversations.standing(self._channel_id, run.reply_to)
            provenance = Provenance(
                channel_id=self._channel_id,
                user_id=standing.user_id,
                message_id=run.reply_to,
                is_direct=standing.is_direct,
            )
            people = await self._parts.conversations.participants(self._channel_id)
            tools = branch_tools(self._parts, self, node, provenance, people)
            return await run_branch(
                self._parts, node, run, fork=fork, tools=tools, viewer=provenance.viewer, complexity=complexity
            )

        await self._parts.tree.supervise(node, think, settle=settle)

    async def _commit(self, write: Callable[[], Awaitable[None]], process_id: str, *, what: str) -> None:
        """Write what a process came to; what the disk refuses is kept and tried again."""
        try:
            await write()
        except StorageError as error:
            log.error("%s not written, it is tried again", what, extra=kv(id=process_id, error=str(error)))
            assert self._nursery is not None
            self._uncommitted += 1
            self._nursery.start_soon(self._commit_later, write)

    async def _commit_later(self, write: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(RETRY_S)
            try:
                await write()
            except StorageError:
                continue
            self._uncommitted -= 1
            return

    async def spawn_worker(
        self,
        task: str,
        *,
        is_interactive: bool,
        task_type: str | None,
        skill: str | None = None,
        directory: str | None = None,
        origin: Node | None = None,
    ) -> str:
        """Start a worker; returns its id once its row is on disk.

        Args:
            skill: goes whole into what it reads first.
            directory: where OpenCode does the work; None for the built-in worker.

        Errors: LimitReachedError; TwinError when the same task runs already (P55), or another one has the directory
            (P62); ToolError for an unknown skill, a directory out of reach, or when OpenCode cannot work here.
        """
        key = " ".join(task.split()).casefold()
        twin = next(
            (n for n in self._status.live(NodeKind.WORKER) if " ".join(n.description.split()).casefold() == key), None
        )
        if twin is not None or key in self._spawning:
            raise TwinError(
                f"a worker does exactly this already ({twin.id if twin else 'just starting'}); "
                "wait for its result, or use route to add to it",
                twin.id if twin else None,
            )
        self._spawning.add(key)
        try:
            brief = None if skill is None else await self._brief(task, skill)
            cause = self._branches.get(origin.id) if origin else None
            turn = self._turn()
            if turn is not None and origin is None:
                turn.has_spawned = True
            run = WorkerRun(
                id=NodeId(""), channel_id=self._channel_id,
                task=task, task_type=task_type, is_interactive=is_interactive,
                turn_id=cause.turn_id if cause else turn.id if turn else None,
                reply_to=cause.reply_to if cause else turn.reply_to if turn else None,
                origin=origin.id if origin else None,
                worker_type="builtin" if directory is None else "opencode",
                directory=None if directory is None else await self._open_directory(directory),
            )  # fmt: skip
            return await self.start_worker(run, brief=brief)
        finally:
            self._spawning.discard(key)

    def worker_abilities(self) -> tuple[str, ...]:
        """What workers have beside commands and files, as the live configuration has it."""
        settings = self._parts.settings()
        has = {"a browser": settings.browser.enabled, "web search": settings.brave_search_key is not None}
        return tuple(name for name, is_there in has.items() if is_there)

    def routed_task_types(self) -> tuple[str, ...]:
        """Kinds of work for which the owner has chosen a model."""
        return tuple(sorted(self._parts.settings().routing.task_overrides))

    def offers_opencode(self) -> bool:
        """Whether workers may be OpenCode."""
        return self._parts.opencode.is_offered

    async def _open_directory(self, text: str) -> str:
        containment = self._parts.containment
        containment.backend = await self._parts.probe()
        await self._parts.opencode.check(containment)
        return str(await self._parts.opencode.find_folder(text, containment))

    async def _brief(self, task: str, name: str) -> str:
        """The task with a skill's recipe; it stands in the transcript, so it outlasts a restart."""
        skill, content = await self._parts.skills.read(name)
        content = _RECIPE.sub("‹", content)  # its frame is ours
        return self._parts.prompts.render(
            "fragments/skill", skill_name=skill.name, folder=str(skill.folder), content=content, task=task
        )

    async def start_worker(self, run: WorkerRun, *, brief: str | None = None) -> str:
        """Start a worker, or take one up again whose row has an id already."""
        await self._started.wait()
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
            is_new = not run.id
            run = replace(run, id=node.id)
            if run.worker_type == "opencode":  # most programs never have such a worker
                await trio.to_thread.run_sync(import_module, "spacebot.agent.opencode_worker")
            worker = self._make_worker(node, run, brief)
            if is_new:
                await self._parts.conversations.start_worker(run)
        except BaseException:
            self._parts.opencode.give_back(node.id)
            self._parts.tree.remove(node)
            raise
        self._workers[node.id] = worker
        self._parts.workers.enter(worker)
        self._emit(
            EventKind.WORKER_STARTED,
            worker_id=node.id,
            task=cut_bytes(run.task, EVENT_BYTES),
            task_type=run.task_type,
            worker_type=run.worker_type,
            turn_id=run.turn_id,
        )
        self._nursery.start_soon(self._run_worker, worker)
        return node.id

    def _make_worker(self, node: Node, run: WorkerRun, brief: str | None) -> "Worker | OpenCodeWorker":
        """The worker itself. Errors: TwinError when its directory is taken; StorageError for a damaged transcript."""

        async def publish(outcome: Outcome) -> None:
            await self._publish(run, outcome)

        if run.worker_type == "opencode":
            claim = self._parts.opencode.claim(Path(run.directory or ""), node.id)
            from spacebot.agent.opencode_worker import OpenCodeWorker

            return OpenCodeWorker(
                self._parts, node, run, claim=claim, brief=brief, publish=publish, changed=self._worker_changed
            )
        is_fork = self._parts.settings().worker.context == "fork" and not run.transcript
        return Worker(
            self._parts,
            node,
            run,
            tools=partial(open_worker_tools, self._parts, node),
            fork=self._fork() if is_fork else (),
            brief=brief,
            publish=publish,
            changed=self._worker_changed,
        )

    async def _run_worker(self, worker: "Worker | OpenCodeWorker") -> None:
        node, run = worker.node, worker.run_row

        async def settle(outcome: Outcome) -> None:
            if outcome is node.requested and outcome.state is NodeState.TIMED_OUT:  # ended from outside
                outcome = replace(outcome, text=f"{outcome.text}. So far: {worker.found}")
            outcome = replace(outcome, text=scrub(outcome.text))
            self._workers.pop(node.id, None)
            self._parts.workers.leave(worker)
            self._parts.opencode.give_back(node.id)
            is_stop = outcome.state is NodeState.INTERRUPTED
            if is_stop and worker.is_waiting:
                return  # its row says "waiting"; the next start finds it so
            if is_stop:
                worker.keep_unread()
            retired = run.is_interactive and outcome.state is NodeState.DONE
            tell = not (is_stop or retired or node.id in self._quiet)
            await self._commit(partial(finish, outcome, tell), node.id, what="end of process")
            if not is_stop:
                await self._parts.workers.ended(run, outcome, transcript=worker.transcript, tool_calls=node.tool_calls)
                assert self._nursery is not None
                self._nursery.start_soon(self._parts.workers.tidy)

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
                worker_type=run.worker_type,
                duration_s=round(monotonic_s() - node.started_monotonic, 3),
            )

        await self._parts.tree.supervise(node, worker.run, settle=settle)

    async def _publish(self, run: WorkerRun, outcome: Outcome) -> None:
        """Commit a finished piece of work of a worker that lives on."""
        worker = self._workers[run.id]
        outcome = replace(outcome, text=scrub(outcome.text))

        async def write() -> None:
            result = await self._parts.conversations.add_result(
                run,
                outcome,
                status=worker.node.status,
                transcript=worker.transcript,
                tool_calls=worker.node.tool_calls,
            )
            self._ended(result)
            self._emit(EventKind.WORKER_IDLE, worker_id=run.id, result=cut_bytes(result.text, EVENT_BYTES))

        self._publishing += 1  # it waits already, and its result is not among those to be told yet
        try:
            await self._commit(write, run.id, what="result")
        finally:
            self._publishing -= 1

    def _worker_changed(self, worker: "Worker | OpenCodeWorker") -> None:
        self._emit(
            EventKind.WORKER_STATUS, worker_id=worker.node.id, status=worker.node.status, state=str(worker.node.state)
        )

    def _note_end(self, node: Node, outcome: Outcome, result: PendingResult | None) -> None:
        self._quiet.discard(node.id)
        self._status.complete(node, outcome, self._parts.clock.now(), relayed=result is None)
        self._ended(result)

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

    def _emit(self, kind: EventKind, /, **fields: EventValue) -> None:
        self._parts.events.emit(kind, agent_id=self._parts.id, channel_id=self._channel_id, **fields)
