"""How much an agent's conversations said and did: numbers by day and by hour of the week, for its owner.

Only counts leave this module: no text, no person, no conversation. Messages are counted by the hour as they are
written (triggers), runs are read from indexes, so that a log of any size answers at once.

Floor:  conversations
Source: control spec 4.2 and 4.3
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from spacebot.base.clock import Clock, to_text
from spacebot.storage.database import Connection, Database

HOUR = 13  # characters of a time up to its hour
HEAT_DAYS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How alive an agent is. `daily` counts the messages of each day, the oldest first, today last."""

    channels: int
    last_activity_at: str | None
    daily: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveDay:
    """What was begun on one day."""

    day: date
    messages: int
    branches: int
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """Messages of one hour of the week; `day` 0 is Sunday."""

    day: int
    hour: int
    count: int


class Activity:
    """Counts of one agent's log."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def pulse(self, *, days: int, utc_offset_minutes: int = 0) -> Pulse:
        """Conversations and the messages of the last days, today included.

        Args:
            utc_offset_minutes: where the reader's days begin, east of Greenwich positive.
        """
        dates, first, offset = self._span(days, utc_offset_minutes)

        def read(connection: Connection) -> Pulse:
            channels, last = connection.execute(
                "SELECT count(*), max(last_activity_at) FROM channels WHERE is_active = 1"
            ).fetchone()
            by_day = _by_day(_hours(connection, first), offset)
            return Pulse(channels=channels, last_activity_at=last, daily=tuple(by_day[day] for day in dates))

        return await self._database.read(read)

    async def history(self, *, days: int, utc_offset_minutes: int = 0) -> tuple[list[ActiveDay], list[Heat]]:
        """What was begun on each of the last days, and the messages of `HEAT_DAYS` days by hour of the week."""
        dates, first, offset = self._span(days, utc_offset_minutes)
        _, first_of_heat, _ = self._span(max(days, HEAT_DAYS), utc_offset_minutes)

        def read(connection: Connection) -> tuple[list[ActiveDay], list[Heat]]:
            hours = _hours(connection, first_of_heat)
            messages = _by_day(hours, offset)
            branches, workers = (
                _by_day(_runs(connection, table, first), offset) for table in ("branch_runs", "worker_runs")
            )
            active = [
                ActiveDay(day=day, messages=messages[day], branches=branches[day], workers=workers[day])
                for day in dates
            ]
            return active, _heat(hours, offset)

        return await self._database.read(read)

    def _span(self, days: int, utc_offset_minutes: int) -> tuple[Sequence[date], str, timedelta]:
        """The dates, the moment at which the first begins, and the reader's distance from UTC."""
        offset = timedelta(minutes=utc_offset_minutes)
        today = (self._clock.now() + offset).date()
        dates = [today - timedelta(days=n) for n in reversed(range(days))]
        return dates, to_text(datetime.combine(dates[0], time(), UTC) - offset), offset


def _hours(connection: Connection, first: str) -> Mapping[str, int]:
    rows = connection.execute(
        "SELECT hour, messages FROM message_hours WHERE hour >= ? AND messages > 0", (first[:HOUR],)
    )
    return dict(rows.fetchall())


def _runs(connection: Connection, table: str, first: str) -> Mapping[str, int]:
    rows = connection.execute(
        f"SELECT substr(started_at, 1, 13), count(*) FROM {table} WHERE started_at >= ? GROUP BY 1", (first,)
    )
    return dict(rows.fetchall())


def _by_day(hours: Mapping[str, int], offset: timedelta) -> Counter[date]:
    days: Counter[date] = Counter()
    for hour, count in hours.items():
        days[(_moment(hour) + offset).date()] += count
    return days


def _heat(hours: Mapping[str, int], offset: timedelta) -> list[Heat]:
    counts: Counter[tuple[int, int]] = Counter()
    for hour, count in hours.items():
        moment = _moment(hour) + offset
        counts[moment.isoweekday() % 7, moment.hour] += count
    return [Heat(day=day, hour=hour, count=counts[day, hour]) for day, hour in sorted(counts)]


def _moment(hour: str) -> datetime:
    return datetime.fromisoformat(f"{hour}:00")
