"""An agent without a mind: a real log and a real bus, and turns that a test plays by hand or by a script."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from spacebot.agent.budget import Budget
from spacebot.agent.delivery import Delivery
from spacebot.agent.forgetting import Forgetting, ForgottenPerson, Traces
from spacebot.agent.ingestion import IngestionState
from spacebot.agent.mcp import McpView
from spacebot.agent.roster import AgentState, AgentView
from spacebot.agent.scheduled import Schedules
from spacebot.agent.skill_desk import SkillDesk
from spacebot.agent.updates import UpdateCheck
from spacebot.agent.usage import UsageDesk
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.agent.worker_log import WorkerLog
from spacebot.api.tally import HttpFigures
from spacebot.base.clock import Clock
from spacebot.base.errors import ConfigError, NotFoundError, SpacebotError
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.fetch import Answer
from spacebot.base.ids import AgentId, ConversationId, MessageId, TurnId, new_uuid
from spacebot.base.paths import InstancePaths, package_file
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import LoadedConfig
from spacebot.config.model import AgentConfig, Config, WorkerLogMode
from spacebot.config.store import ConfigStore, ReloadReport
from spacebot.conversations.activity import Activity
from spacebot.conversations.ingestion_log import IngestedFile
from spacebot.conversations.log import Conversations
from spacebot.conversations.outbox import Outbox
from spacebot.conversations.records import Accepted, LoggedMessage, TurnState
from spacebot.conversations.usage_log import UsageLog
from spacebot.conversations.worker_runs import WorkerArchive
from spacebot.llm.catalogue import ModelCatalogue, load_catalogue
from spacebot.llm.explain import RouteExplanation, explain
from spacebot.llm.messages import ProcessKind
from spacebot.llm.prices import PriceBook
from spacebot.memory.maintenance import MaintenancePolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.views import MemoryViews
from spacebot.messaging.courier import NO_PLATFORMS
from spacebot.messaging.messages import InboundMessage, OutboundKind
from spacebot.messaging.states import AdapterState, Connection
from spacebot.storage.database import Database, open_database
from spacebot.storage.settings import Settings
from tests.fakes.fake_embedder import FakeEmbedder
from tests.fakes.fake_schedules import fake_schedules


class FakeCortex:
    """A cortex that never did anything."""

    def state(self) -> Mapping[str, Any]:
        return {"bulletin": {"generated_at": None, "words": 0, "is_shown": False}, "duties": {}}


class FakeIngestion:
    """A drop folder with nothing in it."""

    def state(self) -> IngestionState:
        return IngestionState(status="idle", folder="ingest")

    async def files(self) -> list[IngestedFile]:
        return []


class FakeServers:
    """The MCP servers that a test puts into `known`."""

    def __init__(self) -> None:
        self.known: list[McpView] = []
        self.reconnected: list[str] = []

    def views(self) -> list[McpView]:
        return self.known

    def reconnect(self, name: str) -> None:
        self.reconnected.append(name)

    def reconcile(self) -> None:
        return None


class FakeAgent:
    """One agent; `on_message` is called in a task of its own for each newly accepted message."""

    def __init__(
        self,
        agent_id: str,
        conversations: Conversations,
        memory: AgentMemory,
        memory_views: MemoryViews,
        events: EventBus,
        tree: Tree,
    ) -> None:
        self.id = AgentId(agent_id)
        self.conversations = conversations
        self.memory = memory
        self.memory_views = memory_views
        self.maintenance_policy = MaintenancePolicy()
        self.cortex = FakeCortex()
        self.ingestion = FakeIngestion()
        self.mcp: Any = FakeServers()
        self.skill_desk: SkillDesk
        self.texts = {"soul": "Calm.", "identity": "A partner.", "user": ""}
        self.transfer: MemoryTransfer
        self.forgetting: Forgetting
        self.delivery: Delivery
        self.schedules: Schedules
        self.workers: WorkerDesk
        self.usage: UsageDesk
        self.events = events
        self.tree = tree
        self.model_label = "demo/demo"
        self.accepted: list[InboundMessage] = []
        self.on_message: Callable[[InboundMessage, Accepted], Awaitable[None]] | None = None
        self.finished: dict[str, list[dict[str, Any]]] = {}
        self.nursery: trio.Nursery | None = None
        self.is_paused = False
        self.activity: Activity

    async def profile(self) -> None:
        return None

    async def briefing(self) -> str:
        return ""

    async def identity(self) -> Mapping[str, str]:
        return self.texts

    async def write_identity(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        self.texts |= texts
        return self.texts

    async def accept(self, message: InboundMessage) -> Accepted:
        accepted = await self.conversations.accept(message)
        if accepted.is_new:
            self.accepted.append(message)
            self.emit(
                EventKind.INBOUND_MESSAGE,
                message.conversation_id,
                message_id=accepted.message_id,
                seq=accepted.seq,
                sender_id=message.author.id,
                sender_name=message.author.name,
                text=message.text,
                created_at=Clock().text(),
            )
            if self.on_message is not None and self.nursery is not None:
                self.nursery.start_soon(self.on_message, message, accepted)
        return accepted

    async def traces_of(self, person: str) -> Traces:
        return await self.forgetting.traces_of(person)

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        return await self.forgetting.forget_person(person, reason=reason)

    def status_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            channel_id: {"active_branches": [], "active_workers": [], "completed_items": items}
            for channel_id, items in self.finished.items()
        }

    async def memory_stats(self) -> Mapping[str, Any]:
        return {"total": 0}

    def emit(self, event: EventKind, channel_id: str, **fields: Any) -> None:
        """Send an event; not by `EventBus.emit`, whose first name `kind` is also the name of a field."""
        self.events.send(ProcessEvent(kind=event, agent_id=self.id, channel_id=channel_id, fields=fields))

    @asynccontextmanager
    async def turn(
        self,
        channel_id: ConversationId,
        *accepted: Accepted,
        state: TurnState = TurnState.DONE,
        reason: str | None = None,
    ) -> AsyncIterator["FakeTurn"]:
        """Play one turn: begun on entry, ended on exit; without messages it is one that relays results."""
        turn_id = TurnId(new_uuid())
        await self.conversations.begin_turn(
            turn_id, channel_id, "messages" if accepted else "results", [a.message_id for a in accepted]
        )
        node = self.tree.add(NodeKind.TURN, "answering", node_id=turn_id, agent_id=self.id, channel_id=channel_id)
        self.emit(EventKind.TYPING_STATE, channel_id, is_typing=True)
        try:
            yield FakeTurn(self, channel_id, turn_id, accepted[-1].message_id if accepted else None)
        finally:
            self.tree.remove(node)
        self.emit(EventKind.TYPING_STATE, channel_id, is_typing=False)
        await self.conversations.finish_turn(turn_id, state, channel_id=channel_id, detail=reason)
        self.emit(
            EventKind.TURN_ENDED,
            channel_id,
            turn_id=turn_id,
            outcome=str(state),
            last_seq=max((a.seq for a in accepted), default=None),
            reason=reason,
        )

    async def run_worker(
        self, channel_id: ConversationId, task: str, work: Callable[[Node], Awaitable[str]]
    ) -> Outcome:
        """Run a worker in the tree and tell of it on the bus."""
        node = self.tree.add(NodeKind.WORKER, task, agent_id=self.id, channel_id=channel_id)
        self.emit(EventKind.WORKER_STARTED, channel_id, worker_id=node.id, task=task)

        async def settle(outcome: Outcome) -> None:
            self.finished.setdefault(channel_id, []).append(
                {"id": node.id, "item_type": "Worker", "description": task, "result_summary": outcome.text}
            )
            self.emit(
                EventKind.WORKER_COMPLETED,
                channel_id,
                worker_id=node.id,
                result=outcome.text,
                state=str(outcome.state),
            )

        async def run() -> Outcome:
            return Outcome(NodeState.DONE, await work(node))

        return await self.tree.supervise(node, run, settle=settle)


class FakeTurn:
    """What a turn may say."""

    def __init__(
        self, agent: FakeAgent, channel_id: ConversationId, turn_id: TurnId, reply_to: MessageId | None
    ) -> None:
        self.agent = agent
        self.channel_id = channel_id
        self.id = turn_id
        self.reply_to = reply_to

    def delta(self, text: str) -> None:
        """Show the whole text so far."""
        self.agent.emit(EventKind.OUTBOUND_DELTA, self.channel_id, turn_id=self.id, reply_to=self.reply_to, text=text)

    def tool(self, name: str) -> None:
        """Tell of one tool call, begun and ended."""
        fields = {"process_type": "channel", "process_id": self.id, "tool_name": name, "call_id": "c1"}
        self.agent.emit(EventKind.TOOL_STARTED, self.channel_id, **fields)
        self.agent.emit(EventKind.TOOL_COMPLETED, self.channel_id, is_error=False, **fields)

    async def say(self, text: str, kind: OutboundKind = OutboundKind.TEXT, *, announce: bool = True) -> LoggedMessage:
        """Log a reply and announce it."""
        row = await self.agent.conversations.record_reply(
            self.id, self.channel_id, text, kind=kind, reply_to=self.reply_to
        )
        common = {"message_id": row.id, "seq": row.seq, "reply_to": self.reply_to}
        if not announce:
            return row
        if kind is OutboundKind.REACTION:
            self.agent.emit(EventKind.REACTION, self.channel_id, emoji=text, **common)
        else:
            self.agent.emit(
                EventKind.OUTBOUND_MESSAGE,
                self.channel_id,
                text=text,
                kind=str(kind),
                turn_id=self.id,
                created_at=row.created_at,
                **common,
            )
        return row


class FakeMessaging:
    """Adapters that a test plays by hand: connected as soon as they are configured, unless it says otherwise."""

    def __init__(self, store: ConfigStore) -> None:
        self._store = store
        self.known: dict[str, AdapterState] = {}
        self.answers: dict[str, str | Exception] = {}
        self.sent: list[tuple[str, str]] = []

    def states(self) -> Sequence[AdapterState]:
        return [
            self.known.get(key)
            or AdapterState(key=key, platform=platform, state=Connection.CONNECTED, who=f"bot of {key}")
            for platform, key, _ in self._store.current.messaging.accounts()
        ]

    async def probe(self, key: str) -> str:
        return await self._answer(key, f"{key} is well")

    async def send_test(self, address: str, text: str) -> str:
        self.sent.append((address, text))
        return await self._answer(address, f"the room {address}")

    async def _answer(self, key: str, usual: str) -> str:
        await trio.lowlevel.checkpoint()
        answer = self.answers.get(key, usual)
        if answer == "never":
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeRoster:
    """Agents that run for ever."""

    def __init__(self, agents: Mapping[AgentId, FakeAgent]) -> None:
        self._agents = agents

    def views(self) -> Sequence[AgentView]:
        states = {True: AgentState.PAUSED, False: AgentState.RUNNING}
        return [
            AgentView(id=agent.id, state=states[agent.is_paused], since=Clock().now())
            for agent in self._agents.values()
        ]

    async def settled(self, agent_id: str | None = None) -> None:
        await trio.lowlevel.checkpoint()

    async def pause(self, agent_id: str, *, is_on: bool) -> None:
        self._agents[AgentId(agent_id)].is_paused = is_on


def _nobody() -> Any:
    """Answers as GitHub does when it knows nothing."""

    async def get(url: str, **how: Any) -> Answer:
        await trio.lowlevel.checkpoint()
        return Answer(404, {}, b"", "github")

    return get


class FakeProgram:
    """The program that owns the fake agents."""

    def __init__(self, agents: Mapping[AgentId, FakeAgent], events: EventBus, tree: Tree, config: Path) -> None:
        self.agents = agents
        self.store = ConfigStore.open(config)
        self.editor = ConfigEditor(config)
        self.messaging = FakeMessaging(self.store)
        self.events = events
        self.tree = tree
        self.default_agent_id = next(iter(agents))
        self.roster = FakeRoster(agents)
        self.visits = 0
        self.stops: list[bool] = []
        self.broken_prompt: str | None = None
        self.catalogue: ModelCatalogue
        self.models: Any = SimpleNamespace(credentials=None)
        self.paths = InstancePaths(config.parent, config)
        self.http = HttpFigures()
        self.updates = UpdateCheck(lambda: self.store.current.update, _nobody())

    @property
    def main(self) -> FakeAgent:
        """The default agent."""
        return self.agents[self.default_agent_id]

    def why_absent(self, agent_id: str) -> SpacebotError:
        return NotFoundError(f"there is no agent {agent_id!r}; there are: {', '.join(self.agents)}")

    @property
    def sandbox(self) -> str:
        """As a program that has not started a worker yet says it."""
        return "not tried yet"

    @property
    def config(self) -> Config:
        return self.store.current

    @property
    def loaded(self) -> LoadedConfig:
        return self.store.loaded

    @property
    def warnings(self) -> Sequence[str]:
        return self.store.warnings

    def explain_route(
        self, agent_id: AgentId, text: str, process: ProcessKind, task_type: str | None
    ) -> RouteExplanation:
        return explain([text], process, self.config.default_agent, self.config.llm, task_type=task_type)

    async def reload_config(self) -> ReloadReport:
        report = await self.store.refresh()
        if report.changed:
            self.events.emit(EventKind.CONFIG_RELOADED, what="config", error=None)
        return report

    async def reload_prompts(self) -> Sequence[str]:
        if self.broken_prompt is not None:
            raise ConfigError(self.broken_prompt)
        return ["CHANNEL.md"]

    def note_visitor(self) -> None:
        self.visits += 1

    def request_stop(self, *, restart: bool = False) -> None:
        self.stops.append(restart)


@asynccontextmanager
async def open_fake_program(folder: Path, agent_ids: Sequence[str] = ("main",)) -> AsyncIterator[FakeProgram]:
    """Open a program whose logs lie in `folder`; opened again on the same folder it has its past."""
    events, tree, clock = EventBus(), Tree(), Clock()
    catalogue = await load_catalogue(None, None, clock)
    async with AsyncExitStack() as stack:
        agents: dict[AgentId, FakeAgent] = {}
        for agent_id in agent_ids:
            opening = open_database(folder / f"{agent_id}.db", package_file("storage", "sql"), clock)
            database = await stack.enter_async_context(opening)
            memory = await stack.enter_async_context(
                open_memory(
                    database,
                    folder / f"{agent_id}.lancedb",
                    embedder=FakeEmbedder(),
                    events=events,
                    agent_id=agent_id,
                    clock=clock,
                )
            )
            agent = FakeAgent(
                agent_id, Conversations(database, clock), memory, MemoryViews(database, clock), events, tree
            )
            agent.transfer = MemoryTransfer(database, memory, FakeEmbedder(), clock)
            agent.forgetting = Forgetting(database, memory, clock, vectors=folder / f"{agent_id}.lancedb")
            agent.workers = WorkerDesk(
                WorkerArchive(database, clock),
                WorkerLog(folder / "logs"),
                clock,
                mode=lambda: WorkerLogMode.ERRORS_ONLY,
            )
            agent.usage = await _open_usage(agent_id, database, clock, events, catalogue)
            agent.activity = Activity(database, clock)
            outbox = Outbox(database, clock)
            agent.delivery = Delivery(outbox, NO_PLATFORMS, agent_id=agent.id, events=events, clock=clock)
            agent.schedules = fake_schedules(agent, database, clock)
            agents[agent.id] = agent
        async with trio.open_nursery() as nursery:
            for agent in agents.values():
                agent.nursery = nursery
                nursery.start_soon(agent.schedules.run)
            program = FakeProgram(agents, events, tree, folder / "config.toml")
            program.catalogue = catalogue
            yield program
            nursery.cancel_scope.cancel()
        events.close()


async def _open_usage(
    agent_id: str, database: Database, clock: Clock, events: EventBus, catalogue: ModelCatalogue
) -> UsageDesk:
    settings = AgentConfig(id=agent_id, user_timezone="UTC")
    desk = UsageDesk(
        UsageLog(database, clock),
        Settings(database),
        agent_id,
        prices=PriceBook(catalogue.price),
        budget=Budget(agent_id, settings=lambda: settings, clock=clock, events=events),
        clock=clock,
    )
    await desk.open()
    return desk
