"""Take skills out of a zip archive or a folder, into a folder of ours: bounded, without links, without ways out.

Nothing that an archive says about itself is believed: sizes are counted while the bytes come, the directory is measured
before it is read, and names are taken apart and judged one by one. What is refused is refused as a whole.

Flow:    archive -> open_archive -> Archive.skills -> Archive.extract;  folder -> copy_folder
Floor:   tools
Source:  tools spec 10.3, 22 (18) and 23; PKWARE APPNOTE 4.3.16 (end of the directory)
"""

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from spacebot.tools.skill_text import SKILL_FILE, SkillError

MAX_ARCHIVE = 64 * 2**20  # bytes of the archive itself
MAX_ENTRIES = 20_000  # in an archive; large collections have some thousand
MAX_DIRECTORY = 4 * 2**20  # bytes of an archive's list of entries
MAX_FILES = 500  # of one skill
MAX_FILE = 5 * 2**20  # bytes
MAX_SKILL = 20 * 2**20  # bytes of one skill
MAX_TOTAL = 100 * 2**20  # bytes of all that one call installs
MAX_PATH = 200  # bytes of a path inside of a skill
MAX_LEVELS = 10
MAX_FOUND = 100  # skills of one archive
CHUNK = 64 * 1024

_END = struct.Struct("<4s4H2LH")  # the record that ends a zip
_LOCATOR_BYTES = 20
# Names that mean devices on some systems, whatever comes after the dot.
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
_BIDI = frozenset(
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


@dataclass(slots=True)
class Budget:
    """What one installation may still write."""

    left: int = MAX_TOTAL

    def take(self, size: int) -> None:
        """Errors: SkillError when it is too much."""
        self.left -= size
        if self.left < 0:
            raise SkillError(f"the skills together are larger than {MAX_TOTAL // 2**20} MiB")


def safe_path(name: str) -> PurePosixPath:
    """The path of any entry of an archive, judged for whether it leads elsewhere.

    Errors: SkillError for absolute paths, parent components, backslashes and drives.
    """
    text = name.removesuffix("/")
    if text.startswith("/"):
        raise SkillError(f"the path {name[:60]!r} is absolute")
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise SkillError(f"the path {name[:60]!r} leads elsewhere")
    if "\\" in text or _DRIVE.match(text):
        raise SkillError(f"the path {name[:60]!r} means something else on other systems")
    return PurePosixPath(*parts)


def check_inner(path: PurePosixPath) -> None:
    """Judge a path inside of a skill, which is going to be made. Errors: SkillError."""
    if len(str(path).encode("utf-8", "replace")) > MAX_PATH or len(path.parts) > MAX_LEVELS:
        raise SkillError(f"the path {str(path)[:60]!r}… is too long or too deep")
    for part in path.parts:
        shown = repr(part[:60])
        if any(not sign.isprintable() or sign in _BIDI for sign in part):
            raise SkillError(f"the name {shown} has signs that are not seen")
        if any(sign in part for sign in '\\:*?"<>|') or part != part.strip() or part.endswith("."):
            raise SkillError(f"the name {shown} means something else on other systems; rename it")
        if _DEVICES.fullmatch(part):
            raise SkillError(f"the name {shown} is that of a device on some systems; rename it")
        if part.startswith(".git"):
            raise SkillError(f"{str(path)[:60]!r} belongs to git, not to a skill")


def _check_twins(paths: Iterable[PurePosixPath]) -> None:
    """Refuse names that some file systems take for the same."""
    seen: dict[str, PurePosixPath] = {}
    for path in paths:
        key = unicodedata.normalize("NFKC", str(path)).casefold()
        if key in seen:
            raise SkillError(f"{str(path)[:60]!r} and {str(seen[key])[:60]!r} would be the same file")
        seen[key] = path


class Archive:
    """An open zip whose directory was judged; made by `open_archive`."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._zip = file
        self._entries: list[tuple[PurePosixPath, zipfile.ZipInfo]] = []
        for info in file.infolist():
            if "\0" in info.orig_filename or info.orig_filename != info.filename:
                raise SkillError(f"the archive's name {info.filename[:60]!r} is written in two ways")
            self._entries.append((safe_path(info.filename), info))

    @property
    def top(self) -> str | None:
        """The one folder that holds everything, as in archives of repositories; None when there are more."""
        tops = {path.parts[0] for path, _ in self._entries}
        is_folder = all(len(path.parts) > 1 or info.is_dir() for path, info in self._entries)
        return tops.pop() if len(tops) == 1 and is_folder else None

    def skills(self, *, inner: bool = False) -> list[PurePosixPath]:
        """Folders with a `SKILL.md`; a skill at the very top is the path `.`.

        Args:
            inner: also those inside of another.
        """
        holders = {path.parent for path, info in self._entries if path.name == SKILL_FILE and not info.is_dir()}
        return sorted(path for path in holders if inner or not any(parent in holders for parent in path.parents))

    def extract(self, folder: PurePosixPath, target: Path, budget: Budget) -> None:
        """Write one skill into a new folder. Blocking.

        Errors: SkillError; then the target is left half written, to be removed by who made it.
        """
        inside = [(path.relative_to(folder), info) for path, info in self._entries if path.is_relative_to(folder)]
        _check_twins(path for path, _ in inside)
        files = [(path, info) for path, info in inside if path.parts and not info.is_dir()]
        if len(files) > MAX_FILES:
            raise SkillError(f"it has {len(files)} files, more than {MAX_FILES}")
        os.mkdir(target)
        total = 0
        for path, info in files:
            check_inner(path)
            _check_kind(path, info)
            try:
                with self._zip.open(info) as source:
                    total += _write(source, target / path, path, is_program=bool(info.external_attr >> 16 & 0o111))
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error) as error:
                raise SkillError(f"{str(path)[:60]!r} in the archive is damaged") from error
            if total > MAX_SKILL:
                raise SkillError(f"it is larger than {MAX_SKILL // 2**20} MiB")
        budget.take(total)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip file. Blocking.

    Errors: SkillError when it is none, is too large, or holds anything that no honest archive does.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            if os.fstat(raw.fileno()).st_size > MAX_ARCHIVE:
                raise SkillError(f"the archive is larger than {MAX_ARCHIVE // 2**20} MiB")
            _check_directory(raw)
            archive = Archive(stack.enter_context(zipfile.ZipFile(raw)))
        # RuntimeError: what the library says of features that it does not know
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, UnicodeError) as error:
            raise SkillError("this is no zip archive, or it is damaged") from error
        except OSError as error:
            raise SkillError(f"the archive cannot be read: {error.strerror or 'damaged'}") from error
        yield archive


def _check_directory(raw: IO[bytes]) -> None:
    """Measure the list of entries before anything makes objects of it."""
    size = raw.seek(0, os.SEEK_END)
    tail_size = min(size, _END.size + 65_535 + _LOCATOR_BYTES)
    raw.seek(size - tail_size)
    tail = raw.read(tail_size)
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < _END.size:
        raise SkillError("this is no zip archive, or it is damaged")
    _, _, _, _, entries, directory, _, _ = _END.unpack_from(tail, place)
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY or tail[:place].endswith(b"PK\6\7", 0, place - 16):
        raise SkillError(f"the archive has more than {MAX_ENTRIES} entries, or says so")
    raw.seek(0)


def _check_kind(path: PurePosixPath, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise SkillError(f"{str(path)[:60]!r} is a link; skills hold files only")
    if kind not in (0, stat.S_IFREG):
        raise SkillError(f"{str(path)[:60]!r} is no regular file")
    if info.flag_bits & 0x1:
        raise SkillError(f"{str(path)[:60]!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SkillError(f"{str(path)[:60]!r} is packed in an unusual way")


def _write(source: IO[bytes], target: Path, shown: PurePosixPath, *, is_program: bool) -> int:
    """Write a new file as its bytes come; returns how many."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, flags, 0o755 if is_program else 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise SkillError(f"{str(shown)[:60]!r} is both a file and a folder") from error
    size = 0
    with open(descriptor, "wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > MAX_FILE:
                raise SkillError(f"{str(shown)[:60]!r} is larger than {MAX_FILE // 2**20} MiB")
            file.write(chunk)
    return size


def copy_folder(source: Path, target: Path, budget: Budget) -> None:
    """Copy a skill from a folder of the owner's into a new one, under the same rules. Blocking. Errors: SkillError."""
    os.mkdir(target)
    total = 0
    for count, (path, entry) in enumerate(_files(source, PurePosixPath()), 1):
        if count > MAX_FILES:
            raise SkillError(f"it has more than {MAX_FILES} files")
        check_inner(path)
        if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            raise SkillError(f"{str(path)[:60]!r} is a link or no regular file; skills hold files only")
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SkillError(f"{str(path)[:60]!r} cannot be read: {error.strerror}") from error
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise SkillError(f"{str(path)[:60]!r} is no regular file")
            total += _write(file, target / path, path, is_program=bool(mode & 0o111))
        if total > MAX_SKILL:
            raise SkillError(f"it is larger than {MAX_SKILL // 2**20} MiB")
    budget.take(total)


def _files(folder: Path, above: PurePosixPath) -> Iterable[tuple[PurePosixPath, os.DirEntry[str]]]:
    """Everything below a folder but git's own; folders are not followed where they are links."""
    if len(above.parts) > MAX_LEVELS:
        raise SkillError(f"{str(above)[:60]!r}… is too deep")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = above / entry.name
            if entry.name.startswith(".git") or entry.name in ("node_modules", "__pycache__"):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), path)
            else:
                yield path, entry
