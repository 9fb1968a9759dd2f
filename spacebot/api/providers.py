"""Hosts of models over HTTP: which there are and how they fare; set one up, try one, take one away. No key comes out.

Flow:    request -> ProviderDesk (file and secret store, in a thread) -> LiveSecrets.refresh -> Program.reload_config
Floor:   api
Source:  control spec 4.7, 1.9; pitfalls 5, 18, 19 and 65
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from pydantic import Field, SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import Program
from spacebot.api.provider_desk import DEMO, Plan, ProviderDesk, ProviderForm, normal_id
from spacebot.api.requests import Api, Body, maybe, read_body, route
from spacebot.base.errors import ConfigError, ModelError, RefusedError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.config.model import Config, LlmConfig
from spacebot.config.provider_table import provider_table
from spacebot.llm.credentials import LoginView
from spacebot.llm.oauth import LoginState
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import LockedError

log = logging.getLogger(__name__)

T = TypeVar("T")

SAMPLE = 200  # characters of a model's answer
SETUP_HINT = (
    "no provider of models is set up, so that built-in rules answer; set one up under Settings, or run: spacebot init"
)
DONE = {"success": bool, "message": str}
DETAILS = {
    "id": str, "name": str, "api_type": str, "base_url": str, "is_builtin": bool, "needs_key": bool, "state": str,
    "reason": maybe(str), "auth": maybe(str), "key_source": maybe(str), "models": {"first": str, "second": str},
    "login": maybe({"state": str, "expires_at": maybe(float), "problem": maybe(str)}),
}  # fmt: skip


class ProviderBody(Body):
    """`PUT /api/providers` and `POST /api/providers/test`.

    `model` is a full name for every role; without it the provider's own models are taken. For Ollama `api_key` may be
    the address. `base_url`, `api_type` and `name` are for providers of the owner's own.
    """

    provider: str = Field(max_length=64)
    api_key: SecretStr | None = None
    model: str | None = Field(default=None, max_length=200)
    base_url: str | None = Field(default=None, max_length=500)
    api_type: str | None = Field(default=None, max_length=40)
    name: str | None = Field(default=None, max_length=100)
    sets_routes: bool = True

    @property
    def form(self) -> ProviderForm:
        """The same for the desk."""
        return ProviderForm(
            provider=self.provider,
            api_key=None if self.api_key is None else self.api_key.get_secret_value(),
            model=self.model,
            base_url=self.base_url,
            api_type=self.api_type,
            name=self.name,
            sets_routes=self.sets_routes,
        )


class ProviderRoutes:
    """Routes under `/api/providers`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._program = api.program
        self._limiter = trio.CapacityLimiter(1)  # changes of the file go one after the other

    def routes(self) -> list[Route]:
        """The table."""
        answer = {"providers": {"*": bool}, "has_any": bool, "needs_setup": bool, "details": [DETAILS]}
        tried = {**DONE, "provider": str, "model": str, "sample": str}
        return [
            route("/api/providers", self.list_providers, answer=answer),
            route("/api/providers", self.put, "PUT", body=ProviderBody, answer=DONE),
            route("/api/providers/test", self.test, "POST", body=ProviderBody, answer=tried),
            route("/api/providers/{provider}", self.delete, "DELETE", answer=DONE),
        ]

    async def list_providers(self, _: Request) -> Response:
        """Every provider: whether it can be used, why not, where its key comes from; never the key."""
        try:
            return JSONResponse(await known_providers(self._program, self._api.secrets))
        except ConfigError as error:
            raise HTTPException(409, scrub(str(error))) from error

    async def put(self, request: Request) -> Response:
        """Set a provider up: its key goes into the secret store, the roles go to its models; counts at once."""
        secrets, plan = await self._plan(request)
        message = await self._work(lambda: self._desk(secrets).save(plan))
        await self._take_over(secrets)
        log.info("provider set up", extra=kv(provider=plan.provider, model=plan.model))
        return JSONResponse({"success": True, "message": message})

    async def test(self, request: Request) -> Response:
        """Ask a provider one word, with what is given; nothing is stored."""
        _, plan = await self._plan(request)
        candidate = plan.candidate(self._program.config.llm)
        fields = {"provider": plan.provider, "model": plan.model, "sample": ""}
        try:
            reply = await self._program.models.try_model(plan.model, candidate)
        except ModelError as error:
            return JSONResponse({"success": False, "message": scrub(str(error)), **fields})
        sample = scrub(" ".join(reply.message.text.split())[:SAMPLE])
        return JSONResponse({"success": True, "message": f"{plan.model} answers", **fields, "sample": sample})

    async def delete(self, request: Request) -> Response:
        """Take a provider out of the file, with its key and the routes to it; a login stays."""
        secrets, provider = self._secrets, normal_id(request.path_params["provider"])
        message = await self._work(lambda: self._desk(secrets).remove(provider))
        await self._take_over(secrets)
        log.info("provider removed", extra=kv(provider=provider))
        return JSONResponse({"success": True, "message": message})

    @property
    def _secrets(self) -> LiveSecrets:
        if self._api.secrets is None:
            raise HTTPException(404, "this server has no secret store")
        return self._api.secrets

    def _desk(self, secrets: LiveSecrets) -> ProviderDesk:
        return ProviderDesk(self._program.editor, secrets.store, secrets.resolve)

    async def _plan(self, request: Request) -> tuple[LiveSecrets, Plan]:
        secrets, body = self._secrets, await read_body(request, ProviderBody)
        return secrets, await self._work(lambda: self._desk(secrets).plan(body.form, self._program.config.llm))

    async def _take_over(self, secrets: LiveSecrets) -> None:
        await self._work(secrets.refresh)
        await self._program.reload_config()

    async def _work(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except LockedError as error:
            raise HTTPException(423, f"{error}; open it with: spacebot secret unlock") from error
        except ConfigError as error:
            raise HTTPException(409, scrub(str(error))) from error
        except RefusedError as error:
            raise HTTPException(400, str(error)) from error


async def login_fields(program: Program) -> dict[str, Any]:
    """What a status says of the login; nothing while nobody is signed in."""
    login = await _login_of(program)
    return {} if login.state is LoginState.NONE else {"login": _login_object(login)}


async def _login_of(program: Program) -> LoginView:
    credentials = program.models.credentials
    return LoginView(state=LoginState.NONE) if credentials is None else await credentials.login()


def _login_object(login: LoginView) -> dict[str, Any]:
    return {"state": str(login.state), "expires_at": login.expires_at, "problem": login.problem}


def setup_fields(config: Config) -> dict[str, Any]:
    """What a status says while nobody has set up a provider."""
    is_needed = config.llm.needs_setup
    return {"needs_setup": is_needed, "setup_hint": SETUP_HINT if is_needed else None}


async def known_providers(program: Program, secrets: LiveSecrets | None) -> dict[str, Any]:
    """All providers of a running program. Errors: ConfigError when the file is broken."""
    login = await _login_of(program)
    sources: Mapping[str, str] = {}
    if secrets is not None:
        desk = ProviderDesk(program.editor, secrets.store, secrets.resolve)
        sources = await trio.to_thread.run_sync(desk.sources)
    return providers_object(program.config.llm, login, sources)


def providers_object(llm: LlmConfig, login: LoginView, sources: Mapping[str, str]) -> dict[str, Any]:
    """All providers for the API and the command line.

    Args:
        sources: where the key of each comes from, by id.
    """
    names = [name for name in provider_table() if name != DEMO]
    names += [name for name in (*llm.provider, *llm.absent) if name not in provider_table()]
    return {
        "providers": {name.replace("-", "_"): name in llm.provider for name in dict.fromkeys(names)},
        "has_any": not llm.needs_setup,
        "needs_setup": llm.needs_setup,
        "details": [_details(name, llm, login, sources) for name in dict.fromkeys(names)],
    }


def _details(name: str, llm: LlmConfig, login: LoginView, sources: Mapping[str, str]) -> dict[str, Any]:
    entry, provider = provider_table().get(name), llm.provider.get(name)
    auth = None
    if provider is not None:
        auth = "login" if provider.has_login else "key" if provider.api_key is not None else "none"
    url = provider.base_url if provider is not None else entry.base_url if entry is not None else ""
    is_trouble = auth == "login" and login.state in (LoginState.REFUSED, LoginState.UNREADABLE)
    has_key = provider is not None and provider.api_key is not None
    reason = login.problem if is_trouble else llm.absent.get(name)
    state = "ready" if provider is not None and (has_key or not is_trouble) else "disabled" if reason else "absent"
    return {
        "id": name,
        "name": (provider and provider.name) or (entry.name if entry is not None else name),
        "api_type": str(provider.api_type if provider is not None else entry.api_type if entry is not None else ""),
        "base_url": _without_credentials(url),
        "is_builtin": entry is not None,
        "needs_key": entry.needs_key if entry is not None else False,
        "state": state,
        "reason": None if reason is None else scrub(reason),
        "auth": auth,
        "key_source": sources.get(name),
        "models": {"first": entry.first, "second": entry.second} if entry is not None else {"first": "", "second": ""},
        "login": _login_object(login) if name == "anthropic" else None,
    }


def _without_credentials(url: str) -> str:
    """An address without a user's name, a password or a query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else ""
