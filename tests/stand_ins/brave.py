"""A stand-in for Brave's web search: one route, keys, one number a second, a quota a month.

Flow: open_brave() -> Brave; what was asked is in `asked`, what comes next is set in `next`

What a well-behaved client never does (unknown or empty parameters, a key in the address) is noted in `complaints`.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.stand_ins.serving import Connection, Request, Server, serve

KEY = "BSA-stand-in-key-of-the-tests"
PATH = "/res/v1/web/search"
KNOWN = {"q", "count", "country", "search_lang", "freshness"}
POLICY = "1;w=1, 2000;w=2592000"


@dataclass(slots=True)
class Brave:
    """The running stand-in."""

    server: Server | None = None
    pages: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    next: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)  # said instead, one for each request

    @property
    def url(self) -> str:
        """What `brave_search_url` is set to."""
        assert self.server is not None
        return f"{self.server.url}{PATH}"

    def limited(self, *, left: str, reset: str, code: str = "RATE_LIMITED", **headers: str) -> None:
        """Refuse the next request for a limit."""
        said = {
            "x-ratelimit-limit": "1, 2000",
            "x-ratelimit-policy": POLICY,
            "x-ratelimit-remaining": left,
            "x-ratelimit-reset": reset,
        }
        self.next.append((429, said | headers, problem(429, code, "Request rate limit exceeded for plan.")))

    async def handle(self, request: Request, connection: Connection) -> None:
        path, _, query = request.path.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        self._judge(path, query, parameters, request)
        self.asked.append(parameters)
        if self.next:
            status, headers, body = self.next.pop(0)
            await connection.send(body, status=status, headers=headers)
        elif request.headers.get("x-subscription-token") != KEY:
            body = problem(422, "SUBSCRIPTION_TOKEN_INVALID", "The provided subscription token is invalid.")
            await connection.send(body, status=403)
        else:
            found = self.pages[: int(parameters["count"])]
            await connection.send(json.dumps({"type": "search", "web": {"results": found}}).encode())

    def _judge(self, path: str, query: str, parameters: dict[str, str], request: Request) -> None:
        if path != PATH or request.method != "GET":
            self.complaints.append(f"{request.method} {path}")
        if unknown := parameters.keys() - KNOWN:
            self.complaints.append(f"unknown {unknown}")
        if empty := [name for name, value in parameters.items() if not value]:
            self.complaints.append(f"empty {empty}")
        if not 1 <= int(parameters.get("count", 0)) <= 20:
            self.complaints.append("count")
        if KEY in query:
            self.complaints.append("the key stands in the address")
        if request.headers.get("accept") != "application/json":
            self.complaints.append("accept")


def problem(status: int, code: str, detail: str) -> bytes:
    """A refusal as the service writes it."""
    return json.dumps({"type": "ErrorResponse", "error": {"status": status, "code": code, "detail": detail}}).encode()


@asynccontextmanager
async def open_brave() -> AsyncIterator[Brave]:
    """Serve on loopback; at the end nothing to complain about may be left."""
    brave = Brave()
    async with serve(brave.handle) as server:
        brave.server = server
        yield brave
    assert not brave.complaints, brave.complaints
