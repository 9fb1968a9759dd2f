"""kill -9 in the middle of saves, edits, merges and upkeep: what was acknowledged is there, and the table agrees."""

import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import lancedb

from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.memory.memory import open_memory
from spacebot.storage.database import open_database
from tests.fakes.fake_embedder import FakeEmbedder
from tests.flows.memory_load import EAGER

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("SPACEBOT_KILLS", "6"))  # a life costs two seconds; the figure is taken with 30


def live_until_killed(folder: Path, seed: int, *, is_last: bool) -> list[list[str]]:
    """Run the load and kill it after a random number of acknowledged deeds, the last one after an upkeep pass."""
    more = random.Random(seed).randrange(5, 120)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.flows.memory_load", str(folder), str(seed)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    lines = []
    with process:
        for line in process.stdout:
            if line.endswith(b"\n"):
                lines.append(json.loads(line))
            if lines[-1][0] == "kept" if is_last else len(lines) == more:
                process.kill()
    assert process.returncode == -9, "the load ended by itself"
    return lines


def check_rows(folder: Path, deeds: list[list[str]]) -> None:
    """Whatever was acknowledged is in SQLite."""
    connection = sqlite3.connect(folder / "spacebot.db")
    rows = {key: (text, forgotten) for key, text, forgotten in connection.execute(
        "SELECT id, content, forgotten FROM memories")}  # fmt: skip
    (broken,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.execute("INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")
    connection.close()
    assert broken == "ok"
    edited = {deed[1] for deed in deeds if deed[0] == "edited"}
    for what, key, *text in (deed for deed in deeds if deed[0] in ("saved", "forgot", "edited")):
        assert key in rows, f"{what} {key} is gone"
        if what == "saved" and key not in edited:
            assert rows[key][0].removesuffix(" again") == text[0] or rows[key][0].endswith(" again")
        if what == "forgot":
            assert rows[key][1] == 1


async def check_table(folder: Path) -> None:
    """After the next start the vector table holds exactly the live memories."""
    async with (
        open_database(folder / "spacebot.db", package_file("storage", "sql")) as database,
        open_memory(
            database,
            folder / "lancedb",
            embedder=FakeEmbedder(),
            events=EventBus(),
            agent_id="main",
            index=EAGER,
            verdicts=folder / "native.json",
        ) as memory,
    ):
        await memory.warm_up()
        await memory.flush()
        assert (await memory.stats()).unindexed == 0
    connection = sqlite3.connect(folder / "spacebot.db")
    live = {key for (key,) in connection.execute("SELECT id FROM memories WHERE forgotten = 0")}
    connection.close()
    table = lancedb.connect(str(folder / "lancedb")).open_table("memory_embeddings")
    ids = table.search().select(["id"]).limit(None).to_arrow().column("id").to_pylist()
    assert sorted(ids) == sorted(live)


async def test_kills_lose_nothing_and_leave_store_and_table_in_agreement(tmp_path: Path) -> None:
    deeds: list[list[str]] = []
    for seed in range(KILLS):
        deeds += live_until_killed(tmp_path, seed, is_last=seed == KILLS - 1)
        check_rows(tmp_path, deeds)
    await check_table(tmp_path)
    assert {deed[0] for deed in deeds} >= {"saved", "kept"}
