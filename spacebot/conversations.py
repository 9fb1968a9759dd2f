"""The durable log of one agent: messages, their ledger, turns, runs of branches and workers, results, usage.

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

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from spacebot.base.clock import Clock, from_text, to_text
from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId, new_uuid, platform_of
from spacebot.base.text import clean_unicode
from spacebot.base.tree import NodeState, Outcome
from spacebot.llm.messages import Usage
from spacebot.messaging.messages import Attachment, Author, InboundMessage, OutboundKind, ReplyPreview
from spacebot.storage.database import Connection, Database, Row

MAX_ATTEMPTS = (
    20  # turns that may die with a message before it is given up as the likely cause; a crash loop ends there
)
GIVEN_UP = f"Sorry, I could not answer this: the program stopped {MAX_ATTEMPTS} times while I tried."
RESTART_REASON = "interrupted by a restart"


class LedgerState(StrEnum):
    """What became of an inbound message."""

    ACCEPTED = "accepted"
    IN_TURN = "in_turn"
    ANSWERED = "answered"
    SKIPPED = "skipped"
    FAILED = "failed"
    OBSERVED = "observed"


class TurnState(StrEnum):
    """How a turn stands."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Receipt of an inbound message. `is_new` is False when the same one was accepted before."""

    message_id: MessageId
    seq: int
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Journalled:
    """An inbound message that is on disk."""

    id: MessageId
    seq: int
    message: InboundMessage
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedMessage:
    """A row of the log; `seq` counts per channel from 1 without gaps."""

    id: MessageId
    channel_id: ConversationId
    seq: int
    role: str
    sender_id: str | None
    sender_name: str | None
    content: str
    kind: str
    reply_to: MessageId | None
    turn_id: TurnId | None
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRecord:
    """A known conversation."""

    id: ConversationId
    platform: str
    display_name: str | None
    is_direct: bool
    created_at: str
    last_activity_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What decides who may see what was said: the kind of conversation and the person."""

    is_direct: bool
    user_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingResult:
    """A result of a branch or worker that nobody was told yet."""

    id: str
    process_kind: str
    process_id: NodeId
    description: str
    text: str
    state: NodeState
    reply_to: MessageId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRun:
    """A branch as its row has it."""

    id: NodeId
    channel_id: ConversationId
    description: str
    turn_id: TurnId | None
    reply_to: MessageId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRun:
    """A worker as its row has it; `transcript` is the JSON text of its model messages."""

    id: NodeId
    channel_id: ConversationId
    task: str
    task_type: str | None
    is_interactive: bool
    turn_id: TurnId | None
    reply_to: MessageId | None
    origin: NodeId | None = None
    state: NodeState = NodeState.RUNNING
    transcript: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the last life of the program left open."""

    messages: tuple[Journalled, ...]
    branches: tuple[BranchRun, ...]  # to be run again
    workers: tuple[WorkerRun, ...]  # to be taken up again from their transcript
    channels_with_results: tuple[ConversationId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """The ledger's word on one inbound message, with what belongs to it."""

    message: LoggedMessage
    state: LedgerState
    reason: str | None
    attempts: int
    turn_id: TurnId | None
    turn_state: str | None
    turn_detail: str | None
    coalesced_with: tuple[MessageId, ...]
    replies: tuple[LoggedMessage, ...]
    is_pending: bool  # its turn put the answer off: something that it started still runs, or waits to be told
    runs: tuple[Mapping[str, Any], ...]


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
        return await self._database.write(lambda c: _accept(c, message, observe, self._clock.text()))

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
    ) -> LoggedMessage:
        """Write what is said, and with it that the turn's messages are answered and its results relayed.

        A reaction or a notice is logged without counting as the answer.
        """

        def write(c: Connection) -> LoggedMessage:
            now = self._clock.text()
            row = _append(
                c,
                channel_id,
                role="assistant",
                content=text,
                kind=str(kind),
                reply_to=reply_to,
                turn_id=turn_id,
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
                _relay(c, result_ids, turn_id, now)
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
            _relay(c, result_ids, turn_id, now)
            if notice is None:
                return None
            return _append(
                c, channel_id, role="assistant", content=notice, kind=str(OutboundKind.NOTICE), reply_to=reply_to,
                turn_id=turn_id, now=now,
            )  # fmt: skip

        return await self._database.write(write)

    async def start_branch(self, run: BranchRun) -> None:
        """Note a branch before its code runs; one that is run again keeps its row."""

        def write(c: Connection) -> None:
            c.execute(
                "INSERT INTO branch_runs (id, channel_id, turn_id, reply_to, description, state, started_at) "
                "VALUES (?, ?, ?, ?, ?, 'running', ?) ON CONFLICT (id) DO UPDATE SET state = 'running'",
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
            return _add_result(c, "branch", run.id, run.channel_id, run.description, outcome, run.reply_to, now)

        return await self._database.write(write)

    async def start_worker(self, run: WorkerRun) -> None:
        """Note a worker before its code runs; one that is taken up again keeps its row."""

        def write(c: Connection) -> None:
            c.execute(
                "INSERT INTO worker_runs (id, channel_id, turn_id, reply_to, origin, task, task_type, is_interactive, "
                "state, status, started_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running', 'starting', ?) "
                "ON CONFLICT (id) DO UPDATE SET state = 'running'",
                (
                    run.id, run.channel_id, run.turn_id, run.reply_to, run.origin, run.task, run.task_type,
                    int(run.is_interactive), self._clock.text(),
                ),
            )  # fmt: skip

        await self._database.write(write)

    async def checkpoint_worker(
        self, worker_id: NodeId, *, state: NodeState, status: str, transcript: str, tool_calls: int
    ) -> None:
        """Keep where a worker stands, so that it can go on after a restart."""

        def write(c: Connection) -> None:
            c.execute(
                "UPDATE worker_runs SET state = ?, status = ?, transcript = ?, tool_calls = ? "
                "WHERE id = ? AND completed_at IS NULL",
                (str(state), status, transcript, tool_calls, worker_id),
            )

        await self._database.write(write)

    async def add_result(self, run: WorkerRun, outcome: Outcome) -> PendingResult:
        """Commit a result of a worker that lives on (a finished segment of an interactive one)."""
        return await self._database.write(
            lambda c: _add_result(
                c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, self._clock.text()
            )
        )

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
                    str(outcome.state), status, outcome.text, transcript, tool_calls,
                    None if outcome.state is NodeState.INTERRUPTED else now, run.id,
                ),
            )  # fmt: skip
            if done.rowcount == 0 or not tell:
                return None
            return _add_result(c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, now)

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
        return await self._database.write(lambda c: _recover(c, self._clock.text()))

    async def waiting(self, channel_id: ConversationId, limit: int) -> list[Journalled]:
        """Accepted messages of a channel that no turn has taken, oldest first."""

        def read(c: Connection) -> list[Journalled]:
            rows = c.execute(
                "SELECT m.*, l.attempts FROM ledger l JOIN conversation_messages m ON m.id = l.message_id "
                "WHERE l.state = 'accepted' AND l.channel_id = ? ORDER BY m.seq LIMIT ?",
                (channel_id, limit),
            )
            return [_journalled(row) for row in rows]

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
            messages = [_logged(row) for row in rows]
            return messages if after_seq is not None else messages[::-1]

        return await self._database.read(read)

    async def span(
        self,
        channel_id: ConversationId,
        *,
        limit: int,
        before: str | None = None,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> list[LoggedMessage]:
        """Spoken messages of a channel between two moments (both exclusive), in the order they were said.

        Args:
            limit: how many; the newest of the span, or the oldest when `oldest_first`.
        """

        def read(c: Connection) -> list[LoggedMessage]:
            rows = c.execute(
                "SELECT * FROM conversation_messages WHERE channel_id = ? AND kind = 'text' "
                "AND created_at < ? AND created_at > ? "
                f"ORDER BY seq {'ASC' if oldest_first else 'DESC'} LIMIT ?",
                (channel_id, before or "9999", after or "", limit),
            ).fetchall()
            messages = [_logged(row) for row in rows]
            return messages if oldest_first else messages[::-1]

        return await self._database.read(read)

    async def standing(self, channel_id: ConversationId, message_id: MessageId | None = None) -> Standing:
        """Whether a conversation is a direct chat, and who wrote a message of it (by default the last one)."""

        def read(c: Connection) -> Standing:
            channel = c.execute("SELECT is_direct FROM channels WHERE id = ?", (channel_id,)).fetchone()
            author = c.execute(
                "SELECT sender_id FROM conversation_messages WHERE channel_id = ? AND role = 'user' "
                "AND (? IS NULL OR id = ?) ORDER BY seq DESC LIMIT 1",
                (channel_id, message_id, message_id),
            ).fetchone()
            return Standing(
                is_direct=bool(channel and channel["is_direct"]), user_id=author["sender_id"] if author else None
            )

        return await self._database.read(read)

    async def channels(self) -> list[ChannelRecord]:
        """All active conversations, the latest first."""

        def read(c: Connection) -> list[ChannelRecord]:
            rows = c.execute("SELECT * FROM channels WHERE is_active = 1 ORDER BY last_activity_at DESC, id")
            return [
                ChannelRecord(
                    id=ConversationId(row["id"]),
                    platform=row["platform"],
                    display_name=row["display_name"],
                    is_direct=bool(row["is_direct"]),
                    created_at=row["created_at"],
                    last_activity_at=row["last_activity_at"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def fate(self, message_id: str) -> Fate | None:
        """What became of an inbound message; None when the log does not know it."""
        return await self._database.read(lambda c: _fate(c, message_id))

    async def ledger_counts(self) -> dict[str, int]:
        """Number of inbound messages in each state."""
        return await self._database.read(
            lambda c: dict(c.execute("SELECT state, count(*) FROM ledger GROUP BY state").fetchall())
        )

    async def record_usage(self, entries: Sequence[tuple[str, str | None, str | None, str, Usage]]) -> None:
        """Keep what model calls cost: (process kind, process id, channel id, model, usage) each."""

        def write(c: Connection) -> None:
            now = self._clock.text()
            c.executemany(
                "INSERT INTO usage (created_at, process_kind, process_id, channel_id, model, input_tokens, "
                "output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        now, kind, process_id, channel_id, model, usage.input_tokens, usage.output_tokens,
                        usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens,
                    )
                    for kind, process_id, channel_id, model, usage in entries
                ],
            )  # fmt: skip

        await self._database.write(write)


def _accept(c: Connection, message: InboundMessage, observe: bool, now: str) -> Accepted:
    if message.platform_id is not None:
        known = c.execute(
            "SELECT id, seq FROM conversation_messages WHERE channel_id = ? AND platform_id = ?",
            (message.conversation_id, message.platform_id),
        ).fetchone()
        if known is not None:
            return Accepted(message_id=MessageId(known["id"]), seq=known["seq"], is_new=False)
    c.execute(
        "INSERT INTO channels (id, platform, display_name, is_direct, created_at, last_activity_at) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET last_activity_at = excluded.last_activity_at, "
        "display_name = COALESCE(excluded.display_name, display_name)",
        (
            message.conversation_id,
            platform_of(message.conversation_id),
            message.channel_name,
            message.is_direct,
            now,
            now,
        ),
    )
    row = _append(
        c,
        message.conversation_id,
        role="user",
        content=clean_unicode(message.text),
        sender_id=message.author.id,
        sender_name=clean_unicode(message.author.name),
        metadata=_envelope(message),
        platform_id=message.platform_id,
        now=now,
    )
    state = LedgerState.OBSERVED if observe else LedgerState.ACCEPTED
    c.execute(
        "INSERT INTO ledger (message_id, channel_id, state, updated_at) VALUES (?, ?, ?, ?)",
        (row.id, message.conversation_id, str(state), now),
    )
    return Accepted(message_id=row.id, seq=row.seq, is_new=True)


def _append(
    c: Connection,
    channel_id: ConversationId,
    *,
    role: str,
    content: str,
    now: str,
    sender_id: str | None = None,
    sender_name: str | None = None,
    metadata: str | None = None,
    platform_id: str | None = None,
    reply_to: MessageId | None = None,
    turn_id: TurnId | None = None,
    kind: str = "text",
) -> LoggedMessage:
    """Add a row to the log under the channel's next number."""
    (seq,) = c.execute(
        "UPDATE channels SET last_seq = last_seq + 1, last_activity_at = ? WHERE id = ? RETURNING last_seq",
        (now, channel_id),
    ).fetchone()
    message = LoggedMessage(
        id=MessageId(new_uuid()),
        channel_id=channel_id,
        seq=seq,
        role=role,
        sender_id=sender_id,
        sender_name=sender_name,
        content=clean_unicode(content),
        kind=kind,
        reply_to=reply_to,
        turn_id=turn_id,
        created_at=now,
    )
    c.execute(
        "INSERT INTO conversation_messages (id, channel_id, seq, role, sender_id, sender_name, content, metadata, "
        "platform_id, reply_to, turn_id, kind, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.id, channel_id, seq, role, sender_id, sender_name, message.content, metadata, platform_id, reply_to,
            turn_id, kind, now,
        ),
    )  # fmt: skip
    return message


def _add_result(
    c: Connection,
    process_kind: str,
    process_id: NodeId,
    channel_id: ConversationId,
    description: str,
    outcome: Outcome,
    reply_to: MessageId | None,
    now: str,
) -> PendingResult:
    result = PendingResult(
        id=new_uuid(),
        process_kind=process_kind,
        process_id=process_id,
        description=description,
        text=clean_unicode(outcome.text),
        state=outcome.state,
        reply_to=reply_to,
    )
    c.execute(
        "INSERT INTO pending_results (id, channel_id, process_kind, process_id, description, text, state, reply_to, "
        "created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (result.id, channel_id, process_kind, process_id, description, result.text, str(outcome.state), reply_to, now),
    )
    return result


def _relay(c: Connection, result_ids: Iterable[str], turn_id: TurnId | None, now: str) -> None:
    c.executemany(
        "UPDATE pending_results SET relayed_at = ?, turn_id = ? WHERE id = ? AND relayed_at IS NULL",
        [(now, turn_id, result_id) for result_id in result_ids],
    )


def _recover(c: Connection, now: str) -> Recovery:
    c.execute("UPDATE turns SET state = 'interrupted', completed_at = ? WHERE state = 'running'", (now,))
    _drop_children_of_dead_turns(c, now)
    given_up = c.execute(
        "UPDATE ledger SET state = 'failed', reason = ?, updated_at = ? WHERE state = 'in_turn' AND attempts >= ? "
        "RETURNING message_id, channel_id",
        (f"given up: {MAX_ATTEMPTS} turns with it died", now, MAX_ATTEMPTS),
    ).fetchall()
    for row in given_up:
        _append(
            c, row["channel_id"], role="assistant", content=GIVEN_UP, kind=str(OutboundKind.NOTICE),
            reply_to=row["message_id"], now=now,
        )  # fmt: skip
    c.execute("UPDATE ledger SET state = 'accepted', updated_at = ? WHERE state = 'in_turn'", (now,))
    messages = tuple(
        _journalled(row)
        for row in c.execute(
            "SELECT m.*, l.attempts FROM ledger l JOIN conversation_messages m ON m.id = l.message_id "
            "WHERE l.state = 'accepted' ORDER BY m.channel_id, m.seq"
        )
    )
    branches = tuple(
        BranchRun(
            id=NodeId(row["id"]),
            channel_id=ConversationId(row["channel_id"]),
            description=row["description"],
            turn_id=row["turn_id"],
            reply_to=row["reply_to"],
        )
        for row in c.execute("SELECT * FROM branch_runs WHERE completed_at IS NULL ORDER BY started_at")
    )
    resumed: list[WorkerRun] = []
    for row in c.execute("SELECT * FROM worker_runs WHERE completed_at IS NULL ORDER BY started_at").fetchall():
        run = WorkerRun(
            id=NodeId(row["id"]),
            channel_id=ConversationId(row["channel_id"]),
            task=row["task"],
            task_type=row["task_type"],
            is_interactive=bool(row["is_interactive"]),
            turn_id=row["turn_id"],
            reply_to=row["reply_to"],
            origin=row["origin"],
            state=NodeState(row["state"]),
            transcript=row["transcript"],
        )
        if run.state in (NodeState.INTERRUPTED, NodeState.WAITING):
            resumed.append(run)
            continue
        last = f"; its last status was: {row['status']}" if row["status"] else ""
        outcome = Outcome(NodeState.FAILED, f"{RESTART_REASON} before it was done{last}")
        c.execute(
            "UPDATE worker_runs SET state = 'failed', result = ?, completed_at = ? WHERE id = ?",
            (outcome.text, now, run.id),
        )
        _add_result(c, "worker", run.id, run.channel_id, run.task, outcome, run.reply_to, now)
    waiting = tuple(
        ConversationId(row[0])
        for row in c.execute("SELECT DISTINCT channel_id FROM pending_results WHERE relayed_at IS NULL")
    )
    return Recovery(messages=messages, branches=branches, workers=tuple(resumed), channels_with_results=waiting)


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


def _fate(c: Connection, message_id: str) -> Fate | None:
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
        message=_logged(row),
        state=LedgerState(row["state"]),
        reason=row["reason"],
        attempts=row["attempts"],
        turn_id=turn_id,
        turn_state=turn["state"] if turn else None,
        turn_detail=turn["detail"] if turn else None,
        coalesced_with=tuple(MessageId(other[0]) for other in others),
        replies=tuple(_logged(reply) for reply in replies),
        is_pending=bool(is_pending),
        runs=tuple(dict(run) for run in runs),
    )


def _logged(row: Row) -> LoggedMessage:
    return LoggedMessage(
        id=MessageId(row["id"]),
        channel_id=ConversationId(row["channel_id"]),
        seq=row["seq"],
        role=row["role"],
        sender_id=row["sender_id"],
        sender_name=row["sender_name"],
        content=row["content"],
        kind=row["kind"],
        reply_to=row["reply_to"],
        turn_id=row["turn_id"],
        created_at=row["created_at"],
    )


def _journalled(row: Row) -> Journalled:
    return Journalled(id=MessageId(row["id"]), seq=row["seq"], message=_from_row(row), attempts=row["attempts"])


def _envelope(message: InboundMessage) -> str:
    """What a row needs besides its columns to become the same message again."""
    fields: dict[str, Any] = {
        "platform": message.platform,
        "sent_at": to_text(message.sent_at),
        "is_bot": message.author.is_bot,
        "is_direct": message.is_direct,
        "mentions_bot": message.mentions_bot,
        "server_name": message.server_name,
        "channel_name": message.channel_name,
        "reply_to": message.reply_to and [message.reply_to.author, message.reply_to.text],
        "attachments": [[a.filename, a.media_type, a.url, a.size_bytes] for a in message.attachments],
        "platform_data": dict(message.metadata),
    }
    return json.dumps({key: value for key, value in fields.items() if value not in (None, False, [], {})})


def _from_row(row: sqlite3.Row) -> InboundMessage:
    fields = json.loads(row["metadata"] or "{}")
    return InboundMessage(
        platform=fields.get("platform", platform_of(row["channel_id"])),
        conversation_id=ConversationId(row["channel_id"]),
        author=Author(id=row["sender_id"], name=row["sender_name"], is_bot=fields.get("is_bot", False)),
        text=row["content"],
        sent_at=from_text(fields.get("sent_at", row["created_at"])),
        platform_id=row["platform_id"],
        is_direct=fields.get("is_direct", False),
        mentions_bot=fields.get("mentions_bot", False),
        reply_to=ReplyPreview(author=fields["reply_to"][0], text=fields["reply_to"][1])
        if "reply_to" in fields
        else None,
        attachments=tuple(
            Attachment(filename=a[0], media_type=a[1], url=a[2], size_bytes=a[3]) for a in fields.get("attachments", ())
        ),
        server_name=fields.get("server_name"),
        channel_name=fields.get("channel_name"),
        metadata=fields.get("platform_data", {}),
    )
