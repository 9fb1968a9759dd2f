"""Which models may answer a request, best first: four levels. Pure: settings in, names and targets out.

    1  task override     a branch or worker with a kind of work that the owner routes
    2  prompt tier       how hard the person's words are, where that is switched on
    3  process default   the owner's, else the profile's, else the best configured provider's
    4  fallback chain    when the chosen model is cooling down or fails

Flow:   manager, `route explain` -> choose -> Choice -> targets_of -> Target
Floor:  llm; may import base, config
Source: control spec 2.4
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from spacebot.base.errors import ModelRejectedError
from spacebot.config.model import AgentSettings, LlmConfig
from spacebot.config.routing import RoutingConfig, ThinkingEffort
from spacebot.llm.complexity import Complexity, Tier
from spacebot.llm.dialect import Target
from spacebot.llm.messages import ProcessKind
from spacebot.llm.profiles import FreeModels, no_free_models, role_model, tier_model
from spacebot.llm.routing import default_models, resolve

MAX_FALLBACKS = 3  # control spec 2.8
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


class Level(StrEnum):
    """What decided."""

    OVERRIDE = "task override"
    TIER = "prompt tier"
    ROLE = "process default"
    PROFILE = "profile"
    PROVIDER = "provider default"


class Obstacle(StrEnum):
    """Why a tier's model is passed over."""

    COOLING = "is cooling down"
    TOO_SMALL = "cannot hold the request"
    UNUSABLE = "has no usable provider"


FindObstacle = Callable[[Target], Obstacle | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The answer of the four levels.

    Args:
        names: full names as they are written, the chosen one first, then its chain; not resolved.
        default: what would be asked if prompts were not scored.
        tier: the tier whose model was taken; None when another level decided.
        notes: what was passed over on the way, for people.
    """

    names: tuple[str, ...]
    level: Level
    default: str
    tier: Tier | None = None
    notes: tuple[str, ...] = ()


def choose(
    process: ProcessKind,
    task_type: str | None,
    settings: AgentSettings,
    llm: LlmConfig,
    *,
    complexity: Complexity | None = None,
    obstacle: FindObstacle = lambda target: None,
    free: FreeModels = no_free_models,
) -> Choice:
    """Decide which models to ask.

    Args:
        complexity: of the words that caused the call; None where nobody said anything.
        obstacle: says why a tier's model should not be asked now.
        free: models without a price, for the eco profile.
    """
    routing, task_type = settings.routing, normal_task_type(task_type)
    default, level = _default(process, task_type, settings, llm, free)
    chosen, tier, notes = default, None, tuple[str, ...]()
    override = _override(routing, task_type) if task_type and process in _OVERRIDDEN else None
    scored = routing.prompt_routing
    if override is not None:
        chosen, level = override, Level.OVERRIDE
    elif complexity is not None and scored.enabled and process.value in scored.process_types:
        found, tier, notes = _of_tier(complexity.tier, settings, llm, default, obstacle, free)
        chosen, level = found or default, Level.TIER if tier is not None else level
    return Choice(
        names=tuple(dict.fromkeys((chosen, *_chain(chosen, default, level, process, task_type, routing, llm)))),
        level=level, default=default, tier=tier, notes=notes,
    )  # fmt: skip


def _default(
    process: ProcessKind, task_type: str | None, settings: AgentSettings, llm: LlmConfig, free: FreeModels
) -> tuple[str, Level]:
    """The third level: the owner's model, the profile's, or the provider's."""
    own: str | None = getattr(settings.routing, process.value)
    if own is not None:
        return own, Level.ROLE
    if (of_profile := role_model(process, settings, llm, free)) is not None:
        return of_profile, Level.PROFILE
    names = default_models(llm)
    return (names.first if _is_first(process, task_type) else names.second), Level.PROVIDER


def _is_first(process: ProcessKind, task_type: str | None) -> bool:
    return process in _FIRST_ROLES or (task_type == "coding" and process in _OVERRIDDEN)


def _of_tier(
    tier: Tier, settings: AgentSettings, llm: LlmConfig, default: str, obstacle: FindObstacle, free: FreeModels
) -> tuple[str | None, Tier | None, tuple[str, ...]]:
    """A tier's model, or that of the next one upwards when it is too small; None when the default has to do."""
    notes: list[str] = []
    for candidate in tuple(Tier)[tier.rank :]:
        name = tier_model(candidate, settings, llm, default, free)
        try:
            why = obstacle(resolve(name, llm))
        except ModelRejectedError:
            why = Obstacle.UNUSABLE
        if why is None:
            return name, candidate, tuple(notes)
        notes.append(f"{name}, the model of {candidate} prompts, {why}")
        if why is not Obstacle.TOO_SMALL:
            break
    return None, None, tuple(notes)


def _chain(
    chosen: str, default: str, level: Level, process: ProcessKind, task_type: str | None,
    routing: RoutingConfig, llm: LlmConfig,
) -> tuple[str, ...]:  # fmt: skip
    """The fourth level: the owner's chain; else the default behind a tier, the provider's second behind its first."""
    if chosen in routing.fallbacks:
        return routing.fallbacks[chosen]
    if level is Level.TIER:
        return (default, *routing.fallbacks.get(default, ()))
    if level is Level.PROVIDER and _is_first(process, task_type) and not routing.fallbacks:
        return (default_models(llm).second,)
    return ()


def targets_of(choice: Choice, process: ProcessKind, routing: RoutingConfig, llm: LlmConfig) -> tuple[Target, ...]:
    """The models of a choice, ready to be asked.

    Fallbacks that cannot be asked (no key) are left out; the first model has to be usable.

    Errors: ModelRejectedError when the first model's provider is not configured.
    """
    targets = [resolve(choice.names[0], llm)]
    for name in choice.names[1:]:
        try:
            target = resolve(name, llm)
        except ModelRejectedError:
            continue
        if all(target.model != known.model for known in targets):
            targets.append(target)
    effort: ThinkingEffort = getattr(routing, f"{process.value}_thinking_effort")
    return tuple(replace(target, effort=effort) for target in targets[: 1 + MAX_FALLBACKS])


def choose_models(
    process: ProcessKind, task_type: str | None, settings: AgentSettings, llm: LlmConfig
) -> tuple[Target, ...]:
    """The models to ask where no words are scored: the chosen one, then at most `MAX_FALLBACKS` others.

    Errors: ModelRejectedError when the first model's provider is not configured.
    """
    return targets_of(choose(process, task_type, settings, llm), process, settings.routing, llm)


def normal_task_type(words: str | None) -> str | None:
    """A task type as it is routed and shown: one lower-case word, however it was spelt; None for nothing usable."""
    word = re.sub(r"[^a-z0-9]+", "_", (words or "").casefold()).strip("_")[:TASK_TYPE_CHARACTERS]
    return _SPELLINGS.get(word, word) or None


def _override(routing: RoutingConfig, task_type: str) -> str | None:
    names = routing.task_overrides
    return names.get(task_type) or next(
        (name for key, name in names.items() if normal_task_type(key) == task_type), None
    )
