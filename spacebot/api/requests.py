"""Reading what a caller sent: bounded bodies, typed fields, named agents; and saying what was wrong with it.

Floor: api
"""

import json
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import trio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from spacebot.api.contract import AgentHandle, Program
from spacebot.api.streams import Streams
from spacebot.base.errors import BusyError, NotFoundError, RefusedError
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId
from spacebot.base.text import clean_unicode
from spacebot.base.tree import Tree
from spacebot.storage.live_secrets import LiveSecrets

MAX_BODY = 10 * 1024 * 1024  # bytes; control spec 4.1
BODY_S = 30.0  # for the whole body; a caller that dribbles must not hold a place for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the routes work on."""

    program: Program
    events: EventBus
    tree: Tree
    streams: Streams
    run_id: str
    started_at: float  # monotonic seconds
    secrets: LiveSecrets | None = None  # None where a test serves the rest

    def agent(self, agent_id: str | None) -> AgentHandle:
        """The agent of this name; the default one for None.

        Errors: NotFoundError.
        """
        agent = self.program.agents.get(self.program.default_agent_id if agent_id is None else AgentId(agent_id))
        if agent is None:
            raise NotFoundError(f"no agent {agent_id!r} is running; GET /api/status lists the agents")
        return agent


class Body(BaseModel):
    """A JSON object from outside; unknown fields are refused, so that a typing mistake is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


B = TypeVar("B", bound=Body)


async def read_body(request: Request, form: type[B]) -> B:
    """Read and check a JSON body.

    Errors: HTTPException 400 (not JSON, not UTF-8), 408 (too slow), 413 (too long), 422 (wrong fields).
    """
    raw = await _read(request)
    try:
        fields = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body must be a JSON object")
    try:
        return form.model_validate({k: clean_unicode(v) if isinstance(v, str) else v for k, v in fields.items()})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise HTTPException(422, problems) from error


async def _read(request: Request) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        raise _too_long()
    body = bytearray()
    try:
        with trio.fail_after(BODY_S):
            async with aclosing(request.stream()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > MAX_BODY:
                        raise _too_long()
    except trio.TooSlowError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the body did") from error
    return bytes(body)


def _too_long() -> HTTPException:
    return HTTPException(413, f"the body is longer than {MAX_BODY} bytes", headers={"connection": "close"})


def required(request: Request, name: str) -> str:
    """A query parameter that must be there.

    Errors: HTTPException 400.
    """
    value = request.query_params.get(name)
    if not value:
        raise HTTPException(400, f"the query parameter {name!r} is missing")
    return value


def number(request: Request, name: str, default: int | None, *, low: int = 0, high: int = 1 << 53) -> int | None:
    """A whole number from the query, kept within its range; `default` when it is absent.

    Errors: HTTPException 400 when it is no number.
    """
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    try:
        return max(low, min(high, int(text)))
    except ValueError as error:
        raise HTTPException(400, f"the query parameter {name!r} must be a whole number, not {text[:40]!r}") from error


def status_code(error: Exception) -> int:
    """The HTTP status that says what one of our errors means."""
    match error:
        case NotFoundError():
            return 404
        case BusyError():
            return 409
        case RefusedError():
            return 400
        case _:
            return 503
