"""`messaging`: how the connections to the platforms are, and whether one works.

Flow:    show_messaging, try_adapter -> control command `messaging` -> lines for people, or JSON
Floor:   cli; standard library only
Source:  messaging spec 16; the other side is `api/messaging_control.py`
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

TEST_S = 40.0  # the program itself gives up before
SHOWN = 200  # characters of what a platform says


def add_messaging_commands(messaging: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the messaging commands.

    Args:
        messaging: the parser of `messaging` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = messaging.add_subparsers(metavar="status|test", required=True)
    status = add("status", "Show every connection to a platform.", group)
    status.set_defaults(adapter=None)
    status.add_argument("--json", action="store_true", help="for programs")
    test = add("test", "Ask a platform whether all is well, or send a message there.", group)
    test.add_argument("adapter", metavar="ADAPTER", help="as `messaging status` names it")
    test.add_argument("target", metavar="TARGET", nargs="?", help="where to send a message, such as a channel's id")
    test.add_argument("text", metavar="TEXT", nargs="*", help="what to send there")
    test.add_argument("--json", action="store_true", help="for programs")


def show_messaging(paths: InstancePaths, *, as_json: bool) -> int:
    """Print how every adapter is."""
    status = ask(paths, "messaging")
    if as_json:
        status.pop("result", None)
        print(json.dumps(status))
        return 0
    instances = status["instances"]
    width = max((len(instance["key"]) for instance in instances), default=0)
    for instance in instances:
        print(f"{instance['key']:{width}}  {adapter_words(instance)}")
    for warning in status["warnings"]:
        print(f"warning: {one_line(warning, 2 * SHOWN)}", file=sys.stderr)
    if not instances:
        print("no platform is configured; docs/platforms says how, one page each", file=sys.stderr)
    return 0


def try_adapter(paths: InstancePaths, adapter: str, target: str | None, text: str, *, as_json: bool) -> int:
    """Test an adapter; 1 when it does not work."""
    if target is not None and not text:
        raise RefusedError("what shall be sent there? spacebot messaging test ADAPTER TARGET TEXT")
    answer = ask(paths, "messaging", timeout_s=TEST_S, test=adapter, target=target, text=text or None)
    is_well = answer.get("success") is True
    if as_json:
        answer.pop("result", None)
        print(json.dumps(answer))
    elif is_well:
        print(one_line(str(answer.get("message")), SHOWN))
    else:
        print(f"error: {one_line(str(answer.get('message')), 2 * SHOWN)}", file=sys.stderr)
    return 0 if is_well else 1


def adapter_words(instance: Mapping[str, Any]) -> str:
    """One adapter for people, on one line."""
    detail = one_line(instance["detail"], SHOWN)
    if not instance["configured"]:
        return detail
    if instance["state"] == "disabled":
        return "switched off"
    words = str(instance["state"])
    if instance["who"] and words == "connected":
        words += f" as {one_line(instance['who'], 60)}"
    if instance["since"]:
        words += f" since {_moment(instance['since'])}"
    if instance["attempts"]:
        words += f", attempt {instance['attempts'] + 1}"
        words += f" at {_moment(instance['next_attempt_at'])}" if instance["next_attempt_at"] else ""
    counts = [
        f"{instance[name]} {label}"
        for name, label in (("received", "in"), ("sent", "out"), ("failed", "failed"), ("queued", "waiting"))
        if instance[name] or name in ("received", "sent")
    ]
    return "; ".join(part for part in (words, ", ".join(counts), detail) if part)


def _moment(text: str) -> str:
    return f"{text[:16].replace('T', ' ')} UTC"


def run_messaging(paths: InstancePaths, options: Namespace) -> int:
    """Do it; errors are raised."""
    if options.adapter is None:
        return show_messaging(paths, as_json=options.json)
    return try_adapter(paths, options.adapter, options.target, " ".join(options.text), as_json=options.json)
