"""What the pages say is true: configurations load without a warning, commands exist, examples run, links lead on."""

import argparse
import importlib.util
import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from pydantic import SecretStr

from spacebot.api.pages import PAGES as WEB_PAGES
from spacebot.base.telemetry import LogRing
from spacebot.cli.groups import GROUPS
from spacebot.cli.main import HELP, _parse, _parser, main
from spacebot.config.environment import CONTAINER_VARIABLES, VARIABLES
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
from spacebot.config.model import ApiConfig
from spacebot.config.provider_table import provider_table
from spacebot.conversations.records import Accepted
from spacebot.messaging.messages import InboundMessage
from tests.api.serving import UNREAD, open_server
from tests.fakes.fake_program import FakeAgent

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
    **{name: "k" * 20 for entry in provider_table().values() if (name := entry.env)},
    "MY_PROVIDER_KEY": "k" * 20,
    "OTLP_HEADERS": "authorization=x",
    "BRAVE_SEARCH_API_KEY": "k" * 20,
    "SENTRY_TOKEN": "k" * 20,
    "CLAUDE_KEY": "k" * 20,
}
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TABLES = [
    pytest.param(sample, id=f"{path.stem}-{number}")
    for path, text in PAGES.items()
    if path.stem != "configuration"  # made, and tested where it is made
    for number, sample in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL))
]
COMMANDS = [
    pytest.param(words, id=" ".join(words)[:60])
    for text in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    for part in re.sub(r"\$\(.*?\)", "x", line).split("&&")
    if (command := part.strip().removeprefix("sudo ")).startswith("spacebot")
    if (words := shlex.split(command, comments=True))
]
OF_DOCUMENTATION_ONLY = {"docs.github.com", "json-schema.org", "www.w3.org", "spacebot.localhost", "opencode.ai"}
TOKEN = "a-token-of-the-owner-77120934"


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


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The program that writes parts of the pages."""
    spec = importlib.util.spec_from_file_location("docs", ROOT / "build" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_from_the_program_is_current(made: ModuleType) -> None:
    names = set()
    for path, text in PAGES.items():
        assert made.render(text) == text, f"{path.name}: run python build/docs.py"
        names |= set(re.findall(r"<!-- made: ([\w-]+) -->", text))
    assert names == set(made.PARTS)


@pytest.mark.parametrize("sample", TABLES)
def test_a_configuration_of_a_page_loads_without_a_warning(sample: str, tmp_path: Path) -> None:
    text = sample.replace("secret:", "env:")
    assert load(tmp_path, text).warnings == ()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_a_page_is_understood(words: list[str]) -> None:
    if words[1:] == ["--version"]:
        return
    _parse(words[1:])  # leaves the program when it does not understand


def test_targets_and_files_that_commands_of_the_pages_name_exist() -> None:
    blocks = "".join(re.findall(r"```bash\n(.*?)```", "".join(PAGES.values()), re.DOTALL))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", blocks, re.MULTILINE))
    assert targets >= {"run", "test", "exe"}
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    recipes = re.findall(r"docker build -f (\S+)", blocks)
    assert recipes
    assert all((ROOT / recipe).is_file() for recipe in recipes)


def commands_below(parser: argparse.ArgumentParser, *above: str) -> Iterator[tuple[str, ...]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield above
    for group in groups:
        for name, below in group.choices.items():
            yield from commands_below(below, *above, name)


def test_every_command_has_an_example_and_a_line_of_help() -> None:
    shown = PAGES[ROOT / "docs" / "command-line.md"]
    commands = set(commands_below(_parser([group.name for group in GROUPS])))
    assert len(commands) > 50
    assert [words for words in commands if f"\nspacebot {' '.join(words)}" not in shown] == []
    first = {words[0] for words in commands}
    assert {line.split()[0] for line in re.findall(r"^  ([a-z]\S* .*)", HELP, re.MULTILINE)} - first == set()
    assert [name for name in first if not re.search(rf"^  {name}\b", HELP, re.MULTILINE)] == []


def explanations() -> Iterator[Any]:
    """Samples of a terminal, each with the configuration above it."""
    page, tables = PAGES[ROOT / "docs" / "models.md"], ""
    for language, text in re.findall(r"```(toml|console)\n(.*?)```", page, re.DOTALL):
        if language == "toml":
            tables = text
            continue
        for sample in text.split("$ spacebot ")[1:]:
            command, *lines = sample.strip().splitlines()
            yield pytest.param(tables, shlex.split(command), lines, id=command[:60])


@pytest.mark.parametrize(("tables", "words", "lines"), list(explanations()))
def test_an_explanation_of_a_route_is_what_the_page_shows(
    tables: str, words: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "config.toml"
    file.write_text(tables)
    assert main(["--config", str(file), *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert all(any(told.startswith(line) for told in said) for line in lines if line), said


def source_files() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "spacebot").rglob("*")):
        if path.suffix in {".py", ".toml"}:
            yield path, path.read_text(encoding="utf-8")


def test_every_variable_stands_in_the_pages_and_no_other(made: ModuleType) -> None:
    of_providers = {
        name for entry in provider_table().values() for name in (entry.env, entry.token_env, entry.url_env) if name
    }
    launcher = (ROOT / "build" / "executable" / "launcher.c").read_text(encoding="utf-8")
    text = launcher + "".join(text for _, text in source_files())
    read = set(re.findall(r"\b(?:SPACEBOT|OTEL|PI)_[A-Z][A-Z_]*[A-Z]\b", text))
    listed = {*VARIABLES, *CONTAINER_VARIABLES, *made.OTHERS, *made.INTERNAL}
    assert read - listed == set()
    assert {name for name in listed if name.startswith(("SPACEBOT_", "OTEL_", "PI_"))} - read == set()
    pages = PAGES[ROOT / "docs" / "operations.md"] + PAGES[ROOT / "docs" / "models.md"]
    assert [name for name in (listed | of_providers) - made.INTERNAL.keys() if f"`{name}`" not in pages] == []


def test_every_host_that_the_program_knows_stands_on_the_page_about_security() -> None:
    page = PAGES[ROOT / "docs" / "security.md"]
    hosts = {
        host
        for path, text in source_files()
        for host in re.findall(r"[\"'(](?:https|wss)://([a-z0-9-]+(?:\.[a-z0-9-]+)+)", text)
        if not host.endswith(("example.org", "example.com")) and host not in OF_DOCUMENTATION_ONLY
    }
    assert len(hosts) > 20
    assert [host for host in sorted(hosts) if f"`{host}`" not in page] == []


def test_the_page_about_the_web_app_names_every_page_with_its_key() -> None:
    page = PAGES[ROOT / "docs" / "web.md"]
    assert [one.title for one in WEB_PAGES if f"| {one.title} | `g` `{one.key}` |" not in page] == []
    assert len(re.findall(r"\| `g` `\w` \|", page)) == len(WEB_PAGES)


def test_links_within_pages_lead_to_headings_and_the_index_names_every_page() -> None:
    def anchors(path: Path) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", PAGES[page]):
            assert anchor in anchors((page.parent / target) if target else page), f"{page.name}: {target}#{anchor}"
    index = PAGES[ROOT / "docs" / "README.md"]
    assert [path.name for path in PAGES if path.name != "README.md" and f"]({path.name})" not in index] == []


async def answer(agent: FakeAgent, message: InboundMessage, accepted: Accepted) -> None:
    async with agent.turn(message.conversation_id, accepted) as turn:
        await turn.say(f"You said: {message.text}")


EXPECTED = (  # what each example of the page on the API answers with
    '"status":"ok"', '"default_agent_id"', '"expires_in_seconds":300', "event: done", '"is_new":true',
    '"You said: hello"',
    '"content": "You said: hello"', "event: lagged", '"totals"', '"agents"', '"level":"provider default"', '"lines"',
)  # fmt: skip


@pytest.mark.filterwarnings(UNREAD)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl")
async def test_the_examples_of_the_api_answer_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGES[ROOT / "docs" / "api.md"]
    prelude, *examples = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert len(examples) == len(EXPECTED)
    config = ApiConfig(port=0, auth_token=SecretStr(TOKEN))
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers, LogRing(size=20)])
    async with open_server(tmp_path, config=config) as served:
        served.agent.on_message = partial(answer, served.agent)
        for example, expected in zip(examples, EXPECTED, strict=True):
            script = prelude.replace("http://127.0.0.1:5738", served.url) + example.replace("-m 2 ", "")
            found = await ask(script, expected)
            assert expected in found, f"{example}\n{found}"


async def ask(script: str, expected: str) -> str:
    """Run an example until its answer is complete, or holds what is expected: streams have no end."""
    said = ""
    environ = {"SPACEBOT_API_TOKEN": TOKEN, "PATH": "/usr/bin:/bin:/usr/local/bin"}
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process, ["bash", "-c", script], env=environ,
            stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        async for chunk in process.stdout:
            said += chunk.decode()
            if expected in said:
                break
        nursery.cancel_scope.cancel()
    return said
