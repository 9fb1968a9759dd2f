"""What a command of an agent may see and change: its paths, its environment, its sandbox.

One object per agent answers for all tools. The areas it draws up are the file tool's policy and the
sandbox's mounts alike; the environment is built from nothing; when no sandbox works here, commands
run without one and everybody who asks is told so.

Flow:    probe_backend -> Containment(...) -> policy() | environment() | wrap() | describe()
Floor:   tools
Source:  tools spec 15
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from spacebot.base.errors import ConfigError, ToolError
from spacebot.base.redaction import find_secret
from spacebot.base.telemetry import kv
from spacebot.config.model import SandboxConfig
from spacebot.tools.paths_policy import Access, Area, PathPolicy

log = logging.getLogger(__name__)

PROBE_S = 5.0
PRIVATE_TMP = Path("/tmp")  # inside, a folder of the agent's own
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
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
DISK_THREADS = 4  # of one agent; more would only queue at the disk

RESERVED_NAMES = frozenset({"PATH", "HOME", "TMPDIR", "CI", "DEBIAN_FRONTEND", "USER", "LANG", "TERM"})
# They make a program load code of the caller's choice; tools spec 5.4.
INJECTING_NAMES = frozenset({
    "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP",
    "NODE_OPTIONS", "RUBYOPT", "PERL5OPT", "PERL5LIB", "BASH_ENV", "ENV",
})  # fmt: skip
INJECTING_LEADS = ("LD_", "DYLD_")
OWN_LEAD = "SPACEBOT_"

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
        note: version, or the reason why nothing can be used.
    """

    kind: BackendKind = BackendKind.NONE
    program: str = ""
    has_proc: bool = True
    note: str = "not probed"


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command ready to be started.

    Args:
        wrappers: how many processes of the sandbox program stand above the command's own.
    """

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    wrappers: int = 0


async def probe_backend() -> Backend:
    """Find out, by trying, what can contain commands here. Never fails: the reason stands in `note`."""
    return await trio.to_thread.run_sync(_probe)


class Containment:
    """The rules for everything that one agent runs or opens.

    Args:
        workspace: where the agent works; relative paths start here.
        instance_root: configuration, secrets and all agents; no command sees it.
        data_dir: the agent's databases; hidden even where the workspace contains them.
        tools_bin: programs installed by the owner, first in PATH.
        skills: folders of skills; commands may read them and not write.
        settings: the live `[agents.sandbox]` table, read at every command.
        tool_secrets: variables that the owner meant for commands, read at every command.
        backend: what `probe_backend` found.
        inherited: the environment that the few inherited variables come from.

    Errors: ConfigError when the workspace is the instance directory or lies in the agent's data.
    """

    def __init__(
        self,
        *,
        workspace: Path,
        instance_root: Path,
        data_dir: Path,
        tools_bin: Path,
        skills: Sequence[Path] = (),
        settings: Callable[[], SandboxConfig],
        tool_secrets: Callable[[], Mapping[str, str]] = dict,
        backend: Backend | None = None,
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        self.workspace = _real(workspace)
        self._instance_root = _real(instance_root)
        self._data_dir = _real(data_dir)
        self._tools_bin = _real(tools_bin)
        self._aliases = tuple((path, real) for path, real in ((workspace, self.workspace),) if path != real)
        self._skills = tuple(folder.parent.resolve() / folder.name for folder in skills)  # the last step is no link
        self._settings = settings
        self._tool_secrets = tool_secrets
        self.backend = backend or Backend()
        self._inherited = os.environ if inherited is None else inherited
        self._reported: set[Path] = set()
        self.disk_limiter = trio.CapacityLimiter(DISK_THREADS)
        if self.workspace in (self._instance_root, self._data_dir) or self.workspace.is_relative_to(self._data_dir):
            raise ConfigError(
                f"workspace {str(workspace)!r} is a folder of the program's own files; name another under [[agents]]"
            )

    @property
    def is_enabled(self) -> bool:
        """Whether the owner wants containment."""
        return self._settings().mode == "enabled"

    @property
    def is_active(self) -> bool:
        """Whether commands are contained in fact."""
        return self.is_enabled and self.backend.kind is not BackendKind.NONE

    @property
    def temporary(self) -> Path:
        """The agent's own folder for temporary files, kept between commands."""
        return self._data_dir / "tmp"

    def prepare(self) -> None:
        """Empty the temporary folder. Blocking: call it from a thread, once, before the first command."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._make_temporary()

    def policy(self) -> PathPolicy:
        """The rules of this moment for paths."""
        settings = self._settings()
        areas, aliases = self._areas(settings), self._aliases
        if self._has_private_tmp():  # the file tool must mean the same folder by it as a command does
            areas, aliases = [*areas, Area(self.temporary, Access.WRITE)], (*aliases, (PRIVATE_TMP, self.temporary))
        return PathPolicy(base=self.workspace, areas=areas, is_enforced=settings.mode == "enabled", aliases=aliases)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for a command: built from nothing, whether contained or not.

        Args:
            extra: the command's own; reserved and injecting names are left out (`check_environment` refuses them).
        """
        return self._variables(self._tool_secrets(), extra or {})

    def _variables(self, secrets: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
        settings = self._settings()
        inherited = self._inherited
        # The workspace stands for the home folder wherever the owner wants containment, even if none works here.
        home = str(self.workspace) if settings.mode == "enabled" else inherited.get("HOME", str(self.workspace))
        result = {name: value for name, value in secrets.items() if _is_free(name)}
        for name in settings.passthrough_env:
            if _is_free(name) and name in inherited and not _is_own(name, inherited[name]):
                result[name] = inherited[name]
        result |= {name: value for name, value in extra.items() if _is_free(name)}
        return result | {
            "PATH": self._search_path(),
            "HOME": home,
            "TMPDIR": str(PRIVATE_TMP if self._has_private_tmp() else self.temporary),
            "CI": "true",  # installers and test runners then ask no questions
            "DEBIAN_FRONTEND": "noninteractive",
            "USER": inherited.get("USER", "agent"),
            "LANG": inherited.get("LANG", "C.UTF-8"),
            "TERM": inherited.get("TERM", "dumb"),
        }

    def wrap(
        self, argv: Sequence[str], *, folder: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> Invocation:
        """Make a command line that runs contained, or as it stands when containment is off or impossible.

        Blocking (a few file status calls): call it from a thread.

        Args:
            folder: where the command starts; the workspace when None. Check it with `working_folder`.
        """
        folder = folder or self.workspace
        self._make_temporary()
        for path in self._skills:  # a folder that is missing could not be kept from being made by the command
            with suppress(OSError):
                path.mkdir(exist_ok=True)
        environment = self.environment(extra)
        if not self.is_active:
            return Invocation(tuple(argv), folder, environment)
        return self._contained(argv, self._areas(self._settings()), folder, environment)

    def _contained(
        self, argv: Sequence[str], areas: Sequence[Area], folder: Path, environment: Mapping[str, str]
    ) -> Invocation:
        if self.backend.kind is BackendKind.SANDBOX_EXEC:
            profile = sandbox_profile(areas, temporary=self.temporary)
            return Invocation((self.backend.program, "-p", profile, *argv), folder, environment)
        options = bubblewrap_options(areas, temporary=self.temporary, has_proc=self.backend.has_proc)
        # Variables reach the command through the sandbox program's own environment, which holds nothing else:
        # as options they would stand in a command line that every user of the machine can read.
        words = (self.backend.program, *options, "--chdir", str(folder), "--", *argv)
        return Invocation(words, Path("/"), environment, wrappers=2)

    def wrap_program(
        self,
        argv: Sequence[str],
        *,
        folder: Path | None = None,
        extra: Mapping[str, str] | None = None,
        writable: Sequence[Path] = (),
        readable: Sequence[Path] = (),
    ) -> Invocation:
        """As `wrap`, for a program that the owner configured and a worker only uses: a browser, a coding server.

        It gets no secrets of commands. Blocking: call it from a thread.

        Args:
            writable, readable: further paths, which exist; also such that lie in the program's own folders.
        """
        folder = folder or self.workspace
        self._make_temporary()
        environment = self._variables({}, extra or {})
        if not self.is_active:
            return Invocation(tuple(argv), folder, environment)
        areas = self._areas(self._settings())
        areas += [Area(_real(path), Access.SYSTEM) for path in readable]
        areas += [Area(_real(path), Access.WRITE) for path in writable]
        return self._contained(argv, areas, folder, environment)

    def working_folder(self, text: str | None) -> Path:
        """The folder that a command asked to start in. Blocking: call it from a thread.

        Links are resolved and the target must be allowed; the sandbox is what holds the command there.

        Errors: ToolError.
        """
        if not text:
            return self.workspace
        policy = self.policy()
        place = policy.locate(text, writing=False)
        real = _real(place.path)
        if self.is_enabled and policy.access(real) not in (Access.WRITE, Access.READ):
            raise ToolError(f"working_dir {text!r} leads outside of the workspace; choose a folder inside")
        if not real.is_dir():
            raise ToolError(f"working_dir {text!r} is not a folder; create it first or leave the argument out")
        return self.visible(real)

    def visible(self, path: Path) -> Path:
        """The path by which a command finds an admitted folder."""
        if self._has_private_tmp() and path.is_relative_to(self.temporary):
            return PRIVATE_TMP / path.relative_to(self.temporary)
        return path

    def describe(self) -> str:
        """What is true about containment now, for a worker's prompt: real lists, or that there is none."""
        areas = self._areas(self._settings())
        writable = ", ".join(str(area.path) for area in areas if area.access is Access.WRITE)
        own = [self.workspace / "ingest", *(path for path in self._skills if path.is_relative_to(self.workspace))]
        kept = f" (except below {' and '.join(map(str, own))})"
        if not self.is_enabled:
            return "Containment is inactive (switched off by the owner): commands and the file tool reach every path."
        files = f"The file tool reaches only: {writable}{kept}."
        if not self.is_active:
            return (
                f"Containment of commands is inactive ({self.backend.note}): they run with all rights of the "
                f"program's user. {files}"
            )
        readable = ", ".join(str(area.path) for area in areas if area.access is Access.SYSTEM and area.path.exists())
        private = f", {PRIVATE_TMP} (yours alone)" if self._has_private_tmp() else f", {self.temporary}"
        return (
            f"Commands run in a sandbox. They may write: {writable}{kept}{private}. They may read besides: {readable}. "
            "No other path exists for them; the network is open. The file tool reaches what commands may write."
        )

    def _areas(self, settings: SandboxConfig) -> list[Area]:
        root = Path("/")
        system = MAC_FOLDERS if self.backend.kind is BackendKind.SANDBOX_EXEC else SYSTEM_FOLDERS
        areas = [Area(root / name, Access.SYSTEM) for name in system]
        areas += [Area(root / "run" / name, Access.SYSTEM) for name in RUN_FOLDERS]
        areas += [Area(self._tools_bin, Access.SYSTEM)]
        areas += [Area(self._instance_root, Access.HIDDEN), Area(self._data_dir, Access.HIDDEN)]
        areas += [Area(self.workspace, Access.WRITE), Area(self.workspace / "ingest", Access.READ)]
        areas += [Area(path, Access.READ) for path in self._skills if not path.is_symlink()]
        for path in settings.writable_paths:
            real = _real(self.workspace / path.expanduser())
            if real.is_relative_to(self._instance_root) and not real.is_relative_to(self.workspace):
                if real not in self._reported:
                    self._reported.add(real)
                    log.warning("writable path ignored: it lies in the instance directory", extra=kv(path=str(real)))
            elif not real.is_relative_to(self.workspace):
                areas.append(Area(real, Access.WRITE))
        return areas

    def _has_private_tmp(self) -> bool:
        return self.is_active and self.backend.kind is BackendKind.BUBBLEWRAP

    def _make_temporary(self) -> None:
        self.temporary.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _search_path(self) -> str:
        theirs = (entry for entry in self._inherited.get("PATH", "").split(os.pathsep) if os.path.isabs(entry))
        return os.pathsep.join(dict.fromkeys((str(self._tools_bin), *theirs, *SYSTEM_PATH)))


def check_environment(variables: Mapping[str, str]) -> None:
    """Refuse variables that a command must not set.

    Errors: ToolError that names the variable and the reason.
    """
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name:
            raise ToolError(f"{name!r} is not a name for an environment variable")
        if "\0" in value:
            raise ToolError(f"the value of {name!r} holds a NUL character")
        if name.upper() in RESERVED_NAMES:
            raise ToolError(f"{name} is fixed for every command; leave it out of env")
        if not _is_free(name):
            raise ToolError(f"{name} may not be set, it makes programs load other code; leave it out of env")


def bubblewrap_options(areas: Sequence[Area], *, temporary: Path, has_proc: bool) -> list[str]:
    """Options of bubblewrap that show exactly these areas; the deeper one wins, as in the policy.

    Blocking: looks at which folders exist. Order matters: a later mount covers an earlier one.
    """
    options = ["--unshare-pid", "--unshare-ipc", "--new-session", "--die-with-parent"]
    if os.geteuid() == 0:
        options += ["--cap-drop", "ALL", *(word for name in KEPT_CAPABILITIES for word in ("--cap-add", name))]
    mounts: list[tuple[Path, list[str]]] = [
        (Path("/dev"), ["--dev", "/dev"]),
        (PRIVATE_TMP, ["--bind", str(temporary), str(PRIVATE_TMP)]),
        (Path("/var/tmp"), ["--symlink", str(PRIVATE_TMP), "/var/tmp"]),
    ]
    if has_proc:
        mounts.append((Path("/proc"), ["--proc", "/proc"]))
    sealed = ["--remount-ro", "/"]  # or writes beside the areas would seem to work and vanish
    shown = [area.path for area in areas if area.access is not Access.HIDDEN]
    for area in sorted(areas, key=lambda area: area.access is Access.HIDDEN):
        path = str(area.path)
        if not area.path.exists():
            continue
        match area.access:
            case Access.SYSTEM | Access.READ:
                mounts.append((area.path, ["--ro-bind", path, path]))
            case Access.WRITE:
                mounts.append((area.path, ["--bind", path, path]))
            case Access.HIDDEN if any(area.path.is_relative_to(folder) for folder in shown):
                mounts.append((area.path, ["--tmpfs", path]))
                sealed += ["--remount-ro", path]
    mounts.sort(key=lambda mount: len(mount[0].parts))  # stable: at equal depth the order above holds
    return [*options, *(word for _, words in mounts for word in words), *sealed]


def sandbox_profile(areas: Sequence[Area], *, temporary: Path) -> str:
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
        "(allow network*)",
        "(allow system-socket)",
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
    for has_proc in (True, False):
        options = bubblewrap_options(areas, temporary=Path("/usr"), has_proc=has_proc)
        failure = _runs([program, *options, "--", "true"])
        if failure is None:
            version = _version(program)
            log.info("sandbox found", extra=kv(version=version, has_proc=has_proc))
            return Backend(kind=BackendKind.BUBBLEWRAP, program=program, has_proc=has_proc, note=version)
        reason = reason or failure
    log.warning("commands run without a sandbox", extra=kv(reason=reason))
    return Backend(note=f"bubblewrap does not work here: {reason}")


def _runs(argv: Sequence[str]) -> str | None:
    """None when the command succeeds, else the last line of what it said."""
    try:
        result = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False, env={"PATH": os.defpath}
        )
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


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_free(name: str) -> bool:
    upper = name.upper()
    return upper not in RESERVED_NAMES | INJECTING_NAMES and not upper.startswith(INJECTING_LEADS)


def _is_own(name: str, value: str) -> bool:
    # Credentials that the configuration uses are registered with the scrubber under this kind.
    return name.startswith(OWN_LEAD) or find_secret(value) == "configured secret"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
