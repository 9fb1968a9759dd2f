"""Conversations as an owner sees them: which there are, what was said, what runs, why a message fared as it did.

Floor:   api
Source:  control spec 4.5
"""

from dataclasses import asdict
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.requests import Api, Body, number, read_body, required
from spacebot.api.sessions import message_object
from spacebot.api.system import cancel_process
from spacebot.base.errors import NotFoundError
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import Fate

PAGE, MAX_PAGE = 20, 100


class CancelInChannelBody(Body):
    """`POST /api/channels/cancel`."""

    channel_id: str
    process_type: Literal["worker", "branch"]
    process_id: str
    agent_id: str | None = None


class ChannelRoutes:
    """Routes under `/api/channels` and `/api/messages`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The table."""
        return [
            Route("/api/channels", self.list_channels),
            Route("/api/channels/messages", self.messages),
            Route("/api/channels/status", self.status),
            Route("/api/channels/cancel", self.cancel, methods=["POST"]),
            Route("/api/messages/{message_id}/fate", self.fate),
        ]

    async def list_channels(self, _: Request) -> Response:
        """All known conversations of all agents."""
        live = {(node.agent_id, node.channel_id) for node in self._api.tree.of_kind(NodeKind.CHANNEL)}
        channels = [
            {
                "agent_id": agent.id,
                "id": record.id,
                "platform": record.platform,
                "display_name": record.display_name,
                "is_direct": record.is_direct,
                "is_active": True,
                "is_live": (agent.id, record.id) in live,
                "last_activity_at": record.last_activity_at,
                "created_at": record.created_at,
            }
            for agent in self._api.program.agents.values()
            for record in await agent.conversations.channels()
        ]
        return JSONResponse({"channels": channels})

    async def messages(self, request: Request) -> Response:
        """A page of a conversation, oldest first; `before` is the number of the first message already known."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        channel_id = ConversationId(required(request, "channel_id"))
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        before = number(request, "before", None)
        rows = await agent.conversations.history(channel_id, limit=limit + 1, before_seq=before)
        page = rows[-limit:]
        items = [{"type": "message", **message_object(row)} for row in page]
        return JSONResponse({"items": items, "has_more": len(rows) > limit, "before": page[0].seq if page else None})

    async def status(self, request: Request) -> Response:
        """What each live channel is doing."""
        wanted = request.query_params.get("agent_id")
        agents = [self._api.agent(wanted)] if wanted is not None else list(self._api.program.agents.values())
        blocks: dict[str, Any] = {}
        for agent in agents:
            blocks.update({channel_id: dict(block) for channel_id, block in agent.status_blocks().items()})
        return JSONResponse(blocks)

    async def cancel(self, request: Request) -> Response:
        """End a branch or worker of a channel."""
        body = await read_body(request, CancelInChannelBody)
        return cancel_process(
            self._api.tree,
            body.process_id,
            kind=NodeKind(body.process_type),
            agent_id=body.agent_id,
            channel_id=body.channel_id,
        )

    async def fate(self, request: Request) -> Response:
        """What became of one inbound message and why."""
        message_id = request.path_params["message_id"]
        wanted = request.query_params.get("agent_id")
        agents = [self._api.agent(wanted)] if wanted is not None else list(self._api.program.agents.values())
        for agent in agents:
            if (fate := await agent.conversations.fate(message_id)) is not None:
                return JSONResponse({"agent_id": agent.id, **fate_object(fate)})
        raise NotFoundError(f"no message {message_id[:80]!r} was ever accepted here")


def fate_object(fate: Fate) -> dict[str, Any]:
    """The ledger's word as readers get it."""
    return {
        **{k: v for k, v in asdict(fate).items() if k not in ("message", "replies", "runs")},
        "channel_id": fate.message.channel_id,
        "message": message_object(fate.message),
        "replies": [message_object(reply) for reply in fate.replies],
        "runs": [dict(run) for run in fate.runs],
    }
