"""Which models may answer a request, best first. Pure: config in, targets out.

Flow:   choose_models -> role or task override -> fallback chain -> resolve each name to a Target
Floor:  llm; may import base, config
Source: control spec 2.2 to 2.4, 1.5.4
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from spacebot.base.errors import ModelRejectedError
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.routing import RoutingConfig, ThinkingEffort
from spacebot.llm.dialect import Target
from spacebot.llm.messages import ProcessKind

MAX_FALLBACKS = 3  # control spec 2.8
DEFAULT_PROVIDER = "anthropic"  # of a name without a slash
DEMO = "demo"
TASK_TYPES = ("coding", "summarization", "deep_reasoning")  # the documented ones; an owner may route any word
TASK_TYPE_CHARACTERS = 40
_SPELLINGS = {
    "code": "coding",
    "programming": "coding",
    "reasoning": "deep_reasoning",
    "summarisation": "summarization",
    "summary": "summarization",
}
_FIRST_ROLES = (ProcessKind.CHANNEL, ProcessKind.BRANCH)
_OVERRIDDEN = (ProcessKind.WORKER, ProcessKind.BRANCH)  # task types count for these only


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Default models, by full name, of roles that the owner left open."""

    first: str  # channels and branches
    second: str  # workers, compactor, cortex


def choose_models(
    process: ProcessKind, task_type: str | None, routing: RoutingConfig, llm: LlmConfig
) -> tuple[Target, ...]:
    """The models to ask, in order: the chosen one, then at most `MAX_FALLBACKS` others.

    Fallbacks that cannot be asked (no key) are left out; the first model has to be usable.

    Errors: ModelRejectedError when the first model's provider is not configured.
    """
    names = model_names(process, task_type, routing, llm)
    targets = [resolve(names[0], llm)]
    for name in names[1:]:
        try:
            target = resolve(name, llm)
        except ModelRejectedError:
            continue
        if all(target.model != known.model for known in targets):
            targets.append(target)
    effort: ThinkingEffort = getattr(routing, f"{process.value}_thinking_effort")
    return tuple(replace(target, effort=effort) for target in targets[: 1 + MAX_FALLBACKS])


def model_names(process: ProcessKind, task_type: str | None, routing: RoutingConfig, llm: LlmConfig) -> tuple[str, ...]:
    """The full names to try, in order, before they are resolved."""
    role: str | None = getattr(routing, process.value)
    task_type = normal_task_type(task_type)
    chosen = _override(routing, task_type) if task_type and process in _OVERRIDDEN else None
    chosen = chosen or role
    if chosen is None:
        defaults = default_models(llm)
        is_first = process in _FIRST_ROLES or (task_type == "coding" and process in _OVERRIDDEN)
        chosen = defaults.first if is_first else defaults.second
        inferred = (defaults.second,) if is_first and not routing.fallbacks else ()
    else:
        inferred = ()
    fallbacks = routing.fallbacks.get(chosen, inferred)
    return tuple(dict.fromkeys((chosen, *fallbacks)))


def normal_task_type(words: str | None) -> str | None:
    """A task type as it is routed and shown: one lower-case word, however it was spelt; None for nothing usable."""
    word = re.sub(r"[^a-z0-9]+", "_", (words or "").casefold()).strip("_")[:TASK_TYPE_CHARACTERS]
    return _SPELLINGS.get(word, word) or None


def _override(routing: RoutingConfig, task_type: str) -> str | None:
    names = routing.task_overrides
    return names.get(task_type) or next(
        (name for key, name in names.items() if normal_task_type(key) == task_type), None
    )


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
    return None if needs_key and provider.api_key is None else provider


def _target(full: str, provider_id: str, model: str, provider: ProviderConfig, entry: ProviderEntry | None) -> Target:
    if entry is None or entry.api_type is not provider.api_type:
        entry = _custom_entry(provider_id, provider, entry)
    return Target(
        model=full,
        wire_model=model,
        provider=provider_id,
        api_type=provider.api_type,
        base_url=_root(provider, entry),
        api_key=provider.api_key.get_secret_value() if provider.api_key else "",
        entry=entry,
    )


def _custom_entry(provider_id: str, provider: ProviderConfig, known: ProviderEntry | None) -> ProviderEntry:
    aliases: Mapping[str, str] = provider_table()["anthropic"].aliases if provider_id == DEFAULT_PROVIDER else {}
    return ProviderEntry(
        id=provider_id,
        name=provider.name or (known.name if known else provider_id),
        api_type=provider.api_type,
        needs_key=False,
        aliases=aliases,
        cache_marks=provider.api_type is ApiType.ANTHROPIC,
    )


def _root(provider: ProviderConfig, entry: ProviderEntry) -> str:
    """The base URL without the version that people paste along, which the dialect adds itself."""
    root = (provider.base_url or entry.base_url).rstrip("/")
    if provider.api_type is not ApiType.OPENAI_CHAT_COMPLETIONS:
        root = root.removesuffix("/v1")
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
    return f"model {name!r} needs a key for {entry.name}; set " + " or ".join(way for way in ways if way)
