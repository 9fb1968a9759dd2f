"""What models saw: the newest requests of an agent, piece by piece, as rows.

A piece (a part of the system prompt, a tool, a message's part) is kept once, under a hash of its text, however many
requests held it. Pieces that no request holds any more go when requests have gone.

Flow:   entries of a batch -> CaptureLog.add (one transaction) -> page, find
Floor:  conversations
Source: control spec 9 (prompt inspector); ours
"""

import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from spacebot.llm.messages import Usage
from spacebot.storage.database import Connection, Database, Row

HASH = 16  # bytes of a hash
SWEEP = 64  # requests that are added between two looks for pieces which nobody holds
GONE = "[no longer kept]"


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a request.

    Args:
        kind: `system`, `tools` or `message`.
        name: a heading, or the tool that a piece is about.
        form: of a message's part: text, call, result, image, reasoning.
        tokens: roughly how many it has.
    """

    kind: str
    name: str | None
    role: str | None
    form: str
    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureEntry:
    """One request with its answer, ready to be kept.

    Args:
        layout: hashes of its pieces in order, `HASH` bytes each.
        pieces: those that may be new, without secrets, by their hash.
    """

    created_at: str
    channel_id: str | None
    process_type: str
    process_id: str | None
    step: int
    model: str
    usage: Usage
    finish_reason: str
    layout: bytes
    reply: Mapping[str, Any]
    pieces: Mapping[bytes, Piece] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A kept request without its pieces."""

    id: int
    created_at: str
    channel_id: str | None
    process_type: str
    process_id: str | None
    step: int
    model: str
    usage: Usage
    finish_reason: str
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCapture:
    """A kept request with its pieces in order, and what was answered."""

    capture: Capture
    pieces: Sequence[Piece]
    reply: Mapping[str, Any]


class CaptureLog:
    """Reads and writes of the kept requests; one instance per agent."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._added = SWEEP  # the first batch of a life sweeps what the last one left

    async def add(self, prepare: Callable[[], Sequence[CaptureEntry]], *, keep: int) -> Collection[bytes]:
        """Keep requests, and only the newest `keep` of all; returns the hashes of the pieces that went.

        Args:
            prepare: called in the writer's thread for the entries; an empty list means that they are not wanted any
                more.

        Errors: StorageError.
        """

        def write(c: Connection) -> Collection[bytes]:
            entries = prepare()
            for entry in entries:
                _insert(c, entry)
            c.execute(
                "DELETE FROM prompt_captures WHERE id <= "
                "(SELECT id FROM prompt_captures ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (keep,),
            )
            self._added += len(entries)
            if self._added < SWEEP:
                return ()
            self._added = 0
            return _sweep(c)

        return await self._database.write(write)

    async def clear(self) -> None:
        """Remove all. Errors: StorageError."""
        await self._database.write(erase_captures)

    async def page(
        self, *, limit: int, before: int | None = None, channel_id: str | None = None, process_id: str | None = None
    ) -> list[Capture]:
        """Requests, the newest first; `before` is the id of the last one already known. Errors: StorageError."""

        def read(c: Connection) -> list[Capture]:
            where, values = ["id < ?"], [before if before is not None else 1 << 62]
            named: list[tuple[str, object]] = [("channel_id", channel_id), ("process_id", process_id)]
            given = [(column, value) for column, value in named if value is not None]
            where += [f"{column} = ?" for column, _ in given]
            rows = c.execute(
                f"SELECT * FROM prompt_captures WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",
                (*values, *(value for _, value in given), limit),
            )
            return [_to_capture(row) for row in rows]

        return await self._database.read(read)

    async def find(self, capture_id: int) -> ShownCapture | None:
        """One request with its pieces; None when it is not kept (any more). Errors: StorageError."""

        def read(c: Connection) -> ShownCapture | None:
            row = c.execute("SELECT * FROM prompt_captures WHERE id = ?", (capture_id,)).fetchone()
            if row is None:
                return None
            digests = _split(row["layout"])
            pieces = {digest: _piece(c, digest) for digest in set(digests)}
            reply = json.loads(zlib.decompress(row["reply"]))
            return ShownCapture(capture=_to_capture(row), pieces=[pieces[one] for one in digests], reply=reply)

        return await self._database.read(read)


def erase_captures(c: Connection) -> None:
    """Remove everything that models saw; a step of a caller's transaction."""
    c.execute("DELETE FROM prompt_captures")
    c.execute("DELETE FROM prompt_blocks")


def _insert(c: Connection, entry: CaptureEntry) -> None:
    c.executemany(
        "INSERT OR IGNORE INTO prompt_blocks (hash, body) VALUES (?, ?)",
        [(digest, _packed(json.dumps(astuple(piece)))) for digest, piece in entry.pieces.items()],
    )
    c.execute(
        "INSERT INTO prompt_captures (created_at, channel_id, process_type, process_id, step, model, usage, "
        "finish_reason, block_count, layout, reply) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.created_at, entry.channel_id, entry.process_type, entry.process_id, entry.step, entry.model,
            json.dumps(asdict(entry.usage)), entry.finish_reason, len(entry.layout) // HASH, entry.layout,
            _packed(json.dumps(entry.reply)),
        ),
    )  # fmt: skip


def _sweep(c: Connection) -> Collection[bytes]:
    """Remove the pieces that no kept request holds; returns their hashes."""
    held: set[bytes] = set()
    for row in c.execute("SELECT layout FROM prompt_captures"):
        held.update(_split(row["layout"]))
    gone = [row["hash"] for row in c.execute("SELECT hash FROM prompt_blocks") if row["hash"] not in held]
    c.executemany("DELETE FROM prompt_blocks WHERE hash = ?", [(digest,) for digest in gone])
    return gone


def _split(layout: bytes) -> list[bytes]:
    return [layout[start : start + HASH] for start in range(0, len(layout), HASH)]


def _piece(c: Connection, digest: bytes) -> Piece:
    row = c.execute("SELECT body FROM prompt_blocks WHERE hash = ?", (digest,)).fetchone()
    if row is None:
        return Piece("message", None, None, "text", GONE, 0)
    return Piece(*json.loads(zlib.decompress(row["body"])))


def _packed(text: str) -> bytes:
    return zlib.compress(text.encode(errors="replace"), 1)


def _to_capture(row: Row) -> Capture:
    return Capture(
        id=row["id"],
        created_at=row["created_at"],
        channel_id=row["channel_id"],
        process_type=row["process_type"],
        process_id=row["process_id"],
        step=row["step"],
        model=row["model"],
        usage=Usage(**json.loads(row["usage"])),
        finish_reason=row["finish_reason"],
        blocks=row["block_count"],
    )
