"""Programs that live as long as their owner wants: pipes, ends, and nothing left behind."""

import os
from pathlib import Path

import psutil
import pytest
import trio

from spacebot.base.errors import ToolError
from spacebot.tools.programs import open_program
from spacebot.tools.sandbox import Invocation


def invocation(tmp_path: Path, line: str) -> Invocation:
    return Invocation(("sh", "-c", line), tmp_path, {"PATH": os.defpath})


async def test_what_a_program_printed_is_known_after_its_end(tmp_path: Path) -> None:
    async with open_program(invocation(tmp_path, "echo out; echo err >&2; exit 3")) as program:
        with trio.fail_after(10):
            await program.wait()
            while "err" not in program.said or "out" not in program.said:
                await trio.lowlevel.checkpoint()
        assert program.is_gone


async def test_pipes_carry_a_protocol_and_a_flood_of_errors_stops_nobody(tmp_path: Path) -> None:
    flood = "head -c 3000000 /dev/zero | tr '\\0' x >&2; read line; echo got $line"
    async with open_program(invocation(tmp_path, flood), has_pipes=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        with trio.fail_after(20):
            await program.stdin.send_all(b"hello\n")
            assert await program.stdout.receive_some() == b"got hello\n"
        assert len(program.said) < 20_000


async def test_leaving_ends_all_that_was_started_also_when_cancelled(tmp_path: Path) -> None:
    line = "(trap '' TERM; sleep 1000) & sleep 1000 & echo $! > child; echo ready; wait"
    with trio.fail_after(20), trio.CancelScope() as scope:
        async with open_program(invocation(tmp_path, line), has_pipes=True, grace_s=0.1) as program:
            assert program.stdout is not None
            await program.stdout.receive_some()
            scope.cancel()
            await trio.sleep_forever()
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="'no-such-program' was not found"):
        async with open_program(Invocation(("no-such-program",), tmp_path, {})):
            pytest.fail("it does not exist")
