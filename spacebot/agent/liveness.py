"""Who still lives: branches and workers without a sign of life are ended, healthy ones never, however old.

A sign of life is a token, a tool's beginning, output or end, or a status. A model that thinks without a word gives
none, so a process inside a model call has more patience; that call has a time limit of its own as well. Workers
that wait for input are no concern of this file: they have a limit of their own. While nothing runs, this sleeps.

Flow:    branch or worker started -> tick, tick … until none is left -> sleep
         tick -> silent for too long -> Node.cancel(TIMED_OUT) -> the owner settles and its channel is told
Floor:   agent
Source:  process spec 10.6 and P54, design 3 and law 10
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from spacebot.agent.parts import AgentModel
from spacebot.base.clock import monotonic_s
from spacebot.base.events import EventBus, EventKind
from spacebot.base.tree import Node, NodeKind, NodeState, Tree
from spacebot.config.model import CortexConfig
from spacebot.llm.messages import ModelReply, ModelRequest, OnDelta, ProcessKind

MODEL_PATIENCE = 1.5  # times the usual limit, inside a model call: 900 s and 1800 s as the spec's design notes have it
_STIRS = frozenset({EventKind.BRANCH_STARTED, EventKind.WORKER_STARTED, EventKind.WORKER_STATUS})


class WatchedModel:
    """A model that remembers who is waiting for it."""

    def __init__(self, model: AgentModel) -> None:
        self._model = model
        self._asking: dict[str, int] = {}

    def is_asked_by(self, node: Node) -> bool:
        """Whether the node is inside a model call."""
        return node.id in self._asking

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        return self._model.context_window(process)

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer. Errors: ModelError."""
        if request.node is None:
            return await self._model.complete(request, on_delta)
        node_id = request.node.id
        self._asking[node_id] = self._asking.get(node_id, 0) + 1
        try:
            return await self._model.complete(request, on_delta)
        finally:
            self._asking[node_id] -= 1
            if not self._asking[node_id]:
                del self._asking[node_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """A process that was ended, and why; nothing of what it was about."""

    node_id: str
    kind: NodeKind
    channel_id: str | None
    silent_s: float
    limit_s: float
    was_in_model_call: bool


class Liveness:
    """The watch over one agent's branches and workers."""

    def __init__(
        self,
        tree: Tree,
        events: EventBus,
        agent_id: str,
        *,
        settings: Callable[[], CortexConfig],
        is_asking: Callable[[Node], bool],
        stalled: Callable[[Stalled], Awaitable[None]],
    ) -> None:
        """Take what the watch needs.

        Args:
            is_asking: whether a node is inside a model call.
            stalled: told of each process that was ended.
        """
        self._tree = tree
        self._events = events
        self._agent_id = agent_id
        self._settings = settings
        self._is_asking = is_asking
        self._stalled = stalled

    async def run(self) -> None:
        """Watch until cancelled."""
        with self._events.subscribe(_STIRS, buffer=1) as stirs:
            while True:
                while next(self._busy(), None) is None:
                    if await stirs.receive() is None:  # the program stops
                        await trio.sleep_forever()
                await trio.sleep(self._settings().tick_interval_secs)
                await self.tick()

    async def tick(self) -> None:
        """Look once at everybody."""
        config = self._settings()
        limits = {NodeKind.BRANCH: config.branch_timeout_secs, NodeKind.WORKER: config.worker_timeout_secs}
        for node in self._busy():
            if node.requested is not None:
                continue
            is_asking = self._is_asking(node)
            limit_s = limits[node.kind] * (MODEL_PATIENCE if is_asking else 1.0)
            silent_s = monotonic_s() - node.last_progress_at
            if silent_s < limit_s:
                continue
            where = "the model it asked did not answer" if is_asking else "it did not move"
            last = f"; its last status: {node.status}" if node.status else ""
            node.cancel(f"no sign of life for {silent_s:.0f} s, {where}{last}", NodeState.TIMED_OUT)
            await self._stalled(
                Stalled(
                    node_id=node.id,
                    kind=node.kind,
                    channel_id=node.channel_id,
                    silent_s=silent_s,
                    limit_s=limit_s,
                    was_in_model_call=is_asking,
                )
            )

    def _busy(self) -> Iterator[Node]:
        """This agent's branches and workers that have something to do."""
        for kind in (NodeKind.BRANCH, NodeKind.WORKER):
            for node in self._tree.of_kind(kind):
                if node.agent_id == self._agent_id and node.state is not NodeState.WAITING:
                    yield node
