"""When a job is due. Pure: functions of a schedule and a moment.

Five-field expressions are read on the wall clock of their time zone:
- a wall time that the clock skips in spring is due once, at the moment when the clock goes on;
- a wall time that comes twice in autumn is due at its first coming; where the hour field is a pattern (`*`, `*/2`,
  ranges) the job follows the hours as they pass, so it is due at both.

Intervals that divide a day are aligned to UTC (every hour means at the full hour); others count from an anchor.
Active hours are those of the zone; a due time outside of them does not count, nor is it put off.

What was missed (the program was off, the machine slept): the latest due time is made up for once if it is younger
than one interval and than an hour; older ones are noted as missed.

Floor:  cron; the only importer of croniter
Source: tools spec 9.3; Vixie cron's manual on daylight saving time, whose two rules are those above
"""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from spacebot.base.errors import RefusedError

DAY_S = 86_400
GRACE_S = 3600.0  # a due time that is older than this is not made up for
NEAR = timedelta(hours=3)  # no zone's clock was ever changed by more at once, but for jumps over the date line
HOPS = 400  # active windows that are looked at for a due time
_FIELD = re.compile(r"[0-9A-Za-z*/,\-?#]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When something happens: an expression, or an interval.

    Args:
        expression: five fields, as `normalised` gives them.
        interval_s: seconds, at least 1.
        anchor: where an interval that does not divide a day counts from.
        active_hours: first hour and the hour before which it ends, 0 to 23, over midnight when the first is greater;
            equal ones mean always.
        is_once: an interval is counted from the anchor, for it is "in so many seconds".
    """

    zone: tzinfo
    anchor: datetime
    expression: str | None = None
    interval_s: int | None = None
    active_hours: tuple[int, int] | None = None
    is_once: bool = False

    def next_after(self, moment: datetime) -> datetime | None:
        """The first due time after a moment, in UTC; None when there is none."""
        moment = moment.astimezone(UTC)
        for _ in range(HOPS):
            due = self._tick_after(moment)
            if due is None or self.is_active(due):
                return due
            moment = self._window_after(due) - timedelta(microseconds=1)
        return None

    def latest(self, first: datetime, now: datetime) -> datetime | None:
        """The last due time from `first` to `now` that is not older than `GRACE_S`; None when all are older."""
        due = first if first >= now - timedelta(seconds=GRACE_S) else None
        step: datetime | None = max(first, now - timedelta(seconds=GRACE_S, microseconds=1))
        while step is not None and (step := self.next_after(step)) is not None and step <= now:
            due = step
        return due

    def is_active(self, moment: datetime) -> bool:
        """Whether a moment lies in the active hours."""
        if self.active_hours is None or self.active_hours[0] == self.active_hours[1]:
            return True
        start, end = self.active_hours
        hour = moment.astimezone(self.zone).hour
        return start <= hour < end if start < end else hour >= start or hour < end

    def _tick_after(self, moment: datetime) -> datetime | None:
        if self.expression is not None:
            return _wall_tick_after(self.expression, self.zone, moment)
        assert self.interval_s is not None
        is_aligned = self.interval_s < DAY_S and DAY_S % self.interval_s == 0 and not self.is_once
        anchor = _EPOCH if is_aligned else self.anchor
        interval = timedelta(seconds=self.interval_s)
        count = max((moment - anchor) // interval + 1, 0 if is_aligned else 1)
        return anchor + count * interval

    def _window_after(self, moment: datetime) -> datetime:
        """When the active hours begin next."""
        assert self.active_hours is not None
        local = moment.astimezone(self.zone).replace(tzinfo=None)
        start = local.replace(hour=self.active_hours[0], minute=0, second=0, microsecond=0)
        if start <= local:
            start += timedelta(days=1)
        return max(_instants(start, self.zone)[0], moment + timedelta(seconds=1))


def normalised(expression: str) -> str:
    """Check an expression and write it with single blanks.

    Errors: RefusedError that says what is wrong; also for dates that never come.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise RefusedError(
            f"{expression[:80]!r} has {len(fields)} fields; write five: minute hour day month weekday, as 0 9 * * 1-5"
        )
    text = " ".join(fields)
    from croniter import croniter  # loaded with the first such schedule

    is_known = all(_FIELD.fullmatch(field) for field in fields) and croniter.is_valid(text)
    if not is_known or _naive_after(text, _EPOCH.replace(year=2024, tzinfo=None)) is None:
        raise RefusedError(f"{text[:80]!r} is no date that ever comes; write minute hour day month weekday")
    return text


def machine_zone() -> tzinfo:
    """The machine's time zone with its rules, or UTC where it cannot be told."""
    name = os.environ.get("TZ", "").lstrip(":")
    if not name:
        try:
            name = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
        except OSError:
            name = ""
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def describe_interval(seconds: int) -> str:
    """An interval in words: `every 2 hours`."""
    for size, unit in ((DAY_S, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds % size == 0:
            count = seconds // size
            return f"every {unit}" if count == 1 else f"every {count} {unit}s"
    return f"every {seconds} seconds"


def _wall_tick_after(expression: str, zone: tzinfo, moment: datetime) -> datetime | None:
    """The first moment after another at which the zone's wall clock shows a time of the expression."""
    local = moment.astimezone(zone).replace(tzinfo=None)
    follows_hours = not expression.split()[1].replace(",", "").isdigit()
    is_near_change = _offset(zone, moment - NEAR) != _offset(zone, moment + NEAR)
    wall: datetime | None = local - NEAR if is_near_change else local - timedelta(microseconds=1)
    until = local + NEAR if is_near_change else local
    best: datetime | None = None
    while wall is not None and (wall := _naive_after(expression, wall)) is not None:
        moments = _instants(wall, zone)
        best = min(
            (m for m in (*moments[: 2 if follows_hours else 1], *([best] if best else [])) if m > moment), default=best
        )
        if best is not None and wall > until:
            return best
    return best


def _instants(wall: datetime, zone: tzinfo) -> tuple[datetime, ...]:
    """The moments at which a wall clock shows a time: one, two, or the end of the gap that it falls into."""
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if first == second:
        return (first,)
    if first < second:
        return (first, second)
    return (_change_between(zone, second, first),)  # a gap: the reading with the later offset is the earlier moment


def _change_between(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    """The first second of the new offset, of a zone that changes its offset in between."""
    old = _offset(zone, low)
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if _offset(zone, middle) == old:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: tzinfo, moment: datetime) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


@lru_cache(maxsize=4096)
def _naive_after(expression: str, wall: datetime) -> datetime | None:
    """The next wall time of an expression; jobs that are due together ask for the same one."""
    from croniter import croniter

    try:
        found: datetime = croniter(expression, wall, ret_type=datetime).get_next()
    except ValueError:  # croniter's errors are such; this one: no date within fifty years
        return None
    return found
