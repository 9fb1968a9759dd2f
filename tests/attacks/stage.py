"""Plays attacks: a model that calls what it is told to, in a real agent, and what each call came to.

A whole table of calls runs in one agent, because opening one for each would take minutes; each is judged by itself.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from spacebot.base import redaction
from spacebot.base.events import EventKind
from spacebot.llm.messages import ModelRequest, ProcessKind, ToolResult
from spacebot.tools.sandbox import Backend, BackendKind, probe_backend
from tests.fakes.fake_platform import FakeCourier, FakePlatform
from tests.fakes.opened import Opened, open_test_agent
from tests.fakes.scripted_model import Call, Calls, ScriptedModel

BATCH = 10  # calls in one step
TOOL_SECRET = "kq7-TOOL-wxyz-0123456789-abcdef-vu31f"  # what commands may use and nobody may read
SYSTEM_SECRET = "zz9-SYSTEM-plural-z-alpha-4242-hitchhike"  # what only the configuration may use
FORBIDDEN = (TOOL_SECRET, SYSTEM_SECRET)


class Notes(logging.Handler):
    """Everything that was logged from `info` on, as the log file would show it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, call: str | None = None) -> list[str]:
        """The lines, or those of one call."""
        found = [(record, getattr(record, "kv", {})) for record in self.records]
        return [f"{record.getMessage()} {kv}" for record, kv in found if call is None or kv.get("call") == call]


@contextmanager
def noted() -> Iterator[Notes]:
    """Note what is logged in a block."""
    handler, logger = Notes(), logging.getLogger("spacebot")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def with_secrets() -> Iterator[None]:
    """The two secrets are known in a block, as after a start; nothing of it is known after."""
    known = redaction._known
    redaction._known = copy(known)
    for value in FORBIDDEN:
        redaction.register_secret(value)
    try:
        yield
    finally:
        redaction._known = known


@dataclass(frozen=True)
class Played:
    """What one call came to."""

    text: str
    is_error: bool
    log: tuple[str, ...]


@dataclass
class Act:
    """What a whole table came to."""

    played: dict[str, Played] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # texts that went out
    everything: str = field(default="", repr=False)  # all events, all logs, and the bytes of the database
    folder: Path = Path()


Prepare = Callable[[Path], None]


def play(
    folder: Path,
    calls: Mapping[str, Call],
    *,
    by: ProcessKind = ProcessKind.WORKER,
    prepare: Prepare = lambda workspace: None,
    sandboxed: bool = False,
    during: Callable[[Opened], Awaitable[None]] | None = None,
    before: Callable[[Opened], Awaitable[None]] | None = None,
    is_direct: bool = True,
    **settings: Any,
) -> Act:
    """Have a worker, or the channel itself, make these calls one after the other.

    Args:
        prepare: gets the workspace before anything runs.
        sandboxed: with bubblewrap, skipping where it does not work; else commands are not contained.
        before: done when the room `fake:news` is known, before anybody asks.
        during: runs beside the calls and is cancelled at their end.
    """

    async def run() -> Act:
        backend = await _backend(sandboxed)
        return await _run(folder, calls, by, prepare, backend, during, before, is_direct, settings)

    with with_secrets():
        return trio.run(run)


async def _backend(sandboxed: bool) -> Backend:
    if not sandboxed:
        return Backend(note="switched off for this attack")
    backend = await probe_backend()
    if backend.kind is not BackendKind.BUBBLEWRAP:
        pytest.skip(f"no usable bubblewrap here: {backend.note}")
    return backend


async def _run(
    folder: Path,
    calls: Mapping[str, Call],
    by: ProcessKind,
    prepare: Prepare,
    backend: Backend,
    during: Callable[[Opened], Awaitable[None]] | None,
    before: Callable[[Opened], Awaitable[None]] | None,
    is_direct: bool,
    settings: Mapping[str, Any],
) -> Act:
    named = [Call(call.name, _raw=call.raw, _id=name, **call.arguments) for name, call in calls.items()]
    steps = [Calls(*named[start : start + BATCH]) for start in range(0, len(named), BATCH)]
    results: dict[str, ToolResult] = {}

    def next_step(request: ModelRequest) -> Any:
        for message in request.messages:
            results.update({part.call_id: part for part in message.parts if isinstance(part, ToolResult)})
        if steps:
            return steps.pop(0)
        return Call("set_status", kind="outcome", status="done") if by is ProcessKind.WORKER else Call("skip")

    if by is ProcessKind.WORKER:
        model = ScriptedModel(
            lambda request: (
                Call("skip")
                if model.requests_of(ProcessKind.WORKER) or len(model.requests_of(ProcessKind.CHANNEL)) > 1
                else Calls(Call("spawn_worker", task="attack"), Call("reply", content="on it"))
            ),
            worker=next_step,
        )
    else:
        model = ScriptedModel(
            next_step,
            branch=lambda request: "nothing",
            worker=lambda request: Call("set_status", kind="outcome", status="no"),
        )
    platform = FakePlatform()
    with noted() as notes:
        opening = open_test_agent(
            folder,
            model,
            backend=backend,
            patience_s=60.0,
            courier=FakeCourier(platform),
            tool_secrets=lambda: {"DEPLOY_TOKEN": TOOL_SECRET},
            max_turns=100,
            **settings,
        )
        async with opening as opened, trio.open_nursery() as nursery:
            prepare(folder / "agents/main/workspace")
            if during is not None:
                nursery.start_soon(partial(during, opened))
            await opened.agent.take(platform.message("Bob", "hi", room="fake:news"), observe=True, may_control=False)
            if before is not None:
                await before(opened)
            await opened.agent.take(platform.message("Ann", "go", is_direct=is_direct), observe=False, may_control=True)
            kind = EventKind.WORKER_COMPLETED if by is ProcessKind.WORKER else EventKind.TURN_ENDED
            await opened.events_of(kind, 1)
            if by is ProcessKind.CHANNEL:
                await opened.agent.delivery.flush(5.0)
            nursery.cancel_scope.cancel()
        act = Act(folder=folder, said=[_words(sent.message) for sent in platform.sent])
        through = ToolResult("", "nobody hindered it, and the process ended with it or before it")
        for name in calls:
            result = results.get(name, through)
            act.played[name] = Played(result.text, result.is_error, tuple(notes.lines(name)))
        database = b"".join(path.read_bytes() for path in folder.rglob("spacebot.db*"))
        events = "\n".join(str(event.to_json_object()) for event in opened.happened)
        act.everything = "\n".join([events, *notes.lines(), *act.said, database.decode("latin-1")])
        return act


def _words(message: Any) -> str:
    return repr(message)
