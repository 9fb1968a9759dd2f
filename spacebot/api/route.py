"""Which model would answer a text: over HTTP and for `spacebot route explain`.

Flow:    route, control command `route` -> Program.explain_route -> JSON
Floor:   api
Source:  control spec 2.4 to 2.7
"""

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import Program
from spacebot.api.requests import Api, Body, read_body
from spacebot.base.errors import RefusedError
from spacebot.base.ids import AgentId
from spacebot.llm.messages import ProcessKind

MAX_TEXT = 100_000  # characters


class ExplainBody(Body):
    """`POST /api/route/explain`."""

    text: str = Field(max_length=MAX_TEXT)
    process: str = "channel"
    task_type: str | None = Field(default=None, max_length=100)
    agent_id: str | None = None


class RouteRoutes:
    """Routes under `/api/route`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [Route("/api/route/explain", self.explain, methods=["POST"])]

    async def explain(self, request: Request) -> Response:
        """Which model would answer a text now, and why; nothing is asked."""
        body = await read_body(request, ExplainBody)
        agent = self._api.agent(body.agent_id)
        return JSONResponse(explain_route(self._api.program, agent.id, body.text, body.process, body.task_type))


def explain_route(
    program: Program, agent_id: AgentId, text: str, process: str, task_type: str | None
) -> dict[str, Any]:
    """The explanation as plain values. Errors: RefusedError for an unknown process."""
    try:
        kind = ProcessKind(process)
    except ValueError:
        raise RefusedError(f"process must be one of {', '.join(ProcessKind)}, not {process[:40]!r}") from None
    return {"agent": agent_id, **program.explain_route(agent_id, text[:MAX_TEXT], kind, task_type).to_json_object()}
