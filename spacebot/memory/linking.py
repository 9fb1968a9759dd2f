"""Which edges a similarity stands for, and how edges are written.

The same rules hold when a memory is saved and when the cortex catches up later: an edge leads from the newer
memory to the older one, is never made twice, and never replaces what a model said. A similarity alone makes no
newer version of something: the words are compared too.

Flow:    link, link_similar (inside the transaction of a save or of a back-fill) -> associations, memory_verdicts
Floor:   memory; may import base, storage
Source:  memory spec 6 and pitfalls P-20, P-38; thresholds: `python -m tests.bench thresholds`
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spacebot.base.ids import MemoryId, is_uuid, new_uuid
from spacebot.memory.comparison import Difference, differences, is_first_person, says_less
from spacebot.memory.store import COLUMNS, LIVE, VISIBLE, load, scope, to_memory
from spacebot.memory.types import (
    Association,
    Memory,
    MemoryType,
    Neighbour,
    NewAssociation,
    Origin,
    RelationType,
    Viewer,
)
from spacebot.storage.database import Connection

# Cosines, calibrated for all-MiniLM-L6-v2 on tests/memory/labelled_pairs.py: 146 pairs, and 48 held out.
#   related  the design's 0.7 links 75 % (held out 75 %) of what belongs together, 0.6 links 87 % (90 %); neither
#            links an unrelated pair.
#   updates  the design's 0.9 finds 68 % of rewordings and newer versions, 0.85 finds 78 %; with the words compared
#            both are always right (held out: 94 % and 100 % found, 94 % right; that a part replaces nothing became
#            a rule after a look at these). By the cosine alone 82 % and 74 % would be right (held out 75 % and 70 %).
#   merge    a mistake hides a memory, so the design's 0.95 stays: no wrong merge (cosine alone: one in three).
RELATED, UPDATES, DUPLICATE = 0.6, 0.85, 0.95
UPDATED_FACTOR = 0.5  # what a newer version leaves of an older one's base importance; memory spec 6
JUDGED_NEGATION, JUDGED_VALUE = 0.65, 0.75  # cosines above which a difference is worth a model's look
_NO_UPDATE = frozenset({Difference.SUBJECT, Difference.NAME, Difference.NEGATION})
_OTHER_VALUE = frozenset({Difference.NUMBER, Difference.DATE, Difference.NAME, Difference.WORDING})
_HAPPENED = frozenset({MemoryType.EVENT, MemoryType.OBSERVATION})  # a second one does not replace the first


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPolicy:
    """Cosines above which two memories are linked by themselves."""

    related: float = RELATED
    updates: float = UPDATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A live memory with what the rules need besides."""

    memory: Memory
    seq: int
    owner: str | None

    @property
    def age_key(self) -> tuple[object, int]:
        """Sorts older memories first."""
        return (self.memory.created_at, self.seq)

    @property
    def viewer(self) -> Viewer:
        """Who sees what this memory may be linked with."""
        if not self.memory.is_private:
            return Viewer()
        return Viewer(channel_id=self.memory.channel_id, user_id=self.memory.user_id, is_direct=True)


def nodes(connection: Connection, ids: Iterable[str], viewer: Viewer) -> dict[MemoryId, Node]:
    """Live, visible memories by id."""
    rows = connection.execute(
        f"SELECT {COLUMNS}, m.seq, m.owner FROM memories m "
        f"WHERE m.id IN (SELECT value FROM json_each(:ids)) AND {LIVE} AND {VISIBLE}",
        {**scope(viewer), "ids": json.dumps(list(ids))},
    )
    return {MemoryId(row["id"]): Node(memory=to_memory(row), seq=row["seq"], owner=row["owner"]) for row in rows}


def is_same_scope(one: Node, other: Node) -> bool:
    """Whether exactly the same people may see both."""
    a, b = one.memory, other.memory
    if a.is_private != b.is_private:
        return False
    return not a.is_private or (one.owner == other.owner and (one.owner is not None or a.channel_id == b.channel_id))


def speak_of_the_same(one: Memory, other: Memory) -> bool:
    """Whether the provenance allows that both are about the same person."""
    if one.subject and other.subject and one.subject != other.subject:
        return False
    is_other_speaker = bool(one.user_id and other.user_id and one.user_id != other.user_id)
    return not (is_other_speaker and (is_first_person(one.content) or is_first_person(other.content)))


def is_newer_version(newer: Node, older: Node) -> bool:
    """Whether a high similarity may mean that one replaces the other.

    Not between kinds, scopes or people, nor where one denies the other: that is for a model to judge. What says
    only a part of the older one replaces nothing. What happened is not undone by something similar that happened
    at another time.
    """
    if newer.memory.memory_type is not older.memory.memory_type or not is_same_scope(newer, older):
        return False
    if not speak_of_the_same(newer.memory, older.memory):
        return False
    found = differences(newer.memory.content, older.memory.content)
    if found & _NO_UPDATE or says_less(newer.memory.content, older.memory.content):
        return False
    return newer.memory.memory_type not in _HAPPENED or not found & _OTHER_VALUE


def is_doubtful(one: Node, other: Node, similarity: float) -> bool:
    """Whether a model should judge if two similar memories contradict each other."""
    if similarity <= JUDGED_NEGATION or one.memory.memory_type is not other.memory.memory_type:
        return False
    if not is_same_scope(one, other) or not speak_of_the_same(one.memory, other.memory):
        return False
    found = differences(one.memory.content, other.memory.content)
    if Difference.SUBJECT in found:
        return False
    if Difference.NEGATION in found:
        return True
    return similarity > JUDGED_VALUE and one.memory.memory_type not in _HAPPENED and bool(found & _OTHER_VALUE)


def edge_weight(similarity: float, related: float) -> float:
    """0.5 at the threshold, 1 for equal texts; memory spec 6."""
    return min(1.0, 0.5 + 0.5 * (similarity - related) / (1 - related)) if related < 1 else 1.0


def link(
    connection: Connection, memory: Memory, wanted: Sequence[NewAssociation], viewer: Viewer, now: str
) -> tuple[str, ...]:
    """Make the edges that were asked for; targets that do not exist or are not visible are named, not linked."""
    if not wanted:
        return ()
    known = load(connection, [edge.target_id for edge in wanted if is_uuid(edge.target_id)], viewer)
    skipped = []
    for edge in wanted:
        target = known.get(MemoryId(edge.target_id))
        if target is None or target.id == memory.id:
            skipped.append(edge.target_id)
        else:
            assert_edge(connection, memory, target, edge.relation_type, edge.weight, now)
    return tuple(skipped)


def assert_edge(
    connection: Connection, source: Memory, target: Memory, relation: RelationType, weight: float, now: str
) -> None:
    """Make or replace an edge that a model stands for; the older version counts less from its first time on."""
    is_known = connection.execute(
        "SELECT 1 FROM associations WHERE source_id = ? AND target_id = ? AND relation_type = ?",
        (source.id, target.id, relation),
    ).fetchone()
    connection.execute(
        "INSERT INTO associations (id, source_id, target_id, relation_type, weight, origin, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source_id, target_id, relation_type) "
        "DO UPDATE SET weight = excluded.weight, origin = excluded.origin",
        (new_uuid(), source.id, target.id, relation, weight, Origin.LLM, now),
    )
    if relation is RelationType.UPDATES and is_known is None:
        _lower(connection, source, target)


def link_similar(
    connection: Connection,
    node: Node,
    similar: Sequence[Neighbour],
    viewer: Viewer,
    policy: LinkPolicy,
    now: str,
    *,
    room: int = 1000,
) -> tuple[Association, ...]:
    """Make the edges that similarity suggests, at most `room`; pairs that are linked already stay as they are."""
    near = [n for n in similar if n.id != node.memory.id and n.similarity > min(policy.related, JUDGED_NEGATION)]
    if not near:
        return ()
    known = nodes(connection, [n.id for n in near], viewer)
    taken = _linked_with(connection, node.memory.id, known)
    made: list[Association] = []
    for neighbour in near:
        other = known.get(neighbour.id)
        if other is None or neighbour.id in taken:
            continue
        newer, older = (node, other) if node.age_key >= other.age_key else (other, node)
        is_update = neighbour.similarity > policy.updates and is_newer_version(newer, older)
        if not is_update and is_doubtful(newer, older, neighbour.similarity):
            _ask(connection, newer, older, neighbour.similarity, now)
        if neighbour.similarity <= policy.related:
            continue
        if len(made) == room:
            break
        edge = Association(
            source_id=newer.memory.id,
            target_id=older.memory.id,
            relation_type=RelationType.UPDATES if is_update else RelationType.RELATED_TO,
            weight=edge_weight(neighbour.similarity, policy.related),
            origin=Origin.AUTO,
        )
        _insert(connection, edge, now)
        taken.add(neighbour.id)
        if is_update:
            _lower(connection, newer.memory, older.memory)
        made.append(edge)
    return tuple(made)


def _insert(connection: Connection, edge: Association, now: str) -> None:
    connection.execute(
        "INSERT INTO associations (id, source_id, target_id, relation_type, weight, origin, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (new_uuid(), edge.source_id, edge.target_id, edge.relation_type, edge.weight, edge.origin, now),
    )


def _linked_with(connection: Connection, memory_id: str, others: Mapping[MemoryId, Node]) -> set[str]:
    rows = connection.execute(
        "SELECT target_id AS other FROM associations WHERE source_id = :id "
        "AND target_id IN (SELECT value FROM json_each(:ids)) UNION "
        "SELECT source_id FROM associations WHERE target_id = :id AND source_id IN (SELECT value FROM json_each(:ids))",
        {"id": memory_id, "ids": json.dumps(list(others))},
    )
    return {row["other"] for row in rows}


def _ask(connection: Connection, newer: Node, older: Node, similarity: float, now: str) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO memory_verdicts (newer_id, older_id, similarity, created_at) VALUES (?, ?, ?, ?)",
        (newer.memory.id, older.memory.id, similarity, now),
    )


def _lower(connection: Connection, newer: Memory, older: Memory) -> None:
    """An older version counts less, except where private talk would change what a room sees."""
    if newer.is_private and not older.is_private:
        return
    connection.execute(
        "UPDATE memories SET base_importance = base_importance * :f, importance = importance * :f "
        "WHERE id = :id AND memory_type <> 'identity' AND permanent = 0",
        {"f": UPDATED_FACTOR, "id": older.id},
    )
