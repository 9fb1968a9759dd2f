"""Restoring a backup: judged and unpacked beside the instance, exchanged at a start, finished whenever it was cut off.

Nothing that an archive says of itself is believed. It is unpacked into a folder of its own while its sizes are counted
and its checksums compared; its databases are looked through. Only when all of that is right does the file `ready`
appear, last and at once. From then on the next start exchanges the state: every step is a rename that can be repeated,
so a program that is killed in the middle goes on from there. What was there before is kept aside for a while.

Flow:    stage_backup -> restore-ID/new, ready -> finish_restore (at a start, under the instance's lock) -> swapped
Floor:   storage; may import base
Source:  control spec 4.2, 8.1.29
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from spacebot import __version__
from spacebot.base.clock import Clock
from spacebot.base.errors import RefusedError, SpacebotError, StorageError
from spacebot.base.ids import new_uuid, parse_agent_id
from spacebot.base.paths import InstancePaths
from spacebot.base.versions import is_newer
from spacebot.storage.backup import (
    CHUNK,
    CONFIG,
    DATABASE,
    FORMAT,
    MANIFEST,
    FileEntry,
    Manifest,
    check_database,
    clear_leftovers,
    held,
)
from spacebot.storage.backup import PREFIX as COPIES
from spacebot.storage.database import Error, connect
from spacebot.storage.secrets import STORE_FILE

PREFIX = "restore-"
READY = "ready"  # the archive is unpacked and right: the exchange is due
SWAPPED = "swapped"  # the exchange is done; `old` is kept aside
MAX_ENTRIES = 500_000
MAX_DIRECTORY = 256 << 20  # bytes of an archive's list of entries
MAX_MANIFEST = 128 << 20
MAX_TOTAL = 1 << 40  # bytes, unpacked
HEADROOM = 64 << 20  # bytes that stay free on the disk
KEEP_S = 86_400.0  # what was there before is kept at least so long
FOLDERS = ("agents", "skills", "prompts")
_DRIVE = re.compile(r"[A-Za-z]:")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A backup that is unpacked and found right."""

    folder: Path
    manifest: Manifest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """An exchange that was done: what was there before lies in `old`."""

    old: Path
    created_at: str  # of the backup
    files: int


def stage_backup(
    paths: InstancePaths,
    archive: IO[bytes],
    *,
    migrations: Path,
    check_config: Callable[[Path], None] = lambda path: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Staged:
    """Judge an archive and unpack it beside the instance; blocking. Nothing that is in use changes.

    A backup that was staged before and not taken over gives way to this one.

    Args:
        migrations: folder of this program's migrations, to know a newer database by.
        check_config: refuses a configuration that the program could not start with.
        progress: files unpacked so far, and all.

    Errors: RefusedError when the archive is not right, with the reason; StorageError for the disk.
    """
    paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_other_disks(paths)
    _refuse_half_done(paths)
    clear_leftovers(paths.root, PREFIX, keep=_is_kept)
    folder = paths.root / f"{PREFIX}{new_uuid()}"
    try:
        folder.mkdir(mode=0o700)
        with held(folder):
            staged = _unpack(folder, archive, migrations, check_config, progress)
            for pending in _with_word(paths.root, READY):
                shutil.rmtree(pending)
            os.sync()  # everything is on disk before the word that it is
            _write_word(folder / READY, {"created_at": staged.manifest.created_at, "files": len(staged.manifest.files)})
            return staged
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(
            f"the backup could not be unpacked ({error.strerror or error}); make room on the disk"
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def finish_restore(paths: InstancePaths, clock: Clock | None = None) -> Restored | None:
    """Exchange the state if a backup waits for it; the caller holds the instance's lock and has nothing open.

    Returns what was done, None when nothing waited.

    Errors: StorageError when the exchange cannot go on, with what to do.
    """
    waiting = sorted(_with_word(paths.root, READY))
    if not waiting:
        return None
    folder = waiting[-1]
    try:
        _exchange(paths, folder)
        word = _read_word(folder / READY)
        moment = (clock or Clock()).text()
        _write_word(folder / SWAPPED, word | {"restored_at": moment})
        (folder / READY).unlink()
        _sync_folder(folder)
    except OSError as error:
        raise StorageError(
            f"the backup in {folder} cannot take its place ({error.strerror}: {error.filename}); make the instance "
            f"writable and start again: it goes on from here. To give it up, remove {READY!r} in that folder; what was "
            "moved aside is in 'old' beside it"
        ) from error
    return Restored(old=folder / "old", created_at=str(word.get("created_at")), files=int(word.get("files", 0)))


def pending_restore(root: Path) -> Path | None:
    """The folder of a backup that waits for the next start."""
    return next(iter(sorted(_with_word(root, READY))), None)


def old_states(root: Path) -> list[Path]:
    """Folders that hold what was there before a restore."""
    return sorted(_with_word(root, SWAPPED))


def forget_old_states(paths: InstancePaths, *, now: float) -> list[Path]:
    """After a good start: remove what was kept aside for longer than a day, and what killed backups left. Blocking;
    never fails.

    Args:
        now: seconds since 1970.
    """
    removed = []
    clear_leftovers(paths.root, COPIES)
    clear_leftovers(paths.root, PREFIX, keep=_is_kept)
    for folder in old_states(paths.root):
        with suppress(OSError):
            if now - (folder / SWAPPED).stat().st_mtime >= KEEP_S:
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


# The exchange


def _refuse_half_done(paths: InstancePaths) -> None:
    """What an exchange has moved aside must not go with the backup that gives way. Errors: RefusedError."""
    for folder in _with_word(paths.root, READY):
        if _has_begun(folder) and not (folder / SWAPPED).exists():
            raise RefusedError(
                f"a restore is half done in {folder}: start spacebot once, which finishes it, or move back by hand "
                f"what lies in 'old' there and remove {READY!r}; then take over this backup"
            )


def _refuse_other_disks(paths: InstancePaths) -> None:
    """What is exchanged by renames must lie on one disk. Errors: RefusedError."""
    for place in (*(paths.root / name for name in FOLDERS), *paths.root.glob("agents/*/workspace")):
        is_link = place.is_symlink() and place.name != "workspace"
        if is_link or (place.is_dir() and not place.is_symlink() and os.path.ismount(place)):
            raise RefusedError(
                f"{place} is a link or a disk of its own, so a restore cannot exchange it; unpack the backup (a zip) "
                "there by hand while the program is stopped"
            )


def _exchange(paths: InstancePaths, folder: Path) -> None:
    new, old = folder / "new", folder / "old"
    old.mkdir(exist_ok=True, mode=0o700)
    if (new / "agents").exists():
        _move_aside(paths.root / "agents", old / "agents")
        for agent in sorted((new / "agents").iterdir()):
            # A backup without workspaces leaves those that are there as they are.
            kept, place = old / "agents" / agent.name / "workspace", agent / "workspace"
            if os.path.lexists(kept) and not place.exists():
                kept.rename(place)
        (new / "agents").rename(paths.root / "agents")
    if (new / STORE_FILE).exists():
        for companion in ("-wal", "-shm", "-journal"):  # of the old store: they must not be taken for the new one's
            _move_aside(paths.root / f"{STORE_FILE}{companion}", old / f"{STORE_FILE}{companion}")
    if (new / CONFIG).exists():
        _exchange_config(paths.config, new / CONFIG, old / CONFIG)
    for name in (STORE_FILE, "skills", "prompts"):
        if (new / name).exists():
            _move_aside(paths.root / name, old / name)
            (new / name).rename(paths.root / name)
    for touched in (new, old, paths.root):
        _sync_folder(touched)


def _exchange_config(place: Path, new: Path, old: Path) -> None:
    """The file may be mounted into a container by itself: then only its content can be exchanged."""
    try:
        _move_aside(place, old)
        new.rename(place)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        if not old.exists():
            shutil.copyfile(place, old)
        shutil.copyfile(new, place)
        new.unlink()


def _move_aside(place: Path, aside: Path) -> None:
    """Move what stands in the way; if something of that name was moved before, somebody made it anew since."""
    if os.path.lexists(place):
        place.rename(aside if not os.path.lexists(aside) else aside.with_name(f"{aside.name}.{new_uuid()}"))


def _with_word(root: Path, word: str) -> Iterator[Path]:
    for folder in root.glob(f"{PREFIX}*"):
        if not folder.is_symlink() and (folder / word).is_file():
            yield folder


def _is_kept(folder: Path) -> bool:
    """Whether a folder is more than what a killed program left: where an exchange began, it may hold the only copy."""
    return (folder / READY).exists() or (folder / SWAPPED).exists() or _has_begun(folder)


def _has_begun(folder: Path) -> bool:
    old = folder / "old"
    return old.is_dir() and any(old.iterdir())


def _write_word(path: Path, fields: dict[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".new")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    _sync_folder(path.parent)


def _read_word(path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        fields = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(fields, dict):
            return fields
    return {}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The archive


def _unpack(
    folder: Path,
    file: IO[bytes],
    migrations: Path,
    check_config: Callable[[Path], None],
    progress: Callable[[int, int], None],
) -> Staged:
    new = folder / "new"
    new.mkdir(mode=0o700)
    with _open_zip(file) as archive:
        infos = _judge_entries(archive)
        manifest = _read_manifest(archive, infos)
        _compare(manifest, infos)
        total = sum(entry.size for entry in manifest.files)
        if total > min(MAX_TOTAL, shutil.disk_usage(folder).free - HEADROOM):
            raise RefusedError(f"the backup needs {total >> 20} MiB, which the disk of {folder.parent} has not free")
        for number, entry in enumerate(manifest.files):
            _unpack_file(archive, infos[entry.path], entry, new)
            progress(number + 1, len(manifest.files))
    newest = _newest(migrations)
    for database in sorted(new.glob(f"agents/*/data/{DATABASE}")):
        _check_schema(database, newest)
    if (new / STORE_FILE).exists():
        _check_schema(new / STORE_FILE, 0)
    if (new / CONFIG).exists():
        try:
            check_config(new / CONFIG)
        except SpacebotError as error:
            raise RefusedError(f"the configuration in the backup is not right: {error}") from error
    return Staged(folder=folder, manifest=manifest, size=total)


@contextmanager
def _open_zip(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    try:
        _measure_directory(file)
        with zipfile.ZipFile(file) as archive:
            yield archive
    # What the library raises for damaged and for made-up archives.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError) as error:
        raise RefusedError(f"the archive is damaged, or no backup ({error}); take another copy of it") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning of the file
            raise
        raise RefusedError("the archive is damaged, or no backup; take another copy of it") from error
    except RuntimeError as error:  # a password, or a way of packing, that ours never have
        raise RefusedError(f"the archive is no backup of this program ({error})") from error


def _measure_directory(file: IO[bytes]) -> None:
    """Refuse a list of entries that would fill the memory, before it is read (PKWARE APPNOTE 4.3.14 to 4.3.16)."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if not end:
        raise RefusedError("the file is no zip archive, or its end is missing; take another copy of the backup")
    if end[zipfile._ECD_SIZE] > MAX_DIRECTORY or end[zipfile._ECD_ENTRIES_TOTAL] > MAX_ENTRIES:  # type: ignore[attr-defined]
        raise RefusedError(f"the archive has too many entries; a backup has at most {MAX_ENTRIES}")
    file.seek(0)


def _judge_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if len(infos) >= MAX_ENTRIES:
            raise RefusedError(f"the archive has too many entries; a backup has at most {MAX_ENTRIES}")
        name, mode = info.filename, info.external_attr >> 16
        if info.orig_filename != name or name in infos:
            raise RefusedError(f"the archive holds {name[:100]!r} twice, or under two names")
        if info.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise RefusedError(f"the archive holds {name[:100]!r}, which is no plain file; a backup has only those")
        if info.flag_bits & 0x1:
            raise RefusedError("the archive is encrypted; a backup of this program is not")
        if name != MANIFEST:
            _check_path(name)
        infos[name] = info
    _check_nesting(infos)
    return infos


def _check_path(name: str) -> None:
    """Only what a backup has, and no way out. Errors: RefusedError."""
    shown = repr(name[:100])
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or _DRIVE.match(name) or not name.isprintable():
        raise RefusedError(f"the path {shown} leads elsewhere; this is no backup of this program")
    if any(len(part.encode()) > 255 for part in parts) or len(name) > 4000 or len(parts) > 200:
        raise RefusedError(f"the path {shown} is too long")
    if len(parts) == 1 and name in (CONFIG, STORE_FILE):
        return
    if len(parts) == 1 or parts[0] not in FOLDERS:
        raise RefusedError(f"{shown} has no place in an instance; this is no backup of this program")
    if parts[0] == "agents":
        if len(parts) < 3:
            raise RefusedError(f"{shown} has no place in an instance; this is no backup of this program")
        try:
            parse_agent_id(parts[1])
        except SpacebotError as error:
            raise RefusedError(f"{shown} is in the folder of no agent: {error}") from error
        if parts[2] == "data" and parts[-1].startswith(DATABASE) and name != f"agents/{parts[1]}/data/{DATABASE}":
            raise RefusedError(f"{shown} would be taken for a part of a database; this is no backup of this program")


def _check_nesting(names: Iterable[str]) -> None:
    files = set(names)
    for name in files:
        for above in PurePosixPath(name).parents:
            if str(above) in files:
                raise RefusedError(f"{str(above)[:100]!r} is a file and a folder in the archive")


def _read_manifest(archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> Manifest:
    info = infos.pop(MANIFEST, None)
    if info is None:
        raise RefusedError("the archive has no manifest.json; it is no backup of this program, or only a part of one")
    if info.file_size > MAX_MANIFEST:
        raise RefusedError("the archive's manifest.json is too large")
    try:
        fields = json.loads(_read(archive, info))
        if fields["format"] != FORMAT and isinstance(fields["format"], int):
            made_by = str(fields.get("version"))[:40]
            raise RefusedError(
                f"the backup has a form that Spacebot {made_by} knows and {__version__} does not; use that"
            )
        files = tuple(FileEntry(**entry) for entry in fields.pop("files"))
        manifest = Manifest(**fields, files=files)
        _check_types(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError(f"the archive's manifest.json is not right ({type(error).__name__})") from error
    if is_newer(manifest.version, __version__):
        raise RefusedError(
            f"the backup was made by Spacebot {manifest.version[:40]}, which is newer than this program "
            f"({__version__}); update the program first"
        )
    return manifest


def _check_types(manifest: Manifest) -> None:
    """Errors: ValueError."""
    texts = (manifest.version, manifest.created_at)
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest.schemas, dict):
        raise ValueError("types")
    for entry in manifest.files:
        is_right = isinstance(entry.path, str) and type(entry.size) is int and type(entry.executable) is bool
        if not is_right or not isinstance(entry.sha256, str) or not _HASH.fullmatch(entry.sha256):
            raise ValueError("entry")


def _compare(manifest: Manifest, infos: dict[str, zipfile.ZipInfo]) -> None:
    listed = {entry.path for entry in manifest.files}
    if len(listed) != len(manifest.files) or listed != infos.keys():
        extra = next(iter(listed ^ infos.keys()), "")
        raise RefusedError(f"the archive and its list of files differ, such as in {extra[:100]!r}; take another copy")
    if not listed:
        raise RefusedError("the backup is empty")
    for entry in manifest.files:
        if entry.size != infos[entry.path].file_size:
            raise RefusedError(f"{entry.path[:100]!r} has another size than the list of files says; take another copy")


def _unpack_file(archive: zipfile.ZipFile, info: zipfile.ZipInfo, entry: FileEntry, new: Path) -> None:
    target = new / entry.path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, size = hashlib.sha256(), 0
    mode = 0o700 if entry.executable else 0o600
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with archive.open(info) as source, open(os.open(target, flags, mode), "wb") as file:
        while piece := source.read(CHUNK):
            size += len(piece)
            if size > entry.size:
                raise RefusedError(f"{entry.path[:100]!r} is larger than the archive says; it is not to be trusted")
            digest.update(piece)
            file.write(piece)
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise RefusedError(f"{entry.path[:100]!r} is damaged: its checksum is another; take another copy of the backup")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as source:
        raw = source.read(MAX_MANIFEST + 1)
    if len(raw) > MAX_MANIFEST:
        raise RefusedError("the archive's manifest.json is too large")
    return raw


def _newest(migrations: Path) -> int:
    return max((int(file.name[:4]) for file in migrations.glob("[0-9][0-9][0-9][0-9]_*.sql")), default=0)


def _check_schema(database: Path, newest: int) -> None:
    named = Path(*database.parts[-4:])
    try:
        connection = connect(database)
        try:
            schema = check_database(connection, named)
            if newest and schema > newest:
                raise RefusedError(
                    f"the database {str(named)!r} is newer than this program (migration {schema}, known are {newest}); "
                    "update the program first"
                )
            connection.execute("PRAGMA journal_mode = DELETE")  # no companions beside it
        finally:
            connection.close()
    except (Error, StorageError) as error:
        raise RefusedError(f"the database {str(named)!r} in the backup is damaged ({error})") from error
