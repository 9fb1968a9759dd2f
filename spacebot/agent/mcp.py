"""An agent's MCP servers: one task for each, which connects, stays connected, and knows what there is to call.

Nothing waits for a server: connecting happens beside the agent's start, a server that is down is tried again after
5 s, doubling to 60 s, twelve times, and one that leaves the configuration is gone for good, because its task owns its
connection and all its retries. Servers are the owner's explicit choice: profiles of permissions do not take them away.

    CONNECTING ──> CONNECTED ──ended──> DISCONNECTED ──pause──> CONNECTING
        └──failed──> FAILED ──pause, twelve times──> CONNECTING

Flow:    configuration -> McpServers.reconcile -> _Server.run -> Link; a worker's start -> McpServers.tools
Floor:   agent
Source:  tools spec 11 and 23; control spec 1.5.10
"""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import trio

from spacebot.agent.prompts import Prompts
from spacebot.base.clock import Clock, to_text
from spacebot.base.errors import DeniedError, NotFoundError, RefusedError, SpacebotError, ToolError
from spacebot.base.ids import AgentId
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree, describe
from spacebot.config.hands import McpServerConfig
from spacebot.tools.contract import Tool
from spacebot.tools.mcp.naming import tool_names
from spacebot.tools.mcp.placeholders import Filled, fill_in, register_secrets
from spacebot.tools.mcp.places import places_of
from spacebot.tools.mcp.tool import DESCRIPTION, CallResult, RemoteToolSpec, harmless, label, make_tool
from spacebot.tools.sandbox import Backend, Containment, Invocation, check_environment

if TYPE_CHECKING:
    from spacebot.tools.mcp.client import Endpoint, Link

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
RETRIES = 12
STEADY_S = 60.0  # a connection that held this long begins again with the first pause
LABEL = 64  # characters of a name in a description
LISTED = 60  # tools named in a prompt
MOST_KEPT = 1000  # tools made and kept


class McpState(StrEnum):
    """How a connection is."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "failed"


@dataclass(slots=True)
class McpFigures:
    """What became of one server's connections and calls since the program started."""

    attempts: int = 0
    reconnects: int = 0
    calls: int = 0
    failed_calls: int = 0
    call_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class McpView:
    """A server as observers see it.

    Args:
        message: why it is not connected; empty when it is.
        tools: (name as models see it, name at the server, first line of its description).
    """

    name: str
    transport: str
    enabled: bool
    state: McpState
    message: str
    since: str
    tools: tuple[tuple[str, str, str], ...]
    figures: McpFigures

    def to_json_object(self) -> dict[str, Any]:
        """For the API and the command line."""
        return {
            "name": self.name,
            "transport": self.transport,
            "enabled": self.enabled,
            "state": str(self.state),
            "message": self.message,
            "since": self.since,
            "tools": [{"name": name, "remote_name": remote, "about": about} for name, remote, about in self.tools],
            "attempts": self.figures.attempts,
            "calls": self.figures.calls,
            "failed_calls": self.figures.failed_calls,
        }


class McpServers:
    """The servers of one agent.

    Args:
        settings: the servers that the live configuration gives the agent.
        own_files: the folder of the instance, of which no server is shown anything.
        probe: finds out, once, what can contain programs here.
        tool_secrets: the secrets that placeholders may name.
    """

    def __init__(
        self,
        *,
        agent_id: AgentId,
        settings: Callable[[], Sequence[McpServerConfig]],
        containment: Containment,
        own_files: Path,
        probe: Callable[[], Awaitable[Backend]],
        tool_secrets: Callable[[], Mapping[str, str]],
        prompts: Prompts,
        tree: Tree,
        clock: Clock,
    ) -> None:
        self._agent_id = agent_id
        self._settings = settings
        self._prompts = prompts
        self._tree = tree
        self._connector = _Connector(containment, own_files, probe, tool_secrets)
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        self._figures: dict[str, McpFigures] = {}
        self._kept: dict[str, tuple[tuple[_Server, str], RemoteToolSpec, Tool]] = {}
        self._nursery: trio.Nursery | None = None
        self._parent: Node | None = None

    async def run(self, parent: Node) -> None:
        """Keep the servers of the configuration connected until cancelled.

        Cancel: takes about two seconds while programs end, all of them at once.
        """
        async with trio.open_nursery() as nursery:
            self._nursery, self._parent = nursery, parent
            try:
                self.reconcile()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def reconcile(self) -> None:
        """Make the running servers those of the configuration; never waits.

        What was removed or switched off ends, what changed (or may do something else now) is connected anew, what is
        down is tried now.
        """
        wanted = {server.name: server for server in self._settings()}
        for server in wanted.values():
            register_secrets(server)
        if self._nursery is None:
            return
        for name, running in list(self._servers.items()):
            config = wanted.get(name)
            if config is None or not config.enabled:
                self._end(name, "not in the configuration any more" if config is None else "switched off")
            elif config != running.config or self._connector.terms(config) != running.terms:
                self._start(config)
            else:
                running.nudge()
        for name, config in wanted.items():
            if config.enabled and name not in self._servers:
                self._start(config)

    def reconnect(self, name: str) -> None:
        """Give a server a new connection; the old one is closed. Never waits.

        Errors: NotFoundError; RefusedError when it is switched off.
        """
        config = next((server for server in self._settings() if server.name == name), None)
        if config is None:
            known = ", ".join(server.name for server in self._settings()) or "none"
            raise NotFoundError(f"agent {self._agent_id!r} has no MCP server {name[:80]!r}; there are: {known}")
        if not config.enabled:
            raise RefusedError(f"MCP server {name!r} is switched off; set enabled = true first")
        self._start(config)

    def _start(self, config: McpServerConfig) -> None:
        self._end(config.name, "replaced by a new connection")
        if self._nursery is None or self._parent is None:
            return
        node = self._tree.add(NodeKind.SERVICE, f"MCP server {config.name}", parent=self._parent)
        server = _Server(
            config, self._connector, node, self._figures.setdefault(config.name, McpFigures()), self._clock
        )
        self._servers[config.name] = server
        self._nursery.start_soon(self._supervise, server)

    async def _supervise(self, server: "_Server") -> None:
        async def settle(outcome: Outcome) -> None:
            if self._servers.get(server.config.name) is server:
                del self._servers[server.config.name]

        await self._tree.supervise(server.node, server.run, settle=settle)

    def _end(self, name: str, reason: str) -> None:
        if (server := self._servers.pop(name, None)) is not None:
            log.info("MCP server ends", extra=kv(agent=self._agent_id, server=name, reason=reason))
            server.node.cancel(reason)

    # What others see

    def _names(self) -> Mapping[tuple[str, str], str]:
        offered = [(server.config.name, tool.name) for server in self._servers.values() for tool in server.tools]
        return tool_names(offered, self._prompts.tool_names)

    def tools(self) -> tuple[Tool, ...]:
        """The tools of all connected servers, as they are now; a worker keeps them for its life."""
        names, found = self._names(), []
        for server in self._servers.values():
            for tool in server.tools:
                words = self._prompts.render(
                    "fragments/mcp_tool",
                    server=label(server.config.name, LABEL),
                    tool=label(tool.name, LABEL),
                    description=harmless(_cut(tool.description)),
                )
                found.append(self._made(server, tool, names[server.config.name, tool.name], words))
        return tuple(found)

    def _made(self, server: "_Server", remote: RemoteToolSpec, name: str, words: str) -> Tool:
        """The tool of this name; the same object until something about it changes, as model clients like it."""
        kept = self._kept.get(name)
        if kept is None or kept[0] != (server, words) or kept[1] is not remote:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            kept = self._kept[name] = ((server, words), remote, make_tool(name, words, remote, server))
        return kept[2]

    def prompt(self, fragment: str) -> str:
        """The list of tools in a fragment's words; empty when there are none."""
        names = self._names()
        shown = [
            {"name": names[server.config.name, tool.name], "about": tool.first_line}
            for server in self._servers.values()
            for tool in server.tools
        ]
        if not shown:
            return ""
        return self._prompts.render(fragment, tools=shown[:LISTED], more=max(0, len(shown) - LISTED))

    def views(self) -> list[McpView]:
        """How every configured server is, in the order of the configuration."""
        names, found = self._names(), []
        for config in self._settings():
            server = self._servers.get(config.name)
            tools = server.tools if server is not None else ()
            found.append(
                McpView(
                    name=config.name,
                    transport=config.transport,
                    enabled=config.enabled,
                    state=server.state if server is not None else McpState.DISCONNECTED,
                    message=server.message if server is not None else "" if config.enabled else "switched off",
                    since=server.since if server is not None else "",
                    tools=tuple((names[config.name, tool.name], tool.name, tool.first_line) for tool in tools),
                    figures=self._figures.get(config.name, McpFigures()),
                )
            )
        return found


class _Connector:
    """Makes of a server's configuration what a connection needs."""

    def __init__(
        self,
        containment: Containment,
        own_files: Path,
        probe: Callable[[], Awaitable[Backend]],
        tool_secrets: Callable[[], Mapping[str, str]],
    ) -> None:
        self._containment = containment
        self._own_files = own_files
        self._probe = probe
        self._tool_secrets = tool_secrets

    def terms(self, config: McpServerConfig) -> object:
        """What a server's program may do; equal as long as a running one may stay as it is."""
        return self._containment.terms if config.transport == "stdio" else None

    async def client(self) -> ModuleType:
        """The module around the SDK, whose import takes a second: a thread does it."""
        return await trio.to_thread.run_sync(_load_client)

    async def endpoint(self, config: McpServerConfig) -> "Endpoint":
        """Where the server is, with everything filled in. Errors: ConfigError, ToolError."""
        filled = fill_in(config, self._lookup)
        if filled.missing:
            log.warning(
                "placeholders of an MCP server are empty", extra=kv(server=config.name, names=", ".join(filled.missing))
            )
        client = await self.client()
        if config.transport == "http":
            endpoint: Endpoint = client.Endpoint(name=config.name, url=filled.url, headers=dict(filled.headers))
            return endpoint
        self._containment.backend = await self._probe()
        local: Endpoint = client.Endpoint(name=config.name, invocation=await self._invocation(config, filled))
        return local

    async def _invocation(self, config: McpServerConfig, filled: Filled) -> Invocation:
        env: dict[str, str] = {}
        for name, value in filled.env.items():
            try:
                check_environment({name: value})
            except ToolError as error:
                log.warning("variable of an MCP server left out", extra=kv(server=config.name, reason=str(error)))
            else:
                env[name] = value

        def wrap() -> Invocation:
            containment = self._containment
            path = containment.environment()["PATH"]
            shown = places_of(filled.argv, path, hidden=self._own_files)
            return containment.wrap_program(filled.argv, extra=env, readable=shown)

        return await trio.to_thread.run_sync(wrap)

    def _lookup(self, name: str) -> str | None:
        return os.environ.get(name) or self._tool_secrets().get(name.strip().upper())


async def try_server(
    config: McpServerConfig,
    containment: Containment,
    own_files: Path,
    probe: Callable[[], Awaitable[Backend]],
    tool_secrets: Callable[[], Mapping[str, str]],
) -> tuple[tuple[RemoteToolSpec, ...], float]:
    """Connect to a server once, by itself; returns its tools and the seconds that it took.

    Errors: ConfigError, ToolError, ExternalError with the reason.
    """
    connector = _Connector(containment, own_files, probe, tool_secrets)
    endpoint, client = await connector.endpoint(config), await connector.client()
    found: tuple[tuple[RemoteToolSpec, ...], float] = await client.measure(endpoint)
    return found


def _load_client() -> ModuleType:
    from spacebot.tools.mcp import client

    return client


class _Server:
    """One server; its task owns the connection and every retry."""

    def __init__(
        self, config: McpServerConfig, connector: _Connector, node: Node, figures: McpFigures, clock: Clock
    ) -> None:
        self.config = config
        self.terms = connector.terms(config)
        self.node = node
        self.state = McpState.CONNECTING
        self.message = ""
        self.since = to_text(clock.now())
        self._connector = connector
        self._figures = figures
        self._clock = clock
        self._link: Link | None = None
        self._wake = trio.Event()

    @property
    def tools(self) -> tuple[RemoteToolSpec, ...]:
        """What it offers while it is connected."""
        return self._link.tools if self._link is not None else ()

    def nudge(self) -> None:
        """Try now, if it is down."""
        self._wake.set()

    async def run(self) -> Outcome:
        """Connect, stay connected, connect again; until cancelled."""
        failures = 0
        while True:
            began = trio.current_time()
            self._figures.attempts += 1
            self._note(McpState.CONNECTING, "", NodeState.RUNNING)
            was_up, reason = await self._attempt()
            if was_up and trio.current_time() - began >= STEADY_S:
                failures = 0
            failures += 1
            state = McpState.DISCONNECTED if was_up else McpState.FAILED
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1))
            if failures > RETRIES:
                pause_s = float("inf")
                following = "no further attempt; mend it, then reconnect or change the configuration"
            else:
                following = f"next attempt after {pause_s:g} s"
            log.warning(
                "MCP server is not connected",
                extra=kv(server=self.config.name, failures=failures, reason=reason, following=following),
            )
            self._note(state, f"{reason} ({following})", NodeState.WAITING)
            self._wake = trio.Event()
            with trio.move_on_after(pause_s):
                await self._wake.wait()
                failures = 0
            self._figures.reconnects += was_up

    async def _attempt(self) -> tuple[bool, str]:
        """One connection from its beginning to its end; whether it was up, and why it is over."""
        was_up = False
        try:
            client = await self._connector.client()
            async with client.open_link(await self._connector.endpoint(self.config)) as link:
                self._link, was_up = link, True
                self._note(McpState.CONNECTED, "", NodeState.RUNNING)
                log.info("MCP server connected", extra=kv(server=self.config.name, tools=len(link.tools)))
                try:
                    await link.serve(self._changed)
                finally:
                    self._link = None
            return True, link.trouble() or "the connection ended"
        except SpacebotError as error:
            return was_up, _reason(error)
        except Exception as error:  # boundary: library
            log.warning("MCP connection failed", exc_info=error, extra=kv(server=self.config.name))
            return was_up, describe(error)

    def _changed(self) -> None:
        log.info("MCP server offers other tools", extra=kv(server=self.config.name, tools=len(self.tools)))
        self._note(self.state, "", NodeState.RUNNING)

    def _note(self, state: McpState, message: str, of_node: NodeState) -> None:
        if state is not self.state:
            self.since = to_text(self._clock.now())
        self.state, self.message = state, message
        self.node.state = of_node
        words = f"connected, {len(self.tools)} tools" if state is McpState.CONNECTED else message or str(state)
        self.node.progress(words)

    async def call(self, tool: str, arguments: dict[str, Any], on_progress: Callable[[], None]) -> CallResult:
        """Call a tool. Errors: ToolError."""
        link = self._link
        if link is None:
            raise ToolError(
                f"the MCP server {self.config.name!r} is {self._whereabouts()}; go on without it, or try again later"
            )
        self._figures.calls += 1
        began, is_good = trio.current_time(), False
        try:
            result = await link.call(tool, arguments, timeout_s=self.config.call_timeout_secs, on_progress=on_progress)
            is_good = not result.is_error
            return result
        finally:
            self._figures.call_seconds += trio.current_time() - began
            self._figures.failed_calls += not is_good

    def _whereabouts(self) -> str:
        if self.node.requested is not None:
            return f"gone ({self.node.requested.text})"
        why = "it was cut off just now" if self.state is McpState.CONNECTED else self.state
        return f"not connected ({self.message or why})"


def _reason(error: SpacebotError) -> str:
    """Why it failed, for people; what permissions deny is worded for models."""
    if isinstance(error, DeniedError):
        with suppress(ValueError, KeyError, TypeError):
            return f"{json.loads(str(error))['reason']}; see [agents.permissions]"
    return describe(error)


def _cut(text: str) -> str:
    return text if len(text) <= DESCRIPTION else f"{text[:DESCRIPTION].rstrip()}…"
