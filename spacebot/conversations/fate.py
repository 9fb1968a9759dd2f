"""The ledger's word on one message, with all that belongs to it.

Floor: conversations
"""

from spacebot.base.ids import MessageId
from spacebot.conversations.records import Fate, LedgerState
from spacebot.conversations.rows import to_logged
from spacebot.storage.database import Connection


def find_fate(c: Connection, message_id: str) -> Fate | None:
    row = c.execute(
        "SELECT m.*, l.state, l.turn_id AS in_turn, l.reason, l.attempts FROM ledger l "
        "JOIN conversation_messages m ON m.id = l.message_id WHERE m.id = ? OR m.platform_id = ?",
        (message_id, message_id),
    ).fetchone()
    if row is None:
        return None
    turn_id = row["in_turn"]
    turn = c.execute("SELECT * FROM turns WHERE id = ?", (turn_id,)).fetchone()
    others = c.execute("SELECT message_id FROM ledger WHERE turn_id = ? AND message_id <> ?", (turn_id, row["id"]))
    replies = c.execute(
        "SELECT * FROM conversation_messages WHERE role = 'assistant' AND (turn_id = ? OR reply_to = ?) ORDER BY seq",
        (turn_id, row["id"]),
    )
    runs = c.execute(
        "SELECT 'branch' AS kind, id, description, state, started_at, completed_at FROM branch_runs WHERE turn_id = ? "
        "UNION ALL SELECT 'worker', id, task, state, started_at, completed_at FROM worker_runs WHERE turn_id = ? "
        "ORDER BY started_at",
        (turn_id, turn_id),
    )
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
        runs=tuple(dict(run) for run in runs),
    )
