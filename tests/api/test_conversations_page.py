"""The Conversations page and the prompt inspector in a real browser, with a whole agent behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.conversations.records import LoggedMessage
from tests.api.serving import UNREAD
from tests.api.test_cortex_page import Page
from tests.api.test_cortex_routes import Owner
from tests.api.test_page import Keys, drive, open_browser
from tests.api.test_schedules_page import in_browser
from tests.api.test_worker_routes import open_workers
from tests.fakes.opened import DIRECT
from tests.fakes.scripted_model import Call, Calls, Gate, Say, ScriptedModel

pytestmark = pytest.mark.filterwarnings(UNREAD)
ROOM = "slack:T1:C1"
EVIL = "<img src=x onerror=\"document.title='owned'\">" + "wide" * 90
AT_END = (
    "const s = document.getElementById('timeline-scroll'); return s.scrollHeight - s.scrollTop - s.clientHeight < 90"
)
TO_TOP = "document.getElementById('timeline-scroll').scrollTop = 0"


@asynccontextmanager
async def open_page(folder: Path, model: ScriptedModel, *, width: int = 1280) -> AsyncIterator[tuple[Owner, Page]]:
    with open_browser(folder, width, 800) as browser:
        async with open_workers(folder / "instance", model) as owner:
            yield owner, Page(browser, str(owner.client.base_url).rstrip("/"))
            assert await trio.to_thread.run_sync(browser.complaints) == []


def thinking(gate: Gate) -> ScriptedModel:
    """A room where one question is thought about and worked on, and a direct chat."""
    delegate = Calls(
        Call("branch", description="look up what was agreed"), Call("spawn_worker", task=f"Count {EVIL}"),
        Call("reply", content="**On it**"),
    )  # fmt: skip
    replies = iter([delegate])
    return ScriptedModel(
        lambda request: next(replies, None) or Call("reply", content="That is all."),
        branch=[Say("It was agreed on Tuesday.")],
        worker=[gate],
    )


@in_browser
async def test_a_conversation_shows_what_was_said_thought_and_done_and_what_the_model_saw(tmp_path: Path) -> None:
    gate = Gate(trio.Event(), Say("counted"))
    async with open_page(tmp_path, thinking(gate)) as (owner, page):
        opened = owner.opened
        await opened.say("Ann", f"What was agreed? {EVIL}", conversation=ROOM, is_direct=False)
        await opened.events_of(EventKind.BRANCH_COMPLETED, 1)
        await gate.arrived.wait()
        await opened.said(2, ROOM)

        def look() -> None:
            page.browser.open(f"{page.url}/conversations")
            page.one("#list a").click()
            page.wait_text("#timeline", "look up what was agreed")
            assert page.text("#timeline .said.user .words") == f"What was agreed? {EVIL}"
            assert page.text("#timeline .said.assistant strong") == "On it"
            page.one(".run:has(summary) details").click()
            page.wait_text(".run .outcome", "It was agreed on Tuesday.")
            page.wait_text("#list .tag", "1 working")
            assert page.is_narrow()
            page.one(".said.user .meta button").click()
            page.wait_text(".said.user .fate", "Answered")
            assert "look up what was agreed (done" in page.text(".said.user .fate")
            page.one(".run[data-state=running] .pill").click()
            page.wait_text(".run[data-state=cancelled]", "cancelled")

        def inspect() -> None:
            page.one(".said.user .fate dd:last-child a").click()
            page.wait_text("#one h2", "What the model saw")
            page.browser.wait(lambda: len(page.browser.find("#blocks .block")) > 3, "blocks")
            names = page.texts("#blocks summary b")
            assert "From people" in names
            assert "branch" in names  # a tool
            for block in page.browser.find("#blocks details:not([open]) summary"):
                block.click()
            page.browser.wait(lambda: len(page.browser.find("#blocks pre")) == len(names), "all of them open")
            assert any(f"What was agreed? {EVIL}" in text for text in page.texts("#blocks pre"))
            assert "On it" in page.text(".reply")
            assert [line for line in page.texts(".reply b") if line] == ["branch", "spawn_worker", "reply"]
            assert page.is_narrow()
            assert "owned" not in page.browser.driver.title

        await drive(look)
        await drive(inspect)


@in_browser
async def test_long_talk_comes_as_one_scrolls_up_and_private_words_stay_covered(tmp_path: Path) -> None:
    model = ScriptedModel(lambda request: Call("reply", content="noted"))
    async with open_page(tmp_path, model, width=360) as (owner, page):
        log = owner.opened.agent.conversations
        await owner.opened.say("Nora", "my secret", conversation=DIRECT)
        await owner.opened.said(1, DIRECT)
        await owner.opened.say("Ann", "the first", conversation=ROOM, is_direct=False)
        await owner.opened.said(1, ROOM)
        for number in range(130):
            await log.record_reply(None, ConversationId(ROOM), f"reply {number}")

        def read() -> None:
            page.dark()
            page.browser.open(f"{page.url}/conversations")
            page.browser.wait(lambda: len(page.browser.find("#list a")) == 2, "both")
            page.one("#find").send_keys("slack")
            page.browser.wait(lambda: len(page.browser.find("#list a")) == 1, "one")
            page.one("#list a").click()
            page.wait_text("#timeline li:last-child", "reply 129")
            page.browser.wait(lambda: page.script(AT_END), "the newest in sight")
            assert not page.text("#timeline").startswith("Ann")
            for _ in range(2):
                count = len(page.browser.find("#timeline > li"))
                page.script(TO_TOP)
                page.browser.wait(lambda: len(page.browser.find("#timeline > li")) > count, "earlier ones")  # noqa: B023
            page.wait_text("#earlier", "where it began")
            words = page.texts("#timeline .words")
            assert words == ["the first", "noted", *(f"reply {number}" for number in range(130))]
            assert page.is_narrow()

        def hear(row: LoggedMessage) -> None:
            page.wait_text("#timeline", row.content)

        def cover() -> None:
            page.one("#back").click()
            page.one("#find").send_keys(Keys.BACKSPACE * 5)
            page.browser.wait(lambda: len(page.browser.find("#list a")) == 2, "both again")
            next(one for one in page.browser.find("#list a") if "direct chat" in one.text).click()
            page.wait_texts("#timeline .words", ["Private: in a direct chat"] * 2)
            assert "secret" not in page.text("body")
            page.one("#uncover").click()
            page.wait_texts("#timeline .words", ["my secret", "noted"])

        await drive(read)
        await owner.opened.say("Bob", "one more", conversation=ROOM, is_direct=False)
        row = (await log.history(ConversationId(ROOM), limit=1))[-1]
        await drive(lambda: hear(row))
        await drive(cover)
