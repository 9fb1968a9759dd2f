"""What the guides to the platforms say is true: their configurations load without a warning, their places exist."""

import re
from pathlib import Path

import pytest

from spacebot.config.load import LoadedConfig, load_config
from spacebot.config.messaging import (
    PLATFORMS,
    Account,
    DiscordAccount,
    SlackAccount,
    TelegramAccount,
    TwitchAccount,
    WebhookAccount,
)

ROOT = Path(__file__).resolve().parents[1]
GUIDES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "platforms").glob("*.md"))}
SAMPLES = [
    pytest.param(name, sample, id=f"{name}-{number}")
    for name, text in GUIDES.items()
    for number, sample in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL))
]
ACCOUNTS = (DiscordAccount, SlackAccount, TelegramAccount, TwitchAccount, WebhookAccount)
WITHOUT_EDITS = (TwitchAccount, WebhookAccount)  # answers cannot grow there
DISCORD = "MTA5NDQ2NzE4MjQ1Njc4OTAxMg.GabcdE.abcdefghijklmnopqrstuvwxyz0123456789AB"
ENVIRON = {
    "DISCORD_BOT_TOKEN": DISCORD,
    "DISCORD_OPS_TOKEN": DISCORD.replace("Mg.", "Mw."),
    "SLACK_BOT_TOKEN": "xoxb-1",
    "SLACK_APP_TOKEN": "xapp-1",
    "PARTNER_BOT_TOKEN": "xoxb-2",
    "PARTNER_APP_TOKEN": "xapp-2",
    "TELEGRAM_BOT_TOKEN": "1:a",
    "TELEGRAM_HOME_TOKEN": "2:b",
    "TWITCH_BOT_USERNAME": "bot",
    "TWITCH_OAUTH_TOKEN": "oauth:x",
    "WEBHOOK_TOKEN": "long-enough",
    "SPACEBOT_API_TOKEN": "long-enough",
}


def load(folder: Path, text: str) -> LoadedConfig:
    file = folder / "config.toml"
    file.write_text(text)
    return load_config(file, environ=ENVIRON)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_a_configuration_of_a_guide_connects_without_a_warning(name: str, sample: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, sample)

    assert loaded.warnings == ()
    accounts = [(platform, account.enabled) for platform, _, account in loaded.config.messaging.accounts()]
    assert set(accounts) == ({(name, True)} if name in PLATFORMS else set())


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_has_all_its_parts(name: str) -> None:
    titles = re.findall(r"^## (.*)$", GUIDES[name], re.MULTILINE)
    assert [title.partition(" can do")[0] for title in titles] == [
        "Set it up", "Configuration", "What programs" if name == "webhook" else "What people", "Limits",
        "When it does not work",
    ]  # fmt: skip
    assert "| You see | Because | Do |" in GUIDES[name]


@pytest.mark.parametrize("model", ACCOUNTS, ids=lambda model: model.__name__)
def test_every_key_of_an_account_stands_in_its_guide(model: type[Account]) -> None:
    guide = GUIDES[model.__name__.removesuffix("Account").lower()]
    shown = model.model_fields.keys() - ({"streaming", "name"} if model in WITHOUT_EDITS else {"name"})
    assert [key for key in shown if key not in guide] == []


def test_links_between_our_own_pages_lead_somewhere_and_every_platform_has_a_guide() -> None:
    assert set(GUIDES) == {*PLATFORMS, "webchat"}
    pages = {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")}
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in GUIDES:
        assert f"docs/platforms/{name}.md" in readme


def test_the_manifest_asks_for_what_the_list_of_the_steps_needs() -> None:
    manifest = GUIDES["slack"].split("```yaml")[1].split("```")[0]
    scopes = set(re.findall(r"^\s+- ([a-z]+:[a-z]+)$", manifest, re.MULTILINE))
    assert {"chat:write", "files:read", "files:write", "reactions:write", "users:read", "im:write"} <= scopes
    assert {
        f"{kind}:{right}" for kind in ("channels", "groups", "im", "mpim") for right in ("history", "read")
    } <= scopes
    assert set(re.findall(r"- (message\.\w+)", manifest)) == {
        f"message.{k}" for k in ("channels", "groups", "im", "mpim")
    }
    assert "socket_mode_enabled: true" in manifest
    assert "app_mention" not in manifest
