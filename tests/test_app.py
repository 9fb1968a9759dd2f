"""The running program as its faces see it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from spacebot.app import RunningProgram
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId
from spacebot.config.store import ConfigStore


async def test_a_default_agent_that_is_not_running_leaves_the_first_one_in_charge(tmp_path: Path) -> None:
    """An agent that the file gains starts with the program only, so its faces must not ask for it before."""
    file = tmp_path / "config.toml"
    file.write_text('[[agents]]\nid = "ann"\n[[agents]]\nid = "bob"\ndefault = true\n')
    store = ConfigStore.open(file)
    nobody: Any = SimpleNamespace()
    running: Any = {AgentId("ann"): nobody, AgentId("bob"): nobody}
    program = RunningProgram(store, EventBus(), nobody, trio.Event(), nobody, nobody, nobody, by_id=running)
    assert program.default_agent_id == "bob"

    file.write_text('[[agents]]\nid = "new"\ndefault = true\n')
    program.reload_config()
    assert program.default_agent_id == "ann"
