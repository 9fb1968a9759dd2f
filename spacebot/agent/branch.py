"""A branch: a fork of the conversation that thinks with memory and returns a conclusion.

Floor:  agent
Source: process spec 6
"""

from collections.abc import Sequence

from spacebot.agent.engine import Ending, Engine, last_words
from spacebot.agent.parts import AgentParts
from spacebot.agent.turn import bridged
from spacebot.base.clock import format_local
from spacebot.base.redaction import scrub
from spacebot.base.tree import Node, NodeState, Outcome
from spacebot.conversations.records import BranchRun
from spacebot.llm.complexity import Complexity
from spacebot.llm.messages import ModelMessage, ProcessKind, SystemBlock
from spacebot.memory.types import Viewer
from spacebot.tools.contract import Tool
from spacebot.tools.delegation import SpawnWorker


async def run_branch(
    parts: AgentParts,
    node: Node,
    run: BranchRun,
    *,
    fork: Sequence[ModelMessage],
    tools: Sequence[Tool],
    viewer: Viewer,
    complexity: Complexity | None = None,
) -> Outcome:
    """Think until there is a conclusion.

    Args:
        fork: the conversation as it stood when the branch was asked for.
        viewer: for whom memories are read.
        tools: memory tools, and `spawn_worker`, whose success ends the branch.
        complexity: of what the person said who caused it; None after a restart, where nobody knows any more.

    Errors: ModelError when no model answers; the caller makes it the branch's end.
    """
    system = parts.prompts.render(
        "BRANCH",
        current_time=format_local(parts.clock.now(), parts.zone),
        memory_bulletin=await parts.bulletin(viewer),
        workspace_dir=str(parts.paths.workspace),
    )
    by_name = {tool.name: tool for tool in tools}
    engine = Engine(
        model=parts.model,
        kind=ProcessKind.BRANCH,
        node=node,
        events=parts.events,
        system=(SystemBlock(system),),
        tools=by_name,
        specs=tuple(parts.prompts.tool_spec(tool) for tool in tools),
        window=lambda: parts.window(ProcessKind.BRANCH),
        overflow_note=parts.prompts.render("fragments/overflow"),
        complexity=complexity,
    )
    messages = bridged(fork, ModelMessage.user(run.description), parts.prompts.render("fragments/bridge"))
    own = len(messages)
    result = await engine.run(messages, budget=parts.settings().branch_max_turns)
    match result.ending:
        case Ending.TEXT:
            if not result.text:
                return Outcome(NodeState.FAILED, "the branch ended without a conclusion")
            return Outcome(NodeState.DONE, scrub(result.text))
        case Ending.TOOL:
            return Outcome(NodeState.DONE, f"Handed to a worker, whose result comes by itself ({SpawnWorker.name}).")
        case Ending.BUDGET:
            words = last_words(messages[own:])
            if not words:
                return Outcome(NodeState.FAILED, "the branch used up its model calls without a conclusion")
            return Outcome(NodeState.PARTIAL, scrub(words))
