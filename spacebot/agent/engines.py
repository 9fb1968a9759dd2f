"""The engine of a process that works for the agent itself, as all of them are put together.

Floor: agent
"""

from collections.abc import Sequence

from spacebot.agent.engine import Engine
from spacebot.agent.parts import AgentParts
from spacebot.base.tree import Node
from spacebot.llm.messages import ProcessKind, SystemBlock
from spacebot.tools.contract import Tool


def engine_of(
    parts: AgentParts,
    kind: ProcessKind,
    node: Node,
    system: str,
    tools: Sequence[Tool],
    *,
    task_type: str | None = None,
) -> Engine:
    """An engine with a system prompt and tools.

    Args:
        kind: decides the model's route and window.
        task_type: a finer name for routing.
    """
    return Engine(
        model=parts.model,
        kind=kind,
        node=node,
        events=parts.events,
        system=(SystemBlock(system),),
        tools={tool.name: tool for tool in tools},
        specs=tuple(parts.prompts.tool_spec(tool) for tool in tools),
        window=lambda: parts.window(kind),
        overflow_note=parts.prompts.render("fragments/overflow"),
        task_type=task_type,
    )
