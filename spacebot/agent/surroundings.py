"""What a model should know of the place it talks in: how texts look there, and what was said before the agent came.

Earlier messages of a platform are data in the system prompt, never turns of the talk: a model must not answer them.

Flow:    turn -> render -> history of the platform, once per conversation -> a block behind the system prompt
Floor:   agent
Source:  messaging spec 12; pitfall 5 of its section 19
"""

import json
import logging
from collections.abc import Sequence

import trio

from spacebot.agent.parts import AgentParts
from spacebot.agent.render import neutral
from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.ids import ConversationId, platform_of
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes
from spacebot.messaging.adapter import Adapter
from spacebot.messaging.messages import HistoryLine, Target

log = logging.getLogger(__name__)

FETCH_S = 5.0  # for the platform to tell what was said before; then the turn goes on without
LINE_BYTES = 1500  # of one earlier message


class Surroundings:
    """The place of one channel; its text stays the same while the channel lives, so that prompts can be cached."""

    def __init__(self, parts: AgentParts, channel_id: ConversationId) -> None:
        self._parts = parts
        self._channel_id = channel_id
        self._lines: Sequence[HistoryLine] | None = None

    async def render(self, adapter_key: str, target: Target) -> str:
        """The block behind the system prompt. Never fails for a platform's sake."""
        courier = self._parts.delivery.courier
        if self._lines is None:
            self._lines = await self._earlier(courier.connected(adapter_key), target)
        traits = courier.traits(adapter_key)
        prompts = self._parts.prompts
        hint = f"fragments/platform_{traits.hint}" if traits is not None and traits.hint else ""
        return prompts.render(
            "fragments/place",
            platform=platform_of(self._channel_id),
            is_direct=target.is_direct,
            hint=prompts.render(hint).strip() if hint else "",
            earlier=json.dumps([_to_object(line) for line in self._lines], ensure_ascii=False) if self._lines else "",
        )

    async def _earlier(self, adapter: Adapter | None, target: Target) -> Sequence[HistoryLine]:
        count = self._parts.settings().history_backfill_count
        try:
            known = await self._parts.rooms.backfill(self._channel_id)
            if known is not None or not count or adapter is None or not adapter.traits.reads_history:
                return known or ()
            with trio.move_on_after(FETCH_S):
                lines = await adapter.history(target, count)
                first = await self._parts.rooms.first_message_at(self._channel_id)
                lines = [line for line in lines if first is None or line.sent_at < first][-count:]
                await self._parts.rooms.record_backfill(self._channel_id, lines)
                return lines
            log.info("earlier messages not fetched in time", extra=kv(channel=self._channel_id))
        except (DeliveryError, StorageError) as error:
            log.info("earlier messages not fetched", extra=kv(channel=self._channel_id, reason=scrub(str(error))))
        except Exception as error:  # boundary: adapter
            log.error("adapter broke while reading history", exc_info=error, extra=kv(channel=self._channel_id))
        return ()


def _to_object(line: HistoryLine) -> dict[str, str]:
    return {
        "role": "you" if line.is_self else "bot" if line.is_bot else "person",
        "author": neutral(line.author),
        "time": f"{line.sent_at:%Y-%m-%d %H:%M} UTC",
        "text": neutral(cut_bytes(line.text, LINE_BYTES)),
    }
