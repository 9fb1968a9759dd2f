"""Pitfalls of the control spec that belong to no part alone: one rule for all keys, old databases, pages and routes."""

import ast
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.clock import Clock
from spacebot.base.paths import package_file
from spacebot.base.tree import NodeKind
from spacebot.config.load import load_config
from spacebot.config.provider_table import provider_table
from spacebot.llm import anthropic, openai_chat, openai_responses
from spacebot.llm.dialect import ToolsCache
from spacebot.llm.history import repair
from spacebot.llm.messages import ModelMessage, ModelRequest, ProcessKind, Role, SystemBlock, Text, ToolCall, ToolResult
from spacebot.storage.database import migrate
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import Category, SecretStore
from tests.api.serving import UNREAD, open_server
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, ScriptedModel
from tests.llm.given import target as built_in

PACKAGE = Path(__file__).parents[1] / "spacebot"
SQL = package_file("storage", "sql")
PUBLISHED = {  # what somebody's database has had is never edited; a later file mends it
    "0001_baseline.sql": "1601f5a728564a09",
    "0002_memory.sql": "f1acbafce652d583",
    "0003_curation.sql": "a8513ac91274cc41",
    "0004_recall.sql": "34b2ee3f03d246d3",
    "0005_message_search.sql": "0aa5c57be0f8dfd1",
    "0006_verdicts.sql": "2eac098b89a5e0a4",
    "0007_platforms.sql": "b8717afd866f3bfc",
    "0008_cron.sql": "055649de87e01179",
    "0009_workers.sql": "d18f00889b3a91b8",
}


# Configuration


@pytest.mark.spec("C-20")
def test_the_file_wins_over_the_environment_for_every_providers_key(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for entry in provider_table().values():
        if entry.key:
            file.write_text(f'[llm]\n{entry.key} = "key-of-the-file-1234"\n')
            llm = load_config(file, environ={str(entry.env): "key-of-the-environment"}).config.llm
            key = llm.provider[entry.id].api_key
            assert key is not None, entry.id
            assert key.get_secret_value() == "key-of-the-file-1234", entry.id


@pytest.mark.spec("C-24")
def test_only_a_start_forks_and_before_anything_is_loaded() -> None:
    """A copy of a process with threads, a loop or an open key store would begin half-way."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty"))
        or (isinstance(node, ast.Import | ast.ImportFrom) and "multiprocessing" in ast.dump(node))
    }
    assert found == {"cli/daemon.py"}
    words = "import sys, threading, spacebot.cli.daemon; print(threading.active_count(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    count, *loaded = done.stdout.split()
    assert count == "1"
    assert not {"trio", "cryptography", "sqlite3", "pydantic", "spacebot.storage.secrets"} & set(loaded)


# Databases of earlier versions


def schema_of(path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    return {(name, " ".join(sql.split())) for name, sql in rows}


@pytest.mark.spec("C-30")
def test_a_database_of_every_earlier_version_becomes_one_of_this(tmp_path: Path) -> None:
    files = sorted(SQL.glob("*.sql"))
    migrate(tmp_path / "fresh.db", SQL, Clock())
    wanted = schema_of(tmp_path / "fresh.db")
    for count in range(1, len(files)):
        older, path = tmp_path / f"sql{count}", tmp_path / f"{count}.db"
        older.mkdir()
        for file in files[:count]:
            shutil.copy(file, older)
        migrate(path, older, Clock())
        migrate(path, SQL, Clock())
        assert schema_of(path) == wanted, files[count - 1].name


@pytest.mark.spec("C-30")
def test_what_a_database_has_had_is_never_edited() -> None:
    found = {name: hashlib.sha256((SQL / name).read_bytes()).hexdigest()[:16] for name in PUBLISHED}
    assert found == PUBLISHED


# Models


@pytest.mark.spec("C-41")
def test_no_empty_text_is_sent_to_anybody() -> None:
    """Beside calls, results, pictures, in system blocks and alone: providers refuse them, or answer to nothing."""
    talk = (
        ModelMessage(Role.USER, (Text(""), Text("go"))),
        ModelMessage(Role.ASSISTANT, (Text(" \n"), ToolCall("1", "shell", {}))),
        ModelMessage(Role.USER, (ToolResult("1", ""), Text(""))),
        ModelMessage(Role.ASSISTANT, (Text(""),)),
        ModelMessage.user("and now?"),
    )
    system = (SystemBlock(""), SystemBlock("be kind"), SystemBlock(" ", is_stable=False))
    request = ModelRequest(process=ProcessKind.WORKER, system=system, messages=repair(talk))
    for wire, model in (
        (anthropic.to_wire, "anthropic/claude-haiku-4.5"),
        (openai_chat.to_wire, "openai/gpt-4.1"),
        (openai_responses.to_wire, "openai/gpt-4.1"),
    ):
        body = json.loads(wire(request, built_in(model), ToolsCache()))
        assert "be kind" in json.dumps(body)
        empty = [block for block in blocks_of(body) if not str(block.get("text", "x")).strip()]
        assert empty == [], (model, empty)


def blocks_of(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from blocks_of(item)


@pytest.mark.spec("C-52")
async def test_a_turn_that_was_cancelled_leaves_no_half_of_itself(mock_clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    model = ScriptedModel(Calls(Call("channel_recall", query="x")), gate, Call("reply", content="well"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "first")
        await gate.arrived.wait()
        assert opened.tree.cancel(opened.node(NodeKind.TURN).id, "stopped by the owner")
        await opened.ended(1)
        await opened.say("Ann", "second")
        await opened.ended(2)
        after = model.requests[-1].messages
    assert repair(after) == tuple(after), "nothing has to be mended"
    assert not any(isinstance(part, ToolCall | ToolResult) for message in after for part in message.parts)
    assert [message.role for message in after][-1] is Role.USER
    assert "second" in after[-1].text


# The API and its pages


def calls_of_pages() -> set[tuple[str, str]]:
    """(method, path) of each request that the pages' scripts write out; `{}` stands for what is filled in."""
    found = set()
    verb = r'(?:send\(\s*"(?P<method>[A-Z]+)",\s*|\b(?P<word>get|post|fetchFile)\(\s*)'
    for path in sorted((PACKAGE / "api/static").glob("*.js")):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(verb + r'["`](?P<path>[a-z][^"`\s]*)["`]', text):
            if text[match.start() - 1] == ".":  # a form's or a store's get
                continue
            method = match["method"] or {"post": "POST"}.get(match["word"], "GET")
            place = re.sub(r"\$\{[^}]*\}", "{}", match["path"].partition("?")[0])
            found.add((method, f"/api/{place}"))
    return found


@pytest.mark.spec("C-70", "C-78")
@pytest.mark.filterwarnings(UNREAD)
async def test_the_pages_ask_for_routes_that_there_are_and_forms_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        document = (await served.client.get("/api/openapi.json")).json()
    routes = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    asked = calls_of_pages()
    assert len(asked) > 60
    assert sorted(asked - routes) == []
    schemas = document["components"]["schemas"]
    open_forms = [
        (path, method)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for media, content in operation.get("requestBody", {}).get("content", {}).items()
        if media == "application/json"
        and schemas[content["schema"]["$ref"].rpartition("/")[2]].get("additionalProperties") is not False
    ]
    assert open_forms == []


FIGURES = {  # of the spec, with their labels; `tier` is the kind of process
    "llm_requests_total": "agent_id, model, tier", "llm_request_duration_seconds": "the same",
    "tool_calls_total": "agent_id, tool_name, process_type", "tool_call_duration_seconds": "the same",
    "memory_reads_total": "agent_id", "memory_writes_total": "agent_id", "active_workers": "agent_id",
    "memory_entry_count": "agent_id", "llm_tokens_total": "agent_id, direction",
    "llm_estimated_cost_dollars_total": "agent_id", "worker_cost_dollars_total": "agent_id",
    "active_branches": "agent_id", "branches_spawned_total": "agent_id",
    "worker_duration_seconds": "agent_id, worker_type, state",
    "process_errors_total": "agent_id, process_type, error_type", "context_overflow_total": "agent_id, tier",
    "memory_updates_total": "agent_id, operation", "memory_operation_duration_seconds": "agent_id, operation",
    "memory_search_results": "agent_id", "memory_embedding_duration_seconds": "agent_id",
    "mcp_connections": "agent_id, state", "mcp_tools_registered": "agent_id, server",
    "mcp_connection_attempts_total": "the same", "mcp_tool_calls_total": "the same",
    "mcp_reconnects_total": "the same", "messages_received_total": "adapter", "messages_sent_total": "adapter",
    "message_handling_duration_seconds": "agent_id", "channel_errors_total": "agent_id",
    "http_requests_total": "method, path, status", "http_request_duration_seconds": "the same",
    "cron_executions_total": "agent_id, result", "ingestion_files_processed_total": "agent_id, result",
}  # fmt: skip


@pytest.mark.spec("CA-13")
def test_the_figures_of_the_spec_are_served_with_bounded_labels() -> None:
    """The guide's table is what is served, see `test_the_guide_names_every_figure_and_its_configuration_loads`."""
    guide = (PACKAGE.parent / "docs/metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `spacebot_(\w+)` \| ([^|]*) \|", guide, re.MULTILINE))
    served = {name: labels.replace("`", "").strip() for name, labels in rows.items()}
    assert {name: served.get(name) for name in FIGURES} == FIGURES
    words = {word for labels in served.values() for word in re.split(r"\W+", labels)} - {"the", "same"}
    assert not words & {"user", "user_id", "channel_id", "conversation_id", "message", "url", "error", "session_id"}


@pytest.mark.spec("C-32")
@pytest.mark.filterwarnings(UNREAD)
async def test_disconnecting_takes_the_stored_credentials_that_nothing_else_names(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[messaging.slack]\nbot_token = "secret:SLACK_BOT"\napp_token = "secret:SHARED"\nenabled = false\n'
        '[messaging.telegram]\ntoken = "secret:TELEGRAM"\nenabled = false\n'
        '[llm]\ngroq_key = "secret:SHARED"\n'
    )
    store = SecretStore(tmp_path)
    for name in ("SLACK_BOT", "SHARED", "TELEGRAM", "OTHER"):
        store.set(name, f"value-of-{name}-1234567", Category.SYSTEM)
    async with open_server(tmp_path, secrets=LiveSecrets.open(tmp_path)) as served:
        done = await served.client.post("/api/messaging/disconnect", json={"platform": "slack"})
        assert (done.json()["success"], "SLACK_BOT from the secret store" in done.json()["message"]) == (True, True)
        assert "slack" not in file.read_text()
        assert [info.name for info in store.list()] == ["OTHER", "SHARED", "TELEGRAM"]
        unknown = await served.client.post("/api/messaging/disconnect", json={"platform": "slack"})
        assert not unknown.json()["success"]
        assert len(store.list()) == 3
