"""MCP servers over HTTP: added, changed, removed, connected anew; the file stays the owner's and no secret gets out."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio

from spacebot.agent.agent import Agent
from spacebot.api.mcp import HIDDEN, answer_mcp
from spacebot.api.metrics import gather, to_text
from spacebot.api.server import serve_api
from spacebot.api.tally import HttpFigures
from spacebot.base.errors import NotFoundError, RefusedError, SpacebotError
from spacebot.base.ids import AgentId
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import load_config
from spacebot.config.model import ApiConfig, Config
from spacebot.config.store import ReloadReport
from tests.api.serving import UNREAD
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import ScriptedModel

pytestmark = pytest.mark.filterwarnings(UNREAD)
PROGRAM = str(Path(__file__).parents[1] / "stand_ins" / "mcp_misbehaving.py")
LOCAL = {"transport": "stdio", "command": sys.executable, "args": ["-S", PROGRAM]}
FILE = """\
# what I use
[[mcp_servers]]
name = "notes"  # do not touch
transport = "http"
url = "http://127.0.0.1:1/mcp?key=abc123456789"
headers = { Authorization = "Bearer ${NOTES_TOKEN}", "X-Api-Key" = "k3y-of-mine-0001" }

[[agents]]
id = "main"
"""


@dataclass
class Program:
    """One agent whose configuration is the file's."""

    opened: Opened
    file: Path

    def __post_init__(self) -> None:
        self.editor = ConfigEditor(self.file)
        self.default_agent_id = AgentId("main")
        self.messaging = SimpleNamespace(states=list)
        self.http = HttpFigures()
        self.config = Config()
        self.read()

    @property
    def agents(self) -> dict[AgentId, Agent]:
        return {self.default_agent_id: self.opened.agent}

    def why_absent(self, agent_id: str) -> SpacebotError:
        return NotFoundError(f"there is no agent {agent_id!r}")

    async def reload_config(self) -> ReloadReport:
        self.read()
        return ReloadReport(changed=True)

    def read(self) -> None:
        (agent,) = load_config(self.file, environ={}).config.agents
        self.opened.config[0] = self.opened.config[0].model_copy(update={"mcp": agent.mcp})
        self.opened.agent.mcp.reconcile()


@asynccontextmanager
async def serving(folder: Path, text: str = FILE) -> AsyncIterator[tuple[Program, httpx2.AsyncClient]]:
    stop = trio.Event()
    async with open_test_agent(folder, ScriptedModel()) as opened, trio.open_nursery() as nursery:
        (folder / "config.toml").write_text(text)
        program: Any = Program(opened, folder / "config.toml")
        serve = partial(
            serve_api, program, ApiConfig(port=0), events=opened.events, tree=opened.tree, run_id="r", stop=stop
        )
        (url,) = await nursery.start(serve)
        async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
            yield program, client
        stop.set()


async def until(client: httpx2.AsyncClient, name: str, state: str) -> dict[str, Any]:
    """Wait for another process; returns the server as the agent has it."""
    while True:
        servers: list[dict[str, Any]] = (await client.get("/api/agents/mcp")).json()["servers"]
        found = next((server for server in servers if server["name"] == name), {})
        if found.get("state") == state:
            return found
        await trio.sleep(0.01)


@pytest.mark.spec("C-9", "C-10")
async def test_added_used_changed_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as (program, client):
        added = await client.post("/api/mcp/servers", json={"name": "one", **LOCAL, "env": {"A_TOKEN": "t0ken-0001"}})
        assert (added.status_code, added.json()) == (200, {"success": True, "message": "added"})
        found = await until(client, "one", "connected")
        assert {"name": "one_echo", "remote_name": "echo", "about": "Does echo."} in found["tools"]
        again = await client.post("/api/mcp/servers", json={"name": "one", **LOCAL})
        assert (again.status_code, again.json()["success"]) == (400, False)
        assert "already" in again.json()["message"]
        (status,) = (await client.get("/api/mcp/status")).json()
        assert (status["agent_id"], [server["name"] for server in status["servers"]]) == ("main", ["notes", "one"])
        changed = await client.put("/api/mcp/servers", json={"name": "one", "enabled": False})
        assert changed.json()["success"]
        await until(client, "one", "disconnected")
        assert "t0ken-0001" in program.file.read_text()  # it was not sent again, and stays
        refused = await client.post("/api/mcp/servers/one/reconnect")
        assert (refused.status_code, "switched off" in refused.text) == (400, True)
        assert (await client.delete("/api/mcp/servers/one")).json()["success"]
        assert program.file.read_text() == FILE
        gone = await client.delete("/api/mcp/servers/one")
        assert gone.status_code == 404
        assert (await client.post("/api/agents/mcp/reconnect", json={"server_name": "one"})).status_code == 404


@pytest.mark.spec("C-10")
async def test_no_credential_gets_out_and_a_mask_that_comes_back_is_no_value(tmp_path: Path) -> None:
    async with serving(tmp_path) as (program, client):
        (shown,) = (await client.get("/api/mcp/servers")).json()
        assert shown["headers"] == {"Authorization": "Bearer ${NOTES_TOKEN}", "X-Api-Key": HIDDEN}
        assert shown["url"] == f"http://127.0.0.1:1/mcp?key={HIDDEN}"
        sent = {key: shown[key] for key in ("name", "transport", "url", "headers", "args")}
        sent["headers"] |= {"X-Room": "one", "Authorization": None}
        assert (await client.put("/api/mcp/servers", json=sent)).json() == {"success": True, "message": "changed"}
        text = program.file.read_text()
        assert 'url = "http://127.0.0.1:1/mcp?key=abc123456789"' in text
        assert '"X-Api-Key" = "k3y-of-mine-0001"' in text or 'X-Api-Key = "k3y-of-mine-0001"' in text
        assert "X-Room" in text
        assert "Authorization" not in text
        assert text.startswith('# what I use\n[[mcp_servers]]\nname = "notes"  # do not touch\n')
        half = await client.put("/api/mcp/servers", json={"name": "notes", "url": f"http://other.example/{HIDDEN}"})
        assert (half.status_code, "masked value" in half.text) == (400, True)


WRONG: tuple[tuple[str, dict[str, Any], int, str], ...] = (
    ("POST", {"name": "", **LOCAL}, 400, "name"),
    ("POST", {"name": "x", "transport": "stdio"}, 400, "needs a command"),
    ("POST", {"name": "x", "transport": "http", "url": "ftp://x"}, 400, "http or https URL"),
    ("POST", {"name": "x", **LOCAL, "colour": 1}, 422, "colour"),
    ("POST", {"name": "x", **LOCAL, "env": {"SECRET": 7}}, 422, "env"),
    ("POST", {"name": "x", **LOCAL, "env": {"A_TOKEN": HIDDEN}}, 400, "masked value of nothing"),
    ("PUT", {"name": "nobody"}, 404, "no MCP server"),
)


async def test_what_is_wrong_is_said_and_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (program, client):
        for method, body, code, why in WRONG:
            refused = await client.request(method, "/api/mcp/servers", json=body)
            assert (refused.status_code, why in refused.text) == (code, True), (body, refused.text)
            assert program.file.read_text() == FILE


BY_HAND = """\
[[defaults.mcp]]
name = "files"   # mine
transport = "stdio"
command = "npx"

[defaults.mcp.env]
A_TOKEN = "${A}"  # why

# people
[[agents]]
id = "main"
"""


def test_a_server_laid_out_by_hand_is_changed_all_the_same(tmp_path: Path) -> None:
    """Where the new value has a place in the layout, all else stays; where it has none, the entry is written anew."""
    file = tmp_path / "config.toml"
    file.write_text(BY_HAND)
    editor = ConfigEditor(file)
    (server,) = editor.mcp_servers()
    editor.replace_mcp_server({**server, "enabled": False})
    assert file.read_text() == BY_HAND.replace('"npx"\n', '"npx"\nenabled = false\n')
    editor.replace_mcp_server({**server, "env": {"B_TOKEN": "${B}"}})
    assert editor.mcp_servers() == [{**server, "env": {"B_TOKEN": "${B}"}}]
    assert '# people\n[[agents]]\nid = "main"\n' in file.read_text()
    with pytest.raises(RefusedError, match="already"):
        editor.add_mcp_server(server)
    editor.remove_mcp_server("files")
    assert editor.mcp_servers() == []
    with pytest.raises(NotFoundError, match=r"\[\[agents.mcp\]\] is changed by hand"):
        editor.remove_mcp_server("files")


async def test_the_control_command_and_the_figures(tmp_path: Path) -> None:
    async with serving(tmp_path) as (program, client):
        said: list[dict[str, Any]] = []

        async def send(result: str, **fields: Any) -> None:
            said.append(fields)

        await until(client, "notes", "failed")
        text = to_text(await gather(program, program.opened.tree))  # type: ignore[arg-type]
        assert 'spacebot_mcp_connections{agent_id="main",state="failed"} 1\n' in text
        assert 'spacebot_mcp_connection_attempts_total{agent_id="main",server="notes"} 1\n' in text
        await answer_mcp(program, {}, send)  # type: ignore[arg-type]
        assert said[0]["agents"][0]["servers"][0]["state"] == "failed"
        await answer_mcp(program, {"do": "reconnect", "name": "notes"}, send)  # type: ignore[arg-type]
        assert said[1]["message"] == "notes is being connected for main"
        with pytest.raises(NotFoundError, match="has no MCP server 'x'"):
            await answer_mcp(program, {"do": "reconnect", "name": "x"}, send)  # type: ignore[arg-type]
        with pytest.raises(RefusedError, match="'do' must be"):
            await answer_mcp(program, {"do": "dance"}, send)  # type: ignore[arg-type]
        await until(client, "notes", "failed")
