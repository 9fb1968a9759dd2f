"""`agent`: which agents there are; making, deleting, pausing them.

list, create and delete work on the configuration file while the program does not run, and through it while it does:
then the change has come through when the command ends. Pausing needs the running program.

Flow:    run_agent -> control command `agent`, or the configuration file -> lines for people, or JSON
Floor:   cli; standard library only until the file is needed
Source:  control spec 3.1 and 4.3; the other side is `api/agents.py`
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any

from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask
from spacebot.cli.memory_text import one_line

WAIT_S = 60.0  # an agent that is deleted may finish what it is saying
SHOWN = 200  # characters of a reason


def add_agent_commands(agent: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the agent commands.

    Args:
        agent: the parser of `agent` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = agent.add_subparsers(metavar="list|create|delete|pause|resume", required=True)
    texts = {
        "list": "Show every agent and how it is.",
        "create": "Make an agent; while the program runs, it runs when this command ends.",
        "delete": "Delete an agent with its bindings; its files stay.",
        "pause": "Let an agent keep what is said and begin nothing, also after a restart.",
        "resume": "Let it go on with what has waited.",
    }
    for name, text in texts.items():
        command = add(name, text, group)
        command.set_defaults(do=name)
        command.add_argument("--json", action="store_true", help="for programs")
        if name != "list":
            command.add_argument("id", metavar="ID", help="a short name: a-z, 0-9, - and _")
        if name == "create":
            command.add_argument("--workspace", metavar="FOLDER", help="where its workers work (default: its own)")
        if name == "delete":
            command.add_argument("--give-to", metavar="ID", help="another agent that gets its bindings")


def run_agent(paths: InstancePaths, options: Namespace) -> int:
    """Do it; errors are raised."""
    request = {
        "do": options.do,
        "id": getattr(options, "id", None),
        "workspace": getattr(options, "workspace", None),
        "give_to": getattr(options, "give_to", None),
    }
    try:
        answer = ask(paths, "agent", timeout_s=WAIT_S, **request)
        answer.pop("result", None)
        is_running = True
    except NoDaemonError:
        if options.do in ("pause", "resume"):
            raise
        answer, is_running = _without_program(paths, options), False
    if options.json:
        print(json.dumps({**answer, "running": is_running}, ensure_ascii=False))
    elif options.do == "list":
        print("\n".join(agent_words(agent) for agent in answer["agents"]))
    else:
        print(answer["message"], file=sys.stderr)
    return 0


def agent_words(agent: Mapping[str, Any]) -> str:
    """One agent on a line."""
    words = f"{agent['id']}  {agent['state']}{'  (default)' if agent['is_default'] else ''}"
    if agent.get("model"):
        words += f"  {one_line(agent['model'], 80)}"
    if agent.get("workspace"):
        words += f"  {one_line(agent['workspace'], SHOWN)}"
    return words + (f"; {one_line(agent['reason'], SHOWN)}" if agent.get("reason") else "")


def _without_program(paths: InstancePaths, options: Namespace) -> dict[str, Any]:
    """The same on the file alone."""
    from spacebot.cli.secret import open_secrets
    from spacebot.config.edit import ConfigEditor
    from spacebot.config.load import load_config  # heavy, and only needed here

    if options.do == "list":
        config = load_config(paths.config, resolve_secret=open_secrets(paths).resolve).config
        agents = [
            {
                "id": agent.id,
                "is_default": agent.id == config.default_agent.id,
                "state": "stopped",
                "reason": "",
                "workspace": None if agent.workspace is None else str(agent.workspace),
            }
            for agent in config.agents
        ]
        return {"default_agent_id": config.default_agent.id, "agents": agents}
    if options.do == "create":
        from spacebot.base.ids import parse_agent_id

        parse_agent_id(options.id)
        fields = {"id": options.id} | ({"workspace": options.workspace} if options.workspace else {})
        ConfigEditor(paths.config).add_agent(fields)
        return {"message": f"agent {options.id} is in {paths.config} and runs from the next start on"}
    ConfigEditor(paths.config).remove_agent(options.id, give_to=options.give_to)
    return {"message": f"agent {options.id} is out of {paths.config}; its files stay"}
