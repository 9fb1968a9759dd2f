"""What has happened since the program started, counted as it is told on the bus and as processes end.

What has begun and never ends leaves nothing here. Words that models or callers choose are bounded: unknown tools,
models and addresses share one series.

Flow:    events, ends of processes, answers of the API -> Tally -> families
Floor:   api
Source:  control spec 6.5
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from spacebot.base.clock import monotonic_s
from spacebot.base.events import EventBus, EventKind, ProcessEvent
from spacebot.base.figures import Family, Histogram, Spread
from spacebot.base.tree import Node, NodeKind, NodeState, Tree

CALL_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds; control spec 6.5
WORKER_BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MODEL_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
HTTP_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
MEMORY_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
RESULT_BOUNDS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
MOST_SERIES = 500  # of one metric; further ones are counted as `OTHER`
UNKNOWN, OTHER = "unknown", "other"
_WELL = frozenset({NodeState.DONE, NodeState.PARTIAL})
_OVERFLOW = "ContextOverflowError"

Labels = tuple[str, ...]


class _Spreads:
    """One histogram by its labels; `place` is the label that gives way when there are too many."""

    def __init__(self, name: str, about: str, labels: Labels, bounds: Sequence[float], place: int = 0) -> None:
        self._name, self._about, self._labels, self._bounds, self._place = name, about, labels, bounds, place
        self.series: dict[Labels, Spread] = {}

    def add(self, key: Labels, value: float) -> None:
        if key not in self.series and len(self.series) >= MOST_SERIES:
            key = (*key[: self._place], OTHER, *key[self._place + 1 :])
        self.series.setdefault(key, Spread(self._bounds)).add(value)

    @property
    def labelled(self) -> list[tuple[Mapping[str, str], Spread]]:
        return [(dict(zip(self._labels, key, strict=True)), spread) for key, spread in self.series.items()]

    def histogram(self) -> Histogram:
        return Histogram(self._name, self._about, self.labelled)

    def counter(self, name: str, about: str) -> Family:
        """How many values each series has."""
        return Family(name, "counter", about, [(labels, spread.count) for labels, spread in self.labelled])


class _Counts:
    """One counter by its labels."""

    def __init__(self, name: str, about: str, labels: Labels) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._series: Counter[Labels] = Counter()

    def add(self, *key: str) -> None:
        if key not in self._series and len(self._series) >= MOST_SERIES:
            key = (*key[:-1], OTHER)
        self._series[key] += 1

    def family(self) -> Family:
        samples = [(dict(zip(self._labels, key, strict=True)), count) for key, count in self._series.items()]
        return Family(self._name, "counter", self._about, samples)


class HttpFigures:
    """Answers of the API by route; the patterns of addresses stand in it, never the addresses."""

    def __init__(self) -> None:
        self._answers = _Spreads(
            "spacebot_http_request_duration_seconds",
            "How long requests to the API took; streams count until they end.",
            ("method", "path", "status"),
            HTTP_BOUNDS,
            1,
        )

    def note(self, method: str, path: str, status: int, duration_s: float) -> None:
        """Count an answer."""
        self._answers.add((method, path, str(status)), duration_s)

    def families(self) -> list[Family | Histogram]:
        """All figures."""
        return [
            self._answers.counter("spacebot_http_requests_total", "Requests to the API."),
            self._answers.histogram(),
        ]


class Tally:
    """Counts what has ended since the program started."""

    def __init__(self) -> None:
        self._calls = _Spreads(
            "spacebot_tool_call_duration_seconds",
            "How long calls of tools took.",
            ("agent_id", "tool_name", "process_type"),
            CALL_BOUNDS,
            1,
        )
        self._workers = _Spreads(
            "spacebot_worker_duration_seconds",
            "How long workers lived.",
            ("agent_id", "worker_type", "state"),
            WORKER_BOUNDS,
        )
        self._models = _Spreads(
            "spacebot_llm_request_duration_seconds",
            "How long model calls took, with repetitions; tier is the kind of process.",
            ("agent_id", "model", "tier"),
            MODEL_BOUNDS,
            1,
        )
        self._turns = _Spreads(
            "spacebot_message_handling_duration_seconds", "How long turns took.", ("agent_id",), MODEL_BOUNDS
        )
        self._memory = _Spreads(
            "spacebot_memory_operation_duration_seconds",
            "How long recalling and saving took.",
            ("agent_id", "operation"),
            MEMORY_BOUNDS,
        )
        self._results = _Spreads(
            "spacebot_memory_search_results", "How many memories a recall found.", ("agent_id",), RESULT_BOUNDS
        )
        agent = ("agent_id",)
        self._reads = _Counts("spacebot_memory_reads_total", "Recalls.", agent)
        self._writes = _Counts("spacebot_memory_writes_total", "Memories saved.", agent)
        self._updates = _Counts(
            "spacebot_memory_updates_total", "Memories edited, forgotten, merged, pruned.", (*agent, "operation")
        )
        self._branches = _Counts("spacebot_branches_spawned_total", "Branches begun.", agent)
        self._failed_calls = _Counts(
            "spacebot_llm_failures_total", "Model calls that failed.", (*agent, "tier", "error_type")
        )
        self._overflows = _Counts(
            "spacebot_context_overflow_total", "Requests that were too long for their model.", (*agent, "tier")
        )
        self._errors = _Counts(
            "spacebot_process_errors_total", "Processes that did not end well.", (*agent, "process_type", "error_type")
        )
        self._channel_errors = _Counts("spacebot_channel_errors_total", "Turns that failed.", agent)
        self._repairs = _Counts(
            "spacebot_tool_history_recovery_total",
            "Requests whose history lacked results of tools.",
            (*agent, "process_type"),
        )
        self._runs = _Counts("spacebot_cron_executions_total", "Runs of schedules that have ended.", (*agent, "result"))
        self._files = _Counts(
            "spacebot_ingestion_files_processed_total", "Documents that were read or given up.", (*agent, "result")
        )
        self._counted: Mapping[EventKind, Callable[[ProcessEvent], None]] = {
            EventKind.TOOL_COMPLETED: self._hear_tool,
            EventKind.WORKER_COMPLETED: self._hear_worker,
            EventKind.MODEL_CALL: self._hear_model,
            EventKind.MEMORY_RECALLED: self._hear_recall,
            EventKind.MEMORY_SAVED: self._hear_saved,
            EventKind.MEMORY_CHANGED: lambda event: self._updates.add(event.agent_id or "", _word(event, "what")),
            EventKind.BRANCH_STARTED: lambda event: self._branches.add(event.agent_id or ""),
            EventKind.HISTORY_REPAIRED: lambda event: self._repairs.add(
                event.agent_id or "", _word(event, "process_type")
            ),
            EventKind.CRON_RUN: self._hear_cron,
            EventKind.INGESTION_PROGRESS: self._hear_document,
        }

    @contextmanager
    def listening(self, tree: Tree, events: EventBus) -> Iterator[None]:
        """Count while the block runs."""
        with ExitStack() as stack:
            stack.enter_context(events.counted(frozenset(self._counted), self.hear))
            stack.enter_context(tree.observed(self.note_end))
            yield

    def hear(self, event: ProcessEvent) -> None:
        """Count an event."""
        if (count := self._counted.get(event.kind)) is not None:
            count(event)

    def note_end(self, node: Node) -> None:
        """Count the end of a process."""
        agent, outcome = node.agent_id or "", node.outcome
        if node.kind is NodeKind.TURN:
            self._turns.add((agent,), monotonic_s() - node.started_monotonic)
        if outcome is None or outcome.state in _WELL or outcome.state is NodeState.INTERRUPTED:
            return
        self._errors.add(agent, str(node.kind), str(outcome.state))
        if node.kind is NodeKind.TURN and outcome.state is NodeState.FAILED:
            self._channel_errors.add(agent)

    def families(self) -> list[Family | Histogram]:
        """All figures."""
        return [
            self._calls.counter("spacebot_tool_calls_total", "Calls of tools that have ended."),
            self._calls.histogram(),
            self._workers.histogram(),
            self._models.counter("spacebot_llm_requests_total", "Model calls that have ended."),
            self._models.histogram(),
            self._turns.histogram(),
            self._memory.histogram(),
            self._results.histogram(),
            *(
                each.family()
                for each in (
                    self._reads, self._writes, self._updates, self._branches, self._failed_calls, self._overflows,
                    self._errors, self._channel_errors, self._repairs, self._runs, self._files,
                )
            ),
        ]  # fmt: skip

    def _hear_tool(self, event: ProcessEvent) -> None:
        if (duration_s := _seconds(event)) is None:
            return
        tool = _word(event, "tool_name") if event.fields.get("is_known") else UNKNOWN  # models make up names
        self._calls.add((event.agent_id or "", tool, _word(event, "process_type")), duration_s)

    def _hear_worker(self, event: ProcessEvent) -> None:
        if (duration_s := _seconds(event)) is not None:
            self._workers.add((event.agent_id or "", _word(event, "worker_type"), _word(event, "state")), duration_s)

    def _hear_model(self, event: ProcessEvent) -> None:
        agent, tier, outcome = event.agent_id or "", _word(event, "process_type"), _word(event, "outcome")
        self._models.add((agent, _word(event, "model"), tier), _seconds(event) or 0.0)
        if outcome not in ("ok", "cancelled"):
            self._failed_calls.add(agent, tier, outcome)
        if outcome == _OVERFLOW:
            self._overflows.add(agent, tier)

    def _hear_recall(self, event: ProcessEvent) -> None:
        agent, found = event.agent_id or "", event.fields.get("found")
        self._reads.add(agent)
        self._memory.add((agent, "recall"), _seconds(event) or 0.0)
        if isinstance(found, int):
            self._results.add((agent,), found)

    def _hear_saved(self, event: ProcessEvent) -> None:
        self._writes.add(event.agent_id or "")
        if (duration_s := _seconds(event)) is not None:
            self._memory.add((event.agent_id or "", "save"), duration_s)

    def _hear_cron(self, event: ProcessEvent) -> None:
        if (state := _word(event, "state")) != "running":
            self._runs.add(event.agent_id or "", state)

    def _hear_document(self, event: ProcessEvent) -> None:
        if (status := _word(event, "status")) in ("completed", "failed"):
            self._files.add(event.agent_id or "", status)


def _word(event: ProcessEvent, name: str) -> str:
    value = event.fields.get(name)
    return UNKNOWN if value is None else str(value)


def _seconds(event: ProcessEvent) -> float | None:
    value = event.fields.get("duration_s")
    return value if isinstance(value, float | int) else None
