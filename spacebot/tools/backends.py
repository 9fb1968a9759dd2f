"""What can contain a command on this machine, and how it is told which areas to show.

Flow:    probe_backend -> Backend; areas -> bubblewrap_options | sandbox_profile
Floor:   tools
Source:  tools spec 15; the manual pages of bwrap(1) and sandbox-exec(1)
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from spacebot.base.telemetry import kv
from spacebot.tools.call_filter import call_filter, filtered
from spacebot.tools.paths_policy import Access, Area

log = logging.getLogger(__name__)

PROBE_S = 5.0
PRIVATE_TMP = Path("/tmp")  # inside, a folder of the worker's own
PROCESSES = Path("/proc")  # of the machine: would show every environment
DEVICES = Path("/sys")
SERVICES = Path("/run")  # their sockets
SYSTEM_FOLDERS = ("bin", "sbin", "usr", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix")
# Of /run only what name resolution and NixOS need: the rest holds sockets of the system's services, and
# a container engine's among them would be a way out.
RUN_FOLDERS = ("current-system", "opengl-driver", "NetworkManager", "resolvconf", "systemd/resolve", "nscd")
MAC_FOLDERS = (
    "bin", "sbin", "usr", "System", "Library", "Applications", "opt", "private/etc", "private/var/db/timezone",
    "private/var/select", "dev",
)  # fmt: skip
MAC_SERVICES = (
    "trustd", "trustd.agent", "SecurityServer", "dnssd.service", "system.opendirectoryd.libinfo",
    "SystemConfiguration.configd",
)  # fmt: skip
MAC_LINKS = ("/", "/etc", "/tmp", "/var", "/private")

# A process of the superuser keeps its rights inside; these three let archives and package managers work,
# all others (mounting, tracing, devices) would be ways out.
KEPT_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER")


class BackendKind(StrEnum):
    """What can contain a command on this machine."""

    BUBBLEWRAP = "bubblewrap"
    SANDBOX_EXEC = "sandbox-exec"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a probe found; it holds for the life of the program.

    Args:
        program: absolute path of the sandbox program; empty for `NONE`.
        has_proc: whether a fresh `/proc` can be mounted (not in nested containers); without, there is none.
        can_cut_network: whether a command can be started without the network.
        note: version, or the reason why nothing can be used.
    """

    kind: BackendKind = BackendKind.NONE
    program: str = ""
    has_proc: bool = True
    can_cut_network: bool = True
    note: str = "not probed"


async def probe_backend() -> Backend:
    """Find out, by trying, what can contain commands here. Never fails: the reason stands in `note`."""
    return await trio.to_thread.run_sync(_probe)


def bubblewrap_options(
    areas: Sequence[Area], *, temporary: Path, has_proc: bool, has_network: bool = True
) -> list[str]:
    """Options of bubblewrap that show exactly these areas; the deeper one wins, as in the policy.

    Blocking: looks at which folders exist. Order matters: a later mount covers an earlier one.

    Args:
        areas: patterns in them count as everything below their folder: a mount knows no patterns.
        temporary: what the command finds as `/tmp`.
    """
    options = ["--unshare-pid", "--unshare-ipc", "--new-session", "--die-with-parent"]
    if not has_network:
        options.append("--unshare-net")
    if os.geteuid() == 0:
        options += ["--cap-drop", "ALL", *(word for name in KEPT_CAPABILITIES for word in ("--cap-add", name))]
    shown = [area.path for area in areas if area.access is not Access.HIDDEN]
    is_whole = Path("/") in shown
    mounts: list[tuple[Path, list[str]]] = [
        (Path("/dev"), ["--dev", "/dev"]),
        (PRIVATE_TMP, ["--bind", str(temporary), str(PRIVATE_TMP)]),
    ]
    if not is_whole:
        mounts.append((Path("/var/tmp"), ["--symlink", str(PRIVATE_TMP), "/var/tmp"]))
    elif Path("/var/tmp").is_dir():  # a link cannot be put over a folder
        mounts.append((Path("/var/tmp"), ["--bind", str(temporary), "/var/tmp"]))
    if has_proc:
        mounts.append((PROCESSES, ["--proc", str(PROCESSES)]))
    # Sealed, or writes beside the areas would seem to work and vanish. The machine's own root stays as it is.
    sealed = [] if is_whole else ["--remount-ro", "/"]
    for area in sorted(areas, key=lambda area: area.access is Access.HIDDEN):
        path = str(area.path)
        if not area.path.exists() or (area.path == PROCESSES and has_proc):
            continue
        match area.access:
            case Access.SYSTEM | Access.READ:
                mounts.append((area.path, ["--ro-bind", path, path]))
            case Access.WRITE:
                mounts.append((area.path, ["--bind", path, path]))
            case Access.HIDDEN if any(area.path.is_relative_to(folder) for folder in shown):
                mounts.append(
                    (area.path, ["--tmpfs", path] if area.path.is_dir() else ["--ro-bind", "/dev/null", path])
                )
                sealed += ["--remount-ro", path] if area.path.is_dir() else []
    mounts.sort(key=lambda mount: len(mount[0].parts))  # stable: at equal depth the order above holds
    return [*options, *(word for _, words in mounts for word in words), *sealed]


def sandbox_profile(areas: Sequence[Area], *, temporary: Path, has_network: bool = True) -> str:
    """The profile for macOS sandbox-exec: closed, then one rule for each area, the deepest last.

    Not tried on a Mac by its tests; kept small for that reason. The trust and name services stay reachable, or
    TLS and DNS fail; metadata of the folders above an area too, or programs cannot find their own folder.
    """
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow process*)",
        "(allow signal (target same-sandbox))",
        "(allow sysctl-read)",
        *(("(allow network*)", "(allow system-socket)") if has_network else ("(deny network*)",)),
        "(allow ipc-posix*)",
        *(f'(allow mach-lookup (global-name "com.apple.{name}"))' for name in MAC_SERVICES),
        *(f"(allow file-read-metadata (literal {_quoted(Path(name))}))" for name in MAC_LINKS),
        '(allow file-read* file-write* (literal "/dev/null") (literal "/dev/zero") (literal "/dev/tty"))',
    ]
    ordered = sorted(areas, key=lambda area: (len(area.path.parts), area.access is Access.HIDDEN))
    for area in (*ordered, Area(temporary, Access.WRITE)):
        path = _quoted(area.path)
        match area.access:
            case Access.SYSTEM | Access.READ:
                lines += [f"(allow file-read* (subpath {path}))", f"(deny file-write* (subpath {path}))"]
            case Access.WRITE:
                lines += [f"(allow file-read* file-write* (subpath {path}))"]
            case Access.HIDDEN:
                lines += [f"(deny file-read* file-write* (subpath {path}))"]
    # These rules know paths only: what is renamed would be out of their reach.
    writable = [area.path for area in areas if area.access is Access.WRITE]
    kept = {path for area in areas for path in (area.path, *area.path.parents) if area.access is not Access.WRITE}
    kept = {path for path in kept if any(path.is_relative_to(folder) for folder in writable)}
    lines += [f"(deny file-write-unlink (literal {_quoted(path)}))" for path in sorted(kept)]
    above = {parent for area in (*areas, Area(temporary, Access.WRITE)) for parent in area.path.parents}
    lines += [f"(allow file-read-metadata (literal {_quoted(path)}))" for path in sorted(above)]
    return "\n".join(lines)


def _probe() -> Backend:
    if sys.platform == "darwin":
        program = shutil.which("sandbox-exec")
        if program and _runs([program, "-p", "(version 1)(allow default)", "/usr/bin/true"]) is None:
            return Backend(kind=BackendKind.SANDBOX_EXEC, program=program, note="sandbox-exec")
        return Backend(note="sandbox-exec does not work here")
    program = shutil.which("bwrap") if sys.platform == "linux" else None
    if program is None:
        log.warning("commands run without a sandbox", extra=kv(reason="bubblewrap is not installed"))
        return Backend(note="bubblewrap is not installed")
    reason = ""
    areas = [Area(Path("/") / name, Access.SYSTEM) for name in SYSTEM_FOLDERS]

    def tried(*, has_proc: bool, has_network: bool) -> str | None:
        options = bubblewrap_options(areas, temporary=Path("/usr"), has_proc=has_proc, has_network=has_network)
        return _runs([program, *options, "--", "true"], call_filter())

    for has_proc in (True, False):
        failure = tried(has_proc=has_proc, has_network=True)
        if failure is None:
            version = _version(program)
            can_cut_network = tried(has_proc=has_proc, has_network=False) is None
            facts = kv(version=version, has_proc=has_proc, can_cut_network=can_cut_network)
            log.info("sandbox found", extra=facts)
            return Backend(
                kind=BackendKind.BUBBLEWRAP,
                program=program,
                has_proc=has_proc,
                can_cut_network=can_cut_network,
                note=version,
            )
        reason = reason or failure
    log.warning("commands run without a sandbox", extra=kv(reason=reason))
    return Backend(note=f"bubblewrap does not work here: {reason}")


def _runs(argv: Sequence[str], program: bytes = b"") -> str | None:
    """None when the command succeeds, with a filter of calls if one is given; else the last line of what it said."""
    try:
        with filtered(argv, program) as (words, inherited):
            result = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False,
                env={"PATH": os.defpath}, pass_fds=inherited,
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    if result.returncode == 0:
        return None
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"


def _version(program: str) -> str:
    try:
        result = subprocess.run([program, "--version"], capture_output=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "bubblewrap"
    return result.stdout.decode(errors="replace").strip() or "bubblewrap"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
