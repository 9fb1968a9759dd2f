"""Due times: what a schedule says on the wall clock, over changes of the clock, and within active hours."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.errors import RefusedError
from spacebot.cron.schedule import Schedule, describe_interval, normalised

BERLIN = ZoneInfo("Europe/Berlin")  # 2026: forward on 29 March 02:00, back on 25 October 03:00
ANCHOR = datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)


def after(schedule: Schedule, moment: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        due = schedule.next_after(moment)
        assert due is not None
        found.append(due)
        moment = due
    return found


def walls(expression: str, start: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    """The next due times as the zone's clock shows them, with the offset's hours."""
    schedule = Schedule(zone=ZoneInfo(zone), anchor=ANCHOR, expression=expression)
    due = after(schedule, datetime.fromisoformat(start), count)
    return [f"{moment.astimezone(ZoneInfo(zone)):%m-%d %H:%M%z}"[:-2] for moment in due]


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("30 2 * * *", "2026-03-28T12:00Z", ["03-29 03:00+02", "03-30 02:30+02"]),  # skipped: when the clock goes on
        ("*/15 2 * * *", "2026-03-28T12:00Z", ["03-29 03:00+02", "03-30 02:00+02"]),  # all of the gap is one moment
        ("*/30 * * * *", "2026-03-29T00:20Z", ["03-29 01:30+01", "03-29 03:00+02", "03-29 03:30+02"]),
        ("30 2 * * *", "2026-10-24T12:00Z", ["10-25 02:30+02", "10-26 02:30+01"]),  # twice on the clock, run once
        ("30 2 * * *", "2026-10-25T00:29Z", ["10-25 02:30+02"]),
        ("30 2 * * *", "2026-10-25T00:30Z", ["10-26 02:30+01"]),  # not again an hour later
        ("0 * * * *", "2026-10-24T23:30Z", ["10-25 02:00+02", "10-25 02:00+01", "10-25 03:00+01"]),  # every real hour
        ("0 9 * * 0", "2026-01-01T00:00Z", ["01-04 09:00+01", "01-11 09:00+01"]),  # Sunday is 0
        ("0 9 * * 7", "2026-01-01T00:00Z", ["01-04 09:00+01", "01-11 09:00+01"]),  # and 7
        ("0 9 * * mon-fri", "2026-01-02T12:00Z", ["01-05 09:00+01"]),
        ("0 0 13 * 5", "2026-02-01T00:00Z", ["02-06 00:00+01", "02-13 00:00+01", "02-20 00:00+01"]),  # day OR weekday
        ("0 0 29 2 *", "2026-01-01T00:00Z", ["02-29 00:00+01"]),
        ("0 9 * * *", "2026-06-01T07:00:00Z", ["06-02 09:00+02"]),  # exactly on it: the next
    ],
)
def test_the_wall_clock_decides(expression: str, start: str, expected: list[str]) -> None:
    assert walls(expression, start, len(expected)) == expected


def test_a_change_of_half_an_hour_and_of_a_whole_day() -> None:
    howe = walls("10,40 2 * * *", "2026-10-03T00:00Z", 3, "Australia/Lord_Howe")  # 02:00 becomes 02:30
    assert howe == ["10-04 02:30+11", "10-04 02:40+11", "10-05 02:10+11"]
    apia = walls("0 9 * * *", "2011-12-29T08:00Z", 3, "Pacific/Apia")  # 30 December 2011 did not exist
    assert apia == ["12-29 09:00-10", "12-31 00:00+14", "12-31 09:00+14"]


@pytest.mark.parametrize("bad", ["", "* * * *", "0 9 * * * *", "61 * * * *", "0 0 30 2 *", "H * * * *", "a b c d e"])
def test_what_never_comes_is_refused(bad: str) -> None:
    with pytest.raises(RefusedError, match="minute hour day month weekday"):
        normalised(bad)


@given(seconds=st.integers(60, 400_000), start=st.integers(0, 10**9))
def test_intervals_are_aligned_to_utc_where_they_divide_a_day(seconds: int, start: int) -> None:
    schedule = Schedule(zone=BERLIN, anchor=ANCHOR, interval_s=seconds)
    moment = datetime.fromtimestamp(10**9 + start, UTC)
    due = after(schedule, moment, 3)
    if seconds < 86_400 and 86_400 % seconds == 0:
        assert all(when.timestamp() % seconds == 0 for when in due)
        assert due[0] - moment <= timedelta(seconds=seconds)
    else:
        assert (due[0] - ANCHOR) % timedelta(seconds=seconds) == timedelta(0)
        assert due[0] > ANCHOR
    assert all(b - a == timedelta(seconds=seconds) for a, b in pairwise(due))


_minutes = st.sampled_from(["*", "*/15", "0", "30", "5,35", "10-20"])
_hours = st.sampled_from(["*", "*/3", "2", "1,2,3", "9-17", "0"])
_days = st.sampled_from(["* * *", "* * 1-5", "1 * *", "* * 0", "29 * *", "25 10 *", "29 3 *"])


@given(
    minutes=_minutes, hours=_hours, days=_days, start=st.integers(0, 330 * 24 * 60),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)  # fmt: skip
def test_due_times_rise_and_nothing_between_them_is_left_out(
    minutes: str, hours: str, days: str, start: int, zone: str
) -> None:
    place = ZoneInfo(zone)
    schedule = Schedule(zone=place, anchor=ANCHOR, expression=f"{minutes} {hours} {days}")
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=start)
    first, second, third = after(schedule, begin, 3)
    assert begin < first < second < third
    for probe in (begin + (first - begin) / 3, first - timedelta(seconds=1)):
        assert schedule.next_after(probe) == first, "it does not matter from where one looks"
    assert schedule.next_after(first + (second - first) / 2) == second


@given(hours=st.tuples(st.integers(0, 23), st.integers(0, 23)), start=st.integers(0, 365 * 24 * 60))
def test_active_hours_hold_also_over_midnight(hours: tuple[int, int], start: int) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=start)
    schedule = Schedule(zone=BERLIN, anchor=ANCHOR, interval_s=1800, active_hours=hours)
    due = schedule.next_after(moment)
    assert due is not None
    allowed = {(hours[0] + step) % 24 for step in range((hours[1] - hours[0]) % 24 or 24)}
    assert due.astimezone(BERLIN).hour in allowed
    assert due - moment <= timedelta(hours=25)


@pytest.mark.parametrize(
    ("late", "expected"),
    [(timedelta(minutes=1), "09:00"), (timedelta(minutes=59), "09:00"), (timedelta(minutes=61), None)],
)
def test_a_missed_due_time_is_made_up_for_within_the_hour(late: timedelta, expected: str | None) -> None:
    schedule = Schedule(zone=UTC, anchor=ANCHOR, expression="0 9 * * *")
    first = datetime(2026, 5, 1, 9, tzinfo=UTC)
    latest = schedule.latest(first, datetime(2026, 5, 4, 9, tzinfo=UTC) + late)
    assert (None if latest is None else f"{latest:%H:%M}") == expected


def test_of_many_missed_due_times_the_newest_counts() -> None:
    schedule = Schedule(zone=UTC, anchor=ANCHOR, interval_s=60)
    now = datetime(2026, 5, 1, 9, 0, 30, tzinfo=UTC)
    assert schedule.latest(now - timedelta(days=300), now) == now.replace(second=0)


def test_once_in_so_many_seconds_counts_from_now() -> None:
    assert Schedule(zone=UTC, anchor=ANCHOR, interval_s=1200, is_once=True).next_after(ANCHOR) == ANCHOR + timedelta(
        seconds=1200
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(86_400, "every day"), (7200, "every 2 hours"), (90, "every 90 seconds"), (60, "every minute")],
)
def test_intervals_in_words(seconds: int, words: str) -> None:
    assert describe_interval(seconds) == words
