"""Rows and edges in SQLite, which is the truth.

Every read that serves a conversation takes a viewer and filters in the statement itself.

Flow:    MemoryStore.method -> Database.read or write -> rows -> Memory
Floor:   memory; may import base, storage
Source:  memory spec 2.3, 4, 5
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spacebot.base.clock import Clock, from_text
from spacebot.base.ids import MemoryId
from spacebot.base.telemetry import kv
from spacebot.memory.curation_log import note
from spacebot.memory.types import (
    RELATION_WEIGHT,
    WALKED_THROUGH,
    Association,
    Memory,
    MemoryType,
    Origin,
    RelationType,
    SortBy,
    Viewer,
)
from spacebot.storage.database import Connection, Database, Row

log = logging.getLogger(__name__)

# The plus keeps SQLite from reading all live rows by an index on `forgotten` where ids are given.
LIVE = "+m.forgotten = 0"
VISIBLE = "(:sees_all OR m.is_private = 0 OR m.channel_id = :channel OR m.owner = :owner)"
COLUMNS = (
    "m.id, m.content, m.memory_type, m.importance, m.created_at, m.updated_at, m.last_accessed_at, m.access_count, "
    "m.source, m.channel_id, m.user_id, m.message_id, m.subject, m.is_private, m.permanent"
)
EDGES_PER_HOP = 200  # the strongest; a hub of the graph must not make every recall slow
FINGERPRINT = 32  # hex digits
_ORDER = {
    SortBy.RECENT: "m.created_at DESC, m.id",
    SortBy.IMPORTANCE: "m.importance DESC, m.created_at DESC, m.id",
    SortBy.MOST_ACCESSED: "m.access_count DESC, m.created_at DESC, m.id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Figures of the rows."""

    by_type: Mapping[MemoryType, int]
    private: int
    embedded: int
    associations: int


class MemoryStore:
    """Reads and writes of memories and edges."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, memory_id: str, viewer: Viewer) -> Memory | None:
        """The live memory of this id, if the viewer may see it."""
        return (await self.get_many([memory_id], viewer)).get(MemoryId(memory_id))

    async def get_many(self, ids: Sequence[str], viewer: Viewer) -> dict[MemoryId, Memory]:
        """The live memories of these ids that the viewer may see."""
        return await self._database.read(lambda connection: load(connection, ids, viewer))

    async def listing(
        self, viewer: Viewer, *, sort_by: SortBy, limit: int, memory_type: MemoryType | None = None
    ) -> tuple[list[Memory], int]:
        """Live memories in an order, and how many there are in all."""
        where = f"m.forgotten = 0 AND {VISIBLE} AND (:type IS NULL OR m.memory_type = :type)"
        parameters = {**scope(viewer), "type": memory_type, "limit": limit}

        def read(connection: Connection) -> tuple[list[Memory], int]:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM memories m WHERE {where} ORDER BY {_ORDER[sort_by]} LIMIT :limit", parameters
            ).fetchall()
            (total,) = connection.execute(f"SELECT count(*) FROM memories m WHERE {where}", parameters).fetchone()
            return [to_memory(row) for row in rows], total

        return await self._database.read(read)

    async def for_prompt(self, viewer: Viewer, *, threshold: float, limit: int) -> list[Memory]:
        """Identity first, then the most important; the oldest first among equals, so that the text rarely changes.

        Two statements, so that each walks one index; the identities leave room for half of the others at least.
        """
        order = "ORDER BY m.importance DESC, m.created_at, m.id LIMIT :limit"
        live = f"SELECT {COLUMNS} FROM memories m WHERE m.forgotten = 0 AND {VISIBLE} "
        parameters = {**scope(viewer), "threshold": threshold, "limit": limit}

        def read(connection: Connection) -> list[Memory]:
            people = connection.execute(f"{live} AND m.memory_type = 'identity' {order}", parameters).fetchall()
            others = connection.execute(
                f"{live} AND m.importance >= :threshold AND +m.memory_type <> 'identity' {order}", parameters
            ).fetchall()
            people = people[: max(limit - len(others), (limit + 1) // 2)]
            return [to_memory(row) for row in [*people, *others][:limit]]

        return await self._database.read(read)

    async def associations(self, memory_id: str, viewer: Viewer) -> list[Association]:
        """Edges of a memory in either direction whose other end the viewer may see."""
        statement = (
            "SELECT a.* FROM associations a JOIN memories m ON m.id = iif(a.source_id = :id, a.target_id, a.source_id) "
            f"WHERE (a.source_id = :id OR a.target_id = :id) AND {LIVE} AND {VISIBLE} "
            "ORDER BY a.weight DESC, a.id"
        )
        parameters = {**scope(viewer), "id": memory_id}
        rows = await self._database.read(lambda connection: connection.execute(statement, parameters).fetchall())
        return [_to_association(row) for row in rows]

    async def forget(self, memory_id: str, viewer: Viewer, reason: str | None) -> Memory | None:
        """Hide a memory from every read and drop its vector; None when there is no such live, visible one."""
        now = self._clock.text()

        def write(connection: Connection) -> Memory | None:
            memory = load(connection, [memory_id], viewer).get(MemoryId(memory_id))
            if memory is not None:
                connection.execute(
                    "UPDATE memories SET forgotten = 1, forget_reason = ?, updated_at = ? WHERE id = ?",
                    (reason, now, memory_id),
                )
                connection.execute(
                    "DELETE FROM embeddings WHERE seq = (SELECT seq FROM memories WHERE id = ?)", (memory_id,)
                )
                why = {"reason": reason} if reason and not memory.is_private else {}  # of private ones the row knows it
                note(connection, now, "memory_forgotten", "forgotten", memory_id=memory_id, **why)
            return memory

        return await self._database.write(write)

    async def record_access(self, counts: Mapping[MemoryId, int]) -> None:
        """Note how often memories were recalled, in one transaction."""
        now = self._clock.text()
        rows = [(count, now, memory_id) for memory_id, count in counts.items()]
        await self._database.write(
            lambda connection: connection.executemany(
                "UPDATE memories SET access_count = access_count + ?, last_accessed_at = ? WHERE id = ?", rows
            )
        )

    async def not_embedded(self, model: str, limit: int) -> list[tuple[MemoryId, str]]:
        """Ids and contents of live memories without a vector of this model, oldest first."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT m.id, m.content FROM memories m LEFT JOIN embeddings e ON e.seq = m.seq AND e.model = ? "
                f"WHERE {LIVE} AND e.seq IS NULL ORDER BY m.seq LIMIT ?",
                (model, limit),
            ).fetchall()
        )
        return [(MemoryId(row["id"]), row["content"]) for row in rows]

    async def add_embeddings(self, model: str, embeddings: Mapping[MemoryId, bytes]) -> None:
        """Keep vectors that were computed later; those of memories forgotten meanwhile are dropped."""
        rows = [(model, vector, memory_id) for memory_id, vector in embeddings.items()]
        await self._database.write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO embeddings (seq, memory_id, model, embedding) "
                "SELECT seq, id, ?, ? FROM memories WHERE id = ? AND forgotten = 0",
                rows,
            )
        )

    async def counts(self, model: str) -> Counts:
        """Figures over all live memories, private ones included."""

        def read(connection: Connection) -> Counts:
            by_type = dict.fromkeys(MemoryType, 0)
            private = 0
            for row in connection.execute(
                "SELECT memory_type, count(*) AS n, sum(is_private) AS private FROM memories WHERE forgotten = 0 "
                "GROUP BY memory_type"
            ):
                by_type[_type(row["memory_type"])] += row["n"]
                private += row["private"]
            (associations,) = connection.execute("SELECT count(*) FROM associations").fetchone()
            (embedded,) = connection.execute("SELECT count(*) FROM embeddings WHERE model = ?", (model,)).fetchone()
            return Counts(by_type=by_type, private=private, embedded=embedded, associations=associations)

        return await self._database.read(read)


def scope(viewer: Viewer) -> dict[str, object]:
    """The parameters that `VISIBLE` needs."""
    return {"sees_all": viewer.sees_all, "channel": viewer.channel_id, "owner": viewer.owner}


def load(connection: Connection, ids: Sequence[str], viewer: Viewer) -> dict[MemoryId, Memory]:
    """Live, visible memories by id, in one statement."""
    if not ids:
        return {}
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM memories m WHERE m.id IN (SELECT value FROM json_each(:ids)) AND {LIVE} AND {VISIBLE}",
        {**scope(viewer), "ids": json.dumps(list(ids))},
    )
    return {MemoryId(row["id"]): to_memory(row) for row in rows}


def fingerprint(content: str) -> str:
    """A hash of the words alone: letter case and blanks make no difference."""
    return hashlib.sha256(" ".join(content.casefold().split()).encode()).hexdigest()[:FINGERPRINT]


def to_memory(row: Row) -> Memory:
    """A row as a value."""
    return Memory(
        id=MemoryId(row["id"]),
        content=row["content"],
        memory_type=_type(row["memory_type"]),
        importance=row["importance"],
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        last_accessed_at=from_text(row["last_accessed_at"]),
        access_count=row["access_count"],
        source=row["source"],
        channel_id=row["channel_id"],
        user_id=row["user_id"],
        message_id=row["message_id"],
        subject=row["subject"],
        is_private=bool(row["is_private"]),
        permanent=bool(row["permanent"]),
    )


def walk(connection: Connection, starts: Sequence[MemoryId], viewer: Viewer, depth: int) -> dict[MemoryId, float]:
    """Scores of the live, visible memories around `starts`, without these.

    A walk goes at most `depth` hops in both directions, on through `related_to` and `part_of` only. The score
    of a memory is importance x weight x relation (memory spec 7.3); the best path counts.
    """
    visited = set(starts)
    frontier = list(starts)
    scores: dict[MemoryId, float] = {}
    for _ in range(depth):
        if not frontier:
            break
        rows = connection.execute(
            "SELECT a.near, a.relation_type, a.weight, m.importance FROM ("
            "SELECT target_id AS near, relation_type, weight FROM associations "
            "WHERE source_id IN (SELECT value FROM json_each(:ids)) UNION ALL "
            "SELECT source_id, relation_type, weight FROM associations "
            "WHERE target_id IN (SELECT value FROM json_each(:ids))"
            f") a CROSS JOIN memories m ON m.id = a.near WHERE {LIVE} AND {VISIBLE} "
            "ORDER BY a.weight DESC, a.near LIMIT :edges",
            {**scope(viewer), "ids": json.dumps(frontier), "edges": EDGES_PER_HOP},
        ).fetchall()
        met: dict[MemoryId, bool] = {}  # and whether the walk goes on there
        for row in rows:
            near = MemoryId(row["near"])
            if near in visited:
                continue
            relation = _relation(row["relation_type"])
            scores[near] = max(row["importance"] * row["weight"] * RELATION_WEIGHT[relation], scores.get(near, 0.0))
            met[near] = met.get(near, False) or relation in WALKED_THROUGH
        visited |= met.keys()
        frontier = [near for near, goes_on in met.items() if goes_on]
    return scores


def versions(connection: Connection, ids: Sequence[str], viewer: Viewer) -> dict[tuple[MemoryId, MemoryId], bool]:
    """Pairs of a live newer version that the viewer may see, and the one of `ids` that it updates.

    True: somebody said so; False: it was inferred from how much they have in common.
    """
    rows = connection.execute(
        "SELECT a.source_id, a.target_id, a.origin FROM associations a CROSS JOIN memories m ON m.id = a.source_id "
        "WHERE a.relation_type = 'updates' AND a.target_id IN (SELECT value FROM json_each(:ids)) "
        f"AND {LIVE} AND {VISIBLE} ORDER BY a.target_id, a.source_id",
        {**scope(viewer), "ids": json.dumps(list(ids))},
    )
    return {(MemoryId(row["source_id"]), MemoryId(row["target_id"])): row["origin"] != str(Origin.AUTO) for row in rows}


def _to_association(row: Row) -> Association:
    return Association(
        source_id=MemoryId(row["source_id"]),
        target_id=MemoryId(row["target_id"]),
        relation_type=_relation(row["relation_type"]),
        weight=row["weight"],
        origin=Origin(row["origin"]),
    )


def _type(label: str) -> MemoryType:
    try:
        return MemoryType(label)
    except ValueError:
        log.warning("unknown memory type read as fact", extra=kv(label=label))
        return MemoryType.FACT


def _relation(label: str) -> RelationType:
    try:
        return RelationType(label)
    except ValueError:
        log.warning("unknown relation read as related_to", extra=kv(label=label))
        return RelationType.RELATED_TO
