"""Cut Markdown into pieces that a platform takes.

The cut falls between paragraphs, else between lines, sentences, words, and only then inside of a word, never inside
of a visible character. Code that has to be cut is closed and opened again in its language; a table that has to be
cut gets its head again.

Flow:   split -> _regions (code and tables by their lines) -> _Cutter, one piece after the other
Floor:  messaging; no parser: a text of 100,000 characters is cut within a turn of the loop
Source: messaging spec 7 (splitting) and 19.14
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LEAD = r"(?P<lead>(?:[ \t]|>|[-*+][ \t]|\d{1,9}[.)][ \t])*)"
_FENCE = re.compile(rf"{_LEAD}(?P<mark>`{{3,}}(?=[^`\n]*$)|~{{3,}})[ \t]*(?P<info>[^\n]*)", re.MULTILINE)
_TABLE_RULE = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_BLOCK_START = re.compile(r"[ \t]{0,3}(?:#{1,6}[ \t]|>|`{3}|~{3})")
_INLINE_CODE = re.compile(r"(?<![`\\])(`+)(?!`)(?:(?!\n[ \t]*\n).){0,4000}?(?<!`)\1(?!`)", re.DOTALL)
_WHOLE = re.compile(
    r"!?\[[^\[\]\n]{0,300}\]\([^()\s]{1,2000}\)|<[@#!:a-z][^<>\s]{0,300}>|`[^`\n]{1,300}`|https?://\S{1,2000}"
)
_BLANK_LINE = re.compile(r"[ \t]*\n")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_LINE = re.compile(r"\n")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"')\]*_]{0,3}[ \t]+|(?<=[。！？])")
_BLANK = re.compile(r"[ \t\u3000]+")
_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]", re.MULTILINE)
_HEADING = re.compile(r"(?:^|\n)[ \t]{0,3}#{1,6}[ \t][^\n]*\s*\Z")
LONGEST_RULE = 2000  # characters of the line below a table's head
_EARLIEST = 0.25  # share of a piece that a better place to cut may leave filled
_LONGEST_CHARACTER = 64  # code points of one visible character that are kept together


@dataclass(frozen=True, slots=True)
class _Region:
    """Lines that belong together: from `start` to `end`, the line end behind them excluded."""

    start: int
    end: int
    body: int  # where its repeatable head ends
    reopening: str  # what a later piece begins with
    closing: str  # what an earlier piece ends with


def split(text: str, limit: int, measure: Callable[[str], int] = len) -> list[str]:
    """Cut a Markdown text into Markdown pieces.

    Args:
        limit: of one piece, in the unit of `measure`; at least 1.
        measure: length of a text as the platform counts; may not shrink when a text grows.

    Returns: pieces in order, none of them blank; no piece for a blank text.
    """
    if limit < 1:
        raise ValueError(f"a piece must have room for a character, not for {limit}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if measure(text) <= limit:
        return [text] if text.strip() else []
    regions = list(_regions(text))
    if regions and regions[-1].end == len(text) and _is_open(text, regions[-1]):
        text += regions[-1].closing
        last = regions[-1]
        regions[-1] = _Region(last.start, len(text), last.body, last.reopening, last.closing)
    return list(_Cutter(text, regions, limit, measure).pieces())


def code_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where code stands, blocks and inside of lines, in order."""
    position = 0
    for region in _regions(text):
        if region.closing:
            yield from _inline_code(text, position, region.start)
            yield region.start, region.end
            position = region.end
    yield from _inline_code(text, position, len(text))


def _inline_code(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for found in _INLINE_CODE.finditer(text, start, end):
        yield found.span()


def grapheme_cut(text: str, position: int) -> int:
    """The last place at or before `position` between two visible characters; `position` itself when there is none."""
    for cut in range(position, max(position - _LONGEST_CHARACTER, 0), -1):
        if cut >= len(text) or not _is_joined(text, cut):
            return cut
    return position


def _is_joined(text: str, cut: int) -> bool:
    """Whether the characters around a cut are one on the screen; the rules of Unicode TR 29, the common part."""
    before, after = text[cut - 1], text[cut]
    if before < "\u0300" and after < "\u0300":
        return before == "\r" and after == "\n"
    code = ord(after)
    return (
        after == "\u200d"
        or before == "\u200d"
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
        or 0x1F3FB <= code <= 0x1F3FF
        or 0xE0020 <= code <= 0xE007F
        or (0xDC00 <= code <= 0xDFFF and 0xD800 <= ord(before) <= 0xDBFF)
        or _is_hangul_joined(ord(before), code)
        or (_is_flag(after) and _flags_before(text, cut) % 2 == 1)
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flags_before(text: str, cut: int) -> int:
    start = cut
    while start and _is_flag(text[start - 1]):
        start -= 1
    return cut - start


def _is_hangul_joined(before: int, after: int) -> bool:
    if 0x1160 <= after <= 0x11FF:
        return 0x1100 <= before <= 0x11FF or 0xAC00 <= before <= 0xD7A3
    return 0x1100 <= after <= 0x115F and 0x1100 <= before <= 0x115F


def _regions(text: str) -> Iterator[_Region]:
    """Blocks of code and tables, in order."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    number = 0
    while number < len(lines):
        line = lines[number]
        if "```" in line or "~~~" in line:
            found = _FENCE.fullmatch(line)
            if found is not None:
                last = _fence_end(lines, number, found)
                yield _fence_region(lines, starts, number, last, found)
                number = last + 1
                continue
        if "|" in line and number + 1 < len(lines) and _is_table(line, lines[number + 1]):
            last = number + 1
            while last + 1 < len(lines) and lines[last + 1].strip() and not _BLOCK_START.match(lines[last + 1]):
                last += 1
            head = f"{line}\n{lines[number + 1]}\n"
            yield _Region(starts[number], starts[last] + len(lines[last]), starts[number + 2], head, "")
            number = last
        number += 1


def _is_table(head: str, rule: str) -> bool:
    if len(rule) > LONGEST_RULE or "-" not in rule or "|" not in rule:
        return False
    return _TABLE_RULE.fullmatch(rule.lstrip(" \t>")) is not None and not head.startswith("    ")


def _fence_end(lines: list[str], first: int, opening: re.Match[str]) -> int:
    """The line that closes a block of code, or the last one that belongs to it."""
    mark = opening["mark"]
    lead = opening["lead"]
    is_quoted = ">" in lead
    indent = len(re.sub(r"[^ ]", " ", lead.expandtabs(4))) if re.search(r"[-*+.)]", lead) else 0
    closing = re.compile(rf"[ \t>]*{re.escape(mark[0])}{{{len(mark)},}}[ \t]*")
    for number in range(first + 1, len(lines)):
        line = lines[number]
        if closing.fullmatch(line):
            return number
        left = is_quoted and not line.lstrip().startswith(">")
        if left or (indent and line.strip() and len(line) - len(line.lstrip()) < min(indent, 2) and not is_quoted):
            return number - 1
    return len(lines) - 1


def _fence_region(lines: list[str], starts: list[int], first: int, last: int, opening: re.Match[str]) -> _Region:
    lead = re.sub(r"[^ \t>]", " ", opening["lead"])
    language = opening["info"].split(" ", 1)[0]
    mark = opening["mark"]
    end = starts[last] + len(lines[last])
    return _Region(starts[first], end, min(starts[first + 1], end), f"{lead}{mark}{language}\n", f"\n{lead}{mark}")


def _is_open(text: str, region: _Region) -> bool:
    """Whether a block of code at the end of a text was never closed."""
    if not region.closing:
        return False
    lines = text[region.start : region.end].split("\n")
    mark = region.closing.strip(" \t>\n")
    last = lines[-1].strip(" \t>")
    return len(lines) == 1 or not (len(last) >= len(mark) and last == mark[0] * len(last))


class _Cutter:
    """Walks through a text and cuts piece after piece."""

    def __init__(self, text: str, regions: list[_Region], limit: int, measure: Callable[[str], int]) -> None:
        self._text = text
        self._regions = regions
        self._starts = [region.start for region in regions]
        self._limit = limit
        self._measure = measure
        self._guess = limit

    def pieces(self) -> Iterator[str]:
        """All pieces, in order."""
        position = self._skipped(0)
        while position < len(self._text):
            start = position
            piece, position = self._piece(start)
            if piece.strip():
                yield self._dedented(piece, start)
            position = self._skipped(position)

    def _dedented(self, piece: str, start: int) -> str:
        """A piece from within a list, moved to the left: so far to the right it would read as code."""
        indent = piece[: len(piece) - len(piece.lstrip(" \t"))]
        region = self._region(start)
        if not indent or (region is not None and region.closing):
            return piece
        if not _ITEM.match(piece) and not _ITEM.search(self._text, max(0, start - 4000), start):
            return piece
        return "\n".join(line.removeprefix(indent) for line in piece.split("\n"))

    def _skipped(self, position: int) -> int:
        """Behind the blank lines, and behind blanks that a cut left; the indent of a line stays, and all of code."""
        region = self._region(position)
        if region is not None and position > region.start:
            return position + (self._text[position : position + 1] == "\n")
        while (found := _BLANK_LINE.match(self._text, position)) is not None:
            position = found.end()
        if position and self._text[position - 1] != "\n" and (blank := _BLANK.match(self._text, position)):
            position = blank.end()
        return position if self._text[position:].strip() else len(self._text)

    def _region(self, position: int) -> _Region | None:
        """The code or table that a position lies in."""
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and position < self._regions[index].end:
            return self._regions[index]
        return None

    def _piece(self, position: int) -> tuple[str, int]:
        """The piece that begins at a position, and where the next one begins."""
        inside = self._region(position)
        opening = ""
        if inside is not None and position > inside.start:
            opening = inside.reopening
            if self._room(position, opening, inside.closing) < 1 or (position < inside.body):
                opening, inside = "", None  # no room for it: the rest of the code goes out as it is
        furthest = self._furthest(position, opening, "")
        if furthest >= len(self._text):
            return opening + self._text[position:], len(self._text)
        region = self._region(furthest)
        if (
            region is not None
            and region.start < furthest
            and (region is inside or region.start > position or not opening)
        ):
            return self._piece_to(region, position, furthest, opening)
        cut = self._cut(position, furthest)
        return opening + self._text[position:cut].rstrip(), cut

    def _piece_to(self, region: _Region, position: int, furthest: int, opening: str) -> tuple[str, int]:
        """A piece whose room ends inside of code or a table."""
        if region.start > position and self._measure(self._text[region.start : region.end]) <= self._limit:
            cut = self._before_heading(position, region.start)
            return opening + self._text[position:cut].rstrip(), cut
        end = self._furthest(position, opening, region.closing)
        first = max(position, region.body)
        cut = self._text.rfind("\n", first, end + 1)
        if cut <= first and region.start > position:
            return opening + self._text[position : region.start].rstrip(), region.start
        if cut <= first:
            if end <= first:  # not even its head fits
                cut = self._cut(position, furthest)
                return opening + self._text[position:cut].rstrip(), cut
            cut = self._word_cut(first, end)
            return opening + self._text[position:cut] + region.closing, cut
        return opening + self._text[position:cut] + region.closing, cut

    def _room(self, position: int, opening: str, closing: str) -> int:
        return self._furthest(position, opening, closing) - position

    def _furthest(self, position: int, opening: str, closing: str) -> int:
        """The last position that a piece can reach with what stands before and behind it."""
        text = self._text

        def fits(end: int) -> bool:
            return self._measure(opening + text[position:end] + closing) <= self._limit

        low, step = position, max(self._guess, 1)
        while low < len(text) and fits(min(low + step, len(text))):
            low = min(low + step, len(text))
            step *= 2
        high = min(low + step, len(text) + 1)  # does not fit, or lies behind the end
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _cut(self, start: int, end: int) -> int:
        """The best place to cut prose at or before `end`; always behind `start`."""
        if end <= start:
            return start + 1
        window = self._text[start : end + 1]
        earliest = int((end - start) * _EARLIEST)
        for pattern in (_PARAGRAPH, _LINE):
            if (cut := _last(pattern, window, earliest, end - start)) is not None and not self._splits(start + cut):
                return self._before_heading(start, start + cut)
        for pattern in (_SENTENCE, _BLANK):
            if (cut := self._last_whole(pattern, start, window, earliest, end - start)) is not None:
                return cut
        for pattern in (_LINE, _BLANK):
            if (cut := _last(pattern, window, 1, end - start)) is not None:
                return start + cut
        return max(grapheme_cut(self._text, end), start + 1)

    def _before_heading(self, start: int, cut: int) -> int:
        """A cut that does not leave a heading behind alone at the end of a piece."""
        found = _HEADING.search(self._text, max(start, cut - 300), cut)
        is_alone = found is None or not self._text[start : found.start()].strip() or self._region(found.start())
        return cut if found is None or is_alone else found.start()

    def _splits(self, position: int) -> bool:
        region = self._region(position)
        return region is not None and region.start < position

    def _word_cut(self, start: int, end: int) -> int:
        """Where to cut a line of code that is too long."""
        blank = _last(_BLANK, self._text[start : end + 1], (end - start) // 2, end - start)
        return start + blank if blank is not None else max(grapheme_cut(self._text, end), start + 1)

    def _last_whole(self, pattern: re.Pattern[str], start: int, window: str, earliest: int, latest: int) -> int | None:
        """The last match that does not tear a link or a piece of code apart."""
        whole = [
            found.span() for found in _WHOLE.finditer(self._text, start, min(start + latest + 2500, len(self._text)))
        ]
        cuts = [found.start() if pattern is _BLANK else found.end() for found in pattern.finditer(window)]
        for cut in reversed(cuts):
            if earliest <= cut <= latest and cut > 0:
                index = bisect_right(whole, (start + cut, 0)) - 1
                if index < 0 or not whole[index][0] < start + cut < whole[index][1]:
                    return start + cut
        return None


def _last(pattern: re.Pattern[str], window: str, earliest: int, latest: int) -> int | None:
    """Where the last match begins, when it begins within the bounds."""
    found = None
    for match in pattern.finditer(window, max(earliest, 1)):
        if match.start() > latest:
            break
        found = match.start()
    return found
