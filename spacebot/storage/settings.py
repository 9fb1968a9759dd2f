"""Small values that outlive a restart: cursors, digests, dates. Text by key, in the agent's database.

Floor:  storage; may import base
Source: memory spec 15
"""

from spacebot.storage.database import Connection, Database


class Settings:
    """Key-value settings of one agent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, key: str, default: str = "") -> str:
        """The value of a key, or the default."""
        return await self._database.read(lambda connection: read_setting(connection, key, default))

    async def set(self, **values: str) -> None:
        """Write several values in one transaction."""
        await self._database.write(lambda connection: write_settings(connection, **values))


def read_setting(connection: Connection, key: str, default: str = "") -> str:
    """The value of a key inside a transaction of the caller's."""
    row = connection.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
    return default if row is None else str(row[0])


def write_settings(connection: Connection, **values: str) -> None:
    """Write values inside a transaction of the caller's."""
    connection.executemany(
        "INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        list(values.items()),
    )
