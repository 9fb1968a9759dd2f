"""The demo model drives the real tools: what it calls, and that it never calls what it was not offered."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Template

from spacebot.llm.demo import DemoDialect, respond
from spacebot.llm.messages import (
    ArgumentsDelta,
    FinishReason,
    ModelMessage,
    ModelRequest,
    Part,
    ProcessKind,
    Role,
    StreamDelta,
    SystemBlock,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from tests.llm.given import ask, target

CHANNEL = ("reply", "skip", "react", "branch", "spawn_worker", "route", "cancel")
BRANCH = ("memory_save", "memory_recall", "memory_delete", "channel_recall", "spawn_worker")
WORKER = ("shell", "exec", "file", "set_status")
NOW = """<now>
Time: 2026-11-21 10:00
Worker 3f2a, running since 10:00, 2 tool calls: sleep (status: running)
Branch 77aa since 10:00:01: think
</now>
"""


def request(process: ProcessKind, offered: tuple[str, ...], *messages: ModelMessage, system: str = "") -> ModelRequest:
    tools = tuple(ToolSpec(name, name, {}) for name in offered)
    return ModelRequest(process=process, system=(SystemBlock(system),), messages=messages, tools=tools)


def calls(parts: list[Part]) -> list[tuple[str, dict[str, object]]]:
    return [(part.name, dict(part.arguments or {})) for part in parts if isinstance(part, ToolCall)]


def channel(text: str, offered: tuple[str, ...] = CHANNEL) -> list[tuple[str, dict[str, object]]]:
    return calls(respond(request(ProcessKind.CHANNEL, offered, ModelMessage.user(text))))


def said(text: str) -> str:
    return "".join(str(arguments["content"]) for name, arguments in channel(text) if name == "reply")


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("hello", ["reply"]),
        ("[10:00] ann: Hi there!", ["reply"]),
        ("thanks", ["reply"]),
        ("what is the meaning of life", ["reply"]),
        ("Remember that the deploy is on Friday", ["branch", "skip"]),
        ("my favourite colour is blue", ["branch", "skip"]),
        ("I like tea", ["branch", "skip"]),
        ("what is my favourite colour?", ["branch", "skip"]),
        ("What do you remember about me?", ["branch", "skip"]),
        ("run: echo hello", ["spawn_worker", "reply"]),
        ("[10:00] ann: @spacebot run: echo hello", ["spawn_worker", "reply"]),
        ("[10:00] ann: Spacebot, count files.", ["spawn_worker", "reply"]),
        ("shell ls -la", ["spawn_worker", "reply"]),
        ("wait 3 seconds", ["spawn_worker", "reply"]),
        ("work for one minute", ["spawn_worker", "reply"]),
        ("count files", ["spawn_worker", "reply"]),
        ("make a file notes.txt with hello world", ["spawn_worker", "reply"]),
        (NOW + "[10:00] ann: cancel the worker", ["cancel", "cancel", "reply"]),
        (NOW + "[10:00] ann: tell the worker: run: ls", ["route", "reply"]),
        (NOW + "[10:00] ann: what is running?", ["reply"]),
        ("[10:00] ann: the weather is fine\n[10:01] bob: indeed it is", ["skip"]),
        ("[10:00] ann: the weather is fine\n[10:01] bob: bot, hello", ["reply"]),
    ],
)
def test_what_a_channel_does(text: str, tools: list[str]) -> None:
    assert [name for name, _ in channel(text)] == tools


def test_people_see_who_speaks() -> None:
    assert said("[10:00] ann: hello").startswith("[demo model] Hello ann!")


def test_memories_are_written_as_others_see_them() -> None:
    assert channel("[10:00] ann: my favourite tea is green")[0] == (
        "branch",
        {"description": "Save to memory (preference): ann's favourite tea is green"},
    )
    assert channel("[10:00] ann: what is my favourite tea?")[0] == (
        "branch",
        {"description": "Recall from memory: what is ann's favourite tea?"},
    )


def test_ids_come_from_what_is_running() -> None:
    assert channel(NOW + "ann: stop")[:2] == [
        ("cancel", {"process_type": "worker", "process_id": "3f2a", "reason": "asked to"}),
        ("cancel", {"process_type": "branch", "process_id": "77aa", "reason": "asked to"}),
    ]
    assert channel(NOW + "ann: tell the worker to hurry")[0] == ("route", {"worker_id": "3f2a", "message": "hurry"})
    assert "Worker 3f2a" in said(NOW + "ann: what is running?")
    assert said("ann: cancel") == "[demo model] Nothing is running."


def test_results_are_relayed() -> None:
    prompt = (
        NOW
        + '<result process="worker" id="3f2a" state="done" about="sleep">\nwaited 3 s\n</result>\n'
        + '<result process="branch" id="77aa" state="failed" about="think">\nno model\n</result>\n'
        + "Work that was started earlier has come back.\n"
    )
    assert channel(prompt) == [("reply", {"content": "[demo model] waited 3 s\nThat did not work (failed): no model"})]


def test_after_its_tools_ran_a_channel_speaks_only_of_failure() -> None:
    asked = ModelMessage.user("run: ls")
    call = ModelMessage(Role.ASSISTANT, (ToolCall("1", "spawn_worker", {"task": "x"}),))
    good = ModelMessage(Role.USER, (ToolResult("1", '{"spawned": true}'),))
    bad = ModelMessage(Role.USER, (ToolResult("1", "5 live workers are the limit", is_error=True),))
    assert respond(request(ProcessKind.CHANNEL, CHANNEL, asked, call, good)) == []
    ((name, arguments),) = calls(respond(request(ProcessKind.CHANNEL, CHANNEL, asked, call, bad)))
    assert name == "reply"
    assert "limit" in str(arguments["content"])


def run(process: ProcessKind, offered: tuple[str, ...], task: str, results: dict[str, str]) -> list[list[Part]]:
    """Play a process to its end; gives what it said at each step."""
    messages = [ModelMessage.user(task)]
    steps: list[list[Part]] = []
    for _ in range(5):
        parts = respond(request(process, offered, *messages))
        steps.append(parts)
        used = [part for part in parts if isinstance(part, ToolCall)]
        if not used:
            return steps
        messages.append(ModelMessage(Role.ASSISTANT, tuple(parts)))
        messages.append(ModelMessage(Role.USER, tuple(ToolResult(c.id, results.get(c.name, "{}")) for c in used)))
    raise AssertionError("it never ends")


def test_a_branch_saves_and_concludes() -> None:
    first, last = run(ProcessKind.BRANCH, BRANCH, "Save to memory (fact): the deploy is on Friday", {})
    assert calls(first) == [("memory_save", {"content": "the deploy is on Friday", "memory_type": "fact"})]
    assert last == [Text("Noted: the deploy is on Friday")]


@pytest.mark.parametrize(
    ("found", "conclusion"),
    [
        ('{"memories": [{"id": "1", "content": "ann\'s tea is green"}, {"content": "x"}]}', "ann's tea is green\nx"),
        ('{"memories": []}', "Nothing found in memory."),
        ("ann's tea is green", "ann's tea is green"),
        ("", "Nothing found in memory."),
    ],
)
def test_a_branch_recalls_and_concludes(found: str, conclusion: str) -> None:
    first, last = run(ProcessKind.BRANCH, BRANCH, "Recall from memory: ann's tea", {"memory_recall": found})
    assert calls(first) == [("memory_recall", {"query": "ann's tea"})]
    assert last == [Text(conclusion)]


@pytest.mark.parametrize("words", ["run: echo hi", "wait 2 seconds", "count files"])
def test_a_worker_does_what_the_channel_asked_for(words: str) -> None:
    task = str(channel(words)[0][1]["task"])
    first, second, last = run(ProcessKind.WORKER, WORKER, task, {"shell": '{"exit_code": 0, "stdout": "out\\n"}'})
    assert [name for name, _ in calls(first)] == ["set_status", "shell"]
    assert calls(second) == [("set_status", {"status": "out", "kind": "outcome", "result": "done"})]
    assert last == [Text("out")]


def test_a_worker_writes_files() -> None:
    task = str(channel("make a file notes.txt with hello world")[0][1]["task"])
    first = run(ProcessKind.WORKER, WORKER, task, {"file": '{"message": "written"}'})[0]
    assert calls(first)[1] == ("file", {"operation": "write", "path": "notes.txt", "content": "hello world"})


def test_a_worker_reads_its_task_from_the_system_prompt_too() -> None:
    system = "You are a worker.\n# Task\n" + str(channel("run: ls")[0][1]["task"])
    parts = respond(request(ProcessKind.WORKER, WORKER, ModelMessage.user("Begin."), system=system))
    assert calls(parts)[1] == ("shell", {"command": "ls"})


def test_a_worker_with_a_riddle_reports_itself_blocked() -> None:
    ((name, arguments),) = calls(respond(request(ProcessKind.WORKER, WORKER, ModelMessage.user("be wise"))))
    assert (name, arguments["kind"], arguments["result"]) == ("set_status", "outcome", "blocked")


async def test_words_are_streamed_in_pieces_that_add_up() -> None:
    deltas: list[StreamDelta] = []
    reply = await DemoDialect().complete(ask("hello"), target("demo/demo"), deltas.append)
    assert reply.finish_reason is FinishReason.STOP
    assert len(deltas) > 3
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == reply.message.text
    deltas.clear()
    reply = await DemoDialect().complete(
        request(ProcessKind.CHANNEL, CHANNEL, ModelMessage.user("run: ls")), target("demo/demo"), deltas.append
    )
    second = [d.fragment for d in deltas if isinstance(d, ArgumentsDelta) and d.index == 1]
    assert "".join(second) == reply.message.tool_calls[1].raw_arguments


@given(st.sampled_from(list(ProcessKind)), st.text(), st.sets(st.sampled_from(CHANNEL + BRANCH + WORKER)))
def test_whatever_is_said_only_offered_tools_are_called(process: ProcessKind, text: str, offered: set[str]) -> None:
    parts = respond(request(process, tuple(offered), ModelMessage.user(text)))
    assert {name for name, _ in calls(parts)} <= offered


PROMPTS = Path(__file__).resolve().parents[2] / "prompts"


def filled(template: str, **variables: object) -> str:
    """One of the program's own prompts, so that the demo model is tested against what it really gets."""
    return Template((PROMPTS / f"{template}.md").read_text(encoding="utf-8")).render(**variables)


def test_a_summary_keeps_the_first_lines_of_the_talk() -> None:
    talk = "\n".join(f"[10:{n:02}] Ann (id ann): line {n}" for n in range(20))
    prompt = filled("fragments/compaction", transcript=talk, number=1, total=1)
    offered = ("memory_save", "write_summary")
    ((name, arguments),) = calls(respond(request(ProcessKind.COMPACTOR, offered, ModelMessage.user(prompt))))
    assert name == "write_summary"
    assert str(arguments["summary"]).startswith("[10:00] Ann (id ann): line 0\n")
    assert str(arguments["summary"]).endswith("and 8 more lines")


def test_a_persistence_run_ends_with_a_valid_report() -> None:
    offered = ("memory_save", "memory_recall", "memory_persistence_complete")
    prompt = filled("fragments/persistence", transcript="[10:00] Ann (id ann): remember that it rains")
    ((name, arguments),) = calls(respond(request(ProcessKind.BRANCH, offered, ModelMessage.user(prompt))))
    assert (name, arguments["outcome"]) == ("memory_persistence_complete", "no_memories")


def test_a_briefing_says_what_the_notes_say_once() -> None:
    note = {"type": "fact", "importance": 0.6, "day": "today", "text": "Ann keeps bees."}
    sections = [{"name": "recent", "memories": [note]}, {"name": "important", "memories": [note]}]
    prompt = filled("fragments/cortex_synthesis", raw_sections=sections, max_words=500)
    system = filled("CORTEX")
    (part,) = respond(request(ProcessKind.CORTEX, (), ModelMessage.user(prompt), system=system))
    assert part == Text("Ann keeps bees.")


def test_judgement_and_profile_have_the_form_that_is_asked_for() -> None:
    judged, card = (
        respond(request(ProcessKind.CORTEX, (), ModelMessage.user("go"), system=filled(name)))
        for name in ("CORTEX_JUDGE", "CORTEX_PROFILE")
    )
    assert judged == [Text("[]")]
    assert isinstance(card[0], Text)
    assert json.loads(card[0].text)["display_name"] == "Spacebot"
