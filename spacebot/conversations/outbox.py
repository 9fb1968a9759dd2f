"""What waits to be delivered to platforms: written with each message, in order per conversation, until it is there.

    queued -> sending -> delivered | undelivered
      ^          |
      +----------+  a failure that may pass, or the program died: it is taken again, behind the parts that went out

Floor:  conversations
Source: design 4.5; messaging spec 19 n
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, MessageId
from spacebot.conversations.records import Draft, Parcel, Undelivered
from spacebot.messaging.codec import from_json
from spacebot.messaging.messages import OutboundKind, OutboundMessage, Target
from spacebot.storage.database import Connection, Database, Row

NAMES = 200  # people of a conversation who may be mentioned

_PARCEL = (
    "SELECT o.*, m.content, m.kind, m.metadata AS extra, m.seq AS message_seq, m.reply_to, r.platform_id AS target_id, "
    "r.seq AS target_seq, json_extract(r.metadata, '$.platform_data') AS target_data, c.platform_meta, c.is_direct "
    "FROM outbox o JOIN conversation_messages m ON m.id = o.message_id JOIN channels c ON c.id = o.channel_id "
    "LEFT JOIN conversation_messages r ON r.id = m.reply_to "
)


class Outbox:
    """Reads and writes of the outbox; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def open_channels(self) -> list[ConversationId]:
        """Conversations where something waits."""

        def read(c: Connection) -> list[ConversationId]:
            rows = c.execute("SELECT DISTINCT channel_id FROM outbox WHERE state IN ('queued', 'sending')")
            return [ConversationId(row[0]) for row in rows]

        return await self._database.read(read)

    async def take(self, channel_id: ConversationId) -> Parcel | None:
        """The oldest that waits in a conversation; it counts as being sent from now on."""

        def write(c: Connection) -> Parcel | None:
            row = c.execute(
                _PARCEL + "WHERE o.channel_id = ? AND o.state IN ('queued', 'sending') ORDER BY o.seq LIMIT 1",
                (channel_id,),
            ).fetchone()
            if row is None:
                return None
            c.execute("UPDATE outbox SET state = 'sending' WHERE message_id = ?", (row["message_id"],))
            return _to_parcel(c, row)

        return await self._database.write(write)

    async def put_back(self, message_id: MessageId) -> None:
        """Note that nothing has been sent yet of a message that was taken: its adapter is away."""
        await self._database.write(
            lambda c: c.execute(
                "UPDATE outbox SET state = 'queued' WHERE message_id = ? AND state = 'sending'", (message_id,)
            )
        )

    async def files(self) -> frozenset[str]:
        """Names of the copies of files that wait to be sent, or that readers of the log may fetch."""

        def read(c: Connection) -> frozenset[str]:
            rows = c.execute(
                "SELECT json_extract(m.metadata, '$.file.path') FROM conversation_messages m "
                "JOIN channels c ON c.id = m.channel_id LEFT JOIN outbox o ON o.message_id = m.id "
                "WHERE m.kind = ? AND (o.state IN ('queued', 'sending') OR c.adapter IS NULL) "
                "AND json_valid(m.metadata)",
                (OutboundKind.FILE,),
            )
            return frozenset(PurePath(row[0]).name for row in rows if row[0])

        return await self._database.read(read)

    async def waiting(self, channel_id: ConversationId, limit: int) -> list[Parcel]:
        """What waits in a conversation, oldest first, without taking it."""

        def read(c: Connection) -> list[Parcel]:
            rows = c.execute(
                _PARCEL + "WHERE o.channel_id = ? AND o.state IN ('queued', 'sending') ORDER BY o.seq LIMIT ?",
                (channel_id, limit),
            ).fetchall()
            return [_to_parcel(c, row) for row in rows]

        return await self._database.read(read)

    async def note_sent(self, message_id: MessageId, platform_ids: Sequence[str], *, is_last: bool) -> None:
        """Keep the platform's ids of all parts that went out so far; with the last one the message is delivered."""

        def write(c: Connection) -> None:
            now = self._clock.text()
            c.execute(
                "UPDATE outbox SET sent = ?, state = iif(?, 'delivered', state), error = NULL, "
                "delivered_at = iif(?, ?, delivered_at) WHERE message_id = ?",
                (json.dumps(list(platform_ids)), is_last, is_last, now, message_id),
            )
            if platform_ids:
                c.execute(
                    "UPDATE OR IGNORE conversation_messages SET platform_id = ? WHERE id = ? AND platform_id IS NULL",
                    (platform_ids[0], message_id),
                )

        await self._database.write(write)

    async def defer(self, message_id: MessageId, error: str, *, is_doubtful: bool) -> None:
        """Keep why an attempt failed; the message is taken again.

        Args:
            is_doubtful: it may have arrived nevertheless.
        """

        def write(c: Connection) -> None:
            c.execute(
                "UPDATE outbox SET error = ?, attempts = attempts + 1, state = iif(?, state, 'queued') "
                "WHERE message_id = ?",
                (error, is_doubtful, message_id),
            )

        await self._database.write(write)

    async def give_up(self, message_id: MessageId, error: str) -> None:
        """Note that nobody will get a message, and why; the model is told at its next turn."""

        def write(c: Connection) -> None:
            c.execute(
                "UPDATE outbox SET state = 'undelivered', error = ?, attempts = attempts + 1 WHERE message_id = ?",
                (error, message_id),
            )

        await self._database.write(write)

    async def untold(self, channel_id: ConversationId) -> list[Undelivered]:
        """What was said and not delivered, and the model does not know."""

        def read(c: Connection) -> list[Undelivered]:
            rows = c.execute(
                "SELECT o.message_id, o.error, m.content FROM outbox o JOIN conversation_messages m "
                "ON m.id = o.message_id WHERE o.channel_id = ? AND o.state = 'undelivered' AND o.is_told = 0 "
                "ORDER BY o.seq LIMIT 5",
                (channel_id,),
            )
            return [
                Undelivered(message_id=MessageId(row["message_id"]), text=row["content"], reason=row["error"] or "")
                for row in rows
            ]

        return await self._database.read(read)

    async def mark_told(self, message_ids: Sequence[MessageId]) -> None:
        """The model has been told."""
        await self._database.write(
            lambda c: c.executemany(
                "UPDATE outbox SET is_told = 1 WHERE message_id = ?", [(message_id,) for message_id in message_ids]
            )
        )

    async def counts(self) -> Mapping[str, int]:
        """How many messages wait, by adapter."""

        def read(c: Connection) -> dict[str, int]:
            rows = c.execute(
                "SELECT adapter, count(*) FROM outbox WHERE state IN ('queued', 'sending') GROUP BY adapter"
            )
            return dict(rows.fetchall())

        return await self._database.read(read)

    async def target(self, channel_id: ConversationId, reply_to: MessageId | None) -> tuple[str, Target] | None:
        """Where an answer in a conversation goes, with the adapter; None when its readers follow the log."""

        def read(c: Connection) -> tuple[str, Target] | None:
            row = c.execute(
                "SELECT c.id AS channel_id, c.adapter, c.platform_meta, c.is_direct, r.platform_id AS target_id, "
                "json_extract(r.metadata, '$.platform_data') AS target_data FROM channels c "
                "LEFT JOIN conversation_messages r ON r.id = ? WHERE c.id = ? AND c.adapter IS NOT NULL",
                (reply_to, channel_id),
            ).fetchone()
            return None if row is None else (row["adapter"], _to_target(row))

        return await self._database.read(read)

    async def note_draft(self, channel_id: ConversationId, reply_to: MessageId, adapter: str, draft_id: str) -> None:
        """Keep that people see a growing draft of an answer."""

        def write(c: Connection) -> None:
            c.execute(
                "INSERT OR REPLACE INTO drafts (channel_id, reply_to, adapter, draft_id) VALUES (?, ?, ?, ?)",
                (channel_id, reply_to, adapter, draft_id),
            )

        await self._database.write(write)

    async def take_draft(self, channel_id: ConversationId, reply_to: MessageId) -> str | None:
        """Let go of a draft that nothing came of; returns the platform's id."""

        def write(c: Connection) -> str | None:
            row = c.execute(
                "DELETE FROM drafts WHERE channel_id = ? AND reply_to = ? RETURNING draft_id", (channel_id, reply_to)
            ).fetchone()
            return None if row is None else str(row["draft_id"])

        return await self._database.write(write)

    async def draft(self, channel_id: ConversationId, reply_to: MessageId) -> str | None:
        """The draft that an earlier life of the program left for an answer."""

        def read(c: Connection) -> str | None:
            row = c.execute(
                "SELECT draft_id FROM drafts WHERE channel_id = ? AND reply_to = ?", (channel_id, reply_to)
            ).fetchone()
            return None if row is None else str(row["draft_id"])

        return await self._database.read(read)

    async def take_stale_drafts(self) -> list[Draft]:
        """Let go of all drafts whose question is dealt with or gone; for the program's start."""

        def write(c: Connection) -> list[Draft]:
            rows = c.execute(
                "SELECT d.*, c.platform_meta, c.is_direct, NULL AS target_id, NULL AS target_data FROM drafts d "
                "JOIN channels c ON c.id = d.channel_id WHERE NOT EXISTS (SELECT 1 FROM ledger l "
                "WHERE l.message_id = d.reply_to AND l.state IN ('accepted', 'in_turn'))"
            ).fetchall()
            c.executemany(
                "DELETE FROM drafts WHERE channel_id = ? AND reply_to = ?",
                [(row["channel_id"], row["reply_to"]) for row in rows],
            )
            return [Draft(adapter=row["adapter"], target=_to_target(row), draft_id=row["draft_id"]) for row in rows]

        return await self._database.write(write)


def _to_target(row: Row) -> Target:
    data = row["target_data"] or row["platform_meta"]
    return Target(
        conversation_id=ConversationId(row["channel_id"]),
        is_direct=bool(row["is_direct"]),
        data=json.loads(data) if data else {},
        message_id=row["target_id"],
    )


def _to_parcel(c: Connection, row: Row) -> Parcel:
    extra = from_json(row["extra"])
    message = OutboundMessage(
        id=MessageId(row["message_id"]),
        text=row["content"],
        kind=OutboundKind(row["kind"]) if row["kind"] in set(OutboundKind) else OutboundKind.TEXT,
        rich=extra.rich,
        file=extra.file,
        mentions=_mentions(c, row["channel_id"]) if "@" in row["content"] else {},
        sent=tuple(json.loads(row["sent"])),
        draft_id=row["draft_id"],
        is_doubtful=row["state"] == "sending",
        wants_reply_mark=_is_behind(c, row),
    )
    return Parcel(
        message=message,
        target=_to_target(row),
        adapter=row["adapter"],
        attempts=row["attempts"],
        created_at=row["created_at"],
    )


def _mentions(c: Connection, channel_id: str) -> dict[str, str]:
    """Names of the people in a conversation and how the platform mentions them."""
    rows = c.execute(
        "SELECT p.sender_name, (SELECT json_extract(m.metadata, '$.handle') FROM conversation_messages m "
        "WHERE m.channel_id = p.channel_id AND m.seq = p.last_seq) AS handle FROM channel_people p "
        "WHERE p.channel_id = ? ORDER BY p.last_seq DESC LIMIT ?",
        (channel_id, NAMES),
    )
    found: dict[str, str] = {}
    for row in rows:
        if row["sender_name"] and row["handle"]:
            found.setdefault(row["sender_name"], row["handle"])
    return found


def _is_behind(c: Connection, row: Row) -> bool:
    """Whether others spoke between the question and its answer."""
    if row["is_direct"] or row["target_seq"] is None:
        return False
    return (
        c.execute(
            "SELECT 1 FROM conversation_messages WHERE channel_id = ? AND role = 'user' AND seq > ? AND seq < ?",
            (row["channel_id"], row["target_seq"], row["message_seq"]),
        ).fetchone()
        is not None
    )
