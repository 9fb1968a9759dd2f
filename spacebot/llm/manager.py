"""One completion: routing, retries, fallback, cooldown, accounting.

Flow:   AgentModel.complete -> choose_models -> _ask_in_turn -> _ask_patiently -> Dialect.complete
Floor:  llm; may import base, config
Source: control spec 2.4, 2.8, 2.13 to 2.15, pitfalls 36 to 38, 54 to 56, 66; process spec 18, P17, P51, S10
"""

import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

import trio

from spacebot.base.clock import monotonic_s
from spacebot.base.errors import (
    ContextOverflowError,
    ModelBusyError,
    ModelError,
    ModelRejectedError,
    ModelUnavailableError,
)
from spacebot.base.telemetry import kv
from spacebot.config.model import AgentConfig, AgentSettings, ApiType, LlmConfig
from spacebot.llm.anthropic import AnthropicDialect
from spacebot.llm.demo import DemoDialect
from spacebot.llm.dialect import Dialect, Target
from spacebot.llm.history import estimate_tokens
from spacebot.llm.messages import (
    Image,
    ModelReply,
    ModelRequest,
    OnDelta,
    ProcessKind,
    Restart,
    StreamDelta,
    Usage,
)
from spacebot.llm.openai_chat import OpenAiChatDialect
from spacebot.llm.routing import choose_models, is_rerouted, model_names, resolve, split_name
from spacebot.llm.transcription import Transcriber
from spacebot.llm.transport import open_transport

log = logging.getLogger(__name__)

ATTEMPTS = 3  # per model; control spec 2.8
BACK_OFF_S = 0.5  # doubles with every attempt
JITTER = 0.25  # share of the pause added at random
LONGEST_WAIT_S = 30.0  # a provider that wants more patience is left alone
LEARNED_SHARE = 0.9  # of a refused size is believed to fit; control spec 2.14
LEAST_CEILING = 4000  # tokens; a smaller one would leave no room to talk, so the refusal had other reasons
TOTAL_S: Mapping[ProcessKind, float] = MappingProxyType(
    {
        ProcessKind.CHANNEL: 300.0,  # a person is waiting
        ProcessKind.BRANCH: 600.0,
        ProcessKind.WORKER: 1800.0,
        ProcessKind.COMPACTOR: 300.0,
        ProcessKind.CORTEX: 600.0,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What one completion cost, for the books."""

    process: ProcessKind
    model: str
    provider: str
    usage: Usage
    agent_id: str | None
    channel_id: str | None
    node_id: str | None


RecordUsage = Callable[[UsageRecord], None]


class _Loading:
    """A vendor library on its way in; many may wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = None


class ModelManager:
    """Asks models for all agents: what one of them learns about a provider, all know."""

    def __init__(
        self,
        dialects: Mapping[ApiType, Dialect],
        nursery: trio.Nursery,
        llm: Callable[[], LlmConfig],
        *,
        record_usage: RecordUsage | None = None,
        transcriber: Transcriber | None = None,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
    ) -> None:
        self._dialects = dialects
        self._nursery = nursery
        self._llm = llm
        self._record_usage = record_usage
        self._transcriber = transcriber
        self._jitter = jitter
        self._sleep = sleep
        self._loading: dict[int, _Loading] = {}
        self._cool_until: dict[str, float] = {}  # by full model name, on the monotonic clock
        self._ceilings: dict[str, int] = {}
        self._warned: set[str] = set()

    def for_agent(self, settings: Callable[[], AgentSettings]) -> "AgentModel":
        """The model of one agent; its settings are read anew at each call."""
        return AgentModel(self, settings)

    def ceiling(self, model: str) -> int | None:
        """Tokens that a model is known to refuse above, or None while nothing is known."""
        return self._ceilings.get(model)

    def context_window(self, process: ProcessKind, settings: AgentSettings) -> int:
        """Tokens that a process's model reads: the configured number, or less where a refusal taught better."""
        try:
            target = choose_models(process, None, settings.routing, self._llm())[0]
        except ModelRejectedError:
            return settings.context_window
        return min(settings.context_window, self._ceilings.get(target.model, settings.context_window))

    def is_cooling(self, model: str) -> bool:
        """Whether a model's provider asked for a pause that is not over."""
        return self._cool_until.get(model, 0.0) > monotonic_s()

    async def warm_up(self, settings: Iterable[AgentSettings] = ()) -> None:
        """Import the libraries that the configured models need, so that the first call does not wait.

        Failures are only logged: the first call tries again, and says so.

        Cancel: the import goes on in its thread until it is finished.
        """
        llm = self._llm()
        kinds: dict[ApiType, None] = {}
        for agent in settings or (AgentSettings(),):
            for process in ProcessKind:
                try:
                    kinds.update((t.api_type, None) for t in choose_models(process, None, agent.routing, llm))
                except ModelRejectedError:
                    continue  # the first call will say so
        for kind in kinds:
            try:
                await self._ready(kind)
            except ModelError as error:
                log.warning("models not warmed up", extra=kv(error=str(error)))

    async def complete(
        self, request: ModelRequest, settings: AgentSettings, on_delta: OnDelta | None = None
    ) -> ModelReply:
        """Ask the models of the route in order until one answers.

        Errors: ModelError and its kinds; when several models failed, one error that lists them all.
        """
        targets = choose_models(request.process, request.task_type, settings.routing, self._llm())
        self._warn_rerouted(request, settings, targets[0])
        limit_s = TOTAL_S[request.process]
        watch = _Watch(request, on_delta)
        with trio.move_on_after(limit_s) as scope:
            return await self._ask_in_turn(request, targets, settings, watch)
        assert scope.cancelled_caught
        raise ModelUnavailableError(
            f"{targets[0].model}: no complete answer within {limit_s:g} s; try again, or choose a faster model",
            model=targets[0].model,
        )

    async def transcribe(self, audio: bytes, media_type: str, settings: AgentSettings, *, instruction: str) -> str:
        """The words of a recording, by the model of `routing.voice`.

        Args:
            instruction: what the model is told to do with it.

        Errors: ModelError and its kinds; ModelRejectedError says what to configure when no model can hear.
        """
        if self._transcriber is None:
            raise ModelRejectedError("no model hears recordings here", model="voice")
        heard = await self._transcriber.transcribe(
            audio, media_type, model=settings.routing.voice, llm=self._llm(), instruction=instruction
        )
        if self._record_usage is not None:
            self._record_usage(
                UsageRecord(
                    process=ProcessKind.CHANNEL,
                    model=heard.model,
                    provider=heard.provider,
                    usage=heard.usage,
                    agent_id=settings.id if isinstance(settings, AgentConfig) else None,
                    channel_id=None,
                    node_id=None,
                )
            )
        return heard.text

    async def _ask_in_turn(
        self, request: ModelRequest, targets: tuple[Target, ...], settings: AgentSettings, watch: "_Watch"
    ) -> ModelReply:
        failures: list[ModelError] = []
        queue = [t for t in targets if not self.is_cooling(t.model)] or list(targets)
        while queue:
            target = queue.pop(0)
            try:
                has_others = any(not self.is_cooling(other.model) for other in queue)
                reply = await self._ask_patiently(request, target, settings, watch, has_others=has_others)
            except ModelError as error:
                failures.append(error)
                log.warning(
                    "model failed",
                    extra=kv(model=target.model, kind=type(error).__name__, process=str(request.process)),
                )
                if not error.may_fall_back:
                    break
                if not queue and isinstance(error, ModelRejectedError) and len(failures) == 1:
                    queue += self._siblings(target)
                if queue:
                    watch.restart()
                continue
            self._account(request, target, reply)
            return reply
        raise _combine(failures)

    async def _ask_patiently(
        self,
        request: ModelRequest,
        target: Target,
        settings: AgentSettings,
        watch: "_Watch",
        *,
        has_others: bool,
    ) -> ModelReply:
        """Ask one model, up to `ATTEMPTS` times."""
        await self._ready(target.api_type)
        dialect = self._dialects[target.api_type]
        for attempt in range(1, ATTEMPTS + 1):
            watch.begin()
            try:
                return await dialect.complete(request, target, watch)
            except ModelError as error:
                self._learn(error, request, target, settings)
                pause_s = self._pause_s(error, attempt, has_others=has_others)
                if pause_s is None:
                    raise
                watch.restart()
                log.info("model call retried", extra=kv(model=target.model, attempt=attempt, pause_s=round(pause_s, 2)))
                await self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _pause_s(self, error: ModelError, attempt: int, *, has_others: bool) -> float | None:
        """Seconds until the same model is asked again, or None when it is not."""
        if not error.retryable or attempt == ATTEMPTS:
            return None
        pause_s = BACK_OFF_S * 2.0 ** (attempt - 1) * (1 + JITTER * self._jitter())
        if isinstance(error, ModelBusyError):
            if has_others:
                return None  # hammering a busy provider helps nobody
            asked_s = error.retry_after_s or 0.0
            return None if asked_s > LONGEST_WAIT_S else max(pause_s, asked_s)
        return pause_s

    def _learn(self, error: ModelError, request: ModelRequest, target: Target, settings: AgentSettings) -> None:
        if isinstance(error, ModelBusyError):
            pause_s = max(settings.routing.rate_limit_cooldown_secs, error.retry_after_s or 0.0)
            self._cool_until[target.model] = max(self._cool_until.get(target.model, 0.0), monotonic_s() + pause_s)
        elif isinstance(error, ContextOverflowError) and not _has_images(request):
            size = estimate_tokens(request.messages, request.system, request.tools)
            known = self._ceilings.get(target.model, size)
            self._ceilings[target.model] = min(known, max(LEAST_CEILING, int(size * LEARNED_SHARE)))

    def _siblings(self, target: Target) -> list[Target]:
        """A provider's default models, for when it no longer knows the one that was asked for."""
        entry = target.entry
        names = [f"{target.provider}/{name}" for name in (entry.first, entry.second) if name]
        return [resolve(name, self._llm()) for name in dict.fromkeys(names) if name != target.model]

    async def _ready(self, kind: ApiType) -> None:
        """Wait until a dialect's library is imported; the first who asks starts it."""
        dialect = self._dialects[kind]
        if dialect.is_loaded:
            return
        loading = self._loading.get(id(dialect))
        if loading is None:
            loading = self._loading[id(dialect)] = _Loading()
            self._nursery.start_soon(_load, dialect, loading)
        if not loading.done.is_set():
            await loading.done.wait()
        if loading.error is not None:
            if self._loading.get(id(dialect)) is loading:
                del self._loading[id(dialect)]  # the next call tries again: the machine may be repaired by then
            raise ModelUnavailableError(
                f"the library for {kind.value!r} models cannot be loaded: {_load_advice(loading.error)}",
                model=kind.value,
            ) from loading.error

    def _account(self, request: ModelRequest, target: Target, reply: ModelReply) -> None:
        node = request.node
        if node is not None:
            usage = reply.usage
            node.input_tokens += usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            node.output_tokens += usage.output_tokens
        if self._record_usage is not None:
            self._record_usage(
                UsageRecord(
                    process=request.process,
                    model=target.model,
                    provider=target.provider,
                    usage=reply.usage,
                    agent_id=node.agent_id if node else None,
                    channel_id=node.channel_id if node else None,
                    node_id=node.id if node else None,
                )
            )

    def _warn_rerouted(self, request: ModelRequest, settings: AgentSettings, target: Target) -> None:
        name = model_names(request.process, request.task_type, settings.routing, self._llm())[0]
        if name not in self._warned and is_rerouted(name, target):
            self._warned.add(name)
            log.warning("model reached through OpenRouter", extra=kv(asked=name, provider=split_name(name)[0]))


def _has_images(request: ModelRequest) -> bool:
    """Pictures are refused for their bytes, which says nothing about tokens."""
    return any(isinstance(part, Image) for message in request.messages for part in message.parts)


class AgentModel:
    """The models of one agent, as its processes see them."""

    def __init__(self, manager: ModelManager, settings: Callable[[], AgentSettings]) -> None:
        self._manager = manager
        self._settings = settings

    async def complete(self, request: ModelRequest, on_delta: OnDelta | None = None) -> ModelReply:
        """Ask and wait for the whole answer; deltas arrive while it grows.

        Errors: ModelError and its kinds.
        Cancel: the connection is closed at once; nothing is left behind.
        """
        return await self._manager.complete(request, self._settings(), on_delta)

    async def transcribe(self, audio: bytes, media_type: str, *, instruction: str) -> str:
        """The words of a recording. Errors: ModelError and its kinds."""
        return await self._manager.transcribe(audio, media_type, self._settings(), instruction=instruction)

    def context_window(self, process: ProcessKind) -> int:
        """Tokens that the process's model reads: the configured number, or less where a refusal taught better."""
        return self._manager.context_window(process, self._settings())


class _Watch:
    """Sees every delta pass: marks progress, and knows whether anything has been shown."""

    def __init__(self, request: ModelRequest, on_delta: OnDelta | None) -> None:
        self._node = request.node
        self._on_delta = on_delta
        self._has_shown = False

    def begin(self) -> None:
        """A call is about to be sent."""
        if self._node is not None:
            self._node.model_calls += 1
            self._node.progress()

    def __call__(self, delta: StreamDelta) -> None:
        if self._node is not None:
            self._node.progress()
        if self._on_delta is not None:
            self._has_shown = True
            self._on_delta(delta)

    def restart(self) -> None:
        """What was shown is void."""
        if self._has_shown and self._on_delta is not None:
            self._has_shown = False
            self._on_delta(Restart())


async def _load(dialect: Dialect, loading: _Loading) -> None:
    try:
        await trio.to_thread.run_sync(dialect.load)
    except Exception as error:  # boundary: service
        log.error("model library not loaded", exc_info=error)
        loading.error = error
    finally:
        loading.done.set()


def _load_advice(error: Exception) -> str:
    """Why a library was not loaded, and what to do."""
    if isinstance(error, OSError) and error.filename is None:  # certificates; any other file would be named
        variables = (name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name))
        named = " and ".join(f"{name}={os.environ[name]!r}" for name in variables)
        where = f"the certificates of {named}; correct or unset that" if named else "the certificates; check them"
        return f"{error.strerror or type(error).__name__} in {where}"
    return f"{type(error).__name__}: {error}; reinstall the program if it goes on"


def _combine(failures: list[ModelError]) -> ModelError:
    """One error that lists every model and reason; of the kind that the caller can do most about."""
    if len(failures) == 1:
        return failures[0]
    first = failures[0]
    text = "no model answered; " + "; ".join(str(error) for error in failures)
    if any(isinstance(error, ContextOverflowError) for error in failures):
        return ContextOverflowError(text, model=first.model)
    if isinstance(failures[-1], ModelRejectedError):
        return ModelRejectedError(text, model=first.model, status_code=failures[-1].status_code)
    waits = [error.retry_after_s or 0.0 for error in failures if isinstance(error, ModelBusyError)]
    if len(waits) == len(failures):
        return ModelBusyError(text, model=first.model, retry_after_s=min(waits) or None)
    return ModelUnavailableError(text, model=first.model)


@asynccontextmanager
async def open_models(
    llm: Callable[[], LlmConfig], *, record_usage: RecordUsage | None = None
) -> AsyncIterator[ModelManager]:
    """Open the way to models.

    Args:
        llm: gives the present configuration; asked at each call, so changes count at once.
        record_usage: told of each completion; must not wait.

    Owns: the HTTP clients; closes them, also when cancelled.
    """
    async with open_transport() as transport, trio.open_nursery() as nursery:
        chat = OpenAiChatDialect(transport)
        dialects: dict[ApiType, Dialect] = {
            ApiType.ANTHROPIC: AnthropicDialect(transport),
            ApiType.OPENAI_COMPLETIONS: chat,
            ApiType.OPENAI_CHAT_COMPLETIONS: chat,
            ApiType.DEMO: DemoDialect(),
        }
        yield ModelManager(dialects, nursery, llm, record_usage=record_usage, transcriber=Transcriber(transport))
        nursery.cancel_scope.cancel()
