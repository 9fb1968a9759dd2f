"""The API under load: `python -m tests.bench api [lists] [stream] [captures]`; each figure on a line of its own.

lists       a daemon with 100,000 messages and 10,000 memories; every list route over HTTP, p95 of each
stream      200 clients on the event stream of a server process that tells of 100 events a second
captures    processor time that keeping requests to models adds to a message
"""

import argparse
import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import trio

from tests.real_daemon import Daemon, Http, running

MESSAGES, MEMORIES, CHANNELS, WORKERS, RUNS, EVENTS, USAGE = 100_000, 10_000, 3_000, 5_000, 3_000, 5_000, 100_000
ASKED = 60  # times for each route
BIG = "webchat:s0"  # half of all messages
CLIENTS, RATE, SECONDS = 200, 100, 20
AT = "2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}+00:00"
WORDS = [
    "harbour",
    "winter",
    "tea",
    "train",
    "river",
    "garden",
    "letter",
    "engine",
    "copper",
    "orchard",
    "ladder",
    "signal",
    "autumn",
    "window",
    "market",
]


def moment(number: int, total: int) -> str:
    """The time of one of many things, spread over 300 days."""
    second = number * 300 * 86400 // total
    day, rest = divmod(second, 86400)
    return AT.format(1 + day // 28 % 12, 1 + day % 28, rest // 3600, rest // 60 % 60, rest % 60, number % 1_000_000)


def text_of(source: random.Random, size: int = 12) -> str:
    """Some words."""
    return " ".join(source.choice(WORDS) for _ in range(size))


def insert(c: sqlite3.Connection, table: str, **values: Any) -> None:
    """One row."""
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    c.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))


def fill(path: Path) -> None:
    """Rows as years of use leave them."""
    source = random.Random(7)
    with closing(sqlite3.connect(path)) as c:
        c.execute("PRAGMA synchronous = OFF")
        fill_conversations(c, source)
        fill_memories(c, source)
        fill_doings(c, source)
        c.commit()


def fill_conversations(c: sqlite3.Connection, source: random.Random) -> None:
    """Conversations and what was said in them, half of it in one."""
    for number in range(CHANNELS):
        at = moment(number, CHANNELS)
        insert(
            c, "channels", id=f"webchat:s{number}", platform="webchat", display_name=f"Room {number}", is_direct=1,
            was_direct=1, last_seq=MESSAGES, created_at=at, last_activity_at=at,
        )  # fmt: skip
    for number in range(MESSAGES):
        is_big = number % 2 == 0
        channel, seq = (BIG, number // 2 + 1) if is_big else (f"webchat:s{1 + number // 2 % (CHANNELS - 1)}", number)
        role = "user" if number % 4 < 2 else "assistant"
        at, turn = moment(number, MESSAGES), f"t{number // 4}"
        insert(
            c, "conversation_messages", id=f"m{number}", channel_id=channel, seq=seq, role=role, sender_id="ann",
            sender_name="Ann", content=text_of(source), turn_id=turn, created_at=at,
        )  # fmt: skip
        if role == "user":
            insert(
                c, "ledger", message_id=f"m{number}", channel_id=channel, state="answered", turn_id=turn, updated_at=at
            )
    c.execute("UPDATE message_docs SET is_pending = 0")  # or all of them would be embedded first
    c.execute(
        "INSERT INTO persistence_runs "
        "SELECT 'p' || id, id, last_seq, 'no_memories', NULL, '[]', created_at, created_at FROM channels"
    )


def fill_memories(c: sqlite3.Connection, source: random.Random) -> None:
    """Memories with vectors and edges."""
    (model,) = c.execute("SELECT model FROM embeddings LIMIT 1").fetchone()
    for number in range(MEMORIES):
        at, words = moment(number, MEMORIES), f"{text_of(source)} {number}"
        insert(
            c, "memories", id=f"k{number}", content=words, fingerprint=words, memory_type="fact",
            importance=source.random(), created_at=at, updated_at=at, last_accessed_at=at,
        )  # fmt: skip
    vectors = np.random.default_rng(7).standard_normal((MEMORIES, 384), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    c.executemany(
        "INSERT INTO embeddings (seq, memory_id, model, embedding) SELECT seq, id, ?, ? FROM memories WHERE id = ?",
        [(model, vectors[number].tobytes(), f"k{number}") for number in range(MEMORIES)],
    )
    for number in range(MEMORIES):
        insert(
            c, "associations", id=f"e{number}", source_id=f"k{number}",
            target_id=f"k{(number + source.randrange(1, MEMORIES)) % MEMORIES}", relation_type="related_to",
            created_at=moment(number, MEMORIES),
        )  # fmt: skip


def fill_doings(c: sqlite3.Connection, source: random.Random) -> None:
    """Branches, workers, schedules' runs, the cortex's deeds, what models cost."""
    for number in range(WORKERS):
        at = moment(number, WORKERS)
        shared = {"channel_id": BIG, "turn_id": f"t{number}", "state": "done", "started_at": at, "completed_at": at}
        said, found = text_of(source), text_of(source, 60)
        insert(c, "branch_runs", id=f"b{number}", description=said, conclusion=found, **shared)
        insert(c, "worker_runs", id=f"w{number}", task=said, result=found, **shared)
    for number in range(EVENTS):
        insert(
            c, "cortex_events", id=f"v{number}", event_type="pruned", summary=text_of(source), details="{}",
            created_at=moment(number, EVENTS),
        )  # fmt: skip
    at = moment(0, 1)
    insert(
        c, "cron_jobs", id="daily", source="owner", prompt="Say hello", interval_secs=86400,
        delivery_target="webchat:s1", is_private=0, enabled=0, run_once=0, timeout_secs=120, failures=0, anchor_at=at,
        created_at=at,
    )  # fmt: skip
    for number in range(RUNS):
        at = moment(number, RUNS)
        insert(
            c, "cron_runs", job_id="daily", due_at=f"{at}{number}", cause="due", state="done", claimed_at=at,
            started_at=at, completed_at=at,
        )  # fmt: skip
    for number in range(USAGE):
        insert(
            c, "usage", created_at=moment(number, USAGE), process_kind="channel", process_id=f"t{number}",
            channel_id=BIG, model="demo/demo", input_tokens=900, output_tokens=90, cache_read_tokens=0,
            cache_write_tokens=0, reasoning_tokens=0,
        )  # fmt: skip


ROUTES = (
    "/api/channels",
    "/api/channels?limit=500",
    "/api/channels?contains=room%2029",
    "/api/channels/status",
    "/api/channels/messages?channel_id=webchat:s0&limit=100",
    "/api/channels/messages?channel_id=webchat:s0&limit=100&before=20000",
    "/api/webchat/history?session_id=s0&limit=200",
    "/api/messages/m50000/fate",
    "/api/agents/memories?limit=200",
    "/api/agents/memories?limit=200&offset=9000",
    "/api/agents/memories?limit=200&sort=importance",
    "/api/agents/memories?limit=200&sort=most_accessed",
    "/api/agents/memories/graph?limit=500",
    "/api/agents/memories/graph/neighbors?memory_id=k5000&depth=3",
    "/api/agents/memories/history",
    "/api/agents/memories/k5000",
    "/api/agents/memories/search?q=harbour%20in%20winter",
    "/api/agents/workers?limit=200",
    "/api/agents/workers/w100",
    "/api/agents/cron",
    "/api/agents/cron/executions?limit=500",
    "/api/cortex/events?limit=200",
    "/api/cortex/state",
    "/api/usage?days=30",
    "/api/overview",
    "/api/agents",
    "/api/agents/overview",
    "/api/prompts/captures?limit=200",
    "/api/logs?limit=1000",
    "/api/status",
    "/api/tree",
)


async def time_lists(daemon: Daemon) -> None:
    """Ask each route again and again; beside the time, what the daemon's processor spent on one answer."""
    http = Http(daemon.port)
    worst = 0.0
    for path in ROUTES:
        spans, status, size, used = [], 0, 0, 0.0
        for number in range(ASKED + 3):
            used = daemon.cpu_s() if number == 3 else used
            began = time.perf_counter()
            status, answer = await http.get(path)
            if number >= 3:  # the first ones read from the disk
                spans.append((time.perf_counter() - began) * 1000)
            size = len(json.dumps(answer)) if number == 0 else size
        p95 = statistics.quantiles(spans, n=20)[18]
        worst = max(worst, p95 if status == 200 else 0)
        median, spent = statistics.median(spans), (daemon.cpu_s() - used) / ASKED * 1000
        figures = f"{p95:7.1f} ms p95 {median:7.1f} ms median {spent:6.1f} ms processor {size // 1024:5} KB"
        print(f"  {figures} {status} {path}", flush=True)
    print(f"list routes with {MESSAGES} messages and {MEMORIES} memories: worst p95 {worst:.0f} ms (reach 50)")


async def teach(port: int) -> None:
    """Have one memory embedded, so that it is known under which name vectors are kept."""
    _, saved = await Http(port).post("/api/agents/memories", {"content": "The harbour freezes seldom"})
    assert saved["is_embedded"], saved


def settle(daemon: Daemon) -> None:
    """Wait until the daemon has done what a start brings with it."""
    trio.run(Http(daemon.port).get, "/api/agents/memories/search?q=harbour")
    quiet = 0
    while quiet < 3:
        used = daemon.cpu_s()
        time.sleep(1)
        quiet = quiet + 1 if daemon.cpu_s() - used < 0.1 else 0


def lists() -> None:
    """The figures of the list routes."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder) / "instance", model_url=None)
        with running(daemon):
            trio.run(teach, daemon.port)
            daemon.stop()
        fill(next(daemon.folder.glob("agents/main/data/spacebot.db")))
        with running(daemon):
            settle(daemon)
            used, began = daemon.cpu_s(), time.monotonic()
            trio.run(time_lists, daemon)
            used, took = daemon.cpu_s() - used, time.monotonic() - began
            print(f"  processor of the daemon meanwhile: {used:.1f} s in {took:.1f} s")


SERVER = """
import sys
import trio
from functools import partial
from pathlib import Path
from spacebot.api.server import serve_api
from spacebot.base.events import EventKind
from spacebot.config.model import ApiConfig
from tests.fakes.fake_program import open_fake_program

async def main(folder):
    async with open_fake_program(Path(folder)) as program, trio.open_nursery() as nursery:
        serve = partial(serve_api, program, ApiConfig(port=0), events=program.events, tree=program.tree, run_id="bench",
                        stop=trio.Event())
        (url,) = await nursery.start(serve)
        print(url.rpartition(":")[2], flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        began = trio.current_time()
        for number in range(RATE * SECONDS):
            await trio.sleep_until(began + number / RATE)
            program.events.emit(EventKind.TOOL_OUTPUT, agent_id="main", channel_id="webchat:s", process_id="p" * 36,
                                line=f"line {number} of a command that writes a lot of them: " + "x" * 100)
        await trio.sleep(1)
        program.events.emit(EventKind.CONFIG_RELOADED, what="end")
        await trio.sleep_forever()

trio.run(main, sys.argv[1])
"""


async def read_streams(port: int, server: psutil.Process, go: Any) -> None:
    """Be all the clients."""
    counts, lagged, slowest = [0] * CLIENTS, [0] * CLIENTS, [0.0] * CLIENTS
    opened = 0
    all_open = trio.Event()

    async def follow(place: int) -> None:
        nonlocal opened
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            rest, is_open, last = b"", False, 0.0
            while data := await stream.receive_some(262144):
                rest += data
                if not is_open and b": open" in rest:
                    is_open = True
                    opened += 1
                    if opened == CLIENTS:
                        all_open.set()
                whole, mark, left = rest.rpartition(b"\n\n")
                rest = left if mark else rest
                counts[place] += whole.count(b"event: tool_output")
                lagged[place] += whole.count(b"event: lagged")
                if b"event: config_reloaded" in whole:
                    return
                now = time.monotonic()
                slowest[place] = max(slowest[place], now - last if last else 0.0)
                last = now

    async with trio.open_nursery() as nursery:
        for place in range(CLIENTS):
            nursery.start_soon(follow, place)
        await all_open.wait()
        before, began = server.cpu_times(), time.monotonic()
        go()
        await trio.sleep(SECONDS)
        after, took = server.cpu_times(), time.monotonic() - began
        used = (after.user + after.system - before.user - before.system) / took
    complete = sum(count == RATE * SECONDS for count in counts)
    print(
        f"event stream: {CLIENTS} clients at {RATE} events/s: {complete} got all {RATE * SECONDS}, "
        f"{sum(lagged)} lagged, server used {used * 100:.0f} % of a core (reach 50), "
        f"longest pause between two pieces {max(slowest) * 1000:.0f} ms"
    )


def stream() -> None:
    """The figures of the event stream."""
    code = SERVER.replace("RATE", str(RATE)).replace("SECONDS", str(SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-c", code, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "."},
        )
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            port = int(server.stdout.readline())
            socket.create_connection(("127.0.0.1", port), timeout=5).close()

            def go() -> None:
                assert server.stdin is not None
                server.stdin.write(b"\n")
                server.stdin.flush()

            trio.run(partial(read_streams, port, psutil.Process(server.pid), go))
        finally:
            server.kill()
            server.wait()


def captures() -> None:
    """What keeping costs: the same conversation with it and without, processor seconds of the whole process."""
    from tests.bench.capture_cost import measure

    measure()


def main() -> None:
    """Run what was named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["lists", "stream", "captures"])
    for part in parser.parse_args().parts:
        {"lists": lists, "stream": stream, "captures": captures}[part]()


if __name__ == "__main__":
    main()
