"""What completions cost: the table, names however they are nested, kinds of tokens, what nobody knows."""

import json

import pytest

from spacebot.llm.messages import Usage
from spacebot.llm.prices import FREE, Cost, CostStatus, Price, PriceBook, table_price

MILLION = 1_000_000
USAGE = Usage(
    input_tokens=MILLION, output_tokens=MILLION, cache_read_tokens=MILLION, cache_write_tokens=MILLION
)  # fmt: skip


@pytest.mark.spec("C-58")
@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("claude-sonnet-4", (3, 15, 0.30, 3.75)),
        ("anthropic/claude-sonnet-4-20250514", (3, 15, 0.30, 3.75)),
        ("openrouter/anthropic/claude-sonnet-4", (3, 15, 0.30, 3.75)),
        ("openrouter/anthropic/claude-haiku-4.5", (0.80, 4, 0.08, 1.0)),
        ("anthropic/claude-3-5-haiku-latest", (0.80, 4, 0.08, 1.0)),
        ("anthropic/claude-3-haiku-20240307", (0.25, 1.25, 0.03, 0.3125)),
        ("openai/gpt-4o-mini-2024-07-18", (0.15, 0.60, 0.075, None)),
        ("openai/GPT-4o", (2.5, 10, 1.25, None)),
        ("openai/o3-mini", (1.1, 4.4, 0.55, None)),
        ("openai/o1", (15, 60, 7.5, None)),
        ("gemini/gemini-2.5-flash", (0.075, 0.30, 0.01875, None)),
        ("my-proxy/google/gemini-2.5-pro", (1.25, 10, 0.3125, None)),
        ("fireworks/accounts/fireworks/models/deepseek-v3", (0.27, 1.10, 0.07, None)),
        ("deepseek/deepseek-reasoner", (0.55, 2.19, 0.14, None)),
    ],
)
def test_a_price_is_found_under_all_prefixes_by_the_longest_beginning(
    model: str, wanted: tuple[float | None, ...]
) -> None:
    price = table_price(model)
    assert price is not None
    assert (price.input, price.output, price.cached, price.write) == wanted


@pytest.mark.spec("C-58")
@pytest.mark.parametrize("model", ["openai/gpt-99", "my/o11-preview", "my/o3x", "x/gpt-4ominous", "groq/llama-3.3", ""])
def test_an_unknown_model_has_no_price_rather_than_that_of_another(model: str) -> None:
    assert table_price(model) is None
    assert PriceBook().cost(model, USAGE) == Cost(None, CostStatus.UNKNOWN)


def test_every_kind_of_token_has_its_own_price() -> None:
    price = Price(input=3, output=15, cached=0.3, write=3.75, reasoning=20)
    assert price.cost(USAGE) == pytest.approx(3 + 15 + 0.3 + 3.75)
    assert price.cost(Usage(output_tokens=MILLION, reasoning_tokens=MILLION // 2)) == pytest.approx(7.5 + 10)
    plain = Price(input=2, output=8)
    assert plain.cost(USAGE) == pytest.approx(2 + 8 + 2 + 2)  # no discount that nobody promised
    assert plain.cost(Usage(output_tokens=10, reasoning_tokens=10)) == plain.cost(Usage(output_tokens=10))


def test_the_catalogue_beats_the_table_and_free_ways_cost_nothing() -> None:
    listed = {"openai/gpt-4o": Price(input=1, output=1)}
    book = PriceBook(listed.get)
    assert book.cost("openai/gpt-4o", Usage(input_tokens=MILLION)) == Cost(1.0, CostStatus.ESTIMATED)
    assert book.cost("openai/o3", Usage(input_tokens=MILLION)) == Cost(10.0, CostStatus.ESTIMATED)
    assert book.price("ollama/claude-sonnet-4") == book.price("openrouter/deepseek/deepseek-r1:free") == FREE
    assert book.cost("demo/demo", USAGE) == Cost(0.0, CostStatus.ESTIMATED)


def test_a_subscription_pays_for_itself() -> None:
    book = PriceBook()
    assert book.cost("anthropic/claude-opus-4", USAGE, is_included=True) == Cost(0.0, CostStatus.INCLUDED)
    assert book.cost("openai-chatgpt/gpt-4o", USAGE) == Cost(0.0, CostStatus.INCLUDED)


def test_what_another_model_saved_is_told_only_where_both_prices_are_known() -> None:
    book = PriceBook()
    usage = Usage(input_tokens=MILLION)
    assert book.saved("anthropic/claude-3-haiku", "anthropic/claude-sonnet-4", usage) == pytest.approx(2.75)
    assert book.saved("anthropic/claude-opus-4", "anthropic/claude-sonnet-4", usage) == pytest.approx(-12)
    assert book.saved("openai/gpt-99", "anthropic/claude-sonnet-4", usage) is None
    assert book.saved("anthropic/claude-opus-4", None, usage) is None
    assert book.saved("anthropic/claude-opus-4", "anthropic/claude-opus-4", usage) is None


@pytest.mark.spec("C-57")
def test_the_same_talk_costs_the_same_however_the_vendor_counts_its_cache() -> None:
    """Anthropic counts cached tokens beside the input, OpenAI within; the dialects make one form of both."""
    from spacebot.llm.openai_chat import _to_usage

    openai = _to_usage(
        json.loads('{"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 800}}')
    )
    assert openai == Usage(input_tokens=200, cache_read_tokens=800, output_tokens=50)
    price = Price(input=3, output=15, cached=0.3)
    assert price.cost(openai) == pytest.approx((200 * 3 + 800 * 0.3 + 50 * 15) / MILLION)
