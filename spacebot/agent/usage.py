"""What model calls cost, written down some at a time, so that no call waits for the disk.

Floor:  agent
Source: control spec 6.5
"""

import logging

import trio

from spacebot.base.errors import StorageError
from spacebot.base.telemetry import kv
from spacebot.conversations.log import Conversations
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import Usage

log = logging.getLogger(__name__)

QUEUE = 1024  # completions whose cost waits to be written; further ones are dropped, with a warning
BATCH = 256


class UsageWriter:
    """One agent's writer; `run` is its life."""

    def __init__(self, conversations: Conversations, agent_id: str) -> None:
        self._conversations = conversations
        self._agent_id = agent_id
        self._send, self._records = trio.open_memory_channel[UsageRecord](QUEUE)

    def note(self, record: UsageRecord) -> None:
        """Take a completion's cost; never waits."""
        try:
            self._send.send_nowait(record)
        except trio.WouldBlock:
            log.warning("cost of a model call not recorded, too many wait", extra=kv(agent=self._agent_id))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            records = [await self._records.receive()]
            while len(records) < BATCH:
                try:
                    records.append(self._records.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await self._conversations.record_usage([_entry(record) for record in records])
            except StorageError as error:
                log.error("cost of model calls not written", extra=kv(agent=self._agent_id, error=str(error)))


def _entry(record: UsageRecord) -> tuple[str, str | None, str | None, str, Usage]:
    return str(record.process), record.node_id, record.channel_id, record.model, record.usage
