"""Logging: one set-up, bound fields, daily files.

A log call has a constant phrase and fields (`extra=kv(...)`); no message text, prompt or tool
argument is logged at info. A filter on the handlers removes secrets whoever wrote them.

Floor: base
"""

import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

from spacebot.base.redaction import scrub

KEEP_DAYS = 14  # control spec 3.2


def kv(**fields: object) -> dict[str, dict[str, object]]:
    """Fields of a log record, for the `extra` argument."""
    return {"kv": fields}


class _LineFormatter(logging.Formatter):
    """`time level logger phrase key=value …`, secrets removed from the whole line, traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = "".join(f" {key}={value!r}" for key, value in getattr(record, "kv", {}).items())
        line = (
            f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z {record.levelname.lower():7} {record.name} "
            f"{record.getMessage()}{fields}"
        )
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return scrub(line)


def set_up_logging(folder: Path | None, *, debug: bool, console: bool, quiet: Iterable[str] = ()) -> None:
    """Send records to the console and to `folder/spacebot.log`, rotated daily, 14 days kept.

    Args:
        folder: None writes no file.
        quiet: names of loggers that only report warnings, whatever the level.
    """
    handlers: list[logging.Handler] = []
    if console:
        handlers.append(logging.StreamHandler(sys.stderr))
    if folder is not None:
        handlers.append(
            TimedRotatingFileHandler(
                folder / "spacebot.log", when="midnight", utc=True, backupCount=KEEP_DAYS, encoding="utf-8", delay=True
            )
        )
    for handler in handlers:
        handler.setFormatter(_LineFormatter())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "anthropic", "openai", "hypercorn", "watchfiles", *quiet):
        logging.getLogger(name).setLevel(logging.WARNING)
