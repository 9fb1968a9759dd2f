"""A Telegram account that talks with its stand-in, for tests of both directions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from pydantic import SecretStr

from spacebot.base.errors import DeliveryError
from spacebot.base.ids import ConversationId, MessageId
from spacebot.config.messaging import TelegramAccount
from spacebot.messaging.messages import (
    OutboundMessage,
    Target,
)
from spacebot.messaging.telegram.adapter import TelegramAdapter
from tests.fakes.recording_intake import RecordingIntake
from tests.stand_ins.telegram import TOKEN, Chat, Telegram, open_telegram


def adapter_of(telegram: Telegram, *, key: str = "telegram", token: str = TOKEN, **changes: Any) -> TelegramAdapter:
    options = {
        name: changes.pop(name) for name in ("commands", "poll_s", "patience_s", "edit_every_s") if name in changes
    }
    account = TelegramAccount(**({"token": SecretStr(token), "api_url": telegram.url} | changes))
    return TelegramAdapter(account, key=key, pause_s=(0.01, 0.02), **options)


@asynccontextmanager
async def connected(adapter: TelegramAdapter, intake: RecordingIntake) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(adapter.run, intake)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking(**changes: Any) -> AsyncIterator[tuple[Telegram, TelegramAdapter, RecordingIntake]]:
    intake = RecordingIntake()
    with trio.fail_after(10):
        async with open_telegram() as telegram:
            adapter = adapter_of(telegram, **changes)
            async with connected(adapter, intake):
                yield telegram, adapter, intake
            assert telegram.complaints == []


def target(chat: Chat, message_id: int | None = None, **data: Any) -> Target:
    return Target(
        conversation_id=ConversationId(f"telegram:{chat.id}"),
        data={"chat_id": chat.id, **data},
        message_id=None if message_id is None else str(message_id),
    )


def answer(text: str = "", **changes: Any) -> OutboundMessage:
    return OutboundMessage(id=MessageId("m1"), text=text, **changes)


async def send(adapter: TelegramAdapter, to: Target, message: OutboundMessage) -> list[str]:
    noted: list[str] = []

    async def note(identity: str) -> None:
        noted.append(identity)

    await adapter.send(to, message, note)
    return noted


async def refusal_of(adapter: TelegramAdapter, to: Target, message: OutboundMessage) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(adapter, to, message)
    return caught.value
