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
from tests.flows.stories import DIALECTS, Person, log_of, read_request, reply, run, up, wait_for, wait_for_log
from tests.real_daemon import Daemon, free_port, program, running
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
    return Refusal(
        status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()}
    )


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
    "empty": Case([Answer()], "the model gave no answer", 3),
    "empty_at_first": Case([Answer(), FINE], "fine", 2, "answered"),
    "plain_words": Case([Answer(text="just words")], "just words", 1, "answered"),
    "written_out_call": Case([Answer(text='reply({"content": "hi"})'), FINE], "fine", 2, "answered"),
    "wrong_arguments": Case([Answer(uses=(Use("reply", {"text": "hi"}),)), FINE], "fine", 2, "answered"),
    "arguments_that_are_no_json": Case([Answer(uses=(Use("reply", '{"content": "h'),)), FINE], "fine", 2, "answered"),
    "unknown_tool": Case([Answer(uses=(Use("rm", {"path": "/"}),)), FINE], "fine", 2, "answered"),
    "same_mistake_for_ever": Case([Answer(uses=(Use("reply", {}),))], "no answer within 5 model calls", 5),
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
            assert daemon.process is not None
            assert daemon.process.poll() is None
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
        daemon = Daemon(tmp_path, model_url=model.url, extra=MORE_AGENTS.format(port=free_port(), url=model.url))
        async with up(daemon) as person:
            agents = ("unreachable", "keyless", "nowhere", "second-best", "main")
            ids = {agent: await person.say("hello", agent_id=agent) for agent in agents}
            fates = {agent: await person.settled(message_id) for agent, message_id in ids.items()}
            told = {agent: fate["replies"][0]["content"] for agent, fate in fates.items()}
    assert {agent: fate["state"] for agent, fate in fates.items()} == dict.fromkeys(
        agents[:3], "failed"
    ) | dict.fromkeys(agents[3:], "answered")
    assert told["main"] == told["second-best"] == "fine"
    assert (
        told["unreachable"] == f"{SORRY}dead/model: the provider cannot be reached; check the network and the base URL"
    )
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
    words = [*program(), "start", "--foreground"]
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(words, env=daemon.environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert where in done.stderr
    assert str(daemon.folder) in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


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
                    assert status in (503, 507)
                    assert "check free space" in said["error"]
                asked = await run(daemon, "chat", text)
                assert asked.returncode == 1
                assert "check free space" in asked.stderr
                assert (await person.get("/api/status"))["status"] == "running"
                assert "before" in await person.texts()
                set_full(daemon, False)
                assert await person.answer("after") == "after"
                assert await person.texts() == ["before", "before", "after", "after"]
                assert daemon.process is not None
                assert daemon.process.poll() is None


@pytest.mark.parametrize(
    ("payload", "status", "says"),
    [
        (b"", 400, "not valid JSON"),
        (b"hello", 400, "not valid JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b'{"session_id": "s", "message": "caf\xe9"}', 400, "not valid UTF-8"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b'{"session_id": "s", "message": ""}', 400, "the message is empty"),
        (b'{"session_id": "s", "message": " \\n\\t "}', 400, "the message is empty"),
        (b'{"session_id": "s"}', 422, "message: Field required"),
        (b'{"session_id": "", "message": "x"}', 422, "session_id"),
        (b'{"session_id": "a\\u0000b", "message": "x"}', 400, ""),
        (b'{"session_id": "s", "message": 5}', 422, "message: Input should be a valid string"),
        (b'{"session_id": "s", "message": "x", "sender": "ann"}', 422, "sender: Extra inputs"),
        (b'{"session_id": "s", "message": "x", "agent_id": "nobody"}', 404, "no agent 'nobody'"),
        (b'{"session_id": "s", "message": "%s"}' % (b"x" * (MAX_TEXT + 1)), 413, f"longer than {MAX_TEXT} characters"),
    ],
    ids=range(14),
)
def test_what_is_no_message_is_refused(instance: Daemon, payload: bytes, status: int, says: str) -> None:
    async def send() -> tuple[int, Any]:
        person = Person(instance)
        try:
            answer = await person.request("POST", "/api/webchat/send?wait=false", payload)
            assert (await person.get("/api/health"))["status"] == "ok"
            return answer
        finally:
            await person.leave()

    found = trio.run(send)
    assert found[0] == status, found
    assert says in found[1]["error"]


def test_a_body_without_measure_is_refused_before_it_is_sent(instance: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", instance.port)) as client:
        client.sendall(b"POST /api/webchat/send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10485761\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all that is refused at the door."""
    with running(Daemon(tmp_path_factory.mktemp("door"), model_url=None)) as daemon:
        yield daemon


async def test_the_longest_message_is_taken_and_answered(tmp_path: Path) -> None:
    def answer(body: Any) -> Reply:
        return reply(f"{len(read_request(body).said.rpartition(': ')[2])} characters")

    async with DIALECTS["openai_completions"](answer) as model:
        async with up(Daemon(tmp_path, model_url=model.url)) as person:
            assert "characters" in await person.answer("x" * MAX_TEXT)
            assert await person.answer("short", session="other") == "5 characters"
            assert [len(text) for text in await person.texts()][:1] == [MAX_TEXT]


async def test_clients_that_vanish_cost_nothing(tmp_path: Path) -> None:
    """Two hundred at once: half of them in the middle of a request, half while their answer streams."""
    async with DIALECTS["openai_completions"](lambda body: FINE, latency_s=0.2) as model:
        daemon = Daemon(tmp_path, model_url=model.url)
        async with up(daemon) as person:
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(vanish, daemon, number)
            ids = [channel["id"] for channel in (await person.get("/api/channels"))["channels"]]
            assert sorted(ids) == sorted(f"webchat:v{number}" for number in range(0, 200, 2))

            async def answered() -> int:
                histories = [await person.texts(f"v{number}") for number in range(0, 200, 2)]
                return sum(texts == ["hello", "fine"] for texts in histories)

            await wait_for(answered, lambda count: count == 100)
            await wait_for(partial(person.get, "/api/status"), lambda status: status["counts"]["streams"] == 0)
            assert await person.answer("still there?") == "fine"

            async def open_connections() -> int:
                return sum(c.laddr.port == daemon.port and c.status != "LISTEN" for c in daemon.ps.net_connections())

            await wait_for(open_connections, lambda count: count <= 1)
    assert "Traceback" not in log_of(daemon)


async def vanish(daemon: Daemon, number: int) -> None:
    """Send a message and leave without a word; every other one does not even finish it."""
    body = json.dumps({"session_id": f"v{number}", "message": "hello"}).encode()
    head = f"POST /api/webchat/send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    stream = await trio.open_tcp_stream("127.0.0.1", daemon.port)
    async with stream:
        if number % 2:
            await stream.send_all(head + body[:-3])
        else:
            await stream.send_all(head + body)
            await stream.receive_some(4096)
        linger = b"\1\0\0\0\0\0\0\0"  # leave with a reset instead of a goodbye
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (b"hello\n", "not a JSON object on one line"),
        (b"[]\n", "not a JSON object on one line"),
        (b"\0\xff\xfe\n", "not a JSON object on one line"),
        (b'{"command": "rm"}\n', "unknown command 'rm'"),
        (b'{"command": 5}\n', "unknown command '5'"),
        (b'{"command": "send"}\n', "'text' must be given as text"),
        (b'{"command": "send", "text": "x", "session": "a\\u0000"}\n', ""),
        (b'{"command": "send", "text": "x", "agent": "nobody"}\n', "there is no agent 'nobody'"),
        (b'{"command": "chat", "after_seq": "x"}\n', "after_seq must be a whole number"),
        (b'{"command": "cancel", "id": "daemon"}\n', "a part of the program itself"),
        (b'{"command": "why", "id": "nothing"}\n', "no agent's log has"),
        (b"x" * 2_000_001, "longer than"),
        (b'{"command": "status"', "not a JSON object on one line"),
    ],
    ids=range(13),
)
def test_garbage_on_the_control_socket_is_refused(instance: Daemon, words: bytes, says: str) -> None:
    assert says in _ask(instance, words)["message"]
    assert json.loads(instance.run("status", "--json").stdout)["running"]


def _ask(instance: Daemon, words: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(control_address(instance.folder / "spacebot.sock")))
        with contextlib.suppress(BrokenPipeError):
            client.sendall(words)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    found = json.loads(answer)
    assert found["result"] == "error"
    return found


@pytest.mark.slow
async def test_what_was_accepted_before_the_disk_was_full_is_answered_once(tmp_path: Path) -> None:
    async with DIALECTS["openai_completions"](lambda body: reply("x" * 20_000), latency_s=0.15) as model:
        with small_files(tmp_path) as set_full:
            daemon = Daemon(tmp_path / "instance", model_url=model.url)
            async with up(daemon) as person:
                asked = await person.say("hello")
                await person.wait_running("turn", bool)
                set_full(daemon, True)
                await person.wait_running("turn", lambda turns: not turns)
                fate = await person.fate(asked)
                assert fate["replies"] == []
                set_full(daemon, False)
                await trio.to_thread.run_sync(daemon.kill)
                await trio.to_thread.run_sync(daemon.start)
                assert (await person.settled(asked))["state"] == "answered"
                assert await person.texts() == ["hello", "x" * 20_000]
