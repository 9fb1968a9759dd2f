"""The transaction of a save: row, vector and edges together, the same words once.

Flow:    checked_content -> insert -> known words or a new row -> vector -> edges -> Inserted
Floor:   memory; may import base, storage
Source:  memory spec 5, 6
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from spacebot.base.clock import from_text, to_text
from spacebot.base.errors import RefusedError
from spacebot.base.ids import MemoryId, new_uuid
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, size_bytes
from spacebot.memory.linking import LinkPolicy, link, link_similar, nodes
from spacebot.memory.store import COLUMNS, LIVE, fingerprint, load, to_memory
from spacebot.memory.types import (
    CONTENT_LIMIT,
    DEFAULT_IMPORTANCE,
    EVERYTHING,
    Association,
    Memory,
    Neighbour,
    NewMemory,
)
from spacebot.storage.database import Connection

FUTURE = timedelta(days=1)  # by which clocks may differ


def checked_content(text: str) -> str:
    """A text as it may be kept: secrets and what SQLite cannot hold are taken out.

    Errors: RefusedError when nothing is left, or too much.
    """
    content = scrub(clean_unicode(text).replace("\0", "")).strip()
    if not content:
        raise RefusedError("the content is empty; say in one sentence what to remember")
    if size_bytes(content) > CONTENT_LIMIT:
        raise RefusedError(f"the content is longer than {CONTENT_LIMIT} bytes; save its parts, one fact each")
    return content


def check_fractions(numbers: Iterable[float]) -> None:
    """Importance and weights are shares.

    Errors: RefusedError.
    """
    if any(not 0 <= number <= 1 for number in numbers):
        raise RefusedError("importance and weights must lie between 0 and 1")


def check_date(moment: datetime | None, now: datetime) -> None:
    """What is remembered has happened, or is said now.

    Errors: RefusedError.
    """
    if moment is not None and _aware(moment) > now + FUTURE:
        raise RefusedError("created_at lies in the future; leave it out, and say the date in the content")


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted:
    """What the transaction of a save did."""

    memory: Memory
    is_new: bool
    needs_embedding: bool
    skipped: tuple[str, ...] = ()
    linked: tuple[Association, ...] = ()


def insert(
    connection: Connection,
    new: NewMemory,
    content: str,
    *,
    embedding: bytes | None,
    model: str,
    similar: Sequence[Neighbour],
    policy: LinkPolicy,
    now: str,
) -> Inserted:
    """Save a memory, its vector and its edges inside a transaction.

    Args:
        embedding: float32 of unit length; None when it could not be computed.
        similar: neighbours that may become edges.

    When the same words are live already in the same scope, that memory is returned and nothing is added
    but what it lacks: a vector, a higher importance, wanted edges.
    """
    origin = new.provenance
    viewer = origin.viewer
    mark = fingerprint(content)
    importance = DEFAULT_IMPORTANCE[new.memory_type] if new.importance is None else new.importance
    known = connection.execute(
        f"SELECT {COLUMNS} FROM memories m WHERE m.fingerprint = :mark AND {LIVE} AND m.is_private = :private "
        "AND (:private = 0 OR m.channel_id IS :channel OR m.owner = :owner) ORDER BY m.seq LIMIT 1",
        {"mark": mark, "private": origin.is_direct, "channel": origin.channel_id, "owner": viewer.owner},
    ).fetchone()
    if known is not None:
        memory = to_memory(known)
        connection.execute(
            "UPDATE memories SET importance = max(importance, ?), base_importance = max(base_importance, ?), "
            "permanent = max(permanent, ?) WHERE id = ?",
            (importance, importance, new.permanent, memory.id),
        )
    else:
        memory = Memory(
            id=MemoryId(new_uuid()),
            content=content,
            memory_type=new.memory_type,
            importance=importance,
            created_at=_aware(new.created_at or from_text(now)),
            updated_at=_aware(new.created_at or from_text(now)),
            last_accessed_at=from_text(now),  # it was looked at when it was brought in: it must not count as long idle
            source=origin.source,
            channel_id=origin.channel_id,
            user_id=origin.user_id,
            message_id=origin.message_id,
            subject=new.subject,
            is_private=origin.is_direct,
            permanent=new.permanent,
        )
        connection.execute(
            "INSERT INTO memories (id, content, fingerprint, memory_type, importance, base_importance, source, "
            "channel_id, user_id, message_id, subject, is_private, owner, permanent, created_at, updated_at, "
            "last_accessed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (memory.id, content, mark, new.memory_type, importance, importance, origin.source, origin.channel_id,
             origin.user_id, origin.message_id, new.subject, origin.is_direct, viewer.owner, new.permanent,
             to_text(memory.created_at), to_text(memory.updated_at), now),
        )  # fmt: skip
    has_vector = connection.execute(
        "SELECT 1 FROM embeddings WHERE memory_id = ? AND model = ?", (memory.id, model)
    ).fetchone()
    if embedding is not None and has_vector is None:
        connection.execute(
            "INSERT OR REPLACE INTO embeddings (seq, memory_id, model, embedding) "
            "SELECT seq, id, ?, ? FROM memories WHERE id = ?",
            (model, embedding, memory.id),
        )
    skipped = link(connection, memory, new.associations, viewer, now)
    linked: tuple[Association, ...] = ()
    if known is None and similar:
        node = nodes(connection, [memory.id], EVERYTHING)[memory.id]
        linked = link_similar(connection, node, similar, viewer, policy, now)
    return Inserted(
        memory=load(connection, [memory.id], viewer).get(memory.id, memory),
        is_new=known is None,
        needs_embedding=embedding is None and has_vector is None,
        skipped=skipped,
        linked=linked,
    )
