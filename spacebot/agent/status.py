"""The status block: what a channel's branches and workers are doing, for the model, the API and people.

It is a view of the supervision tree plus a short list of what finished. A finished item is hidden
from the model once its result was told, and forgotten after a while, so that old results do not steer later turns
(process spec 8, P19, P20).

Floor: agent
"""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from spacebot.base.clock import monotonic_s, to_text
from spacebot.base.text import cut_bytes, preview
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome

KEPT = 10
SHOWN = 5
SUMMARY_BYTES = 500
RELAYED_S = 300.0  # a told result stays visible to people this long


@dataclass(slots=True, kw_only=True)
class CompletedItem:
    """A branch or worker that ended."""

    id: str
    item_type: str
    description: str
    completed_at: datetime
    result_summary: str
    state: NodeState
    relayed_at: float | None = None  # monotonic seconds


class StatusBlock:
    """One channel's view of its own processes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._completed: deque[CompletedItem] = deque(maxlen=KEPT)

    def complete(self, node: Node, outcome: Outcome, completed_at: datetime, *, relayed: bool) -> None:
        """Move a process to the finished ones."""
        self._completed.append(
            CompletedItem(
                id=node.id,
                item_type=str(node.kind),
                description=node.description,
                completed_at=completed_at,
                result_summary=cut_bytes(outcome.text, SUMMARY_BYTES),
                state=outcome.state,
                relayed_at=monotonic_s() if relayed else None,
            )
        )

    def mark_relayed(self, process_ids: set[str]) -> None:
        """Note that people were told these results."""
        for item in self._completed:
            if item.id in process_ids and item.relayed_at is None:
                item.relayed_at = monotonic_s()

    def live(self, kind: NodeKind) -> list[Node]:
        """Running processes of one kind, oldest first."""
        return [node for node in self._node.children.values() if node.kind is kind]

    def for_model(self, *, without: Set[str] = frozenset()) -> dict[str, list[dict[str, Any]]]:
        """Variables of the status template; empty lists when nothing is going on.

        Args:
            without: finished processes that need no line, because their results stand beside it.
        """
        return {
            "workers": [
                {
                    "id": node.id,
                    "task": preview(node.description, 200),
                    "state": str(node.state),
                    "status": node.status,
                    "tool_calls": node.tool_calls,
                    "started": f"{node.started_at:%H:%M} UTC",
                }
                for node in self.live(NodeKind.WORKER)
            ],
            "branches": [
                {
                    "id": node.id,
                    "description": preview(node.description, 200),
                    "started": f"{node.started_at:%H:%M:%S} UTC",
                }
                for node in self.live(NodeKind.BRANCH)
            ],
            "completed": [
                {"id": item.id, "kind": item.item_type, "state": str(item.state), "summary": item.result_summary}
                for item in reversed(self._completed)
                if item.relayed_at is None and item.id not in without
            ][:SHOWN],
        }

    def to_json_object(self) -> dict[str, list[dict[str, Any]]]:
        """The form of `GET /api/channels/status` (control spec 4.5)."""
        now = monotonic_s()
        return {
            "active_branches": [
                {"id": node.id, "started_at": to_text(node.started_at), "description": node.description}
                for node in self.live(NodeKind.BRANCH)
            ],
            "active_workers": [
                {
                    "id": node.id,
                    "task": node.description,
                    "status": node.status or str(node.state),
                    "state": str(node.state),
                    "started_at": to_text(node.started_at),
                    "notify_on_complete": True,
                    "tool_calls": node.tool_calls,
                }
                for node in self.live(NodeKind.WORKER)
            ],
            "completed_items": [
                {
                    "id": item.id,
                    "item_type": item.item_type.capitalize(),
                    "description": item.description,
                    "completed_at": to_text(item.completed_at),
                    "result_summary": item.result_summary,
                    "state": str(item.state),
                }
                for item in self._completed
                if item.relayed_at is None or now - item.relayed_at < RELAYED_S
            ],
        }
