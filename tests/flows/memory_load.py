"""A process that works on one memory until it is killed, and says on standard output what was acknowledged.

    python -m tests.flows.memory_load FOLDER SEED

Lines: `saved ID TEXT`, `forgot ID`, `edited ID TEXT`, `merged`, `kept`. Used by `test_memory_crash.py`.
"""

import json
import random
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.association import AssociationPolicy
from spacebot.memory.index import IndexPolicy
from spacebot.memory.maintenance import MaintenancePolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.types import MemoryType, NewMemory, Provenance
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder

EAGER = IndexPolicy(exact_limit=0, flush_after_s=0.02, flush_after_large_s=0.02, optimize_changes=40, uses_child=False)
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "juniper",
    "kestrel",
    "lagoon",
    "maple",
    "nettle",
    "osprey",
    "pine",
)


def tell(*what: str) -> None:
    """One line, at once: what is not printed was not acknowledged."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def save_and_change(memory: AgentMemory, source: random.Random) -> None:
    known: list[str] = []
    while True:
        await trio.sleep(0.02)  # leave some of the machine to the upkeep
        text = f"{' '.join(source.choices(WORDS, k=6))} {source.randrange(10**9)}"
        private = source.random() < 0.3
        origin = Provenance(channel_id=f"test:{source.randrange(3)}", user_id="ann", is_direct=private)
        saved = await memory.save(
            NewMemory(content=text, memory_type=source.choice(list(MemoryType)), provenance=origin)
        )
        tell("saved", saved.memory.id, text)
        known.append(saved.memory.id)
        if source.random() < 0.4:  # nearly the same once more, so that there is something to merge
            twin = await memory.save(
                NewMemory(content=f"{text}.", memory_type=saved.memory.memory_type, provenance=origin)
            )
            tell("saved", twin.memory.id, f"{text}.")
        if source.random() < 0.15:
            victim = known.pop(source.randrange(len(known)))
            if await memory.forget(victim, "test") is not None:
                tell("forgot", victim)
        if known and source.random() < 0.15:
            chosen = source.choice(known)
            try:
                await memory.edit(chosen, content=f"{text} again")
            except Exception:
                known.remove(chosen)  # merged meanwhile
            else:
                tell("edited", chosen, f"{text} again")


async def look_after(memory: AgentMemory) -> None:
    while True:
        await memory.associate(AssociationPolicy())
        report = await memory.maintain(MaintenancePolicy(merge_sources=60))
        tell("kept", str(report.merged))
        await trio.sleep(0.01)


async def main(folder: Path, seed: int) -> None:
    """Open the memory, work on it from several sides, never end."""
    source = random.Random(seed)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(folder / "spacebot.db", package_file("storage", "sql"))
        )
        memory = await stack.enter_async_context(
            open_memory(
                database,
                folder / "lancedb",
                embedder=FakeEmbedder(),
                events=EventBus(),
                agent_id="main",
                index=EAGER,
                verdicts=folder / "native.json",
            )
        )
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(save_and_change, memory, random.Random(source.random()))
            nursery.start_soon(look_after, memory)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
