"""The agent's public card: a name, a status line, a few sentences; written by the cortex's model.

Flow:    new bulletin -> digest of identity and bulletin -> (the cortex asks a model) -> parse -> Profiles.put
Floor:   agent
Source:  memory spec 11.4, process spec 10.2
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from spacebot.base.clock import Clock
from spacebot.base.errors import ExternalError
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, preview
from spacebot.memory.curation_log import note
from spacebot.storage.database import Connection, Database
from spacebot.storage.settings import read_setting, write_settings

DIGEST_KEY = "cortex.profile_digest"
NAME_CHARACTERS, STATUS_CHARACTERS, BIO_CHARACTERS = 60, 160, 800
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an agent shows of itself; a field that was never written is None."""

    agent_id: str
    display_name: str | None
    status: str | None
    bio: str | None
    avatar_seed: str
    generated_at: str
    updated_at: str


class Profiles:
    """Reads and writes of the card of one agent."""

    def __init__(self, database: Database, agent_id: str, clock: Clock) -> None:
        self._database = database
        self._agent_id = agent_id
        self._clock = clock

    async def get(self) -> Profile | None:
        """The card, once there is one."""

        def read(connection: Connection) -> Profile | None:
            row = connection.execute("SELECT * FROM agent_profile WHERE agent_id = ?", (self._agent_id,)).fetchone()
            return None if row is None else Profile(**dict(row))

        return await self._database.read(read)

    async def digest(self) -> str:
        """The digest of what the last attempt was made of, successful or not."""
        return await self._database.read(lambda connection: read_setting(connection, DIGEST_KEY))

    async def put(self, fields: dict[str, str | None], digest: str, **details: Any) -> None:
        """Write the card, its digest and the log's line, in one transaction; what a field lacks stays as it was."""
        now = self._clock.text()

        def write(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO agent_profile "
                "(agent_id, display_name, status, bio, avatar_seed, generated_at, updated_at) "
                "VALUES (:agent, :display_name, :status, :bio, :agent, :now, :now) "
                "ON CONFLICT (agent_id) DO UPDATE SET display_name = coalesce(excluded.display_name, display_name), "
                "status = coalesce(excluded.status, status), bio = coalesce(excluded.bio, bio), "
                "generated_at = excluded.generated_at, updated_at = excluded.updated_at",
                {**fields, "agent": self._agent_id, "now": now},
            )
            write_settings(connection, **{DIGEST_KEY: digest})
            note(connection, now, "profile_generated", "the agent's card was written", **details)

        await self._database.write(write)

    async def note_unusable(self, digest: str) -> None:
        """Remember that these inputs gave nothing, so that they are not tried again."""
        await self._database.write(lambda connection: write_settings(connection, **{DIGEST_KEY: digest}))


def digest_of(prompt: str) -> str:
    """The digest of what a card is made of."""
    return hashlib.sha256(prompt.encode(errors="replace")).hexdigest()


def parse_profile(text: str) -> dict[str, str | None]:
    """The fields of a model's answer, scrubbed and cut; text around the object is ignored.

    Errors: ExternalError when there is no object with at least one of the fields.
    """
    found = _OBJECT.search(text)
    try:
        answer = json.loads(found.group()) if found else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ExternalError("the model gave no JSON object for the agent's card; another cortex model may do better")
    limits = {"display_name": NAME_CHARACTERS, "status": STATUS_CHARACTERS, "bio": BIO_CHARACTERS}
    fields = {name: _field(answer.get(name), limit) for name, limit in limits.items()}
    if not any(fields.values()):
        raise ExternalError("the model's card for the agent is empty; another cortex model may do better")
    return fields


def _field(value: object, limit: int) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    return preview(scrub(clean_unicode(" ".join(value.split()))), limit)
