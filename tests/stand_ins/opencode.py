"""A stand-in for the OpenCode program: a script that only says where it listens, and a server of the test's own.

    async with serve_opencode(tmp_path) as stand_in:
        ... path=str(stand_in.program) ...
        await stand_in.tell(say("Hello."), idle())

The shapes are those that opencode 1.18 was seen to send.
"""

import base64
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.stand_ins.serving import Connection, Request, serve

SESSION = "ses_1"


@dataclass
class OpenCodeStandIn:
    """What it was asked, and what it says."""

    program: Path
    starts: Path
    prompts: list[dict[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    replies: list[tuple[str, Any]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)  # one for each start of the program
    sessions: list[str] = field(default_factory=list)
    messages: list[Any] | None = field(default_factory=list)  # None: the list cannot be had
    is_stranger: bool = False  # something else answers at the port
    is_first_slow: bool = False  # the first server that was started is never ready
    _listener: Connection | None = None

    @property
    def started(self) -> int:
        """How often the program was started."""
        return len(self.starts.read_text().splitlines()) if self.starts.exists() else 0

    async def tell(self, *events: dict[str, Any]) -> None:
        """Send events as the program does."""
        await self.send([b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events])

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Send bytes, each piece in a write of its own."""
        assert self._listener is not None, "nobody listens"
        for piece in pieces:
            await self._listener.go_on([piece], is_end=False)

    async def hang_up(self) -> None:
        """End the event stream."""
        assert self._listener is not None
        await self._listener.cut()

    async def handle(self, request: Request, connection: Connection) -> None:
        """One request."""
        login = request.headers.get("authorization", "")
        if login not in self.logins:
            self.logins.append(login)
        path = request.path.partition("?")[0]
        if path == "/event":
            await connection.begin_stream([b'data: {"type":"server.connected","properties":{}}\n\n'])
            self._listener = connection
            await trio.sleep_forever()
        body = json.loads(request.body) if request.body else None
        status, answer = self._answer(request.method, path, body)
        if path == "/global/health" and self.is_first_slow and login == self.logins[0]:
            status = 503
        await connection.send(b"" if answer is None else json.dumps(answer).encode(), status=status)

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/global/health":
            return 200, {"ok": True} if self.is_stranger else {"healthy": True, "version": "1.18.33"}
        if (method, path) == ("POST", "/session"):
            self.sessions.append(f"ses_{len(self.sessions) + 1}")
            return 200, {"id": self.sessions[-1], "title": body["title"]}
        if path == "/session/status":
            return 200, {}
        if reply := re.fullmatch(r"/(permission|question)/(\w+)/reply", path):
            self.replies.append((reply[2], body))
            return 200, True
        session, _, action = path.removeprefix("/session/").partition("/")
        if session not in self.sessions:
            return 404, {"name": "NotFoundError", "data": {"message": f"Session not found: {session}"}}
        if action == "prompt_async":
            self.prompts.append({**body, "session": session})
            return 204, None
        if action == "abort":
            self.aborted.append(session)
            return 200, True
        if action == "message":
            return (500, {"name": "UnknownError"}) if self.messages is None else (200, self.messages)
        return 200, {"id": session}


@asynccontextmanager
async def serve_opencode(folder: Path) -> AsyncIterator[OpenCodeStandIn]:
    """Serve while the block runs; the script lies in `folder`."""
    stand_in = OpenCodeStandIn(folder / "opencode", folder / "opencode-starts")
    async with serve(stand_in.handle) as server:
        stand_in.program.write_text(
            f"#!/bin/sh\necho start >> '{stand_in.starts}'\n"
            f"echo 'opencode server listening on {server.url}'\nexec sleep 100000\n"
        )
        stand_in.program.chmod(0o755)
        yield stand_in


def password_of(login: str) -> str:
    """What stands in a Basic authorization after the name."""
    return base64.b64decode(login.removeprefix("Basic ")).decode().partition(":")[2]


def event(kind: str, **properties: Any) -> dict[str, Any]:
    """One event."""
    return {"id": "evt_1", "type": kind, "properties": properties}


def message(number: int = 1, *, role: str = "assistant", session: str = SESSION) -> dict[str, Any]:
    """A message begins."""
    return event("message.updated", info={"id": f"msg_{number}", "role": role, "sessionID": session})


def text(words: str, number: int = 1, *, session: str = SESSION, part: str = "prt") -> dict[str, Any]:
    """Words of a message, as they stand."""
    return event(
        "message.part.updated",
        part={
            "id": f"{part}_{number}",
            "messageID": f"msg_{number}",
            "sessionID": session,
            "type": "text",
            "text": words,
        },
    )


def say(words: str, number: int = 1, *, session: str = SESSION) -> tuple[dict[str, Any], dict[str, Any]]:
    """A whole message."""
    return message(number, session=session), text(words, number, session=session)


def tool(name: str, state: str, number: int = 1, *, session: str = SESSION, **arguments: Any) -> dict[str, Any]:
    """A tool's use."""
    part = {
        "id": f"prt_tool_{number}",
        "messageID": f"msg_{number}",
        "sessionID": session,
        "type": "tool",
        "tool": name,
        "callID": "call_0",
        "state": {"status": state, "input": arguments},
    }
    return event("message.part.updated", part=part)


def idle(session: str = SESSION) -> dict[str, Any]:
    """Nothing left to do."""
    return event("session.idle", sessionID=session)


def question(*labels: str, session: str = SESSION) -> dict[str, Any]:
    """A question with these options."""
    asked = {"question": "Which colour?", "header": "Colour", "options": [{"label": label} for label in labels]}
    return event("question.asked", id="que_1", sessionID=session, questions=[asked])


def permission(command: str, *, session: str = SESSION) -> dict[str, Any]:
    """A wish to run a command."""
    return event(
        "permission.asked", id="per_1", sessionID=session, permission="bash", patterns=[command], metadata={}, always=[]
    )
