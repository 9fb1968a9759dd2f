"""The Logs page in a real browser: live lines, chosen by level and words, held still, and found again after a pause."""

import logging
from pathlib import Path

from spacebot.base.telemetry import kv
from tests.api.test_page import drive
from tests.api.test_schedules_page import in_browser
from tests.api.test_shell_page import open_page

EVIL = "<img src=x onerror=\"document.title='owned'\">" + "wide" * 60
log = logging.getLogger("spacebot.tests.page")


@in_browser
async def test_lines_come_as_they_are_written_and_can_be_chosen_and_held(tmp_path: Path) -> None:
    async with open_page(tmp_path, width=360) as (_, page):
        log.setLevel(logging.DEBUG)
        log.info("the kettle boils", extra=kv(degrees=100))
        log.warning(EVIL)

        def first() -> None:
            page.dark()
            page.browser.open(f"{page.url}/logs")
            page.wait_text("#lines", "the kettle boils")
            assert "degrees=100" in page.text("#lines .info .what")
            assert EVIL in page.text("#lines .warning .what")
            assert page.is_narrow()
            assert "owned" not in page.browser.driver.title

        def held() -> None:
            page.wait_text("#lines", "the tea is ready")
            page.one("#pause").click()

        def waiting() -> None:
            page.wait_text("#count", "more wait")
            assert "after the pause" not in page.text("#lines")
            page.one("#pause").click()
            page.wait_text("#lines", "after the pause")

        def chosen() -> None:
            page.one("#level option[value=warning]").click()
            page.browser.wait(lambda: "kettle" not in page.text("#lines"), "warnings alone")
            page.one("#find").send_keys("WIDEwide")
            page.browser.wait(lambda: len(page.browser.find("#lines li")) == 1, "one line")
            page.browser.driver.refresh()  # what was chosen stands in the address
            page.browser.wait_online()
            page.browser.wait(lambda: len(page.browser.find("#lines li")) == 1, "the same line")
            assert page.script("return document.getElementById('level').value") == "warning"

        def live() -> None:
            page.browser.wait(lambda: len(page.browser.find("#lines li")) == 2, "another that fits")

        try:
            await drive(first)
            log.info("the tea is ready")
            await drive(held)
            log.info("after the pause")
            await drive(waiting)
            await drive(chosen)
            log.info("widewide, but no warning")
            log.warning("so wideWide")
            await drive(live)
        finally:
            log.setLevel(logging.NOTSET)
