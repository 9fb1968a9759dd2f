"""Hot reload under a stream of messages: `python -m tests.bench reload [keys …]`.

A real daemon, people who talk to it all the while, and an owner who edits the file: for each key the time from the
save until its new value shows at a public face. Every message that was sent must have been answered at the end.
"""

import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.flows.stories import read_request, reply
from tests.real_daemon import Daemon, Http, free_port, running
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, ModelStandIn, Use

REACH_S = 3.0
PEOPLE, PAUSE_S = 4, 0.15  # who talks at the same time, and how long each waits between two messages
LOOK_S = 0.02
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Edit:
    """A change of the file and how its effect shows."""

    key: str
    old: str  # empty: the new text is added behind
    new: str
    shows: Callable[["Bench"], Awaitable[bool]]


class Bench:
    """The daemon, the model's stand-in and the file between them."""

    def __init__(self, daemon: Daemon, models: ModelStandIn) -> None:
        self.daemon = daemon
        self.models = models
        self.http = Http(daemon.port)
        self.file = daemon.folder / "config.toml"
        self.text = self.file.read_text()
        self.ports = {name: free_port() for name in ("metrics", "webhook")}
        self.sent: list[str] = []
        self.is_over = False

    async def get(self, path: str, **headers: str) -> Any:
        status, body = await self.http.get(path, headers)
        return body if status == 200 else {"status": status}

    async def agent(self, agent_id: str = "main") -> Any:
        found = (await self.get("/api/agents")).get("agents", [])
        return next((agent for agent in found if agent["id"] == agent_id), {})

    async def talk(self, name: str) -> None:
        """Say one thing after the other until the owner is done."""
        http, number = Http(self.daemon.port), 0
        while not self.is_over:
            number += 1
            body = {"session_id": f"of-{name}", "sender_name": name, "message": f"message {number}"}
            headers = {"authorization": f"Bearer {TOKEN}"}
            status, receipt = await http.post("/api/webchat/send?wait=false", body, headers)
            assert status == 202, (status, receipt)
            self.sent.append(receipt["message_id"])
            await trio.sleep(PAUSE_S)
        await http.close()

    async def unanswered(self) -> int:
        """How many of all messages nobody has answered, once everything had its time."""
        left = set(self.sent)
        with trio.move_on_after(PATIENCE_S):
            while left:
                for message_id in tuple(left):
                    if (await self.get(f"/api/messages/{message_id}/fate")).get("state") == "answered":
                        left.discard(message_id)
                await trio.sleep(LOOK_S)
        return len(left)


TOKEN = "the-token-of-the-bench"


def _agent_has(name: str, value: object, agent_id: str = "main") -> Callable[[Bench], Awaitable[bool]]:
    async def look(bench: Bench) -> bool:
        return (await bench.agent(agent_id)).get(name) == value

    return look


def _asked(condition: Callable[[Any], bool]) -> Callable[[Bench], Awaitable[bool]]:
    """Whether the newest request of a channel to the model fits."""

    async def look(bench: Bench) -> bool:
        return any(condition(body) for body in bench.models.bodies[-2:])

    return look


def _listens(name: str) -> Callable[[Bench], Awaitable[bool]]:
    async def look(bench: Bench) -> bool:
        with suppress(OSError):
            async with await trio.open_tcp_stream("127.0.0.1", bench.ports[name]):
                return True
        return False

    return look


async def _schedule(bench: Bench) -> bool:
    return any(job["id"] == "daily" for job in (await bench.get("/api/agents/cron")).get("jobs", []))


async def _server(bench: Bench) -> bool:
    return any(one["name"] == "far" for one in (await bench.get("/api/agents/mcp")).get("servers", []))


async def _documents_off(bench: Bench) -> bool:
    return (await bench.get("/api/cortex/state")).get("ingestion", {}).get("status") == "disabled"


async def _rights(bench: Bench) -> bool:
    return "restricted" in str((await bench.get("/api/status")).get("permissions"))


async def _needs_token(bench: Bench) -> bool:
    return await bench.get("/api/status") == {"status": 401}


async def _soul(bench: Bench) -> bool:
    return any("like a pirate" in read_request(body).system for body in bench.models.bodies[-2:])


def edits(bench: Bench) -> list[Edit]:
    """What is edited, one after the other; each is taken back before the next."""
    ports = bench.ports
    return [
        Edit("max_turns", "[defaults]\n", "[defaults]\nmax_turns = 7\n", _agent_has("max_turns", 7)),
        Edit("context_window", "[defaults]\n", "[defaults]\ncontext_window = 64000\n",
             _agent_has("context_window", 64_000)),
        Edit("routing.channel", 'channel = "standin/model"', 'channel = "standin/other"',
             _asked(lambda body: body["model"] == "other")),
        Edit("llm.provider", '[defaults.routing]\nchannel = "standin/model"',
             f'[llm.provider.more]\napi_type = "openai_completions"\nbase_url = "{bench.models.url}"\n'
             'api_key = "x"\n[defaults.routing]\nchannel = "more/third"',
             _asked(lambda body: body["model"] == "third")),
        Edit("user_timezone", "[defaults]\n", '[defaults]\nuser_timezone = "Asia/Tokyo"\n',
             _asked(lambda body: "+09:00" in read_request(body).prompt)),
        Edit("opencode", "", "[defaults.opencode]\nenabled = true\n",
             _asked(lambda body: "opencode" in str(body.get("tools")))),
        Edit("permissions", "", '[defaults.permissions]\nprofile = "restricted"\n', _rights),
        Edit("ingestion", "", "[defaults.ingestion]\nenabled = false\n", _documents_off),
        Edit("mcp_servers", "", '[[mcp_servers]]\nname = "far"\ntransport = "stdio"\ncommand = "x"\nenabled = false\n',
             _server),
        Edit("cron", "", '[[agents]]\nid = "main"\n[[agents.cron]]\nid = "daily"\nprompt = "x"\nenabled = false\n',
             _schedule),
        Edit("agents (new)", "", '[[agents]]\nid = "main"\n[[agents]]\nid = "bob"\n',
             _agent_has("state", "running", "bob")),
        Edit("agents.workspace", "", f'[[agents]]\nid = "bob"\nworkspace = "{bench.daemon.folder / "w"}"\n[[agents]]\n'
             'id = "main"\ndefault = true\n', _agent_has("workspace", str(bench.daemon.folder / "w"), "bob")),
        Edit("metrics.port", "", f"[metrics]\nenabled = true\nport = {ports['metrics']}\n", _listens("metrics")),
        Edit("messaging.webhook", "",
             f'[messaging.webhook]\nenabled = true\nport = {ports["webhook"]}\nauth_token = "word-of-the-hook"\n',
             _listens("webhook")),
        Edit("api.auth_token", "[api]\n", f'[api]\nauth_token = "{TOKEN}"\n', _needs_token),
    ]  # fmt: skip


async def _measure_one(bench: Bench, edit: Edit) -> float:
    """Seconds from the save until the value shows; the file is put back afterwards."""
    text = bench.text.replace(edit.old, edit.new, 1) if edit.old else bench.text + edit.new
    assert text != bench.text, edit.key
    bench.models.bodies.clear()
    bench.file.write_text(text)
    began = trio.current_time()
    seconds = PATIENCE_S
    with trio.move_on_after(PATIENCE_S):
        while not await edit.shows(bench):
            await trio.sleep(LOOK_S)
        seconds = trio.current_time() - began
    bench.file.write_text(bench.text)
    await trio.sleep(1.0)
    return seconds


async def _measure_identity(bench: Bench) -> float:
    bench.models.bodies.clear()
    (bench.daemon.folder / "agents" / "main" / "SOUL.md").write_text("You speak like a pirate.\n")
    began = trio.current_time()
    with trio.move_on_after(PATIENCE_S):
        while not await _soul(bench):
            await trio.sleep(LOOK_S)
    return trio.current_time() - began


async def measure(wanted: list[str]) -> int:
    """Print a figure per key and the worst; returns how many are not reached."""
    with tempfile.TemporaryDirectory() as folder:
        async with serve_openai(lambda body: _answer(body)) as models:
            daemon = Daemon(Path(folder), model_url=models.url, extra="[defaults]\n")
            with running(daemon):
                bench, times = Bench(daemon, models), {}
                async with trio.open_nursery() as nursery:
                    for number in range(PEOPLE):
                        nursery.start_soon(bench.talk, f"person-{number}")
                    await trio.sleep(1.0)
                    for edit in edits(bench):
                        if not wanted or any(word in edit.key for word in wanted):
                            times[edit.key] = await _measure_one(bench, edit)
                            print(f"{edit.key:20} in force after {times[edit.key]:5.2f} s")
                    times["identity"] = await _measure_identity(bench)
                    print(f"{'identity':20} in force after {times['identity']:5.2f} s")
                    bench.is_over = True
                lost = await bench.unanswered()
                await bench.http.close()
    worst = max(times, key=lambda key: times[key])
    print(f"worst key: {worst}, {times[worst]:.2f} s (reach: {REACH_S:.0f} s)")
    print(f"messages: {len(bench.sent)} sent during {len(times)} changes, {lost} unanswered (reach: 0)")
    return int(times[worst] > REACH_S) + int(lost > 0)


def _answer(body: Any) -> Answer:
    asked = read_request(body)
    return reply("fine") if asked.is_channel else Answer(uses=(Use("skip", {"reason": "nothing"}),))


if __name__ == "__main__":
    raise SystemExit(min(1, trio.run(measure, sys.argv[1:])))
