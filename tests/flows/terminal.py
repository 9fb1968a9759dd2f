"""A person at a terminal of their own: waits for words on the screen, types lines, presses Ctrl-C."""

import os
import pty
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 60.0  # only a failing test waits so long


class Terminal:
    """A program with a pseudo-terminal; its methods block."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(words[0], list(words), dict(environ))
        self.shown = ""
        self._seen = 0

    def expect(self, phrase: str) -> str:
        """Wait until a phrase stands behind what was waited for before; returns what stood between."""
        deadline = time.monotonic() + PATIENCE_S
        while (place := self.shown.find(phrase, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{phrase!r} does not come; the screen: {self.shown}"
            if select.select([self._screen], [], [], 1)[0]:
                piece = self._read()
                assert piece, f"it has ended without {phrase!r}; the screen: {self.shown}"
                self.shown += piece
        between, self._seen = self.shown[self._seen : place], place + len(phrase)
        return between

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._screen, line.encode() + b"\n")

    def answer(self, question: str, line: str = "") -> None:
        """Wait for a question, and type the answer."""
        self.expect(question)
        self.type(line)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._screen, b"\x03")

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        while piece := self._read():
            self.shown += piece
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._screen)
        self.pid = 0
        return code

    def close(self) -> None:
        """End it, however it stands."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.end()

    def _read(self) -> str:
        try:
            return os.read(self._screen, 4096).decode(errors="replace").replace("\r\n", "\n")
        except OSError:  # the other end is closed
            return ""
