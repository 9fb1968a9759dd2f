"""`spacebot usage` and `spacebot models`: what people read; and both against a running program."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from spacebot.cli.usage import model_line, usage_lines
from spacebot.llm.messages import Usage
from tests.cli.conftest import Instance
from tests.fakes.completions import completion
from tests.fakes.fake_program import open_fake_program


def total(cost: float | None, status: str = "estimated", **fields: Any) -> dict[str, Any]:
    tokens = {f"{kind}_tokens": 0 for kind in ("cache_read", "cache_write", "output", "reasoning")}
    return {"requests": 3, "input_tokens": 1500, **tokens, "cost_usd": cost, "cost_status": status, "saved_usd": 0.0,
            **fields}  # fmt: skip


def test_a_page_tells_money_tokens_and_budgets_in_words() -> None:
    budget = {"agent_id": "main", "daily_usd": 2.0, "daily_tokens": 5000, "spent_usd": 1.9, "spent_tokens": 6000,
              "state": "stopped"}  # fmt: skip
    answer = {
        "since": "2026-03-01",
        "totals": total(1.5, "unknown", saved_usd=0.25),
        "by_model": [
            {"model": "a/b", **total(1.5)},
            {"model": "c/d", **total(0.0, "included")},
            {"model": "g/h", **total(0.00184)},
            {"model": "e/f\x1b[31m", **total(None, "unknown")},
        ],
        "by_process": [],
        "by_agent": [{"agent_id": "main", **total(1.5)}],
        "by_day": [{"day": "2026-03-01", **total(1.5)}],
        "budgets": [budget, {**budget, "state": "none"}],
    }
    lines = usage_lines(answer)
    assert lines[0] == "since 2026-03-01: $1.50 and more whose price is not known, 1,500 tokens, 3 calls"
    assert lines[1].endswith("saved about $0.25")
    text = "\n".join(lines)
    assert "included in a subscription" in text
    assert "price not known" in text
    assert "$0.0018, 1,500 tokens" in text
    assert "\x1b" not in text
    assert "by agent" not in text
    assert lines[-1] == (
        "  main: $1.90 of $2.00, 6,000 of 5,000 tokens; used up, no model is asked until midnight"
    )  # fmt: skip


def test_a_model_is_one_line() -> None:
    price = {"input": 3, "output": 15, "cached": 0.3, "write": None, "reasoning": None}
    model = {"id": "a/b", "context_window": 200_000, "tool_call": True, "reasoning": False, "input_audio": True,
             "input_image": False, "price": price}  # fmt: skip
    assert model_line(model).split() == ["a/b", "200k", "tools", "hears", "$3", "in,", "$15", "out", "per", "million"]
    assert model_line({**model, "context_window": None, "price": None}).split() == ["a/b", "tools", "hears"]


async def leave_costs(folder: Path) -> None:
    folder.mkdir(parents=True)
    async with open_fake_program(folder) as program:
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        usage = Usage(input_tokens=1200, output_tokens=30)
        await program.main.usage.log.record([completion("groq/some-model", usage, day=today, cost=1.25)])


def test_a_running_program_tells_what_models_cost_and_which_there_are(instance: Instance) -> None:
    trio.run(leave_costs, instance.root)
    instance.paths.config.write_text('[llm]\ngroq_key = "gsk-of-the-owner-000111"\n')
    assert instance.run("start").returncode == 0
    answer = json.loads(instance.run("usage", "--json", "--days", "3").stdout)
    assert (answer["totals"]["cost_usd"], answer["budgets"][0]["state"]) == (1.25, "none")
    shown = instance.run("usage").stdout
    assert "groq/some-model" in shown
    assert "$1.25, 1,230 tokens, 1 calls" in shown
    nobody = instance.run("usage", "--agent", "nobody")
    assert (nobody.returncode, "no agent 'nobody'" in nobody.stderr) == (1, True)
    models = instance.run("models", "--provider", "groq").stdout.splitlines()
    assert models
    assert all(line.startswith("groq/") for line in models)
