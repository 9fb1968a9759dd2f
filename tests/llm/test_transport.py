"""Foreign errors become ours; connections never queue inside a pool."""

import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ssl import SSLContext

import httpx2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.errors import (
    ContextOverflowError,
    ModelBusyError,
    ModelError,
    ModelRejectedError,
    ModelUnavailableError,
)
from spacebot.llm.sse import MAX_EVENT_BYTES, EventReader
from spacebot.llm.transport import CONNECTIONS, PIECE, Transport, open_transport, retry_after_s, status_error
from tests.llm.given import target

TARGET = target("openai/gpt-4.1")
TOO_LONG = "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens."


@pytest.mark.spec("C-36", "C-38")
@pytest.mark.parametrize(
    ("status", "message", "kind", "may_retry", "may_fall_back"),
    [
        (400, "messages: bad field", ModelRejectedError, False, False),
        (400, TOO_LONG, ContextOverflowError, False, True),
        (400, "prompt is too long: 213462 tokens > 200000 maximum", ContextOverflowError, False, True),
        (400, "input exceeds the context window of this model", ContextOverflowError, False, True),
        (
            400,
            "max_tokens: 99999 > 8192, which is the maximum allowed number of output",
            ModelRejectedError,
            False,
            False,
        ),
        (401, "bad key", ModelRejectedError, False, False),
        (402, "no credit", ModelRejectedError, False, False),
        (403, "not allowed", ModelRejectedError, False, False),
        (404, "no such model", ModelRejectedError, False, True),
        (400, "gpt-9 is not a valid model ID", ModelRejectedError, False, True),
        (408, "slow", ModelUnavailableError, True, True),
        (409, "conflict", ModelUnavailableError, True, True),
        (413, "too large", ContextOverflowError, False, True),
        (418, "teapot", ModelRejectedError, False, False),
        (422, "unprocessable", ModelRejectedError, False, False),
        (429, "slow down", ModelBusyError, True, True),
        (500, "oops 400 tokens", ModelUnavailableError, True, True),
        (503, "maximum context length", ModelUnavailableError, True, True),
        (529, "overloaded", ModelUnavailableError, True, True),
    ],
)
def test_statuses(status: int, message: str, kind: type[ModelError], may_retry: bool, may_fall_back: bool) -> None:
    """Codes decide, never digits inside of words (control spec pitfall 38, process spec S5)."""
    error = status_error(status, {"error": {"message": message}}, TARGET)
    assert type(error) is kind
    assert (error.retryable, error.may_fall_back, error.model) == (may_retry, may_fall_back, "openai/gpt-4.1")
    assert message[:30] in str(error)


def test_structured_codes_count_as_well_as_phrases() -> None:
    body = {"error": {"message": "no", "code": "context_length_exceeded"}}
    assert isinstance(status_error(400, body, TARGET), ContextOverflowError)
    unknown = status_error(400, {"error": {"message": "no", "code": "model_not_found"}}, TARGET)
    assert isinstance(unknown, ModelRejectedError)
    assert unknown.may_fall_back


def test_refused_credentials_say_which_key_to_check() -> None:
    assert "'openai_key'" in str(status_error(401, None, TARGET))
    assert "OPENAI_API_KEY" in str(status_error(401, None, TARGET))


def test_a_used_up_quota_is_not_waited_for() -> None:
    error = status_error(429, {"error": {"code": "insufficient_quota", "message": "pay"}}, TARGET)
    assert isinstance(error, ModelBusyError)
    assert error.retry_after_s == 3600


@pytest.mark.spec("C-43")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "why"}}', "why"),
        ('{"error": "why"}', "why"),
        ([{"error": {"message": "why"}}], "why"),
        ({"message": "why"}, "why"),
        ({"error": {"message": "outer", "metadata": {"raw": "inner"}}}, "outer: inner"),
        (
            {
                "error": {
                    "message": "Provider returned error",
                    "metadata": {"provider_name": "Azure", "raw": '{"error":{"message":"out of capacity"}}'},
                }
            },
            "Provider returned error: Azure says: out of capacity",
        ),
        ("[" * 100_000, "[" * 299 + "…"),
        ("plain\nwords", "plain words"),
        ("<html>gateway</html>", ""),
        (None, ""),
        (b"\xff\xfe", "��"),
    ],
)
def test_the_providers_words_are_found(body: object, words: str) -> None:
    text = str(status_error(500, body, TARGET))
    assert text == "openai/gpt-4.1: openai is unavailable (500)" + (f": {words}" if words else "")


def test_the_providers_words_are_short_and_hold_no_secret() -> None:
    """Process spec S10."""
    secret = "sk-proj-" + "a1B2" * 10
    text = str(status_error(500, {"error": {"message": f"key {secret} " + "blah " * 500}}, TARGET))
    assert secret not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    seconds = retry_after_s({"retry-after": format_datetime(moment, usegmt=True)})
    assert seconds is not None
    assert 3000 < seconds <= 3600


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1)), st.data())
def test_events_survive_any_cut(texts: list[str], data: st.DataObject) -> None:
    stream = "".join(f"event: x\ndata: {json.dumps(text)}\n\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, events = EventReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += reader.feed(stream[start:end])
    assert [json.loads(event) for event in events] == texts
    assert reader.finish() == []


def test_lines_of_one_event_are_joined_and_a_missing_last_line_end_is_forgiven() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\ndata:b\n\ndata: c") == [b"a\nb"]
    assert reader.finish() == [b"c"]


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        EventReader().feed(b"x" * (MAX_EVENT_BYTES + 1))


async def test_more_connections_open_another_client(autojump_clock: trio.testing.MockClock) -> None:
    clients: list[httpx2.AsyncClient] = []

    def new_client(ssl: SSLContext) -> httpx2.AsyncClient:
        clients.append(httpx2.AsyncClient(verify=ssl))
        return clients[-1]

    used: list[object] = []

    async def hold(transport: Transport) -> None:
        async with transport.shard() as shard:
            used.append(shard.http)
            await trio.sleep(1)

    async with AsyncExitStack() as stack:
        transport = Transport(stack, new_client)
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS + 5):
                nursery.start_soon(hold, transport)
        assert [used.count(client) for client in clients] == [0, CONNECTIONS, 5], "the first is made for its imports"
    assert all(client.is_closed for client in clients[1:])


async def test_a_large_body_is_handed_over_in_pieces() -> None:
    body = bytes(range(256)) * (2 * PIECE // 256 + 1)
    request = httpx2.Request("POST", "https://models.test/v1", content=body)
    async with open_transport() as transport, transport.shard() as shard:
        for hook in shard.http.event_hooks["request"]:
            await hook(request)
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    pieces = [piece async for piece in request.stream]
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= PIECE
    assert request.headers["content-length"] == str(len(body))


@pytest.mark.spec("control 8.2.43")
def test_what_a_proxy_hides_decides_on_the_kind_of_error() -> None:
    raw = '{"error":{"code":"context_length_exceeded","message":"too many words"}}'
    error = status_error(400, {"error": {"message": "Provider returned error", "metadata": {"raw": raw}}}, TARGET)
    assert isinstance(error, ContextOverflowError)
