"""Workers that are OpenCode, against a stand-in for its server: what is told, what is asked, and every way to end."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from trio.testing import MockClock

from spacebot.agent.opencode_worker import SILENCE_S, decision_of
from spacebot.base.events import EventKind
from spacebot.base.tree import Node, NodeKind, NodeState
from spacebot.config.hands import OpenCodeConfig, OpenCodePermissions, PermissionsConfig
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.llm.messages import ProcessKind
from spacebot.tools.opencode.pool import IDLE_S
from tests.fakes import opened as fake
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel
from tests.stand_ins.opencode import (
    OpenCodeStandIn,
    event,
    idle,
    message,
    password_of,
    permission,
    question,
    say,
    serve_opencode,
    text,
    tool,
)

REAL = LlmConfig(provider={"stand": ProviderConfig(api_type=ApiType.OPENAI_COMPLETIONS, base_url="http://127.0.0.1:9")})


def spawn(task: str = "fix the bug", directory: str = "app") -> Call:
    return Call("spawn_worker", task=task, worker_type="opencode", directory=directory)


def saying(*calls: Call) -> Any:
    """A channel that does these things one turn each, and has nothing to say to what comes of them."""
    steps = iter(calls)
    return lambda request: Calls(*[call for call in [next(steps, None)] if call], Call("reply", content="ok"))


@asynccontextmanager
async def at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *calls: Call, **settings: Any
) -> AsyncIterator[tuple[Opened, OpenCodeStandIn]]:
    """An agent whose OpenCode worker has been asked to work."""
    monkeypatch.setattr(fake, "LLM", REAL)
    async with serve_opencode(tmp_path) as stand_in:
        config = OpenCodeConfig(enabled=True, path=str(stand_in.program))
        model = ScriptedModel(saying(*(calls or (spawn(),))))
        async with open_test_agent(tmp_path / "home", model, opencode=config, **settings) as opened:
            await opened.say("Ann", "work")
            await asked(opened, stand_in, 1)
            yield opened, stand_in


async def asked(opened: Opened, stand_in: OpenCodeStandIn, count: int) -> None:
    """Wait until so many prompts have come; the worker looks for its program's words now and then."""
    while len(stand_in.prompts) < count:
        await opened.advance(0.05)


async def idle_result(opened: Opened, count: int) -> str:
    return str((await opened.events_of(EventKind.WORKER_IDLE, count))[-1].fields["result"])


async def ended(opened: Opened) -> tuple[str, str]:
    (told,) = await opened.events_of(EventKind.WORKER_COMPLETED, 1)
    return str(told.fields["state"]), str(told.fields["result"])


def hand_in(opened: Opened, words: str) -> str:
    return opened.agent.workers.route(worker(opened).id, words)


def worker(opened: Opened) -> Node:
    return opened.node(NodeKind.WORKER)


async def test_all_words_of_a_piece_of_work_come_whatever_way_the_bytes_are_cut(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22.21: a piece of the stream may end within a character; lines may end with CRLF; the message list may fail."""
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        stand_in.messages = None
        await stand_in.tell(idle())  # an early one says nothing
        stream = "".join(
            f"event: message\r\ndata: {line}\r\n\r\n"
            for line in (
                '{"type":"message.updated","properties":{"info":{"id":"msg_1","role":"assistant","sessionID":"ses_1"}}}',
                '{"type":"message.part.updated","properties":{"part":{"id":"prt_1","messageID":"msg_1",'
                '"sessionID":"ses_1","type":"text","text":""}}}',
                '{"type":"message.part.delta","properties":{"sessionID":"ses_1","messageID":"msg_1","partID":"prt_1",'
                '"field":"text","delta":"Zürich 🦊 "}}',
                '{"type":"message.part.delta","properties":{"sessionID":"ses_1","messageID":"msg_1","partID":"prt_1",'
                '"field":"text","delta":"東京"}}',
            )
        ).encode()
        await stand_in.send([stream[i : i + 1] for i in range(len(stream))])
        await stand_in.tell(*say("Second.", 2), *say("of somebody else", 3, session="ses_other"), idle())

        assert await idle_result(opened, 1) == "Zürich 🦊 東京\n\nSecond."
        assert stand_in.prompts[0]["parts"] == [{"type": "text", "text": "fix the bug"}]
        assert stand_in.prompts[0]["model"] == {"providerID": "spacebot", "modelID": "gpt-4.1"}
        (login,) = stand_in.logins
        assert len(password_of(login)) >= 32


async def test_heartbeats_are_no_sign_of_life(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22.21: only events of its own session count; then it is stopped there too, and its folder is free."""
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(*say("half of it"))
        await opened.advance(SILENCE_S - 1)
        await stand_in.tell(event("server.heartbeat"), *say("noise", 9, session="ses_other"))
        await opened.settled()
        assert worker(opened).state is NodeState.RUNNING
        await opened.advance(2)
        state, result = await ended(opened)

        assert state == "timed_out"
        assert "half of it" in result
        assert stand_in.aborted == ["ses_1"]


async def test_a_failure_is_told_and_the_worker_stays_for_another_try(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        error = {"name": "APIError", "data": {"message": "the key sk-ant-api03-" + "x" * 80 + " was refused"}}
        await stand_in.tell(message(), event("session.error", sessionID="ses_1", error=error))
        words = await idle_result(opened, 1)
        assert words.startswith("OpenCode gave up: the key")
        assert "xxxx" not in words

        assert hand_in(opened, "try again") == "it goes on with this now"
        await asked(opened, stand_in, 2)
        await stand_in.tell(idle(), *say("done now", 2), idle())
        assert await idle_result(opened, 2) == "done now"
        assert stand_in.started == 1


async def test_what_is_handed_in_during_work_reaches_the_session(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        assert hand_in(opened, "use tabs") == "it sees this at its next step"
        await stand_in.tell(*say("first"))
        await asked(opened, stand_in, 2)
        assert "use tabs" in stand_in.prompts[1]["parts"][0]["text"]
        await stand_in.tell(idle())  # of what was said before
        await stand_in.tell(*say("with tabs", 2), idle())
        assert await idle_result(opened, 1) == "first\n\nwith tabs"


async def test_a_session_that_is_gone_begins_anew_with_the_task(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(*say("done"), idle())
        await idle_result(opened, 1)
        stand_in.sessions[:] = ["ses_gone"]
        hand_in(opened, "and the tests?")
        await asked(opened, stand_in, 2)
        words = stand_in.prompts[1]["parts"][0]["text"]
        assert stand_in.prompts[1]["session"] == "ses_2"
        assert "fix the bug" in words
        assert "and the tests?" in words


async def test_a_server_that_breaks_off_is_replaced_and_the_work_goes_on(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(*say("first half"))
        await stand_in.hang_up()
        await asked(opened, stand_in, 2)
        assert stand_in.started == 2
        assert stand_in.prompts[1]["session"] == "ses_1"
        await stand_in.tell(*say("second half", 2), idle())
        assert await idle_result(opened, 1) == "first half\n\nsecond half"


async def test_a_server_that_always_breaks_off_ends_in_a_plain_failure(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        opened.config[0] = opened.config[0].model_copy(
            update={"opencode": opened.config[0].opencode.model_copy(update={"max_restart_retries": 1})}
        )
        await stand_in.tell(*say("so far"), idle())
        await idle_result(opened, 1)
        hand_in(opened, "more")
        for count in (2, 3):
            await asked(opened, stand_in, count)
            await opened.settled()
            await stand_in.hang_up()
        words = await idle_result(opened, 2)
        assert "ended 2 times" in words
        assert "so far" in words


@pytest.mark.parametrize(
    ("reply", "answers"), [("Blue.", ["blue"]), ("2", ["blue"]), ("a mix of both", ["a mix of both"])]
)
async def test_a_question_is_for_the_user(
    reply: str, answers: list[str], clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(*say("Let me ask."), question("red", "blue"))
        asked_for = await idle_result(opened, 1)
        assert "Which colour?" in asked_for
        assert "red; blue" in asked_for
        assert worker(opened).state is NodeState.WAITING
        await opened.advance(SILENCE_S + 1)  # people may take their time
        hand_in(opened, reply)
        await opened.settled()
        assert stand_in.replies == [("que_1", {"answers": [answers]})]
        assert worker(opened).state is NodeState.RUNNING
        await stand_in.tell(text("Blue it is.", 2), message(2), idle())
        assert await idle_result(opened, 2) == "Let me ask.\n\nBlue it is."


async def test_a_part_of_the_work_in_a_session_of_its_own_may_ask_for_permission(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        child = event("session.created", info={"id": "ses_child", "parentID": "ses_1"})
        await stand_in.tell(message(), child, permission("rm -r build", session="ses_child"))
        assert "rm -r build" in await idle_result(opened, 1)
        hand_in(opened, "no, keep it")
        await opened.settled()
        assert stand_in.replies == [("per_1", {"reply": "reject", "message": "keep it"})]


@pytest.mark.parametrize("when", ["at work", "waiting"])
async def test_after_a_restart_the_session_goes_on(
    when: str, clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "LLM", REAL)
    async with serve_opencode(tmp_path) as stand_in:
        config = OpenCodeConfig(enabled=True, path=str(stand_in.program))
        async with open_test_agent(tmp_path / "home", ScriptedModel(saying(spawn())), opencode=config) as opened:
            await opened.say("Ann", "work")
            await asked(opened, stand_in, 1)
            await stand_in.tell(*say("first half"))
            if when == "waiting":
                await stand_in.tell(idle())
                await idle_result(opened, 1)
            else:
                await opened.settled()
                hand_in(opened, "use tabs")  # nobody has read it when the program stops
        async with open_test_agent(tmp_path / "home", ScriptedModel(saying()), opencode=config) as opened:
            await opened.settled()
            old = [text(words, role)["properties"]["part"] for words, role in (("fix the bug", 0), ("first half", 1))]
            roles = ("user", "assistant")
            stand_in.messages = [
                {"info": {"id": part["messageID"], "role": role, "sessionID": "ses_1"}, "parts": [part]}
                for part, role in zip(old, roles, strict=True)
            ]
            if when == "waiting":
                hand_in(opened, "more")
            await asked(opened, stand_in, 2)
            words = stand_in.prompts[1]["parts"][0]["text"]
            assert (words == "more") if when == "waiting" else ("interrupted" in words and "use tabs" in words)
            assert stand_in.prompts[1]["session"] == "ses_1"
            await stand_in.tell(*say("second half", 2), idle())
            assert await idle_result(opened, 1) == "second half"
            _, steps = await opened.agent.workers.show(worker(opened).id)  # with what was before the restart
            assert [str(steps).count(half) for half in ("first half", "second half")] == [1, 1]


@pytest.mark.parametrize("kind", ["question", "permission"])
async def test_without_an_answer_it_goes_on_and_says_so(
    kind: str, clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(message(), question("red", "blue") if kind == "question" else permission("make"))
        await idle_result(opened, 1)
        await opened.advance(opened.config[0].worker.idle_timeout_secs + 1)
        ((_, reply),) = stand_in.replies
        assert reply == ({"answers": [["red"]]} if kind == "question" else {"reply": "reject"})
        await stand_in.tell(text("done"), idle())
        words = await idle_result(opened, 2)
        assert words.startswith("Nobody answered in time.")
        assert words.endswith("done")


async def test_a_cancelled_worker_is_stopped_in_its_session_and_its_folder_is_free(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22.22: the next worker gets the same folder at once."""
    async with at_work(tmp_path, monkeypatch, spawn(), spawn("another task")) as (opened, stand_in):
        state = tmp_path / "home" / "agents" / "main" / "data" / "opencode"
        assert [folder.name for folder in state.iterdir()]
        worker(opened).cancel("enough")
        assert (await ended(opened))[0] == "cancelled"
        assert stand_in.aborted == ["ses_1"]
        assert not list(state.iterdir())

        await opened.say("Ann", "another")
        await asked(opened, stand_in, 2)
        assert stand_in.prompts[1]["parts"][0]["text"] == "another task"


@pytest.mark.spec("P62")
@pytest.mark.parametrize("other", ["app", "app/src/deep", ".", "link"])
async def test_a_folder_is_never_shared(
    other: str, clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch, spawn(), spawn("another task", other)) as (opened, stand_in):
        workspace = tmp_path / "home" / "agents" / "main" / "workspace"
        os.symlink(workspace / "app", workspace / "link")
        first = worker(opened).id
        await opened.say("Ann", "another")
        await opened.ended(2)
        told = [e for e in opened.of_kind(EventKind.TOOL_COMPLETED) if e.fields["tool_name"] == "spawn_worker"]
        answer = json.loads(str(told[1].fields["result"]))
        assert (answer["spawned"], answer["worker_id"]) == (False, first)
        assert worker(opened).id == first
        assert len(stand_in.prompts) == 1


async def test_a_stranger_at_the_port_is_not_taken_for_the_server(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "LLM", REAL)
    async with serve_opencode(tmp_path) as stand_in:
        stand_in.is_stranger = True
        config = OpenCodeConfig(enabled=True, path=str(stand_in.program), server_startup_timeout_secs=3)
        async with open_test_agent(tmp_path / "home", ScriptedModel(saying(spawn())), opencode=config) as opened:
            await opened.say("Ann", "work")
            while not opened.of_kind(EventKind.WORKER_IDLE):
                await opened.advance(0.05)
            words = await idle_result(opened, 1)
            assert "not ready after 3 s" in words
            assert "server_startup_timeout_secs" in words
            assert not stand_in.sessions


async def test_a_slow_start_holds_up_no_other_folder(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "LLM", REAL)
    async with serve_opencode(tmp_path) as stand_in:
        stand_in.is_first_slow = True
        model = ScriptedModel(saying(spawn(), spawn("another task", "other")))
        config = OpenCodeConfig(enabled=True, path=str(stand_in.program))
        async with open_test_agent(tmp_path / "home", model, opencode=config) as opened:
            await opened.say("Ann", "work")
            while not stand_in.logins:
                await opened.advance(0.05)
            await opened.say("Ann", "another")
            await asked(opened, stand_in, 1)
            assert stand_in.prompts[0]["parts"][0]["text"] == "another task"


async def test_servers_without_work_make_room_and_go_after_a_while(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "LLM", REAL)
    async with serve_opencode(tmp_path) as stand_in:
        model = ScriptedModel(saying(spawn(), spawn("too many", "other"), spawn("another task", "third")))
        config = OpenCodeConfig(enabled=True, path=str(stand_in.program), max_servers=1)
        async with open_test_agent(tmp_path / "home", model, opencode=config) as opened:
            await opened.say("Ann", "work")
            await asked(opened, stand_in, 1)
            await opened.say("Ann", "another")
            assert "max_servers" in await idle_result(opened, 1)
            await stand_in.tell(*say("done"), idle())
            await idle_result(opened, 2)
            await opened.say("Ann", "a third")
            await asked(opened, stand_in, 2)
            assert stand_in.started == 2
            await stand_in.tell(*say("done", session="ses_2"), idle("ses_2"))
            await idle_result(opened, 3)
            assert children()
            await opened.advance(IDLE_S + 1)
            await opened.advance(IDLE_S + 1)
            assert not children()


def children() -> list[psutil.Process]:
    """The stand-in's programs that run."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and "100000" in p.cmdline()]


@pytest.mark.spec("P46", "C-13")
async def test_changed_settings_hold_for_the_next_piece_of_work(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(*say("done"), idle())
        await idle_result(opened, 1)
        config = opened.config[0]
        opencode = config.opencode.model_copy(update={"permissions": OpenCodePermissions(bash="ask")})
        opened.config[0] = config.model_copy(update={"opencode": opencode})
        hand_in(opened, "more")
        await asked(opened, stand_in, 2)
        assert stand_in.started == 2
        written = list((tmp_path / "home").glob("agents/main/data/opencode/*/config/opencode/opencode.json"))
        assert [path.stat().st_mode & 0o777 for path in written] == [0o600]
        assert '"bash": "ask"' in written[0].read_text()


async def test_status_lines_tell_what_is_done(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(tmp_path, monkeypatch) as (opened, stand_in):
        await stand_in.tell(message(), tool("edit", "running", filePath="/a/b/c/d/e.py"))
        await opened.settled()
        assert worker(opened).status == "[opencode] edit c/d/e.py"
        await stand_in.tell(tool("bash", "running", 2, command="pytest -q"))
        await opened.settled()
        assert worker(opened).status == "[opencode] bash: pytest -q"
        assert worker(opened).tool_calls == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "no-such-opencode"}, "npm install -g opencode-ai"),
        ({"permissions": PermissionsConfig(network_outbound=False)}, "network_outbound"),
        ({"permissions": PermissionsConfig(profile="restricted")}, "denied"),
        ({"demo": True}, "real model"),
        ({"directory": "/etc"}, "workspace"),
        ({"directory": ""}, "directory"),
    ],
)
async def test_what_cannot_work_says_what_to_do(
    settings: dict[str, Any], words: str, clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not settings.get("demo"):
        monkeypatch.setattr(fake, "LLM", REAL)
    path = settings.get("path", "sh")
    model = ScriptedModel(spawn(directory=settings.get("directory", "app")), Call("reply", content="ok"))
    more = {"permissions": settings["permissions"]} if "permissions" in settings else {}
    async with open_test_agent(tmp_path, model, opencode=OpenCodeConfig(enabled=True, path=path), **more) as opened:
        await opened.say("Ann", "work")
        await opened.ended(1)
        (result,) = opened.model.results_of(ProcessKind.CHANNEL)
        assert result.is_error
        assert words in result.text
        assert not list(opened.tree.of_kind(NodeKind.WORKER))


@pytest.mark.parametrize("is_enabled", [False, True])
async def test_it_is_offered_only_where_the_owner_wants_it(is_enabled: bool, clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="ok"))
    async with open_test_agent(tmp_path, model, opencode=OpenCodeConfig(enabled=is_enabled)) as opened:
        await opened.say("Ann", "hello")
        await opened.ended(1)
    (spec,) = [spec for spec in model.requests_of(ProcessKind.CHANNEL)[0].tools if spec.name == "spawn_worker"]
    assert ("worker_type" in spec.schema["properties"]) is is_enabled
    assert ("opencode" in spec.description) is is_enabled


@pytest.mark.parametrize(
    ("reply", "decision"),
    [
        ("once", ("once", "")),
        ("Yes, go ahead", ("once", "")),
        ("ALWAYS", ("always", "")),
        ("reject", ("reject", "")),
        ("no: use the other branch", ("reject", "use the other branch")),
        ("use the other branch", ("reject", "use the other branch")),
        ("", ("reject", "")),
    ],
)
def test_only_clear_words_allow(reply: str, decision: tuple[str, str]) -> None:
    assert decision_of(reply) == decision
