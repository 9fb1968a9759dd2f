"""The models that can be asked, and fetching the list of them anew; over HTTP and the control socket.

The list comes from the catalogue in memory; models.dev is asked only when somebody wants it refreshed.

Flow:   /api/models -> ModelCatalogue.models; /api/models/refresh -> ModelCatalogue.refresh
Floor:  api
Source: control spec 2.14, 4.7
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import Program
from spacebot.api.requests import Api, Param, maybe, route
from spacebot.base.errors import ExternalError
from spacebot.llm.catalogue import CatalogueModel
from spacebot.llm.prices import Price

CAPABILITIES = ("input_audio", "voice_transcription")

MODELS = {
    "models": [
        {
            "id": str, "name": str, "provider": str, "context_window": maybe(int), "tool_call": maybe(bool),
            "reasoning": bool, "input_audio": bool, "input_image": bool, "price": maybe(Price),
        }
    ],
    "fetched_at": str,
    "is_stale": bool,
}  # fmt: skip


class ModelRoutes:
    """Routes under `/api/models`."""

    def __init__(self, api: Api) -> None:
        self._program = api.program

    def routes(self) -> list[Route]:
        """The table."""
        query = [
            Param("provider", "only of this provider"),
            Param("capability", "only those that hear, or that turn recordings into words", one_of=CAPABILITIES),
        ]
        return [
            route("/api/models", self.models, query=query, answer=MODELS),
            route("/api/models/refresh", self.refresh, "POST", query=query, answer=MODELS),
        ]

    async def models(self, request: Request) -> Response:
        """Models of the providers that are configured, with what they can and cost."""
        return JSONResponse(await self._listed(request))

    async def refresh(self, request: Request) -> Response:
        """Fetch the model catalogue anew; 502 when it is not to be had, and the copy in use stays."""
        try:
            await self._program.catalogue.refresh()
        except ExternalError as error:  # elsewhere: nothing is wrong with the program
            return JSONResponse({"error": str(error)}, 502)
        return JSONResponse(await self._listed(request))

    async def _listed(self, request: Request) -> dict[str, Any]:
        capability = request.query_params.get("capability") or None
        if capability is not None and capability not in CAPABILITIES:
            raise HTTPException(400, f"'capability' must be one of: {', '.join(CAPABILITIES)}")
        return await models_object(self._program, request.query_params.get("provider") or None, capability)


async def answer_models(program: Program, request: Mapping[str, Any], send: Callable[..., Awaitable[None]]) -> None:
    """The control command `models`. Errors: ExternalError, RefusedError when a refresh fails."""
    if request.get("refresh"):
        await program.catalogue.refresh()
    provider = request.get("provider")
    await send("models", **await models_object(program, str(provider) if provider else None, None))


async def models_object(program: Program, provider: str | None, capability: str | None) -> dict[str, Any]:
    """The models of the configured providers, for programs."""
    catalogue = program.catalogue
    found = await catalogue.models(program.config.llm)
    return {
        "models": [
            _object(model)
            for model in found
            if (provider is None or model.provider == provider) and _fits(model, capability)
        ],
        "fetched_at": catalogue.fetched_at,
        "is_stale": catalogue.is_stale,
    }


def _fits(model: CatalogueModel, capability: str | None) -> bool:
    match capability:
        case "input_audio":
            return model.input_audio
        case "voice_transcription":
            return model.is_voice
        case _:
            return True


def _object(model: CatalogueModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "provider": model.provider,
        "context_window": model.context_window,
        "tool_call": model.tool_call,
        "reasoning": model.reasoning,
        "input_audio": model.input_audio,
        "input_image": model.input_image,
        "price": None if model.price is None else asdict(model.price),
    }
