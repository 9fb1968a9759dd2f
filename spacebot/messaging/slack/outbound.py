"""What goes out to Slack: messages in parts, drafts, reactions, files.

Every part carries the message's id as metadata, so that after a lost answer Slack itself can tell what arrived.

Flow:    adapter -> Outbound.send -> parts_of -> chat.postMessage, with fewer blocks when those are refused
Floor:   messaging
Source:  messaging spec 7, 14.2, 19.1, 19.21 and 19.k; docs.slack.dev on message metadata and on uploads
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from spacebot.base.errors import DeliveryError
from spacebot.base.telemetry import kv
from spacebot.messaging.messages import OutboundFile, OutboundKind, OutboundMessage, Target
from spacebot.messaging.slack.blocks import Block, Part, draft_of, parts_of
from spacebot.messaging.slack.emoji import reaction_name
from spacebot.messaging.slack.refusals import SlackRefusal
from spacebot.messaging.slack.translate import is_direct, place_in
from spacebot.messaging.text import LONG_TEXT, defuse_mass_mentions, replace_mentions, to_slack

log = logging.getLogger(__name__)

MAX_FILE = 100 * 1024 * 1024  # bytes; Slack itself takes 1 GB
COMMENT = 4_000  # characters of the words that go with a file
PAGES = 5  # of earlier messages, looked through for what may have arrived
PAGE = 200
EVENT = "spacebot_message"

_BLOCKS_REFUSED = {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"}
_THREAD_REFUSED = {"restricted_action_non_threadable_channel", "thread_not_found", "cannot_reply_to_message"}
_NOT_CHANGED = {"message_not_found", "cant_update_message", "edit_window_closed", "is_inactive", "cant_delete_message"}

Note = Callable[[str], Awaitable[None]]
T = TypeVar("T")


class Call(Protocol):
    """A call of the Web API."""

    def __call__(
        self, method: str, *, json: Mapping[str, Any] | None = None, form: Mapping[str, Any] | None = None
    ) -> Awaitable[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something goes.

    Args:
        thread: the thread that the answered message stands in.
        ts: of the message that is answered.
        user: who wrote that.
    """

    channel: str
    thread: str | None = None
    ts: str | None = None
    user: str | None = None


def place_of(target: Target, key: str) -> Place:
    """Read a target. Errors: DeliveryError, permanent, when it names no channel."""
    data = target.data
    channel, thread = data.get("channel"), data.get("thread_ts")
    if not isinstance(channel, str) or not channel:
        found = place_in(key, target.conversation_id)
        if found is None:
            raise DeliveryError("the conversation has no channel of this workspace", is_permanent=True)
        channel, thread = found
    ts, user = data.get("ts"), data.get("user")
    return Place(
        channel=channel,
        thread=thread if isinstance(thread, str) and thread else None,
        ts=ts if isinstance(ts, str) and ts else None,
        user=user if isinstance(user, str) and user else None,
    )


class Outbound:
    """Sends for one connection."""

    def __init__(self, call: Call, upload: Callable[[str, Path], Awaitable[None]], user_id: str) -> None:
        self._call = call
        self._upload = upload
        self._user_id = user_id
        self._threads = trio.CapacityLimiter(2)
        self._has_markdown = True  # until the workspace refuses such a block

    async def send(self, place: Place, message: OutboundMessage, note_sent: Note) -> None:
        """Deliver a message. Errors: DeliveryError."""
        match message.kind:
            case OutboundKind.REACTION:
                await self._react(place, message.text)
            case OutboundKind.FILE:
                await self._send_file(place, message, note_sent)
            case _:
                await self._send_parts(place, message, note_sent)

    async def draft(self, place: Place, text: str, draft_id: str | None) -> str:
        """Show a growing answer. Errors: DeliveryError."""
        part = await self._off_loop(draft_of, text)
        if draft_id is None:
            return await self._post(place.channel, place.thread, part, None)
        return await self._change(place.channel, draft_id, part, None)

    async def drop(self, place: Place, ts: str) -> None:
        """Take a message of our own back. Errors: DeliveryError."""
        try:
            await self._call("chat.delete", json={"channel": place.channel, "ts": ts})
        except SlackRefusal as error:
            if error.code not in _NOT_CHANGED:
                raise

    async def _off_loop(self, function: Callable[..., T], content: Any, **options: Any) -> T:
        """Read a long text in a thread, so that the loop goes on."""
        if _characters(content) <= LONG_TEXT:
            return function(content, **options)
        return await trio.to_thread.run_sync(lambda: function(content, **options), limiter=self._threads)

    async def _send_parts(self, place: Place, message: OutboundMessage, note_sent: Note) -> None:
        marked = message.wants_reply_mark and not is_direct(place.channel)
        parts = await self._off_loop(parts_of, message, addressee=place.user if marked else None)
        if not parts:
            raise DeliveryError("there is nothing to say in the message", is_permanent=True)
        name = message.rich.thread_name if message.rich is not None else None
        begins = bool(name) and place.thread is None
        thread = place.ts if begins else place.thread
        sent = list(message.sent)
        found = await self._arrived(place.channel, thread, place.ts, message) if message.is_doubtful else {}
        for number, part in enumerate(parts):
            if number < len(sent):
                continue
            if begins and thread is None and sent:
                thread = sent[0]  # nothing was answered, so the thread hangs on its own first part
            ts = found.get(number)
            if ts is None:
                metadata = {"event_type": EVENT, "event_payload": {"id": message.id, "part": number}}
                draft = message.draft_id if number == 0 else None
                ts = await self._place_part(place.channel, thread, part, metadata, draft, may_leave=begins)
            sent.append(ts)
            await note_sent(ts)

    async def _place_part(
        self,
        channel: str,
        thread: str | None,
        part: Part,
        metadata: Mapping[str, Any],
        draft_id: str | None,
        *,
        may_leave: bool,
    ) -> str:
        if draft_id is not None and may_leave:
            await self.drop(Place(channel=channel), draft_id)  # it grew at the top level; the answer goes into a thread
        elif draft_id is not None:
            try:
                return await self._change(channel, draft_id, part, metadata)
            except SlackRefusal as error:
                if error.code not in _NOT_CHANGED:
                    raise
        try:
            return await self._post(channel, thread, part, metadata)
        except SlackRefusal as error:
            if not may_leave or thread is None or error.code not in _THREAD_REFUSED:
                raise
            log.info("no thread can begin here; the answer goes to the channel", extra=kv(reason=error.code))
            return await self._post(channel, None, part, metadata)

    async def _post(self, channel: str, thread: str | None, part: Part, metadata: Mapping[str, Any] | None) -> str:
        body: dict[str, Any] = {"channel": channel, "text": part.text, "unfurl_links": False}
        if thread is not None:
            body["thread_ts"] = thread
        return await self._with_blocks("chat.postMessage", body, part, metadata)

    async def _change(self, channel: str, ts: str, part: Part, metadata: Mapping[str, Any] | None) -> str:
        return await self._with_blocks("chat.update", {"channel": channel, "ts": ts, "text": part.text}, part, metadata)

    async def _with_blocks(
        self, method: str, body: Mapping[str, Any], part: Part, metadata: Mapping[str, Any] | None
    ) -> str:
        """Call with the fullest blocks that Slack takes; returns the message's timestamp."""
        extra: dict[str, Any] = {} if metadata is None else {"metadata": metadata}
        for blocks in part.layouts(has_markdown=self._has_markdown):
            try:
                answer = await self._call(method, json={**body, **extra, "blocks": blocks})
            except SlackRefusal as error:
                if error.code not in _BLOCKS_REFUSED or not blocks:
                    raise
                self._note_refused(blocks, error)
                continue
            ts = answer.get("ts")
            if not isinstance(ts, str) or not ts:
                raise DeliveryError(f"Slack answered {method} without a timestamp", is_permanent=False)
            return ts
        raise DeliveryError("Slack took the message in no form", is_permanent=True)

    def _note_refused(self, blocks: list[Block], error: SlackRefusal) -> None:
        kinds = sorted({str(block.get("type")) for block in blocks})
        log.warning("blocks refused; sent with fewer", extra=kv(reason=error.code, kinds=",".join(kinds)))
        if kinds == ["markdown"] and error.code != "msg_blocks_too_long":
            self._has_markdown = False

    async def _arrived(
        self, channel: str, thread: str | None, since: str | None, message: OutboundMessage
    ) -> dict[int, str]:
        """Parts of a message that reached Slack in an attempt whose answer was lost: number -> timestamp."""
        found: dict[int, str] = {}
        for earlier in await self._since(channel, thread, since):
            metadata = earlier.get("metadata")
            if not isinstance(metadata, Mapping) or metadata.get("event_type") != EVENT:
                continue
            payload = metadata.get("event_payload")
            number = payload.get("part") if isinstance(payload, Mapping) and payload.get("id") == message.id else None
            if isinstance(number, int) and isinstance(earlier.get("ts"), str):
                found[number] = earlier["ts"]
        return found

    async def _since(self, channel: str, thread: str | None, since: str | None) -> list[Mapping[str, Any]]:
        """Own messages of a place since a moment, in no order."""
        form: dict[str, Any] = {"channel": channel, "limit": PAGE, "include_all_metadata": True}
        if since is not None:
            form["oldest"] = since
        if thread is not None:
            form["ts"] = thread
        own: list[Mapping[str, Any]] = []
        for _ in range(PAGES):
            try:
                answer = await self._call("conversations.replies" if thread else "conversations.history", form=form)
            except SlackRefusal as error:
                if not error.is_permanent:
                    raise
                log.warning("cannot look whether a message arrived; it is sent again", extra=kv(reason=str(error)))
                break
            messages = answer.get("messages") or ()
            own += [m for m in messages if isinstance(m, Mapping) and m.get("user") == self._user_id]
            form["cursor"] = (answer.get("response_metadata") or {}).get("next_cursor")
            if not form["cursor"]:
                break
        return own

    async def _react(self, place: Place, emoji: str) -> None:
        name = reaction_name(emoji)
        if name is None:
            raise DeliveryError(f"Slack has no name for {emoji[:20]!r}; use a common emoji", is_permanent=True)
        if place.ts is None:
            raise DeliveryError("there is no message to react to", is_permanent=True)
        try:
            await self._call("reactions.add", form={"channel": place.channel, "timestamp": place.ts, "name": name})
        except SlackRefusal as error:
            if error.code != "already_reacted":
                raise

    async def _send_file(self, place: Place, message: OutboundMessage, note_sent: Note) -> None:
        file = message.file
        if file is None or file.size_bytes <= 0:
            raise DeliveryError("there is no file to send, or it is empty", is_permanent=True)
        if file.size_bytes > MAX_FILE:
            raise DeliveryError(f"the file is larger than {MAX_FILE // 2**20} MiB", is_permanent=True)
        comment = await self._off_loop(_comment, message)
        count = 0
        if len(comment) > COMMENT:  # too much for a caption: the words go first
            await self._send_parts(place, message, note_sent)
            count, comment = len(await self._off_loop(parts_of, message)), ""
        if len(message.sent) > count:
            return
        number = await self._arrived_file(place, file) if message.is_doubtful else None
        if number is None:
            number = await self._put_file(place, file, comment)
        await note_sent(number)

    async def _put_file(self, place: Place, file: OutboundFile, comment: str) -> str:
        ticket = await self._call(
            "files.getUploadURLExternal", form={"filename": file.filename, "length": file.size_bytes}
        )
        number, url = ticket.get("file_id"), ticket.get("upload_url")
        if not isinstance(number, str) or not isinstance(url, str):
            raise DeliveryError("Slack gave no address for the file", is_permanent=False)
        await self._upload(url, file.path)
        form = {
            "files": json.dumps([{"id": number, "title": file.filename}]),
            "channel_id": place.channel,
            "initial_comment": comment,
            "thread_ts": place.thread,
        }
        await self._call("files.completeUploadExternal", form={name: value for name, value in form.items() if value})
        return number

    async def _arrived_file(self, place: Place, file: OutboundFile) -> str | None:
        for earlier in await self._since(place.channel, place.thread, place.ts):
            for known in earlier.get("files") or ():
                if isinstance(known, Mapping) and known.get("name") == file.filename and known.get("id"):
                    return str(known["id"])
        return None


def _comment(message: OutboundMessage) -> str:
    """What stands over a file."""
    return to_slack(replace_mentions(defuse_mass_mentions(message.text), message.mentions))


def _characters(content: str | OutboundMessage) -> int:
    """How much Markdown there is to read, that of cards included."""
    if isinstance(content, str):
        return len(content)
    cards = content.rich.cards if content.rich is not None else ()
    return len(content.text) + sum(
        len(card.description) + sum(len(field.name) + len(field.value) for field in card.fields) for card in cards
    )
