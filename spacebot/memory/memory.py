"""One agent's memory: save, recall, forget.

A save is acknowledged when row, vector and edges are on disk; it is found by the very next recall. When the
vector cannot be computed the row is saved all the same, found by its words, and embedded later.

Flow:    save -> embed -> similar ones -> one transaction -> index noted -> event
         recall -> Searcher.hybrid or a listing -> access noted
Floor:   memory; may import base, storage
Source:  memory spec 5 to 7
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import EmbeddingError, NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import MemoryId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode, preview, size_bytes
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import IndexPolicy, VectorIndex
from spacebot.memory.matrix import VectorRow
from spacebot.memory.search import Searcher, SearchPolicy, by_position
from spacebot.memory.store import MemoryStore
from spacebot.memory.types import (
    CONTENT_LIMIT,
    EVERYTHING,
    HIGH_IMPORTANCE,
    Association,
    Memory,
    MemoryStats,
    Neighbour,
    NewMemory,
    Origin,
    Query,
    RecallResult,
    RelationType,
    SavedMemory,
    SearchMode,
    SortBy,
    Viewer,
)
from spacebot.storage.database import Database

log = logging.getLogger(__name__)

SIMILAR = 5  # memories looked at when one is saved; memory spec 6
RELATED, UPDATES, DUPLICATE = 0.7, 0.9, 0.95  # cosine; the design's thresholds
SIMILAR_S = 1.0  # a save does not wait longer for its neighbours
LATER_FIRST_S, LATER_MOST_S = 60.0, 3600.0  # pause before vectors are tried again, doubled each time
LATER_BATCH = 32
ACCESS_S = 5.0  # recalls are counted together, not one write each
CACHED_VIEWERS = 2048  # live conversations, a tuple each


class AgentMemory:
    """What one agent knows; see `open_memory`. Safe to call from any number of tasks."""

    def __init__(
        self,
        store: MemoryStore,
        index: VectorIndex,
        embedder: Embedder,
        *,
        events: EventBus,
        agent_id: str,
        clock: Clock,
        search: SearchPolicy,
    ) -> None:
        self._store = store
        self._index = index
        self._embedder = embedder
        self._events = events
        self._agent_id = agent_id
        self._clock = clock
        self._searcher = Searcher(store=store, index=index, embedder=embedder, policy=search)
        self._accessed: Counter[MemoryId] = Counter()
        self._was_accessed = trio.Event()
        self._is_embedding_due = trio.Event()
        self._generation = 0  # of what `context` may show
        self._contexts: OrderedDict[tuple[Viewer, int], tuple[Memory, ...]] = OrderedDict()

    async def save(self, new: NewMemory) -> SavedMemory:
        """Remember something.

        Secrets are removed from the text. What was learned in a direct chat becomes private. The same words in
        the same scope are kept once.

        Errors: RefusedError when the text is empty or too long, or a number is out of range; StorageError.
        Cancel: before the commit nothing is left; after it the memory is complete.
        """
        content = _checked(new)
        embedding: bytes | None = None
        similar: tuple[Neighbour, ...] = ()
        try:
            (vector,) = await self._embedder.embed([content])
            embedding = vector.tobytes()
        except EmbeddingError as error:
            log.warning("memory saved without a vector", exc_info=error)
        else:
            try:
                with trio.move_on_after(SIMILAR_S):
                    near = await self._index.nearest(vector, new.provenance.viewer, limit=SIMILAR)
                    similar = near.neighbours
            except StorageError as error:
                log.warning("similar memories not found", exc_info=error)
        suggested = [_suggestion(neighbour) for neighbour in similar if neighbour.similarity > RELATED]
        inserted = await self._store.insert(new, content, embedding, self._embedder.name, suggested)
        # No checkpoint from here to the end: a cancelled caller must not leave a row that recall does not see.
        memory = inserted.memory
        if embedding is not None:
            self._index.note_saved(
                VectorRow(
                    id=memory.id,
                    content=memory.content,
                    memory_type=memory.memory_type,
                    is_private=memory.is_private,
                    channel_id=memory.channel_id,
                    owner=new.provenance.viewer.owner if memory.is_private else None,
                    embedding=embedding,
                )
            )
        elif inserted.needs_embedding:
            self._is_embedding_due.set()
        self._changed()
        if inserted.is_new:
            self._events.emit(
                EventKind.MEMORY_SAVED,
                agent_id=self._agent_id,
                channel_id=memory.channel_id,
                memory_id=memory.id,
                memory_type=str(memory.memory_type),
                importance=memory.importance,
                is_private=memory.is_private,
                summary=None if memory.is_private else preview(memory.content),
            )
        return SavedMemory(
            memory=memory,
            is_new=inserted.is_new,
            is_embedded=not inserted.needs_embedding,
            skipped_associations=inserted.skipped,
            auto_associations=inserted.linked,
            near_duplicates=tuple(n for n in similar if n.similarity > DUPLICATE and n.id != memory.id),
        )

    async def recall(self, query: Query) -> RecallResult:
        """Find memories that the query's viewer may see.

        Errors: RefusedError when the mode lacks what it needs; StorageError when nothing could be searched.
        """
        match query.mode:
            case SearchMode.HYBRID:
                if not query.text.strip():
                    raise RefusedError("a hybrid recall needs a query; or use mode recent, important or typed")
                result = await self._searcher.hybrid(query, self._clock.now())
            case SearchMode.RECENT:
                result = await self._listing(query, SortBy.RECENT)
            case SearchMode.IMPORTANT:
                result = await self._listing(query, SortBy.IMPORTANCE)
            case SearchMode.TYPED:
                if query.memory_type is None:
                    raise RefusedError("a typed recall needs a memory_type")
                result = await self._listing(query, query.sort_by)
        if query.counts_as_access and result.hits:
            self._accessed.update(hit.memory.id for hit in result.hits)
            self._was_accessed.set()
        return result

    async def forget(self, memory_id: str, reason: str | None = None, *, viewer: Viewer = EVERYTHING) -> Memory | None:
        """Hide a memory from every read; the row stays. None when there is no such live memory to be seen."""
        memory = await self._store.forget(memory_id, viewer, reason)
        if memory is not None:
            self._index.note_removed(memory.id)
            self._changed()
            log.info("memory forgotten", extra=kv(memory=memory.id, type=str(memory.memory_type)))
        return memory

    async def get(self, memory_id: str, viewer: Viewer = EVERYTHING) -> Memory:
        """The live memory of this id.

        Errors: NotFoundError when there is none that the viewer may see.
        """
        memory = await self._store.get(memory_id, viewer)
        if memory is None:
            raise NotFoundError(f"there is no memory {memory_id!r}")
        return memory

    async def associations(self, memory_id: str, viewer: Viewer = EVERYTHING) -> list[Association]:
        """Edges of a memory, strongest first."""
        return await self._store.associations(memory_id, viewer)

    async def context(self, limit: int, viewer: Viewer) -> tuple[Memory, ...]:
        """Identity and high-importance memories for a prompt, in an order that rarely changes.

        Answered from memory until a save or a forget changes it.
        """
        key = (viewer, limit)
        if (known := self._contexts.get(key)) is not None:
            self._contexts.move_to_end(key)
            return known
        generation = self._generation
        memories = tuple(await self._store.for_prompt(viewer, threshold=HIGH_IMPORTANCE, limit=limit))
        if generation == self._generation:
            self._contexts[key] = memories
            if len(self._contexts) > CACHED_VIEWERS:
                self._contexts.popitem(last=False)
        return memories

    async def stats(self) -> MemoryStats:
        """Figures for status and metrics."""
        counts = await self._store.counts(self._embedder.name)
        return MemoryStats(
            counts_by_type=counts.by_type,
            total=sum(counts.by_type.values()),
            private=counts.private,
            embedded=counts.embedded,
            associations=counts.associations,
            unindexed=await self._index.pending(),
            engine=str(self._index.engine),
        )

    async def warm_up(self) -> None:
        """Load the embedding model and the vectors, so that the first recall is quick; failures are only logged."""
        try:
            await self._embedder.embed(["warm up"])
            await self._index.load()
        except StorageError as error:
            log.warning("memory not warmed up", exc_info=error)

    async def flush(self) -> None:
        """Bring the vector table into step and write the access counts now."""
        await self._write_access()
        await self._index.flush()

    async def run(self) -> None:
        """Do what is left for later. Never returns unless cancelled; access counts are written at the end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._index.run)
                nursery.start_soon(self._embed_later)
                nursery.start_soon(self._count_access)
        finally:
            with trio.move_on_after(2, shield=True):
                await self._write_access()

    async def _listing(self, query: Query, sort_by: SortBy) -> RecallResult:
        memories, total = await self._store.listing(
            query.viewer, sort_by=sort_by, limit=query.limit, memory_type=query.memory_type
        )
        return RecallResult(hits=by_position(memories), total_found=total)

    def _changed(self) -> None:
        self._generation += 1
        self._contexts.clear()

    async def _embed_later(self) -> None:
        """Compute missing vectors: at start (also after a change of model) and after failures, ever less often."""
        pause = LATER_FIRST_S
        fresh: list[MemoryId] = []  # committed, and not yet known to the index
        while True:
            try:
                if fresh:
                    await self._index.note_embedded(fresh)
                    fresh.clear()
                while waiting := await self._store.not_embedded(self._embedder.name, LATER_BATCH):
                    vectors = await self._embedder.embed([content for _, content in waiting])
                    await self._store.add_embeddings(
                        self._embedder.name,
                        {key: row.tobytes() for (key, _), row in zip(waiting, vectors, strict=True)},
                    )
                    fresh += [key for key, _ in waiting]
                    await self._index.note_embedded(fresh)
                    fresh.clear()
                    log.info("memories embedded later", extra=kv(count=len(waiting)))
                pause = LATER_FIRST_S
                await self._is_embedding_due.wait()
            except StorageError as error:  # the model's or the database's, such as a full disk
                log.warning("memories still without vectors", exc_info=error)
            self._is_embedding_due = trio.Event()
            await trio.sleep(pause)
            pause = min(2 * pause, LATER_MOST_S)

    async def _count_access(self) -> None:
        while True:
            await self._was_accessed.wait()
            await trio.sleep(ACCESS_S)
            await self._write_access()

    async def _write_access(self) -> None:
        counts, self._accessed, self._was_accessed = self._accessed, Counter(), trio.Event()
        if counts:
            try:
                await self._store.record_access(counts)
            except StorageError as error:
                log.warning("access to memories not counted", exc_info=error)


@asynccontextmanager
async def open_memory(
    database: Database,
    folder: Path,
    *,
    embedder: Embedder,
    events: EventBus,
    agent_id: str,
    clock: Clock | None = None,
    search: SearchPolicy | None = None,
    index: IndexPolicy | None = None,
) -> AsyncIterator[AgentMemory]:
    """Open one agent's memory over its open database.

    Neither the vector library nor the model is loaded here; that happens at first use, or by `warm_up`.

    Args:
        folder: of the vector table; made when needed.

    Owns: the tasks that keep vectors and table in step; not the database.
    """
    clock = clock or Clock()
    vectors = VectorIndex(
        database, folder, model=embedder.name, dimensions=embedder.dimensions, policy=index or IndexPolicy()
    )
    memory = AgentMemory(
        MemoryStore(database, clock),
        vectors,
        embedder,
        events=events,
        agent_id=agent_id,
        clock=clock,
        search=search or SearchPolicy(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        yield memory
        nursery.cancel_scope.cancel()


def _checked(new: NewMemory) -> str:
    content = scrub(clean_unicode(new.content).replace("\0", "")).strip()
    if not content:
        raise RefusedError("the content is empty; say in one sentence what to remember")
    if size_bytes(content) > CONTENT_LIMIT:
        raise RefusedError(f"the content is longer than {CONTENT_LIMIT} bytes; save its parts, one fact each")
    numbers = [edge.weight for edge in new.associations]
    numbers += [] if new.importance is None else [new.importance]
    if any(not 0 <= number <= 1 for number in numbers):
        raise RefusedError("importance and weights must lie between 0 and 1")
    return content


def _suggestion(neighbour: Neighbour) -> Association:
    """The edge that a similarity stands for; memory spec 6."""
    return Association(
        source_id=MemoryId(""),
        target_id=neighbour.id,
        relation_type=RelationType.UPDATES if neighbour.similarity > UPDATES else RelationType.RELATED_TO,
        weight=min(1.0, 0.5 + 0.5 * (neighbour.similarity - RELATED) / (1 - RELATED)),
        origin=Origin.AUTO,
    )
