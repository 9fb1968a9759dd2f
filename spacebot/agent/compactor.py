"""The compactor: keeps one channel's history small, beside the talk and never in its way.

After a turn the size is looked at. From the first two thresholds on a copy of the oldest talk is summarised in the
background and swapped in if the head has not changed meanwhile. From the last one on the oldest half gives way at
once to a line that says so, whatever else is running; its summary follows when a model has made one. A summary
that fails changes nothing. What is worth remembering is saved to memory by the same run.

Flow:    check (after a turn) -> copy -> transcript from the log -> model -> summary row -> swap
         check -> emergency -> omission -> later its summary
Floor:   agent
Source:  process spec 9, memory spec 10, design 7; pitfalls P2, P34, P44, P64, P-45, P-46
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import trio

from spacebot.agent.engines import engine_of
from spacebot.agent.history import Entry, EntryKind, LiveHistory
from spacebot.agent.parts import AgentParts
from spacebot.agent.render import render_transcript
from spacebot.agent.toolsets import harvest_tools
from spacebot.base.clock import format_local, monotonic_s
from spacebot.base.errors import ModelError, StorageError
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome
from spacebot.conversations.records import LoggedMessage, SummaryKind
from spacebot.llm.history import BYTES_PER_TOKEN
from spacebot.llm.messages import ModelMessage, ProcessKind
from spacebot.memory.types import Provenance

log = logging.getLogger(__name__)

BACKGROUND_SHARE, AGGRESSIVE_SHARE, EMERGENCY_SHARE = 0.3, 0.5, 0.5  # of the talk; process spec 9
SUMMARIES_SHARE = 0.2  # of the window; more than that is summarised again
TRANSCRIPT_SHARE = 0.6  # of the compactor's window; a longer transcript is gone through piece by piece
SUMMARY_SHARE = 0.12  # of the transcript, in words wanted
WORDS_LEAST, WORDS_MOST = 80, 800
BUDGET = 10  # model calls of a piece; process spec 9
TIME_S = 600.0  # for a whole run
RETRY_FIRST_S, RETRY_MOST_S = 60.0, 1800.0  # pause after a failure, doubled each time
ROWS = 5000  # of the log that one run reads at most


class Compactor:
    """One channel's compactor. `check` never waits; the work is a child of the channel."""

    def __init__(
        self,
        parts: AgentParts,
        node: Node,
        channel_id: ConversationId,
        history: LiveHistory,
        *,
        provenance: Callable[[], Provenance],
    ) -> None:
        """Take what is needed of the channel.

        Args:
            node: the channel's own.
            provenance: where what is remembered was learned; asked when a run begins.
        """
        self._parts = parts
        self._node = node
        self._channel_id = channel_id
        self._history = history
        self._provenance = provenance
        self._running: Node | None = None
        self._not_before = 0.0
        self._failures = 0
        self._is_noted = trio.Event()  # what was left out is on disk; its summary takes that row's place
        self._is_noted.set()

    @property
    def is_running(self) -> bool:
        """Whether a summary is being made."""
        return self._running is not None

    def check(self, nursery: trio.Nursery, *, fixed_tokens: int) -> None:
        """Look at the size after a turn and start what is due.

        Args:
            nursery: the channel's; owns what is started.
            fixed_tokens: what each request has beside the history: system prompt, tools, the turn's own message.
        """
        window = self._parts.window(ProcessKind.CHANNEL)
        thresholds = self._parts.settings().compaction
        usage = (self._history.tokens + fixed_tokens) / window
        limit = int(window * SUMMARIES_SHARE)
        if usage >= thresholds.emergency_threshold:
            self._give_way(nursery, limit)
        if self._running is not None or monotonic_s() < self._not_before:
            return
        if (omission := self._history.omission()) is not None and omission.seqs:
            covered: tuple[Entry, ...] = (omission,)
            kind = SummaryKind.EMERGENCY
        elif usage >= thresholds.aggressive_threshold:
            covered, kind = self._history.oldest(AGGRESSIVE_SHARE, summaries_limit=limit), SummaryKind.AGGRESSIVE
        elif usage >= thresholds.background_threshold:
            covered, kind = self._history.oldest(BACKGROUND_SHARE, summaries_limit=limit), SummaryKind.BACKGROUND
        else:
            return
        if covered:
            self._start(nursery, covered, kind)

    def _give_way(self, nursery: trio.Nursery, limit: int) -> None:
        """Let the oldest half go at once; a running summary of it comes too late and is stopped."""
        covered = self._history.oldest(EMERGENCY_SHARE, summaries_limit=limit)
        if not covered:
            return
        if self._running is not None:
            self._running.cancel("the history had to be shortened at once")
            self._running = None
        span = _span(covered)
        entry = self._omission_entry(span)
        self._history.replace(covered, entry)
        log.warning("history shortened at once", extra=kv(channel=self._channel_id, entries=len(covered)))
        self._tell(EventKind.COMPACTION_COMPLETED, SummaryKind.EMERGENCY, state=str(NodeState.DONE))
        if span:
            self._is_noted = trio.Event()
            nursery.start_soon(self._keep_omission, span, entry.message.text, self._is_noted)

    def _omission_entry(self, span: tuple[int, ...]) -> Entry:
        count = span[1] - span[0] + 1 if span else None
        text = self._parts.prompts.render("fragments/omission", count=count)
        return Entry(ModelMessage.user(text), span, EntryKind.OMISSION)

    async def _keep_omission(self, span: tuple[int, int], text: str, is_noted: trio.Event) -> None:
        """Write down what was left out, so that the next life shows the same."""
        try:
            await self._parts.memoranda.record_summary(
                self._channel_id, first_seq=span[0], last_seq=span[1], kind=SummaryKind.EMERGENCY, content=text
            )
        except StorageError as error:  # the next life reads those messages again, and shortens again
            log.error("omission not written", extra=kv(channel=self._channel_id, error=str(error)))
        finally:
            is_noted.set()

    def _start(self, nursery: trio.Nursery, covered: Sequence[Entry], kind: SummaryKind) -> None:
        node = self._parts.tree.add(NodeKind.COMPACTION, f"{kind}: {len(covered)} entries", parent=self._node)
        self._running = node
        nursery.start_soon(self._run, node, tuple(covered), kind)

    async def _run(self, node: Node, covered: tuple[Entry, ...], kind: SummaryKind) -> None:
        async def settle(outcome: Outcome) -> None:
            if self._running is node:
                self._running = None
            if outcome.state in (NodeState.FAILED, NodeState.TIMED_OUT):
                self._failures += 1
                self._not_before = monotonic_s() + min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (self._failures - 1))
                log.warning("history not summarised", extra=kv(channel=self._channel_id, reason=outcome.text))
            elif outcome.is_success:
                self._failures = 0
            self._tell(EventKind.COMPACTION_COMPLETED, kind, state=str(outcome.state))

        async def work() -> Outcome:
            with trio.move_on_after(TIME_S):
                return await self._summarise(node, covered, kind)
            return Outcome(NodeState.TIMED_OUT, f"no summary within {TIME_S:.0f} s")

        self._tell(EventKind.COMPACTION_STARTED, kind, entries=len(covered))
        await self._parts.tree.supervise(node, work, settle=settle)

    async def _summarise(self, node: Node, covered: tuple[Entry, ...], kind: SummaryKind) -> Outcome:
        span = _span(covered)
        try:
            summary = await self._summary_of(node, covered, span)
        except (ModelError, StorageError) as error:
            return Outcome(NodeState.FAILED, scrub(str(error)))
        if not summary:
            return Outcome(NodeState.FAILED, "the model gave no summary")
        text = self._parts.prompts.render("fragments/summary", summary=summary)
        await self._is_noted.wait()
        if span:
            try:
                await self._parts.memoranda.record_summary(
                    self._channel_id, first_seq=span[0], last_seq=span[1], kind=kind, content=text
                )
            except StorageError as error:
                return Outcome(NodeState.FAILED, str(error))
        if not self._history.replace(covered, Entry(ModelMessage.user(text), span, EntryKind.SUMMARY)):
            return Outcome(NodeState.PARTIAL, "the history changed meanwhile; the summary is kept in the log")
        return Outcome(NodeState.DONE, f"{len(covered)} entries summarised")

    async def _summary_of(self, node: Node, covered: tuple[Entry, ...], span: tuple[int, ...]) -> str:
        """Go through what is covered, piece by piece, and join what comes of it."""
        earlier = [entry.message.text for entry in covered if entry.kind is EntryKind.SUMMARY]
        rows: list[LoggedMessage] = []
        talk = _span([entry for entry in covered if entry.kind is not EntryKind.SUMMARY])
        if talk:
            rows = await self._parts.memoranda.spoken(
                self._channel_id, after_seq=talk[0] - 1, last_seq=talk[1], limit=ROWS
            )
        notes = [entry.message.text for entry in covered if entry.kind is EntryKind.TALK and not entry.seqs]
        if not (rows or earlier or notes):
            return ""
        limit = int(self._parts.window(ProcessKind.COMPACTOR) * TRANSCRIPT_SHARE) * BYTES_PER_TOKEN
        lines = [*earlier, *notes, *render_transcript(rows, self._parts.zone).splitlines()]
        pieces = _pieces(lines, limit)
        summaries = [await self._ask(node, piece, number, len(pieces)) for number, piece in enumerate(pieces, 1)]
        return "\n\n".join(text for text in summaries if text)

    async def _ask(self, node: Node, transcript: str, number: int, total: int) -> str:
        """Have one piece summarised; memories are saved on the way."""
        parts = self._parts
        provenance = replace(self._provenance(), source="compaction")
        people = await parts.conversations.participants(self._channel_id)
        tools, keeper = harvest_tools(parts, provenance, people)
        words = min(WORDS_MOST, max(WORDS_LEAST, int(len(transcript.split()) * SUMMARY_SHARE)))
        system = parts.prompts.render(
            "COMPACTOR", current_time=format_local(parts.clock.now(), parts.zone), max_words=words
        )
        engine = engine_of(parts, ProcessKind.COMPACTOR, node, system, tools)
        prompt = parts.prompts.render("fragments/compaction", transcript=transcript, number=number, total=total)
        messages = [ModelMessage.user(prompt)]
        await engine.run(messages, budget=BUDGET)
        summary = keeper.summary or next((m.text.strip() for m in messages[1:] if m.text.strip()), "")
        return cut_bytes(scrub(summary), max(2000, len(transcript.encode()) // 2))

    def _tell(self, event: EventKind, kind: SummaryKind, **fields: str | int) -> None:
        self._parts.events.emit(event, agent_id=self._parts.id, channel_id=self._channel_id, kind=str(kind), **fields)


def _span(entries: Sequence[Entry]) -> tuple[int, int] | tuple[()]:
    """The first and the last number that entries stand for; nothing when they have none."""
    seqs = [seq for entry in entries for seq in entry.seqs]
    return (min(seqs), max(seqs)) if seqs else ()


def _pieces(lines: Sequence[str], limit: int) -> list[str]:
    """Lines put together up to a size in bytes; a longer line is a piece of its own, which the engine shortens."""
    pieces: list[list[str]] = [[]]
    size = 0
    for line in lines:
        length = len(line.encode()) + 1
        if pieces[-1] and size + length > limit:
            pieces.append([])
            size = 0
        pieces[-1].append(line)
        size += length
    return ["\n".join(piece) for piece in pieces if piece]
