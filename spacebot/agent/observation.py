"""What the cortex concludes by comparing memories: observations across channels, and which pairs contradict.

Observations: at most once a day, and only when enough new shared memories came, one run of a model looks over
them, grouped by conversation, and may save a few of type observation. Private memories never take part: what the
run reads, recalls and saves is what anybody may know.

Contradictions: pairs of similar memories that say different things, ten in one question. Private memories of
different people, or private and shared ones, never stand in one question together.

Flow:    gather_news -> observe -> Engine with memory_recall and memory_save -> ids really saved
         batch_of -> (the cortex asks a model) -> parse_verdicts
Floor:   agent
Source:  memory spec 10 and D-19, the seeds' cortex that notices patterns across channels
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any

from spacebot.agent.bulletin import ANYBODY
from spacebot.agent.engines import engine_of
from spacebot.agent.parts import AgentParts
from spacebot.agent.render import neutral
from spacebot.base.clock import from_text, to_text
from spacebot.base.errors import NotFoundError, ToolError
from spacebot.base.ids import ConversationId, MemoryId, platform_of
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Node
from spacebot.llm.messages import ModelMessage, ProcessKind
from spacebot.memory.association import DoubtfulPair, Verdict
from spacebot.memory.types import Memory, MemoryType, Provenance, Query, SearchMode
from spacebot.storage.settings import Settings
from spacebot.tools.contract import Tool, ToolOutput
from spacebot.tools.memory import MemoryRecall, MemorySave, MemorySaveArguments

SOURCE = "cortex"
LEAST_NEWS = 30  # new shared memories below which nobody looks
MOST_NEWS = 200  # memories that one look is given, the newest
LINE_BYTES = 200
NEWS_BYTES = 24_000  # of all lines together
BUDGET = 8  # model calls of one look
MOST_SAVED = 5  # observations of one look
MOST_IMPORTANCE = 0.4
PAIRS = 10  # of memories in one question
PAIRS_READ = 50  # among which those that may stand together are chosen
PAIR_LINE_BYTES = 600
UNTIL_KEY, LOOKED_KEY = "cortex.observed_until", "cortex.observed_at"
_VERDICT = re.compile(r"\{[^{}]*\}")
_VERDICTS = {
    "contradicts": Verdict.CONTRADICTS,
    "updates": Verdict.UPDATES,
    "same": Verdict.NEITHER,
    "unrelated": Verdict.NEITHER,
    "neither": Verdict.NEITHER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far the looks have come; None before the first."""

    until: datetime | None = None  # created_at of the newest memory that was looked at
    looked_at: datetime | None = None


async def load_cursor(settings: Settings) -> Cursor:
    """The cursor as the last look left it. Errors: StorageError."""
    until, looked = await settings.get(UNTIL_KEY), await settings.get(LOOKED_KEY)
    return Cursor(until=from_text(until) if until else None, looked_at=from_text(looked) if looked else None)


async def save_cursor(settings: Settings, cursor: Cursor) -> None:
    """Keep the cursor. Errors: StorageError."""
    moments = {UNTIL_KEY: cursor.until, LOOKED_KEY: cursor.looked_at}
    await settings.set(**{key: to_text(moment) for key, moment in moments.items() if moment is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Shared memories that no look has seen, the newest first; never the cortex's own."""

    memories: tuple[Memory, ...] = field(default=())

    @property
    def newest(self) -> datetime | None:
        """The moment up to which a look at them has come."""
        return max((memory.created_at for memory in self.memories), default=None)


async def gather_news(parts: AgentParts, cursor: Cursor) -> News:
    """Read what came since the last look. Errors: StorageError."""
    query = Query(viewer=ANYBODY, mode=SearchMode.RECENT, limit=MOST_NEWS, counts_as_access=False)
    found = await parts.memory.recall(query)
    fresh = (hit.memory for hit in found.hits if hit.memory.source != SOURCE)
    return News(memories=tuple(m for m in fresh if cursor.until is None or m.created_at > cursor.until))


class SaveObservation(MemorySave):
    """`memory_save` that can only save observations: shared, of little weight, few."""

    def __init__(self, *, parts: AgentParts) -> None:
        super().__init__(memory=parts.memory, provenance=Provenance(source=SOURCE))

    async def call(self, arguments: MemorySaveArguments, node: Node) -> ToolOutput:
        """Save one observation, whatever type and weight were asked for. Errors: ToolError when there are enough."""
        if len(self.saved) >= MOST_SAVED:
            raise ToolError(f"{MOST_SAVED} observations are enough for today; end with one sentence")
        only = {
            "memory_type": MemoryType.OBSERVATION,
            "importance": None if arguments.importance is None else min(arguments.importance, MOST_IMPORTANCE),
            "source": SOURCE,
        }
        return await super().call(arguments.model_copy(update=only), node)


async def observe(parts: AgentParts, node: Node, news: News, cursor: Cursor) -> tuple[MemoryId, ...]:
    """Let a model look over the news; returns what was really saved.

    Errors: ModelError when no model answers.
    """
    save = SaveObservation(parts=parts)
    tools: tuple[Tool, ...] = (MemoryRecall(memory=parts.memory, viewer=ANYBODY), save)
    system = parts.prompts.render("CORTEX_OBSERVE")
    engine = engine_of(parts, ProcessKind.CORTEX, node, system, tools, task_type="observation")
    since = "the beginning" if cursor.looked_at is None else f"{cursor.looked_at.astimezone(parts.zone):%Y-%m-%d}"
    prompt = parts.prompts.render(
        "fragments/observations",
        count=len(news.memories),
        since=since,
        channels=_by_channel(news.memories, await _names(parts), parts.zone),
    )
    await engine.run([ModelMessage.user(prompt)], budget=BUDGET)
    if save.saved and await _is_any_gone(parts, news):
        for memory_id in save.saved:
            await parts.memory.delete(memory_id)
        return ()
    return tuple(save.saved)


async def _is_any_gone(parts: AgentParts, news: News) -> bool:
    """Whether something that was looked over has been forgotten since: what was made of it must not stay."""
    for memory in news.memories:
        try:
            await parts.memory.get(memory.id, ANYBODY)
        except NotFoundError:
            return True
    return False


async def _names(parts: AgentParts) -> dict[str, str]:
    """What people call the shared conversations."""
    return {
        record.id: f"{record.display_name} ({record.id})" if record.display_name else record.id
        for record in await parts.conversations.channels()
        if not record.is_direct
    }


def _by_channel(memories: Sequence[Memory], names: dict[str, str], zone: tzinfo | None) -> list[dict[str, Any]]:
    """The news as the template wants them: the busiest conversation first, its oldest memory first."""
    groups: dict[str | None, list[Memory]] = {}
    for memory in memories:
        groups.setdefault(memory.channel_id, []).append(memory)
    line_bytes = max(40, min(LINE_BYTES, NEWS_BYTES // max(1, len(memories))))
    return [
        {
            "name": neutral(names.get(channel, channel) if channel else "no conversation"),
            "count": len(group),
            "memories": [_line(memory, zone, line_bytes) for memory in reversed(group)],
        }
        for channel, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0] or ""))
    ]


def _line(memory: Memory, zone: tzinfo | None, limit: int) -> dict[str, str]:
    return {
        "id": memory.id,
        "day": f"{memory.created_at.astimezone(zone):%Y-%m-%d}",
        "type": str(memory.memory_type),
        "text": neutral(cut_bytes(" ".join(memory.content.split()), limit)),
    }


def batch_of(pairs: Sequence[DoubtfulPair]) -> list[DoubtfulPair]:
    """The pairs of one question: of the first pair's audience, in the order given."""
    if not pairs:
        return []
    audience = _audience(pairs[0])
    return [pair for pair in pairs if _audience(pair) == audience][:PAIRS]


def _audience(pair: DoubtfulPair) -> tuple[str | None, ...]:
    """Who may know both: everybody, or the one person, or those of one conversation."""
    audience: set[str] = set()
    for memory in (pair.newer, pair.older):
        if memory.is_private:
            channel = memory.channel_id or ""
            audience.add(f"{platform_of(ConversationId(channel))}:{memory.user_id}" if memory.user_id else channel)
    return tuple(sorted(audience))


def pairs_for_template(batch: Sequence[DoubtfulPair], zone: tzinfo | None) -> list[dict[str, Any]]:
    """The pairs as the template wants them, numbered from 1."""
    return [
        {
            "number": number,
            "older": _line(pair.older, zone, PAIR_LINE_BYTES),
            "newer": _line(pair.newer, zone, PAIR_LINE_BYTES),
        }
        for number, pair in enumerate(batch, start=1)
    ]


def parse_verdicts(text: str, count: int) -> dict[int, Verdict]:
    """Verdicts by number out of a model's answer; what cannot be read is left out.

    Understands an array of objects or one object, with text around it.
    """
    verdicts: dict[int, Verdict] = {}
    for found in _VERDICT.finditer(text):
        try:
            entry = json.loads(found.group())
            number, word = int(entry["pair"]), str(entry["verdict"]).strip().casefold()
        except (KeyError, TypeError, ValueError, RecursionError):
            continue
        if 1 <= number <= count and word in _VERDICTS:
            verdicts[number] = _VERDICTS[word]
    return verdicts
