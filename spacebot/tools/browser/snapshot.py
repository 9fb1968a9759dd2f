"""A page as a model reads it: an outline of its accessibility tree, with a short ref on all that can be used.

Every ref that stands in the text can be used. What does not fit into `BUDGET` loses its plain text first, then long
names and depth; refs that are still too many come with the next part of the same snapshot.

Flow:    frames -> closed shadow trees -> walker in each frame -> one list -> text within the budget
Floor:   tools
Source:  tools spec 6.2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from spacebot.base.ids import new_uuid
from spacebot.tools.browser.driver import Driver, PageError
from spacebot.tools.browser.page_script import SIZE, WALKER, WORLD

BUDGET = 24_000  # bytes of text: about 8,000 tokens at three bytes each, also where each character is a token
MOST_ENTRIES = 20_000
MOST_FRAMES = 30
MOST_CLOSED = 200  # closed shadow trees that are handed in
SMALL_PAGE = 1000  # elements up to which closed shadow trees are looked for without a sign of any


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the outline; `ref` is its number in the page, -1 without."""

    depth: int
    role: str
    name: str
    ref: int
    states: str
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element is kept: its frame's world, and its place in the list there."""

    world: int
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was on a page.

    Args:
        token: marks the lists inside the page that belong to it.
        elements: by ref.
        left_out: elements beyond the limits, which have no line.
    """

    token: str
    title: str
    url: str
    entries: tuple[Entry, ...]
    elements: tuple[Element, ...]
    left_out: int

    def render(self, start: int = 0) -> str:
        """The outline from a ref on, within the budget."""
        entries: Sequence[Entry] = self.entries
        if start > 0:
            first = next((i for i, entry in enumerate(entries) if entry.ref >= start), len(entries))
            entries = entries[first:]
        for detail in _DETAILS:
            lines = _lines(entries, detail)
            if sum(len(line.encode()) + 1 for line in lines) <= BUDGET:
                return "\n".join([*lines, *_notes(detail, None, self.left_out)])
        kept, size = 0, 0
        for line in lines:
            size += len(line.encode()) + 1
            if size > BUDGET - 300:
                break
            kept += 1
        shown = [entry for entry in entries if entry.ref >= 0 or _is_landmark(entry)][:kept]
        following = max((entry.ref for entry in shown), default=start) + 1
        return "\n".join([*lines[:kept], *_notes(_DETAILS[-1], (following, len(self.elements) - 1), self.left_out)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detail:
    """How much of each entry is printed."""

    name: int
    text: int
    hints: bool = True
    is_flat: bool = False


_DETAILS = (
    _Detail(name=200, text=1000),
    _Detail(name=120, text=160),
    _Detail(name=80, text=60, hints=False),
    _Detail(name=60, text=0, hints=False),
    _Detail(name=24, text=0, hints=False, is_flat=True),
)


async def take_snapshot(driver: Driver) -> Snapshot:
    """Look at the page in front.

    Errors: as `Driver.cdp`.
    """
    tree = (await driver.cdp("Page.getFrameTree"))["frameTree"]
    token = new_uuid()
    await driver.cdp("Accessibility.enable")  # or the tree would be built anew for each element that is asked for
    await driver.cdp("Accessibility.getRootAXNode")  # has it built, all at once
    frames = await _frames(driver, tree)
    await _hand_in_closed(driver, frames)
    elements: list[Element] = []
    found = await _walk(driver, frames[0], token, elements, nested=frames)
    frame = tree["frame"]
    url = str(frame.get("unreachableUrl") or frame["url"]) + str(frame.get("urlFragment", ""))
    return Snapshot(
        token=token,
        title=found.title,
        url=url,
        entries=tuple(found.entries),
        elements=tuple(elements),
        left_out=found.left_out,
    )


@dataclass(slots=True)
class _Frame:
    id: str
    world: int
    parent: str | None
    children: "list[_Frame]" = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    entries: list[Entry]
    title: str
    left_out: int


async def world_of(driver: Driver, frame_id: str) -> int:
    """Our own world in a frame; the same one each time until the frame opens another document."""
    result = await driver.cdp("Page.createIsolatedWorld", frameId=frame_id, worldName=WORLD)
    return int(result["executionContextId"])


async def _frames(driver: Driver, tree: dict[str, Any], parent: str | None = None) -> list[_Frame]:
    """The frames from here down, this one first, its children linked."""
    frame = _Frame(tree["frame"]["id"], await world_of(driver, tree["frame"]["id"]), parent)
    found = [frame]
    for child in tree.get("childFrames", [])[:MOST_FRAMES]:
        try:
            below = await _frames(driver, child, frame.id)
        except PageError:  # it went away meanwhile
            continue
        frame.children.append(below[0])
        found += below
    return found[:MOST_FRAMES]


async def call(driver: Driver, world: int, function: str, *arguments: Any) -> Any:
    """Run a function in a world; its result, by value. Errors: PageError."""
    result = await driver.cdp(
        "Runtime.callFunctionOn",
        functionDeclaration=function,
        executionContextId=world,
        arguments=[{"value": argument} for argument in arguments],
        returnByValue=True,
        awaitPromise=True,
    )
    return value_of(result)


def value_of(result: dict[str, Any]) -> Any:
    """The value of a call. Errors: PageError when it threw."""
    if details := result.get("exceptionDetails"):
        said = details.get("exception", {}).get("description") or details.get("text", "an error")
        raise PageError(str(said)[:1000])
    return result.get("result", {}).get("value")


async def _hand_in_closed(driver: Driver, frames: Sequence[_Frame]) -> None:
    """Let the walker see closed shadow trees: only the protocol can reach them."""
    sizes = [await call(driver, frame.world, SIZE) for frame in frames]
    if sum(count for count, _ in sizes) > SMALL_PAGE and not any(has_sign for _, has_sign in sizes):
        return
    root = (await driver.cdp("DOM.getDocument", depth=-1, pierce=True))["root"]
    worlds = {frame.id: frame.world for frame in frames}
    for shadow, world in await trio.to_thread.run_sync(_closed_roots, root, frames[0].world, worlds):
        await _hand_in(driver, shadow, world)


def _closed_roots(root: dict[str, Any], main: int, worlds: dict[str, int]) -> list[tuple[int, int]]:
    """The closed shadow trees of a document and its frames, each with its frame's world, outer ones first."""
    found: list[tuple[int, int]] = []
    pending: list[tuple[dict[str, Any], int]] = [(root, main)]
    while pending:
        node, world = pending.pop()
        for shadow in node.get("shadowRoots", ()):
            if shadow.get("shadowRootType") == "closed":
                found.append((shadow["backendNodeId"], world))
            pending.append((shadow, world))
        pending.extend((child, world) for child in node.get("children", ()))
        if "contentDocument" in node:
            document = node["contentDocument"]
            inner = worlds.get(node.get("frameId", ""), worlds.get(document.get("frameId", ""), -1))
            if inner >= 0:
                pending.append((document, inner))
    return found[:MOST_CLOSED]


async def _hand_in(driver: Driver, backend_node: int, world: int) -> None:
    try:
        found = await driver.cdp("DOM.resolveNode", backendNodeId=backend_node, executionContextId=world)
        await driver.cdp(
            "Runtime.callFunctionOn",
            objectId=found["object"]["objectId"],
            functionDeclaration="function() { (globalThis.__closed ||= new WeakMap()).set(this.host, this) }",
        )
    except PageError:  # the page has dropped it meanwhile
        return


async def _walk(
    driver: Driver, frame: _Frame, token: str, elements: list[Element], *, nested: Sequence[_Frame]
) -> _Found:
    rows, left_out, title = await call(driver, frame.world, WALKER, token, MOST_ENTRIES)
    inner = await _placed(driver, frame)
    entries: list[Entry] = []
    for depth, role, name, ref, states, value, text, frame_place in rows:
        number = -1
        if ref >= 0:
            number = len(elements)
            elements.append(Element(frame.world, ref))
        entries.append(Entry(depth, role, name, number, states, value, text))
        if frame_place >= 0 and (child := inner.get(frame_place)) is not None:
            try:
                below = await _walk(driver, child, token, elements, nested=nested)
            except PageError:
                continue
            entries += [replace(entry, depth=entry.depth + depth + 1) for entry in below.entries]
            left_out += below.left_out
    return _Found(entries, str(title), int(left_out))


async def _placed(driver: Driver, frame: _Frame) -> dict[int, _Frame]:
    """Which of the walker's frame elements shows which child frame."""
    found = {}
    for child in frame.children:
        try:
            owner = await driver.cdp("DOM.getFrameOwner", frameId=child.id)
            node = await driver.cdp(
                "DOM.resolveNode", backendNodeId=owner["backendNodeId"], executionContextId=frame.world
            )
            result = await driver.cdp(
                "Runtime.callFunctionOn",
                objectId=node["object"]["objectId"],
                functionDeclaration="function() { return globalThis.__spacebot.frames.indexOf(this) }",
                returnByValue=True,
            )
        except PageError:
            continue
        found[int(value_of(result))] = child
    return found


def _is_landmark(entry: Entry) -> bool:
    return entry.role in ("heading", "iframe", "dialog", "alertdialog", "alert")


def _lines(entries: Sequence[Entry], detail: _Detail) -> list[str]:
    if detail.is_flat:
        return [_line(entry, detail, 0) for entry in entries if entry.ref >= 0 or _is_landmark(entry)]
    lines: list[str] = []
    path: list[int] = []  # printed depths above the current entry
    for entry in entries:
        while path and path[-1] >= entry.depth:
            path.pop()
        if not detail.text and entry.ref < 0 and not _is_landmark(entry) and not entry.name:
            continue
        lines.append(_line(entry, detail, len(path)))
        path.append(entry.depth)
    return lines


def _line(entry: Entry, detail: _Detail, level: int) -> str:
    if entry.role == "text":
        return f"{'  ' * level}text: {_short(entry.text, detail.text)}"
    words = [entry.role]
    if entry.name:
        words.append(f'"{_short(entry.name, detail.name)}"')
    if entry.ref >= 0:
        words.append(f"[e{entry.ref}]")
    if entry.states:
        words.append(f"({entry.states})")
    line = "  " * level + " ".join(words)
    if entry.value:
        line += f" = {_short(entry.value, min(detail.name, 100) if '(of: ' not in entry.value else 4 * detail.name)}"
    if entry.text and (entry.ref < 0 or detail.hints) and detail.text:
        line += f": {_short(entry.text, detail.text)}"
    return line


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def _notes(detail: _Detail, more: tuple[int, int] | None, left_out: int) -> list[str]:
    notes = []
    if detail.is_flat:
        notes.append("left out: all plain text and the order of nesting; long names are cut")
    elif not detail.text:
        notes.append("left out: all plain text; action content has it")
    elif detail.text < 1000:
        notes.append("left out: long texts are cut; action content has them")
    if more is not None:
        notes.append(f'left out: e{more[0]} to e{more[1]}; see them with action snapshot and start="e{more[0]}"')
    if left_out:
        notes.append(f"left out: {left_out} more elements of a very large page; scroll, search or filter in the page")
    return [f"[{note}]" for note in notes]
