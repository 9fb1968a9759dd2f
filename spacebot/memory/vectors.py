"""The LanceDB table of all vectors. All of it blocks and runs in threads.

Derived: whatever happens to the folder, it is made anew from SQLite. Private memories are filtered inside
the query, by hashes, so that no text of a person gets into a predicate.

The graph index, at 100,000 rows on two cores: links 16 and breadth 80 while building take 16 s (20 s of processor
time) and find .988 of the true fifty at a breadth of 250; the library's defaults, 20 and 300, take 87 s (70) and
find .999. A search takes 6.5 ms; the process grows by 400 MiB.

There is no full-text index here: words are found by SQLite's FTS5, which ranks as well. One here would take 1 s of
processor time, 9 MB of disk and 50 MiB of memory on top of the library, and 5 ms a search, only to stand in for a
damaged FTS5 index, which SQLite makes anew from its rows in 0.6 s of processor time.

Flow:    LanceTable.open or create -> replace, nearest, maintain
Floor:   memory; may import base; the only importer of lancedb and pyarrow
Source:  memory spec 3.3, 3.4 and pitfalls P-02 to P-06, P-15
"""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacebot.base.errors import StorageError
from spacebot.base.ids import MemoryId, is_uuid, new_uuid
from spacebot.memory.matrix import VectorRow, by_similarity
from spacebot.memory.types import MemoryType, Neighbour, Viewer

if TYPE_CHECKING:
    from spacebot.memory.embedding import Vectors

TABLE = "memory_embeddings"
CHUNK = 2000  # ids in one predicate
KEEP_VERSIONS = timedelta(minutes=10)  # of the table, for readers that are still at work
LINKS, BUILD_BREADTH = 16, 80  # of the graph; see above
EF = 250  # breadth of the graph search: of the true fifty, 150 finds .972, 250 finds .988, at the same time
REFINE = 2  # candidates per wanted row that are compared by their true vectors; 5 finds no more and takes half longer
MOST_UNINDEXED = 256  # rows outside of an index are found all the same, by reading all of them
MOST_FRAGMENTS = 20  # small files; 50 double the latency
M_ARENA_MAX, ARENAS = -8, 2  # malloc.h; must be set before the threads exist
VECTOR_INDEX = "embedding_idx"


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

    def open(self) -> set[str] | None:
        """Open the table; returns the ids that it holds, or None when there is no table yet.

        Errors: StorageError also when the table is of another shape, or holds an id twice.
        """
        lancedb = self._library()
        with _translated(self._folder):
            if not self.exists():
                return None
            table = lancedb.connect(str(self._folder)).open_table(TABLE)
            if table.schema != self._schema():
                raise StorageError(f"the vector table has another shape; {self._dimensions} numbers a row are needed")
            known = table.search().select(["id"]).limit(None).to_arrow().column("id").to_pylist()
            if len(known) != len(set(known)):
                raise StorageError("the vector table holds an id twice")
            self._table = table
            self._look_at_indexes()
        return set(known)

    def create(self, pieces: Iterable[Sequence[VectorRow]], written: Callable[[int], None] = lambda rows: None) -> None:
        """Make the table anew, in one go.

        Args:
            pieces: all rows; taken in a thread of the library's.
            written: told how many rows were taken so far.
        """
        self.drop()
        lancedb = self._library()
        import pyarrow as pa

        def batches() -> Iterator[Any]:
            total = 0
            for rows in pieces:
                yield from self._arrow(rows).to_batches()
                total += len(rows)
                written(total)

        with _translated(self._folder):
            if self._folder.exists() and not self._folder.is_dir():
                self._folder.unlink()
            self._folder.mkdir(parents=True, exist_ok=True)
            reader = pa.RecordBatchReader.from_batches(self._schema(), batches())
            self._table = lancedb.connect(str(self._folder)).create_table(TABLE, data=reader, schema=self._schema())
            self._look_at_indexes()

    def _look_at_indexes(self) -> None:
        """Make what is missing; an index is never made to find out whether it is there (pitfall P-03)."""
        from lancedb.index import Bitmap, BTree

        indexed = {column for index in self._table.list_indices() for column in index.columns}
        if "id" not in indexed:
            self._table.create_index("id", config=BTree())
        if "channel_key" not in indexed:
            self._table.create_index("channel_key", config=Bitmap())
        self._has_vector_index = "embedding" in indexed
        if self._has_vector_index:
            statistics = self._table.index_stats(VECTOR_INDEX)
            if statistics is None or statistics.distance_type != "cosine":  # of another program, or another time
                self._table.drop_index(VECTOR_INDEX)
                self._has_vector_index = False

    def _library(self) -> Any:
        """Import it: 1.2 s and 100 MiB."""
        _limit_arenas()
        os.environ.setdefault("LANCE_LOG", "error")  # read at import; otherwise warnings go to standard error
        os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # of statistics; else a warning at each look
        try:
            import lancedb
            import pyarrow  # noqa: F401
        except ImportError as error:
            self.is_missing = True
            raise StorageError("the vector library lancedb cannot be loaded; install the program anew") from error
        return lancedb

    def _schema(self) -> Any:
        import pyarrow as pa

        return pa.schema(
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

    def _arrow(self, rows: Sequence[VectorRow]) -> Any:
        import pyarrow as pa

        flat = pa.py_buffer(b"".join(row.embedding for row in rows))
        vectors = pa.Array.from_buffers(pa.float32(), len(rows) * self._dimensions, [None, flat])
        columns = [
            pa.array([row.id for row in rows], pa.utf8()),
            pa.array([row.content for row in rows], pa.utf8()),
            pa.FixedSizeListArray.from_arrays(vectors, self._dimensions),
            pa.array([row.memory_type for row in rows], pa.utf8()),
            pa.array([row.is_private for row in rows], pa.bool_()),
            pa.array([_key(row.channel_id) for row in rows], pa.utf8()),
            pa.array([_key(row.owner) for row in rows], pa.utf8()),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema())

    def drop(self) -> None:
        """Remove the table's files."""
        self._table, self._has_vector_index = None, False
        with _translated(self._folder):
            place = self._folder / f"{TABLE}.lance"
            if place.is_symlink() or place.is_file():
                place.unlink()
            shutil.rmtree(place, ignore_errors=True)
            if self.exists():
                shutil.rmtree(self._folder)

    def replace(self, rows: Sequence[VectorRow], gone: Sequence[str]) -> None:
        """Upsert rows by id, and delete others."""
        with _translated(self._folder):
            if rows:
                merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(self._arrow(rows))
            for start in range(0, len(gone), CHUNK):
                self._table.delete(f"id IN ({_quoted(gone[start : start + CHUNK])})")

    def nearest(self, vector: "Vectors", viewer: Viewer, kind: str | None, limit: int) -> list[Neighbour]:
        import numpy as np

        with _translated(self._folder):
            search = self._table.search(vector, vector_column_name="embedding").distance_type("cosine")
            if self._has_vector_index:
                search = search.nprobes(1).ef(max(EF, REFINE * limit)).refine_factor(REFINE)  # less is refused
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

    def unindexed(self) -> int:
        """Rows that the indexes do not hold yet; they are found all the same, by reading all of them."""
        with _translated(self._folder):
            names = [index.name for index in self._table.list_indices()]
            statistics = [self._table.index_stats(name) for name in names]
            return max((found.num_unindexed_rows for found in statistics if found is not None), default=0)

    def needs_optimizing(self) -> bool:
        """Whether there are many rows outside of the indexes, or many small files."""
        with _translated(self._folder):
            small = self._table.stats()["fragment_stats"]["num_small_fragments"]
            return self.unindexed() > MOST_UNINDEXED or small > MOST_FRAGMENTS

    def build_vector_index(self) -> None:
        """Build the HNSW index once.

        With two partitions the first optimise would build it again, so there is one.
        """
        if self._has_vector_index:
            return
        from lancedb.index import HnswSq

        graph = HnswSq(distance_type="cosine", num_partitions=1, m=LINKS, ef_construction=BUILD_BREADTH)
        with _translated(self._folder):
            self._table.create_index("embedding", config=graph)
        self._has_vector_index = True


def child_main(words: Sequence[str]) -> int:
    """The trial run: everything that a search needs of the library, once; see `probe.why_not`."""
    import tempfile

    import numpy as np

    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((300, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        VectorRow(
            id=MemoryId(new_uuid()), content="x", memory_type="fact", is_private=False, channel_id=None, owner=None,
            embedding=vector.tobytes(),
        )
        for vector in vectors
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        table = LanceTable(Path(folder) / "trial", 64)
        table.create([rows])
        table.build_vector_index()
        found = table.nearest(vectors[7], Viewer(), None, 3)
    return 0 if found[0].id == rows[7].id else 1


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
