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


_SONNET, _HAIKU = "anthropic/claude-sonnet-4", "anthropic/claude-haiku-4.5"  # of examples


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
    """`[defaults.routing.prompt_routing.tiers]`: the model of each tier; left out, from the profile."""

    light: ModelName | None = Field(
        default=None, description="Model for simple words.", examples=["anthropic/claude-haiku-4.5"]
    )
    standard: ModelName | None = Field(
        default=None, description="Model for ordinary words.", examples=["anthropic/claude-sonnet-4"]
    )
    heavy: ModelName | None = Field(
        default=None, description="Model for demanding words.", examples=["anthropic/claude-opus-4"]
    )


class BoundariesConfig(Table):
    """`[defaults.routing.prompt_routing.boundaries]`: scores between the tiers."""

    model_config = ConfigDict(allow_inf_nan=False)

    light_standard: float = Field(default=0.0, ge=-1, le=1, description="A score strictly below is light.")
    standard_heavy: float = Field(default=0.4, ge=-1, le=1, description="A score strictly above is heavy.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.light_standard > self.standard_heavy:
            raise ValueError("must rise: light_standard <= standard_heavy")
        return self


class WeightsConfig(Table):
    """`[defaults.routing.prompt_routing.weights]`: what each dimension counts."""

    model_config = ConfigDict(allow_inf_nan=False)

    token_count: float = Field(default=0.10, ge=0, le=1, description="Length.")
    code_presence: float = Field(default=0.20, ge=0, le=1, description="Code, and words about it.")
    reasoning: float = Field(default=0.20, ge=0, le=1, description="Words that ask for reasoning.")
    simple: float = Field(default=0.15, ge=0, le=1, description="Greetings and simple questions, which count down.")
    technical: float = Field(default=0.15, ge=0, le=1, description="Technical terms.")
    multi_step: float = Field(default=0.10, ge=0, le=1, description="Several steps and lists.")
    constraints: float = Field(default=0.10, ge=0, le=1, description="Limits that an answer must keep.")


class PromptRoutingConfig(Table):
    """`[defaults.routing.prompt_routing]`: a person's words choose the tier of the model."""

    enabled: bool = Field(default=False, description="Whether words choose the model.")
    process_types: tuple[ProcessName, ...] = Field(
        default=("channel", "branch"), description="Processes whose model is chosen so."
    )
    tiers: TiersConfig = TiersConfig()
    boundaries: BoundariesConfig = BoundariesConfig()
    weights: WeightsConfig = WeightsConfig()
    keywords: dict[Dimension, Keywords] = Field(
        default={},
        description="Words of a dimension, instead of the built-in list.",
        examples=[{"technical": ["kernel", "firmware"]}],
    )
    keywords_extra: dict[Dimension, Keywords] = Field(
        default={}, description="Words of a dimension, beside its list.", examples=[{"simple": ["servus"]}]
    )


class RoutingConfig(Table):
    """`[defaults.routing]`: which model serves which process. Routes left out are chosen from the providers."""

    channel: ModelName | None = Field(
        default=None, description="Model that talks with people, as provider/model.", examples=[_SONNET]
    )
    branch: ModelName | None = Field(default=None, description="Model that thinks for them.", examples=[_SONNET])
    worker: ModelName | None = Field(default=None, description="Model that does tasks.", examples=[_HAIKU])
    compactor: ModelName | None = Field(default=None, description="Model that shortens history.", examples=[_HAIKU])
    cortex: ModelName | None = Field(default=None, description="Model that looks after memory.", examples=[_HAIKU])
    voice: ModelName | None = Field(
        default=None,
        description="Model that hears recordings; none is chosen by itself.",
        examples=["openai/whisper-1"],
    )
    channel_thinking_effort: ThinkingEffort = Field(
        default=ThinkingEffort.AUTO, description="How long the model of channels may think, where it can."
    )
    branch_thinking_effort: ThinkingEffort = Field(
        default=ThinkingEffort.AUTO, description="How long the model of branches may."
    )
    worker_thinking_effort: ThinkingEffort = Field(
        default=ThinkingEffort.AUTO, description="How long the model of workers may."
    )
    compactor_thinking_effort: ThinkingEffort = Field(
        default=ThinkingEffort.AUTO, description="How long the model of the compactor may."
    )
    cortex_thinking_effort: ThinkingEffort = Field(
        default=ThinkingEffort.AUTO, description="How long the model of the cortex may."
    )
    task_overrides: dict[str, ModelName] = Field(
        default={},
        description="Models for kinds of tasks, laid entry by entry over those of a lower level.",
        examples=[{"coding": _SONNET}],
    )
    fallbacks: dict[ModelName, tuple[ModelName, ...]] = Field(
        default={},
        description="Models that take over when one is busy or down; a higher level replaces the map as a whole.",
        examples=[{_SONNET: [_HAIKU]}],
    )
    rate_limit_cooldown_secs: float = Field(
        default=60, ge=0, description="Seconds for which a model that was too busy is passed over, by all agents."
    )
    prompt_routing: PromptRoutingConfig = PromptRoutingConfig()

    @field_validator("voice", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value


class BudgetConfig(Table):
    """`[defaults.budget]`: what an agent may spend on models between midnight and midnight of its owner's zone."""

    model_config = ConfigDict(allow_inf_nan=False)

    daily_usd: float | None = Field(
        default=None, gt=0, description="Estimated dollars of a day; left out, there is no limit.", examples=[5.0]
    )
    daily_tokens: int | None = Field(
        default=None,
        gt=0,
        le=10**15,
        description="Tokens of a day, all kinds together, also of models without a known price.",
        examples=[2_000_000],
    )
    warn_at: float = Field(
        default=0.8, gt=0, le=1, description="Share of a limit at which the owner is warned, once a day."
    )
