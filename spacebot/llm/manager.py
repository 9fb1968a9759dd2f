"""One completion: routing, retries, fallback, cooldown, accounting.

Flow:   AgentModel.complete -> choose -> _ask_in_turn -> _ask_patiently -> Dialect.complete
Floor:  llm; may import base, config
Source: control spec 2.4, 2.8, 2.13 to 2.15, pitfalls 36 to 38, 54 to 56, 66; process spec 18, P17, P51, S10
"""

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
from spacebot.llm.choice import Choice, Obstacle, choose, choose_models, targets_of
from spacebot.llm.credentials import Credentials
from spacebot.llm.dialect import Dialect, Target
from spacebot.llm.explain import RouteExplanation, explain
from spacebot.llm.history import estimate_tokens
from spacebot.llm.libraries import Libraries
from spacebot.llm.messages import (
    Image,
    ModelMessage,
    ModelReply,
    ModelRequest,
    OnDelta,
    ProcessKind,
    Restart,
    StreamDelta,
    Usage,
)
from spacebot.llm.profiles import FreeModels, no_free_models
from spacebot.llm.routing import is_rerouted, resolve, split_name
from spacebot.llm.transcription import Transcriber

log = logging.getLogger(__name__)

ATTEMPTS = 3  # per model; control spec 2.8
BACK_OFF_S = 0.5  # doubles with every attempt
JITTER = 0.25  # share of the pause added at random
LONGEST_WAIT_S = 30.0  # a provider that wants more patience is left alone
LEARNED_SHARE = 0.9  # of a refused size is believed to fit; control spec 2.14
TRIAL_TOKENS = 16  # the least that every provider accepts
TRIAL_S = 60.0
LEAST_CEILING = 4000  # tokens; a smaller one would leave no room to talk, so the refusal had other reasons
MOST_KEPT = 500  # first models, of agents and their processes
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
    tier: str | None = None  # light, standard or heavy, where the words of a message chose
    default_model: str | None = None  # full name of what would have been asked otherwise; None: the same
    is_included: bool = False  # paid by a subscription, not by the token


RecordUsage = Callable[[UsageRecord], None]


class ModelManager:
    """Asks models for all agents: what one of them learns about a provider, all know."""

    def __init__(
        self,
        libraries: Libraries,
        llm: Callable[[], LlmConfig],
        *,
        record_usage: RecordUsage | None = None,
        transcriber: Transcriber | None = None,
        credentials: Credentials | None = None,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
        free_models: FreeModels = no_free_models,
    ) -> None:
        self.free_models = free_models
        self.known_window: Callable[[str], int | None] = lambda model: None  # of the catalogue, by full model name
        self._libraries = libraries
        self._llm = llm
        self._record_usage = record_usage
        self._transcriber = transcriber
        self.credentials = credentials
        self._jitter = jitter
        self._sleep = sleep
        self._cool_until: dict[str, float] = {}  # by full model name, on the monotonic clock
        self._ceilings: dict[str, int] = {}
        self._warned: set[str] = set()
        self._first_models: dict[tuple[ProcessKind, int], tuple[AgentSettings, LlmConfig, str]] = {}

    def for_agent(self, settings: Callable[[], AgentSettings]) -> "AgentModel":
        """The model of one agent; its settings are read anew at each call."""
        return AgentModel(self, settings)

    def ceiling(self, model: str) -> int | None:
        """Tokens that a model reads, as the catalogue has it or as a refusal taught; None while nothing is known."""
        known = [size for size in (self.known_window(model), self._ceilings.get(model)) if size is not None]
        return max(LEAST_CEILING, min(known)) if known else None

    def context_window(self, process: ProcessKind, settings: AgentSettings) -> int:
        """Tokens that a process's model reads: the configured number, or less where its ceiling is known."""
        try:
            ceiling = self.ceiling(self._first_model(process, settings))
        except ModelRejectedError:
            return settings.context_window
        return settings.context_window if ceiling is None else min(settings.context_window, ceiling)

    def _first_model(self, process: ProcessKind, settings: AgentSettings) -> str:
        """The model that a process asks first; kept while the configuration is the same, as every step asks for it."""
        key, llm = (process, id(settings)), self._llm()
        kept = self._first_models.get(key)
        if kept is None or kept[0] is not settings or kept[1] is not llm:
            if len(self._first_models) >= MOST_KEPT:
                self._first_models.clear()
            kept = self._first_models[key] = settings, llm, choose_models(process, None, settings, llm)[0].model
        return kept[2]

    def is_cooling(self, model: str) -> bool:
        """Whether a model's provider asked for a pause that is not over."""
        return self._cool_until.get(model, 0.0) > monotonic_s()

    def explain(
        self, text: str, process: ProcessKind, settings: AgentSettings, *, task_type: str | None = None
    ) -> RouteExplanation:
        """Which model would answer a text now, and why."""

        def cooling(model: str) -> float:
            return max(0.0, self._cool_until.get(model, 0.0) - monotonic_s())

        return explain(
            [text], process, settings, self._llm(), task_type=task_type, cooling=cooling, free=self.free_models
        )

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
                    kinds.update((t.api_type, None) for t in choose_models(process, None, agent, llm))
                except ModelRejectedError:
                    continue  # the first call will say so
        for kind in kinds:
            try:
                await self._libraries.ready(kind)
            except ModelError as error:
                log.warning("models not warmed up", extra=kv(error=str(error)))

    async def complete(
        self, request: ModelRequest, settings: AgentSettings, on_delta: OnDelta | None = None
    ) -> ModelReply:
        """Ask the models of the route in order until one answers.

        Errors: ModelError and its kinds; when several models failed, one error that lists them all.
        """
        choice = self._choose(request, settings)
        targets = targets_of(choice, request.process, settings.routing, self._llm())
        self._warn_rerouted(choice, targets[0])
        limit_s = TOTAL_S[request.process]
        watch = _Watch(request, on_delta)
        with trio.move_on_after(limit_s) as scope:
            return await self._ask_in_turn(request, targets, settings, watch, choice)
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

    def _choose(self, request: ModelRequest, settings: AgentSettings) -> Choice:
        """The models for a request, as things are at this moment."""
        complexity = request.complexity

        def obstacle(target: Target) -> Obstacle | None:
            if self.is_cooling(target.model):
                return Obstacle.COOLING
            ceiling = self.ceiling(target.model)
            if ceiling is not None and estimate_tokens(request.messages, request.system, request.tools) > ceiling:
                return Obstacle.TOO_SMALL
            return None

        choice = choose(
            request.process, request.task_type, settings, self._llm(),
            complexity=complexity, obstacle=obstacle, free=self.free_models,
        )  # fmt: skip
        if complexity is not None and choice.tier is not None:
            log.debug(
                "prompt scored",
                extra=kv(
                    agent=request.node.agent_id if request.node else None, process=str(request.process),
                    score=complexity.score, tier=str(choice.tier), model=choice.names[0], default=choice.default,
                    values=", ".join(f"{name} {value:g}" for name, value in complexity.values.items() if value),
                ),
            )  # fmt: skip
        return choice

    async def _ask_in_turn(
        self,
        request: ModelRequest,
        targets: tuple[Target, ...],
        settings: AgentSettings,
        watch: "_Watch",
        choice: Choice,
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
            self._account(request, target, reply, choice)
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
        dialect = await self._libraries.ready(target.api_type)
        for attempt in range(1, ATTEMPTS + 1):
            watch.begin()
            try:
                return await self._call(dialect, request, target, watch)
            except ModelError as error:
                self._learn(error, request, target, settings)
                pause_s = self._pause_s(error, attempt, has_others=has_others)
                if pause_s is None:
                    raise
                watch.restart()
                log.info("model call retried", extra=kv(model=target.model, attempt=attempt, pause_s=round(pause_s, 2)))
                await self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, dialect: Dialect, request: ModelRequest, target: Target, on_delta: OnDelta) -> ModelReply:
        """One call with the key, or the token of a login."""
        if self.credentials is None:
            return await dialect.complete(request, target, on_delta)
        return await self.credentials.complete(dialect, request, target, on_delta)

    async def try_model(self, name: str, llm: LlmConfig) -> ModelReply:
        """Ask a model a word, once, with providers that need not be the configured ones; nothing is kept or booked.

        Errors: ModelError and its kinds.
        """
        target = resolve(name, llm)
        dialect = await self._libraries.ready(target.api_type)
        request = ModelRequest(
            process=ProcessKind.CHANNEL,
            system=(),
            messages=(ModelMessage.user("Hello"),),
            max_output_tokens=TRIAL_TOKENS,
        )
        with trio.move_on_after(TRIAL_S):
            return await self._call(dialect, request, target, lambda delta: None)
        raise ModelUnavailableError(f"{name}: no answer within {TRIAL_S:g} s; try again", model=name)

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

    def _account(self, request: ModelRequest, target: Target, reply: ModelReply, choice: Choice) -> None:
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
                    tier=None if choice.tier is None else str(choice.tier),
                    default_model=self._default_of(choice, target),
                    is_included=reply.is_included,
                )
            )

    def _default_of(self, choice: Choice, target: Target) -> str | None:
        """What would have been asked without scoring, when that is another model than the one that answered."""
        if choice.tier is None:
            return None
        try:
            default = resolve(choice.default, self._llm()).model
        except ModelRejectedError:
            return None
        return None if default == target.model else default

    def _warn_rerouted(self, choice: Choice, target: Target) -> None:
        name = choice.names[0]
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

    def explain(self, text: str, process: ProcessKind, task_type: str | None = None) -> RouteExplanation:
        """Which model would answer a text now, and why."""
        return self._manager.explain(text, process, self._settings(), task_type=task_type)

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
