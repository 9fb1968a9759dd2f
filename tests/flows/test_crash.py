"""The promise "accepted means durable": the real daemon is killed at random points of a running conversation."""

import json
import random
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.real_daemon import Daemon, Http
from tests.stand_ins.openai import last_user_text, serve_openai
from tests.stand_ins.serving import Answer, Use

KILLS = 32
SESSIONS = 6
SEED = 20260


def play(body: Any) -> Answer:
    """A model that answers, thinks (branch) or works (worker), as the word before the number says.

    Each answer names the numbers that it deals with, so that a lost or doubled one shows.
    """
    tools = {tool["function"]["name"] for tool in body["tools"]}
    if "reply" in tools:
        return _as_channel(last_user_text(body).rpartition("</now>")[2])
    if "memory_save" in tools:
        return Answer(text="thought " + _numbers(last_user_text(body).rpartition("think about")[2]))
    if any(message["role"] == "tool" for message in body["messages"]):
        return Answer(
            uses=(Use("set_status", {"status": "worked " + _numbers(str(body["messages"])), "kind": "outcome"}),)
        )
    return Answer(uses=(Use("shell", {"command": "echo done; sleep 0.2"}),))


def _as_channel(text: str) -> Answer:
    uses, said = [], []
    for kind, number in re.findall(r": (ask|think|work) #(\d+)#", text):
        if kind == "think":
            uses.append(Use("branch", {"description": f"think about #{number}#"}))
        elif kind == "work":
            uses.append(Use("spawn_worker", {"task": f"work on #{number}#"}))
        said.append(f"({number})")
    told = " ".join(
        f"<{number}>" for about in re.findall(r'about="([^"]*)"', text) for number in re.findall(r"#(\d+)#", about)
    )
    return Answer(uses=(*uses, Use("reply", {"content": " ".join([*said, told]) or "nothing"})))


def _numbers(text: str) -> str:
    return " ".join(dict.fromkeys(re.findall(r"#\d+#", text)))


async def send_all(daemon: Daemon, waiting: dict[str, dict[str, Any]], accepted: dict[str, str]) -> None:
    """Send what was not accepted yet; a client keeps trying with the same id until it has a receipt."""
    http = Http(daemon.port)
    try:
        for client_id, body in list(waiting.items()):
            status, receipt = await http.post("/api/webchat/send?wait=false", body)
            assert status == 202, receipt
            accepted[client_id] = receipt["message_id"]
            del waiting[client_id]
    except (OSError, trio.BrokenResourceError):
        return
    finally:
        with trio.move_on_after(1, shield=True):
            await http.close()


@pytest.mark.slow
@pytest.mark.spec("P12")
async def test_nothing_accepted_is_lost_and_nothing_is_answered_twice(tmp_path: Path) -> None:
    """Kill, start again, go on: at the end each message has its one answer and each job its one report."""
    dice = random.Random(SEED)
    waiting: dict[str, dict[str, Any]] = {}
    accepted: dict[str, str] = {}
    asked: dict[int, str] = {}
    async with serve_openai(play, latency_s=0.03) as stand_in:
        daemon = Daemon(tmp_path, model_url=stand_in.url)
        try:
            for round_number in range(KILLS):
                await trio.to_thread.run_sync(daemon.start)
                for _ in range(dice.randint(1, 5)):
                    number = len(asked)
                    asked[number] = dice.choice(["ask", "ask", "think", "work"])
                    waiting[f"c{number}"] = {
                        "agent_id": "main", "session_id": f"s{number % SESSIONS}", "client_id": f"c{number}",
                        "message": f"{asked[number]} #{number}#",
                    }  # fmt: skip
                with trio.move_on_after(dice.uniform(0.0, 1.5)):
                    await send_all(daemon, waiting, accepted)
                    await trio.sleep_forever()
                await trio.to_thread.run_sync(daemon.kill)
                assert _is_sound(daemon.folder), f"database damaged in round {round_number}"
            await trio.to_thread.run_sync(daemon.start)
            await send_all(daemon, waiting, accepted)
            assert not waiting
            with trio.fail_after(60):
                while open_work := _open_work(daemon.folder):
                    await trio.sleep(0.05)  # another process: there is no event to wait for
            assert not open_work
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()

    rows = _assistant_texts(tmp_path)
    answers = Counter(int(n) for text in rows for n in re.findall(r"\((\d+)\)", text))
    assert answers == Counter(dict.fromkeys(asked, 1))
    reports = Counter(int(n) for text in rows for n in re.findall(r"<(\d+)>", text))
    assert reports == Counter(dict.fromkeys((n for n, kind in asked.items() if kind != "ask"), 1))


def _connect(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "agents" / "main" / "data" / "spacebot.db", timeout=10)


def _is_sound(folder: Path) -> bool:
    database = _connect(folder)
    try:
        return bool(database.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    finally:
        database.close()


def _open_work(folder: Path) -> dict[str, int]:
    """What is not settled yet, by kind."""
    database = _connect(folder)
    try:
        counts = {
            name: database.execute(query).fetchone()[0]
            for name, query in {
                "messages": "SELECT count(*) FROM ledger WHERE state NOT IN ('answered', 'skipped', 'failed')",
                "branches": "SELECT count(*) FROM branch_runs WHERE completed_at IS NULL",
                "workers": "SELECT count(*) FROM worker_runs WHERE completed_at IS NULL",
                "results": "SELECT count(*) FROM pending_results WHERE relayed_at IS NULL",
            }.items()
        }
    finally:
        database.close()
    return {name: count for name, count in counts.items() if count}


def _assistant_texts(folder: Path) -> list[str]:
    database = _connect(folder)
    try:
        return [
            row[0]
            for row in database.execute(
                "SELECT content FROM conversation_messages WHERE role = 'assistant' AND kind = 'text'"
            )
        ]
    finally:
        database.close()


def test_the_story_is_readable(tmp_path: Path) -> None:
    """The stand-in's own rule: what it says is what the counts above look for."""
    body = {
        "tools": [{"function": {"name": "reply"}}],
        "messages": [{"role": "user", "content": "</now>\n[t] a: ask #3#"}],
    }
    assert json.loads(json.dumps(play(body).uses[0].arguments)) == {"content": "(3) "}
