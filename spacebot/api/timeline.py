"""A conversation's timeline and the list of conversations, as readers get them.

Flow:    agents -> pages of each -> one order -> JSON
Floor:   api
Source:  control spec 4.5; process spec 14.3
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spacebot.api.contract import AgentHandle
from spacebot.api.requests import maybe
from spacebot.api.sessions import message_object
from spacebot.base.errors import RefusedError
from spacebot.base.ids import ConversationId
from spacebot.conversations.records import ChannelRecord, LoggedMessage, SentFile
from spacebot.conversations.timeline import Place, Run

MESSAGE = {
    "id": str, "seq": int, "role": str, "sender_id": maybe(str), "sender_name": maybe(str), "content": str,
    "kind": str, "reply_to": maybe(str), "turn_id": maybe(str), "created_at": str, "file": maybe(SentFile),
}  # fmt: skip
_RUN = {
    "id": str, "type": str, "turn_id": maybe(str), "reply_to": maybe(str), "state": str, "tool_calls": int,
    "started_at": str, "completed_at": maybe(str),
}  # fmt: skip
BRANCH_RUN = {**_RUN, "description": str, "conclusion": maybe(str)}
WORKER_RUN = {
    **_RUN, "task": str, "result": maybe(str), "status": str, "worker_type": str, "branch_id": maybe(str)
}  # fmt: skip
CHANNEL = {
    "agent_id": str, "id": str, "platform": str, "display_name": maybe(str), "is_direct": bool, "is_active": bool,
    "is_live": bool, "last_activity_at": str, "created_at": str,
}  # fmt: skip
STATUS = {
    "active_branches": [{"id": str, "started_at": str, "description": str}],
    "active_workers": [
        {
            "id": str, "task": str, "status": str, "state": str, "started_at": str, "notify_on_complete": bool,
            "tool_calls": int,
        }
    ],
    "completed_items": [
        {
            "id": str, "item_type": str, "description": str, "completed_at": str, "result_summary": str,
            "state": str,
        }
    ],
}  # fmt: skip
FATE = {
    "agent_id": str, "channel_id": str, "state": str, "reason": maybe(str), "attempts": int, "turn_id": maybe(str),
    "turn_state": maybe(str), "turn_detail": maybe(str), "coalesced_with": [str], "is_pending": bool,
    "message": MESSAGE, "replies": [MESSAGE],
    "runs": [
        {
            "kind": str, "id": str, "description": str, "state": str, "started_at": str, "completed_at": maybe(str),
            "model": maybe(str), "model_calls": int, "tokens": int,
        }
    ],
}  # fmt: skip


async def timeline_object(
    agent: AgentHandle, channel_id: ConversationId, *, limit: int, before: str | None
) -> dict[str, Any]:
    """A page of a conversation, oldest first. Errors: RefusedError for a cursor that is none."""
    page = await agent.conversations.timeline(channel_id, limit=limit, before=Place.parse(before) if before else None)
    return {
        "items": [item_object(item) for item in page.items],
        "has_more": page.before is not None,
        "before": None if page.before is None else str(page.before),
    }


def item_object(item: LoggedMessage | Run) -> dict[str, Any]:
    """One thing of a timeline."""
    if isinstance(item, LoggedMessage):
        return {"type": "message", **message_object(item)}
    fields = {name: value for name, value in asdict(item).items() if name not in _OF_KIND}
    if item.type == "branch_run":
        return {**fields, "description": item.words, "conclusion": item.result}
    return {
        **fields,
        "task": item.words,
        "result": item.result,
        "status": item.state,
        "worker_type": item.worker_type,
        "branch_id": item.origin,
    }


_OF_KIND = frozenset({"words", "result", "origin", "worker_type"})


async def channels_object(
    agents: Sequence[AgentHandle],
    live: set[tuple[str | None, str | None]],
    *,
    limit: int,
    before: str | None,
    platform: str | None,
    words: str | None,
) -> dict[str, Any]:
    """A page of the conversations of some agents, the latest first.

    Args:
        live: agents and conversations that are at work, or wait for somebody to speak.
        before: what the page before gave as `before`.

    Errors: RefusedError for a cursor that is none; StorageError.
    """
    known = _cursor(before)
    found: list[tuple[AgentHandle, ChannelRecord]] = []
    total = 0
    for agent in agents:
        records, count = await agent.conversations.channels_page(
            limit + 1,
            before=None if known is None else (known[0], known[1]),
            ties=known is not None and str(agent.id) > known[2],
            platform=platform,
            words=words,
        )
        total += count
        found += [(agent, record) for record in records]
    found.sort(key=lambda pair: (pair[1].id, str(pair[0].id)))
    found.sort(key=lambda pair: pair[1].last_activity_at, reverse=True)
    page, has_more = found[:limit], len(found) > limit
    last = page[-1] if has_more else None
    return {
        "channels": [_channel(agent, record, (agent.id, record.id) in live) for agent, record in page],
        "total": total,
        "has_more": has_more,
        "before": None if last is None else f"{last[1].last_activity_at}~{last[0].id}~{last[1].id}",
    }


def _cursor(text: str | None) -> tuple[str, str, str] | None:
    """Last activity, conversation and agent."""
    if not text:
        return None
    at, _, rest = text.partition("~")
    agent_id, _, channel_id = rest.partition("~")
    if not at or not agent_id or not channel_id:
        raise RefusedError(f"'before' must be what an earlier page gave as 'before', not {text[:40]!r}")
    return at, channel_id, agent_id


def _channel(agent: AgentHandle, record: ChannelRecord, is_live: bool) -> dict[str, Any]:
    return {
        "agent_id": agent.id,
        "id": record.id,
        "platform": record.platform,
        "display_name": record.display_name,
        "is_direct": record.is_direct,
        "is_active": True,
        "is_live": is_live,
        "last_activity_at": record.last_activity_at,
        "created_at": record.created_at,
    }
