"""The document of the API names every route, and every route refuses as it says: strangers, odd bodies, odd methods."""

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from pydantic import SecretStr
from starlette.routing import Route

from spacebot.api import server
from spacebot.api.openapi import document, to_markdown
from spacebot.api.requests import AGENT, MAX_FORM, ApiRoute, Body, maybe, route
from spacebot.base.telemetry import LogRing
from spacebot.config.model import ApiConfig
from tests.api.serving import UNREAD, Served, open_server
from tests.conftest import Logs

pytestmark = pytest.mark.filterwarnings(UNREAD)
TOKEN = "a-token-of-the-owner-77120934"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Route]:
    """The routes of the server that is opened next."""
    found: list[Route] = []

    def keep(**parts: Any) -> Any:
        found.extend(one for one in parts["routes"] if isinstance(one, Route))
        return starlette(**parts)

    starlette = server.Starlette
    monkeypatch.setattr(server, "Starlette", keep)
    return found


def operations(made: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method.upper()) for path, methods in made["paths"].items() for method in methods}


@pytest.mark.spec("C-70")
async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path, tables: list[Route]) -> None:
    async with open_server(tmp_path) as served:
        made = (await served.client.get("/api/openapi.json")).json()
    served_routes = {
        (one.path, method)
        for one in tables
        for method in (one.methods or set()) - {"HEAD"}
        if one.path.startswith("/api/") and "{path:path}" not in one.path
    }
    assert operations(made) == served_routes
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"].endswith((".", ":", "`")) or operation["summary"], (path, method)
            names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
            assert all(f"{{{name}}}" in path for name in names)
            assert path.count("{") == len(names)
    bodies = [op for methods in made["paths"].values() for op in methods.values() if "requestBody" in op]
    assert len(bodies) > 15
    assert all({"413", "415", "422"} <= op["responses"].keys() for op in bodies)
    known = made["components"]["schemas"]
    references = [part.partition('"')[0] for part in str(made).replace("'", '"').split('"#/components/schemas/')[1:]]
    assert references
    assert all(name in known for name in references)
    words = to_markdown(made)
    assert all(f"### {method} {path}" in words for path, method in served_routes)


def test_a_route_that_says_nothing_is_described_by_its_handler() -> None:
    class Form(Body):
        """A form."""

        name: str

    class Routes:
        async def plain(self, _: Any) -> None:
            """What it is for.

            And more of it.
            """

    one = Route("/api/plain", Routes().plain)
    other = route(
        "/api/other/{name}",
        Routes().plain,
        "POST",
        query=[AGENT],
        body=Form,
        answer={"a": maybe(int), "b?": [str], "*": Any},
    )
    assert isinstance(other, ApiRoute)
    made = document([one, other])
    plain, described = made["paths"]["/api/plain"]["get"], made["paths"]["/api/other/{name}"]["post"]
    assert (plain["summary"], plain["description"]) == ("What it is for.", "And more of it.")
    schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["a"]
    assert schema["additionalProperties"] == {}
    assert schema["properties"]["a"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert "TestDocumentForm" in described["requestBody"]["content"]["application/json"]["schema"]["$ref"]


@pytest.mark.spec("CA-10")
async def test_no_route_answers_without_the_token_nor_to_another_site(tmp_path: Path) -> None:
    config = ApiConfig(port=0, auth_token=SecretStr(TOKEN))
    for name in "ab":
        (tmp_path / name).mkdir()
    async with open_server(tmp_path / "a", config=config) as served, open_server(tmp_path / "b") as bare:
        owner = {"authorization": f"Bearer {TOKEN}"}
        made = (await served.client.get("/api/openapi.json", headers=owner)).json()
        for path, method in sorted(operations(made)):
            place = path.replace("{", "").replace("}", "")
            if path != "/api/health":
                answer = await served.client.request(method, place)
                assert (answer.status_code, list(answer.json())) == (401, ["error"]), (method, path)
            foreign = await bare.client.request(method, place, headers={"origin": "https://evil.test"})
            assert (foreign.status_code, list(foreign.json())) == (403, ["error"]), (method, path)
            rebound = await bare.client.request(method, place, headers={"host": "evil.test"})
            assert rebound.status_code == 403, (method, path)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 404),
        ({"content-type": "application/problem+json"}, 404),
        ({"content-type": "application/json", "referer": "https://evil.test/page"}, 403),
        ({"content-type": "application/json", "sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_what_a_page_can_post_without_asking_is_refused(
    tmp_path: Path, headers: dict[str, str], code: int
) -> None:
    async with open_server(tmp_path) as served:
        answer = await served.client.post("/api/cancel", content='{"process_id": "x"}', headers=headers)
        assert (answer.status_code, list(answer.json())) == (code, ["error"])


@pytest.mark.spec("C-69")
async def test_methods_and_sizes_have_bounds(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        client = served.client
        wrong = await client.delete("/api/status")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        options = await client.options("/api/cancel")
        assert (options.status_code, options.headers["allow"]) == (
            204,
            "OPTIONS, POST".replace("OPTIONS, POST", "POST, OPTIONS"),
        )
        assert (await client.options("/api/nothing")).status_code == 404
        head = await client.head("/api/events")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        large = await client.post("/api/cancel", json={"process_id": "x" * MAX_FORM})
        assert (large.status_code, str(MAX_FORM) in large.json()["error"]) == (413, True)
        for path in ("/api//status", "/api/%2e%2e/etc/passwd", "/api/" + "x" * 4000):
            assert (await client.get(path)).status_code in (404, 303), path
        found = await raw(served, b"GET /api/status?x=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
        split = await raw(served, b"GET /api/messages/a%0d%0aX-Evil:%20yes/fate HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in split.split(b"\r\n")[0]
        assert b"\r\nx-evil" not in split.lower()
        assert (await client.get("/api/health")).status_code == 200


async def raw(served: Served, request: bytes) -> bytes:
    """The first words that come back."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(served.url.rpartition(":")[2]))
    async with stream:
        try:
            await stream.send_all(request)
            return bytes(await stream.receive_some(65536))
        except trio.BrokenResourceError:
            return b""


async def test_too_many_connections_and_streams_are_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    async with open_server(tmp_path) as served:
        port = int(served.url.rpartition(":")[2])
        assert (await served.client.get("/api/health")).status_code == 200  # the first connection, which stays open
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        for stream in held:
            await stream.send_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await stream.receive_some(1000)
        assert b" 503 " in await raw(served, b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await held.pop().aclose()
        answer = b""
        while b" 200 " not in answer:  # as soon as the server has seen that one left
            answer = await raw(served, b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await held.pop().aclose()
    monkeypatch.undo()
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("spacebot.api.streams.MOST", 1)
    async with open_server(tmp_path / "b") as served:
        async with served.client.stream("GET", "/api/events") as response:
            assert response.status_code == 200
            refused = await served.client.get("/api/events")
        assert (refused.status_code, "streams are open" in refused.json()["error"]) == (503, True)


async def test_an_error_shows_no_secret(tmp_path: Path, logs: Logs) -> None:
    from spacebot.base.errors import StorageError
    from spacebot.base.redaction import MASK, register_secret

    register_secret("a-hidden-value-443310")
    async with open_server(tmp_path) as served:

        async def fails(*_: Any, **__: Any) -> Any:
            raise StorageError("cannot open a-hidden-value-443310")

        served.agent.conversations.channels_page = fails  # type: ignore[method-assign]
        answer = await served.client.get("/api/channels")
        logs.expect("request failed")
    assert (answer.status_code, answer.json()) == (503, {"error": f"cannot open {MASK}"})


@pytest.mark.parametrize("path", ["/api/logs/stream", "/api/webchat/events?session_id=x", "/api/events"])
@pytest.mark.parametrize("digits", [19, 5000])
async def test_an_id_that_no_event_had_is_no_failure(tmp_path: Path, path: str, digits: int) -> None:
    ring = LogRing()
    logging.getLogger().addHandler(ring)
    try:
        async with open_server(tmp_path) as served:
            headers = {"last-event-id": "9" * digits}
            async with served.client.stream("GET", path, headers=headers) as response:
                assert response.status_code == 200
            answer = await served.client.get(f"/api/agents/cron/executions?limit={'9' * digits}")
            assert answer.status_code == 400
    finally:
        logging.getLogger().removeHandler(ring)
