"""A worker with a browser: from the configuration to the transcript, and nothing left at its end."""

from pathlib import Path

import pytest
import trio

from spacebot.base.events import EventKind
from spacebot.base.tree import NodeKind
from spacebot.config.hands import BrowserConfig, PermissionsConfig, Profile
from spacebot.llm.messages import ProcessKind, ToolResult
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel
from tests.stand_ins.web_site import needs_chromium, open_web_site

pytestmark = pytest.mark.slow

SPAWN = Calls(Call("spawn_worker", task="look it up"), Call("reply", content="on it"))
OUTCOME = Call("set_status", kind="outcome", status="found")
LOCAL = PermissionsConfig(network_allow_private=("127.0.0.1",))


@needs_chromium()
async def test_a_worker_keeps_the_newest_snapshot_only(tmp_path: Path) -> None:
    async with open_web_site() as site:
        steps = [
            Call("browser", action="navigate", url=f"{site.url}/form"),
            Call("browser", action="snapshot"),
            Call("browser", action="act", act_kind="type", element_ref="e0", text="Ann"),
            Call("browser", action="snapshot"),
            Call("browser", action="screenshot"),
            Call("browser", action="tabs"),
            OUTCOME,
        ]
        model = ScriptedModel(SPAWN, worker=steps)
        async with open_test_agent(tmp_path, model, patience_s=60, permissions=LOCAL) as opened:
            await opened.say("Ann", "look")
            await opened.until(lambda event: event.kind is EventKind.WORKER_COMPLETED)
            results = _results(model)
            assert list((tmp_path / "agents/main/data/browsers").iterdir()) == []
    assert "typed 'Ann'" in results[2]
    assert "an older browser snapshot" in results[1]
    assert 'heading "Sign up"' not in results[1]
    assert 'clickable "typed Ann"' in results[3]
    (picture,) = (tmp_path / "agents/main/workspace/screenshots").iterdir()
    assert str(picture) in results[4]
    assert "t1 (active)" in results[5]


@needs_chromium()
async def test_a_cancelled_worker_takes_its_browser_along(tmp_path: Path) -> None:
    async with open_web_site() as site:
        steps = [Call("browser", action="navigate", url=f"{site.url}/never"), OUTCOME]
        model = ScriptedModel(SPAWN, worker=steps)
        async with open_test_agent(tmp_path, model, patience_s=60, permissions=LOCAL) as opened:
            await opened.say("Ann", "look")
            await _asked(opened, site.asked, "/never")
            opened.node(NodeKind.WORKER).cancel("not wanted any more")
            await opened.until(lambda event: event.kind is EventKind.WORKER_COMPLETED)
            assert list((tmp_path / "agents/main/data/browsers").iterdir()) == []
            assert list((tmp_path / "agents/main/data/tmp").glob("*/org.chromium*")) == []


async def test_what_is_denied_is_explained_and_what_is_off_is_not_there(tmp_path: Path) -> None:
    look = Call("browser", action="navigate", url="http://127.0.0.1/")
    model = ScriptedModel(SPAWN, SPAWN, worker=[look, OUTCOME, OUTCOME])
    denied = PermissionsConfig(profile=Profile.RESTRICTED)
    async with open_test_agent(tmp_path, model, permissions=denied) as opened:
        await opened.say("Ann", "look")
        await opened.until(lambda event: event.kind is EventKind.WORKER_COMPLETED)
        assert "profile restricted" in _results(model)[0]
        opened.config[0] = opened.config[0].model_copy(update={"browser": BrowserConfig(enabled=False)})
        await opened.say("Ann", "again", conversation="test:other", is_direct=True)
        await opened.until(lambda event: event.kind is EventKind.WORKER_COMPLETED and event.channel_id == "test:other")
    requests = model.requests_of(ProcessKind.WORKER)
    assert "browser" in {spec.name for spec in requests[0].tools}
    assert "browser" not in {spec.name for spec in requests[-1].tools}


def _results(model: ScriptedModel) -> list[str]:
    """What the worker's calls came to, as its last request has it."""
    last = model.requests_of(ProcessKind.WORKER)[-1]
    return [part.text for message in last.messages for part in message.parts if isinstance(part, ToolResult)]


async def _asked(opened: Opened, asked: list[str], path: str) -> None:
    while path not in asked:
        await trio.sleep(0.02)
