"""The Connections page in a real browser: every account, its state, and the switches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from spacebot.base.errors import DeliveryError
from spacebot.base.events import EventKind
from spacebot.messaging.states import AdapterState, Connection
from tests.api.test_cortex_page import Page
from tests.api.test_page import CHROMIUM, DRIVER, Keys, drive, open_browser, serve
from tests.fakes.fake_program import FakeProgram

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]
EVIL = "<img src=x onerror=\"document.title='owned'\">" + "refused" * 30
FILE = """\
[messaging.telegram]
token = "12:abcdef"

[[messaging.telegram.instances]]
name = "ops"
token = "13:abcdef"

[messaging.twitch]
username = "bot"
oauth_token = "env:NOT_SET"

[[bindings]]
agent_id = "main"
channel = "telegram"
chat_id = -100
require_mention = true

[[bindings]]
agent_id = "nobody"
channel = "telegram"
"""


@asynccontextmanager
async def open_page(
    folder: Path, *, width: int = 1280, text: str = FILE, token: str | None = None
) -> AsyncIterator[tuple[FakeProgram, Page]]:
    (folder / "instance").mkdir()
    (folder / "instance" / "config.toml").write_text(text)
    with open_browser(folder, width, 800) as browser:
        async with serve(folder / "instance", token=token) as (program, url):
            yield program, Page(browser, url)
            complaints = await trio.to_thread.run_sync(browser.complaints)
            assert [text for text in complaints if token is None] == []


def of(key: str, css: str) -> str:
    return f'.account[data-key="{key}"] {css}'


async def test_every_account_shows_how_it_is_and_changes_while_one_looks(tmp_path: Path) -> None:
    state = AdapterState(
        key="telegram", platform="telegram", state=Connection.RETRYING, detail=EVIL, attempts=2,
        since=datetime.now(UTC), received=7, sent=5, failed=1, queued=2,
    )  # fmt: skip
    async with open_page(tmp_path) as (program, page):
        program.messaging.known["telegram"] = state

        def look() -> None:
            page.browser.open(f"{page.url}/")
            page.one("#pages a[href='connections']").click()
            page.browser.wait_online()
            page.wait_texts(".account h3", ["Telegram", "Telegram · ops", "Twitch"])
            assert page.texts(".account .state") == ["trying again", "connected", "cannot connect"]
            assert page.text(of("telegram", ".detail")) == EVIL
            assert "attempt 3" in page.text(of("telegram", ".who"))
            assert page.texts(of("telegram", "dl div")) == ["received7", "sent5", "failed1", "waiting2", "bindings2"]
            assert "as bot of telegram:ops" in page.text(of("telegram:ops", ".who"))
            assert "oauth_token is given, but environment variable NOT_SET is not set" in page.text(
                of("twitch", ".detail")
            )
            assert page.text("#others") == "Not set up: Discord, Slack, Webhook."
            bindings = ["mainTelegramchat -100; only when mentioned", "nobodyTelegrameverywhere"]
            assert page.texts("#bindings li") == bindings
            assert page.texts("#warnings li") == [
                "'bindings[#2]' leads nowhere: there is no agent 'nobody'; there are: main"
            ]
            assert page.browser.driver.title == "Connections · Spacebot"

        def recovered() -> None:
            page.wait_text(of("telegram", ".state"), "connected")
            page.gone(of("telegram", ".detail:not([hidden])"))

        await drive(look)
        program.messaging.known["telegram"] = replace(state, state=Connection.CONNECTED, detail="", attempts=0)
        program.events.emit(EventKind.ADAPTER_STATE, adapter="telegram")
        await drive(recovered)


async def test_an_account_is_tried_switched_off_and_on_again(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (program, page):
        program.messaging.answers["telegram:ops"] = DeliveryError("make a new token", is_permanent=True)
        file = tmp_path / "instance" / "config.toml"

        def steps() -> None:
            page.browser.open(f"{page.url}/connections")
            page.one(of("telegram", ".test")).click()
            page.wait_text(of("telegram", ".result.good"), "telegram is well")
            page.one(of("telegram:ops", ".test")).click()
            page.wait_text(of("telegram:ops", ".result.bad"), "make a new token")
            page.one(of("telegram", "summary")).click()
            page.one(of("telegram", "form input")).send_keys("-100", Keys.ENTER)
            page.wait_text(of("telegram", ".result.good"), "sent to the room telegram:-100")
            page.one(of("telegram:ops", ".toggle")).click()
            page.wait_text(of("telegram:ops", ".state"), "switched off")
            assert "enabled = false" in file.read_text()
            page.one(of("telegram:ops", ".test[hidden]"))
            page.one(of("telegram:ops", ".toggle")).click()
            page.wait_text(of("telegram:ops", ".state"), "connected")
            assert "enabled = true" in file.read_text()

        await drive(steps)
    assert program.messaging.sent == [("telegram:-100", "Hello, can you read me?")]


@pytest.mark.parametrize("width", [360, 1280])
async def test_it_fits_the_window_in_the_dark_too_and_says_what_there_is_to_set_up(tmp_path: Path, width: int) -> None:
    async with open_page(tmp_path, width=width) as (program, page):
        program.messaging.known["telegram"] = AdapterState(
            key="telegram", platform="telegram", state=Connection.RETRYING, detail=EVIL, who="x" * 200
        )

        def steps() -> None:
            page.dark()
            page.browser.open(f"{page.url}/connections")
            page.wait_texts(".account .state", ["trying again", "connected", "cannot connect"])
            assert page.is_narrow()
            for path in ("", "memory"):
                page.browser.open(f"{page.url}/{path}")
                assert page.is_narrow()

        await drive(steps)


async def test_without_a_platform_it_says_what_there_is_and_a_token_is_asked_for(tmp_path: Path) -> None:
    async with open_page(tmp_path, text="", token="open sesame") as (_, page):

        def steps() -> None:
            page.browser.driver.get(f"{page.url}/connections")
            page.one("#login[open] #token").send_keys("open sesame", Keys.ENTER)
            page.browser.wait_online()
            page.wait_text("#others", "Nothing is set up yet, only the web chat answers. There are: Discord, Slack")
            assert page.browser.find("#bindings-section[hidden]")

        await drive(steps)
