"""What is kept about a conversation beside its messages: summaries, and how far it was gone through for memories.

Flow:    Memoranda.record_summary, record_persistence -> rows; the next life reads them
Floor:   conversations
Source:  process spec 9, memory spec 10.1; pitfalls P34, P-22, P-27
"""

import json
from collections.abc import Sequence

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, new_uuid
from spacebot.conversations.records import LoggedMessage, Summary, SummaryKind, Unsaved
from spacebot.conversations.rows import to_logged
from spacebot.storage.database import Connection, Database

_OPEN = "SELECT min(m.seq) FROM ledger l JOIN conversation_messages m ON m.id = l.message_id "
_UNSAVED = (
    "SELECT m.channel_id, count(*) AS count, min(m.created_at) AS first_at, coalesce(p.last_seq, 0) AS after_seq "
    "FROM conversation_messages m LEFT JOIN "
    "(SELECT channel_id, max(last_seq) AS last_seq FROM persistence_runs GROUP BY channel_id) p "
    "ON p.channel_id = m.channel_id "
    "WHERE m.role = 'user' AND m.kind = 'text' AND m.seq > coalesce(p.last_seq, 0) "
)


class Memoranda:
    """Reads and writes of these rows; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record_summary(
        self, channel_id: ConversationId, *, first_seq: int, last_seq: int, kind: SummaryKind, content: str
    ) -> Summary | None:
        """Keep a summary; those that it swallows whole go.

        A message that nobody has answered yet is never covered: the span ends before it. None when nothing is left.
        """

        def write(c: Connection) -> Summary | None:
            (unanswered,) = c.execute(
                f"{_OPEN} WHERE l.channel_id = ? AND l.state IN ('accepted', 'in_turn')", (channel_id,)
            ).fetchone()
            last = last_seq if unanswered is None else min(last_seq, unanswered - 1)
            if last < first_seq:
                return None
            c.execute(
                "DELETE FROM summaries WHERE channel_id = ? AND first_seq >= ? AND last_seq <= ?",
                (channel_id, first_seq, last),
            )
            summary = Summary(id=new_uuid(), first_seq=first_seq, last_seq=last, kind=kind, content=content)
            c.execute(
                "INSERT INTO summaries (id, channel_id, first_seq, last_seq, kind, content, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (summary.id, channel_id, first_seq, last, str(kind), content, self._clock.text()),
            )
            return summary

        return await self._database.write(write)

    async def summaries(self, channel_id: ConversationId) -> list[Summary]:
        """All summaries of a conversation, in the order of what they cover."""

        def read(c: Connection) -> list[Summary]:
            rows = c.execute("SELECT * FROM summaries WHERE channel_id = ? ORDER BY last_seq, seq", (channel_id,))
            return [
                Summary(
                    id=row["id"],
                    first_seq=row["first_seq"],
                    last_seq=row["last_seq"],
                    kind=SummaryKind(row["kind"]),
                    content=row["content"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def spoken(
        self, channel_id: ConversationId, *, after_seq: int, last_seq: int | None = None, limit: int
    ) -> list[LoggedMessage]:
        """What was said after one number and up to another, both ends as in the log, oldest first."""

        def read(c: Connection) -> list[LoggedMessage]:
            rows = c.execute(
                "SELECT * FROM conversation_messages WHERE channel_id = ? AND kind = 'text' AND seq > ? AND seq <= ? "
                "ORDER BY seq LIMIT ?",
                (channel_id, after_seq, last_seq if last_seq is not None else 1 << 62, limit),
            )
            return [to_logged(row) for row in rows]

        return await self._database.read(read)

    async def newest(self, channel_id: ConversationId, *, after_seq: int, limit: int) -> list[LoggedMessage]:
        """The newest messages after a number, oldest first."""

        def read(c: Connection) -> list[LoggedMessage]:
            rows = c.execute(
                "SELECT * FROM conversation_messages WHERE channel_id = ? AND seq > ? ORDER BY seq DESC LIMIT ?",
                (channel_id, after_seq, limit),
            ).fetchall()
            return [to_logged(row) for row in rows[::-1]]

        return await self._database.read(read)

    async def unsaved(self, channel_id: ConversationId) -> Unsaved | None:
        """What no persistence run of a conversation has gone through; None when nothing is left."""

        def read(c: Connection) -> Unsaved | None:
            row = c.execute(f"{_UNSAVED} AND m.channel_id = ? GROUP BY m.channel_id", (channel_id,)).fetchone()
            return None if row is None else Unsaved(**{**dict(row), "channel_id": channel_id})

        return await self._database.read(read)

    async def all_unsaved(self) -> list[Unsaved]:
        """The same of all conversations with people, the longest waiting first."""

        def read(c: Connection) -> list[Unsaved]:
            rows = c.execute(
                f"{_UNSAVED} AND m.channel_id NOT IN (SELECT id FROM channels WHERE platform = 'cron') "
                "GROUP BY m.channel_id ORDER BY first_at, m.channel_id"
            )
            return [Unsaved(**{**dict(row), "channel_id": ConversationId(row["channel_id"])}) for row in rows]

        return await self._database.read(read)

    async def record_persistence(
        self,
        channel_id: ConversationId,
        *,
        last_seq: int,
        outcome: str,
        reason: str | None,
        memory_ids: Sequence[str],
        started_at: str,
    ) -> None:
        """Note that a conversation was gone through up to a message, and what came of it."""
        values = (
            new_uuid(), channel_id, last_seq, outcome, reason, json.dumps(list(memory_ids)), started_at,
            self._clock.text(),
        )  # fmt: skip
        await self._database.write(
            lambda c: c.execute(
                "INSERT INTO persistence_runs (id, channel_id, last_seq, outcome, reason, memory_ids, started_at, "
                "completed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        )
