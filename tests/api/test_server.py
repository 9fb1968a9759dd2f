import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
import trio.testing
from pydantic import SecretStr
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from spacebot.api.feed import RING
from spacebot.api.rim import TICKET_S, Rim, Tickets
from spacebot.api.server import serve_api
from spacebot.base.errors import ConfigError
from spacebot.base.events import BUFFER, EventKind
from spacebot.base.tree import Node, NodeKind, NodeState
from spacebot.config.model import ApiConfig
from spacebot.conversations.records import Accepted
from tests.api.serving import CONVERSATION, SESSION, UNREAD, Reader, open_server
from tests.conftest import Logs
from tests.fakes.fake_program import open_fake_program

pytestmark = pytest.mark.filterwarnings(UNREAD)
TOKEN = "a long secret"


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost:5738", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("app.localhost:5738", True),
        ("127.0.0.1:5738", True),
        ("127.9.9.9", True),
        ("[::1]:5738", True),
        ("bot.example.com", True),
        ("BOT.example.com", True),
        ("bot.example.com:5738", False),
        ("evil.example.com", False),
        ("localhost.evil.example.com", False),
        ("127.0.0.1.evil.example.com", False),
        ("192.168.1.5:5738", False),
        ("0.0.0.0:5738", False),
        ("[::1", False),
        ("a b", False),
        ("user@localhost", False),
    ],
)
async def test_only_names_of_this_machine_are_answered(tmp_path: Path, host: str, is_allowed: bool) -> None:
    """DNS rebinding: a foreign name that resolves to 127.0.0.1 makes the browser believe it is the same origin."""
    config = ApiConfig(port=0, allowed_origins=("https://bot.example.com",))
    async with open_server(tmp_path, config=config) as served:
        for path in ("/", "/api/status", "/api/health"):
            answer = await served.client.get(path, headers={"host": host})
            assert answer.status_code == (200 if is_allowed else 403), (path, answer.text)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 202),
        ({"origin": "SELF"}, 202),
        ({"origin": "https://friend.example.com"}, 403),
        ({"origin": "https://friend.example.com", "host": "friend.example.com"}, 202),
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "http://friend.example.com"}, 403),
        ({"origin": "https://friend.example.com.evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 202),
    ],
)
async def test_foreign_pages_cannot_send(tmp_path: Path, headers: dict[str, str], code: int) -> None:
    config = ApiConfig(port=0, allowed_origins=("https://friend.example.com/",))
    async with open_server(tmp_path, config=config) as served:
        headers = {name: served.url if value == "SELF" else value for name, value in headers.items()}
        body = {"session_id": "s", "message": "hello"}
        answer = await served.client.post("/api/webchat/send?wait=false", json=body, headers=headers)
        assert answer.status_code == code, answer.text
        assert len(served.agent.accepted) == (1 if code == 202 else 0)


@pytest.mark.parametrize("origin", ["https://friend.example.com", "https://evil.example.com"])
async def test_a_page_that_shows_the_chat_cannot_read_the_api(tmp_path: Path, origin: str) -> None:
    """Its frame is our own page; its scripts are not."""
    config = ApiConfig(port=0, allowed_origins=("https://friend.example.com",))
    async with open_server(tmp_path, config=config) as served:
        await served.send("a secret")
        query = {"agent_id": "main", "session_id": SESSION}
        answers = [
            await served.client.options("/api/webchat/send", headers={"origin": origin}),
            await served.client.get("/api/channels", headers={"origin": origin}),
            await served.client.get("/api/webchat/history", params=query, headers={"origin": origin}),
            await served.client.get("/api/webchat/history", params=query, headers={"sec-fetch-site": "cross-site"}),
        ]
        script = await served.client.get("/embed.js", headers={"origin": origin, "sec-fetch-site": "cross-site"})
    assert [answer.status_code for answer in answers] == [403] * 4
    assert script.status_code == 200
    for answer in (*answers, script):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.spec("C-67", "CA-10")
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": TOKEN}, 401),
    ],
)
async def test_a_configured_token_is_asked_for(tmp_path: Path, headers: dict[str, str], code: int) -> None:
    async with open_server(tmp_path, config=ApiConfig(port=0, auth_token=SecretStr(TOKEN))) as served:
        answer = await served.client.get("/api/status", headers=headers)
        health = await served.client.get("/api/health")
        page = await served.client.get("/")
    assert answer.status_code == code
    assert (health.status_code, page.status_code) == (200, 200)
    if code == 401:
        assert answer.json() == {"error": "unauthorized"}
    else:
        assert answer.json()["permissions"] == {"main": "profile standard"}


async def test_a_ticket_opens_streams_without_a_header(tmp_path: Path) -> None:
    async with open_server(tmp_path, config=ApiConfig(port=0, auth_token=SecretStr(TOKEN))) as served:
        assert (await served.client.post("/api/ticket")).status_code == 401
        given = await served.client.post("/api/ticket", headers={"authorization": f"Bearer {TOKEN}"})
        ticket = given.json()["ticket"]
        async with served.follow(ticket=ticket) as reader:
            assert [event.name for event in await reader.until("hello")] == ["hello"]
        for wrong in (ticket[:-1], f"9{ticket}", "", "x.y", "."):
            params = {"agent_id": "main", "session_id": SESSION, "ticket": wrong}
            assert (await served.client.get("/api/webchat/events", params=params)).status_code == 401
        writing = await served.client.post(f"/api/cancel?ticket={ticket}", json={"process_id": "x"})
    assert writing.status_code == 401


async def test_a_ticket_runs_out(autojump_clock: trio.testing.MockClock) -> None:
    tickets = Tickets()
    ticket = tickets.issue()
    assert tickets.is_valid(ticket)
    await trio.sleep(TICKET_S + 1)
    assert not tickets.is_valid(ticket)
    assert not Tickets().is_valid(tickets.issue())


async def test_errors_under_api_are_json_and_every_answer_is_guarded(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        client = served.client
        for method, path, code in (
            ("GET", "/api/nothing", 404),
            ("POST", "/api/nothing", 404),
            ("GET", "/api", 404),
            ("GET", "/api/webchat/send", 405),
            ("DELETE", "/api/status", 405),
            ("GET", "/api/webchat/history", 400),
            ("GET", "/api/webchat/history?session_id=s&limit=many", 400),
            ("GET", "/api/messages/none/fate", 404),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, list(answer.json())) == (code, ["error"]), path
        for path in ("/api/status", "/api/nothing", "/", "/static/none.js"):
            answer = await client.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "unsafe-inline" not in answer.headers["content-security-policy"]
            assert "server" not in answer.headers


@pytest.mark.parametrize("origins", [(), ("https://friend.example.com", "junk; script-src *")])
async def test_only_allowed_origins_may_frame_the_page(tmp_path: Path, origins: tuple[str, ...]) -> None:
    config = ApiConfig(port=0).model_copy(update={"allowed_origins": origins})  # past the check of the file
    async with open_server(tmp_path, config=config) as served:
        headers = (await served.client.get("/")).headers
    policy = headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self'" + (" https://friend.example.com" if origins else ""))
    assert ("x-frame-options" in headers) == (not origins)


async def test_an_error_of_ours_is_an_answer_and_the_server_goes_on(tmp_path: Path, logs: Logs) -> None:
    logs.expect("request failed")
    async with open_server(tmp_path) as served:
        served.agent.status_blocks = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        answer = await served.client.get("/api/channels/status")
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert (await served.client.get("/api/health")).status_code == 200


async def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    async with open_fake_program(tmp_path) as program:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port} .* api.port"):
                await serve_api(
                    program,
                    ApiConfig(port=port),
                    events=program.events,
                    tree=program.tree,
                    run_id="r",
                    stop=trio.Event(),
                )


async def test_open_streams_end_cleanly_when_the_program_stops(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow() as session, served.client.stream("GET", "/api/events") as response:
            await session.until("hello")
            served.stop.set()
            assert await session.next() is None
            assert await Reader(response).next() is None


async def test_a_reader_that_never_reads_cannot_hold_the_end(tmp_path: Path) -> None:
    """Hypercorn shields its writes: without our cut this test would run into the patience of `open_server`."""
    with socket.socket() as deaf:
        async with open_server(tmp_path, grace_s=0.05) as served:
            address = urlsplit(served.url)
            deaf.connect((address.hostname, address.port))
            deaf.sendall(f"GET /api/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            while not (await served.client.get("/api/status")).json()["counts"]["streams"]:
                pass
            for _ in range(BUFFER):  # 50 MB, more than the system's buffers take
                served.program.events.emit(EventKind.CONFIG_RELOADED, text="x" * 100_000)
            await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /api/webchat/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/status HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/webchat/history?session_id=%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"X" * 100_000,
    ],
)
async def test_broken_and_broken_off_requests_leave_no_trace(tmp_path: Path, raw: bytes) -> None:
    async with open_server(tmp_path) as served:
        address = urlsplit(served.url)
        assert address.hostname is not None
        assert address.port is not None
        for _ in range(3):
            async with await trio.open_tcp_stream(address.hostname, address.port) as stream:
                with suppress(trio.BrokenResourceError), trio.move_on_after(0.05):
                    await stream.send_all(raw)
                    await stream.receive_some(4096)
        assert (await served.client.get("/api/health")).status_code == 200
        while (await served.client.get("/api/status")).json()["counts"]["streams"]:
            pass


@pytest.mark.spec("C-77", "C-80", "CA-10")
async def test_the_event_stream_tells_all_and_says_when_it_lagged(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "other")) as served:
        agent = served.agent
        async with served.client.stream("GET", "/api/events", params={"agent_id": "main"}) as response:
            reader = Reader(response)
            while not (await served.client.get("/api/status")).json()["counts"]["streams"]:
                pass
            await served.send("to other", agent_id="other")
            await served.send("hello")
            (first,) = await reader.until("inbound_message")
            for n in range(2 * RING + 5):  # in one step of the loop: no reader can keep up
                agent.emit(EventKind.TOOL_OUTPUT, CONVERSATION, process_id="p", line=str(n))
            (lagged,) = await reader.until("lagged")
            (following,) = await reader.until("tool_output")
    assert (first.data["type"], first.data["text"], first.data["agent_id"]) == ("inbound_message", "hello", "main")
    assert lagged.data["skipped"] >= 4
    assert following.data["line"] == str(lagged.data["skipped"])


async def test_idle_streams_carry_a_sign_of_life(tmp_path: Path) -> None:
    async with open_server(tmp_path, keep_alive_s=0.01) as served:
        async with served.client.stream("GET", "/api/events") as response:
            seen = ""
            async for text in response.aiter_text():
                seen += text
                if seen.count(": ping\n\n") == 2:
                    break


async def test_status_and_tree_show_what_runs(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        tree = served.program.tree
        root = tree.add(NodeKind.AGENT, "main", node_id="agent-main", agent_id="main")
        tree.add(NodeKind.WORKER, "count stars", parent=root, channel_id=CONVERSATION)
        status = (await served.client.get("/api/status")).json()
        processes = (await served.client.get("/api/tree")).json()["processes"]
    assert (status["status"], status["run_id"]) == ("running", "run-1")
    assert (status["is_demo"], status["model"]) == (True, "demo/demo")
    assert status["counts"]["workers"] == 1
    assert [(p["kind"], p["description"], p["parent_id"]) for p in processes] == [
        ("agent", "main", None),
        ("worker", "count stars", "agent-main"),
    ]


@pytest.mark.parametrize("route", ["/api/cancel", "/api/channels/cancel"])
async def test_a_worker_can_be_cancelled(tmp_path: Path, route: str) -> None:
    async with open_server(tmp_path) as served:

        async def for_ever(_: Node) -> str:
            await trio.sleep_forever()
            raise AssertionError

        outcomes = []

        async def work() -> None:
            outcomes.append(await served.agent.run_worker(CONVERSATION, "endless", for_ever))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            (node,) = served.program.tree.of_kind(NodeKind.WORKER)
            body = {"process_id": node.id}
            if route == "/api/channels/cancel":
                body |= {"channel_id": CONVERSATION, "process_type": "worker"}
            answer = await served.client.post(route, json=body)
        again = await served.client.post(route, json=body)
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert (outcomes[0].state, again.status_code) == (NodeState.CANCELLED, 404)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"process_id": "daemon"}, 400),
        ({"process_id": "none"}, 404),
        ({"process_id": 1}, 422),
        ({}, 422),
    ],
)
async def test_only_turns_branches_and_workers_can_be_cancelled(tmp_path: Path, body: Any, code: int) -> None:
    async with open_server(tmp_path) as served:
        daemon = served.program.tree.add(NodeKind.DAEMON, "the program", node_id="daemon")
        assert (await served.client.post("/api/cancel", json=body)).status_code == code
        assert not daemon.cancel_scope.cancel_called


async def test_cancelling_in_a_channel_checks_kind_and_channel(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        served.program.tree.add(NodeKind.WORKER, "w", node_id="w1", agent_id="main", channel_id=CONVERSATION)
        good = {"channel_id": CONVERSATION, "process_type": "worker", "process_id": "w1"}
        wrong: list[tuple[dict[str, str], int]] = [
            ({**good, "process_type": "branch"}, 404),
            ({**good, "channel_id": "webchat:other"}, 404),
            ({**good, "process_type": "daemon"}, 422),
        ]
        for body, code in wrong:
            assert (await served.client.post("/api/channels/cancel", json=body)).status_code == code


async def test_channels_and_their_messages_can_be_read_page_by_page(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "other")) as served:
        for n in range(5):
            await served.send(f"m{n}")
        await served.send("hi", agent_id="other")
        channels = (await served.client.get("/api/channels")).json()["channels"]
        query = {"channel_id": CONVERSATION, "limit": 2}
        pages = []
        while True:
            page = (await served.client.get("/api/channels/messages", params=query)).json()
            pages.append([item["content"] for item in page["items"]])
            if not page["has_more"]:
                break
            query["before"] = page["before"]
    assert [(c["agent_id"], c["id"], c["platform"]) for c in channels] == [
        ("other", CONVERSATION, "webchat"),
        ("main", CONVERSATION, "webchat"),
    ]
    assert pages == [["m3", "m4"], ["m1", "m2"], ["m0"]]


async def test_the_fate_of_a_message_is_told(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        receipt = (await served.send("hello", client_id="c-1")).json()
        before = (await served.client.get(f"/api/messages/{receipt['message_id']}/fate")).json()
        accepted = Accepted(message_id=receipt["message_id"], seq=receipt["seq"], is_new=True)
        async with served.agent.turn(CONVERSATION, accepted) as turn:
            await turn.say("hi")
        after = (await served.client.get("/api/messages/c-1/fate")).json()
    assert (before["state"], after["state"]) == ("accepted", "answered")
    assert [reply["content"] for reply in after["replies"]] == ["hi"]


async def test_prompts_can_be_reloaded_and_a_broken_one_is_named(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        good = await served.client.post("/api/prompts/reload")
        served.program.broken_prompt = "CHANNEL.md line 3: unknown variable"
        bad = await served.client.post("/api/prompts/reload")
    assert good.json() == {"success": True, "changed": ["CHANNEL.md"]}
    assert (bad.status_code, bad.json()) == (409, {"error": "CHANNEL.md line 3: unknown variable"})


def test_importing_the_server_brings_no_heavy_library() -> None:
    code = "import sys, spacebot.api.server; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"lancedb", "onnxruntime", "anthropic", "openai", "numpy"} & set(run.stdout.split())


def test_only_the_server_imports_hypercorn() -> None:
    package = Path(__file__).parents[2] / "spacebot"
    importing = re.compile(r"^\s*(from|import) hypercorn", re.MULTILINE)
    assert [file.name for file in package.rglob("*.py") if importing.search(file.read_text())] == ["server.py"]


async def test_a_new_token_makes_tickets_of_the_old_one_worthless() -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({})(scope, receive, send)

    live = [ApiConfig(auth_token=SecretStr(TOKEN))]
    tickets = Tickets()
    rim = Rim(page, live[0], tickets, lambda: live[0])
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(rim), base_url="http://localhost")
    async with client:
        ticket = tickets.issue()
        assert (await client.get("/api/status", params={"ticket": ticket})).status_code == 200
        live[0] = ApiConfig(auth_token=SecretStr(TOKEN), allowed_origins=("https://example.org",))
        assert (await client.get("/api/status", params={"ticket": ticket})).status_code == 200
        live[0] = ApiConfig(auth_token=SecretStr("another-token-of-the-owner"))
        assert (await client.get("/api/status", params={"ticket": ticket})).status_code == 401
