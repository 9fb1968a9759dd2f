"""One reading of one file: resolves strings, sorts keys, builds models, and gathers what is wrong on the way.

What the tables mean is said by `load.py` and `load_messaging.py`; this is what they both need.

Floor:   config; may import base
Source:  control spec 1.3 and 1.10
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from spacebot.base.errors import ConfigError, SpacebotError
from spacebot.base.redaction import register_secret, register_secrets
from spacebot.config.model import AgentSettings, ApiConfig
from spacebot.config.wording import brief, in_plain_words, quote

Table = dict[str, Any]
KeyPath = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

_SECRET_KEY = re.compile(r"(?:^|_)(?:key|token|secret|password|authorization|otlp_headers)$", re.IGNORECASE)
# A name of so many parts takes the parser, whose time grows with the square of them, for ever.
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
ENDLESS_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{64}}")
_WITH_SECRETS = frozenset({"mcp", "mcp_servers", "otlp_headers"})  # parts of the file whose values are masked
_ABSENT = object()
_MOST_SECRETS = 1000  # each is looked for in every text that goes out
_MOST_TOLD = 100  # problems
_MOST_UNKNOWN = 100  # warnings about keys without a meaning; a file with more is another program's


@dataclass(frozen=True, slots=True)
class Source:
    """The file as it was read; `tables` is empty and `content_hash` too when it does not exist."""

    path: Path
    tables: Table
    content_hash: str


class Reading:
    """Values, keys and reports of one file; part readers use it and hold none of their own."""

    def __init__(
        self,
        source: Source,
        environ: Mapping[str, str],
        resolve_secret: Callable[[str], str | None],
    ) -> None:
        self.source = source
        self.environ = environ
        self._resolve_secret = resolve_secret
        self._warnings: dict[str, None] = {}  # in order, each once
        self._problems: dict[str, None] = {}
        self._unknown = 0
        self._secrets: set[str] = set()
        self._references: dict[KeyPath, str] = {}  # values that were given as env: or secret:
        self.unresolved: dict[KeyPath, str] = {}  # those of them that led nowhere, with the reason
        self.agent_names: dict[int, str] = {}
        self.origins: dict[KeyPath, str] = {}  # values that the environment gave unasked -> their variable

    # Values

    def resolve_table(self, table: Table, path: KeyPath) -> Table:
        """Copy a table with `env:` and `secret:` values filled in and absent ones left out."""
        result: Table = {}
        for key, value in table.items():
            resolved = self._resolve(value, (*path, key))
            if resolved is not _ABSENT:
                result[key] = resolved
        return result

    def _resolve(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return self.resolve_table(value, path)
        if isinstance(value, list):
            items = (self._resolve(item, (*path, i)) for i, item in enumerate(value))
            return [item for item in items if item is not _ABSENT]
        if not isinstance(value, str):
            return value
        text: str | None = value or None
        if value.startswith(("env:", "secret:")):
            text = self._resolve_text(value.strip(), path)
        if text and is_secret(path):
            self._secrets.add(text)
        return _ABSENT if text is None else text

    def keep_secrets(self) -> None:
        """Have what `resolve_table` found scrubbed from every text from now on. Errors: ConfigError for too many."""
        if len(self._secrets) > _MOST_SECRETS:
            what = f"has more than {_MOST_SECRETS} keys and tokens; that is no configuration file"
            raise ConfigError(f"{self.source.path} {what}")
        register_secrets(self._secrets)

    def _resolve_text(self, reference: str, path: KeyPath) -> str | None:
        kind, _, name = reference.partition(":")
        self._references[path] = reference
        if kind == "env":
            if found := self.environ.get(name, "").strip():
                return found
            reason = f"environment variable {name} is not set"
        elif not _may_be_secret(path):  # it would be shown wherever such a value is shown
            self.problem(path, "cannot come from the secret store; only keys, tokens and headers can")
            return None
        else:
            reason = f"the secret store has no {name!r}"
            try:
                if value := self._resolve_secret(name):
                    register_secret(value)
                    return value
            except SpacebotError as error:  # locked, damaged, or not there: it says what to do
                reason = str(error)
        self.unresolved[path] = reason
        return None

    # Keys

    def known_keys(self, table: Table, known: Iterable[str], unused: Iterable[str], path: KeyPath) -> Table:
        """Keep the keys that have a meaning; warn about the others."""
        known, unused = frozenset(known), frozenset(unused)
        kept: Table = {}
        for key, value in table.items():
            if key in known:
                kept[key] = value
            elif key in unused:
                self._warn_unused(value, (*path, key))
            elif self._count_unknown() <= _MOST_UNKNOWN:
                self.warn(f"unknown key '{self.name((*path, key))}' is ignored{_suggest(key, known | unused, path)}")
        return kept

    def _count_unknown(self) -> int:
        self._unknown += 1
        return self._unknown

    def _warn_unused(self, value: Any, path: KeyPath) -> None:
        what = "table" if isinstance(value, dict | list) else "key"
        self.warn(f"{what} '{self.name(path)}' has no effect in this version")

    def subtable(self, tables: Table, key: str, path: KeyPath) -> Table:
        """The table under a key; empty when there is none, or something else, which is noted."""
        value = tables.get(key, {})
        if isinstance(value, dict):
            return value
        self.problem((*path, key), f"must be a table: [{self.name((*path, key))}]", value)
        return {}

    # Reports

    @property
    def is_sound(self) -> bool:
        """Whether no problem was noted so far."""
        return not self._problems

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was noted, in order."""
        more = self._unknown - _MOST_UNKNOWN
        return (*self._warnings, *([f"{more} more unknown keys are ignored"] if more > 0 else ()))

    def report_unresolved(self) -> None:
        """Warn about values that led nowhere and that nobody has asked about."""
        for path, reason in self.unresolved.items():
            self.warn(f"'{self.name(path)}' is left out: {reason}")

    def validate(
        self,
        model: type[ModelT],
        table: Table,
        path: KeyPath,
        *,
        own: Table | None = None,
        renamed: Mapping[str, KeyPath] = MappingProxyType({}),
    ) -> ModelT | None:
        """Build a model; its problems are noted, None means that there were some.

        Args:
            own: only problems of keys in this table are news; those of inherited ones are noted already.
            renamed: where the owner wrote a field, when it was not under the field's own name.
        """
        try:
            return model.model_validate(table)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                place = tuple(details["loc"])
                if own is None or is_in(own, place):
                    is_whole = isinstance(details["input"], dict) or details["type"] == "missing"
                    shown = _ABSENT if is_whole else details["input"]
                    wrong = renamed.get(str(place[0]) if place else "", (*path, *place))
                    self.problem(wrong, in_plain_words(details), shown)
            return None

    def name(self, path: KeyPath) -> str:
        """A key path for people: `agents[my-agent].max_turns`; a variable where the environment gave the value."""
        if path in self.origins:
            return self.origins[path]
        text = ""
        for i, part in enumerate(path):
            if part == "":
                continue  # the place is an environment variable
            if isinstance(part, int):
                shown = self.agent_names.get(part, f"#{part + 1}") if path[:i] == ("agents",) else f"#{part + 1}"
                text += f"[{shown}]"
            else:
                plain = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else quote(part)
                text += f".{plain}" if text else plain
        return text

    def warn(self, message: str) -> None:
        """Note what the owner should know, once."""
        self._warnings[f"{self.source.path}: {message}" if self.source.content_hash else message] = None

    def problem(self, path: KeyPath, message: str, value: Any = _ABSENT) -> None:
        """Note something wrong; `value` is shown unless the key holds a secret."""
        shown = ""
        if path in self._references:
            shown = f" = {self._references[path]!r}"
        elif value is not _ABSENT:
            shown = " = (hidden)" if is_secret(path) else f" = {brief(value)}"
        self._problems[f"{self.name(path)}{shown}: {message}"] = None

    def check(self) -> None:
        """Raise ConfigError with all problems, when there are some."""
        if self._problems:
            raise ConfigError(self._summary())

    def _summary(self) -> str:
        lines = list(self._problems)
        if (more := len(lines) - _MOST_TOLD) > 0:
            lines[_MOST_TOLD:] = [f"and {more} more"]
        where = str(self.source.path) if self.source.content_hash else "the environment"
        if len(lines) == 1:
            return f"{where}: {lines[0]}"
        return "\n  ".join([f"{where} has {len(self._problems)} problems:", *lines])


def _suggest(key: str, known: frozenset[str], path: KeyPath) -> str:
    if near := difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6):
        return f"; did you mean {near[0]!r}?"
    elsewhere: Mapping[str, type[BaseModel]] = {"defaults": AgentSettings, "api": ApiConfig}
    for table, model in elsewhere.items():
        if key in model.model_fields and path != (table,):
            return f"; it belongs into [{table}]"
    return ""


def is_in(table: Any, path: KeyPath) -> bool:
    """Whether a table has a value at a key path."""
    for part in path:
        if not (part in table if isinstance(table, dict) else isinstance(part, int) and isinstance(table, list)):
            return False
        table = table[part]
    return bool(path)


def _may_be_secret(path: KeyPath) -> bool:
    """Whether a value there is kept from logs and answers, so that it may come from the store."""
    tables = {part for part in path if isinstance(part, str)}
    return is_secret(path) or not tables.isdisjoint(_WITH_SECRETS)


def is_secret(path: KeyPath) -> bool:
    """Whether what stands at a key path is a secret, by its name."""
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    return _SECRET_KEY.search(name) is not None
