"""`worker`: what an agent's workers do and did, and what that cost.

Flow:    run_worker -> control command `worker` -> lines for people, or JSON
Floor:   cli; standard library only
Source:  tools spec 18; the other side is `api/workers.py`
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spacebot.base.paths import InstancePaths
from spacebot.cli.client import ask
from spacebot.cli.memory_text import one_line
from spacebot.cli.show import format_span

TASK, STEP = 70, 200  # characters of a text in one line
HIDDEN = "(from a direct chat; --private shows it)"
_SIGNS = {"told": ">", "said": " ", "call": "$", "result": "="}


def add_worker_commands(worker: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the worker commands.

    Args:
        worker: the parser of `worker` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = worker.add_subparsers(metavar="list|show|tell|cancel", required=True)
    texts = {
        "list": "Show the workers that live, then the newest that have ended.",
        "show": "Show what a worker was told, did and came to.",
        "tell": "Hand a message to a worker that runs or waits.",
        "cancel": "End a worker and all that it has started.",
    }
    for name, text in texts.items():
        command = add(name, text, group)
        command.set_defaults(do=name)
        command.add_argument("--json", action="store_true", help="for programs")
        command.add_argument("--agent", metavar="ID", help="another agent than the default one")
        if name == "list":
            command.add_argument("-n", "--limit", type=int, default=20, help="how many that have ended (default: 20)")
            command.add_argument("--state", metavar="STATE", help="live, ended, or one such as failed")
            command.add_argument("--private", action="store_true", help="also the tasks from direct chats")
        else:
            command.add_argument("id", metavar="ID", help="as `worker list` names it")
        if name == "tell":
            command.add_argument("message", metavar="MESSAGE", nargs="+", help="what to say")


def run_worker(paths: InstancePaths, options: Namespace) -> int:
    """Do it; errors are raised."""
    request: dict[str, Any] = {"do": options.do, "agent": options.agent}
    if options.do == "list":
        request |= {"limit": options.limit, "state": options.state}
    else:
        request["id"] = options.id
    if options.do == "tell":
        request["message"] = " ".join(options.message)
    answer = ask(paths, "worker", **{name: value for name, value in request.items() if value is not None})
    answer.pop("result", None)
    if options.json:
        print(json.dumps(answer))
        return 0
    lines = list(_lines(options, answer))
    print("\n".join(lines) if lines else "no worker yet", file=sys.stdout if lines else sys.stderr)
    return 0


def _lines(options: Namespace, answer: Mapping[str, Any]) -> Iterator[str]:
    if options.do == "list":
        yield from (worker_line(worker, is_open=options.private) for worker in answer["workers"])
    elif options.do == "show":
        yield from worker_lines(answer["worker"])
        if answer["left_out"]:
            yield f"({answer['left_out']} earlier parts are left out)"
        yield from (step_line(step) for step in answer["steps"])
    elif options.do == "tell":
        yield answer["message"]
    else:
        yield f"cancelled worker {answer['cancelled']}"


def worker_line(worker: Mapping[str, Any], *, is_open: bool = True) -> str:
    """One worker on a line."""
    cost = worker["cost"]
    task = worker["task"] if is_open or not worker["is_private"] else HIDDEN
    words = [
        worker["id"][:8],
        worker["state"],
        format_span(worker["duration_s"]),
        f"{worker['tool_calls']} calls",
        f"{tokens_of(cost):,} tokens",
        cost["model"] or "no model yet",
    ]
    return "  ".join((*words, one_line(task, TASK)))


def worker_lines(worker: Mapping[str, Any]) -> Iterator[str]:
    """All that is known of one worker."""
    cost = worker["cost"]
    kind = worker["worker_type"] + (f" in {worker['directory']}" if worker["directory"] else "")
    facts = {
        "worker": worker["id"],
        "kind": kind + (f", {worker['task_type']}" if worker["task_type"] else ""),
        "where": (worker["channel_name"] or worker["channel_id"] or "nowhere")
        + (" (a direct chat)" if worker["is_private"] else ""),
        "state": f"{worker['state']}: {one_line(worker['status'], STEP)}" if worker["status"] else worker["state"],
        "time": f"{worker['started_at'][:16].replace('T', ' ')} UTC, {format_span(worker['duration_s'])}",
        "models": ", ".join(cost["models"]) or "none yet",
        "cost": f"{cost['model_calls']} model calls, {worker['tool_calls']} tool calls; tokens: "
        f"{cost['input_tokens']:,} in, {cost['cache_read_tokens']:,} from the cache, "
        f"{cost['cache_write_tokens']:,} into it, {cost['output_tokens']:,} out",
        "task": one_line(worker["task"], 4 * STEP),
        "outcome": one_line(worker["result"] or "", 4 * STEP),
    }
    yield from (f"{name + ':':<9}{value}" for name, value in facts.items() if value)


def step_line(step: Mapping[str, Any]) -> str:
    """One step of a transcript on a line."""
    name = f"{step['name']} " if step.get("name") else ""
    return f"{_SIGNS[step['type']]} {name}{'error: ' if step.get('is_error') else ''}{one_line(step['text'], STEP)}"


def tokens_of(cost: Mapping[str, Any]) -> int:
    """All tokens of a process, those from the cache included."""
    return sum(cost[f"{name}_tokens"] for name in ("input", "cache_read", "cache_write", "output"))
