"""The built-in providers: one table for shorthand keys, environment names, URLs, dialects and default models.

Flow:   providers.toml -> provider_table() -> config loader, routing, dialects
Floor:  config; may import base
Source: control spec 2.1 to 2.3
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from spacebot.base.paths import package_file
from spacebot.config.model import ApiType

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEntry:
    """What is known about a provider before the owner says anything."""

    id: str
    name: str
    api_type: ApiType
    base_url: str = ""
    key: str | None = None  # shorthand in [llm], such as `anthropic_key`
    env: str | None = None  # environment fallback of the key
    token_env: str | None = None  # environment fallback of a key that is shown as `Authorization: Bearer` alone
    url_key: str | None = None  # shorthand in [llm] that changes the base URL
    url_env: str | None = None  # environment fallback of the base URL
    needs_key: bool = True
    first: str = ""  # default model of channels and branches, without the provider's prefix
    second: str = ""  # default model of workers, compactor and cortex
    small: str = ""  # classes of models for profiles and tiers; empty: the second, the first, the first
    medium: str = ""
    large: str = ""
    has_classes: bool = True  # False where the owner decides what there is
    aliases: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    openrouter: str | None = None  # the vendor's name at OpenRouter
    headers: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    max_tokens_field: str = "max_tokens"
    stream_usage: bool = True  # whether `stream_options.include_usage` is understood
    replays_reasoning: bool = False  # earlier thinking is demanded back as `reasoning_content`
    cache_marks: bool = False  # understands Anthropic's `cache_control`
    responses: str | None = None  # pattern of models that the vendor's own host wants asked by the Responses dialect
    session_header: str | None = None  # demanded beside the key; any value that stays the same for a while
    exchanges_key: bool = False  # the key buys short-lived tokens; see llm/copilot.py
    hosts: tuple[str, ...] = ()  # domains whose models have these peculiarities, whatever the provider's id


@cache
def provider_table() -> Mapping[str, ProviderEntry]:
    """All built-in providers by id, in order of preference; `demo` is the last."""
    with package_file("config", "providers.toml").open("rb") as file:
        tables = tomllib.load(file)
    entries: dict[str, ProviderEntry] = {}
    for provider_id, table in tables.items():
        facts: dict[str, Any] = {k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in table.items()}
        facts["api_type"] = ApiType(facts["api_type"])
        facts["hosts"] = tuple(facts.get("hosts", ())) or _host_of(facts.get("base_url", ""))
        entries[provider_id] = ProviderEntry(id=provider_id, **facts)
    return MappingProxyType(entries)


def entry_of_host(base_url: str) -> ProviderEntry | None:
    """The built-in provider whose host an address is at; its peculiarities hold for providers of the owner's own."""
    host = urlsplit(base_url).hostname or ""
    entries = provider_table().values()
    return next((one for one in entries for known in one.hosts if host == known or host.endswith(f".{known}")), None)


def _host_of(base_url: str) -> tuple[str, ...]:
    host = urlsplit(base_url).hostname
    return (host,) if host and host != "localhost" else ()
