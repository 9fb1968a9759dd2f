"""`usage` and `models`: what models cost, how the day's budget stands, and which models there are.

Flow:    show_usage, show_models -> control commands `usage`, `models` -> lines for people, or JSON
Floor:   cli; standard library only
Source:  control spec 2.14, 2.15; the other side is `api/usage.py`, `api/models.py`
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from spacebot.base.paths import InstancePaths
from spacebot.cli.client import ask
from spacebot.cli.memory_text import one_line

REFRESH_S = 30.0
DAYS_SHOWN = 14
WIDTH = 44  # of a model's name


def show_usage(paths: InstancePaths, options: Namespace) -> int:
    """Print what models cost; errors are raised."""
    request = {"days": options.days, "agent": options.agent}
    answer = ask(paths, "usage", **{name: value for name, value in request.items() if value is not None})
    answer.pop("result", None)
    print(json.dumps(answer) if options.json else "\n".join(usage_lines(answer)))
    return 0


def show_models(paths: InstancePaths, options: Namespace) -> int:
    """Print the models that can be asked; errors are raised."""
    answer = ask(paths, "models", timeout_s=REFRESH_S, provider=options.provider, refresh=options.refresh or None)
    answer.pop("result", None)
    if options.json:
        print(json.dumps(answer))
        return 0
    if not answer["models"]:
        print("no provider is configured for which models are known; see [llm] in config.toml", file=sys.stderr)
        return 0
    print("\n".join(model_line(model) for model in answer["models"]))
    print(f"as of {answer['fetched_at'][:10]}; spacebot models --refresh looks for newer ones", file=sys.stderr)
    return 0


def usage_lines(answer: Mapping[str, Any]) -> list[str]:
    """The page for people."""
    totals = answer["totals"]
    lines = [f"since {answer['since']}: {_words(totals)}"]
    if totals["saved_usd"]:
        lines.append(f"choosing models by the words of messages saved about {_usd(totals['saved_usd'])}")
    lines += _section("by model", "model", answer["by_model"])
    lines += _section("by process", "process", answer["by_process"])
    if len(answer["by_agent"]) > 1:
        lines += _section("by agent", "agent_id", answer["by_agent"])
    lines += _section(f"by day (the last {DAYS_SHOWN} with a call)", "day", answer["by_day"][-DAYS_SHOWN:])
    budgets = [f"  {budget_words(budget)}" for budget in answer["budgets"] if budget["state"] != "none"]
    return lines + (["", "budgets of today", *budgets] if budgets else [])


def model_line(model: Mapping[str, Any]) -> str:
    """One model for people."""
    window, price = model["context_window"], model["price"]
    size = "" if window is None else f"{window // 1000}k"
    can = (("tools", "tool_call"), ("thinks", "reasoning"), ("hears", "input_audio"), ("sees", "input_image"))
    words = " ".join(word for word, key in can if model[key])
    cost = "" if price is None else f"${price['input']:g} in, ${price['output']:g} out per million"
    return f"{one_line(model['id'], WIDTH):<{WIDTH}}  {size:>6}  {words:<24}  {cost}".rstrip()


def budget_words(budget: Mapping[str, Any]) -> str:
    """One agent's budget of the day for people."""
    parts = []
    if budget["daily_usd"] is not None:
        parts.append(f"{_usd(budget['spent_usd'])} of {_usd(budget['daily_usd'])}")
    if budget["daily_tokens"] is not None:
        parts.append(f"{_count(budget['spent_tokens'])} of {_count(budget['daily_tokens'])} tokens")
    states = {"warned": "; nearly used up", "stopped": "; used up, no model is asked until midnight"}
    return f"{budget['agent_id']}: {', '.join(parts)}{states.get(budget['state'], '')}"


def _section(title: str, key: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    return ["", title, *(f"  {one_line(row[key], WIDTH):<{WIDTH}}  {_words(row)}" for row in rows)]


def _words(total: Mapping[str, Any]) -> str:
    tokens = sum(total[f"{kind}_tokens"] for kind in ("input", "cache_read", "cache_write", "output"))
    return f"{_money(total)}, {_count(tokens)} tokens, {_count(total['requests'])} calls"


def _money(total: Mapping[str, Any]) -> str:
    cost, status = total["cost_usd"], total["cost_status"]
    if cost is None:
        return "price not known"
    if status == "included":
        return "included in a subscription"
    return f"{_usd(cost)}{' and more whose price is not known' if status == 'unknown' else ''}"


def _usd(amount: float) -> str:
    """Dollars; small amounts with more digits, so that they are not nothing."""
    sign = "-" if amount < 0 else ""
    return f"{sign}${abs(amount):.{2 if abs(amount) >= 0.1 or not amount else 4}f}"


def _count(number: int) -> str:
    return f"{number:,}"
