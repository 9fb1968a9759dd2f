"""The asyncio side of one Discord connection: the library and what is done with it.

Runs on the host's loop and hands out plain values only. Reconnecting and resuming are the library's own. Its own
reading of messages is not used: one strange field would cost the whole event, and its report would put the message
into the log.

Flow:    gateway -> Link._hear -> translate -> inlet; adapter -> host.run -> Link.create | edit | history …
Floor:   messaging
Source:  messaging spec 14.1 and 18.3; https://discord.com/developers/docs/topics/opcodes-and-status-codes
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import hikari
from hikari import impl
from hikari.api import config as hikari_config

from spacebot.base.errors import DeliveryError
from spacebot.base.telemetry import kv
from spacebot.config.messaging import DiscordAccount
from spacebot.messaging.asyncio_bridge import Inlet
from spacebot.messaging.catch_up import Begun
from spacebot.messaging.discord import outbound, translate
from spacebot.messaging.discord.outbound import Arrived, Part
from spacebot.messaging.discord.past import Past
from spacebot.messaging.discord.refusals import NO_TOKEN, explain
from spacebot.messaging.discord.translate import Credential, Deletion, Edit, Room
from spacebot.messaging.messages import HistoryLine, InboundMessage
from spacebot.messaging.names import clean_name

log = logging.getLogger(__name__)

KEPT = 4096  # texts, rooms and chats that are remembered
ACK_S = 2.5  # Discord wants an interaction acknowledged within three seconds
WAIT_S = 20.0  # the longest pause of a rate limit that the library waits for by itself
START_END_S, END_S = 0.3, 2.0  # for the library's start to be cancelled; for the rest of its tasks
ECHO_S, ECHO_TRIES = 0.05, 40  # the gateway tells of our own messages within moments
LOOKED_AT = 300  # messages that are searched for one that may have arrived
RECENT_S = 3600.0  # how old such a message may be when nothing says what it comes after
_INTENTS = (
    hikari.Intents.GUILDS | hikari.Intents.GUILD_MESSAGES | hikari.Intents.DM_MESSAGES | hikari.Intents.MESSAGE_CONTENT
)
_CACHED = (
    hikari_config.CacheComponents.GUILDS
    | hikari_config.CacheComponents.GUILD_CHANNELS
    | hikari_config.CacheComponents.GUILD_THREADS
    | hikari_config.CacheComponents.ROLES
    | hikari_config.CacheComponents.ME
)
_PINGS: Mapping[str, Any] = {"mentions_everyone": False, "user_mentions": True, "role_mentions": False}
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, AssertionError)  # of the library's reading of an answer
_UNKNOWN_MESSAGE, _THREAD_EXISTS = 10008, 160004

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message on its way in; `credential` lets one answer a command."""

    message: InboundMessage
    is_room_known: bool
    credential: Credential | None = None


Event = Said | Edit | Deletion


class Recent(OrderedDict[str, T]):
    """The newest `KEPT` values by name."""

    def keep(self, key: str, value: T) -> None:
        """Remember a value, and forget the oldest beyond the bound."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > KEPT:
            self.popitem(last=False)


class _Cache:
    """What the library knows from the gateway, as `translate` asks for it."""

    def __init__(self, bot: hikari.GatewayBot) -> None:
        self._cache = bot.cache
        self.me = ""

    def room(self, channel: str) -> Room | None:
        known = self._cache.get_guild_channel(int(channel)) or self._cache.get_thread(int(channel))
        return self.described(known) if known is not None else None

    def described(self, channel: hikari.GuildChannel, guild_name: str | None = None) -> Room:
        guild = self._cache.get_guild(channel.guild_id) if guild_name is None else None
        is_thread = isinstance(channel, hikari.GuildThreadChannel)
        return Room(
            id=str(channel.id),
            guild_id=str(channel.guild_id),
            name=channel.name,
            guild_name=guild.name if guild is not None else guild_name,
            parent_id=str(channel.parent_id) if is_thread and channel.parent_id else None,
        )

    def role(self, guild: str, role: str) -> tuple[str, bool] | None:
        known = self._cache.get_role(int(role))
        if known is None or str(known.guild_id) != guild:
            return None
        return clean_name(known.name), str(known.bot_id) == self.me

    def is_moderator(self, guild: str, user: str, roles: Sequence[str]) -> bool | None:
        known = self._cache.get_guild(int(guild))
        if known is not None and str(known.owner_id) == user:
            return True
        held = [self._cache.get_role(int(role)) for role in (*roles, guild)]  # everybody has the role of the guild's id
        if any(role is not None and int(role.permissions) & translate.RULING for role in held):
            return True
        return None if known is None or None in held else False


class Link:
    """One connection. Every method runs on the asyncio loop; what its errors mean, `explain` says."""

    def __init__(
        self, account: DiscordAccount, key: str, heard: Inlet[Event | Begun], ready: Inlet[str], *, retries: int
    ) -> None:
        self._retries = retries
        self._account = account
        self._key = key
        self._heard = heard
        self._ready = ready
        self._texts: Recent[int] = Recent()
        self._arrived: Recent[str] = Recent()  # mark of a message of ours -> its id
        self._warned: set[str] = set()
        self._application = ""
        self._made: hikari.GatewayBot | None = None
        self._past: Past | None = None
        self._is_started = False

    @property
    def _bot(self) -> hikari.GatewayBot:
        if self._made is None:
            raise DeliveryError("Discord is not connected now", is_permanent=False)
        return self._made

    @property
    def _kept(self) -> Past:
        if self._past is None:
            raise DeliveryError("Discord is not connected now", is_permanent=False)
        return self._past

    async def live(self) -> None:
        """Be connected until the stream ends for good; raises what the library says about it."""
        asyncio.get_running_loop().set_exception_handler(_report)
        self._made = bot = self._make_bot()
        self._view = _Cache(bot)
        self._past = past = Past(bot, self._account, wait_s=WAIT_S, retries=self._retries)
        bot.subscribe(hikari.ShardPayloadEvent, self._hear)
        running = asyncio.create_task(self._run(bot), name="discord bot")
        try:
            await asyncio.shield(running)
        finally:
            self._past = None
            try:
                await self._end(bot, running)
            finally:
                await past.close()

    async def _run(self, bot: hikari.GatewayBot) -> None:
        await bot.start(check_for_updates=False)
        self._is_started = True
        await bot.join()

    async def _end(self, bot: hikari.GatewayBot, running: "asyncio.Task[None]") -> None:
        """Close the connection, wherever it is: the library's start may swallow being cancelled, or forget a shard."""
        if not self._is_started and not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=START_END_S)
        if bot.is_alive:
            await bot.close()
        left = _shard_tasks(bot)
        for task in left:
            task.cancel()
        await asyncio.wait({running, *left}, timeout=END_S)
        for task in (running, *left):
            if task.done() and not task.cancelled():
                task.exception()  # looked at, or asyncio reports it

    def _make_bot(self) -> hikari.GatewayBot:
        try:
            return hikari.GatewayBot(
                self._account.token.get_secret_value(),
                banner=None,
                logs=None,
                suppress_optimization_warning=True,
                intents=_INTENTS,
                cache_settings=impl.CacheSettings(components=_CACHED),
                auto_chunk_members=False,
                max_rate_limit=WAIT_S,
                max_retries=self._retries,
                rest_url=self._account.rest_url.rstrip("/") if self._account.rest_url else None,
            )
        except ValueError:
            raise DeliveryError(f"this is not the form of a bot token; {NO_TOKEN}", is_permanent=True) from None

    # What comes in. No step before `put` waits, so events keep their order.

    async def _hear(self, event: hikari.ShardPayloadEvent) -> None:
        try:
            if self._past is not None and event.name in ("READY", "GUILD_CREATE"):
                self._past.note(event.name, event.payload)
            if event.name == "INTERACTION_CREATE":
                await self._hear_interaction(event.payload)
            else:
                self._hear_plain(event.name, event.payload)
        except Exception as error:  # boundary: an event may be anything
            self._skip(event.name, error)

    def _skip(self, name: str, error: Exception) -> None:
        reason = f"{name}: {type(error).__name__}"
        if reason not in self._warned and len(self._warned) < 100:
            self._warned.add(reason)
            why = str(error) if isinstance(error, translate.Malformed) else type(error).__name__
            log.warning("Discord event skipped", extra=kv(adapter=self._key, event=name, reason=why))

    def _hear_plain(self, name: str, payload: Mapping[str, Any]) -> None:
        match name:
            case "READY":  # of a new session; one that is resumed is told what it missed
                self._view.me, self._application = str(payload["user"]["id"]), str(payload["application"]["id"])
                self._heard.put(Begun())
                self._ready.put(clean_name(str(payload["user"]["username"])))
            case "MESSAGE_CREATE":
                self._note_own(payload)
                if (said := self._read(payload)) is not None:
                    self._heard.put(said)
            case "MESSAGE_UPDATE":
                bots = self._account.allow_bot_messages
                edit = translate.read_edit(payload, self._view, self._key, bots=bots)
                if edit is not None and self._texts.get(edit.message) != hash(edit.text):
                    self._texts.keep(edit.message, hash(edit.text))
                    self._heard.put(edit)
            case "MESSAGE_DELETE" | "MESSAGE_DELETE_BULK":
                self._heard.put(translate.read_deletion(payload))

    def _read(self, payload: Mapping[str, Any]) -> Said | None:
        said = translate.read_message(payload, self._view, self._key, bots=self._account.allow_bot_messages)
        if said is None:
            return None
        self._texts.keep(str(said[0].platform_id), hash(said[0].text))
        return Said(message=said[0], is_room_known=said[1])

    async def missed(self, channel: str, guild: str | None, after: str) -> list[Said]:
        """What people said behind a message, oldest first; the gateway would have told the same."""
        found = []
        for payload in await self._kept.behind(channel, guild, after):
            try:
                if (said := self._read(payload)) is not None:
                    found.append(said)
            except Exception as error:  # boundary: a message may be anything
                self._skip("message of the past", error)
        return found

    async def news(self, after: str) -> list[tuple[str, str]]:
        """Channels, each with its server, in which something was said behind a message."""
        return await self._kept.news(after)

    def _note_own(self, payload: Mapping[str, Any]) -> None:
        mark = payload.get("nonce")
        if isinstance(mark, str) and payload["author"]["id"] == self._view.me:
            self._arrived.keep(mark, str(payload["id"]))

    async def _hear_interaction(self, payload: Mapping[str, Any]) -> None:
        if payload.get("context") == 2:  # a chat of other people, where the bot cannot be
            return
        match payload.get("type"):
            case 3:
                message, is_known, credential = translate.read_press(payload, self._view, self._key)
                await self._acknowledge(credential, hikari.ResponseType.DEFERRED_MESSAGE_UPDATE)
                self._heard.put(Said(message=message, is_room_known=is_known))
            case 2:
                message, is_known, credential = translate.read_command(payload, self._view, self._key)
                is_open = await self._acknowledge(credential, hikari.ResponseType.DEFERRED_MESSAGE_CREATE)
                self._heard.put(
                    Said(message=message, is_room_known=is_known, credential=credential if is_open else None)
                )

    async def _acknowledge(self, credential: Credential, how: hikari.ResponseType) -> bool:
        try:
            async with asyncio.timeout(ACK_S):
                await self._bot.rest.create_interaction_response(int(credential.interaction), credential.token, how)
        except _UNREADABLE:
            return True
        except Exception as error:  # boundary: the library; what was pressed counts all the same
            log.warning("interaction not acknowledged", extra=kv(adapter=self._key, reason=str(explain(error, "this"))))
            return False
        return True

    # What goes out.

    async def create(self, channel: str, part: Part, nonce: str, reply: str | None) -> str:
        """Send a message; returns its id.

        Args:
            nonce: mark by which Discord, and this connection, know the message again.
        """
        if (known := self._arrived.get(nonce)) is not None:
            return known
        try:
            return await self._create(channel, part, nonce, reply)
        except _UNREADABLE as error:
            unreadable = error  # it was sent, but the library cannot read the answer; the gateway tells of it too
        for _ in range(ECHO_TRIES):
            if (known := self._arrived.get(nonce)) is not None:
                return known
            await asyncio.sleep(ECHO_S)
        raise unreadable

    async def _create(self, channel: str, part: Part, nonce: str, reply: str | None) -> str:
        common: dict[str, Any] = {"nonce": nonce, **_PINGS}
        if reply is not None:
            common |= {"reply": int(reply), "reply_must_exist": False, "mentions_reply": True}
        return await self._sent(part, partial(self._bot.rest.create_message, int(channel), **common))

    async def edit(self, channel: str, message: str, part: Part) -> str | None:
        """Change a message of ours; None when it is gone."""
        change = partial(self._bot.rest.edit_message, int(channel), int(message), **_PINGS)
        try:
            return await self._sent(part, change)
        except hikari.NotFoundError as error:
            if error.code != _UNKNOWN_MESSAGE:
                raise
            return None
        except _UNREADABLE:
            return message  # it was changed

    async def answer(self, credential: Credential, part: Part) -> str | None:
        """Answer a command where people wait for it; None when its time is over."""
        rest = self._bot.rest
        change = partial(rest.edit_interaction_response, int(credential.application), credential.token, **_PINGS)
        try:
            return await self._sent(part, change)
        except (hikari.NotFoundError, hikari.UnauthorizedError):
            return None
        except _UNREADABLE:
            return credential.interaction  # it was answered; nobody knows its id

    async def _sent(self, part: Part, call: Callable[..., Awaitable[hikari.Message]]) -> str:
        """Send a part, once more in plain words when Discord does not take the rest of it."""
        try:
            return str((await call(**_fields(part))).id)
        except (hikari.BadRequestError, hikari.ForbiddenError) as error:
            if not part.is_rich or not part.plain or (isinstance(error, hikari.ForbiddenError) and not part.poll):
                raise
            log.warning("cards, controls or poll refused", extra=kv(adapter=self._key, code=error.code))
        bare = replace(part, text=part.plain, cards=(), rows=(), poll=None)
        return str((await call(**_fields(bare))).id)

    async def withdraw(self, credential: Credential) -> None:
        """Take back the sign that a command is being answered."""
        await self._bot.rest.delete_interaction_response(int(credential.application), credential.token)

    async def delete(self, channel: str, message: str) -> None:
        """Delete a message of ours; one that is gone is as good."""
        try:
            await self._bot.rest.delete_message(int(channel), int(message))
        except hikari.NotFoundError:
            log.debug("message was gone already")

    async def react(self, channel: str, message: str, emoji: str) -> None:
        """Put a pictogram on a message."""
        await self._bot.rest.add_reaction(int(channel), int(message), emoji)

    async def show_typing(self, channel: str) -> None:
        """Show for some ten seconds that something is being written."""
        await self._bot.rest.trigger_typing(int(channel))

    async def begin_thread(self, channel: str, message: str | None, name: str) -> str | None:
        """A public thread under a message, or on its own; None where there can be none."""
        rest = self._bot.rest
        try:
            if message is None:
                made = await rest.create_thread(int(channel), hikari.ChannelType.GUILD_PUBLIC_THREAD, name)
                return str(made.id)
            return str((await rest.create_message_thread(int(channel), int(message), name)).id)
        except (hikari.BadRequestError, hikari.ForbiddenError, hikari.NotFoundError) as error:
            if error.code == _THREAD_EXISTS:
                return message  # a message's thread has the message's id
            log.warning("no thread begun", extra=kv(adapter=self._key, code=error.code))
            return None

    async def open_direct(self, user: str) -> tuple[str, str]:
        """The channel of a direct chat, and what the person is called."""
        channel = await self._bot.rest.create_dm_channel(int(user))
        return str(channel.id), _name(channel.recipient)

    async def find_own(self, channel: str, after: str | None) -> Arrived:
        """Messages of ours behind one, or of the last hour."""
        start = int(after) if after else hikari.Snowflake.from_datetime(datetime.now(UTC) - timedelta(seconds=RECENT_S))
        found = self._bot.rest.fetch_messages(int(channel), after=hikari.Snowflake(start)).limit(LOOKED_AT)
        arrived = Arrived()
        try:
            async for one in found:
                if str(one.author.id) == self._view.me:
                    files = tuple(file.filename for file in one.attachments)
                    arrived.messages.append((str(one.id), (one.content or "").strip(), files))
        except (hikari.ForbiddenError, *_UNREADABLE) as error:  # then the mark alone has to do
            log.warning("own messages not looked for", extra=kv(adapter=self._key, reason=type(error).__name__))
        return arrived

    async def history(self, channel: str, before: str | None, limit: int) -> list[HistoryLine]:
        """What was said before a message, or lately; oldest first."""
        start = hikari.Snowflake(int(before)) if before else hikari.UNDEFINED
        found = self._bot.rest.fetch_messages(int(channel), before=start).limit(limit)
        room = self._view.room(channel)
        lines = [self._line(message, room.guild_id if room else None) async for message in found]
        return [line for line in reversed(lines) if line is not None]

    def _line(self, message: hikari.Message, guild: str | None) -> HistoryLine | None:
        people = {str(id): _name(user) for id, user in (message.user_mentions or {}).items()}
        text = translate.readable(message.content or "", people, self._view, guild) or translate.summary(
            [(embed.title or "", embed.description or "") for embed in message.embeds],
            [sticker.name for sticker in message.stickers],
            None,
        )
        text = "\n".join([text, *(f"[attachment: {clean_name(one.filename)}]" for one in message.attachments)]).strip()
        if not text or int(message.type) not in translate.SPOKEN:
            return None
        return HistoryLine(
            author=_name(message.author),
            text=text,
            sent_at=message.timestamp,
            is_bot=message.author.is_bot,
            is_self=str(message.author.id) == self._view.me,
        )

    async def find_room(self, channel: str) -> Room | str | None:
        """A guild's room, or of a direct chat the person's id; None for what nobody can write into."""
        if (room := self._view.room(channel)) is not None:
            return room
        found = await self._bot.rest.fetch_channel(int(channel))
        if isinstance(found, hikari.DMChannel):
            return str(found.recipient.id)
        if not isinstance(found, hikari.GuildChannel):
            return None
        known = self._bot.cache.get_guild(found.guild_id)
        return self._view.described(found, known.name if known else (await found.fetch_guild()).name)

    async def whoami(self) -> str:
        """The bot's name; fails when the token does."""
        return clean_name((await self._bot.rest.fetch_my_user()).username)

    async def sync_commands(self, wanted: Sequence[tuple[str, str]]) -> None:
        """Make the application's commands those that are wanted, if they are others now."""
        rest, application = self._bot.rest, int(self._application)
        live = await rest.fetch_application_commands(application)
        if {(one.name, getattr(one, "description", "")) for one in live} == set(wanted):
            return
        try:
            builders = [rest.slash_command_builder(name, description) for name, description in wanted]
            await rest.set_application_commands(application, builders)
        except hikari.BadRequestError:  # one bad entry refuses them all
            for name, description in wanted:
                try:
                    await rest.create_slash_command(application, name, description)
                except hikari.BadRequestError as error:
                    log.warning("command refused", extra=kv(adapter=self._key, command=name, code=error.code))


def _shard_tasks(bot: hikari.GatewayBot) -> "list[asyncio.Task[Any]]":
    """What the library runs for the connections of a bot, and forgets when their start is cancelled."""
    found = []
    for task in asyncio.all_tasks():
        frame = getattr(task.get_coro(), "cr_frame", None)
        if "(shard " in task.get_name() and frame is not None:
            shard = frame.f_locals.get("self")
            if getattr(shard, "_event_manager", None) is bot.event_manager:
                found.append(task)
    return found


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what a task on the loop left behind: not how connections ended, which `join` raises, nor any event."""
    if isinstance(context.get("exception"), hikari.GatewayError):
        log.debug("gateway task ended", extra=kv(reason=type(context["exception"]).__name__))
    else:
        loop.default_exception_handler({key: value for key, value in context.items() if key != "payload"})


def _name(user: hikari.User) -> str:
    return clean_name(user.global_name or user.username)


def _fields(part: Part) -> dict[str, Any]:
    """A part as arguments of the library's calls."""
    fields: dict[str, Any] = {"content": part.text or None}
    if part.cards:
        fields["embeds"] = outbound.embeds(part.cards)
    if part.rows:
        fields["components"] = outbound.action_rows(part.rows)
    if part.poll is not None:
        fields["poll"] = outbound.poll_builder(part.poll)
    if part.path is not None:
        fields["attachment"] = hikari.File(part.path, part.filename)
    return fields
