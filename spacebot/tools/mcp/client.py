"""A connection to one MCP server, by the official SDK. Imported in a thread when the first server is configured.

The SDK speaks the protocol; what it would do with processes, sockets and schemas is done here: programs are ours
(contained, drained, gone when left), HTTP goes through the URL guard, and results are not validated against schemas
that their own server wrote.

Flow:    Endpoint -> open_link -> Link.tools, Link.call; Link.serve until the connection ends
Floor:   tools; the only importer of mcp, mcp_types, anyio and jsonschema
Source:  tools spec 11 and 23; MCP 2025-11-25 and 2026-07-28 by mcp 2.3
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import jsonschema
import mcp_types
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from spacebot import __version__
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ConfigError, ExternalError, SpacebotError, ToolError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.base.text import clean_unicode, preview
from spacebot.tools.mcp.pipes import PIECE, Lines
from spacebot.tools.mcp.results import render_result
from spacebot.tools.mcp.tool import CallResult, RemoteToolSpec, check_schema_form
from spacebot.tools.mcp.wire import MAX_ANSWER, GuardedTransport, open_http
from spacebot.tools.programs import Program, open_program
from spacebot.tools.sandbox import Invocation

log = logging.getLogger(__name__)

CONNECT_S = 60.0  # for start, handshake and the first list; a launcher may have to fetch the server first
LIST_S = 30.0  # for a list of tools later on
CHECK_S = 60.0  # an HTTP server is asked this often whether it is still there
WRITE_S = 30.0  # a server that does not read for so long is given up
LEAVE_S = 0.3  # for a server to end by itself once its input is closed
GRACE_S = 0.7  # then between the polite and the final signal
SETTLE_S = 0.2  # a burst of change notices is one change
PAGES = 100
TOOLS = 200  # of one server; a model cannot choose among more
EXTENSIONS = 4  # how many times its time-out a call may take while the server reports progress
QUEUED = 64  # messages that wait to be written
SAID = 600  # characters of a server's own words in an error

_LOST = ("Session terminated", "Server returned an error response")  # the SDK's words for a status without a message
_REDIRECT = "Redirect to "
_ANSWERS: TypeAdapter[Any] = TypeAdapter(mcp_types.CallToolResult | mcp_types.InputRequiredResult)

_Inward = MemoryObjectSendStream[SessionMessage | Exception]
_Outward = MemoryObjectReceiveStream[SessionMessage]

for _name in ("mcp", "client"):  # loggers of the SDK: their lines hold what servers say
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is: a command ready to be started, or an address with headers."""

    name: str
    invocation: Invocation | None = None
    url: str = ""
    headers: dict[str, str] | None = None


class Link:
    """One open connection; its calls may come from any task.

    Attributes:
        tools: what the server offers now.
    """

    def __init__(self, name: str, client: Client, *, is_local: bool, ended: trio.Event) -> None:
        self.name = name
        self.tools: tuple[RemoteToolSpec, ...] = ()
        self._client = client
        self._is_local = is_local
        self._ended = ended
        self._stale = trio.Event()
        self.trouble: Callable[[], str] = str

    def note(self, message: object) -> None:
        """Take a message that the server sent by itself."""
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._stale.set()

    async def refresh(self) -> None:
        """List all tools anew; the old list stays when that fails. Errors: MCPError and others of the SDK."""
        found: list[mcp_types.Tool] = []
        cursor: str | None = None
        for _ in range(PAGES):
            params = None if cursor is None else mcp_types.PaginatedRequestParams(cursor=cursor)
            try:
                page = await self._client.session.list_tools(params=params)
            except ValueError as error:  # of the library's own models
                raise ExternalError(
                    "its list of tools is not what the protocol says, or nested too deeply; ask its maker"
                ) from error
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) > TOOLS:
                break
        if len(found) > TOOLS:
            log.warning("tools of an MCP server left out", extra=kv(server=self.name, listed=len(found), kept=TOOLS))
        self.tools = await trio.to_thread.run_sync(_usable, self.name, found[:TOOLS])

    async def serve(self, changed: Callable[[], None]) -> None:
        """Follow what the server does until the connection ends.

        Args:
            changed: called when the list of tools is another one.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_changes, changed)
            if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                nursery.start_soon(self._listen)
            if not self._is_local:
                nursery.start_soon(self._look_after)
            await self._ended.wait()
            nursery.cancel_scope.cancel()

    async def _follow_changes(self, changed: Callable[[], None]) -> None:
        while True:
            await self._stale.wait()
            await trio.sleep(SETTLE_S)
            self._stale = trio.Event()
            before = self.tools
            try:
                with trio.fail_after(LIST_S):
                    await self.refresh()
            except Exception as error:  # boundary: library
                log.warning("tools of an MCP server not listed", extra=kv(server=self.name, error=self.explain(error)))
                if not self._is_local and isinstance(error, trio.TooSlowError):
                    self._ended.set()
                continue
            if self.tools != before:
                changed()

    async def _listen(self) -> None:
        """Ask a server of the newer protocol for notices of change; one that has none is asked from time to time."""
        try:
            async with self._client.listen(tools_list_changed=True) as subscription:
                async for _ in subscription:
                    self._stale.set()
        except Exception as error:  # boundary: library
            log.debug("no notices of an MCP server", extra=kv(server=self.name, error=type(error).__name__))

    async def _look_after(self) -> None:
        """List again now and then: a server behind HTTP that is gone does not say so."""
        while True:
            await trio.sleep(CHECK_S)
            self._stale.set()

    async def call(
        self, tool: str, arguments: dict[str, Any], *, timeout_s: float, on_progress: Callable[[], None]
    ) -> CallResult:
        """Call a tool.

        Args:
            timeout_s: until the answer; news of progress begin it again, up to `EXTENSIONS` times in all.
            on_progress: called for each of these.

        Errors: ToolError.
        Cancel: tells the server, and waits for nothing.
        """
        started = trio.current_time()

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            on_progress()
            scope.deadline = min(started + EXTENSIONS * timeout_s, trio.current_time() + timeout_s)

        request = mcp_types.CallToolRequest(params=mcp_types.CallToolRequestParams(name=tool, arguments=arguments))
        result: Any = None
        try:
            with trio.CancelScope(deadline=started + timeout_s) as scope:
                result = await self._client.session.send_request(request, _ANSWERS, progress_callback=progressed)
        except Exception as error:  # boundary: library
            raise ToolError(f"{self.name}: {self.explain(error)}") from error
        if result is None:
            waited = trio.current_time() - started
            raise ToolError(f"{self.name} gave no answer within {waited:.0f} s; the call was cancelled")
        if not isinstance(result, mcp_types.CallToolResult):
            raise ToolError(f"{self.name} wants to ask a person something in mid-call, which is not possible here")
        return await trio.to_thread.run_sync(_rendered, result)

    def explain(self, error: BaseException) -> str:
        """Why something failed, in words that may be shown; marks the connection when it is lost."""
        if _is_lost(error):
            self._ended.set()
        return explain(error, self.trouble())


def _is_lost(error: BaseException) -> bool:
    """Whether after this error nothing more can be expected of the connection."""
    if not isinstance(error, MCPError):
        return False
    return error.code == mcp_types.CONNECTION_CLOSED or error.message in _LOST


def explain(error: BaseException, trouble: str = "") -> str:
    """Why a connection or a request failed, in words that may be shown.

    Args:
        trouble: what is known besides, which says more than the library's words.
    """
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, SpacebotError):
        return scrub(str(error))
    if isinstance(error, MCPError):
        if error.code == mcp_types.CONNECTION_CLOSED:
            return trouble or "the connection ended"
        if trouble and (error.message in _LOST or error.message.startswith(_REDIRECT)):
            return trouble
        return scrub(clean_unicode(preview(error.message, SAID))) or "it refused"
    if isinstance(error, trio.TooSlowError | TimeoutError):
        return "no answer in time"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = scrub(preview(".".join(map(str, first["loc"])), 80))
        return f"its answer does not follow the protocol ({place}: {first['msg']})"
    if isinstance(error, RuntimeError) and not trouble:  # the SDK's word for a version that it does not know
        return scrub(clean_unicode(preview(str(error), SAID)))
    return trouble or f"the connection failed ({type(error).__name__})"


@asynccontextmanager
async def open_link(endpoint: Endpoint, *, connect_s: float = CONNECT_S) -> AsyncIterator[Link]:
    """Connect to a server and list its tools.

    Owns: the connection and the program behind it; on leaving, both are gone within about two seconds.
    Errors: ExternalError with the reason, ConfigError, ToolError when the program cannot be started; also while the
        block runs, when the connection breaks. An orderly end of the server ends `Link.serve` instead.
    """
    ended = trio.Event()
    link: Link | None = None
    local: _Local | None = None
    said: Callable[[], str] = str
    is_up = False
    with trio.CancelScope(deadline=trio.current_time() + connect_s) as scope:
        try:
            async with AsyncExitStack() as stack:
                if endpoint.invocation is not None:
                    program = await stack.enter_async_context(
                        open_program(endpoint.invocation, has_pipes=True, grace_s=GRACE_S)
                    )
                    local = _Local(program, endpoint.name, ended)
                    said = local.trouble
                    transport: Any = local.streams()
                else:
                    http, guard = await stack.enter_async_context(open_http(endpoint.url, endpoint.headers or {}))
                    said = _trouble_of(guard)
                    transport = streamable_http_client(endpoint.url, http_client=http, max_sse_event_size=MAX_ANSWER)
                client = await stack.enter_async_context(
                    Client(
                        transport,
                        client_info=mcp_types.Implementation(name="spacebot", version=__version__),
                        message_handler=_to(lambda: link),
                        cache=None,
                    )
                )
                link = Link(endpoint.name, client, is_local=endpoint.invocation is not None, ended=ended)
                link.trouble = said
                await link.refresh()
                is_up, scope.deadline = True, float("inf")
                yield link
        except Exception as error:  # boundary: library
            if isinstance(error, ConfigError | ToolError | ExternalError):
                raise
            raise ExternalError(explain(error, said())) from error
        except BaseExceptionGroup as group:  # a cancellation, and what broke at the same moment
            cancelled, rest = group.split(trio.Cancelled)
            if cancelled is None or (rest is not None and not isinstance(rest, ExceptionGroup)):
                raise
            raise cancelled from None
    if scope.cancelled_caught and not is_up:
        words = local.last_words if local is not None else said()
        raise ExternalError(f"no answer within {connect_s:.0f} s" + (f"; it said: {words}" if words else ""))


def _to(link: Callable[[], Link | None]) -> Any:
    async def handle(message: Any) -> None:
        if (open_one := link()) is not None:
            open_one.note(message)
        await trio.lowlevel.checkpoint()

    return handle


def _trouble_of(guard: GuardedTransport) -> Callable[[], str]:
    return lambda: guard.trouble


class _Local:
    """A program as the SDK's transport: its pipes, and how it ended."""

    def __init__(self, program: Program, server: str, ended: trio.Event) -> None:
        self._program = program
        self._server = server
        self._ended = ended
        self._reason = ""

    @property
    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        return " ".join(self._program.said.split())[-SAID:]

    def trouble(self) -> str:
        """Why the connection is over; empty while it is not."""
        if self._reason:
            return self._reason
        if not self._ended.is_set():
            return ""
        return "its program ended" + (f"; its last words: {self.last_words}" if self.last_words else "")

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[tuple[Any, Any]]:
        """The streams as the SDK wants them."""
        inward_end, inward = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outward, outward_end = anyio.create_memory_object_stream[SessionMessage](QUEUED)
        assert self._program.stdin is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, inward_end)
                nursery.start_soon(self._write, outward_end, inward_end)
                nursery.start_soon(self._watch, inward_end)
                try:
                    yield inward, outward
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            for stream in (inward_end, inward, outward, outward_end):
                stream.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_S):
                await self._take_leave()

    async def _take_leave(self) -> None:
        """Let the server end by itself; whoever opened the program sees to it that it does."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._program.stdin.aclose()
            while await self._program.stdout.receive_some(PIECE):
                pass

    def _end(self, inward_end: _Inward) -> None:
        inward_end.close()
        self._ended.set()

    async def _read(self, inward_end: _Inward) -> None:
        assert self._program.stdout is not None
        lines = Lines(self._program.stdout, self._server)
        try:
            while (message := await lines.next()) is not None:
                if message.get("method") == "notifications/message":  # a server's log, which nobody reads here
                    continue
                try:
                    parsed = mcp_types.jsonrpc_message_adapter.validate_python(message, by_name=False)
                except ValidationError:
                    continue
                await inward_end.send(SessionMessage(parsed))
            with trio.move_on_after(LEAVE_S):  # its last words
                await self._program.wait()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # the session is over
        except ExternalError as error:
            self._reason = str(error)
            log.warning("MCP server cut off", extra=kv(server=self._server, reason=self._reason))
        self._end(inward_end)

    async def _write(self, outward_end: _Outward, inward_end: _Inward) -> None:
        stdin = self._program.stdin
        assert stdin is not None
        try:
            async for message in outward_end:
                line = message.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n"
                with trio.fail_after(WRITE_S):
                    await stdin.send_all(line.encode(errors="replace"))
        except trio.TooSlowError:
            self._reason = "it does not read what it is sent"
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(LEAVE_S):
                await self._program.wait()
        else:
            return
        self._end(inward_end)

    async def _watch(self, inward_end: _Inward) -> None:
        """A program that is gone says nothing more, even if a child of it keeps the pipe open."""
        await self._program.wait()
        await trio.sleep(LEAVE_S)
        self._end(inward_end)


def _usable(server: str, tools: Sequence[mcp_types.Tool]) -> tuple[RemoteToolSpec, ...]:
    """The tools that a model can be given, each once; what is left out is told to the owner. Blocking."""
    found: dict[str, RemoteToolSpec] = {}
    for tool in tools:
        reason = ""
        schema = {"type": "object", **tool.input_schema}
        try:
            reason = check_schema_form(schema)
            if not reason:
                jsonschema.Draft202012Validator.check_schema(schema)
        except (jsonschema.SchemaError, RecursionError, ValueError):
            reason = "its input schema is no JSON schema"
        name = clean_unicode(tool.name)
        if reason or not name.strip():
            log.warning("tool of an MCP server left out", extra=kv(server=server, tool=preview(name), reason=reason))
        elif name not in found:
            words = clean_unicode(tool.description or tool.title or "")
            found[name] = RemoteToolSpec(name, words, json.loads(clean_unicode(json.dumps(schema))))
    return tuple(found.values())


def _rendered(result: mcp_types.CallToolResult) -> CallResult:
    content = [part.model_dump(by_alias=True, mode="json", exclude_none=True) for part in result.content]
    return CallResult(render_result(content, result.structured_content), is_error=bool(result.is_error))


async def measure(endpoint: Endpoint, *, connect_s: float = CONNECT_S) -> tuple[tuple[RemoteToolSpec, ...], float]:
    """Connect, list the tools and leave again; returns them and the seconds that it took. Errors: as `open_link`."""
    began = monotonic_s()
    async with open_link(endpoint, connect_s=connect_s) as link:
        return link.tools, monotonic_s() - began
