"""The Memory page in a real browser: what its owner finds, corrects, forgets, walks along, and what stays covered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base.ids import MemoryId
from spacebot.memory.types import EVERYTHING, MemoryType, NewAssociation, NewMemory, Provenance, RelationType, SortBy
from tests.api.test_page import CHROMIUM, DRIVER, Browser, drive, open_browser, serve
from tests.fakes.fake_program import FakeProgram

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]
ROOM = Provenance(channel_id="test:room", user_id="ann")
MARKUP = "<b>bold</b><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SECRET = "Tom looks for another job"
ARABIC = "دانا تفضل الردود القصيرة 🙂"
IS_NARROW = "return document.documentElement.scrollWidth <= innerWidth"


async def learn(
    program: FakeProgram, text: str, *edges: tuple[MemoryId, RelationType], private: bool = False, **fields: Any
) -> MemoryId:
    origin = Provenance(channel_id="test:tom", user_id="tom", is_direct=True) if private else ROOM
    links = tuple(NewAssociation(target_id=target, relation_type=kind, weight=0.9) for target, kind in edges)
    saved = await program.main.memory.save(NewMemory(content=text, provenance=origin, associations=links, **fields))
    return saved.memory.id


class Page:
    """The Memory page in a window."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url

    def open(self, fragment: str = "") -> None:
        self.browser.open(f"{self.url}/memory{fragment}")

    def rows(self) -> list[str]:
        return list(
            self.browser.driver.execute_script(
                "return [...document.querySelectorAll('#list .row-text')].map(e => e.textContent)"
            )
        )

    def wait_rows(self, expected: list[str]) -> None:
        self.browser.wait(lambda: self.rows() == expected, f"{expected}")

    def one(self, css: str) -> Any:
        return self.browser.wait(lambda: self.browser.find(css), css)[0]

    def text(self, css: str) -> str:
        found = self.browser.find(css)
        return str(found[0].get_attribute("textContent")) if found else ""

    def wait_text(self, css: str, words: str) -> None:
        self.browser.wait(lambda: words in self.text(css), f"{words!r} in {css}")

    def row(self, words: str) -> Any:
        """The row whose text holds these words."""
        return self.browser.wait(lambda: [row for row in self.browser.find("#list .row") if words in row.text], words)[
            0
        ]

    def view(self, name: str) -> None:
        self.one(f".tools [data-view={name}]").click()

    def script(self, source: str, *arguments: Any) -> Any:
        return self.browser.driver.execute_script(source, *arguments)


async def walk(folder: Path, world: Callable[..., Any], steps: Callable[[Page, Any], None], width: int = 1280) -> None:
    """Prepare a world, then let a person walk through it; `steps` gets what `world` returned."""
    with open_browser(folder, width, 800) as browser:
        async with serve(folder) as (program, url):
            known = await world(program)
            await drive(lambda: steps(Page(browser, url), known))
            assert await trio.to_thread.run_sync(browser.complaints) == []


async def test_an_empty_store_teaches_and_the_first_memory_is_added_by_hand(tmp_path: Path) -> None:
    async def nothing(program: FakeProgram) -> FakeProgram:
        return program

    def steps(page: Page, _: FakeProgram) -> None:
        page.open()
        page.wait_text("#empty", "Nothing remembered yet")
        page.view("growth")
        page.wait_text("#empty", "Nothing remembered yet")
        page.view("list")
        page.one("#add").click()
        box = page.one("#adding textarea")
        page.one("#adding .primary").click()  # an empty one is not sent
        box.send_keys("The kettle is in the kitchen.")
        page.one("#adding .primary").click()
        page.wait_rows(["The kettle is in the kitchen."])
        page.wait_text("#panel .words", "The kettle")
        page.one("#panel .close").click()
        page.browser.wait(lambda: not page.browser.find("#panel:not([hidden])"), "closed")
        page.one("#pages a[href='./'][data-page]").click()
        page.one("#pages a[href='memory']").click()
        page.wait_rows(["The kettle is in the kitchen."])

    await walk(tmp_path, nothing, steps)


async def test_memories_are_searched_filtered_and_sorted(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> None:
        await learn(program, "Tom drinks oolong tea", memory_type=MemoryType.PREFERENCE, importance=0.2)
        await learn(program, "The garden is open", importance=0.9)
        await learn(program, ARABIC, memory_type=MemoryType.PREFERENCE, importance=0.5)
        await program.main.memory.flush()  # what searches is loaded before anybody waits for it

    def steps(page: Page, _: None) -> None:
        page.open()
        page.wait_rows([ARABIC, "The garden is open", "Tom drinks oolong tea"])
        assert page.text("#note") == "3 memories"
        assert page.script("return getComputedStyle(document.querySelector('.row-text')).direction") == "rtl"
        page.one("#sort option[value=importance]").click()
        page.wait_rows(["The garden is open", ARABIC, "Tom drinks oolong tea"])
        page.one(".chip.kind-preference").click()
        page.wait_rows([ARABIC, "Tom drinks oolong tea"])
        assert page.text(".chip.kind-preference .count") == "2"
        page.one(".chip.kind-goal").click()
        page.wait_text("#empty", "No goals yet")
        page.one("#types .chip").click()
        box = page.one("#q")
        box.send_keys("oolong tea")
        page.browser.wait(lambda: page.rows()[:1] == ["Tom drinks oolong tea"], "the best match first")
        page.browser.wait(lambda: page.browser.find(".rows.found"), "results")
        page.browser.wait(lambda: page.text(".row-why") != "", "why it was found")
        assert page.one("#sort").get_attribute("disabled")
        box.clear()
        box.send_keys(" ")
        page.wait_rows(["The garden is open", ARABIC, "Tom drinks oolong tea"])

    await walk(tmp_path, world, steps)


async def test_a_memory_is_edited_forgotten_and_brought_back(tmp_path: Path) -> None:
    programs: list[FakeProgram] = []

    async def world(program: FakeProgram) -> None:
        programs.append(program)
        await learn(program, "Releases go out on Tuesdays.", memory_type=MemoryType.DECISION)
        await learn(program, "The garden is open")

    def steps(page: Page, _: None) -> None:
        page.open()
        page.row("Releases").click()
        page.wait_text("#panel .words", "Tuesdays")
        page.one("#panel .edit").click()
        box = page.one("#panel textarea")
        box.clear()
        box.send_keys("Releases go out on Mondays.")
        page.one("#panel select option[value=preference]").click()
        page.script(
            "const r = document.querySelector('#panel [name=importance]'); r.value = 0.3;"
            "r.dispatchEvent(new Event('input'))"
        )
        page.one("#panel .check input").click()
        page.one("#panel .primary").click()
        page.wait_text("#panel .words", "Mondays")
        page.wait_text("#panel .importance", "30 % now")
        page.wait_rows(["The garden is open", "Releases go out on Mondays."])  # by the event stream
        assert page.text(".chip.kind-preference .count") == "1"

        page.one("#panel .forget").click()
        page.one("#forget-reason").send_keys("a mistake")
        page.one("#panel .danger").click()
        page.wait_rows(["The garden is open"])
        page.wait_text("#panel .gone", "a mistake")
        page.one(".toast .undo").click()
        page.wait_rows(["The garden is open", "Releases go out on Mondays."])

        page.one("#panel .forget").click()
        page.one("#panel .danger").click()
        page.wait_rows(["The garden is open"])
        page.browser.wait(lambda: "Forgotten" in page.browser.find("#types .chip")[-1].text, "a chip for it")
        page.browser.find("#types .chip")[-1].click()
        page.wait_rows(["Releases go out on Mondays."])
        page.one("#panel .restore").click()
        page.wait_rows(["The garden is open", "Releases go out on Mondays."])

    await walk(tmp_path, world, steps)
    assert programs


async def test_what_others_save_and_change_appears_by_itself(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):
            page = Page(browser, url)
            first = await learn(program, "The garden is open")

            def look() -> None:
                page.open()
                page.wait_rows(["The garden is open"])
                page.row("garden").click()
                page.wait_text("#panel .words", "open")

            await drive(look)
            await learn(program, "The kettle is new")
            await program.main.memory.edit(first, content="The garden is closed")
            await drive(lambda: page.wait_rows(["The kettle is new", "The garden is closed"]))
            await drive(lambda: page.wait_text("#panel .words", "closed"))
            await program.main.memory.forget(first)
            await drive(lambda: page.wait_rows(["The kettle is new"]))
            await drive(lambda: page.wait_text("#panel", "nothing recalls it any more"))
            assert await trio.to_thread.run_sync(browser.complaints) == []


async def test_no_memory_can_become_markup(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> MemoryId:
        other = await learn(program, f"Another one: {MARKUP}", memory_type=MemoryType.EVENT)
        return await learn(program, MARKUP, (other, RelationType.RELATED_TO))

    def steps(page: Page, known: MemoryId) -> None:
        page.open(f"#id={known}")
        page.wait_text("#panel .words", MARKUP)
        page.wait_text("#panel .edge-text", "onerror")
        page.browser.wait(lambda: MARKUP in page.rows(), "the row")
        page.one("#q").send_keys("bold")
        page.browser.wait(lambda: page.browser.find(".rows.found"), "results")
        page.view("graph")
        page.browser.wait(lambda: page.browser.find("#graph-list li"), "nodes")
        page.one("#panel .edit").click()
        assert page.one("#panel textarea").get_attribute("value") == MARKUP
        page.view("growth")
        page.one("svg.growth")
        assert not page.browser.find("main img, main script, #panel img, #panel script, main b b, .row b")
        assert page.browser.driver.title == "Memory · Spacebot"

    await walk(tmp_path, world, steps)


async def test_private_words_are_nowhere_until_they_are_asked_for(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> MemoryId:
        known = await learn(program, "Tom is in the office", importance=1.0)
        await learn(program, SECRET, (known, RelationType.RELATED_TO), private=True, memory_type=MemoryType.GOAL)
        return known

    def is_covered(page: Page) -> bool:
        return SECRET not in page.script("return document.documentElement.outerHTML")

    def steps(page: Page, known: MemoryId) -> None:
        page.open(f"#id={known}")
        page.wait_rows(["Private: learned in a direct chat", "Tom is in the office"])
        page.wait_text("#panel .edge-text", "Private")
        page.view("graph")
        page.browser.wait(lambda: len(page.browser.find("#graph-list li")) == 2, "nodes")
        assert is_covered(page)
        page.one("#panel .edge").click()
        page.wait_text("#panel .covered", "Private")
        assert is_covered(page)
        page.one("#panel .uncover").click()
        page.wait_text("#panel .words", SECRET)
        page.view("list")
        page.wait_rows(["Private: learned in a direct chat", "Tom is in the office"])
        page.one("#uncover").click()
        page.wait_rows([SECRET, "Tom is in the office"])
        page.one("#uncover").click()
        page.browser.wait(lambda: is_covered(page), "covered again")
        page.browser.driver.refresh()
        page.wait_rows(["Private: learned in a direct chat", "Tom is in the office"])

    await walk(tmp_path, world, steps)


async def test_the_graph_is_walked_by_mouse_and_by_keyboard_and_comes_to_rest(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> dict[str, MemoryId]:
        far = await learn(program, "The certificate ran out", memory_type=MemoryType.EVENT)
        near = await learn(program, "The gateway was down", (far, RelationType.CAUSED_BY))
        await learn(program, "Customers could not pay", (near, RelationType.RESULT_OF))
        return {"far": far, "near": near}

    def steps(page: Page, known: dict[str, MemoryId]) -> None:
        page.open("#view=graph")
        page.wait_text("#note", "3 memories, 2 connections")
        page.browser.wait(lambda: page.script(STATE)["isResting"], "the layout rests")
        drawn = page.script(STATE)["frames"]
        where = page.script(WHERE, known["near"])
        mouse(page, "mousePressed", where)
        mouse(page, "mouseReleased", where)
        page.wait_text("#panel .words", "The gateway was down")
        assert page.script(STATE)["frames"] > drawn
        links = [button.text for button in page.browser.find("#panel .edge")]
        assert any("Caused by" in text for text in links)
        assert any("Led to" in text for text in links)
        next(button for button in page.browser.find("#panel .edge") if "certificate" in button.text).click()
        page.wait_text("#panel .words", "The certificate ran out")
        assert page.script(STATE)["current"] == known["far"]
        # Of one type only; what it is connected with comes by a double click.
        page.one(".chip.kind-event").click()
        page.wait_text("#note", "1 memory, 0 connections")
        page.browser.wait(lambda: page.script(STATE)["isResting"], "the layout rests")
        where = page.script(WHERE, known["far"])
        for count in (1, 2):
            mouse(page, "mousePressed", where, count)
            mouse(page, "mouseReleased", where, count)
        page.wait_text("#note", "1 more around it")
        assert page.script(STATE)["nodes"] == 2
        page.script("document.querySelector('#graph-list').open = true")
        page.one(f"#graph-list [data-id='{known['near']}']").click()
        page.wait_text("#panel .words", "The gateway was down")

    await walk(tmp_path, world, steps)


STATE = """
const {graph} = document.querySelector('#graph canvas');
const {warmth, isQueued, frames, current, nodes} = graph;
return {isResting: warmth === 0 && !isQueued, frames, current, nodes: nodes.size};
"""
WHERE = "return document.querySelector('#graph canvas').graph.whereIs(arguments[0])"


def mouse(page: Page, kind: str, where: dict[str, float], count: int = 1) -> None:
    page.browser.driver.execute_cdp_cmd(
        "Input.dispatchMouseEvent", {"type": kind, **where, "button": "left", "clickCount": count}
    )


def label(page: Page) -> str:
    """What the chart of growth says to those who do not see it."""
    page.one("svg.growth")
    return str(page.script("return document.querySelector('svg.growth').getAttribute('aria-label')"))


async def test_growth_is_drawn_and_upkeep_shows_before_it_acts(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> None:
        await learn(program, "the kettle is in the kitchen of the office")
        await learn(program, "in the kitchen of the office is the kettle")  # the same words in another order
        gone = await learn(program, "was wrong")
        await program.main.memory.forget(gone)
        await program.main.memory.flush()  # what upkeep looks at is loaded before anybody waits for it

    def steps(page: Page, _: None) -> None:
        page.open("#view=growth")
        assert label(page).startswith("2 memories today; in 30 days 3 saved, 1 forgotten")
        assert len(page.browser.find("svg.growth .day-bar")) == 30
        assert len(page.browser.find("svg.growth .flow.saved")) == 1
        assert len(page.browser.find("svg.growth .flow.forgotten")) == 1
        assert len(page.browser.find("svg.histogram .bin")) == 10
        assert page.text(".type-bars .count") == "2"
        page.one(".dry-run").click()
        page.wait_text(".report", "1 would be merged")
        page.wait_text(".report", "Nothing was changed.")
        assert label(page).startswith("2 memories today")
        page.one(".run-upkeep").click()
        page.wait_text(".report", "1 were merged")
        page.browser.wait(lambda: label(page).startswith("1 memory today"), "the chart follows")
        page.wait_text(".deeds", "Merged")
        page.one("#growth .views button:nth-child(2)").click()
        page.browser.wait(lambda: len(page.browser.find("svg.growth .day-bar")) == 90, "ninety days")

    await walk(tmp_path, world, steps)


async def test_thousands_scroll_and_only_what_is_in_sight_exists(tmp_path: Path) -> None:
    count = 700

    async def world(program: FakeProgram) -> list[str]:
        async with trio.open_nursery() as nursery:
            for n in range(count):
                nursery.start_soon(learn, program, f"fact number {n}")
        page = await program.main.memory_views.listing(EVERYTHING, sort_by=SortBy.RECENT, limit=count)
        return [seen.memory.content for seen in page.memories]

    def steps(page: Page, order: list[str]) -> None:
        page.open()
        page.browser.wait(lambda: page.rows()[:5] == order[:5], "the newest")
        assert len(page.rows()) < 60
        page.script("const l = document.querySelector('#list'); l.scrollTop = l.scrollHeight")
        page.browser.wait(lambda: page.rows()[-3:] == order[-3:], "the oldest")
        page.script("const l = document.querySelector('#list'); l.scrollTop = l.scrollHeight / 2")
        page.browser.wait(lambda: order[count // 2] in page.rows(), "the middle")
        rows = page.rows()
        first = order.index(rows[0])
        page.browser.wait(lambda: (r := page.rows()) == order[order.index(r[0]) :][: len(r)], "in order")
        assert 0 < first < count // 2

    await walk(tmp_path, world, steps)


async def test_nothing_scrolls_sideways_on_a_phone_in_the_dark(tmp_path: Path) -> None:
    async def world(program: FakeProgram) -> MemoryId:
        other = await learn(program, "y" * 400, memory_type=MemoryType.GOAL)
        await learn(program, ARABIC)
        return await learn(program, "https://example.com/" + "x" * 300, (other, RelationType.UPDATES))

    def steps(page: Page, known: MemoryId) -> None:
        page.browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        page.open()
        page.browser.wait(lambda: len(page.rows()) == 3, "rows")
        assert page.script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 29)"
        assert page.script(IS_NARROW)
        page.row("example.com").click()
        page.wait_text("#panel .words", "example.com")
        box = page.script("return document.querySelector('#panel').getBoundingClientRect().toJSON()")
        assert (box["left"], box["width"]) == (0, 360)
        for button in ("#panel .edit", "#panel .memory-form .pill:last-child", "#panel .forget"):
            page.one(button).click()
            assert page.script(IS_NARROW), button
        page.one("#panel .close").click()
        for view in ("graph", "growth"):
            page.view(view)
            page.one("svg.growth" if view == "growth" else "#graph-list li")
            assert page.script(IS_NARROW), view
            assert page.script("const g = document.querySelector('#growth'); return g.scrollWidth <= g.clientWidth")

    await walk(tmp_path, world, steps, width=360)


async def test_a_token_is_asked_for_once(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path, token="right") as (program, url):
            page = Page(browser, url)
            await learn(program, "The kettle is new")

            def steps() -> None:
                browser.driver.get(f"{url}/memory")
                page.browser.wait(lambda: browser.find("#login[open]"), "the dialog")
                box = page.one("#token")
                box.send_keys("wrong\n")
                page.wait_text("#login-error", "not accepted")
                box.send_keys("right\n")
                page.wait_rows(["The kettle is new"])
                browser.driver.refresh()
                page.wait_rows(["The kettle is new"])
                assert not browser.find("#login[open]")

            await drive(steps)


async def test_a_failure_is_told_and_the_page_goes_on(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):
            page = Page(browser, url)
            await learn(program, "The kettle is new")
            known = await learn(program, "The garden is open")

            def steps() -> None:
                page.open(f"#id={known}")
                page.wait_text("#panel .words", "open")
                page.one("#panel .edit").click()
                box = page.one("#panel textarea")
                box.clear()
                box.send_keys("the KETTLE is new")
                page.one("#panel .primary").click()
                page.wait_text(".toast.error", "has these words already")
                assert page.one("#panel textarea").get_attribute("value") == "the KETTLE is new"

            await drive(steps)

        def without_a_server() -> None:
            page.browser.wait(lambda: page.browser.find("#connection[data-state=offline]"), "offline is shown")
            page.one(".chip.kind-goal").click()
            page.wait_text("#empty", "This cannot be shown now")

        await drive(without_a_server)
        async with serve(tmp_path, port=int(url.rpartition(":")[2])):

            def again() -> None:
                page.browser.wait_online()
                page.wait_text("#empty", "No goals yet")
                page.one("#types .kind-goal[aria-pressed=true]")  # the types are drawn anew beside it
                page.one("#types .chip").click()
                page.wait_rows(["The garden is open", "The kettle is new"])

            await drive(again)
