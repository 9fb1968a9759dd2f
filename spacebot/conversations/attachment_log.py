"""Rows on the files that came with messages: what was kept of them, so that nothing is fetched twice.

Floor:  conversations
Source: messaging spec 13
"""

import json
from collections.abc import Collection
from dataclasses import dataclass

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, MessageId
from spacebot.base.text import clean_unicode
from spacebot.storage.database import Connection, Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """One file of a message.

    Args:
        position: its place among the message's files, from 0.
        filename: as its sender called it.
        saved_name: path in the folder of attachments; None when it was not kept.
        media_type: what it really is.
        note: for a recording its words; for a file that is not kept the reason.
    """

    message_id: MessageId
    position: int
    filename: str
    saved_name: str | None
    media_type: str
    size_bytes: int | None
    note: str | None = None


class AttachmentLog:
    """Reads and writes of the rows; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of(self, message_ids: Collection[MessageId]) -> list[KeptFile]:
        """What is known of the files of some messages."""
        wanted = json.dumps(list(message_ids))

        def read(c: Connection) -> list[KeptFile]:
            rows = c.execute(
                "SELECT message_id, position, filename, saved_name, media_type, size_bytes, note FROM attachments "
                "WHERE message_id IN (SELECT value FROM json_each(?)) ORDER BY message_id, position",
                (wanted,),
            )
            return [_to_kept(row) for row in rows]

        return await self._database.read(read)

    async def put(self, kept: KeptFile) -> None:
        """Write down what became of a file; a row of an earlier attempt is replaced.

        A message that was erased meanwhile leaves nothing behind.
        """
        values = (
            kept.position, clean_unicode(kept.filename), kept.saved_name, clean_unicode(kept.media_type),
            kept.size_bytes, None if kept.note is None else clean_unicode(kept.note), self._clock.text(),
            kept.message_id,
        )  # fmt: skip
        await self._database.write(
            lambda c: c.execute(
                "INSERT OR REPLACE INTO attachments (message_id, position, filename, saved_name, media_type, "
                "size_bytes, note, created_at) SELECT m.id, ?, ?, ?, ?, ?, ?, ? FROM conversation_messages m "
                "WHERE m.id = ?",
                values,
            )
        )

    async def drop(self, message_ids: Collection[MessageId]) -> list[str]:
        """Forget the files of some messages; returns the names under which they are kept."""
        wanted = json.dumps(list(message_ids))

        def write(c: Connection) -> list[str]:
            rows = c.execute(
                "DELETE FROM attachments WHERE message_id IN (SELECT value FROM json_each(?)) RETURNING saved_name",
                (wanted,),
            ).fetchall()
            return [row["saved_name"] for row in rows if row["saved_name"] is not None]

        return await self._database.write(write)

    async def is_private(self, channel_id: ConversationId) -> bool:
        """Whether a conversation is, or ever was, a direct chat."""

        def read(c: Connection) -> bool:
            found = c.execute("SELECT 1 FROM channels WHERE id = ? AND was_direct", (channel_id,))
            return found.fetchone() is not None

        return await self._database.read(read)

    async def exposed(self, private: str) -> list[tuple[str, str]]:
        """Files of direct chats that lie elsewhere than in a private folder: their names and conversations."""

        def read(c: Connection) -> list[tuple[str, str]]:
            found = c.execute(
                "SELECT DISTINCT a.saved_name, m.channel_id FROM attachments a "
                "JOIN conversation_messages m ON m.id = a.message_id JOIN channels c ON c.id = m.channel_id "
                "WHERE a.saved_name IS NOT NULL AND c.was_direct AND instr(a.saved_name, ?) <> 1",
                (f"{private}/",),
            )
            return [(row["saved_name"], row["channel_id"]) for row in found]

        return await self._database.read(read)

    async def rename(self, saved_name: str, new_name: str) -> None:
        """A kept file lies somewhere else now."""
        await self._database.write(
            lambda c: c.execute("UPDATE attachments SET saved_name = ? WHERE saved_name = ?", (new_name, saved_name))
        )

    async def is_open_to(self, channel_id: ConversationId, saved_name: str) -> bool:
        """Whether a file that is kept under a name did not come in a direct chat other than this conversation."""

        def read(c: Connection) -> bool:
            found = c.execute(
                "SELECT 1 FROM attachments a JOIN conversation_messages m ON m.id = a.message_id "
                "JOIN channels c ON c.id = m.channel_id "
                "WHERE a.saved_name = ? AND c.was_direct AND c.id <> ?",
                (saved_name, channel_id),
            )
            return found.fetchone() is None

        return await self._database.read(read)

    async def forget_names(self, saved_names: Collection[str]) -> None:
        """Note that files are not kept any more."""
        wanted = json.dumps(list(saved_names))
        await self._database.write(
            lambda c: c.execute(
                "UPDATE attachments SET saved_name = NULL, note = 'was removed to make room for newer ones' "
                "WHERE saved_name IN (SELECT value FROM json_each(?))",
                (wanted,),
            )
        )


def _to_kept(row: Row) -> KeptFile:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - iterating a row gives its values
    return KeptFile(**{**fields, "message_id": MessageId(fields["message_id"])})
