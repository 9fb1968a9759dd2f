"""From `config.toml` and the environment to a `Config`.

Unknown keys are warnings, because a file may be older or newer than the program; wrong values are errors, all of
them told at once. Precedence, field by field: agent, `[defaults]`, environment, built-in default.

Flow:    read_source -> _Reader.read (reading.py: resolve, sort keys, validate; load_messaging.py) -> LoadedConfig
Floor:   config; may import base
Source:  control spec 1.3, 1.5, 1.8 and 1.10
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spacebot.base.clock import parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.redaction import register_secret
from spacebot.config.hands import McpServerConfig
from spacebot.config.load_messaging import read_bindings, read_messaging
from spacebot.config.model import (
    AgentConfig,
    AgentSettings,
    ApiConfig,
    ApiType,
    Config,
    LlmConfig,
    MetricsConfig,
    ProviderConfig,
    TelemetryConfig,
    UpdateConfig,
)
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.reading import KeyPath, Reading, Source, Table
from spacebot.config.risks import risks
from spacebot.config.routing import RoutingConfig
from spacebot.config.wording import brief, quote

DEMO = "demo"
MAX_FILE_BYTES = 4_000_000  # a configuration is kilobytes; more is a mistaken path

# Keys that belong to the file's format and have no effect yet.
_UNUSED_LLM = frozenset({"kilo_key", "opencode_go_key", "minimax_cn_key", "github_copilot_key"})
_UNUSED_API_TYPES = frozenset({"openai_responses", "gemini", "kilo_gateway", "azure"})
_ROLES = ("channel", "branch", "worker", "compactor", "cortex")
_ROLES_BY_VARIABLE = {  # the narrower variable wins: later entries overwrite earlier ones
    "SPACEBOT_MODEL": _ROLES,
    "SPACEBOT_CHANNEL_MODEL": ("channel", "branch"),
    "SPACEBOT_WORKER_MODEL": ("worker", "compactor", "cortex"),
}
_TELEMETRY_VARIABLES = {  # these win over the file, as tools for tracing expect
    "OTEL_EXPORTER_OTLP_ENDPOINT": "otlp_endpoint",
    "OTEL_EXPORTER_OTLP_HEADERS": "otlp_headers",
    "OTEL_SERVICE_NAME": "service_name",
}
_SEARCH_KEYS = ("BRAVE_SEARCH_API_KEY", "BRAVE_API_KEY")  # the first that is set counts
_PROVIDER_ID = re.compile(r"[^\s/]{1,64}")
_TOML_PLACE = re.compile(r"^(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration that is valid, with what the owner should know about it."""

    config: Config
    warnings: tuple[str, ...]
    content_hash: str  # SHA-256 of the file in hex; empty when there is no file


def load_config(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    resolve_secret: Callable[[str], str | None] = lambda name: None,
) -> LoadedConfig:
    """Read the owner's file; without one the environment alone decides.

    Args:
        environ: the environment; None means that of the program.
        resolve_secret: gives the value behind `secret:NAME`, or None.

    Errors: ConfigError that names the file, every wrong key, its value (secrets masked) and what is allowed.
    """
    environ = os.environ if environ is None else environ
    return _Reader(read_source(path), environ, resolve_secret).read()


def read_source(path: Path) -> Source:
    """Read and parse the file.

    Errors: ConfigError when it cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        if path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "not a regular file"
            raise ConfigError(f"{path} is {what}; name the configuration file itself")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return Source(path, {}, "")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; that is no configuration file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text; save the file in that encoding") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_message(path, str(error), text)) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    return Source(path, tables, hashlib.sha256(raw).hexdigest())


def _syntax_message(path: Path, message: str, text: str) -> str:
    found = _TOML_PLACE.match(message)
    if found is None:
        return f"{path} is not valid TOML: {message}"
    line = found["line"] or str(max(1, len(text.splitlines())))
    return f"{path}, line {line}: not valid TOML: {found['what']}"


class _Reader(Reading):
    """What the tables mean."""

    def read(self) -> LoadedConfig:
        try:
            top = self.resolve_table(self.source.tables, ())
        except RecursionError as error:
            raise ConfigError(f"{self.source.path} is nested too deeply") from error
        known = self.known_keys(top, {*Config.model_fields, "defaults", "mcp_servers"}, (), ())
        api = self.validate(ApiConfig, self._table(known, "api", (), ApiConfig), ("api",))
        metrics = self.validate(MetricsConfig, self._table(known, "metrics", (), MetricsConfig), ("metrics",))
        telemetry = self._read_telemetry(known)
        update = self.validate(UpdateConfig, self._table(known, "update", (), UpdateConfig), ("update",))
        llm = self._read_llm(self.subtable(known, "llm", ()))
        agents = self._read_agents(known)
        messaging = read_messaging(self, known, agents)
        bindings = read_bindings(self, known, agents, messaging)
        if self.is_sound:
            self._check_routes(agents, llm)
            self.report_unresolved()
        self.check()
        assert api is not None
        assert metrics is not None
        assert telemetry is not None
        assert update is not None
        config = Config(
            api=api, metrics=metrics, telemetry=telemetry, update=update, llm=llm, messaging=messaging,
            bindings=bindings, agents=tuple(agents),
        )  # fmt: skip
        for risk in risks(config):
            self.warn(risk)
        return LoadedConfig(config=config, warnings=self.warnings, content_hash=self.source.content_hash)

    def _sort_keys(self, table: Table, model: type[BaseModel], path: KeyPath) -> Table:
        """`_known_keys` for a model's table and the tables inside it."""
        kept = self.known_keys(table, model.model_fields, (), path)
        for key, value in kept.items():
            inner = model.model_fields[key].annotation
            if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
                kept[key] = self._sort_keys(value, inner, (*path, key))
        return kept

    def _table(self, tables: Table, key: str, path: KeyPath, model: type[BaseModel]) -> Table:
        return self._sort_keys(self.subtable(tables, key, path), model, (*path, key))

    # Parts

    def _read_telemetry(self, known: Table) -> TelemetryConfig | None:
        """`[telemetry]`, with what the environment says laid over it."""
        table = self._table(known, "telemetry", (), TelemetryConfig)
        for variable, key in _TELEMETRY_VARIABLES.items():
            if value := self.environ.get(variable, "").strip():
                table[key] = value
                if key == "otlp_headers":
                    register_secret(value)
        return self.validate(TelemetryConfig, table, ("telemetry",))

    def _read_llm(self, llm: Table) -> LlmConfig:
        builtin = provider_table()
        shorthand = {entry.key for entry in builtin.values()} | {entry.url_key for entry in builtin.values()}
        explicit, rest = self._explicit_providers(llm)
        keys = self.known_keys(rest, {key for key in shorthand if key}, _UNUSED_LLM, ("llm",))
        providers: dict[str, ProviderConfig | None] = {}
        for entry in builtin.values():
            if entry.id not in explicit:
                providers[entry.id] = self._shorthand_provider(entry, keys)
        for provider_id, (path, raw) in explicit.items():
            providers[provider_id] = self._explicit_provider(provider_id, builtin.get(provider_id), raw, path)
        places = {provider_id: i for i, provider_id in enumerate(builtin) if provider_id != DEMO}
        in_order = sorted(providers, key=lambda name: (places.get(name, len(places)), name == DEMO))
        usable = {name: provider for name in in_order if (provider := providers[name]) is not None}
        if DEMO not in usable:
            usable[DEMO] = ProviderConfig(api_type=ApiType.DEMO)
        return LlmConfig(provider=usable)

    def _explicit_providers(self, llm: Table) -> tuple[dict[str, tuple[KeyPath, Table]], Table]:
        """Split `[llm]` into the tables of providers, in all accepted spellings, and the other keys."""
        found: dict[str, tuple[KeyPath, Table]] = {}
        rest: Table = {}
        for key, value in llm.items():
            if key not in ("provider", "providers") and not key.startswith("provider."):
                rest[key] = value
                continue
            tables = {key.removeprefix("provider."): value} if key.startswith("provider.") else value
            prefix: KeyPath = ("llm", key)
            if not isinstance(tables, dict):
                self.problem(prefix, f"must hold tables: [llm.{key}.<id>]", tables)
                continue
            for name, table in tables.items():
                path = prefix if key.startswith("provider.") else (*prefix, name)
                provider_id = name.lower()
                if not isinstance(table, dict):
                    self.problem(path, f"must be a table: [llm.provider.{name}]", table)
                elif not _PROVIDER_ID.fullmatch(provider_id):
                    self.problem(path, "a provider's id has 1 to 64 characters without blanks and '/'")
                elif provider_id in found:
                    self.problem(path, f"provider {provider_id!r} is configured twice; keep one of the tables")
                else:
                    found[provider_id] = (path, table)
        return found, rest

    def _shorthand_provider(self, entry: ProviderEntry, keys: Table) -> ProviderConfig | None:
        """A built-in provider whose key or address is given in `[llm]` or the environment."""
        key = self._key_of(entry, keys.get(entry.key) if entry.key else None)
        url, url_place = keys.get(entry.url_key or ""), ("llm", entry.url_key or "")
        if url is None and entry.url_env and (url := self.environ.get(entry.url_env)):
            url_place = ("", entry.url_env)
        reason = self.unresolved.pop(("llm", entry.key or ""), None)
        self.unresolved.pop(("llm", entry.url_key or ""), None)
        if key is None and (entry.needs_key or not url) and entry.id != DEMO:
            if reason is not None:
                self.warn(f"provider {entry.id!r} is disabled: llm.{entry.key} is given, but {reason}")
            return None
        table = {"api_type": entry.api_type, "name": entry.name, "api_key": key}
        table["base_url"] = _clean_url(url or entry.base_url, entry.api_type, entry)
        renamed = {"base_url": url_place, "api_key": ("llm", entry.key or "")}
        return self.validate(ProviderConfig, table, ("llm", entry.id), renamed=renamed)

    def _key_of(self, entry: ProviderEntry | None, given: Any) -> Any:
        if given is None and entry is not None and entry.env and (given := self.environ.get(entry.env, "").strip()):
            register_secret(given)
        return given or None

    def _explicit_provider(
        self, provider_id: str, entry: ProviderEntry | None, raw: Table, path: KeyPath
    ) -> ProviderConfig | None:
        """One provider's own table, with what is known of a built-in one filled in; None when it is disabled."""
        unused = ("api_version", "deployment")
        table = self.known_keys(raw, ProviderConfig.model_fields, unused, path)
        api_type = table.get("api_type")
        if isinstance(api_type, str) and api_type in _UNUSED_API_TYPES:
            self.warn(f"provider {provider_id!r} is disabled: api_type {api_type!r} has no effect in this version")
            return None
        if entry is not None:
            table = {"api_type": entry.api_type, "base_url": entry.base_url, "name": entry.name} | table
        key_path = (*path, "api_key")
        reason = self.unresolved.pop(key_path, None)
        key = self._key_of(entry, table.get("api_key"))
        if key is None and (reason is not None or (entry is not None and entry.needs_key)):
            reason = reason or "it has no api_key"
            self.warn(f"provider {provider_id!r} is disabled: {reason}")
            return None
        if key is not None:
            table["api_key"] = key
        if "base_url" in table:
            table["base_url"] = _clean_url(table["base_url"], table.get("api_type"), entry)
        elif table.get("api_type") != ApiType.DEMO:
            self.problem((*path, "base_url"), "is missing; give the address of the provider")
        return self.validate(ProviderConfig, table, path)

    def _read_agents(self, known: Table) -> list[AgentConfig]:
        defaults = self._table(known, "defaults", (), AgentSettings)
        routing = self._routing_from_environment()
        base = merge(({"routing": routing} if routing else {}) | self._search_from_environment(), defaults)
        if zone := self._cron_zone_from_environment():
            base = merge({"cron_timezone": zone}, base)
        servers = self._read_servers(known, (), "mcp_servers")
        servers |= self._read_servers(base, ("defaults",), "mcp")
        self.validate(AgentSettings, base, ("defaults",))
        defaults_are_sound = self.is_sound
        entries = known.get("agents") or [{"id": "main", "default": True}]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.problem(("agents",), "must be a list of tables; write [[agents]] with two brackets")
            return []
        agents: list[AgentConfig] = []
        for i, entry in enumerate(entries):
            if isinstance(entry.get("id"), str):
                self.agent_names[i] = brief(entry["id"])[1:-1]
            path: KeyPath = ("agents", i)
            own = self._sort_keys(entry, AgentConfig, path)
            of_agent = servers | self._read_servers(own, path, "mcp")
            agent = self.validate(AgentConfig, merge(base, own), path, own=None if defaults_are_sound else own)
            if agent is not None:
                agent = agent.model_copy(update={"mcp": tuple(of_agent.values())})
                agents.append(self._finish_agent(agent, path))
        self._check_agents(entries)
        return agents

    def _read_servers(self, table: Table, path: KeyPath, key: str) -> dict[str, McpServerConfig]:
        """Take a list of MCP servers out of a table, by name."""
        path, entries = (*path, key), table.pop(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self.problem(path, f"must be a list of tables; write [[{self.name(path)}]] with two brackets")
            return {}
        found: dict[str, McpServerConfig] = {}
        for i, entry in enumerate(entries):
            server = self.validate(McpServerConfig, self._sort_keys(entry, McpServerConfig, (*path, i)), (*path, i))
            if server is not None and server.name in found:
                self.problem((*path, i, "name"), f"two servers have the name {server.name!r}; every one needs its own")
            elif server is not None:
                found[server.name] = server
        return found

    def _cron_zone_from_environment(self) -> str | None:
        zone = self.environ.get("SPACEBOT_CRON_TIMEZONE", "").strip()
        try:
            return zone if zone and parse_zone(zone) else None
        except ConfigError as error:
            self.warn(f"SPACEBOT_CRON_TIMEZONE is ignored: {error}")
            return None

    def _routing_from_environment(self) -> Table:
        routing: Table = {}
        for variable, roles in _ROLES_BY_VARIABLE.items():
            if model := self.environ.get(variable):
                routing.update(dict.fromkeys(roles, model))
        return routing

    def _search_from_environment(self) -> Table:
        """The key of the web search, for agents whose tables give none."""
        key = next((key for name in _SEARCH_KEYS if (key := self.environ.get(name, "").strip())), None)
        if key is None:
            return {}
        register_secret(key)
        return {"brave_search_key": key}

    def _finish_agent(self, agent: AgentConfig, path: KeyPath) -> AgentConfig:
        """Make the workspace an absolute path."""
        if agent.workspace is None:
            return agent
        try:
            workspace = agent.workspace.expanduser()
        except RuntimeError:
            self.problem((*path, "workspace"), "names a home directory that does not exist", str(agent.workspace))
            return agent
        return agent.model_copy(update={"workspace": self.source.path.parent / workspace})

    # Checks across tables

    def _check_agents(self, entries: list[Table]) -> None:
        ids = [entry["id"] for entry in entries if isinstance(entry.get("id"), str)]
        for repeated in sorted({agent_id for agent_id in ids if ids.count(agent_id) > 1}):
            self.problem(("agents",), f"two agents have the id {repeated!r}; every agent needs its own")
        flagged = [
            self.agent_names.get(i, f"#{i + 1}") for i, entry in enumerate(entries) if entry.get("default") is True
        ]
        if len(flagged) > 1:
            self.problem(("agents",), f"{' and '.join(flagged)} have default = true; only one agent can")

    def _check_routes(self, agents: list[AgentConfig], llm: LlmConfig) -> None:
        """Warn once about each provider that routes name and that cannot be used."""
        users: dict[str, dict[str, None]] = {}
        for agent in agents:
            for place, model in _routes(agent.routing):
                prefix = model.partition("/")[0].lower() if "/" in model else "anthropic"
                entry = provider_table().get(prefix)
                by_way = entry is not None and entry.openrouter is not None and "openrouter" in llm.provider
                if prefix not in llm.provider and not by_way:
                    users.setdefault(prefix, {})[f"{place} = {model!r}"] = None
            for circle in _circles(agent.routing.fallbacks):
                self.warn(f"routing.fallbacks lead round in a circle: {' -> '.join(circle)}")
        for prefix, places in users.items():
            entry = provider_table().get(prefix)
            remedy = f"set llm.{entry.key} or {entry.env}" if entry and entry.key else f"add [llm.provider.{prefix}]"
            self.warn(f"provider {prefix!r} is not usable, but needed by {', '.join(places)}; {remedy}")


def merge(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> Table:
    """Lay one table over another, field by field; only a `fallbacks` map is replaced as a whole."""
    result = dict(lower)
    for key, value in higher.items():
        below = result.get(key)
        is_map = isinstance(value, dict) and isinstance(below, dict) and key != "fallbacks"
        result[key] = merge(below, value) if is_map and isinstance(below, dict) else value
    return result


def _clean_url(url: Any, api_type: object, entry: ProviderEntry | None) -> Any:
    """Drop what people paste too much: a slash at the end, and once the version that we add ourselves."""
    if not isinstance(url, str):
        return url  # the model says what is wrong with it
    url = url.strip().rstrip("/")
    if api_type in (ApiType.OPENAI_COMPLETIONS, ApiType.ANTHROPIC):
        url = url.removesuffix("/v1")
        if entry is not None and not entry.needs_key:
            url = url.removesuffix("/api")
    return url.rstrip("/")


def _routes(routing: RoutingConfig) -> Iterator[tuple[str, str]]:
    """Every model that an agent's routes name, with its place."""
    models = (routing.channel, routing.branch, routing.worker, routing.compactor, routing.cortex)
    for role, named in zip(_ROLES, models, strict=True):
        if named is not None:
            yield f"routing.{role}", named
    for task, model in routing.task_overrides.items():
        yield f"routing.task_overrides.{task}", model
    for first, chain in routing.fallbacks.items():
        for model in chain:
            yield f"routing.fallbacks.{quote(first)}", model


def _circles(fallbacks: Mapping[str, tuple[str, ...]]) -> Iterator[list[str]]:
    """Chains of first fallbacks that come back to where they began, each once."""
    told: set[frozenset[str]] = set()
    for start in fallbacks:
        path = [start]
        stack = [iter(fallbacks[start])]
        seen = {start}
        while stack:
            model = next(stack[-1], None)
            if model is None:
                stack.pop()
                path.pop()
            elif model == start:
                if (members := frozenset(path)) not in told:
                    told.add(members)
                    yield [*path, start]
            elif model in fallbacks and model not in seen:
                seen.add(model)
                path.append(model)
                stack.append(iter(fallbacks[model]))
