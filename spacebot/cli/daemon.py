"""The life of the daemon: start, stop, restart.

The background process is made by two forks before anything heavy is loaded: libraries with threads of their own do
not survive a fork. It reports through a pipe, so `start` ends well only when messages are accepted.

Flow:    start -> fork, fork -> run_program -> serve.serve -> app.main
Floor:   cli
Source:  control spec 3.1 and 3.2
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from spacebot.base.errors import RefusedError, SpacebotError
from spacebot.base.paths import InstancePaths
from spacebot.cli.client import NoDaemonError, ask
from spacebot.cli.deployment import make_token
from spacebot.cli.liveness import Daemon, find_daemon, hold_instance, lock_holder
from spacebot.cli.secret import PASSPHRASE_VARIABLE, ask_for_start, hand_over, open_secrets

if TYPE_CHECKING:
    from spacebot.cli.serve import AppMain

START_S = 120.0  # first start: unpacking, databases of many agents
STOP_S = 10.0  # control spec 3.1
FORCE_S = 2.0  # what `--force` leaves for an orderly end
KILLED_S = 5.0  # the system needs a moment to take a killed process apart
POLL_S = 0.05
RESTART_S = 30.0  # control spec 3.2
RESTART_POLL_S = 0.25
LOG_VARIABLE = "SPACEBOT_LOG"  # debug: as with --debug
REEXEC = "SPACEBOT_REEXEC"  # set for the program that an in-place restart starts: how its predecessor ran
TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the daemon is made of; tests put something small in its place."""

    load_app: "Callable[[], AppMain]"
    command: Callable[[], Sequence[str]]  # starts this program again


def start(paths: InstancePaths, program: Program, *, foreground: bool, debug: bool) -> int:
    """Start the program; in the background unless told otherwise.

    Errors: SpacebotError with the reason why it did not start.
    """
    os.umask(0o077)
    paths.create()
    make_token(paths)
    marker = os.environ.pop(REEXEC, None)
    if marker == "background":
        return run_program(paths, program, is_background=True, debug=debug, report=_no_report)
    if (running := find_daemon(paths)) is not None:
        raise RefusedError(f"spacebot is already running (pid {running.pid or 'unknown'})")
    ask_for_start(paths)
    if foreground or marker is not None:
        return run_program(paths, program, is_background=False, debug=debug, report=_print_report)
    return _start_in_background(paths, program, debug=debug)


def stop(paths: InstancePaths, *, force: bool) -> int:
    """Ask the program to end, and wait for it."""
    daemon = find_daemon(paths)
    if daemon is None:
        print(f"spacebot is not running in {paths.root}", file=sys.stderr)
        return 1
    _request_end(paths, daemon)
    if _wait_for_end(paths, FORCE_S if force else STOP_S):
        print("spacebot stopped", file=sys.stderr)
        return 0
    if not force:
        print(f"spacebot (pid {daemon.pid}) is still stopping after {STOP_S:g} seconds", file=sys.stderr)
        _print_what_runs(paths)
        print("wait a little longer, or end it with: spacebot stop --force", file=sys.stderr)
        return 1
    holder = lock_holder(paths) or {}
    pid = holder.get("pid", daemon.pid)
    if not isinstance(pid, int) or pid == os.getpid():
        raise RefusedError("the process to kill is not known; end it by hand")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not _wait_for_end(paths, KILLED_S):
        raise RefusedError(f"process {pid} does not end even when it is killed; it may hang in a disk or network call")
    find_daemon(paths)  # removes what it left behind
    print(f"spacebot (pid {pid}) was killed; nothing that it had accepted is lost", file=sys.stderr)
    return 0


def restart(paths: InstancePaths, program: Program, *, foreground: bool, debug: bool) -> int:
    """Stop and start again; a program that runs in a terminal or under a service manager restarts itself in place.

    The configuration is checked first: a mistake in it must not cost a running instance.
    """
    daemon = find_daemon(paths)
    if daemon is None:
        return start(paths, program, foreground=foreground, debug=debug)
    _check_config(paths, daemon)
    if not foreground and not daemon.is_background and daemon.status is not None:
        return _restart_in_place(paths, daemon.status.get("run_id"))
    if (code := stop(paths, force=False)) != 0:
        return code
    return start(paths, program, foreground=foreground, debug=debug)


def run_program(
    paths: InstancePaths,
    program: Program,
    *,
    is_background: bool,
    debug: bool,
    report: Callable[[dict[str, Any]], None],
) -> int:
    """Be the program: until it is stopped, or started again in place.

    Errors: SpacebotError when it cannot start.
    """
    with hold_instance(paths, is_background=is_background):
        # Late, in the process that stays: these load trio, pydantic and more.
        import gc
        import logging

        gc.disable()  # what is loaded now stays; looking through it again and again costs a tenth of a second

        from spacebot.base.allocator import limit_arenas

        limit_arenas()
        from spacebot.api.control import EXIT_RESTART
        from spacebot.base.telemetry import kv, limit_log_files, set_up_logging
        from spacebot.cli.serve import serve
        from spacebot.config.store import ConfigStore
        from spacebot.storage.restore import finish_restore

        debug = debug or os.environ.get(LOG_VARIABLE, "").strip().lower() == "debug"
        set_up_logging(paths.logs, debug=debug, console=not is_background)
        if (restored := finish_restore(paths)) is not None:  # before anything of the instance is open
            logging.getLogger(__name__).warning(
                "backup restored", extra=kv(of=restored.created_at, files=restored.files, before=str(restored.old))
            )
        secrets = open_secrets(paths)
        store = ConfigStore.open(paths.config, resolve_secret=secrets.resolve)

        def limit_logs(*_: object) -> None:
            limit_log_files(keep=store.current.logs.keep, max_bytes=store.current.logs.max_mib << 20)

        limit_logs()
        store.listen(limit_logs)
        warnings = [*secrets.warnings, *store.warnings]
        for warning in warnings:
            logging.getLogger(__name__).warning("configuration", extra=kv(warning=warning))

        def on_ready(urls: Sequence[str], model_label: str) -> None:
            report(
                {"ready": True, "pid": os.getpid(), "urls": list(urls), "model": model_label}
                | {"warnings": warnings, "config": str(paths.config)}
            )

        app_main = program.load_app()
        gc.enable()
        code = serve(app_main, paths, store, secrets, debug=debug, on_ready=on_ready)
    if code == EXIT_RESTART:
        hand_over(secrets.passphrase)
        _execute_again(paths, program, is_background=is_background, debug=debug)
    return code


def _execute_again(paths: InstancePaths, program: Program, *, is_background: bool, debug: bool) -> None:
    """Become a new program in the same process, which keeps its number and its service manager."""
    os.environ[REEXEC] = "background" if is_background else "foreground"
    with suppress(OSError):
        os.chdir(_START_FOLDER)  # a source checkout is found from where the first start happened
    command = [*program.command(), "--config", str(paths.config), *(["--debug"] if debug else []), "start"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


_START_FOLDER = _current_folder()


def _start_in_background(paths: InstancePaths, program: Program, *, debug: bool) -> int:
    for path in (_out(paths), _err(paths)):
        path.touch(mode=0o600)
    seen = _err(paths).stat().st_size
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        os.close(reading)
        _become_daemon(paths, program, debug, writing)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        result = _read_report(pipe)
    if result is None:
        raise RefusedError(f"spacebot is not ready after {START_S:g} seconds; it goes on, {paths.logs} has its words")
    if "error" in result:
        raise RefusedError(str(result["error"]))
    if not result:
        raise RefusedError(f"spacebot ended while it was starting\n{_tail(_err(paths), seen)}".rstrip())
    print(f"spacebot started (pid {result.get('pid')})", file=sys.stderr)
    _print_report(result)
    return 0


def _become_daemon(paths: InstancePaths, program: Program, debug: bool, pipe: int) -> None:
    """The second half of the start, in the child; never returns."""
    code = 1
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.chdir(paths.root)
        _redirect(paths, keep=pipe)

        def report(message: dict[str, Any]) -> None:
            with suppress(OSError):  # nobody waits any more
                os.write(pipe, json.dumps(message).encode() + b"\n")
                os.close(pipe)

        try:
            code = run_program(paths, program, is_background=True, debug=debug, report=report)
        except SpacebotError as error:
            print(error, file=sys.stderr)
            report({"error": str(error)})
    except BaseException:  # boundary: the end of the process: whatever it is, it goes to the error log
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            import logging

            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(paths: InstancePaths, *, keep: int) -> None:
    """Point the standard streams away from the terminal."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    targets = (
        (os.open(os.devnull, os.O_RDONLY), 0),
        (os.open(_out(paths), append, 0o600), 1),
        (os.open(_err(paths), append, 0o600), 2),
    )
    for source, target in targets:
        os.dup2(source, target)
        if source not in (0, 1, 2, keep):
            os.close(source)


def _read_report(pipe: TextIO) -> dict[str, Any] | None:
    """Wait for the daemon's word; empty when it ended without one, None when it takes too long."""
    if not select.select([pipe], [], [], START_S)[0]:
        return None
    line = pipe.readline()
    result: dict[str, Any] = json.loads(line) if line else {}
    return result


def _no_report(report: dict[str, Any]) -> None:
    pass


def _print_report(report: dict[str, Any]) -> None:
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for url in report["urls"]:
        print(f"web chat: {url}", file=sys.stderr)
    hint = " (no provider key found; set one up with: spacebot init)" if report["model"] == "demo/demo" else ""
    print(f"model: {report['model']}{hint}", file=sys.stderr, flush=True)


def _request_end(paths: InstancePaths, daemon: Daemon) -> None:
    try:
        ask(paths, "shutdown", timeout_s=2)
    except NoDaemonError:
        # It starts, stops or hangs. The lock is held, so the number in it belongs to the program.
        holder = lock_holder(paths)
        if holder is not None and isinstance(pid := holder.get("pid"), int) and pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _wait_for_end(paths: InstancePaths, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while lock_holder(paths) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _print_what_runs(paths: InstancePaths) -> None:
    try:
        nodes = ask(paths, "top", timeout_s=2)["nodes"]
    except SpacebotError:
        print("it does not say what it is waiting for", file=sys.stderr)
        return
    for node in nodes:
        if node["kind"] in ("turn", "branch", "worker", "compaction"):
            print(f"  {node['kind']} {node['id'][:8]} {node['state']}: {node['description']}", file=sys.stderr)


def _check_config(paths: InstancePaths, daemon: Daemon) -> None:
    from spacebot.config.load import load_config  # heavy, and only needed here

    ask_for_start(paths)
    secrets = open_secrets(paths)
    if secrets.passphrase is not None:
        os.environ[PASSPHRASE_VARIABLE] = secrets.passphrase  # for the start that follows
    try:
        load_config(paths.config, resolve_secret=secrets.resolve)
    except SpacebotError as error:
        raise RefusedError(
            f"{error}\nspacebot (pid {daemon.pid}) goes on with the configuration that it has"
        ) from error


def _restart_in_place(paths: InstancePaths, old_run_id: object) -> int:
    ask(paths, "restart")
    deadline = time.monotonic() + RESTART_S
    while time.monotonic() < deadline:
        time.sleep(RESTART_POLL_S)
        daemon = find_daemon(paths)
        if daemon is not None and daemon.status is not None and daemon.status.get("run_id") != old_run_id:
            print(f"spacebot restarted in place (pid {daemon.pid})", file=sys.stderr)
            return 0
    raise RefusedError(f"spacebot has not come back within {RESTART_S:g} seconds; spacebot logs tells more")


def _out(paths: InstancePaths) -> Path:
    return paths.logs / "spacebot.out"


def _err(paths: InstancePaths) -> Path:
    return paths.logs / "spacebot.err"


def _tail(path: Path, start: int) -> str:
    """What was added to a file since it had `start` bytes, its end at most."""
    with suppress(OSError):
        raw = path.read_bytes()[start:]
        return raw[-TAIL_BYTES:].decode(errors="replace")
    return ""
