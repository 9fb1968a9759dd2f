"""What an owner looks at: pages of memories, a piece of the graph, one memory with its edges, how the store grew.

Looking changes nothing: it counts as no access. Every read names a viewer and filters in its statement, as the
reads of conversations do; forgotten memories show only where they are asked for.

Flow:    MemoryViews.method -> Database.read -> rows -> frozen values
Floor:   memory; may import base, storage
Source:  memory spec 17, control spec 4.5 and 5.2
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import NotFoundError
from spacebot.base.ids import MemoryId
from spacebot.memory.curation_log import CurationEvent, CurationLog
from spacebot.memory.store import COLUMNS, VISIBLE, scope, to_memory
from spacebot.memory.types import Memory, MemoryType, SortBy, Viewer
from spacebot.storage.database import Connection, Database, Row

BINS = 10  # of the importance histogram
MAX_DAYS = 366  # of one history
MAX_STEP = 100  # memories that one hop of a walk may add; a hub must not flood the page
MAX_EDGES = 2000  # of one answer, strongest first
_COLUMNS = f"{COLUMNS}, m.base_importance, m.centrality, m.forgotten, m.forget_reason"
_ORDER = {
    SortBy.RECENT: "m.created_at DESC, m.id",
    SortBy.IMPORTANCE: "m.importance DESC, m.created_at DESC, m.id",
    SortBy.MOST_ACCESSED: "m.access_count DESC, m.last_accessed_at DESC, m.id",
}
_EDGE = "SELECT a.id, a.source_id, a.target_id, a.relation_type, a.weight, a.origin, a.created_at FROM associations a"
# What the curation log calls the ways in which a memory leaves the living ones, and comes back.
_LOGGED = {
    "memory_forgotten": "forgotten",
    "memory_merged": "merged",
    "memory_pruned": "pruned",
    "memory_restored": "restored",
}
_TYPES = frozenset(map(str, MemoryType))


class Standing(StrEnum):
    """Which memories a listing shows."""

    LIVE = "live"
    FORGOTTEN = "forgotten"
    ALL = "all"


_STANDING = {
    Standing.LIVE: "m.forgotten = 0",
    Standing.FORGOTTEN: "m.forgotten = 1",
    Standing.ALL: "m.forgotten IN (0, 1)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A memory with what only its owner needs: what its importance is made of, and whether it was forgotten."""

    memory: Memory
    base_importance: float  # as it was given; `memory.importance` is what time and use made of it
    centrality: float
    forgotten: bool
    forget_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An edge as it is drawn."""

    id: str
    source_id: MemoryId
    target_id: MemoryId
    relation_type: str
    weight: float
    origin: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page, and how many memories fit in all."""

    memories: tuple[Seen, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Memories and the edges among them; `total` counts all that fit, `is_cut` tells that more lie nearby."""

    nodes: tuple[Seen, ...]
    edges: tuple[Edge, ...]
    total: int
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One memory and what it is connected with."""

    seen: Seen
    edges: tuple[Edge, ...]
    others: Mapping[MemoryId, Seen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What happened on one day, and how many memories lived at its end."""

    day: date
    saved: int = 0
    restored: int = 0
    forgotten: int = 0
    merged: int = 0
    pruned: int = 0
    live: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the store holds now; all but `forgotten` count live memories.

    `importance[n]` counts those whose effective importance lies in the n-th tenth.
    """

    by_type: Mapping[MemoryType, int]
    importance: tuple[int, ...]
    total: int
    forgotten: int
    private: int
    permanent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How the store grew and decayed, oldest day first, and what it holds now."""

    days: tuple[Day, ...]
    now: Holdings


class MemoryViews:
    """Reads for pages and tables; see the module."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._log = CurationLog(database, clock)

    async def events(
        self, *, limit: int, offset: int = 0, event_type: str | None = None
    ) -> tuple[list[CurationEvent], int]:
        """A page of what was done to memory and by the cortex, newest first, and how much there is in all."""
        return await self._log.page(limit=limit, offset=offset, event_type=event_type)

    async def listing(
        self,
        viewer: Viewer,
        *,
        sort_by: SortBy = SortBy.RECENT,
        limit: int,
        offset: int = 0,
        memory_type: MemoryType | None = None,
        standing: Standing = Standing.LIVE,
    ) -> Listing:
        """A page of memories in an order, and the true number of all that fit."""
        parameters = {**scope(viewer), "type": memory_type, "limit": limit, "offset": offset}
        return await self._database.read(lambda connection: _page(connection, parameters, sort_by, standing))

    async def graph(
        self,
        viewer: Viewer,
        *,
        sort_by: SortBy = SortBy.RECENT,
        limit: int,
        offset: int = 0,
        memory_type: MemoryType | None = None,
    ) -> Graph:
        """A page of live memories and all edges that run among them."""
        parameters = {**scope(viewer), "type": memory_type, "limit": limit, "offset": offset}

        def read(connection: Connection) -> Graph:
            page = _page(connection, parameters, sort_by, Standing.LIVE)
            ids = [seen.memory.id for seen in page.memories]
            edges = _edges_among(connection, ids, ids)
            return Graph(nodes=page.memories, edges=edges, total=page.total, is_cut=page.total > offset + len(ids))

        return await self._database.read(read)

    async def edges_among(self, ids: Sequence[str]) -> tuple[Edge, ...]:
        """The edges that run among memories which the caller knows already, strongest first."""
        return await self._database.read(lambda connection: _edges_among(connection, ids, ids))

    async def neighbours(self, memory_id: str, viewer: Viewer, *, depth: int = 1, exclude: Sequence[str] = ()) -> Graph:
        """Live memories up to `depth` hops away that are not among `exclude`, and their edges.

        Edges run among the new ones, the start and the excluded ones, which the caller shows already. A hop adds
        at most `MAX_STEP` memories, along the strongest edges.

        Errors: NotFoundError when the start is no live memory that the viewer may see.
        """

        def read(connection: Connection) -> Graph:
            if not _load(connection, [memory_id], viewer, Standing.LIVE):
                raise _not_found(memory_id)
            known = {memory_id, *exclude}
            reached, is_cut = _walk(connection, memory_id, viewer, depth)
            nodes = [seen for seen in _load(connection, reached, viewer, Standing.LIVE) if seen.memory.id not in known]
            new = [seen.memory.id for seen in nodes]
            edges = _edges_among(connection, [*new, memory_id], [*new, *known])
            return Graph(nodes=tuple(nodes), edges=edges, total=len(nodes), is_cut=is_cut)

        return await self._database.read(read)

    async def detail(self, memory_id: str, viewer: Viewer) -> Detail:
        """One memory, forgotten or not, with its edges to live ones.

        Errors: NotFoundError.
        """

        def read(connection: Connection) -> Detail:
            found = _load(connection, [memory_id], viewer, Standing.ALL)
            if not found:
                raise _not_found(memory_id)
            rows = connection.execute(
                f"{_EDGE} JOIN memories m ON m.id = iif(a.source_id = :id, a.target_id, a.source_id) "
                f"WHERE (a.source_id = :id OR a.target_id = :id) AND +m.forgotten = 0 AND {VISIBLE} "
                "ORDER BY a.weight DESC, a.id LIMIT :limit",
                {**scope(viewer), "id": memory_id, "limit": MAX_EDGES},
            )
            edges = tuple(_to_edge(row) for row in rows)
            ends = {end for edge in edges for end in (edge.source_id, edge.target_id)} - {memory_id}
            others = _load(connection, sorted(ends), viewer, Standing.LIVE)
            return Detail(seen=found[0], edges=edges, others={seen.memory.id: seen for seen in others})

        return await self._database.read(read)

    async def history(self, *, days: int, utc_offset_minutes: int = 0) -> History:
        """What came and went on each of the last `days` days, today included, and what there is now.

        For the owner alone: figures over everybody's memories. Saves are counted by the rows that are still there,
        whatever became of them since; what left and came back is read from the curation log.

        Args:
            utc_offset_minutes: where the reader's days begin, east of Greenwich positive.
        """
        offset = timedelta(minutes=utc_offset_minutes)
        today = (self._clock.now() + offset).date()
        dates = [today - timedelta(days=n) for n in reversed(range(days))]
        first = datetime.combine(dates[0], time(), UTC) - offset
        parameters = {"shift": f"{utc_offset_minutes:+d} minutes", "first": to_text(first)}

        def read(connection: Connection) -> History:
            now = _holdings(connection)
            return History(days=_add_up(dates, _changes(connection, parameters), now.total), now=now)

        return await self._database.read(read)


def _page(connection: Connection, parameters: Mapping[str, object], sort_by: SortBy, standing: Standing) -> Listing:
    # Conditions that hold for every row are left out, so that counting and sorting read indexes where they can.
    where = _STANDING[standing]
    if not parameters["sees_all"]:
        where += f" AND {VISIBLE}"
    if parameters["type"] is not None:
        where += " AND m.memory_type = :type"
    order = _ORDER[sort_by]
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM (SELECT m.seq FROM memories m WHERE {where} ORDER BY {order} "
        f"LIMIT :limit OFFSET :offset) page JOIN memories m ON m.seq = page.seq ORDER BY {order}",
        parameters,
    ).fetchall()
    (total,) = connection.execute(f"SELECT count(*) FROM memories m WHERE {where}", parameters).fetchone()
    return Listing(memories=tuple(_to_seen(row) for row in rows), total=total)


def _load(connection: Connection, ids: Sequence[str], viewer: Viewer, standing: Standing) -> list[Seen]:
    """Visible memories of these ids, the most important first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM memories m WHERE m.id IN (SELECT value FROM json_each(:ids)) "
        f"AND +{_STANDING[standing]} AND {VISIBLE} ORDER BY m.importance DESC, m.id",
        {**scope(viewer), "ids": json.dumps(list(ids))},
    )
    return [_to_seen(row) for row in rows]


def _walk(connection: Connection, start: str, viewer: Viewer, depth: int) -> tuple[list[str], bool]:
    """Ids of the live, visible memories around one, and whether a hop had to leave some out."""
    reached, frontier, is_cut = {start}, [start], False
    for _ in range(depth):
        rows = connection.execute(
            "SELECT a.near, max(a.weight) AS weight FROM ("
            "SELECT target_id AS near, weight FROM associations "
            "WHERE source_id IN (SELECT value FROM json_each(:ids)) UNION ALL "
            "SELECT source_id, weight FROM associations WHERE target_id IN (SELECT value FROM json_each(:ids))"
            f") a CROSS JOIN memories m ON m.id = a.near WHERE +m.forgotten = 0 AND {VISIBLE} "
            "AND a.near NOT IN (SELECT value FROM json_each(:reached)) "
            "GROUP BY a.near ORDER BY weight DESC, a.near LIMIT :limit",
            {
                **scope(viewer),
                "ids": json.dumps(frontier),
                "reached": json.dumps(sorted(reached)),
                "limit": MAX_STEP + 1,
            },
        ).fetchall()
        is_cut = is_cut or len(rows) > MAX_STEP
        frontier = [row["near"] for row in rows[:MAX_STEP]]
        reached.update(frontier)
    return sorted(reached - {start}), is_cut


def _edges_among(connection: Connection, some: Sequence[str], all_ids: Sequence[str]) -> tuple[Edge, ...]:
    """Edges with one end among `some` and both among `all_ids`, strongest first.

    The plus keeps SQLite from looking up every pair in the index of pairs.
    """
    rows = connection.execute(
        f"{_EDGE} WHERE a.id IN ("
        "SELECT id FROM associations WHERE source_id IN (SELECT value FROM json_each(:some)) "
        "AND +target_id IN (SELECT value FROM json_each(:all)) UNION "
        "SELECT id FROM associations WHERE target_id IN (SELECT value FROM json_each(:some)) "
        "AND +source_id IN (SELECT value FROM json_each(:all))"
        ") ORDER BY a.weight DESC, a.id LIMIT :limit",
        {"some": json.dumps(list(some)), "all": json.dumps(list(all_ids)), "limit": MAX_EDGES},
    )
    return tuple(_to_edge(row) for row in rows)


def _holdings(connection: Connection) -> Holdings:
    by_type = dict.fromkeys(MemoryType, 0)
    importance = [0] * BINS
    for row in connection.execute(  # answered by an index alone
        "SELECT memory_type, max(0, min(:bins - 1, cast(importance * :bins AS INTEGER))) AS bin, count(*) AS n "
        "FROM memories WHERE forgotten = 0 GROUP BY 1, 2",
        {"bins": BINS},
    ):
        kind = row["memory_type"]
        by_type[MemoryType(kind) if kind in _TYPES else MemoryType.FACT] += row["n"]
        importance[row["bin"]] += row["n"]
    marks = connection.execute(
        "SELECT total(forgotten) AS forgotten, total(NOT forgotten AND is_private) AS private, "
        "total(NOT forgotten AND permanent) AS permanent FROM memories NOT INDEXED"
    ).fetchone()
    return Holdings(
        by_type=by_type,
        importance=tuple(importance),
        total=sum(importance),
        forgotten=int(marks["forgotten"]),
        private=int(marks["private"]),
        permanent=int(marks["permanent"]),
    )


def _changes(connection: Connection, parameters: Mapping[str, object]) -> dict[str, Counter[str]]:
    """Day -> what happened -> to how many."""
    changes: dict[str, Counter[str]] = {}
    for row in connection.execute(
        "SELECT date(created_at, :shift) AS day, 'saved' AS what, count(*) AS n FROM memories "
        "WHERE forgotten IN (0, 1) AND created_at >= :first GROUP BY day UNION ALL "
        "SELECT date(created_at, :shift) AS day, event_type, count(*) FROM cortex_events "
        "WHERE created_at >= :first AND event_type IN (SELECT value FROM json_each(:types)) GROUP BY 1, 2",
        {**parameters, "types": json.dumps(list(_LOGGED))},
    ):
        changes.setdefault(row["day"], Counter())[_LOGGED.get(row["what"], row["what"])] += row["n"]
    return changes


def _add_up(dates: Sequence[date], changes: Mapping[str, Mapping[str, int]], live: int) -> tuple[Day, ...]:
    """Days with their totals, reckoned back from what lives now."""
    days = []
    for one in reversed(dates):
        day = Day(day=one, live=max(0, live), **changes.get(one.isoformat(), {}))
        live -= day.saved + day.restored - day.forgotten - day.merged - day.pruned
        days.append(day)
    return tuple(reversed(days))


def _to_seen(row: Row) -> Seen:
    return Seen(
        memory=to_memory(row),
        base_importance=row["base_importance"],
        centrality=row["centrality"],
        forgotten=bool(row["forgotten"]),
        forget_reason=row["forget_reason"],
    )


def _to_edge(row: Row) -> Edge:
    return Edge(
        id=row["id"],
        source_id=MemoryId(row["source_id"]),
        target_id=MemoryId(row["target_id"]),
        relation_type=row["relation_type"],
        weight=row["weight"],
        origin=row["origin"],
        created_at=row["created_at"],
    )


def _not_found(memory_id: str) -> NotFoundError:
    return NotFoundError(f"there is no memory {memory_id[:80]!r} here; it may have been forgotten or merged")
