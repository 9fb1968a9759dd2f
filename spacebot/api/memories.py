"""What an agent remembers, for its owner: pages, search, graph, history; add, edit, forget, bring back, upkeep.

The API is the owner's (this machine, or a token), so it shows everything, private memories included; they are
marked, and a page hides their words until they are asked for. Looking counts as no access.

Flow:    route -> checked parameters -> MemoryViews (reads) or AgentMemory (search, changes) -> JSON
Floor:   api
Source:  memory spec 17, control spec 4.5
"""

from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import AgentHandle
from spacebot.api.requests import AGENT, Api, Body, Param, read_body, required, route
from spacebot.api.shapes import ADDED, DETAIL, GRAPH, HIT, PREVIEW, SEEN, SORT, TYPE, page_params
from spacebot.base.clock import to_text
from spacebot.base.errors import NotFoundError
from spacebot.base.ids import ConversationId
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode
from spacebot.memory.curation_log import CurationEvent
from spacebot.memory.types import (
    CONTENT_LIMIT,
    EVERYTHING,
    Hit,
    Memory,
    MemoryType,
    NewAssociation,
    NewMemory,
    Provenance,
    Query,
    RelationType,
    SortBy,
)
from spacebot.memory.views import MAX_DAYS, Edge, Graph, History, Seen, Standing

PAGE, MAX_PAGE = 50, 200
FOUND, MAX_FOUND = 20, 100
NODES, MAX_NODES = 200, 500
MAX_DEPTH = 3
DAYS = 30
MAX_OFFSET = 1 << 40
MAX_UTC_OFFSET = 14 * 60  # minutes; the zones of this world
OTHER_PREVIEW = 200  # characters of the memories at the other ends of edges
SAID = 1000  # characters of the message that a memory was learned from
UPKEEP_S = 120.0  # of a pass that somebody waits for; what is left is done by the next one
BY_OWNER = "the owner, on the Memory page"
E = TypeVar("E", bound=StrEnum)


class AssociationBody(Body):
    """An edge from a memory that is being added."""

    target_id: str
    relation_type: RelationType = Field(default=RelationType.RELATED_TO, strict=False)
    weight: float = 0.5


class AddBody(Body):
    """`POST /api/agents/memories`."""

    content: str
    memory_type: MemoryType = Field(default=MemoryType.FACT, strict=False)
    importance: float | None = None
    permanent: bool = False
    associations: list[AssociationBody] = Field(default_factory=list)
    agent_id: str | None = None


class EditBody(Body):
    """`PATCH /api/agents/memories/{id}`; what is absent stays as it is."""

    content: str | None = None
    memory_type: MemoryType | None = Field(default=None, strict=False)
    importance: float | None = None
    permanent: bool | None = None
    agent_id: str | None = None


class MemoryRoutes:
    """Routes under `/api/agents/memories`, `/api/agents/overview` and `/api/cortex/events`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table; fixed names before ids."""
        base = "/api/agents/memories"
        return [
            route(
                base,
                self.listing,
                query=[
                    AGENT,
                    SORT,
                    *page_params(PAGE, MAX_PAGE),
                    TYPE,
                    Param("standing", "only these", default="live", one_of=tuple(Standing)),
                    PREVIEW,
                ],
                answer={"memories": [SEEN], "total": int},
            ),
            route(base, self.add, "POST", query=[AGENT], body=AddBody, status=201, answer=ADDED, answers={200: ADDED}),
            route(
                f"{base}/search",
                self.search,
                query=[
                    AGENT,
                    Param("q", "what is looked for", is_needed=True),
                    TYPE,
                    Param("limit", "memories", int, FOUND, low=1, high=MAX_FOUND),
                    PREVIEW,
                ],
                answer={"results": [HIT], "total": int, "notes": [str], "edges": [Edge]},
            ),
            route(
                f"{base}/graph",
                self.graph,
                query=[AGENT, SORT, *page_params(NODES, MAX_NODES), TYPE, PREVIEW],
                answer=GRAPH,
            ),
            route(
                f"{base}/graph/neighbors",
                self.neighbours,
                query=[
                    AGENT,
                    Param("memory_id", "the middle", is_needed=True),
                    Param("depth", "steps", int, 1, low=1, high=MAX_DEPTH),
                    Param("exclude", "ids that are known, with commas"),
                    PREVIEW,
                ],
                answer=GRAPH,
            ),
            route(
                f"{base}/history",
                self.history,
                query=[
                    AGENT,
                    Param("days", "days", int, DAYS, low=1, high=MAX_DAYS),
                    Param(
                        "utc_offset",
                        "minutes between the reader and UTC",
                        int,
                        0,
                        low=-MAX_UTC_OFFSET,
                        high=MAX_UTC_OFFSET,
                    ),
                ],
                answer={"days": [{"*": Any}], "now": {"*": Any}},
            ),
            route(
                f"{base}/maintain",
                self.maintain,
                "POST",
                query=[AGENT, Param("dry_run", "only tell what would be done", bool, False)],
                answer={"*": Any},
            ),
            route(f"{base}/{{memory_id}}", self.detail, query=[AGENT], answer=DETAIL),
            route(f"{base}/{{memory_id}}", self.edit, "PATCH", query=[AGENT], body=EditBody, answer=DETAIL),
            route(
                f"{base}/{{memory_id}}",
                self.forget,
                "DELETE",
                query=[AGENT, Param("reason", "why")],
                answer={"success": bool, "id": str},
            ),
            route(f"{base}/{{memory_id}}/restore", self.restore, "POST", query=[AGENT], answer=DETAIL),
            Route("/api/agents/overview", self.overview),
            route(
                "/api/cortex/events",
                self.events,
                query=[AGENT, *page_params(PAGE, MAX_PAGE), Param("event_type", "only of this type")],
                answer={"events": [CurationEvent], "total": int},
            ),
        ]

    async def listing(self, request: Request) -> Response:
        """A page of memories; `preview` cuts long texts to so many characters."""
        page = await self._agent(request).memory_views.listing(
            EVERYTHING,
            sort_by=_choice(request, "sort", SortBy) or SortBy.RECENT,
            limit=_bounded(request, "limit", PAGE, low=1, high=MAX_PAGE),
            offset=_bounded(request, "offset", 0, high=MAX_OFFSET),
            memory_type=_choice(request, "memory_type", MemoryType),
            standing=_choice(request, "standing", Standing) or Standing.LIVE,
        )
        preview = _preview(request)
        return JSONResponse({"memories": [seen_object(seen, preview) for seen in page.memories], "total": page.total})

    async def search(self, request: Request) -> Response:
        """Memories by meaning and words, with what found each, and the edges among them."""
        agent = self._agent(request)
        result = await agent.memory.recall(
            Query(
                viewer=EVERYTHING,
                text=required(request, "q"),
                memory_type=_choice(request, "memory_type", MemoryType),
                limit=_bounded(request, "limit", FOUND, low=1, high=MAX_FOUND),
                counts_as_access=False,
            )
        )
        preview = _preview(request)
        edges = await agent.memory_views.edges_among([hit.memory.id for hit in result.hits])
        return JSONResponse(
            {
                "results": [_hit_object(hit, preview) for hit in result.hits],
                "total": result.total_found,
                "notes": list(result.notes),
                "edges": [asdict(edge) for edge in edges],
            }
        )

    async def graph(self, request: Request) -> Response:
        """A page of memories as nodes, and the edges among them."""
        graph = await self._agent(request).memory_views.graph(
            EVERYTHING,
            sort_by=_choice(request, "sort", SortBy) or SortBy.RECENT,
            limit=_bounded(request, "limit", NODES, low=1, high=MAX_NODES),
            offset=_bounded(request, "offset", 0, high=MAX_OFFSET),
            memory_type=_choice(request, "memory_type", MemoryType),
        )
        return JSONResponse(_graph_object(graph, _preview(request)))

    async def neighbours(self, request: Request) -> Response:
        """What lies around one memory and is not among the excluded ones."""
        excluded = request.query_params.get("exclude", "")
        graph = await self._agent(request).memory_views.neighbours(
            required(request, "memory_id"),
            EVERYTHING,
            depth=_bounded(request, "depth", 1, low=1, high=MAX_DEPTH),
            exclude=[part.strip() for part in excluded.split(",") if part.strip()],
        )
        return JSONResponse(_graph_object(graph, _preview(request)))

    async def history(self, request: Request) -> Response:
        """How the store grew and decayed, day by day, and what it holds now."""
        history = await self._agent(request).memory_views.history(
            days=_bounded(request, "days", DAYS, low=1, high=MAX_DAYS),
            utc_offset_minutes=_bounded(request, "utc_offset", 0, low=-MAX_UTC_OFFSET, high=MAX_UTC_OFFSET),
        )
        return JSONResponse(_history_object(history))

    async def overview(self, request: Request) -> Response:
        """Figures of one agent at a glance."""
        agent = self._agent(request)
        history = await agent.memory_views.history(days=DAYS)
        return JSONResponse(
            {
                "agent_id": agent.id,
                "model": agent.model_label,
                "memory_total": history.now.total,
                "memory_counts": history.now.by_type,
                "memory_daily": [{"date": day.day.isoformat(), "count": day.saved} for day in history.days],
            }
        )

    async def detail(self, request: Request) -> Response:
        """One memory, forgotten or not: its words, where it was learned, its edges and their other ends."""
        agent = self._agent(request)
        return JSONResponse(await self._detail_object(agent, request.path_params["memory_id"]))

    async def add(self, request: Request) -> Response:
        """Remember something by hand; the same words are kept once."""
        body = await read_body(request, AddBody)
        agent = self._agent(request, body.agent_id)
        saved = await agent.memory.save(
            NewMemory(
                content=body.content,
                memory_type=body.memory_type,
                importance=body.importance,
                permanent=body.permanent,
                provenance=Provenance(source=BY_OWNER),
                associations=tuple(
                    NewAssociation(target_id=edge.target_id, relation_type=edge.relation_type, weight=edge.weight)
                    for edge in body.associations
                ),
            )
        )
        return JSONResponse(
            {
                **await self._detail_object(agent, saved.memory.id),
                "is_new": saved.is_new,
                "is_embedded": saved.is_embedded,
                "skipped_associations": list(saved.skipped_associations),
            },
            201 if saved.is_new else 200,
        )

    async def edit(self, request: Request) -> Response:
        """Change words, type, importance or permanence."""
        body = await read_body(request, EditBody)
        agent, memory_id = self._agent(request, body.agent_id), request.path_params["memory_id"]
        if body.model_dump(exclude={"agent_id"}, exclude_none=True) == {}:
            raise HTTPException(400, "nothing to change; give content, memory_type, importance or permanent")
        await agent.memory.edit(
            memory_id,
            content=body.content,
            memory_type=body.memory_type,
            importance=body.importance,
            permanent=body.permanent,
        )
        return JSONResponse(await self._detail_object(agent, memory_id))

    async def forget(self, request: Request) -> Response:
        """Hide a memory from every recall; it can be brought back."""
        agent, memory_id = self._agent(request), request.path_params["memory_id"]
        reason = scrub(clean_unicode(request.query_params.get("reason", "").strip())) or None
        memory = await agent.memory.forget(memory_id, reason)
        if memory is None:
            raise NotFoundError(f"there is no live memory {memory_id[:80]!r}; it may have been forgotten already")
        return JSONResponse({"success": True, "id": memory.id})

    async def restore(self, request: Request) -> Response:
        """Bring a forgotten memory back."""
        agent, memory_id = self._agent(request), request.path_params["memory_id"]
        await agent.memory.unforget(memory_id)
        return JSONResponse(await self._detail_object(agent, memory_id))

    async def maintain(self, request: Request) -> Response:
        """Upkeep now; with `dry_run=true` only what it would do."""
        agent = self._agent(request)
        policy = replace(agent.maintenance_policy, time_limit_s=UPKEEP_S)
        report = await agent.memory.maintain(policy, dry_run=_flag(request, "dry_run"))
        return JSONResponse(asdict(report))

    async def events(self, request: Request) -> Response:
        """What was done to memory and by the cortex, newest first."""
        events, total = await self._agent(request).memory_views.events(
            limit=_bounded(request, "limit", PAGE, low=1, high=MAX_PAGE),
            offset=_bounded(request, "offset", 0, high=MAX_OFFSET),
            event_type=request.query_params.get("event_type") or None,
        )
        return JSONResponse({"events": [asdict(event) for event in events], "total": total})

    def _agent(self, request: Request, named: str | None = None) -> AgentHandle:
        return self._api.agent(named or request.query_params.get("agent_id"))

    async def _detail_object(self, agent: AgentHandle, memory_id: str) -> dict[str, Any]:
        detail = await agent.memory_views.detail(memory_id, EVERYTHING)
        memory = detail.seen.memory
        return {
            "memory": seen_object(detail.seen),
            "edges": [asdict(edge) for edge in detail.edges],
            "others": {key: seen_object(other, OTHER_PREVIEW) for key, other in detail.others.items()},
            "learned": await _learned(agent, memory),
        }


def seen_object(seen: Seen, preview: int | None = None) -> dict[str, Any]:
    """A memory as readers get it; `preview` cuts its text to so many characters and says that it did."""
    return {
        **_memory_object(seen.memory, preview),
        "base_importance": seen.base_importance,
        "centrality": seen.centrality,
        "forgotten": seen.forgotten,
        "forget_reason": seen.forget_reason,
    }


def _memory_object(memory: Memory, preview: int | None) -> dict[str, Any]:
    is_cut = preview is not None and len(memory.content) > preview
    return {
        "id": memory.id,
        "content": memory.content[:preview],
        "is_cut": is_cut,
        "memory_type": memory.memory_type,
        "importance": memory.importance,
        "created_at": to_text(memory.created_at),
        "updated_at": to_text(memory.updated_at),
        "last_accessed_at": to_text(memory.last_accessed_at),
        "access_count": memory.access_count,
        "source": memory.source,
        "channel_id": memory.channel_id,
        "user_id": memory.user_id,
        "message_id": memory.message_id,
        "subject": memory.subject,
        "is_private": memory.is_private,
        "permanent": memory.permanent,
        "forgotten": False,
    }


def _hit_object(hit: Hit, preview: int | None) -> dict[str, Any]:
    return {
        "memory": _memory_object(hit.memory, preview),
        "score": hit.score,
        "rank": hit.rank,
        "legs": list(hit.legs),
        "why": hit.why,
    }


def _graph_object(graph: Graph, preview: int | None) -> dict[str, Any]:
    return {
        "nodes": [seen_object(seen, preview) for seen in graph.nodes],
        "edges": [asdict(edge) for edge in graph.edges],
        "total": graph.total,
        "is_cut": graph.is_cut,
    }


def _history_object(history: History) -> dict[str, Any]:
    return {
        "days": [{**asdict(day), "day": day.day.isoformat()} for day in history.days],
        "now": {**asdict(history.now), "by_type": {str(k): n for k, n in history.now.by_type.items()}},
    }


async def _learned(agent: AgentHandle, memory: Memory) -> dict[str, Any]:
    """The conversation, the person and the words behind a memory, as far as the log still knows them."""
    channel = sender = said = None
    if memory.channel_id is not None:
        record = await agent.conversations.channel(ConversationId(memory.channel_id))
        channel = record and record.display_name
    if memory.message_id is not None and (fate := await agent.conversations.fate(memory.message_id)) is not None:
        sender, said = fate.message.sender_name, fate.message.content[:SAID]
    return {"channel_name": channel, "sender_name": sender, "said": said}


def _bounded(request: Request, name: str, default: int, *, low: int = 0, high: int) -> int:
    """A whole number from the query: too much is held at the most there is, too little is refused."""
    text = request.query_params.get(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise HTTPException(400, f"{name} must be a whole number, not {text[:40]!r}") from None
    if value < low:
        raise HTTPException(400, f"{name} must be {low} or more, not {text[:40]}")
    return min(value, high)


def _choice(request: Request, name: str, names: type[E]) -> E | None:
    """One of an enumeration's names from the query; None when it is absent."""
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        return names(text)
    except ValueError:
        raise HTTPException(400, f"{name} must be one of {', '.join(names)}; not {text[:40]!r}") from None


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "1", "false", "0"):
        raise HTTPException(400, f"{name} must be true or false, not {text[:40]!r}")
    return text in ("true", "1")


def _preview(request: Request) -> int | None:
    """How many characters of each text are wanted; None means all."""
    return _bounded(request, "preview", 0, high=CONTENT_LIMIT) or None
