"""The Settings page in a real browser: it changes the owner's file and says what is wrong, and no key comes back."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import trio

from spacebot.config.store import ConfigStore
from spacebot.llm.opening import open_models
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import SecretStore
from tests.api.serving import Served, open_server
from tests.api.test_cortex_page import Page
from tests.api.test_page import Keys, drive, open_browser
from tests.api.test_schedules_page import in_browser
from tests.stand_ins.openai import serve_openai
from tests.stand_ins.serving import Answer, Refusal

KEY = "sk-correct-horse-battery-staple"
EVIL = "<img src=x onerror=\"document.title='owned'\">" + "wide" * 60
FILE = """\
# mine
[defaults]
max_turns = 7  # enough

[defaults.routing]
channel = "demo/demo"

[[agents]]
id = "main"
max_concurrent_workers = 3

[[agents]]
id = "research"

[[bindings]]
agent_id = "research"
channel = "webchat"
"""


@asynccontextmanager
async def open_page(
    folder: Path, *, width: int = 1280, text: str = FILE, refused: str = "none"
) -> AsyncIterator[tuple[Served, Page]]:
    instance = folder / "instance"
    instance.mkdir()
    (instance / "config.toml").write_text(text)
    secrets = LiveSecrets.open(instance)
    with open_browser(folder, width, 800) as browser:
        async with open_server(instance, agents=("main", "research"), secrets=secrets, patience_s=60) as served:
            program = served.program
            program.store = ConfigStore.open(instance / "config.toml", resolve_secret=secrets.resolve)
            async with open_models(lambda: program.config.llm, login=instance / "login.json") as models:
                program.models = models
                yield served, Page(browser, served.url)
                complaints = await trio.to_thread.run_sync(browser.complaints)
                assert [line for line in complaints if f"a status of {refused}" not in line] == []


def tables(served: Served) -> Any:
    return tomllib.loads(served.program.editor.path.read_text())


def of(key: str, css: str = "") -> str:
    return f'.setting[data-key="{key}"] {css}'


def replace(page: Page, css: str, text: str) -> None:
    page.one(css).send_keys(Keys.CONTROL, "a")
    page.one(css).send_keys(text)


def save(page: Page) -> None:
    page.browser.find("body")[0].send_keys(Keys.CONTROL, "s")
    page.one("#unsaved[hidden]")


@in_browser
async def test_a_provider_is_tried_before_it_is_saved_and_taken_away(tmp_path: Path) -> None:
    answers = [Refusal(401), Answer(text="At your service."), Answer(text="Still here.")]
    async with open_page(tmp_path) as (served, page), serve_openai(answers) as host:

        def steps() -> None:
            page.browser.open(f"{page.url}/")
            page.one("#demo a[href='settings#providers']").click()
            page.browser.wait_online()
            page.one("#no-provider:not([hidden])")
            page.one(".provider[data-id=anthropic] .login code")
            page.one("#own-provider").click()
            page.one("dialog [name=id]").send_keys("mine")
            page.one("dialog [name=url]").send_keys(host.url)
            page.one("dialog [name=key]").send_keys(KEY)
            page.one("dialog [name=model]").send_keys("big")
            page.one("dialog .primary").click()
            page.wait_text("dialog > form > .result.bad", "mine")
            assert "llm" not in tables(served)
            page.one("dialog [name=anyway]")
            page.one("dialog .try").click()
            page.wait_text("#tried.good", "mine/big answers: “At your service.”")
            page.one("dialog .primary").click()
            page.wait_texts(".provider[data-id=mine] .state", ["ready"])
            assert page.one("#no-provider[hidden]") is not None
            assert KEY not in page.script("return document.documentElement.outerHTML")
            assert page.browser.driver.title == "Settings · Spacebot"

        def remove() -> None:
            page.one(".provider[data-id=mine] .remove").click()
            page.one("dialog .yes").click()
            page.gone(".provider[data-id=mine]")

        await drive(steps)
        assert tables(served)["llm"]["provider"]["mine"]["api_key"] == "secret:PROVIDER_MINE_API_KEY"
        assert tables(served)["defaults"]["routing"]["worker"] == "mine/big"
        await drive(remove)
        assert "llm" not in tables(served)
        assert SecretStore(tmp_path / "instance").list() == []


@in_browser
async def test_only_what_was_changed_is_saved_and_null_takes_a_key_out(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (served, page):

        def identity_and_figures() -> None:
            page.browser.open(f"{page.url}/settings#agent")
            page.wait_texts(of("max_concurrent_workers", ".source"), ["agent main"])
            page.one("#text-user").send_keys(f"**Nora** {EVIL}")
            page.one(".identity[data-key=user] .look-at").click()
            page.wait_text(".identity[data-key=user] .preview strong", "Nora")
            page.one(".panel[data-section=tuning] summary").click()
            page.one(of("max_concurrent_workers", ".reset")).click()
            replace(page, of("branch_max_turns", "input"), "101")
            page.wait_text("#unsaved-count", "3 changes not saved")
            page.browser.find("body")[0].send_keys(Keys.CONTROL, "s")
            page.wait_text("#unsaved-result", "Mend the marked field")  # the form's own range, from the schema
            assert served.program.main.texts["user"] == ""
            replace(page, of("branch_max_turns", "input"), "60")
            save(page)
            page.wait_texts(of("branch_max_turns", ".source"), ["agent main"])
            page.wait_texts(of("max_concurrent_workers", ".source"), ["built-in"])

        def routing() -> None:
            page.one("#tabs [data-tab=routing]").click()
            page.one(of("routing.worker", "input")).send_keys("demo/w")
            page.one(of("routing.worker_thinking_effort", "option[value=high]")).click()
            page.script("document.querySelectorAll('.routing details').forEach((one) => (one.open = true))")
            page.one(of("routing.prompt_routing.enabled", "input")).click()
            page.one(of("routing.fallbacks", ".pill:not([aria-label])")).click()
            name, value = page.browser.find(of("routing.fallbacks", "li input"))
            name.send_keys("demo/w")
            value.send_keys("demo/x, demo/y")
            replace(page, of("budget.daily_usd", "input"), "2.5")
            save(page)
            page.one("#try-text").send_keys("prove it step by step: why is this algorithm correct?")
            page.one("#try .primary").click()
            page.wait_text("#try-found .answer b", "demo/demo")
            assert "step by step" in page.text("#try-found .dimensions")
            assert page.browser.find("#try-found .dimensions .above")

        await drive(identity_and_figures)
        assert served.program.main.texts["user"].startswith("**Nora**")
        (main, _) = tables(served)["agents"]
        assert main == {"id": "main", "branch_max_turns": 60}
        await drive(routing)
        (main, other) = tables(served)["agents"]
        assert main["routing"] == {
            "worker": "demo/w", "worker_thinking_effort": "high", "prompt_routing": {"enabled": True},
            "fallbacks": {"demo/w": ["demo/x", "demo/y"]},
        }  # fmt: skip
        assert (main["budget"], other) == ({"daily_usd": 2.5}, {"id": "research"})
        assert "max_turns = 7  # enough" in served.program.editor.path.read_text()


@in_browser
async def test_agents_are_paused_and_deleted_by_name_and_the_server_says_what_needs_a_restart(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (served, page):
        research = next(agent for agent in served.program.agents.values() if agent.id == "research")

        def steps() -> None:
            page.browser.open(f"{page.url}/settings#agents")
            card = ".agent-card[data-id=research]"
            page.one(f"{card} .pause").click()
            page.wait_texts(f"{card} .state", ["paused"])
            assert page.browser.find(".agent-card[data-id=main] .remove[hidden]")
            page.one(f"{card} .remove").click()
            page.one("dialog [name=give_to] option[value=main]").click()
            page.one("dialog [name=typed]").send_keys("resarch", Keys.ENTER)
            page.wait_text("dialog .result.bad", "Type research")
            replace(page, "dialog [name=typed]", "research")
            page.one("dialog .primary").click()
            page.wait_text("#toasts", "agent research is deleted")
            page.one("#tabs [data-tab=server]").click()
            replace(page, of("api.port", "input"), "6001")
            save(page)
            page.wait_text("#restart:not([hidden])", "api.port counts from the next start on")
            page.one("#search-key input").send_keys(KEY, Keys.ENTER)
            page.one("#clear-search:not([hidden])")
            page.wait_text("[data-table=metrics]", "9090")
            assert KEY not in page.script("return document.documentElement.outerHTML")

        def clear() -> None:
            page.script("arguments[0].click()", page.one("#clear-search"))  # a note may lie over it
            page.one("#clear-search[hidden]")

        await drive(steps)
        assert research.is_paused
        found = tables(served)
        assert [agent["id"] for agent in found["agents"]] == ["main"]
        assert found["bindings"] == [{"agent_id": "main", "channel": "webchat"}]
        assert found["defaults"]["brave_search_key"] == "secret:brave_search_key"
        await drive(clear)
        assert "brave_search_key" not in tables(served)["defaults"]


@in_browser
async def test_a_broken_file_is_not_taken_and_its_line_is_shown(tmp_path: Path) -> None:
    async with open_page(tmp_path, refused="422") as (served, page):
        editor = served.program.editor

        def broken() -> None:
            page.browser.open(f"{page.url}/settings#file")
            page.wait_text(".colours .header", "[defaults]")
            area = page.one("#config-text")
            area.send_keys(Keys.CONTROL, Keys.END)
            area.send_keys("\n[api]\nport = 'x'\n")
            page.wait_text("#unsaved-count", "1 change not saved")
            area.send_keys(Keys.CONTROL, "s")
            page.wait_text("#problems .error", "api.port")
            page.wait_texts(".gutter .wrong", ["20"])
            assert page.script("return getSelection().toString() || arguments[0].value.slice(arguments[0]."
                               "selectionStart, arguments[0].selectionEnd)", area) == "port = 'x'"  # fmt: skip

        def mended() -> None:
            page.one("#config-text").send_keys("logs = 1")  # over the marked line
            page.one("#config-text").send_keys(Keys.CONTROL, "s")
            page.wait_text("#problems", "api.logs")
            page.one("#unsaved[hidden]")
            page.one("#problems .at").click()

        await drive(broken)
        assert editor.path.read_text() == FILE
        await drive(mended)
        assert editor.path.read_text() == f"{FILE}\n[api]\nlogs = 1\n"


@in_browser
async def test_a_backup_is_saved_by_the_browser_and_put_ready_again(tmp_path: Path) -> None:
    async with open_page(tmp_path, refused="400") as (served, page):
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "no.zip").write_bytes(b"no zip")

        def steps() -> None:
            downloads = {"behavior": "allow", "downloadPath": str(saved)}
            page.browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
            page.browser.open(f"{page.url}/settings#backup")
            page.one("#findings li")
            page.one("#backup .primary").click()
            page.browser.wait(lambda: list(saved.glob("spacebot-backup-*.zip")), "the file")
            (backup,) = saved.glob("spacebot-backup-*.zip")
            assert "# mine" in ZipFile(backup).read("config.toml").decode()
            for name, words in (("no.zip", ".bad"), (backup.name, ".good")):
                page.one("#restore input").send_keys(str(saved / name))
                page.one("#restore .danger").click()
                page.one("dialog.asking .yes").click()
                page.one(f"#restore .result{words}")
            page.wait_text("#restore .result", "takes its place")

        await drive(steps)
        assert served.program.editor.path.read_text() == FILE  # nothing is exchanged while it runs


@in_browser
async def test_every_tab_fits_a_small_window_in_the_dark_and_the_doctor_says_the_mend(tmp_path: Path) -> None:
    text = f'{FILE}\n[llm]\nopenai_key = "env:NOT_SET_{"X" * 80}"\n'
    async with open_page(tmp_path, width=360, text=text) as (_, page):

        def steps() -> None:
            page.dark()
            for name, sign in (
                ("providers", ".provider[data-id=openai] .detail"),
                ("routing", of("routing.channel")),
                ("agent", of("max_turns")),
                ("agents", ".agent-card"),
                ("server", "[data-table=metrics]"),
                ("file", ".colours .header"),
                ("backup", "#findings .mend"),
            ):
                page.browser.open(f"{page.url}/settings#{name}")
                page.one(sign)
                page.script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
                assert page.is_narrow(), name
                assert page.script("const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth")

        await drive(steps)
