"""The control socket: what the command line asks of the running program.

One JSON object on one line in, one or more such lines out, then the connection closes. Every answer names its kind
under `result`: the command's own, `ok`, `event` (a stream goes on), `end` (it is over) or `error` with a `message`.
Whoever can open the socket (mode 0600) is the owner.

Flow:    serve_control -> _answer -> Command -> Reply.send
Floor:   api
Source:  control spec 3.2
"""

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import trio

from spacebot import __version__
from spacebot.api.agents import agents_object, answer_agent
from spacebot.api.contract import AgentHandle, Program
from spacebot.api.cortex import agent_states
from spacebot.api.cron import answer_cron
from spacebot.api.mcp import answer_mcp, mcp_status
from spacebot.api.memory_control import OPERATIONS, Operation, spooled
from spacebot.api.messaging_control import answer_messaging, messaging_status
from spacebot.api.models import answer_models
from spacebot.api.providers import known_providers, login_fields, setup_fields
from spacebot.api.route import explain_route
from spacebot.api.secret_control import refresh_secrets, secrets_state
from spacebot.api.sessions import PAUSED, PLATFORM, SessionStream, conversation_of, open_session_stream, process_object
from spacebot.api.usage import answer_usage, budgets_object
from spacebot.api.workers import answer_worker
from spacebot.base.clock import Clock, monotonic_s
from spacebot.base.control_address import check_address, control_address
from spacebot.base.errors import ConfigError, NotFoundError, RefusedError, SpacebotError
from spacebot.base.events import EventBus, EventKind
from spacebot.base.ids import AgentId, ConversationId, MessageId
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.store import ConfigStore, ReloadReport
from spacebot.conversations.records import Fate, LedgerState
from spacebot.llm.messages import ProcessKind
from spacebot.messaging.messages import Author, InboundMessage
from spacebot.storage.live_secrets import LiveSecrets
from spacebot.tools.permissions import rights_of

log = logging.getLogger(__name__)

MAX_LINE = 2_000_000  # bytes of a request
REQUEST_S = 30.0  # a client that has not said what it wants by then is let go
SEND_S = 30.0  # a client that does not read for so long is let go
MAX_CLIENTS = 100
CHECK_S = 5.0  # a stream that waits for an answer looks at the ledger this often, should an event be lost
RECENT = 20  # messages in a list
MIN_PREFIX = 4  # characters of an id that may stand for the whole
EXIT_RESTART = 75  # what `app.main` returns when the program is to be started again in place

_OPEN = frozenset({LedgerState.ACCEPTED, LedgerState.IN_TURN})
_NOT_CANCELLABLE = frozenset({NodeKind.DAEMON, NodeKind.SERVICE, NodeKind.AGENT})

JsonObject = Mapping[str, Any]


class Reply:
    """The way back to one client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.file: BinaryIO | None = None  # what followed the request

    async def send(self, result: str, **fields: Any) -> None:
        """Send one line.

        Errors: trio.BrokenResourceError when the client is gone or has stopped reading.
        """
        line = json.dumps({"result": result, **fields}, default=str) + "\n"
        with trio.move_on_after(SEND_S) as scope:
            await self._stream.send_all(line.encode())
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")


@dataclass(frozen=True, slots=True)
class Command:
    """What a client can ask for. A stream is cancelled when its client leaves.

    With `takes_file` the request names a `size`, and so many bytes follow its line; they are on disk before `run` is
    called, and lie in `Reply.file`.
    """

    run: Callable[[JsonObject, Reply], Awaitable[None]]
    is_stream: bool = False
    takes_file: bool = False


async def serve_control(
    path: Path, commands: Mapping[str, Command], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands until cancelled; started means that clients can connect.

    Args:
        path: the instance's socket; a long path gets a short stand-in, a stale socket is replaced.

    Errors: ConfigError when the socket cannot be made, or another program answers there.
    """
    async with _bound_socket(control_address(path)) as listener:
        limiter = trio.CapacityLimiter(MAX_CLIENTS)

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                try:
                    limiter.acquire_nowait()
                except trio.WouldBlock:
                    await _try_send(Reply(stream), "error", message="too many clients; try again later")
                    return
                try:
                    await _answer(stream, commands, path.parent)
                finally:
                    limiter.release()

        await trio.serve_listeners(serve, [listener], task_status=_Started(task_status))


class _Started(trio.TaskStatus[Any]):
    """Hides the listeners from whoever waits for the start."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self._inner = inner

    def started(self, value: object = None) -> None:
        self._inner.started()


@asynccontextmanager
async def _bound_socket(path: Path) -> AsyncIterator[trio.SocketListener]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        check_address(path, create=True)
        await _remove_stale(path)
        _listen(listener, path)
        inode = _inode(path)
    except OSError as error:
        listener.close()
        raise ConfigError(f"the control socket {str(path)!r} cannot be made ({error.strerror})") from error
    except BaseException:
        listener.close()
        raise
    try:
        yield trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    finally:
        listener.close()
        if _inode(path) == inode:
            _remove(path)


def _listen(listener: socket.socket, path: Path) -> None:
    listener.bind(os.fsencode(path))
    path.chmod(0o600)  # before it listens: until then the system refuses everybody
    listener.listen(64)
    listener.setblocking(False)


def _inode(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_ino
    return None


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


async def _remove_stale(path: Path) -> None:
    if _inode(path) is None:
        return
    try:
        with trio.move_on_after(2):
            stream = await trio.open_unix_socket(path)
            await stream.aclose()
        raise ConfigError(f"another program answers at {str(path)!r}; stop it first (spacebot stop)")
    except OSError:
        _remove(path)


async def _answer(stream: trio.SocketStream, commands: Mapping[str, Command], folder: Path) -> None:
    reply = Reply(stream)
    try:
        request, rest = await _read_request(stream)
        if request is None:
            return
        name = request.get("command")
        command = commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(commands))
            raise RefusedError(f"unknown command {str(name)[:80]!r}; known are: {known}")
        async with spooled(stream, request, rest, folder) if command.takes_file else nullcontext() as reply.file:
            if command.is_stream:
                await _run_while_connected(command, request, reply, stream)
            else:
                await command.run(request, reply)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # the client left
    except SpacebotError as error:
        await _try_send(reply, "error", message=str(error))
    except Exception as error:  # boundary: service
        log.error("control command failed", exc_info=error)
        await _try_send(reply, "error", message=f"internal error ({type(error).__name__}); the log has the details")


async def _try_send(reply: Reply, result: str, **fields: Any) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await reply.send(result, **fields)


async def _read_request(stream: trio.SocketStream) -> tuple[JsonObject | None, bytes]:
    """Read the request line and what came with it; None when the client left without one."""
    line = bytearray()
    with trio.move_on_after(REQUEST_S) as scope:
        while b"\n" not in line:
            chunk = await stream.receive_some(65536)
            if not chunk:
                break
            line += chunk
            if len(line) > MAX_LINE:
                raise RefusedError(f"the request is longer than {MAX_LINE} bytes")
    if scope.cancelled_caught:
        raise RefusedError(f"no request within {REQUEST_S:g} seconds")
    if not line:
        return None, b""
    first, _, rest = bytes(line).partition(b"\n")
    try:
        request = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the request is not a JSON object on one line") from error
    if not isinstance(request, dict):
        raise RefusedError("the request is not a JSON object on one line")
    return request, rest


async def _run_while_connected(command: Command, request: JsonObject, reply: Reply, stream: trio.SocketStream) -> None:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await stream.receive_some(4096):
                    pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await command.run(request, reply)
        except Exception as error:  # out of the nursery as itself, not in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def control_commands(
    program: Program,
    *,
    tree: Tree,
    events: EventBus,
    store: ConfigStore,
    secrets: LiveSecrets,
    run_id: str,
    started_at: float,
    urls: Sequence[str],
    clock: Clock | None = None,
) -> dict[str, Command]:
    """The commands of a running program.

    Args:
        run_id: names this life of the program; a restart is done when it has changed.
        started_at: on the monotonic clock, in seconds.
        urls: where the web chat answers.
    """
    handlers = _Commands(program, tree, events, store, secrets, run_id, started_at, tuple(urls), clock or Clock())
    return {
        "status": Command(handlers.status),
        "state": Command(handlers.state),
        "messaging": Command(handlers.messaging),
        "cron": Command(handlers.cron),
        "mcp": Command(handlers.mcp),
        "agent": Command(handlers.agent),
        "route": Command(handlers.route),
        "worker": Command(handlers.worker),
        "usage": Command(handlers.usage),
        "models": Command(handlers.models),
        "providers": Command(handlers.providers),
        "shutdown": Command(handlers.shutdown),
        "restart": Command(handlers.restart),
        "top": Command(handlers.top),
        "cancel": Command(handlers.cancel),
        "why": Command(handlers.why),
        "recent": Command(handlers.recent),
        "prompts_reload": Command(handlers.prompts_reload),
        "config_reload": Command(handlers.config_reload),
        "secrets_reload": Command(handlers.secrets_reload),
        "send": Command(handlers.send),
        "chat": Command(handlers.chat, is_stream=True),
        "subscribe": Command(handlers.chat, is_stream=True),
        **{name: handlers.memory_command(operation) for name, operation in OPERATIONS.items()},
    }


class _Commands:
    def __init__(
        self,
        program: Program,
        tree: Tree,
        events: EventBus,
        store: ConfigStore,
        secrets: LiveSecrets,
        run_id: str,
        started_at: float,
        urls: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._program = program
        self._tree = tree
        self._events = events
        self._store = store
        self._secrets = secrets
        self._run_id = run_id
        self._started = started_at
        self._urls = urls
        self._clock = clock

    async def status(self, request: JsonObject, reply: Reply) -> None:
        program = self._program
        counts = Counter(view.kind for view in self._tree.view())
        await reply.send(
            "status",
            pid=os.getpid(),
            version=__version__,
            uptime_seconds=int(monotonic_s() - self._started),
            run_id=self._run_id,
            model="" if (main := program.agents.get(program.default_agent_id)) is None else main.model_label,
            **setup_fields(program.config),
            **await login_fields(program),
            urls=list(self._urls),
            sandbox=program.sandbox,
            permissions=rights_of(program.config, program.sandbox),
            agents=list(program.agents),
            agent_views=agents_object(program)["agents"],
            budgets=budgets_object(program.agents.values()),
            processes={str(kind): counts.get(kind, 0) for kind in NodeKind},
            warnings=list(self._store.warnings),
            adapters=(await messaging_status(program))["instances"],
            mcp=mcp_status(program),
            secrets=await secrets_state(self._secrets),
            update=asdict(replace(program.updates.state, release_notes=None)),
        )

    async def state(self, request: JsonObject, reply: Reply) -> None:
        await reply.send("state", agent_states=await agent_states(self._program))

    async def providers(self, request: JsonObject, reply: Reply) -> None:
        await reply.send("providers", **await known_providers(self._program, self._secrets))

    async def messaging(self, request: JsonObject, reply: Reply) -> None:
        await answer_messaging(self._program, request, reply.send)

    async def cron(self, request: JsonObject, reply: Reply) -> None:
        await answer_cron(self._agent(request), request, reply.send)

    async def worker(self, request: JsonObject, reply: Reply) -> None:
        await answer_worker(self._agent(request), self._tree, request, reply.send)

    async def usage(self, request: JsonObject, reply: Reply) -> None:
        await answer_usage(self._program, request, reply.send)

    async def models(self, request: JsonObject, reply: Reply) -> None:
        await answer_models(self._program, request, reply.send)

    async def mcp(self, request: JsonObject, reply: Reply) -> None:
        await answer_mcp(self._program, request, reply.send)

    async def agent(self, request: JsonObject, reply: Reply) -> None:
        await answer_agent(self._program, request, reply.send)

    async def shutdown(self, request: JsonObject, reply: Reply) -> None:
        await _try_send(reply, "ok", run_id=self._run_id)
        self._program.request_stop()

    async def restart(self, request: JsonObject, reply: Reply) -> None:
        await _try_send(reply, "ok", run_id=self._run_id)
        self._program.request_stop(restart=True)

    async def top(self, request: JsonObject, reply: Reply) -> None:
        nodes = [process_object(view) for view in self._tree.view()]
        await reply.send("top", uptime_seconds=int(monotonic_s() - self._started), nodes=nodes)

    async def cancel(self, request: JsonObject, reply: Reply) -> None:
        wanted = _text(request, "id")
        views = self._tree.view()
        found = [view for view in views if view.id == wanted]
        if not found and len(wanted) >= MIN_PREFIX:
            found = [view for view in views if view.id.startswith(wanted)]
        if len(found) > 1:
            raise RefusedError(f"{wanted!r} begins {len(found)} ids; give more of it")
        if not found:
            raise NotFoundError(f"nothing with the id {wanted!r} is running; spacebot top shows what is")
        if found[0].kind in _NOT_CANCELLABLE:
            raise RefusedError(f"{wanted!r} is a part of the program itself; spacebot stop ends the whole")
        if found[0].kind == NodeKind.CHANNEL:
            raise RefusedError("a conversation cannot be cancelled; cancel its turn, branches and workers instead")
        self._tree.cancel(found[0].id, "cancelled from the command line")
        await reply.send("ok", id=found[0].id, kind=found[0].kind)

    async def why(self, request: JsonObject, reply: Reply) -> None:
        wanted = _text(request, "id")
        for agent in self._program.agents.values():
            if (fate := await agent.conversations.fate(wanted)) is not None:
                await reply.send("why", agent_id=agent.id, **fate_object(fate))
                return
        raise NotFoundError(f"no agent's log has an inbound message {wanted!r}")

    async def route(self, request: JsonObject, reply: Reply) -> None:
        agent, task = self._agent(request), request.get("task")
        process = str(request.get("process") or ProcessKind.CHANNEL)
        found = explain_route(
            self._program, agent.id, _text(request, "text"), process, None if task is None else str(task)
        )
        await reply.send("route", **found)

    async def recent(self, request: JsonObject, reply: Reply) -> None:
        found = [
            message for agent in self._program.agents.values() for message in await agent.conversations.latest(RECENT)
        ]
        found.sort(key=lambda message: str(message["created_at"]))
        await reply.send("recent", messages=found[-RECENT:])

    async def prompts_reload(self, request: JsonObject, reply: Reply) -> None:
        await reply.send("ok", changed=list(await self._program.reload_prompts()))

    async def config_reload(self, request: JsonObject, reply: Reply) -> None:
        report: ReloadReport = await self._store.refresh()
        if report.error is not None:
            raise ConfigError(f"{report.error}\nthe values that were in use stay in use")
        self._events.emit(EventKind.CONFIG_RELOADED, what="config")
        await reply.send(
            "ok",
            changed=report.changed,
            warnings=list(report.warnings),
            requires_restart=list(report.requires_restart),
        )

    async def secrets_reload(self, request: JsonObject, reply: Reply) -> None:
        await refresh_secrets(self._secrets, request)
        await self.config_reload(request, reply)

    async def send(self, request: JsonObject, reply: Reply) -> None:
        agent, session = self._agent(request), self._session(request)
        message_id, seq, is_new = await self._accept(agent, session, request)
        await reply.send("accepted", message_id=message_id, seq=seq, is_new=is_new)

    async def chat(self, request: JsonObject, reply: Reply) -> None:
        """Follow a conversation; with `text` say something first, with `until_answered` end when that is dealt with."""
        agent, session = self._agent(request), self._session(request)
        after_seq = request.get("after_seq")
        if after_seq is None and isinstance(last := request.get("last"), int):  # begin with the end of the talk
            known = await agent.conversations.recent(conversation_of(session), min(max(last, 1), RECENT))
            after_seq = known[0].seq - 1 if known else 0
        if after_seq is not None and not isinstance(after_seq, int):
            raise RefusedError("after_seq must be a whole number")
        conversation_id = conversation_of(session)
        async with open_session_stream(
            agent, self._events, conversation_id, after_seq=after_seq, tree=self._tree
        ) as stream:
            message_id: MessageId | None = None
            if request.get("text") is not None:
                message_id, seq, is_new = await self._accept(agent, session, request)
                await reply.send("accepted", message_id=message_id, seq=seq, is_new=is_new)
            if message_id is not None and request.get("until_answered"):
                await _relay_until_answered(stream, agent, conversation_id, message_id, reply)
                return
            while (event := await stream.receive()) is not None:  # `async for` would leave a generator to the collector
                await reply.send("event", name=event.name, data=event.data)
            await reply.send("end")

    def memory_command(self, operation: Operation) -> Command:
        """An operation on an agent's memory."""

        async def run(request: JsonObject, reply: Reply) -> None:
            await operation.run(self._agent(request), request, reply.send, reply.file)

        return Command(run, is_stream=operation.is_long, takes_file=operation.takes_file)

    def _agent(self, request: JsonObject) -> AgentHandle:
        wanted = request.get("agent") or self._program.default_agent_id
        agent = self._program.agents.get(AgentId(str(wanted)))
        if agent is None:
            raise self._program.why_absent(str(wanted))
        return agent

    def _session(self, request: JsonObject) -> str:
        return _text(request, "session") if "session" in request else "terminal"

    async def _accept(self, agent: AgentHandle, session: str, request: JsonObject) -> tuple[MessageId, int, bool]:
        name = str(request.get("sender") or "terminal")[:80]
        client_id = request.get("client_id")
        message = InboundMessage(
            platform=PLATFORM,
            conversation_id=conversation_of(session),
            author=Author(id=f"terminal:{name}", name=name),
            text=_text(request, "text"),
            sent_at=self._clock.now(),
            agent_id=agent.id,
            platform_id=f"terminal:{client_id}" if isinstance(client_id, str) and client_id else None,
            is_direct=True,
        )
        accepted = await agent.accept(message)
        return accepted.message_id, accepted.seq, accepted.is_new


async def _relay_until_answered(
    stream: SessionStream, agent: AgentHandle, channel_id: ConversationId, message_id: MessageId, reply: Reply
) -> None:
    """Pass events on until the ledger says that the message is dealt with; the end repeats all replies to it."""
    while True:
        fate = await agent.conversations.fate(message_id, channel_id=channel_id)
        put_off = fate is not None and fate.state is LedgerState.SKIPPED and fate.is_pending
        if fate is not None and fate.state not in _OPEN and fate.turn_state != "running" and not put_off:
            replies = [asdict(logged) for logged in fate.replies]
            await reply.send("end", state=str(fate.state), reason=fate.reason, replies=replies)
            return
        if agent.is_paused and fate is not None and fate.state is LedgerState.ACCEPTED:
            await reply.send("end", state=str(fate.state), reason=PAUSED, replies=[])
            return
        with trio.move_on_after(CHECK_S):
            while (event := await stream.receive()) is not None:
                await reply.send("event", name=event.name, data=event.data)
                if event.name == EventKind.TURN_ENDED:
                    break
            else:
                await reply.send("end")
                return


def fate_object(fate: Fate) -> dict[str, Any]:
    """What became of a message, as clients get it."""
    return {
        "message": asdict(fate.message),
        "state": str(fate.state),
        "reason": fate.reason,
        "attempts": fate.attempts,
        "turn_id": fate.turn_id,
        "turn_state": fate.turn_state,
        "turn_detail": fate.turn_detail,
        "coalesced_with": list(fate.coalesced_with),
        "replies": [asdict(reply) for reply in fate.replies],
        "runs": [dict(run) for run in fate.runs],
    }


def _text(request: JsonObject, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RefusedError(f"{key!r} must be given as text")
    return value
