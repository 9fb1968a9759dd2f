"""Logging: one set-up, bound fields, daily files.

A log call has a constant phrase and fields (`extra=kv(...)`); no message text, prompt or tool
argument is logged at info. A filter on the handlers removes secrets whoever wrote them.

Floor: base
"""

import logging
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from spacebot.base.log_file import LogFile
from spacebot.base.redaction import scrub

SHOWN_FIELD = 280  # characters of a field in a line; control spec 3.3


def kv(**fields: object) -> dict[str, dict[str, object]]:
    """Fields of a log record, for the `extra` argument."""
    return {"kv": fields}


class _LineFormatter(logging.Formatter):
    """`time level logger phrase key=value …`, secrets removed from the whole line, traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = "".join(f" {key}={_short(value)}" for key, value in getattr(record, "kv", {}).items())
        line = (
            f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z {record.levelname.lower():7} {record.name} "
            f"{record.getMessage()}{fields}"
        )
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return scrub(line)


def _short(value: object) -> str:
    text = repr(value)
    if len(text) <= SHOWN_FIELD:
        return text
    return scrub(text)[: SHOWN_FIELD - 1] + "…"  # scrubbed whole: half a secret would not be known as one


KEPT_RECORDS = 1000  # in memory, for the API
LONGEST_FIELD = 2000  # characters of a kept message or field
LONGEST_TRACE = 20_000


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record as it is kept in memory; `seq` counts from 1 in each life of the program."""

    seq: int
    time: str
    level: str
    level_number: int
    logger: str
    message: str
    fields: dict[str, str]

    def scrubbed(self) -> "LogLine":
        """The same without secrets, those included that became known since."""
        fields = {name: scrub(value) for name, value in self.fields.items()}
        return replace(self, message=scrub(self.message), fields=fields)


class LogRing(logging.Handler):
    """Keeps the newest records for readers of the API; secrets are taken out when somebody looks.

    Records come from any thread; readers live in the event loop.
    """

    def __init__(self, size: int = KEPT_RECORDS) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=size)
        self._last = 0
        self._turn = threading.Lock()
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            fields = {key: _cut(str(value)) for key, value in getattr(record, "kv", {}).items()}
            if record.exc_info and record.exc_info[0] is not None:
                trace = _FORMATTER.formatException(record.exc_info)
                fields["traceback"] = trace if len(trace) <= LONGEST_TRACE else scrub(trace)[-LONGEST_TRACE:]
            moment = datetime.fromtimestamp(record.created, UTC)
            at, words = f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z", _cut(record.getMessage())
            level = record.levelname.lower()
            with self._turn:
                self._last += 1
                self._lines.append(LogLine(self._last, at, level, record.levelno, record.name, words, fields))
                waiting, self._waiting = self._waiting, []
            for token, arrived in waiting:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(arrived.set)
        except Exception:  # boundary: library (a field that cannot be written must not end what it is about)
            self.handleError(record)

    @property
    def last(self) -> int:
        """Number of the newest record; 0 while there is none."""
        return self._last

    def lines(self, *, after: int = 0, before: int | None = None) -> Sequence[LogLine]:
        """What is kept between two numbers, oldest first, as it was written: see `LogLine.scrubbed`."""
        with self._turn:
            return [line for line in self._lines if line.seq > after and (before is None or line.seq < before)]

    async def wait_newer(self, seq: int) -> None:
        """Wait until there is a record with a higher number. Cancel: nothing is lost."""
        await trio.lowlevel.checkpoint()
        while self._last <= seq:
            waiter = (trio.lowlevel.current_trio_token(), trio.Event())
            with self._turn:
                if self._last > seq:
                    return
                self._waiting.append(waiter)
            try:
                await waiter[1].wait()
            finally:
                with self._turn:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)

    def drop(self, needles: Iterable[str]) -> int:
        """Remove the records that name somebody; returns how many."""
        words = tuple(needles)
        with self._turn:
            kept = [
                line for line in self._lines
                if not any(word in text for word in words for text in (line.message, *line.fields.values()))
            ]  # fmt: skip
            dropped = len(self._lines) - len(kept)
            self._lines.clear()
            self._lines.extend(kept)
        return dropped


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_FIELD else scrub(text)[:LONGEST_FIELD]  # as above: scrubbed whole


_FORMATTER = logging.Formatter()


def limit_log_files(*, keep: int, max_bytes: int) -> None:
    """How many old files of the log stay, and how large one may become; counts from the next rotation on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.keep, handler.max_bytes = keep, max_bytes


def log_ring() -> LogRing | None:
    """The records kept by this process; None where logging was not set up with them."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, LogRing)), None)


def set_up_logging(folder: Path | None, *, debug: bool, console: bool, quiet: Iterable[str] = ()) -> None:
    """Send records to the console and to `folder/spacebot.log` (see `LogFile`); the newest stay in memory.

    Args:
        folder: None writes no file.
        quiet: names of loggers that only report warnings, whatever the level.
    """
    handlers: list[logging.Handler] = []
    if console:
        handlers.append(logging.StreamHandler(sys.stderr))
    if folder is not None:
        handlers.append(LogFile(folder / "spacebot.log"))
    for handler in handlers:
        handler.setFormatter(_LineFormatter())
    handlers.append(LogRing())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a record that cannot be written is not to be printed, unscrubbed, instead
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "anthropic", "openai", "hypercorn", "watchfiles", *quiet):
        logging.getLogger(name).setLevel(logging.WARNING)
