"""Which paths a process may touch, and how a file is opened so that the answer still holds.

Two tables of areas decide, one for reading and one for writing: in each, the deepest area that covers a path. The
file tool asks them, and the sandbox's mounts are drawn from the same tables. Below an area's root every step is taken
relative to an open directory and without following links, so nothing can be swapped between check and use.

Flow:    text -> PathPolicy.locate -> Place -> open_folder / open_file / write_file
Floor:   tools
Source:  tools spec 15 and 23 (path escapes); control spec 6.4 (file_read, file_write)
"""

import errno
import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from spacebot.base.errors import DeniedError, ToolError
from spacebot.tools.permissions import Gate, Right

MOST_STEPS = 200  # of a path that a model writes

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a named pipe in the workspace must not hold a thread until somebody writes into it.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Access(StrEnum):
    """What may be done in an area."""

    SYSTEM = "system"  # programs and libraries: commands may read them, the file tool has no business there
    READ = "read"
    WRITE = "write"
    HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class Area:
    """A folder with everything below it, as far as no deeper area says otherwise.

    Args:
        pattern: only paths below that fit it, such as `*.md`; empty: all. A star stays within a folder, two do not.
    """

    path: Path
    access: Access
    pattern: str = ""

    def covers(self, path: Path, *, exactly: bool = True) -> bool:
        """Whether a path lies here; the pattern counts only where it has to be exact."""
        if not path.is_relative_to(self.path):
            return False
        if not self.pattern or not exactly:
            return True
        below = "/".join(path.parts[len(self.path.parts) :])
        return _expression(self.pattern).fullmatch(below) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """A path that the policy admitted.

    Args:
        root: the area's folder, absolute, free of links.
        parts: the steps below it; empty for the folder itself.
        shown: how messages name it.
        follows_links: the owner switched containment off.
    """

    root: Path
    parts: tuple[str, ...]
    shown: str
    follows_links: bool = False

    @property
    def path(self) -> Path:
        """The absolute path, for programs that want one."""
        return self.root.joinpath(*self.parts)


class PathPolicy:
    """The tables, and the one answer to "may this path be touched?".

    Args:
        base: where relative paths start: the workspace, absolute. Links in it are not followed; elsewhere they are,
            and what they lead to is judged.
        reading: any order, paths without links; of two for the same folder, `HIDDEN` wins.
        writing: as `reading`, with `WRITE` where that is allowed and `HIDDEN` where it is not.
        gate: denies reading or writing as a whole.
        is_enforced: False when the owner switched containment off: then every path is admitted.
        aliases: pairs of a folder as people write it and what it really is, where a link makes them differ.
        private: folder with what people sent in direct chats, for the words of a refusal.
    """

    def __init__(
        self,
        *,
        base: Path,
        reading: Sequence[Area],
        writing: Sequence[Area],
        gate: Gate,
        is_enforced: bool = True,
        aliases: Sequence[tuple[Path, Path]] = (),
        private: Path | None = None,
    ) -> None:
        self._base = base
        self._gate = gate
        self._aliases = tuple(aliases)
        self._is_enforced = is_enforced
        self._private = private
        self._reading, self._writing = _sorted(reading), _sorted(writing)

    @property
    def areas(self) -> tuple[Area, ...]:
        """Every folder where something changes, with what holds below it; patterns count as everything."""
        paths = {area.path for area in (*self._reading, *self._writing)}
        return _sorted([Area(path, self.access(path, exactly=False)) for path in paths])

    def access(self, path: Path, *, exactly: bool = True) -> Access:
        """What may be done with an absolute path without links and parent components."""
        reading = _deepest(self._reading, path, exactly=exactly)
        if reading is Access.READ and _deepest(self._writing, path, exactly=exactly) is Access.WRITE:
            return Access.WRITE
        return reading

    def locate(self, text: str, *, writing: bool, tool: str = "file") -> Place:
        """Turn what a model wrote into a place. Blocking where it leads out of the workspace.

        Args:
            tool: who asks, for the answer and the log.

        Errors: ToolError when the path is malformed; NotPermittedError, which is one, when it may not be touched.
        """
        self._gate.require(Right.FILE_WRITE if writing else Right.FILE_READ, tool=tool)
        return self.place(text, writing=writing, tool=tool)

    def place(self, text: str, *, writing: bool, tool: str) -> Place:
        """As `locate`, where it is not the file rights that decide."""
        if "\0" in text:
            raise DeniedError("the path holds a NUL character; send a plain path", about="NUL in a path")
        if text.count("/") > MOST_STEPS:  # nothing that walks a tree could go so deep
            raise DeniedError(f"the path {text[:80]!r}… has more than {MOST_STEPS} steps", about="path too deep")
        plain = text[2:] if text.startswith("~/") else "" if text == "~" else text  # the workspace is home
        path = self._base / plain  # an absolute text replaces the base
        if not self._is_enforced:
            return Place(Path("/"), path.parts[1:], text or ".", follows_links=True)
        key = "file_write" if writing else "file_read"
        if ".." in path.parts:
            self._gate.refuse(tool, f"{text!r} has a '..' in it; name the target without parent components", key=key)
        shown = self._shown(path)
        path = self._unaliased(path)
        if not self._is_kept(path):
            path = Path(os.path.realpath(path))
        self._check(path, text, key, tool, writing=writing)
        # From the highest folder that is ours on: a root below it would have steps that a link could redirect.
        ours = [area.path for area in self._ours() if path.is_relative_to(area.path)]
        root = min(ours, key=lambda folder: len(folder.parts))
        if root == path and path.is_file():
            root = path.parent
        return Place(root, path.relative_to(root).parts, shown)

    def _check(self, path: Path, text: str, key: str, tool: str, *, writing: bool) -> None:
        may_read = _deepest(self._reading, path) is Access.READ
        may_write = _deepest(self._writing, path) is Access.WRITE
        if may_write if writing else may_read:
            return
        if writing and may_read:
            self._gate.refuse(tool, f"{text!r} is read-only for you; write somewhere else in the workspace", key=key)
        if self._private is not None and path.is_relative_to(self._private):
            reason = f"{text!r} was given to you in a direct chat with somebody else, or is not there, and stays there"
            self._gate.refuse(tool, reason, key=key)
        names = {real: written for written, real in self._aliases}
        open_ones = (area.path for area in (self._writing if writing else self._reading) if self._is_ours(area))
        places = ", ".join(dict.fromkeys(str(names.get(folder, folder)) for folder in open_ones)) or "nothing"
        reason = f"access to {text!r} is denied: it lies outside of {places}. Do not guess what it holds"
        self._gate.refuse(tool, reason, key=key)

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._base)) if path.is_relative_to(self._base) else str(path)

    def _unaliased(self, path: Path) -> Path:
        """What a folder as people write it really is; an alias never takes a path away from an area below it."""
        for written, real in self._aliases:
            if path.is_relative_to(written) and not any(
                area.path.is_relative_to(written) and area.covers(path) for area in (*self._reading, *self._writing)
            ):
                return real / path.relative_to(written)
        return path

    def _is_kept(self, path: Path) -> bool:
        """Whether a path lies where workers put links: there none is followed."""
        kept = (self._base, *(real for _, real in self._aliases))
        return any(path.is_relative_to(folder) for folder in kept)

    def _ours(self) -> list[Area]:
        return [area for area in (*self._reading, *self._writing) if self._is_ours(area)]

    def _is_ours(self, area: Area) -> bool:
        return area.access in (Access.WRITE, Access.READ)


def _sorted(areas: Sequence[Area]) -> tuple[Area, ...]:
    return tuple(sorted(areas, key=lambda area: (len(area.path.parts), area.access is Access.HIDDEN, str(area.path))))


def _deepest(areas: Sequence[Area], path: Path, *, exactly: bool = True) -> Access:
    covering = (area for area in reversed(areas) if area.covers(path, exactly=exactly))
    return next((area.access for area in covering), Access.HIDDEN)


def split_pattern(text: str) -> tuple[Path, str]:
    """An absolute pattern as its longest folder without wildcards, and what has to fit below it."""
    path = Path(text)
    fixed = next((n for n, part in enumerate(path.parts) if "*" in part or "?" in part), len(path.parts))
    return Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> "re.Pattern[str]":
    """Two stars alone between slashes are any number of folders, at the end everything below, the folder included."""
    pieces: list[str] = []
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            pieces.append(".*" if is_last else "(?:[^/]+/)*")
            continue
        signs = (("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c)) for c in re.sub(r"\*+", "*", part))
        # A folder whose content is wanted may be listed itself.
        rest = "" if is_last else "(?:/|$)" if parts[number + 1 :] == ["**"] else "/"
        pieces.append("".join(signs) + rest)
    return re.compile("".join(pieces), re.DOTALL)


@contextmanager
def open_folder(place: Place, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder, reached step by step without following links.

    Args:
        create: make the folders that are missing.

    Errors: ToolError.
    """
    with _reach(place, place.parts, create=create) as folder:
        yield folder


@contextmanager
def open_file(place: Place) -> Iterator[int]:
    """A descriptor of a regular file, for reading.

    Errors: ToolError when it is missing, a folder, a link or a device.
    """
    with _parent(place) as (folder, name):
        try:
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        except OSError as error:
            raise _explained(error, place.shown) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ToolError(f"{place.shown!r} is a folder; use the list operation")
        if not stat.S_ISREG(mode):
            raise ToolError(f"{place.shown!r} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def write_file(place: Place, content: bytes, *, create_dirs: bool) -> bool:
    """Replace a file's content at once: readers see the old or the new text, never a part.

    Returns: whether the file is new. Permission bits of an existing file are kept.

    Errors: ToolError.
    """
    with _parent(place, create=create_dirs) as (folder, name):
        existing = _examined(folder, name, place.shown)
        passing = f".{name[:60]}.{secrets.token_hex(4)}.tmp"
        try:
            descriptor = os.open(
                passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder
            )
            try:
                with open(descriptor, "wb") as file:
                    if existing is not None:
                        os.fchmod(descriptor, stat.S_IMODE(existing.st_mode))
                    file.write(content)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(passing, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(passing, dir_fd=folder)
                raise
        except OSError as error:
            raise _explained(error, place.shown) from error
    return existing is None


def _examined(folder: int, name: str, shown: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _explained(error, shown) from error
    if stat.S_ISLNK(found.st_mode):
        raise _link(shown)
    if stat.S_ISDIR(found.st_mode):
        raise ToolError(f"{shown!r} is a folder; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ToolError(f"{shown!r} is not a regular file")
    if not found.st_mode & 0o222:  # replacing a file asks for no right on it, so the owner's mark is honoured here
        raise ToolError(f"{shown!r} is write-protected; leave it, or tell the user")
    return found


@contextmanager
def _parent(place: Place, *, create: bool = False) -> Iterator[tuple[int, str]]:
    if place.follows_links:
        place = _resolved(place)
    if not place.parts:
        raise ToolError(f"{place.shown!r} is a folder; name a file in it")
    with _reach(place, place.parts[:-1], create=create) as folder:
        yield folder, place.parts[-1]


def _resolved(place: Place) -> Place:
    whole = Path(os.path.realpath(place.path))
    return Place(place.root, whole.parts[1:], place.shown, follows_links=True)


@contextmanager
def _reach(place: Place, parts: Sequence[str], *, create: bool) -> Iterator[int]:
    if place.follows_links:
        parts = Path(os.path.realpath(place.root.joinpath(*parts))).parts[1:]
    try:
        current = os.open(place.root, _FOLDER_FLAGS)
    except OSError as error:
        raise _explained(error, str(place.root)) from error
    try:
        for step in parts:
            below = _enter(current, step, place.shown, create=create)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _enter(folder: int, step: str, shown: str, *, create: bool) -> int:
    try:
        try:
            return os.open(step, _FOLDER_FLAGS, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):  # somebody else made it meanwhile; what it is shows at the opening
                os.mkdir(step, dir_fd=folder)
            return os.open(step, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(folder, step):
            raise DeniedError(
                f"{shown!r} leads through the symbolic link {step!r}, which is not followed; name the real path",
                about="path through a link",
            ) from error
        raise _explained(error, shown) from error


def _is_link(folder: int, step: str) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(step, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _link(shown: str) -> ToolError:
    return DeniedError(f"{shown!r} is a symbolic link, which is not followed; name its target", about="link")


def remove_tree(folder: Path) -> None:
    """Remove a folder, also one that was made hard to remove: locked, or deeper than any function calls itself."""
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for words in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [*words, "--", str(folder)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    timeout=60,
                    env={"PATH": os.defpath},
                )


def _explained(error: OSError, shown: str) -> ToolError:
    """What an error of the operating system means to a model."""
    match error.errno:
        case errno.ENOENT:
            text = f"{shown!r} does not exist; list the folder to see what is there"
        case errno.ENOTDIR:
            text = f"{shown!r} leads through something that is not a folder"
        case errno.ELOOP | errno.EMLINK:  # EMLINK is what the BSDs say
            return _link(shown)
        case errno.EACCES | errno.EPERM:
            text = f"the operating system denies access to {shown!r}"
        case errno.EISDIR:
            text = f"{shown!r} is a folder"
        case errno.ENAMETOOLONG:
            text = f"the path {shown[:80]!r}… is too long"
        case errno.ENOSPC | errno.EDQUOT:
            text = f"no space left to write {shown!r}; delete something or tell the user"
        case errno.EROFS:
            text = f"{shown!r} lies on a read-only file system"
        case _:
            text = f"cannot open {shown!r}: {error.strerror}"
    return ToolError(text)
