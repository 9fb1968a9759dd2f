"""Figures of the browser: a look at a large page, its refs, ten workers with a browser each, a cancel."""

import re
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import trio

from spacebot.tools.browser.tool import BrowserTool
from tests.stand_ins.web_site import Browsing, open_browsing

ELEMENTS, LOOKS, CLICKS = 2000, 15, 40
LOOK_MS, MOST_TOKENS = 150.0, 8000
BYTES_PER_TOKEN = 3  # carefully; the program itself counts four
WORKERS = 10
CANCEL_S = 2.0


async def snapshot() -> int:
    """A page of 2,000 elements: how long a look takes, how large it is, and whether its refs can be clicked."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_browsing(Path(folder), patience_s=300) as browse:
            await browse("navigate", url=f"{browse.site.url}/large?{ELEMENTS}")
            times, text = [], ""
            for _ in range(LOOKS):
                began = time.perf_counter()
                text = await browse("snapshot")
                times.append((time.perf_counter() - began) * 1000)
            parts = [text]
            while more := re.search(r'start="(e\d+)"', parts[-1]):
                parts.append(await browse("snapshot", start=more[1]))
            refs = [ref for part in parts for ref in re.findall(r"\[(e\d+)\]", part)]
            chosen = refs[:: max(len(refs) // CLICKS, 1)]
            for ref in chosen:
                await browse.act("hover", ref)
            clicked = [await browse.act("click", ref) for ref in (refs[1], refs[-1])]
    p50, tokens = statistics.median(times), max(len(part.encode()) for part in parts) // BYTES_PER_TOKEN
    print(
        f"snapshot of {ELEMENTS} elements: p50 {p50:.0f} ms, p95 {statistics.quantiles(times, n=20)[-1]:.0f} ms "
        f"(reach {LOOK_MS:.0f}), at most {tokens} tokens in each of {len(parts)} parts (reach {MOST_TOKENS}), "
        f"{len(refs)} refs, {len(chosen)} of them reached and {len(clicked)} clicked"
    )
    return (p50 > LOOK_MS) + (tokens > MOST_TOKENS)


async def workers() -> int:
    """Ten browsers at once: all finish, nothing is left."""
    with tempfile.TemporaryDirectory() as folder:
        done: list[float] = []
        began = time.perf_counter()
        async with open_browsing(Path(folder), patience_s=600) as browse:

            async def work() -> None:
                async with browse.browsers.hold(browse.containment) as holder:
                    tool = BrowserTool(holder, secret_of=lambda name: None, may_evaluate=lambda: None)
                    own = Browsing(browse.site, tool, holder, *_rest(browse))
                    page = await own.go("/form")
                    ref = re.search(r'"Name" \[(e\d+)\]', page)
                    assert ref
                    await own.act("type", ref[1], text="Ann", key="Enter")
                    await own("screenshot")
                done.append(time.perf_counter() - began)

            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(work)
        left = _left(folder)
    print(
        f"{WORKERS} workers with a browser each: {len(done)} finished within {max(done):.1f} s; "
        f"processes and profiles left: {len(left)}"
    )
    return (len(done) != WORKERS) + bool(left)


async def cancelled() -> int:
    """A worker's browser, cancelled while a page does not come: how long until nothing is left."""
    with tempfile.TemporaryDirectory() as folder:
        with trio.CancelScope() as scope:
            async with open_browsing(Path(folder), patience_s=120) as browse, trio.open_nursery() as nursery:
                await browse("navigate", url=f"{browse.site.url}/form")
                nursery.start_soon(lambda: browse.fails("navigate", url=f"{browse.site.url}/never"))
                while "/never" not in browse.site.asked:
                    await trio.sleep(0.01)
                began = time.perf_counter()
                scope.cancel()
        took, left = time.perf_counter() - began, _left(folder)
    print(f"cancel of a browser at work: everything gone after {took:.2f} s (reach {CANCEL_S:.0f}), left: {len(left)}")
    return (took > CANCEL_S) + bool(left)


def _rest(browse: Browsing) -> tuple:  # type: ignore[type-arg]
    return browse.node, browse.workspace, browse.containment, browse.browsers, browse.config, browse.permissions


def _left(folder: str) -> list[str]:
    found = [str(path) for path in Path(folder, "data", "browsers").glob("*")]
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        words = " ".join([*(process.info["cmdline"] or []), (process.info["environ"] or {}).get("HOME", "")])
        if folder in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words[:200])
    return found
