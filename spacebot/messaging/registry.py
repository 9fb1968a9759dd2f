"""Makes adapters from accounts. A platform's library is imported when the first account of it is configured.

Flow:    account -> build_adapter (import in a thread) -> adapter
Floor:   messaging
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from spacebot.config.messaging import AnyAccount
from spacebot.messaging.adapter import Adapter
from spacebot.messaging.asyncio_bridge import AsyncioHost

if TYPE_CHECKING:
    from spacebot.messaging.webhook import Mailbox, Post, Serve

_MODULES = {
    "discord": "spacebot.messaging.discord.adapter",
    "slack": "spacebot.messaging.slack.adapter",
    "telegram": "spacebot.messaging.telegram.adapter",
    "twitch": "spacebot.messaging.twitch",
    "webhook": "spacebot.messaging.webhook",
}


CHATTY = ("hikari", "slack_sdk", "telegram", "aiohttp")  # loggers whose informing lines hold people's data


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What adapters need of the floors above.

    Args:
        host: opens, or finds open, the loop that asyncio libraries live on.
        commands: (name, description) of each command that people can give.
        serve: hosts an ASGI app.
        post: sends bytes to an address that somebody configured.
        mailbox: what waits for those who fetch their answers.
    """

    host: Callable[[], Awaitable[AsyncioHost]] | None = None
    commands: Sequence[tuple[str, str]] = ()
    serve: "Serve | None" = None
    post: "Post | None" = None
    mailbox: "Mailbox | None" = None


async def build_adapter(platform: str, key: str, account: AnyAccount, seams: Seams) -> Adapter:
    """Make the adapter of an account.

    Errors: DeliveryError when the account cannot be one of the platform's (a token of the wrong form).
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    assert seams.host is not None
    module = await trio.to_thread.run_sync(import_module, _MODULES[platform])
    adapter: Adapter
    match platform:
        case "discord":
            adapter = module.DiscordAdapter(account, key=key, host=await seams.host(), commands=seams.commands)
        case "slack":
            adapter = module.SlackAdapter(account, key=key, host=await seams.host())
        case "telegram":
            adapter = module.TelegramAdapter(account, key=key, commands=seams.commands)
        case "twitch":
            adapter = module.TwitchAdapter(account, key=key)
        case _:
            adapter = module.WebhookAdapter(account, key=key, serve=seams.serve, mailbox=seams.mailbox, post=seams.post)
    return adapter
