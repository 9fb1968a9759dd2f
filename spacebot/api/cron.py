"""Schedules over HTTP and the control socket: list, make, run now, switch, delete, history.

Flow:    /api/agents/cron..., control command `cron` -> Agent.schedules
Floor:   api
Source:  tools spec 17, control spec 4.6
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.scheduled import Schedules
from spacebot.api.contract import AgentHandle
from spacebot.api.requests import AGENT, DONE, Api, Body, Param, read_body, required, route
from spacebot.api.shapes import JOB, RUN
from spacebot.base.errors import RefusedError

MOST_SHOWN = 500  # runs

JsonObject = Mapping[str, Any]


class JobForm(Body):
    """A job as a caller sends it; the schedules check the rest."""

    agent_id: str | None = None
    id: str
    prompt: str
    interval_secs: int | None = None
    cron_expr: str | None = None
    timezone: str | None = None
    delivery_target: str = "home"
    active_start_hour: int | None = None
    active_end_hour: int | None = None
    enabled: bool = True
    run_once: bool = False
    timeout_secs: int | None = None


class NamedForm(Body):
    """Which job."""

    agent_id: str | None = None
    cron_id: str


class ToggleForm(NamedForm):
    """Which job, on or off."""

    enabled: bool


class CronRoutes:
    """Routes under `/api/agents/cron`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/agents/cron", self.list_jobs, query=[AGENT], answer={"jobs": [JOB], "timezone": str}),
            route("/api/agents/cron", self.save, "POST", body=JobForm, answer={**DONE, "job": JOB}),
            route(
                "/api/agents/cron",
                self.delete,
                "DELETE",
                query=[AGENT, Param("cron_id", "which", is_needed=True)],
                answer=DONE,
            ),
            route(
                "/api/agents/cron/executions",
                self.executions,
                query=[
                    AGENT,
                    Param("cron_id", "only of this job"),
                    Param("limit", "runs", int, 50, low=1, high=MOST_SHOWN),
                ],
                answer={"executions": [RUN]},
            ),
            route(
                "/api/agents/cron/trigger", self.trigger, "POST", body=NamedForm, answer={**DONE, "execution_id": int}
            ),
            route("/api/agents/cron/toggle", self.toggle, "PUT", body=ToggleForm, answer={**DONE, "job": JOB}),
        ]

    def _schedules(self, agent_id: str | None) -> Schedules:
        return self._api.agent(agent_id).schedules

    async def list_jobs(self, request: Request) -> Response:
        """All jobs of an agent, and the time zone of those that name none."""
        return JSONResponse(await jobs_object(self._schedules(request.query_params.get("agent_id"))))

    async def save(self, request: Request) -> Response:
        """Make a job, or give one of that id other fields."""
        form = await read_body(request, JobForm)
        job = await self._schedules(form.agent_id).save(
            form.model_dump(exclude={"agent_id"}, exclude_none=True), replace=True
        )
        return JSONResponse({"success": True, "message": f"{job.id} is scheduled", "job": job.to_json_object()})

    async def delete(self, request: Request) -> Response:
        """Delete a job with its history."""
        await self._schedules(request.query_params.get("agent_id")).delete(required(request, "cron_id"))
        return JSONResponse({"success": True, "message": "deleted"})

    async def executions(self, request: Request) -> Response:
        """Runs, the newest first."""
        query = request.query_params
        limit = query.get("limit", "50")
        if not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= MOST_SHOWN:
            raise RefusedError(f"limit must be 1 to {MOST_SHOWN}")
        schedules = self._schedules(query.get("agent_id"))
        return JSONResponse(await runs_object(schedules, query.get("cron_id"), int(limit)))

    async def trigger(self, request: Request) -> Response:
        """Have a job run now; answers at once."""
        form = await read_body(request, NamedForm)
        run = await self._schedules(form.agent_id).trigger(form.cron_id)
        return JSONResponse({"success": True, "message": "it runs", "execution_id": run.seq})

    async def toggle(self, request: Request) -> Response:
        """Switch a job on or off."""
        form = await read_body(request, ToggleForm)
        job = await self._schedules(form.agent_id).set_enabled(form.cron_id, form.enabled)
        return JSONResponse({"success": True, "message": "on" if job.enabled else "off", "job": job.to_json_object()})


async def jobs_object(schedules: Schedules) -> dict[str, Any]:
    """All jobs, for programs."""
    jobs = [job.to_json_object() for job in await schedules.all()]
    return {"jobs": jobs, "timezone": str(schedules.zone)}


async def runs_object(schedules: Schedules, job_id: str | None, limit: int) -> dict[str, Any]:
    """Runs, for programs."""
    return {
        "executions": [
            {
                **asdict(run),
                "id": run.seq,
                "cron_id": run.job_id,
                "executed_at": run.started_at or run.claimed_at,
                "success": run.state in ("done", "silent"),
                "result_summary": run.summary or run.note,
            }
            for run in await schedules.history(job_id, limit)
        ]
    }


async def answer_cron(agent: AgentHandle, request: JsonObject, send: Callable[..., Awaitable[None]]) -> None:
    """The control command `cron`; `do` names what to do. Errors: NotFoundError, RefusedError, StorageError."""
    schedules, what, job_id = agent.schedules, request.get("do", "list"), request.get("id")
    if what == "list":
        await send("cron", **await jobs_object(schedules))
    elif what == "history":
        limit = request.get("limit", 20)
        if not isinstance(limit, int) or not 1 <= limit <= MOST_SHOWN:
            raise RefusedError(f"limit must be 1 to {MOST_SHOWN}")
        await send("cron", **await runs_object(schedules, job_id if isinstance(job_id, str) else None, limit))
    elif what == "add":
        fields = request.get("job")
        if not isinstance(fields, dict):
            raise RefusedError("'job' must be an object")
        await send("cron", job=(await schedules.save(fields)).to_json_object())
    elif not isinstance(job_id, str):
        raise RefusedError("'id' must name a job")
    elif what == "rm":
        await schedules.delete(job_id)
        await send("cron", deleted=job_id)
    elif what == "run":
        await send("cron", run=(await schedules.trigger(job_id)).seq)
    elif what in ("enable", "disable"):
        await send("cron", job=(await schedules.set_enabled(job_id, what == "enable")).to_json_object())
    else:
        raise RefusedError(f"'do' must be list, history, add, rm, run, enable or disable, not {str(what)[:40]!r}")
