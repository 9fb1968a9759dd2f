"""Tools over what the agent knows: memory_save, memory_recall, memory_delete.

Whose memories a call may see, and where a new one was learned, is fixed when the tool is made, by the process that
owns it; nothing in the arguments can widen or change it.

Flow:    arguments -> AgentMemory -> JSON for the model
Floor:   tools
Source:  memory spec 8; tools spec 4; pitfalls P-16, P-17, P-33, P-38
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from spacebot.base.clock import Clock, from_text, to_text
from spacebot.base.errors import NotFoundError, RefusedError, StorageError, ToolError
from spacebot.base.ids import ConversationId, MemoryId, is_uuid, platform_of
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, cut_bytes, preview, size_bytes
from spacebot.base.tree import Node
from spacebot.conversations.message_search import MessageSearch
from spacebot.conversations.records import Participant
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
from spacebot.tools.contract import RESULT_CAP, LenientInt, ToolArguments, ToolOutput

MOST_RESULTS = 50
NOTHING_FOUND = "No memories found."
SOURCE_BYTES = 200
NEAR_BYTES = 400  # of a near duplicate in the answer
LISTED_PEOPLE = 10
SIZES = (None, 8000, 4000, 2000, 1000, 400, 150)  # bytes of each text in a result, until the whole fits
DAY_S = 86_400
FIRST_YEAR = 1900  # rows compare moments as texts, whose years have four digits


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
    person: str | None = Field(None, description="whom it is about")
    happened_at: str | None = Field(None, description="ISO 8601, when it is told later")
    source: str | None = None
    associations: tuple[AssociationArguments, ...] = ()

    @field_validator("happened_at")
    @classmethod
    def _is_moment(cls, value: str | None) -> str | None:
        value = (value or "").strip() or None
        return value if value is None else to_text(parse_moment(value))


class MemorySave:
    """Keeps one memory; where it was learned comes from the process, not from the model.

    Args:
        people: who takes part in the conversation; a memory can be about one of them.
        happened_at: when things happened of which the model does not say when; None: now.

    `saved` are the new memories in the order of saving; `known` those whose words were there already.
    """

    name: ClassVar[str] = "memory_save"
    arguments: ClassVar[type[ToolArguments]] = MemorySaveArguments

    def __init__(
        self,
        *,
        memory: AgentMemory,
        provenance: Provenance,
        people: Sequence[Participant] = (),
        happened_at: datetime | None = None,
    ) -> None:
        self._memory = memory
        self._provenance = provenance
        self._people = people
        self._happened_at = happened_at
        self.saved: list[MemoryId] = []
        self.known: list[MemoryId] = []

    async def call(self, arguments: MemorySaveArguments, node: Node) -> ToolOutput:
        """Save, and say what else is known of it."""
        origin = self._provenance
        subject, about = self._subject((arguments.person or "").strip())
        wanted = NewMemory(
            content=arguments.content,
            memory_type=arguments.memory_type,
            importance=arguments.importance,
            provenance=Provenance(
                channel_id=origin.channel_id,
                user_id=origin.user_id,
                message_id=origin.message_id,
                source=origin.source or _source(arguments.source),
                is_direct=origin.is_direct,
            ),
            associations=tuple(
                NewAssociation(
                    target_id=edge.target_id.strip().lower(), relation_type=edge.relation_type, weight=edge.weight
                )
                for edge in arguments.associations
            ),
            subject=subject,
            created_at=from_text(arguments.happened_at) if arguments.happened_at else self._happened_at,
        )
        try:
            saved = await self._memory.save(wanted)
        except (RefusedError, StorageError) as error:
            raise ToolError(f"not saved: {error}") from error
        (self.saved if saved.is_new else self.known).append(saved.memory.id)
        return ToolOutput.of(
            memory_id=saved.memory.id,
            success=True,
            message=" ".join([*_describe(saved), *about]),
            person=saved.memory.subject,
            skipped_associations=[preview(target) for target in saved.skipped_associations] or None,
            auto_associations=[
                {"target_id": edge.target_id, "relation_type": edge.relation_type} for edge in saved.auto_associations
            ]
            or None,
            near_duplicates=await self._near(saved) or None,
        )

    def _subject(self, person: str) -> tuple[str | None, list[str]]:
        """Whom a memory is about, as platform:user, and what the model has to know about that."""
        needle = clean_unicode(person).lstrip("@").casefold()
        if not needle:
            return None, []
        names = [(known, known.name.lstrip("@").casefold()) for known in self._people]
        for fits in (
            [known.id for known, name in names if needle in (name, known.id.casefold())],
            [known.id for known, name in names if needle in name.split()],
        ):
            if len(set(fits)) > 1:
                return None, [f"Several people here are called {preview(person)!r}, so it was saved about nobody."]
            if fits and self._provenance.channel_id is not None:
                return f"{platform_of(ConversationId(self._provenance.channel_id))}:{fits[0]}", []
        here = ", ".join(preview(known.name, 40) for known in self._people[:LISTED_PEOPLE]) or "nobody"
        return None, [f"Nobody here is called {preview(person)!r}, so it was saved about nobody; here are: {here}."]

    async def _near(self, saved: SavedMemory) -> list[dict[str, Any]]:
        """What says nearly the same, with its words, so that the model can decide what is out of date."""
        near = []
        for neighbour in saved.near_duplicates:
            try:
                memory = await self._memory.get(neighbour.id, self._provenance.viewer)
            except NotFoundError:
                continue
            near.append(
                {
                    "id": memory.id,
                    "content": shortened(memory.content, NEAR_BYTES),
                    "similarity": round(neighbour.similarity, 3),
                }
            )
        return near


class MemoryRecallArguments(ToolArguments):
    """Arguments of memory_recall."""

    query: str | None = None
    max_results: LenientInt = 10
    memory_type: MemoryType | None = None
    mode: SearchMode = SearchMode.HYBRID
    sort_by: SortBy = SortBy.RECENT


class MemoryRecall:
    """Finds memories that the process's conversation may see.

    Args:
        messages: gives conversations their names; without it results do not say where they were learned.
        clock: for ages.
    """

    name: ClassVar[str] = "memory_recall"
    arguments: ClassVar[type[ToolArguments]] = MemoryRecallArguments

    def __init__(
        self,
        *,
        memory: AgentMemory,
        viewer: Viewer,
        messages: MessageSearch | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._memory = memory
        self._viewer = viewer
        self._messages = messages
        self._clock = clock or Clock()

    async def call(self, arguments: MemoryRecallArguments, node: Node) -> ToolOutput:
        """Recall, best first."""
        query = Query(
            viewer=self._viewer,
            text=clean_unicode(arguments.query or ""),
            mode=arguments.mode,
            memory_type=arguments.memory_type,
            sort_by=arguments.sort_by,
            limit=min(max(arguments.max_results, 1), MOST_RESULTS),
        )
        try:
            result = await self._memory.recall(query)
            names = await self._names(result.hits)
        except (RefusedError, StorageError) as error:
            raise ToolError(str(error)) from error
        now = self._clock.now()
        return within_cap(
            lambda most: ToolOutput.of(
                memories=[_found(hit, names, now, most) for hit in result.hits],
                total_found=result.total_found,
                summary="\n".join(_line(hit) for hit in result.hits) or NOTHING_FOUND,
                note="; ".join(result.notes) or None,
            )
        )

    async def _names(self, hits: Sequence[Hit]) -> Mapping[str, str]:
        """Names of the conversations that may be named to this viewer."""
        if self._messages is None or not any(hit.memory.channel_id for hit in hits):
            return {}
        channels = await self._messages.channels(self._viewer)
        return {channel.id: channel.display_name or channel.id for channel in channels if not channel.is_direct}


class MemoryDeleteArguments(ToolArguments):
    """Arguments of memory_delete."""

    memory_id: str
    reason: str | None = None


class MemoryDelete:
    """Hides one memory; nothing is destroyed, and the deed is on record."""

    name: ClassVar[str] = "memory_delete"
    arguments: ClassVar[type[ToolArguments]] = MemoryDeleteArguments

    def __init__(self, *, memory: AgentMemory, viewer: Viewer) -> None:
        self._memory = memory
        self._viewer = viewer

    async def call(self, arguments: MemoryDeleteArguments, node: Node) -> ToolOutput:
        """Forget; an unknown, invisible or already forgotten id is an answer, not an error."""
        wanted = arguments.memory_id.strip().lower()
        reason = scrub(clean_unicode((arguments.reason or "").strip())) or None
        try:
            memory = await self._memory.forget(wanted, reason, viewer=self._viewer) if is_uuid(wanted) else None
        except StorageError as error:
            raise ToolError(str(error)) from error
        if memory is None:
            return ToolOutput.of(forgotten=False, message="There is no such memory; take the id from memory_recall.")
        return ToolOutput.of(
            forgotten=True,
            message=f"Forgot {memory.memory_type}: {cut_bytes(preview(memory.content), 80)}",
            reason=reason,
        )


def parse_moment(text: str) -> datetime:
    """A moment as a model writes it; without a zone it counts as UTC.

    Errors: ValueError when there is none such.
    """
    try:
        to_text(moment := from_text(text))
    except OverflowError as error:
        raise ValueError("no such moment") from error
    if moment.year < FIRST_YEAR:
        raise ValueError(f"the year must be {FIRST_YEAR} or later")
    return moment


def _source(wanted: str | None) -> str | None:
    return cut_bytes(scrub(clean_unicode((wanted or "").strip())), SOURCE_BYTES) or None


def shortened(text: str, most: int | None) -> str:
    """A text of at most about `most` bytes, saying how long it is when something is left out."""
    if most is None or size_bytes(text) <= most:
        return text
    return f"{cut_bytes(text, most).rstrip()}… [{size_bytes(text)} bytes in all]"


def within_cap(build: Callable[[int | None], ToolOutput]) -> ToolOutput:
    """A result that fits what a model sees, with all its entries: the longest texts are cut until it does.

    Args:
        build: makes the result with texts of at most so many bytes each.
    """
    for most in SIZES:
        output = build(most)
        if size_bytes(output.text) <= RESULT_CAP:
            break
    return output


def _found(hit: Hit, names: Mapping[str, str], now: datetime, most: int | None) -> dict[str, Any]:
    memory = hit.memory
    learned = "a direct chat" if memory.is_private else names.get(memory.channel_id or "")
    return {
        "id": memory.id,
        "content": shortened(memory.content, most),
        "memory_type": memory.memory_type,
        "importance": round(memory.importance, 3),
        "created_at": to_text(memory.created_at),
        "age_days": max(0, int((now - memory.created_at).total_seconds() // DAY_S)),
        **({"about": memory.subject} if memory.subject else {}),
        **({"learned_in": learned} if learned else {}),
        "relevance_score": round(_relevance(hit), 3),
        **({"why": hit.why} if hit.why else {}),
    }


def _describe(saved: SavedMemory) -> list[str]:
    memory = saved.memory
    parts = [
        f"Saved as {memory.memory_type} with importance {memory.importance:.2f}."
        if saved.is_new
        else f"Already known as {memory.memory_type}; nothing was added."
    ]
    if not saved.is_embedded:
        parts.append("It is found by its words only until its vector can be computed.")
    if saved.skipped_associations:
        parts.append("Unknown association targets were left out; take ids from memory_recall.")
    if saved.near_duplicates:
        parts.append("Nearly the same is known already: delete what is out of date.")
    return parts


def _line(hit: Hit) -> str:
    memory = hit.memory
    return (
        f"{hit.rank}. [{memory.memory_type}, importance {memory.importance:.2f}, relevance {_relevance(hit):.2f}, "
        f"{memory.created_at:%Y-%m-%d}] {memory.id}: {preview(memory.content)}"
    )


def _relevance(hit: Hit) -> float:
    return min(1.0, max(0.0, hit.score))
