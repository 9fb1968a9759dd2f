"""The page in a real browser: what a person sees, does and never loses."""

import atexit
import base64
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx2
import pytest
import trio
from pydantic import SecretStr

from spacebot.agent.announcing import announce
from spacebot.api.server import serve_api
from spacebot.api.sessions import conversation_of
from spacebot.base.events import EventKind
from spacebot.base.tree import Node
from spacebot.config.model import ApiConfig
from spacebot.conversations.records import Accepted
from spacebot.messaging.codec import Extra, to_json
from spacebot.messaging.messages import InboundMessage, OutboundFile, OutboundKind
from tests.fakes.fake_program import FakeProgram, open_fake_program
from tests.fakes.opened import text_from

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's own sockets
]
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
CHAT = conversation_of("portal:chat:main")
PATIENCE_S = 20
SLOW_MS = 400  # of one rendering; an ordinary one of this length takes about 10
# The first message drawn fails in a way that nobody foresaw.
BREAK_ONE = """
const right = Date.prototype.toLocaleTimeString;
Date.prototype.toLocaleTimeString = function (...a) {
  Date.prototype.toLocaleTimeString = right;
  throw new Error("broken");
};
"""
T = TypeVar("T")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Browser:
    """One window; all methods block and belong into a thread."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, css: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """Wait for something; an element that is just drawn anew is looked for again."""
        return WebDriverWait(
            self.driver, PATIENCE_S, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        ).until(lambda _: condition(), what)

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait_online()

    def wait_online(self) -> None:
        self.wait(lambda: self.find("#connection[data-state=online]"), "connected")

    def say(self, text: str) -> None:
        box = self.driver.find_element(By.ID, "text")
        box.send_keys(text)
        box.send_keys(Keys.ENTER)

    def texts(self) -> list[str]:
        return list(
            self.driver.execute_script(
                "return [...document.querySelectorAll('#log .message .body')].map(e => e.textContent)"
            )
        )

    def wait_texts(self, expected: list[str]) -> None:
        self.wait(lambda: self.texts() == expected, f"{expected}")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@cache
def _chromium() -> webdriver.Chrome:
    """One program for all tests of this process: its start takes longer than most of them."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    profile = TemporaryDirectory(prefix="pages-")
    for argument in (*ARGUMENTS, f"--user-data-dir={profile.name}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, log_output=os.devnull))
    atexit.register(profile.cleanup)
    atexit.register(driver.quit)  # runs first
    return driver


@contextmanager
def open_browser(folder: Path, width: int = 1280, height: int = 800) -> Iterator[Browser]:
    """A window that knows nothing of those before it."""
    driver = _chromium()
    home = driver.window_handles[0]
    driver.switch_to.window(home)
    driver.switch_to.new_window("tab")
    try:
        driver.get_log("browser")  # what the last one complained about
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        yield Browser(driver)
    finally:
        origin = driver.execute_script("return location.origin")
        if origin != "null":
            driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        driver.close()
        driver.switch_to.window(home)


@asynccontextmanager
async def serve(
    folder: Path, port: int = 0, token: str | None = None, agents: Sequence[str] = ("main",)
) -> AsyncIterator[tuple[FakeProgram, str]]:
    stop = trio.Event()
    async with open_fake_program(folder, agents) as program, trio.open_nursery() as nursery:
        program.main.on_message = partial(echo, program)
        (url,) = await nursery.start(
            partial(
                serve_api,
                program,
                ApiConfig(port=port, auth_token=SecretStr(token) if token else None),
                events=program.events,
                tree=program.tree,
                run_id="r",
                stop=stop,
            )
        )
        yield program, url
        stop.set()


async def echo(program: FakeProgram, message: InboundMessage, accepted: Accepted) -> None:
    async with program.main.turn(message.conversation_id, accepted) as turn:
        await turn.say(f"You said **{message.text}**")


async def drive(steps: Callable[[], None]) -> None:
    """Run blocking browser steps while the server serves."""
    await trio.to_thread.run_sync(steps)


async def test_a_typed_message_is_answered_and_a_reload_keeps_both(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (_, url):

            def steps() -> None:
                browser.open(url)
                assert browser.find("#welcome:not([hidden])")
                assert browser.find("#demo:not([hidden])")
                browser.say("hello <b>there</b>")
                browser.wait_texts(["hello <b>there</b>", "You said hello <b>there</b>"])
                assert not browser.find("#log b")
                assert browser.find("#log strong")
                browser.driver.refresh()
                browser.wait_online()
                browser.wait_texts(["hello <b>there</b>", "You said hello <b>there</b>"])
                assert browser.complaints() == []

            await drive(steps)


async def test_a_picture_that_was_sent_is_seen_and_other_files_can_be_saved_in_their_session_alone(
    tmp_path: Path,
) -> None:
    picture, page = tmp_path / "picture", tmp_path / "page"
    picture.write_bytes(base64.b64decode(PIXEL))
    page.write_text("<script>alert(1)</script>")
    sent = [
        OutboundFile(filename="chart.png", media_type="image/png", path=picture, size_bytes=picture.stat().st_size),
        OutboundFile(filename="<b>report.html", media_type="text/html", path=page, size_bytes=25),
    ]
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):
            program.main.on_message = None
            await program.main.accept(text_from("Ann", "send me all", conversation=conversation_of("files")))
            await drive(lambda: browser.open(f"{url}?session=files"))
            for file in sent:
                row = await program.main.conversations.record_reply(
                    None, conversation_of("files"), "", kind=OutboundKind.FILE, extra=to_json(Extra(file=file))
                )
                announce(program.events, program.main.id, row)

            def steps() -> None:
                browser.wait(lambda: browser.find(".file img[alt='chart.png'][src^='blob:']"), "the picture")
                texts = browser.wait(lambda: [one.text for one in browser.find(".file-save")][1:], "a file to save")
                assert texts == ["Save <b>report.html (25 B)"]
                browser.driver.refresh()
                browser.wait(lambda: len(browser.find(".file-save")) == 2, "both after a reload")
                assert browser.complaints() == []

            await drive(steps)
            async with httpx2.AsyncClient(base_url=url) as client:
                path = f"/api/webchat/files/{row.id}"
                found = await client.get(path, params={"session_id": "files"})
                assert found.text == page.read_text()
                assert found.headers["content-disposition"].startswith("attachment")
                assert "sandbox" in found.headers["content-security-policy"]
                assert (await client.get(path, params={"session_id": "other"})).status_code == 404


async def test_an_answer_grows_while_it_is_written(tmp_path: Path) -> None:
    may_finish = trio.Event()
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):

            async def slowly(message: InboundMessage, accepted: Accepted) -> None:
                async with program.main.turn(message.conversation_id, accepted) as turn:
                    turn.delta("Once")
                    turn.delta("Once upon a time")
                    await may_finish.wait()
                    await turn.say("Once upon a time there was an end.")

            program.main.on_message = slowly

            def begin() -> None:
                browser.open(url)
                browser.say("tell me")
                browser.wait(lambda: [e.text for e in browser.find(".streaming")] == ["Once upon a time"], "streaming")
                assert browser.texts() == ["tell me"]
                assert "running" in browser.driver.find_element(By.ID, "work-label").text

            def end() -> None:
                browser.wait_texts(["tell me", "Once upon a time there was an end."])
                browser.wait(lambda: not browser.find(".streaming"), "the draft is gone")
                browser.wait(lambda: browser.find("#work-label")[0].text == "Idle", "idle")

            await drive(begin)
            may_finish.set()
            await drive(end)


async def test_a_worker_is_shown_and_can_be_cancelled(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):

            async def count(node: Node) -> str:
                program.main.emit(EventKind.WORKER_STATUS, CHAT, worker_id=node.id, status="at 1 of 9")
                await trio.sleep_forever()
                raise AssertionError

            async def delegate(message: InboundMessage, accepted: Accepted) -> None:
                assert program.main.nursery is not None
                program.main.nursery.start_soon(program.main.run_worker, CHAT, "count the stars", count)

            program.main.on_message = delegate

            def steps() -> None:
                browser.open(url)
                browser.say("count")
                card = browser.wait(lambda: browser.find("#running .card"), "a card")[0]
                browser.wait(lambda: "at 1 of 9" in card.text, "its status")
                assert "count the stars" in card.text
                browser.driver.refresh()  # the card comes from the state, not from events seen
                browser.wait(lambda: browser.find("#running .card .cancel"), "the card again")[0].click()
                browser.wait(lambda: not browser.find("#running .card"), "cancelled")
                browser.wait(lambda: browser.find("#finished .card.cancelled"), "kept among the finished")

            await drive(steps)


async def test_a_restart_of_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (_, url):

            def before() -> None:
                browser.open(url)
                browser.say("one")
                browser.wait_texts(["one", "You said one"])

            await drive(before)

        def without_a_server() -> None:
            browser.wait(lambda: browser.find("#connection[data-state=offline]"), "offline is shown")
            browser.say("two")
            browser.wait(lambda: browser.find(".pending"), "kept")

        await drive(without_a_server)
        async with serve(tmp_path, port=int(url.rpartition(":")[2])) as (program, _):

            def after() -> None:
                browser.wait_online()
                browser.wait_texts(["one", "You said one", "two", "You said two"])
                browser.wait(lambda: not browser.find(".pending"), "accepted")
                browser.say("three")
                browser.wait_texts(["one", "You said one", "two", "You said two", "three", "You said three"])

            await drive(after)
            rows = await program.main.conversations.history(CHAT)
    assert [row.content for row in rows if row.role == "user"] == ["one", "two", "three"]


async def test_chats_are_separate_and_a_fate_is_told(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):

            def steps() -> None:
                browser.open(url)
                browser.say("first")
                browser.wait_texts(["first", "You said first"])
                browser.driver.find_element(By.ID, "new-chat").click()
                browser.wait_texts([])
                browser.wait_online()
                browser.say("second")
                browser.wait_texts(["second", "You said second"])
                names = [e.text for e in browser.find("#chat-list .name")]
                assert names == ["second", "first"]
                browser.find("#chat-list .name")[1].click()
                browser.wait_texts(["first", "You said first"])
                browser.driver.execute_script("document.querySelector('.message.user [aria-expanded]').click()")
                browser.wait(lambda: [e for e in browser.find(".fate") if "Answered" in e.text], "the fate")
                assert browser.complaints() == []

            await drive(steps)
            channels = await program.main.conversations.channels()
    assert len(channels) == 2


async def test_nothing_scrolls_sideways_on_a_phone(tmp_path: Path) -> None:
    table = f"| {' | '.join('abcdefgh')} |\n|{'---|' * 8}"
    text = f"```\n{'long ' * 60}\n```\n\n{table}\n\n{'x' * 300} https://example.com/{'y' * 200}"
    with open_browser(tmp_path, 360, 740) as browser:
        async with serve(tmp_path) as (program, url):

            async def widely(message: InboundMessage, accepted: Accepted) -> None:
                async with program.main.turn(message.conversation_id, accepted) as turn:
                    await turn.say(text)

            program.main.on_message = widely

            def width() -> bool:
                script = (
                    "const s = document.getElementById('scroll');"
                    "return document.documentElement.scrollWidth <= innerWidth && s.scrollWidth <= s.clientWidth"
                )
                return bool(browser.driver.execute_script(script))

            def steps() -> None:
                browser.open(url)
                assert width()
                browser.say("w" * 200)
                browser.wait(lambda: browser.find("#log .message.assistant"), "the answer")
                assert width()
                browser.driver.find_element(By.ID, "open-work").click()
                browser.wait(lambda: browser.find("#work.open"), "the drawer")
                assert width()
                browser.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
                browser.wait(lambda: not browser.find("#work.open"), "the drawer is closed")

            await drive(steps)


HOSTILE = {
    "quotes in quotes": ">" * 12_000,
    "quotes with spaces": "> " * 12_000,
    "lists in lists": "- " * 12_000 + "x",
    "numbers in numbers": "1. " * 9_000,
    "brackets": "[" * 29_000,
    "half links": "[a](" * 7_000,
    "half titles": '[a](b "' * 4_000,
    "links after a gap": "[" * 14_000 + "a](b" + " " * 14_000,
    "stars": "**a " * 7_000,
    "backticks": "".join("`" * n + " " for n in range(1, 240)),
    "strokes": "~~" * 14_000,
    "addresses": "http://." * 3_600,
    "blanks before a closing mark": "# a" + " " * 28_000 + "b",
    "blanks in a table": "a | b\n" + " " * 28_000 + "x-",
    "a strange line end": "- " + " " * 14_000 + "a" * 14_000 + "\u2028x",
}
MEASURE = """
const [texts, done] = arguments;
const {name} = performance.getEntriesByType('resource').find((entry) => entry.name.includes('markdown.js'));
import(name).then(({renderMarkdown}) => done(Object.fromEntries(Object.entries(texts).map(([key, text]) => {
  const began = performance.now();
  const element = renderMarkdown(text);
  return [key, {ms: performance.now() - began, length: element.textContent.length, shape: element.className}];
}))));
"""
KNOWN = {
    "**a** *b* _c_ ~~d~~ `e`": "<p><strong>a</strong> <em>b</em> <em>c</em> <del>d</del> <code>e</code></p>",
    "**a *b* c** ``x`y`` snake_case_name 2 * 3 * 4": (
        "<p><strong>a <em>b</em> c</strong> <code>x`y</code> snake_case_name 2 * 3 * 4</p>"
    ),
    "`a **b ~~c [d](e": "<p>`a **b ~~c [d](e</p>",
    r"\*a\* !!": "<p>*a* !!</p>",
    '[a](http://x.y/ "t") ![p](http://x.y/z) [no](javascript:x)': (
        '<p><a href="http://x.y/" target="_blank" rel="noopener noreferrer">a</a> '
        '<a href="http://x.y/z" target="_blank" rel="noopener noreferrer">p</a> no</p>'
    ),
    "(see https://x.y/a_b).": (
        '<p>(see <a href="https://x.y/a_b" target="_blank" rel="noopener noreferrer">https://x.y/a_b</a>).</p>'
    ),
    "# C#\n## Title ##": "<h3>C#</h3><h4>Title</h4>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
}
RENDER = """
const [texts, done] = arguments;
const {name} = performance.getEntriesByType('resource').find((entry) => entry.name.includes('markdown.js'));
import(name).then(({renderMarkdown}) => done(texts.map((text) => renderMarkdown(text).innerHTML)));
"""


async def test_no_message_can_make_a_chat_impossible_to_open(tmp_path: Path) -> None:
    """Deep nesting, marks that never close, and a message that cannot be drawn at all."""
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url):
            program.main.on_message = None
            for text in ("before", *HOSTILE.values(), "after"):
                accepted = await program.main.accept(text_from("user", "?", conversation=CHAT))
                await program.main.conversations.record_reply(None, CHAT, text, reply_to=accepted.message_id)
            count = 2 * len(HOSTILE) + 4

            def steps() -> None:
                browser.open(url)
                browser.wait(lambda: len(browser.texts()) == count, "all messages")
                assert browser.texts()[-1] == "after"
                measured = browser.driver.execute_async_script(MEASURE, HOSTILE)
                assert {key: one for key, one in measured.items() if one["ms"] > SLOW_MS} == {}
                assert {key for key, one in measured.items() if one["shape"] != "prose"} == set()
                assert {key for key, one in measured.items() if not one["length"]} == set()
                rendered = browser.driver.execute_async_script(RENDER, list(KNOWN))
                assert dict(zip(KNOWN, rendered, strict=True)) == KNOWN
                assert browser.complaints() == []
                browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BREAK_ONE})
                browser.driver.refresh()
                browser.wait_online()
                browser.wait(lambda: len(browser.texts()) == count, "all messages again")
                assert browser.texts()[0] == "This message cannot be shown."
                assert browser.texts()[-1] == "after"

            await drive(steps)


async def test_the_embed_script_shows_the_page_on_an_allowed_site(tmp_path: Path) -> None:
    """The embedding page comes from another origin (another port) than the chat."""
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path) as (program, url), trio.open_nursery() as nursery:
            html = f'<!doctype html><title>site</title><body><p>A site</p><script src="{url}/embed.js"></script>'

            async def site(stream: trio.SocketStream) -> None:
                await stream.receive_some(65536)
                head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
                await stream.send_all((head + html).encode())
                await stream.aclose()

            listeners = await nursery.start(partial(trio.serve_tcp, site, 0, host="127.0.0.1"))
            origin = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            stop = trio.Event()
            friendly = partial(
                serve_api,
                program,
                ApiConfig(port=0, allowed_origins=(origin,)),
                events=program.events,
                tree=program.tree,
                run_id="r",
                stop=stop,
            )
            (chat_url,) = await nursery.start(friendly)
            html = html.replace(url, chat_url)

            def steps() -> None:
                browser.driver.get(origin)
                root = browser.driver.find_element(By.TAG_NAME, "spacebot-chat").shadow_root
                root.find_element(By.CSS_SELECTOR, "button").click()
                browser.driver.switch_to.frame(root.find_element(By.CSS_SELECTOR, "iframe"))
                browser.wait_online()
                browser.say("hello from outside")
                browser.wait_texts(["hello from outside", "You said hello from outside"])
                shown = browser.find("#pages, #open-pages, .columns > nav, #agent")
                assert not any(one.is_displayed() for one in shown)  # a chat in a frame shows nothing of the rest

            await drive(steps)
            assert program.main.accepted[0].conversation_id.startswith("webchat:embed:main:")
            stop.set()
            nursery.cancel_scope.cancel()


async def test_a_token_is_asked_for_once_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with serve(tmp_path, token="right") as (_, url):

            def enter(token: str) -> None:
                browser.wait(lambda: browser.find("#login[open]"), "the dialog")
                box = browser.driver.find_element(By.ID, "token")
                box.send_keys(token)
                box.send_keys(Keys.ENTER)

            def steps() -> None:
                browser.driver.get(url)
                enter("wrong")
                browser.wait(lambda: browser.find("#login-error")[0].text, "the refusal")
                enter("right")
                browser.wait_online()
                browser.say("hello")
                browser.wait_texts(["hello", "You said hello"])
                browser.driver.refresh()
                browser.wait_online()
                assert not browser.find("#login[open]")

            await drive(steps)
