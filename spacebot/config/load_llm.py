"""`[llm]` from the file and the environment: which hosts of models there are.

A provider whose key leads nowhere is left out with a warning that says why; the others, and the program, do not mind.

Flow:   read_llm -> shorthand keys and variables, then explicit tables -> LlmConfig in order of preference
Floor:  config; may import base
Source: control spec 1.3, 1.5.1, 1.5.2 and 2.3
"""

import re
from typing import Any
from urllib.parse import urlsplit

from spacebot.base.paths import LOGIN_FILE
from spacebot.base.redaction import register_secret
from spacebot.config.model import ApiType, LlmConfig, ProviderConfig
from spacebot.config.provider_table import ProviderEntry, provider_table
from spacebot.config.reading import KeyPath, Reading, Table
from spacebot.config.tables import is_loopback_address

DEMO = "demo"

_BY_READER = frozenset({"has_login", "is_bearer"})  # fields of a provider that no file sets
_VERSIONED = (ApiType.OPENAI_COMPLETIONS, ApiType.OPENAI_RESPONSES, ApiType.ANTHROPIC)  # the dialect adds /v1
_GEMINI_HOST = "generativelanguage.googleapis.com"
_PROVIDER_ID = re.compile(r"[^\s/]{1,64}")


def read_llm(reading: Reading, llm: Table) -> LlmConfig:
    """Every provider that can be used, best first; the demo is always there, and last."""
    return _Providers(reading).read(llm)


class _Providers:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._has_login = (reading.source.path.parent / LOGIN_FILE).is_file()
        self._absent: dict[str, str] = {}

    def read(self, llm: Table) -> LlmConfig:
        builtin = provider_table()
        shorthand = {entry.key for entry in builtin.values()} | {entry.url_key for entry in builtin.values()}
        explicit, rest = self._explicit_providers(llm)
        keys = self._reading.known_keys(rest, {key for key in shorthand if key}, (), ("llm",))
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
        return LlmConfig(provider=usable, absent=self._absent)

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
                self._reading.problem(prefix, f"must hold tables: [llm.{key}.<id>]", tables)
                continue
            for name, table in tables.items():
                path = prefix if key.startswith("provider.") else (*prefix, name)
                provider_id = name.lower()
                if not isinstance(table, dict):
                    self._reading.problem(path, f"must be a table: [llm.provider.{name}]", table)
                elif not _PROVIDER_ID.fullmatch(provider_id):
                    self._reading.problem(path, "a provider's id has 1 to 64 characters without blanks and '/'")
                elif provider_id in found:
                    self._reading.problem(path, f"provider {provider_id!r} is configured twice; keep one of the tables")
                else:
                    found[provider_id] = (path, table)
        return found, rest

    def _shorthand_provider(self, entry: ProviderEntry, keys: Table) -> ProviderConfig | None:
        """A built-in provider whose key or address is given in `[llm]` or the environment."""
        key, is_bearer = self._key_of(entry, keys.get(entry.key) if entry.key else None)
        url, url_place = keys.get(entry.url_key or ""), ("llm", entry.url_key or "")
        if url is None and entry.url_env and (url := self._reading.environ.get(entry.url_env)):
            url_place = ("", entry.url_env)
        reason = self._reading.unresolved.pop(("llm", entry.key or ""), None)
        self._reading.unresolved.pop(("llm", entry.url_key or ""), None)
        base_url = _clean_url(url or entry.base_url, entry.api_type, entry)
        has_login = self._may_show_login(entry.id, entry.api_type, base_url)
        if key is None and (entry.needs_key or not url) and entry.id != DEMO and not has_login:
            if reason is not None:
                self._disable(entry.id, f"llm.{entry.key} is given, but {reason}")
            return None
        table = {"api_type": entry.api_type, "name": entry.name, "api_key": key, "base_url": base_url}
        table |= {"has_login": has_login, "is_bearer": is_bearer}
        renamed = {"base_url": url_place, "api_key": ("llm", entry.key or "")}
        return self._reading.validate(ProviderConfig, table, ("llm", entry.id), renamed=renamed)

    def _key_of(self, entry: ProviderEntry | None, given: Any) -> tuple[Any, bool]:
        """The key, of the file or the environment, and whether it is a token that is shown as a bearer's alone."""
        if given is not None or entry is None:
            return given or None, False
        for variable, is_bearer in ((entry.env, False), (entry.token_env, True)):
            if variable and (found := self._reading.environ.get(variable, "").strip()):
                register_secret(found)
                return found, is_bearer
        return None, False

    def _explicit_provider(
        self, provider_id: str, entry: ProviderEntry | None, raw: Table, path: KeyPath
    ) -> ProviderConfig | None:
        """One provider's own table, with what is known of a built-in one filled in; None when it is disabled."""
        table = self._reading.known_keys(raw, ProviderConfig.model_fields.keys() - _BY_READER, (), path)
        if entry is not None:
            table = {"api_type": entry.api_type, "base_url": entry.base_url, "name": entry.name} | table
        key_path = (*path, "api_key")
        reason = self._reading.unresolved.pop(key_path, None)
        key, table["is_bearer"] = self._key_of(entry, table.get("api_key"))
        if "base_url" in table:
            table["base_url"] = _clean_url(table["base_url"], table.get("api_type"), entry)
        has_login = self._may_show_login(provider_id, table.get("api_type"), table.get("base_url"))
        needs_key = entry.needs_key if entry is not None else table.get("api_type") == ApiType.AZURE
        if key is None and not has_login and (reason is not None or needs_key):
            self._disable(provider_id, reason or "it has no api_key")
            return None
        table["has_login"] = has_login
        if key is not None:
            table["api_key"] = key
        if "base_url" not in table and table.get("api_type") != ApiType.DEMO:
            self._reading.problem((*path, "base_url"), "is missing; give the address of the provider")
        return self._reading.validate(ProviderConfig, table, path)

    def _may_show_login(self, provider_id: str, api_type: object, base_url: object) -> bool:
        """Whether the login of the instance is meant for this host: Anthropic itself, or a proxy on this machine."""
        if not self._has_login or provider_id != "anthropic" or api_type != ApiType.ANTHROPIC:
            return False
        scheme, host = _scheme_and_host(base_url) if isinstance(base_url, str) else ("", "")
        return (scheme == "https" and host == "api.anthropic.com") or (host != "" and is_loopback_address(host))

    def _disable(self, provider_id: str, reason: str) -> None:
        self._absent[provider_id] = reason
        self._reading.warn(f"provider {provider_id!r} is disabled: {reason}")


def _clean_url(url: Any, api_type: object, entry: ProviderEntry | None) -> Any:
    """Drop what people paste too much: a slash at the end, and once the version that we add ourselves."""
    if not isinstance(url, str):
        return url  # the model says what is wrong with it
    url = url.strip().rstrip("/")
    if api_type in _VERSIONED:
        url = url.removesuffix("/v1")
        if entry is not None and not entry.needs_key:
            url = url.removesuffix("/api")
    if api_type == ApiType.GEMINI and _scheme_and_host(url)[1] == _GEMINI_HOST and not url.endswith("/openai"):
        url += "/openai"  # the address of the vendor's own format was given
    return url.rstrip("/")


def _scheme_and_host(url: str) -> tuple[str, str]:
    """Both empty for an address that is none, which the model says."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or ""
    except ValueError:
        return "", ""
