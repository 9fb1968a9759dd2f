"""`mcp`: the servers whose tools workers have.

list, add and rm work on the configuration, whether the program runs or not; test makes a real connection of its own;
reconnect needs the running program.

Flow:    run_mcp -> configuration file, or control command `mcp` -> lines for people, or JSON
Floor:   cli; standard library only until a command runs
Source:  tools spec 18; the other side is `api/mcp.py`
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from spacebot.base.errors import NotFoundError, RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask
from spacebot.cli.memory_text import one_line

if TYPE_CHECKING:
    from spacebot.config.hands import McpServerConfig
    from spacebot.config.model import AgentConfig
    from spacebot.storage.live_secrets import LiveSecrets
    from spacebot.tools.mcp.tool import RemoteToolSpec

SHOWN = 200  # characters of a text


def add_mcp_commands(mcp: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the MCP commands.

    Args:
        mcp: the parser of `mcp` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = mcp.add_subparsers(metavar="list|add|test|rm|reconnect", required=True)

    def command(name: str, run: Callable[[InstancePaths, Namespace], int], text: str) -> ArgumentParser:
        parser = add(name, text, group)
        parser.set_defaults(mcp_command=run)
        parser.add_argument("--json", action="store_true", help="for programs")
        return parser

    command("list", _list, "Show every server and how its connection is.").add_argument(
        "--agent", metavar="ID", help="of one agent only"
    )
    new = command("add", _add, "Add a server for all agents: NAME -- COMMAND ARGS, or NAME --url URL.")
    new.add_argument("name", metavar="NAME", help="a short name; tools are called NAME_tool")
    new.add_argument("--url", metavar="URL", help="of a server behind HTTP")
    new.add_argument("--env", metavar="NAME=VALUE", action="append", default=[], help="a variable for the program")
    new.add_argument("--header", metavar="NAME=VALUE", action="append", default=[], help="sent to the URL")
    new.add_argument("--timeout", metavar="SECONDS", type=float, help="longest time of a call (default: 60)")
    test = command("test", _test, "Connect now and print the tools.")
    test.add_argument("name", metavar="NAME", help="as `mcp list` names it")
    test.add_argument("--agent", metavar="ID", help="another agent than the default one")
    command("rm", _remove, "Remove a server.").add_argument("name", metavar="NAME", help="as `mcp list` names it")
    command("reconnect", _reconnect, "Give a server a new connection.").add_argument(
        "name", metavar="NAME", help="as `mcp list` names it"
    )


def run_mcp(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands; returns the exit code. Errors: SpacebotError."""
    code: int = options.mcp_command(paths, options)
    return code


def _list(paths: InstancePaths, options: Namespace) -> int:
    agents, is_running = _agents(paths)
    if options.agent is not None:
        agents = [agent for agent in agents if agent["agent_id"] == options.agent]
        if not agents:
            raise NotFoundError(f"there is no agent {options.agent[:80]!r}")
    if options.json:
        print(json.dumps({"running": is_running, "agents": agents}, ensure_ascii=False))
        return 0
    lines = []
    for agent in agents:
        prefix = f"{agent['agent_id']}: " if len(agents) > 1 else ""
        lines += [prefix + server_words(server) for server in agent["servers"]]
    print("\n".join(lines) if lines else "there are no MCP servers; add one with: spacebot mcp add",
          file=sys.stdout if lines else sys.stderr)  # fmt: skip
    if lines and not is_running:
        print("the program is not running; spacebot mcp test NAME tries a server", file=sys.stderr)
    return 0


def server_words(server: Mapping[str, Any]) -> str:
    """One server on a line."""
    words = f"{one_line(server['name'], 64)}  {server['transport']}  {server['state']}"
    if server["state"] == "connected":
        words += f", {len(server['tools'])} tools"
    return words + (f": {one_line(server['message'], SHOWN)}" if server["message"] else "")


def _agents(paths: InstancePaths) -> tuple[list[dict[str, Any]], bool]:
    """Each agent's servers, and whether that is what a running program says."""
    try:
        return list(ask(paths, "mcp")["agents"]), True
    except NoDaemonError:
        pass
    agents, _ = _configured(paths)
    return [
        {
            "agent_id": agent.id,
            "servers": [
                {
                    "name": server.name,
                    "transport": server.transport,
                    "enabled": server.enabled,
                    "state": "disconnected",
                    "message": "" if server.enabled else "switched off",
                    "tools": [],
                }
                for server in agent.mcp
            ],
        }
        for agent in agents
    ], False


def _configured(paths: InstancePaths) -> "tuple[tuple[AgentConfig, ...], LiveSecrets]":
    from spacebot.cli.secret import open_secrets
    from spacebot.config.load import load_config  # heavy, and only needed here

    secrets = open_secrets(paths)
    config = load_config(paths.config, resolve_secret=secrets.resolve).config
    agents = sorted(config.agents, key=lambda agent: agent.id != config.default_agent.id)
    return tuple(agents), secrets


def _add(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.edit import ConfigEditor

    words: list[str] = options.behind
    if bool(words) == bool(options.url):
        raise RefusedError("give either a command behind --, or --url; see spacebot mcp add --help")
    fields: dict[str, Any] = {"name": options.name}
    if options.url:
        fields |= {"transport": "http", "url": options.url}
        if headers := _pairs(options.header, "--header"):
            fields["headers"] = headers
    else:
        fields |= {"transport": "stdio", "command": words[0], "args": words[1:]}
        if env := _pairs(options.env, "--env"):
            fields["env"] = env
    if (options.header and not options.url) or (options.env and options.url):
        raise RefusedError("--header belongs to --url, --env to a command")
    if options.timeout is not None:
        fields["call_timeout_secs"] = options.timeout
    ConfigEditor(paths.config).add_mcp_server(fields)
    return _done(paths, options, f"{options.name} is in {paths.config}; try it with: spacebot mcp test {options.name}")


def _pairs(words: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.strip():
            raise RefusedError(f"{option} {one_line(name, 40)!r} is not understood; write NAME=VALUE")
        pairs[name.strip()] = value
    return pairs


def _remove(paths: InstancePaths, options: Namespace) -> int:
    from spacebot.config.edit import ConfigEditor

    ConfigEditor(paths.config).remove_mcp_server(options.name)
    return _done(paths, options, f"{options.name} is removed")


def _done(paths: InstancePaths, options: Namespace, message: str) -> int:
    """Have a running program take the change over, and say what happened."""
    is_running = False
    with suppress(NoDaemonError):
        ask(paths, "config_reload")
        is_running = True
    if options.json:
        print(json.dumps({"success": True, "message": message, "running": is_running}, ensure_ascii=False))
    else:
        print(message, file=sys.stderr)
    return 0


def _reconnect(paths: InstancePaths, options: Namespace) -> int:
    answer = ask(paths, "mcp", do="reconnect", name=options.name)
    if options.json:
        print(json.dumps({"success": True, "message": answer["message"]}, ensure_ascii=False))
    else:
        print(f"{answer['message']}; spacebot mcp list tells what came of it", file=sys.stderr)
    return 0


def _test(paths: InstancePaths, options: Namespace) -> int:
    """Connect, list, leave; 1 when that fails."""
    agents, secrets = _configured(paths)
    agent = next((one for one in agents if options.agent in (None, one.id)), None)
    if agent is None:
        raise NotFoundError(f"there is no agent {options.agent[:80]!r}; there are: {', '.join(a.id for a in agents)}")
    server = next((one for one in agent.mcp if one.name == options.name), None)
    if server is None:
        known = ", ".join(one.name for one in agent.mcp) or "none; add one with: spacebot mcp add"
        raise NotFoundError(f"there is no MCP server {options.name[:80]!r}; there are: {known}")
    try:
        tools, seconds = _try(paths, agent, server, secrets)
    except SpacebotError as error:
        if not options.json:
            raise
        print(json.dumps({"success": False, "message": str(error), "tools": []}, ensure_ascii=False))
        return 1
    if options.json:
        found = [{"name": tool.name, "about": tool.first_line} for tool in tools]
        print(json.dumps({"success": True, "seconds": round(seconds, 3), "tools": found}, ensure_ascii=False))
        return 0
    for tool in tools:
        print(f"{one_line(tool.name, 64)}  {one_line(tool.first_line, 120)}".rstrip())
    print(f"{server.name} is connected: {len(tools)} tools in {seconds:.1f} s", file=sys.stderr)
    return 0


def _try(
    paths: InstancePaths, agent: "AgentConfig", server: "McpServerConfig", secrets: "LiveSecrets"
) -> "tuple[tuple[RemoteToolSpec, ...], float]":
    import trio

    from spacebot.agent.attachment_parts import FOLDER, PRIVATE
    from spacebot.agent.mcp import try_server
    from spacebot.tools.permissions import Gate
    from spacebot.tools.sandbox import Containment, probe_backend

    own = paths.agent(agent.id, agent.workspace)
    own.create()
    containment = Containment(
        workspace=own.workspace,
        instance_root=paths.root,
        data_dir=own.data,
        tools_bin=paths.tools_bin,
        skills=(paths.skills, own.skills),
        private=own.workspace / FOLDER / PRIVATE,
        gate=Gate(lambda: agent.permissions),
        settings=lambda: agent.sandbox,
        inherited=os.environ,
    )
    return trio.run(try_server, server, containment, paths.root, probe_backend, secrets.tool_environment)
