"""What Discord keeps of a channel, as its gateway would have told it.

A session begins with all channels, each with the id of its newest message; so those are found too that nobody had
spoken in lately.

The library reads messages into objects of its own, and refuses a whole answer for one strange field. Here is a client
of the same library that leaves them as they are. It counts its rate limits by itself: they are those of calls that
nothing else makes.

Flow:    Link.missed -> Past.behind -> JSON as of MESSAGE_CREATE -> translate
Floor:   messaging
Source:  https://discord.com/developers/docs/resources/message#get-channel-messages;
         https://discord.com/developers/docs/events/gateway-events#message-create (what the gateway adds)
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import hikari
from hikari import impl

from spacebot.base.telemetry import kv
from spacebot.config.messaging import DiscordAccount
from spacebot.messaging.adapter import LATE_S
from spacebot.messaging.discord.translate import THREADS, first_id

log = logging.getLogger(__name__)

MISSED = 100  # messages of one channel that are caught up with
MEMBERS_S = 5.0  # for Discord to tell how a server knows those who wrote; they are known by less then
GUILDS_S = 2.0  # after the sign-in, for the servers' channels and roles to come in
NEWS = 40  # channels that nobody had spoken in lately and are asked all the same
_WITH_MESSAGES = frozenset({0, 2, 5, 13}) | THREADS  # types of channels; a forum has threads only

Json = dict[str, Any]


class _AsItIs(impl.EntityFactoryImpl):
    """Leaves messages and members as Discord writes them."""

    def deserialize_message(self, payload: Any) -> Any:
        return payload

    def deserialize_member(self, payload: Any, **_: Any) -> Any:
        return payload


class Past:
    """The way to what was said; lives on the asyncio loop, and is closed there."""

    def __init__(self, bot: hikari.GatewayBot, account: DiscordAccount, *, wait_s: float, retries: int) -> None:
        self._awaited: set[str] = set()  # servers that this session has not told of yet
        self._complete = asyncio.Event()
        self._news: dict[str, tuple[int, str]] = {}  # channel -> its newest message, its server; recent ones only
        self._rest = impl.RESTClientImpl(
            cache=None,
            entity_factory=_AsItIs(bot),
            executor=None,
            http_settings=bot.http_settings,
            proxy_settings=bot.proxy_settings,
            max_rate_limit=wait_s,
            max_retries=retries,
            token=account.token.get_secret_value(),
            token_type=hikari.TokenType.BOT,
            rest_url=account.rest_url.rstrip("/") if account.rest_url else None,
        )

    def note(self, name: str, payload: Mapping[str, Any]) -> None:
        """Look at how a session begins. Errors: those of strange JSON."""
        if name == "READY":
            self._awaited = {str(guild["id"]) for guild in payload.get("guilds") or ()}
            self._complete.clear()
            self._news.clear()
        elif name == "GUILD_CREATE":
            self._awaited.discard(str(payload["id"]))
            recent = int(first_id(datetime.now(UTC) - timedelta(seconds=LATE_S)))
            for channel in (*(payload.get("channels") or ()), *(payload.get("threads") or ())):
                newest = int(channel.get("last_message_id") or 0)
                if newest > recent and channel.get("type") in _WITH_MESSAGES:
                    self._news[str(channel["id"])] = newest, str(payload["id"])
        if not self._awaited:
            self._complete.set()

    async def news(self, after: str) -> list[tuple[str, str]]:
        """Channels, each with its server, whose newest messages are behind one; the newest first, at most `NEWS`."""
        try:
            async with asyncio.timeout(GUILDS_S):
                await self._complete.wait()
        except TimeoutError:
            log.info("some servers have not come in yet", extra=kv(servers=len(self._awaited)))
        found = sorted(((newest, channel, guild) for channel, (newest, guild) in self._news.items()), reverse=True)
        return [(channel, guild) for newest, channel, guild in found if newest > int(after)][:NEWS]

    async def close(self) -> None:
        """End what it has open."""
        if self._rest.is_alive:
            await self._rest.close()

    async def behind(self, channel: str, guild: str | None, after: str) -> list[Json]:
        """Messages behind one, oldest first, at most `MISSED`. Errors: the library's."""
        if not self._rest.is_alive:
            self._rest.start()
        found = self._rest.fetch_messages(int(channel), after=hikari.Snowflake(after)).limit(MISSED)
        messages = [dict(cast(Json, message)) async for message in found]
        if guild is None or not messages:
            return messages
        members = await self._members(guild, messages)
        return [message | {"guild_id": guild, "member": members.get(_writer(message), {})} for message in messages]

    async def _members(self, guild: str, messages: list[Json]) -> dict[str, Json]:
        """How a server knows those who wrote: by their names and roles there."""
        members: dict[str, Json] = {}
        people = {_writer(message) for message in messages if message.get("webhook_id") is None}
        try:
            async with asyncio.timeout(MEMBERS_S):
                for person in sorted(people - {""}):
                    try:
                        members[person] = dict(cast(Json, await self._rest.fetch_member(int(guild), int(person))))
                    except hikari.NotFoundError:
                        log.debug("somebody who wrote is gone")
        except (hikari.HTTPError, TimeoutError) as error:  # they are heard all the same
            log.info("roles of some who wrote not found", extra=kv(reason=type(error).__name__))
        return members


def _writer(message: Json) -> str:
    author = message.get("author")
    id = author.get("id") if isinstance(author, dict) else None
    return id if isinstance(id, str) and id.isascii() and id.isdigit() else ""
