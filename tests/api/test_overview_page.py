"""The Overview page in a real browser: how every agent is, what runs, what it cost, and what needs its owner."""

from pathlib import Path

import trio

from spacebot.base.events import EventKind
from spacebot.base.tree import Node
from spacebot.messaging.states import AdapterState, Connection
from tests.api.test_page import CHAT, Keys, drive
from tests.api.test_schedules_page import in_browser
from tests.api.test_shell_page import open_page
from tests.fakes.opened import text_from

EVIL = "<img src=x onerror=\"document.title='owned'\">" + "wide" * 80
FILE = """\
[messaging.telegram]
token = "12:abcdef"

[[bindings]]
agent_id = "nobody"
channel = "telegram"
"""


def of(agent: str, css: str) -> str:
    return f'.agent[data-id="{agent}"] {css}'


@in_browser
async def test_the_owner_sees_agents_work_talk_and_trouble_and_ends_what_runs(tmp_path: Path) -> None:
    async with open_page(tmp_path, "main", "research") as (program, page):
        config = tmp_path / "instance" / "config.toml"
        config.write_text(FILE)
        await program.reload_config()
        program.messaging.known["telegram"] = AdapterState(
            key="telegram", platform="telegram", state=Connection.RETRYING, detail=EVIL
        )
        program.main.on_message = None
        await program.main.accept(text_from("Ann", "private words", conversation="telegram:5", is_direct=True))
        await program.main.accept(text_from("user", "hello", conversation=CHAT, is_direct=False))
        await program.main.schedules.save({"id": "news", "prompt": "look", "interval_secs": 3600})
        program.main.run_says = ""
        await program.main.schedules.trigger("news")

        async def work(node: Node) -> str:
            program.main.emit(EventKind.WORKER_STATUS, CHAT, worker_id=node.id, status="at 1 of 9")
            await trio.sleep_forever()
            raise AssertionError

        nursery = program.main.nursery
        assert nursery is not None
        nursery.start_soon(program.main.run_worker, CHAT, f"count the stars {EVIL}", work)
        nursery.start_soon(program.main.run_worker, "telegram:5", "a secret matter", work)

        def look() -> None:
            page.browser.open(f"{page.url}/overview")
            page.wait_texts(".agent h3", ["main", "research"])
            page.wait_text("#figures .live", "2")
            assert "2 conversations" in page.text(of("main", ".counts"))
            assert page.text(of("main", ".tag")) == "running"
            assert page.browser.find(of("main", ".remove[hidden]"))  # the default agent stays
            page.browser.wait(lambda: len(page.browser.find("#tree .worker")) == 2, "both workers")
            words = page.texts("#tree .worker .what")
            assert any("count the stars" in text for text in words)
            assert "Workingin a direct chat" in words
            assert "secret" not in page.text("body")
            assert page.texts("#recent a") == ["Chat in this browser", "5"]
            page.wait_text("#wrong-list", "there is no agent 'nobody'")
            page.wait_text("#wrong-list", "no credit left")
            page.wait_text("#adapters", "trying again")
            assert page.is_narrow()
            assert "owned" not in page.browser.driver.title

        def act() -> None:
            stop = next(one for one in page.browser.find("#tree .node.worker") if "stars" in one.text)
            stop.find_element("css selector", ".pill").click()
            page.browser.wait(lambda: len(page.browser.find("#tree .worker")) == 1, "one ended")
            page.one(of("research", ".pause")).click()
            page.wait_text(of("research", ".tag"), "paused")
            page.wait_text(of("research", ".result.good"), "is paused")
            page.one(of("research", ".remove")).click()
            page.one("dialog.asking .yes:disabled")
            page.one("dialog.asking .no").click()
            page.gone("dialog.asking")

        await drive(look)
        await drive(act)
        assert program.agents[next(reversed(program.agents))].is_paused


@in_browser
async def test_a_new_program_on_a_phone_in_the_dark_says_how_to_begin(tmp_path: Path) -> None:
    async with open_page(tmp_path, width=360) as (_, page):

        def look() -> None:
            page.dark()
            page.browser.open(f"{page.url}/overview")
            page.wait_texts(".agent h3", ["main"])
            page.one("#calm:not([hidden])")
            page.one("#silence:not([hidden])")
            page.one("#demo:not([hidden])")
            assert page.is_narrow()
            assert page.browser.find("#wrong[hidden]")
            page.one("#new-agent").click()
            page.one("dialog.asking [name=agent_id]").send_keys("Not A Name", Keys.ENTER)
            assert page.browser.find("dialog.asking[open]")  # the browser says what a name may hold

        await drive(look)
