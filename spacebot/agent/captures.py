"""What models saw, kept for the owner: "why did it say that" has an answer as long as the request is kept.

A call costs its process one append. A service takes what has gathered, some at a time: pieces are told apart by a
hash of their text, and only those that are new are looked through for secrets, packed and written.

Flow:    CapturingModel.complete -> Captures.note -> (after a moment) thread: pieces, hashes, scrubbing -> CaptureLog
Floor:   agent
Source:  control spec 9 (prompt inspector); ours
"""

import hashlib
import json
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio

from spacebot.agent.parts import AgentModel
from spacebot.base.clock import Clock
from spacebot.base.errors import ModelError, StorageError
from spacebot.base.redaction import scrub
from spacebot.base.telemetry import kv
from spacebot.conversations.captures import HASH, Capture, CaptureEntry, CaptureLog, Piece, ShownCapture
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    Part,
    ProcessKind,
    Reasoning,
    SystemBlock,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)

log = logging.getLogger(__name__)

QUEUE = 512  # requests that wait to be kept; older ones give way
BATCH = 32  # in one transaction, so that none takes long
GATHER_S = 1.0  # a conversation's requests come in pairs and more
KNOWN = 8192  # hashes of pieces that are surely kept
COUNTED = 2048  # processes whose model calls are counted
BYTES_PER_TOKEN = 4
ERROR = "error"
MET_CHARS = 4_000_000  # of what is known by identity, pictures included
_HEADING = re.compile(r"(?m)^(?=#{1,2} \S)")


@dataclass(frozen=True, slots=True)
class _Met:
    """A part of requests, by identity: its hashes in order, and its pieces by them."""

    thing: object
    layout: bytes
    pieces: Mapping[bytes, Piece]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One call as it was made."""

    request: ModelRequest
    reply: ModelReply | None
    error: str | None
    step: int
    at: str
    process_id: str | None
    channel_id: str | None


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a request for its reader; `is_cached`: the provider had read it before."""

    kind: str
    name: str | None
    role: str | None
    form: str
    text: str
    tokens: int
    is_cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCapture:
    """A kept request for its reader."""

    capture: Capture
    blocks: Sequence[Block]
    reply: Mapping[str, Any]


class Captures:
    """One agent's kept requests; `run` is the life of the part that writes."""

    def __init__(self, store: CaptureLog, clock: Clock, *, agent_id: str, keep: Callable[[], int]) -> None:
        """Take what keeping needs.

        Args:
            keep: how many requests are kept; 0 keeps none.
        """
        self._store = store
        self._clock = clock
        self._agent_id = agent_id
        self._keep = keep
        self._waiting: deque[_Seen] = deque(maxlen=QUEUE)
        self._arrived = trio.Event()
        self._lock = trio.Lock()
        self._steps: OrderedDict[str, int] = OrderedDict()
        self._pieces = _Pieces()
        self.era = 0  # grows when all is forgotten; what was seen before does not come back

    @property
    def is_on(self) -> bool:
        """Whether requests are kept at all."""
        return self._keep() > 0

    @property
    def kept(self) -> int:
        """How many requests are kept at most."""
        return self._keep()

    def note(self, request: ModelRequest, reply: ModelReply | None, error: str | None = None) -> None:
        """Take a call; never waits and never fails."""
        node = request.node
        step = 1
        if node is not None:
            step = self._steps.pop(node.id, 0) + 1
            self._steps[node.id] = step
            if len(self._steps) > COUNTED:
                self._steps.popitem(last=False)
        self._waiting.append(
            _Seen(
                request,
                reply,
                error,
                step,
                self._clock.text(),
                None if node is None else node.id,
                None if node is None else node.channel_id,
            )
        )
        self._arrived.set()

    async def run(self) -> None:
        """Keep what comes until cancelled; what waits then is written last."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                await trio.sleep(GATHER_S)
                await self.flush()
        finally:
            with trio.CancelScope(shield=True):
                await self.flush()

    async def flush(self) -> None:
        """Write what waits; a failure is logged, and what it was about is not kept."""
        async with self._lock:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                era, keep = self.era, self._keep()
                try:
                    entries = await trio.to_thread.run_sync(self._pieces.entries, batch)
                    gone = await self._store.add(partial(self._if_still, era, entries), keep=keep)
                except StorageError as error:
                    self._pieces.forget()
                    log.error("requests to models not kept", extra=kv(agent=self._agent_id, error=str(error)))
                else:
                    self._pieces.drop(gone)
                if era != self.era:  # what was known is being removed
                    self._pieces.forget()

    def _if_still(self, era: int, entries: Sequence[CaptureEntry]) -> Sequence[CaptureEntry]:
        return entries if era == self.era else ()

    async def clear(self) -> None:
        """Forget everything that models saw, also what is just being asked or written. Errors: StorageError."""
        self.era += 1
        self._waiting.clear()
        async with self._lock:
            await self._store.clear()
            self._pieces = _Pieces()  # nor does memory keep it

    async def page(
        self, *, limit: int, before: int | None = None, channel_id: str | None = None, process_id: str | None = None
    ) -> list[Capture]:
        """Kept requests, the newest first. Errors: StorageError."""
        await self.flush()
        return await self._store.page(limit=limit, before=before, channel_id=channel_id, process_id=process_id)

    async def find(self, capture_id: int) -> ReadCapture | None:
        """One with its pieces, without secrets that became known since; None when it is gone. Errors: StorageError."""
        await self.flush()
        found = await self._store.find(capture_id)
        return None if found is None else await trio.to_thread.run_sync(_read, found)


class CapturingModel:
    """A model whose calls are kept for the owner."""

    def __init__(self, model: AgentModel, captures: Captures) -> None:
        self._model = model
        self._captures = captures

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that a request of this kind of process may have, answer included."""
        return self._model.context_window(process)

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: ModelError."""
        return await self._model.transcribe(audio, media_type, instruction=instruction)

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer. Errors: ModelError."""
        captures = self._captures
        if not captures.is_on:
            return await self._model.complete(request, on_delta)
        era = captures.era
        try:
            reply = await self._model.complete(request, on_delta)
        except ModelError as error:
            if era == captures.era:
                captures.note(request, None, str(error))
            raise
        if era == captures.era:
            captures.note(request, reply)
        return reply


class _Pieces:
    """Turns calls into entries; used by one thread at a time.

    What stays the same from call to call (the prompt, the tools, the messages of a history) is known by identity, so
    that a call costs hardly more than what is new in it.
    """

    def __init__(self) -> None:
        self._kept: set[bytes] = set()
        self._met: dict[int | str, _Met] = {}
        self._chars = 0

    def forget(self) -> None:
        """Nothing is surely kept any more."""
        self._kept = set()

    def drop(self, gone: Iterable[bytes]) -> None:
        """These pieces are no longer kept."""
        self._kept.difference_update(gone)

    def entries(self, batch: Sequence[_Seen]) -> list[CaptureEntry]:
        """The entries of some calls."""
        return [self._entry(seen) for seen in batch]

    def _entry(self, seen: _Seen) -> CaptureEntry:
        request, kept = seen.request, self._kept
        layout: list[bytes] = []
        new: dict[bytes, Piece] = {}
        parts: tuple[SystemBlock | ToolSpec | ModelMessage, ...] = (*request.system, *request.tools, *request.messages)
        for thing in parts:
            # A prompt is rendered anew for each turn, and mostly comes to the same words.
            key = thing.text if isinstance(thing, SystemBlock) else id(thing)
            known = self._met.get(key)
            if known is None or (known.thing is not thing and not isinstance(thing, SystemBlock)):
                known = self._met[key] = self._meet(thing, request)
            layout.append(known.layout)
            if not kept.issuperset(known.pieces):
                for digest in known.pieces.keys() - kept:
                    piece = known.pieces[digest]
                    new[digest] = replace(piece, text=scrub(piece.text))
                    kept.add(digest)
        if len(kept) > KNOWN:
            kept.clear()
        return CaptureEntry(
            created_at=seen.at,
            channel_id=seen.channel_id,
            process_type=str(request.process),
            process_id=seen.process_id,
            step=seen.step,
            model="" if seen.reply is None else seen.reply.model,
            usage=Usage() if seen.reply is None else seen.reply.usage,
            finish_reason=ERROR if seen.reply is None else str(seen.reply.finish_reason),
            layout=b"".join(layout),
            reply=_reply(seen),
            pieces=new,
        )

    def _meet(self, thing: SystemBlock | ToolSpec | ModelMessage, request: ModelRequest) -> _Met:
        match thing:
            case SystemBlock(text):
                pieces = _of_system(text)
            case ToolSpec():
                pieces = [_of_tool(thing)]
            case _:
                pieces = _of_message(thing, request)
        digests = [_digest(piece) for piece in pieces]
        self._chars += sum(len(piece.text) for piece in pieces) + _held_beside(thing)
        if self._chars > MET_CHARS:
            self._met.clear()
            self._chars = 0
        return _Met(thing, b"".join(digests), dict(zip(digests, pieces, strict=True)))


def _held_beside(thing: SystemBlock | ToolSpec | ModelMessage) -> int:
    """Characters of pictures, which are held with the message and are no part of its pieces."""
    parts = thing.parts if isinstance(thing, ModelMessage) else ()
    return sum(len(part.data) for part in parts if isinstance(part, Image))


def _of_system(text: str) -> list[Piece]:
    """A part of the system prompt, cut before its headings."""
    made = []
    for part in _HEADING.split(text):
        if part:
            heading = part.partition("\n")[0].lstrip("# ").strip() if part.startswith("#") else None
            made.append(_sized("system", heading, None, "text", part))
    return made


def _of_tool(tool: ToolSpec) -> Piece:
    text = f"{tool.description}\n\n{json.dumps(tool.schema, indent=1, ensure_ascii=False)}"
    return _sized("tools", tool.name, None, "text", text)


def _of_message(message: ModelMessage, request: ModelRequest) -> list[Piece]:
    names: dict[str, str] = {}
    if any(isinstance(part, ToolResult) for part in message.parts):
        names = {call.id: call.name for one in request.messages for call in one.tool_calls}
    made = []
    for part in message.parts:
        form, name, text = _shown(part, names)
        made.append(_sized("message", name, str(message.role), form, text))
    return made


def _sized(kind: str, name: str | None, role: str | None, form: str, text: str) -> Piece:
    return Piece(kind, name, role, form, text, -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN))


def _shown(part: Part, names: Mapping[str, str]) -> tuple[str, str | None, str]:
    """Form, name and text of a message's part."""
    match part:
        case Text(text):
            return "text", None, text
        case Reasoning(text):
            return "reasoning", None, text
        case Image(media_type, data):
            return "image", media_type, f"[{media_type}, {len(data) * 3 // 4} bytes]"
        case ToolResult(call_id, text):
            return "result", names.get(call_id), text
    return "call", part.name, _arguments(part)


def _arguments(call: ToolCall) -> str:
    if call.arguments is None:
        return call.raw_arguments
    return json.dumps(dict(call.arguments), ensure_ascii=False, default=str)


def _reply(seen: _Seen) -> dict[str, object]:
    if seen.reply is None:
        return {"text": "", "calls": [], "finish_reason": ERROR, "error": scrub(seen.error or "")}
    message = seen.reply.message
    return {
        "text": scrub(message.text),
        "calls": [{"name": call.name, "arguments": scrub(_arguments(call))} for call in message.tool_calls],
        "finish_reason": str(seen.reply.finish_reason),
        "error": None,
    }


def _marked(pieces: Sequence[Piece], usage: Usage) -> list[bool]:
    """Which pieces the provider had read before: so many tokens from the front, where the tools are."""
    marks = [False] * len(pieces)
    total = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    if not usage.cache_read_tokens or not total:
        return marks
    left = usage.cache_read_tokens / total * sum(piece.tokens for piece in pieces)
    for place in sorted(range(len(pieces)), key=lambda place: pieces[place].kind != "tools"):
        left -= pieces[place].tokens
        if left < -pieces[place].tokens / 2:  # our count of tokens is a rough one
            break
        marks[place] = True
    return marks


def _read(shown: ShownCapture) -> ReadCapture:
    """A kept request for its reader: without secrets that became known since."""
    reply = dict(shown.reply)
    for key in ("text", "error"):
        if reply.get(key):
            reply[key] = scrub(reply[key])
    reply["calls"] = [{**call, "arguments": scrub(call["arguments"])} for call in reply.get("calls", ())]
    marks = _marked(shown.pieces, shown.capture.usage)
    blocks = [
        Block(piece.kind, piece.name, piece.role, piece.form, scrub(piece.text), piece.tokens, mark)
        for piece, mark in zip(shown.pieces, marks, strict=True)
    ]
    return ReadCapture(capture=shown.capture, blocks=blocks, reply=reply)


def _digest(piece: Piece) -> bytes:
    words = "\0".join((piece.kind, piece.name or "", piece.role or "", piece.form, piece.text))
    return hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=HASH).digest()
