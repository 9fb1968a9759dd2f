"""The supervision tree: every running thing is a node with a parent, a state and one end.

A node is registered before its code runs and ends in exactly one terminal state. The state is
settled (committed by the owner) before anybody is told. Limits, cancelling, routing, the status
block, `spacebot top`, the API and the metrics all read this one registry (design 3).

Flow:    Tree.add -> Tree.supervise(node, work, settle) -> Outcome
Floor:   base
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import trio

from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import LimitReachedError, SpacebotError
from spacebot.base.ids import NodeId, new_uuid
from spacebot.base.redaction import scrub

log = logging.getLogger(__name__)

SETTLE_S = 5.0  # an end that cannot be committed in this time is left to the repair at the next start


class NodeKind(StrEnum):
    """What a node is."""

    DAEMON = "daemon"
    SERVICE = "service"
    AGENT = "agent"
    CHANNEL = "channel"
    TURN = "turn"
    BRANCH = "branch"
    WORKER = "worker"
    COMPACTION = "compaction"
    PERSISTENCE = "persistence"
    CORTEX = "cortex"
    INGESTION = "ingestion"


class NodeState(StrEnum):
    """Where a node is in its life; from `DONE` on the states are terminal."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"  # for input or work
    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"  # the program stopped; the work is taken up at the next start

    @property
    def is_terminal(self) -> bool:
        """Whether a node in this state has ended."""
        return self not in (NodeState.STARTING, NodeState.RUNNING, NodeState.WAITING)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a node ended: a terminal state and the text that goes with it (a result, or a reason)."""

    state: NodeState
    text: str = ""

    def __post_init__(self) -> None:
        if not self.state.is_terminal:
            raise ValueError(f"{self.state!r} is not a terminal state")

    @property
    def is_success(self) -> bool:
        """Whether the work was done, at least in part."""
        return self.state in (NodeState.DONE, NodeState.PARTIAL)


class Node:
    """One running thing. Only its owner and the tree change it."""

    __slots__ = (
        "_requested", "agent_id", "cancel_scope", "channel_id", "children", "description", "id", "input_tokens",
        "kind", "last_progress_at", "model_calls", "outcome", "output_tokens", "parent", "started_at",
        "started_monotonic", "state", "status", "tool_calls",
    )  # fmt: skip

    def __init__(
        self,
        kind: NodeKind,
        node_id: NodeId,
        parent: "Node | None",
        description: str,
        *,
        started_at: datetime,
        agent_id: str | None,
        channel_id: str | None,
    ) -> None:
        self.kind = kind
        self.id = node_id
        self.parent = parent
        self.description = description
        self.agent_id = agent_id
        self.channel_id = channel_id
        self.started_at = started_at
        self.started_monotonic = self.last_progress_at = monotonic_s()
        self.state = NodeState.STARTING
        self.status = ""
        self.cancel_scope = trio.CancelScope()
        self.children: dict[NodeId, Node] = {}
        self.outcome: Outcome | None = None
        self.model_calls = self.tool_calls = self.input_tokens = self.output_tokens = 0
        self._requested: Outcome | None = None

    def progress(self, status: str | None = None) -> None:
        """Note a sign of life: a token, a tool event or a status text."""
        self.last_progress_at = monotonic_s()
        if status is not None:
            self.status = status

    def cancel(self, reason: str, state: NodeState = NodeState.CANCELLED) -> None:
        """Ask the node to end; everything below it ends too. The first request names the outcome."""
        if self._requested is None:
            self._requested = Outcome(state, reason)
        self.cancel_scope.cancel()

    @property
    def requested(self) -> Outcome | None:
        """The end that was asked for, if any."""
        return self._requested


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What observers see of a node; spans in seconds."""

    id: str
    kind: str
    parent_id: str | None
    agent_id: str | None
    channel_id: str | None
    description: str
    state: str
    status: str
    started_at: datetime
    age_s: float
    idle_s: float
    model_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int


class Tree:
    """The one registry of running things."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._nodes: dict[NodeId, Node] = {}
        self._observers: list[Callable[[Node], None]] = []

    @contextmanager
    def observed(self, ended: Callable[[Node], None]) -> Iterator[None]:
        """Have a function called for each node that has ended, with its outcome, while the block runs.

        Args:
            ended: counts or notes; does nothing that could wait or fail.
        """
        self._observers.append(ended)
        try:
            yield
        finally:
            self._observers.remove(ended)

    def add(
        self,
        kind: NodeKind,
        description: str,
        *,
        parent: Node | None = None,
        node_id: str | None = None,
        agent_id: str | None = None,
        channel_id: str | None = None,
        limit: int | None = None,
    ) -> Node:
        """Register a node before its code runs.

        Args:
            parent: the node that owns it; agent and channel are inherited from it.
            node_id: a name of its own; a random id when None.
            limit: how many live children of this kind the parent may have, this one included.

        Errors: LimitReachedError; ValueError when the id is taken (a mistake of the caller).
        """
        if parent is not None and limit is not None and self.count(parent, kind) >= limit:
            raise LimitReachedError(
                f"{parent.id} already has {limit} live {kind} processes, which is its limit; "
                "wait for one to finish or cancel one",
                limit=limit,
            )
        key = NodeId(node_id or new_uuid())
        if key in self._nodes:
            raise ValueError(f"node {key!r} is registered already")
        node = Node(
            kind,
            key,
            parent,
            description,
            started_at=self._clock.now(),
            agent_id=agent_id or (parent.agent_id if parent else None),
            channel_id=channel_id or (parent.channel_id if parent else None),
        )
        self._nodes[key] = node
        if parent is not None:
            parent.children[key] = node
        return node

    def remove(self, node: Node) -> None:
        """Take a node out; a newer node of the same id stays."""
        if self._nodes.get(node.id) is node:
            del self._nodes[node.id]
        if node.parent is not None and node.parent.children.get(node.id) is node:
            del node.parent.children[node.id]
        if node.outcome is not None:
            for ended in self._observers:
                ended(node)

    def get(self, node_id: str) -> Node | None:
        """The live node of this id."""
        return self._nodes.get(NodeId(node_id))

    def count(self, parent: Node, kind: NodeKind) -> int:
        """Number of live children of one kind."""
        return sum(1 for child in parent.children.values() if child.kind is kind)

    def of_kind(self, kind: NodeKind) -> Iterator[Node]:
        """All live nodes of one kind, oldest first."""
        return (node for node in tuple(self._nodes.values()) if node.kind is kind)

    def cancel(self, node_id: str, reason: str) -> bool:
        """Ask a node to end; False when there is no such node."""
        node = self.get(node_id)
        if node is None:
            return False
        node.cancel(reason)
        return True

    def view(self) -> list[NodeView]:
        """A copy of the whole tree, parents before their children."""
        now = monotonic_s()
        views: list[NodeView] = []

        def visit(node: Node) -> None:
            views.append(_view(node, now))
            for child in tuple(node.children.values()):
                visit(child)

        for root in tuple(self._nodes.values()):
            if root.parent is None:
                visit(root)
        return views

    async def supervise(
        self,
        node: Node,
        work: Callable[[], Awaitable[Outcome]],
        *,
        settle: Callable[[Outcome], Awaitable[None]],
    ) -> Outcome:
        """Run a node's work and bring it to exactly one end.

        The end is, in this order: what `work` returned; `FAILED` when it raised; what `Node.cancel`
        asked for; `INTERRUPTED` when the cancellation came from further up.

        Args:
            settle: commits the end and then tells the parent; runs shielded, for at most `SETTLE_S`
                seconds, also when the node is cancelled.

        Cancel: a cancellation from above passes after `settle`.
        """
        outcome: Outcome | None = None
        node.state = NodeState.RUNNING
        try:
            with node.cancel_scope:
                outcome = await work()
        except Exception as error:  # boundary: process
            outcome = Outcome(NodeState.FAILED, describe(error))
            log.error("process failed", exc_info=error, extra={"kv": {"kind": str(node.kind), "id": node.id}})
        finally:
            if outcome is None:
                outcome = node.requested or Outcome(NodeState.INTERRUPTED, "the program is stopping")
            node.outcome = outcome
            node.state = outcome.state
            try:
                with trio.move_on_after(SETTLE_S, shield=True) as scope:
                    await settle(outcome)
                if scope.cancelled_caught:
                    log.error("end of process not committed in time", extra={"kv": {"id": node.id}})
            finally:
                self.remove(node)
        return outcome


def describe(error: BaseException) -> str:
    """One line on an error for a parent or a person: our own errors speak for themselves, others by type."""
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return describe(error.exceptions[0])
    if isinstance(error, SpacebotError):
        return scrub(str(error))
    return f"internal error ({type(error).__name__}); the log has the details"


def _view(node: Node, now: float) -> NodeView:
    return NodeView(
        id=node.id,
        kind=str(node.kind),
        parent_id=node.parent.id if node.parent else None,
        agent_id=node.agent_id,
        channel_id=node.channel_id,
        description=node.description,
        state=str(node.state),
        status=node.status,
        started_at=node.started_at,
        age_s=now - node.started_monotonic,
        idle_s=now - node.last_progress_at,
        model_calls=node.model_calls,
        tool_calls=node.tool_calls,
        input_tokens=node.input_tokens,
        output_tokens=node.output_tokens,
    )
