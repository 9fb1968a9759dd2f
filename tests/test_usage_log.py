"""The log of costs: rows and sums by day together, reports, what becomes of what is old, databases from before."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from spacebot.base.clock import Clock
from spacebot.base.paths import package_file
from spacebot.conversations.usage_log import SETTLED_AT_ONCE, Spent, UsageLog, UsageTotal
from spacebot.conversations.worker_runs import costs_of
from spacebot.llm.messages import Usage
from spacebot.llm.prices import CostStatus
from spacebot.storage.database import Connection, Database, open_database
from tests.fakes.completions import completion

NOW = datetime(2026, 3, 5, 12, 0, tzinfo=UTC)
PART = Usage(
    input_tokens=10, output_tokens=5, cache_read_tokens=100, cache_write_tokens=20, reasoning_tokens=2
)  # fmt: skip


@asynccontextmanager
async def open_log(folder: Path, migrations: Path | None = None) -> AsyncIterator[tuple[UsageLog, Database]]:
    async with open_database(folder / "spacebot.db", migrations or package_file("storage", "sql")) as database:
        yield UsageLog(database, Clock(now=lambda: NOW)), database


async def test_a_report_sums_by_day_model_and_process(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (log, _):
        await log.record(
            [
                completion("a/dear", PART, day="2026-03-01", cost=2.0, saved=-1.0),
                completion("a/dear", PART, day="2026-03-02", cost=1.0, kind="worker"),
                completion("b/cheap", PART, day="2026-03-02", cost=0.5, saved=1.5),
                completion("c/gratis", PART, day="2026-03-02", cost=0.0, status=CostStatus.INCLUDED, kind="cortex"),
            ]
        )
        await log.record([completion("d/secret", PART, day="2026-03-03")])
        report = await log.report("2026-03-02")
        everything = await log.report("2026-01-01")

    assert list(report.by_day) == ["2026-03-03", "2026-03-02"]
    assert list(report.by_model) == ["a/dear", "b/cheap", "c/gratis", "d/secret"]
    assert {name: total.requests for name, total in report.by_process.items()} == {
        "worker": 1, "channel": 2, "cortex": 1,
    }  # fmt: skip
    assert everything.by_model["a/dear"].to_json_object() == {
        "requests": 2, "input_tokens": 20, "output_tokens": 10, "cache_read_tokens": 200, "cache_write_tokens": 40,
        "reasoning_tokens": 4, "cost_usd": 3.0, "cost_status": "estimated", "saved_usd": -1.0,
    }  # fmt: skip
    told = {name: (total.to_json_object()["cost_usd"], total.status) for name, total in report.by_model.items()}
    assert told["c/gratis"] == (0.0, "included")
    assert told["d/secret"] == (None, "unknown")
    assert (report.total.cost_usd, report.total.status) == (1.5, "unknown")  # the known part, and that there is more
    assert UsageTotal().to_json_object()["cost_usd"] == 0.0


async def test_what_a_day_has_cost_counts_tokens_of_every_kind_once(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (log, _):
        await log.record([completion("a/b", PART, cost=0.25), completion("a/b", PART), completion("c/d", PART, cost=1)])
        assert await log.spent(["2026-02-28", "2026-03-01"]) == {"2026-03-01": Spent(1.25, 3 * 135)}
        assert await log.spent(["2026-02-28"]) == {}


async def test_after_ninety_days_a_process_has_one_row_and_the_sums_stay(tmp_path: Path) -> None:
    old = "2025-12-01"
    async with open_log(tmp_path) as (log, database):
        await log.record(
            [
                *(completion("a/b", PART, day=old, kind="worker", process_id="w1", cost=1.0) for _ in range(3)),
                completion("c/d", PART, day=old, kind="worker", process_id="w1"),
                completion("a/b", PART, day=old, kind="branch", process_id="b1", cost=1.0),
                *(completion("a/b", PART, day=old, process_id="turn", cost=1.0) for _ in range(SETTLED_AT_ONCE)),
                completion("a/b", PART, day="2026-03-01", process_id="turn", cost=1.0),
            ]
        )
        before = await log.report("2020-01-01")
        costs = await database.read(lambda c: costs_of(c, ["w1", "b1"]))
        assert await log.settle() == 2 + SETTLED_AT_ONCE
        assert await log.settle() == 0
        assert await database.read(rows) == 4
        assert await database.read(lambda c: costs_of(c, ["w1", "b1"])) == costs
        assert costs["w1"].calls == 4
        assert await log.report("2020-01-01") == before
        plan = await database.read(explain)

    assert "SCAN usage" not in plan


def rows(c: Connection) -> int:
    return int(c.execute("SELECT count(*) FROM usage").fetchone()[0])


def explain(c: Connection) -> str:
    statement = "EXPLAIN QUERY PLAN SELECT id FROM usage WHERE created_at < 'x' AND is_settled = 0 ORDER BY created_at"
    return " ".join(row["detail"] for row in c.execute(statement))


async def test_a_database_from_before_shows_its_tokens_without_a_price(tmp_path: Path) -> None:
    older = tmp_path / "sql"
    older.mkdir()
    for file in package_file("storage", "sql").glob("000*.sql"):
        shutil.copy(file, older)

    def fill(c: Connection) -> None:
        c.executemany(
            "INSERT INTO usage (created_at, process_kind, model, input_tokens, output_tokens, cache_read_tokens, "
            "cache_write_tokens, reasoning_tokens) VALUES (?, 'channel', 'a/b', 10, 5, 0, 0, 0)",
            [("2026-03-01T23:59:59.000Z",), ("2026-03-01T00:00:00.000Z",), ("2026-03-02T00:00:00.000Z",)],
        )

    async with open_log(tmp_path, older) as (_, database):
        await database.write(fill)
    async with open_log(tmp_path) as (log, _):
        report = await log.report("2026-03-01")
        await log.record([completion("a/b", PART, day="2026-03-02", cost=1.0)])
        later = await log.report("2026-03-02")

    assert {day: (total.requests, total.status) for day, total in report.by_day.items()} == {
        "2026-03-02": (1, "unknown"), "2026-03-01": (2, "unknown"),
    }  # fmt: skip
    assert (later.total.requests, later.total.cost_usd) == (2, 1.0)


async def test_rows_of_costs_hold_no_words(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (_, database):
        columns = await database.read(
            lambda c: {row["name"] for t in ("usage", "usage_daily") for row in c.execute(f"PRAGMA table_info({t})")}
        )
    assert columns == {
        "id", "created_at", "day", "process_kind", "process_id", "channel_id", "model", "input_tokens",
        "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "requests", "cost_usd",
        "cost_status", "tier", "default_model", "saved_usd", "is_settled",
    }  # fmt: skip
