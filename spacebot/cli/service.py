"""`service`: let systemd start the program, look after it and start it again.

Flow:    run_service -> unit text -> file -> systemctl
Floor:   cli; standard library only
Source:  control spec 3.4; systemd.service(5), systemd.exec(5), systemd.unit(5)
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.paths import DIR_VARIABLE, InstancePaths, program_command

NAME = "spacebot.service"
USER = "spacebot"
MARK = "# Written by: spacebot service install"
SYSTEM_FOLDER = Path("/etc/systemd/system")
SYSTEM_STATE = Path("/var/lib/spacebot")
SYSTEM_KEYS = Path("/etc/spacebot.env")
ASK_S = 30.0  # systemctl answers at once, but waits for a start
HOMES = ("/home", "/root", "/Users")

_UNIT = """\
{mark}
#
# {about}
{notes}
[Unit]
Description=Spacebot, an AI agent for teams and communities
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
# The program says itself when it accepts messages, and gives a sign of life as long as its event loop turns.
Type=notify
WatchdogSec=60
ExecStart={command}
ExecReload=kill -HUP $MAINPID
{place}
UMask=0077
LimitNOFILE=65536

# The first start of a version unpacks it; slow disks take their time.
TimeoutStartSec=120
# TERM goes to the program alone: running turns finish, stores close, it ends its own children. KILL follows.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=30
Restart=on-failure
RestartSec=5
# 70: the file is damaged or cannot be unpacked, which another try does not heal.
RestartPreventExitStatus=70
# A worker's command that the kernel kills for its memory must not take the program along.
OOMPolicy=continue

{hardening}
[Install]
WantedBy={target}
"""
_SYSTEM_HARDENING = """\
# The agents' commands run in a sandbox (bubblewrap) and pages in Chromium; both make namespaces of their own. That is
# why these are not set:
#   RestrictNamespaces, SystemCallFilter    they take away the calls that the sandbox is made of (clone, unshare, mount)
#   ProtectKernelTunables, ProtectKernelLogs, ProtectProc    with parts of /proc covered or hidden, the kernel refuses
#                                           the sandbox a fresh /proc
#   MemoryDenyWriteExecute                  Chromium and other programs translate scripts to machine code
#   PrivateUsers                            a namespace inside would have no more users to map
#   PrivateNetwork, IPAddressDeny           it talks with models, platforms and pages
# The sandbox works without new privileges, and its rights inside come from its own namespace, not from this set.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
{writable}ProtectHome={home}
PrivateTmp=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""
_USER_HARDENING = """\
# A manager of a user can only harden by a user namespace, in which the sandbox of the agents' commands would not find
# what it needs. What needs none is set; a system service (--system) is closed further.
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit to be written: where, with which text, and the commands that make it count."""

    path: Path
    text: str
    user: str | None  # of a system service; made when it is missing
    steps: tuple[tuple[str, ...], ...]


def add_service_commands(service: ArgumentParser, add: Callable[..., ArgumentParser]) -> None:
    """Describe the words of the service commands.

    Args:
        service: the parser of `service` itself.
        add: makes the parser of one command: name, description, the group it goes into.
    """
    group = service.add_subparsers(metavar="install|uninstall|status", required=True)
    for name, run, words in (
        ("install", _install, "Write the unit, switch it on and start it."),
        ("uninstall", _uninstall, "Stop it and remove the unit; the data stays."),
        ("status", _status, "Show what systemd says of it."),
    ):
        command = add(name, words, group)
        command.set_defaults(service_command=run)
        kind = command.add_mutually_exclusive_group()
        kind.add_argument("--user", action="store_true", help="of your own systemd (the default, unless you are root)")
        kind.add_argument("--system", action="store_true", help="of the machine, under a user of its own")
        command.add_argument("--dry-run", action="store_true", help="only print what would be done")


def run_service(paths: InstancePaths, options: Namespace) -> int:
    """Run one of the commands. Errors: RefusedError, ExternalError."""
    if sys.platform != "linux":
        raise RefusedError(
            "services are installed for systemd, which only Linux has; elsewhere have your own service manager run: "
            f"{' '.join(program_command())} start --foreground"
        )
    run: Callable[[InstancePaths, Namespace], int] = options.service_command
    return run(paths, options)


def make_unit(
    paths: InstancePaths, *, is_system: bool, command: Sequence[str], config: Path | None, writable: Sequence[Path] = ()
) -> Unit:
    """The unit of an instance.

    Args:
        command: the words that start the program.
        config: what `--config` named; None leaves the place to `SPACEBOT_DIR`, or to the default.
        writable: folders elsewhere that workers may write to.

    Errors: RefusedError when a system service could not reach the program.
    """
    root, user = _place(paths, is_system=is_system, config=config)
    is_default = is_system and root == SYSTEM_STATE
    words = [*command, *(["--config", str(config)] if config is not None else []), "start", "--foreground"]
    if is_system:
        _refuse_unreachable(Path(command[0]))
    rest = [*([] if is_default else [root]), *writable]
    hardening = _USER_HARDENING
    if is_system:
        hardening = _SYSTEM_HARDENING.format(
            writable="".join(f"ReadWritePaths={_quoted(str(path))}\n" for path in rest),
            home="read-only" if any(_is_in_home(path) for path in rest) else "yes",
        )
    keys = SYSTEM_KEYS if is_system else "~/.config/spacebot.env"
    file = root / "config.toml" if config is None else config
    notes = f"# Configuration: {file}\n# Keys of providers may stand in {keys}, one NAME=value a line.\n"
    text = _UNIT.format(
        mark=MARK,
        about="Changes of yours belong into: systemctl edit spacebot"
        if is_system
        else "Changes of yours belong into: systemctl --user edit spacebot",
        notes=notes,
        command=" ".join(_quoted(word, is_command=True) for word in words),
        place="\n".join(_place_lines(command, root, user, config=config)),
        hardening=hardening,
        target="multi-user.target" if is_system else "default.target",
    )
    ctl = ("systemctl",) if is_system else ("systemctl", "--user")
    return Unit(
        path=_folder(is_system) / NAME,
        text=text,
        user=user if is_system else None,
        steps=((*ctl, "daemon-reload"), (*ctl, "enable", NAME), (*ctl, "restart", NAME)),
    )


def _place_lines(command: Sequence[str], root: Path, user: str, *, config: Path | None) -> Iterator[str]:
    """Where it runs and as whom; `user` is empty for a service of one's own."""
    is_default = bool(user) and root == SYSTEM_STATE
    if (checkout := _checkout(command)) is not None:
        yield f"WorkingDirectory={_escaped(checkout)}"
    if user:
        yield f"User={user}"
    if config is None:
        yield (
            f"Environment={DIR_VARIABLE}=%S/spacebot"
            if is_default
            else f"Environment={_quoted(f'{DIR_VARIABLE}={root}')}"
        )
    yield "Environment=SPACEBOT_CACHE=%C/spacebot"
    yield f"EnvironmentFile=-{SYSTEM_KEYS if user else '%h/.config/spacebot.env'}"
    if is_default:
        yield from ("StateDirectory=spacebot", "StateDirectoryMode=0700")
    if user:
        yield from ("CacheDirectory=spacebot", "CacheDirectoryMode=0700")


def _install(paths: InstancePaths, options: Namespace) -> int:
    is_system = _is_system(options)
    unit = make_unit(
        paths,
        is_system=is_system,
        command=program_command(),
        config=paths.config if options.config else None,
        writable=_outside(paths),
    )
    if options.dry_run:
        print(unit.text, end="")
        user = [("useradd", *_USERADD, unit.user)] if unit.user and not _user_exists(unit.user) else []
        print(f"would write {unit.path}, then run:", file=sys.stderr)
        for step in (*user, *unit.steps):
            print(f"  {' '.join(step)}", file=sys.stderr)
        return 0
    _need_systemd(is_system)
    if unit.path.exists() and MARK not in unit.path.read_text(encoding="utf-8", errors="replace"):
        raise RefusedError(f"{unit.path} was written by somebody else; move it away first")
    if unit.user and not _user_exists(unit.user):
        _run(("useradd", *_USERADD, unit.user))
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unit.path.with_name(f".{NAME}.new")
        unfinished.write_text(unit.text, encoding="utf-8")
        unfinished.chmod(0o644)
        unfinished.replace(unit.path)
    except OSError as error:
        raise RefusedError(
            f"cannot write {unit.path} ({error.strerror}); with --user it goes into your own folder"
        ) from error
    for step in unit.steps:
        _run(step)
    root = _place(paths, is_system=is_system, config=paths.config if options.config else None)[0]
    if unit.user == USER and root != SYSTEM_STATE and root.exists():
        print(f"{root} belongs to root; the service needs it: chown -R {USER}: {root}", file=sys.stderr)
    print(f"{unit.path} is written, switched on and started", file=sys.stderr)
    if is_system:
        shown = f"{DIR_VARIABLE}={root} {' '.join(program_command())} status"
        print(f"commands speak to it as its user: sudo -u {unit.user} {shown}", file=sys.stderr)
    else:
        print("so that it runs while you are not logged in: loginctl enable-linger", file=sys.stderr)
    return 0


def _uninstall(paths: InstancePaths, options: Namespace) -> int:
    is_system = _is_system(options)
    path = _folder(is_system) / NAME
    ctl = ("systemctl",) if is_system else ("systemctl", "--user")
    steps = ((*ctl, "disable", "--now", NAME), (*ctl, "daemon-reload"))
    if options.dry_run:
        print(f"would remove {path}, and run:", file=sys.stderr)
        for step in steps:
            print(f"  {' '.join(step)}", file=sys.stderr)
        return 0
    if not path.exists():
        raise RefusedError(f"there is no {path}; nothing is installed here{'' if is_system else ' (or use --system)'}")
    if MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise RefusedError(f"{path} was written by somebody else; remove it by hand")
    _need_systemd(is_system)
    _run(steps[0])
    path.unlink()
    _run(steps[1])
    print(f"removed {path}; the instance itself stays where it is", file=sys.stderr)
    return 0


def _status(paths: InstancePaths, options: Namespace) -> int:
    is_system = _is_system(options)
    path = _folder(is_system) / NAME
    print(f"unit:   {path}{'' if path.exists() else ' (not installed)'}")
    if options.dry_run or not path.exists():
        return 1
    _need_systemd(is_system)
    ctl = ["systemctl"] if is_system else ["systemctl", "--user"]
    keys = ("ActiveState", "SubState", "MainPID", "NRestarts", "UnitFileState", "StatusText")
    shown = _run([*ctl, "show", NAME, f"--property={','.join(keys)}"])
    found = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    print(f"state:  {found.get('ActiveState')} ({found.get('SubState')}), at boot: {found.get('UnitFileState')}")
    print(f"pid:    {found.get('MainPID')}, restarts: {found.get('NRestarts')}")
    if found.get("StatusText"):
        print(f"says:   {found['StatusText']}")
    return 0 if found.get("ActiveState") == "active" else 1


_USERADD = ("--system", "--home-dir", str(SYSTEM_STATE), "--shell", "/usr/sbin/nologin")


def _is_system(options: Namespace) -> bool:
    return bool(options.system or (not options.user and os.geteuid() == 0))


def _folder(is_system: bool) -> Path:
    if is_system:
        return SYSTEM_FOLDER
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _place(paths: InstancePaths, *, is_system: bool, config: Path | None) -> tuple[Path, str]:
    """The instance directory, and the user of a system service: the owner of a directory that is there already."""
    if not is_system:
        return paths.root, ""
    import pwd  # here and below: every command loads this module for its words

    root = paths.root if config is not None or os.environ.get(DIR_VARIABLE) else SYSTEM_STATE
    if root != SYSTEM_STATE and root.exists() and (owner := root.stat().st_uid) != 0:
        try:
            return root, pwd.getpwuid(owner).pw_name
        except KeyError:
            return root, str(owner)
    return root, USER


def _refuse_unreachable(program: Path) -> None:
    """A user of its own cannot look into other people's homes, and ProtectHome hides them."""
    if _is_in_home(program):
        raise RefusedError(
            f"{program} lies in a home directory, which a system service cannot read; install the program elsewhere, "
            "such as /usr/local/bin or /opt, or use --user"
        )


def _is_in_home(path: Path) -> bool:
    return any(path.is_relative_to(home) for home in HOMES)


def _checkout(command: Sequence[str]) -> Path | None:
    """The folder from which `python -m spacebot` works when the package is not installed."""
    if len(command) < 2 or "-m" not in command:
        return None
    import subprocess

    package = Path(__file__).resolve().parents[1]
    clean = {"PATH": os.environ.get("PATH", os.defpath)}
    try:
        probe = subprocess.run(
            [*command, "--version"], cwd="/", env=clean, capture_output=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return package.parent
    return None if probe.returncode == 0 else package.parent


def _outside(paths: InstancePaths) -> list[Path]:
    """Workspaces and writable folders that the configuration names outside of the instance."""
    if not paths.config.exists():
        return []
    from spacebot.base.errors import ConfigError
    from spacebot.config.load import load_config  # heavy, and only needed here

    try:
        agents = load_config(paths.config).config.agents
    except ConfigError:  # said by the start, and by spacebot config check
        return []
    named = [path for agent in agents for path in (agent.workspace, *agent.sandbox.writable_paths) if path is not None]
    return sorted({path for path in named if path.is_absolute() and not path.is_relative_to(paths.root)})


def _need_systemd(is_system: bool) -> None:
    import shutil

    if shutil.which("systemctl") is None:
        raise RefusedError(
            "systemctl is not here, so there is no systemd to install into; --dry-run prints the unit all the same"
        )
    if is_system and os.geteuid() != 0:
        raise RefusedError("a system service is installed by root; use sudo, or --user for a service of your own")


def _user_exists(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return name.isdecimal()
    return True


def _run(step: Sequence[str]) -> str:
    import subprocess

    try:
        done = subprocess.run(step, capture_output=True, text=True, timeout=180, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExternalError(f"{' '.join(step)} failed ({type(error).__name__}); run it by hand to see why") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise ExternalError(f"{' '.join(step)} failed: {said}")
    return done.stdout


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def _quoted(word: str, *, is_command: bool = False) -> str:
    """A word as systemd.syntax(7) wants it; in commands `$` begins a variable."""
    word = word.replace("%", "%%")
    if is_command:
        word = word.replace("$", "$$")
    if any(sign in word for sign in " \t\"'\\;"):
        return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return word
