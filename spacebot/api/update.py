"""What is known of newer releases, over HTTP.

Floor:   api
Source:  control spec 3.5; the looking itself is `agent/updates.py`
"""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.updates import UpdateState
from spacebot.api.requests import Api, maybe, route


class UpdateRoutes:
    """Routes under `/api/update`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/update/check", self.show, answer=UpdateState),
            route("/api/update/check", self.check, "POST", answer=UpdateState),
            route("/api/update/apply", self.apply, "POST", answer={"status": str, "message": str, "error": maybe(str)}),
        ]

    async def show(self, _: Request) -> Response:
        """What is known of newer releases; asks nobody."""
        return JSONResponse(asdict(self._api.program.updates.state))

    async def check(self, _: Request) -> Response:
        """Look for a newer release now."""
        return JSONResponse(asdict(await self._api.program.updates.check()))

    async def apply(self, _: Request) -> Response:
        """How to update: the program does not replace itself."""
        words = self._api.program.updates.state.cannot_apply_reason
        message = f"this program does not replace itself. To update: {words}"
        return JSONResponse({"status": "error", "message": message, "error": message}, 409)
