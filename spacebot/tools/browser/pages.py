"""What a worker does with its browser: tabs, addresses, looking, acting, keeping pictures and files.

Each operation runs with its tab in front, is followed by a look at what came of it (another address, a dialog, a new
tab, a download), and leaves a short account. Where a page leads is judged again each time.

Flow:    Pages.<operation> -> driver -> settle -> Account
Floor:   tools
Source:  tools spec 6
"""

import base64
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

import trio

from spacebot.base.errors import ToolError
from spacebot.base.telemetry import kv
from spacebot.tools.browser.actions import Hand
from spacebot.tools.browser.blocks import find_block
from spacebot.tools.browser.driver import DialogError, PageError, TabGoneError
from spacebot.tools.browser.page_script import AWAIT_TEXT, SIGNS
from spacebot.tools.browser.readiness import Frame, frame_of, open_page, settle
from spacebot.tools.browser.session import DOWNLOADS, Browser, Holder
from spacebot.tools.browser.snapshot import Snapshot, call, take_snapshot, value_of, world_of
from spacebot.tools.paths_policy import Place, open_folder, write_file

log = logging.getLogger(__name__)

MOST_TABS = 20
DOWNLOAD_S = 10.0  # waited for one that has begun
EVALUATE_S = 10.0
TALLEST = 12_000  # CSS pixels of a picture of a whole page
CONTENT_BYTES = 100_000
SCREENSHOTS = "screenshots"
_SCHEMES = ("http", "https", "about", "blob", "data")


@dataclass(slots=True)
class Account:
    """What came of an operation.

    Args:
        message: in the tool's own words.
        page: what the page says, which is nobody's order.
    """

    message: str
    title: str = ""
    url: str = ""
    page: str = ""
    notes: list[str] = field(default_factory=list)
    dialog: str | None = None
    is_error: bool = False


class Pages:
    """One worker's browser, seen through its tab."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._files: set[str] | None = None  # downloads that are known

    @property
    def hand(self) -> Hand:
        """Acts on the newest snapshot."""
        assert self._holder.browser is not None
        return Hand(self._holder.browser.driver, self._holder.snapshot)

    @property
    def browser(self) -> Browser:
        """The running one; only inside `at_work`."""
        assert self._holder.browser is not None
        return self._holder.browser

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Browser]:
        """With the browser running and the worker's tab in front. Errors: ToolError."""
        browser = await self._holder.running()
        async with browser.lock:
            if self._files is None:
                self._files = set(await self._downloads())
            await self._to_front(browser)
            browser.proxy.is_open = True
            yield browser

    async def _to_front(self, browser: Browser) -> None:
        holder = self._holder
        if not holder.tab:
            there = await browser.driver.handles()
            holder.tab = await browser.driver.new_tab() if holder.is_shared or not there else there[0]
            browser.front = ""
            holder.own_tabs.add(holder.tab)
            holder.known_tabs += [tab for tab in dict.fromkeys([*there, holder.tab]) if tab not in holder.known_tabs]
        if browser.front == holder.tab and not holder.is_shared:
            return
        try:
            await browser.driver.switch(holder.tab)
        except TabGoneError as error:
            gone = error
        else:
            browser.front = holder.tab
            return
        await self._fall_back(browser)
        raise gone

    async def _fall_back(self, browser: Browser) -> None:
        """The tab has gone: another one takes its place."""
        holder = self._holder
        holder.snapshot = None
        there = await browser.driver.handles()
        own = [tab for tab in there if tab in holder.own_tabs or not holder.is_shared]
        holder.tab = own[-1] if own else await browser.driver.new_tab()
        holder.own_tabs.add(holder.tab)
        if holder.tab not in holder.known_tabs:
            holder.known_tabs.append(holder.tab)
        await browser.driver.switch(holder.tab)
        browser.front = holder.tab

    # Addresses

    async def navigate(self, url: str) -> Account:
        """Open an address in the tab in front."""
        url = _whole(url)
        if url != "about:blank":
            await self._gate.check_page(url)
        driver = self.browser.driver
        here = await frame_of(driver)
        is_same = bool(urlsplit(url).fragment) and urldefrag(url).url == urldefrag(here.url).url
        self._holder.snapshot = None
        same = url if is_same else ""
        arrived = await open_page(
            driver,
            self.browser.proxy,
            partial(driver.goto, url),
            same_document_url=same,
            is_download=self._has_new_file,
        )
        account = await self._look("opened" if arrived else "no page came of it", wanted_url=url)
        if not arrived and not account.notes:
            account.message = "the server sent no page (an empty answer?); the tab shows what it showed before"
        return account

    async def step(self, by: int) -> Account:
        """Go back (-1) or forward (1) in the tab's history."""
        driver = self.browser.driver
        history = await driver.cdp("Page.getNavigationHistory")
        index = int(history["currentIndex"]) + by
        if not 0 <= index < len(history["entries"]):
            raise ToolError("there is no page before this one" if by < 0 else "there is no page after this one")
        entry = history["entries"][index]
        self._holder.snapshot = None
        begin = partial(driver.cdp, "Page.navigateToHistoryEntry", entryId=entry["id"])
        await open_page(driver, self.browser.proxy, begin, same_document_url=str(entry["url"]))
        return await self._look("went back" if by < 0 else "went forward")

    async def reload(self) -> Account:
        """Open the page in front anew."""
        self._holder.snapshot = None
        await open_page(self.browser.driver, self.browser.proxy, partial(self.browser.driver.cdp, "Page.reload"))
        return await self._look("reloaded")

    # Tabs

    async def open_tab(self, url: str | None) -> Account:
        """Open a tab, empty or with an address."""
        holder, driver = self._holder, self.browser.driver
        if len(await driver.handles()) >= MOST_TABS:
            raise ToolError(f"{MOST_TABS} tabs are open; close one first")
        if url is not None and _whole(url) != "about:blank":
            await self._gate.check_page(_whole(url))
        holder.tab = self.browser.front = await driver.new_tab()
        holder.own_tabs.add(holder.tab)
        holder.known_tabs.append(holder.tab)
        holder.snapshot = None
        account = Account("opened") if url is None else await self.navigate(url)
        account.notes.insert(0, f"tab {self._name(holder.tab)} is active")
        return account

    async def tabs(self) -> Account:
        """All tabs, with title and address."""
        driver = self.browser.driver
        targets = (await driver.cdp("Target.getTargets"))["targetInfos"]
        known = {str(target["targetId"]): target for target in targets}
        lines = []
        for handle in await driver.handles():
            if handle not in self._holder.known_tabs:
                self._holder.known_tabs.append(handle)
            target = known.get(handle, {})
            mark = " (active)" if handle == self._holder.tab else ""
            title = " ".join(str(target.get("title", "")).split())[:100]
            lines.append(
                f"{self._name(handle)}{mark} {json.dumps(title, ensure_ascii=False)} {target.get('url', '')[:300]}"
            )
        return Account(f"{len(lines)} tabs", page="\n".join(lines))

    async def focus_tab(self, name: str) -> Account:
        """Bring a tab to the front."""
        await self._switch(await self._handle(name))
        return await self._look(f"tab {name} is active")

    async def close_tab(self, name: str | None) -> Account:
        """Close a tab, the active one unless named; another one is active then."""
        holder, driver = self._holder, self.browser.driver
        handle = holder.tab if name is None else await self._handle(name)
        there = await driver.handles()
        if len(there) == 1:
            await driver.new_tab()
        await driver.switch(handle)
        await driver.close_tab()
        self.browser.front = ""
        holder.own_tabs.discard(handle)
        if handle == holder.tab:
            await self._fall_back(self.browser)
        else:
            await driver.switch(holder.tab)
        return Account(f"closed; tab {self._name(holder.tab)} is active")

    async def _switch(self, handle: str) -> None:
        await self.browser.driver.switch(handle)
        if handle != self._holder.tab:
            self._holder.snapshot = None
        self._holder.tab = self.browser.front = handle
        self._holder.own_tabs.add(handle)

    def _name(self, handle: str) -> str:
        return f"t{self._holder.known_tabs.index(handle) + 1}"

    async def _handle(self, name: str) -> str:
        there = await self.browser.driver.handles()
        number = name.strip().removeprefix("t")
        known = self._holder.known_tabs
        if number.isdigit() and 0 < int(number) <= len(known) and known[int(number) - 1] in there:
            return known[int(number) - 1]
        raise ToolError(f"there is no open tab {name!r}; list them with action tabs")

    # Looking

    async def snapshot(self, start: int = 0) -> Account:
        """The outline of the page, from a ref on; going on reads the same snapshot, so that refs stay."""
        driver = self.browser.driver
        kept = self._holder.snapshot
        if kept is None or start == 0 or not await self._is_current(kept):
            kept = self._holder.snapshot = await take_snapshot(driver)
        outline = await trio.to_thread.run_sync(kept.render, start)
        account = Account(f"{len(kept.elements)} refs", kept.title, kept.url, outline)
        account.dialog = await driver.dialog()
        return account

    async def _is_current(self, kept: Snapshot) -> bool:
        words = "token => Boolean(globalThis.__spacebot && globalThis.__spacebot.token === token)"
        driver = self.browser.driver
        return bool(await call(driver, await world_of(driver, (await frame_of(driver)).id), words, kept.token))

    async def content(self, *, as_text: bool) -> Account:
        """The page's HTML, or its words."""
        part = "document.body ? document.body.innerText : ''" if as_text else "document.documentElement.outerHTML"
        words = await self._eval(f"() => ({part}).slice(0, {CONTENT_BYTES})")
        text = str(words).encode()[:CONTENT_BYTES].decode(errors="ignore")
        frame = await frame_of(self.browser.driver)
        return Account("the page's text" if as_text else "the page's HTML", page=text, url=frame.url)

    async def evaluate(self, script: str) -> Account:
        """Run a script in the page, with the page's own rights."""
        result = await self.browser.driver.cdp(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            replMode=True,
            timeout=EVALUATE_S * 1000,
        )
        value = value_of(result)
        text = (
            json.dumps(value, ensure_ascii=False, indent=1)
            if value is not None
            else str(result["result"].get("description", "null"))
        )
        account = await self.after("done")
        account.page = f"result: {text}"
        return account

    async def wait(self, text: str | None, seconds: float) -> Account:
        """Wait until a text is on the page, or so long."""
        driver = self.browser.driver
        until, found = trio.current_time() + seconds, False
        while not found and (left := until - trio.current_time()) > 0:
            try:
                found = bool(await self._eval(AWAIT_TEXT, text or "", int(min(left, 1.0) * 1000)))
            except PageError:  # another document came
                await trio.sleep(0.05)
        await settle(driver, self.browser.proxy)
        if text and not found:
            raise ToolError(
                f"{text[:100]!r} did not appear within {seconds:g} seconds; take a snapshot to see what is there"
            )
        return await self.after("it is there" if text else "waited")

    async def _eval(self, function: str, *arguments: Any) -> Any:
        driver = self.browser.driver
        return await call(driver, await world_of(driver, (await frame_of(driver)).id), function, *arguments)

    # Keeping

    async def screenshot(self, ref: str | None, *, full_page: bool) -> Account:
        """A picture of what is seen, of the whole page, or of an element; its file."""
        driver = self.browser.driver
        clip = None
        if ref is not None:
            await self.hand.show(ref)
            clip = await self._clip(await self.hand.find(ref), ref)
        elif full_page:
            size = (await driver.cdp("Page.getLayoutMetrics"))["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST), "scale": 1}
        more: dict[str, Any] = {"clip": clip, "captureBeyondViewport": True} if clip else {}
        data = base64.b64decode((await driver.cdp("Page.captureScreenshot", format="png", **more))["data"])
        now = self._holder.browsers.clock.now()
        name = f"screenshot_{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03d}.png"
        path = await self._keep(self._holder.browsers.settings().screenshot_dir, SCREENSHOTS, name, data)
        return Account(f"screenshot_path: {path} ({len(data) // 1024 + 1} KB)")

    async def pdf(self) -> Account:
        """The page as a PDF file."""
        result = await self.browser.driver.cdp("Page.printToPDF", printBackground=True, timeout_s=60)
        now = self._holder.browsers.clock.now()
        data = base64.b64decode(result["data"])
        path = await self._keep(None, DOWNLOADS, f"page_{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03d}.pdf", data)
        return Account(f"pdf_path: {path} ({len(data) // 1024 + 1} KB)")

    async def _clip(self, node: str, ref: str) -> dict[str, float]:
        driver = self.browser.driver
        try:
            quad = (await driver.cdp("DOM.getBoxModel", objectId=node))["model"]["border"]
        except PageError as error:
            raise ToolError(f"{ref} takes no room on the page") from error
        view = (await driver.cdp("Page.getLayoutMetrics"))["cssVisualViewport"]
        x, y = min(quad[::2]), min(quad[1::2])
        width, height = max(quad[::2]) - x, max(quad[1::2]) - y
        return {
            "x": x + view["pageX"],
            "y": y + view["pageY"],
            "width": max(width, 1),
            "height": max(height, 1),
            "scale": 1,
        }

    async def _keep(self, configured: Path | None, folder: str, name: str, data: bytes) -> str:
        """Write a file into the workspace, by the file tool's rules; its path as commands know it."""
        containment = self._holder.containment

        def write() -> str:
            target = containment.workspace / (configured.expanduser() if configured else folder) / name
            if configured is not None and not target.is_relative_to(containment.workspace):
                place = Place(target.parent, (name,), str(target))  # the owner chose the folder
                target.parent.mkdir(parents=True, exist_ok=True)
            else:
                place = containment.policy().locate(str(target), writing=True)
            write_file(place, data, create_dirs=True)
            return str(target)

        return await trio.to_thread.run_sync(write, limiter=containment.disk_limiter)

    # What came of it

    async def after(self, message: str, *, is_click: bool = False) -> Account:
        """Let the page come to rest and tell what has changed."""
        driver = self.browser.driver
        if (words := await driver.dialog()) is not None:
            return Account(message, dialog=words)
        notes = await self._new_tabs()
        try:
            await settle(driver, self.browser.proxy)
        except DialogError as error:
            return Account(message, dialog=error.words, notes=notes)
        account = await self._look(message, judge=is_click)
        account.notes[:0] = notes
        return account

    async def _look(self, message: str, *, wanted_url: str | None = None, judge: bool = True) -> Account:
        driver = self.browser.driver
        if (words := await driver.dialog()) is not None:
            return Account(message, dialog=words)
        frame = await frame_of(driver)
        await self._check(frame)
        account = Account(message, url=frame.url)
        try:
            world = await world_of(driver, frame.id)
            signs = value_of(
                await driver.cdp("Runtime.evaluate", expression=SIGNS, contextId=world, returnByValue=True)
            )
        except PageError:  # it is just going on to another document
            return account
        if signs["refused"] == self.browser.proxy.mark:
            reason = " ".join(str(signs["words"]).split()).removeprefix("Not opened").strip()
            raise ToolError(f"{urlsplit(frame.url).hostname} could not be opened: {reason}")
        account.title = str(signs.get("title", ""))[:300]
        account.notes += await self._new_files()
        if judge and (block := find_block(signs, wanted_url=wanted_url, final_url=frame.url)):
            log.info("browser met a block", extra=kv(reason=block.reason, host=urlsplit(frame.url).hostname or ""))
            account.is_error = True
            account.message = (
                f"blocked ({block.reason}: {block.detail}). Do not try to get round it. Unless you were given a way "
                "in, call set_status with kind outcome and result blocked, and name this reason and the address."
            )
        return account

    async def _check(self, frame: Frame) -> None:
        """Refuse to stay where the tab should not be. Errors: ToolError."""
        place = frame.failed_url or frame.url
        scheme = urlsplit(place).scheme
        reason = self.browser.proxy.reason_against(place) if scheme in ("http", "https") else None
        if reason:
            await self._leave()
            raise ToolError(f"{urlsplit(place).hostname} was not opened: {reason}")
        if frame.failed_url:
            raise ToolError(f"{urlsplit(place).hostname} could not be opened (no connection, or a wrong certificate)")
        if scheme not in _SCHEMES:
            await self._leave()
            raise ToolError("the page led to an address that is no web page; the tab is empty now")
        if scheme in ("http", "https") and not self._gate.fits_allowlist(place):
            await self._leave()
            host = urlsplit(place).hostname
            self._gate.refuse("browser", f"the page led to {host}, which is not listed", key="browser_url_allowlist")

    async def _leave(self) -> None:
        self._holder.snapshot = None
        driver = self.browser.driver
        with suppress(PageError):
            await open_page(
                driver, self.browser.proxy, partial(driver.goto, "about:blank"), same_document_url="about:blank"
            )

    async def _new_tabs(self) -> list[str]:
        """Tabs that the page has opened: the newest is active now."""
        holder, driver = self._holder, self.browser.driver
        there = await driver.handles()
        fresh = [tab for tab in there if tab not in holder.known_tabs]
        if holder.is_shared:
            targets = (await driver.cdp("Target.getTargets"))["targetInfos"]
            ours = {str(t["targetId"]) for t in targets if t.get("openerId") in holder.own_tabs}
            fresh = [tab for tab in fresh if tab in ours]
        notes = []
        for tab in fresh[MOST_TABS:]:
            await driver.switch(tab)
            await driver.close_tab()
        if fresh := fresh[:MOST_TABS]:
            holder.known_tabs += fresh
            holder.own_tabs.update(fresh)
            notes.append(f"the page opened tab {self._name(fresh[-1])}, which is active now")
            await self._switch(fresh[-1])
        elif holder.tab not in there:
            await self._fall_back(self.browser)
            notes.append(f"the tab closed itself; tab {self._name(holder.tab)} is active now")
        return notes

    async def _new_files(self) -> list[str]:
        """Downloads that have ended since the last look."""
        assert self._files is not None
        until = trio.current_time() + DOWNLOAD_S
        there = set(await self._downloads())
        while any(name.endswith(".crdownload") for name in there - self._files) and trio.current_time() < until:
            await trio.sleep(0.1)
            there = set(await self._downloads())
        fresh = sorted(name for name in there - self._files if not name.endswith(".crdownload"))
        notes = [f"downloaded: {self._holder.containment.workspace / DOWNLOADS / name}" for name in fresh]
        if any(name.endswith(".crdownload") for name in there - self._files):
            notes.append("a download is still running; use action wait")
        self._files |= set(fresh)
        return notes

    async def _has_new_file(self) -> bool:
        return bool(set(await self._downloads()) - (self._files or set()))

    async def _downloads(self) -> list[str]:
        containment = self._holder.containment

        def names() -> list[str]:
            try:
                place = containment.policy().locate(str(containment.workspace / DOWNLOADS), writing=False)
                with open_folder(place) as folder:
                    return os.listdir(folder)
            except (ToolError, OSError):
                return []

        return await trio.to_thread.run_sync(names, limiter=containment.disk_limiter)

    @property
    def _gate(self) -> Any:
        return self._holder.browsers.gate


def _whole(url: str) -> str:
    """An address as people write it, with its scheme."""
    url = url.strip()
    if url in ("", "about:blank"):
        return "about:blank"
    return (
        url
        if "://" in url or url.partition(":")[0] in ("javascript", "data", "file", "view-source")
        else f"https://{url}"
    )
