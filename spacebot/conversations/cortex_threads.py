"""The owner's talks with the cortex, in threads. No conversation of people ever sees them.

Floor:  conversations
Source: memory spec 4.7, process spec 11
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spacebot.base.clock import Clock
from spacebot.base.ids import new_uuid
from spacebot.base.text import preview
from spacebot.storage.database import Connection, Database, Row

TITLE_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadMessage:
    """One message; `tool_calls` of an answer are JSON by nature: tool, arguments, result, is_error."""

    id: str
    thread_id: str
    role: str  # user, assistant
    content: str
    tool_calls: Sequence[Mapping[str, Any]]
    channel_context: str | None  # the conversation that was looked at
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One thread; its title is how it began."""

    id: str
    title: str
    messages: int
    last_at: str


class CortexThreads:
    """Reads and writes of the threads; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def add(
        self,
        thread_id: str,
        role: str,
        content: str,
        *,
        tool_calls: Sequence[Mapping[str, Any]] = (),
        channel_context: str | None = None,
    ) -> ThreadMessage:
        """Append a message."""
        message = ThreadMessage(
            id=new_uuid(), thread_id=thread_id, role=role, content=content, tool_calls=tuple(tool_calls),
            channel_context=channel_context, created_at=self._clock.text(),
        )  # fmt: skip
        calls = json.dumps(list(tool_calls), ensure_ascii=False) if tool_calls else None
        values = (message.id, thread_id, role, content, calls, channel_context, message.created_at)
        await self._database.write(
            lambda c: c.execute(
                "INSERT INTO cortex_chat_messages "
                "(id, thread_id, role, content, tool_calls, channel_context, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        )
        return message

    async def messages(self, thread_id: str, limit: int) -> list[ThreadMessage]:
        """The newest messages of a thread, oldest first."""

        def read(c: Connection) -> list[ThreadMessage]:
            rows = c.execute(
                "SELECT * FROM cortex_chat_messages WHERE thread_id = ? ORDER BY seq DESC LIMIT ?", (thread_id, limit)
            ).fetchall()
            return [_to_message(row) for row in rows[::-1]]

        return await self._database.read(read)

    async def threads(self, limit: int) -> list[Thread]:
        """The threads, the latest first."""

        def read(c: Connection) -> list[Thread]:
            rows = c.execute(
                "SELECT t.thread_id, t.messages, t.last_at, m.content FROM (SELECT thread_id, count(*) AS messages, "
                "min(seq) AS first_seq, max(seq) AS last_seq, max(created_at) AS last_at FROM cortex_chat_messages "
                "GROUP BY thread_id) t JOIN cortex_chat_messages m ON m.seq = t.first_seq "
                "ORDER BY t.last_seq DESC LIMIT ?",
                (limit,),
            )
            return [
                Thread(
                    id=row["thread_id"],
                    title=preview(row["content"], TITLE_CHARACTERS),
                    messages=row["messages"],
                    last_at=row["last_at"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def latest(self) -> str | None:
        """The thread that was written to last."""

        def read(c: Connection) -> str | None:
            row = c.execute("SELECT thread_id FROM cortex_chat_messages ORDER BY seq DESC LIMIT 1").fetchone()
            return None if row is None else str(row["thread_id"])

        return await self._database.read(read)

    async def delete(self, thread_id: str) -> bool:
        """Remove a thread for good; False when there is none."""
        return await self._database.write(
            lambda c: c.execute("DELETE FROM cortex_chat_messages WHERE thread_id = ?", (thread_id,)).rowcount > 0
        )


def _to_message(row: Row) -> ThreadMessage:
    return ThreadMessage(
        id=row["id"],
        thread_id=row["thread_id"],
        role=row["role"],
        content=row["content"],
        tool_calls=json.loads(row["tool_calls"]) if row["tool_calls"] else (),
        channel_context=row["channel_context"],
        created_at=row["created_at"],
    )
