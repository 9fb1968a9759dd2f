"""How an agent is put together: folders, database, memory, what its processes share, its services, then its past.

Flow:   open_agent -> stores -> AgentParts -> Agent and its services -> recover
Floor:  agent
Source: design 3
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from spacebot.agent.agent import Agent, first_model
from spacebot.agent.attachment_parts import FOLDER, PRIVATE
from spacebot.agent.attachments import AttachmentDesk, transcribe_with
from spacebot.agent.budget import Budget, BudgetedModel
from spacebot.agent.bulletin import open_briefing
from spacebot.agent.captures import Captures, CapturingModel
from spacebot.agent.channels import Channels
from spacebot.agent.cortex import Cortex
from spacebot.agent.cortex_chat import CortexChat
from spacebot.agent.crossing import Crossing
from spacebot.agent.delivery import Delivery
from spacebot.agent.forgetting import Forgetting
from spacebot.agent.ingestion import Ingestion
from spacebot.agent.liveness import WatchedModel
from spacebot.agent.mcp import McpServers
from spacebot.agent.model_calls import MeasuredModel
from spacebot.agent.parts import AgentParts, ModelSource, Pause
from spacebot.agent.prompts import load_prompts
from spacebot.agent.scheduled import Schedules
from spacebot.agent.usage import UsageDesk
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.agent.worker_log import WorkerLog
from spacebot.base.clock import Clock
from spacebot.base.events import EventBus
from spacebot.base.fetch import Fetcher
from spacebot.base.ids import AgentId
from spacebot.base.paths import InstancePaths, bundled_prompts, package_file
from spacebot.base.tree import Node, NodeKind, NodeState, Tree
from spacebot.config.model import AgentConfig, LlmConfig
from spacebot.conversations.activity import Activity
from spacebot.conversations.attachment_log import AttachmentLog
from spacebot.conversations.captures import CaptureLog
from spacebot.conversations.cortex_threads import CortexThreads
from spacebot.conversations.ingestion_log import IngestionLog
from spacebot.conversations.log import Conversations
from spacebot.conversations.memoranda import Memoranda
from spacebot.conversations.message_search import MessageSearch
from spacebot.conversations.outbox import Outbox
from spacebot.conversations.rooms import Rooms
from spacebot.conversations.usage_log import UsageLog
from spacebot.conversations.worker_runs import WorkerArchive
from spacebot.cron.jobs import Jobs
from spacebot.llm.messages import ProcessKind
from spacebot.llm.prices import PriceBook
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.linking import LinkPolicy
from spacebot.memory.memory import open_memory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.views import MemoryViews
from spacebot.messaging.courier import NO_PLATFORMS, Courier
from spacebot.storage.database import open_database
from spacebot.storage.settings import Settings
from spacebot.tools.browser.session import open_browsers
from spacebot.tools.opencode.pool import open_opencode
from spacebot.tools.permissions import Gate
from spacebot.tools.sandbox import Backend, Containment
from spacebot.tools.skills import SkillShelf

QUIET_RUNS = 2  # persistence runs at once


@asynccontextmanager
async def open_agent(
    settings: Callable[[], AgentConfig],
    *,
    llm: Callable[[], LlmConfig],
    instance: InstancePaths,
    models: ModelSource,
    embedder: Embedder,
    probe: Callable[[], Awaitable[Backend]],
    tree: Tree,
    parent: Node,
    events: EventBus,
    clock: Clock,
    fetcher: Fetcher,
    courier: Courier = NO_PLATFORMS,
    tool_secrets: Callable[[], Mapping[str, str]] = dict,
    others: Callable[[], Sequence[Path]] = tuple,
    index: IndexPolicy | None = None,
    prices: PriceBook | None = None,
) -> AsyncIterator[Agent]:
    """Open one agent: folders, database, memory, prompts; then take up what its last life left.

    Args:
        fetcher: fetches what people attach.
        courier: the platforms that deliver what it says.
        tool_secrets: variables for workers' commands, asked for at each one.
        others: workspaces of the other agents, which its workers must not see.
        index: when the vector table is written; None means as usual.
        prices: what models cost; None: what the program's own table says.

    Owns: everything of the agent. On leaving, running turns are cut and left to the next start (call
    `Agent.drain` first), branches and workers end and commit how they stand, then the stores close.
    Errors: ConfigError, StorageError.
    """
    config = settings()
    agent_id = AgentId(config.id)
    paths = instance.agent(agent_id, config.workspace)
    await trio.to_thread.run_sync(paths.create)
    gate = Gate(lambda: settings().permissions)
    containment = Containment(
        workspace=paths.workspace,
        instance_root=instance.root,
        data_dir=paths.data,
        tools_bin=instance.tools_bin,
        skills=(instance.skills, paths.skills),
        others=others,
        private=paths.workspace / FOLDER / PRIVATE,
        gate=gate,
        settings=lambda: settings().sandbox,
        tool_secrets=tool_secrets,
    )
    await trio.to_thread.run_sync(containment.prepare)
    skills = SkillShelf(instance.skills, paths.skills)
    await skills.reload()
    prompts = await load_prompts(bundled_prompts(), instance.prompts, paths.prompts, paths.root)
    async with (
        open_database(paths.database, package_file("storage", "sql"), clock) as database,
        open_memory(
            database,
            paths.vectors,
            embedder=embedder,
            events=events,
            agent_id=agent_id,
            clock=clock,
            index=index,
            links=LinkPolicy(
                related=config.cortex.association_similarity_threshold,
                updates=config.cortex.association_updates_threshold,
            ),
        ) as memory,
        open_briefing(database, events=events, agent_id=agent_id, clock=clock) as briefing,
        open_opencode(
            settings=settings,
            llm=llm,
            gate=gate,
            state=paths.data / "opencode",
            note=lambda record: usage.note(record),
            allow=lambda: budget.check(ProcessKind.WORKER),
        ) as opencode,
        open_browsers(
            containment=containment,
            gate=gate,
            settings=lambda: settings().browser,
            folder=paths.data / "browsers",
            clock=clock,
        ) as browsers,
    ):
        pause = Pause(database)
        await pause.load()
        budget = Budget(agent_id, settings=settings, clock=clock, events=events)
        usage = UsageDesk(
            UsageLog(database, clock),
            Settings(database),
            agent_id,
            prices=prices or PriceBook(),
            budget=budget,
            clock=clock,
        )
        await usage.open()
        own_model = BudgetedModel(MeasuredModel(models.for_agent(settings), events, agent_id), budget)
        captures = Captures(CaptureLog(database), clock, agent_id=agent_id, keep=lambda: settings().prompt_captures)
        model = WatchedModel(CapturingModel(own_model, captures))
        attachments = AttachmentDesk(
            paths, AttachmentLog(database, clock), fetcher, transcribe=transcribe_with(own_model, prompts)
        )
        conversations, rooms = Conversations(database, clock), Rooms(database, clock)
        delivery = Delivery(
            Outbox(database, clock), courier, agent_id=agent_id, events=events, clock=clock, outgoing=paths.outgoing
        )
        crossing = Crossing(rooms, conversations, delivery, agent_id=agent_id, events=events)
        forgetting = Forgetting(database, memory, clock, vectors=paths.vectors, log_folder=instance.logs)
        schedules = Schedules(
            Jobs(database, clock), crossing, prompts, agent_id=agent_id, settings=settings, events=events, clock=clock
        )
        workers = WorkerDesk(
            WorkerArchive(database, clock), WorkerLog(paths.logs), clock, mode=lambda: settings().worker_log_mode
        )
        mcp = McpServers(
            agent_id=agent_id,
            settings=lambda: settings().mcp,
            containment=containment,
            own_files=instance.root,
            probe=probe,
            tool_secrets=tool_secrets,
            prompts=prompts,
            tree=tree,
            clock=clock,
        )
        parts = AgentParts(
            id=agent_id,
            settings=settings,
            paths=paths,
            model=model,
            window=model.context_window,
            prompts=prompts,
            conversations=conversations,
            memoranda=Memoranda(database, clock),
            rooms=rooms,
            delivery=delivery,
            crossing=crossing,
            attachments=attachments,
            messages=MessageSearch(database, embedder, events=events, agent_id=agent_id, clock=clock),
            memory=memory,
            briefing=briefing,
            forgetting=forgetting,
            schedules=schedules,
            workers=workers,
            gate=gate,
            containment=containment,
            browsers=browsers,
            probe=probe,
            fetcher=fetcher,
            skills=skills,
            mcp=mcp,
            opencode=opencode,
            pause=pause,
            events=events,
            tree=tree,
            clock=clock,
            quiet=trio.CapacityLimiter(QUIET_RUNS),
        )
        node = tree.add(NodeKind.AGENT, agent_id, parent=parent, node_id=f"agent:{agent_id}", agent_id=agent_id)
        node.state = NodeState.RUNNING
        try:
            async with trio.open_nursery() as upkeep:
                async with trio.open_nursery() as channels:
                    live = Channels(parts, node, channels)
                    forgetting.let_go = live.let_go
                    crossing.inject = live.said
                    forgetting.drop_files = attachments.forget
                    forgetting.drop_worker_files = workers.forget_conversations
                    forgetting.drop_captures = captures.clear
                    cortex = Cortex(parts, database, model, node)
                    ingestion = Ingestion(
                        parts,
                        IngestionLog(database, clock),
                        is_demo=lambda: first_model(ProcessKind.BRANCH, settings(), llm()).startswith("demo/"),
                    )
                    agent = Agent(
                        parts,
                        live,
                        usage,
                        llm=llm,
                        cortex=cortex,
                        cortex_chat=CortexChat(parts, CortexThreads(database, clock), node, channels),
                        ingestion=ingestion,
                        memory_views=MemoryViews(database, clock),
                        transfer=MemoryTransfer(database, memory, embedder, clock),
                        captures=captures,
                        activity=Activity(database, clock),
                    )
                    for service in (usage.run, captures.run, forgetting.run, parts.messages.run, cortex.run):
                        upkeep.start_soon(service)
                    upkeep.start_soon(ingestion.run, node)
                    upkeep.start_soon(workers.listen, events, agent_id)
                    upkeep.start_soon(mcp.run, node)
                    await upkeep.start(delivery.run)
                    schedules.accept, schedules.channels = agent.accept, live
                    schedules.obstacle = budget.obstacle
                    await schedules.close_stale()
                    if pause.is_on:
                        schedules.scheduler.pause()
                    await agent.recover()
                    upkeep.start_soon(opencode.sweep)
                    upkeep.start_soon(schedules.run)
                    yield agent
                    channels.cancel_scope.cancel()
                upkeep.cancel_scope.cancel()
        finally:
            tree.remove(node)
