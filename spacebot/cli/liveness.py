"""Whether the program runs here, and the lock that keeps a second one out.

The lock decides: the system frees it with the process, however that ends. A process number proves nothing, because
another program may have it by now; in a container that is the rule, since everything there is number 1.

Floor:   cli; standard library only
Source:  control spec 3.2 and 8.1.22
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from spacebot.base.control_address import control_address
from spacebot.base.errors import ConfigError, RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import Answer, ask

RACE_S = 0.5  # a command that only looks holds the lock for an instant
STATUS_S = 3.0  # a daemon that needs longer is told of as not answering


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running program. `status` is its own word; None while it starts, stops or hangs."""

    pid: int | None
    is_background: bool
    status: Answer | None


def find_daemon(paths: InstancePaths) -> Daemon | None:
    """Look for the program of this instance; what a dead one left behind is removed."""
    holder = lock_holder(paths)
    status: Answer | None = None
    with suppress(SpacebotError):
        status = ask(paths, "status", timeout_s=STATUS_S)
    if status is not None:
        return Daemon(
            pid=status.get("pid"), is_background=holder is None or holder.get("mode") != "foreground", status=status
        )
    if holder is None:
        _clean_up(paths)
        return None
    pid = holder.get("pid")
    return Daemon(
        pid=pid if isinstance(pid, int) else None, is_background=holder.get("mode") != "foreground", status=None
    )


def lock_holder(paths: InstancePaths) -> Answer | None:
    """What the process that holds the lock wrote into it; None when nobody holds it."""
    try:
        lock = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        try:
            holder = json.loads(os.read(lock, 1000) or b"{}")
        except ValueError:
            holder = {}
        return holder if isinstance(holder, dict) else {}
    else:
        return None
    finally:
        os.close(lock)


@contextmanager
def hold_instance(paths: InstancePaths, *, is_background: bool) -> Iterator[None]:
    """Be the only program of this instance while the block runs; keeps the pid file.

    Errors: RefusedError when another one runs; ConfigError when the directory cannot be written.
    """
    try:
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the instance directory {str(paths.root)!r} ({error.strerror}); make it writable"
        ) from error
    try:
        _lock(lock, paths)
        _refuse_if_answered(paths)
        _remove_leftovers(paths)
        mode = "background" if is_background else "foreground"
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "mode": mode}).encode(), 0)
        unfinished = paths.pid.with_name(paths.pid.name + ".new")
        unfinished.write_text(f"{os.getpid()}\n")
        unfinished.replace(paths.pid)
        try:
            yield
        finally:
            with suppress(OSError):
                paths.pid.unlink()
            os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _lock(lock: int, paths: InstancePaths) -> None:
    deadline = time.monotonic() + RACE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline:
                holder = lock_holder(paths) or {}
                raise RefusedError(f"spacebot is already running (pid {holder.get('pid', 'unknown')})") from error
            time.sleep(0.02)
        else:
            return


def _refuse_if_answered(paths: InstancePaths) -> None:
    """Somebody may have removed the lock's file under a running program: then our lock proves nothing."""
    try:
        status = ask(paths, "status", timeout_s=STATUS_S)
    except SpacebotError:
        return
    raise RefusedError(f"spacebot is already running (pid {status.get('pid', 'unknown')})")


def _clean_up(paths: InstancePaths) -> None:
    """Remove leftovers, unless a program is starting at this moment."""
    with suppress(OSError):
        lock = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftovers(paths)
        finally:
            os.close(lock)


def _remove_leftovers(paths: InstancePaths) -> None:
    """Remove the pid file and the socket of a program that is gone; the caller holds the lock."""
    for path in (paths.pid, control_address(paths.socket)):
        with suppress(OSError):
            path.unlink()
