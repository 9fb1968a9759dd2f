"""One part of a document becomes memories: a model run of its own, with two tools and nothing to remember.

The part may have been read before and cut off after some saves. Then it is read again; the same words are kept once,
and near ones are found by the recall that the prompt asks for.

Flow:   Part -> prompt, the text framed as data -> engine -> Distilled
Floor:  agent
Source: memory spec 13.5 and its pitfalls P-14 (what counts as success) and P-33 (least tools, text is data)
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import PurePosixPath

import trio

from spacebot.agent.chunking import Chunk
from spacebot.agent.engine import Ending
from spacebot.agent.engines import engine_of
from spacebot.agent.parts import AgentParts
from spacebot.base.clock import format_local
from spacebot.base.errors import StorageError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.tree import Node
from spacebot.llm.messages import ModelMessage, ProcessKind
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import Provenance, Viewer
from spacebot.tools.contract import Tool, ToolOutput
from spacebot.tools.memory import MemoryRecall, MemorySave, MemorySaveArguments

BUDGET = 10  # model calls for one part; memory spec 13.5
PART_S = 900.0  # for one part; the calls have limits of their own, this is for tools and the sum of it all
_FRAME = re.compile(r"<(?=\s*/?\s*document\b)", re.IGNORECASE)
_DATED = re.compile(r"((?:19|20)\d{2})-(\d{2})-(\d{2})(?!\d)")
_ORIGINS = {
    "memory.md": "memory",
    "user.md": "user",
    "soul.md": "persona",
    "identity.md": "persona",
    "agents.md": "rules",
    "tools.md": "rules",
    "heartbeat.md": "rules",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One chunk of a document; `number` runs from 1."""

    filename: str
    number: int
    total: int
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What reading a part came to; `failure` is why it has to be read again."""

    saved: int = 0
    failure: str | None = None


class _Save(MemorySave):
    """Notes when a save failed for another reason than its words: then the part is not done, whatever is said."""

    broken: Exception | None = None

    def __init__(self, *, memory: AgentMemory, filename: str, happened_at: datetime | None) -> None:
        super().__init__(memory=memory, provenance=Provenance(source=f"ingest:{filename}"), happened_at=happened_at)

    async def call(self, arguments: MemorySaveArguments, node: Node) -> ToolOutput:
        try:
            return await super().call(arguments, node)
        except ToolError as error:
            if isinstance(error.__cause__, StorageError):
                self.broken = error.__cause__
            raise
        except Exception as error:
            self.broken = error
            raise


async def distil(parts: AgentParts, node: Node, part: Part) -> Distilled:
    """Read one part and save what is worth it.

    Errors: ModelError when no model answers; StorageError when what was found could not be saved; whatever else
        went wrong in a save.
    """
    save = _Save(memory=parts.memory, filename=part.filename, happened_at=moment_of(part.filename, parts))
    tools: tuple[Tool, ...] = (save, MemoryRecall(memory=parts.memory, viewer=Viewer()))
    engine = engine_of(parts, ProcessKind.BRANCH, node, parts.prompts.render("INGESTION"), tools)
    prompt = await _prompt(parts, part)
    with trio.move_on_after(PART_S):
        result = await engine.run([ModelMessage.user(prompt)], budget=BUDGET)
        if save.broken is not None:
            raise save.broken
        kept = len(save.saved) + len(save.known)
        if result.ending is Ending.BUDGET and not kept:
            return Distilled(failure=f"part {part.number}: {BUDGET} model calls were used up and nothing was saved")
        if not result.text and not result.calls:
            return Distilled(failure=f"part {part.number}: the model gave an empty answer")
        return Distilled(saved=len(save.saved))
    return Distilled(failure=f"part {part.number}: not read within {PART_S / 60:.0f} minutes")


async def _prompt(parts: AgentParts, part: Part) -> str:
    day = date_of(part.filename)
    return parts.prompts.render(
        "fragments/ingest",
        part=part.number,
        parts=part.total,
        current_time=format_local(parts.clock.now(), parts.zone),
        date=day.isoformat() if day else "",
        origin=origin_of(part.filename),
        document=_quoted(part.filename),
        heading=_quoted(scrub(part.chunk.heading)),
        text=neutral_document(await trio.to_thread.run_sync(scrub, part.chunk.text)),
    )


def neutral_document(text: str) -> str:
    """A text that cannot open or close the frame that it stands in."""
    return _FRAME.sub("‹", text)


def _quoted(text: str) -> str:
    return neutral_document(" ".join(text.split())).replace('"', "'").replace(">", "›")


def date_of(filename: str) -> date | None:
    """The day that a name begins with (`2026-01-05.md`, `2026-01-05-launch.md`), if it is one."""
    match = _DATED.match(PurePosixPath(filename).name)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def moment_of(filename: str, parts: AgentParts) -> datetime | None:
    """The moment under which memories of a dated note are kept: its noon, but never in the future."""
    day = date_of(filename)
    if day is None:
        return None
    noon = datetime.combine(day, time(12), parts.zone).astimezone()
    return min(noon, parts.clock.now())


def origin_of(filename: str) -> str:
    """What a file of another agent's workspace is, known by its name; empty for everything else."""
    path = PurePosixPath(filename)
    if path.suffix.lower() == ".md" and date_of(filename) is not None:
        return "daily"
    return _ORIGINS.get(path.name.lower(), "")
