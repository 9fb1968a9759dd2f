"""How messages of people look to a model. Pure.

Floor:  agent
Source: process spec 4.5, 4.6 and 19
"""

import re
from collections.abc import Sequence
from datetime import tzinfo

from spacebot.base.clock import format_local, from_text
from spacebot.base.text import preview
from spacebot.conversations.records import ERASED, Journalled, LoggedMessage
from spacebot.llm.messages import ModelMessage
from spacebot.messaging.messages import InboundMessage, OutboundKind

EMPTY = "(a message without text)"
PREVIEW = 120  # characters of the message that is replied to


_FRAME = re.compile(r"<(?=\s*/?\s*(?:now|result|transcript)\b)", re.IGNORECASE)


def neutral(text: str) -> str:
    """A text that cannot open or close the frames of a turn's prompt, whoever wrote it."""
    return _FRAME.sub("‹", text)


def one_line(text: str) -> str:
    """A name or another word that people choose, as it may stand inside of a line."""
    return neutral(" ".join(text.split()))


def render_message(message: InboundMessage, zone: tzinfo | None) -> str:
    """One message as `[time] name: text`, with what it answers and what is attached."""
    bot = " (bot)" if message.author.is_bot else ""
    answers = ""
    if message.reply_to is not None:
        answered = one_line(preview(message.reply_to.text, PREVIEW))
        answers = f' (replying to {one_line(message.reply_to.author)}: "{answered}")'
    files = "".join(
        f"\n[attachment: {one_line(a.filename)}, {one_line(a.media_type)}"
        + (f", {a.size_bytes / 1024:.1f} KB]" if a.size_bytes else "]")
        for a in message.attachments
    )
    text = neutral(message.text.strip()) or (EMPTY if not files else "")
    return f"[{format_local(message.sent_at, zone)}] {one_line(message.author.name)}{bot}{answers}: {text}{files}"


def render_batch(messages: Sequence[Journalled], zone: tzinfo | None) -> str:
    """All messages of a turn, oldest first; a batch of one is a batch."""
    return "\n".join(render_message(journalled.message, zone) for journalled in messages)


def render_logged(message: LoggedMessage, zone: tzinfo | None) -> ModelMessage | None:
    """A row of the log as it stood in the live history; None for what was not said in words."""
    if message.kind in (OutboundKind.REACTION, ERASED):
        return None
    if message.role == "assistant":
        return ModelMessage.assistant(message.content)
    moment = format_local(from_text(message.created_at), zone)
    return ModelMessage.user(
        f"[{moment}] {one_line(message.sender_name or '?')}: {neutral(message.content.strip()) or EMPTY}"
    )


def place_of(message: InboundMessage) -> str:
    """Where the talk takes place, in words."""
    if message.is_direct:
        return one_line(f"a direct chat with {message.author.name} ({message.conversation_id})")
    names = " in ".join(name for name in (message.channel_name, message.server_name) if name)
    return one_line(f"{names or 'a shared room'} ({message.conversation_id})")


def render_transcript(rows: Sequence[LoggedMessage], zone: tzinfo | None) -> str:
    """Rows of the log for a reader that keeps people apart: a line each, with name and id; `you` is the agent."""
    lines = []
    for row in rows:
        if row.kind != OutboundKind.TEXT:
            continue
        moment = format_local(from_text(row.created_at), zone)
        who = (
            "you"
            if row.role == "assistant"
            else f"{neutral(row.sender_name or '?')} (id {neutral(row.sender_id or '?')})"
        )
        lines.append(f"[{moment}] {who}: {neutral(row.content.strip()) or EMPTY}")
    return "\n".join(lines)
