"""`[messaging.*]` and `[[bindings]]` as frozen models: who connects where, and which agent answers.

An account is one table: the platform's own (its runtime key is the platform's name), or one of its `instances`
(`platform:name`). Names, ids and people are texts here, whatever the file had.

Floor:  config
Source: messaging spec 9, 10 and 15; control spec 1.6 and 1.7
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from spacebot.config.tables import Table, is_loopback_address, is_url

ANYBODY = "*"
PLATFORMS = ("discord", "slack", "telegram", "twitch", "webhook")  # those with accounts, in the order people see


def _to_text(value: object) -> object:
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _to_login(value: object) -> object:
    return value.strip().lstrip("#@").lower() if isinstance(value, str) else value


Id = Annotated[str, BeforeValidator(_to_text), Field(min_length=1, max_length=200)]
Login = Annotated[str, BeforeValidator(_to_login), Field(min_length=1, max_length=100)]
Platform = Literal["discord", "slack", "telegram", "twitch", "webhook", "webchat"]


class Account(Table):
    """What every account has."""

    name: str | None = None  # of an instance; None for the platform's own table
    enabled: bool = True
    streaming: bool = True  # show longer answers while they grow, where the platform lets messages be edited

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and (
            not value or value != value.strip() or ":" in value or value.lower() == "default" or len(value) > 64
        ):
            raise ValueError("must be 1 to 64 characters without ':' and outer blanks, and not 'default'")
        return value


class DiscordAccount(Account):
    """`[messaging.discord]`."""

    token: SecretStr
    dm_allowed_users: tuple[Id, ...] = ()  # empty: direct messages are ignored; "*": from anybody
    allow_bot_messages: bool = False
    rest_url: str | None = None  # of a proxy, such as http://127.0.0.1:8080/api/v10

    _urls = field_validator("rest_url")(is_url)


class SlackCommand(Table):
    """A slash command and the agent that answers it."""

    command: str
    agent_id: str
    description: str = ""


class SlackAccount(Account):
    """`[messaging.slack]`."""

    bot_token: SecretStr  # xoxb-
    app_token: SecretStr  # xapp-
    dm_allowed_users: tuple[Id, ...] = ()  # empty: direct messages are ignored; "*": from anybody
    allow_bot_messages: bool = False
    commands: tuple[SlackCommand, ...] = ()
    api_url: str | None = None  # of a proxy, such as http://127.0.0.1:8080/api/

    _urls = field_validator("api_url")(is_url)


class TelegramAccount(Account):
    """`[messaging.telegram]`."""

    token: SecretStr
    dm_allowed_users: tuple[Id, ...] = ()  # empty: anybody may write
    allow_bot_messages: bool = False
    api_url: str | None = None  # of a self-hosted Bot API server, such as http://127.0.0.1:8081
    file_url: str | None = None  # where its files are, when not under api_url + /file

    _urls = field_validator("api_url", "file_url")(is_url)


class TwitchAccount(Account):
    """`[messaging.twitch]`."""

    username: Login
    oauth_token: SecretStr  # with or without "oauth:"
    channels: tuple[Login, ...] = ()  # with or without '#'
    trigger_prefix: str | None = None  # only messages that begin with it; empty: all
    dm_allowed_users: tuple[Id, ...] = ()  # logins that are listened to; empty: everybody
    allow_bot_messages: bool = False
    host: str = "irc.chat.twitch.tv"
    port: int = Field(default=6697, ge=1, le=65535)
    tls: bool = True


class WebhookAccount(Account):
    """`[messaging.webhook]`: a small server of its own for programs."""

    enabled: bool = False  # it has no credentials whose presence could mean yes
    bind: str = "127.0.0.1"
    port: int = Field(default=18789, ge=0, le=65535)
    auth_token: SecretStr | None = None
    callback_url: str | None = None  # where answers are posted to; without it they are fetched

    _urls = field_validator("callback_url")(is_url)

    @field_validator("auth_token")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            raise ValueError("must not be empty; leave it out where only this machine can connect")
        return value

    @model_validator(mode="after")
    def _open_needs_token(self) -> Self:
        if self.enabled and self.auth_token is None and not is_loopback_address(self.bind):
            raise ValueError("a bind other than loopback needs auth_token, or anybody could speak to the agent")
        return self


AnyAccount = DiscordAccount | SlackAccount | TelegramAccount | TwitchAccount | WebhookAccount


class MessagingConfig(Table):
    """`[messaging]`: every account, the platform's own first. Accounts without credentials are not in here.

    Args:
        absent: runtime key of an account that stands in the file and cannot be used -> why.
    """

    discord: tuple[DiscordAccount, ...] = ()
    slack: tuple[SlackAccount, ...] = ()
    telegram: tuple[TelegramAccount, ...] = ()
    twitch: tuple[TwitchAccount, ...] = ()
    webhook: tuple[WebhookAccount, ...] = ()
    absent: dict[str, str] = Field(default={})

    def accounts(self) -> Iterator[tuple[str, str, AnyAccount]]:
        """Every account with its platform and its runtime key, enabled or not."""
        for platform in PLATFORMS:
            for account in getattr(self, platform):
                yield platform, runtime_key(platform, account.name), account

    def account(self, key: str) -> AnyAccount | None:
        """The account of a runtime key."""
        return next((account for _, known, account in self.accounts() if known == key), None)


def runtime_key(platform: str, name: str | None) -> str:
    """What an account is called while it runs."""
    return platform if name is None else f"{platform}:{name}"


class BindingConfig(Table):
    """`[[bindings]]`: which agent a conversation belongs to. The first that matches wins.

    Args:
        is_served: whether its agent exists. One whose agent does not exist leads nowhere, but still says where the
            account may be used: leaving it out would open every other room. Set by the reader, not by the file.
    """

    agent_id: str
    channel: Platform
    adapter: str | None = None  # an instance's name or runtime key; None: the platform's own account
    guild_id: Id | None = None
    workspace_id: Id | None = None
    chat_id: Id | None = None
    channel_ids: tuple[Id, ...] = ()
    require_mention: bool = False  # otherwise kept as context, not answered; direct chats are exempt
    dm_allowed_users: tuple[Id, ...] = ()
    authority: tuple[Id, ...] | None = None  # who may give control commands; None: moderators; empty: everybody
    is_served: bool = True

    @property
    def adapter_key(self) -> str:
        """The runtime key that it speaks of."""
        if self.adapter is None or self.adapter == self.channel:
            return self.channel
        return self.adapter if self.adapter.startswith(f"{self.channel}:") else f"{self.channel}:{self.adapter}"
