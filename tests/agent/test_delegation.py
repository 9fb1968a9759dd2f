"""Branches and workers of a channel: started at once, told once, ended by anybody who may."""

import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.pacing import RESULT_DEBOUNCE_S, RETRIGGERS_IN_A_ROW, RETRY_S
from spacebot.agent.turn import TELLING_TRIES
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import LedgerState
from spacebot.llm.messages import ModelRequest, ProcessKind, Role
from tests.conftest import Logs
from tests.fakes.opened import DIRECT, ROOM, Opened, broken, healed, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, Say, ScriptedModel

DONE = Call("set_status", kind="outcome", status="the answer is 42")


async def tell(opened: Opened) -> None:
    """Let the debounce of finished work pass."""
    await opened.advance(RESULT_DEBOUNCE_S)


@pytest.mark.spec("S3", "P10")
async def test_on_it_and_the_work_go_out_together_and_the_result_later(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("reply", content="On it."), Call("spawn_worker", task="compute it")),
        Call("reply", content="It is 42."),
        worker=[DONE],
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "compute it")
        assert await opened.said(1) == ["On it."]
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await tell(opened)
        assert await opened.said(2) == ["On it.", "It is 42."]
        await opened.ended(2)
        fate = await opened.fate(accepted)
        assert opened.of_kind(EventKind.WORKER_STARTED)[0].fields["task"] == "compute it"

    assert [reply.reply_to for reply in fate.replies] == [accepted.message_id] * 2
    assert [(run["kind"], run["state"]) for run in fate.runs] == [("worker", "done")]
    result_prompt = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].text
    assert "the answer is 42" in result_prompt
    assert '<result process="worker"' in result_prompt
    worker = model.requests_of(ProcessKind.WORKER)[0]
    assert [message.text for message in worker.messages] == ["compute it"]  # fresh prompt and task only


@pytest.mark.spec("P3", "P25")
async def test_while_a_worker_works_others_are_answered_and_its_result_stays_tied_to_its_message(
    clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event(), DONE)
    model = ScriptedModel(
        Call("spawn_worker", task="long work"),
        Call("reply", content="On it."),
        Call("reply", content="Hello Bob."),
        Call("reply", content="Ann, it is 42."),
        worker=[gate],
    )
    async with open_test_agent(tmp_path, model, coalesce={"debounce_ms": 0}) as opened:
        ann = await opened.say("Ann", "do the long work", conversation=ROOM)
        await gate.arrived.wait()
        await opened.ended(1)
        bob = await opened.say("Bob", "hello", conversation=ROOM)
        assert await opened.said(2) == ["On it.", "Hello Bob."]
        await opened.ended(2)
        gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await tell(opened)
        await opened.ended(3)

    replies = opened.of_kind(EventKind.OUTBOUND_MESSAGE)
    assert [reply.fields["reply_to"] for reply in replies] == [ann.message_id, bob.message_id, ann.message_id]


async def test_work_that_a_branch_hands_on_is_tied_to_the_message_of_the_branch(
    clock: MockClock, tmp_path: Path
) -> None:
    """Bob speaks while Ann's branch thinks; what it starts then still belongs to Ann's message."""
    gate = Gate(trio.Event(), Call("spawn_worker", task="long work"))
    bobs = Gate(trio.Event(), Call("reply", content="Hello Bob."))
    model = ScriptedModel(
        Calls(Call("branch", description="see"), Call("reply", content="I will see.")),
        bobs,
        "told",
        branch=[gate],
        worker=[DONE],
    )
    async with open_test_agent(tmp_path, model, coalesce={"debounce_ms": 0}) as opened:
        ann = await opened.say("Ann", "see to it", conversation=ROOM)
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Bob", "hello", conversation=ROOM)
        await bobs.arrived.wait()
        gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        bobs.event.set()
        await opened.ended(2)
        await tell(opened)
        await opened.ended(3)
        fate = await opened.fate(ann)

    assert [run["kind"] for run in fate.runs] == ["branch", "worker"]
    assert opened.of_kind(EventKind.OUTBOUND_MESSAGE)[-1].fields["reply_to"] == ann.message_id


async def test_results_that_end_together_are_told_in_one_turn(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(
            *(Call("branch", description=f"look up {word}") for word in ("tea", "milk")),
            Call("reply", content="I look."),
        ),
        Call("reply", content="Both found."),
        branch=["found one", "found another"],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "tea and milk?")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 2)
        await opened.ended(1)
        await tell(opened)
        assert await opened.said(2) == ["I look.", "Both found."]
        await opened.ended(2)
        await opened.advance(60)
        assert await opened.agent.conversations.pending_results(DIRECT) == []

    prompt = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].text
    assert prompt.count("<result ") == 2
    assert len(model.requests_of(ProcessKind.CHANNEL)) == 2


@pytest.mark.spec("P41")
async def test_a_turn_that_results_cause_has_alternating_roles(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("skip")), Call("reply", content="found"), branch=["it"]
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await tell(opened)
        await opened.said(1)

    roles = [message.role for message in model.requests_of(ProcessKind.CHANNEL)[-1].messages]
    assert roles == [Role.USER, Role.ASSISTANT, Role.USER]


@pytest.mark.spec("P19", "P20")
async def test_a_told_result_is_not_shown_to_the_model_again(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="wait")),
        "found",
        "bye",
        branch=["the treasure"],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        assert opened.agent.status_blocks()[DIRECT]["completed_items"][0]["result_summary"] == "the treasure"
        await tell(opened)
        await opened.ended(2)
        await opened.say("Ann", "thanks")
        await opened.ended(3)
        now = model.requests_of(ProcessKind.CHANNEL)[-1].messages[-1].text
        await opened.advance(301)
        assert opened.agent.status_blocks()[DIRECT]["completed_items"] == []

    assert "treasure" not in now


async def test_not_more_than_three_turns_in_a_row_without_a_person(clock: MockClock, tmp_path: Path) -> None:
    """A channel and its own branches answering each other; the next message of a person brings the rest."""
    again = Call("branch", description="again"), Call("reply", content="once more")
    steps = [Calls(*again) for _ in range(RETRIGGERS_IN_A_ROW + 1)]
    model = ScriptedModel(*steps, Call("reply", content="all told"), branch=["thought"] * (RETRIGGERS_IN_A_ROW + 1))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "start")
        for number in range(RETRIGGERS_IN_A_ROW + 1):
            await opened.ended(number + 1)
            await opened.events_of(EventKind.BRANCH_COMPLETED, number + 1)
            await tell(opened)
        await opened.advance(100)
        assert len(opened.of_kind(EventKind.TURN_ENDED)) == RETRIGGERS_IN_A_ROW + 1
        assert len(await opened.agent.conversations.pending_results(DIRECT)) == 1
        await opened.say("Ann", "and?")
        await opened.ended(RETRIGGERS_IN_A_ROW + 2)
        assert await opened.agent.conversations.pending_results(DIRECT) == []

    assert "thought" in model.requests_of(ProcessKind.CHANNEL)[-1].messages[-1].text


@pytest.mark.spec("P42")
@pytest.mark.parametrize("ending", [Say(""), Fail(ModelUnavailableError("down", model="m"))])
async def test_a_result_that_nobody_was_told_is_told_later(ending: object, clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="wait")),
        ending,
        "found it",
        branch=["the treasure"],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await tell(opened)
        await opened.ended(2)
        assert len(await opened.agent.conversations.pending_results(DIRECT)) == 1
        await opened.advance(RETRY_S)
        assert await opened.said(2) == ["wait", "found it"]
        await opened.ended(3)
        assert await opened.agent.conversations.pending_results(DIRECT) == []


@pytest.mark.spec("P42")
async def test_a_result_beyond_the_cap_survives_the_rest_of_its_channel(clock: MockClock, tmp_path: Path) -> None:
    """The channel leaves memory after an hour without having told; the next message still brings the result."""
    again = Call("branch", description="again"), Call("reply", content="once more")
    steps = [Calls(*again) for _ in range(RETRIGGERS_IN_A_ROW + 1)]
    thoughts = [f"thought {number}" for number in range(RETRIGGERS_IN_A_ROW + 1)]
    model = ScriptedModel(*steps, Call("reply", content="all told"), branch=thoughts)
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "start")
        for number in range(RETRIGGERS_IN_A_ROW + 1):
            await opened.ended(number + 1)
            await opened.events_of(EventKind.BRANCH_COMPLETED, number + 1)
            await tell(opened)
        await opened.advance(4000)
        assert list(opened.tree.of_kind(NodeKind.CHANNEL)) == []
        await opened.say("Ann", "and?")
        await opened.ended(RETRIGGERS_IN_A_ROW + 2)

    assert thoughts[-1] in model.requests_of(ProcessKind.CHANNEL)[-1].messages[-1].text


async def test_a_result_that_no_model_will_tell_is_told_as_it_is(clock: MockClock, tmp_path: Path) -> None:
    """Somebody waits for it: after some tries, ever further apart, people get the bare words."""
    down = Fail(ModelUnavailableError("down", model="m"))
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="wait")),
        *[down] * TELLING_TRIES,
        branch=["the treasure"],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await tell(opened)
        for number in range(TELLING_TRIES):
            await opened.ended(2 + number)
            await opened.advance(RETRY_S * 2**number)
        said = await opened.said(2)
        assert await opened.agent.conversations.pending_results(DIRECT) == []

    assert said[0] == "wait"
    assert "the treasure" in said[1]


async def test_a_finished_piece_of_an_interactive_worker_survives_a_full_disk(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    logs.expect("result not written")
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="dig", interactive=True), Call("reply", content="on it")),
        Call("reply", content="there it is"),
        worker=[Call("set_status", status="found gold", kind="outcome")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        broken(opened, "INSERT", "pending_results")
        await opened.say("Ann", "dig")
        await opened.ended(1)
        await opened.settled()
        healed(opened)
        await opened.advance(RETRY_S)
        await tell(opened)
        await opened.ended(2)
        assert (await opened.said(2))[-1] == "there it is"

    assert "found gold" in model.requests_of(ProcessKind.CHANNEL)[-1].messages[-1].text


@pytest.mark.spec("P4", "C-75")
async def test_a_branch_that_fails_still_reports_and_frees_its_place(
    clock: MockClock, tmp_path: Path, logs: Logs
) -> None:
    logs.expect("process failed")
    model = ScriptedModel(
        Calls(Call("branch", description="look"), Call("reply", content="wait")),
        "it failed",
        branch=[Fail(ModelUnavailableError("the provider is down", model="m"))],
    )
    async with open_test_agent(tmp_path, model, max_concurrent_branches=1) as opened:
        await opened.say("Ann", "look")
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await tell(opened)
        assert await opened.said(2) == ["wait", "it failed"]
        assert list(opened.tree.of_kind(NodeKind.BRANCH)) == []

    prompt = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].text
    assert 'state="failed"' in prompt
    assert "the provider is down" in prompt


@pytest.mark.spec("P5", "P6")
async def test_limits_count_what_really_lives(clock: MockClock, tmp_path: Path) -> None:
    gates = [Gate(trio.Event(), DONE) for _ in range(2)]
    tasks = [Call("spawn_worker", task=f"task {number}") for number in range(3)]
    model = ScriptedModel(Calls(*tasks), Call("reply", content="two run"), "both done", worker=gates)
    async with open_test_agent(tmp_path, model, max_concurrent_workers=2) as opened:
        await opened.say("Ann", "three things")
        await opened.said(1)
        for gate in gates:
            await gate.arrived.wait()
            gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 2)
        await opened.ended(1)
        await tell(opened)
        assert await opened.said(2) == ["two run", "both done"]

    results = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].parts
    assert [result.is_error for result in results] == [False, False, True]  # type: ignore[union-attr]
    assert "limit" in results[2].text  # type: ignore[union-attr]


@pytest.mark.spec("P55")
async def test_the_same_task_is_not_started_twice(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), DONE)
    twice = Calls(Call("spawn_worker", task="Build  the report"), Call("spawn_worker", task="build the report"))
    model = ScriptedModel(twice, Call("reply", content="one runs"), "done", worker=[gate])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "report please")
        await opened.said(1)
        await gate.arrived.wait()
        worker_id = opened.node(NodeKind.WORKER).id
        gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)

    refused = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].parts[1]
    assert '"spawned": false' in refused.text  # type: ignore[union-attr]
    assert worker_id in refused.text  # type: ignore[union-attr]
    assert "route" in refused.text  # type: ignore[union-attr]


@pytest.mark.spec("P56")
async def test_starting_a_worker_ends_the_branch(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Calls(Call("branch", description="get it done"), Call("reply", content="on it")),
        "finished",
        branch=[Call("spawn_worker", task="do it")],
        worker=[DONE],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "get it done")
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.ended(1)
        await tell(opened)
        await opened.ended(2)

    (request,) = model.requests_of(ProcessKind.BRANCH)
    assert not {"route", "cancel", "branch"} & {tool.name for tool in request.tools}
    assert "42" in model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].text


@pytest.mark.spec("P11")
async def test_a_cancel_by_the_model_ends_the_worker_with_its_own_state(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())

    def cancel(request: ModelRequest) -> Call:
        worker_id = opened.node(NodeKind.WORKER).id
        return Call("cancel", process_type="worker", process_id=worker_id, reason="Ann changed her mind")

    model = ScriptedModel(
        Calls(Call("spawn_worker", task="long work"), Call("reply", content="on it")),
        cancel,
        Call("reply", content="stopped"),
        worker=[gate],
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Ann", "stop it")
        assert (await opened.said(2))[1] == "stopped"
        (completed,) = await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await opened.advance(10)
        assert list(opened.tree.of_kind(NodeKind.WORKER)) == []
        assert opened.agent.status_blocks()[DIRECT]["active_workers"] == []
        assert (await opened.fate(accepted)).runs[0]["state"] == "cancelled"

    assert completed.fields["state"] == "cancelled"
    assert len(opened.of_kind(EventKind.TURN_ENDED)) == 2  # who cancelled need not be told


@pytest.mark.spec("P11", "C-74")
@pytest.mark.parametrize("kind", [NodeKind.BRANCH, NodeKind.WORKER])
async def test_a_cancel_from_outside_is_reported_to_the_channel(
    kind: NodeKind, clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event())
    start = Call("branch", description="work") if kind is NodeKind.BRANCH else Call("spawn_worker", task="work")
    model = ScriptedModel(
        Calls(start, Call("reply", content="on it")), "somebody stopped it", branch=[gate], worker=[gate]
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        assert opened.tree.cancel(opened.node(kind).id, "the owner stopped it")
        await opened.until(lambda e: e.kind in (EventKind.BRANCH_COMPLETED, EventKind.WORKER_COMPLETED))
        await tell(opened)
        assert await opened.said(2) == ["on it", "somebody stopped it"]
        assert (await opened.fate(accepted)).runs[0]["state"] == "cancelled"

    prompt = model.requests_of(ProcessKind.CHANNEL)[1].messages[-1].text
    assert 'state="cancelled"' in prompt
    assert "the owner stopped it" in prompt


async def test_a_cancelled_turn_says_so(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    async with open_test_agent(tmp_path, ScriptedModel(gate, "well")) as opened:
        accepted = await opened.say("Ann", "hi")
        await gate.arrived.wait()
        assert opened.tree.cancel(opened.node(NodeKind.TURN).id, "stopped by the owner")
        (notice,) = await opened.said(1)
        assert await opened.ended(1) == ["failed"]
        fate = await opened.fate(accepted)
        await opened.say("Ann", "still there?")
        assert (await opened.said(2))[1] == "well"

    assert "stopped by the owner" in notice
    assert fate.state is LedgerState.FAILED


@pytest.mark.spec("P8")
async def test_a_result_reaches_its_own_conversation_only(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), DONE)
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="work"), Call("reply", content="on it")),
        Call("reply", content="hello"),
        "done",
        worker=[gate],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        await opened.ended(1, DIRECT)
        await opened.say("Bob", "hello", conversation=ROOM, is_direct=True)
        await opened.ended(1, ROOM)
        gate.event.set()
        await opened.events_of(EventKind.WORKER_COMPLETED, 1)
        await tell(opened)
        assert await opened.said(2, DIRECT) == ["on it", "done"]
        assert await opened.said(1, ROOM) == ["hello"]


@pytest.mark.spec("P24")
async def test_agents_share_a_conversation_id_but_nothing_of_the_conversation(clock: MockClock, tmp_path: Path) -> None:
    one, two = ScriptedModel(Call("reply", content="I am one")), ScriptedModel(Call("reply", content="I am two"))
    async with (
        open_test_agent(tmp_path, one, agent_id="one") as first,
        open_test_agent(tmp_path, two, agent_id="two", tree=first.tree) as second,
    ):
        await first.say("Ann", "who?")
        assert await first.said(1) == ["I am one"]
        await second.say("Ann", "and who?")
        assert await second.said(1) == ["I am two"]
        assert len(list(first.tree.of_kind(NodeKind.CHANNEL))) == 2

    assert "who?" not in two.requests[0].messages[0].text.replace("and who?", "")


@pytest.mark.spec("P7")
async def test_a_reader_who_falls_behind_loses_events_but_no_result(clock: MockClock, tmp_path: Path) -> None:
    steps = [Call("file", operation="list", path=f"folder {number}") for number in range(20)]
    model = ScriptedModel(
        Calls(Call("spawn_worker", task="work"), Call("reply", content="on it")), "42 it is", worker=[*steps, DONE]
    )
    async with open_test_agent(tmp_path, model) as opened:
        with opened.events.subscribe(buffer=4) as slow:
            await opened.say("Ann", "work")
            await opened.events_of(EventKind.WORKER_COMPLETED, 1)
            await opened.ended(1)
            await tell(opened)
            assert await opened.said(2) == ["on it", "42 it is"]
            assert slow.take_skipped() > 40


@pytest.mark.spec("P33", "P36", "P60")
async def test_rows_stand_in_the_order_in_which_things_happened(clock: MockClock, tmp_path: Path) -> None:
    """Many messages within one millisecond: the number of a row decides, and pages skip none."""
    model = ScriptedModel(lambda request: Call("skip"))
    async with open_test_agent(tmp_path, model) as opened:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(opened.say, "Ann", f"message {number}")
        await opened.until(lambda e: e.fields.get("last_seq") == 50)
        log = opened.agent.conversations
        pages, cursor = [], None
        while page := await log.history(DIRECT, limit=7, before_seq=cursor):
            pages.append(page)
            cursor = page[0].seq

    rows = [row for page in reversed(pages) for row in page]
    assert [row.seq for row in rows] == list(range(1, 51))
    assert len({row.created_at for row in rows}) == 1
    asked = [
        text
        for request in model.requests_of(ProcessKind.CHANNEL)
        for text in re.findall(r"message \d+", request.messages[-1].text)
    ]
    assert asked == [row.content for row in rows]
