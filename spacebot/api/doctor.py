"""The doctor over HTTP: the same checks as `spacebot doctor`, of the running program.

Floor:   api
Source:  agent/checks.py
"""

import os

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot import __version__
from spacebot.agent.checks import Finding, Grade, Report, Scene, examine, summary
from spacebot.agent.checks_machine import MACHINE, MACHINE_ASKING, check_names
from spacebot.agent.checks_program import ONLINE, PROGRAM
from spacebot.api.messaging_control import messaging_status, try_adapter
from spacebot.api.requests import Api, Param, route
from spacebot.api.secret_control import secrets_state
from spacebot.base.errors import BusyError, SpacebotError


class DoctorRoutes:
    """The route under `/api/system/doctor`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._limiter = trio.CapacityLimiter(1)  # it starts programs and reads databases

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route(
                "/api/system/doctor",
                self.examine,
                query=[Param("online", "1 also asks providers and platforms, for a few tokens", int, 0, low=0, high=1)],
                answer={
                    "ok": bool, "version": str, "counts": {str(grade): int for grade in Grade}, "findings": [Finding],
                },
            )
        ]  # fmt: skip

    async def examine(self, request: Request) -> Response:
        """Everything that tends to go wrong, looked at now: how it is, and what mends it."""
        if self._limiter.available_tokens < 1:
            raise BusyError("it is being looked at already; wait for that")
        async with self._limiter:
            online = request.query_params.get("online") == "1"
            scene = await self._scene()
            asking = {**MACHINE_ASKING, **({"names": check_names, **ONLINE} if online else {})}
            findings = await examine(scene, {**PROGRAM, **MACHINE}, asking)
            if online:
                findings += await self._ask_platforms()
        return JSONResponse(summary(findings))

    async def _scene(self) -> Scene:
        program = self._api.program
        secrets = {} if self._api.secrets is None else await secrets_state(self._api.secrets)
        return Scene(
            paths=program.paths,
            config=program.config,
            warnings=program.warnings,
            status={
                "version": __version__,
                "pid": os.getpid(),
                "adapters": (await messaging_status(program))["instances"],
                "update": {
                    "update_available": program.updates.state.update_available,
                    "latest_version": program.updates.state.latest_version,
                    "error": program.updates.state.error,
                    "cannot_apply_reason": program.updates.state.cannot_apply_reason,
                },
            },
            pid=os.getpid(),
            secrets=secrets,
            environ=dict(os.environ),
        )

    async def _ask_platforms(self) -> list[Finding]:
        say, findings = Report("tokens"), []
        for _, key, account in self._api.program.config.messaging.accounts():
            if account.enabled:
                try:
                    answer = await try_adapter(self._api.program, key, None, None)
                except SpacebotError as error:
                    answer = {"success": False, "message": str(error)}
                said = f"{key}: {answer['message']}"
                findings.append(say.ok(said) if answer["success"] else say.fail(said, f"look at [messaging.{key}]"))
        return findings
