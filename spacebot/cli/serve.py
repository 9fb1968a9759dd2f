"""The program on its event loop: signals, the service manager's watchdog, and the part that does the work.

A signal says the same as a command, so it takes the command's way through the control socket: the first SIGTERM or
SIGINT drains, SIGHUP reads the files again. A second one cuts everything off, a third ends the process at once.

Flow:    serve -> app.main ; signals -> own control socket
Floor:   cli
"""

import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import trio

from spacebot.api.control import EXIT_RESTART
from spacebot.base.control_address import control_address
from spacebot.base.errors import SpacebotError
from spacebot.base.notify import Notifier
from spacebot.base.paths import InstancePaths
from spacebot.base.telemetry import kv
from spacebot.config.store import ConfigStore
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.restore import forget_old_states

log = logging.getLogger(__name__)

ASK_S = 5.0  # own socket; a loop that needs longer is not going to drain
CUT_S = 5.0  # after a second signal; then the process ends as it is
STDERR = 2


class ReadyInfo(Protocol):
    """What the program says of itself once it accepts messages."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the web chat answers."""
        ...

    @property
    def model_label(self) -> str:
        """The model of the default agent."""
        ...


class AppMain(Protocol):
    """`spacebot.app.main`: runs until it is asked to stop; returns the exit code, or `EXIT_RESTART`."""

    def __call__(
        self,
        paths: InstancePaths,
        store: ConfigStore,
        secrets: LiveSecrets,
        *,
        on_ready: Callable[[ReadyInfo], None],
        debug: bool,
    ) -> Awaitable[int]: ...


def serve(
    app_main: AppMain,
    paths: InstancePaths,
    store: ConfigStore,
    secrets: LiveSecrets,
    *,
    debug: bool,
    on_ready: Callable[[Sequence[str], str], None],
) -> int:
    """Run the program to its end; returns the exit code.

    Errors: SpacebotError when it cannot start.
    """
    return trio.run(_Server(app_main, paths, store, secrets, debug, on_ready).run)


class _Server:
    def __init__(
        self,
        app_main: AppMain,
        paths: InstancePaths,
        store: ConfigStore,
        secrets: LiveSecrets,
        debug: bool,
        on_ready: Callable[[Sequence[str], str], None],
    ) -> None:
        self._app_main = app_main
        self._paths = paths
        self._store = store
        self._secrets = secrets
        self._debug = debug
        self._on_ready = on_ready
        self._notifier = Notifier.from_environment(os.environ)
        self._has_terminal = os.isatty(STDERR)
        self._scope = trio.CancelScope()
        self._code = 0
        self._ready = trio.Event()

    async def run(self) -> int:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            if self._notifier.watchdog_s is not None:
                nursery.start_soon(self._stay_alive, self._notifier.watchdog_s)
            nursery.start_soon(self._tidy_after_start)
            try:
                with self._scope:
                    self._code = await self._app_main(
                        self._paths, self._store, self._secrets, on_ready=self._note_ready, debug=self._debug
                    )
            except Exception as error:  # out of the nursery as itself, not in a group
                failure = _only(error)
            if self._code == EXIT_RESTART:
                self._notifier.reloading()  # the same process goes on; after "stopping" the manager would end it
            else:
                self._notifier.stopping()
            nursery.cancel_scope.cancel()
        if failure is not None:
            if isinstance(failure, SpacebotError):
                raise failure
            log.critical("program failed", exc_info=failure)
            where = self._paths.logs / "spacebot.log"
            raise SpacebotError(f"internal error ({type(failure).__name__}); {where} has the details") from failure
        return self._code

    def _note_ready(self, info: ReadyInfo) -> None:
        self._notifier.ready(f"model {info.model_label}")
        self._on_ready(info.urls, info.model_label)
        self._ready.set()

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        ends = 0
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    if number == signal.SIGHUP and not self._lost_terminal():
                        nursery.start_soon(self._reload)
                        continue
                    ends += 1
                    log.info("stop signal received", extra=kv(signal=number, count=ends))
                    self._notifier.stopping()
                    if ends == 1:
                        nursery.start_soon(self._drain, 128 + number)
                    elif ends == 2:
                        self._cut(128 + number)
                        nursery.start_soon(self._end_late, 128 + number)
                    else:
                        os._exit(128 + number)

    def _lost_terminal(self) -> bool:
        """SIGHUP also comes when the terminal of a foreground program is closed; then it means: end."""
        return self._has_terminal and not os.isatty(STDERR)

    async def _drain(self, code: int) -> None:
        if not await self._command("shutdown"):
            self._cut(code)  # not yet, or no longer, listening

    def _cut(self, code: int) -> None:
        self._code = code
        self._scope.cancel()

    async def _end_late(self, code: int) -> None:
        await trio.sleep(CUT_S)
        os._exit(code)

    async def _reload(self) -> None:
        self._notifier.reloading()
        if not await self._command("config_reload"):
            await self._store.refresh()  # logs what is wrong with the file
        await self._command("prompts_reload")
        self._notifier.ready()

    async def _command(self, name: str) -> bool:
        """Give ourselves a command; False when it was refused or nobody took it."""
        answer = b""
        with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(ASK_S):
            async with await trio.open_unix_socket(control_address(self._paths.socket)) as stream:
                await stream.send_all(json.dumps({"command": name}).encode() + b"\n")
                async for chunk in stream:
                    answer += chunk
        with suppress(ValueError):
            return bool(answer) and json.loads(answer).get("result") == "ok"
        return False

    async def _tidy_after_start(self) -> None:
        """A good start is the sign that what a restore has put aside may go, in its time."""
        await self._ready.wait()
        for folder in await trio.to_thread.run_sync(partial(forget_old_states, self._paths, now=time.time())):
            log.info("old state removed", extra=kv(folder=folder.name))

    async def _stay_alive(self, watchdog_s: float) -> None:
        while True:
            self._notifier.alive()
            await trio.sleep(watchdog_s / 3)


def _only(error: Exception) -> Exception:
    """The error itself, when it is alone in its groups."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
