"""What a command of an agent may see and change: its paths, its environment, its network, its sandbox.

One object per agent answers for all tools, and a view of it for each worker. The areas it draws up from the owner's
permissions are the file tool's policy and the sandbox's mounts alike; the environment is built from nothing; when no
sandbox works here, commands run without one and everybody who asks is told so.

Flow:    probe_backend -> Containment(...) -> view() -> policy() | environment() | wrap() | describe()
Floor:   tools
Source:  tools spec 15; control spec 6.3, 6.4
"""

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from spacebot.base.errors import ConfigError, DeniedError, ToolError
from spacebot.base.redaction import find_secret
from spacebot.base.telemetry import kv
from spacebot.config.hands import Permissions, Reach
from spacebot.config.model import SandboxConfig
from spacebot.tools.backends import (
    DEVICES,
    MAC_FOLDERS,
    PRIVATE_TMP,
    PROCESSES,
    RUN_FOLDERS,
    SERVICES,
    SYSTEM_FOLDERS,
    Backend,
    BackendKind,
    bubblewrap_options,
    probe_backend,
    sandbox_profile,
)
from spacebot.tools.call_filter import call_filter
from spacebot.tools.containment_words import Situation
from spacebot.tools.paths_policy import Access, Area, PathPolicy, remove_tree, split_pattern
from spacebot.tools.permissions import Gate

__all__ = ["Backend", "BackendKind", "Containment", "Invocation", "check_environment", "probe_backend"]

log = logging.getLogger(__name__)

SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
DISK_THREADS = 4  # of one agent; more would only queue at the disk
KEY_FOLDERS = (Path("/run/secrets"), Path("/run/spacebot"))  # where containers mount keys

RESERVED_NAMES = frozenset({"PATH", "HOME", "TMPDIR", "CI", "DEBIAN_FRONTEND", "USER", "LANG", "TERM"})
# They make a program load code of the caller's choice; tools spec 5.4.
INJECTING_NAMES = frozenset({
    "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP",
    "NODE_OPTIONS", "RUBYOPT", "PERL5OPT", "PERL5LIB", "BASH_ENV", "ENV",
})  # fmt: skip
INJECTING_LEADS = ("LD_", "DYLD_")
OWN_LEAD = "SPACEBOT_"


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command ready to be started.

    Args:
        wrappers: how many processes of the sandbox program stand above the command's own.
        filter: the calls that the kernel refuses it, for bubblewrap to read; empty for none.
    """

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    wrappers: int = 0
    filter: bytes = b""


class Containment:
    """The rules for everything that one agent runs or opens.

    Args:
        workspace: where the agent works; relative paths start here.
        instance_root: configuration, secrets and all agents; no command sees it.
        data_dir: the agent's databases; hidden even where the workspace contains them.
        tools_bin: programs installed by the owner, first in PATH.
        skills: folders of skills; commands may read them and not write.
        others: workspaces of other agents, which no command sees even where the machine is open to it.
        private: folder of the workspace whose parts are seen by views that were opened for them, and nobody else.
        gate: the owner's permissions.
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
        others: Callable[[], Sequence[Path]] = tuple,
        private: Path | None = None,
        gate: Gate | None = None,
        settings: Callable[[], SandboxConfig],
        tool_secrets: Callable[[], Mapping[str, str]] = dict,
        backend: Backend | None = None,
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        self.workspace = _real(workspace)
        self.gate = gate or Gate()
        self._instance_root = _real(instance_root)
        self._data_dir = _real(data_dir)
        self._tools_bin = _real(tools_bin)
        self._aliases = tuple((path, real) for path, real in ((workspace, self.workspace),) if path != real)
        self._skills = tuple(folder.parent.resolve() / folder.name for folder in skills)  # the last step is no link
        self._others = others
        self._private = None if private is None else self.workspace / private.relative_to(workspace)
        self._opened: tuple[Path, ...] = ()
        self._sees_private = False
        self._settings = settings
        self._tool_secrets = tool_secrets
        self.backend = backend or Backend()
        self._inherited = os.environ if inherited is None else inherited
        self._reported: set[Path] = set()
        self.disk_limiter = trio.CapacityLimiter(DISK_THREADS)
        self.temporary = self._data_dir / "tmp" / "shared"  # found as /tmp, kept between commands
        agents, own = self._instance_root / "agents", self._data_dir.parent
        is_others = self.workspace.is_relative_to(agents) and not self.workspace.is_relative_to(own)
        if self.workspace == self._instance_root or self.workspace.is_relative_to(self._data_dir) or is_others:
            raise ConfigError(
                f"workspace {str(workspace)!r} is a folder of the program's own files; name another under [[agents]]"
            )

    def view(self, name: str, *, opened: Sequence[Path] = (), sees_private: bool = False) -> "Containment":
        """The same rules for one worker: a temporary folder of its own, and what is hidden from all others.

        Call `open_folders` before its first command and `remove` after its last.

        Args:
            name: of the worker, fit for a file name.
            opened: parts of the private folder that it sees.
            sees_private: it sees all of it; for the owner's own console.
        """
        view = copy.copy(self)
        view.temporary = self._data_dir / "tmp" / name
        view._opened = tuple(self.workspace / path.relative_to(self.workspace) for path in opened)
        view._sees_private = sees_private
        return view

    @property
    def terms(self) -> tuple[Permissions, SandboxConfig]:
        """What the owner allows now; a program that began under other terms should begin anew."""
        return self.gate.permissions, self._settings()

    @property
    def is_enabled(self) -> bool:
        """Whether the owner wants containment."""
        return self._settings().mode == "enabled"

    @property
    def is_active(self) -> bool:
        """Whether commands are contained in fact."""
        return self.is_enabled and self.backend.kind is not BackendKind.NONE

    def prepare(self) -> None:
        """Remove what earlier lives left in temporary folders. Blocking: call it from a thread, once, at the start."""
        remove_tree(self._data_dir / "tmp")
        self.open_folders()

    def open_folders(self) -> None:
        """Make the folders that must be there before a command: what is missing cannot be hidden. Blocking."""
        self.temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (*self._skills, *((self._private,) if self._private else ()), *self._opened):
            with suppress(OSError):
                if path in self._skills or not self._is_led_away():
                    path.mkdir(parents=path not in self._skills, exist_ok=True)

    def remove(self) -> None:
        """Remove the temporary folder, whatever a command made in it. Blocking."""
        remove_tree(self.temporary)

    # Paths

    def policy(self) -> PathPolicy:
        """The rules of this moment for paths, as the file tool and `send_file` have them."""
        return self._policy(is_whole=False)

    def _commands_policy(self) -> PathPolicy:
        return self._policy(is_whole=self.gate.permissions.shell is Reach.ALLOW)

    def _policy(self, *, is_whole: bool, readable: Sequence[Path] = (), writable: Sequence[Path] = ()) -> PathPolicy:
        settings, permissions = self._settings(), self.gate.permissions
        reading = self._reading(permissions, settings, is_whole=is_whole)
        writing = self._writing(permissions, settings, is_whole=is_whole)
        aliases = self._aliases
        if self._has_private_tmp():  # the file tool must mean the same folder by it as a command does
            reading.append(Area(self.temporary, Access.READ))
            writing.append(Area(self.temporary, Access.WRITE))
            aliases = (*aliases, (PRIVATE_TMP, self.temporary))
        reading += [Area(_real(path), Access.READ) for path in (*readable, *writable)]
        writing += [Area(_real(path), Access.WRITE) for path in writable]
        writing += [Area(_real(path), Access.HIDDEN) for path in readable]
        return PathPolicy(
            base=self.workspace,
            reading=reading,
            writing=writing,
            gate=self.gate,
            is_enforced=settings.mode == "enabled",
            aliases=aliases,
            private=self._private,
        )

    def _reading(self, permissions: Permissions, settings: SandboxConfig, *, is_whole: bool) -> list[Area]:
        reach = Reach.ALLOW if is_whole else permissions.file_read
        areas = self._hidden()
        if reach is Reach.ALLOW:
            # A socket that can be seen can be talked to, also where nothing may be written.
            hidden = (PROCESSES, *KEY_FOLDERS) if is_whole else (PROCESSES, SERVICES)
            areas += [Area(Path("/"), Access.READ), *(Area(path, Access.HIDDEN) for path in hidden)]
            areas += [Area(SERVICES / name, Access.SYSTEM) for name in RUN_FOLDERS]
        else:
            root = Path("/")
            system = MAC_FOLDERS if self.backend.kind is BackendKind.SANDBOX_EXEC else SYSTEM_FOLDERS
            areas += [Area(root / name, Access.SYSTEM) for name in system]
            areas += [Area(SERVICES / name, Access.SYSTEM) for name in RUN_FOLDERS]
        areas.append(Area(self._tools_bin, Access.SYSTEM))
        return areas + self._granted(reach, settings, Access.READ)

    def _writing(self, permissions: Permissions, settings: SandboxConfig, *, is_whole: bool) -> list[Area]:
        reach = Reach.ALLOW if is_whole else permissions.file_write
        areas = self._hidden()
        areas += [Area(path, Access.HIDDEN) for path in (self.workspace / "ingest", self._tools_bin, *self._skills)]
        if reach is Reach.ALLOW:
            hidden = (PROCESSES, DEVICES, *(KEY_FOLDERS if is_whole else (SERVICES,)))
            areas += [Area(Path("/"), Access.WRITE), *(Area(path, Access.HIDDEN) for path in hidden)]
        return areas + self._granted(reach, settings, Access.WRITE)

    def _hidden(self) -> list[Area]:
        folders = [self._instance_root, self._data_dir, *filter(self._is_foreign, map(_real, self._others()))]
        if self._private is not None and not self._sees_private and not self._is_led_away():
            folders.append(self._private)
        return [Area(path, Access.HIDDEN) for path in folders]

    def _is_led_away(self) -> bool:
        """Whether somebody put a link in the private folder's place: nothing is kept there then."""
        return self._private is not None and (self._private.is_symlink() or self._private.parent.is_symlink())

    def _is_foreign(self, path: Path) -> bool:
        """Whether the workspace of another agent is not shared with this one by the owner."""
        named = [_real(self.workspace / folder.expanduser()) for folder in self._settings().writable_paths]
        return path not in (self.workspace, *named)

    def _granted(self, reach: Reach | Sequence[str], settings: SandboxConfig, access: Access) -> list[Area]:
        """The workspace and what the owner named beside it."""
        if reach is Reach.DENY:
            return []
        # What holds hidden parts is a mount of its own: a mount cannot be renamed, and with it what hides them.
        holding = [self._private.parent] if self._private is not None and not self._is_led_away() else []
        areas = [Area(path, access) for path in (self.workspace, *holding, *self._opened)]
        if access is Access.READ:
            areas += [Area(path, access) for path in self._skills if not path.is_symlink()]
        patterns = () if isinstance(reach, Reach) else reach
        named = [(self.workspace / path.expanduser(), "") for path in settings.writable_paths]
        named += [split_pattern(os.path.expanduser(pattern)) for pattern in patterns]
        for path, pattern in named:
            real = _real(self.workspace / path)
            if real.is_relative_to(self._instance_root) and not real.is_relative_to(self.workspace):
                if real not in self._reported:
                    self._reported.add(real)
                    log.warning("path ignored: it lies in the instance directory", extra=kv(path=str(real)))
            elif not real.is_relative_to(self.workspace):
                areas.append(Area(real, access, pattern))
        return areas

    def working_folder(self, text: str | None) -> Path:
        """The folder that a command asked to start in. Blocking: call it from a thread.

        Links are resolved and the target must be allowed; the sandbox is what holds the command there.

        Errors: ToolError.
        """
        policy = self._commands_policy()
        if not text:
            return self.visible(self._start(policy))
        place = policy.place(text, writing=False, tool="working_dir")
        real = _real(place.path)
        if self.is_enabled and policy.access(real) not in (Access.WRITE, Access.READ):
            raise DeniedError(
                f"working_dir {text!r} leads outside of the workspace; choose a folder inside", about="folder outside"
            )
        if not os.path.isdir(real):  # no error for a name that cannot exist
            raise ToolError(f"working_dir {text!r} is not a folder; create it first or leave the argument out")
        return self.visible(real)

    def _start(self, policy: PathPolicy) -> Path:
        """The workspace, unless commands may not see it."""
        is_seen = not self.is_active or policy.access(self.workspace) in (Access.WRITE, Access.READ)
        return self.workspace if is_seen else self.temporary

    def visible(self, path: Path) -> Path:
        """The path by which a command finds an admitted folder."""
        if self._has_private_tmp() and path.is_relative_to(self.temporary):
            return PRIVATE_TMP / path.relative_to(self.temporary)
        return path

    def is_seen(self, path: Path) -> bool:
        """Whether a command finds something at a path."""
        return not self.is_active or self._commands_policy().access(path, exactly=False) is not Access.HIDDEN

    def is_replaceable(self, path: Path) -> bool:
        """Whether a worker could have put something of its own at a path: for programs that are known by name."""
        areas = self._granted(Reach.WORKSPACE, self._settings(), Access.WRITE)
        permissions = self.gate.permissions
        if not isinstance(permissions.file_write, Reach):
            areas += self._granted(permissions.file_write, self._settings(), Access.WRITE)
        folders = [*(area.path for area in areas), self._data_dir, PRIVATE_TMP, Path("/var/tmp"), Path("/dev/shm")]
        return any(path.is_relative_to(folder) for folder in folders)

    def _has_private_tmp(self) -> bool:
        return self.is_active and self.backend.kind is BackendKind.BUBBLEWRAP

    # Environment

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for a command: built from nothing, whether contained or not.

        Args:
            extra: the command's own; reserved and injecting names are left out (`check_environment` refuses them).
        """
        return self._variables(self._tool_secrets(), extra or {})

    def tool_secret(self, name: str) -> str | None:
        """The value of a secret that the owner meant for commands; None when there is none of this name."""
        return self._tool_secrets().get(name.strip().upper())

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
            "PATH": self.search_path,
            "HOME": home,
            "TMPDIR": str(PRIVATE_TMP if self._has_private_tmp() else self.temporary),
            "CI": "true",  # installers and test runners then ask no questions
            "DEBIAN_FRONTEND": "noninteractive",
            "USER": inherited.get("USER", "agent"),
            "LANG": inherited.get("LANG", "C.UTF-8"),
            "TERM": inherited.get("TERM", "dumb"),
        }

    @property
    def search_path(self) -> str:
        """Where commands look for programs."""
        theirs = (entry for entry in self._inherited.get("PATH", "").split(os.pathsep) if os.path.isabs(entry))
        return os.pathsep.join(dict.fromkeys((str(self._tools_bin), *theirs, *SYSTEM_PATH)))

    # Commands

    def wrap(
        self, argv: Sequence[str], *, folder: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> Invocation:
        """Make a command line that runs contained, or as it stands when containment is off or impossible.

        Blocking (a few file status calls): call it from a thread.

        Args:
            folder: where the command starts; the workspace when None. Check it with `working_folder`.

        Errors: NotPermittedError when the network is denied and cannot be cut here.
        """
        self.open_folders()
        policy = self._commands_policy()
        has_network = self._network(argv[0])
        folder = folder or self.visible(self._start(policy))
        return self._contained(argv, policy, folder, self.environment(extra), has_network=has_network)

    def wrap_search(self, argv: Sequence[str], *, folder: Path) -> Invocation:
        """As `wrap`, for a program of the file tool: it sees what files may be read, and no secret."""
        self.open_folders()
        policy = self.policy()
        has_network = not self.backend.can_cut_network
        return self._contained(argv, policy, folder, self._variables({}, {}), has_network=has_network)

    def wrap_program(
        self,
        argv: Sequence[str],
        *,
        folder: Path | None = None,
        extra: Mapping[str, str] | None = None,
        writable: Sequence[Path] = (),
        readable: Sequence[Path] = (),
        has_network: bool | None = None,
    ) -> Invocation:
        """As `wrap`, for a program that the owner configured and a worker only uses: a browser, a coding server.

        It gets no secrets of commands. Blocking: call it from a thread.

        Args:
            writable, readable: further paths, which exist; also such that lie in the program's own folders.
            has_network: None: as the owner permits workers; True only where the program has to be reached by ours.

        Errors: NotPermittedError when the network is denied and cannot be cut here.
        """
        self.open_folders()
        policy = self._policy(is_whole=False, readable=readable, writable=writable)
        has_network = self._network(argv[0]) if has_network is None else has_network
        folder = folder or self.visible(self._start(policy))
        return self._contained(argv, policy, folder, self._variables({}, extra or {}), has_network=has_network)

    def _network(self, program: str) -> bool:
        """Whether a command has the network."""
        if self.gate.permissions.network_outbound:
            return True
        if not (self.is_active and self.backend.can_cut_network):
            why = "the sandbox is switched off" if not self.is_enabled else "no sandbox works here that could cut it"
            reason = f"network_outbound is denied to this agent and {why}, so {program!r} is not started"
            self.gate.refuse("command", reason, key="network_outbound")
        return False

    def _contained(
        self,
        argv: Sequence[str],
        policy: PathPolicy,
        folder: Path,
        environment: Mapping[str, str],
        *,
        has_network: bool,
    ) -> Invocation:
        if not self.is_active:
            return Invocation(tuple(argv), folder, environment)
        if self.backend.kind is BackendKind.SANDBOX_EXEC:
            profile = sandbox_profile(policy.areas, temporary=self.temporary, has_network=has_network)
            return Invocation((self.backend.program, "-p", profile, *argv), folder, environment)
        options = bubblewrap_options(
            policy.areas, temporary=self.temporary, has_proc=self.backend.has_proc, has_network=has_network
        )
        # Variables reach the command through the sandbox program's own environment, which holds nothing else:
        # as options they would stand in a command line that every user of the machine can read.
        words = (self.backend.program, *options, "--chdir", str(folder), "--", *argv)
        return Invocation(words, Path("/"), environment, wrappers=2, filter=call_filter())

    # Words

    def describe(self) -> str:
        """What is true now about containment and permissions, for a worker's prompt."""
        situation = Situation(
            is_enabled=self.is_enabled,
            trouble="" if self.is_active else self.backend.note,
            files=self.policy(),
            commands=self._commands_policy(),
            gate=self.gate,
            temporary=PRIVATE_TMP if self._has_private_tmp() else self.temporary,
            kept=[self.workspace / "ingest", *(path for path in self._skills if path.is_relative_to(self.workspace))],
            own=self._instance_root,
        )
        return situation.words()


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
            raise DeniedError(f"{name} is fixed for every command; leave it out of env", about="reserved variable")
        if not _is_free(name):
            raise DeniedError(
                f"{name} may not be set, it makes programs load other code; leave it out of env",
                about="injecting variable",
            )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_free(name: str) -> bool:
    upper = name.upper()
    return upper not in RESERVED_NAMES | INJECTING_NAMES and not upper.startswith(INJECTING_LEADS)


def _is_own(name: str, value: str) -> bool:
    # Credentials that the configuration uses are registered with the scrubber under this kind.
    return name.startswith(OWN_LEAD) or find_secret(value) == "configured secret"
