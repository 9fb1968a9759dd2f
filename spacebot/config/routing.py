"""The tables that choose a model: routes, complexity tiers, profiles, thinking effort; and what may be spent.

Floor:  config; may import base
Source: control spec 1.5.4, 2.4 to 2.7, 2.10
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from spacebot.config.tables import Table

ModelName = Annotated[str, Field(min_length=1, max_length=200)]
ProcessName = Literal["channel", "branch", "worker", "compactor", "cortex"]
Dimension = Literal["token_count", "code_presence", "reasoning", "simple", "technical", "multi_step", "constraints"]
Keyword = Annotated[str, Field(min_length=1, max_length=100)]
Keywords = Annotated[tuple[Keyword, ...], Field(max_length=500)]


class ThinkingEffort(StrEnum):
    """How long a model that can think may do so."""

    AUTO = "auto"
    MAX = "max"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class RoutingProfile(StrEnum):
    """Presets of which class of model serves what."""

    ECO = "eco"
    BALANCED = "balanced"
    PREMIUM = "premium"


class TiersConfig(Table):
    """`[defaults.routing.prompt_routing.tiers]`: the model of each tier. None means: from the profile."""

    light: ModelName | None = None
    standard: ModelName | None = None
    heavy: ModelName | None = None


class BoundariesConfig(Table):
    """`[defaults.routing.prompt_routing.boundaries]`: scores between the tiers."""

    model_config = ConfigDict(allow_inf_nan=False)

    light_standard: float = Field(default=0.0, ge=-1, le=1)  # strictly below is light
    standard_heavy: float = Field(default=0.4, ge=-1, le=1)  # strictly above is heavy

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.light_standard > self.standard_heavy:
            raise ValueError("must rise: light_standard <= standard_heavy")
        return self


class WeightsConfig(Table):
    """`[defaults.routing.prompt_routing.weights]`: what each dimension counts. Control spec 2.6."""

    model_config = ConfigDict(allow_inf_nan=False)

    token_count: float = Field(default=0.10, ge=0, le=1)
    code_presence: float = Field(default=0.20, ge=0, le=1)
    reasoning: float = Field(default=0.20, ge=0, le=1)
    simple: float = Field(default=0.15, ge=0, le=1)
    technical: float = Field(default=0.15, ge=0, le=1)
    multi_step: float = Field(default=0.10, ge=0, le=1)
    constraints: float = Field(default=0.10, ge=0, le=1)


class PromptRoutingConfig(Table):
    """`[defaults.routing.prompt_routing]`: a person's words choose the tier of the model. Control spec 2.6."""

    enabled: bool = False
    process_types: tuple[ProcessName, ...] = ("channel", "branch")
    tiers: TiersConfig = TiersConfig()
    boundaries: BoundariesConfig = BoundariesConfig()
    weights: WeightsConfig = WeightsConfig()
    keywords: dict[Dimension, Keywords] = Field(default={})  # instead of the built-in lists
    keywords_extra: dict[Dimension, Keywords] = Field(default={})  # beside them


class RoutingConfig(Table):
    """`[defaults.routing]`: which model serves which process. None means: chosen from the configured providers."""

    channel: ModelName | None = None
    branch: ModelName | None = None
    worker: ModelName | None = None
    compactor: ModelName | None = None
    cortex: ModelName | None = None
    voice: ModelName | None = None  # hears recordings; none is chosen by itself
    channel_thinking_effort: ThinkingEffort = ThinkingEffort.AUTO
    branch_thinking_effort: ThinkingEffort = ThinkingEffort.AUTO
    worker_thinking_effort: ThinkingEffort = ThinkingEffort.AUTO
    compactor_thinking_effort: ThinkingEffort = ThinkingEffort.AUTO
    cortex_thinking_effort: ThinkingEffort = ThinkingEffort.AUTO
    task_overrides: dict[str, ModelName] = Field(default={})
    fallbacks: dict[ModelName, tuple[ModelName, ...]] = Field(default={})
    rate_limit_cooldown_secs: float = Field(default=60, ge=0)
    prompt_routing: PromptRoutingConfig = PromptRoutingConfig()

    @field_validator("voice", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value


class BudgetConfig(Table):
    """`[defaults.budget]`: what an agent may spend on models between midnight and midnight of its owner's zone."""

    model_config = ConfigDict(allow_inf_nan=False)

    daily_usd: float | None = Field(default=None, gt=0)  # estimated; None is no limit
    daily_tokens: int | None = Field(default=None, gt=0)  # all kinds together, also of models without a known price
    warn_at: float = Field(default=0.8, gt=0, le=1)  # share at which the owner is warned once a day
