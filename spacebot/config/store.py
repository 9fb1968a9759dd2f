"""The live snapshot of the configuration, and the watch over the files that people edit.

Readers ask `ConfigStore.current` at use time and keep nothing. The watcher takes events of the system only as a
sign to look: what changed is decided by comparing contents, so a file that appears later, an editor's rename and a
save without a change all come out right.

Flow:    events -> scan -> callbacks by kind of file -> ConfigStore.reload -> listeners
Floor:   config; the only importer of watchfiles
Source:  control spec 1.11
"""

import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

# The library's asynchronous face would bring anyio's threads and a timer.
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from spacebot.base.errors import SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.base.telemetry import kv
from spacebot.config.load import LoadedConfig, load_config
from spacebot.config.model import Config
from spacebot.config.tables import RESTART, Table

log = logging.getLogger(__name__)

STEP_MS = 250  # the library looks at its queue this often; also the silence that ends a burst of events
DEBOUNCE_MS = 2000  # longest burst; control spec 1.11
RETRY_S = 30.0  # after the system refused to watch
SKILL_FILE = "SKILL.md"
SKILL_LEVELS = 4
SKILL_FOLDERS = 1000  # watched at most: each costs one of the system's watches
WATCHED_BYTES = 8_000_000  # of a file; a change behind that shows in its size or time of the next change
EDITED = frozenset({".md", ".toml"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadReport:
    """What a reload did. `error` is set when the file is broken and the old values stay."""

    changed: bool
    error: str | None = None
    warnings: tuple[str, ...] = ()
    requires_restart: tuple[str, ...] = ()  # keys whose new value counts from the next start on


class ConfigStore:
    """The configuration as it is now.

    Args:
        load: reads the file again; raises ConfigError when it is broken.
        loaded: what the program starts with.
    """

    def __init__(self, load: Callable[[], LoadedConfig], loaded: LoadedConfig) -> None:
        self._load = load
        self._loaded = loaded
        self._at_start = loaded.config
        self._turn = trio.Lock()  # readings end in the order in which they began
        self._limiter = trio.CapacityLimiter(1)
        self._listeners: list[Callable[[ReloadReport], None]] = []

    @classmethod
    def open(cls, path: Path, *, resolve_secret: Callable[[str], str | None] = lambda name: None) -> "ConfigStore":
        """Read a file for the first time.

        Errors: ConfigError.
        """

        def load() -> LoadedConfig:
            return load_config(path, resolve_secret=resolve_secret)

        return cls(load, load())

    @property
    def current(self) -> Config:
        """The values that count now."""
        return self._loaded.config

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the owner should know about the file."""
        return self._loaded.warnings

    def listen(self, callback: Callable[[ReloadReport], None]) -> None:
        """Have a callback called after each reload that changed something or failed; it must not block."""
        self._listeners.append(callback)

    @property
    def loaded(self) -> LoadedConfig:
        """The values that count now, with where each comes from."""
        return self._loaded

    async def refresh(self) -> ReloadReport:
        """Read the file again in a thread: a large one takes seconds. See `reload`."""
        async with self._turn:
            return self._take(await trio.to_thread.run_sync(self._read, limiter=self._limiter))

    def reload(self) -> ReloadReport:
        """Read the file again, here and now. A broken file changes nothing and is told in the report."""
        return self._take(self._read())

    def _read(self) -> LoadedConfig | SpacebotError:
        try:
            return self._load()
        except SpacebotError as error:
            return error

    def _take(self, loaded: LoadedConfig | SpacebotError) -> ReloadReport:
        if isinstance(loaded, SpacebotError):
            report = ReloadReport(changed=False, error=str(loaded), requires_restart=self._requires_restart())
            log.warning("configuration not reloaded", extra=kv(error=str(loaded)))
        else:
            changed = loaded.config != self._loaded.config
            self._loaded = loaded
            report = ReloadReport(changed=changed, warnings=loaded.warnings, requires_restart=self._requires_restart())
            if not changed:
                return report
            log.info("configuration reloaded", extra=kv(requires_restart=report.requires_restart))
        for listener in self._listeners:
            listener(report)
        return report

    def _requires_restart(self) -> tuple[str, ...]:
        return tuple(_restart_keys(self._at_start, self.current))


def _restart_keys(old: Config, new: Config) -> Iterator[str]:
    """All else counts at its next use; the rest of `[api]` at the next request."""
    for name in Config.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        for key, field in type(before).model_fields.items() if isinstance(before, Table) else ():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get(RESTART) and getattr(before, key) != getattr(after, key):
                yield f"{name}.{key}"


class FileKind(StrEnum):
    """What people edit."""

    CONFIG = "config"
    IDENTITY = "identity"
    PROMPT = "prompt"
    SKILL = "skill"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file that is new, different or gone. `agent_id` is None for files of the whole instance."""

    kind: FileKind
    path: Path
    agent_id: str | None = None


OnChange = Callable[[Sequence[FileChange]], Awaitable[None]]


@asynccontextmanager
async def open_watcher(
    paths: InstancePaths,
    agent_ids: Callable[[], Iterable[str]],
    callbacks: Mapping[FileKind, OnChange],
    *,
    skill_folders: Callable[[], Iterable[Path]] = tuple,
    step_ms: int = STEP_MS,
    debounce_ms: int = DEBOUNCE_MS,
) -> AsyncIterator[None]:
    """Call back when `config.toml`, an identity file, a prompt template or a skill changes, while the block runs.

    Files and folders that appear later count too. What changed between entering the block and the first look is
    seen; what changed before is not. One callback runs at a time, with all changes of its kind since the last.

    Args:
        agent_ids: the agents whose folders are watched; asked again at each look.
        skill_folders: what holds skills; asked again at each look.
        callbacks: by kind of file; a SpacebotError from one is logged, another error ends the watch and the block.

    Cancel: takes up to `step_ms` until the library's thread has ended.
    """
    watch = _Watch(paths, agent_ids, skill_folders)
    await trio.to_thread.run_sync(watch.scan, limiter=watch.limiter)
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_watch, watch, callbacks, step_ms, debounce_ms)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def _run_watch(
    watch: "_Watch",
    callbacks: Mapping[FileKind, OnChange],
    step_ms: int,
    debounce_ms: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    is_first = True
    while True:
        folders = await trio.to_thread.run_sync(watch.folders, limiter=watch.limiter)
        try:
            notify = RustNotify([str(folder) for folder in folders], False, False, 0, False, True)
        # A folder vanished in between, or the system's number of watches or of watchers is used up.
        except (OSError, WatchfilesRustInternalError) as error:
            log.warning("files are not watched for now", extra=kv(error=str(error)))
            if is_first:
                task_status.started()
                is_first = False
            await trio.sleep(RETRY_S)
            continue
        # Armed before the scan: what happens in between is seen by the scan, what happens later by the events.
        with notify:
            while True:
                changes = await trio.to_thread.run_sync(watch.scan, limiter=watch.limiter)
                if is_first:
                    task_status.started()
                    is_first = False
                await _call_back(changes, callbacks)
                if await trio.to_thread.run_sync(watch.folders, limiter=watch.limiter) != folders:
                    break
                if not await watch.wait(notify, step_ms, debounce_ms):
                    await trio.sleep(RETRY_S)
                    break


async def _call_back(changes: list[FileChange], callbacks: Mapping[FileKind, OnChange]) -> None:
    for kind, callback in callbacks.items():
        if not (mine := [change for change in changes if change.kind is kind]):
            continue
        try:
            await callback(mine)
        except SpacebotError as error:
            log.warning("change of a file not taken over", extra=kv(kind=str(kind), error=str(error)))


class _Watch:
    """The files of interest and what they held when last seen."""

    def __init__(
        self, paths: InstancePaths, agent_ids: Callable[[], Iterable[str]], skill_folders: Callable[[], Iterable[Path]]
    ) -> None:
        self._paths = paths
        self._agent_ids = agent_ids
        self._skill_folders = skill_folders
        self._seen: dict[FileChange, tuple[tuple[int, ...], bytes]] = {}
        self._is_new = True
        self.limiter = trio.CapacityLimiter(1)  # of its own: the wait must not take a place from real work

    def _identity_folders(self) -> dict[str, Path]:
        return {agent_id: self._paths.agent(agent_id).root for agent_id in self._agent_ids()}

    def _prompt_folders(self) -> dict[str | None, Path]:
        own: dict[str | None, Path] = {agent_id: self._paths.agent(agent_id).prompts for agent_id in self._agent_ids()}
        return {None: self._paths.prompts} | own

    def folders(self) -> list[Path]:
        """All folders to watch, not what is below them; for one that is missing, the nearest that exists."""
        wanted = {self._paths.config.parent, *self._identity_folders().values()}
        for folder in self._prompt_folders().values():
            wanted |= {folder, *(path for path in _walk(folder) if path.is_dir())}
        for folder in self._skill_folders():
            wanted.update(_skill_walk(folder))
        existing = set()
        for folder in wanted:
            while not folder.is_dir() and folder != folder.parent:
                folder = folder.parent
            existing.add(folder)
        return sorted(existing)

    def files(self) -> Iterator[FileChange]:
        """All files of interest that exist now."""
        if self._paths.config.is_file():
            yield FileChange(kind=FileKind.CONFIG, path=self._paths.config)
        if self._paths.login.is_file():  # whether it is there decides what may be asked
            yield FileChange(kind=FileKind.CONFIG, path=self._paths.login)
        for agent_id, folder in self._identity_folders().items():
            for path in folder.glob("*.md"):
                yield FileChange(kind=FileKind.IDENTITY, path=path, agent_id=agent_id)
        for owner, folder in self._prompt_folders().items():
            for path in _walk(folder):
                if path.suffix == ".md":
                    yield FileChange(kind=FileKind.PROMPT, path=path, agent_id=owner)
        for folder in self._skill_folders():
            for below in _skill_walk(folder):
                if (file := below / SKILL_FILE).is_file():
                    yield FileChange(kind=FileKind.SKILL, path=file)

    def scan(self) -> list[FileChange]:
        """What is new, different or gone since the last scan; the first one only takes note."""
        seen: dict[FileChange, tuple[tuple[int, ...], bytes]] = {}
        for file in self.files():
            try:
                status = file.path.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                known = self._seen.get(file)
                is_same = known is not None and known[0] == stamp
                digest = known[1] if known and is_same else _digest(file.path)
            except OSError:
                continue  # gone again, or not readable: whoever reads it next tells the owner
            seen[file] = (stamp, digest)
        before, self._seen = {file: digest for file, (_, digest) in self._seen.items()}, seen
        if self._is_new:
            self._is_new = False
            return []
        after = {file: digest for file, (_, digest) in seen.items()}
        return [file for file in before | after if before.get(file) != after.get(file)]

    async def wait(self, notify: RustNotify, step_ms: int, debounce_ms: int) -> bool:
        """Wait until something of interest may have happened; False when the library failed and watches no more."""
        ended = threading.Event()
        is_watching = True
        async with trio.open_nursery() as nursery:
            # The library cannot be interrupted, only asked: the thread ends before this block does.
            nursery.start_soon(_set_when_cancelled, ended)
            while True:
                try:
                    changes = await trio.to_thread.run_sync(
                        notify.watch, debounce_ms, step_ms, 0, ended, limiter=self.limiter
                    )
                except (OSError, WatchfilesRustInternalError) as error:
                    log.warning("files are not watched for now", extra=kv(error=str(error)))
                    is_watching = False
                    break
                if isinstance(changes, str) or any(self._is_of_interest(Path(path)) for _, path in changes):
                    break
            nursery.cancel_scope.cancel()
        return is_watching

    def _is_of_interest(self, path: Path) -> bool:
        return path in (self._paths.config, self._paths.login) or path.suffix in EDITED or not path.suffix


async def _set_when_cancelled(event: threading.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(WATCHED_BYTES)).digest()


def _skill_walk(folder: Path) -> list[Path]:
    """A folder of skills and those below it, as deep as skills may lie; links and hidden ones are passed over."""
    found = [folder]
    for number, current in enumerate(found):  # it grows on the way
        if number >= SKILL_FOLDERS:
            break
        if len(current.parts) - len(folder.parts) >= SKILL_LEVELS or (number and (current / SKILL_FILE).exists()):
            continue
        try:
            with os.scandir(current) as entries:
                found += sorted(
                    Path(entry.path)
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                )
        except OSError:
            continue  # vanished, or not there yet
    return found[:SKILL_FOLDERS]


def _walk(folder: Path) -> list[Path]:
    """Everything below a folder; links to folders are not followed."""
    try:
        return list(folder.rglob("*"))
    except OSError:
        return []  # vanished while it was read
