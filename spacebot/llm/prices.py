"""What a completion costs: prices of models, and tokens times prices.

The catalogue's price counts where it has one; else the table that ships with the program, by the longest beginning of
the name without prefixes of providers; else nothing is guessed.

Flow:   PriceBook.cost -> catalogue, prices.toml -> Price.cost -> Cost
Floor:  llm; may import base
Source: control spec 2.15, pitfalls 57 and 58
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType

from spacebot.base.paths import package_file
from spacebot.llm.messages import Usage

MILLION = 1_000_000


class CostStatus(StrEnum):
    """How far a cost can be believed."""

    ESTIMATED = "estimated"  # tokens times the known price
    INCLUDED = "included"  # a subscription pays
    UNKNOWN = "unknown"  # nobody knows the price


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens; None: the provider makes no difference to plain input or output."""

    input: float
    output: float
    cached: float | None = None
    write: float | None = None
    reasoning: float | None = None

    def cost(self, usage: Usage) -> float:
        """What tokens cost, in USD. Reasoning is a part of the output."""
        cached = self.input if self.cached is None else self.cached
        write = self.input if self.write is None else self.write
        reasoning = self.output if self.reasoning is None else self.reasoning
        thought = min(usage.reasoning_tokens, usage.output_tokens)
        total = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * cached
            + usage.cache_write_tokens * write
            + (usage.output_tokens - thought) * self.output
            + thought * reasoning
        )
        return total / MILLION


FREE = Price(input=0, output=0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one completion cost; `usd` is None where nobody knows."""

    usd: float | None
    status: CostStatus


class PriceBook:
    """All prices that are known.

    Args:
        listed: the catalogue's price of a model by its full name, or None.
    """

    def __init__(self, listed: Callable[[str], Price | None] = lambda model: None) -> None:
        self._listed = listed

    def price(self, model: str) -> Price | None:
        """The price of a model by its full name, such as `openrouter/anthropic/claude-sonnet-4`; None: unknown."""
        if model.partition("/")[0] in _table().free_providers:
            return FREE
        return self._listed(model) or table_price(model)

    def cost(self, model: str, usage: Usage, *, is_included: bool = False) -> Cost:
        """What a completion cost.

        Args:
            is_included: a subscription pays for it.
        """
        if is_included or model.partition("/")[0] in _table().subscriptions:
            return Cost(0.0, CostStatus.INCLUDED)
        price = self.price(model)
        return Cost(None, CostStatus.UNKNOWN) if price is None else Cost(price.cost(usage), CostStatus.ESTIMATED)

    def saved(self, model: str, default_model: str | None, usage: Usage) -> float | None:
        """What the same tokens would have cost more from the default model (negative: less), in USD.

        None without another default model, or while one of the two prices is unknown.
        """
        if default_model is None or default_model == model:
            return None
        asked, default = self.price(model), self.price(default_model)
        return None if asked is None or default is None else default.cost(usage) - asked.cost(usage)


def table_price(model: str) -> Price | None:
    """The price of a model that the catalogue does not price; None: unknown."""
    name, _, variant = bare_name(model).partition(":")
    if variant == "free":
        return FREE
    for beginning, price in _table().models.items():
        if name.startswith(beginning) and not name[len(beginning) : len(beginning) + 1].isalnum():
            return price
    return None


def bare_name(model: str) -> str:
    """A model's name without its providers, in one spelling: `openrouter/anthropic/claude-haiku-4.5` and
    `anthropic/claude-haiku-4-5` are the same."""
    return model.rpartition("/")[2].casefold().replace(".", "-")


@dataclass(frozen=True, slots=True)
class _Table:
    free_providers: frozenset[str]
    subscriptions: frozenset[str]
    models: Mapping[str, Price]  # the longest beginning first


@cache
def _table() -> _Table:
    with package_file("llm", "prices.toml").open("rb") as file:
        table = tomllib.load(file)
    models = {name: Price(**facts) for name, facts in table["models"].items()}
    longest_first = sorted(models, key=lambda name: (-len(name), name))
    return _Table(
        frozenset(table["free_providers"]),
        frozenset(table["subscriptions"]),
        MappingProxyType({name: models[name] for name in longest_first}),
    )
