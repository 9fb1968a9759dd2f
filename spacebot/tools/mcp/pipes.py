"""The words of a server that talks over its standard output: lines of JSON, taken with care.

A line may be of any length up to a limit, may be no message at all, and may come in floods. Large ones are parsed in a
thread, and what no model would be shown of them is dropped there.

Flow:    pipe -> Lines.next -> one JSON object; `shorten` for large answers
Floor:   tools
Source:  MCP 2025-11-25, transports: one message on one line; tools spec 11 and 23
"""

import json
import logging
from typing import Any, Protocol

import trio

from spacebot.base.errors import ExternalError
from spacebot.base.telemetry import kv
from spacebot.base.text import head_and_tail, preview
from spacebot.tools.contract import RESULT_CAP

log = logging.getLogger(__name__)

MAX_LINE = 16 * 1024 * 1024  # bytes of one message
LARGE = 64 * 1024  # bytes from which on a thread parses
MAX_UNASKED = 500  # messages within a second that answer nothing
PIECE = 65_536  # bytes of one read
KEPT_TEXT = 4 * RESULT_CAP  # bytes of one text; scrubbed and cut to the cap later, far from this cut
KEPT_CODE = 1000  # characters of coded bytes, which no model reads
MOST_PARTS = 1000

JsonObject = dict[str, Any]


class Source(Protocol):
    """Something that gives bytes."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; none at the end."""
        ...


class Lines:
    """The messages that come out of a pipe.

    Args:
        server: whose they are, for the log.
    """

    def __init__(self, source: Source, server: str) -> None:
        self._source = source
        self._server = server
        self._rest = bytearray()
        self._searched = 0  # bytes of the rest that hold no end of a line
        self._unasked = 0
        self._since = trio.current_time()
        self._is_told = False

    async def next(self) -> JsonObject | None:
        """The next message; None at the end.

        Errors: ExternalError when a line is too long or there are too many.
        """
        while (line := await self._line()) is not None:
            message = await self._message(line)
            if message is not None:
                mend_listing(message, self._server)
                if "method" in message:
                    self._count()
                return message
            if line.strip():
                self._count()
                if not self._is_told:
                    self._is_told = True
                    log.info("MCP server writes what is no message", extra=kv(server=self._server, bytes=len(line)))
        return None

    async def _line(self) -> bytes | None:
        while (end := self._rest.find(b"\n", self._searched)) < 0:
            self._searched = len(self._rest)
            if self._searched > MAX_LINE:
                raise ExternalError(f"it sent a message of more than {MAX_LINE // 2**20} MiB")
            try:
                data = await self._source.receive_some(PIECE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._rest += data
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        self._searched = 0
        return line

    async def _message(self, line: bytes) -> JsonObject | None:
        if len(line) < LARGE:
            return parse(line)
        return await trio.to_thread.run_sync(_parse_large, line)

    def _count(self) -> None:
        now = trio.current_time()
        if now - self._since >= 1:
            self._since, self._unasked = now, 0
        self._unasked += 1
        if self._unasked > MAX_UNASKED:
            raise ExternalError(f"it sent more than {MAX_UNASKED} messages in a second that nobody asked for")


def parse(line: bytes) -> JsonObject | None:
    """A line as a JSON object; None when it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _parse_large(line: bytes) -> JsonObject | None:
    message = parse(line)
    if message is not None and isinstance(message.get("result"), dict):
        shorten(message["result"])
    return message


def shorten(result: JsonObject) -> None:
    """Drop from the result of a call, in place, what a model would not be shown anyway."""
    content = result.get("content")
    if not isinstance(content, list):
        return
    del content[MOST_PARTS:]
    for part in content:
        if isinstance(part, dict):
            for piece in (part, part.get("resource")):
                if isinstance(piece, dict):
                    _shorten_part(piece)
    structured = result.get("structuredContent")
    if structured is not None:
        text = json.dumps(structured, ensure_ascii=False)
        if len(text) > KEPT_TEXT:
            del result["structuredContent"]
            if not any(isinstance(part, dict) and part.get("type") == "text" for part in content):
                content.append({"type": "text", "text": head_and_tail(text, KEPT_TEXT)})


def mend_listing(message: JsonObject, server: str) -> None:
    """Leave out, in place, listed tools without a schema that can be one: the SDK would refuse the whole list."""
    result = message.get("result")
    tools = result.get("tools") if isinstance(result, dict) else None
    if not isinstance(tools, list):
        return
    kept = []
    for tool in tools:
        schema = tool.get("inputSchema") if isinstance(tool, dict) else None
        if isinstance(schema, dict) and schema.setdefault("type", "object") == "object":
            kept.append(tool)
        else:
            name = preview(str(tool.get("name"))) if isinstance(tool, dict) else "nameless"
            log.warning("tool of an MCP server left out", extra=kv(server=server, tool=name, reason="no object schema"))
    tools[:] = kept


def _shorten_part(part: JsonObject) -> None:
    if isinstance(text := part.get("text"), str):
        part["text"] = head_and_tail(text.encode(errors="replace").decode(), KEPT_TEXT)
    for key in ("data", "blob"):
        if isinstance(code := part.get(key), str) and len(code) > KEPT_CODE:
            part[key] = ""  # an empty code is a valid one; how much there was stands beside it
            part["_meta"] = {"left_out_characters": len(code)}
