"""The gateway that lends a program our models: whom it serves, what it changes, what it counts."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2
import pytest
import trio

from spacebot.base.errors import BudgetExceededError, ModelRejectedError
from spacebot.base.ids import NodeId
from spacebot.base.tree import Node, NodeKind
from spacebot.config.model import AgentSettings, ApiType, LlmConfig, ProviderConfig
from spacebot.config.routing import RoutingConfig
from spacebot.llm.choice import choose_models
from spacebot.llm.dialect import Target
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ProcessKind, Usage
from spacebot.tools.opencode.gateway import MAX_BODY, Pass, open_gateway
from tests.stand_ins.anthropic import serve_anthropic
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Fault, ModelStandIn, Refusal, Reply, Use

KEY = "sk-the-owners-own-key-0123456789"
QUESTION = {"model": "whatever", "stream": True, "max_tokens": 500, "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Lent:
    """A gateway in use."""

    given: Pass
    node: Node
    http: httpx2.AsyncClient
    noted: list[UsageRecord] = field(default_factory=list)

    async def ask(self, path: str = "/chat/completions", token: str | None = None, **more: object) -> httpx2.Response:
        token = self.given.token if token is None else token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.http.post(self.given.url + path, json={**QUESTION, **more}, headers=headers)


def targets(*providers: ProviderConfig, model: str = "gpt-5") -> Sequence[Target]:
    names = [f"p{number}/{model}" for number in range(len(providers))]
    llm = LlmConfig(provider=dict(zip(("p0", "p1"), providers, strict=False)))
    routing = RoutingConfig(worker=names[0], fallbacks={names[0]: tuple(names[1:])})
    return choose_models(ProcessKind.WORKER, "coding", AgentSettings(routing=routing), llm)


def provider(stand_in: ModelStandIn, kind: ApiType = ApiType.OPENAI_COMPLETIONS) -> ProviderConfig:
    return ProviderConfig(api_type=kind, base_url=stand_in.url, api_key=KEY)


@asynccontextmanager
async def lent(found: Sequence[Target]) -> AsyncIterator[Lent]:
    noted: list[UsageRecord] = []
    node = Node(
        NodeKind.WORKER, NodeId("w1"), None, "x", started_at=datetime.now(UTC), agent_id="main", channel_id="test:1"
    )
    async with (
        open_gateway(targets=lambda: found, note=noted.append) as gateway,
        httpx2.AsyncClient(trust_env=False, timeout=20) as http,
    ):
        given = gateway.admit()
        given.node = node
        yield Lent(given, node, http, noted)


async def test_an_answer_passes_as_it_is_with_the_owners_key_and_model() -> None:
    reply = Answer(text="Grüße 🦊", uses=(Use("bash", {"command": "ls"}),), input_tokens=20, cached_tokens=5)
    async with serve_openai([reply, reply]) as stand_in, lent(targets(provider(stand_in))) as use:
        direct = await use.http.post(stand_in.url, json=QUESTION)
        through = await use.ask()

        assert through.headers["content-type"] == "text/event-stream"
        assert through.content == direct.content
        sent = stand_in.requests[1]
        assert sent.path == "/v1/chat/completions"
        assert sent.headers["authorization"] == f"Bearer {KEY}"
        body = sent.json()
        assert (body["model"], body["messages"]) == ("gpt-5", QUESTION["messages"])
        assert body["stream_options"] == {"include_usage": True}
        (record,) = use.noted
        assert record.usage == Usage(input_tokens=20, output_tokens=5, cache_read_tokens=5)
        assert (record.model, record.node_id, record.channel_id) == ("p0/gpt-5", "w1", "test:1")
        assert (use.node.input_tokens, use.node.output_tokens, use.node.model_calls) == (25, 5, 1)


async def test_the_other_wire_is_spoken_too() -> None:
    async with (
        serve_anthropic([Answer(text="hello", input_tokens=30, output_tokens=7)]) as stand_in,
        lent(targets(provider(stand_in, ApiType.ANTHROPIC), model="claude-sonnet-4.5")) as use,
    ):
        headers = {"x-api-key": use.given.token, "anthropic-beta": "some-beta"}
        answer = await use.http.post(f"{use.given.url}/messages", json=QUESTION, headers=headers)
        assert answer.is_success
        (sent,) = stand_in.requests
        assert sent.headers["x-api-key"] == KEY
        assert sent.headers["anthropic-beta"] == "some-beta"
        assert sent.json()["model"] == "claude-sonnet-4-5"
        assert use.noted[0].usage == Usage(input_tokens=30, output_tokens=7)
        # A client of the other wire is told that it has to be started anew.
        assert (await use.ask()).status_code == 409


@pytest.mark.parametrize("case", ["no token", "another token", "nobody works", "dismissed", "another path"])
async def test_nobody_else_is_served(case: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serve_openai([Answer(text="never")]) as stand_in, lent(targets(provider(stand_in))) as use:
        token = {"no token": "", "another token": "x" * 43}.get(case)
        if case in ("nobody works", "dismissed"):
            use.given.node = None
        answer = await use.ask("/models" if case == "another path" else "/chat/completions", token)

        assert answer.status_code == (404 if case == "another path" else 401)
        assert KEY not in answer.text
        assert not stand_in.requests
        assert case == "another path" or "model gateway refused a request" in caplog.text


async def test_a_used_up_budget_is_an_answer_that_is_not_asked_for_again() -> None:
    def none_left() -> Sequence[Target]:
        raise BudgetExceededError("today's budget is used up", model="", retry_after_s=900)

    async with open_gateway(targets=none_left, note=lambda record: None) as gateway:
        given = gateway.admit()
        given.node = Node(
            NodeKind.WORKER, NodeId("w1"), None, "x", started_at=datetime.now(UTC), agent_id="main", channel_id=None
        )
        async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
            headers = {"authorization": f"Bearer {given.token}"}
            answer = await http.post(f"{given.url}/chat/completions", json=QUESTION, headers=headers)
    assert answer.status_code == 402
    assert "today's budget is used up" in answer.text


async def test_a_provider_that_is_down_is_replaced_by_the_next() -> None:
    async with serve_openai([Refusal(529)]) as first, serve_openai([Answer(text="from the second")]) as second:
        async with lent(targets(provider(first), provider(second))) as use:
            answer = await use.ask()
            assert answer.is_success
            assert use.noted[0].model == "p1/gpt-5"


async def test_a_refusal_reaches_the_program_without_the_key() -> None:
    words = json.dumps({"error": {"message": f"bad key {KEY}", "type": "invalid_request_error"}}).encode()
    async with serve_openai([Refusal(400, words, {"retry-after": "7"})]) as stand_in:
        async with lent(targets(provider(stand_in))) as use:
            answer = await use.ask()
            assert answer.status_code == 400
            assert answer.headers["retry-after"] == "7"
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert KEY not in answer.text


async def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    async with serve_openai([Fault.CUT]) as stand_in, lent(targets(provider(stand_in))) as use:
        with pytest.raises(httpx2.HTTPError):
            await use.ask()


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.STALL])
async def test_a_program_that_gives_up_ends_the_call_to_the_provider(fault: Reply) -> None:
    async with serve_openai([fault]) as stand_in, lent(targets(provider(stand_in))) as use:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use.ask)
            await stand_in.answering.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while not stand_in.hang_ups:
                await trio.sleep(0.01)


async def test_what_is_no_question_is_refused() -> None:
    async with serve_openai([]) as stand_in, lent(targets(provider(stand_in))) as use:
        headers = {"authorization": f"Bearer {use.given.token}"}
        url = f"{use.given.url}/chat/completions"
        assert (await use.http.post(url, content=b"[1]", headers=headers)).status_code == 400
        assert (await use.http.post(url, content=b"{", headers=headers)).status_code == 400
        with pytest.raises(httpx2.HTTPError):
            await use.http.post(url, content=b"x" * (MAX_BODY + 1), headers=headers)
        assert not stand_in.requests


async def test_without_a_model_it_says_why() -> None:
    def none() -> Sequence[Target]:
        raise ModelRejectedError("no key for the provider", model="x")

    async with open_gateway(targets=none, note=lambda record: None) as gateway, httpx2.AsyncClient() as http:
        given = gateway.admit()
        given.node = Node(
            NodeKind.WORKER, NodeId("w"), None, "x", started_at=datetime.now(UTC), agent_id=None, channel_id=None
        )
        headers = {"x-api-key": given.token}
        answer = await http.post(f"{given.url}/chat/completions", json=QUESTION, headers=headers)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "no key for the provider"
