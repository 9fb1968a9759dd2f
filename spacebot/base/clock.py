"""The only source of time.

Two clocks: wall time (UTC, what people and rows see) and monotonic seconds (spans, time-outs: Trio's
own clock, so a test's autojump clock rules both waiting and measuring).

Floor: base
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import trio

from spacebot.base.errors import ConfigError

TIME_FORM = "%Y-%m-%dT%H:%M:%S"


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time for people and rows.

    Args:
        now: gives the present moment, aware, in UTC; tests pass a clock that stands still.
    """

    now: Callable[[], datetime] = _utc_now

    def text(self) -> str:
        """The present moment in the form that rows keep."""
        return to_text(self.now())


def monotonic_s() -> float:
    """Seconds on the clock that also drives time-outs; only differences have a meaning."""
    return trio.current_time()


def to_text(moment: datetime) -> str:
    """Write a moment: UTC, fixed width, milliseconds (`2026-03-01T12:00:00.000Z`), so text order is time order."""
    moment = moment.astimezone(UTC)
    return f"{moment.strftime(TIME_FORM)}.{moment.microsecond // 1000:03d}Z"


def from_text(text: str) -> datetime:
    """Read what `to_text` wrote, or any ISO 8601 moment; without a zone it counts as UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_zone(name: str) -> tzinfo:
    """Look up a time zone by its IANA name.

    Errors: ConfigError when the machine's zone table has no such name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError(f"time zone {name!r} is unknown; use a name such as 'Europe/Berlin' or 'UTC'") from error


def format_local(moment: datetime, zone: tzinfo | None) -> str:
    """Write a moment for a person or a model: `2026-03-01 13:00 CET (+01:00)`; None means the machine's zone."""
    local = moment.astimezone(zone)
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M} {local.tzname()} ({offset[:3]}:{offset[3:5]})"


def format_span(seconds: float) -> str:
    """Write a span for a person: `0h 5m 12s`."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}h {whole % 3600 // 60}m {whole % 60}s"
