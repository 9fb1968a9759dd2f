"""What was said, found by meaning and by words, as far as the asking conversation may see it.

A message means little without its neighbours: "yes, on Friday" answers a question that stands one line above. So
messages are judged as memories are, with those around them, by whom they were said and on which day.

Flow:    search -> people, question, scope -> words and meaning -> neighbours of the best -> judge -> context
         run -> somebody spoke -> a pause -> vectors of what is new, the newest first
Floor:   conversations
Source:  memory spec 8.4; `memory/ranking.py`. Measured on LoCoMo, evidence recall@10 of its turns, answerable / all:
         .825 / .848; with 100 candidates a leg .819 / .845; ranks fused and scores lent to neighbours .786 / .811
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import trio

from spacebot.base.allocator import give_memory_back
from spacebot.base.clock import Clock, monotonic_s, to_text
from spacebot.base.errors import NotFoundError, RefusedError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import MemoryId, MessageId
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode, preview
from spacebot.conversations.message_index import READ_CHARACTERS, MessageIndex, Place, Scope, Vectors, pack
from spacebot.conversations.records import ChannelRecord, LoggedMessage, Participant
from spacebot.memory.embedding import FEW, Embedder
from spacebot.memory.question import Question, match_expression, read
from spacebot.memory.ranking import AFTER as NEAR_AFTER
from spacebot.memory.ranking import BEFORE as NEAR_BEFORE
from spacebot.memory.ranking import (
    DIVERSITY,
    SEEDS,
    Candidate,
    Surroundings,
    fuse,
    rarity_of,
    score,
    spread_out,
)
from spacebot.memory.search import FULL_SCORE, WEIGHTS, why
from spacebot.memory.types import Viewer
from spacebot.memory.words import WORD, fold
from spacebot.storage.database import Database

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

CANDIDATES = 200  # of each leg
BEFORE, AFTER = 2, 1  # messages around a found one that are shown with it
MOST_RESULTS = 50
LONGEST_QUESTION = 2000  # characters
QUIET_S = 5.0  # after somebody spoke, before vectors are computed: answering comes first
BATCH = 16
RELEASE_S = 600.0  # without a search, until the vectors are let go
RETRY_FIRST_S, RETRY_MOST_S = 60.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageQuestion:
    """What to look for in the log, and for whom."""

    viewer: Viewer
    text: str
    channel_id: str | None = None  # only there
    person: str | None = None  # only what this one said: a name or an id, in any case of letters
    before: datetime | None = None  # both exclusive
    after: datetime | None = None
    limit: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageHit:
    """A found message; ranks run from 1.

    `score` lies between 0 and 1. `context` is what stands around the message, in order, without itself.
    """

    message: LoggedMessage
    score: float
    rank: int
    why: str  # in a few words
    context: tuple[LoggedMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageResult:
    """What was found; `notes` says in plain words when a part of the search did not work as usual."""

    hits: tuple[MessageHit, ...] = ()
    total_found: int = 0  # before the cut to the question's limit
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Legs:
    """What was found by words, with bm25, and by meaning, with cosines; best first."""

    words: dict[Place, float] = field(default_factory=dict)
    meaning: dict[Place, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # per stem of the question, of about `total` messages
    total: int = 0
    notes: list[str] = field(default_factory=list)


class MessageSearch:
    """One agent's log for those who may only see a part of it: searched, or read in order."""

    def __init__(
        self, database: Database, embedder: Embedder, *, events: EventBus, agent_id: str, clock: Clock | None = None
    ) -> None:
        self._clock = clock or Clock()
        self._index = MessageIndex(database)
        self._embedder = embedder
        self._events = events
        self._agent_id = agent_id
        self._vectors: Vectors | None = None
        self._removals = -1  # as counted when the vectors were read
        self._lock = trio.Lock()  # around the vectors
        self._limiter = trio.CapacityLimiter(1)
        self._used_at = 0.0
        self._is_loaded = trio.Event()

    async def channels(self, viewer: Viewer) -> list[ChannelRecord]:
        """Active conversations that the viewer may see, the latest first."""
        return await self._index.channels(viewer)

    async def transcript(
        self,
        viewer: Viewer,
        channel_id: str,
        *,
        limit: int,
        before: datetime | MessageId | None = None,
        after: datetime | MessageId | None = None,
        oldest_first: bool = False,
        person: str | None = None,
    ) -> list[LoggedMessage]:
        """Messages of a conversation in the order they were said; nothing of one that the viewer may not see.

        Args:
            limit: how many; the newest of the span, or the oldest when `oldest_first`.
            before, after: bounds, both exclusive: a moment, or the id of a message there, which is exact where
                several were said in the same moment.
            person: only what this one said.

        Errors: NotFoundError for an id of no message there, or a person who never spoke there.
        """
        senders = None
        if person is not None:
            senders = match_people(await self._index.people(viewer), person)
            if not senders:
                raise NotFoundError(f"nobody called {preview(person)!r} spoke there")
        scope = Scope(
            viewer=viewer,
            channel_id=channel_id,
            senders=senders,
            before=to_text(before) if isinstance(before, datetime) else None,
            after=to_text(after) if isinstance(after, datetime) else None,
        )
        return await self._index.transcript(
            scope,
            limit=limit,
            before_id=before if isinstance(before, str) else None,
            after_id=after if isinstance(after, str) else None,
            oldest_first=oldest_first,
        )

    async def search(self, question: MessageQuestion) -> MessageResult:
        """Find messages that the question's viewer may see, best first.

        Errors: RefusedError when there is nothing to look for; StorageError when nothing could be searched.
        """
        text = clean_unicode(question.text).strip()[:LONGEST_QUESTION]
        if not text:
            raise RefusedError("a search needs a query; say in a few words what was talked about")
        people = await self._index.people(question.viewer)
        senders = None if question.person is None else match_people(people, question.person)
        if senders == ():
            return MessageResult(notes=(f"nobody called {preview(question.person or '')!r} spoke there",))
        scope = Scope(
            viewer=question.viewer,
            channel_id=question.channel_id,
            senders=senders,
            before=to_text(question.before) if question.before else None,
            after=to_text(question.after) if question.after else None,
        )
        asked = read(text, self._clock.now().date())
        named = named_in(asked, people)
        asked = asked.about(tuple(named))
        legs = await self._legs(asked, scope)
        return await self._rank(asked, legs, scope, min(max(question.limit, 1), MOST_RESULTS))

    async def _legs(self, asked: Question, scope: Scope) -> "Legs":
        """What each leg found; one that fails is named and left out."""
        legs, done = Legs(), []

        async def words() -> None:
            terms = match_expression(asked.text)
            try:
                if terms:
                    legs.words = await self._index.words(terms, scope, CANDIDATES)
                    legs.counts, legs.total = await self._index.counts(asked)
                done.append("words")
            except StorageError as error:
                log.warning("search for words in the log failed", exc_info=error)
                legs.notes.append(f"search by words failed, found by meaning only: {error}")

        async def meaning() -> None:
            try:
                (vector,) = await self._embedder.embed([asked.meaning])
                legs.meaning = await self._nearest(vector, scope)
                done.append("meaning")
            except StorageError as error:
                log.warning("search for meaning in the log failed", exc_info=error)
                legs.notes.append(f"search by meaning failed, found by words only: {error}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(words)
            nursery.start_soon(meaning)
        if not done:
            raise StorageError("the log could not be searched: " + "; ".join(legs.notes))
        return legs

    async def _nearest(self, vector: "NDArray[np.float32]", scope: Scope) -> dict[Place, float]:
        async with self._lock:
            channels, removals = await self._index.open_channels(scope)
            if self._vectors is None or removals != self._removals:
                self._vectors = None  # both copies at once would take twice the room
                self._vectors = await self._index.load(self._embedder.name, self._embedder.dimensions)
                self._removals = removals
            self._used_at = monotonic_s()
            self._is_loaded.set()
            docs = await trio.to_thread.run_sync(
                self._vectors.nearest, vector, scope, channels, CANDIDATES, limiter=self._limiter
            )
        return await self._index.places(docs, scope)

    async def _rank(self, asked: Question, legs: "Legs", scope: Scope, limit: int) -> MessageResult:
        words, meaning = legs.words, legs.meaning
        messages = await self._index.messages(list({**words, **meaning}), scope)
        seeds = best(fuse_places([words, meaning], messages), SEEDS)
        near = [place for place in beside(seeds, -NEAR_BEFORE, NEAR_AFTER) if place not in messages]
        messages |= await self._index.messages(near, scope)
        candidates, scores = await trio.to_thread.run_sync(judge, asked, messages, legs, limiter=self._limiter)
        ranked = best(scores, limit)
        around = await self._index.messages(list(beside(ranked, -BEFORE, AFTER)), Scope(viewer=scope.viewer))
        hits = tuple(
            MessageHit(
                message=messages[place],
                score=scores[place],
                rank=rank,
                why=why(asked, candidates[place]),
                context=tuple(around[near] for near in beside([place], -BEFORE, AFTER) if near in around),
            )
            for rank, place in enumerate(ranked, start=1)
        )
        return MessageResult(hits=hits, total_found=len(messages), notes=tuple(legs.notes))

    async def run(self) -> None:
        """Compute vectors of what is said, and let go of those in memory that nobody uses. Never returns.

        Nothing happens before the first message of this life: until then the model is not loaded.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._embed_when_said)
            nursery.start_soon(self._let_go)

    async def _embed_when_said(self) -> None:
        kinds = frozenset({EventKind.INBOUND_MESSAGE, EventKind.OUTBOUND_MESSAGE})
        is_checked = False
        pause = RETRY_FIRST_S
        with self._events.subscribe(kinds) as spoken:
            while (event := await spoken.receive()) is not None:
                if event.agent_id != self._agent_id:
                    continue
                await trio.sleep(QUIET_S)
                while spoken.receive_nowait() is not None:
                    pass  # all of it is looked at now
                try:
                    if not is_checked and (count := await self._index.forget_other_models(self._embedder.name)):
                        log.info("messages are embedded anew, the model changed", extra=kv(count=count))
                    is_checked = True
                    await self._embed_pending()
                    pause = RETRY_FIRST_S
                except StorageError as error:  # the model's or the database's; the next message is the next try
                    log.warning("messages still without vectors", exc_info=error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, RETRY_MOST_S)

    async def _embed_pending(self) -> None:
        """Compute what is missing; half of the time is left to others."""
        total = 0
        while True:
            texts, unneeded = await self._index.pending(BATCH)
            if not texts and not unneeded:
                break
            began = monotonic_s()
            packed: list[bytes] = []
            # Few texts overtake others in the embedder, as if somebody waited: so only one at a time is there.
            parts = [texts] if len(texts) > FEW else [[text] for text in texts]
            for part in parts:
                vectors = await self._embedder.embed([text for _, text in part])
                packed += await trio.to_thread.run_sync(pack, vectors)
            spent = monotonic_s() - began
            docs = [doc for doc, _ in texts]
            await self._index.add(self._embedder.name, dict(zip(docs, packed, strict=True)), unneeded)
            async with self._lock:
                if self._vectors is not None and docs:
                    rows = await self._index.rows_of(docs)
                    await trio.to_thread.run_sync(self._vectors.add, rows, limiter=self._limiter)
            total += len(docs)
            await trio.sleep(spent)
        if total:
            log.debug("messages embedded", extra=kv(count=total))

    async def _let_go(self) -> None:
        while True:
            await self._is_loaded.wait()
            await trio.sleep(max(0.0, self._used_at + RELEASE_S - monotonic_s()))
            if monotonic_s() < self._used_at + RELEASE_S:
                continue  # somebody searched meanwhile
            async with self._lock:
                self._vectors, self._is_loaded = None, trio.Event()
            await trio.to_thread.run_sync(give_memory_back)


def match_people(people: Iterable[Participant], wanted: str) -> tuple[str, ...]:
    """Ids of those whom a word means: exact name or id, then prefix of a name, then part of it; without repeats."""
    needle = wanted.strip().lstrip("@").casefold()
    if not needle:
        return ()
    known = [(person.name.lstrip("@").casefold(), person.id.casefold(), person.id) for person in people]
    for fits in (
        lambda name, user: needle in (name, user),
        lambda name, _: name.startswith(needle),
        lambda name, _: needle in name,
    ):
        if ids := tuple(dict.fromkeys(key for name, user, key in known if fits(name, user))):
            return ids
    return ()


def named_in(question: Question, people: Iterable[Participant]) -> dict[str, frozenset[str]]:
    """The words of a question that name people, each with the ids of those whom it may mean."""
    named: dict[str, set[str]] = {}
    for person in people:
        name = fold(person.name)
        if any(word in name for word in question.names):  # most people are not named; a look at each word costs more
            for word in WORD.findall(name):
                if word in question.names:
                    named.setdefault(word, set()).add(person.id)
    return {word: frozenset(ids) for word, ids in named.items()}


def fuse_places(legs: Iterable[Iterable[Place]], messages: Mapping[Place, LoggedMessage]) -> dict[Place, float]:
    """Scores by rank of those places where there are messages."""
    fused = fuse([[MemoryId(messages[place].id) for place in leg if place in messages] for leg in legs])
    return {place: score for place, message in messages.items() if (score := fused.get(MemoryId(message.id)))}


def judge(
    asked: Question, messages: Mapping[Place, LoggedMessage], legs: Legs
) -> tuple[dict[Place, Candidate], dict[Place, float]]:
    """How well each message answers, between 0 and 1; those that are too far off are left out."""
    candidates = {
        place: Candidate(
            id=MemoryId(message.id),
            content=message.content[:READ_CHARACTERS],
            said_at=message.created_at,
            conversation=(place.channel_id,),
            place=place.seq,
            source=message.sender_name,
            subject=message.sender_id,
            bm25=legs.words.get(place, 0.0),
            cosine=legs.meaning.get(place),
        )
        for place, message in messages.items()
    }
    rarity = rarity_of({**dict.fromkeys(asked.stems, 0), **legs.counts}, legs.total or len(candidates))
    scores = score(asked, Surroundings(candidates.values()), rarity, WEIGHTS)
    by_id = {candidate.id: place for place, candidate in candidates.items()}
    order = sorted(scores, key=lambda key: (-scores[key], key))
    talks = {candidate.id: (candidate.conversation, candidate.day) for candidate in candidates.values()}
    spread = spread_out(order, scores, talks, DIVERSITY)
    return candidates, {by_id[key]: min(1.0, max(0.0, value / FULL_SCORE)) for key, value in spread.items()}


def beside(places: Iterable[Place], first: int, last: int) -> dict[Place, None]:
    """The places around these, from `first` to `last` places after each, without themselves; in order."""
    return {
        Place(place.channel_id, place.seq + step): None for place in places for step in range(first, last + 1) if step
    }


def best(scores: Mapping[Place, float], limit: int) -> list[Place]:
    """The places of the greatest scores; among equals the later message, so that the order never varies."""
    return sorted(scores, key=lambda place: (-scores[place], place.channel_id, -place.seq))[:limit]
