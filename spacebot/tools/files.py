"""The file tool: read, write, edit, list and search, inside of what the agent may touch.

Disk work runs in threads; search by content runs `grep` as a contained command, because a pattern
of a model may take for ever and only a process can be stopped in the middle.

Flow:    arguments -> PathPolicy.locate -> one operation -> text
Floor:   tools
Source:  tools spec 5.3, 5.4 and 23
"""

import fnmatch
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, TypeVar

import trio
from pydantic import Field

from spacebot.base.errors import ToolError
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, size_bytes
from spacebot.base.tree import Node
from spacebot.tools.contract import RESULT_CAP, LenientInt, ToolArguments, ToolOutput
from spacebot.tools.paths_policy import Access, PathPolicy, Place, open_file, open_folder, write_file
from spacebot.tools.sandbox import Containment
from spacebot.tools.subprocesses import Ending, run_command

TEXT_CAP = RESULT_CAP - 1000  # bytes of a file in one result; leaves room for the notice
LIST_CAP = 500  # entries; tools spec 1
LINE_CAP = 2000  # characters of one numbered line
EDIT_CAP = 10 * 1024 * 1024  # bytes of a file that may be edited in place
SNIFF = 8192  # bytes looked at to tell text from binary
MATCH_CAP = 200  # hits of one search
MATCHES_PER_FILE = 50
MATCH_LINE_CAP = 300  # characters
SEARCH_S = 15.0
SEARCH_BYTES = 400_000  # output of grep after which the search ends
NOT_UTF8 = "[not valid UTF-8: unreadable bytes are shown as \N{REPLACEMENT CHARACTER}]"

T = TypeVar("T")


class Operation(StrEnum):
    """What to do."""

    READ = "read"
    WRITE = "write"
    EDIT = "edit"
    LIST = "list"
    SEARCH = "search"


class FileArguments(ToolArguments):
    """One operation on one path; which other fields count depends on the operation."""

    operation: Operation
    path: str = "."
    content: Annotated[str | None, Field(description="write")] = None
    create_dirs: Annotated[bool, Field(description="write")] = True
    offset: Annotated[LenientInt | None, Field(description="read: first line, from 1")] = None
    limit: Annotated[LenientInt | None, Field(description="read: number of lines")] = None
    old_string: Annotated[str | None, Field(description="edit: exact text")] = None
    new_string: Annotated[str | None, Field(description="edit")] = None
    replace_all: Annotated[bool, Field(description="edit")] = False
    pattern: Annotated[str | None, Field(description="search: text in files")] = None
    regex: Annotated[bool, Field(description="search: pattern is a regular expression")] = False
    glob: Annotated[str | None, Field(description="search: file names, such as *.py")] = None


class FileTool:
    """Works on files of the agent.

    Args:
        containment: the agent's rules; its limiter bounds the threads.
    """

    name: ClassVar[str] = "file"
    arguments: ClassVar[type[ToolArguments]] = FileArguments

    def __init__(self, *, containment: Containment) -> None:
        self._containment = containment

    async def call(self, arguments: FileArguments, node: Node) -> ToolOutput:
        """Do one operation. A cancelled write has either happened or not. Errors: as `Tool.call`."""
        writing = arguments.operation in (Operation.WRITE, Operation.EDIT)
        policy = self._containment.policy()
        place = await self._in_thread(partial(policy.locate, clean_unicode(arguments.path), writing=writing))
        if arguments.operation is Operation.EDIT:  # its answers tell what the file holds
            await self._in_thread(partial(policy.locate, clean_unicode(arguments.path), writing=False))
        match arguments.operation:
            case Operation.READ:
                text = await self._in_thread(partial(_read, place, arguments))
            case Operation.WRITE:
                text = await self._in_thread(partial(_write, place, arguments))
            case Operation.EDIT:
                text = await self._in_thread(partial(_edit, place, arguments))
            case Operation.LIST:
                text = await self._in_thread(partial(_list, place, policy))
            case Operation.SEARCH:
                text = await self._search(place, policy, arguments, node)
        return ToolOutput(text)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._containment.disk_limiter)

    async def _search(self, place: Place, policy: PathPolicy, arguments: FileArguments, node: Node) -> str:
        if arguments.glob and "/" in arguments.glob:
            raise ToolError("glob is matched against file names only; put the folder into path")
        if not arguments.pattern:
            if not arguments.glob:
                raise ToolError("search needs a pattern (text in files), a glob (file names), or both")
            return await self._in_thread(partial(_find_names, place, policy, arguments.glob))
        if "\0" in arguments.pattern or "\n" in arguments.pattern:
            raise ToolError("the pattern must be one line; search for a part of it")
        pattern = clean_unicode(arguments.pattern)
        words = ["grep", "-rnHI", "--null", f"-m{MATCHES_PER_FILE}", "--exclude-dir=.git"]
        words += ["-E", "-e", with_digits(pattern)] if arguments.regex else ["-F", "-e", pattern]
        if arguments.glob:
            words.append(f"--include={arguments.glob}")
        folder, target = await self._in_thread(partial(_grep_target, place))
        folder = self._containment.visible(folder)
        invocation = await self._in_thread(
            partial(self._containment.wrap_search, [*words, "--", target], folder=folder)
        )
        report = await run_command(
            invocation, timeout_s=SEARCH_S, on_progress=lambda: node.progress(), max_bytes=SEARCH_BYTES
        )
        if report.exit_code > 1 and not report.stdout:
            raise ToolError(f"the search failed: {report.stderr.strip()[:300] or 'bad pattern'}")
        lines = report.stdout.split("\n")
        hits = [hit for line in lines if (hit := _parse_hit(line, place, policy, is_folder=target == "."))]
        return _render_hits(hits, report.ending, is_complete=report.is_complete)


def _read(place: Place, arguments: FileArguments) -> str:
    with open_file(place) as descriptor, open(descriptor, "rb", closefd=False) as file:
        size = os.fstat(descriptor).st_size
        start = file.read(SNIFF)
        if b"\0" in start:
            return f"{place.shown!r} is a binary file of {size} bytes; it cannot be shown as text."
        file.seek(0)
        if arguments.offset is None and arguments.limit is None:
            return _whole(file.read(TEXT_CAP + 4), size)
        return _numbered(file, arguments.offset, arguments.limit)


def _whole(data: bytes, size: int) -> str:
    if not data:
        return "(empty file)"
    text, note = _decoded(data[:TEXT_CAP], is_cut=len(data) > TEXT_CAP)
    shown = size_bytes(text) if not note else TEXT_CAP
    if len(data) > TEXT_CAP:
        lines = text.count("\n")
        note += (
            f"\n[… the first {shown} of {size} bytes are shown, {size - shown} left out; "
            f"go on with offset {lines + 1} and a limit …]"
        )
    return scrub(text) + note


def _decoded(data: bytes, *, is_cut: bool) -> tuple[str, str]:
    try:
        return data.decode(), ""
    except UnicodeDecodeError as error:
        if is_cut and len(data) - error.start < 4 and error.reason == "unexpected end of data":
            return data[: error.start].decode(), ""
        return data.decode(errors="replace"), f"\n{NOT_UTF8}"


def _numbered(file: BinaryIO, offset: int | None, limit: int | None) -> str:
    first = max(offset or 1, 1)
    shown: list[str] = []
    used = number = 0
    notes: list[str] = []
    for number, (line, is_cut) in enumerate(_line_heads(file), start=1):
        if number < first:
            continue
        text, note = _decoded(line, is_cut=is_cut)
        entry = f"{number}\t{text[:LINE_CAP]}" + (" […]" if is_cut or len(text) > LINE_CAP else "")
        used += size_bytes(entry) + 1
        if used > TEXT_CAP or (limit is not None and len(shown) >= max(limit, 1)):
            notes.append(f"[… more lines follow; go on with offset {number} …]")
            break
        shown.append(entry)
        if note and NOT_UTF8 not in notes:
            notes.append(NOT_UTF8)
    if not shown:
        return f"(the file has {number} lines, none from line {first} on)"
    return scrub("\n".join(shown)) + "".join(f"\n{note}" for note in notes)


def _line_heads(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Each line's first bytes without the line end, and whether it goes on beyond them: a line may be huge."""
    longest = LINE_CAP * 4
    while piece := file.readline(longest):
        line, is_cut = piece, False
        while len(piece) == longest and not piece.endswith(b"\n"):
            piece = file.readline(longest)
            is_cut = is_cut or bool(piece.rstrip(b"\r\n"))
        yield line.rstrip(b"\r\n"), is_cut


def _write(place: Place, arguments: FileArguments) -> str:
    if arguments.content is None:
        raise ToolError("write needs content; send an empty text to empty the file")
    data = clean_unicode(arguments.content).encode()
    is_new = write_file(place, data, create_dirs=arguments.create_dirs)
    return f"{'created' if is_new else 'replaced'} {place.shown!r}, {len(data)} bytes"


def _edit(place: Place, arguments: FileArguments) -> str:
    old, new = arguments.old_string, arguments.new_string
    if not old or new is None:
        raise ToolError("edit needs old_string (not empty) and new_string; use write to create or fill a file")
    if old == new:
        raise ToolError("old_string and new_string are the same; nothing to do")
    with open_file(place) as descriptor:
        if os.fstat(descriptor).st_size > EDIT_CAP:
            raise ToolError(f"{place.shown!r} is too large to edit; change it with a shell command")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolError(f"{place.shown!r} is not UTF-8 text; change it with a shell command") from error
    count = text.count(old)
    if not count and "\r\n" in text and "\r\n" not in old:  # models write plain newlines
        old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        count = text.count(old)
    if not count:
        raise ToolError(
            f"old_string does not occur in {place.shown!r}; read the file and copy the text exactly, blanks included"
        )
    if count > 1 and not arguments.replace_all:
        raise ToolError(
            f"old_string occurs {count} times in {place.shown!r}; add lines around it until it is unique, "
            "or set replace_all"
        )
    write_file(place, clean_unicode(text.replace(old, new)).encode(), create_dirs=False)
    return f"{count} replacement{'s' if count > 1 else ''} in {place.shown!r}"


def _is_shown(place: Place, policy: PathPolicy, *steps: str) -> bool:
    """Whether a path below a place may be known of."""
    if place.follows_links:
        return True
    return policy.access(Path(os.path.normpath(place.path.joinpath(*steps)))) in (Access.READ, Access.WRITE)


def _list(place: Place, policy: PathPolicy) -> str:
    with open_folder(place) as folder:
        with os.scandir(folder) as found:
            entries = sorted(
                (not entry.is_dir(follow_symlinks=False), entry.name)
                for entry in found
                if _is_shown(place, policy, entry.name)
            )
        lines = [_entry(folder, name) for _, name in entries[:LIST_CAP]]
    if len(entries) > LIST_CAP:
        lines.append(f"[notice: {len(entries) - LIST_CAP} of {len(entries)} entries left out; search with a glob]")
    return "\n".join(lines) or "(empty folder)"


def _entry(folder: int, name: str) -> str:
    shown = clean_unicode(name)
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return f"{shown}  (gone or unreadable)"
    if stat.S_ISDIR(found.st_mode):
        return f"{shown}/"
    if stat.S_ISREG(found.st_mode):
        return f"{shown}  {found.st_size}"
    return f"{shown}  ({'link' if stat.S_ISLNK(found.st_mode) else 'other'})"


def _find_names(place: Place, policy: PathPolicy, glob: str) -> str:
    """Paths below a place whose name fits, found without following links."""
    until = time.monotonic() + SEARCH_S
    hits: list[str] = []
    is_complete = True
    with open_folder(place) as top:
        for folder, folders, files, _ in os.fwalk(".", topdown=True, follow_symlinks=False, dir_fd=top):
            folders[:] = sorted(name for name in folders if name != ".git")
            names = sorted([*folders, *files])
            fitting = (name for name in names if fnmatch.fnmatchcase(name, glob))
            hits += [_below(place, folder, name) for name in fitting if _is_shown(place, policy, folder, name)]
            if len(hits) > MATCH_CAP or time.monotonic() > until:
                is_complete = False
                break
    if not hits:
        rest = "" if is_complete else " so far; the time was up, name a smaller folder"
        return f"no file name fits {glob!r}{rest}"
    lines = hits[:MATCH_CAP]
    if not is_complete:
        lines.append("[… there may be more; name a smaller folder or a narrower glob …]")
    return "\n".join(lines)


def _below(place: Place, *steps: str) -> str:
    return clean_unicode(os.path.normpath(os.path.join(place.shown, *steps)))


def _grep_target(place: Place) -> tuple[Path, str]:
    """Where grep starts and what it searches there, after the same walk without links that every operation makes."""
    try:
        with open_folder(place):
            return place.path, "."
    except ToolError:
        with open_file(place):
            return place.path.parent, place.path.name


def with_digits(pattern: str) -> str:
    r"""Give a pattern the classes `\d` and `\D`, which extended regular expressions lack.

    Inside of brackets `\d` becomes a class too; `\D` there has no counterpart and stays as it is.
    """
    result: list[str] = []
    in_brackets = False
    position = 0
    while position < len(pattern):
        pair = pattern[position : position + 2]
        if pair in (r"\d", r"\D") and not (in_brackets and pair == r"\D"):
            inner = "[:digit:]"
            result.append(inner if in_brackets else f"[{'^' if pair == chr(92) + 'D' else ''}{inner}]")
        elif pair.startswith("\\") and not in_brackets:
            result.append(pair)
        else:
            pair = pattern[position]
            if pair == "[" and not in_brackets:
                in_brackets = True
            elif pair == "]" and in_brackets and pattern[position - 1] not in "[^":
                in_brackets = False
            result.append(pair)
        position += len(pair)
    return "".join(result)


@dataclass(frozen=True, slots=True, order=True)
class _Hit:
    path: str
    line: int
    text: str


def _parse_hit(line: str, place: Place, policy: PathPolicy, *, is_folder: bool) -> _Hit | None:
    path, separator, rest = line.partition("\0")
    number, colon, text = rest.partition(":")
    if not separator or not colon or not number.isdigit():
        return None
    below = path if is_folder else ""
    if not _is_shown(place, policy, below):
        return None
    text = text.strip()
    text = text if len(text) <= MATCH_LINE_CAP else text[:MATCH_LINE_CAP] + " […]"
    return _Hit(_below(place, below), int(number), text)


def _render_hits(hits: list[_Hit], ending: Ending, *, is_complete: bool) -> str:
    lines = [f"{hit.path}:{hit.line}: {hit.text}" for hit in sorted(hits)[:MATCH_CAP]]
    if ending is Ending.TIMED_OUT:
        lines.append(f"[… ended after {SEARCH_S:g} seconds; name a smaller folder or a simpler pattern …]")
    elif len(hits) > MATCH_CAP or not is_complete or ending is Ending.TOO_MUCH:
        lines.append("[… there are more; narrow the pattern, the folder or the glob …]")
    return "\n".join(lines) or "no match (binary files and .git are not searched)"
