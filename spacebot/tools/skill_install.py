"""Install and remove skills: prepared beside, judged, then swapped in; a bad one never touches a good one.

`skills.lock.json` beside the skills says where each came from and what its files were, so that a later look can tell
what was changed and a namesake from elsewhere does not slip into its place.

Flow:    source -> Installer.install (lock, staging folder, validate, swap, record) -> names
Floor:   tools
Source:  tools spec 10.3 and 23 (skills)
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from spacebot.base.clock import Clock
from spacebot.base.errors import BusyError, NotFoundError, RefusedError
from spacebot.base.telemetry import kv
from spacebot.tools.skill_archive import MAX_FOUND, Archive, Budget, copy_folder, open_archive
from spacebot.tools.skill_text import FOLDER_NAME, SKILL_FILE, SkillError
from spacebot.tools.skills import Skill, read_skill_file, scan_skills, skill_folders

log = logging.getLogger(__name__)

LOCK_FILE = "skills.lock.json"
MAX_LOCK = 4 * 2**20  # bytes
_STAGING = ".staging-"


@dataclass(frozen=True, slots=True)
class Record:
    """What the lock file says of a skill.

    Args:
        source: `owner/repo`, `owner/repo/skill`, or the path that it was copied from.
        sha256: of all its files.
        files: SHA-256 of each file, by its path.
    """

    source: str
    installed_at: str
    sha256: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A skill that a source holds, not installed yet.

    Args:
        path: inside of the source, for people.
        put: writes its files into a new folder.
    """

    name: str
    path: str
    put: Callable[[Path, Budget], None]


class Installer:
    """Changes one folder of skills. All its methods block: call them from a thread.

    Args:
        root: the folder; made when it is missing.
    """

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        self._root = root
        self._clock = clock or Clock()

    def install(self, candidates: Sequence[Candidate], source: str, *, replace: bool = False) -> list[str]:
        """Install all of them, or none; returns their names.

        Args:
            source: goes into the lock file.
            replace: also what came from elsewhere, lies there without a record, or was changed since.

        Errors: SkillError names the one that cannot be used; RefusedError when one is in the way; BusyError.
        """
        if not candidates:
            raise NotFoundError(f"no {SKILL_FILE} is there")
        if len(candidates) > MAX_FOUND:
            raise RefusedError(f"there are {len(candidates)} skills, more than {MAX_FOUND}; name the one you want")
        with self._locked():
            staging = self._root / f"{_STAGING}{secrets.token_hex(6)}"
            staging.mkdir(mode=0o700)
            try:
                return self._install(candidates, source, staging, replace=replace)
            except OSError as error:
                raise RefusedError(f"cannot write to {str(self._root)!r}: {error.strerror}") from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _install(self, candidates: Sequence[Candidate], source: str, staging: Path, *, replace: bool) -> list[str]:
        budget, records, taken = Budget(), self.records(), set[str]()
        fresh: dict[str, Record] = {}
        titles = {s.name.casefold(): s.folder.relative_to(self._root).as_posix() for s in scan_skills(self._root, "")}
        for candidate in candidates:
            try:
                check_folder_name(candidate.name)
                if candidate.name.casefold() in taken:
                    raise SkillError("another one there has the same name")
                taken.add(candidate.name.casefold())
                candidate.put(staging / candidate.name, budget)
                title = validate(staging / candidate.name)
            except SkillError as error:
                raise SkillError(f"{candidate.path}: {error}") from error
            if (other := titles.setdefault(title.casefold(), candidate.name)) != candidate.name:
                raise SkillError(f"{candidate.path}: it calls itself {title!r}, which is the skill in {other!r}")
            if not replace:
                self._check_replaced(candidate.name, source, records.get(candidate.name))
            files = file_hashes(staging / candidate.name)
            fresh[candidate.name] = Record(source, self._clock.text(), tree_hash(files), files)
        self._swap(list(fresh), staging, {**records, **fresh})
        for name in fresh:
            log.info("skill installed", extra=kv(skill=name, source=source, folder=str(self._root)))
        return list(fresh)

    def _check_replaced(self, name: str, source: str, record: Record | None) -> None:
        folder = self._root / name
        twin = next((one for one in os.listdir(self._root) if one.casefold() == name.casefold() and one != name), None)
        if twin is not None:
            raise RefusedError(f"{twin!r} is installed already; remove it first")
        if not os.path.lexists(folder):
            return
        if record is None:
            raise RefusedError(f"{name!r} is there already and was put there by hand; use --replace to overwrite it")
        if _origin(record.source) != _origin(source):
            raise RefusedError(
                f"{name!r} is installed from {record.source!r}, not {source!r}; use --replace to overwrite it"
            )
        if state_of(folder, record) != "installed":
            raise RefusedError(f"{name!r} was changed since it was installed; use --replace to overwrite it")

    def _swap(self, names: Sequence[str], staging: Path, records: Mapping[str, Record]) -> None:
        """Put the new ones in place; when anything fails, the old ones are back."""
        moved: list[str] = []
        placed: list[str] = []
        try:
            for name in names:
                if os.path.lexists(self._root / name):
                    os.rename(self._root / name, staging / f"old {name}")
                    moved.append(name)
                os.rename(staging / name, self._root / name)
                placed.append(name)
            self._write_records(records)
        except BaseException:
            for name in placed:
                os.rename(self._root / name, staging / f"new {name}")
            for name in moved:
                os.rename(staging / f"old {name}", self._root / name)
            raise

    def remove(self, folder: Path) -> None:
        """Delete a skill of this folder, with its record.

        Errors: RefusedError when it is not below this folder; BusyError.
        """
        if folder == self._root or not folder.is_relative_to(self._root) or ".." in folder.parts:
            raise RefusedError(f"{str(folder)!r} is no skill of {str(self._root)!r}")
        with self._locked():
            key = folder.relative_to(self._root).as_posix()
            staging = self._root / f"{_STAGING}{secrets.token_hex(6)}"
            try:
                staging.mkdir(mode=0o700)
                os.rename(folder, staging / "gone")  # at once: nobody sees half of it
                self._write_records({name: record for name, record in self.records().items() if name != key})
            except OSError as error:
                raise RefusedError(f"cannot remove {str(folder)!r}: {error.strerror}") from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        log.info("skill removed", extra=kv(folder=str(folder)))

    def records(self) -> dict[str, Record]:
        """The lock file; empty when there is none. Errors: RefusedError when it cannot be read."""
        path = self._root / LOCK_FILE
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
                raw = file.read(MAX_LOCK + 1)
            if len(raw) > MAX_LOCK:
                raise ValueError
            return {name: _record(fields) for name, fields in json.loads(raw)["skills"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RefusedError(f"{str(path)!r} cannot be read; mend it or move it away") from error

    def _write_records(self, records: Mapping[str, Record]) -> None:
        path = self._root / LOCK_FILE
        passing = self._root / f"{_STAGING}{secrets.token_hex(6)}.json"
        skills = {name: asdict(record) for name, record in sorted(records.items())}
        try:
            with open(passing, "x", encoding="utf-8") as file:
                json.dump({"version": 1, "skills": skills}, file, indent=1, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(passing, path)
        finally:
            with suppress(FileNotFoundError):
                passing.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One program at a time; what a killed one left is removed."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RefusedError(f"{str(self._root)!r} cannot be used: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BusyError("skills are being installed there right now; try again in a moment") from error
            for entry in self._root.glob(f"{_STAGING}*"):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)


def check_folder_name(name: str) -> None:
    """Errors: SkillError."""
    if not FOLDER_NAME.fullmatch(name) or name.endswith(".") or name.casefold() == LOCK_FILE.casefold():
        raise SkillError(f"{name[:60]!r} is no name for a skill: letters, digits, dots, hyphens, at most 64")


def validate(folder: Path) -> str:
    """Look whether a folder is a whole skill; returns what it calls itself. Errors: SkillError."""
    text = read_skill_file(folder)
    if not text.description:
        raise SkillError(f"{SKILL_FILE} has no description in its header; nobody could know when to use it")
    if not text.body:
        raise SkillError(f"{SKILL_FILE} has no instructions")
    return text.name or folder.name


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every regular file below a folder; links count as what they are. Blocking."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISREG(mode):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
            found[name] = digest.hexdigest() + ("x" if mode & 0o111 else "")
        elif not stat.S_ISDIR(mode):
            found[name] = "not a file"
    return found


def tree_hash(files: Mapping[str, str]) -> str:
    """One SHA-256 for all files."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def state_of(folder: Path, record: Record | None) -> str:
    """`local` (put there by hand), `installed`, or `changed` since then. Blocking."""
    if record is None:
        return "local"
    try:
        return "installed" if tree_hash(file_hashes(folder)) == record.sha256 else "changed"
    except OSError:
        return "changed"


def described(skill: Skill, root: Path, records: Mapping[str, Record]) -> dict[str, Any]:
    """A skill with its places, where it came from, and whether it was changed since, for programs. Blocking.

    Args:
        root: the folder of skills that it lies in; `records` are those of its lock file.
    """
    record = records.get(skill.folder.relative_to(root).as_posix())
    return {
        "name": skill.name,
        "description": skill.description,
        "category": skill.category,
        "file_path": str(skill.file),
        "base_dir": str(skill.folder),
        "source": skill.source,
        "from": record and record.source,
        "installed_at": record and record.installed_at,
        "state": state_of(skill.folder, record),
    }


def _record(fields: Any) -> Record:
    if not isinstance(fields["files"], dict):
        raise TypeError
    return Record(str(fields["source"]), str(fields["installed_at"]), str(fields["sha256"]), fields["files"])


def _origin(source: str) -> str:
    """The repository of a source; for a path the whole of it."""
    return source.casefold() if source.startswith(("/", ".")) else "/".join(source.split("/")[:2]).casefold()


# Sources


def from_folder(folder: Path) -> list[Candidate]:
    """The skill in a folder, or those in the folders of it. Errors: NotFoundError, SkillError."""
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise NotFoundError(f"{str(folder)!r} is no folder")
    if (folder / SKILL_FILE).is_file():
        return [Candidate(_slug(folder.name), folder.name, lambda target, budget: copy_folder(folder, target, budget))]
    return [
        Candidate(
            below.name,
            below.relative_to(folder).as_posix(),
            lambda target, budget, source=below: copy_folder(source, target, budget),  # type: ignore[misc]
        )
        for below in skill_folders(folder)
    ]


@contextmanager
def from_archive(path: Path, *, wanted: str | None = None, fallback: str | None = None) -> Iterator[list[Candidate]]:
    """The skills of a zip, while the block runs.

    Args:
        wanted: only the one at this path, or the only one in a folder of this name.
        fallback: name of a skill that lies at the very top; None takes that of the folder or the file.

    Errors: SkillError, NotFoundError.
    """
    with open_archive(path) as archive:
        folders = archive.skills(inner=wanted is not None)
        if not folders:
            raise NotFoundError(f"no {SKILL_FILE} is in the archive")
        fallback = fallback or archive.top or path.stem
        if wanted is not None:
            folders = [_choose(archive, folders, wanted)]
        yield [
            Candidate(
                _slug(folder.name if len(folder.parts) > _depth(archive) else fallback),
                str(PurePosixPath(*folder.parts[_depth(archive) :])) if folder.parts[_depth(archive) :] else fallback,
                lambda target, budget, source=folder: archive.extract(source, target, budget),  # type: ignore[misc]
            )
            for folder in folders
        ]


def _depth(archive: Archive) -> int:
    return 0 if archive.top is None else 1


def _choose(archive: Archive, folders: Sequence[PurePosixPath], wanted: str) -> PurePosixPath:
    top = archive.top
    for place in (PurePosixPath(wanted), PurePosixPath(top, wanted) if top else PurePosixPath(wanted)):
        if place in folders:
            return place
    named = [folder for folder in folders if folder.name.casefold() == PurePosixPath(wanted).name.casefold()]
    if "/" not in wanted and len(named) == 1:
        return named[0]
    names = ", ".join(sorted({folder.name for folder in folders})[:30])
    if len(named) > 1 and "/" not in wanted:
        raise RefusedError(
            f"there are {len(named)} skills {wanted!r}; name the path: {', '.join(map(str, named))[:500]}"
        )
    raise NotFoundError(f"there is no skill {wanted[:80]!r}; there are: {names}")


def _slug(name: str) -> str:
    """A name that a folder of skills may have, near to this one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or name
