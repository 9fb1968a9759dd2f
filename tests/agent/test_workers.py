"""The life of a worker: outcomes, segments, patience, follow-ups, and what survives a restart."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.agent.pacing import RESULT_DEBOUNCE_S
from spacebot.agent.worker import RETRY_PAUSES_S, SEGMENT_STEPS, SEGMENTS
from spacebot.base.errors import ModelUnavailableError
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind, NodeState
from spacebot.llm.messages import FinishReason, ModelReply, ModelRequest, ProcessKind, Reasoning
from tests.fakes.opened import DIRECT, Opened, freeze_copy, open_test_agent
from tests.fakes.scripted_model import Call, Calls, Fail, Gate, Say, ScriptedModel

SPAWN = Calls(Call("spawn_worker", task="the work"), Call("reply", content="on it"))
SPAWN_INTERACTIVE = Calls(Call("spawn_worker", task="the work", interactive=True), Call("reply", content="on it"))


def outcome(text: str, **fields: Any) -> Call:
    return Call("set_status", kind="outcome", status=text, **fields)


async def result_of(opened: Opened) -> tuple[str, str]:
    """State and text of the worker that ends."""
    (event,) = await opened.events_of(EventKind.WORKER_COMPLETED, 1)
    return str(event.fields["state"]), str(event.fields["result"])


async def idle(opened: Opened, count: int) -> str:
    """The result with which the worker went idle for the `count`th time."""
    return str((await opened.events_of(EventKind.WORKER_IDLE, count))[-1].fields["result"])


def route(opened: Opened, message: str) -> Call:
    return Call("route", worker_id=opened.node(NodeKind.WORKER).id, message=message)


@pytest.mark.parametrize("state", ["done", "partial", "blocked", "failed"])
async def test_a_worker_says_how_it_went(state: str, clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(SPAWN, worker=[outcome("the account", result=state)])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        assert await result_of(opened) == (state, "the account")


@pytest.mark.spec("P18", "C-64")
async def test_words_are_no_outcome(clock: MockClock, tmp_path: Path) -> None:
    """A plan, then thinking only, then the outcome: the worker is sent back until it reports."""
    model = ScriptedModel(SPAWN, worker=["First I shall plan.", _think, outcome("done at last")])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        assert await result_of(opened) == ("done", "done at last")


def _think(request: ModelRequest) -> ModelReply:
    return ModelReply(parts=(Reasoning("hm"),), finish_reason=FinishReason.STOP)


@pytest.mark.spec("P18")
async def test_without_an_outcome_it_fails_loudly(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(SPAWN, worker=["a plan", "a plan", "still a plan"])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        state, text = await result_of(opened)

    assert state == "failed"
    assert "still a plan" in text


@pytest.mark.spec("P53", "P73")
async def test_only_nudges_in_a_row_count(clock: MockClock, tmp_path: Path) -> None:
    rounds = [step for number in range(6) for step in (Call("set_status", status=f"step {number}"), Say("and so on"))]
    model = ScriptedModel(SPAWN, worker=[*rounds, outcome("long but good")])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        assert await result_of(opened) == ("done", "long but good")


@pytest.mark.spec("P13")
async def test_segments_are_bounded_and_what_was_found_is_kept(clock: MockClock, tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    model = ScriptedModel(
        SPAWN, worker=lambda request: Calls(Call("set_status", status=f"step {next(numbers)}"), text="found a bit")
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        state, text = await result_of(opened)

    assert state == "partial"
    assert "found a bit" in text
    assert len(model.requests_of(ProcessKind.WORKER)) == SEGMENT_STEPS * SEGMENTS


@pytest.mark.spec("P17")
async def test_a_hiccup_of_the_provider_is_waited_out(clock: MockClock, tmp_path: Path) -> None:
    down = Fail(ModelUnavailableError("down", model="m"))
    model = ScriptedModel(SPAWN, worker=[*[down] * len(RETRY_PAUSES_S), outcome("got it")])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        for number, pause in enumerate(RETRY_PAUSES_S):
            await opened.until(
                lambda e, n=number: f"next try in {RETRY_PAUSES_S[n]:.0f} s" in str(e.fields.get("status"))
            )
            await opened.advance(pause)
        assert await result_of(opened) == ("done", "got it")


@pytest.mark.spec("P17", "P58")
async def test_when_no_model_answers_any_more_the_work_so_far_is_told(clock: MockClock, tmp_path: Path) -> None:
    down = Fail(ModelUnavailableError("the provider is down", model="m"))
    words = Calls(Call("set_status", status="half way"), text="The first half is 21.")
    model = ScriptedModel(SPAWN, worker=[words, *[down] * (len(RETRY_PAUSES_S) + 1)])
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        for pause in RETRY_PAUSES_S:
            await opened.until(lambda e, p=pause: f"next try in {p:.0f} s" in str(e.fields.get("status")))
            await opened.advance(pause)
        state, text = await result_of(opened)

    assert state == "failed"
    assert "the provider is down" in text
    assert "The first half is 21." in text


@pytest.mark.spec("P58", "P54")
async def test_time_out_keeps_what_was_found(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    words = Calls(Call("set_status", status="half way"), text="The first half is 21.")
    model = ScriptedModel(SPAWN, worker=[words, gate])
    async with open_test_agent(tmp_path, model, worker={"wall_clock_timeout_secs": 100}) as opened:
        await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.advance(101)
        state, text = await result_of(opened)

    assert state == "timed_out"
    assert "The first half is 21." in text


@pytest.mark.spec("P14", "S6")
async def test_status_follows_the_work(clock: MockClock, tmp_path: Path) -> None:
    gate, second = Gate(trio.Event(), outcome("ready")), Gate(trio.Event(), outcome("more"))
    model = ScriptedModel(
        SPAWN_INTERACTIVE, "first", lambda request: route(opened, "do more"), Call("skip"),
        worker=[Call("set_status", status="  counting\n files "), gate, second],
    )  # fmt: skip
    async with open_test_agent(tmp_path, model) as opened:

        def worker() -> dict[str, Any]:
            (shown,) = opened.agent.status_blocks()[DIRECT]["active_workers"]
            return dict(shown)

        await opened.say("Ann", "work")
        await gate.arrived.wait()
        assert (worker()["state"], worker()["status"]) == ("running", "counting files")
        await opened.ended(1)
        gate.event.set()
        await idle(opened, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        assert worker()["state"] == "waiting"
        await opened.say("Ann", "more please")
        await second.arrived.wait()
        assert (worker()["state"], worker()["status"]) == ("running", "do more")
        second.event.set()
        await idle(opened, 2)


@pytest.mark.spec("S1", "P10")
async def test_results_of_the_task_and_of_each_follow_up_are_told(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        SPAWN_INTERACTIVE,
        Call("reply", content="part one is done"),
        lambda request: route(opened, "now part two"),
        Call("reply", content="it goes on"),
        Call("reply", content="part two is done"),
        worker=[outcome("result one"), outcome("result two")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        accepted = await opened.say("Ann", "work")
        assert await idle(opened, 1) == "result one"
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        await opened.say("Ann", "part two please")
        assert await idle(opened, 2) == "result two"
        await opened.ended(3)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(4)
        assert await opened.said(4) == ["on it", "part one is done", "it goes on", "part two is done"]
        assert (await opened.fate(accepted)).runs[0]["state"] == "waiting"

    prompts = model.texts_of(ProcessKind.CHANNEL)
    assert "result one" in prompts[1]
    assert "result two" in prompts[4]
    assert "now part two" in model.texts_of(ProcessKind.WORKER)[1]


@pytest.mark.spec("S2")
async def test_waiting_does_not_count_as_work_and_has_its_own_end(clock: MockClock, tmp_path: Path) -> None:
    patience = {"wall_clock_timeout_secs": 100, "idle_timeout_secs": 1000}
    model = ScriptedModel(
        SPAWN_INTERACTIVE, "told", lambda request: route(opened, "more"), Call("skip"), "told again",
        worker=[outcome("one"), outcome("two")],
    )  # fmt: skip
    async with open_test_agent(tmp_path, model, worker=patience) as opened:
        accepted = await opened.say("Ann", "work")
        await idle(opened, 1)
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        await opened.advance(900)  # nine times the wall clock
        await opened.say("Ann", "more")
        await idle(opened, 2)
        await opened.ended(3)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(4)
        await opened.advance(1001)
        assert await result_of(opened) == ("done", "two")
        await opened.advance(10)
        assert list(opened.tree.of_kind(NodeKind.WORKER)) == []
        assert len(opened.of_kind(EventKind.TURN_ENDED)) == 4  # its retirement is nobody's business
        assert (await opened.fate(accepted)).runs[0]["state"] == "done"


@pytest.mark.spec("P55")
async def test_a_message_to_a_running_worker_is_seen_at_its_next_step(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Call("set_status", status="half way"))
    model = ScriptedModel(
        SPAWN,
        lambda request: route(opened, "use French"),
        Call("reply", content="I told it"),
        worker=[gate, outcome("fini")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Ann", "in French please")
        await opened.ended(2)
        gate.event.set()
        await result_of(opened)

    assert "use French" in model.texts_of(ProcessKind.WORKER)[1]
    assert "next step" in model.requests_of(ProcessKind.CHANNEL)[2].messages[-1].parts[0].text  # type: ignore[union-attr]


async def test_a_message_that_comes_with_the_outcome_is_not_lost(clock: MockClock, tmp_path: Path) -> None:
    """The channel was told that the worker sees it; so it does, and its first account is kept."""
    gate = Gate(trio.Event(), outcome("the report is ready"))
    model = ScriptedModel(
        SPAWN,
        lambda request: route(opened, "add a title"),
        Call("reply", content="I told it"),
        worker=[gate, outcome("title added")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Ann", "with a title")
        await opened.ended(2)
        gate.event.set()
        state, text = await result_of(opened)

    assert state == "done"
    assert "the report is ready" in text
    assert "title added" in text


async def test_a_message_to_nobody_names_who_is_there(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("route", worker_id="nobody", message="hi"), "no one there")
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "tell the worker hi")
        await opened.said(1)

    (result,) = model.results_of(ProcessKind.CHANNEL)
    assert result.is_error
    assert "live workers: none" in result.text


@pytest.mark.spec("P69", "C-82")
async def test_secrets_in_a_workers_account_are_scrubbed_not_fatal(clock: MockClock, tmp_path: Path) -> None:
    key = "ghp_" + "a1B2c3D4e5F6" * 3
    model = ScriptedModel(
        SPAWN, "told", worker=[Call("set_status", status=f"using {key}"), outcome(f"the token is {key}, all set")]
    )
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "work")
        state, text = await result_of(opened)
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)

    assert (state, text) == ("done", "the token is [secret removed], all set")
    for event in opened.happened:
        assert key not in str(event.to_json_object())
    assert key not in model.texts_of(ProcessKind.CHANNEL)[1]


@pytest.mark.spec("P74")
async def test_a_worker_cannot_touch_the_identity_files(clock: MockClock, tmp_path: Path) -> None:
    paths = ["../SOUL.md", str(tmp_path / "agents" / "main" / "SOUL.md")]
    model = ScriptedModel(
        SPAWN,
        worker=[*(Call("file", operation="write", path=path, content="evil") for path in paths), outcome("tried")],
    )
    async with open_test_agent(tmp_path, model) as opened:
        before = (tmp_path / "agents" / "main" / "SOUL.md").read_text()
        await opened.say("Ann", "work")
        await result_of(opened)

    assert (tmp_path / "agents" / "main" / "SOUL.md").read_text() == before
    assert all(result.is_error for result in model.results_of(ProcessKind.WORKER))


@pytest.mark.spec("P59", "P63")
async def test_a_worker_that_gets_the_conversation_still_does_its_own_task(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Call("reply", content="noted"),
        SPAWN,
        worker=[outcome("done")],
        compactor=lambda request: Call("write_summary", summary="Ann has a dog called Rex"),
        context_window=6000,
    )
    async with open_test_agent(tmp_path, model, worker={"context": "fork"}) as opened:
        await opened.say("Ann", "my dog is called Rex " + "and so on " * 3000)
        await opened.ended(1)
        await opened.say("Ann", "work for Rex")
        await result_of(opened)

    (request,) = model.requests_of(ProcessKind.WORKER)
    assert request.messages[-1].text.endswith("the work")
    assert "work for Rex" in "".join(message.text for message in request.messages)
    assert sum(len(m.text) for m in request.messages) / 4 < 6000


@pytest.mark.spec("P12", "P59")
@pytest.mark.parametrize("in_good_order", [True, False])
async def test_an_idle_worker_goes_on_after_a_restart(in_good_order: bool, clock: MockClock, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    first = ScriptedModel(SPAWN_INTERACTIVE, "told", worker=[outcome("found 42 files")])
    async with open_test_agent(folder, first) as opened:
        await opened.say("Ann", "work")
        await idle(opened, 1)
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.ended(2)
        if not in_good_order:
            folder = freeze_copy(opened, tmp_path / "two")
    second = ScriptedModel(
        lambda request: route(opened, "sort them"),
        Call("reply", content="it sorts"),
        "sorted",
        worker=[outcome("sorted them")],
    )
    async with open_test_agent(folder, second) as opened:
        await opened.until(lambda e: e.kind is EventKind.WORKER_STATUS and e.fields["state"] == "waiting")
        await opened.say("Ann", "sort them")
        assert await idle(opened, 1) == "sorted them"
        await opened.ended(1)
        await opened.advance(RESULT_DEBOUNCE_S)
        assert await opened.said(2) == ["it sorts", "sorted"]

    (request,) = second.requests_of(ProcessKind.WORKER)
    assert request.messages[0].text == "the work"
    assert any("found 42 files" in str(part) for message in request.messages for part in message.parts)
    assert request.messages[-1].text.endswith("sort them")


@pytest.mark.spec("P12")
async def test_a_worker_that_was_stopped_goes_on_after_a_restart(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event())
    first = ScriptedModel(SPAWN, worker=[Call("set_status", status="half way"), gate])
    async with open_test_agent(tmp_path, first) as opened:
        accepted = await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
    second = ScriptedModel("told", worker=[outcome("done in the second life")])
    async with open_test_agent(tmp_path, second, max_concurrent_workers=1) as opened:
        assert await result_of(opened) == ("done", "done in the second life")
        await opened.advance(RESULT_DEBOUNCE_S)
        assert await opened.said(1) == ["told"]
        fate = await opened.fate(accepted)

    assert [run["state"] for run in fate.runs] == [NodeState.DONE]
    assert fate.replies[-1].reply_to == accepted.message_id
    (request,) = second.requests_of(ProcessKind.WORKER)
    assert "restarted" in request.messages[-1].text


async def test_a_message_that_a_stopped_worker_had_not_seen_is_there_in_its_next_life(
    clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(trio.Event())
    first = ScriptedModel(
        SPAWN, lambda request: route(opened, "use French"), Call("reply", content="I told it"), worker=[gate]
    )
    async with open_test_agent(tmp_path, first) as opened:
        await opened.say("Ann", "work")
        await gate.arrived.wait()
        await opened.ended(1)
        await opened.say("Ann", "in French please")
        await opened.ended(2)
    second = ScriptedModel("told", worker=[outcome("fini")])
    async with open_test_agent(tmp_path, second) as opened:
        assert await result_of(opened) == ("done", "fini")

    (request,) = second.requests_of(ProcessKind.WORKER)
    assert "use French" in "".join(message.text for message in request.messages)
