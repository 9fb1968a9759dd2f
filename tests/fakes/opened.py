"""A whole agent with a scripted model: real log, real memory, real prompts, time that the test moves.

    async with open_test_agent(tmp_path, ScriptedModel(Call("reply", content="hello"))) as opened:
        await opened.say("Ann", "hi")
        assert await opened.said(1) == ["hello"]

Time stands still unless the test calls `advance` (the test takes the `clock` fixture); what the test waits for
is an event, and a watchdog in real time tells what was seen when it never comes.
"""

import gc
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.agent.agent import Agent
from spacebot.agent.opening import open_agent
from spacebot.agent.parts import AgentModel
from spacebot.base.clock import Clock
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.fetch import open_fetcher
from spacebot.base.ids import ConversationId
from spacebot.base.paths import InstancePaths
from spacebot.base.tree import Node, NodeKind, Tree
from spacebot.config.model import AgentConfig, ApiType, LlmConfig, ProviderConfig
from spacebot.conversations.records import Accepted, Fate
from spacebot.memory.embedding import Embedder
from spacebot.memory.index import IndexPolicy
from spacebot.messaging.courier import NO_PLATFORMS, Courier
from spacebot.messaging.messages import Author, InboundMessage
from spacebot.tools.sandbox import Backend
from tests.fakes.fake_embedder import FakeEmbedder

EPOCH = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)  # the wall clock when the virtual one shows 0
ROOM = "test:room"
DIRECT = "test:direct"
PATIENCE_S = 15.0  # real seconds until a test that waits in vain is ended
STEP_S = 0.25  # processor time of one step of the loop; more means that somebody blocks it
NO_TABLE = IndexPolicy(flush_after_s=1e12, flush_after_large_s=1e12)  # no child process that a moved clock would end
NO_SANDBOX = Backend(note="not wanted in this test")
LLM = LlmConfig(provider={"demo": ProviderConfig(api_type=ApiType.DEMO)})


def text_from(
    author: str, text: str, *, conversation: str = DIRECT, is_direct: bool | None = None, **fields: Any
) -> InboundMessage:
    """A message of a person; the conversation `DIRECT` is a direct chat unless said otherwise."""
    return InboundMessage(
        platform=conversation.partition(":")[0],
        conversation_id=ConversationId(conversation),
        author=Author(id=author.casefold(), name=author),
        text=text,
        sent_at=fields.pop("sent_at", EPOCH),
        is_direct=conversation == DIRECT if is_direct is None else is_direct,
        **fields,
    )


class _Models:
    """Hands the same model to every agent."""

    def __init__(self, model: AgentModel) -> None:
        self._model = model

    def for_agent(self, settings: Callable[[], AgentConfig]) -> AgentModel:
        return self._model


class _SlowSteps(trio.abc.Instrument):
    """Notes steps of the loop that use the processor for too long; collecting all tests' garbage does not count."""

    def __init__(self) -> None:
        self.slow: list[str] = []
        self._began = self._paused = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        spent = time.thread_time() - self._began
        if spent > STEP_S:
            self.slow.append(f"{task.name}: {spent * 1000:.0f} ms")

    def collected(self, phase: str, info: dict[str, int]) -> None:
        """Called by the collector before and after each of its runs."""
        if phase == "start":
            self._paused = time.thread_time()
        else:
            self._began += time.thread_time() - self._paused


@dataclass
class Opened:
    """An open agent and everything that happened since."""

    agent: Agent
    tree: Tree
    model: Any
    events: EventBus
    clock: trio.abc.Clock
    config: list[AgentConfig]
    folder: Path
    happened: list[ProcessEvent] = field(default_factory=list)
    _more: trio.Event = field(default_factory=trio.Event)

    async def say(self, author: str, text: str, **fields: Any) -> Accepted:
        """Let a person say something."""
        return await self.agent.accept(text_from(author, text, **fields))

    def of_kind(self, kind: EventKind, channel: str | None = None) -> list[ProcessEvent]:
        """What happened of one kind, in order."""
        return [e for e in self.happened if e.kind is kind and (channel is None or e.channel_id == channel)]

    async def events_of(self, kind: EventKind, count: int, channel: str | None = None) -> list[ProcessEvent]:
        """Wait for so many events of one kind; returns all of them."""
        while len(found := self.of_kind(kind, channel)) < count:
            self._more = trio.Event()
            await self._more.wait()
        return found

    async def said(self, count: int, channel: str | None = None) -> list[str]:
        """Wait for so many outbound messages; returns the texts of all of them."""
        return [str(e.fields["text"]) for e in await self.events_of(EventKind.OUTBOUND_MESSAGE, count, channel)]

    async def ended(self, count: int, channel: str | None = None) -> list[str]:
        """Wait for the end of so many turns; returns how they ended."""
        return [str(e.fields["outcome"]) for e in await self.events_of(EventKind.TURN_ENDED, count, channel)]

    async def until(self, predicate: Callable[[ProcessEvent], bool]) -> ProcessEvent:
        """Wait for the first event, from the start on, that fits."""
        seen = 0
        while True:
            for event in self.happened[seen:]:
                if predicate(event):
                    return event
            seen = len(self.happened)
            self._more = trio.Event()
            await self._more.wait()

    async def advance(self, seconds: float) -> None:
        """Move time on, once everything that can run has run and all writes are done."""
        assert isinstance(self.clock, MockClock), "take the `clock` fixture"
        await self.settled()
        self.clock.jump(seconds)
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing moves any more: all writes done, all tasks waiting."""
        for _ in range(10):  # a quiet run is a chain of reads, calls and writes
            await self.agent.usage.log.record([])
            await wait_all_threads_completed()
            await wait_all_tasks_blocked()

    async def fate(self, accepted: Accepted) -> Fate:
        """What became of a message."""
        fate = await self.agent.conversations.fate(accepted.message_id)
        assert fate is not None
        return fate

    def node(self, kind: NodeKind) -> Node:
        """The only live node of a kind."""
        (node,) = self.tree.of_kind(kind)
        return node

    def database(self) -> Path:
        """The agent's database file."""
        return self.folder / "agents" / self.agent.id / "data" / "spacebot.db"

    def note(self, event: ProcessEvent) -> None:
        self.happened.append(event)
        self._more.set()

    def story(self) -> str:
        """What happened, for the message of a failed test."""
        return "\n".join(str(event.to_json_object())[:300] for event in self.happened[-30:])


def freeze_copy(opened: Opened, target: Path) -> Path:
    """The instance's files as a power cut would leave them at this moment, in another folder."""
    shutil.copytree(opened.folder, target)
    return target


@asynccontextmanager
async def open_test_agent(
    folder: Path,
    model: Any,
    *,
    agent_id: str = "main",
    tree: Tree | None = None,
    embedder: Embedder | None = None,
    patience_s: float = PATIENCE_S,
    backend: Backend = NO_SANDBOX,
    courier: Courier = NO_PLATFORMS,
    tool_secrets: Callable[[], Mapping[str, str]] = dict,
    **settings: Any,
) -> AsyncIterator[Opened]:
    """Open an agent in a folder; a second opening of the same folder is its next life.

    Args:
        model: a `ScriptedModel`, or anything that completes and knows its window.
        embedder: None means the fake one.
        courier: the platforms that deliver.
        backend: what contains commands; nothing unless given.
        tool_secrets: variables for workers' commands.
        patience_s: real seconds after which a test that waits in vain is ended.
        settings: fields of `AgentConfig`; `opened.config[0]` may be replaced while it runs.
    """
    instance = InstancePaths(folder, folder / "config.toml")
    instance.create()
    config = [AgentConfig(id=agent_id, **{"user_timezone": "UTC", **settings})]
    trio_clock = trio.lowlevel.current_clock()
    clock = Clock()
    if isinstance(trio_clock, MockClock):
        mock = trio_clock
        clock = Clock(now=lambda: EPOCH + timedelta(seconds=mock.current_time()))
    tree, events = tree or Tree(clock), EventBus()
    parent = tree.get("test") or tree.add(NodeKind.DAEMON, "test", node_id="test")

    async def find_backend() -> Backend:
        return backend

    steps = _SlowSteps()
    trio.lowlevel.add_instrument(steps)
    gc.callbacks.append(steps.collected)
    opened: Opened | None = None
    try:
        with _watchdog(patience_s) as barked:
            with events.subscribe(buffer=100_000, has_details=True) as subscription:
                async with (
                    open_fetcher() as fetcher,
                    open_agent(
                        lambda: config[0],
                        llm=lambda: LLM,
                        instance=instance,
                        models=_Models(model),
                        embedder=embedder or FakeEmbedder(),
                        probe=find_backend,
                        tree=tree,
                        parent=parent,
                        events=events,
                        clock=clock,
                        fetcher=fetcher,
                        courier=courier,
                        tool_secrets=tool_secrets,
                        index=NO_TABLE,
                    ) as agent,
                    trio.open_nursery() as nursery,
                ):
                    opened = Opened(agent, tree, model, events, trio_clock, config, folder)

                    async def record() -> None:
                        async for event in subscription:
                            opened.note(event)

                    nursery.start_soon(record)
                    yield opened
                    nursery.cancel_scope.cancel()
        assert not barked, f"the test waited in vain; the last events were:\n{opened.story() if opened else 'none'}"
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.callbacks.remove(steps.collected)
    assert not steps.slow, f"steps of the loop over {STEP_S * 1000:.0f} ms: {steps.slow}"


@contextmanager
def _watchdog(patience_s: float) -> Any:
    """End the block after so many real seconds; what is given tells whether that happened."""
    token, barked = trio.lowlevel.current_trio_token(), []
    with trio.CancelScope() as scope:

        def bark() -> None:
            barked.append(True)
            scope.cancel()

        timer = threading.Timer(patience_s, lambda: token.run_sync_soon(bark))
        timer.daemon = True
        timer.start()
        try:
            yield barked
        finally:
            timer.cancel()


def broken(opened: Opened, when: str, table: str) -> None:
    """Make a kind of write fail from now on, as a full disk would."""
    with sqlite3.connect(opened.database()) as connection:
        connection.execute(
            f"CREATE TRIGGER broken BEFORE {when} ON {table} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    connection.close()


def healed(opened: Opened) -> None:
    """Let all writes succeed again."""
    with sqlite3.connect(opened.database()) as connection:
        connection.execute("DROP TRIGGER broken")
    connection.close()
