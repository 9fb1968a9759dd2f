"""Whether a native library runs on this machine, found out by a child process, because a processor that lacks an
instruction ends the process that meets it.

The child imports the library and uses it once, in a temporary folder. What came of it is kept per version and
machine, so it costs a second or two once. A death by signal is kept too; a library that cannot be imported, or a
child that was too slow, is asked again at the next start.

Flow:    why_not -> verdict in the file, or child -> main -> child_main of the library's module
Floor:   memory; may import base
"""

import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from spacebot import __version__
from spacebot.base.telemetry import kv

log = logging.getLogger(__name__)

CHILD = "memory-child"  # hidden word of the command line
TIMEOUT_S = 120.0  # an import from a cold, slow disk takes its time
_MODULES = {  # what the child is for -> the module whose `child_main` does it
    "lancedb": "spacebot.memory.vectors",
    "onnxruntime": "spacebot.memory.embedding",
    "table": "spacebot.memory.index",
}
_KEPT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "LANG",
    "LC_ALL",
)  # of the environment; no secret among them
_DEADLY = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT}


async def why_not(library: str, verdicts: Path | None, words: Sequence[str] = ()) -> str | None:
    """Why a library cannot be used here, in plain words; None when it can.

    Args:
        library: lancedb or onnxruntime.
        verdicts: JSON file of what was found out before; None keeps nothing.
        words: what the library's `child_main` wants to know.

    Cancel: the child is ended.
    """
    key = await trio.to_thread.run_sync(_key, library)
    known = await trio.to_thread.run_sync(_read, verdicts)
    if key in known:
        return str(known[key]) or None
    reason, is_lasting = await _ask(library, words)
    if reason:
        log.warning("a native library cannot be used", extra=kv(library=library, reason=reason))
    if is_lasting:
        await trio.to_thread.run_sync(_note, verdicts, library, key, reason)
    return reason or None


async def _ask(library: str, words: Sequence[str]) -> tuple[str, bool]:
    """The reason, empty when all is well; and whether it will be the same next time."""
    try:
        with trio.fail_after(TIMEOUT_S):
            done = await trio.run_process(
                child_command(library, words),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=child_environment(),
            )
    except trio.TooSlowError:
        return f"{library} did not answer within {TIMEOUT_S:.0f} s in a trial run", False
    except OSError as error:
        return f"{library} could not be tried out ({error.strerror}); see that {sys.executable!r} can be run", False
    if done.returncode == 0:
        return "", True
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        what = f"{library} does not run on this processor or is damaged: a trial run of it died of {name}"
        return what, -done.returncode in _DEADLY
    return (
        f"{library} failed in a trial run ({last[0][:300] if last else done.returncode}); install the program anew",
        False,
    )


def child_command(purpose: str, words: Sequence[str] = ()) -> list[str]:
    """The words that run this program as a helper of its own; the executable's launcher is not needed for that."""
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "spacebot"]
    return [*program, CHILD, purpose, *words]


def child_environment() -> dict[str, str]:
    """Nothing but what a child needs to start; no key, token or setting."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if not getattr(sys, "frozen", False):
        above = str(Path(__file__).resolve().parents[2])
        kept["PYTHONPATH"] = os.pathsep.join([above, *filter(None, [kept.get("PYTHONPATH")])])
    return kept


@asynccontextmanager
async def run_child(purpose: str, words: Sequence[str]) -> AsyncIterator[trio.Process]:
    """A helper that lives no longer than the block, nor than this program: it ends when its input is closed.

    Owns: the process.
    Errors: OSError when it cannot be started.
    """
    import subprocess

    process = await trio.lowlevel.open_process(
        child_command(purpose, words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


def main(words: Sequence[str]) -> int:
    """The child: does what its first word says; returns the exit code."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its death is an answer, not worth a dump
    if not words or words[0] not in _MODULES:
        print("this word is for the program itself", file=sys.stderr)
        return 2
    code: int = importlib.import_module(_MODULES[words[0]]).child_main(words[1:])
    return code


def _key(library: str) -> str:
    """Library, its version, and what the machine can do."""
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # missing, or inside the executable, which has one version of each
        version = f"of {__version__}"
    able = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() in ("flags", "Features"):
                able += line
                break
    return f"{library} {version} {hashlib.sha256(able.encode()).hexdigest()[:16]}"


def _read(verdicts: Path | None) -> dict[str, Any]:
    if verdicts is not None:
        with suppress(OSError, ValueError):
            known = json.loads(verdicts.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
    return {}


def _note(verdicts: Path | None, library: str, key: str, reason: str) -> None:
    """Keep a verdict; a folder that cannot be written costs a trial at each start."""
    if verdicts is None:
        return
    known = {name: text for name, text in _read(verdicts).items() if not name.startswith(f"{library} ")}
    part = verdicts.with_name(f"{verdicts.name}.{os.getpid()}")
    with suppress(OSError):
        verdicts.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**known, key: reason}, indent=1), encoding="utf-8")
        part.replace(verdicts)
