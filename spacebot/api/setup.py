"""Setting up messaging over HTTP: accounts, bindings, switches.

What is changed here is changed in the owner's file, which is then read again: the same way that an edit by hand takes,
so there is one truth, and the adapters follow by themselves.

Flow:    route -> ConfigEditor -> Program.reload_config -> the adapters follow
Floor:   api
Source:  messaging spec 16; control spec 4.7
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.messaging_control import messaging_status, try_adapter
from spacebot.api.requests import Api, Body, Param, read_body, route
from spacebot.api.shapes import BINDING, CHANGED, MESSAGING
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.config.edit import BindingIdentity, Value
from spacebot.config.messaging import PLATFORMS, runtime_key
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import Category

_CREDENTIALS = {  # field of `platform_credentials` -> platform and key of its table
    "discord_token": ("discord", "token"),
    "slack_bot_token": ("slack", "bot_token"),
    "slack_app_token": ("slack", "app_token"),
    "telegram_token": ("telegram", "token"),
    "twitch_username": ("twitch", "username"),
    "twitch_oauth_token": ("twitch", "oauth_token"),
}
_REFERENCE = re.compile(r"\bsecret:([A-Za-z_][A-Za-z0-9_]*)")
_WITHOUT_CREDENTIALS = frozenset({"webhook"})  # switching it on is all that it takes


class PlatformBody(Body):
    """`POST /api/messaging/disconnect`; `adapter` is an instance's name or runtime key."""

    platform: str
    adapter: str | None = None

    @property
    def key(self) -> str:
        """The runtime key that is meant."""
        return _key(self.platform, self.adapter)


class ToggleBody(PlatformBody):
    """`POST /api/messaging/toggle`."""

    enabled: bool


class TestBody(Body):
    """`POST /api/messaging/test`; with `target` and `text` it sends a message."""

    adapter: str
    target: str | None = None
    text: str | None = None


class BindingBody(Body):
    """A binding as the file has it."""

    agent_id: str
    channel: str
    adapter: str | None = None
    guild_id: str | None = None
    workspace_id: str | None = None
    chat_id: str | int | None = None
    channel_ids: list[str] = Field(default=[])
    require_mention: bool = False
    dm_allowed_users: list[str] = Field(default=[])
    authority: list[str] | None = None

    @property
    def key(self) -> str:
        """The runtime key of its account."""
        return _key(self.channel, self.adapter)

    @property
    def fields(self) -> dict[str, Any]:
        """What the file gets."""
        fields = {name: getattr(self, name) for name in BindingBody.model_fields}
        return fields | {"chat_id": None if self.chat_id is None else str(self.chat_id)}


class NewBindingBody(BindingBody):
    """`POST /api/bindings`: with credentials the account is set up in the same step."""

    platform_credentials: dict[str, str] = Field(default={})


class ChangedBindingBody(BindingBody):
    """`PUT /api/bindings`: which binding, and what it becomes. `index` is its place in the list, from 0."""

    original_agent_id: str
    original_channel: str
    original_guild_id: str | None = None
    original_workspace_id: str | None = None
    original_chat_id: str | int | None = None
    original_adapter: str | None = None
    index: int | None = Field(default=None, ge=0)


class BindingIdentityBody(Body):
    """`DELETE /api/bindings`."""

    agent_id: str
    channel: str
    guild_id: str | None = None
    workspace_id: str | None = None
    chat_id: str | int | None = None
    adapter: str | None = None
    index: int | None = Field(default=None, ge=0)


class SetupRoutes:
    """Routes under `/api/messaging` and `/api/bindings`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._program = api.program

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/messaging/status", self.status, answer=MESSAGING),
            route("/api/messaging/toggle", self.toggle, "POST", body=ToggleBody, answer=CHANGED),
            route("/api/messaging/disconnect", self.disconnect, "POST", body=PlatformBody, answer=CHANGED),
            route("/api/messaging/test", self.test, "POST", body=TestBody, answer={"*": Any}),
            route(
                "/api/bindings",
                self.bindings,
                query=[Param("agent_id", "only of this agent")],
                answer={"bindings": [BINDING]},
            ),
            route("/api/bindings", self.add_binding, "POST", body=NewBindingBody, answer=CHANGED),
            route("/api/bindings", self.change_binding, "PUT", body=ChangedBindingBody, answer=CHANGED),
            route("/api/bindings", self.remove_binding, "DELETE", body=BindingIdentityBody, answer=CHANGED),
        ]

    async def status(self, _: Request) -> Response:
        """Every platform and every account, with how its connection is."""
        return JSONResponse(await messaging_status(self._program))

    async def toggle(self, request: Request) -> Response:
        """Switch an account on or off."""
        body = await read_body(request, ToggleBody)
        key = self._known_key(body.key)
        if key is None and body.key in _WITHOUT_CREDENTIALS:
            key = body.key
        if key is None:
            return _failure(f"{body.key} is not configured; add it with its credentials first")
        await self._api.change_config(partial(self._program.editor.set_account, key, {"enabled": body.enabled}))
        return self._success(f"{key} is switched {'on' if body.enabled else 'off'}", key)

    async def disconnect(self, request: Request) -> Response:
        """Take an account out of the file, with its bindings and the stored credentials that nothing else names."""
        body = await read_body(request, PlatformBody)
        key = self._known_key(body.key) or body.key
        before = await self._api.read_config(self._secrets_named)
        try:
            await self._api.change_config(partial(self._program.editor.remove_account, key))
        except NotFoundError as error:
            return _failure(str(error))
        gone = before - await self._api.read_config(self._secrets_named)
        words = f"{key} and its bindings are removed from the configuration"
        if gone and self._api.secrets is not None:
            forgotten = await trio.to_thread.run_sync(_forget, self._api.secrets, gone)
            words += f", {', '.join(forgotten)} from the secret store" if forgotten else ""
        return self._success(words)

    def _secrets_named(self) -> frozenset[str]:
        return frozenset(_REFERENCE.findall(self._program.editor.text()))

    async def test(self, request: Request) -> Response:
        """Ask the platform whether all is well, or send a test message."""
        body = await read_body(request, TestBody)
        return JSONResponse(await try_adapter(self._program, body.adapter, body.target, body.text))

    async def bindings(self, request: Request) -> Response:
        """The bindings in the file, in order; `agent_id` shows only those of one agent."""
        agent_id = request.query_params.get("agent_id")
        found = await self._api.read_config(self._program.editor.bindings)
        listed = [_binding_object(binding, index) for index, binding in enumerate(found)]
        return JSONResponse({"bindings": [one for one in listed if agent_id is None or one["agent_id"] == agent_id]})

    async def add_binding(self, request: Request) -> Response:
        """Add a binding, and where credentials are given its account."""
        body = await read_body(request, NewBindingBody)
        credentials = _credentials(body)
        self._check(body, has_account=bool(credentials))
        accounts = {body.key: credentials} if credentials else {}
        await self._api.change_config(partial(self._program.editor.add_binding, body.fields, accounts=accounts))
        return self._success("the binding is added", body.key)

    async def change_binding(self, request: Request) -> Response:
        """Give a binding new values."""
        body = await read_body(request, ChangedBindingBody)
        self._check(body)
        identity = BindingIdentity(
            agent_id=body.original_agent_id,
            channel=body.original_channel,
            guild_id=body.original_guild_id,
            workspace_id=body.original_workspace_id,
            chat_id=None if body.original_chat_id is None else str(body.original_chat_id),
            adapter=body.original_adapter,
            index=body.index,
        )
        return await self._edit_binding(
            partial(self._program.editor.replace_binding, identity, body.fields), "the binding is changed", body.key
        )

    async def remove_binding(self, request: Request) -> Response:
        """Take a binding away."""
        body = await read_body(request, BindingIdentityBody)
        fields = body.model_dump()
        identity = BindingIdentity(**fields | {"chat_id": None if body.chat_id is None else str(body.chat_id)})
        return await self._edit_binding(
            partial(self._program.editor.remove_binding, identity), "the binding is removed", body.channel
        )

    async def _edit_binding(self, change: Callable[[], None], message: str, key: str) -> Response:
        if not self._program.editor.has_file:
            raise HTTPException(404, "there is no configuration file yet, so there are no bindings either")
        try:
            await self._api.change_config(change)
        except NotFoundError as error:
            return _failure(str(error))
        return self._success(message, key)

    def _success(self, message: str, key: str | None = None) -> Response:
        if key is not None and (reason := self._program.config.messaging.absent.get(key)) is not None:
            return _failure(f"{message}, but {key} is not connected: {reason}")
        return JSONResponse({"success": True, "restart_required": False, "message": message})

    def _known_key(self, key: str) -> str | None:
        """The account's runtime key with the owner's capitals; None when there is none."""
        messaging = self._program.config.messaging
        keys = [known for _, known, _ in messaging.accounts()] + list(messaging.absent)
        return next((known for known in keys if known.lower() == key.lower()), None)

    def _check(self, body: BindingBody, *, has_account: bool = False) -> None:
        """Refuse what the program would pass over with a warning. Errors: NotFoundError, RefusedError."""
        self._api.agent(body.agent_id)
        if body.channel not in (*PLATFORMS, "webchat"):
            raise RefusedError(f"channel must be one of {', '.join(PLATFORMS)}, webchat; not {body.channel[:40]!r}")
        if body.channel != "webchat" and not has_account and self._known_key(body.key) is None:
            raise RefusedError(f"{body.key} is not configured; give platform_credentials, or add it to the file first")


def _forget(secrets: LiveSecrets, names: frozenset[str]) -> list[str]:
    """Remove the program's own secrets of these names; those of commands stay. Errors: StorageError."""
    store = secrets.store()
    known = [info.name for info in store.list() if info.name in names and info.category is Category.SYSTEM]
    for name in known:
        store.remove(name)
    secrets.refresh()
    return known


def _key(platform: str, adapter: str | None) -> str:
    name = (adapter or "").removeprefix(f"{platform}:")
    return runtime_key(platform, name if name and name != platform else None)


def _credentials(body: NewBindingBody) -> Mapping[str, Value | None]:
    """Keys of the account's table. Errors: RefusedError for those of another platform."""
    given: dict[str, Value | None] = {}
    for field, value in body.platform_credentials.items():
        platform, key = _CREDENTIALS.get(field, ("", ""))
        if platform != body.channel:
            fields = [name for name, (of, _) in _CREDENTIALS.items() if of == body.channel]
            raise RefusedError(
                f"{field[:40]!r} is no credential of {body.channel}; it has {', '.join(fields) or 'none'}"
            )
        if value.strip():
            given[key] = value.strip()
    return {**given, "enabled": True} if given else {}


def _binding_object(binding: Mapping[str, Any], index: int) -> dict[str, Any]:
    names = ("guild_id", "workspace_id", "chat_id", "adapter")
    return {
        "index": index,
        "agent_id": str(binding.get("agent_id", "")),
        "channel": str(binding.get("channel", "")),
        **{name: None if binding.get(name) in (None, "") else str(binding[name]) for name in names},
        "channel_ids": [str(one) for one in binding.get("channel_ids", ())],
        "require_mention": binding.get("require_mention") is True,
        "dm_allowed_users": [str(one) for one in binding.get("dm_allowed_users", ())],
        "authority": [str(one) for one in binding["authority"]] if "authority" in binding else None,
    }


def _failure(message: str) -> Response:
    return JSONResponse({"success": False, "restart_required": False, "message": message})
