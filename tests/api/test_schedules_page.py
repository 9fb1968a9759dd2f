"""The Schedules page in a real browser, and its routes: add, run now, history, switch, delete."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.api.contract import AgentHandle
from tests.api.serving import open_server
from tests.api.test_cortex_page import Page
from tests.api.test_page import CHROMIUM, DRIVER, drive, open_browser, serve
from tests.fakes.fake_program import FakeProgram

browser_test = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
EVIL = "<img src=x onerror=\"document.title='owned'\">" + "tell" * 60


def in_browser(test: Any) -> Any:
    for mark in browser_test:
        test = mark(test)
    return test


@asynccontextmanager
async def open_page(folder: Path, *, width: int = 1280) -> AsyncIterator[tuple[FakeProgram, Page]]:
    (folder / "instance").mkdir()
    with open_browser(folder, width, 800) as browser:
        async with serve(folder / "instance") as (program, url):
            yield program, Page(browser, url)
            assert await trio.to_thread.run_sync(browser.complaints) == []


def of(job: str, css: str) -> str:
    return f'.job[data-id="{job}"] {css}'


@in_browser
async def test_a_schedule_is_added_run_looked_at_switched_off_and_deleted(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (program, page):

        def steps() -> None:
            page.browser.open(f"{page.url}/")
            page.one("#pages a[href='schedules']").click()
            page.browser.wait_online()
            page.one("#none:not([hidden])")
            assert page.text("#zone") == "Europe/Berlin"
            page.one("#add [name=id]").send_keys("news")
            page.one("#add [name=rhythm] option[value='0 9 * * 1-5']").click()
            page.one("#add [name=prompt]").send_keys(EVIL)
            page.one("#add button").click()
            page.wait_texts(".job h3", ["news"])
            assert page.text(of("news", ".prompt")) == EVIL
            assert page.text(of("news", ".when")).startswith("0 9 * * 1-5 · next ")
            assert page.text(of("news", ".last")) == "Never run yet"
            page.one(of("news", "summary")).click()
            page.one(of("news", ".run")).click()
            page.wait_text(of("news", ".last"), "Last run: done")
            page.wait_text(of("news", "ol li"), "Sunny.")
            assert "not delivered: no home" in page.text(of("news", "ol li"))
            page.one(of("news", ".toggle")).click()
            page.wait_text(of("news", ".state"), "off: switched off")
            page.one(of("news", ".run:disabled"))
            page.one(of("news", ".toggle")).click()
            page.wait_texts(of("news", ".state"), ["on"])
            page.one(of("news", ".remove")).click()
            page.one("dialog.asking .yes").click()
            page.one("#none:not([hidden])")
            assert page.browser.driver.title == "Schedules · Spacebot"

        await drive(steps)
        assert not await program.main.schedules.all()


@in_browser
async def test_why_it_failed_and_what_is_wrong_is_said_and_it_fits_a_small_window(tmp_path: Path) -> None:
    async with open_page(tmp_path, width=360) as (program, page):
        program.main.run_says = ""
        await program.main.schedules.save({"id": "m", "prompt": EVIL, "interval_secs": 3600})
        for _ in range(3):
            await program.main.schedules.trigger("m")
            await ended(program.main)

        def steps() -> None:
            page.dark()
            page.browser.open(f"{page.url}/schedules")
            page.wait_text(of("m", ".state"), "off: 3 failures in a row, the last one: no credit left")
            assert page.text(of("m", ".last")).endswith("(0 well, 3 failed): no credit left")
            assert page.is_narrow()
            for path in ("", "memory", "connections"):
                page.browser.open(f"{page.url}/{path}")
                assert page.is_narrow(), path

        await drive(steps)


async def ended(agent: AgentHandle) -> None:
    while any(run.state == "running" for run in await agent.schedules.history()):
        await trio.sleep(0.01)


async def test_the_routes(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        client, job = served.client, {"id": "a", "prompt": "do it", "interval_secs": 7200}
        made = (await client.post("/api/agents/cron", json=job)).json()
        assert (made["success"], made["job"]["rhythm"]) == (True, "every 2 hours")
        again = await client.post("/api/agents/cron", json={**job, "active_start_hour": 22, "active_end_hour": 6})
        assert again.status_code == 200
        (listed,) = (await client.get("/api/agents/cron?agent_id=main")).json()["jobs"]
        assert (listed["active_hours"], listed["timeout_secs"], listed["success_count"]) == ([22, 6], 120, 0)
        started = (await client.post("/api/agents/cron/trigger", json={"cron_id": "a"})).json()
        await ended(served.program.main)
        (run,) = (await client.get("/api/agents/cron/executions?cron_id=a&limit=5")).json()["executions"]
        assert (run["id"], run["success"], run["result_summary"]) == (started["execution_id"], True, "Sunny.")
        off = await client.put("/api/agents/cron/toggle", json={"cron_id": "a", "enabled": False})
        assert off.json()["job"]["next_due_at"] is None
        refused = await client.post("/api/agents/cron/trigger", json={"cron_id": "a"})
        assert "switched off" in refused.json()["error"]
        for wrong in ({"interval_secs": 5}, {"cron_expr": "0 0 30 2 *"}, {"delivery_target": "x"}, {"id": ""}):
            answer = await client.post("/api/agents/cron", json={**job, **wrong})
            assert 400 <= answer.status_code < 500, wrong
        assert (await client.delete("/api/agents/cron?cron_id=a")).json()["success"]
        assert (await client.delete("/api/agents/cron?cron_id=a")).status_code == 404
