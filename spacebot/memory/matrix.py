"""Vectors in memory, for an exact scan, and in SQLite, where the truth is.

A component is kept as two bytes: the first alone is scanned, both together give the similarity of the best.
Measured at 100,000 vectors of 384 on one core: 77 MiB and 6.7 ms a search, against 153 MiB and 14.6 ms as float32;
similarities differ from those of float32 by less than 0.00001.

The event loop only appends to `Matrix.changes`; threads take them in under a lock before they search.

Flow:    changes -> two bytes per component -> product with the question -> filter -> the greatest -> both bytes
         StoredVectors -> rows of SQLite, in pieces
Floor:   memory; may import base, storage
"""

import json
import math
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from spacebot.base.allocator import give_memory_back
from spacebot.base.ids import MemoryId
from spacebot.memory.store import LIVE, VISIBLE, scope
from spacebot.memory.types import Neighbour, Viewer
from spacebot.storage.database import Connection, Database, Row, connect

if TYPE_CHECKING:
    import numpy as np

    from spacebot.memory.embedding import Vectors

CHUNK = 2000  # rows read, scanned or written at once
ALL_STALE = ""  # in the outbox, in place of an id: the table missed too much and is made anew
_BLOCK = 1024  # rows turned into floats at once, small enough for the processor's cache
_FINE = 254.0  # second byte: parts of the first one's unit
_LIVE_SHARED, _LIVE_PRIVATE, _DEAD = 0, 1, 2
_HIDDEN = -2.0  # below every cosine
_LENGTH_ERROR = 0.01  # a vector is of unit length; what differs more is damaged

# Read when numpy is imported, which is later: a second thread of its library makes nothing here faster, and on a busy
# machine seven times as expensive.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_LIVE_VECTORS = f"FROM embeddings e JOIN memories m ON m.seq = e.seq WHERE e.model = :model AND {LIVE}"
_ROWS = f"SELECT m.id, m.content, m.memory_type, m.is_private, m.channel_id, m.owner, e.embedding {_LIVE_VECTORS}"
_ROWS_WITHOUT_TEXT = _ROWS.replace("m.content", "'' AS content")


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRow:
    """A live memory as the index needs it."""

    id: MemoryId
    content: str
    memory_type: str
    is_private: bool
    channel_id: str | None
    owner: str | None
    embedding: bytes  # float32, unit length


@dataclass(frozen=True, slots=True)
class Settled:
    """What the table has seen: removals, and rows that the matrix may let go of."""

    gone: tuple[str, ...]
    embeddings: dict[MemoryId, bytes]


class Matrix:
    """Vectors in memory. The event loop only appends to `changes`; threads take them in under a lock."""

    def __init__(self, dimensions: int) -> None:
        self.changes: deque[VectorRow | MemoryId | Settled] = deque()
        self._dimensions = dimensions
        self._lock = threading.Lock()
        self._place: dict[str, int] = {}
        self._ids: list[str | None] = []  # None: no longer valid
        self._removed: set[str] = set()
        self._codes: dict[str | None, int] = {None: -1}  # texts as numbers, so that filters are one comparison
        self._parts: _Parts | None = None

    @property
    def removed_count(self) -> int:
        return len(self._removed)

    def covered(self) -> set[str]:
        """Ids about which the matrix knows better than the table."""
        with self._lock:
            return self._removed | self._place.keys()

    def add_older(self, rows: Sequence[VectorRow]) -> None:
        """Take in rows read from SQLite, unless something newer is known of them."""
        with self._lock:
            self._take_in()
            self._put([row for row in rows if row.id not in self._place and row.id not in self._removed])

    def reserve(self, rows: int) -> None:
        """Make room, so that loading so many rows copies nothing."""
        with self._lock:
            if self._parts is None and rows:
                self._parts = _Parts.empty(rows * 21 // 20 + 64, self._dimensions)

    def take_in(self) -> None:
        """Take in all changes now."""
        with self._lock:
            self._take_in()

    def let_go(self, ids: Iterable[str]) -> None:
        """Drop rows that the table answers for from now on."""
        with self._lock:
            self._take_in()
            for key in ids:
                self._drop(key)
            self._compact()

    def nearest(self, vector: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> list[Neighbour]:
        """The nearest visible rows, best first; `vector` has unit length."""
        return self.nearest_many(vector[None], viewer, kind, limit)[0]

    def nearest_many(self, vectors: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> list[list[Neighbour]]:
        """The nearest visible rows of each question.

        Shapes: (questions, dimensions); one pass over all rows serves them together. A question costs 4 bytes
            a row of passing memory, so ask for dozens at once, not for thousands.
        """
        import numpy as np  # a start without embedding must not pay for it

        with self._lock:
            self._take_in()
            if not self._place or self._parts is None:
                return [[] for _ in vectors]
            ids, parts = self._ids, self._parts.cut(len(self._ids))  # never moved, only added to and crossed out
            channel, owner, wanted = (self._codes.get(text, -2) for text in (viewer.channel_id, viewer.owner, kind))
        hidden = parts.marks[0] == _DEAD
        if not viewer.sees_all:
            unseen = parts.marks[0] == _LIVE_PRIVATE
            if viewer.channel_id is not None:
                unseen &= parts.marks[1] != channel
            if viewer.owner is not None:
                unseen &= parts.marks[2] != owner
            hidden |= unseen
        if kind is not None:
            hidden |= parts.marks[3] != wanted
        rough = parts.rough(vectors)
        if hidden.any():
            rough[:, hidden] = _HIDDEN
        answers = []
        for question, scores in zip(vectors, rough, strict=True):
            places = np.array(top(scores, 2 * limit + 32), np.int64)
            places = places[scores[places] > _HIDDEN]
            exact = parts.exact(places, question)
            order = np.lexsort((places, -exact))[:limit]  # by similarity, then by place
            answers.append(
                [
                    Neighbour(id=MemoryId(key), similarity=similarity)
                    for place, similarity in zip(places[order].tolist(), exact[order].tolist(), strict=True)
                    if (key := ids[place]) is not None
                ]
            )
        return answers

    def _take_in(self) -> None:
        added: dict[str, VectorRow] = {}  # put together, which is several times as fast as one by one
        while self.changes:
            change = self.changes.popleft()
            if isinstance(change, VectorRow):
                self._removed.discard(change.id)
                added[change.id] = change
                continue
            self._put(list(added.values()))
            added.clear()
            if isinstance(change, Settled):
                self._settle(change)
            else:
                self._removed.add(change)
                self._drop(change)
        self._put(list(added.values()))
        self._compact()

    def _put(self, rows: Sequence[VectorRow]) -> None:
        """Add or replace rows of different ids; damaged vectors are left out."""
        import numpy as np

        for start in range(0, len(rows), CHUNK):
            piece, vectors = sound([(row, row.embedding) for row in rows[start : start + CHUNK]], self._dimensions)
            places = []
            for row in piece:
                place = self._place.setdefault(row.id, len(self._ids))
                if place == len(self._ids):
                    self._ids.append(row.id)
                places.append(place)
            if self._parts is None:
                self._parts = _Parts.empty(64, self._dimensions)
            if len(self._ids) > len(self._parts.scale):
                self._parts = self._parts.grown(max(64, len(self._ids) * 5 // 4))
            self._parts.write(np.array(places, np.int64), vectors)
            for place, row in zip(places, piece, strict=True):
                kind = _LIVE_PRIVATE if row.is_private else _LIVE_SHARED
                codes = (self._code(text) for text in (row.channel_id, row.owner, row.memory_type))
                self._parts.marks[:, place] = (kind, *codes)

    def _drop(self, memory_id: str) -> None:
        place = self._place.pop(memory_id, None)
        if place is not None and self._parts is not None:
            self._ids[place] = None
            self._parts.marks[0, place] = _DEAD

    def _settle(self, settled: Settled) -> None:
        self._removed.difference_update(settled.gone)
        known = [(key, data) for key, data in settled.embeddings.items() if key in self._place]
        for start in range(0, len(known), CHUNK):
            keys, vectors = sound(known[start : start + CHUNK], self._dimensions)
            if self._parts is not None and keys:
                same = self._parts.holds([self._place[key] for key in keys], vectors)
                for key, is_same in zip(keys, same, strict=True):
                    if is_same:  # otherwise it changed again after the table was written
                        self._drop(key)

    def _compact(self) -> None:
        """Close the holes once they outnumber the rows."""
        if len(self._ids) <= 2 * len(self._place) + 64 or self._parts is None:
            return
        kept = sorted(self._place.values())
        self._parts = self._parts.chosen(kept)
        self._ids = [self._ids[place] for place in kept]
        self._place = {key: place for place, key in enumerate(self._ids) if key is not None}

    def _code(self, text: str | None) -> int:
        return self._codes.setdefault(text, len(self._codes))


@dataclass(slots=True)
class _Parts:
    """The arrays: vector = scale x (high + low / 254), row by row."""

    high: Any  # (rows, dimensions) int8
    low: Any
    scale: Any  # (rows,) float32
    marks: Any  # (4, rows) int32: kind, channel, owner, type

    @classmethod
    def empty(cls, rows: int, dimensions: int) -> "_Parts":
        import numpy as np

        high, low = np.zeros((rows, dimensions), np.int8), np.zeros((rows, dimensions), np.int8)
        return cls(high, low, np.zeros(rows, np.float32), np.full((4, rows), _DEAD, np.int32))

    def cut(self, rows: int) -> "_Parts":
        """The first rows, without a copy."""
        return _Parts(self.high[:rows], self.low[:rows], self.scale[:rows], self.marks[:, :rows])

    def grown(self, rows: int) -> "_Parts":
        larger, old = _Parts.empty(rows, self.high.shape[1]), len(self.scale)
        larger.high[:old], larger.low[:old], larger.scale[:old] = self.high, self.low, self.scale
        larger.marks[:, :old] = self.marks
        return larger

    def chosen(self, places: list[int]) -> "_Parts":
        import numpy as np

        return _Parts(
            self.high[places], self.low[places], self.scale[places], np.ascontiguousarray(self.marks[:, places])
        )

    def write(self, places: Any, vectors: "Vectors") -> None:
        self.scale[places], self.high[places], self.low[places] = _split(vectors)

    def holds(self, places: list[int], vectors: "Vectors") -> Any:
        scale, high, low = _split(vectors)
        is_same = (self.high[places] == high).all(axis=1) & (self.low[places] == low).all(axis=1)
        return is_same & (self.scale[places] == scale)

    def rough(self, vectors: "Vectors") -> Any:
        """Similarities by the first byte, (questions, rows)."""
        import numpy as np

        rows, dimensions = self.high.shape
        columns = np.ascontiguousarray(vectors.T)
        scores = np.empty((len(vectors), rows), np.float32)
        floats = np.empty((min(_BLOCK, rows), dimensions), np.float32)
        for start in range(0, rows, _BLOCK):
            block = self.high[start : start + _BLOCK]
            part = floats[: len(block)]
            np.copyto(part, block, casting="unsafe")
            if len(vectors) == 1:
                np.dot(part, vectors[0], out=scores[0, start : start + _BLOCK])
            else:
                scores[:, start : start + _BLOCK] = (part @ columns).T
        scores *= self.scale
        return scores

    def exact(self, places: Any, vector: "Vectors") -> Any:
        """Similarities by both bytes."""
        import numpy as np

        rows = self.high[places].astype(np.float32) + self.low[places] * np.float32(1 / _FINE)
        return rows @ vector * self.scale[places]


def _split(vectors: "Vectors") -> tuple[Any, Any, Any]:
    """Scale and both bytes of rows."""
    import numpy as np

    scale = np.maximum(np.abs(vectors).max(axis=1), np.float32(1e-9)) / np.float32(127)
    scaled = vectors / scale[:, None]
    high = np.rint(scaled)
    low = np.rint((scaled - high) * np.float32(_FINE))
    return scale, high.astype(np.int8), low.astype(np.int8)


class StoredVectors:
    """Vectors and outbox in SQLite; methods that take a connection run inside a read or a write."""

    def __init__(self, database: Database, model: str, dimensions: int) -> None:
        self.database = database
        self._model = model
        self._dimensions = dimensions

    def count(self, connection: Connection) -> int:
        row = connection.execute("SELECT count(*) FROM embeddings WHERE model = ?", (self._model,)).fetchone()
        return int(row[0])

    def all_ids(self, connection: Connection) -> list[str]:
        rows = connection.execute("SELECT memory_id FROM embeddings WHERE model = ? ORDER BY seq", (self._model,))
        return [row["memory_id"] for row in rows]

    def ids_in_step(self, connection: Connection) -> list[str]:
        rows = connection.execute(
            "SELECT memory_id FROM embeddings WHERE model = ? "
            "AND memory_id NOT IN (SELECT memory_id FROM vector_outbox)",
            (self._model,),
        )
        return [row["memory_id"] for row in rows]

    async def rows(self, ids: Sequence[str]) -> list[VectorRow]:
        """Live memories with sound vectors."""
        parameters = {"model": self._model, "ids": json.dumps(list(ids))}
        statement = f"{_ROWS} AND m.id IN (SELECT value FROM json_each(:ids))"
        return await self.database.read(lambda connection: self._sound_rows(connection.execute(statement, parameters)))

    async def vectors(self, ids: Sequence[str]) -> "dict[MemoryId, Vectors]":
        """The vectors of live memories by id, float32; those without a sound one are left out."""
        statement = f"SELECT m.id, e.embedding {_LIVE_VECTORS} AND m.id IN (SELECT value FROM json_each(:ids))"

        def read(connection: Connection) -> "dict[MemoryId, Vectors]":
            rows = connection.execute(statement, {"model": self._model, "ids": json.dumps(list(ids))}).fetchall()
            keys, vectors = sound([(MemoryId(row["id"]), row["embedding"]) for row in rows], self._dimensions)
            return dict(zip(keys, vectors, strict=True))

        return await self.database.read(read)

    def load_into(self, matrix: Matrix) -> Callable[[Connection], None]:
        """A read that fills a matrix."""

        def read(connection: Connection) -> None:
            matrix.reserve(self.count(connection))
            rows = connection.execute(f"{_ROWS_WITHOUT_TEXT} ORDER BY e.seq", {"model": self._model})
            while part := rows.fetchmany(CHUNK):
                matrix.add_older([_to_row(row) for row in part])
            give_memory_back()

        return read

    def stream(self) -> Generator[list[VectorRow], None, None]:
        """All live memories with their vectors, in pieces, over a connection of its own; blocks."""
        connection = connect(self.database.path, read_only=True)
        try:
            rows = connection.execute(f"{_ROWS} ORDER BY e.seq", {"model": self._model})
            while part := rows.fetchmany(CHUNK):
                yield sound([(row, row.embedding) for row in map(_to_row, part)], self._dimensions)[0]
        finally:
            connection.close()

    def scan(self, vector: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> Callable[[Connection], Any]:
        """A read that compares with every vector in SQLite, in pieces, so that memory stays small."""
        statement = (
            f"SELECT m.id, e.embedding {_LIVE_VECTORS} AND {VISIBLE} AND (:type IS NULL OR m.memory_type = :type)"
        )

        def read(connection: Connection) -> list[Neighbour]:
            rows = connection.execute(statement, {**scope(viewer), "model": self._model, "type": kind})
            best: list[Neighbour] = []
            while part := rows.fetchmany(CHUNK):
                keys, vectors = sound([(MemoryId(row["id"]), row["embedding"]) for row in part], self._dimensions)
                scores = vectors @ vector
                found = top(scores, limit)
                best += [Neighbour(id=keys[index], similarity=float(scores[index])) for index in found]
                best = sorted(best, key=by_similarity)[:limit]
            return best

        return read

    async def discard_damaged(self) -> tuple[int, str]:
        """Delete vectors that cannot be right, so that they are computed anew; how many, and an example in words."""
        damaged: dict[int, str] = {}
        after: int | None = 0
        while after is not None:
            after = await self.database.read(partial(self._look_over, after=after, damaged=damaged))
        if damaged:
            gone = [(seq,) for seq in damaged]
            await self.database.write(
                lambda connection: connection.executemany("DELETE FROM embeddings WHERE seq = ?", gone)
            )
        return len(damaged), next(iter(damaged.values()), "")

    def _look_over(self, connection: Connection, after: int, damaged: dict[int, str]) -> int | None:
        statement = "SELECT seq, embedding FROM embeddings WHERE seq > ? AND +model = ? ORDER BY seq LIMIT ?"
        rows = connection.execute(statement, (after, self._model, CHUNK)).fetchall()  # the plus: by seq, not by model
        if len(rows) < CHUNK and not after:  # a start of a small store must not pay for numpy
            right = {row["seq"] for row in rows if _is_sound(row["embedding"], self._dimensions)}
        else:
            right = set(sound([(row["seq"], row["embedding"]) for row in rows], self._dimensions)[0])
        for row in rows:
            if row["seq"] not in right:
                numbers = len(row["embedding"]) / 4
                damaged[row["seq"]] = (
                    "not of unit length"
                    if numbers == self._dimensions
                    else f"{numbers:g} numbers instead of {self._dimensions}"
                )
        return int(rows[-1]["seq"]) if len(rows) == CHUNK else None

    def _sound_rows(self, rows: Iterable[Row]) -> list[VectorRow]:
        return sound([(row, row.embedding) for row in map(_to_row, rows)], self._dimensions)[0]


def sound(pairs: "Sequence[tuple[Any, bytes]]", dimensions: int) -> "tuple[list[Any], Vectors]":
    """What has a vector of the right length and of unit length, and these vectors, (n, dimensions)."""
    import numpy as np

    right = [(key, data) for key, data in pairs if len(data) == 4 * dimensions]
    vectors = np.frombuffer(b"".join(data for _, data in right), np.float32).reshape(len(right), dimensions)
    with np.errstate(all="ignore"):
        is_unit = np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1) < _LENGTH_ERROR  # false for "not a number"
    if is_unit.all():
        return [key for key, _ in right], vectors
    return [key for (key, _), is_right in zip(right, is_unit, strict=True) if is_right], vectors[is_unit]


def _is_sound(data: bytes, dimensions: int) -> bool:
    """The same of one vector, without numpy: 8 µs."""
    if len(data) != 4 * dimensions:
        return False
    return abs(math.hypot(*struct.unpack(f"={dimensions}f", data)) ** 2 - 1) < _LENGTH_ERROR


def top(scores: "np.ndarray[Any, Any]", limit: int) -> list[int]:
    """Places of the greatest scores, best first, ties by place.

    A sample says above which score they must lie, so that few of many have to be sorted: 0.2 ms of 100,000.
    """
    import numpy as np

    places = np.arange(0)
    if len(scores) > 64 * limit + 4096:
        sample = scores[::16]
        wanted = len(sample) - math.ceil(limit / 8) - 16
        places = np.flatnonzero(scores >= np.partition(sample, wanted)[wanted])
    if len(places) < min(limit, len(scores)):
        places = np.arange(len(scores))
    if len(places) > 4 * limit:
        places = np.sort(places[np.argpartition(-scores[places], limit - 1)[:limit]])
    return [int(place) for place in places[np.argsort(-scores[places], kind="stable")][:limit]]


def by_similarity(neighbour: Neighbour) -> tuple[float, str]:
    """Sort key: nearest first, ties by id."""
    return (-neighbour.similarity, neighbour.id)


def _to_row(row: Row) -> VectorRow:
    return VectorRow(
        id=MemoryId(row["id"]),
        content=row["content"],
        memory_type=row["memory_type"],
        is_private=bool(row["is_private"]),
        channel_id=row["channel_id"],
        owner=row["owner"],
        embedding=row["embedding"],
    )


def read_outbox(connection: Connection) -> list[tuple[int, str]]:
    """The oldest changes that the table has not seen: number and memory id."""
    rows = connection.execute("SELECT seq, memory_id FROM vector_outbox ORDER BY seq LIMIT ?", (CHUNK,))
    return [(row["seq"], row["memory_id"]) for row in rows]


def count_outbox(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM vector_outbox").fetchone()[0])


def last_in_outbox(connection: Connection) -> int:
    """Number of the newest change; those up to it are in SQLite's rows as they are read from now on."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM vector_outbox").fetchone()[0])


def clear_outbox(connection: Connection, last: int) -> None:
    connection.execute("DELETE FROM vector_outbox WHERE seq <= ?", (last,))


def is_all_stale(connection: Connection) -> bool:
    return connection.execute("SELECT 1 FROM vector_outbox WHERE memory_id = ?", (ALL_STALE,)).fetchone() is not None


def mark_all_stale(connection: Connection) -> None:
    connection.execute("DELETE FROM vector_outbox")
    connection.execute("INSERT INTO vector_outbox (memory_id) VALUES (?)", (ALL_STALE,))
