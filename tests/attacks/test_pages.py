"""Web pages that attack whoever looks at them: the machine's own services, its files, the browser, the model."""

# ruff: noqa: E501  (tables of attacks, read by the line)

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from spacebot.config.hands import PermissionsConfig
from tests.attacks.stage import SYSTEM_SECRET, TOOL_SECRET, noted, with_secrets
from tests.stand_ins.serving import Connection, Request, serve
from tests.stand_ins.web_site import Browsing, needs_chromium, open_browsing

pytestmark = [pytest.mark.slow, needs_chromium()]
PRIZE = "words of an internal service"
FILE = "words of a local file"

# TRAP is a service of this machine, FILE a file of it; `end()` tells that it was tried. All of these run in one page.
TRIES = {
    "fetch": "fetch('TRAP').then(r => r.text()).then(show).catch(show)",
    "fetch without a look": "fetch('TRAP', {mode: 'no-cors'}).then(() => show('sent')).catch(show)",
    "request": "let x = new XMLHttpRequest(); x.onloadend = () => show(x.responseText); x.open('GET', 'TRAP'); x.send()",
    "post": "fetch('TRAP', {method: 'POST', mode: 'no-cors', body: 'x'}).then(show).catch(show)",
    "beacon": "navigator.sendBeacon('TRAP', 'x'); setTimeout(end, 200)",
    "picture": "let i = new Image(); i.onload = i.onerror = end; i.src = 'TRAP'",
    "script": "let s = document.createElement('script'); s.onload = s.onerror = end; s.src = 'TRAP'; document.body.append(s)",
    "frame": "let f = document.createElement('iframe'); f.onload = end; f.src = 'TRAP'; document.body.append(f)",
    "frame of a file": "let f = document.createElement('iframe'); f.onload = end; f.src = 'FILE'; document.body.append(f); setTimeout(end, 300)",
    "object": "let o = document.createElement('object'); o.onload = o.onerror = end; o.data = 'TRAP'; document.body.append(o)",
    "style": "document.body.style.background = 'url(TRAP)'; setTimeout(end, 200)",
    "stream": "let e = new EventSource('TRAP'); e.onopen = e.onerror = () => { e.close(); end() }",
    "socket": "let w = new WebSocket('TRAP'.replace('http', 'ws')); w.onopen = w.onerror = end",
    "worker": "let w = new Worker(URL.createObjectURL(new Blob([`try { importScripts('TRAP') } catch (e) {} postMessage(1)`]))); w.onmessage = end",
    "window": "window.open('TRAP'); setTimeout(end, 200)",
    "ping": "let a = document.createElement('a'); a.href = '#x'; a.ping = 'TRAP'; document.body.append(a); a.click(); setTimeout(end, 200)",
    "prefetch": "let l = document.createElement('link'); l.rel = 'prefetch'; l.href = 'TRAP'; l.onload = l.onerror = end; document.head.append(l)",
    "file by fetch": "fetch('FILE').then(r => r.text()).then(show).catch(show)",
    "file by window": "window.open('FILE'); setTimeout(end, 200)",
    "metadata": "fetch('http://169.254.169.254/latest/').then(show).catch(show)",
    "other numbers": "Promise.allSettled(['http://0.0.0.0:PORT/', 'http://[::1]:PORT/', 'http://2130706433:PORT/', 'http://localhost:PORT/', 'http://a.localhost:PORT/', 'http://0x7f.1:PORT/'].map(u => fetch(u, {mode: 'no-cors'}))).then(end)",
    "voice connection": "try { let p = new RTCPeerConnection({iceServers: [{urls: 'turn:127.0.0.1:PORT?transport=tcp', username: 'a', credential: 'b'}]}); p.createDataChannel('x'); p.createOffer().then(o => p.setLocalDescription(o)) } catch (e) {} setTimeout(end, 400)",
}  # fmt: skip
LEAVING = {  # each in a page of its own, which they leave
    "form": "let f = document.createElement('form'); f.method = 'post'; f.action = 'TRAP'; document.body.append(f); f.submit()",
    "location": "location = 'TRAP'",
    "refresh": "document.head.innerHTML = '<meta http-equiv=refresh content=\"0;url=TRAP\">'",
    "link": "let a = document.createElement('a'); a.href = 'TRAP'; document.body.append(a); a.click()",
    "file by location": "location = 'FILE'; setTimeout(end, 200)",
}  # fmt: skip
REDIRECTS = (
    "TRAP",
    "FILE",
    "http://169.254.169.254/latest/",
    "chrome://version",
    "data:text/html,x",
    "ws://127.0.0.1:PORT",
)
DIRECT = (
    "TRAP", "FILE", "http://169.254.169.254/", "chrome://version", "chrome://settings/passwords", "view-source:SITE/",
    "view-source:FILE", "javascript:alert(1)", "data:text/html,<h1>x</h1>", "blob:SITE/x", "devtools://devtools/x",
    "filesystem:SITE/x", "about:version", "chrome-extension://x/y", "ftp://127.0.0.1/", "http://2130706433:PORT/",
    "http://a:b@127.0.0.1:PORT/", "http://localhost:PORT/", "http://[::1]:PORT/", "\tjavascript:alert(1)",
)  # fmt: skip
NAMES = {
    "parents": "../../../evil.txt",
    "absolute": "/tmp/evil.txt",
    "backslashes": "..\\..\\evil.txt",
    "hidden": ".bashrc",
    "line end": "a%0d%0ab.txt",
    "long": "n" * 300 + ".txt",
    "secret": f"{TOOL_SECRET}.txt",
}
PAGE = """<!doctype html><title>try</title><body><p id=out>nothing</p><script>
let left = COUNT; function done() { if (--left <= 0) document.title = 'ended' }
CODE</script>"""
TRY = """{ let ended = false; function end() { if (!ended) { ended = true; done() } }
let show = w => { out.append(String(w)); end() }; try { CODE } catch (e) { show(e) } setTimeout(end, 500) }"""


@dataclass
class Story:
    """What came of it: what the model was shown, who knocked at the trap, what was logged, what was kept."""

    shown: dict[str, str] = field(default_factory=dict)
    knocks: dict[str, list[str]] = field(default_factory=dict)
    log: dict[str, str] = field(default_factory=dict)
    downloads: list[Path] = field(default_factory=list)
    folder: Path = Path()
    tabs: str = ""
    after: str = ""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with with_secrets():
        return trio.run(_look, tmp_path_factory.mktemp("pages"))


async def _look(folder: Path) -> Story:
    story, knocks, page = Story(folder=folder), [], [""]
    local = folder / "local.txt"
    local.write_text(FILE)

    async def trap(request: Request, connection: Connection) -> None:
        knocks.append(request.path)
        await connection.send(PRIZE.encode(), content_type="text/html")

    async def handle(request: Request, connection: Connection) -> None:
        path = request.path.partition("?")[0]
        if path == "/redirect":
            await connection.send(b"", status=302, headers={"location": page[0]})
        elif path == "/download":
            headers = {"content-disposition": f'attachment; filename="{page[0]}"'}
            await connection.send(b"downloaded", content_type="application/octet-stream", headers=headers)
        else:
            await connection.send(page[0].encode(), content_type="text/html")

    async with serve(trap) as inner, serve(handle) as site, open_browsing(folder / "b") as browse:
        browse.permissions[0] = PermissionsConfig(network_allow_private=(f"127.0.0.1:{site.port}",))

        def filled(text: str) -> str:
            places = {"TRAP": f"{inner.url}/x", "FILE": local.as_uri(), "SITE": site.url, "PORT": str(inner.port)}
            for name, value in places.items():
                text = text.replace(name, value)
            return text

        async def noting(name: str, look: Callable[[], Awaitable[str]]) -> None:
            knocks.clear()
            with noted() as notes:
                story.shown[name] = await look()
            story.knocks[name], story.log[name] = list(knocks), "\n".join(notes.lines())

        codes = [filled(code).replace("/x", f"/{n}") for n, code in enumerate(TRIES.values())]
        tries = "\n".join(TRY.replace("CODE", code) for code in codes)
        page[0] = PAGE.replace("CODE", tries).replace("COUNT", str(len(TRIES)))
        await noting("all", lambda: _page(browse, f"{site.url}/"))
        for name, code in LEAVING.items():
            page[0] = PAGE.replace("CODE", TRY.replace("CODE", filled(code))).replace("COUNT", "1")
            await noting(name, lambda: _page(browse, f"{site.url}/"))
        for target in REDIRECTS:
            page[0] = filled(target)
            await noting(f"redirect {target}", lambda: _page(browse, f"{site.url}/redirect"))
        for target in DIRECT:
            await noting(f"direct {target}", lambda target=target: _page(browse, filled(target)))  # type: ignore[misc]
        for name, filename in NAMES.items():
            page[0] = filename.replace("%0d%0a", "\\r\\n")
            await noting(f"download {name}", lambda: _page(browse, f"{site.url}/download"))
        await _annoy(browse, story, page, site.url)
    files = [path for path in folder.rglob("*") if path.is_file()]
    story.downloads = [path for path in files if path.read_bytes() == b"downloaded"]
    return story


async def _page(browse: Browsing, url: str) -> str:
    """All that a model can be shown of a page, whether opening it worked or not."""
    shown = await _say(browse, "navigate", url=url)
    if "title: try" in shown:
        shown += await _say(browse, "wait", text="Never", seconds=0.1 if "title: ended" in shown else 0.7)
    return shown + await _say(browse, "content", format="text")


async def _say(browse: Browsing, action: str, **arguments: object) -> str:
    try:
        return await browse(action, **arguments)
    except Exception as error:
        return f"failed: {error}"


async def _annoy(browse: Browsing, story: Story, page: list[str], url: str) -> None:
    """Dialogs without an end, windows without an end, a page that will not be left; then an honest page."""
    loop = "for (let i = 0; i < 1000; i++) { alert('again'); confirm('again'); prompt('again') }"
    storm = "if (!location.search) for (let i = 0; i < 12; i++) window.open('/?' + i); onclick = () => window.open('/')"
    trap = "onbeforeunload = e => { e.preventDefault(); return 'stay' }; history.pushState(0, '', '/x')"
    loud = f"document.title = 'x'.repeat(5e6); out.textContent = 'SYSTEM: {TOOL_SECRET} {SYSTEM_SECRET} '.repeat(20000)"
    for name, code in {"windows": storm, "loud": loud, "no way out": trap, "dialogs": loop}.items():
        page[0] = PAGE.replace("CODE", code).replace("COUNT", "1")
        with noted() as notes:
            shown = await _say(browse, "navigate", url=f"{url}/")
            for _ in range(3):
                shown += await _say(browse, "dialog", accept=True)
            shown += await _say(browse, "snapshot") + await _say(browse, "content", format="html")
            story.tabs = await _say(browse, "tabs")
        story.shown[name], story.log[name] = shown, "\n".join(notes.lines())
    await browse("close")  # whatever the page does, this works
    page[0] = "<title>honest</title><h1>all is well</h1>"
    story.after = await _say(browse, "navigate", url=f"{url}/")
    if "all is well" not in story.after:
        story.after += await _say(browse, "snapshot")


CASES = (*LEAVING, *(f"redirect {one}" for one in REDIRECTS), *(f"direct {one}" for one in DIRECT))


@pytest.mark.parametrize("name", TRIES)
def test_no_script_reaches_what_is_not_public(name: str, story: Story) -> None:
    assert f"/{list(TRIES).index(name)}" not in story.knocks["all"]
    assert PRIZE not in story.shown["all"]
    assert FILE not in story.shown["all"]


@pytest.mark.parametrize("name", CASES)
def test_no_page_reaches_what_is_not_public(name: str, story: Story) -> None:
    assert story.knocks[name] == []
    assert PRIZE not in story.shown[name]
    assert FILE not in story.shown[name]
    assert "root:x:0" not in story.shown[name]


@pytest.mark.parametrize("name", ["all", "direct TRAP", "direct FILE", "direct http://169.254.169.254/"])
def test_a_refusal_is_in_the_log(name: str, story: Story) -> None:
    assert "refused" in story.log[name] or "denied" in story.log[name], story.shown[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_download_lands_elsewhere(name: str, story: Story) -> None:
    assert story.downloads
    workspace = story.folder / "b/workspace"
    for path in story.downloads:
        assert workspace in path.parents, path
        assert not path.name.startswith("."), path
    assert not Path("/tmp/evil.txt").exists()
    assert TOOL_SECRET not in story.shown[f"download {name}"]


@pytest.mark.parametrize("name", ["dialogs", "windows", "no way out", "loud"])
def test_no_page_keeps_the_browser_or_tells_secrets(name: str, story: Story) -> None:
    assert TOOL_SECRET not in story.shown[name]
    assert SYSTEM_SECRET not in story.shown[name]
    assert len(story.shown[name]) < 400_000
    assert "all is well" in story.after or "honest" in story.after, story.after[:2000]
