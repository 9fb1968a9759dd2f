"""The composition root: opens every part in order, inside nested nurseries; leaving them is stopping.

    stores, models, embedding model          outermost: last to close
      agents                                  turns finish, the rest commits how it stands
        API, control socket, watcher          innermost: first to stop, so that nothing new comes in

Floor:  app
Source: design 3; control spec 1.12
"""

import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from spacebot import __version__
from spacebot.agent.agent import Agent
from spacebot.agent.commands import command_table
from spacebot.agent.opening import open_agent
from spacebot.agent.router import Mailboxes, Router
from spacebot.api.control import control_commands, serve_control
from spacebot.api.metrics import serve_metrics
from spacebot.api.server import serve_api, serve_asgi
from spacebot.base.allocator import give_memory_back
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import ConfigError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.fetch import open_fetcher
from spacebot.base.ids import AgentId, new_uuid
from spacebot.base.paths import InstancePaths
from spacebot.base.telemetry import kv
from spacebot.base.tree import NodeKind, NodeState, Tree
from spacebot.config.edit import ConfigEditor
from spacebot.config.model import AgentConfig, Config
from spacebot.config.store import ConfigStore, FileChange, FileKind, open_watcher
from spacebot.llm.manager import ModelManager, UsageRecord, open_models
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.messaging.manager import Messaging
from spacebot.messaging.registry import Seams, build_adapter
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.tools.permissions import INACTIVE
from spacebot.tools.sandbox import Backend, BackendKind, probe_backend

log = logging.getLogger(__name__)

GC_THRESHOLD = (20_000, 20, 20)  # Python's 700 is for small programs; a burst of messages makes that many in a blink
TURNS_S = 5.0  # running turns get this long to finish when the program stops
DELIVERY_S = 2.0  # and what they said this long to reach its platform


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyInfo:
    """What the owner should see once the program accepts messages."""

    urls: tuple[str, ...]
    model_label: str


@dataclass(slots=True)
class RunningProgram:
    """The running program as its faces see it."""

    store: ConfigStore
    events: EventBus
    models: ModelManager
    stop: trio.Event
    probe: "_Probe"
    messaging: Messaging
    editor: ConfigEditor
    by_id: dict[AgentId, Agent] = field(default_factory=dict)
    visitor: trio.Event = field(default_factory=trio.Event)
    wants_restart: bool = False

    @property
    def agents(self) -> Mapping[AgentId, Agent]:
        """All live agents."""
        return self.by_id

    @property
    def config(self) -> Config:
        """The configuration as it is now."""
        return self.store.current

    @property
    def warnings(self) -> Sequence[str]:
        """What the owner should know about the configuration file."""
        return self.store.warnings

    @property
    def default_agent_id(self) -> AgentId:
        """The agent that is asked where none is named: the configured one, or the first while that is not running."""
        wanted = AgentId(self.store.current.default_agent.id)
        return wanted if wanted in self.by_id else next(iter(self.by_id), wanted)

    @property
    def sandbox(self) -> str:
        """What contains the commands of workers, in words."""
        return self.probe.words

    async def reload_prompts(self) -> Sequence[str]:
        """Read all templates and identity files again. Errors: ConfigError; the old ones stay in use."""
        changed: set[str] = set()
        for agent in self.by_id.values():
            changed.update(await agent.reload_prompts())
        self.events.emit(EventKind.CONFIG_RELOADED, what="prompts")
        return sorted(changed)

    async def reload_skills(self) -> None:
        """Look at all folders of skills again."""
        changed = [await agent.skills.reload() for agent in self.by_id.values()]
        if any(changed):
            self.events.emit(EventKind.CONFIG_RELOADED, what="skills")

    def reload_config(self) -> None:
        """Read the configuration again; a broken one is reported and changes nothing."""
        report = self.store.reload()
        if not report.changed and report.error is None:
            return
        for warning in report.warnings:
            log.warning("configuration", extra=kv(warning=warning))
        self.events.emit(EventKind.CONFIG_RELOADED, what="config", error=report.error)

    def note_visitor(self) -> None:
        """Somebody is here: what the first message needs may warm up."""
        self.visitor.set()

    def request_stop(self, *, restart: bool = False) -> None:
        """Drain and end the program."""
        self.wants_restart = restart
        self.stop.set()


class _Probe:
    """Finds out once what can contain commands here."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._backend: Backend | None = None

    @property
    def words(self) -> str:
        """What was found, for people."""
        if self._backend is None:
            return "is just being tried"
        if self._backend.kind is BackendKind.NONE:
            return f"{INACTIVE} ({self._backend.note})"
        return f"{self._backend.kind} ({self._backend.note})"

    async def __call__(self) -> Backend:
        async with self._lock:
            if self._backend is None:
                self._backend = await probe_backend()
            return self._backend


async def main(
    paths: InstancePaths,
    store: ConfigStore,
    secrets: LiveSecrets,
    *,
    on_ready: Callable[[ReadyInfo], None],
    debug: bool = False,
) -> int:
    """Run until somebody asks to stop: over the control socket, or by a signal, which the daemon turns into that.

    Returns the exit code: 0 after an orderly stop, 75 when a restart is wanted.

    Errors: ConfigError, StorageError when a part cannot be opened.
    """
    log.info("starting", extra=kv(version=__version__, pid=os.getpid()))
    clock, tree, events, stop = Clock(), Tree(), EventBus(), trio.Event()
    daemon = tree.add(NodeKind.DAEMON, f"pid {os.getpid()}", node_id="daemon")
    daemon.state = NodeState.RUNNING
    agents: dict[AgentId, Agent] = {}

    def note_usage(record: UsageRecord) -> None:
        if record.agent_id is not None and (agent := agents.get(AgentId(record.agent_id))) is not None:
            agent.note_usage(record)

    async with AsyncExitStack() as stack:
        fetcher = await stack.enter_async_context(open_fetcher())
        models = await stack.enter_async_context(open_models(lambda: store.current.llm, record_usage=note_usage))
        embedder, probe = OnnxEmbedder(verdicts=paths.root / "native.json"), _Probe()
        messaging = Messaging(
            lambda: store.current.messaging,
            tree=tree,
            parent=daemon,
            events=events,
            clock=clock,
            build=build_adapter,
        )
        program = RunningProgram(
            store, events, models, stop, probe, messaging, ConfigEditor(paths.config), by_id=agents
        )
        for config in store.current.agents:
            agents[AgentId(config.id)] = await stack.enter_async_context(
                open_agent(
                    partial(_settings, store, config),
                    llm=lambda: store.current.llm,
                    instance=paths,
                    models=models,
                    embedder=embedder,
                    probe=probe,
                    tree=tree,
                    parent=daemon,
                    events=events,
                    clock=clock,
                    fetcher=fetcher,
                    courier=messaging,
                    tool_secrets=secrets.tool_environment,
                    others=partial(_other_workspaces, store, config.id),
                )
            )
        messaging.seams = Seams(
            commands=command_table(),
            serve=partial(serve_asgi, name="messaging.webhook"),
            post=partial(fetcher.post, may_be_private=True),  # the owner named the address
            mailbox=Mailboxes(lambda: agents),
        )
        store.listen(lambda report: messaging.reconcile())
        store.listen(lambda report: _reload_schedules(agents))
        store.listen(lambda report: _reconcile_servers(agents))
        await _serve(program, paths, tree, secrets, on_ready=on_ready, probe=probe)
        events.close()
    return 75 if program.wants_restart else 0


def _reload_schedules(agents: Mapping[AgentId, Agent]) -> None:
    for agent in agents.values():
        agent.schedules.reload()


def _reconcile_servers(agents: Mapping[AgentId, Agent]) -> None:
    for agent in agents.values():
        agent.mcp.reconcile()


def _settings(store: ConfigStore, started_with: AgentConfig) -> AgentConfig:
    """The agent's table as it is now; an agent that left the file keeps its last one until a restart."""
    return next((agent for agent in store.current.agents if agent.id == started_with.id), started_with)


def _other_workspaces(store: ConfigStore, agent_id: str) -> list[Path]:
    """Workspaces of all other agents that lie where their owner wants them; the others are hidden with the instance."""
    return [agent.workspace for agent in store.current.agents if agent.id != agent_id and agent.workspace is not None]


async def _serve(
    program: RunningProgram,
    paths: InstancePaths,
    tree: Tree,
    secrets: LiveSecrets,
    *,
    on_ready: Callable[[ReadyInfo], None],
    probe: _Probe,
) -> None:
    """Let people in until somebody asks to stop; then nobody comes in, and running turns may finish."""
    api, run_id, started = program.store.current.api, new_uuid(), monotonic_s()
    async with trio.open_nursery() as faces:
        async with trio.open_nursery() as serving:
            if (metrics := program.store.current.metrics).enabled:
                await serving.start(
                    partial(serve_metrics, program, metrics, tree=tree, events=program.events, stop=program.stop)
                )
            urls: tuple[str, ...] = ()
            if api.enabled:
                urls = await serving.start(
                    partial(
                        serve_api,
                        program,
                        api,
                        events=program.events,
                        tree=tree,
                        run_id=run_id,
                        stop=program.stop,
                        secrets=secrets,
                    )
                )
            commands = control_commands(
                program,
                tree=tree,
                events=program.events,
                store=program.store,
                secrets=secrets,
                run_id=run_id,
                started_at=started,
                urls=urls,
            )
            await faces.start(serve_control, paths.socket, commands)
            faces.start_soon(_watch_files, program, paths)
            faces.start_soon(probe)  # so that the status tells from the first minute on what contains commands
            faces.start_soon(_warm_up, program, probe)
            router = Router(lambda: program.agents, lambda: program.store.current, lambda: program.default_agent_id)
            faces.start_soon(program.messaging.run, router)
            on_ready(ReadyInfo(urls=urls, model_label=program.agents[program.default_agent_id].model_label))
            await program.stop.wait()
        log.info("stopping", extra=kv(agents=len(program.agents)))
        async with trio.open_nursery() as draining:
            for agent in program.by_id.values():
                draining.start_soon(agent.drain, TURNS_S)
        async with trio.open_nursery() as flushing:  # what was just said still goes out; the rest waits on disk
            for agent in program.by_id.values():
                flushing.start_soon(agent.delivery.flush, DELIVERY_S)
        faces.cancel_scope.cancel()


async def _warm_up(program: RunningProgram, probe: _Probe) -> None:
    """Load what the first conversation needs as soon as somebody is there; until then the program stays small."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_message, program)
        await program.visitor.wait()
        nursery.cancel_scope.cancel()
    await program.models.warm_up(program.store.current.agents)
    gc.collect()
    gc.freeze()  # what is loaded now stays; looking at it again and again would cost a tenth of every message
    gc.set_threshold(*GC_THRESHOLD)
    for agent in program.agents.values():
        await agent.memory.warm_up()
    await trio.to_thread.run_sync(give_memory_back)
    await probe()


async def _wait_for_message(program: RunningProgram) -> None:
    with program.events.subscribe(frozenset({EventKind.INBOUND_MESSAGE})) as messages:
        await messages.receive()
    program.note_visitor()


async def _watch_files(program: RunningProgram, paths: InstancePaths) -> None:
    """Follow changes of the configuration, identity files and prompts."""

    async def config_changed(changes: Sequence[FileChange]) -> None:
        program.reload_config()

    async def prompts_changed(changes: Sequence[FileChange]) -> None:
        await program.reload_prompts()

    async def skills_changed(changes: Sequence[FileChange]) -> None:
        await program.reload_skills()

    callbacks = {
        FileKind.CONFIG: config_changed,
        FileKind.IDENTITY: prompts_changed,
        FileKind.PROMPT: prompts_changed,
        FileKind.SKILL: skills_changed,
    }
    folders = partial(_skill_folders, program)
    async with open_watcher(paths, lambda: list(program.agents), callbacks, skill_folders=folders):
        program.reload_config()  # what was edited while the program started, which the watcher does not see
        try:
            await program.reload_prompts()
        except ConfigError as error:
            log.warning("prompts not reloaded", extra=kv(error=str(error)))
        await program.reload_skills()
        await trio.sleep_forever()


def _skill_folders(program: RunningProgram) -> list[Path]:
    """Every folder of skills, each once: that of the instance and those of the agents."""
    return list(dict.fromkeys(folder for agent in program.by_id.values() for folder in agent.skills.folders))
