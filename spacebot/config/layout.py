"""The owner's TOML text as a row of sections, so that one can change while all others stay to the letter.

A section is what stands from one header to the next. Values are changed inside a section; sections come and go as a
whole. Comments that end a section stay when it goes, for they mostly speak of what follows.

Floor: config; the only importer of tomlkit
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

Path = tuple[str, ...]


class LayoutError(ValueError):
    """The text is laid out in a way that cannot be followed."""


@dataclass(slots=True)
class Section:
    """A header with its lines; `path` is empty for what stands before the first header."""

    path: Path
    is_element: bool  # [[path]]
    text: str


class Layout:
    """A text that can be changed section by section.

    Errors of all changes: LayoutError.
    """

    def __init__(self, text: str) -> None:
        self._sections = list(_split(text))

    @property
    def text(self) -> str:
        """The text as it is now."""
        return "".join(section.text for section in self._sections)

    def set_keys(self, path: Path, keys: Mapping[str, Any], gone: Sequence[str]) -> None:
        """Set and remove keys of a table; one that has no section yet gets one, behind its relatives."""
        self._set(range(len(self._sections)), (), path, self._behind(path), keys, gone)

    def set_element(self, path: Path, number: int, keys: Mapping[str, Any], gone: Sequence[str]) -> None:
        """The same for an element of a list of tables."""
        self._change(self._element(path, number), keys, gone)

    def set_below(self, path: Path, number: int, below: Path, keys: Mapping[str, Any], gone: Sequence[str]) -> None:
        """The same for a table inside an element; one that has no section yet gets one, behind the element's others."""
        within = self._within(path, number)
        self._set(within, path, below, within.stop, keys, gone)

    def remove_below(self, path: Path, number: int, below: Path) -> None:
        """Remove a table inside an element with everything below it."""
        self._remove_all(self._within(path, number), path, below)

    def add_element(self, path: Path, keys: Mapping[str, Any]) -> None:
        """Add an element behind the others."""
        self._insert(self._behind(path), path, keys, is_element=True)

    def remove_element(self, path: Path, number: int) -> None:
        """Remove an element with everything below it."""
        place = self._element(path, number)
        self._remove(place)
        while place < len(self._sections) and _is_below(self._sections[place].path, path):
            self._remove(place)

    def remove_table(self, path: Path) -> None:
        """Remove a table with everything below it."""
        self._remove_all(range(len(self._sections)), (), path)

    def _within(self, path: Path, number: int) -> range:
        """The sections of an element, its own first."""
        place = self._element(path, number)
        end = place + 1
        while end < len(self._sections) and _is_below(self._sections[end].path, path):
            end += 1
        return range(place, end)

    def _set(
        self, within: range, base: Path, below: Path, new: int, keys: Mapping[str, Any], gone: Sequence[str]
    ) -> None:
        """Set keys of a table where it stands: under its header, or inside a table above it, or in a new section.

        Args:
            base: the element that is gone into; `below` is the table's path inside it.
            new: where a new section belongs.
        """
        if (found := self._holder(within, base, below)) is not None:
            place, inside = found
            self._change(place, keys, gone, inside)
        elif gone:
            raise LayoutError
        else:
            self._insert(new, (*base, *below), keys, is_element=False)

    def _holder(self, within: range, base: Path, below: Path) -> tuple[int, Path] | None:
        """The section in which a table stands, and the path that leads to it from there."""
        for size in range(len(below), -1, -1):
            for i in within:
                section = self._sections[i]
                is_own = section.path == (*base, *below[:size]) and (not section.is_element or size == 0)
                if is_own and (size == len(below) or _holds(section, below[size])):
                    return i, below[size:]
        return None

    def _remove_all(self, within: range, base: Path, below: Path) -> None:
        whole = (*base, *below)
        found = [i for i in within if self._sections[i].path == whole or _is_below(self._sections[i].path, whole)]
        for i in reversed(found):
            self._remove(i)
        if not found and (holder := self._holder(within, base, below[:-1])) is not None:
            self._change(holder[0], {}, [below[-1]], holder[1])

    def _element(self, path: Path, number: int) -> int:
        places = [i for i, section in enumerate(self._sections) if section.path == path and section.is_element]
        if number >= len(places):
            raise LayoutError
        return places[number]

    def _behind(self, path: Path) -> int:
        """Where a new section belongs: behind its nearest relatives, else at the end."""
        for size in range(len(path), 0, -1):
            relatives = [i for i, section in enumerate(self._sections) if section.path[:size] == path[:size]]
            if relatives:
                return relatives[-1] + 1
        return len(self._sections)

    def _insert(self, place: int, path: Path, keys: Mapping[str, Any], *, is_element: bool) -> None:
        before = self._sections[place - 1]
        body, tail = _cut_tail(before.text)
        if place < len(self._sections):
            before.text = body  # the comments speak of what follows, also when something comes in between
        else:
            tail = ""
        header = ".".join(tomlkit.key(part).as_string() for part in path)
        lines = [f"[[{header}]]" if is_element else f"[{header}]"]
        lines += [f"{tomlkit.key(key).as_string()} = {_inline(value).as_string()}" for key, value in keys.items()]
        newline = "\r\n" if "\r\n" in before.text else "\n"
        above = before.text if not tail else body
        gap = "" if not above or above.endswith((newline * 2, "\n\n")) else newline
        if above and not above.endswith("\n"):
            gap += newline
        text = gap + newline.join([*lines, ""])
        if tail or place < len(self._sections):
            text += (newline if not tail.startswith(("\n", "\r\n")) else "") + tail
        self._sections.insert(place, Section(path, is_element, text))

    def _change(self, place: int, keys: Mapping[str, Any], gone: Sequence[str], inside: Path = ()) -> None:
        section = self._sections[place]
        body, tail = _cut_tail(section.text)
        try:
            document = tomlkit.parse(body)
            table: Any = document
            for part in section.path:
                table = table[part]
            table = table[0] if section.is_element else table
            for part in inside:
                if part not in table:
                    table[part] = tomlkit.inline_table()
                table = table[part]
            for key in gone:
                del table[key]
            for key, value in keys.items():
                table[key] = _inline(value) if isinstance(value, dict) else value
            section.text = tomlkit.dumps(document) + tail
        except (TOMLKitError, KeyError, IndexError, TypeError, ValueError) as error:
            raise LayoutError from error

    def _remove(self, place: int) -> None:
        _, tail = _cut_tail(self._sections[place].text)
        del self._sections[place]
        if place and tail.strip():
            self._sections[place - 1].text += tail.lstrip("\r\n") if self._ends_blank(place - 1) else tail

    def _ends_blank(self, place: int) -> bool:
        return self._sections[place].text.endswith(("\n\n", "\n\r\n"))


def _inline(value: Any) -> Any:
    """A value that stands on one line, tables too."""
    if not isinstance(value, dict):
        return tomlkit.item(value)
    table = tomlkit.inline_table()
    table.update(value)
    return table


def _split(text: str) -> Iterator[Section]:
    """Cut before each header: a line that begins with `[` where no value is open."""
    lines = text.splitlines(keepends=True)
    path: Path = ()
    start, is_element = 0, False
    for i, line in enumerate(lines):
        if not line.lstrip().startswith("[") or not _is_complete("".join(lines[start:i])):
            continue
        yield Section(path, is_element, "".join(lines[start:i]))
        start, is_element = i, line.lstrip().startswith("[[")
        path = _path(line)
    yield Section(path, is_element, "".join(lines[start:]))


def _is_complete(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _path(header: str) -> Path:
    found: Any = tomllib.loads(header)
    parts = []
    while found:
        (part,) = found
        parts.append(part)
        found = found[part][0] if isinstance(found[part], list) else found[part]
    return tuple(parts)


def _holds(section: Section, key: str) -> bool:
    """Whether a section itself has a key, and not only another one below it."""
    table: Any = tomllib.loads(section.text)
    for part in section.path:
        table = table[part]
    return key in (table[0] if section.is_element else table)


def _is_below(path: Path, of: Path) -> bool:
    return len(path) > len(of) and path[: len(of)] == of


def _cut_tail(text: str) -> tuple[str, str]:
    """Split off the blank lines and comments at the end, when a blank line stands before them."""
    lines = text.splitlines(keepends=True)
    end = len(lines)
    while end and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    blank = next((i for i in range(end, len(lines)) if not lines[i].strip()), len(lines))
    if not _is_complete("".join(lines[:blank])):  # an open value ends with something that looks like a comment
        return text, ""
    return "".join(lines[:blank]), "".join(lines[blank:])
