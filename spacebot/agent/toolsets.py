"""Which process gets which tools. Instances belong to one process, so a branch's tool cannot leak into a channel.

Floor:  agent
Source: tools spec 2
"""

from spacebot.agent.parts import AgentParts
from spacebot.agent.transcripts import Transcripts
from spacebot.base.events import EventKind
from spacebot.base.tree import Node
from spacebot.conversations.records import BranchRun
from spacebot.memory.types import Provenance
from spacebot.tools.contract import Tool
from spacebot.tools.delegation import ChannelHandle, SpawnWorker
from spacebot.tools.files import FileTool
from spacebot.tools.memory import ChannelRecall, MemoryDelete, MemoryRecall, MemorySave
from spacebot.tools.shell import ExecTool, ShellTool


def branch_tools(
    parts: AgentParts, channel: ChannelHandle, node: Node, run: BranchRun, provenance: Provenance
) -> tuple[Tool, ...]:
    """Memory, transcripts of other conversations, and one worker."""
    return (
        MemorySave(memory=parts.memory, provenance=provenance),
        MemoryRecall(memory=parts.memory, viewer=provenance.viewer),
        MemoryDelete(memory=parts.memory, viewer=provenance.viewer),
        ChannelRecall(transcripts=Transcripts(parts.conversations), visible_to=run.channel_id),
        SpawnWorker(channel, origin=node),
    )


def worker_tools(parts: AgentParts, node: Node) -> tuple[Tool, ...]:
    """Commands and files; the status tool is the worker's own."""

    def show(stream: str, line: str) -> None:
        parts.events.emit(
            EventKind.TOOL_OUTPUT,
            agent_id=node.agent_id,
            channel_id=node.channel_id,
            process_id=node.id,
            stream=stream,
            line=line,
        )

    return (
        ShellTool(containment=parts.containment, on_output=show),
        ExecTool(containment=parts.containment, on_output=show),
        FileTool(containment=parts.containment),
    )
