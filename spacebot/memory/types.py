"""Values of the memory: records, edges, questions and answers.

A memory learned in a direct chat is private: it carries an owner, and every read names a viewer. Who may
see what is decided here once (`Viewer`) and enforced inside each query.

Floor:   memory; may import base
Source:  memory spec 1, 2, 7, 8; the owner rule is the remedy of its pitfall P-33
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from spacebot.base.ids import ConversationId, MemoryId, platform_of

CONTENT_LIMIT = 50_000  # UTF-8 bytes of one memory; memory spec 1.1
HIGH_IMPORTANCE = 0.8  # from here on a memory belongs into the prompt's block; memory spec 7.3


class MemoryType(StrEnum):
    """What kind of knowledge a memory is; the order is that of listings and schemas."""

    FACT = "fact"
    PREFERENCE = "preference"
    DECISION = "decision"
    IDENTITY = "identity"
    EVENT = "event"
    OBSERVATION = "observation"
    GOAL = "goal"
    TODO = "todo"


DEFAULT_IMPORTANCE: Mapping[MemoryType, float] = MappingProxyType(
    {
        MemoryType.IDENTITY: 1.0,
        MemoryType.GOAL: 0.9,
        MemoryType.DECISION: 0.8,
        MemoryType.TODO: 0.8,
        MemoryType.PREFERENCE: 0.7,
        MemoryType.FACT: 0.6,
        MemoryType.EVENT: 0.4,
        MemoryType.OBSERVATION: 0.3,
    }
)


class RelationType(StrEnum):
    """How two memories belong together; the source is the newer or asserting one."""

    RELATED_TO = "related_to"
    UPDATES = "updates"
    CONTRADICTS = "contradicts"
    CAUSED_BY = "caused_by"
    RESULT_OF = "result_of"
    PART_OF = "part_of"


RELATION_WEIGHT: Mapping[RelationType, float] = MappingProxyType(  # how far a walk trusts an edge; memory spec 2.2
    {
        RelationType.RELATED_TO: 1.0,
        RelationType.UPDATES: 1.5,
        RelationType.CONTRADICTS: 0.5,
        RelationType.CAUSED_BY: 1.3,
        RelationType.RESULT_OF: 1.3,
        RelationType.PART_OF: 0.8,
    }
)
WALKED_THROUGH = frozenset({RelationType.RELATED_TO, RelationType.PART_OF})  # other relations end a walk


class Origin(StrEnum):
    """Who made an edge."""

    LLM = "llm"
    AUTO = "auto"
    MERGE = "merge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """For whom memories are read; decides which private ones take part.

    Private memories are visible in the conversation they came from, and in direct chats of the same person
    on the same platform. A shared room never sees anybody's private memories.
    """

    channel_id: str | None = None
    user_id: str | None = None  # as the platform authenticated it; None when nobody vouches for it
    is_direct: bool = False
    sees_all: bool = False  # the owner's own tools and upkeep, never a conversation

    @property
    def owner(self) -> str | None:
        """The person whose private memories are visible beyond this conversation; None in shared rooms."""
        if not self.is_direct or not self.channel_id or not self.user_id:
            return None
        return f"{platform_of(ConversationId(self.channel_id))}:{self.user_id}"


EVERYTHING = Viewer(sees_all=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a memory was learned; filled in by the process, never by a model."""

    channel_id: str | None = None
    user_id: str | None = None
    message_id: str | None = None
    source: str | None = None  # free text: who or what it came from
    is_direct: bool = False

    @property
    def viewer(self) -> Viewer:
        """The viewer that a process of this conversation is."""
        return Viewer(channel_id=self.channel_id, user_id=self.user_id, is_direct=self.is_direct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One thing the agent knows."""

    id: MemoryId
    content: str
    memory_type: MemoryType
    importance: float  # 0..1, the effective value
    created_at: datetime
    updated_at: datetime
    last_accessed_at: datetime
    access_count: int = 0
    source: str | None = None
    channel_id: str | None = None
    user_id: str | None = None
    message_id: str | None = None
    subject: str | None = None  # the person whom it is about, as platform:user
    is_private: bool = False
    permanent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """An edge of the graph."""

    source_id: MemoryId
    target_id: MemoryId
    relation_type: RelationType = RelationType.RELATED_TO
    weight: float = 0.5
    origin: Origin = Origin.LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAssociation:
    """An edge wanted from a memory that is about to be saved."""

    target_id: str
    relation_type: RelationType = RelationType.RELATED_TO
    weight: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """What to remember."""

    content: str
    memory_type: MemoryType = MemoryType.FACT
    importance: float | None = None  # None: the type's default
    provenance: Provenance = Provenance()
    associations: tuple[NewAssociation, ...] = ()
    subject: str | None = None  # the person whom it is about, as platform:user
    permanent: bool = False
    created_at: datetime | None = None  # when it was true, of something that is told later; None: now


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A memory near to a vector; similarity is the cosine."""

    id: MemoryId
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedMemory:
    """What a save came to.

    `is_new` is False when the same words were known already in the same scope: then the known one is named.
    `is_embedded` False means that the words are found already, the meaning only after a later attempt.
    """

    memory: Memory
    is_new: bool = True
    is_embedded: bool = True
    skipped_associations: tuple[str, ...] = ()
    auto_associations: tuple[Association, ...] = ()
    near_duplicates: tuple[Neighbour, ...] = ()


class SearchMode(StrEnum):
    """How to look."""

    HYBRID = "hybrid"
    RECENT = "recent"
    IMPORTANT = "important"
    TYPED = "typed"


class SortBy(StrEnum):
    """Order of a typed listing."""

    RECENT = "recent"
    IMPORTANCE = "importance"
    MOST_ACCESSED = "most_accessed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to recall, and for whom."""

    viewer: Viewer
    text: str = ""  # needed for hybrid only
    mode: SearchMode = SearchMode.HYBRID
    memory_type: MemoryType | None = None
    sort_by: SortBy = SortBy.RECENT  # typed only
    limit: int = 10
    min_score: float = 0.0  # hybrid only, 0..1; with fusion by rank a first place in one list scores 1 / (k + 1)
    counts_as_access: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One recalled memory; ranks run from 1 without gaps."""

    memory: Memory
    score: float
    rank: int
    legs: tuple[str, ...] = ()  # which searches found it: vector, text, graph; none for the neighbour of a good one
    why: str = ""  # in a few words, for people and models


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallResult:
    """What was recalled; `notes` says in plain words when a part of the search did not work as usual."""

    hits: tuple[Hit, ...] = ()
    total_found: int = 0  # before the cut to the query's limit
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """Figures for status and metrics."""

    counts_by_type: Mapping[MemoryType, int]
    total: int
    private: int
    embedded: int
    associations: int
    unindexed: int  # changes that the vector table has not seen yet
    engine: str  # what serves the vector search: exact, lancedb, scan
    to_embed: int = 0  # memories without a vector of the present model; they are being embedded, or will be
    problem: str | None = None  # why the vector table cannot be used on this machine, once that is known
