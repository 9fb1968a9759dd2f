"""How memories look in a terminal: lines of eighty columns that cannot move the cursor, and how far long work is.

Floor: cli; standard library only
"""

import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from spacebot.cli.show import format_span

WIDTH = 80  # columns
PROGRESS_S = 10.0  # between lines about progress where nobody looks at a terminal
FOUND_BY = {"vector": "meaning", "text": "words", "graph": "links"}


class ProgressLine:
    """How far long work is: one line that changes in a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_live = sys.stderr.isatty()
        self._phase = ""
        self._began = (0.0, 0)  # when the phase was first heard of, and how far it was then
        self._said_at = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, progress: Mapping[str, Any]) -> None:
        """Say how far it is."""
        now, done, total = time.monotonic(), int(progress["done"]), int(progress["total"])
        if progress["phase"] != self._phase:
            self._phase, self._began = progress["phase"], (now, done)
        if not self._is_live and now - self._said_at < PROGRESS_S:
            return
        self._said_at = now
        line = f"{self._phase}: {done:,}" + (f" of {total:,}" if total else "")
        rate = (done - self._began[1]) / max(now - self._began[0], 1e-6)
        if total and rate > 0:
            line += f", {rate:,.0f} a second, {format_span((total - done) / rate)} left"
        print(
            f"\r\x1b[K{line}" if self._is_live else line, end="" if self._is_live else "\n", file=sys.stderr, flush=True
        )

    def clear(self) -> None:
        """Leave an empty line behind."""
        if self._is_live and self._phase:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def headline(lead: str, memory: Mapping[str, Any], end: str) -> str:
    """Id, type, importance and date of a memory in one line."""
    return (
        f"{lead}  {memory['id'][:8]}  {memory['memory_type']:11} {memory['importance']:.2f}  "
        f"{memory['created_at'][:10]}  {'private  ' if memory['is_private'] else ''}{end}"
    ).rstrip()


def found_by(memory: Mapping[str, Any]) -> str:
    """Why a memory was found, in a few words."""
    return one_line(memory["why"], WIDTH - 7) or ", ".join(FOUND_BY.get(leg, leg) for leg in memory["found_by"])


def details(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All that belongs to a memory: name and value."""
    yield "id", memory["id"]
    yield "type", memory["memory_type"]
    yield "importance", f"{memory['importance']:.3f} (given {memory['base_importance']:.3f})"
    yield "created", memory["created_at"]
    if memory["updated_at"] != memory["created_at"]:
        yield "changed", memory["updated_at"]
    yield "recalled", f"{memory['access_count']} times, last {memory['last_accessed_at']}"
    for name, key in (
        ("about", "subject"), ("from", "user_id"), ("channel", "channel_id"), ("message", "message_id"),
        ("source", "source"),
    ):  # fmt: skip
        if memory[key]:
            yield name, one_line(memory[key], WIDTH - 12)
    marks = [name for name, key in (("private", "is_private"), ("permanent", "permanent")) if memory[key]]
    if marks:
        yield "marks", ", ".join(marks)
    if memory["forgotten"]:
        reason = f" ({one_line(memory['forget_reason'], WIDTH - 18)})" if memory["forget_reason"] else ""
        yield "forgotten", f"yes{reason}"


def plain(text: str) -> str:
    """A text that cannot move the cursor or turn the line around."""
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf") or character in "\n\t\u200d" else " "
        for character in text
    )


def one_line(text: str, limit: int) -> str:
    """A text in one line of at most so many characters."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def wrapped(text: str, *, indent: int, lines: int | None = None) -> list[str]:
    """A text in lines of the terminal's width; only the first ones, if so wished."""
    blank = " " * indent
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text[:400])
    width = WIDTH - indent if wide * 10 < min(len(text), 400) else (WIDTH - indent) // 2
    found = [
        blank + line
        for paragraph in plain(text).splitlines()
        for line in textwrap.wrap(paragraph, width, replace_whitespace=True) or [""]
    ]
    if lines is None or len(found) <= lines:
        return found
    return [*found[: lines - 1], f"{found[lines - 1][: WIDTH - 1]}…"]
