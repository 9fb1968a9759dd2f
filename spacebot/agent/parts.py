"""What all processes of one agent share. One frozen bundle, made by `agent.py`, not passed below this floor.

Floor: agent
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import tzinfo
from functools import lru_cache
from typing import Protocol

import trio

from spacebot.agent.attachments import AttachmentDesk
from spacebot.agent.bulletin import CANDIDATES, Briefing, known_groups
from spacebot.agent.crossing import Crossing
from spacebot.agent.delivery import Delivery
from spacebot.agent.forgetting import Forgetting
from spacebot.agent.mcp import McpServers
from spacebot.agent.prompts import Prompts
from spacebot.agent.scheduled import Schedules
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.base.clock import Clock, parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.events import EventBus
from spacebot.base.fetch import Fetcher
from spacebot.base.ids import AgentId
from spacebot.base.paths import AgentPaths
from spacebot.base.tree import Tree
from spacebot.config.model import AgentConfig
from spacebot.conversations.log import Conversations
from spacebot.conversations.memoranda import Memoranda
from spacebot.conversations.message_search import MessageSearch
from spacebot.conversations.rooms import Rooms
from spacebot.llm.messages import Model, ProcessKind
from spacebot.memory.memory import AgentMemory
from spacebot.memory.types import Viewer
from spacebot.storage.database import Database
from spacebot.storage.settings import Settings
from spacebot.tools.browser.session import Browsers
from spacebot.tools.opencode.pool import OpenCode
from spacebot.tools.permissions import Gate
from spacebot.tools.sandbox import Backend, Containment
from spacebot.tools.skills import SkillShelf


class AgentModel(Model, Protocol):
    """The model of one agent, which also knows how much it reads."""

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        ...

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: ModelError."""
        ...


class ModelSource(Protocol):
    """Where agents get their models: the model manager, or a script in tests."""

    def for_agent(self, settings: Callable[[], AgentConfig]) -> AgentModel:
        """The model of one agent; its settings are read anew at each call."""
        ...


class Pause:
    """Whether the agent begins nothing: no turn, no schedule's run, no duty, no document. It outlives a restart."""

    _KEY = "agent.paused"

    def __init__(self, database: Database) -> None:
        self._settings = Settings(database)
        self.is_on = False

    async def load(self) -> None:
        """Find out how the last life left it. Errors: StorageError."""
        self.is_on = await self._settings.get(self._KEY) == "yes"

    async def put(self, *, is_on: bool) -> None:
        """Keep it, then let it count. Errors: StorageError."""
        await self._settings.set(**{self._KEY: "yes" if is_on else "no"})
        self.is_on = is_on


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentParts:
    """The open parts of one agent.

    Args:
        settings: the agent's table of the live configuration; read at use time.
        window: tokens that a request of a kind of process may have, answer included.
        gate: what the owner permits, asked by every tool at every call.
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
    rooms: Rooms
    delivery: Delivery
    crossing: Crossing
    attachments: AttachmentDesk
    memoranda: Memoranda
    messages: MessageSearch
    memory: AgentMemory
    briefing: Briefing
    forgetting: Forgetting
    schedules: Schedules
    workers: WorkerDesk
    gate: Gate
    containment: Containment
    browsers: Browsers
    probe: Callable[[], Awaitable[Backend]]
    fetcher: Fetcher
    skills: SkillShelf
    mcp: McpServers
    opencode: OpenCode
    pause: Pause
    events: EventBus
    tree: Tree
    clock: Clock
    quiet: trio.CapacityLimiter  # runs that nobody waits for: few at once, whatever the number of channels

    async def bulletin(self, viewer: Viewer) -> str:
        """What is known and important as far as this viewer may see it, and the cortex's bulletin; safe in prompts.

        The same text from turn to turn until something is saved, changed or forgotten.
        """
        memories, bulletin = await self.memory.context(CANDIDATES, viewer), await self.briefing.text()
        if not memories and not bulletin:
            return ""
        groups = known_groups(memories, self.zone)
        return self.prompts.render("fragments/known", groups=groups, memory_bulletin=bulletin)

    def skills_prompt(self, fragment: str) -> str:
        """The list of skills in a fragment's words; empty when there are none."""
        skills = self.skills.index()
        return self.prompts.render(fragment, skills=skills) if skills else ""

    @property
    def zone(self) -> tzinfo | None:
        """The zone in which people read times; None is the machine's."""
        return _zone(self.settings().user_timezone)


@lru_cache(maxsize=64)
def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return parse_zone(name)
    except ConfigError:
        return None  # reported when the configuration was read
