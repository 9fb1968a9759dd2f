"""Catching up on edges: what a save could not link, and pairs whose truth a model has to judge.

A save looks at its five nearest for one second; memories saved at the same moment, or whose vector came later,
miss each other. The pass goes over all memories in the order of saving, from a cursor that outlives restarts and
moves on only past what was looked at completely. With nothing new it reads one row and writes nothing.

Flow:    Associator.run -> memories after the cursor -> nearest -> edges and doubtful pairs -> cursor
         doubtful_pairs -> (a model's verdict) -> judge
Floor:   memory; may import base, storage
Source:  memory spec 6, pitfalls P-20 and P-21; process spec P48
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.ids import MemoryId
from spacebot.memory.curation_log import note
from spacebot.memory.index import VectorIndex
from spacebot.memory.linking import LinkPolicy, Node, assert_edge, link_similar, nodes
from spacebot.memory.types import EVERYTHING, Association, Memory, Neighbour, Origin, RelationType, Viewer
from spacebot.storage.database import Connection, Database
from spacebot.storage.settings import read_setting, write_settings

CURSOR = "association_cursor"  # the seq of the last memory that was looked at completely
CHUNK = 32  # memories in one search and one transaction of about 10 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationPolicy:
    """How a back-fill looks for edges."""

    links: LinkPolicy = field(default_factory=LinkPolicy)
    neighbours: int = 10  # of each memory
    max_new: int = 100  # edges of one pass
    max_memories: int = 5000  # of one pass; about 2 s of one core at 10,000


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationReport:
    """What a back-fill came to; `is_complete` False means that a limit ended it."""

    looked_at: int = 0
    created: int = 0
    updates: int = 0  # of them, edges to an older version
    is_complete: bool = True


class Verdict(StrEnum):
    """What a model judged of two memories that say different things."""

    CONTRADICTS = "contradicts"
    UPDATES = "updates"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtfulPair:
    """Two similar memories of one kind and scope that may contradict each other; similarity is the cosine."""

    newer: Memory
    older: Memory
    similarity: float


class Associator:
    """Back-fill and judging of one agent's memories.

    Args:
        changed: told after each transaction that made an edge; must not wait.
    """

    def __init__(
        self, database: Database, index: VectorIndex, model: str, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._database = database
        self._index = index
        self._model = model
        self._clock = clock
        self._changed = changed
        self._lock = trio.Lock()

    async def run(self, policy: AssociationPolicy) -> AssociationReport:
        """Go on where the last pass ended, until everything is looked at or a limit is reached.

        Errors: RefusedError while another pass is running; StorageError.
        Cancel: between two chunks; the next pass goes on there.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            raise RefusedError("memories are being associated already; wait until that has ended") from None
        try:
            return await self._run(policy)
        finally:
            self._lock.release()

    async def _run(self, policy: AssociationPolicy) -> AssociationReport:
        cursor = int(await self._database.read(lambda connection: read_setting(connection, CURSOR, "0")))
        looked_at, made, is_complete = 0, list[Association](), True
        while is_complete and (waiting := await self._after(cursor)):
            if looked_at >= policy.max_memories:
                is_complete = False
                break
            near = await nearest_of(self._index, waiting, policy.neighbours + 1)
            found = [(node, neighbours) for (node, _), neighbours in zip(waiting, near, strict=True)]
            step = await self._link(found, policy, policy.max_new - len(made))
            made += step.made
            looked_at += step.looked_at
            is_complete, cursor = step.is_complete, step.cursor
        return AssociationReport(
            looked_at=looked_at,
            created=len(made),
            updates=sum(edge.relation_type is RelationType.UPDATES for edge in made),
            is_complete=is_complete,
        )

    async def _after(self, cursor: int) -> list[tuple[Node, bytes]]:
        """The next memories, up to the first that still waits for its vector: none may be passed over."""

        def read(connection: Connection) -> list[tuple[Node, bytes]]:
            waiting = vectors_after(connection, self._model, cursor, CHUNK)
            known = nodes(connection, [memory_id for _, memory_id, _ in waiting], EVERYTHING)
            return [(known[memory_id], vector) for _, memory_id, vector in waiting]

        return await self._database.read(read)

    async def _link(
        self, found: Sequence[tuple[Node, Sequence[Neighbour]]], policy: AssociationPolicy, room: int
    ) -> "_Step":
        now = self._clock.text()

        def write(connection: Connection) -> _Step:
            made: list[Association] = []
            done = 0
            for node, similar in found:
                current = nodes(connection, [node.memory.id], EVERYTHING).get(node.memory.id)
                if current is not None:
                    left = room - len(made)
                    new = link_similar(connection, current, similar, current.viewer, policy.links, now, room=left)
                    made += new
                    if len(new) >= left:  # perhaps not all of its edges: it stays before the cursor
                        break
                done += 1
            cursor = found[done - 1][0].seq if done else found[0][0].seq - 1
            if done:
                write_settings(connection, **{CURSOR: str(cursor)})
            if made:
                note(connection, now, "association_created", f"{len(made)} links between memories", count=len(made))
            return _Step(made=made, looked_at=done, cursor=cursor, is_complete=done == len(found))

        step = await self._database.write(write)
        if step.made:
            self._changed()
        return step

    async def doubtful_pairs(self, limit: int) -> list[DoubtfulPair]:
        """Pairs that nobody has judged yet, most similar first; for a model, never for a conversation."""

        def read(connection: Connection) -> list[DoubtfulPair]:
            rows = connection.execute(
                "SELECT v.newer_id, v.older_id, v.similarity FROM memory_verdicts v "
                "JOIN memories a ON a.id = v.newer_id AND a.forgotten = 0 "
                "JOIN memories b ON b.id = v.older_id AND b.forgotten = 0 "
                "WHERE v.verdict IS NULL AND NOT EXISTS (SELECT 1 FROM associations s "
                "WHERE s.relation_type IN ('updates', 'contradicts') AND "
                "((s.source_id = v.newer_id AND s.target_id = v.older_id) "
                "OR (s.source_id = v.older_id AND s.target_id = v.newer_id))) "
                "ORDER BY v.similarity DESC, v.newer_id, v.older_id LIMIT ?",
                (limit,),
            ).fetchall()
            known = nodes(connection, [row[name] for row in rows for name in ("newer_id", "older_id")], EVERYTHING)
            return [
                DoubtfulPair(
                    newer=known[row["newer_id"]].memory,
                    older=known[row["older_id"]].memory,
                    similarity=row["similarity"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def judge(self, newer_id: str, older_id: str, verdict: Verdict) -> None:
        """Keep what a model judged of a pair of `doubtful_pairs`, so that it is asked once only.

        `contradicts` and `updates` become an edge that a model stands for and replace what similarity suggested.

        Errors: NotFoundError when the pair is not waiting for a verdict, or one of the two is gone.
        """
        now = self._clock.text()

        def write(connection: Connection) -> None:
            known = nodes(connection, [newer_id, older_id], EVERYTHING)
            judged = connection.execute(
                "UPDATE memory_verdicts SET verdict = ?, judged_at = ? "
                "WHERE newer_id = ? AND older_id = ? AND verdict IS NULL RETURNING similarity",
                (verdict, now, newer_id, older_id),
            ).fetchone()
            if judged is None or len(known) < 2:
                raise NotFoundError(f"memories {newer_id!r} and {older_id!r} are not waiting for a verdict")
            newer, older = known[MemoryId(newer_id)].memory, known[MemoryId(older_id)].memory
            if verdict is not Verdict.NEITHER:
                connection.execute(
                    "DELETE FROM associations WHERE origin = ? AND source_id IN (?, ?) AND target_id IN (?, ?)",
                    (Origin.AUTO, newer_id, older_id, newer_id, older_id),
                )
                assert_edge(connection, newer, older, RelationType(verdict), judged["similarity"], now)
            note(connection, now, "contradiction_judged", f"judged: {verdict}", newer_id=newer_id, older_id=older_id,
                 verdict=str(verdict))  # fmt: skip

        await self._database.write(write)
        if verdict is not Verdict.NEITHER:
            self._changed()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    made: list[Association]
    looked_at: int
    cursor: int
    is_complete: bool


async def nearest_of(index: VectorIndex, asked: Sequence[tuple[Node, bytes]], limit: int) -> list[Sequence[Neighbour]]:
    """The nearest of each of many memories, itself included, among what may be linked with it."""
    import numpy as np  # an idle pass must not pay for it

    answers: dict[MemoryId, Sequence[Neighbour]] = {}
    groups: dict[Viewer, list[tuple[Node, bytes]]] = {}
    for node, vector in asked:
        groups.setdefault(node.viewer, []).append((node, vector))
    for viewer, group in groups.items():
        vectors = np.stack([np.frombuffer(vector, np.float32) for _, vector in group])
        found = await index.nearest_many(vectors, viewer, limit=limit)
        answers |= {node.memory.id: near for (node, _), near in zip(group, found, strict=True)}
    return [answers[node.memory.id] for node, _ in asked]


def vectors_after(connection: Connection, model: str, cursor: int, limit: int) -> list[tuple[int, MemoryId, bytes]]:
    """Place, id and vector of the live memories after a place, up to the first without a vector of this model."""
    rows = connection.execute(
        "SELECT m.seq, m.id, e.embedding FROM memories m "
        "LEFT JOIN main.embeddings e ON e.seq = m.seq AND e.model = ? "
        "WHERE m.seq > ? AND +m.forgotten = 0 ORDER BY m.seq LIMIT ?",
        (model, cursor, limit),
    )
    found = []
    for row in rows:
        if row["embedding"] is None:
            break
        found.append((row["seq"], MemoryId(row["id"]), row["embedding"]))
    return found
