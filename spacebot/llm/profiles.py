"""Classes of models, and the presets that say which class serves what.

Flow:   choice.choose -> tier_model, role_model -> a full model name
Floor:  llm; may import base, config
Source: control spec 2.7
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from spacebot.config.model import AgentSettings, LlmConfig
from spacebot.config.provider_table import provider_table
from spacebot.config.routing import RoutingProfile
from spacebot.llm.complexity import Tier
from spacebot.llm.messages import ProcessKind
from spacebot.llm.routing import default_models, split_name

FreeModels = Callable[[], Sequence[str]]  # full names of models without a price, best first


class ModelClass(StrEnum):
    """Sizes of models, named by what they cost."""

    FREE = "free"
    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


_TIERS: Mapping[RoutingProfile, Mapping[Tier, ModelClass]] = MappingProxyType(
    {
        RoutingProfile.ECO: {
            Tier.LIGHT: ModelClass.FREE, Tier.STANDARD: ModelClass.SMALL, Tier.HEAVY: ModelClass.MEDIUM,
        },
        RoutingProfile.BALANCED: {
            Tier.LIGHT: ModelClass.SMALL, Tier.STANDARD: ModelClass.MEDIUM, Tier.HEAVY: ModelClass.LARGE,
        },
        RoutingProfile.PREMIUM: {
            Tier.LIGHT: ModelClass.MEDIUM, Tier.STANDARD: ModelClass.LARGE, Tier.HEAVY: ModelClass.LARGE,
        },
    }
)  # fmt: skip
_TALKING = (ProcessKind.CHANNEL, ProcessKind.BRANCH)


def no_free_models() -> Sequence[str]:
    """Where no catalogue tells of any."""
    return ()


def tier_model(tier: Tier, settings: AgentSettings, llm: LlmConfig, default: str, free: FreeModels) -> str:
    """The model of a tier: the owner's, else the profile's, else small, the default itself, large.

    Args:
        default: the model that would be asked without a tier.
    """
    named: str | None = getattr(settings.routing.prompt_routing.tiers, tier.value)
    if named is not None:
        return named
    if settings.routing_profile is not None:
        return class_model(_TIERS[settings.routing_profile][tier], settings, llm, free)
    if tier is Tier.STANDARD:
        return default
    return class_model(ModelClass.SMALL if tier is Tier.LIGHT else ModelClass.LARGE, settings, llm, free)


def role_model(process: ProcessKind, settings: AgentSettings, llm: LlmConfig, free: FreeModels) -> str | None:
    """What the profile gives to a process whose model the owner left open; None without a profile."""
    profile = settings.routing_profile
    if profile is None:
        return None
    is_light = process not in _TALKING and (process is not ProcessKind.WORKER or profile is not RoutingProfile.PREMIUM)
    return class_model(_TIERS[profile][Tier.LIGHT if is_light else Tier.STANDARD], settings, llm, free)


def class_model(wanted: ModelClass, settings: AgentSettings, llm: LlmConfig, free: FreeModels) -> str:
    """The full name of a class at the provider of the agent's channel model.

    Providers that serve whatever their owner put there have one model for all: the channel's.
    """
    channel = settings.routing.channel or default_models(llm).first
    provider_id, _ = split_name(channel)
    entry = provider_table().get(provider_id)
    if entry is None or not entry.has_classes:
        return channel
    if wanted is ModelClass.FREE:
        found = next((name for name in free() if split_name(name)[0] == provider_id), None)
        if found is not None:
            return found
    small, medium = entry.small or entry.second, entry.medium or entry.first
    sizes = {ModelClass.MEDIUM: medium, ModelClass.LARGE: entry.large or entry.first}
    return f"{provider_id}/{sizes.get(wanted, small)}"
