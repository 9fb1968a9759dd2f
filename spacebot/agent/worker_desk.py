"""The workers of one agent, for its owner and its branches: those that live, and what the others left.

Flow:    Delegates registers what lives here; API, command line and `worker_inspect` -> WorkerDesk -> rows, or the live
         worker itself; an end -> log file, now and then pruning
Floor:   agent
Source:  tools spec 8, 21; ours
"""

import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio

from spacebot.agent.worker_log import EndedWorker, WorkerLog
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode, cut_bytes
from spacebot.base.tree import Node, NodeState, Outcome
from spacebot.config.model import WorkerLogMode
from spacebot.conversations.records import WorkerRun
from spacebot.conversations.worker_runs import Cost, Steps, WorkerArchive, WorkerEntry, readable_steps
from spacebot.memory.types import EVERYTHING, Viewer

log = logging.getLogger(__name__)

PRUNE_EVERY_S = 3600.0
CALL_BYTES, RESULT_BYTES = 2000, 20_000
MESSAGE_CHARACTERS = 50_000
OUTPUT_LINES, LINE_BYTES = 100, 2000
_HEARD = frozenset({EventKind.TOOL_STARTED, EventKind.TOOL_OUTPUT, EventKind.TOOL_COMPLETED})


class LiveWorker(Protocol):
    """A worker that has not ended, whatever does its work."""

    @property
    def node(self) -> Node:
        """The worker in the supervision tree."""
        ...

    @property
    def transcript(self) -> str:
        """All that was said so far, as JSON text of model messages."""
        ...

    def route(self, message: str) -> str:
        """Hand in a message; returns what will happen with it. Errors: ToolError."""
        ...


class WorkerDesk:
    """One instance per agent."""

    def __init__(
        self,
        archive: WorkerArchive,
        files: WorkerLog,
        clock: Clock,
        *,
        mode: Callable[[], WorkerLogMode],
    ) -> None:
        self.archive = archive
        self._files = files
        self._clock = clock
        self._mode = mode
        self._live: dict[str, LiveWorker] = {}
        self._output: dict[str, deque[str]] = {}  # of the command that each live worker runs, the newest lines
        self._pruned_at: float | None = None

    def enter(self, worker: LiveWorker) -> None:
        """A worker begins to live."""
        self._live[worker.node.id] = worker

    def leave(self, worker: LiveWorker) -> None:
        """A worker lives no more."""
        if self._live.get(worker.node.id) is worker:
            del self._live[worker.node.id]
            self._output.pop(worker.node.id, None)

    async def listen(self, events: EventBus, agent_id: str) -> None:
        """Keep the newest output of what live workers run, for who comes to watch. Never returns."""

        def hear(event: ProcessEvent) -> None:
            worker_id = str(event.fields.get("process_id"))
            if event.agent_id != agent_id or worker_id not in self._live:
                return
            if event.kind is EventKind.TOOL_OUTPUT:
                line = cut_bytes(str(event.fields.get("line")), LINE_BYTES)
                self._output.setdefault(worker_id, deque(maxlen=OUTPUT_LINES)).append(line)
            else:
                self._output.pop(worker_id, None)

        with events.counted(_HEARD, hear):
            await trio.sleep_forever()

    def output_of(self, worker_id: str) -> list[str]:
        """The newest lines of what a live worker's command has written so far."""
        return list(self._output.get(worker_id, ()))

    async def page(
        self, *, limit: int, before: str | None = None, state: str | None = None, viewer: Viewer = EVERYTHING
    ) -> list[WorkerEntry]:
        """Workers, the live ones first; see `WorkerArchive.page`. Errors: StorageError."""
        entries = await self.archive.page(viewer, limit=limit, before=before, state=state)
        return [self._as_it_lives(entry) for entry in entries]

    async def resolve(self, words: str) -> str:
        """The id that begins with these words. Errors: NotFoundError, RefusedError when several do, StorageError."""
        ids = await self.archive.ids_like(words)
        if len(ids) > 1:
            raise RefusedError(f"several workers begin with {words[:40]!r}; write more of the id")
        if not ids:
            raise NotFoundError(f"there was no worker {words[:80]!r}; `spacebot worker list` shows them")
        return ids[0]

    async def entry(self, worker_id: str) -> WorkerEntry:
        """One worker. Errors: NotFoundError, StorageError."""
        return (await self._find(worker_id))[0]

    async def show(self, worker_id: str) -> tuple[WorkerEntry, Steps]:
        """A worker with its transcript as steps. Errors: NotFoundError, StorageError."""
        entry, transcript = await self._find(worker_id)
        if (live := self._live.get(worker_id)) is not None:
            transcript = live.transcript
        read = partial(readable_steps, transcript, call_bytes=CALL_BYTES, result_bytes=RESULT_BYTES)
        return entry, await trio.to_thread.run_sync(read)

    async def costs(self, process_ids: Collection[str]) -> dict[str, Cost]:
        """What processes cost in tokens, branches too. Errors: StorageError."""
        return await self.archive.costs(sorted(process_ids))

    def route(self, worker_id: str, message: str) -> str:
        """Hand a message of the owner to a live worker; returns what will happen with it.

        Errors: NotFoundError, RefusedError for an empty or too long one, ToolError when it takes none.
        """
        message = clean_unicode(message).strip()
        if not 1 <= len(message) <= MESSAGE_CHARACTERS:
            raise RefusedError(f"a message to a worker has 1 to {MESSAGE_CHARACTERS} characters")
        worker = self._live.get(worker_id)
        if worker is None:
            raise NotFoundError(f"no worker {worker_id[:80]!r} lives any more; ask the agent to begin a new one")
        return worker.route(message)

    async def ended(self, run: WorkerRun, outcome: Outcome, *, transcript: str, tool_calls: int) -> None:
        """Leave the file that the owner wants of a worker that has ended; a disk that refuses it stops nothing."""
        moment = self._clock.now().strftime("%Y%m%d_%H%M%S")
        worker = EndedWorker(run=run, outcome=outcome, transcript=transcript, tool_calls=tool_calls, moment=moment)
        try:
            await trio.to_thread.run_sync(self._files.write, worker, self._mode())
        except OSError as error:
            log.warning("worker's log file not written", extra=kv(id=run.id, error=error.strerror or str(error)))

    async def tidy(self) -> None:
        """Prune, unless that was done within the hour."""
        if self._pruned_at is not None and monotonic_s() - self._pruned_at < PRUNE_EVERY_S:
            return
        self._pruned_at = monotonic_s()
        try:
            await self.prune()
        except (StorageError, OSError) as error:
            log.warning("old transcripts of workers not pruned", extra=kv(error=str(error)))

    async def prune(self) -> int:
        """Drop old transcripts, and files whose transcript is gone; returns how many of both.

        Errors: StorageError, OSError.
        """
        dropped = await self.archive.prune()
        named = await trio.to_thread.run_sync(self._files.ids)
        gone = named - await self.archive.with_transcript(named)
        if gone:
            dropped += await trio.to_thread.run_sync(self._files.drop, gone)
        return dropped

    async def forget_conversations(self, channel_ids: Collection[str]) -> None:
        """Delete the files of all workers of some conversations. Errors: StorageError, also for a disk that refuses."""
        ids = await self.archive.of_conversations(channel_ids)
        try:
            await trio.to_thread.run_sync(self._files.drop, ids)
        except OSError as error:
            raise StorageError(f"log files of workers cannot be deleted: {error.strerror}") from error

    async def _find(self, worker_id: str) -> tuple[WorkerEntry, str | None]:
        found = await self.archive.get(EVERYTHING, worker_id)
        if found is None:
            raise NotFoundError(f"there was no worker {worker_id[:80]!r}; GET /api/agents/workers lists them")
        return self._as_it_lives(found[0]), found[1]

    def _as_it_lives(self, entry: WorkerEntry) -> WorkerEntry:
        """A live worker's row lags behind by up to a step."""
        if (live := self._live.get(entry.id)) is None or not entry.is_live:
            return entry
        node = live.node
        state = NodeState.RUNNING if node.state is NodeState.STARTING else node.state
        return replace(entry, state=state, status=node.status or entry.status, tool_calls=node.tool_calls)
