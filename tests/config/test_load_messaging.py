"""Accounts and bindings: from file and environment to what the program connects."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from spacebot.base import redaction
from spacebot.base.errors import ConfigError
from spacebot.config.load import LoadedConfig, load_config

TOKEN = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
OTHER = "MTA5NDQ2NzE4MjQ1Njc4OTAxMw.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
TWO_AGENTS = '[[agents]]\nid = "main"\n[[agents]]\nid = "research"\n'


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, environ: Mapping[str, str] | None = None) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load_config(path, environ=environ or {})

    return load


def keys(loaded: LoadedConfig) -> list[str]:
    return [key for _, key, _ in loaded.config.messaging.accounts()]


def told(loaded: LoadedConfig) -> list[str]:
    return [re.sub(r"^\S*config\.toml: ", "", warning) for warning in loaded.warnings]


@pytest.mark.spec("messaging 15: credentials from the environment", "C-20")
def test_every_platform_takes_its_credentials_from_the_environment_where_the_key_is_absent(load) -> None:
    environ = {
        "DISCORD_BOT_TOKEN": TOKEN,
        "SLACK_BOT_TOKEN": "xoxb-123456789",
        "SLACK_APP_TOKEN": "xapp-123456789",
        "TELEGRAM_BOT_TOKEN": "123:environment",
        "TWITCH_BOT_USERNAME": "SpaceBot",
        "TWITCH_OAUTH_TOKEN": "oauth:secretive",
    }
    loaded = load(
        "[messaging.discord]\n[messaging.slack]\n[messaging.telegram]\ntoken = '9:from_file'\n[messaging.twitch]",
        environ,
    )

    assert keys(loaded) == ["discord", "slack", "telegram", "twitch"]
    assert loaded.warnings == ()
    messaging = loaded.config.messaging
    assert messaging.telegram[0].token.get_secret_value() == "9:from_file"
    assert messaging.twitch[0].username == "spacebot"
    assert all(account.enabled for _, _, account in messaging.accounts())
    assert "secretive" not in redaction.scrub("PASS secretive")
    assert not any(token in repr(loaded.config) for token in (TOKEN, "xoxb-", "xapp-", "9:from", "secretive"))


@pytest.mark.spec("control 1.8")
def test_without_a_file_a_token_in_the_environment_is_enough_and_half_of_one_is_told(tmp_path: Path) -> None:
    environ = {"TELEGRAM_BOT_TOKEN": "123:abc", "SLACK_BOT_TOKEN": "xoxb-1"}
    loaded = load_config(tmp_path / "config.toml", environ=environ)

    assert keys(loaded) == ["telegram"]
    assert told(loaded) == [
        "'messaging.slack' is not connected: it has no app_token (give it there or in SLACK_APP_TOKEN)"
    ]
    assert load_config(tmp_path / "config.toml", environ={}).warnings == ()


def test_with_a_file_a_platform_needs_its_table(load) -> None:
    assert keys(load("", {"TELEGRAM_BOT_TOKEN": "123:abc"})) == []


@pytest.mark.spec("messaging 15: an unresolved credential makes the section count as absent")
def test_a_credential_that_leads_nowhere_leaves_the_account_out_and_says_so(load) -> None:
    loaded = load(
        """
        [messaging.discord]
        token = "env:NOT_SET"
        [messaging.slack]
        bot_token = "xoxb-1"
        app_token = "secret:gone"
        [messaging.telegram]
        enabled = false
        [messaging.twitch]
        username = ""
        oauth_token = "x"
        """
    )

    assert keys(loaded) == []
    assert told(loaded) == [
        "'messaging.discord' is not connected: token is given, but environment variable NOT_SET is not set",
        "'messaging.slack' is not connected: app_token is given, but the secret store has no 'gone'",
        "'messaging.twitch' is not connected: it has no username (give it there or in TWITCH_BOT_USERNAME)",
    ]
    assert list(loaded.config.messaging.absent) == ["discord", "slack", "telegram", "twitch"]


@pytest.mark.parametrize("token", ["abc", "a.b", "not-an-id.b.c", "MTIz..c", "x" * 64, "MTIz.b.c.d", "!!!.b.c"])
def test_a_discord_token_of_the_wrong_form_concerns_that_account_alone(load, token: str) -> None:
    loaded = load(f"[messaging.discord]\ntoken = '{token}'\n[messaging.telegram]\ntoken = '1:a'")

    assert keys(loaded) == ["telegram"]
    (warning,) = loaded.warnings
    assert "'messaging.discord' is not connected: its token has not the form of a bot token" in warning
    assert token not in warning


def test_named_instances_are_accounts_of_their_own(load) -> None:
    loaded = load(
        f"""
        [messaging.discord]
        token = "{TOKEN}"
        dm_allowed_users = [1, "2"]
        [[messaging.discord.instances]]
        name = "ops"
        token = "{OTHER}"
        allow_bot_messages = true
        [[messaging.discord.instances]]
        name = "Ops"
        token = "env:UNSET"
        [[messaging.discord.instances]]
        name = "twin"
        token = "{TOKEN}"
        [[messaging.discord.instances]]
        name = "empty"
        [[messaging.telegram.instances]]
        name = "only"
        token = "1:a"
        """,
        {"TELEGRAM_BOT_TOKEN": "2:b"},
    )

    assert keys(loaded) == ["discord", "discord:ops", "telegram:only"]
    assert loaded.config.messaging.account("discord").dm_allowed_users == ("1", "2")
    assert loaded.config.messaging.account("discord:ops").allow_bot_messages
    assert told(loaded) == [
        "'messaging.discord.instances[#2]' is left out: an instance 'Ops' is there already",
        "'messaging.discord.instances[#3]' is not connected: it is the same account as 'discord'; "
        "one connection is enough",
        "'messaging.discord.instances[#4]' is not connected: it has no token",
    ]


@pytest.mark.parametrize("name", ["", " a", "a:b", "Default"])
def test_an_instance_needs_a_name_that_can_stand_in_an_address(load, name: str) -> None:
    with pytest.raises(ConfigError, match=r"messaging\.telegram\.instances\[#1\]\.name"):
        load(f"[[messaging.telegram.instances]]\nname = '{name}'\ntoken = '1:a'")


def test_endpoints_come_from_file_or_environment_and_wrong_ones_are_named(load) -> None:
    environ = {
        "SPACEBOT_TELEGRAM_API_URL": "http://127.0.0.1:1/",
        "SPACEBOT_TWITCH_HOST": "127.0.0.1",
        "SPACEBOT_TWITCH_PORT": "6667",
        "SPACEBOT_TWITCH_TLS": "false",
    }
    text = """
        [messaging.telegram]
        token = "1:a"
        file_url = "http://files.example"
        [messaging.twitch]
        username = "bot"
        oauth_token = "x"
        channels = ["#Ann", "bob"]
        port = 7000
        """
    telegram, twitch = (account for _, _, account in load(text, environ).config.messaging.accounts())

    assert (telegram.api_url, telegram.file_url) == ("http://127.0.0.1:1", "http://files.example")
    assert (twitch.host, twitch.port, twitch.tls, twitch.channels) == ("127.0.0.1", 7000, False, ("ann", "bob"))
    with pytest.raises(ConfigError, match=r"SPACEBOT_TELEGRAM_API_URL = 'ftp://x': must be an absolute http"):
        load(text, {"SPACEBOT_TELEGRAM_API_URL": "ftp://x"})


def test_what_has_no_effect_and_what_is_misspelt_is_told(load) -> None:
    loaded = load(
        """
        [messaging.email]
        imap_password = "env:UNSET"
        [messaging.discrod]
        token = "x"
        [messaging.slack]
        bot_token = "xapp-swapped"
        app_token = "xoxb-swapped"
        dm_allowed = ["U1"]
        [[messaging.slack.commands]]
        command = "/ask"
        agent_id = "man"
        [[messaging.slack.commands]]
        command = "/do"
        agent_id = "main"
        descripton = "x"
        [messaging.webhook]
        port = 1
        [[bindings]]
        agent_id = "main"
        channel = "webhook"
        team_id = "t"
        """
    )

    assert told(loaded) == [
        "table 'messaging.email' has no effect in this version",
        "unknown key 'messaging.discrod' is ignored; did you mean 'discord'?",
        "unknown key 'messaging.slack.dm_allowed' is ignored; did you mean 'dm_allowed_users'?",
        "'messaging.slack.commands[#1]' is left out: there is no agent 'man'; did you mean 'main'?",
        "unknown key 'messaging.slack.commands[#2].descripton' is ignored; did you mean 'description'?",
        "'messaging.slack.bot_token' will hardly work: a bot token begins with 'xoxb-'",
        "'messaging.slack.app_token' will hardly work: an app token begins with 'xapp-'",
        "'messaging.webhook' does not listen: set enabled = true",
        "key 'bindings[#1].team_id' has no effect in this version",
    ]
    assert [command.command for command in loaded.config.messaging.slack[0].commands] == ["/do"]
    assert not loaded.config.messaging.webhook[0].enabled


@pytest.mark.spec("messaging 19: 33", "D-33", "C-6")
def test_a_binding_that_leads_nowhere_is_told_and_changes_nothing_else(load) -> None:
    loaded = load(
        f"""
        {TWO_AGENTS}
        [messaging.discord]
        token = "{TOKEN}"
        [[messaging.discord.instances]]
        name = "Ops"
        token = "{OTHER}"
        [[bindings]]
        agent_id = "reserch"
        channel = "discord"
        guild_id = 1
        [[bindings]]
        agent_id = "research"
        channel = "Discord"
        adapter = "ops"
        channel_ids = ["general", 7]
        [[bindings]]
        agent_id = "main"
        channel = "slack"
        [[bindings]]
        agent_id = "main"
        channel = "discord"
        adapter = "discord:gone"
        [[bindings]]
        agent_id = "main"
        channel = "mattermost"
        [[bindings]]
        agent_id = "main"
        channel = "telegrm"
        [[bindings]]
        agent_id = "main"
        channel = "discord"
        chat_id = -100
        """
    )

    assert [(b.agent_id, b.adapter_key, b.is_served) for b in loaded.config.bindings] == [
        ("reserch", "discord", False),
        ("research", "discord:Ops", True),
        ("main", "discord", True),
    ]
    assert [b.guild_id or b.channel_ids or b.chat_id for b in loaded.config.bindings] == ["1", ("general", "7"), "-100"]
    assert told(loaded) == [
        "'bindings[#1]' leads nowhere: there is no agent 'reserch'; did you mean 'research'?",
        "'bindings[#2].channel_ids' holds 'general', which never matches: a channel's id is a number",
        "'bindings[#3]' has no effect: 'slack' is not configured",
        "'bindings[#4]' has no effect: 'discord:gone' is not configured",
        "'bindings[#5]' has no effect in this version: there is no 'mattermost' yet",
        "'bindings[#6]' has no effect: 'telegrm' is no platform; did you mean 'telegram'?",
        "'bindings[#7].chat_id' never matches: discord has no such thing",
    ]


def test_people_and_rooms_that_can_never_match_are_told(load) -> None:
    loaded = load(
        """
        [messaging.telegram]
        token = "1:a"
        dm_allowed_users = ["@ann", 7, "*"]
        [messaging.twitch]
        username = "bot"
        oauth_token = "x"
        channels = ["stage"]
        dm_allowed_users = ["ann"]
        [[bindings]]
        agent_id = "main"
        channel = "telegram"
        dm_allowed_users = ["bob"]
        [[bindings]]
        agent_id = "main"
        channel = "twitch"
        channel_ids = ["#Stage", "kitchen"]
        """
    )

    assert told(loaded) == [
        "'messaging.telegram.dm_allowed_users' holds '@ann', which never matches: "
        "give the person's number, which /whoami shows",
        "'bindings[#1].dm_allowed_users' holds 'bob', which never matches: "
        "give the person's number, which /whoami shows",
        "'bindings[#2].channel_ids' holds 'kitchen', which is not joined: add it to channels of messaging.twitch",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[bindings]\nagent_id = 'main'", "bindings: must be a list of tables; write [[bindings]] with two brackets"),
        ("[[bindings]]\nchannel = 'webchat'", "bindings[#1].agent_id: is missing"),
        ("[[bindings]]\nagent_id = 'main'", "bindings[#1].channel: is missing"),
        ("[[bindings]]\nagent_id = 'main'\nchannel = 'webchat'\nis_served = false\nchannel_ids = 3", "must be a list"),
        ("[messaging.discord.instances]\nname = 'x'", "write [[messaging.discord.instances]] with two brackets"),
        ("[[messaging.discord.instances]]\ntoken = 'x'", "messaging.discord.instances[#1].name: is missing"),
        ("[messaging.telegram]\ntoken = 5", "messaging.telegram.token = (hidden): must be text"),
        ("[messaging]\ntelegram = 5", "messaging.telegram = 5: must be a table"),
        ("[messaging.telegram]\ntoken = '1:a'\ndm_allowed_users = [true]", "dm_allowed_users[#1] = true: must be text"),
        ("[messaging.webhook]\nenabled = true\nbind = '0.0.0.0'", "needs auth_token"),
    ],
)
def test_a_wrong_table_is_a_problem_with_its_place(load, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(text)
