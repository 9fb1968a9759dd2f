"""Where the log is searched: who may see which conversation, full text, and vectors of messages.

The vectors are kept small, one byte a component: 100,000 messages take 40 MiB on disk and in memory. In memory they
are a copy, read when somebody searches and given back when nobody does.

Flow:    MessageIndex.pending -> vectors -> add;  channels, words, load -> Vectors.nearest -> rows
Floor:   conversations
Source:  memory spec 8.4 and its pitfalls P-09, P-33; tables in storage/sql/0005_message_search.sql
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from spacebot.base.errors import NotFoundError
from spacebot.base.ids import ConversationId, platform_of
from spacebot.conversations.records import ChannelRecord, LoggedMessage, Participant
from spacebot.conversations.rows import to_logged
from spacebot.memory.question import Question, term_expression
from spacebot.memory.types import Viewer
from spacebot.memory.words import fold, stem
from spacebot.storage.database import Connection, Database

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEWEST = 100_000  # messages that are found by meaning; older ones by their words only
PAGE = 8192  # vectors read at once, so that other readers get their turn
BLOCK = 1024  # vectors compared at once; as float32 they fit the processor's cache
SHORTEST, SHORTEST_CHARACTERS = 3, 20  # a text of fewer words and characters has no meaning worth a vector
COUNTED = 5000  # a word of more messages than this says little anyway
READ_CHARACTERS = 2000  # of a message; the model reads no more

# Who may see a conversation: everybody, unless it was ever a direct chat. That one is seen from itself, and from
# another direct chat of the same person on the same platform if nobody else ever spoke in it.
VISIBLE = (
    "(:sees_all OR c.was_direct = 0 OR c.id = :channel OR (:user IS NOT NULL AND c.is_direct = 1 "
    "AND c.platform = :platform "
    "AND EXISTS (SELECT 1 FROM channel_people p WHERE p.channel_id = c.id AND p.sender_id = :user) "
    "AND NOT EXISTS (SELECT 1 FROM channel_people p WHERE p.channel_id = c.id AND p.sender_id <> :user)))"
)
_OPEN = f"SELECT c.id FROM channels c WHERE {VISIBLE} AND (:place IS NULL OR c.id = :place)"
_FITS = (
    f"m.kind = 'text' AND m.channel_id IN ({_OPEN}) "
    "AND (:senders IS NULL OR m.sender_id IN (SELECT value FROM json_each(:senders))) "
    "AND m.created_at < :before AND m.created_at > :after"
)


_MESSAGE_OF = "CROSS JOIN conversation_messages m ON m.id = d.message_id "


class Place(NamedTuple):
    """Where a message stands; numbers count per channel, so neighbours are one apart."""

    channel_id: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What may take part in a search, as parameters of its statements."""

    viewer: Viewer
    channel_id: str | None = None
    senders: tuple[str, ...] | None = None  # ids of people; None for everybody, the agent included
    before: str | None = None  # both exclusive, as `to_text` writes them
    after: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether everything in the open conversations takes part."""
        return self.senders is None and self.before is None and self.after is None

    def parameters(self) -> dict[str, object]:
        """The values that the statements name."""
        return {
            **visible_to(self.viewer),
            "place": self.channel_id,
            "senders": None if self.senders is None else json.dumps(self.senders),
            "before": self.before or "9999",
            "after": self.after or "",
        }


def visible_to(viewer: Viewer) -> dict[str, object]:
    """The parameters that `VISIBLE` needs."""
    person = viewer.user_id if viewer.owner is not None else None
    return {
        "sees_all": viewer.sees_all,
        "channel": viewer.channel_id,
        "user": person,
        "platform": platform_of(ConversationId(viewer.channel_id)) if viewer.channel_id else None,
    }


class MessageIndex:
    """Reads and writes of what belongs to searching the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def channels(self, viewer: Viewer) -> list[ChannelRecord]:
        """Active conversations that the viewer may see, the latest first."""
        statement = (
            f"SELECT * FROM channels c WHERE c.is_active = 1 AND {VISIBLE} ORDER BY c.last_activity_at DESC, c.id"
        )
        rows = await self._database.read(lambda c: c.execute(statement, visible_to(viewer)).fetchall())
        return [
            ChannelRecord(
                id=ConversationId(row["id"]),
                platform=row["platform"],
                display_name=row["display_name"],
                is_direct=bool(row["was_direct"]),
                created_at=row["created_at"],
                last_activity_at=row["last_activity_at"],
            )
            for row in rows
        ]

    async def transcript(
        self, scope: Scope, *, limit: int, before_id: str | None, after_id: str | None, oldest_first: bool
    ) -> list[LoggedMessage]:
        """Messages of the scope's channel in the order they were said; see `MessageSearch.transcript`."""

        def read(c: Connection) -> list[LoggedMessage]:
            parameters = {
                **scope.parameters(),
                "below": _seq_of(c, before_id, scope, 1 << 62),
                "above": _seq_of(c, after_id, scope, 0),
                "limit": limit,
            }
            order = "ASC" if oldest_first else "DESC"
            rows = c.execute(
                f"SELECT m.* FROM conversation_messages m WHERE m.channel_id = :place AND {_FITS} "
                f"AND m.seq < :below AND m.seq > :above ORDER BY m.seq {order} LIMIT :limit",
                parameters,
            )
            messages = [to_logged(row) for row in rows]
            return messages if oldest_first else messages[::-1]

        return await self._database.read(read)

    async def people(self, viewer: Viewer) -> list[Participant]:
        """Everybody who spoke where the viewer may look; a person of two names stands there twice."""
        statement = (
            "SELECT DISTINCT sender_id, sender_name FROM channel_people WHERE channel_id IN "
            f"(SELECT c.id FROM channels c WHERE {VISIBLE}) ORDER BY sender_id, sender_name"
        )
        rows = await self._database.read(lambda c: c.execute(statement, visible_to(viewer)).fetchall())
        return [Participant(id=row["sender_id"], name=row["sender_name"] or row["sender_id"]) for row in rows]

    async def words(self, terms: str, scope: Scope, limit: int) -> dict[Place, float]:
        """Messages that hold some of the terms, best first, with their bm25 (the greater, the better).

        Args:
            terms: an expression made by `match_expression`, never user text.
        """
        message, fits = ("", "") if scope.is_whole else (_MESSAGE_OF, f"AND {_FITS} ")
        statement = (
            "SELECT d.channel_id, d.seq, bm25(messages_fts) AS cost FROM messages_fts f "
            f"CROSS JOIN message_docs d ON d.doc = f.rowid {message}"
            f"WHERE messages_fts MATCH :terms AND d.channel_id IN ({_OPEN}) {fits}"
            "ORDER BY cost, f.rowid DESC LIMIT :limit"
        )
        parameters = {**scope.parameters(), "terms": terms, "limit": limit}
        rows = await self._database.read(lambda c: c.execute(statement, parameters).fetchall())
        return {Place(row["channel_id"], row["seq"]): -row["cost"] for row in rows}

    async def counts(self, question: Question) -> tuple[dict[str, int], int]:
        """How many of about so many messages have each stem of a question; more than `COUNTED` are not told apart."""
        wanted = {stem(fold(term)): term_expression(term) for term in question.terms}

        def read(c: Connection) -> tuple[dict[str, int], int]:
            (total,) = c.execute("SELECT coalesce(max(doc), 0) FROM message_docs").fetchone()
            counts = {
                key: c.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM messages_fts WHERE messages_fts MATCH ? LIMIT ?)",
                    (wanted[key], COUNTED),
                ).fetchone()[0]
                for key in question.stems
                if key in wanted
            }
            return counts, total

        return await self._database.read(read)

    async def open_channels(self, scope: Scope) -> tuple[list[str], int]:
        """Conversations that may take part, and how many vectors were ever removed."""

        def read(c: Connection) -> tuple[list[str], int]:
            rows = c.execute(_OPEN, scope.parameters())
            (removals,) = c.execute("SELECT count FROM message_removals").fetchone()
            return [row["id"] for row in rows], removals

        return await self._database.read(read)

    async def places(self, docs: Mapping[int, float], scope: Scope) -> dict[Place, float]:
        """Where texts stand, with the scores given for them, best first; only what fits the scope."""

        def read(c: Connection) -> dict[Place, float]:
            rows = c.execute(
                "SELECT d.doc, d.channel_id, d.seq FROM json_each(:docs) j "
                f"CROSS JOIN message_docs d ON d.doc = j.value {_MESSAGE_OF}WHERE {_FITS}",
                {**scope.parameters(), "docs": json.dumps(list(docs))},
            )
            found = {row["doc"]: Place(row["channel_id"], row["seq"]) for row in rows}
            return {found[doc]: score for doc, score in docs.items() if doc in found}

        return await self._database.read(read)

    async def messages(self, places: Sequence[Place], scope: Scope) -> dict[Place, LoggedMessage]:
        """The messages at these places, as far as they exist and fit the scope."""

        def read(c: Connection) -> dict[Place, LoggedMessage]:
            rows = c.execute(
                "SELECT m.* FROM json_each(:wanted) w CROSS JOIN conversation_messages m "
                "ON m.channel_id = json_extract(w.value, '$[0]') AND m.seq = json_extract(w.value, '$[1]') "
                f"WHERE {_FITS} AND trim(m.content) <> ''",
                {**scope.parameters(), "wanted": json.dumps(places)},
            )
            return {Place(row["channel_id"], row["seq"]): to_logged(row) for row in rows}

        return await self._database.read(read)

    async def pending(self, limit: int) -> tuple[list[tuple[int, str]], list[int]]:
        """Texts that need a vector, the newest first, and numbers of those that were looked at and need none."""

        def read(c: Connection) -> tuple[list[tuple[int, str]], list[int]]:
            rows = c.execute(
                "SELECT d.doc, substr(m.content, 1, :most) AS text FROM message_docs d "
                "JOIN conversation_messages m ON m.id = d.message_id WHERE d.is_pending = 1 "
                "AND d.doc > (SELECT coalesce(max(doc), 0) FROM message_docs) - :newest "
                "ORDER BY d.doc DESC LIMIT :limit",
                {"most": READ_CHARACTERS, "newest": NEWEST, "limit": limit},
            ).fetchall()
            texts = [(row["doc"], row["text"]) for row in rows]
            needed = {doc: text for doc, text in texts if _has_meaning(text)}
            return list(needed.items()), [doc for doc, _ in texts if doc not in needed]

        return await self._database.read(read)

    async def add(self, model: str, vectors: Mapping[int, bytes], looked_at: Sequence[int]) -> None:
        """Keep vectors; those of texts that were erased or changed meanwhile are dropped."""

        def write(c: Connection) -> None:
            c.executemany(
                "INSERT OR REPLACE INTO message_embeddings (doc, model, embedding) "
                "SELECT doc, ?, ? FROM message_docs WHERE doc = ?",
                [(model, vector, doc) for doc, vector in vectors.items()],
            )
            c.executemany(
                "UPDATE message_docs SET is_pending = 0 WHERE doc = ?", [(doc,) for doc in [*vectors, *looked_at]]
            )

        await self._database.write(write)

    async def forget_other_models(self, model: str) -> int:
        """Let everything that another model made be computed anew; returns how many vectors that were."""
        models = await self._database.read(
            lambda c: c.execute("SELECT min(model), max(model) FROM message_embeddings").fetchone()
        )
        if set(models) <= {model, None}:
            return 0

        def write(c: Connection) -> int:
            c.execute(
                "UPDATE message_docs SET is_pending = 1 WHERE doc IN "
                "(SELECT doc FROM message_embeddings WHERE model <> ?)",
                (model,),
            )
            return c.execute("DELETE FROM message_embeddings WHERE model <> ?", (model,)).rowcount

        return await self._database.write(write)

    async def load(self, model: str, dimensions: int) -> "Vectors":
        """Copy the newest vectors into memory."""
        last = await self._database.read(
            lambda c: c.execute("SELECT coalesce(max(doc), 0) - ? FROM message_docs", (NEWEST,)).fetchone()[0]
        )
        vectors = Vectors(dimensions)

        def take(c: Connection) -> int:
            page = _page(c, model, last)
            vectors.add(page)
            return page[-1].doc if page else last

        while (reached := await self._database.read(take)) > last:
            last = reached
        return vectors

    async def rows_of(self, docs: Sequence[int]) -> "list[VectorRow]":
        """What is kept of these texts."""
        return await self._database.read(
            lambda c: [
                VectorRow(row["doc"], row["channel_id"], row["sender_id"], row["created_at"], row["embedding"])
                for row in c.execute(f"{_ROWS} WHERE e.doc IN (SELECT value FROM json_each(?))", (json.dumps(docs),))
            ]
        )


class VectorRow(NamedTuple):
    """A vector as it is kept."""

    doc: int
    channel_id: str
    sender_id: str | None
    created_at: str
    embedding: bytes


_ROWS = (
    "SELECT e.doc, e.embedding, m.channel_id, m.sender_id, m.created_at FROM message_embeddings e "
    "CROSS JOIN message_docs d ON d.doc = e.doc CROSS JOIN conversation_messages m ON m.id = d.message_id"
)


def _has_meaning(text: str) -> bool:
    return len(text) >= SHORTEST_CHARACTERS or len(text.split()) >= SHORTEST


def _seq_of(c: Connection, message_id: str | None, scope: Scope, default: int) -> int:
    if message_id is None:
        return default
    row = c.execute(
        f"SELECT m.seq FROM conversation_messages m WHERE m.id = :id AND {_FITS}",
        {**Scope(viewer=scope.viewer, channel_id=scope.channel_id).parameters(), "id": message_id},
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no message {message_id!r} in that channel")
    return int(row["seq"])


def _page(c: Connection, model: str, after: int) -> list[VectorRow]:
    return [
        VectorRow(row["doc"], row["channel_id"], row["sender_id"], row["created_at"], row["embedding"])
        for row in c.execute(
            f"{_ROWS} WHERE e.doc > ? AND e.model = ? ORDER BY e.doc LIMIT ?",
            (after, model, PAGE),
        )
    ]


class Vectors:
    """Vectors of messages in memory, one byte a component; searched exactly. One thread at a time."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._codes: dict[str, int] = {}  # channels and people as numbers, so that filters are one comparison
        self._times: list[str] = []
        self._parts: list[_Part] = []

    def __len__(self) -> int:
        return sum(len(part.docs) for part in self._parts)

    def add(self, rows: Sequence[VectorRow]) -> None:
        """Take in vectors; a text that is there already is replaced."""
        import numpy as np  # a start without search must not pay for it

        if not rows:
            return
        docs = np.fromiter((row.doc for row in rows), np.int64, len(rows))
        for part in self._parts:
            part.channels[np.isin(part.docs, docs)] = _NOWHERE
        raw = np.frombuffer(b"".join(row.embedding for row in rows), np.int8).reshape(len(rows), -1)
        self._parts.append(
            _Part(
                docs=docs,
                channels=np.fromiter((self._code(row.channel_id) for row in rows), np.int32, len(rows)),
                senders=np.fromiter((self._code(row.sender_id or "") for row in rows), np.int32, len(rows)),
                times=np.array([row.created_at[:19].encode() for row in rows], "S19").astype("M8[s]"),
                scales=raw[:, :4].copy().view(np.float32).ravel(),
                components=raw[:, 4:].copy(),
            )
        )
        if len(self._parts) > 64 and len(self._parts[-1].docs) < BLOCK:
            self._join()
        while len(self) - len(self._parts[0].docs) >= NEWEST:
            del self._parts[0]

    def nearest(
        self, vector: "NDArray[np.float32]", scope: Scope, channels: Sequence[str], limit: int
    ) -> dict[int, float]:
        """The texts nearest to a vector of length 1 among those in `channels`, best first, with their cosines."""
        import numpy as np

        open_codes = np.zeros(len(self._codes) + 1, bool)
        open_codes[[code for channel in channels if (code := self._codes.get(channel)) is not None]] = True
        senders = None if scope.senders is None else [self._codes.get(sender, _NOWHERE) for sender in scope.senders]
        docs, scores = [], []
        for part in self._parts:
            fits = open_codes[part.channels]
            if senders is not None:
                fits &= np.isin(part.senders, senders)
            for bound, keeps in ((scope.before, np.less_equal), (scope.after, np.greater_equal)):
                if bound is not None:  # to the second; the statements that follow know the rest
                    fits &= keeps(part.times, np.datetime64(bound[:19], "s"))
            if not fits.any():
                continue
            cosines = part.cosines(vector)
            cosines[~fits] = -2.0
            best = np.argpartition(-cosines, limit - 1)[:limit] if len(cosines) > limit else np.arange(len(cosines))
            best = best[fits[best]]
            docs.append(part.docs[best])
            scores.append(cosines[best])
        if not docs:
            return {}
        all_docs, all_scores = np.concatenate(docs), np.concatenate(scores)
        order = np.lexsort((-all_docs, -all_scores))[:limit]
        return {int(all_docs[place]): float(all_scores[place]) for place in order}

    def _join(self) -> None:
        """Melt the many small parts at the end into one."""
        import numpy as np

        first = next(i for i in range(len(self._parts)) if all(len(part.docs) < BLOCK for part in self._parts[i:]))
        small = self._parts[first:]
        merged = {name: np.concatenate([getattr(part, name) for part in small]) for name in _Part.__slots__}
        self._parts[first:] = [_Part(**merged)]

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))


_NOWHERE = -1  # the code of no channel: the last place of the table of open ones, which is never open


@dataclass(slots=True)
class _Part:
    """Some vectors and what filters need to know of each."""

    docs: Any
    channels: Any
    senders: Any
    times: Any
    scales: Any
    components: Any

    def cosines(self, vector: "NDArray[np.float32]") -> "NDArray[np.float32]":
        import numpy as np

        result = np.empty(len(self.docs), np.float32)
        scratch = np.empty((BLOCK, len(vector)), np.float32)
        for start in range(0, len(self.docs), BLOCK):
            rows = self.components[start : start + BLOCK]
            wide = scratch[: len(rows)]
            np.copyto(wide, rows)
            np.matmul(wide, vector, out=result[start : start + BLOCK])
        result *= self.scales
        return result


def pack(vectors: "NDArray[np.float32]") -> list[bytes]:
    """Vectors of length 1 as they are kept: a scale, then a byte for each component.

    Loss, measured on 2,760 messages and 997 questions: a cosine is off by .0003, by .002 at most; of the first ten
    found one in two hundred differs.
    """
    import numpy as np

    scales = (np.abs(vectors).max(axis=1, keepdims=True) / 127).astype(np.float32)
    scales[scales == 0] = 1
    components = np.rint(vectors / scales).astype(np.int8)
    return [scale.tobytes() + row.tobytes() for scale, row in zip(scales, components, strict=True)]
