"""An agent: one personality with its own workspace, memory, log and channels.

Flow:   accept -> journal -> channel of the conversation (made by its first message)
Floor:  agent
Source: design 3 and 4, process spec 2 and 3
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from spacebot.agent.bulletin import open_briefing
from spacebot.agent.channel import Channel
from spacebot.agent.cortex import Cortex
from spacebot.agent.cortex_chat import CortexChat
from spacebot.agent.forgetting import Forgetting, ForgottenPerson, Traces
from spacebot.agent.ingestion import Ingestion
from spacebot.agent.liveness import WatchedModel
from spacebot.agent.pacing import RETRY_S
from spacebot.agent.parts import AgentParts, ModelSource
from spacebot.agent.profile import Profile
from spacebot.agent.prompts import load_prompts
from spacebot.agent.upkeep import maintenance_policy
from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, SpacebotError, StorageError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId, ConversationId
from spacebot.base.paths import InstancePaths, bundled_prompts, package_file
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree
from spacebot.config.model import AgentConfig, LlmConfig
from spacebot.conversations.cortex_threads import CortexThreads
from spacebot.conversations.ingestion_log import IngestionLog
from spacebot.conversations.log import Conversations
from spacebot.conversations.memoranda import Memoranda
from spacebot.conversations.message_search import MessageSearch
from spacebot.conversations.records import Accepted, BranchRun, Journalled, WorkerRun
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ProcessKind, Usage
from spacebot.llm.routing import model_names
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import IndexPolicy
from spacebot.memory.linking import LinkPolicy
from spacebot.memory.maintenance import MaintenancePolicy
from spacebot.memory.memory import AgentMemory, open_memory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.views import MemoryViews
from spacebot.messaging.messages import MAX_TEXT, InboundMessage
from spacebot.storage.database import Database, open_database
from spacebot.tools.sandbox import Backend, Containment

log = logging.getLogger(__name__)

USAGE_QUEUE = 1024  # completions whose cost waits to be written; further ones are dropped, with a warning
USAGE_BATCH = 256
QUIET_RUNS = 2  # persistence runs at once


class Agent:
    """One running agent; see `open_agent`."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        nursery: trio.Nursery,
        llm: Callable[[], LlmConfig],
        memory_views: MemoryViews,
        cortex: Cortex,
        transfer: MemoryTransfer,
        forgetting: Forgetting,
        database: Database,
    ) -> None:
        self._parts = parts
        self._memory_views = memory_views
        self._cortex = cortex
        self._transfer = transfer
        self._cortex_chat = CortexChat(parts, CortexThreads(database, parts.clock), node, nursery)
        self._forgetting = forgetting
        forgetting.let_go = self._let_go
        self._gates: dict[str, trio.Event] = {}  # conversations that nobody may hold in memory for a moment
        self._channel_left = trio.Event()
        self._node = node
        self._nursery = nursery
        self._llm = llm
        self._ingestion = Ingestion(parts, IngestionLog(database, parts.clock), is_demo=self._reads_with_demo)
        self._channels: dict[ConversationId, Channel] = {}
        self._is_draining = False
        self._usage_send, self._usage = trio.open_memory_channel[UsageRecord](USAGE_QUEUE)

    @property
    def id(self) -> AgentId:
        """The agent's name."""
        return self._parts.id

    @property
    def conversations(self) -> Conversations:
        """The durable log."""
        return self._parts.conversations

    @property
    def memory(self) -> AgentMemory:
        """What the agent knows."""
        return self._parts.memory

    @property
    def memory_views(self) -> MemoryViews:
        """What the agent knows, for its owner to look at."""
        return self._memory_views

    @property
    def maintenance_policy(self) -> MaintenancePolicy:
        """How its memory is looked after, as the live configuration has it."""
        return maintenance_policy(self._parts.settings().cortex)

    @property
    def cortex(self) -> Cortex:
        """What looks after memory and processes."""
        return self._cortex

    async def briefing(self) -> str:
        """The cortex's bulletin as conversations see it now; empty while there is none."""
        return await self._parts.briefing.text()

    async def profile(self) -> Profile | None:
        """The card that the agent shows of itself, once there is one."""
        return await self._cortex.profile()

    @property
    def cortex_chat(self) -> CortexChat:
        """The owner's console."""
        return self._cortex_chat

    @property
    def transfer(self) -> MemoryTransfer:
        """Export and import of what the agent knows."""
        return self._transfer

    async def traces_of(self, person: str) -> Traces:
        """How much there is of a person (platform:user). Errors: RefusedError, StorageError."""
        return await self._forgetting.traces_of(person)

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person (platform:user).

        Running turns, branches and workers of their conversations are cut; what others asked there is taken again.

        Errors: RefusedError when it names nobody; StorageError, then it is finished at the next start.
        """
        return await self._forgetting.forget_person(person, reason=reason)

    @property
    def ingestion(self) -> Ingestion:
        """The drop folder, whose documents become memories."""
        return self._ingestion

    def _reads_with_demo(self) -> bool:
        return model_names(ProcessKind.BRANCH, None, self._parts.settings().routing, self._llm())[0].startswith("demo/")

    @property
    def model_label(self) -> str:
        """The model that its channels talk with."""
        return model_names(ProcessKind.CHANNEL, None, self._parts.settings().routing, self._llm())[0]

    async def accept(self, message: InboundMessage) -> Accepted:
        """Journal a message and hand it to its channel.

        Errors: RefusedError when it is too long; StorageError, then it was not accepted.
        """
        message = _clean(message)
        if len(message.text) > MAX_TEXT:
            raise RefusedError(f"the message has {len(message.text)} characters; send at most {MAX_TEXT}, or a file")
        accepted = await self._parts.conversations.accept(message)
        if accepted.is_new:
            with trio.CancelScope(shield=True):  # it is on disk: now it reaches its channel, whoever gave up waiting
                self._emit_inbound(message, accepted)
                journalled = Journalled(id=accepted.message_id, seq=accepted.seq, message=message)
                (await self._channel(message.conversation_id, is_known=accepted.seq > 1)).accept(journalled)
        return accepted

    async def recover(self) -> None:
        """Take up what the last life left: unanswered messages, branches, workers, untold results."""
        recovery = await self._parts.conversations.recover()
        for journalled in recovery.messages:
            (await self._channel(journalled.message.conversation_id)).accept(journalled)
        await self._resume(recovery.branches, recovery.workers)
        for channel_id in recovery.channels_with_results:
            await self._channel(channel_id)  # which reads its results with its history
        for unsaved in await self._parts.memoranda.all_unsaved():
            await self._channel(unsaved.channel_id)  # which saves in time what is worth remembering
        log.log(
            logging.INFO if any((recovery.messages, recovery.branches, recovery.workers)) else logging.DEBUG,
            "agent recovered",
            extra=kv(
                agent=self.id,
                messages=len(recovery.messages),
                branches=len(recovery.branches),
                workers=len(recovery.workers),
                channels_with_results=len(recovery.channels_with_results),
            ),
        )

    async def _resume(self, branches: Sequence[BranchRun], workers: Sequence[WorkerRun]) -> None:
        """Set going again what was cut; one that cannot go on ends, and its channel is told."""
        for branch in branches:
            if self._parts.tree.get(branch.id) is None:
                await (await self._channel(branch.channel_id)).resume_branch(branch)
        for worker in workers:
            if self._parts.tree.get(worker.id) is not None:
                continue
            try:
                await (await self._channel(worker.channel_id)).resume_worker(worker)
            except SpacebotError as error:
                log.error("worker not taken up again", extra=kv(id=worker.id, error=str(error)))
                await self._parts.conversations.finish_worker(
                    worker, Outcome(NodeState.FAILED, str(error)), status="", transcript=None, tool_calls=0, tell=True
                )
                (await self._channel(worker.channel_id)).look_for_results()

    async def drain(self, patience_s: float) -> None:
        """Begin no new turn, let the running ones finish and memories be saved, for at most `patience_s` seconds."""
        self._is_draining = True
        with trio.move_on_after(patience_s), self._parts.events.subscribe(frozenset({EventKind.TURN_ENDED})) as ended:
            while any(channel.is_in_turn for channel in self._channels.values()):
                await ended.receive()
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:  # what is cut here is gone through at the next start
                for channel in tuple(self._channels.values()):
                    nursery.start_soon(channel.finish)

    async def reload_prompts(self) -> list[str]:
        """Read templates and identity files again. Errors: ConfigError; then the old ones stay."""
        return await self._parts.prompts.reload()

    def status_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        """What each live channel is doing."""
        return {channel_id: channel.status.to_json_object() for channel_id, channel in self._channels.items()}

    async def memory_stats(self) -> Mapping[str, Any]:
        """Counts of the memory store."""
        stats = await self._parts.memory.stats()
        return {"total": stats.total, "embedded": stats.embedded, "engine": stats.engine}

    def note_usage(self, record: UsageRecord) -> None:
        """Take a completion's cost; never waits."""
        try:
            self._usage_send.send_nowait(record)
        except trio.WouldBlock:
            log.warning("cost of a model call not recorded, too many wait", extra=kv(agent=self.id))

    async def _channel(self, conversation: ConversationId, *, is_known: bool = True) -> Channel:
        """The live channel of a conversation; it is made when there is none."""
        while (gate := self._gates.get(conversation)) is not None:
            await gate.wait()
        channel = self._channels.get(conversation)
        if channel is None or channel.is_retired:
            if channel is not None:
                self._parts.tree.remove(channel.node)  # it is just leaving
            node = self._parts.tree.add(
                NodeKind.CHANNEL,
                conversation,
                parent=self._node,
                node_id=f"channel:{self.id}:{conversation}",
                channel_id=conversation,
            )
            channel = Channel(
                self._parts, node, conversation, is_known=is_known, may_start=lambda: not self._is_draining
            )
            self._channels[conversation] = channel
            self._nursery.start_soon(self._run_channel, channel, node)
        return channel

    async def _run_channel(self, channel: Channel, node: Node) -> None:
        """Supervise a channel; one that breaks is made anew by its next message."""
        try:
            with node.cancel_scope:
                await channel.run()
        except Exception as error:  # boundary: channel
            log.error("channel failed", exc_info=error, extra=kv(agent=self.id, channel=channel.id))
        finally:
            node.state = NodeState.DONE
            self._parts.tree.remove(node)
            if self._channels.get(channel.id) is channel:
                del self._channels[channel.id]
            self._channel_left.set()
        if not channel.is_retired or channel.has_work:
            await trio.sleep(RETRY_S)
            await self._bring_back(channel.id)

    @asynccontextmanager
    async def _let_go(self, conversations: Collection[str]) -> AsyncIterator[None]:
        """End the channels of these conversations; while the block runs, new messages wait in the journal."""
        gate = trio.Event()
        self._gates.update(dict.fromkeys(conversations, gate))
        try:
            held = [channel for name in conversations if (channel := self._channels.get(ConversationId(name)))]
            for channel in held:
                channel.node.cancel_scope.cancel()
            while any(self._channels.get(channel.id) is channel for channel in held):
                self._channel_left = trio.Event()
                await self._channel_left.wait()
            yield
        finally:
            for name in conversations:
                del self._gates[name]
            gate.set()

    async def _bring_back(self, channel_id: ConversationId) -> None:
        """Make a broken channel anew; what it had taken is in the journal, what it had set to work in the runs."""
        try:
            branches, workers = await self._parts.conversations.open_runs(channel_id)
            await self._channel(channel_id)
            await self._resume(branches, workers)
        except StorageError as error:
            log.error("channel not brought back", extra=kv(agent=self.id, channel=channel_id, error=str(error)))

    async def _write_usage(self) -> None:
        """Write the cost of model calls, some at a time."""
        while True:
            records = [await self._usage.receive()]
            while len(records) < USAGE_BATCH:
                try:
                    records.append(self._usage.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await self._parts.conversations.record_usage([_entry(record) for record in records])
            except StorageError as error:
                log.error("cost of model calls not written", extra=kv(agent=self.id, error=str(error)))

    def _emit_inbound(self, message: InboundMessage, accepted: Accepted) -> None:
        self._parts.events.emit(
            EventKind.INBOUND_MESSAGE,
            agent_id=self.id,
            channel_id=message.conversation_id,
            message_id=accepted.message_id,
            seq=accepted.seq,
            sender_id=message.author.id,
            sender_name=message.author.name,
            text=message.text,
            created_at=self._parts.clock.text(),
        )


def _clean(message: InboundMessage) -> InboundMessage:
    """A message that UTF-8 can hold, wherever its texts go: rows, prompts, events."""
    reply_to = message.reply_to
    return replace(
        message,
        text=clean_unicode(message.text),
        author=replace(message.author, id=clean_unicode(message.author.id), name=clean_unicode(message.author.name)),
        reply_to=reply_to
        and replace(reply_to, author=clean_unicode(reply_to.author), text=clean_unicode(reply_to.text)),
        attachments=tuple(replace(a, filename=clean_unicode(a.filename)) for a in message.attachments),
        server_name=message.server_name and clean_unicode(message.server_name),
        channel_name=message.channel_name and clean_unicode(message.channel_name),
    )


def _entry(record: UsageRecord) -> tuple[str, str | None, str | None, str, Usage]:
    return str(record.process), record.node_id, record.channel_id, record.model, record.usage


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
    index: IndexPolicy | None = None,
) -> AsyncIterator[Agent]:
    """Open one agent: folders, database, memory, prompts; then take up what its last life left.

    Args:
        index: when the vector table is written; None means as usual.

    Owns: everything of the agent. On leaving, running turns are cut and left to the next start (call
    `Agent.drain` first), branches and workers end and commit how they stand, then the stores close.
    Errors: ConfigError, StorageError.
    """
    config = settings()
    agent_id = AgentId(config.id)
    paths = instance.agent(agent_id, config.workspace)
    await trio.to_thread.run_sync(paths.create)
    containment = Containment(
        workspace=paths.workspace,
        instance_root=instance.root,
        data_dir=paths.data,
        tools_bin=instance.tools_bin,
        settings=lambda: settings().sandbox,
    )
    await trio.to_thread.run_sync(containment.prepare)
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
    ):
        model = WatchedModel(models.for_agent(settings))
        parts = AgentParts(
            id=agent_id,
            settings=settings,
            paths=paths,
            model=model,
            window=model.context_window,
            prompts=prompts,
            conversations=Conversations(database, clock),
            memoranda=Memoranda(database, clock),
            messages=MessageSearch(database, embedder, events=events, agent_id=agent_id, clock=clock),
            memory=memory,
            briefing=briefing,
            containment=containment,
            probe=probe,
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
                    cortex = Cortex(parts, database, model, node)
                    logs = instance.logs
                    forgetting = Forgetting(database, memory, clock, vectors=paths.vectors, log_folder=logs)
                    transfer = MemoryTransfer(database, memory, embedder, clock)
                    views = MemoryViews(database, clock)
                    agent = Agent(parts, node, channels, llm, views, cortex, transfer, forgetting, database)
                    upkeep.start_soon(agent._write_usage)
                    upkeep.start_soon(forgetting.run)
                    upkeep.start_soon(parts.messages.run)
                    upkeep.start_soon(cortex.run)
                    upkeep.start_soon(agent.ingestion.run, node)
                    await agent.recover()
                    yield agent
                    channels.cancel_scope.cancel()
                upkeep.cancel_scope.cancel()
        finally:
            tree.remove(node)
