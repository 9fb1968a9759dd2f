"""What goes wrong outside has a clear answer, leaves the daemon up, and costs nothing that was accepted."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.control_address import control_address
from spacebot.messaging.messages import MAX_TEXT
from tests.flows.stories import DIALECTS, Person, log_of, outcome, read_request, reply, run, up, wait_for, wait_for_log
from tests.real_daemon import Daemon, free_port
from tests.stand_ins.serving import Answer, Fault, Refusal, Reply, Use

KEY = "not-a-real-key"
SORRY = "Sorry, I could not answer: "
LINE = 400  # characters; a line for people, not a stack of reasons


@dataclass(frozen=True)
class Case:
    """What a provider does, in order, the last for ever, and what the person who asked gets."""

    replies: Sequence[Reply]
    says: str
    calls: int
    state: str = "failed"


def error(status: int, message: str = "refused", **headers: str) -> Refusal:
    """A provider's refusal that repeats the key, as some do."""
    body = {"error": {"type": "some_error", "message": f"{message} (key {KEY})"}}
    return Refusal(status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()})


FINE = reply("fine")
PROVIDER = {
    "wrong_key": Case([error(401)], "refused the credentials (401); check 'api_key'", 1),
    "forbidden": Case([error(403)], "refused the credentials (403)", 1),
    "unknown_model": Case([error(404)], "does not know this model; check its name under [defaults.routing]", 1),
    "no_credit": Case([error(402)], "wants payment", 1),
    "bad_request": Case([error(400)], "refused the request (400)", 1),
    "busy_then_fine": Case([error(429), FINE], "fine", 2, "answered"),
    "busy_with_a_wish": Case([error(429, retry_after_ms="50"), FINE], "fine", 2, "answered"),
    "busy_for_an_hour": Case([error(429, retry_after="3600")], "asks us to wait for 3600 s", 1),
    "broken_then_fine": Case([error(500), error(503), FINE], "fine", 3, "answered"),
    "broken": Case([error(500)], "is unavailable (500)", 3),
    "overloaded": Case([error(529)], "is unavailable (529)", 3),
    "cut": Case([Fault.CUT], "the connection broke", 3),
    "cut_then_fine": Case([Fault.CUT, FINE], "fine", 2, "answered"),
    "unfinished": Case([Fault.UNFINISHED], "answer is not usable", 3),
    "malformed": Case([Fault.MALFORMED], "answer is not usable", 3),
    "web_page": Case([Fault.WRONG_TYPE], "text/html instead of an event stream", 3),
    "error_in_stream": Case([Fault.STREAM_ERROR], "verloaded", 3),
    "empty": Case([Answer()], "the model had nothing to say", 1, "skipped"),
    "plain_words": Case([Answer(text="just words")], "just words", 1, "answered"),
    "written_out_call": Case([Answer(text='reply({"content": "hi"})'), FINE], "fine", 2, "answered"),
    "wrong_arguments": Case([Answer(uses=(Use("reply", {"text": "hi"}),)), FINE], "fine", 2, "answered"),
    "arguments_that_are_no_json": Case([Answer(uses=(Use("reply", '{"content": "h'),)), FINE], "fine", 2, "answered"),
    "unknown_tool": Case([Answer(uses=(Use("rm", {"path": "/"}),)), FINE], "fine", 2, "answered"),
    "same_mistake_for_ever": Case(
        [Answer(uses=(Use("reply", {}),))], "no answer within 5 model calls", 5
    ),
    "surrogates": Case([Answer(uses=(Use("reply", '{"content": "half \\ud83d one"}'),))], "half", 1, "answered"),
}


class Provider:
    """Answers each session by the case that its message names."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, body: Any) -> Reply:
        name = next((name for name in PROVIDER if f"case {name}." in json.dumps(body["messages"])), None)
        if name is None or "and now?" in read_request(body).said:
            return FINE
        replies = PROVIDER[name].replies
        self.calls[name] += 1
        return replies[min(self.calls[name], len(replies)) - 1]


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_provider_that_fails_is_told_in_one_short_line(tmp_path: Path, dialect: str) -> None:
    provider = Provider()
    async with DIALECTS[dialect](provider) as model:
        daemon = Daemon(tmp_path, model_url=model.url, api_type=dialect)
        async with up(daemon) as person:
            ids = {name: await person.say(f"case {name}.", session=name) for name in PROVIDER}
            fates = {name: await person.settled(message_id) for name, message_id in ids.items()}
            assert await person.answer("and now?", session="cut") == "fine", "the session goes on"
            assert daemon.process is not None and daemon.process.poll() is None
    found = {name: (fate["state"], provider.calls[name]) for name, fate in fates.items()}
    assert found == {name: (case.state, case.calls) for name, case in PROVIDER.items()}
    for name, case in PROVIDER.items():
        fate = fates[name]
        lines = [reply["content"] for reply in fate["replies"]]
        if case.state == "skipped":
            assert (lines, case.says in fate["reason"]) == ([], True), (name, fate)
            continue
        (line,) = lines
        assert case.says in line, (name, line)
        assert "\n" not in line, name
        assert len(line) < LINE, name
        assert KEY not in line, name
        assert (line.startswith("Sorry")) == (case.state == "failed"), name
        assert (fate["replies"][0]["kind"] == "notice") == (case.state == "failed"), name
    log = log_of(daemon)
    assert KEY not in log
    assert "Traceback" not in log


MORE_AGENTS = """
[llm.provider.dead]
api_type = "openai_completions"
base_url = "http://127.0.0.1:{port}"
api_key = "k"

[llm.provider.keyless]
api_type = "anthropic"
base_url = "{url}"

[[agents]]
id = "main"

[[agents]]
id = "unreachable"
routing.channel = "dead/model"

[[agents]]
id = "keyless"
routing.channel = "keyless/model"

[[agents]]
id = "nowhere"
routing.channel = "anthropic/claude-sonnet-4"

[[agents]]
id = "second-best"
routing.channel = "dead/model"
routing.fallbacks = {{ "dead/model" = ["standin/model"] }}
"""


@pytest.mark.slow
async def test_a_provider_that_cannot_be_asked_is_told_and_a_fallback_is_taken(tmp_path: Path) -> None:
    async with DIALECTS["openai_completions"](lambda body: FINE) as model:
        daemon = Daemon(
            tmp_path, model_url=model.url, extra=MORE_AGENTS.format(port=free_port(), url=model.url)
        )
        async with up(daemon) as person:
            agents = ("unreachable", "keyless", "nowhere", "second-best", "main")
            ids = {agent: await person.say("hello", agent_id=agent) for agent in agents}
            fates = {agent: await person.settled(message_id) for agent, message_id in ids.items()}
            told = {agent: fate["replies"][0]["content"] for agent, fate in fates.items()}
    assert {agent: fate["state"] for agent, fate in fates.items()} == dict.fromkeys(agents[:3], "failed") | dict.fromkeys(
        agents[3:], "answered"
    )
    assert told["main"] == told["second-best"] == "fine"
    assert told["unreachable"] == f"{SORRY}dead/model: the provider cannot be reached; check the network and the base URL"
    assert "keyless" in told["keyless"]
    assert "ANTHROPIC_API_KEY" in told["nowhere"]
    assert all(len(line) < LINE and "\n" not in line for line in told.values())


async def test_a_provider_that_hangs_holds_nobody_else_and_its_turn_can_be_cancelled(tmp_path: Path) -> None:
    """The daemon's own patience is two minutes of silence; a person need not wait for that."""
    async with DIALECTS["openai_completions"](
        lambda body: Fault.HANG if "hang" in read_request(body).said else FINE
    ) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            hanging = await person.say("hang", session="h")
            await model.answering.wait()
            (turn,) = await person.wait_running("turn", bool)
            assert await person.answer("hello", session="other") == "fine"
            later = await person.say("and now?", session="h")
            assert (await person.fate(later))["state"] == "accepted"
            status, said = await person.post("/api/cancel", process_id=turn["id"])
            assert (status, said["success"]) == (200, True)
            fate = await person.settled(hanging)
            assert fate["state"] == "failed"
            assert fate["replies"][0]["content"] == "Sorry, I stopped: cancelled by a person"
            assert (await person.settled(later))["replies"][0]["content"] == "fine"
            assert model.hang_ups == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[api]\nport = 1\n[oops\n", ", line 3: not valid TOML: Expected ']' at the end of a table declaration"),
        (b"[api]\nport = 99999\n", ": api.port = 99999: must be at most 65535"),
        (b"[defaults]\nmax_turns = 'many'\n", ": defaults.max_turns = 'many': must be a whole number"),
        (b'[api]\nbind = "0.0.0.0"\n', ": api: a bind other than loopback needs api.auth_token"),
        (b"# \xff\xfe\n", ", line 1: not UTF-8 text"),
        (None, " is a directory"),
    ],
    ids=["no TOML", "out of range", "wrong type", "open to all", "not text", "directory"],
)
async def test_a_broken_configuration_ends_the_start_and_is_named(
    tmp_path: Path, text: bytes | None, problem: str
) -> None:
    daemon = Daemon(tmp_path, model_url=None)
    config = tmp_path / "config.toml"
    config.unlink()
    if text is None:
        config.mkdir()
    else:
        config.write_bytes(text)
    done = await run(daemon, "start", "--foreground")
    assert done.returncode == 1
    assert f"{config}{problem}" in done.stderr
    assert "Traceback" not in done.stderr
    checked = await run(daemon, "config", "check")
    assert (checked.returncode, checked.stderr) == (1, done.stderr)


async def test_a_mistake_in_the_file_of_a_running_daemon_changes_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, model_url=None, extra="[defaults]\nmax_turns = 4\n")
    config = tmp_path / "config.toml"
    good = config.read_text()
    async with up(daemon) as person:
        config.write_text(good.replace("max_turns = 4", "max_turns = 'four'"))
        await wait_for_log(daemon, "configuration not reloaded", "defaults.max_turns = 'four': must be a whole number")
        checked = await run(daemon, "config", "check")
        assert checked.returncode == 1
        assert "defaults.max_turns = 'four': must be a whole number" in checked.stderr
        restarted = await run(daemon, "restart")
        assert restarted.returncode == 1
        assert "goes on with the configuration that it has" in restarted.stderr
        assert "Hello" in await person.answer("hello")
        config.write_text(good)
        assert (await run(daemon, "config", "check")).returncode == 0


async def test_a_second_daemon_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    daemon, other = Daemon(tmp_path / "one", model_url=None), Daemon(tmp_path / "two", model_url=None)
    (other.folder / "config.toml").write_text((daemon.folder / "config.toml").read_text())
    async with up(daemon) as person:
        assert daemon.process is not None
        for words in (["start"], ["start", "--foreground"]):
            second = await run(daemon, *words)
            assert second.returncode == 1
            assert f"spacebot is already running (pid {daemon.process.pid})" in second.stderr
            taken = await run(other, *words)
            assert taken.returncode == 1
            assert f"port {daemon.port} on 127.0.0.1 is taken by another program" in taken.stderr
            assert "Traceback" not in second.stderr + taken.stderr
        assert (await run(other, "status")).returncode == 1
        assert "Hello" in await person.answer("hello")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no directory")


def data_is_a_file(folder: Path) -> None:
    (folder / "agents" / "main").mkdir(parents=True)
    (folder / "agents" / "main" / "data").write_text("no directory")


def database_is_none(folder: Path) -> None:
    (folder / "agents" / "main" / "data").mkdir(parents=True)
    (folder / "agents" / "main" / "data" / "spacebot.db").write_text("this is no database at all\n" * 100)


@pytest.mark.parametrize(
    ("spoil", "where"), [(a_file, ""), (data_is_a_file, "agents/main/data"), (database_is_none, "spacebot.db")]
)
async def test_an_instance_that_cannot_be_written_ends_the_start(
    tmp_path: Path, spoil: Callable[[Path], None], where: str
) -> None:
    """A file stands in the way, since permissions do not stop root, as whom containers run tests."""
    daemon = Daemon(tmp_path / "instance", model_url=None)
    spoil(daemon.folder)
    daemon.extra_environ["SPACEBOT_DIR"] = str(daemon.folder)
    words = [*_program(), "start", "--foreground"]
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(words, env=daemon.environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert where in done.stderr
    assert str(daemon.folder) in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


def _program() -> list[str]:
    from tests.real_daemon import program

    return program()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[Daemon, bool], None]]:
    """A file system of its own, which can be filled to the last byte."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    filler = folder / "filler"

    def fill(daemon: Daemon, is_full: bool) -> None:
        if not is_full:
            filler.unlink()
            return
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder: Path) -> Iterator[Callable[[Daemon, bool], None]]:
    """The system forbids the process to make any file longer; needs no rights, and the error is another one."""

    def limit(daemon: Daemon, is_full: bool) -> None:
        assert daemon.process is not None
        hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (4096 if is_full else hard, hard))

    yield limit


@pytest.mark.slow
@pytest.mark.parametrize("disk", [small_disk, small_files])
async def test_a_full_disk_refuses_what_it_cannot_keep_and_recovers(tmp_path: Path, disk: Any) -> None:
    async with DIALECTS["openai_completions"](lambda body: reply(read_request(body).said.rpartition(": ")[2])) as model:
        with disk(tmp_path / "disk") as set_full:
            daemon = Daemon(tmp_path / "disk" / "instance", model_url=model.url)
            async with up(daemon) as person:
                assert await person.answer("before") == "before"
                set_full(daemon, True)
                text = "x" * 20_000  # no page that is free by chance takes it
                for _ in range(3):
                    status, said = await person.post(
                        "/api/webchat/send?wait=false", session_id="s", message=text, client_id="kept"
                    )
                    print(status, said)
                    assert status in (503, 507)
                    assert "check free space" in said["error"]
                asked = await run(daemon, "chat", text)
                assert asked.returncode == 1
                print(asked)
                assert "check free space" in asked.stderr
                assert (await person.get("/api/status"))["status"] == "running"
                assert "before" in await person.texts()
                set_full(daemon, False)
                assert await person.answer("after") == "after"
                assert await person.texts() == ["before", "before", "after", "after"]
                assert daemon.process is not None
                assert daemon.process.poll() is None
