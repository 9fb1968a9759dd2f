"""The program as a whole: is it alive, what is it doing, stop that, read the prompts again.

Floor:   api
Source:  control spec 4.2, 4.9
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot import __version__
from spacebot.api.contract import AgentHandle
from spacebot.api.requests import Api, Body, read_body
from spacebot.api.rim import TICKET_S, Tickets
from spacebot.api.sessions import process_object
from spacebot.api.streams import EventStream, Frame
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ConfigError, NotFoundError
from spacebot.base.events import EventKind, ProcessEvent, Subscription
from spacebot.base.tree import NodeKind, Tree
from spacebot.tools.permissions import rights_of

CANCEL_REASON = "cancelled by a person"
_CANCELLABLE = frozenset({NodeKind.BRANCH, NodeKind.WORKER, NodeKind.TURN})
_DEMO = "demo/"


class CancelBody(Body):
    """`POST /api/cancel`."""

    process_id: str


class SystemRoutes:
    """Routes under `/api` that belong to no conversation."""

    def __init__(self, api: Api, tickets: Tickets) -> None:
        self._api = api
        self._tickets = tickets

    def routes(self) -> list[Route]:
        """The table."""
        return [
            Route("/api/health", self.health),
            Route("/api/status", self.status),
            Route("/api/tree", self.tree),
            Route("/api/cancel", self.cancel, methods=["POST"]),
            Route("/api/events", self.events),
            Route("/api/ticket", self.ticket, methods=["POST"]),
            Route("/api/prompts/reload", self.reload_prompts, methods=["POST"]),
        ]

    async def health(self, _: Request) -> Response:
        """Whether the event loop turns; needs no token and reveals nothing."""
        return JSONResponse({"status": "ok"})

    async def status(self, _: Request) -> Response:
        """What runs, since when, with which model."""
        api, program = self._api, self._api.program
        main = api.agent(None)
        counts = {f"{kind}s": _count(api.tree, kind) for kind in ("channel", "turn", "worker")}
        return JSONResponse(
            {
                "status": "running",
                "version": __version__,
                "pid": os.getpid(),
                "uptime_seconds": int(monotonic_s() - api.started_at),
                "run_id": api.run_id,
                "default_agent_id": program.default_agent_id,
                "model": main.model_label,
                "is_demo": _is_demo(main),
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

    async def tree(self, _: Request) -> Response:
        """Every running thing, parents before their children."""
        return JSONResponse({"processes": [process_object(view) for view in self._api.tree.view()]})

    async def cancel(self, request: Request) -> Response:
        """End one turn, branch or worker and everything below it."""
        body = await read_body(request, CancelBody)
        return cancel_process(self._api.tree, body.process_id)

    async def events(self, request: Request) -> EventStream:
        """Everything that happens, for observers; one who is slow is told how many events were lost."""
        agent_id = request.query_params.get("agent_id")
        if agent_id is not None:
            self._api.agent(agent_id)
        kinds = _kinds(request.query_params.get("types"))

        @asynccontextmanager
        async def open_source() -> AsyncIterator[_Observer]:
            with self._api.events.subscribe(kinds) as subscription:
                yield _Observer(subscription, agent_id)

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


class _Observer:
    def __init__(self, subscription: Subscription, agent_id: str | None) -> None:
        self._subscription = subscription
        self._agent_id = agent_id
        self._held: Frame | None = None

    async def receive(self) -> Frame | None:
        if (held := self._held) is not None:
            self._held = None
            return held
        while (event := await self._subscription.receive()) is not None:
            if (frame := self._to_frame(event)) is not None:
                return frame
        return None

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        if (held := self._held) is not None:
            self._held = None
            return held
        while (event := self._subscription.receive_nowait()) is not None:
            if (frame := self._to_frame(event)) is not None:
                return frame
        return None

    def _to_frame(self, event: ProcessEvent) -> Frame | None:
        """The event as a frame; None for another agent's; what was lost is said first, the event held."""
        skipped = self._subscription.take_skipped()
        frame = None
        if self._agent_id is None or event.agent_id in (None, self._agent_id):
            frame = Frame(str(event.kind), event.to_json_object())
        if skipped:
            self._held = frame
            return Frame("lagged", {"type": "lagged", "skipped": skipped})
        return frame


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


def _count(tree: Tree, kind: str) -> int:
    return sum(1 for _ in tree.of_kind(NodeKind(kind)))


def _is_demo(agent: AgentHandle) -> bool:
    return agent.model_label.startswith(_DEMO)
