"""A conversation as its owner reads it: messages, branches and workers in one order, and every page joins the next."""

from pathlib import Path
from typing import Any

import pytest

from spacebot.base.ids import NodeId, TurnId
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.records import BranchRun, WorkerRun
from tests.api.serving import CONVERSATION, UNREAD, Served, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)


async def talk(served: Served) -> list[str]:
    """Messages, branches and workers in turn; returns what each is called, in order."""
    conversations, names = served.agent.conversations, []
    for number in range(4):
        await served.send(f"message {number}")
        branch = BranchRun(
            id=NodeId(f"b{number}"), channel_id=CONVERSATION, description=f"branch {number}", turn_id=TurnId("t"),
            reply_to=None,
        )  # fmt: skip
        await conversations.start_branch(branch)
        names += [f"message {number}", f"branch {number}"]
        if number % 2:
            worker = WorkerRun(
                id=NodeId(f"w{number}"), channel_id=CONVERSATION, task=f"worker {number}", task_type=None,
                is_interactive=False, turn_id=TurnId("t"), reply_to=None, origin=branch.id,
            )  # fmt: skip
            await conversations.start_worker(worker)
            done = Outcome(NodeState.DONE, "it is done")
            await conversations.finish_worker(worker, done, status="done", transcript=None, tool_calls=2, tell=False)
            names.append(f"worker {number}")
        await conversations.finish_branch(branch, Outcome(NodeState.DONE, "found"), tool_calls=1, tell=False)
    await served.send("the end")
    return [*names, "the end"]


def name_of(item: dict[str, Any]) -> str:
    return str(item[{"message": "content", "branch_run": "description", "worker_run": "task"}[item["type"]]])


async def pages(served: Served, limit: int) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    query: dict[str, Any] = {"channel_id": CONVERSATION, "limit": limit}
    while True:
        page = (await served.client.get("/api/channels/messages", params=query)).json()
        found.insert(0, page["items"])
        assert page["has_more"] == (page["before"] is not None)
        if not page["has_more"]:
            return found
        query["before"] = page["before"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
async def test_pages_of_any_size_hold_everything_once_and_in_order(tmp_path: Path, limit: int) -> None:
    async with open_server(tmp_path) as served:
        names = await talk(served)
        found = await pages(served, limit)
    items = [item for page in found for item in page]
    assert [name_of(item) for item in items] == names
    assert all(len(page) == limit for page in found[1:])
    worker = next(item for item in items if item["type"] == "worker_run")
    assert (worker["status"], worker["result"], worker["branch_id"], worker["tool_calls"]) == (
        "done",
        "it is done",
        "b1",
        2,
    )
    branch = next(item for item in items if item["type"] == "branch_run")
    assert (branch["conclusion"], branch["state"], branch["turn_id"]) == ("found", "done", "t")


async def test_the_number_of_a_message_is_a_cursor_too_and_nonsense_is_refused(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        names = await talk(served)
        everything = [item for page in await pages(served, 100) for item in page]
        third = next(item for item in everything if item.get("content") == "message 2")
        query = {"channel_id": CONVERSATION, "limit": 3, "before": third["seq"]}
        page = (await served.client.get("/api/channels/messages", params=query)).json()
        place = names.index("message 2")
        assert [name_of(item) for item in page["items"]] == names[place - 3 : place]
        for nonsense in ("x", "-1", "1e9", "9" * 40, "~~", "1~\0"):
            refused = await served.client.get("/api/channels/messages", params={**query, "before": nonsense})
            assert (refused.status_code, "before" in refused.json()["error"]) == (400, True), nonsense


async def test_a_clock_that_goes_back_loses_nothing(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        names = await talk(served)
        await served.agent.conversations._database.write(
            lambda c: c.execute(
                "UPDATE conversation_messages SET created_at = '2020' WHERE content IN ('message 2', 'the end')"
            )
        )
        items = [item for page in await pages(served, 2) for item in page]
    assert sorted(map(name_of, items)) == sorted(names)
    assert [item["content"] for item in items if item["type"] == "message"] == [
        "message 0", "message 1", "message 2", "message 3", "the end",
    ]  # fmt: skip


async def test_conversations_are_listed_page_by_page_across_agents(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "other")) as served:
        for number in range(7):
            agent = "main" if number % 3 else "other"
            await served.send("hello", session_id=f"room {number}", agent_id=agent)
        for agent in served.program.agents.values():
            await agent.conversations._database.write(
                lambda c: c.execute("UPDATE channels SET last_activity_at = substr(last_activity_at, 1, 10)")
            )
        found: list[tuple[str, str]] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await served.client.get("/api/channels", params=query)).json()
            assert page["total"] == 7
            found += [(one["agent_id"], one["id"]) for one in page["channels"]]
            if not page["has_more"]:
                break
            query["before"] = page["before"]
        assert found == [("main" if number % 3 else "other", f"webchat:room {number}") for number in range(7)], (
            "all of one moment, so by their names"
        )
        only = (await served.client.get("/api/channels", params={"agent_id": "other", "contains": "ROOM 3"})).json()
        assert ([one["id"] for one in only["channels"]], only["total"]) == (["webchat:room 3"], 1)
        assert (await served.client.get("/api/channels?agent_id=nobody")).status_code == 404
        assert (await served.client.get("/api/channels?before=x")).status_code == 400
