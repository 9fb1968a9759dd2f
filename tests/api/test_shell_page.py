"""What stands around every page: navigation, choice of agent, theme, keyboard; and how the files travel."""

import gzip
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import trio

from spacebot.agent.updates import UpdateState
from spacebot.api.pages import PAGES, PageRoutes, read_files
from spacebot.base.paths import package_file
from spacebot.base.telemetry import LogRing
from spacebot.base.tree import Node
from tests.api.serving import UNREAD
from tests.api.test_cortex_page import Page
from tests.api.test_page import CHAT, Keys, drive, open_browser, serve
from tests.api.test_schedules_page import in_browser
from tests.fakes.fake_program import FakeProgram

pytestmark = pytest.mark.filterwarnings(UNREAD)
STATIC = package_file("api", "static")
NAVIGATION = [page for page in PAGES if page.group and (STATIC / f"{page.name}.html").exists()]
LIGHT = ("overview", "chat", "conversations", "memory", "workers", "schedules", "connections")  # need no whole program
HAS_SLID_IN = "return document.getElementById('pages').getBoundingClientRect().left === 0"
# Everything that can be clicked on the page is at least so high on a screen that is touched.
SMALL = """
return [...document.querySelectorAll('#pages a, header button, header select')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().height < 43.5).map(e => e.outerHTML.slice(0, 80))
"""
# Whether what the shell does some time after the start has been done: the second look at the state is a sign of it.
HAS_ASKED = """
document.dispatchEvent(new Event('visibilitychange'));
return performance.getEntriesByType('resource').filter((one) => one.name.includes('/api/status')).length > 1
"""
STREAMS = "fetch('api/status').then((answer) => answer.json()).then((state) => arguments[0](state.counts.streams))"
PAPER = "return getComputedStyle(document.body).backgroundColor"


@contextmanager
def keep_log() -> Iterator[None]:
    """Keep the newest records in memory, as the program does."""
    ring = LogRing()
    logging.getLogger().addHandler(ring)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(ring)


@asynccontextmanager
async def open_page(folder: Path, *agents: str, width: int = 1280) -> AsyncIterator[tuple[FakeProgram, Page]]:
    (folder / "instance").mkdir()
    with open_browser(folder, width, 800) as browser, keep_log():
        async with serve(folder / "instance", agents=agents or ("main",)) as (program, url):
            yield program, Page(browser, url)
            assert await trio.to_thread.run_sync(browser.complaints) == []


@in_browser
async def test_the_keyboard_leads_from_page_to_page_and_the_theme_and_the_agent_come_along(tmp_path: Path) -> None:
    async with open_page(tmp_path, "main", "research") as (_, page):

        def type_keys(*keys: str) -> None:
            for key in keys:
                page.one("body").send_keys(key)

        def go() -> None:
            page.browser.open(f"{page.url}/connections")
            entries = [page.title for page in NAVIGATION]
            assert page.texts("#pages li span") == entries
            assert page.texts("#pages [aria-current=page] span") == ["Connections"]
            assert page.browser.find("#agent[hidden]")  # it shows all agents at once
            light = page.script(PAPER)
            page.one("#theme").click()
            page.one("#theme").click()
            dark = page.script(PAPER)
            assert dark != light
            type_keys("g", "w")
            page.wait_texts("#pages [aria-current=page] span", ["Workers"])
            page.browser.wait_online()
            assert page.script(PAPER) == dark
            page.one("#agent option[value=research]").click()
            type_keys("?")
            page.one("#help[open]")
            assert "g s" in " ".join(page.texts("#help dt")).replace("  ", " ")
            type_keys("g", "s")  # a dialog is open
            page.one("#keys-on").click()
            type_keys(Keys.ESCAPE)
            page.gone("#help[open]")
            type_keys("g", "s")  # and now they are off
            assert page.browser.driver.title == "Workers · Spacebot"
            page.one("#pages a[href='memory']").click()
            page.browser.wait_online()
            assert page.script("return document.getElementById('agent').value") == "research"
            page.one("#fold-pages").click()
            assert page.script("return document.getElementById('pages').clientWidth") < 80
            page.one(".skip").send_keys(Keys.ENTER)
            assert page.script("return document.activeElement.id") == "q"
            assert "#q" not in page.browser.driver.current_url

        await drive(go)


@in_browser
async def test_live_work_is_counted_beside_its_page(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (program, page):

        async def work(node: Node) -> str:
            await trio.sleep_forever()
            raise AssertionError

        assert program.main.nursery is not None

        def badge() -> str:
            return page.text("#pages [data-page=workers] .count-badge:not([hidden])")

        await drive(lambda: page.browser.open(f"{page.url}/connections"))
        assert badge() == ""
        program.main.nursery.start_soon(program.main.run_worker, CHAT, "count the stars", work)
        await drive(lambda: page.browser.wait(lambda: badge() == "1", "a badge"))
        node = next(node for node in program.tree.view() if node.kind == "worker")
        running = program.tree.get(node.id)
        assert running is not None
        running.cancel("enough")
        await drive(lambda: page.browser.wait(lambda: badge() == "", "no badge"))


@in_browser
async def test_a_newer_version_is_told_until_it_is_sent_away(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (program, page):
        newer = UpdateState(
            latest_version="9.9.9", update_available=True, release_url="https://example.com/9.9.9",
            cannot_apply_reason="run the installer again.",
        )  # fmt: skip
        program.updates = SimpleNamespace(state=newer)  # type: ignore[assignment]

        def look() -> None:
            page.browser.open(f"{page.url}/schedules")
            page.wait_text("#update:not([hidden])", "Version 9.9.9 is there. To update: run the installer again.")
            assert page.one("#update a").get_attribute("href") == newer.release_url
            page.one("#update button").click()
            page.browser.open(f"{page.url}/workers")
            page.browser.wait(lambda: page.script(HAS_ASKED), "the question for versions")
            assert page.browser.find("#update[hidden]")

        await drive(look)


@in_browser
async def test_on_a_phone_the_pages_slide_in_and_nothing_is_too_small_to_touch(tmp_path: Path) -> None:
    async with open_page(tmp_path, width=360) as (_, page):

        def look() -> None:
            for one in (page for page in NAVIGATION if page.name in LIGHT):
                page.browser.open(f"{page.url}{one.path}")
                assert page.is_narrow(), one.name
                assert page.script(SMALL) == [], one.name
                assert page.browser.driver.title.startswith("Spacebot" if one.name == "chat" else one.title)
            # Pages that were left hold no connection: a browser has six of them, and the next page would wait for ever.
            page.browser.wait(lambda: page.browser.driver.execute_async_script(STREAMS) <= 2, "streams let go")
            page.one("#open-pages").click()
            page.browser.wait(lambda: page.script(HAS_SLID_IN), "the drawer")
            assert page.script(SMALL) == []
            page.one("body").send_keys(Keys.ESCAPE)
            page.gone("#pages.open")

        await drive(look)


async def test_files_travel_packed_and_are_kept_until_they_change(tmp_path: Path) -> None:
    async with serve(tmp_path) as (_, url), httpx2.AsyncClient(base_url=url) as client:
        for accepted, is_packed in (("gzip, br", True), ("br;q=1, gzip;q=0.5", True), ("gzip;q=0", False), ("", False)):
            page = await client.get("/workers", headers={"accept-encoding": accepted})
            assert (page.headers.get("content-encoding") == "gzip") is is_packed, accepted
            assert page.headers["vary"] == "accept-encoding"
            assert "__VERSION__" not in page.text
            assert "{{" not in page.text
            kept = await client.get(
                "/workers", headers={"accept-encoding": accepted, "if-none-match": page.headers["etag"]}
            )
            assert (kept.status_code, kept.content) == (304, b"")
        links = set(re.findall(r'(?:href|src)="(static/[^"]+)"', page.text))
        assert any("workers.js" in link for link in links)
        for link in links:
            file = await client.get(f"/{link}", headers={"accept-encoding": "gzip"})
            assert file.status_code == 200, link
            assert "immutable" in file.headers["cache-control"]
            assert file.headers["x-content-type-options"] == "nosniff"


def test_a_page_needs_no_more_than_its_files_and_without_a_file_it_has_no_entry() -> None:
    files = read_files(STATIC)
    rest = {name: body for name, body in files.items() if name not in ("workers.html", "memory.css")}
    pages = PageRoutes(None, rest)  # type: ignore[arg-type]
    memory = pages._files["memory.html"].decode()
    assert 'data-page="workers"' not in memory
    assert 'data-page="chat"' in memory
    assert "memory.css" not in memory
    assert "/workers" not in {route.path for route in pages.routes()}
    whole = PageRoutes(None, files)  # type: ignore[arg-type]
    assert len(gzip.compress(whole._files["chat.html"])) < 6_000
    for name, body in whole._files.items():
        assert b"__VERSION__" not in body, name
        if name.endswith(".html"):
            assert b" style=" not in body, name
            assert not re.search(rb"<script(?! (?:type|src))", body), name
