"""What is left of workers: who may look at them, their log files, how long transcripts stay, what they cost."""

import json
import re
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from pydantic import SecretStr
from trio.testing import MockClock

from spacebot.agent.pacing import RETRY_S
from spacebot.agent.upkeep import maintenance_policy
from spacebot.agent.worker_log import EndedWorker, WorkerLog
from spacebot.api.memory_control import open_desk
from spacebot.base.clock import Clock
from spacebot.base.errors import ToolError
from spacebot.base.events import EventKind
from spacebot.base.ids import AgentId, ConversationId, NodeId
from spacebot.base.paths import InstancePaths
from spacebot.base.redaction import register_secret
from spacebot.base.tree import NodeKind, NodeState, Outcome
from spacebot.config.load import load_config
from spacebot.config.model import AgentSettings, CortexConfig, WorkerConfig, WorkerLogMode
from spacebot.config.routing import RoutingConfig
from spacebot.conversations.records import WorkerRun
from spacebot.conversations.rows import PACK_CHARS, pack, unpack
from spacebot.conversations.worker_runs import KEPT_DAYS, MOST_CHARACTERS, MOST_STEPS, Cost, WorkerArchive, steps_of
from spacebot.llm.choice import TASK_TYPES, choose, normal_task_type
from spacebot.llm.history import to_json
from spacebot.llm.messages import (
    ModelMessage,
    ModelRequest,
    ProcessKind,
    Reasoning,
    Role,
    ToolCall,
    ToolResult,
    Usage,
    last_user_text,
)
from spacebot.memory.types import Viewer
from spacebot.storage.database import Database
from spacebot.tools.worker_inspect import WorkerInspect, WorkerInspectArguments
from tests.fakes.completions import completion
from tests.fakes.fake_embedder import FakeEmbedder
from tests.fakes.opened import DIRECT, EPOCH, LLM, ROOM, Opened, open_test_agent, text_from
from tests.fakes.scripted_model import Call, Calls, Gate, Say, ScriptedModel

SECRET = "q9XwVu7-tgHh2-zzLmN4"


def spawn(task: str, **fields: Any) -> Calls:
    return Calls(Call("spawn_worker", task=task, **fields), Call("reply", content="on it"))


def outcome(text: str, **fields: Any) -> Call:
    return Call("set_status", kind="outcome", status=text, **fields)


def model(*channel: Any, worker: Any, **scripts: Any) -> ScriptedModel:
    """Each `please` of a person takes the next step; what comes back from workers is only passed on."""
    steps = iter(channel)

    def answer(request: ModelRequest) -> Any:
        return next(steps) if "please" in last_user_text(request.messages) else Call("reply", content="told")

    return ScriptedModel(answer, worker=worker, **scripts)


async def ended(opened: Opened, count: int) -> None:
    await opened.events_of(EventKind.WORKER_COMPLETED, count)
    await opened.settled()


def files(opened: Opened) -> dict[str, str]:
    """The log files of workers, by folder and kind of name."""
    folder = logs_of(opened)
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.log"))}


def words_of(step: dict[str, Any]) -> tuple[str, str | None]:
    return step["type"], step.get("name")


async def inspect(opened: Opened, viewer: Viewer, **arguments: Any) -> dict[str, Any]:
    tool = WorkerInspect(workers=opened.agent.workers.archive, viewer=viewer)
    output = await tool.call(WorkerInspectArguments(**arguments), next(opened.tree.of_kind(NodeKind.AGENT)))
    answer: dict[str, Any] = json.loads(output.text)
    return answer


async def test_a_branch_sees_what_workers_did_where_its_conversation_may_look(clock: MockClock, tmp_path: Path) -> None:
    long = "x" * 3000
    script = model(
        spawn("the private matter"), spawn("count the files"), spawn("still at it"),
        Calls(Call("branch", description="look"), Call("reply", content="ok")),
        worker=lambda request: (
            Gate(trio.Event()) if "still" in request.messages[0].text
            else outcome(f"counted in {request.messages[0].text}") if len(request.messages) > 1
            else Call("shell", command=f"printf {long}")
        ),
        branch=[Say("nothing new")],
    )  # fmt: skip
    async with open_test_agent(tmp_path, script) as opened:
        await opened.say("Ann", "please", conversation=DIRECT)
        await ended(opened, 1)
        await opened.say("Ben", "please", conversation=ROOM, is_direct=False)
        await opened.advance(5)
        await ended(opened, 2)
        await opened.say("Ben", "please", conversation=ROOM, is_direct=False)
        await opened.advance(5)
        await opened.events_of(EventKind.WORKER_STARTED, 3)
        running = opened.node(NodeKind.WORKER).id
        await opened.say("Ann", "please", conversation=DIRECT)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        room, direct = Viewer(channel_id=ROOM, user_id="ben"), Viewer(channel_id=DIRECT, user_id="ann", is_direct=True)
        seen = await inspect(opened, room, here_only=False)
        (own,) = (await inspect(opened, direct))["workers"]
        both = await inspect(opened, direct, here_only=False)
        read = await inspect(opened, direct, worker_id=own["worker_id"])
        for viewer, worker_id, why in (
            (room, own["worker_id"], "can be seen from here"),
            (room, running, "has not ended"),
            (direct, "nothing", "can be seen from here"),
        ):
            with pytest.raises(ToolError, match=why):
                await inspect(opened, viewer, worker_id=worker_id)

    assert "worker_inspect" in [tool.name for tool in script.requests_of(ProcessKind.BRANCH)[0].tools]
    assert [worker["task"] for worker in seen["workers"]] == ["count the files"]
    assert own["task"] == "the private matter"
    assert [worker["task"] for worker in both["workers"]] == ["count the files", "the private matter"]
    assert [words_of(step) for step in read["steps"]] == [
        ("told", None), ("call", "shell"), ("result", "shell"), ("call", "set_status"), ("result", "set_status"),
    ]  # fmt: skip
    assert all(len(step["text"]) < 560 for step in read["steps"])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (WorkerLogMode.ERRORS_ONLY, ["failed"]),
        (WorkerLogMode.ALL_COMBINED, ["done", "failed"]),
        (WorkerLogMode.ALL_SEPARATE, ["failed/failed", "successful/done"]),
    ],
)
async def test_an_ended_worker_leaves_the_file_that_its_owner_wants(
    mode: WorkerLogMode, expected: list[str], clock: MockClock, tmp_path: Path
) -> None:
    register_secret(SECRET)
    steps = iter(
        [
            Call("shell", command=f"echo {SECRET}; printf {'y' * 3000}"), outcome("all is well"),
            outcome(f"it is {SECRET}", result="failed"),
        ]
    )  # fmt: skip
    script = model(spawn("good work", task_type="Coding!"), spawn("bad work"), worker=lambda request: next(steps))
    async with open_test_agent(tmp_path, script, worker_log_mode=mode) as opened:
        for number in (1, 2):
            await opened.say("Ann", "please")
            await ended(opened, number)
        left = files(opened)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in logs_of(opened).rglob("*.log")}

    names = [str(Path(name).parent / ("failed" if "bad work" in text else "done")) for name, text in left.items()]
    assert sorted(name.removeprefix("./") for name in names) == expected
    assert modes == {0o600}
    assert SECRET not in "".join(left.values())
    if mode is not WorkerLogMode.ERRORS_ONLY:
        (good,) = (text for text in left.values() if "good work" in text)
        assert "state: done\ntask type: coding\n" in good
        assert "OUTCOME\nall is well" in good
        call, result = good.split("CALL shell\n")[1].split("RESULT shell\n")
        assert 500 < len(call) < 560
        assert 2000 < len(result.split("\nCALL")[0]) < 2060


async def test_transcripts_and_files_go_after_a_time_and_only_so_many_stay(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = model(*[spawn(f"task {n}") for n in range(3)], worker=lambda request: outcome("no", result="failed"))
    async with open_test_agent(tmp_path, script) as opened:
        for number in range(3):
            await opened.say("Ann", "please")
            await ended(opened, number + 1)
            await opened.advance(60)
        desk = opened.agent.workers
        assert len(files(opened)) == 3
        assert await desk.prune() == 0
        monkeypatch.setattr("spacebot.conversations.worker_runs.KEPT", 2)
        assert await desk.prune() == 2, "a transcript and its file"
        assert [entry.has_transcript for entry in await desk.page(limit=9)] == [True, True, False]
        later = EPOCH + timedelta(days=KEPT_DAYS, hours=1)
        aged = WorkerArchive(database_of(opened), Clock(now=lambda: later))
        assert await aged.prune() == 2
        assert await desk.prune() == 2
        entries = await desk.page(limit=9)

    assert files(opened) == {}
    assert [(entry.task, entry.result, entry.has_transcript) for entry in entries] == [
        (f"task {n}", "no", False) for n in (2, 1, 0)
    ]


async def test_files_are_bounded_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spacebot.agent.worker_log.MOST_FILES", 3)
    log = WorkerLog(tmp_path / "logs")
    for number in range(6):
        run = WorkerRun(
            id=NodeId(f"w{number}"), channel_id=ConversationId(ROOM), task="t", task_type=None, is_interactive=False,
            turn_id=None, reply_to=None,
        )  # fmt: skip
        failed = Outcome(NodeState.FAILED, "no")
        ended = EndedWorker(
            run=run, outcome=failed, transcript="broken", tool_calls=0, moment=f"20260301_00000{number}"
        )
        path = log.write(ended, WorkerLogMode.ALL_SEPARATE)
        assert path is not None
        assert "damaged" in path.read_text(), "an unreadable transcript is said"
    assert log.ids() == {"w3", "w4", "w5"}


async def test_who_is_forgotten_is_forgotten_in_files_and_transcripts_too(clock: MockClock, tmp_path: Path) -> None:
    script = model(spawn("Ann's secret plan"), spawn("Ben's work"), worker=lambda _: outcome("no", result="failed"))
    async with open_test_agent(tmp_path, script) as opened:
        await opened.say("Ann", "please", conversation=DIRECT)
        await ended(opened, 1)
        await opened.say("Ben", "please", conversation="test:ben", is_direct=True)
        await ended(opened, 2)
        assert len(files(opened)) == 2
        await opened.agent.forget_person("test:ann", reason="a test")
        (left,) = files(opened).values()
        entries = await opened.agent.workers.page(limit=9)

    assert "Ben's work" in left
    assert [(entry.task, entry.has_transcript) for entry in entries] == [("Ben's work", True)]


async def test_files_go_too_when_somebody_is_forgotten_while_the_program_does_not_run(
    clock: MockClock, tmp_path: Path
) -> None:
    script = model(spawn("Ann's secret plan"), worker=lambda _: outcome("no", result="failed"))
    async with open_test_agent(tmp_path, script) as opened:
        await opened.say("Ann", "please", conversation=DIRECT)
        await ended(opened, 1)
    assert len(files(opened)) == 1
    paths = InstancePaths(tmp_path, tmp_path / "config.toml")
    policy = maintenance_policy(CortexConfig())
    async with open_desk(AgentId("main"), paths.agent("main"), FakeEmbedder(), paths.logs, policy) as desk:
        await desk.forget_person("test:ann", reason="a test")
    assert files(opened) == {}


async def test_a_worker_that_waits_keeps_no_copy_of_what_a_forgotten_person_said(
    clock: MockClock, tmp_path: Path
) -> None:
    script = model(spawn("Ben's work", interactive=True), worker=[outcome("first half"), outcome("second half")])
    words = WorkerConfig(context="fork")
    async with open_test_agent(tmp_path, script, worker=words) as opened:
        await opened.say("Ann", "My dog is called Xylocarp", conversation=ROOM, is_direct=False)
        await opened.advance(5)
        await opened.say("Ben", "please", conversation=ROOM, is_direct=False)
        await opened.advance(5)
        await opened.events_of(EventKind.WORKER_IDLE, 1)
        worker_id = opened.node(NodeKind.WORKER).id
        assert "Xylocarp" in str(script.requests_of(ProcessKind.WORKER)[0].messages)
        await opened.agent.forget_person("test:ann", reason="a test")
        await opened.advance(RETRY_S)
        (entry, steps) = await opened.agent.workers.show(worker_id)
        assert "Xylocarp" not in str(steps)
        assert entry.state is NodeState.WAITING
        opened.agent.workers.route(worker_id, "now the rest")
        await opened.events_of(EventKind.WORKER_IDLE, 2)
        assert "Xylocarp" not in str(script.requests_of(ProcessKind.WORKER)[-1].messages)


async def test_what_a_worker_and_a_branch_cost_is_known(clock: MockClock, tmp_path: Path) -> None:
    script = model(spawn("the work"), worker=[outcome("done")])
    async with open_test_agent(tmp_path, script) as opened:
        await opened.say("Ann", "please")
        await ended(opened, 1)
        (entry,) = await opened.agent.workers.page(limit=1)
        assert entry.cost == Cost()
        part = Usage(input_tokens=10, output_tokens=3, cache_read_tokens=100)
        await opened.agent.usage.log.record(
            [
                completion("a/first", part, kind="worker", process_id=entry.id),
                completion("b/second", part, kind="worker", process_id=entry.id),
                *(completion("a/first", part, kind="branch", process_id="b1") for _ in range(2)),
            ]
        )
        (entry,) = await opened.agent.workers.page(limit=1)
        costs = await opened.agent.workers.costs([entry.id, "b1", "nothing"])

    assert entry.cost == Cost(calls=2, usage=part + part, models=("b/second", "a/first"))
    assert costs == {entry.id: entry.cost, "b1": Cost(calls=2, usage=part + part, models=("a/first",))}


async def test_words_that_came_in_do_not_use_up_the_patience(clock: MockClock, tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("Still planning."))
    script = model(spawn("the work"), worker=["A plan.", gate, "Understood.", outcome("done, both")])
    async with open_test_agent(tmp_path, script) as opened:
        await opened.say("Ann", "please")
        await gate.arrived.wait()
        opened.agent.workers.route(opened.node(NodeKind.WORKER).id, "and the other half")
        gate.event.set()
        await ended(opened, 1)
        (entry,) = await opened.agent.workers.page(limit=1)
    assert (entry.state, entry.result) == (NodeState.DONE, "done, both")
    assert "and the other half" in str(script.requests_of(ProcessKind.WORKER)[2].messages)


async def test_tool_events_carry_what_was_given_and_came_back_without_secrets_and_within_limits(
    clock: MockClock, tmp_path: Path
) -> None:
    register_secret(SECRET)
    command = f"echo {SECRET}; printf '{'z' * 60_000}' # {'y' * 9000}"
    script = model(spawn("the work"), worker=[Call("shell", command=command), outcome("done")])
    kinds = frozenset({EventKind.TOOL_STARTED, EventKind.TOOL_COMPLETED})
    async with open_test_agent(tmp_path, script) as opened:
        with opened.events.subscribe(kinds) as other:
            await opened.say("Ann", "please")
            await ended(opened, 1)
            light = list(iter(other.receive_nowait, None))
        started = [e for e in opened.of_kind(EventKind.TOOL_STARTED) if e.fields["tool_name"] == "shell"]
        completed = [e for e in opened.of_kind(EventKind.TOOL_COMPLETED) if e.fields["tool_name"] == "shell"]
    (begin,), (end,) = started, completed
    assert begin.fields["call_id"] == end.fields["call_id"]
    assert 1900 < len(str(begin.fields["arguments"])) <= 2000
    assert 2000 < len(str(end.fields["result"]).encode()) <= 50_000
    assert SECRET not in f"{begin.fields} {end.fields}"
    assert len(light) >= 4
    assert all({"arguments", "result"}.isdisjoint(event.fields) for event in light)


async def test_a_model_chosen_for_a_task_type_is_named_to_the_channel_however_the_type_is_spelt(
    clock: MockClock, tmp_path: Path
) -> None:
    script = ScriptedModel(spawn("sum it up", task_type="Summarisation"), "told", worker=[outcome("done")])
    routing = RoutingConfig(task_overrides={"summarisation": "demo/demo"})
    async with open_test_agent(tmp_path, script, routing=routing, brave_search_key=SecretStr("k" * 20)) as opened:
        await opened.say("Ann", "please")
        await ended(opened, 1)
    (asked,) = script.requests_of(ProcessKind.WORKER)
    assert asked.task_type == "summarization"
    assert choose(ProcessKind.WORKER, asked.task_type, AgentSettings(routing=routing), LLM).names[0] == "demo/demo"
    (tool,) = (tool for tool in script.requests[0].tools if tool.name == "spawn_worker")
    assert "task types summarisation" in tool.description
    assert "deep_reasoning" in json.dumps(tool.schema)
    assert "shell and file tools, and a browser, web search, for a job" in tool.description


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Deep Reasoning", "deep_reasoning"),
        (" CODE ", "coding"),
        ("Übersetzen", "bersetzen"),
        ("!!", None),
        (None, None),
    ],
)
def test_task_types_are_one_word_whoever_writes_them(given: str | None, kept: str | None) -> None:
    assert normal_task_type(given) == kept


async def test_what_a_workers_program_needs_to_go_on_is_kept(tmp_path: Path) -> None:
    async with open_test_agent(tmp_path, ScriptedModel()) as opened:
        log, place = opened.agent.conversations, ConversationId(DIRECT)
        await log.accept(text_from("Ann", "hi"))
        run = WorkerRun(
            id=NodeId("w1"), channel_id=place, task="t", task_type="coding", is_interactive=True, turn_id=None,
            reply_to=None, worker_type="opencode", directory="/tmp/project",
        )  # fmt: skip
        await log.start_worker(run)
        await log.note_session(run.id, "ses_1")
        _, (kept,) = await log.open_runs(place)
        (entry,) = await opened.agent.workers.page(limit=1)
    assert kept == replace(run, session_id="ses_1")
    assert (entry.worker_type, entry.directory, entry.is_private) == ("opencode", "/tmp/project", True)


def test_the_configuration_of_the_guide_is_taken_as_it_is(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "workers.md"
    (sample,) = re.findall(r"```toml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "config.toml"
    file.write_text(sample)
    loaded = load_config(file, environ={"ANTHROPIC_API_KEY": "sk-ant-x"})
    assert loaded.warnings == ()
    assert set(loaded.config.agents[0].routing.task_overrides) == set(TASK_TYPES)


def test_a_long_transcript_is_shown_from_its_end_and_says_what_is_missing() -> None:
    register_secret(SECRET)
    messages = [ModelMessage.user("the task")]
    for number in range(MOST_STEPS):
        call = ToolCall(f"c{number}", "shell", {"command": f"echo {number} {SECRET}"}, "")
        messages.append(ModelMessage(Role.ASSISTANT, (Reasoning("hm"), call)))
        messages.append(ModelMessage(Role.USER, (ToolResult(call.id, "é" * 3000),)))
    shown = steps_of(to_json(messages), call_bytes=500, result_bytes=2000)
    assert len(shown.steps) == MOST_STEPS
    assert shown.steps[-1].text == f"{'é' * 1000}… (6000 bytes in all)"
    assert shown.steps[-1].name == "shell"
    assert shown.left_out > MOST_STEPS
    assert SECRET not in str(shown)
    wide = steps_of(to_json(messages), call_bytes=500, result_bytes=9000)
    assert sum(len(step.text) for step in wide.steps) <= MOST_CHARACTERS
    assert len(wide.steps) < MOST_STEPS


@pytest.mark.parametrize("text", ["short", "é" * PACK_CHARS, "\ud800" * PACK_CHARS])
def test_a_long_transcript_is_kept_compressed_and_comes_back_the_same(text: str) -> None:
    packed = pack(text)
    assert unpack(packed) == text
    assert isinstance(packed, bytes) == (len(text) >= PACK_CHARS)


def logs_of(opened: Opened) -> Path:
    return opened.folder / "agents" / "main" / "data" / "logs"


def database_of(opened: Opened) -> Database:
    return opened.agent._forgetting._database
