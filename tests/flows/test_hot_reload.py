"""What the owner edits counts at once: the next request to the model has it, and no restart is needed."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from spacebot.agent.router import Router
from spacebot.api.server import serve_api
from spacebot.base.events import EventKind
from spacebot.base.ids import AgentId
from spacebot.base.tree import NodeKind
from spacebot.config.store import ConfigStore
from spacebot.conversations.records import LedgerState
from spacebot.llm.messages import ModelRequest, ProcessKind, last_user_text
from spacebot.messaging.adapter import Receipt
from tests.agent.test_roster import Town as OpenTown
from tests.agent.test_roster import open_town
from tests.fakes.fake_program import open_fake_program
from tests.fakes.opened import text_from
from tests.fakes.scripted_model import Call, Calls, ScriptedModel, Step
from tests.flows.stories import DIALECTS, Asked, Person, log_of, read_request, reply, run, up, wait_for, wait_for_log
from tests.real_daemon import Daemon, free_port
from tests.stand_ins.serving import ModelStandIn

BROKEN = "{{ soul }} {% if %}"


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Daemon, Person, ModelStandIn]]:
    """A daemon whose model answers everything."""
    async with DIALECTS["openai_completions"](lambda body: reply("fine")) as model:
        daemon = Daemon(folder, model_url=model.url)
        async with up(daemon) as person:
            yield daemon, person, model


async def seen(person: Person, model: ModelStandIn) -> Asked:
    """Say something; returns what the model saw."""
    assert await person.answer("hello") == "fine"
    return read_request(model.bodies[-1])


@pytest.mark.spec("CA-8")
async def test_identity_and_prompts_reach_the_next_request(tmp_path: Path) -> None:
    async with running(tmp_path) as (daemon, person, model):
        before = await seen(person, model)
        soul = tmp_path / "agents" / "main" / "SOUL.md"
        soul.write_text("You speak like a pirate.\n")
        await wait_for_log(daemon, "prompts reloaded", "soul")
        after = await seen(person, model)
        assert "like a pirate" in after.system
        assert "like a pirate" not in before.system

        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text("My own channel. {{ soul }} {{ current_time }}")
        assert await person.post("/api/prompts/reload") == (200, {"success": True, "changed": ["CHANNEL"]})
        own = await seen(person, model)
        assert own.system.startswith("My own channel. You speak like a pirate. ")

        nearer = tmp_path / "agents" / "main" / "prompts" / "CHANNEL.md"
        nearer.write_text("Nearer to the agent.")
        assert (await run(daemon, "prompts", "reload")).stdout == "CHANNEL\n"
        assert (await seen(person, model)).system == "Nearer to the agent."

        nearer.unlink()
        override.unlink()
        assert (await run(daemon, "prompts", "reload")).stdout == "CHANNEL\n"
        assert (await seen(person, model)).system == after.system
        assert (await run(daemon, "prompts", "reload")).stderr == "nothing has changed\n"


@pytest.mark.spec("CA-8")
async def test_skills_reach_the_next_request(tmp_path: Path) -> None:
    """Dropped into a folder, installed by a command, taken away again."""
    async with running(tmp_path) as (daemon, person, model):
        assert "<skills>" not in (await seen(person, model)).system
        folder = tmp_path / "skills" / "maps"
        folder.mkdir(parents=True)
        (folder / "SKILL.md").write_text("---\nname: maps\ndescription: Draws maps.\n---\nDraw.\n")
        await wait_for_log(daemon, "skills reloaded", "count=1")
        assert "- maps: Draws maps." in (await seen(person, model)).system
        source = tmp_path / "mine"
        folder.rename(source)
        await wait_for_log(daemon, "skills reloaded", "count=0")
        assert "<skills>" not in (await seen(person, model)).system
        assert (await run(daemon, "skill", "add", str(source))).stdout == "mine\n"

        async def is_known() -> bool:
            return "- maps: Draws maps." in (await seen(person, model)).system

        await wait_for(is_known)


async def test_a_broken_prompt_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path) as (daemon, person, model):
        before = await seen(person, model)
        (tmp_path / "agents" / "main" / "SOUL.md").write_text("A soul that waits.")
        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text(BROKEN)
        status, said = await person.post("/api/prompts/reload")
        assert status == 409
        assert "prompt 'CHANNEL.md', line 1 is broken" in said["error"]
        done = await run(daemon, "prompts", "reload")
        assert done.returncode == 1
        assert "prompt 'CHANNEL.md', line 1 is broken" in done.stderr
        await wait_for_log(daemon, "CHANNEL.md", "is broken")  # the watcher's own look
        assert (await seen(person, model)).system == before.system
        override.unlink()
        await wait_for_log(daemon, "prompts reloaded", "soul")
        assert "A soul that waits." in (await seen(person, model)).system
        assert "Traceback" not in log_of(daemon)


async def test_a_prompt_that_breaks_only_when_it_is_used_is_told(tmp_path: Path) -> None:
    """A template may be sound without values and fail with them."""
    async with running(tmp_path) as (_daemon, person, model):
        override = tmp_path / "prompts" / "CHANNEL.md"
        override.write_text("{% if current_time %}{{ current_time.missing.part }}{% endif %}")
        assert (await person.post("/api/prompts/reload"))[0] == 200
        told = await person.answer("hello")
        assert told.startswith("Sorry, I stopped: prompt 'CHANNEL' cannot be rendered: ")
        override.unlink()
        assert (await person.post("/api/prompts/reload"))[0] == 200
        assert await person.answer("hello") == "fine"
        assert not model.bodies[:-1]


async def test_the_configuration_is_taken_over_live(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (daemon, person, _model),
        DIALECTS["anthropic"](lambda body: reply("second")) as other,
    ):
        assert await person.answer("hello") == "fine"
        config = tmp_path / "config.toml"
        text = config.read_text()
        text = text.replace('channel = "standin/model"', 'channel = "other/better"')
        text += f'\n[llm.provider.other]\napi_type = "anthropic"\nbase_url = "{other.url}"\napi_key = "k"\n'
        config.write_text(text)
        await wait_for_log(daemon, "configuration reloaded")
        assert await person.answer("hello") == "second"
        assert other.bodies[0]["model"] == "better"
        assert (await person.get("/api/status"))["model"] == "other/better"
        assert "other/better" in (await run(daemon, "status")).stdout

        config.write_text(text.replace(f"port = {daemon.port}", "port = 1"))

        async def warned() -> bool:
            return "api.port" in log_of(daemon)

        await wait_for(warned)
        assert await person.answer("hello") == "second", "the port counts from the next start on"

        config.unlink()
        config.with_suffix(".new").write_text(text.replace("other/better", "standin/model"))
        config.with_suffix(".new").rename(config)  # as editors save

        async def first_again() -> Any:
            return await person.answer("hello")

        await wait_for(first_again, lambda answer: answer == "fine")


# Every key, without the program around it: the file is read again, and the next use has it.


class Mind:
    """What an agent's model does; `plan` is the channel's next answers, `hands` the worker's."""

    def __init__(self) -> None:
        self.plan: list[Step] = []
        self.hands: list[Step] = []
        self.model = ScriptedModel(
            lambda request: self.plan.pop(0) if self.plan else Call("reply", content="fine"),
            worker=lambda request: self.hands.pop(0) if self.hands else OUTCOME,
            branch=lambda request: Call("memory_recall", query=f"thing {len(self.model.requests)}"),
            compactor=lambda request: Call("write_summary", summary="They talked."),
        )


OUTCOME = Call("set_status", status="done", kind="outcome")
BASE = """\
[defaults]
user_timezone = "UTC"
[defaults.coalesce]
enabled = false
[defaults.permissions]
profile = "trusted"
[messaging.telegram]
token = "1:a"
[[agents]]
id = "main"
"""


class Town:
    """One agent whose file is edited, and what can be seen of it from outside."""

    def __init__(self, town: OpenTown, mind: Mind) -> None:
        self.town = town
        self.mind = mind
        self.rooms = 0

    @property
    def model(self) -> ScriptedModel:
        return self.mind.model

    async def turn(self, *plan: Step, **fields: Any) -> list[ModelRequest]:
        """Say something in a new conversation; returns what its turn asked the model."""
        self.rooms += 1
        self.mind.plan = list(plan)
        before = len(self.model.requests)
        await self.town.answer("main", "hello", conversation=f"test:{self.rooms}", is_direct=True, **fields)
        await self.town.quiet()
        return [request for request in self.model.requests[before:] if request.process is ProcessKind.CHANNEL]

    async def worker(self, *hands: Step) -> ModelRequest:
        """Have a worker work; returns what it asked last."""
        before = len(self.model.requests_of(ProcessKind.WORKER))
        self.mind.hands = [*hands, OUTCOME]
        await self.turn(Call("spawn_worker", task="dig"))
        while not any(e.kind is EventKind.WORKER_COMPLETED for e in self.town.happened):
            await self.town.quiet()
        self.town.happened.clear()
        requests = self.model.requests_of(ProcessKind.WORKER)
        assert len(requests) > before
        return requests[-1]


Look = Callable[[Town], Awaitable[object]]


async def calls_of_a_turn(town: Town) -> object:
    return len(await town.turn(*(Call("react", emoji="x", message_id=f"{n}") for n in range(9))))


async def live_workers(town: Town) -> object:
    never = [Call("shell", command="sleep 30"), Call("shell", command="sleep 30")]
    town.mind.hands = never
    await town.turn(Calls(Call("spawn_worker", task="a"), Call("spawn_worker", task="b")))
    workers = list(town.town.tree.of_kind(NodeKind.WORKER))
    for node in workers:
        node.cancel("enough")
    while list(town.town.tree.of_kind(NodeKind.WORKER)):
        await town.town.quiet()
    return len(workers)


async def calls_of_a_branch(town: Town) -> object:
    before = len(town.model.requests_of(ProcessKind.BRANCH))
    await town.turn(Call("branch", description="think"))
    while list(town.town.tree.of_kind(NodeKind.BRANCH)):
        await town.town.quiet()
    return min(len(town.model.requests_of(ProcessKind.BRANCH)) - before, 4)


async def is_answered_at_once(town: Town) -> object:
    town.rooms += 1
    accepted = await town.town.agent("main").accept(text_from("Ann", "hi", conversation=f"room:{town.rooms}"))
    await town.town.quiet()
    fate = await town.town.agent("main").conversations.fate(accepted.message_id)
    return fate is not None and fate.state is LedgerState.ANSWERED


async def is_gone_through(town: Town) -> object:
    before = len(town.model.persistence_requests)
    await town.turn()
    await town.town.quiet()
    return len(town.model.persistence_requests) > before


async def is_summarised(town: Town) -> object:
    before = len(town.model.requests_of(ProcessKind.COMPACTOR))
    town.rooms += 1
    for _ in range(6):
        await town.town.answer("main", "word " * 60, conversation=f"long:{town.rooms}", is_direct=True)
    await town.town.quiet()
    return len(town.model.requests_of(ProcessKind.COMPACTOR)) > before


async def documents(town: Town) -> object:
    return town.town.agent("main").ingestion.state().status


async def prune_threshold(town: Town) -> object:
    return town.town.agent("main").maintenance_policy.prune_threshold


async def has_search(town: Town) -> object:
    return "web_search" in {tool.name for tool in (await town.worker()).tools}


async def has_browser(town: Town) -> object:
    return "browser" in {tool.name for tool in (await town.worker()).tools}


async def shell_says(town: Town) -> object:
    request = await town.worker(Call("shell", command="echo $TOWN_WORD-out"))
    return str(request.messages[-1])


async def may_use_shell(town: Town) -> object:
    return "-out" in await shell_says(town)


async def passes_variable(town: Town) -> object:
    return "hills-out" in await shell_says(town)


async def sees_the_talk(town: Town) -> object:
    return "hello" in str((await town.worker()).messages)


async def opencode_offered(town: Town) -> object:
    (request, *_) = await town.turn()
    return "opencode" in str(next(tool for tool in request.tools if tool.name == "spawn_worker"))


async def worker_logs(town: Town) -> object:
    folder = town.town.folder / "agents" / "main" / "data" / "logs"
    before = len(list(folder.iterdir()))
    await town.worker()
    await town.town.quiet()
    return len(list(folder.iterdir())) > before


async def servers(town: Town) -> object:
    await town.town.quiet()
    return [view.name for view in town.town.agent("main").mcp.views()]


async def jobs(town: Town) -> object:
    await town.town.quiet()
    return [job.id for job in await town.town.agent("main").schedules.all()]


async def zone_of_times(town: Town) -> object:
    (request, *_) = await town.turn()
    return "+09:00" in last_user_text(request.messages)


def heard(**fields: Any) -> Look:
    async def look(town: Town) -> object:
        town.rooms += 1
        router = Router(
            lambda: town.town.roster.live, lambda: town.town.store.current, lambda: AgentId("main"),
            find=town.town.roster.wait_live,
        )  # fmt: skip
        message = text_from("Ann", "hi", adapter="telegram", platform_id=f"{town.rooms}", **fields)
        receipt = await router.take(message)
        await town.town.quiet()
        return receipt

    return look


DIRECTLY = {"conversation": "telegram:5", "is_direct": True}
IN_ROOM = {"conversation": "telegram:7", "is_direct": False, "server_id": "7", "room_ids": ("7",)}
BINDING = '[[bindings]]\nagent_id = "main"\nchannel = "telegram"\n'

# What is edited (old, new; an empty old is added behind), how it shows, before and after.
RELOADED: dict[str, tuple[str, str, Look, object, object]] = {
    "max_turns": ("[defaults]\n", "[defaults]\nmax_turns = 2\n", calls_of_a_turn, 5, 2),
    "max_concurrent_workers": ("[defaults]\n", "[defaults]\nmax_concurrent_workers = 1\n", live_workers, 2, 1),
    "branch_max_turns": ("[defaults]\n", "[defaults]\nbranch_max_turns = 2\n", calls_of_a_branch, 4, 2),
    "coalesce": ("enabled = false", "debounce_ms = 60000\nmax_wait_ms = 600000", is_answered_at_once, True, False),
    "memory_persistence": (
        "",
        "[defaults.memory_persistence]\nmessage_interval = 1\n",
        is_gone_through,
        False,
        True,
    ),
    "compaction": (
        "",
        "[defaults.compaction]\nbackground_threshold = 0.002\naggressive_threshold = 0.85\n",
        is_summarised,
        False,
        True,
    ),
    "ingestion": ("", "[defaults.ingestion]\nenabled = false\n", documents, "idle", "disabled"),
    "cortex": ("", "[defaults.cortex]\nmaintenance_prune_threshold = 0.3\n", prune_threshold, 0.1, 0.3),
    "brave_search_key": ("[defaults]\n", '[defaults]\nbrave_search_key = "a-key-of-ours"\n', has_search, False, True),
    "browser": ("", "[defaults.browser]\nenabled = false\n", has_browser, True, False),
    "permissions": ('"trusted"\n', '"trusted"\nshell = "deny"\n', may_use_shell, True, False),
    "sandbox": ("", '[defaults.sandbox]\npassthrough_env = ["TOWN_WORD"]\n', passes_variable, False, True),
    "worker": ("", '[defaults.worker]\ncontext = "fork"\n', sees_the_talk, False, True),
    "opencode": ("", "[defaults.opencode]\nenabled = true\n", opencode_offered, False, True),
    "worker_log_mode": ("[defaults]\n", '[defaults]\nworker_log_mode = "all_separate"\n', worker_logs, False, True),
    "mcp": (
        "",
        '[[mcp_servers]]\nname = "far"\ntransport = "stdio"\ncommand = "x"\nenabled = false\n',
        servers,
        [],
        ["far"],
    ),
    "cron": ("", '[[agents.cron]]\nid = "daily"\nprompt = "Rest."\nenabled = false\n', jobs, [], ["daily"]),
    "user_timezone": ('"UTC"', '"Asia/Tokyo"', zone_of_times, False, True),
    "dm_allowed_users": (
        'token = "1:a"\n',
        'token = "1:a"\ndm_allowed_users = ["bob"]\n',
        heard(**DIRECTLY),
        Receipt.ACCEPTED,
        Receipt.REFUSED,
    ),
    "bindings": ("", f'{BINDING}chat_id = "8"\n', heard(**IN_ROOM), Receipt.ACCEPTED, Receipt.REFUSED),
    "require_mention": ("", f"{BINDING}require_mention = true\n", heard(**IN_ROOM), Receipt.ACCEPTED, Receipt.OBSERVED),
}


@pytest.mark.spec("CA-8")
async def test_every_key_counts_at_its_next_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWN_WORD", "hills")
    mind, wrong = Mind(), {}
    async with open_town(tmp_path, BASE, main=mind.model) as open_one:
        town = Town(open_one, mind)
        for key, (old, new, look, before, after) in RELOADED.items():
            seen = await look(town)
            await open_one.write(BASE.replace(old, new, 1) if old else BASE + new)
            then = await look(town)
            await open_one.write(BASE)
            if (seen, then) != (before, after):
                wrong[key] = (seen, then)
    assert wrong == {}


async def test_token_and_origins_of_the_api_count_from_the_next_request_on(tmp_path: Path) -> None:
    """A port that others reach keeps the last token until it is closed, whatever the file says meanwhile."""
    file = tmp_path / "config.toml"
    file.write_text("[api]\nport = 0\n")
    store = ConfigStore.open(file)

    async def get(client: httpx2.AsyncClient, **headers: str) -> int:
        return (await client.get("/api/status", headers=headers)).status_code

    def write(text: str) -> None:
        file.write_text(text)
        assert store.reload().error is None

    for bind in ("127.0.0.1", "0.0.0.0"):
        write(f'[api]\nport = 0\nbind = "{bind}"\nauth_token = "the-first-token"\n')
        async with open_fake_program(tmp_path) as program, trio.open_nursery() as nursery:
            stop = trio.Event()
            serve = partial(
                serve_api, program, store.current.api, events=program.events, tree=program.tree, run_id="r", stop=stop,
                live=lambda: store.current.api,
            )  # fmt: skip
            (url,) = await nursery.start(serve)
            async with httpx2.AsyncClient(base_url=url.replace("0.0.0.0", "127.0.0.1")) as client:
                assert await get(client) == 401
                assert await get(client, authorization="Bearer the-first-token") == 200
                write(f'[api]\nport = 0\nbind = "{bind}"\nauth_token = "the-second-token"\n')
                assert await get(client, authorization="Bearer the-first-token") == 401
                assert await get(client, authorization="Bearer the-second-token") == 200
                write('[api]\nport = 0\nallowed_origins = ["https://example.org"]\n')
                assert await get(client) == (200 if bind == "127.0.0.1" else 401)
                page = await client.get("/", headers={"authorization": "Bearer the-second-token"})
                assert "https://example.org" in page.headers["content-security-policy"]
            stop.set()


async def test_agents_and_ports_follow_the_file(tmp_path: Path) -> None:
    """With the whole program: an agent comes and goes, figures and webhooks move to other ports, the API stays."""
    first, second, hook = free_port(), free_port(), free_port()
    async with running(tmp_path) as (daemon, person, _model):
        assert await person.answer("hello") == "fine"
        config = tmp_path / "config.toml"
        base = config.read_text()

        async def figures(port: int) -> int:
            async with httpx2.AsyncClient() as client:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/health")).status_code
                except httpx2.TransportError:
                    return 0

        async def states() -> dict[str, str]:
            return {agent["id"]: agent["state"] for agent in (await person.get("/api/agents"))["agents"]}

        both = '[[agents]]\nid = "main"\n[[agents]]\nid = "bob"\n'
        config.write_text(f"{base}[metrics]\nenabled = true\nport = {first}\n{both}")
        await wait_for(states, lambda seen: seen == {"main": "running", "bob": "running"})
        await wait_for(partial(figures, first), lambda status: status == 200)
        assert await person.answer("hello", agent_id="bob") == "fine"
        assert (await run(daemon, "agent", "list")).stdout.splitlines()[1].startswith("bob  running")
        assert (await run(daemon, "agent", "pause", "bob")).returncode == 0
        waiting = await person.say("are you there?", agent_id="bob")
        soul = tmp_path / "agents" / "bob" / "SOUL.md"
        soul.write_text("You are new here.\n")
        await wait_for_log(daemon, "prompts reloaded", "soul")
        assert (await person.fate(waiting))["state"] == "accepted"
        assert (await run(daemon, "agent", "resume", "bob")).returncode == 0
        assert (await person.settled(waiting))["state"] == "answered"

        webhook = f'[messaging.webhook]\nenabled = true\nport = {hook}\nauth_token = "word-of-the-hook"\n'
        config.write_text(f"{base}[metrics]\nenabled = true\nport = {second}\n{webhook}")
        await wait_for(states, lambda seen: seen == {"main": "running"})
        await wait_for(partial(figures, second), lambda status: status == 200)
        await wait_for(partial(figures, hook))
        assert await figures(first) == 0
        assert await person.answer("still there?") == "fine"
        assert "Traceback" not in log_of(daemon)
