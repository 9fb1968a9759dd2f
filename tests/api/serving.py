"""The real server on a loopback port, over a program without a mind."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import trio

from spacebot.api.server import serve_api
from spacebot.api.sessions import conversation_of
from spacebot.base.ids import ConversationId
from spacebot.config.model import ApiConfig
from spacebot.storage.live_secrets import LiveSecrets
from tests.fakes.fake_program import FakeAgent, FakeProgram, open_fake_program

# httpx2 leaves the generators of a response that is not read to its end to the garbage collector.
UNREAD = "ignore:Async generator 'http:ResourceWarning"
SESSION = "portal:chat:main"
CONVERSATION = conversation_of(SESSION)


@dataclass(frozen=True)
class Event:
    """One server-sent event as it came over the wire."""

    name: str
    data: Any
    id: str | None


class Reader:
    """Reads the events of one response."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Event | None:
        """The next event; None at the end of the stream."""
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
        return None

    async def until(self, name: str) -> list[Event]:
        """All events up to the first one of this name, that one included."""
        events: list[Event] = []
        while (event := await self.next()) is not None:
            events.append(event)
            if event.name == name:
                return events
        raise AssertionError(f"the stream ended before {name!r}; it held {[e.name for e in events]}")

    async def messages(self, count: int) -> list[Event]:
        """The next `count` logged messages; other events are passed over."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            assert event is not None, "the stream ended"
            if event.name == "message":
                found.append(event)
        return found


class Served:
    """A running server with a client that talks to it."""

    def __init__(self, program: FakeProgram, url: str, stop: trio.Event, client: httpx2.AsyncClient) -> None:
        self.program = program
        self.url = url
        self.stop = stop
        self.client = client

    @property
    def agent(self) -> FakeAgent:
        """The default agent."""
        return self.program.main

    async def send(self, message: str, *, session_id: str = SESSION, **fields: Any) -> httpx2.Response:
        """Send a message without waiting for its answer."""
        body = {"agent_id": "main", "session_id": session_id, "message": message, **fields}
        return await self.client.post("/api/webchat/send", params={"wait": "false"}, json=body)

    @asynccontextmanager
    async def follow(self, **params: Any) -> AsyncIterator[Reader]:
        """Open a session stream."""
        query = {"agent_id": "main", "session_id": SESSION, **params}
        async with self.client.stream("GET", "/api/webchat/events", params=query) as response:
            assert response.status_code == 200, await response.aread()
            yield Reader(response)

    @asynccontextmanager
    async def ask(self, message: str, *, session_id: str = SESSION, **fields: Any) -> AsyncIterator[Reader]:
        """Send a message and read the events of its turn."""
        body = {"agent_id": "main", "session_id": session_id, "message": message, **fields}
        async with self.client.stream("POST", "/api/webchat/send", json=body) as response:
            assert response.status_code == 200, await response.aread()
            yield Reader(response)


@asynccontextmanager
async def open_server(
    folder: Path,
    *,
    config: ApiConfig | None = None,
    agents: Sequence[str] = ("main",),
    secrets: LiveSecrets | None = None,
    keep_alive_s: float = 15.0,
    grace_s: float = 5.0,
    patience_s: float = 20.0,
) -> AsyncIterator[Served]:
    """Open program and server; leaving it stops the server as the program does."""
    stop = trio.Event()
    with trio.fail_after(patience_s):
        async with open_fake_program(folder, agents) as program, trio.open_nursery() as nursery:
            serve = partial(
                serve_api,
                program,
                config or ApiConfig(port=0),
                events=program.events,
                tree=program.tree,
                run_id="run-1",
                stop=stop,
                secrets=secrets,
                keep_alive_s=keep_alive_s,
                grace_s=grace_s,
            )
            (url,) = await nursery.start(serve)
            async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
                yield Served(program, url, stop, client)
            stop.set()


async def logged(agent: FakeAgent, conversation_id: ConversationId = CONVERSATION) -> list[str]:
    """What the log holds, as texts."""
    return [row.content for row in await agent.conversations.history(conversation_id)]
