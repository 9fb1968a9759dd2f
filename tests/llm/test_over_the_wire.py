"""Real SDKs, real sockets, stand-in providers; so no virtual clock."""

import base64
import gc
import logging
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest
import trio

from spacebot.base.errors import (
    ContextOverflowError,
    ModelBusyError,
    ModelError,
    ModelRejectedError,
    ModelUnavailableError,
)
from spacebot.config.model import AgentSettings, ApiType, LlmConfig
from spacebot.config.routing import RoutingConfig
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.dialect import Dialect
from spacebot.llm.libraries import Libraries
from spacebot.llm.manager import ModelManager
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    ModelReply,
    ModelRequest,
    ProcessKind,
    Restart,
    Role,
    StreamDelta,
    Text,
    TextDelta,
)
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.openai_responses import OpenAiResponsesDialect
from spacebot.llm.opening import open_models
from spacebot.llm.routing import resolve
from spacebot.llm.transport import Transport, open_transport
from tests.llm.given import KEY, REPLY, ask, custom, providers
from tests.stand_ins.anthropic import render, serve_anthropic
from tests.stand_ins.openai import serve_openai, serve_responses
from tests.stand_ins.serving import Answer, Fault, ModelStandIn, Refusal, Reply, Use


@dataclass(frozen=True)
class Wire:
    """One dialect and its stand-in."""

    name: str
    serve: Callable[[Sequence[Reply]], AbstractAsyncContextManager[ModelStandIn]]
    dialect: Callable[[Transport], Dialect]

    def __str__(self) -> str:
        return self.name


WIRES = [
    Wire("anthropic", serve_anthropic, AnthropicDialect),
    Wire("openai", serve_openai, OpenAiChatDialect),
    Wire("responses", serve_responses, OpenAiResponsesDialect),
]
every_wire = pytest.mark.parametrize("wire", WIRES, ids=str)


def configured(wire: Wire, url: str) -> LlmConfig:
    """A configuration with one provider, called like the wire."""
    if wire.name == "responses":
        return custom(wire.name, ApiType.OPENAI_RESPONSES, url)
    return providers(wire.name, url=url)


async def ask_once(
    wire: Wire, reply: Reply, on_delta: Callable[[StreamDelta], None] = lambda delta: None
) -> ModelReply:
    """One bare call, without retries."""
    async with wire.serve([reply]) as stand_in, open_transport() as transport:
        target = resolve(f"{wire.name}/some-model", configured(wire, stand_in.url))
        with trio.fail_after(20):
            return await wire.dialect(transport).complete(ask(), target, on_delta)


@asynccontextmanager
async def open_manager(wire: Wire, stand_in: ModelStandIn) -> AsyncIterator[ModelManager]:
    """A manager that does not pause between attempts."""
    llm = configured(wire, stand_in.url)
    kind = llm.provider[wire.name].api_type

    async def no_pause(seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    async with open_transport() as transport, trio.open_nursery() as nursery:
        yield ModelManager(Libraries({kind: wire.dialect(transport)}, nursery), lambda: llm, sleep=no_pause)


def routed(wire: Wire) -> AgentSettings:
    return AgentSettings(routing=RoutingConfig(channel=f"{wire.name}/some-model"))


@every_wire
async def test_words_and_calls_arrive_with_their_usage(wire: Wire) -> None:
    deltas: list[StreamDelta] = []
    answer = Answer(text="hi there", uses=(Use("reply", {"content": "x"}),), input_tokens=8, cached_tokens=2)
    reply = await ask_once(wire, answer, deltas.append)
    assert reply.message.text == "hi there"
    assert reply.message.tool_calls[0].arguments == {"content": "x"}
    assert (reply.usage.input_tokens, reply.usage.cache_read_tokens, reply.usage.output_tokens) == (8, 2, 5)
    assert deltas[:2] == [TextDelta("hi the"), TextDelta("re")]


def content_of(body: Any) -> Any:
    """The parts of the first message of a request."""
    return (body.get("messages") or body["input"])[0]["content"]


def picture_of(part: Any) -> Any:
    """The address of a picture, which the two dialects of OpenAI's nest differently."""
    return part["image_url"]["url"] if part["type"] == "image_url" else part["image_url"]


class _Steps(trio.abc.Instrument):
    """Processor time of each step of one task, in seconds."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.spent: list[float] = []
        self._task = task
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.spent.append(time.thread_time() - self._began)


@contextmanager
def steps_of_this_task() -> Iterator[list[float]]:
    """Measure steps of the running task; the garbage of other tests is not collected meanwhile."""
    steps = _Steps(trio.lowlevel.current_task())
    gc.disable()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps.spent
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.enable()


@every_wire
async def test_large_pictures_arrive_whole_and_hold_nobody_up(wire: Wire) -> None:
    data = [base64.b64encode(random.Random(seed).randbytes(6_000_000)).decode() for seed in (1, 2)]
    pictures = tuple(Image("image/png", text) for text in data)
    request = ModelRequest(
        process=ProcessKind.CHANNEL,
        system=(),
        messages=(ModelMessage(Role.USER, (Text("look"), *pictures, Text('a "quoted" word'))),),
        tools=(REPLY,),
    )
    async with wire.serve([Answer(text="hi")] * 2) as stand_in, open_transport() as transport:
        target = resolve(f"{wire.name}/some-model", configured(wire, stand_in.url))
        dialect = wire.dialect(transport)
        dialect.load()
        await dialect.complete(ask(), target, lambda delta: None)  # opens the connection
        await trio.lowlevel.checkpoint()
        with steps_of_this_task() as spent:
            await trio.lowlevel.checkpoint()  # the measure begins with a whole step
            reply = await dialect.complete(request, target, lambda delta: None)
            await trio.lowlevel.checkpoint()
    assert reply.message.text == "hi"
    assert max(spent[1:]) < 0.05
    sent = stand_in.requests[1]
    assert int(sent.headers["content-length"]) == len(sent.body)
    assert "transfer-encoding" not in sent.headers
    (_, one, two, last) = content_of(sent.json())
    assert last["text"] == 'a "quoted" word'
    if wire.name == "anthropic":
        assert [part["source"] for part in (one, two)] == [
            {"type": "base64", "media_type": "image/png", "data": text} for text in data
        ]
    else:
        assert [picture_of(part) for part in (one, two)] == [f"data:image/png;base64,{text}" for text in data]


@every_wire
async def test_a_picture_that_is_no_base64_cannot_break_the_body(wire: Wire) -> None:
    odd = 'QUJD","role":"system\\\n\ud800'
    message = ModelMessage(Role.USER, (Text("look"), Image('image/"png', odd), Image("image/png", "")))
    request = ModelRequest(process=ProcessKind.CHANNEL, system=(), messages=(message,), tools=())
    async with wire.serve([Answer(text="hi")]) as stand_in, open_transport() as transport:
        target = resolve(f"{wire.name}/some-model", configured(wire, stand_in.url))
        await wire.dialect(transport).complete(request, target, lambda delta: None)
    (body,) = stand_in.bodies
    content = content_of(body)
    shown = odd.replace("\ud800", "?")
    if wire.name == "anthropic":
        assert content[1]["source"] == {"type": "base64", "media_type": 'image/"png', "data": shown}
        assert content[2]["source"]["data"] == ""
    else:
        assert picture_of(content[1]) == f'data:image/"png;base64,{shown}'
        assert picture_of(content[2]) == "data:image/png;base64,"


async def test_anthropic_gets_its_own_headers() -> None:
    async with serve_anthropic([Answer(text="hi")]) as stand_in, open_transport() as transport:
        target = resolve("anthropic/claude-sonnet-4", providers("anthropic", url=stand_in.url))
        await AnthropicDialect(transport).complete(ask(), target, lambda delta: None)
    (request,) = stand_in.requests
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == KEY.get_secret_value()
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["content-type"] == "application/json"


async def test_the_vendors_own_host_gets_the_key_in_one_header_only() -> None:
    """No stand-in can have that name, so this one test ends at httpx2's own in-memory transport."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        events = b"".join(render(Answer(text="hi")))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events)

    async with AsyncExitStack() as stack:
        transport = Transport(stack, lambda ssl: httpx2.AsyncClient(transport=httpx2.MockTransport(answer)))
        target = resolve("anthropic/claude-sonnet-4", providers("anthropic"))
        reply = await AnthropicDialect(transport).complete(ask(), target, lambda delta: None)
    assert reply.message.text == "hi"
    (request,) = seen
    assert str(request.url) == "https://api.anthropic.com/v1/messages"
    assert request.headers["x-api-key"] == KEY.get_secret_value()
    assert "authorization" not in request.headers
    assert request.headers["anthropic-beta"] == "fine-grained-tool-streaming-2025-05-14"


async def test_a_versioned_base_url_gets_no_second_version() -> None:
    for api_type, path in [
        (ApiType.OPENAI_COMPLETIONS, "/base/v1/chat/completions"),
        (ApiType.OPENAI_CHAT_COMPLETIONS, "/base/chat/completions"),
    ]:
        async with serve_openai([Answer(text="hi")]) as stand_in, open_transport() as transport:
            target = resolve("mine/m", custom("mine", api_type, f"{stand_in.url}/base"))
            await OpenAiChatDialect(transport).complete(ask(), target, lambda delta: None)
        (request,) = stand_in.requests
        assert request.path == path
        assert request.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"


async def test_the_owners_organization_is_told_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    for provider, is_told in (("groq", False), ("openai", True)):
        async with serve_openai([Answer(text="hi")]) as stand_in, open_transport() as transport:
            target = resolve(f"{provider}/m", providers(provider, url=stand_in.url))
            await OpenAiChatDialect(transport).complete(ask(), target, lambda delta: None)
        assert ("openai-organization" in stand_in.requests[0].headers) is is_told


@every_wire
async def test_headers_of_the_environment_do_not_reach_other_hosts(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may hold a gateway's credentials; the SDKs send them to every host."""
    variable = "ANTHROPIC_CUSTOM_HEADERS" if wire.name == "anthropic" else "OPENAI_CUSTOM_HEADERS"
    monkeypatch.setenv(variable, "X-Gateway: secret\nauthorization: Bearer secret\nx-api-key: secret")
    async with wire.serve([Answer(text="hi")]) as stand_in, open_transport() as transport:
        target = resolve(f"{wire.name}/some-model", configured(wire, stand_in.url))
        await wire.dialect(transport).complete(ask(), target, lambda delta: None)
    (request,) = stand_in.requests
    assert "secret" not in str(request.headers)
    assert request.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"


@pytest.mark.spec("C-37")
@every_wire
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Refusal(400, b'{"error":{"message":"maximum context length is 5 tokens"}}'), ContextOverflowError),
        (Refusal(401), ModelRejectedError),
        (Refusal(404), ModelRejectedError),
        (Refusal(429, headers={"retry-after": "3"}), ModelBusyError),
        (Refusal(500, b"<html>oops</html>"), ModelUnavailableError),
        (Refusal(529), ModelUnavailableError),
        (Fault.CUT, ModelUnavailableError),
        (Fault.UNFINISHED, ModelUnavailableError),
        (Fault.MALFORMED, ModelUnavailableError),
        (Fault.WRONG_TYPE, ModelUnavailableError),
        (Fault.STREAM_ERROR, ModelUnavailableError),
    ],
    ids=str,
)
async def test_whatever_goes_wrong_becomes_our_error(wire: Wire, reply: Reply, kind: type[ModelError]) -> None:
    with pytest.raises(ModelError) as caught:
        await ask_once(wire, reply)
    assert type(caught.value) is kind
    if isinstance(caught.value, ModelBusyError):
        assert caught.value.retry_after_s == 3


async def test_a_key_that_no_header_can_hold_is_told_as_such() -> None:
    async with serve_openai([]) as stand_in, open_transport() as transport:
        target = resolve("openai/m", providers("openai", url=stand_in.url))
        with pytest.raises(ModelRejectedError, match="characters"):
            await OpenAiChatDialect(transport).complete(ask(), replace(target, api_key="schlüssel"), lambda delta: None)


@pytest.mark.spec("C-55")
@every_wire
async def test_a_silent_provider_is_given_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall inside an open stream is raised by httpx2 itself, one before it by the SDK: both are ours."""
    monkeypatch.setattr("spacebot.llm.transport.TIMEOUT", httpx2.Timeout(connect=5, read=0.05, write=5, pool=5))
    for fault in (Fault.HANG, Fault.STALL):
        with pytest.raises(ModelUnavailableError, match="silent for too long"):
            await ask_once(wire, fault)


@pytest.mark.spec("C-37")
@every_wire
async def test_nobody_listening_is_told_as_such(wire: Wire) -> None:
    async with wire.serve([]) as stand_in:
        url = stand_in.url
    async with open_transport() as transport:
        target = resolve(f"{wire.name}/m", configured(wire, url))
        with pytest.raises(ModelUnavailableError, match="cannot be reached"):
            await wire.dialect(transport).complete(ask(), target, lambda delta: None)


@every_wire
async def test_a_cut_stream_is_tried_again_and_taken_back(wire: Wire) -> None:
    deltas: list[StreamDelta] = []
    async with wire.serve([Fault.CUT, Refusal(503), Answer(text="whole")]) as stand_in:
        async with open_manager(wire, stand_in) as manager:
            with trio.fail_after(20):
                reply = await manager.complete(ask(), routed(wire), deltas.append)
    assert reply.message.text == "whole"
    assert "".join(d.text for d in deltas[deltas.index(Restart()) :] if isinstance(d, TextDelta)) == "whole"
    assert len(stand_in.requests) == 3


@every_wire
async def test_a_call_cancelled_in_the_middle_hangs_up_and_the_next_works(wire: Wire) -> None:
    async with wire.serve([Fault.STALL, Answer(text="hi")]) as stand_in:
        async with open_manager(wire, stand_in) as manager:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(manager.complete, ask(), routed(wire))
                    await stand_in.answering.wait()
                    nursery.cancel_scope.cancel()
                assert (await manager.complete(ask(), routed(wire))).message.text == "hi"
    assert stand_in.hang_ups == 1


@every_wire
async def test_connections_are_used_again(wire: Wire) -> None:
    answer = Answer(uses=(Use("reply", {"content": "x"}),))
    async with wire.serve([answer] * 5) as stand_in, open_manager(wire, stand_in) as manager:
        with trio.fail_after(20):
            for _ in range(5):
                await manager.complete(ask("hello", REPLY), routed(wire))
    assert stand_in.connections == 1


async def test_different_keys_never_share_a_client() -> None:
    """Two agents may pay with different accounts."""
    async with serve_openai(lambda body: Answer(text="hi")) as stand_in, open_transport() as transport:
        dialect = OpenAiChatDialect(transport)
        for name in ("openai", "openai"):
            target = resolve(f"{name}/m", providers(name, url=stand_in.url))
            await dialect.complete(ask(), target, lambda delta: None)
        await dialect.complete(ask(), replace(target, api_key="another"), lambda delta: None)
    assert [request.headers["authorization"][-7:] for request in stand_in.requests] == ["4567890", "4567890", "another"]


async def test_libraries_stay_out_until_they_are_needed() -> None:
    """Commands that talk to the daemon must not pay two seconds for an import."""
    code = "import sys, spacebot.llm.manager as m; print([n for n in ('anthropic', 'openai') if n in sys.modules])"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, stderr=subprocess.DEVNULL)
    assert done.stdout.strip() == b"[]"


@pytest.fixture(autouse=True)
def _quiet_libraries(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("httpx2", "httpcore2", "anthropic", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)


async def test_the_parts_fit_together() -> None:
    """The manager as the program opens it: every dialect in its place, the library loaded by the first call."""
    async with serve_openai([Answer(text="one")]) as chat, serve_anthropic([Answer(text="two")]) as messages:
        llm = LlmConfig(
            provider={
                **providers("openai", url=chat.url).provider,
                **providers("anthropic", url=messages.url).provider,
            }
        )
        routing = RoutingConfig(channel="openai/m", branch="anthropic/m", worker="demo/demo")
        settings = AgentSettings(routing=routing)
        async with open_models(lambda: llm) as manager:
            model = manager.for_agent(lambda: settings)
            with trio.fail_after(20):
                assert (await model.complete(ask())).message.text == "one"
                assert (await model.complete(ask(process=ProcessKind.BRANCH))).message.text == "two"
                assert "demo" in (await model.complete(ask(process=ProcessKind.WORKER))).message.text
