"""When browsers begin and end: with their worker, whatever happens, and nothing of them is left."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import trio

from spacebot.base.errors import ToolError
from spacebot.config.hands import ClosePolicy
from spacebot.tools.backends import probe_backend
from spacebot.tools.browser import readiness, tool
from spacebot.tools.browser.chromium import find_programs
from spacebot.tools.browser.tool import BrowserTool
from tests.stand_ins.web_site import Browsing, needs_chromium, open_browsing, ref_of

pytestmark = pytest.mark.slow


def left_of(folder: Path) -> list[object]:
    """Processes that have to do with a folder, and profiles in it."""
    found: list[object] = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        home = (process.info["environ"] or {}).get("HOME", "")
        if str(folder) in words + home and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words[:200])
    profiles = folder / "data" / "browsers"
    return found + (list(profiles.iterdir()) if profiles.exists() else [])


async def within(seconds: float, is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with trio.fail_after(seconds):
        while not is_so():
            await trio.sleep(0.02)


@needs_chromium()
async def test_a_server_that_never_answers_does_not_hold_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends, the tab is usable, and at the end of the worker nothing is left."""
    monkeypatch.setattr(readiness, "NAVIGATION_S", 1.0)
    monkeypatch.setattr(readiness, "NO_DOCUMENT_S", 0.3)
    async with open_browsing(tmp_path) as browse:
        await browse("navigate", url=f"{browse.site.url}/native")
        assert "did not answer within 1 seconds" in await browse.fails("navigate", url=f"{browse.site.url}/never")
        assert "title: Form" in await browse("navigate", url=f"{browse.site.url}/form")
        assert "no page" in await browse("navigate", url=f"{browse.site.url}/empty")
        assert "does not take connections on port 4999" in await browse.fails("navigate", url="http://127.0.0.1:4999/")
        assert left_of(tmp_path)
    assert not left_of(tmp_path)


@needs_chromium()
async def test_cancelling_ends_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a page is being opened that never comes, and while the browser is just starting."""
    short = Path(tempfile.mkdtemp(prefix="short-"))  # sockets have short paths
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    with trio.CancelScope() as scope:
        async with open_browsing(tmp_path) as browse, trio.open_nursery() as nursery:
            await browse("navigate", url=f"{browse.site.url}/form")
            nursery.start_soon(partial(browse.fails, "navigate", url=f"{browse.site.url}/never"))
            await within(10, lambda: "/never" in browse.site.asked)
            asked_at = trio.current_time()
            scope.cancel()
    assert trio.current_time() - asked_at < 30  # an endless wait would be longer; the figure is measured elsewhere
    assert not left_of(tmp_path)
    assert not list(short.glob("spacebot-*"))
    with trio.CancelScope() as scope:
        async with open_browsing(tmp_path) as browse, trio.open_nursery() as nursery:
            nursery.start_soon(browse, "launch")
            await within(20, lambda: bool(left_of(tmp_path)))
            scope.cancel()
    assert not left_of(tmp_path)
    short.rmdir()  # empty


def drivers() -> set[psutil.Process]:
    """The drivers that this process has started."""
    return {process for process in psutil.Process().children() if "chromedriver" in process.name()}


@needs_chromium()
async def test_a_page_that_hangs_costs_its_browser_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = drivers()  # of tests of pages, which share one
    async with open_browsing(tmp_path) as browse:
        monkeypatch.setattr(tool, "CALL_S", 60.0)
        page = await browse.go("/busy")
        monkeypatch.setattr(tool, "CALL_S", 2.0)
        assert "closed" in await browse.fails("act", act_kind="click", element_ref=ref_of(page, "Hang"))
        monkeypatch.setattr(tool, "CALL_S", 60.0)
        assert "title: Form" in await browse("navigate", url=f"{browse.site.url}/form")
        (process,) = drivers() - others
        process.kill()
        await within(10, lambda: browse.holder.browser is None or browse.holder.browser.is_gone)
        assert "title: Form" in await browse("navigate", url=f"{browse.site.url}/form")
        assert "closed" in await browse("close")
        assert not left_of(tmp_path)
        assert "no browser" in await browse("close")


@needs_chromium()
async def test_workers_have_browsers_of_their_own(tmp_path: Path) -> None:
    """Two start at once; neither sees the other's tabs and cookies."""
    async with open_browsing(tmp_path) as browse, browse.browsers.hold(browse.containment) as holder:
        second = _another(browse, holder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browse.go, "/form")
            nursery.start_soon(second.go, "/native")
        browse.config[0] = second.config[0] = browse.config[0].model_copy(update={"evaluate_enabled": True})
        await browse("evaluate", script="document.cookie = 'who=first'")
        assert '"who=first"' in await browse("evaluate", script="document.cookie")
        assert 'result: ""' in await second("evaluate", script="document.cookie")
        assert len(list((tmp_path / "data" / "browsers").iterdir())) == 2
    assert not left_of(tmp_path)


@pytest.mark.spec("C-28")
@needs_chromium()
async def test_a_kept_session_keeps_its_logins(tmp_path: Path) -> None:
    """One browser for all workers, whose profile outlasts it; a stale lock does not hinder the next."""
    kept = {"persist_session": True, "close_policy": ClosePolicy.CLOSE_TABS, "evaluate_enabled": True}
    async with open_browsing(tmp_path, **kept) as browse:  # type: ignore[arg-type]
        await browse("navigate", url=f"{browse.site.url}/form")
        await browse("evaluate", script="document.cookie = 'login=yes; max-age=10000'")
        async with browse.browsers.hold(browse.containment) as holder:
            second = _another(browse, holder)
            await second("navigate", url=f"{browse.site.url}/native")
            assert '"login=yes"' in await second("evaluate", script="document.cookie")
            assert "title: Form" in await browse("reload")
            assert holder.browser is browse.holder.browser
        assert "Native" not in await browse("tabs")
        browser = browse.holder.browser
        assert browser is not None
        browser.close()
        await browser.gone.wait()
        port = browse.site.port
    (profile,) = left_of(tmp_path)
    assert isinstance(profile, Path)
    (profile / "SingletonLock").symlink_to("nowhere-1")
    async with open_browsing(tmp_path, **kept) as browse:  # type: ignore[arg-type]
        await browse("navigate", url=f"{browse.site.url}/form")
        assert '"login=yes"' in await browse("evaluate", script="document.cookie"), port


@needs_chromium()
async def test_a_driver_that_finds_no_port_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "chromedriver"
    driver.write_text(
        f"#!/bin/sh\nif mkdir {tmp_path}/tried; then echo IPv4 port not available. Exiting...; exit 1; fi\n"
        'exec /usr/bin/chromedriver "$@"\n'
    )
    driver.chmod(0o755)
    monkeypatch.setenv("CHROMEDRIVER", str(driver))
    async with open_browsing(tmp_path) as browse:
        assert "title: Form" in await browse("navigate", url=f"{browse.site.url}/form")
        await browse("close")
        driver.write_text("#!/bin/sh\necho it is broken; exit 1\n")
        assert "did not start. it is broken" in await browse.fails("launch")
    assert not left_of(tmp_path)


@needs_chromium()
async def test_it_runs_in_the_sandbox(tmp_path: Path) -> None:
    """Files beyond the workspace do not exist for it; downloads and profile work as outside."""
    async with open_browsing(tmp_path) as browse:
        browse.containment.backend = await probe_backend()
        if not browse.containment.is_active:
            pytest.skip(f"no sandbox works here: {browse.containment.backend.note}")
        await browse("navigate", url=f"{browse.site.url}/file.csv")
        assert (browse.workspace / "downloads" / "numbers.csv").read_text() == "a,b\n1,2\n"
        assert 'button "Go"' in await browse.go("/native")
    assert not left_of(tmp_path)


@pytest.mark.spec("C-28")
async def test_what_a_killed_program_left_behind_goes_at_the_next_start(tmp_path: Path) -> None:
    profile = tmp_path / "data" / "browsers" / "left"
    profile.mkdir(parents=True)
    other = tmp_path / "elsewhere"
    left, foreign = (
        subprocess.Popen(["sleep", "1000"], env={"HOME": str(home), "PATH": "/usr/bin:/bin"})
        for home in (profile, other)
    )
    try:
        async with open_browsing(tmp_path):
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(left.wait) == -signal.SIGKILL
            assert not profile.exists()
            assert foreign.poll() is None
    finally:
        for process in (left, foreign):
            process.kill()
            process.wait()


def test_a_missing_program_is_said_how_to_install(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="apt install chromium chromium-driver"):
        find_programs(None, {"PATH": str(tmp_path)})
    with pytest.raises(ToolError, match="executable_path"):
        find_programs(tmp_path / "chrome", {"PATH": str(tmp_path)})
    for name in ("chrome", "chromedriver"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = find_programs(None, {"PATH": "/nowhere", "CHROME": str(tmp_path / "chrome")})
    assert found.chromium == str(tmp_path / "chrome")
    assert found.driver == str(tmp_path / "chromedriver")
    (tmp_path / "chromedriver").unlink()
    if shutil.which("/usr/lib/chromium/chromedriver") is None:
        with pytest.raises(ToolError, match="not its driver"):
            find_programs(tmp_path / "chrome", {"PATH": str(tmp_path)})


def _another(browse: Browsing, holder: object) -> Browsing:
    tool = BrowserTool(holder, secret_of=lambda name: None, may_evaluate=lambda: None)  # type: ignore[arg-type]
    return Browsing(
        browse.site, tool, holder, browse.node, browse.workspace, browse.containment, browse.browsers,  # type: ignore[arg-type]
        browse.config, browse.permissions,
    )  # fmt: skip
