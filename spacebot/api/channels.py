"""Conversations as an owner sees them: which there are, what was said, what runs, why a message fared as it did.

Floor:   api
Source:  control spec 4.5
"""

from dataclasses import asdict
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spacebot.api.requests import AGENT, DONE, Api, Body, Param, either, maybe, number, read_body, required, route
from spacebot.api.sessions import message_object
from spacebot.api.system import cancel_process
from spacebot.api.timeline import (
    BRANCH_RUN,
    CHANNEL,
    FATE,
    MESSAGE,
    STATUS,
    WORKER_RUN,
    channels_object,
    timeline_object,
)
from spacebot.base.errors import NotFoundError
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind
from spacebot.conversations.records import Fate

PAGE, MAX_PAGE = 20, 100
CHANNELS, MAX_CHANNELS = 100, 500


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
        of_one = Param("agent_id", "only of this agent; all agents when it is left out")
        return [
            route(
                "/api/channels",
                self.list_channels,
                query=[
                    of_one,
                    Param("limit", "conversations", int, CHANNELS, low=1, high=MAX_CHANNELS),
                    Param("before", "`before` of the page that is known"),
                    Param("platform", "only of this platform"),
                    Param("contains", "what a name or an id must hold"),
                ],
                answer={"channels": [CHANNEL], "total": int, "has_more": bool, "before": maybe(str)},
            ),
            route(
                "/api/channels/messages",
                self.messages,
                query=[
                    AGENT,
                    Param("channel_id", "the conversation", is_needed=True),
                    Param("limit", "items", int, PAGE, low=1, high=MAX_PAGE),
                    Param("before", "`before` of the page that is known, or the number of a message"),
                ],
                answer={
                    "items": [either({"type": str, **MESSAGE}, BRANCH_RUN, WORKER_RUN)],
                    "has_more": bool,
                    "before": maybe(str),
                },
            ),
            route("/api/channels/status", self.status, query=[of_one], answer={"*": STATUS}),
            route("/api/channels/cancel", self.cancel, "POST", body=CancelInChannelBody, answer=DONE),
            route("/api/messages/{message_id}/fate", self.fate, query=[of_one], answer=FATE),
        ]

    async def list_channels(self, request: Request) -> Response:
        """The conversations of all agents, or of one, the latest first."""
        query = request.query_params
        live = {(node.agent_id, node.channel_id) for node in self._api.tree.of_kind(NodeKind.CHANNEL)}
        return JSONResponse(
            await channels_object(
                self._api.agents(query.get("agent_id")),
                live,
                limit=number(request, "limit", CHANNELS, low=1, high=MAX_CHANNELS) or CHANNELS,
                before=query.get("before"),
                platform=query.get("platform") or None,
                words=query.get("contains", "").strip() or None,
            )
        )

    async def messages(self, request: Request) -> Response:
        """A page of a conversation, oldest first: messages, branches and workers in one order."""
        agent = self._api.agent(request.query_params.get("agent_id"))
        channel_id = ConversationId(required(request, "channel_id"))
        limit = number(request, "limit", PAGE, low=1, high=MAX_PAGE) or PAGE
        before = request.query_params.get("before")
        return JSONResponse(await timeline_object(agent, channel_id, limit=limit, before=before))

    async def status(self, request: Request) -> Response:
        """What each live channel is doing."""
        agents = self._api.agents(request.query_params.get("agent_id"))
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
        agents = self._api.agents(request.query_params.get("agent_id"))
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
