"""What a Prometheus server reads: well-formed text over a real socket, true figures, and nobody's words."""

import json
import re
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from spacebot.api.metrics import serve_metrics
from spacebot.api.tally import MOST_SERIES
from spacebot.base.clock import Clock
from spacebot.base.errors import ConfigError
from spacebot.base.events import EventKind
from spacebot.base.figures import Family as FigureFamily
from spacebot.base.ids import ConversationId
from spacebot.base.tree import NodeKind, NodeState, Outcome
from spacebot.config.load import load_config
from spacebot.config.model import MetricsConfig
from spacebot.memory.types import EVERYTHING, NewMemory, Query
from spacebot.messaging.messages import Author, InboundMessage
from spacebot.messaging.states import AdapterState, Connection
from tests.api.serving import UNREAD, open_server
from tests.fakes.fake_program import FakeProgram, open_fake_program
from tests.real_daemon import Daemon, free_port, running

pytestmark = pytest.mark.filterwarnings(UNREAD)
FILE = """\
[messaging.telegram]
token = "12:abcdef-secret"

[[messaging.telegram.instances]]
name = "home"
token = "13:abcdef-secret"
enabled = false
"""
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\d+(?:\.\d+)?)")
STATES = [str(state) for state in Connection]


@dataclass
class Family:
    """One metric as it was read."""

    kind: str
    samples: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)


def parse(text: str) -> dict[str, Family]:
    """Read the text format 0.0.4 without any mercy."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    helped = current = ""
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(r"# HELP (\w+) (\S.*)", line):
            helped = match[1]
            assert helped not in families
        elif match := re.fullmatch(r"# TYPE (\w+) (counter|gauge|histogram)", line):
            current = match[1]
            assert current == helped
            assert current.endswith("_total") == (match[2] == "counter")
            families[current] = Family(match[2])
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            labels = read_labels(match[2] or "")
            if families[current].kind == "histogram":
                part = match[1].removeprefix(current)
                assert part in ("_bucket", "_sum", "_count"), line
                labels = (*labels, ("part", part))
            else:
                assert match[1] == current, line
            assert labels not in families[current].samples, line
            families[current].samples[labels] = float(match[3]) if "." in match[3] else int(match[3])
    return families


def read_labels(text: str) -> tuple[tuple[str, str], ...]:
    labels, end = [], 0
    for match in LABEL.finditer(text):
        assert match.start() == end, text
        unescaped = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[2])
        labels.append((match[1], unescaped))
        end = match.end() + 1 if text[match.end() : match.end() + 1] == "," else match.end()
    assert end == len(text), text
    return tuple(labels)


@dataclass
class Metrics:
    """The metrics port over a program without a mind."""

    program: FakeProgram
    client: httpx2.AsyncClient
    text: str = ""

    async def read(self) -> dict[str, dict[tuple[str, ...], float]]:
        """The values by metric and the values of the labels."""
        response = await self.client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = response.text
        return {
            name: {tuple(value for _, value in labels): count for labels, count in family.samples.items()}
            for name, family in parse(self.text).items()
        }


@asynccontextmanager
async def open_metrics(folder: Path, file: str = FILE) -> AsyncIterator[Metrics]:
    (folder / "config.toml").write_text(file)
    stop = trio.Event()
    with trio.fail_after(20):
        async with open_fake_program(folder, ("main", "ops")) as program, trio.open_nursery() as nursery:
            config = MetricsConfig(enabled=True, port=0)
            serve = partial(serve_metrics, program, config, tree=program.tree, events=program.events, stop=stop)
            (url,) = await nursery.start(serve)
            async with httpx2.AsyncClient(base_url=url, timeout=10.0) as client:
                yield Metrics(program, client)
            stop.set()


async def say_to(program: FakeProgram, adapter: str, room: str, text: str) -> None:
    """Somebody writes over a platform, and the answer waits to be delivered."""
    message = InboundMessage(
        platform="telegram",
        conversation_id=ConversationId(room),
        author=Author(id="7", name="Ann"),
        text=text,
        sent_at=Clock().now(),
        adapter=adapter,
    )
    accepted = await program.main.accept(message)
    async with program.main.turn(message.conversation_id, accepted) as turn:
        await turn.say("an answer of some length")


async def test_adapters_are_shown_with_their_state_and_counts(tmp_path: Path) -> None:
    async with open_metrics(tmp_path) as metrics:
        metrics.program.messaging.known["telegram"] = AdapterState(
            key="telegram", platform="telegram", state=Connection.RETRYING, received=7, sent=5, failed=1
        )
        for text in ("my secret is 42", "and another"):
            await say_to(metrics.program, "telegram", "telegram:-100777", text)
        await say_to(metrics.program, "discord:gone", "discord:gone:1:2", "hello")
        found = await metrics.read()

        assert found["spacebot_adapter_up"] == {("telegram", "telegram"): 0, ("telegram:home", "telegram"): 0}
        states = found["spacebot_adapter_state"]
        assert [key for key, value in states.items() if value] == [
            ("telegram", "retrying"),
            ("telegram:home", "disabled"),
        ]
        assert list(states) == [(key, state) for key in ("telegram", "telegram:home") for state in STATES]
        assert found["spacebot_messages_received_total"] == {("telegram",): 7, ("telegram:home",): 0}
        assert found["spacebot_messages_sent_total"] == {("telegram",): 5, ("telegram:home",): 0}
        assert found["spacebot_messages_undelivered_total"] == {("telegram",): 1, ("telegram:home",): 0}
        assert found["spacebot_outbox_queued"] == {("telegram",): 2, ("telegram:home",): 0, ("discord:gone",): 1}
        for private in ("100777", "Ann", "42", "abcdef", "answer"):
            assert private not in metrics.text

        metrics.program.messaging.known.clear()
        found = await metrics.read()
        assert found["spacebot_adapter_up"]["telegram", "telegram"] == 1
        assert found["spacebot_adapter_state"]["telegram", "connected"] == 1


async def test_what_runs_and_what_is_known_is_counted_by_agent(tmp_path: Path) -> None:
    async with open_metrics(tmp_path, "") as metrics:
        tree = metrics.program.tree
        room = tree.add(NodeKind.CHANNEL, "a room", agent_id="main", channel_id="telegram:1")
        worker = tree.add(NodeKind.WORKER, "some work", agent_id="main")
        for agent_id in ("main", "ops"):
            tree.add(NodeKind.BRANCH, "some thought", agent_id=agent_id)
        await metrics.program.main.memory.save(NewMemory(content="Ann drinks tea"))
        found = await metrics.read()
        assert found["spacebot_active_channels"] == {("main",): 1, ("ops",): 0}
        assert found["spacebot_active_workers"] == {("main",): 1, ("ops",): 0}
        assert found["spacebot_active_branches"] == {("main",): 1, ("ops",): 1}
        assert found["spacebot_memory_entry_count"] == {("main",): 1, ("ops",): 0}
        assert found["spacebot_adapter_up"] == {}

        tree.remove(room)
        tree.remove(worker)
        found = await metrics.read()
        assert (found["spacebot_active_channels"]["main",], found["spacebot_active_workers"]["main",]) == (0, 0)


async def test_a_broken_store_costs_its_own_figures_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_metrics(tmp_path) as metrics:
        await say_to(metrics.program, "telegram", "telegram:1", "hello")
        with sqlite3.connect(tmp_path / "ops.db") as connection:
            connection.execute("ALTER TABLE outbox RENAME TO outbox_gone")
            connection.execute("ALTER TABLE memories RENAME TO memories_gone")
        connection.close()
        found = await metrics.read()
    assert found["spacebot_outbox_queued"] == {("telegram",): 1, ("telegram:home",): 0}
    assert found["spacebot_memory_entry_count"] == {("main",): 0}
    assert found["spacebot_active_workers"] == {("main",): 0, ("ops",): 0}
    missing = [record for record in caplog.records if record.getMessage() == "figures are missing"]
    assert [record.__dict__["kv"]["what"] for record in missing] == ["messages that wait", "memories"]


async def test_odd_names_cannot_break_the_format(tmp_path: Path) -> None:
    odd = 'tele"gram\\:\n}x 1\n# \u00fc'
    async with open_metrics(tmp_path, "") as metrics:
        await say_to(metrics.program, odd, "telegram:1", "hello")
        found = await metrics.read()
    assert found["spacebot_outbox_queued"] == {(odd,): 1}


async def test_ended_tool_calls_and_workers_are_counted_and_begun_ones_leave_nothing(tmp_path: Path) -> None:
    async with open_metrics(tmp_path) as metrics:
        emit = metrics.program.main.emit
        common = {"process_type": "worker", "process_id": "w", "tool_name": "shell", "is_known": True}
        emit(EventKind.TOOL_STARTED, "c", call_id="1", arguments="{}", **common)
        for seconds in (0.02, 0.05, 700.0):
            emit(EventKind.TOOL_COMPLETED, "c", call_id="1", is_error=False, duration_s=seconds, **common)
        for number in range(MOST_SERIES + 5):  # what a model makes up has no series of its own
            made_up = {**common, "tool_name": f"made up {number}", "is_known": False}
            emit(EventKind.TOOL_COMPLETED, "c", duration_s=0.001, **made_up)
        emit(EventKind.WORKER_COMPLETED, "c", worker_id="w", state="done", worker_type="builtin", duration_s=45.0)
        for number in range(MOST_SERIES):  # nor have servers with endless tools
            emit(EventKind.TOOL_COMPLETED, "c", duration_s=1.0, **{**common, "tool_name": f"remote_{number}"})
        found = await metrics.read()

    calls, spans = found["spacebot_tool_calls_total"], found["spacebot_tool_call_duration_seconds"]
    assert calls["main", "shell", "worker"] == 3
    assert calls["main", "unknown", "worker"] == MOST_SERIES + 5
    assert calls["main", "other", "worker"] == 2
    assert len(calls) == MOST_SERIES + 1
    of_shell = {key[3:]: value for key, value in spans.items() if key[1] == "shell"}
    assert (of_shell["0.01", "_bucket"], of_shell["0.05", "_bucket"], of_shell["30.0", "_bucket"]) == (0, 2, 2)
    assert (of_shell["+Inf", "_bucket"], of_shell["_count",], of_shell["_sum",]) == (3, 3, 700.07)
    workers = found["spacebot_worker_duration_seconds"]
    assert workers["main", "builtin", "done", "30.0", "_bucket"] == 0
    assert workers["main", "builtin", "done", "60.0", "_bucket"] == 1


async def test_health_is_told_and_nothing_else_is_there(tmp_path: Path) -> None:
    async with open_metrics(tmp_path) as metrics:
        response = await metrics.client.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        for path in ("/", "/api/status", "/metrics/x"):
            assert (await metrics.client.get(path)).status_code == 404
        assert (await metrics.client.post("/metrics")).status_code == 405


async def test_a_taken_port_is_told_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = MetricsConfig(enabled=True, port=taken.getsockname()[1])
        async with open_fake_program(tmp_path) as program:
            with pytest.raises(ConfigError, match=r"set metrics\.port"):
                await serve_metrics(program, config, tree=program.tree, events=program.events, stop=trio.Event())


@pytest.mark.spec("C-88")
async def test_the_program_serves_them_when_it_is_told_to(tmp_path: Path) -> None:
    port = free_port()
    extra = f"[metrics]\nenabled = true\nport = {port}\n"
    with running(Daemon(tmp_path, model_url=None, extra=extra)):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            response = await client.get("/metrics")
    assert parse(response.text)["spacebot_memory_entry_count"].samples == {(("agent_id", "main"),): 0}


async def test_the_status_of_the_adapters_counts_what_waits_too(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(FILE)
    async with open_server(tmp_path) as served:
        for adapter in ("telegram", "telegram", "telegram:home"):
            await say_to(served.program, adapter, f"{adapter}:1", "hello")
        status = (await served.client.get("/api/messaging/status")).json()
    assert [(each["key"], each["queued"]) for each in status["instances"]] == [("telegram", 2), ("telegram:home", 1)]


@pytest.mark.spec("CA-13")
async def test_the_guide_names_every_figure_and_its_configuration_loads(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    async with open_metrics(tmp_path) as metrics:
        assert re.findall(r"^\| `(spacebot_\w+)`", guide, re.MULTILINE) == list(await metrics.read())
    sample = tmp_path / "sample.toml"
    sample.write_text(guide.split("```toml\n")[1].split("```")[0])
    loaded = load_config(sample, environ={})
    assert loaded.warnings == ()
    assert loaded.config.metrics == MetricsConfig(enabled=True)


@pytest.mark.spec("C-88", "C-89")
async def test_what_happens_is_counted_by_agents_kinds_and_patterns_only(tmp_path: Path) -> None:
    async with open_metrics(tmp_path) as metrics:
        program = metrics.program
        call = partial(program.events.emit, EventKind.MODEL_CALL, agent_id="main", channel_id="telegram:my-secret")
        call(process_type="channel", model="demo/demo", outcome="ok", duration_s=0.2)
        call(process_type="channel", model="demo/demo", outcome="ContextOverflowError", duration_s=0.2)
        for number in range(MOST_SERIES + 20):
            call(process_type="worker", model=f"made-up-{number}", outcome="ok", duration_s=0.1)
        program.events.emit(EventKind.MEMORY_CHANGED, agent_id="main", what="forgotten", memory_id="my-secret")
        program.events.emit(EventKind.HISTORY_REPAIRED, agent_id="main", process_type="worker", lost=1)
        program.events.emit(EventKind.CRON_RUN, agent_id="ops", state="running")
        program.events.emit(EventKind.CRON_RUN, agent_id="ops", state="done")
        await program.main.memory.save(NewMemory(content="Ann likes tea"))
        await program.main.memory.recall(Query(viewer=EVERYTHING, text="tea"))
        program.http.note("GET", "/api/status", 200, 0.002)
        for kind, state in ((NodeKind.TURN, NodeState.FAILED), (NodeKind.WORKER, NodeState.TIMED_OUT)):
            node = program.tree.add(kind, "my secret", agent_id="main")
            node.outcome = Outcome(state, "my secret")
            program.tree.remove(node)
        found = await metrics.read()

    assert found["spacebot_llm_requests_total"]["main", "demo/demo", "channel"] == 2
    assert found["spacebot_llm_requests_total"]["main", "other", "worker"] == 21
    assert found["spacebot_llm_failures_total"] == {("main", "channel", "ContextOverflowError"): 1}
    assert found["spacebot_context_overflow_total"] == {("main", "channel"): 1}
    assert found["spacebot_memory_updates_total"] == {("main", "forgotten"): 1}
    assert found["spacebot_tool_history_recovery_total"] == {("main", "worker"): 1}
    assert found["spacebot_cron_executions_total"] == {("ops", "done"): 1}
    assert found["spacebot_memory_writes_total"] == found["spacebot_memory_reads_total"] == {("main",): 1}
    assert found["spacebot_memory_operation_duration_seconds"]["main", "recall", "_count"] == 1
    assert found["spacebot_memory_search_results"]["main", "1.0", "_bucket"] == 1
    assert found["spacebot_memory_embedding_duration_seconds"]["main", "_count"] >= 2
    assert found["spacebot_process_errors_total"] == {("main", "turn", "failed"): 1, ("main", "worker", "timed_out"): 1}
    assert found["spacebot_channel_errors_total"] == {("main",): 1}
    assert found["spacebot_message_handling_duration_seconds"]["main", "_count"] == 1
    assert found["spacebot_http_requests_total"] == {("GET", "/api/status", "200"): 1}
    assert "secret" not in metrics.text


@pytest.mark.spec("C-89")
async def test_requests_to_the_api_are_counted_by_pattern(tmp_path: Path) -> None:
    async with open_server(tmp_path) as served:
        for path in ("/api/status", "/api/messages/not-there/fate", "/api/%2e%2e/x"):
            await served.client.get(path)
        families = {family.name: family for family in served.program.http.families()}
    counted = families["spacebot_http_requests_total"]
    assert isinstance(counted, FigureFamily)
    labels = {(one["path"], one["status"]) for one, _ in counted.samples}
    assert ("/api/status", "200") in labels
    assert ("/api/messages/{message_id}/fate", "404") in labels
    assert all("not-there" not in path and ".." not in path for path, _ in labels)


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    root = Path(__file__).resolve().parents[2]
    known = set(re.findall(r"^\| `(spacebot_\w+)`", (root / "docs" / "metrics.md").read_text(), re.MULTILINE))
    board = json.loads((root / "build" / "grafana" / "spacebot.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 30
    asked = {name for text in expressions for name in re.findall(r"spacebot_\w+", text)}
    assert {name if name in known else re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= known
