"""The log as a model meets it through channel_recall: searched, read in order, closed to those who may not see it."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import ToolError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import ConversationId, new_uuid
from spacebot.base.paths import package_file
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.conversations.log import Conversations
from spacebot.conversations.message_search import QUIET_S, MessageSearch, match_people, named_in
from spacebot.conversations.records import Participant
from spacebot.llm.messages import ProcessKind, ToolCall, ToolResult
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from spacebot.memory.question import read
from spacebot.memory.types import EVERYTHING, Viewer
from spacebot.messaging.messages import Author, InboundMessage, OutboundKind
from spacebot.storage.database import Connection, Database, open_database
from spacebot.tools.contract import RESULT_CAP, parse_arguments
from spacebot.tools.recall_channel import ChannelRecall
from tests.conftest import Logs
from tests.fakes.fake_embedder import FakeEmbedder
from tests.fakes.opened import ROOM as ROOM_ID
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, Say, ScriptedModel

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOM = Viewer(channel_id="t:room", user_id="ann")
INJECTIONS = [
    "'; DROP TABLE channels; --",
    '" OR 1=1 --',
    "NEAR(a b)",
    "content:x*",
    "%_\\",
    "a\0b",
    "\u202eabc 😀",
    "[]{}()^-",
]


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


@dataclass
class World:
    """One agent's log, and the search over it."""

    database: Database
    log: Conversations
    search: MessageSearch
    events: EventBus
    embedder: Any
    time: MockClock
    moment: list[datetime] = field(default_factory=lambda: [NOON])

    async def say(
        self,
        text: str,
        *,
        who: str = "Ann",
        where: str = "t:room",
        direct: bool = False,
        name: str | None = None,
        user: str | None = None,
    ) -> str:
        message = InboundMessage(
            platform=where.partition(":")[0], conversation_id=ConversationId(where),
            author=Author(id=user or who.casefold(), name=who), text=text, sent_at=self.moment[0], is_direct=direct,
            channel_name=name,
        )  # fmt: skip
        return (await self.log.accept(message)).message_id

    async def answer(self, text: str, *, where: str = "t:room", kind: OutboundKind = OutboundKind.TEXT) -> str:
        return (await self.log.record_reply(None, ConversationId(where), text, kind=kind)).id

    async def learn(self, seconds: float = QUIET_S, *, completely: bool = True) -> None:
        """Let vectors be computed of what was said, of all of it unless told otherwise."""
        self.events.emit(EventKind.INBOUND_MESSAGE, agent_id="main")
        await self.settled()
        self.time.jump(seconds)
        await self.settled()
        for _ in range(100 if completely else 0):
            if not await self.sql("SELECT 1 FROM message_docs WHERE is_pending = 1 LIMIT 1"):
                break
            await self.settled()
        else:
            assert not completely, "vectors are still missing"

    async def settled(self) -> None:
        for _ in range(10):
            await self.database.write(lambda c: None)
            await wait_all_threads_completed()
            await wait_all_tasks_blocked()

    async def recall(self, viewer: Viewer = ROOM, /, **arguments: Any) -> dict[str, Any]:
        """Call the tool as a process of this viewer's conversation does."""
        tool = ChannelRecall(messages=self.search, viewer=viewer)
        node: Node = Tree().add(NodeKind.BRANCH, "test")
        output = await tool.call(parse_arguments(tool, ToolCall(id="1", name=tool.name, arguments=arguments)), node)
        assert len(output.text.encode()) <= RESULT_CAP
        result: dict[str, Any] = json.loads(output.text)
        return result

    async def texts(self, viewer: Viewer = ROOM, /, **arguments: Any) -> list[str]:
        return [message["content"] for message in (await self.recall(viewer, **arguments))["messages"]]

    async def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        def run(c: Connection) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in c.execute(statement, values).fetchall()]

        return await self.database.write(run)


@asynccontextmanager
async def open_world(
    folder: Path, clock: MockClock, embedder: Embedder | None = None, migrations: Path | None = None
) -> AsyncIterator[World]:
    embedder, events = embedder or FakeEmbedder(), EventBus()
    moment = [NOON]
    async with open_database(folder / "spacebot.db", migrations or package_file("storage", "sql")) as database:
        search = MessageSearch(database, embedder, events=events, agent_id="main")
        log = Conversations(database, Clock(now=lambda: moment[0]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(search.run)
            await wait_all_tasks_blocked()
            yield World(database, log, search, events, embedder, clock, moment)
            nursery.cancel_scope.cancel()


async def test_a_question_finds_what_was_said_with_what_stands_around_it(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        await world.say("Shall we meet about the trip?", who="Bob", name="plans")
        await world.say("I would rather not talk about it today")
        found = await world.say("The boat needs a new mast, says the harbour master")
        await world.answer("Noted.")
        await world.answer("⛵", kind=OutboundKind.REACTION)
        await world.say("What is for lunch today?", where="t:other", who="Cleo")
        await world.learn()
        result = await world.recall(query="who needs masts for the boat?")
        hit = result["messages"][0]
        assert result["action"] == "search"
        assert hit == {
            "id": found, "role": "user", "sender": "Ann", "timestamp": "2026-03-01T12:00:00.000Z",
            "content": "The boat needs a new mast, says the harbour master",
            "channel_id": "t:room", "channel_name": "plans",
            "said_before": ["Bob: Shall we meet about the trip?", "Ann: I would rather not talk about it today"],
            "said_after": ["assistant: Noted."],
            "relevance": hit["relevance"], "why": hit["why"],
        }  # fmt: skip
        assert 0 < hit["relevance"] <= 1
        assert re.fullmatch(r"words: needs, masts, boat; meaning 0\.\d\d", hit["why"])
        assert "⛵" not in json.dumps(result, ensure_ascii=False)
        assert await world.texts(query="lunch", channel="plans") != ["What is for lunch today?"]


async def test_meaning_is_found_without_a_common_word(tmp_path: Path, clock: MockClock) -> None:
    embedder = OnnxEmbedder()
    await embedder.embed(["warm up"])
    async with open_world(tmp_path, clock, embedder) as world:
        for number, text in enumerate(
            ("Our cat gave birth to three kittens last night", "The invoice is due at the end of the month",
             "Please restart the build server, it hangs again", "I booked a table for four at the Italian place")
        ):  # fmt: skip
            await world.say(text, where=f"t:{number}")
        await world.learn()
        for question, words in (
            ("feline offspring", "kittens"),
            ("when must we pay?", "invoice"),
            ("reserved dinner", "table for four"),
            ("continuous integration machine stuck", "build server"),
        ):
            first = (await world.recall(query=question, limit=1))["messages"][0]
            assert words in first["content"]
            assert first["why"].startswith("meaning 0.")


PLACES = {  # conversation -> who spoke there, each directly or not
    "t:room": [("Ann", False), ("Bob", False)],
    "t:dm:bob": [("Bob", True)],
    "t:dm:ann": [("Ann", True)],
    "t:dm:ann2": [("Ann", True)],
    "u:dm:ann": [("Ann", True)],  # another platform, where the same id is somebody else
    "t:dm:joined": [("Ann", True), ("Bob", False)],  # a direct chat that others joined
    "t:dm:two": [("Ann", True), ("Bob", True)],
}
SEES = [
    (Viewer(channel_id="t:room", user_id="ann"), {"t:room"}),
    (Viewer(channel_id="t:elsewhere", user_id="bob"), {"t:room"}),
    (Viewer(), {"t:room"}),
    (Viewer(user_id="ann", is_direct=True), {"t:room"}),
    (Viewer(channel_id="t:dm:ann", user_id="ann", is_direct=True), {"t:room", "t:dm:ann", "t:dm:ann2"}),
    (Viewer(channel_id="t:dm:ann", user_id="ann"), {"t:room", "t:dm:ann"}),
    (Viewer(channel_id="t:dm:ann", is_direct=True), {"t:room", "t:dm:ann"}),
    (Viewer(channel_id="t:dm:bob", user_id="bob", is_direct=True), {"t:room", "t:dm:bob"}),
    (Viewer(channel_id="u:dm:ann", user_id="ann", is_direct=True), {"t:room", "u:dm:ann"}),
    (Viewer(channel_id="t:dm:joined", user_id="bob"), {"t:room", "t:dm:joined"}),
    (Viewer(channel_id="t:dm:two", user_id="ann", is_direct=True), {"t:room", "t:dm:two", "t:dm:ann", "t:dm:ann2"}),
    (EVERYTHING, set(PLACES)),
]


async def test_private_talk_is_closed_to_others_whichever_way_it_is_looked_for(
    tmp_path: Path, clock: MockClock, logs: Logs
) -> None:
    async with open_world(tmp_path, clock) as world:
        ids: dict[str, list[str]] = {place: [] for place in PLACES}
        for place, people in PLACES.items():
            for who, direct in people:
                ids[place].append(
                    await world.say(
                        f"secret plan number {place} of {who}",
                        who=who,
                        where=place,
                        direct=direct,
                        name=f"named {place}",
                    )
                )
            ids[place].append(await world.answer(f"secret plan noted in {place}", where=place))
        await world.learn()

        async def check(**more: Any) -> None:
            for viewer, open_places in SEES:
                found = await world.recall(viewer, query="secret plan", limit=50, **more)
                assert {message["channel_id"] for message in found["messages"]} == open_places, viewer
                around = json.dumps([(m["said_before"], m["said_after"]) for m in found["messages"]])
                assert not any(
                    f" {place} " in around or f'in {place}"' in around for place in PLACES.keys() - open_places
                )
                by_name = await world.recall(viewer, query="secret plan", person="bob", limit=50, **more)
                assert {m["channel_id"] for m in by_name["messages"]} == {
                    place for place in open_places if any(who == "Bob" for who, _ in PLACES[place])
                }, viewer

        await check()
        world.embedder.fails = True
        await check()  # by words alone
        world.embedder.fails = False
        await world.sql("INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')")
        await check()  # by meaning alone
        for viewer, open_places in SEES:
            listed = await world.recall(viewer)
            assert {channel["channel_id"] for channel in listed["available_channels"]} == open_places, viewer
            for place in PLACES.keys() - open_places:
                for wanted in (place, f"named {place}"):
                    closed = await world.recall(viewer, channel=wanted)
                    assert closed["action"] == "list"
                    assert place not in {channel["channel_id"] for channel in closed["available_channels"]}
                    assert (await world.recall(viewer, channel=wanted, query="secret plan"))["action"] == "list"
                for message_id in ids[place]:  # as a cursor in a channel that may be read
                    with pytest.raises(ToolError, match="no message"):
                        await world.recall(viewer, channel="t:room", after=message_id)
                assert await world.search.transcript(viewer, place, limit=9) == []
            for place in open_places:
                assert len(await world.texts(viewer, channel=place)) == len(ids[place])


async def test_a_branch_looks_with_the_eyes_of_its_own_conversation(tmp_path: Path, clock: MockClock) -> None:
    look = Calls(Call("channel_recall", query="code of the locker"), Call("memory_save", content="x", person="bob"))
    ask = Calls(Call("reply", content="I look."), Call("branch", description="the code"))
    thoughts = [look, Say("It is not known."), look, Say("It is known.")]
    model = ScriptedModel(Call("reply", content="Noted."), ask, ask, branch=thoughts)
    async with open_test_agent(tmp_path, model, coalesce={"debounce_ms": 0}) as opened:
        await opened.say("Bob", "the code of my locker is 4711")
        await opened.ended(1)
        await opened.advance(QUIET_S)  # its vector is there now
        await opened.say("Ann", "what is the code?", conversation=ROOM_ID)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.say("Bob", "what was it again?")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 2)
        branches = model.requests_of(ProcessKind.BRANCH)
        room, direct = (
            "".join(part.text for part in request.messages[-1].parts if isinstance(part, ToolResult))
            for request in (branches[1], branches[3])
        )
        assert "4711" not in room
        assert "4711" in direct
        assert "; meaning" in direct
        assert "Nobody here is called 'bob'" in room
        assert '"person": "test:bob"' in direct


async def test_what_may_not_be_seen_takes_no_place_among_the_candidates(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        await world.say("the password of the boat house is on the long list of the harbour master")
        for number in range(120):
            await world.say(f"password {number}", who="Bob", where="t:dm:bob", direct=True)
            await world.say(f"password of the {number}", who="Bob", where="t:dm:bob", direct=True)
        await world.learn()
        (hit,) = (await world.recall(query="password"))["messages"]
        assert hit["channel_id"] == "t:room"
        assert "words: password; meaning" in hit["why"]


async def test_what_was_erased_is_found_no_more(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        deleted = await world.say("the treasure lies under the oak")
        changed = await world.say("the treasure lies under the elm")
        kept = await world.say("nobody shall ever find the treasure")
        await world.learn()
        assert len(await world.texts(query="the treasure lies under")) == 3
        await world.sql("DELETE FROM conversation_messages WHERE id = ?", deleted)
        await world.sql("UPDATE conversation_messages SET content = 'nothing of note here' WHERE id = ?", changed)
        found = await world.recall(query="the treasure lies under the oak elm")
        assert {message["id"] for message in found["messages"]} <= {kept, changed}
        assert "oak" not in json.dumps(found)
        assert "elm" not in json.dumps(found)
        await world.learn()
        await world.sql("UPDATE conversation_messages SET content = '' WHERE id = ?", changed)
        assert {message["id"] for message in (await world.recall(query="nothing treasure"))["messages"]} == {kept}
        left = await world.sql("SELECT count(*) FROM message_docs UNION ALL SELECT count(*) FROM message_embeddings")
        assert left == [(1,), (1,)]
        assert await world.sql("SELECT rowid FROM messages_fts WHERE messages_fts MATCH 'oak OR elm OR note'") == []
        await world.sql("INSERT INTO messages_fts (messages_fts, rank) VALUES ('integrity-check', 1)")


async def test_vectors_wait_for_a_message_and_survive_a_broken_model(tmp_path: Path, clock: MockClock) -> None:
    embedder = FakeEmbedder()
    async with open_world(tmp_path, clock, embedder) as world:
        for number in range(40):
            await world.say(f"message number {number} of many")
        await world.say("thanks a")
        await world.settled()
        world.time.jump(10_000)
        await world.settled()
        assert embedder.calls == []
        world.events.emit(EventKind.INBOUND_MESSAGE, agent_id="another")
        await world.settled()
        world.time.jump(QUIET_S)
        await world.settled()
        assert embedder.calls == []
        embedder.fails = True
        await world.learn(completely=False)
        assert len(embedder.calls) == 1
        embedder.fails = False
        await world.learn(completely=False)  # not yet: it waits after a failure
        assert len(embedder.calls) == 1
        await world.learn(60, completely=False)
        await world.learn()
        assert await world.sql("SELECT count(*) FROM message_embeddings") == [(40,)]
        assert await world.sql("SELECT count(*) FROM message_docs WHERE is_pending = 1") == [(0,)]
        assert max(len(texts) for texts in embedder.calls) <= 16
        assert embedder.calls[1][0] == "message number 39 of many"  # the newest first
        assert not any("thanks" in text for texts in embedder.calls for text in texts)
    embedder.calls.clear()
    async with open_world(tmp_path, clock, embedder) as world:
        await world.say("one more message there")
        await world.learn()
        assert embedder.calls == [("one more message there",)]
        world.embedder.name = "newer"
    async with open_world(tmp_path, clock, embedder) as world:
        await world.learn()
        assert await world.sql("SELECT DISTINCT model FROM message_embeddings") == [("newer",)]
        assert await world.sql("SELECT count(*) FROM message_embeddings") == [(41,)]


async def test_new_words_are_found_at_once_and_a_new_vector_joins_those_in_memory(
    tmp_path: Path, clock: MockClock
) -> None:
    async with open_world(tmp_path, clock) as world:
        await world.say("the first of all messages")
        await world.learn()

        async def reason(query: str) -> str:
            return str((await world.recall(query=query))["messages"][0]["why"])

        assert "; meaning" in await reason("first messages")
        await world.say("penguins like cold water")
        assert await reason("penguins") == "words: penguins"
        await world.learn()
        assert "; meaning" in await reason("penguins")
        world.time.jump(3600)  # what nobody uses is let go, and read again when somebody asks
        await world.settled()
        assert "; meaning" in await reason("penguins")


async def test_a_broken_model_leaves_the_words_and_says_so(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock, FakeEmbedder()) as world:
        await world.say("penguins like cold water")
        world.embedder.fails = True
        result = await world.recall(query="penguin")
        assert [message["content"] for message in result["messages"]] == ["penguins like cold water"]
        assert "found by words only" in result["note"]
        await world.sql("DROP TABLE messages_fts")
        with pytest.raises(ToolError, match="could not be searched"):
            await world.recall(query="penguin")
        world.embedder.fails = False
        assert "found by meaning only" in (await world.recall(query="penguin"))["note"]


async def test_bounds_are_exact_where_a_day_begins(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        midnight = datetime(2026, 3, 2, tzinfo=UTC)
        for offset in (-1000, -1, 0, 1, 1000):
            world.moment[0] = midnight + timedelta(milliseconds=offset)
            await world.say(f"bells at offset {offset} of midnight")
        await world.learn()

        async def offsets(**bounds: str) -> tuple[list[int], list[int]]:
            told = [int(text.split()[3]) for text in await world.texts(channel="t:room", **bounds)]
            return told, sorted(int(text.split()[3]) for text in await world.texts(query="bells midnight", **bounds))

        for bounds, expected in (
            ({"before": "2026-03-02"}, [-1000, -1]),
            ({"after": "2026-03-02"}, [1, 1000]),
            ({"before": "2026-03-02T00:00:00Z", "after": "2026-03-01"}, [-1000, -1]),
            ({"after": "2026-03-02T00:59:59.999+01:00"}, [0, 1, 1000]),
            ({"before": "2026-03-01T19:00:00.001-05:00"}, [-1000, -1, 0]),
            ({"before": to_text(midnight), "after": to_text(midnight)}, []),
            ({"before": "2026-03-03", "after": "2026-03-01 12:00"}, [-1000, -1, 0, 1, 1000]),
        ):
            assert await offsets(**bounds) == (expected, expected), bounds
        for wrong in ("yesterday", "9999-12-31T23:59:59-14:00", "0001-01-01", "2026-13-01", "'; --"):
            for field_name in ("before", "after"):
                with pytest.raises(ToolError, match=field_name):
                    await world.recall(channel="t:room", **{field_name: wrong})


async def test_pages_skip_and_repeat_nothing_of_what_was_said_in_one_moment(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        said = [await world.say(f"number {number}") for number in range(11)]
        backwards: list[str] = []
        cursor: dict[str, Any] = {}
        while page := (await world.recall(channel="t:room", limit=4, **cursor))["messages"]:
            backwards[:0] = [message["id"] for message in page]
            cursor = {"before": page[0]["id"].upper()}
        assert backwards == said
        forwards: list[str] = []
        cursor = {}
        while page := (await world.recall(channel="t:room", limit=4, oldest_first=True, **cursor))["messages"]:
            forwards += [message["id"] for message in page]
            cursor = {"after": page[-1]["id"]}
        assert forwards == said
        elsewhere = await world.say("another room", where="t:other")
        for unknown in (new_uuid(), elsewhere):
            with pytest.raises(ToolError, match="no message"):
                await world.recall(channel="t:room", before=unknown)
        with pytest.raises(ToolError, match="must be moments"):
            await world.recall(query="number", before=said[3])


async def test_what_one_person_said(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        for who in ("Ann Lee", "Ann Smith", "Jörg"):
            await world.say(f"the weather is fine, finds {who.split()[-1]}", who=who)
        await world.answer("the weather is fine, find I")
        await world.learn()
        for wanted, people in (
            ("ann lee", {"Lee"}), ("@Ann", {"Lee", "Smith"}), ("SMITH", {"Smith"}), ("JÖRG", {"Jörg"}),
        ):  # fmt: skip
            expected = {f"the weather is fine, finds {who}" for who in people}
            assert set(await world.texts(query="weather", person=wanted)) == expected
            assert set(await world.texts(channel="room", person=wanted)) == expected
        nobody = await world.recall(query="weather", person="Zoe")
        assert (nobody["messages"], nobody["note"]) == ([], "nobody called 'Zoe' spoke there")
        with pytest.raises(ToolError, match="nobody called 'Zoe'"):
            await world.recall(channel="room", person="Zoe")
        assert (await world.recall(person="Jörg"))["summary"].startswith("Name a channel, or give a query.")
        boosted = await world.recall(query="Smith about the weather")
        assert "sender_id" not in boosted["messages"][0]  # the name says as much
        assert boosted["messages"][0]["sender"] == "Ann Smith"
        assert [person.name for person in await world.log.participants(ConversationId("t:room"))] == [
            "Jörg", "Ann Smith", "Ann Lee",
        ]  # fmt: skip


async def test_two_of_one_name_are_told_apart(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        for user in ("u-1", "u-2"):
            await world.say("good morning", who="Kim", user=user)
        lines = (await world.recall(channel="t:room"))["messages"]
        assert [(line["sender"], line["sender_id"]) for line in lines] == [("Kim", "u-1"), ("Kim", "u-2")]
        assert len(await world.texts(query="morning", person="kim")) == 2
        assert len(await world.texts(query="morning", person="U-2")) == 1


async def test_what_was_said_on_a_day_that_is_named_comes_first(tmp_path: Path, clock: MockClock) -> None:
    async with open_world(tmp_path, clock) as world:
        for day in (3, 17, 24):
            world.moment[0] = NOON.replace(day=day)
            await world.say(f"we had soup for lunch, bowl {day}")
            await world.say("it was fine")
        hits = (await world.recall(query="which soup was there on 17 March 2026?"))["messages"]
        assert hits[0]["content"] == "we had soup for lunch, bowl 17"
        assert hits[0]["why"].endswith("of 2026-03-17")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("GENERAL", "chat:1"), ("#general", "chat:1"), ("general-", "chat:2"), ("TALK", "chat:2"),
        ("MAIL:", "mail:General"), ("straße", "chat:4"), ("STRASSE", "chat:4"), ("nothing", None), ("#", None),
    ],
)  # fmt: skip
async def test_a_channel_is_found_by_name_before_prefix_before_part_before_id(
    tmp_path: Path, clock: MockClock, wanted: str, found: str | None
) -> None:
    names = {"chat:4": "Straße", "mail:General": "Newsletter", "chat:2": "general-talk", "chat:1": "General"}
    async with open_world(tmp_path, clock) as world:
        for place, name in names.items():
            await world.say("hello", where=place, name=name)
            world.moment[0] += timedelta(seconds=1)
        result = await world.recall(channel=wanted)
        assert result.get("channel_id") == found
        if found is None:
            assert "No channel matches" in result["summary"]
            assert [channel["channel_id"] for channel in result["available_channels"]] == list(names)[::-1]


@pytest.mark.parametrize("text", INJECTIONS)
async def test_nothing_in_the_arguments_is_anything_but_text(tmp_path: Path, clock: MockClock, text: str) -> None:
    async with open_world(tmp_path, clock) as world:
        await world.say("a quiet word", name="room")
        await world.say("the secret of bob", who="Bob", where="t:dm:bob", direct=True)
        await world.say(f"odd {text} sign")
        await world.learn()
        for arguments in (
            {"query": text}, {"channel": text}, {"query": "quiet", "person": text}, {"query": text, "channel": "room"},
            {"query": text, "person": "ann", "channel": "room", "before": "2027-01-01", "after": "2020-01-01"},
            {"channel": "room", "person": "ann", "query": "  "},
        ):  # fmt: skip
            assert "secret" not in json.dumps(await world.recall(**arguments))
        assert len(await world.texts(channel="room")) == 2


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-3, 1), ("2", 2), (None, 10), (999, 50)])
async def test_the_number_of_results_and_their_size_are_held_in_bounds(
    tmp_path: Path, clock: MockClock, asked: object, given: int
) -> None:
    async with open_world(tmp_path, clock) as world:
        for number in range(60):
            await world.say(f'note {number} "quoted" ' + "long talk 😀\n" * 400)
        result = await world.recall(query="note talk", limit=asked)
        assert len(result["messages"]) == given
        whole = await world.recall(channel="t:room", limit=100)
        assert len(whole["messages"]) == 60
        assert whole["messages"][3]["content"].endswith("bytes in all]")
        (alone,) = (await world.recall(channel="t:room", limit=1))["messages"]
        assert alone["content"].count("long talk") == 400


async def test_messages_of_an_older_program_become_searchable(tmp_path: Path, clock: MockClock) -> None:
    older = tmp_path / "sql"
    older.mkdir()
    for file in package_file("storage", "sql").glob("*.sql"):
        if file.name < "0005":
            shutil.copy(file, older)
    async with open_database(tmp_path / "spacebot.db", older) as database:

        def write(c: Connection) -> None:  # as the program of that time did
            c.execute(
                "INSERT INTO channels (id, platform, last_seq, created_at, last_activity_at) "
                "VALUES ('t:room', 't', 3, '2026-03-01T12:00:00Z', '2026-03-01T12:00:00Z')"
            )
            c.executemany(
                "INSERT INTO conversation_messages (id, channel_id, seq, role, sender_id, sender_name, content, "
                "created_at) VALUES (?, 't:room', ?, 'user', ?, ?, ?, '2026-03-01T12:00:00Z')",
                [
                    (f"m{number}", number + 1, who.casefold(), who, f"an old tale of dragons, part {number}")
                    for number, who in enumerate(("Ann", "Bob", "Ann"))
                ],
            )

        await database.write(write)
    async with open_world(tmp_path, clock) as world:
        assert len(await world.texts(query="dragons")) == 3
        assert set(await world.texts(query="dragons", person="bob")) == {"an old tale of dragons, part 1"}
        await world.learn()
        assert "; meaning" in (await world.recall(query="dragons"))["messages"][0]["why"]
        people = await world.log.participants(ConversationId("t:room"))
        assert people == [Participant(id="ann", name="Ann"), Participant(id="bob", name="Bob")]


def test_a_person_is_meant_by_name_then_prefix_then_part() -> None:
    people = [Participant(id="1", name="Ann"), Participant(id="2", name="Annika"), Participant(id="3", name="Joann")]
    assert match_people(people, "ANN") == ("1",)
    assert match_people(people, "anni") == ("2",)
    assert match_people(people, "oann") == ("3",)
    assert match_people([*people, Participant(id="4", name="ann")], "@ann") == ("1", "4")
    assert match_people(people, "2") == ("2",)
    assert match_people(people, " ") == match_people(people, "Zoe") == ()


def test_names_are_taken_out_of_what_is_looked_for_by_meaning() -> None:
    people = [Participant(id="1", name="Ann Lee"), Participant(id="2", name="Will"), Participant(id="3", name="Jörg")]
    asked = read("When did Ann's sister, or Will, move?", NOON.date())
    named = named_in(asked, people)
    assert named == {"ann": frozenset({"1"}), "will": frozenset({"2"})}
    assert "Ann" not in asked.about(tuple(named)).meaning
    assert "sister" in asked.about(tuple(named)).meaning
    assert named_in(read("Will it rain", NOON.date()), people[:1]) == {}
    assert named_in(read("what does jorg eat", NOON.date()), people) == {"jorg": frozenset({"3"})}
