"""Connections to MCP servers: real ones, and one that misbehaves in every way that the protocol leaves room for."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from pydantic import SecretStr

from spacebot.api.server import serve_asgi
from spacebot.base.errors import ConfigError, ExternalError, SpacebotError, ToolError
from spacebot.base.redaction import MASK, scrub
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.hands import McpServerConfig
from spacebot.llm.messages import ToolCall
from spacebot.tools.contract import RESULT_CAP, parse_arguments
from spacebot.tools.mcp.client import Endpoint, Link, open_link
from spacebot.tools.mcp.naming import LONGEST, part_of_name, tool_names
from spacebot.tools.mcp.placeholders import fill_in, looks_secret, register_secrets
from spacebot.tools.mcp.places import places_of
from spacebot.tools.mcp.tool import CallResult, RemoteToolSpec, make_tool
from spacebot.tools.programs import open_program
from spacebot.tools.sandbox import Invocation
from tests.api.serving import UNREAD
from tests.node.servers import node_server
from tests.stand_ins import mcp_python
from tests.stand_ins.serving import Connection, Request, serve

STAND_INS = Path(__file__).parents[1] / "stand_ins"
MISBEHAVING = [sys.executable, "-S", str(STAND_INS / "mcp_misbehaving.py")]
PATIENCE_S = 20.0


def local(*words: str, folder: Path = Path("/")) -> Endpoint:
    return Endpoint(name="test", invocation=Invocation(words, folder, {"PATH": os.environ["PATH"]}))


@asynccontextmanager
async def linked(endpoint: Endpoint, **options: Any) -> AsyncIterator[Link]:
    with trio.fail_after(PATIENCE_S):
        async with open_link(endpoint, **options) as link:
            yield link


async def call(link: Link, tool: str, *, timeout_s: float = 10, **arguments: Any) -> CallResult:
    return await link.call(tool, arguments, timeout_s=timeout_s, on_progress=lambda: None)


def names(link: Link) -> list[str]:
    return [tool.name for tool in link.tools]


# Names


@pytest.mark.parametrize(
    ("own", "part"),
    [("GitHub", "github"), ("read file", "read_file"), ("--a..b--", "a_b"), ("!?", "mcp_tool"), ("", "mcp_tool"),
     ("1password", "_1password"), ("größe", "gr_e"), ("a__b", "a_b")],
)  # fmt: skip
def test_a_part_of_a_name_is_made_of_letters_digits_and_underscores(own: str, part: str) -> None:
    assert part_of_name(own) == part


def test_names_are_short_unmistakable_and_the_same_in_every_order() -> None:
    pairs = [("a", "b c"), ("a", "b_c"), ("a_b", "c"), ("web", "search"), ("files", "read"), ("s", "x" * 100)]
    pairs += [("s", "x" * 99)]
    found = tool_names(pairs, {"web_search"})
    assert found["files", "read"] == "files_read"
    assert len(set(found.values())) == len(pairs)
    assert all(len(name) <= LONGEST for name in found.values())
    assert "web_search" not in found.values()
    assert "a_b_c" not in found.values()
    assert found["a", "b c"].startswith("a_b_c_")
    assert tool_names(reversed(pairs), {"web_search"}) == found


# Placeholders


def server(**fields: Any) -> McpServerConfig:
    return McpServerConfig(name="test", **fields)


def test_placeholders_are_filled_everywhere_and_their_values_are_secrets() -> None:
    known = {"TOKEN": "t0psecret-value", "HOME": "/home/somebody", "NAME": "plain-word-here"}
    filled = fill_in(
        server(transport="stdio", command="${HOME}/bin", args=["--name=${NAME}", "${OPEN", "${}", "${NOTHING}"],
               env={"A": SecretStr("x${TOKEN}y"), "PASSWORD": SecretStr("hunter2-hunter2")}),
        known.get,
    )  # fmt: skip
    assert filled.argv == ("/home/somebody/bin", "--name=plain-word-here", "${OPEN", "${}", "")
    assert filled.env == {"A": "xt0psecret-valuey", "PASSWORD": "hunter2-hunter2"}
    assert filled.missing == ("NOTHING",)
    assert scrub("t0psecret-value hunter2-hunter2 /home/somebody plain-word-here") == (
        f"{MASK} {MASK} /home/somebody plain-word-here"
    )


@pytest.mark.parametrize("written", ["Bearer ${T}", "bearer   ${T}", "${T}", " ${T} "])
def test_a_bearer_token_is_sent_once_however_it_is_written(written: str) -> None:
    remote = server(transport="http", url="https://x.example", headers={"authorization": SecretStr(written)})
    for value in ("sesame-open-1", "Bearer sesame-open-1"):
        assert fill_in(remote, {"T": value}.get).headers == {"authorization": "Bearer sesame-open-1"}


@pytest.mark.parametrize(
    ("written", "why"), [("Basic dXNlcg==", "scheme 'Basic'"), ("Bearer ${NOTHING}", "is empty"), ("", "is empty"),
                         ("Bearer a b", "scheme .a.")]
)  # fmt: skip
def test_other_schemes_and_empty_tokens_are_refused(written: str, why: str) -> None:
    remote = server(transport="http", url="https://x.example", headers={"Authorization": SecretStr(written)})
    with pytest.raises(ConfigError, match=why):
        fill_in(remote, {}.get)


def test_what_looks_like_a_credential_is_scrubbed_before_any_connection() -> None:
    register_secrets(server(transport="http", url="https://x.example", headers={"X-Api-Key": SecretStr("k3y-k3y-k3y")}))
    assert scrub("k3y-k3y-k3y") == MASK
    assert all(map(looks_secret, ("GITHUB_TOKEN", "X-Api-Key", "PGPASSWORD", "SENTRY_DSN", "key")))
    assert not any(map(looks_secret, ("NODE_ENV", "KEYBOARD", "TOKENIZER", "LANG")))


# What the sandbox shows of the machine


def test_a_program_in_a_home_folder_is_shown_and_the_home_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As version managers lay it out: a link, to a link, to the program beside its libraries."""
    home, own = tmp_path / "home", tmp_path / "home" / "spacebot"
    for name in ("node/v20/bin", "node/v20/lib", ".local/bin", "env/bin", "spacebot/keys", "data"):
        (home / name).mkdir(parents=True)
    program = home / "node/v20/bin/npx"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (home / "env/bin/npx").symlink_to(program)
    (home / ".local/bin/npx").symlink_to(home / "env/bin/npx")
    monkeypatch.setattr(Path, "home", lambda: home)
    words = ["npx", "-y", str(home / "data"), f"--config={home / 'spacebot/keys'}", str(home / "none"), "/etc/passwd"]
    shown = places_of([*words, "/"], f"/nowhere:{home / '.local/bin'}", hidden=own)
    assert sorted(shown) == sorted([home / ".local/bin", home / "env", home / "node/v20", home / "data"])
    assert places_of(["npx", str(home)], str(home / "env/bin"), hidden=own) == (home / "env", home / "node/v20")


# Real servers


async def test_the_filesystem_server_lists_and_reads(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a word\n")
    async with linked(local(*node_server("filesystem"), str(tmp_path))) as link:
        assert {"list_directory", "read_text_file", "write_file"} <= set(names(link))
        assert (await call(link, "list_directory", path=str(tmp_path))).text == "[FILE] note.txt"
        refused = await call(link, "read_text_file", path="/etc/passwd")
        assert refused.is_error
        assert "denied" in refused.text


async def test_the_everything_server_answers_in_every_form() -> None:
    seen: list[int] = []
    async with linked(local(*node_server("everything"))) as link:
        assert (await call(link, "echo", message="hi")).text == "Echo: hi"
        assert '"temperature"' in (await call(link, "get-structured-content", location="Chicago")).text
        assert '"image/png"' in (await call(link, "get-tiny-image")).text
        arguments = {"duration": 0.3, "steps": 3}
        done = await link.call(
            "trigger-long-running-operation", arguments, timeout_s=10, on_progress=lambda: seen.append(1)
        )
        assert "completed" in done.text
        assert len(seen) == 3


async def test_a_python_server_over_pipes() -> None:
    async with linked(local(sys.executable, str(STAND_INS / "mcp_python.py"))) as link:
        assert names(link) == ["add", "slow", "fail"]
        assert (await call(link, "add", a=1, b=2)).text == "3"  # which it says twice
        failed = await call(link, "fail")
        assert failed.is_error


@pytest.mark.spec("C-11")
@pytest.mark.filterwarnings(UNREAD)  # the SDK leaves a stream of events where its answer came
async def test_the_everything_server_over_http_keeps_a_session_and_its_end_is_noticed() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*node_server("everything"), "streamableHttp"]
    invocation = Invocation(tuple(command), Path("/"), {"PATH": os.environ["PATH"], "PORT": str(port)})
    async with open_program(invocation, grace_s=0.1) as program:
        with trio.fail_after(PATIENCE_S):
            while "listening" not in program.said:
                await trio.sleep(0.02)
        said: list[str] = []

        async def ask(link: Link) -> None:
            with pytest.raises(ToolError) as refusal:
                await call(link, "echo", message="hi")
            said.append(str(refusal.value))

        gone = f"127.0.0.1:{port} (cannot be reached|broke the connection)"
        async with trio.open_nursery() as workers:
            with pytest.raises(ExternalError, match=gone):  # noqa: PT012
                async with linked(Endpoint(name="test", url=f"http://127.0.0.1:{port}/mcp", headers={})) as link:
                    assert (await call(link, "echo", message="hi")).text == "Echo: hi"
                    os.kill(program.pid, signal.SIGKILL)
                    await program.wait()
                    workers.start_soon(ask, link)
                    await link.serve(lambda: None)
        assert re.search(gone, said[0])


@asynccontextmanager
async def serving_python(seen: list[dict[str, str]] | None = None) -> AsyncIterator[str]:
    """The same server behind HTTP; `seen` gets the headers of each request."""
    app = mcp_python.server().streamable_http_app()

    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and seen is not None:
            seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await app(scope, receive, send)

    async with app.router.lifespan_context(app), trio.open_nursery() as nursery:
        (url,) = await nursery.start(lambda task_status: serve_asgi(note, "127.0.0.1", 0, task_status=task_status))
        yield f"{url}/mcp"
        nursery.cancel_scope.cancel()


@pytest.mark.spec("C-11")
async def test_a_python_server_over_http_gets_the_headers_and_cancellation() -> None:
    mcp_python.MADE.clear()
    seen: list[dict[str, str]] = []
    async with serving_python(seen) as url:
        async with linked(Endpoint(name="test", url=url, headers={"Authorization": "Bearer sesame"})) as link:
            assert (await call(link, "add", a=1, b=2)).text.startswith("3")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: call(link, "slow", seconds=60))
                while "began" not in mcp_python.MADE:
                    await trio.sleep(0.01)
                assert (await call(link, "add", a=2, b=2)).text.startswith("4")  # nobody waits for the slow one
                nursery.cancel_scope.cancel()
            while "cancelled" not in mcp_python.MADE:
                await trio.sleep(0.01)
            assert (await call(link, "add", a=3, b=2)).text.startswith("5")
    assert seen
    assert {headers["authorization"] for headers in seen} == {"Bearer sesame"}


# HTTP that misbehaves


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (401, {}, b"{}", "refused the credentials .status 401."),
        (302, {"location": "http://127.0.0.1:1/steal"}, b"", "redirect"),
        (307, {"location": "http://localhost:1/steal"}, b"", "redirect"),
        (200, {}, b"x" * 5_000_000, "more than 4 MiB"),
        (200, {"content-encoding": "gzip"}, b"bomb", "coding that was not asked for"),
        (200, {}, b"<html>", "."),
    ],
)
async def test_an_answer_that_is_none_ends_the_connection_with_a_reason(
    status: int, headers: dict[str, str], body: bytes, why: str
) -> None:
    async def answer(request: Request, connection: Connection) -> None:
        await connection.send(body, status=status, headers=headers)

    async with serve(answer) as there:
        with pytest.raises(ExternalError, match=why):
            async with linked(
                Endpoint(name="test", url=f"{there.url}/mcp", headers={"Authorization": "Bearer sesame"})
            ):
                pytest.fail("there is nothing to talk with")


@pytest.mark.spec("C-68")
@pytest.mark.parametrize(
    ("url", "error", "why"),
    [
        ("http://127.0.0.1:1/mcp", ExternalError, "127.0.0.1:1 cannot be reached"),
        ("http://169.254.169.254/mcp", ExternalError, "metadata service"),
        ("ftp://x.example", ConfigError, "no absolute http or https URL"),
        ("http://a:b@x.example/", ConfigError, "user name or password"),
        ("", ConfigError, "no absolute http or https URL"),
    ],
)
async def test_an_address_that_cannot_be_used_is_explained(url: str, error: type[SpacebotError], why: str) -> None:
    with pytest.raises(error, match=why):
        async with linked(Endpoint(name="test", url=url, headers={})):
            pytest.fail("there is nothing to talk with")


# Programs that misbehave


async def test_a_server_that_hangs_in_initialise_is_given_up_and_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ExternalError, match="no answer within 1 s"):
        async with linked(local(*MISBEHAVING, "--log", str(log), "--hang", "initialize"), connect_s=1):
            pytest.fail("it never answers")
    assert "initialize" in log.read_text()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(log) in (p.info["cmdline"] or ())]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("sh", "-c", "echo no licence >&2; exit 4"), "its program ended; its last words: no licence"),
        (("no-such-program",), "'no-such-program' was not found"),
        (("true",), "its program ended"),
        (("head", "-c", "30000000", "/dev/zero"), "more than 16 MiB"),
        (("yes", "noise"), "more than 500 messages in a second"),
    ],
)
async def test_a_program_that_is_no_server_is_explained(words: tuple[str, ...], why: str) -> None:
    with pytest.raises((ExternalError, ToolError), match=why):
        async with linked(local(*words)):
            pytest.fail("it is no server")


async def test_it_introduces_itself_and_reads_every_page(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with linked(local(*MISBEHAVING, "--log", str(log), "--pages")) as link:
        assert len(link.tools) == 14
    lines = log.read_text().splitlines()
    assert lines.count("tools/list") == 14
    (client,) = [json.loads(line.removeprefix("client ")) for line in lines if line.startswith("client ")]
    assert client["name"] == "spacebot"
    assert client["version"][0].isdigit()


async def test_results_are_capped_joined_and_never_empty() -> None:
    async with linked(local(*MISBEHAVING)) as link:
        large = await call(link, "large")
        assert len(large.text.encode()) < RESULT_CAP + 200
        assert "bytes left out" in large.text
        assert len((await call(link, "lists")).text.encode()) < RESULT_CAP + 200
        assert (await call(link, "echo", text="")).text == "(the tool returned no content)"
        mixed = (await call(link, "mixed")).text.split("\n")
        assert (mixed[0], mixed[2], mixed[3]) == ("one", "two", '{"sum": 3}')
        assert "(4000 characters left out)" in mixed[1]
        failed = await call(link, "fail", text="it broke")
        assert (failed.text, failed.is_error) == ("it broke", True)
        assert (await call(link, "echo", text="ghp_" + "a1" * 20)).text == MASK


async def test_noise_on_every_pipe_stops_nobody() -> None:
    async with linked(local(*MISBEHAVING)) as link:
        for tool in ("errors", "garbage", "echo"):
            assert (await call(link, tool)).text == tool


async def test_a_call_without_an_answer_ends_in_time_and_holds_up_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with linked(local(*MISBEHAVING, "--log", str(log))) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: call(link, "silent", timeout_s=60))
            assert (await call(link, "echo")).text == "echo"
            nursery.cancel_scope.cancel()
        with pytest.raises(ToolError, match="no answer within"):
            await call(link, "silent", timeout_s=0.1)
        assert (await call(link, "echo")).text == "echo"
        assert log.read_text().splitlines().count("notifications/cancelled") == 2


async def test_news_of_progress_keep_a_call_alive() -> None:
    seen: list[int] = []
    async with linked(local(*MISBEHAVING)) as link:
        done = await link.call("progress", {"pause": 0.3}, timeout_s=0.6, on_progress=lambda: seen.append(1))
        assert (done.text, len(seen)) == ("progress", 3)


@pytest.mark.parametrize(("tool", "why"), [("die", "out of cheese"), ("huge", "16 MiB"), ("flood", "500 messages")])
async def test_a_server_that_breaks_in_a_call_is_noticed(tool: str, why: str) -> None:
    async with linked(local(*MISBEHAVING)) as link:
        with pytest.raises(ToolError, match=why):
            await call(link, tool)
        await link.serve(lambda: None)  # returns, because it is over


async def test_tools_that_change_are_listed_anew() -> None:
    changed = trio.Event()
    async with linked(local(*MISBEHAVING)) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.serve, changed.set)
            assert "grown" not in names(link)
            await call(link, "grow")
            await changed.wait()
            assert "grown" in names(link)
            nursery.cancel_scope.cancel()


async def test_tools_that_no_model_could_be_given_are_left_out() -> None:
    def tool(name: str, schema: Any) -> dict[str, Any]:
        return {"name": name, "description": "d", "inputSchema": schema}

    odd = [
        tool("good", {"type": "object"}),
        tool("good", {"type": "object", "properties": {"second": {}}}),
        tool("bare", {}),
        tool("text", {"type": "string"}),
        tool("broken", {"type": "object", "properties": {"a": {"type": 7}}}),
        tool("strange", {"type": "object", "properties": {"a b": {}}}),
        tool("union", {"type": "object", "anyOf": [{}]}),
        tool("endless", {"type": "object", "description": "x" * 40_000}),
    ]
    async with linked(local(*MISBEHAVING, "--tools", json.dumps(odd))) as link:
        assert [(tool.name, tool.schema) for tool in link.tools] == [
            ("good", {"type": "object"}), ("bare", {"type": "object"}),
        ]  # fmt: skip


# What a worker holds


class Far:
    """A server that answers with what it was sent."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def call(self, tool: str, arguments: dict[str, Any], on_progress: Callable[[], None]) -> CallResult:
        self.got.append((tool, arguments))
        return CallResult("ok", is_error=False)


async def test_arguments_go_out_as_they_are_but_never_with_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    far, node = Far(), Tree().add(NodeKind.WORKER, "work")
    spec = RemoteToolSpec("read file", "Reads.", {"type": "object", "properties": {"model_dump": {}}})
    tool = make_tool("files_read_file", "Reads.", spec, far)
    assert (tool.name, tool.spec.name, dict(tool.spec.schema)) == (
        "files_read_file",
        "files_read_file",
        spec.schema,
    )
    arguments = {"model_dump": 1, "value": {"deep": [1, None]}, "self": "x"}
    await tool.call(parse_arguments(tool, ToolCall("c1", tool.name, arguments, "")), node)
    assert far.got == [("read file", arguments)]
    secret = {"context": f"as you asked: ghp_{'a1' * 20}"}
    with pytest.raises(ToolError, match="hold a secret"):
        await tool.call(parse_arguments(tool, ToolCall("c2", tool.name, secret, "")), node)
    assert len(far.got) == 1
    assert "call of an MCP tool refused" in caplog.text
