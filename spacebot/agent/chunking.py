"""Cutting a document into pieces that a model reads one by one. Pure.

Joined in order the pieces give the text back to the character. A piece ends at the end of a line where it can, else
at the end of a sentence, else between words, and never inside of what a reader sees as one sign.

Flow:   text -> lines -> pieces of long lines -> packed chunks
Floor:  agent
Source: memory spec 13.4 and its pitfall P-30; Unicode UAX 29 for what belongs to one sign, simplified
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s|[。！？]")
_JOINER = "\u200d"
_GLUED_RANGES = ((0xFE00, 0xFE0F), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F))  # variants, skin tones, tags
_FLAGS = (0x1F1E6, 0x1F1FF)  # two of them make one flag
_LONGEST_SIGN = 40  # characters that are looked back for the start of a sign; what is longer is no sign any more
_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*\s*$")
_HEADING_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document.

    Args:
        heading: the Markdown headings above its first line, outermost first, joined by ` > `; empty without any.
    """

    text: str
    heading: str = ""


def split_chunks(text: str, size: int) -> list[Chunk]:
    """Cut a text into chunks of at most `size` characters. An empty text has none.

    Errors: ValueError when `size` is not positive.
    """
    if size < 1:
        raise ValueError("a chunk needs at least one character")
    chunks: list[Chunk] = []
    parts: list[str] = []
    length, above = 0, ""
    headings: list[tuple[int, str]] = []
    for line in _lines(text):
        for piece in [line] if len(line) <= size else _pieces(line, size):
            if length + len(piece) > size:
                chunks.append(Chunk("".join(parts), above))
                parts, length = [], 0
            if not parts:
                above = " > ".join(words for _, words in headings)
            parts.append(piece)
            length += len(piece)
        _note_heading(headings, line)
    if parts:
        chunks.append(Chunk("".join(parts), above))
    return chunks


def fitting_size(text: str, size: int, window: int) -> int:
    """The size of chunks, lowered where a model with a window of so many tokens could not read one as a whole.

    A chunk gets half of the window; four bytes count as a token.
    """
    bytes_per_character = len(text.encode()) / len(text) if text else 1.0
    return max(1, min(size, int(window * 2 / bytes_per_character)))


def _lines(text: str) -> Iterator[str]:
    """The lines with their ends; only a newline ends one."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _pieces(line: str, size: int) -> Iterator[str]:
    start = 0
    while len(line) - start > size:
        cut = _best_cut(line, start, start + size)
        yield line[start:cut]
        start = cut
    yield line[start:]


def _best_cut(line: str, start: int, limit: int) -> int:
    """Where to cut within `start + 1` to `limit`: behind a sentence or a word in the second half, else hard."""
    half = start + (limit - start) // 2
    ends = [match.end() for match in _SENTENCE_END.finditer(line, half, limit)]
    if ends:
        return ends[-1]
    for position in range(limit, half, -1):
        if line[position - 1].isspace():
            return position
    return _sign_start(line, start, limit)


def _sign_start(line: str, start: int, limit: int) -> int:
    """The last place up to `limit` that does not lie inside of a sign; `limit` itself when there is none."""
    for position in range(limit, max(start, limit - _LONGEST_SIGN), -1):
        if not _is_inside(line, start, position):
            return position
    return limit


def _is_inside(line: str, start: int, position: int) -> bool:
    before, after = line[position - 1], line[position]
    code = ord(after)
    if before == _JOINER or after == _JOINER or unicodedata.category(after) in ("Mn", "Me", "Mc"):
        return True
    if any(low <= code <= high for low, high in _GLUED_RANGES):
        return True
    if not (_is_flag_half(before) and _is_flag_half(after)):
        return False
    halves = 0
    while halves < position - start and _is_flag_half(line[position - 1 - halves]):
        halves += 1
    return halves % 2 == 1


def _is_flag_half(character: str) -> bool:
    return _FLAGS[0] <= ord(character) <= _FLAGS[1]


def _note_heading(headings: list[tuple[int, str]], line: str) -> None:
    if not line.startswith("#") or len(line) > _HEADING_LENGTH:
        return
    if match := _HEADING.match(line):
        level = len(match[1])
        while headings and headings[-1][0] >= level:
            headings.pop()
        headings.append((level, match[2]))
