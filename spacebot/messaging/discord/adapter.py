"""One Discord bot account as the rest of the program sees it.

What Discord sends again after a break comes in as if there had been none, and what it sends twice is recognised by its
id at the door. What it does not send again, because a new session had to begin, is fetched, room by room. A part that
may have arrived before is sent with the same mark again, by which Discord knows it for some minutes, after its channel
was searched for it.

Flow:    Link -> inlet -> CatchUp -> lanes -> Intake; Adapter.send -> shape -> Link.create | edit | answer
Floor:   messaging
Source:  messaging spec 14.1 and 18.3; pitfalls 11, 22, 24, 25, 42, c, k and o of its section 19
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import trio

from spacebot.base.errors import DeliveryError, StorageError
from spacebot.base.ids import ConversationId, new_uuid
from spacebot.base.telemetry import kv
from spacebot.config.messaging import DiscordAccount
from spacebot.messaging.adapter import LATE_S, Destination, Intake, Location, Receipt, Traits
from spacebot.messaging.asyncio_bridge import AsyncioHost
from spacebot.messaging.catch_up import Begun, CatchUp
from spacebot.messaging.discord import outbound, translate
from spacebot.messaging.discord.link import Event, Link, Recent, Said
from spacebot.messaging.discord.outbound import Arrived, Part
from spacebot.messaging.discord.refusals import explain
from spacebot.messaging.discord.translate import Credential, Deletion, Room
from spacebot.messaging.lanes import run_lanes
from spacebot.messaging.messages import (
    Attachment,
    HistoryLine,
    InboundMessage,
    MessageDeletion,
    MessageEdit,
    OutboundKind,
    OutboundMessage,
    Target,
)
from spacebot.messaging.names import clean_name
from spacebot.messaging.text import LONG_TEXT, replace_mentions, to_discord

log = logging.getLogger(__name__)

QUEUE = 4096  # events that wait; the library cannot make the gateway wait, so beyond them they are dropped and counted
ROOM_S, NO_ROOM_S = 600.0, 60.0  # for which a room that was asked for is believed, or that there is none
ASK_S = 5.0  # for Discord to tell about a room; the message goes in without it then
UNSURE_S = 10.0  # before the newest message on disk, for which one of another room may not have got there
TICKET_S = 840.0  # Discord takes answers to an interaction for 15 minutes
RETRY_S = (0.5, 2.0, 5.0, 10.0, 20.0)  # pauses between attempts to hand an event in while the disk fails
RETRIES = 2
TRAITS = Traits(
    max_characters=outbound.TEXT,
    typing_every_s=8.0,
    edit_every_s=1.2,
    max_file_bytes=10 * 1024 * 1024,
    can_react=True,
    can_thread=True,
    reads_history=True,
    hint="discord",
)
_COMMAND_NAME = re.compile(r"[-_'\w]{1,32}")
_ADDRESS = re.compile(r"dm:(?P<user>[0-9]{1,20})|(?:[0-9]{1,20}:)?(?P<channel>[0-9]{1,20})")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
NoteSent = Callable[[str], Awaitable[None]]


class DiscordAdapter:
    """One account.

    Args:
        commands: name and description of each application command to offer; bad entries are left out.
        retry_s: pauses between attempts to hand an event in while the disk fails.
        retries: of a call that met a broken connection or an error of the server's.
    """

    platform = translate.PLATFORM
    traits = TRAITS

    def __init__(
        self,
        account: DiscordAccount,
        *,
        key: str,
        host: AsyncioHost,
        commands: Sequence[tuple[str, str]] = (),
        retry_s: Sequence[float] = RETRY_S,
        retries: int = RETRIES,
    ) -> None:
        self.key = key
        self._account = account
        self._host = host
        self._commands = [entry for entry in commands if _is_command(*entry)]
        self._retry_s = tuple(retry_s)
        self._retries = retries
        self._link: Link | None = None
        self._rooms: Recent[tuple[float, Room | str | None]] = Recent()
        self._chats: Recent[str] = Recent()  # direct channel -> whose it is
        self._threads: Recent[str] = Recent()  # message of ours -> the thread that was begun for it
        self._withdrawn: Recent[None] = Recent()  # drafts that this adapter took back itself
        self._tickets: dict[str, tuple[float, Credential]] = {}  # commands that wait for an answer; in memory only

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected until Discord ends it for good; see `Adapter.run`."""
        heard_in, heard = trio.open_memory_channel[Event | Begun](QUEUE)
        onwards, in_order = trio.open_memory_channel[Event](0)
        ready_in, ready = trio.open_memory_channel[str](8)
        link = Link(
            self._account, self.key, self._host.inlet(heard_in), self._host.inlet(ready_in), retries=self._retries
        )
        catch_up = CatchUp[Event](
            self.key,
            heard=partial(self._last_heard, intake),
            place=_place,
            fetch=self._missed,
            room=_lane,
            moment=_moment,
        )
        ended = DeliveryError("Discord ended the connection", is_permanent=False)
        await trio.to_thread.run_sync(to_discord, "")  # loads the parser here, not in the middle of the first answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catch_up.run, heard, onwards)
            nursery.start_soon(run_lanes, in_order, partial(self._handle, intake), _lane)
            nursery.start_soon(self._greet, ready, task_status)
            self._link = link
            try:
                await self._host.run(link.live)
            except Exception as error:  # boundary: the library; what came before its end is still handed in
                ended = explain(error, "all that the setup page names")
            finally:
                self._link = None
                heard_in.close()
                ready_in.close()
        raise ended

    async def send(self, target: Target, message: OutboundMessage, note_sent: NoteSent) -> None:
        """Deliver a message; see `Adapter.send`."""
        if message.kind is OutboundKind.REACTION:
            await self._react(target, message, note_sent)
            return
        parts = await self._shape(target, message)
        channel, draft = await self._channel(target), message.draft_id
        if (thread := await self._thread(channel, target, message)) is not None:
            if draft is not None and not message.sent:
                await self.drop_draft(target, draft)
            channel, draft = thread, None
        done = len(message.sent)
        arrived = Arrived()
        if message.is_doubtful:
            last = message.sent[-1] if message.sent else target.message_id
            arrived = await self._call("Read Message History", Link.find_own, channel, last)
        for index, part in enumerate(parts[done:], done):
            id = arrived.take(part)
            if id is None and index == 0:
                id = await self._send_first(channel, target, message, part, draft, is_threaded=thread is not None)
            elif id is None:
                id = await self._create(channel, part, outbound.nonce(message, index), None)
            await note_sent(id)

    async def show_typing(self, target: Target) -> None:
        """Show for some ten seconds that an answer is being written."""
        await self._call("Send Messages", Link.show_typing, await self._channel(target))

    async def stop_typing(self, target: Target) -> None:
        """Nothing to do: a message ends the sign, and so do ten seconds."""
        await trio.lowlevel.checkpoint()

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Show a growing answer; of a text that is too long, its beginning."""
        part = Part(text=outbound.draft_text(replace_mentions(text[: 2 * outbound.TEXT], self._mentions(target))))
        channel = await self._channel(target)
        if draft_id is not None and (id := await self._call("Send Messages", Link.edit, channel, draft_id, part)):
            return id
        if draft_id is None and (id := await self._answer(target, part)):
            return id
        return await self._create(channel, part, new_uuid().replace("-", "")[: outbound.NONCE], None)

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """Remove a draft."""
        self._withdrawn.keep(draft_id, None)
        await self._call("View Channel", Link.delete, await self._channel(target), draft_id)

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """What was said before, oldest first."""
        channel = await self._channel(target)
        return await self._call("Read Message History", Link.history, channel, target.message_id, limit)

    async def locate(self, attachment: Attachment) -> Location:
        """Attachments lie at public addresses that work for a day, or at the owner's proxy."""
        await trio.lowlevel.checkpoint()
        own = urlsplit(self._account.rest_url).netloc if self._account.rest_url else None
        return Location(url=attachment.url, may_be_private=urlsplit(attachment.url).netloc == own)

    async def resolve(self, address: str) -> Destination:
        """`dm:USER`, a channel's id, or `guild:channel`."""
        match = _ADDRESS.fullmatch(address.strip().removeprefix(f"{self.platform}:"))
        if match is None:
            raise DeliveryError(
                f"{address!r} is no Discord address; use a channel's id, guild:channel or dm:user", is_permanent=True
            )
        if user := match["user"]:
            return await self._direct(user)
        room = await self._call("View Channel", Link.find_room, match["channel"])
        if isinstance(room, str):
            return await self._direct(room)
        if room is None:
            raise DeliveryError("nobody can write into this channel", is_permanent=True)
        data = {"channel_id": room.id, "guild_id": room.guild_id}
        if room.parent_id is not None:
            data["parent_id"] = room.parent_id
        return Destination(
            conversation_id=translate.conversation(self.key, room.guild_id, room.id),
            name=clean_name(room.name or "", fallback=room.id),
            is_direct=False,
            data=data,
        )

    async def check(self) -> str:
        """Ask Discord who the bot is."""
        return f"signed in as @{await self._call('a valid token', Link.whoami)}"

    # What comes in.

    async def _greet(self, ready: trio.MemoryReceiveChannel[str], task_status: trio.TaskStatus[str]) -> None:
        is_reported = False
        async for name in ready:
            if not is_reported:
                is_reported = True
                task_status.started(f"@{name}")
            if self._commands:
                try:
                    await self._call("applications.commands", Link.sync_commands, self._commands)
                except DeliveryError as error:
                    log.warning("commands not registered", extra=kv(adapter=self.key, reason=str(error)))

    async def _last_heard(self, intake: Intake) -> Sequence[Target]:
        """The newest message of each conversation; where there was none, all is new behind the newest anywhere."""
        heard = [target for target in await intake.last_heard(self.key) if _place(target) is not None]
        if not heard:
            return heard
        newest = max(translate.sent_at(target.message_id or "") for target in heard)
        after = translate.first_id(newest - timedelta(seconds=UNSURE_S))
        known = {_place(target) for target in heard}
        try:
            news = await self._call("nothing", Link.news, after)
        except DeliveryError as error:
            log.info("other rooms not looked at", extra=kv(adapter=self.key, reason=str(error)))
            return heard
        return heard + [
            Target(
                conversation_id=translate.conversation(self.key, guild, channel),
                data={"channel_id": channel, "guild_id": guild},
                message_id=after,
            )
            for channel, guild in news
            if channel not in known
        ]

    async def _missed(self, channel: str, targets: Sequence[Target]) -> Sequence[Event]:
        """What was said in a channel behind the newest message that was heard there, as far as it is not too late."""
        newest = max(int(target.message_id or 0) for target in targets)
        guild = next((str(guild) for target in targets if (guild := target.data.get("guild_id"))), None)
        late = int(translate.first_id(datetime.now(UTC) - timedelta(seconds=LATE_S)))
        return await self._call("Read Message History", Link.missed, channel, guild, str(max(newest, late)))

    async def _handle(self, intake: Intake, event: Event) -> None:
        for pause in (*self._retry_s, None):
            try:
                await self._hand_in(intake, event)
                return
            except StorageError as error:
                if pause is None:
                    log.error("event lost, the disk fails", extra=kv(adapter=self.key, reason=str(error)))
                    return
                log.warning("event not taken; again soon", extra=kv(adapter=self.key, reason=str(error)))
                await trio.sleep(pause)

    async def _hand_in(self, intake: Intake, event: Event) -> None:
        match event:
            case Said():
                await self._hand_in_said(intake, event)
            case Deletion():
                ids = tuple(id for id in event.messages if id not in self._withdrawn)
                conversation = await self._whose(event)
                if ids and conversation is not None:
                    await intake.delete(
                        MessageDeletion(adapter=self.key, conversation_id=conversation, platform_ids=ids)
                    )
            case _:
                await intake.edit(
                    MessageEdit(
                        adapter=self.key,
                        conversation_id=event.conversation_id,
                        platform_id=event.message,
                        text=event.text,
                    )
                )

    async def _hand_in_said(self, intake: Intake, said: Said) -> None:
        message, credential = said.message, said.credential
        if message.is_direct:
            self._chats.keep(str(message.metadata["channel_id"]), message.author.id)
        if not said.is_room_known:
            message = await self._placed(message)
        if credential is not None:
            self._keep_ticket(credential)
        if await intake.take(message) is Receipt.ACCEPTED or credential is None:
            return
        self._tickets.pop(credential.interaction, None)
        try:
            await self._call("nothing", Link.withdraw, credential)  # nobody will answer the command
        except DeliveryError as error:
            log.debug("command not withdrawn", extra=kv(adapter=self.key, reason=str(error)))

    async def _placed(self, message: InboundMessage) -> InboundMessage:
        """A message with what its room is called and lies in, for a room that the gateway did not tell of."""
        room = await self._room(str(message.metadata["channel_id"]))
        if not isinstance(room, Room):
            return message
        parents = (room.parent_id,) if room.parent_id else ()
        return replace(
            message,
            room_ids=(room.id, *parents),
            server_name=clean_name(room.guild_name) if room.guild_name else None,
            channel_name=clean_name(room.name) if room.name else None,
            metadata={**message.metadata, "parent_id": room.parent_id} if room.parent_id else message.metadata,
        )

    async def _room(self, channel: str) -> Room | str | None:
        until, room = self._rooms.get(channel, (0.0, None))
        if trio.current_time() < until:
            return room
        room = None
        try:
            with trio.move_on_after(ASK_S):
                room = await self._call("View Channel", Link.find_room, channel)
        except DeliveryError as error:
            log.warning("room not found", extra=kv(adapter=self.key, reason=str(error)))
        self._rooms.keep(channel, (trio.current_time() + (ROOM_S if room is not None else NO_ROOM_S), room))
        return room

    async def _whose(self, deletion: Deletion) -> ConversationId | None:
        """The conversation that lost messages; of a direct chat it is found by whose chat it is."""
        if deletion.guild is not None:
            return translate.conversation(self.key, deletion.guild, deletion.channel)
        person = self._chats.get(deletion.channel) or await self._room(deletion.channel)
        return translate.direct(self.key, person) if isinstance(person, str) else None

    # What goes out.

    async def _shape(self, target: Target, message: OutboundMessage) -> list[Part]:
        if message.file is not None and message.file.size_bytes > TRAITS.max_file_bytes:
            raise DeliveryError(
                f"{message.file.filename} is larger than the {TRAITS.max_file_bytes >> 20} MiB that Discord takes",
                is_permanent=True,
            )
        mentions = {**self._mentions(target), **message.mentions}
        if len(message.text) > LONG_TEXT:
            parts = await trio.to_thread.run_sync(outbound.shape, message, mentions)
        else:
            parts = outbound.shape(message, mentions)
        if not parts:
            raise DeliveryError("nothing is left of the message that Discord could show", is_permanent=True)
        return parts

    async def _thread(self, channel: str, target: Target, message: OutboundMessage) -> str | None:
        """The thread that a message asks for; begun at its first attempt."""
        name = outbound.fit_thread_name(message.rich.thread_name or "") if message.rich is not None else ""
        if not name or target.is_direct or target.data.get("parent_id"):
            return None
        if (begun := self._threads.get(message.id)) is not None:
            return begun
        thread = await self._call("Create Public Threads", Link.begin_thread, channel, _anchor(target), name)
        if thread is not None:
            self._threads.keep(message.id, thread)
        return thread

    async def _send_first(
        self,
        channel: str,
        target: Target,
        message: OutboundMessage,
        part: Part,
        draft: str | None,
        *,
        is_threaded: bool,
    ) -> str:
        """Send the first part: into its draft, as the answer to a command, or as a reply."""
        if draft is not None and part.poll is None:
            if (id := await self._call("Send Messages", Link.edit, channel, draft, part)) is not None:
                return id
        elif not is_threaded and part.poll is None and (id := await self._answer(target, part)) is not None:
            return id
        reply = _anchor(target) if message.wants_reply_mark and not is_threaded else None
        return await self._create(channel, part, outbound.nonce(message, 0), reply)

    async def _create(self, channel: str, part: Part, nonce: str, reply: str | None) -> str:
        needs = "Send Messages and Attach Files" if part.path is not None else "Send Messages"
        return await self._call(needs, Link.create, channel, part, nonce, reply)

    async def _answer(self, target: Target, part: Part) -> str | None:
        """Answer the command that the target is, if it still waits; returns the answer's id."""
        name = str(target.data.get("interaction_id", ""))
        until, credential = self._tickets.get(name, (0.0, None))
        if credential is None or name != target.message_id or trio.current_time() > until:
            return None
        id = await self._call("Send Messages", Link.answer, credential, part)
        self._tickets.pop(name, None)
        return id

    def _keep_ticket(self, credential: Credential) -> None:
        now = trio.current_time()
        self._tickets = {name: ticket for name, ticket in self._tickets.items() if ticket[0] > now}
        self._tickets[credential.interaction] = (now + TICKET_S, credential)

    async def _react(self, target: Target, message: OutboundMessage, note_sent: NoteSent) -> None:
        anchor = _anchor(target)
        if message.sent:
            return
        if anchor is None:
            raise DeliveryError("there is no message here to react to", is_permanent=True)
        emoji = message.text.strip().removeprefix("<a:").removeprefix("<:").removesuffix(">")
        await self._call("Add Reactions", Link.react, await self._channel(target), anchor, emoji)
        await note_sent(anchor)

    async def _channel(self, target: Target) -> str:
        """The channel to write into; one that only a conversation is known of is derived from its id."""
        if channel := target.data.get("channel_id"):
            return str(channel)
        scope, _, last = target.conversation_id.removeprefix(f"{self.key}:").partition(":")
        if not last.isdigit():
            raise DeliveryError("this conversation has no channel on Discord", is_permanent=True)
        return str((await self._direct(last)).data["channel_id"]) if scope == "dm" else last

    async def _direct(self, user: str) -> Destination:
        channel, name = await self._call("a shared server", Link.open_direct, user)
        self._chats.keep(channel, user)
        return Destination(
            conversation_id=translate.direct(self.key, user), name=name, is_direct=True, data={"channel_id": channel}
        )

    def _mentions(self, target: Target) -> dict[str, str]:
        known = target.data.get("mentions")
        return {str(name): str(handle) for name, handle in known.items()} if isinstance(known, dict) else {}

    async def _call(self, needs: str, function: Callable[[Link, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run one of the link's methods over there. Errors: DeliveryError."""
        if (link := self._link) is None:
            raise DeliveryError("Discord is not connected now", is_permanent=False)
        try:
            return await self._host.run(function, link, *args)
        except Exception as error:  # boundary: the library
            failure = explain(error, needs)
        raise failure  # outside of the handler: the library's errors show addresses, which hold tokens


def _is_command(name: str, description: str) -> bool:
    is_good = bool(_COMMAND_NAME.fullmatch(name)) and name == name.lower() and 1 <= len(description) <= 100
    if not is_good:
        log.warning("command left out; its name or description is not what Discord takes", extra=kv(command=name))
    return is_good


def _lane(event: Event) -> str:
    return str(event.message.metadata["channel_id"]) if isinstance(event, Said) else event.channel


def _place(target: Target) -> str | None:
    channel, heard = str(target.data.get("channel_id", "")), target.message_id or ""
    return channel if channel.isdecimal() and heard.isdecimal() else None


def _moment(event: Event) -> int:
    """An id's greatness says when: of a message, or of the one that was changed."""
    match event:
        case Said():
            return int(event.message.platform_id or 0)
        case Deletion():
            return max(map(int, event.messages), default=0)
    return int(event.message)


def _anchor(target: Target) -> str | None:
    """The message that is answered; what answers an interaction answers the message that carried it, if any did."""
    if target.message_id is None or target.data.get("interaction_id") != target.message_id:
        return target.message_id
    carrier = target.data.get("message_id")
    return str(carrier) if carrier is not None else None
