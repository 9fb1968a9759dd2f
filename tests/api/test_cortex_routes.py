"""The owner's console and the state of cortex and memory over HTTP, with a whole agent behind them."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from pydantic import SecretStr

from spacebot.api.control import control_commands, serve_control
from spacebot.api.cortex import agent_states
from spacebot.api.server import serve_api
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.ids import new_uuid
from spacebot.base.paths import InstancePaths, package_file
from spacebot.base.tree import NodeKind
from spacebot.cli.show import show_status
from spacebot.config.model import ApiConfig
from spacebot.config.store import ConfigStore
from spacebot.llm.messages import ProcessKind
from spacebot.memory.curation_log import CurationLog
from spacebot.memory.types import NewMemory, Provenance
from spacebot.storage.database import open_database
from spacebot.storage.live_secrets import LiveSecrets
from tests.api.serving import UNREAD, Event, Reader
from tests.api.test_ingestion_routes import Program
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, Opened, open_test_agent
from tests.fakes.scripted_model import Call, Gate, Say, ScriptedModel, by_task

pytestmark = pytest.mark.filterwarnings(UNREAD)
SEND, MESSAGES, THREADS, CANCEL = (f"/api/cortex-chat/{name}" for name in ("send", "messages", "threads", "cancel"))
OSLO = NewMemory(
    content="Nora wants to move to Oslo",
    provenance=Provenance(channel_id="test:nora", user_id="nora", is_direct=True),
)


class Owner:
    """Talks with the console over the wire."""

    def __init__(self, opened: Opened, client: httpx2.AsyncClient) -> None:
        self.opened = opened
        self.client = client

    @asynccontextmanager
    async def asking(self, message: str, **fields: Any) -> AsyncIterator[Reader]:
        async with self.client.stream("POST", SEND, json={"message": message, **fields}) as response:
            assert response.status_code == 200, await response.aread()
            yield Reader(response)

    async def ask(self, message: str, **fields: Any) -> list[Event]:
        """Ask and read to the end."""
        async with self.asking(message, **fields) as reader:
            events = []
            while (event := await reader.next()) is not None:
                events.append(event)
        return events

    async def get(self, path: str, **params: Any) -> Any:
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def said(self, thread: str) -> list[str]:
        return [row["content"] for row in (await self.get(MESSAGES, thread_id=thread))["messages"]]


@asynccontextmanager
async def open_owner(
    folder: Path, *steps: Any, token: str | None = None, card: str = "quiet", **settings: Any
) -> AsyncIterator[Owner]:
    """An agent whose console answers with these steps, one for each model call; `card` is what it says of itself."""
    about = json.dumps({"display_name": f"Ada {card}", "status": card, "bio": f"I keep notes. {card}"})
    stop = trio.Event()
    model = ScriptedModel(
        lambda request: Call("reply", content="hello"),
        cortex=by_task(cortex_chat=steps, profile=lambda request: Say(about)),
        branch=lambda request: Say("read"),
    )
    settings = {"routing": {"branch": "scripted/model"}, **settings}
    async with open_test_agent(folder, model, patience_s=90, **settings) as opened, trio.open_nursery() as nursery:
        (url,) = await nursery.start(
            partial(
                serve_api,
                Program(opened.agent),
                ApiConfig(port=0, auth_token=SecretStr(token) if token else None),
                events=opened.events,
                tree=opened.tree,
                run_id="run-1",
                stop=stop,
            )
        )
        async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
            yield Owner(opened, client)
        stop.set()


async def test_an_answer_comes_in_frames_and_stands_in_its_thread(tmp_path: Path) -> None:
    async with open_owner(tmp_path, Call("memory_recall", query="Oslo"), "Nora wants to.") as owner:
        await owner.opened.agent.memory.save(OSLO)
        events = await owner.ask("who wants to move?", agent_id="main")
        thread = events[0].data["thread_id"]
        stored = await owner.get(MESSAGES)
        listed = await owner.get(THREADS)

    assert list(dict.fromkeys(e.name for e in events)) == ["thinking", "tool_started", "tool_completed", "text", "done"]
    assert all(e.data["type"] == e.name and e.data["thread_id"] == thread for e in events)
    started, completed = events[1].data, events[2].data
    assert (started["tool"], started["arguments"]) == ("memory_recall", {"query": "Oslo"})
    assert (completed["tool"], completed["is_error"]) == ("memory_recall", False)
    assert "Nora wants to move to Oslo" in completed["result_preview"]
    texts = [e.data["text"] for e in events if e.name == "text"]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == events[-1].data["full_text"] == "Nora wants to."

    assert (stored["thread_id"], stored["answering"]) == (thread, None)
    question, answer = stored["messages"]
    assert (question["role"], question["content"]) == ("user", "who wants to move?")
    assert (answer["role"], answer["content"]) == ("assistant", "Nora wants to.")
    assert [call["tool"] for call in answer["tool_calls"]] == ["memory_recall"]
    assert [(t["id"], t["title"], t["messages"]) for t in listed["threads"]] == [(thread, "who wants to move?", 2)]


async def test_one_question_at_a_time_and_a_cancelled_one_says_so(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("never said"))
    async with open_owner(tmp_path, gate, "next") as owner:
        async with owner.asking("slow one") as reader:
            (thinking,) = await reader.until("thinking")
            thread = thinking.data["thread_id"]
            await gate.arrived.wait()
            refused = await owner.client.post(SEND, json={"message": "impatient"})
            kept = await owner.client.delete(THREADS, params={"thread_id": thread})
            meanwhile = await owner.get(MESSAGES, thread_id=thread)
            cancelled = (await owner.client.post(CANCEL, json={})).json()
            rest = await reader.until("error")
        again = (await owner.client.post(CANCEL, json={"agent_id": "main"})).json()
        events = await owner.ask("now", thread_id=thread)
        said = await owner.said(thread)

    assert (refused.status_code, "being answered already" in refused.json()["error"]) == (409, True)
    assert kept.status_code == 409
    assert (meanwhile["answering"], [m["content"] for m in meanwhile["messages"]]) == (thread, ["slow one"])
    assert (cancelled, again) == ({"success": True}, {"success": False})
    assert "cancelled" in rest[-1].data["message"]
    assert events[-1].data["full_text"] == "next"
    assert said[0] == "slow one"
    assert said[1].startswith("(cancelled: ")
    assert said[2:] == ["now", "next"]


async def test_an_answer_outlives_the_browser_that_asked(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("for whoever comes back"))
    async with open_owner(tmp_path, gate) as owner:
        async with owner.asking("take your time") as reader:
            (thinking,) = await reader.until("thinking")
        thread = thinking.data["thread_id"]
        await gate.arrived.wait()
        assert (await owner.get(MESSAGES, thread_id=thread))["answering"] == thread
        gate.event.set()
        while (page := await owner.get(MESSAGES, thread_id=thread))["answering"] is not None:
            await owner.opened.settled()
    assert [m["content"] for m in page["messages"]] == ["take your time", "for whoever comes back"]


async def test_a_conversation_is_looked_at_and_its_thread_can_be_deleted(tmp_path: Path) -> None:
    async with open_owner(tmp_path, "it rains", "elsewhere") as owner:
        await owner.opened.say("Ann", "it rains in Bergen")
        await owner.opened.ended(1)
        first = (await owner.ask("weather?", channel_id=DIRECT))[0].data["thread_id"]
        second = (await owner.ask("and now?"))[0].data["thread_id"]
        (question, _) = (await owner.get(MESSAGES, thread_id=first))["messages"]
        gone = await owner.client.delete(THREADS, params={"thread_id": first})
        twice = await owner.client.delete(THREADS, params={"thread_id": first})
        listed = await owner.get(THREADS)
        latest = await owner.get(MESSAGES)
        empty = await owner.said(first)

    looked, other = owner.opened.model.requests_of(ProcessKind.CORTEX)
    assert "it rains in Bergen" in looked.system[0].text
    assert "it rains in Bergen" not in other.system[0].text
    assert question["channel_context"] == DIRECT
    assert (gone.status_code, gone.json()) == (200, {"success": True})
    assert (twice.status_code, empty) == (404, [])
    assert [t["id"] for t in listed["threads"]] == [second] == [latest["thread_id"]]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, 422),
        ({"message": 5}, 422),
        ({"message": ["x"]}, 422),
        ({"message": "x", "thread": "y"}, 422),
        ({"message": "x", "thread_id": 7}, 422),
        ({"message": "x", "agent_id": None, "thread_id": "no uuid"}, 400),
        ({"message": "  "}, 400),
        ({"message": "x" * 100_001}, 400),
        ({"message": "x", "agent_id": "nobody"}, 404),
        ([], 400),
    ],
)
async def test_wrong_questions_are_refused_and_leave_nothing_behind(tmp_path: Path, body: Any, code: int) -> None:
    async with open_owner(tmp_path, "fine") as owner:
        answer = await owner.client.post(SEND, json=body)
        assert (answer.status_code, list(answer.json())) == (code, ["error"])
        assert (await owner.get(THREADS))["threads"] == []
        assert (await owner.ask("after it"))[-1].name == "done"


async def test_unknown_agents_missing_names_and_missing_tokens_are_refused(tmp_path: Path) -> None:
    bearer = {"authorization": "Bearer open"}
    async with open_owner(tmp_path, token="open") as owner:
        for method, path, code in (
            ("GET", f"{MESSAGES}?agent_id=nobody", 404),
            ("GET", f"{THREADS}?agent_id=nobody", 404),
            ("GET", "/api/cortex/state?agent_id=nobody", 404),
            ("DELETE", f"{THREADS}?agent_id=nobody&thread_id=x", 404),
            ("DELETE", THREADS, 400),
            ("DELETE", f"{THREADS}?thread_id={new_uuid()}", 404),
            ("GET", f"{MESSAGES}?limit=many", 400),
        ):
            assert (await owner.client.request(method, path)).status_code == 401, path
            answer = await owner.client.request(method, path, headers=bearer)
            assert (answer.status_code, list(answer.json())) == (code, ["error"]), path
        assert (await owner.client.post(SEND, json={"message": "hello"})).status_code == 401
        wrong = await owner.client.post(CANCEL, json={"agent_id": 5}, headers=bearer)
        assert wrong.status_code == 422


async def test_the_state_tells_of_bulletin_card_duties_memory_and_documents(tmp_path: Path) -> None:
    async with open_owner(tmp_path, ingestion={"enabled": False}) as owner:
        fresh = await owner.get("/api/cortex/state")
        await owner.opened.agent.memory.save(OSLO)
        state = await owner.get("/api/cortex/state", agent_id="main")
        program = await agent_states(Program(owner.opened.agent))

    assert fresh["bulletin"] == {"generated_at": None, "words": 0, "is_shown": False, "text": ""}
    assert (fresh["profile"], fresh["agent_id"], fresh["memory"]["total"]) == (None, "main", 0)
    assert set(fresh["duties"]) >= {"bulletin", "profile", "maintenance", "association"}
    assert all(not duty["is_paused"] and duty["failures"] == 0 for duty in fresh["duties"].values())
    assert (fresh["ingestion"]["status"], fresh["ingestion"]["quarantined"]) == ("disabled", 0)
    assert (state["memory"]["total"], state["memory"]["private"]) == (1, 1)
    assert program["main"]["memory"] == state["memory"]
    assert "Oslo" not in str(program)


async def test_a_store_that_fails_is_a_problem_of_its_agent_not_of_the_question(tmp_path: Path, logs: Logs) -> None:
    async with open_owner(tmp_path, ingestion={"enabled": False}) as owner:
        with closing(sqlite3.connect(owner.opened.database())) as other:
            other.execute("ALTER TABLE ingestion_files RENAME TO lost")
        states = await agent_states(Program(owner.opened.agent))
        answer = await owner.client.get("/api/cortex/state")
    assert list(states["main"]) == ["problem"]
    assert "ingestion_files" in states["main"]["problem"]
    assert answer.status_code == 503
    logs.expect("request failed")


async def test_status_on_the_command_line_says_what_there_is_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "agents" / "main" / "data"
    data.mkdir(parents=True)
    async with open_database(data / "spacebot.db", package_file("storage", "sql"), Clock()) as database:
        fields = {"bulletin_text": "All is well.", "memory_ids": [], "gathered_at": "2026-03-01T08:30:00.000Z"}
        await CurationLog(database, Clock()).add("bulletin_generated", "bulletin of 3 words", **fields)
    paths = InstancePaths(tmp_path, tmp_path / "config.toml")
    async with open_owner(tmp_path, routing={"branch": "demo/demo"}) as owner, trio.open_nursery() as nursery:
        commands = control_commands(
            Program(owner.opened.agent),
            tree=owner.opened.tree,
            events=owner.opened.events,
            store=ConfigStore.open(paths.config),
            secrets=LiveSecrets.open(tmp_path),
            run_id="run-1",
            started_at=monotonic_s(),
            urls=(),
        )
        await nursery.start(serve_control, paths.socket, commands)
        await trio.to_thread.run_sync(partial(show_status, paths, as_json=False))
        before = capsys.readouterr().out
        await owner.opened.agent.memory.save(OSLO)
        files = [("files", ("notes.md", b"Ann likes tea"))]
        assert (await owner.client.post("/api/agents/ingest/upload", files=files)).status_code == 200
        while (await owner.get("/api/cortex/state"))["ingestion"]["status"] != "paused":
            await owner.opened.settled()
        assert await trio.to_thread.run_sync(partial(show_status, paths, as_json=False)) == 0
        after = capsys.readouterr()
        await trio.to_thread.run_sync(partial(show_status, paths, as_json=True))
        whole = json.loads(capsys.readouterr().out)["agent_states"]["main"]
        nursery.cancel_scope.cancel()

    assert "memory:    bulletin of 2026-03-01 08:30 UTC\n" in before
    assert "documents:" not in before
    assert "memory:    1 memory, search exact; bulletin of 2026-03-01 08:30 UTC\n" in after.out
    assert "documents: paused: the demo model cannot read documents" in after.out
    assert after.err == ""
    assert (whole["ingestion"]["waiting"], whole["memory"]["total"], whole["bulletin"]["words"]) == (1, 1, 3)


async def test_the_log_is_filtered_by_several_kinds(tmp_path: Path) -> None:
    async with open_owner(tmp_path) as owner:
        memory = owner.opened.agent.memory
        saved = await memory.save(NewMemory(content="Ann likes tea"))
        await memory.edit(saved.memory.id, content="Ann likes milk")
        await memory.forget(saved.memory.id, "a mistake")
        await memory.unforget(saved.memory.id)
        both = await owner.get("/api/cortex/events", event_type="memory_edited,memory_restored", limit=1)
        rest = await owner.get("/api/cortex/events", event_type="memory_edited,memory_restored", limit=1, offset=1)
        none = await owner.get("/api/cortex/events", event_type="process_killed")
    assert ([e["event_type"] for e in both["events"]], both["total"]) == (["memory_restored"], 2)
    assert [e["event_type"] for e in rest["events"]] == ["memory_edited"]
    assert none == {"events": [], "total": 0}


async def test_the_tree_shows_the_question_while_it_is_answered(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("done"))
    async with open_owner(tmp_path, gate) as owner, owner.asking("what now?") as reader:
        await gate.arrived.wait()
        live = [node.description for node in owner.opened.tree.of_kind(NodeKind.CORTEX)]
        gate.event.set()
        await reader.until("done")
        after = [node.description for node in owner.opened.tree.of_kind(NodeKind.CORTEX)]
    assert "chat: what now?" in live
    assert "chat: what now?" not in after
