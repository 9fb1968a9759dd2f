"""The packed executable, used as a person would: on an empty home, without a provider, with the demo model.

SPACEBOT_EXE=dist/spacebot python -m pytest tests/executable
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spacebot import __version__

EXECUTABLE = os.environ.get("SPACEBOT_EXE", "")
NO_START = 70  # the launcher's exit code
PATIENCE_S = 120  # for anything that should happen; generous, for slow disks and busy machines

pytestmark = [
    pytest.mark.executable,
    pytest.mark.slow,
    pytest.mark.skipif(not EXECUTABLE, reason="SPACEBOT_EXE does not name the packed executable"),
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def executable() -> Path:
    path = Path(EXECUTABLE).resolve()
    assert path.is_file(), f"SPACEBOT_EXE names no file: {EXECUTABLE!r}"
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests that do not look at the first start: it takes half a gigabyte."""
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / ".spacebot"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def port(instance: Path) -> int:
    """A free port, written to the instance's config file."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
    (instance / "config.toml").write_text(f"[api]\nport = {number}\n")
    return number


@pytest.fixture
def environment(tmp_path: Path, cache: Path) -> dict[str, str]:
    """What a bare login has; no provider's key, so the demo model answers."""
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(tmp_path / "home"), "SPACEBOT_CACHE": str(cache)}


@pytest.fixture
def run(executable: Path, environment: dict[str, str]) -> Run:
    def run(*arguments: str, program: Path = executable, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program, *arguments],
            env=environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    return run


@pytest.fixture
def daemon(run: Run, port: int) -> Iterator[int]:
    """The daemon, started in the background and ready; gives its port."""
    started = run("start")
    assert started.returncode == 0, started.stderr
    yield port
    run("stop")


def test_version_needs_nothing_but_the_file(executable: Path, tmp_path: Path) -> None:
    home = tmp_path / "empty"
    home.mkdir()
    done = subprocess.run(
        [executable, "--version"], env={"HOME": str(home)}, capture_output=True, text=True, check=True
    )

    assert done.stdout.split()[-1] == __version__
    assert list(home.iterdir()) == []


def test_a_daemon_starts_answers_status_and_stops(run: Run, port: int, instance: Path) -> None:
    assert run("status").returncode == 1
    started = run("start")
    assert started.returncode == 0, started.stderr
    try:
        pid = (instance / "spacebot.pid").read_text().strip()
        status = run("status")
        second = run("start")
    finally:
        stopped = run("stop")

    assert status.returncode == 0
    assert pid in status.stdout + status.stderr
    assert second.returncode == 1
    assert stopped.returncode == 0, stopped.stderr
    assert run("status").returncode == 1
    assert not is_running(pid)


def test_what_is_said_in_the_web_chat_is_remembered(run: Run, daemon: int, instance: Path) -> None:
    """Said in one conversation, asked in another after a restart: so it went through the memory on disk.

    Nothing else appears in the home: a library once kept a device id there, to report to its maker with.
    """
    say(daemon, "first", "remember that my favourite colour is teal")
    wait_for_answer(daemon, "first")
    assert run("stop").returncode == 0
    again = run("start")
    assert again.returncode == 0, again.stderr
    say(daemon, "second", "what is my favourite colour?")

    assert "teal" in wait_for_answer(daemon, "second").lower()
    assert [entry["role"] for entry in history(daemon, "first")] == ["user", "assistant"]
    assert [entry["role"] for entry in history(daemon, "second")] == ["user", "assistant"]
    assert list(instance.parent.iterdir()) == [instance]


def test_helpers_of_the_packed_program_run(executable: Path, environment: dict[str, str]) -> None:
    """The vector library is tried, and documents are read, in processes of their own."""
    tried = subprocess.run([executable, "memory-child", "lancedb"], env=environment, check=False)
    page = b"<html><body><script>no()</script><p>It rains in Bergen</p></body></html>"
    read = subprocess.run(
        [executable, "extract-document", "html"], env=environment, input=page, capture_output=True, check=False
    )
    broken = subprocess.run(
        [executable, "extract-document", "pdf"], env=environment, input=b"%PDF-1.7 no", capture_output=True, check=False
    )
    assert tried.returncode == 0
    assert (read.returncode, read.stdout.strip()) == (0, b"It rains in Bergen")
    assert broken.returncode != 0
    assert b"ModuleNotFoundError" not in broken.stderr


def test_the_foreground_program_is_the_started_process(
    executable: Path, environment: dict[str, str], port: int, tmp_path: Path
) -> None:
    """A service manager sees readiness from the process it started, and its TERM ends it cleanly."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(tmp_path / "notify"))
        notifications.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notifications.settimeout(PATIENCE_S)
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(
                [executable, "start", "--foreground"],
                env=environment | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            sender = wait_until_ready(notifications)
            health = get(port, "/api/health")
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()

    assert sender == process.pid
    assert health
    assert code == 0, (tmp_path / "output").read_text()


def test_eight_first_starts_at_once_unpack_once(executable: Path, environment: dict[str, str], tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    environment["SPACEBOT_CACHE"] = str(fresh)
    processes = [
        subprocess.Popen([executable, "status"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(8)
    ]
    codes = [process.wait(PATIENCE_S) for process in processes]
    names = sorted(entry.name for entry in fresh.iterdir())
    shutil.rmtree(fresh)

    assert codes == [1] * 8  # not running
    assert len(names) == 3  # the folder, its lock, and the lock for unpacking
    assert names[1] == f"{names[0]}.lock"


def test_a_damaged_file_says_so(executable: Path, run: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copy(executable, damaged)
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(b"damage")

    done = run("status", program=damaged, SPACEBOT_CACHE=str(tmp_path / "fresh"))
    damaged.unlink()

    assert done.returncode == NO_START
    assert "is damaged" in done.stderr


def test_an_unwritable_cache_says_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = run("status", SPACEBOT_CACHE=str(tmp_path / "file" / "cache"))

    assert done.returncode == NO_START
    assert "Set SPACEBOT_CACHE" in done.stderr


def say(port: int, session_id: str, message: str) -> None:
    """Send a message and read the events of its turn to their end; a branch may answer later."""
    body = {"agent_id": "main", "session_id": session_id, "sender_name": "ann", "message": message}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/webchat/send",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        answer.read()


def wait_for_answer(port: int, session_id: str) -> str:
    """Follow a session from its beginning to the first message of the agent's."""
    query = urllib.parse.urlencode({"agent_id": "main", "session_id": session_id, "after": 0})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/webchat/events?{query}", timeout=PATIENCE_S) as stream:
        for line in stream:
            field, _, value = line.decode().partition(": ")
            message = json.loads(value) if field == "data" else {}
            if isinstance(message, dict) and message.get("role") == "assistant":
                content: str = message["content"]
                return content
    raise AssertionError("the session's stream ended without an answer")


def history(port: int, session_id: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"agent_id": "main", "session_id": session_id})
    entries = get(port, f"/api/webchat/history?{query}")
    assert isinstance(entries, list)
    return entries


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())


def wait_until_ready(notifications: socket.socket) -> int:
    """Receive notifications until READY=1 and give the process id of its sender."""
    credentials = struct.Struct("3i")
    while True:
        message, ancillary, _, _ = notifications.recvmsg(4096, socket.CMSG_SPACE(credentials.size))
        if b"READY=1" in message.split(b"\n"):
            pid: int = credentials.unpack(ancillary[0][2][: credentials.size])[0]
            return pid


def is_running(pid: str) -> bool:
    """Whether a process runs; one that ended and waits to be noticed by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
