"""What was done to memory and by the cortex, and why: an append-only log that people can read.

Flow:    note (inside the transaction of the deed) or CurationLog.add -> cortex_events -> CurationLog.page
Floor:   memory; may import base, storage
Source:  memory spec 4.7, process spec 10.4
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spacebot.base.clock import Clock
from spacebot.base.ids import new_uuid
from spacebot.memory.types import Viewer
from spacebot.storage.database import Connection, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationEvent:
    """One deed; `details` is JSON by nature."""

    id: str
    event_type: str
    summary: str
    details: Mapping[str, Any]
    created_at: str


class CurationLog:
    """Reads and writes of the log."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def add(self, event_type: str, summary: str, **details: Any) -> None:
        """Note a deed that has no transaction of its own."""
        now = self._clock.text()
        await self._database.write(lambda connection: note(connection, now, event_type, summary, **details))

    async def page(
        self, *, limit: int, offset: int = 0, event_type: str | None = None
    ) -> tuple[list[CurationEvent], int]:
        """Newest first, and how many there are in all; `event_type` may name several, separated by commas."""
        types = json.dumps(event_type.split(",")) if event_type is not None else None
        parameters = {"types": types, "limit": limit, "offset": offset}

        def read(connection: Connection) -> tuple[list[CurationEvent], int]:
            where = "WHERE :types IS NULL OR event_type IN (SELECT value FROM json_each(:types))"
            rows = connection.execute(
                f"SELECT * FROM cortex_events {where} ORDER BY seq DESC LIMIT :limit OFFSET :offset", parameters
            ).fetchall()
            (total,) = connection.execute(f"SELECT count(*) FROM cortex_events {where}", parameters).fetchone()
            events = [
                CurationEvent(
                    id=row["id"],
                    event_type=row["event_type"],
                    summary=row["summary"],
                    details=json.loads(row["details"]) if row["details"] else {},
                    created_at=row["created_at"],
                )
                for row in rows
            ]
            return events, int(total)

        return await self._database.read(read)


def note(connection: Connection, now: str, event_type: str, summary: str, **details: Any) -> None:
    """Note a deed inside its own transaction; `now` is the clock's text."""
    connection.execute(
        "INSERT INTO cortex_events (id, event_type, summary, details, created_at) VALUES (?, ?, ?, ?, ?)",
        (new_uuid(), event_type, summary, json.dumps(details, ensure_ascii=False) if details else None, now),
    )


def person_of(channel_id: str | None, user_id: str | None) -> str | None:
    """Who said something, as platform:user, so that the lines about a person can be found when he is forgotten."""
    return Viewer(channel_id=channel_id, user_id=user_id, is_direct=True).owner
