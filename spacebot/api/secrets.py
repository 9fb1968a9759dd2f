"""The secret store over HTTP: names in, names out; a value goes in and never comes out.

Flow:    request -> SecretStore, in a thread -> LiveSecrets.refresh -> the configuration is read again
Floor:   api
Source:  tools spec 14.3; control spec 6.2
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.requests import Api, Body, read_body, route
from spacebot.api.secret_control import secrets_state
from spacebot.api.shapes import SECRET
from spacebot.base.errors import RefusedError, ToolError
from spacebot.base.telemetry import kv
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import Category, LockedError, SecretInfo, check_name
from spacebot.tools.sandbox import check_environment

log = logging.getLogger(__name__)

T = TypeVar("T")


class SecretBody(Body):
    """`PUT /api/secrets/{name}`; without a category a known name keeps its own, and a new one is `system`."""

    value: SecretStr
    category: str | None = None


class SecretRoutes:
    """Routes under `/api/secrets`; for the owner, as all routes are."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/secrets", self.list_secrets, answer={"secrets": [SECRET]}),
            route("/api/secrets/status", self.status, answer={"warnings": [str], "*": Any}),
            route("/api/secrets/{name}", self.put, "PUT", body=SecretBody, answer={**SECRET, "is_new": bool}),
            route("/api/secrets/{name}", self.delete, "DELETE", answer={"success": bool}),
        ]

    @property
    def _secrets(self) -> LiveSecrets:
        if self._api.secrets is None:
            raise HTTPException(404, "this server has no secret store")
        return self._api.secrets

    async def list_secrets(self, _: Request) -> Response:
        """All names, by name."""
        infos = await self._work(self._secrets.store().list)
        return JSONResponse({"secrets": [_object(info) for info in infos]})

    async def status(self, _: Request) -> Response:
        """Whether the store is open, and how many secrets there are of each category."""
        return JSONResponse({**await secrets_state(self._secrets), "warnings": list(self._secrets.warnings)})

    async def put(self, request: Request) -> Response:
        """Store or change a value."""
        name = check_name(request.path_params["name"])
        body = await read_body(request, SecretBody)
        category = _category(body.category)
        known = {info.name: info.category for info in await self._work(self._secrets.store().list)}
        if (category or known.get(name)) is Category.TOOL:
            _check_variable(name)
        store = partial(self._secrets.store().set, name, body.value.get_secret_value(), category)
        info, is_new = await self._work(store)
        await self._take_over()
        log.info("secret stored", extra=kv(name=name, category=info.category, is_new=is_new))
        return JSONResponse({**_object(info), "is_new": is_new})

    async def delete(self, request: Request) -> Response:
        """Remove one."""
        name = check_name(request.path_params["name"])
        await self._work(partial(self._secrets.store().remove, name))
        await self._take_over()
        log.info("secret removed", extra=kv(name=name))
        return JSONResponse({"success": True})

    async def _take_over(self) -> None:
        await self._work(self._secrets.refresh)
        await self._api.program.reload_config()

    async def _work(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work)
        except LockedError as error:
            raise HTTPException(423, f"{error}; open it with: spacebot secret unlock") from error


def _object(info: SecretInfo) -> dict[str, str]:
    return {
        "name": info.name, "category": info.category, "created_at": info.created_at, "updated_at": info.updated_at,
    }  # fmt: skip


def _category(text: str | None) -> Category | None:
    if text is not None and text not in set(Category):
        raise RefusedError(f"category must be one of: {', '.join(Category)}")
    return None if text is None else Category(text)


def _check_variable(name: str) -> None:
    try:
        check_environment({name: ""})
    except ToolError as error:
        raise RefusedError(f"{name} cannot be a variable of commands; choose another name") from error
