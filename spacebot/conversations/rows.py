"""Rows to records and back; the writes that several transactions share. All run inside a transaction.

Floor: conversations
"""

import json
from collections.abc import Iterable
from typing import Any

from spacebot.base.clock import from_text, to_text
from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId, new_uuid, platform_of
from spacebot.base.text import clean_unicode
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.records import (
    BranchRun,
    Journalled,
    LoggedMessage,
    PendingResult,
    WorkerRun,
)
from spacebot.messaging.messages import Attachment, Author, InboundMessage, ReplyPreview
from spacebot.storage.database import Connection, Row


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
    )


def to_journalled(row: Row) -> Journalled:
    return Journalled(id=MessageId(row["id"]), seq=row["seq"], message=to_inbound(row), attempts=row["attempts"])


def to_envelope(message: InboundMessage) -> str:
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


def to_inbound(row: Row) -> InboundMessage:
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
        transcript=row["transcript"],
    )
