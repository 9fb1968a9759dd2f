"""`spacebot route explain`, with and without a running program."""

import json

import pytest

from tests.cli.conftest import Instance

SCORED = """
[llm]
openrouter_key = "a-key-of-the-owner"

[defaults.routing]
channel = "anthropic/claude-sonnet-4"

[defaults.routing.prompt_routing]
enabled = true

[defaults.routing.fallbacks]
"anthropic/claude-sonnet-4" = ["groq/missing", "openrouter/some/other"]
"""


@pytest.fixture
def scored(instance: Instance) -> Instance:
    instance.root.mkdir(parents=True, exist_ok=True)
    instance.paths.config.write_text(SCORED)
    return instance


def test_without_a_program_the_configuration_answers(scored: Instance) -> None:
    answer = json.loads(scored.run("route", "explain", "--json", "hello").stdout)
    assert answer["model"] == "openrouter/anthropic/claude-haiku-4.5"
    assert (answer["tier"], answer["default"]) == ("light", "anthropic/claude-sonnet-4")
    assert "a-key-of-the-owner" not in json.dumps(answer)

    shown = scored.run("route", "explain", "design", "a", "distributed", "consensus", "algorithm").stdout
    assert shown.startswith("openrouter/anthropic/claude-sonnet-4  (by prompt tier)")
    assert "technical      +1.00  algorithm, consensus, distributed" in shown
    assert "2. groq/missing" in shown
    assert "GROQ_API_KEY" in shown

    worker = scored.run("route", "explain", "--process", "worker", "--task", "coding", "hello").stdout
    assert "decides nothing here" in worker


def test_a_running_program_answers_the_same(scored: Instance) -> None:
    offline = scored.run("route", "explain", "--json", "hello").stdout
    assert scored.run("start").returncode == 0
    assert json.loads(scored.run("route", "explain", "--json", "hello").stdout) == json.loads(offline)


def test_wrong_words_are_answered_with_what_there_is(scored: Instance) -> None:
    missing = scored.run("route", "explain", "--agent", "nobody", "hello")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no agent 'nobody' is configured; there is: main" in missing.stderr
    assert scored.run("route", "explain").returncode == 2
