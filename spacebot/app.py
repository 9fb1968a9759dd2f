"""The composition root: opens every part in order, inside nested nurseries; leaving them is stopping.

    stores, models, embedding model          outermost: last to close
      agents, a task each (roster.py)         turns finish, the rest commits how it stands
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
from spacebot.agent.roster import Roster, open_roster
from spacebot.agent.router import Mailboxes, Router
from spacebot.agent.updates import UpdateCheck
from spacebot.api.control import control_commands, serve_control
from spacebot.api.metrics import serve_metrics
from spacebot.api.server import serve_api, serve_asgi
from spacebot.api.tally import HttpFigures
from spacebot.api.traces import run_traces
from spacebot.base.allocator import give_memory_back
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import ConfigError, SpacebotError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.fetch import open_fetcher
from spacebot.base.ids import AgentId, new_uuid
from spacebot.base.paths import InstancePaths
from spacebot.base.telemetry import kv
from spacebot.base.tree import NodeKind, NodeState, Tree
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import LoadedConfig
from spacebot.config.model import Config
from spacebot.config.store import ConfigStore, FileChange, FileKind, ReloadReport, open_watcher
from spacebot.llm.catalogue import ModelCatalogue, load_catalogue
from spacebot.llm.explain import RouteExplanation
from spacebot.llm.manager import ModelManager, UsageRecord
from spacebot.llm.messages import ProcessKind
from spacebot.llm.opening import open_models
from spacebot.llm.prices import PriceBook
from spacebot.memory.embedding import OnnxEmbedder
from spacebot.messaging.manager import Messaging
from spacebot.messaging.registry import Seams, build_adapter
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.tools.permissions import INACTIVE
from spacebot.tools.sandbox import Backend, BackendKind, probe_backend

log = logging.getLogger(__name__)

GC_THRESHOLD = (20_000, 20, 20)  # Python's 700 is for small programs; a burst of messages makes that many in a blink
OPENING_S = 20.0  # the start waits so long for agents; what takes longer comes later


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
    roster: Roster
    catalogue: ModelCatalogue
    paths: InstancePaths
    updates: UpdateCheck
    http: HttpFigures = field(default_factory=HttpFigures)
    visitor: trio.Event = field(default_factory=trio.Event)
    wants_restart: bool = False

    @property
    def agents(self) -> Mapping[AgentId, Agent]:
        """All live agents, as they are at this moment."""
        return self.roster.live

    @property
    def config(self) -> Config:
        """The configuration as it is now."""
        return self.store.current

    @property
    def loaded(self) -> LoadedConfig:
        """The same with where each value comes from."""
        return self.store.loaded

    @property
    def warnings(self) -> Sequence[str]:
        """What the owner should know about the configuration file."""
        return self.store.warnings

    @property
    def default_agent_id(self) -> AgentId:
        """The agent that is asked where none is named, whether it runs or not: no other one answers for it."""
        return AgentId(self.store.current.default_agent.id)

    def why_absent(self, agent_id: str) -> SpacebotError:
        """What to tell somebody who asks for an agent that does not run."""
        return self.roster.why_absent(agent_id)

    @property
    def sandbox(self) -> str:
        """What contains the commands of workers, in words."""
        return self.probe.words

    async def reload_prompts(self) -> Sequence[str]:
        """Read all templates and identity files again. Errors: ConfigError; the old ones stay in use."""
        changed: set[str] = set()
        for agent in self.agents.values():
            changed.update(await agent.reload_prompts())
        self.events.emit(EventKind.CONFIG_RELOADED, what="prompts")
        return sorted(changed)

    async def reload_skills(self) -> None:
        """Look at all folders of skills again."""
        changed = [await agent.skills.reload() for agent in self.agents.values()]
        if any(changed):
            self.events.emit(EventKind.CONFIG_RELOADED, what="skills")

    async def reload_config(self) -> ReloadReport:
        """Read the configuration again; a broken one is reported and changes nothing."""
        report = await self.store.refresh()
        if not report.changed and report.error is None:
            return report
        for warning in report.warnings:
            log.warning("configuration", extra=kv(warning=warning))
        self.events.emit(EventKind.CONFIG_RELOADED, what="config", error=report.error)
        return report

    def explain_route(
        self, agent_id: AgentId, text: str, process: ProcessKind, task_type: str | None
    ) -> RouteExplanation:
        """Which model of an agent would answer a text now, and why."""
        settings = next((one for one in self.config.agents if one.id == agent_id), self.config.default_agent)
        return self.models.explain(text, process, settings, task_type=task_type)

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
    roster: Roster | None = None

    def note_usage(record: UsageRecord) -> None:
        if roster is not None and record.agent_id is not None and (agent := roster.find(record.agent_id)) is not None:
            agent.note_usage(record)

    async with AsyncExitStack() as stack:
        fetcher = await stack.enter_async_context(open_fetcher())
        models = await stack.enter_async_context(
            open_models(lambda: store.current.llm, record_usage=note_usage, login=paths.login)
        )
        catalogue = await load_catalogue(paths.root, fetcher, clock)
        models.free_models, models.known_window = catalogue.free_models, catalogue.context_window
        embedder, probe = OnnxEmbedder(verdicts=paths.root / "native.json"), _Probe()
        messaging = Messaging(
            lambda: store.current.messaging,
            tree=tree,
            parent=daemon,
            events=events,
            clock=clock,
            build=build_adapter,
        )
        roster = await stack.enter_async_context(
            open_roster(
                lambda: store.current.agents,
                lambda settings: open_agent(
                    settings,
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
                    others=partial(_other_workspaces, store, settings().id),
                    prices=PriceBook(catalogue.price),
                ),
                events=events,
                clock=clock,
            )
        )
        live = roster
        program = RunningProgram(
            store,
            events,
            models,
            stop,
            probe,
            messaging,
            ConfigEditor(paths.config),
            roster=roster,
            catalogue=catalogue,
            paths=paths,
            updates=(updates := UpdateCheck(lambda: store.current.update, fetcher.get, clock=clock)),
        )
        store.listen(lambda report: updates.reconsider())
        messaging.seams = Seams(
            commands=command_table(),
            serve=partial(serve_asgi, name="messaging.webhook"),
            post=partial(fetcher.post, may_be_private=True),  # the owner named the address
            mailbox=Mailboxes(lambda: program.agents),
        )
        store.listen(lambda report: live.reconcile())
        store.listen(lambda report: messaging.reconcile())
        with trio.move_on_after(OPENING_S):
            await roster.settled()
        roster.note_start()
        await _serve(program, paths, tree, secrets, on_ready=on_ready, probe=probe)
        events.close()
    return 75 if program.wants_restart else 0


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
            await faces.start(_keep_metrics, program, tree)
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
                        live=lambda: program.store.current.api,
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
            faces.start_soon(program.updates.run)
            router = Router(
                lambda: program.agents,
                lambda: program.store.current,
                lambda: program.default_agent_id,
                find=program.roster.wait_live,
            )
            faces.start_soon(program.messaging.run, router)
            faces.start_soon(partial(run_traces, program.store, tree=tree, events=program.events))
            main = program.agents.get(program.default_agent_id)
            on_ready(ReadyInfo(urls=urls, model_label="none" if main is None else main.model_label))
            await program.stop.wait()
        log.info("stopping", extra=kv(agents=len(program.agents)))
        await program.roster.drain()
        faces.cancel_scope.cancel()


async def _keep_metrics(
    program: RunningProgram, tree: Tree, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve figures where the live configuration wants them; another address is taken without a restart.

    Errors: ConfigError when the first address cannot be had, before `started`; later ones are logged.
    """
    moved = trio.Event()
    program.store.listen(lambda report: moved.set())
    is_first = True
    while True:
        config = program.store.current.metrics
        async with trio.open_nursery() as life:
            if config.enabled:
                try:
                    await life.start(
                        partial(serve_metrics, program, config, tree=tree, events=program.events, stop=program.stop)
                    )
                except ConfigError as error:
                    if is_first:
                        raise
                    log.warning("figures are not served", extra=kv(error=str(error)))
            if is_first:
                task_status.started()
                is_first = False
            while program.store.current.metrics == config:
                await moved.wait()
                moved = trio.Event()
            life.cancel_scope.cancel()


async def _warm_up(program: RunningProgram, probe: _Probe) -> None:
    """Load what the first conversation needs as soon as somebody is there; until then the program stays small."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_message, program)
        await program.visitor.wait()
        nursery.cancel_scope.cancel()
    for agent in program.agents.values():
        try:
            await agent.warm_up_prompts()
        except ConfigError as error:
            log.warning("prompts not warmed up", extra=kv(agent=agent.id, error=str(error)))
    await program.models.warm_up(program.store.current.agents)
    gc.collect()
    gc.freeze()  # what is loaded now stays; looking at it again and again would cost a tenth of every message
    gc.set_threshold(*GC_THRESHOLD)
    for agent in program.agents.values():
        try:
            await agent.memory.warm_up()
        except SpacebotError as error:  # it may just be leaving
            log.warning("memory not warmed up", extra=kv(agent=agent.id, error=str(error)))
    await trio.to_thread.run_sync(give_memory_back)
    await probe()


async def _wait_for_message(program: RunningProgram) -> None:
    with program.events.subscribe(frozenset({EventKind.INBOUND_MESSAGE})) as messages:
        await messages.receive()
    program.note_visitor()


async def _watch_files(program: RunningProgram, paths: InstancePaths) -> None:
    """Follow changes of the configuration, identity files and prompts."""

    async def config_changed(changes: Sequence[FileChange]) -> None:
        await program.reload_config()

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
    folders = partial(_skill_folders, program, paths)
    async with open_watcher(paths, partial(_agent_ids, program), callbacks, skill_folders=folders):
        await program.reload_config()  # what was edited while the program started, which the watcher does not see
        try:
            await program.reload_prompts()
        except ConfigError as error:
            log.warning("prompts not reloaded", extra=kv(error=str(error)))
        await program.reload_skills()
        await trio.sleep_forever()


def _agent_ids(program: RunningProgram) -> list[str]:
    return [agent.id for agent in program.config.agents]


def _skill_folders(program: RunningProgram, paths: InstancePaths) -> list[Path]:
    """Every folder of skills, each once: that of the instance and those of the agents."""
    own = [paths.agent(agent.id, agent.workspace).skills for agent in program.config.agents]
    return list(dict.fromkeys([paths.skills, *own]))
