"""What the doctor asks of the machine: Python, disk, sandbox, browser, programs, clock, network, limits.

Floor:   agent
Source:  agent/checks.py
"""

import json
import os
import platform
import re
import resource
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import trio

from spacebot import __version__
from spacebot.agent.checks import Asking, Blocking, Finding, Report, Scene
from spacebot.base.errors import ToolError
from spacebot.base.paths import bundled_model
from spacebot.memory.probe import why_not
from spacebot.tools.backends import BackendKind, probe_backend
from spacebot.tools.browser.chromium import find_programs

BUILT = 1_767_225_600.0  # 2026-01-01: a clock before that is wrong
FUTURE_S = 600.0  # by which files may seem to come from the future
LITTLE_DISK = 1 << 30  # bytes
NO_DISK = 100 << 20
LITTLE_MEMORY = 600 << 20  # with the embedding model and a browser beside it
MIN_FILES = 1024
VERSION_S = 15.0  # a cold browser takes its time to say its version
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_FOREIGN_DISKS = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|fuse\.sshfs|9p|afs|davfs|fuse\.rclone")


def check_program(scene: Scene) -> Iterator[Finding]:
    """Python, the executable, the system."""
    say = Report("program")
    kind = "executable" if getattr(sys, "frozen", False) else f"Python {platform.python_version()}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield say.fail(f"Python {platform.python_version()} is not one of 3.11 to 3.13", "run it with one of those")
    elif sys.platform not in ("linux", "darwin"):
        yield say.fail(f"{sys.platform} is not supported", "use Linux or macOS")
    elif sys.maxsize < 1 << 32:
        yield say.fail("a 32-bit system: its libraries do not exist for it", "use a 64-bit system")
    else:
        yield say.ok(f"Spacebot {__version__}, {kind}, {platform.system()} {platform.machine()}")


def check_folder(scene: Scene) -> Iterator[Finding]:
    """The instance directory: there, writable, private, on a disk of this machine with room."""
    say, root = Report("folder"), scene.paths.root
    if not root.is_dir():
        yield say.warn(f"{root} does not exist yet", "the first start makes it: spacebot start")
        return
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"x")
    except OSError as error:
        yield say.fail(f"{root} cannot be written ({error.strerror})", f"sudo chown -R {os.getuid()} {root}")
        return
    mode = stat.S_IMODE(root.stat().st_mode)
    if mode & 0o077:
        yield say.warn(f"{root} can be entered by others (mode {mode:o})", f"chmod 700 {root}")
    if (kind := _disk_kind(root)) and _FOREIGN_DISKS.fullmatch(kind):
        yield say.warn(f"{root} lies on {kind}, where databases may be damaged", "keep the instance on a local disk")
    free = shutil.disk_usage(root).free
    if free < NO_DISK:
        yield say.fail(f"only {free >> 20} MiB are free at {root}", "make room; messages are refused when it is full")
    elif free < LITTLE_DISK:
        yield say.warn(f"only {free >> 20} MiB are free at {root}", "make room before it is used up")
    else:
        yield say.ok(f"{root}, {free >> 30} GiB free")


def _disk_kind(path: Path) -> str:
    """File system of a path, by the longest mount point above it; empty where that is not told."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 2 and path.is_relative_to(words[1]) and len(words[1]) >= len(best):
                best, kind = words[1], words[2]
    return kind


def check_model_files(scene: Scene) -> Iterator[Finding]:
    """The embedding model: all its files, each the right one."""
    import hashlib

    say, folder = Report("embedding"), bundled_model()
    mend = "install the program anew; from a checkout: make model"
    try:
        known = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        for name, wanted in known.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    yield say.fail(f"{folder / name} is not the file it should be", mend)
                    return
    except (OSError, ValueError, KeyError, AttributeError) as error:
        yield say.fail(f"the embedding model in {folder} is incomplete ({type(error).__name__})", mend)
        return
    yield say.ok(f"{folder.name}, {len(known)} files, checksums right")


async def check_libraries(scene: Scene) -> Iterable[Finding]:
    """The native libraries run on this processor; a child process tries them."""
    say = Report("libraries")
    findings = []
    verdicts = scene.paths.root / "native.json" if scene.paths.root.is_dir() else None
    for library, loss in (("onnxruntime", "nothing is found by meaning"), ("lancedb", "SQLite does its work, slower")):
        words = (str(bundled_model()),) if library == "onnxruntime" else ()
        if (reason := await why_not(library, verdicts, words)) is not None:
            findings.append(say.warn(f"{library} cannot be used: {reason}", f"{loss}; install the program anew"))
    return findings or [say.ok("the embedding runtime and LanceDB run here")]


async def check_sandbox(scene: Scene) -> Iterable[Finding]:
    """What contains workers' commands."""
    say = Report("sandbox")
    off = scene.config and [agent.id for agent in scene.config.agents if agent.sandbox.mode == "disabled"]
    if off:
        return [say.warn(f"switched off for {', '.join(off)}", "leave sandbox.mode out, or set it to 'enabled'")]
    backend = await probe_backend()
    if backend.kind is BackendKind.NONE:
        mend = (
            "apt install bubblewrap (or dnf); in a container, allow user namespaces (--security-opt seccomp=unconfined)"
        )
        return [say.warn(f"commands of workers run without containment: {backend.note}", mend)]
    if not backend.can_cut_network:
        return [say.warn(f"{backend.note}, but it cannot take the network away", "network_outbound = false is refused")]
    if not backend.has_proc:
        return [say.ok(f"{backend.note}, without /proc (a container in a container)")]
    return [say.ok(backend.note)]


def check_browser(scene: Scene) -> Iterator[Finding]:
    """Chromium and its driver, of the same version."""
    say = Report("browser")
    wanted = [agent for agent in scene.config.agents if agent.browser.enabled] if scene.config else []
    if scene.config and not wanted:
        yield say.ok("switched off")
        return
    try:
        programs = find_programs(wanted[0].browser.executable_path if wanted else None, scene.environ)
    except ToolError as error:
        yield say.warn(str(error), "or switch it off: [defaults.browser] enabled = false")
        return
    versions = [_version(program) for program in (programs.chromium, programs.driver)]
    if not all(versions):
        silent = programs.driver if versions[0] else programs.chromium
        yield say.fail(f"{silent} does not say its version", "start it by hand to see why; install it anew")
    elif versions[0].split(".")[0] != versions[1].split(".")[0]:
        said = f"Chromium is {versions[0]}, its driver {versions[1]}"
        yield say.fail(said, "install both from the same source, so that they have the same first number")
    else:
        yield say.ok(f"Chromium {versions[0]} with its driver")


def _version(program: str) -> str:
    """The version that a program states; empty when it states none. It is told where things are, and no key."""
    known = {name: text for name in ("PATH", "HOME", "LANG", "TMPDIR") if (text := os.environ.get(name))}
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False,
            stdin=subprocess.DEVNULL, env=known,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return match[0] if match else ""


def check_programs(scene: Scene) -> Iterator[Finding]:
    """Programs that the configuration names, and git."""
    say, path = Report("programs"), scene.environ.get("PATH", os.defpath)
    search = os.pathsep.join([str(scene.paths.tools_bin), path])
    missing = False
    for agent in scene.config.agents if scene.config else ():
        for server in agent.mcp:
            program = server.command or ""
            if server.enabled and program and "${" not in program and not _found(program, search):
                missing = True
                mend = "install Node.js (it brings npx)" if program in ("npx", "node", "npm") else f"install {program}"
                yield say.fail(
                    f"agent {agent.id}: MCP server {server.name!r} wants {program!r}, which is not here",
                    f"{mend}, or write its whole path as the command",
                )
        if agent.opencode.enabled and not _found(agent.opencode.path, search):
            missing = True
            yield say.fail(
                f"agent {agent.id}: OpenCode is on, but {agent.opencode.path!r} is not here",
                "npm install -g opencode-ai, or set path under [defaults.opencode]",
            )
    if not _found("git", search):
        missing = True
        yield say.warn("git is not installed; workers who write code want it", "apt install git")
    if not missing:
        yield say.ok("git, and every program that the configuration names")


def _found(program: str, search: str) -> bool:
    return shutil.which(os.path.expanduser(program), path=search) is not None


def check_clock(scene: Scene) -> Iterator[Finding]:
    """The time, and the time zones."""
    say, now = Report("clock"), time.time()
    mend = "set the clock (timedatectl set-ntp true); keys, sign-ins and schedules depend on it"
    newest = 0.0
    for path in (scene.paths.logs / "spacebot.log", *scene.paths.root.glob("agents/*/data/spacebot.db*")):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    if now < BUILT:
        yield say.fail(f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}, which is long ago", mend)
        return
    if newest > now + FUTURE_S:
        yield say.fail(f"the newest data come from the future, by {(newest - now) / 3600:.1f} hours", mend)
        return
    zones = (
        {zone for agent in scene.config.agents for zone in (agent.user_timezone, agent.cron_timezone) if zone}
        if scene.config
        else set()
    )
    for zone in sorted({*zones, "Europe/Berlin"}):
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            yield say.fail(f"the time zone {zone} is not known on this machine", "apt install tzdata")
            return
    yield say.ok(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC, time zones known")


def check_network(scene: Scene) -> Iterator[Finding]:
    """Certificates and proxies; nobody is asked."""
    say = Report("network")
    troubled = False
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        if (value := scene.environ.get(name)) and not Path(value).exists():
            troubled = True
            yield say.fail(f"{name} names {value}, which does not exist", f"unset {name}, or correct it")
    if proxies := sorted({name.upper() for name in _PROXIES if scene.environ.get(name)}):
        troubled = True
        said = f"{', '.join(proxies)} is set: calls of models may go through it, fetches for workers never do"
        yield say.warn(said, "unset it if no proxy is needed; else see that it lets model calls through")
    if not ssl.create_default_context().cert_store_stats()["x509_ca"]:
        with suppress(ImportError):
            import certifi

            if Path(certifi.where()).exists():
                if not troubled:
                    yield say.ok("certificates come with the program")
                return
        yield say.fail("no certificate authorities are known, so no https works", "apt install ca-certificates")
    elif not troubled:
        yield say.ok("certificate authorities are known, no proxy")


def check_limits(scene: Scene) -> Iterator[Finding]:
    """Memory, processors, open files, watches."""
    say = Report("limits")
    troubled = False
    memory = _memory()
    if memory is not None and memory < LITTLE_MEMORY:
        troubled = True
        yield say.warn(
            f"{memory >> 20} MiB of memory are at hand", "512 MiB are enough without a browser; give it 2 GiB with one"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_FILES:
        troubled = True
        yield say.warn(
            f"only {soft} open files are allowed (up to {hard})", "ulimit -n 65536, or LimitNOFILE= in the unit"
        )
    with suppress(OSError, ValueError):
        if (watches := int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())) < 16:
            troubled = True
            yield say.warn(f"only {watches} file watchers are allowed", "sysctl fs.inotify.max_user_instances=128")
    if not troubled:
        shown = f"{memory / 2**30:.1f} GiB of memory, " if memory is not None else ""
        yield say.ok(f"{shown}{_processors():g} processors, {soft} open files")


def _memory() -> int | None:
    """Bytes that the machine has, or that a container allows; None where that is not told."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path(file).read_text()))  # "max" is no number
    return min(found, default=None)


def _processors() -> float:
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return round(int(quota) / int(period), 1)
    return float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


async def check_names(scene: Scene) -> Iterable[Finding]:
    """Whether the hosts of the providers can be found; asks the name servers."""
    say = Report("names")
    if scene.config is None:
        return []
    urls = {urlsplit(provider.base_url).hostname for provider in scene.config.llm.provider.values()}
    hosts = sorted(host for host in urls if host)
    findings = []
    for host in hosts:
        try:
            with trio.fail_after(VERSION_S):
                await trio.socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        except (OSError, trio.TooSlowError) as error:
            why = getattr(error, "strerror", None) or "no answer"
            findings.append(say.fail(f"{host} cannot be found ({why})", "check the network and /etc/resolv.conf"))
    return findings or [say.ok(f"found: {', '.join(hosts)}" if hosts else "no provider to look for")]


MACHINE: Mapping[str, Blocking] = {
    "program": check_program,
    "folder": check_folder,
    "embedding": check_model_files,
    "browser": check_browser,
    "programs": check_programs,
    "clock": check_clock,
    "network": check_network,
    "limits": check_limits,
}
MACHINE_ASKING: Mapping[str, Asking] = {"libraries": check_libraries, "sandbox": check_sandbox}
