"""A worker's web search: offered while there is a key, and the key goes to the service alone."""

from pathlib import Path

from trio.testing import MockClock

from spacebot.base.events import EventKind
from spacebot.llm.messages import ProcessKind
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel
from tests.stand_ins.brave import KEY, open_brave

PAGES = [{"title": "Moon", "url": "https://a.example/moon", "description": "words"}]


async def test_a_worker_has_it_when_there_is_a_key(clock: MockClock, tmp_path: Path) -> None:
    """From the configuration to the wire and back into the worker's talk; the key goes nowhere else."""
    spawn = Calls(Call("spawn_worker", task="look it up"), Call("reply", content="on it"))
    work = [Call("web_search", query="moon"), Call("set_status", kind="outcome", status="found")]
    async with open_brave() as brave:
        brave.pages = PAGES
        model = ScriptedModel(spawn, spawn, worker=[*work, work[1]])
        keyed = {"brave_search_key": KEY, "brave_search_url": brave.url}
        async with open_test_agent(tmp_path, model, **keyed) as opened:
            await opened.say("Ann", "look")
            await opened.until(lambda event: event.kind is EventKind.WORKER_COMPLETED)
            first = model.requests_of(ProcessKind.WORKER)
            opened.config[0] = opened.config[0].model_copy(update={"brave_search_key": None})
            await opened.say("Ann", "again", conversation="test:other", is_direct=True)
            await opened.until(
                lambda event: event.kind is EventKind.WORKER_STARTED and event.channel_id == "test:other"
            )
            await opened.until(
                lambda event: event.kind is EventKind.WORKER_COMPLETED and event.channel_id == "test:other"
            )
    requests = model.requests_of(ProcessKind.WORKER)
    assert "web_search" in {spec.name for spec in first[0].tools}
    assert "web_search" not in {spec.name for spec in requests[-1].tools}
    assert "https://a.example/moon" in str(first[-1].messages)
    assert KEY not in str(requests)
