"""Skills over HTTP: what an agent has, install, remove, and the registry of public ones.

Flow:    request -> SkillDesk -> JSON
Floor:   api
Source:  control spec 4.6; tools spec 17
"""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.skill_desk import SharedSkillError
from spacebot.api.requests import AGENT, Api, Body, Param, number, read_body, required, route
from spacebot.api.shapes import VIEWS
from spacebot.base.errors import ExternalError, ToolError
from spacebot.tools.skill_text import SkillError

RESULTS = 50
MAX_RESULTS = 100


class InstallBody(Body):
    """What to install, and for whom."""

    spec: str
    agent_id: str | None = None
    instance: bool = False
    replace: bool = False


class RemoveBody(Body):
    """What to remove."""

    name: str
    agent_id: str | None = None
    instance: bool = False


class SkillRoutes:
    """Routes under `/api/agents/skills` and `/api/skills/registry`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/agents/skills", self.list_skills, query=[AGENT], answer={"skills": [{"*": Any}]}),
            route("/api/agents/skills/install", self.install, "POST", body=InstallBody, answer={"installed": [str]}),
            route(
                "/api/agents/skills/remove",
                self.remove,
                "DELETE",
                body=RemoveBody,
                answer={"success": bool, "path": str},
            ),
            route(
                "/api/skills/registry/browse",
                self.browse,
                query=[Param("view", "which list", one_of=VIEWS), Param("page", "from 0", int, 0, low=0, high=10_000)],
                answer={"skills": [{"*": Any}], "has_more": bool},
            ),
            route(
                "/api/skills/registry/search",
                self.search,
                query=[
                    Param("q", "words, two characters or more", is_needed=True),
                    Param("limit", "skills", int, RESULTS, low=1, high=MAX_RESULTS),
                ],
                answer={"skills": [{"*": Any}], "query": str, "count": int},
            ),
        ]

    async def list_skills(self, request: Request) -> Response:
        """All skills of an agent, its own and those of all agents, by name."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        return JSONResponse({"skills": await agent.skill_desk.describe()})

    async def install(self, request: Request) -> Response:
        """Install from a repository; all of it, or nothing."""
        body = await read_body(request, InstallBody)
        desk = self._api.agent(body.agent_id).skill_desk
        try:
            names = await desk.install(body.spec, for_all=body.instance, replace=body.replace)
        except SkillError as error:
            raise HTTPException(400, str(error)) from error
        except ExternalError as error:
            raise HTTPException(502, str(error)) from error
        return JSONResponse({"installed": names})

    async def remove(self, request: Request) -> Response:
        """Remove a skill; one of all agents only when that is said."""
        body = await read_body(request, RemoveBody)
        desk = self._api.agent(body.agent_id).skill_desk
        try:
            path = await desk.remove(body.name, for_all=body.instance)
        except SharedSkillError as error:
            raise HTTPException(403, str(error)) from error
        except ToolError as error:
            raise HTTPException(404, str(error)) from error
        return JSONResponse({"success": True, "path": path})

    async def browse(self, request: Request) -> Response:
        """A page of the registry."""
        page = number(request, "page", 0, high=10_000) or 0
        view = request.query_params.get("view", "")
        try:
            listing = await self._api.agent(None).skill_desk.browse(view, page)
        except ExternalError as error:
            raise HTTPException(502, str(error)) from error
        return JSONResponse({"skills": [one.to_json_object() for one in listing.skills], "has_more": listing.has_more})

    async def search(self, request: Request) -> Response:
        """Skills of the registry that fit some words."""
        query, limit = required(request, "q"), number(request, "limit", RESULTS, low=1, high=MAX_RESULTS) or RESULTS
        try:
            listing = await self._api.agent(None).skill_desk.search(query, limit)
        except ExternalError as error:
            raise HTTPException(502, str(error)) from error
        skills = [one.to_json_object() for one in listing.skills]
        return JSONResponse({"skills": skills, "query": query, "count": len(skills)})
