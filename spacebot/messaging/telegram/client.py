"""The library's bot as it is used here: on Trio, quiet, and with updates as JSON.

Flow:    open_bot -> TelegramBot
Floor:   messaging
Source:  messaging spec 18.1, 18.2, 18.5, 19.18 and 19.l
"""

import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx  # noqa: ASYNC127 - what the library is built on
import trio
from telegram import Bot
from telegram.error import NetworkError, TelegramError
from telegram.request import HTTPXRequest

# The library's own records hold addresses with the token, and what people write.
for _name in ("telegram", "httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)
os.environ.setdefault("PTB_TIMEDELTA", "true")  # the library's switch to its coming time type; without it, it warns

OFFICIAL: Final = "https://api.telegram.org"
WANTED: Final = ("message", "edited_message", "callback_query", "my_chat_member")
TIMEOUT_S: Final = 15.0  # of connecting, reading and each write; a poll's own time is added
CONNECTIONS: Final = 64
CHUNK: Final = 65_536  # bytes of one write


class TelegramBot(Bot):
    """The library's bot, and polls that give JSON: of its own a single unreadable update spoils the whole poll."""

    async def poll(self, offset: int | None, timeout_s: float) -> list[object]:
        """Wait for updates. Errors: TelegramError."""
        data = {"offset": offset, "timeout": int(timeout_s), "allowed_updates": list(WANTED)}
        updates = await self._post("getUpdates", data, read_timeout=TIMEOUT_S + timeout_s)
        if not isinstance(updates, list):
            raise NetworkError("the answer is no list of updates")
        return updates

    async def ask(self, method: str, **data: int | str) -> Mapping[str, Any]:
        """The object that a method answers with: the library's own types refuse those of older Bot API servers."""
        answer = await self._post(method, dict(data))
        if not isinstance(answer, Mapping):
            raise TelegramError("the answer is no object")
        return answer


@asynccontextmanager
async def open_bot(token: str, api_url: str | None, file_url: str | None) -> AsyncIterator[TelegramBot]:
    """A bot, whose connections are closed at the end.

    Args:
        api_url: of a server that the owner runs; None: Telegram's own.
        file_url: where that one has its files, when not under `api_url` + `/file`.

    Errors: telegram.error.InvalidToken when there is no token at all.
    """
    # A proxy of the environment is meant for the internet, not for a server that the owner runs.
    # Reading the certificates takes a while, so both are made in a thread.
    polling, calling = [
        await trio.to_thread.run_sync(_open_request, size, api_url is None) for size in (1, CONNECTIONS)
    ]
    try:
        yield TelegramBot(
            token,
            base_url=f"{api_url or OFFICIAL}/bot",
            base_file_url=f"{file_url or f'{api_url or OFFICIAL}/file'}/bot",
            get_updates_request=polling,
            request=calling,
        )
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            for request in (polling, calling):
                await request.shutdown()


class _Request(HTTPXRequest):
    """The library's HTTP, without its error records of answers that are no JSON, such as a gateway's page."""

    @staticmethod
    def parse_json_payload(payload: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(payload.decode("utf-8", "replace"))
        except ValueError as error:
            raise TelegramError("the answer is no JSON") from error
        if not isinstance(answer, dict) or ("result" not in answer and answer.get("ok") is not False):
            raise TelegramError("the answer is not one of the Bot API")
        return answer


def _open_request(connections: int, trust_env: bool) -> HTTPXRequest:
    return _Request(
        connection_pool_size=connections,
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        write_timeout=TIMEOUT_S,
        pool_timeout=TIMEOUT_S,
        httpx_kwargs={"trust_env": trust_env, "event_hooks": {"request": [_hold_body]}},
    )


async def _hold_body(request: httpx.Request) -> None:
    request.stream = _Body(await request.aread())


class _Body(httpx.AsyncByteStream):
    """A body that may be left half sent: httpx's own is an async generator, which Trio finds when it is collected."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sent = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._sent = 0
        return self

    async def __anext__(self) -> bytes:
        piece = self._data[self._sent : self._sent + CHUNK]
        if not piece:
            raise StopAsyncIteration
        self._sent += len(piece)
        return piece
