"""The durable log: each method is one promise about exactly once."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, MessageId, NodeId, TurnId, new_uuid
from spacebot.base.paths import package_file
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.fate import find_fate
from spacebot.conversations.log import Conversations
from spacebot.conversations.records import BranchRun, LedgerState, Standing, TurnState, WorkerRun
from spacebot.conversations.recovery import MAX_ATTEMPTS
from spacebot.messaging.messages import Attachment, OutboundKind, ReplyPreview
from spacebot.storage.database import Connection, open_database
from tests.fakes.opened import DIRECT, EPOCH, ROOM, text_from

CHANNEL = ConversationId(DIRECT)
TURN = TurnId("turn")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Conversations]:
    clock = Clock(now=lambda: EPOCH)
    async with open_database(tmp_path / "log.db", package_file("storage", "sql"), clock) as database:
        yield Conversations(database, clock)


def worker_run(**fields: object) -> WorkerRun:
    values = {"id": NodeId("w"), "channel_id": CHANNEL, "task": "work", "task_type": None, "is_interactive": False}
    return WorkerRun(**{**values, "turn_id": TURN, "reply_to": None, **fields})  # type: ignore[arg-type]


async def fate_of(log: Conversations, message_id: MessageId) -> LedgerState:
    fate = await log.fate(message_id)
    assert fate is not None
    return fate.state


async def test_a_message_comes_back_from_the_journal_as_it_was(log: Conversations) -> None:
    message = text_from(
        "Ann",
        "hi",
        platform_id="m1",
        mentions_bot=True,
        reply_to=ReplyPreview(author="Bob", text="?"),
        server_name="S",
        channel_name="general",
        metadata={"message_id": 7},
        attachments=(Attachment(filename="a.png", media_type="image/png", url="u", size_bytes=5),),
    )
    await log.accept(message)
    (journalled,) = (await log.recover()).messages
    assert journalled.message == message
    assert (journalled.seq, journalled.attempts) == (1, 0)


async def test_the_ledger_follows_the_turn(log: Conversations) -> None:
    accepted = await log.accept(text_from("Ann", "hi"))
    assert await fate_of(log, accepted.message_id) is LedgerState.ACCEPTED
    await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
    assert await fate_of(log, accepted.message_id) is LedgerState.IN_TURN
    await log.record_reply(TURN, CHANNEL, "hello", reply_to=accepted.message_id)
    assert await fate_of(log, accepted.message_id) is LedgerState.ANSWERED
    await log.finish_turn(TURN, TurnState.FAILED, channel_id=CHANNEL, detail="too late")
    assert await fate_of(log, accepted.message_id) is LedgerState.ANSWERED  # what was answered stays so


@pytest.mark.parametrize("kind", [OutboundKind.REACTION, OutboundKind.NOTICE])
async def test_a_reaction_is_no_answer(kind: OutboundKind, log: Conversations) -> None:
    accepted = await log.accept(text_from("Ann", "hi"))
    await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
    await log.record_reply(TURN, CHANNEL, "🙂", kind=kind, reply_to=accepted.message_id)
    assert await fate_of(log, accepted.message_id) is LedgerState.IN_TURN


async def test_a_later_result_answers_what_was_put_off(log: Conversations) -> None:
    accepted = await log.accept(text_from("Ann", "hi"))
    await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
    await log.finish_turn(TURN, TurnState.SKIPPED, channel_id=CHANNEL, detail="work first")
    later = TurnId("later")
    await log.begin_turn(later, CHANNEL, "results", [])
    await log.record_reply(later, CHANNEL, "here it is", reply_to=accepted.message_id)
    assert await fate_of(log, accepted.message_id) is LedgerState.ANSWERED


async def test_what_is_only_observed_is_never_handed_out(log: Conversations) -> None:
    accepted = await log.accept(text_from("Ann", "among us"), observe=True)
    assert (await log.recover()).messages == ()
    assert await fate_of(log, accepted.message_id) is LedgerState.OBSERVED
    assert [row.content for row in await log.history(CHANNEL)] == ["among us"]


@pytest.mark.spec("P57", "P60")
async def test_a_process_ends_once(log: Conversations) -> None:
    await log.accept(text_from("Ann", "hi"))
    await log.start_worker(worker_run())
    end = {"status": "", "transcript": None, "tool_calls": 1, "tell": True}
    first = await log.finish_worker(worker_run(), Outcome(NodeState.DONE, "found"), **end)  # type: ignore[arg-type]
    second = await log.finish_worker(worker_run(), Outcome(NodeState.CANCELLED, "late"), **end)  # type: ignore[arg-type]
    assert first is not None
    assert second is None
    assert [result.text for result in await log.pending_results(CHANNEL)] == ["found"]

    run = BranchRun(id=NodeId("b"), channel_id=CHANNEL, description="look", turn_id=TURN, reply_to=None)
    await log.start_branch(run)
    assert await log.finish_branch(run, Outcome(NodeState.DONE, "seen"), tool_calls=0, tell=True)
    assert await log.finish_branch(run, Outcome(NodeState.FAILED, "late"), tool_calls=0, tell=True) is None


async def test_a_result_is_told_once(log: Conversations) -> None:
    await log.accept(text_from("Ann", "hi"))
    await log.start_worker(worker_run(is_interactive=True))
    for text in ("one", "two"):
        await log.add_result(worker_run(), Outcome(NodeState.DONE, text), status="", transcript="[]", tool_calls=0)
    one, two = await log.pending_results(CHANNEL)
    await log.begin_turn(TURN, CHANNEL, "results", [])
    await log.record_reply(TURN, CHANNEL, "told", result_ids=[one.id])
    assert await log.pending_results(CHANNEL) == [two]
    await log.finish_turn(TURN, TurnState.DONE, channel_id=CHANNEL, result_ids=[one.id, two.id])
    assert await log.pending_results(CHANNEL) == []


@pytest.mark.spec("P12")
async def test_recovery_hands_out_what_is_open_and_closes_what_is_lost(log: Conversations) -> None:
    answered, open_one = [await log.accept(text_from("Ann", text)) for text in ("one", "two")]
    await log.begin_turn(TURN, CHANNEL, "messages", [answered.message_id, open_one.message_id])
    states = {"idle": NodeState.WAITING, "stopped": NodeState.INTERRUPTED, "killed": NodeState.RUNNING}
    for name, state in states.items():
        await log.start_worker(worker_run(id=NodeId(name), turn_id=None))
        await log.checkpoint_worker(NodeId(name), state=state, status="half way", transcript="[]", tool_calls=2)
    await log.start_branch(
        BranchRun(id=NodeId("b"), channel_id=CHANNEL, description="look", turn_id=None, reply_to=None)
    )
    recovery = await log.recover()
    assert [journalled.attempts for journalled in recovery.messages] == [1, 1]
    assert {run.id: run.state for run in recovery.workers} == {
        "idle": NodeState.WAITING,
        "stopped": NodeState.INTERRUPTED,
    }
    assert [run.id for run in recovery.branches] == ["b"]
    assert recovery.channels_with_results == (CHANNEL,)
    (result,) = await log.pending_results(CHANNEL)
    assert (result.process_id, result.state) == ("killed", NodeState.FAILED)
    assert "half way" in result.text
    fate = await log.fate(answered.message_id)
    assert fate is not None
    assert fate.turn_state == "interrupted"


@pytest.mark.parametrize("has_replied", [True, False])
async def test_what_a_dead_turn_started_lives_on_only_when_it_had_spoken(has_replied: bool, log: Conversations) -> None:
    """Otherwise the turn is taken again, and starts it again."""
    accepted = await log.accept(text_from("Ann", "hi"))
    await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
    await log.start_branch(
        BranchRun(id=NodeId("b"), channel_id=CHANNEL, description="look", turn_id=TURN, reply_to=None)
    )
    if has_replied:
        await log.record_reply(TURN, CHANNEL, "I look", reply_to=accepted.message_id)
    recovery = await log.recover()
    assert len(recovery.branches) == has_replied
    assert len(recovery.messages) == (not has_replied)


@pytest.mark.spec("P36")
async def test_pages_of_rows_of_one_instant_skip_nothing(log: Conversations) -> None:
    for number in range(25):
        await log.accept(text_from("Ann", str(number)))
    newer, before = [], None
    while page := await log.history(CHANNEL, limit=4, before_seq=before):
        newer = page + newer
        before = page[0].seq
    assert [row.content for row in newer] == [str(number) for number in range(25)]
    after = await log.history(CHANNEL, limit=4, after_seq=20)
    assert [row.seq for row in after] == [21, 22, 23, 24]


async def test_conversations_are_listed_latest_first_with_their_kind(log: Conversations) -> None:
    await log.accept(text_from("Ann", "hi"))
    await log.accept(text_from("Bob", "hi", conversation=ROOM, channel_name="general"))
    await log.accept(text_from("Bob", "again", conversation=ROOM))
    records = {record.id: record for record in await log.channels()}
    assert records[CHANNEL].is_direct
    assert not records[ConversationId(ROOM)].is_direct
    assert records[ConversationId(ROOM)].display_name == "general"  # silence does not rename
    assert (await log.standing(CHANNEL)).user_id == "ann"
    assert (await log.standing(ConversationId("test:none"))).user_id is None


async def test_the_writer_of_a_message_is_known_whoever_spoke_since(log: Conversations) -> None:
    ann = await log.accept(text_from("Ann", "hi", conversation=ROOM))
    await log.accept(text_from("Bob", "hi", conversation=ROOM))
    assert (await log.standing(ConversationId(ROOM), ann.message_id)).user_id == "ann"
    assert (await log.standing(ConversationId(ROOM))).user_id == "bob"


@pytest.mark.parametrize("has_direct_first", [True, False])
async def test_who_joins_a_chat_never_gets_what_belongs_to_one_person(
    has_direct_first: bool, log: Conversations
) -> None:
    """A claimed name in a shared session must not stand beside the directness of another message."""
    mine = {}
    for is_direct in (has_direct_first, not has_direct_first):
        author = "Ann" if is_direct else "Owner"
        mine[author] = (await log.accept(text_from(author, "hi", is_direct=is_direct))).message_id
        if is_direct and has_direct_first:
            assert await log.standing(CHANNEL, mine["Ann"]) == Standing(is_direct=True, user_id="ann")
    assert await log.standing(CHANNEL, mine["Owner"]) == Standing(is_direct=False, user_id="owner")
    assert await log.standing(CHANNEL, mine["Ann"]) == Standing(is_direct=False, user_id="ann")
    again = await log.accept(text_from("Ann", "alone again"))
    assert not (await log.standing(CHANNEL, again.message_id)).is_direct
    assert not (await log.standing(CHANNEL)).is_direct


async def test_what_was_said_alone_is_not_shown_elsewhere_because_others_joined(log: Conversations) -> None:
    await log.accept(text_from("Ann", "a secret"))
    await log.accept(text_from("Eve", "now we are two", is_direct=False))
    (record,) = await log.channels()
    assert record.is_direct


async def test_an_unknown_message_has_no_fate(log: Conversations) -> None:
    assert await log.fate("nobody") is None


async def test_a_fate_is_found_by_the_id_before_the_platforms_own_name(log: Conversations) -> None:
    mine = await log.accept(text_from("Ann", "mine", platform_id="c1"))
    await log.accept(text_from("Bob", "a trap", conversation=ROOM, platform_id=mine.message_id))
    await log.accept(text_from("Bob", "reused", conversation=ROOM, platform_id="c1"))
    await log.accept(text_from("Bob", "only here", conversation=ROOM, platform_id="c2"))

    async def text(message_id: str, channel: str | None = None) -> str | None:
        fate = await log.fate(message_id, channel_id=ConversationId(channel) if channel else None)
        return fate and fate.message.content

    assert await text(mine.message_id) == "mine"
    assert await text("c1", DIRECT) == "mine"
    assert await text("c1", ROOM) == "reused"
    assert await text("c2") == "only here"
    assert await text("c2", DIRECT) is None
    assert await text(mine.message_id, DIRECT) == "mine"
    assert await text(mine.message_id, ROOM) == "a trap"


async def test_a_fate_lists_each_reply_once_in_order(log: Conversations) -> None:
    accepted = await log.accept(text_from("Ann", "hi"))
    await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
    await log.record_reply(TURN, CHANNEL, "by turn and message", reply_to=accepted.message_id)
    await log.record_reply(TURN, CHANNEL, "by turn")
    await log.record_reply(TurnId("later"), CHANNEL, "by message", reply_to=accepted.message_id)
    fate = await log.fate(accepted.message_id)
    assert fate is not None
    assert [reply.content for reply in fate.replies] == ["by turn and message", "by turn", "by message"]


class _Noting:
    """A connection that keeps the plan of what it runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.plans: list[str] = []

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        plan = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        self.plans += [step["detail"] for step in plan]
        return self._connection.execute(sql, parameters)


@pytest.mark.parametrize("channel", [None, CHANNEL])
async def test_no_table_is_read_through_for_a_fate(channel: ConversationId | None, tmp_path: Path) -> None:
    def plans(c: Connection, message_id: str) -> list[str]:
        noting = _Noting(c)
        assert find_fate(noting, message_id, channel) is not None  # type: ignore[arg-type]
        return noting.plans

    async with open_database(tmp_path / "log.db", package_file("storage", "sql")) as database:
        log = Conversations(database, Clock())
        accepted = await log.accept(text_from("Ann", "hi", platform_id="m1"))
        await log.begin_turn(TURN, CHANNEL, "messages", [accepted.message_id])
        await log.record_reply(TURN, CHANNEL, "hello", reply_to=accepted.message_id)
        found = [
            step
            for name in (accepted.message_id, "m1")
            for step in await database.read(partial(plans, message_id=name))
        ]
    assert any(step.startswith("SEARCH") for step in found)
    assert [step for step in found if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"] == []


async def test_a_branch_that_dies_with_the_program_too_often_is_given_up(tmp_path: Path) -> None:
    """It may be what kills the program; its channel is told, so that nobody waits for it."""
    path = tmp_path / "log.db"
    run = BranchRun(
        id=NodeId(new_uuid()), channel_id=ConversationId("room:1"), description="think", turn_id=None, reply_to=None
    )
    async with open_database(path, package_file("storage", "sql")) as database:
        log = Conversations(database, Clock())
        await log.accept(text_from("ann", "hi", conversation="room:1"))
        await log.start_branch(run)
    for _ in range(MAX_ATTEMPTS - 1):
        async with open_database(path, package_file("storage", "sql")) as database:
            log = Conversations(database, Clock())
            assert [branch.id for branch in (await log.recover()).branches] == [run.id]
            await log.start_branch(run)
    async with open_database(path, package_file("storage", "sql")) as database:
        log = Conversations(database, Clock())
        recovery = await log.recover()
        results = await log.pending_results(run.channel_id)
    assert recovery.branches == ()
    assert [(result.process_id, result.state) for result in results] == [(run.id, NodeState.FAILED)]
