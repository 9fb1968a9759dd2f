"""Figures for Prometheus, on a port of their own: adapters, what waits, what runs, how much is known.

Names of adapters and agents are the only words in it: no person, no conversation, nothing that was said.

Tool calls and workers are counted as their ends are told on the bus: what has begun and never ends leaves nothing here.

Flow:    GET /metrics -> gather -> to_text; GET /health; events -> Tally
Floor:   api
Source:  control spec 6.5; the text format 0.0.4 of prometheus.io/docs/instrumenting/exposition_formats
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.mcp import McpState
from spacebot.api.contract import Program
from spacebot.api.messaging_control import adapter_instances, ask_agents, queued
from spacebot.api.server import serve_asgi
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import MetricsConfig
from spacebot.messaging.states import Connection

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

CALL_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds; control spec 6.5
WORKER_BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MOST_SERIES = 500  # of tools; further ones are counted as `OTHER`
UNKNOWN, OTHER = "unknown", "other"
_COUNTED = frozenset({EventKind.TOOL_COMPLETED, EventKind.WORKER_COMPLETED})

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ADAPTER_TOTALS = {
    "received": ("spacebot_messages_received_total", "Messages taken from people since the program started."),
    "sent": ("spacebot_messages_sent_total", "Messages delivered since the program started."),
    "failed": ("spacebot_messages_undelivered_total", "Messages given up since the program started."),
}
_PROCESSES = {
    NodeKind.CHANNEL: ("spacebot_active_channels", "Conversations that are in memory."),
    NodeKind.BRANCH: ("spacebot_active_branches", "Branches that run."),
    NodeKind.WORKER: ("spacebot_active_workers", "Workers that run or wait for input."),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, `counter` or `gauge`, what it says, and its labelled values."""

    name: str
    kind: str
    about: str
    samples: Sequence[tuple[Mapping[str, str], int | float]]

    def lines(self) -> Iterator[str]:
        """The values, one a line."""
        return (_line(self.name, labels, value) for labels, value in self.samples)


class Spread:
    """How values spread over the bounds of a histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        """Its series in the text format."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield _line(f"{name}_bucket", {**labels, "le": bound}, total)
        yield _line(f"{name}_sum", labels, round(self._sum, 4))
        yield _line(f"{name}_count", labels, total)


@dataclass(frozen=True, slots=True)
class Histogram:
    """One metric of spans of time, in seconds."""

    name: str
    about: str
    spreads: Sequence[tuple[Mapping[str, str], Spread]]
    kind = "histogram"

    def lines(self) -> Iterator[str]:
        """The series of all its labels."""
        for labels, spread in self.spreads:
            yield from spread.lines(self.name, labels)


class Tally:
    """Counts what has ended since the program started."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str, str], Spread] = {}  # agent, tool, kind of process
        self._workers: dict[tuple[str, str, str], Spread] = {}  # agent, what did the work, how it ended

    def hear(self, event: ProcessEvent) -> None:
        """Count the end of a tool call or a worker."""
        fields, agent = event.fields, event.agent_id or ""
        duration = fields.get("duration_s")
        if not isinstance(duration, float | int):
            return
        if event.kind is EventKind.WORKER_COMPLETED:
            key = (agent, str(fields.get("worker_type")), str(fields.get("state")))
            self._workers.setdefault(key, Spread(WORKER_BOUNDS)).add(duration)
            return
        tool = str(fields.get("tool_name")) if fields.get("is_known") else UNKNOWN  # models make up names
        key = (agent, tool, str(fields.get("process_type")))
        if key not in self._calls and len(self._calls) >= MOST_SERIES:
            key = (agent, OTHER, key[2])
        self._calls.setdefault(key, Spread(CALL_BOUNDS)).add(duration)

    def families(self) -> list[Family | Histogram]:
        """All figures."""
        calls = [
            ({"agent_id": agent, "tool_name": tool, "process_type": kind}, spread)
            for (agent, tool, kind), spread in self._calls.items()
        ]
        workers = [
            ({"agent_id": agent, "worker_type": what, "state": state}, spread)
            for (agent, what, state), spread in self._workers.items()
        ]
        return [
            Family(
                "spacebot_tool_calls_total",
                "counter",
                "Calls of tools that have ended.",
                [(labels, spread.count) for labels, spread in calls],
            ),
            Histogram("spacebot_tool_call_duration_seconds", "How long calls of tools took.", calls),
            Histogram("spacebot_worker_duration_seconds", "How long workers lived.", workers),
        ]


def to_text(families: Sequence[Family | Histogram]) -> str:
    """The families in Prometheus' text format, with escaped labels."""
    lines: list[str] = []
    for family in families:
        lines += (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}", *family.lines())
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


async def serve_metrics(
    program: Program,
    config: MetricsConfig,
    *,
    tree: Tree,
    events: EventBus,
    stop: trio.Event,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; started with the bound addresses.

    Errors: ConfigError when the port cannot be bound, before `started`.
    """

    tally = Tally()

    async def metrics(request: Request) -> Response:
        text = to_text([*await gather(program, tree), *tally.families()])
        return Response(text.encode("utf-8", "replace"), media_type=CONTENT_TYPE)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/metrics", metrics), Route("/health", health)])
    with events.counted(_COUNTED, tally.hear):
        await serve_asgi(app, config.bind, config.port, name="metrics", stop=stop, task_status=task_status)


async def gather(program: Program, tree: Tree) -> list[Family]:
    """All figures as they are now; those of a store that fails or hangs are left out."""
    return [*await _adapters(program), *_processes(program, tree), *_servers(program), await _memories(program)]


async def _adapters(program: Program) -> list[Family]:
    waiting = await queued(program)
    instances = adapter_instances(program, waiting)
    left = {**waiting, **{each["key"]: each["queued"] for each in instances}}  # also of accounts that are gone
    names = [{"adapter": each["key"]} for each in instances]
    totals = [
        Family(name, "counter", about, [(label, each[field]) for label, each in zip(names, instances, strict=True)])
        for field, (name, about) in _ADAPTER_TOTALS.items()
    ]
    return [
        Family(
            "spacebot_adapter_up",
            "gauge",
            "Whether an adapter is connected to its platform.",
            [
                ({"adapter": each["key"], "platform": each["platform"]}, int(each["state"] == Connection.CONNECTED))
                for each in instances
            ],
        ),
        Family(
            "spacebot_adapter_state",
            "gauge",
            "The state of an adapter: 1 for the one that it is in.",
            [
                ({"adapter": each["key"], "state": str(state)}, int(each["state"] == state))
                for each in instances
                for state in Connection
            ],
        ),
        *totals,
        Family(
            "spacebot_outbox_queued",
            "gauge",
            "Messages that wait to be delivered.",
            [({"adapter": key}, count) for key, count in left.items()],
        ),
    ]


def _processes(program: Program, tree: Tree) -> list[Family]:
    families = []
    for kind, (name, about) in _PROCESSES.items():
        running = Counter(node.agent_id for node in tree.of_kind(kind))
        samples = [({"agent_id": str(agent_id)}, running[agent_id]) for agent_id in program.agents]
        families.append(Family(name, "gauge", about, samples))
    return families


def _servers(program: Program) -> list[Family]:
    """MCP servers; their names and those of agents are the owner's words, tools are only counted."""
    views = [({"agent_id": str(agent.id)}, view) for agent in program.agents.values() for view in agent.mcp.views()]
    states = Counter((of["agent_id"], view.state) for of, view in views if view.enabled)
    named = [({**of, "server": view.name}, view) for of, view in views]
    figures = {
        "spacebot_mcp_connection_attempts_total": ("Attempts to connect to an MCP server.", "attempts"),
        "spacebot_mcp_reconnects_total": ("Connections to an MCP server that were lost and tried anew.", "reconnects"),
        "spacebot_mcp_tool_calls_total": ("Calls of an MCP server's tools.", "calls"),
        "spacebot_mcp_tool_call_failures_total": ("Calls of an MCP server's tools that failed.", "failed_calls"),
        "spacebot_mcp_tool_call_duration_seconds_total": ("Time in calls of an MCP server's tools.", "call_seconds"),
    }
    return [
        Family(
            "spacebot_mcp_connections",
            "gauge",
            "MCP servers that are switched on, by the state of their connection.",
            [
                ({"agent_id": str(agent_id), "state": str(state)}, states[str(agent_id), state])
                for agent_id in program.agents
                for state in McpState
            ],
        ),
        Family(
            "spacebot_mcp_tools_registered",
            "gauge",
            "Tools that connected MCP servers offer.",
            [(label, len(view.tools)) for label, view in named],
        ),
        *(
            Family(name, "counter", about, [(label, round(getattr(view.figures, field), 3)) for label, view in named])
            for name, (about, field) in figures.items()
        ),
    ]


async def _memories(program: Program) -> Family:
    stats = await ask_agents(program, "memories", lambda agent: agent.memory.stats())
    samples = [({"agent_id": str(agent_id)}, each.total) for agent_id, each in sorted(stats.items())]
    return Family("spacebot_memory_entry_count", "gauge", "Memories that an agent keeps.", samples)
