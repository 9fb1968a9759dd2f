"""Workers as people and branches look at them: who worked where, on what, what it cost, step by step.

Every read takes a viewer; a conversation that was ever a direct chat is seen from itself, and by its owner elsewhere
(`message_index.VISIBLE`). How long transcripts are kept is stated here: of the newest `KEPT` ended workers, and
none longer than `KEPT_DAYS`; task, outcome and figures stay.

Flow:    WorkerArchive.page / get -> rows + what model calls cost -> WorkerEntry; steps_of(transcript)
Floor:   conversations
Source:  tools spec 8, 21 (worker_inspect); ours
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import StorageError
from spacebot.base.ids import NodeId
from spacebot.base.redaction import scrub
from spacebot.base.text import cut_bytes, size_bytes
from spacebot.base.tree import NodeState
from spacebot.conversations.message_index import VISIBLE, visible_to
from spacebot.conversations.rows import unpack
from spacebot.llm.history import from_json
from spacebot.llm.messages import Image, Part, Role, Text, ToolCall, ToolResult, Usage
from spacebot.memory.types import Viewer
from spacebot.storage.database import Connection, Database, Row

KEPT, KEPT_DAYS = 500, 90  # transcripts of ended workers, per agent
MIN_PREFIX = 4  # characters of an id that may stand for the whole
MOST_STEPS, MOST_CHARACTERS = 1000, 1_000_000  # of a transcript that is shown, the newest
MOST_LIVE = 500  # in one list
LIVE, ENDED = "live", "ended"  # states to ask for, beside those of the tree
_COLUMNS = (
    "w.id, w.channel_id, w.task, w.task_type, w.worker_type, w.directory, w.is_interactive, w.origin, w.state, "
    "w.status, w.result, w.tool_calls, w.started_at, w.completed_at, w.transcript IS NOT NULL AS has_transcript, "
    "c.display_name, coalesce(c.was_direct, 0) OR w.is_direct AS is_private"
)
_FROM = f"FROM worker_runs w LEFT JOIN channels c ON c.id = w.channel_id WHERE {VISIBLE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the model calls of a process came to; `models` served it, the latest first."""

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEntry:
    """A worker in a list."""

    id: NodeId
    channel_id: str | None
    channel_name: str | None
    is_private: bool  # its conversation is, or was, somebody's direct chat
    task: str
    task_type: str | None
    worker_type: str
    directory: str | None
    is_interactive: bool
    origin: NodeId | None
    state: NodeState
    status: str
    result: str | None
    tool_calls: int
    started_at: str
    completed_at: str | None
    has_transcript: bool
    cost: Cost

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.completed_at is None


class WorkerArchive:
    """Reads of the workers of one agent; their rows are written by `log.py`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def page(
        self,
        viewer: Viewer,
        *,
        limit: int,
        before: str | None = None,
        state: str | None = None,
        channel_id: str | None = None,
    ) -> list[WorkerEntry]:
        """Workers that the viewer may see: those that have not ended first, then the others, the newest first.

        Args:
            limit: how many that have ended.
            before: id of the last one already known: only ended ones that began before it.
            state: `LIVE`, `ENDED` or a state of the tree.
            channel_id: of one conversation only.
        """
        asked = f"{_FROM} AND (:of IS NULL OR w.channel_id = :of) AND (:state IS NULL OR w.state = :state)"
        values = {
            **visible_to(viewer),
            "of": channel_id,
            "state": None if state in (LIVE, ENDED) else state,
            "before": before,
            "limit": limit,
        }

        def read(c: Connection) -> list[WorkerEntry]:
            rows: list[Row] = []
            if before is None and state != ENDED:
                rows += c.execute(
                    f"SELECT {_COLUMNS} {asked} AND w.completed_at IS NULL "
                    f"ORDER BY w.started_at DESC, w.rowid DESC LIMIT {MOST_LIVE}",
                    values,
                )
            if state != LIVE:
                rows += c.execute(
                    f"SELECT {_COLUMNS} {asked} AND w.completed_at IS NOT NULL AND (:before IS NULL OR "
                    "(w.started_at, w.rowid) < (SELECT o.started_at, o.rowid FROM worker_runs o WHERE o.id = :before)) "
                    "ORDER BY w.started_at DESC, w.rowid DESC LIMIT :limit",
                    values,
                )
            costs = costs_of(c, [row["id"] for row in rows])
            return [_to_entry(row, costs) for row in rows]

        return await self._database.read(read)

    async def get(self, viewer: Viewer, worker_id: str) -> tuple[WorkerEntry, str | None] | None:
        """A worker with its transcript (JSON text); None when the viewer may see no such one."""

        def read(c: Connection) -> tuple[WorkerEntry, str | None] | None:
            row = c.execute(
                f"SELECT {_COLUMNS}, w.transcript {_FROM} AND w.id = :id", {**visible_to(viewer), "id": worker_id}
            ).fetchone()
            if row is None:
                return None
            return _to_entry(row, costs_of(c, [worker_id])), unpack(row["transcript"])

        return await self._database.read(read)

    async def costs(self, process_ids: Sequence[str]) -> dict[str, Cost]:
        """What processes cost, workers and branches alike; those that asked no model are not in it."""
        return await self._database.read(lambda c: costs_of(c, process_ids))

    async def with_transcript(self, ids: Collection[str]) -> set[str]:
        """Those of the ids whose worker's transcript is kept: not the erased ones, nor the old ones."""
        statement = "SELECT id FROM worker_runs WHERE id IN (SELECT value FROM json_each(?)) AND transcript IS NOT NULL"
        return {row[0] for row in await self._all(statement, (json.dumps(sorted(ids)),))}

    async def ids_like(self, words: str) -> list[str]:
        """At most two ids that begin with these words; one that is the same counts alone."""
        if len(words) < MIN_PREFIX:
            return []
        statement = "SELECT id FROM worker_runs WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id <> ?1 LIMIT 2"
        ids = [row[0] for row in await self._all(statement, (words.lower(),))]
        return ids[:1] if words.lower() in ids else ids

    async def of_conversations(self, channel_ids: Collection[str]) -> set[str]:
        """Ids of all workers of some conversations."""
        statement = "SELECT id FROM worker_runs WHERE channel_id IN (SELECT value FROM json_each(?))"
        return {row[0] for row in await self._all(statement, (json.dumps(sorted(channel_ids)),))}

    async def _all(self, statement: str, values: Sequence[object]) -> list[Row]:
        return await self._database.read(lambda c: c.execute(statement, values).fetchall())

    async def prune(self) -> int:
        """Drop the transcripts that are kept no longer; returns how many."""
        oldest = to_text(self._clock.now() - timedelta(days=KEPT_DAYS))

        def write(c: Connection) -> int:
            return c.execute(
                "UPDATE worker_runs SET transcript = NULL WHERE completed_at IS NOT NULL AND transcript IS NOT NULL "
                "AND (completed_at < ? OR id NOT IN (SELECT id FROM worker_runs WHERE completed_at IS NOT NULL "
                "AND transcript IS NOT NULL ORDER BY completed_at DESC LIMIT ?))",
                (oldest, KEPT),
            ).rowcount

        return await self._database.write(write)


def costs_of(c: Connection, process_ids: Sequence[str]) -> dict[str, Cost]:
    """What processes cost; those that asked no model are not in it."""
    if not process_ids:
        return {}
    rows = c.execute(
        "SELECT process_id, model, sum(requests) AS calls, sum(input_tokens) AS input_tokens, "
        "sum(output_tokens) AS output_tokens, sum(cache_read_tokens) AS cache_read_tokens, "
        "sum(cache_write_tokens) AS cache_write_tokens, sum(reasoning_tokens) AS reasoning_tokens "
        f"FROM usage WHERE process_id IN ({', '.join('?' * len(process_ids))}) "
        "GROUP BY process_id, model ORDER BY max(id)",
        tuple(process_ids),
    )
    costs: dict[str, Cost] = {}
    for row in rows:
        before = costs.get(row["process_id"], Cost())
        usage = Usage(**{name: row[name] for name in Usage.__dataclass_fields__})
        costs[row["process_id"]] = Cost(
            calls=before.calls + row["calls"], usage=before.usage + usage, models=(row["model"], *before.models)
        )
    return costs


def _to_entry(row: Row, costs: dict[str, Cost]) -> WorkerEntry:
    return WorkerEntry(
        id=NodeId(row["id"]),
        channel_id=row["channel_id"],
        channel_name=row["display_name"],
        is_private=bool(row["is_private"]),
        task=row["task"],
        task_type=row["task_type"],
        worker_type=row["worker_type"],
        directory=row["directory"],
        is_interactive=bool(row["is_interactive"]),
        origin=row["origin"],
        state=NodeState(row["state"]),
        status=row["status"],
        result=row["result"],
        tool_calls=row["tool_calls"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        has_transcript=bool(row["has_transcript"]),
        cost=costs.get(row["id"], Cost()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing in a transcript, secrets taken out.

    Args:
        kind: `told` (to the worker), `said` (by it), `call`, `result`.
        name: of the tool, for a call and its result.
    """

    kind: str
    text: str
    name: str | None = None
    call_id: str | None = None
    is_error: bool = False

    def to_json_object(self) -> dict[str, Any]:
        """The step for programs; fields without a meaning for its kind are left out."""
        fields = {"type": self.kind, "text": self.text, "name": self.name, "call_id": self.call_id}
        found: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
        return found | ({"is_error": True} if self.is_error else {})


@dataclass(frozen=True, slots=True)
class Steps:
    """A transcript; `left_out` parts before these are not in it."""

    steps: tuple[Step, ...]
    left_out: int = 0


def steps_of(
    transcript: str | None,
    *,
    call_bytes: int,
    result_bytes: int,
    text_bytes: int = 20_000,
    most: int = MOST_STEPS,
) -> Steps:
    """A transcript as steps; thinking and pictures are left out.

    Args:
        call_bytes, result_bytes, text_bytes: most of a call's arguments, of a result, of words.
        most: only the newest so many, and of those no more than `MOST_CHARACTERS` hold.

    Errors: StorageError when the transcript is damaged.
    """
    parts = [(message.role, part) for message in from_json(transcript or "[]") for part in message.parts]
    names = {part.id: part.name for _, part in parts if isinstance(part, ToolCall)}
    limits = {ToolCall: call_bytes, ToolResult: result_bytes, Text: text_bytes}
    steps: list[Step] = []
    room = MOST_CHARACTERS
    for place in range(len(parts) - 1, -1, -1):
        role, part = parts[place]
        step = _to_step(part, role, names, limits.get(type(part), text_bytes))
        if step is None:
            continue
        room -= len(step.text)
        if len(steps) == most or room < 0:
            return Steps(tuple(steps[::-1]), left_out=place + 1)
        steps.append(step)
    return Steps(tuple(steps[::-1]))


def _to_step(part: Part, role: Role, names: Mapping[str, str], limit: int) -> Step | None:
    match part:
        case Text(text) if text.strip():
            return Step(kind="told" if role is Role.USER else "said", text=_cut(text, limit))
        case ToolCall(call_id, name, arguments, raw):
            words = raw if arguments is None else json.dumps(dict(arguments), ensure_ascii=False)
            return Step(kind="call", text=_cut(words, limit), name=name, call_id=call_id)
        case ToolResult(call_id, text, is_error):
            return Step(
                kind="result", text=_cut(text, limit), name=names.get(call_id), call_id=call_id, is_error=is_error
            )
        case Image(media_type):
            return Step(kind="told", text=f"({media_type})")
    return None


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, without secrets: they are taken out first, lest half of one stays at the edge."""
    text = scrub(text)
    size = size_bytes(text)
    return text if size <= limit else f"{cut_bytes(text, limit)}… ({size} bytes in all)"


def readable_steps(transcript: str | None, **limits: int) -> Steps:
    """The same, where a damaged transcript is said instead of raised."""
    try:
        return steps_of(transcript, **limits)
    except StorageError as error:
        return Steps((Step(kind="said", text=str(error)),))
