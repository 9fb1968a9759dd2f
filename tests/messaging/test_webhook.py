"""The webhook by plain HTTP, through the real server, and what it posts to its owner's address."""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from pydantic import SecretStr, ValidationError

from spacebot.api.server import serve_asgi
from spacebot.base.errors import DeliveryError, ExternalError, RefusedError, StorageError
from spacebot.base.ids import ConversationId, MessageId
from spacebot.config.messaging import WebhookAccount
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.messages import InboundMessage, OutboundFile, OutboundKind, OutboundMessage, Target
from spacebot.messaging.webhook import WebhookAdapter
from tests.conftest import Logs
from tests.fakes.recording_intake import RecordingIntake

TOKEN = "a long secret"
SERVE = partial(serve_asgi, name="messaging.webhook")


@dataclass
class Shelf:
    """A mailbox in memory: nothing leaves it before it is delivered."""

    held: dict[ConversationId, list[OutboundMessage]] = field(default_factory=dict)
    failures: int = 0
    callers: int = 0  # who wait at the moment
    _more: trio.Event = field(default_factory=trio.Event)
    _changed: trio.Event = field(default_factory=trio.Event)

    def put(self, conversation_id: str, *messages: OutboundMessage) -> None:
        self.held.setdefault(ConversationId(conversation_id), []).extend(messages)
        self._more.set()
        self._more = trio.Event()

    async def waiting(self, conversation_id: ConversationId, limit: int) -> Sequence[tuple[str, OutboundMessage]]:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise StorageError("the disk is gone")
        return [(message.id, message) for message in self.held.get(conversation_id, [])][:limit]

    async def delivered(self, ids: Sequence[str]) -> None:
        for messages in self.held.values():
            messages[:] = [message for message in messages if message.id not in ids]
        await trio.lowlevel.checkpoint()

    async def wait(self, conversation_id: ConversationId, timeout_s: float) -> None:
        self._count(1)
        try:
            with trio.move_on_after(timeout_s):
                while not self.held.get(conversation_id):
                    await self._more.wait()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.callers += change
        self._changed.set()
        self._changed = trio.Event()

    async def until_callers(self, number: int) -> None:
        while self.callers != number:
            await self._changed.wait()


@dataclass
class Opened:
    adapter: WebhookAdapter
    intake: RecordingIntake
    shelf: Shelf
    client: httpx2.AsyncClient

    async def poll(self, path: str, **query: Any) -> list[dict[str, Any]]:
        answer = await self.client.get(f"/poll/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["messages"])


@asynccontextmanager
async def open_webhook(*, key: str = "webhook", **fields: Any) -> AsyncIterator[Opened]:
    """The adapter behind the program's own server."""
    intake, shelf = RecordingIntake(), Shelf()
    account = WebhookAccount(enabled=True, **({"port": 0} | fields))
    adapter = WebhookAdapter(account, key=key, serve=SERVE, mailbox=shelf)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(adapter.run, intake)
        async with httpx2.AsyncClient(base_url=url) as client:
            yield Opened(adapter, intake, shelf, client)
        nursery.cancel_scope.cancel()
    assert adapter.url is None


def words(message_id: str, text: str = "hello", **more: Any) -> OutboundMessage:
    return OutboundMessage(id=MessageId(message_id), text=text, **more)


async def test_a_message_is_taken_with_all_that_was_said_of_it() -> None:
    async with open_webhook(key="webhook:ci") as opened:
        body = {
            "conversation_id": "build/42 ü",
            "sender_id": "u1",
            "sender_name": "Build\nServer",
            "content": "it failed\nagain \ud800",
            "agent_id": "main",
            "message_id": "run-42",
            "attachments": [{"filename": "log.txt", "media_type": "text/plain", "url": "https://ci.example.com/log"}],
        }
        answer = await opened.client.post(
            "/send", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()) == (202, {"message_id": "run-42", "status": "accepted"})
        (message,) = opened.intake.messages
        assert (message.platform, message.adapter_key) == ("webhook", "webhook:ci")
        assert (message.conversation_id, message.agent_id) == ("webhook:ci:build/42 ü", "main")
        assert (message.author.id, message.author.name, message.is_direct) == ("u1", "Build Server", True)
        assert message.text == "it failed\nagain ?"
        assert [(file.filename, file.url) for file in message.attachments] == [
            ("log.txt", "https://ci.example.com/log")
        ]
        again = await opened.client.post("/send", json=body | {"content": "it failed"})
        assert (again.status_code, again.json()["status"]) == (202, "duplicate")
        assert (await opened.adapter.locate(message.attachments[0])).url == "https://ci.example.com/log"
        assert not (await opened.adapter.locate(message.attachments[0])).may_be_private


async def test_the_short_form_is_understood() -> None:
    async with open_webhook() as opened:
        answer = await opened.client.post("/webhook", json={"conversation_id": "a", "message": "hello", "shared": True})
        assert answer.status_code == 202
        (message,) = opened.intake.messages
        assert (message.text, message.author.id, message.author.name) == ("hello", "webhook", "webhook")
        assert (message.is_direct, message.platform_id) == (False, answer.json()["message_id"])


@pytest.mark.parametrize(
    ("body", "headers", "code", "says"),
    [
        (b'{"conversation_id": "a", "content": ', {}, 400, "not valid JSON"),
        (b"\xff\xfe", {}, 400, "UTF-8"),
        (b"[" * 100_000, {}, 400, "not valid JSON"),
        (b"[]", {}, 400, "JSON object"),
        (b"", {}, 400, "not valid JSON"),
        (b"x" * ((1 << 20) + 1), {}, 413, "longer than"),
        (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (b"{}", {"content-type": ""}, 415, "application/json"),
        (b"{}", {"content-encoding": "gzip"}, 415, "as it is"),
        (b"{}", {}, 422, "conversation_id: Field required"),
        (b'{"conversation_id": "a"}', {}, 422, "content is empty"),
        (b'{"conversation_id": "a", "content": " "}', {}, 422, "content is empty"),
        (b'{"conversation_id": "", "content": "x"}', {}, 422, "printable"),
        (b'{"conversation_id": "a\\nb", "content": "x"}', {}, 422, "printable"),
        (b'{"conversation_id": "' + b"a" * 201 + b'", "content": "x"}', {}, 422, "200"),
        (b'{"conversation_id": 7, "content": "x"}', {}, 422, "conversation_id"),
        (b'{"conversation_id": "a", "content": ["x"]}', {}, 422, "content"),
        (b'{"conversation_id": "a", "content": "x", "sendr": "y"}', {}, 422, "sendr"),
        (b'{"conversation_id": "a", "content": "x", "agent_id": "../x"}', {}, 422, "agent id"),
        (b'{"conversation_id": "a", "attachments": [{"url": "file:///etc/passwd"}]}', {}, 422, "http"),
        (b'{"conversation_id": "a", "attachments": [{"url": ""}]}', {}, 422, "url"),
        (b'{"conversation_id": "a", "content": "' + b"x" * 1_000_001 + b'"}', {}, 422, "content"),
    ],
)
async def test_what_cannot_be_taken_is_told_why(body: bytes, headers: dict[str, str], code: int, says: str) -> None:
    async with open_webhook() as opened:
        answer = await opened.client.post("/send", content=body, headers={"content-type": "application/json"} | headers)
        assert answer.status_code == code
        assert says in answer.json()["error"]
        assert not opened.intake.messages


async def test_a_body_without_an_announced_length_is_cut_off_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 65_536

    async with open_webhook() as opened:
        try:
            answer = await opened.client.post("/send", content=endless(), headers={"content-type": "application/json"})
        except httpx2.TransportError:
            return  # the answer was lost behind what the client still had to say
        assert answer.status_code == 413


async def test_refused_and_unkept_messages_are_no_success(logs: Logs) -> None:
    logs.expect("could not be kept")
    async with open_webhook() as opened:
        opened.intake.failures = 1
        failed = await opened.client.post("/send", json={"conversation_id": "a", "content": "x", "message_id": "1"})
        assert (failed.status_code, "retry-after" in failed.headers) == (503, True)
        kept = await opened.client.post("/send", json={"conversation_id": "a", "content": "x", "message_id": "1"})
        assert (kept.status_code, kept.json()["status"]) == (202, "accepted")
        opened.intake.admits = lambda message: False
        refused = await opened.client.post("/send", json={"conversation_id": "a", "content": "x"})
        assert refused.status_code == 403
        assert "bindings" in refused.json()["error"]


async def test_what_is_only_observed_says_so() -> None:
    class Observer(RecordingIntake):
        async def take(self, message: InboundMessage) -> Receipt:
            await super().take(message)
            return Receipt.OBSERVED

    async with open_webhook() as opened:
        account = WebhookAccount(enabled=True, port=0)
        adapter = WebhookAdapter(account, key="webhook:two", serve=SERVE, mailbox=opened.shelf)
        async with trio.open_nursery() as nursery:
            url = await nursery.start(adapter.run, Observer())
            answer = await opened.client.post(f"{url}/send", json={"conversation_id": "a", "content": "x"})
            assert answer.json()["status"] == "observed"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 202),
        ({"authorization": f"bearer  {TOKEN}"}, 202),
        ({"x-webhook-token": TOKEN}, 202),
        ({"x-webhook-token": TOKEN, "host": "hooks.example.com"}, 202),
        ({"x-webhook-token": TOKEN[:-1]}, 401),
        ({"x-webhook-token": ""}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer \u00e4".encode()}, 401),
        ({"x-webhook-token": TOKEN, "origin": "https://evil.example.com"}, 403),
        ({"x-webhook-token": TOKEN, "origin": "null"}, 403),
        ({"x-webhook-token": TOKEN, "sec-fetch-site": "cross-site"}, 403),
    ],
)
@pytest.mark.spec("D-36")
async def test_with_a_token_nobody_else_speaks_or_listens(headers: dict[str, Any], code: int) -> None:
    async with open_webhook(auth_token=SecretStr(TOKEN), bind="0.0.0.0") as opened:
        client = httpx2.AsyncClient(base_url=str(opened.client.base_url).replace("0.0.0.0", "127.0.0.1"))
        async with client:
            opened.shelf.put("webhook:a", words("m1"))
            answer = await client.post("/send", json={"conversation_id": "a", "content": "x"}, headers=headers)
            polled = await client.get("/poll/a", headers=headers)
            assert (answer.status_code, polled.status_code) == (code, 200 if code == 202 else code)
            assert len(opened.intake.messages) == (code == 202)
            left = (await client.get("/poll/a", headers={"x-webhook-token": TOKEN})).json()["messages"]
            assert len(left) == (code != 202)
            assert TOKEN not in answer.text
            assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="must not be empty"):
        WebhookAccount(enabled=True, auth_token=SecretStr(token))


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "localhost:18789"}, 200),
        ({"host": "127.9.9.9"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "evil.example.com"}, 403),
        ({"host": "127.0.0.1.evil.example.com"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
    ],
)
async def test_without_a_token_foreign_pages_can_neither_speak_nor_listen(headers: dict[str, str], code: int) -> None:
    """DNS rebinding, and pages that call this machine through their visitor's browser."""
    async with open_webhook() as opened:
        opened.shelf.put("webhook:a", words("m1"))
        answer = await opened.client.get("/poll/a", headers=headers)
        assert answer.status_code == code
        assert len(await opened.poll("a")) == (code != 200)


async def test_an_open_webhook_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    adapter = WebhookAdapter(WebhookAccount(enabled=True, port=0), key="webhook", serve=SERVE, mailbox=Shelf())
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(adapter.run, RecordingIntake())
            assert "listening at http://127.0.0.1:" in await adapter.check()
            nursery.cancel_scope.cancel()
    assert len([record for record in caplog.records if "no token" in record.message]) == 1
    with pytest.raises(DeliveryError, match="does not listen"):
        await adapter.check()


@pytest.mark.spec("D-m")
async def test_answers_wait_in_order_and_are_fetched_once() -> None:
    async with open_webhook() as opened:
        assert await opened.poll("a") == []
        opened.shelf.put("webhook:a", *(words(f"m{number}", f"text **{number}**") for number in range(5)))
        opened.shelf.put("webhook:b", words("other"))
        head = await opened.client.head("/poll/a")
        assert head.status_code == 405
        first = await opened.poll("a", limit=2)
        assert first == [
            {"id": "m0", "type": "text", "content": "text **0**"},
            {"id": "m1", "type": "text", "content": "text **1**"},
        ]
        assert [entry["id"] for entry in await opened.poll("webhook:a")] == ["m2", "m3", "m4"]
        assert await opened.poll("a") == []
        notice = words("n", "sorry", kind=OutboundKind.NOTICE)
        opened.shelf.put("webhook:x/y z", notice)
        assert await opened.poll("x%2Fy%20z") == [{"id": "n", "type": "text", "content": "sorry", "notice": True}]


@pytest.mark.parametrize(("path", "code"), [("a?wait=soon", 400), ("a?limit=x", 400), ("%0A", 422), ("b" * 201, 422)])
async def test_what_cannot_be_fetched_is_told_why(path: str, code: int) -> None:
    async with open_webhook() as opened:
        answer = await opened.client.get(f"/poll/{path}")
        assert answer.status_code == code
        assert answer.json()["error"]


async def test_a_caller_may_wait_for_the_answer() -> None:
    async with open_webhook() as opened:
        async with trio.open_nursery() as nursery:
            found: list[dict[str, Any]] = []

            async def wait() -> None:
                found.extend(await opened.poll("a", wait=30))

            nursery.start_soon(wait)
            await opened.shelf.until_callers(1)
            opened.shelf.put("webhook:b", words("other"))
            opened.shelf.put("webhook:a", words("m1"))
        assert [entry["id"] for entry in found] == ["m1"]
        assert await opened.poll("a", wait=0.01) == []


@pytest.mark.spec("D-36")
async def test_files_come_with_their_bytes_and_large_ones_one_by_one(tmp_path: Path) -> None:
    def file(name: str, size: int) -> OutboundFile:
        path = tmp_path / name
        path.write_bytes(b"\0\xff" * (size // 2))
        return OutboundFile(filename=name, media_type="application/x-test", path=path, size_bytes=size)

    async with open_webhook() as opened:
        gone = file("gone.bin", 2)
        gone.path.unlink()
        for number, given in enumerate((file("a.bin", 4), gone, file("b.bin", 8 << 20), file("c.bin", (8 << 20) + 2))):
            opened.shelf.put("webhook:a", words(f"m{number}", "see", kind=OutboundKind.FILE, file=given))
        small, missing = await opened.poll("a")
        assert small == {
            "id": "m0", "type": "file", "content": "see", "filename": "a.bin", "media_type": "application/x-test",
            "size_bytes": 4, "data": "AP8A/w==",
        }  # fmt: skip
        assert "cannot be read" in missing["error"]
        (large,) = await opened.poll("a")
        assert len(large["data"]) == (8 << 20) // 3 * 4 + 4
        (too_large,) = await opened.poll("a")
        assert "data" not in too_large
        assert "larger than" in too_large["error"]
        assert opened.adapter.traits.max_file_bytes == 8 << 20


@pytest.mark.spec("D-m")
async def test_what_a_broken_connection_swallowed_waits_for_the_next_caller() -> None:
    async with open_webhook() as opened:
        port = opened.client.base_url.port
        assert port is not None
        request = b"GET /poll/a?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        gone = await trio.open_tcp_stream("127.0.0.1", port)
        await gone.send_all(request)
        await opened.shelf.until_callers(1)
        await gone.aclose()
        await opened.shelf.until_callers(0)
        opened.shelf.put("webhook:a", words("m1"))
        assert [entry["id"] for entry in await opened.poll("a")] == ["m1"]

        opened.shelf.put("webhook:a", words("m2", "x" * 30_000_000))  # more than sockets hold
        stuck = await trio.open_tcp_stream("127.0.0.1", port)
        await stuck.send_all(request)
        await stuck.receive_some(1000)
        assert await opened.poll("a") == []  # on its way to the other caller
        stuck.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stuck.aclose()  # with a reset
        assert [entry["id"] for entry in await opened.poll("a", wait=20)] == ["m2"]
        assert await opened.poll("a") == []


async def test_the_end_of_the_adapter_waits_for_no_caller() -> None:
    async with open_webhook() as opened:
        waiting = await trio.open_tcp_stream("127.0.0.1", opened.client.base_url.port or 0)
        await waiting.send_all(b"GET /poll/a?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await opened.shelf.until_callers(1)
    assert opened.shelf.callers == 0
    async with waiting:
        with suppress(trio.BrokenResourceError):
            assert await waiting.receive_some() == b""


async def test_a_mailbox_that_fails_loses_nothing(logs: Logs) -> None:
    logs.expect("waiting answers could not be read")
    async with open_webhook() as opened:
        opened.shelf.put("webhook:a", words("m1"))
        opened.shelf.failures = 1
        assert (await opened.client.get("/poll/a")).status_code == 503
        assert len(await opened.poll("a")) == 1


async def test_a_port_in_use_is_named_and_tried_again_later() -> None:
    async with open_webhook() as opened:
        port = opened.client.base_url.port
        account = WebhookAccount(enabled=True, port=port or 0)
        second = WebhookAdapter(account, key="webhook:two", serve=SERVE, mailbox=Shelf())
        with pytest.raises(DeliveryError, match=f"port {port} on 127.0.0.1 is taken") as failed:
            await second.run(RecordingIntake())
        assert not failed.value.is_permanent
        assert "set messaging.webhook.port to another number" in str(failed.value)
        assert (await opened.client.get("/health")).status_code == 200


async def test_other_routes_and_the_end_of_the_adapter() -> None:
    async with open_webhook() as opened:
        for method, path, code in (("GET", "/", 404), ("GET", "/send", 405), ("POST", "/poll/a", 405)):
            answer = await opened.client.request(method, path)
            assert (answer.status_code, "error" in answer.json()) == (code, True)
        url = str(opened.client.base_url)
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"{url}/health")


# Answers that are posted.


@dataclass
class Receiver:
    """What an owner's address got, and what it answers."""

    answers: list[Any] = field(default_factory=list)
    got: list[tuple[str, dict[str, Any], Mapping[str, str]]] = field(default_factory=list)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        await trio.lowlevel.checkpoint()
        self.got.append((url, json.loads(body), headers))
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else (answer, {})


def pushing(receiver: Receiver, **fields: Any) -> WebhookAdapter:
    account = WebhookAccount(enabled=True, port=0, callback_url="https://hooks.example.com/x", **fields)
    return WebhookAdapter(account, key="webhook", serve=SERVE, mailbox=Shelf(), post=receiver.post)


PLACE = Target(conversation_id=ConversationId("webhook:a"), message_id="q1")


async def test_answers_are_posted_where_the_owner_wants_them() -> None:
    receiver, parts = Receiver(), []
    adapter = pushing(receiver, auth_token=SecretStr(TOKEN))

    async def note(part_id: str) -> None:
        parts.append(part_id)

    assert not adapter.traits.is_pulled
    await adapter.send(PLACE, words("m1", "hello *you*"), note)
    await adapter.send(PLACE, words("m1", "hello *you*", sent=("m1",)), note)
    ((url, body, headers),) = receiver.got
    assert url == "https://hooks.example.com/x"
    assert body == {"conversation_id": "a", "reply_to": "q1", "id": "m1", "type": "text", "content": "hello *you*"}
    assert headers == {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    assert parts == ["m1"]
    async with trio.open_nursery() as nursery:
        url = await nursery.start(adapter.run, RecordingIntake())
        async with httpx2.AsyncClient(base_url=url, headers={"x-webhook-token": TOKEN}) as client:
            assert (await client.get("/poll/a")).status_code == 409
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "is_permanent", "pause_s"),
    [
        (400, True, None),
        (404, True, None),
        (410, True, None),
        (301, True, None),
        (408, False, None),
        ((429, {"Retry-After": "7"}), False, 7.0),
        ((503, {"retry-after": "soon"}), False, None),
        (500, False, None),
        (ExternalError("nobody there"), False, None),
        (RefusedError("a private address"), True, None),
    ],
)
async def test_refused_posts_say_whether_to_try_again(answer: Any, is_permanent: bool, pause_s: float | None) -> None:
    adapter, parts = pushing(Receiver([answer])), []

    async def note(part_id: str) -> None:
        parts.append(part_id)

    with pytest.raises(DeliveryError, match="callback_url") as failed:
        await adapter.send(PLACE, words("m1"), note)
    assert (failed.value.is_permanent, failed.value.retry_after_s) == (is_permanent, pause_s)
    assert not parts


async def test_what_a_webhook_cannot_do_is_said() -> None:
    async with open_webhook(key="webhook:ci") as opened:
        adapter = opened.adapter
        assert adapter.traits.is_pulled
        place = await adapter.resolve("build 42")
        assert (place.conversation_id, place.is_direct, place.data) == ("webhook:ci:build 42", True, {"id": "build 42"})
        for wrong in ("", "a\nb", "x" * 201):
            with pytest.raises(DeliveryError, match="printable"):
                await adapter.resolve(wrong)
        for refused in (adapter.send(PLACE, words("m1"), lambda part_id: trio.lowlevel.checkpoint()),
                        adapter.draft(PLACE, "so far", None)):  # fmt: skip
            with pytest.raises(DeliveryError) as error:
                await refused
            assert error.value.is_permanent
        assert await adapter.history(PLACE, 10) == ()
