"""The browser tool on real pages in a real browser: what is seen, what can be used, what is kept."""

import json
import re
import struct
from pathlib import Path

import pytest

from spacebot.tools.browser.keys import ALT, CONTROL, SHIFT, key_of
from spacebot.tools.browser.snapshot import BUDGET
from spacebot.tools.rich import SendFile, SendFileArguments
from tests.stand_ins.web_site import needs_chromium, open_browsing, ref_of

pytestmark = [pytest.mark.slow, needs_chromium()]
SECRET = "correct horse battery"


async def test_a_form_is_filled_in_and_sent(tmp_path: Path) -> None:
    """Scripts of the page see each change; the secret reaches the server and nothing else."""
    async with open_browsing(tmp_path, secrets={"SITE_PASSWORD": SECRET}) as browse:
        (browse.workspace / "cat.png").write_bytes(b"picture")
        page = await browse.go("/form")
        assert 'heading "Sign up" (level=1)' in page
        assert "(disabled)" in next(line for line in page.splitlines() if "Later" in line)
        await browse.act("type", ref_of(page, '"Name"'), text="Ann")
        assert "typed Ann" in await browse("snapshot")
        await browse.act("type", ref_of(page, '"Name"'), text="ther", clear=False)
        shown = await browse.act("type", ref_of(page, '"Token"'), secret="SITE_PASSWORD")
        shown += await browse.act("type", ref_of(page, '"Password"'), secret="SITE_PASSWORD")
        shown += await browse("snapshot") + await browse("content")
        shown += await browse.fails("act", act_kind="type", element_ref=ref_of(page, '"Name"'), secret="NO_SUCH")
        await browse.act("select_option", ref_of(page, '"Colour"'), text="green")
        assert "Red | Green" in await browse.fails(
            "act", act_kind="select_option", element_ref=ref_of(page, '"Colour"'), text="Blue"
        )
        await browse.act("click", ref_of(page, '"Send news"'))
        await browse.act("type", ref_of(page, '"Day"'), text="2026-12-31")
        await browse.act("upload", ref_of(page, "(file)"), text="cat.png")
        page = await browse("snapshot")
        assert "chose cat.png" in page
        assert "(checked)" in page
        assert "no file" in await browse.fails(
            "act", act_kind="upload", element_ref=ref_of(page, "(file)"), text="dog.png"
        )
        assert "cannot be typed" in await browse.fails(
            "act", act_kind="type", element_ref=ref_of(page, '"Send"'), text="x"
        )
        done = await browse.act("type", ref_of(page, '"Name"'), text="Ann Other", key="Enter")
        assert "title: Thanks" in done
        (sent,) = browse.site.sent
        assert browse.site.asked.count("/form") == 1
    assert (sent["name"], sent["colour"], sent["news"]) == (["Ann Other"], ["g"], ["yes"])
    assert (sent["day"], sent["token"], sent["password"]) == (["2026-12-31"], [SECRET], [SECRET])
    assert SECRET not in shown
    assert "SITE_PASSWORD" in shown


async def test_every_ref_of_a_page_can_be_used(tmp_path: Path) -> None:
    """Native elements without any ARIA, inside ignored wrappers; a stale ref is said to be one."""
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/native")
        assert "Hidden" not in page
        assert "Gone" not in page
        for words, answer in (('"Go"', "button"), ('"Here"', "link"), ('"Box"', "input"), ('"Card"', "div")):
            await browse.act("click", ref_of(page, words))
            assert f"last: {answer}" in await browse("snapshot"), words
        await browse.click('"More"')
        page = await browse("snapshot")
        assert "Inside" in page
        assert "(expanded)" in page
        assert "e999" in await browse.fails("act", act_kind="click", element_ref="e999")
        await browse("navigate", url=f"{browse.site.url}/form")
        assert "snapshot" in await browse.fails("act", act_kind="click", element_ref="e0")
        page = await browse.go("/covered")
        why = await browse.fails("act", act_kind="click", element_ref=ref_of(page, '"Under"'))
        assert "covered" in why
        await browse.act("click", ref_of(page, "Accept cookies"))
        assert "not on the page any more" in await browse.fails(
            "act", act_kind="click", element_ref=ref_of(page, "Accept cookies")
        )
        await browse.act("click", ref_of(page, '"Under"'))
        await browse.act("click", ref_of(page, "Far away"))
        assert '"far"' in await browse("snapshot")


async def test_a_large_page_fits_and_its_refs_work_wherever_they_are(tmp_path: Path) -> None:
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/large?2000")
        parts = [page]
        while more := re.search(r'start="(e\d+)"', parts[-1]):
            parts.append(await browse("snapshot", start=more[1]))
        assert all(len(part.encode()) < BUDGET + 400 for part in parts)
        refs = [int(number) for part in parts for number in re.findall(r"\[e(\d+)\]", part)]
        assert refs == list(range(len(refs)))
        assert len(refs) > 1300
        for number in (0, 400, 1000, len(refs) - 2):
            line = next(line for part in parts for line in part.splitlines() if f"[e{number | 1}]" in line)
            thing = re.findall(r"\d+", line.partition("[")[0])[0] if "…" not in line else ""
            assert f"title: pressed {thing}" in await browse.act("click", f"e{number | 1}")


async def test_frames_and_shadow_trees_are_part_of_the_page(tmp_path: Path) -> None:
    """Frames of the same and of another origin, a frame in a frame, open and closed shadow trees."""
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/frames")
        refs = re.findall(r'button "Press" \[(e\d+)\]', page)
        assert len(refs) == 2
        for ref in [*refs, *re.findall(r'button "Deep" \[(e\d+)\]', page)]:
            await browse.act("click", ref)
        page = await browse("snapshot")
        assert 'button "pressed ?same"' in page
        assert 'button "pressed ?other"' in page
        assert page.count('button "deep done"') == 2
        page = await browse.go("/shadow")
        assert "slotted" in page
        for words in ("open button", "closed button", "plain button"):
            await browse.act("click", ref_of(page, f'"{words}"'))
            assert f"last: {words}" in await browse("snapshot")


async def test_dialogs_and_tabs(tmp_path: Path) -> None:
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/dialogs")
        assert "dialog: Beware" in await browse.act("click", ref_of(page, '"Alert"'))
        assert "dialog: Beware" in await browse.fails("content")
        await browse("dialog")
        await browse.act("click", ref_of(page, '"Confirm"'))
        await browse("dialog", accept=False)
        assert "confirm false" in await browse("snapshot")
        await browse.click('"Prompt"')
        await browse("dialog", text="Ann")
        assert "prompt Ann" in await browse("snapshot")
        assert "dialog: late" in await browse.click('"Late"')
        await browse("dialog")
        assert "no dialog" in await browse.fails("dialog")

        await browse.go("/popup")
        assert "opened tab t2" in await browse.click("In a new tab")
        assert "title: Form" in await browse.act("scroll")
        await browse("focus", target_id="t1")
        assert "opened tab t3" in await browse.click('"Window"')
        tabs = await browse("tabs")
        assert [line.split()[0] for line in tabs.splitlines() if re.match(r"t\d", line)] == ["t1", "t2", "t3"]
        assert 't3 (active) "Native"' in tabs
        assert "t3 is active" in await browse("close_tab", target_id="t2")
        await browse("close_tab")
        assert "no open tab 't2'" in await browse.fails("focus", target_id="t2")
        await browse("open", url=f"{browse.site.url}/form")
        await browse("close_tab")
        assert "t1 (active)" in await browse("tabs")
        await browse("close_tab")
        assert "title: Form" in await browse("navigate", url=f"{browse.site.url}/form")


async def test_pages_that_take_their_time(tmp_path: Path) -> None:
    """A page that renders late, one that grows, history within a page and between pages."""
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/late")
        assert 'heading "Arrived slowly"' in page
        await browse.act("click", ref_of(page, '"Next"'))
        assert "Two" in await browse("content", format="text")
        await browse("back")
        await browse.go("/scroll")
        for _ in range(4):
            await browse.act("scroll", amount=3000)
        assert '"Item 29"' in await browse("snapshot")
        assert "title: Late" in await browse("back")
        assert "title: Scroll" in await browse("forward")
        assert "title: Scroll" in await browse("reload")
        assert "there is no page after" in await browse.fails("forward")
        await browse("navigate", url=f"{browse.site.url}/late")
        await browse("wait", text="Arrived")
        assert "did not appear" in await browse.fails("wait", text="never there", seconds=0.3)


async def test_pictures_and_downloads_can_be_sent(tmp_path: Path) -> None:
    """Files land in the workspace under names that are told, and `send_file` takes them from there."""
    async with open_browsing(tmp_path) as browse:
        page = await browse.go("/form")
        said = [
            await browse("screenshot"),
            await browse("screenshot", full_page=True),
            await browse("screenshot", element_ref=ref_of(page, '"Send"')),
            await browse("pdf"),
            await browse("navigate", url=f"{browse.site.url}/file.csv"),
        ]
        assert "downloaded" in said[-1]
        paths = [re.search(rf"{re.escape(str(browse.workspace))}\S+", text)[0] for text in said]  # type: ignore[index]
        contents = [Path(path).read_bytes() for path in paths]
        assert [content[:4] for content in contents] == [b"\x89PNG", b"\x89PNG", b"\x89PNG", b"%PDF", b"a,b\n"]
        assert len(contents[2]) < len(contents[0])
        assert struct.unpack(">II", contents[0][16:24])[0] == 1280
        turn = _Turn()
        tool = SendFile(turn, containment=browse.containment, outgoing=tmp_path / "outgoing", max_bytes=10**7)
        for path in paths:
            output = await tool.call(SendFileArguments(file_path=path), browse.node)
            assert json.loads(output.text)["success"]
        assert turn.sizes == [len(content) for content in contents]


class _Turn:
    """Takes files as a turn does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def send_file(self, file: object, caption: str) -> str:
        self.sizes.append(getattr(file, "size_bytes"))  # noqa: B009
        return "1"

    async def may_send(self, parts: tuple[str, ...]) -> bool:
        return True


def test_keys_have_names_numbers_and_text() -> None:
    assert (key_of("enter").text, key_of("Return").number) == ("\r", 13)
    assert (key_of("Control+a").modifiers, key_of("Ctrl+A").text, key_of("ctrl+a").commands) == (
        CONTROL,
        "",
        ("selectAll",),
    )
    assert (key_of("Shift+Tab").modifiers, key_of("Alt+ArrowLeft").modifiers) == (SHIFT, ALT)
    assert (key_of("x").text, key_of("Shift+x").text, key_of("+").text, key_of("Control++").key) == ("x", "X", "+", "+")
