"""Without a file the environment sets everything up; beside a file it fills what is left open."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from spacebot.base.errors import ConfigError
from spacebot.config.edit import ConfigEditor
from spacebot.config.environment import CONTAINER_VARIABLES, VARIABLES, deployment, max_agents
from spacebot.config.load import LoadedConfig, load_config

TOKEN = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
CONTAINER = {
    "SPACEBOT_DEPLOYMENT": "docker",
    "SPACEBOT_API_TOKEN": "token-of-the-owner",
    "OPENROUTER_API_KEY": "or-key-1234567",
    "DISCORD_BOT_TOKEN": TOKEN,
    "DISCORD_GUILD_ID": "111, 222",
    "DISCORD_CHANNEL_IDS": "5,6",
    "DISCORD_DM_ALLOWED_USERS": " 7 ,, 8 ",
    "SLACK_BOT_TOKEN": "xoxb-1",
    "SLACK_APP_TOKEN": "xapp-1",
    "SLACK_WORKSPACE_ID": "T1",
    "TELEGRAM_BOT_TOKEN": "12:abc-defg",
    "TELEGRAM_CHAT_ID": "-100",
    "TWITCH_BOT_USERNAME": "bot",
    "TWITCH_OAUTH_TOKEN": "oauth:xyzxyz",
    "TWITCH_CHANNELS": "stage",
    "TWITCH_TRIGGER_PREFIX": "!b",
    "WEBHOOK_ENABLED": "1",
    "WEBHOOK_AUTH_TOKEN": "hook-of-the-owner",
}


def without_file(folder: Path, environ: Mapping[str, str]) -> LoadedConfig:
    return load_config(folder / "config.toml", environ=environ)


@pytest.mark.spec("control 1.8")
def test_models_come_from_the_environment_the_narrower_variable_first(tmp_path: Path) -> None:
    routing = (
        without_file(tmp_path, {"ANTHROPIC_MODEL": "claude-x", "ANTHROPIC_API_KEY": "k" * 12}).config.agents[0].routing
    )
    assert {routing.channel, routing.branch, routing.worker, routing.compactor, routing.cortex} == {
        "anthropic/claude-x"
    }
    environ = {
        "ANTHROPIC_MODEL": "claude-x", "SPACEBOT_MODEL": "demo/m", "SPACEBOT_CHANNEL_MODEL": "demo/c",
        "SPACEBOT_VOICE_MODEL": "openai/whisper-1",
    }  # fmt: skip
    routing = without_file(tmp_path, environ).config.agents[0].routing
    assert (routing.channel, routing.branch, routing.worker, routing.voice) == (
        "demo/c", "demo/c", "demo/m", "openai/whisper-1",
    )  # fmt: skip
    (tmp_path / "config.toml").write_text("[defaults.routing]\nvoice = 'demo/v'\n")
    routing = (
        without_file(tmp_path, {"ANTHROPIC_MODEL": "claude-x", "SPACEBOT_VOICE_MODEL": "demo/e"})
        .config.agents[0]
        .routing
    )
    assert (routing.channel, routing.voice) == (None, "demo/v")


@pytest.mark.spec("control 6.6", "control 8.1.26")
def test_a_container_sets_up_accounts_and_bindings_by_itself(tmp_path: Path) -> None:
    loaded = without_file(tmp_path, CONTAINER)
    config = loaded.config
    assert loaded.warnings == ()
    assert [agent.id for agent in config.agents] == ["main"]
    assert (config.api.bind, config.api.auth_token is not None) == ("0.0.0.0", True)
    assert [key for _, key, _ in config.messaging.accounts()] == ["discord", "slack", "telegram", "twitch", "webhook"]
    assert config.messaging.discord[0].dm_allowed_users == ("7", "8")
    twitch, webhook = config.messaging.twitch[0], config.messaging.webhook[0]
    assert (twitch.channels, twitch.trigger_prefix) == (("stage",), "!b")
    assert (webhook.bind, webhook.enabled) == ("0.0.0.0", True)
    assert [(b.channel, b.guild_id or b.workspace_id or b.chat_id, b.channel_ids) for b in config.bindings] == [
        ("discord", "111", ("5", "6")), ("discord", "222", ("5", "6")), ("slack", "T1", ()), ("telegram", "-100", ()),
    ]  # fmt: skip


def test_the_first_change_of_a_container_keeps_its_bindings(tmp_path: Path) -> None:
    """A file that lacked them would open every server to everybody."""
    file = tmp_path / "config.toml"
    before = without_file(tmp_path, CONTAINER).config
    editor = ConfigEditor(file, load=lambda path: load_config(path, environ=CONTAINER), environ=CONTAINER)
    editor.change_tables(lambda tables: tables.setdefault("defaults", {}).update(max_turns=9))

    after = without_file(tmp_path, CONTAINER).config
    assert after.bindings == before.bindings
    assert after.messaging == before.messaging
    assert after.agents[0].max_turns == 9
    assert "hook-of-the-owner" not in file.read_text()
    assert TOKEN not in file.read_text()


@pytest.mark.spec("C-26")
@pytest.mark.parametrize(
    ("kind", "bind"), [("docker", "0.0.0.0"), ("hosted", "::"), ("", "127.0.0.1"), ("native", "127.0.0.1")]
)
def test_the_deployment_decides_where_the_api_listens(tmp_path: Path, kind: str, bind: str) -> None:
    environ = {"SPACEBOT_DEPLOYMENT": kind, "SPACEBOT_API_TOKEN": "token-of-the-owner"}
    assert without_file(tmp_path, environ).config.api.bind == bind
    assert deployment(environ) == (kind or "native")
    (tmp_path / "config.toml").write_text('[api]\nbind = "127.0.0.1"\n')
    assert without_file(tmp_path, {"SPACEBOT_DEPLOYMENT": kind}).config.api.bind == "127.0.0.1"  # the file says so


def test_an_open_api_demands_a_token_or_an_explicit_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SPACEBOT_API_TOKEN"):
        without_file(tmp_path, {"SPACEBOT_DEPLOYMENT": "docker"})
    assert without_file(
        tmp_path, {"SPACEBOT_DEPLOYMENT": "docker", "SPACEBOT_API_WITHOUT_TOKEN": "1"}
    ).config.api.allow_without_token
    (tmp_path / "config.toml").write_text('[api]\nbind = "0.0.0.0"\nallow_without_token = true\n')
    assert without_file(tmp_path, {}).config.api.auth_token is None


def test_a_wrong_variable_is_told_by_its_name(tmp_path: Path) -> None:
    environ = {
        "SPACEBOT_DEPLOYMENT": "moon", "SPACEBOT_MAX_AGENTS": "many", "SPACEBOT_CRON_TIMEZONE": "Mars",
        "DISCORD_BOT_TOKEN": TOKEN, "DISCORD_GUILD_ID": "my-server", "WEBHOOK_ENABLED": "yes",
    }  # fmt: skip
    warnings = "\n".join(without_file(tmp_path, environ).warnings)
    for word in (
        "SPACEBOT_DEPLOYMENT is ignored",
        "SPACEBOT_MAX_AGENTS is ignored",
        "SPACEBOT_CRON_TIMEZONE is ignored",
    ):
        assert word in warnings
    assert "'my-server' never matches" in warnings
    with pytest.raises(ConfigError, match="WEBHOOK_PORT = 'high': must be a whole number"):
        without_file(tmp_path, {"WEBHOOK_ENABLED": "1", "WEBHOOK_PORT": "high"})


def test_most_agents() -> None:
    assert [max_agents({"SPACEBOT_MAX_AGENTS": text}) for text in ("3", "", "x", "-1", "9" * 40)] == [
        3,
        None,
        None,
        None,
        None,
    ]


def test_every_variable_that_is_read_is_listed() -> None:
    """The page of the documentation is made of these lists."""
    source = (Path(__file__).parents[2] / "spacebot" / "config" / "environment.py").read_text(encoding="utf-8")
    body = source[source.index("_ROLES = ") :]
    read = set(re.findall(r'"((?:SPACEBOT|OTEL|WEBHOOK|TWITCH_TRIGGER|ANTHROPIC)_[A-Z_]+)"', body))
    assert read
    assert read <= {*VARIABLES, *CONTAINER_VARIABLES}


def test_the_programs_own_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SPACEBOT_MODEL", "demo/here")
    assert load_config(tmp_path / "config.toml").config.agents[0].routing.channel == "demo/here"
