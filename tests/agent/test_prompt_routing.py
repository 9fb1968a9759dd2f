"""What people say chooses the model of the turn and of its branches; finished work and schedules do not."""

from pathlib import Path

from trio.testing import MockClock

from spacebot.agent.pacing import RESULT_DEBOUNCE_S
from spacebot.base.events import EventKind
from spacebot.config.routing import RoutingConfig
from spacebot.llm.messages import ProcessKind
from tests.fakes.opened import open_test_agent
from tests.fakes.scripted_model import Call, Calls, Say, ScriptedModel

SCORED = RoutingConfig.model_validate({"prompt_routing": {"enabled": True}})
HARD = (
    "Compare the proofs step by step: kubernetes latency, throughput, at most 3, at least 2, then `x` in app.py, import"
)


def tiers(model: ScriptedModel, kind: ProcessKind) -> list[str | None]:
    return [None if request.complexity is None else str(request.complexity.tier) for request in model.requests_of(kind)]


async def test_a_turn_and_its_branches_have_the_tier_of_the_words(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(
        Call("reply", content="Hello."),
        Calls(Call("branch", description="think"), Call("reply", content="Thinking.")),
        Call("reply", content="So it is."),
        Call("reply", content="Going on."),
        branch=[Say("so it is")],
    )
    async with open_test_agent(tmp_path, model, routing=SCORED) as opened:
        await opened.say("Ann", "hello")
        await opened.said(1)
        await opened.ended(1)
        await opened.say("Ann", HARD)
        await opened.said(2)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await opened.advance(RESULT_DEBOUNCE_S)
        await opened.said(3)
        await opened.ended(3)
        await opened.say("Ann", "go on")
        await opened.said(4)
    assert tiers(model, ProcessKind.CHANNEL) == ["light", "heavy", None, "heavy"], "finished work is nobody's words"
    assert tiers(model, ProcessKind.BRANCH) == ["heavy"]


async def test_without_prompt_routing_nothing_is_scored(clock: MockClock, tmp_path: Path) -> None:
    model = ScriptedModel(Call("reply", content="Hello."))
    async with open_test_agent(tmp_path, model) as opened:
        await opened.say("Ann", "hello")
        await opened.said(1)
    assert tiers(model, ProcessKind.CHANNEL) == [None]
