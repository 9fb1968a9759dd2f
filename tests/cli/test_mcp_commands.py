"""`spacebot mcp`: the file is changed and servers are tried, without a running program."""

import sys
from pathlib import Path

from tests.cli.conftest import Instance

PROGRAM = str(Path(__file__).parents[1] / "stand_ins" / "mcp_misbehaving.py")


def test_added_listed_tried_and_removed(instance: Instance) -> None:
    """One story, because each command is a process."""
    added = instance.run("mcp", "add", "one", "--env", "A_TOKEN=${NOTHING}", "--", sys.executable, "-S", PROGRAM)
    assert (added.returncode, added.stdout) == (0, "")
    assert "try it with: spacebot mcp test one" in added.stderr
    assert 'env = {A_TOKEN = "${NOTHING}"}' in instance.paths.config.read_text()
    listed = instance.run("mcp", "list")
    assert listed.stdout == "one  stdio  disconnected\n"
    assert "not running" in listed.stderr
    tried = instance.run("mcp", "test", "one")
    assert tried.returncode == 0, tried.stderr
    assert "echo  Does echo.\n" in tried.stdout
    assert "one is connected: 14 tools in" in tried.stderr
    tried = instance.run("mcp", "test", "two", "--json")
    assert (tried.returncode, "are: one" in tried.stderr) == (1, True)
    assert instance.run("mcp", "rm", "one").returncode == 0
    assert "one" not in instance.paths.config.read_text()
    anew = instance.run("mcp", "reconnect", "one")
    assert (anew.returncode, "is not running" in anew.stderr) == (1, True)
