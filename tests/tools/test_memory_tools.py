"""The memory tools as a model meets them: arguments in, JSON out."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.clock import Clock
from spacebot.base.errors import ToolError
from spacebot.base.events import EventBus
from spacebot.base.ids import ConversationId, MemoryId, new_uuid
from spacebot.base.paths import package_file
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.conversations.log import Conversations
from spacebot.conversations.message_search import MessageSearch
from spacebot.conversations.records import Participant
from spacebot.llm.messages import ToolCall
from spacebot.memory.curation_log import CurationLog
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.types import Provenance
from spacebot.messaging.messages import Author, InboundMessage
from spacebot.storage.database import open_database
from spacebot.tools.contract import RESULT_CAP, Tool, parse_arguments, schema_of
from spacebot.tools.memory import MemoryDelete, MemoryRecall, MemorySave
from spacebot.tools.persistence import MemoryPersistenceComplete, PersistenceOutcome, PersistenceResult
from spacebot.tools.recall_channel import ChannelRecall
from tests.fakes.fake_embedder import FakeEmbedder

ROOM = Provenance(channel_id="chat:room", user_id="ann", message_id="m1", source="branch")
DIRECT = Provenance(channel_id="chat:dm", user_id="ann", is_direct=True)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEOPLE = [
    Participant(id="ann", name="Ann Lee"), Participant(id="u-2", name="Bob"), Participant(id="u-3", name="bob"),
    Participant(id="u-4", name="Jörg"), Participant(id="u-5", name="Ann Smith"),
]  # fmt: skip
OpenMemory = Callable[[], AbstractAsyncContextManager[AgentMemory]]


@pytest.fixture
def open_agent_memory(tmp_path: Path) -> OpenMemory:
    @asynccontextmanager
    async def open_it() -> AsyncIterator[AgentMemory]:
        async with open_database(tmp_path / "spacebot.db", package_file("storage", "sql")) as database:
            async with open_memory(
                database, tmp_path / "lancedb", embedder=FakeEmbedder(), events=EventBus(), agent_id="main"
            ) as memory:
                yield memory

    return open_it


async def call(tool: Tool, **arguments: Any) -> dict[str, Any]:
    node: Node = Tree().add(NodeKind.BRANCH, "test")
    parsed = parse_arguments(tool, ToolCall(id="1", name=tool.name, arguments=arguments))
    output = await tool.call(parsed, node)
    assert not output.is_error
    result: dict[str, Any] = json.loads(output.text)
    return result


async def test_save_then_recall_then_delete(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM)
        recall = MemoryRecall(memory=memory, viewer=ROOM.viewer)
        delete = MemoryDelete(memory=memory, viewer=ROOM.viewer)
        saved = await call(save, content="The team ships on Fridays.", memory_type="decision")
        assert (saved["success"], saved["message"]) == (True, "Saved as decision with importance 0.80.")

        found = await call(recall, query="when does the team ship?")
        (hit,) = found["memories"]
        assert (hit["id"], hit["content"]) == (saved["memory_id"], "The team ships on Fridays.")
        assert (hit["memory_type"], hit["importance"], found["total_found"]) == ("decision", 0.8, 1)
        assert 0.1 < hit["relevance_score"] <= 1
        assert hit["why"].startswith("words: team, ship; meaning 0.")
        line = re.fullmatch(r"1\. \[decision, importance 0\.80, relevance (.*), (.*)\] (.*): (.*)", found["summary"])
        assert line is not None
        assert line.groups()[1:] == (hit["created_at"][:10], hit["id"], "The team ships on Fridays.")
        assert float(line[1]) == pytest.approx(hit["relevance_score"], abs=0.01)
        assert (await memory.get(saved["memory_id"])).message_id == "m1"

        assert (await call(delete, memory_id=hit["id"], reason="changed"))["forgotten"] is True
        assert (await call(delete, memory_id=hit["id"]))["forgotten"] is False
        assert await call(recall, query="ship") == {"memories": [], "total_found": 0, "summary": "No memories found."}


async def test_the_model_cannot_choose_where_a_memory_belongs(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=DIRECT)
        saved = await call(save, content="A secret wish.", channel_id="chat:room", is_direct=False, user_id="bob")
        elsewhere = MemoryRecall(memory=memory, viewer=ROOM.viewer)
        assert (await call(elsewhere, query="secret wish"))["total_found"] == 0
        delete = MemoryDelete(memory=memory, viewer=ROOM.viewer)
        assert (await call(delete, memory_id=saved["memory_id"]))["forgotten"] is False
        assert (await call(MemoryRecall(memory=memory, viewer=DIRECT.viewer), query="secret"))["total_found"] == 1


async def test_links_to_invented_ids_are_reported(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM)
        first = await call(save, content="Old plan.")
        invented = new_uuid()
        second = await call(
            save,
            content="New strategy for spring.",
            associations=[
                {"target_id": first["memory_id"], "relation_type": "updates", "weight": "0.9"},
                {"target_id": invented},
                {"target_id": "x' OR 1=1 --"},
            ],
        )
        assert second["skipped_associations"] == [invented, "x' or 1=1 --"]
        assert "take ids from memory_recall" in second["message"]
        (edge,) = await memory.associations(second["memory_id"])
        assert (edge.relation_type, edge.weight) == ("updates", 0.9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"memory_type": "memo", "content": "x"}, ["memory_type", "'fact'", "'todo'"]),
        ({"importance": 2, "content": "x"}, ["importance", "less than or equal to 1"]),
        ({}, ["content"]),
        (
            {"content": "x", "associations": [{"target_id": "y", "relation_type": "likes"}]},
            ["'related_to'", "'part_of'"],
        ),
        ({"content": "   "}, ["empty"]),
        ({"content": "ä" * 25_001}, ["50000 bytes"]),
    ],
)
async def test_wrong_arguments_of_save_are_explained(
    open_agent_memory: OpenMemory, arguments: dict[str, Any], words: list[str]
) -> None:
    async with open_agent_memory() as memory:
        with pytest.raises(ToolError) as caught:
            await call(MemorySave(memory=memory, provenance=ROOM), **arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "fuzzy"}, ["'hybrid'", "'recent'", "'important'", "'typed'"]),
        ({"sort_by": "name"}, ["'recent'", "'importance'", "'most_accessed'"]),
        ({"query": " "}, ["query"]),
        ({"mode": "typed"}, ["memory_type"]),
    ],
)
async def test_wrong_arguments_of_recall_are_explained(
    open_agent_memory: OpenMemory, arguments: dict[str, Any], words: list[str]
) -> None:
    async with open_agent_memory() as memory:
        with pytest.raises(ToolError) as caught:
            await call(MemoryRecall(memory=memory, viewer=ROOM.viewer), **arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-3, 1), (2, 2), ("2", 2), (999, 4)])
async def test_the_number_of_results_is_held_in_bounds(
    open_agent_memory: OpenMemory, asked: object, given: int
) -> None:
    async with open_agent_memory() as memory:
        for number in range(4):
            await call(MemorySave(memory=memory, provenance=ROOM), content=f"note {number}")
        found = await call(MemoryRecall(memory=memory, viewer=ROOM.viewer), query="note", max_results=asked)
    assert (len(found["memories"]), found["total_found"]) == (given, 4)


@pytest.mark.parametrize("tool", [MemorySave, MemoryRecall, MemoryDelete, ChannelRecall, MemoryPersistenceComplete])
def test_schemas_and_descriptions_are_small(tool: type[Tool]) -> None:
    assert len(json.dumps(schema_of(tool.arguments))) < 1200
    description = Path(__file__).parents[2] / "prompts" / "tools" / f"{tool.name}.md"
    assert 40 < len(description.read_bytes()) <= 420


@pytest.mark.parametrize(
    ("person", "subject", "words"),
    [
        ("ANN LEE", "chat:ann", None), ("@jörg", "chat:u-4", None), ("U-5", "chat:u-5", None),
        ("smith", "chat:u-5", None),
        ("Bob", None, "Several people"), ("ann", "chat:ann", None), ("Lee'; --", None, "Nobody here"),
        ("Zoe", None, "here are: Ann Lee"), ("\u202e😀", None, "Nobody here"), (" ", None, None),
        ("An", None, "Nobody"),
    ],
)  # fmt: skip
async def test_whom_a_memory_is_about_is_found_among_those_present(
    open_agent_memory: OpenMemory, person: str, subject: str | None, words: str | None
) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM, people=PEOPLE)
        saved = await call(save, content="Likes to sail.", person=person)
        assert (await memory.get(saved["memory_id"])).subject == saved.get("person") == subject
        assert (words in saved["message"]) if words else saved["message"].endswith("0.60.")
        if subject:
            (hit,) = (await call(MemoryRecall(memory=memory, viewer=ROOM.viewer), query="sail"))["memories"]
            assert hit["about"] == subject


async def test_what_happened_earlier_keeps_its_date(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM, happened_at=NOON)
        for given, kept in (
            (None, NOON), ("2025-12-24", datetime(2025, 12, 24, tzinfo=UTC)),
            ("2026-01-01T00:30+01:00", datetime(2025, 12, 31, 23, 30, tzinfo=UTC)),
        ):  # fmt: skip
            saved = await call(save, content=f"The harbour froze, said on {given}.", happened_at=given)
            assert (await memory.get(saved["memory_id"])).created_at == kept
        for wrong in ("yesterday", "9999-12-31T23:59:59-14:00", "0999-01-01", "2100-01-01", "2026-02-30"):
            with pytest.raises(ToolError, match=r"happened_at|future"):
                await call(save, content="Never.", happened_at=wrong)
        undated = MemorySave(memory=memory, provenance=ROOM)
        saved = await call(undated, content="It thawed again.")
        assert datetime.now(UTC) - (await memory.get(saved["memory_id"])).created_at < timedelta(hours=1)


async def test_provenance_is_the_process_s_own(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        first = await call(MemorySave(memory=memory, provenance=ROOM), content="One.", source="ingest:fake.txt")
        second = await call(
            MemorySave(memory=memory, provenance=DIRECT), content="Two.", source="  a \ud800 letter " * 50
        )
        one, two = await memory.get(first["memory_id"]), await memory.get(second["memory_id"])
        assert (one.channel_id, one.user_id, one.message_id, one.source) == ("chat:room", "ann", "m1", "branch")
        assert two.source is not None
        assert len(two.source.encode()) <= 200
        assert two.is_private


async def test_what_is_nearly_the_same_is_named_with_its_words(open_agent_memory: OpenMemory) -> None:
    words = "the quarterly report of the northern office is due every third friday before noon by courier not mail"
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM)
        first = await call(save, content=words)
        second = await call(save, content=f"{words} really")
        (near,) = second["near_duplicates"]
        assert (near["id"], near["content"]) == (first["memory_id"], words)
        assert 0.95 < near["similarity"] <= 1
        assert "delete what is out of date" in second["message"]


async def test_recall_says_when_and_where_it_was_learned(tmp_path: Path) -> None:
    async with open_database(tmp_path / "spacebot.db", package_file("storage", "sql")) as database:
        events, embedder = EventBus(), FakeEmbedder()
        log = Conversations(database, Clock())
        for place, name, direct in (("chat:room", "harbour", False), ("chat:dm", "Ann", True)):
            await log.accept(
                InboundMessage(
                    platform="chat", conversation_id=ConversationId(place), author=Author(id="ann", name="Ann"),
                    text="hello", sent_at=NOON, is_direct=direct, channel_name=name,
                )
            )  # fmt: skip
        async with open_memory(
            database, tmp_path / "lancedb", embedder=embedder, events=events, agent_id="main"
        ) as memory:
            await call(MemorySave(memory=memory, provenance=ROOM), content="Boats are painted in spring.")
            await call(MemorySave(memory=memory, provenance=DIRECT), content="Boats make Ann happy.")
            later = Clock(now=lambda: datetime.now(UTC) + timedelta(days=3, hours=1))
            search = MessageSearch(database, embedder, events=events, agent_id="main")

            async def places(provenance: Provenance) -> dict[str, Any]:
                recall = MemoryRecall(memory=memory, viewer=provenance.viewer, messages=search, clock=later)
                found = await call(recall, query="boats")
                assert {hit["age_days"] for hit in found["memories"]} == {3}
                return {hit["content"]: hit.get("learned_in") for hit in found["memories"]}

            shared = {"Boats are painted in spring.": "harbour"}
            assert await places(ROOM) == shared
            assert await places(DIRECT) == {**shared, "Boats make Ann happy.": "a direct chat"}


async def test_many_long_memories_fit_what_a_model_reads(open_agent_memory: OpenMemory) -> None:
    async with open_agent_memory() as memory:
        save = MemorySave(memory=memory, provenance=ROOM)
        ids = [(await call(save, content=f"note {n} " + '"long" 😀\n' * 2000))["memory_id"] for n in range(20)]
        found = await call(MemoryRecall(memory=memory, viewer=ROOM.viewer), mode="recent", max_results=50)
        assert {hit["id"] for hit in found["memories"]} == set(ids)
        assert len(json.dumps(found, ensure_ascii=False).encode()) <= RESULT_CAP
        assert all(hit["content"].endswith("bytes in all]") for hit in found["memories"])
        one = await call(MemoryRecall(memory=memory, viewer=ROOM.viewer), mode="recent", max_results=1)
        assert one["memories"][0]["content"].count("long") == 2000


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE memories; --", '" OR 1=1 --', "NEAR(a b)", "a\0b", "\u202e😀", "\ud800"]
)
async def test_nothing_in_the_arguments_is_anything_but_text(open_agent_memory: OpenMemory, text: str) -> None:
    async with open_agent_memory() as memory:
        secret = await call(MemorySave(memory=memory, provenance=DIRECT), content="The secret wish.")
        save = MemorySave(memory=memory, provenance=ROOM, people=PEOPLE)
        await call(save, content=f"odd {text} words", person=text, source=text, associations=[{"target_id": text}])
        recall = MemoryRecall(memory=memory, viewer=ROOM.viewer)
        for query in (text, f"odd {text} words"):
            assert "wish" not in json.dumps(await call(recall, query=query))
        delete = MemoryDelete(memory=memory, viewer=ROOM.viewer)
        assert (await call(delete, memory_id=text, reason=text))["forgotten"] is False
        found = (await call(recall, query="odd words"))["memories"]
        assert len(found) == 1
        assert (await call(delete, memory_id=found[0]["id"].upper(), reason=text))["forgotten"] is True
        assert (await memory.get(secret["memory_id"])).content == "The secret wish."


async def test_a_forgotten_memory_is_on_record_with_its_reason(tmp_path: Path) -> None:
    async with open_database(tmp_path / "spacebot.db", package_file("storage", "sql")) as database:
        async with open_memory(
            database, tmp_path / "lancedb", embedder=FakeEmbedder(), events=EventBus(), agent_id="main"
        ) as memory:
            shown = await call(MemorySave(memory=memory, provenance=ROOM), content="Ships sail on Fridays.")
            hidden = await call(MemorySave(memory=memory, provenance=DIRECT), content="A secret wish.")
            for saved, provenance in ((shown, ROOM), (hidden, DIRECT)):
                delete = MemoryDelete(memory=memory, viewer=provenance.viewer)
                said = await call(delete, memory_id=saved["memory_id"], reason="the wish was granted")
                assert said["reason"] == "the wish was granted"
        events, total = await CurationLog(database, Clock()).page(limit=5, event_type="memory_forgotten")
        assert total == 2
        assert [dict(event.details) for event in events] == [
            {"memory_id": hidden["memory_id"]},  # why a private one went is nobody's business
            {"memory_id": shown["memory_id"], "reason": "the wish was granted"},
        ]
        reasons = await database.read(lambda c: c.execute("SELECT forget_reason FROM memories").fetchall())
        assert [row[0] for row in reasons] == ["the wish was granted"] * 2


class TestPersistenceComplete:
    """The run ends only with a report that is true."""

    async def run_of(self, memory: AgentMemory, *contents: str) -> tuple[MemoryPersistenceComplete, list[str]]:
        save = MemorySave(memory=memory, provenance=ROOM)
        ids = [(await call(save, content=content))["memory_id"] for content in contents]
        return MemoryPersistenceComplete(save), ids

    async def end(self, tool: MemoryPersistenceComplete, **arguments: Any) -> dict[str, Any]:
        node: Node = Tree().add(NodeKind.BRANCH, "test")
        output = await tool.call(parse_arguments(tool, ToolCall(id="1", name=tool.name, arguments=arguments)), node)
        assert output.ends_turn
        result: dict[str, Any] = json.loads(output.text)
        return result

    async def test_a_true_report_ends_the_run(self, open_agent_memory: OpenMemory) -> None:
        async with open_agent_memory() as memory:
            tool, (one, two) = await self.run_of(memory, "Ann sails.", "Bob paints.")
            assert tool.result is None
            said = await self.end(tool, outcome="saved", saved_memory_ids=[two.upper(), f" {one} "])
            assert said == {"recorded": True, "outcome": "saved", "saved_memory_ids": [one, two]}
            assert tool.result == PersistenceResult(
                outcome=PersistenceOutcome.SAVED, memory_ids=(MemoryId(one), MemoryId(two)), reason=None
            )
            again = await self.end(tool, outcome="no_memories", reason="a second word changes nothing")
            assert again == said

    async def test_nothing_worth_keeping_needs_a_reason(self, open_agent_memory: OpenMemory) -> None:
        async with open_agent_memory() as memory:
            tool, _ = await self.run_of(memory)
            for reason in (None, "", " ab "):
                with pytest.raises(ToolError, match="reason"):
                    await self.end(tool, outcome="no_memories", reason=reason)
            await self.end(tool, outcome="no_memories", reason="only greetings")
            assert tool.result is not None
            assert (tool.result.memory_ids, tool.result.reason) == ((), "only greetings")

    async def test_what_was_known_before_may_be_named_but_is_no_new_memory(self, open_agent_memory: OpenMemory) -> None:
        async with open_agent_memory() as memory:
            _, (old,) = await self.run_of(memory, "Ann sails.")
            tool, (same,) = await self.run_of(memory, "ann  SAILS.")
            assert same == old
            with pytest.raises(ToolError, match="nothing new was saved"):
                await self.end(tool, outcome="saved", saved_memory_ids=[old])
            tool, (_, new) = await self.run_of(memory, "Ann sails.", "Bob paints.")
            assert (await self.end(tool, outcome="saved", saved_memory_ids=[old, new]))["saved_memory_ids"] == [new]

    @pytest.mark.parametrize("invented", ["123e4567-e89b-42d3-a456-426614174000", "x' OR 1=1 --", "", "\u202e😀"])
    async def test_a_false_report_is_refused_with_the_difference(
        self, open_agent_memory: OpenMemory, invented: str
    ) -> None:
        async with open_agent_memory() as memory:
            tool, (one, two) = await self.run_of(memory, "Ann sails.", "Bob paints.")
            for named, words in (
                ([one], ["saved but not named", two]),
                ([one, two, invented], ["named but not saved", repr(invented.lower())]),
                ([one, one, two], ["twice"]),
                ([], [one, two]),
            ):
                with pytest.raises(ToolError) as caught:
                    await self.end(tool, outcome="saved", saved_memory_ids=named)
                assert all(word in str(caught.value) for word in words)
            with pytest.raises(ToolError, match=one):
                await self.end(tool, outcome="no_memories", reason="nothing of note")
            assert tool.result is None
            empty, _ = await self.run_of(memory)
            with pytest.raises(ToolError, match="must be empty"):
                await self.end(empty, outcome="no_memories", reason="nothing", saved_memory_ids=[invented])
