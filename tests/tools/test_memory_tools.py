"""The memory tools as a model meets them: arguments in, JSON out."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.errors import ToolError
from spacebot.base.events import EventBus
from spacebot.base.ids import new_uuid
from spacebot.base.paths import package_file
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.llm.messages import ToolCall
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.types import Provenance
from spacebot.storage.database import open_database
from spacebot.tools.contract import Tool, parse_arguments, schema_of
from spacebot.tools.memory import (
    ChannelRecall,
    KnownChannel,
    MemoryDelete,
    MemoryRecall,
    MemorySave,
    TranscriptLine,
    resolve_channel,
)
from tests.fakes.fake_embedder import FakeEmbedder

ROOM = Provenance(channel_id="chat:room", user_id="ann", message_id="m1", source="branch")
DIRECT = Provenance(channel_id="chat:dm", user_id="ann", is_direct=True)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
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
        relevance = f"{hit['relevance_score']:.3g}"
        assert found["summary"] == (
            f"1. [decision, importance 0.80, relevance {relevance}] {hit['id']}: The team ships on Fridays."
        )
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
        assert second["skipped_associations"] == [invented, "x' OR 1=1 --"]
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


@pytest.mark.parametrize("tool", [MemorySave, MemoryRecall, MemoryDelete, ChannelRecall])
def test_schemas_and_descriptions_are_small(tool: type[Tool]) -> None:
    assert len(json.dumps(schema_of(tool.arguments))) < 1200
    description = Path(__file__).parents[2] / "prompts" / "tools" / f"{tool.name}.md"
    assert 40 < len(description.read_bytes()) <= 350


class Transcripts:
    """Two rooms and two direct chats in memory."""

    def __init__(self) -> None:
        self.names = {"chat:1": "General", "chat:2": "general-talk", "mail:General": "Newsletter", "chat:dm:bob": "bob"}
        self.asked: dict[str, Any] = {}

    async def channels(self, *, visible_to: str | None) -> Sequence[KnownChannel]:
        return [
            KnownChannel(id=key, name=name, last_activity=NOON)
            for key, name in self.names.items()
            if ":dm:" not in key or key == visible_to
        ]

    async def transcript(self, channel_id: str, **asked: Any) -> Sequence[TranscriptLine]:
        self.asked = asked
        return [TranscriptLine(role="user", sender="Ann", content="hello", timestamp=NOON)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("GENERAL", "chat:1"),
        ("#general", "chat:1"),
        ("general-", "chat:2"),
        ("TALK", "chat:2"),
        ("MAIL:", "mail:General"),
        ("nothing", None),
        ("#", None),
    ],
)
async def test_a_channel_is_found_by_name_before_prefix_before_part_before_id(wanted: str, found: str | None) -> None:
    channel = resolve_channel(await Transcripts().channels(visible_to=None), wanted)
    assert (channel and channel.id) == found


async def test_a_transcript_is_read_with_its_bounds() -> None:
    transcripts = Transcripts()
    tool = ChannelRecall(transcripts=transcripts, visible_to="chat:2")
    result = await call(tool, channel="general", limit=500, after="2026-03-01T10:00:00+02:00", oldest_first=True)
    assert (result["action"], result["channel_id"]) == ("transcript", "chat:1")
    assert result["messages"] == [
        {"role": "user", "sender": "Ann", "content": "hello", "timestamp": "2026-03-01T12:00:00.000Z"}
    ]
    assert transcripts.asked["limit"] == 100
    assert transcripts.asked["after"] == datetime(2026, 3, 1, 8, tzinfo=UTC)
    assert (transcripts.asked["before"], transcripts.asked["oldest_first"]) == (None, True)
    assert transcripts.asked["visible_to"] == "chat:2"


async def test_a_direct_chat_of_others_is_neither_listed_nor_found() -> None:
    for wanted in ({}, {"channel": "bob"}, {"channel": "chat:dm:bob"}):
        result = await call(ChannelRecall(transcripts=Transcripts(), visible_to="chat:1"), **wanted)
        assert result["action"] == "list"
        assert "bob" not in json.dumps(result["available_channels"])
    own = await call(ChannelRecall(transcripts=Transcripts(), visible_to="chat:dm:bob"), channel="bob")
    assert own["action"] == "transcript"


async def test_a_moment_that_is_none_is_explained() -> None:
    with pytest.raises(ToolError, match="before"):
        await call(ChannelRecall(transcripts=Transcripts(), visible_to=None), channel="general", before="yesterday")
