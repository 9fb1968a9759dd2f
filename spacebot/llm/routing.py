"""From a model's name to something that can be asked. Pure: config in, targets out.

Flow:   choice.choose -> names -> resolve -> Target
Floor:  llm; may import base, config
Source: control spec 2.2 and 2.3
"""

import re
from dataclasses import dataclass, replace
from urllib.parse import quote

from spacebot.base.errors import ModelRejectedError
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import ProviderEntry, entry_of_host, provider_table
from spacebot.llm.access import VERSIONED
from spacebot.llm.dialect import AuthKind, Target

DEFAULT_PROVIDER = "anthropic"  # of a name without a slash
DEMO = "demo"
AZURE_API_VERSION = "2024-10-21"  # the newest that is not a preview; control spec 1.5.2 leaves it to the owner
AZURE_V1 = "/openai/v1"  # an address that ends so names neither deployment nor version


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Default models, by full name, of roles that the owner left open."""

    first: str  # channels and branches
    second: str  # workers, compactor, cortex


def default_models(llm: LlmConfig) -> ModelNames:
    """The models of roles that the owner left open: those of the best configured provider, else the demo model."""
    for entry in provider_table().values():
        if entry.id != DEMO and entry.id in llm.provider:
            return ModelNames(f"{entry.id}/{entry.first}", f"{entry.id}/{entry.second}")
    for provider_id, provider in llm.provider.items():
        if provider.api_type is not ApiType.DEMO:
            table = provider_table()
            anthropic, openai = table["anthropic"], table["openai"]
            entry = anthropic if provider.api_type is ApiType.ANTHROPIC else openai
            return ModelNames(f"{provider_id}/{entry.first}", f"{provider_id}/{entry.second}")
    return ModelNames(f"{DEMO}/{DEMO}", f"{DEMO}/{DEMO}")


def split_name(name: str) -> tuple[str, str]:
    """Provider and model of a full name; the model keeps further slashes."""
    provider, slash, model = name.strip().partition("/")
    return (provider.lower(), model) if slash else (DEFAULT_PROVIDER, provider)


def resolve(name: str, llm: LlmConfig) -> Target:
    """Make a model's name into something that can be asked.

    A vendor without a key of its own is reached through OpenRouter when that is configured.

    Errors: ModelRejectedError which says where to put the key.
    """
    provider_id, model = split_name(name)
    table = provider_table()
    entry = table.get(provider_id)
    provider = _provider(provider_id, llm, entry)
    if provider is not None and model:
        return _target(f"{provider_id}/{model}", provider_id, model, provider, entry)
    router = _provider("openrouter", llm, table["openrouter"])
    vendor = entry.openrouter if entry else None
    if router is not None and vendor and model:
        nested = f"{vendor}/{model}"
        return _target(f"openrouter/{nested}", "openrouter", nested, router, table["openrouter"])
    raise ModelRejectedError(_advice(name, provider_id, model, entry), model=name)


def is_rerouted(name: str, target: Target) -> bool:
    """Whether a name is served by another provider than it says."""
    return split_name(name)[0] != target.provider


def _provider(provider_id: str, llm: LlmConfig, entry: ProviderEntry | None) -> ProviderConfig | None:
    provider = next((known for key, known in llm.provider.items() if key.lower() == provider_id), None)
    if provider is None:
        return ProviderConfig(api_type=ApiType.DEMO) if provider_id == DEMO else None
    needs_key = entry.needs_key if entry else False
    return None if needs_key and provider.api_key is None and not provider.has_login else provider


def _target(full: str, provider_id: str, model: str, provider: ProviderConfig, entry: ProviderEntry | None) -> Target:
    if entry is None or entry.api_type is not provider.api_type:
        entry = _custom_entry(provider_id, provider, entry)
    root, api_type = _root(provider, entry, model), provider.api_type
    if entry.responses and root == entry.base_url and re.match(entry.responses, model):
        api_type = ApiType.OPENAI_RESPONSES  # the vendor's own host serves these models that way only
    is_versioned = api_type is ApiType.AZURE and not root.endswith(AZURE_V1)
    return Target(
        model=full,
        wire_model=provider.deployment or model if api_type is ApiType.AZURE else model,
        provider=provider_id,
        api_type=api_type,
        base_url=root,
        api_key=provider.api_key.get_secret_value() if provider.api_key else "",
        entry=entry,
        auth=AuthKind.OAUTH if provider.has_login else _key_auth(provider),
        key_auth=_key_auth(provider),
        query={"api-version": provider.api_version or AZURE_API_VERSION} if is_versioned else {},
    )


def _key_auth(provider: ProviderConfig) -> AuthKind:
    return AuthKind.BEARER if provider.is_bearer else AuthKind.KEY


def _custom_entry(provider_id: str, provider: ProviderConfig, known: ProviderEntry | None) -> ProviderEntry:
    """What is known of a provider of the owner's own, or of a built-in one that is asked in another wire format.

    The host decides on most of it: a second account at a vendor has the vendor's peculiarities.
    """
    table = provider_table()
    is_kilo = provider.api_type is ApiType.KILO_GATEWAY
    is_azure = provider.api_type is ApiType.AZURE
    host = table["kilo"] if is_kilo else table["openai"] if is_azure else entry_of_host(provider.base_url) or known
    is_anthropic = provider.api_type is ApiType.ANTHROPIC
    own = ProviderEntry(
        id=provider_id,
        name=provider.name or (known.name if known else provider_id),
        api_type=provider.api_type,
        base_url=known.base_url if known else "",
        needs_key=False,
        first=known.first if known else "",
        second=known.second if known else "",
        aliases=table["anthropic"].aliases if provider_id == DEFAULT_PROVIDER else {},
        cache_marks=is_anthropic,
    )
    if host is None:
        return own
    return replace(
        own,
        aliases=host.aliases or own.aliases,
        headers=host.headers,
        max_tokens_field=host.max_tokens_field,
        stream_usage=host.stream_usage,
        replays_reasoning=host.replays_reasoning,
        cache_marks=is_anthropic or (host.cache_marks and host.api_type is not ApiType.ANTHROPIC),
        session_header=host.session_header,
        exchanges_key=host.exchanges_key,
    )


def _root(provider: ProviderConfig, entry: ProviderEntry, model: str) -> str:
    """The base URL without the version that people paste along, which the dialect adds itself."""
    root = (provider.base_url or entry.base_url).rstrip("/")
    if provider.api_type in VERSIONED or provider.api_type is ApiType.ANTHROPIC:
        root = root.removesuffix("/v1")
    if provider.api_type is ApiType.AZURE and not root.endswith(AZURE_V1):
        return f"{root.removesuffix('/openai')}/openai/deployments/{quote(provider.deployment or model, safe='')}"
    return root.removesuffix("/api") if entry.id == "ollama" else root


def _advice(name: str, provider_id: str, model: str, entry: ProviderEntry | None) -> str:
    if not model:
        return f"model {name!r} names no model; write it as 'provider/model', such as 'anthropic/claude-sonnet-4'"
    if entry is None:
        return (
            f"model {name!r} needs the provider {provider_id!r}, which is not configured; "
            f"add [llm.provider.{provider_id}] with 'api_type', 'base_url' and 'api_key' to config.toml"
        )
    ways = [f'{entry.key} = "…" under [llm] in config.toml' if entry.key and entry.needs_key else ""]
    ways += [f'{entry.url_key} = "…" under [llm] in config.toml' if entry.url_key else ""]
    ways += [f"the environment variable {entry.env if entry.needs_key else entry.url_env}"]
    text = f"model {name!r} needs a key for {entry.name}; set " + " or ".join(way for way in ways if way)
    return text + (", or sign in: spacebot auth login" if entry.id == DEFAULT_PROVIDER else "")
