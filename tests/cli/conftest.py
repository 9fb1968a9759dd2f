"""A real daemon in real subprocesses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spacebot.base.paths import InstancePaths
from spacebot.cli.liveness import lock_holder

ROOT = Path(__file__).parents[2]


class Instance:
    """One instance directory and the commands that work on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = InstancePaths(root, root / "config.toml")
        keys = {"PATH", "HOME", "LANG", "TERM"}
        self.environ = {key: value for key, value in os.environ.items() if key in keys}
        self.environ |= {"SPACEBOT_DIR": str(root), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

    def run(self, *words: str, text: str = "", timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words), input=text, capture_output=True, text=True, timeout=timeout_s, env=self.environ,
            cwd=ROOT, check=False,
        )  # fmt: skip

    def popen(self, *words: str, **environ: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.words(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.environ | environ, cwd=ROOT,
        )  # fmt: skip

    def words(self, *words: str) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("fake_daemon.py")), *words]

    @property
    def pid(self) -> int:
        return int(self.paths.pid.read_text())

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for another process, which no clock of ours can speed up."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, f"waited too long for: {what}"
            time.sleep(0.02)

    def wait_until_up(self) -> None:
        self.wait_for(lambda: self.run("status").returncode == 0, "a daemon that answers")

    def kill(self) -> None:
        holder = lock_holder(self.paths)
        if holder is not None and isinstance(holder.get("pid"), int):
            os.kill(holder["pid"], signal.SIGKILL)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path / "instance")
    yield made
    made.kill()
