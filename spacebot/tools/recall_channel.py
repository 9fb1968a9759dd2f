"""Over what was said: channel_recall lists conversations, reads one in order, or searches all that may be seen.

Flow:    arguments -> MessageSearch -> JSON for the model
Floor:   tools
Source:  memory spec 8.4, tools spec 4; pitfalls P-09, P-10, P-28, P-33
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, field_validator

from spacebot.base.clock import from_text
from spacebot.base.errors import NotFoundError, RefusedError, StorageError, ToolError
from spacebot.base.ids import MessageId, is_uuid
from spacebot.base.text import cut_bytes, preview
from spacebot.base.tree import Node
from spacebot.conversations.message_search import MOST_RESULTS, MessageHit, MessageQuestion, MessageSearch
from spacebot.conversations.records import ChannelRecord, LoggedMessage
from spacebot.memory.types import Viewer
from spacebot.tools.contract import LenientInt, ToolArguments, ToolOutput
from spacebot.tools.memory import parse_moment, shortened, within_cap

MOST_MESSAGES = 100
MESSAGES, RESULTS = 50, 10  # unless asked otherwise
CONTEXT_BYTES = 240  # of each message around a found one
MOST_CHANNELS = 200  # in a listing, the latest


class ChannelRecallArguments(ToolArguments):
    """Arguments of channel_recall."""

    query: str | None = None
    channel: str | None = None
    person: str | None = None
    limit: LenientInt | None = None
    before: str | None = Field(None, description="ISO 8601 moment, or a message id")
    after: str | None = None
    oldest_first: bool = False

    @field_validator("before", "after")
    @classmethod
    def _is_bound(cls, value: str | None) -> str | None:
        value = (value or "").strip() or None
        if value is None or is_uuid(value.lower()):
            return value
        parse_moment(value)
        return value


class ChannelRecall:
    """Finds or reads what was said in conversations, this one included, as far as its viewer may see them."""

    name: ClassVar[str] = "channel_recall"
    arguments: ClassVar[type[ToolArguments]] = ChannelRecallArguments

    def __init__(self, *, messages: MessageSearch, viewer: Viewer) -> None:
        self._messages = messages
        self._viewer = viewer

    async def call(self, arguments: ChannelRecallArguments, node: Node) -> ToolOutput:
        """Search when there is a query, else give the transcript of a channel, else the list of channels."""
        channels = await self._messages.channels(self._viewer)
        channel = None
        if wanted := (arguments.channel or "").strip():
            channel = resolve_channel(channels, wanted)
            if channel is None:
                return _channel_list(channels, f"No channel matches {preview(wanted)!r}.")
        try:
            if (arguments.query or "").strip():
                return await self._search(arguments, channel, channels)
            if channel is None:
                needs = "Name a channel, or give a query." if arguments.person else None
                return _channel_list(channels, needs)
            return await self._transcript(arguments, channel)
        except (NotFoundError, RefusedError, StorageError) as error:
            raise ToolError(str(error)) from error

    async def _search(
        self, arguments: ChannelRecallArguments, channel: ChannelRecord | None, channels: Sequence[ChannelRecord]
    ) -> ToolOutput:
        before, after = _bound(arguments.before), _bound(arguments.after)
        if isinstance(before, str) or isinstance(after, str):
            raise ToolError("with a query, `before` and `after` must be moments, such as 2026-03-01T12:00:00Z")
        limit = RESULTS if arguments.limit is None else arguments.limit
        found = await self._messages.search(
            MessageQuestion(
                viewer=self._viewer,
                text=arguments.query or "",
                channel_id=channel.id if channel else None,
                person=(arguments.person or "").strip() or None,
                before=before,
                after=after,
                limit=min(max(limit, 1), MOST_RESULTS),
            )
        )
        names = {known.id: known.display_name for known in channels}
        return within_cap(
            lambda most: ToolOutput.of(
                action="search",
                channel_id=channel.id if channel else None,
                channel_name=channel.display_name if channel else None,
                messages=[_found(hit, names.get(hit.message.channel_id), most) for hit in found.hits],
                total_found=found.total_found,
                summary=f"{len(found.hits)} of {found.total_found} messages, best first"
                if found.hits
                else "Nothing like that was said where this conversation may look.",
                note="; ".join(found.notes) or None,
            )
        )

    async def _transcript(self, arguments: ChannelRecallArguments, channel: ChannelRecord) -> ToolOutput:
        limit = MESSAGES if arguments.limit is None else arguments.limit
        lines = await self._messages.transcript(
            self._viewer,
            channel.id,
            limit=min(max(limit, 1), MOST_MESSAGES),
            before=_bound(arguments.before),
            after=_bound(arguments.after),
            oldest_first=arguments.oldest_first,
            person=(arguments.person or "").strip() or None,
        )
        return within_cap(
            lambda most: ToolOutput.of(
                action="transcript",
                channel_id=channel.id,
                channel_name=channel.display_name,
                messages=[_line(line, most) for line in lines],
                summary=f"{len(lines)} messages of {channel.display_name or channel.id}"
                if lines
                else "No messages there.",
            )
        )


def resolve_channel(channels: Sequence[ChannelRecord], wanted: str) -> ChannelRecord | None:
    """The channel that a name means: exact name, then prefix, then part of the name, then part of the id.

    Letter case makes no difference on either side; among several the one of the latest activity is meant.
    """
    needle = wanted.strip().lstrip("#").casefold()
    if not needle:
        return None
    names = [((channel.display_name or "").lstrip("#").casefold(), channel) for channel in channels]
    return next(
        (
            channel
            for fits in (
                lambda name, _: name == needle,
                lambda name, _: name.startswith(needle),
                lambda name, _: needle in name,
                lambda _, channel: needle in channel.id.casefold(),
            )
            for name, channel in names
            if fits(name, channel)
        ),
        None,
    )


def _bound(text: str | None) -> datetime | MessageId | None:
    if text is None:
        return None
    return MessageId(text.lower()) if is_uuid(text.lower()) else from_text(text)


def _line(message: LoggedMessage, most: int | None) -> dict[str, Any]:
    name, user = message.sender_name or message.sender_id, message.sender_id
    return {
        "id": message.id,
        "role": message.role,
        "sender": name,
        **({"sender_id": user} if user and user != (name or "").casefold() else {}),
        "content": shortened(message.content, most),
        "timestamp": message.created_at,
    }


def _found(hit: MessageHit, channel_name: str | None, most: int | None) -> dict[str, Any]:
    message = hit.message
    around = [f"{near.sender_name or near.sender_id or near.role}: {_head(near.content, most)}" for near in hit.context]
    place = sum(near.seq < message.seq for near in hit.context)
    return {
        **_line(message, most),
        "channel_id": message.channel_id,
        "channel_name": channel_name,
        "said_before": around[:place],
        "said_after": around[place:],
        "relevance": round(hit.score, 3),
        "why": hit.why,
    }


def _head(text: str, most: int | None) -> str:
    limit = CONTEXT_BYTES if most is None else min(CONTEXT_BYTES, most // 3)
    head = cut_bytes(text, limit)
    return head if head == text else f"{head.rstrip()}…"


def _channel_list(channels: Sequence[ChannelRecord], note: str | None) -> ToolOutput:
    shown = channels[:MOST_CHANNELS]
    listed = [
        f"{cut_bytes(channel.display_name or channel.id, 100)} (last activity {channel.last_activity_at})"
        for channel in shown
    ]
    if len(channels) > len(shown):
        listed.append(f"and {len(channels) - len(shown)} more, quiet for longer")
    summary = "\n".join(listed) or "No channels yet."
    return ToolOutput.of(
        action="list",
        available_channels=[
            {
                "channel_id": channel.id,
                "channel_name": channel.display_name,
                "last_activity": channel.last_activity_at,
            }
            for channel in shown
        ],
        summary=f"{note} Known channels:\n{summary}" if note else summary,
    )
