"""Retries, fallback, cooldown and accounting, in virtual time, with a dialect that does as told."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spacebot.base.errors import (
    ContextOverflowError,
    ModelBusyError,
    ModelError,
    ModelRejectedError,
    ModelUnavailableError,
)
from spacebot.base.tree import NodeKind, Tree
from spacebot.config.model import AgentSettings, ApiType, LlmConfig
from spacebot.config.routing import RoutingConfig
from spacebot.llm.dialect import Target
from spacebot.llm.history import estimate_tokens
from spacebot.llm.libraries import Libraries
from spacebot.llm.manager import ModelManager, UsageRecord
from spacebot.llm.messages import (
    FinishReason,
    Image,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    ProcessKind,
    Restart,
    Role,
    StreamDelta,
    Text,
    TextDelta,
    Usage,
)
from spacebot.llm.opening import open_models
from tests.llm.given import ask, providers


def busy(after_s: float | None = None) -> ModelError:
    return ModelBusyError("busy", model="m", retry_after_s=after_s)


def down() -> ModelError:
    return ModelUnavailableError("down", model="m")


def rejected(*, is_unknown_model: bool = False) -> ModelError:
    return ModelRejectedError("no", model="m", status_code=400, is_unknown_model=is_unknown_model)


@dataclass
class ToldDialect:
    """Fails as its script says, model by model, and answers once the script is used up."""

    script: dict[str, list[ModelError | float]] = field(default_factory=dict)
    words_before_failing: str = ""
    asked: list[tuple[str, float]] = field(default_factory=list)
    is_loaded: bool = True
    loads: int = 0

    def load(self) -> None:
        self.loads += 1

    async def complete(self, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        self.asked.append((target.model, trio.current_time()))
        steps = self.script.get(target.model, [])
        step = steps.pop(0) if steps else 0.0
        if isinstance(step, ModelError):
            if self.words_before_failing:
                on_delta(TextDelta(self.words_before_failing))
            raise step
        await trio.sleep(step)
        on_delta(TextDelta("hi"))
        usage = Usage(input_tokens=3, output_tokens=2, cache_read_tokens=4)
        return ModelReply(parts=(Text("hi"),), finish_reason=FinishReason.STOP, usage=usage, model=target.model)

    @property
    def models(self) -> list[str]:
        return [model.removeprefix("openai/") for model, _ in self.asked]

    @property
    def pauses(self) -> list[float]:
        times = [time for _, time in self.asked]
        return [round(later - sooner, 3) for sooner, later in pairwise(times)]


CHAIN = AgentSettings(
    routing=RoutingConfig(channel="openai/a", worker="openai/a", fallbacks={"openai/a": ("openai/b", "openai/c")})
)
ALONE = AgentSettings(routing=RoutingConfig(channel="openai/a", worker="openai/a"))


@asynccontextmanager
async def open_manager(
    dialect: ToldDialect, record: Callable[[UsageRecord], None] | None = None, llm: LlmConfig | None = None
) -> AsyncIterator[ModelManager]:
    config = llm or providers("openai")
    async with trio.open_nursery() as nursery:
        dialects = dict.fromkeys(ApiType, dialect)
        yield ModelManager(Libraries(dialects, nursery), lambda: config, record_usage=record, jitter=lambda: 0.0)


@pytest.mark.spec("C-37")
async def test_a_passing_fault_is_tried_again_after_growing_pauses(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [down(), down()]})
    async with open_manager(dialect) as manager:
        reply = await manager.for_agent(lambda: ALONE).complete(ask())
    assert reply.message.text == "hi"
    assert dialect.pauses == [0.5, 1.0]


async def test_after_three_attempts_the_next_model_is_asked(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [down()] * 3})
    async with open_manager(dialect) as manager:
        reply = await manager.complete(ask(), CHAIN)
        assert not manager.is_cooling("openai/a"), "a server that is down asked for no pause"
    assert reply.model == "openai/b"
    assert dialect.models == ["a", "a", "a", "b"]


@pytest.mark.spec("C-36")
@pytest.mark.parametrize("error", [rejected()])
async def test_a_refused_request_goes_to_nobody_else(error: ModelError, autojump_clock: MockClock) -> None:
    """Control spec pitfall 36: no fallback on 400 and wrong credentials."""
    dialect = ToldDialect({"openai/a": [error]})
    async with open_manager(dialect) as manager:
        with pytest.raises(ModelRejectedError):
            await manager.complete(ask(), CHAIN)
    assert dialect.models == ["a"]


async def test_an_unknown_model_is_not_asked_twice(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [rejected(is_unknown_model=True)]})
    async with open_manager(dialect) as manager:
        await manager.complete(ask(), CHAIN)
    assert dialect.models == ["a", "b"]


@pytest.mark.spec("C-54")
async def test_an_unknown_model_without_fallbacks_gives_way_to_the_providers_defaults(
    autojump_clock: MockClock,
) -> None:
    """Control spec pitfall 54: model ids age."""
    dialect = ToldDialect({"openai/a": [rejected(is_unknown_model=True)]})
    async with open_manager(dialect) as manager:
        await manager.complete(ask(), ALONE)
    assert dialect.models == ["a", "gpt-4.1"]


@pytest.mark.spec("C-66", "CA-4")
async def test_a_busy_model_is_left_at_once_and_rests_for_all_agents(autojump_clock: MockClock) -> None:
    """Control spec pitfall 66: the cooldown begins with the first 429."""
    dialect = ToldDialect({"openai/a": [busy()]})
    async with open_manager(dialect) as manager:
        one, other = manager.for_agent(lambda: CHAIN), manager.for_agent(lambda: CHAIN)
        await one.complete(ask())
        assert manager.is_cooling("openai/a")
        await other.complete(ask(process=ProcessKind.WORKER))
        await trio.sleep(61)
        await other.complete(ask())
    assert dialect.models == ["a", "b", "b", "a"]


async def test_a_busy_model_without_others_is_waited_for(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [busy(7), busy()]})
    async with open_manager(dialect) as manager:
        await manager.complete(ask(), ALONE)
        assert dialect.pauses == [7, 1.0]
        await manager.complete(ask(), ALONE)
    assert dialect.models == ["a"] * 4, "a cooling model is better than none"


async def test_nobody_waits_longer_than_half_a_minute_for_a_busy_model(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [busy(31)]})
    async with open_manager(dialect) as manager:
        with pytest.raises(ModelBusyError) as caught:
            await manager.complete(ask(), ALONE)
    assert caught.value.retry_after_s == 31
    assert dialect.models == ["a"]


async def test_when_all_fail_one_error_lists_them_all(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [busy()], "openai/b": [down()] * 3, "openai/c": [down()] * 3})
    async with open_manager(dialect) as manager:
        with pytest.raises(ModelUnavailableError, match="no model answered; busy; down; down"):
            await manager.complete(ask(), CHAIN)
    assert dialect.models == ["a", "b", "b", "b", "c", "c", "c"]


async def test_when_all_are_busy_the_shortest_wait_is_told(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [busy(90)], "openai/b": [busy(40)], "openai/c": [busy(60)]})
    async with open_manager(dialect) as manager:
        with pytest.raises(ModelBusyError) as caught:
            await manager.complete(ask(), CHAIN)
    assert caught.value.retry_after_s == 40


@pytest.mark.spec("C-56")
async def test_a_refusal_for_size_teaches_a_ceiling_that_only_falls(autojump_clock: MockClock) -> None:
    too_long = ContextOverflowError("too long", model="m")
    dialect = ToldDialect({"openai/a": [too_long, too_long]})
    request = ask("word " * 4000)
    async with open_manager(dialect) as manager:
        model = manager.for_agent(lambda: ALONE)
        assert manager.ceiling("openai/a") is None
        assert model.context_window(ProcessKind.CHANNEL) == ALONE.context_window
        with pytest.raises(ContextOverflowError):
            await model.complete(request)
        assert manager.ceiling("openai/a") == int(estimate_tokens(request.messages) * 0.9)
        with pytest.raises(ContextOverflowError):
            await model.complete(ask("word " * 8000))
        assert manager.ceiling("openai/a") == int(estimate_tokens(request.messages) * 0.9)
        assert model.context_window(ProcessKind.CHANNEL) == manager.ceiling("openai/a")
    assert dialect.models == ["a", "a"], "the same request is as long the second time"


async def test_a_refused_picture_teaches_nothing(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [ContextOverflowError("too large", model="m")]})
    picture = ModelMessage(Role.USER, (Image("image/png", "QUJD"),))
    async with open_manager(dialect) as manager:
        with pytest.raises(ContextOverflowError):
            await manager.complete(ModelRequest(process=ProcessKind.CHANNEL, system=(), messages=(picture,)), ALONE)
        assert manager.ceiling("openai/a") is None


async def test_an_overflow_in_the_whole_chain_is_told_as_one(autojump_clock: MockClock) -> None:
    """The caller has to know that shortening helps."""
    dialect = ToldDialect(
        {"openai/a": [ContextOverflowError("long", model="m")], "openai/b": [down()] * 3, "openai/c": [down()] * 3}
    )
    async with open_manager(dialect) as manager:
        with pytest.raises(ContextOverflowError):
            await manager.complete(ask(), CHAIN)


async def test_what_was_shown_is_taken_back_before_another_try(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [down()] * 3}, words_before_failing="half a")
    deltas: list[StreamDelta] = []
    async with open_manager(dialect) as manager:
        await manager.complete(ask(), CHAIN, deltas.append)
    assert deltas == [TextDelta("half a"), Restart()] * 3 + [TextDelta("hi")]


async def test_nothing_is_taken_back_when_nothing_was_shown(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [down()]})
    deltas: list[StreamDelta] = []
    async with open_manager(dialect) as manager:
        await manager.complete(ask(), CHAIN, deltas.append)
    assert deltas == [TextDelta("hi")]


async def test_a_process_has_a_total_time_for_one_answer(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [100_000.0]})
    async with open_manager(dialect) as manager:
        begin = trio.current_time()
        with pytest.raises(ModelUnavailableError, match="300 s"):
            await manager.complete(ask(), CHAIN)
        assert trio.current_time() - begin == 300


async def test_the_books_and_the_node_are_told(autojump_clock: MockClock) -> None:
    tree, records = Tree(), list[UsageRecord]()
    node = tree.add(NodeKind.WORKER, "work", agent_id="main", channel_id="webchat:1")
    dialect = ToldDialect({"openai/a": [down(), 5.0]})
    request = ModelRequest(process=ProcessKind.WORKER, system=(), messages=ask().messages, node=node)
    async with open_manager(dialect, records.append) as manager:
        await manager.complete(request, ALONE)
    assert (node.model_calls, node.input_tokens, node.output_tokens) == (2, 7, 2)
    assert node.last_progress_at == trio.current_time()
    (record,) = records
    assert (record.model, record.provider, record.process) == ("openai/a", "openai", ProcessKind.WORKER)
    assert (record.agent_id, record.channel_id, record.node_id) == ("main", "webchat:1", node.id)
    assert record.usage.cache_read_tokens == 4


async def test_a_cancelled_call_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    dialect = ToldDialect({"openai/a": [down(), 1000.0]})
    async with open_manager(dialect) as manager:
        for patience in (0.0, 0.2, 0.7):
            dialect.script["openai/a"] = [down(), 1000.0]
            with trio.move_on_after(patience) as scope:
                await manager.complete(ask(), CHAIN)
            assert scope.cancelled_caught
        dialect.script.clear()
        assert (await manager.complete(ask(), CHAIN)).model == "openai/a"


async def test_configuration_is_read_at_each_call(autojump_clock: MockClock) -> None:
    settings = ALONE
    dialect = ToldDialect()
    async with open_manager(dialect) as manager:
        model = manager.for_agent(lambda: settings)
        await model.complete(ask())
        settings = AgentSettings(routing=RoutingConfig(channel="openai/z"))
        await model.complete(ask())
    assert dialect.models == ["a", "z"]


async def test_without_a_key_the_error_says_what_to_write(autojump_clock: MockClock) -> None:
    async with open_manager(ToldDialect(), llm=LlmConfig()) as manager:
        with pytest.raises(ModelRejectedError, match=r"openai_key.*config\.toml.*OPENAI_API_KEY"):
            await manager.complete(ask(), ALONE)


async def test_a_library_is_loaded_once_however_many_wait() -> None:
    """A real thread does the loading, so no virtual clock."""
    dialect = ToldDialect(is_loaded=False)
    async with open_manager(dialect) as manager:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(manager.warm_up, [ALONE])
                for _ in range(5):
                    nursery.start_soon(manager.complete, ask(), ALONE)
    assert dialect.loads == 1
    assert len(dialect.asked) == 5


@dataclass
class BrokenDialect(ToldDialect):
    """Cannot be loaded until the machine is repaired."""

    is_loaded: bool = False
    trouble: Exception | None = field(default_factory=lambda: ImportError("no such library"))

    def load(self) -> None:
        self.loads += 1
        if self.trouble is not None:
            raise self.trouble
        self.is_loaded = True


async def test_a_library_that_cannot_be_loaded_is_told_to_every_caller(
    logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logs.expect("model library not loaded")

    async def fails(manager: ModelManager) -> None:
        with pytest.raises(ModelUnavailableError, match="no such library"):
            await manager.complete(ask(), ALONE)

    async with open_manager(BrokenDialect()) as manager:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, manager)
                nursery.start_soon(fails, manager)
    assert caplog.messages.count("model library not loaded") == 1


async def test_a_failed_warm_up_is_only_logged_and_a_repaired_machine_works_without_a_restart(
    logs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logs.expect("model library not loaded")
    dialect = BrokenDialect()
    async with open_manager(dialect) as manager:
        with trio.fail_after(5):
            await manager.warm_up([ALONE])
            dialect.trouble = None
            assert (await manager.complete(ask(), ALONE)).message.text == "hi"
    assert "models not warmed up" in caplog.messages


async def test_an_unreadable_certificate_file_is_named_not_the_installation(
    logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.expect("model library not loaded")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    async with open_models(lambda: providers("openai")) as manager:
        with (
            trio.fail_after(20),
            pytest.raises(ModelUnavailableError, match=r"SSL_CERT_FILE='/nonexistent\.pem'") as caught,
        ):
            await manager.complete(ask(), ALONE)
    assert "reinstall" not in str(caught.value)
