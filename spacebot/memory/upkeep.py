"""The statements of a maintenance pass; they run on the real tables and on the shadow tables of a dry run alike.

Floor:   memory; may import base, storage
Source:  memory spec 9
"""

import json
from collections.abc import Sequence

from spacebot.base.ids import MemoryId
from spacebot.base.text import preview
from spacebot.memory.association import vectors_after
from spacebot.memory.curation_log import note, person_of
from spacebot.memory.importance import STRENGTH
from spacebot.storage.database import Connection, Row
from spacebot.storage.settings import write_settings

SCORE_CHUNK = 500  # rows read at once; writing all of them takes about 10 ms
PRUNE_CHUNK = 15  # about 6 ms, most of it full text
MERGE_CHUNK = 50  # memories compared between two looks at the cursor

_SCORED_ROWS = (
    "SELECT m.seq, m.memory_type, m.importance, m.base_importance, m.centrality, m.access_count, m.permanent, "
    f"m.created_at, m.updated_at, m.last_accessed_at, {STRENGTH} AS strength FROM memories m WHERE +m.forgotten = 0 "
)
# A note of last year that was read in today is not old yet; one recalled since the pass began is scored anew first.
_PRUNABLE = (
    "m.forgotten = 0 AND m.importance < :threshold AND m.memory_type <> 'identity' AND m.permanent = 0 "
    "AND m.created_at < :oldest AND m.updated_at < :oldest AND m.last_accessed_at < :started"
)


def live_count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM memories WHERE forgotten = 0").fetchone()[0])


def rows_after(connection: Connection, seq: int) -> list[Row]:
    return connection.execute(f"{_SCORED_ROWS} AND m.seq > ? ORDER BY m.seq LIMIT ?", (seq, SCORE_CHUNK)).fetchall()


def rows_of(connection: Connection, ids: Sequence[str]) -> list[Row]:
    return connection.execute(
        f"{_SCORED_ROWS} AND m.id IN (SELECT value FROM json_each(?)) ORDER BY m.seq", (json.dumps(ids),)
    ).fetchall()


def write_scores(connection: Connection, changes: Sequence[tuple[object, ...]], settings: dict[str, str]) -> None:
    """Write what was computed, unless the row has changed since it was read."""
    connection.executemany(
        "UPDATE memories SET importance = ?, centrality = ? "
        "WHERE seq = ? AND base_importance = ? AND access_count = ? AND last_accessed_at = ? AND forgotten = 0",
        changes,
    )
    write_settings(connection, **settings)


def to_prune(connection: Connection, wanted: dict[str, object]) -> list[Row]:
    return connection.execute(
        "SELECT m.id, m.content, m.memory_type, m.importance, m.is_private, m.channel_id, m.user_id, m.subject "
        f"FROM memories m WHERE {_PRUNABLE} ORDER BY m.importance, m.id LIMIT :chunk",
        {**wanted, "chunk": PRUNE_CHUNK},
    ).fetchall()


def prune_chunk(connection: Connection, wanted: dict[str, object], now: str) -> tuple[list[Row], list[str]]:
    rows = to_prune(connection, wanted)
    ids = [row["id"] for row in rows]
    near = neighbours(connection, ids)
    delete(connection, ids)
    for row in rows:
        note(
            connection,
            now,
            "memory_pruned",
            f"{row['memory_type']} no longer important enough",
            memory_id=row["id"],
            importance=round(row["importance"], 3),
            is_private=bool(row["is_private"]),
            channel_id=row["channel_id"],
            person=person_of(row["channel_id"], row["user_id"]),
            subject=row["subject"],
            preview=shown(row),
        )
    return rows, near


def to_purge(connection: Connection, oldest: str) -> list[str]:
    rows = connection.execute(
        "SELECT id FROM memories WHERE forgotten = 1 AND updated_at < ? ORDER BY seq LIMIT ?", (oldest, PRUNE_CHUNK)
    )
    return [row["id"] for row in rows]


def purge_chunk(connection: Connection, oldest: str) -> list[str]:
    ids = to_purge(connection, oldest)
    delete(connection, ids)
    return ids


def neighbours(connection: Connection, ids: Sequence[str]) -> list[str]:
    rows = connection.execute(
        "SELECT target_id AS near FROM associations WHERE source_id IN (SELECT value FROM json_each(:ids)) UNION "
        "SELECT source_id FROM associations WHERE target_id IN (SELECT value FROM json_each(:ids))",
        {"ids": json.dumps(ids)},
    )
    return [row["near"] for row in rows]


def delete(connection: Connection, ids: Sequence[str]) -> None:
    """Delete memories with all that hangs on them; the shadow tables of a dry run have no cascade."""
    wanted = {"ids": json.dumps(ids)}
    one_of = "IN (SELECT value FROM json_each(:ids))"
    connection.execute(f"DELETE FROM associations WHERE source_id {one_of} OR target_id {one_of}", wanted)
    connection.execute(f"DELETE FROM embeddings WHERE seq IN (SELECT seq FROM memories WHERE id {one_of})", wanted)
    connection.execute(f"DELETE FROM memories WHERE id {one_of}", wanted)


def to_compare(
    connection: Connection, model: str, place: int, cursor: int, since: str
) -> list[tuple[int, MemoryId, bytes]]:
    """The next memories that are new (after the cursor), or changed since the last comparison."""
    changed = connection.execute(
        "SELECT m.seq, m.id, e.embedding FROM memories m JOIN main.embeddings e ON e.seq = m.seq AND e.model = :model "
        "WHERE m.seq > :place AND m.seq <= :cursor AND m.updated_at >= :since AND +m.forgotten = 0 "
        "ORDER BY m.seq LIMIT :chunk",
        {"model": model, "place": place, "cursor": cursor, "since": since, "chunk": MERGE_CHUNK},
    ).fetchall()
    found = [(row["seq"], MemoryId(row["id"]), row["embedding"]) for row in changed]
    if len(found) < MERGE_CHUNK:
        found += vectors_after(connection, model, max(place, cursor), MERGE_CHUNK - len(found))
    return found


def shown(row: Row) -> str | None:
    return None if row["is_private"] else preview(row["content"])
