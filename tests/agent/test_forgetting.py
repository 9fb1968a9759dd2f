"""Everything about a person goes, to the last byte; what others said stays, and so do numbers and ledger."""

import json
import logging
import sqlite3
import threading
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.forgetting import Forgetting, _drop_lines
from spacebot.agent.pacing import RESULT_DEBOUNCE_S, RETRY_S
from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, StorageError, ToolError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.log_file import LogFile
from spacebot.base.paths import AgentPaths, package_file
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import Accepted, LedgerState, SummaryKind
from spacebot.llm.messages import ModelRequest, ToolResult
from spacebot.memory.curation_log import CurationLog
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import open_memory
from spacebot.memory.types import NewMemory, Provenance, Query, Viewer
from spacebot.messaging.messages import ReplyPreview
from spacebot.storage.database import open_database
from spacebot.tools.forgetting import PATIENCE_S, ForgetMe, ForgetMeArguments
from tests.fakes.fake_embedder import FakeEmbedder
from tests.fakes.opened import DIRECT, ROOM, Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Gate, Say, ScriptedModel

ANN, BEN = "test:ann", "test:ben"
SECRETS = ("xylocarp", "vrondelak", "mizzenquat")  # Ann's own words
KEPT = ("umberleaf", "oakenshire")  # Ben's


def found_in(folder: Path, *words: str) -> list[str]:
    """Which words stand anywhere in the bytes of a folder, and where."""
    return [
        f"{word} in {path.relative_to(folder)}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for word in words
        if word.encode() in path.read_bytes().lower()
    ]


async def remember(opened: Opened, content: str, *, user: str, channel: str, subject: str | None = None) -> str:
    provenance = Provenance(channel_id=channel, user_id=user, is_direct=channel == DIRECT)
    saved = await opened.agent.memory.save(NewMemory(content=content, provenance=provenance, subject=subject))
    return saved.memory.id


async def say_in_room(opened: Opened, author: str, text: str, **fields: Any) -> Accepted:
    """Say something where others listen, and let the burst end."""
    accepted = await opened.say(author, text, conversation=ROOM, **fields)
    await opened.advance(5)
    return accepted


async def talk(opened: Opened) -> None:
    """A month in short: two people, a room and a direct chat, memories, work, a summary, log lines."""
    await say_in_room(opened, "Ann", "My dog is called Xylocarp", platform_id="p1")
    await opened.said(1, ROOM)
    await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
    await opened.advance(RESULT_DEBOUNCE_S)
    await opened.said(2, ROOM)
    quoting = ReplyPreview(author="Ann", text="My dog is called Xylocarp")
    await say_in_room(opened, "Ben", "I know a street: Umberleaf", reply_to=quoting)
    await opened.said(3, ROOM)
    await opened.say("Ann", "Between us: I fear the Vrondelak", conversation=DIRECT)
    await opened.said(1, DIRECT)
    dog = await remember(opened, "Ann has a dog called Xylocarp", user="ann", channel=ROOM)
    await remember(opened, "Ann fears the Vrondelak", user="ann", channel=DIRECT)
    await remember(opened, "Ann's brother drives a Mizzenquat", user="ben", channel=ROOM, subject=ANN)
    await remember(opened, "Ben lives in Oakenshire", user="ben", channel=ROOM)
    memoranda = opened.agent._parts.memoranda
    curation = CurationLog(opened.agent._forgetting._database, Clock())
    await curation.add("bulletin_generated", "a bulletin", bulletin_text="Of a Xylocarp", memory_ids=[dog])
    await curation.add("memory_pruned", "something of Ben's was pruned", memory_id="no id of hers")
    await memoranda.record_summary(
        ROOM, first_seq=1, last_seq=2, kind=SummaryKind.BACKGROUND, content="Xylocarp is a dog"
    )
    (opened.folder / "logs").mkdir(exist_ok=True)
    (opened.folder / "logs" / "spacebot.log").write_text(
        "2026-03-01T12:00:00.000Z info a one user='ann' text='xylocarp'\n  traceback with vrondelak\n"
        "2026-03-01T12:00:01.000Z info b two user='ben' text='umberleaf'\n"
    )


def talkers() -> ScriptedModel:
    return ScriptedModel(
        Calls(Call("reply", content="Xylocarp, nice."), Call("branch", description="what is a Xylocarp")),
        Call("reply", content="A Xylocarp is a dog."),
        Call("reply", content="Umberleaf, noted."),
        Call("reply", content="Vrondelak, I see."),
        Call("reply", content="Hello Ben."),
        branch=[Say("a Xylocarp is a dog of Ann's")],
    )


async def test_nothing_of_a_person_is_left_in_any_file(clock: MockClock, tmp_path: Path) -> None:
    model = talkers()
    async with open_test_agent(tmp_path, model) as opened:
        await talk(opened)
        before = await opened.agent.traces_of(ANN)
        done = await opened.agent.forget_person(ANN, reason="asked for by the owner")

        assert found_in(tmp_path, *SECRETS) == []  # with the program running
        left = await opened.agent.memory.recall(Query(viewer=Viewer(channel_id=ROOM), text="Ann dog Ben lives"))
        again = await opened.agent.forget_person(ANN, reason="asked for by the owner")
        await opened.advance(RETRY_S)  # the channels come back
        await say_in_room(opened, "Ben", "who am I")
        await opened.said(4, ROOM)
        history = await opened.agent.conversations.history(ROOM)
        direct = await opened.agent.conversations.history(DIRECT)
        events, _ = await opened.agent.memory_views.events(limit=10, event_type="person_forgotten")

    assert (before.memories, before.messages, before.conversations, before.rooms) == (3, 2, 1, 1)
    assert (done.memories, done.messages, done.replies, done.runs, done.summaries) == (3, 2, 3, 1, 1)
    assert (done.log_lines, done.events) == (1, 1)
    assert (again.memories, again.messages, again.replies) == (0, 0, 0)
    assert [hit.memory.content for hit in left.hits] == ["Ben lives in Oakenshire"]
    assert [row.seq for row in history] == list(range(1, len(history) + 1))
    assert [row.content for row in history if row.kind != "erased"] == [
        "I know a street: Umberleaf", "Umberleaf, noted.", "who am I", "Hello Ben.",
    ]  # fmt: skip
    assert direct == []
    prompt = "".join(message.text for message in model.requests[-1].messages)
    assert "Umberleaf" in prompt
    assert not any(word in prompt.lower() for word in (*SECRETS, "erased"))
    assert found_in(tmp_path, *SECRETS) == []  # and after its end
    assert {word.partition(" ")[0] for word in found_in(tmp_path, *KEPT)} == set(KEPT)
    audit = events[-1]
    assert "ann" not in json.dumps(dict(audit.details)).lower()
    assert (audit.details["memories"], audit.details["messages"]) == (3, 2)


async def test_nothing_is_left_in_the_vector_table(tmp_path: Path) -> None:
    paths = AgentPaths(tmp_path, tmp_path / "workspace")
    paths.create()
    async with (
        open_database(paths.database, package_file("storage", "sql")) as database,
        open_memory(
            database,
            paths.vectors,
            embedder=FakeEmbedder(),
            events=EventBus(),
            agent_id="main",
            index=IndexPolicy(uses_child=False),
        ) as memory,
    ):
        for number in range(40):
            who = Provenance(channel_id=ROOM, user_id="ann" if number % 2 else "ben")
            text = f"{SECRETS[0] if number % 2 else KEPT[0]} number {number}"
            await memory.save(NewMemory(content=text, provenance=who))
        await memory.flush()
        assert any("lancedb" in place for place in found_in(tmp_path, SECRETS[0]))

        done = await Forgetting(database, memory, Clock(), vectors=paths.vectors).forget_person(ANN, reason="asked")

        assert done.memories == 20
        assert found_in(tmp_path, SECRETS[0]) == []
        assert (await memory.recall(Query(viewer=Viewer(channel_id=ROOM), text=SECRETS[0], limit=50))).total_found == 20
    assert any("lancedb" in place for place in found_in(tmp_path, KEPT[0]))
    assert found_in(tmp_path, SECRETS[0]) == []


async def test_what_others_wait_for_is_answered_although_the_conversation_was_cut(
    clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event(), Call("reply", content="too late"))
    model = ScriptedModel(Call("reply", content="Hi Ann."), gate, Call("reply", content="Hi Ben."))
    async with open_test_agent(tmp_path, model) as opened:
        await say_in_room(opened, "Ann", "I am Xylocarp")
        await opened.said(1, ROOM)
        asked = await say_in_room(opened, "Ben", "and I?")
        await gate.arrived.wait()
        await opened.agent.forget_person(ANN, reason="asked for by the owner")
        await opened.advance(RETRY_S)
        await opened.advance(5)
        assert (await opened.said(2, ROOM))[-1] == "Hi Ben."
        assert (await opened.fate(asked)).state is LedgerState.ANSWERED
    assert found_in(tmp_path, "xylocarp") == []


async def test_an_unanswered_message_of_the_person_is_not_answered_any_more(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("reply", content="too late"))
    async with open_test_agent(tmp_path, ScriptedModel(gate)) as opened:
        asked = await say_in_room(opened, "Ann", "Is Xylocarp a name?")
        await gate.arrived.wait()
        await opened.agent.forget_person(ANN, reason="asked for by the owner")
        await opened.advance(RETRY_S)
        fate = await opened.fate(asked)
    assert (fate.state, fate.message.content, fate.replies) == (LedgerState.SKIPPED, "(erased)", ())


async def test_a_namesake_on_another_platform_stays(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await remember(opened, "Ann there likes Umberleaf", user="ann", channel="elsewhere:room")
        await remember(opened, "Ann here likes Xylocarp", user="ann", channel=ROOM)
        done = await opened.agent.forget_person(ANN, reason="asked for by the owner")
        assert done.memories == 1
    assert found_in(tmp_path, "umberleaf")
    assert found_in(tmp_path, "xylocarp") == []


@pytest.mark.parametrize("person", ["", "ann", "test:", ":ann", " : "])
async def test_who_names_nobody_is_refused(clock: MockClock, tmp_path: Path, person: str) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        with pytest.raises(RefusedError, match="PLATFORM:USER"):
            await opened.agent.forget_person(person, reason="asked for by the owner")


@pytest.mark.parametrize("person", ["test:%", "test:' OR 1=1 --", "test:ann*", "%:ann", "test:*"])
async def test_a_name_is_no_pattern(clock: MockClock, tmp_path: Path, person: str) -> None:
    async with open_test_agent(tmp_path, talkers()) as opened:
        await talk(opened)
        done = await opened.agent.forget_person(person, reason="asked for by the owner")
        assert (done.memories, done.messages, done.replies) == (0, 0, 0)
        assert (await opened.agent.traces_of(ANN)).memories == 3


async def test_what_a_full_disk_stopped_is_finished_by_the_next_start(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, talkers()) as opened:
        await talk(opened)
        with closing(sqlite3.connect(opened.database())) as c:  # rows may go, the file may not be written anew
            c.execute("CREATE TRIGGER stuck BEFORE DELETE ON summaries BEGIN SELECT RAISE(ABORT, 'no space'); END")
            c.commit()
        with pytest.raises(StorageError):
            await opened.agent.forget_person(ANN, reason="asked for by the owner")
        with closing(sqlite3.connect(opened.database())) as c:
            c.execute("DROP TRIGGER stuck")
            c.commit()
        assert found_in(tmp_path, *SECRETS)
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        async with opened.agent._forgetting._turn:  # it is at it
            pass
        _, count = await opened.agent.memory_views.events(limit=10, event_type="person_forgotten")
        assert count == 1
        assert (await opened.agent.traces_of(ANN)).messages == 0
    assert found_in(tmp_path, *SECRETS) == []


def tool_of(opened: Opened, accepted: Accepted, user: str = "ann", channel: str = DIRECT) -> ForgetMe:
    """The tool as the branch has it that serves a message."""
    forgetting = opened.agent._forgetting
    provenance = Provenance(channel_id=channel, user_id=user, message_id=accepted.message_id)
    return ForgetMe(desk=forgetting, confirmations=forgetting.confirmations, provenance=provenance)


async def call(opened: Opened, tool: ForgetMe) -> dict[str, Any]:
    node = opened.tree.add(NodeKind.BRANCH, "forget me", parent=opened.tree.get("test"))
    try:
        output = await tool.call(ForgetMeArguments(), node)
    finally:
        opened.tree.remove(node)
    answer: dict[str, Any] = json.loads(output.text)
    return answer


def listeners(count: int) -> ScriptedModel:
    return ScriptedModel(*[Call("reply", content="I see.")] * count)


async def test_who_asks_in_a_chat_is_erased_after_a_second_word(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, listeners(3)) as opened:
        first = await opened.say("Ann", "I am Xylocarp. Forget everything about me")
        await opened.said(1)
        asked = await call(opened, tool_of(opened, first))
        assert asked["scheduled"] is False
        assert asked["amount"] == "1 messages and 0 memories"
        assert (await opened.agent.traces_of(ANN)).messages == 1

        second = await opened.say("Ann", f"yes: {asked['code'].upper()}!")
        await opened.said(2)
        assert (await call(opened, tool_of(opened, second)))["scheduled"] is True
        await opened.advance(1)
        await opened.advance(1)
        async with opened.agent._forgetting._turn:
            assert (await opened.agent.traces_of(ANN)).messages == 0
    assert found_in(tmp_path, "xylocarp") == []


async def test_nobody_is_erased_by_the_words_of_others(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, listeners(9)) as opened:
        first = await opened.say("Ann", "Forget everything about me")
        await opened.said(1)
        code = (await call(opened, tool_of(opened, first)))["code"]
        assert (await call(opened, tool_of(opened, first)))["scheduled"] is False  # the same message is no second one

        other = await say_in_room(opened, "Ben", f"{code} erase Ann, ann, test:ann")
        assert (await call(opened, tool_of(opened, other, "ben", ROOM)))["scheduled"] is False
        with pytest.raises(ToolError, match="own"):  # a message of somebody else
            await call(opened, tool_of(opened, other, "ann", ROOM))
        plain = await opened.say("Ann", "yes, do it, confirmed")
        await opened.said(2, DIRECT)
        code = (await call(opened, tool_of(opened, plain)))["code"]
        await opened.advance(PATIENCE_S + 1)
        late = await opened.say("Ann", code)
        await opened.said(3, DIRECT)
        assert (await call(opened, tool_of(opened, late)))["scheduled"] is False
        await opened.advance(10)
        assert (await opened.agent.traces_of(ANN)).messages == 3
        assert (await opened.agent.traces_of(BEN)).messages == 1


async def test_a_scheduled_erasure_survives_the_end_of_the_program(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, listeners(1)) as opened:
        await opened.say("Ann", "I am Xylocarp")
        await opened.said(1)
        await opened.agent._forgetting.schedule(ANN, DIRECT, "a branch")
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        async with opened.agent._forgetting._turn:
            assert (await opened.agent.traces_of(ANN)).messages == 0
    assert found_in(tmp_path, "xylocarp") == []


async def test_a_person_is_forgotten_by_asking_the_agent(clock: MockClock, tmp_path: Path) -> None:
    """The whole way: said in the chat, asked by the branch's tool, confirmed in a second message, told, erased."""
    codes: list[str] = []

    def think(request: ModelRequest) -> Any:
        results = [part for message in request.messages for part in message.parts if isinstance(part, ToolResult)]
        if not results:
            return Call("forget_me")
        answer = json.loads(results[-1].text)
        codes.extend([answer["code"]] if "code" in answer else [])
        return answer["message"]

    def talk(request: ModelRequest) -> Any:
        text = request.messages[-1].text
        if "<result" in text:
            return Call(
                "reply", content=text.partition("<result")[2].partition(">")[2].partition("</result>")[0].strip()
            )
        return Calls(
            Call("branch", description="they want to be forgotten"), Call("skip", reason="the branch will tell")
        )

    async with open_test_agent(tmp_path, ScriptedModel(talk, branch=think)) as opened:
        await opened.agent.memory.save(
            NewMemory(
                content="Ann sails a catamaran", provenance=Provenance(channel_id=DIRECT, user_id="ann", is_direct=True)
            )
        )
        await opened.say("Ann", "Forget everything about me, I mean the catamaran and all.")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.advance(1)
        (asked,) = await opened.said(1)
        assert codes[0] in asked
        assert (await opened.agent.memory.stats()).total == 1
        await opened.say("Ann", f"Yes: {codes[0]}")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 2)
        await opened.advance(1)
        assert "Confirmed" in (await opened.said(2))[1]
        await opened.advance(60)
        assert (await opened.agent.memory.stats()).total == 0
        with sqlite3.connect(opened.database()) as connection:
            left = connection.execute("SELECT content FROM conversation_messages").fetchall()
        connection.close()
    assert not [content for (content,) in left if "catamaran" in content]


def test_nobody_writes_into_the_log_while_lines_are_taken_out(tmp_path: Path) -> None:
    """A line that came in between would be lost."""
    asked = threading.Event()

    class Watched(LogFile):
        def acquire(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                asked.set()
            super().acquire()

    file = tmp_path / "spacebot.log"
    file.write_text("2026-03-01T12:00:00Z info spoke sender='test:ann'\n2026-03-01T12:00:01Z info rested\n")
    handler = Watched(file)
    logging.getLogger().addHandler(handler)
    try:
        shortening = threading.Thread(target=_drop_lines, args=(tmp_path, ["test:ann"]))
        with handler.lock or nullcontext():
            shortening.start()
            assert asked.wait(10)
            assert "test:ann" in file.read_text()
        shortening.join()
        assert file.read_text() == "2026-03-01T12:00:01Z info rested\n"
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
