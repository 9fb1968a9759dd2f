"""Lines of IRC with tags: read, written and cut; nothing here talks to anybody.

A line that is written can never become two: control characters in a parameter are an error, and texts for people
are put on one line first.

Floor:   messaging
Source:  messaging spec 18.6 and 19 h; RFC 1459, 2.3.1; IRCv3 message tags
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from spacebot.base.text import cut_bytes, size_bytes

MAX_LINE = 65_536  # bytes of a line that comes in; IRCv3 allows 8,191 for tags and 512 for the rest

_UNESCAPED = {":": ";", "s": " ", "\\": "\\", "r": "\r", "n": "\n"}
_ESCAPED = {value: f"\\{key}" for key, value in _UNESCAPED.items()}
_COMMAND = re.compile(r"[A-Za-z]+|[0-9]{3}")
_KEY = re.compile(r"\+?[A-Za-z0-9./-]+")


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Args:
        command: in upper case, or three digits.
        params: only the last may hold blanks, be empty or begin with a colon.
        source: who it comes from, such as `ann!ann@ann.tmi.twitch.tv`; empty for what we say.
    """

    command: str
    params: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""

    @property
    def nick(self) -> str:
        """The name before the `!` of its source."""
        return self.source.partition("!")[0]

    def param(self, index: int) -> str:
        """A parameter; empty when there is none."""
        return self.params[index] if index < len(self.params) else ""


def parse(text: str) -> Line:
    """Read a line without its end.

    Errors: ValueError when it has no command.
    """
    tags: dict[str, str] = {}
    source = ""
    rest = text.lstrip(" ")
    if rest.startswith("@"):
        packed, _, rest = rest[1:].partition(" ")
        for item in packed.split(";"):
            key, _, value = item.partition("=")
            if key:
                tags[key] = _unescape(value)
        rest = rest.lstrip(" ")
    if rest.startswith(":"):
        source, _, rest = rest[1:].partition(" ")
        rest = rest.lstrip(" ")
    head, has_last, last = rest.partition(" :")
    command, *params = head.split(" ")
    if not _COMMAND.fullmatch(command):
        raise ValueError(f"no command in the line {text[:80]!r}")
    params = [param for param in params if param]
    if has_last:
        params.append(last)
    return Line(command.upper(), tuple(params), MappingProxyType(tags), source)


def write(line: Line) -> bytes:
    """A line as it goes over the wire, with its end.

    Errors: ValueError when it would be read as something else: control characters, a blank in the middle.
    """
    words = []
    if line.tags:
        if not all(map(_KEY.fullmatch, line.tags)):
            raise ValueError("the name of a tag has forbidden characters")
        words.append("@" + ";".join(f"{key}={_escape(value)}" for key, value in line.tags.items()))
    if line.source:
        words.append(f":{line.source}")
    words.append(line.command)
    *middle, last = line.params or ("",)
    if any(not param or " " in param or param.startswith(":") for param in middle):
        raise ValueError(f"a parameter of {line.command} in front of the last may not be empty or hold blanks")
    words += middle
    if line.params:
        words.append(f":{last}" if not last or " " in last or last.startswith(":") else last)
    text = " ".join(words)
    if not _COMMAND.fullmatch(line.command) or " " in line.source or any(c in text for c in "\r\n\0"):
        raise ValueError(f"a {line.command[:20]!r} line may not hold line ends or NUL")
    return text.encode() + b"\r\n"


def _unescape(value: str) -> str:
    if "\\" not in value:
        return value
    parts = iter(value)
    return "".join(
        part if part != "\\" else (_UNESCAPED.get(following, following) if (following := next(parts, "")) else "")
        for part in parts
    )


def _escape(value: str) -> str:
    return "".join(_ESCAPED.get(character, character) for character in value)


class LineBuffer:
    """Puts the bytes of a connection together to lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now, without their ends and without empty ones.

        Errors: ValueError when a line does not end within `MAX_LINE` bytes.
        """
        self._rest += data
        *whole, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in whole):
            raise ValueError(f"a line is longer than {MAX_LINE} bytes")
        return [text for line in whole if (text := line.decode(errors="replace").strip("\r"))]


def one_line(text: str) -> str:
    """A text without line ends and other control characters, with single blanks."""
    kept = "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cs")
    )
    return " ".join(kept.split())


def cut(text: str, *, characters: int, size: int, most: int, ending: str, has_more: bool = False) -> list[str]:
    """Cut a text of one line into pieces, at the ends of sentences or words where there are such.

    Args:
        characters: code points that a piece may have.
        size: UTF-8 bytes that a piece may have.
        most: number of pieces; a longer text ends with `ending`, within the last piece.
        has_more: the text is only the head of one, so it ends with `ending` in any case.
    """
    pieces: list[str] = []
    while text:
        if len(pieces) == most - 1 and not _fits(text, characters, size):
            pieces.append(text)
            has_more = True
            break
        head = _head(text, characters, size)
        pieces.append(head.rstrip())
        text = text[len(head) :].lstrip()
    if pieces and has_more:
        head = _head(pieces[-1], characters - len(ending), size - size_bytes(ending))
        pieces[-1] = head.rstrip() + ending
    return pieces


def _fits(text: str, characters: int, size: int) -> bool:
    return len(text) <= characters and size_bytes(text) <= size


def _head(text: str, characters: int, size: int) -> str:
    if _fits(text, characters, size):
        return text
    longest = cut_bytes(text[:characters], size)
    if text[len(longest)] == " ":
        return longest
    sentence = max(longest.rfind(end) for end in (". ", "! ", "? ", "。", "！", "？"))
    if sentence >= len(longest) * 2 // 3:
        return longest[: sentence + 1]
    blank = longest.rfind(" ")
    return longest[:blank] if blank >= len(longest) // 3 else longest
