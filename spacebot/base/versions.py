"""Versions of the program, compared as semantic versioning orders them.

Floor:   base
Source:  semver.org 2.0.0, item 11
"""

import re

_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?:-([0-9A-Za-z.-]{1,100}))?(?:\+[0-9A-Za-z.-]{1,100})?")

Version = tuple[int, int, int, tuple[tuple[int, int, str], ...]]
_RELEASED = ((2, 0, ""),)  # after every pre-release of the same number


def parse_version(text: str) -> Version | None:
    """A version in a form that compares; None for what is none. A leading `v` and build words do not count."""
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        return None
    before = match[4]
    words = (
        tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in before.split("."))
        if before
        else _RELEASED
    )
    return int(match[1]), int(match[2]), int(match[3] or 0), words


def is_newer(candidate: str, current: str) -> bool:
    """Whether one version comes after another; False when either is none."""
    new, old = parse_version(candidate), parse_version(current)
    return new is not None and old is not None and new > old
