"""The web chat: accept a message, stream what comes of it, follow a session, read it again.

`POST /api/webchat/send` answers with the events of the one turn that takes the message; a session stream
(`GET /api/webchat/events`) goes on for ever and also carries what arrives later, such as a worker's result.
Both are mere readers: none is needed for the work to be done, and one that vanishes changes nothing.

Flow:    send -> AgentHandle.accept -> TurnFrames over a session stream -> done
Floor:   api
Source:  messaging spec 14.5, control spec 4.8 and 8.3 (72, 73)
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import trio
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import AgentHandle
from spacebot.api.requests import AGAIN, AGENT, Api, Body, Param, number, read_body, required, resumed_number, route
from spacebot.api.sessions import (
    HELLO,
    MESSAGE,
    PAUSED,
    PLATFORM,
    SessionEvent,
    SessionStream,
    conversation_of,
    open_session_stream,
)
from spacebot.api.shapes import LINE, SESSION
from spacebot.api.streams import EventStream, Frame
from spacebot.base.clock import Clock
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId, MessageId
from spacebot.conversations.records import Accepted, Fate, LedgerState, TurnState
from spacebot.messaging.messages import MAX_TEXT, Author, InboundMessage

TERMINAL = "terminal"  # the session of the command line
_EVENTS = (
    "thinking", "text", "stream_start", "stream_chunk", "stream_end", "tool_started", "tool_completed", "skipped",
    "reaction", "file", "error", "stop_typing", "done",
)  # fmt: skip
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
HISTORY, MAX_HISTORY = 100, 200  # messages; messaging spec 14.5


class SendBody(Body):
    """`POST /api/webchat/send`. `client_id` names the message: sent again, it is recognised, not doubled."""

    agent_id: str | None = None
    session_id: Annotated[str, Field(min_length=1, max_length=200)]
    sender_name: Annotated[str, Field(min_length=1, max_length=100)] = "user"
    message: str
    client_id: Annotated[str | None, Field(min_length=1, max_length=100)] = None
    shared: bool = False  # several people use the session: bursts are batched, and silence is allowed


class WebchatRoutes:
    """Routes under `/api/webchat`."""

    def __init__(self, api: Api, clock: Clock, *, is_private: Callable[[], bool]) -> None:
        """Take what the routes need.

        Args:
            is_private: only people of this machine can come in. Otherwise names are mere claims, and what was
                learned from a session is shown to that session only.
        """
        self._api = api
        self._clock = clock
        self._is_private = is_private

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/webchat/send",
                self.send,
                "POST",
                query=[Param("wait", "false: answer at once with a receipt", default="true", one_of=("true", "false"))],
                body=SendBody,
                stream=dict.fromkeys(_EVENTS, Any),
                answers={202: {"message_id": str, "seq": int, "is_new": bool}},
            ),
            route(
                "/api/webchat/history",
                self.history,
                query=[
                    AGENT,
                    SESSION,
                    Param("limit", "messages", int, HISTORY, low=1, high=MAX_HISTORY),
                    Param("before", "number of the oldest message already known", int),
                ],
                answer=[LINE],
            ),
            route(
                "/api/webchat/events",
                self.events,
                query=[AGENT, SESSION, Param("after", "number of the newest message already known", int), AGAIN],
                stream={HELLO: {"*": Any}, MESSAGE: {"*": Any}},
            ),
            route(
                "/api/webchat/files/{message_id}", self.file, query=[AGENT, SESSION], media="application/octet-stream"
            ),
        ]

    async def send(self, request: Request) -> Response | EventStream:
        """Accept a message. Answers with its turn's events, or 202 at once (asked for JSON, or `wait=false`)."""
        body = await read_body(request, SendBody)
        agent = self._api.agent(body.agent_id)
        message = self._to_inbound(body, agent)
        if _is_hurried(request):
            return _receipt(await agent.accept(message))

        @asynccontextmanager
        async def open_source() -> AsyncIterator[TurnFrames]:
            conversation_id = message.conversation_id
            async with open_session_stream(agent, self._api.events, conversation_id, after_seq=None) as stream:
                last_seq = stream.last_seq
                accepted = await agent.accept(message)
                # Of a message that was sent before, the answer may be there already.
                read_fate = partial(agent.conversations.fate, accepted.message_id, channel_id=conversation_id)
                fate = None if accepted.is_new else await read_fate()
                frames = TurnFrames(stream, read_fate, accepted, fate, last_seq)
                if agent.is_paused and (fate is None or fate.state is LedgerState.ACCEPTED):
                    frames.put_off(PAUSED)
                yield frames

        return EventStream(self._api.streams, open_source)

    async def history(self, request: Request) -> Response:
        """The newest messages of a session, oldest first; `before` pages back."""
        agent, conversation_id = self._session(request)
        limit = number(request, "limit", HISTORY, low=1, high=MAX_HISTORY) or HISTORY
        before = number(request, "before", None)
        rows = await agent.conversations.history(conversation_id, limit=limit, before_seq=before)
        return JSONResponse(
            [
                {
                    "id": row.id, "role": row.role, "content": row.content, "seq": row.seq, "kind": row.kind,
                    "sender_name": row.sender_name, "reply_to": row.reply_to, "turn_id": row.turn_id,
                    "created_at": row.created_at, "file": None if row.file is None else asdict(row.file),
                }
                for row in rows
            ]
        )  # fmt: skip

    async def file(self, request: Request) -> Response:
        """A file that was sent in a session; a browser shows none but plain pictures, and runs nothing of it."""
        agent, conversation_id = self._session(request)
        file = await agent.conversations.sent_file(conversation_id, MessageId(request.path_params["message_id"]))
        if file is None or not await trio.to_thread.run_sync(file.path.is_file):
            raise HTTPException(404, "this session has no such file; it may have been removed with its message")
        return FileResponse(
            file.path,
            media_type=file.media_type,
            filename=file.filename,
            content_disposition_type="inline" if file.media_type in PICTURES else "attachment",
            headers={"content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff"},
        )

    async def events(self, request: Request) -> EventStream:
        """Follow a session: every message after `after` (or `Last-Event-ID`) exactly once, then what happens."""
        agent, conversation_id = self._session(request)
        after_seq = resumed_number(request)
        if after_seq is None:
            after_seq = number(request, "after", None)
        self._api.program.note_visitor()

        @asynccontextmanager
        async def open_source() -> AsyncIterator[SessionFrames]:
            async with open_session_stream(
                agent, self._api.events, conversation_id, after_seq=after_seq, tree=self._api.tree
            ) as stream:
                yield SessionFrames(stream)

        return EventStream(self._api.streams, open_source)

    def _session(self, request: Request) -> tuple[AgentHandle, ConversationId]:
        agent = self._api.agent(request.query_params.get("agent_id"))
        return agent, self._conversation(required(request, "session_id"))

    def _conversation(self, session_id: str) -> ConversationId:
        """The conversation of a session; the owner's terminal is nobody else's."""
        if not self._is_private() and session_id == TERMINAL:
            raise HTTPException(403, f"the session {TERMINAL!r} belongs to the owner's terminal; choose another")
        return conversation_of(session_id)

    def _to_inbound(self, body: SendBody, agent: AgentHandle) -> InboundMessage:
        if not body.message.strip():
            raise HTTPException(400, "the message is empty")
        if len(body.message) > MAX_TEXT:
            raise HTTPException(413, f"the message is longer than {MAX_TEXT} characters; send a part of it")
        return InboundMessage(
            platform=PLATFORM,
            conversation_id=self._conversation(body.session_id),
            author=Author(id=self._author_id(body), name=body.sender_name),
            text=body.message,
            sent_at=self._clock.now(),
            agent_id=agent.id,
            platform_id=body.client_id,
            is_direct=not body.shared,
        )

    def _author_id(self, body: SendBody) -> str:
        """The person's name, or where anybody may claim any name, one that nobody else can have."""
        if self._is_private():
            return body.sender_name
        return f"claimed:{body.session_id}:{body.sender_name}" if body.shared else f"session:{body.session_id}"


class SessionFrames:
    """Session events as frames; a delta that only adds to the one before is sent as what it adds."""

    def __init__(self, stream: SessionStream) -> None:
        self._stream = stream
        self._said: tuple[Any, str] = (None, "")  # turn and text of the last delta

    async def receive(self) -> Frame | None:
        """Wait for the next frame; None when the program stops."""
        event = await self._stream.receive()
        return None if event is None else self._to_frame(event)

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        event = self._stream.receive_nowait()
        return None if event is None else self._to_frame(event)

    def _to_frame(self, event: SessionEvent) -> Frame:
        data = event.data
        if event.name == EventKind.OUTBOUND_DELTA:
            data = self._shorten(data["turn_id"], data["text"], dict(data))
        return Frame(event.name, data, event.seq)

    def _shorten(self, turn_id: Any, text: str, data: dict[str, Any]) -> dict[str, Any]:
        known_turn, known = self._said
        self._said = (turn_id, text)
        if turn_id == known_turn and known and text.startswith(known):
            del data["text"]
            data["append"] = text[len(known) :]
        return data


class TurnFrames:
    """What comes of one accepted message, as frames of the seed's form, until its turn has ended.

    A turn is ours when it took our message: the ledger says so. Texts of an earlier turn that is still
    running, or of one that relays results, are left out.
    """

    def __init__(
        self,
        stream: SessionStream,
        read_fate: Callable[[], Awaitable[Fate | None]],
        accepted: Accepted,
        fate: Fate | None,
        last_seq: int,
    ) -> None:
        self._stream = stream
        self._read_fate = read_fate
        self._accepted = accepted
        self._turn_id: str | None = None
        self._other_turns: set[str] = set()
        self._is_streaming = self._has_complained = self._is_put_off = self._is_over = False
        self._frames: deque[Frame] = deque([Frame("thinking", "Thinking")])
        if fate is not None:
            self._recall(fate, last_seq)

    async def receive(self) -> Frame | None:
        """Wait for the next frame; None after `done`, or when the program stops."""
        while not self._frames:
            if self._is_over:
                return None
            event = await self._stream.receive()
            if event is None:
                return None
            await self._take(event)
        return self._frames.popleft()

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        return self._frames.popleft() if self._frames else None

    def put_off(self, reason: str) -> None:
        """End without an answer, which comes another time."""
        if not self._is_over:
            self._end(TurnState.SKIPPED, reason)

    async def _take(self, event: SessionEvent) -> None:
        data = event.data
        if event.name == HELLO:
            if data["skipped"]:  # the end of our turn may have been among what was lost
                fate = await self._read_fate()
                if fate is not None and _has_ended(fate):
                    self._end(fate.turn_state, fate.turn_detail or fate.reason)
        elif event.name == MESSAGE:
            if data["role"] == "assistant" and await self._is_ours(data):
                self._say(data["kind"], data["content"])
        elif event.name == EventKind.OUTBOUND_DELTA:
            if await self._is_ours(data):
                if not self._is_streaming:
                    self._is_streaming = True
                    self._frames.append(Frame("stream_start", "StreamStart"))
                self._frames.append(Frame("stream_chunk", {"StreamChunk": data["text"]}))
        elif event.name == EventKind.TOOL_STARTED:
            self._frames.append(Frame("tool_started", {"ToolStarted": {"tool_name": data["tool_name"]}}))
        elif event.name == EventKind.TOOL_COMPLETED:
            self._frames.append(Frame("tool_completed", {"ToolCompleted": {"tool_name": data["tool_name"]}}))
        elif event.name == EventKind.TURN_ENDED and (self._is_put_off or self._took_ours(data)):
            await self._turn_ended(data)

    async def _turn_ended(self, data: Mapping[str, Any]) -> None:
        """Go on when the turn said nothing because what it started has to say it."""
        fate = await self._read_fate()
        self._is_put_off = fate is not None and fate.state is LedgerState.SKIPPED and fate.is_pending
        if not self._is_put_off:
            self._end(data["outcome"], data.get("reason"))

    def _took_ours(self, data: Mapping[str, Any]) -> bool:
        return data["turn_id"] == self._turn_id or (data["last_seq"] or 0) >= self._accepted.seq

    async def _is_ours(self, data: Mapping[str, Any]) -> bool:
        turn_id, is_reply = data["turn_id"], data["reply_to"] == self._accepted.message_id
        if turn_id is None or self._turn_id is not None or turn_id in self._other_turns:
            return is_reply or (turn_id is not None and turn_id == self._turn_id)
        if not is_reply:
            fate = await self._read_fate()
            if fate is None or fate.turn_id != turn_id:
                self._other_turns.add(turn_id)
                return False
        self._turn_id = turn_id
        return True

    def _say(self, kind: str, text: str) -> None:
        if self._is_streaming and kind == "text":
            self._is_streaming = False
            self._frames.append(Frame("stream_end", "StreamEnd"))
        match kind:
            case "reaction":
                self._frames.append(Frame("reaction", {"Reaction": text}))
            case "notice":
                self._has_complained = True
                self._frames.append(Frame("error", {"Error": text}))
            case _:
                self._frames.append(Frame("text", {"Text": text}))

    def _end(self, outcome: str | None, reason: str | None) -> None:
        if self._is_streaming:
            self._frames.append(Frame("stream_end", "StreamEnd"))
        if outcome == TurnState.SKIPPED:
            self._frames.append(Frame("skipped", {"Skipped": reason or ""}))
        elif outcome in (TurnState.FAILED, TurnState.INTERRUPTED) and not self._has_complained:
            self._frames.append(Frame("error", {"Error": reason or f"the turn was {outcome}"}))
        self._frames.extend((Frame("stop_typing", "StopTyping"), Frame("done", "Done")))
        self._is_over = True

    def _recall(self, fate: Fate, last_seq: int) -> None:
        self._turn_id = fate.turn_id
        for reply in fate.replies:
            if reply.seq <= last_seq:
                self._say(reply.kind, reply.content)
        if _has_ended(fate):
            for reply in fate.replies:
                if reply.seq > last_seq:
                    self._say(reply.kind, reply.content)
            self._end(fate.turn_state, fate.turn_detail or fate.reason)


def _has_ended(fate: Fate) -> bool:
    if fate.state is LedgerState.SKIPPED and fate.is_pending:
        return False
    is_given_up = fate.state in (LedgerState.FAILED, LedgerState.SKIPPED, LedgerState.OBSERVED)
    return is_given_up or fate.turn_state in (TurnState.DONE, TurnState.SKIPPED, TurnState.FAILED)


def _is_hurried(request: Request) -> bool:
    if wait := request.query_params.get("wait", "").lower():
        return wait in ("false", "0", "no")
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/event-stream" not in accept


def _receipt(accepted: Accepted) -> Response:
    return JSONResponse({"message_id": accepted.message_id, "seq": accepted.seq, "is_new": accepted.is_new}, 202)
