"""Twitch: its chat over IRC with tags, on Trio.

One message at a time is on its way out, because the chat answers each with a USERSTATE (it stands there) or a NOTICE
(it does not), and neither says which one it means. Sending keeps below the account's limits; beyond them Twitch
mutes an account for half an hour.

Flow:    connect -> sign in -> join; lines -> events -> lanes -> intake; send -> pace -> line -> answer
Floor:   messaging
Source:  messaging spec 14.4, 18.6, 19 h and i; Twitch IRC and rate limit documentation
"""

import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.ids import new_uuid
from spacebot.config.messaging import TwitchAccount
from spacebot.messaging.adapter import EVENTS, Destination, Intake, Location, Traits
from spacebot.messaging.irc import Line
from spacebot.messaging.lanes import run_lanes
from spacebot.messaging.messages import (
    Attachment,
    HistoryLine,
    InboundMessage,
    MessageDeletion,
    OutboundMessage,
    Target,
)
from spacebot.messaging.text import LONG_TEXT
from spacebot.messaging.twitch_link import Link, Window, lost
from spacebot.messaging.twitch_translate import (
    MAX_CHARACTERS,
    PLATFORM,
    Listener,
    clean_login,
    is_about_sending,
    room_of,
    to_error,
    to_inbound,
    to_line,
    to_texts,
)

log = logging.getLogger(__name__)

CONNECT_S = 20.0  # for the connection, and again for signing in
PING_EVERY_S = 60.0
ANSWER_S = 10.0  # from a message to its USERSTATE or NOTICE
JOIN_S = 30.0  # from the last JOIN until a room that did not answer is told of
PAUSES_S = (1.0, 2.0, 4.0)  # between attempts to hand in an event
LONGEST_GAP_S = 10.0  # that a send waits for a slow room; longer pauses are the outbox's
GAP_S = 1.2  # between two messages in one room, for who is not a moderator there
KEPT_IDS = 200  # of a room, to know what a moderator takes back

JOINS = (20, 11.0)  # 20 in 10 s, with a margin
SENDS = (18, 30.0)  # 20 in 30 s, with a margin
MODERATOR_SENDS = (90, 30.0)  # 100 in 30 s

_AUTHENTICATION = ("login authentication failed", "improperly formatted auth", "login unsuccessful", "invalid nick")
_KNOWN = frozenset(
    {"CAP", "GLOBALUSERSTATE", "USERNOTICE", "WHISPER", "HOSTTARGET", "PART", "JOIN", "ROOMSTATE"}
)  # nothing for us

_Event = InboundMessage | MessageDeletion


class TwitchAdapter:
    """One account in the chat.

    Args:
        tls: how to trust the server; None means the machine's certificates.
    """

    platform = PLATFORM
    traits = Traits(max_characters=MAX_CHARACTERS, hint="twitch")

    def __init__(self, account: TwitchAccount, *, key: str, tls: ssl.SSLContext | None = None) -> None:
        self.key = key
        self._account = account
        self._tls = tls
        login = clean_login(account.username)
        self._listener = Listener(key=key, login=login or "", trigger_prefix=account.trigger_prefix or "")
        self._rooms = tuple(dict.fromkeys(room for name in account.channels if (room := clean_login(name))))
        self._link: Link | None = None
        self._joins = Window()
        self._sends = Window()
        self._sending = trio.Lock()
        self._last_in: dict[str, float] = {}  # room -> when we spoke there
        self._recent: dict[str, deque[tuple[str, str]]] = {}  # room -> login and id of what was said
        self._warned: set[str] = set()

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Adapter`. Returns when the server asks to connect anew."""
        if not self._listener.login:
            raise DeliveryError(
                f"{self._account.username[:40]!r} is no Twitch login; put the bot account's login into "
                "[messaging.twitch] username",
                is_permanent=True,
            )
        stream = await self._connect()
        link = Link(stream)
        try:
            await self._sign_in(link)
            self._link = link
            task_status.started(self._listener.login)
            ending = await self._be_connected(link, intake)
        finally:
            self._link = None
            link.fail(lost())
            await trio.aclose_forcefully(stream)
        if ending is not None:
            raise ending

    async def _connect(self) -> trio.abc.Stream:
        place = f"{self._account.host}:{self._account.port}"
        try:
            with trio.fail_after(CONNECT_S):
                if not self._account.tls:
                    return await trio.open_tcp_stream(self._account.host, self._account.port)
                context = self._tls or await trio.to_thread.run_sync(ssl.create_default_context)
                secured = await trio.open_ssl_over_tcp_stream(
                    self._account.host, self._account.port, ssl_context=context
                )
                try:
                    await secured.do_handshake()
                except BaseException:
                    await trio.aclose_forcefully(secured)
                    raise
                return secured
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            reason: BaseException = error.__cause__ or error
            while isinstance(reason, BaseExceptionGroup):  # one for each address that was tried
                reason = reason.exceptions[0]
            why = "no answer in time" if isinstance(reason, trio.TooSlowError) else str(reason)
            raise DeliveryError(
                f"{place} cannot be reached ({why}); check the network, and host, port and tls in [messaging.twitch]",
                is_permanent=False,
            ) from error

    async def _sign_in(self, link: Link) -> None:
        token = self._account.oauth_token.get_secret_value().strip().removeprefix("oauth:")
        try:
            await link.write(Line("CAP", ("REQ", "twitch.tv/tags twitch.tv/commands")))
            await link.write(Line("PASS", (f"oauth:{token}",)))
            await link.write(Line("NICK", (self._listener.login,)))
        except ValueError:
            raise _refused_token("it holds line ends") from None
        has_tags = is_known = False
        with trio.move_on_after(CONNECT_S):
            while not (has_tags and is_known):
                line = await link.next()
                if line is None:
                    raise lost()
                match line.command:
                    case "CAP":
                        if line.param(1) != "ACK":
                            raise DeliveryError("the chat server knows no tags; it is not Twitch's", is_permanent=True)
                        has_tags = True
                    case "001":
                        is_known = True
                    case "PING":
                        await link.write(Line("PONG", line.params[-1:]))
                    case "NOTICE":
                        raise _to_refusal(line) or DeliveryError(
                            f"Twitch refused to sign in: {line.param(1)[:200]}", is_permanent=False
                        )
            return
        raise DeliveryError(f"Twitch did not answer the sign-in within {CONNECT_S:.0f} s", is_permanent=False)

    async def _be_connected(self, link: Link, intake: Intake) -> DeliveryError | None:
        """Returns why the connection ended, after all that was heard before has been handed in."""
        async with trio.open_nursery() as nursery:
            events, heard = trio.open_memory_channel[_Event](EVENTS)
            nursery.start_soon(run_lanes, heard, partial(self._hand_in, intake), lambda event: event.conversation_id)
            async with events, trio.open_nursery() as connected:
                connected.start_soon(self._join, link)
                connected.start_soon(self._keep_alive, link)
                ending = await self._read(link, events)
                connected.cancel_scope.cancel()
        return ending

    async def _join(self, link: Link) -> None:
        try:
            for room in self._rooms:
                await self._joins.wait(*JOINS)
                link.joining.add(room)
                await link.write(Line("JOIN", (f"#{room}",)))
        except DeliveryError as error:
            link.fail(error)
            return
        await trio.sleep(JOIN_S)
        for room in sorted(link.joining):
            log.warning("Twitch channel not joined", extra={"kv": {"channel": room, "hint": "does the login exist?"}})

    async def _keep_alive(self, link: Link) -> None:
        try:
            while True:
                await trio.sleep(PING_EVERY_S)
                await link.ping()
        except DeliveryError as error:
            link.fail(error)

    async def _read(self, link: Link, events: trio.MemorySendChannel[_Event]) -> DeliveryError | None:
        try:
            while (line := await link.next()) is not None:
                if line.command == "RECONNECT":
                    return None
                event = await self._understand(link, line)
                if event is not None:
                    with link.being_busy():
                        await events.send(event)
        except DeliveryError as error:
            link.fail(error)
        return link.failure or lost()

    async def _understand(self, link: Link, line: Line) -> _Event | None:
        room = room_of(line)
        try:
            match line.command:
                case "PRIVMSG":
                    return self._note(to_inbound(line, self._listener))
                case "CLEARMSG":
                    return self._deletion(room, [line.tags.get("target-msg-id", "")])
                case "CLEARCHAT":
                    return self._deletion(room, self._forget(room, line.param(1).lower()))
                case "PING":
                    await link.write(Line("PONG", line.params[-1:]))
                case "PONG":
                    link.note_pong()
                case "NOTICE":
                    self._on_notice(link, room, line)
                case "USERSTATE":
                    link.note_state(room, line)
                case "ROOMSTATE" if "slow" in line.tags:
                    link.slow_s[room] = float(int(line.tags["slow"]))
                case "JOIN" if line.nick == self._listener.login:
                    link.rooms.add(room)
                case "UNREADABLE":
                    self._warn_once(line.command, line.param(0))
                case command if command not in _KNOWN and not command.isdigit():
                    self._warn_once(command, "unknown command")
        except ValueError as error:
            self._warn_once(line.command, str(error))
        return None

    def _note(self, message: InboundMessage | None) -> InboundMessage | None:
        if message is not None and message.platform_id is not None:
            recent = self._recent.setdefault(message.room_ids[0], deque(maxlen=KEPT_IDS))
            recent.append((message.metadata["login"], message.platform_id))
        return message

    def _forget(self, room: str, login: str) -> list[str]:
        """Ids of what a person said lately in a room; of everybody, without a login."""
        recent = self._recent.get(room, ())
        gone = [message_id for writer, message_id in recent if not login or writer == login]
        self._recent[room] = deque((item for item in recent if item[1] not in set(gone)), maxlen=KEPT_IDS)
        return gone

    def _deletion(self, room: str, ids: list[str]) -> MessageDeletion | None:
        known = tuple(filter(None, ids))
        if not room or not known:
            return None
        return MessageDeletion(adapter=self.key, conversation_id=self._listener.conversation(room), platform_ids=known)

    def _on_notice(self, link: Link, room: str, line: Line) -> None:
        """Errors: DeliveryError when it ends the connection."""
        notice_id, text = line.tags.get("msg-id", ""), line.param(1)
        if not room:
            if refusal := _to_refusal(line):
                raise refusal
            log.info("Twitch says", extra={"kv": {"text": text[:200]}})
        elif not is_about_sending(notice_id):
            log.debug("Twitch room notice", extra={"kv": {"channel": room, "notice": notice_id}})
        elif not link.settle(room, to_error(notice_id, room, text, slow_s=link.slow_s.get(room, 0.0))):
            link.joining.discard(room)
            log.warning("Twitch refuses a channel", extra={"kv": {"channel": room, "notice": notice_id}})

    def _warn_once(self, kind: str, reason: str) -> None:
        if kind not in self._warned and len(self._warned) < 100:
            self._warned.add(kind)
            log.warning("Twitch event skipped", extra={"kv": {"kind": kind[:40], "reason": reason[:200]}})

    async def _hand_in(self, intake: Intake, event: _Event) -> None:
        for pause_s in (*PAUSES_S, None):
            try:
                if isinstance(event, InboundMessage):
                    await intake.take(event)
                else:
                    await intake.delete(event)
                return
            except StorageError as error:
                if pause_s is None:
                    kv = {"conversation": event.conversation_id}
                    log.error("a Twitch event is lost: it could not be kept", exc_info=error, extra={"kv": kv})
                    return
                await trio.sleep(pause_s)

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        """See `Adapter`. A reply mark stands on the first line only."""
        room = self._room(target)
        answers = target.message_id or (target.data.get("message_id") if message.wants_reply_mark else None)
        is_long = len(message.text) > LONG_TEXT
        texts = await trio.to_thread.run_sync(to_texts, message) if is_long else to_texts(message)
        for index, text in enumerate(texts):
            if index >= len(message.sent):
                line = to_line(room, text, answers=str(answers) if answers and index == 0 else None)
                await note_sent(await self._say(room, line))

    async def _say(self, room: str, line: Line) -> str:
        link = self._connected()
        if room not in link.moderated:
            await self._wait_for_room(link, room)
        await self._sends.wait(*(MODERATOR_SENDS if room in link.moderated else SENDS))
        async with self._sending:
            self._last_in[room] = monotonic_s()
            with link.expecting(room) as answer:
                await link.write(line)
                with trio.move_on_after(ANSWER_S):
                    await answer.came.wait()
        if answer.error is not None:
            raise answer.error
        if not answer.came.is_set():
            raise DeliveryError(f"Twitch did not confirm a message in #{room}", is_permanent=False)
        return answer.id or new_uuid()

    async def _wait_for_room(self, link: Link, room: str) -> None:
        gap_s = max(GAP_S, link.slow_s.get(room, 0.0))
        left_s = self._last_in.get(room, -gap_s) + gap_s - monotonic_s()
        if left_s > LONGEST_GAP_S:
            raise DeliveryError(
                f"#{room} is in slow mode; the bot may speak again in {left_s:.0f} s",
                is_permanent=False,
                retry_after_s=left_s,
            )
        if left_s > 0:
            await trio.sleep(left_s)

    def _connected(self) -> Link:
        if self._link is None or self._link.failure is not None:
            raise DeliveryError("not connected to Twitch at the moment", is_permanent=False)
        return self._link

    def _room(self, target: Target) -> str:
        named = target.data.get("room") or target.conversation_id.removeprefix(f"{self.key}:")
        room = clean_login(str(named))
        if room is None:
            raise DeliveryError(f"{str(named)[:60]!r} is no Twitch channel", is_permanent=True)
        return room

    async def show_typing(self, target: Target) -> None:
        """The chat has no such sign."""

    async def stop_typing(self, target: Target) -> None:
        """The chat has no such sign."""

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Messages cannot be edited. Errors: DeliveryError, always."""
        raise DeliveryError("Twitch messages cannot be edited", is_permanent=True)

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """There are no drafts."""

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """The chat keeps none."""
        return ()

    async def locate(self, attachment: Attachment) -> Location:
        """Messages carry no files. Errors: DeliveryError, always."""
        raise DeliveryError("Twitch messages carry no files", is_permanent=True)

    async def resolve(self, address: str) -> Destination:
        """A channel's login, with or without `#`."""
        room = clean_login(address)
        if room is None or room not in self._rooms:
            raise DeliveryError(
                f"{address[:60]!r} is none of the bot's channels; add its login to [messaging.twitch] channels",
                is_permanent=True,
            )
        return Destination(
            conversation_id=self._listener.conversation(room), name=f"#{room}", is_direct=False, data={"room": room}
        )

    async def check(self) -> str:
        """See `Adapter`: asks the server for a sign of life."""
        link = self._connected()
        asked = monotonic_s()
        await link.ping()
        took_ms = (monotonic_s() - asked) * 1000
        rooms = ", ".join(f"#{room}" for room in sorted(link.rooms)) or "no channel"
        missing = "".join(f", not in #{room}" for room in self._rooms if room not in link.rooms)
        return f"signed in as {self._listener.login}, answered within {took_ms:.0f} ms, in {rooms}{missing}"


def _to_refusal(line: Line) -> DeliveryError | None:
    """What a NOTICE without a room means for our being signed in; None for nothing."""
    text = line.param(1)
    return _refused_token(text) if text.lower().startswith(_AUTHENTICATION) else None


def _refused_token(reason: str) -> DeliveryError:
    return DeliveryError(
        f"Twitch refused the token ({reason[:100]}): make a new one with chat:read and chat:edit for this very login "
        "and put it into [messaging.twitch] oauth_token",
        is_permanent=True,
    )
