"""Time: its text sorts as it passes, zones are the machine's table."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacebot.base.clock import Clock, format_local, format_span, from_text, parse_zone, to_text
from spacebot.base.errors import ConfigError

MOMENTS = st.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(9990, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))]),
)


@given(one=MOMENTS, two=MOMENTS)
def test_text_order_is_time_order(one: datetime, two: datetime) -> None:
    if one < two:
        assert to_text(one) <= to_text(two)
    assert abs(from_text(to_text(one)) - one) < timedelta(milliseconds=1)


def test_a_moment_without_a_zone_is_utc() -> None:
    assert from_text("2026-03-01T12:00:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.spec("P31")
def test_people_see_zone_and_offset() -> None:
    moment = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert format_local(moment, parse_zone("Europe/Berlin")) == "2026-07-01 14:00 CEST (+02:00)"
    assert format_local(moment, parse_zone("Asia/Kathmandu")).endswith("(+05:45)")
    with pytest.raises(ConfigError, match="Europe/Berlin"):
        parse_zone("Mars/Olympus")


def test_a_clock_can_stand_still() -> None:
    clock = Clock(now=lambda: datetime(2026, 3, 1, tzinfo=UTC))
    assert clock.text() == "2026-03-01T00:00:00.000Z"
    assert format_span(3725.9) == "1h 2m 5s"
