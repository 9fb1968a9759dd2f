"""The asyncio side of Slack: the Web API and one socket after the other. Only this file knows the library.

The library's socket client comes back by itself, endlessly and whatever Slack says; here a socket that is over
says so, and the adapter decides. Calls are never repeated blindly where a second time would say a thing twice.

Flow:    adapter -> open_link -> Link.call | Link.connect -> Envelope into the inlet -> Link.acknowledge
Floor:   messaging
Source:  messaging spec 18.4; slack-sdk 3.47 `socket_mode/aiohttp` and `web/async_internal_utils.py`
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import trio
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.http_retry.builtin_async_handlers import AsyncConnectionErrorRetryHandler
from slack_sdk.http_retry.builtin_interval_calculators import FixedValueRetryIntervalCalculator
from slack_sdk.socket_mode.aiohttp import SocketModeClient
from slack_sdk.socket_mode.async_client import AsyncBaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.web.async_client import AsyncWebClient

from spacebot.base.errors import DeliveryError
from spacebot.base.telemetry import kv
from spacebot.config.messaging import SlackAccount
from spacebot.config.tables import is_loopback_address
from spacebot.messaging.asyncio_bridge import AsyncioHost, Inlet
from spacebot.messaging.slack.refusals import lost, refusal

log = logging.getLogger(__name__)

API = "https://slack.com/api/"
CALL_S = 30.0  # one call of the Web API
UPLOAD_S = 600.0  # the bytes of one file
HELLO_S = 10.0  # from the opening of a socket until Slack greets
PING_S = 10.0  # a socket that stays silent for half as long again is dead
CLOSE_S = 0.5  # for Slack's own closing frame
GOODBYE_S = 1.5  # for all sockets and calls at the end
ONCE = ("chat.postMessage", "files.completeUploadExternal")  # a second time would say it twice

_library = logging.getLogger("slack_sdk")
_library.setLevel(max(_library.level, logging.WARNING))  # its debug lines hold whole messages


@dataclass(frozen=True, slots=True)
class Envelope:
    """What came over a socket.

    Args:
        number: of the socket; the receipt goes back on the same.
        received_at: seconds of `time.monotonic`, which both loops share.
    """

    id: str
    type: str
    payload: Mapping[str, Any]
    number: int
    attempt: int = 0
    received_at: float = field(default_factory=time.monotonic)


class _RepeatHarmless(AsyncConnectionErrorRetryHandler):
    """Tries a call again when a kept connection turned out to be closed, unless that might say something twice."""

    async def _can_retry_async(self, *, request: Any, **rest: Any) -> bool:
        harmless = not str(request.url).partition("?")[0].endswith(ONCE)
        return harmless and await super()._can_retry_async(request=request, **rest)


class _Socket(SocketModeClient):
    """One socket for its life, and no longer."""

    def __init__(self, app_token: str, web: AsyncWebClient, number: int, inlet: Inlet[Envelope]) -> None:
        super().__init__(app_token, logger=_library, web_client=web, auto_reconnect_enabled=False)
        self.proxy = web.proxy
        self.number = number
        self.greeted = asyncio.Event()  # or over before that
        self.is_greeted = False
        self.over = asyncio.Event()
        self.reason = ""
        self._inlet = inlet
        self.socket_mode_request_listeners.append(self._hand_over)

    async def connect(self) -> None:
        """Connect once; returns when Slack has greeted. Errors: those of aiohttp, OSError, TimeoutError."""
        self.current_session = await self.aiohttp_client_session.ws_connect(
            self.wss_uri or "",
            heartbeat=PING_S,
            proxy=self.proxy,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),  # type: ignore[call-arg, unused-ignore]
        )
        self.message_receiver = asyncio.ensure_future(self.receive_messages())
        async with asyncio.timeout(HELLO_S):
            await self.greeted.wait()
        if not self.is_greeted:
            raise ConnectionResetError("closed before the greeting")

    async def receive_messages(self) -> None:
        """Take frames until the socket is closed, by whomever."""
        assert self.current_session is not None
        try:
            async for message in self.current_session:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self.enqueue_message(message.data)
        finally:
            self.end("closed")

    async def run_message_listeners(self, message: dict[str, Any], raw_message: str) -> None:
        """Greetings and goodbyes are ours; what people did goes to the listeners."""
        if message.get("type") == "hello":
            self.is_greeted = True
            self.greeted.set()
        elif message.get("type") == "disconnect":
            self.end(str(message.get("reason")))
        else:
            await super().run_message_listeners(message, raw_message)

    async def connect_to_new_endpoint(self, force: bool = False) -> None:
        """The library would open the next socket here."""
        self.end("closed")

    def end(self, reason: str) -> None:
        """Note that no more can be expected of this socket; the first reason counts."""
        self.reason = self.reason or reason
        self.greeted.set()
        self.over.set()

    async def close(self) -> None:
        """Close for good; nothing of it is left on the loop."""
        tasks = [task for task in (self.message_processor, self.message_receiver) if task is not None]
        await super().close()  # type: ignore[no-untyped-call]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hand_over(self, _: AsyncBaseSocketModeClient, request: SocketModeRequest) -> None:
        self._inlet.put(
            Envelope(request.envelope_id, request.type, request.payload, self.number, request.retry_attempt or 0)
        )


@dataclass
class _Parts:
    """What lives on the loop. Touched there only."""

    session: aiohttp.ClientSession
    web: AsyncWebClient
    sockets: dict[int, _Socket] = field(default_factory=dict)
    count: int = 0


class Link:
    """A way to Slack for one account. Its methods are called from Trio; failures are `DeliveryError`s."""

    def __init__(self, account: SlackAccount, host: AsyncioHost) -> None:
        self._bot_token = account.bot_token.get_secret_value()
        self._app_token = account.app_token.get_secret_value()
        self._api = (account.api_url or API).rstrip("/") + "/"
        self._host = host
        self._parts: _Parts | None = None

    async def call(
        self, method: str, *, json: Mapping[str, Any] | None = None, form: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Call a method of the Web API as the bot; `json` for those that take it, else `form`."""
        return await self._host.run(self._call, method, json, form)

    async def open_socket_url(self) -> str:
        """Ask for the address of a new socket."""
        answer = await self._host.run(self._call, "apps.connections.open", None, {"token": self._app_token})
        return str(answer.get("url") or "")

    async def connect(self, url: str, inlet: Inlet[Envelope]) -> int:
        """Open a socket; returns its number once Slack has greeted."""
        return await self._host.run(self._connect, url, inlet)

    async def over(self, number: int) -> str:
        """Wait until a socket is over; returns why."""
        return await self._host.run(self._over, number)

    async def close_socket(self, number: int) -> None:
        """Close a socket that is over or no longer wanted."""
        await self._host.run(self._close_socket, number)

    async def acknowledge(self, envelope: Envelope, payload: Mapping[str, Any] | None = None) -> bool:
        """Tell Slack that an envelope need not come again; False when no socket is left to say it on."""
        return await self._host.run(self._acknowledge, envelope, payload)

    async def upload(self, url: str, path: Path) -> None:
        """Send the bytes of a file to the address that Slack gave for it."""
        await self._host.run(self._upload, url, path)

    async def open(self) -> None:
        """Make ready for calls."""
        await self._host.run(self._open)

    async def close(self) -> None:
        """Close all there is."""
        await self._host.run(self._close)

    async def _open(self) -> None:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S))
        web = AsyncWebClient(
            self._bot_token,
            base_url=self._api,
            session=session,
            logger=_library,
            retry_handlers=[_RepeatHarmless(1, FixedValueRetryIntervalCalculator(0.1))],
        )
        if is_loopback_address(urlsplit(self._api).hostname or ""):
            web.proxy = None  # a proxy for the outside cannot reach it
        self._parts = _Parts(session, web)

    async def _close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            await asyncio.gather(*(s.close() for s in parts.sockets.values()), return_exceptions=True)
            await parts.session.close()

    async def _call(
        self, method: str, json: Mapping[str, Any] | None, form: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        form = dict(form or {})
        token = form.pop("token", None)
        try:
            response = await self._ready().web.api_call(
                method,
                json=None if json is None else dict(json),
                data=None if json is not None else {name: _plain(value) for name, value in form.items()},
                headers=None if token is None else {"Authorization": f"Bearer {token}"},
            )
        except SlackApiError as error:
            raise _refused(method, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError, SlackClientError) as error:
            raise lost(method, error) from None
        if not isinstance(response.data, dict):
            raise DeliveryError(f"Slack answered {method} with something else than JSON", is_permanent=False)
        return response.data

    async def _upload(self, url: str, path: Path) -> None:
        parts = self._ready()
        try:
            with path.open("rb") as file:  # aiohttp reads it in a thread, piece by piece
                async with parts.session.post(
                    url,
                    data=file,
                    headers={"Content-Type": "application/octet-stream"},
                    proxy=parts.web.proxy,
                    timeout=aiohttp.ClientTimeout(total=UPLOAD_S),
                ) as answer:
                    status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise lost("the upload of a file", error) from None
        except OSError as error:
            raise DeliveryError(f"the file cannot be read ({error.strerror})", is_permanent=True) from error
        if status != 200:
            raise DeliveryError(
                f"Slack refused the bytes of a file (status {status})", is_permanent=400 <= status < 429
            )

    async def _connect(self, url: str, inlet: Inlet[Envelope]) -> int:
        parts = self._ready()
        parts.count += 1
        socket = _Socket(self._app_token, parts.web, parts.count, inlet)
        socket.wss_uri = url
        parts.sockets[socket.number] = socket
        try:
            await socket.connect()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            refused = lost("the socket", error)  # the library's own text holds the ticket
        else:
            return socket.number
        await self._close_socket(socket.number)
        raise refused

    async def _over(self, number: int) -> str:
        socket = self._ready().sockets[number]
        await socket.over.wait()
        return socket.reason

    async def _close_socket(self, number: int) -> None:
        socket = self._ready().sockets.pop(number, None)
        if socket is not None:
            await socket.close()

    async def _acknowledge(self, envelope: Envelope, payload: Mapping[str, Any] | None) -> bool:
        sockets = self._ready().sockets
        open_ones = [s for s in sockets.values() if s.current_session is not None and not s.current_session.closed]
        socket = next((s for s in open_ones if s.number == envelope.number), open_ones[-1] if open_ones else None)
        if socket is None:
            return False
        receipt: dict[str, Any] = {"envelope_id": envelope.id}
        if payload is not None:
            receipt["payload"] = dict(payload)
        try:
            await socket.send_socket_mode_response(receipt)
        except (aiohttp.ClientError, OSError) as error:
            log.info("receipt not sent; the event comes again", extra=kv(reason=type(error).__name__))
            return False
        return True

    def _ready(self) -> _Parts:
        if self._parts is None:
            raise DeliveryError("Slack is not connected just now", is_permanent=False)
        return self._parts


@asynccontextmanager
async def open_link(account: SlackAccount, host: AsyncioHost) -> AsyncIterator[Link]:
    """A link that is closed at the end of the block, also when that is cancelled."""
    link = Link(account, host)
    try:
        await link.open()
        yield link
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
            await link.close()


def _refused(method: str, error: SlackApiError) -> DeliveryError:
    answer = error.response
    data = getattr(answer, "data", None)
    status: int = getattr(answer, "status_code", 0) or getattr(answer, "status", 0)
    headers = {str(name).lower(): str(value) for name, value in dict(getattr(answer, "headers", None) or {}).items()}
    return refusal(method, data if isinstance(data, dict) else {}, status, headers.get("retry-after"))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
