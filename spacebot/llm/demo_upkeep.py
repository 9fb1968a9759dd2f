"""What the demo model does where a real one looks after memory: next to nothing, and invents nothing.

Flow:   steps(request) -> (tool, arguments) or text
Floor:  llm
"""

import json
import re
from collections.abc import Iterator, Mapping

from spacebot.llm.messages import ModelRequest, ProcessKind, last_user_text

LINES_KEPT = 12  # of a talk in its summary
LINE_CHARACTERS = 160
WORDS = 200  # of a briefing
_TRANSCRIPT = re.compile(r"<transcript>\n(.*)\n</transcript>", re.DOTALL)
_NOTE = re.compile(r"^- \((?:\w+), [\d.]+, [^)]*\) (.+)$", re.MULTILINE)

Step = tuple[str, Mapping[str, str]] | str


def steps(request: ModelRequest) -> Iterator[Step] | None:
    """What to do with a request of a process that looks after memory; None when it is none of those."""
    offered = {tool.name for tool in request.tools}
    prompt = "\n".join(message.text for message in request.messages[:1])
    if request.process is ProcessKind.COMPACTOR:
        summary = _summary(prompt)
        return iter([("write_summary", {"summary": summary}) if "write_summary" in offered else summary])
    if request.process is ProcessKind.CORTEX:
        return iter([_cortex(request, offered)])
    if "memory_persistence_complete" in offered:
        reason = "the demo model keeps what it is told to, while it talks"
        return iter([("memory_persistence_complete", {"outcome": "no_memories", "reason": reason})])
    return None


def _summary(prompt: str) -> str:
    talk = _TRANSCRIPT.search(prompt)
    lines = [line[:LINE_CHARACTERS] for line in (talk[1] if talk else prompt).splitlines() if line.strip()]
    more = f"\n… and {len(lines) - LINES_KEPT} more lines" if len(lines) > LINES_KEPT else ""
    return "\n".join(lines[:LINES_KEPT]) + more


def _cortex(request: ModelRequest, offered: set[str]) -> str:
    system = "\n".join(block.text for block in request.system)
    if offered:
        return "The demo model observes nothing."
    if "display_name" in system:
        return json.dumps({"display_name": "Spacebot", "status": "running with the demo model", "bio": ""})
    if '"verdict"' in system:
        return "[]"
    return " ".join(" ".join(dict.fromkeys(_NOTE.findall(last_user_text(request.messages)))).split()[:WORDS])
