"""`top`: the supervision tree as a table, once or live.

Floor: cli; standard library only
"""

import json
import os
import select
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spacebot.base.errors import SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import ask
from spacebot.cli.show import format_span

REFRESH_S = 1.0
KEY_WAIT_S = 0.02  # the rest of an arrow key's bytes follow at once
UP, DOWN = "\x1b[A", "\x1b[B"

Node = Mapping[str, Any]


def show_once(paths: InstancePaths, *, as_json: bool) -> int:
    """Print the tree and end."""
    answer = ask(paths, "top")
    if as_json:
        print(json.dumps({"uptime_seconds": answer["uptime_seconds"], "nodes": answer["nodes"]}))
        return 0
    print("\n".join(format_table(list(in_order(answer["nodes"])))))
    return 0


def cancel(paths: InstancePaths, node_id: str) -> int:
    """Cancel one process."""
    done = ask(paths, "cancel", id=node_id)
    print(f"cancelled {done['kind']} {done['id']}", file=sys.stderr)
    return 0


def in_order(nodes: list[Node]) -> Iterator[tuple[Node, int]]:
    """Parents before their children, each with its depth; a node whose parent is unknown is a root."""
    known = {node["id"] for node in nodes}
    children: dict[str | None, list[Node]] = {}
    for node in nodes:
        parent = node["parent_id"] if node["parent_id"] in known else None
        children.setdefault(parent, []).append(node)
    stack = [(node, 0) for node in reversed(children.get(None, []))]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        stack += [(child, depth + 1) for child in reversed(children.get(node["id"], []))]


def format_table(nodes: list[tuple[Node, int]]) -> list[str]:
    """A heading and one line for each node; columns as wide as they need to be."""
    rows = [("KIND", "ID", "STATE", "AGE", "QUIET", "CALLS", "TOKENS", "WHAT")]
    for node, depth in nodes:
        what = f"{node['description']}: {node['status']}" if node["status"] else node["description"]
        rows.append(
            (
                "  " * depth + node["kind"],
                node["id"][:8] if len(node["id"]) == 36 else node["id"],
                node["state"],
                format_span(node["age_s"]),
                f"{node['idle_s']:.0f}s",
                str(node["model_calls"]),
                str(node["input_tokens"] + node["output_tokens"]),
                what,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    lines = []
    for row in rows:
        left = [row[i].ljust(widths[i]) for i in range(3)]
        right = [row[i].rjust(widths[i]) for i in range(3, 7)]
        lines.append(_printable("  ".join([*left, *right, row[7]])))
    return lines


def _printable(text: str) -> str:
    """A description must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def show_live(paths: InstancePaths) -> int:
    """Show the tree, refreshed each second, until q or Ctrl-C."""
    selected: str | None = None
    message = ""
    with _raw_terminal():
        while True:
            try:
                nodes = list(in_order(ask(paths, "top")["nodes"]))
            except SpacebotError as error:
                nodes, message = [], str(error)
            ids = [node["id"] for node, _ in nodes]
            if selected not in ids:
                selected = ids[0] if ids else None
            _draw(nodes, selected, message)
            key = _read_key(REFRESH_S)
            message = message if key is None else ""
            match key:
                case "q" | "Q" | "\x04":
                    return 0
                case "\x03":
                    raise KeyboardInterrupt
                case _ if key in (UP, DOWN, "k", "j") and selected is not None:
                    step = -1 if key in (UP, "k") else 1
                    selected = ids[min(len(ids) - 1, max(0, ids.index(selected) + step))]
                case "c" if selected is not None:
                    message = _cancel_selected(paths, selected)


def _cancel_selected(paths: InstancePaths, node_id: str) -> str:
    try:
        done = ask(paths, "cancel", id=node_id)
    except SpacebotError as error:
        return str(error)
    return f"cancelled {done['kind']} {done['id']}"


def _draw(nodes: list[tuple[Node, int]], selected: str | None, message: str) -> None:
    width, height = shutil.get_terminal_size()
    room = max(1, height - 4)
    at = next((i for i, (node, _) in enumerate(nodes) if node["id"] == selected), 0)
    first = max(0, min(at - room // 2, len(nodes) - room))
    heading, *table = format_table(nodes)
    lines = [f"spacebot top: {len(nodes)} processes    up/down select   c cancel   q quit", heading[:width]]
    for (node, _), row in list(zip(nodes, table, strict=True))[first : first + room]:
        lines.append(f"\x1b[7m{row[:width].ljust(width)}\x1b[0m" if node["id"] == selected else row[:width])
    lines.append(_printable(message)[:width])
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys one by one and a screen of our own; everything as before afterwards."""
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        tty.setraw(stdin)
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _read_key(patience_s: float) -> str | None:
    stdin = sys.stdin.fileno()
    if not select.select([stdin], [], [], patience_s)[0]:
        return None
    raw = os.read(stdin, 1)
    if raw == b"":
        return "q"
    if raw == b"\x1b":
        while len(raw) < 3 and select.select([stdin], [], [], KEY_WAIT_S)[0]:
            raw += os.read(stdin, 1)
    return raw.decode(errors="replace")
