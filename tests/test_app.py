"""The running program as its faces see it."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spacebot.app import RunningProgram
from spacebot.base.events import EventBus
from spacebot.config.store import ConfigStore


async def test_nobody_answers_in_place_of_a_default_agent_that_does_not_run(tmp_path: Path) -> None:
    """It is named all the same, so that who asks hears why it does not run."""
    file = tmp_path / "config.toml"
    file.write_text('[[agents]]\nid = "ann"\n[[agents]]\nid = "bob"\ndefault = true\n')
    store = ConfigStore.open(file)
    parts: dict[str, Any] = {part.name: SimpleNamespace() for part in fields(RunningProgram) if part.init}
    parts |= {"store": store, "events": EventBus(), "roster": SimpleNamespace(live={"ann": SimpleNamespace()})}
    program = RunningProgram(**parts)
    assert program.default_agent_id == "bob"

    file.write_text('[[agents]]\nid = "new"\ndefault = true\n')
    await program.reload_config()
    assert program.default_agent_id == "new"
