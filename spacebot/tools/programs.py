"""Programs that run as long as somebody needs them: a browser's driver, a coding server, an MCP server.

They start from the loop's own thread, contained as their `Invocation` says; whoever opened one leaves it, and then
every process that it started is gone. Their pipes are always emptied: a program never waits for a reader.

Flow:    Containment.wrap_program -> open_program -> Program
Floor:   tools
Source:  tools spec 6.3, 11, 12.1 and 23
"""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from spacebot.base.ids import new_uuid
from spacebot.base.redaction import scrub
from spacebot.tools.sandbox import Invocation
from spacebot.tools.subprocesses import GRACE_S, HeadAndTail, end_family_of, exited, start_marked

TAIL_BYTES = 8000  # of what a program printed, for whoever asks why it failed
PIECE = 65_536  # bytes of one read


class Program:
    """One running program.

    Attributes:
        stdin, stdout: its pipes when it was opened with `has_pipes`, for a protocol; the owner reads `stdout`.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self._said = HeadAndTail(TAIL_BYTES)
        self._gone = trio.Event()
        self.stdin: trio.lowlevel.FdStream | None = None
        self.stdout: trio.lowlevel.FdStream | None = None

    @property
    def pid(self) -> int:
        """Of the first process, which is the sandbox's when there is one."""
        return self._popen.pid

    @property
    def is_gone(self) -> bool:
        """Whether the first process has ended."""
        return self._gone.is_set()

    @property
    def said(self) -> str:
        """Head and tail of what it printed, scrubbed: stderr, and stdout where that is no protocol's."""
        return scrub(self._said.render(TAIL_BYTES)).strip()

    async def wait(self) -> None:
        """Until the first process has ended."""
        await self._gone.wait()

    async def _watch(self) -> None:
        await exited(self._popen)
        self._gone.set()

    async def _drain(self, pipe: trio.lowlevel.FdStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await pipe.receive_some(PIECE):
                self._said.add(data)


@asynccontextmanager
async def open_program(
    invocation: Invocation, *, has_pipes: bool = False, grace_s: float = GRACE_S
) -> AsyncIterator[Program]:
    """Start a program; on leaving, it and all that it started are gone.

    Args:
        has_pipes: stdin and stdout are the caller's, for a protocol; else stdin is empty and stdout is kept too.
        grace_s: seconds between the polite and the final signal.

    Errors: ToolError when it cannot be started.
    Cancel: as on leaving; takes up to about `grace_s + FINAL_S` seconds when processes resist.
    """
    mark = new_uuid()
    inward, outward, errors = (os.pipe() if has_pipes else None), os.pipe(), os.pipe()
    taken = [outward[1], errors[1], *([inward[0]] if inward else [])]
    kept = [outward[0], errors[0], *([inward[1]] if inward else [])]
    try:
        popen = start_marked(
            invocation, mark, stdin=inward[0] if inward else subprocess.DEVNULL, stdout=outward[1], stderr=errors[1]
        )
    except BaseException:
        for descriptor in kept:
            os.close(descriptor)
        raise
    finally:
        for descriptor in taken:
            os.close(descriptor)
    streams = [trio.lowlevel.FdStream(descriptor) for descriptor in kept]
    program = Program(popen)
    drained = streams[:2]
    if has_pipes:
        program.stdout, program.stdin, drained = streams[0], streams[2], streams[1:2]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program._watch)
            for pipe in drained:
                nursery.start_soon(program._drain, pipe)
            try:
                yield program
            finally:
                with trio.CancelScope(shield=True):  # ends by itself: its own limits are those of its signals
                    await end_family_of(popen, mark, invocation.wrappers, grace_s=grace_s)
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await end_family_of(popen, mark, invocation.wrappers, grace_s=0.0)
            for pipe in streams:
                await pipe.aclose()
