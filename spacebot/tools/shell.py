"""The shell and exec tools: commands of a model, contained, bounded, gone when they end.

What is refused is refused by the owner's permissions, the sandbox and the cleared environment, never by looking at
the text of a command: such filters were bypassed each time and hindered honest work.

Flow:    arguments -> Gate -> Containment.wrap -> run_command -> one text
Floor:   tools
Source:  tools spec 5; control spec 6.4
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import trio
from pydantic import BeforeValidator, Field

from spacebot.base.errors import ToolError
from spacebot.base.text import clean_unicode
from spacebot.base.tree import Node
from spacebot.config.hands import ExecRule
from spacebot.tools.contract import LenientInt, ToolArguments, ToolOutput
from spacebot.tools.permissions import Right
from spacebot.tools.sandbox import Containment, Invocation, check_environment
from spacebot.tools.subprocesses import Ending, Report, run_command

DEFAULT_TIMEOUT_S = 60
MAX_TIMEOUT_S = 300

OnOutput = Callable[[str, str], None]


class EnvironmentVariable(ToolArguments):
    """One variable of a command."""

    key: str
    value: str


def _as_pairs(value: object) -> object:
    """Models also send an object instead of a list of pairs."""
    return [{"key": key, "value": text} for key, text in value.items()] if isinstance(value, Mapping) else value


Variables = Annotated[tuple[EnvironmentVariable, ...], BeforeValidator(_as_pairs)]
Seconds = Annotated[LenientInt, Field(description=f"1 to {MAX_TIMEOUT_S}")]


class ShellArguments(ToolArguments):
    """A command line for the shell."""

    command: str
    working_dir: str | None = None
    timeout_seconds: Seconds = DEFAULT_TIMEOUT_S
    env: Variables = ()


class ExecArguments(ToolArguments):
    """A program and its arguments, no shell in between."""

    program: str
    args: tuple[str, ...] = ()
    working_dir: str | None = None
    timeout_seconds: Seconds = DEFAULT_TIMEOUT_S
    env: Variables = ()


class ShellTool:
    """Runs a command line with `sh`.

    Args:
        containment: the agent's rules.
        on_output: gets (stream name, scrubbed lines) while the command runs.
    """

    name: ClassVar[str] = "shell"
    arguments: ClassVar[type[ToolArguments]] = ShellArguments

    def __init__(self, *, containment: Containment, on_output: OnOutput | None = None) -> None:
        self._containment = containment
        self._on_output = on_output

    async def call(self, arguments: ShellArguments, node: Node) -> ToolOutput:
        """Run it to its end. Errors, cancel: as `Tool.call`."""
        if not arguments.command.strip():
            raise ToolError("the command is empty; send the command line to run")
        self._containment.gate.require(Right.SHELL, tool=self.name)
        return await _run(["sh", "-c", arguments.command], arguments, node, self._containment, self._on_output)


class ExecTool:
    """Runs one program with arguments that no shell interprets. Constructor as `ShellTool`.

    Where only some programs may be started, a program is known by its base name and has to lie where no worker can have
    put it. That keeps a model to its usual tools; what these can be made to do is held by the sandbox alone.
    """

    name: ClassVar[str] = "exec"
    arguments: ClassVar[type[ToolArguments]] = ExecArguments

    def __init__(self, *, containment: Containment, on_output: OnOutput | None = None) -> None:
        self._containment = containment
        self._on_output = on_output

    async def call(self, arguments: ExecArguments, node: Node) -> ToolOutput:
        """Run it to its end. Errors, cancel: as `Tool.call`."""
        if not arguments.program.strip():
            raise ToolError("the program is empty; send its name or path")
        self._containment.gate.require(Right.EXEC, tool=self.name)
        return await _run(
            [arguments.program, *arguments.args],
            arguments,
            node,
            self._containment,
            self._on_output,
            is_listed_only=self._containment.gate.permissions.exec is ExecRule.ALLOWLIST,
        )


async def _run(
    argv: list[str],
    arguments: ShellArguments | ExecArguments,
    node: Node,
    containment: Containment,
    on_output: OnOutput | None,
    *,
    is_listed_only: bool = False,
) -> ToolOutput:
    extra = {variable.key: variable.value for variable in arguments.env}
    check_environment(extra)
    if any("\0" in word for word in argv):
        raise ToolError("the command holds a NUL character; send plain text")
    argv = [clean_unicode(word) for word in argv]

    def prepared() -> Invocation:
        folder = containment.working_folder(arguments.working_dir)
        words = [listed_program(argv[0], folder, containment), *argv[1:]] if is_listed_only else argv
        return containment.wrap(words, folder=folder, extra=extra)

    invocation = await trio.to_thread.run_sync(prepared, limiter=containment.disk_limiter)
    timeout_s = min(max(arguments.timeout_seconds, 1), MAX_TIMEOUT_S)
    report = await run_command(
        invocation, timeout_s=timeout_s, on_output=on_output, on_progress=lambda: node.progress()
    )
    if invocation.wrappers and report.exit_code == 1 and report.stderr.startswith("bwrap: execvp"):
        raise ToolError(f"program {argv[0]!r} was not found; check the name, or install it into the workspace")
    return ToolOutput(render_report(report, timeout_s=timeout_s), is_error=report.ending is not Ending.EXITED)


def listed_program(program: str, folder: Path, containment: Containment) -> str:
    """The path of a program that the owner's list names. Blocking: call it from a thread.

    Args:
        folder: where a relative path starts.

    Errors: NotPermittedError; ToolError when it is not there.
    """
    gate = containment.gate
    allowed = gate.permissions.exec_allowlist
    name = os.path.basename(program)
    if name not in allowed:
        known = ", ".join(allowed) or "no program"
        gate.refuse("exec", f"{name!r} is not among what exec may start: {known}", key="exec_allowlist")
    entries = [containment.search_path] if program == name else []
    folders = [entry for entry in os.pathsep.join(entries).split(os.pathsep) if entry] or [str(folder)]
    found = [os.path.normpath(place) for entry in folders if (place := shutil.which(os.path.join(entry, program)))]
    # Both the link and what it leads to: either could be a worker's own, or lie where commands see nothing.
    pairs = [(Path(place), Path(os.path.realpath(place))) for place in found]
    seen = [pair for pair in pairs if all(map(containment.is_seen, pair))]
    for installed, real in seen:
        if not containment.is_replaceable(installed) and not containment.is_replaceable(real):
            return str(installed)
    if not seen:
        raise ToolError(f"program {program!r} was not found; check the name, or tell the user that it is missing")
    reason = f"{program!r} lies where workers write, so its name says nothing; exec starts installed programs only"
    return gate.refuse("exec", reason, key="exec_allowlist")


def render_report(report: Report, *, timeout_s: float) -> str:
    """A report for a model: how it ended, then each stream once."""
    lines = [_ending(report, timeout_s)]
    for name, text in (("stdout", report.stdout), ("stderr", report.stderr)):
        if text:
            lines += [f"--- {name}", text.rstrip("\n")]
    if len(lines) == 1:
        lines.append("(no output)")
    return "\n".join(lines)


def _ending(report: Report, timeout_s: float) -> str:
    code = f"exit code {report.exit_code}"
    match report.ending:
        case Ending.TIMED_OUT:
            more = f"give more time (at most {MAX_TIMEOUT_S})"
            return f"{code}: ended after {timeout_s:g} seconds; {more} or do less at once"
        case Ending.WAITING:
            return (
                f"{code}: waiting_for_input, ended. Nobody can answer a question here; "
                "use a non-interactive flag (such as -y or --yes) or pass the answer by a pipe"
            )
        case Ending.SIGNALLED:
            return f"{code}: ended by the signal {report.signal_name or 'unknown'}"
        case Ending.TOO_MUCH:
            return f"{code}: ended, it printed too much"
        case Ending.EXITED:
            return code
