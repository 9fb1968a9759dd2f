"""Commands that look and print: status, why, logs.

Floor: cli; standard library only
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import Answer, ask
from spacebot.cli.liveness import find_daemon

FOLLOW_S = 0.25  # how often a followed log is looked at
BLOCK = 65536  # bytes


def format_span(seconds: float) -> str:
    """Hours, minutes, seconds: `0h 5m 12s`."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}h {whole % 3600 // 60}m {whole % 60}s"


def show_status(paths: InstancePaths, *, as_json: bool) -> int:
    """Print whether the program runs; 1 when it does not."""
    daemon = find_daemon(paths)
    if as_json:
        answer: dict[str, Any] = {"running": daemon is not None, "instance": str(paths.root)}
        if daemon is not None:
            answer |= {"pid": daemon.pid, "responding": daemon.status is not None} | (daemon.status or {})
            if daemon.status is not None:
                answer["agent_states"] = _agent_states(paths)
        answer.pop("result", None)
        print(json.dumps(answer))
    elif daemon is None:
        print(f"spacebot is not running in {paths.root}", file=sys.stderr)
    elif daemon.status is None:
        print(f"spacebot does not answer (pid {daemon.pid}); it may be starting or stopping", file=sys.stderr)
    else:
        _print_status(daemon.status)
        _print_agent_states(_agent_states(paths))
    return 0 if daemon is not None and daemon.status is not None else 1


def _print_status(status: Answer) -> None:
    from spacebot.cli.mcp import server_words
    from spacebot.cli.messaging import adapter_words
    from spacebot.cli.usage import budget_words

    print(f"spacebot {status.get('version')} is running (pid {status['pid']}, {format_span(status['uptime_seconds'])})")
    for url in status.get("urls", ()):
        print(f"web chat:  {url}")
    _print_model(status)
    print(f"sandbox:   {status.get('sandbox')}")
    print(f"secrets:   {_secret_words(status.get('secrets', {}))}")
    print(f"agents:    {', '.join(status.get('agents', ()))}")
    for agent in status.get("agent_views", ()):
        if agent["state"] != "running":
            print(f"warning: agent {agent['id']} is {agent['state']}: {agent['reason']}".rstrip(": "), file=sys.stderr)
    for budget in status.get("budgets", ()):
        if budget["state"] != "none":
            print(f"budget:    {budget_words(budget)}")
    for agent_id, words in status.get("permissions", {}).items():
        print(f"rights:    {agent_id}: {words}")
    kinds = ("channel", "turn", "branch", "worker")
    processes = status.get("processes", {})
    print(
        f"processes: {', '.join(f'{processes.get(kind, 0)} {_plural(kind, processes.get(kind, 0))}' for kind in kinds)}"
    )
    for instance in status.get("adapters", ()):
        print(f"{instance['key'] + ':':10} {adapter_words(instance)}")
    for agent in status.get("mcp", ()):
        for server in agent["servers"]:
            if server["enabled"]:
                of_agent = f"{agent['agent_id']}: " if len(status["mcp"]) > 1 else ""
                print(f"mcp:       {of_agent}{server_words(server)}")
    if (update := status.get("update") or {}).get("update_available"):
        print(f"update:    {update['latest_version']} is there: {update.get('release_url') or ''}".rstrip())
    for warning in status.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)


def _print_model(status: Answer) -> None:
    model = status.get("model", "")
    print(f"model:     {model}{' (built-in rules: no provider key was found)' if model.startswith('demo/') else ''}")
    if (login := status.get("login")) is not None:
        print(f"login:     {login['state']}{f' ({problem})' if (problem := login['problem']) else ''}")
    if status.get("needs_setup"):
        print("setup:     no provider of models is set up yet; run: spacebot init")


def _secret_words(secrets: Mapping[str, Any]) -> str:
    counts = {name: count for name, count in secrets.get("counts", {}).items() if count}
    held = f"{', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}"
    state = secrets.get("state", "unknown")
    if state == "locked":
        return f"{held}; locked, open them with: spacebot secret unlock"
    return held if state == "empty" else f"{held}; {state} (key: {secrets['key']})" if secrets.get("key") else state


def _agent_states(paths: InstancePaths) -> dict[str, Any]:
    """What each agent's memory and cortex are doing; nothing when that cannot be had now."""
    try:
        states: dict[str, Any] = ask(paths, "state")["agent_states"]
    except SpacebotError as error:
        print(f"warning: the state of the agents is not known: {error}", file=sys.stderr)
        return {}
    return states


def _print_agent_states(states: Mapping[str, Any]) -> None:
    for agent_id, state in states.items():
        if (problem := state.get("problem")) is not None:
            print(f"warning: state of agent {agent_id}: {problem}", file=sys.stderr)
            continue
        for name, words in (("memory", _memory_words(state)), ("documents", _document_words(state["ingestion"]))):
            if words:
                of_agent = f"{agent_id}: " if len(states) > 1 else ""
                print(f"{name + ':':11}{of_agent}{'; '.join(words)}")
        if (problem := state["memory"]["problem"]) is not None:
            print(f"warning: memory of {agent_id}: {problem}", file=sys.stderr)


def _memory_words(state: Mapping[str, Any]) -> list[str]:
    memory, bulletin = state["memory"], state["bulletin"]
    words = []
    if memory["total"]:
        waiting = f", {memory['to_embed']} to embed" if memory["to_embed"] else ""
        words.append(f"{memory['total']} {_plural('memory', memory['total'])}, search {memory['engine']}{waiting}")
    if bulletin["generated_at"]:
        shown = "" if bulletin["is_shown"] else ", withdrawn until the next"
        words.append(f"bulletin of {bulletin['generated_at'][:16].replace('T', ' ')} UTC{shown}")
    paused = [name for name, duty in state["duties"].items() if duty["is_paused"]]
    if paused:
        words.append(f"paused after failures: {', '.join(paused)}")
    return words


def _document_words(ingestion: Mapping[str, Any]) -> list[str]:
    words = []
    if ingestion["status"] == "reading":
        part = min(ingestion["chunk"] + 1, ingestion["total"])
        words.append(f"reading {_one_line(ingestion['filename'], 60)} (part {part} of {ingestion['total']})")
    if ingestion["status"] == "paused":
        words.append(f"paused: {_one_line(ingestion['reason'])}")
    if ingestion["waiting"]:
        words.append(f"{ingestion['waiting']} waiting")
    if ingestion["quarantined"]:
        words.append(f"{ingestion['quarantined']} set aside")
    return words


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word}es" if word.endswith("ch") else f"{word[:-1]}ies" if word.endswith("ry") else f"{word}s"


def show_recent(paths: InstancePaths, *, as_json: bool) -> int:
    """Print the latest messages of people, newest last, and what became of each."""
    recent = ask(paths, "recent")["messages"]
    if as_json:
        print(json.dumps(recent))
        return 0
    for message in recent:
        said = f"{message['sender_name']}: {_one_line(message['content'], 60)}"
        print(f"{message['id']}  {message['created_at'][:19]}  {message['state']:9} {said}")
    if not recent:
        print("nobody has said anything yet", file=sys.stderr)
    return 0


def show_why(paths: InstancePaths, message_id: str, *, as_json: bool) -> int:
    """Print what became of a message."""
    fate = ask(paths, "why", id=message_id)
    if as_json:
        fate.pop("result", None)
        print(json.dumps(fate))
        return 0
    message = fate["message"]
    print(f"message  {message['id']}  (number {message['seq']} in {message['channel_id']}, agent {fate['agent_id']})")
    print(f"from     {message['sender_name']} at {message['created_at']}")
    print(f"text     {_one_line(message['content'])}")
    print(f"state    {fate['state']}{_because(fate['reason'])}")
    if fate["turn_id"]:
        tries = f", attempt {fate['attempts']}" if fate["attempts"] > 1 else ""
        print(f"turn     {fate['turn_id']} {fate['turn_state']}{_because(fate['turn_detail'])}{tries}")
    for other in fate["coalesced_with"]:
        print(f"together with {other}")
    for run in fate["runs"]:
        cost = f" ({run['tokens']:,} tokens)" if run.get("tokens") else ""
        print(f"{run['kind']:8} {run['id'][:8]} {run['state']}{cost}: {_one_line(run['description'])}")
    for reply in fate["replies"]:
        kind = "reply" if reply["kind"] == "text" else reply["kind"]
        print(f"{kind:8} {reply['id']} at {reply['created_at']}: {_one_line(reply['content'])}")
    return 0


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _one_line(text: str, limit: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def show_logs(paths: InstancePaths, *, lines: int, follow: bool) -> int:
    """Print the end of the log; with `follow` go on until interrupted, also across the nightly change of files."""
    path = paths.logs / "spacebot.log"
    if not follow and not path.exists():
        raise RefusedError(f"there is no log yet at {path}")
    with _wait_for(path) as file:
        newest = _last_lines(file, lines)
        for line in (*_before(path, lines - len(newest)), *newest):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if follow:
            _follow(path, file)
    return 0


def _before(path: Path, count: int) -> list[bytes]:
    """The end of the file before this one, shortly after a change of files."""
    from spacebot.base.log_file import old_files

    for old in reversed(old_files(path)[-1:] if count > 0 else []):
        with suppress(OSError), old.open("rb") as file:
            return _last_lines(file, count)
    return []


def _last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """The last lines of a file, read from its end in blocks."""
    if count <= 0:
        file.seek(0, os.SEEK_END)
        return []
    position = end = file.seek(0, os.SEEK_END)
    blocks: deque[bytes] = deque()
    newlines = 0
    while position > 0 and newlines <= count:
        size = min(BLOCK, position)
        position = file.seek(position - size)
        block = file.read(size)
        newlines += block.count(b"\n")
        blocks.appendleft(block)
    file.seek(end)
    return b"".join(blocks).splitlines(keepends=True)[-count:]


def _follow(path: Path, file: BinaryIO) -> None:
    current = file
    while True:
        while chunk := current.read(BLOCK):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        time.sleep(FOLLOW_S)
        try:
            replaced = path.stat().st_ino != os.fstat(current.fileno()).st_ino
        except FileNotFoundError:
            continue
        if replaced and not (rest := current.read(BLOCK)):  # nothing more came before the change of files
            current.close()
            current = _wait_for(path)
        elif replaced:
            sys.stdout.buffer.write(rest)


def _wait_for(path: Path) -> BinaryIO:
    """Open a file as soon as there is one."""
    while True:
        try:
            return path.open("rb")
        except FileNotFoundError:
            time.sleep(FOLLOW_S)
