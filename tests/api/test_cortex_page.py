"""The Cortex page in a real browser: ask, watch, stop, come back later; and what the cortex shows of itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.clock import Clock
from spacebot.base.ids import new_uuid
from spacebot.base.paths import package_file
from spacebot.conversations.cortex_threads import CortexThreads
from spacebot.memory.curation_log import CurationLog
from spacebot.storage.database import open_database
from tests.api.test_cortex_routes import OSLO, Owner, open_owner
from tests.api.test_page import CHROMIUM, DRIVER, Browser, Keys, drive, open_browser
from tests.fakes.scripted_model import Call, Gate, Say

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
MARKUP = "<b>bold</b><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HAS_SLID_IN = "return document.getElementById('inside').getBoundingClientRect().right <= innerWidth"
IS_NARROW = "return document.documentElement.scrollWidth <= innerWidth"
BULLETIN = "Nora works in Bergen. The release is planned for **Tuesday**."


class Page:
    """The Cortex page in a window; all methods block."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url

    def open(self, fragment: str = "") -> None:
        self.browser.open(f"{self.url}/cortex{fragment}")

    def ask(self, text: str) -> None:
        self.browser.say(text)

    def one(self, css: str) -> Any:
        return self.browser.wait(lambda: self.browser.find(css), css)[0]

    def gone(self, css: str) -> None:
        self.browser.wait(lambda: not self.browser.find(css), f"no {css}")

    def text(self, css: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.textContent ?? ''", css))

    def texts(self, css: str) -> list[str]:
        return list(
            self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", css)
        )

    def wait_text(self, css: str, words: str) -> None:
        self.browser.wait(lambda: words in self.text(css), f"{words!r} in {css}")

    def wait_texts(self, css: str, expected: list[str]) -> None:
        self.browser.wait(lambda: self.texts(css) == expected, f"{expected} in {css}")

    def script(self, source: str, *arguments: Any) -> Any:
        return self.browser.driver.execute_script(source, *arguments)

    def is_narrow(self) -> bool:
        return bool(self.script(IS_NARROW))

    def dark(self) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark"}
        self.browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


async def leave_a_past(folder: Path, *, bulletin: str = BULLETIN, words: str = "Quiet", deeds: int = 0) -> None:
    """What an earlier life of the agent left: a bulletin, and a log; a card is written at once from the bulletin."""
    data = folder / "agents" / "main" / "data"
    data.mkdir(parents=True)
    clock = Clock()
    async with open_database(data / "spacebot.db", package_file("storage", "sql"), clock) as database:
        log = CurationLog(database, clock)
        await log.add("bulletin_generated", "bulletin of 10 words", bulletin_text=bulletin, memory_ids=[], digest="d")
        await log.add("process_killed", f"worker ended after 600 s, {words}", process_id="w1", limit_s=600)
        for number in range(deeds):
            await log.add("memory_merged", f"merge {number} {words}", survivor_id=f"m{number}", note=words)


@asynccontextmanager
async def open_page(
    folder: Path, *steps: Any, width: int = 1280, card: str = "Quiet", refused: str = "none", **settings: Any
) -> AsyncIterator[tuple[Owner, Page]]:
    with open_browser(folder, width, 800) as browser:
        async with open_owner(folder / "instance", *steps, card=card, **settings) as owner:
            yield owner, Page(browser, str(owner.client.base_url).rstrip("/"))
            complaints = await trio.to_thread.run_sync(browser.complaints)
            assert [text for text in complaints if f"a status of {refused}" not in text] == []


async def test_a_question_is_answered_with_what_was_done_for_it(tmp_path: Path) -> None:
    steps = (Call("memory_recall", query="Oslo"), "It is **Nora**.", "again")
    async with open_page(tmp_path, *steps) as (owner, page):
        await owner.opened.agent.memory.save(OSLO)
        await owner.opened.say("Ann", "it rains in Bergen")
        await owner.opened.ended(1)

        def first() -> None:
            page.open()
            page.one("#welcome:not([hidden])")
            page.browser.wait(lambda: len(page.browser.find("#channel option")) == 2, "the conversation")
            page.browser.find("#channel option")[1].click()
            page.ask("who wants to move?")
            page.wait_texts("#log .body", ["who wants to move?", "It is Nora."])
            page.gone("#tail .message")
            assert page.text("#log .prose strong") == "Nora"
            assert "looked at" in page.text("#log .user .meta")
            call = page.one("#log .call.ok")
            assert not page.script("return arguments[0].open", call)
            page.one("#log .call summary").click()
            asked, answer = page.texts("#log .call pre")
            assert '"query": "Oslo"' in asked
            assert "Nora wants to move to Oslo" in answer
            page.wait_texts("#thread-list .title", ["who wants to move?"])

        def second() -> None:
            page.browser.driver.refresh()
            page.browser.wait_online()
            page.wait_texts("#log .body", ["who wants to move?", "It is Nora."])
            page.one("#pages a[href='./'][data-page]").click()  # chat, and back by its own link
            page.one("#pages a[href='cortex']").click()
            page.wait_texts("#log .body", ["who wants to move?", "It is Nora."])

        await drive(first)
        await drive(second)


async def test_an_answer_is_stopped_and_the_next_question_gets_through(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("never"))
    async with open_page(tmp_path, gate, "yes") as (_, page):

        def steps() -> None:
            page.open()
            page.ask("slow one")
            page.one("#stop:not([hidden])")
            page.wait_texts("#log .body", ["slow one"])
            page.ask("impatient")
            page.wait_text("#busy", "Still answering")
            assert page.script("return document.getElementById('text').value") == "impatient"
            page.one("#stop").click()
            page.wait_text("#log .notice .ended", "Stopped")
            page.one("#send:not([hidden])")
            page.gone("#busy:not([hidden])")
            page.browser.driver.find_element("id", "text").send_keys(Keys.ENTER)
            page.wait_texts("#log .user .body", ["slow one", "impatient"])
            page.wait_texts("#log .assistant:not(.notice) .body", ["yes"])

        await drive(steps)


async def test_an_answer_that_nobody_watched_is_there_after_a_reload(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("here it is"))
    async with open_page(tmp_path, gate) as (_, page):

        def ask() -> None:
            page.open()
            page.ask("take your time")
            page.wait_texts("#log .body", ["take your time"])
            page.browser.driver.refresh()
            page.browser.wait_online()
            page.wait_text("#tail .streaming", "Still answering")
            page.one("#stop:not([hidden])")

        def read() -> None:
            page.wait_texts("#log .body", ["take your time", "here it is"])
            page.gone("#tail .message")
            page.one("#send:not([hidden])")

        await drive(ask)
        await gate.arrived.wait()
        gate.event.set()
        await drive(read)


async def test_a_question_that_a_crash_cut_can_be_asked_again(tmp_path: Path) -> None:
    data = tmp_path / "instance" / "agents" / "main" / "data"
    data.mkdir(parents=True)
    async with open_database(data / "spacebot.db", package_file("storage", "sql"), Clock()) as database:
        await CortexThreads(database, Clock()).add(new_uuid(), "user", "what was it?")
    async with open_page(tmp_path, "this") as (_, page):

        def steps() -> None:
            page.open()
            page.wait_text("#tail .lost", "No answer came")
            page.one("#tail .lost button").click()
            page.wait_texts("#log .body", ["what was it?", "what was it?", "this"])
            page.gone("#tail .message")

        await drive(steps)


async def test_threads_are_opened_kept_and_deleted_and_one_question_waits_for_another(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("late"))
    async with open_page(tmp_path, "one", gate) as (_, page):

        def first() -> None:
            page.open()
            page.ask("the first")
            page.wait_texts("#log .body", ["the first", "one"])
            page.one("#new-thread").click()
            page.one("#welcome:not([hidden])")
            page.ask("the second")
            page.one("#stop:not([hidden])")
            page.wait_texts("#thread-list .title", ["the second", "the first"])
            page.browser.find("#thread-list .name")[1].click()
            page.wait_texts("#log .body", ["the first", "one"])
            page.wait_text("#busy", "another thread")
            page.ask("not now")
            assert page.texts("#log .user .body") == ["the first"]
            page.one("#busy .pill").click()
            page.wait_texts("#log .body", ["the second"])

        def second() -> None:
            page.wait_texts("#log .body", ["the second", "late"])
            page.browser.find("#thread-list .forget")[1].click()
            page.wait_text("#deleting-name", "the first")
            page.one("#deleting-no").click()
            assert page.texts("#thread-list .title") == ["the second", "the first"]
            page.browser.find("#thread-list .forget")[0].click()
            page.one("#deleting-yes").click()
            page.wait_texts("#thread-list .title", ["the first"])
            page.wait_texts("#log .body", ["the first", "one"])

        await drive(first)
        await gate.arrived.wait()
        gate.event.set()
        await drive(second)


async def test_bulletin_card_duties_and_log_are_shown(tmp_path: Path) -> None:
    await leave_a_past(tmp_path / "instance", deeds=60)
    async with open_page(tmp_path) as (owner, page):

        def steps() -> None:
            page.open()
            page.wait_text(".bulletin .paper", "Nora works in Bergen")
            assert page.text(".bulletin .paper strong") == "Tuesday"
            page.wait_text(".profile h2", "Ada Quiet")
            assert (page.text(".profile p"), page.text(".profile .bio")) == ("Quiet", "I keep notes. Quiet")
            assert {"Bulletin", "Card", "Links", "Upkeep"} <= set(page.texts(".duties b"))
            page.one("#tab-deeds").click()
            page.browser.wait(lambda: len(page.browser.find(".deed")) == 50, "a page of the log")
            page.one(".more").click()
            page.browser.wait(lambda: len(page.browser.find(".deed")) == 63, "all of it")
            page.gone(".more")
            page.one(".chip[data-group=health]").click()
            page.wait_texts(".deed b", ["Ended a process"])
            page.one(".deed summary").click()
            page.wait_text(".deed[open] dl", "w1")
            page.one(".chip[data-group=bulletin]").click()
            page.wait_texts(".deed b", ["New card", "New bulletin"])
            page.one(".chip[data-group=upkeep]").click()
            page.wait_text("#deeds", "Nothing of this kind yet")
            page.one(".chip[data-group=all]").click()
            page.browser.wait(lambda: len(page.browser.find(".deed")) == 50, "the log again")

        def new() -> None:
            page.wait_text(".deed b", "Forgotten")  # by the event stream

        await drive(steps)
        saved = await owner.opened.agent.memory.save(OSLO)
        await owner.opened.agent.memory.forget(saved.memory.id, "a mistake")
        await drive(new)


async def test_documents_are_given_listed_and_removed(tmp_path: Path) -> None:
    notes, sheet = tmp_path / "notes.md", tmp_path / "photo.png"
    notes.write_text("Ann likes tea")
    sheet.write_bytes(b"\x89PNG\x00\x00")
    async with open_page(tmp_path, refused="400") as (_, page):

        def steps() -> None:
            page.open("#documents")
            page.wait_text("#documents", "Nothing was given to read yet")
            page.one("#file").send_keys(str(notes))
            page.wait_texts(".documents .title", ["notes.md"])
            page.wait_texts(".documents .kind", ["read"])
            page.wait_text(".documents .foot", "1 part")
            page.one("#file").send_keys(str(sheet))
            page.wait_text("#documents > .error", "photo.png")
            page.script(
                "const data = new DataTransfer(); data.items.add(new File(['Bob likes milk'], 'dropped.txt'));"
                "document.querySelector('.drop').dispatchEvent("
                "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"
            )
            page.wait_texts(".documents .title", ["dropped.txt", "notes.md"])
            page.wait_texts(".documents .kind", ["read", "read"])
            page.browser.find(".documents .remove")[1].click()
            page.one(".question .danger").click()
            page.wait_texts(".documents .title", ["dropped.txt"])

        await drive(steps)


@pytest.mark.parametrize("width", [1280, 375])
async def test_no_text_becomes_markup_and_nothing_is_wider_than_the_screen(tmp_path: Path, width: int) -> None:
    long = "x" * 300
    await leave_a_past(tmp_path / "instance", bulletin=MARKUP, words=f"{MARKUP}{long}", deeds=2)
    notes = tmp_path / "<img src=x onerror=alert(1)>.md"
    notes.write_text("Ann likes tea")
    answers = (Call("memory_recall", query=f"{MARKUP}{long}"), f"{MARKUP}\n\n`{long}`")
    async with open_page(tmp_path, *answers, width=width, card=f"{MARKUP}{long}") as (owner, page):
        await owner.opened.say(MARKUP, MARKUP)
        await owner.opened.ended(1)

        def inside() -> None:
            if width < 600:
                page.one("#open-inside").click()
                page.browser.wait(lambda: page.script(HAS_SLID_IN), "the drawer")

        def steps() -> None:
            page.dark()
            page.open()
            assert page.script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 29)"
            page.ask(f"{MARKUP}{long}")
            page.browser.wait(lambda: len(page.browser.find("#log .message")) == 2, "the answer")
            page.one("#log .call summary").click()
            assert page.is_narrow()
            inside()
            page.wait_text(".bulletin .paper", "<b>bold</b>")
            assert page.is_narrow()
            page.one("#tab-deeds").click()
            page.one(".deed summary").click()
            assert page.is_narrow()
            page.one("#tab-documents").click()
            page.one("#file").send_keys(str(notes))
            page.browser.wait(lambda: len(page.browser.find(".documents .title")) == 1, "the document")
            assert page.is_narrow()
            assert page.browser.find("img, main script, aside script, #log b, .paper b, .documents b") == []
            assert "owned" not in page.browser.driver.title

        await drive(steps)


async def test_a_token_is_asked_for_and_a_foreign_agent_name_changes_nothing(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with open_owner(tmp_path / "instance", "hello", token="open") as owner:
            url = str(owner.client.base_url).rstrip("/")

            def steps() -> None:
                page = Page(browser, url)
                browser.driver.get(f"{url}/cortex?agent=nobody")
                page.one("#login[open] #token").send_keys("open", Keys.ENTER)
                browser.wait_online()
                page.ask("hi")
                page.wait_texts("#log .body", ["hi", "hello"])

            await drive(steps)
