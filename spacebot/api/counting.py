"""Counting of the API's answers, outermost of all, so that refusals count too.

Floor:  api
Source: control spec 6.5, pitfall 89: patterns of addresses, never the addresses
"""

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spacebot.api.tally import OTHER, HttpFigures
from spacebot.base.clock import monotonic_s

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
CUT = 499  # as proxies write it: the caller was gone before there was an answer


def patterns(routes: Iterable[BaseRoute]) -> dict[Any, str]:
    """The address of each endpoint, as its route has it."""
    return {route.endpoint: route.path for route in routes if isinstance(route, Route)}


class Counting:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, figures: HttpFigures, paths: Mapping[Any, str]) -> None:
        self._app = app
        self._figures = figures
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = monotonic_s(), CUT

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            path = self._paths.get(scope.get("endpoint"), OTHER)
            self._figures.note(method, path, status, monotonic_s() - began)
