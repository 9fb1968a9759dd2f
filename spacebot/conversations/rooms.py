"""How the agent stands in a conversation: when it answers, what was said before it came, what people changed since.

Floor:  conversations
Source: messaging spec 12 and 20, process spec 4.14
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from spacebot.base.clock import Clock, from_text, to_text
from spacebot.base.ids import ConversationId, MessageId
from spacebot.base.text import clean_unicode
from spacebot.conversations.records import (
    ERASED,
    Accepted,
    ChangedMessage,
    ChannelRecord,
    LedgerState,
    LoggedMessage,
    ResponseMode,
)
from spacebot.conversations.rows import accept_message, append_message, to_journalled, to_logged
from spacebot.messaging.messages import HistoryLine, InboundMessage, OutboundKind, Target
from spacebot.storage.database import Connection, Database
from spacebot.storage.settings import read_setting, write_settings

ALIVE_S = 7 * 86_400.0  # conversations that are asked after an interruption
MOST_ALIVE = 200
TAKEN_BACK = "(taken back)"  # what stands in place of a message that its writer deleted


class Rooms:
    """Reads and writes of conversations' standing; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def response_mode(self, channel_id: ConversationId) -> ResponseMode:
        """How the agent behaves in a conversation; active where nothing was said about it."""

        def read(c: Connection) -> ResponseMode:
            row = c.execute("SELECT response_mode FROM channels WHERE id = ?", (channel_id,)).fetchone()
            return ResponseMode.ACTIVE if row is None else ResponseMode(row["response_mode"])

        return await self._database.read(read)

    async def set_response_mode(self, channel_id: ConversationId, mode: ResponseMode) -> None:
        """Change how the agent behaves in a known conversation."""
        await self._database.write(
            lambda c: c.execute("UPDATE channels SET response_mode = ? WHERE id = ?", (str(mode), channel_id))
        )

    async def home(self, adapter: str) -> ConversationId | None:
        """The conversation that things go to which nobody asked for: the one chosen, or else the first direct chat."""

        def read(c: Connection) -> ConversationId | None:
            if chosen := read_setting(c, f"home:{adapter}"):
                return ConversationId(chosen)
            row = c.execute(
                "SELECT id FROM channels WHERE adapter = ? AND was_direct AND is_direct ORDER BY created_at LIMIT 1",
                (adapter,),
            ).fetchone()
            return None if row is None else ConversationId(row["id"])

        return await self._database.read(read)

    async def set_home(self, adapter: str, channel_id: ConversationId) -> None:
        """Choose the home conversation of an adapter."""
        await self._database.write(lambda c: write_settings(c, **{f"home:{adapter}": channel_id}))

    async def reachable(
        self, *, without: ConversationId, platform: str, person: str | None, limit: int
    ) -> list[ChannelRecord]:
        """Conversations that something can be sent to, the latest first.

        Args:
            without: the conversation that asks.
            person: whose direct chats may be named, as the platform's id; those of others are left out, and so are
                those on other platforms, where the same id is somebody else.
        """

        def read(c: Connection) -> list[ChannelRecord]:
            rows = c.execute(
                "SELECT * FROM channels c WHERE adapter IS NOT NULL AND is_active = 1 AND id <> :without AND "
                "(NOT was_direct OR (platform = :platform AND EXISTS (SELECT 1 FROM channel_people p "
                "WHERE p.channel_id = c.id AND p.sender_id = :person))) "
                "ORDER BY last_activity_at DESC, id LIMIT :limit",
                {"without": without, "platform": platform, "person": person, "limit": limit},
            )
            return [
                ChannelRecord(
                    id=ConversationId(row["id"]),
                    platform=row["platform"],
                    display_name=row["display_name"],
                    is_direct=bool(row["was_direct"]),
                    created_at=row["created_at"],
                    last_activity_at=row["last_activity_at"],
                    adapter=row["adapter"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def open(
        self,
        channel_id: ConversationId,
        *,
        adapter: str,
        platform: str,
        name: str,
        is_direct: bool,
        data: dict[str, Any],
    ) -> None:
        """Make a conversation known that nobody has written in yet."""

        def write(c: Connection) -> None:
            now = self._clock.text()
            c.execute(
                "INSERT INTO channels (id, platform, display_name, is_direct, was_direct, created_at, "
                "last_activity_at, adapter, platform_meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                (channel_id, platform, name, is_direct, is_direct, now, now, adapter, json.dumps(data)),
            )

        await self._database.write(write)

    async def first_message_at(self, channel_id: ConversationId) -> datetime | None:
        """When the first message of a person that the log has was said."""

        def read(c: Connection) -> datetime | None:
            row = c.execute(
                "SELECT coalesce(json_extract(metadata, '$.sent_at'), created_at) AS moment FROM conversation_messages "
                "WHERE channel_id = ? AND role = 'user' ORDER BY seq LIMIT 1",
                (channel_id,),
            ).fetchone()
            return None if row is None else from_text(row["moment"])

        return await self._database.read(read)

    async def backfill(self, channel_id: ConversationId) -> list[HistoryLine] | None:
        """What was said in a conversation before the agent came; None when nobody has looked yet."""

        def read(c: Connection) -> list[HistoryLine] | None:
            row = c.execute("SELECT backfill FROM channels WHERE id = ?", (channel_id,)).fetchone()
            if row is None or row["backfill"] is None:
                return None
            return [_to_line(fields) for fields in json.loads(row["backfill"])]

        return await self._database.read(read)

    async def record_backfill(self, channel_id: ConversationId, lines: Sequence[HistoryLine]) -> None:
        """Keep what was said in a conversation before the agent came."""
        text = json.dumps(
            [
                [clean_unicode(line.author), clean_unicode(line.text), to_text(line.sent_at), line.is_bot, line.is_self]
                for line in lines
            ]
        )
        await self._database.write(
            lambda c: c.execute("UPDATE channels SET backfill = ? WHERE id = ?", (text, channel_id))
        )

    async def last_heard(self, adapter: str) -> list[Target]:
        """The newest message of a person in each conversation of an adapter that was alive within `ALIVE_S`."""

        def read(c: Connection) -> list[Target]:
            since = to_text(self._clock.now() - timedelta(seconds=ALIVE_S))
            rows = c.execute(
                "SELECT c.id, c.is_direct, m.platform_id, json_extract(m.metadata, '$.platform_data') AS data "
                "FROM channels c JOIN conversation_messages m ON m.channel_id = c.id AND m.seq = "
                "(SELECT max(n.seq) FROM conversation_messages n WHERE n.channel_id = c.id AND n.role = 'user' "
                "AND n.platform_id IS NOT NULL) WHERE c.adapter = ? AND c.last_activity_at >= ? "
                "ORDER BY c.last_activity_at DESC LIMIT ?",
                (adapter, since, MOST_ALIVE),
            )
            return [
                Target(
                    conversation_id=ConversationId(row["id"]),
                    is_direct=bool(row["is_direct"]),
                    data=json.loads(row["data"] or "{}"),
                    message_id=row["platform_id"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def ensure(self, message: InboundMessage) -> None:
        """Make the conversation of a message known, before anything is decided about it."""
        await self.open(
            message.conversation_id,
            adapter=message.adapter_key,
            platform=message.platform,
            name=message.channel_name or "",
            is_direct=message.is_direct,
            data=dict(message.metadata),
        )

    async def is_known(self, message: InboundMessage) -> bool:
        """Whether a message was taken before."""
        where = (message.conversation_id, message.platform_id)
        query = "SELECT 1 FROM conversation_messages WHERE channel_id = ? AND platform_id = ?"
        return await self._database.read(lambda c: c.execute(query, where).fetchone() is not None)

    async def answer_command(self, message: InboundMessage, answer: str) -> tuple[Accepted, LoggedMessage] | None:
        """Write a command down together with its answer; None when it was dealt with before."""

        def write(c: Connection) -> tuple[Accepted, LoggedMessage] | None:
            now = self._clock.text()
            accepted = accept_message(c, message, True, now)
            if not accepted.is_new:
                return None
            row = append_message(
                c,
                message.conversation_id,
                role="assistant",
                content=answer,
                kind=str(OutboundKind.NOTICE),
                reply_to=accepted.message_id,
                now=now,
            )
            c.execute(
                "UPDATE ledger SET state = 'answered', reply_id = ?, updated_at = ? WHERE message_id = ?",
                (row.id, now, accepted.message_id),
            )
            return accepted, row

        return await self._database.write(write)

    async def change(self, channel_id: ConversationId, platform_id: str, text: str | None) -> ChangedMessage | None:
        """Let a logged message of a person say what its writer made of it; None when there is none such.

        Args:
            text: the new words; None when it was taken back.
        """

        def write(c: Connection) -> ChangedMessage | None:
            row = c.execute(
                "SELECT m.*, l.state, l.attempts FROM conversation_messages m JOIN ledger l ON l.message_id = m.id "
                "WHERE m.channel_id = ? AND m.platform_id = ? AND m.role = 'user' AND m.kind <> ?",
                (channel_id, platform_id, ERASED),
            ).fetchone()
            if row is None or row["content"] == text:
                return None
            was_waiting = row["state"] == LedgerState.ACCEPTED
            if text is None:
                _take_back(c, MessageId(row["id"]), self._clock.text())
            else:
                c.execute("UPDATE conversation_messages SET content = ? WHERE id = ?", (clean_unicode(text), row["id"]))
            after = c.execute(
                "SELECT m.*, l.attempts FROM conversation_messages m JOIN ledger l ON l.message_id = m.id "
                "WHERE m.id = ?",
                (row["id"],),
            ).fetchone()
            journalled = to_journalled(after) if text is not None else None
            return ChangedMessage(row=to_logged(after), was_waiting=was_waiting, journalled=journalled)

        return await self._database.write(write)


def _take_back(c: Connection, message_id: MessageId, now: str) -> None:
    c.execute(
        "UPDATE conversation_messages SET content = ?, kind = ?, metadata = json_remove(metadata, '$.attachments', "
        "'$.reply_to') WHERE id = ?",
        (TAKEN_BACK, ERASED, message_id),
    )
    c.execute(
        "UPDATE ledger SET state = 'skipped', reason = 'taken back by its writer', updated_at = ? "
        "WHERE message_id = ? AND state = 'accepted'",
        (now, message_id),
    )


def _to_line(fields: list[Any]) -> HistoryLine:
    author, text, sent_at, is_bot, is_self = fields
    moment: datetime = from_text(sent_at)
    return HistoryLine(author=author, text=text, sent_at=moment, is_bot=is_bot, is_self=is_self)
