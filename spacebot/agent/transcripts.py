"""The log as `channel_recall` reads it: a direct chat is visible from that very chat only.

Floor: agent
"""

from collections.abc import Sequence
from datetime import datetime

from spacebot.base.clock import from_text, to_text
from spacebot.base.ids import ConversationId
from spacebot.conversations.log import Conversations
from spacebot.conversations.records import ChannelRecord
from spacebot.tools.memory import KnownChannel, TranscriptLine


class Transcripts:
    """Fills the seam that the tool declares."""

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    async def channels(self, *, visible_to: str | None) -> Sequence[KnownChannel]:
        """Active conversations that may be read from `visible_to`, latest activity first."""
        return [
            KnownChannel(id=record.id, name=record.display_name, last_activity=from_text(record.last_activity_at))
            for record in await self._conversations.channels()
            if _may_see(record, visible_to)
        ]

    async def transcript(
        self,
        channel_id: str,
        *,
        limit: int,
        before: datetime | None,
        after: datetime | None,
        oldest_first: bool,
        visible_to: str | None,
    ) -> Sequence[TranscriptLine]:
        """Messages of a conversation in the order they were said; nothing of a direct chat of others."""
        records = {record.id: record for record in await self._conversations.channels()}
        record = records.get(ConversationId(channel_id))
        if record is None or not _may_see(record, visible_to):
            return []
        rows = await self._conversations.span(
            record.id,
            limit=limit,
            before=to_text(before) if before else None,
            after=to_text(after) if after else None,
            oldest_first=oldest_first,
        )
        return [
            TranscriptLine(
                role=row.role, sender=row.sender_name, content=row.content, timestamp=from_text(row.created_at)
            )
            for row in rows
        ]


def _may_see(record: ChannelRecord, visible_to: str | None) -> bool:
    return not record.is_direct or record.id == visible_to
