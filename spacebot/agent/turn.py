"""One turn of a channel: what waits goes in, what is said comes out, the ledger knows.

Flow:   begin -> gather -> run the engine -> deliver what it said -> close -> history
Floor:  agent
Source: process spec 4.4 to 4.12; the seed's order of a system prompt, with what changes put last (P39)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from spacebot.agent.announcing import announce
from spacebot.agent.engine import Ending, Engine, EngineResult
from spacebot.agent.history import Entry
from spacebot.agent.pacing import Work
from spacebot.agent.parts import AgentParts
from spacebot.agent.presence import Stage
from spacebot.agent.render import neutral, one_line, place_of, render_batch, render_message
from spacebot.agent.scheduled import PLATFORM as SCHEDULED
from spacebot.agent.status import StatusBlock
from spacebot.agent.streaming import ReplyReader
from spacebot.agent.surroundings import Surroundings
from spacebot.base.clock import format_local, monotonic_s
from spacebot.base.errors import ModelError, StorageError, ToolError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId, MessageId, TurnId, platform_of
from spacebot.base.redaction import scrub
from spacebot.base.text import cut_bytes, preview
from spacebot.base.tree import Node, NodeState, Outcome
from spacebot.conversations.records import ChannelRecord, LoggedMessage, PendingResult, TurnState, Undelivered
from spacebot.llm.complexity import Complexity, Tier, classify
from spacebot.llm.history import estimate_tokens
from spacebot.llm.messages import (
    ArgumentsDelta,
    ModelMessage,
    ProcessKind,
    Restart,
    Role,
    StreamDelta,
    SystemBlock,
    Text,
)
from spacebot.memory.types import Provenance
from spacebot.messaging.adapter import Traits
from spacebot.messaging.codec import Extra, to_json
from spacebot.messaging.messages import OutboundFile, OutboundKind, Rich
from spacebot.tools.channel import React, Reply, Skip, check_outgoing, content_of, is_tool_syntax
from spacebot.tools.contract import Tool
from spacebot.tools.cron import Cron
from spacebot.tools.delegation import Branch, Cancel, ChannelHandle, Route, spawn_worker_tool
from spacebot.tools.rich import MAX_FILE_BYTES, RichReply, SendFile
from spacebot.tools.rooms import SendElsewhere
from spacebot.tools.sandbox import Containment

log = logging.getLogger(__name__)

RETRIGGER_BUDGET = 3  # model calls of a turn that finished work caused; process spec 4.12
CORRECTIONS = 2  # times that a written-out tool call, or silence in a direct chat, is sent back
DELTA_S = 0.04  # pause between two pictures of a growing reply; faster is not readable
DELTA_CHARACTERS = 4000  # of a reply; a longer one is shown less often, since each picture is the whole text
RESULT_BYTES = 6000  # of one result in the prompt; a longer one is in the log and can be asked for
TELLING_TRIES = 5  # turns that may fail to tell a result before people get it as it is
NOTE_BYTES = 500  # of one result in the history afterwards
ERROR_CHARACTERS = 300  # of a provider's error in the line that people get


_IN_QUOTES = str.maketrans({'"': "'", "<": "‹", ">": "›"})


def bridged(history: Sequence[ModelMessage], prompt: ModelMessage, bridge: str) -> list[ModelMessage]:
    """History and a new prompt, with a line of the assistant's between two user messages in a row (P41).

    Without it both would melt into one message, and some models answer such a one with nothing. The line is in
    the request only.
    """
    if history and history[-1].role is Role.USER:
        return [*history, ModelMessage.assistant(bridge), prompt]
    return [*history, prompt]


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What a turn leaves to its channel: new history, and results that nobody was told."""

    history: tuple[Entry, ...]
    untold: tuple[PendingResult, ...]
    state: TurnState


class Turn:
    """One turn; made by the channel, run once."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        channel: ChannelHandle,
        channel_id: ConversationId,
        work: Work,
        *,
        history: Sequence[ModelMessage],
        status: StatusBlock,
        provenance: Provenance,
        surroundings: Surroundings,
        may_go_elsewhere: bool,
        previous_tier: Tier | None = None,
    ) -> None:
        self._parts = parts
        self._node = node
        self._channel = channel
        self._channel_id = channel_id
        self._work = work
        self._history = history
        self._status = status
        self._provenance = provenance
        self._surroundings = surroundings
        self._may_go_elsewhere = may_go_elsewhere  # strangers in direct chats may not, nor see where that would be
        self._previous_tier = previous_tier  # of what people said in the turn before
        self._replies: list[LoggedMessage] = []
        self._skipped: str | None = None
        self._reader: tuple[int, ReplyReader] | None = None
        self._shown_at = -1.0
        self._untold: list[Undelivered] = []  # what was said earlier and nobody got
        self._elsewhere: Sequence[ChannelRecord] = ()  # conversations that can be spoken in from here
        self._sent: list[str] = []  # names of files that went out
        self._files: tuple[str, ...] = ()  # a line for each file that came
        self.id = TurnId(node.id)
        self.complexity: Complexity | None = None  # of what people said, where that chooses the model
        self.prompt: ModelMessage | None = None  # what this turn asks; branches see it
        self.has_begun = False  # its row is on disk
        self.has_spawned = False  # it has set something to work
        self.is_closed = False  # its end is on disk
        self.is_unwritten = False  # what it wanted to say could not be written down
        self.fixed_tokens = 0  # of its requests beside the history
        self.end: TurnEnd | None = None
        self._stage = Stage(parts.delivery, channel_id, self.reply_to)

    @property
    def reply_to(self) -> MessageId | None:
        """The message that answers are tied to: the last one, or the one that the finished work was for."""
        if self._work.messages:
            return self._work.messages[-1].id
        return next((result.reply_to for result in self._work.results if result.reply_to), None)

    async def run(self) -> Outcome:
        """Take the turn. Errors are dealt with here; people get a line about those that concern them."""
        cause = "results" if self._work.is_retrigger else "messages"
        await self._parts.conversations.begin_turn(
            self.id, self._channel_id, cause, [journalled.id for journalled in self._work.messages]
        )
        self.has_begun = True
        self._emit(EventKind.TYPING_STATE, is_typing=True)
        try:
            await self._stage.enter(self._work.messages[-1].message if self._work.messages else None)
            state, detail, notice = await self._talk()
        except StorageError:
            self.is_unwritten = True
            raise
        finally:
            self._stage.rest()
        if state is TurnState.FAILED and self._work.is_retrigger and self._work.failures + 1 >= TELLING_TRIES:
            notice = self._plain_words(detail)
        return await self._close(state, detail, notice)

    def _plain_words(self, reason: str | None) -> str:
        """Finished work as it is, for people, when no model can be brought to tell it."""
        lines = [
            f"{preview(result.description, 120)} ({result.state}): {cut_bytes(result.text, NOTE_BYTES)}"
            for result in self._work.results
        ]
        return scrub("\n".join([f"This is finished, but I could not put it into words ({reason}):", *lines]))

    async def _talk(self) -> tuple[TurnState, str | None, str | None]:
        """Run the engine and deliver; returns the turn's end, the reason, and a line for people if one is due."""
        try:
            result = await self._run_engine()
        except ModelError as error:
            log.warning("turn failed", extra={"kv": {"channel": self._channel_id, "error": scrub(str(error))}})
            reason = preview(scrub(str(error)), ERROR_CHARACTERS)
            notice = None if self._replies or self._work.is_retrigger else f"Sorry, I could not answer: {reason}"
            return (TurnState.DONE if self._replies else TurnState.FAILED), reason, notice
        if self._replies:
            return TurnState.DONE, None, None
        if self._skipped is not None:
            return TurnState.SKIPPED, self._skipped or "nothing to say", None
        if words := content_of(result.text) if is_tool_syntax(result.text) else result.text:
            try:
                check_outgoing(words)
            except ToolError as error:
                return TurnState.FAILED, str(error), "Sorry, I could not answer: my answer held something secret."
            await self.reply(words)
            return TurnState.DONE, None, None
        if self._work.is_retrigger:  # nobody was told, so the results are kept for another try
            return TurnState.FAILED, "nothing was said about the finished work", None
        if result.ending is Ending.BUDGET:
            reason = f"no answer within {self._parts.settings().max_turns} model calls"
            return TurnState.FAILED, reason, f"Sorry, I could not finish that: {reason}."
        if self._owes_answer(result):
            return TurnState.FAILED, "the model gave no answer", "Sorry, the model gave no answer. Please ask again."
        return TurnState.SKIPPED, "the model had nothing to say", None

    async def _run_engine(self) -> EngineResult:
        parts = self._parts
        if self._stage.adapter_key is not None:
            self._untold = await parts.delivery.outbox.untold(self._channel_id)
            if self._may_go_elsewhere:
                self._elsewhere = await parts.crossing.reachable(self._channel_id, self._provenance.user_id)
        tools = self._tools()
        files = await parts.attachments.describe(self._work.messages, parts.delivery.courier)
        self._files = files.notes
        self.complexity = self._score()
        self.prompt = ModelMessage(Role.USER, (*files.parts, Text(await self._render_prompt())))
        text, is_stable = parts.prompts.render_stable("CHANNEL", **await self._volatile_for_channel())
        system = [SystemBlock(text, is_stable)]
        if (key := self._stage.adapter_key) is not None and (target := self._stage.target) is not None:
            system.append(SystemBlock(await self._surroundings.render(key, target), True))
        engine = Engine(
            model=parts.model,
            kind=ProcessKind.CHANNEL,
            node=self._node,
            events=parts.events,
            system=tuple(system),
            tools=tools,
            specs=tuple(parts.prompts.tool_spec(tool) for tool in tools.values()),
            window=lambda: parts.window(ProcessKind.CHANNEL),
            overflow_note=parts.prompts.render("fragments/overflow"),
            complexity=self.complexity,
        )
        self.fixed_tokens = estimate_tokens((self.prompt,), engine.system, engine.specs)
        budget = RETRIGGER_BUDGET if self._work.is_retrigger else parts.settings().max_turns
        messages = bridged(self._history, self.prompt, parts.prompts.render("fragments/bridge"))
        result = await engine.run(messages, budget=budget, on_delta=self._on_delta, on_step=self._next_step)
        for _ in range(CORRECTIONS):
            fragment = self._correction(result)
            if fragment is None:
                break
            messages.append(ModelMessage.user(parts.prompts.render(fragment)))
            result = await engine.run(messages, budget=2, on_delta=self._on_delta, on_step=self._next_step)
        return result

    def _score(self) -> Complexity | None:
        """How hard what people said is; None where that decides nothing, or nobody has said anything."""
        scored = self._parts.settings().routing.prompt_routing
        if not scored.enabled or platform_of(self._channel_id) == SCHEDULED:
            return None
        said = [journalled.message for journalled in self._work.messages]
        return classify(
            scored,
            [message.text for message in said],
            has_attachments=any(message.attachments for message in said),
            previous=self._previous_tier,
        )

    def _correction(self, result: EngineResult) -> str | None:
        """The prompt that sends an ending back; None when it may stand."""
        if result.ending is not Ending.TEXT or self._replies:
            return None
        if is_tool_syntax(result.text):
            return "fragments/tool_syntax"
        return "fragments/no_answer" if self._owes_answer(result) else None

    def _owes_answer(self, result: EngineResult) -> bool:
        """Whether somebody in a direct chat would wait for nothing: no word, and nothing set to work."""
        is_mute = not result.text and not result.calls and self._skipped is None
        return is_mute and self._provenance.is_direct and not self._work.is_retrigger

    def _tools(self) -> dict[str, Tool]:
        tools: list[Tool] = [
            RichReply(self) if self._stage.adapter_key is not None else Reply(self),
            Branch(self._channel),
            spawn_worker_tool(self._channel),
            Route(self._channel),
            Cancel(self._channel),
            Skip(self),
        ]
        key = self._stage.adapter_key
        traits = self._parts.delivery.courier.traits(key) if key is not None else None
        if self._work.messages and (traits is None or traits.can_react):
            tools.append(React(self))
        if max_bytes := self._largest_file(traits):
            outgoing = self._parts.paths.outgoing
            tools.append(SendFile(self, containment=self._view(), outgoing=outgoing, max_bytes=max_bytes))
        desk = self._parts.schedules.desk(self._channel_id, self._provenance, may_go_elsewhere=self._may_go_elsewhere)
        tools.append(Cron(desk))
        if self._elsewhere:
            tools.append(SendElsewhere(self))
        return {tool.name: tool for tool in tools}

    def _largest_file(self, traits: Traits | None) -> int:
        """Bytes that a file may have that is sent here; 0 where none can be sent."""
        if traits is not None:
            return traits.max_file_bytes
        is_read = self._stage.adapter_key is None and platform_of(self._channel_id) != SCHEDULED
        return MAX_FILE_BYTES if is_read else 0  # whoever reads the log fetches the copy

    async def _render_prompt(self) -> str:
        """The user message of this turn: the moment, finished work, what people said."""
        parts, messages = self._parts, self._work.messages
        now = parts.clock.now()
        coalesced = None
        if len(messages) > 1:
            span = messages[-1].message.sent_at - messages[0].message.sent_at
            people = len({journalled.message.author.id for journalled in messages})
            coalesced = {"count": len(messages), "people": people, "seconds": f"{span.total_seconds():.1f}"}
        own_block = not parts.prompts.uses("CHANNEL", "memory_bulletin")
        return parts.prompts.render(
            "fragments/turn",
            current_time=f"{format_local(now, parts.zone)}; UTC {now:%Y-%m-%d %H:%M:%S}",
            place=place_of(messages[-1].message) if messages else f"({self._channel_id})",
            coalesced=coalesced,
            memory_bulletin=await self._bulletin() if own_block else "",
            status_block=self._status_text(),
            elsewhere=[
                one_line(f"{preview(channel.display_name or 'unnamed', 60)} ({channel.id})")
                for channel in self._elsewhere
            ],
            undelivered=[
                {"text": one_line(preview(lost.text, 120)), "reason": one_line(lost.reason)} for lost in self._untold
            ],
            results=[
                {
                    "kind": result.process_kind,
                    "id": result.process_id,
                    "state": str(result.state),
                    "about": preview(result.description, 200).translate(_IN_QUOTES),
                    "text": neutral(cut_bytes(result.text, RESULT_BYTES)),
                }
                for result in self._work.results
            ],
            text=render_batch(messages, parts.zone),
        )

    async def _volatile_for_channel(self) -> dict[str, str]:
        """Values for templates of the owner's that mention them; ours keep the system prompt free of them."""
        values = {
            "workspace_dir": str(self._parts.paths.workspace),
            "skills_prompt": self._parts.skills_prompt("fragments/skills_channel"),
            "mcp_prompt": self._parts.mcp.prompt("fragments/mcp_channel"),
        }
        prompts = self._parts.prompts
        if prompts.uses("CHANNEL", "current_time"):
            values["current_time"] = format_local(self._parts.clock.now(), self._parts.zone)
        if prompts.uses("CHANNEL", "status_block"):
            values["status_block"] = self._status_text()
        if prompts.uses("CHANNEL", "memory_bulletin"):
            values["memory_bulletin"] = await self._bulletin()
        return values

    async def _bulletin(self) -> str:
        return neutral(await self._parts.bulletin(self._provenance.viewer))

    def _status_text(self) -> str:
        told_now = {result.process_id for result in self._work.results}
        going_on = self._status.for_model(without=told_now)
        if not any(going_on.values()):
            return ""
        return neutral(self._parts.prompts.render("fragments/status", **going_on))

    async def reply(self, text: str, rich: Rich | None = None) -> str:
        """Commit a text as said; with it the turn's messages are answered and its results told."""
        await self._stage.settle()
        row = await self._parts.conversations.record_reply(
            self.id,
            self._channel_id,
            text,
            reply_to=self.reply_to,
            result_ids=[result.id for result in self._work.results],
            extra=to_json(Extra(rich=rich)),
        )
        self._replies.append(row)
        self._announce(row)
        return row.id

    async def send_file(self, file: OutboundFile, caption: str) -> str:
        """Commit a file as sent. It does not count as the answer."""
        row = await self._parts.conversations.record_reply(
            self.id,
            self._channel_id,
            caption,
            kind=OutboundKind.FILE,
            reply_to=self.reply_to,
            extra=to_json(Extra(file=file)),
        )
        self._sent.append(file.filename)
        self._announce(row)
        return row.id

    def _view(self) -> Containment:
        """What this conversation sees of the agent's files: of direct chats only its own."""
        opened = [self._parts.attachments.folder_of(self._channel_id)]
        return self._parts.containment.view(self.id, opened=opened)

    async def may_send(self, parts: tuple[str, ...]) -> bool:
        """Whether a file of the workspace may be seen here: what came in another's direct chat may not."""
        return await self._parts.attachments.is_open_to(self._channel_id, parts)

    async def send_elsewhere(self, target: str, text: str) -> str:
        """Say something in another conversation; returns its name."""
        return await self._parts.crossing.say(target, text, here=self._channel_id, person=self._provenance.user_id)

    async def react(self, emoji: str) -> None:
        """Commit an emoji for the message that is answered."""
        row = await self._parts.conversations.record_reply(
            self.id, self._channel_id, emoji, kind=OutboundKind.REACTION, reply_to=self.reply_to
        )
        self._stage.recorded(row)
        self._emit(
            EventKind.REACTION,
            message_id=row.id,
            seq=row.seq,
            emoji=emoji,
            reply_to=row.reply_to,
            turn_id=self.id,
            created_at=row.created_at,
        )

    def skip(self, reason: str) -> None:
        """Note that nothing will be said."""
        self._skipped = reason

    async def _next_step(self) -> None:
        """Forget the reply that was being written: the next answer counts its calls anew."""
        self._reader = None

    def _on_delta(self, delta: StreamDelta) -> None:
        """Show a growing reply, some times a second."""
        if isinstance(delta, Restart):
            self._reader = None
        elif isinstance(delta, ArgumentsDelta) and delta.name == "reply":
            if self._reader is None or self._reader[0] != delta.index:
                self._reader = (delta.index, ReplyReader())
            reader, now = self._reader[1], monotonic_s()
            reader.add(delta.fragment)
            self._stage.show(reader.text)
            if now - self._shown_at >= DELTA_S * max(1.0, reader.size / DELTA_CHARACTERS) and (text := reader.text()):
                self._shown_at = now
                self._emit(EventKind.OUTBOUND_DELTA, turn_id=self.id, reply_to=self.reply_to, text=text)

    async def _close(self, state: TurnState, detail: str | None, notice: str | None) -> Outcome:
        results = self._work.results
        await self._stage.leave(keeps_draft=state is TurnState.INTERRUPTED or notice is not None)
        told = state in (TurnState.DONE, TurnState.SKIPPED) or (self._work.is_retrigger and notice is not None)
        end = TurnEnd(self._history_entries(), () if told else results, state)
        if self._replies:
            self.end = end  # what was said is on disk already, whatever becomes of the rest
        row = await self._parts.conversations.finish_turn(
            self.id,
            state,
            channel_id=self._channel_id,
            detail=detail,
            result_ids=[result.id for result in results] if told else (),
            notice=notice,
            reply_to=self.reply_to,
        )
        if row is not None:
            self._announce(row)
        if self._untold:
            await self._parts.delivery.outbox.mark_told([lost.message_id for lost in self._untold])
        self.end, self.is_closed = end, True
        self._status.mark_relayed({result.process_id for result in results} if told else set())
        self._emit(EventKind.TYPING_STATE, is_typing=False)
        self._emit(
            EventKind.TURN_ENDED,
            turn_id=self.id,
            outcome=str(state),
            last_seq=self._work.messages[-1].seq if self._work.messages else None,
            reason=detail,
        )
        return Outcome(NodeState.FAILED if state is TurnState.FAILED else NodeState.DONE, detail or "")

    @property
    def has_replied(self) -> bool:
        """Whether people got an answer."""
        return bool(self._replies)

    async def interrupt(self) -> None:
        """Close a turn that was cut: answered when something was said, else left to the next start."""
        if self._replies:
            await self._close(TurnState.DONE, None, None)
        else:
            await self._close(TurnState.INTERRUPTED, None, None)

    async def fail(self, outcome: Outcome) -> None:
        """Close a turn that broke or was cancelled; people get one line."""
        reason = preview(scrub(outcome.text), ERROR_CHARACTERS)
        await self._close(TurnState.FAILED, reason, None if self._work.is_retrigger else f"Sorry, I stopped: {reason}")

    def _history_entries(self) -> tuple[Entry, ...]:
        """What stays in the history: what people said, what came back, what was answered. No clock, no calls."""
        notes = [
            f'[result of {result.process_kind}, {result.state}, about "{preview(result.description, 120)}"] '
            f"{cut_bytes(result.text, NOTE_BYTES)}"
            for result in self._work.results
        ]
        entries = [Entry(ModelMessage.user("\n".join(notes)))]
        entries += [  # each by itself, so that it can be changed or taken back
            Entry(ModelMessage.user(render_message(journalled.message, self._parts.zone)), (journalled.seq,))
            for journalled in self._work.messages
        ]
        entries.append(Entry(ModelMessage.user("\n".join(self._files))))
        entries += [Entry(ModelMessage.assistant(f"[sent the file {name}]")) for name in self._sent]
        entries.extend(Entry(ModelMessage.assistant(row.content), (row.seq,)) for row in self._replies)
        return tuple(entry for entry in entries if entry.message.text)

    def _announce(self, row: LoggedMessage) -> None:
        self._stage.recorded(row)
        announce(self._parts.events, self._parts.id, row)

    def _emit(self, kind: EventKind, /, **fields: str | int | bool | None) -> None:
        self._parts.events.emit(kind, agent_id=self._parts.id, channel_id=self._channel_id, **fields)
