"""What Discord keeps of a channel, as its gateway would have told it.

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
from typing import Any, cast

import hikari
from hikari import impl

from spacebot.base.telemetry import kv
from spacebot.config.messaging import DiscordAccount

log = logging.getLogger(__name__)

MISSED = 100  # messages of one channel that are caught up with
MEMBERS_S = 5.0  # for Discord to tell how a server knows those who wrote; they are known by less then
GUILD_S, LOOK_S = 5.0, 0.05  # for a server's roles and channels to come in, and between two looks

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
        self._bot = bot
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
        await self._await_guild(guild)
        members = await self._members(guild, messages)
        return [message | {"guild_id": guild, "member": members.get(_writer(message), {})} for message in messages]

    async def _await_guild(self, guild: str) -> None:
        """Wait until the gateway has told of a server; just after the sign-in it is about to."""
        for _ in range(int(GUILD_S / LOOK_S)):
            if self._bot.cache.get_guild(int(guild)) is not None:
                return
            await asyncio.sleep(LOOK_S)

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
