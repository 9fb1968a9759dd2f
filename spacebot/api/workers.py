"""Workers over HTTP and the control socket: list, look at one and watch it work, say something to it, end it.

The API is the owner's, so what was begun in direct chats is in it; it is marked, and faces show it on request only.

Flow:    /api/agents/workers..., control command `worker` -> WorkerDesk; live events of one worker from the bus
Floor:   api
Source:  tools spec 8, 24; control spec 4.9
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.worker_desk import WorkerDesk
from spacebot.api.contract import AgentHandle
from spacebot.api.requests import AGENT, DONE, Api, Body, Param, maybe, number, read_body, route
from spacebot.api.shapes import WHOLE, WORKER
from spacebot.api.streams import EventStream, Frame
from spacebot.api.system import cancel_process
from spacebot.base.clock import Clock, from_text
from spacebot.base.errors import RefusedError
from spacebot.base.events import EventKind, ProcessEvent, Subscription
from spacebot.base.tree import NodeKind, NodeState, Tree
from spacebot.conversations.worker_runs import ENDED, LIVE, Cost, WorkerEntry

PAGE, MAX_PAGE = 50, 200
HELLO = "hello"
BUFFER = 128  # events for a slow reader, each with up to 50 KB; beyond that the state is read anew
STATES = (LIVE, ENDED, *(str(state) for state in NodeState if state is not NodeState.STARTING))
_OF_WORKERS = frozenset(
    {
        EventKind.WORKER_STATUS,
        EventKind.WORKER_IDLE,
        EventKind.WORKER_COMPLETED,
        EventKind.TOOL_STARTED,
        EventKind.TOOL_COMPLETED,
        EventKind.TOOL_OUTPUT,
    }
)

JsonObject = Mapping[str, Any]


class MessageForm(Body):
    """Words for a worker."""

    agent_id: str | None = None
    message: str


class CancelForm(Body):
    """Whose worker."""

    agent_id: str | None = None


class WorkerRoutes:
    """Routes under `/api/agents/workers`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/agents/workers",
                self.list_workers,
                query=[
                    AGENT,
                    Param("limit", "workers", int, PAGE, low=1, high=MAX_PAGE),
                    Param("before", "id of the last one already known"),
                    Param("state", "only in this state", one_of=STATES),
                ],
                answer={"workers": [WORKER], "has_more": bool, "before": maybe(str)},
            ),
            route("/api/agents/workers/{worker_id}", self.show, query=[AGENT], answer=WHOLE),
            route(
                "/api/agents/workers/{worker_id}/events",
                self.events,
                query=[AGENT],
                stream={HELLO: WHOLE, **{str(kind): {"type": str, "*": Any} for kind in sorted(_OF_WORKERS)}},
            ),
            route("/api/agents/workers/{worker_id}/message", self.message, "POST", body=MessageForm, answer=DONE),
            route("/api/agents/workers/{worker_id}/cancel", self.cancel, "POST", body=CancelForm, answer=DONE),
        ]

    def _agent(self, request: Request) -> AgentHandle:
        return self._api.agent(request.query_params.get("agent_id"))

    async def list_workers(self, request: Request) -> Response:
        """Live workers first, then the others, newest first; `before` is the id of the last one already known."""
        agent, query = self._agent(request), request.query_params
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        return JSONResponse(
            await workers_object(agent, limit=limit, before=query.get("before"), state=query.get("state"))
        )

    async def show(self, request: Request) -> Response:
        """A worker with what it was told, did and came to, as steps."""
        agent = self._agent(request)
        return JSONResponse(await worker_with_steps(agent, request.path_params["worker_id"]))

    async def events(self, request: Request) -> EventStream:
        """What a worker does: `hello` with all there is, then each thing as it happens; a new `hello` after a loss.

        It ends with the worker. Who comes back gets a `hello` again, so nothing has to be remembered.
        """
        agent, worker_id = self._agent(request), request.path_params["worker_id"]
        entry = await agent.workers.entry(worker_id)  # an unknown one is refused before the stream begins

        @asynccontextmanager
        async def open_source() -> AsyncIterator[_Feed]:
            with self._api.events.subscribe(
                _OF_WORKERS, channel_id=entry.channel_id, buffer=BUFFER, has_details=True
            ) as subscription:
                yield _Feed(agent, worker_id, subscription)

        return EventStream(self._api.streams, open_source)

    async def message(self, request: Request) -> Response:
        """Hand a message to a worker that runs or waits."""
        form = await read_body(request, MessageForm)
        happens = self._api.agent(form.agent_id).workers.route(request.path_params["worker_id"], form.message)
        return JSONResponse({"success": True, "message": happens})

    async def cancel(self, request: Request) -> Response:
        """End a worker and everything that it has started."""
        form = await read_body(request, CancelForm)
        agent = self._api.agent(form.agent_id)
        return cancel_process(self._api.tree, request.path_params["worker_id"], kind=NodeKind.WORKER, agent_id=agent.id)


class _Feed:
    """One worker's events for one reader."""

    def __init__(self, agent: AgentHandle, worker_id: str, subscription: Subscription) -> None:
        self._agent = agent
        self._worker_id = worker_id
        self._subscription = subscription
        self._is_behind = True
        self._is_over = False

    async def receive(self) -> Frame | None:
        while not self._is_over:
            if self._is_behind:
                self._is_behind = False
                while self._subscription.receive_nowait() is not None:
                    pass  # the state that is read now holds all of it
                self._subscription.take_skipped()
                state = await worker_with_steps(self._agent, self._worker_id)
                self._is_over = not state["worker"]["is_live"]
                return Frame(HELLO, state)
            event = await self._subscription.receive()
            if event is None:
                return None
            if (frame := self._to_frame(event)) is not None:
                return frame
        return None

    def receive_nowait(self) -> Frame | None:
        """The next frame if there is one already."""
        while not (self._is_behind or self._is_over):
            event = self._subscription.receive_nowait()
            if event is None:
                return None
            if (frame := self._to_frame(event)) is not None:
                return frame
        return None

    def _to_frame(self, event: ProcessEvent) -> Frame | None:
        """An event of this worker; with its end, or after a loss, the state is read anew."""
        if self._subscription.take_skipped():
            self._is_behind = True
            return None
        who = event.fields.get("process_id") or event.fields.get("worker_id")
        if who != self._worker_id or event.agent_id != self._agent.id:
            return None
        if event.kind in (EventKind.WORKER_COMPLETED, EventKind.WORKER_IDLE):
            self._is_behind = True
        return Frame(str(event.kind), event.to_json_object())


async def workers_object(
    agent: AgentHandle, *, limit: int, before: str | None = None, state: str | None = None
) -> dict[str, Any]:
    """A page of workers, for programs. Errors: RefusedError for an unknown state."""
    if state is not None and state not in STATES:
        raise RefusedError(f"state must be one of {', '.join(STATES)}, not {state[:40]!r}")
    entries = await agent.workers.page(limit=limit + 1, before=before, state=state)
    ended = [entry for entry in entries if not entry.is_live]
    has_more = len(ended) > limit
    if has_more:
        entries = entries[:-1]
    return {
        "workers": [worker_object(agent, entry) for entry in entries],
        "has_more": has_more,
        "before": ended[limit - 1].id if has_more else None,
    }


async def worker_with_steps(agent: AgentHandle, worker_id: str) -> dict[str, Any]:
    """A worker and its transcript, for programs. Errors: NotFoundError, StorageError."""
    entry, shown = await agent.workers.show(worker_id)
    return {
        "worker": worker_object(agent, entry),
        "steps": [step.to_json_object() for step in shown.steps],
        "left_out": shown.left_out,  # parts of the transcript before these
        "output": agent.workers.output_of(worker_id),  # of the command that runs
    }


def worker_object(agent: AgentHandle, entry: WorkerEntry) -> dict[str, Any]:
    """A worker, for programs; spans in seconds, cost in tokens."""
    until = from_text(entry.completed_at) if entry.completed_at else Clock().now()
    return {
        "agent_id": agent.id,
        "id": entry.id,
        "channel_id": entry.channel_id,
        "channel_name": entry.channel_name,
        "is_private": entry.is_private,
        "task": entry.task,
        "task_type": entry.task_type,
        "worker_type": entry.worker_type,
        "directory": entry.directory,
        "is_interactive": entry.is_interactive,
        "branch_id": entry.origin,
        "state": str(entry.state),
        "is_live": entry.is_live,
        "status": entry.status,
        "result": entry.result,
        "tool_calls": entry.tool_calls,
        "started_at": entry.started_at,
        "completed_at": entry.completed_at,
        "duration_s": round(max(0.0, (until - from_text(entry.started_at)).total_seconds()), 1),
        "has_transcript": entry.has_transcript,
        "cost": cost_object(entry.cost),
    }


def cost_object(cost: Cost) -> dict[str, Any]:
    """What a process cost: calls and tokens; `model` served it last."""
    usage = cost.usage
    return {
        "model": cost.models[0] if cost.models else None,
        "models": list(cost.models),
        "model_calls": cost.calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


async def answer_worker(
    agent: AgentHandle, tree: Tree, request: JsonObject, send: Callable[..., Awaitable[None]]
) -> None:
    """The control command `worker`; `do` names what to do. Errors: NotFoundError, RefusedError, StorageError."""
    what = request.get("do", "list")
    if what == "list":
        limit, state = request.get("limit", 20), request.get("state")
        if not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
            raise RefusedError(f"limit must be 1 to {MAX_PAGE}")
        await send("worker", **await workers_object(agent, limit=limit, state=None if state is None else str(state)))
        return
    worker_id = await _full_id(agent.workers, request.get("id"))
    if what == "show":
        await send("worker", **await worker_with_steps(agent, worker_id))
    elif what == "cancel":
        cancel_process(tree, worker_id, kind=NodeKind.WORKER, agent_id=agent.id)
        await send("worker", cancelled=worker_id)
    elif what == "tell":
        await send("worker", told=worker_id, message=agent.workers.route(worker_id, str(request.get("message", ""))))
    else:
        raise RefusedError(f"'do' must be list, show, cancel or tell, not {str(what)[:40]!r}")


async def _full_id(desk: WorkerDesk, given: object) -> str:
    """The worker that an id or the beginning of one means. Errors: NotFoundError, RefusedError."""
    if not isinstance(given, str) or not given.strip():
        raise RefusedError("'id' must name a worker")
    return await desk.resolve(given.strip())
