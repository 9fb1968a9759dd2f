"""Latency of save and recall, and resident memory, over one real agent memory.

    python tests/bench/bench_memory.py [--sizes 1000 10000] [--engine exact|lancedb] [--fake]

Prints one line per figure. Not a test: nothing here passes or fails.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.types import NewMemory, Provenance, Query
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder

WORDS = [
    f"{a}{b}{c}" for a in "bdfklmnprstvz" for b in ("a", "en", "or", "il", "us") for c in ("ta", "rin", "mok", "del")
]
WORDS = [first + second for first in WORDS for second in WORDS[::9]]
WEIGHTS = [1 / (rank + 20) for rank in range(len(WORDS))]  # about as uneven as words without stop words
ROOM = Provenance(channel_id="bench:room", user_id="ann")
QUESTIONS = 100


def rss_mib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


def sentence(source: random.Random, number: int) -> str:
    return f"{' '.join(source.choices(WORDS, WEIGHTS, k=10)).capitalize()} number {number}."


def line(name: str, calls: Sequence[tuple[float, float]]) -> None:
    walls, cpus = sorted(wall for wall, _ in calls), sorted(cpu for _, cpu in calls)
    middle, late = len(calls) // 2, int(len(calls) * 0.95)
    print(
        f"{name}: p50 {walls[middle] * 1000:.1f} ms, p95 {walls[late] * 1000:.1f} ms, "
        f"cpu p50 {cpus[middle] * 1000:.1f} ms ({len(calls)} calls)",
        flush=True,
    )


async def timed(call: Awaitable[object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await call
    return time.perf_counter() - wall, time.process_time() - cpu


async def measure(memory: AgentMemory, embedder: Embedder, sizes: Sequence[int]) -> None:
    source = random.Random(1)
    print(f"rss after opening: {rss_mib()} MiB")
    started = time.perf_counter()
    await memory.warm_up()
    print(f"warm up: {time.perf_counter() - started:.2f} s, rss {rss_mib()} MiB")
    saved = 0
    for size in sizes:
        limit = trio.CapacityLimiter(32)

        async def put(number: int, limit: trio.CapacityLimiter = limit) -> None:
            async with limit:
                await memory.save(NewMemory(content=sentence(source, number), provenance=ROOM))

        started, count = time.perf_counter(), size - saved
        async with trio.open_nursery() as nursery:
            for number in range(saved, size):
                nursery.start_soon(put, number)
        saved = size
        print(f"{size}: filled at {count / (time.perf_counter() - started):.0f} saves/s, rss {rss_mib()} MiB")
        times: dict[str, list[tuple[float, float]]] = {"save": [], "recall": [], "embed": []}
        for number in range(QUESTIONS):
            new = NewMemory(content=sentence(source, 10**9 + saved + number), provenance=ROOM)
            question = sentence(source, number)
            times["save"].append(await timed(memory.save(new)))
            times["embed"].append(await timed(embedder.embed([question])))
            times["recall"].append(await timed(memory.recall(Query(viewer=ROOM.viewer, text=question))))
        for name, seconds in times.items():
            line(f"{size}: {name}", seconds)
        stats = await memory.stats()
        print(f"{size}: engine {stats.engine}, unindexed {stats.unindexed}, rss {rss_mib()} MiB", flush=True)
    started = time.perf_counter()
    await memory.flush()
    print(f"bringing the table into step: {time.perf_counter() - started:.2f} s, rss {rss_mib()} MiB")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--engine", choices=["exact", "lancedb"], default="exact")
    parser.add_argument("--fake", action="store_true", help="words as vectors, to measure all but the model")
    arguments = parser.parse_args()
    embedder: Embedder = FakeEmbedder() if arguments.fake else OnnxEmbedder()
    policy = (
        IndexPolicy(flush_after_s=3600)
        if arguments.engine == "exact"
        else IndexPolicy(exact_limit=100, flush_after_s=1)
    )
    with tempfile.TemporaryDirectory() as folder:
        async with open_database(Path(folder) / "spacebot.db", package_file("storage", "sql")) as database:
            async with open_memory(
                database, Path(folder) / "lancedb", embedder=embedder, events=EventBus(), agent_id="bench", index=policy
            ) as memory:
                await measure(memory, embedder, arguments.sizes)


if __name__ == "__main__":
    trio.run(main)
