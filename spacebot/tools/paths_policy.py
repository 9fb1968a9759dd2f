"""Which paths a process may touch, and how a file is opened so that the answer still holds.

One table of areas decides, the deepest area that covers a path: the file tool asks it, and the
sandbox's mounts are drawn from the same table. Below an area's root every step is taken relative to
an open directory and without following links, so nothing can be swapped between check and use.

Flow:    text -> PathPolicy.locate -> Place -> open_folder / open_file / write_file
Floor:   tools
Source:  tools spec 15 and 23 (path escapes)
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from spacebot.base.errors import ToolError

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
    """A folder with everything below it, as far as no deeper area says otherwise."""

    path: Path
    access: Access


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
    """The table, and the one answer to "may this path be touched?".

    Args:
        base: where relative paths start: the workspace, absolute.
        areas: any order, paths without links; of two for the same folder, `HIDDEN` wins.
        is_enforced: False when the owner switched containment off: then every path is admitted.
        aliases: pairs of a folder as people write it and what it really is, where a link makes them differ.
    """

    def __init__(
        self,
        *,
        base: Path,
        areas: Sequence[Area],
        is_enforced: bool,
        aliases: Sequence[tuple[Path, Path]] = (),
    ) -> None:
        self._base = base
        self._aliases = tuple(aliases)
        self._is_enforced = is_enforced
        self.areas = tuple(sorted(areas, key=lambda area: (len(area.path.parts), area.access is Access.HIDDEN)))

    def access(self, path: Path) -> Access:
        """What may be done with an absolute path without links and parent components."""
        covering = (area for area in reversed(self.areas) if path.is_relative_to(area.path))
        return next((area.access for area in covering), Access.HIDDEN)

    def locate(self, text: str, *, writing: bool) -> Place:
        """Turn what a model wrote into a place.

        Errors: ToolError when the path is malformed or outside of what this process may touch.
        """
        if "\0" in text:
            raise ToolError("the path holds a NUL character; send a plain path")
        path = self._base / text  # an absolute text replaces the base
        if not self._is_enforced:
            return Place(Path("/"), path.parts[1:], text or ".", follows_links=True)
        if ".." in path.parts:
            raise ToolError(f"{text!r} has a '..' in it; name the target without parent components")
        shown = self._shown(path)
        path = self._unaliased(path)
        access = self.access(path)
        if access is Access.HIDDEN or access is Access.SYSTEM:
            raise ToolError(self._refusal(text))
        if writing and access is not Access.WRITE:
            raise ToolError(f"{text!r} is read-only for you; write somewhere else in the workspace")
        # From the highest folder that is ours on: a root below it would have steps that a link could redirect.
        root = next(area.path for area in self.areas if self._is_ours(area) and path.is_relative_to(area.path))
        return Place(root, path.relative_to(root).parts, shown)

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._base)) if path.is_relative_to(self._base) else str(path)

    def _unaliased(self, path: Path) -> Path:
        if self.access(path) is Access.HIDDEN:  # an alias never takes a path away from an area
            for written, real in self._aliases:
                if path.is_relative_to(written):
                    return real / path.relative_to(written)
        return path

    def _is_ours(self, area: Area) -> bool:
        return area.access in (Access.WRITE, Access.READ)

    def _refusal(self, text: str) -> str:
        names = {real: written for written, real in self._aliases}
        writable = ", ".join(str(names.get(area.path, area.path)) for area in self.areas if area.access is Access.WRITE)
        return (
            f"access to {text!r} is denied: it lies outside of {writable}. Do not guess what it holds; "
            "work inside, or tell the user that it cannot be reached"
        )


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
        raise ToolError(f"{shown!r} is a symbolic link, which is not followed; name its target")
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
            raise ToolError(
                f"{shown!r} leads through the symbolic link {step!r}, which is not followed; name the real path"
            ) from error
        raise _explained(error, shown) from error


def _is_link(folder: int, step: str) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(step, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _explained(error: OSError, shown: str) -> ToolError:
    """What an error of the operating system means to a model."""
    match error.errno:
        case errno.ENOENT:
            text = f"{shown!r} does not exist; list the folder to see what is there"
        case errno.ENOTDIR:
            text = f"{shown!r} leads through something that is not a folder"
        case errno.ELOOP | errno.EMLINK:  # EMLINK is what the BSDs say
            text = f"{shown!r} is a symbolic link, which is not followed; name its target"
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
