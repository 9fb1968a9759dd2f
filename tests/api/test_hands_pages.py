"""The pages MCP, Secrets, Skills and the forms of Connections in a real browser: values go in and never come out."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.agent.mcp import McpFigures, McpState, McpView
from spacebot.agent.skill_desk import SkillDesk
from spacebot.base.clock import Clock
from spacebot.base.fetch import open_fetcher
from spacebot.config.store import ConfigStore
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.storage.secrets import Category, KeyKind, SecretStore
from spacebot.tools.skill_sources import GITHUB_VARIABLE, REGISTRY_VARIABLE
from spacebot.tools.skills import SkillShelf
from tests.api.serving import Served, open_server
from tests.api.test_cortex_page import Page
from tests.api.test_page import Keys, drive, open_browser
from tests.api.test_schedules_page import in_browser
from tests.stand_ins.skill_hub import archive, open_hub, skill_text

VALUE = "correct-horse-battery-staple"
EVIL = "<img src=x onerror=\"document.title='owned'\">" + "wide" * 60
IS_WHOLE = "const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth"


@asynccontextmanager
async def open_page(
    folder: Path, *, width: int = 1280, text: str = "", refused: str = "none"
) -> AsyncIterator[tuple[Served, Page]]:
    instance = folder / "instance"
    instance.mkdir(exist_ok=True)
    (instance / "config.toml").write_text(text)
    secrets = LiveSecrets.open(instance)
    with open_browser(folder, width, 800) as browser:
        async with open_server(instance, secrets=secrets, patience_s=60) as served:
            served.program.store = ConfigStore.open(instance / "config.toml", resolve_secret=secrets.resolve)
            served.program.messaging._store = served.program.store
            yield served, Page(browser, served.url)
            complaints = await trio.to_thread.run_sync(browser.complaints)
            assert [line for line in complaints if f"a status of {refused}" not in line] == []


def tables(served: Served) -> Any:
    return tomllib.loads(served.program.editor.path.read_text())


def open_by_link(page: Page, name: str) -> None:
    page.browser.open(f"{page.url}/")
    page.one(f"#pages a[href='{name}']").click()
    page.browser.wait_online()
    assert page.browser.driver.title.endswith(" · Spacebot")


def fits(page: Page) -> bool:
    page.script("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    return page.is_narrow() and bool(page.script(IS_WHOLE))


SERVERS = """\
[[mcp_servers]]
name = "notes"
transport = "http"
url = "http://127.0.0.1:1/mcp"
headers = { Authorization = "Bearer VALUE", Accept = "${KIND}" }
""".replace("VALUE", VALUE)


def view(name: str, state: McpState, message: str = "", *tools: tuple[str, str, str]) -> McpView:
    return McpView(
        name=name, transport="http", enabled=True, state=state, message=message, since=Clock().text(), tools=tools,
        figures=McpFigures(attempts=2, calls=3, failed_calls=1),
    )  # fmt: skip


@in_browser
async def test_a_server_is_added_changed_and_removed_and_its_values_stay_hidden(tmp_path: Path) -> None:
    async with open_page(tmp_path, text=SERVERS) as (served, page):
        servers = served.program.main.mcp
        servers.known = [
            view("notes", McpState.CONNECTED, "", ("notes_find", "find", EVIL)),
            view("mine", McpState.FAILED, "its program ended"),
        ]

        def steps() -> None:
            open_by_link(page, "mcp")
            page.wait_texts(".server .state", ["connected", "cannot connect"])
            assert page.text(".server[data-id=notes] summary") == "1 tool"
            assert EVIL in page.text(".server[data-id=notes] .tools li")
            assert page.browser.find(".server[data-id=mine] .edit[hidden]")  # of the agent alone
            page.one(".server[data-id=notes] .again").click()
            page.wait_text(".server[data-id=notes] .result", "is being connected")
            page.one(".server[data-id=notes] .edit").click()
            (secret, kept) = page.browser.find("dialog [data-kept] input:nth-child(2)")
            assert (secret.get_attribute("value"), kept.get_attribute("value")) == ("", "${KIND}")
            page.one("dialog [name=url]").send_keys("?v=2")
            kept.send_keys("+json")
            page.one("dialog .primary").click()
            page.gone("dialog.asking")
            page.one("#new-server").click()
            page.one("dialog [name=name]").send_keys("files")
            page.one("dialog [name=command]").send_keys("files-mcp")
            page.one("dialog [name=args]").send_keys("--root\n/srv")
            page.one("dialog .pairs-box .pill:not([aria-label])").click()
            name, value = page.browser.find("dialog [data-kept=''] input")
            name.send_keys("TOKEN")
            value.send_keys(VALUE)
            page.one("dialog .primary").click()
            page.one(".server[data-id=files]")
            assert VALUE not in page.script("return document.documentElement.outerHTML")

        def remove() -> None:
            page.one(".server[data-id=notes] .remove").click()
            page.one("dialog .yes").click()
            page.wait_texts(".server .about", ["stdio · files-mcp --root /srv"])

        await drive(steps)
        notes, files = tables(served)["mcp_servers"]
        assert (notes["url"], notes["headers"]) == (
            "http://127.0.0.1:1/mcp?v=2", {"Authorization": f"Bearer {VALUE}", "Accept": "${KIND}+json"},
        )  # fmt: skip
        assert (files["args"], files["env"], "headers" in files) == (["--root", "/srv"], {"TOKEN": VALUE}, False)
        assert servers.reconnected == ["notes"]
        servers.known = []
        await drive(remove)
        assert [one["name"] for one in tables(served)["mcp_servers"]] == ["files"]


@in_browser
async def test_secrets_are_stored_changed_and_deleted(tmp_path: Path) -> None:
    async with open_page(tmp_path) as (_, page):
        store = SecretStore(tmp_path / "instance")

        def steps() -> None:
            open_by_link(page, "secrets")
            page.wait_texts("#state", ["empty"])
            page.one("#add [name=name]").send_keys("github_token")
            page.one("#add [name=value]").send_keys(VALUE)
            page.one("#add option[value=tool]").click()
            page.one("#add button").click()
            page.wait_texts(".secret code", ["GITHUB_TOKEN"])
            assert page.text(".secret .tag") == "commands of workers"
            page.one(".secret .change").click()
            page.one("dialog [name=value]").send_keys(f"{VALUE}-2")
            page.one("dialog option[value=system]").click()
            page.one("dialog .primary").click()
            page.wait_texts(".secret .tag", ["the program only"])
            assert VALUE not in page.script("return document.documentElement.outerHTML")

        def delete() -> None:
            page.one(".secret .remove").click()
            page.one("dialog .yes").click()
            page.wait_text("#none:not([hidden])", "Nothing yet")

        await drive(steps)
        kept = store.read()["GITHUB_TOKEN"]
        assert (kept.value, kept.category) == (f"{VALUE}-2", Category.SYSTEM)
        await drive(delete)
        assert store.list() == []


@in_browser
async def test_a_locked_store_says_how_to_open_it(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    SecretStore(tmp_path / "instance").set("HIDDEN", VALUE)
    SecretStore(tmp_path / "instance").rotate(kind=KeyKind.PASSPHRASE, passphrase="open sesame")
    async with open_page(tmp_path, refused="423") as (_, page):

        def steps() -> None:
            page.browser.open(f"{page.url}/secrets")
            page.wait_text("#lock:not([hidden]) code", "spacebot secret unlock")
            assert "locked" in page.text("#state")
            page.one("#add [name=name]").send_keys("NEW")
            page.one("#add [name=value]").send_keys(VALUE, Keys.ENTER)
            page.wait_text("#result.bad", "spacebot secret unlock")

        await drive(steps)


@in_browser
async def test_skills_are_installed_from_the_registry_page_by_page_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_page(tmp_path) as (served, page), open_hub() as hub, open_fetcher() as fetcher:
        assert hub.server is not None
        monkeypatch.setenv(GITHUB_VARIABLE, hub.server.url)
        monkeypatch.setenv(REGISTRY_VARIABLE, hub.server.url)
        hub.repositories["me/mine"] = archive({"pdf/SKILL.md": skill_text(description=EVIL)})
        hub.listed = [{"source": "me/mine", "skillId": "pdf", "name": "pdf", "installs": 1500}]
        hub.listed += [{"source": "you/yours", "skillId": f"s{n}", "name": EVIL[:90], "installs": n} for n in range(3)]
        shelf = SkillShelf(tmp_path / "instance" / "skills", tmp_path / "own")
        served.program.main.skill_desk = SkillDesk(shelf, fetcher, served.program.events, Clock())

        def steps() -> None:
            open_by_link(page, "skills")
            page.wait_text("#none:not([hidden])", "None yet")
            page.wait_texts(".listed b", ["pdf", *[EVIL[:90]] * 3])
            page.browser.wait(lambda: page.text("#registry-words") == "4", "both pages")
            page.one("#search").send_keys("pdf")
            page.wait_texts(".listed b", ["pdf"])
            page.one(".listed .install").click()
            page.one(".skill[data-id=pdf]")
            assert page.text(".skill .about") == EVIL
            page.wait_texts(".listed .install", ["Installed"])
            page.one(".skill summary").click()
            assert "me/mine" in page.text(".skill .facts")

        def remove() -> None:
            page.one(".skill .remove").click()
            page.one("dialog .yes").click()
            page.gone(".skill")
            page.wait_texts(".listed .install", ["Install"])

        await drive(steps)
        assert (tmp_path / "own" / "pdf" / "SKILL.md").exists()
        assert [path for path in hub.asked if path.startswith("/api/skills")][:2] == [
            "/api/skills/all-time/0", "/api/skills/all-time/1",
        ]  # fmt: skip
        await drive(remove)
        assert not (tmp_path / "own" / "pdf").exists()


@in_browser
async def test_an_account_is_connected_given_a_new_token_bound_elsewhere_and_disconnected(tmp_path: Path) -> None:
    async with open_page(tmp_path, text='[[agents]]\nid = "main"\n') as (served, page):
        store = SecretStore(tmp_path / "instance")

        def connect() -> None:
            open_by_link(page, "connections")
            page.one("#connect [data-platform=telegram]").click()
            page.one("dialog [name=telegram_token]").send_keys(f"1:{VALUE}")
            page.one("dialog .primary").click()
            page.wait_texts(".account .state", ["connected"])
            page.wait_texts("#bindings li", ["mainTelegrameverywhere"])

        def change() -> None:
            page.one(".account .change").click()
            page.one("dialog [name=telegram_token]").send_keys(f"2:{VALUE}", Keys.ENTER)
            page.gone("dialog.asking")
            page.one("#add-binding").click()
            page.one("dialog [name=chat_id]").send_keys("-100")
            page.one("dialog [name=dm_allowed_users]").send_keys("5\n6")
            page.one("dialog [name=require_mention]").click()
            page.one("dialog .primary").click()
            page.wait_texts(
                "#bindings li", ["mainTelegrameverywhere", "mainTelegramchat -100; people 5, 6; only when mentioned"]
            )
            page.one("#bindings li:first-child [aria-label^=Remove]").click()
            page.one("dialog .yes").click()
            page.wait_texts("#bindings li", ["mainTelegramchat -100; people 5, 6; only when mentioned"])
            page.one("#bindings [aria-label^=Change]").click()
            page.one("dialog [name=chat_id]").send_keys("5")
            page.one("dialog [name=require_mention]").click()
            page.one("dialog .primary").click()
            page.wait_texts("#bindings li", ["mainTelegramchat -1005; people 5, 6"])
            assert VALUE not in page.script("return document.documentElement.outerHTML")

        def disconnect() -> None:
            page.one(".account .remove").click()
            page.one("dialog .yes").click()
            page.gone(".account")
            page.wait_text("#others", "Nothing is set up yet")

        await drive(connect)
        assert tables(served)["messaging"]["telegram"] == {"token": "secret:TELEGRAM_TOKEN", "enabled": True}
        assert store.read()["TELEGRAM_TOKEN"].value == f"1:{VALUE}"
        await drive(change)
        assert store.read()["TELEGRAM_TOKEN"].value == f"2:{VALUE}"
        (binding,) = tables(served)["bindings"]
        assert binding == {
            "agent_id": "main", "channel": "telegram", "chat_id": "-1005", "dm_allowed_users": ["5", "6"],
        }  # fmt: skip
        await drive(disconnect)
        assert "telegram" not in tables(served).get("messaging", {})


@in_browser
async def test_they_fit_a_small_window_in_the_dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_page(tmp_path, width=360, text=SERVERS) as (served, page):
        served.program.main.mcp.known = [view("notes", McpState.FAILED, EVIL, ("find", "find", EVIL))]
        SecretStore(tmp_path / "instance").set("A" * 64, VALUE)
        shelf = SkillShelf(tmp_path / "instance" / "skills", tmp_path / "own")
        (tmp_path / "own" / "pdf").mkdir(parents=True)
        (tmp_path / "own" / "pdf" / "SKILL.md").write_text(skill_text(description=EVIL))
        await shelf.reload()
        async with open_fetcher() as fetcher, open_hub() as hub:
            assert hub.server is not None
            monkeypatch.setenv(REGISTRY_VARIABLE, hub.server.url)
            hub.listed = [{"source": "me/mine", "skillId": "pdf", "name": EVIL, "installs": 1}]
            served.program.main.skill_desk = SkillDesk(shelf, fetcher, served.program.events, Clock())

            def steps() -> None:
                page.dark()
                for name, sign in (
                    ("mcp", ".server .detail"),
                    ("secrets", ".secret"),
                    ("skills", ".listed"),
                    ("connections", "#connect .pill"),
                ):
                    page.browser.open(f"{page.url}/{name}")
                    page.one(sign)
                    assert fits(page), name

            await drive(steps)
