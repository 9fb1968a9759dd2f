"""Browsers and who holds them: one of a worker's own, or, where the owner wants its cookies kept, one of the agent.

A browser is four things that live and end together: a profile folder, a proxy, the driver's program with the browser
below it, and the session with them. It starts with the first call that needs it, in a task of whoever holds it, and
whatever ends that task ends all four: a polite word, then signals, then the folder goes.

Flow:    open_browsers -> Browsers.hold -> Holder.browser() -> Browser …
Floor:   tools
Source:  tools spec 6.3 and 23 Browser
"""

import hashlib
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from spacebot.base.clock import Clock
from spacebot.base.errors import ExternalError, ToolError
from spacebot.base.ids import new_uuid
from spacebot.base.telemetry import kv
from spacebot.config.hands import BrowserConfig, ClosePolicy
from spacebot.tools.backends import PRIVATE_TMP
from spacebot.tools.browser.chromium import Programs, find_programs, preferences, switches
from spacebot.tools.browser.driver import Driver, GoneError, open_driver
from spacebot.tools.browser.proxy import FilteringProxy, closed_ports
from spacebot.tools.browser.snapshot import Snapshot
from spacebot.tools.permissions import Gate
from spacebot.tools.programs import Program, open_program
from spacebot.tools.sandbox import Containment, Invocation
from spacebot.tools.subprocesses import carries

log = logging.getLogger(__name__)

DRIVER_START_S = 20.0
DRIVER_LOOK_S = 0.01
DRIVER_TRIES = 4
REMOVE_PAUSES_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # a process that is just ending may write once more
QUIT_S = 5.0  # for a browser that is closed
HURRIED_QUIT_S = 0.7  # for one whose worker was cancelled
SIGNAL_GRACE_S = 0.3
WITHOUT_SANDBOX = (
    "(A browser needs a sandbox of its own or ours: where neither works, as in some containers, the owner can install "
    "bubblewrap, or set CHROME_FLAGS=--no-sandbox and trust every page.)"
)
DOWNLOADS = "downloads"  # folder in the workspace
KEPT_PROFILE = "kept"  # folder of the profile that outlasts its browser
_LISTENING = re.compile(r"started successfully on port (\d+)")


class Browser:
    """One running browser.

    Attributes:
        lock: held during one action: the driver has one tab in front.
        front: that tab.
        is_gone: it has ended, or must not be used any more.
    """

    def __init__(self, driver: Driver, proxy: FilteringProxy, program: Program) -> None:
        self.driver = driver
        self.proxy = proxy
        self.lock = trio.Lock()
        self.front = ""
        self.is_stuck = False
        self._program = program
        self._stop = trio.Event()
        self.gone = trio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether its processes ended by themselves."""
        return self._program.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether it cannot be used any more."""
        return self._stop.is_set() or self._program.is_gone

    def close(self, *, is_stuck: bool = False) -> None:
        """Ask it to end; `gone` is set when nothing of it is left. A stuck one gets no time for it."""
        self.is_stuck = is_stuck
        self._stop.set()

    async def until_closed(self) -> None:
        """Wait until somebody closes it, or it ends by itself."""
        async with trio.open_nursery() as nursery:

            async def wait(event: Callable[[], object]) -> None:
                await event()  # type: ignore[misc]
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._stop.wait)
            nursery.start_soon(wait, self._program.wait)


@dataclass(slots=True)
class Holder:
    """What one worker has of a browser: its tab, its snapshot, what it typed.

    Attributes:
        containment: the worker's rules: where its files lie, what it may see.
        tab: the driver's name of the tab in front; empty before the first.
        secrets: values that were typed, which no result may show.
    """

    browsers: "Browsers"
    containment: Containment
    nursery: trio.Nursery
    is_shared: bool
    browser: Browser | None = None
    tab: str = ""
    own_tabs: set[str] = field(default_factory=set)
    known_tabs: list[str] = field(default_factory=list)
    snapshot: Snapshot | None = None
    secrets: set[str] = field(default_factory=set)
    starting: trio.Lock = field(default_factory=trio.Lock)

    async def running(self) -> Browser:
        """The browser, started when there is none. Errors: ToolError."""
        async with self.starting:
            if self.browser is None or self.browser.is_gone:
                if self.browser is not None:
                    await self.browser.gone.wait()
                self.forget()
                self.browser = await self._start()
            return self.browser

    async def _start(self) -> Browser:
        if self.is_shared:
            return await self.browsers.shared()
        return await self.browsers.start(self.nursery, self.containment)

    def forget(self) -> None:
        """Nothing is known of any page."""
        self.browser, self.tab, self.snapshot = None, "", None
        self.own_tabs.clear()
        self.known_tabs.clear()


class Browsers:
    """The browsers of one agent; made by `open_browsers`.

    Args:
        containment: how programs are started, and where the workspace is.
        gate: judges addresses.
        settings: the live `[agents.browser]` table.
        folder: for profiles; the program's own, which commands do not see.
        environment: where CHROME, CHROME_PATH and CHROME_FLAGS stand.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        containment: Containment,
        gate: Gate,
        settings: Callable[[], BrowserConfig],
        folder: Path,
        clock: Clock,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._nursery = nursery
        self._containment = containment
        self.gate = gate
        self.settings = settings
        self.clock = clock
        self._folder = folder
        self._environment = os.environ if environment is None else environment
        self._shared: Browser | None = None
        self._sharing = trio.Lock()
        self._holders = 0  # of the shared one

    @asynccontextmanager
    async def hold(self, containment: Containment) -> AsyncIterator[Holder]:
        """Something to work with; a browser of one's own is gone when the block ends.

        Args:
            containment: the rules as they hold for whoever works with it.
        """
        failure: Exception | None = None
        is_shared = self.settings().persist_session
        async with trio.open_nursery() as nursery:
            holder = Holder(self, containment, nursery, is_shared)
            self._holders += is_shared
            try:
                yield holder
                if is_shared:
                    await self._let_go(holder)
                elif holder.browser is not None:
                    holder.browser.close()
                    await holder.browser.gone.wait()
            except Exception as error:
                failure = error  # raised below, without a group around it
            finally:
                self._holders -= is_shared
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _let_go(self, holder: Holder) -> None:
        """What the owner wants done with the browser that others use too."""
        browser = holder.browser
        if browser is None or browser.is_gone:
            return
        match self.settings().close_policy:
            case ClosePolicy.CLOSE_BROWSER if self._holders <= 1:
                browser.close()
                await browser.gone.wait()
            case ClosePolicy.DETACH:
                return
            case _:
                with suppress(ToolError), trio.move_on_after(QUIT_S):
                    async with browser.lock:
                        await _close_tabs(browser.driver, holder.own_tabs)

    async def shared(self) -> Browser:
        """The browser of all workers, started when there is none."""
        async with self._sharing:
            if self._shared is None or self._shared.is_gone:
                if self._shared is not None:
                    await self._shared.gone.wait()
                self._shared = await self.start(self._nursery, self._containment, is_kept=True)
            return self._shared

    async def start(self, nursery: trio.Nursery, containment: Containment, *, is_kept: bool = False) -> Browser:
        """Start a browser that ends with the nursery. Errors: ToolError."""
        outcome: list[Browser | ToolError] = []
        ready, scope = trio.Event(), trio.CancelScope()
        nursery.start_soon(self._live, containment, is_kept, outcome, ready, scope)
        try:
            await ready.wait()
        except BaseException:
            scope.cancel()  # nobody would hold it
            raise
        if isinstance(outcome[0], ToolError):
            raise outcome[0]
        return outcome[0]

    async def _live(
        self,
        containment: Containment,
        is_kept: bool,
        outcome: list[Browser | ToolError],
        ready: trio.Event,
        scope: trio.CancelScope,
    ) -> None:
        """A browser's whole life; what hinders its start goes to whoever asked for it."""
        browser: Browser | None = None
        try:
            with scope:
                async with self._folders(is_kept) as folders, self._opened(containment, *folders) as browser:
                    outcome.append(browser)
                    ready.set()
                    await self._until_over(browser)
        except* (ToolError, ExternalError, OSError) as group:
            error = _first(group)
            if browser is not None:
                log.warning("browser ended badly", extra=kv(error=str(error)))
            else:
                words = str(error) if not isinstance(error, OSError) else f"the browser did not start: {error.strerror}"
                outcome.append(error if isinstance(error, ToolError) else ToolError(words))
        finally:
            if not outcome:
                outcome.append(GoneError("the browser was closed while it started"))
            ready.set()
            if browser is not None:
                browser.close()
                browser.gone.set()

    async def _until_over(self, browser: Browser) -> None:
        patience = HURRIED_QUIT_S
        try:
            await browser.until_closed()
            patience = 0.0 if browser.is_stuck or browser.has_ended else QUIT_S
        finally:
            with trio.move_on_after(patience, shield=True), suppress(ToolError):
                await browser.driver.quit()

    @asynccontextmanager
    async def _opened(self, containment: Containment, profile: Path, brief: Path) -> AsyncIterator[Browser]:
        proxy = FilteringProxy(partial(self.gate.check_url, tool="browser"))
        settings = self.settings()
        found = await trio.to_thread.run_sync(find_programs, settings.executable_path, self._environment)
        downloads = containment.workspace / DOWNLOADS
        invocation = await trio.to_thread.run_sync(_invocation, containment, found, profile, brief)
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.run)
            async with _open_driver_program(invocation) as (program, port):
                words = switches(
                    profile=profile,
                    proxy_port=proxy.port,
                    headless=settings.headless,
                    is_contained=containment.is_active,
                    more=self._environment.get("CHROME_FLAGS", ""),
                )
                try:
                    driver = await open_driver(
                        port, binary=found.chromium, arguments=words, preferences=preferences(downloads)
                    )
                    await driver.goto("about:blank")
                    log.info("browser started", extra=kv(pid=program.pid, is_contained=containment.is_active))
                    yield Browser(driver, proxy, program)
                except GoneError as error:
                    hint = "" if containment.is_active else f" {WITHOUT_SANDBOX}"
                    raise GoneError(f"{error}. {_last_line(program.said)}".strip() + hint) from error
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _folders(self, is_kept: bool) -> AsyncIterator[tuple[Path, Path]]:
        """A profile and a temporary folder; gone afterwards, the kept profile excepted."""
        profile = self._folder / (KEPT_PROFILE if is_kept else new_uuid())
        brief = await trio.to_thread.run_sync(_prepare, profile)
        try:
            yield profile, brief
        finally:
            with trio.CancelScope(shield=True):
                for path in (brief, *(() if is_kept else (profile,))):
                    await trio.to_thread.run_sync(_remove, path)


@asynccontextmanager
async def open_browsers(
    *,
    containment: Containment,
    gate: Gate,
    settings: Callable[[], BrowserConfig],
    folder: Path,
    clock: Clock,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Browsers]:
    """The browsers of one agent while the block runs; arguments as for `Browsers`."""
    failure: Exception | None = None
    await trio.to_thread.run_sync(_sweep, folder)
    async with trio.open_nursery() as nursery:
        try:
            yield Browsers(
                nursery,
                containment=containment,
                gate=gate,
                settings=settings,
                folder=folder,
                clock=clock,
                environment=environment,
            )
        except Exception as error:
            failure = error  # raised below, without a group around it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _invocation(containment: Containment, found: Programs, profile: Path, brief: Path) -> Invocation:
    """How the driver is started.

    Args:
        brief: a temporary folder with a short name: the browser makes a socket there, and its path is limited.
    """
    folders = {Path(os.path.realpath(path)).parent for path in (found.chromium, found.driver)}
    wrap = partial(
        containment.wrap_program,
        [found.driver, "--port=0", "--log-level=WARNING"],
        readable=[folder for folder in folders if str(folder) not in ("/usr/bin", "/bin")],
        has_network=True,  # the program has to reach the driver; the browser itself goes through the proxy
    )
    invocation = wrap(writable=[profile])
    own = {"HOME": str(profile)}  # not the workspace
    if invocation.environment.get("TMPDIR") != str(PRIVATE_TMP):
        invocation = wrap(writable=[profile, brief])
        own["TMPDIR"] = str(brief)
    return replace(invocation, environment={**invocation.environment, **own})


@asynccontextmanager
async def _open_driver_program(invocation: Invocation) -> AsyncIterator[tuple[Program, int]]:
    """The driver's program and where it listens, while the block runs.

    It takes a port that is free for IPv4 and then wants the same one for IPv6, which another program may have.
    """
    said = ""
    for _ in range(DRIVER_TRIES):
        async with open_program(invocation, grace_s=SIGNAL_GRACE_S) as program:
            port = await _port_of(program)
            if port is not None:
                closed_ports.add(port)
                try:
                    yield program, port
                finally:
                    closed_ports.discard(port)
                return
            said = _last_line(program.said)
    raise GoneError(f"the browser's driver did not start. {said}".strip())


async def _port_of(program: Program) -> int | None:
    """Where the driver listens: it says so when it does; None when it ends instead, or takes too long."""
    with trio.move_on_after(DRIVER_START_S):
        while not program.is_gone:
            if match := _LISTENING.search(program.said):
                return int(match[1])
            await trio.sleep(DRIVER_LOOK_S)
    return None


async def _close_tabs(driver: Driver, tabs: set[str]) -> None:
    there = await driver.handles()
    if set(there) <= tabs:
        await driver.new_tab()  # the browser would end with its last one
    for tab in set(there) & tabs:
        await driver.switch(tab)
        await driver.close_tab()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _sweep(folder: Path) -> None:
    """End browsers and remove profiles that a life before has left behind; the folder is this agent's alone."""
    for brief in Path(tempfile.gettempdir()).glob(f"{_lead(folder)}*"):
        _remove(brief)
    left = list(folder.iterdir()) if folder.is_dir() else []
    if not left:
        return
    homes = tuple(f"HOME={path}".encode() for path in left)
    for entry in os.listdir("/proc") if Path("/proc/self/environ").exists() else ():
        if entry.isdigit() and any(carries(entry, home) for home in homes):
            log.warning("browser of a life before ended", extra=kv(pid=entry))
            with suppress(OSError):
                os.kill(int(entry), signal.SIGKILL)
    for path in left:
        if path.name != KEPT_PROFILE:
            _remove(path)


def _lead(folder: Path) -> str:
    """What the names of this agent's short temporary folders begin with."""
    return f"spacebot-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}-"


def _prepare(profile: Path) -> Path:
    """Make the profile ready, and a temporary folder, which is returned."""
    profile.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("SingletonLock", "SingletonSocket", "SingletonCookie"):  # of a browser that was killed
        with suppress(OSError):
            (profile / name).unlink()
    return Path(tempfile.mkdtemp(prefix=_lead(profile.parent)))


def _remove(profile: Path) -> None:
    for pause_s in REMOVE_PAUSES_S:
        time.sleep(pause_s)
        shutil.rmtree(profile, ignore_errors=True)
        if not profile.exists():
            return
    log.warning("profile of a browser not removed", extra=kv(path=str(profile)))
