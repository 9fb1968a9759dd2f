"""MCP servers over HTTP and the control socket: what is configured, how it is, changing it, connecting anew.

Answers never hold a credential: what stands in `env` and `headers` is shown only where it is nothing but a
placeholder, and a masked value that comes back means the one that is there.

Flow:    /api/mcp/..., /api/agents/mcp... -> ConfigEditor -> Program.reload_config -> McpServers.reconcile
Floor:   api
Source:  control spec 4.4 and 8.1.9, 8.1.10; tools spec 17
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.mcp import McpState
from spacebot.api.contract import Program
from spacebot.api.requests import AGENT, DONE, Api, Body, read_body, route
from spacebot.api.shapes import SERVER, VIEW
from spacebot.base.errors import NotFoundError, RefusedError
from spacebot.base.redaction import MASK, scrub
from spacebot.config.hands import McpServerConfig

HIDDEN = "********"

JsonObject = Mapping[str, Any]

# A scheme and placeholders, or a reference: nothing in it is worth hiding.
_HARMLESS = re.compile(r"(?:[A-Za-z]+\s+)?(?:\$\{[^${}]+\})+|(?:env|secret):\s*\S+")
_WORST_FIRST = (McpState.FAILED, McpState.DISCONNECTED, McpState.CONNECTING, McpState.CONNECTED)


class ServerBody(Body):
    """A server as a caller sends it; what is left out stays as it is when it is changed.

    Args:
        env, headers: laid over those that are there; None or an entry in `remove_env`, `remove_headers` takes one away.
    """

    name: str
    transport: Literal["stdio", "http"] | None = None
    enabled: bool | None = None
    command: str | None = None
    args: list[str] | None = None
    env: dict[str, str | None] | None = None
    url: str | None = None
    headers: dict[str, str | None] | None = None
    call_timeout_secs: float | int | None = None
    remove_env: list[str] = Field(default=[])
    remove_headers: list[str] = Field(default=[])


class AgentServerBody(Body):
    """Which server of which agent."""

    agent_id: str | None = None
    server_name: str


class McpRoutes:
    """Routes under `/api/mcp` and `/api/agents/mcp`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._program = api.program

    def routes(self) -> list[Route]:
        """The table."""
        return [
            route("/api/mcp/servers", self.servers, answer=[SERVER]),
            route("/api/mcp/servers", self.add, "POST", body=ServerBody, answer=DONE),
            route("/api/mcp/servers", self.change, "PUT", body=ServerBody, answer=DONE),
            route("/api/mcp/servers/{name}", self.remove, "DELETE", answer=DONE),
            route("/api/mcp/servers/{name}/reconnect", self.reconnect, "POST", answer=DONE),
            route("/api/mcp/status", self.status, answer=[{"agent_id": str, "servers": [VIEW]}]),
            route("/api/agents/mcp", self.of_agent, query=[AGENT], answer={"servers": [VIEW]}),
            route("/api/agents/mcp/reconnect", self.reconnect_one, "POST", body=AgentServerBody, answer=DONE),
        ]

    async def servers(self, _: Request) -> Response:
        """What all agents get, as the file has it, with the state of each."""
        entries = await self._api.read_config(self._program.editor.mcp_servers)
        states = _states(self._program)
        return JSONResponse([definition_object(entry, states.get(str(entry.get("name")), {})) for entry in entries])

    async def add(self, request: Request) -> Response:
        """Add a server for all agents."""
        body = await read_body(request, ServerBody)
        fields = _merged(body, {})
        return await self._edit(fields, partial(self._program.editor.add_mcp_server, fields), "added")

    async def change(self, request: Request) -> Response:
        """Change a server; what the caller does not send stays."""
        body = await read_body(request, ServerBody)
        entries = await self._api.read_config(self._program.editor.mcp_servers)
        old = next((entry for entry in entries if entry.get("name") == body.name), None)
        if old is None:
            raise NotFoundError(f"there is no MCP server {body.name[:80]!r}; POST adds one")
        fields = _merged(body, old)
        return await self._edit(fields, partial(self._program.editor.replace_mcp_server, fields), "changed")

    async def remove(self, request: Request) -> Response:
        """Take a server away."""
        name = request.path_params["name"]
        return await self._edit(None, partial(self._program.editor.remove_mcp_server, name), "removed")

    async def reconnect(self, request: Request) -> Response:
        """Connect a server anew for every agent that has it."""
        message = reconnect_everywhere(self._program, request.path_params["name"])
        return JSONResponse({"success": True, "message": message})

    async def status(self, _: Request) -> Response:
        """Every agent's servers."""
        return JSONResponse(mcp_status(self._program))

    async def of_agent(self, request: Request) -> Response:
        """One agent's servers, its own included, with their tools."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        return JSONResponse({"servers": [view.to_json_object() for view in agent.mcp.views()]})

    async def reconnect_one(self, request: Request) -> Response:
        """Connect one server of one agent anew."""
        body = await read_body(request, AgentServerBody)
        self._api.agent(body.agent_id).mcp.reconnect(body.server_name)
        return JSONResponse({"success": True, "message": f"{body.server_name} is being connected"})

    async def _edit(self, fields: JsonObject | None, change: Callable[[], None], what: str) -> Response:
        try:
            if fields is not None:
                _check(fields)
            await self._api.change_config(change)
        except RefusedError as error:
            words = scrub(str(error))
            return JSONResponse({"success": False, "message": words, "error": words}, 400)
        except HTTPException as error:  # the file is broken, or would be
            return JSONResponse({"success": False, "message": error.detail, "error": error.detail}, 400)
        return JSONResponse({"success": True, "message": what})


def mcp_status(program: Program) -> list[dict[str, Any]]:
    """Every agent's servers, for programs."""
    return [
        {"agent_id": agent.id, "servers": [view.to_json_object() for view in agent.mcp.views()]}
        for agent in program.agents.values()
    ]


def reconnect_everywhere(program: Program, name: str) -> str:
    """Connect a server anew for every agent that has it; returns which these are, for people.

    Errors: NotFoundError; RefusedError when it is switched off everywhere.
    """
    done, refusal = [], None
    for agent in program.agents.values():
        try:
            agent.mcp.reconnect(name)
        except (NotFoundError, RefusedError) as error:
            if refusal is None or isinstance(error, RefusedError):
                refusal = error
        else:
            done.append(str(agent.id))
    if not done and refusal is not None:
        raise refusal
    return f"{name} is being connected for {', '.join(done)}"


async def answer_mcp(program: Program, request: JsonObject, send: Callable[..., Awaitable[None]]) -> None:
    """The control command `mcp`; `do` names what to do. Errors: NotFoundError, RefusedError."""
    what, name = request.get("do", "list"), request.get("name")
    if what == "list":
        await send("mcp", agents=mcp_status(program))
    elif what == "reconnect" and isinstance(name, str):
        await send("mcp", message=reconnect_everywhere(program, name))
    else:
        raise RefusedError("'do' must be list, or reconnect with the 'name' of a server")


def definition_object(entry: Mapping[str, Any], states: Mapping[str, str]) -> dict[str, Any]:
    """A server of the file without anything secret.

    Args:
        states: how it is, by agent.
    """
    known = set(states.values())
    return {
        "name": entry.get("name"),
        "transport": entry.get("transport"),
        "enabled": entry.get("enabled", True),
        "state": next((str(state) for state in _WORST_FIRST if state in known), str(McpState.DISCONNECTED)),
        "agents": dict(states),
        "command": None if entry.get("command") is None else scrub(str(entry["command"])),
        "args": _shown_args(entry),
        "env": {name: _shown(value) for name, value in _table(entry, "env").items()},
        "url": _shown_url(entry),
        "headers": {name: _shown(value) for name, value in _table(entry, "headers").items()},
        "call_timeout_secs": entry.get("call_timeout_secs"),
    }


def _states(program: Program) -> dict[str, dict[str, str]]:
    states: dict[str, dict[str, str]] = {}
    for agent in program.agents.values():
        for view in agent.mcp.views():
            states.setdefault(view.name, {})[str(agent.id)] = str(view.state)
    return states


def _shown(value: Any) -> str:
    text = str(value)
    return text if _HARMLESS.fullmatch(text.strip()) else HIDDEN


def _shown_args(entry: Mapping[str, Any]) -> list[str]:
    return [scrub(str(word)) for word in entry.get("args", ())]


def _shown_url(entry: Mapping[str, Any]) -> str | None:
    url = entry.get("url")
    return (
        None
        if url is None
        else re.sub(r"([?&][^=&#]+=)(?!\$\{[^${}]+\}(?:[&#]|$))[^&#]+", rf"\1{HIDDEN}", scrub(str(url)))
    )


def _table(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key, {})
    return value if isinstance(value, dict) else {}


def _merged(body: ServerBody, old: Mapping[str, Any]) -> dict[str, Any]:
    """What the file gets: the old values, what was sent over them; what came back masked is the old one."""
    sent = body.model_dump(exclude_none=True, exclude={"env", "headers", "remove_env", "remove_headers"})
    if "args" in sent and sent["args"] == _shown_args(old):
        del sent["args"]
    if "url" in sent and sent["url"] == _shown_url(old):
        del sent["url"]
    masked = [key for key in ("args", "url", "command") if HIDDEN in str(sent.get(key)) or MASK in str(sent.get(key))]
    if masked:
        raise RefusedError(f"{masked[0]!r} holds a masked value; send it in full, or leave it out to keep it")
    fields = dict(old) | sent
    for key, given, gone in (("env", body.env, body.remove_env), ("headers", body.headers, body.remove_headers)):
        there, sent_table = _table(old, key), given or {}
        if unknown := [name for name, value in sent_table.items() if value == HIDDEN and name not in there]:
            raise RefusedError(f"{key}.{unknown[0]} is a masked value of nothing; send it in full")
        table = there | {name: value for name, value in sent_table.items() if value != HIDDEN}
        table = {name: value for name, value in table.items() if value is not None and name not in gone}
        fields.pop(key, None)
        if table:
            fields[key] = table
    return fields


def _check(fields: JsonObject) -> None:
    """Errors: RefusedError which names what is wrong, without values."""
    try:
        McpServerConfig.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'server'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise RefusedError(f"not a server that can be used: {problems}") from error
