"""A stand-in for the authority behind `spacebot auth login`: hands out codes and tokens, each refresh token once.

The page that a person would see is asked by a test: GET the address, and the answer is what is to be copied.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from tests.stand_ins.serving import Connection, Request, Server, serve

CLIENT = "9d1c250a-e61b-44d9-88ed-5944d1962f5e"
REDIRECT = "https://console.anthropic.com/oauth/code/callback"
SCOPES = "org:create_api_key user:profile user:inference"


@dataclass
class Authority:
    """What it has given out, and how it behaves."""

    server: Server | None = None
    lifetime_s: float = 28_800
    challenges: dict[str, str] = field(default_factory=dict)  # code -> challenge
    states: dict[str, str] = field(default_factory=dict)
    live_refresh: set[str] = field(default_factory=set)
    live_access: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies at the token address
    complaints: list[str] = field(default_factory=list)  # what a real one would refuse
    fault: tuple[int, bytes] | None = None  # answered instead
    hold: trio.Event | None = None  # answers wait for it, after the tokens were made

    @property
    def authorize_url(self) -> str:
        assert self.server is not None
        return f"{self.server.url}/oauth/authorize"

    @property
    def token_url(self) -> str:
        assert self.server is not None
        return f"{self.server.url}/v1/oauth/token"

    @property
    def environment(self) -> dict[str, str]:
        """What makes the program come here."""
        return {
            "SPACEBOT_OAUTH_AUTHORIZE_URL": self.authorize_url,
            "SPACEBOT_OAUTH_TOKEN_URL": self.token_url,
        }

    def approve(self, url: str) -> str:
        """What a person who says yes at this address is shown: `code#state`."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        wanted = {
            "code": "true", "client_id": CLIENT, "response_type": "code", "redirect_uri": REDIRECT, "scope": SCOPES,
            "code_challenge_method": "S256",
        }  # fmt: skip
        self.complaints += [f"{name}={query.get(name)!r}" for name, value in wanted.items() if query.get(name) != value]
        code = f"code-{secrets.token_urlsafe(12)}"
        self.challenges[code], self.states[code] = query["code_challenge"], query["state"]
        return f"{code}#{query['state']}"

    def revoke(self) -> None:
        """Nothing that was given out counts any more."""
        self.live_refresh.clear()
        self.live_access.clear()

    def issue(self) -> dict[str, Any]:
        """A fresh pair."""
        access = f"sk-ant-oat01-{secrets.token_urlsafe(24)}"
        refresh = f"sk-ant-ort01-{secrets.token_urlsafe(24)}"
        self.live_access.append(access)
        self.live_refresh.add(refresh)
        return {
            "token_type": "Bearer", "access_token": access, "refresh_token": refresh, "expires_in": self.lifetime_s,
            "scope": SCOPES,
        }  # fmt: skip

    async def handle(self, request: Request, connection: Connection) -> None:
        """One request."""
        path = urlsplit(request.path).path
        if request.method == "GET" and path == "/oauth/authorize":
            await connection.send(self.approve(request.path).encode(), content_type="text/plain")
            return
        if request.method != "POST" or path != "/v1/oauth/token":
            await connection.send(b"{}", status=404)
            return
        body = request.json()
        self.asked.append(body)
        if self.fault is not None:
            await connection.send(self.fault[1], status=self.fault[0])
            return
        error = self._refusal(body)
        answer = {"error": "invalid_grant", "error_description": error} if error else self.issue()
        if self.hold is not None:
            await self.hold.wait()
        await connection.send(json.dumps(answer).encode(), status=400 if error else 200)

    def _refusal(self, body: dict[str, Any]) -> str | None:
        if body.get("client_id") != CLIENT:
            return "unknown client"
        if body.get("grant_type") == "refresh_token":
            token = body.get("refresh_token")
            if token not in self.live_refresh:
                return "refresh token not found or already used"
            self.live_refresh.discard(token)
            return None
        code = body.get("code")
        challenge = self.challenges.pop(code, None)
        verifier = body.get("code_verifier", "").encode()
        made = base64.urlsafe_b64encode(hashlib.sha256(verifier).digest()).decode().rstrip("=")
        is_right = challenge == made and self.states.get(code) == body.get("state")
        return None if is_right and body.get("redirect_uri") == REDIRECT else "code is not valid"


@asynccontextmanager
async def serve_authority(*, lifetime_s: float = 28_800) -> AsyncIterator[Authority]:
    """Serve an authority while the block runs."""
    authority = Authority(lifetime_s=lifetime_s)
    async with serve(authority.handle) as server:
        authority.server = server
        yield authority
