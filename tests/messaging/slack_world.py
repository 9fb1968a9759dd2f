"""A workspace on loopback with the bot in it, for tests of Slack's adapter."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from spacebot.base.errors import DeliveryError
from spacebot.config.messaging import SlackAccount
from spacebot.messaging.asyncio_bridge import AsyncioHost, open_asyncio_host
from spacebot.messaging.messages import InboundMessage, OutboundMessage, Target
from spacebot.messaging.slack.adapter import SlackAdapter
from tests.fakes.recording_intake import RecordingIntake
from tests.stand_ins.slack import SlackStandIn, open_slack

PATIENCE_S = 15  # a test that hangs, not a measure of anything


@dataclass
class World:
    """A workspace and the bot in it."""

    slack: SlackStandIn
    host: AsyncioHost
    intake: RecordingIntake
    adapter: SlackAdapter
    ended: list[DeliveryError] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    who: str = ""

    async def said(self, *args: Any, **more: Any) -> InboundMessage:
        """Let somebody post, and wait until it is taken."""
        count = len(self.intake.messages)
        self.slack.post(*args, **more)
        return (await self.intake.received(count + 1))[-1]

    async def send(self, target: Target | InboundMessage, text: str = "", **more: Any) -> list[str]:
        """Send a message; returns the ids that were noted."""
        ids: list[str] = []

        async def note(number: str) -> None:
            ids.append(number)

        target = target_of(target) if isinstance(target, InboundMessage) else target
        more.setdefault("id", "m1")
        await self.adapter.send(target, OutboundMessage(text=text, **more), note)
        return ids


def target_of(message: InboundMessage) -> Target:
    return Target(
        conversation_id=message.conversation_id,
        is_direct=message.is_direct,
        data=message.metadata,
        message_id=message.platform_id,
    )


def account_for(slack: SlackStandIn, **settings: Any) -> SlackAccount:
    return SlackAccount(**{"bot_token": "xoxb-good", "app_token": "xapp-good", "api_url": slack.api_url, **settings})


@asynccontextmanager
async def open_world(
    account: Mapping[str, Any] = {},
    intake: RecordingIntake | None = None,
    key: str = "slack",
    receipt_s: float = 2.5,
    **settings: Any,
) -> AsyncIterator[World]:
    """Everything connected.

    Args:
        account: settings beside the credentials.
        settings: those of the stand-in.
    """
    with trio.fail_after(PATIENCE_S):
        async with open_slack(**settings) as slack, open_asyncio_host() as host, trio.open_nursery() as nursery:
            slack.add_channel("C1", "general")
            slack.add_channel("C2", "random")
            slack.add_user("U1", "ann", display="Ann", real="Ann Lee")
            slack.add_user("U2", "bo", display="", real="Bo Berg", is_admin=True)
            slack.add_channel("D1", user="U1")
            adapter = SlackAdapter(
                account_for(slack, **account), key=key, host=host, reconnects=(0.0, 0.01), receipt_s=receipt_s
            )
            world = World(slack, host, intake or RecordingIntake(), adapter)

            async def run(task_status: trio.TaskStatus[str]) -> None:
                try:
                    await adapter.run(world.intake, task_status=task_status)
                except DeliveryError as error:
                    world.ended.append(error)
                finally:
                    world.over.set()

            world.who = await nursery.start(run)
            yield world
            nursery.cancel_scope.cancel()
        assert not slack.complaints, slack.complaints
        assert slack.sockets == 0
