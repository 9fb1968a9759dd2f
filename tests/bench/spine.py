"""The figures of the spine: one line each, with the peers' and the target beside it.

    python -m tests.bench spine [name …]

The stand-in model runs in this process (or beside it where the load is high); the daemon is the real one,
spoken to over HTTP. The floor is a bot that does nothing but ask the model and answer.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import trio

from tests.real_daemon import ROOT, Daemon, Http, Watcher, running
from tests.stand_ins.openai import echo, last_user_text, serve_openai
from tests.stand_ins.serving import Answer, Use

Bench = Callable[[Path], Awaitable[None]]


def line(name: str, measured: str, target: str, peers: str = "") -> None:
    """Print one figure."""
    print(f"{name:58} {measured:>34}   reach {target:22} {peers}", flush=True)


def percentile(values: list[float], share: float) -> float:
    """A percentile of a list of seconds, in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


@contextlib.contextmanager
def standin_process(latency_s: float) -> Iterator[str]:
    """The stand-in as a process of its own; gives its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stand_ins.openai", "--latency", str(latency_s)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def watching(daemon: Daemon):  # type: ignore[no-untyped-def]
    """Follow a daemon's events while the block runs."""
    async with trio.open_nursery() as nursery:
        watcher = Watcher(daemon)
        await nursery.start(watcher.run)
        yield watcher
        nursery.cancel_scope.cancel()


async def overhead(folder: Path) -> None:
    """Message to answer, model at 0 ms, one after another; and the processor time of each."""
    with standin_process(0) as url, running(Daemon(folder, model_url=url)) as daemon:
        async with watching(daemon) as watcher:
            for _ in range(15):
                await watcher.ask("warm", "hello")
            took = [await watcher.ask(f"s{i % 10}", "hello") for i in range(200)]
            line(
                "overhead per message, model 0 ms, p50 / p95",
                f"{percentile(took, 0.5):.1f} / {percentile(took, 0.95):.1f} ms",
                "15 / 30 ms",
                "peers 90-950 / 200-1950 ms, floor 8/15",
            )
            before, n = daemon.cpu_s(), 300
            limiter = trio.CapacityLimiter(10)

            async def one(i: int) -> None:
                async with limiter:
                    await watcher.ask(f"c{i % 30}", "hello")

            async with trio.open_nursery() as nursery:
                for i in range(n):
                    nursery.start_soon(one, i)
            line(
                "CPU per message (10 at a time)",
                f"{(daemon.cpu_s() - before) / n * 1000:.1f} ms",
                "10 ms",
                "peers 80-700 ms, floor 2",
            )


async def fifty_conversations(folder: Path) -> None:
    """Fifty people in fifty conversations at once."""
    with standin_process(1.0) as url, running(Daemon(folder, model_url=url)) as daemon:
        async with watching(daemon) as watcher:
            await watcher.ask("warm", "hello")
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for i in range(50):
                    nursery.start_soon(watcher.ask, f"u{i}", f"hello from {i}")
            line(
                "50 users in 50 conversations, model 1 s: all answered",
                f"{trio.current_time() - began:.2f} s",
                "1.6 s",
                "peers 9-46 s, floor 1.3",
            )


async def fifty_in_one(folder: Path) -> None:
    """Fifty people in one room at once: few calls, everybody seen."""
    async with serve_openai(echo_all, latency_s=1.0) as stand_in:
        with running(Daemon(folder, model_url=stand_in.url)) as daemon:
            async with watching(daemon) as watcher:
                await watcher.ask("warm", "hello")
                calls = len(stand_in.requests)
                began = trio.current_time()
                ids: list[str] = []

                async def one(i: int) -> None:
                    ids.append(await watcher.send("room", f"this is person{i}", sender=f"person{i}", shared=True))

                async with trio.open_nursery() as nursery:
                    for i in range(50):
                        nursery.start_soon(one, i)
                turns = watcher.turns
                seen: set[str] = set()
                with trio.move_on_after(20):
                    while len(seen) < 50:
                        await trio.sleep(0.01)
                        seen = {
                            f"person{i}" for i in range(50) for t in watcher.texts.values() if f"person{i} " in t + " "
                        }
                line(
                    "50 users in one channel, model 1 s: all named after (calls)",
                    f"{trio.current_time() - began:.2f} s ({len(stand_in.requests) - calls}), {len(seen)} named",
                    "2.5 s (3), all",
                    "peers 3.2 s (2) to 120 s",
                )
                del turns


def echo_all(body: Any) -> Answer:
    """Reply with every name that the request holds."""
    text = last_user_text(body)
    names = sorted({word.rstrip(":") for word in text.split() if word.startswith("person") and word.endswith(":")})
    return Answer(uses=(Use("reply", {"content": "hello " + " ".join(names)}),))


def busy(body: Any) -> Answer:
    """A channel that hands jobs on, and the worker that does them."""
    tools = {tool["function"]["name"] for tool in body.get("tools", ())}
    text = last_user_text(body)
    if "spawn_worker" in tools and "reply" in tools:
        if "<result" in text:
            return Answer(uses=(Use("reply", {"content": "the job is done"}),))
        if "job" in text:
            return Answer(uses=(Use("reply", {"content": "on it"}), Use("spawn_worker", {"task": "wait ten seconds"})))
        return Answer(uses=(Use("reply", {"content": "hello"}),))
    if any(message["role"] == "tool" for message in body["messages"]):
        return Answer(uses=(Use("set_status", {"status": "waited", "kind": "outcome"}),))
    return Answer(uses=(Use("shell", {"command": "sleep 10", "timeout_seconds": 60}),))


async def beside_a_job(folder: Path) -> None:
    """A second message while a ten second command runs in the same conversation."""
    async with serve_openai(busy) as stand_in:
        with running(Daemon(folder, model_url=stand_in.url)) as daemon:
            async with watching(daemon) as watcher:
                await watcher.ask("warm", "hello")
                began = trio.current_time()
                first = await watcher.send("s", "do the job")
                await watcher.answer(first)
                took = [await watcher.ask("s", "hello") for _ in range(20)]
                while watcher.texts[first] != "the job is done":
                    await trio.sleep(0.02)
                line(
                    "second message while a 10 s job runs: answered after, p50",
                    f"{percentile(took, 0.5):.0f} ms, job delivered at {trio.current_time() - began:.1f} s",
                    "50 ms, job delivered",
                    "peers 8-15 s, or job killed",
                )


async def hello_tokens(folder: Path) -> None:
    """Size of the whole first request."""
    async with serve_openai(echo) as stand_in:
        with running(Daemon(folder, model_url=stand_in.url)) as daemon:
            async with watching(daemon) as watcher:
                await watcher.ask("s", "hello")
                body = stand_in.requests[-1].body
                size = len(body)
                line(
                    "tokens of the whole first request for a hello (bytes / 4)", f"{size // 4}", "3000", "peers 8k-27k"
                )


async def thousand(folder: Path) -> None:
    """A thousand live conversations, a message each at the same moment."""
    n = 1000
    with standin_process(2.0) as url, running(Daemon(folder, model_url=url)) as daemon:
        async with watching(daemon) as watcher:
            limiter = trio.CapacityLimiter(100)

            async def wake(i: int) -> None:
                async with limiter:
                    await watcher.ask(f"k{i}", "hello")

            async with trio.open_nursery() as nursery:
                for i in range(n):
                    nursery.start_soon(wake, i)
            rss, cpu = daemon.rss_mib(), daemon.cpu_s()
            began = trio.current_time()
            answered = 0

            async def one(i: int) -> None:
                nonlocal answered
                await watcher.ask(f"k{i}", "again")
                answered += 1

            with trio.move_on_after(60):
                async with trio.open_nursery() as nursery:
                    for i in range(n):
                        nursery.start_soon(one, i)
            line(
                "1,000 live conversations, model 2 s: all answered",
                f"{trio.current_time() - began:.2f} s ({answered})",
                "5 s, no error",
                f"CPU {(daemon.cpu_s() - cpu) / n * 1000:.1f} ms each, RSS {rss:.0f} MiB",
            )


async def idle(folder: Path) -> None:
    """What it costs to have it running."""
    with running(Daemon(folder, model_url=None)) as daemon:
        await trio.sleep(2)
        rss = daemon.rss_mib()
        before = daemon.cpu_s()
        await trio.sleep(20)
        cpu = (daemon.cpu_s() - before) / 20 * 100
        line(
            "idle: CPU / resident memory before first use",
            f"{cpu:.2f} % / {rss:.0f} MiB",
            "0.1 % / 80 MiB",
            "peers 0.2-10 % / 95-870 MiB",
        )
        async with watching(daemon) as watcher:
            await watcher.ask("s", "hello")
            await trio.sleep(3)
            line("  with the embedding model loaded (demo model)", f"{daemon.rss_mib():.0f} MiB", "200 MiB")


async def starting(folder: Path) -> None:
    """From the command to the first accepted message, and the quick commands."""
    took = []
    for i in range(5):
        daemon = Daemon(folder / "again", model_url=None)
        took.append(daemon.start())
        if i < 4:
            daemon.stop()
    line(
        "ready after start (best / median of 5)",
        f"{min(took):.2f} / {statistics.median(took):.2f} s",
        "0.8 s source, 1.5 s exe",
        "peers 2.5-23 s",
    )

    def timed(*words: str) -> float:
        runs = []
        for _ in range(9):
            began = time.perf_counter()
            result = daemon.run(*words)
            runs.append(time.perf_counter() - began)
            assert result.returncode == 0, result.stderr
        return statistics.median(runs)

    line(
        "spacebot status / --version (median of 9)",
        f"{timed('status'):.3f} / {timed('--version'):.3f} s",
        "0.12 / 0.06; exe 0.15 / 0.005",
        "peers 0.2-13 s",
    )
    line("  floor: python -c pass", f"{_floor_python():.3f} s", "")
    daemon.stop()


def _floor_python() -> float:
    runs = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        runs.append(time.perf_counter() - began)
    return statistics.median(runs)


async def crash(folder: Path) -> None:
    """A question in flight at kill -9."""
    async with serve_openai(echo, latency_s=1.0) as stand_in:
        daemon = Daemon(folder, model_url=stand_in.url)
        with running(daemon):
            async with watching(daemon) as watcher:
                message_id = await watcher.send("s", "hello")
                await trio.sleep(0.3)
                await trio.to_thread.run_sync(daemon.kill)
        began_start = time.perf_counter()
        await trio.to_thread.run_sync(daemon.start)
        ready = time.perf_counter()
        try:
            async with watching(daemon) as watcher:
                while (daemon_fate := json.loads(daemon.run("why", message_id, "--json").stdout or "{}")).get(
                    "state"
                ) != "answered":
                    await trio.sleep(0.05)
                replies = len(daemon_fate.get("replies", []))
                line(
                    "question in flight at kill -9: answered after ready (model 1 s)",
                    f"{time.perf_counter() - ready:.2f} s",
                    "3 s, exactly once",
                    f"peers 25-57 s or never; ready {ready - began_start:.2f} s, {replies} reply",
                )
        finally:
            daemon.kill()


async def stopping(folder: Path) -> None:
    """Stop with turns and jobs under way."""
    async with serve_openai(busy, latency_s=1.0) as stand_in:
        daemon = Daemon(folder, model_url=stand_in.url)
        with running(daemon):
            async with watching(daemon) as watcher:
                for i in range(3):
                    await watcher.ask(f"s{i}", "do the job")
                for i in range(20):
                    await watcher.send(f"t{i}", "hello")
                took = await trio.to_thread.run_sync(daemon.stop)
        line("stop under load (20 turns, 3 jobs)", f"{took:.2f} s", "10 s, work resumed", "peers 3 s to 5 min")


async def floor(folder: Path) -> None:
    """What the same libraries need on this machine for nothing but asking the model and answering."""
    for latency, name, n, at_once in (
        (0.0, "one after another, model 0 ms", 200, 1),
        (1.0, "50 at once, model 1 s", 50, 50),
        (2.0, "1,000 at once, model 2 s", 1000, 1000),
    ):
        with standin_process(latency) as url:
            bot = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.floor", url], stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            try:
                assert bot.stdout is not None
                port = int(bot.stdout.readline())
                people = [Http(port) for _ in range(at_once)]
                took: list[float] = []

                async def one(person: Http, took: list[float] = took) -> None:
                    began = trio.current_time()
                    await person.post("/", {"message": "hello"})
                    took.append(trio.current_time() - began)

                async with trio.open_nursery() as nursery:
                    for person in people:  # connections are open before the clock runs, as in the other figures
                        nursery.start_soon(one, person)
                took.clear()
                before, began = psutil.Process(bot.pid).cpu_times(), trio.current_time()
                if at_once == 1:
                    for _ in range(n):
                        await one(people[0])
                else:
                    async with trio.open_nursery() as nursery:
                        for person in people:
                            nursery.start_soon(one, person)
                after = psutil.Process(bot.pid).cpu_times()
                cpu = (after.user + after.system - before.user - before.system) / n * 1000
                spent = trio.current_time() - began
                line(
                    f"floor, a bot that does nothing else: {name}",
                    f"{percentile(took, 0.5):.1f} / {percentile(took, 0.95):.1f} ms"
                    if at_once == 1
                    else f"{spent:.2f} s",
                    "",
                    f"CPU {cpu:.1f} ms each",
                )
                for person in people:
                    await person.close()
            finally:
                bot.kill()
                bot.wait()


FIGURES: dict[str, Bench] = {
    "floor": floor,
    "overhead": overhead,
    "fifty_conversations": fifty_conversations,
    "fifty_in_one": fifty_in_one,
    "beside_a_job": beside_a_job,
    "hello_tokens": hello_tokens,
    "thousand": thousand,
    "idle": idle,
    "starting": starting,
    "crash": crash,
    "stopping": stopping,
}


def main(names: list[str]) -> None:
    """Run the named figures, or all."""
    for name in names or FIGURES:
        with tempfile.TemporaryDirectory(prefix="spacebot-bench-") as folder:
            trio.run(FIGURES[name], Path(folder))
