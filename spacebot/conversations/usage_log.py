"""What model calls cost: a row for each, and sums by day, written together; no word of what was said.

Everything that is shown comes from the sums, so a page costs the same after a year. Rows of single calls serve what
one process cost; after `KEPT_DAYS` those of a branch or worker become one, the others go.

Flow:   UsageLog.record -> usage, usage_daily; report, spent <- usage_daily
Floor:  conversations
Source: control spec 2.15; the table of sums is ours
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from spacebot.base.clock import Clock, to_text
from spacebot.llm.messages import Usage
from spacebot.llm.prices import Cost, CostStatus
from spacebot.storage.database import Connection, Database, Row

KEPT_DAYS = 90
SETTLED_AT_ONCE = 2000  # rows in one transaction, so that no other write waits for long
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in ("requests", *_TOKENS, "cost_usd", "saved_usd"))


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEntry:
    """One completion.

    Args:
        at: when it was over, in the form that rows keep.
        day: the same for its owner, such as `2026-03-01`.
        process_kind: channel, branch, worker, compactor, cortex.
        saved_usd: against `default_model`; None where there was no other, or nobody knows.
    """

    at: str
    day: str
    process_kind: str
    process_id: str | None
    channel_id: str | None
    model: str
    usage: Usage
    cost: Cost
    tier: str | None = None
    default_model: str | None = None
    saved_usd: float | None = None

    @property
    def tokens(self) -> int:
        """All kinds of tokens together; reasoning is a part of the output."""
        return tokens_of(self.usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """Many completions together; `priced`, `included` and `unpriced` count their requests by cost status."""

    usage: Usage = field(default_factory=Usage)
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    priced: int = 0
    included: int = 0
    unpriced: int = 0

    @property
    def requests(self) -> int:
        """How many completions."""
        return self.priced + self.included + self.unpriced

    @property
    def status(self) -> CostStatus:
        """How far `cost_usd` can be believed: as little as the least known part of it."""
        if self.unpriced:
            return CostStatus.UNKNOWN
        return CostStatus.INCLUDED if self.included and not self.priced else CostStatus.ESTIMATED

    def __add__(self, other: "UsageTotal") -> "UsageTotal":
        return UsageTotal(
            usage=self.usage + other.usage,
            cost_usd=self.cost_usd + other.cost_usd,
            saved_usd=self.saved_usd + other.saved_usd,
            priced=self.priced + other.priced,
            included=self.included + other.included,
            unpriced=self.unpriced + other.unpriced,
        )

    def to_json_object(self) -> dict[str, Any]:
        """For programs; `cost_usd` is the known part, and null where nothing of it is known."""
        is_known = self.priced or self.included or not self.unpriced
        return {
            "requests": self.requests,
            **{name: getattr(self.usage, name) for name in _TOKENS},
            "cost_usd": round(self.cost_usd, 6) if is_known else None,
            "cost_status": str(self.status),
            "saved_usd": round(self.saved_usd, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Everything since a day, in three ways; the newest day and the dearest model come first."""

    by_day: dict[str, UsageTotal]
    by_model: dict[str, UsageTotal]
    by_process: dict[str, UsageTotal]

    @property
    def total(self) -> UsageTotal:
        """All of it."""
        return sum(self.by_day.values(), UsageTotal())


@dataclass(frozen=True, slots=True)
class Spent:
    """What a day has cost so far: estimated USD, and tokens of all kinds."""

    usd: float = 0.0
    tokens: int = 0


class UsageLog:
    """One agent's costs."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record(self, entries: Sequence[UsageEntry]) -> None:
        """Keep completions and add them to the sums. Errors: StorageError; none is kept then."""
        rows = [_row_of(entry) for entry in entries]
        sums = [_sum_of(entry) for entry in entries]

        def write(c: Connection) -> None:
            c.executemany(_INSERT, rows)
            c.executemany(_ADD, sums)

        await self._database.write(write)

    async def spent(self, days: Iterable[str]) -> dict[str, Spent]:
        """What some days have cost; those without a call are not in it. Errors: StorageError."""
        wanted = tuple(days)
        marks = ", ".join("?" * len(wanted))
        statement = (
            "SELECT day, sum(cost_usd) AS usd, sum(input_tokens + output_tokens + cache_read_tokens + "
            f"cache_write_tokens) AS tokens FROM usage_daily WHERE day IN ({marks}) GROUP BY day"
        )
        rows = await self._database.read(lambda c: c.execute(statement, wanted).fetchall())
        return {row["day"]: Spent(row["usd"], row["tokens"]) for row in rows}

    async def report(self, since: str) -> UsageReport:
        """Everything since a day. Errors: StorageError."""

        def read(c: Connection) -> UsageReport:
            c.execute("BEGIN")  # all three of one state
            by_day = _grouped(c, "day", since)
            by_model, by_process = _grouped(c, "model", since), _grouped(c, "process_kind", since)
            return UsageReport(
                by_day=dict(sorted(by_day.items(), reverse=True)),
                by_model=dict(sorted(by_model.items(), key=_dearest_first)),
                by_process=dict(sorted(by_process.items(), key=_dearest_first)),
            )

        return await self._database.read(read)

    async def settle(self) -> int:
        """Shorten what is old; the sums by day keep it. Returns how many rows are gone. Errors: StorageError."""
        oldest = to_text(self._clock.now() - timedelta(days=KEPT_DAYS))
        gone = 0
        while True:
            looked_at, dropped = await self._database.write(lambda c: _settle(c, oldest))
            gone += dropped
            if looked_at < SETTLED_AT_ONCE:
                return gone


def tokens_of(usage: Usage) -> int:
    """All kinds of tokens together; reasoning is a part of the output."""
    return usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens


_INSERT = (
    "INSERT INTO usage (created_at, process_kind, process_id, channel_id, model, input_tokens, output_tokens, "
    "cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, cost_status, tier, default_model, saved_usd) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ADD = (
    "INSERT INTO usage_daily (day, process_kind, model, cost_status, requests, input_tokens, output_tokens, "
    "cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, saved_usd) "
    "VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    + ", ".join(
        f"{name} = {name} + excluded.{name}" for name in ("requests", *_TOKENS, "cost_usd", "saved_usd")
    )
)  # fmt: skip


def _row_of(entry: UsageEntry) -> tuple[object, ...]:
    return (
        entry.at, entry.process_kind, entry.process_id, entry.channel_id, entry.model,
        *(getattr(entry.usage, name) for name in _TOKENS),
        entry.cost.usd, str(entry.cost.status), entry.tier, entry.default_model, entry.saved_usd,
    )  # fmt: skip


def _sum_of(entry: UsageEntry) -> tuple[object, ...]:
    return (
        entry.day, entry.process_kind, entry.model, str(entry.cost.status),
        *(getattr(entry.usage, name) for name in _TOKENS),
        entry.cost.usd or 0.0, entry.saved_usd or 0.0,
    )  # fmt: skip


def _grouped(c: Connection, column: str, since: str) -> dict[str, UsageTotal]:
    """Totals by one of our own columns."""
    found: dict[str, UsageTotal] = {}
    for row in c.execute(
        f"SELECT {column} AS name, cost_status, {_SUMS} FROM usage_daily WHERE day >= ? GROUP BY 1, 2", (since,)
    ):
        found[row["name"]] = found.get(row["name"], UsageTotal()) + _to_total(row)
    return found


_COUNTED_AS = {CostStatus.ESTIMATED: "priced", CostStatus.INCLUDED: "included", CostStatus.UNKNOWN: "unpriced"}


def _to_total(row: Row) -> UsageTotal:
    return UsageTotal(
        usage=Usage(**{name: row[name] for name in _TOKENS}),
        cost_usd=row["cost_usd"],
        saved_usd=row["saved_usd"],
        **{_COUNTED_AS[CostStatus(row["cost_status"])]: row["requests"]},
    )


def _dearest_first(item: tuple[str, UsageTotal]) -> tuple[float, int, str]:
    return -item[1].cost_usd, -tokens_of(item[1].usage), item[0]


def _settle(c: Connection, oldest: str) -> tuple[int, int]:
    """Shorten some old rows; returns how many were looked at, and how many of them are gone."""
    ids = [
        row[0]
        for row in c.execute(
            "SELECT id FROM usage WHERE created_at < ? AND is_settled = 0 ORDER BY created_at LIMIT ?",
            (oldest, SETTLED_AT_ONCE),
        )
    ]
    marks = ", ".join("?" * len(ids))
    news = ", ".join(f"{name} = old.{name}" for name in ("requests", *_TOKENS, "cost_usd", "saved_usd"))
    c.execute(
        f"UPDATE usage SET is_settled = 1, {news} FROM (SELECT max(id) AS id, {_SUMS} FROM usage WHERE id IN ({marks}) "
        "AND process_id IS NOT NULL AND process_kind IN ('branch', 'worker') GROUP BY process_id, model, cost_status) "
        "AS old WHERE usage.id = old.id",
        ids,
    )
    dropped = c.execute(f"DELETE FROM usage WHERE id IN ({marks}) AND is_settled = 0", ids).rowcount
    return len(ids), dropped
