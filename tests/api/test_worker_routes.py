"""Workers for their owner: the routes, what one hears of a worker at work, and the page in a real browser."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from spacebot.api.server import serve_api
from spacebot.api.workers import BUFFER
from spacebot.base.events import EventKind
from spacebot.base.ids import new_uuid
from spacebot.base.tree import NodeKind
from spacebot.config.model import ApiConfig
from spacebot.llm.messages import ModelRequest, last_user_text
from tests.api.serving import UNREAD, Event, Reader
from tests.api.test_cortex_page import Page
from tests.api.test_cortex_routes import Owner, Program
from tests.api.test_page import CHAT, drive, open_browser
from tests.api.test_schedules_page import in_browser
from tests.fakes.opened import DIRECT, ROOM, Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, ScriptedModel

pytestmark = pytest.mark.filterwarnings(UNREAD)
ROUTE = "/api/agents/workers"
# Says something, and goes on once the file `go` lies in the workspace.
COMMAND = "echo first line; until [ -e go ]; do sleep 0.05; done; echo last line"
HAS_SLID_IN = "return document.getElementById('work').getBoundingClientRect().right <= innerWidth"
EVIL = "<img src=x onerror=\"document.title='owned'\">"


def spawn(task: str, **fields: Any) -> Calls:
    return Calls(Call("spawn_worker", task=task, **fields), Call("reply", content="on it"))


def outcome(text: str, **fields: Any) -> Call:
    return Call("set_status", kind="outcome", status=text, **fields)


@asynccontextmanager
async def open_workers(folder: Path, model: ScriptedModel) -> AsyncIterator[Owner]:
    stop = trio.Event()
    async with open_test_agent(folder, model, patience_s=90) as opened, trio.open_nursery() as nursery:
        serve = partial(
            serve_api, Program(opened.agent), ApiConfig(port=0), events=opened.events, tree=opened.tree, run_id="r",
            stop=stop,
        )  # fmt: skip
        (url,) = await nursery.start(serve)
        async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
            yield Owner(opened, client)
        stop.set()


def scripted(*channel: Any, worker: Any) -> ScriptedModel:
    """Each `please` of a person takes the next step; what comes back from workers is only passed on."""
    steps = iter(channel)

    def answer(request: ModelRequest) -> Any:
        return next(steps) if "please" in last_user_text(request.messages) else Call("reply", content="told")

    return ScriptedModel(answer, worker=worker)


async def worker_done(opened: Opened, count: int = 1) -> None:
    await opened.events_of(EventKind.WORKER_COMPLETED, count)


def go(opened: Opened) -> None:
    (opened.folder / "agents" / "main" / "workspace" / "go").touch()


async def test_workers_are_listed_live_first_then_page_by_page(tmp_path: Path) -> None:
    tasks = [f"task {number}" for number in range(4)]
    model = scripted(
        *[spawn(task, task_type="Code") for task in tasks[:3]], spawn("task 3", interactive=True),
        worker=lambda request: outcome(f"done: {request.messages[0].text}"),
    )  # fmt: skip
    async with open_workers(tmp_path, model) as owner:
        for number in range(4):
            await owner.opened.say("Ann", f"please {number}", conversation=ROOM if number % 2 else DIRECT)
            if number < 3:
                await worker_done(owner.opened, number + 1)
        await owner.opened.events_of(EventKind.WORKER_IDLE, 1)
        first = await owner.get(ROUTE, limit=2)
        second = await owner.get(ROUTE, limit=2, before=first["before"])
        live = await owner.get(ROUTE, state="live")
        failed = await owner.get(ROUTE, state="failed")
        refused = await owner.client.get(f"{ROUTE}?state=odd")

    assert [worker["task"] for worker in first["workers"]] == ["task 3", "task 2", "task 1"]
    assert [worker["task"] for worker in second["workers"]] == ["task 0"]
    assert (first["has_more"], second["has_more"], second["before"]) == (True, False, None)
    waiting, newest, before = first["workers"]
    assert (waiting["state"], waiting["is_live"], waiting["completed_at"]) == ("waiting", True, None)
    assert (newest["state"], newest["result"], newest["task_type"]) == ("done", "done: task 2", "coding")
    assert (newest["is_private"], before["is_private"]) == (True, False)
    assert (newest["tool_calls"], newest["channel_id"], newest["worker_type"]) == (1, DIRECT, "builtin")
    assert [worker["id"] for worker in live["workers"]] == [waiting["id"]]
    assert failed["workers"] == []
    assert (refused.status_code, "one of live, ended" in refused.json()["error"]) == (400, True)


async def test_who_watches_a_worker_hears_all_of_it_and_who_comes_back_too(tmp_path: Path) -> None:
    model = scripted(spawn("the work"), worker=[Call("shell", command=COMMAND), outcome("all done")])
    async with open_workers(tmp_path, model) as owner:
        await owner.opened.say("Ann", "please")
        await owner.opened.events_of(EventKind.TOOL_OUTPUT, 1)
        worker_id = owner.opened.node(NodeKind.WORKER).id
        async with owner.client.stream("GET", f"{ROUTE}/{worker_id}/events") as response:
            reader = Reader(response)
            (hello,) = await reader.until("hello")
            go(owner.opened)
            heard = await reader.until("worker_completed")
            (end,) = await reader.until("hello")
            assert await reader.next() is None, "the stream ends with the worker"
        shown = await owner.get(f"{ROUTE}/{worker_id}")

    assert (hello.data["worker"]["state"], hello.data["worker"]["is_live"]) == ("running", True)
    assert [step["type"] for step in hello.data["steps"]] == ["told", "call"], "the call that runs is known already"
    assert "until [ -e go ]" in hello.data["steps"][1]["text"]
    assert [line.strip() for line in hello.data["output"]] == ["first line"], "what it wrote before somebody came"
    assert [e.data["line"].strip() for e in named(heard, "tool_output")] == ["last line"]
    completed, _ = named(heard, "tool_completed")
    assert "first line" in completed.data["result"]
    assert (completed.data["tool_name"], completed.data["is_error"]) == ("shell", False)
    (started,) = named(heard, "tool_started")
    assert "all done" in started.data["arguments"]
    assert end.data == shown
    assert (shown["worker"]["state"], shown["worker"]["result"]) == ("done", "all done")
    assert [(s["type"], s.get("name")) for s in shown["steps"]] == [
        ("told", None), ("call", "shell"), ("result", "shell"), ("call", "set_status"), ("result", "set_status"),
    ]  # fmt: skip


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event.name == name]


async def test_a_worker_is_told_something_and_cancelled(tmp_path: Path) -> None:
    def work(request: Any) -> Call:
        words = request.messages[-1].text
        return outcome(f"heard: {words[-20:]}")

    async with open_workers(tmp_path, scripted(spawn("wait", interactive=True), worker=work)) as owner:
        post = owner.client.post
        await owner.opened.say("Ann", "please")
        await owner.opened.events_of(EventKind.WORKER_IDLE, 1)
        one = f"{ROUTE}/{owner.opened.node(NodeKind.WORKER).id}"
        told = await post(f"{one}/message", json={"message": "and now the rest"})
        idle = await owner.opened.events_of(EventKind.WORKER_IDLE, 2)
        empty = await post(f"{one}/message", json={"message": "  "})
        cancelled = await post(f"{one}/cancel", json={})
        while list(owner.opened.tree.of_kind(NodeKind.WORKER)):
            await owner.opened.settled()
        again = await post(f"{one}/cancel", json={})
        late = await post(f"{one}/message", json={"message": "hello?"})
        shown = await owner.get(one)
        unknown = await owner.client.get(f"{ROUTE}/{new_uuid()}")
        no_stream = await owner.client.get(f"{ROUTE}/nothing/events")

    assert told.json() == {"success": True, "message": "it goes on with this now"}
    assert idle[-1].fields["result"] == "heard: and now the rest"
    assert cancelled.status_code == 200
    assert [answer.status_code for answer in (empty, again, late, unknown, no_stream)] == [400, 404, 404, 404, 404]
    assert "begin a new one" in late.json()["error"]
    assert (shown["worker"]["state"], shown["worker"]["result"]) == ("cancelled", "cancelled by a person")


@in_browser
async def test_a_worker_is_watched_from_the_chat_on_and_cancelled_in_a_small_dark_window(tmp_path: Path) -> None:
    tasks = [spawn(f"Count {EVIL}", task_type="coding"), spawn("private matter")]
    done = iter([outcome("counted <b>2</b>"), Call("shell", command=COMMAND.replace("go", "never"))])
    script = [Call("shell", command=COMMAND), *done]
    with open_browser(tmp_path, 390, 800) as browser:
        async with open_workers(tmp_path / "instance", scripted(*tasks, worker=script)) as owner:
            page = Page(browser, str(owner.client.base_url).rstrip("/"))
            await owner.opened.say("Ann", "please", conversation=CHAT, is_direct=False)
            await owner.opened.events_of(EventKind.TOOL_OUTPUT, 1)

            def watch() -> None:
                page.dark()
                browser.open(f"{page.url}/")
                page.one("#open-work").click()
                browser.wait(lambda: page.script(HAS_SLID_IN), "the drawer")
                page.one("#running .look").click()
                page.wait_text("#one .facts", "coding")
                assert page.text("#one h2") == f"Count {EVIL}"
                page.wait_text("#steps .call.busy .output", "first line")
                go(owner.opened)
                page.wait_text("#one .outcome", "counted <b>2</b>")
                page.gone("#steps .busy")
                page.one("#steps .call summary").click()
                page.wait_text("#steps .call .output", "last line")
                page.gone("#one .stop:not([hidden])")
                assert page.is_narrow()
                assert "owned" not in browser.driver.title

            await drive(watch)
            await owner.opened.say("Ann", "please", conversation=DIRECT)
            await owner.opened.events_of(EventKind.TOOL_OUTPUT, 3)

            def cancel() -> None:
                page.one("#one .back").click()
                page.wait_texts("#list .state", ["at work", "done"])
                assert page.texts("#list h3")[0] == "Private: begun in a direct chat"
                page.one("#uncover").click()
                page.wait_text("#list h3", "private matter")
                page.one("#list .stop:not([hidden])").click()
                page.wait_texts("#list .state", ["cancelled", "done"])

            await drive(cancel)
            assert await trio.to_thread.run_sync(browser.complaints) == []


@pytest.mark.parametrize("path", ["", "/x", "/x/events"])
async def test_an_unknown_agent_has_no_workers(path: str, tmp_path: Path) -> None:
    async with open_workers(tmp_path, scripted(worker=[])) as owner:
        assert (await owner.client.get(f"{ROUTE}{path}?agent_id=nobody")).status_code == 404


async def test_who_reads_too_slowly_gets_the_state_anew_instead_of_a_gap(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), outcome("all done"))
    async with open_workers(tmp_path, scripted(spawn("the work"), worker=[gate])) as owner:
        await owner.opened.say("Ann", "please")
        await gate.arrived.wait()
        worker_id = owner.opened.node(NodeKind.WORKER).id
        async with owner.client.stream("GET", f"{ROUTE}/{worker_id}/events") as response:
            reader = Reader(response)
            await reader.until("hello")
            for number in range(BUFFER + 50):  # in one step of the loop, so that nobody can read meanwhile
                owner.opened.events.emit(
                    EventKind.TOOL_OUTPUT, agent_id="main", channel_id=DIRECT, process_id=worker_id, line=f"{number}"
                )
            heard = await reader.until("hello")
            gate.event.set()
            end = await reader.until("worker_completed")
            await reader.until("hello")
            assert await reader.next() is None
    assert len(named(heard, "tool_output")) < BUFFER
    assert heard[-1].data["output"][-1] == f"{BUFFER + 49}"
    assert end[-1].data["state"] == "done"
