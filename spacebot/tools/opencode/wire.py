"""The HTTP face of an OpenCode server: sessions, prompts, answers, its event stream.

Flow:   OpenCodeApi.listen (events) beside create_session -> prompt -> answer_* -> messages | abort
Floor:  tools; imports httpx2
Source: tools spec 12.2; the OpenAPI document of opencode 1.18
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
import trio

from spacebot.base.errors import ExternalError
from spacebot.base.redaction import scrub
from spacebot.llm.sse import EventReader
from spacebot.tools.opencode.events import Event, MessageSeen, PartSeen, parse_event, parse_messages

USER = "opencode"  # the name that belongs to the server's password
CALL_S = 60.0  # for one call; work itself is waited for at the event stream
HEALTH_S = 5.0
MAX_ANSWER = 64 * 1024 * 1024  # bytes; a session's messages are the longest
ABORT_S = 1.0


class ServerLostError(ExternalError):
    """The server does not answer, or its stream has ended."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer that was read whole."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def check(self) -> None:
        """Raise ExternalError for a refusal."""
        if not self.is_success:
            words = " ".join(scrub(self.body[:2000].decode(errors="replace")).split())[:300]
            raise ExternalError(f"opencode refused a request ({self.status}){': ' if words else ''}{words}")


class OpenCodeApi:
    """One server, for one folder; made by `open_api`."""

    def __init__(self, http: httpx2.AsyncClient, directory: Path) -> None:
        self._http = http
        self._query = {"directory": str(directory)}

    async def is_healthy(self) -> bool:
        """Whether it answers as OpenCode does, and knows our password."""
        try:
            reply = await self._send("GET", "/global/health", timeout_s=HEALTH_S)
            answer = json.loads(reply.body)
        except (ServerLostError, ValueError, RecursionError):
            return False
        return reply.is_success and isinstance(answer, dict) and answer.get("healthy") is True

    async def create_session(self, title: str) -> str:
        """Begin a session; returns its id. Errors: ExternalError, ServerLostError."""
        answer = await self._call("POST", "/session", {"title": title})
        session = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(session, str) or not session:
            raise ExternalError("opencode began no session; is the program of a version that this one knows?")
        return session

    async def has_session(self, session: str) -> bool:
        """Whether a session still exists. Errors: ExternalError, ServerLostError."""
        reply = await self._send("GET", f"/session/{session}")
        if reply.status == 404:
            return False
        reply.check()
        return True

    async def is_busy(self, session: str) -> bool:
        """Whether a session is at work now. Errors: ExternalError, ServerLostError."""
        answer = await self._call("GET", "/session/status")
        status = answer.get(session) if isinstance(answer, dict) else None
        return isinstance(status, dict) and status.get("type", "idle") != "idle"

    async def prompt(self, session: str, text: str, *, system: str, model: str) -> None:
        """Hand in words; what comes of it is told at the event stream. Errors: ExternalError, ServerLostError.

        Args:
            model: `provider/model`.
        """
        provider, _, name = model.partition("/")
        body = {
            "parts": [{"type": "text", "text": text}],
            "model": {"providerID": provider, "modelID": name},
            "system": system,
        }
        await self._call("POST", f"/session/{session}/prompt_async", body)

    async def messages(self, session: str) -> list[tuple[MessageSeen, list[PartSeen]]]:
        """All messages of a session with their parts, oldest first. Errors: ExternalError, ServerLostError."""
        reply = await self._send("GET", f"/session/{session}/message")
        reply.check()
        return await trio.to_thread.run_sync(parse_messages, reply.body)  # of a long session these are megabytes

    async def abort(self, session: str) -> bool:
        """Stop what a session does; False when the server did not hear of it. Never raises, waits a second at most."""
        with trio.move_on_after(ABORT_S):
            try:
                return (await self._send("POST", f"/session/{session}/abort")).is_success
            except ExternalError:
                return False
        return False

    async def answer_permission(
        self, request: str, reply: Literal["once", "always", "reject"], message: str = ""
    ) -> None:
        """Answer a wish for permission; one that is no longer open is left alone. Errors: ExternalError."""
        body = {"reply": reply, **({"message": message} if message else {})}
        await self._answer(f"/permission/{request}/reply", body)

    async def answer_question(self, request: str, answers: Sequence[Sequence[str]]) -> None:
        """Answer questions: per question the labels chosen, or words. Errors: ExternalError, ServerLostError."""
        await self._answer(f"/question/{request}/reply", {"answers": [list(answer) for answer in answers]})

    async def listen(self, events: trio.MemorySendChannel[Event], begun: trio.Event) -> None:
        """Hand on every event until the stream ends; `begun` is set as soon as the server tells.

        Errors: ServerLostError, also when the stream ends by itself.
        """
        reader = EventReader()
        timeout = httpx2.Timeout(HEALTH_S, read=None)  # silence is judged by whoever waits for the work
        try:
            async with self._http.stream("GET", "/event", params=self._query, timeout=timeout) as response:
                _Reply(response.status_code, b"").check()
                begun.set()
                async for piece in response.aiter_bytes():
                    for data in reader.feed(piece):
                        if (event := parse_event(data)) is not None:
                            await _hand_over(events, event)
        except (httpx2.HTTPError, ValueError) as error:
            raise ServerLostError(f"opencode's event stream broke ({type(error).__name__})") from error
        raise ServerLostError("opencode ended its event stream")

    async def _answer(self, path: str, body: dict[str, Any]) -> None:
        reply = await self._send("POST", path, body)
        if reply.status != 404:
            reply.check()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        reply = await self._send(method, path, body)
        reply.check()
        if not reply.body:
            return None
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise ExternalError("opencode answered with something that is no JSON") from error

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = CALL_S
    ) -> _Reply:
        if self._http.is_closed:
            raise ServerLostError("opencode has ended")
        taken = bytearray()
        is_too_long = False
        try:
            async with self._http.stream(method, path, params=self._query, json=body, timeout=timeout_s) as response:
                with trio.CancelScope() as scope:  # so that httpx2's generators are left while they read
                    async for piece in response.aiter_bytes():
                        taken += piece
                        if len(taken) > MAX_ANSWER:
                            is_too_long = True
                            scope.cancel()
        except httpx2.HTTPError as error:
            raise ServerLostError(f"opencode does not answer ({type(error).__name__})") from error
        if is_too_long:
            raise ExternalError(f"opencode's answer is longer than {MAX_ANSWER // 1024**2} MiB and was not read")
        return _Reply(response.status_code, bytes(taken))


async def _hand_over(events: trio.MemorySendChannel[Event], event: Event) -> None:
    """As `send`, without a checkpoint where there is room: httpx2's generators should be left while they read."""
    try:
        events.send_nowait(event)
    except trio.WouldBlock:
        await events.send(event)


@asynccontextmanager
async def open_api(port: int, password: str, directory: Path) -> AsyncIterator[OpenCodeApi]:
    """Open the way to a server on this machine.

    Owns: the connections.
    """
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        auth=httpx2.BasicAuth(USER, password),
        timeout=CALL_S,
        trust_env=False,  # no proxy stands between us and our own child
        follow_redirects=False,
    ) as http:
        yield OpenCodeApi(http, directory)
