"""The owner's console over HTTP: threads, their messages, a question with its answer as a stream.

Flow:    POST send -> CortexChat.start -> frames thinking, text, tool_started, tool_completed, done or error
Floor:   api
Source:  control spec 4.5, 4.10; process spec 11
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.cortex_chat import THREADS, ChatEvent
from spacebot.api.requests import AGENT, Api, Body, Param, maybe, number, read_body, required, route
from spacebot.api.streams import EventStream, Frame
from spacebot.base.errors import BusyError, NotFoundError
from spacebot.base.ids import new_uuid
from spacebot.conversations.cortex_threads import Thread, ThreadMessage

PAGE, MAX_PAGE = 50, 200
_EVENTS = ("thinking", "text", "tool_started", "tool_completed", "done", "error")


class SendBody(Body):
    """`POST /api/cortex-chat/send`; without a thread a new one begins."""

    message: str
    agent_id: str | None = None
    thread_id: str | None = None
    channel_id: str | None = None


class CancelBody(Body):
    """`POST /api/cortex-chat/cancel`."""

    agent_id: str | None = None


class CortexChatRoutes:
    """Routes under `/api/cortex-chat`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        base = "/api/cortex-chat"
        return [
            route(
                f"{base}/messages",
                self.messages,
                query=[
                    AGENT,
                    Param("thread_id", "which; the latest when it is left out"),
                    Param("limit", "messages", int, PAGE, low=1, high=MAX_PAGE),
                ],
                answer={"thread_id": str, "messages": [ThreadMessage], "answering": maybe(str)},
            ),
            route(f"{base}/threads", self.threads, query=[AGENT], answer={"threads": [Thread]}),
            route(
                f"{base}/threads",
                self.delete,
                "DELETE",
                query=[AGENT, Param("thread_id", "which", is_needed=True)],
                answer={"success": bool},
            ),
            route(
                f"{base}/send",
                self.send,
                "POST",
                body=SendBody,
                stream={name: {"type": str, "thread_id": str, "*": Any} for name in _EVENTS},
            ),
            route(f"{base}/cancel", self.cancel, "POST", body=CancelBody, answer={"success": bool}),
        ]

    async def messages(self, request: Request) -> Response:
        """Messages of a thread in order; without `thread_id` of the latest, or of a fresh empty one."""
        chat = self._api.agent(request.query_params.get("agent_id")).cortex_chat
        threads, answering = chat.threads, chat.answering
        thread_id = request.query_params.get("thread_id") or await threads.latest() or new_uuid()
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        found = await threads.messages(thread_id, limit)
        return JSONResponse(
            {
                "thread_id": thread_id,
                "messages": [asdict(message) for message in found],
                # The thread whose question is being answered; before or after the messages were read, so that neither
                # a question nor an answer that came in between looks lost.
                "answering": answering or chat.answering,
            }
        )

    async def threads(self, request: Request) -> Response:
        """All threads, the latest first."""
        threads = self._api.agent(request.query_params.get("agent_id")).cortex_chat.threads
        return JSONResponse({"threads": [asdict(thread) for thread in await threads.threads(THREADS)]})

    async def delete(self, request: Request) -> Response:
        """Remove a thread for good; one that is being answered is refused, or its answer would come back alone."""
        chat = self._api.agent(request.query_params.get("agent_id")).cortex_chat
        thread_id = required(request, "thread_id")
        if thread_id == chat.answering:
            raise BusyError("a question of this thread is being answered; cancel it, then delete the thread")
        if not await chat.threads.delete(thread_id):
            raise NotFoundError("there is no such thread")
        return JSONResponse({"success": True})

    async def send(self, request: Request) -> EventStream:
        """Ask; the answer comes as a stream, and is written into the thread whether anybody reads that or not."""
        body = await read_body(request, SendBody)
        chat = self._api.agent(body.agent_id).cortex_chat
        self._api.program.note_visitor()
        thread_id, events = await chat.start(body.thread_id, body.message, channel_id=body.channel_id)

        @asynccontextmanager
        async def open_source() -> AsyncIterator[_Frames]:
            with events:
                yield _Frames(thread_id, events)

        return EventStream(self._api.streams, open_source)

    async def cancel(self, request: Request) -> Response:
        """End the running answer."""
        body = await read_body(request, CancelBody)
        return JSONResponse({"success": self._api.agent(body.agent_id).cortex_chat.cancel()})


class _Frames:
    """The events of one answer as frames."""

    def __init__(self, thread_id: str, events: "trio.MemoryReceiveChannel[ChatEvent]") -> None:
        self._thread_id = thread_id
        self._events = events

    async def receive(self) -> Frame | None:
        """Wait for the next frame; None after the answer."""
        try:
            return self._frame(await self._events.receive())
        except trio.EndOfChannel:
            return None

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        try:
            return self._frame(self._events.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    def _frame(self, event: ChatEvent) -> Frame:
        return Frame(event.kind, {"type": event.kind, "thread_id": self._thread_id, **event.fields})
