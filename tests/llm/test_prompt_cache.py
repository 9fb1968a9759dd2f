"""What a provider may keep between two turns of a whole agent: seen at the wire, byte for byte."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.config.model import AgentConfig
from spacebot.config.routing import RoutingConfig
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.opening import open_models
from spacebot.llm.routing import resolve
from spacebot.llm.transport import open_transport
from tests.fakes.opened import open_test_agent
from tests.llm.given import long_talk, providers
from tests.stand_ins.anthropic import serve_anthropic
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Use

MARK = {"type": "ephemeral"}
ROUTING = RoutingConfig(channel="anthropic/claude-sonnet-4-6")


def answer(body: Any) -> Answer:
    """A reply with a thought before it."""
    return Answer(text="", reasoning="let me see", uses=(Use("reply", {"content": "yes"}),))


def without_marks(value: Any) -> Any:
    """The same without `cache_control`, which is no part of what is kept."""
    if isinstance(value, dict):
        return {key: without_marks(item) for key, item in value.items() if key != "cache_control"}
    return [without_marks(item) for item in value] if isinstance(value, list) else value


def marked(messages: list[Any]) -> list[int]:
    """Which messages carry a mark."""
    return [i for i, message in enumerate(messages) if any("cache_control" in part for part in message["content"])]


@pytest.mark.spec("control 8.2.59", "control 8.2.60", "C-59", "C-60")
async def test_the_prefix_stays_the_same_from_turn_to_turn_and_is_marked(tmp_path: Path) -> None:
    async with serve_anthropic(answer) as stand_in:
        llm = providers("anthropic", url=stand_in.url)
        async with open_models(lambda: llm) as models:
            model = models.for_agent(lambda: AgentConfig(id="main", routing=ROUTING))
            async with open_test_agent(tmp_path, model, routing=ROUTING) as opened:
                for turn in range(1, 5):
                    await opened.say("Ann", f"question {turn}")
                    with trio.fail_after(10):
                        await opened.ended(turn)
    bodies = [body for body in stand_in.bodies if any(tool["name"] == "reply" for tool in body.get("tools", ()))]
    assert len(bodies) == 4
    for body in bodies:
        assert json.dumps(body).count('"cache_control"') <= 4
        assert body["tools"][-1]["cache_control"] == MARK
        assert [block for block in body["system"] if "cache_control" in block]
        assert all(isinstance(block["text"], str) for block in body["system"]), "the prompt stays in its own field"
    first, *later = bodies
    for body in later:
        assert json.dumps(body["tools"]) == json.dumps(first["tools"])
        assert json.dumps(body["system"]) == json.dumps(first["system"])
    for before, after in pairwise(later):
        (kept_until,) = marked(before["messages"])
        assert kept_until == len(before["messages"]) - 2, "all but the newest words, which carry the time"
        assert json.dumps(without_marks(before["messages"][: kept_until + 1])) == json.dumps(
            without_marks(after["messages"][: kept_until + 1])
        )
        assert "let me see" not in json.dumps(after["messages"]), "thinking of turns that are over is not sent back"


@pytest.mark.parametrize(("retention", "is_marked"), [("none", False), ("long", True), ("", True)])
async def test_the_owner_may_switch_marks_off(retention: str, is_marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PI_CACHE_RETENTION", retention)
    async with (
        serve_anthropic(answer) as messages,
        serve_openai([Answer(text="hi")]) as chat,
        open_transport() as transport,
    ):
        claude = resolve("anthropic/claude-sonnet-4-6", providers("anthropic", url=messages.url))
        await AnthropicDialect(transport).complete(long_talk(), claude, lambda delta: None)
        routed = resolve("openrouter/anthropic/claude-sonnet-4.6", providers("openrouter", url=chat.url))
        await OpenAiChatDialect(transport).complete(long_talk(), routed, lambda delta: None)
    for body in (*messages.bodies, *chat.bodies):
        assert ("cache_control" in json.dumps(body)) is is_marked
        assert "1h" not in json.dumps(body), "an hour is offered by the vendor's own host only"
