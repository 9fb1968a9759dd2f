"""Public MCP servers from npm, in the versions of `package-lock.json`, installed once beside the sources.

    argv = [*node_server("filesystem"), str(folder)]

Without npm, or without a network at the first time, tests that want one are skipped, except where everything must run.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".node"
PATIENCE_S = 180


def node_server(name: str) -> list[str]:
    """The words that start a server of the `@modelcontextprotocol` organisation."""
    _have()
    return [str(INSTALLED / "node_modules" / ".bin" / f"mcp-server-{name}")]


def opencode_program() -> Path:
    """The OpenCode program as it fits this machine; there is one for old processors too."""
    _have()
    cpus = Path("/proc/cpuinfo")
    is_old = cpus.exists() and "flags" in cpus.read_text() and "avx2" not in cpus.read_text()
    found = sorted((INSTALLED / "node_modules").glob("opencode-*/bin/opencode"), key=lambda path: len(str(path)))
    fitting = [path for path in found if not is_old or "baseline" in str(path)]
    if not fitting:
        pytest.skip("the lock file has no opencode program for this machine")
    return fitting[0]


def _have() -> None:
    """Skip the test where nothing can be installed, or fail it where everything must run."""
    if reason := _install():
        if os.environ.get("SPACEBOT_CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _install() -> str:
    """Install what the lock file names, unless it is there; returns why that failed."""
    lock = (HERE / "package-lock.json").read_bytes()
    wanted, stamp = hashlib.sha256(lock).hexdigest(), INSTALLED / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "npm is not installed"
    INSTALLED.mkdir(exist_ok=True)
    with open(INSTALLED / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests may run in several processes
        if stamp.exists() and stamp.read_text() == wanted:
            return ""
        for part in ("package.json", "package-lock.json"):
            shutil.copy(HERE / part, INSTALLED / part)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if done.returncode != 0:
            return f"npm could not install the servers: {done.stderr.strip()[-200:]}"
        stamp.write_text(wanted)
    return ""


if __name__ == "__main__":
    sys.exit(_install() or None)
