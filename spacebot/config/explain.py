"""Every key as it counts now: its value, with secrets masked, and where it comes from.

Flow:   LoadedConfig (models, the owner's tables, variables) -> effective_values -> `config show|explain|get`, the API
Floor:  config; may import base
Source: control spec 1.3 (precedence); 4.2
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from spacebot.base.errors import NotFoundError
from spacebot.base.redaction import scrub
from spacebot.config.load import LoadedConfig
from spacebot.config.model import AgentConfig
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.reading import KeyPath, Table, is_in, is_secret
from spacebot.config.schema import PROCESS_TABLES, KeySpec, find_key, key_parts, key_specs

HIDDEN = "********"
_LISTS = ("agents", "mcp_servers", "bindings")


class Origin(StrEnum):
    """Which level a value comes from."""

    AGENT = "agent"
    DEFAULTS = "defaults"
    FILE = "file"
    ENVIRONMENT = "environment"
    SECRET = "secret store"
    BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveValue:
    """A key with what counts now.

    Args:
        name: of this very value: `bindings[1].channel`, `llm.provider.mine.base_url`; else that of the key.
        value: plain and without secrets; None where nothing is set.
        origin: the level; `origin_name` is the agent, the variable or the secret.
        place: the level whose text names a variable or a secret; empty for one that nobody named.
    """

    name: str
    spec: KeySpec
    value: Any
    origin: Origin
    origin_name: str = ""
    place: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        words = f"{self.origin} {self.origin_name}".strip()
        return f"{words} (named by {self.place})" if self.place else words

    def to_json_object(self) -> dict[str, Any]:
        """For programs."""
        spec = self.spec
        return {
            "key": self.name, "table": spec.header, "value": self.value, "source": str(self.origin),
            "source_name": self.origin_name, "named_by": self.place, "description": spec.description,
            "kind": spec.kind, "limits": spec.limits, "default": spec.default, "example": spec.example,
            "is_secret": spec.is_secret, "is_required": spec.is_required, "is_inherited": spec.is_inherited,
            "requires_restart": spec.at_restart,
        }  # fmt: skip


def effective_values(
    loaded: LoadedConfig, environ: Mapping[str, str], *, agent_id: str | None = None
) -> list[EffectiveValue]:
    """Every key that has a value, or could have one: those of the process, of one agent, and what the lists hold.

    Args:
        agent_id: None takes the default agent.

    Errors: NotFoundError.
    """
    return list(_Effective(loaded, environ, _agent(loaded, agent_id)).all())


def explain_key(
    loaded: LoadedConfig, environ: Mapping[str, str], name: str, *, agent_id: str | None = None
) -> tuple[KeySpec, list[EffectiveValue]]:
    """A key and the values that it has now, several in lists. Errors: NotFoundError with what may have been meant."""
    spec, parts = find_key(name), key_parts(name)
    if agent_id is None and parts[0] in ("agents", "agent") and len(parts) > 2:
        agent_id = next((agent.id for agent in loaded.config.agents if agent.id == parts[1]), None)
    values = [value for value in effective_values(loaded, environ, agent_id=agent_id) if value.spec.name == spec.name]
    exact = [value for value in values if value.name == ".".join(parts)]
    return spec, exact or values


def plain(value: Any, *, key: str = "") -> Any:
    """A value for people and programs: no models, no secrets."""
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, BaseModel):
        return {name: plain(one, key=name) for name, one in value}
    if isinstance(value, Mapping):
        return {str(name): plain(one, key=str(name)) for name, one in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return HIDDEN if is_secret((key,)) and not is_reference(value) else scrub(value)
    if isinstance(value, Sequence):
        return [plain(one, key=key) for one in value]
    return value


def is_reference(text: str) -> bool:
    """Whether a text only says where a value is."""
    return text.startswith(("env:", "secret:"))


def _agent(loaded: LoadedConfig, agent_id: str | None) -> AgentConfig:
    if agent_id is None:
        return loaded.config.default_agent
    agent = next((agent for agent in loaded.config.agents if agent.id == agent_id), None)
    if agent is None:
        known = ", ".join(agent.id for agent in loaded.config.agents)
        raise NotFoundError(f"there is no agent {agent_id[:80]!r}; there are: {known}")
    return agent


class _Effective:
    """One look at everything, for one agent."""

    def __init__(self, loaded: LoadedConfig, environ: Mapping[str, str], agent: AgentConfig) -> None:
        self._loaded = loaded
        self._config = loaded.config
        self._tables = loaded.source.tables
        self._environ = environ
        self._agent = agent
        entries = self._tables.get("agents")
        ids = [entry.get("id") for entry in entries] if isinstance(entries, list) else []
        self._place = ids.index(agent.id) if agent.id in ids else None
        self._shorthands = {
            key: entry for entry in provider_table().values() for key in (entry.key, entry.url_key) if key
        }

    def all(self) -> Iterator[EffectiveValue]:
        """In the order of the reference."""
        for spec in key_specs().values():
            parts = spec.parts
            if parts[0] in PROCESS_TABLES:
                yield self._made(spec, _walk(self._config, parts), (parts, Origin.FILE, ""))
            elif parts[0] == "llm":
                yield from self._of_providers(spec)
            elif parts[0] == "defaults" and parts[1] != "cron":
                yield self._of_agent(spec)
            elif parts[0] == "messaging":
                yield from self._of_account(spec)
            else:
                yield from self._of_list(spec)

    def _of_agent(self, spec: KeySpec) -> EffectiveValue:
        below = spec.parts[1:]
        own: KeyPath = () if self._place is None else ("agents", self._place, *below)
        places = ((own, Origin.AGENT, self._agent.id), (spec.parts, Origin.DEFAULTS, ""))
        return self._made(spec, _walk(self._agent, below), *places)

    def _of_providers(self, spec: KeySpec) -> Iterator[EffectiveValue]:
        if spec.parts[1] != "provider":
            yield self._of_shorthand(spec, self._shorthands[spec.key])
            return
        for spelling in ("provider", "providers"):
            tables = self._tables.get("llm", {})
            tables = tables.get(spelling, {}) if isinstance(tables, dict) else {}
            for name in tables if isinstance(tables, dict) else ():
                provider = self._config.llm.provider.get(name.lower())
                place: KeyPath = ("llm", spelling, name, spec.key)
                value = None if provider is None else getattr(provider, spec.key)
                if provider is None and is_in(tables, (name, spec.key)):  # it is disabled
                    value = _masked(tables[name][spec.key]) if spec.is_secret else tables[name][spec.key]
                yield self._made(spec, value, (place, Origin.FILE, ""), name=f"llm.provider.{name}.{spec.key}")

    def _of_shorthand(self, spec: KeySpec, entry: ProviderEntry) -> EffectiveValue:
        provider = self._config.llm.provider.get(entry.id)
        is_key = spec.key == entry.key
        value = None if provider is None else provider.api_key if is_key else provider.base_url
        made = self._made(spec, value, (spec.parts, Origin.FILE, ""))
        variables = (entry.env, entry.token_env) if is_key else (entry.url_env,)
        variable = next((name for name in variables if name and self._environ.get(name, "").strip()), None)
        if made.origin is Origin.BUILT_IN and variable is not None and value is not None:
            return self._made(spec, value, origin=(Origin.ENVIRONMENT, variable))
        if made.origin is Origin.BUILT_IN and is_key:  # a key that came from a table of its own
            return self._made(spec, None)
        return made

    def _of_account(self, spec: KeySpec) -> Iterator[EffectiveValue]:
        platform = spec.parts[1]
        table = self._tables.get("messaging", {})
        table = table.get(platform, {}) if isinstance(table, dict) else {}
        if len(spec.parts) > 3:  # commands
            yield from self._entries(spec, table.get("commands"), f"messaging.{platform}.commands")
            return
        account = self._config.messaging.account(platform)
        if account is not None:
            value = getattr(account, spec.key)
            yield self._made(spec, value, (("messaging", platform, spec.key), Origin.FILE, ""))
        yield from self._entries(spec, table.get("instances"), f"messaging.{platform}.instances")

    def _of_list(self, spec: KeySpec) -> Iterator[EffectiveValue]:
        parts = spec.parts
        if parts[0] in _LISTS:
            yield from self._entries(spec, self._tables.get(parts[0]), parts[0])
            return
        own = self._tables["agents"][self._place].get("cron") if self._place is not None else None
        label = "agents.cron" if own is not None else "defaults.cron"
        defaults = self._tables.get("defaults", {})
        yield from self._entries(spec, defaults.get("cron") if own is None else own, label)

    def _entries(self, spec: KeySpec, entries: Any, name: str) -> Iterator[EffectiveValue]:
        """What the owner wrote into a list."""
        for i, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict) and spec.key in entry:
                value = entry[spec.key]
                if spec.is_secret and isinstance(value, dict):
                    value = {key: _masked(one) for key, one in value.items()}
                elif spec.is_secret:
                    value = _masked(value)
                yield EffectiveValue(
                    name=f"{name}[{i + 1}].{spec.key}", spec=spec, value=plain(value), origin=Origin.FILE
                )

    def _made(
        self,
        spec: KeySpec,
        value: Any,
        *places: tuple[KeyPath, Origin, str],
        name: str | None = None,
        origin: tuple[Origin, str] = (Origin.BUILT_IN, ""),
    ) -> EffectiveValue:
        found, called, place = *origin, ""
        if spec.parts in self._loaded.origins:
            found, called = Origin.ENVIRONMENT, self._loaded.origins[spec.parts]
        is_overruled = found is Origin.ENVIRONMENT and spec.parts[0] == "telemetry"
        for path, level, whose in () if is_overruled else places:
            if path and is_in(self._tables, path) and (kind := self._kind_of(_at(self._tables, path))) is not None:
                words = f"{level} {whose}".strip()
                found, called, place = (level, whose, "") if kind == ("", "") else (_KINDS[kind[0]], kind[1], words)
                break
        return EffectiveValue(
            name=name or spec.name, spec=spec, value=plain(value, key=spec.key), origin=found, origin_name=called,
            place=place,
        )  # fmt: skip

    def _kind_of(self, text: Any) -> tuple[str, str] | None:
        """What the owner wrote: ("", "") a value, or a reference with its name; None for nothing at all."""
        if text == "":
            return None
        if not isinstance(text, str) or not is_reference(text):
            return "", ""
        kind, _, name = text.strip().partition(":")
        return None if kind == "env" and not self._environ.get(name, "").strip() else (kind, name)


_KINDS = {"env": Origin.ENVIRONMENT, "secret": Origin.SECRET}


def _masked(value: Any) -> str:
    text = str(value)
    return text if is_reference(text) or text.startswith("${") else HIDDEN


def _walk(model: Any, path: Sequence[str]) -> Any:
    for part in path:
        model = getattr(model, part)
    return model


def _at(tables: Table, path: KeyPath) -> Any:
    found: Any = tables
    for part in path:
        found = found[part]
    return found
