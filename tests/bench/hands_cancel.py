"""All workers of a conversation (shell, browser, MCP call, OpenCode) are told to stop at once: how long it takes."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import trio

from tests.flows.stories import Person, up
from tests.node.servers import opencode_program
from tests.real_daemon import Daemon
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Connection, Request, Use, serve

REACH_S = 2.0
ROUNDS = 3
STAND_IN = Path(__file__).parents[1] / "stand_ins" / "mcp_misbehaving.py"
JOBS = ("shell", "browser", "mcp", "opencode")


class Mind:
    """The model: sets everybody to work on something that never ends."""

    def __init__(self, site: str) -> None:
        self.site = site

    def __call__(self, body: Any) -> Answer:
        tools = {tool["function"]["name"] for tool in body.get("tools", ())}
        words = str(body["messages"][-1]["content"])
        if "reply" in tools:
            if "go to work" not in words:
                return Answer(uses=(Use("skip", {}),))
            spawned = [Use("spawn_worker", {"task": f"hang in {job}"}) for job in JOBS[:3]]
            coder = Use("spawn_worker", {"task": "hang in bash", "worker_type": "opencode", "directory": "project"})
            return Answer(uses=(*spawned, coder, Use("reply", {"content": "they work"})))
        task = str(body["messages"])
        if "set_status" not in tools:
            return (
                Answer(uses=(Use("bash", {"command": "sleep 3133", "description": "wait"}),))
                if tools
                else Answer(text="t")
            )
        if "hang in shell" in task:
            return Answer(uses=(Use("shell", {"command": "sleep 3131", "timeout_seconds": 300}),))
        if "hang in mcp" in task:
            return Answer(uses=(Use("bad_silent", {"text": "x"}),))
        return Answer(uses=(Use("browser", {"action": "navigate", "url": f"{self.site}/never"}),))


async def cancelled() -> int:
    """Everything at once, some rounds; returns 1 when it took too long or left something."""
    took: list[float] = []
    left: list[str] = []
    for _ in range(ROUNDS):
        seconds, remains = await _round()
        took.append(seconds)
        left += remains
    print(
        f"cancel of four workers at work in shell, browser, MCP call and OpenCode: everything gone after at most "
        f"{max(took):.2f} s of {ROUNDS} rounds (reach {REACH_S:.0f}), left: {len(left)} {' | '.join(left)[:300]}"
    )
    return int(max(took) > REACH_S or bool(left))


async def _round() -> tuple[float, list[str]]:
    asked = trio.Event()

    async def never(request: Request, connection: Connection) -> None:
        asked.set()
        await trio.sleep_forever()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with serve(never) as site, serve_openai(Mind(site.url)) as model:
            daemon = Daemon(folder, model_url=model.url, extra=_config(folder, site.url))
            async with up(daemon) as person:
                await _until_connected(person)
                before = set(daemon.ps.children(recursive=True))
                await person.say("go to work")
                with trio.fail_after(90):
                    await asked.wait()
                    while not _are_busy(daemon, folder):
                        await trio.sleep(0.1)
                workers = await person.running("worker")
                assert len(workers) == len(JOBS), workers
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for worker in workers:
                        nursery.start_soon(_cancel, daemon, worker["id"])
                while (remains := _alive(daemon, before)) and time.perf_counter() - began < 15:
                    await trio.sleep(0.02)
                return time.perf_counter() - began, remains


def _config(folder: Path, site: str) -> str:
    return (
        f'\n[defaults.permissions]\nnetwork_allow_private = ["{site.removeprefix("http://")}"]\n'
        f'[defaults.opencode]\nenabled = true\npath = "{opencode_program()}"\n'
        f'[defaults.sandbox]\nwritable_paths = ["{STAND_IN.parent}"]\n'
        f'[[mcp_servers]]\nname = "bad"\ntransport = "stdio"\ncommand = "{sys.executable}"\n'
        f'args = ["{STAND_IN}", "--log", "{folder}/agents/main/workspace/mcp.log"]\n'
    )


async def _until_connected(person: Person) -> None:
    with trio.fail_after(60):
        while True:
            status = await person.get("/api/agents/mcp?agent_id=main")
            if all(server["state"] == "connected" for server in status["servers"]):
                return
            await trio.sleep(0.05)


def _are_busy(daemon: Daemon, folder: Path) -> bool:
    """Whether both commands run and the silent call has arrived."""
    words = " ".join(" ".join(_words(child)) for child in daemon.ps.children(recursive=True))
    log = folder / "agents/main/workspace/mcp.log"
    return "sleep 3131" in words and "sleep 3133" in words and log.exists() and "silent" in log.read_text()


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


async def _cancel(daemon: Daemon, worker_id: str) -> None:
    person = Person(daemon)
    status, body = await person.post(
        "/api/channels/cancel", channel_id="webchat:s", process_type="worker", process_id=worker_id
    )
    assert status == 200, body
    await person.leave()


def _alive(daemon: Daemon, before: set[psutil.Process]) -> list[str]:
    """What runs below the program and did not before, an idle OpenCode server apart."""
    found = []
    for child in set(daemon.ps.children(recursive=True)) - before:
        words = _words(child)
        if words and "opencode" not in " ".join(words):
            found.append(" ".join(words)[:80])
    return found
