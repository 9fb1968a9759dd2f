"""Rows to records and back; the writes that several transactions share. All run inside a transaction.

Floor: conversations
"""

import json
import zlib
from collections.abc import Iterable
from typing import Any

from spacebot.base.clock import from_text, to_text
from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId, new_uuid, platform_of
from spacebot.base.text import clean_unicode
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.records import (
    Accepted,
    BranchRun,
    Journalled,
    LedgerState,
    LoggedMessage,
    PendingResult,
    SentFile,
    WorkerRun,
)
from spacebot.messaging.codec import from_json
from spacebot.messaging.messages import (
    Attachment,
    Author,
    Command,
    InboundMessage,
    Interaction,
    OutboundKind,
    ReplyPreview,
)
from spacebot.storage.database import Connection, Row

PACK_CHARS = 4000  # shorter transcripts are kept as text
_WORDS = (OutboundKind.TEXT, OutboundKind.NOTICE)


def accept_message(c: Connection, message: InboundMessage, observe: bool, now: str) -> Accepted:
    """Write an inbound message down, unless it was before; `observe` keeps it as context only."""
    if message.platform_id is not None:
        known = c.execute(
            "SELECT id, seq FROM conversation_messages WHERE channel_id = ? AND platform_id = ?",
            (message.conversation_id, message.platform_id),
        ).fetchone()
        if known is not None:
            return Accepted(message_id=MessageId(known["id"]), seq=known["seq"], is_new=False)
    c.execute(
        "INSERT INTO channels (id, platform, display_name, is_direct, was_direct, created_at, last_activity_at, "
        "adapter, platform_meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "last_activity_at = excluded.last_activity_at, "
        "display_name = COALESCE(excluded.display_name, display_name), "
        "adapter = COALESCE(excluded.adapter, adapter), "
        "platform_meta = COALESCE(excluded.platform_meta, platform_meta), "
        "is_direct = min(is_direct, excluded.is_direct), was_direct = max(was_direct, excluded.was_direct)",
        (
            message.conversation_id,
            platform_of(message.conversation_id),
            message.channel_name,
            message.is_direct,
            message.is_direct,
            now,
            now,
            message.adapter,
            json.dumps(dict(message.metadata)) if message.adapter is not None else None,
        ),
    )
    row = append_message(
        c,
        message.conversation_id,
        role="user",
        content=clean_unicode(message.text),
        sender_id=message.author.id,
        sender_name=clean_unicode(message.author.name),
        metadata=to_envelope(message),
        platform_id=message.platform_id,
        now=now,
    )
    state = LedgerState.OBSERVED if observe else LedgerState.ACCEPTED
    c.execute(
        "INSERT INTO ledger (message_id, channel_id, state, updated_at) VALUES (?, ?, ?, ?)",
        (row.id, message.conversation_id, str(state), now),
    )
    return Accepted(message_id=row.id, seq=row.seq, is_new=True)


def append_message(
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
    """Add a row to the log under the channel's next number, and to the outbox where an adapter delivers."""
    seq, adapter = c.execute(
        "UPDATE channels SET last_seq = last_seq + 1, last_activity_at = ? WHERE id = ? RETURNING last_seq, adapter",
        (now, channel_id),
    ).fetchone()
    is_queued = role == "assistant" and adapter is not None
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
        file=sent_file(kind, metadata),
        is_queued=is_queued,
    )
    c.execute(
        "INSERT INTO conversation_messages (id, channel_id, seq, role, sender_id, sender_name, content, metadata, "
        "platform_id, reply_to, turn_id, kind, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.id, channel_id, seq, role, sender_id, sender_name, message.content, metadata, platform_id, reply_to,
            turn_id, kind, now,
        ),
    )  # fmt: skip
    if is_queued:
        _queue(c, message, adapter, now)
    return message


def _queue(c: Connection, message: LoggedMessage, adapter: str, now: str) -> None:
    """Have a message delivered; a draft of the same answer becomes its first part."""
    draft = None
    if message.kind in _WORDS and message.reply_to is not None:
        draft = c.execute(
            "DELETE FROM drafts WHERE channel_id = ? AND reply_to = ? RETURNING draft_id",
            (message.channel_id, message.reply_to),
        ).fetchone()
    c.execute(
        "INSERT INTO outbox (message_id, channel_id, adapter, draft_id, created_at) VALUES (?, ?, ?, ?, ?)",
        (message.id, message.channel_id, adapter, draft and draft["draft_id"], now),
    )


def insert_result(
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


def mark_relayed(c: Connection, result_ids: Iterable[str], turn_id: TurnId | None, now: str) -> None:
    c.executemany(
        "UPDATE pending_results SET relayed_at = ?, turn_id = ? WHERE id = ? AND relayed_at IS NULL",
        [(now, turn_id, result_id) for result_id in result_ids],
    )


def to_logged(row: Row) -> LoggedMessage:
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
        file=sent_file(row["kind"], row["metadata"]),
    )


def sent_file(kind: str, metadata: str | None) -> SentFile | None:
    """The file that a row of the log stands for; None for all other rows."""
    if kind != OutboundKind.FILE or metadata is None or (file := from_json(metadata).file) is None:
        return None
    return SentFile(filename=file.filename, media_type=file.media_type, size_bytes=file.size_bytes)


def to_journalled(row: Row) -> Journalled:
    return Journalled(id=MessageId(row["id"]), seq=row["seq"], message=to_inbound(row), attempts=row["attempts"])


def to_envelope(message: InboundMessage) -> str:
    """What a row needs besides its columns to become the same message again."""
    fields: dict[str, Any] = {
        "platform": message.platform,
        "adapter": message.adapter,
        "sent_at": to_text(message.sent_at),
        "is_bot": message.author.is_bot,
        "handle": message.author.handle,
        "is_moderator": message.author.is_moderator,
        "is_listed": message.author.is_listed,
        "is_direct": message.is_direct,
        "mentions_bot": message.mentions_bot,
        "server_name": message.server_name,
        "channel_name": message.channel_name,
        "reply_to": message.reply_to and [message.reply_to.author, message.reply_to.text],
        "attachments": [[a.filename, a.media_type, a.url, a.size_bytes] for a in message.attachments],
        "interaction": message.interaction and _to_fields(message.interaction),
        "command": message.command and [message.command.name, message.command.args],
        "server_id": message.server_id,
        "room_ids": list(message.room_ids),
        "platform_data": dict(message.metadata),
    }
    return json.dumps({key: value for key, value in fields.items() if value not in (None, False, [], {})})


def _to_fields(interaction: Interaction) -> dict[str, Any]:
    return {
        "action_id": interaction.action_id,
        "values": list(interaction.values),
        "label": interaction.label,
        "message_id": interaction.message_id,
    }


def _to_interaction(fields: dict[str, Any] | None) -> Interaction | None:
    return None if fields is None else Interaction(**{**fields, "values": tuple(fields["values"])})


def to_inbound(row: Row) -> InboundMessage:
    fields = json.loads(row["metadata"] or "{}")
    return InboundMessage(
        platform=fields.get("platform", platform_of(row["channel_id"])),
        conversation_id=ConversationId(row["channel_id"]),
        author=Author(
            id=row["sender_id"],
            name=row["sender_name"],
            is_bot=fields.get("is_bot", False),
            handle=fields.get("handle"),
            is_moderator=fields.get("is_moderator"),
            is_listed=fields.get("is_listed", False),
        ),
        text=row["content"],
        adapter=fields.get("adapter"),
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
        interaction=_to_interaction(fields.get("interaction")),
        command=Command(name=fields["command"][0], args=fields["command"][1]) if "command" in fields else None,
        server_id=fields.get("server_id"),
        room_ids=tuple(fields.get("room_ids", ())),
        server_name=fields.get("server_name"),
        channel_name=fields.get("channel_name"),
        metadata=fields.get("platform_data", {}),
    )


def to_branch_run(row: Row) -> BranchRun:
    """A branch from its row."""
    return BranchRun(
        id=NodeId(row["id"]),
        channel_id=ConversationId(row["channel_id"]),
        description=row["description"],
        turn_id=row["turn_id"],
        reply_to=row["reply_to"],
    )


def to_worker_run(row: Row) -> WorkerRun:
    """A worker from its row."""
    return WorkerRun(
        id=NodeId(row["id"]),
        channel_id=ConversationId(row["channel_id"]),
        task=row["task"],
        task_type=row["task_type"],
        is_interactive=bool(row["is_interactive"]),
        turn_id=row["turn_id"],
        reply_to=row["reply_to"],
        origin=row["origin"],
        state=NodeState(row["state"]),
        transcript=unpack(row["transcript"]),
        worker_type=row["worker_type"],
        directory=row["directory"],
        session_id=row["session_id"],
    )


def pack(transcript: str | None) -> str | bytes | None:
    """A transcript as it is kept: a long one compressed, since each step of a worker writes all of it."""
    if transcript is None or len(transcript) < PACK_CHARS:
        return transcript
    return zlib.compress(transcript.encode(errors="surrogatepass"), 1)


def unpack(kept: str | bytes | None) -> str | None:
    """A transcript from its column."""
    return zlib.decompress(kept).decode(errors="surrogatepass") if isinstance(kept, bytes) else kept
