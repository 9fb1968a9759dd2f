"""Read a `SKILL.md`: a YAML header between lines of three dashes, then the text.

The header is read with every value as plain text, without aliases and without tags, so that it can neither grow nor
make objects. Many skills in the wild have headers that are no YAML (`description: Use when: …`); those are read line
by line, as other programs do.

Flow:    bytes -> parse_skill -> SkillText
Floor:   tools; the only importer of yaml
Source:  tools spec 10.1 and 23 (skills); agentskills.io specification
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from spacebot.base.errors import ToolError
from spacebot.base.text import clean_unicode, cut_bytes

SKILL_FILE = "SKILL.md"
MAX_SKILL_FILE = 100 * 1024  # bytes; tools spec 10.3
MAX_HEADER = 16 * 1024  # bytes
MAX_DEPTH = 20  # of a header's lists and tables
MAX_NAME = 64
MAX_DESCRIPTION = 1024  # bytes
BASE_VARIABLE = "{baseDir}"

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN_NAME = re.compile(r"[^\W_][\w .:-]{0,63}")
_FENCE = re.compile(r"---[ \t]*")
_LINE = re.compile(r"([A-Za-z][\w-]*):(?:[ \t]+(.*))?")


class SkillError(ToolError):
    """A skill cannot be used; the message says why, and what to mend."""


@dataclass(frozen=True, slots=True)
class SkillText:
    """What a `SKILL.md` says.

    Args:
        name: from the header; None when it gives none that can be shown.
        description: one line; may be empty.
        body: the instructions, without the header.
    """

    name: str | None
    description: str
    body: str


def parse_skill(raw: bytes) -> SkillText:
    """Take a `SKILL.md` apart.

    Errors: SkillError when it is too long, no text, or its header is not closed or cannot be read.
    """
    if len(raw) > MAX_SKILL_FILE:
        raise SkillError(f"{SKILL_FILE} is larger than {MAX_SKILL_FILE // 1024} KiB; move parts into references/")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SkillError(f"{SKILL_FILE} is not UTF-8 text") from error
    if "\0" in text:
        raise SkillError(f"{SKILL_FILE} holds NUL characters; it is no text")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").lstrip().split("\n")
    if not _FENCE.fullmatch(lines[0]):
        return SkillText(None, "", "\n".join(lines).strip())
    end = next((number for number, line in enumerate(lines[1:], 1) if _FENCE.fullmatch(line)), None)
    if end is None:
        raise SkillError(f"the header of {SKILL_FILE} is not closed; end it with a line of three dashes")
    header = _header("\n".join(lines[1:end]))
    return SkillText(
        _name(header.get("name")), one_line(header.get("description")), "\n".join(lines[end + 1 :]).strip()
    )


def one_line(value: object, limit: int = MAX_DESCRIPTION) -> str:
    """A text on one line, without signs that are not seen; empty for everything that is no text."""
    if not isinstance(value, str):
        return ""
    seen = "".join(sign if sign.isprintable() else " " for sign in clean_unicode(value))
    line = " ".join(seen.split())
    short = cut_bytes(line, limit)
    return short if short == line else f"{short.rstrip()}…"


def _name(value: object) -> str | None:
    name = one_line(value)
    return name if _SHOWN_NAME.fullmatch(name) else None


def _header(text: str) -> dict[str, Any]:
    if len(text.encode()) > MAX_HEADER:
        raise SkillError(f"the header of {SKILL_FILE} is larger than {MAX_HEADER // 1024} KiB")
    import yaml

    try:
        found = yaml.load(text, Loader=_text_loader())
    except SkillError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = dict(_plain_lines(text))
        if "description" not in found:
            raise SkillError(f"the header of {SKILL_FILE} is not YAML: {_place(error)}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SkillError(f"the header of {SKILL_FILE} must be a table of keys and values")
    return found


@cache
def _text_loader() -> Any:
    """A reader of YAML; its library is loaded with the first skill."""
    import yaml

    class TextLoader(yaml.BaseLoader):  # type: ignore[misc]
        """Every value is a text, whatever its tag says; no alias, so that nothing small becomes large."""

        _depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise SkillError(
                    f"the header of {SKILL_FILE} uses aliases (*name), which are not read; write the value out"
                )
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise SkillError(f"the header of {SKILL_FILE} is nested too deeply")
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node

    return TextLoader


def _plain_lines(text: str) -> Iterator[tuple[str, str]]:
    """`key: value` at the margin; what is indented belongs to something else."""
    for line in text.split("\n"):
        if found := _LINE.fullmatch(line.rstrip()):
            value = (found[2] or "").strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            yield found[1], value


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = one_line(getattr(error, "problem", None) or type(error).__name__, 200)
    return f"{problem} (line {mark.line + 2})" if mark is not None else problem
