"""What the environment says without being asked: models, keys, bindings, how the program is deployed.

It is made into tables as an owner would have written them, and these lie below the file: what the file says counts.
Only traces go the other way, as their tools expect. Without a file the variables of a container set up whole accounts
and bindings, so that no script has to write one.

Flow:    environment -> read_environment -> tables below the file and above it, each value with its variable
Floor:   config; may import base
Source:  control spec 1.4, 1.8, 1.13, 6.6
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from spacebot.base.clock import parse_zone
from spacebot.base.errors import ConfigError
from spacebot.base.redaction import register_secret

Table = dict[str, Any]
KeyPath = tuple[str | int, ...]

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "SPACEBOT_DIR": "Folder of the configuration and of everything else; --config comes first.",
        "SPACEBOT_DEPLOYMENT": "docker or hosted: the API listens on every address unless api.bind says otherwise, "
        "and then demands a token.",
        "SPACEBOT_API_TOKEN": "Stands in for api.auth_token.",
        "SPACEBOT_API_WITHOUT_TOKEN": "1 stands in for api.allow_without_token = true.",
        "SPACEBOT_MAX_AGENTS": "Most agents that may be created over the API.",
        "SPACEBOT_MODEL": "Model of every process where the file names none.",
        "SPACEBOT_CHANNEL_MODEL": "The same for channels and branches.",
        "SPACEBOT_WORKER_MODEL": "The same for workers, compactor and cortex.",
        "SPACEBOT_VOICE_MODEL": "Stands in for routing.voice.",
        "ANTHROPIC_MODEL": "Model of every process when there is no file.",
        "SPACEBOT_CRON_TIMEZONE": "Stands in for cron_timezone.",
        "SPACEBOT_LOG": "debug writes more into the log; info is the default.",
        "BRAVE_SEARCH_API_KEY": "Stands in for brave_search_key; BRAVE_API_KEY does too.",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "Wins over telemetry.otlp_endpoint.",
        "OTEL_EXPORTER_OTLP_HEADERS": "Wins over telemetry.otlp_headers.",
        "OTEL_SERVICE_NAME": "Wins over telemetry.service_name.",
        "PI_CACHE_RETENTION": "none, short or long: how long Anthropic keeps a prompt for reuse.",
        "CHROME_PATH": "The browser's program; CHROME does the same.",
        "CHROME_FLAGS": "More options for the browser.",
    }
)
CONTAINER_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "DISCORD_DM_ALLOWED_USERS": "Ids of people who may write directly, separated by commas.",
        "DISCORD_GUILD_ID": "Only in these servers.",
        "DISCORD_CHANNEL_IDS": "Only in these channels.",
        "SLACK_DM_ALLOWED_USERS": "Ids of people who may write directly.",
        "SLACK_WORKSPACE_ID": "Only in these workspaces.",
        "SLACK_CHANNEL_IDS": "Only in these channels.",
        "TELEGRAM_DM_ALLOWED_USERS": "Ids of people who may write directly.",
        "TELEGRAM_CHAT_ID": "Only in these chats.",
        "TWITCH_CHANNELS": "Channels that are joined.",
        "TWITCH_TRIGGER_PREFIX": "Only messages that begin with this are for the agent.",
        "WEBHOOK_ENABLED": "1 switches the webhook's server on.",
        "WEBHOOK_BIND": "Where it listens; in a container on every address.",
        "WEBHOOK_PORT": "Its port.",
        "WEBHOOK_AUTH_TOKEN": "The token that its callers must send.",
    }
)

_ROLES = ("channel", "branch", "worker", "compactor", "cortex")
_ROLES_BY_VARIABLE = {  # the narrower variable wins: later entries overwrite earlier ones
    "SPACEBOT_MODEL": _ROLES,
    "SPACEBOT_CHANNEL_MODEL": ("channel", "branch"),
    "SPACEBOT_WORKER_MODEL": ("worker", "compactor", "cortex"),
    "SPACEBOT_VOICE_MODEL": ("voice",),
}
_TELEMETRY = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "otlp_endpoint",
    "OTEL_EXPORTER_OTLP_HEADERS": "otlp_headers",
    "OTEL_SERVICE_NAME": "service_name",
}
_SEARCH_KEYS = ("BRAVE_SEARCH_API_KEY", "BRAVE_API_KEY")  # the first that is set counts
_BINDS = {"docker": "0.0.0.0", "hosted": "::"}
_YES = frozenset({"1", "true", "yes", "on"})
# Variables whose presence means that the account is wanted; the loader fills them in.
_ACCOUNTS = {
    "discord": ("DISCORD_BOT_TOKEN",),
    "slack": ("SLACK_BOT_TOKEN", "SLACK_APP_TOKEN"),
    "telegram": ("TELEGRAM_BOT_TOKEN",),
    "twitch": ("TWITCH_BOT_USERNAME", "TWITCH_OAUTH_TOKEN"),
}
_LISTS = {  # key of the account -> variable that holds a list for it
    ("discord", "dm_allowed_users"): "DISCORD_DM_ALLOWED_USERS",
    ("slack", "dm_allowed_users"): "SLACK_DM_ALLOWED_USERS",
    ("telegram", "dm_allowed_users"): "TELEGRAM_DM_ALLOWED_USERS",
    ("twitch", "channels"): "TWITCH_CHANNELS",
}
_ROOMS = {  # platform -> the key that a binding is made for each entry of, and its channels
    "discord": ("guild_id", "DISCORD_GUILD_ID", "DISCORD_CHANNEL_IDS"),
    "slack": ("workspace_id", "SLACK_WORKSPACE_ID", "SLACK_CHANNEL_IDS"),
    "telegram": ("chat_id", "TELEGRAM_CHAT_ID", ""),
}


@dataclass(slots=True)
class Environment:
    """What the environment says.

    Args:
        below: counts where the file is silent.
        above: counts whatever the file says.
        origins: key path -> the variable that its value comes from.
    """

    below: Table = field(default_factory=dict)
    above: Table = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def put(self, path: Sequence[str], value: Any, variable: str, *, above: bool = False) -> None:
        """Note a value."""
        table = self.above if above else self.below
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value
        self.origins[tuple(path)] = variable


def read_environment(environ: Mapping[str, str], *, has_file: bool) -> Environment:
    """Make tables of the variables; without a file those of a container count too."""
    found = Environment()
    _read_models(found, environ, has_file=has_file)
    for variable, key in _TELEMETRY.items():
        if value := _text(environ, variable):
            found.put(("telemetry", key), value, variable, above=True)
            if key == "otlp_headers":
                register_secret(value)
    if (name := next((name for name in _SEARCH_KEYS if _text(environ, name)), None)) is not None:
        found.put(("defaults", "brave_search_key"), _secret(environ, name), name)
    if zone := _text(environ, "SPACEBOT_CRON_TIMEZONE"):
        try:
            parse_zone(zone)
            found.put(("defaults", "cron_timezone"), zone, "SPACEBOT_CRON_TIMEZONE")
        except ConfigError as error:
            found.warnings.append(f"SPACEBOT_CRON_TIMEZONE is ignored: {error}")
    _read_api(found, environ)
    if not has_file:
        _read_accounts(found, environ)
    return found


def max_agents(environ: Mapping[str, str]) -> int | None:
    """Most agents that may be created over the API; None where there is no such limit."""
    text = _text(environ, "SPACEBOT_MAX_AGENTS")
    return int(text) if text.isdecimal() and len(text) < 9 else None


def deployment(environ: Mapping[str, str]) -> str:
    """How the program is deployed: docker, hosted or native."""
    kind = _text(environ, "SPACEBOT_DEPLOYMENT").lower()
    return kind if kind in _BINDS else "native"


def _read_models(found: Environment, environ: Mapping[str, str], *, has_file: bool) -> None:
    if not has_file and (model := _text(environ, "ANTHROPIC_MODEL")):
        for role in _ROLES:
            named = model if "/" in model else f"anthropic/{model}"
            found.put(("defaults", "routing", role), named, "ANTHROPIC_MODEL")
    for variable, roles in _ROLES_BY_VARIABLE.items():
        if model := _text(environ, variable):
            for role in roles:
                found.put(("defaults", "routing", role), model, variable)


def _read_api(found: Environment, environ: Mapping[str, str]) -> None:
    kind = _text(environ, "SPACEBOT_DEPLOYMENT").lower()
    if bind := _BINDS.get(kind):
        found.put(("api", "bind"), bind, "SPACEBOT_DEPLOYMENT")
    elif kind not in ("", "native"):
        found.warnings.append("SPACEBOT_DEPLOYMENT is ignored: it must be docker, hosted or native")
    if _text(environ, "SPACEBOT_API_TOKEN"):
        found.put(("api", "auth_token"), _secret(environ, "SPACEBOT_API_TOKEN"), "SPACEBOT_API_TOKEN")
    if _is_yes(environ, "SPACEBOT_API_WITHOUT_TOKEN"):
        found.put(("api", "allow_without_token"), True, "SPACEBOT_API_WITHOUT_TOKEN")
    if (text := _text(environ, "SPACEBOT_MAX_AGENTS")) and max_agents(environ) is None:
        found.warnings.append(f"SPACEBOT_MAX_AGENTS is ignored: it must be a whole number, not {text[:20]!r}")


def _read_accounts(found: Environment, environ: Mapping[str, str]) -> None:
    bindings: list[Table] = []
    for platform, credentials in _ACCOUNTS.items():
        if not any(_text(environ, variable) for variable in credentials):
            continue
        found.below.setdefault("messaging", {})[platform] = {}
        for (of, key), variable in _LISTS.items():
            if of == platform and (entries := _entries(environ, variable)):
                found.put(("messaging", platform, key), entries, variable)
        for binding in _bindings(environ, platform):
            for key, (value, variable) in binding.items():
                found.origins[("bindings", len(bindings), key)] = variable
                binding[key] = value
            bindings.append({"agent_id": "main", "channel": platform, **binding})
    if (prefix := _text(environ, "TWITCH_TRIGGER_PREFIX")) and "twitch" in found.below.get("messaging", {}):
        found.put(("messaging", "twitch", "trigger_prefix"), prefix, "TWITCH_TRIGGER_PREFIX")
    if _is_yes(environ, "WEBHOOK_ENABLED"):
        _read_webhook(found, environ)
    if bindings:
        found.below["bindings"] = bindings


def _bindings(environ: Mapping[str, str], platform: str) -> list[dict[str, Any]]:
    """One for each server, workspace or chat, or one for the channels alone; values with their variables."""
    if platform not in _ROOMS:
        return []
    key, places, channels = _ROOMS[platform]
    rooms = {"channel_ids": (ids, channels)} if channels and (ids := _entries(environ, channels)) else {}
    made = [{key: (place, places), **rooms} for place in _entries(environ, places)]
    return made or ([dict(rooms)] if rooms else [])


def _read_webhook(found: Environment, environ: Mapping[str, str]) -> None:
    found.put(("messaging", "webhook", "enabled"), True, "WEBHOOK_ENABLED")
    if bind := _BINDS.get(deployment(environ)):
        found.put(("messaging", "webhook", "bind"), bind, "SPACEBOT_DEPLOYMENT")
    for key, variable in (("bind", "WEBHOOK_BIND"), ("port", "WEBHOOK_PORT")):
        if value := _text(environ, variable):
            found.put(("messaging", "webhook", key), value, variable)
    if _text(environ, "WEBHOOK_AUTH_TOKEN"):
        token = _secret(environ, "WEBHOOK_AUTH_TOKEN")
        found.put(("messaging", "webhook", "auth_token"), token, "WEBHOOK_AUTH_TOKEN")


def _text(environ: Mapping[str, str], variable: str) -> str:
    return environ.get(variable, "").strip()


def _secret(environ: Mapping[str, str], variable: str) -> str:
    value = _text(environ, variable)
    register_secret(value)
    return value


def _entries(environ: Mapping[str, str], variable: str) -> list[str]:
    return [entry for part in environ.get(variable, "").split(",") if (entry := part.strip())]


def _is_yes(environ: Mapping[str, str], variable: str) -> bool:
    return _text(environ, variable).lower() in _YES
