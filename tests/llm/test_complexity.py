"""How hard words are: the worked samples, the guards, and what an owner may change."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.config.routing import BoundariesConfig, PromptRoutingConfig, WeightsConfig
from spacebot.llm.complexity import Complexity, Tier, classify

USUAL = PromptRoutingConfig(enabled=True)


def judge(
    *texts: str, config: PromptRoutingConfig = USUAL, files: bool = False, before: Tier | None = None
) -> Complexity:
    found = classify(config, texts, has_attachments=files, previous=before)
    assert found is not None
    return found


LARGE = ("Compare the proof of this.\n```\nx = 1\n```\nkubernetes latency throughput " + "and so on " * 200)[:2000]


@pytest.mark.spec("CA-5")
@pytest.mark.parametrize(
    ("text", "score", "tier"),
    [
        ("hello", -0.25, Tier.LIGHT),
        ("what's 2+2", -0.25, Tier.LIGHT),
        ("what’s 2+2", -0.25, Tier.LIGHT),
        ("yes", -0.25, Tier.LIGHT),
        ("design a distributed consensus algorithm", 0.05, Tier.STANDARD),
        ("what is a distributed consensus algorithm", -0.10, Tier.STANDARD),
        ("fix the import", -0.02, Tier.STANDARD),
        (LARGE, 0.65, Tier.HEAVY),
    ],
)
def test_the_worked_samples(text: str, score: float, tier: Tier) -> None:
    found = judge(text)
    assert found.score == pytest.approx(score)
    assert found.tier is tier


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("a" * 48, "token_count", -1.0),  # 12 tokens
        ("a" * 144, "token_count", -0.5),
        ("a" * 240, "token_count", 0.0),
        ("a" * 1120, "token_count", 0.5),
        ("a" * 9000, "token_count", 1.0),
        ("import", "code_presence", 0.4),
        ("async import", "code_presence", 0.7),
        ("async import def", "code_presence", 1.0),
        ("look at app.py", "code_presence", 0.4),
        ("call `run()`", "code_presence", 0.4),
        ('it says\n  File "x", line 3\nwhy', "code_presence", 0.4),
        ("it says\n    at foo (main:3)", "code_presence", 0.4),
        ("```", "code_presence", 1.0),
        ("import import", "code_presence", 0.4),  # each word once
        ("important classic", "code_presence", 0.0),  # whole words only
        ("explain step-by-step", "reasoning", 0.6),
        ("compare, then prove it", "reasoning", 1.0),
        ("hi", "simple", -1.0),
        ("hi " + "a" * 400, "simple", -0.5),
        ("somewhat islands", "simple", 0.0),
        ("latency", "technical", 0.4),
        ("latency of the protocol", "technical", 0.7),
        ("first do this and then that", "multi_step", 0.5),
        ("do step 2; after that rest", "multi_step", 1.0),
        ("buy\n- milk\n- bread", "multi_step", 0.5),
        ("buy\n1. milk\n2. bread\n3. salt", "multi_step", 1.0),
        ("at most ten", "constraints", 0.4),
        ("in O(n log n), under 20 ms, exactly 3", "constraints", 1.0),
    ],
)  # fmt: skip
def test_each_dimension(text: str, dimension: str, value: float) -> None:
    assert judge(text).values[dimension] == pytest.approx(value)  # type: ignore[index]


def test_the_hardest_of_several_messages_counts() -> None:
    assert judge("hi", LARGE, "thanks").tier is Tier.HEAVY
    assert classify(USUAL, ()) is None


def test_attachments_are_never_light() -> None:
    found = judge("what is this", files=True)
    assert found.tier is Tier.STANDARD
    assert found.guards


@pytest.mark.parametrize(
    ("text", "before", "tier"),
    [
        ("go on", Tier.HEAVY, Tier.HEAVY),
        ("Yes, please!", Tier.STANDARD, Tier.STANDARD),
        ("yes", Tier.LIGHT, Tier.LIGHT),
        ("yes", None, Tier.LIGHT),
        ("hello", Tier.HEAVY, Tier.LIGHT),  # no assent
    ],
)
def test_a_bare_assent_is_as_hard_as_what_it_assents_to(text: str, before: Tier | None, tier: Tier) -> None:
    assert judge(text, before=before).tier is tier


def test_an_owner_changes_words_weights_and_boundaries() -> None:
    words = PromptRoutingConfig(keywords={"technical": ("Wasserwerk",)}, keywords_extra={"simple": ("servus",)})
    found = judge("Servus, was macht das WASSERWERK? latency", config=words)
    assert found.values["technical"] == 0.4  # instead of the built-in list
    assert found.values["simple"] == -1.0  # beside it
    assert judge("hi", config=words).values["simple"] == -1.0
    flat = PromptRoutingConfig(weights=WeightsConfig(token_count=0, simple=0))
    assert judge("hello", config=flat).score == 0.0
    assert judge("hello", config=flat).tier is Tier.STANDARD, "exactly on the boundary is not below it"
    low = PromptRoutingConfig(boundaries=BoundariesConfig(light_standard=-0.5, standard_heavy=-0.3))
    assert judge("hello", config=low).tier is Tier.HEAVY


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(string.printable + "ä日’`\x00\u202e"), max_size=400) | st.text(max_size=300))
def test_any_text_has_a_score_within_bounds_and_work_is_never_light(text: str) -> None:
    found = judge(text)
    assert -0.25 <= found.score <= 0.85
    assert all(-1 <= value <= 1 for value in found.values.values())
    if any(found.values[name] > 0 for name in ("code_presence", "reasoning", "technical", "multi_step", "constraints")):
        assert found.tier is not Tier.LIGHT


@pytest.mark.spec("CA-5")
def test_hostile_lengths_take_no_more_steps_than_the_cap() -> None:
    """Each pattern looks at the first 16,000 characters; the length alone counts whole."""
    found = judge("a" * 20_000 + " prove compare derive")
    assert found.values["reasoning"] == 0.0
    assert found.values["token_count"] == 1.0
    for text in ("first " * 3000, "`" * 16_000, "\n" * 16_000, "1. " * 8000, "a." * 8000, "o(" * 8000):
        assert judge(text).tier in Tier
