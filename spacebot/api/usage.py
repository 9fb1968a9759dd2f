"""What models cost: totals, by model, day, agent and process, and the day's budgets; over HTTP and the control socket.

Flow:   /api/usage -> UsageDesk.report of each agent -> sums by day
Floor:  api
Source: control spec 2.15
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.budget import BudgetState
from spacebot.api.contract import AgentHandle, Program
from spacebot.api.requests import Api, Param, maybe, number, route
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.ids import AgentId
from spacebot.conversations.usage_log import UsageReport, UsageTotal
from spacebot.llm.prices import CostStatus

DAYS, MOST_DAYS = 30, 3660

TOTAL = {
    "requests": int, "input_tokens": int, "output_tokens": int, "cache_read_tokens": int, "cache_write_tokens": int,
    "reasoning_tokens": int, "cost_usd": maybe(float), "cost_status": CostStatus, "saved_usd": float,
}  # fmt: skip
BUDGET = {
    "agent_id": str, "day": str, "daily_usd": maybe(float), "daily_tokens": maybe(int), "warn_at": float,
    "spent_usd": float, "spent_tokens": int, "state": BudgetState, "resumes_at": str,
}  # fmt: skip


class UsageRoutes:
    """The route `/api/usage`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/usage",
                self.usage,
                query=[
                    Param("days", "days, today included", int, DAYS, low=1, high=MOST_DAYS),
                    Param("agent_id", "only of this agent; all agents when it is left out"),
                ],
                answer={
                    "since": maybe(str),
                    "totals": TOTAL,
                    "by_model": [{"model": str, **TOTAL}],
                    "by_day": [{"day": str, **TOTAL}],
                    "by_agent": [{"agent_id": str, **TOTAL}],
                    "by_process": [{"process": str, **TOTAL}],
                    "budgets": [BUDGET],
                },
            )
        ]

    async def usage(self, request: Request) -> Response:
        """What models cost in the last days, today included, and how each agent stands with its budget."""
        days = number(request, "days", DAYS, low=1, high=MOST_DAYS) or DAYS
        agent_id = request.query_params.get("agent_id")
        agents = [self._api.agent(agent_id)] if agent_id else list(self._api.program.agents.values())
        return JSONResponse(await usage_object(agents, days))


async def answer_usage(program: Program, request: Mapping[str, Any], send: Callable[..., Awaitable[None]]) -> None:
    """The control command `usage`. Errors: NotFoundError, RefusedError, StorageError."""
    days, wanted = request.get("days", DAYS), request.get("agent")
    if not isinstance(days, int) or not 1 <= days <= MOST_DAYS:
        raise RefusedError(f"'days' must be a whole number from 1 to {MOST_DAYS}")
    agents = list(program.agents.values())
    if wanted is not None:
        agents = [agent for agent in agents if agent.id == AgentId(str(wanted))]
        if not agents:
            raise NotFoundError(f"no agent {str(wanted)[:80]!r} is running; spacebot status lists the agents")
    await send("usage", **await usage_object(agents, days))


def budgets_object(agents: Iterable[AgentHandle]) -> list[dict[str, Any]]:
    """How agents stand with their budgets of the day, for programs."""
    return [{"agent_id": str(agent.id), **agent.usage.budget.view().to_json_object()} for agent in agents]


async def usage_object(agents: Iterable[AgentHandle], days: int) -> dict[str, Any]:
    """What models of some agents cost, for programs. Errors: StorageError."""
    reports: dict[str, UsageReport] = {}
    since = None
    for agent in (agents := list(agents)):
        reports[str(agent.id)] = await agent.usage.report(days)
        first = agent.usage.first_day(days)
        since = first if since is None else min(since, first)
    by_agent = {agent_id: report.total for agent_id, report in reports.items()}
    return {
        "since": since,
        "totals": sum(by_agent.values(), UsageTotal()).to_json_object(),
        "by_model": _listed("model", _merged(report.by_model for report in reports.values())),
        "by_day": _listed("day", dict(sorted(_merged(report.by_day for report in reports.values()).items()))),
        "by_agent": _listed("agent_id", by_agent),
        "by_process": _listed("process", _merged(report.by_process for report in reports.values())),
        "budgets": budgets_object(agents),
    }


def _merged(parts: Iterable[Mapping[str, UsageTotal]]) -> dict[str, UsageTotal]:
    """The sums of several agents; the dearest first."""
    sums: dict[str, UsageTotal] = {}
    for part in parts:
        for name, total in part.items():
            sums[name] = sums.get(name, UsageTotal()) + total
    return dict(sorted(sums.items(), key=lambda item: (-item[1].cost_usd, -item[1].requests, item[0])))


def _listed(key: str, totals: Mapping[str, UsageTotal]) -> list[dict[str, Any]]:
    return [{key: name, **total.to_json_object()} for name, total in totals.items()]
