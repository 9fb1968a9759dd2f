"""Run one command to its end: bounded output, no way to be left behind.

A command ends when it exits, when its time is up, when it waits for an answer that nobody will give,
when it said too much, or when the caller is cancelled; in each case every process that it started is
gone before `run_command` returns.

On Linux the processes of a command are found by three marks: descent, session, and a variable in
their environment that children inherit. What escapes outside of a sandbox is a process that left
the session, lost its parent and threw away its environment, all before the command ended. Inside
bubblewrap nothing escapes: its own table of processes ends with it. Elsewhere (macOS) only the
process group is found. If the program itself is killed without notice, contained commands die with
it and others run on.

Flow:    run_command -> two readers, one watch -> end_family -> Report
Floor:   tools
Source:  tools spec 5.4 and 23
"""

import codecs
import errno
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from spacebot.base.errors import ToolError
from spacebot.base.ids import new_uuid
from spacebot.base.redaction import LONGEST, MASK, safe_length, scrub
from spacebot.tools.call_filter import filtered
from spacebot.tools.sandbox import Invocation

OUTPUT_CAP = 50_000  # bytes that a report shows; tools spec 1
QUIET_S = 5.0  # silence after which a line that looks like a question counts as one; tools spec 5.4
GRACE_S = 1.0  # between the polite and the final signal
FINAL_S = 3.0  # for the system to clear away killed processes
DRAIN_S = 2.0  # for the last output after the end; only a process that escaped could still hold the pipe
MARK = "SPACEBOT_COMMAND"
STEP_S = 0.02  # between two looks at the table of processes; there is no event for "all of these are gone"

# One piece is scrubbed in one go, on the loop: small enough that no text makes it slow.
PIECE = 4096  # bytes
LONGEST_LINE = PIECE  # characters held back while a line is incomplete
RECENT = 400  # bytes in which a question is looked for

_QUESTION = re.compile(
    r"[\[(]\s*y(?:es)?\s*[/|]\s*n(?:o)?\b[^\])]{0,20}[\])]"
    r"|are you sure\b|press (?:enter|return|any key)\b"
    r"|(?:password|passphrase)\b[^:?]{0,80}[:?]\s*$|\bcontinue\s*\?",
    re.IGNORECASE,
)
_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_KEY_ENDS = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")


class Ending(StrEnum):
    """Why a command ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    WAITING = "waiting_for_input"
    TOO_MUCH = "too_much_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a command came to.

    Args:
        exit_code: its own; -1 for a signal, a time-out or too much output, -2 for waiting for input.
        stdout: scrubbed text, head and tail.
        is_complete: nothing of either stream was left out.
    """

    ending: Ending
    exit_code: int
    stdout: str
    stderr: str
    is_complete: bool = True
    signal_name: str = ""


@dataclass(slots=True)
class _Last:
    ended_at: float = -math.inf


_last = _Last()


def last_command_ended_at() -> float:
    """When the last command was gone, in monotonic seconds of the system; what it sent may still be under way."""
    return _last.ended_at


async def run_command(
    invocation: Invocation,
    *,
    timeout_s: float,
    on_output: Callable[[str, str], None] | None = None,
    on_progress: Callable[[], None] | None = None,
    quiet_s: float = QUIET_S,
    max_bytes: int | None = None,
) -> Report:
    """Run a command and everything it starts to the end.

    Args:
        on_output: gets (stream name, scrubbed text of whole lines), at most `OUTPUT_CAP` bytes per stream.
        on_progress: called at each sign of life.
        max_bytes: output after which the command is ended; None reads on and forgets the middle.

    Errors: ToolError when the program cannot be started.
    Cancel: the command and its children are gone when the cancellation passes; takes up to about
        `GRACE_S + FINAL_S` seconds if they resist.
    """
    mark = new_uuid()
    deadline = trio.current_time() + timeout_s
    popen, pipes = _start(invocation, mark)
    stdout, stderr = streams = tuple(_Stream(name, on_output, on_progress) for name in ("stdout", "stderr"))
    sources = tuple(zip(streams, pipes, strict=True))
    ending: Ending | None = None
    try:
        async with trio.open_nursery() as nursery:

            def stop(reason: Ending) -> None:
                nonlocal ending
                ending = ending or reason
                nursery.cancel_scope.cancel()

            nursery.start_soon(_read_all, sources)
            nursery.start_soon(_time_out, deadline, stop)
            nursery.start_soon(_watch_for_question, streams, quiet_s, stop)
            if max_bytes is not None:
                nursery.start_soon(_watch_size, streams, max_bytes, stop)
            await exited(popen)
            stop(Ending.EXITED)
        # Nobody reads meanwhile: a flood would keep the interpreter from the thread that ends it.
        await end_family_of(popen, mark, invocation.wrappers, grace_s=0.0 if ending is Ending.EXITED else GRACE_S)
        with trio.move_on_after(DRAIN_S):
            await _read_all(sources)
    finally:
        with trio.CancelScope(shield=True):
            await end_family_of(popen, mark, invocation.wrappers, grace_s=GRACE_S)
            _last.ended_at = time.monotonic()
            for pipe in pipes:
                await pipe.aclose()
    return _report(ending or Ending.EXITED, popen.returncode, stdout, stderr)


class LineScrubber:
    """Removes secrets from a text that comes in pieces; gives out whole lines as soon as they are complete.

    Private keys span lines, so between their first and last line everything is left out. A line longer
    than `LONGEST_LINE` is given out up to the last place where a secret could be starting.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._is_in_key = False

    @property
    def pending(self) -> str:
        """The incomplete last line, not scrubbed: for looking at only."""
        return self._held

    def feed(self, data: bytes) -> str:
        """Take bytes as they come; a character may be split between two calls."""
        self._held += self._decode(data)
        ready = self._held.rfind("\n") + 1
        if not ready and len(self._held) > LONGEST_LINE:
            ready = safe_length(self._held)
        return self._take(ready)

    def finish(self) -> str:
        """What is left at the end."""
        self._held += self._decode(b"", True)
        return self._take(len(self._held))

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        shown: list[str] = []
        while text:
            border = (_KEY_ENDS if self._is_in_key else _KEY_BEGINS).search(text)
            if self._is_in_key:
                text = text[border.end() :] if border else ""
                self._is_in_key = border is None
            else:
                shown.append(scrub(text[: border.start()] if border else text))
                if border:
                    shown.append(MASK)
                    self._is_in_key = True
                text = text[border.end() :] if border else ""
        return "".join(shown)


class HeadAndTail:
    """Keeps the first and the last bytes of a stream, whatever its length: memory is bounded by two halves.

    Args:
        limit: bytes to keep.
    """

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._head) + len(self._tail)

    def add(self, data: bytes) -> None:
        """Append a piece."""
        self.total += len(data)
        free = self._half - len(self._head)
        self._head += data[:free]
        self._tail += data[free:]
        if len(self._tail) > self._half:
            del self._tail[: len(self._tail) - self._half]

    def render(self, limit: int) -> str:
        """The scrubbed text of at most `limit` bytes, and a notice where something is missing.

        The cuts go between lines, or far enough from the cut that no half of a secret is shown.
        """
        data = bytes(self._head + self._tail)
        if self.total <= limit and self.total == len(data):
            return _scrubbed(data, is_whole=True)
        half = min(self._half, limit // 2)
        head = _scrubbed(data[:half], is_whole=False)
        tail = _scrubbed(_after_cut(data[-half:]), is_whole=True)
        left_out = self.total - 2 * half
        return (
            f"{head}\n[… about {left_out} of {self.total} bytes left out; narrow the command (grep, head, tail) "
            f"or send its output to a file and read parts …]\n{tail}"
        )


def _scrubbed(data: bytes, *, is_whole: bool) -> str:
    scrubber = LineScrubber()
    parts = [scrubber.feed(data[start : start + PIECE]) for start in range(0, len(data), PIECE)]
    return "".join([*parts, scrubber.finish()] if is_whole else parts)


def _after_cut(data: bytes) -> bytes:
    """A text that begins anywhere, without what may be the rest of a secret or of a character."""
    newline = data.find(b"\n")
    start = newline + 1 if 0 <= newline < len(data) // 2 else LONGEST
    data = data[start:]
    ends, begins = _KEY_ENDS.search(data.decode("latin-1")), _KEY_BEGINS.search(data.decode("latin-1"))
    if ends and not (begins and begins.start() < ends.start()):
        data = MASK.encode() + data[ends.end() :]
    return data.lstrip(bytes(range(0x80, 0xC0)))


class _Stream:
    """One output of a command: what is kept of it, and when it last said something."""

    def __init__(
        self, name: str, on_output: Callable[[str, str], None] | None, on_progress: Callable[[], None] | None
    ) -> None:
        self.kept = HeadAndTail(OUTPUT_CAP)
        self.last_at = trio.current_time()
        self.spoke = trio.Event()
        self._name = name
        self._on_output = on_output
        self._on_progress = on_progress
        self._scrubber = LineScrubber()
        self._recent = b""

    @property
    def last_line(self) -> str:
        """The line that a person at a terminal would see last."""
        return self._recent.decode(errors="replace").rstrip().rpartition("\n")[2]

    def take(self, data: bytes) -> None:
        if self._on_output is not None and self.kept.total < OUTPUT_CAP:
            for start in range(0, len(data), PIECE):
                self._emit(self._scrubber.feed(data[start : start + PIECE]))
        self.kept.add(data)
        self.last_at = trio.current_time()
        self._recent = (self._recent + data[-RECENT:])[-RECENT:]
        self.spoke.set()
        self.spoke = trio.Event()
        if self._on_progress is not None:
            self._on_progress()

    def finish(self) -> None:
        self._emit(self._scrubber.finish())

    def _emit(self, text: str) -> None:
        if text and self._on_output is not None:
            self._on_output(self._name, text)


def _start(invocation: Invocation, mark: str) -> tuple["subprocess.Popen[bytes]", list[trio.lowlevel.FdStream]]:
    ends = [os.pipe(), os.pipe()]
    try:
        popen = start_marked(invocation, mark, stdin=subprocess.DEVNULL, stdout=ends[0][1], stderr=ends[1][1])
    except BaseException:
        for reading, _ in ends:
            os.close(reading)
        raise
    finally:
        for _, writing in ends:
            os.close(writing)
    return popen, [trio.lowlevel.FdStream(reading) for reading, _ in ends]


def start_marked(
    invocation: Invocation, mark: str, *, stdin: int, stdout: int, stderr: int
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, whose processes can be found by the mark.

    Not with trio.lowlevel.open_process: that starts it from a worker thread, and Linux takes the end of the
    *thread* for the end of the parent. Idle worker threads end after ten seconds, and `--die-with-parent`
    would kill every command that takes longer. Starting from the loop's own thread takes about a millisecond.

    Errors: ToolError.
    """
    try:
        with filtered(invocation.argv, invocation.filter) as (argv, inherited):
            return subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=invocation.folder,
                env={**invocation.environment, MARK: mark},
                start_new_session=True,
                pass_fds=inherited,
            )
    except (OSError, ValueError) as error:
        raise _not_started(invocation, error) from error


def _not_started(invocation: Invocation, error: OSError | ValueError) -> ToolError:
    name = invocation.argv[0]
    if not isinstance(error, OSError):
        return ToolError("the command holds a NUL character; send plain text")
    match error.errno:
        case errno.ENOENT if not invocation.folder.is_dir():
            return ToolError("the working folder does not exist any more; choose another")
        case errno.ENOENT:
            return ToolError(f"program {name!r} was not found; check the name, or install it into the workspace")
        case errno.EACCES:
            return ToolError(f"program {name!r} may not be executed; make it executable or run its interpreter")
        case errno.E2BIG:
            return ToolError("the command line is too long; write the text to a file and pass the file")
        case _:
            return ToolError(f"program {name!r} could not be started: {error.strerror}")


async def _read_all(sources: Iterable[tuple[_Stream, trio.lowlevel.FdStream]]) -> None:
    async with trio.open_nursery() as nursery:
        for stream, pipe in sources:
            nursery.start_soon(_read, stream, pipe)


async def _read(stream: _Stream, pipe: trio.lowlevel.FdStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await pipe.receive_some(4 * PIECE):
            stream.take(data)


async def _time_out(deadline: float, stop: Callable[[Ending], None]) -> None:
    await trio.sleep_until(deadline)
    stop(Ending.TIMED_OUT)


async def _watch_for_question(streams: tuple[_Stream, ...], quiet_s: float, stop: Callable[[Ending], None]) -> None:
    """End the command when it is silent after a line that looks like a question; silence alone is healthy."""
    while True:
        last = max(stream.last_at for stream in streams)
        await trio.sleep_until(last + quiet_s)
        if max(stream.last_at for stream in streams) > last:
            continue
        if any(_QUESTION.search(stream.last_line) for stream in streams):
            stop(Ending.WAITING)
        await _next_output(streams)


async def _watch_size(streams: tuple[_Stream, ...], max_bytes: int, stop: Callable[[Ending], None]) -> None:
    while sum(stream.kept.total for stream in streams) <= max_bytes:
        await _next_output(streams)
    stop(Ending.TOO_MUCH)


async def _next_output(streams: tuple[_Stream, ...]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for stream in streams:
            nursery.start_soon(wait, stream.spoke)


async def exited(popen: "subprocess.Popen[bytes]") -> None:
    """Wait for the end without collecting it: until then the id cannot go to another process."""
    if sys.platform == "linux":
        with suppress(OSError):  # no descriptors left, or a kernel before 5.3
            descriptor = os.pidfd_open(popen.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return
    await trio.to_thread.run_sync(popen.wait, abandon_on_cancel=True)


async def end_family_of(popen: "subprocess.Popen[bytes]", mark: str, wrappers: int, *, grace_s: float) -> None:
    """`end_family` in a thread, whatever is cancelled meanwhile."""
    if popen.returncode is not None and sys.platform == "linux":
        return  # collected, so all of it was ended before
    # A limiter of its own: ending must not queue behind work that holds all threads.
    limiter = trio.CapacityLimiter(1)
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(end_family, popen, mark, wrappers, grace_s, limiter=limiter)


def end_family(popen: "subprocess.Popen[bytes]", mark: str, wrappers: int, grace_s: float) -> None:
    """End a command's processes, politely first, and collect it. Blocking, at most `grace_s + FINAL_S` and a bit.

    Args:
        wrappers: processes above the command that must not get the polite signal: a sandbox program would die
            of it at once and take the command along.
        grace_s: seconds between the signals; 0 sends the final one at once.
    """
    if sys.platform != "linux" or not Path("/proc/self/stat").exists():
        _end_group(popen, grace_s)
        return
    if grace_s:
        kept = _wrappers(popen.pid, wrappers)
        _until_gone(popen.pid, mark, signal.SIGTERM, grace_s, spared=kept, is_repeated=False)
    _until_gone(popen.pid, mark, signal.SIGKILL, FINAL_S, spared=frozenset(), is_repeated=True)
    with suppress(subprocess.TimeoutExpired):
        popen.wait(FINAL_S)


def _until_gone(
    pid: int, mark: str, number: signal.Signals, patience_s: float, *, spared: frozenset[int], is_repeated: bool
) -> None:
    until = time.monotonic() + patience_s
    signalled: set[int] = set()
    while members := _family(pid, mark):
        for member in members - spared - (set() if is_repeated else signalled):
            with suppress(OSError):
                os.kill(member, number)
            signalled.add(member)
        if time.monotonic() > until:
            return
        time.sleep(STEP_S)


def _family(pid: int, mark: str) -> set[int]:
    """Live processes of a command: the first one, its descendants, its session, and all that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    began = _begin(_stat(str(pid)))
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        number = int(entry)
        fields = _stat(entry)
        if len(fields) < 4 or fields[0] in (b"Z", b"X") or _begin(fields) < began:  # older ones are no family
            continue
        parents[number] = int(fields[1])
        if number == pid or int(fields[3]) == pid or carries(entry, wanted):
            members.add(number)
    ours = os.getpid()
    for number in parents:
        line = [number]
        while (above := parents.get(line[-1], 0)) and above not in line and above not in members and above != pid:
            line.append(above)
        if above in members or above == pid:
            members.update(line)
    members.discard(ours)
    return members


def _stat(entry: str) -> list[bytes]:
    """State, parent, group, session and so on of a process; empty when there is none."""
    try:
        with open(f"/proc/{entry}/stat", "rb", buffering=0) as file:
            return file.read(4096).rpartition(b") ")[2].split()
    except OSError:
        return []


def _begin(fields: list[bytes]) -> int:
    """When a process began, in ticks since the machine did; 0 when that is not known."""
    return int(fields[19]) if len(fields) > 19 else 0


def carries(entry: str, wanted: bytes) -> bool:
    """Whether the environment that a process began with holds these bytes."""
    try:
        return wanted in Path("/proc", entry, "environ").read_bytes()
    except OSError:  # another user's process, or one that just ended
        return False


def _wrappers(pid: int, depth: int) -> frozenset[int]:
    """The first process and its children, down to `depth` levels."""
    found: set[int] = set()
    level = {pid} if depth else set()
    for _ in range(depth):
        found |= level
        level = {child for parent in level for child in children_of(parent)}
    return frozenset(found)


def children_of(pid: int, task: int | str | None = None) -> list[int]:
    """Children that one thread of a process has started; its main thread when None."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{task or pid}/children").read_text().split()]
    return []


def _end_group(popen: "subprocess.Popen[bytes]", grace_s: float) -> None:
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, FINAL_S)):
        if number is signal.SIGTERM and not grace_s:
            continue
        with suppress(OSError):
            os.killpg(popen.pid, number)
        with suppress(subprocess.TimeoutExpired):
            popen.wait(patience_s)


def _report(ending: Ending, returncode: int | None, stdout: _Stream, stderr: _Stream) -> Report:
    for stream in (stdout, stderr):
        stream.finish()
    code, signal_name = -1, ""
    match ending:
        case Ending.WAITING:
            code = -2
        case Ending.EXITED if returncode is not None and returncode >= 0:
            code = returncode
        case Ending.EXITED:
            ending = Ending.SIGNALLED
            with suppress(ValueError):
                signal_name = signal.Signals(-(returncode or 0)).name
    # Errors are worth more than chatter: the smaller stream is kept whole if it takes at most half.
    err_limit = max(OUTPUT_CAP // 2, OUTPUT_CAP - stdout.kept.total)
    out_limit = OUTPUT_CAP - min(stderr.kept.total, err_limit)
    return Report(
        ending=ending,
        exit_code=code,
        stdout=stdout.kept.render(out_limit),
        stderr=stderr.kept.render(err_limit),
        is_complete=stdout.kept.total <= out_limit and stderr.kept.total <= err_limit,
        signal_name=signal_name,
    )
