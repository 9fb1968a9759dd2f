"""`backup` and `restore`: an instance into one file and back; whether the program runs or not.

Both work on the instance's files. A backup beside a running program is consistent by SQLite's own means. A restore
beside one is only put ready: the program exchanges the state when it starts the next time.

Flow:    run_backup -> storage/backup.py -> FILE.part -> FILE;  run_restore -> storage/restore.py
Floor:   cli; standard library only, until there is something to do
Source:  control spec 4.2; the same over HTTP is `api/backup.py`
"""

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spacebot.base.errors import RefusedError, SpacebotError, StorageError
from spacebot.base.paths import InstancePaths, package_file
from spacebot.cli.liveness import hold_instance, lock_holder

if TYPE_CHECKING:
    from spacebot.storage.backup import BackupReport

SHOW_S = 0.2  # between two looks at the progress


def add_backup_options(command: ArgumentParser) -> None:
    """Describe the words of `backup`."""
    command.add_argument("file", metavar="FILE", nargs="?", help="default: spacebot-backup-DATE.zip in this folder")
    command.add_argument("--no-workspace", action="store_true", help="leave out the files that workers work on")
    command.add_argument("--with-secrets", action="store_true", help="also the stored secrets, sealed; never their key")


def add_restore_options(command: ArgumentParser) -> None:
    """Describe the words of `restore`."""
    command.add_argument("file", metavar="FILE", help="what `spacebot backup` has written")
    command.add_argument("--force", action="store_true", help="although there is an instance, or while it runs")


def run_backup(paths: InstancePaths, options: Namespace) -> int:
    """Write a backup; nothing is left of one that fails.

    Errors: RefusedError, StorageError.
    """
    from spacebot.storage.backup import write_backup

    os.umask(0o077)
    target = Path(options.file or f"spacebot-backup-{time.strftime('%Y%m%d-%H%M%S')}.zip").absolute()
    if os.path.lexists(target):
        raise RefusedError(f"there is {target} already; name another file, or remove that one")
    part = target.with_name(target.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {part} ({error.strerror}); name another place") from error
    try:
        try:
            os.fchmod(descriptor, 0o600)
            report = write_backup(
                paths,
                _File(descriptor),
                with_workspace=not options.no_workspace,
                with_secrets=options.with_secrets,
                progress=_Progress().show,
            )
            _finish(descriptor)
        finally:
            os.close(descriptor)
        part.rename(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        _Progress.end()
    _print_report(target, report)
    return 0


def run_restore(paths: InstancePaths, options: Namespace) -> int:
    """Take a backup over; at once, or while the program runs at its next start.

    Errors: RefusedError, StorageError.
    """
    from spacebot.storage.restore import finish_restore, stage_backup

    os.umask(0o077)
    is_running = lock_holder(paths) is not None
    if not options.force:
        _refuse_if_in_use(paths, is_running)
    try:
        archive = Path(options.file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise RefusedError(f"cannot read {options.file} ({error.strerror})") from error
    try:
        with archive:
            staged = stage_backup(
                paths,
                archive,
                migrations=package_file("storage", "sql"),
                check_config=_check_config,
                progress=_Progress().show_files,
            )
    finally:
        _Progress.end()
    manifest = staged.manifest
    print(
        f"{len(manifest.files)} files of {manifest.created_at[:19].replace('T', ' ')} UTC are right "
        f"({staged.size / 2**20:.1f} MiB, made by Spacebot {manifest.version})",
        file=sys.stderr,
    )
    if is_running:
        print("they take their place at the next start: spacebot restart", file=sys.stderr)
        return 0
    paths.create()
    with hold_instance(paths, is_background=False):
        restored = finish_restore(paths)
    if restored is not None:
        print("restored; the search tables are made anew by the next start", file=sys.stderr)
        if any(restored.old.iterdir()):
            print(f"what was there before lies in {restored.old}; a start after a day removes it", file=sys.stderr)
    return 0


def _refuse_if_in_use(paths: InstancePaths, is_running: bool) -> None:
    if is_running:
        raise RefusedError(
            "spacebot is running here. Stop it first (spacebot stop), or add --force: then the backup waits beside it, "
            "and spacebot restart exchanges the state"
        )
    has_agents = (paths.root / "agents").is_dir() and any((paths.root / "agents").iterdir())
    if paths.config.exists() or has_agents:
        raise RefusedError(
            f"there is an instance in {paths.root} already. With --force it is put aside, not thrown away, and the "
            "backup takes its place"
        )


def _check_config(path: Path) -> None:
    """Refuse what is no configuration; what only this machine lacks is said at the start."""
    from spacebot.config.load import load_config, read_source

    read_source(path)
    try:
        load_config(path, resolve_secret=lambda name: None)
    except SpacebotError as error:  # perhaps only a variable or a secret of the start, which are not at hand here
        print(f"warning: the configuration of the backup may need attention: {error}", file=sys.stderr)


class _File:
    """A file without a buffer, which could only fail when it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes, /) -> int:
        """Write all of it. Errors: OSError."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def _finish(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise StorageError(f"the backup could not be written ({error.strerror}); make room on the disk") from error


def _print_report(target: Path, report: "BackupReport") -> None:
    size = target.stat().st_size / 2**20
    print(
        f"{report.files} files of {len(report.agents)} agents, {report.size / 2**20:.1f} MiB, packed {size:.1f} MiB",
        file=sys.stderr,
    )
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(target)


class _Progress:
    """One line of a terminal that changes; nothing elsewhere."""

    is_shown = False

    def __init__(self) -> None:
        self._next = 0.0

    def show(self, report: "BackupReport") -> None:
        """After each file of a backup."""
        self._line(f"{report.files} files, {report.size / 2**20:.1f} MiB")

    def show_files(self, done: int, total: int) -> None:
        """After each file of a restore."""
        self._line(f"{done} of {total} files")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next and sys.stderr.isatty():
            self._next = now + SHOW_S
            _Progress.is_shown = True
            print(f"\r{text:60}", end="", file=sys.stderr, flush=True)

    @classmethod
    def end(cls) -> None:
        """Clear the line."""
        if cls.is_shown:
            print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)
            cls.is_shown = False
