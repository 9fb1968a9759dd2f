"""What a token of `spacebot auth login` demands of a request, in one place: headers, first words, names of tools.

Anthropic accepts these tokens from its own coding tool. Whoever signs in asks for this; with a key nothing here is
used. Leaving the whole kind out is deleting this file and the lines that call it.

Flow:    Dressed.of(request) -> the dialect -> Dressed.undress(reply)
Floor:   llm
Source:  control spec 2.11
"""

from dataclasses import dataclass, replace
from types import MappingProxyType

from spacebot.llm.messages import (
    ArgumentsDelta,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    StreamDelta,
    SystemBlock,
    ToolCall,
    ToolSpec,
)

# Part of the credential like the headers, compared to the letter by the provider: no prompt of ours.
IDENTITY = SystemBlock("You are Claude Code, Anthropic's official CLI for Claude.")
HEADERS = MappingProxyType(
    {
        "User-Agent": "claude-code/2.1.49 (external, cli)",
        "x-app": "cli",
        "anthropic-beta": "claude-code-20250219,oauth-2025-04-20,fine-grained-tool-streaming-2025-05-14",
    }
)
_SPELLINGS = MappingProxyType(
    {
        name.casefold(): name
        for name in (
            "Read", "Write", "Edit", "Bash", "Grep", "Glob", "AskUserQuestion", "EnterPlanMode", "ExitPlanMode",
            "KillShell", "NotebookEdit", "Skill", "Task", "TaskOutput", "TodoWrite", "WebFetch", "WebSearch",
        )
    }
)  # fmt: skip
_KEPT = 256  # renamed specs; dialects cache their wire form by identity
_renamed: dict[int, tuple[ToolSpec, ToolSpec]] = {}


def headers(token: str) -> dict[str, str]:
    """The headers of a call with this token."""
    return {**HEADERS, "Authorization": f"Bearer {token}"}


@dataclass(frozen=True, slots=True)
class Dressed:
    """A request as such a token wants it, and the way back.

    Args:
        names: how a tool is spelt on the wire -> its own name.
    """

    request: ModelRequest
    names: MappingProxyType[str, str]

    @classmethod
    def of(cls, request: ModelRequest) -> "Dressed":
        """Put the identity before the system prompt, where the mark of the stable part covers it; spell tools."""
        offered = {tool.name for tool in request.tools}
        spelt = {
            name: wire
            for name in offered
            if (wire := _SPELLINGS.get(name.casefold(), name)) != name and wire not in offered
        }
        dressed = replace(
            request,
            system=(IDENTITY, *request.system),
            tools=tuple(_spell(tool, spelt) for tool in request.tools) if spelt else request.tools,
            messages=tuple(_spell_calls(message, spelt) for message in request.messages) if spelt else request.messages,
        )
        return cls(dressed, MappingProxyType({wire: name for name, wire in spelt.items()}))

    def watch(self, on_delta: OnDelta) -> OnDelta:
        """The same watcher, for deltas with wire names."""
        if not self.names:
            return on_delta

        def take(delta: StreamDelta) -> None:
            if isinstance(delta, ArgumentsDelta):
                delta = replace(delta, name=self.names.get(delta.name, delta.name))
            on_delta(delta)

        return take

    def undress(self, reply: ModelReply) -> ModelReply:
        """The answer with our own names."""
        if not self.names:
            return reply
        return replace(reply, parts=tuple(_rename(part, self.names) for part in reply.parts))


def _spell(tool: ToolSpec, spelt: dict[str, str]) -> ToolSpec:
    if tool.name not in spelt:
        return tool
    known = _renamed.get(id(tool))
    if known is None or known[0] is not tool:
        if len(_renamed) >= _KEPT:
            _renamed.clear()
        known = _renamed[id(tool)] = (tool, replace(tool, name=spelt[tool.name]))
    return known[1]


def _spell_calls(message: ModelMessage, spelt: dict[str, str]) -> ModelMessage:
    if not any(call.name in spelt for call in message.tool_calls):
        return message
    return replace(message, parts=tuple(_rename(part, spelt) for part in message.parts))


def _rename(part: Part, names: "dict[str, str] | MappingProxyType[str, str]") -> Part:
    return replace(part, name=names[part.name]) if isinstance(part, ToolCall) and part.name in names else part
