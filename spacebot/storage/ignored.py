"""What a `.gitignore` leaves out, for backups of workspaces.

Patterns are matched segment by segment, so that no pattern that a worker wrote can take long.

Floor:   storage; standard library only
Source:  gitignore(5)
"""

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

MAX_PATTERNS = 2000  # of one file
MAX_PATTERN = 300  # characters; longer ones are passed over
MAX_SEGMENTS = 20


class Rules:
    """The patterns of one `.gitignore`; paths are asked relative to its folder."""

    def __init__(self, text: str) -> None:
        self._rules = [rule for line in text.splitlines()[:MAX_PATTERNS] if (rule := _rule(line)) is not None]

    def verdict(self, parts: tuple[str, ...], *, is_folder: bool) -> bool | None:
        """Whether a path is left out; None when no pattern speaks of it. The last one that does decides."""
        for segments, is_negated, for_folders in reversed(self._rules):
            if (is_folder or not for_folders) and _fits(segments, parts):
                return not is_negated
        return None


def is_ignored(rules: Iterable[tuple[int, Rules]], parts: tuple[str, ...], *, is_folder: bool) -> bool:
    """Whether a path is left out by the files above it.

    Args:
        rules: of each folder from the top on: how many parts its own path has, and its patterns.
    """
    ignored = False
    for depth, of_folder in rules:
        if (verdict := of_folder.verdict(parts[depth:], is_folder=is_folder)) is not None:
            ignored = verdict
    return ignored


def _rule(line: str) -> tuple[tuple[str, ...], bool, bool] | None:
    """Segments, whether it takes back, whether it means folders only."""
    line = line.rstrip()
    if not line or line.startswith("#") or len(line) > MAX_PATTERN:
        return None
    is_negated = line.startswith("!")
    line = line.removeprefix("!").removeprefix("\\")
    for_folders = line.endswith("/")
    line = line.rstrip("/")
    segments = tuple(part for part in line.split("/") if part)
    if not segments or len(segments) > MAX_SEGMENTS:
        return None
    if "/" not in line:  # without one, a pattern fits at every level
        segments = ("**", *segments)
    return segments, is_negated, for_folders


def _fits(segments: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether the segments match the whole path; `**` stands for any number of folders."""
    reached = {0}  # how many parts the segments so far can have eaten
    for number, segment in enumerate(segments):
        if segment == "**":
            is_last = number == len(segments) - 1
            start = min(reached, default=None)
            if start is None:
                return False
            reached = set(range(start + 1 if is_last else start, len(parts) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(parts) and _segment(segment).match(parts[n])}
    return len(parts) in reached


@lru_cache(maxsize=4096)
def _segment(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))
