"""A person's traces in the log: where they lie, and how they are taken out. All inside a transaction.

What was said alone with the agent is deleted; in a room the row stays as `(erased)`, so that numbers stay without gaps
and the ledger keeps its word on every message.

Floor:  conversations; may import base, storage
Source: ours; the rows are those of `log.py` and `memoranda.py`
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spacebot.base.errors import RefusedError
from spacebot.conversations.captures import erase_captures
from spacebot.conversations.rows import unpack
from spacebot.storage.database import Connection

WORDS = "(erased)"  # what stands in place of a text
QUOTE, NAME = 8, 3  # characters of a text, or a name, that is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody on a platform."""

    platform: str
    user: str

    @classmethod
    def parse(cls, text: str) -> "Person":
        """Read `platform:user`. Errors: RefusedError."""
        platform, _, user = text.partition(":")
        if not platform.strip() or not user.strip():
            raise RefusedError(f"{text[:80]!r} names no person; write PLATFORM:USER, such as webchat:terminal:ann")
        return cls(platform=platform, user=user)

    @property
    def key(self) -> str:
        """The form in which memories name a person."""
        return f"{self.platform}:{self.user}"

    @property
    def mark(self) -> str:
        """What the audit line has in place of the person."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:32]


@dataclass(slots=True, kw_only=True)
class Scope:
    """Where a person's traces lie in the log."""

    own: list[str] = field(default_factory=list)  # conversations alone with the agent
    rooms: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # said by the person in rooms
    names: list[str] = field(default_factory=list)


def scope_of(c: Connection, who: Person) -> Scope:
    values = {"platform": who.platform, "user": who.user}
    scope = Scope()
    for row in c.execute(
        "SELECT c.id, c.was_direct AND NOT EXISTS (SELECT 1 FROM conversation_messages o WHERE o.channel_id = c.id "
        "AND o.role = 'user' AND o.sender_id <> :user) AS is_own FROM channels c WHERE c.platform = :platform "
        "AND c.id IN (SELECT channel_id FROM conversation_messages WHERE sender_id = :user) ORDER BY c.id",
        values,
    ):
        (scope.own if row["is_own"] else scope.rooms).append(row["id"])
    scope.own += [  # what schedules did that were made for this person
        row["channel_id"]
        for row in c.execute(
            "SELECT r.channel_id FROM cron_runs r JOIN cron_jobs j ON j.id = r.job_id WHERE r.channel_id NOT NULL "
            "AND (j.created_by = :key OR j.origin IN (SELECT value FROM json_each(:own)))",
            {"key": who.key, "own": json.dumps(scope.own)},
        )
    ]
    rows = c.execute(
        "SELECT id, sender_name FROM conversation_messages WHERE sender_id = :user "
        "AND channel_id IN (SELECT value FROM json_each(:rooms))",
        {**values, "rooms": json.dumps(scope.rooms)},
    ).fetchall()
    scope.messages = [row["id"] for row in rows]
    scope.names = sorted({row["sender_name"] for row in rows if row["sender_name"]})
    return scope


def erase_log(c: Connection, who: Person, now: str) -> dict[str, int]:
    """Erase what was said, what was answered to it, and what was set to work for it."""
    scope = scope_of(c, who)
    erase_captures(c)  # what models saw may hold any of it, in any conversation
    counts = _erase_conversations(c, scope.own)
    run_for(
        c,
        "DELETE FROM cron_jobs WHERE created_by = :key OR origin IN {own}",
        {"key": who.key, "own": json.dumps(scope.own)},
    )
    rooms = {"rooms": json.dumps(scope.rooms), "gone": json.dumps(scope.messages), "erased": WORDS, "now": now}
    turns = ids_for(c, "SELECT DISTINCT turn_id FROM ledger WHERE turn_id IS NOT NULL AND message_id IN {gone}", rooms)
    rooms["turns"] = json.dumps(turns)
    of_them = "channel_id IN {rooms} AND (turn_id IN {turns} OR reply_to IN {gone})"
    branches = ids_for(c, f"SELECT id FROM branch_runs WHERE {of_them}", rooms)
    rooms["runs"] = json.dumps(branches)
    workers = ids_for(c, f"SELECT id FROM worker_runs WHERE {of_them} OR origin IN {{runs}}", rooms)
    rooms["runs"] = json.dumps(branches + workers)
    told = ids_for(
        c,
        "SELECT DISTINCT turn_id FROM pending_results WHERE turn_id IS NOT NULL AND process_id IN {runs}",
        rooms,
    )
    rooms["turns"] = json.dumps(sorted({*turns, *told}))
    _drop_transcripts_with(c, rooms, scope)
    counts["messages"] += len(scope.messages)
    counts["runs"] += len(branches) + len(workers)
    counts["replies"] += run_for(
        c,
        "UPDATE conversation_messages SET content = :erased, metadata = NULL, kind = 'erased' "
        "WHERE role = 'assistant' AND kind <> 'erased' AND channel_id IN {rooms} "
        "AND (turn_id IN {turns} OR reply_to IN {gone})",
        rooms,
    )
    for statement in (
        "UPDATE conversation_messages SET content = :erased, sender_id = NULL, sender_name = :erased, metadata = NULL, "
        "platform_id = NULL, kind = 'erased' WHERE id IN {gone}",
        "UPDATE ledger SET reason = NULL, "
        "state = iif(state IN ('accepted', 'in_turn'), 'skipped', state) WHERE message_id IN {gone}",
        "UPDATE turns SET detail = NULL WHERE id IN {turns}",
        "DELETE FROM pending_results WHERE process_id IN {runs} OR reply_to IN {gone}",
        "UPDATE branch_runs SET description = :erased, conclusion = NULL, completed_at = coalesce(completed_at, :now), "
        "state = iif(completed_at IS NULL, 'cancelled', state) WHERE id IN {runs}",
        "UPDATE worker_runs SET task = :erased, result = NULL, transcript = NULL, status = '', "
        "completed_at = coalesce(completed_at, :now), state = iif(completed_at IS NULL, 'cancelled', state) "
        "WHERE id IN {runs}",
        # A worker may have begun with a copy of the conversation; one that has ended needs it no more.
        "UPDATE worker_runs SET transcript = NULL WHERE channel_id IN {rooms} AND completed_at IS NOT NULL",
        "UPDATE persistence_runs SET reason = NULL WHERE channel_id IN {rooms}",
        "DELETE FROM attachments WHERE message_id IN {gone}",
        "DELETE FROM drafts WHERE channel_id IN {rooms} AND reply_to IN {gone}",
        "DELETE FROM outbox WHERE channel_id IN {rooms} "
        "AND message_id IN (SELECT id FROM conversation_messages WHERE channel_id IN {rooms} AND kind = 'erased')",
        # What was said before the agent came names its writers by name only, so all of it goes.
        "UPDATE channels SET backfill = '[]' WHERE id IN {rooms} AND backfill IS NOT NULL",
        "UPDATE channels SET platform_meta = (SELECT json_extract(m.metadata, '$.platform_data') "
        "FROM conversation_messages m WHERE m.channel_id = channels.id AND m.role = 'user' AND m.metadata IS NOT NULL "
        "ORDER BY m.seq DESC LIMIT 1) WHERE id IN {rooms} AND adapter IS NOT NULL",
    ):
        run_for(c, statement, rooms)
    counts["summaries"] += run_for(
        c,
        "DELETE FROM summaries WHERE channel_id IN {rooms} AND EXISTS (SELECT 1 FROM conversation_messages m "
        "WHERE m.channel_id = summaries.channel_id AND m.kind = 'erased' "
        "AND m.seq BETWEEN summaries.first_seq AND summaries.last_seq)",
        rooms,
    )
    run_for(  # what others answered to carries the words that they answered
        c,
        "UPDATE conversation_messages SET metadata = json_remove(metadata, '$.reply_to') WHERE channel_id IN {rooms} "
        "AND json_extract(metadata, '$.reply_to[0]') IN {names}",
        {**rooms, "names": json.dumps(scope.names)},
    )
    return counts


def _drop_transcripts_with(c: Connection, rooms: dict[str, Any], scope: Scope) -> None:
    """Empty the transcripts of workers that live on in rooms, if they hold what the person said there, or a name.

    A worker may have begun with a copy of the conversation. Without its transcript it goes on from its task alone.
    """
    said = [
        row["content"]
        for row in c.execute(_filled("SELECT content FROM conversation_messages WHERE id IN {gone}"), rooms)
        if len(row["content"]) >= QUOTE
    ]
    needles = [json.dumps(words, ensure_ascii=False)[1:-1] for words in (*said, *filter(_is_telling, scope.names))]
    live = "SELECT id, transcript FROM worker_runs WHERE channel_id IN {rooms} AND completed_at IS NULL"
    held = [
        row["id"]
        for row in c.execute(_filled(live), rooms).fetchall()
        if any(needle in (unpack(row["transcript"]) or "") for needle in needles)
    ]
    c.executemany("UPDATE worker_runs SET transcript = NULL WHERE id = ?", [(worker_id,) for worker_id in held])


def _is_telling(name: str) -> bool:
    return len(name) >= NAME


def _erase_conversations(c: Connection, own: Sequence[str]) -> dict[str, int]:
    """Empty conversations that were one person's alone; the row stays, because it counts the messages."""
    values = {"own": json.dumps(list(own))}
    counts = {}
    for name, where in (("messages", "role = 'user'"), ("replies", "role <> 'user'")):
        counts[name] = run_for(c, f"DELETE FROM conversation_messages WHERE channel_id IN {{own}} AND {where}", values)
    for name, tables in (
        ("runs", ("branch_runs", "worker_runs")),
        ("summaries", ("summaries",)),
        ("", ("pending_results", "turns", "persistence_runs", "drafts")),
    ):
        counts[name] = sum(run_for(c, f"DELETE FROM {table} WHERE channel_id IN {{own}}", values) for table in tables)
    run_for(
        c, "UPDATE channels SET display_name = NULL, platform_meta = NULL, backfill = NULL WHERE id IN {own}", values
    )
    run_for(c, "UPDATE usage SET channel_id = NULL WHERE channel_id IN {own}", values)
    return counts


def ids_for(c: Connection, statement: str, values: dict[str, Any]) -> list[str]:
    return [row[0] for row in c.execute(_filled(statement), values)]


def run_for(c: Connection, statement: str, values: dict[str, Any]) -> int:
    return c.execute(_filled(statement), values).rowcount


def _filled(statement: str) -> str:
    """`{name}` stands for the list of ids that the parameter of that name holds as JSON."""
    return re.sub(r"\{(\w+)\}", r"(SELECT value FROM json_each(:\1))", statement)
