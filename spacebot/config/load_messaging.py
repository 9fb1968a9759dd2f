"""`[messaging.*]` and `[[bindings]]` from the file and the environment.

An account that cannot be used (no credentials, a token of the wrong form) is left out with a warning that says why;
the other accounts, and the program, do not mind. A binding that leads nowhere is told as well.

Flow:    read_messaging -> read_bindings
Floor:   config; may import base
Source:  messaging spec 9, 15 and 19 (33); control spec 1.3, 1.6 and 1.7
"""

import base64
import binascii
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import get_args

from spacebot.base.redaction import register_secret
from spacebot.config.messaging import (
    ANYBODY,
    PLATFORMS,
    AnyAccount,
    BindingConfig,
    DiscordAccount,
    MessagingConfig,
    Platform,
    SlackAccount,
    SlackCommand,
    TelegramAccount,
    TwitchAccount,
    WebhookAccount,
    runtime_key,
)
from spacebot.config.model import AgentConfig
from spacebot.config.reading import KeyPath, Reading, Table
from spacebot.config.wording import brief

_MODELS: Mapping[str, type[AnyAccount]] = {
    "discord": DiscordAccount,
    "slack": SlackAccount,
    "telegram": TelegramAccount,
    "twitch": TwitchAccount,
    "webhook": WebhookAccount,
}
_CREDENTIALS: Mapping[str, Mapping[str, str]] = {  # key -> variable that stands in for it
    "discord": {"token": "DISCORD_BOT_TOKEN"},
    "slack": {"bot_token": "SLACK_BOT_TOKEN", "app_token": "SLACK_APP_TOKEN"},
    "telegram": {"token": "TELEGRAM_BOT_TOKEN"},
    "twitch": {"username": "TWITCH_BOT_USERNAME", "oauth_token": "TWITCH_OAUTH_TOKEN"},
    "webhook": {},
}
_PROXIES: Mapping[str, Mapping[str, str]] = {  # of every account of the platform that names none of its own
    "discord": {"rest_url": "SPACEBOT_DISCORD_REST_URL"},
    "slack": {"api_url": "SPACEBOT_SLACK_API_URL"},
    "telegram": {"api_url": "SPACEBOT_TELEGRAM_API_URL", "file_url": "SPACEBOT_TELEGRAM_FILE_URL"},
    "twitch": {"host": "SPACEBOT_TWITCH_HOST", "port": "SPACEBOT_TWITCH_PORT", "tls": "SPACEBOT_TWITCH_TLS"},
    "webhook": {},
}
_SCOPES = {"guild_id": "discord", "workspace_id": "slack", "chat_id": "telegram"}
_UNUSED_PLATFORMS = frozenset({"email", "mattermost", "signal"})
_UNUSED_ACCOUNT = frozenset({"client_id", "client_secret", "refresh_token"})
_UNUSED_BINDING = frozenset({"team_id", "settings"})
_SHAPES = {  # what a credential looks like when it was copied from the right place
    ("slack", "bot_token"): (re.compile(r"xoxb-"), "a bot token begins with 'xoxb-'"),
    ("slack", "app_token"): (re.compile(r"xapp-"), "an app token begins with 'xapp-'"),
    ("telegram", "token"): (re.compile(r"\d+:\S+$"), "a bot's token is a number, ':' and letters"),
}


def read_messaging(reading: Reading, tables: Table, agents: Sequence[AgentConfig]) -> MessagingConfig:
    """Every account that can be used; the others are in `absent`."""
    messaging = reading.known_keys(
        reading.subtable(tables, "messaging", ()), PLATFORMS, _UNUSED_PLATFORMS, ("messaging",)
    )
    for unused in _UNUSED_PLATFORMS:
        _forget_below(reading, ("messaging", unused))
    accounts = _Accounts(reading, {agent.id for agent in agents})
    for platform in PLATFORMS:
        if platform in messaging:
            accounts.read(platform, reading.subtable(messaging, platform, ("messaging",)))
    return MessagingConfig.model_validate(accounts.found | {"absent": accounts.absent})


class _Accounts:
    """The accounts of one file."""

    def __init__(self, reading: Reading, agent_ids: set[str]) -> None:
        self._reading = reading
        self._agent_ids = agent_ids
        self._secrets: dict[tuple[str, str], str] = {}  # platform and secret -> whose it is
        self.found: dict[str, list[AnyAccount]] = {platform: [] for platform in PLATFORMS}
        self.absent: dict[str, str] = {}

    def read(self, platform: str, table: Table) -> None:
        """The platform's own account and its `instances`."""
        reading, path = self._reading, ("messaging", platform)
        fields = _MODELS[platform].model_fields
        known = reading.known_keys(table, {*fields, "instances"} - {"name"}, _UNUSED_ACCOUNT, path)
        instances = known.pop("instances", [])
        if known or not instances:
            self._add(platform, None, known, path)
        if not isinstance(instances, list) or not all(isinstance(entry, dict) for entry in instances):
            wanted = f"must be a list of tables; write [[messaging.{platform}.instances]] with two brackets"
            reading.problem((*path, "instances"), wanted)
            return
        names: set[str] = set()
        for i, entry in enumerate(instances):
            place: KeyPath = (*path, "instances", i)
            own = reading.known_keys(entry, fields, _UNUSED_ACCOUNT, place)
            name = own.get("name")
            if not isinstance(name, str):
                reading.problem(
                    (*place, "name"), "is missing; give the instance a name" if name is None else "must be text"
                )
            elif name.lower() in names:
                reading.warn(f"'{reading.name(place)}' is left out: an instance {name!r} is there already")
                _forget_below(reading, place)
            else:
                names.add(name.lower())
                self._add(platform, name, own, place)

    def _add(self, platform: str, name: str | None, table: Table, path: KeyPath) -> None:
        reading, key = self._reading, runtime_key(platform, name)
        renamed = self._fill(platform, name, table, path)
        missing = [credential for credential in _CREDENTIALS[platform] if not table.get(credential)]
        if missing:
            reasons = [self._why_missing(platform, name, credential, path) for credential in missing]
            self._leave_out(key, path, " and ".join(reasons), is_quiet=table.get("enabled") is False)
            return
        if platform == "webhook" and "enabled" not in table:
            reading.warn(f"'{reading.name(path)}' does not listen: set enabled = true")
        self._check_commands(platform, table, path)
        account = reading.validate(_MODELS[platform], table, path, renamed=renamed)
        if account is None:
            return
        if (reason := self._why_unusable(account, key)) is not None:
            self._leave_out(key, path, reason)
        else:
            self._check_shapes(platform, table, path)
            if not isinstance(account, WebhookAccount):
                _check_people(reading, platform, account.dm_allowed_users, reading.name(path))
            self.found[platform].append(account)

    def _fill(self, platform: str, name: str | None, table: Table, path: KeyPath) -> dict[str, KeyPath]:
        """Put in what the environment has for keys that the file has not; returns where those came from."""
        reading = self._reading
        variables = {**_PROXIES[platform], **(_CREDENTIALS[platform] if name is None else {})}
        renamed: dict[str, KeyPath] = {}
        for key, variable in variables.items():
            if table.get(key) is None and (given := reading.environ.get(variable, "").strip()):
                table[key] = given
                renamed[key] = ("", variable)
                reading.origins[(*path, key)] = variable
                reading.unresolved.pop((*path, key), None)
        for key in _CREDENTIALS[platform]:
            if isinstance(value := table.get(key), str):
                table[key] = value.strip()
                if "token" in key:
                    register_secret(value.strip())
                    register_secret(value.strip().removeprefix("oauth:"))
        return renamed

    def _why_missing(self, platform: str, name: str | None, credential: str, path: KeyPath) -> str:
        unset = self._reading.unresolved.pop((*path, credential), None)
        if unset is not None:
            return f"{credential} is given, but {unset}"
        if name is not None:
            return f"it has no {credential}"
        return f"it has no {credential} (give it there or in {_CREDENTIALS[platform][credential]})"

    def _leave_out(self, key: str, path: KeyPath, reason: str, *, is_quiet: bool = False) -> None:
        self.absent[key] = reason
        if not is_quiet:
            self._reading.warn(f"'{self._reading.name(path)}' is not connected: {reason}")

    def _why_unusable(self, account: AnyAccount, key: str) -> str | None:
        secret = ""
        if isinstance(account, DiscordAccount | TelegramAccount):
            secret = account.token.get_secret_value()
        elif isinstance(account, SlackAccount):
            secret = account.app_token.get_secret_value()
        elif isinstance(account, TwitchAccount):
            secret = account.username
        if isinstance(account, DiscordAccount) and not _is_bot_token(secret):
            return (
                "its token has not the form of a bot token (three parts with dots between them); copy it once more "
                "from the page 'Bot' of the developer portal, not the client secret or the public key"
            )
        platform = key.partition(":")[0]
        if account.enabled and secret and (other := self._secrets.setdefault((platform, secret), key)) != key:
            return f"it is the same account as {other!r}; one connection is enough"
        return None

    def _check_shapes(self, platform: str, table: Table, path: KeyPath) -> None:
        for (of_platform, key), (shape, words) in _SHAPES.items():
            if of_platform == platform and not shape.match(str(table[key])):
                self._reading.warn(f"'{self._reading.name((*path, key))}' will hardly work: {words}")

    def _check_commands(self, platform: str, table: Table, path: KeyPath) -> None:
        """Leave out slash commands of agents that do not exist."""
        if platform != "slack" or not isinstance(commands := table.get("commands"), list):
            return
        kept = []
        for i, entry in enumerate(commands):
            place: KeyPath = (*path, "commands", i)
            if not isinstance(entry, dict):
                kept.append(entry)  # the model says what is wrong with it
                continue
            own = self._reading.known_keys(entry, SlackCommand.model_fields, (), place)
            if isinstance(agent_id := own.get("agent_id"), str) and agent_id not in self._agent_ids:
                self._reading.warn(f"'{self._reading.name(place)}' is left out: {_no_agent(agent_id, self._agent_ids)}")
            else:
                kept.append(own)
        table["commands"] = kept


def read_bindings(
    reading: Reading, tables: Table, agents: Sequence[AgentConfig], messaging: MessagingConfig
) -> tuple[BindingConfig, ...]:
    """The bindings of platforms that are configured, in order."""
    entries = tables.get("bindings", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        reading.problem(("bindings",), "must be a list of tables; write [[bindings]] with two brackets")
        return ()
    agent_ids = {agent.id for agent in agents}
    keys = {key for _, key, _ in messaging.accounts()} | {"webchat"}
    bindings: list[BindingConfig] = []
    for i, entry in enumerate(entries):
        binding = _read_binding(reading, entry, ("bindings", i))
        if binding is None:
            continue
        name = reading.name(("bindings", i))
        if (known := next((key for key in keys if key.lower() == binding.adapter_key.lower()), None)) is None:
            why = "cannot be used" if binding.adapter_key in messaging.absent else "is not configured"
            reading.warn(f"'{name}' has no effect: {binding.adapter_key!r} {why}")
            continue
        if known != binding.adapter_key:  # the owner's capitals differ
            binding = binding.model_copy(update={"adapter": known})
        if binding.agent_id not in agent_ids:
            reading.warn(f"'{name}' leads nowhere: {_no_agent(binding.agent_id, agent_ids)}")
            binding = binding.model_copy(update={"is_served": False})
        _check_scope(reading, binding, name)
        _check_joined(reading, binding, messaging, name)
        _check_people(reading, binding.channel, binding.dm_allowed_users, name)
        bindings.append(binding)
    return tuple(bindings)


def _read_binding(reading: Reading, entry: Table, path: KeyPath) -> BindingConfig | None:
    table = reading.known_keys(entry, BindingConfig.model_fields.keys() - {"is_served"}, _UNUSED_BINDING, path)
    channel = table.get("channel")
    if isinstance(channel, str):
        channel = table["channel"] = channel.strip().lower()
        platforms = get_args(Platform)
        if channel in _UNUSED_PLATFORMS:
            reading.warn(f"'{reading.name(path)}' has no effect in this version: there is no {channel!r} yet")
            return None
        if channel not in platforms:
            near = difflib.get_close_matches(channel[:100], platforms, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(platforms)}"
            reading.warn(f"'{reading.name(path)}' has no effect: {brief(channel)} is no platform; {hint}")
            return None
    return reading.validate(BindingConfig, table, path)


def _check_scope(reading: Reading, binding: BindingConfig, name: str) -> None:
    """Tell of ids that can never match."""
    for key, platform in _SCOPES.items():
        value = getattr(binding, key)
        if value is None:
            continue
        if platform != binding.channel:
            reading.warn(f"'{name}.{key}' never matches: {binding.channel} has no such thing")
        elif platform == "discord" and not value.isdecimal():
            what = "a server's id is a number (developer mode, right click on the server, Copy Server ID)"
            reading.warn(f"'{name}.{key}' = {brief(value)} never matches: {what}; nobody is answered there until then")
    for value in binding.channel_ids:
        if binding.channel == "discord" and not value.isdecimal():
            reading.warn(f"'{name}.channel_ids' holds {brief(value)}, which never matches: a channel's id is a number")
        elif binding.channel == "slack" and value.startswith("#"):
            what = "give the id, such as 'C0123456789' (below the channel's details)"
            reading.warn(f"'{name}.channel_ids' holds {brief(value)}, which never matches: {what}")


def _check_joined(reading: Reading, binding: BindingConfig, messaging: MessagingConfig, name: str) -> None:
    """Tell of chats that the account never joins."""
    account = messaging.account(binding.adapter_key)
    if not isinstance(account, TwitchAccount):
        return
    for login in binding.channel_ids:
        if login.lstrip("#").lower() not in account.channels:
            where = f"messaging.{binding.channel}{'' if account.name is None else f' instance {account.name!r}'}"
            reading.warn(
                f"'{name}.channel_ids' holds {brief(login)}, which is not joined: add it to channels of {where}"
            )


def _check_people(reading: Reading, platform: str, people: Sequence[str], name: str) -> None:
    """Tell of names where only numbers identify somebody."""
    if platform not in ("discord", "telegram"):
        return
    for person in people:
        if person != ANYBODY and not person.isdecimal():
            what = "give the person's number, which /whoami shows"
            reading.warn(f"'{name}.dm_allowed_users' holds {brief(person)}, which never matches: {what}")


def _no_agent(agent_id: str, known: set[str]) -> str:
    if near := difflib.get_close_matches(agent_id[:100], known, n=1, cutoff=0.6):
        return f"there is no agent {brief(agent_id)}; did you mean {near[0]!r}?"
    return f"there is no agent {brief(agent_id)}; there are: {', '.join(sorted(known)) or 'none'}"


def _is_bot_token(token: str) -> bool:
    """Whether a Discord token has its form: the bot's id in base64, a time, a signature."""
    first, *rest = token.split(".")
    if len(rest) != 2 or not all(rest):
        return False
    try:
        return base64.b64decode(first + "=" * (-len(first) % 4), altchars=b"-_", validate=True).isdigit()
    except (binascii.Error, ValueError):
        return False


def _forget_below(reading: Reading, place: KeyPath) -> None:
    """Say nothing of values that led nowhere in a table that is not used."""
    for path in [path for path in reading.unresolved if path[: len(place)] == place]:
        del reading.unresolved[path]
