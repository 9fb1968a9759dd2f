"""Vectors in memory: an exact scan, and whatever the vector table has not seen yet.

The event loop only appends to `Matrix.changes`; threads take them in under a lock before they search.

Flow:    changes -> rows of one float32 array -> product with the question -> filter -> the greatest
Floor:   memory; may import base
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spacebot.base.ids import MemoryId
from spacebot.memory.types import Neighbour, Viewer

if TYPE_CHECKING:
    import numpy as np

    from spacebot.memory.embedding import Vectors

_LIVE_SHARED, _LIVE_PRIVATE, _DEAD = 0, 1, 2
_HIDDEN = -2.0  # below every cosine


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
        self._vectors: Any = None
        self._marks: Any = None  # per row: is private, channel, owner, type

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
            for row in rows:
                if row.id not in self._place and row.id not in self._removed:
                    self._put(row)

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
        with self._lock:
            self._take_in()
            count = len(self._ids)
            if not self._place:
                return []
            ids, vectors, marks = self._ids[:], self._vectors[:count], self._marks[:count]
            channel, owner, wanted = (self._codes.get(text, -2) for text in (viewer.channel_id, viewer.owner, kind))
        scores = vectors @ vector
        scores[marks[:, 0] == _DEAD] = _HIDDEN
        if not viewer.sees_all:
            hidden = marks[:, 0] == _LIVE_PRIVATE
            if viewer.channel_id is not None:
                hidden &= marks[:, 1] != channel
            if viewer.owner is not None:
                hidden &= marks[:, 2] != owner
            scores[hidden] = _HIDDEN
        if kind is not None:
            scores[marks[:, 3] != wanted] = _HIDDEN
        return [
            Neighbour(id=MemoryId(key), similarity=float(scores[index]))
            for index in top(scores, limit)
            if scores[index] > _HIDDEN and (key := ids[index]) is not None
        ]

    def _take_in(self) -> None:
        while self.changes:
            change = self.changes.popleft()
            if isinstance(change, VectorRow):
                self._removed.discard(change.id)
                self._put(change)
            elif isinstance(change, Settled):
                self._settle(change)
            else:
                self._removed.add(change)
                self._drop(change)
        self._compact()

    def _put(self, row: VectorRow) -> None:
        import numpy as np  # a start without embedding must not pay for it

        place = self._place.get(row.id)
        if place is None:
            place = len(self._ids)
            if self._vectors is None or place == len(self._vectors):
                vectors = np.empty((max(64, place * 3 // 2), self._dimensions), np.float32)
                marks = np.empty((len(vectors), 4), np.int32)
                if self._vectors is not None:
                    vectors[:place], marks[:place] = self._vectors, self._marks
                self._vectors, self._marks = vectors, marks
            self._ids.append(row.id)
            self._place[row.id] = place
        self._vectors[place] = np.frombuffer(row.embedding, np.float32)
        kind = _LIVE_PRIVATE if row.is_private else _LIVE_SHARED
        codes = (self._code(text) for text in (row.channel_id, row.owner, row.memory_type))
        self._marks[place] = (kind, *codes)

    def _drop(self, memory_id: str) -> None:
        place = self._place.pop(memory_id, None)
        if place is not None:
            self._ids[place] = None
            self._marks[place, 0] = _DEAD

    def _settle(self, settled: Settled) -> None:
        self._removed.difference_update(settled.gone)
        for key, embedding in settled.embeddings.items():
            place = self._place.get(key)
            if place is not None and self._vectors[place].tobytes() == embedding:
                self._drop(key)

    def _compact(self) -> None:
        """Close the holes once they outnumber the rows."""
        if len(self._ids) <= 2 * len(self._place) + 64:
            return
        kept = sorted(self._place.values())
        self._vectors, self._marks = self._vectors[kept], self._marks[kept]
        self._ids = [self._ids[place] for place in kept]
        self._place = {key: place for place, key in enumerate(self._ids) if key is not None}

    def _code(self, text: str | None) -> int:
        return self._codes.setdefault(text, len(self._codes))


def top(scores: "np.ndarray[Any, Any]", limit: int) -> list[int]:
    """Places of the greatest scores, best first, ties by place."""
    import numpy as np

    if len(scores) > limit:
        places = np.argpartition(-scores, limit - 1)[:limit]
        places.sort()
    else:
        places = np.arange(len(scores))
    return [int(place) for place in places[np.argsort(-scores[places], kind="stable")]]


def by_similarity(neighbour: Neighbour) -> tuple[float, str]:
    """Sort key: nearest first, ties by id."""
    return (-neighbour.similarity, neighbour.id)
