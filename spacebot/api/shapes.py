"""Shapes of what routes answer with, for the document of the API; how shapes are written: `requests.RouteSpec`.

A test holds each of them against real answers, so that neither drifts away.

Floor:   api
Source:  control spec 4.2 to 4.8
"""

from typing import Any

from spacebot.api.requests import Param, maybe
from spacebot.memory.types import MemoryType, SortBy
from spacebot.memory.views import Edge
from spacebot.tools.skill_sources import VIEWS as REGISTRY_VIEWS

VIEWS = REGISTRY_VIEWS
_ANY = {"*": Any}

# parameters

SESSION = Param("session_id", "the session, as it was named when something was sent", is_needed=True)
SORT = Param("sort", "what comes first", default="recent", one_of=tuple(SortBy))
TYPE = Param("memory_type", "only of this type", one_of=tuple(MemoryType))
PREVIEW = Param("preview", "characters of each text; all when it is left out", int)


def page_params(size: int, most: int) -> tuple[Param, Param]:
    """Parameters of a page that is counted from the first."""
    return (
        Param("limit", "how many", int, size, low=1, high=most),
        Param("offset", "how many come before", int, 0, low=0),
    )


# the program

PROCESS = {
    "id": str, "kind": str, "parent_id": maybe(str), "agent_id": maybe(str), "channel_id": maybe(str),
    "description": str, "state": str, "status": str, "started_at": str, "age_s": float, "idle_s": float,
    "model_calls": int, "tool_calls": int, "input_tokens": int, "output_tokens": int,
}  # fmt: skip
PROGRAM = {
    "status": str, "version": str, "pid": int, "uptime_seconds": int, "run_id": str, "default_agent_id": str,
    "model": str, "is_demo": bool, "needs_setup": bool, "setup_hint": maybe(str), "sandbox": str,
    "permissions": {"*": str}, "agents": [{"id": str, "model": str, "is_demo": bool}],
    "counts": {"agents": int, "channels": int, "turns": int, "workers": int, "branches": int, "streams": int},
    "*": Any,
}  # fmt: skip
STATE = {
    "agent_id": str,
    "memory": {"total": int, "private": int, "to_embed": int, "engine": str, "problem": maybe(str)},
    "bulletin": {"generated_at": maybe(str), "words": int, "is_shown": bool, "text": str},
    "duties": _ANY,
    "ingestion": _ANY,
    "profile": maybe(_ANY),
    "*": Any,
}

# schedules

JOB = {
    "id": str, "source": str, "prompt": str, "cron_expr": maybe(str), "interval_secs": maybe(int),
    "timezone": maybe(str), "delivery_target": str, "origin": maybe(str), "created_by": maybe(str),
    "is_private": bool, "active_hours": maybe([int]), "enabled": bool, "disabled_reason": maybe(str),
    "run_once": bool, "timeout_secs": int, "failures": int, "anchor_at": str, "next_due_at": maybe(str),
    "created_at": str, "success_count": int, "failure_count": int, "last_executed_at": maybe(str),
    "last_state": maybe(str), "last_note": maybe(str), "rhythm": str,
}  # fmt: skip
RUN = {
    "id": int, "seq": int, "job_id": str, "cron_id": str, "due_at": str, "cause": str, "state": str,
    "claimed_at": str, "started_at": maybe(str), "completed_at": maybe(str), "channel_id": maybe(str),
    "summary": maybe(str), "note": maybe(str), "delivered_to": maybe(str), "message_id": maybe(str),
    "delivery_error": maybe(str), "executed_at": str, "success": bool, "result_summary": maybe(str),
}  # fmt: skip

# MCP, secrets, messaging

VIEW = {
    "name": str, "transport": str, "enabled": bool, "state": str, "message": str, "since": maybe(str),
    "tools": [{"name": str, "remote_name": str, "about": str}], "attempts": int, "calls": int, "failed_calls": int,
}  # fmt: skip
SERVER = {
    "name": maybe(str), "transport": maybe(str), "enabled": bool, "state": str, "agents": {"*": str},
    "command": maybe(str), "args": [str], "env": {"*": str}, "url": maybe(str), "headers": {"*": str},
    "call_timeout_secs": maybe(float),
}  # fmt: skip
SECRET = {"name": str, "category": str, "created_at": str, "updated_at": str}
CHANGED = {"success": bool, "restart_required": bool, "message": str}
ACCOUNT = {
    "key": str, "platform": str, "name": maybe(str), "configured": bool, "enabled": bool, "state": str, "detail": str,
    "who": maybe(str), "since": maybe(str), "attempts": int, "next_attempt_at": maybe(str), "received": int,
    "sent": int, "failed": int, "queued": int, "binding_count": int,
}  # fmt: skip
MESSAGING = {"instances": [ACCOUNT], "warnings": [str], "*": {"configured": bool, "enabled": bool}}
BINDING = {
    "index": int, "agent_id": str, "channel": str, "guild_id": maybe(str), "workspace_id": maybe(str),
    "chat_id": maybe(str), "adapter": maybe(str), "channel_ids": [str], "require_mention": bool,
    "dm_allowed_users": [str], "authority": maybe([str]),
}  # fmt: skip

# web chat

LINE = {
    "id": str, "role": str, "content": str, "seq": int, "kind": str, "sender_name": maybe(str),
    "reply_to": maybe(str), "turn_id": maybe(str), "created_at": str,
    "file": maybe({"filename": str, "media_type": str, "size_bytes": int}),
}  # fmt: skip

# workers

COST = {
    "model": maybe(str), "models": [str], "model_calls": int, "input_tokens": int, "output_tokens": int,
    "cache_read_tokens": int, "cache_write_tokens": int, "reasoning_tokens": int, "*": Any,
}  # fmt: skip
WORKER = {
    "agent_id": str, "id": str, "channel_id": maybe(str), "channel_name": maybe(str), "is_private": bool, "task": str,
    "task_type": maybe(str), "worker_type": str, "directory": maybe(str), "is_interactive": bool,
    "branch_id": maybe(str), "state": str, "is_live": bool, "status": str, "result": maybe(str), "tool_calls": int,
    "started_at": str, "completed_at": maybe(str), "duration_s": float, "has_transcript": bool, "cost": COST,
}  # fmt: skip
STEP = {"type": str, "text": str, "name?": str, "call_id?": str, "is_error?": bool}
WHOLE = {"worker": WORKER, "steps": [STEP], "left_out": int, "output": [str]}

# memory

MEMORY = {
    "id": str, "content": str, "is_cut": bool, "memory_type": MemoryType, "importance": float, "created_at": str,
    "updated_at": str, "last_accessed_at": str, "access_count": int, "source": maybe(str), "channel_id": maybe(str),
    "user_id": maybe(str), "message_id": maybe(str), "subject": maybe(str), "is_private": bool, "permanent": bool,
    "forgotten": bool,
}  # fmt: skip
SEEN = {**MEMORY, "base_importance": float, "centrality": float, "forget_reason": maybe(str)}
HIT = {"memory": MEMORY, "score": float, "rank": int, "legs": [str], "why": str}
GRAPH = {"nodes": [SEEN], "edges": [Edge], "total": int, "is_cut": bool}
DETAIL = {
    "memory": SEEN,
    "edges": [Edge],
    "others": {"*": SEEN},
    "learned": {"channel_name": maybe(str), "sender_name": maybe(str), "said": maybe(str)},
}
ADDED = {**DETAIL, "is_new": bool, "is_embedded": bool, "skipped_associations": [str]}
