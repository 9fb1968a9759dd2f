"""The drop folder on disk: what lies in it, reading and removing one file, the reason beside a file, uploads.

Everything here blocks: call it from a thread. Nothing follows a symbolic link, and a file that changes while it is
read counts as not read. One folder below is looked into, `memory/`: so do agents that keep a note per day lay out
what they know, and their owners drop it as it is.

Flow:    scan -> read -> (ingestion) -> remove | write_reason; store for uploads
Floor:   agent
Source:  memory spec 13.2, 13.6
"""

import errno
import hashlib
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from spacebot.agent.documents import KINDS, kind_of
from spacebot.base.text import clean_unicode

NOTES = "memory"  # the one folder below that is looked into
REASON = ".reason.txt"
PASSING = ".upload-"  # begins the name of an upload that is being written
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MOST_FILES = 5_000  # the rest is seen when these are done
_LONGEST_NAME = 200  # bytes of an upload's name; file systems take 255
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the folder.

    Args:
        name: from the folder on, `memory/2026-01-05.md`; as the system gives it, undecodable bytes included.
    """

    name: str
    stamp: Stamp

    @property
    def shown(self) -> str:
        """The name as rows, events and people get it."""
        return clean_unicode(self.name)

    @property
    def mtime_s(self) -> float:
        """When it was last written to, in seconds since 1970."""
        return self.stamp.mtime_ns / 1e9


@dataclass(slots=True)
class Listing:
    """What lies in the folder; `files` holds the oldest, oldest first, `names` all."""

    files: list[Found] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    reasons: set[str] = field(default_factory=set)  # names of the reason files
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why


class DropFolder:
    """The folder at `path`; it may be missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Listing:
        """Look what is there. A missing folder is empty.

        Errors: OSError when the folder itself cannot be read, or is a link.
        """
        listing = Listing()
        with suppress(FileNotFoundError), self._open("") as folder:
            self._scan(folder, "", listing)
        listing.names = frozenset(found.name for found in listing.files)
        listing.files.sort(key=lambda found: (found.stamp.mtime_ns, found.name))
        del listing.files[MOST_FILES:]
        return listing

    def read(self, found: Found, limit: int) -> bytes | None:
        """The content of a file, at most `limit` + 1 bytes; None when it is gone or no longer what was found.

        Errors: OSError.
        """
        folder_name, name = _split(found.name)
        with suppress(FileNotFoundError), self._open(folder_name) as folder:
            descriptor = os.open(name, _FILE, dir_fd=folder)
            with open(descriptor, "rb", closefd=True) as file:
                if _stamp(os.fstat(descriptor)) != found.stamp:
                    return None
                content = bytearray()
                while len(content) <= limit and (piece := file.read(_PIECE)):
                    content += piece
                is_same = _stamp(os.fstat(descriptor)) == found.stamp
                return bytes(content) if is_same and len(content) == min(found.stamp.size, len(content)) else None
        return None

    def is_there(self, found: Found) -> bool:
        """Whether there is still a file of this name, whatever it holds now."""
        return self._status(found.name) is not None

    def remove(self, found: Found) -> bool:
        """Delete a file if it is still what was found; whether nothing of it is left.

        Errors: OSError when it cannot be deleted.
        """
        folder_name, name = _split(found.name)
        with suppress(FileNotFoundError), self._open(folder_name) as folder:
            if _stamp(os.stat(name, dir_fd=folder, follow_symlinks=False)) != found.stamp:
                return False
            os.unlink(name, dir_fd=folder)
        return True

    def write_reason(self, found: Found, text: str) -> None:
        """Put the reason beside a file, in place of an older one. Errors: OSError."""
        folder_name, name = _split(reason_name(found.name))
        with self._open(folder_name) as folder:
            _write_whole(folder, name, text.encode("utf-8", errors="replace"), replace=True)

    def has_reason(self, found: Found) -> bool:
        """Whether there is a reason beside a file. Errors: OSError."""
        return self._status(reason_name(found.name)) is not None

    def remove_reason(self, found: Found) -> None:
        """Take the reason away, if there is one. Errors: OSError."""
        folder_name, name = _split(reason_name(found.name))
        with suppress(FileNotFoundError), self._open(folder_name) as folder:
            os.unlink(name, dir_fd=folder)

    def store(self, name: str, data: bytes) -> Found:
        """Write an upload, whole or not at all; a name that is taken gets eight more characters.

        Args:
            name: as `upload_name` made it.

        Errors: OSError.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._open("") as folder:
            while True:
                try:
                    _write_whole(folder, name, data, replace=False)
                except FileExistsError:
                    stem, dot, ending = name.rpartition(".")
                    suffix = secrets.token_hex(4)
                    name = f"{stem}-{suffix}{dot}{ending}" if dot and stem else f"{name}-{suffix}"
                else:
                    return Found(name, _stamp(os.stat(name, dir_fd=folder, follow_symlinks=False)))

    def tidy(self) -> None:
        """Remove uploads that were cut off while they were written. Errors: OSError."""
        with suppress(FileNotFoundError), self._open("") as folder, os.scandir(folder) as entries:
            for name in [entry.name for entry in entries if entry.name.startswith(PASSING)]:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)

    def _scan(self, folder: int, above: str, listing: Listing) -> None:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for base in names:
            name = above + base
            if base.startswith("."):
                continue
            try:
                status = os.stat(base, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if base.endswith(REASON):
                listing.reasons.add(name)
            elif stat.S_ISDIR(status.st_mode):
                self._enter(folder, base, above, listing)
            elif not stat.S_ISREG(status.st_mode):
                listing.skipped[name] = "no regular file; links are not followed"
            elif kind_of(base) not in KINDS:
                listing.skipped[name] = f"files of the kind .{kind_of(base)} cannot be read"
            else:
                listing.files.append(Found(name, _stamp(status)))

    def _enter(self, folder: int, base: str, above: str, listing: Listing) -> None:
        if above or base != NOTES:
            listing.skipped[above + base] = f"a folder; drop its files themselves (only {NOTES}/ is looked into)"
            return
        with suppress(FileNotFoundError):
            below = os.open(base, _FOLDER, dir_fd=folder)
            try:
                self._scan(below, f"{base}/", listing)
            finally:
                os.close(below)

    def _status(self, full_name: str) -> os.stat_result | None:
        folder_name, name = _split(full_name)
        with suppress(FileNotFoundError), self._open(folder_name) as folder:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        return None

    @contextmanager
    def _open(self, below: str) -> Iterator[int]:
        descriptor = os.open(self.path, _FOLDER)
        try:
            if below:
                inner = os.open(below, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


def upload_name(sent: str) -> str:
    """The name under which an upload is kept: the last part of what was sent, plain, visible, not too long."""
    base = re.split(r"[/\\]", unicodedata.normalize("NFC", clean_unicode(sent)))[-1]
    base = "".join(c for c in base if unicodedata.category(c)[0] != "C").strip().lstrip(". ") or "document"
    if base.endswith(REASON):
        base = f"{base.removesuffix(REASON)}-reason.txt"
    stem, dot, ending = base.rpartition(".")
    room = _LONGEST_NAME - len(f"{dot}{ending}".encode())
    if not stem or room < 1:
        return base.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{stem.encode()[:room].decode(errors='ignore')}{dot}{ending}"


def reason_name(name: str) -> str:
    """The name of the file that says why a file was set aside."""
    folder_name, base = _split(name)
    raw = os.fsencode(base)
    if len(raw) + len(REASON) > 255:
        base = f"{os.fsdecode(raw[:200])}-{hashlib.sha256(raw).hexdigest()[:8]}"
    return f"{folder_name}/{base}{REASON}" if folder_name else f"{base}{REASON}"


def _split(name: str) -> tuple[str, str]:
    folder_name, _, base = name.rpartition("/")
    if folder_name not in ("", NOTES) or base in ("", ".", ".."):
        raise OSError(errno.EINVAL, "no name of a file in the drop folder")
    return folder_name, base


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _write_whole(folder: int, name: str, data: bytes, *, replace: bool) -> None:
    """Write under a hidden name, then give it its own: readers never see a part, also after a crash."""
    passing = f"{PASSING}{secrets.token_hex(8)}"
    descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                         dir_fd=folder)  # fmt: skip
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(passing, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        _give_name(folder, passing, name)
        os.fsync(folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(passing, dir_fd=folder)
        raise


def _give_name(folder: int, passing: str, name: str) -> None:
    """Rename, but never over something. Errors: FileExistsError."""
    try:
        os.link(passing, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, "taken") from None
        os.rename(passing, name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    os.unlink(passing, dir_fd=folder)
