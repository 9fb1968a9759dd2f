"""The control socket: real sockets, a program without a mind."""

import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.api import control
from spacebot.api.control import Command, control_commands, serve_control
from spacebot.base.clock import monotonic_s
from spacebot.base.control_address import control_address
from spacebot.base.errors import ConfigError
from spacebot.base.tree import NodeKind
from spacebot.config.store import ConfigStore
from spacebot.conversations.records import Accepted, TurnState
from spacebot.messaging.messages import InboundMessage, OutboundKind
from spacebot.storage.live_secrets import LiveSecrets
from tests.fakes.fake_program import FakeAgent, FakeProgram, open_fake_program


class Control:
    """A client, and the parts behind the socket."""

    def __init__(self, path: Path, program: FakeProgram, store: ConfigStore) -> None:
        self.path = path
        self.program = program
        self.store = store

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(control_address(self.path))

    async def raw(self, line: bytes, following: trio.Event | None = None) -> list[dict[str, Any]]:
        """Send bytes, read all answers until the connection closes.

        Args:
            following: is set once the answers are those of somebody who follows the conversation.
        """
        received = b""
        with trio.fail_after(5):
            async with await self.connect() as stream:
                await stream.send_all(line)
                async for chunk in stream:
                    received += chunk
                    if following is not None and b'"hello"' in received:
                        following.set()
        return [json.loads(answer) for answer in received.splitlines()]

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        (answer,) = await self.raw(json.dumps({"command": command, **fields}).encode() + b"\n")
        return answer

    async def talk(self, following: trio.Event | None = None, **fields: Any) -> list[dict[str, Any]]:
        return await self.raw(json.dumps({"command": "chat", **fields}).encode() + b"\n", following)


@asynccontextmanager
async def open_control(folder: Path, more: dict[str, Command] | None = None) -> AsyncIterator[Control]:
    store = ConfigStore.open(folder / "config.toml")
    async with open_fake_program(folder) as program, trio.open_nursery() as nursery:
        commands = control_commands(
            program,
            tree=program.tree,
            events=program.events,
            store=store,
            secrets=LiveSecrets.open(folder),
            run_id="run-1",
            started_at=monotonic_s(),
            urls=("http://127.0.0.1:5738/",),
        )
        path = folder / "spacebot.sock"
        await nursery.start(serve_control, path, commands | (more or {}))
        yield Control(path, program, store)
        nursery.cancel_scope.cancel()


def answer_with(agent: FakeAgent, text: str, *, when: trio.Event | None = None) -> None:
    """Let the agent answer every message; not before something, if that is given."""

    async def on_message(message: InboundMessage, accepted: Accepted) -> None:
        if when is not None:
            await when.wait()
        async with agent.turn(message.conversation_id, accepted) as turn:
            turn.delta(text[:3])
            await turn.say(f"{text} to {message.text}")

    agent.on_message = on_message


async def test_status_tells_who_runs(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        control.program.tree.add(NodeKind.WORKER, "w")
        status = await control.ask("status")

    assert (status["result"], status["run_id"], status["model"]) == ("status", "run-1", "demo/demo")
    assert status["urls"] == ["http://127.0.0.1:5738/"]
    assert (status["sandbox"], status["permissions"]) == ("not tried yet", {"main": "profile standard"})
    assert status["uptime_seconds"] >= 0
    assert (status["processes"]["worker"], status["processes"]["turn"]) == (1, 0)


async def test_only_the_owner_can_connect_and_the_socket_goes_with_the_program(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        assert stat.S_IMODE(control.path.stat().st_mode) == 0o600
    assert not control.path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "spacebot.sock"))
    async with open_control(tmp_path) as control:
        assert (await control.ask("status"))["result"] == "status"
        with pytest.raises(ConfigError, match="another program answers"):
            await serve_control(control.path, {})
        assert (await control.ask("status"))["result"] == "status"


async def test_a_path_that_is_too_long_has_a_short_stand_in(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with open_control(folder) as control:
        assert not control.path.exists()
        assert (await control.ask("status"))["result"] == "status"
        address = control_address(control.path)
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    assert not address.exists()


async def test_the_files_of_other_threads_keep_their_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of new files belongs to the whole process; nothing may touch it once threads run."""
    touched: list[int] = []
    monkeypatch.setattr(os, "umask", lambda mask: touched.append(mask) or 0)
    async with open_control(tmp_path) as control:
        assert stat.S_IMODE(control.path.stat().st_mode) == 0o600
    assert touched == []


async def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be made"):
        await serve_control(tmp_path / "missing" / "s.sock", {})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"nonsense\n", "not a JSON object"),
        (b"[1, 2]\n", "not a JSON object"),
        (b"\xff\xfe\n", "not a JSON object"),
        (b"[" * 100_000 + b"\n", "not a JSON object"),
        (b"{}\n", "unknown command 'None'"),
        (b'{"command": ["x"]}\n', "unknown command"),
        (b'{"command": "fly"}\n', "unknown command 'fly'; known are: "),
        (b'{"command": "cancel"}\n', "'id' must be given as text"),
        (b'{"command": "chat", "agent": "nobody"}\n', "there is no agent 'nobody'"),
        (b'{"command": "chat", "after_seq": "x"}\n', "after_seq must be a whole number"),
        (b'{"command": "send", "text": " "}\n', "'text' must be given as text"),
        (b'{"command": "send", "text": "x", "session": "\\u0007"}\n', "printable"),
        (b'{"command": "why", "id": "unknown"}\n', "no agent's log has"),
    ],
)
async def test_garbage_is_answered_with_an_error(tmp_path: Path, line: bytes, expected: str) -> None:
    async with open_control(tmp_path) as control:
        (answer,) = await control.raw(line)

    assert answer["result"] == "error"
    assert expected in answer["message"]


async def test_a_request_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_LINE", 1000)
    async with open_control(tmp_path) as client:
        (answer,) = await client.raw(b"x" * 1001)

    assert "longer than 1000 bytes" in answer["message"]


async def test_a_client_that_leaves_early_harms_nobody(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        for line in (b"", b'{"comm', b'{"command": "status"}\n', b'{"command": "chat"}\n'):
            stream = await control.connect()
            await stream.send_all(line)
            await stream.aclose()
        assert (await control.ask("status"))["result"] == "status"


async def test_a_crash_in_a_command_is_an_error_for_its_client_only(tmp_path: Path, logs: Any) -> None:
    logs.expect("control command failed")

    async def crash(request: object, reply: object) -> None:
        raise KeyError("secret detail")

    more = {"crash": Command(crash), "crash_late": Command(crash, is_stream=True)}
    async with open_control(tmp_path, more) as control:
        for name in more:
            answer = await control.ask(name)
            assert answer == {"result": "error", "message": "internal error (KeyError); the log has the details"}
        assert (await control.ask("status"))["result"] == "status"


async def test_stop_and_restart_are_passed_on(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        assert await control.ask("shutdown") == {"result": "ok", "run_id": "run-1"}
        assert await control.ask("restart") == {"result": "ok", "run_id": "run-1"}

        assert control.program.stops == [False, True]


async def test_a_process_is_cancelled_by_the_start_of_its_id(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        tree = control.program.tree
        worker = tree.add(NodeKind.WORKER, "w", node_id="abcd1111")
        tree.add(NodeKind.WORKER, "w", node_id="abce2222")
        tree.add(NodeKind.DAEMON, "d", node_id="daemon")

        assert "give more of it" not in (await control.ask("cancel", id="abcd"))
        assert worker.cancel_scope.cancel_called
        assert "nothing with the id 'abc'" in (await control.ask("cancel", id="abc"))["message"]
        assert "spacebot stop" in (await control.ask("cancel", id="daemon"))["message"]
        tree.add(NodeKind.WORKER, "w", node_id="abcd3333")
        assert "begins 2 ids" in (await control.ask("cancel", id="abcd"))["message"]
        nodes = (await control.ask("top"))["nodes"]
        assert [node["id"] for node in nodes] == ["abcd1111", "abce2222", "daemon", "abcd3333"]


async def test_a_whole_conversation_is_not_cancelled(tmp_path: Path) -> None:
    """It would park its workers and run its turn again later."""
    async with open_control(tmp_path) as control:
        channel = control.program.tree.add(NodeKind.CHANNEL, "c", node_id="channel-1")
        answer = await control.ask("cancel", id="channel-1")
    assert answer["result"] == "error"
    assert "its turn, branches and workers" in answer["message"]
    assert not channel.cancel_scope.cancel_called


async def test_the_configuration_is_read_again_or_the_reason_told(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        (tmp_path / "config.toml").write_text("[api]\nport = 1\n")
        answer = await control.ask("config_reload")
        assert (answer["changed"], answer["requires_restart"]) == (True, ["api.port"])
        (tmp_path / "config.toml").write_text("[api]\nport = x\n")
        assert "line 2" in (await control.ask("config_reload"))["message"]
        assert control.store.current.api.port == 1


async def test_prompts_are_read_again_or_the_reason_told(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        assert (await control.ask("prompts_reload"))["changed"] == ["CHANNEL.md"]
        control.program.broken_prompt = "CHANNEL.md, line 3: unclosed"
        assert (await control.ask("prompts_reload"))["message"] == "CHANNEL.md, line 3: unclosed"


async def test_a_message_is_accepted_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        first = await control.ask("send", text="hello", client_id="c1")
        again = await control.ask("send", text="hello", client_id="c1")

        assert (first["result"], first["is_new"], again["is_new"]) == ("accepted", True, False)
        assert first["message_id"] == again["message_id"]
        (message,) = control.program.main.accepted
        assert (message.conversation_id, message.is_direct) == ("webchat:terminal", True)


async def test_a_question_streams_until_it_is_answered(tmp_path: Path) -> None:
    following = trio.Event()
    async with open_control(tmp_path) as control:
        answer_with(control.program.main, "answer", when=following)
        answers = await control.talk(following, text="question", client_id="c1", until_answered=True)
        message_id = answers[0]["message_id"]
        fate = await control.ask("why", id=message_id)

    assert [a["result"] for a in (answers[0], answers[-1])] == ["accepted", "end"]
    assert answers[-1]["state"] == "answered"
    names = [a["name"] for a in answers[1:-1]]
    assert names[0] == "hello"
    assert "outbound_message_delta" in names
    texts = [a["data"]["content"] for a in answers[1:-1] if a["name"] == "message"]
    assert texts == ["question", "answer to question"]
    assert (fate["state"], fate["replies"][0]["content"]) == ("answered", "answer to question")


async def test_a_question_asked_again_after_a_break_gets_what_it_missed(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        answer_with(control.program.main, "answer")
        await control.talk(text="question", client_id="c1", until_answered=True)
        answers = await control.talk(text="question", client_id="c1", until_answered=True, after_seq=1)

    assert [answer["result"] for answer in answers] == ["accepted", "end"]
    assert [reply["content"] for reply in answers[-1]["replies"]] == ["answer to question"]


async def test_a_question_nobody_answers_ends_with_the_reason(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        agent, following = control.program.main, trio.Event()

        async def fail(message: InboundMessage, accepted: Accepted) -> None:
            await following.wait()
            async with agent.turn(
                message.conversation_id, accepted, state=TurnState.FAILED, reason="no credit"
            ) as turn:
                await turn.say("the model refused", OutboundKind.NOTICE)

        agent.on_message = fail
        answers = await control.talk(following, text="question", until_answered=True)

    assert (answers[-1]["state"], answers[-1]["reason"]) == ("failed", "no credit")
    assert [a["data"]["kind"] for a in answers if a.get("name") == "message"] == ["text", "notice"]


async def test_who_waits_for_a_paused_agent_is_told_so(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        control.program.main.is_paused = True
        answers = await control.talk(text="question", until_answered=True)

    assert (answers[-1]["state"], "is paused" in answers[-1]["reason"]) == ("accepted", True)


async def test_a_client_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    async with open_control(tmp_path) as control:
        answer_with(control.program.main, "x" * 200_000)
        slow = await control.connect()
        await slow.send_all(b'{"command": "subscribe", "after_seq": 0}\n')
        for i in range(5):
            answers = await control.talk(text=f"question {i}", until_answered=True)
            assert answers[-1]["state"] == "answered"
        await slow.aclose()
