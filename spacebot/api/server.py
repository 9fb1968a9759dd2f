"""The HTTP server: opens the port, serves the routes, ends cleanly.

Connections are handled by Hypercorn's protocol code; accepting and ending them is ours, because a reader that
stopped reading would otherwise hold the program's end for ever (Hypercorn 0.18 shields its writes).

Flow:    serve_api -> bind -> accept -> Rim -> route; stop -> streams end -> requests finish -> sockets close
Floor:   api
Source:  control spec 4.1, 4.2
"""

import errno
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from spacebot.api.agents import AgentRoutes
from spacebot.api.backup import BackupRoutes
from spacebot.api.channels import ChannelRoutes
from spacebot.api.contract import Program
from spacebot.api.cortex import CortexRoutes
from spacebot.api.cortex_chat import CortexChatRoutes
from spacebot.api.counting import Counting, patterns
from spacebot.api.cron import CronRoutes
from spacebot.api.doctor import DoctorRoutes
from spacebot.api.feed import Feed
from spacebot.api.ingestion import IngestionRoutes
from spacebot.api.logs import LogRoutes
from spacebot.api.mcp import McpRoutes
from spacebot.api.memories import MemoryRoutes
from spacebot.api.models import ModelRoutes
from spacebot.api.openapi import PATH as DOCUMENT
from spacebot.api.openapi import OpenApiRoutes
from spacebot.api.pages import PageRoutes, read_files
from spacebot.api.prompts import PromptRoutes
from spacebot.api.providers import ProviderRoutes
from spacebot.api.requests import Api, status_code
from spacebot.api.rim import Rim, Tickets
from spacebot.api.route import RouteRoutes
from spacebot.api.secrets import SecretRoutes
from spacebot.api.settings import SettingsRoutes
from spacebot.api.setup import SetupRoutes
from spacebot.api.skills import SkillRoutes
from spacebot.api.streams import KEEP_ALIVE_S, Streams
from spacebot.api.system import SystemRoutes
from spacebot.api.update import UpdateRoutes
from spacebot.api.usage import UsageRoutes
from spacebot.api.webchat import WebchatRoutes
from spacebot.api.workers import WorkerRoutes
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.errors import ConfigError, SpacebotError
from spacebot.base.events import EventBus
from spacebot.base.paths import package_file
from spacebot.base.redaction import scrub
from spacebot.base.tree import Tree
from spacebot.config.model import ApiConfig
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.tools.peers import has_commands, is_from_command

log = logging.getLogger(__name__)

BACKLOG = 256  # connections that wait to be accepted
KEEP_CONNECTION_S = 75.0  # an idle connection; people pause between messages, and a new one costs more than it
MOST_CONNECTIONS = 800  # at once; a process may usually have 1024 files open, and stores, workers and models need some
LINGERING = 100  # callers who are told so at the same time
LINGER_S = 1.0  # for a caller that is turned away
GRACE_S = 3.0  # for requests in flight when the program stops


async def serve_api(
    program: Program,
    config: ApiConfig,
    *,
    events: EventBus,
    tree: Tree,
    run_id: str,
    stop: trio.Event,
    clock: Clock | None = None,
    secrets: LiveSecrets | None = None,
    live: Callable[[], ApiConfig] | None = None,
    keep_alive_s: float = KEEP_ALIVE_S,
    grace_s: float = GRACE_S,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; started with the bound addresses (`http://127.0.0.1:5738`).

    Then no connection is accepted, event streams end cleanly, requests in flight have `grace_s` seconds.

    Args:
        live: the table as it is now, for what counts without a restart; None when it never changes.

    Errors: ConfigError when the port cannot be bound, before `started`.
    Cancel: cuts all connections at once.
    """
    streams, feed = Streams(keep_alive_s), Feed(events, run_id)
    app = build_app(
        program, config, events=events, tree=tree, run_id=run_id, streams=streams, feed=feed, clock=clock,
        secrets=secrets, live=live,
    )  # fmt: skip
    with feed.listening():
        await serve_asgi(
            app,
            config.bind,
            config.port,
            stop=stop,
            beside=feed.run,
            at_stop=streams.close,
            grace_s=grace_s,
            task_status=task_status,
        )


async def serve_asgi(
    app: ASGIApp,
    bind: str,
    port: int,
    *,
    name: str = "api",
    stop: trio.Event | None = None,
    beside: Callable[[], Awaitable[None]] = trio.sleep_forever,
    at_stop: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve any ASGI app until `stop` is set, or for ever; started with the bound addresses.

    Args:
        name: table of the settings `bind`, `port` and `enabled`, for the error.
        beside: runs as long as the app is served.
        at_stop: called when no connection is accepted any more, before requests in flight are waited for.

    Errors: ConfigError when the port cannot be bound, before `started`.
    Cancel: cuts all connections at once.
    """
    stop = trio.Event() if stop is None else stop
    sock = _bind(bind, port, name)
    settings = Config()
    settings.errorlog = log
    settings.include_server_header = False
    settings.keep_alive_timeout = KEEP_CONNECTION_S
    context = WorkerContext(None)
    connections: set[_Connection] = set()
    crowd = trio.CapacityLimiter(LINGERING)

    async def handle(stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        if len(connections) >= MOST_CONNECTIONS:
            async with stream:
                with suppress(trio.WouldBlock):  # of very many some hear nothing
                    crowd.acquire_nowait()
                    try:
                        await _turn_away(stream, _CROWDED)
                    finally:
                        crowd.release()
            return
        connections.add(connection)
        try:
            if await _is_forbidden(stream):
                log.warning("request refused", extra={"kv": {"status": 403, "reason": "a worker's command"}})
                await _turn_away(stream, _FORBIDDEN)
                return
            await _Server(wrap_app(app, 0, "asgi"), settings, context, ConnectionState({}), connection).run()  # type: ignore[arg-type]
        except Exception as error:  # boundary: connection
            log.error("connection failed", exc_info=error)
        finally:
            connections.discard(connection)

    async def cut_at_the_end() -> None:
        try:
            await stop.wait()
            await trio.sleep(grace_s)
        finally:
            for connection in tuple(connections):
                connection.cut()

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with trio.open_nursery() as around:
        around.start_soon(cut_at_the_end)
        around.start_soon(beside)
        async with trio.open_nursery() as serving, listener:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(partial(trio.serve_listeners, handle, [listener], handler_nursery=serving))
                task_status.started((_url(sock),))
                await stop.wait()
                accepting.cancel_scope.cancel()
            at_stop()
            await context.terminated.set()  # idle connections close now, busy ones after their answer
        around.cancel_scope.cancel()


async def _turn_away(stream: trio.SocketStream, answer: bytes) -> None:
    """Answer, and read on for a moment: closing on unread words would take the answer away from who sent them."""
    with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(answer)
        await stream.send_eof()
        while await stream.receive_some(65_536):
            pass


async def _is_forbidden(stream: trio.SocketStream) -> bool:
    """Whether a worker's command is calling."""
    if not has_commands():
        return False
    try:
        peer, own = stream.socket.getpeername()[1], stream.socket.getsockname()[1]
    except OSError:  # gone already
        return False
    return await trio.to_thread.run_sync(is_from_command, peer, own)


def build_app(
    program: Program,
    config: ApiConfig,
    *,
    events: EventBus,
    tree: Tree,
    run_id: str,
    streams: Streams,
    feed: Feed,
    clock: Clock | None = None,
    secrets: LiveSecrets | None = None,
    live: Callable[[], ApiConfig] | None = None,
) -> ASGIApp:
    """Put the routes together; the first that fits answers."""
    now = live or (lambda: config)
    tickets = Tickets()
    api = Api(
        program=program, events=events, tree=tree, streams=streams, feed=feed, run_id=run_id, started_at=monotonic_s(),
        secrets=secrets,
    )  # fmt: skip
    pages = PageRoutes(program, read_files(package_file("api", "static")))
    tables: list[Route] = [
        # First: each message comes this way, and an address is looked for from the top.
        *WebchatRoutes(
            api, clock or Clock(), is_private=lambda: config.is_loopback and not now().allowed_origins
        ).routes(),
        *SystemRoutes(api, tickets).routes(),
        *AgentRoutes(api).routes(),
        *ChannelRoutes(api).routes(),
        *MemoryRoutes(api).routes(),
        *IngestionRoutes(api).routes(),
        *SkillRoutes(api).routes(),
        *McpRoutes(api).routes(),
        *CronRoutes(api).routes(),
        *WorkerRoutes(api).routes(),
        *UsageRoutes(api).routes(),
        *ModelRoutes(api).routes(),
        *SecretRoutes(api).routes(),
        *ProviderRoutes(api).routes(),
        *CortexRoutes(api).routes(),
        *CortexChatRoutes(api).routes(),
        *SetupRoutes(api).routes(),
        *SettingsRoutes(api).routes(),
        *RouteRoutes(api).routes(),
        *BackupRoutes(api).routes(),
        *DoctorRoutes(api).routes(),
        *UpdateRoutes(api).routes(),
        *LogRoutes(api).routes(),
        *PromptRoutes(api).routes(),
    ]
    tables += OpenApiRoutes(tables).routes()
    unknown = _Unknown(tables)
    routes = [
        *tables,
        Route("/api", unknown.answer, methods=_ALL),
        Route("/api/{path:path}", unknown.answer, methods=_ALL),
        *pages.routes(),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Counting, figures=program.http, paths=patterns(routes)),
            Middleware(Rim, config=config, tickets=tickets, live=now),
        ],
        exception_handlers={HTTPException: _on_http_error, SpacebotError: _on_error},
    )


def _refusal(status: str, words: str) -> bytes:
    body = json.dumps({"error": words}).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_FORBIDDEN = _refusal("403 Forbidden", "commands of workers may not use this program's own API")
_CROWDED = _refusal("503 Service Unavailable", f"{MOST_CONNECTIONS} connections are open; close some, then try again")
_ALL = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]


class _Unknown:
    """Answers what no route of the API did."""

    def __init__(self, tables: Sequence[Route]) -> None:
        self._tables = tables

    async def answer(self, request: Request) -> Response:
        """No such address, or not by this method."""
        fitting = [one for one in self._tables if one.matches(request.scope)[0] is not Match.NONE]
        methods = sorted({method for one in fitting for method in one.methods or ()})
        if not methods:
            words = f"there is no route {request.url.path[:200]!r}; GET {DOCUMENT} lists all"
            return JSONResponse({"error": words}, 404)
        allow = {"allow": ", ".join([*methods, "OPTIONS"])}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        words = f"{request.method} is not possible here; there are {', '.join(methods)}"
        return JSONResponse({"error": words}, 405, allow)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": scrub(error.detail)}, error.status_code, headers=error.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    code = status_code(error)
    if code >= 500:
        log.error("request failed", exc_info=error, extra={"kv": {"path": request.url.path}})
    return JSONResponse({"error": scrub(str(error))}, code)


class _Server(TCPServer):
    """Hypercorn's protocol code; a caller who has left holds no place until the idle time is over."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Connection:
    """A socket stream as Hypercorn uses it, which can be cut from outside even while a write waits."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.receive_some = stream.receive_some
        self.aclose = stream.aclose

    def cut(self) -> None:
        """Close the socket; whoever waits on it is woken with an error."""
        self.socket.close()


def _bind(bind: str, port: int, name: str) -> socket.socket:
    host = "127.0.0.1" if bind == "localhost" else bind.removeprefix("[").removesuffix("]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by accepted connections
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(_why_not(bind, port, name, error)) from error
    return sock


def _why_not(bind: str, port: int, name: str, error: OSError) -> str:
    place = f"port {port} on {bind}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{place} is taken by another program; stop it, set {name}.port to another number (0 lets the system "
            f"choose), or switch it off with {name}.enabled = false"
        )
    if error.errno == errno.EACCES:
        return f"{place} may not be opened by this user; set {name}.port to a number above 1023"
    return f"{place} cannot be opened ({error.strerror}); check {name}.bind and {name}.port"


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
