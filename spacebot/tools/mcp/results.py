"""What a remote tool answered, as a text for the model.

Floor:   tools
Source:  tools spec 11: texts joined by newlines, other parts as JSON, structured content as JSON, a cap, a marker
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from spacebot.base.redaction import scrub
from spacebot.base.text import clean_unicode, head_and_tail
from spacebot.tools.contract import capped
from spacebot.tools.mcp.pipes import KEPT_CODE, KEPT_TEXT

NO_CONTENT = "(the tool returned no content)"


def render_result(content: Sequence[Mapping[str, Any]], structured: Any) -> str:
    """The text of a result: scrubbed, and no longer than a model may be shown. Slow for large ones: use a thread.

    Args:
        content: parts with their names as on the wire.
        structured: the value beside them; told only where no part says the same.
    """
    lines = [_part(part) for part in content]
    if structured is not None and not _is_said(structured, lines):
        lines.append(json.dumps(structured, ensure_ascii=False))
    text = clean_unicode("\n".join(line for line in lines if line))
    return capped(scrub(head_and_tail(text, KEPT_TEXT))) if text.strip() else NO_CONTENT


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") == "text":
        return str(part.get("text", ""))
    resource = part.get("resource")
    if part.get("type") == "resource" and isinstance(resource, Mapping) and isinstance(resource.get("text"), str):
        return str(resource["text"])
    return json.dumps(_without_codes(part), ensure_ascii=False)


def _without_codes(part: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in part.items():
        if isinstance(value, Mapping):
            shown[key] = _without_codes(value)
        elif key in ("data", "blob") and isinstance(value, str) and len(value) > KEPT_CODE:
            shown[key] = f"({len(value)} characters left out)"
        else:
            shown[key] = value
    return shown


def _is_said(structured: Any, lines: Sequence[str]) -> bool:
    """Whether a part says the same already: servers wrap their text in an object with one entry, or repeat it."""
    values = [structured]
    if isinstance(structured, Mapping) and len(structured) == 1:
        values += structured.values()
    texts = {value.strip() for value in values if isinstance(value, str)}
    return any(line.strip() in texts or _is_same(line, values) for line in (*lines, "\n".join(lines)))


def _is_same(line: str, values: Sequence[Any]) -> bool:
    try:
        return json.loads(line) in values
    except (ValueError, RecursionError):
        return False
