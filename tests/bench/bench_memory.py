"""Latency of save and recall, import, rebuild and resident memory, over one real agent memory.

    python tests/bench/bench_memory.py [--sizes 1000 10000 100000] [--import-lines 5000] [--engine exact|lancedb]

Texts are generated sentences of 12 to 25 words. Questions, saves and the import are embedded by the real model; the
vectors of the stores to search in are mixtures of 2,000 sentences embedded by it, because embedding 100,000 takes ten
minutes: their neighbourhoods are as dense as real ones, their words are not theirs. A sixth of the words are made up,
as names and terms of a trade are for the model. One line per figure, wall clock and processor time. Not a test:
nothing here passes or fails.
"""

import argparse
import gc
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program does, which imports numpy later than this

import numpy as np
import trio
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spacebot.base.allocator import limit_arenas
from spacebot.base.clock import Clock
from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.types import NewMemory, Provenance, Query
from spacebot.storage.database import Database, open_database

WORDS = [
    f"{a}{b}{c}" for a in "bdfklmnprstvz" for b in ("a", "en", "or", "il", "us") for c in ("ta", "rin", "mok", "del")
]
WORDS = [first + second for first in WORDS for second in WORDS[::9]]
COMMON = " ".join(
    [
        "time year people way day man thing woman life child world school state family student group country problem",
        "hand part place case week company system program question work government number night point home water room",
        "mother area money story fact month lot right study book eye job word business issue side kind head house",
        "service friend father power hour game line end member law car city community name president team minute idea",
        "body information back parent face level office door health person art war history party result change",
        "morning reason research girl guy moment air teacher force education foot boy age policy process music market",
        "sense nation plan college interest death experience effect use class control field development role effort",
        "rate heart drug show leader light voice wife police mind price report decision son view relationship town",
        "road arm difference value building action season society tax director position player record paper space",
        "ground form event official matter center couple site project activity star table need court oil situation",
        "cost industry figure street image phone data picture practice piece land product doctor wall patient worker",
        "news test movie north love step computer type attention film tree source organization hair look window",
        "culture chance brother period summer hope order movement energy hospital deadline invoice server database",
        "meeting",
    ]
).split()
WEIGHTS = [1 / (rank + 20) for rank in range(len(WORDS))]  # about as uneven as words without stop words
SOME = ["the", "we", "they", "has", "been", "about", "with", "before", "after", "because", "until", "from", "which"]
ROOM = Provenance(channel_id="bench:room", user_id="ann")
QUESTIONS = 100
BASE = 2000  # sentences embedded in earnest
LATE_SHARE = 0.95
GC_THRESHOLD = (20_000, 20, 20)  # as in `spacebot.app`, which is too large to be imported for it


class MixingEmbedder:
    """Vectors without the model's work: mixtures of a few thousand real ones, another for each text."""

    def __init__(self, name: str, base: NDArray[np.float32]) -> None:
        self.name = name
        self.dimensions = base.shape[1]
        self._base = base
        self._generator = np.random.default_rng(1)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        count, draw = len(texts), self._generator
        first, second, third = (self._base[draw.integers(0, len(self._base), count)] for _ in range(3))
        share = draw.random((2, count, 1), np.float32) / 2
        mixed = first + share[0] * second + share[1] * third
        mixed += draw.standard_normal((count, self.dimensions), np.float32) * np.float32(0.015)
        vectors: NDArray[np.float32] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        return vectors


def memory_mib() -> str:
    figures = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            figures[name] = int(rest.split()[0]) // 1024
    return f"rss {figures.get('VmRSS', 0)} MiB, highest {figures.get('VmHWM', 0)}"


def sentence(source: random.Random, number: int) -> str:
    count = source.randint(12, 25) - 2
    rare = source.choices(WORDS, WEIGHTS, k=count // 6)  # names and terms of a trade
    common = source.choices(COMMON, k=count // 3)
    words = [*rare, *common, *source.choices(SOME, k=count - len(rare) - len(common))]
    source.shuffle(words)
    return f"{' '.join(words).capitalize()} number {number}."


def lines(source: random.Random, first: int, last: int) -> io.BytesIO:
    texts = [json.dumps({"content": sentence(source, number), "channel_id": ROOM.channel_id}) for number in
             range(first, last)]  # fmt: skip
    return io.BytesIO("\n".join(texts).encode())


def report(name: str, calls: Sequence[tuple[float, float]]) -> None:
    walls, cpus = sorted(wall for wall, _ in calls), sorted(cpu for _, cpu in calls)
    middle, late = len(calls) // 2, int(len(calls) * LATE_SHARE)
    print(
        f"{name}: p50 {walls[middle] * 1000:.1f} ms, p95 {walls[late] * 1000:.1f} ms, "
        f"cpu p50 {cpus[middle] * 1000:.1f} ms, best {walls[0] * 1000:.1f} ms ({len(calls)} calls)",
        flush=True,
    )


async def timed(call: Awaitable[object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await call
    return time.perf_counter() - wall, time.process_time() - cpu


@asynccontextmanager
async def opened(
    folder: Path, embedder: Embedder, policy: IndexPolicy
) -> AsyncIterator[tuple[Database, AgentMemory, MemoryTransfer]]:
    async with (
        open_database(folder / "spacebot.db", package_file("storage", "sql")) as database,
        open_memory(
            database, folder / "lancedb", embedder=embedder, events=EventBus(), agent_id="bench", index=policy
        ) as memory,
    ):
        yield database, memory, MemoryTransfer(database, memory, embedder, Clock())


async def fill(folder: Path, embedder: Embedder, first: int, last: int) -> None:
    quiet = IndexPolicy(flush_after_s=1e6, flush_after_large_s=1e6, exact_limit=10**9)
    async with opened(folder, embedder, quiet) as (_, _, transfer):
        await transfer.import_file(lines(random.Random(first), first, last))


async def measure(folder: Path, embedder: Embedder, policy: IndexPolicy, size: int) -> None:
    """Search, save and rebuild in a store that lies ready on disk."""
    source = random.Random(size)
    async with opened(folder, embedder, policy) as (_, memory, _):
        started = time.perf_counter()
        await memory.warm_up()
        print(f"{size}: warm up {time.perf_counter() - started:.2f} s, {memory_mib()}", flush=True)
        if size > policy.exact_limit:
            while (await memory.stats()).engine != "lancedb":
                await trio.sleep(0.2)
            await memory.flush()
            print(f"{size}: table in step after {time.perf_counter() - started:.2f} s, {memory_mib()}", flush=True)
        index = memory._index
        times: dict[str, list[tuple[float, float]]] = {"embed": [], "vector search": [], "recall": [], "save": []}
        for number in range(QUESTIONS):
            question = sentence(source, 10**8 + number)
            times["embed"].append(await timed(embedder.embed([question])))
            (vector,) = await embedder.embed([question])
            times["vector search"].append(await timed(index.nearest(vector, ROOM.viewer, limit=50)))
            times["recall"].append(await timed(memory.recall(Query(viewer=ROOM.viewer, text=question))))
        for number in range(QUESTIONS):
            new = NewMemory(content=sentence(source, 10**9 + number), provenance=ROOM)
            times["save"].append(await timed(memory.save(new)))
        for name, calls in times.items():
            report(f"{size}: {name}", calls)
        ids = list((await memory._database.read(index._stored.all_ids))[:2000])
        wall, cpu = await timed(index.nearest_many(ids, limit=5))
        print(f"{size}: neighbours of {len(ids)} memories: {wall:.2f} s, cpu {cpu:.2f} s", flush=True)
        stats = await memory.stats()
        print(f"{size}: engine {stats.engine}, unindexed {stats.unindexed}, {memory_mib()}", flush=True)
        stages: dict[str, float] = {}
        started = time.perf_counter()
        await memory.rebuild(lambda stage, done, total: stages.update({stage: time.perf_counter() - started}))
        told = ", ".join(f"{stage} at {seconds:.1f} s" for stage, seconds in stages.items())
        print(f"{size}: rebuild {time.perf_counter() - started:.1f} s ({told}), {memory_mib()}", flush=True)


async def measure_import(embedder: Embedder, policy: IndexPolicy, count: int) -> None:
    """Import with the real model, while somebody asks a question every second."""
    with tempfile.TemporaryDirectory() as name:
        async with opened(Path(name), embedder, policy) as (_, memory, transfer):
            await memory.warm_up()
            source = random.Random(3)
            asked: list[tuple[float, float]] = []
            embedded: list[tuple[float, float]] = []

            async def ask() -> None:
                while True:
                    await trio.sleep(1)
                    embedded.append(await timed(embedder.embed([sentence(source, 1)])))
                    asked.append(await timed(memory.recall(Query(viewer=ROOM.viewer, text=sentence(source, 1)))))

            file = lines(source, 0, count)
            wall, cpu = time.perf_counter(), time.process_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                found = await transfer.import_file(file)
                nursery.cancel_scope.cancel()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"import: {found.memories} in {wall:.0f} s, {found.memories / wall:.0f} a second, "
                f"cpu {cpu / count * 1000:.1f} ms each, {memory_mib()}",
                flush=True,
            )
            if asked:
                report("import: embedding a question meanwhile", embedded)
                report("import: recall meanwhile", asked)


async def main() -> None:
    limit_arenas()  # as the program does, which also collects garbage seldom
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--import-lines", type=int, default=5000, help="0 leaves the import out")
    parser.add_argument("--engine", choices=["exact", "lancedb"], help="default: what the policy says")
    arguments = parser.parse_args()
    policy = IndexPolicy() if arguments.engine is None else IndexPolicy(
        exact_limit=10**9 if arguments.engine == "exact" else 100, index_rows=1000
    )  # fmt: skip
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {memory_mib()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        embedder = OnnxEmbedder(verdicts=Path(name) / "native.json")
        source = random.Random(2)
        base = await embedder.embed([sentence(source, number) for number in range(BASE)])
        mixing, filled = MixingEmbedder(embedder.name, base), 0
        for size in sorted(arguments.sizes):
            folder = Path(name) / "store"
            folder.mkdir(exist_ok=True)
            await fill(folder, mixing, filled, size)
            filled = size
            await measure(folder, embedder, policy, size)
        if arguments.import_lines:
            await measure_import(embedder, policy, arguments.import_lines)


if __name__ == "__main__":
    trio.run(main)
