"""What Slack keeps of its channels, as a socket would have told it.

An event that nobody acknowledges comes again a few times within minutes; what is said during a longer break is in the
channels' past only.

Flow:    CatchUp -> Past.missed -> conversations.history | conversations.replies -> Envelope without an id -> lanes
Floor:   messaging
Source:  docs.slack.dev on conversations.history, conversations.replies, their limits, and retries of events
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from spacebot.messaging.adapter import LATE_S
from spacebot.messaging.messages import HistoryLine, Target
from spacebot.messaging.slack.directory import Directory
from spacebot.messaging.slack.outbound import PAGE, Place
from spacebot.messaging.slack.translate import SHOWN_SUBTYPES, Malformed, Me, Post, moment_of, read_event
from spacebot.messaging.slack.web import Envelope

MISSED = 100  # messages of one conversation that are caught up with
HISTORY_PAGES = 10  # of a thread, on the way to its newest messages
ROOMS = 40  # conversations that are asked; Slack allows about fifty such calls a minute

Call = Callable[..., Awaitable[Mapping[str, Any]]]
Warn = Callable[[str, str], None]


def lane(envelope: Envelope) -> str:
    """The channel of an event; those of one channel keep their order."""
    payload = envelope.payload
    for name in ("event", "channel"):
        inner = payload.get(name)
        if isinstance(inner, Mapping):
            payload = inner if name == "event" else {"channel": inner.get("id")}
    return str(payload.get("channel") or payload.get("channel_id"))


def moment(envelope: Envelope) -> float:
    """When a message was said, or the one that was changed; when an event came, if it is of no message."""
    event = envelope.payload.get("event")
    event = event if isinstance(event, Mapping) else {}
    changed = event.get("message")
    ts = changed.get("ts") if isinstance(changed, Mapping) else event.get("deleted_ts") or event.get("ts")
    return _seconds(ts) or time.time() - (time.monotonic() - envelope.received_at)


def channel_of(target: Target) -> str | None:
    """The channel of a conversation."""
    channel = target.data.get("channel")
    return channel if isinstance(channel, str) and channel else None


class Past:
    """The way to what was said, of one connection."""

    def __init__(self, call: Call, me: Me, directory: Directory) -> None:
        self._call = call
        self._me = me
        self._directory = directory

    async def missed(self, warn: Warn, channel: str, targets: Sequence[Target]) -> list[Envelope]:
        """What people said behind the newest messages that were heard of a channel's conversations, in order.

        Args:
            targets: the channel's top level, and its threads, as far as they are known.

        Errors: DeliveryError.
        """
        found: dict[str, Envelope] = {}
        for target in targets:
            oldest = _behind(target)
            form: dict[str, Any] = {"channel": channel, "oldest": oldest, "inclusive": False, "limit": MISSED}
            if thread := target.data.get("thread_ts"):
                answer = await self._call("conversations.replies", form={**form, "ts": thread})
            else:
                answer = await self._call("conversations.history", form=form)
            team = target.data.get("team") or self._me.team_id
            for message in _messages(answer):
                if _seconds(message.get("ts")) <= float(oldest):
                    continue  # the root of a thread comes in any case
                payload = {"team_id": team, "event": {**message, "type": "message", "channel": channel}}
                try:
                    if isinstance(read_event(payload, self._me), Post):
                        found[str(message["ts"])] = Envelope("", "events_api", payload, 0)
                except Malformed as error:
                    warn("malformed message of the past skipped", str(error))
        return [found[ts] for ts in sorted(found, key=float)]

    async def lines(self, place: Place, message_id: str | None, limit: int) -> list[HistoryLine]:
        """What was said before a message, or lately, oldest first. Errors: DeliveryError."""
        # A press carries the time of the message that was pressed; what came since belongs to the past too.
        before = place.ts if message_id in (None, place.ts) else None
        form: dict[str, Any] = {"channel": place.channel, "inclusive": False, "latest": before}
        kept: deque[Mapping[str, Any]] = deque(maxlen=max(limit, 1))
        if place.thread is None:
            answer = await self._call("conversations.history", form={**form, "limit": min(limit, PAGE)})
            kept.extend(_messages(answer))
        else:  # oldest first, so the newest are at the end of the last page
            form |= {"ts": place.thread, "limit": PAGE}
            for _ in range(HISTORY_PAGES):
                answer = await self._call("conversations.replies", form=form)
                kept.extend(_messages(answer))
                form["cursor"] = (answer.get("response_metadata") or {}).get("next_cursor")
                if not form["cursor"]:
                    break
        shown = [m for m in kept if m.get("ts") != before and m.get("subtype") in SHOWN_SUBTYPES]
        lines = [await self._line(message) for message in shown]
        return sorted((line for line in lines if line is not None), key=lambda line: line.sent_at)

    async def _line(self, message: Mapping[str, Any]) -> HistoryLine | None:
        text, user = message.get("text"), message.get("user")
        files = [str(f.get("name") or "file") for f in message.get("files") or () if isinstance(f, Mapping)]
        words = await self._directory.readable(text if isinstance(text, str) else "")
        shown = "\n".join(part for part in (words, *(f"[file: {name}]" for name in files)) if part)
        try:
            sent_at = moment_of(str(message.get("ts")))
        except Malformed:
            return None
        is_self = user == self._me.user_id
        return HistoryLine(
            author=await self._directory.author(message),
            text=shown,
            sent_at=sent_at,
            is_bot=is_self or message.get("bot_id") is not None,
            is_self=is_self,
        ) if shown else None  # fmt: skip


def _messages(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = answer.get("messages")
    found = [m for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
    return sorted(found, key=lambda message: str(message.get("ts")))


def _behind(target: Target) -> str:
    """The timestamp behind which is new; of a press or command, which have none, all that is not too late."""
    late = time.time() - LATE_S
    return target.message_id or "" if _seconds(target.message_id) > late else f"{late:.6f}"


def _seconds(ts: object) -> float:
    """A timestamp of Slack in seconds; 0 when it is none."""
    try:
        moment_of(ts if isinstance(ts, str) else "")
    except Malformed:
        return 0.0
    return float(str(ts))
