"""Traces: what a collector receives over the wire, and what it never does."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from trio.testing import MockClock, wait_all_tasks_blocked, wait_all_threads_completed

from spacebot.api.otlp import address_of, span_id, trace_id
from spacebot.api.traces import QUEUE, Recorder, run_traces
from spacebot.base.events import EventBus, EventKind
from spacebot.base.tree import Node, NodeKind, NodeState, Outcome, Tree
from spacebot.config.store import ConfigStore

TABLE = (
    '[telemetry]\notlp_endpoint = "http://collector.example:4318"\notlp_headers = "x-key=hidden-word-1234, x-team=a"\n'
)


@dataclass
class Collector:
    """A collector at the wire; answers with what it was told."""

    answers: list[int] = field(default_factory=list)
    requests: list[httpx2.Request] = field(default_factory=list)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return httpx2.Response(self.answers.pop(0) if self.answers else 200, headers={"retry-after": "2"})

    def spans(self) -> list[Any]:
        found = []
        for request in self.requests:
            message = ExportTraceServiceRequest()
            message.ParseFromString(gzip.decompress(request.content))
            found += [span for each in message.resource_spans for scope in each.scope_spans for span in scope.spans]
        return found


@dataclass
class Traced:
    """A program's tree and bus with the sender of traces beside them."""

    store: ConfigStore
    file: Path
    tree: Tree
    events: EventBus
    collector: Collector

    def write(self, text: str) -> None:
        self.file.write_text(text)
        self.store.reload()

    def end(self, node: Node, state: NodeState = NodeState.DONE) -> None:
        node.outcome = Outcome(state, "words that nobody may read")
        self.tree.remove(node)

    def turn_with_everything(self) -> Node:
        """A turn that asked a model, ran a tool and set a worker to work, which asked a model itself."""
        turn = self.tree.add(NodeKind.TURN, "words that nobody may read", agent_id="main", channel_id="telegram:7")
        self.events.emit(
            EventKind.WORKER_STARTED,
            agent_id="main",
            worker_id="w1",
            task="words that nobody may read",
            turn_id=turn.id,
        )
        worker = self.tree.add(NodeKind.WORKER, "words that nobody may read", node_id="w1", agent_id="main")
        for process, kind in ((turn.id, "channel"), ("w1", "worker")):
            self.events.emit(
                EventKind.MODEL_CALL, agent_id="main", channel_id="telegram:7", process_type=kind, process_id=process,
                model="demo/demo", outcome="ok", duration_s=0.25,
            )  # fmt: skip
        self.events.emit(
            EventKind.TOOL_COMPLETED, agent_id="main", process_id="w1", process_type="worker", tool_name="shell",
            is_known=True, is_error=True, result="words that nobody may read", duration_s=0.5,
        )  # fmt: skip
        self.end(turn)
        self.end(worker, NodeState.FAILED)
        return turn


@asynccontextmanager
async def open_traced(folder: Path, text: str = TABLE, answers: list[int] | None = None) -> AsyncIterator[Traced]:
    file = folder / "config.toml"
    file.write_text(text)
    traced = Traced(ConfigStore.open(file), file, Tree(), EventBus(), Collector(answers or []))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                run_traces, traced.store, tree=traced.tree, events=traced.events,
                transport=httpx2.MockTransport(traced.collector),
            )
        )  # fmt: skip
        await wait_all_tasks_blocked()
        yield traced
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


async def later(clock: MockClock, seconds: int) -> None:
    """Let time pass, and threads finish what they do meanwhile."""
    for _ in range(2 * seconds):
        await wait_all_tasks_blocked()
        await wait_all_threads_completed()
        await wait_all_tasks_blocked()
        clock.jump(0.5)
    await wait_all_tasks_blocked()
    await wait_all_threads_completed()


@pytest.mark.spec("CA-12")
async def test_a_turn_and_what_it_set_to_work_are_one_trace(clock: MockClock, tmp_path: Path) -> None:
    async with open_traced(tmp_path) as traced:
        turn = traced.turn_with_everything()
        await later(clock, 6)

    (request,) = traced.collector.requests
    assert str(request.url) == "http://collector.example:4318/v1/traces"
    assert (request.headers["x-key"], request.headers["x-team"]) == ("hidden-word-1234", "a")
    assert request.headers["content-type"] == "application/x-protobuf"
    spans = {(span.name, span.parent_span_id): span for span in traced.collector.spans()}
    assert {name for name, _ in spans} == {"turn", "worker", "model channel", "model worker", "tool shell"}
    assert {span.trace_id for span in spans.values()} == {trace_id(turn.id)}
    assert dict(spans.keys()) == {
        "turn": b"", "worker": span_id(turn.id), "model channel": span_id(turn.id),
        "model worker": span_id("w1"), "tool shell": span_id("w1"),
    }  # fmt: skip
    assert {name for (name, _), span in spans.items() if span.status.code == 2} == {"worker", "tool shell"}
    model = next(span for (name, _), span in spans.items() if name == "model worker")
    assert model.end_time_unix_nano - model.start_time_unix_nano == 250_000_000
    sent = gzip.decompress(request.content)
    assert b"nobody may read" not in sent
    assert b"telegram" not in sent


async def test_without_an_endpoint_nothing_listens_and_a_new_one_counts_at_once(
    clock: MockClock, tmp_path: Path
) -> None:
    async with open_traced(tmp_path, "") as traced:
        traced.turn_with_everything()
        await later(clock, 60)
        assert not traced.collector.requests
        traced.write(TABLE)
        await wait_all_tasks_blocked()
        traced.turn_with_everything()
        traced.write("")
        await later(clock, 1)
        assert len(traced.collector.spans()) == 5, "what waited goes out when it is switched off"
        traced.turn_with_everything()
        await later(clock, 60)
    assert len(traced.collector.spans()) == 5


async def test_what_waits_is_sent_when_the_program_stops(clock: MockClock, tmp_path: Path) -> None:
    async with open_traced(tmp_path) as traced:
        traced.turn_with_everything()
    assert len(traced.collector.spans()) == 5


@pytest.mark.parametrize(("answers", "tries"), [((503, 429), 3), ((503, 503, 503), 3), ((400,), 1)])
async def test_a_busy_collector_is_asked_again_and_one_that_refuses_is_not(
    answers: tuple[int, ...], tries: int, clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_traced(tmp_path, answers=list(answers)) as traced:
        traced.turn_with_everything()
        await later(clock, 60)
        assert len(traced.collector.requests) == tries
        traced.turn_with_everything()
        await later(clock, 60)
    assert len(traced.collector.requests) == tries + 1, "a lost batch ends nothing"
    assert "traces lost" in caplog.text or answers == (503, 429)
    assert "hidden-word" not in str([record.__dict__ for record in caplog.records])


async def test_a_sampled_trace_is_there_whole_or_not_at_all(clock: MockClock, tmp_path: Path) -> None:
    async with open_traced(tmp_path, TABLE + "sample_rate = 0.5\n") as traced:
        for number in range(60):
            turn = traced.tree.add(NodeKind.TURN, "x", node_id=f"t{number}")
            traced.events.emit(EventKind.MODEL_CALL, process_id=turn.id, process_type="channel", duration_s=0.1)
            traced.end(turn)
        await later(clock, 6)
    by_trace: dict[bytes, int] = {}
    for span in traced.collector.spans():
        by_trace[span.trace_id] = by_trace.get(span.trace_id, 0) + 1
    assert 10 < len(by_trace) < 50
    assert set(by_trace.values()) == {2}


async def test_a_flood_is_bounded() -> None:
    recorder, tree = Recorder(1.0), Tree()
    with recorder.listening(tree, EventBus()):
        for _ in range(QUEUE + 10):
            node = tree.add(NodeKind.TURN, "x")
            node.outcome = Outcome(NodeState.DONE)
            tree.remove(node)
    assert (len(recorder.spans), recorder.dropped) == (QUEUE, 10)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("http://c/otlp/v1/traces", "http://c/otlp/v1/traces"),
    ],
)
def test_the_path_is_added_once(written: str, address: str) -> None:
    assert address_of(written) == address
