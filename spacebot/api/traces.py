"""Traces of what the processes do: a turn, and below it model calls, tools, branches, workers.

Kinds, models, tools, times and ends stand in them; no text of anybody, no arguments, no results, no conversation's id.
Without `[telemetry] otlp_endpoint` nothing listens and nothing is kept.

Flow:    ends of nodes, events -> Recorder -> bounded queue -> run_traces -> Sender
Floor:   api
Source:  control spec 1.4, 6.5
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import trio

from spacebot.api.otlp import AttributeValue, Sender, Span, trace_id
from spacebot.base.clock import monotonic_s
from spacebot.base.errors import ExternalError
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.telemetry import kv
from spacebot.base.tree import Node, NodeKind, NodeState, Tree
from spacebot.config.model import TelemetryConfig
from spacebot.config.store import ConfigStore

log = logging.getLogger(__name__)

QUEUE = 4096  # spans that wait to be sent; further ones are dropped, newest first, and counted
BATCH = 512
PAUSE_S = 5.0  # between batches; what happens meanwhile goes together
LAST_S = 2.0  # for what is left when the program stops
CAUSES = 2048  # branches and workers whose turn is remembered
QUIET_S = 300.0  # between two warnings about the same collector
_RECORDED = frozenset({NodeKind.TURN, NodeKind.BRANCH, NodeKind.WORKER, NodeKind.COMPACTION, NodeKind.PERSISTENCE})
_WELL = frozenset({NodeState.DONE, NodeState.PARTIAL})


class Recorder:
    """Makes spans of what ends. A branch or worker belongs to the trace of the turn that set it to work."""

    def __init__(self, sample_rate: float, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.spans: deque[Span] = deque()
        self.dropped = 0
        self.arrived = _Bell()
        self._rate = sample_rate
        self._now_ns = now_ns
        self._causes: OrderedDict[str, str] = OrderedDict()  # branch or worker -> its turn

    @contextmanager
    def listening(self, tree: Tree, events: EventBus) -> Iterator[None]:
        """Record while the block runs."""
        kinds = (EventKind.MODEL_CALL, EventKind.TOOL_COMPLETED, EventKind.BRANCH_STARTED, EventKind.WORKER_STARTED)
        with ExitStack() as stack:
            stack.enter_context(events.counted(frozenset(kinds), self.hear))
            stack.enter_context(tree.observed(self.note_end))
            yield

    def hear(self, event: ProcessEvent) -> None:
        """Take an event."""
        fields = event.fields
        match event.kind:
            case EventKind.BRANCH_STARTED | EventKind.WORKER_STARTED:
                process, turn = fields.get("branch_id") or fields.get("worker_id"), fields.get("turn_id")
                if process is not None and turn is not None:
                    self._causes[str(process)] = str(turn)
                    if len(self._causes) > CAUSES:
                        self._causes.popitem(last=False)
            case EventKind.MODEL_CALL:
                outcome = str(fields.get("outcome"))
                self._add_call(
                    event, f"model {fields.get('process_type')}", is_error=outcome not in ("ok", "cancelled"),
                    model=str(fields.get("model")), outcome=outcome,
                )  # fmt: skip
            case EventKind.TOOL_COMPLETED:
                tool = str(fields.get("tool_name")) if fields.get("is_known") else "unknown"
                self._add_call(event, f"tool {tool}", is_error=bool(fields.get("is_error")), tool=tool)

    def note_end(self, node: Node) -> None:
        """Take the end of a process."""
        outcome = node.outcome
        if node.kind not in _RECORDED or outcome is None:
            return
        turn = self._causes.get(node.id)
        end = self._now_ns()
        self._add(
            Span(
                name=str(node.kind),
                trace=turn or node.id,
                id=node.id,
                parent=turn,
                start_ns=end - int((monotonic_s() - node.started_monotonic) * 1e9),
                end_ns=end,
                is_error=outcome.state not in _WELL and outcome.state is not NodeState.CANCELLED,
                attributes={
                    "spacebot.agent": node.agent_id or "",
                    "spacebot.process": str(node.kind),
                    "spacebot.state": str(outcome.state),
                    "spacebot.model_calls": node.model_calls,
                    "spacebot.tool_calls": node.tool_calls,
                    "spacebot.input_tokens": node.input_tokens,
                    "spacebot.output_tokens": node.output_tokens,
                },
            )
        )

    def _add_call(self, event: ProcessEvent, name: str, *, is_error: bool, **facts: AttributeValue) -> None:
        fields, end = event.fields, self._now_ns()
        process, duration_s = fields.get("process_id"), fields.get("duration_s")
        owner = None if process is None else str(process)
        start = end - int((duration_s if isinstance(duration_s, float | int) else 0.0) * 1e9)
        self._add(
            Span(
                name=name,
                trace=self._causes.get(owner or "", owner or f"{name} {end}"),
                id=f"{owner} {name} {start} {end} {len(self.spans)}",
                parent=owner,
                start_ns=start,
                end_ns=end,
                is_error=is_error,
                attributes={
                    "spacebot.agent": event.agent_id or "",
                    "spacebot.process": str(fields.get("process_type")),
                    **{f"spacebot.{fact}": value for fact, value in facts.items()},
                },
            )
        )

    def _add(self, span: Span) -> None:
        if self._rate < 1.0 and int.from_bytes(trace_id(span.trace)[8:]) >= self._rate * 2**64:
            return  # decided by the trace, so that it is there whole or not at all
        if len(self.spans) >= QUEUE:
            self.dropped += 1
            return
        self.spans.append(span)
        self.arrived.ring()

    def take(self) -> list[Span]:
        """The oldest spans, a batch at most."""
        return [self.spans.popleft() for _ in range(min(BATCH, len(self.spans)))]


async def run_traces(
    store: ConfigStore,
    *,
    tree: Tree,
    events: EventBus,
    pause_s: float = PAUSE_S,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> None:
    """Record and send while an endpoint is configured; a change of the table counts at once.

    Cancel: what is left is sent first, for `LAST_S` seconds at most.
    """
    moved = _Bell()
    store.listen(lambda report: moved.ring())
    while True:
        config = store.current.telemetry
        if config.otlp_endpoint is None or config.sample_rate == 0:
            await moved.wait()
            continue
        recorder = Recorder(config.sample_rate)
        log.info("traces are sent", extra=kv(sample_rate=config.sample_rate))
        async with httpx2.AsyncClient(transport=transport) as client:
            exporter = _Exporter(recorder, Sender(client), config)
            with recorder.listening(tree, events):
                try:
                    async with trio.open_nursery() as sending:
                        sending.start_soon(exporter.run, pause_s)
                        while store.current.telemetry == config:
                            await moved.wait()
                        sending.cancel_scope.cancel()
                finally:
                    with trio.move_on_after(LAST_S, shield=True):
                        await exporter.send_all()


class _Bell:
    """Wakes who waits; a ring that nobody waited for is kept."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


class _Exporter:
    def __init__(self, recorder: Recorder, sender: Sender, config: TelemetryConfig) -> None:
        self._recorder, self._sender, self._config = recorder, sender, config
        self._told_at: float | None = None

    async def run(self, pause_s: float) -> None:
        """Send now and then, as long as something comes."""
        while True:
            await self._recorder.arrived.wait()
            await trio.sleep(pause_s)
            await self.send_all()

    async def send_all(self) -> None:
        """Send what waits; a batch that nobody takes is lost."""
        while batch := self._recorder.take():
            try:
                await self._sender.send(batch, self._config)
            except ExternalError as error:
                if self._told_at is None or monotonic_s() - self._told_at >= QUIET_S:
                    self._told_at = monotonic_s()
                    log.warning("traces lost", extra=kv(error=str(error), spans=len(batch) + len(self._recorder.spans)))
                self._recorder.spans.clear()
        if dropped := self._recorder.dropped:
            self._recorder.dropped = 0
            log.warning("traces lost, too many at once", extra=kv(spans=dropped))
