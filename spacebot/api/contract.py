"""What the HTTP and control faces need of the parts below; filled by `app.py`.

Floor: api
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spacebot.agent.captures import Captures
from spacebot.agent.cortex import Cortex
from spacebot.agent.cortex_chat import CortexChat
from spacebot.agent.delivery import Delivery
from spacebot.agent.forgetting import ForgottenPerson, Traces
from spacebot.agent.ingestion import Ingestion
from spacebot.agent.mcp import McpServers
from spacebot.agent.profile import Profile
from spacebot.agent.roster import AgentView
from spacebot.agent.scheduled import Schedules
from spacebot.agent.skill_desk import SkillDesk
from spacebot.agent.updates import UpdateCheck
from spacebot.agent.usage import UsageDesk
from spacebot.agent.worker_desk import WorkerDesk
from spacebot.api.tally import HttpFigures
from spacebot.base.errors import SpacebotError
from spacebot.base.ids import AgentId
from spacebot.base.paths import InstancePaths
from spacebot.config.edit import ConfigEditor
from spacebot.config.load import LoadedConfig
from spacebot.config.model import Config
from spacebot.config.store import ReloadReport
from spacebot.conversations.activity import Activity
from spacebot.conversations.log import Conversations
from spacebot.conversations.records import Accepted
from spacebot.llm.catalogue import ModelCatalogue
from spacebot.llm.explain import RouteExplanation
from spacebot.llm.manager import ModelManager
from spacebot.llm.messages import ProcessKind
from spacebot.memory.maintenance import MaintenancePolicy
from spacebot.memory.memory import AgentMemory
from spacebot.memory.transfer import MemoryTransfer
from spacebot.memory.views import MemoryViews
from spacebot.messaging.messages import InboundMessage
from spacebot.messaging.states import AdapterState


class AgentHandle(Protocol):
    """One running agent, as seen from outside."""

    @property
    def id(self) -> AgentId:
        """The agent's name."""
        ...

    @property
    def is_paused(self) -> bool:
        """Whether it begins nothing by itself."""
        ...

    @property
    def activity(self) -> Activity:
        """How much was said and done, in numbers."""
        ...

    async def identity(self) -> Mapping[str, str]:
        """The texts of SOUL.md, IDENTITY.md and USER.md as `soul`, `identity`, `user`. Errors: ConfigError."""
        ...

    async def write_identity(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        """Write some of these texts; they count at once. Returns all three. Errors: RefusedError, ConfigError."""
        ...

    @property
    def conversations(self) -> Conversations:
        """The agent's durable log."""
        ...

    @property
    def delivery(self) -> Delivery:
        """What it sends to platforms."""
        ...

    @property
    def model_label(self) -> str:
        """The model that its channels talk with, such as `demo/demo`."""
        ...

    async def accept(self, message: InboundMessage) -> Accepted:
        """Journal a message and hand it to its channel; returns as soon as it is on disk.

        Errors: RefusedError (too long), StorageError (not accepted).
        """
        ...

    def status_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        """What each live channel is doing: channel id -> active_branches, active_workers, completed_items."""
        ...

    async def memory_stats(self) -> Mapping[str, Any]:
        """Counts of the memory store."""
        ...

    @property
    def memory(self) -> AgentMemory:
        """What the agent knows."""
        ...

    @property
    def memory_views(self) -> MemoryViews:
        """The same for looking at it: pages, graph, history."""
        ...

    @property
    def maintenance_policy(self) -> MaintenancePolicy:
        """How its memory is looked after, as the live configuration has it."""
        ...

    @property
    def cortex(self) -> Cortex:
        """What looks after its memory and processes."""
        ...

    async def briefing(self) -> str:
        """The cortex's bulletin as conversations see it now; empty while there is none."""
        ...

    async def profile(self) -> Profile | None:
        """The card that the agent shows of itself. Errors: StorageError."""
        ...

    @property
    def cortex_chat(self) -> CortexChat:
        """The owner's console."""
        ...

    @property
    def transfer(self) -> MemoryTransfer:
        """Export and import of the same."""
        ...

    @property
    def usage(self) -> UsageDesk:
        """What its model calls cost, and its budget."""
        ...

    @property
    def captures(self) -> Captures:
        """What its models saw."""
        ...

    async def traces_of(self, person: str) -> Traces:
        """How much there is of a person (platform:user). Errors: RefusedError, StorageError."""
        ...

    async def forget_person(self, person: str, *, reason: str) -> ForgottenPerson:
        """Erase everything of a person (platform:user). Errors: RefusedError, StorageError."""
        ...

    @property
    def schedules(self) -> Schedules:
        """What it does by itself, at set times."""
        ...

    @property
    def workers(self) -> WorkerDesk:
        """Its workers, live and ended."""
        ...

    @property
    def mcp(self) -> McpServers:
        """The servers whose tools its workers have."""
        ...

    @property
    def skill_desk(self) -> SkillDesk:
        """The recipes that its workers know, for its owner."""
        ...

    @property
    def ingestion(self) -> Ingestion:
        """The drop folder, whose documents become memories."""
        ...


class MessagingView(Protocol):
    """The adapters, as seen from outside."""

    def states(self) -> Sequence[AdapterState]:
        """How each of them is now, in the order of the configuration."""
        ...

    async def probe(self, key: str) -> str:
        """Ask an adapter's platform whether all is well; returns what it says, for people.

        Errors: NotFoundError when it is not in service; DeliveryError.
        """
        ...

    async def send_test(self, address: str, text: str) -> str:
        """Send a text to `adapter:target`; returns where it went, for people.

        Errors: NotFoundError, RefusedError for the address; DeliveryError.
        """
        ...


class AgentsView(Protocol):
    """All agents that the configuration names, live or not; `agent/roster.py`."""

    def views(self) -> Sequence[AgentView]:
        """How each of them is, in the order of the configuration."""
        ...

    async def settled(self, agent_id: str | None = None) -> None:
        """Wait until one, or all, are as the configuration wants it, or have failed at it."""
        ...

    async def pause(self, agent_id: str, *, is_on: bool) -> None:
        """Pause one, or let it go on. Errors: NotFoundError, BusyError, StorageError."""
        ...


class Program(Protocol):
    """The running program."""

    @property
    def agents(self) -> Mapping[AgentId, AgentHandle]:
        """All live agents."""
        ...

    @property
    def roster(self) -> AgentsView:
        """All agents, those that do not run included."""
        ...

    @property
    def default_agent_id(self) -> AgentId:
        """The agent that is asked where none is named; it may not run."""
        ...

    def why_absent(self, agent_id: str) -> SpacebotError:
        """What to tell somebody who asks for an agent that does not run."""
        ...

    @property
    def http(self) -> HttpFigures:
        """What the API has answered, counted."""
        ...

    @property
    def sandbox(self) -> str:
        """What contains the commands of workers, in words."""
        ...

    @property
    def config(self) -> Config:
        """The configuration as it is now."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What the owner should know about the configuration file."""
        ...

    @property
    def loaded(self) -> LoadedConfig:
        """The same with the owner's own words and where each value comes from."""
        ...

    @property
    def editor(self) -> ConfigEditor:
        """Changes the configuration file; `reload_config` makes a change count."""
        ...

    @property
    def models(self) -> ModelManager:
        """The way to models."""
        ...

    @property
    def catalogue(self) -> ModelCatalogue:
        """What models there are and what they cost."""
        ...

    @property
    def paths(self) -> InstancePaths:
        """Where its files lie."""
        ...

    @property
    def updates(self) -> UpdateCheck:
        """What is known of newer releases."""
        ...

    @property
    def messaging(self) -> MessagingView:
        """The adapters."""
        ...

    def explain_route(
        self, agent_id: AgentId, text: str, process: ProcessKind, task_type: str | None
    ) -> RouteExplanation:
        """Which model of an agent would answer a text now, and why."""
        ...

    async def reload_config(self) -> ReloadReport:
        """Read the configuration file again; a broken one changes nothing."""
        ...

    async def reload_prompts(self) -> Sequence[str]:
        """Read all templates and identity files again; returns the names that changed.

        Errors: ConfigError when one is broken; the old ones stay in use.
        """
        ...

    def note_visitor(self) -> None:
        """Somebody is here: slow parts may warm up in the background."""
        ...

    def request_stop(self, *, restart: bool = False) -> None:
        """Drain and end the program."""
        ...
