"""From `config.toml` and the environment to a `Config`.

Unknown keys are warnings, because a file may be older or newer than the program; wrong values are errors, all of
them told at once. Precedence, field by field: agent, `[defaults]`, environment, built-in default.

Flow:    read_source -> _Reader.read (reading.py: resolve, sort keys, validate; load_llm.py, load_messaging.py)
         -> LoadedConfig
Floor:   config; may import base
Source:  control spec 1.3, 1.5, 1.8 and 1.10
"""

import hashlib
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from spacebot.base.errors import ConfigError
from spacebot.config.environment import Environment, read_environment
from spacebot.config.hands import McpServerConfig
from spacebot.config.load_llm import read_llm
from spacebot.config.load_messaging import read_bindings, read_messaging
from spacebot.config.model import (
    AgentConfig,
    AgentSettings,
    ApiConfig,
    Config,
    LlmConfig,
    MetricsConfig,
    TelemetryConfig,
    UpdateConfig,
)
from spacebot.config.provider_table import provider_table
from spacebot.config.reading import ENDLESS_KEY, KeyPath, Reading, Source, Table, is_in
from spacebot.config.risks import risks
from spacebot.config.routing import RoutingConfig
from spacebot.config.wording import brief, quote

MAX_FILE_BYTES = 4_000_000  # a configuration is kilobytes; more is a mistaken path

_ROLES = ("channel", "branch", "worker", "compactor", "cortex")
_WITHOUT_EFFECT = {  # keys of older files, by model
    "CortexConfig": ("bulletin_max_turns",),  # a bulletin takes one call of a model
}
_MOST_CIRCLES = 20
_TOML_PLACE = re.compile(r"^(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration that is valid, with what the owner should know about it."""

    config: Config
    warnings: tuple[str, ...]
    content_hash: str  # SHA-256 of the file in hex; empty when there is no file
    source: Source = field(repr=False, compare=False)  # the owner's words, credentials among them
    origins: Mapping[KeyPath, str] = field(repr=False, compare=False)  # values of the environment -> their variable


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
    raw = read_bytes(path)
    return Source(path, {}, "") if raw is None else parse_source(path, raw)


def parse_source(path: Path, raw: bytes) -> Source:
    """Parse what a file holds. Errors: ConfigError when it is too large, not UTF-8 or not TOML."""
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; that is no configuration file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text; save the file in that encoding") from error
    if (endless := ENDLESS_KEY.search(text)) is not None:
        line = text.count("\n", 0, endless.start()) + 1
        raise ConfigError(f"{path}, line {line}: nested too deeply, a name has more than 64 parts")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_message(path, str(error), text)) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    return Source(path, tables, hashlib.sha256(raw).hexdigest())


def read_bytes(path: Path) -> bytes | None:
    """What the file holds, one byte more than it may at most; None when there is none.

    Errors: ConfigError when it is no regular file or cannot be read.
    """
    try:
        # What was opened is what is judged, and opening a pipe must not wait for somebody who writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise ConfigError(f"{path} is {what}; name the configuration file itself")
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory; name the configuration file itself") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


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
        self.keep_secrets()
        top = self._with_environment(top)
        known = self.known_keys(top, {*Config.model_fields, "defaults", "mcp_servers"}, (), ())
        api = self.validate(ApiConfig, self._table(known, "api", (), ApiConfig), ("api",))
        metrics = self.validate(MetricsConfig, self._table(known, "metrics", (), MetricsConfig), ("metrics",))
        telemetry = self.validate(TelemetryConfig, self._table(known, "telemetry", (), TelemetryConfig), ("telemetry",))
        update = self.validate(UpdateConfig, self._table(known, "update", (), UpdateConfig), ("update",))
        llm = read_llm(self, self.subtable(known, "llm", ()))
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
        return LoadedConfig(
            config=config, warnings=self.warnings, content_hash=self.source.content_hash, source=self.source,
            origins=self.origins,
        )  # fmt: skip

    def _with_environment(self, top: Table) -> Table:
        """Lay the file's tables over what the environment says, and that over them where it wins."""
        found: Environment = read_environment(self.environ, has_file=bool(self.source.content_hash))
        for warning in found.warnings:
            self.warn(warning)
        for path, variable in found.origins.items():
            if is_in(found.above, path) or not is_in(top, path):
                self.origins[path] = variable
                self.unresolved.pop(path, None)  # the variable stands in for it
        return merge(merge(found.below, top), found.above)

    def _sort_keys(self, table: Table, model: type[BaseModel], path: KeyPath) -> Table:
        """`known_keys` for a model's table and the tables inside it."""
        kept = self.known_keys(table, model.model_fields, _WITHOUT_EFFECT.get(model.__name__, ()), path)
        for key, value in kept.items():
            inner, place = model.model_fields[key].annotation, (*path, key)
            if isinstance(value, dict):
                kept[key] = self._sort_inner(value, inner, place)
            elif isinstance(value, list) and key not in ("mcp", "mcp_servers"):  # those are read on their own
                of = next(iter(get_args(inner)), None)
                kept[key] = [
                    self._sort_inner(one, of, (*place, i)) if isinstance(one, dict) else one
                    for i, one in enumerate(value)
                ]
        return kept

    def _sort_inner(self, table: Table, kind: Any, path: KeyPath) -> Table:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self._sort_keys(table, kind, path)
        if get_origin(kind) is dict and get_origin(names := get_args(kind)[0]) is Literal:
            return self.known_keys(table, get_args(names), (), path)
        return table

    def _table(self, tables: Table, key: str, path: KeyPath, model: type[BaseModel]) -> Table:
        return self._sort_keys(self.subtable(tables, key, path), model, (*path, key))

    # Parts

    def _read_agents(self, known: Table) -> list[AgentConfig]:
        base = self._table(known, "defaults", (), AgentSettings)
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
        for repeated in sorted(agent_id for agent_id, count in Counter(ids).items() if count > 1):
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
    """Chains of fallbacks that come back to where they began: at least one of those that touch each other."""
    done: set[str] = set()
    found = 0
    for start in fallbacks:
        if start in done:
            continue
        path, places, stack = [start], {start: 0}, [iter(fallbacks[start])]
        while stack and found < _MOST_CIRCLES:
            model = next(stack[-1], None)
            if model is None:
                stack.pop()
                done.add(gone := path.pop())
                del places[gone]
            elif model in places:
                found += 1
                yield [*path[places[model] :], model]
            elif model in fallbacks and model not in done:
                places[model] = len(path)
                path.append(model)
                stack.append(iter(fallbacks[model]))
