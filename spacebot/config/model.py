"""Every table of `config.toml` as a frozen model: defaults and units beside each field.

The models hold values only. Reading the file, `env:` values and helpful errors are `load.py`'s work.
An agent's own tables are merged over `[defaults]` field by field before they become models.

Every key has one description: `Field(description=…)`, and for a table the sentence of its class. Schema, `config
explain` and the reference in `docs/` all come from there.

Floor:  config; may import base
Source: control spec 1.4 to 1.5, ranges of forms 5.4; process spec 4.3; memory spec 10.1 and 13; tools spec 15
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from spacebot.base.clock import parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.ids import parse_agent_id
from spacebot.config.hands import BrowserConfig, McpServerConfig, OpenCodeConfig, PermissionsConfig
from spacebot.config.messaging import BindingConfig, MessagingConfig
from spacebot.config.routing import BudgetConfig, RoutingConfig, RoutingProfile
from spacebot.config.tables import AT_RESTART, Table, form, is_loopback_address, is_url
from spacebot.config.upkeep import CompactionConfig as CompactionConfig
from spacebot.config.upkeep import CortexConfig as CortexConfig
from spacebot.config.upkeep import IngestionConfig as IngestionConfig
from spacebot.config.upkeep import MemoryPersistenceConfig as MemoryPersistenceConfig


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
    """`[api]`: the HTTP server with the web pages."""

    enabled: bool = Field(default=True, description="Whether the HTTP server runs.", json_schema_extra=AT_RESTART)
    port: int = Field(
        default=5738, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.",
        json_schema_extra=AT_RESTART,
    )  # fmt: skip
    bind: Address = Field(
        default="127.0.0.1",
        description="Address to listen on; one that is not loopback needs auth_token. In a container it is every "
        "address unless the file says otherwise.",
        json_schema_extra=AT_RESTART,
    )
    auth_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that every request must carry; the variable SPACEBOT_API_TOKEN stands in for it.",
        examples=["secret:api_token"],
    )
    allow_without_token: bool = Field(
        default=False,
        description="Listen beyond this machine without a token. Only behind a proxy that lets nobody else in: "
        "whoever reaches the port commands the agents.",
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Pages of other sites that may show the web chat in a frame, as scheme, host and port.",
        examples=[["https://example.org"]],
    )

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
        if self.enabled and not self.is_loopback and self.auth_token is None and not self.allow_without_token:
            raise ValueError(
                "a bind other than loopback needs api.auth_token (or the variable SPACEBOT_API_TOKEN), or anybody "
                "could command the agent; behind a proxy that lets nobody else in, say api.allow_without_token = true"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback_address(self.bind)


class MetricsConfig(Table):
    """`[metrics]`: figures for Prometheus on a port of their own. They hold nothing secret, so any bind will do."""

    enabled: bool = Field(default=False, description="Whether figures are served.")
    port: int = Field(
        default=9090, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.",
    )  # fmt: skip
    bind: Address = Field(default="127.0.0.1", description="Address to listen on.")


class TelemetryConfig(Table):
    """`[telemetry]`: traces over OTLP (HTTP, protobuf). The variables `OTEL_*` win over the file."""

    otlp_endpoint: str | None = Field(
        default=None,
        description="Where traces are sent; /v1/traces is added unless it is there. Without one there are none.",
        examples=["http://127.0.0.1:4318"],
    )
    otlp_headers: SecretStr | None = Field(
        default=None,
        description="Headers for it: name=value, separated by commas.",
        examples=["secret:otlp_headers"],
    )
    service_name: str = Field(
        default="spacebot", min_length=1, max_length=200, description="How the program is called in traces.",
    )  # fmt: skip
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of traces that are kept.")

    _urls = field_validator("otlp_endpoint")(is_url)

    @field_validator("otlp_headers")
    @classmethod
    def _are_pairs(cls, value: SecretStr | None) -> SecretStr | None:
        for pair in value.get_secret_value().split(",") if value is not None else ():
            name, equals, _ = pair.partition("=")
            if not equals or not name.strip():
                raise ValueError("must be pairs of name=value, separated by commas")
        return value


class LogsConfig(Table):
    """`[logs]`: the files in `logs/`. A new one begins each day (UTC), or when one is full."""

    keep: int = Field(default=14, ge=1, le=1000, description="How many old log files are kept.")
    max_mib: int = Field(default=50, ge=1, le=10_000, description="Size of a log file, in MiB, that begins a new one.")


class UpdateConfig(Table):
    """`[update]`: looking for newer releases. Off until a repository is named: nothing calls home by itself."""

    repository: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$",
        description="Repository at GitHub whose releases are looked at, as owner/name.",
        examples=["example/spacebot"],
    )
    check_interval_secs: float = Field(default=3600, ge=60, description="Seconds between two looks.")


AZURE_DOMAIN = ".openai.azure.com"


class ApiType(StrEnum):
    """Wire formats that providers speak."""

    ANTHROPIC = "anthropic"
    OPENAI_COMPLETIONS = "openai_completions"  # base_url is the root, /v1/chat/completions is added
    OPENAI_CHAT_COMPLETIONS = "openai_chat_completions"  # base_url is versioned already, /chat/completions is added
    OPENAI_RESPONSES = "openai_responses"  # base_url is the root, /v1/responses is added
    GEMINI = "gemini"  # the face of Gemini that speaks chat completions; /chat/completions is added
    KILO_GATEWAY = "kilo_gateway"  # /chat/completions is added, with headers that name the program
    AZURE = "azure"  # the deployment's path is added, and the version of the API
    DEMO = "demo"  # the built-in rule-based model


class ProviderConfig(Table):
    """`[llm.provider.<id>]`: a host of models."""

    api_type: ApiType = Field(
        description="Wire format that the host speaks; a built-in provider knows its own.",
        examples=["openai_completions"],
    )
    base_url: str = Field(
        default="",
        description="Absolute address of the host; for openai_completions without /v1. A built-in provider knows it.",
        examples=["https://models.example.org"],
    )
    api_key: SecretStr | None = Field(
        default=None, description="Key for the host; it may be left out where the host asks for none.",
        examples=["env:MY_PROVIDER_KEY"],
    )  # fmt: skip
    name: str | None = Field(default=None, description="How people see the provider.", examples=["My models"])
    api_version: str | None = Field(
        default=None, max_length=40, pattern=r"^[A-Za-z0-9.-]+$", examples=["2024-10-21"],
        description="For api_type azure: version of its API.",
    )  # fmt: skip
    deployment: str | None = Field(
        default=None, max_length=100, pattern=r"^[A-Za-z0-9._-]+$", examples=["my-gpt"],
        description="For api_type azure: name of the deployment; without one the model's name is taken for it.",
    )  # fmt: skip
    has_login: bool = False  # whether `spacebot auth login` counts here; set by the reader, not by the file
    is_bearer: bool = False  # whether the key is shown as `Authorization: Bearer` alone; set by the reader

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return is_url(value) or ""

    @model_validator(mode="after")
    def _azure_is_azure(self) -> Self:
        if self.api_type is not ApiType.AZURE:
            if self.api_version is not None or self.deployment is not None:
                raise ValueError("api_version and deployment belong to api_type 'azure' only")
            return self
        parts = urlsplit(self.base_url)
        if parts.scheme != "https" or not (parts.hostname or "").endswith(AZURE_DOMAIN):
            raise ValueError(f"base_url has to be https://<resource>{AZURE_DOMAIN} for api_type 'azure'")
        return self


class LlmConfig(Table):
    """`[llm]`: which providers may be used; shorthand keys have become providers by the time this exists."""

    provider: dict[str, ProviderConfig] = Field(default={}, description="Hosts of models by their own ids.")
    absent: dict[str, str] = Field(default={})  # id of a provider that is given and cannot be used -> why

    @property
    def needs_setup(self) -> bool:
        """Whether the demo is all that answers."""
        return all(provider.api_type is ApiType.DEMO for provider in self.provider.values())


class CoalesceConfig(Table):
    """`[defaults.coalesce]`: when several quick messages become one turn."""

    enabled: bool = Field(default=True, description="Whether quick messages are gathered.")
    debounce_ms: int = Field(
        default=1000, ge=0, le=60_000, json_schema_extra=form(100, 10_000),
        description="Milliseconds of silence that end a batch; each message begins them anew.",
    )  # fmt: skip
    max_wait_ms: int = Field(
        default=5000, ge=0, le=600_000, json_schema_extra=form(500, 30_000),
        description="Longest wait in milliseconds from the first message on.",
    )  # fmt: skip
    min_messages: int = Field(default=2, ge=1, le=10, description="From this many messages on, max_wait_ms applies.")
    multi_user_only: bool = Field(default=True, description="Never make a direct chat wait.")


class WorkerConfig(Table):
    """`[defaults.worker]`: patience with workers."""

    wall_clock_timeout_secs: float = Field(
        default=1800, gt=0, description="Seconds of active work that a worker has; waiting for input does not count."
    )
    idle_timeout_secs: float = Field(
        default=3600, gt=0, description="Seconds without input after which an interactive worker is retired."
    )
    context: Literal["clean", "fork"] = Field(
        default="clean", description="What workers see: their task alone, or with fork the conversation too."
    )


class CronConfig(Table):
    """`[[agents.cron]]`: a schedule; under `[[defaults.cron]]` every agent has it."""

    # The same record checks what people, models and programs send.
    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,49}$",
        description="Name of the schedule, unique within the agent.",
        examples=["standup"],
    )
    prompt: str = Field(
        min_length=1, max_length=10_000, description="What the agent is told each time.",
        examples=["Ask everybody what they plan today."],
    )  # fmt: skip
    interval_secs: int | None = Field(
        default=None, ge=60, le=366 * 86_400, examples=[1800],
        description="Seconds between two runs; an hour where neither this nor cron_expr is said.",
    )  # fmt: skip
    cron_expr: str | None = Field(
        default=None, max_length=200, examples=["0 9 * * 1-5"],
        description="Minute, hour, day, month and weekday of the runs; wins over interval_secs.",
    )  # fmt: skip
    timezone: Zone | None = Field(
        default=None, description="Zone of cron_expr and of the active hours; left out, the agent's.",
        examples=["Europe/Berlin"],
    )  # fmt: skip
    delivery_target: str = Field(
        default="home", min_length=1, max_length=300, examples=["discord:123456789012345678"],
        description="Where the answer goes: home, or adapter:address.",
    )  # fmt: skip
    active_start_hour: int | None = Field(
        default=None, ge=0, le=23, description="First hour of the day in which it runs.", examples=[8]
    )
    active_end_hour: int | None = Field(
        default=None, ge=0, le=23, examples=[18],
        description="Hour in which it stops running; the span may lie over midnight.",
    )  # fmt: skip
    enabled: bool = Field(default=True, description="Whether it runs.")
    run_once: bool = Field(default=False, description="Whether it is done after its first run.")
    timeout_secs: int = Field(default=120, ge=5, le=86_400, description="Longest time of one run in seconds.")

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
    """`[defaults.sandbox]`: containment of what workers run."""

    mode: Literal["enabled", "disabled"] = Field(
        default="enabled", description="Whether commands of workers are contained."
    )
    writable_paths: tuple[Path, ...] = Field(
        default=(), description="Folders beside the workspace that commands may write to.", examples=[["/srv/site"]]
    )
    passthrough_env: tuple[str, ...] = Field(
        default=(), description="Names of the program's variables that commands get.", examples=[["LANG"]]
    )


class WorkerLogMode(StrEnum):
    """Which workers leave a log file."""

    ERRORS_ONLY = "errors_only"
    ALL_SEPARATE = "all_separate"
    ALL_COMBINED = "all_combined"


class AgentSettings(Table):
    """`[defaults]`: what holds for every agent; an agent's own table may repeat each key."""

    max_concurrent_branches: int = Field(
        default=5, ge=1, le=20, description="Branches of one conversation that think at a time."
    )
    max_concurrent_workers: int = Field(
        default=5, ge=1, le=20, description="Workers of one conversation that are at work at a time."
    )
    max_turns: int = Field(
        default=5, ge=1, le=1000, json_schema_extra=form(1, 50), description="Model calls of one turn of a channel."
    )
    branch_max_turns: int = Field(
        default=50, ge=1, le=1000, json_schema_extra=form(1, 100), description="Model calls of one branch."
    )
    context_window: int = Field(
        default=128_000,
        ge=4000,
        le=100_000_000,
        description="Tokens that a request may have; history is shortened to fit.",
    )
    history_backfill_count: int = Field(
        default=50, ge=0, le=500, description="Earlier messages of a room that are read at its first message."
    )
    user_timezone: Zone | None = Field(
        default=None, description="Zone of the people whom the agent talks with; left out, the machine's.",
        examples=["Europe/Berlin"],
    )  # fmt: skip
    cron_timezone: Zone | None = Field(
        default=None, examples=["Europe/Berlin"],
        description="Zone of schedules; left out, user_timezone. The variable SPACEBOT_CRON_TIMEZONE stands in for it.",
    )  # fmt: skip
    cron: tuple[CronConfig, ...] = Field(default=(), description="Schedules.")
    prompt_captures: int = Field(
        default=200,
        ge=0,
        le=2000,
        description="Requests to models kept for the owner to read, per agent; 0 keeps none.",
    )
    worker_log_mode: WorkerLogMode = Field(
        default=WorkerLogMode.ERRORS_ONLY, description="Which workers leave a log file, and whether each has its own."
    )
    brave_search_key: SecretStr | None = Field(
        default=None, examples=["env:BRAVE_SEARCH_API_KEY"],
        description="Key of Brave's search; without one workers have no web search. The variable "
        "BRAVE_SEARCH_API_KEY stands in for it.",
    )  # fmt: skip
    brave_search_url: str | None = Field(
        default=None, description="Address of a proxy for the search.",
        examples=["http://127.0.0.1:8080/res/v1/web/search"],
    )  # fmt: skip
    routing_profile: RoutingProfile | None = Field(
        default=None, examples=["balanced"],
        description="Preset of which class of model serves what; without one the routes alone decide.",
    )  # fmt: skip
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
    mcp: tuple[McpServerConfig, ...] = Field(default=(), description="MCP servers whose tools workers get.")

    _urls = field_validator("brave_search_url")(is_url)

    @field_validator("cron")
    @classmethod
    def _ids_differ(cls, values: tuple[CronConfig, ...]) -> tuple[CronConfig, ...]:
        ids = [job.id for job in values]
        if repeated := sorted({job_id for job_id in ids if ids.count(job_id) > 1}):
            raise ValueError(f"two jobs have the id {repeated[0]!r}; every job needs its own")
        return values


class AgentConfig(AgentSettings):
    """`[[agents]]`: one agent. It may repeat every key of `[defaults]`; what it does not say is inherited."""

    id: str = Field(
        description="Name of the agent: small letters, digits, '-' and '_'. Its data lie in agents/<id>.",
        examples=["main"],
    )
    default: bool = Field(
        default=False, description="Whether it answers where no binding says otherwise; else the first agent does."
    )
    workspace: Path | None = Field(
        default=None, examples=["/srv/my-agent"],
        description="Folder that its workers work in; relative ones count from the file's folder. Left out: "
        "agents/<id>/workspace.",
    )  # fmt: skip

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
    logs: LogsConfig = LogsConfig()
    update: UpdateConfig = UpdateConfig()
    llm: LlmConfig = LlmConfig()
    messaging: MessagingConfig = MessagingConfig()
    bindings: tuple[BindingConfig, ...] = Field(default=(), description="Which agent answers where.")
    agents: tuple[AgentConfig, ...] = Field(
        default=(AgentConfig(id="main", default=True),), description="The agents; without any there is one, main."
    )

    @property
    def default_agent(self) -> AgentConfig:
        """The agent that answers where no binding says otherwise: the flagged one, else the first."""
        return next((agent for agent in self.agents if agent.default), self.agents[0])
