"""The ledger's word on one message, with all that belongs to it.

Floor: conversations
"""

from spacebot.base.ids import ConversationId, MessageId
from spacebot.conversations.records import Fate, LedgerState
from spacebot.conversations.rows import to_logged
from spacebot.conversations.worker_runs import Cost, costs_of
from spacebot.storage.database import Connection, Row


def find_fate(c: Connection, message_id: str, channel_id: ConversationId | None) -> Fate | None:
    """Read what became of a message. Every step goes by an index: the log grows for years.

    Args:
        message_id: our own id, or else the name that its platform or client gave it.
        channel_id: where it must have come in; None for anywhere. Names are unique within a channel only, so
            without it the newest message of that name is meant.
    """
    row = _find(c, "m.id", message_id, channel_id) or _find(c, "m.platform_id", message_id, channel_id)
    if row is None:
        return None
    turn_id = row["in_turn"]
    turn = c.execute("SELECT * FROM turns WHERE id = ?", (turn_id,)).fetchone()
    others = c.execute("SELECT message_id FROM ledger WHERE turn_id = ? AND message_id <> ?", (turn_id, row["id"]))
    replies = c.execute(
        "SELECT * FROM conversation_messages WHERE role = 'assistant' AND turn_id = ? "
        "UNION SELECT * FROM conversation_messages WHERE role = 'assistant' AND reply_to = ? ORDER BY seq",
        (turn_id, row["id"]),
    )
    runs = c.execute(
        "SELECT 'branch' AS kind, id, description, state, started_at, completed_at FROM branch_runs WHERE turn_id = ? "
        "UNION ALL SELECT 'worker', id, task, state, started_at, completed_at FROM worker_runs WHERE turn_id = ? "
        "ORDER BY started_at",
        (turn_id, turn_id),
    ).fetchall()
    costs = costs_of(c, [run["id"] for run in runs])
    (is_pending,) = c.execute(
        "SELECT EXISTS (SELECT 1 FROM branch_runs WHERE turn_id = :turn AND completed_at IS NULL) "
        "OR EXISTS (SELECT 1 FROM worker_runs WHERE turn_id = :turn AND completed_at IS NULL) "
        "OR EXISTS (SELECT 1 FROM pending_results p WHERE p.relayed_at IS NULL AND p.reply_to = :message)",
        {"turn": turn_id, "message": row["id"]},
    ).fetchone()
    return Fate(
        message=to_logged(row),
        state=LedgerState(row["state"]),
        reason=row["reason"],
        attempts=row["attempts"],
        turn_id=turn_id,
        turn_state=turn["state"] if turn else None,
        turn_detail=turn["detail"] if turn else None,
        coalesced_with=tuple(MessageId(other[0]) for other in others),
        replies=tuple(to_logged(reply) for reply in replies),
        is_pending=bool(is_pending),
        runs=tuple({**dict(run), **_cost(costs.get(run["id"], Cost()))} for run in runs),
    )


def _cost(cost: Cost) -> dict[str, object]:
    usage = cost.usage
    tokens = usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    return {"model": cost.models[0] if cost.models else None, "model_calls": cost.calls, "tokens": tokens}


def _find(c: Connection, column: str, value: str, channel_id: ConversationId | None) -> Row | None:
    place, values = ("", (value,)) if channel_id is None else ("AND m.channel_id = ? ", (value, channel_id))
    row: Row | None = c.execute(
        "SELECT m.*, l.state, l.turn_id AS in_turn, l.reason, l.attempts FROM conversation_messages m "
        f"JOIN ledger l ON l.message_id = m.id WHERE {column} = ? {place}ORDER BY m.created_at DESC LIMIT 1",
        values,
    ).fetchone()
    return row
