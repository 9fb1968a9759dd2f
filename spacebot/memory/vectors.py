"""The LanceDB table of all vectors. All of it blocks and runs in threads.

Derived: whatever happens to the folder, it is made anew from SQLite. Private memories are filtered inside
the query, by hashes, so that no text of a person gets into a predicate.

Flow:    LanceTable.open -> replace, nearest, optimize
Floor:   memory; may import base; the only importer of lancedb and pyarrow
Source:  memory spec 3.3, 3.4 and pitfalls P-02 to P-06, P-15
"""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId, is_uuid
from spacebot.memory.matrix import VectorRow, by_similarity
from spacebot.memory.types import MemoryType, Neighbour, Viewer

if TYPE_CHECKING:
    from spacebot.memory.embedding import Vectors

TABLE = "memory_embeddings"
CHUNK = 2000  # ids in one predicate
KEEP_VERSIONS = timedelta(minutes=10)  # of the table, for readers that are still at work
EF = 100  # breadth of the graph search; the default finds one in ten less
M_ARENA_MAX, ARENAS = -8, 2  # malloc.h; must be set before the threads exist
REFINE = 5  # candidates per wanted row that are compared by their true vectors


class LanceTable:
    """One folder with one table; every method raises StorageError when the library or the disk fails."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        self._folder = folder
        self._dimensions = dimensions
        self._table: Any = None
        self._has_vector_index = False
        self.is_missing = False  # the library cannot be imported

    def exists(self) -> bool:
        return (self._folder / f"{TABLE}.lance").is_dir()

    def open(self) -> set[str]:
        """Open or create the table; returns the ids that it holds."""
        _limit_arenas()
        os.environ.setdefault("LANCE_LOG", "error")  # read at import; otherwise warnings go to standard error
        try:
            import lancedb  # 1.6 s and 100 MiB
            import pyarrow as pa
            from lancedb.index import Bitmap, BTree
        except ImportError as error:
            self.is_missing = True
            raise StorageError("the vector library lancedb cannot be loaded; install the program anew") from error
        schema = pa.schema(
            [
                pa.field("id", pa.utf8(), nullable=False),
                pa.field("content", pa.utf8(), nullable=False),
                pa.field("embedding", pa.list_(pa.float32(), self._dimensions), nullable=False),
                pa.field("memory_type", pa.utf8(), nullable=False),
                pa.field("is_private", pa.bool_(), nullable=False),
                pa.field("channel_key", pa.utf8(), nullable=False),
                pa.field("owner_key", pa.utf8(), nullable=False),
            ]
        )
        with _translated(self._folder):
            if self._folder.exists() and not self._folder.is_dir():
                self._folder.unlink()
            self._folder.mkdir(parents=True, exist_ok=True)
            connection = lancedb.connect(str(self._folder))
            if self.exists():
                table = connection.open_table(TABLE)
                if table.schema != schema:
                    raise StorageError("the vector table has another shape")
            else:
                table = connection.create_table(TABLE, schema=schema)
            indexed = {column for index in table.list_indices() for column in index.columns}
            if "id" not in indexed:
                table.create_index("id", config=BTree())
            if "channel_key" not in indexed:
                table.create_index("channel_key", config=Bitmap())
            if "embedding" in indexed:
                statistics = table.index_stats("embedding_idx")
                self._has_vector_index = statistics is not None and statistics.distance_type == "cosine"
            known = table.search().select(["id"]).limit(None).to_arrow().column("id").to_pylist()
            if len(known) != len(set(known)):
                raise StorageError("the vector table holds an id twice")
        self._table = table
        return set(known)

    def drop(self) -> None:
        """Remove the table's files."""
        self._table, self._has_vector_index = None, False
        with _translated(self._folder):
            shutil.rmtree(self._folder / f"{TABLE}.lance", ignore_errors=True)
            if self.exists():
                shutil.rmtree(self._folder)

    def replace(self, rows: Sequence[VectorRow], gone: Sequence[str]) -> None:
        """Upsert rows by id, and delete others."""
        import pyarrow as pa

        with _translated(self._folder):
            if rows:
                flat = pa.py_buffer(b"".join(row.embedding for row in rows))
                vectors = pa.Array.from_buffers(pa.float32(), len(rows) * self._dimensions, [None, flat])
                data = pa.Table.from_arrays(
                    [
                        pa.array([row.id for row in rows], pa.utf8()),
                        pa.array([row.content for row in rows], pa.utf8()),
                        pa.FixedSizeListArray.from_arrays(vectors, self._dimensions),
                        pa.array([row.memory_type for row in rows], pa.utf8()),
                        pa.array([row.is_private for row in rows], pa.bool_()),
                        pa.array([_key(row.channel_id) for row in rows], pa.utf8()),
                        pa.array([_key(row.owner) for row in rows], pa.utf8()),
                    ],
                    schema=self._table.schema,
                )
                self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)
            for start in range(0, len(gone), CHUNK):
                self._table.delete(f"id IN ({_quoted(gone[start : start + CHUNK])})")

    def nearest(self, vector: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> list[Neighbour]:
        import numpy as np

        with _translated(self._folder):
            search = self._table.search(vector, vector_column_name="embedding").distance_type("cosine")
            if self._has_vector_index:
                search = search.nprobes(1).ef(max(EF, 2 * limit)).refine_factor(REFINE)
            if where := _predicate(viewer, kind):
                search = search.where(where, prefilter=True)
            # An HNSW index reports twice the cosine distance (2 - 2 cos), so similarities are computed here.
            found = search.select(["id", "embedding", "_distance"]).limit(limit).to_arrow()
            if not found.num_rows:
                return []
            ids = found.column("id").to_pylist()
            flat = found.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            scores = np.asarray(flat, np.float32).reshape(len(ids), -1) @ vector
        found_pairs = zip(ids, scores, strict=True)
        return sorted((Neighbour(id=MemoryId(i), similarity=float(s)) for i, s in found_pairs), key=by_similarity)

    def optimize(self) -> None:
        """Compact fragments and bring indexes up to date."""
        with _translated(self._folder):
            self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def build_vector_index(self) -> None:
        """Build the HNSW index once.

        With two partitions the first optimise would build it again, so there is one.
        """
        if self._has_vector_index:
            return
        from lancedb.index import HnswSq

        with _translated(self._folder):
            self._table.create_index("embedding", config=HnswSq(distance_type="cosine", num_partitions=1))
        self._has_vector_index = True


def _predicate(viewer: Viewer, kind: str | None) -> str:
    """A filter that holds nothing but constants, hashes and known labels: no text of a person gets into it."""
    parts = []
    if not viewer.sees_all:
        allowed = ["is_private = false"]
        if viewer.channel_id is not None:
            allowed.append(f"channel_key = '{_key(viewer.channel_id)}'")
        if viewer.owner is not None:
            allowed.append(f"owner_key = '{_key(viewer.owner)}'")
        parts.append(f"({' OR '.join(allowed)})")
    if kind is not None:
        parts.append(f"memory_type = '{MemoryType(kind)}'")
    return " AND ".join(parts)


def _key(text: str | None) -> str:
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()[:32]


def _quoted(ids: Iterable[str]) -> str:
    """Ids for a predicate.

    Errors: StorageError when one is not an id that this program made.
    """
    texts = list(ids)
    if bad := [text for text in texts if not is_uuid(text)]:
        raise StorageError(f"{bad[0]!r} is not a memory id")
    return ", ".join(f"'{text}'" for text in texts)


def _limit_arenas() -> None:
    """Let the library's dozens of threads share two heaps: 245 MiB instead of 377 after 10,000 rows (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Errors of the library as ours; its panics are no ordinary exceptions."""
    try:
        yield
    except StorageError:
        raise
    except BaseException as error:  # boundary: vector library
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise StorageError(f"vector table in {str(folder)!r} failed ({type(error).__name__}: {error})") from error
