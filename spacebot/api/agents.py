"""The agents: which there are and how they fare, making and deleting them, pausing them, who they are, what they did.

Making and deleting is a change of the configuration file, which the running program then takes over, as it does when
a person edits the file; the same functions serve HTTP and the command line.

Flow:    /api/agents..., control command `agent` -> ConfigEditor -> Program.reload_config -> Roster.reconcile
Floor:   api
Source:  control spec 4.2 and 4.3; process spec 2.5; pitfall 8.1.16
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot import __version__
from spacebot.agent.profile import Profile
from spacebot.agent.roster import AgentState, AgentView
from spacebot.api.contract import AgentHandle, Program
from spacebot.api.cron import jobs_object
from spacebot.api.requests import AGENT, DONE, Api, Body, Param, maybe, read_body, required, route
from spacebot.api.shapes import JOB
from spacebot.base.clock import monotonic_s, to_text
from spacebot.base.errors import BusyError, ConfigError, NotFoundError, RefusedError, StorageError
from spacebot.base.ids import parse_agent_id
from spacebot.base.redaction import scrub
from spacebot.base.tree import NodeKind
from spacebot.config.environment import deployment, max_agents
from spacebot.config.model import AgentConfig
from spacebot.conversations.activity import Heat
from spacebot.memory.curation_log import CurationEvent

SPARK_DAYS, DAYS = 14, 30
EVENTS = 5  # of the cortex, in an overview
OPENING_S = 30.0  # for an agent that is made, deleted or opened anew
FIGURES_S = 3.0  # for one agent's figures; the others are shown even if its store hangs
MAX_OFFSET = 14 * 60  # minutes between a reader's clock and UTC
HOSTED = "hosted"
DEMO = "demo/"

JsonObject = Mapping[str, Any]

OFFSET = Param("utc_offset", "minutes by which the reader's clock is ahead of UTC", int, 0)
IDENTITY = {"soul": str, "identity": str, "user": str}
AGENT_STATE = {
    "id": str, "is_default": bool, "state": AgentState, "paused": bool, "since": str, "reason": str, "attempts": int,
    "next_attempt_at": maybe(str), "model": maybe(str), "is_demo": bool, "workspace": maybe(str),
    "context_window": maybe(int), "max_turns": maybe(int), "max_concurrent_branches": maybe(int),
    "max_concurrent_workers": maybe(int),
}  # fmt: skip
FIGURES = {
    "problem?": maybe(str), "channel_count?": int, "memory_total?": int, "cron_job_count?": int,
    "activity_sparkline?": [int], "last_activity_at?": maybe(str), "last_bulletin_at?": maybe(str),
    "profile?": maybe(Profile), "live?": {"channels": int, "turns": int, "branches": int, "workers": int},
}  # fmt: skip
OVERVIEW = {
    "version": str, "uptime_seconds": int, "pid": int, "default_agent_id": str, "warnings": [str],
    "agents": [{**AGENT_STATE, **FIGURES}],
}  # fmt: skip
IN_NUMBERS = {
    "agent_id": str, "memory_total": int, "memory_counts": {"*": int}, "channel_count": int,
    "last_activity_at": maybe(str), "cron_jobs": [JOB], "last_bulletin_at": maybe(str), "latest_bulletin": str,
    "recent_cortex_events": [CurationEvent], "memory_daily": [{"date": str, "count": int}],
    "activity_daily": [{"date": str, "messages": int, "branches": int, "workers": int}], "activity_heatmap": [Heat],
}  # fmt: skip


class NewAgent(Body):
    """`POST /api/agents`. A workspace that is not given lies in the agent's own folder."""

    agent_id: str
    workspace: str | None = None


class PauseForm(Body):
    """`POST /api/agents/pause`."""

    agent_id: str
    paused: bool


class IdentityForm(Body):
    """`PUT /api/agents/identity`: what is left out stays as it is."""

    agent_id: str | None = None
    soul: str | None = None
    identity: str | None = None
    user: str | None = None


class AgentRoutes:
    """Routes under `/api/agents` that concern an agent as a whole, and `/api/overview`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._program = api.program

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/overview", self.overview, query=[OFFSET], answer=OVERVIEW),
            route("/api/agents", self.list_agents, answer={"default_agent_id": str, "agents": [AGENT_STATE]}),
            route("/api/agents", self.create, "POST", body=NewAgent, answer={**DONE, "agent_id": str}),
            route(
                "/api/agents",
                self.delete,
                "DELETE",
                query=[
                    Param("agent_id", "which", is_needed=True),
                    Param("give_to", "another agent that gets its bindings"),
                ],
                answer={**DONE, "agent_id": str},
            ),
            route(
                "/api/agents/pause",
                self.pause,
                "POST",
                body=PauseForm,
                answer={**DONE, "agent_id": str, "paused": bool},
            ),
            route("/api/agents/overview", self.of_agent, query=[AGENT, OFFSET], answer=IN_NUMBERS),
            route("/api/agents/profile", self.profile, query=[AGENT], answer={"profile": maybe(Profile)}),
            route("/api/agents/identity", self.identity, query=[AGENT], answer=IDENTITY),
            route("/api/agents/identity", self.write_identity, "PUT", body=IdentityForm, answer=IDENTITY),
        ]

    async def overview(self, request: Request) -> Response:
        """The program at a glance: every agent with what it knows, what it does and how alive it is."""
        api, offset = self._api, _offset(request)
        return JSONResponse(
            {
                "version": __version__,
                "uptime_seconds": int(monotonic_s() - api.started_at),
                "pid": os.getpid(),
                "default_agent_id": self._program.default_agent_id,
                "warnings": [scrub(warning) for warning in self._program.warnings],
                "agents": await self._all_figures(offset),
            }
        )

    async def list_agents(self, _: Request) -> Response:
        """Every agent, those that do not run included, with the reason."""
        return JSONResponse(agents_object(self._program))

    async def create(self, request: Request) -> Response:
        """Make an agent; it runs when this answers."""
        form = await read_body(request, NewAgent)
        message = await create_agent(self._program, form.agent_id, form.workspace)
        return JSONResponse({"success": True, "agent_id": form.agent_id, "message": message})

    async def delete(self, request: Request) -> Response:
        """Delete an agent; its files stay. `give_to` names another that gets its bindings."""
        agent_id = required(request, "agent_id")
        message = await delete_agent(self._program, agent_id, request.query_params.get("give_to"))
        return JSONResponse({"success": True, "agent_id": agent_id, "message": message})

    async def pause(self, request: Request) -> Response:
        """Pause an agent, or let it go on."""
        form = await read_body(request, PauseForm)
        message = await pause_agent(self._program, form.agent_id, is_on=form.paused)
        return JSONResponse({"success": True, "agent_id": form.agent_id, "paused": form.paused, "message": message})

    async def of_agent(self, request: Request) -> Response:
        """One agent: what it knows, its schedules, its bulletin, what its cortex did, its days and its week."""
        agent, offset = self._api.agent(request.query_params.get("agent_id")), _offset(request)
        history = await agent.memory_views.history(days=DAYS, utc_offset_minutes=offset)
        active, heat = await agent.activity.history(days=DAYS, utc_offset_minutes=offset)
        pulse = await agent.activity.pulse(days=1)
        events, _ = await agent.memory_views.events(limit=EVENTS)
        return JSONResponse(
            {
                "agent_id": agent.id,
                "memory_total": history.now.total,
                "memory_counts": {str(kind): count for kind, count in history.now.by_type.items()},
                "channel_count": pulse.channels,
                "last_activity_at": pulse.last_activity_at,
                "cron_jobs": (await jobs_object(agent.schedules))["jobs"],
                "last_bulletin_at": agent.cortex.state()["bulletin"]["generated_at"],
                "latest_bulletin": await agent.briefing(),
                "recent_cortex_events": [asdict(event) for event in events],
                "memory_daily": [{"date": day.day.isoformat(), "count": day.live} for day in history.days],
                "activity_daily": [
                    {
                        "date": day.day.isoformat(),
                        "messages": day.messages,
                        "branches": day.branches,
                        "workers": day.workers,
                    }
                    for day in active
                ],
                "activity_heatmap": [asdict(cell) for cell in heat],
            }
        )

    async def profile(self, request: Request) -> Response:
        """The card that an agent shows of itself; null while there is none."""
        card = await self._api.agent(request.query_params.get("agent_id")).profile()
        return JSONResponse({"profile": None if card is None else asdict(card)})

    async def identity(self, request: Request) -> Response:
        """The three texts that say who an agent is."""
        return JSONResponse(dict(await self._api.agent(request.query_params.get("agent_id")).identity()))

    async def write_identity(self, request: Request) -> Response:
        """Write some of these texts; the next prompt has them."""
        form = await read_body(request, IdentityForm)
        texts = form.model_dump(exclude={"agent_id"}, exclude_none=True)
        return JSONResponse(dict(await self._api.agent(form.agent_id).write_identity(texts)))

    async def _all_figures(self, offset: int) -> list[dict[str, Any]]:
        objects = agents_object(self._program)["agents"]
        async with trio.open_nursery() as nursery:
            for entry in objects:
                if (agent := self._program.agents.get(entry["id"])) is not None:
                    nursery.start_soon(self._add_figures, entry, agent, offset)
        return objects  # type: ignore[no-any-return]

    async def _add_figures(self, entry: dict[str, Any], agent: AgentHandle, offset: int) -> None:
        entry["problem"] = f"no answer within {FIGURES_S:.0f} s"
        with trio.move_on_after(FIGURES_S):
            try:
                entry.update(await _figures(agent, offset))
            except StorageError as error:
                entry["problem"] = scrub(str(error))
        of_agent = [node for node in self._api.tree.of_kind(NodeKind.CHANNEL) if node.agent_id == agent.id]
        entry["live"] = {
            "channels": len(of_agent),
            **{
                name: sum(node.agent_id == agent.id for node in self._api.tree.of_kind(kind))
                for name, kind in (
                    ("turns", NodeKind.TURN),
                    ("branches", NodeKind.BRANCH),
                    ("workers", NodeKind.WORKER),
                )
            },
        }


async def _figures(agent: AgentHandle, offset: int) -> dict[str, Any]:
    pulse = await agent.activity.pulse(days=SPARK_DAYS, utc_offset_minutes=offset)
    stats, profile = await agent.memory.stats(), await agent.profile()
    return {
        "problem": stats.problem,
        "channel_count": pulse.channels,
        "memory_total": stats.total,
        "cron_job_count": len(await agent.schedules.all()),
        "activity_sparkline": list(pulse.daily),
        "last_activity_at": pulse.last_activity_at,
        "last_bulletin_at": agent.cortex.state()["bulletin"]["generated_at"],
        "profile": None if profile is None else asdict(profile),
    }


def _offset(request: Request) -> int:
    """Minutes by which the reader's clock is ahead of UTC (`utc_offset`)."""
    text = request.query_params.get("utc_offset", "0")
    if not (len(text) <= 4 and text.removeprefix("-").isdecimal() and abs(int(text)) <= MAX_OFFSET):
        raise RefusedError(f"utc_offset must be a number of minutes from -{MAX_OFFSET} to {MAX_OFFSET}")
    return int(text)


def agents_object(program: Program) -> dict[str, Any]:
    """Every agent that the configuration names, for programs."""
    configs = {agent.id: agent for agent in program.config.agents}
    return {
        "default_agent_id": program.default_agent_id,
        "agents": [_agent_object(program, view, configs.get(view.id)) for view in program.roster.views()],
    }


def _agent_object(program: Program, view: AgentView, config: AgentConfig | None) -> dict[str, Any]:
    agent = program.agents.get(view.id)
    return {
        "id": view.id,
        "is_default": view.id == program.default_agent_id,
        "state": str(view.state),
        "paused": agent is not None and agent.is_paused,
        "since": to_text(view.since),
        "reason": view.reason,
        "attempts": view.attempts,
        "next_attempt_at": None if view.next_attempt_at is None else to_text(view.next_attempt_at),
        "model": None if agent is None else agent.model_label,
        "is_demo": agent is not None and agent.model_label.startswith(DEMO),
        "workspace": None if config is None or config.workspace is None else str(config.workspace),
        "context_window": None if config is None else config.context_window,
        "max_turns": None if config is None else config.max_turns,
        "max_concurrent_branches": None if config is None else config.max_concurrent_branches,
        "max_concurrent_workers": None if config is None else config.max_concurrent_workers,
    }


async def create_agent(program: Program, agent_id: str, workspace: str | None = None) -> str:
    """Put an agent into the file and wait until it runs; one that cannot run is taken out again.

    Errors: RefusedError for its name or number, and when the file cannot be changed; BusyError with the reason when
        it does not come up.
    """
    try:
        parse_agent_id(agent_id)
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    _check_number(program)
    fields = {"id": agent_id} | ({"workspace": workspace} if workspace else {})
    await _edit(program, partial(program.editor.add_agent, fields))
    view = await _settled(program, agent_id)
    if view is not None and view.state in (AgentState.RUNNING, AgentState.PAUSED):
        return f"agent {agent_id} is running"
    reason = view.reason if view is not None and view.reason else f"it did not open within {OPENING_S:.0f} s"
    await _edit(program, partial(program.editor.remove_agent, agent_id))
    raise BusyError(f"agent {agent_id!r} was not made, because it cannot run: {reason}")


async def delete_agent(program: Program, agent_id: str, give_to: str | None = None) -> str:
    """Take an agent out of the file and wait until all of it has ended; its files stay.

    Errors: NotFoundError; RefusedError for the default agent, when a room would be left open without its bindings,
        and when the file cannot be changed.
    """
    if agent_id not in {agent.id for agent in program.config.agents}:
        raise NotFoundError(f"there is no agent {agent_id[:80]!r}; GET /api/agents lists them")
    dropped = await _edit(program, partial(program.editor.remove_agent, agent_id, give_to=give_to)) or 0
    await _settled(program, agent_id)
    bindings = f"{dropped} binding{'' if dropped == 1 else 's'}"
    fate = f"; {bindings} now lead to {give_to}" if give_to else f"; {bindings} went with it"
    return f"agent {agent_id} is deleted, its files stay" + (fate if dropped else "")


async def pause_agent(program: Program, agent_id: str, *, is_on: bool) -> str:
    """Pause an agent, or let it go on. Errors: NotFoundError, BusyError, StorageError."""
    await program.roster.pause(agent_id, is_on=is_on)
    if is_on:
        return f"agent {agent_id} is paused: it keeps what is said and begins nothing; what runs goes on to its end"
    return f"agent {agent_id} goes on with what has waited"


async def answer_agent(program: Program, request: JsonObject, send: Callable[..., Awaitable[None]]) -> None:
    """The control command `agent`; `do` names what to do. Errors: as the functions above."""
    what, agent_id = request.get("do", "list"), request.get("id")
    if what == "list":
        await send("agent", **agents_object(program))
        return
    if not isinstance(agent_id, str) or not agent_id:
        raise RefusedError("'id' must name an agent")
    match what:
        case "create":
            workspace = request.get("workspace")
            message = await create_agent(program, agent_id, None if workspace is None else str(workspace))
        case "delete":
            give_to = request.get("give_to")
            message = await delete_agent(program, agent_id, None if give_to is None else str(give_to))
        case "pause" | "resume":
            message = await pause_agent(program, agent_id, is_on=what == "pause")
        case _:
            raise RefusedError(f"'do' must be list, create, delete, pause or resume, not {str(what)[:40]!r}")
    await send("agent", message=message)


async def _edit(program: Program, change: Callable[[], int | None]) -> int | None:
    """Change the file and have it taken over. Errors: those of the change; RefusedError when the file forbids it."""
    try:
        result = await trio.to_thread.run_sync(change)
    except ConfigError as error:
        raise RefusedError(scrub(str(error))) from error
    await program.reload_config()
    return result


def _check_number(program: Program) -> None:
    """Errors: RefusedError when the host of this program allows no more agents."""
    most = max_agents(os.environ)
    if deployment(os.environ) == HOSTED and most is not None and len(program.config.agents) >= most:
        raise RefusedError(f"this place holds at most {most} agents (SPACEBOT_MAX_AGENTS); delete one first")


async def _settled(program: Program, agent_id: str) -> AgentView | None:
    """How an agent is once the configuration's change has come through."""
    with trio.move_on_after(OPENING_S):
        await program.roster.settled(agent_id)
    return next((view for view in program.roster.views() if view.id == agent_id), None)
