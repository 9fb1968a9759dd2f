"""The text of a reply while its tool call is still being written.

A reply travels as a JSON string inside of the call's arguments. This reader takes the fragments and
tells how much of the text may be shown: whole characters, nothing that could be the start of a secret.

Floor: agent
"""

import json
import re

from spacebot.base.redaction import find_secret, safe_length, scrub
from spacebot.base.text import clean_unicode

_START = re.compile(r'"content"\s*:\s*"')
_COMPLETE = re.compile(r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|[\n\r\t])*')


class ReplyReader:
    """Collects the fragments of one reply call."""

    def __init__(self) -> None:
        self._raw = ""
        self._start: int | None = None

    @property
    def size(self) -> int:
        """Characters that have come so far."""
        return len(self._raw)

    def add(self, fragment: str) -> None:
        """Take a fragment."""
        self._raw += fragment

    def text(self) -> str | None:
        """The whole text that may be shown so far, None before it begins; reads all of it, so not for each fragment."""
        if self._start is None:
            match = _START.search(self._raw)
            if match is None:
                return None
            self._start = match.end()
        match = _COMPLETE.match(self._raw, self._start)
        assert match is not None
        try:
            text: str = json.loads(f'"{match.group()}"', strict=False)
        except json.JSONDecodeError:
            return None
        if text and "\ud800" <= text[-1] <= "\udbff":  # half of a pair; the rest is on its way
            text = text[:-1]
        shown = scrub(clean_unicode(text[: safe_length(text)]))
        return None if find_secret(shown) else shown  # an encoded one; the reply will be refused
