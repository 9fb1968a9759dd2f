"""What the last life of the program left open, closed or handed out again, in one transaction.

Floor:  conversations
Source: process spec P12
"""

from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.records import BranchRun, Recovery, WorkerRun
from spacebot.conversations.rows import append_message, insert_result, to_branch_run, to_journalled, to_worker_run
from spacebot.messaging.messages import OutboundKind
from spacebot.storage.database import Connection

MAX_ATTEMPTS = (
    20  # turns that may die with a message before it is given up as the likely cause; a crash loop ends there
)
GIVEN_UP = f"Sorry, I could not answer this: the program stopped {MAX_ATTEMPTS} times while I tried."
RESTART_REASON = "interrupted by a restart"


def recover_open_work(c: Connection, now: str) -> Recovery:
    c.execute("UPDATE turns SET state = 'interrupted', completed_at = ? WHERE state = 'running'", (now,))
    _drop_children_of_dead_turns(c, now)
    given_up = c.execute(
        "UPDATE ledger SET state = 'failed', reason = ?, updated_at = ? WHERE state = 'in_turn' AND attempts >= ? "
        "RETURNING message_id, channel_id",
        (f"given up: {MAX_ATTEMPTS} turns with it died", now, MAX_ATTEMPTS),
    ).fetchall()
    for row in given_up:
        append_message(
            c, row["channel_id"], role="assistant", content=GIVEN_UP, kind=str(OutboundKind.NOTICE),
            reply_to=row["message_id"], now=now,
        )  # fmt: skip
    c.execute("UPDATE ledger SET state = 'accepted', updated_at = ? WHERE state = 'in_turn'", (now,))
    messages = tuple(
        to_journalled(row)
        for row in c.execute(
            "SELECT m.*, l.attempts FROM ledger l JOIN conversation_messages m ON m.id = l.message_id "
            "WHERE l.state = 'accepted' ORDER BY m.channel_id, m.seq"
        )
    )
    branches: list[BranchRun] = []
    for row in c.execute("SELECT * FROM branch_runs WHERE completed_at IS NULL ORDER BY started_at").fetchall():
        branch = to_branch_run(row)
        if row["attempts"] < MAX_ATTEMPTS:
            branches.append(branch)
            continue
        outcome = Outcome(NodeState.FAILED, f"given up: the program stopped {MAX_ATTEMPTS} times while it ran")
        c.execute(
            "UPDATE branch_runs SET state = 'failed', conclusion = ?, completed_at = ? WHERE id = ?",
            (outcome.text, now, branch.id),
        )
        insert_result(c, "branch", branch.id, branch.channel_id, branch.description, outcome, branch.reply_to, now)
    resumed: list[WorkerRun] = []
    for row in c.execute("SELECT * FROM worker_runs WHERE completed_at IS NULL ORDER BY started_at").fetchall():
        run = to_worker_run(row)
        if run.state in (NodeState.INTERRUPTED, NodeState.WAITING):
            resumed.append(run)
            continue
        last = f"; its last status was: {row['status']}" if row["status"] else ""
        outcome = Outcome(NodeState.FAILED, f"{RESTART_REASON} before it was done{last}")
        c.execute(
            "UPDATE worker_runs SET state = 'failed', result = ?, completed_at = ? WHERE id = ?",
            (outcome.text, now, run.id),
        )
        insert_result(c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, now)
    waiting = tuple(
        ConversationId(row[0])
        for row in c.execute("SELECT DISTINCT channel_id FROM pending_results WHERE relayed_at IS NULL")
    )
    return Recovery(messages=messages, branches=tuple(branches), workers=tuple(resumed), channels_with_results=waiting)


def _drop_children_of_dead_turns(c: Connection, now: str) -> None:
    """End what a turn started that died before it said anything: the turn is taken again and starts it anew."""
    dead = (
        "completed_at IS NULL AND turn_id IN (SELECT t.id FROM turns t WHERE t.state = 'interrupted' AND NOT EXISTS "
        "(SELECT 1 FROM conversation_messages m WHERE m.channel_id = t.channel_id AND m.turn_id = t.id "
        "AND m.kind = 'text'))"
    )
    reason = "its turn was interrupted and is taken again"
    c.execute(
        f"UPDATE branch_runs SET state = 'cancelled', conclusion = ?, completed_at = ? WHERE {dead}", (reason, now)
    )
    c.execute(f"UPDATE worker_runs SET state = 'cancelled', result = ?, completed_at = ? WHERE {dead}", (reason, now))
