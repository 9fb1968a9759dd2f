"""One OpenCode server: the program `opencode serve` in a folder, contained, with a password and without keys.

It gets a configuration of ours; what lies in the folder was written by anybody, and could bring permissions, which
are not read, and plug-ins, because of which such a folder may be refused. Its state lies in a folder of its own.

Flow:   find_program -> open_server -> OpenCodeServer.api
Floor:  tools
Source: tools spec 12.1 and 23; opencode 1.18 (`serve`, its variables, its configuration)
"""

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from spacebot.base.errors import ToolError
from spacebot.base.telemetry import kv
from spacebot.config.hands import OpenCodeConfig
from spacebot.config.model import ApiType
from spacebot.tools.opencode.gateway import Pass
from spacebot.tools.opencode.wire import OpenCodeApi, open_api
from spacebot.tools.programs import Program, open_program
from spacebot.tools.sandbox import Containment

log = logging.getLogger(__name__)

PROVIDER = "spacebot"  # how the program calls where its model comes from
LOOK_S = 0.05  # between two looks whether it listens
STOP_S = 0.3  # between the polite and the final signal
OUTPUT_TOKENS = 16_000  # of one answer

OWN_FILES = (".opencode", "opencode.json", "opencode.jsonc")  # of a project, for the program

_LISTENS = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_PACKAGES = {ApiType.ANTHROPIC: "@ai-sdk/anthropic"}  # all others speak chat completions
_COMPATIBLE = "@ai-sdk/openai-compatible"
_SWITCHES = (
    "AUTOUPDATE", "CLAUDE_CODE", "DEFAULT_PLUGINS", "EMBEDDED_WEB_UI", "EXTERNAL_SKILLS", "LSP_DOWNLOAD",
    "MODELS_FETCH", "PROJECT_CONFIG", "SHARE", "TERMINAL_TITLE",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server is started with; a change of any of it needs another server.

    Args:
        program: real path of the program.
        model: what the provider calls it.
        window: tokens that it reads.
        may_leave: whether it may touch paths outside of its folder, because a sandbox holds it.
    """

    program: Path
    config: OpenCodeConfig
    kind: ApiType
    model: str
    window: int
    may_leave: bool

    @property
    def model_name(self) -> str:
        """The model as a prompt names it."""
        return f"{PROVIDER}/{self.model}"


class OpenCodeServer:
    """A running server."""

    def __init__(self, setup: Setup, program: Program, api: OpenCodeApi) -> None:
        self.setup = setup
        self.api = api
        self._program = program

    @property
    def is_alive(self) -> bool:
        """Whether the program still runs."""
        return not self._program.is_gone

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._program.pid

    @property
    def said(self) -> str:
        """The end of what it printed, scrubbed."""
        return _last(self._program)

    async def wait_gone(self) -> None:
        """Until the program has ended."""
        await self._program.wait()


def find_program(config: OpenCodeConfig, containment: Containment) -> Path:
    """The real path of the program. Blocking.

    Errors: ToolError, which says how to install it.
    """
    found = shutil.which(os.path.expanduser(config.path), path=containment.search_path)
    if found is None:
        raise ToolError(
            f"the program {config.path!r} is not installed; the owner installs it with 'npm install -g opencode-ai', "
            "or sets path under [defaults.opencode] in config.toml. Until then, spawn a worker of type builtin"
        )
    real = Path(os.path.realpath(found))
    if not os.path.isabs(os.path.expanduser(config.path)) and containment.is_replaceable(real):
        raise ToolError(f"{str(real)!r} lies where workers may write, so it is not started; install it elsewhere")
    return real


@asynccontextmanager
async def open_server(
    setup: Setup, *, containment: Containment, directory: Path, state: Path, given: Pass
) -> AsyncIterator[OpenCodeServer]:
    """Start a server and wait until it is ready; on leaving, it and all that it started are gone.

    Args:
        directory: where it works.
        state: its own folder for sessions and caches; made when missing.
        given: its right to ask models.

    Errors: ToolError when it cannot be started, or is not ready in time.
    """
    password = secrets.token_urlsafe(32)
    extra = _environment(state, password)

    def wrap() -> Any:
        _refuse_own_configuration(setup.config, directory, containment.workspace)
        for name in ("config", "data", "cache", "state"):
            (state / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        # In a file, not in a variable: commands get the program's variables, and print them readily.
        file = state / "config" / "opencode" / "opencode.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)  # whatever a command has put there
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(_configuration(setup, given), stream)
        return containment.wrap_program(
            (str(setup.program), "serve", "--hostname", "127.0.0.1", "--port", "0"),
            folder=containment.visible(directory),
            extra=extra,
            writable=(state,),
            readable=(_surroundings(setup.program),),
        )

    invocation = await trio.to_thread.run_sync(wrap)
    async with open_program(invocation, grace_s=STOP_S) as program:
        limit_s = setup.config.server_startup_timeout_secs
        with trio.move_on_after(limit_s) as patience:
            port = await _port_of(program)
            async with open_api(port, password, containment.visible(directory)) as api:
                while not await api.is_healthy():
                    if program.is_gone:
                        raise ToolError(f"opencode ended before it was ready: {_last(program)}")
                    await trio.sleep(LOOK_S)
                patience.deadline = float("inf")
                log.info("opencode started", extra=kv(directory=str(directory), pid=program.pid))
                yield OpenCodeServer(setup, program, api)
                return
        if patience.cancelled_caught:
            raise ToolError(
                f"opencode was not ready after {limit_s:g} s (server_startup_timeout_secs under [defaults.opencode]); "
                f"it said: {_last(program)}"
            )


async def _port_of(program: Program) -> int:
    """What it says itself: a port that was chosen beforehand could be taken by somebody else meanwhile."""
    while True:
        if (match := _LISTENS.search(program.said)) is not None:
            return int(match[1])
        if program.is_gone:
            raise ToolError(f"opencode ended before it listened: {_last(program)}")
        await trio.sleep(LOOK_S)


def _refuse_own_configuration(config: OpenCodeConfig, directory: Path, workspace: Path) -> None:
    """Refuse a folder that brings plug-ins, where the owner keeps something back.

    The program's newer half reads them in spite of its switches. They are code that runs unasked, and could do what a
    command would have to ask for; where commands may do everything, they gain nothing by it.
    """
    permissions = config.permissions
    if (permissions.edit, permissions.bash, permissions.webfetch) == ("allow", "allow", "allow"):
        return
    for folder in (directory, *(parent for parent in directory.parents if parent.is_relative_to(workspace))):
        for name in OWN_FILES:
            if os.path.lexists(folder / name):
                log.warning("folder with a configuration of its own refused", extra=kv(name=name))
                raise ToolError(
                    f"{str(folder / name)!r} could bring plug-ins for OpenCode that run unasked, and the owner wants "
                    "to be asked ([defaults.opencode.permissions]); move it away, or spawn a worker of type builtin"
                )


def _last(program: Program) -> str:
    return program.said[-500:] or "nothing"


def _surroundings(program: Path) -> Path:
    """The folder that the program needs to be whole: all of an npm installation, or its own folder."""
    names = program.parts
    if "node_modules" in names:
        return Path(*names[: names.index("node_modules") + 1])
    return program.parent


def _environment(state: Path, password: str) -> dict[str, str]:
    return {
        "OPENCODE_SERVER_PASSWORD": password,
        "OPENCODE_PURE": "1",  # no plug-ins
        "OPENCODE_EXPERIMENTAL_DISABLE_FILEWATCHER": "1",
        **{f"OPENCODE_DISABLE_{name}": "1" for name in _SWITCHES},
        "OPENCODE_TEST_HOME": str(state),  # or it reads what lies in the workspace, which is HOME here
        "XDG_CONFIG_HOME": str(state / "config"),
        "XDG_DATA_HOME": str(state / "data"),
        "XDG_CACHE_HOME": str(state / "cache"),
        "XDG_STATE_HOME": str(state / "state"),
    }


def _configuration(setup: Setup, given: Pass) -> Mapping[str, Any]:
    permissions = setup.config.permissions
    output = min(OUTPUT_TOKENS, setup.window // 4)
    model = {"name": setup.model, "tool_call": True, "limit": {"context": setup.window, "output": output}}
    return {
        "$schema": "https://opencode.ai/config.json",
        "lsp": False,
        "formatter": False,
        "autoupdate": False,
        "snapshot": False,  # copies of the whole folder, for an undo that nobody here asks for
        "share": "disabled",
        "model": setup.model_name,
        "small_model": setup.model_name,
        "enabled_providers": [PROVIDER],
        "provider": {
            PROVIDER: {
                "npm": _PACKAGES.get(setup.kind, _COMPATIBLE),
                "name": "Spacebot",
                "options": {"baseURL": given.url, "apiKey": given.token},
                "models": {setup.model: model},
            }
        },
        "permission": {
            "edit": permissions.edit,
            "bash": permissions.bash,
            "webfetch": permissions.webfetch,
            "external_directory": "allow" if setup.may_leave else "deny",
            "doom_loop": "deny",
        },
    }
