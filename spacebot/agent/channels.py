"""The live channels of one agent: made by their first message, brought back when they break, let go and drained.

Flow:   accepted message -> Channels.hand_over -> channel; the program's start -> recover; its end -> drain
Floor:  agent
Source: design 3, process spec 3
"""

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from spacebot.agent.channel import Channel
from spacebot.agent.pacing import RETRY_S
from spacebot.agent.parts import AgentParts
from spacebot.agent.status import StatusBlock
from spacebot.base.errors import SpacebotError, StorageError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import BranchRun, ChangedMessage, Journalled, LoggedMessage, WorkerRun

log = logging.getLogger(__name__)


class Channels:
    """The channels of one agent; their tasks live in the nursery given."""

    def __init__(self, parts: AgentParts, node: Node, nursery: trio.Nursery) -> None:
        self._parts = parts
        self._node = node
        self._nursery = nursery
        self._channels: dict[ConversationId, Channel] = {}
        self._gates: dict[str, trio.Event] = {}  # conversations that nobody may hold in memory for a moment
        self._channel_left = trio.Event()
        self._settling: dict[ConversationId, trio.Event] = {}  # of runs of schedules, whose end somebody waits for
        self._is_draining = False
        self._held: set[ConversationId] = set()  # with runs to be set going again when the agent is no longer paused

    async def hand_over(self, journalled: Journalled, *, observe: bool = False) -> None:
        """Give a message that is on disk to its channel; to be answered, or to be known only."""
        conversation = journalled.message.conversation_id
        if self._is_draining and conversation not in self._channels:
            return  # the next life finds it; by now there may be nobody left who could keep a new channel
        channel = await self._channel(conversation, is_known=journalled.seq > 1)
        if observe:
            channel.observe(journalled)
        else:
            channel.accept(journalled)

    def changed(self, message: ChangedMessage) -> None:
        """Let a live channel know that a message was edited or taken back."""
        if (channel := self._channels.get(message.row.channel_id)) is not None:
            channel.change(message)

    def said(self, row: LoggedMessage) -> None:
        """Let a live channel know what was said in it from elsewhere."""
        if (channel := self._channels.get(row.channel_id)) is not None:
            channel.note(row)

    def settling(self, conversation: ConversationId) -> trio.Event:
        """An event of the conversation's next end; to be asked for before its message is accepted."""
        event = self._settling.get(conversation)
        if event is None:
            event = self._settling[conversation] = trio.Event()
        return event

    def wind_up(self, conversation: ConversationId, reason: str) -> None:
        """End what a conversation has set to work, without a word."""
        if (channel := self._channels.get(conversation)) is not None:
            channel.wind_up(reason)

    def cut(self, conversation: ConversationId) -> None:
        """End a conversation as it stands, for good."""
        if (channel := self._channels.get(conversation)) is not None:
            channel.cut()
        elif (event := self._settling.pop(conversation, None)) is not None:
            event.set()

    def status_of(self, conversation: ConversationId) -> StatusBlock | None:
        """What a live channel is doing."""
        channel = self._channels.get(conversation)
        return None if channel is None else channel.status

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
                agent=self._parts.id,
                messages=len(recovery.messages),
                branches=len(recovery.branches),
                workers=len(recovery.workers),
                channels_with_results=len(recovery.channels_with_results),
            ),
        )

    async def _resume(self, branches: Sequence[BranchRun], workers: Sequence[WorkerRun]) -> None:
        """Set going again what was cut; one that cannot go on ends, and its channel is told."""
        if self._parts.pause.is_on:
            self._held.update(*({run.channel_id for run in runs} for runs in (branches, workers)))
            return
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

    async def go_on(self) -> None:
        """The agent is no longer paused: take up what waited. Errors: StorageError."""
        for channel in tuple(self._channels.values()):
            channel.look()
        while self._held:  # asked of the log anew: some may have been cancelled, or forgotten with their person
            channel_id = next(iter(self._held))
            branches, workers = await self._parts.conversations.open_runs(channel_id)
            self._held.discard(channel_id)
            await self._resume(branches, workers)
            if self._parts.pause.is_on:
                return

    def _may_start(self) -> bool:
        return not self._is_draining and not self._parts.pause.is_on

    async def drain(self, patience_s: float) -> None:
        """Begin no new turn, let the running ones finish and memories be saved, for at most `patience_s` seconds."""
        self._is_draining = True
        with trio.move_on_after(patience_s), self._parts.events.subscribe(frozenset({EventKind.TURN_ENDED})) as ended:
            while any(channel.is_in_turn for channel in self._channels.values()):
                await ended.receive()
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:  # what is cut here is gone through at the next start
                for channel in tuple(self._channels.values()) if not self._parts.pause.is_on else ():
                    nursery.start_soon(channel.finish)

    def status_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        """What each live channel is doing."""
        return {channel_id: channel.status.to_json_object() for channel_id, channel in self._channels.items()}

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
                node_id=f"channel:{self._parts.id}:{conversation}",
                channel_id=conversation,
            )
            channel = Channel(self._parts, node, conversation, is_known=is_known, may_start=self._may_start)
            self._channels[conversation] = channel
            self._nursery.start_soon(self._run_channel, channel, node)
        return channel

    async def _run_channel(self, channel: Channel, node: Node) -> None:
        """Supervise a channel; one that breaks is made anew by its next message."""
        try:
            with node.cancel_scope:
                await channel.run()
        except Exception as error:  # boundary: channel
            log.error("channel failed", exc_info=error, extra=kv(agent=self._parts.id, channel=channel.id))
        finally:
            node.state = NodeState.DONE
            self._parts.tree.remove(node)
            if self._channels.get(channel.id) is channel:
                del self._channels[channel.id]
            self._channel_left.set()
            if channel.is_retired and (event := self._settling.pop(channel.id, None)) is not None:
                event.set()
        if channel.is_discarded:
            return
        if not channel.is_retired or channel.has_work:
            await trio.sleep(RETRY_S)
            await self._bring_back(channel.id)

    @asynccontextmanager
    async def let_go(self, conversations: Collection[str]) -> AsyncIterator[None]:
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
            log.error("channel not brought back", extra=kv(agent=self._parts.id, channel=channel_id, error=str(error)))
