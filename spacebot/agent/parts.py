"""What all processes of one agent share. One frozen bundle, made by `agent.py`, not passed below this floor.

Floor: agent
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import tzinfo
from functools import lru_cache
from typing import Protocol

from spacebot.agent.prompts import Prompts
from spacebot.base.clock import Clock, parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId
from spacebot.base.paths import AgentPaths
from spacebot.base.text import cut_bytes
from spacebot.base.tree import Tree
from spacebot.config.model import AgentConfig
from spacebot.conversations.log import Conversations
from spacebot.llm.messages import Model, ProcessKind
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import Memory, Viewer
from spacebot.tools.sandbox import Backend, Containment

BULLETIN_MEMORIES = 12
BULLETIN_LINE_BYTES = 240


class AgentModel(Model, Protocol):
    """The model of one agent, which also knows how much it reads."""

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        ...


class ModelSource(Protocol):
    """Where agents get their models: the model manager, or a script in tests."""

    def for_agent(self, settings: Callable[[], AgentConfig]) -> AgentModel:
        """The model of one agent; its settings are read anew at each call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentParts:
    """The open parts of one agent.

    Args:
        settings: the agent's table of the live configuration; read at use time.
        window: tokens that a request of a kind of process may have, answer included.
        containment: the policy on paths, environment and sandbox for what workers run.
        probe: finds out, once, what can contain commands on this machine.
    """

    id: AgentId
    settings: Callable[[], AgentConfig]
    paths: AgentPaths
    model: Model
    window: Callable[[ProcessKind], int]
    prompts: Prompts
    conversations: Conversations
    memory: AgentMemory
    containment: Containment
    probe: Callable[[], Awaitable[Backend]]
    events: EventBus
    tree: Tree
    clock: Clock

    async def bulletin(self, viewer: Viewer) -> str:
        """What is known and important, a line each, as far as this viewer may see it."""
        return "\n".join(_line(memory) for memory in await self.memory.context(BULLETIN_MEMORIES, viewer))

    @property
    def zone(self) -> tzinfo | None:
        """The zone in which people read times; None is the machine's."""
        return _zone(self.settings().user_timezone)


def _line(memory: Memory) -> str:
    return f"- ({memory.memory_type}) {cut_bytes(' '.join(memory.content.split()), BULLETIN_LINE_BYTES)}"


@lru_cache(maxsize=64)
def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return parse_zone(name)
    except ConfigError:
        return None  # reported when the configuration was read
