"""The durable log of one agent: messages, their ledger, turns, runs of branches and workers, results.

Each method is one transaction, so every promise about "exactly once" is a statement about one of
them: a message is accepted when `accept` returned, answered when `record_reply` returned, a result
is safe when `finish_branch` or `finish_worker` returned.

States of an inbound message in the ledger:

    accepted -> in_turn -> answered | skipped | failed        (observed: kept as context only)
        ^          |
        +----------+  the program died in the turn; `recover` hands it out again

Floor:  between storage and agent
Source: memory spec 4.3 to 4.5, process spec 14; the ledger is ours
"""

from collections.abc import Sequence

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.fate import find_fate
from spacebot.conversations.records import (
    Accepted,
    BranchRun,
    ChannelRecord,
    Fate,
    Journalled,
    LedgerState,
    LoggedMessage,
    Participant,
    PendingResult,
    Recovery,
    Standing,
    TurnState,
    WorkerRun,
)
from spacebot.conversations.recovery import recover_open_work
from spacebot.conversations.rows import (
    accept_message,
    append_message,
    insert_result,
    mark_relayed,
    pack,
    to_branch_run,
    to_journalled,
    to_logged,
    to_worker_run,
)
from spacebot.conversations.timeline import Place, Timeline, read_channels, read_timeline, to_channel
from spacebot.messaging.codec import from_json
from spacebot.messaging.messages import InboundMessage, OutboundFile, OutboundKind
from spacebot.storage.database import Connection, Database


class Conversations:
    """Reads and writes of the log; one instance per agent."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def accept(self, message: InboundMessage, *, observe: bool = False) -> Accepted:
        """Write an inbound message down; from the return on it will be dealt with, whatever happens.

        Args:
            observe: keep it as context only; nobody will answer it.

        Errors: StorageError; then nothing was accepted.
        """
        return await self._database.write(lambda c: accept_message(c, message, observe, self._clock.text()))

    async def begin_turn(
        self, turn_id: TurnId, channel_id: ConversationId, cause: str, message_ids: Sequence[MessageId]
    ) -> None:
        """Note that a turn took these messages."""

        def write(c: Connection) -> None:
            now = self._clock.text()
            c.execute(
                "INSERT INTO turns (id, channel_id, cause, state, started_at) VALUES (?, ?, ?, 'running', ?)",
                (turn_id, channel_id, cause, now),
            )
            c.executemany(
                "UPDATE ledger SET state = 'in_turn', turn_id = ?, attempts = attempts + 1, updated_at = ? "
                "WHERE message_id = ? AND state IN ('accepted', 'in_turn')",
                [(turn_id, now, message_id) for message_id in message_ids],
            )

        await self._database.write(write)

    async def record_reply(
        self,
        turn_id: TurnId | None,
        channel_id: ConversationId,
        text: str,
        *,
        kind: OutboundKind = OutboundKind.TEXT,
        reply_to: MessageId | None = None,
        result_ids: Sequence[str] = (),
        extra: str | None = None,
    ) -> LoggedMessage:
        """Write what is said, and with it that the turn's messages are answered and its results relayed.

        A reaction or a notice is logged without counting as the answer.

        Args:
            extra: what it has beside its text, as JSON (`conversations/outbox.py`).
        """

        def write(c: Connection) -> LoggedMessage:
            now = self._clock.text()
            row = append_message(
                c,
                channel_id,
                role="assistant",
                content=text,
                kind=str(kind),
                reply_to=reply_to,
                turn_id=turn_id,
                metadata=extra,
                now=now,
            )
            if kind is OutboundKind.TEXT:
                c.execute(
                    "UPDATE ledger SET state = 'answered', reply_id = COALESCE(reply_id, ?), updated_at = ? "
                    "WHERE turn_id = ? AND state = 'in_turn'",
                    (row.id, now, turn_id),
                )
                if reply_to is not None:  # a later result answers what an earlier turn had put off
                    c.execute(
                        "UPDATE ledger SET state = 'answered', reply_id = COALESCE(reply_id, ?), updated_at = ? "
                        "WHERE message_id = ? AND state IN ('skipped', 'failed')",
                        (row.id, now, reply_to),
                    )
                mark_relayed(c, result_ids, turn_id, now)
            return row

        return await self._database.write(write)

    async def finish_turn(
        self,
        turn_id: TurnId,
        state: TurnState,
        *,
        channel_id: ConversationId,
        detail: str | None = None,
        result_ids: Sequence[str] = (),
        notice: str | None = None,
        reply_to: MessageId | None = None,
    ) -> LoggedMessage | None:
        """Close a turn; its messages that nothing answered get the turn's own end and reason.

        Args:
            state: `INTERRUPTED` leaves the messages to the next start.
            result_ids: results that need no further telling.
            notice: a line for people about a failure, logged in the same step and returned.
        """
        fate = {
            TurnState.DONE: LedgerState.ANSWERED,
            TurnState.SKIPPED: LedgerState.SKIPPED,
            TurnState.FAILED: LedgerState.FAILED,
            TurnState.INTERRUPTED: LedgerState.ACCEPTED,
        }[state]

        def write(c: Connection) -> LoggedMessage | None:
            now = self._clock.text()
            c.execute(
                "UPDATE turns SET state = ?, detail = ?, completed_at = ? WHERE id = ? AND state = 'running'",
                (str(state), detail, now, turn_id),
            )
            c.execute(
                "UPDATE ledger SET state = ?, reason = ?, updated_at = ? WHERE turn_id = ? AND state = 'in_turn'",
                (str(fate), detail, now, turn_id),
            )
            if state is TurnState.INTERRUPTED:  # a stop in good order is no death with these messages
                c.execute(
                    "UPDATE ledger SET attempts = max(0, attempts - 1) WHERE turn_id = ? AND state = 'accepted'",
                    (turn_id,),
                )
            mark_relayed(c, result_ids, turn_id, now)
            if notice is None:
                return None
            return append_message(
                c, channel_id, role="assistant", content=notice, kind=str(OutboundKind.NOTICE), reply_to=reply_to,
                turn_id=turn_id, now=now,
            )  # fmt: skip

        return await self._database.write(write)

    async def start_branch(self, run: BranchRun) -> None:
        """Note a branch before its code runs; one that is run again keeps its row."""

        def write(c: Connection) -> None:
            c.execute(
                "INSERT INTO branch_runs (id, channel_id, turn_id, reply_to, description, state, started_at) "
                "VALUES (?, ?, ?, ?, ?, 'running', ?) ON CONFLICT (id) DO UPDATE SET state = 'running', "
                "attempts = attempts + (branch_runs.state = 'running')",  # a stop in good order does not count
                (run.id, run.channel_id, run.turn_id, run.reply_to, run.description, self._clock.text()),
            )

        await self._database.write(write)

    async def finish_branch(
        self, run: BranchRun, outcome: Outcome, *, tool_calls: int, tell: bool
    ) -> PendingResult | None:
        """Commit a branch's end and, with `tell`, the result that its channel has to pass on.

        Returns the pending result; None when none was asked for or the row had ended before.
        """

        def write(c: Connection) -> PendingResult | None:
            now = self._clock.text()
            done = c.execute(
                "UPDATE branch_runs SET state = ?, conclusion = ?, tool_calls = ?, completed_at = ? "
                "WHERE id = ? AND completed_at IS NULL",
                (
                    str(outcome.state),
                    outcome.text,
                    tool_calls,
                    None if outcome.state is NodeState.INTERRUPTED else now,
                    run.id,
                ),
            )
            if done.rowcount == 0 or not tell:
                return None
            return insert_result(c, "branch", run.id, run.channel_id, run.description, outcome, run.reply_to, now)

        return await self._database.write(write)

    async def start_worker(self, run: WorkerRun) -> None:
        """Note a worker before its code runs; one that is taken up again keeps its row."""

        def write(c: Connection) -> None:
            c.execute(
                "INSERT INTO worker_runs (id, channel_id, turn_id, reply_to, origin, task, task_type, is_interactive, "
                "worker_type, directory, session_id, is_direct, state, status, started_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
                "coalesce((SELECT was_direct FROM channels WHERE id = ?), 0), 'running', 'starting', ?) "
                "ON CONFLICT (id) DO UPDATE SET state = 'running'",
                (
                    run.id, run.channel_id, run.turn_id, run.reply_to, run.origin, run.task, run.task_type,
                    int(run.is_interactive), run.worker_type, run.directory, run.session_id, run.channel_id,
                    self._clock.text(),
                ),
            )  # fmt: skip

        await self._database.write(write)

    async def note_session(self, worker_id: NodeId, session_id: str) -> None:
        """Keep the session in which a worker's program works, so that it is taken up again after a restart."""

        def write(c: Connection) -> None:
            c.execute("UPDATE worker_runs SET session_id = ? WHERE id = ?", (session_id, worker_id))

        await self._database.write(write)

    async def checkpoint_worker(
        self, worker_id: NodeId, *, state: NodeState, status: str, transcript: str, tool_calls: int
    ) -> None:
        """Keep where a worker stands, so that it can go on after a restart."""

        def write(c: Connection) -> None:
            c.execute(
                "UPDATE worker_runs SET state = ?, status = ?, transcript = ?, tool_calls = ? "
                "WHERE id = ? AND completed_at IS NULL",
                (str(state), status, pack(transcript), tool_calls, worker_id),
            )

        await self._database.write(write)

    async def add_result(
        self, run: WorkerRun, outcome: Outcome, *, status: str, transcript: str, tool_calls: int
    ) -> PendingResult:
        """Commit a result of a worker that lives on, and that it waits for input now."""

        def write(c: Connection) -> PendingResult:
            c.execute(
                "UPDATE worker_runs SET state = 'waiting', status = ?, transcript = ?, tool_calls = ? "
                "WHERE id = ? AND completed_at IS NULL",
                (status, pack(transcript), tool_calls, run.id),
            )
            now = self._clock.text()
            return insert_result(c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, now)

        return await self._database.write(write)

    async def finish_worker(
        self, run: WorkerRun, outcome: Outcome, *, status: str, transcript: str | None, tool_calls: int, tell: bool
    ) -> PendingResult | None:
        """Commit a worker's end and, with `tell`, its result. An interrupted worker stays open for the next start."""

        def write(c: Connection) -> PendingResult | None:
            now = self._clock.text()
            done = c.execute(
                "UPDATE worker_runs SET state = ?, status = ?, result = ?, transcript = COALESCE(?, transcript), "
                "tool_calls = ?, completed_at = ? WHERE id = ? AND completed_at IS NULL",
                (
                    str(outcome.state), status, outcome.text, pack(transcript), tool_calls,
                    None if outcome.state is NodeState.INTERRUPTED else now, run.id,
                ),
            )  # fmt: skip
            if done.rowcount == 0 or not tell:
                return None
            return insert_result(c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, now)

        return await self._database.write(write)

    async def pending_results(self, channel_id: ConversationId) -> list[PendingResult]:
        """Results of a channel that nobody was told yet, oldest first."""

        def read(c: Connection) -> list[PendingResult]:
            rows = c.execute(
                "SELECT * FROM pending_results WHERE channel_id = ? AND relayed_at IS NULL ORDER BY created_at, rowid",
                (channel_id,),
            )
            return [
                PendingResult(
                    id=row["id"],
                    process_kind=row["process_kind"],
                    process_id=NodeId(row["process_id"]),
                    description=row["description"],
                    text=row["text"],
                    state=NodeState(row["state"]),
                    reply_to=row["reply_to"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def recover(self) -> Recovery:
        """Close what the last life left open, and hand out what has to be taken up again.

        Messages of a dead turn are accepted anew, at most `MAX_ATTEMPTS` times; then they fail, because they
        are the likely cause. Branches run again. Workers that stopped in good order or were waiting go on;
        those that were cut in the middle of their work fail, and their channel is told.
        """
        return await self._database.write(lambda c: recover_open_work(c, self._clock.text()))

    async def open_runs(self, channel_id: ConversationId) -> tuple[list[BranchRun], list[WorkerRun]]:
        """Branches and workers of a channel that have not ended, oldest first."""

        def read(c: Connection) -> tuple[list[BranchRun], list[WorkerRun]]:
            query = "SELECT * FROM {} WHERE channel_id = ? AND completed_at IS NULL ORDER BY started_at"
            return (
                [to_branch_run(row) for row in c.execute(query.format("branch_runs"), (channel_id,))],
                [to_worker_run(row) for row in c.execute(query.format("worker_runs"), (channel_id,))],
            )

        return await self._database.read(read)

    async def waiting(self, channel_id: ConversationId, limit: int) -> list[Journalled]:
        """Accepted messages of a channel that no turn has taken, oldest first."""

        def read(c: Connection) -> list[Journalled]:
            rows = c.execute(
                "SELECT m.*, l.attempts FROM ledger l JOIN conversation_messages m ON m.id = l.message_id "
                "WHERE l.state = 'accepted' AND l.channel_id = ? ORDER BY m.seq LIMIT ?",
                (channel_id, limit),
            )
            return [to_journalled(row) for row in rows]

        return await self._database.read(read)

    async def recent(self, channel_id: ConversationId, limit: int) -> list[LoggedMessage]:
        """The newest messages of a channel, oldest first."""
        return await self.history(channel_id, limit=limit)

    async def history(
        self,
        channel_id: ConversationId,
        *,
        limit: int = 100,
        after_seq: int | None = None,
        before_seq: int | None = None,
    ) -> list[LoggedMessage]:
        """Messages of a channel, oldest first.

        Args:
            after_seq: only later ones, and then the oldest `limit` of them; without it the newest `limit`.
            before_seq: only earlier ones.
        """

        def read(c: Connection) -> list[LoggedMessage]:
            order = "DESC" if after_seq is None else "ASC"
            rows = c.execute(
                "SELECT * FROM conversation_messages WHERE channel_id = ? AND seq > ? AND seq < ? "
                f"ORDER BY seq {order} LIMIT ?",
                (channel_id, after_seq or 0, before_seq if before_seq is not None else 1 << 62, limit),
            ).fetchall()
            messages = [to_logged(row) for row in rows]
            return messages if after_seq is not None else messages[::-1]

        return await self._database.read(read)

    async def sent_file(self, channel_id: ConversationId, message_id: MessageId) -> OutboundFile | None:
        """A file that was sent in a channel, with the place of its copy; None when there is none by that id."""

        def read(c: Connection) -> OutboundFile | None:
            row = c.execute(
                "SELECT metadata FROM conversation_messages WHERE id = ? AND channel_id = ? AND kind = ?",
                (message_id, channel_id, OutboundKind.FILE),
            ).fetchone()
            return None if row is None else from_json(row["metadata"]).file

        return await self._database.read(read)

    async def standing(self, channel_id: ConversationId, message_id: MessageId | None = None) -> Standing:
        """Who wrote a message of a conversation (by default the last one), and whether that was a direct chat.

        Both come from that one message, lest a claimed name stand beside the directness of another; and a
        conversation that others ever joined is direct for nobody.
        """

        def read(c: Connection) -> Standing:
            which, values = ("", (channel_id,)) if message_id is None else ("AND m.id = ? ", (channel_id, message_id))
            row = c.execute(
                "SELECT m.sender_id, "
                "c.is_direct AND coalesce(json_extract(m.metadata, '$.is_direct'), 0) AS is_direct, "
                "coalesce(json_extract(m.metadata, '$.is_listed'), 0) AS is_listed "
                "FROM conversation_messages m JOIN channels c ON c.id = m.channel_id "
                f"WHERE m.channel_id = ? AND m.role = 'user' {which}ORDER BY m.seq DESC LIMIT 1",
                values,
            ).fetchone()
            if row is None:
                return Standing(is_direct=False, user_id=None)
            return Standing(
                is_direct=bool(row["is_direct"]), user_id=row["sender_id"], is_listed=bool(row["is_listed"])
            )

        return await self._database.read(read)

    async def participants(self, channel_id: ConversationId, limit: int = 50) -> list[Participant]:
        """Who spoke in a conversation, the latest first."""

        def read(c: Connection) -> list[Participant]:
            rows = c.execute(
                "SELECT sender_id, sender_name FROM channel_people WHERE channel_id = ? ORDER BY last_seq DESC LIMIT ?",
                (channel_id, limit),
            )
            return [Participant(id=row["sender_id"], name=row["sender_name"] or row["sender_id"]) for row in rows]

        return await self._database.read(read)

    async def channels(self) -> list[ChannelRecord]:
        """All active conversations, the latest first."""

        def read(c: Connection) -> list[ChannelRecord]:
            rows = c.execute("SELECT * FROM channels WHERE is_active = 1 ORDER BY last_activity_at DESC, id")
            return [to_channel(row) for row in rows]

        return await self._database.read(read)

    async def channel(self, channel_id: ConversationId) -> ChannelRecord | None:
        """One conversation; None when there is no such."""

        def read(c: Connection) -> ChannelRecord | None:
            row = c.execute("SELECT * FROM channels WHERE id = ?", (channel_id,)).fetchone()
            return None if row is None else to_channel(row)

        return await self._database.read(read)

    async def channels_page(
        self,
        limit: int,
        *,
        before: tuple[str, str] | None = None,
        ties: bool = False,
        platform: str | None = None,
        words: str | None = None,
    ) -> tuple[list[ChannelRecord], int]:
        """A page of the active conversations and their number; see `timeline.read_channels`."""
        return await self._database.read(
            lambda c: read_channels(c, limit, before, ties=ties, platform=platform, words=words)
        )

    async def timeline(self, channel_id: ConversationId, *, limit: int, before: Place | None = None) -> Timeline:
        """The newest messages, branches and workers of a channel that lie before a place, oldest first."""
        return await self._database.read(lambda c: read_timeline(c, channel_id, limit, before))

    async def fate(self, message_id: str, *, channel_id: ConversationId | None = None) -> Fate | None:
        """What became of an inbound message; None when the log does not know it.

        Args:
            message_id: our own id, or else the name that its platform or client gave it.
            channel_id: where it must have come in; None looks everywhere.
        """
        return await self._database.read(lambda c: find_fate(c, message_id, channel_id))

    async def latest(self, limit: int) -> list[dict[str, object]]:
        """The newest inbound messages of all channels with their state, newest first."""

        def read(c: Connection) -> list[dict[str, object]]:
            rows = c.execute(
                "SELECT m.id, m.channel_id, m.sender_name, m.content, m.created_at, l.state, l.reason "
                "FROM ledger l JOIN conversation_messages m ON m.id = l.message_id ORDER BY l.rowid DESC LIMIT ?",
                (limit,),
            )
            return [dict(row) for row in rows]

        return await self._database.read(read)

    async def ledger_counts(self) -> dict[str, int]:
        """Number of inbound messages in each state."""
        return await self._database.read(
            lambda c: dict(c.execute("SELECT state, count(*) FROM ledger GROUP BY state").fetchall())
        )
