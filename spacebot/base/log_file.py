"""The log's file: a new one each day or when it is large, old ones removed, and no failure of it is anybody's trouble.

What cannot be written (a full disk, a folder that is gone) is counted and said once writing works again; the program
goes on. Several processes may write: who renames the file first has rotated it, the others follow.

Flow:    record -> due? rename, prune -> one write
Floor:   base; standard library only
Source:  control spec 3.3 (daily, 14 kept)
"""

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

KEEP = 14
DAY_S = 86_400.0
MAX_BYTES = 50 << 20  # of one file: a bug that writes without end must not fill the disk
_OLD = re.compile(r"\.(\d{4}-\d\d-\d\d)(?:\.(\d+))?")


class LogFile(logging.Handler):
    """Writes records to a file. `spacebot.log` is today's; `spacebot.log.2026-11-22`, `….1` and so on are older.

    Args:
        keep: how many old files stay.
        max_bytes: size from which a file gives way within its day.
    """

    def __init__(self, path: Path, *, keep: int = KEEP, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self.path = path
        self.keep = keep
        self.max_bytes = max_bytes
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._day = ""
        self._is_torn = False
        self._lost = 0
        self._reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as lost; never raises."""
        line = self._line(record)
        try:
            file = self._opened(record.created)
            if self._lost:
                line = f"{line[:24]} warning {__name__} {self._lost} records lost reason={self._reason!r}\n{line}"
            data = (b"\n" if self._is_torn else b"") + line.encode(errors="backslashreplace") + b"\n"
            written = os.write(file, data)
            self._size += written
            self._is_torn = written < len(data)  # the disk became full in the middle
            self._lost = 0
        except OSError as error:
            self._lost += 1
            self._reason = error.strerror or type(error).__name__
            self._let_go()

    def close(self) -> None:
        """Close the file."""
        self.acquire()
        try:
            self._let_go()
        finally:
            self.release()
        super().close()

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # boundary: library (a record whose words do not fit together)
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            words = f"{record.name} a record could not be put into words ({type(error).__name__})"
            return f"{when}.{int(record.msecs):03d}Z error   {words}"

    def _opened(self, moment: float) -> int:
        """The file to write to. Errors: OSError."""
        today = _day(moment)
        is_over = self._day < today or self._day > _day(moment + DAY_S)  # so far ahead: the clock was put back
        if self._file is not None and (is_over or self._size >= self.max_bytes):
            self._rotate()
        elif self._file is not None and not self._is_in_place():  # another process rotated it, or it was removed
            self._let_go()
        if self._file is None:
            self._open()
            if self._size and (self._day < today or self._size >= self.max_bytes):  # left by an earlier life
                self._rotate()
                self._open()
            self._day = today
        assert self._file is not None
        return self._file

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        found = os.fstat(self._file)
        self._identity, self._size, self._day = (found.st_dev, found.st_ino), found.st_size, _day(found.st_mtime)

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _rotate(self) -> None:
        day = self._day
        if self._is_in_place():
            number = 0
            while (target := self.path.with_name(f"{self.path.name}.{day}{f'.{number}' if number else ''}")).exists():
                number += 1
            with suppress(FileNotFoundError):
                self.path.rename(target)
            self._prune()
        self._let_go()

    def _prune(self) -> None:
        with suppress(OSError):
            for old in old_files(self.path)[: -self.keep or None]:
                old.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
        self._file = None


def old_files(path: Path) -> list[Path]:
    """The files that a log has left behind, oldest first. Errors: OSError."""
    beside = [(file, _OLD.fullmatch(file.name.removeprefix(path.name))) for file in path.parent.iterdir()]
    found = [(match[1], int(match[2] or 0), file) for file, match in beside if match is not None]
    return [file for _, _, file in sorted(found)]


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
