"""The memory over HTTP: true totals, checked parameters, changes that last, nothing counted as an access."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.events import EventKind
from spacebot.base.ids import MemoryId
from spacebot.memory.types import EVERYTHING, MemoryType, NewAssociation, NewMemory, Provenance, Query
from tests.api.serving import UNREAD, Served, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)
BASE = "/api/agents/memories"
ROOM = Provenance(channel_id="test:room", user_id="ann")
UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def learn(served: Served, text: str, *targets: str, private: bool = False, **fields: Any) -> MemoryId:
    origin = Provenance(channel_id="test:ann", user_id="ann", is_direct=True) if private else ROOM
    edges = tuple(NewAssociation(target_id=target) for target in targets)
    saved = await served.agent.memory.save(NewMemory(content=text, provenance=origin, associations=edges, **fields))
    return saved.memory.id


async def ask(served: Served, path: str = "", code: int = 200, **params: Any) -> Any:
    answer = await served.client.get(f"{BASE}{path}", params=params)
    assert answer.status_code == code, answer.text
    return answer.json()


@pytest.mark.spec("C-76")
async def test_a_page_holds_what_was_asked_for_and_the_total_is_true(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        for n in range(5):
            await learn(served, f"fact number {n} " + "x" * 300, importance=n / 10)
        secret = await learn(served, "ann looks for a flat", private=True, memory_type=MemoryType.GOAL)

        page = await ask(served, limit=2, offset=1, sort="importance", preview=100)
        assert page["total"] == 6
        assert [one["importance"] for one in page["memories"]] == [0.4, 0.3]
        assert {(len(one["content"]), one["is_cut"]) for one in page["memories"]} == {(100, True)}
        assert (await ask(served, limit=100_000))["total"] == 6
        goals = await ask(served, memory_type="goal")
        assert [(one["id"], one["is_private"], one["is_cut"]) for one in goals["memories"]] == [(secret, True, False)]
        assert {"memory_type", "created_at", "updated_at", "last_accessed_at", "access_count", "source"} <= set(
            goals["memories"][0]
        )


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("", {"agent_id": "nobody"}, 404),
        ("", {"memory_type": "hunch"}, 400),
        ("", {"sort": "created_at; DROP TABLE memories"}, 400),
        ("", {"standing": "gone"}, 400),
        ("", {"limit": "0"}, 400),
        ("", {"limit": "-1"}, 400),
        ("", {"limit": "ten"}, 400),
        ("", {"limit": "9" * 5000}, 400),
        ("", {"offset": "-1"}, 400),
        ("", {"offset": "9" * 60}, 200),
        ("/search", {}, 400),
        ("/search", {"q": "  "}, 400),
        ("/search", {"q": "\"' OR 1=1 -- \0 *:^(", "limit": 5}, 200),
        ("/search", {"q": "tea", "memory_type": "' OR 1=1"}, 400),
        ("/search", {"q": "tea", "agent_id": "nobody"}, 404),
        ("/graph", {"agent_id": "nobody"}, 404),
        ("/graph", {"limit": "-3"}, 400),
        ("/graph/neighbors", {}, 400),
        ("/graph/neighbors", {"memory_id": UNKNOWN}, 404),
        ("/graph/neighbors", {"memory_id": "' OR 1=1 --"}, 404),
        ("/graph/neighbors", {"memory_id": UNKNOWN, "depth": "0"}, 400),
        ("/history", {"days": "0"}, 400),
        ("/history", {"days": "1e9"}, 400),
        ("/history", {"days": "99999999", "utc_offset": "-99999999"}, 400),
        ("/history", {"days": "99999999", "utc_offset": "99999999"}, 200),
        (f"/{UNKNOWN}", {}, 404),
        ("/%27%20OR%201%3D1", {}, 404),
        (f"/{UNKNOWN}", {"agent_id": "nobody"}, 404),
    ],
)
async def test_bad_parameters_are_named(tmp_path: Path, path: str, params: dict[str, Any], code: int) -> None:
    async with open_server(tmp_path) as served:
        await learn(served, "the kettle is in the kitchen")
        answer = await served.client.get(f"{BASE}{path}", params=params)
        assert answer.status_code == code, answer.text
        assert code == 200 or answer.json()["error"]


async def test_search_tells_what_found_each_and_counts_no_access(tmp_path: Path) -> None:
    async with open_server(tmp_path, patience_s=90) as served:
        await served.agent.memory.warm_up()  # a busy machine needs its time to load what searches
        tea = await learn(served, "Tom drinks oolong tea in the morning", memory_type=MemoryType.PREFERENCE)
        await learn(served, "the office has a garden")
        secret = await learn(served, "tom hides his oolong tea from mara", private=True)

        found = await ask(served, "/search", q="oolong tea", limit=1)
        (first,) = found["results"]
        assert first["rank"] == 1
        assert first["memory"]["id"] in (tea, secret)
        assert {"text", "vector"} & set(first["legs"])
        assert isinstance(first["why"], str)
        typed = await ask(served, "/search", q="oolong tea", memory_type="preference")
        assert [hit["memory"]["id"] for hit in typed["results"]] == [tea]
        assert typed["edges"] == []
        await learn(served, "oolong is a tea from Taiwan", tea)
        both = await ask(served, "/search", q="oolong tea")
        assert {"target_id": tea, "relation_type": "related_to"}.items() <= both["edges"][0].items()
        assert {tea, secret} <= {hit["memory"]["id"] for hit in both["results"]}  # the owner sees everything
    # Accesses are written at the end at the latest.
    with sqlite3.connect(tmp_path / "main.db") as connection:
        assert connection.execute("SELECT sum(access_count) FROM memories").fetchone() == (0,)
    connection.close()


async def test_the_graph_and_its_neighbours(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        first = await learn(served, "alpha")
        second = await learn(served, "bravo", first)
        third = await learn(served, "charlie", second)

        graph = await ask(served, "/graph", limit=500)
        assert ({node["id"] for node in graph["nodes"]}, graph["total"]) == ({first, second, third}, 3)
        assert {(edge["source_id"], edge["target_id"]) for edge in graph["edges"]} == {(second, first), (third, second)}
        assert set(graph["edges"][0]) >= {"id", "relation_type", "weight", "created_at"}
        near = await ask(served, "/graph/neighbors", memory_id=first, depth=9, exclude=f"{second},,nothing")
        assert [node["id"] for node in near["nodes"]] == [third]
        assert len(near["edges"]) == 2


async def test_one_memory_with_its_origin_and_edges(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        sent = await served.send("the kettle is in the kitchen", sender_name="Ann")
        receipt = sent.json()
        origin = Provenance(channel_id="webchat:portal:chat:main", user_id="ann", message_id=receipt["message_id"])
        saved = await served.agent.memory.save(NewMemory(content="The kettle is in the kitchen.", provenance=origin))
        other = await learn(served, "somebody boiled water", saved.memory.id)

        detail = await ask(served, f"/{saved.memory.id}")
        assert detail["memory"]["content"] == "The kettle is in the kitchen."
        assert detail["learned"]["said"] == "the kettle is in the kitchen"
        assert [(edge["source_id"], edge["target_id"]) for edge in detail["edges"]] == [(other, saved.memory.id)]
        assert detail["others"][other]["content"] == "somebody boiled water"


async def test_add_edit_forget_and_bring_back(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served, served.client.stream("GET", "/api/events") as _:
        body = {"content": "Releases go out on Tuesdays.", "memory_type": "decision", "permanent": True}
        answer = await served.client.post(BASE, json=body)
        assert answer.status_code == 201, answer.text
        memory = answer.json()["memory"]
        assert (memory["memory_type"], memory["importance"], memory["permanent"]) == ("decision", 0.8, True)
        again = await served.client.post(BASE, json={"content": "releases go out on TUESDAYS."})
        assert (again.status_code, again.json()["is_new"]) == (200, False)
        assert again.json()["memory"]["id"] == memory["id"]

        path = f"{BASE}/{memory['id']}"
        with served.program.events.subscribe(frozenset({EventKind.MEMORY_CHANGED})) as changes:
            edited = await served.client.patch(
                path, json={"content": "Releases go out on Mondays.", "importance": 0.25}
            )
            assert edited.status_code == 200, edited.text
            assert (await changes.receive()) is not None
        now = edited.json()["memory"]
        assert (now["content"], now["importance"], now["memory_type"]) == (
            "Releases go out on Mondays.",
            0.25,
            "decision",
        )
        found = await served.agent.memory.recall(Query(viewer=EVERYTHING, text="Mondays"))
        assert [hit.memory.id for hit in found.hits] == [memory["id"]]

        gone = await served.client.delete(path, params={"reason": "moved to Wednesdays"})
        assert gone.json() == {"success": True, "id": memory["id"]}
        assert (await ask(served))["total"] == 0
        assert (await ask(served, standing="forgotten"))["memories"][0]["forget_reason"] == "moved to Wednesdays"
        assert (await ask(served, f"/{memory['id']}"))["memory"]["forgotten"] is True
        assert (await served.client.delete(path)).status_code == 404
        back = await served.client.post(f"{path}/restore")
        assert (back.status_code, back.json()["memory"]["forgotten"]) == (200, False)
        assert (await served.client.post(f"{path}/restore")).status_code == 404
        assert (await ask(served))["total"] == 1

        events = (await served.client.get("/api/cortex/events")).json()
        assert [event["event_type"] for event in events["events"]] == [
            "memory_restored",
            "memory_forgotten",
            "memory_edited",
        ]
        one = (await served.client.get("/api/cortex/events", params={"event_type": "memory_edited", "limit": 1})).json()
        assert (len(one["events"]), one["total"]) == (1, 1)
        assert one["events"][0]["details"]["memory_id"] == memory["id"]
        history = await ask(served, "/history", days=2)
        today = history["days"][-1]
        assert (today["saved"], today["forgotten"], today["restored"], today["live"]) == (1, 1, 1, 1)
        overview = (await served.client.get("/api/agents/overview")).json()
        assert (overview["memory_total"], overview["memory_counts"]["decision"]) == (1, 1)
        assert (len(overview["memory_daily"]), overview["memory_daily"][-1]["count"]) == (30, 1)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"content": "  \0 "}, 400),
        ({"content": "x" * 50_001}, 400),
        ({"content": "fine", "importance": 1.01}, 400),
        ({"content": "fine", "importance": -0.01}, 400),
        ({"content": "fine", "memory_type": "hunch"}, 422),
        ({"content": 7}, 422),
        ({"content": "fine", "is_private": False}, 422),
        ({"content": "fine", "agent_id": "nobody"}, 404),
        ({}, 422),
    ],
)
async def test_what_cannot_be_a_memory_is_refused(tmp_path: Path, body: dict[str, Any], code: int) -> None:
    async with open_server(tmp_path) as served:
        known = await learn(served, "the kettle is in the kitchen")
        answer = await served.client.post(BASE, json=body)
        assert answer.status_code == code, answer.text
        edit = await served.client.patch(f"{BASE}/{known}", json=body)
        assert edit.status_code == (400 if body == {} else code), edit.text
        page = await ask(served)
        assert [one["content"] for one in page["memories"]] == ["the kettle is in the kitchen"]


async def test_changes_of_what_is_not_there_are_refused(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        for method, path, body in (
            ("PATCH", f"/{UNKNOWN}", {"content": "other words"}),
            ("DELETE", f"/{UNKNOWN}", None),
            ("POST", f"/{UNKNOWN}/restore", None),
        ):
            answer = await served.client.request(method, f"{BASE}{path}", json=body)
            assert answer.status_code == 404, (method, answer.text)
        assert (await served.client.post(f"{BASE}/maintain", params={"dry_run": "perhaps"})).status_code == 400


async def test_a_secret_in_a_memory_is_scrubbed(tmp_path: Path) -> None:
    key = "sk-ant-api03-" + "a1B2" * 20
    async with open_server(tmp_path) as served:
        added = await served.client.post(BASE, json={"content": f"The key is {key}."})
        assert key not in added.text
        await served.client.delete(f"{BASE}/{added.json()['memory']['id']}", params={"reason": f"it held {key}"})
        assert key not in str(await ask(served, standing="all"))


async def test_a_dry_run_tells_and_changes_nothing(tmp_path: Path) -> None:
    async with open_server(tmp_path, patience_s=90) as served:
        await learn(served, "the kettle is in the kitchen of the office")
        await learn(served, "in the kitchen of the office is the kettle")  # the same words in another order
        await served.agent.memory.flush()  # a busy machine needs its time to load what upkeep looks at
        before = await ask(served)

        dry = (await served.client.post(f"{BASE}/maintain", params={"dry_run": "true"})).json()
        assert (dry["is_dry_run"], dry["is_complete"], dry["merged"]) == (True, True, 1)
        assert await ask(served) == before
        real = (await served.client.post(f"{BASE}/maintain")).json()
        assert (real["is_dry_run"], real["merged"]) == (False, 1)
        assert (await ask(served))["total"] == 1


async def test_the_routes_want_the_token_and_their_own_page(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        known = await learn(served, "the kettle is in the kitchen")
        foreign = {"origin": "https://evil.example.com"}
        for method, path in (("GET", ""), ("POST", ""), ("PATCH", f"/{known}"), ("DELETE", f"/{known}")):
            answer = await served.client.request(method, f"{BASE}{path}", headers=foreign)
            assert answer.status_code == 403, method
        page = await served.client.get("/memory")
        assert page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert (await ask(served))["total"] == 1
