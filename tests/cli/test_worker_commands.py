"""`spacebot worker`, with workers that an earlier life of the program left."""

import json
from functools import partial
from pathlib import Path

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.ids import ConversationId, NodeId
from spacebot.base.tree import NodeState, Outcome
from spacebot.conversations.records import WorkerRun
from spacebot.llm.history import to_json
from spacebot.llm.messages import ModelMessage, Role, Text, ToolCall, ToolResult, Usage
from spacebot.messaging.messages import Author, InboundMessage
from tests.cli.conftest import Instance
from tests.fakes.completions import completion
from tests.fakes.fake_program import open_fake_program

STEPS = (
    ModelMessage.user("Count the files"),
    ModelMessage(Role.ASSISTANT, (Text("I look."), ToolCall("c1", "shell", {"command": "ls"}, ""))),
    ModelMessage(Role.USER, (ToolResult("c1", "a.txt\nb.txt"),)),
)


async def leave_workers(folder: Path) -> None:
    """A worker that has ended in a room, one that waits in a direct chat, and what the first one cost."""
    folder.mkdir(parents=True)
    async with open_fake_program(folder) as program:
        log = program.main.conversations
        for room, is_direct, worker_id, task in (
            ("test:room", False, "aaaa1111", "Count the files"), ("test:direct", True, "bbbb2222", "My secret"),
        ):  # fmt: skip
            author = Author(id="ann", name="Ann")
            place = ConversationId(room)
            await log.accept(
                InboundMessage(
                    platform="test", conversation_id=place, author=author, text="x", sent_at=Clock().now(),
                    is_direct=is_direct,
                )
            )  # fmt: skip
            run = WorkerRun(
                id=NodeId(worker_id), channel_id=place, task=task, task_type="coding", is_interactive=is_direct,
                turn_id=None, reply_to=None,
            )  # fmt: skip
            await log.start_worker(run)
            done = Outcome(NodeState.DONE, "There are two.")
            save = partial(log.finish_worker, tell=False) if not is_direct else log.add_result
            await save(run, done, status="counted", transcript=to_json(STEPS), tool_calls=1)
        usage = Usage(input_tokens=1200, output_tokens=30, cache_read_tokens=5000)
        await program.main.usage.log.record([completion("demo/demo", usage, kind="worker", process_id="aaaa1111")])


@pytest.fixture
def running(instance: Instance) -> Instance:
    trio.run(leave_workers, instance.root)
    assert instance.run("start").returncode == 0
    return instance


def test_workers_are_listed_and_one_is_looked_at(running: Instance) -> None:
    waiting, done = running.run("worker", "list").stdout.splitlines()
    assert waiting.startswith("bbbb2222  waiting  ")
    assert waiting.endswith("(from a direct chat; --private shows it)")
    assert done.endswith("1 calls  6,230 tokens  demo/demo  Count the files")
    assert "My secret" in running.run("worker", "list", "--private", "--state", "live").stdout
    shown = running.run("worker", "show", "aaaa").stdout
    assert "kind:    builtin, coding\nwhere:   test:room\nstate:   done: counted\n" in shown
    assert "tokens: 1,200 in, 5,000 from the cache, 0 into it, 30 out" in shown
    assert shown.endswith('> Count the files\n  I look.\n$ shell {"command": "ls"}\n= shell a.txt b.txt\n')
    (worker,) = json.loads(running.run("worker", "list", "--state", "done", "--json").stdout)["workers"]
    assert (worker["id"], worker["result"], worker["cost"]["model_calls"]) == ("aaaa1111", "There are two.", 1)


def test_what_is_wrong_is_said(running: Instance) -> None:
    for words, why in (
        (("show", "cccc"), "there was no worker 'cccc'"),
        (("tell", "aaaa1111", "hello"), "no worker 'aaaa1111' lives any more"),
        (("cancel", "aaaa1111"), "'aaaa1111' is running here"),
        (("list", "--state", "odd"), "state must be one of live, ended"),
        (("list", "--agent", "nobody"), "there is no agent 'nobody'"),
    ):
        refused = running.run("worker", *words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert why in refused.stderr
