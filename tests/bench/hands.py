"""Figures of what workers do with their hands: `python -m tests.bench hands [NAME …]`, all of them without a name.

Each name leads to an asynchronous function that prints its figures and returns how many were missed.
"""

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.config.model import SandboxConfig
from spacebot.tools.sandbox import Backend, BackendKind, Containment, probe_backend
from spacebot.tools.shell import ShellArguments, ShellTool

FIGURES = {
    "shell": "tests.bench.hands:shell",
    "snapshot": "tests.bench.hands_browser:snapshot",
    "browsers": "tests.bench.hands_browser:workers",
    "browser_cancel": "tests.bench.hands_browser:cancelled",
    "cancel": "tests.bench.hands_cancel:cancelled",
}

ROUNDS = 120
BARE_MS, CONTAINED_MS = 10.0, 25.0  # overhead to reach, p50


async def shell() -> int:
    """What the shell tool adds to a bare subprocess that runs the same command."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("tools/bin", "agents/main/workspace", "agents/main/data"):
            (root / name).mkdir(parents=True)
        found = await probe_backend()
        plain, bare = _tool(root, Backend(note="switched off by the measurement")), _Times()
        boxed, naked = _tool(root, found), _Times()
        subprocesses = _Times()
        node = Tree().add(NodeKind.WORKER, "bench")
        for _ in range(ROUNDS):  # in turns, so that a busy moment of the machine falls on all of them
            subprocesses.note(_by_hand)
            await bare.watch(plain, node)
            if found.kind is not BackendKind.NONE:
                await naked.watch(boxed, node)
    base = subprocesses.p50
    print(f"shell tool, `true`, {ROUNDS} calls: a bare subprocess takes {base:.1f} ms at p50")
    missed = _told("without sandbox", bare, base, BARE_MS)
    if found.kind is BackendKind.NONE:
        print(f"  with sandbox: not measured, {found.note}")
        return missed
    return missed + _told(f"with {found.note}", naked, base, CONTAINED_MS)


class _Times:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.seconds, n=20)[-1] * 1000

    def note(self, run: object) -> None:
        began = time.perf_counter()
        run()  # type: ignore[operator]
        self.seconds.append(time.perf_counter() - began)

    async def watch(self, tool: ShellTool, node: Node) -> None:
        began = time.perf_counter()
        output = await tool.call(ShellArguments(command="true"), node)
        self.seconds.append(time.perf_counter() - began)
        assert output.text.startswith("exit code 0"), output.text


def _by_hand() -> None:
    subprocess.run(
        ["sh", "-c", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        env={"PATH": os.defpath},
    )


def _tool(root: Path, backend: Backend) -> ShellTool:
    containment = Containment(
        workspace=root / "agents/main/workspace",
        instance_root=root,
        data_dir=root / "agents/main/data",
        tools_bin=root / "tools/bin",
        settings=SandboxConfig,
        backend=backend,
    )
    return ShellTool(containment=containment)


def _told(how: str, times: _Times, base: float, reach: float) -> int:
    over = times.p50 - base
    print(f"  {how}: {times.p50:.1f} ms at p50, {times.p95:.1f} ms at p95; overhead {over:.1f} ms (reach {reach:g} ms)")
    return int(over > reach)


def main(names: list[str]) -> None:
    """Run the named figures; the exit status tells whether one was missed."""
    if unknown := [name for name in names if name not in FIGURES]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(FIGURES)}")
    missed = 0
    for name in names or FIGURES:
        module, _, function = FIGURES[name].partition(":")
        missed += trio.run(getattr(importlib.import_module(module), function))
    sys.exit(min(missed, 1))
