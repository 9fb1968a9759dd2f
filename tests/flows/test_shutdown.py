"""Stopping under load: an orderly end within its limits, and the next start goes on where this one stopped."""

import re
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.flows.stories import (
    DIALECTS,
    PATIENCE_S,
    Asked,
    log_of,
    outcome,
    read_request,
    reply,
    run,
    up,
    wait_for,
    wait_for_log,
)
from tests.real_daemon import Daemon
from tests.stand_ins.serving import Answer, Fault, Reply, Use

serve_openai = DIALECTS["openai_completions"]
ORDERLY_S = 20  # five for turns, three for requests in flight, the rest for a busy machine; no test waits so long


async def ended(daemon: Daemon) -> int:
    """Wait for the process; returns its exit code."""
    assert daemon.process is not None
    process = daemon.process
    return await trio.to_thread.run_sync(lambda: process.wait(timeout=ORDERLY_S))


class Mind:
    """Answers questions, and does work in two steps that wait for a file each."""

    def __init__(self) -> None:
        self.hangs = False
        self.worker_saw: list[Asked] = []

    def __call__(self, body: Any) -> Reply:
        asked = read_request(body)
        if asked.is_worker:
            return self._work(asked)
        said = asked.said
        if results := re.findall(r"<result [^>]*>\n(.*?)\n</result>", said, re.DOTALL):
            return reply("Back: " + "; ".join(results))
        if "slow" in said and self.hangs:
            return Fault.HANG
        if "work" in said:
            task = {"task": f"task {said.rpartition(': ')[2]}", "interactive": "interactive" in said}
            return Answer(uses=(Use("spawn_worker", task), Use("reply", {"content": "On it."})))
        if more := re.search(r"more for (\S+)", said):
            return Answer(
                uses=(Use("route", {"worker_id": more[1], "message": "carry on"}), Use("reply", {"content": "Told."}))
            )
        return reply(f"Answer to {said.rpartition(': ')[2]}")

    def _work(self, asked: Asked) -> Reply:
        self.worker_saw.append(asked)
        steps = sum("step one" in result for result in asked.results)
        if "carry on" in asked.prompt:
            return outcome("went on")
        if "interactive" in asked.system:
            return outcome("ready for more")
        if not steps:
            return Answer(uses=(Use("shell", {"command": "echo step one"}),))
        if any("step two" in result for result in asked.results):
            return outcome(f"both steps done, step one {steps} times")
        return Answer(
            uses=(Use("shell", {"command": "echo step two; touch begun; while [ ! -e go ]; do sleep 0.05; done"}),)
        )


@pytest.mark.slow
async def test_a_stop_under_load_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Turns that can finish do; one that hangs is left to the next start, and so is the work of workers."""
    mind = Mind()
    mind.hangs = True
    workspace = tmp_path / "agents" / "main" / "workspace"
    async with serve_openai(mind, latency_s=0.15) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            working = await person.say("work", session="w")
            await wait_for(trio.Path(workspace / "begun").exists)
            quick = [await person.say(f"quick {n}", session=f"q{n}") for n in range(8)]
            slow = [await person.say("slow one", session="s"), await person.say("slow two", session="s")]
            await person.wait_running("turn", lambda turns: len(turns) == 9)
            children = daemon.ps.children(recursive=True)
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            assert await ended(daemon) == 0
            assert not psutil.wait_procs(children, timeout=10)[1]
            assert not (tmp_path / "spacebot.sock").exists()
            assert "Traceback" not in log_of(daemon)

            mind.hangs = False
            (workspace / "go").touch()
            await trio.to_thread.run_sync(daemon.start)
            fates = [await person.settled(message_id) for message_id in (*quick, *slow, working)]
            assert {fate["state"] for fate in fates} == {"answered"}
            assert (await person.wait_for_text("Back:", session="w")) == "Back: both steps done, step one 1 times"
            for n in range(8):
                assert await person.texts(f"q{n}") == [f"quick {n}", f"Answer to quick {n}"]
            assert Counter(await person.texts("s"))["Answer to slow two"] == 1
            assert len([row for row in await person.history("s") if row["role"] == "assistant"]) <= 2
            assert await person.texts("w") == ["work", "On it.", "Back: both steps done, step one 1 times"]
    assert "The program was restarted" in next(asked for asked in mind.worker_saw if "restarted" in asked.prompt).prompt


async def test_an_interactive_worker_waits_across_restarts(tmp_path: Path) -> None:
    mind = Mind()
    async with serve_openai(mind) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            await person.answer("work interactive")
            assert await person.wait_for_text("Back:") == "Back: ready for more"
            (worker,) = await person.wait_running("worker", lambda nodes: nodes and nodes[0]["state"] == "waiting")
            for stop in (_stop_by_command, _kill):
                await stop(daemon)
                await trio.to_thread.run_sync(daemon.start)
                (again,) = await person.wait_running("worker", bool)
                assert (again["id"], again["state"]) == (worker["id"], "waiting")
            assert await person.answer(f"more for {worker['id']}") == "Told."
            await person.wait_for_text("went on")
            assert await person.texts() == [
                "work interactive", "On it.", "Back: ready for more",
                f"more for {worker['id']}", "Told.", "Back: went on",
            ]  # fmt: skip


async def _stop_by_command(daemon: Daemon) -> None:
    done = await run(daemon, "stop")
    assert (done.returncode, done.stderr) == (0, "spacebot stopped\n")
    assert await ended(daemon) == 0


async def _kill(daemon: Daemon) -> None:
    await trio.to_thread.run_sync(daemon.kill)


async def test_a_second_signal_cuts_off_what_the_first_lets_finish(tmp_path: Path) -> None:
    mind = Mind()
    mind.hangs = True
    async with serve_openai(mind) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            slow = await person.say("slow")
            await model.answering.wait()
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGINT)
            await wait_for_log(daemon, "stopping")
            assert daemon.process.poll() is None
            daemon.process.send_signal(signal.SIGINT)
            assert await ended(daemon) == 128 + signal.SIGINT
            mind.hangs = False
            await trio.to_thread.run_sync(daemon.start)
            assert (await person.settled(slow))["state"] == "answered"
            assert await person.texts() == ["slow", "Answer to slow"]


@pytest.mark.spec("C-21", "CA-9")
async def test_the_service_manager_is_told_and_sighup_reads_the_files_again(tmp_path: Path) -> None:
    async with serve_openai(Mind()) as model:
        daemon = Daemon(tmp_path / "i", model_url=model.url)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            await manager.bind(str(tmp_path / "notify"))
            daemon.extra_environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
            async with up(daemon) as person:

                async def heard(*words: bytes) -> None:
                    with trio.fail_after(PATIENCE_S):
                        for word in words:
                            while word not in await manager.recv(500):
                                pass

                await heard(b"READY=1\nSTATUS=model standin/model", b"WATCHDOG=1")
                config = daemon.folder / "config.toml"
                config.write_text(config.read_text().replace("standin/model", "standin/another"))
                (daemon.folder / "agents" / "main" / "SOUL.md").write_text("A new soul.")
                assert daemon.process is not None
                daemon.process.send_signal(signal.SIGHUP)
                await heard(b"RELOADING=1", b"READY=1")
                assert await person.answer("hello") == "Answer to hello"
                assert model.bodies[-1]["model"] == "another"
                assert "A new soul." in read_request(model.bodies[-1]).system
                daemon.process.send_signal(signal.SIGTERM)
                await heard(b"STOPPING=1")
                assert await ended(daemon) == 0


async def test_streams_end_cleanly_and_a_restart_in_place_keeps_the_conversation(tmp_path: Path) -> None:
    async with serve_openai(Mind()) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            assert await person.answer("one") == "Answer to one"
            with socket.create_connection(("127.0.0.1", daemon.port)) as stream:
                stream.settimeout(ORDERLY_S)
                stream.sendall(b"GET /api/webchat/events?session_id=s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert stream.recv(65536).startswith(b"HTTP/1.1 200")
                assert daemon.process is not None
                before = daemon.process.pid
                done = await run(daemon, "restart")
                assert (done.returncode, done.stderr) == (0, f"spacebot restarted in place (pid {before})\n")
                heard = b""
                while data := await trio.to_thread.run_sync(stream.recv, 65536):
                    heard += data
                assert heard.endswith(b"0\r\n\r\n"), "the stream's own end, not a cut"
            assert daemon.process.poll() is None
            assert await person.answer("two") == "Answer to two"
            assert await person.texts() == ["one", "Answer to one", "two", "Answer to two"]
            daemon.process.send_signal(signal.SIGINT)
            assert await ended(daemon) == 0
