"""Rows on the documents of the drop folder: how far each one is, what failed, when it is tried again.

A document is its text: the key is the SHA-256 of what was extracted, so the same words under another name are the
same document. What could not be read is keyed by its bytes.

Flow:   find -> begin -> chunk_done … -> complete | fail | postpone; removed by its owner
Floor:  conversations
Source: memory spec 4.8, 13.3 and its pitfall P-13
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from spacebot.base.clock import Clock, to_text
from spacebot.storage.database import Connection, Database, Row

LISTED = 100  # rows of a listing; memory spec 13.6
VANISHED = "taken out of the folder before it was finished"


class IngestStatus(StrEnum):
    """How a document stands."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"  # will be tried again, or is gone
    QUARANTINED = "quarantined"  # waits for its owner


OPEN = (IngestStatus.QUEUED, IngestStatus.PROCESSING, IngestStatus.FAILED, IngestStatus.QUARANTINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestedFile:
    """One document; times as rows keep them."""

    content_hash: str
    filename: str
    file_size: int  # bytes
    total_chunks: int
    chunks_completed: int
    status: IngestStatus
    attempts: int
    next_attempt_at: str | None
    last_error: str | None
    started_at: str
    completed_at: str | None


_COLUMNS = (
    "f.content_hash, f.filename, f.file_size, f.total_chunks, f.status, f.attempts, f.next_attempt_at, f.last_error, "
    "f.started_at, f.completed_at, iif(f.status = 'completed', f.total_chunks, "
    "(SELECT count(*) FROM ingestion_progress p WHERE p.content_hash = f.content_hash)) AS chunks_completed"
)
_INSERT = (
    "INSERT INTO ingestion_files (content_hash, filename, file_size, total_chunks, chunk_size, status, attempts, "
    "next_attempt_at, last_error, started_at, completed_at) "
    "VALUES (:hash, :name, :bytes, :total, :size, :status, :attempts, :next, :error, :now, :done) "
)


class IngestionLog:
    """Reads and writes of the rows; each write is one transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def find(self, content_hash: str) -> IngestedFile | None:
        """The row of a document."""
        rows = await self._read(
            f"SELECT {_COLUMNS} FROM ingestion_files f WHERE f.content_hash = :hash", {"hash": content_hash}
        )
        return _to_file(rows[0]) if rows else None

    async def recent(self, limit: int = LISTED) -> list[IngestedFile]:
        """The newest rows first."""
        rows = await self._read(
            f"SELECT {_COLUMNS} FROM ingestion_files f ORDER BY f.started_at DESC, f.rowid DESC LIMIT :limit",
            {"limit": limit},
        )
        return [_to_file(row) for row in rows]

    async def queue(self, content_hash: str, filename: str, file_size: int) -> None:
        """Note a document that waits; one that is known already keeps its row."""
        parameters = self._values(content_hash, filename, file_size, status=IngestStatus.QUEUED)
        await self._write(_INSERT + "ON CONFLICT (content_hash) DO NOTHING", parameters)

    async def begin(
        self, content_hash: str, filename: str, file_size: int, *, total_chunks: int, chunk_size: int
    ) -> frozenset[int]:
        """Note that a document is being read; returns the numbers of the chunks that are done.

        Progress that was made with another chunk size is discarded: its numbers mean other pieces.
        """
        parameters = self._values(
            content_hash, filename, file_size, status=IngestStatus.PROCESSING, total=total_chunks, size=chunk_size
        )

        def write(connection: Connection) -> frozenset[int]:
            connection.execute(
                "DELETE FROM ingestion_progress WHERE content_hash = :hash AND NOT EXISTS (SELECT 1 FROM "
                "ingestion_files f WHERE f.content_hash = :hash AND f.chunk_size = :size AND f.total_chunks = :total)",
                parameters,
            )
            connection.execute(
                _INSERT + "ON CONFLICT (content_hash) DO UPDATE SET filename = :name, file_size = :bytes, "
                "total_chunks = :total, chunk_size = :size, status = :status, next_attempt_at = NULL, "
                "completed_at = NULL",
                parameters,
            )
            rows = connection.execute(
                "SELECT chunk_index FROM ingestion_progress WHERE content_hash = :hash", parameters
            ).fetchall()
            return frozenset(row["chunk_index"] for row in rows)

        return await self._database.write(write)

    async def chunk_done(self, content_hash: str, index: int) -> None:
        """Note that a chunk need not be read again."""
        await self._write(
            "INSERT OR IGNORE INTO ingestion_progress (content_hash, chunk_index, completed_at) "
            "VALUES (:hash, :index, :now)",
            {"hash": content_hash, "index": index, "now": self._clock.text()},
        )

    async def complete(self, content_hash: str, filename: str, file_size: int, *, total_chunks: int) -> None:
        """Note that a document is finished. Its progress stays until its file is gone (`clear_progress`)."""
        parameters = self._values(
            content_hash, filename, file_size, status=IngestStatus.COMPLETED, total=total_chunks
        ) | {"done": self._clock.text()}
        await self._write(
            _INSERT + "ON CONFLICT (content_hash) DO UPDATE SET filename = :name, file_size = :bytes, "
            "total_chunks = :total, status = :status, next_attempt_at = NULL, last_error = NULL, completed_at = :done",
            parameters,
        )

    async def clear_progress(self, content_hash: str) -> None:
        """Drop the chunk rows of a finished document."""
        await self._write("DELETE FROM ingestion_progress WHERE content_hash = :hash", {"hash": content_hash})

    async def fail(
        self, content_hash: str, filename: str, file_size: int, reason: str, *, attempts: int, next_at: datetime | None
    ) -> None:
        """Note a failed attempt; without a next one the document is in quarantine."""
        status = IngestStatus.QUARANTINED if next_at is None else IngestStatus.FAILED
        parameters = self._values(content_hash, filename, file_size, status=status) | {
            "attempts": attempts,
            "error": reason,
            "next": None if next_at is None else to_text(next_at),
        }
        await self._write(
            _INSERT + "ON CONFLICT (content_hash) DO UPDATE SET filename = :name, file_size = :bytes, "
            "status = :status, attempts = :attempts, next_attempt_at = :next, last_error = :error",
            parameters,
        )

    async def postpone(self, content_hash: str, reason: str | None, next_at: datetime | None) -> None:
        """Put a document back without counting it as its failure."""
        await self._write(
            "UPDATE ingestion_files SET status = 'queued', next_attempt_at = :next, "
            "last_error = coalesce(:error, last_error) WHERE content_hash = :hash",
            {"hash": content_hash, "error": reason, "next": None if next_at is None else to_text(next_at)},
        )

    async def rearm(self, content_hash: str) -> None:
        """Take a document out of quarantine, as if it had never failed."""
        await self._write(
            "UPDATE ingestion_files SET status = 'queued', attempts = 0, next_attempt_at = NULL "
            "WHERE content_hash = :hash AND status = 'quarantined'",
            {"hash": content_hash},
        )

    async def recover(self) -> None:
        """What the last life was reading waits again."""
        await self._write("UPDATE ingestion_files SET status = 'queued' WHERE status = 'processing'", {})

    async def note_vanished(self, present: Collection[str]) -> None:
        """Close the rows of documents whose file was taken away."""

        def write(connection: Connection) -> None:
            rows = connection.execute(
                "SELECT content_hash, filename FROM ingestion_files WHERE status IN (?, ?, ?, ?) "
                "AND (last_error IS NULL OR last_error <> ?)",
                (*OPEN, VANISHED),
            ).fetchall()
            connection.executemany(
                "UPDATE ingestion_files SET status = 'failed', last_error = ?, next_attempt_at = NULL "
                "WHERE content_hash = ?",
                [(VANISHED, row["content_hash"]) for row in rows if row["filename"] not in present],
            )

        await self._database.write(write)

    async def remove(self, content_hash: str) -> None:
        """Forget a document with its progress: the same words are then new again."""
        await self._write("DELETE FROM ingestion_files WHERE content_hash = :hash", {"hash": content_hash})

    def _values(
        self, content_hash: str, filename: str, file_size: int, *, status: IngestStatus, total: int = 0, size: int = 0
    ) -> dict[str, object]:
        return {
            "hash": content_hash, "name": filename, "bytes": file_size, "total": total, "size": size,
            "status": status, "attempts": 0, "next": None, "error": None, "now": self._clock.text(), "done": None,
        }  # fmt: skip

    async def _read(self, statement: str, parameters: dict[str, object]) -> list[Row]:
        return await self._database.read(lambda connection: connection.execute(statement, parameters).fetchall())

    async def _write(self, statement: str, parameters: dict[str, object]) -> None:
        await self._database.write(lambda connection: connection.execute(statement, parameters).rowcount)


def _to_file(row: Row) -> IngestedFile:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - iterating a row gives its values
    return IngestedFile(**{**fields, "status": IngestStatus(fields["status"])})
