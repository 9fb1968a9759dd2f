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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import EmbeddingError, NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.figures import Spread
from spacebot.base.ids import MemoryId
from spacebot.base.telemetry import kv
from spacebot.base.text import preview
from spacebot.memory.association import AssociationPolicy, AssociationReport, Associator, DoubtfulPair, Verdict
from spacebot.memory.editing import Edited, Editor
from spacebot.memory.embedding import CheckedEmbedder, Embedder
from spacebot.memory.index import IndexPolicy, VectorIndex
from spacebot.memory.keeper import Progress as TableProgress
from spacebot.memory.keeper import TableState
from spacebot.memory.linking import DUPLICATE, LinkPolicy
from spacebot.memory.maintenance import Maintenance, MaintenancePolicy, MaintenanceReport, Progress
from spacebot.memory.matrix import VectorRow
from spacebot.memory.saving import check_date, check_fractions, checked_content, insert
from spacebot.memory.search import Searcher, SearchPolicy, by_position
from spacebot.memory.store import MemoryStore
from spacebot.memory.types import (
    EVERYTHING,
    HIGH_IMPORTANCE,
    Association,
    Memory,
    MemoryStats,
    MemoryType,
    Neighbour,
    NewMemory,
    Query,
    RecallResult,
    SavedMemory,
    SearchMode,
    SortBy,
    Viewer,
)
from spacebot.storage.database import Database

log = logging.getLogger(__name__)

SIMILAR = 5  # memories looked at when one is saved; memory spec 6
SIMILAR_S = 1.0  # a save does not wait longer for its neighbours
LATER_FIRST_S, LATER_MOST_S = 60.0, 3600.0  # pause before vectors are tried again, doubled each time
LATER_BATCH = 256  # enough to keep all cores busy; questions overtake it
LATER_TOLD_S = 30.0  # between two lines of the log while many are embedded
ACCESS_S = 5.0  # recalls are counted together, not one write each
CACHED_VIEWERS = 2048  # live conversations, a tuple each


class AgentMemory:
    """What one agent knows; see `open_memory`. Safe to call from any number of tasks."""

    def __init__(
        self,
        database: Database,
        store: MemoryStore,
        index: VectorIndex,
        embedder: CheckedEmbedder,
        *,
        events: EventBus,
        agent_id: str,
        clock: Clock,
        search: SearchPolicy,
        links: LinkPolicy,
    ) -> None:
        self._database = database
        self._links = links
        self._store = store
        self._index = index
        self._embedder = embedder
        self._events = events
        self._agent_id = agent_id
        self._clock = clock
        self._searcher = Searcher(database=database, index=index, embedder=embedder, policy=search)
        self._editor = Editor(database, index, embedder, clock, links, self._note_edit)
        self._maintenance = Maintenance(database, index, embedder.name, clock, self._note_upkeep)
        self._associator = Associator(database, index, embedder.name, clock, partial(self._note_upkeep, "associated"))
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
        content = checked_content(new.content)
        check_fractions([edge.weight for edge in new.associations])
        check_fractions([] if new.importance is None else [new.importance])
        check_date(new.created_at, self._clock.now())
        began = monotonic_s()
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
        inserted = await self._database.write(
            partial(
                insert,
                new=new,
                content=content,
                embedding=embedding,
                model=self._embedder.name,
                similar=similar,
                policy=self._links,
                now=self._clock.text(),
            )
        )
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
            self._index.waiting += 1
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
                duration_s=round(monotonic_s() - began, 4),
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
        began = monotonic_s()
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
        self._events.emit(
            EventKind.MEMORY_RECALLED,
            agent_id=self._agent_id,
            mode=str(query.mode),
            found=len(result.hits),
            duration_s=round(monotonic_s() - began, 4),
        )
        return result

    async def forget(self, memory_id: str, reason: str | None = None, *, viewer: Viewer = EVERYTHING) -> Memory | None:
        """Hide a memory from every read; the row stays. None when there is no such live memory to be seen."""
        memory = await self._store.forget(memory_id, viewer, reason)
        if memory is not None:
            self._index.note_removed(memory.id)
            self._note_edit("forgotten", memory)
            log.info("memory forgotten", extra=kv(memory=memory.id, type=str(memory.memory_type)))
        return memory

    async def edit(
        self,
        memory_id: str,
        *,
        content: str | None = None,
        memory_type: MemoryType | None = None,
        importance: float | None = None,
        permanent: bool | None = None,
        viewer: Viewer = EVERYTHING,
    ) -> Memory:
        """Change what is given of a live memory; new words are found by meaning at once, as after a save.

        Errors: NotFoundError; RefusedError when the words are empty, too long or another memory's already.
        """
        return self._embed_if_needed(
            await self._editor.edit(
                memory_id,
                content=content,
                memory_type=memory_type,
                importance=importance,
                permanent=permanent,
                viewer=viewer,
            )
        )

    async def delete(self, memory_id: str, *, viewer: Viewer = EVERYTHING) -> Memory:
        """Delete a memory for good, a forgotten one too; gives what it was.

        Errors: NotFoundError.
        """
        return await self._editor.delete(memory_id, viewer)

    async def unforget(self, memory_id: str, *, viewer: Viewer = EVERYTHING) -> Memory:
        """Bring back a forgotten memory, one that a merge absorbed included.

        Errors: NotFoundError; RefusedError when its words are live again already.
        """
        return self._embed_if_needed(await self._editor.unforget(memory_id, viewer))

    async def maintain(
        self,
        policy: MaintenancePolicy | None = None,
        *,
        dry_run: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> MaintenanceReport:
        """Renew importance, prune, merge near-duplicates, tend the vector table; a dry run only tells.

        Errors: RefusedError while another pass is running; StorageError.
        Cancel: between two short transactions; the next pass goes on there.
        """
        await self._write_access()  # what was just recalled must not count as idle
        return await self._maintenance.run(policy or MaintenancePolicy(), dry_run=dry_run, on_progress=on_progress)

    async def associate(self, policy: AssociationPolicy | None = None) -> AssociationReport:
        """Make the edges that saves could not make, from where the last pass ended.

        Errors: RefusedError while another pass is running; StorageError.
        """
        return await self._associator.run(policy or AssociationPolicy(links=self._links))

    async def candidates_for_contradiction(self, limit: int) -> list[DoubtfulPair]:
        """Similar memories that say different things and were not judged yet, most similar first."""
        return await self._associator.doubtful_pairs(limit)

    async def judge(self, pair: DoubtfulPair, verdict: Verdict) -> None:
        """Keep a model's verdict on a pair; it is not offered again.

        Errors: NotFoundError when it was judged already, or one of the two is gone.
        """
        await self._associator.judge(pair.newer.id, pair.older.id, verdict)

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

    @property
    def embedding_times(self) -> Spread:
        """How long batches of texts took to embed since the program started, in seconds."""
        return self._embedder.times

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
            to_embed=max(0, sum(counts.by_type.values()) - counts.embedded),
            problem=self._index.problem,
        )

    async def warm_up(self) -> None:
        """Load the embedding model and the vectors, so that the first recall is quick; failures are only logged."""
        try:
            await self._embedder.embed(["warm up"])
            await self._index.load()
        except StorageError as error:
            log.warning("memory not warmed up", exc_info=error)

    async def refresh(
        self, *, embedded: Sequence[MemoryId] = (), removed: Sequence[MemoryId] = (), embedding_due: bool = False
    ) -> None:
        """Take note of what was committed beside it: memories that came with their vectors, and memories that went.

        Args:
            embedding_due: some came without a vector.

        Errors: StorageError.
        """
        if embedded:
            await self._index.note_embedded(embedded)
        for memory_id in removed:
            self._index.note_removed(memory_id)
        if embedding_due:
            self._is_embedding_due.set()
        self._changed()
        self._events.emit(EventKind.MEMORY_CHANGED, agent_id=self._agent_id, what="erased" if removed else "imported")

    async def rebuild(self, on_progress: TableProgress | None = None) -> TableState:
        """Drop the vector table and make it anew from the database; recall goes on meanwhile.

        Args:
            on_progress: told the stage (rows, index), how many rows are done, and of how many.

        Errors: StorageError when it cannot be made; the message says why.
        """
        return await self._index.rebuild(on_progress)

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

    def _embed_if_needed(self, edited: Edited) -> Memory:
        if edited.lacks_vector:
            self._is_embedding_due.set()
        return edited.memory

    def _note_edit(self, what: str, memory: Memory) -> None:
        self._changed()
        self._events.emit(
            EventKind.MEMORY_CHANGED,
            agent_id=self._agent_id,
            channel_id=memory.channel_id,
            what=what,
            memory_id=memory.id,
            is_private=memory.is_private,
        )

    def _note_upkeep(self, what: str, count: int = 0) -> None:
        self._changed()
        self._events.emit(EventKind.MEMORY_CHANGED, agent_id=self._agent_id, what=what, count=count)

    def _changed(self) -> None:
        self._generation += 1
        self._contexts.clear()

    async def _embed_later(self) -> None:
        """Compute missing vectors: at start (also after a change of model) and after failures, ever less often."""
        pause = LATER_FIRST_S
        fresh: list[MemoryId] = []  # committed, and not yet known to the index
        is_looked_over = False
        while True:
            try:
                if not is_looked_over:
                    await self._index.discard_damaged()
                    is_looked_over = True
                await self._embed_waiting(fresh)
                pause = LATER_FIRST_S
                await self._is_embedding_due.wait()
            except StorageError as error:  # the model's or the database's, such as a full disk
                log.warning("memories still without vectors", exc_info=error)
            self._is_embedding_due = trio.Event()
            await trio.sleep(pause)
            pause = min(2 * pause, LATER_MOST_S)

    async def _embed_waiting(self, fresh: list[MemoryId]) -> None:
        """Embed all that lack a vector; every batch is kept at once, so a restart goes on where it was."""
        if fresh:
            await self._index.note_embedded(fresh)
            fresh.clear()
        counts = await self._store.counts(self._embedder.name)
        self._index.waiting = max(0, sum(counts.by_type.values()) - counts.embedded)
        done, told_at = 0, monotonic_s()
        while waiting := await self._store.not_embedded(self._embedder.name, LATER_BATCH):
            vectors = await self._embedder.embed([content for _, content in waiting])
            await self._store.add_embeddings(
                self._embedder.name,
                {key: row.tobytes() for (key, _), row in zip(waiting, vectors, strict=True)},
            )
            fresh += [key for key, _ in waiting]
            await self._index.note_embedded(fresh)
            fresh.clear()
            done += len(waiting)
            self._index.waiting = max(0, self._index.waiting - len(waiting))
            if monotonic_s() - told_at >= LATER_TOLD_S:
                told_at = monotonic_s()
                log.info("embedding memories", extra=kv(done=done, left=self._index.waiting))
        self._index.waiting = 0
        if done:
            log.info("memories embedded later", extra=kv(count=done))

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
    links: LinkPolicy | None = None,
    verdicts: Path | None = None,
) -> AsyncIterator[AgentMemory]:
    """Open one agent's memory over its open database.

    Neither the vector library nor the model is loaded here; that happens at first use, or by `warm_up`.

    Args:
        folder: of the vector table; made when needed.
        verdicts: file that says which native libraries run on this machine; None means `native.json` beside `folder`.

    Owns: the tasks that keep vectors and table in step; not the database.
    """
    clock, checked = clock or Clock(), CheckedEmbedder(embedder)
    vectors = VectorIndex(
        database,
        folder,
        model=checked.name,
        dimensions=checked.dimensions,
        policy=index or IndexPolicy(),
        verdicts=verdicts or folder.parent / "native.json",
    )
    memory = AgentMemory(
        database,
        MemoryStore(database, clock),
        vectors,
        checked,
        events=events,
        agent_id=agent_id,
        clock=clock,
        search=search or SearchPolicy(),
        links=links or LinkPolicy(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        yield memory
        nursery.cancel_scope.cancel()
