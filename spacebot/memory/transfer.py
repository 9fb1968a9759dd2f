"""Memories as a file: JSON lines out and in, with ids, edges and all that counts, so that nothing changes on the way.

One header line, then a line per memory, then a line per edge. An export is one state of the store, read in pieces
while others go on writing. An import looks at every line before it writes any; then it writes in batches, each a
transaction of its own, and what is known already is passed over before anything is embedded: the same command run
again after a crash goes on where it was.

Flow:    MemoryTransfer.export -> snapshot -> pieces of bytes
         MemoryTransfer.import_file -> look at all lines -> batches: embed, one transaction, index -> edges
Floor:   memory; may import base, storage
Source:  memory spec 1, 2.1 and pitfall P-16
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import EmbeddingError, NotFoundError, RefusedError
from spacebot.base.ids import MemoryId
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.memory.curation_log import note
from spacebot.memory.embedding import Embedder
from spacebot.memory.lines import (
    FORMAT,
    VERSION,
    EdgeLine,
    Header,
    LineError,
    MemoryLine,
    edge_text,
    memory_text,
    parse_line,
)
from spacebot.memory.memory import AgentMemory
from spacebot.memory.store import fingerprint
from spacebot.storage.database import Connection, Database, Row

log = logging.getLogger(__name__)

PIECE = 500  # rows read at once for an export
BATCH = 256  # memories embedded and written in one transaction
LOOK = 2000  # lines looked at in one go of a thread
MAX_LINE = 1_000_000  # bytes; a memory of the greatest length needs a third of it, however it is escaped
MAX_FAULTS = 20  # wrong lines that are named
MIN_PREFIX = 4  # characters of an id that may stand for the whole
SHOWN = 8  # candidates named when an id is ambiguous
_PREFIX = re.compile(r"[0-9a-f-]{4,36}")
_MEMORY = (
    "SELECT m.seq, m.id, m.content, m.memory_type, m.importance, m.base_importance, m.centrality, m.access_count, "
    "m.source, m.channel_id, m.user_id, m.message_id, m.subject, m.is_private, m.owner, m.permanent, m.forgotten, "
    "m.forget_reason, m.created_at, m.updated_at, m.last_accessed_at FROM memories m"
)
_INSERT = (
    "INSERT OR IGNORE INTO memories (id, content, fingerprint, memory_type, importance, base_importance, centrality, "
    "access_count, source, channel_id, user_id, message_id, subject, is_private, owner, permanent, forgotten, "
    "forget_reason, created_at, updated_at, last_accessed_at) VALUES (:id, :content, :fingerprint, :memory_type, "
    ":importance, :base_importance, :centrality, :access_count, :source, :channel_id, :user_id, :message_id, :subject, "
    ":is_private, :owner, :permanent, :forgotten, :forget_reason, :created_at, :updated_at, :last_accessed_at)"
)
_SHARED_ENDS = (
    " JOIN memories s ON s.id = a.source_id JOIN memories t ON t.id = a.target_id "
    "WHERE s.is_private = 0 AND t.is_private = 0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an import is; `phase` is checking, importing or linking."""

    phase: str
    done: int
    total: int  # 0: not known yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCounts:
    """What an export holds, and how many private memories it leaves out."""

    memories: int
    associations: int
    left_out: int


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What an import came to."""

    memories: int = 0  # newly written; with `dry_run`, found in the file
    known: int = 0  # passed over: the id is there, or the same words in the same scope
    associations: int = 0
    known_associations: int = 0
    not_embedded: int = 0  # written without a vector, which is computed later
    is_dry_run: bool = False


@dataclass(slots=True)
class _Contents:
    """What looking at a file found."""

    ids: set[bytes] = field(default_factory=set)  # 16 bytes each
    memories: int = 0
    edges: int = 0
    foreign: dict[str, int] = field(default_factory=dict)  # ends of edges that the file does not hold -> line


class MemoryTransfer:
    """Export, import, and finding a memory by the beginning of its id; the owner's own tools, which see everything."""

    def __init__(self, database: Database, memory: AgentMemory, embedder: Embedder, clock: Clock) -> None:
        self._database = database
        self._memory = memory
        self._embedder = embedder
        self._clock = clock

    async def resolve(self, text: str) -> MemoryId:
        """The memory, forgotten or not, whose id is or begins with a text.

        Errors: RefusedError when it cannot be one, or several begin so; NotFoundError when none does.
        """
        wanted = text.strip().lower()
        if not _PREFIX.fullmatch(wanted):
            raise RefusedError(f"{text[:80]!r} is no memory id; give at least its first {MIN_PREFIX} characters")

        def read(connection: Connection) -> list[Row]:
            return connection.execute(
                "SELECT id, memory_type, content FROM memories WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                (wanted, wanted + "g", SHOWN + 1),
            ).fetchall()

        found = await self._database.read(read)
        if not found:
            raise NotFoundError(f"there is no memory {wanted!r}; spacebot memory search finds ids")
        if len(found) > 1 and found[0]["id"] != wanted:
            lines = [f"  {row['id']}  {row['memory_type']}  {preview(row['content'], 30)}" for row in found[:SHOWN]]
            more = ["  …"] if len(found) > SHOWN else []
            raise RefusedError(
                "\n".join([f"several memories begin with {wanted!r}; give more of the id:", *lines, *more])
            )
        return MemoryId(found[0]["id"])

    @asynccontextmanager
    async def export(self, *, private: bool) -> AsyncGenerator[tuple[ExportCounts, AsyncGenerator[bytes, None]], None]:
        """Give what an export holds, and its lines in pieces of some hundred; all are of one moment.

        Args:
            private: also what was learned in direct chats.

        Errors: StorageError.
        """
        async with self._database.snapshot() as read:

            async def pieces() -> AsyncGenerator[bytes, None]:
                header = {"memories": counts.memories, "associations": counts.associations}
                yield json.dumps({"format": FORMAT, "version": VERSION, **header}).encode() + b"\n"
                last_seq = 0
                while rows := await read(partial(_memories_after, seq=last_seq, private=private)):
                    last_seq = rows[-1]["seq"]
                    yield await trio.to_thread.run_sync(_joined, memory_text, rows)
                last_id = ""
                while rows := await read(partial(_edges_after, edge_id=last_id, private=private)):
                    last_id = rows[-1]["id"]
                    yield await trio.to_thread.run_sync(_joined, edge_text, rows)

            counts = await read(lambda c: _count(c, private))
            async with aclosing(pieces()) as parts:
                yield counts, parts

    async def import_file(
        self,
        file: BinaryIO,
        *,
        dry_run: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> ImportReport:
        """Take in the lines of a file, which is read twice.

        Args:
            file: seekable, at its beginning.
            dry_run: only look at every line.

        Errors: RefusedError naming each wrong line; then nothing was written. StorageError; then what came before is
            written, and the same import goes on from there.
        Cancel: between batches; what is written stays.
        """
        contents = await self._look(file, on_progress)
        report = ImportReport(is_dry_run=dry_run)
        if dry_run:
            report.memories, report.associations = contents.memories, contents.edges
            return report
        replaced: dict[str, str] = {}  # id in the file -> id of the same words in the store
        done = 0
        lines = _Batches(file, MemoryLine)
        while batch := await lines.next():
            await self._take_memories(batch, contents.ids, replaced, report)
            done += len(batch)
            on_progress(Progress(phase="importing", done=done, total=contents.memories))
        if contents.edges:
            done, lines = 0, _Batches(file, EdgeLine)
            while edges := await lines.next():
                await self._take_edges(edges, replaced, report)
                done += len(edges)
                on_progress(Progress(phase="linking", done=done, total=contents.edges))
        if report.memories or report.associations:
            await self._database.write(lambda c: _note_import(c, report, self._clock.text()))
            log.info("memories imported", extra=kv(memories=report.memories, known=report.known))
        return report

    async def _look(self, file: BinaryIO, on_progress: Callable[[Progress], None]) -> _Contents:
        """Check all lines. Errors: RefusedError."""
        contents, checker = _Contents(), _Checker()
        file.seek(0)
        while await trio.to_thread.run_sync(checker.look, file, contents):
            on_progress(Progress(phase="checking", done=checker.number, total=0))
        if not contents.memories and not contents.edges and not checker.faults and checker.header is None:
            checker.faults.append("the file holds no memory; each line must be a JSON object with a content")
        checker.compare(contents)
        if contents.foreign:
            missing = await self._database.read(lambda c: _unknown(c, contents.foreign))
            checker.faults += [
                f"line {contents.foreign[key]}: the association names the memory {key}, which is neither in this file "
                "nor in the store; add its line or remove this one"
                for key in missing[: MAX_FAULTS + 1]
            ]
        if checker.faults:
            more = ["…"] if len(checker.faults) > MAX_FAULTS else []
            head = "nothing was imported, because the file is not right:"
            raise RefusedError("\n".join([head, *checker.faults[:MAX_FAULTS], *more]))
        return contents

    async def _take_memories(
        self, batch: "list[MemoryLine]", in_file: set[bytes], replaced: dict[str, str], report: ImportReport
    ) -> None:
        now = self._clock.text()
        rows = [_row(line, now) for line in batch]
        same = await self._database.read(lambda c: _known(c, rows, in_file))
        replaced.update(same)
        fresh = list({row["id"]: row for row in rows if row["id"] not in same}.values())
        report.known += len(rows) - len(fresh)
        if not fresh:
            return
        live = [row for row in fresh if not row["forgotten"]]
        vectors: dict[str, bytes] = {}
        if live:
            try:
                found = await self._embedder.embed([row["content"] for row in live])
                vectors = {row["id"]: vector.tobytes() for row, vector in zip(live, found, strict=True)}
            except EmbeddingError as error:
                log.warning("memories imported without vectors", exc_info=error)
        written = await self._database.write(lambda c: _insert(c, fresh, vectors, self._embedder.name))
        with trio.CancelScope(shield=True):  # what is on disk must be found
            embedded = [MemoryId(key) for key in written if key in vectors]
            await self._memory.refresh(embedded=embedded, embedding_due=len(vectors) < len(live))
        report.memories += len(written)
        report.known += len(fresh) - len(written)
        report.not_embedded += len(live) - len(vectors)

    async def _take_edges(self, batch: "list[EdgeLine]", replaced: dict[str, str], report: ImportReport) -> None:
        now = self._clock.text()
        rows = [
            {
                **line.values,
                "id": line.values["id"] or _made_id("edge", *line.key),
                "created_at": line.values["created_at"] or now,
                "source_id": replaced.get(line.values["source_id"], line.values["source_id"]),
                "target_id": replaced.get(line.values["target_id"], line.values["target_id"]),
            }
            for line in batch
        ]
        rows = [row for row in rows if row["source_id"] != row["target_id"]]
        made = await self._database.write(lambda c: _link(c, rows))
        report.associations += made
        report.known_associations += len(batch) - made


class _Checker:
    """Looks at lines in order, and keeps what is wrong with them."""

    def __init__(self) -> None:
        self.number = 0
        self.header: Header | None = None
        self.faults: list[str] = []
        self._seen: dict[bytes, int] = {}
        self._ends: dict[str, int] = {}

    def look(self, file: BinaryIO, contents: _Contents) -> bool:
        """Look at the next lines; False at the end."""
        for _ in range(LOOK):
            raw = file.readline(MAX_LINE + 1)
            if not raw or len(self.faults) > MAX_FAULTS:
                return False
            self.number += 1
            if len(raw) > MAX_LINE:
                self.faults.append(f"line {self.number}: it is longer than {MAX_LINE} bytes; make it several memories")
                return False
            try:
                self._take(parse_line(raw), contents)
            except LineError as error:
                cut = "" if raw.endswith(b"\n") or not error.is_syntax else " (the file ends here: was it cut off?)"
                self.faults.append(f"line {self.number}: {error}{cut}")
        return True

    def compare(self, contents: _Contents) -> None:
        """Compare with what the header promised, and find edges that point out of the file."""
        contents.foreign = {key: line for key, line in self._ends.items() if _short(key) not in contents.ids}
        if self.header is None or self.faults:
            return
        for name, there, promised in (
            ("memories", contents.memories, self.header.memories),
            ("associations", contents.edges, self.header.associations),
        ):
            if promised is not None and there != promised:
                self.faults.append(
                    f"the first line promises {promised} {name}, the file holds {there}: it was cut off or changed; "
                    "get it again, or remove the first line if the change was meant"
                )

    def _take(self, line: Header | MemoryLine | EdgeLine | None, contents: _Contents) -> None:
        if isinstance(line, Header):
            if self.number > 1:
                raise LineError("a second header; import one file after the other")
            self.header = line
        elif isinstance(line, MemoryLine):
            contents.memories += 1
            if (given := line.values["id"]) is not None:
                key = _short(given)
                if key in contents.ids:
                    raise LineError(f"the id {given} stands in line {self._seen[key]} already; remove one of the two")
                contents.ids.add(key)
                self._seen[key] = self.number
        elif isinstance(line, EdgeLine):
            contents.edges += 1
            for end in (line.values["source_id"], line.values["target_id"]):
                self._ends.setdefault(end, self.number)


def _short(key: str) -> bytes:
    return bytes.fromhex(key.replace("-", ""))


def _made_id(*parts: str | None) -> str:
    """An id for a line without one; the same line gets the same id, so that it is not taken in twice."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _row(line: MemoryLine, now: str) -> dict[str, Any]:
    """A memory's columns, with what the line leaves open."""
    row = dict(line.values)
    row["fingerprint"] = fingerprint(row["content"])
    scope = (row["owner"], row["channel_id"]) if row["is_private"] else ()
    row["id"] = row["id"] or _made_id("memory", row["fingerprint"], *scope)
    row["has_own_id"] = line.values["id"] is not None
    row["created_at"] = row["created_at"] or now
    row["updated_at"] = row["updated_at"] or row["created_at"]
    row["last_accessed_at"] = row["last_accessed_at"] or now
    return row


class _Batches:
    """The lines of one kind, some hundred at a time; an empty batch is the end."""

    def __init__(self, file: BinaryIO, kind: type) -> None:
        self._file = file
        self._kind = kind
        file.seek(0)

    async def next(self) -> list[Any]:
        """Read on, in a thread."""
        return await trio.to_thread.run_sync(self._read)

    def _read(self) -> list[Any]:
        batch: list[Any] = []
        while len(batch) < BATCH and (raw := self._file.readline(MAX_LINE + 1)):
            if isinstance(line := parse_line(raw), self._kind):
                batch.append(line)
        return batch


def _joined(text_of: Callable[[Row], str], rows: Sequence[Row]) -> bytes:
    return "".join(f"{text_of(row)}\n" for row in rows).encode()


def _memories_after(c: Connection, seq: int, private: bool) -> list[Row]:
    return c.execute(
        f"{_MEMORY} WHERE m.seq > ? AND (? OR m.is_private = 0) ORDER BY m.seq LIMIT ?", (seq, private, PIECE)
    ).fetchall()


def _edges_after(c: Connection, edge_id: str, private: bool) -> list[Row]:
    where = " WHERE true" if private else _SHARED_ENDS
    return c.execute(
        f"SELECT a.* FROM associations a{where} AND a.id > ? ORDER BY a.id LIMIT ?", (edge_id, PIECE)
    ).fetchall()


def _count(c: Connection, private: bool) -> ExportCounts:
    (everything, hidden) = c.execute("SELECT count(*), coalesce(sum(is_private), 0) FROM memories").fetchone()
    (edges,) = c.execute(f"SELECT count(*) FROM associations a{'' if private else _SHARED_ENDS}").fetchone()
    left_out = 0 if private else hidden
    return ExportCounts(memories=everything - left_out, associations=edges, left_out=left_out)


def _unknown(c: Connection, ids: Iterable[str]) -> list[str]:
    rows = c.execute(
        "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM memories)", (json.dumps(list(ids)),)
    )
    return [row[0] for row in rows]


def _known(c: Connection, rows: Sequence[dict[str, Any]], in_file: set[bytes]) -> dict[str, str]:
    """Which of these memories need not be written: id -> the id under which the store has it."""
    same = {
        str(row[0]): str(row[0])
        for row in c.execute(
            "SELECT id FROM memories WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([row["id"] for row in rows]),),
        )
    }
    candidates: dict[str, list[Row]] = {}
    for found in c.execute(
        "SELECT m.id, m.fingerprint, m.is_private, m.channel_id, m.owner FROM memories m "
        "WHERE m.fingerprint IN (SELECT value FROM json_each(?)) AND +m.forgotten = 0 ORDER BY m.seq",
        (json.dumps([row["fingerprint"] for row in rows if not row["forgotten"]]),),
    ):
        candidates.setdefault(found["fingerprint"], []).append(found)
    for row in rows:
        if row["id"] in same or row["forgotten"]:
            continue
        for found in candidates.get(row["fingerprint"], ()):
            # Two lines of one file that name different ids are two memories, as they were where they come from.
            if _is_same_scope(row, found) and not (row["has_own_id"] and _short(found["id"]) in in_file):
                same[row["id"]] = found["id"]
                break
    return same


def _is_same_scope(row: dict[str, Any], found: Row) -> bool:
    if bool(found["is_private"]) != row["is_private"]:
        return False
    if not row["is_private"] or found["channel_id"] == row["channel_id"]:
        return True
    return found["owner"] is not None and found["owner"] == row["owner"]


def _insert(c: Connection, rows: Sequence[dict[str, Any]], vectors: dict[str, bytes], model: str) -> list[str]:
    """Write memories with their vectors; returns the ids that were not there."""
    written = []
    for row in rows:
        values = {key: value for key, value in row.items() if key != "has_own_id"}
        if c.execute(_INSERT, values).rowcount != 1:
            continue
        written.append(row["id"])
        if (vector := vectors.get(row["id"])) is not None:
            c.execute(
                "INSERT INTO embeddings (seq, memory_id, model, embedding) "
                "SELECT seq, id, ?, ? FROM memories WHERE id = ?",
                (model, vector, row["id"]),
            )
    return written


def _link(c: Connection, rows: Iterable[dict[str, Any]]) -> int:
    """Make the edges whose ends are both there; returns how many are new."""
    made = 0
    for row in rows:
        made += c.execute(
            "INSERT OR IGNORE INTO associations (id, source_id, target_id, relation_type, weight, origin, created_at) "
            "SELECT :id, :source_id, :target_id, :relation_type, :weight, :origin, :created_at "
            "WHERE EXISTS (SELECT 1 FROM memories WHERE id = :source_id) "
            "AND EXISTS (SELECT 1 FROM memories WHERE id = :target_id)",
            row,
        ).rowcount
    return made


def _note_import(c: Connection, report: ImportReport, now: str) -> None:
    note(
        c,
        now,
        "memories_imported",
        f"{report.memories} memories and {report.associations} associations imported from a file",
        memories=report.memories,
        known=report.known,
        associations=report.associations,
    )
