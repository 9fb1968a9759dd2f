"""Which process gets which tools. Instances belong to one process, so a branch's tool cannot leak into a channel.

Floor:  agent
Source: tools spec 2
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from spacebot.agent.parts import AgentParts
from spacebot.base.events import EventKind
from spacebot.base.ids import ConversationId
from spacebot.base.tree import Node
from spacebot.conversations.records import Participant
from spacebot.memory.types import EVERYTHING, Provenance
from spacebot.tools.browser.session import Holder
from spacebot.tools.browser.tool import BrowserTool
from spacebot.tools.compaction import WriteSummary
from spacebot.tools.contract import Tool
from spacebot.tools.delegation import ChannelHandle, spawn_worker_tool
from spacebot.tools.files import FileTool
from spacebot.tools.forgetting import ForgetMe
from spacebot.tools.memory import MemoryDelete, MemoryRecall, MemorySave
from spacebot.tools.permissions import Right
from spacebot.tools.persistence import MemoryPersistenceComplete
from spacebot.tools.recall_channel import ChannelRecall
from spacebot.tools.sandbox import Containment
from spacebot.tools.shell import ExecTool, ShellTool
from spacebot.tools.skills import ReadSkill
from spacebot.tools.web_search import SearchService, WebSearch
from spacebot.tools.worker_inspect import WorkerInspect


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
        WorkerInspect(workers=parts.workers.archive, viewer=provenance.viewer),
        spawn_worker_tool(channel, origin=node),
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


@asynccontextmanager
async def open_console_tools(parts: AgentParts, node: Node) -> AsyncIterator[tuple[Tool, ...]]:
    """What the cortex may do for the owner: look at everything, change memory, work as a worker does."""
    provenance = Provenance(source="cortex chat")
    async with open_worker_tools(parts, node) as tools:
        yield (
            MemorySave(memory=parts.memory, provenance=provenance, people=()),
            MemoryRecall(memory=parts.memory, viewer=EVERYTHING, messages=parts.messages, clock=parts.clock),
            MemoryDelete(memory=parts.memory, viewer=EVERYTHING),
            ChannelRecall(messages=parts.messages, viewer=EVERYTHING),
            *tools,
        )


def _recall(parts: AgentParts, provenance: Provenance) -> MemoryRecall:
    return MemoryRecall(memory=parts.memory, viewer=provenance.viewer, messages=parts.messages, clock=parts.clock)


@asynccontextmanager
async def open_worker_tools(parts: AgentParts, node: Node) -> AsyncIterator[tuple[Tool, ...]]:
    """What a worker works with, as long as the block runs; what its tools have started is gone afterwards."""
    async with open_view(parts, node) as containment, parts.browsers.hold(containment) as holder:
        tools = worker_tools(parts, node, containment)
        yield (*tools, browser_tool(parts, holder, containment)) if parts.settings().browser.enabled else tools


@asynccontextmanager
async def open_view(parts: AgentParts, node: Node) -> AsyncIterator[Containment]:
    """The agent's rules as they hold for one worker: what came in direct chats is hidden, except its own chat's.

    The owner's console, which belongs to no conversation, sees everything. Its temporary files go with the worker.
    """
    parts.containment.backend = await parts.probe()
    await parts.attachments.put_away()
    opened = [] if node.channel_id is None else [parts.attachments.folder_of(ConversationId(node.channel_id))]
    view = parts.containment.view(node.id, opened=opened, sees_private=node.channel_id is None)
    limiter = view.disk_limiter
    await trio.to_thread.run_sync(view.open_folders, limiter=limiter)
    try:
        yield view
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(view.remove, limiter=limiter)


def worker_tools(parts: AgentParts, node: Node, containment: Containment) -> tuple[Tool, ...]:
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
        ShellTool(containment=containment, on_output=show),
        ExecTool(containment=containment, on_output=show),
        FileTool(containment=containment),
    ]
    if _search_service(parts) is not None:
        tools.append(WebSearch(fetcher=parts.fetcher, service=lambda: _search_service(parts), gate=parts.gate))
    if parts.skills.skills:
        tools.append(ReadSkill(parts.skills))
    return (*tools, *parts.mcp.tools())


def browser_tool(parts: AgentParts, holder: Holder, containment: Containment) -> BrowserTool:
    """The browser; what the owner denies stays visible and is explained at the call."""

    def may_evaluate() -> None:
        settings = parts.settings()
        if settings.permissions.browser_js_eval is False or not settings.browser.evaluate_enabled:
            parts.gate.require(Right.JS_EVAL, tool="browser")

    return BrowserTool(holder, secret_of=containment.tool_secret, may_evaluate=may_evaluate)


def _search_service(parts: AgentParts) -> SearchService | None:
    settings = parts.settings()
    if settings.brave_search_key is None:
        return None
    return SearchService(settings.brave_search_key.get_secret_value(), settings.brave_search_url)
