"""What is done to one element: found by its ref, brought into view, and used as a hand would, through the browser's
own input. An element that has gone, or lies under another one, is said so; nothing is clicked by guess.

Floor:   tools
Source:  tools spec 6.1, 6.2, 6.6 and 23 Browser; Chrome DevTools Protocol, domains DOM and Input
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from spacebot.base.errors import ToolError
from spacebot.tools.browser.driver import Driver, PageError
from spacebot.tools.browser.keys import Key, key_of
from spacebot.tools.browser.page_script import CHOOSE, COVERED, FIELD, PREPARE_FIELD, SET_VALUE
from spacebot.tools.browser.snapshot import Snapshot, value_of

STEADY_LOOKS = 12  # until an element that moves has come to rest
STEADY_S = 0.05
STALE = "the element {ref} is not on the page any more; take a new snapshot"
_REF = re.compile(r"\[?e?(\d+)\]?\Z")


class Hand:
    """Acts on the page of a snapshot."""

    def __init__(self, driver: Driver, snapshot: Snapshot | None) -> None:
        self._driver = driver
        self._snapshot = snapshot
        self._worlds: dict[str, int] = {}  # of the objects that were found

    async def find(self, ref: str) -> str:
        """The remote object behind a ref.

        Errors: ToolError when there is no snapshot, no such ref, or the element has gone.
        """
        if self._snapshot is None:
            raise ToolError("there are no refs yet, or the page has changed; take a snapshot first")
        match = _REF.match(ref.strip())
        number = int(match[1]) if match else -1
        if not 0 <= number < len(self._snapshot.elements):
            last = len(self._snapshot.elements) - 1
            raise ToolError(f"there is no ref {ref!r} (the snapshot has e0 to e{last}); take a new snapshot")
        element = self._snapshot.elements[number]
        expression = (
            f"(s => s && s.token === {json.dumps(self._snapshot.token)} && s.refs[{element.place}] && "
            f"s.refs[{element.place}].isConnected ? s.refs[{element.place}] : null)(globalThis.__spacebot)"
        )
        try:
            result = await self._driver.cdp("Runtime.evaluate", expression=expression, contextId=element.world)
        except PageError as error:
            raise ToolError(STALE.format(ref=ref)) from error
        if (found := result.get("result", {}).get("objectId")) is None:
            raise ToolError(STALE.format(ref=ref))
        self._worlds[str(found)] = element.world
        return str(found)

    async def name_of(self, node: str) -> str:
        """What the element is, in words."""
        words = "function() { return this.tagName.toLowerCase() + (this.computedName ? ' \"' + this.computedName.slice(0, 60) + '\"' : '') }"  # noqa: E501
        return str(await self.on(node, words))

    async def on(self, node: str, function: str, *arguments: Any) -> Any:
        """Run a function on an element. Errors: PageError."""
        result = await self._driver.cdp(
            "Runtime.callFunctionOn",
            objectId=node,
            functionDeclaration=function,
            arguments=[{"value": argument} for argument in arguments],
            returnByValue=True,
            userGesture=True,
        )
        return value_of(result)

    async def click(self, ref: str, *, count: int = 1) -> str:
        """Click in the middle of what is seen of it; returns its name."""
        node = await self.find(ref)
        name = await self.name_of(node)
        x, y = await self._point(node, ref)
        await self._mouse("mouseMoved", x, y)
        for number in range(1, count + 1):
            await self._mouse("mousePressed", x, y, button="left", buttons=1, clickCount=number)
            await self._mouse("mouseReleased", x, y, button="left", clickCount=number)
        return name

    async def hover(self, ref: str) -> str:
        """Move the pointer over it."""
        node = await self.find(ref)
        x, y = await self._point(node, ref)
        await self._mouse("mouseMoved", x, y)
        return await self.name_of(node)

    async def show(self, ref: str) -> str:
        """Bring it into view."""
        node = await self.find(ref)
        await self._driver.cdp("DOM.scrollIntoViewIfNeeded", objectId=node)
        return await self.name_of(node)

    async def focus(self, ref: str) -> str:
        """Give it the keyboard."""
        node = await self.find(ref)
        try:
            await self._driver.cdp("DOM.focus", objectId=node)
        except PageError as error:
            raise ToolError(f"{ref} cannot have the keyboard: {error}") from error
        return await self.name_of(node)

    async def type(self, ref: str, text: str, *, clear: bool) -> tuple[str, str | None]:
        """Type into a field.

        Returns its name, and what it holds afterwards when that differs from what was typed into an empty field.
        Errors: ToolError when it takes no text.
        """
        node = await self.find(ref)
        kind, reason = await self.on(node, FIELD)
        if not kind:
            raise ToolError(f"text cannot be typed into {ref}: {reason}")
        if kind == "select":
            raise ToolError(f"{ref} is a list; use act_kind select_option with the option's words as text")
        name = await self.name_of(node)
        if kind == "set":
            held = await self.on(node, SET_VALUE, text)
            return name, (str(held) or "nothing; the form is 2026-12-31, 23:59 or #rrggbb") if held != text else None
        await self._driver.cdp("DOM.scrollIntoViewIfNeeded", objectId=node)
        if not await self.on(node, PREPARE_FIELD, clear):
            raise ToolError(f"{ref} does not take the keyboard; click it and take a new snapshot")
        if text:
            await self._driver.cdp("Input.insertText", text=text)
        elif clear:
            await self.press(key_of("Delete"))
        if kind != "text" or not clear:
            return name, None
        held = await self.on(node, "function() { return this.type === 'password' ? null : this.value }")
        return name, str(held) if held is not None and held != text else None

    async def hide(self, ref: str) -> None:
        """Show dots in place of what a field holds, as in a password's: pictures must not tell it either."""
        await self.on(
            await self.find(ref), "function() { this.style.setProperty('-webkit-text-security', 'disc', 'important') }"
        )

    async def press(self, key: Key) -> None:
        """Press and release a key, with text where it has one: forms are sent by Enter only so."""
        common: dict[str, Any] = {
            "modifiers": key.modifiers,
            "key": key.key,
            "code": key.code,
            "windowsVirtualKeyCode": key.number,
        }
        held: dict[str, Any] = {"text": key.text, "unmodifiedText": key.text} if key.text else {}
        commands: dict[str, Any] = {"commands": list(key.commands)} if key.commands else {}
        kind = "keyDown" if key.text else "rawKeyDown"
        await self._driver.cdp("Input.dispatchKeyEvent", type=kind, **common, **held, **commands)
        await self._driver.cdp("Input.dispatchKeyEvent", type="keyUp", **common)

    async def choose(self, ref: str, option: str) -> str:
        """Choose from a list; returns what is chosen now."""
        trouble, words = await self.on(await self.find(ref), CHOOSE, " ".join(option.split()))
        match trouble:
            case "":
                return str(words[0])
            case "missing":
                raise ToolError(f"{ref} has no option {option!r} that can be chosen; it has: {' | '.join(words)}")
            case "disabled":
                raise ToolError(f"{ref} is disabled")
            case _:
                raise ToolError(f"{ref} is no plain list; click it, take a snapshot, and click the option")

    async def upload(self, ref: str, files: Sequence[Path]) -> str:
        """Hand files to a file field."""
        node = await self.find(ref)
        if not await self.on(node, "function() { return this.tagName === 'INPUT' && this.type === 'file' }"):
            raise ToolError(f"{ref} is no file field; look for an element marked (file)")
        await self._driver.cdp("DOM.setFileInputFiles", objectId=node, files=[str(file) for file in files])
        return await self.name_of(node)

    async def wheel(self, amount: int, ref: str | None) -> None:
        """Turn the wheel, over an element or in the middle of the page."""
        if ref is not None:
            x, y = await self._point(await self.find(ref), ref, may_be_covered=True)
        else:
            view = (await self._driver.cdp("Page.getLayoutMetrics"))["cssLayoutViewport"]
            x, y = view["clientWidth"] / 2, view["clientHeight"] / 2
        await self._mouse("mouseWheel", x, y, deltaX=0, deltaY=amount)

    async def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        await self._driver.cdp("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def _point(self, node: str, ref: str, *, may_be_covered: bool = False) -> tuple[float, float]:
        """Where to click: scrolled into view, at rest, not under something else."""
        quad = await self._resting_quad(node)
        if quad is None or _area(quad) < 4:  # a box that only its label shows
            label = await self._label(node)
            quad = await self._resting_quad(label) if label else None
        if quad is None:
            raise ToolError(f"{ref} takes no room on the page (hidden or empty); take a new snapshot")
        x, y = (quad[0] + quad[2] + quad[4] + quad[6]) / 4, (quad[1] + quad[3] + quad[5] + quad[7]) / 4
        if may_be_covered:
            return x, y
        if over := await self._over(node, x, y):
            raise ToolError(f"{ref} is covered by {over}; close or scroll away what lies over it, or use that instead")
        return x, y

    async def _resting_quad(self, node: str) -> list[float] | None:
        try:
            await self._driver.cdp("DOM.scrollIntoViewIfNeeded", objectId=node)
        except PageError:
            return None
        last: list[float] | None = None
        for _ in range(STEADY_LOOKS):
            try:
                quads = (await self._driver.cdp("DOM.getContentQuads", objectId=node))["quads"]
            except PageError:
                return None
            quad: list[float] | None = next((quad for quad in quads if _area(quad) >= 1), quads[0] if quads else None)
            if quad is not None and last is not None and all(abs(a - b) < 1 for a, b in zip(quad, last, strict=True)):
                return quad
            if last is not None:
                await trio.sleep(STEADY_S)
            last = quad
        return last

    async def _label(self, node: str) -> str | None:
        result = await self._driver.cdp(
            "Runtime.callFunctionOn",
            objectId=node,
            functionDeclaration="function() { return this.labels && this.labels[0] || this.closest('label') }",
        )
        found = result.get("result", {}).get("objectId")
        return str(found) if found else None

    async def _over(self, node: str, x: float, y: float) -> str:
        """What lies over an element at a point; empty when a click there reaches it."""
        view = (await self._driver.cdp("Page.getLayoutMetrics"))["cssVisualViewport"]
        place = {"x": int(x + view["pageX"]), "y": int(y + view["pageY"])}  # this command counts from the page's corner
        try:
            hit = await self._driver.cdp("DOM.getNodeForLocation", includeUserAgentShadowDOM=False, **place)
        except PageError:
            return "the edge of the window"
        own = await self._driver.cdp("DOM.describeNode", objectId=node)
        if own["node"]["backendNodeId"] == hit["backendNodeId"]:
            return ""
        try:
            world = self._worlds[node]
            found = await self._driver.cdp(
                "DOM.resolveNode", backendNodeId=hit["backendNodeId"], executionContextId=world
            )
            result = await self._driver.cdp(
                "Runtime.callFunctionOn",
                objectId=node,
                functionDeclaration=COVERED,
                arguments=[{"objectId": found["object"]["objectId"]}],
                returnByValue=True,
            )
        except PageError:
            return "something in another frame"
        return str(value_of(result) or "")


def _area(quad: Sequence[float]) -> float:
    """Of a four-cornered figure (shoelace formula)."""
    points = list(zip(quad[::2], quad[1::2], strict=True))
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2
