"""Every table of `config.toml` as a frozen model: defaults and units beside each field.

The models hold values only. Reading the file, `env:` values and helpful errors are `load.py`'s work.
An agent's own tables are merged over `[defaults]` field by field before they become models.

Floor:  config; may import base
Source: control spec 1.4 to 1.5
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from spacebot.base.clock import parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.ids import parse_agent_id
from spacebot.config.hands import BrowserConfig, McpServerConfig, OpenCodeConfig, PermissionsConfig
from spacebot.config.messaging import BindingConfig, MessagingConfig
from spacebot.config.routing import BudgetConfig, RoutingConfig, RoutingProfile
from spacebot.config.tables import Table, is_loopback_address, is_url

Fraction = Annotated[float, Field(gt=0, le=1)]


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Let pydantic gather our own errors like all others."""
    try:
        yield
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _is_address(value: str) -> str:
    value = value.removeprefix("[").removesuffix("]")  # ::1 as people write it in URLs
    if value != "localhost":
        try:
            ip_address(value)
        except ValueError as error:
            raise ValueError("must be an IP address such as 127.0.0.1 or ::1, or 'localhost'") from error
    return value


Address = Annotated[str, AfterValidator(_is_address)]


def _is_zone(value: str) -> str:
    with _as_value_error():
        parse_zone(value)
    return value


Zone = Annotated[str, AfterValidator(_is_zone)]  # IANA name


class ApiConfig(Table):
    """`[api]`: the HTTP face."""

    enabled: bool = True
    port: int = Field(default=5738, ge=0, le=65535)  # 0 lets the system choose
    bind: Address = "127.0.0.1"
    auth_token: SecretStr | None = None
    allowed_origins: tuple[str, ...] = ()  # pages of other sites that may show the web chat in a frame

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            parts = urlsplit(value.rstrip("/"))
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
                raise ValueError(f"{value!r} must be scheme, host and port of the page, such as 'https://example.org'")
        return values

    @model_validator(mode="after")
    def _open_needs_token(self) -> Self:
        if self.enabled and not self.is_loopback and self.auth_token is None:
            raise ValueError("a bind other than loopback needs api.auth_token, or anybody could command the agent")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback_address(self.bind)


class MetricsConfig(Table):
    """`[metrics]`: figures for Prometheus on a port of their own. They hold nothing secret, so any bind will do."""

    enabled: bool = False
    port: int = Field(default=9090, ge=0, le=65535)  # 0 lets the system choose
    bind: Address = "127.0.0.1"


class TelemetryConfig(Table):
    """`[telemetry]`: traces over OTLP (HTTP, protobuf). `OTEL_*` of the environment wins. Control spec 1.4."""

    otlp_endpoint: str | None = None  # /v1/traces is added unless it is there
    otlp_headers: SecretStr | None = None  # name=value, separated by commas
    service_name: str = Field(default="spacebot", min_length=1, max_length=200)
    sample_rate: float = Field(default=1.0, ge=0, le=1)

    _urls = field_validator("otlp_endpoint")(is_url)

    @field_validator("otlp_headers")
    @classmethod
    def _are_pairs(cls, value: SecretStr | None) -> SecretStr | None:
        for pair in value.get_secret_value().split(",") if value is not None else ():
            name, equals, _ = pair.partition("=")
            if not equals or not name.strip():
                raise ValueError("must be pairs of name=value, separated by commas")
        return value


class UpdateConfig(Table):
    """`[update]`: looking for newer releases. Off until a repository is named: nothing calls home by itself."""

    repository: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$")  # GitHub
    check_interval_secs: float = Field(default=3600, ge=60)


class ApiType(StrEnum):
    """Wire formats that providers speak."""

    ANTHROPIC = "anthropic"
    OPENAI_COMPLETIONS = "openai_completions"  # base_url is the root, /v1/chat/completions is added
    OPENAI_CHAT_COMPLETIONS = "openai_chat_completions"  # base_url is versioned already, /chat/completions is added
    DEMO = "demo"  # the built-in rule-based model


class ProviderConfig(Table):
    """`[llm.provider.<id>]`: a host of models."""

    api_type: ApiType
    base_url: str = ""
    api_key: SecretStr | None = None
    name: str | None = None

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return is_url(value) or ""


class LlmConfig(Table):
    """`[llm]`: which providers may be used; shorthand keys have become providers by the time this exists."""

    provider: dict[str, ProviderConfig] = Field(default={})


class CoalesceConfig(Table):
    """`[defaults.coalesce]`: when several quick messages become one turn. Process spec 4.3."""

    enabled: bool = True
    debounce_ms: int = Field(default=1000, ge=0, le=60_000)  # silence that ends a batch; restarts with each message
    max_wait_ms: int = Field(default=5000, ge=0, le=600_000)  # ceiling, from the first message's arrival
    min_messages: int = Field(default=2, ge=1)  # from this size on, the ceiling applies
    multi_user_only: bool = True  # never make a direct chat wait


class CompactionConfig(Table):
    """`[defaults.compaction]`: shares of the context window at which history is shortened."""

    background_threshold: Fraction = 0.80
    aggressive_threshold: Fraction = 0.85
    emergency_threshold: Fraction = 0.95

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.background_threshold < self.aggressive_threshold < self.emergency_threshold:
            raise ValueError("must rise: background_threshold < aggressive_threshold < emergency_threshold")
        return self


class MemoryPersistenceConfig(Table):
    """`[defaults.memory_persistence]`: when a quiet run saves what a conversation said. Memory spec 10.1."""

    enabled: bool = True
    message_interval: int = Field(default=20, ge=1, le=10_000)  # people's messages since the last run
    max_interval_secs: float = Field(default=900, gt=0)  # since the last run, when at least one message came
    event_interval: int = Field(default=5, ge=1, le=10_000)  # finished branches and workers since the last run


class IngestionConfig(Table):
    """`[defaults.ingestion]`: the drop folder. Memory spec 13."""

    enabled: bool = True
    poll_interval_secs: float = Field(default=30, ge=1)
    chunk_size: int = Field(default=4000, ge=200, le=100_000)  # characters


class CortexConfig(Table):
    """`[defaults.cortex]`: what looks after memory and processes."""

    model_config = ConfigDict(allow_inf_nan=False)

    tick_interval_secs: float = Field(default=30, ge=1)
    worker_timeout_secs: float = Field(default=1200, gt=0)  # without any progress, not of age
    branch_timeout_secs: float = Field(default=600, gt=0)  # without any progress
    circuit_breaker_threshold: int = Field(default=3, ge=1)  # failures in a row until a part pauses
    circuit_breaker_pause_secs: float = Field(default=1800, gt=0)
    bulletin_interval_secs: float = Field(default=3600, ge=1)  # at most this often, and only when something changed
    bulletin_max_words: int = Field(default=500, ge=50, le=5000)
    association_interval_secs: float = Field(default=300, ge=1)
    # Calibrated for the bundled model; the figures stand in memory/linking.py.
    association_similarity_threshold: float = Field(default=0.6, ge=0, le=1)  # cosine above which two are related
    association_updates_threshold: float = Field(default=0.85, ge=0, le=1)  # and above which one is a newer version
    association_max_per_pass: int = Field(default=100, ge=1)  # new edges
    maintenance_interval_secs: float = Field(default=3600, ge=1)
    maintenance_decay_rate: float = Field(default=0.05, ge=0, le=1)  # a day, of a type that decays fully
    maintenance_prune_threshold: float = Field(default=0.1, ge=0, le=1)  # importance
    maintenance_min_age_days: float = Field(default=30, ge=0, le=36_500)
    maintenance_merge_similarity_threshold: float = Field(default=0.95, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.association_similarity_threshold > self.association_updates_threshold:
            raise ValueError("association_similarity_threshold must not exceed association_updates_threshold")
        return self


class WorkerConfig(Table):
    """`[defaults.worker]`: patience with workers, in seconds."""

    wall_clock_timeout_secs: float = Field(default=1800, gt=0)  # active work only; waiting for input does not count
    idle_timeout_secs: float = Field(default=3600, gt=0)  # an interactive worker without input is retired as done
    context: Literal["clean", "fork"] = "clean"  # fork: workers see the conversation


class CronConfig(Table):
    """`[[agents.cron]]`, `[[defaults.cron]]`: a job. The same record checks what people, models and programs send."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,49}$")
    prompt: str = Field(min_length=1, max_length=10_000)
    interval_secs: int | None = Field(default=None, ge=60, le=366 * 86_400)  # an hour where nothing is said
    cron_expr: str | None = Field(default=None, max_length=200)  # five fields; wins over the interval
    timezone: Zone | None = None  # None is the agent's
    delivery_target: str = Field(default="home", min_length=1, max_length=300)  # home, or adapter:address
    active_start_hour: int | None = Field(default=None, ge=0, le=23)
    active_end_hour: int | None = Field(default=None, ge=0, le=23)  # may lie over midnight
    enabled: bool = True
    run_once: bool = False
    timeout_secs: int = Field(default=120, ge=5, le=86_400)

    @model_validator(mode="before")
    @classmethod
    def _has_rhythm(cls, values: object) -> object:
        if isinstance(values, dict):
            if values.get("cron_expr") is not None:
                return {**values, "interval_secs": None}
            if values.get("interval_secs") is None:
                return {**values, "interval_secs": 3600}
        return values

    @field_validator("cron_expr")
    @classmethod
    def _has_five_fields(cls, value: str | None) -> str | None:
        if value is not None and len(value.split()) != 5:
            raise ValueError("must have five fields: minute hour day month weekday, such as '0 9 * * 1-5'")
        return value

    @model_validator(mode="after")
    def _both_hours(self) -> Self:
        if (self.active_start_hour is None) != (self.active_end_hour is None):
            raise ValueError("active_start_hour and active_end_hour belong together; give both or neither")
        return self


class SandboxConfig(Table):
    """`[defaults.sandbox]`: containment of what workers run. Tools spec 15."""

    mode: Literal["enabled", "disabled"] = "enabled"
    writable_paths: tuple[Path, ...] = ()
    passthrough_env: tuple[str, ...] = ()


class WorkerLogMode(StrEnum):
    """Which workers leave a log file."""

    ERRORS_ONLY = "errors_only"
    ALL_SEPARATE = "all_separate"
    ALL_COMBINED = "all_combined"


class AgentSettings(Table):
    """What `[defaults]` holds and an agent may repeat."""

    max_concurrent_branches: int = Field(default=5, ge=1, le=1000)  # per channel
    max_concurrent_workers: int = Field(default=5, ge=1, le=1000)  # per channel
    max_turns: int = Field(default=5, ge=1, le=1000)  # model calls in one channel turn
    branch_max_turns: int = Field(default=50, ge=1, le=1000)  # model calls of one branch
    context_window: int = Field(default=128_000, ge=4000)  # tokens
    history_backfill_count: int = Field(default=50, ge=0, le=200)
    user_timezone: Zone | None = None  # None is the machine's zone
    cron_timezone: Zone | None = None  # of schedules; None is user_timezone
    cron: tuple[CronConfig, ...] = ()
    worker_log_mode: WorkerLogMode = WorkerLogMode.ERRORS_ONLY
    brave_search_key: SecretStr | None = None  # without one, workers have no web search
    brave_search_url: str | None = None  # of a proxy, such as http://127.0.0.1:8080/res/v1/web/search
    routing_profile: RoutingProfile | None = None
    routing: RoutingConfig = RoutingConfig()
    budget: BudgetConfig = BudgetConfig()
    coalesce: CoalesceConfig = CoalesceConfig()
    compaction: CompactionConfig = CompactionConfig()
    memory_persistence: MemoryPersistenceConfig = MemoryPersistenceConfig()
    ingestion: IngestionConfig = IngestionConfig()
    cortex: CortexConfig = CortexConfig()
    worker: WorkerConfig = WorkerConfig()
    sandbox: SandboxConfig = SandboxConfig()
    permissions: PermissionsConfig = PermissionsConfig()
    browser: BrowserConfig = BrowserConfig()
    opencode: OpenCodeConfig = OpenCodeConfig()
    mcp: tuple[McpServerConfig, ...] = ()

    _urls = field_validator("brave_search_url")(is_url)

    @field_validator("cron")
    @classmethod
    def _ids_differ(cls, values: tuple[CronConfig, ...]) -> tuple[CronConfig, ...]:
        ids = [job.id for job in values]
        if repeated := sorted({job_id for job_id in ids if ids.count(job_id) > 1}):
            raise ValueError(f"two jobs have the id {repeated[0]!r}; every job needs its own")
        return values


class AgentConfig(AgentSettings):
    """`[[agents]]`: one agent, with `[defaults]` already merged in."""

    id: str
    default: bool = False
    workspace: Path | None = None  # relative ones count from the file's folder

    @field_validator("id")
    @classmethod
    def _is_id(cls, value: str) -> str:
        with _as_value_error():
            return parse_agent_id(value)


class Config(Table):
    """The whole file."""

    api: ApiConfig = ApiConfig()
    metrics: MetricsConfig = MetricsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    update: UpdateConfig = UpdateConfig()
    llm: LlmConfig = LlmConfig()
    messaging: MessagingConfig = MessagingConfig()
    bindings: tuple[BindingConfig, ...] = ()
    agents: tuple[AgentConfig, ...] = (AgentConfig(id="main", default=True),)

    @property
    def default_agent(self) -> AgentConfig:
        """The agent that answers where no binding says otherwise: the flagged one, else the first."""
        return next((agent for agent in self.agents if agent.default), self.agents[0])
