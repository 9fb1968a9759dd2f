"""When is a page ready? When its document is complete and shows something, nothing in it changes for a moment, and the
network is quiet: asked of the page and of the proxy, never by a fixed pause. Everything has a limit.

Floor:   tools
Source:  tools spec 6.3 and 23: readiness polling, 30 s for a navigation
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from spacebot.base.errors import ToolError
from spacebot.tools.browser.driver import DialogError, Driver, PageError
from spacebot.tools.browser.page_script import QUIET_PAGE
from spacebot.tools.browser.proxy import FilteringProxy
from spacebot.tools.browser.snapshot import call, world_of

NAVIGATION_S = 30.0
SETTLE_S = 3.0  # for a page that never comes to rest
STILL_MS = 150  # without a change
LOOK_S = 0.4  # of one look into the page
QUIET_NETWORK_S = 0.15
NO_DOCUMENT_S = 3.0  # of a quiet network, when an address leads to no page: a download, an empty answer
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Frame:
    """The document in front.

    Args:
        loader: changes with each new document.
        failed_url: what could not be opened, when it is the browser's own error page.
    """

    id: str
    loader: str
    url: str
    failed_url: str


async def frame_of(driver: Driver) -> Frame:
    """The main frame of the tab in front; waits while a new document is being committed."""
    frame: dict[str, Any] = (await driver.cdp("Page.getFrameTree", timeout_s=NAVIGATION_S + 10))["frameTree"]["frame"]
    url = str(frame.get("url", "")) + str(frame.get("urlFragment", ""))
    return Frame(str(frame["id"]), str(frame.get("loaderId", "")), url, str(frame.get("unreachableUrl", "")))


async def open_page(
    driver: Driver,
    proxy: FilteringProxy,
    begin: Callable[[], Awaitable[object]],
    *,
    same_document_url: str = "",
    is_download: Callable[[], Awaitable[bool]] | None = None,
) -> bool:
    """Begin a navigation and wait until the new document is there and at rest.

    Args:
        begin: starts it.
        same_document_url: no new document comes when this address is there: only the part behind # changes, or
            the page itself has made it.
        is_download: whether a file has come instead.

    Returns whether a document came; none does for a download.
    Errors: ToolError when nothing has come after `NAVIGATION_S`; the connection is cut then, and the tab is usable.
    """
    before = await frame_of(driver)
    is_late = trio.Event()
    arrived = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await trio.sleep(NAVIGATION_S)
            is_late.set()
            proxy.give_up()  # the browser takes it for a failure and lets go of the tab

        nursery.start_soon(watch)
        failure: Exception | None = None
        try:
            await begin()
            arrived = await _arrival(driver, proxy, before.loader, same_document_url, is_late, is_download)
        except (ToolError, PageError) as error:
            failure = error
        nursery.cancel_scope.cancel()
    if is_late.is_set():
        try:
            await frame_of(driver)
        finally:
            proxy.forgive()
        raise ToolError(f"the server did not answer within {NAVIGATION_S:.0f} seconds; try again later or elsewhere")
    if failure is not None:
        raise failure
    if arrived:
        await settle(driver, proxy)
    return arrived


async def _arrival(
    driver: Driver,
    proxy: FilteringProxy,
    loader: str,
    same_document_url: str,
    is_late: trio.Event,
    is_download: Callable[[], Awaitable[bool]] | None,
) -> bool:
    began = trio.current_time()
    while not is_late.is_set():
        frame = await frame_of(driver)
        if frame.loader != loader or (same_document_url and frame.url == same_document_url):
            return True
        if is_download is not None and await is_download():
            return False
        if trio.current_time() - began > NO_DOCUMENT_S and proxy.quiet_s > NO_DOCUMENT_S:
            return False
        await trio.sleep(POLL_S)
    return False


async def settle(driver: Driver, proxy: FilteringProxy, most_s: float = SETTLE_S) -> None:
    """Wait until the document in front is at rest, at most for `most_s` seconds.

    Errors: DialogError when one opens, GoneError.
    """
    until = trio.current_time() + most_s
    while trio.current_time() < until:
        try:
            frame = await frame_of(driver)
            if frame.url == "about:blank":
                return
            world = await world_of(driver, frame.id)
            seen = await call(driver, world, QUIET_PAGE, STILL_MS, int(LOOK_S * 1000))
        except PageError:  # another document came meanwhile
            await trio.sleep(POLL_S)
            continue
        if not seen:  # the wait was broken off: by a dialog, or because the document went
            if (words := await driver.dialog()) is not None:
                raise DialogError(words)
            await trio.sleep(POLL_S)
            continue
        is_ready = bool(seen[0])
        if is_ready and proxy.quiet_s > QUIET_NETWORK_S:
            return
        if is_ready:
            await trio.sleep(POLL_S)
