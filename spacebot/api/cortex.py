"""What an agent's cortex and memory are doing: for the owner's console and for `spacebot status`.

Flow:    agent -> agent_state -> GET /api/cortex/state, control command `state`
Floor:   api
Source:  process spec 10, memory spec 11 and 13.6
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.contract import AgentHandle, Program
from spacebot.api.requests import AGENT, Api, route
from spacebot.api.shapes import STATE
from spacebot.base.errors import StorageError
from spacebot.conversations.ingestion_log import IngestStatus

PATIENCE_S = 3.0  # for one agent's figures; who asks how the program is must hear it even if a store hangs


class CortexRoutes:
    """Routes under `/api/cortex`; its log is with the memories."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [route("/api/cortex/state", self.state, query=[AGENT], answer=STATE)]

    async def state(self, request: Request) -> Response:
        """The bulletin as conversations see it now, the agent's card, what is due, how memory and documents are."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        state = await agent_state(agent)
        profile = await agent.profile()
        return JSONResponse(
            {
                **state,
                "agent_id": agent.id,
                "bulletin": {**state["bulletin"], "text": await agent.briefing()},
                "profile": None if profile is None else asdict(profile),
            }
        )


async def agent_state(agent: AgentHandle) -> dict[str, Any]:
    """Figures of one agent as JSON values: memory, bulletin, duties, ingestion.

    Errors: StorageError.
    """
    stats = await agent.memory.stats()
    files = await agent.ingestion.files()
    counts = {status: sum(file.status is status for file in files) for status in IngestStatus}
    return {
        "memory": {
            "total": stats.total,
            "private": stats.private,
            "to_embed": stats.to_embed,
            "engine": stats.engine,
            "problem": stats.problem,
        },
        **agent.cortex.state(),
        "ingestion": {
            **asdict(agent.ingestion.state()),
            "failed": counts[IngestStatus.FAILED],
            "quarantined": counts[IngestStatus.QUARANTINED],
        },
    }


async def agent_states(program: Program) -> Mapping[str, Mapping[str, Any]]:
    """The same of all agents; one whose store fails or hangs is there with a `problem`."""
    states: dict[str, Mapping[str, Any]] = {}

    async def ask(agent: AgentHandle) -> None:
        states[agent.id] = {"problem": f"no answer within {PATIENCE_S:.0f} s"}
        with trio.move_on_after(PATIENCE_S):
            try:
                states[agent.id] = await agent_state(agent)
            except StorageError as error:
                states[agent.id] = {"problem": str(error)}

    async with trio.open_nursery() as nursery:
        for agent in program.agents.values():
            nursery.start_soon(ask, agent)
    return {agent_id: states[agent_id] for agent_id in program.agents}
