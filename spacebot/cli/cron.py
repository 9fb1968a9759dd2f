"""`cron`: what an agent does by itself at set times.

Flow:    run_cron -> control command `cron` -> lines for people, or JSON
Floor:   cli; standard library only
Source:  tools spec 18; the other side is `api/cron.py`
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any

from spacebot.base.errors import RefusedError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import ask
from spacebot.cli.memory_text import one_line

SHOWN = 100  # characters of a text


def add_cron_commands(cron: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the schedule commands.

    Args:
        cron: the parser of `cron` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = cron.add_subparsers(metavar="list|add|rm|run|enable|disable|history", required=True)
    texts = {
        "list": "Show every schedule: when it is due next, and how the last run went.",
        "add": "Make a schedule.",
        "rm": "Delete a schedule with its history.",
        "run": "Run one now.",
        "enable": "Switch one on; its failures are forgotten.",
        "disable": "Switch one off.",
        "history": "Show the newest runs.",
    }
    for name, text in texts.items():
        command = add(name, text, group)
        command.set_defaults(do=name)
        command.add_argument("--json", action="store_true", help="for programs")
        command.add_argument("--agent", metavar="ID", help="another agent than the default one")
        if name == "add":
            _add_fields(command)
        elif name == "history":
            command.add_argument("id", metavar="ID", nargs="?", help="of one schedule only")
            command.add_argument("-n", "--limit", type=int, default=20, help="how many (default: 20)")
        elif name != "list":
            command.add_argument("id", metavar="ID", help="as `cron list` names it")


def _add_fields(command: ArgumentParser) -> None:
    command.add_argument("id", metavar="ID", help="a short name: letters, digits, - and _")
    command.add_argument("prompt", metavar="PROMPT", nargs="+", help="what to do in each run")
    command.add_argument("--cron", metavar="EXPR", help="five fields: minute hour day month weekday")
    command.add_argument("--every", metavar="SECONDS", type=int, help="instead of --cron (default: 3600)")
    command.add_argument("--timezone", metavar="NAME", help="such as Europe/Berlin")
    command.add_argument("--to", metavar="TARGET", help="home, adapter:address or a conversation (default: home)")
    command.add_argument("--hours", metavar="FROM-TO", help="only between these hours, such as 8-18 or 22-6")
    command.add_argument("--once", action="store_true", help="run a single time")
    command.add_argument("--timeout", metavar="SECONDS", type=int, help="longest time of a run (default: 120)")


def run_cron(paths: InstancePaths, options: Namespace) -> int:
    """Do it; errors are raised."""
    request: dict[str, Any] = {"do": options.do, "agent": options.agent}
    if options.do == "add":
        request["job"] = _fields(options)
    elif options.do == "history":
        request |= {"id": options.id, "limit": options.limit}
    elif options.do != "list":
        request["id"] = options.id
    answer = ask(paths, "cron", **{name: value for name, value in request.items() if value is not None})
    answer.pop("result", None)
    if options.json:
        print(json.dumps(answer))
        return 0
    lines = _lines(options.do, answer)
    print("\n".join(lines) if lines else "there is nothing yet", file=sys.stdout if lines else sys.stderr)
    return 0


def _lines(do: str, answer: Mapping[str, Any]) -> list[str]:
    if do == "list":
        return [job_words(job) for job in answer["jobs"]]
    if do == "history":
        return [run_words(run) for run in answer["executions"]]
    if "job" in answer:
        return [job_words(answer["job"])]
    return ["deleted" if "deleted" in answer else "it runs; `spacebot cron history` tells what came of it"]


def _fields(options: Namespace) -> dict[str, Any]:
    fields = {
        "id": options.id,
        "prompt": " ".join(options.prompt),
        "cron_expr": options.cron,
        "interval_secs": options.every,
        "timezone": options.timezone,
        "delivery_target": options.to,
        "run_once": options.once,
        "timeout_secs": options.timeout,
    }
    if options.hours is not None:
        start, dash, end = options.hours.partition("-")
        if not (dash and start.isdecimal() and end.isdecimal()):
            raise RefusedError(f"--hours {options.hours!r} is not understood; write two hours, such as 8-18")
        fields |= {"active_start_hour": int(start), "active_end_hour": int(end)}
    return {name: value for name, value in fields.items() if value is not None}


def job_words(job: Mapping[str, Any]) -> str:
    """One schedule on a line."""
    state = f"next {_moment(job['next_due_at'])}" if job["enabled"] else f"off ({job['disabled_reason']})"
    last = f"last run {job['last_state']}" if job["last_state"] else "never run"
    return "  ".join((job["id"], job["rhythm"], one_line(f"{state}; {last}; {job['prompt']}", 2 * SHOWN)))


def run_words(run: Mapping[str, Any]) -> str:
    """One run on a line."""
    words = f"{_moment(run['due_at'])}  {run['job_id']}  {run['state']}"
    for text in (run["summary"], run["note"]):
        words += f"; {one_line(text, SHOWN)}" if text else ""
    return words + (f"; not delivered: {one_line(run['delivery_error'], SHOWN)}" if run["delivery_error"] else "")


def _moment(text: str | None) -> str:
    return f"{text[:16].replace('T', ' ')} UTC" if text else "never"
