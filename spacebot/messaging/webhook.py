"""The webhook: programs post messages, and fetch the answers or have them posted.

Flow:    POST /send -> intake.take -> 202; outbox -> mailbox -> GET /poll, or send -> callback_url
Floor:   messaging
Source:  messaging spec 14.6 and 19 no. 36; control spec 4.12
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import trio
from starlette.types import ASGIApp

from spacebot.base.clock import Clock
from spacebot.base.errors import ConfigError, DeliveryError, ExternalError, RefusedError
from spacebot.config.messaging import WebhookAccount
from spacebot.messaging.adapter import Destination, Intake, Location, Traits
from spacebot.messaging.messages import (
    MAX_TEXT,
    Attachment,
    HistoryLine,
    OutboundKind,
    OutboundMessage,
    Target,
)
from spacebot.messaging.webhook_http import MAX_FILE, PLATFORM, Mailbox, Routes, to_conversation, to_entry

__all__ = ["Mailbox", "Post", "Serve", "WebhookAdapter"]

log = logging.getLogger(__name__)

MAX_PAUSE_S = 3600.0  # that a receiver may ask for

Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[tuple[int, Mapping[str, str]]]]
"""Posts a body with headers to an address; gives the status and the headers of the answer.

Errors: RefusedError for an address that may not be used; ExternalError, OSError when nobody answered.
"""


class Serve(Protocol):
    """Hosts an app on a port until it is cancelled; started with the bound addresses. Errors: ConfigError."""

    async def __call__(
        self, app: ASGIApp, bind: str, port: int, *, task_status: trio.TaskStatus[tuple[str, ...]]
    ) -> None: ...


class WebhookAdapter:
    """One port.

    Args:
        post: only needed where the account has a `callback_url`.
    """

    platform = PLATFORM

    def __init__(
        self,
        account: WebhookAccount,
        *,
        key: str,
        serve: Serve,
        mailbox: Mailbox,
        post: Post | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.key = key
        self.traits = Traits(max_characters=MAX_TEXT, max_file_bytes=MAX_FILE, is_pulled=account.callback_url is None)
        self._account = account
        self._serve = serve
        self._mailbox = mailbox
        self._post = post
        self._clock = clock or Clock()
        self._token = account.auth_token.get_secret_value() if account.auth_token is not None else None
        self._has_warned = False
        self.url: str | None = None

    async def run(self, intake: Intake, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Adapter`. `started` with the address that it listens at, which is also `url` while it runs."""
        if self._token is None and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the webhook has no token: every program of this machine may speak to the agent",
                extra={"kv": {"adapter": self.key, "remedy": "set auth_token in [messaging.webhook]"}},
            )
        mailbox = self._mailbox if self.traits.is_pulled else None
        token = None if self._token is None else self._token.encode()
        app = Routes(self.key, intake, mailbox, self._clock).app(token=token)
        failure: DeliveryError | None = None
        async with trio.open_nursery() as nursery:
            try:
                urls = await nursery.start(partial(self._serve, app, self._account.bind, self._account.port))
                self.url = urls[0]
                task_status.started(urls[0])
                await trio.sleep_forever()
            except ConfigError as error:
                failure = DeliveryError(str(error), is_permanent=False)
            finally:
                self.url = None
        if failure is not None:
            raise failure

    async def send(self, target: Target, message: OutboundMessage, note_sent: Callable[[str], Awaitable[None]]) -> None:
        """Post an answer to the owner's address. Errors: DeliveryError."""
        address = self._account.callback_url
        if address is None or self._post is None:
            raise DeliveryError("answers wait until they are fetched with GET /poll; none is pushed", is_permanent=True)
        if message.kind is OutboundKind.REACTION:
            raise DeliveryError("a webhook has no reactions; answer with words instead", is_permanent=True)
        if message.id in message.sent:
            return
        body = await trio.to_thread.run_sync(self._render, target, message)
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            status, answer = await self._post(address, body, headers)
        except RefusedError as error:
            raise DeliveryError(f"messaging.webhook.callback_url: {error}", is_permanent=True) from error
        except (ExternalError, OSError, trio.TooSlowError) as error:
            raise DeliveryError(
                f"messaging.webhook.callback_url does not answer: {error}", is_permanent=False
            ) from error
        if not 200 <= status < 300:
            raise _to_error(status, answer)
        await note_sent(message.id)

    def _render(self, target: Target, message: OutboundMessage) -> bytes:
        known: dict[str, Any] = {"conversation_id": target.conversation_id.removeprefix(f"{self.key}:")}
        if target.message_id is not None:
            known["reply_to"] = target.message_id
        return json.dumps(known | to_entry(message), ensure_ascii=False).encode()

    async def show_typing(self, target: Target) -> None:
        """There is no such sign."""

    async def stop_typing(self, target: Target) -> None:
        """There is no such sign."""

    async def draft(self, target: Target, text: str, draft_id: str | None) -> str:
        """Messages cannot be edited. Errors: DeliveryError, always."""
        raise DeliveryError("messages of a webhook cannot be edited", is_permanent=True)

    async def drop_draft(self, target: Target, draft_id: str) -> None:
        """There are no drafts."""

    async def history(self, target: Target, limit: int) -> Sequence[HistoryLine]:
        """Nothing was said anywhere else."""
        return ()

    async def locate(self, attachment: Attachment) -> Location:
        """Where the program that posted it said it is."""
        return Location(url=attachment.url)

    async def resolve(self, address: str) -> Destination:
        """A conversation by the id that programs use for it."""
        try:
            conversation_id = to_conversation(self.key, address)
        except RefusedError as error:
            raise DeliveryError(str(error), is_permanent=True) from error
        plain = conversation_id.removeprefix(f"{self.key}:")
        return Destination(conversation_id=conversation_id, name=plain, is_direct=True, data={"id": plain})

    async def check(self) -> str:
        """Whether it listens."""
        if self.url is None:
            raise DeliveryError("the webhook does not listen at the moment", is_permanent=False)
        return f"listening at {self.url}"


def _to_error(status: int, headers: Mapping[str, str]) -> DeliveryError:
    is_permanent = status < 500 and status not in (408, 429)
    asked = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    pause_s = min(MAX_PAUSE_S, float(asked)) if asked.isdecimal() else None
    what = "look at what receives it" if status >= 400 else "put the final address into it"
    return DeliveryError(
        f"messaging.webhook.callback_url answered with status {status}; {what}",
        is_permanent=is_permanent,
        retry_after_s=None if is_permanent else pause_s,
    )
