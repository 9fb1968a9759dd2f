"""The real daemon for benchmarks and the crash test: started as a process, spoken to over its real faces."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import trio

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
[api]
port = {port}

[llm.provider.standin]
api_type = "{api_type}"
base_url = "{url}"
api_key = "not-a-real-key"

[defaults.routing]
channel = "standin/model"
branch = "standin/model"
worker = "standin/model"
"""


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program() -> list[str]:
    """The program under measure: the executable named by SPACEBOT_EXE, or this checkout."""
    executable = os.environ.get("SPACEBOT_EXE")
    return [executable] if executable else [sys.executable, "-m", "spacebot"]


class Daemon:
    """One instance directory and the process that serves it."""

    def __init__(self, folder: Path, *, model_url: str | None, api_type: str = "openai_completions", extra: str = ""):
        self.folder = folder
        self.port = free_port()
        config = (
            CONFIG.format(port=self.port, api_type=api_type, url=model_url)
            if model_url
            else f"[api]\nport = {self.port}\n"
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config + extra)
        self.extra_environ: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the program: this machine's, without keys of providers."""
        kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_AUTH_TOKEN"))}
        ours = {"SPACEBOT_DIR": str(self.folder), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
        return kept | ours | self.extra_environ

    def start(self) -> float:
        """Start in the foreground; returns the seconds until the API answers."""
        began = time.perf_counter()
        with (self.folder / "out.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*program(), "start", "--foreground"], env=self.environment, stdout=log, stderr=log, cwd=self.folder
            )
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as s:
                s.sendall(b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                if s.recv(64).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - began
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended: {(self.folder / 'out.log').read_text()[-2000:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM; returns the seconds until the process is gone."""
        assert self.process is not None
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return time.perf_counter() - began

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the program."""
        return subprocess.run(
            [*program(), *words], env=self.environment, capture_output=True, text=True, cwd=self.folder, timeout=60
        )

    @property
    def ps(self) -> psutil.Process:
        """The process, for figures."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        times = self.ps.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Resident memory in MiB."""
        return float(self.ps.memory_info().rss) / 2**20


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start, and make sure that it is gone afterwards."""
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


class Http:
    """A keep-alive connection, as thin as can be: the client must not be what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None
        self._buffer = b""

    async def post(self, path: str, body: dict[str, Any], headers: Mapping[str, str] = {}) -> tuple[int, Any]:
        """Send JSON, read JSON."""
        return await self.request("POST", path, json.dumps(body).encode(), headers)

    async def get(self, path: str, headers: Mapping[str, str] = {}) -> tuple[int, Any]:
        """Read JSON."""
        return await self.request("GET", path, headers=headers)

    async def request(
        self, method: str, path: str, payload: bytes = b"", headers: Mapping[str, str] = {}
    ) -> tuple[int, Any]:
        """Send any bytes as if they were JSON, read JSON."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json\r\n{more}Content-Length: {len(payload)}\r\n\r\n"
        )
        is_used = self._stream is not None
        try:
            await self._begin(head.encode() + payload)
        except trio.BrokenResourceError:
            if not is_used:
                raise
            await self.close()  # the server had closed it while it was idle
            await self._begin(head.encode() + payload)
        raw, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        lines = raw.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._buffer += await self._some()
        content, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(lines[0].split()[1]), json.loads(content) if content else None

    async def _begin(self, request: bytes) -> None:
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        await self._stream.send_all(request)
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += await self._some()

    async def _some(self) -> bytes:
        assert self._stream is not None
        data = bytes(await self._stream.receive_some(65536))
        if not data:
            await self.close()
            raise trio.BrokenResourceError("connection closed")
        return data

    async def close(self) -> None:
        """Close it."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream, self._buffer = None, b""


async def sse(port: int, path: str, *, opened: trio.Event | None = None) -> AsyncIterator[dict[str, Any]]:
    """The data of each event of a stream, with its name under `event`."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        buffer, name = b"", ""
        while True:
            data = await stream.receive_some(262144)
            if not data:
                return
            if opened is not None:
                opened.set()
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                line = line.rstrip(b"\r")
                if line.startswith(b"event:"):
                    name = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    with contextlib.suppress(ValueError):
                        found = json.loads(line[5:])
                        yield {"event": name, **found} if isinstance(found, dict) else {"event": name, "value": found}


class Watcher:
    """Follows all events of a daemon, and tells who was answered when."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.answered: dict[str, float] = {}
        self.texts: dict[str, str] = {}
        self.turns = 0
        self._waiting: dict[str, trio.Event] = {}
        self._sockets: dict[str, Http] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled."""
        opened = trio.Event()

        async def read() -> None:
            async for event in sse(self._daemon.port, "/api/events?types=outbound_message,turn_ended", opened=opened):
                if event["event"] == "outbound_message" and event.get("reply_to"):
                    self.answered[event["reply_to"]] = trio.current_time()
                    self.texts[event["reply_to"]] = event["text"]
                    self._waiting.pop(event["reply_to"], trio.Event()).set()
                elif event["event"] == "turn_ended":
                    self.turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await opened.wait()
            task_status.started()

    async def send(self, session: str, text: str, *, sender: str = "ann", shared: bool = False) -> str:
        """Send a message; returns its id once it was accepted."""
        http = self._sockets.setdefault(f"{session}/{sender}", Http(self._daemon.port))
        body: dict[str, Any] = {"agent_id": "main", "session_id": session, "sender_name": sender, "message": text}
        if shared:
            body["shared"] = True
        status, receipt = await http.post("/api/webchat/send?wait=false", body)
        if status != 202:
            raise RuntimeError(f"not accepted: {status} {receipt}")
        message_id: str = receipt["message_id"]
        return message_id

    async def answer(self, message_id: str) -> float:
        """Wait until a message was answered; returns the moment."""
        if message_id not in self.answered:
            await self._waiting.setdefault(message_id, trio.Event()).wait()
        return self.answered[message_id]

    async def ask(self, session: str, text: str, **how: Any) -> float:
        """Send and wait; returns the seconds between."""
        began = trio.current_time()
        message_id = await self.send(session, text, **how)
        return await self.answer(message_id) - began
