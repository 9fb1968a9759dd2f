"""The program as a whole: is it alive, what is it doing, stop that, read the prompts again.

Floor:   api
Source:  control spec 4.2, 4.9
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot import __version__
from spacebot.api.contract import AgentHandle
from spacebot.api.feed import FeedReader, Wanted
from spacebot.api.providers import setup_fields
from spacebot.api.requests import AGAIN, DONE, Api, Body, Param, maybe, read_body, route
from spacebot.api.rim import TICKET_S, Tickets
from spacebot.api.sessions import process_object
from spacebot.api.shapes import PROCESS, PROGRAM
from spacebot.api.streams import EventStream
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ConfigError, NotFoundError
from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind, Tree
from spacebot.tools.permissions import rights_of

MOST_SHOWN = 500  # running things in one answer
CANCEL_REASON = "cancelled by a person"
_CANCELLABLE = frozenset({NodeKind.BRANCH, NodeKind.WORKER, NodeKind.TURN})
_BUSY = (NodeKind.TURN, NodeKind.WORKER, NodeKind.BRANCH, NodeKind.COMPACTION, NodeKind.PERSISTENCE)
_DEMO = "demo/"


class CancelBody(Body):
    """`POST /api/cancel`."""

    process_id: str


class SystemRoutes:
    """Routes under `/api` that belong to no conversation."""

    def __init__(self, api: Api, tickets: Tickets) -> None:
        self._api = api
        self._tickets = tickets
        self._measuring = trio.Lock()

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/health", self.health, answer={"status": str}),
            route("/api/status", self.status, answer=PROGRAM),
            route("/api/idle", self.idle, answer={"idle": bool, "active_workers": int, "active_branches": int}),
            route(
                "/api/system/storage",
                self.storage,
                answer={"used_bytes": int, "total_bytes": int, "available_bytes": int},
            ),
            route("/api/tree", self.tree, answer={"processes": [PROCESS], "total": int, "left_out": int}),
            route("/api/cancel", self.cancel, "POST", body=CancelBody, answer=DONE),
            route(
                "/api/events",
                self.events,
                query=[
                    Param("types", "names of events, with commas; all when it is left out"),
                    Param("agent_id", "only of this agent"),
                    AGAIN,
                ],
                stream={
                    **{
                        str(kind): {"type": str, "agent_id": maybe(str), "channel_id": maybe(str), "*": Any}
                        for kind in EventKind
                    },
                    "lagged": {"type": str, "skipped": int},
                },
            ),
            route("/api/ticket", self.ticket, "POST", answer={"ticket": str, "expires_in_seconds": int}),
            route("/api/prompts/reload", self.reload_prompts, "POST", answer={"success": bool, "changed": [str]}),
        ]

    async def health(self, _: Request) -> Response:
        """Whether the event loop turns; needs no token and reveals nothing."""
        return JSONResponse({"status": "ok"})

    async def status(self, _: Request) -> Response:
        """What runs, since when, with which model."""
        api, program = self._api, self._api.program
        main = program.agents.get(program.default_agent_id)
        counts = {f"{kind}s": _count(api.tree, kind) for kind in ("channel", "turn", "worker")}
        return JSONResponse(
            {
                "status": "running",
                "version": __version__,
                "pid": os.getpid(),
                "uptime_seconds": int(monotonic_s() - api.started_at),
                "run_id": api.run_id,
                "default_agent_id": program.default_agent_id,
                "model": None if main is None else main.model_label,
                "is_demo": main is not None and _is_demo(main),
                **setup_fields(program.config),
                "sandbox": program.sandbox,
                "permissions": rights_of(program.config, program.sandbox),
                "agents": [
                    {"id": agent.id, "model": agent.model_label, "is_demo": _is_demo(agent)}
                    for agent in program.agents.values()
                ],
                "counts": {
                    "agents": len(program.agents),
                    **counts,
                    "branches": _count(api.tree, NodeKind.BRANCH),
                    "streams": len(api.streams),
                },
            }
        )

    async def idle(self, _: Request) -> Response:
        """Whether nothing is being worked on, so that an update disturbs nobody."""
        busy = {kind: _count(self._api.tree, kind) for kind in _BUSY}
        return JSONResponse(
            {
                "idle": not any(busy.values()),
                "active_workers": busy[NodeKind.WORKER],
                "active_branches": busy[NodeKind.BRANCH],
            }
        )

    async def storage(self, _: Request) -> Response:
        """What the instance takes of its disk, and what is left of that."""
        async with self._measuring:  # a large instance takes a moment; who asks meanwhile waits for the same figure
            return JSONResponse(await trio.to_thread.run_sync(_measured, self._api.program.editor.path.parent))

    async def tree(self, _: Request) -> Response:
        """Every running thing, parents before their children; of very many, conversations at rest are left out."""
        views = self._api.tree.view()
        total = len(views)
        if total > MOST_SHOWN:
            parents = {view.parent_id for view in views}
            views = [view for view in views if view.kind != NodeKind.CHANNEL or view.id in parents][:MOST_SHOWN]
        return JSONResponse(
            {"processes": [process_object(view) for view in views], "total": total, "left_out": total - len(views)}
        )

    async def cancel(self, request: Request) -> Response:
        """End one turn, branch or worker and everything below it."""
        body = await read_body(request, CancelBody)
        return cancel_process(self._api.tree, body.process_id)

    async def events(self, request: Request) -> EventStream:
        """Everything that happens, for observers; who was away sends the last id, who was too slow hears `lagged`."""
        agent_id = request.query_params.get("agent_id")
        if agent_id is not None:
            self._api.agent(agent_id)
        kinds = _kinds(request.query_params.get("types"))

        wanted, resume = Wanted(kinds, agent_id), request.headers.get("last-event-id")

        @asynccontextmanager
        async def open_source() -> AsyncIterator[FeedReader]:
            with self._api.feed.reading(wanted, resume) as reader:
                yield reader

        return EventStream(self._api.streams, open_source)

    async def ticket(self, _: Request) -> Response:
        """A short-lived `?ticket=` for EventSource, which cannot send a token."""
        return JSONResponse({"ticket": self._tickets.issue(), "expires_in_seconds": TICKET_S})

    async def reload_prompts(self, _: Request) -> Response:
        """Read templates and identity files again."""
        try:
            changed = await self._api.program.reload_prompts()
        except ConfigError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse({"success": True, "changed": list(changed)})


def _kinds(names: str | None) -> frozenset[EventKind] | None:
    if not names:
        return None
    try:
        return frozenset(EventKind(name.strip()) for name in names.split(","))
    except ValueError:
        raise HTTPException(400, f"types must be names out of: {', '.join(EventKind)}") from None


def cancel_process(
    tree: Tree,
    process_id: str,
    *,
    kind: NodeKind | None = None,
    agent_id: str | None = None,
    channel_id: str | None = None,
) -> Response:
    """Ask a running thing to end; the answer says whether it was there.

    Errors: NotFoundError; HTTPException 400 for things that only the program itself ends.
    """
    node = tree.get(process_id)
    if (
        node is None
        or (kind is not None and node.kind is not kind)
        or (channel_id is not None and node.channel_id != channel_id)
        or (agent_id is not None and node.agent_id != agent_id)
    ):
        raise NotFoundError(f"nothing with the id {process_id[:80]!r} is running here; it may have ended meanwhile")
    if node.kind not in _CANCELLABLE:
        raise HTTPException(400, f"a {node.kind} cannot be cancelled, only a turn, a branch or a worker")
    node.cancel(CANCEL_REASON)
    return JSONResponse({"success": True, "message": f"{node.kind} {process_id} is being cancelled"})


def _measured(folder: Path) -> dict[str, int]:
    """Bytes below a folder as the disk counts them, and of its disk; what vanishes meanwhile counts nothing."""
    used = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                used += os.lstat(os.path.join(at, name)).st_blocks * 512
    disk = shutil.disk_usage(folder)
    return {"used_bytes": used, "total_bytes": disk.total, "available_bytes": disk.free}


def _count(tree: Tree, kind: str) -> int:
    return sum(1 for _ in tree.of_kind(NodeKind(kind)))


def _is_demo(agent: AgentHandle) -> bool:
    return agent.model_label.startswith(_DEMO)
