"""Two memories that say the same become one; nothing that one of them says is lost.

A similarity above the threshold is not enough: the words of both are compared, and one detail too many keeps
both. The absorbed memory stays as a forgotten row until it is purged, so a merge can be undone.

Flow:    survivor_of -> merge (one transaction) -> edges moved, absorbed row forgotten, log row
Floor:   memory; may import base, storage
Source:  memory spec 9.6, pitfalls P-12 and P-40
"""

from spacebot.base.ids import MemoryId, new_uuid
from spacebot.memory.comparison import Difference, differences, says_less
from spacebot.memory.curation_log import note, person_of
from spacebot.memory.linking import UPDATED_FACTOR, Node, is_same_scope, speak_of_the_same
from spacebot.memory.types import Memory, MemoryType, Origin, RelationType
from spacebot.storage.database import Connection

MERGED_INTO = "merged into "  # begins the reason of an absorbed row


def survivor_of(one: Node, other: Node) -> tuple[Memory, Memory] | None:
    """Which of two near-duplicates stays and which is absorbed; None when they must both stay.

    The one that says more stays; when both say the same, the more important, then the smaller id.
    """
    a, b = one.memory, other.memory
    if a.id == b.id or a.memory_type is not b.memory_type or not is_same_scope(one, other):
        return None
    if any(m.permanent or m.memory_type is MemoryType.IDENTITY for m in (a, b)) or not speak_of_the_same(a, b):
        return None
    found = differences(a.content, b.content)
    if found - {Difference.DETAIL}:
        return None
    if found:
        return (b, a) if says_less(a.content, b.content) else (a, b)
    first, second = sorted((a, b), key=lambda memory: (-memory.importance, memory.id))
    return first, second


def may_merge(connection: Connection, one: Memory, other: Memory) -> bool:
    """Whether nothing that a model said speaks against a merge."""
    edge = connection.execute(
        "SELECT 1 FROM associations WHERE ((source_id = :a AND target_id = :b) OR (source_id = :b AND target_id = :a)) "
        "AND (relation_type = 'contradicts' OR (origin = 'llm' AND relation_type <> 'related_to')) "
        "UNION SELECT 1 FROM memory_verdicts WHERE verdict IS NOT NULL "
        "AND ((newer_id = :a AND older_id = :b) OR (newer_id = :b AND older_id = :a))",
        {"a": one.id, "b": other.id},
    ).fetchone()
    return edge is None


def merge(connection: Connection, survivor: Memory, absorbed: Memory, now: str) -> None:
    """Let one memory take the other in, inside a transaction.

    The survivor keeps its text. Edges move; where both had the same one, the greater weight stays.
    """
    connection.execute(  # when it was saved, the later one counted as a newer version
        "UPDATE memories SET base_importance = min(1.0, base_importance / :f), importance = min(1.0, importance / :f) "
        "WHERE id IN (SELECT target_id FROM associations WHERE relation_type = 'updates' AND origin = 'auto' "
        "AND source_id IN (:survivor, :absorbed) AND target_id IN (:survivor, :absorbed))",
        {"f": UPDATED_FACTOR, "survivor": survivor.id, "absorbed": absorbed.id},
    )
    connection.execute(
        "UPDATE memories SET base_importance = max(memories.base_importance, a.base_importance), "
        "importance = max(memories.importance, a.importance), access_count = memories.access_count + a.access_count, "
        "last_accessed_at = max(memories.last_accessed_at, a.last_accessed_at), "
        "created_at = min(memories.created_at, a.created_at) "
        "FROM (SELECT * FROM memories WHERE id = :absorbed) a WHERE memories.id = :survivor",
        {"survivor": survivor.id, "absorbed": absorbed.id},
    )
    _move_edges(connection, survivor.id, absorbed.id)
    connection.execute(
        "INSERT INTO associations (id, source_id, target_id, relation_type, weight, origin, created_at) "
        "VALUES (?, ?, ?, ?, 1.0, ?, ?)",
        (new_uuid(), survivor.id, absorbed.id, RelationType.UPDATES, Origin.MERGE, now),
    )
    connection.execute(
        "UPDATE memories SET forgotten = 1, forget_reason = ?, updated_at = ? WHERE id = ?",
        (f"{MERGED_INTO}{survivor.id}", now, absorbed.id),
    )
    connection.execute("DELETE FROM embeddings WHERE seq = (SELECT seq FROM memories WHERE id = ?)", (absorbed.id,))
    connection.execute("DELETE FROM memory_verdicts WHERE :id IN (newer_id, older_id)", {"id": absorbed.id})
    note(
        connection,
        now,
        "memory_merged",
        "two memories with the same words became one",
        survivor_id=survivor.id,
        absorbed_id=absorbed.id,
        is_private=absorbed.is_private,
        person=person_of(absorbed.channel_id, absorbed.user_id),
        subject=absorbed.subject,
        text=None if absorbed.is_private else absorbed.content,  # the forgotten row keeps the private one
    )


def _move_edges(connection: Connection, survivor: MemoryId, absorbed: MemoryId) -> None:
    """Hang the edges of the absorbed memory on the survivor; an edge between the two would lead to itself."""
    edges = connection.execute(
        "SELECT * FROM associations WHERE source_id = :id OR target_id = :id", {"id": absorbed}
    ).fetchall()
    connection.execute("DELETE FROM associations WHERE source_id = :id OR target_id = :id", {"id": absorbed})
    for edge in edges:
        source = survivor if edge["source_id"] == absorbed else edge["source_id"]
        target = survivor if edge["target_id"] == absorbed else edge["target_id"]
        if source == target:
            continue
        connection.execute(
            "INSERT INTO associations (id, source_id, target_id, relation_type, weight, origin, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source_id, target_id, relation_type) DO UPDATE SET "
            "weight = max(associations.weight, excluded.weight), "
            "origin = iif(excluded.origin = 'llm', 'llm', associations.origin)",
            (edge["id"], source, target, edge["relation_type"], edge["weight"], edge["origin"], edge["created_at"]),
        )
