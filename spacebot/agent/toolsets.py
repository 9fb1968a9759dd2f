"""Which process gets which tools. Instances belong to one process, so a branch's tool cannot leak into a channel.

Floor:  agent
Source: tools spec 2
"""

from collections.abc import Sequence

from spacebot.agent.parts import AgentParts
from spacebot.base.events import EventKind
from spacebot.base.tree import Node
from spacebot.conversations.records import Participant
from spacebot.memory.types import EVERYTHING, Provenance
from spacebot.tools.compaction import WriteSummary
from spacebot.tools.contract import Tool
from spacebot.tools.delegation import ChannelHandle, SpawnWorker
from spacebot.tools.files import FileTool
from spacebot.tools.forgetting import ForgetMe
from spacebot.tools.memory import MemoryDelete, MemoryRecall, MemorySave
from spacebot.tools.persistence import MemoryPersistenceComplete
from spacebot.tools.recall_channel import ChannelRecall
from spacebot.tools.shell import ExecTool, ShellTool
from spacebot.tools.skills import ReadSkill
from spacebot.tools.web_search import SearchService, WebSearch


def branch_tools(
    parts: AgentParts, channel: ChannelHandle, node: Node, provenance: Provenance, people: Sequence[Participant]
) -> tuple[Tool, ...]:
    """Memory, what was said here and elsewhere, and one worker."""
    return (
        MemorySave(memory=parts.memory, provenance=provenance, people=people),
        _recall(parts, provenance),
        MemoryDelete(memory=parts.memory, viewer=provenance.viewer),
        ChannelRecall(messages=parts.messages, viewer=provenance.viewer),
        ForgetMe(desk=parts.forgetting, confirmations=parts.forgetting.confirmations, provenance=provenance),
        SpawnWorker(channel, origin=node),
    )


def harvest_tools(
    parts: AgentParts, provenance: Provenance, people: Sequence[Participant]
) -> tuple[tuple[Tool, ...], WriteSummary]:
    """What the compactor may do: save memories, and hand over its summary, which is returned beside."""
    summary = WriteSummary()
    return (MemorySave(memory=parts.memory, provenance=provenance, people=people), summary), summary


def persistence_tools(
    parts: AgentParts, provenance: Provenance, people: Sequence[Participant]
) -> tuple[tuple[Tool, ...], MemorySave, MemoryPersistenceComplete]:
    """What a persistence run may do; the tools that know what was saved and reported are returned beside.

    It reads what anybody may have written, so it can neither delete nor read other conversations.
    """
    save = MemorySave(memory=parts.memory, provenance=provenance, people=people)
    complete = MemoryPersistenceComplete(save)
    return (save, _recall(parts, provenance), complete), save, complete


def console_tools(parts: AgentParts, node: Node) -> tuple[Tool, ...]:
    """What the cortex may do for the owner: look at everything, change memory, run commands in the workspace."""
    provenance = Provenance(source="cortex chat")
    return (
        MemorySave(memory=parts.memory, provenance=provenance, people=()),
        MemoryRecall(memory=parts.memory, viewer=EVERYTHING, messages=parts.messages, clock=parts.clock),
        MemoryDelete(memory=parts.memory, viewer=EVERYTHING),
        ChannelRecall(messages=parts.messages, viewer=EVERYTHING),
        *worker_tools(parts, node),
    )


def _recall(parts: AgentParts, provenance: Provenance) -> MemoryRecall:
    return MemoryRecall(memory=parts.memory, viewer=provenance.viewer, messages=parts.messages, clock=parts.clock)


def worker_tools(parts: AgentParts, node: Node) -> tuple[Tool, ...]:
    """Commands and files, what the configuration adds to them; the status tool is the worker's own."""

    def show(stream: str, line: str) -> None:
        parts.events.emit(
            EventKind.TOOL_OUTPUT,
            agent_id=node.agent_id,
            channel_id=node.channel_id,
            process_id=node.id,
            stream=stream,
            line=line,
        )

    tools: list[Tool] = [
        ShellTool(containment=parts.containment, on_output=show),
        ExecTool(containment=parts.containment, on_output=show),
        FileTool(containment=parts.containment),
    ]
    if _search_service(parts) is not None:
        tools.append(WebSearch(fetcher=parts.fetcher, service=lambda: _search_service(parts)))
    if parts.skills.skills:
        tools.append(ReadSkill(parts.skills))
    return tuple(tools)


def _search_service(parts: AgentParts) -> SearchService | None:
    settings = parts.settings()
    if settings.brave_search_key is None:
        return None
    return SearchService(settings.brave_search_key.get_secret_value(), settings.brave_search_url)
