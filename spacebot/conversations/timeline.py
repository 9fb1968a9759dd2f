"""A conversation as its owner reads it: messages, branches and workers in one order, page by page; and the list of all.

Messages keep the order of their numbers and runs that of their beginning, whatever a clock did; between the two the
times decide. A cursor has a place in each, so that no page loses or repeats anything.

Floor:  conversations
Source: process spec 14.3 and P36; control spec 4.5
"""

from dataclasses import dataclass
from typing import Any

from spacebot.base.errors import RefusedError
from spacebot.base.ids import ConversationId
from spacebot.conversations.records import ChannelRecord, LoggedMessage
from spacebot.conversations.rows import to_logged
from spacebot.storage.database import Connection

_END = 10**17  # beyond every number of a message
_LATE = "z"  # sorts behind every time
_RUNS = """
SELECT * FROM (
    SELECT id, 'branch_run' AS type, turn_id, reply_to, description AS words, conclusion AS result, state, tool_calls,
           NULL AS origin, NULL AS worker_type, started_at, completed_at
    FROM branch_runs WHERE channel_id = :channel AND (started_at, id) < (:at, :id)
    ORDER BY started_at DESC, id DESC LIMIT :limit)
UNION ALL SELECT * FROM (
    SELECT id, 'worker_run', turn_id, reply_to, task, result, state, tool_calls, origin, worker_type, started_at,
           completed_at
    FROM worker_runs WHERE channel_id = :channel AND (started_at, id) < (:at, :id)
    ORDER BY started_at DESC, id DESC LIMIT :limit)
ORDER BY started_at DESC, id DESC LIMIT :limit
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A branch or worker as the timeline shows it; `words` is what it was asked, `type` branch_run or worker_run."""

    id: str
    type: str
    turn_id: str | None
    reply_to: str | None
    words: str
    result: str | None
    state: str
    tool_calls: int
    origin: str | None
    worker_type: str | None
    started_at: str
    completed_at: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: all that follows is older than this message and this run."""

    seq: int = _END
    at: str = _LATE
    run_id: str = ""

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read what `__str__` wrote; a bare number is that of a message. Errors: RefusedError."""
        seq, _, rest = text.partition("~")
        at, _, run_id = rest.partition("~")
        if not seq.isdecimal() or len(seq) > 18 or len(text) > 200 or "\0" in text:
            raise RefusedError(f"'before' must be what an earlier page gave as 'before', not {text[:40]!r}")
        return cls(int(seq), at, run_id)

    def __str__(self) -> str:
        return f"{self.seq}~{self.at}~{self.run_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A page, oldest first; `before` is the place where the page before it ends, None when there is none."""

    items: list[LoggedMessage | Run]
    before: Place | None


def read_timeline(c: Connection, channel_id: ConversationId, limit: int, before: Place | None) -> Timeline:
    """The newest `limit` items that lie before a place."""
    place = before or Place()
    if not place.at:  # a message alone
        row = c.execute(
            "SELECT created_at FROM conversation_messages WHERE channel_id = ? AND seq >= ? ORDER BY seq LIMIT 1",
            (channel_id, place.seq),
        ).fetchone()
        place = Place(place.seq, _LATE if row is None else row["created_at"])
    rows = c.execute(
        "SELECT * FROM conversation_messages WHERE channel_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
        (channel_id, place.seq, limit + 1),
    )
    messages = [to_logged(row) for row in rows]
    values: dict[str, Any] = {"channel": channel_id, "at": place.at, "id": place.run_id, "limit": limit + 1}
    runs = [Run(**dict(row)) for row in c.execute(_RUNS, values)]
    items: list[LoggedMessage | Run] = []
    while len(items) < limit and (messages or runs):
        if not runs or (messages and messages[0].created_at > runs[0].started_at):
            items.append(messages.pop(0))
            place = Place(items[-1].seq, place.at, place.run_id)  # type: ignore[union-attr]
        else:
            run = runs.pop(0)
            items.append(run)
            place = Place(place.seq, run.started_at, run.id)
    return Timeline(items=items[::-1], before=place if messages or runs else None)


def read_channels(
    c: Connection, limit: int, before: tuple[str, str] | None, *, ties: bool, platform: str | None, words: str | None
) -> tuple[list[ChannelRecord], int]:
    """Active conversations, the latest first, and how many fit in all.

    Args:
        before: last activity and id of the last one already known.
        ties: whether one with exactly these counts as unknown yet.
        words: what a name or id must hold.
    """
    where, values = ["is_active = 1"], dict[str, Any]()
    if platform is not None:
        where.append("platform = :platform")
        values["platform"] = platform
    if words:
        where.append("(instr(lower(coalesce(display_name, '')), :words) OR instr(lower(id), :words))")
        values["words"] = words.lower()
    (total,) = c.execute(f"SELECT count(*) FROM channels WHERE {' AND '.join(where)}", values).fetchone()
    if before is not None:
        # Two steps, each along the index: the latest first, and among equals by id.
        where.append("last_activity_at <= :at AND (last_activity_at < :at OR id > :id OR (id = :id AND :ties))")
        values |= {"at": before[0], "id": before[1], "ties": ties}
    rows = c.execute(
        f"SELECT * FROM channels WHERE {' AND '.join(where)} ORDER BY last_activity_at DESC, id LIMIT :limit",
        {**values, "limit": limit},
    )
    return [to_channel(row) for row in rows], total


def to_channel(row: Any) -> ChannelRecord:
    """A conversation from its row."""
    return ChannelRecord(
        id=ConversationId(row["id"]),
        platform=row["platform"],
        display_name=row["display_name"],
        is_direct=bool(row["was_direct"]),  # what was said alone is not shown around when others join
        created_at=row["created_at"],
        last_activity_at=row["last_activity_at"],
        adapter=row["adapter"],
    )
