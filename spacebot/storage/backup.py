"""Backups: one zip of an instance, consistent while the program writes.

Each database is copied as it was at one moment, through SQLite's own means, so accepted messages are whole up to that
moment; then come the files. What can be made again (search tables) or belongs to one machine (logs, caches, browser
profiles, keys) stays out. The list of all files with their checksums is the last entry, because it is known last.

Flow:    write_backup -> copies of databases -> files -> manifest -> whatever takes the bytes
Floor:   storage; may import base
Source:  control spec 4.2, 8.1.29; the other way is `storage/restore.py`
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

from spacebot import __version__
from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, StorageError
from spacebot.base.ids import new_uuid
from spacebot.base.paths import InstancePaths
from spacebot.base.redaction import find_secret
from spacebot.storage.database import Error, connect
from spacebot.storage.ignored import Rules, is_ignored
from spacebot.storage.secrets import STORE_FILE

FORMAT = 1  # of the archive
MANIFEST = "manifest.json"
CONFIG = "config.toml"  # in the archive, whatever the file's own name is
DATABASE = "spacebot.db"
PREFIX = "backup-"  # of the folder that holds the copies of databases while they are packed
CHUNK = 1 << 20  # bytes
LEVEL = 3  # of deflate; 6 takes twice the time for some percent
STEP_PAGES = 2000  # of a database at a time, so that a cancelled backup ends soon
MAX_IGNORE = 1 << 20  # bytes of a .gitignore
# Beside the database in `data/`: made again, passing, or worth nothing elsewhere.
DERIVED = frozenset({"lancedb", "logs", "incoming", "browsers", "opencode", "screenshots"})
NEVER = frozenset({".git"})


class Sink(Protocol):
    """Takes the archive's bytes in order; need not be able to seek."""

    def write(self, data: bytes, /) -> int:
        """Take some bytes. Errors: OSError ends the backup."""
        ...

    def flush(self) -> None:
        """All that came so far may be used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of an archive: its path there, bytes, SHA-256 in hex, and whether its owner may execute it."""

    path: str
    size: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive says of itself.

    Args:
        version: of the program that made it.
        schemas: newest migration of each agent's database.
        has_workspaces: whether the files of workers are in it.
    """

    format: int
    version: str
    created_at: str
    schemas: dict[str, int]
    has_workspaces: bool
    has_secrets: bool
    files: tuple[FileEntry, ...]


@dataclass(slots=True)
class BackupReport:
    """What a backup holds. `notes` are for the owner: what was left out, what is readable in it."""

    files: int = 0
    size: int = 0  # bytes before compression
    agents: list[str] = field(default_factory=list)
    has_secrets: bool = False
    notes: list[str] = field(default_factory=list)


def write_backup(
    paths: InstancePaths,
    out: Sink,
    *,
    with_workspace: bool = True,
    with_secrets: bool = False,
    clock: Clock | None = None,
    progress: Callable[[BackupReport], None] = lambda report: None,
) -> BackupReport:
    """Write an archive of the instance; blocking, in memory never more than a piece of a file.

    Args:
        with_secrets: also the store of secrets, sealed; the key that opens it is never in an archive.
        progress: called after each file and each step of a database; what it raises ends the backup.

    Errors: RefusedError when there is nothing to keep; StorageError for a damaged database, a full disk, a file
        that cannot be read.
    """
    clear_leftovers(paths.root, PREFIX)
    try:
        with (
            _workroom(paths.root) as room,
            zipfile.ZipFile(cast("IO[bytes]", _Unseekable(out)), "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            return _Writer(paths, archive, room, clock or Clock(), progress).write(with_workspace, with_secrets)
    except OSError as error:
        raise StorageError(
            f"the backup could not be written ({error.strerror or error}); make room on the disk, or name another place"
        ) from error


class _Writer:
    def __init__(
        self,
        paths: InstancePaths,
        archive: zipfile.ZipFile,
        room: Path,
        clock: Clock,
        progress: Callable[[BackupReport], None],
    ) -> None:
        self._paths = paths
        self._archive = archive
        self._room = room
        self._clock = clock
        self._progress = progress
        self._entries: list[FileEntry] = []
        self._schemas: dict[str, int] = {}
        self._links = 0
        self._vanished = 0
        self._unreadable: list[str] = []
        self.report = BackupReport()

    def write(self, with_workspace: bool, with_secrets: bool) -> BackupReport:
        root, report = self._paths.root, self.report
        moment = self._clock.text()
        folders = sorted(folder for folder in _folders(root / "agents") if not folder.is_symlink())
        if not folders and not self._paths.config.exists():
            raise RefusedError(f"there is nothing in {root} to keep: no configuration, no agents")
        # Databases first: a file that a row names is on disk before the row, and goes after it.
        for folder in folders:
            self._add_database(folder)
        if with_secrets and (root / STORE_FILE).exists():
            self._add_copy(root / STORE_FILE, STORE_FILE)
            report.has_secrets = True
        self._add_config()
        for folder in folders:
            report.agents.append(folder.name)
            self._add_agent(folder, with_workspace)
        for name in ("skills", "prompts"):
            self._add_folder(root / name, name)
        self._add_notes(with_workspace)
        manifest = Manifest(
            format=FORMAT,
            version=__version__,
            created_at=moment,
            schemas=self._schemas,
            has_workspaces=with_workspace,
            has_secrets=report.has_secrets,
            files=tuple(self._entries),
        )
        self._archive.writestr(_info(MANIFEST), json.dumps(asdict(manifest), indent=1))
        return report

    def _add_database(self, folder: Path) -> None:
        database = folder / "data" / DATABASE
        if database.is_symlink() or not database.is_file():
            return
        name = f"agents/{folder.name}/data/{DATABASE}"
        self._schemas[folder.name] = self._add_copy(database, name)

    def _add_copy(self, database: Path, name: str) -> int:
        """Copy a database as it is at one moment and pack the copy; returns its newest migration, 0 without any."""
        copy = self._room / new_uuid()
        schema = copy_database(database, copy, on_step=lambda: self._progress(self.report))
        with copy.open("rb") as file:
            copy.unlink()  # nothing of it stays, however this ends
            self._pack(file, name, os.fstat(file.fileno()))
        return schema

    def _add_config(self) -> None:
        with suppress(FileNotFoundError), self._paths.config.open("rb") as file:
            if find_secret(file.read(CHUNK).decode(errors="replace")):
                self.report.notes.append(
                    f"{self._paths.config.name} holds keys in plain text, so the backup does too; "
                    "spacebot secret set keeps them apart"
                )
            file.seek(0)
            self._pack(file, CONFIG, os.fstat(file.fileno()))
            file.seek(0)
            self._note_workspaces(file)

    def _note_workspaces(self, config: IO[bytes]) -> None:
        """Folders that the owner keeps elsewhere are his own to keep."""
        agents: object = None
        with suppress(ValueError):
            agents = tomllib.load(config).get("agents")
        for agent in agents if isinstance(agents, list) else ():
            if isinstance(agent, dict) and agent.get("workspace"):
                self.report.notes.append(f"the workspace {str(agent['workspace'])[:200]!r} lies elsewhere: not in it")

    def _add_agent(self, folder: Path, with_workspace: bool) -> None:
        name = f"agents/{folder.name}"
        for child in _sorted(folder):
            if child.name == "data":
                for inner in _sorted(child):
                    if inner.name not in DERIVED and not inner.name.startswith(DATABASE):
                        self._add(inner, f"{name}/data/{inner.name}")
            elif child.name == "workspace":
                if with_workspace:
                    self._add_folder(child, f"{name}/workspace", honours_git=True)
            else:
                self._add(child, f"{name}/{child.name}")

    def _add(self, path: Path, name: str) -> None:
        if path.is_dir() and not path.is_symlink():
            self._add_folder(path, name)
            return
        with suppress(FileNotFoundError):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._add_file(path.name, folder, name)
            finally:
                os.close(folder)

    def _add_folder(self, folder: Path, name: str, *, honours_git: bool = False) -> None:
        """Pack a tree. Folders are held open while they are walked: none can be exchanged for a link meanwhile."""
        if folder.is_symlink() or not folder.is_dir():
            return
        rules: dict[tuple[str, ...], Rules] = {}
        for here, inner, files, descriptor in os.fwalk(folder, onerror=self._note_unreadable):
            at = Path(here).relative_to(folder).parts
            if honours_git and ".gitignore" in files and (text := _read_rules(descriptor)) is not None:
                rules[at] = Rules(text)
            above = [(n, rules[at[:n]]) for n in range(len(at) + 1) if at[:n] in rules]
            kept = [
                child
                for child in inner
                if not (honours_git and (child in NEVER or is_ignored(above, (*at, child), is_folder=True)))
            ]
            self._links += sum(_is_link(child, descriptor) for child in kept)
            inner[:] = sorted(kept)
            for file in sorted(files):
                if not (honours_git and is_ignored(above, (*at, file), is_folder=False)):
                    self._add_file(file, descriptor, "/".join((name, *at, file)))

    def _add_file(self, name: str, folder: int, inside: str) -> None:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                self._links += stat.S_ISLNK(found.st_mode)
                return
            # Not blocking: it may have become a pipe meanwhile.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            self._vanished += 1
            return
        except PermissionError:
            self._unreadable.append(inside)
            return
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode):
                self._pack(file, inside, found)

    def _pack(self, file: IO[bytes], name: str, found: os.stat_result) -> None:
        """Pack at most as many bytes as a file has now: one that grows must not keep us for ever."""
        if not _is_portable(name):
            self.report.notes.append(f"left out, its name cannot be kept: {name[:100]!r}")
            return
        digest, size = hashlib.sha256(), 0
        with self._archive.open(_info(name, found), "w", force_zip64=True) as target:
            while size < found.st_size and (piece := file.read(min(CHUNK, found.st_size - size))):
                digest.update(piece)
                target.write(piece)
                size += len(piece)
        executable = bool(found.st_mode & stat.S_IXUSR)
        self._entries.append(FileEntry(path=name, size=size, sha256=digest.hexdigest(), executable=executable))
        self.report.files += 1
        self.report.size += size
        self._progress(self.report)

    def _note_unreadable(self, error: OSError) -> None:
        self._unreadable.append(str(error.filename))

    def _add_notes(self, with_workspace: bool) -> None:
        notes = self.report.notes
        if not with_workspace:
            notes.append("the workspaces are not in it; a restore leaves those that are there as they are")
        if self.report.has_secrets:
            notes.append(
                f"{STORE_FILE} is in it, sealed; the key is not: keep secret.key, or the passphrase, in another place"
            )
        elif (self._paths.root / STORE_FILE).exists():
            notes.append("the stored secrets are not in it; --with-secrets adds them, sealed")
        if self._paths.login.exists():
            notes.append("the login of spacebot auth login is not in it; sign in again after a restore")
        if self._unreadable:
            notes.append(
                f"{len(self._unreadable)} could not be read and are not in it, such as {self._unreadable[0]!r}"
            )
        if self._links:
            notes.append(f"{self._links} symbolic links were left out")
        if self._vanished:
            notes.append(f"{self._vanished} files went away while the backup was made")


def copy_database(source: Path, target: Path, *, on_step: Callable[[], None] = lambda: None) -> int:
    """Copy a database as it is at this moment, while others go on writing; returns its newest migration, else 0.

    Errors: StorageError when it cannot be read, or is damaged; what `on_step` raises.
    """
    try:
        connection, copy = connect(source), connect(target)
        try:
            # A read transaction of our own holds the moment; without one, every write of others begins the copy anew.
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            connection.backup(copy, pages=STEP_PAGES, progress=lambda *_: on_step())
            connection.execute("ROLLBACK")
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without companions
            return check_database(copy, source)
        finally:
            copy.close()
            connection.close()
    except Error as error:
        raise StorageError(
            f"database {str(source)!r} cannot be copied ({error}); spacebot doctor tells more"
        ) from error


def check_database(connection: object, named: Path) -> int:
    """Look whether a database is whole; returns its newest migration, 0 when it has none.

    Errors: StorageError when it is damaged.
    """
    ask = connection.execute  # type: ignore[attr-defined]
    if (found := ask("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise StorageError(f"database {str(named)!r} is damaged ({found}); restore an older backup of it")
    if ask("SELECT count(*) FROM sqlite_schema WHERE name = 'schema_migrations'").fetchone()[0] == 0:
        return 0
    return int(ask("SELECT coalesce(max(number), 0) FROM schema_migrations").fetchone()[0])


def clear_leftovers(root: Path, prefix: str, *, keep: Callable[[Path], bool] = lambda folder: False) -> None:
    """Remove working folders of processes that died."""
    with suppress(OSError):
        for folder in root.glob(f"{prefix}*"):
            if folder.is_dir() and not folder.is_symlink() and not keep(folder):
                with suppress(OSError), held(folder):
                    shutil.rmtree(folder)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which goes with the process. Errors: BlockingIOError when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _workroom(root: Path) -> Iterator[Path]:
    room = root / f"{PREFIX}{new_uuid()}"
    room.mkdir(mode=0o700)
    try:
        with held(room):
            yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


class _Unseekable:
    """Only what a zip needs that is written front to back; with `tell` it would want to seek."""

    def __init__(self, out: Sink) -> None:
        self._out = out

    def write(self, data: bytes, /) -> int:
        """Pass bytes on."""
        return self._out.write(data)

    def flush(self) -> None:
        """Pass the wish on."""
        self._out.flush()


def _info(name: str, found: os.stat_result | None = None) -> zipfile.ZipInfo:
    moment = time.gmtime(found.st_mtime if found is not None else time.time())[:6]
    info = zipfile.ZipInfo(name, max((1980, 1, 1, 0, 0, 0), min(moment, (2107, 12, 31, 23, 59, 58))))
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = LEVEL  # type: ignore[attr-defined]
    may_execute = found is not None and found.st_mode & stat.S_IXUSR
    info.external_attr = (stat.S_IFREG | (0o700 if may_execute else 0o600)) << 16
    return info


def _is_portable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\\" not in name and name.isprintable() and len(name) < 4000


def _is_link(name: str, folder: int) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _read_rules(folder: int) -> str | None:
    with suppress(OSError):
        descriptor = os.open(".gitignore", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file.read(MAX_IGNORE).decode(errors="replace")
    return None


def _folders(path: Path) -> Iterator[Path]:
    return (child for child in _sorted(path) if child.is_dir())


def _sorted(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
