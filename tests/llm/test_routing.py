"""Which models are asked: names, roles, overrides, fallbacks, re-routing. And the table of providers."""

import pytest

from spacebot.base.errors import ModelRejectedError
from spacebot.config.model import AgentSettings, ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import provider_table
from spacebot.config.routing import RoutingConfig
from spacebot.llm.choice import choose_models
from spacebot.llm.messages import ProcessKind
from spacebot.llm.routing import resolve
from tests.llm.given import custom, providers


def names(process: ProcessKind, routing: RoutingConfig, llm: LlmConfig, task_type: str | None = None) -> list[str]:
    return [target.model for target in choose_models(process, task_type, AgentSettings(routing=routing), llm)]


def test_every_provider_of_the_table_can_be_asked() -> None:
    for entry in provider_table().values():
        target = resolve(f"{entry.id}/some/model", providers(entry.id))
        assert (target.provider, target.wire_model, target.api_type) == (entry.id, "some/model", entry.api_type)
        assert target.base_url == entry.base_url
        assert entry.first
        assert entry.second


def test_shorthand_keys_and_variables_are_unique() -> None:
    entries = provider_table().values()
    for facts in ([entry.key for entry in entries if entry.key], [entry.env for entry in entries if entry.env]):
        assert len(facts) == len(set(facts)) == len(provider_table()) - 1, "all but the demo need a key"


@pytest.mark.parametrize(
    ("written", "provider", "model"),
    [
        ("anthropic/claude-sonnet-4", "anthropic", "claude-sonnet-4"),
        ("openrouter/anthropic/claude-sonnet-4", "openrouter", "anthropic/claude-sonnet-4"),
        ("claude-sonnet-4", "anthropic", "claude-sonnet-4"),
        ("OpenRouter/x/y", "openrouter", "x/y"),
    ],
)
def test_names(written: str, provider: str, model: str) -> None:
    target = resolve(written, providers("anthropic", "openrouter"))
    assert (target.provider, target.wire_model) == (provider, model)
    assert target.model == f"{provider}/{model}"


def test_a_provider_of_the_owners_own_is_found_in_any_case() -> None:
    llm = custom("My-Host", ApiType.OPENAI_COMPLETIONS, "http://host.example/api/v1")
    target = resolve("my-host/some-model", llm)
    assert (target.base_url, target.wire_model) == ("http://host.example/api", "some-model")


def test_a_pasted_version_is_dropped_where_the_dialect_adds_it() -> None:
    for name, url, root in [
        ("openai", "http://h.example/v1/", "http://h.example"),
        ("ollama", "http://h.example/api", "http://h.example"),
        ("ollama", "http://h.example/v1", "http://h.example"),
        ("zhipu", "http://h.example/v1", "http://h.example/v1"),
    ]:
        assert resolve(f"{name}/m", providers(name, url=url)).base_url == root


def test_only_openrouter_configured_serves_other_vendors() -> None:
    """The quick start of the README has an OpenRouter key and routes to anthropic (control spec 2.2)."""
    llm = providers("openrouter")
    assert resolve("anthropic/claude-sonnet-4", llm).model == "openrouter/anthropic/claude-sonnet-4"
    assert resolve("xai/grok-4", llm).wire_model == "x-ai/grok-4"
    assert resolve("claude-sonnet-4", llm).wire_model == "anthropic/claude-sonnet-4"
    with pytest.raises(ModelRejectedError, match="GROQ_API_KEY"):
        resolve("groq/llama", llm)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("anthropic/x", 'anthropic_key = "…" under [llm] in config.toml or the environment variable ANTHROPIC_API_KEY'),
        ("ollama/x", "ollama_base_url"),
        ("strange/x", "[llm.provider.strange]"),
        ("openai/", "provider/model"),
    ],
)
def test_a_missing_provider_says_what_to_write(model: str, advice: str) -> None:
    with pytest.raises(ModelRejectedError) as caught:
        resolve(model, LlmConfig())
    assert advice in str(caught.value)
    assert not caught.value.may_fall_back


def test_a_provider_without_its_key_is_not_configured() -> None:
    llm = LlmConfig(
        provider={"openai": ProviderConfig(api_type=ApiType.OPENAI_COMPLETIONS, base_url="http://x.example")}
    )
    with pytest.raises(ModelRejectedError, match="openai_key"):
        resolve("openai/gpt-4.1", llm)


@pytest.mark.spec("C-4")
def test_open_roles_take_the_defaults_of_the_best_provider() -> None:
    llm = providers("groq", "openai")
    assert names(ProcessKind.CHANNEL, RoutingConfig(), llm) == ["openai/gpt-4.1", "openai/gpt-4.1-mini"]
    assert names(ProcessKind.CORTEX, RoutingConfig(), llm) == ["openai/gpt-4.1-mini"]
    assert names(ProcessKind.WORKER, RoutingConfig(), llm, "coding")[0] == "openai/gpt-4.1"
    assert names(ProcessKind.WORKER, RoutingConfig(worker="openai/o3"), llm, "coding") == ["openai/o3"]


def test_without_any_provider_the_demo_answers() -> None:
    assert names(ProcessKind.CHANNEL, RoutingConfig(), LlmConfig()) == ["demo/demo"]
    assert names(ProcessKind.WORKER, RoutingConfig(), LlmConfig()) == ["demo/demo"]


def test_task_overrides_count_for_workers_and_branches_only() -> None:
    llm = providers("openai")
    routing = RoutingConfig(
        channel="openai/a", worker="openai/b", branch="openai/c", task_overrides={"coding": "openai/x"}
    )
    assert names(ProcessKind.WORKER, routing, llm, "coding") == ["openai/x"]
    assert names(ProcessKind.BRANCH, routing, llm, "coding") == ["openai/x"]
    assert names(ProcessKind.CHANNEL, routing, llm, "coding") == ["openai/a"]
    assert names(ProcessKind.WORKER, routing, llm, "poetry") == ["openai/b"]


@pytest.mark.spec("CA-4")
def test_fallbacks_keep_their_order_and_stop_at_three() -> None:
    llm = providers("openai")
    chain = ("openai/b", "anthropic/no-key", "openai/a", "openai/c", "openai/d", "openai/e")
    routing = RoutingConfig(channel="openai/a", fallbacks={"openai/a": chain})
    assert names(ProcessKind.CHANNEL, routing, llm) == ["openai/a", "openai/b", "openai/c", "openai/d"]
