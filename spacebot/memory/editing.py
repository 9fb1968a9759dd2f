"""Changing, deleting and bringing back single memories, by their owner's hand.

New words are embedded before anything is written, so that text, full text, vector and fingerprint change in one
transaction. What was concluded from the old words (edges by similarity, verdicts) goes with them.

Flow:    Editor.edit -> checked words -> vector and neighbours -> one transaction -> index noted
Floor:   memory; may import base, storage
Source:  memory spec 2.3, 5; pitfalls P-05, P-06
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import EmbeddingError, NotFoundError, RefusedError, StorageError
from spacebot.base.ids import MemoryId
from spacebot.memory.curation_log import note
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import VectorIndex
from spacebot.memory.linking import LinkPolicy, Node, link_similar, nodes
from spacebot.memory.matrix import VectorRow
from spacebot.memory.merging import MERGED_INTO
from spacebot.memory.saving import check_fractions, checked_content
from spacebot.memory.store import COLUMNS, LIVE, VISIBLE, fingerprint, scope, to_memory
from spacebot.memory.types import EVERYTHING, Memory, MemoryType, Neighbour, Origin, Viewer
from spacebot.storage.database import Connection, Database

log = logging.getLogger(__name__)

SIMILAR = 5  # memories looked at for edges, as in a save
SIMILAR_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A memory as it is now; `lacks_vector` means that it is embedded later."""

    memory: Memory
    lacks_vector: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """New words with what belongs to them; no vector when it could not be computed."""

    content: str
    embedding: bytes | None
    similar: tuple[Neighbour, ...]


class Editor:
    """Edits of one agent's memories.

    Args:
        changed: told what was done to which memory after each commit, before the next checkpoint.
    """

    def __init__(
        self,
        database: Database,
        index: VectorIndex,
        embedder: Embedder,
        clock: Clock,
        links: LinkPolicy,
        changed: Callable[[str, Memory], None],
    ) -> None:
        self._database = database
        self._index = index
        self._embedder = embedder
        self._clock = clock
        self._links = links
        self._changed = changed

    async def edit(
        self,
        memory_id: str,
        *,
        content: str | None,
        memory_type: MemoryType | None,
        importance: float | None,
        permanent: bool | None,
        viewer: Viewer,
    ) -> Edited:
        """Change what is given, leave the rest.

        Errors: NotFoundError; RefusedError when the new words are empty, too long or known already.
        """
        check_fractions([] if importance is None else [importance])
        known = await self._visible(memory_id, viewer)
        words = None
        if content is not None and (content := checked_content(content)) != known.content:
            words = await self._read_words(content, known)
        fields: dict[str, object] = {}
        if memory_type is not None:
            fields["memory_type"] = str(memory_type)
        if importance is not None:
            fields |= {"importance": importance, "base_importance": importance}
        if permanent is not None:
            fields["permanent"] = permanent
        now = self._clock.text()

        def write(connection: Connection) -> tuple[Node, bytes | None]:
            if MemoryId(memory_id) not in nodes(connection, [memory_id], viewer):
                raise NotFoundError(f"there is no memory {memory_id!r}")
            _write_fields(connection, memory_id, fields, words, now)
            if words is not None:
                _replace_words(connection, memory_id, words, self._embedder.name)
                node = nodes(connection, [memory_id], EVERYTHING)[MemoryId(memory_id)]
                link_similar(connection, node, words.similar, node.viewer, self._links, now)
            if memory_type is not None:  # the vector table filters by it
                connection.execute("INSERT INTO vector_outbox (memory_id) VALUES (?)", (memory_id,))
            embedding = _embedding(connection, memory_id, self._embedder.name)
            return nodes(connection, [memory_id], EVERYTHING)[MemoryId(memory_id)], embedding

        node, embedding = await self._database.write(write)
        # No checkpoint from here to the end: a cancelled caller must not leave an index with the old words.
        self._note_words(node.memory, node.owner, embedding)
        self._changed("edited", node.memory)
        return Edited(memory=node.memory, lacks_vector=embedding is None)

    async def delete(self, memory_id: str, viewer: Viewer) -> Memory:
        """Delete a live or forgotten memory for good, with its edges and its vector.

        Errors: NotFoundError.
        """
        now = self._clock.text()

        def write(connection: Connection) -> Memory:
            known = nodes(connection, [memory_id], viewer).get(MemoryId(memory_id))
            memory = known.memory if known else _forgotten(connection, memory_id, viewer)[0]
            connection.execute("DELETE FROM memories WHERE id = ?", (memory_id,))
            note(connection, now, "memory_deleted", "deleted for good", memory_id=memory_id)
            return memory

        memory = await self._database.write(write)
        self._index.note_removed(memory.id)
        self._changed("deleted", memory)
        return memory

    async def unforget(self, memory_id: str, viewer: Viewer) -> Edited:
        """Bring a forgotten memory back, one absorbed by a merge included; it is not merged again.

        Errors: NotFoundError when there is no such forgotten memory; RefusedError when its words are live again.
        """
        hidden, owner = await self._database.read(lambda connection: _forgotten(connection, memory_id, viewer))
        words = await self._read_words(hidden.content, hidden)
        now = self._clock.text()

        def write(connection: Connection) -> Memory:
            _forgotten(connection, memory_id, viewer)
            reason = connection.execute("SELECT forget_reason FROM memories WHERE id = ?", (memory_id,)).fetchone()[0]
            _free_fingerprint(connection, memory_id, words)
            connection.execute(
                "UPDATE memories SET forgotten = 0, forget_reason = NULL, updated_at = ? WHERE id = ?",
                (now, memory_id),
            )
            if (reason or "").startswith(MERGED_INTO):
                _part(connection, reason.removeprefix(MERGED_INTO), memory_id, now)
            _replace_words(connection, memory_id, words, self._embedder.name)
            note(connection, now, "memory_restored", "brought back", memory_id=memory_id)
            return nodes(connection, [memory_id], EVERYTHING)[MemoryId(memory_id)].memory

        memory = await self._database.write(write)
        self._note_words(memory, owner, words.embedding)
        self._changed("restored", memory)
        return Edited(memory=memory, lacks_vector=words.embedding is None)

    async def _visible(self, memory_id: str, viewer: Viewer) -> Memory:
        known = await self._database.read(lambda connection: nodes(connection, [memory_id], viewer))
        if MemoryId(memory_id) not in known:
            raise NotFoundError(f"there is no memory {memory_id!r}")
        return known[MemoryId(memory_id)].memory

    async def _read_words(self, content: str, memory: Memory) -> _Words:
        """Embed words and find what they are near to; both may fail without stopping the edit."""
        try:
            (vector,) = await self._embedder.embed([content])
        except EmbeddingError as error:
            log.warning("memory changed without a vector", exc_info=error)
            return _Words(content=content, embedding=None, similar=())
        similar: tuple[Neighbour, ...] = ()
        viewer = Viewer(channel_id=memory.channel_id, user_id=memory.user_id, is_direct=memory.is_private)
        try:
            with trio.move_on_after(SIMILAR_S):
                near = await self._index.nearest(vector, viewer if memory.is_private else Viewer(), limit=SIMILAR + 1)
                similar = near.neighbours
        except StorageError as error:
            log.warning("similar memories not found", exc_info=error)
        return _Words(content=content, embedding=vector.tobytes(), similar=similar)

    def _note_words(self, memory: Memory, owner: str | None, embedding: bytes | None) -> None:
        if embedding is None:
            self._index.note_removed(memory.id)
            return
        self._index.note_saved(
            VectorRow(
                id=memory.id,
                content=memory.content,
                memory_type=memory.memory_type,
                is_private=memory.is_private,
                channel_id=memory.channel_id,
                owner=owner,
                embedding=embedding,
            )
        )


def _write_fields(
    connection: Connection, memory_id: str, fields: dict[str, object], words: _Words | None, now: str
) -> None:
    if words is not None:
        fields = {**fields, "content": words.content, "fingerprint": _free_fingerprint(connection, memory_id, words)}
        connection.execute("DELETE FROM memory_verdicts WHERE ? IN (newer_id, older_id)", (memory_id,))
    if not fields:
        return
    sets = ", ".join(f"{name} = :{name}" for name in fields)  # names of this module only
    connection.execute(
        f"UPDATE memories SET {sets}, updated_at = :now WHERE id = :id", {**fields, "now": now, "id": memory_id}
    )
    what = ", ".join(name for name in fields if name not in ("fingerprint", "base_importance"))
    note(connection, now, "memory_edited", f"edited: {what}", memory_id=memory_id, changed=what)


def _embedding(connection: Connection, memory_id: str, model: str) -> bytes | None:
    row = connection.execute(
        "SELECT embedding FROM embeddings WHERE memory_id = ? AND model = ?", (memory_id, model)
    ).fetchone()
    return None if row is None else row["embedding"]


def _replace_words(connection: Connection, memory_id: str, words: _Words, model: str) -> None:
    """Put the new vector in place of the old one, and drop what was concluded from the old words."""
    connection.execute("DELETE FROM embeddings WHERE seq = (SELECT seq FROM memories WHERE id = ?)", (memory_id,))
    if words.embedding is not None:
        connection.execute(
            "INSERT INTO embeddings (seq, memory_id, model, embedding) SELECT seq, id, ?, ? FROM memories WHERE id = ?",
            (model, words.embedding, memory_id),
        )
    connection.execute(
        "DELETE FROM associations WHERE origin = :auto AND :id IN (source_id, target_id)",
        {"auto": Origin.AUTO, "id": memory_id},
    )


def _free_fingerprint(connection: Connection, memory_id: str, words: _Words) -> str:
    """The fingerprint of the words, unless another live memory of the same scope has them."""
    mark = fingerprint(words.content)
    taken = connection.execute(
        f"SELECT m.id FROM memories m JOIN memories o ON o.id = :id WHERE m.fingerprint = :mark AND m.id <> :id "
        f"AND {LIVE} AND m.is_private = o.is_private "
        "AND (m.is_private = 0 OR m.channel_id IS o.channel_id OR m.owner = o.owner)",
        {"id": memory_id, "mark": mark},
    ).fetchone()
    if taken is not None:
        raise RefusedError(f"memory {taken['id']!r} has these words already; edit or forget that one")
    return mark


def _forgotten(connection: Connection, memory_id: str, viewer: Viewer) -> tuple[Memory, str | None]:
    """A forgotten memory that the viewer may see, and its owner.

    Errors: NotFoundError.
    """
    row = connection.execute(
        f"SELECT {COLUMNS}, m.owner FROM memories m WHERE m.id = :id AND m.forgotten = 1 AND {VISIBLE}",
        {**scope(viewer), "id": memory_id},
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no forgotten memory {memory_id!r}")
    return to_memory(row), row["owner"]


def _part(connection: Connection, survivor_id: str, absorbed_id: str, now: str) -> None:
    """Undo the link of a merge, and remember that the two are not the same."""
    connection.execute(
        "DELETE FROM associations WHERE source_id = ? AND target_id = ? AND origin = ?",
        (survivor_id, absorbed_id, Origin.MERGE),
    )
    connection.execute(
        "INSERT OR REPLACE INTO memory_verdicts (newer_id, older_id, similarity, verdict, created_at, judged_at) "
        "SELECT :survivor, :absorbed, 1.0, 'neither', :now, :now FROM memories WHERE id = :survivor",
        {"survivor": survivor_id, "absorbed": absorbed_id, "now": now},
    )
