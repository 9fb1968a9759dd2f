"""How well a recall finds what a question needs, and how fast: over the real memory, with the real model.

    python -m tests.bench recall --data FOLDER_OR_FILE [--ablation] [--latency 1000 10000] [--dump FILE]

FILE is LoCoMo's JSON (Maharana et al., ACL 2024), whole or in part; it is no part of the project. Three figures:

    turns      each dialogue turn is one memory, "Speaker: text" with the session's date; one store per conversation
    facts      each observation of the data is one memory, without its speaker; its evidence is its dialogue id
    one store  the turns of all conversations in one store, a channel each

The share of a question's evidence among the first k, mean over the questions that have any; "answerable" leaves
out category 5. With facts, questions are left out whose evidence no observation names; evidence that none names
counts as not found. Prints one line per figure. Not a test: nothing here passes or fails.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from spacebot.base.clock import Clock
from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.embedding import Embedder, OnnxEmbedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.search import Fusion, SearchPolicy
from spacebot.memory.types import NewMemory, Provenance, Query, Viewer
from spacebot.storage.database import open_database

TOP = 10
ADVERSARIAL = 5  # category of questions that have no answer
_TURN = re.compile(r"D\d+:\d+")
_PLAIN = SearchPolicy(
    fusion=Fusion.RRF, rrf_k=60, hides_names=False, neighbours=False, people=False, dates=False, form=False,
    talks=False, graph_depth=0,
)  # fmt: skip
LADDER: tuple[tuple[str, dict[str, object]], ...] = (  # each step keeps what the ones before it changed
    ("ranks fused, k 60, plain question", {}),
    ("links", {"graph_depth": 2}),
    ("people's names not embedded", {"hides_names": True}),
    ("k 10", {"rrf_k": 10}),
    ("weighted scores instead of ranks", {"fusion": Fusion.LINEAR}),
    ("neighbours", {"neighbours": True}),
    ("people", {"people": True}),
    ("days", {"dates": True}),
    ("form of the text", {"form": True}),
    ("the rest of the talk", {"talks": True}),
)


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one memory."""

    content: str
    turns: frozenset[str]
    day: datetime
    channel: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the turns that answer it."""

    text: str
    evidence: frozenset[str]
    is_answerable: bool
    channel: str


@dataclass(slots=True)
class Talk:
    """A conversation of the data."""

    name: str
    turns: list[Item] = field(default_factory=list)
    facts: list[Item] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)


class Remembered:
    """The model, answering what it embedded before from memory: the same texts are saved and asked again and again."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Any] = {}
        self.name, self.dimensions = embedder.name, embedder.dimensions

    async def embed(self, texts: Sequence[str]) -> Any:
        import numpy as np

        if missing := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known |= zip(missing, await self._embedder.embed(missing), strict=True)
        await trio.lowlevel.checkpoint()
        return np.stack([self._known[text] for text in texts])


def read_talks(path: Path) -> Iterator[Talk]:
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        for sample in json.loads(file.read_text(encoding="utf-8")):
            yield _talk(sample)


def _talk(sample: dict[str, Any]) -> Talk:
    name, spoken = str(sample["sample_id"]), sample["conversation"]
    talk = Talk(name)
    channel = f"locomo:{name}"
    numbers = sorted(int(key.split("_")[1]) for key in spoken if re.fullmatch(r"session_\d+", key))
    for number in numbers:
        day = datetime.strptime(spoken[f"session_{number}_date_time"].upper(), "%I:%M %p on %d %B, %Y").replace(
            tzinfo=UTC
        )
        for turn in spoken[f"session_{number}"]:
            content = f"{turn['speaker']}: {turn['text']}"
            talk.turns.append(Item(content, frozenset({f"{name}/{turn['dia_id']}"}), day, channel))
        for facts in sample["observation"].get(f"session_{number}_observation", {}).values():
            for text, turns in facts:
                talk.facts.append(Item(text, _named(name, turns), day, channel))
    for asked in sample["qa"]:
        if evidence := _named(name, asked.get("evidence", [])):
            talk.questions.append(Asked(asked["question"], evidence, asked["category"] != ADVERSARIAL, channel))
    return talk


def _named(name: str, turns: object) -> frozenset[str]:
    return frozenset(f"{name}/{turn}" for turn in _TURN.findall(str(turns)))


@asynccontextmanager
async def filled(
    items: Sequence[Item], embedder: Embedder
) -> AsyncIterator[tuple[AgentMemory, dict[str, set[str]], Path]]:
    """A memory that holds these items, and the turns that stand behind each memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        async with opened(path, embedder, SearchPolicy()) as memory:
            behind: dict[str, set[str]] = {}
            for item in items:
                new = NewMemory(
                    content=item.content, provenance=Provenance(channel_id=item.channel), created_at=item.day
                )
                saved = await memory.save(new)
                behind.setdefault(saved.memory.id, set()).update(item.turns)
        async with opened(path, embedder, SearchPolicy()) as memory:
            yield memory, behind, path


@asynccontextmanager
async def opened(folder: Path, embedder: Embedder, policy: SearchPolicy) -> AsyncIterator[AgentMemory]:
    async with open_database(folder / "spacebot.db", package_file("storage", "sql")) as database:
        async with open_memory(
            database,
            folder / "lancedb",
            embedder=embedder,
            events=EventBus(),
            agent_id="bench",
            clock=Clock(),
            search=policy,
            index=IndexPolicy(flush_after_s=3600),
        ) as memory:
            yield memory


@dataclass(slots=True)
class Figures:
    """Shares of evidence found, a question each."""

    at: dict[int, list[float]] = field(default_factory=lambda: {5: [], TOP: []})
    answerable: dict[int, list[float]] = field(default_factory=lambda: {5: [], TOP: []})
    reciprocal: list[float] = field(default_factory=list)

    def line(self) -> str:
        shares = ", ".join(f"recall@{k} {_mean(self.answerable[k]):.4f} / {_mean(self.at[k]):.4f}" for k in (TOP, 5))
        return (
            f"{shares}, MRR {_mean(self.reciprocal):.4f} ({len(self.answerable[TOP])} / {len(self.at[TOP])} questions)"
        )


async def ask(memory: AgentMemory, behind: dict[str, set[str]], questions: Iterable[Asked], figures: Figures) -> None:
    reachable = frozenset[str]().union(*behind.values())
    for asked in questions:
        if not asked.evidence & reachable:
            continue
        query = Query(viewer=Viewer(channel_id=asked.channel), text=asked.text, limit=TOP, counts_as_access=False)
        found = [behind[hit.memory.id] for hit in (await memory.recall(query)).hits]
        for k in (5, TOP):
            share = len(asked.evidence.intersection(*[frozenset().union(*found[:k])])) / len(asked.evidence)
            figures.at[k].append(share)
            if asked.is_answerable:
                figures.answerable[k].append(share)
        first = next((place for place, turns in enumerate(found, start=1) if asked.evidence & turns), None)
        figures.reciprocal.append(1 / first if first else 0.0)


async def measure(talks: Sequence[Talk], embedder: Embedder, policies: Sequence[tuple[str, SearchPolicy]]) -> None:
    stores: dict[str, list[tuple[list[Item], list[Asked]]]] = {
        "turns": [(talk.turns, talk.questions) for talk in talks],
        "facts": [(talk.facts, talk.questions) for talk in talks],
        "one store": [([i for talk in talks for i in talk.turns], [q for talk in talks for q in talk.questions])],
    }
    for kind, parts in stores.items():
        figures = {name: Figures() for name, _ in policies}
        for items, questions in parts:
            async with filled(items, embedder) as (_, behind, path):
                for name, policy in policies:
                    async with opened(path, embedder, policy) as memory:
                        await ask(memory, behind, questions, figures[name])
        for name, found in figures.items():
            print(f"{kind}, {name}: {found.line()}", flush=True)


class Strewn:
    """Vectors near those of real texts for texts that end in "#number", so that a large store is filled quickly."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name, self.dimensions = embedder.name, embedder.dimensions

    async def embed(self, texts: Sequence[str]) -> Any:
        import numpy as np

        vectors = await self._embedder.embed([text.rpartition(" #")[0] or text for text in texts])
        for row, text in zip(vectors, texts, strict=True):
            if " #" in text:
                row += np.random.default_rng(len(text) * 1009 + hash(text) % 2**20).normal(0, 0.04, len(row))
                row /= np.linalg.norm(row)
        return vectors.astype(np.float32)


async def latency(talks: Sequence[Talk], embedder: Embedder, sizes: Sequence[int]) -> None:
    """Of recalls whose question is embedded already; the store is filled with turns again and again."""
    turns = [item for talk in talks for item in talk.turns]
    questions = [asked for talk in talks for asked in talk.questions][:200]
    for size in sizes:
        items = [replace(turns[n % len(turns)], content=f"{turns[n % len(turns)].content} #{n}") for n in range(size)]
        async with filled(items, Strewn(embedder)) as (memory, _, _):
            spent = []
            for asked in questions:
                query = Query(viewer=Viewer(channel_id=asked.channel), text=asked.text, counts_as_access=False)
                await memory.recall(query)
                started = time.perf_counter()
                await memory.recall(query)
                spent.append(time.perf_counter() - started)
        spent.sort()
        p50, p95 = spent[len(spent) // 2] * 1000, spent[len(spent) * 19 // 20] * 1000
        print(f"search alone at {size}: p50 {p50:.1f} ms, p95 {p95:.1f} ms ({len(spent)} questions)", flush=True)


def ladder() -> list[tuple[str, SearchPolicy]]:
    policy, steps = _PLAIN, []
    for name, changes in LADDER:
        policy = replace(policy, **changes)
        steps.append((f"+ {name}" if changes else name, policy))
    for name, changes in LADDER[1:]:
        if set(changes) <= {"graph_depth", "hides_names", "neighbours", "people", "dates", "form", "talks"}:
            without = {key: 0 if key == "graph_depth" else False for key in changes}
            steps.append((f"all but: {name}", replace(SearchPolicy(), **without)))
    return steps


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="LoCoMo's JSON, or a folder of such files")
    parser.add_argument("--ablation", action="store_true", help="also print what each step of the search gives")
    parser.add_argument("--latency", type=int, nargs="*", default=[1000, 10_000], help="sizes of stores")
    arguments = parser.parse_args()
    talks = list(read_talks(arguments.data))
    embedder = Remembered(OnnxEmbedder())
    policies = [("as it is", SearchPolicy()), *(ladder() if arguments.ablation else [])]
    await measure(talks, embedder, policies)
    await latency(talks, embedder, arguments.latency)


if __name__ == "__main__":
    trio.run(main)
