"""Tools over what the agent knows and what was said: memory_save, memory_recall, memory_delete, channel_recall.

Whose memories and transcripts a call may see is fixed when the tool is made, by the process that owns it;
nothing in the arguments can widen it.

Flow:    arguments -> AgentMemory or TranscriptSource -> JSON for the model
Floor:   tools
Source:  memory spec 8; tools spec 4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Protocol

from pydantic import Field, field_validator

from spacebot.base.clock import from_text, to_text
from spacebot.base.errors import RefusedError, StorageError, ToolError
from spacebot.base.ids import is_uuid
from spacebot.base.text import preview
from spacebot.base.tree import Node
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import (
    Hit,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    Query,
    RelationType,
    SavedMemory,
    SearchMode,
    SortBy,
    Viewer,
)
from spacebot.tools.contract import LenientInt, ToolArguments, ToolOutput

MOST_RESULTS = 50
MOST_MESSAGES = 100
NOTHING_FOUND = "No memories found."


class AssociationArguments(ToolArguments):
    """An edge from the new memory to a known one."""

    target_id: str
    relation_type: RelationType = RelationType.RELATED_TO
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5


class MemorySaveArguments(ToolArguments):
    """Arguments of memory_save."""

    content: str
    memory_type: MemoryType = MemoryType.FACT
    importance: Annotated[float | None, Field(ge=0, le=1)] = None
    source: str | None = None
    associations: tuple[AssociationArguments, ...] = ()


class MemorySave:
    """Keeps one memory; where it was learned comes from the process, not from the model."""

    name: ClassVar[str] = "memory_save"
    arguments: ClassVar[type[ToolArguments]] = MemorySaveArguments

    def __init__(self, *, memory: AgentMemory, provenance: Provenance) -> None:
        self._memory = memory
        self._provenance = provenance

    async def call(self, arguments: MemorySaveArguments, node: Node) -> ToolOutput:
        """Save, and say what else is known of it."""
        origin = self._provenance
        provenance = Provenance(
            channel_id=origin.channel_id,
            user_id=origin.user_id,
            message_id=origin.message_id,
            source=arguments.source or origin.source,
            is_direct=origin.is_direct,
        )
        wanted = NewMemory(
            content=arguments.content,
            memory_type=arguments.memory_type,
            importance=arguments.importance,
            provenance=provenance,
            associations=tuple(
                NewAssociation(target_id=edge.target_id, relation_type=edge.relation_type, weight=edge.weight)
                for edge in arguments.associations
            ),
        )
        try:
            saved = await self._memory.save(wanted)
        except (RefusedError, StorageError) as error:
            raise ToolError(f"not saved: {error}") from error
        return ToolOutput.of(
            memory_id=saved.memory.id,
            success=True,
            message=_describe(saved),
            skipped_associations=list(saved.skipped_associations) or None,
            auto_associations=[
                {"target_id": edge.target_id, "relation_type": edge.relation_type} for edge in saved.auto_associations
            ]
            or None,
            near_duplicates=[near.id for near in saved.near_duplicates] or None,
        )


class MemoryRecallArguments(ToolArguments):
    """Arguments of memory_recall."""

    query: str | None = None
    max_results: LenientInt = 10
    memory_type: MemoryType | None = None
    mode: SearchMode = SearchMode.HYBRID
    sort_by: SortBy = SortBy.RECENT


class MemoryRecall:
    """Finds memories that the process's conversation may see."""

    name: ClassVar[str] = "memory_recall"
    arguments: ClassVar[type[ToolArguments]] = MemoryRecallArguments

    def __init__(self, *, memory: AgentMemory, viewer: Viewer) -> None:
        self._memory = memory
        self._viewer = viewer

    async def call(self, arguments: MemoryRecallArguments, node: Node) -> ToolOutput:
        """Recall, best first."""
        query = Query(
            viewer=self._viewer,
            text=arguments.query or "",
            mode=arguments.mode,
            memory_type=arguments.memory_type,
            sort_by=arguments.sort_by,
            limit=min(max(arguments.max_results, 1), MOST_RESULTS),
        )
        try:
            result = await self._memory.recall(query)
        except (RefusedError, StorageError) as error:
            raise ToolError(str(error)) from error
        return ToolOutput.of(
            memories=[
                {
                    "id": hit.memory.id,
                    "content": hit.memory.content,
                    "memory_type": hit.memory.memory_type,
                    "importance": round(hit.memory.importance, 3),
                    "created_at": to_text(hit.memory.created_at),
                    "relevance_score": float(_relevance(hit.score)),
                }
                for hit in result.hits
            ],
            total_found=result.total_found,
            summary="\n".join(_line(hit) for hit in result.hits) or NOTHING_FOUND,
            note="; ".join(result.notes) or None,
        )


class MemoryDeleteArguments(ToolArguments):
    """Arguments of memory_delete."""

    memory_id: str
    reason: str | None = None


class MemoryDelete:
    """Hides one memory; nothing is destroyed."""

    name: ClassVar[str] = "memory_delete"
    arguments: ClassVar[type[ToolArguments]] = MemoryDeleteArguments

    def __init__(self, *, memory: AgentMemory, viewer: Viewer) -> None:
        self._memory = memory
        self._viewer = viewer

    async def call(self, arguments: MemoryDeleteArguments, node: Node) -> ToolOutput:
        """Forget; an unknown, invisible or already forgotten id is an answer, not an error."""
        wanted = arguments.memory_id.strip().lower()
        try:
            memory = (
                await self._memory.forget(wanted, arguments.reason, viewer=self._viewer) if is_uuid(wanted) else None
            )
        except StorageError as error:
            raise ToolError(str(error)) from error
        if memory is None:
            return ToolOutput.of(forgotten=False, message="There is no such memory; take the id from memory_recall.")
        return ToolOutput.of(
            forgotten=True,
            message=f"Forgot {memory.memory_type}: {preview(memory.content)}",
            reason=arguments.reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownChannel:
    """A conversation whose transcript may be read."""

    id: str
    name: str | None
    last_activity: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptLine:
    """One message of a transcript."""

    role: str
    sender: str | None
    content: str
    timestamp: datetime


class TranscriptSource(Protocol):
    """The durable log of conversations, as far as this tool needs it."""

    async def channels(self, *, visible_to: str | None) -> Sequence[KnownChannel]:
        """Active conversations, latest activity first.

        Args:
            visible_to: the conversation that asks. Direct chats other than this one must be left out;
                None (no conversation) leaves out all of them.
        """
        ...

    async def transcript(
        self,
        channel_id: str,
        *,
        limit: int,
        before: datetime | None,
        after: datetime | None,
        oldest_first: bool,
        visible_to: str | None,
    ) -> Sequence[TranscriptLine]:
        """Messages of a conversation in the order they were said.

        Args:
            limit: how many; the newest of the span, or the oldest when `oldest_first`.
            before, after: bounds, both exclusive.
            visible_to: as in `channels`; a direct chat of others gives nothing.
        """
        ...


class ChannelRecallArguments(ToolArguments):
    """Arguments of channel_recall."""

    channel: str | None = None
    limit: LenientInt = 50
    before: str | None = None
    after: str | None = None
    oldest_first: bool = False

    @field_validator("before", "after")
    @classmethod
    def _is_moment(cls, value: str | None) -> str | None:
        if value is not None:
            from_text(value)
        return value


class ChannelRecall:
    """Reads what was said in a conversation, this one included."""

    name: ClassVar[str] = "channel_recall"
    arguments: ClassVar[type[ToolArguments]] = ChannelRecallArguments

    def __init__(self, *, transcripts: TranscriptSource, visible_to: str | None) -> None:
        self._transcripts = transcripts
        self._visible_to = visible_to

    async def call(self, arguments: ChannelRecallArguments, node: Node) -> ToolOutput:
        """Give the transcript of the channel that the words mean, or the list of channels."""
        channels = await self._transcripts.channels(visible_to=self._visible_to)
        if not (arguments.channel or "").strip():
            return _channel_list(channels, None)
        channel = resolve_channel(channels, arguments.channel or "")
        if channel is None:
            return _channel_list(channels, f"No channel matches {preview(arguments.channel or '')!r}.")
        lines = await self._transcripts.transcript(
            channel.id,
            limit=min(max(arguments.limit, 1), MOST_MESSAGES),
            before=from_text(arguments.before) if arguments.before else None,
            after=from_text(arguments.after) if arguments.after else None,
            oldest_first=arguments.oldest_first,
            visible_to=self._visible_to,
        )
        return ToolOutput.of(
            action="transcript",
            channel_id=channel.id,
            channel_name=channel.name,
            messages=[
                {
                    "role": line.role,
                    "sender": line.sender,
                    "content": line.content,
                    "timestamp": to_text(line.timestamp),
                }
                for line in lines
            ],
            summary=f"{len(lines)} messages of {channel.name or channel.id}" if lines else "No messages there.",
        )


def resolve_channel(channels: Sequence[KnownChannel], wanted: str) -> KnownChannel | None:
    """The channel that a name means: exact name, then prefix, then part of the name, then part of the id."""
    needle = wanted.strip().lstrip("#").casefold()
    if not needle:
        return None
    names = [((channel.name or "").lstrip("#").casefold(), channel) for channel in channels]
    return next(
        (
            channel
            for fits in (
                lambda name, _: name == needle,
                lambda name, _: name.startswith(needle),
                lambda name, _: needle in name,
                lambda _, channel: needle in channel.id.casefold(),
            )
            for name, channel in names
            if fits(name, channel)
        ),
        None,
    )


def _channel_list(channels: Sequence[KnownChannel], note: str | None) -> ToolOutput:
    listed = "\n".join(
        f"{channel.name or channel.id} (last activity {to_text(channel.last_activity)})" for channel in channels
    )
    summary = listed or "No channels yet."
    return ToolOutput.of(
        action="list",
        available_channels=[
            {"channel_id": channel.id, "channel_name": channel.name, "last_activity": to_text(channel.last_activity)}
            for channel in channels
        ],
        summary=f"{note} Known channels:\n{summary}" if note else summary,
    )


def _describe(saved: SavedMemory) -> str:
    memory = saved.memory
    parts = [
        f"Saved as {memory.memory_type} with importance {memory.importance:.2f}."
        if saved.is_new
        else f"Already known as {memory.memory_type}; nothing was added."
    ]
    if not saved.is_embedded:
        parts.append("It is found by its words only until its vector can be computed.")
    if saved.skipped_associations:
        parts.append("Unknown association targets were left out.")
    if saved.near_duplicates:
        parts.append("Nearly the same is known already; delete what is out of date.")
    return " ".join(parts)


def _line(hit: Hit) -> str:
    memory = hit.memory
    return (
        f"{hit.rank}. [{memory.memory_type}, importance {memory.importance:.2f}, relevance {_relevance(hit.score)}] "
        f"{memory.id}: {preview(memory.content)}"
    )


def _relevance(score: float) -> str:
    """Three significant digits: fused scores are small, two decimals would hide them."""
    return f"{score:.3g}"
