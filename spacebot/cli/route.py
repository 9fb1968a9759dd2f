"""`route explain`: which model would answer a text, and why.

A running program answers with what it knows of busy providers; without one the configuration alone decides.

Flow:    run_route -> control command `route`, or the configuration -> lines for people, or JSON
Floor:   cli
Source:  control spec 2.4 to 2.7
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spacebot.base.errors import NotFoundError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask

PROCESSES = ("channel", "branch", "worker", "compactor", "cortex")
BAR = 20  # characters of a dimension's bar


def add_route_commands(route: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the command.

    Args:
        route: the parser of `route` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = route.add_subparsers(metavar="explain", required=True)
    command = add("explain", "Show which model would answer a text, and why.", group)
    command.add_argument("text", metavar="TEXT", nargs="+", help="what a person would say")
    command.add_argument("--process", choices=PROCESSES, default="channel", help="who asks (default: channel)")
    command.add_argument("--task", metavar="TYPE", help="kind of work of a branch or worker, such as coding")
    command.add_argument("--agent", metavar="ID", help="another agent than the default one")
    command.add_argument("--json", action="store_true", help="for programs")


def run_route(paths: InstancePaths, options: Namespace) -> int:
    """Do it; errors are raised."""
    text = " ".join(options.text)
    try:
        answer = ask(paths, "route", text=text, process=options.process, task=options.task, agent=options.agent)
        answer.pop("result", None)
    except NoDaemonError:
        answer = _offline(paths, text, options)
    print(json.dumps(answer) if options.json else "\n".join(_lines(answer)))
    return 0 if answer["model"] is not None else 1


def _offline(paths: InstancePaths, text: str, options: Namespace) -> dict[str, Any]:
    from spacebot.cli.secret import open_secrets
    from spacebot.config.load import load_config
    from spacebot.llm.explain import explain
    from spacebot.llm.messages import ProcessKind

    config = load_config(paths.config, resolve_secret=open_secrets(paths).resolve).config
    wanted = options.agent or config.default_agent.id
    agent = next((one for one in config.agents if one.id == wanted), None)
    if agent is None:
        names = ", ".join(one.id for one in config.agents)
        raise NotFoundError(f"no agent {wanted!r} is configured; there is: {names}")
    found = explain([text], ProcessKind(options.process), agent, config.llm, task_type=options.task)
    return {"agent": agent.id, **found.to_json_object()}


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"{answer['model'] or 'no model can be asked'}  (by {answer['level']})"
    if answer["tier"] is not None and answer["default"] != answer["steps"][0]["written"]:
        yield f"instead of {answer['default']}, which would be asked if prompts were not scored"
    yield from (f"  {note}" for note in answer["notes"])
    if (found := answer["complexity"]) is not None:
        yield ""
        decides = "" if answer["is_scored"] else ", which decides nothing here: prompt_routing is off for this process"
        yield f"score {found['score']:+.2f}: {found['tier']}{decides}"
        for name, value in found["values"].items():
            signs = ", ".join(found["signs"].get(name, ()))
            yield f"  {name:14} {value:+.2f}  {signs}".rstrip()
        yield from (f"  {guard}" for guard in found["guards"])
    yield ""
    yield "asked in this order"
    for number, step in enumerate(answer["steps"], 1):
        note = f"  ({step['note']})" if step["note"] else ""
        yield f"  {number}. {step['model'] or step['written']}{note}"
