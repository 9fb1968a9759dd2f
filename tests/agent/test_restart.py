"""The program stops, in good order or not: everything is answered exactly once."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.pacing import RESULT_DEBOUNCE_S, RETRY_S
from spacebot.base.errors import ModelUnavailableError, StorageError
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import LedgerState
from spacebot.conversations.recovery import MAX_ATTEMPTS
from spacebot.llm.messages import ProcessKind
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, ROOM, broken, freeze_copy, healed, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, ScriptedModel

DONE = Call("set_status", kind="outcome", status="the answer is 42")


@pytest.mark.parametrize("in_good_order", [True, False])
@pytest.mark.spec("P12")
async def test_a_turn_cut_in_the_middle_is_taken_again(in_good_order: bool, clock: MockClock, tmp_path: Path) -> None:
    gate, folder = Gate(trio.Event()), tmp_path / "one"
    async with open_test_agent(folder, ScriptedModel(gate)) as opened:
        accepted = await opened.say("Ann", "hi")
        await gate.arrived.wait()
        waiting = await opened.say("Ann", "and more")
        if not in_good_order:
            folder = freeze_copy(opened, tmp_path / "two")
    async with open_test_agent(folder, ScriptedModel(Call("reply", content="hello"))) as opened:
        assert await opened.said(1) == ["hello"]
        await opened.ended(1)
        await opened.settled()
        fates = [await opened.fate(one) for one in (accepted, waiting)]

    assert [fate.state for fate in fates] == [LedgerState.ANSWERED] * 2
    assert fates[0].coalesced_with == (waiting.message_id,)
    assert [len(fate.replies) for fate in fates] == [1, 1]


async def test_what_was_answered_is_not_answered_again(clock: MockClock, tmp_path: Path) -> None:
    """The reply is on disk, the end of the turn is not."""
    gate, folder = Gate(trio.Event()), tmp_path / "one"
    model = ScriptedModel(Calls(Call("reply", content="hello"), Call("nonsense")), Call("skip"))
    async with open_test_agent(folder, model) as opened:
        opened.model.add(ProcessKind.CHANNEL, gate)
        accepted = await opened.say("Ann", "hi")
        await opened.said(1)
        folder = freeze_copy(opened, tmp_path / "two")
    async with open_test_agent(folder, ScriptedModel()) as opened:
        await opened.settled()
        fate = await opened.fate(accepted)

    assert fate.state is LedgerState.ANSWERED
    assert [reply.content for reply in fate.replies] == ["hello"]


async def test_after_some_deaths_a_message_is_given_up_with_a_word(clock: MockClock, tmp_path: Path) -> None:
    folder, accepted = tmp_path / "0", None
    for life in range(MAX_ATTEMPTS):
        gate = Gate(trio.Event())
        async with open_test_agent(folder, ScriptedModel(gate)) as opened:
            accepted = accepted or await opened.say("Ann", "the message of death")
            await gate.arrived.wait()
            folder = freeze_copy(opened, tmp_path / str(life + 1))
    async with open_test_agent(folder, ScriptedModel()) as opened:
        await opened.settled()
        assert accepted is not None
        fate = await opened.fate(accepted)

    assert fate.state is LedgerState.FAILED
    assert fate.attempts == MAX_ATTEMPTS
    assert f"{MAX_ATTEMPTS} turns with it died" in str(fate.reason)
    assert [reply.kind for reply in fate.replies] == ["notice"]


async def test_stops_in_good_order_are_no_deaths(clock: MockClock, tmp_path: Path) -> None:
    accepted = None
    for _ in range(MAX_ATTEMPTS + 1):
        gate = Gate(trio.Event())
        async with open_test_agent(tmp_path, ScriptedModel(gate)) as opened:
            accepted = accepted or await opened.say("Ann", "hi")
            await gate.arrived.wait()
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="at last"))) as opened:
        assert await opened.said(1) == ["at last"]
        await opened.ended(1)
        assert accepted is not None
        assert (await opened.fate(accepted)).attempts == 1


@pytest.mark.parametrize("in_good_order", [True, False])
@pytest.mark.spec("P12")
async def test_a_branch_that_was_cut_runs_again(in_good_order: bool, clock: MockClock, tmp_path: Path) -> None:
    gate, folder = Gate(trio.Event()), tmp_path / "one"
    model = ScriptedModel(
        Calls(Call("branch", description="look it up"), Call("reply", content="I look")), branch=[gate]
    )
    async with open_test_agent(folder, model) as opened:
        accepted = await opened.say("Ann", "look it up")
        await gate.arrived.wait()
        await opened.ended(1)
        if not in_good_order:
            folder = freeze_copy(opened, tmp_path / "two")
    second = ScriptedModel("found it", branch=["the treasure"])
    async with open_test_agent(folder, second) as opened:
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        assert await opened.said(1) == ["found it"]
        await opened.ended(1)
        fate = await opened.fate(accepted)

    assert [reply.content for reply in fate.replies] == ["I look", "found it"]
    assert [run["state"] for run in fate.runs] == ["done"]
    assert second.texts_of(ProcessKind.BRANCH) == ["look it up"] or second.texts_of(ProcessKind.BRANCH)[0].endswith(
        "look it up"
    )


@pytest.mark.spec("P12")
async def test_a_worker_that_was_killed_is_reported_as_failed(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="work"), Call("reply", content="on it")),
        worker=[Call("set_status", status="half way"), gate],
    )
    async with open_test_agent(tmp_path / "one", model) as opened:
        accepted = await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        folder = freeze_copy(opened, tmp_path / "two")
    second = ScriptedModel("it was cut short")
    async with open_test_agent(folder, second) as opened:
        assert await opened.said(1) == ["it was cut short"]
        await opened.ended(1)
        assert (await opened.fate(accepted)).runs[0]["state"] == "failed"
        assert list(opened.tree.of_kind(NodeKind.WORKER)) == []

    prompt = second.requests[0].messages[-1].text
    assert "interrupted by a restart" in prompt
    assert "half way" in prompt


async def test_a_result_that_was_not_told_before_the_stop_is_told_after_it(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="I look")), branch=["the treasure"]
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
    async with open_test_agent(tmp_path, ScriptedModel("found it")) as opened:
        assert await opened.said(1) == ["found it"]
        await opened.ended(1)
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        await opened.settled()
        assert opened.of_kind(EventKind.TURN_ENDED) == []


@pytest.mark.spec("P65", "P1")
async def test_the_conversation_is_remembered_after_a_restart(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="Hello Ann."))) as opened:
        await opened.say("Ann", "I am Ann")
        await opened.ended(1)
    second = ScriptedModel(Call("reply", content="Ann."))
    async with open_test_agent(tmp_path, second) as opened:
        await opened.say("Ann", "who am I?")
        await opened.said(1)

    assert [message.text.split("] ")[-1] for message in second.requests[0].messages] == [
        "Ann: I am Ann",
        "Hello Ann.",
        "Ann: who am I?",
    ]


async def test_lower_limits_do_not_keep_the_agent_from_starting(clock: MockClock, tmp_path: Path) -> None:
    gates = [Gate(trio.Event()) for _ in range(4)]
    calls = [Call("spawn_worker", task=f"work {n}") for n in range(2)] + [
        Call("branch", description=f"look {n}") for n in range(2)
    ]
    model = ScriptedModel(Calls(*calls, Call("reply", content="on it")), worker=gates[:2], branch=gates[2:])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "everything")
        await opened.ended(1)
        for gate in gates:
            await gate.arrived.wait()
    second = ScriptedModel("told", branch=["found"] * 2, worker=[DONE] * 2)
    async with open_test_agent(tmp_path, second, max_concurrent_workers=1, max_concurrent_branches=1) as opened:
        await opened.events_of(EventKind.WORKER_COMPLETED, 2)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 2)


@pytest.mark.spec("P61", "P50")
async def test_a_channel_that_retires_comes_back_with_the_next_message(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: Call("reply", content="yes"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "one")
        await opened.ended(1)
        await opened.advance(3601)
        assert list(opened.tree.of_kind(NodeKind.CHANNEL)) == []
        await opened.say("Ann", "two")
        await opened.ended(2)
        assert len(list(opened.tree.of_kind(NodeKind.CHANNEL))) == 1
        tree = opened.tree
    assert [view.kind for view in tree.view()] == ["daemon"]
    assert "Ann: one" in model.requests_of(ProcessKind.CHANNEL)[1].messages[0].text


@pytest.mark.spec("P61")
async def test_a_message_that_meets_a_leaving_channel_is_answered(clock: MockClock, tmp_path: Path) -> None:
    """The hour is over at the very moment at which the message comes; each interleaving is tried some times."""
    model = ScriptedModel(lambda request: Call("reply", content="yes"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "start")
        await opened.ended(1)
        for number in range(20):
            await opened.settled()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.say, "Ann", f"message {number}")
                for _ in range(number):
                    await trio.lowlevel.checkpoint()
                clock.jump(3601)
            await opened.ended(number + 2)


async def test_a_message_that_cannot_be_written_is_not_accepted(clock: MockClock, tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="now it works"))) as opened:
        await opened.say(
            "Bob", "x", conversation=ROOM
        )  # makes the tables warm; nobody answers within the frozen window
        broken(opened, "INSERT", "ledger")
        with pytest.raises(StorageError, match="free space"):
            await opened.say("Ann", "hi")
        healed(opened)
        await opened.say("Ann", "hi again")
        assert await opened.said(1, DIRECT) == ["now it works"]


async def test_a_turn_that_cannot_begin_is_tried_again(clock: MockClock, tmp_path: Path, logs: Logs) -> None:
    logs.expect("process failed")
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="here I am"))) as opened:
        broken(opened, "INSERT", "turns")
        broken_second = await opened.say("Ann", "hi")
        await opened.settled()
        assert (await opened.fate(broken_second)).state is LedgerState.ACCEPTED
        healed(opened)
        await opened.advance(RETRY_S)
        assert await opened.said(1) == ["here I am"]
        await opened.ended(1)
        assert (await opened.fate(broken_second)).state is LedgerState.ANSWERED


async def test_a_reply_that_cannot_be_written_is_said_later_and_once(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    """The model is not asked again and again while the disk refuses: the question waits, and then has its answer."""
    logs.expect("process failed")
    model = ScriptedModel(Call("reply", content="lost?"), Call("reply", content="hello"))
    async with open_test_agent(tmp_path, model) as opened:
        broken(opened, "UPDATE OF reply_id", "ledger")
        accepted = await opened.say("Ann", "hi")
        assert await opened.ended(1) == ["interrupted"]
        assert (await opened.fate(accepted)).state is LedgerState.ACCEPTED
        assert len(model.requests) == 1
        healed(opened)
        await opened.advance(RETRY_S)
        assert await opened.said(1) == ["hello"]
        await opened.ended(2)
        fate = await opened.fate(accepted)

    assert fate.state is LedgerState.ANSWERED
    assert [reply.content for reply in fate.replies] == ["hello"]


async def test_an_answer_is_not_repeated_when_only_the_end_of_the_turn_is_lost(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    logs.expect("process failed")
    logs.expect("turn not closed")
    async with open_test_agent(
        tmp_path, ScriptedModel(Call("reply", content="hello"), Call("reply", content="yes"))
    ) as opened:
        broken(opened, "UPDATE", "turns")
        accepted = await opened.say("Ann", "hi")
        assert await opened.said(1) == ["hello"]
        await opened.settled()
        healed(opened)
        await opened.advance(RETRY_S)
        assert (await opened.fate(accepted)).state is LedgerState.ANSWERED
        await opened.say("Ann", "still there?")
        assert await opened.said(2) == ["hello", "yes"]


@pytest.mark.parametrize("kind", ["branch", "worker"])
async def test_the_end_of_a_process_that_cannot_be_written_waits(
    kind: str, clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    """A failing disk must not take the channel along, nor the result."""
    logs.expect("end of process not written")
    gate = Gate(trio.Event(), DONE if kind == "worker" else "the answer is 42")
    start = Call("branch", description="look") if kind == "branch" else Call("spawn_worker", task="work")
    model = ScriptedModel(Calls(start, Call("reply", content="on it")), "it is 42", branch=[gate], worker=[gate])
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        broken(opened, "UPDATE OF completed_at", f"{kind}_runs")
        gate.event.set()
        await opened.settled()
        assert len(list(opened.tree.of_kind(NodeKind.CHANNEL))) == 1
        await opened.advance(RETRY_S)
        healed(opened)
        await opened.advance(RETRY_S)
        await opened.advance(RESULT_DEBOUNCE_S)
        assert await opened.said(2) == ["on it", "it is 42"]
        assert (await opened.fate(accepted)).runs[0]["state"] == "done"


async def test_a_worker_goes_on_when_its_transcript_cannot_be_written(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("set_status", status="half way"))
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="work"), Call("reply", content="on it")), "told", worker=[gate, DONE]
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        await gate.arrived.wait()
        broken(opened, "UPDATE OF tool_calls", "worker_runs")
        opened.model.add(ProcessKind.WORKER)
        gate.event.set()
        await opened.until(lambda e: e.kind is EventKind.TOOL_COMPLETED and e.fields["tool_name"] == "set_status")
        healed(opened)
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        assert opened.of_kind(EventKind.WORKER_COMPLETED)[0].fields["state"] == "done"


async def test_more_messages_than_memory_holds_are_all_answered(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("skip"))
    first = [gate]
    model = ScriptedModel(lambda request: first.pop() if first else Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "start")
        await gate.arrived.wait()
        async with trio.open_nursery() as nursery:
            for number in range(1150):
                nursery.start_soon(opened.say, "Ann", f"message {number}")
        gate.event.set()
        await opened.until(lambda e: e.kind is EventKind.TURN_ENDED and e.fields["last_seq"] == 1151)
        await opened.settled()
        assert await opened.agent.conversations.ledger_counts() == {"skipped": 1151}


async def test_a_channel_that_breaks_is_made_anew(clock: MockClock, tmp_path: Path, logs: Logs) -> None:
    """An error of ours outside of turns: the channel falls, and what it had taken is taken up again."""
    logs.expect("channel failed")

    class Breaking(ScriptedModel):
        is_broken = False

        def context_window(self, process: ProcessKind) -> int:
            if self.is_broken:
                raise ZeroDivisionError
            return super().context_window(process)

    gate = Gate(trio.Event(), Call("reply", content="one"))
    model = Breaking(gate, Call("reply", content="two"))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "one")
        await gate.arrived.wait()
        two = await opened.say("Ann", "two")
        model.is_broken = True
        gate.event.set()
        await opened.ended(1)
        await opened.settled()
        model.is_broken = False
        await opened.advance(RETRY_S)
        assert await opened.said(2) == ["one", "two"]
        await opened.ended(2)
        assert (await opened.fate(two)).state is LedgerState.ANSWERED


async def test_a_channel_that_is_cancelled_comes_back_with_its_work(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    model = ScriptedModel(gate, Call("reply", content="both"))
    async with open_test_agent(tmp_path, model) as opened:
        one = await opened.say("Ann", "one")
        await gate.arrived.wait()
        channel = opened.node(NodeKind.CHANNEL)
        two = await opened.say("Ann", "two")
        channel.cancel("the owner's wish")
        await opened.settled()
        assert (await opened.fate(one)).state is LedgerState.ACCEPTED
        await opened.advance(RETRY_S)
        assert await opened.said(1) == ["both"]
        await opened.ended(1)
        fates = [await opened.fate(message) for message in (one, two)]

    assert [fate.state for fate in fates] == [LedgerState.ANSWERED] * 2


async def test_draining_lets_the_turn_finish_and_begins_no_other(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("reply", content="finished"))
    async with open_test_agent(tmp_path, ScriptedModel(gate)) as opened:
        await opened.say("Ann", "one")
        await gate.arrived.wait()
        drained = trio.Event()

        async def drain() -> None:
            await opened.agent.drain(100)
            drained.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await opened.settled()
            two = await opened.say("Ann", "two")
            gate.event.set()
            await drained.wait()
        await opened.settled()
        assert await opened.said(1) == ["finished"]
        assert (await opened.fate(two)).state is LedgerState.ACCEPTED
    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="next life"))) as opened:
        assert await opened.said(1) == ["next life"]
        await opened.ended(1)


async def test_a_failed_turn_leaves_its_results_for_the_next(clock: MockClock, tmp_path: Path) -> None:
    down = Fail(ModelUnavailableError("down", model="m"))
    gate = Gate(trio.Event(), "the treasure")
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="I look")), down, "found it", branch=[gate]
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.ended(1)
        gate.event.set()
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.say("Ann", "hello?")  # joins the result
        await opened.ended(2)
        assert len(await opened.agent.conversations.pending_results(DIRECT)) == 1
        await opened.advance(RETRY_S)
        assert (await opened.said(3))[2] == "found it"
        await opened.ended(3)
        assert await opened.agent.conversations.pending_results(DIRECT) == []
