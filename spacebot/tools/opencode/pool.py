"""The OpenCode servers of one agent: which folder belongs to which worker, started when needed, closed when not.

A folder is one worker's alone, and so are the folders above and below it, from the spawn to the worker's end. Its
server runs while the worker works and some minutes after; a worker that waits longer gets another one, which finds the
session where the first one left it. A change of the configuration takes effect at the next piece of work.

Flow:    OpenCode.check -> find_folder -> claim -> Claim.use -> OpenCodeServer; Claim.close | Claim.release
Floor:   tools
Source:  tools spec 12.1, 12.3 and 23; process spec P46, P62
"""

import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spacebot.base.errors import BudgetExceededError, DeniedError, LimitReachedError, ModelRejectedError, ToolError
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node
from spacebot.config.model import AgentConfig, LlmConfig
from spacebot.llm.access import is_lendable
from spacebot.llm.choice import choose_models
from spacebot.llm.dialect import AuthKind, Target
from spacebot.llm.manager import UsageRecord
from spacebot.llm.messages import ProcessKind
from spacebot.tools.delegation import TwinError
from spacebot.tools.paths_policy import Access
from spacebot.tools.permissions import Gate, Right
from spacebot.tools.sandbox import Containment

if TYPE_CHECKING:  # loaded with the first such worker: most programs never have one
    from spacebot.tools.opencode.gateway import ModelGateway, Pass
    from spacebot.tools.opencode.server import OpenCodeServer, Setup

log = logging.getLogger(__name__)

IDLE_S = 300.0  # that a server without work is kept
TOOL = "spawn_worker"
TASK_TYPE = "coding"  # by which the model is chosen
_RIGHTS = (Right.NETWORK, Right.SHELL, Right.FILE_READ, Right.FILE_WRITE)


class FolderTakenError(TwinError):
    """Another OpenCode worker has the folder, or one above or below it; `worker_id` says which."""


class _Running:
    """A server and the task that keeps it."""

    def __init__(self, setup: "Setup") -> None:
        self.setup = setup
        self.server: OpenCodeServer | None = None
        self.failure: ToolError | None = None
        self.scope = trio.CancelScope()
        self.ready = trio.Event()
        self.gone = trio.Event()


class Claim:
    """A folder that is one worker's, and its server when one runs; made by `OpenCode.claim`."""

    def __init__(self, owner: "OpenCode", directory: Path, worker_id: str) -> None:
        self.directory = directory
        self.worker_id = worker_id
        self.is_used = False
        self._owner = owner
        self._running: _Running | None = None
        self._idle_since = 0.0

    @property
    def is_running(self) -> bool:
        """Whether a server runs or is being started."""
        return self._running is not None

    @property
    def idle_s(self) -> float:
        """Seconds that its server has had nothing to do; 0 while there is none, or work."""
        return trio.current_time() - self._idle_since if self.is_running and not self.is_used else 0.0

    @asynccontextmanager
    async def use(self, node: Node, containment: Containment) -> "AsyncIterator[OpenCodeServer]":
        """The server for a piece of work, started when there is none, or the configuration wants another one.

        Errors: ToolError; LimitReachedError when all servers that may run are at work.
        """
        self.is_used = True
        given: Pass | None = None
        try:
            setup = await self._owner.check(containment)
            if self._running is not None and not (self._running.setup == setup and _is_alive(self._running)):
                await self.close()
            if self._running is None:
                await self._owner.make_room()
                self._running = await self._owner.start(self, setup, containment)
            given, server = await self._owner.enter(self._running, self.worker_id)
            given.node = node
            yield server
        finally:
            if given is not None:
                given.node = None
            self.is_used = False
            self._idle_since = trio.current_time()
            self._owner.watch_idle()

    async def close(self) -> None:
        """End the server, if one runs; all its processes are gone then."""
        running, self._running = self._running, None
        if running is not None:
            running.scope.cancel()
            await running.gone.wait()

    async def release(self, *, is_over: bool) -> None:
        """Give the folder back; with `is_over` what its servers kept of the session is removed too."""
        try:
            await self.close()
            if is_over:
                await self._owner.drop_state(self.worker_id)
        finally:
            self._owner.give_back(self.worker_id)


class OpenCode:
    """One per agent; made by `open_opencode`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        settings: Callable[[], AgentConfig],
        llm: Callable[[], LlmConfig],
        gate: Gate,
        state: Path,
        note: Callable[[UsageRecord], None],
        allow: Callable[[], None],
    ) -> None:
        self._nursery = nursery
        self._allow = allow
        self._settings = settings
        self._llm = llm
        self._gate = gate
        self._state = state
        self._note = note
        self._claims: dict[str, Claim] = {}
        self._passes: dict[str, Pass] = {}
        self._gateway: ModelGateway | None = None
        self._opening = trio.Lock()
        self._is_watching = False

    @property
    def is_offered(self) -> bool:
        """Whether the owner wants such workers."""
        return self._settings().opencode.enabled

    # Before a worker is made

    async def check(self, containment: Containment) -> "Setup":
        """Whether such a worker could work now, and what its server has to be started with.

        Errors: ToolError, which says what is missing and how the owner changes it.
        """
        if not self.is_offered:
            raise ToolError("OpenCode workers are switched off; the owner sets enabled under [defaults.opencode]")
        for right in _RIGHTS:
            self._gate.require(right, tool=TOOL)
        await trio.to_thread.run_sync(import_module, "spacebot.tools.opencode.server")
        from spacebot.tools.opencode.server import Setup, find_program

        settings = self._settings()
        try:
            target = self._targets()[0]
        except BudgetExceededError as error:
            raise ToolError(f"an OpenCode worker cannot begin: {error}") from error
        program = await trio.to_thread.run_sync(find_program, settings.opencode, containment)
        return Setup(
            program=program,
            config=settings.opencode,
            kind=target.api_type,
            model=target.wire_model,
            window=settings.context_window,
            may_leave=containment.is_active,
        )

    async def find_folder(self, text: str, containment: Containment) -> Path:
        """The real path of the folder that a worker shall have; it is made when it is missing.

        Errors: ToolError; DeniedError, which is one, when it lies where workers may not write.
        """
        if not text.strip():
            raise ToolError("an OpenCode worker needs a directory; name the folder of the project, such as 'app'")
        return await trio.to_thread.run_sync(_find_folder, text.strip(), containment)

    def claim(self, directory: Path, worker_id: str) -> Claim:
        """Take a folder for a worker; to be given back by `Claim.release`.

        Args:
            directory: a real path.

        Errors: FolderTakenError.
        """
        for other in self._claims.values():
            if directory.is_relative_to(other.directory) or other.directory.is_relative_to(directory):
                raise FolderTakenError(
                    f"the worker {other.worker_id} works in {str(other.directory)!r} already; use route to add to its "
                    "work, wait for its end, or name another folder",
                    other.worker_id,
                )
        claim = self._claims[worker_id] = Claim(self, directory, worker_id)
        return claim

    def give_back(self, worker_id: str) -> None:
        """The folder of a worker is free again, if it had one; its server must be closed."""
        self._claims.pop(worker_id, None)
        self._passes.pop(worker_id, None)

    # Servers

    async def make_room(self) -> None:
        """Close the server that has been idle for longest when there are too many.

        Errors: LimitReachedError.
        """
        limit = self._settings().opencode.max_servers
        running = [claim for claim in self._claims.values() if claim.is_running]
        if len(running) < limit:
            return
        idle = sorted((claim for claim in running if not claim.is_used), key=lambda claim: -claim.idle_s)
        if not idle:
            raise LimitReachedError(
                f"{limit} OpenCode servers are at work, which is the limit (max_servers under [defaults.opencode]); "
                "wait for one of those workers",
                limit=limit,
            )
        await idle[0].close()

    async def start(self, claim: Claim, setup: "Setup", containment: Containment) -> _Running:
        """Begin to start a server; `enter` waits until it is ready."""
        async with self._opening:
            if self._gateway is None:
                self._gateway = await self._nursery.start(self._run_gateway)
        running = _Running(setup)
        self._nursery.start_soon(self._keep, running, claim, containment, self._gateway)
        return running

    async def enter(self, running: _Running, worker_id: str) -> "tuple[Pass, OpenCodeServer]":
        """The server once it is ready, and its right to ask models. Errors: ToolError."""
        await running.ready.wait()
        if running.server is None:
            raise running.failure or ToolError("opencode was stopped while it started")
        return self._passes[worker_id], running.server

    async def _keep(self, running: _Running, claim: Claim, containment: Containment, gateway: "ModelGateway") -> None:
        """Be the parent of a server until somebody closes it, or it ends."""
        from spacebot.tools.opencode.server import open_server

        given = self._passes[claim.worker_id] = gateway.admit()
        try:
            with running.scope:
                async with open_server(
                    running.setup,
                    containment=containment,
                    directory=claim.directory,
                    state=self._state_of(claim.worker_id),
                    given=given,
                ) as server:
                    running.server = server
                    running.ready.set()
                    await server.wait_gone()
                    log.warning("opencode ended by itself", extra=kv(worker_id=claim.worker_id, said=server.said))
        except* (ToolError, OSError) as group:  # open_program's nursery puts a group around it
            error = next(leaves(group))
            running.failure = error if isinstance(error, ToolError) else ToolError(f"opencode was not started: {error}")
        finally:
            gateway.dismiss(given)
            running.ready.set()
            running.gone.set()

    async def _run_gateway(self, *, task_status: "trio.TaskStatus[ModelGateway]" = trio.TASK_STATUS_IGNORED) -> None:
        await trio.to_thread.run_sync(import_module, "spacebot.tools.opencode.gateway")
        from spacebot.tools.opencode.gateway import open_gateway

        async with open_gateway(targets=self._targets, note=self._note) as gateway:
            task_status.started(gateway)
            await trio.sleep_forever()

    def _targets(self) -> Sequence[Target]:
        """Models for coding work, best first.

        Errors: ToolError when none is there that a program can ask; BudgetExceededError.
        """
        self._allow()
        try:
            targets = choose_models(ProcessKind.WORKER, TASK_TYPE, self._settings(), self._llm())
        except ModelRejectedError as error:
            raise ToolError(f"an OpenCode worker has no model: {error}") from error
        real = [  # a login is not for other programs
            replace(target, auth=target.key_auth) if target.auth is AuthKind.OAUTH else target
            for target in targets
            if is_lendable(target) and (target.api_key or target.auth is not AuthKind.OAUTH)
        ]
        if not real:
            raise ToolError(
                "an OpenCode worker needs a real model, and only the demonstration one is configured; the owner adds a "
                "key under [llm] in config.toml"
            )
        return real

    def watch_idle(self) -> None:
        """See to it that servers without work are closed after a while."""
        if not self._is_watching and any(claim.is_running for claim in self._claims.values()):
            self._is_watching = True
            self._nursery.start_soon(self._close_idle)

    async def _close_idle(self) -> None:
        while running := [claim for claim in self._claims.values() if claim.is_running]:
            for claim in running:
                if claim.idle_s >= IDLE_S:
                    await claim.close()
            await trio.sleep(max(1.0, IDLE_S - max((claim.idle_s for claim in running), default=0.0)))
        self._is_watching = False

    # Files

    def _state_of(self, worker_id: str) -> Path:
        """Where the servers of a worker keep its session."""
        return self._state / hashlib.sha256(worker_id.encode()).hexdigest()[:24]

    async def drop_state(self, worker_id: str) -> None:
        """Remove what the servers of a worker kept."""
        folder = self._state_of(worker_id)
        await trio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))

    async def sweep(self) -> None:
        """Remove what workers left that are no more, when the program died; for the start, after the recovery."""
        kept = {self._state_of(worker_id).name for worker_id in self._claims}

        def sweep() -> None:
            for folder in self._state.iterdir() if self._state.is_dir() else ():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

        await trio.to_thread.run_sync(sweep)


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors themselves, without the groups around them."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def _is_alive(running: _Running) -> bool:
    return not running.ready.is_set() or (running.server is not None and running.server.is_alive)


def _find_folder(text: str, containment: Containment) -> Path:
    real = _judged(text, containment)
    if not real.exists():
        try:
            real.mkdir(parents=True)
        except OSError as error:
            raise ToolError(f"directory {text!r} cannot be made ({error.strerror}); name another one") from error
        real = _judged(text, containment)  # what is there now is what counts
    if not real.is_dir():
        raise ToolError(f"directory {text!r} is not a folder; name one")
    return real


def _judged(text: str, containment: Containment) -> Path:
    policy = containment.policy()
    real = Path(os.path.realpath(policy.locate(text, writing=True, tool=TOOL).path))
    if containment.is_enabled and policy.access(real) is not Access.WRITE:
        raise DeniedError(
            f"directory {text!r} leads outside of what workers may write; choose a folder inside of the workspace",
            about="folder outside",
        )
    return real


@asynccontextmanager
async def open_opencode(
    *,
    settings: Callable[[], AgentConfig],
    llm: Callable[[], LlmConfig],
    gate: Gate,
    state: Path,
    note: Callable[[UsageRecord], None],
    allow: Callable[[], None] = lambda: None,
) -> AsyncIterator[OpenCode]:
    """Open the way to OpenCode workers; nothing is started before the first one.

    Args:
        state: folder for what servers keep, hidden from all others.
        note: told of the cost of each answer; must not wait.
        allow: asked before a model is asked. Errors of its own: BudgetExceededError.

    Owns: servers and the gateway to models; all are gone on leaving.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield OpenCode(nursery, settings=settings, llm=llm, gate=gate, state=state, note=note, allow=allow)
        except Exception as error:
            failure = error  # raised below, so that no group stands around it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
