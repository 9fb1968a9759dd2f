"""Reading what a caller sent: bounded bodies, typed fields, named agents; and saying what was wrong with it.

Floor: api
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import trio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route

from spacebot.api.contract import AgentHandle, Program
from spacebot.api.feed import Feed
from spacebot.api.streams import Streams
from spacebot.base.errors import BusyError, ConfigError, NotFoundError, RefusedError
from spacebot.base.events import EventBus
from spacebot.base.ids import AgentId
from spacebot.base.redaction import scrub
from spacebot.base.text import clean_values
from spacebot.base.tree import Tree
from spacebot.config.edit import UnsoundChangeError
from spacebot.config.store import ReloadReport
from spacebot.storage.live_secrets import LiveSecrets

MAX_BODY = 10 * 1024 * 1024  # bytes; control spec 4.1
JSON = "application/json"
MAX_FORM = 1024 * 1024  # bytes of a form that says nothing else
T = TypeVar("T")

BODY_S = 30.0  # for the whole body; a caller that dribbles must not hold a place for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the routes work on."""

    program: Program
    events: EventBus
    tree: Tree
    streams: Streams
    feed: Feed
    run_id: str
    started_at: float  # monotonic seconds
    secrets: LiveSecrets | None = None  # None where a test serves the rest
    edits: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))  # of the owner's file

    async def read_config(self, read: Callable[[], T]) -> T:
        """Look into the owner's file, in a thread. Errors: HTTPException 409 when it is broken."""
        try:
            return await trio.to_thread.run_sync(read, limiter=self.edits)
        except ConfigError as error:
            raise HTTPException(409, scrub(str(error))) from error

    async def change_config(self, change: Callable[[], object], *, unsound: int = 409) -> ReloadReport:
        """Change the owner's file, in a thread and one change after the other, and take the change over.

        Args:
            unsound: the status for a change that would break the file.

        Errors: what `change` raises; HTTPException 409 when the file is broken already.
        """
        try:
            await trio.to_thread.run_sync(change, limiter=self.edits)
        except UnsoundChangeError as error:
            raise HTTPException(unsound, scrub(str(error))) from error
        except ConfigError as error:
            raise HTTPException(409, scrub(str(error))) from error
        return await self.program.reload_config()

    def agent(self, agent_id: str | None) -> AgentHandle:
        """The agent of this name; the default one for None.

        Errors: NotFoundError; BusyError when it is there and does not run.
        """
        agent = self.program.agents.get(self.program.default_agent_id if agent_id is None else AgentId(agent_id))
        if agent is None:
            raise self.program.why_absent(agent_id or self.program.default_agent_id)
        return agent

    def agents(self, agent_id: str | None) -> list[AgentHandle]:
        """The agent of this name; all that run for None. Errors: NotFoundError."""
        return list(self.program.agents.values()) if agent_id is None else [self.agent(agent_id)]


class Body(BaseModel):
    """A JSON object from outside; unknown fields are refused, so that a typing mistake is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)  # built at the first use

    most: ClassVar[int] = MAX_FORM  # bytes


@dataclass(frozen=True, slots=True)
class Maybe:
    """What may be null."""

    shape: Any


@dataclass(frozen=True, slots=True)
class Either:
    """One of several shapes."""

    shapes: tuple[Any, ...]


def maybe(shape: Any) -> Maybe:
    """A value that may be null."""
    return Maybe(shape)


def either(*shapes: Any) -> Either:
    """A value of one of these shapes."""
    return Either(shapes)


@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter, or with `place` a header, as the document of the API describes it.

    Args:
        kind: str, int or bool.
        low, high: what a number is held within.
        is_needed: a request without it is refused.
    """

    name: str
    summary: str = ""
    kind: type = str
    default: Any = None
    low: int | None = None
    high: int | None = None
    one_of: Sequence[str] = ()
    is_needed: bool = False
    place: str = "query"


DONE = {"success": bool, "message": str}
AGENT = Param("agent_id", "whose; the default agent's when it is left out")
AGAIN = Param("last-event-id", "id of the last event that was received; those after it come first", place="header")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """What the document of the API says about a route beside its address and its docstring.

    Shapes are written as values: `str`, `int`, `float`, `bool` and `None` stand for themselves, `Any` for anything,
    `[x]` for a list, `{"name": x}` for an object with exactly these fields (`"name?"` may be absent), `{"*": x}` for
    one with any, `maybe` and `either` for choices; enumerations, dataclasses and models describe themselves.

    Args:
        answer: of a success; None where it is no JSON.
        answers: of further successes, by status.
        stream: names and shapes of the events, where the answer is a stream.
        media: type of an answer that is neither JSON nor a stream.
        upload: type of a body that is no JSON.
    """

    query: Sequence[Param] = ()
    body: type[Body] | None = None
    answer: Any = None
    status: int = 200
    answers: Mapping[int, Any] | None = None
    stream: Mapping[str, Any] | None = None
    media: str | None = None
    upload: str | None = None


class ApiRoute(Route):
    """A route that describes itself; see `route`."""

    spec: RouteSpec


def route(path: str, endpoint: Callable[..., Any], method: str = "GET", **spec: Any) -> ApiRoute:
    """An entry of a table of routes; further arguments are the fields of `RouteSpec`."""
    made = ApiRoute(path, endpoint, methods=[method])
    made.spec = RouteSpec(**spec)
    return made


B = TypeVar("B", bound=Body)


async def read_body(request: Request, form: type[B]) -> B:
    """Read and check a JSON body.

    Errors: HTTPException 400 (not JSON, not UTF-8), 408 (too slow), 413 (too long), 415 (called something else than
        JSON: forms of other sites can send those without being asked), 422 (wrong fields).
    """
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HTTPException(415, f"send the body as {JSON}, not as {kind[:60]!r}")
    raw = await _read(request, form.most)
    try:
        fields = clean_values(json.loads(raw.decode()))
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body must be a JSON object")
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise HTTPException(422, problems) from error


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:18]) > most:
        raise _too_long(most)
    body = bytearray()
    try:
        with trio.fail_after(BODY_S):
            async with aclosing(request.stream()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > most:
                        raise _too_long(most)
    except trio.TooSlowError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the body did") from error
    return bytes(body)


def _too_long(most: int) -> HTTPException:
    return HTTPException(413, f"the body is longer than {most} bytes; send less", headers={"connection": "close"})


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


def resumed_number(request: Request) -> int | None:
    """The number of the last event that a reader who comes back had; None when that is none of ours."""
    text = request.headers.get("last-event-id", "")
    return int(text) if text.isdecimal() and len(text) < 18 else None


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
