"""What Slack checks about the blocks of a message: kinds, sizes and counts.

Source: docs.slack.dev on Block Kit; slackapi/bolt-js issue 2509 for the sum of all blocks
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = {"markdown", "section", "header", "context", "actions", "image", "divider", "rich_text", "table", "video"}
Fault = tuple[str, str]


def block_faults(blocks: Sequence[Any]) -> Iterator[Fault]:
    """The error code and the reason of everything that Slack would refuse."""
    if len(blocks) > 50:
        yield "invalid_blocks", f"{len(blocks)} blocks"
    if _length(blocks) > 13_000:
        yield "msg_blocks_too_long", "blocks of more than 13,000 characters"
    if sum(len(str(block.get("text"))) for block in blocks if block.get("type") == "markdown") > 12_000:
        yield "msg_blocks_too_long", "markdown of more than 12,000 characters"
    for block in blocks:
        kind = block.get("type")
        if kind not in KINDS:
            yield "invalid_blocks", f"no such kind of block: {kind}"
        check = _CHECKS.get(str(kind))
        if check is not None:
            yield from check(block)


def _length(value: Any) -> int:
    """Characters of all that is written in a value, without what lists offer."""
    if isinstance(value, Mapping):
        return sum(_length(inner) for name, inner in value.items() if name != "options")
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str) else 0


def _words(text: Any, limit: int, what: str, kinds: Sequence[str] = ("plain_text", "mrkdwn")) -> Iterator[Fault]:
    if not isinstance(text, Mapping) or text.get("type") not in kinds or not isinstance(text.get("text"), str):
        yield "invalid_blocks", f"{what} is no text"
    elif not 0 < len(text["text"]) <= limit:
        yield "invalid_blocks", f"{what} of {len(text['text'])} characters"


def _limited(value: Any, limit: int, what: str) -> Iterator[Fault]:
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        yield "invalid_blocks", f"{what} missing, empty or over {limit}"


def _section(block: Mapping[str, Any]) -> Iterator[Fault]:
    fields = block.get("fields", [])
    if "text" not in block and not fields:
        yield "invalid_blocks", "a section without words"
    if "text" in block:
        yield from _words(block["text"], 3000, "a section's text")
    if len(fields) > 10:
        yield "invalid_blocks", f"{len(fields)} fields"
    for field in fields:
        yield from _words(field, 2000, "a field")
    if "accessory" in block:
        yield from _element(block["accessory"])


def _header(block: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _words(block.get("text"), 150, "a header", ("plain_text",))


def _context(block: Mapping[str, Any]) -> Iterator[Fault]:
    elements = block.get("elements", [])
    if not 0 < len(elements) <= 10:
        yield "invalid_blocks", f"{len(elements)} elements of context"
    for element in elements:
        if element.get("type") != "image":
            yield from _words(element, 2000, "a context's text")


def _image(block: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _limited(block.get("image_url"), 3000, "an image's address")
    yield from _limited(block.get("alt_text"), 2000, "an image's words")


def _actions(block: Mapping[str, Any]) -> Iterator[Fault]:
    elements = block.get("elements", [])
    if not 0 < len(elements) <= 25:
        yield "invalid_blocks", f"{len(elements)} actions"
    if len({element.get("action_id") for element in elements}) != len(elements):
        yield "invalid_blocks", "an action_id twice"
    for element in elements:
        yield from _element(element)


def _element(element: Mapping[str, Any]) -> Iterator[Fault]:
    match element.get("type"):
        case "image":
            yield from _image(element)
        case "button":
            yield from _limited(element.get("action_id"), 255, "a button's action_id")
            yield from _words(element.get("text"), 75, "a button's label", ("plain_text",))
            if "value" in element:
                yield from _limited(element["value"], 2000, "a button's value")
            if "url" in element:
                yield from _limited(element["url"], 3000, "a button's address")
            if element.get("style") not in (None, "primary", "danger"):
                yield "invalid_blocks", f"no such style: {element['style']}"
        case "static_select":
            yield from _limited(element.get("action_id"), 255, "a list's action_id")
            options = element.get("options", [])
            if not 0 < len(options) <= 100:
                yield "invalid_blocks", f"{len(options)} options"
            if "placeholder" in element:
                yield from _words(element["placeholder"], 150, "a placeholder", ("plain_text",))
            for option in options:
                yield from _words(option.get("text"), 75, "an option's label", ("plain_text",))
                yield from _limited(option.get("value"), 150, "an option's value")
                if "description" in option:
                    yield from _words(option["description"], 75, "an option's description", ("plain_text",))
        case kind:
            yield "invalid_blocks", f"no such element: {kind}"


_CHECKS = {"section": _section, "header": _header, "context": _context, "image": _image, "actions": _actions}
