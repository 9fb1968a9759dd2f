"""Figures for Prometheus, on a port of their own: adapters, what waits, what runs, how much is known.

Names of adapters and agents are the only words in it: no person, no conversation, nothing that was said.

Flow:    GET /metrics -> gather -> to_text; GET /health
Floor:   api
Source:  control spec 6.5; the text format 0.0.4 of prometheus.io/docs/instrumenting/exposition_formats
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import Program
from spacebot.api.messaging_control import adapter_instances, ask_agents, queued
from spacebot.api.server import serve_asgi
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import MetricsConfig
from spacebot.messaging.states import Connection

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
    samples: Sequence[tuple[Mapping[str, str], int]]


def to_text(families: Sequence[Family]) -> str:
    """The families in Prometheus' text format, with escaped labels."""
    lines: list[str] = []
    for family in families:
        lines += (f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}")
        for labels, value in family.samples:
            pairs = ",".join(f'{name}="{text.translate(_ESCAPES)}"' for name, text in labels.items())
            lines.append(f"{family.name}{{{pairs}}} {value}" if pairs else f"{family.name} {value}")
    return "".join(f"{line}\n" for line in lines)


async def serve_metrics(
    program: Program,
    config: MetricsConfig,
    *,
    tree: Tree,
    stop: trio.Event,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; started with the bound addresses.

    Errors: ConfigError when the port cannot be bound, before `started`.
    """

    async def metrics(request: Request) -> Response:
        text = to_text(await gather(program, tree))
        return Response(text.encode("utf-8", "replace"), media_type=CONTENT_TYPE)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/metrics", metrics), Route("/health", health)])
    await serve_asgi(app, config.bind, config.port, name="metrics", stop=stop, task_status=task_status)


async def gather(program: Program, tree: Tree) -> list[Family]:
    """All figures as they are now; those of a store that fails or hangs are left out."""
    return [*await _adapters(program), *_processes(program, tree), await _memories(program)]


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


async def _memories(program: Program) -> Family:
    stats = await ask_agents(program, "memories", lambda agent: agent.memory.stats())
    samples = [({"agent_id": str(agent_id)}, each.total) for agent_id, each in sorted(stats.items())]
    return Family("spacebot_memory_entry_count", "gauge", "Memories that an agent keeps.", samples)
