"""Conversations that a schedule makes: what came of them, their end, and what is said elsewhere because of them.

All of these are steps of a caller's transaction.

Floor:  conversations
Source: process spec 13; ours
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from spacebot.base.ids import ConversationId
from spacebot.conversations.records import LoggedMessage
from spacebot.conversations.rows import append_message
from spacebot.storage.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a conversation came to.

    Args:
        state: of its last turn; None when there was none.
        words: what its last turn that said anything said; empty for silence.
    """

    state: str | None
    detail: str
    words: str


def ending_of(c: Connection, channel_id: str) -> Ending:
    """What a conversation came to."""
    turn = c.execute(
        "SELECT state, detail FROM turns WHERE channel_id = ? ORDER BY started_at DESC, rowid DESC LIMIT 1",
        (channel_id,),
    ).fetchone()
    rows = c.execute(
        "SELECT content FROM conversation_messages WHERE channel_id = :id AND kind = 'text' AND role = 'assistant' "
        "AND turn_id = (SELECT turn_id FROM conversation_messages WHERE channel_id = :id AND kind = 'text' "
        "AND role = 'assistant' ORDER BY seq DESC LIMIT 1) ORDER BY seq",
        {"id": channel_id},
    )
    words = "\n\n".join(row["content"] for row in rows).strip()
    return Ending(state=turn and turn["state"], detail=(turn and turn["detail"]) or "", words=words)


def say_in(c: Connection, channel_id: str, text: str, now: str, kind: str = "text") -> LoggedMessage | None:
    """Record words in a conversation, and in the outbox where a platform delivers; None when there is no such one."""
    if c.execute("SELECT 1 FROM channels WHERE id = ?", (channel_id,)).fetchone() is None:
        return None
    return append_message(c, ConversationId(channel_id), role="assistant", content=text, kind=kind, now=now)


def close_conversations(c: Connection, channel_ids: Sequence[str], now: str) -> None:
    """End conversations for good: nothing in them is taken up again, and no list names them."""
    values = {"ids": json.dumps(list(channel_ids)), "now": now}
    of_them = "channel_id IN (SELECT value FROM json_each(:ids))"
    for statement in (
        f"UPDATE ledger SET state = 'failed', reason = 'the run is over', updated_at = :now WHERE {of_them} "
        "AND state IN ('accepted', 'in_turn')",
        f"UPDATE turns SET state = 'failed', completed_at = :now WHERE {of_them} AND state = 'running'",
        f"UPDATE branch_runs SET state = 'cancelled', completed_at = :now WHERE {of_them} AND completed_at IS NULL",
        f"UPDATE worker_runs SET state = 'cancelled', completed_at = :now WHERE {of_them} AND completed_at IS NULL",
        f"UPDATE pending_results SET relayed_at = :now WHERE {of_them} AND relayed_at IS NULL",
        "UPDATE channels SET is_active = 0 WHERE id IN (SELECT value FROM json_each(:ids))",
    ):
        c.execute(statement, values)


def drop_conversations(c: Connection, channel_ids: Sequence[str]) -> None:
    """Delete conversations with all that was said in them."""
    ids = json.dumps(list(channel_ids))
    for table, column in (("conversation_messages", "channel_id"), ("turns", "channel_id"), ("channels", "id")):
        c.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))", (ids,))


def is_known(c: Connection, channel_id: str) -> bool:
    """Whether there is such a conversation."""
    return c.execute("SELECT 1 FROM channels WHERE id = ?", (channel_id,)).fetchone() is not None
