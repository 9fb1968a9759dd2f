"""Making, deleting, pausing and looking at agents over HTTP, with real agents behind it."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio

from spacebot.api.agents import answer_agent
from spacebot.api.server import serve_api
from spacebot.app import RunningProgram
from spacebot.cli.main import main
from spacebot.config.model import ApiConfig
from tests.agent.test_roster import Town, named, open_town, said, talker
from tests.api.serving import UNREAD
from tests.fakes.opened import text_from
from tests.fakes.scripted_model import Call, ScriptedModel

FILE = """\
# mine
[api]
port = 0  # chosen by the system

[[agents]]
id = "main"  # the first
"""
BOUND = """
[messaging.telegram]
token = "1:a"

[[bindings]]
agent_id = "bob"
channel = "telegram"
chat_id = "7"
"""


class Owner:
    """Somebody who looks after the agents of a running program."""

    def __init__(self, town: Town, program: RunningProgram, client: httpx2.AsyncClient) -> None:
        self.town = town
        self.program = program
        self.client = client

    @property
    def text(self) -> str:
        return (self.town.folder / "config.toml").read_text()

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, **sent: Any) -> tuple[int, str]:
        answer = await self.client.request(method, path, **sent)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["error"]

    async def states(self) -> dict[str, str]:
        return {agent["id"]: agent["state"] for agent in (await self.get("/api/agents"))["agents"]}


@asynccontextmanager
async def open_owner(folder: Path, text: str = FILE, **models: Any) -> AsyncIterator[Owner]:
    models = {"main": talker("main"), "bob": talker("bob")} | models
    async with open_town(folder, text, **models) as town, trio.open_nursery() as nursery:
        parts: dict[str, Any] = {
            part.name: SimpleNamespace()
            for part in fields(RunningProgram)
            if part.default is MISSING and part.default_factory is MISSING
        }
        parts |= {"store": town.store, "events": town.events, "roster": town.roster, "editor": town.editor}
        program, stop = RunningProgram(**parts), trio.Event()
        serve = partial(
            serve_api, program, ApiConfig(port=0), events=town.events, tree=town.tree, run_id="run", stop=stop
        )
        (url,) = await nursery.start(serve)
        async with httpx2.AsyncClient(base_url=url, timeout=20.0) as client:
            yield Owner(town, program, client)
        stop.set()


async def test_an_agent_is_made_and_deleted_live_and_the_file_keeps_its_looks(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        answer = await owner.client.post("/api/agents", json={"agent_id": "bob"})
        assert answer.json() == {"success": True, "agent_id": "bob", "message": "agent bob is running"}
        assert owner.text.startswith(FILE)
        assert '[[agents]]\nid = "bob"' in owner.text
        assert await owner.states() == {"main": "running", "bob": "running"}
        assert said(await owner.town.answer("bob", "hello"))
        answer = await owner.client.delete("/api/agents", params={"agent_id": "bob"})
        assert answer.json()["success"] is True
        assert owner.text.strip() == FILE.strip()
        assert await owner.states() == {"main": "running"}
        assert owner.town.nodes_of("bob") == []
        assert (tmp_path / "agents" / "bob" / "SOUL.md").exists(), "its files stay"
        assert await owner.refused("GET", "/api/webchat/history", params={"agent_id": "bob", "session_id": "s"}) == (
            404,
            "there is no agent 'bob'; there are: main",
        )


async def test_a_file_without_agents_keeps_the_one_that_it_had(tmp_path: Path) -> None:
    async with open_owner(tmp_path, "") as owner:
        assert (await owner.client.post("/api/agents", json={"agent_id": "bob"})).status_code == 200
        assert await owner.states() == {"main": "running", "bob": "running"}
        assert owner.program.default_agent_id == "main"


async def test_ids_that_cannot_be_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        for agent_id in ("main", "", "  ", "../up", "Bob", "b" * 65):
            status, error = await owner.refused("POST", "/api/agents", json={"agent_id": agent_id})
            assert status == 400, agent_id
            why = "there is an agent 'main' already" if agent_id == "main" else "is not allowed"
            assert why in error, agent_id
        assert owner.text == FILE


async def test_a_hosted_program_has_its_number_of_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACEBOT_MAX_AGENTS", "1")
    async with open_owner(tmp_path) as owner:
        monkeypatch.setenv("SPACEBOT_DEPLOYMENT", "hosted")
        status, error = await owner.refused("POST", "/api/agents", json={"agent_id": "bob"})
        assert (status, "at most 1 agents" in error) == (400, True)
        monkeypatch.delenv("SPACEBOT_DEPLOYMENT")
        assert (await owner.client.post("/api/agents", json={"agent_id": "bob"})).status_code == 200


async def test_an_agent_that_cannot_run_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")
    async with open_owner(tmp_path) as owner:
        body = {"agent_id": "bob", "workspace": str(tmp_path / "a-file" / "below")}
        status, error = await owner.refused("POST", "/api/agents", json=body)
        assert status == 409
        assert "a-file" in error
        assert owner.text.strip() == FILE.strip()
        assert await owner.states() == {"main": "running"}


@pytest.mark.spec("C-16")
async def test_the_default_agent_stays_and_bindings_never_leave_a_door_open(tmp_path: Path) -> None:
    async with open_owner(tmp_path, FILE + named("bob") + BOUND) as owner:
        status, error = await owner.refused("DELETE", "/api/agents", params={"agent_id": "main"})
        assert status == 400
        assert "set default = true for another" in error
        assert (await owner.refused("DELETE", "/api/agents", params={"agent_id": "nobody"}))[0] == 404
        status, error = await owner.refused("DELETE", "/api/agents", params={"agent_id": "bob"})
        assert (status, "open to everybody" in error) == (400, True), "its one binding kept all other rooms out"
        status, error = await owner.refused("DELETE", "/api/agents", params={"agent_id": "bob", "give_to": "nobody"})
        assert (status, "there is no such agent" in error) == (400, True)
        answer = await owner.client.delete("/api/agents", params={"agent_id": "bob", "give_to": "main"})
        assert answer.json()["message"] == "agent bob is deleted, its files stay; 1 binding now lead to main"
        (binding,) = owner.program.config.bindings
        assert (binding.agent_id, binding.chat_id) == ("main", "7")


async def test_bindings_go_with_their_agent_when_others_still_narrow_the_account(tmp_path: Path) -> None:
    other = '\n[[bindings]]\nagent_id = "main"\nchannel = "telegram"\nchat_id = "8"\n'
    async with open_owner(tmp_path, FILE + named("bob") + BOUND + other) as owner:
        answer = await owner.client.delete("/api/agents", params={"agent_id": "bob"})
        assert answer.json()["message"] == "agent bob is deleted, its files stay; 1 binding went with it"
        assert [binding.chat_id for binding in owner.program.config.bindings] == ["8"]
        assert '[[bindings]]\nagent_id = "main"' in owner.text


async def test_pausing_over_http(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        answer = await owner.client.post("/api/agents/pause", json={"agent_id": "main", "paused": True})
        assert answer.json()["paused"] is True
        assert await owner.states() == {"main": "paused"}
        accepted = await owner.town.agent("main").accept(text_from("Ann", "hello"))
        await owner.town.quiet()
        assert owner.town.models["main"].requests == []
        await owner.client.post("/api/agents/pause", json={"agent_id": "main", "paused": False})
        assert said(await owner.town.fate("main", accepted.message_id))
        assert (await owner.refused("POST", "/api/agents/pause", json={"agent_id": "x", "paused": True}))[0] == 404


async def test_who_waits_for_a_paused_agent_is_told_so(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        await owner.client.post("/api/agents/pause", json={"agent_id": "main", "paused": True})
        body = {"agent_id": "main", "session_id": "s", "message": "hello", "sender_name": "Ann"}
        with trio.fail_after(10):
            answer = await owner.client.post("/api/webchat/send", json=body)
        assert "the agent is paused" in answer.text
        assert answer.text.rstrip().endswith('data: "Done"')


async def test_the_overview_shows_life_and_failure_side_by_side(tmp_path: Path) -> None:
    data = tmp_path / "agents" / "bob" / "data"
    data.mkdir(parents=True)
    (data / "spacebot.db").write_bytes(b"this is no database" * 100)
    async with open_owner(tmp_path, FILE + named("bob")) as owner:
        await owner.town.answer("main", "hello")
        seen = await owner.get("/api/overview")
        assert seen["default_agent_id"] == "main"
        assert seen["pid"] == os.getpid()
        main_agent, bob = seen["agents"]
        assert main_agent["activity_sparkline"] == [0] * 13 + [2]
        assert main_agent["channel_count"] == 1
        assert main_agent["memory_total"] == 0
        assert main_agent["cron_job_count"] == 0
        assert main_agent["last_activity_at"]
        assert main_agent["profile"] is None
        assert main_agent["live"]["channels"] == 1
        assert (bob["state"], bob["model"]) == ("failed", None)
        assert "not a database" in bob["reason"]
        status = await owner.get("/api/agents")
        assert [agent["id"] for agent in status["agents"]] == ["main", "bob"]
        assert status["agents"][0]["max_turns"] == 5
        code, error = await owner.refused("GET", "/api/agents/overview", params={"agent_id": "bob"})
        assert (code, "not a database" in error) == (409, True)


async def test_one_agent_in_numbers(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        await owner.town.answer("main", "hello")
        seen = await owner.get("/api/agents/overview", agent_id="main")
        assert seen["memory_counts"]["fact"] == 0
        assert len(seen["memory_daily"]) == len(seen["activity_daily"]) == 30
        assert seen["activity_daily"][-1]["messages"] == 2
        assert [cell["count"] for cell in seen["activity_heatmap"]] == [2]
        assert seen["cron_jobs"] == []
        assert seen["latest_bulletin"] == ""
        shifted = await owner.get("/api/agents/overview", utc_offset=840)
        (cell,), (other,) = seen["activity_heatmap"], shifted["activity_heatmap"]
        hours = (other["day"] - cell["day"]) * 24 + other["hour"] - cell["hour"]
        assert hours % 168 == 14
        assert (await owner.refused("GET", "/api/overview", params={"utc_offset": "soon"}))[0] == 400
        assert await owner.get("/api/agents/profile", agent_id="main") == {"profile": None}


@pytest.mark.spec("C-73")
@pytest.mark.filterwarnings(UNREAD)
async def test_the_same_session_of_two_agents_is_two_conversations_on_every_page(tmp_path: Path) -> None:
    digging = ScriptedModel(
        Call("spawn_worker", task="dig for xyzzy"),
        Call("reply", content="it digs"),
        lambda request: Call("skip", reason="told"),
        worker=[Call("set_status", status="dug", kind="outcome")],
    )
    async with open_owner(tmp_path, FILE + named("bob"), main=digging) as owner:
        heard: list[str] = []
        async with owner.client.stream("GET", "/api/events", params={"agent_id": "bob"}) as events:
            for agent_id, words in (("main", "my word is xyzzy"), ("bob", "hello")):
                body = {"agent_id": agent_id, "session_id": "s", "message": words, "sender_name": "Ann"}
                sent = (await owner.client.post("/api/webchat/send?wait=false", json=body)).json()
                await owner.town.fate(agent_id, sent["message_id"])
            async with aclosing(events.aiter_lines()) as lines:
                async for line in lines:
                    heard.append(line)
                    if "I am" in line or '"bob: ' in line:
                        break
        assert "bob" in str(heard)
        assert "xyzzy" not in str(heard)
        shown = await owner.get("/api/webchat/history", agent_id="bob", session_id="s")
        assert "xyzzy" not in str(shown)
        (worker,) = (await owner.get("/api/agents/workers", agent_id="main"))["workers"]
        assert (await owner.get("/api/agents/workers", agent_id="bob"))["workers"] == []
        assert (await owner.refused("GET", f"/api/agents/workers/{worker['id']}", params={"agent_id": "bob"}))[0] == 404
        assert "xyzzy" not in str(owner.town.models["bob"].requests)


async def test_identity_is_read_and_written_and_counts_at_once(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        before = await owner.get("/api/agents/identity")
        assert set(before) == {"soul", "identity", "user"}
        answer = await owner.client.put("/api/agents/identity", json={"soul": "You speak like a pirate."})
        assert answer.json() == {**before, "soul": "You speak like a pirate."}
        await owner.town.answer("main", "hello")
        assert "like a pirate" in str(owner.town.models["main"].requests[-1].system)
        status, error = await owner.refused("PUT", "/api/agents/identity", json={"soul": "x" * 300_000})
        assert (status, "shorten it" in error) == (400, True)
        assert (await owner.refused("PUT", "/api/agents/identity", json={"agent_id": "x", "user": ""}))[0] == 404
        assert (await owner.get("/api/agents/identity"))["soul"] == "You speak like a pirate."


async def test_the_command_line_s_words_take_the_same_way(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        answers: list[dict[str, Any]] = []

        async def send(kind: str, **answer: Any) -> None:
            answers.append(answer)

        for request in (
            {"do": "create", "id": "bob"},
            {"do": "pause", "id": "bob"},
            {"do": "list"},
            {"do": "resume", "id": "bob"},
            {"do": "delete", "id": "bob"},
        ):
            await answer_agent(owner.program, request, send)
        assert [agent["state"] for agent in answers[2]["agents"]] == ["running", "paused"]
        assert owner.text.strip() == FILE.strip()


def test_without_the_program_the_file_alone_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPACEBOT_DIR", raising=False)
    file = tmp_path / "config.toml"
    file.write_text(FILE)

    def spacebot(*words: str) -> int:
        return main(["--config", str(file), "agent", *words])

    assert spacebot("create", "bob") == 0
    assert spacebot("list", "--json") == 0
    said_words = capsys.readouterr()
    listed = json.loads(said_words.out)
    assert [(agent["id"], agent["state"]) for agent in listed["agents"]] == [("main", "stopped"), ("bob", "stopped")]
    assert "runs from the next start on" in said_words.err
    assert spacebot("create", "bob") == 1
    assert spacebot("pause", "bob") == 1
    assert "is not running" in capsys.readouterr().err
    assert spacebot("delete", "main") == 1
    assert spacebot("delete", "bob") == 0
    assert file.read_text().strip() == FILE.strip()
