"""The drop folder of the real daemon: killed between and within parts, and fed with ten megabytes."""

import os
import random
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.real_daemon import Daemon, Http
from tests.stand_ins.openai import last_user_text, serve_openai
from tests.stand_ins.serving import Answer, Use

KILLS = 3
PARTS = 30
SEED = 20261
INGESTION = "\n[defaults.ingestion]\npoll_interval_secs = 1\nchunk_size = {}\n"


class Reader:
    """A model that saves two memories for each part, and counts how often each part was begun."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def __call__(self, body: Any) -> Answer:
        tools = {tool["function"]["name"] for tool in body.get("tools", ())}
        if "reply" in tools:
            return Answer(uses=(Use("reply", {"content": "hello"}),))
        part = re.search(r"<document[^>]*>\n(?:part|again) (\d+) ", last_user_text(body))
        if part is None or any(message["role"] == "tool" for message in body["messages"]):
            return Answer(text="saved")
        number = int(part[1])
        self.begun[number] += 1
        return Answer(uses=tuple(Use("memory_save", {"content": f"statement {number} {side}"}) for side in "ab"))


def document(word: str, parts: int, size: int) -> str:
    """A text whose every part of `size` characters is one line."""
    return "".join(f"{word} {number} ".ljust(size - 1, "x") + "\n" for number in range(parts))


def drop(daemon: Daemon, name: str, text: str) -> Path:
    folder = daemon.folder / "agents" / "main" / "workspace" / "ingest"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    os.utime(path, (1, 1))
    return path


def ask(daemon: Daemon, question: str) -> list[Any]:
    file = daemon.folder / "agents" / "main" / "data" / "spacebot.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(file, timeout=10)) as database:
        try:
            return database.execute(question).fetchall()
        except sqlite3.OperationalError:  # not made yet
            return []


async def until(daemon: Daemon, question: str, wanted: Any) -> None:
    """Wait until a question to the daemon's database has an answer that fits."""
    with trio.fail_after(60):
        while not wanted(ask(daemon, question)):
            await trio.sleep(0.02)  # another process: there is no event to wait for


@pytest.mark.slow
@pytest.mark.spec("M-P13")
async def test_killed_at_any_point_every_statement_is_saved_once_and_no_finished_part_is_read_again(
    tmp_path: Path,
) -> None:
    dice, reader = random.Random(SEED), Reader()
    async with serve_openai(reader, latency_s=0.02) as stand_in:
        daemon = Daemon(tmp_path, model_url=stand_in.url, extra=INGESTION.format(200))
        path = drop(daemon, "notes.txt", document("part", PARTS, 200))
        try:
            for round_number in range(1, KILLS + 1):
                await trio.to_thread.run_sync(daemon.start)
                enough = round_number * PARTS // (KILLS + 2)
                await until(daemon, f"SELECT count(*) >= {enough} FROM ingestion_progress", lambda rows: rows == [(1,)])
                await trio.sleep(dice.uniform(0, 0.1))
                await trio.to_thread.run_sync(daemon.kill)
                assert path.exists()
            await trio.to_thread.run_sync(daemon.start)
            await until(daemon, "SELECT status FROM ingestion_files", lambda rows: rows == [("completed",)])
            await until(daemon, "SELECT count(*) FROM ingestion_progress", lambda rows: rows == [(0,)])
            drop(daemon, "again.txt", document("part", PARTS, 200))
            with trio.fail_after(30):
                while (path.parent / "again.txt").exists():
                    await trio.sleep(0.02)
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()
    assert not path.exists()
    saved = Counter(row[0] for row in ask(daemon, "SELECT content FROM memories WHERE forgotten = 0"))
    assert saved == Counter(dict.fromkeys((f"statement {n} {side}" for n in range(PARTS) for side in "ab"), 1))
    assert set(reader.begun) == set(range(PARTS))
    assert reader.begun.total() <= PARTS + KILLS
    assert ask(daemon, "SELECT total_chunks, attempts FROM ingestion_files") == [(PARTS, 0)]


@pytest.mark.slow
async def test_ten_megabytes_are_read_while_people_are_answered(tmp_path: Path) -> None:
    reader, size = Reader(), 99_000
    parts = 10 * 1024 * 1024 // size
    async with serve_openai(reader, latency_s=0.02, keep=False) as stand_in:
        daemon = Daemon(tmp_path, model_url=stand_in.url, extra=INGESTION.format(100_000))
        drop(daemon, "big.txt", document("part", parts, size))
        try:
            await trio.to_thread.run_sync(daemon.start)
            await until(daemon, "SELECT count(*) FROM ingestion_progress", lambda rows: rows and rows[0][0] > 0)
            http = Http(daemon.port)
            hello = {"agent_id": "main", "session_id": "main", "sender_name": "ann", "message": "hi"}
            assert (await http.post("/api/webchat/send?wait=false", hello))[0] == 202
            await http.close()
            await until(daemon, "SELECT content FROM conversation_messages WHERE role = 'assistant'", bool)
            assert ask(daemon, "SELECT status FROM ingestion_files") == [("processing",)]
            await until(daemon, "SELECT status FROM ingestion_files", lambda rows: rows == [("completed",)])
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()
    assert reader.begun == Counter(dict.fromkeys(range(parts), 1))
