"""The one door to Selenium: commands to a browser's driver, each in a thread, each with a limit.

The driver runs already (`session.py` starts it, contained); Selenium only talks with it, so its manager never looks for
or fetches a program. What the library raises becomes one of four errors here.

Flow:    Driver.open(port) -> cdp | goto | handles … -> quit
Floor:   tools; the only importer of selenium
Source:  tools spec 6.1 to 6.3; W3C WebDriver; Chrome DevTools Protocol 1.3
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import trio

from spacebot.base.errors import ToolError

COMMAND_S = 15.0
START_S = 40.0
THREADS = 4  # of one browser: one at work, others that wait for a page which does not answer

T = TypeVar("T")
Json = dict[str, Any]

for _name in (
    "selenium",
    "urllib3",
):  # they write each command down, typed secrets included, and warn of each browser that ends
    logging.getLogger(_name).setLevel(logging.ERROR)


class GoneError(ToolError):
    """The browser or its driver has ended, or does not answer any more."""


class TabGoneError(ToolError):
    """The tab was closed."""


class DialogError(ToolError):
    """A dialog of the page stands in the way.

    Args:
        words: what it says.
    """

    def __init__(self, words: str) -> None:
        super().__init__(
            f"the page shows a dialog: {words[:500]!r}; answer it with action dialog (accept true or false)"
        )
        self.words = words


class PageError(ToolError):
    """The browser refused a command; the message is its own."""


class Driver:
    """One session with one browser; made by `open_driver`."""

    def __init__(self, web: Any, limiter: trio.CapacityLimiter) -> None:
        self._web = web
        self._limiter = limiter

    async def cdp(self, method: str, *, timeout_s: float = COMMAND_S, **parameters: Any) -> Json:
        """One command of the DevTools protocol to the tab in front. Errors: the four above."""
        body = {"cmd": method, "params": parameters}
        result = await self._do(lambda: self._web.execute("executeCdpCommand", body)["value"], timeout_s=timeout_s)
        return result if isinstance(result, dict) else {}

    async def goto(self, url: str) -> None:
        """Begin to open an address; returns before there is an answer."""
        await self._do(lambda: self._web.get(url))

    async def handles(self) -> list[str]:
        """All tabs, oldest first."""
        return list(await self._do(lambda: self._web.window_handles))

    async def switch(self, handle: str) -> None:
        """Bring a tab to the front. Errors: TabGoneError."""
        await self._do(lambda: self._web.switch_to.window(handle))

    async def new_tab(self) -> str:
        """Open an empty tab, which is in front then."""

        def open_tab() -> str:
            self._web.switch_to.new_window("tab")
            return str(self._web.current_window_handle)

        return await self._do(open_tab)

    async def close_tab(self) -> None:
        """Close the tab in front."""
        await self._do(lambda: self._web.close())

    async def dialog(self) -> str | None:
        """What the open dialog of the page says; None when there is none."""

        def words() -> str | None:
            from selenium.common.exceptions import NoAlertPresentException

            with suppress(NoAlertPresentException):
                return str(self._web.switch_to.alert.text)
            return None

        return await self._do(words)

    async def answer_dialog(self, *, accept: bool, text: str | None) -> None:
        """Answer the open dialog."""

        def answer() -> None:
            alert = self._web.switch_to.alert
            if text is not None and accept:
                alert.send_keys(text)
            (alert.accept if accept else alert.dismiss)()

        await self._do(answer)

    async def quit(self) -> None:
        """Ask the browser to end in good order."""
        await self._do(lambda: self._web.quit())

    async def _do(self, work: Callable[[], T], *, timeout_s: float = COMMAND_S) -> T:
        return await _in_thread(work, self._limiter, timeout_s)


async def open_driver(
    port: int, *, binary: str, arguments: Sequence[str], preferences: Json, timeout_s: float = START_S
) -> Driver:
    """Have a running driver start its browser.

    Args:
        port: of the driver, on loopback.
        binary: the browser's program, as the driver sees it.

    Errors: GoneError with the browser's own words.
    """
    limiter = trio.CapacityLimiter(THREADS)

    def connect() -> Any:
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chromium.remote_connection import ChromiumRemoteConnection
        from selenium.webdriver.remote.client_config import ClientConfig
        from selenium.webdriver.remote.webdriver import WebDriver

        options = Options()
        options.binary_location = binary
        options.page_load_strategy = "none"  # pages are waited for in `readiness.py`, never inside the driver
        options.unhandled_prompt_behavior = "ignore"
        for word in arguments:
            options.add_argument(word)
        options.add_experimental_option("prefs", preferences)
        address = f"http://127.0.0.1:{port}"
        config = ClientConfig(remote_server_addr=address, keep_alive=True, timeout=120)
        connection = ChromiumRemoteConnection(
            address, vendor_prefix="goog", browser_name="chrome", ignore_proxy=True, client_config=config
        )
        return WebDriver(command_executor=connection, options=options)

    try:
        return Driver(await _in_thread(connect, limiter, timeout_s), limiter)
    except PageError as error:
        raise GoneError(f"the browser did not start: {error}") from error


async def _in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter, timeout_s: float) -> T:
    try:
        with trio.fail_after(timeout_s):
            return await trio.to_thread.run_sync(lambda: _translated(work), limiter=limiter, abandon_on_cancel=True)
    except trio.TooSlowError as error:
        raise GoneError(f"the browser did not answer within {timeout_s:.0f} seconds") from error


def _translated(work: Callable[[], T]) -> T:
    """Run a call of the library; its errors as ours."""
    from selenium.common import exceptions
    from urllib3.exceptions import HTTPError

    try:
        return work()
    except exceptions.UnexpectedAlertPresentException as error:
        raise DialogError(error.alert_text or "") from error
    except exceptions.NoSuchWindowException as error:
        raise TabGoneError("this tab is gone; list the tabs") from error
    except (exceptions.InvalidSessionIdException, HTTPError, OSError) as error:
        raise GoneError("the browser has ended") from error
    except exceptions.WebDriverException as error:
        words = _words(error.msg or "")
        if any(sign in words for sign in ("disconnected", "crashed", "not reachable", "session deleted")):
            raise GoneError(f"the browser has ended: {words}") from error
        raise PageError(words) from error


def _words(message: str) -> str:
    """The first line of the driver's message; of the protocol's own errors the words alone."""
    line = message.split("\n", 1)[0].strip()
    start = line.find("{")
    if start >= 0:
        with suppress(ValueError, TypeError, KeyError):
            return str(json.loads(line[start:])["message"])
    return line[:500]
