"""The owner's settings over HTTP: a few of the whole program, all of an agent, the file itself, and what keys mean.

A field that is not sent stays as it is; null takes the key out of the file, so that the level below counts again. What
is changed is changed in the file, with its comments, and then taken over as after an edit by hand.

Flow:    route -> a Change -> ConfigEditor.change_tables (checked, atomic) -> Program.reload_config
Floor:   api
Source:  control spec 4.2 (settings, config/raw), 4.3 (sections), 5.4 (ranges), 5.5
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import trio
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.requests import AGENT, Api, Body, Param, maybe, read_body, route
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.redaction import scrub
from spacebot.config.change import Place, check_form, setting
from spacebot.config.environment import deployment
from spacebot.config.explain import HIDDEN, effective_values, explain_key, is_reference, plain
from spacebot.config.load import MAX_FILE_BYTES
from spacebot.config.masking import mask_text, unmask_text
from spacebot.config.model import AgentConfig
from spacebot.config.schema import config_schema, find_key, key_specs, table_specs
from spacebot.config.store import ReloadReport
from spacebot.storage.secrets import Category, LockedError

SEARCH_SECRET = "brave_search_key"
LOWEST_PORT = 1024  # of forms; the file may go lower
_TUNING = (
    "max_concurrent_branches", "max_concurrent_workers", "max_turns", "branch_max_turns", "context_window",
    "history_backfill_count", "user_timezone", "cron_timezone", "prompt_captures", "worker_log_mode",
)  # fmt: skip
_SECTIONS = (
    "routing", "budget", "coalesce", "compaction", "memory_persistence", "ingestion", "cortex", "worker", "sandbox",
    "permissions", "browser", "opencode",
)  # fmt: skip
_DONE = {"success": bool, "message": str, "requires_restart": bool, "restart_keys": [str]}


class OpenCodeForm(Body):
    """The coding agent, as `PUT /api/settings` takes it."""

    enabled: bool | None = None
    path: str | None = None
    max_servers: int | None = None
    server_startup_timeout_secs: float | int | None = None
    max_restart_retries: int | None = None
    permissions: dict[str, str | None] | None = None


class SettingsForm(Body):
    """`PUT /api/settings`: what is left out stays; null takes the key out of the file."""

    brave_search_key: str | None = None
    api_enabled: bool | None = None
    api_port: int | None = Field(default=None, ge=LOWEST_PORT, le=65535)
    api_bind: str | None = None
    worker_log_mode: str | None = None
    opencode: OpenCodeForm | None = None


class RawForm(Body):
    """`PUT /api/config/raw`: the whole text. With the `revision` of the text it was made from, nothing is lost."""

    most = MAX_FILE_BYTES * 2

    content: str
    revision: str | None = None


class AgentConfigForm(Body):
    """`PUT /api/agents/config`: sections with what shall change; null takes a key out of the agent's table."""

    agent_id: str | None = None
    routing_profile: str | None = None
    routing: dict[str, Any] = Field(default={})
    tuning: dict[str, Any] = Field(default={})
    budget: dict[str, Any] = Field(default={})
    coalesce: dict[str, Any] = Field(default={})
    compaction: dict[str, Any] = Field(default={})
    memory_persistence: dict[str, Any] = Field(default={})
    ingestion: dict[str, Any] = Field(default={})
    cortex: dict[str, Any] = Field(default={})
    worker: dict[str, Any] = Field(default={})
    sandbox: dict[str, Any] = Field(default={})
    permissions: dict[str, Any] = Field(default={})
    browser: dict[str, Any] = Field(default={})
    opencode: dict[str, Any] = Field(default={})
    discord: dict[str, Any] = Field(default={})


class SettingsRoutes:
    """Routes for the pages of settings."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._program = api.program

    def routes(self) -> list[Route]:
        """The table."""
        settings, raw, config = "/api/settings", "/api/config/raw", "/api/agents/config"
        sections = {"agent_id": str, "*": Any}
        return [
            route(settings, self.settings, answer={"*": Any}),
            route(settings, self.change_settings, "PUT", body=SettingsForm, answer=_DONE),
            route(raw, self.raw, answer={"content": str, "revision": str, "path": str, "exists": bool}),
            route(raw, self.replace_raw, "PUT", body=RawForm, answer={**_DONE, "warnings": [str]}),
            route("/api/config/schema", self.schema, answer={"*": Any}),
            route(
                "/api/config/explain",
                self.explain,
                query=(AGENT, Param("key", "one key; all when it is left out")),
                answer={"agent_id": maybe(str), "values": [{"*": Any}], "tables": [{"*": Any}]},
            ),
            route(config, self.agent_config, query=(AGENT,), answer=sections),
            route(config, self.change_agent_config, "PUT", body=AgentConfigForm, answer=sections),
        ]

    # The program

    async def settings(self, _: Request) -> Response:
        """Settings of the program itself; keys are masked."""
        config, agent = self._program.config, self._program.config.default_agent
        return JSONResponse(
            {
                "brave_search_key": None if agent.brave_search_key is None else HIDDEN,
                "api_enabled": config.api.enabled,
                "api_port": config.api.port,
                "api_bind": config.api.bind,
                "has_api_token": config.api.auth_token is not None,
                "worker_log_mode": str(agent.worker_log_mode),
                "opencode": plain(agent.opencode),
                "deployment": deployment(os.environ),
                "config_path": str(self._program.editor.path),
                "warnings": [scrub(warning) for warning in self._program.warnings],
            }
        )

    async def change_settings(self, request: Request) -> Response:
        """Change settings of the program; a key for the search is kept in the secret store."""
        form = await read_body(request, SettingsForm)
        below, process = _default_places(form), _process_places(form)
        if "brave_search_key" in form.model_fields_set and form.brave_search_key != HIDDEN:
            below[("brave_search_key",)] = await self._kept(form.brave_search_key)
        _check_all(below)
        in_defaults, of_process = setting(below, is_inherited=True), setting(process)

        def change(tables: dict[str, Any]) -> None:
            in_defaults(tables)
            of_process(tables)

        report = await self._api.change_config(partial(self._program.editor.change_tables, change), unsound=422)
        return JSONResponse(_done(report))

    async def _kept(self, key: str | None) -> str | None:
        """What stands in the file for a key: a reference; the key itself goes into the secret store."""
        if not (key := (key or "").strip()) or is_reference(key):
            return key or None
        if (secrets := self._api.secrets) is None:
            raise HTTPException(404, "this server has no secret store; name a variable instead: env:NAME")

        def keep() -> None:
            secrets.store().set(SEARCH_SECRET, key, Category.SYSTEM)
            secrets.refresh()

        try:
            await trio.to_thread.run_sync(keep)
        except LockedError as error:
            raise HTTPException(423, f"{error}; open it with: spacebot secret unlock") from error
        return f"secret:{SEARCH_SECRET}"

    # The file

    async def raw(self, _: Request) -> Response:
        """The configuration file; keys that stand in it in plain are masked."""
        editor = self._program.editor
        text = await self._api.read_config(editor.text)
        shown = await trio.to_thread.run_sync(mask_text, text)
        return JSONResponse(
            {"content": shown, "revision": _revision(text), "path": str(editor.path), "exists": editor.has_file}
        )

    async def replace_raw(self, request: Request) -> Response:
        """Replace the configuration file, once it was read without an error; masked keys stay what they were."""
        form, editor = await read_body(request, RawForm), self._program.editor

        def replace() -> None:
            there = editor.text()
            if form.revision is not None and form.revision != _revision(there):
                raise HTTPException(409, "the file was changed meanwhile; load it again and repeat your change")
            editor.replace_text(unmask_text(form.content, there), before=there)

        report = await self._api.change_config(replace, unsound=422)
        return JSONResponse({**_done(report), "warnings": [scrub(warning) for warning in self._program.warnings]})

    async def schema(self, _: Request) -> Response:
        """The JSON Schema of the configuration file, for editors."""
        return JSONResponse(await trio.to_thread.run_sync(config_schema))

    async def explain(self, request: Request) -> Response:
        """Every key with its meaning, the value that counts and where it comes from; secrets are masked."""
        agent_id, key = request.query_params.get("agent_id"), request.query_params.get("key")
        loaded = self._program.loaded

        def look() -> dict[str, Any]:
            if key is None:
                values = effective_values(loaded, os.environ, agent_id=agent_id)
            else:
                _, values = explain_key(loaded, os.environ, key, agent_id=agent_id)
            tables = [{"name": one.name, "header": one.header, "description": one.description} for one in table_specs()]
            return {
                "agent_id": agent_id or loaded.config.default_agent.id,
                "values": [value.to_json_object() for value in values],
                "tables": tables,
            }

        return JSONResponse(await trio.to_thread.run_sync(look))

    # An agent

    async def agent_config(self, request: Request) -> Response:
        """What counts for an agent, in sections, and where each value comes from."""
        return JSONResponse(await self._sections(request.query_params.get("agent_id")))

    async def change_agent_config(self, request: Request) -> Response:
        """Change settings of an agent in its own table."""
        form = await read_body(request, AgentConfigForm)
        agent = self._agent(form.agent_id)
        places = dict(_agent_places(form))
        _check_all(places)
        of_agent = setting(places, agent_id=agent.id, is_inherited=True)
        of_discord = setting(dict(_discord_places(form.discord)))

        def change(tables: dict[str, Any]) -> None:
            of_agent(tables)
            of_discord(tables)

        report = await self._api.change_config(partial(self._program.editor.change_tables, change), unsound=422)
        return JSONResponse({**await self._sections(agent.id), **_done(report)})

    def _agent(self, agent_id: str | None) -> AgentConfig:
        """The agent's settings, whether it runs or not. Errors: NotFoundError."""
        config = self._program.config
        if agent_id is None:
            return config.default_agent
        if (found := next((agent for agent in config.agents if agent.id == agent_id), None)) is None:
            raise NotFoundError(f"there is no agent {agent_id[:80]!r}; GET /api/agents lists them")
        return found

    async def _sections(self, agent_id: str | None) -> dict[str, Any]:
        agent, loaded = self._agent(agent_id), self._program.loaded
        values = await trio.to_thread.run_sync(partial(effective_values, loaded, os.environ, agent_id=agent.id))
        sources = {
            value.name.removeprefix("defaults."): value.source for value in values if value.name.startswith("defaults.")
        }
        discord = self._program.config.messaging.account("discord")
        return {
            "agent_id": agent.id,
            "routing_profile": None if agent.routing_profile is None else str(agent.routing_profile),
            "tuning": {key: plain(getattr(agent, key)) for key in _TUNING},
            **{name: plain(getattr(agent, name)) for name in _SECTIONS},
            "discord": {
                "enabled": discord is not None and discord.enabled,
                "allow_bot_messages": plain(getattr(discord, "allow_bot_messages", False)),
            },
            "sources": sources,
        }


def _done(report: ReloadReport) -> dict[str, Any]:
    keys = report.requires_restart
    what = f"saved; {', '.join(keys)} counts from the next start on" if keys else "saved, and in force"
    return {"success": True, "message": what, "requires_restart": bool(keys), "restart_keys": list(keys)}


def _revision(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _process_places(form: SettingsForm) -> dict[Place, Any]:
    keys = {"api_enabled": "enabled", "api_port": "port", "api_bind": "bind"}
    return {("api", key): getattr(form, name) for name, key in keys.items() if name in form.model_fields_set}


def _default_places(form: SettingsForm) -> dict[Place, Any]:
    places: dict[Place, Any] = {}
    if "worker_log_mode" in form.model_fields_set:
        places[("worker_log_mode",)] = form.worker_log_mode
    if form.opencode is not None:
        for name in form.opencode.model_fields_set - {"permissions"}:
            places[("opencode", name)] = getattr(form.opencode, name)
        for name, value in (form.opencode.permissions or {}).items():
            places[("opencode", "permissions", name)] = value
    return places


def _agent_places(form: AgentConfigForm) -> Iterator[tuple[Place, Any]]:
    if "routing_profile" in form.model_fields_set:
        yield ("routing_profile",), form.routing_profile
    for name, value in form.tuning.items():
        if name not in _TUNING:
            raise RefusedError(f"tuning has no {name[:80]!r}; it has {', '.join(_TUNING)}")
        yield (name,), value
    for section in _SECTIONS:
        yield from _flat(getattr(form, section), (section,))


def _flat(values: Mapping[str, Any], path: Place) -> Iterator[tuple[Place, Any]]:
    """Keys with their values; a table inside a table is gone into, a map of the owner's own names is one value."""
    for name, value in values.items():
        place = (*path, name)
        known = ".".join(("defaults", *place))
        if known in key_specs():
            yield place, value
        elif isinstance(value, dict) and any(one.name == known for one in table_specs()):
            yield from _flat(value, place)
        elif value is None and any(one.name == known for one in table_specs()):
            yield place, None
        else:
            find_key(known)  # says what may have been meant
            raise RefusedError(f"{known} is no key that can be set here")


def _discord_places(values: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    for name, value in values.items():
        if name == "enabled":
            raise RefusedError("discord.enabled is changed with POST /api/messaging/toggle")
        if name != "allow_bot_messages":
            raise RefusedError(f"discord has no {name[:80]!r}; it has allow_bot_messages")
        yield ("messaging", "discord", name), value


def _check_all(places: Mapping[Place, Any]) -> None:
    """Hold numbers within the ranges of forms; all else the file's own check says."""
    for place, value in places.items():
        spec = key_specs().get(".".join(("defaults", *place)))
        if spec is not None:
            check_form(spec, value)
