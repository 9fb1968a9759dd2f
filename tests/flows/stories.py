"""What the stories share: a daemon that is up for a while, a person who talks to it, a model's view of a request."""

import json
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.real_daemon import Daemon, Http
from tests.stand_ins import anthropic, openai
from tests.stand_ins.serving import Answer, Use

POLL_S = 0.03
PATIENCE_S = 30.0  # for what another process does; only a failing test waits so long
OPEN = frozenset({"accepted", "in_turn"})
DIALECTS = {"openai_completions": openai.serve_openai, "anthropic": anthropic.serve_anthropic}


@asynccontextmanager
async def up(daemon: Daemon) -> AsyncIterator["Person"]:
    """Start a daemon and talk to it; it is gone afterwards, however the block ends."""
    await trio.to_thread.run_sync(daemon.start)
    person = Person(daemon)
    try:
        yield person
    finally:
        with trio.CancelScope(shield=True):
            if daemon.process is not None and daemon.process.poll() is None:
                await trio.to_thread.run_sync(daemon.kill)
            await person.leave()


class Person:
    """Somebody who says things to a daemon and looks at what became of them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._http: Http | None = None

    async def request(self, method: str, path: str, payload: bytes = b"") -> tuple[int, Any]:
        """Ask the API; a connection that a restart or a refusal has cut is opened anew."""
        if self._http is None:
            self._http = Http(self.daemon.port)
        try:
            return await self._http.request(method, path, payload)
        except (OSError, trio.BrokenResourceError):
            await self.leave()
            raise

    async def get(self, path: str) -> Any:
        """Read something that must be there."""
        status, body = await self.request("GET", path)
        assert status == 200, (path, status, body)
        return body

    async def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        """Send JSON."""
        return await self.request("POST", path, json.dumps(fields).encode())

    async def say(self, text: str, session: str = "s", **fields: Any) -> str:
        """Say something that must be accepted; returns the message's id."""
        status, receipt = await self.post(
            "/api/webchat/send?wait=false",
            session_id=session,
            message=text,
            sender_name=fields.pop("by", "ann"),
            **fields,
        )
        assert status == 202, (status, receipt)
        message_id: str = receipt["message_id"]
        return message_id

    async def fate(self, message_id: str) -> Any:
        """What the ledger says of a message."""
        return await self.get(f"/api/messages/{message_id}/fate")

    async def settled(self, message_id: str) -> Any:
        """Wait until a message is dealt with; one whose turn was silent, once what it set going was told."""

        def is_settled(fate: Any) -> bool:
            is_put_off = fate["state"] == "skipped" and fate["is_pending"]
            return fate["state"] not in OPEN and not is_put_off and fate["turn_state"] != "running"

        return await wait_for(partial(self.fate, message_id), is_settled)

    async def answer(self, text: str, session: str = "s", **fields: Any) -> str:
        """Say something and wait for all that is answered to it."""
        fate = await self.settled(await self.say(text, session, **fields))
        return "\n".join(reply["content"] for reply in fate["replies"])

    async def history(self, session: str = "s", agent: str = "main") -> list[Any]:
        """All messages of a session, oldest first."""
        rows: list[Any] = await self.get(f"/api/webchat/history?agent_id={agent}&session_id={quote(session)}&limit=200")
        return rows

    async def texts(self, session: str = "s") -> list[str]:
        """What was said in a session, oldest first."""
        return [row["content"] for row in await self.history(session)]

    async def wait_for_text(self, part: str, session: str = "s") -> str:
        """Wait until the agent says something that holds these words."""

        async def find() -> str | None:
            said = [row["content"] for row in await self.history(session) if row["role"] == "assistant"]
            return next((text for text in said if part in text), None)

        return str(await wait_for(find))

    async def running(self, kind: str) -> list[Any]:
        """The running things of a kind."""
        return [node for node in (await self.get("/api/tree"))["processes"] if node["kind"] == kind]

    async def wait_running(self, kind: str, condition: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until what runs of a kind fits."""
        return list(await wait_for(partial(self.running, kind), condition))

    async def leave(self) -> None:
        """Close the connection."""
        if self._http is not None:
            await self._http.close()
            self._http = None


async def wait_for(read: Callable[[], Awaitable[Any]], condition: Callable[[Any], object] = bool) -> Any:
    """Look at another process, which sends us no event, until what is seen fits."""
    with trio.fail_after(PATIENCE_S):
        while not condition(seen := await read()):
            await trio.sleep(POLL_S)
    return seen


class Reader:
    """A browser that follows a session; it may stop reading for a while."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []

    async def event(self) -> tuple[str, Any]:
        """Name and data of the next event."""
        name = ""
        while True:
            line = await self._line()
            if line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                return name, json.loads(line[5:])

    async def said(self) -> tuple[int, str]:
        """Number and text of the next thing that the agent says."""
        while True:
            name, data = await self.event()
            if name == "message" and data["role"] == "assistant":
                return data["seq"], data["content"]

    async def _line(self) -> bytes:
        while not self._lines:
            data = await self._stream.receive_some(65536)
            assert data, "the stream has ended"
            self._rest.append(data)
            if b"\n" in data:
                *lines, rest = b"".join(self._rest).split(b"\n")
                self._lines.extend(lines)
                self._rest = [rest]
        return self._lines.popleft()


@asynccontextmanager
async def following(daemon: Daemon, session: str = "s", after: int = 0) -> AsyncIterator[Reader]:
    """Follow a session from a message's number on; the connection's own memory is small, so that lag shows."""
    with trio.socket.socket() as connection:
        connection.setsockopt(SOL_SOCKET, SO_RCVBUF, 8192)
        await connection.connect(("127.0.0.1", daemon.port))
        stream = trio.SocketStream(connection)
        path = f"/api/webchat/events?session_id={quote(session)}&after={after}"
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield Reader(stream)


async def run(daemon: Daemon, *words: str) -> Any:
    """A command of the program."""
    return await trio.to_thread.run_sync(lambda: daemon.run(*words))


def log_of(daemon: Daemon) -> str:
    """The program's log."""
    return (daemon.folder / "logs" / "spacebot.log").read_text()


async def wait_for_log(daemon: Daemon, *words: str) -> str:
    """Wait for a line of the log that holds all these words."""

    async def find() -> str | None:
        return next((line for line in log_of(daemon).splitlines() if all(word in line for word in words)), None)

    return str(await wait_for(find))


@dataclass(frozen=True)
class Asked:
    """A request as a model sees it, whatever its dialect."""

    tools: frozenset[str]
    system: str
    prompt: str  # the newest words of the user
    results: tuple[str, ...]  # of all tools so far
    is_result_last: bool

    @property
    def is_channel(self) -> bool:
        """Whether a channel asks."""
        return "reply" in self.tools

    @property
    def is_worker(self) -> bool:
        """Whether a worker asks."""
        return "set_status" in self.tools

    @property
    def said(self) -> str:
        """The prompt without the moment's circumstances."""
        return self.prompt.rpartition("</now>")[2].strip()


def read_request(body: Any) -> Asked:
    """Read a request of either dialect."""
    is_anthropic = "system" in body
    tools = frozenset(tool["name"] if is_anthropic else tool["function"]["name"] for tool in body.get("tools", ()))
    system = body["system"] if is_anthropic else [m["content"] for m in body["messages"] if m["role"] == "system"]
    results: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            results.append(_flat(message["content"]))
        elif isinstance(message["content"], list):
            results += [_flat(block.get("content")) for block in message["content"] if block["type"] == "tool_result"]
    last = body["messages"][-1]
    blocks = last["content"] if isinstance(last["content"], list) else []
    return Asked(
        tools=tools,
        system=_flat(system),
        prompt=(anthropic if is_anthropic else openai).last_user_text(body),
        results=tuple(results),
        is_result_last=last["role"] == "tool" or any(block["type"] == "tool_result" for block in blocks),
    )


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_flat(part.get("text", "") if isinstance(part, dict) else part) for part in content or ())


def reply(text: str) -> Answer:
    """The channel says something."""
    return Answer(uses=(Use("reply", {"content": text}),))


def outcome(text: str) -> Answer:
    """The worker reports."""
    return Answer(uses=(Use("set_status", {"status": text, "kind": "outcome"}),))


def browser(folder: Path) -> AbstractContextManager[Any]:
    """A window of a real browser. Without one the test is skipped, but fails where SPACEBOT_CI demands that it runs."""
    return _open_browser(folder)


@contextmanager
def _open_browser(folder: Path) -> Iterator[Any]:
    try:
        from tests.api import test_page as page
    except pytest.skip.Exception as reason:
        _go_without(str(reason))
    if not (page.CHROMIUM and page.DRIVER):
        _go_without("chromium or chromedriver is missing")
    with page.open_browser(folder) as window:
        yield window


def _go_without(reason: str) -> None:
    if os.environ.get("SPACEBOT_CI"):
        pytest.fail(f"{reason}, and SPACEBOT_CI is set")
    pytest.skip(reason)
