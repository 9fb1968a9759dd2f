"""An agent: one personality with its own workspace, memory, log and channels.

Flow:   accept -> journal -> channel of the conversation (made by its first message)
Floor:  agent
Source: design 3 and 4, process spec 2 and 3
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from spacebot.agent.announcing import announce
from spacebot.agent.captures import Captures
from spacebot.agent.channels import Channels
from spacebot.agent.commands import Entry, Situation, command_of, run_command
from spacebot.agent.cortex import Cortex
from spacebot.agent.cortex_chat import CortexChat
from spacebot.agent.delivery import Delivery
from spacebot.agent.forgetting import ForgottenPerson, Traces
from spacebot.agent.ingestion import Ingestion
from spacebot.agent.mcp import McpServers
from spacebot.agent.parts import AgentParts
from spacebot.agent.profile import Profile
from spacebot.agent.scheduled import Schedules
from spacebot.agent.skill_desk import SkillDesk
from spacebot.agent.upkeep import maintenance_policy
from spacebot.agent.usage import UsageDesk
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.base.errors import RefusedError
from spacebot.base.events import EventKind
from spacebot.base.ids import AgentId, ConversationId
from spacebot.base.text import clean_unicode
from spacebot.config.model import AgentConfig, LlmConfig
from spacebot.conversations.activity import Activity
from spacebot.conversations.log import Conversations
from spacebot.conversations.records import Accepted, Journalled, ResponseMode
from spacebot.llm.choice import choose
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ProcessKind
from spacebot.memory.maintenance import MaintenancePolicy
from spacebot.memory.memory import AgentMemory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.views import MemoryViews
from spacebot.messaging.adapter import Receipt
from spacebot.messaging.messages import MAX_TEXT, InboundMessage, Target
from spacebot.tools.skills import SkillShelf


class Agent:
    """One running agent; see `opening.py`."""

    def __init__(
        self,
        parts: AgentParts,
        channels: Channels,
        usage: UsageDesk,
        *,
        llm: Callable[[], LlmConfig],
        cortex: Cortex,
        cortex_chat: CortexChat,
        ingestion: Ingestion,
        memory_views: MemoryViews,
        transfer: MemoryTransfer,
        captures: Captures,
        activity: Activity,
    ) -> None:
        self._parts = parts
        self._channels = channels
        self._usage = usage
        self._llm = llm
        self._cortex = cortex
        self._cortex_chat = cortex_chat
        self._ingestion = ingestion
        self._memory_views = memory_views
        self._transfer = transfer
        self._captures = captures
        self._activity = activity
        self._forgetting = parts.forgetting

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

    @property
    def captures(self) -> Captures:
        """What its models saw, for its owner."""
        return self._captures

    async def traces_of(self, person: str) -> Traces:
        """How much there is of a person (platform:user). Errors: RefusedError, StorageError."""
        return await self._forgetting.traces_of(person)

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person (platform:user).

        Running turns, branches and workers of their conversations are cut; what others asked there is taken again.

        Errors: RefusedError when it names nobody; StorageError, then it is finished at the next start.
        """
        done = await self._forgetting.forget_person(person, reason=reason)
        await self._parts.delivery.sweep()
        return done

    @property
    def ingestion(self) -> Ingestion:
        """The drop folder, whose documents become memories."""
        return self._ingestion

    @property
    def schedules(self) -> Schedules:
        """What it does by itself, at set times."""
        return self._parts.schedules

    @property
    def model_label(self) -> str:
        """The model that its channels talk with."""
        return first_model(ProcessKind.CHANNEL, self._parts.settings(), self._llm())

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
                await self._channels.hand_over(journalled)
        return accepted

    async def take(self, message: InboundMessage, *, observe: bool, may_control: bool) -> Receipt:
        """Take a message that a platform brought: a command is answered at once, the rest is accepted or kept.

        Args:
            observe: keep it as context; nobody answers.
            may_control: its writer may change how the agent behaves in that room.

        Errors: RefusedError when it is too long; StorageError, then it was not taken.
        """
        message = _clean(message)
        if len(message.text) > MAX_TEXT:
            raise RefusedError(f"the message has {len(message.text)} characters, the most is {MAX_TEXT}")
        entry = command_of(message)
        if entry is not None and (not observe or message.command is not None):
            return await self._command(entry, message, may_control=may_control)
        if not observe and not await self._answers(message):
            observe = True
        if not observe:
            accepted = await self.accept(message)
            return Receipt.ACCEPTED if accepted.is_new else Receipt.DUPLICATE
        accepted = await self._parts.conversations.accept(message, observe=True)
        if not accepted.is_new:
            return Receipt.DUPLICATE
        with trio.CancelScope(shield=True):
            self._emit_inbound(message, accepted)
            journalled = Journalled(id=accepted.message_id, seq=accepted.seq, message=message)
            await self._channels.hand_over(journalled, observe=True)
        return Receipt.OBSERVED

    async def _answers(self, message: InboundMessage) -> bool:
        """Whether the mode of its room lets a message be answered."""
        if message.is_direct:
            return True
        mode = await self._parts.rooms.response_mode(message.conversation_id)
        is_named = message.mentions_bot or message.interaction is not None
        return mode is ResponseMode.ACTIVE or (mode is ResponseMode.MENTION_ONLY and is_named)

    async def _command(self, entry: Entry, message: InboundMessage, *, may_control: bool) -> Receipt:
        if await self._parts.rooms.is_known(message):
            return Receipt.DUPLICATE
        await self._parts.rooms.ensure(message)
        situation = Situation(
            parts=self._parts,
            message=message,
            status=self._channels.status_of(message.conversation_id),
            model_label=self.model_label,
        )
        answer = await run_command(entry, situation, may_control=may_control)
        recorded = await self._parts.rooms.answer_command(message, answer)
        if recorded is None:
            return Receipt.DUPLICATE
        accepted, row = recorded
        self._emit_inbound(message, accepted)
        announce(self._parts.events, self.id, row)
        self._parts.delivery.nudge(message.conversation_id)
        return Receipt.ACCEPTED

    async def change(self, conversation: ConversationId, platform_id: str, text: str | None) -> None:
        """A person changed a message, or (None) took it back. Errors: StorageError."""
        conversation = ConversationId(clean_unicode(conversation))
        changed = await self._parts.rooms.change(conversation, clean_unicode(platform_id), text)
        if changed is None:
            return
        self._channels.changed(changed)
        if text is None:
            await self._parts.attachments.forget([changed.row.id])
        self._parts.events.emit(
            EventKind.MESSAGE_CHANGED,
            agent_id=self.id,
            channel_id=conversation,
            message_id=changed.row.id,
            seq=changed.row.seq,
            text=changed.row.content,
            is_gone=text is None,
        )

    async def last_heard(self, adapter_key: str) -> Sequence[Target]:
        """The newest message of each conversation of an adapter that was alive lately. Errors: StorageError."""
        return await self._parts.rooms.last_heard(adapter_key)

    @property
    def delivery(self) -> Delivery:
        """What it sends to platforms."""
        return self._parts.delivery

    def take_over(self) -> None:
        """Have services that hold something of the configuration look at it; all others read it when they use it."""
        self._parts.schedules.reload()
        self._parts.mcp.reconcile()

    @property
    def is_paused(self) -> bool:
        """Whether it begins nothing by itself; what people say is kept and waits."""
        return self._parts.pause.is_on

    async def pause(self) -> None:
        """Begin nothing from now on, also after a restart; what runs goes on to its end. Errors: StorageError."""
        await self._parts.pause.put(is_on=True)
        self._parts.schedules.scheduler.pause()

    async def resume(self) -> None:
        """Take up what has waited. Errors: StorageError."""
        await self._parts.pause.put(is_on=False)
        await self._channels.go_on()
        self._parts.schedules.scheduler.resume()
        self._cortex.look()
        self._ingestion.look()

    async def recover(self) -> None:
        """Take up what the last life left: unanswered messages, branches, workers, untold results."""
        await self._channels.recover()

    async def drain(self, patience_s: float) -> None:
        """Begin no new turn, let the running ones finish and memories be saved, for at most `patience_s` seconds."""
        self._parts.schedules.scheduler.pause()
        await self._channels.drain(patience_s)

    @property
    def activity(self) -> Activity:
        """How much was said and done, in numbers."""
        return self._activity

    async def identity(self) -> Mapping[str, str]:
        """The texts that say who it is, as `soul`, `identity`, `user`. Errors: ConfigError."""
        return await self._parts.prompts.identity()

    async def write_identity(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        """Write some of these texts; they count at once. Returns all. Errors: RefusedError, ConfigError."""
        return await self._parts.prompts.write_identity(texts)

    async def warm_up_prompts(self) -> None:
        """Compile its templates, so that the first message does not wait for it. Errors: ConfigError."""
        await self._parts.prompts.warm_up()

    async def reload_prompts(self) -> list[str]:
        """Read templates and identity files again. Errors: ConfigError; then the old ones stay."""
        return await self._parts.prompts.reload()

    @property
    def skills(self) -> SkillShelf:
        """The recipes that its workers know."""
        return self._parts.skills

    @property
    def workers(self) -> WorkerDesk:
        """Its workers, live and ended, for its owner."""
        return self._parts.workers

    @property
    def skill_desk(self) -> SkillDesk:
        """What its owner does with them."""
        parts = self._parts
        return SkillDesk(parts.skills, parts.fetcher, parts.events, parts.clock)

    @property
    def mcp(self) -> McpServers:
        """The servers whose tools its workers have."""
        return self._parts.mcp

    def status_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        """What each live channel is doing."""
        return self._channels.status_blocks()

    @property
    def usage(self) -> UsageDesk:
        """What its model calls cost, and its budget."""
        return self._usage

    def note_usage(self, record: UsageRecord) -> None:
        """Take a completion's cost; never waits."""
        self._usage.note(record)

    async def memory_stats(self) -> Mapping[str, Any]:
        """Counts of the memory store."""
        stats = await self._parts.memory.stats()
        return {"total": stats.total, "embedded": stats.embedded, "engine": stats.engine}

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
        conversation_id=ConversationId(clean_unicode(message.conversation_id)),
        platform_id=message.platform_id and clean_unicode(message.platform_id),
        text=clean_unicode(message.text),
        author=replace(
            message.author,
            id=clean_unicode(message.author.id),
            name=clean_unicode(message.author.name),
            handle=message.author.handle and clean_unicode(message.author.handle),
        ),
        reply_to=reply_to
        and replace(reply_to, author=clean_unicode(reply_to.author), text=clean_unicode(reply_to.text)),
        attachments=tuple(replace(a, filename=clean_unicode(a.filename)) for a in message.attachments),
        server_name=message.server_name and clean_unicode(message.server_name),
        channel_name=message.channel_name and clean_unicode(message.channel_name),
    )


def first_model(kind: ProcessKind, settings: AgentConfig, llm: LlmConfig) -> str:
    """The model that a kind of process asks first."""
    return choose(kind, None, settings, llm).names[0]
