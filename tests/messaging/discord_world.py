"""The Discord adapter, signed in to a Discord of our own that Ann is on."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from pydantic import SecretStr

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import MessageId
from spacebot.config.messaging import DiscordAccount
from spacebot.messaging.asyncio_bridge import AsyncioHost, open_asyncio_host
from spacebot.messaging.discord.adapter import DiscordAdapter
from spacebot.messaging.messages import (
    InboundMessage,
    OutboundMessage,
    Target,
)
from tests.fakes.recording_intake import RecordingIntake
from tests.stand_ins.discord import DiscordStandIn, open_discord
from tests.stand_ins.discord_shapes import TOKEN

GUARD_S = 20.0  # a test that waits in vain ends by this


@dataclass
class World:
    """A server with one room and Ann in it, and the bot signed in."""

    standin: DiscordStandIn
    host: AsyncioHost
    adapter: DiscordAdapter
    intake: RecordingIntake
    guild: str
    room: str
    ann: str
    who: str = ""
    noted: list[str] = field(default_factory=list)

    async def said(self, text: str = "hello") -> InboundMessage:
        """Ann says something in the room, and it arrives."""
        count = len(self.intake.messages)
        self.standin.post(self.room, self.ann, text)
        return (await self.intake.received(count + 1))[-1]

    async def send(self, target: Target | InboundMessage, text: str = "", **more: Any) -> list[str]:
        """Send a message; returns what was noted as sent."""
        noted: list[str] = []

        async def note(id: str) -> None:
            noted.append(id)

        message = OutboundMessage(id=MessageId(more.pop("id", "m1")), text=text, **more)
        await self.adapter.send(target_of(target) if isinstance(target, InboundMessage) else target, message, note)
        return noted


def target_of(message: InboundMessage) -> Target:
    return Target(
        conversation_id=message.conversation_id,
        is_direct=message.is_direct,
        data=message.metadata,
        message_id=message.platform_id,
    )


def account(standin: DiscordStandIn, **more: Any) -> DiscordAccount:
    return DiscordAccount(token=SecretStr(more.pop("token", TOKEN)), rest_url=standin.rest_url, **more)


@asynccontextmanager
async def open_world(
    intake: RecordingIntake | None = None,
    *,
    key: str = "discord",
    commands: Sequence[tuple[str, str]] = (),
    retry_s: Sequence[float] = (0.0, 0.0),
    **more: Any,
) -> AsyncIterator[World]:
    async with open_discord() as standin, open_asyncio_host() as host:
        guild = standin.add_guild("Guild")
        room = standin.add_channel(guild, "general")
        ann = standin.add_user("ann", guild=guild)
        adapter = DiscordAdapter(
            account(standin, **more), key=key, host=host, commands=commands, retry_s=retry_s, retries=0
        )
        world = World(standin, host, adapter, intake or RecordingIntake(), guild, room, ann)
        with trio.fail_after(GUARD_S):
            async with trio.open_nursery() as nursery:
                world.who = await nursery.start(adapter.run, world.intake)
                await standin.until(lambda: standin.connected == 1)
                yield world
                nursery.cancel_scope.cancel()
            await standin.until(lambda: standin.connected == 0)
        assert not standin.complaints


async def failure_of(adapter: DiscordAdapter) -> DeliveryError:
    """What ends a run that cannot go on."""
    with trio.fail_after(GUARD_S):
        try:
            await adapter.run(RecordingIntake())
        except DeliveryError as error:
            return error
    raise AssertionError("it went on")
