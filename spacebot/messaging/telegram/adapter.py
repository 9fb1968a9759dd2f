"""A bot's account at Telegram: long polls in, Bot API calls out, all on Trio.

The library's `Bot` runs on Trio as it is; its `initialize`, `Application` and `Updater` do not and are never used.

Telegram keeps updates until a poll asks for later ones. A poll asks for them only when every update of the one before
was taken, so whatever ends the program in between, nothing is lost; what comes twice the intake recognises.

Flow:    getUpdates -> lanes, one chat after the other -> translate -> Intake.take -> next getUpdates
Floor:   messaging
Source:  Bot API 9; messaging spec 5, 10, 13, 14.3, 18.1, 18.2, 18.5, 19.17-19.19, 19.d and 19.l
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import trio
from telegram import BotCommand, User
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError

from spacebot.base.errors import DeliveryError, SpacebotError, StorageError
from spacebot.base.ids import ConversationId
from spacebot.base.redaction import register_secret, scrub
from spacebot.base.telemetry import kv
from spacebot.config.messaging import TelegramAccount
from spacebot.messaging.adapter import Destination, Intake, Location, Receipt, Traits
from spacebot.messaging.lanes import run_lanes
from spacebot.messaging.messages import Attachment, HistoryLine, InboundMessage, MessageEdit, OutboundMessage, Target
from spacebot.messaging.names import clean_name
from spacebot.messaging.telegram.client import TelegramBot, open_bot
from spacebot.messaging.telegram.fields import MalformedUpdateError, number_of, text_of
from spacebot.messaging.telegram.outbound import Sender, as_delivery_errors, delivery_error, pause_of, table_of
from spacebot.messaging.telegram.render import Controls
from spacebot.messaging.telegram.translate import (
    PLATFORM,
    Membership,
    Migration,
    Reader,
    Skipped,
    lane,
    press_id,
    translate,
    update_id,
)

log = logging.getLogger(__name__)

POLL_S: Final = 25.0  # how long a poll waits for an update
SHORTEST_POLL_S: Final = 0.1  # an empty answer that comes sooner was not waited for
PAUSE_S: Final = (0.5, 30.0)  # first and longest pause after a failure; each is twice the one before
PATIENCE_S: Final = 120.0  # of polls that fail; then the connection counts as lost
ANSWER_PRESS_S: Final = 5.0
MODERATOR_S: Final = 600.0  # how long it is remembered who rules a group
REMEMBERED: Final = 1000  # people of groups of whom that is known
REFUSED: Final = 50  # people who were refused, to be told when they may write
WELCOME: Final = "You may write to me now."
_COMMAND = re.compile(r"[a-z0-9_]{1,32}")
_ADDRESS = re.compile(r"(?P<chat>-?\d{1,19}|@[A-Za-z][A-Za-z0-9_]{3,31})(?::(?P<thread>\d{1,19}))?")

TRAITS: Final = Traits(
    max_characters=4096,
    typing_every_s=4.0,
    edit_every_s=1.2,
    max_file_bytes=50 * 1024 * 1024,
    can_react=True,
    hint=PLATFORM,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What one connection knows."""

    bot: TelegramBot
    me: User
    sender: Sender
    reader: Reader
    moved_from: dict[int, int]  # supergroup -> the group that it was
    refused: OrderedDict[tuple[int, str], InboundMessage] = field(default_factory=OrderedDict)
    moderators: OrderedDict[tuple[int, str], tuple[bool, float]] = field(default_factory=OrderedDict)  # until when
    warned: set[str] = field(default_factory=set)


class TelegramAdapter:
    """One account.

    Args:
        key: its runtime name.
        commands: (name, description) of what people may command; shown in Telegram's menu.
        poll_s: how long a poll waits for an update.
        pause_s: first and longest pause after a failure.
        patience_s: how long polls may fail before the connection counts as lost.
    """

    platform = PLATFORM
    traits = TRAITS

    def __init__(
        self,
        account: TelegramAccount,
        *,
        key: str,
        commands: Sequence[tuple[str, str]] = (),
        poll_s: float = POLL_S,
        pause_s: tuple[float, float] = PAUSE_S,
        patience_s: float = PATIENCE_S,
        edit_every_s: float = TRAITS.edit_every_s,
    ) -> None:
        self.key = key
        self._account = account
        self._menu = _menu(commands)
        self._poll_s = poll_s
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._edit_every_s = edit_every_s
        self._controls = Controls()
        self._session: _Session | None = None
        register_secret(account.token.get_secret_value())

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected; see `Adapter.run`."""
        account = self._account
        with as_delivery_errors(self.key):
            async with open_bot(account.token.get_secret_value(), account.api_url, account.file_url) as bot:
                session = await self._sign_in(bot)
                self._session = session
                try:
                    task_status.started(f"@{session.me.username}")
                    raise await self._poll(session, intake)
                finally:
                    self._session = None

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        """Deliver a message; see `Adapter.send`."""
        await self._connection.sender.deliver(target, message, note_sent)

    async def show_typing(self, target: Target) -> None:
        """Show "typing …" for five seconds. Errors: DeliveryError."""
        await self._connection.sender.show_typing(target)

    async def stop_typing(self, target: Target) -> None:
        """Nothing: the sign goes with the next message, or by itself."""

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Show a growing answer; see `Adapter.draft`."""
        return await self._connection.sender.draft(target, text, draft_id)

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """Remove a draft. Errors: DeliveryError."""
        await self._connection.sender.drop_draft(target, draft_id)

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """Nothing: bots cannot read what was said before."""
        return ()

    async def locate(self, attachment: Attachment) -> Location:
        """Where a file's bytes are. The address holds the token and is good for an hour: fetch, then forget it.

        Errors: DeliveryError; permanent for files of more than 20 MB, which the server gives to no bot.
        """
        session = self._connection
        try:
            file = await session.bot.get_file(attachment.url)
        except BadRequest as error:
            text = (
                f"Telegram does not hand out {attachment.filename} ({scrub(error.message)}); bots get files of up to "
                "20 MB, ask for a smaller one or a link"
            )
            raise DeliveryError(text, is_permanent=True) from error
        except TelegramError as error:
            raise delivery_error(error, self.key) from error
        parts = urlsplit(file.file_path or "")
        if parts.scheme not in ("http", "https"):
            text = f"the Bot API server keeps {attachment.filename} in a folder of its own; run it without --local"
            raise DeliveryError(text, is_permanent=True)
        is_own_server = self._account.api_url is not None or self._account.file_url is not None
        return Location(url=urlunsplit(parts._replace(path=quote(parts.path, safe="/:"))), may_be_private=is_own_server)

    async def resolve(self, address: str) -> Destination:
        """The chat behind an id such as `-1001234567890`, with `:topic` for a topic of it, or behind `@channelname`.

        Errors: DeliveryError.
        """
        match = _ADDRESS.fullmatch(address.strip())
        if match is None:
            text = f"{address!r} is no address at Telegram; use a chat's id such as -1001234567890, or @channelname"
            raise DeliveryError(text, is_permanent=True)
        number: int | str = match["chat"] if match["chat"].startswith("@") else int(match["chat"])
        with as_delivery_errors(self.key):
            chat = await self._connection.bot.ask("getChat", chat_id=number)
        data = {"chat_id": number_of(chat, "id")}
        if match["thread"]:
            data["thread_id"] = int(match["thread"])
        name = text_of(chat, "title") or f"{text_of(chat, 'first_name')} {text_of(chat, 'last_name')}"
        return Destination(
            conversation_id=ConversationId(":".join((self.key, *map(str, data.values())))),
            name=clean_name(name, fallback=str(data["chat_id"])),
            is_direct=chat.get("type") == "private",
            data=data,
        )

    async def check(self) -> str:
        """Ask who the account is. Errors: DeliveryError."""
        with as_delivery_errors(self.key):
            me = await self._connection.bot.get_me()
        return f"signed in as @{me.username}"

    @property
    def _connection(self) -> _Session:
        if self._session is None:
            raise DeliveryError(f"{self.key} is not connected; its state tells why", is_permanent=False)
        return self._session

    async def _sign_in(self, bot: TelegramBot) -> _Session:
        me = await bot.get_me()
        webhook = await bot.get_webhook_info()
        if webhook.url:
            log.warning("another program's webhook is taken away, so that this one gets the updates")
            await bot.delete_webhook(drop_pending_updates=False)
        await self._register_menu(bot)
        if not me.can_read_all_group_messages:
            log.info(
                "privacy mode is on: in groups the bot hears commands, mentions and replies", extra=kv(key=self.key)
            )
        moved_from: dict[int, int] = {}
        reader = Reader(
            key=self.key,
            bot_id=me.id,
            username=me.username or "",
            allow_bots=self._account.allow_bot_messages,
            commands={shown: name for shown, (name, _) in self._menu.items()},
            read_press=self._controls.read,
            moved=moved_from,
        )
        sender = Sender(bot, self.key, self._controls, edit_every_s=self._edit_every_s)
        return _Session(bot=bot, me=me, sender=sender, reader=reader, moved_from=moved_from)

    async def _register_menu(self, bot: TelegramBot) -> None:
        wanted = [BotCommand(shown, description) for shown, (_, description) in self._menu.items()]
        if not wanted:
            return
        try:
            if list(await bot.get_my_commands()) != wanted:
                await bot.set_my_commands(wanted)
        except BadRequest as error:  # commands work without a menu
            log.warning("command menu refused", extra=kv(reason=error.message))

    async def _poll(self, session: _Session, intake: Intake) -> DeliveryError:
        """Poll until it makes no sense any more; returns why."""
        offset: int | None = None
        pause_s, first_pause_s, longest_s = 0.0, *self._pause_s
        lost_at = 0.0
        while True:
            try:
                asked_at = trio.current_time()
                updates = await session.bot.poll(offset, self._poll_s)
                offset = await self._take_all(session, intake, updates, offset)
                pause_s = 0.0
                await self._welcome(session, intake)
                if not updates and trio.current_time() - asked_at < SHORTEST_POLL_S:
                    await trio.sleep(first_pause_s)  # whatever stands between does not let polls wait
                continue
            except RetryAfter as error:
                await trio.sleep(pause_of(error))
                continue
            except (InvalidToken, Forbidden, BadRequest) as error:
                return delivery_error(error, self.key)
            except Conflict as error:
                return _conflict(error, self.key)
            except TelegramError as error:
                if not pause_s:
                    lost_at = trio.current_time()
                    log.warning("poll failed; trying again", extra=kv(key=self.key, reason=scrub(error.message)))
                elif trio.current_time() - lost_at > self._patience_s:
                    return delivery_error(error, self.key)
            pause_s = min(max(2 * pause_s, first_pause_s), longest_s)
            await trio.sleep(pause_s)

    async def _take_all(
        self, session: _Session, intake: Intake, updates: Sequence[object], offset: int | None
    ) -> int | None:
        """Hand in what a poll brought; returns the offset of the next one."""
        numbers = [number for number in map(update_id, updates) if number is not None]
        if updates and not numbers:
            raise NetworkError("updates without a number")
        if not updates:
            return offset
        send, receive = trio.open_memory_channel[Mapping[str, Any]](len(updates))
        with send:
            for update in updates:
                if isinstance(update, Mapping):
                    send.send_nowait(update)

        async def handle(update: Mapping[str, Any]) -> None:
            await self._handle(session, intake, update)

        await run_lanes(receive, handle, lane)
        return max(numbers) + 1

    async def _handle(self, session: _Session, intake: Intake, update: Mapping[str, Any]) -> None:
        identity = press_id(update)
        try:
            event = translate(update, session.reader)
        except MalformedUpdateError as error:
            self._warn(session, f"{', '.join(sorted(map(str, update))[:3])}: {error}")
            event = Skipped("malformed")
        async with trio.open_nursery() as nursery:
            if identity is not None:
                nursery.start_soon(self._answer_press, session, identity)
            match event:
                case InboundMessage():
                    await self._take(session, intake, event)
                case MessageEdit():
                    await self._until_stored(lambda: intake.edit(event))
                case Migration(old_chat=old, new_chat=new):
                    log.warning("group became a supergroup", extra=kv(chat=old, new_chat=new))
                    session.sender.moved[old] = new
                    session.moved_from[new] = old
                case Membership(chat=chat, chat_type=chat_type, status=status):
                    log.info(
                        "membership changed", extra=kv(key=self.key, chat=chat, chat_type=chat_type, status=status)
                    )
                case Skipped(reason=reason):
                    log.debug("update skipped", extra=kv(reason=reason))

    async def _take(self, session: _Session, intake: Intake, message: InboundMessage) -> None:
        if message.command is not None and message.author.is_moderator is None:
            is_moderator = await self._is_moderator(session, message)
            message = replace(message, author=replace(message.author, is_moderator=is_moderator))
        receipts: list[Receipt] = []

        async def take() -> None:
            receipts.append(await intake.take(message))

        await self._until_stored(take)
        if message.is_direct and Receipt.REFUSED in receipts:
            identity = message.metadata["chat_id"], message.author.id
            session.refused[identity] = replace(message, text="", attachments=(), reply_to=None)
            session.refused.move_to_end(identity)
            if len(session.refused) > REFUSED:
                session.refused.popitem(last=False)

    async def _until_stored(self, store: Callable[[], Awaitable[None]]) -> None:
        """Hand something in, again and again while the disk does not take it: the poll waits so long."""
        pause_s = 0.0
        while True:
            try:
                await store()
                return
            except StorageError as error:
                if not pause_s:
                    log.warning("not taken; trying again", extra=kv(key=self.key, reason=str(error)))
            except SpacebotError as error:  # the same would happen each time, and hold up everybody
                log.error("update given up", extra=kv(key=self.key, reason=str(error)))
                return
            pause_s = min(max(2 * pause_s, self._pause_s[0]), self._pause_s[1])
            await trio.sleep(pause_s)

    async def _answer_press(self, session: _Session, identity: str) -> None:
        """Take the waiting sign from a pressed button."""
        with trio.move_on_after(ANSWER_PRESS_S):
            try:
                await session.bot.answer_callback_query(identity)
            except TelegramError as error:  # too late, which only the person's screen sees
                log.debug("press not answered", extra=kv(reason=error.message))

    async def _is_moderator(self, session: _Session, message: InboundMessage) -> bool | None:
        """Whether somebody rules the group; None when the server does not tell."""
        chat, person = message.metadata["chat_id"], message.author.id
        known = session.moderators.get((chat, person))
        if known is not None and known[1] > trio.current_time():
            return known[0]
        try:
            member = await session.bot.ask("getChatMember", chat_id=chat, user_id=int(person))
        except TelegramError as error:
            log.warning("cannot ask who rules a group", extra=kv(chat=chat, reason=scrub(error.message)))
            return None
        is_moderator = member.get("status") in ("creator", "administrator")
        session.moderators[chat, person] = is_moderator, trio.current_time() + MODERATOR_S
        session.moderators.move_to_end((chat, person))
        if len(session.moderators) > REMEMBERED:
            session.moderators.popitem(last=False)
        return is_moderator

    async def _welcome(self, session: _Session, intake: Intake) -> None:
        """Tell those who were refused that they may write, once they may."""
        for identity, message in tuple(session.refused.items()):
            if not intake.is_admitted(message):
                continue
            del session.refused[identity]
            try:
                await session.bot.send_message(identity[0], WELCOME)
            except TelegramError as error:
                log.info("welcome not delivered", extra=kv(reason=error.message))

    def _warn(self, session: _Session, reason: str) -> None:
        """Warn once of each kind of broken update."""
        kind = reason.partition("(")[0]
        if kind not in session.warned and len(session.warned) < REMEMBERED:
            session.warned.add(kind)
            log.warning("update not understood", extra=kv(key=self.key, reason=scrub(reason)))


def _conflict(error: Conflict, key: str) -> DeliveryError:
    if "webhook" in error.message.lower():
        return DeliveryError(
            "another program has set a webhook for this bot, which takes its updates; it is removed at the next start",
            is_permanent=False,
        )
    text = (
        "another program polls with the same token; stop it, or get a token of its own from @BotFather "
        f"and put it into {table_of(key)}"
    )
    return DeliveryError(text, is_permanent=False)


def _menu(commands: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Name as Telegram allows it (it knows no hyphens) -> name and description."""
    menu: dict[str, tuple[str, str]] = {}
    for name, description in commands:
        shown, line = name.lower().replace("-", "_"), " ".join(description.split())[:256]
        if _COMMAND.fullmatch(shown) and line and len(menu) < 100:
            menu[shown] = name, line
        else:
            log.warning("command left out of the menu", extra=kv(command=name))
    return menu
