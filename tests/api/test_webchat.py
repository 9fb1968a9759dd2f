import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from spacebot.api.requests import MAX_BODY
from spacebot.api.sessions import conversation_of
from spacebot.base.events import EventKind
from spacebot.config.model import ApiConfig
from spacebot.conversations.records import Accepted, Standing, TurnState
from spacebot.messaging.messages import MAX_TEXT, InboundMessage, OutboundKind
from tests.api.serving import CONVERSATION, SESSION, UNREAD, Reader, Served, logged, open_server

pytestmark = pytest.mark.filterwarnings(UNREAD)


async def accepted_in(served: Served) -> Accepted:
    """The receipt of the newest message of the session."""
    newest = (await served.agent.conversations.history(CONVERSATION, limit=1))[-1]
    return Accepted(message_id=newest.id, seq=newest.seq, is_new=True)


@pytest.mark.spec("D-7")
async def test_a_sent_message_streams_its_turn_in_the_published_form(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.ask("hello") as reader:
            first = await reader.next()
            async with served.agent.turn(CONVERSATION, await accepted_in(served)) as turn:
                turn.tool("memory_recall")
                turn.delta("Hi")
                turn.delta("Hi there")
                await turn.say("Hi there.")
                await turn.say("👍", OutboundKind.REACTION)
            rest = await reader.until("done")
            assert await reader.next() is None

    assert first is not None
    assert [(event.name, event.data) for event in [first, *rest]] == [
        ("thinking", "Thinking"),
        ("tool_started", {"ToolStarted": {"tool_name": "memory_recall"}}),
        ("tool_completed", {"ToolCompleted": {"tool_name": "memory_recall"}}),
        ("stream_start", "StreamStart"),
        ("stream_chunk", {"StreamChunk": "Hi"}),
        ("stream_chunk", {"StreamChunk": "Hi there"}),
        ("stream_end", "StreamEnd"),
        ("text", {"Text": "Hi there."}),
        ("reaction", {"Reaction": "👍"}),
        ("stop_typing", "StopTyping"),
        ("done", "Done"),
    ]
    sent = served.agent.accepted[0]
    assert (sent.conversation_id, sent.author.name, sent.is_direct) == (f"webchat:{SESSION}", "user", True)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TurnState.SKIPPED, ("skipped", {"Skipped": "because"})),
        (TurnState.FAILED, ("error", {"Error": "because"})),
        (TurnState.INTERRUPTED, ("error", {"Error": "because"})),
    ],
)
async def test_every_end_of_a_turn_ends_the_stream(tmp_path: Path, state: TurnState, expected: Any) -> None:
    async with open_server(tmp_path) as served:
        async with served.ask("hello") as reader:
            await reader.until("thinking")
            async with served.agent.turn(CONVERSATION, await accepted_in(served), state=state, reason="because"):
                pass
            events = await reader.until("done")
    assert (events[0].name, events[0].data) == expected


async def test_the_stream_waits_for_the_turn_of_its_own_message(tmp_path: Path) -> None:
    """Turns before it, and turns that relay results, belong to others."""
    async with open_server(tmp_path) as served:
        earlier = (await served.send("earlier")).json()
        async with served.agent.turn(
            CONVERSATION, Accepted(message_id=earlier["message_id"], seq=earlier["seq"], is_new=True)
        ) as turn:
            async with served.ask("mine") as reader:
                await reader.until("thinking")
                mine = await accepted_in(served)
                turn.delta("not yours")
                await turn.say("not yours")
                async with served.agent.turn(CONVERSATION) as results:
                    await results.say("a result")
                async with served.agent.turn(CONVERSATION, mine) as own:
                    await own.say("yours")
                events = await reader.until("done")
    assert [event.data for event in events if event.name == "text"] == [{"Text": "yours"}]


@pytest.mark.spec("D-6")
async def test_a_message_that_is_sent_twice_is_accepted_once(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        first = (await served.send("hello", client_id="c-1")).json()
        again = (await served.send("hello", client_id="c-1")).json()
        other = (await served.send("hello", client_id="c-2")).json()
        assert await logged(served.agent) == ["hello", "hello"]
    assert (first["is_new"], again["is_new"]) == (True, False)
    assert first["message_id"] == again["message_id"] != other["message_id"]


async def test_a_message_that_is_sent_again_after_its_answer_gets_the_answer(tmp_path: Path) -> None:
    """The connection broke before the first attempt could read it."""
    async with open_server(tmp_path) as served:
        first = (await served.send("hello", client_id="c-1")).json()
        receipt = Accepted(message_id=first["message_id"], seq=first["seq"], is_new=True)
        async with served.agent.turn(CONVERSATION, receipt) as turn:
            await turn.say("the answer")
        async with served.ask("hello", client_id="c-1") as reader:
            events = await reader.until("done")
    assert [event.name for event in events] == ["thinking", "text", "stop_typing", "done"]


async def test_json_is_answered_at_once(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        body = {"session_id": SESSION, "message": "hello"}
        answer = await served.client.post("/api/webchat/send", json=body, headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["seq"]) == (202, 1)


async def test_a_reader_that_vanishes_disturbs_nobody(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow(after=0) as stays:
            async with served.ask("hello") as reader:
                await reader.until("thinking")
                receipt = await accepted_in(served)
            async with served.agent.turn(CONVERSATION, receipt) as turn:
                await turn.say("nobody waits, it is said all the same")
            assert [event.data["seq"] for event in await stays.messages(2)] == [1, 2]
            assert (await served.client.get("/api/status")).json()["counts"]["streams"] == 1


@pytest.mark.spec("D-6", "C-72")
async def test_several_readers_of_one_session_see_the_same(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow(after=0) as one, served.follow(after=0) as two:
            await served.send("a")
            await served.send("b")
            seen = [[(e.id, e.data["content"]) for e in await reader.messages(2)] for reader in (one, two)]
    assert seen[0] == seen[1] == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize("resume", ["query", "header"])
@pytest.mark.spec("D-m")
async def test_a_reader_that_reconnects_goes_on_where_it_stopped(tmp_path: Path, resume: str) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow(after=0) as reader:
            for text in "abc":
                await served.send(text)
            assert [event.id for event in await reader.messages(2)] == ["1", "2"]
        await served.send("d")
        params: dict[str, Any] = {"agent_id": "main", "session_id": SESSION}
        headers = {"last-event-id": "2"} if resume == "header" else {}
        if resume == "query":
            params["after"] = 2
        async with served.client.stream("GET", "/api/webchat/events", params=params, headers=headers) as response:
            assert [event.data["content"] for event in await Reader(response).messages(2)] == ["c", "d"]


async def test_a_restart_of_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow(after=0) as reader:
            await served.send("before", client_id="c-1")
            assert [event.id for event in await reader.messages(1)] == ["1"]
    async with open_server(tmp_path) as served:
        assert not (await served.send("before", client_id="c-1")).json()["is_new"]
        await served.send("after", client_id="c-2")
        async with served.follow(after=1) as reader:
            assert [event.data["content"] for event in await reader.messages(1)] == ["after"]


async def test_deltas_of_a_session_stream_carry_only_what_is_new(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with served.follow() as reader:
            await reader.until("hello")
            await served.send("hello")
            async with served.agent.turn(CONVERSATION, await accepted_in(served)) as turn:
                for text in ("One", "One, two", "Else"):
                    turn.delta(text)
            events = await reader.until("turn_ended")
    deltas = [event.data for event in events if event.name == EventKind.OUTBOUND_DELTA]
    assert [(data.get("text"), data.get("append")) for data in deltas] == [
        ("One", None),
        (None, ", two"),
        ("Else", None),
    ]


async def test_a_name_that_is_only_claimed_is_nobody_elses(tmp_path: Path) -> None:
    """Pages of other sites: a stranger first makes a direct chat, then joins it under the owner's name."""
    config = ApiConfig(port=0, allowed_origins=("https://friend.example.com",))
    claim = {"session_id": "evil", "shared": True, "sender_name": "terminal:terminal"}
    async with open_server(tmp_path, config=config) as served:
        await served.send("hello", session_id="evil")
        claimed = (await served.send("what did I tell you?", **claim)).json()["message_id"]
        log = served.agent.conversations
        standing = await log.standing(conversation_of("evil"), claimed)
        latest = await log.standing(conversation_of("evil"))
    assert [message.author.id for message in served.agent.accepted] == [
        "session:evil",
        "claimed:evil:terminal:terminal",
    ]
    assert standing == latest == Standing(is_direct=False, user_id="claimed:evil:terminal:terminal")


async def test_names_count_where_only_people_of_this_machine_come_in(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        await served.send("hello", sender_name="ann")
        await served.send("hello", session_id="two", sender_name="ann", shared=True)
    assert [message.author.id for message in served.agent.accepted] == ["ann", "ann"]


async def test_history_is_the_log_of_one_session_of_one_agent(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "other")) as served:
        for n in range(5):
            await served.send(f"m{n}")
        await served.send("elsewhere", session_id="two")
        await served.send("to other", agent_id="other")
        query = {"agent_id": "main", "session_id": SESSION, "limit": 3}
        newest = (await served.client.get("/api/webchat/history", params=query)).json()
        earlier = (await served.client.get("/api/webchat/history", params={**query, "before": newest[0]["seq"]})).json()
        empty = await served.client.get("/api/webchat/history", params={"agent_id": "main", "session_id": "new"})
        unknown = await served.client.get("/api/webchat/history", params={"agent_id": "nobody", "session_id": "new"})
    assert [(row["role"], row["content"]) for row in newest] == [("user", "m2"), ("user", "m3"), ("user", "m4")]
    assert [row["content"] for row in earlier] == ["m0", "m1"]
    assert empty.json() == []
    assert unknown.status_code == 404
    assert "error" in unknown.json()


GOOD = {"agent_id": "main", "session_id": "s", "message": "hello"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({**GOOD, "message": ""}, 400),
        ({**GOOD, "message": " \n\t "}, 400),
        ({**GOOD, "message": 5}, 422),
        ({**GOOD, "message": None}, 422),
        ({**GOOD, "session_id": ""}, 422),
        ({**GOOD, "session_id": "a\x00b"}, 400),
        ({**GOOD, "session_id": "x" * 201}, 422),
        ({**GOOD, "sender_name": ""}, 422),
        ({**GOOD, "massage": "typo"}, 422),
        ({**GOOD, "agent_id": "nobody"}, 404),
        ({**GOOD, "agent_id": "../main"}, 404),
        ({**GOOD, "message": "x" * (MAX_TEXT + 1)}, 413),
        ({**GOOD, "message": "x" * MAX_TEXT}, 202),
        ({**GOOD, "message": "lone \ud800 surrogate"}, 202),
        ({**GOOD, "message": "zero \x00 byte"}, 202),
        ({"message": "hello"}, 422),
        ([GOOD], 400),
        ("hello", 400),
    ],
)
async def test_bodies_are_accepted_or_refused_clearly(tmp_path: Path, body: Any, code: int) -> None:
    async with open_server(tmp_path) as served:
        answer = await served.client.post("/api/webchat/send?wait=false", content=json.dumps(body))
        assert answer.status_code == code, answer.text
        assert ("error" in answer.json()) == (code != 202)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"message": "\xc3\x28", "session_id": "s"}', 400),
        (b"[" * 100_000, 400),
        (b"1" * 10_000, 400),
        (b"x" * (MAX_BODY + 1), 413),
    ],
)
async def test_bytes_that_are_no_json_are_refused(tmp_path: Path, raw: bytes, code: int) -> None:
    async with open_server(tmp_path) as served:
        answer = await served.client.post("/api/webchat/send", content=raw)
        assert (answer.status_code, "error" in answer.json()) == (code, True)
        assert (await served.client.get("/api/health")).status_code == 200


@pytest.mark.spec("C-69")
async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    async def endless() -> Any:
        while True:
            yield b"x" * 65536

    async with open_server(tmp_path) as served:
        try:
            answer = await served.client.post("/api/webchat/send", content=endless())
        except httpx2.HTTPError:  # the server may close while we are still sending
            answer = None
        assert answer is None or answer.status_code == 413
        assert (await served.client.get("/api/health")).status_code == 200


async def test_many_messages_at_once_are_all_accepted_in_order_of_their_numbers(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(served.send, f"m{n}")
        rows = await served.agent.conversations.history(CONVERSATION)
    assert [row.seq for row in rows] == list(range(1, 41))
    assert {row.content for row in rows} == {f"m{n}" for n in range(40)}


async def test_an_echo_agent_answers_each_session_in_its_own(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        agent = served.agent

        async def echo(message: InboundMessage, accepted: Accepted) -> None:
            async with agent.turn(message.conversation_id, accepted) as turn:
                await turn.say(f"echo {message.text}")

        agent.on_message = echo
        async with served.ask("one", session_id="a") as a, served.ask("two", session_id="b") as b:
            texts = [[e.data for e in await reader.until("done") if e.name == "text"] for reader in (a, b)]
        assert await logged(agent, conversation_of("a")) == ["one", "echo one"]
    assert texts == [[{"Text": "echo one"}], [{"Text": "echo two"}]]
