"""`[messaging.*]` and `[[bindings]]` as frozen models: who connects where, and which agent answers.

An account is one table: the platform's own (its runtime key is the platform's name), or one of its `instances`
(`platform:name`). Names, ids and people are texts here, whatever the file had.

Floor:  config
Source: messaging spec 9, 10 and 15; control spec 1.6 and 1.7
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, WithJsonSchema, field_validator, model_validator

from spacebot.config.tables import Table, is_loopback_address, is_url

ANYBODY = "*"
PLATFORMS = ("discord", "slack", "telegram", "twitch", "webhook")  # those with accounts, in the order people see


def _to_text(value: object) -> object:
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _to_login(value: object) -> object:
    return value.strip().lstrip("#@").lower() if isinstance(value, str) else value


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 200}, {"type": "integer"}]}
Id = Annotated[str, BeforeValidator(_to_text), Field(min_length=1, max_length=200), WithJsonSchema(_TEXT_OR_NUMBER)]
Login = Annotated[str, BeforeValidator(_to_login), Field(min_length=1, max_length=100)]
Platform = Literal["discord", "slack", "telegram", "twitch", "webhook", "webchat"]


class Account(Table):
    """What every account has."""

    name: str | None = Field(
        default=None, description="Name of an instance; the platform's own table has none.", examples=["second"]
    )
    enabled: bool = Field(default=True, description="Whether the account is connected.")
    streaming: bool = Field(
        default=True, description="Show longer answers while they grow, where the platform lets messages be edited."
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and (
            not value or value != value.strip() or ":" in value or value.lower() == "default" or len(value) > 64
        ):
            raise ValueError("must be 1 to 64 characters without ':' and outer blanks, and not 'default'")
        return value


class DiscordAccount(Account):
    """`[messaging.discord]`: a bot at Discord."""

    token: SecretStr = Field(
        description="Token of the bot; the variable DISCORD_BOT_TOKEN stands in for it.",
        examples=["env:DISCORD_BOT_TOKEN"],
    )
    dm_allowed_users: tuple[Id, ...] = Field(
        default=(),
        description='Ids of people who may write directly; with none nobody may, "*" is anybody.',
        examples=[["123456789012345678"]],
    )
    allow_bot_messages: bool = Field(default=False, description="Whether other bots are listened to.")
    rest_url: str | None = Field(
        default=None, description="Address of a proxy.", examples=["http://127.0.0.1:8080/api/v10"]
    )

    _urls = field_validator("rest_url")(is_url)


class SlackCommand(Table):
    """`[[messaging.slack.commands]]`: a slash command and the agent that answers it."""

    command: str = Field(description="The command.", examples=["/ask"])
    agent_id: str = Field(description="The agent that answers it.", examples=["main"])
    description: str = Field(default="", description="What it does, for people.")


class SlackAccount(Account):
    """`[messaging.slack]`: an app in a Slack workspace."""

    bot_token: SecretStr = Field(
        description="The bot's token (xoxb-…); the variable SLACK_BOT_TOKEN stands in for it.",
        examples=["env:SLACK_BOT_TOKEN"],
    )
    app_token: SecretStr = Field(
        description="The app's token for socket mode (xapp-…); the variable SLACK_APP_TOKEN stands in for it.",
        examples=["env:SLACK_APP_TOKEN"],
    )
    dm_allowed_users: tuple[Id, ...] = Field(
        default=(),
        description='Ids of people who may write directly; with none nobody may, "*" is anybody.',
        examples=[["U0123456789"]],
    )
    allow_bot_messages: bool = Field(default=False, description="Whether other bots are listened to.")
    commands: tuple[SlackCommand, ...] = Field(default=(), description="Slash commands.")
    api_url: str | None = Field(
        default=None, description="Address of a proxy.", examples=["http://127.0.0.1:8080/api/"]
    )

    _urls = field_validator("api_url")(is_url)


class TelegramAccount(Account):
    """`[messaging.telegram]`: a bot at Telegram."""

    token: SecretStr = Field(
        description="Token of the bot; the variable TELEGRAM_BOT_TOKEN stands in for it.",
        examples=["env:TELEGRAM_BOT_TOKEN"],
    )
    dm_allowed_users: tuple[Id, ...] = Field(
        default=(),
        description="Ids of people who may write directly; with none anybody may.",
        examples=[["123456789"]],
    )
    allow_bot_messages: bool = Field(default=False, description="Whether other bots are listened to.")
    api_url: str | None = Field(
        default=None, description="Address of a Bot API server of your own.", examples=["http://127.0.0.1:8081"]
    )
    file_url: str | None = Field(
        default=None,
        description="Where its files are, when not under api_url and /file.",
        examples=["http://127.0.0.1:8081/file"],
    )

    _urls = field_validator("api_url", "file_url")(is_url)


class TwitchAccount(Account):
    """`[messaging.twitch]`: an account in Twitch's chat."""

    username: Login = Field(
        description="Login of the account; the variable TWITCH_BOT_USERNAME stands in for it.", examples=["my_bot"]
    )
    oauth_token: SecretStr = Field(
        description="Its token, with or without oauth:; the variable TWITCH_OAUTH_TOKEN stands in for it.",
        examples=["env:TWITCH_OAUTH_TOKEN"],
    )
    channels: tuple[Login, ...] = Field(default=(), description="Channels that are joined.", examples=[["my_channel"]])
    trigger_prefix: str | None = Field(
        default=None, description="Only messages that begin with this are for the agent.", examples=["!bot"]
    )
    dm_allowed_users: tuple[Id, ...] = Field(
        default=(), description="Logins that are listened to; with none everybody is.", examples=[["ann"]]
    )
    allow_bot_messages: bool = Field(default=False, description="Whether other bots are listened to.")
    host: str = Field(default="irc.chat.twitch.tv", description="Host of the chat.")
    port: int = Field(default=6697, ge=1, le=65535, description="Port of the chat.")
    tls: bool = Field(default=True, description="Whether the connection is encrypted.")


class WebhookAccount(Account):
    """`[messaging.webhook]`: a small server of its own for programs."""

    # It has no credentials whose presence could mean yes.
    enabled: bool = Field(default=False, description="Whether the server runs.")
    bind: str = Field(default="127.0.0.1", description="Address to listen on; beyond this machine it needs auth_token.")
    port: int = Field(default=18789, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    auth_token: SecretStr | None = Field(
        default=None, description="Bearer token that callers must send.", examples=["secret:webhook_token"]
    )
    callback_url: str | None = Field(
        default=None,
        description="Where answers are posted to; left out, callers fetch them.",
        examples=["https://example.org/answers"],
    )

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
    """`[[bindings]]`: which agent answers where. The first that matches wins.

    Args:
        is_served: whether its agent exists. One whose agent does not exist leads nowhere, but still says where the
            account may be used: leaving it out would open every other room. Set by the reader, not by the file.
    """

    agent_id: str = Field(description="The agent that answers.", examples=["main"])
    channel: Platform = Field(description="The platform.", examples=["discord"])
    adapter: str | None = Field(
        default=None, description="Name of an instance; left out, the platform's own account.", examples=["second"]
    )
    guild_id: Id | None = Field(
        default=None, description="Only in this server of Discord.", examples=["123456789012345678"]
    )
    workspace_id: Id | None = Field(
        default=None, description="Only in this workspace of Slack.", examples=["T0123456789"]
    )
    chat_id: Id | None = Field(default=None, description="Only in this chat of Telegram.", examples=["-1001234567890"])
    channel_ids: tuple[Id, ...] = Field(
        default=(), description="Only in these channels and their threads.", examples=[["123456789012345678"]]
    )
    require_mention: bool = Field(
        default=False,
        description="Answer only who mentions or replies to the agent; the rest is kept as context. Direct chats are "
        "exempt.",
    )
    dm_allowed_users: tuple[Id, ...] = Field(
        default=(),
        description="People who may write directly, beside those of the account.",
        examples=[["123456789012345678"]],
    )
    authority: tuple[Id, ...] | None = Field(
        default=None,
        description="Who may give control commands; left out the moderators, with an empty list everybody.",
        examples=[["123456789012345678"]],
    )
    is_served: bool = True

    @property
    def adapter_key(self) -> str:
        """The runtime key that it speaks of."""
        if self.adapter is None or self.adapter == self.channel:
            return self.channel
        return self.adapter if self.adapter.startswith(f"{self.channel}:") else f"{self.channel}:{self.adapter}"
