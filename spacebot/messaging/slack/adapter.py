"""Slack: one account, connected over Socket Mode.

An event is acknowledged when the intake has it on disk. What takes longer than Slack waits is not acknowledged at
all: Slack brings it again, and the second time it is known. A socket that closes is routine; the next one is open
before the old one is gone, so nothing is missed. After a longer break the channels are asked for what was said in it.

Flow:    Link -> Envelope -> CatchUp -> lane of its channel -> translate (with names) -> intake -> receipt
Floor:   messaging
Source:  messaging spec 2, 14.2 and 18.4
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio

from spacebot.base.errors import DeliveryError, ExternalError, StorageError
from spacebot.base.telemetry import kv
from spacebot.config.messaging import SlackAccount
from spacebot.messaging.adapter import EVENTS, Destination, Intake, Location, Traits
from spacebot.messaging.asyncio_bridge import AsyncioHost, Inlet
from spacebot.messaging.catch_up import Begun, CatchUp
from spacebot.messaging.lanes import run_lanes
from spacebot.messaging.messages import Attachment, HistoryLine, MessageDeletion, MessageEdit, OutboundMessage, Target
from spacebot.messaging.slack.blocks import MARKDOWN
from spacebot.messaging.slack.controls import inbound_press, inbound_slash, read_presses, read_slash
from spacebot.messaging.slack.directory import Directory
from spacebot.messaging.slack.outbound import MAX_FILE, Outbound, place_of
from spacebot.messaging.slack.past import ROOMS, Past, channel_of, lane, moment
from spacebot.messaging.slack.refusals import CREDENTIALS, SlackRefusal
from spacebot.messaging.slack.translate import (
    FILE_NAME,
    Edit,
    Ended,
    Malformed,
    Me,
    Post,
    conversation_of,
    inbound_post,
    is_direct,
    moment_of,
    read_event,
)
from spacebot.messaging.slack.web import Envelope, Link, open_link

log = logging.getLogger(__name__)

RECEIPT_S = 2.5  # Slack waits three seconds; later receipts are not believed
WINDOW_S = 600.0  # in which a message is recognised that comes as a mention too
WINDOW_SIZE = 20_000
RECONNECTS = (0.0, 1.0, 4.0)  # seconds before a new attempt; then the supervisor takes over
SHORT_LIFE_S = 1.0  # of a socket; after some of them in a row the next waits a moment
FORGIVEN = 5
SHORT_LIVES = 30  # in a row; then the supervisor takes over
GAP_S = 60.0  # without a socket, after which Slack may have given up to bring what nobody acknowledged
RETRY_S = (0.5, 2.0, 5.0)  # pauses between attempts to hand in what was fetched, while the disk fails
EDIT_S = 1.2  # chat.update allows about fifty a minute
STATUS_S = 30.0  # a status goes by itself after two minutes
STATUSES = 1_000
NO_STATUS = {"missing_scope", "no_permission", "unknown_method", "not_allowed_token_type", "method_deprecated"}
FILE_HOSTS = frozenset({"files.slack.com"})


@dataclass(frozen=True, slots=True)
class _Connected:
    """What there is while the account is connected."""

    link: Link
    me: Me
    directory: Directory
    outbound: Outbound
    intake: Intake


class SlackAdapter:
    """One account of Slack.

    Args:
        key: runtime name.
        host: where the library's loop runs.
        reconnects: seconds before each attempt to open the next socket.
        receipt_s: seconds after which an event is not acknowledged any more.
        gap_s: seconds without a socket, after which what was said meanwhile is fetched.
        retry_s: pauses between attempts to hand in what was fetched, while the disk fails.
    """

    def __init__(
        self,
        account: SlackAccount,
        *,
        key: str,
        host: AsyncioHost,
        reconnects: Sequence[float] = RECONNECTS,
        receipt_s: float = RECEIPT_S,
        gap_s: float = GAP_S,
        retry_s: Sequence[float] = RETRY_S,
    ) -> None:
        self._account = account
        self._key = key
        self._host = host
        self._reconnects = tuple(reconnects)
        self._receipt_s = receipt_s
        self._gap_s = gap_s
        self._retry_s = tuple(retry_s)
        self._connected: _Connected | None = None
        self._end: Callable[[DeliveryError], None] = lambda error: None
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._statuses: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._has_status = True  # until Slack says that it may not be set
        self._warned: set[str] = set()

    @property
    def key(self) -> str:
        """Its runtime name."""
        return self._key

    @property
    def platform(self) -> str:
        """Its platform."""
        return "slack"

    @property
    def traits(self) -> Traits:
        """What it can do."""
        return Traits(
            max_characters=MARKDOWN,
            typing_every_s=STATUS_S if self._has_status else 0.0,
            edit_every_s=EDIT_S,
            max_file_bytes=MAX_FILE,
            can_react=True,
            can_thread=True,
            reads_history=True,
            hint="slack",
        )

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected. Errors: DeliveryError; permanent for credentials and rights."""
        async with open_link(self._account, self._host) as link:
            me = await self._sign_in(link)
            send, receive = trio.open_memory_channel[Envelope | Begun](EVENTS)
            onwards, in_order = trio.open_memory_channel[Envelope](0)
            envelopes: trio.MemorySendChannel[Envelope] = send
            inlet = self._host.inlet(envelopes)
            await send.send(Begun())
            number = await link.connect(await link.open_socket_url(), inlet)
            self._connected = self._connect(link, me, intake)
            failures: list[DeliveryError] = []
            try:
                async with receive, trio.open_nursery() as nursery:

                    def end(error: DeliveryError) -> None:
                        failures.append(error)
                        nursery.cancel_scope.cancel()

                    self._end = end
                    nursery.start_soon(self._catch_up(intake).run, receive, onwards)
                    nursery.start_soon(run_lanes, in_order, self._handle, lane)
                    nursery.start_soon(self._stay_connected, link, number, inlet, send)
                    task_status.started(f"@{me.name} in {me.team_name}")
            finally:
                self._connected = None
                self._end = lambda error: None
            raise failures[0] if failures else DeliveryError("Slack's events ended", is_permanent=False)

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        """Deliver a message. Errors: DeliveryError."""
        place = place_of(target, self._key)
        await self._ready().outbound.send(place, message, note_sent)
        if place.thread is not None:
            self._statuses.pop((place.channel, place.thread), None)  # a message ends the status

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Show the whole text so far. Errors: DeliveryError."""
        return await self._ready().outbound.draft(place_of(target, self._key), text, draft_id)

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """Remove a draft. Errors: DeliveryError."""
        await self._ready().outbound.drop(place_of(target, self._key), draft_id)

    async def show_typing(self, target: Target) -> None:
        """Show a status, which Slack has in threads only. Best effort."""
        place = place_of(target, self._key)
        if place.thread is None or not self._has_status:
            return
        if await self._set_status(place.channel, place.thread, "is typing…"):
            self._statuses[place.channel, place.thread] = None
            if len(self._statuses) > STATUSES:
                self._statuses.popitem(last=False)

    async def stop_typing(self, target: Target) -> None:
        """Take a status away that no message ended. Best effort."""
        place = place_of(target, self._key)
        if place.thread is not None and (place.channel, place.thread) in self._statuses:
            self._statuses.pop((place.channel, place.thread))
            await self._set_status(place.channel, place.thread, "")

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """What was said before. Errors: DeliveryError."""
        connected = self._ready()
        past = Past(self._call, connected.me, connected.directory)
        return await past.lines(place_of(target, self._key), target.message_id, limit)

    async def locate(self, attachment: Attachment) -> Location:
        """Where a file is, with the token that it needs. Errors: DeliveryError."""
        url = attachment.url
        if url.startswith(FILE_NAME):
            answer = await self._call("files.info", form={"file": url.removeprefix(FILE_NAME)})
            file = answer.get("file")
            found = file.get("url_private") if isinstance(file, Mapping) else None
            if not isinstance(found, str):
                raise DeliveryError("Slack does not give the file's address", is_permanent=True)
            url = found
        own = urlsplit(self._account.api_url).netloc if self._account.api_url else None
        hosts = FILE_HOSTS if own is None else FILE_HOSTS | {own}
        headers = {"Authorization": f"Bearer {self._account.bot_token.get_secret_value()}"}
        parts = urlsplit(url)
        is_own = own is not None and parts.netloc == own
        is_ours = is_own or (parts.scheme == "https" and parts.netloc in hosts)
        return Location(
            url=url,
            headers=headers if is_ours else {},
            hosts=hosts if is_ours else frozenset(),
            may_be_private=is_own,
        )

    async def resolve(self, address: str) -> Destination:
        """The place behind `C…`, `TEAM:C…` or `dm:U…`, each with `#thread:TS` if wanted. Errors: DeliveryError."""
        me = self._ready().me
        base, _, thread = address.strip().partition("#thread:")
        first, _, last = base.rpartition(":")
        if not last or not last.isalnum() or first not in ("", "dm", me.team_id):
            text = f"{address!r} is no place of {me.team_name}: write a channel id, team:channel or dm:user"
            raise DeliveryError(text, is_permanent=True)
        if thread:
            try:
                moment_of(thread)
            except Malformed as error:
                raise DeliveryError(f"{thread!r} is no thread: write its timestamp", is_permanent=True) from error
        if first == "dm":
            answer = await self._call("conversations.open", form={"users": last})
        else:
            answer = await self._call("conversations.info", form={"channel": last})
        info = answer.get("channel")
        channel = info.get("id") if isinstance(info, Mapping) else None
        if not isinstance(channel, str) or not isinstance(info, Mapping):
            raise DeliveryError(f"Slack does not say which channel {address!r} is", is_permanent=False)
        name = await self._place_name(info, last if first == "dm" else info.get("user"))
        data = {"team": me.team_id, "channel": channel} | ({"thread_ts": thread} if thread else {})
        return Destination(
            conversation_id=conversation_of(self._key, me.team_id, channel, thread or None),
            name=name or channel,
            is_direct=is_direct(channel),
            data=data,
        )

    async def check(self) -> str:
        """Ask Slack who we are. Errors: DeliveryError."""
        answer = await self._call("auth.test")
        return f"@{answer.get('user')} in {answer.get('team')}"

    async def _sign_in(self, link: Link) -> Me:
        answer = await link.call("auth.test")
        user, team = answer.get("user_id"), answer.get("team_id")
        if not answer.get("bot_id"):
            text = "bot_token is not a bot's: take the Bot User OAuth Token, which begins with xoxb-"
            raise DeliveryError(text, is_permanent=True)
        if not isinstance(user, str) or not isinstance(team, str):
            raise DeliveryError("Slack does not say who the bot is", is_permanent=False)
        return Me(
            key=self._key,
            team_id=team,
            team_name=str(answer.get("team") or team),
            user_id=user,
            bot_id=str(answer["bot_id"]),
            name=str(answer.get("user") or user),
            is_bot_heard=self._account.allow_bot_messages,
        )

    def _connect(self, link: Link, me: Me, intake: Intake) -> _Connected:
        async def look_up(method: str, form: Mapping[str, Any]) -> Mapping[str, Any]:
            return await self._call(method, form=form)

        return _Connected(link, me, Directory(look_up, me), Outbound(self._call, link.upload, me.user_id), intake)

    def _catch_up(self, intake: Intake) -> CatchUp[Envelope]:
        async def heard() -> Sequence[Target]:
            return (await intake.last_heard(self._key))[:ROOMS]

        connected = self._ready()
        past = Past(self._call, connected.me, connected.directory)
        fetch = partial(past.missed, self._warn)
        return CatchUp(self._key, heard=heard, place=channel_of, fetch=fetch, room=lane, moment=moment)

    async def _stay_connected(
        self, link: Link, number: int, inlet: Inlet[Envelope], begun: trio.MemorySendChannel[Begun]
    ) -> None:
        short_lives = 0
        try:
            while True:
                opened_at = trio.current_time()
                reason = await link.over(number)
                over_at = trio.current_time()
                log.info("socket over", extra=kv(adapter=self._key, reason=reason))
                short_lives = short_lives + 1 if over_at - opened_at < SHORT_LIFE_S else 0
                if short_lives > SHORT_LIVES:
                    raise DeliveryError("Slack closes every socket at once", is_permanent=False)
                if reason == "too_many_websockets":
                    await link.close_socket(number)  # it has to make room for the next
                await trio.sleep(self._reconnects[-1] * max(0, short_lives - FORGIVEN) / SHORT_LIVES)
                following = await self._reopen(link, inlet, begun, over_at)
                await link.close_socket(number)
                number = following
        except DeliveryError as error:
            self._end(error)
        except ExternalError as error:
            self._end(DeliveryError(str(error), is_permanent=False))

    async def _reopen(
        self, link: Link, inlet: Inlet[Envelope], begun: trio.MemorySendChannel[Begun], over_at: float
    ) -> int:
        for attempt, pause in enumerate(self._reconnects, 1):
            await trio.sleep(pause)
            try:
                url = await link.open_socket_url()
                if trio.current_time() - over_at >= self._gap_s:
                    await begun.send(Begun())
                return await link.connect(url, inlet)
            except DeliveryError as error:
                if error.is_permanent or attempt == len(self._reconnects):
                    raise
                await trio.sleep(error.retry_after_s or 0)
        raise AssertionError("there is at least one attempt")

    async def _handle(self, envelope: Envelope) -> None:
        if not envelope.id:
            await self._handle_missed(envelope)
            return
        connected = self._ready()
        answer: Mapping[str, Any] | None = None
        try:
            match envelope.type:
                case "events_api":
                    await self._take_event(connected, envelope.payload)
                case "slash_commands":
                    answer = await self._take_slash(connected, envelope.payload)
                case "interactive":
                    await self._take_presses(connected, envelope.payload)
                case _:
                    self._warn("event of an unknown kind", envelope.type[:40])
        except Malformed as error:
            self._warn("malformed event skipped", str(error))
        except StorageError as error:
            log.warning("event not taken; it comes again", extra=kv(adapter=self._key, reason=str(error)))
            return
        except Exception as error:  # boundary: one event must not end the connection; it comes again
            log.error("event not dealt with", extra=kv(adapter=self._key), exc_info=error)
            return
        if envelope.type == "events_api" and time.monotonic() - envelope.received_at > self._receipt_s:
            log.info("receipt too late; the event comes again", extra=kv(adapter=self._key))
            return
        try:
            await connected.link.acknowledge(envelope, answer)
        except (DeliveryError, ExternalError):
            log.info("receipt not sent; the connection is over", extra=kv(adapter=self._key))

    async def _handle_missed(self, envelope: Envelope) -> None:
        """Take a message that was fetched; nobody brings it again."""
        for pause in (*self._retry_s, None):
            try:
                await self._take_event(self._ready(), envelope.payload)
                return
            except StorageError as error:
                if pause is None:
                    log.error("event lost, the disk fails", extra=kv(adapter=self._key, reason=str(error)))
                    return
                log.warning("event not taken; again soon", extra=kv(adapter=self._key, reason=str(error)))
                await trio.sleep(pause)
            except Exception as error:  # boundary: one message must not end the connection
                log.error("event not dealt with", extra=kv(adapter=self._key), exc_info=error)
                return

    async def _take_event(self, connected: _Connected, payload: Mapping[str, Any]) -> None:
        match read_event(payload, connected.me):
            case Post() as post:
                if not self._is_seen(post):
                    names = await connected.directory.names_for(
                        post.channel, post.text, user=post.user, thread=post.thread
                    )
                    await connected.intake.take(inbound_post(post, names, connected.me))
                    self._note_seen(post)
            case Edit() as edit:
                await connected.intake.edit(
                    MessageEdit(
                        adapter=self._key,
                        conversation_id=conversation_of(self._key, edit.team, edit.channel, edit.thread),
                        platform_id=edit.ts,
                        text=await connected.directory.readable(edit.text),
                    )
                )
            case MessageDeletion() as deletion:
                await connected.intake.delete(deletion)
            case Ended() as ended:
                await self._look_whether_ended(connected, ended)

    async def _look_whether_ended(self, connected: _Connected, ended: Ended) -> None:
        """Believe the end only when the token is refused: such an event may come late, after a new installation."""
        try:
            await connected.link.call("auth.test")
        except SlackRefusal as error:
            if error.code in CREDENTIALS:
                self._end(DeliveryError(ended.reason, is_permanent=True))
        except DeliveryError:
            log.info("cannot look whether the token still works; the next call tells", extra=kv(adapter=self._key))

    async def _take_slash(self, connected: _Connected, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
        slash = read_slash(payload, self._account.commands, connected.me)
        if not slash.is_known:
            text = f"{slash.command} is not set up here: name it under [messaging.slack] commands."
            return {"response_type": "ephemeral", "text": text}
        names = await connected.directory.names_for(slash.channel, user=slash.user)
        await connected.intake.take(inbound_slash(slash, names, connected.me, datetime.now(UTC)))
        return None

    async def _take_presses(self, connected: _Connected, payload: Mapping[str, Any]) -> None:
        for press in read_presses(payload, connected.me):
            names = await connected.directory.names_for(press.channel, user=press.user)
            await connected.intake.take(inbound_press(press, names, connected.me, datetime.now(UTC)))

    def _is_seen(self, post: Post) -> bool:
        at = self._seen.get((post.channel, post.ts))
        return at is not None and trio.current_time() - at < WINDOW_S

    def _note_seen(self, post: Post) -> None:
        self._seen[post.channel, post.ts] = trio.current_time()
        if len(self._seen) > WINDOW_SIZE:
            self._seen.popitem(last=False)

    async def _place_name(self, info: Mapping[str, Any], user: object) -> str:
        name = info.get("name")
        if isinstance(name, str) and name:
            return f"#{name}"
        person = await self._ready().directory.person(user) if isinstance(user, str) else None
        return person.name if person else ""

    async def _set_status(self, channel: str, thread: str, status: str) -> bool:
        body = {"channel_id": channel, "thread_ts": thread, "status": status}
        try:
            await self._call("assistant.threads.setStatus", json=body)
        except DeliveryError as error:
            if isinstance(error, SlackRefusal) and error.code in NO_STATUS:
                self._has_status = False
                log.info("no status is shown while answers are written", extra=kv(reason=str(error)))
            return False
        return True

    async def _call(
        self, method: str, *, json: Mapping[str, Any] | None = None, form: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        given = None if form is None else {name: value for name, value in form.items() if value is not None}
        try:
            return await self._ready().link.call(method, json=json, form=given)
        except SlackRefusal as error:
            if error.code in CREDENTIALS:
                self._end(error)
            raise
        except ExternalError as error:
            raise DeliveryError(str(error), is_permanent=False) from error

    def _ready(self) -> _Connected:
        if self._connected is None:
            raise DeliveryError("Slack is not connected just now", is_permanent=False)
        return self._connected

    def _warn(self, what: str, reason: str) -> None:
        """Say once per kind what was skipped."""
        if reason not in self._warned and len(self._warned) < 100:
            self._warned.add(reason)
            log.warning(what, extra=kv(adapter=self._key, reason=reason))
