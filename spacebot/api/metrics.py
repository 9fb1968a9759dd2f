"""Figures for Prometheus, on a port of their own: adapters, what waits, what runs, what it costs, how much is known.

Names of adapters, agents, models and tools are the only words in it: no person, no conversation, nothing that was said.

Flow:    GET /metrics -> gather (as things are now), Tally (what has happened) -> to_text; GET /health
Floor:   api
Source:  control spec 6.5
"""

from collections import Counter

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.agent.mcp import McpState
from spacebot.api.contract import Program
from spacebot.api.messaging_control import adapter_instances, ask_agents, queued
from spacebot.api.server import serve_asgi
from spacebot.api.tally import Tally
from spacebot.base.events import EventBus
from spacebot.base.figures import Family, Histogram, to_text
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import MetricsConfig
from spacebot.messaging.states import Connection

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
        text = to_text([*await gather(program, tree), *tally.families(), *program.http.families()])
        return Response(text.encode("utf-8", "replace"), media_type=CONTENT_TYPE)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/metrics", metrics), Route("/health", health)])
    with tally.listening(tree, events):
        await serve_asgi(app, config.bind, config.port, name="metrics", stop=stop, task_status=task_status)


async def gather(program: Program, tree: Tree) -> list[Family | Histogram]:
    """All figures as they are now; those of a store that fails or hangs are left out."""
    return [
        *await _adapters(program),
        *_processes(program, tree),
        *_costs(program),
        *_servers(program),
        await _memories(program),
        _embeddings(program),
    ]


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


def _costs(program: Program) -> list[Family]:
    """What models cost since the program started, as the agents' ledgers have it."""
    tokens: Counter[tuple[str, str]] = Counter()
    costs: dict[str, float] = {}
    saved: dict[str, float] = {}
    tiers: Counter[tuple[str, str, str]] = Counter()
    worker_costs: dict[str, float] = {}
    for agent_id, agent in program.agents.items():
        for key, line in agent.usage.ledger.lines.items():
            for direction in ("input", "output", "cache_read", "cache_write"):
                tokens[str(agent_id), direction] += getattr(line.usage, f"{direction}_tokens")
            name = str(agent_id)
            costs[name] = costs.get(name, 0.0) + line.cost_usd
            saved[name] = saved.get(name, 0.0) + line.saved_usd
            if key.process == NodeKind.WORKER:
                worker_costs[name] = worker_costs.get(name, 0.0) + line.cost_usd
            if key.tier is not None:
                tiers[str(agent_id), key.process, key.tier] += line.requests
    dollars = {
        "spacebot_llm_estimated_cost_dollars_total": ("What model calls cost, estimated.", costs),
        "spacebot_worker_cost_dollars_total": ("What model calls of workers cost, estimated.", worker_costs),
        "spacebot_llm_estimated_savings_dollars_total": ("What scoring prompts has saved, estimated.", saved),
    }
    return [
        Family(
            "spacebot_llm_tokens_total",
            "counter",
            "Tokens of model calls.",
            [({"agent_id": agent, "direction": direction}, count) for (agent, direction), count in tokens.items()],
        ),
        Family(
            "spacebot_prompt_tier_total",
            "counter",
            "Model calls whose model was chosen by how hard the words were.",
            [
                ({"agent_id": agent, "process_type": process, "tier": tier}, count)
                for (agent, process, tier), count in tiers.items()
            ],
        ),
        *(
            Family(name, "counter", about, [({"agent_id": agent}, round(usd, 6)) for agent, usd in sums.items()])
            for name, (about, sums) in dollars.items()
        ),
    ]


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


def _embeddings(program: Program) -> Histogram:
    return Histogram(
        "spacebot_memory_embedding_duration_seconds",
        "How long batches of texts took to embed.",
        [({"agent_id": str(agent.id)}, agent.memory.embedding_times) for agent in program.agents.values()],
    )


async def _memories(program: Program) -> Family:
    stats = await ask_agents(program, "memories", lambda agent: agent.memory.stats())
    samples = [({"agent_id": str(agent_id)}, each.total) for agent_id, each in sorted(stats.items())]
    return Family("spacebot_memory_entry_count", "gauge", "Memories that an agent keeps.", samples)
