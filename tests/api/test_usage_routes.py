"""What models cost and which there are, over HTTP and the control socket."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spacebot.base.clock import Clock
from spacebot.base.fetch import open_fetcher
from spacebot.llm.catalogue import URL_VARIABLE, load_catalogue
from spacebot.llm.messages import Usage
from tests.api.serving import UNREAD, Served, open_server
from tests.api.test_control import open_control
from tests.fakes.completions import completion
from tests.stand_ins.models_dev import open_models_dev, published

pytestmark = pytest.mark.filterwarnings(UNREAD)
PART = Usage(input_tokens=10, output_tokens=5, cache_read_tokens=100)
KEYS = 'groq_key = "gsk-of-the-owner-000111"\nanthropic_key = "sk-of-the-owner-000111"\n'


def days_ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d")


async def fill(served: Served) -> None:
    main, other = served.program.agents.values()
    await main.usage.log.record(
        [
            completion("a/dear", PART, day=days_ago(0), cost=2.0, saved=0.5),
            completion("b/cheap", PART, day=days_ago(2), cost=0.5, kind="worker"),
            completion("b/cheap", PART, day=days_ago(40), cost=9.0, kind="worker"),
        ]
    )
    await other.usage.log.record(
        [completion("a/dear", PART, day=days_ago(0)), completion("c/own", PART, day=days_ago(1))]
    )


async def test_costs_are_shown_in_every_way_the_pages_need(tmp_path: Path) -> None:
    async with open_server(tmp_path, agents=("main", "ops")) as served:
        await fill(served)
        answer = (await served.client.get("/api/usage")).json()
        of_one = (await served.client.get("/api/usage", params={"agent_id": "ops", "days": "1"})).json()
        wrong = [
            (await served.client.get("/api/usage", params=params)).status_code
            for params in ({"agent_id": "nobody"}, {"days": "x"}, {"days": "-5"}, {"days": "99999999999999999999"})
        ]

    assert answer["since"] == days_ago(29)
    assert answer["totals"] == {
        "requests": 4, "input_tokens": 40, "output_tokens": 20, "cache_read_tokens": 400, "cache_write_tokens": 0,
        "reasoning_tokens": 0, "cost_usd": 2.5, "cost_status": "unknown", "saved_usd": 0.5,
    }  # fmt: skip
    assert [(row["model"], row["requests"], row["cost_usd"]) for row in answer["by_model"]] == [
        ("a/dear", 2, 2.0), ("b/cheap", 1, 0.5), ("c/own", 1, None),
    ]  # fmt: skip
    assert [row["day"] for row in answer["by_day"]] == [days_ago(2), days_ago(1), days_ago(0)]
    assert {row["agent_id"]: row["requests"] for row in answer["by_agent"]} == {"main": 2, "ops": 2}
    assert {row["process"]: row["requests"] for row in answer["by_process"]} == {"channel": 3, "worker": 1}
    assert [(budget["agent_id"], budget["state"]) for budget in answer["budgets"]] == [
        ("main", "none"),
        ("ops", "none"),
    ]
    assert {"daily_usd", "daily_tokens", "spent_usd", "spent_tokens", "resumes_at"} <= answer["budgets"][0].keys()
    assert (of_one["since"], of_one["totals"]["requests"], len(of_one["budgets"])) == (days_ago(0), 1, 1)
    assert wrong == [404, 400, 200, 200]


async def test_models_of_configured_providers_are_listed_and_refreshed_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(f"[llm]\n{KEYS}")
    async with open_models_dev() as models_dev, open_fetcher() as fetcher, open_server(tmp_path) as served:
        monkeypatch.setenv(URL_VARIABLE, models_dev.url)
        hears = {"input": ["text", "audio"], "output": ["text"]}
        models_dev.publish("groq", published("new", modalities=hears, reasoning=True), published("other"))
        served.program.catalogue = await load_catalogue(tmp_path, fetcher, Clock())
        client = served.client
        before = (await client.get("/api/models")).json()
        assert {model["provider"] for model in before["models"]} == {"anthropic", "groq"}
        assert before["is_stale"]
        assert models_dev.asked == []

        models_dev.next.append((500, b""))
        failed = await client.post("/api/models/refresh")
        assert failed.status_code == 502
        assert "the catalogue in use stays" in failed.json()["error"]
        assert (await client.get("/api/models")).json() == before

        after = (await client.post("/api/models/refresh")).json()
        assert after["models"][0] == {
            "id": "groq/new", "name": "NEW", "provider": "groq", "context_window": 100_000, "tool_call": True,
            "reasoning": True, "input_audio": True, "input_image": False,
            "price": {"input": 1, "output": 2, "cached": None, "write": None, "reasoning": None},
        }  # fmt: skip
        assert not after["is_stale"]
        for params, wanted in (
            ({"provider": "groq"}, ["groq/new", "groq/other"]),
            ({"provider": "anthropic"}, []),
            ({"capability": "input_audio"}, ["groq/new"]),
            ({"capability": "voice_transcription"}, []),
        ):
            listed = (await client.get("/api/models", params=params)).json()["models"]
            assert [model["id"] for model in listed] == wanted
        assert (await client.get("/api/models", params={"capability": "smell"})).status_code == 400
        assert "sk-of-the-owner" not in str(after)


async def test_the_control_socket_answers_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[llm]\n{KEYS}")
    async with open_control(tmp_path) as control:
        await control.program.main.usage.log.record([completion("a/dear", PART, day=days_ago(0), cost=2.0)])
        answer = await control.ask("usage", days=7)
        assert (answer["result"], answer["since"], answer["totals"]["cost_usd"]) == ("usage", days_ago(6), 2.0)
        assert "no agent 'nobody'" in (await control.ask("usage", agent="nobody"))["message"]
        assert "whole number" in (await control.ask("usage", days="many"))["message"]
        models = (await control.ask("models", provider="groq"))["models"]
        assert models
        assert {model["provider"] for model in models} == {"groq"}
        assert "cannot be fetched here" in (await control.ask("models", refresh=True))["message"]
