"""What models saw, for the owner: "why did it say that".

A turn, a branch and a worker are found by their id (`process_id`); `GET /api/messages/{id}/fate` names them for a
message, and the timeline of a conversation for what is seen there.

Flow:    request -> Captures.page, Captures.find -> JSON
Floor:   api
Source:  control spec 9 (prompt inspector)
"""

from dataclasses import asdict
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.captures import Block
from spacebot.api.requests import AGENT, Api, Param, maybe, number, route
from spacebot.base.errors import NotFoundError
from spacebot.conversations.captures import Capture
from spacebot.llm.messages import Usage

PAGE, MAX_PAGE = 50, 200
CAPTURE = {
    "id": int, "created_at": str, "agent_id": str, "channel_id": maybe(str), "process_type": str,
    "process_id": maybe(str), "step": int, "model": str, "usage": Usage, "finish_reason": str,
}  # fmt: skip
REPLY = {"text": str, "calls": [{"name": str, "arguments": str}], "finish_reason": str, "error": maybe(str)}


class PromptRoutes:
    """Routes under `/api/prompts/captures`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/prompts/captures",
                self.page,
                query=[
                    AGENT,
                    Param("channel_id", "only of this conversation"),
                    Param("process_id", "only of this turn, branch or worker"),
                    Param("limit", "requests", int, PAGE, low=1, high=MAX_PAGE),
                    Param("before", "id of the oldest one already known", int),
                ],
                answer={"captures": [{**CAPTURE, "blocks": int}], "has_more": bool, "kept": int},
            ),
            route(
                "/api/prompts/captures/{capture_id}",
                self.show,
                query=[AGENT],
                answer={**CAPTURE, "blocks": [Block], "reply": REPLY},
            ),
        ]

    async def page(self, request: Request) -> Response:
        """Requests that were made to models, newest first; `kept` is how many an agent keeps."""
        query = request.query_params
        agent = self._api.agent(query.get("agent_id"))
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        found = await agent.captures.page(
            limit=limit + 1,
            before=number(request, "before", None),
            channel_id=query.get("channel_id") or None,
            process_id=query.get("process_id") or None,
        )
        return JSONResponse(
            {
                "captures": [{**_object(agent.id, one), "blocks": one.blocks} for one in found[:limit]],
                "has_more": len(found) > limit,
                "kept": agent.captures.kept,
            }
        )

    async def show(self, request: Request) -> Response:
        """One request with all its pieces in order, and what the model answered."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        wanted = request.path_params["capture_id"]
        if not wanted.isdecimal() or len(wanted) > 18:
            raise HTTPException(400, "the id of a request is a whole number")
        shown = await agent.captures.find(int(wanted))
        if shown is None:
            raise NotFoundError(
                f"there is no request {wanted}; the newest {agent.captures.kept} are kept "
                "(prompt_captures in the configuration says how many)"
            )
        return JSONResponse(
            {
                **_object(agent.id, shown.capture),
                "blocks": [asdict(block) for block in shown.blocks],
                "reply": dict(shown.reply),
            }
        )


def _object(agent_id: str, capture: Capture) -> dict[str, Any]:
    return {**asdict(capture), "agent_id": agent_id}
