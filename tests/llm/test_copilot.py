"""GitHub Copilot: a key becomes a token, kept in a file, and shown to its own host only.

Only GitHub's own hosts may see keys and tokens, so these tests end at httpx2's in-memory transport.
"""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import ModelRejectedError, ModelUnavailableError
from spacebot.base.redaction import scrub
from spacebot.llm.copilot import TOKEN_URL, CopilotTokens
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.routing import resolve
from spacebot.llm.transport import Transport
from tests.llm.given import KEY, ask, long_talk, providers
from tests.stand_ins.openai import render
from tests.stand_ins.serving import Answer

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOST = "https://api.business.githubcopilot.com"


@dataclass
class GitHub:
    """Both hosts: what they got, and what they answer."""

    now: datetime = NOW
    token: dict[str, Any] = field(default_factory=lambda: {"endpoints": {"api": HOST}})
    status: int = 200
    refused: set[str] = field(default_factory=set)  # tokens that the models' host does not accept
    asked: list[httpx2.Request] = field(default_factory=list)
    exchanges: int = 0

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        if str(request.url) == TOKEN_URL:
            self.exchanges += 1
            fields = {"token": f"bought-token-{self.exchanges}", "expires_at": self.now.timestamp() + 1500}
            return httpx2.Response(self.status, json=fields | self.token)
        if request.headers["authorization"].removeprefix("Bearer ") in self.refused:
            return httpx2.Response(401, json={"error": {"message": "token expired"}})
        events = b"".join(render(Answer(text="hi")))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events)

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Addresses and credentials of all requests."""
        return [(str(request.url), request.headers["authorization"]) for request in self.asked]


@asynccontextmanager
async def dialect(github: GitHub, file: Path | None = None) -> AsyncIterator[OpenAiChatDialect]:
    async with AsyncExitStack() as stack:
        transport = Transport(stack, lambda ssl: httpx2.AsyncClient(transport=httpx2.MockTransport(github.answer)))
        yield OpenAiChatDialect(transport, CopilotTokens(transport, file, clock=Clock(lambda: github.now)))


async def say(chat: OpenAiChatDialect, key: str = KEY.get_secret_value()) -> str:
    llm = providers("github-copilot")
    llm.provider["github-copilot"] = llm.provider["github-copilot"].model_copy(update={"api_key": type(KEY)(key)})
    reply = await chat.complete(ask(), resolve("github-copilot/gpt-5-mini", llm), lambda delta: None)
    return reply.message.text


async def test_the_key_goes_to_github_and_its_token_to_the_models() -> None:
    github = GitHub()
    async with dialect(github) as chat:
        assert [await say(chat), await say(chat)] == ["hi", "hi"]
    assert github.shown == [
        (TOKEN_URL, f"token {KEY.get_secret_value()}"),
        (f"{HOST}/chat/completions", "Bearer bought-token-1"),
        (f"{HOST}/chat/completions", "Bearer bought-token-1"),
    ]
    for request in github.asked:
        assert request.headers["editor-version"] == "vscode/1.96.2"
        assert request.headers["editor-plugin-version"] == "copilot-chat/0.26.7"
    assert "bought-token-1" not in scrub("an error that quotes bought-token-1")


async def test_pictures_are_announced() -> None:
    github = GitHub()
    target = resolve("github-copilot/gpt-5-mini", providers("github-copilot"))
    async with dialect(github) as chat:
        await chat.complete(ask(), target, lambda delta: None)
        await chat.complete(long_talk(), target, lambda delta: None)
    assert [request.headers.get("copilot-vision-request") for request in github.asked] == [None, None, "true"]


async def test_many_who_ask_at_once_buy_one_token() -> None:
    github = GitHub()
    async with dialect(github) as chat, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(say, chat)
    assert github.exchanges == 1


async def test_a_token_is_renewed_five_minutes_before_it_ends() -> None:
    github = GitHub()
    async with dialect(github) as chat:
        await say(chat)
        github.now += timedelta(seconds=1199)
        await say(chat)
        assert github.exchanges == 1
        github.now += timedelta(seconds=2)
        await say(chat)
    assert github.shown[-1][1] == "Bearer bought-token-2"


async def test_a_restart_goes_on_with_the_token_and_another_key_does_not(tmp_path: Path) -> None:
    github, file = GitHub(), tmp_path / "token.json"
    async with dialect(github, file) as chat:
        await say(chat)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KEY.get_secret_value() not in file.read_text()
    async with dialect(github, file) as chat:
        await say(chat)
        assert github.exchanges == 1
        await say(chat, "another-key-0987654321")
    assert github.exchanges == 2
    assert [path.name for path in tmp_path.iterdir()] == ["token.json"]


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"key_hash": 1}', "[" * 9999, '{"base_url": "https://evil.example"}']
)
async def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    github, file = GitHub(), tmp_path / "token.json"
    file.write_text(damage)
    async with dialect(github, file) as chat:
        assert await say(chat) == "hi"
    assert json.loads(file.read_text())["token"] == "bought-token-1"


async def test_a_token_that_was_revoked_is_bought_anew_once() -> None:
    github = GitHub(refused={"bought-token-1"})
    async with dialect(github) as chat:
        assert await say(chat) == "hi"
    assert github.exchanges == 2
    github = GitHub(refused={f"bought-token-{i}" for i in range(9)})
    async with dialect(github) as chat:
        with pytest.raises(ModelRejectedError, match="github_copilot_key"):
            await say(chat)
    assert github.exchanges == 2


@pytest.mark.parametrize(
    "host", ["https://evil.example", "http://api.githubcopilot.com", "https://githubcopilot.com.evil.example", "x"]
)
async def test_a_token_is_shown_to_no_other_host(host: str) -> None:
    github = GitHub(token={"endpoints": {"api": host}})
    async with dialect(github) as chat:
        with pytest.raises(ModelUnavailableError, match=r"githubcopilot\.com"):
            await say(chat)
    assert github.exchanges == len(github.asked) == 1


@pytest.mark.parametrize(
    ("url", "is_asked"), [("https://api.business.githubcopilot.com", True), ("https://evil.example", False)]
)
async def test_an_address_of_the_owners_own_counts_where_it_is_one_of_githubs(url: str, is_asked: bool) -> None:
    github = GitHub(token={"endpoints": {"api": "https://api.individual.githubcopilot.com"}})
    target = resolve("github-copilot/gpt-5-mini", providers("github-copilot", url=url))
    async with dialect(github) as chat:
        if is_asked:
            await chat.complete(ask(), target, lambda delta: None)
            assert github.shown[-1][0] == f"{url}/chat/completions"
        else:
            with pytest.raises(ModelRejectedError, match="base_url"):
                await chat.complete(ask(), target, lambda delta: None)
            assert github.asked == []


async def test_a_token_may_name_its_host_itself() -> None:
    github = GitHub(token={"token": "tid=1;proxy-ep=proxy.individual.githubcopilot.com;exp=2", "endpoints": None})
    async with dialect(github) as chat:
        await say(chat)
    assert github.shown[-1][0] == "https://api.individual.githubcopilot.com/chat/completions"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, ModelRejectedError, "GITHUB_COPILOT_API_KEY"),
        (404, ModelRejectedError, "subscription"),
        (503, ModelUnavailableError, "unavailable"),
    ],
)
async def test_a_refused_exchange_says_what_to_do(status: int, kind: type[Exception], words: str) -> None:
    async with dialect(GitHub(status=status)) as chat:
        with pytest.raises(kind, match=words):
            await say(chat)
