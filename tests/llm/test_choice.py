"""The four levels of routing: which model is asked first and which after it, and why."""

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import ModelBusyError
from spacebot.config.model import AgentSettings, ApiType, LlmConfig
from spacebot.config.routing import PromptRoutingConfig, RoutingConfig, RoutingProfile, TiersConfig
from spacebot.llm.choice import Choice, Level, Obstacle, choose, targets_of
from spacebot.llm.complexity import Complexity, Tier
from spacebot.llm.dialect import Target
from spacebot.llm.explain import explain
from spacebot.llm.manager import ModelManager, UsageRecord
from spacebot.llm.messages import ModelMessage, ModelRequest, ProcessKind
from tests.llm.given import custom, providers
from tests.llm.test_manager import ToldDialect, open_manager

LIGHT, STANDARD, HEAVY = (Complexity(score=0, tier=tier) for tier in Tier)
BOTH = providers("anthropic", "openrouter")


def scored(**routing: object) -> RoutingConfig:
    return RoutingConfig.model_validate({"prompt_routing": {"enabled": True}, **routing})


def chosen(
    settings: AgentSettings,
    process: ProcessKind = ProcessKind.CHANNEL,
    task: str | None = None,
    complexity: Complexity | None = None,
    llm: LlmConfig = BOTH,
) -> Choice:
    return choose(process, task, settings, llm, complexity=complexity)


@pytest.mark.spec("CA-4")
def test_an_override_beats_the_tier_and_the_tier_beats_the_default() -> None:
    settings = AgentSettings(
        routing=scored(branch="anthropic/own", task_overrides={"coding": "openai/coder"}, worker="anthropic/w")
    )
    for complexity in (None, LIGHT, HEAVY):
        found = chosen(settings, ProcessKind.BRANCH, "coding", complexity)
        assert (found.names[0], found.level) == ("openai/coder", Level.OVERRIDE)
    found = chosen(settings, ProcessKind.BRANCH, "cooking", LIGHT)
    assert (found.names[0], found.level, found.tier) == ("anthropic/claude-haiku-4.5", Level.TIER, Tier.LIGHT)
    assert found.default == "anthropic/own"
    assert chosen(settings, ProcessKind.BRANCH).names[0] == "anthropic/own"
    assert chosen(settings, ProcessKind.BRANCH, complexity=STANDARD).names[0] == "anthropic/own"


@pytest.mark.parametrize("process", [ProcessKind.WORKER, ProcessKind.COMPACTOR, ProcessKind.CORTEX])
def test_processes_that_are_not_listed_have_no_tiers(process: ProcessKind) -> None:
    assert chosen(AgentSettings(routing=scored()), process, complexity=HEAVY).tier is None


def test_nothing_is_scored_where_it_is_switched_off() -> None:
    assert chosen(AgentSettings(), complexity=LIGHT).level is Level.PROVIDER


@pytest.mark.spec("CA-4")
def test_only_the_listed_processes_have_tiers() -> None:
    routing = RoutingConfig(prompt_routing=PromptRoutingConfig(enabled=True, process_types=("branch",)))
    assert chosen(AgentSettings(routing=routing), complexity=LIGHT).tier is None
    assert chosen(AgentSettings(routing=routing), ProcessKind.BRANCH, complexity=LIGHT).tier is Tier.LIGHT


PROFILES = {  # provider: (light, standard, heavy) of eco, balanced, premium; control spec 2.7
    "anthropic": {
        "eco": ("claude-haiku-4.5", "claude-haiku-4.5", "claude-sonnet-4"),
        "balanced": ("claude-haiku-4.5", "claude-sonnet-4", "claude-opus-4"),
        "premium": ("claude-sonnet-4", "claude-opus-4", "claude-opus-4"),
    },
    "openrouter": {
        "eco": ("some/free-one", "anthropic/claude-haiku-4.5", "anthropic/claude-sonnet-4"),
        "balanced": ("anthropic/claude-haiku-4.5", "anthropic/claude-sonnet-4", "anthropic/claude-opus-4"),
        "premium": ("anthropic/claude-sonnet-4", "anthropic/claude-opus-4", "anthropic/claude-opus-4"),
    },
    "openai": {
        "eco": ("gpt-4.1-mini", "gpt-4.1-mini", "gpt-4.1"),
        "balanced": ("gpt-4.1-mini", "gpt-4.1", "o3"),
        "premium": ("gpt-4.1", "o3", "o3"),
    },
    "gemini": {
        "eco": ("gemini-2.5-flash-lite", "gemini-2.5-flash-lite", "gemini-2.5-flash"),
        "balanced": ("gemini-2.5-flash-lite", "gemini-2.5-flash", "gemini-2.5-pro"),
        "premium": ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-pro"),
    },
    "mistral": {
        "eco": ("mistral-small-latest", "mistral-small-latest", "mistral-large-latest"),
        "balanced": ("mistral-small-latest", "mistral-large-latest", "mistral-large-latest"),
        "premium": ("mistral-large-latest", "mistral-large-latest", "mistral-large-latest"),
    },
}


@pytest.mark.spec("CA-6")
@pytest.mark.parametrize("provider", PROFILES)
@pytest.mark.parametrize("profile", RoutingProfile)
def test_profiles_map_tiers_to_classes(provider: str, profile: RoutingProfile) -> None:
    settings = AgentSettings(routing=scored(), routing_profile=profile)
    found = tuple(
        choose(
            ProcessKind.CHANNEL, None, settings, providers(provider),
            complexity=complexity, free=lambda: ["openrouter/some/free-one"],
        ).names[0]
        for complexity in (LIGHT, STANDARD, HEAVY)
    )  # fmt: skip
    assert found == tuple(f"{provider}/{name}" for name in PROFILES[provider][profile.value])


@pytest.mark.parametrize(
    ("profile", "roles"),
    [
        (RoutingProfile.ECO, ("haiku-4.5", "haiku-4.5", "haiku-4.5", "haiku-4.5", "haiku-4.5")),
        (RoutingProfile.BALANCED, ("sonnet-4", "sonnet-4", "haiku-4.5", "haiku-4.5", "haiku-4.5")),
        (RoutingProfile.PREMIUM, ("opus-4", "opus-4", "opus-4", "sonnet-4", "sonnet-4")),
    ],
)
def test_a_profile_gives_models_to_roles_that_the_owner_left_open(
    profile: RoutingProfile, roles: tuple[str, ...]
) -> None:
    settings = AgentSettings(routing_profile=profile)
    found = [chosen(settings, process) for process in ProcessKind]
    assert [one.names[0] for one in found] == [f"anthropic/claude-{name}" for name in roles]
    assert {one.level for one in found} == {Level.PROFILE}
    own = AgentSettings(routing_profile=profile, routing=RoutingConfig(worker="openai/mine"))
    assert chosen(own, ProcessKind.WORKER).names[0] == "openai/mine"


def test_the_owners_tier_models_beat_the_profile() -> None:
    tiers = TiersConfig(light="groq/tiny")
    routing = RoutingConfig(prompt_routing=PromptRoutingConfig(enabled=True, tiers=tiers))
    settings = AgentSettings(routing=routing, routing_profile=RoutingProfile.PREMIUM)
    llm = providers("anthropic", "groq")
    assert chosen(settings, complexity=LIGHT, llm=llm).names[0] == "groq/tiny"
    assert chosen(settings, complexity=HEAVY, llm=llm).names[0] == "anthropic/claude-opus-4"


@pytest.mark.parametrize("llm", [custom("mine", ApiType.OPENAI_COMPLETIONS, "http://h.example"), providers("ollama")])
def test_a_host_of_the_owners_own_serves_all_classes_with_the_channels_model(llm: LlmConfig) -> None:
    name = f"{next(iter(llm.provider))}/gemma3"
    settings = AgentSettings(routing=scored(channel=name), routing_profile=RoutingProfile.ECO)
    assert {chosen(settings, complexity=each, llm=llm).names[0] for each in (LIGHT, STANDARD, HEAVY)} == {name}


def test_a_tiers_model_without_a_provider_gives_way_to_the_default() -> None:
    tiers = TiersConfig(light="groq/tiny")
    routing = RoutingConfig(channel="anthropic/own", prompt_routing=PromptRoutingConfig(enabled=True, tiers=tiers))
    found = chosen(AgentSettings(routing=routing), complexity=LIGHT)
    assert (found.names[0], found.tier, found.level) == ("anthropic/own", None, Level.ROLE)
    assert "groq/tiny" in found.notes[0]


def test_a_tiers_model_that_is_too_small_gives_way_upwards() -> None:
    settings = AgentSettings(routing=scored(channel="anthropic/own"))

    def small(target: Target) -> Obstacle | None:
        return Obstacle.TOO_SMALL if "haiku" in target.model or target.model == "anthropic/own" else None

    found = choose(ProcessKind.CHANNEL, None, settings, BOTH, complexity=LIGHT, obstacle=small)
    assert (found.names[0], found.tier) == ("anthropic/claude-opus-4", Tier.HEAVY)
    assert len(found.notes) == 2


def test_behind_a_tier_stands_the_default_with_its_chain() -> None:
    routing = scored(channel="anthropic/own", fallbacks={"anthropic/own": ["openai/x", "anthropic/y"]})
    found = chosen(AgentSettings(routing=routing), complexity=LIGHT)
    assert found.names == ("anthropic/claude-haiku-4.5", "anthropic/own", "openai/x", "anthropic/y")
    targets = targets_of(found, ProcessKind.CHANNEL, routing, providers("anthropic"))
    assert [target.model for target in targets] == ["anthropic/claude-haiku-4.5", "anthropic/own", "anthropic/y"]


def test_effort_belongs_to_the_process() -> None:
    routing = RoutingConfig.model_validate({"channel": "anthropic/a", "worker_thinking_effort": "max"})
    settings = AgentSettings(routing=routing)
    efforts = {
        process: targets_of(chosen(settings, process), process, routing, BOTH)[0].effort for process in ProcessKind
    }
    assert {str(process): str(effort) for process, effort in efforts.items() if effort != "auto"} == {"worker": "max"}


def request(complexity: Complexity | None, words: str = "hello") -> ModelRequest:
    messages = (ModelMessage.user(words),)
    return ModelRequest(process=ProcessKind.CHANNEL, system=(), messages=messages, complexity=complexity)


TIERED = AgentSettings(
    routing=scored(channel="openai/own", prompt_routing={"enabled": True, "tiers": {"light": "openai/tiny"}})
)


async def say(manager: ModelManager, complexity: Complexity | None, words: str = "hello") -> str:
    return (await manager.for_agent(lambda: TIERED).complete(request(complexity, words))).model


@pytest.mark.spec("CA-4")
async def test_a_busy_tier_model_is_passed_over_by_all_agents_until_its_pause_is_over(
    autojump_clock: MockClock,
) -> None:
    dialect = ToldDialect({"openai/tiny": [ModelBusyError("busy", model="m", retry_after_s=90.0)]})
    records: list[UsageRecord] = []
    async with open_manager(dialect, records.append) as manager:
        assert await say(manager, LIGHT) == "openai/own"  # the chain
        assert await say(manager, LIGHT) == "openai/own"
        assert dialect.models == ["tiny", "own", "own"], "while it cools down it is not even tried"
        left = manager.explain("hi", ProcessKind.CHANNEL, TIERED)
        assert left.choice.tier is None
        assert "cooling" in left.choice.notes[0]
        await trio.sleep(91)
        assert await say(manager, LIGHT) == "openai/tiny"
    assert [(record.tier, record.default_model) for record in records] == [
        ("light", None),  # the default answered, so nothing was saved
        (None, None),
        ("light", "openai/own"),
    ]


def test_an_explanation_names_every_level_and_is_plain_json() -> None:
    llm = providers("openrouter")
    settings = AgentSettings(routing=scored(channel="anthropic/claude-sonnet-4", fallbacks={"a/b": ["groq/x"]}))
    found = explain(["what is 2+2"], ProcessKind.CHANNEL, settings, llm).to_json_object()
    assert found["model"] == "openrouter/anthropic/claude-haiku-4.5"
    assert (found["level"], found["tier"], found["is_scored"]) == ("prompt tier", "light", True)
    assert found["complexity"]["signs"] == {"simple": ["what is"]}
    assert [step["note"] for step in found["steps"]] == ["reached through openrouter"] * 2
    nothing = explain(["hi"], ProcessKind.CHANNEL, AgentSettings(routing=RoutingConfig(channel="groq/x")), llm)
    assert nothing.to_json_object()["model"] is None
    assert "GROQ_API_KEY" in nothing.steps[0].note
    assert not nothing.is_scored
