"""Tells observers of something that was said and written down.

Floor: agent
"""

from dataclasses import asdict

from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId
from spacebot.conversations.records import LoggedMessage


def announce(events: EventBus, agent_id: AgentId, row: LoggedMessage) -> None:
    """Send the event of a logged message of the agent's."""
    events.emit(
        EventKind.OUTBOUND_MESSAGE,
        agent_id=agent_id,
        channel_id=row.channel_id,
        message_id=row.id,
        seq=row.seq,
        text=row.content,
        kind=row.kind,
        reply_to=row.reply_to,
        turn_id=row.turn_id,
        created_at=row.created_at,
        **({} if row.file is None else asdict(row.file)),
    )
